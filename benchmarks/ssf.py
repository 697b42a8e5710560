"""SSF beside LoRA and IA3 of peft and full fine-tuning, on a ViT: a step of training, what it holds, merging, and use.

Run from the repository's root: `python -m benchmarks.ssf` (some minutes on two cores); ``--quick`` takes few small
batches and prints only. The weights are random, since no figure depends on them. All arms run in turns in one process,
and the minimum of many repetitions is recorded. LoRA has the rank whose number of trained parameters is nearest to that
of SSF. What a step holds is measured as the bytes that autograd saves for the backward: each storage once, without
parameters and buffers; to which come gradients and AdamW's two moments of all that trains. Merging is set against
copying the tensors that it changes into memory that is there already, which reads and writes as many bytes.
"""

from __future__ import annotations

import argparse
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import peft
import timm
import torch
from torch import Tensor, nn

from benchmarks.common import alternate, record
from upcycle.adaptation.adapters.scale_shift import attach
from upcycle.adaptation.ia3 import IA3, add_ia3
from upcycle.adaptation.lora import LoRA, add_lora
from upcycle.core.heads import classifier, with_classes
from upcycle.core.losses import ce_loss
from upcycle.core.models import Model
from upcycle.core.recipe import Recipe
from upcycle.core.references import resolve
from upcycle.core.seeds import seed_everything

RECIPE = Recipe(optimizer="adamw", lr=1e-4, weight_decay=0.05)


@dataclass
class Arm:
    """A network that trains in one of the ways.

    Args:
        changed: the tensors that merging changes.
        merge, unmerge: in place; none where there is nothing to merge.
        finish: merge for good and remove what was added.
    """

    network: nn.Module
    changed: list[Tensor]
    merge: Callable[[], Any] | None = None
    unmerge: Callable[[], Any] | None = None
    finish: Callable[[], Any] | None = None

    def trained(self) -> int:
        """Numbers that training adjusts."""
        return sum(p.numel() for p in self.network.parameters() if p.requires_grad)


def arms(source: Model, classes: tuple[str, ...]) -> tuple[dict[str, Arm], dict[str, int]]:
    """Each way with its own copy of the network, and the ranks of LoRA."""
    start = with_classes(source, classes)
    start.module.requires_grad_(False).get_submodule(classifier(start)).requires_grad_(True)
    adapter = attach(start)
    places = [(s.module, s.weight) for s in adapter.sites] + [(o, n) for s in adapter.sites for o, n, _ in s.biases]
    stored = [m._parameters[name] for m, name in places]
    found = {
        "SSF": Arm(
            start.module, [p.detach() for p in stored if p is not None], adapter.merge, adapter.unmerge, adapter.merge
        )
    }
    budget, ranks = sum(p.numel() for p in adapter.parameters()), {}

    def by_peft(tuner: Any, network: nn.Module, biases: bool) -> Arm:
        network.get_submodule(classifier(source)).requires_grad_(True)
        bases = [
            m.get_base_layer() for m in network.modules() if isinstance(m, peft.tuners.tuners_utils.BaseTunerLayer)
        ]
        changed = [p.detach() for m in bases for p in (m.weight, m.bias if biases else None) if p is not None]
        return Arm(network, changed, tuner.merge_adapter, tuner.unmerge_adapter, tuner.merge_and_unload)

    for name, targets in (("LoRA, all linear layers", ()), ("LoRA, qkv", ("*qkv",))):
        network = with_classes(source, classes).module
        sites = LoRA(source=source, targets=targets).sites(source)
        linear = [network.get_submodule(site) for site in sites]
        ranks[name] = max(1, round(budget / sum(m.in_features + m.out_features for m in linear)))  # type: ignore[operator,union-attr]
        tuner = add_lora(network, sites, ranks[name], 8.0, 0.0, torch.Generator().manual_seed(0))
        found[name] = by_peft(tuner, network, False)
    network = with_classes(source, classes).module
    found["IA3"] = by_peft(add_ia3(network, *IA3(source=source).sites(source)), network, True)
    found["full fine-tuning"] = Arm(with_classes(source, classes).module.requires_grad_(True), [])
    return found, ranks


