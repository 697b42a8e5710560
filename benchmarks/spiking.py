"""A training step of a spiking network: against its ordinary teacher's step, and against snntorch's on the same layers.

The network is that of the claim of ltl, conv 16-32s2-64s2 and a linear layer of 128, on 64 images of 28 x 28 pixels,
T = 8; forward, backward and Adam. snntorch's neurons (``Leaky``, reset to zero) take the same weights, leak, threshold
and surrogate gradient in the loop over steps that its tutorials have; a second arm computes the image's current once,
as ours does. A step of ltl has the teacher's forward and the percentiles in it. Each figure is the minimum of many
rounds, in which all take turns, on one thread. Run from the repository: ``python -m benchmarks.spiking``; needs
snntorch (extra dev).
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import snntorch
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.common import alternate, asked_sizes, record
from upcycle import zoo
from upcycle.core.frozen import frozen
from upcycle.core.memory import keep_freed
from upcycle.core.recipe import Recipe
from upcycle.distillation.ltl import Local, activations, local_loss, output_loss
from upcycle.distillation.spikes.layers import copied
from upcycle.distillation.spikes.rates import percentile, target
from upcycle.zoo.spiking import Spiking

T, T_W = 8, 4
MOST, LEAST = 1.3, 1.2
"""Most time of T steps, over T steps of the teacher; and how many times as fast as snntorch they have to be."""


class Boxcar(torch.autograd.Function):
    """The surrogate gradient as snntorch takes one."""

    @staticmethod
    def forward(ctx: Any, above: Tensor) -> Tensor:
        ctx.save_for_backward(above)
        return (above > 0).float()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return grad * (ctx.saved_tensors[0].abs() < 0.2)


class Theirs(nn.Module):
    """The layers of a spiking network with snntorch's neurons.

    Args:
        network: whose layers and constants are taken.
        once: compute the image's current once.
    """

    def __init__(self, network: Spiking, once: bool) -> None:
        super().__init__()
        self.synapses, self.readout, self.steps, self.once = (
            network.synapses,
            network.readout,
            network.time_steps,
            once,
        )
        self.neurons = [
            snntorch.Leaky(beta=n.decay, threshold=n.theta, spike_grad=Boxcar.apply, reset_mechanism="zero")
            for n in network.neurons
        ]

    def forward(self, images: Tensor) -> Tensor:
        memories, summed = [n.init_leaky() for n in self.neurons], 0.0
        first = self.synapses[0](images) if self.once else None
        for _ in range(self.steps):
            s = images
            for i, (synapses, neurons) in enumerate(zip(self.synapses, self.neurons, strict=True)):
                current = first if i == 0 and first is not None else synapses(s)
                s, memories[i] = neurons(current, memories[i])
            summed = summed + self.readout(s)
        return summed / self.steps


def spiking() -> Spiking:
    """The network, from the same weights each time."""
    torch.manual_seed(0)
    module = zoo.build("spiking", pretrained=False, time_steps=T).module.to(memory_format=torch.channels_last)
    return module.train()  # type: ignore[return-value]


def step_of(network: nn.Module, loss: Callable[[], Tensor]) -> Callable[[], None]:
    """Forward, backward and Adam on the same batch."""
    optimizer = Recipe(optimizer="adam", lr=1e-3, weight_decay=0.0).make(network)

    def step() -> None:
        loss().backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def main() -> None:
    """Time all, and write the record."""
    sizes = asked_sizes(batch=64, repetitions=12)
    torch.set_num_threads(1)
    keep_freed()  # as every run does
    torch.manual_seed(0)
    capped = zoo.build("capped", pretrained=False)
    images = torch.randn(sizes.batch, 1, 28, 28).contiguous(memory_format=torch.channels_last)
    labels = torch.randint(10, (sizes.batch,))
    teacher, names = frozen(capped.module, images, keep_modules=True), copied(capped)
    ordinary = zoo.build("capped", pretrained=False).module.to(memory_format=torch.channels_last).train()
    ours, offline, online = spiking(), Local(spiking(), online=False), Local(spiking(), online=True, T_w=T_W)
    theirs, hoisted = Theirs(spiking(), once=False), Theirs(spiking(), once=True)

    def of(network: nn.Module) -> Callable[[], None]:
        return step_of(network, lambda: F.cross_entropy(network(images), labels))

    def tandem(network: Local, warmup: int, q: float) -> Callable[[], None]:
        def loss() -> Tensor:
            a = activations(teacher, names, images)
            y, spikes = network(images)
            L = output_loss(y, labels, warmup, network.online)
            for s, one in zip(spikes, a, strict=True):
                L = L + local_loss(s, target(one, percentile(one, q)), warmup, network.online)
            return L

        return step_of(network, loss)

    with torch.no_grad():
        off = float((ours(images) - theirs(images)).abs().max())
    arms = {
        "ordinary network": of(ordinary),
        "spiking, through time": of(ours),
        "snntorch, through time": of(theirs),
        "snntorch, the image's current once": of(hoisted),
        "ltl offline": tandem(offline, T - 1, 99.9),
        "ltl online": tandem(online, T_W, 99.0),
    }
    seen = activations(teacher, names, images)
    arms["percentiles"] = lambda: [percentile(one, 99.9) for one in seen] and None
    best = {name: min(seconds) for name, seconds in alternate(arms, sizes.repetitions).items()}
    over = best["spiking, through time"] / (T * best["ordinary network"])
    faster = best["snntorch, the image's current once"] / best["spiking, through time"]
    figures = {
        "milliseconds": {name: round(1e3 * seconds, 2) for name, seconds in best.items()},
        "over T steps of the ordinary network": round(over, 3),
        "times as fast as snntorch": round(best["snntorch, through time"] / best["spiking, through time"], 3),
        "times as fast as snntorch, the image's current once": round(faster, 3),
        "ltl offline over T steps of the ordinary network": round(
            best["ltl offline"] / T / best["ordinary network"], 3
        ),
        "ltl online over T steps of the ordinary network": round(best["ltl online"] / T / best["ordinary network"], 3),
        "largest difference from snntorch": off,
        "gates held": over <= MOST and faster >= LEAST,
    }
    for name, value in figures.items():
        print(f"{name}: {value}")
    if sizes.quick:
        return
    print(record("spiking", figures, batch=sizes.batch, time_steps=T, rounds=sizes.repetitions, threads=1))
    if not figures["gates held"]:
        raise SystemExit(f"{over:.2f} of at most {MOST}, and {faster:.2f} of at least {LEAST}")


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    main()
