"""Feature maps of a network: the last one that all of its logits pass through, found by what flows in a forward.

Names, kinds and the order of submodules say little: a transformer has tokens, a block several branches, a wrapped
convolution another class. So two images are shown to the network, every tensor that a submodule gives is kept, and
the graph of the gradients says which of them no path from the images to the logits avoids.
"""

from __future__ import annotations

import contextlib
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

from upcycle.core.errors import UserError, require
from upcycle.core.evaluate import undisturbed
from upcycle.core.frozen import Frozen
from upcycle.core.taps import Taps

Kind = Literal["maps", "channels last", "tokens", "vector"]


@dataclass(frozen=True)
class FeatureMap:
    """Where features of an image stand in a network, and how what a submodule gives is laid out.

    Args:
        name: of the submodule whose output they are, as ``module.named_modules()`` calls it.
        kind: maps (b, c, h, w); channels last (b, h, w, c); tokens (b, n, c), one for each place row by row; or a vector
            (b, c), which is a map of one place.
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
            return out[:, self._places(out)].mT.unflatten(2, self.grid)
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
    """What flows through a network while it sees one image, and one of noise.

    Args:
        network: maps images to logits (b, k).
        x: normalised images (b, c, h, w), of which the first is shown.

    Attributes:
        z: (2, k), the logits, with the graph to the images.
        seen: the tensors that depend on the images, in the order in which they came; of a submodule that is called
            several times that of the last call, which is the one that :class:`~upcycle.core.taps.Taps` reads.
    """

    def __init__(self, network: nn.Module, x: Float[Tensor, "b c h w"]) -> None:
        noise = torch.randn(x[:1].shape, generator=torch.Generator().manual_seed(0)).to(x)
        self._image = torch.cat([x[:1].detach(), noise]).requires_grad_()
        self._calls: Counter[str] = Counter()
        self._constant: dict[int, tuple[int, ...]] = {}
        found: dict[str, Seen] = {}
        inner = network.network if isinstance(network, Frozen) else network

        def keep(name: str) -> Callable[..., None]:
            def hook(module: nn.Module, args: Any, output: Any) -> None:
                out = output[0] if isinstance(output, tuple | list) and output else output
                if isinstance(out, Tensor) and out.grad_fn is not None and out.shape[:1] == self._image.shape[:1]:
                    self._calls[name] += 1
                    found.pop(name, None)
                    found[name] = Seen(name, module, out, out.grad_fn)
                    if out.ndim == 3:
                        self._constant.setdefault(out.shape[1], _equal_rows(out))

            return hook

        with undisturbed(network), torch.enable_grad():
            hooks = [m.register_forward_hook(keep(name)) for name, m in inner.named_modules() if name]
            try:
                self.z = network(self._image.clone())
            finally:
                for handle in hooks:
                    handle.remove()
        self.seen = list(found.values())
        self._grids = [tuple(s.out.shape[2:]) for s in self.seen if isinstance(s.module, nn.Conv2d)]

    def laid_out(self, seen: Seen) -> FeatureMap | None:
        """How a tensor is laid out; ``None`` where no places of the image can be made out in it."""
        name, shape = seen.name, tuple(seen.out.shape)
        if len(shape) == 4:
            if isinstance(seen.module, nn.Conv2d) or (self._fits(shape[2:]) and shape[1:3] not in self._grids):
                return FeatureMap(name, "maps", (shape[2], shape[3]))
            return FeatureMap(name, "channels last", (shape[1], shape[2])) if self._fits(shape[1:3]) else None
        if len(shape) == 3:
            beside = self._constant[shape[1]]
            grid = self._grid(shape[1] - len(beside))
            return FeatureMap(name, "tokens", grid, beside) if grid is not None else None
        return None

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

    def maps(self) -> Iterator[tuple[FeatureMap, Seen, Tensor]]:
        """The maps that all logits pass through, the last first, and the gradient (2, c, h, w) of a mix of the logits.

        Left out are maps of one place, maps that were only pooled since the last weights, and maps whose gradient goes
        through tokens beside them alone: those of a layer behind which a class token decides.
        """
        size = self._sizes()
        mix = torch.randn(self.z.shape[1], generator=torch.Generator().manual_seed(1)).to(self.z)
        for i in range(len(self.seen) - 1, -1, -1):
            seen, found = self.seen[i], self.laid_out(self.seen[i])
            again = i > 0 and self.seen[i - 1].node is seen.node and self._calls[self.seen[i - 1].name] == 1
            if found is None or size[i] != math.prod(found.grid) or size[i] == 1 or again or not self.is_cut(seen):
                continue
            (g,) = torch.autograd.grad((self.z * mix).sum(), seen.out, retain_graph=True)
            if bool(found.maps(g).any()) or not bool(g.any()):
                yield found, seen, found.maps(g)

    def vector(self) -> FeatureMap | None:
        """The last vector (b, c) between weights that all logits pass through, for a network without maps."""
        weighted = [i for i, seen in enumerate(self.seen) if _has_weights(seen.module)]
        between = self.seen[weighted[0] : weighted[-1]] if weighted else []
        found = (s for s in reversed(between) if s.out.ndim == 2 and self.is_cut(s) and self._calls[s.name] == 1)
        last = next(found, None)
        return None if last is None else FeatureMap(last.name, "vector")

    def _sizes(self) -> list[int]:
        """For each tensor seen the places of the last one that weights had made by then, beside those of one place."""
        sizes, last = [], 0
        for seen in self.seen:
            found = self.laid_out(seen) if _has_weights(seen.module) else None
            if found is not None and math.prod(found.grid) > 1:
                last = math.prod(found.grid)
            sizes.append(last)
        return sizes

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


def last_map(network: nn.Module, x: Float[Tensor, "b c h w"]) -> FeatureMap | None:
    """The last feature map that all logits of a network pass through; ``None`` where there is none.

    Args:
        network: maps images to logits (b, k); it is in evaluation mode meanwhile and unchanged afterwards.
        x: normalised images (b, c, h, w), of which the first is shown to it.
    """
    return next((found for found, _, _ in Flow(network, x).maps()), None)


def map_named(network: nn.Module, name: str, x: Float[Tensor, "b c h w"]) -> FeatureMap:
    """How the output of the submodule ``name`` is laid out; for the other arguments see :func:`last_map`.

    Raises:
        UserError: there is no such submodule, it does not run, or what it gives is no map.
    """
    with Taps(network.network if isinstance(network, Frozen) else network, [name]) as taps, undisturbed(network):
        network(x[:1])
    try:
        shape = tuple(taps[name].shape)
    except UserError as error:
        raise UserError(f"'{name}' gives no tensor in eval mode; name another layer.") from error
    flow = Flow(network, x)
    seen = next((seen for seen in flow.seen if seen.name == name), None)
    found = None if seen is None else flow.laid_out(seen)
    require(
        found is not None,
        f"'{name}' gives {shape}, not maps (b, c, h, w) nor tokens (b, n, c) of a grid; name another layer.",
    )
    assert found is not None
    return found


def _has_weights(module: nn.Module) -> bool:
    return parametrize.is_parametrized(module) or next(module.parameters(recurse=False), None) is not None


def _equal_rows(out: Float[Tensor, "b n c"]) -> tuple[int, ...]:
    """The tokens that are the same for both images, at most half of them."""
    a, b = out.detach()
    rows = ((a - b).abs().amax(1) <= 1e-6 * a.abs().amax(1)).nonzero().flatten().tolist()
    return tuple(rows) if 2 * len(rows) < len(a) else ()
