"""Weights files of any origin, read without executing anything in them."""

from __future__ import annotations

import io
import pickle
import warnings
import zipfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from upcycle.core import store
from upcycle.core.errors import UserError, one_line, require
from upcycle.core.outputs import own

# What training scripts wrap a state dict in, and what wrappers put before its keys.
_ENVELOPES = ("state_dict", "model", "model_state_dict", "network", "net", "ema", "state_dict_ema")
_PREFIXES = ("module.", "_orig_mod.", "model.", "network.", "net.")


def load_weights(module: nn.Module, file: str | Path) -> None:
    """Fill ``module`` from a weights file, or leave it as it was.

    Args:
        module: the network.
        file: ``.safetensors``, or what ``torch.save`` wrote, as long as it holds tensors and plain data only.
            Wrappers (``state_dict``, ``module.``, ``_orig_mod.``, ...) are taken off. Digests in
            ``FILE.sha256``, ``SHA256SUMS`` (also one folder up) or ``manifest.json`` are checked where these
            exist.

    Raises:
        UserError: missing, damaged or truncated file; code in it; keys or shapes that don't fit; numbers that
            are not finite.
    """
    path = Path(file)
    if path.is_dir():
        raise UserError(f"{path} is a directory; give a weights file, or the directory itself as the model.")
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise UserError(f"There is no weights file {path}.") from None
    except OSError as error:
        raise UserError(f"Cannot read {path}: {error.strerror}.") from error
    _check_digest(path, content)
    state = store.parse_tensors(content, path) if path.suffix == ".safetensors" else _foreign(path, content)
    fill_own(module, state, str(path))


def _foreign(path: Path, content: bytes) -> dict[str, Tensor]:
    """The state dict in a file that torch wrote, read without executing anything in it."""
    try:
        with warnings.catch_warnings(action="ignore"):
            value = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except Exception as error:
        refused = isinstance(error, pickle.UnpicklingError) and "nsupported" in str(error)
        if refused or "TorchScript" in str(error) or "legacy .tar" in str(error):
            raise UserError(
                f"{path} is refused: it holds code, not just tensors. Convert it to safetensors on a "
                "machine where you trust it."
            ) from error
        what = "holds code or is damaged" if _is_pickle(content) else "is damaged or no weights file"
        raise UserError(
            f"{path} is refused: it {what} ({one_line(error)}). Fetch it again, or convert it to "
            "safetensors on a machine where you trust it."
        ) from error
    while isinstance(value, dict):
        inner = next((value[key] for key in _ENVELOPES if isinstance(value.get(key), dict)), None)
        if inner is None:
            break
        value = inner
    items = value.items() if isinstance(value, dict) else ()
    state = {str(key): tensor for key, tensor in items if isinstance(tensor, Tensor)}
    require(bool(state), f"{path} holds no state dict: a mapping from names to tensors.")
    odd = [key for key, t in state.items() if t.layout != torch.strided or t.is_meta or t.is_quantized]
    require(not odd, f"{path} has tensors that are not dense numbers ({_some(odd)}).")
    return state


def _is_pickle(content: bytes) -> bool:
    """Whether the file can hold a pickle: a protocol mark, or an archive whose directory can be read."""
    return content[:1] == b"\x80" or zipfile.is_zipfile(io.BytesIO(content))


def _unprefixed(state: dict[str, Tensor], wanted: set[str]) -> dict[str, Tensor]:
    """``state`` without what wrappers put before its keys, as far as is needed for a key to match."""
    while not wanted & state.keys() and any(key.startswith(_PREFIXES) for key in state):
        state = {_without_prefix(key): tensor for key, tensor in state.items()}
    return state


def _without_prefix(key: str) -> str:
    prefix = next((p for p in _PREFIXES if key.startswith(p)), "")
    return key[len(prefix) :]


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
        for line in file.read_text(errors="replace").splitlines():
            digest, _, listed = line.strip().partition(" ")
            if listed.strip().lstrip("*").removeprefix("./") in ("", name) and digest != store.digest_of(content):
                raise UserError(f"{path} is damaged: it does not match its digest in {file}. Fetch it again.")
    manifest = path.parent / store.MANIFEST
    if manifest.is_file() and b'"digest"' in manifest.read_bytes():  # others use that file name too
        record = store.manifest(path.parent).get(path.name)
        if record is not None:
            store.verified(path, record)


def fill_own(module: nn.Module, state: dict[str, Tensor], where: str) -> None:
    """:func:`fill` the network inside of what was put around it, from a state with the prefixes of any wrapper."""
    target = own(module)
    fill(target, _unprefixed(state, set(target.state_dict())), where)


def fill(module: nn.Module, state: dict[str, Tensor], where: str) -> None:
    """Copy ``state`` into ``module`` after everything about it has been checked."""
    wanted = module.state_dict()
    require(
        bool(wanted.keys() & state.keys()) or not wanted,
        f"{where} belongs to another network: none of its tensors ({_some(sorted(state))}) has the name "
        f"of a weight of {type(module).__name__} ({_some(sorted(wanted))}).",
    )
    # BatchNorm's step counter is absent from older files and is used by nothing here.
    missing = [key for key in wanted if key not in state and not key.endswith("num_batches_tracked")]
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
    require_finite(state, where)
    module.load_state_dict(state, strict=False)


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def require_finite(state: dict[str, Any], where: str) -> None:
    """Raise :class:`UserError` naming ``where`` and the tensor that holds a NaN or infinity."""
    for key, tensor in state.items():
        if isinstance(tensor, Tensor) and tensor.is_floating_point() and not bool(tensor.isfinite().all()):
            raise UserError(f"{where} holds numbers that are not finite, in '{key}': it was spoilt in training.")
