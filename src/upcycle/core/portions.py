"""Samples in portions for a network that only answers, as large as its activations allow and no larger.

A fixed number of images serves no network: 512 of 32 x 32 make activations of 32 MiB in a ResNet-56, each of which the
allocator maps and the kernel clears anew, and at 224 x 224 they need gigabytes. Portions of a few MiB stay in the
processor's cache, and take half the time; smaller ones read the weights too often.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from upcycle.core.batches import Split

FIRST = 16
"""Samples in the first portion, at which the network is watched."""
LARGEST = 12 * 2**20
"""Bytes of the largest activation of a portion on the CPU, far from the 32 MiB above which glibc maps each anew."""
ELSEWHERE = 256 * 2**20
"""The same on every other device, which only large portions keep busy."""
BOUNDS = (4, 1024)
"""Fewest and most samples in a portion."""


def portions(module: nn.Module, samples: Tensor | int | Split) -> Iterator[Tensor]:
    """Divide samples into portions that suit ``module``, which is run on each as it comes, in eval mode.

    How large they are depends on shapes alone: on what the first portion makes in the module, as hooks see it. Where
    they see nothing, in compiled and scripted networks, all are as large as the first one.

    Args:
        samples: int64 (n,), or how many there are; of a split all, and at once where one forward answers them all.

    Yields:
        some of ``samples``, in their order.
    """
    if not isinstance(samples, Tensor | int):
        if samples.together:
            yield torch.arange(len(samples))
            return
        samples = len(samples)
    samples = torch.arange(samples) if isinstance(samples, int) else samples
    with watched(module) as largest:
        yield samples[:FIRST]
    if len(samples) > FIRST:
        yield from samples[FIRST:].split(largest.portion(module, FIRST))


def portion(module: nn.Module, x: Tensor) -> int:
    """How many samples suit a module, which is run on a few of those in ``x`` (n, ...) to see what they make in it."""
    with watched(module) as largest, torch.no_grad():
        module(x[:FIRST])
    return largest.portion(module, min(len(x), FIRST))


class Largest:
    """The bytes of the largest activation that was seen."""

    bytes = 0

    def see(self, module: nn.Module, inputs: Any, output: Any) -> None:
        """A forward hook."""
        made = (*inputs, *(output if isinstance(output, tuple | list) else (output,)))
        self.bytes = max([self.bytes, *(t.numel() * t.element_size() for t in made if isinstance(t, Tensor))])

    def portion(self, module: nn.Module, samples: int) -> int:
        """How many samples suit ``module``, where ``samples`` made these bytes."""
        home = next((t.device.type for t in (*module.parameters(), *module.buffers())), "cpu")
        fit = (LARGEST if home == "cpu" else ELSEWHERE) * samples // self.bytes if self.bytes else FIRST
        return min(max(fit, BOUNDS[0]), BOUNDS[1])


@contextlib.contextmanager
def watched(module: nn.Module) -> Iterator[Largest]:
    """Watch the activations of a module meanwhile; nothing is seen in compiled and scripted networks."""
    largest, parts = Largest(), list(module.modules())
    opaque = any(m._compiled_call_impl is not None or isinstance(m, torch.jit.ScriptModule) for m in parts)
    handles = [] if opaque else [m.register_forward_hook(largest.see) for m in parts]
    try:
        yield largest
    finally:
        for handle in handles:
            handle.remove()
