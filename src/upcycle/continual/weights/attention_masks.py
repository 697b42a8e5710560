"""Masks over a frozen vision transformer: which weights are used, and which tokens attention may read (MEAT).

A mask of a network is one vector of zeros and ones, :class:`Sites` says which entry is what. Nothing in the network is
changed by it: :meth:`Sites.tensors` makes the tensors that stand in their place for one forward.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, get_args

import torch
from jaxtyping import Bool, Float, UInt8
from torch import Tensor, nn
from torch.func import functional_call

from upcycle.core.errors import require
from upcycle.core.heads import classifier, linear
from upcycle.core.models import Model, copy_of
from upcycle.core.undisturbed import undisturbed

Masks = Literal["meat", "all", "none"]
EPSILON = 1e-6
TOLERANCE = 1e-3
"""Largest relative difference of logits between a network and itself with attention of ours, nothing hidden."""


# -- the pure parts -----------------------------------------------------------------------------


def masked_softmax(s: Float[Tensor, "b h n n"], policy: Float[Tensor, " n"]) -> Float[Tensor, "b h n n"]:
    """A_ij = (Ŝ_ij + ε/n) / (Σ_j Ŝ_ij + ε), where Ŝ_ij = exp(S_ij - max_j S_ij) G_ij and G_ij = π_j, G_ii = 1.

    A token that the policy hides is no key for the others, but sees itself and all that is not hidden. The mask comes
    behind the exponential: a score times 0 would still weigh exp 0.

    Args:
        s: scores S.
        policy: π, zeros and ones.

    Returns:
        float32 (float64 for float64): rows that sum to 1.
    """
    s = s.to(torch.float64 if s.dtype == torch.float64 else torch.float32)
    policy, n = policy.to(s.dtype), s.shape[-1]
    own = torch.eye(n, dtype=s.dtype, device=s.device)
    e = (s - s.detach().amax(-1, keepdim=True)).exp() * (policy + (1 - policy) * own)
    return (e + EPSILON / n) / (e.sum(-1, keepdim=True) + EPSILON)


def sample_mask(a: Float[Tensor, " n"], tau: float, generator: torch.Generator) -> Float[Tensor, " n"]:
    """m = 1[a + g₁ > b + g₂] with Gumbel noise g, backward through the soft probability (hard Gumbel-softmax).

    b = -a is not stored: both logits begin at ±γ and always get opposite gradients, so any optimiser without decay
    keeps them apart so. The difference of two Gumbel variables is one logistic variable. Half of the probability's
    gradient is a's, the other half b's.

    Args:
        a: logits.
        tau: temperature τ of the soft probability σ((a - b + g₁ - g₂) / τ).
        generator: on the device of ``a``.
    """
    x = 2 * a + torch.rand(a.shape, generator=generator, device=a.device).logit()
    soft = (x / tau).sigmoid() / 2
    return (x.detach() > 0).to(a.dtype) + (soft - soft.detach())


def share_penalty(tokens: Sequence[Float[Tensor, " n"]], kappa: float) -> Float[Tensor, ""]:
    """Σ_l (mean(m_l) - κ)² over token masks m_l."""
    return torch.stack([(m.mean() - kappa).square() for m in tokens]).sum()


def pack_bits(bits: Tensor) -> UInt8[Tensor, " bytes"]:
    """Bits (n,), eight to a byte, the first one lowest."""
    spread = nn.functional.pad(bits.to(torch.uint8), (0, -len(bits) % 8)).view(-1, 8)
    return (spread * _powers(bits.device)).sum(1, dtype=torch.uint8)


def unpack_bits(content: UInt8[Tensor, " bytes"], n: int) -> Bool[Tensor, " n"]:
    """The inverse of :func:`pack_bits`."""
    return (torch.bitwise_and(content[:, None], _powers(content.device)) > 0).flatten()[:n]


def _powers(device: torch.device) -> Tensor:
    return torch.tensor([1, 2, 4, 8, 16, 32, 64, 128], dtype=torch.uint8, device=device)


def jaccard(a: Tensor, b: Tensor) -> float:
    """|a ∩ b| / |a ∪ b| of two vectors of bits; 1 where both are empty."""
    either = int((a.bool() | b.bool()).sum())
    return int((a.bool() & b.bool()).sum()) / either if either else 1.0


# -- where masks go -----------------------------------------------------------------------------


class PolicyAttention(nn.Module):
    """Self-attention of tokens (b, n, d) whose policy hides keys; its layers keep the names that they had.

    Args:
        attention: of timm or of zoo:vit; what it consists of is taken over.
        tokens: n.
    """

    policy: Tensor

    def __init__(self, attention: nn.Module, tokens: int) -> None:
        super().__init__()
        for name, layer in attention.named_children():
            self.add_module(name, layer)
        self.num_heads = int(getattr(attention, "num_heads", 0) or attention.split[1])  # type: ignore[index]
        self.register_buffer("policy", torch.ones(tokens), persistent=False)

    def forward(self, x: Tensor, attn_mask: None = None, is_causal: bool = False) -> Tensor:
        q, k, v = self.get_submodule("qkv")(x).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        q, k = self._through(q, "q_norm"), self._through(k, "k_norm")
        a = masked_softmax(q @ k.transpose(2, 3) * q.shape[-1] ** -0.5, self.policy)
        x = (a.to(v.dtype) @ v).transpose(1, 2).flatten(2)
        return self._through(x, "norm", "proj", "out", "proj_drop")

    def _through(self, x: Tensor, *names: str) -> Tensor:
        for name in names:
            if name in self._modules:
                x = self.get_submodule(name)(x)
        return x


@dataclass(frozen=True)
class Sites:
    """The places of a network that masks go to, in the order of their bits: weights, then tokens.

    Args:
        weights: the parameters that are masked, and their shapes.
        policies: the policies of attention.
        tokens: image tokens of each policy.
        prefix: tokens before them that nothing hides: the class token and registers.
    """

    weights: dict[str, tuple[int, ...]]
    policies: tuple[str, ...]
    tokens: int
    prefix: int

    @property
    def bits(self) -> int:
        """n: how many bits a mask has."""
        return sum(self._sizes)

    @cached_property
    def _sizes(self) -> list[int]:
        return [*(torch.Size(shape).numel() for shape in self.weights.values()), *[self.tokens] * len(self.policies)]

    def parts(self, mask: Tensor) -> dict[str, Tensor]:
        """Split a mask (n,) into those of each weight, in its shape, and of the image tokens (N,) of each policy."""
        found = dict(zip((*self.weights, *self.policies), mask.split(self._sizes), strict=True))
        return {name: m.view(self.weights.get(name, (-1,))) for name, m in found.items()}

    def tensors(self, net: nn.Module, mask: Tensor) -> dict[str, Tensor]:
        """Make the tensors that take the place of weights and policies of ``net``: M ⊙ W, and π = (1, m)."""
        parts = self.parts(mask)
        made = {name: parts[name] * net.get_parameter(name) for name in self.weights}
        for name in self.policies:
            made[name] = torch.cat([parts[name].new_ones(self.prefix), parts[name]])
        return made

    def storage(self, width: int, classes: int) -> int:
        """Bits that one task takes: its masks, and a head in float32 for features of ``width``."""
        return self.bits + 32 * (width + 1) * classes


def default_blocks(depth: int) -> tuple[int, ...]:
    """Blocks at a quarter, half and three quarters of the depth, from 0: 3, 6 and 9 of 12."""
    return tuple(sorted({depth * i // 4 for i in (1, 2, 3)}))


def mask_problems(model: Model, masks: Masks, blocks: tuple[int, ...] | None) -> list[str]:
    """The reasons why a network cannot be masked, in words."""
    what = f"{model.name} is no vision transformer of timm and no zoo:vit"
    found = getattr(model.module, "blocks", None)
    if not isinstance(found, nn.Sequential | nn.ModuleList) or not len(found):
        return [f"{what}: it has no blocks"]
    if bad := [i for i in blocks or () if not 0 <= i < len(found)]:
        return [f"{model.name} has the blocks 0 to {len(found) - 1}, so there is no block {bad[0]}; change --blocks"]
    for i, block in enumerate(found):
        attention, mlp = getattr(block, _attention(block), None), getattr(block, "mlp", None)
        heads = hasattr(attention, "num_heads") or hasattr(attention, "split")
        if not isinstance(getattr(attention, "qkv", None), nn.Linear) or not heads:
            return [f"{what}: block {i} has no attention with one layer qkv"]
        if mlp is None or sum(isinstance(m, nn.Linear) for m in mlp.children()) != 2:
            return [f"{what}: block {i} has no mlp of two linear layers"]
    with undisturbed(model.module):
        x = model.example().to(next(model.module.parameters()))
        z = model.module(x)
        try:
            again = Masked(dataclasses.replace(model, module=copy_of(model.module).eval()), (), masks, blocks)(x)
        except (RuntimeError, TypeError, ValueError) as error:
            return [f"{what}: with masks in its attention it fails ({error})"]
    if not bool((z - again).abs().max() <= TOLERANCE * z.abs().max().clamp_min(1e-6)):
        return [f"{what}: its attention computes something else than softmax(QKᵀ/√d) V"]
    return []


def _attention(block: nn.Module) -> str:
    return "attn" if hasattr(block, "attn") else "attention"


def _probed(model: Model, attention: str) -> tuple[int, int]:
    """Tokens and outputs of a network."""
    seen: list[int] = []
    hook = model.module.get_submodule(attention).register_forward_pre_hook(lambda m, x: seen.append(x[0].shape[1]))
    try:
        with undisturbed(model.module):
            z = model.module(model.example().to(next(model.module.parameters())))
    finally:
        hook.remove()
    return seen[0], z.shape[1]


def with_policies(model: Model, masks: Masks, blocks: tuple[int, ...] | None) -> tuple[Sites, int]:
    """Put attention that can hide tokens into the chosen blocks of a network.

    Args:
        masks: ``meat`` for the two layers of each feed-forward part and for tokens; ``all`` for every linear layer of
            the blocks, and no tokens; or ``none``.
        blocks: whose tokens are masked; :func:`default_blocks` if not given.

    Returns:
        where masks go, and the number of outputs.
    """
    require(masks in get_args(Masks), f"masks must be one of {', '.join(get_args(Masks))}, not '{masks}'.")
    net: Any = model.module
    chosen = default_blocks(len(net.blocks)) if blocks is None else blocks
    tokens, outputs = _probed(model, f"blocks.0.{_attention(net.blocks[0])}")
    weights: dict[str, tuple[int, ...]] = {}
    for i in range(len(net.blocks)):
        part = {"meat": f"blocks.{i}.mlp", "all": f"blocks.{i}", "none": ""}[masks]
        layers = net.get_submodule(part).named_modules() if part else ()
        weights |= {f"{part}.{name}.weight": tuple(m.weight.shape) for name, m in layers if isinstance(m, nn.Linear)}
    policies = []
    for i in sorted(chosen) if masks == "meat" else ():
        name = f"blocks.{i}.{_attention(net.blocks[i])}"
        attention = PolicyAttention(net.get_submodule(name), tokens)
        net.set_submodule(name, attention.to(next(net.parameters())).train(net.training))
        policies.append(f"{name}.policy")
    prefix = int(getattr(net, "num_prefix_tokens", 0))
    return Sites(weights, tuple(policies), tokens - prefix, prefix), outputs


class Masked(nn.Module):
    """A frozen transformer with a mask for each task: images (b, c, h, w) to logits (b, k) over all classes.

    Runs the network once under each task's mask and takes the outputs of the task's classes, so T tasks take T
    forwards; :meth:`told` takes one. Outputs of different tasks come from different masks and were never trained
    against each other. Classes of no task are answered without a mask.

    Args:
        model: its module is taken over.
        tasks: columns of each task.
        masks: kind of masks, see :func:`with_policies`.
        blocks: blocks whose tokens are masked, see there.
    """

    off: Tensor
    order: Tensor
    place: Tensor

    def __init__(
        self, model: Model, tasks: Sequence[Sequence[int]], masks: Masks, blocks: tuple[int, ...] | None
    ) -> None:
        super().__init__()
        self.head = classifier(model)
        self.sites, k = with_policies(model, masks, blocks)
        self.net, self.masks, self.blocks = model.module, masks, blocks
        self.tasks = tuple(tuple(columns) for columns in tasks)
        learnt = [column for columns in self.tasks for column in columns]
        rest = sorted(set(range(k)) - set(learnt))
        self.sizes = [*map(len, self.tasks), *[len(rest)] * bool(rest)]
        order = torch.tensor([*learnt, *rest])
        if not torch.equal(order.sort().values, torch.arange(k)):
            raise ValueError(f"the tasks {self.tasks} do not divide {k} outputs")
        self.register_buffer("order", order, persistent=False)  # columns as they are answered
        self.register_buffer("place", order.argsort(), persistent=False)
        # Bits that are off, so that zeros mean a network without masks.
        self.register_buffer("off", torch.zeros(len(self.tasks), -(-self.sites.bits // 8), dtype=torch.uint8))

    def forward(self, images: Tensor) -> Tensor:
        return torch.cat([self.told(images, t) for t in range(len(self.sizes))], 1).index_select(1, self.place)

    def told(self, images: Tensor, t: int) -> Tensor:
        """The logits (b, classes of task t) under its mask; after the last task, of the other classes without one.

        Only the rows of the task take part, so that the bits of an answer do not depend on how many tasks there are.

        Raises:
            UserError: a task that was never learnt.
        """
        require(
            0 <= t < len(self.sizes),
            f"The network has learnt the tasks 0 to {len(self.tasks) - 1}, so it cannot answer for task {t}.",
        )
        net, tensors = self.net, {}
        if t < len(self.tasks):
            mask = ~unpack_bits(self.off[t], self.sites.bits)
            tensors = self.sites.tensors(net, mask.to(net.get_parameter(f"{self.head}.weight").dtype))
        first = sum(self.sizes[:t])
        rows = self.order[first : first + self.sizes[t]]
        head = net.get_submodule(self.head).named_parameters()
        tensors |= {f"{self.head}.{name}": p.index_select(0, rows) for name, p in head}
        return functional_call(net, tensors, (images,))

    def held(self, n: int) -> int:
        """The bytes that the first n tasks take."""
        width = linear(self.net, self.head).in_features
        return sum(-(-self.sites.storage(width, len(columns)) // 8) for columns in self.tasks[:n])


class WithTask(nn.Module):
    """A masked network that answers as if each image were of task t: -inf for the classes of others."""

    def __init__(self, masked: Masked, t: int) -> None:
        super().__init__()
        self.masked, self.t = masked, t

    def forward(self, images: Tensor) -> Tensor:
        z = self.masked.told(images, self.t)
        whole = z.new_full((len(z), len(self.masked.order)), -torch.inf)
        whole[:, list(self.masked.tasks[self.t])] = z
        return whole


def rebuild_masked(
    source: dict[str, Any],
    tasks: list[list[int]],
    masks: Masks,
    blocks: list[int] | None,
    rebuild: Callable[[dict[str, Any]], Model],
) -> nn.Module:
    """Build the architecture of a masked network from its record; see :mod:`upcycle.continual.weights.operations`."""
    model = rebuild(source)
    chosen = None if blocks is None else tuple(map(int, blocks))
    if problems := mask_problems(model, masks, chosen):
        raise ValueError(problems[0])
    return Masked(model, tasks, masks, chosen)
