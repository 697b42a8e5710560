"""BootstrapViT: a vision transformer learns from few images beside a convolutional agent, which is thrown away."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, NamedTuple, get_args

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from upcycle.core.advice import Fit, Situation
from upcycle.core.errors import UserError
from upcycle.core.losses import Terms
from upcycle.core.method import Card, Method, Needs
from upcycle.core.models import Model
from upcycle.core.ranges import ranges
from upcycle.core.recipe import Recipe
from upcycle.core.run import Run
from upcycle.core.taps import Taps
from upcycle.core.tokens import Blocks, blocks_of

if TYPE_CHECKING:
    from upcycle.data.images import Images

Mode = Literal["joint", "shared"]
Stem = Literal["patches", "convolutions"]
Norm = Literal["pre", "post"]
SQUARES = (4, 9, 16)
"""Numbers of heads whose positions fill a window: 2 x 2, 3 x 3, 4 x 4."""


def head_kernel(w_v: Float[Tensor, "d d"], w_o: Float[Tensor, "d d"], heads: int) -> Float[Tensor, "d d k k"]:
    """Make the kernel of the convolution that heads are: W_m = W_O^m W_V^m at position m of its window, row by row.

    Made of the weights by operations that gradients pass, so it has to be made anew in each step.

    Args:
        w_v: values, the rows of one head after those of another.
        w_o: output, the columns of one head after those of another.
        heads: k².
    """
    k, d = math.isqrt(heads), len(w_v)
    by_head = torch.einsum("ohe,hei->ohi", w_o.view(d, heads, -1), w_v.view(heads, -1, d))
    return by_head.reshape(d, k, k, d).permute(0, 3, 1, 2)


def generalised_convolution(
    x: Float[Tensor, "b d h w"], w_v: Float[Tensor, "d d"], w_o: Float[Tensor, "d d"], b_o: Tensor | None, heads: int
) -> Float[Tensor, "b d h w"]:
    """Conv(X) = Σ_m Φ_m X W_mᵀ + b_O: attention whose m-th head looks at one place, m of the window, and nowhere else.

    Beyond the border are zeros. The window is centred; one of even side reaches one place further up and to the left.

    Args:
        x: the map that the tokens X make.
        w_v, w_o, heads: see :func:`head_kernel`.
        b_o: bias of the output; b_V is left out, since rows of Φ sum to less than one at the border.
    """
    return _convolve(x, head_kernel(w_v, w_o, heads), b_o)


def _convolve(x: Float[Tensor, "b d h w"], kernel: Float[Tensor, "e d k k"], bias: Tensor | None) -> Tensor:
    """Convolve with zeros beyond the border; the window is that of :func:`generalised_convolution`."""
    before, after = kernel.shape[2] // 2, (kernel.shape[2] - 1) // 2
    if before == after:
        return F.conv2d(x, kernel, bias, padding=before)
    return F.conv2d(F.pad(x, (before, after, before, after)), kernel, bias)


def feature_loss(
    tokens: Sequence[Float[Tensor, "b n d"]], maps: Sequence[Float[Tensor, "b d _ _"]], grid: tuple[int, int]
) -> Float[Tensor, ""]:
    """L_feat = Σ_l MSE(LN(T_l), sg LN(C_l)), the mean over samples, places and channels of each block l.

    LN has no weights of its own, with which the loss would collapse. Where grids differ, the larger one is brought to
    the smaller by average pooling in two dimensions. Computed in float32 or better.

    Args:
        tokens: T, what the blocks of the transformer give for the places of its grid.
        maps: C, what those of the agent give; no gradient goes there.
        grid: rows and columns of the tokens.
    """
    wide = torch.float64 if tokens[0].dtype == torch.float64 else torch.float32
    total = torch.zeros((), dtype=wide, device=tokens[0].device)
    for t, c in zip(tokens, maps, strict=True):
        common = min(grid[0], c.shape[2]), min(grid[1], c.shape[3])
        of_t = _pooled(t.to(wide).transpose(1, 2).unflatten(2, grid), common)
        of_c = _pooled(c.detach().to(wide), common)
        total = total + F.mse_loss(of_t, of_c)
    return total


def _pooled(x: Float[Tensor, "b d h w"], size: tuple[int, int]) -> Float[Tensor, "b n d"]:
    """Bring a map to a smaller size, and normalise each place of it over its channels."""
    x = x if x.shape[2:] == size else F.adaptive_avg_pool2d(x, size)
    return F.layer_norm(x.flatten(2).transpose(1, 2), x.shape[1:2])


class Shared(NamedTuple):
    """The layers of a block of a transformer that its agent may share.

    Args:
        qkv: a linear layer whose last third of rows is W_V.
        out: the linear layer W_O with b_O.
        mlp: of tokens (..., d).
        heads: of the attention.
    """

    qkv: nn.Linear
    out: nn.Linear
    mlp: nn.Module
    heads: int


def shared_of(block: nn.Module) -> Shared | None:
    """Find the layers of a block by the names of ``zoo:vit_plain``, ``zoo:vit`` and timm; ``None`` where others are."""
    attention = getattr(block, "attention", None) or getattr(block, "attn", None)
    qkv, mlp = getattr(attention, "qkv", None), getattr(block, "mlp", None)
    out = getattr(attention, "out", None) or getattr(attention, "proj", None)
    heads = int(getattr(attention, "num_heads", 0) or getattr(attention, "split", (0, 0))[1])
    if not (isinstance(qkv, nn.Linear) and isinstance(out, nn.Linear) and isinstance(mlp, nn.Module) and heads):
        return None
    d = qkv.in_features
    fits = qkv.out_features == 3 * d and (out.in_features, out.out_features) == (d, d) and d % heads == 0
    return Shared(qkv, out, mlp, heads) if fits else None


class AgentBlock(nn.Module):
    """A block of the agent on maps (b, d, h, w): x + GConv(BN(x)), and then x + MLP(BN(x)).

    Args:
        layers: those of the transformer's block. Shared, they stay the transformer's; otherwise the block has layers
            of its own of the same sizes.
        shared: see there.
        norm: BatchNorm before each branch, or behind it.
    """

    def __init__(self, layers: Shared, shared: bool, norm: Norm) -> None:
        super().__init__()
        d = layers.out.in_features
        self.norm, self.heads = norm, layers.heads
        self.norm1, self.norm2 = nn.BatchNorm2d(d), nn.BatchNorm2d(d)
        self.lent = (layers,) if shared else ()  # in a tuple, so that they are no parameters of this module
        if not shared:
            k = math.isqrt(layers.heads)
            hidden = next(m.out_features for m in layers.mlp.modules() if isinstance(m, nn.Linear))
            self.convolution = nn.Conv2d(d, d, k)
            self.mlp = nn.Sequential(nn.Linear(d, hidden), nn.GELU(), nn.Linear(hidden, d))
            for m in self.modules():
                if isinstance(m, nn.Conv2d | nn.Linear) and m.bias is not None:
                    nn.init.xavier_uniform_(m.weight)
                    nn.init.zeros_(m.bias)

    def forward(self, x: Tensor) -> Tensor:
        if self.norm == "post":
            x = x + self.norm1(self.spread(x))
            return x + self.norm2(self.mix(x))
        x = x + self.spread(self.norm1(x))
        return x + self.mix(self.norm2(x))

    def spread(self, x: Tensor) -> Tensor:
        """The convolution in the place of attention."""
        if not self.lent:
            return _convolve(x, self.convolution.weight, self.convolution.bias)
        layers = self.lent[0]
        d = layers.out.in_features
        return generalised_convolution(x, layers.qkv.weight[2 * d :], layers.out.weight, layers.out.bias, self.heads)

    def mix(self, x: Tensor) -> Tensor:
        """The MLP of each place, which is two 1x1 convolutions."""
        mlp = self.lent[0].mlp if self.lent else self.mlp
        return mlp(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class Agent(nn.Module):
    """The convolutional agent of a vision transformer; images (b, c, h, w) to logits (b, k).

    Args:
        student: the transformer, whose blocks have layers that :func:`shared_of` knows.
        blocks: where they are.
        shared: its blocks use the transformer's weights.
        stem: patches, one convolution of the size of a patch; or convolutions, 7x7 of stride 2 with BatchNorm and GELU,
            max-pooling 3 of stride 2 and 3x3 of stride 2.
        pool_after: blocks, from 0, behind which maps are halved by average pooling.
        norm: see :class:`AgentBlock`.
    """

    def __init__(
        self, student: Model, blocks: Blocks, shared: bool, stem: Stem, pool_after: tuple[int, ...], norm: Norm
    ) -> None:
        super().__init__()
        (channels, h, w), d = student.input_shape, blocks.width
        patch = h // blocks.grid[0], w // blocks.grid[1]
        self.stem: nn.Module = nn.Conv2d(channels, d, patch, stride=patch)
        if stem == "convolutions":
            first = nn.Conv2d(channels, 64, 7, stride=2, padding=3, bias=False), nn.BatchNorm2d(64), nn.GELU()
            last = nn.MaxPool2d(3, stride=2, padding=1), nn.Conv2d(64, d, 3, stride=2, padding=1)
            self.stem = nn.Sequential(*first, *last)
        layers = [shared_of(student.module.get_submodule(name)) for name in blocks.names]
        self.blocks = nn.ModuleList(AgentBlock(one, shared, norm) for one in layers if one is not None)
        self.pools = nn.ModuleList(
            nn.AvgPool2d(2, ceil_mode=True) if i in pool_after else nn.Identity() for i in range(len(layers))
        )
        self.head = nn.Sequential(nn.BatchNorm2d(d), nn.GELU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.linear = nn.Linear(d, len(student.classes))

    def forward(self, images: Tensor) -> Tensor:
        x = self.stem(images)
        for block, pool in zip(self.blocks, self.pools, strict=True):
            x = pool(block(x))
        return self.linear(self.head(x))


def reset_faithfully(student: Model, blocks: Blocks) -> None:
    """Draw biases of MLPs from N(1e-6, 1) and the projection of patches from N(0, 1), as the authors' code does.

    That confuses mean and standard deviation of the biases, in transformer and baseline alike.
    """
    for name in blocks.names:
        for layer in student.module.get_submodule(name).mlp.modules():  # type: ignore[union-attr]
            if isinstance(layer, nn.Linear) and layer.bias is not None:
                nn.init.normal_(layer.bias, mean=1e-6, std=1.0)
    for m in student.module.modules():
        if isinstance(m, nn.Conv2d) and m.out_channels == blocks.width:
            nn.init.normal_(m.weight)


@dataclass(kw_only=True, eq=False, repr=False)
class BootstrapViT(Method):
    """Bootstrapping ViTs: Towards Liberating Vision Transformers from Pre-training (Zhang et al.; arXiv:2112.03552).

    Heads that look at one place of a window each are a convolution (:func:`generalised_convolution`), so a transformer
    V has an agent C, a convolutional network of its depth and width. Both see the same augmented images, and each step
    of epoch e of E descends

        L_V + L_C + w_feat (1 - e/E) L_feat,     L_V = w_ce CE(z_V, y) + w_kd T² KL(p_C || p_V),

    with L_C the other way round. What a network learns from is detached, and the gradient of L_feat
    (:func:`feature_loss`) reaches V alone; its weight falls to zero, so that V ends free of the agent. In mode joint
    the agent has weights of its own. In mode shared, the headline idea, its blocks use W_V, W_O, b_O and the MLPs of V,
    which then get the gradients of both, and every term weighs half, as in the paper. W_Q, W_K and b_V are V's alone.
    Published results are a little better with joint, which is the default. The product is V as it was built.

    Departures from the authors' code: one optimiser over all weights, which is two of the same recipe; no clipping of
    gradients, which they have in one of their settings; maps of other sizes are pooled in two dimensions, where they
    average consecutive tokens of rows; the stem is the projection of patches, where theirs is a ResNet's
    (``--stem convolutions``); in mode joint the agent's own weights begin as Xavier's. Dropout is the student's own.

    Args:
        student: a vision transformer of 4, 9 or 16 heads, as zoo:vit_plain and timm have them; fresh, as a rule.
        mode: joint, an agent with weights of its own; or shared, one that uses the student's.
        stem: how the agent reads images: patches, as a transformer, or convolutions, as a ResNet, at an eighth of the
            size.
        pool_after: blocks of the agent, from 0, behind which its maps are halved; the authors have 0 and 1 of 6.
        norm: BatchNorm of the agent before each branch (pre), or behind it (post).
        terms: temperature and weights of what each network learns from the other and from labels.
        w_feat: weight of the loss between features in the first epoch; it falls to zero.
        faithful_init: draw biases and patches as the authors' code does, which confuses a mean with a deviation.
        recipe: training of both networks; the authors have 240 epochs.
    """

    roles = ("student",)

    student: Model | nn.Module
    mode: Mode = "joint"
    stem: Stem = "patches"
    pool_after: tuple[int, ...] = ()
    norm: Norm = "pre"
    terms: Terms = field(default_factory=lambda: Terms(temperature=4.0, w_kd=1.0, w_ce=1.0))
    w_feat: float = 10.0
    faithful_init: bool = False
    recipe: Recipe = field(default_factory=lambda: Recipe(batch_size=64, optimizer="adamw", lr=1e-3, weight_decay=0.05))

    card = Card(
        name="bootstrapvit",
        title="Bootstrapping ViTs: Towards Liberating Vision Transformers from Pre-training",
        paper="Zhang, Duan, Xue, Song, Sun, Song; CVPR 2022; arXiv:2112.03552",
        verb="distill",
        needs=Needs(
            data="labelled", teacher="none", architectures="a vision transformer of timm or the zoo of 4, 9 or 16 heads"
        ),
        summary="A vision transformer from few labelled images, beside a convolutional agent that is thrown away.",
        cost="2.3 × student training",
        published="CIFAR-10 ViT-S 87.32 alone, 95.14 joint, 93.72 shared; CIFAR-100 61.25, 76.19, 75.50 (README)",
    )
    admits = frozenset({"mix", "sampler"})
    refuses = {"sharpness": "two networks learn from each batch, each from what the other answers"}

    @classmethod
    def serves(cls, have: Situation) -> Fit | str | None:
        """For labels and a student that is a transformer, above all without a teacher."""
        if have.goal not in ("smaller", "better"):
            return None
        if have.architecture != "transformer":
            return "it is for a student that is a vision transformer; ask with --architecture transformer."
        reason = (
            "for a vision transformer from few labelled images: a convolutional agent of its size learns beside it, "
            "and each from the other."
        )
        if have.teacher != "none":
            return Fit(32, f"{reason} The teacher is not used.", teacher=False)
        return Fit(6, reason, teacher=False)

    def __post_init__(self) -> None:
        ranges(
            self,
            not_negative=("pool_after", "w_feat"),
            one_of={"mode": get_args(Mode), "stem": get_args(Stem), "norm": get_args(Norm)},
        )

    def check(self, data: Images) -> list[str]:
        """At least one label, and a transformer whose heads fill a window."""
        student = self.model("student", data)
        if not (data.train.labels >= 0).any():
            return ["it learns from labels, and no training image has one"]
        if student.input_shape != data.shape:
            ours, theirs = (" x ".join(map(str, shape)) for shape in (student.input_shape, data.shape))
            return [f"{student.name} takes images of {ours}, and those of {data.name} are {theirs}"]
        try:
            blocks = blocks_of(student)
        except UserError as error:
            return [str(error).rstrip(".")]
        for name in blocks.names:
            layers = shared_of(student.module.get_submodule(name))
            if layers is None:
                return [
                    f"{student.name} has no attention with one linear layer qkv and one behind it, or no mlp, in "
                    f"{name}: take zoo:vit_plain, or one of timm that has them"
                ]
            if layers.heads not in SQUARES:
                return [
                    f"{student.name} has {layers.heads} heads in {name}, and only 4, 9 or 16 fill a square window, one "
                    "place each: take zoo:vit_plain, which has 9"
                ]
        if beyond := [i for i in self.pool_after if i >= len(blocks.names)]:
            last = len(blocks.names) - 1
            return [f"{student.name} has the blocks 0 to {last}, so pool_after cannot name {beyond[0]}"]
        return []

    def work(self, n: int, teacher: int, student: int) -> float:
        """That of the transformer, and of its agent, whose kernels of nine places cost a little more than attention."""
        return 2.3 * super().work(n, teacher, student)

    def agent(self, student: Model) -> Agent:
        """A fresh agent for a transformer."""
        shared = self.mode == "shared"
        return Agent(student, blocks_of(student), shared, self.stem, self.pool_after, self.norm)

    def fit(self, run: Run, data: Images) -> nn.Module:
        """The algorithm; returns the transformer."""
        model = self.model("student", data)
        blocks = blocks_of(model)
        if self.faithful_init:
            reset_faithfully(model, blocks)
        own = self.agent(model)
        vit, optimizer = run.setup(model.module, lambda vit: self.recipe.make([*vit.parameters(), *own.parameters()]))
        agent, _ = run.setup(own)
        inside = [f"blocks.{i}" for i in range(len(blocks.names))]
        share = 0.5 if self.mode == "shared" else 1.0
        for e in run.epochs(self.recipe.epochs):
            vit.train()
            agent.train()
            for images, y, _ in run.batches(data.train, self.recipe):
                with Taps(vit, blocks.names) as of_vit, Taps(agent, inside) as of_agent:
                    z_v, z_c = vit(images), agent(images)
                tokens = [of_vit[name][:, blocks.prefix :] for name in blocks.names]
                l_feat = feature_loss(tokens, [of_agent[name] for name in inside], blocks.grid)
                l_v, l_c = self.terms(z_v, z_c, y), self.terms(z_c, z_v, y)
                w_feat = self.w_feat * (1 - e / self.recipe.epochs)
                run.step(share * (l_v + l_c + w_feat * l_feat), optimizer, self.recipe)
                run.track(transformer_loss=l_v, agent_loss=l_c, feature_loss=l_feat)
            run.evaluate(vit, data.validation)
            run.evaluate(agent, data.validation, "agent")
        return run.plain(vit)
