"""Feature maps of a network: the last one that all of its logits pass through, found by what flows in a forward.

Names, kinds and the order of submodules say little: a transformer has tokens, a block several branches, a wrapped
convolution another class. So images are shown to the network, every tensor that a submodule gives is kept, and the
graph of the gradients says which of them no path from the images to the logits avoids.
"""

from __future__ import annotations

import contextlib
import functools
import math
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.utils import parametrize

from upcycle.core.errors import UserError
from upcycle.core.taps import Taps
from upcycle.core.tokens import alike

Kind = Literal["maps", "channels last", "tokens", "vector"]


@dataclass(frozen=True)
class FeatureMap:
    """Where features of an image stand in a network, and how what a submodule gives is laid out.

    Args:
        name: of the submodule whose output they are, as ``module.named_modules()`` calls it.
        kind: maps (b, c, h, w); channels last (b, h, w, c); tokens (b, n, c), one for each place, row by row; or a
            vector (b, c), which is a map of one place.
        grid: (h, w).
        beside: positions of tokens that stand for no place, such as a class token.
    """

    name: str
    kind: Kind = "maps"
    grid: tuple[int, int] = (1, 1)
    beside: tuple[int, ...] = ()

    def maps(self, out: Tensor) -> Float[Tensor, "b c h w"]:
        """The features as maps; tokens without a place are left out."""
        if self.kind == "channels last":
            return out.permute(0, 3, 1, 2)
        if self.kind == "tokens":
            places = out[:, self._places(out)] if self.beside else out
            return places.mT.unflatten(2, self.grid)
        return out[:, :, None, None] if self.kind == "vector" else out

    def put(self, maps: Float[Tensor, "b c h w"], out: Tensor) -> Tensor:
        """``out`` with other maps in it, as a tensor of its own."""
        if self.kind == "channels last":
            return maps.permute(0, 2, 3, 1).clone()
        if self.kind == "tokens":
            return out.index_copy(1, self._places(out), maps.flatten(2).mT)
        return maps[:, :, 0, 0].clone() if self.kind == "vector" else maps.clone()

    def _places(self, out: Tensor) -> Tensor:
        return torch.tensor([i for i in range(out.shape[1]) if i not in self.beside], device=out.device)


class Recorded:
    """A record by :func:`record_layer`: ``f``, the maps F (b, c, h, w) of the layer in the last forward."""

    f: Tensor


@contextlib.contextmanager
def record_layer(
    module: nn.Module,
    layer: str | FeatureMap,
    *,
    leaf: bool = False,
    noise: Callable[[Tensor], Tensor] | None = None,
) -> Iterator[Recorded]:
    """Keep the maps F of a layer while the block lasts; the network goes on with a copy, so nothing overwrites them.

    Args:
        layer: where they are; or the name of a submodule that gives maps (b, c, h, w).
        leaf: cut the graph at F. When no parameter asks for a gradient, all before F runs without a graph.
        noise: of F, what is added to it on the way on: F + ε.

    Raises:
        UserError: there is no such layer.
    """
    seen, place = Recorded(), FeatureMap(layer) if isinstance(layer, str) else layer

    def keep(out: Tensor) -> Tensor:
        f = place.maps(out)
        seen.f = f.detach().requires_grad_() if leaf else f
        return place.put(seen.f if noise is None else seen.f + noise(seen.f), out.detach() if leaf else out)

    # Of attention only the plain kernel has a second derivative, which a leaf's gradient does not have anyway.
    plain = contextlib.nullcontext() if leaf else sdpa_kernel(SDPBackend.MATH)
    with Taps(module, replace={place.name: keep}), plain:
        yield seen


class Seen(NamedTuple):
    """A tensor that a submodule gave, and the node of the gradients' graph that made it."""

    name: str
    module: nn.Module
    out: Tensor
    node: Any


