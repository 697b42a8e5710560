"""Saved models: a network as a directory of data.

It holds ``weights.safetensors``, ``architecture.json``, where known ``lineage.json``, the model card ``README.md``, and
``manifest.json`` with the digest of each. Nothing is ever unpickled but by torch's ``weights_only`` reader, which
refuses code.
"""

from __future__ import annotations

import contextlib
import importlib
import inspect
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Literal, NotRequired, TypedDict, cast

import torch
from msgspec import Meta
from torch import nn

from upcycle.core import limits, lineage, store
from upcycle.core.building import BUILDERS, MADE, call, taken
from upcycle.core.errors import UserError, one_line, require
from upcycle.core.fetching import nothing_fetched
from upcycle.core.models import Model, fields_of
from upcycle.core.outputs import own
from upcycle.core.probe import probe
from upcycle.core.read import checked, parsed
from upcycle.core.reading import Read, Reading
from upcycle.core.takes import Takes, described, takes_of
from upcycle.core.task import task_of
from upcycle.core.weights import fill

WEIGHTS, ARCHITECTURE, LINEAGE, CARD = "weights.safetensors", "architecture.json", "lineage.json", "README.md"
FORMAT, OTHERS = 1, 2
"""The formats of classifiers of images, and of every other network."""

Side = Annotated[int, Meta(ge=1, le=2**16)]
ImageShape = tuple[Side, Side, Side]


class Options(TypedDict):
    """Options that every builder takes; further ones are a builder's own."""

    num_classes: NotRequired[Annotated[int, Meta(ge=1, le=2**24)] | None]
    input_shape: NotRequired[ImageShape | None]


class Source(TypedDict):
    """The source of a network that another is made of."""

    reference: str
    options: dict[str, Any]
    input_shape: NotRequired[ImageShape]
    takes: NotRequired[dict[str, Any]]


class Architecture(TypedDict):
    """``architecture.json`` of a classifier of images."""

    format: Literal[1]
    name: str
    reference: str | None
    options: dict[str, Any]
    input_shape: ImageShape
    mean: tuple[float, ...]
    std: tuple[float, ...]
    classes: tuple[str, ...]
    licence: str
    weights: str
    reading: NotRequired[Read]


class Other(TypedDict):
    """``architecture.json`` of a network of other inputs or of another task, with the description of both."""

    format: Literal[2]
    name: str
    reference: str | None
    options: dict[str, Any]
    takes: dict[str, Any]
    task: dict[str, Any]
    classes: tuple[str, ...]
    licence: str
    weights: str
    reading: NotRequired[Read]


Record = Architecture | Other | Source


def save(model: Model, directory: str | Path, *, readme: str | None = None) -> None:
    """Write ``model`` as data.

    The directory appears complete or not at all; a saved model that is there already is replaced.

    Args:
        model: its weights are stored contiguous, whatever their memory format and device.
        directory: for the files that this module's docstring lists.
        readme: the model card.

    Raises:
        UserError: the directory holds something else, or cannot be written.
    """
    directory = Path(directory)
    state = {
        key: tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
        for key, tensor in own(model.module).state_dict().items()
    }
    shape = {"input_shape": list(model.input_shape), "mean": list(model.mean), "std": list(model.std)}
    other = {"takes": described(model.takes), "task": {"name": model.task.name, **model.task.plain()}}
    architecture = {
        "format": FORMAT if model.ordinary else OTHERS,
        "name": model.name,
        "reference": model.reference,
        "options": model.options,
        **(shape if model.ordinary else other),
        "classes": list(model.classes),
        "licence": model.licence,
        "weights": store.tensor_digest(state),
        **({"reading": read} if (read := model.reading.record()) else {}),
    }
    with store.new_directory(directory, "saved model", _is_saved) as fresh:
        record = store.save_tensors(fresh / WEIGHTS, state)
        store.write_json(fresh / ARCHITECTURE, architecture)
        if model.lineage is not None:
            store.write_json(fresh / LINEAGE, model.lineage)
        if readme is not None:
            store.write_atomic(fresh / CARD, readme.encode())
        store.write_manifest(fresh, {WEIGHTS: record})


