"""The option group of students that adapt with a bottleneck between backbone and classifier."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import torch
from torch import nn

from upcycle.core.heads import WithBottleneck
from upcycle.core.models import Model, copy_of
from upcycle.core.ranges import ranges
from upcycle.core.recipe import Recipe


@dataclass(kw_only=True)
class Bottleneck:
    """The linear layer that stands between backbone and classifier while a student adapts.

    Args:
        width: number of features that it gives.
        backbone_rate: learning rate of the backbone over that of the head; 1 suits a fresh network.
    """

    width: int = 256
    backbone_rate: float = 0.1

    def __post_init__(self) -> None:
        ranges(self, at_least={"width": 1}, not_negative=("backbone_rate",))

    def place(self, start: Model, num_classes: int, *, norm: bool, weight_norm: bool) -> WithBottleneck:
        """A copy of ``start`` whose classifier is a :class:`~upcycle.core.heads.BottleneckHead` of this width."""
        start = dataclasses.replace(start, module=copy_of(start.module))
        return WithBottleneck(start, num_classes, self.width, norm=norm, weight_norm=weight_norm)

    def groups(self, backbone: nn.Module, head: nn.Module, lr: float) -> list[dict[str, object]]:
        """Parameter groups whose learning rates are ``lr`` for the head and its share for the backbone."""
        parts = ((backbone, self.backbone_rate), (head, 1.0))
        return [
            {"params": [p for p in part.parameters() if p.requires_grad], "lr": lr * share} for part, share in parts
        ]

    def optimizer(self, network: WithBottleneck, recipe: Recipe) -> torch.optim.Optimizer:
        """The recipe's optimiser over :meth:`groups` of ``network``."""
        return recipe.make(self.groups(network.backbone, network.head, recipe.lr))
