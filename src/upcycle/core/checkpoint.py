"""Checkpoints of any origin: read without executing anything in them, and searched for the weights of a network."""

from __future__ import annotations

import contextlib
import io
import pickle
import re
import warnings
import zipfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from upcycle.core.errors import UserError, one_line, require
from upcycle.core.limits import require_archive

COUNTER = "num_batches_tracked"
"""BatchNorm's step counter, which older files lack and which nothing here uses."""
DEPTH = 6  # of envelopes
_AVERAGED = re.compile(r"(^|_)(ema|swa|averaged?)(_|$)")
# What tools and training scripts keep among the weights: averages' counts, counts of operations, losses with weights.
_BESIDE = re.compile(r"((.*\.)?(n_averaged|total_ops|total_params)|(criterion|loss|loss_fn|loss_fun)\..*)")


# -- reading ----------------------------------------------------------------------------------------------------------


class _Idle:
    """Stands for an object that is no weight (a path, a number of numpy's, options) and knows nothing of it."""

    def __new__(cls, *args: Any, **options: Any) -> Any:
        return super().__new__(cls)

    def __setstate__(self, state: Any) -> None:
        pass


class ArrayType(_Idle):
    """Stands for a number format of numpy's."""

    name: str = ""
    order: str = "="

    def __new__(cls, *args: Any, **options: Any) -> Any:
        made = super().__new__(cls)
        made.name = str(args[0]) if args else ""
        return made

    def __setstate__(self, state: Any) -> None:
        self.order = str(state[1])


class Array(_Idle):
    """Stands for an array of numpy's, whose numbers are taken from its bytes without numpy's reader of pickles."""

    state: Any = None

    def __setstate__(self, state: Any) -> None:
        self.state = state

    def tensor(self) -> Tensor | None:
        """Its numbers; ``None`` where these are no numbers of a plain format, or do not fill its shape."""
        try:
            _, shape, kind, fortran, content = self.state
            content = content.encode("latin1") if isinstance(content, str) else content  # as Python 2 has bytes
            if not (isinstance(kind, ArrayType) and re.fullmatch(r"b1|[iu][1248]|f[248]|c(8|16)", kind.name)):
                return None
            array = np.frombuffer(content, kind.order.replace("|", "=") + kind.name)
            return torch.from_numpy(array.reshape(shape, order="F" if fortran else "C").astype(kind.name))
        except (TypeError, ValueError, OverflowError):
            return None


def new_array(*args: Any) -> Array:
    """Stand for numpy's maker of arrays, whose shape and numbers come behind it."""
    return Array()


def _idle(*args: Any) -> _Idle:
    return _Idle()


def _mapping(*args: Any) -> dict[Any, Any]:
    return {}


_PATHS = ("PosixPath", "WindowsPath", "PurePosixPath", "PureWindowsPath", "Path", "PurePath")
_STAND_INS: list[Any] = [
    (_Idle, "argparse.Namespace"),
    *((_Idle, f"{home}.{name}") for home in ("pathlib", "pathlib._local") for name in _PATHS),
    (_mapping, "collections.defaultdict"),
    *((_Idle, f"builtins.{name}") for name in ("list", "dict", "tuple", "int", "float", "bool", "str")),
    *((new_array, f"numpy.{home}.multiarray._reconstruct") for home in ("core", "_core")),
    *((_idle, f"numpy.{home}.multiarray.scalar") for home in ("core", "_core")),
    (Array, "numpy.ndarray"),
    (ArrayType, "numpy.dtype"),
]
"""Names that a checkpoint may hold, each with what is made in place of its object: what it names is never called."""


@contextlib.contextmanager
def _only(names: list[Any]) -> Iterator[None]:
    """Let torch's reader of weights know these names alone, and none that an imported library has added for itself."""
    before = torch.serialization.get_safe_globals()
    torch.serialization.clear_safe_globals()
    torch.serialization.add_safe_globals(names)
    try:
        yield
    finally:
        torch.serialization.clear_safe_globals()
        torch.serialization.add_safe_globals(before)


def read_checkpoint(path: Path, content: bytes) -> Any:
    """Give what ``torch.save`` wrote, by torch's reader of weights, with a stand-in for every object beside them.

    Raises:
        UserError: it holds code, is damaged, or unfolds to more than weights do.
    """
    try:
        if content[:4] == b"PK\x03\x04":
            require_archive(content, path)
        with warnings.catch_warnings(action="ignore"), _only(_STAND_INS):
            return torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except UserError:
        raise
    except Exception as error:
        refused = isinstance(error, pickle.UnpicklingError) and "nsupported" in str(error)
        if refused or "TorchScript" in str(error) or "legacy .tar" in str(error):
            found = re.search(r"GLOBAL ([\w.]+) was not", str(error))
            raise UserError(
                f"{path} is refused: it holds code{f' ({found[1]})' if found else ''}, not just tensors. Convert it to "
                "safetensors on a machine where you trust it."
            ) from error
        what = "holds code or is damaged" if _is_pickle(content) else "is damaged or no weights file"
        raise UserError(
            f"{path} is refused: it {what} ({one_line(error)}). Fetch it again, or convert it to "
            "safetensors on a machine where you trust it."
        ) from error


def _is_pickle(content: bytes) -> bool:
    """Whether the file can hold a pickle: a protocol mark, or an archive whose directory can be read."""
    return content[:1] == b"\x80" or zipfile.is_zipfile(io.BytesIO(content))


