"""Replay of stored images: the options that its methods share, and the loss on stored logits."""

from __future__ import annotations

from dataclasses import dataclass
from typing import get_args

from jaxtyping import Float
from torch import Tensor

from upcycle.core.ranges import ranges
from upcycle.data.buffer import Buffer, Policy
from upcycle.data.images import ImageSplit


@dataclass(kw_only=True)
class Replay:
    """The memory of earlier images, and how much of it is shown again.

    Args:
        images: images that the memory holds; 0 for no memory.
        policy: which images stay in the memory, see :class:`~upcycle.data.buffer.Buffer`.
        draw: images that each draw takes from the memory; 0 for as many as the stream's batch has.
    """

    images: int = 200
    policy: Policy = "reservoir"
    draw: int = 0

    def __post_init__(self) -> None:
        ranges(self, not_negative=("images", "draw"), one_of={"policy": get_args(Policy)})

    def buffer(self, like: ImageSplit, seed: int, *, logits: int = 0) -> Buffer:
        """An empty memory.

        Args:
            like: a split of the stream whose images it will hold.
            seed: of all that is drawn.
            logits: columns that are stored with each image; 0 for none.
        """
        return Buffer(self.images, like, logits=logits, policy=self.policy, seed=seed)


def logit_loss(z: Float[Tensor, "m k"], stored: Float[Tensor, "m k"], total: int) -> Float[Tensor, ""]:
    """This process' part of MSE(z, ẑ), the mean over ``total`` images of all processes and over k (DER, eq. 5)."""
    return (z - stored.to(z.dtype)).square().sum() / (total * z.shape[1])
