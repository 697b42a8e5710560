"""Queries, keys and values of self-attention, read by one function from networks of several libraries.

What can be read is attention whose projections are layers of their own:

- one layer ``qkv``, whose output is (3, h, d_h) along its last axis, as in ``zoo:vit`` and timm;
- three layers ``q_proj``, ``k_proj`` and ``v_proj``, or ``query``, ``key`` and ``value``, as in transformers;
- :class:`torch.nn.MultiheadAttention`, as in torchvision, whose projection is computed from what it is given.

Norms of queries and keys, called ``q_norm`` and ``k_norm`` there, are part of what is read.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from upcycle.core.errors import UserError
from upcycle.core.frozen import Frozen
from upcycle.core.models import Model
from upcycle.core.taps import Call, Taps, observed
from upcycle.core.tokens import alike

PROJECTIONS = (("qkv",), ("q_proj", "k_proj", "v_proj"), ("query", "key", "value"))
"""The names of the layers that give queries, keys and values: one layer for all, or one for each."""
HEADS = ("num_heads", "num_attention_heads", "heads")
"""Names of the number of heads in a module of attention."""
CLOSE = 1e-3
"""How far the attention that is computed from what was read may lie from the network's, over its largest value."""


class Heads(NamedTuple):
    """Queries, keys and values of one block, in h heads of n tokens: (b, h, n, d_h) each."""

    q: Float[Tensor, "b h n d"]
    k: Float[Tensor, "b h n d"]
    v: Float[Tensor, "b h n d"]

    @property
    def scale(self) -> float:
        """d_h^-1/2, by which products of two tokens are multiplied."""
        return float(self.q.shape[-1] ** -0.5)

    def among(self, tokens: Sequence[int]) -> Heads:
        """The same of some tokens alone, in their order; of all where that is what is asked for."""
        if list(tokens) == list(range(self.q.shape[2])):
            return self
        index = torch.tensor(tokens, device=self.q.device)
        return Heads(*(t.index_select(2, index) for t in self))


@dataclass(frozen=True, kw_only=True)
class SelfAttention:
    """The self-attention of one block of a network, as taps read it.

    Args:
        name: of its module.
        layers: the names of the layers that are tapped: one for all three, one for each, or the module itself.
        kind: whether their output is read, or their input.
        heads: h, its own number of heads.
        width: D, of the queries of all heads together.
        tokens: n.
        beside: the places of tokens that are no part of the image: of a class, of registers.
        plain: whether it computes softmax(q kᵀ / √d_h) v of what is read and nothing else: no bias of positions in its
            scores, no rotated queries.
    """

    name: str
    layers: tuple[str, ...]
    kind: Literal["output", "input"]
    heads: int
    width: int
    tokens: int
    beside: tuple[int, ...]
    plain: bool

    @property
    def grid(self) -> tuple[int, ...]:
        """The places of the tokens that are parts of the image."""
        return tuple(i for i in range(self.tokens) if i not in self.beside)

    def read(self, network: nn.Module, images: Tensor, heads: int = 0) -> Heads:
        """Run a network on images up to its projections here, and give queries, keys and values with their graph.

        Args:
            network: the one that this was found in, or its frozen copy with the same submodules. Nothing behind the
                projections runs; it must not be compiled.
            images: a batch for it.
            heads: into how many heads to divide the width; 0 for its own number. Norms of queries and keys see its own.
        """
        inside = network.network if isinstance(network, Frozen) else network
        with Taps(inside, self.layers, kind=self.kind, stop=True) as taps:
            network(images)
        return divide(inside.get_submodule(self.name), [taps[name] for name in self.layers], self.heads, heads)


def divide(module: nn.Module, tapped: Sequence[Tensor], own: int, heads: int = 0) -> Heads:
    """Queries, keys and values in heads, from what was tapped of a module of attention.

    Args:
        module: of attention.
        tapped: (b, n, 3 D), or three times (b, n, D); of :class:`torch.nn.MultiheadAttention` its input.
        own: the number of heads that the module has.
        heads: into how many to divide the width in their place; 0 for its own.
    """
    if isinstance(module, nn.MultiheadAttention):
        x = tapped[0] if module.batch_first else tapped[0].transpose(0, 1)
        weight = module.in_proj_weight
        tapped = [F.linear(x.to(weight.dtype), weight, module.in_proj_bias)]
    q, k, v = tapped if len(tapped) == 3 else tapped[0].chunk(3, dim=-1)
    q, k = _normed(module, "q_norm", q, own), _normed(module, "k_norm", k, own)
    return Heads(*(t.unflatten(-1, (heads or own, -1)).transpose(1, 2) for t in (q, k, v)))


def _normed(module: nn.Module, name: str, t: Tensor, heads: int) -> Tensor:
    """Queries or keys (b, n, D) behind the norm of that name, which is one of each head, or of all together."""
    norm = getattr(module, name, None)
    if not isinstance(norm, nn.Module) or isinstance(norm, nn.Identity):
        return t
    weight = next(norm.parameters(), None)
    if weight is None:
        return norm(t.unflatten(-1, (heads, -1))).flatten(-2)
    t = t.to(weight.dtype)
    return norm(t) if len(weight) == t.shape[-1] else norm(t.unflatten(-1, (heads, -1))).flatten(-2)