def load(directory: str | Path, *, into: nn.Module | None = None, trust: tuple[str, ...] = ()) -> Model:
    """Read a saved model, in evaluation mode.

    Args:
        directory: what :func:`save` wrote, or a run directory with ``model/`` in it.
        into: a module of the same architecture that takes the weights; needed for a model that was saved from
            a bare Python instance.
        trust: Python packages whose code may be imported to rebuild the architecture.

    Raises:
        UserError: no saved model there, a damaged file, or an architecture that cannot be rebuilt.
    """
    directory = directory_of(directory)
    ours = (WEIGHTS, ARCHITECTURE, LINEAGE)  # a person may edit the model card
    files = store.verify_manifest(directory, lambda file: file in ours)
    record = _record(directory, files)
    if into is None:
        with _sized(directory, record["reference"], len(files.get(WEIGHTS, b""))):
            module = _rebuild(directory, record, record["options"], trust).module
    else:
        module = into
    require(WEIGHTS in files, f"{directory} is damaged: its manifest does not name {WEIGHTS}.")
    state = store.parse_tensors(files[WEIGHTS], directory / WEIGHTS)
    kinds = {tensor.dtype for tensor in state.values() if tensor.is_floating_point()}
    if len(kinds) == 1:
        module.to(next(iter(kinds)))
    fill(own(module), state, str(directory / WEIGHTS))
    _restore_formats(own(module), state)
    module.eval()
    model = Model(
        module=module,
        **_kind(directory, record),
        classes=record["classes"],
        reference=record["reference"],
        options=record["options"],
        licence=record["licence"],
        lineage=lineage.read(directory / LINEAGE, files[LINEAGE]) if LINEAGE in files else None,
        name=record["name"],
        reading=Reading(**record.get("reading", {})),
    )
    # A person's own code may answer with more or other than logits, which was so when it was saved.
    if (into is not None or _foreign(record["reference"])) and kinds <= {torch.float32}:
        return probe(model)[0]
    return replace(model, module=model.takes.adapted(model.module).eval())


def lineage_of(directory: str | Path) -> lineage.Node | None:
    """The lineage of a saved model, from its file alone.

    Args:
        directory: see :func:`load`.
    """
    directory = directory_of(directory)
    files = store.verify_manifest(directory, lambda file: file == LINEAGE)
    return lineage.read(directory / LINEAGE, files[LINEAGE]) if LINEAGE in files else None


def _restore_formats(module: nn.Module, state: dict[str, torch.Tensor]) -> None:
    """Give each weight the number format that it was saved in, and its value in that."""
    for key, tensor in module.state_dict(keep_vars=True).items():
        if key in state and tensor.dtype != state[key].dtype:
            tensor.data = state[key].clone()


def _is_saved(directory: Path) -> bool:
    return (directory / ARCHITECTURE).is_file() and (directory / store.MANIFEST).is_file()


def rebuilt(
    directory: str | Path,
    num_classes: int | None = None,
    input_shape: tuple[int, int, int] | None = None,
    takes: Takes | None = None,
    trust: tuple[str, ...] = (),
) -> Model:
    """The architecture of a saved model with fresh weights.

    Args:
        directory: see :func:`load`.
        num_classes: outputs, where they are to be others than the saved model's.
        input_shape: (c, h, w), where it is to be another.
        takes: what it is to take, where that is something else than the saved model takes.
        trust: see :func:`load`.
    """
    directory = directory_of(directory)
    record = _record(directory, store.verify_manifest(directory, lambda file: file == ARCHITECTURE))
    changes = {"num_classes": num_classes, "input_shape": input_shape}
    options = {**record["options"], **{key: value for key, value in changes.items() if value is not None}}
    if takes is not None and "takes" in record:
        record = cast(Other, {**record, "takes": described(takes)})
    weights = directory / WEIGHTS
    with _sized(directory, record["reference"], weights.stat().st_size if weights.is_file() else 0, changed=True):
        return replace(_rebuild(directory, record, options, trust), name=record["name"])


def _sized(
    directory: Path, reference: str | None, size: int, *, changed: bool = False
) -> contextlib.AbstractContextManager[Any]:
    """A context in which no network is built out of proportion to its weights of ``size`` bytes.

    Args:
        reference: of the network; a person's own code builds what it likes.
        changed: it is to have other outputs, or take other inputs, than those weights.
    """
    kind = str(reference).partition(":")[0]
    if kind not in (*BUILDERS, *MADE):
        return contextlib.nullcontext()
    times, beside = limits.MADE if changed or kind in MADE else limits.PLAIN
    return limits.Allocations(
        times * size + beside,
        f"{directory / ARCHITECTURE} is damaged: it describes a network of more than {times * size + beside:,} bytes, "
        f"and {WEIGHTS} has {size:,}.",
    )


def directory_of(path: str | Path) -> Path:
    """The directory of a saved model: ``path``, or ``model/`` in it.

    Raises:
        UserError: there is none.
    """
    path = Path(path)
    for candidate in (path, path / "model"):
        if _is_saved(candidate):
            return candidate
    if path.is_file():
        raise UserError(f"{path} is a file. Give its architecture as the model and this file as its weights.")
    raise UserError(f"There is no saved model in {path}: no {ARCHITECTURE} with its {store.MANIFEST}, nor in model/.")


