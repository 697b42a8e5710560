"""Poll and pool: fewer tokens for what follows, the informative ones kept and the others summed up in a few.

Wang, Yuan, Chen, Feng, Yan, "PnP-DETR: Towards Efficient Visual Analysis with Transformers" (ICCV 2021,
arXiv:2109.07036). A score of each token decides which are *polled*: kept, times their score, through which alone the
score gets a gradient. The others are *pooled* into M vectors by M weighted means. One network serves any ratio of
polled tokens, which may be set at any time (:func:`~upcycle.surgery.ratio.set_ratio`).

Symbols follow the paper; facts that it leaves open are those of its code (github.com/twangnh/pnp-detr).

In a trained network (:class:`PollAndPool`) it starts at ratio 1 as the identity. Departures for that: tokens are not
normalised, so that polled ones are what the network knows; the score is σ(.) / σ(b0) with a last layer of weight 0
and bias b0, so that it is 1 at first; at ratio 1 nothing is left to be pooled, and there are no pooled vectors, where
the paper has a fixed number. A pooled vector starts as a mean of tokens: Wv as the identity. The paper's sampler
stands before a detector's encoder; its transfer to a ViT is not in its code and is reconstructed here: class tokens are
kept aside, and positions are in the tokens already. Wv is applied to the M means and not to each token, which is the
same, since the weights of a mean sum to 1.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from upcycle.core.errors import require
from upcycle.surgery.inserts.base import Block, How, Insert, Place, Start
from upcycle.surgery.signals import Signal

PAPER = "Wang, Yuan, Chen, Feng, Yan; arXiv:2109.07036"
LEAST, MOST = 1 / 3, 0.8
"""The ratios that training draws from."""
ALMOST = 1e-3
"""By how much of a token ratio * L may miss a whole number for that to count: ratios are no binary numbers."""


# -- the sampler, as functions ----------------------------------------------------------------------------------------


def number_polled(ratio: float, tokens: int) -> int:
    """floor(ratio * tokens), at least 1."""
    return max(1, math.floor(ratio * tokens + ALMOST))


def numbers_polled(ratio: float, padding: Bool[Tensor, "b l"]) -> Int[Tensor, " b"]:
    """n_b = floor(ratio * real tokens), at least 1, for each sample of a mixed batch.

    Args:
        ratio: the share of tokens that are polled.
        padding: true where there is no token.
    """
    real = (~padding).sum(1)
    return (ratio * real.double() + ALMOST).floor().long().clamp(min=1)


def ranks(s: Float[Tensor, "b l"], padding: Bool[Tensor, "b l"] | None = None) -> Int[Tensor, "b l"]:
    """Places of the tokens, by falling score; padding comes last, and equal scores stay in order.

    So a larger ratio polls the same tokens and some more. No gradient passes.

    Args:
        s: scores in (0, 1).
        padding: true where there is no token.
    """
    s = s.detach()
    if padding is not None:
        s = s.masked_fill(padding, -1)
    return s.sort(dim=1, descending=True, stable=True).indices


def take(x: Float[Tensor, "b l c"], index: Int[Tensor, "b n"]) -> Float[Tensor, "b n c"]:
    """The tokens at these places."""
    return x.gather(1, index[:, :, None].expand(-1, -1, x.shape[2]))


def poll(x: Float[Tensor, "b l c"], s: Float[Tensor, "b l"], index: Int[Tensor, "b n"]) -> Float[Tensor, "b n c"]:
    """Tokens at these places times their score, by which the score learns."""
    return take(x, index) * s.gather(1, index)[:, :, None]


def pool(
    x: Float[Tensor, "b r c"], a: Float[Tensor, "b r m"], absent: Bool[Tensor, "b r"] | None = None
) -> tuple[Float[Tensor, "b m c"], Float[Tensor, "b r m"]]:
    """M weighted means over the tokens that are left, and their weights; zeros where none is left.

    Args:
        x: tokens.
        a: logits of the weights, Wa x.
        absent: true where a slot holds no token that is left: a polled one, or padding.
    """
    if absent is not None:
        a = a.masked_fill(absent[:, :, None], -torch.inf)
        # A row without any token would be 0 / 0.
        a = a.masked_fill(absent.all(1)[:, None, None], 0)
    weights = a.softmax(dim=1)
    if absent is not None:
        weights = weights.masked_fill(absent[:, :, None], 0)
    return weights.transpose(1, 2) @ x, weights


class Sample(NamedTuple):
    """Tokens of a batch, polled and pooled.

    Args:
        tokens: (b, n + M, c), the polled ones first; without any to pool (b, n, c).
        empty: a mask of keys, (b, n + M), true where a slot holds nothing: there was less to poll, or nothing to pool.
        positions: as ``tokens``, of what was given with them; ``None`` if nothing was.
        polled: places of the polled tokens, (b, n).
        weights: of the tokens that are left in each pooled vector, (b, r, M), by falling score.
    """

    tokens: Tensor
    empty: Tensor
    positions: Tensor | None
    polled: Tensor
    weights: Tensor


def sample(
    x: Float[Tensor, "b l c"],
    s: Float[Tensor, "b l"],
    weigh: Callable[[Tensor], Tensor] | None,
    value: Callable[[Tensor], Tensor],
    ratio: float,
    padding: Bool[Tensor, "b l"] | None = None,
    positions: Float[Tensor, "b l c"] | None = None,
    by: Float[Tensor, "b l"] | None = None,
) -> Sample:
    """Poll and pool a batch.

    Samples with padding have fewer tokens to poll than others: as many are taken as the largest number, from the
    smallest on all are pooled, and masks see to it that each token is used once.

    Args:
        x: tokens.
        s: scores, which the polled tokens are multiplied with.
        weigh: Wa, to M logits; ``None``: nothing is pooled.
        value: Wv.
        ratio: the share of tokens that are polled.
        padding: true where there is no token.
        positions: what is sampled alongside, by the same places and weights, but never scaled.
        by: what the tokens are ordered by, if not by their scores.
    """
    # Shapes, and never len(x), which would fix the size of a batch in an exported program.
    index, length = ranks(s if by is None else by, padding), x.shape[1]
    if padding is None:
        most = least = number_polled(ratio, length)
        slots = x.new_zeros((x.shape[0], most), dtype=torch.bool)
    else:
        n = numbers_polled(ratio, padding)
        most, least = int(n.max()), int(n.min())
        slots = torch.arange(most, device=x.device) >= torch.minimum(n, (~padding).sum(1))[:, None]
    polled, rest = index[:, :most], index[:, least:]
    tokens, weights = [poll(x, s, polled)], x.new_zeros((x.shape[0], rest.shape[1], 0))
    where = [] if positions is None else [take(positions, polled)]
    empty = [slots]
    if weigh is not None and rest.shape[1]:
        absent = None
        if padding is not None:
            place = torch.arange(least, length, device=x.device)
            absent = (place < n[:, None]) | padding.gather(1, rest)
        left = take(x, rest)
        pooled, weights = pool(left, weigh(left), absent)
        tokens.append(value(pooled))
        nothing = x.new_zeros((x.shape[0], 1), dtype=torch.bool) if absent is None else absent.all(1, keepdim=True)
        empty.append(nothing.expand(-1, weights.shape[2]))
        if positions is not None:
            where.append(weights.transpose(1, 2) @ take(positions, rest))
    return Sample(torch.cat(tokens, 1), torch.cat(empty, 1), torch.cat(where, 1) if where else None, polled, weights)


class Sampler(nn.Module):
    """The score of tokens, and what polls and pools them by it.

    Args:
        c: width of a token.
        m: M, pooled vectors; 0: what is not polled is dropped.
        b0: at ratio 1 the sampler starts as the identity, by a score σ(.) / σ(b0); if not given, it is the paper's.
    """

    def __init__(self, c: int, m: int, b0: float | None = None) -> None:
        super().__init__()
        last, value = nn.Linear(c, 1), nn.Linear(c, c)
        self.score = nn.Sequential(nn.Linear(c, c), nn.ReLU(), last)
        self.weigh = nn.Linear(c, m) if m else None
        self.value = value if m else nn.Identity()
        self.b0 = b0
        if b0 is not None:
            nn.init.zeros_(last.weight)
            nn.init.constant_(last.bias, b0)
            nn.init.eye_(value.weight)
            nn.init.zeros_(value.bias)

    def rank(self, s: Tensor) -> Tensor:
        """Give the key that tokens are ordered by: their score."""
        return s

    def forward(
        self, x: Tensor, ratio: float, padding: Tensor | None = None, positions: Tensor | None = None
    ) -> tuple[Sample, Tensor]:
        """Poll and pool tokens (b, l, c): the sample, and the scores (b, l) in (0, 1).

        Args:
            x: before any normalisation, which the paper's score does not see.
            ratio, padding, positions: see :func:`sample`.
        """
        s = self.score(x).squeeze(2).sigmoid()
        scale = s
        if self.b0 is None:
            x = F.layer_norm(x, x.shape[2:])
        else:
            scale = s * (1 + math.exp(-self.b0))
        return sample(x, scale, self.weigh, self.value, ratio, padding, positions, self.rank(s)), s


# -- the block --------------------------------------------------------------------------------------------------------


class PollAndPool(Insert):
    """Fewer tokens behind a part of a trained network; class tokens pass by.

    Args:
        c: width of a token.
        m: M, pooled vectors.
        extra: class tokens, which come first.
        ratio: the share of tokens that is polled once tuning has begun; until then all are.
        lam: λ of the mean score.
        b0: see :class:`Sampler`.

    Attributes:
        ratio: the share of tokens that is polled now, in evaluation. It is saved with the weights.
    """

    kept_ratio: Tensor

    def __init__(self, c: int, m: int, extra: int, ratio: float, lam: float, b0: float) -> None:
        super().__init__()
        self.sampler = Sampler(c, m, b0)
        self.extra, self.later, self.lam = extra, ratio, lam
        self._drawn: float | None = None
        self._mean_score: Tensor | None = None
        self.register_buffer("kept_ratio", torch.tensor(1.0))
        self.register_load_state_dict_post_hook(PollAndPool._follow)
        self.ratio = 1.0

    @property
    def ratio(self) -> float:
        """The share of tokens that is polled."""
        return self._ratio

    @ratio.setter
    def ratio(self, value: float) -> None:
        # A forward that asked the buffer could not be exported, since a program knows no values.
        require(0 < value <= 1, f"ratio must be above 0 and at most 1, and it is {value:g}.")
        self._ratio = float(value)
        self.kept_ratio.fill_(value)

    @staticmethod
    def _follow(module: nn.Module, _: Any) -> None:
        assert isinstance(module, PollAndPool)
        module.ratio = float(module.kept_ratio)  # which refuses what a damaged file may hold

    def prepare(self, progress: float, generator: torch.Generator) -> None:
        """Draw the ratio of the next batch, from 1/3 to 0.8; in evaluation it is the one that was asked for."""
        if self.ratio != self.later:
            self.ratio = self.later
        self._drawn = LEAST + (MOST - LEAST) * float(torch.rand((), generator=generator))

    def penalty(self) -> Tensor | None:
        """λ times the mean score of the polled tokens, of the last forward in training mode."""
        score, self._mean_score = self._mean_score, None
        return None if score is None else self.lam * score

    def forward(self, x: Tensor) -> Tensor:
        ratio = self._drawn if self.training and self._drawn is not None else self.ratio
        found, s = self.sampler(x[:, self.extra :], ratio)
        if self.training and self._drawn is not None:
            self._mean_score = s.gather(1, found.polled).mean()
        return torch.cat([x[:, : self.extra], found.tokens], 1) if self.extra else found.tokens

    def __getstate__(self) -> dict[str, Any]:  # a term that nobody asked for holds a graph, which cannot be copied
        return {**self.__dict__, "_mean_score": None}

    def extra_repr(self) -> str:
        return f"ratio={self.ratio:g}"


def make(
    place: Place, how: How, start: Start, *, m: int = 4, ratio: float = 0.8, lam: float = 1e-4, b0: float = 0.0
) -> PollAndPool:
    """Make a sampler that keeps the tokens with the highest scores and M means of the others.

    Either start keeps all tokens until tuning begins; a fresh one scores them at random.

    Args:
        place: whose tokens are sampled.
        how: after, or before.
        start: same: at ratio 1 the identity.
        m: M, pooled vectors, 30 in the paper's detector of about 850 tokens; 0: what is not polled is dropped.
        ratio: the share of tokens that is polled once tuning has begun, until one sets another; training sees 1/3 to
            0.8.
        lam: λ of the mean score.
        b0: bias of the score's last layer at the start. Its slope there is σ'(b0): 0.25 at 0, 0.01 at 4.6.

    Raises:
        UserError: an option out of range.
    """
    require(m >= 0, f"m must not be negative, and it is {m}.")
    require(0 < ratio <= 1, f"ratio must be above 0 and at most 1, and it is {ratio:g}.")
    require(lam >= 0, f"lam must not be negative, and it is {lam:g}.")
    made = PollAndPool(place.takes.channels, m, place.takes.extra, ratio, lam, b0)
    if start == "fresh":
        made.sampler.score[2] = nn.Linear(place.takes.channels, 1)
    return made


def parameters(takes: Signal, *, m: int = 4, **options: Any) -> int:
    """C (C + 1) + C + 1 of the score, C (C + 1) of Wv, M (C + 1) of Wa."""
    c = takes.channels
    return c * (c + 1) + c + 1 + (c * (c + 1) + m * (c + 1) if m else 0)


def macs(takes: Signal, *, m: int = 4, ratio: float = 0.8, **options: Any) -> int:
    """L (C + 1) C of the score; where tokens are left, twice M C for each, for Wa and the means, and M C² of Wv."""
    c, tokens = takes.channels, takes.size[0] * takes.size[1]
    left = tokens - number_polled(ratio, tokens)
    return tokens * (c * c + c) + (2 * left * m * c + m * c * c if m and left else 0)


PNP = Block(
    name="pnp",
    summary="fewer tokens for what follows: the informative ones, and a few means of the others",
    paper=PAPER,
    kinds=("tokens",),
    how="after",
    others=("before",),
    make=make,
    exact=("after", "before"),
    parameters=parameters,
    macs=macs,
    scaled="ratio",
)
