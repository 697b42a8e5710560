"""Layers of two networks whose features are compared: what they give, how they go together, and reading them."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from upcycle.core.errors import UserError, require
from upcycle.core.feature_maps import FeatureMap, Flow, Seen
from upcycle.core.frozen import Frozen
from upcycle.core.models import Model
from upcycle.core.outputs import innermost
from upcycle.core.taps import Taps
from upcycle.core.undisturbed import undisturbed

Both = list[tuple[Tensor, Tensor]]
"""Features (b, c, h, w) of the student and of the teacher, of each pair of layers."""


class Spot(NamedTuple):
    """A layer of one network.

    Args:
        place: where its features stand.
        shape: of what it gives, of one sample.
        grid: (h, w); ``None`` for tokens that no grid was found for.
    """

    place: FeatureMap
    shape: tuple[int, ...]
    grid: tuple[int, int] | None

    @property
    def width(self) -> int:
        """Channels, c."""
        return self.shape[0] if self.place.kind in ("maps", "vector") else self.shape[-1]

    def words(self) -> str:
        """The layer with what it gives."""
        if self.place.kind == "tokens":
            return f"'{self.place.name}' ({self.shape[0]} tokens of {self.width})"
        return f"'{self.place.name}' ({self.width} channels, {self.place.grid[0]} x {self.place.grid[1]})"


class Pair(NamedTuple):
    """A layer of the student that learns from one of the teacher.

    Args:
        student, teacher: the layers.
        grid: on which they are compared; maps of another are average-pooled to it.
        whole: both are tokens that are compared one by one, those without a place too.
    """

    student: Spot
    teacher: Spot
    grid: tuple[int, int]
    whole: bool = False

    def features(self, out_s: Tensor, out_t: Tensor) -> tuple[Tensor, Tensor]:
        """Bring what both layers gave to (b, c, h, w) on one grid, in float32 or better."""
        f_s, f_t = (self._on_grid(spot.place, out) for spot, out in ((self.student, out_s), (self.teacher, out_t)))
        return f_s, f_t

    def _on_grid(self, place: FeatureMap, out: Tensor) -> Tensor:
        out = out if out.dtype == torch.float64 else out.float()
        f = out.mT[..., None] if self.whole else place.maps(out)
        (h, w), (to_h, to_w) = f.shape[2:], self.grid
        if (h, w) == self.grid:
            return f
        if self.whole:
            raise UserError(
                f"'{place.name}' gives {h} tokens in training and {self.grid[0]} in evaluation mode, so they cannot be "
                "compared; name a layer before tokens are dropped."
            )
        if h % to_h == 0 and w % to_w == 0:  # of which a GPU has a deterministic gradient
            return F.avg_pool2d(f, (h // to_h, w // to_w))
        return F.adaptive_avg_pool2d(f, self.grid)

    def words(self, loss: str) -> str:
        """Say what is compared, and how it was made comparable."""
        said = f"Layer {self.student.words()} of the student learns from {self.teacher.words()} of the teacher"
        if loss == "hint":
            widths = f"{self.student.width} to {self.teacher.width}"
            said += f", through a linear map of {widths} channels that is no part of the product"
        for who, spot in (("student", self.student), ("teacher", self.teacher)):
            if not self.whole and spot.place.beside:
                said += f"; the {who}'s tokens without a place ({len(spot.place.beside)}) are left out"
            if not self.whole and spot.place.grid != self.grid:
                said += f"; the {who}'s are average-pooled to {self.grid[0]} x {self.grid[1]}"
        return f"{said}."


def spots(model: Model, x: Float[Tensor, "b c h w"], layers: Sequence[str] = ()) -> list[Spot]:
    """The layers of those names; if none are given those that all logits pass through, in their order.

    Of these only what is laid out as the last one is, so not the convolutions in front of a transformer's tokens. Where
    there are no such maps, as in a perceptron, the last vector between weights.

    Args:
        x: images as in training, two at most.

    Raises:
        UserError: a name that is none, or a layer that gives no features of the images.
    """
    inside = innermost(model.module)
    like = next((p for p in model.module.parameters() if p.is_floating_point()), x)
    with undisturbed(model.module):
        flow = Flow(model.module, x.to(like), within=inside)
        if layers:
            Taps(inside, layers)  # knows what to say of a wrong name
            seen = {one.name: one for one in flow.seen}
            return [_spot(flow, seen.get(name), name, model.name) for name in layers]
        found = [Spot(place, tuple(seen.out.shape[1:]), place.grid) for place, seen in flow.maps()]
        found = [spot for spot in found if spot.place.kind == found[0].place.kind]
        last = None if found else flow.vector()
        if last is not None:
            (out,) = (seen.out for seen in flow.seen if seen.name == last.name)
            found = [Spot(last, tuple(out.shape[1:]), last.grid)]
    require(bool(found), f"{model.name} has no layer that all of its answers pass through; name some by --layers.")
    return found[::-1]


def _spot(flow: Flow, seen: Seen | None, name: str, owner: str) -> Spot:
    """A layer that was named, from what it gave."""
    if seen is None:
        raise UserError(
            f"'{name}' of {owner} gives no tensor of the images, one for each sample, in evaluation mode; name a layer "
            "around it or inside it."
        )
    shape, place = tuple(seen.out.shape[1:]), flow.laid_out(seen)
    if place is not None:
        return Spot(place, shape, place.grid)
    if len(shape) == 1:
        return Spot(FeatureMap(name, "vector"), shape, (1, 1))
    if len(shape) == 2:
        return Spot(FeatureMap(name, "tokens", (shape[0], 1)), shape, None)
    raise UserError(
        f"'{name}' of {owner} gives {shape} for an image, which are no maps, tokens or vector; name another."
    )


def chosen(student: Sequence[Spot], teacher: Sequence[Spot], k: int) -> list[tuple[Spot, Spot]]:
    """Pairs of layers by depth and shape, the deepest first.

    Where both networks have k grids in common, such as the stages of convolutional networks, the last layers of each of
    the k deepest. Otherwise, as with the blocks of transformers, the last ones and those at (k - 1) / k, ... of the
    depth.

    Args:
        student, teacher: the layers that there are, in their order.
    """
    ends_s, ends_t = ({spot.grid: spot for spot in side} for side in (student, teacher))
    deepest = sorted(ends_t, key=lambda grid: teacher.index(ends_t[grid]), reverse=True)
    common = [(ends_s[grid], ends_t[grid]) for grid in deepest if grid in ends_s]
    if len(common) >= k:
        return common[:k]
    fewest = min(len(student), len(teacher))
    require(
        k <= fewest, f"pairs {k} are more than there are layers to choose from, {fewest}; take fewer, or name them."
    )

    def at(side: Sequence[Spot], i: int) -> Spot:
        return side[math.ceil(len(side) * (k - i) / k) - 1]

    return [(at(student, i), at(teacher, i)) for i in range(k)]


def comparable(student: Spot, teacher: Spot) -> Pair:
    """How two layers are compared.

    Two of tokens must have as many, and are compared one by one. Tokens without a place, such as a class token, are
    left out on both sides where the sides differ in them. All else are maps, and a vector is one of a single place.

    Raises:
        UserError: other numbers of tokens, or tokens without a grid beside maps.
    """
    sides = (student, teacher)
    if all(spot.place.kind == "tokens" for spot in sides):
        alike = student.place.beside == teacher.place.beside
        n_s, n_t = (spot.shape[0] - (0 if alike else len(spot.place.beside)) for spot in sides)
        if n_s != n_t:
            left = "" if alike else ", without those that stand for no place"
            raise UserError(
                f"'{student.place.name}' of the student gives {n_s} tokens and '{teacher.place.name}' of the teacher "
                f"{n_t}{left}; choose layers with as many, or networks with patches of the same size."
            )
        if alike:
            return Pair(student, teacher, (n_s, 1), whole=True)
    for spot in sides:
        if spot.grid is None:
            raise UserError(f"no grid is known for {spot.words()}, so they compare with as many tokens only.")
    h, w = (min(student.place.grid[axis], teacher.place.grid[axis]) for axis in (0, 1))
    return Pair(student, teacher, (h, w))


@contextlib.contextmanager
def compared(pairs: Sequence[Pair], student: nn.Module, teacher: Frozen) -> Iterator[Callable[[], Both]]:
    """Within: a function that gives the features of all pairs, from the last forward of both networks."""
    names_s, names_t = ({spot.place.name: None for spot in side} for side in _sides(pairs))
    with (
        Taps(innermost(student), names_s, apart=True) as s,
        Taps(innermost(teacher.network), names_t, apart=True) as t,
    ):
        yield lambda: [pair.features(s[pair.student.place.name], t[pair.teacher.place.name]) for pair in pairs]


def _sides(pairs: Sequence[Pair]) -> tuple[list[Spot], list[Spot]]:
    return [pair.student for pair in pairs], [pair.teacher for pair in pairs]