def _record(directory: Path, files: dict[str, bytes]) -> Architecture | Other:
    """The content of ``architecture.json``; its digest holds, but a stranger may have made both."""
    file = directory / ARCHITECTURE
    require(ARCHITECTURE in files, f"{directory} is damaged: its manifest does not name {ARCHITECTURE}.")
    found = parsed(files[ARCHITECTURE], file)
    if isinstance(found, dict) and found.get("format") not in (FORMAT, OTHERS):
        raise UserError(
            f"{directory} has format {found.get('format')}, and this version of upcycle reads the formats "
            f"{FORMAT} and {OTHERS}: use the version that wrote it."
        )
    other = isinstance(found, dict) and found["format"] == OTHERS
    record: Architecture | Other = checked(found, Other, file) if other else checked(found, Architecture, file)
    checked(record["options"], Options, file, "$.options")
    return record


def _kind(directory: Path, record: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a model that say what it takes and answers, as far as its record has them."""
    if "takes" not in record:
        channels = record["input_shape"][0]
        return {
            "input_shape": record["input_shape"],
            "mean": record.get("mean", (0.0,) * channels),
            "std": record.get("std", (1.0,) * channels),
        }
    try:
        found = fields_of(takes_of(record["takes"]))
        return {**found, "task": task_of(record["task"])} if "task" in record else found
    except (TypeError, ValueError, LookupError, AttributeError) as error:
        raise UserError(f"{directory / ARCHITECTURE} is damaged: {one_line(error)}.") from error


def _rebuild(directory: Path, record: Record, options: dict[str, Any], trust: tuple[str, ...]) -> Model:
    """The architecture of a saved model with fresh weights."""
    reference = record["reference"]
    if reference is None:
        raise UserError(f"{directory} was saved from a Python object: load it with load(path, into=module).")
    kind, _, name = reference.partition(":")
    if kind in MADE:
        return _again(directory, record, reference, options, trust)
    build: Callable[..., Any]
    given = _kind(directory, record)
    if kind in BUILDERS:
        build = importlib.import_module(BUILDERS[kind]).build
        arguments = {**options, "name": name, "pretrained": False, **taken(build, given.get("inputs"))}
    else:
        package = kind.partition(".")[0]
        if package not in trust:
            raise UserError(
                f"{directory} is rebuilt by the Python code {reference}: if you trust it, add --trust {package}."
            )
        build = call
        arguments = {
            "reference": reference,
            "num_classes": options.get("num_classes"),
            "input_shape": options.get("input_shape") or given["input_shape"] or None,
            "takes": given.get("inputs"),
        }
    for key in arguments:
        if key not in inspect.signature(build).parameters:
            raise UserError(f"{directory / ARCHITECTURE} is damaged: {reference} takes no option '{key}'.")
    if arguments.get("input_shape") is not None:
        arguments["input_shape"] = tuple(arguments["input_shape"])
    if "config" in inspect.signature(build).parameters:  # of a network that is not known by its name alone
        checked(options.get("config"), dict[str, Any], directory / ARCHITECTURE, "$.options.config")
    try:
        with nothing_fetched("a saved model is built without a network") if kind in BUILDERS else nullcontext():
            return build(**arguments)
    except (TypeError, ValueError, LookupError, ArithmeticError, AttributeError) as error:
        if kind not in BUILDERS:  # a person's own code
            raise
        raise UserError(f"{directory / ARCHITECTURE} is damaged: {one_line(error)}.") from error


def _again(directory: Path, record: Record, reference: str, options: dict[str, Any], trust: tuple[str, ...]) -> Model:
    """A network that was made of others, with fresh weights."""
    kind, _, name = reference.partition(":")
    made = {key: value for key, value in options.items() if key not in ("num_classes", "input_shape")}
    operations = importlib.import_module(MADE[kind]).OPERATIONS

    def rebuild(source: Any, *, tried: bool = True) -> Model:
        """Build one of the others. Whatever it answers with, unless ``tried``, if it is no person's own code."""
        built = _rebuild(directory, *_source(directory, source), trust)
        return probe(built)[0] if tried or _foreign(built.reference) else built

    try:
        module = operations[name](**made, rebuild=rebuild)
    except (KeyError, TypeError, ValueError, IndexError, AttributeError, RecursionError) as error:
        raise UserError(f"{directory / ARCHITECTURE} is damaged: {one_line(error)}.") from error
    known: dict[str, Any] = dict(record)
    return Model(
        module=module,
        **_kind(directory, record),
        classes=known.get("classes", ()),
        reference=reference,
        options=made,
        name=known.get("name", name),
    )


def _foreign(reference: str | None) -> bool:
    """Whether a network is built by code that is not ours."""
    return str(reference).partition(":")[0] not in (*BUILDERS, *MADE)


def _source(directory: Path, source: Any) -> tuple[Source, dict[str, Any]]:
    """A network that another is made of: its record, and its options."""
    record = checked(source, Source, directory / ARCHITECTURE, "$.options")
    checked(record["options"], Options, directory / ARCHITECTURE, "$.options")
    return record, record["options"]