def step_of(network: nn.Module, x: Tensor, y: Tensor) -> Callable[[], None]:
    """Forward, backward and update."""
    network.train()
    optimizer = RECIPE.make(network)

    def step() -> None:
        ce_loss(network(x), y).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def saved_bytes(network: nn.Module, x: Tensor, y: Tensor) -> int:
    """Bytes that a forward keeps for its backward, but for parameters, buffers and the batch itself."""
    own = {t.untyped_storage().data_ptr() for t in (*network.parameters(), *network.buffers(), x, y)}
    kept: dict[int, Tensor] = {}  # held, so that no address is given twice

    def pack(t: Tensor) -> Tensor:
        address = t.untyped_storage().data_ptr()
        if address not in own:
            kept[address] = t
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        loss = ce_loss(network.train()(x), y)
    found = sum(t.untyped_storage().nbytes() for t in kept.values())
    loss.backward()
    network.zero_grad(set_to_none=True)
    return found


def merging(arm: Arm, repetitions: int) -> tuple[float, float, int]:
    """Seconds to merge, seconds to copy what that changes, and the bytes that either reads and writes."""
    assert arm.merge is not None and arm.unmerge is not None
    copies = [torch.empty_like(t) for t in arm.changed]
    merge, copy = [], []
    for _ in range(repetitions + 1):  # the first allocates
        start = time.perf_counter()
        arm.merge()
        merged = time.perf_counter()
        arm.unmerge()
        before = time.perf_counter()
        for t, to in zip(arm.changed, copies, strict=True):
            to.copy_(t)
        copy.append(time.perf_counter() - before)
        merge.append(merged - start)
    return min(merge[1:]), min(copy[1:]), 2 * sum(t.numel() * t.element_size() for t in arm.changed)


def main() -> None:
    """Time, print and record."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--network", default="timm:vit_tiny_patch16_224")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--classes", type=int, default=100)
    parser.add_argument("--repetitions", type=int, default=15)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--quick", action="store_true", help="two repetitions of four images, printed only")
    arguments = parser.parse_args()
    batch, repetitions = (4, 2) if arguments.quick else (arguments.batch, arguments.repetitions)
    torch.set_num_threads(arguments.threads)
    warnings.filterwarnings("ignore", message="Unmerge result can be inaccurate")
    seed_everything(0, "benchmark")
    source = resolve(arguments.network, pretrained=False)
    x, y = source.example(batch), torch.arange(batch) % arguments.classes
    classes = tuple(map(str, range(arguments.classes)))
    found, ranks = arms(source, classes)

    held = {name: saved_bytes(arm.network, x, y) for name, arm in found.items()}
    times = alternate({name: step_of(arm.network, x, y) for name, arm in found.items()}, repetitions)
    figures: dict[str, Any] = {name: {
        "trained": arm.trained(), "step_ms": round(1e3 * min(times[name]), 1),
        "step_over_ssf": round(min(times[name]) / min(times["SSF"]), 3),
        "saved_mb": round(held[name] / 1e6, 1), "saved_over_ssf": round(held[name] / held["SSF"], 3),
        "gradients_and_moments_mb": round(12 * arm.trained() / 1e6, 2),
    } for name, arm in found.items()}  # fmt: skip
    for name, arm in found.items():
        if arm.finish is not None:
            seconds, copying, bytes_ = merging(arm, 5 * repetitions)
            figures[name]["merging"] = {
                "ms": round(1e3 * seconds, 2), "copy_ms": round(1e3 * copying, 2),
                "over_copy": round(seconds / copying, 2),
                "mb_read_and_written": round(bytes_ / 1e6, 1), "copy_gb_per_s": round(bytes_ / copying / 1e9, 1),
            }  # fmt: skip
            arm.finish()
    plain = with_classes(source, classes).module.eval()
    used = {"plain": plain, **{name: arm.network.eval() for name, arm in found.items() if arm.finish is not None}}

    def using(network: nn.Module) -> Callable[[], None]:
        def once() -> None:
            with torch.inference_mode():
                network(x)

        return once

    speeds = alternate({name: using(network) for name, network in used.items()}, 2 * repetitions)
    for name in used:
        if name != "plain":
            figures[name]["merged_over_plain"] = round(min(speeds[name]) / min(speeds["plain"]), 3)
    figures["plain"] = {"forward_ms": round(1e3 * min(speeds["plain"]), 1)}
    for name, row in figures.items():
        print(name, *(f"{key}={value}" for key, value in row.items()))
    if not arguments.quick:
        print(record("ssf", figures, network=arguments.network, batch=batch, classes=arguments.classes, ranks=ranks,
                     threads=arguments.threads, repetitions=repetitions, precision="float32", peft=peft.__version__,
                     timm=timm.__version__))  # fmt: skip


if __name__ == "__main__":
    main()
