"""Networks written for deployment, both sides compared."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from upcycle.core import store
from upcycle.core.errors import UserError, first_cause, one_line, require, unknown
from upcycle.core.graphs import GraphTakes
from upcycle.core.models import Model, copy_of
from upcycle.core.spikes import sends_spikes
from upcycle.core.takes import described
from upcycle.measure.graph_programs import names, write_program

TOLERANCE = 1e-4  # largest difference of the logits over the largest logit
METADATA = "upcycle"  # the key of an ONNX file's metadata_props under which what one must know lies, as JSON


def write_export(model: Model, path: Path, format: str, *, overwrite: bool = False) -> float:
    """Write the network for deployment and compare both sides on a held batch of 8 samples.

    The batch size stays free. Beside the file lies ``FILE.json`` with input shape, normalisation, classes and
    the error found; an ONNX file also carries them, but for the error, as JSON in its metadata (``upcycle``).

    Args:
        model: copied to the CPU in float32 for this.
        path: ends in ``.onnx`` or ``.pt2``.
        format: ``onnx`` (run with onnxruntime), or ``torch`` (``torch.export``).
        overwrite: write over the files that are there.

    Returns:
        the largest difference of the logits, relative to the largest logit.

    Raises:
        UserError: a file that is there, a missing package, a network that cannot be exported, an error above 1e-4;
            nothing is left.
    """
    path = Path(path)
    facts: dict[str, Any] = {
        "format": format,
        "name": model.name,
        **_described(model),
        "classes": list(model.classes),
        "licence": model.licence,
        **({"reading": read} if (read := model.reading.record()) else {}),
    }
    writers: dict[str, tuple[str, Callable[..., Tensor]]] = {
        "onnx": (".onnx", partial(_to_onnx, facts)),
        "torch": (".pt2", _to_torch),
    }
    if format not in writers:
        raise unknown("export format", format, writers)
    takes, graphs = model.takes, isinstance(model.takes, GraphTakes)
    require(
        graphs or isinstance(model.example(2), Tensor),
        f"{model.name} takes {takes}, and only networks that take one tensor are exported; save it instead, and "
        "load it in Python.",
    )
    if isinstance(takes, GraphTakes):
        require(
            format == "torch",
            f"{model.name} takes {takes}, and such networks are not written as ONNX: give a file that ends in .pt2, "
            "and --format torch.",
        )
        writers["torch"] = (".pt2", partial(write_program, takes=takes))
        facts["inputs"] = list(names(takes))
    suffix, write = writers[format]
    require(
        path.suffix == suffix,
        f"A file for {format} ends in {suffix}: {path.with_suffix(suffix)}, not {path}.",
    )
    beside = path.with_suffix(path.suffix + ".json")
    for file in (path, beside):
        store.require_free(file, overwrite)
    if format == "onnx":
        lacking = [p for p in ("onnx", "onnxscript", "onnxruntime") if importlib.util.find_spec(p) is None]
        require(not lacking, f'Export to ONNX needs {", ".join(lacking)}: pip install "upcycle[onnx]".')
    network, held = copy_of(model.module).cpu().float().eval(), model.example(8)
    if graphs and held.at is not None:
        held = replace(held, at=torch.arange(len(held.x)))  # the program answers about every node
    with torch.no_grad():
        expected = network(held)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        store.clear_temporary(path.parent, (path.name, beside.name))
        folder = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        try:
            relative = _compared(model, partial(write, network, model.example(2), held), folder / path.name, expected)
            os.replace(folder / path.name, path)
            store.write_json(beside, {**facts, "error": relative})
        finally:
            shutil.rmtree(folder, ignore_errors=True)
    except OSError as error:
        raise UserError(f"Cannot write {path}: {error.strerror or error}.") from error
    return relative


def _described(model: Model) -> dict[str, Any]:
    """Describe what the network takes and answers, as JSON data."""
    if model.ordinary:
        return {"input_shape": list(model.input_shape), "mean": list(model.mean), "std": list(model.std)}
    return {"takes": described(model.takes), "task": {"name": model.task.name, **model.task.plain()}}


def _compared(model: Model, write: Callable[[Path], Tensor], file: Path, expected: Tensor) -> float:
    """Write ``file``, and by how much its answers differ, relative to the largest logit."""
    try:
        answer = write(file)
    except Exception as error:
        raise UserError(f"{model.name} cannot be exported to {file.name}: {one_line(first_cause(error))}.") from error
    each = (answer - expected).abs().flatten(1).amax(1)
    # Rounding may decide a spike, and then a whole answer; what is written wrongly errs on most of them.
    worst = each.median() if sends_spikes(model.module) else each.max()
    relative = float(worst / expected.abs().max().clamp_min(1e-12))
    if not relative <= TOLERANCE:
        raise UserError(
            f"{file.name} is not written: the exported {model.name} differs from the original by "
            f"{relative:.1e} of the largest logit, more than {TOLERANCE:g}."
        )
    return relative


def _to_onnx(facts: dict[str, Any], network: nn.Module, example: Tensor, held: Tensor, file: Path) -> Tensor:
    import onnxruntime

    # ONNX gets attention as plain matrix products, which leave their answer in another order of memory than the fast
    # kernels do: what a forward does with it afterwards has to be traced behind those.
    with sdpa_kernel(SDPBackend.MATH):
        made = _with_plain_sorts(_program(network, example))
        program = torch.onnx.export(made, dynamo=True, verbose=False, input_names=["images"], output_names=["logits"])
    assert program is not None  # dynamo=True makes one
    program.model.metadata_props[METADATA] = json.dumps(facts)
    program.save(str(file), external_data=False)
    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    return torch.from_numpy(session.run(None, {"images": held.numpy()})[0])


def _with_plain_sorts(program: torch.export.ExportedProgram) -> torch.export.ExportedProgram:
    """Replace stable sorts in a program by ordinary ones: ONNX has one way to sort, and keeps equal values in order."""
    for n in program.graph.nodes:
        if n.target is torch.ops.aten.sort.stable:
            n.args = (n.args[0], n.kwargs.get("dim", -1), n.kwargs.get("descending", False))
            n.target, n.kwargs = torch.ops.aten.sort.default, {}
    return program


def _to_torch(network: nn.Module, example: Tensor, held: Tensor, file: Path) -> Tensor:
    torch.export.save(_program(network, example), file)
    with torch.no_grad():
        return torch.export.load(file).module()(held)


def _program(network: nn.Module, example: Tensor) -> torch.export.ExportedProgram:
    """The network as a program for batches of any size."""
    shapes = ({0: torch.export.Dim("batch")},)
    with torch.no_grad():
        try:
            return torch.export.export(network, (example,), dynamic_shapes=shapes, strict=False)
        except Exception:  # where a forward asks for len(x), only its bytecode tells that this is the batch
            return torch.export.export(network, (example,), dynamic_shapes=shapes, strict=True)
