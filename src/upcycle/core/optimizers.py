"""Optimisers of torch, without what their methods do for ``torch.compile``."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch.optim import Optimizer

_WRAPPED = ("add_param_group", "zero_grad", "state_dict", "load_state_dict")


def eager(kind: type[Optimizer]) -> Any:
    """The optimiser ``kind`` whose methods are its own, unwrapped; the same bits and the same saved state.

    torch wraps them so that its compiler leaves them alone, and imports the compiler to say so: a second, where nothing
    is compiled. Networks may still be compiled; the optimiser never is part of that.
    """
    methods = {name: inspect.unwrap(getattr(kind, name)) for name in _WRAPPED}
    return type(kind.__name__, (kind,), {**methods, "step": torch.no_grad()(inspect.unwrap(kind.step))})


SGD, Adam, AdamW = eager(torch.optim.SGD), eager(torch.optim.Adam), eager(torch.optim.AdamW)
