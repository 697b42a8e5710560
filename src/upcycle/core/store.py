"""Files that are data: atomic writes, digests, and nested state as safetensors with a JSON skeleton.

Nothing here pickles or unpickles. A state is any nesting of dict, list, tuple, str, int, float, bool, None,
tensors and numpy arrays; :func:`pack` separates its tensors from a JSON skeleton and :func:`unpack` joins them.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shutil
import zlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, NotRequired, TypedDict

import numpy as np
import torch
from msgspec import Meta
from safetensors import SafetensorError
from safetensors.torch import load as load_safetensors
from safetensors.torch import save as save_safetensors
from torch import Tensor

from upcycle.core import lock
from upcycle.core.errors import UserError, one_line, require
from upcycle.core.read import Count, Digest, PlainName, Shape, bytes_of, checked, contents, parse, parsed, read

MANIFEST = "manifest.json"


class Record(TypedDict):
    """The record of a file: its digest, its size, and a CRC-32 of each tensor in it."""

    sha256: Digest
    bytes: Count
    tensors: NotRequired[dict[str, Annotated[str, Meta(pattern="^[0-9a-f]{8}$")]]]


class Manifest(TypedDict):
    """The files of a directory."""

    format: Literal[1]
    files: dict[PlainName, Record]


def write_atomic(path: Path, content: bytes) -> None:
    """Write a file so that at any moment it holds the old content or the new one: temporary, fsync, rename."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise UserError(
            f"Cannot write {path} ({len(content):,} bytes): {error.strerror or error}. "
            "Free some space or choose another place."
        ) from error


def require_free(file: Path, overwrite: bool) -> None:
    """Refuse to write a file of a person's own naming that is there already, unless it is to be written over.

    Asked before any work, by every verb that writes a file.

    Raises:
        UserError: it is there, or lies in a directory that another command is writing.
    """
    lock.check(file.parent)
    require(not file.is_dir(), f"{file} is a folder; name a file in it.")
    require(overwrite or not file.exists(), f"{file} exists; choose another file, or write over it with --overwrite.")


_TEMPORARY = re.compile(r"\.(?P<name>.+)\.(?P<process>\d+)\.(tmp|old)")


def is_temporary(path: Path) -> bool:
    """Whether a name is one that :func:`write_atomic` or :func:`new_directory` gives to what is not whole yet."""
    return _TEMPORARY.fullmatch(path.name) is not None


def clear_temporary(folder: Path, names: Iterable[str] | None = None, *, locked: bool = False) -> None:
    """Remove what a killed process has left of atomic writes in ``folder`` itself; nothing behind a symbolic link.

    Args:
        names: of the files and directories that were being written; any if not given.
        locked: no other process writes there, so that what has the number of one that runs is old as well.
    """
    if folder.is_symlink() or not folder.is_dir():
        return
    for path in folder.iterdir():
        found = _TEMPORARY.fullmatch(path.name)
        if found is None or path.is_symlink() or (names is not None and found["name"] not in names):
            continue
        if not locked and _runs(int(found["process"])):
            continue
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        elif path.is_file():
            path.unlink(missing_ok=True)


def _runs(process: int) -> bool:
    try:
        os.kill(process, 0)
    except PermissionError:
        return True
    except (OSError, OverflowError):
        return False
    return True


def write_json(path: Path, value: Any) -> None:
    """Write JSON atomically, indented, keys in the order given."""
    write_atomic(path, _json_bytes(value))


def _json_bytes(value: Any) -> bytes:
    return (json.dumps(value, indent=1, ensure_ascii=False) + "\n").encode()


def read_json(path: Path) -> Any:
    """Read JSON of any shape; a missing or broken file is named."""
    return read(path, Any)


def digest_of(content: bytes) -> str:
    """SHA-256, hex."""
    return hashlib.sha256(content).hexdigest()


def tensor_digest(state: dict[str, Tensor]) -> str:
    """SHA-256 over names, dtypes, shapes and bytes of the tensors, whatever their order or memory format."""
    total = hashlib.sha256()
    for name in sorted(state):
        tensor = state[name].detach().cpu().contiguous()
        total.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        total.update(_bytes(tensor))
    return total.hexdigest()


def _bytes(tensor: Tensor) -> memoryview:
    return tensor.reshape(-1).view(torch.uint8).numpy().data if tensor.numel() else memoryview(b"")


