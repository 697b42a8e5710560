"""Pickles of arrays, tables and lists of numbers, read by an unpickler that knows few names and calls nothing else."""

from __future__ import annotations

import collections
import io
import pickle
from typing import Any

import numpy as np

from upcycle.core.checkpoint import Array, ArrayType, new_array


class Rows:
    """A table in the CSR layout of SciPy, of which nothing runs: its arrays are looked at first."""


_KNOWN = {
    ("collections", "defaultdict"): collections.defaultdict,
    ("__builtin__", "list"): list,
    ("builtins", "list"): list,
    ("numpy", "ndarray"): Array,
    ("numpy", "dtype"): ArrayType,
    ("numpy.core.multiarray", "_reconstruct"): new_array,
    ("numpy._core.multiarray", "_reconstruct"): new_array,
    ("scipy.sparse.csr", "csr_matrix"): Rows,
    ("scipy.sparse._csr", "csr_matrix"): Rows,
}


class _Unpickler(pickle.Unpickler):
    """Reads arrays, tables and lists of numbers, and refuses every other name."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _KNOWN:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}")
        return _KNOWN[module, name]


def unpickle(content: bytes) -> Any:
    """Read a pickle that Python 2 or 3 wrote; texts of Python 2 are read as Latin-1.

    An array of numpy's comes as what stands for it, see :func:`array_of`: numpy's own reader believes what it is told.

    Raises:
        Exception: whatever bytes can do to an unpickler; ``pickle.UnpicklingError`` where it asks for anything else to
            be made or called.
    """
    return _Unpickler(io.BytesIO(content), encoding="latin1").load()


def array_of(found: Any) -> np.ndarray:
    """The numbers of what :func:`unpickle` gave for an array; an array without axes where it is none."""
    made = found.tensor() if isinstance(found, Array) else None
    return np.array(None) if made is None else made.numpy()
