"""Using a network without leaving a trace on it or on randomness."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator

import numpy as np
import torch
from torch import nn


@contextlib.contextmanager
def undisturbed(module: nn.Module) -> Iterator[None]:
    """Within: eval mode and no gradients. After: every submodule's mode and all random states as before."""
    modes = {m: m.training for m in module.modules()}
    python, numpy = random.getstate(), np.random.get_state()
    cuda = list(range(torch.cuda.device_count())) if torch.cuda.is_initialized() else []
    try:
        with torch.random.fork_rng(devices=cuda), torch.no_grad():
            if any(modes.values()):
                module.eval()
            yield
    finally:
        for m, mode in modes.items():
            if m.training != mode:
                m.training = mode
        random.setstate(python)
        np.random.set_state(numpy)