def pack(state: Any, *, copy: bool = True) -> tuple[Any, dict[str, Tensor]]:
    """Split a nested state into a JSON skeleton and its tensors, which the skeleton names.

    Args:
        copy: the tensors are copies, which what is done to the state afterwards does not reach.
    """
    tensors: dict[str, Tensor] = {}
    held: set[int] = set()  # memory of tensors before; two that share it, as a network's and its head's, are no file's

    def walk(value: Any, path: str) -> Any:
        if isinstance(value, np.ndarray):
            value = torch.from_numpy(value)
        if isinstance(value, Tensor):
            tensor = value.detach().cpu().contiguous()
            memory = tensor.untyped_storage().data_ptr()
            tensors[path] = tensor.clone() if copy or memory in held else tensor
            held.add(memory)
            return {"tensor": path}
        if isinstance(value, dict):
            return {"dict": [[key, walk(item, f"{path}.{key}")] for key, item in value.items()]}
        if isinstance(value, tuple):
            return {"tuple": [walk(item, f"{path}.{i}") for i, item in enumerate(value)]}
        if isinstance(value, list):
            return {"list": [walk(item, f"{path}.{i}") for i, item in enumerate(value)]}
        if value is None or isinstance(value, str | bool | int | float):
            return {"value": value}
        raise TypeError(f"{path or 'state'} is a {type(value).__name__}; only plain data and tensors are saved")

    return walk(state, ""), tensors


def unpack(skeleton: Any, tensors: dict[str, Tensor]) -> Any:
    """The inverse of :func:`pack`.

    Raises:
        ValueError: it is no skeleton, or names tensors that are not there.
    """
    if not isinstance(skeleton, dict) or len(skeleton) != 1:
        raise ValueError("a part of the skeleton is no mapping from a kind to a value")
    ((kind, value),) = skeleton.items()
    if kind == "value" and (value is None or isinstance(value, str | bool | int | float)):
        return value
    if kind == "tensor" and isinstance(value, str) and value in tensors:
        return tensors[value]
    if kind == "dict" and isinstance(value, list) and all(isinstance(item, list) and len(item) == 2 for item in value):
        if not all(key is None or isinstance(key, str | bool | int | float) for key, _ in value):
            raise ValueError("a key in the skeleton is no plain value")
        return {key: unpack(item, tensors) for key, item in value}
    if kind in ("list", "tuple") and isinstance(value, list):
        items = [unpack(item, tensors) for item in value]
        return items if kind == "list" else tuple(items)
    raise ValueError(f"the skeleton has no such part: {kind}")


def unpacked(skeleton: Any, tensors: dict[str, Tensor], path: Path) -> Any:
    """:func:`unpack` of what comes from the file at ``path``, which is named where it is damaged."""
    try:
        return unpack(skeleton, tensors)
    except (ValueError, RecursionError) as error:
        raise UserError(
            f"{path} is damaged: {one_line(error).partition(': ')[2] or 'it is nested too deep'}."
        ) from error


def save_state(path: Path, state: Any) -> Record:
    """Write a nested state to one safetensors file, atomically; returns its digest record."""
    return save_packed(path, *pack(state, copy=False))


def save_packed(path: Path, skeleton: Any, tensors: dict[str, Tensor]) -> Record:
    """Write the two parts of a :func:`pack`, of whose tensors some may lie elsewhere; see :func:`save_state`."""
    return save_tensors(path, tensors, {"skeleton": json.dumps(skeleton)})


def load_state(path: Path, record: Record, elsewhere: dict[str, Tensor] | None = None) -> Any:
    """Read what :func:`save_state` wrote, after checking it against its digest record.

    Args:
        elsewhere: tensors of the state that lie in other files.
    """
    content = verified(path, record)
    tensors, skeleton = {**parse_tensors(content, path), **(elsewhere or {})}, _metadata(content).get("skeleton")
    require(isinstance(skeleton, str), f"{path} is damaged: it holds tensors, but no skeleton of a state.")
    return unpacked(parse(str(skeleton), Any, path), tensors, path)


def save_tensors(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str] | None = None) -> Record:
    """Write tensors to a safetensors file, atomically.

    Returns:
        its digest record: sha256 of the file, its size in bytes and a CRC-32 of each tensor.
    """
    tensors = {name: t.detach().cpu().contiguous() for name, t in tensors.items()}
    content = save_safetensors(tensors, metadata)
    write_atomic(path, content)
    return {"sha256": digest_of(content), "bytes": len(content), "tensors": _checksums(tensors)}


def _checksums(tensors: dict[str, Tensor]) -> dict[str, str]:
    return {name: f"{zlib.crc32(_bytes(t)):08x}" for name, t in tensors.items()}


def _metadata(content: bytes) -> dict[str, str]:
    length = int.from_bytes(content[:8], "little")
    return json.loads(content[8 : 8 + length]).get("__metadata__", {})