# -- searching --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Found:
    """Tensors of a checkpoint that may be a network's weights.

    Args:
        name: where they are: the keys of the envelopes around them and what stands before their own, with dots.
        state: by the names that the network gives them.
        beside: the names of tensors that are left out.
    """

    name: str
    state: dict[str, Tensor]
    beside: tuple[str, ...] = ()

    def covers(self, wanted: dict[str, Tensor]) -> bool:
        """Whether all weights of a network are among these, by name and shape."""
        needed = [key for key in wanted if not key.endswith(COUNTER)]
        return all(key in self.state and self.state[key].shape == wanted[key].shape for key in needed)

    def fits(self, wanted: dict[str, Tensor]) -> bool:
        """Whether these are all weights of a network, and no others."""
        return self.state.keys() <= wanted.keys() and self.covers(wanted)

    def called(self, key: str) -> bool:
        """Whether ``key`` names it: a part of its name, or several in a row."""
        return f".{key.strip('.')}." in f".{self.name}."


def weights_in(checkpoint: Any, wanted: dict[str, Tensor], where: str, key: str | None) -> tuple[Found, list[str]]:
    """Find the weights of a network in a checkpoint, whatever envelopes and prefixes are around them.

    Args:
        checkpoint: tensors in mappings of mappings.
        wanted: the network's.
        where: how errors call the file.
        key: chooses among several that fit, by the name of one or a part of it.

    Returns:
        the weights, or those that come nearest where none fit; and the names of others that fit as well.

    Raises:
        UserError: no tensors, no such key, or several that fit. Of averaged weights (EMA, SWA) beside others, the
            others are taken.
    """
    states = list(_states(checkpoint, (), set()))
    require(bool(states), f"{where} holds no state dict: a mapping from names to tensors.")
    every = [found for path, state in states for found in _readings(path, state, wanted, inner=key is not None)]
    if key is not None:
        named = [found for found in every if found.called(key)]
        known = list(dict.fromkeys(found.name for found in every if found.name))
        require(
            bool(named),
            f"{where} holds no weights called '{key}'; "
            + (f"it has {', '.join(known[:8])}." if known else "there is one set in it, without a name."),
        )
        every = [found for found in named if found.name == key] or named
    fit: list[Found] = []
    for found in every:
        if found.fits(wanted) and not any(_equal(found.state, other.state) for other in fit):
            fit.append(found)
    if not fit:
        return max(every, key=lambda found: (len(found.state.keys() & wanted.keys()), len(found.state))), []
    raw = [found for found in fit if not any(_AVERAGED.search(part) for part in found.name.lower().split("."))]
    if len(fit) > 1 and len(raw) != 1:
        names = [f"'{found.name or 'the outermost'}'" for found in fit]
        raise UserError(
            f"{where} holds {len(fit)} sets of weights that fit: {', '.join(names[:4])}; give the name of one of them "
            "as this network's weights_key."
        )
    chosen = raw[0] if len(fit) > 1 else fit[0]
    return chosen, [found.name for found in fit if found is not chosen]


def _states(value: Any, path: tuple[str, ...], seen: set[int]) -> Iterator[tuple[tuple[str, ...], dict[str, Tensor]]]:
    """Every mapping that holds tensors itself, as (names of the envelopes, tensors by name), the outermost first."""
    if not isinstance(value, dict) or id(value) in seen or len(path) > DEPTH:
        return
    seen.add(id(value))
    arrays = {str(key): item.tensor() if isinstance(item, Array) else item for key, item in value.items()}
    if own := {key: item for key, item in arrays.items() if isinstance(item, Tensor)}:
        yield path, own
    for key, item in value.items():
        yield from _states(item, (*path, str(key)), seen)


def _readings(
    path: tuple[str, ...], state: dict[str, Tensor], wanted: dict[str, Tensor], *, inner: bool
) -> list[Found]:
    """A state dict without each of the prefixes under which weights of a network stand in it.

    Args:
        inner: also behind a prefix that has all of them already, where another part of the same network may have such.
    """
    prefixes = Counter(key[: len(key) - len(rest)] for key in state for rest in _endings(key) if rest in wanted)
    found: dict[str, Found] = {}
    for prefix in sorted(dict(prefixes.most_common(64)) or [""], key=len):
        if not inner and any(prefix.startswith(outer) and one.covers(wanted) for outer, one in found.items()):
            continue
        inside = {key[len(prefix) :]: tensor for key, tensor in state.items() if key.startswith(prefix)}
        outside = {key: tensor for key, tensor in state.items() if not key.startswith(prefix)}
        inside |= {key: tensor for key, tensor in outside.items() if key in wanted and key not in inside}
        beside = [key for key in inside if key not in wanted and _BESIDE.fullmatch(key)]
        kept = {key: tensor for key, tensor in inside.items() if key not in beside}
        others = [key for key in outside if key not in wanted]
        found[prefix] = Found(".".join([*path, prefix]).strip("."), kept, (*beside, *others))
    return list(found.values())


def _endings(key: str) -> Iterator[str]:
    """A dotted name, and what remains of it without its first part, its first two, and so on."""
    parts = key.split(".")
    return (".".join(parts[i:]) for i in range(len(parts)))


def _equal(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    """Whether two state dicts are the same, bit by bit; those of odd tensors are not."""
    try:
        return a.keys() == b.keys() and all(a[key].dtype == b[key].dtype and torch.equal(a[key], b[key]) for key in a)
    except (RuntimeError, NotImplementedError):
        return False
