"""A training step of `features` beside that of `kd`, and beside timm's tasks of feature and token distillation.

Run from the repository's root: `python -m benchmarks.features_step`. The first pair are ResNet-56 and ResNet-20 on
CIFAR-10, batch 128, one pair of layers, with each of the three losses, and with KD alone. A step with the default loss
may take 1.1 times KD's.

The second pair are two vision transformers of timm for 32 pixels in patches of 4, 65 tokens, six blocks, widths 192
and 96. timm's `FeatureDistillationTask` compares what both classifiers read, by a mean squared error behind a linear
layer, beside the cross-entropy of the labels; so does one arm of ours, beside KD too, and another compares all tokens
of the last block. timm's `TokenDistillationTask` gives the student a second token and classifier for the teacher's
probabilities. Theirs run as timm's training script runs them: forward, backward, AdamW, in the number format that ours
chooses.

A step is from one update to the next, so it holds the batch too. Arms take turns, and each figure is the minimum.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from benchmarks.common import record
from upcycle.claims.settings import fresh
from upcycle.core.method import Method
from upcycle.core.models import Model, copy_of
from upcycle.core.recipe import Recipe
from upcycle.core.references import resolve
from upcycle.core.run import Run
from upcycle.data import Images, load
from upcycle.distillation import KD, Features

B, STEPS, GATE = 128, 8, 1.1
CPU = torch.device("cpu")
SGD = Recipe(epochs=1, batch_size=B, lr=0.01)
ADAMW = dataclasses.replace(SGD, optimizer="adamw", lr=1e-3, weight_decay=0.05)
VIT: dict[str, Any] = {"img_size": 32, "patch_size": 4, "depth": 6, "num_heads": 3, "num_classes": 10}
Times = list[float]


class Timed(Run):
    """A run that notes when each of its updates ended."""

    def __init__(self) -> None:
        super().__init__(None, quiet=True)
        self.ends: Times = []

    def update(self, optimizer: torch.optim.Optimizer, clip: float | None = None) -> None:
        """A step."""
        super().update(optimizer, clip)
        self.ends.append(time.perf_counter())


def ours(make: Callable[[], Method], data: Images) -> Callable[[], Times]:
    """The seconds between the updates of a run."""

    def round_() -> Times:
        run = Timed()
        make().fit(run, data)
        return between(run.ends)

    return round_


def between(ends: Times) -> Times:
    """Seconds between moments."""
    return [b - a for a, b in itertools.pairwise(ends)]


def theirs(task: nn.Module, data: Images) -> Callable[[], Times]:
    """The seconds between the updates of a task of timm."""
    optimizer = ADAMW.make([p for p in task.trainable_module.parameters() if p.requires_grad])  # type: ignore[union-attr]
    half = Run(None, quiet=True).precision == "bf16-mixed"
    order = torch.arange(len(data.train)).split(B)

    def round_() -> Times:
        task.train()
        ends = []
        for index in order:
            batch = data.train.batch(index, device=CPU, view=(0, 0))
            with torch.autocast("cpu", torch.bfloat16, enabled=half):
                loss = task(batch.images, batch.labels)["loss"]
            loss.backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            ends.append(time.perf_counter())
        return between(ends)

    return round_


def convolutions(data: Images) -> dict[str, Callable[[], Times]]:
    """The arms of the first pair."""
    teacher = resolve("zoo:cifar10_resnet56")

    def roles() -> dict[str, Any]:
        return {"teacher": teacher, "student": fresh("zoo:resnet20", data, 0), "recipe": SGD}

    def features(loss: Any, **options: Any) -> Callable[[], Method]:
        return lambda: Features(**roles(), loss=loss, **options)

    return {
        "KD": ours(lambda: KD(**roles(), cache="off"), data),
        **{f"KD + {loss}": ours(features(loss), data) for loss in ("hint", "attention", "relations")},
        "KD + hint, three pairs": ours(features("hint", pairs=3), data),
    }


def transformers(data: Images) -> dict[str, Callable[[], Times]]:
    """The arms of the second pair; none without timm."""
    try:
        import timm
        from timm.task import FeatureDistillationTask, TokenDistillationTask
    except ImportError:
        return {}
    torch.manual_seed(0)
    teacher = timm.create_model("vit_tiny_patch16_224", embed_dim=192, **VIT)
    student = timm.create_model("vit_tiny_patch16_224", embed_dim=96, **VIT)
    distilled = timm.create_model("deit_tiny_distilled_patch16_224", embed_dim=96, **VIT)
    known = {"input_shape": data.shape, "mean": data.train.mean, "std": data.train.std, "classes": data.classes}

    def roles() -> dict[str, Any]:
        return {
            "teacher": Model(module=teacher, name="teacher", **known),
            "student": Model(module=copy_of(student), name="student", **known),
            "recipe": ADAMW,
        }

    read = {"layers": ("fc_norm",)}  # what the classifier reads
    last = {"layers": ("blocks.5",)}
    tasks = {
        "timm, feature distillation": FeatureDistillationTask(copy_of(student), copy_of(teacher), verbose=False),
        "timm, token distillation": TokenDistillationTask(distilled, copy_of(teacher), verbose=False),
    }
    return {
        "transformers, KD": ours(lambda: KD(**roles(), cache="off"), data),
        "transformers, KD + hint, the classifier's input": ours(lambda: Features(**roles(), loss="hint", **read), data),
        "transformers, KD + hint, all tokens of the last block": ours(
            lambda: Features(**roles(), loss="hint", **last), data
        ),
        **{name: theirs(task, data) for name, task in tasks.items()},
    }


def main() -> None:
    """Time all, print, record, and fail where a step costs more than it may."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--repetitions", type=int, default=6)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    data = load("cifar10").augmented(("crop", "flip")).subset(torch.arange(B * STEPS))
    data = dataclasses.replace(data, validation=data.validation.subset(torch.arange(B)))
    source = resolve("zoo:cifar10_resnet56")
    data = data.normalised(source.mean, source.std)
    arms = convolutions(data) | transformers(data)
    best = dict.fromkeys(arms, float("inf"))
    for _ in range(arguments.repetitions):
        for name, round_ in arms.items():
            best[name] = min(best[name], *round_())
    ratio = best["KD + relations"] / best["KD"]
    ratios = {f"{name} over KD": round(best[name] / best["KD"], 3) for name in arms if name.startswith("KD +")}
    for name in arms:
        if name.startswith("timm"):
            mine = best["transformers, KD + hint, the classifier's input"]
            ratios[f"{name} over ours on the classifier's input"] = round(best[name] / mine, 3)
    figures = {
        "milliseconds": {name: round(1e3 * seconds, 2) for name, seconds in best.items()},
        "ratios": ratios,
        "gate held": ratio <= GATE,
    }
    settings = {"batch": B, "steps": STEPS, "threads": arguments.threads, "repetitions": arguments.repetitions}
    print(figures, record("features_step", figures, **settings))
    if ratio > GATE:
        raise SystemExit(f"a step with relations takes {ratio:.2f} times KD's, and {GATE} is allowed")


if __name__ == "__main__":
    main()
