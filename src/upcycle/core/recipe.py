"""The ordinary part of training: optimiser, learning-rate schedule, epochs, batch size, and ingredients.

What makes an ingredient is imported by name where it is asked for, so that core depends on nothing above it.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn

from upcycle.core import optimizers
from upcycle.core.errors import require
from upcycle.core.ranges import ranges

MADE_BY = {
    "sam": "upcycle.training.esam",
    "asam": "upcycle.training.esam",
    "esam": "upcycle.training.esam",
    "mixup": "upcycle.training.mix",
    "cutmix": "upcycle.training.mix",
    "snapmix": "upcycle.training.mix",
}
"""The module that makes what a field of the recipe names."""


@dataclass(kw_only=True)
class Recipe:
    """How the weights are trained.

    Args:
        epochs: passes over the training data.
        batch_size: samples a step, over all processes together; 0: all at once.
        optimizer: sgd (with Nesterov momentum), adam or adamw.
        lr: the highest learning rate.
        momentum: the momentum of sgd, from 0 to below 1.
        weight_decay: the decay of every parameter, as the papers of this field have it.
        schedule: cosine or linear (to zero), step (times ``decay`` at each milestone) or constant.
        warmup: epochs of linear warm-up from zero.
        milestones: epochs at which the step schedule decays.
        decay: the factor of the step schedule at each milestone.
        decayed: the parameters that ``weight_decay`` reaches: all of them, or matrices alone, that is those of two axes
            or more (neither biases nor the scales of normalisations).
        sharpness: look for flat minima: sam, asam (its radius follows the size of each weight) or esam (a part of the
            weights and of the samples, so that it costs less); twice the time of none.
        rho: radius of the ascent of sam, asam and esam; ASAM's paper has ten times as much as SAM's.
        keep: share β of the parameter tensors that esam perturbs, above 0.
        select: share γ of the samples, those whose loss rises most, that esam descends on, above 0.
        local: let each process ascend along its own gradient, as ESAM's authors do; several then differ from one.
        mix: train on mixtures of two images: mixup, cutmix, or snapmix, which weighs labels by class activation.
        mix_prob: share of the batches that are mixed.
        mix_beta: both parameters of the Beta distribution that mixtures are drawn from. SnapMix's; CutMix has 1.
        mix_map: the network whose class activation snapmix reads: the trained one itself, or its teacher.
        sampler: the order of samples: each once (instance); or drawn, so that classes come equally often (class), as
            the root of their sizes (sqrt), or first by size and in the end equally often (progressive).
    """

    epochs: int = 30
    batch_size: int = 128
    optimizer: Literal["sgd", "adam", "adamw"] = "sgd"
    lr: float = 0.1
    momentum: float = 0.9
    weight_decay: float = 5e-4
    schedule: Literal["cosine", "linear", "step", "constant"] = "cosine"
    warmup: float = 0.0
    milestones: tuple[int, ...] = ()
    decay: float = 0.1
    decayed: Literal["all", "matrices"] = "all"
    sharpness: Literal["none", "sam", "asam", "esam"] = "none"
    rho: float = 0.05
    keep: float = 0.6
    select: float = 0.5
    local: bool = False
    mix: Literal["none", "mixup", "cutmix", "snapmix"] = "none"
    mix_prob: float = 1.0
    mix_beta: float = 5.0
    mix_map: Literal["self", "teacher"] = "self"
    sampler: Literal["instance", "class", "sqrt", "progressive"] = "instance"

    def __post_init__(self) -> None:
        require(self.epochs >= 1, f"epochs must be at least 1, not {self.epochs}.")
        require(
            self.batch_size >= 2 or self.batch_size == 0,
            f"batch_size must be at least 2 (BatchNorm needs two), or 0 for all at once, not {self.batch_size}.",
        )
        require(self.lr > 0 and math.isfinite(self.lr), f"lr must be a positive number, not {self.lr}.")
        require(0 <= self.momentum < 1, f"momentum must lie in [0, 1), not {self.momentum}.")
        require(self.weight_decay >= 0 and math.isfinite(self.weight_decay),
                f"weight_decay must be zero or positive, not {self.weight_decay}.")  # fmt: skip
        require(0 <= self.warmup <= self.epochs, f"warmup must lie between 0 and epochs, not {self.warmup}.")
        require(0 < self.decay <= 1, f"decay must lie in (0, 1], not {self.decay}.")
        self.milestones = tuple(self.milestones)
        _check_ingredients(self)

    @property
    def mixes(self) -> bool:
        """Whether any batch is mixed."""
        return self.mix != "none" and self.mix_prob > 0

    def steps(self, n: int) -> int:
        """The number of updates on ``n`` samples."""
        return self.epochs * max(math.ceil(n / (self.batch_size or max(n, 1))), 1)

    def make(self, params: nn.Module | Iterable[Any]) -> torch.optim.Optimizer:
        """The optimiser over a module's parameters or over parameter groups; with ``sharpness`` it ascends first."""
        if isinstance(params, nn.Module):
            params = [p for p in params.parameters() if p.requires_grad]
        groups = list(params)
        require(bool(groups), "There is nothing to train: no parameter requires a gradient.")
        if self.decayed == "matrices":
            groups = _undecayed(groups)
        made: torch.optim.Optimizer
        if self.optimizer == "sgd":
            made = optimizers.SGD(
                groups,
                lr=self.lr,
                momentum=self.momentum,
                weight_decay=self.weight_decay,
                nesterov=self.momentum > 0,
                fused=True,
            )
        else:
            adam = optimizers.Adam if self.optimizer == "adam" else optimizers.AdamW
            made = adam(groups, lr=self.lr, weight_decay=self.weight_decay, fused=True)
        if self.sharpness == "none":
            return made
        sharp: torch.optim.Optimizer = maker(self.sharpness).sharp(made, self)
        return sharp

    def rate(self, progress: float) -> float:
        """The factor on ``lr`` after a share ``progress`` of the epochs, from 0 to 1."""
        epoch = progress * self.epochs
        if epoch < self.warmup:
            return epoch / self.warmup
        if self.schedule in ("cosine", "linear"):
            done = min((epoch - self.warmup) / max(self.epochs - self.warmup, 1e-12), 1.0)
            return 0.5 * (1 + math.cos(math.pi * done)) if self.schedule == "cosine" else 1.0 - done
        if self.schedule == "step":
            return float(self.decay ** sum(epoch >= m for m in self.milestones))
        return 1.0

    def schedule_rate(self, optimizer: torch.optim.Optimizer, progress: float) -> None:
        """Set every group's learning rate: its own ``initial_lr`` (else ``lr``) times :meth:`rate`."""
        factor = self.rate(progress)
        for group in optimizer.param_groups:
            group["lr"] = group.setdefault("initial_lr", group["lr"]) * factor


