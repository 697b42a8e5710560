"""``upcycle export``: a network written for deployment, both sides compared."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from upcycle.core import references
from upcycle.core.errors import require
from upcycle.core.models import copy_of
from upcycle.measure.export import write_export
from upcycle.surgery.ratio import set_ratio
from upcycle.verbs.naming import Naming, Reference, options_as
from upcycle.verbs.networks import answering, any_network
from upcycle.verbs.options import Say, tell


def export(
    model: Reference,
    out: Path | str,
    *,
    format: Literal["onnx", "torch"] = "onnx",
    ratio: float | None = None,
    overwrite: bool = False,
    say: Say = tell,
    **naming: Any,
) -> Path:
    """Write a network for deployment, and compare both sides on a held batch.

    Args:
        model: a reference, or the path of a saved model or run; in Python also a module or a
            Model. A network of one's own needs a size of three numbers, since there are
            no images to read it off.
        out: the file, which ends in .onnx or .pt2.
        format: onnx, or torch for torch.export.
        ratio: the share of tokens that poll-and-pool blocks keep in the file, above 0 and at most 1; if not given, what
            the network is set to. A file has one for good.
        overwrite: write over the files that are there.
        say: where the error that was found goes.
        naming: fields of :class:`~upcycle.verbs.naming.Naming`, that is, what the reference does not say.

    Returns:
        the file; beside it lies ``FILE.json`` with input shape, normalisation, classes and the error.

    Raises:
        UserError: see :func:`upcycle.measure.export.write_export`; a ratio for a network without such blocks.
    """
    said, file = options_as(Naming, "export", naming), Path(out)
    require(said.long_tail is None, "Nothing is read from data to export a network; leave out --long_tail.")
    if isinstance(model, str):
        references.check_reference(model)
    net = answering(any_network(model, said), said)
    if ratio is not None:
        net = replace(net, module=copy_of(net.module))
        set_ratio(net.module, ratio)
    error = write_export(net, file, format, overwrite=overwrite)
    say(f"{file}: equal to the network to {error:.1e} on a held batch")
    for note in net.notes:
        say(f"note     {note}")
    return file
