"""The ordinary part of training: optimiser, learning-rate schedule, epochs, batch size."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn

from upcycle.core import optimizers
from upcycle.core.errors import require


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

    def steps(self, n: int) -> int:
        """The number of updates on ``n`` samples."""
        return self.epochs * max(math.ceil(n / (self.batch_size or max(n, 1))), 1)

    def make(self, params: nn.Module | Iterable[Any]) -> torch.optim.Optimizer:
        """The optimiser over a module's parameters or over parameter groups."""
        if isinstance(params, nn.Module):
            params = [p for p in params.parameters() if p.requires_grad]
        groups = list(params)
        require(bool(groups), "There is nothing to train: no parameter requires a gradient.")
        if self.optimizer == "sgd":
            return optimizers.SGD(groups, lr=self.lr, momentum=self.momentum, weight_decay=self.weight_decay,
                                   nesterov=self.momentum > 0, fused=True)  # fmt: skip
        adam = optimizers.Adam if self.optimizer == "adam" else optimizers.AdamW
        return adam(groups, lr=self.lr, weight_decay=self.weight_decay, fused=True)

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
