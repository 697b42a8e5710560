"""Seeds drawn from anything that prints, and random numbers that depend on nothing but their arguments."""

from __future__ import annotations

import functools
import hashlib
import random

import numpy as np
import torch
from torch import Tensor

_MASK = 2**64 - 1
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)  # 2^64 over the golden ratio: the increment of SplitMix64


def seed_of(*parts: object) -> int:
    """A 63-bit seed from anything that prints, the same on every machine."""
    return int.from_bytes(hashlib.blake2b(repr(parts).encode(), digest_size=8).digest(), "big") >> 1


def seed_everything(*parts: object) -> None:
    """Seed torch, numpy and Python from ``parts``."""
    seed = seed_of(*parts)
    if torch.accelerator.is_available():
        torch.manual_seed(seed)
    else:
        # The other notes the call's stack for three kinds of devices that are not there: milliseconds at every batch.
        torch.default_generator.manual_seed(seed)
    np.random.seed(seed & 0xFFFFFFFF)
    random.seed(seed)


def uniform(seed: int, epoch: int, ids: Tensor, stream: str, n: int = 1) -> Tensor:
    """Random numbers that depend on nothing but the arguments.

    SplitMix64 (Steele, Lea, Flood, "Fast splittable pseudorandom number generators", OOPSLA 2014), its state
    keyed by seed, epoch, stream and id in turn. The same on every machine and version.

    Args:
        seed, epoch: any whole numbers.
        ids: int64 (b,), the samples' numbers.
        stream: what the numbers are for; different streams are independent.
        n: how many numbers a sample.

    Returns:
        float64 (b, n) in [0, 1).
    """
    sample = _mix((_key(seed, epoch, stream) ^ ids.cpu().numpy().astype(np.uint64)) + _GOLDEN)
    bits = _mix(sample[:, None] + _GOLDEN * np.arange(1, n + 1, dtype=np.uint64))
    return torch.from_numpy((bits >> np.uint64(11)) * 2.0**-53)


@functools.lru_cache(maxsize=64)  # asked anew for every batch of an epoch
def _key(seed: int, epoch: int, stream: str) -> np.ndarray:
    key = np.zeros(1, np.uint64)
    for word in (seed & _MASK, epoch & _MASK, _word(stream)):
        key = _mix((key ^ np.uint64(word)) + _GOLDEN)
    return key


@functools.cache
def _word(stream: str) -> int:
    return int.from_bytes(hashlib.sha256(stream.encode()).digest()[:8], "big")


def _mix(x: np.ndarray) -> np.ndarray:
    """SplitMix64's finaliser: a bijection of 64-bit words that spreads each bit over all of them."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