def self_attentions(model: Model) -> list[SelfAttention]:
    """The blocks of a network whose queries, keys and values can be read, in the order in which they run.

    Found by one forward of two images. Left out is attention that runs several times in a forward, that is not among
    all tokens of an image (in windows), or whose queries and keys are of different tokens.

    Raises:
        UserError: there is none; the sentence says which layers the network has.
    """
    calls = observed(model)
    by_name: dict[str, list[Call]] = defaultdict(list)
    place = {call.name: i for i, call in enumerate(calls)}
    for call in calls:
        by_name[call.name].append(call)
    found: list[tuple[int, SelfAttention]] = []
    beside: dict[int, tuple[int, ...]] = {}
    modules = dict(model.module.named_modules())
    for name in sorted((name for name in modules if name in place), key=lambda name: place[name]):
        layers, kind = _layers(name, modules[name])
        seen = [by_name[layer] for layer in layers]
        heads = _number_of_heads(modules[name])
        if not layers or not heads or any(len(each) != 1 for each in seen):
            continue
        tapped = [each[0].output if kind == "output" else each[0].input for each in seen]
        whole = isinstance(modules[name], nn.MultiheadAttention) and not modules[name].batch_first
        if not all(isinstance(t, Tensor) and t.ndim == 3 and t.shape[1 if whole else 0] == 2 for t in tapped):
            continue
        width = tapped[0].shape[-1] // (3 if layers[0].rpartition(".")[2] == "qkv" else 1)
        if len({tuple(t.shape) for t in tapped}) > 1 or width % heads:
            continue
        with torch.no_grad():
            qkv = divide(modules[name], tapped, heads)
            plain = _is_plain(modules[name], qkv, [c for c in calls if c.name.startswith(name.rpartition(".")[0])])
        if isinstance(modules[name], nn.MultiheadAttention) and not plain:  # of other tokens, or of some of them
            continue
        n = qkv.q.shape[2]
        # Where they first occur, before any token has seen another.
        beside.setdefault(n, alike(qkv.q.transpose(1, 2).flatten(2)))
        found.append(
            (
                place[layers[-1]],
                SelfAttention(
                    name=name,
                    layers=layers,
                    kind=kind,
                    heads=heads,
                    width=width,
                    tokens=n,
                    beside=beside[n],
                    plain=plain,
                ),
            )
        )
    if not found:
        kinds = sorted({type(m).__name__ for m in modules.values() if not any(m.children())})
        raise UserError(
            f"{model.name} has no self-attention whose queries, keys and values can be read: one layer qkv, or q_proj, "
            "k_proj and v_proj, or query, key and value, over all tokens of an image, or a MultiheadAttention; its "
            f"layers are {', '.join(kinds)}."
        )
    return [attention for _, attention in sorted(found, key=lambda pair: pair[0])]


def _layers(name: str, module: nn.Module) -> tuple[tuple[str, ...], Literal["output", "input"]]:
    """The layers that are tapped of a module of attention, and whether their output is; none of any other module."""
    if isinstance(module, nn.MultiheadAttention):
        return ((name,) if module.in_proj_weight is not None and module.bias_k is None else ()), "input"
    prefix = f"{name}." if name else ""
    for names in PROJECTIONS:
        if all(isinstance(getattr(module, one, None), nn.Module) for one in names):
            return tuple(f"{prefix}{one}" for one in names), "output"
    return (), "output"


def _number_of_heads(module: nn.Module) -> int:
    """h as a module of attention says it; 0 where it does not."""
    found = next((value for name in HEADS if isinstance(value := getattr(module, name, None), int)), 0)
    split = getattr(module, "split", None)  # of zoo:vit: (3, h, d_h)
    return int(split[1]) if not found and isinstance(split, tuple) and len(split) == 3 else found


def _is_plain(module: nn.Module, qkv: Heads, calls: Sequence[Call]) -> bool:
    """Whether softmax(q kᵀ / √d_h) v is what comes out of attention, or what a layer near it is given.

    Args:
        calls: of the modules in the same block.
    """
    made = ((qkv.q @ qkv.k.mT * qkv.scale).softmax(-1) @ qkv.v).transpose(1, 2).flatten(2)
    if isinstance(module, nn.MultiheadAttention):
        made = module.out_proj(made) if module.batch_first else module.out_proj(made).transpose(0, 1)
    near = [t for c in calls for t in (c.input, c.output[0] if isinstance(c.output, tuple) else c.output)]
    return any(isinstance(t, Tensor) and t.shape == made.shape and _close(made, t) for t in near)


def _close(a: Tensor, b: Tensor) -> bool:
    scale = float(b.abs().max())
    return math.isfinite(scale) and float((a - b).abs().max()) <= CLOSE * scale
