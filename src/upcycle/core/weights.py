"""Weights files of any origin, read without executing anything in them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from upcycle.core import store
from upcycle.core.checkpoint import COUNTER, DEPTH, read_checkpoint, weights_in
from upcycle.core.errors import UserError, require
from upcycle.core.outputs import own
from upcycle.core.read import bytes_of


def load_weights(module: nn.Module, file: str | Path, key: str | None = None) -> tuple[str, ...]:
    """Fill ``module`` from a weights file, or leave it as it was.

    Args:
        module: the network.
        file: ``.safetensors``, or what ``torch.save`` wrote, as long as it holds tensors and plain data only.
            Envelopes (``state_dict``, ``model_state``, ...) and prefixes (``module.``, ``student.``, ...) are taken
            off, counters and losses among the weights left out. Digests in ``FILE.sha256``, ``SHA256SUMS`` (also one
            folder up) or ``manifest.json`` are checked where these exist. Of a network that has ``published_names``
            (patterns of :func:`re.sub` with what replaces them, in turn) the file may hold the names of its authors.
        key: the envelope or prefix of the weights to take, such as ``state_dict_ema`` or ``student``. Needed where
            several fit, but for averaged weights beside others, of which the others are taken.

    Returns:
        notes on what was taken and what was left out.

    Raises:
        UserError: missing, damaged or truncated file; code in it; keys, shapes or kinds of numbers that don't fit;
            several weights that do; numbers that are not finite.
    """
    path = Path(file)
    if path.is_dir():
        raise UserError(f"{path} is a directory; give a weights file, or the directory itself as the model.")
    try:
        content = bytes_of(path)
    except FileNotFoundError:
        raise UserError(f"There is no weights file {path}.") from None
    except OSError as error:
        raise UserError(f"Cannot read {path}: {error.strerror}.") from error
    _check_digest(path, content)
    if path.suffix == ".safetensors":
        checkpoint: Any = store.parse_tensors(content, path)
    else:
        checkpoint = read_checkpoint(path, content)
    target = own(module)
    found, others = weights_in(checkpoint, wanted := target.state_dict(), str(path), key)
    notes = []
    published: Names = getattr(target, "published_names", ())
    if published and not found.fits(wanted):
        translated, more = weights_in(renamed(checkpoint, published), wanted, str(path), key)
        if len(translated.state.keys() & wanted.keys()) > len(found.state.keys() & wanted.keys()):
            found, others = translated, more
            notes.append(f"The weights of {path.name} have the names that their authors gave them.")
    fill(target, found.state, str(path))
    if found.name:
        also = f"; {_some(others)} would fit too, and weights_key chooses" if others else ""
        notes.append(f"The weights of {path.name} are those under '{found.name}'{also}.")
    elif others:
        notes.append(f"Of {path.name} the outermost weights are taken; {_some(others)} would fit too (weights_key).")
    if found.beside:
        notes.append(f"Of {path.name} is left out what is no weight of the network: {_some(list(found.beside))}.")
    return tuple(notes)


Names = Sequence[tuple[str, str]]


def renamed(checkpoint: Any, names: Names, depth: int = DEPTH) -> Any:
    """Give a checkpoint with the names of its tensors replaced, inside its envelopes too.

    Args:
        names: patterns and replacements of :func:`re.sub`, each applied to what the one before has left.
        depth: of envelopes that are looked into.
    """
    if not isinstance(checkpoint, dict) or depth < 0:
        return checkpoint

    def new(key: str) -> str:
        for pattern, replacement in names:
            key = re.sub(pattern, replacement, key)
        return key

    return {new(str(key)): renamed(item, names, depth - 1) for key, item in checkpoint.items()}


def _check_digest(path: Path, content: bytes) -> None:
    """Compare a file with the digests that lie beside it, where there are any."""
    lists = [
        (path.with_name(path.name + ".sha256"), path.name),
        (path.parent / "SHA256SUMS", path.name),
        (path.parent.parent / "SHA256SUMS", f"{path.parent.name}/{path.name}"),
    ]
    for file, name in lists:
        if not file.is_file():
            continue
        for line in bytes_of(file).decode(errors="replace").splitlines():
            digest, _, listed = line.strip().partition(" ")
            if listed.strip().lstrip("*").removeprefix("./") in ("", name) and digest != store.digest_of(content):
                raise UserError(f"{path} is damaged: it does not match its digest in {file}. Fetch it again.")
    manifest = path.parent / store.MANIFEST
    if manifest.is_file() and b'"digest"' in bytes_of(manifest):  # others use that file name too
        record = store.manifest(path.parent).get(path.name)
        if record is not None:
            store.verified(path, record)


def fill(module: nn.Module, state: dict[str, Tensor], where: str) -> None:
    """Copy ``state`` into ``module`` after everything about it has been checked."""
    wanted = module.state_dict()
    require(
        bool(wanted.keys() & state.keys()) or not wanted,
        f"{where} belongs to another network: none of its tensors ({_some(sorted(state))}) has the name "
        f"of a weight of {type(module).__name__} ({_some(sorted(wanted))}).",
    )
    missing = [key for key in wanted if key not in state and not key.endswith(COUNTER)]
    surplus = [key for key in state if key not in wanted]
    require(
        not missing,
        f"{where} lacks {len(missing)} of the {len(wanted)} weights of {type(module).__name__}: {_some(missing)}.",
    )
    require(
        not surplus,
        f"{where} has {len(surplus)} weights that {type(module).__name__} does not have: {_some(surplus)}.",
    )
    for key, tensor in state.items():
        require(
            tensor.shape == wanted[key].shape,
            f"{where} has '{key}' with shape {tuple(tensor.shape)}, but {type(module).__name__} has "
            f"{tuple(wanted[key].shape)} there.",
        )
        require(
            tensor.layout == torch.strided and not tensor.is_meta and not tensor.is_quantized,
            f"{where} has tensors that are not dense numbers ({key}).",
        )
        require(
            _kind(tensor) == _kind(wanted[key]) or (key.endswith(COUNTER) and not tensor.is_complex()),
            f"{where} has '{key}' in {_format(tensor)}, and {type(module).__name__} has {_format(wanted[key])} there, "
            "which such numbers cannot fill; give the weights as they were trained.",
        )
    require_finite(state, where)
    module.load_state_dict(state, strict=False)


def _kind(tensor: Tensor) -> str:
    """The kind of its numbers; within one, formats differ by rounding and range alone."""
    if tensor.is_complex():
        return "complex"
    return "real" if tensor.is_floating_point() else "whole"


def _format(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def require_finite(state: dict[str, Any], where: str) -> None:
    """Raise :class:`UserError` naming ``where`` and the tensor that holds a NaN or infinity."""
    for key, tensor in state.items():
        if not isinstance(tensor, Tensor) or not (tensor.is_floating_point() or tensor.is_complex()):
            continue
        if not bool((tensor.float() if tensor.itemsize == 1 else tensor).isfinite().all()):  # float8 has no such test
            raise UserError(f"{where} holds numbers that are not finite, in '{key}': it was spoilt in training.")
