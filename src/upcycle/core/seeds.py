"""Seeds drawn from anything that prints."""

from __future__ import annotations

import hashlib
import random

import numpy as np
import torch


def seed_of(*parts: object) -> int:
    """A 63-bit seed from anything that prints, the same on every machine."""
    return int.from_bytes(hashlib.blake2b(repr(parts).encode(), digest_size=8).digest(), "big") >> 1


def seed_everything(*parts: object) -> None:
    """Seed torch, numpy and Python from ``parts``."""
    seed = seed_of(*parts)
    torch.manual_seed(seed)
    np.random.seed(seed & 0xFFFFFFFF)
    random.seed(seed)
