"""Masks, patches, decoders, and a network that follows another: what masked autoencoders consist of."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from upcycle.core.tokens import Blocks, encode
from upcycle.zoo.vit import Block

Grid = tuple[int, int]


def visible_places(noise: Float[Tensor, "b g"], grid: Grid, side: int, keep: int) -> Int[Tensor, "b v"]:
    """Choose the places of the tokens that stay visible, ascending: those of the groups with the smallest noise.

    Args:
        noise: a number for each group of side x side tokens, row by row.
        grid: rows and columns of the tokens.
        side: of a group, which divides both.
        keep: groups that stay of each image.
    """
    rows, columns = grid
    places = torch.arange(rows * columns, device=noise.device).view(rows // side, side, columns // side, side)
    of_groups = places.transpose(1, 2).reshape(-1, side * side)
    chosen = noise.argsort(dim=1, stable=True)[:, :keep]
    return of_groups[chosen].flatten(1).sort(1).values


def hidden_places(keep: Int[Tensor, "b v"], n: int) -> Int[Tensor, "b m"]:
    """Give the places of 0 to n - 1 that are not in ``keep``, ascending."""
    hidden = torch.ones(len(keep), n, dtype=torch.bool, device=keep.device).scatter_(1, keep, False)
    return hidden.nonzero()[:, 1].view(len(keep), -1)


def patches_of(images: Float[Tensor, "b c h w"], grid: Grid) -> Float[Tensor, "b n p"]:
    """Cut images into patches: the pixels of each, row by row, channels last."""
    rows, columns = grid
    x = images.unflatten(3, (columns, -1)).unflatten(2, (rows, -1))
    return x.permute(0, 2, 4, 3, 5, 1).flatten(3).flatten(1, 2)


def images_of(patches: Float[Tensor, "b n p"], grid: Grid, shape: tuple[int, int, int]) -> Float[Tensor, "b c h w"]:
    """Put patches together again, see :func:`patches_of`; ``shape`` is (c, h, w)."""
    (rows, columns), (c, h, w) = grid, shape
    x = patches.view(-1, rows, columns, h // rows, w // columns, c)
    return x.permute(0, 5, 1, 3, 2, 4).reshape(-1, c, h, w)


def standardised(patches: Float[Tensor, "b n p"]) -> tuple[Tensor, Tensor, Tensor]:
    """Divide each patch less its mean by sqrt(variance + 1e-6), unbiased; give the mean and the divisor too."""
    mean = patches.mean(2, keepdim=True)
    divisor = (patches.var(2, keepdim=True) + 1e-6).sqrt()
    return (patches - mean) / divisor, mean, divisor


def positions(grid: Grid, width: int, prefix: int) -> Float[Tensor, "1 t d"]:
    """Make fixed positions: sines and cosines of columns, then of rows; zeros for the tokens before those of the image.

    Args:
        grid: rows and columns.
        width: d, a multiple of 4.
        prefix: tokens before those of the image.
    """
    omega = 10_000.0 ** -(torch.arange(width // 4, dtype=torch.float64) / (width // 4))
    rows, columns = torch.meshgrid(*(torch.arange(n, dtype=torch.float64) for n in grid), indexing="ij")
    angles = [axis.flatten()[:, None] * omega for axis in (columns, rows)]
    table = torch.cat([f(a) for a in angles for f in (torch.sin, torch.cos)], 1)
    return torch.cat([table.new_zeros(prefix, width), table])[None].float()


class Decoder(nn.Module):
    """From the visible tokens of an encoder to a vector for each place of the image.

    Tokens of another width, one learnt token at each hidden place, fixed positions, blocks, LayerNorm, a linear layer.

    Args:
        blocks: of the encoder.
        width: of its own tokens, a multiple of 4; a head has 32 of it.
        depth: blocks of its own.
        outputs: numbers of each place.
    """

    position: Tensor

    def __init__(self, blocks: Blocks, width: int, depth: int, outputs: int) -> None:
        super().__init__()
        self.prefix, self.places = blocks.prefix, blocks.places
        self.embed = nn.Linear(blocks.width, width)
        self.hidden = nn.Parameter(torch.empty(1, 1, width))
        self.register_buffer("position", positions(blocks.grid, width, blocks.prefix), persistent=False)
        self.blocks = nn.Sequential(*(Block(width, heads_of(width), ratio=4, bias=True) for _ in range(depth)))
        self.norm = nn.LayerNorm(width)
        self.out = nn.Linear(width, outputs)
        nn.init.normal_(self.hidden, std=0.02)
        draw(self)

    def forward(self, z: Float[Tensor, "b t d"], keep: Int[Tensor, "b v"]) -> Float[Tensor, "b n p"]:
        """See the class.

        Args:
            z: tokens of the encoder, those before the image's and then those of the visible places.
            keep: the visible places, ascending.
        """
        x = self.embed(z)
        places = keep[..., None].expand(-1, -1, x.shape[2])
        hidden = self.hidden.to(x.dtype).expand(len(x), self.places, -1)
        x = torch.cat([x[:, : self.prefix], hidden.scatter(1, places, x[:, self.prefix :])], 1) + self.position
        return self.out(self.norm(self.blocks(x)))[:, self.prefix :]


def heads_of(width: int) -> int:
    """Give a number of heads of 32 each, or of the nearest width that divides."""
    return next(heads for heads in range(max(width // 32, 1), 0, -1) if width % heads == 0)


def draw(module: nn.Module) -> None:
    """Draw Xavier uniform weights and zero biases for every linear layer."""
    for m in module.modules():
        if isinstance(m, nn.Linear):
            nn.init.xavier_uniform_(m.weight)
            if m.bias is not None:
                nn.init.zeros_(m.bias)


def projection(inputs: int, hidden: int, outputs: int) -> nn.Sequential:
    """Make Linear, BatchNorm, ReLU, and Linear without a bias."""
    made = nn.Sequential(
        nn.Linear(inputs, hidden), nn.BatchNorm1d(hidden), nn.ReLU(), nn.Linear(hidden, outputs, bias=False)
    )
    draw(made)
    return made


class Online(nn.Module):
    """The contrastive branch on the visible tokens: p_s = Pred(Proj(mean of the places of Gf(z))).

    Args:
        blocks: of the encoder, whose width d Gf gives for each place.
        width, depth: of Gf.
        size: of p_s; hidden layers have 2 d.
    """

    def __init__(self, blocks: Blocks, width: int, depth: int, size: int) -> None:
        super().__init__()
        d = blocks.width
        self.decoder = Decoder(blocks, width, depth, d)
        self.projector = projection(d, 2 * d, size)
        self.predictor = projection(size, 2 * d, size)

    def forward(self, z: Float[Tensor, "b t d"], keep: Int[Tensor, "b v"]) -> Float[Tensor, "b k"]:
        return self.predictor(self.projector(self.decoder(z, keep).mean(1)))


class Target(nn.Module):
    """The branch that follows: z_t = Proj_t(mean of the places of the encoder without its last LayerNorm).

    Its weights begin as those of the online branch and get no gradient; :meth:`follow` moves them. Its BatchNorm uses
    the statistics of its own batches, and its running statistics are its own.

    Args:
        network: the encoder, which is copied.
        online: whose projector is copied.
        blocks: of the encoder.
    """

    def __init__(self, network: nn.Module, online: Online, blocks: Blocks) -> None:
        super().__init__()
        self.network, self.projector = copy.deepcopy(network), copy.deepcopy(online.projector)
        self.blocks = blocks
        self.requires_grad_(False)

    def forward(self, images: Tensor) -> Float[Tensor, "b k"]:
        tokens = encode(self.network, images, self.blocks, self.blocks.names[-1])
        return self.projector(tokens[:, self.blocks.prefix :].mean(1))

    def follow(self, network: nn.Module, online: Online, m: float) -> None:
        """Move by θ_t = m θ_t + (1 - m) θ_s, parameter by parameter of the same name; buffers stay."""
        average(self.network, network, m)
        average(self.projector, online.projector, m)


@torch.no_grad()
def average(target: nn.Module, source: nn.Module, m: float) -> None:
    """Move parameters by θ_t = m θ_t + (1 - m) θ_s, those of two modules matched by name.

    Raises:
        KeyError: the source lacks one.
    """
    ours, theirs = dict(target.named_parameters()), dict(source.named_parameters())
    torch._foreach_lerp_([*ours.values()], [theirs[name].detach() for name in ours], 1 - m)


def trained(network: nn.Module, images: Tensor, blocks: Blocks, last: str) -> list[nn.Parameter]:
    """Find the parameters of an encoder that its tokens depend on: not those of what comes behind them.

    Args:
        network: the encoder, in evaluation mode.
        images: a batch for it.
        blocks, last: see :func:`encode`.
    """
    own = [p for p in network.parameters() if p.requires_grad]
    with torch.enable_grad():
        tokens = encode(network, images, blocks, last)
        grads = torch.autograd.grad(tokens.float().square().sum(), own, allow_unused=True)
    return [p for p, g in zip(own, grads, strict=True) if g is not None]


def groups_of(parameters: Iterable[nn.Parameter], **options: Any) -> list[dict[str, Any]]:
    """Divide parameters into matrices and kernels, which decay, and norms, biases, tokens and positions, which do not.

    Args:
        options: of every group.
    """
    own = list(parameters)
    return [
        {"params": [p for p in own if p.ndim in (2, 4)], **options},
        {"params": [p for p in own if p.ndim not in (2, 4)], "weight_decay": 0.0, **options},
    ]