def _undecayed(groups: list[Any]) -> list[dict[str, Any]]:
    """Parameter groups in which nothing decays but what has two axes or more."""
    found = []
    for group in groups if isinstance(groups[0], dict) else [{"params": groups}]:
        params = [group["params"]] if isinstance(group["params"], torch.Tensor) else list(group["params"])
        found.append({**group, "params": [p for p in params if p.ndim >= 2]})
        found.append({**group, "params": [p for p in params if p.ndim < 2], "weight_decay": 0.0})
    return [group for group in found if group["params"]]


def maker(name: str) -> Any:
    """The module that makes the ingredient that a field of the recipe calls ``name``."""
    return importlib.import_module(MADE_BY[name])


def _check_ingredients(recipe: Recipe) -> None:
    """Refuse values that are out of range, and those that nothing would read.

    Raises:
        UserError: naming the field and its value.
    """
    ranges(recipe, not_negative=("rho",), share=("keep", "select", "mix_prob"), positive=("keep", "select", "mix_beta"))
    sharp, mixes = recipe.sharpness != "none", recipe.mix != "none"
    _idle(recipe, {"rho": 0.05, "local": False}, sharp, "sharpness sam, asam or esam")
    _idle(recipe, {"keep": 0.6, "select": 0.5}, recipe.sharpness == "esam", "sharpness esam")
    _idle(recipe, {"mix_prob": 1.0, "mix_beta": 5.0}, mixes, "mix mixup, cutmix or snapmix")
    _idle(recipe, {"mix_map": "self"}, recipe.mix == "snapmix", "mix snapmix")
    _idle(recipe, {"decayed": "all"}, recipe.weight_decay > 0, "a weight_decay above 0")


def _idle(recipe: Recipe, defaults: Mapping[str, Any], read: bool, by: str) -> None:
    for name, default in defaults.items():
        value = getattr(recipe, name)
        require(read or value == default, f"{name} {value} has no effect without {by}; leave it out.")