def parse_tensors(content: bytes, path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file's bytes; a truncated or malformed file is named."""
    try:
        return load_safetensors(content)
    except (SafetensorError, ValueError, KeyError, OverflowError) as error:
        raise UserError(f"{path} is not a whole safetensors file: {error}.") from error


def verified(path: Path, record: Record) -> bytes:
    """The bytes of a file whose digest is known; raises :class:`UserError` naming file and damaged tensor."""
    try:
        content = bytes_of(path)
    except OSError as error:
        raise UserError(f"Cannot read {path}: {error.strerror}.") from error
    if digest_of(content) == record["sha256"]:
        return content
    if len(content) != record["bytes"]:
        raise UserError(f"{path} is damaged: it has {len(content):,} bytes instead of {record['bytes']:,}.")
    where = "its header"
    with contextlib.suppress(UserError):
        now = _checksums(parse_tensors(content, path)) if record.get("tensors") else {}
        changed = [name for name, crc in record.get("tensors", {}).items() if now.get(name) != crc]
        where = f"tensor '{changed[0]}'" if changed else "its content"
    raise UserError(f"{path} is damaged: {where} does not match its digest. Restore it from a copy.")


def sealed(value: dict[str, Any]) -> dict[str, Any]:
    """``value`` with a digest of itself, so that a JSON file can notice its own damage."""
    return {**value, "digest": digest_of(json.dumps(value, sort_keys=True).encode())}


def unsealed(path: Path, shape: type[Shape]) -> Shape:
    """Read a JSON file written as :func:`sealed`, checking its own digest, and then its shape."""
    content = contents(path)
    value = parsed(content, path)
    if not isinstance(value, dict) or "digest" not in value:
        raise UserError(f"{path} is damaged: it carries no digest.")
    body = {key: item for key, item in value.items() if key != "digest"}
    # The bytes too: JSON can spell the same value in two ways, and no flipped bit should go unnoticed.
    if sealed(body)["digest"] != value["digest"] or _json_bytes(value) != content:
        raise UserError(f"{path} is damaged: its content does not match its own digest.")
    return checked(body, shape, path)


@contextlib.contextmanager
def new_directory(directory: Path, what: str, known: Callable[[Path], bool]) -> Iterator[Path]:
    """Give an empty directory to fill, which takes the place of ``directory`` when the block ends, whole or not at all.

    Args:
        directory: where it shall be; one of the same kind that is there already is replaced.
        what: what is written, in words.
        known: whether a directory holds such a thing.

    Raises:
        UserError: ``directory`` holds something else, or cannot be written.
    """
    if directory.is_file() or (directory.is_dir() and any(directory.iterdir()) and not known(directory)):
        raise UserError(f"{directory} exists and is no {what}; choose another place.")
    fresh = directory.with_name(f".{directory.name}.{os.getpid()}.tmp")
    try:
        shutil.rmtree(fresh, ignore_errors=True)
        fresh.mkdir(parents=True)
        yield fresh
        _replace_directory(directory, fresh)
    except OSError as error:
        raise UserError(f"Cannot write the {what} to {directory}: {error.strerror or error}.") from error
    finally:
        shutil.rmtree(fresh, ignore_errors=True)


def _replace_directory(directory: Path, fresh: Path) -> None:
    """Put ``fresh`` in the place of ``directory``; the old one goes when the new one stands.

    What a person has put into the old one, which no manifest names, goes over into the new one.
    """
    old = directory.with_name(f".{directory.name}.{os.getpid()}.old")
    if directory.exists():
        _keep_foreign(directory, fresh)
        os.rename(directory, old)
    try:
        os.rename(fresh, directory)
    except OSError:
        if old.exists():
            os.rename(old, directory)
        raise
    shutil.rmtree(old, ignore_errors=True)


def _keep_foreign(directory: Path, fresh: Path) -> None:
    """Copy what ``directory`` has beside the files of its manifest into ``fresh``."""
    try:
        ours = {MANIFEST, *manifest(directory)}
    except UserError:  # damaged: what the new one has is what was there
        ours = {path.name for path in fresh.iterdir()}
    for path in directory.iterdir():
        if path.name in ours or (fresh / path.name).exists() or is_temporary(path):
            continue
        if path.is_dir() and not path.is_symlink():
            shutil.copytree(path, fresh / path.name, symlinks=True)
        else:
            shutil.copy2(path, fresh / path.name, follow_symlinks=False)


def write_manifest(directory: Path, records: dict[str, Record] | None = None) -> None:
    """Write ``manifest.json`` with the digest of every file of ``directory``; the last step of saving one.

    Args:
        records: digest records that are known already (by file name), with their tensors' checksums.
    """
    files: dict[str, Any] = {}
    for path in sorted(p for p in directory.iterdir() if p.is_file() and p.name != MANIFEST):
        content = bytes_of(path)
        files[path.name] = (records or {}).get(path.name) or {"sha256": digest_of(content), "bytes": len(content)}
    write_json(directory / MANIFEST, sealed({"format": 1, "files": files}))


def manifest(directory: Path) -> dict[str, Record]:
    """The files that ``directory``'s manifest names, with what it knows of each."""
    return unsealed(directory / MANIFEST, Manifest)["files"]


def verify_manifest(directory: Path, only: Callable[[str], bool] = lambda name: True) -> dict[str, bytes]:
    """The verified bytes of each file that ``directory``'s manifest names (those for which ``only`` holds)."""
    return {name: verified(directory / name, record) for name, record in manifest(directory).items() if only(name)}
