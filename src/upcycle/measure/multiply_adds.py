"""Counting the multiply-adds of whatever runs."""

from __future__ import annotations

from math import prod
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

_CONVOLUTIONS = {"convolution", "_convolution", "cudnn_convolution", "_slow_conv2d_forward", "convolution_overrideable"}
_ATTENTION = "_scaled_dot_product_"  # fused ones, by whatever backend


class MultiplyAdds(TorchDispatchMode):
    """Within: adds up the multiply-adds of convolutions, matrix products, attention and sums over neighbours.

    ``torch.utils.flop_counter`` counts the same (a test compares), but brings Triton and torch's compiler with it: they
    take longer to import than a small network takes to train. Departures: each value that is summed where an index
    says, as messages are over the edges of a graph, is one; and of a sparse matrix only stored values are multiplied.

    Attributes:
        total: multiply-adds so far.
    """

    def __init__(self) -> None:
        super().__init__()
        self.total = 0

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # to skip it is to import it

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name, kwargs = func._overloadpacket.__name__, kwargs or {}
        known = name in _MATRICES or name in _CONVOLUTIONS or name in _SUMS or name.startswith(_ATTENTION)
        if not known and func is not torch.ops.prim.device.default:
            with self:
                out = func.decompose(*args, **kwargs)  # what inference mode has left whole
            if out is not NotImplemented:
                return out
        out = func(*args, **kwargs)
        if name in _MATRICES:
            a, b = args[_MATRICES[name] :][:2]
            self.total += (a._nnz() if a.layout == torch.sparse_csr else a.numel()) * b.shape[-1]
        elif name in _SUMS:
            self.total += args[3].numel()
        elif name in _CONVOLUTIONS:
            x, weight, transposed = args[0], args[1], bool(args[6])
            self.total += x.shape[0] * prod((x if transposed else out).shape[2:]) * weight.numel()
        elif name.startswith(_ATTENTION) and isinstance(args[0], Tensor):
            query, key, value = (x.shape for x in args[:3])
            self.total += prod(query[:-1]) * key[-2] * (query[-1] + value[-1])
        return out


_SUMS = {"index_add", "index_add_", "scatter_add", "scatter_add_", "scatter_reduce", "scatter_reduce_"}
_MATRICES = {"mm": 0, "bmm": 0, "addmm": 1, "baddbmm": 1}
"""Matrix products, and where among their arguments the two factors begin."""