class Flow:
    """A record of what flows through a network while it sees images.

    Args:
        network: maps images to logits (b, k); in evaluation mode, as it stays.
        x: normalised images (b, c, h, w).
        within: the part of the network whose submodules are meant; all of it if not given.

    Attributes:
        z: (b, k), the logits, with the graph to the images.
        seen: the tensors that depend on the images, in the order in which they came; of a submodule that is called
            several times that of the last call, which is the one that :class:`~upcycle.core.taps.Taps` reads.
    """

    def __init__(self, network: nn.Module, x: Float[Tensor, "b c h w"], within: nn.Module | None = None) -> None:
        self._within = network if within is None else within
        self._image = x.detach().clone().requires_grad_()
        self._calls: Counter[str] = Counter()
        found: dict[str, Seen] = {}

        def keep(name: str, module: nn.Module, out: Tensor) -> None:
            if out.grad_fn is not None and out.shape[:1] == x.shape[:1]:
                self._calls[name] += 1
                found.pop(name, None)
                found[name] = Seen(name, module, out, out.grad_fn)

        with torch.enable_grad(), _hooked(self._within, keep):
            self.z = network(self._image.clone())
        self.seen = list(found.values())
        self._grids = [tuple(s.out.shape[2:]) for s in self.seen if isinstance(s.module, nn.Conv2d)]

    @functools.cached_property
    def _beside(self) -> dict[int, tuple[int, ...]]:
        """For each number of tokens those that are the same for two images where it first occurs, at most half."""
        image = self._image.detach()[:1]
        noise = torch.randn(image.shape, generator=torch.Generator().manual_seed(0)).to(image)
        found: dict[int, tuple[int, ...]] = {}

        def compare(name: str, module: nn.Module, out: Tensor) -> None:
            if out.ndim == 3 and len(out) == 2 and out.shape[1] not in found:
                found[out.shape[1]] = alike(out)

        with torch.no_grad(), _hooked(self._within, compare):
            self._within(torch.cat([image, image + noise]))
        return found

    def laid_out(self, seen: Seen) -> FeatureMap | None:
        """How a tensor is laid out; ``None`` where no places of the image can be made out in it."""
        name, shape = seen.name, tuple(seen.out.shape)
        if len(shape) == 4:
            if isinstance(seen.module, nn.Conv2d) or self._fits(shape[2:]):
                return FeatureMap(name, "maps", (shape[2], shape[3]))
            return FeatureMap(name, "channels last", (shape[1], shape[2])) if self._fits(shape[1:3]) else None
        if len(shape) == 3:
            beside = self._beside.get(shape[1], ())
            grid = self._grid(shape[1] - len(beside))
            return FeatureMap(name, "tokens", grid, beside) if grid is not None else None
        return None

    def named(self, name: str) -> tuple[FeatureMap, Seen]:
        """The map that the submodule ``name`` gives.

        Raises:
            UserError: there is no such submodule, it does not run, or what it gives is no map.
        """
        Taps(self._within, [name])  # knows what to say of a wrong name
        seen = next((seen for seen in self.seen if seen.name == name), None)
        if seen is None:
            raise UserError(f"'{name}' gives no tensor of the images in eval mode; name another layer.")
        found = self.laid_out(seen)
        if found is None:
            shape = tuple(seen.out.shape)
            raise UserError(f"'{name}' gives {shape}, not maps (b, c, h, w) nor tokens of a grid; name another layer.")
        return found, seen

    def is_cut(self, seen: Seen) -> bool:
        """Whether all that the logits know of the images passes through a tensor."""
        reached, open_ = {seen.node}, [self.z.grad_fn]
        while open_:
            node = open_.pop()
            if node is None or node in reached:
                continue
            if getattr(node, "variable", None) is self._image:
                return False
            reached.add(node)
            open_ += [previous for previous, _ in node.next_functions]
        return True

    def maps(self) -> Iterator[tuple[FeatureMap, Seen]]:
        """The maps that all logits pass through, the last first.

        Left out are maps of one place, maps that were only pooled since the last weights, and maps whose gradient goes
        through tokens beside them alone: those of a layer behind which a class token decides.
        """
        for i in range(len(self.seen) - 1, -1, -1):
            seen, found = self.seen[i], self.laid_out(self.seen[i])
            again = i > 0 and self.seen[i - 1].node is seen.node and self._calls[self.seen[i - 1].name] == 1
            if found is None or again or not self._places(i) == math.prod(found.grid) > 1 or not self.is_cut(seen):
                continue
            g = self.gradient(seen) if found.beside else None
            if g is None or bool(found.maps(g).any()) or not bool(g.any()):
                yield found, seen

    def gradient(self, seen: Seen) -> Tensor:
        """The gradient of a fixed mix of the logits with respect to a tensor."""
        mix = torch.randn(self.z.shape[1], generator=torch.Generator().manual_seed(1)).to(self.z)
        return torch.autograd.grad(self.z, seen.out, mix.expand_as(self.z), retain_graph=True)[0]

    def vector(self) -> FeatureMap | None:
        """The last vector (b, c) between weights that all logits pass through, for a network without maps."""
        weighted = [i for i, seen in enumerate(self.seen) if _has_weights(seen.module)]
        between = self.seen[weighted[0] : weighted[-1]] if weighted else []
        found = (s for s in reversed(between) if s.out.ndim == 2 and self.is_cut(s) and self._calls[s.name] == 1)
        last = next(found, None)
        return None if last is None else FeatureMap(last.name, "vector")

    def _places(self, i: int) -> int:
        """The places of the last tensor, up to the ``i``-th, that weights made and that has more than one."""
        for seen in reversed(self.seen[: i + 1]):
            found = self.laid_out(seen) if _has_weights(seen.module) else None
            if found is not None and math.prod(found.grid) > 1:
                return math.prod(found.grid)
        return 0

    def _fits(self, grid: tuple[int, ...]) -> bool:
        """Whether so many places are those of another map, or have the image's proportions."""
        (h, w), (height, width) = grid, self._image.shape[2:]
        return grid in self._grids or h == round(w * height / width) or w == round(h * width / height)

    def _grid(self, n: int) -> tuple[int, int] | None:
        """The grid of ``n`` tokens: that of a convolution's map, or else one of the image's proportions."""
        for grid in reversed(self._grids):
            if math.prod(grid) == n:
                return grid[0], grid[1]
        height, width = self._image.shape[2:]
        h = round(math.sqrt(n * height / width))
        return (h, n // h) if h > 0 and n % h == 0 and self._fits((h, n // h)) else None


def _has_weights(module: nn.Module) -> bool:
    return parametrize.is_parametrized(module) or next(module.parameters(recurse=False), None) is not None


@contextlib.contextmanager
def _hooked(module: nn.Module, look: Callable[[str, nn.Module, Tensor], None]) -> Iterator[None]:
    """Within, ``look`` is given name, submodule and output whenever a submodule gives a tensor, or one first of all."""

    def hook(name: str) -> Callable[..., None]:
        def see(module: nn.Module, args: Any, output: Any) -> None:
            out = output[0] if isinstance(output, tuple | list) and output else output
            if isinstance(out, Tensor) and out.ndim:
                look(name, module, out)

        return see

    handles = [m.register_forward_hook(hook(name)) for name, m in module.named_modules() if name]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
