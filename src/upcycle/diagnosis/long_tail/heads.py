"""Classifiers that are no linear layer: of normalised features, of groups of classes, and two beside each other.

They answer with log-scores, whose order decides; the exponentials of a row do not sum to one.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from upcycle.core.outputs import LogScores

BACKGROUND, FOREGROUND = 0, 1
"""The outputs of G₀."""


class Normalised(LogScores):
    """A linear layer on u = (f - μ) / |f - μ|.

    Args:
        linear: from u to scores.
        mu: μ, (d,).
    """

    mu: Tensor

    def __init__(self, linear: nn.Linear, mu: Float[Tensor, " d"]) -> None:
        super().__init__()
        self.linear = linear
        self.register_buffer("mu", mu)

    def forward(self, f: Float[Tensor, "b d"]) -> Float[Tensor, "b k"]:
        return self.linear(F.normalize(f - self.mu, dim=1))


class Grouped(LogScores):
    """A linear layer whose outputs are several softmaxes: of each group of classes, with "others" at index 0.

    With a background class there is G₀ before them, of background and foreground, and every other class' probability is
    multiplied by that of the foreground (BAGS). :meth:`forward` gives the log-scores of the k classes, :meth:`logits`
    what is trained.

    Args:
        inputs: d.
        groups: the classes of each group; every class is in one, but for the background.
        background: the class of G₀; ``None`` leaves G₀ out.

    Raises:
        ValueError: the groups do not divide the classes.
    """

    place: Tensor
    target: Tensor

    def __init__(self, inputs: int, groups: Sequence[Sequence[int]], background: int | None = None) -> None:
        super().__init__()
        self.groups, self.background = [list(map(int, group)) for group in groups], background
        k = sum(map(len, self.groups)) + (background is not None)
        everything = [c for group in self.groups for c in group] + ([] if background is None else [background])
        if sorted(everything) != list(range(k)) or not all(self.groups):
            raise ValueError(f"the groups {self.groups} and the background {background} do not divide {k} classes")
        first = [] if background is None else [2]
        self.sizes = first + [1 + len(group) for group in self.groups]
        place, target = torch.zeros(k, dtype=torch.long), torch.zeros(k, len(self.sizes), dtype=torch.long)
        start = sum(first)
        if background is not None:
            target[:, 0] = FOREGROUND
            target[background, 0] = place[background] = BACKGROUND
        for i, group in enumerate(self.groups, len(first)):
            for index, c in enumerate(group, 1):
                place[c], target[c, i] = start + index, index
            start += 1 + len(group)
        self.linear = nn.Linear(inputs, start)
        self.register_buffer("place", place, persistent=False)  # of each class among the outputs
        self.register_buffer("target", target, persistent=False)  # index of class c in the softmax of each group

    def logits(self, f: Float[Tensor, "b d"]) -> tuple[Tensor, ...]:
        """The logits of each group, G₀ first where there is one."""
        return self.linear(f).split(self.sizes, dim=1)

    def forward(self, f: Float[Tensor, "b d"]) -> Float[Tensor, "b k"]:
        log_p = torch.cat([z.log_softmax(1) for z in self.logits(f)], 1)
        scores = log_p.index_select(1, self.place)
        if self.background is None:
            return scores
        foreground = (self.place != BACKGROUND).to(log_p.dtype)
        return scores + log_p[:, FOREGROUND : FOREGROUND + 1] * foreground


class Dual(LogScores):
    """Two classifiers: log p' of the calibrated one for some classes, log p of the original one for all others.

    Args:
        original: gives z, whose softmax is p.
        calibrated: gives z', whose softmax is p'.
        rare: bool (k,), the classes that p' is used for.
    """

    rare: Tensor

    def __init__(self, original: nn.Module, calibrated: nn.Module, rare: Tensor) -> None:
        super().__init__()
        self.original, self.calibrated = original, calibrated
        self.register_buffer("rare", rare, persistent=False)

    def forward(self, f: Float[Tensor, "b d"]) -> Float[Tensor, "b k"]:
        return torch.where(self.rare, self.calibrated(f).log_softmax(1), self.original(f).log_softmax(1))


def layers(inputs: int, hidden: int, outputs: int) -> nn.Module:
    """Linear, ReLU, linear with fresh weights; one linear layer where ``hidden`` is 0."""
    if not hidden:
        return nn.Linear(inputs, outputs)
    return nn.Sequential(nn.Linear(inputs, hidden), nn.ReLU(), nn.Linear(hidden, outputs))
