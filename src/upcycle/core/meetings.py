"""Meetings of the body of a batch loop with a batch: mixed beforehand, and met again where an optimiser asks for it."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from upcycle.core import ingredients
from upcycle.core.batches import Batch, Split
from upcycle.core.recipe import Recipe
from upcycle.core.stage import Stage

if TYPE_CHECKING:
    from upcycle.core.models import Model


class Meetings:
    """What a run does between a batch and the body of the loop over it.

    Args:
        rank: the number of this process.
        world_size: the number of processes.

    Attributes:
        teacher: what the run's last frozen teacher was made of.
    """

    def __init__(self, rank: int, world_size: int) -> None:
        self.rank, self.world_size = rank, world_size
        self.teacher: Model | None = None

    def mix(
        self,
        stage: Stage,
        recipe: Recipe | None,
        split: Split,
        batch: Batch,
        samples: Tensor,
        read: Callable[[Tensor], Batch],
        key: tuple[int, int],
    ) -> Batch:
        """Mix a batch where the recipe of its loop asks for it.

        Args:
            batch: this process' share.
            samples: of the global batch, positions in ``split``.
            read: fetches other samples as ``batch`` was read.
            key: seed and view.
        """
        if recipe is None or recipe.mix == "none":
            return batch
        if stage.mixer is None:
            network = next(thing for thing in stage.state.values() if isinstance(thing, nn.Module))
            known = hasattr(split, "mean") and hasattr(split, "std")
            normalisation = (split.mean, split.std) if known else None  # type: ignore[attr-defined]
            stage.mixer = ingredients.maker(recipe.mix).Mixer(recipe, network, self.teacher, normalisation)
        mine = torch.arange(len(samples)).tensor_split(self.world_size)[self.rank]
        mixed: Batch = stage.mixer(batch, samples, split.labels[samples], mine, read, key)
        return mixed
