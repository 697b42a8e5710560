"""Self-supervision on pairs of views: two augmentations of each image, Barlow Twins and SimSiam."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from upcycle.core.batches import Batch
from upcycle.data.windows import SplitOfViews, resized_crop, windows

Objective = Literal["barlow", "simsiam"]


def barlow_twins_loss(
    z1: Float[Tensor, "b d"], z2: Float[Tensor, "b d"], redundancy: float = 5e-3
) -> Float[Tensor, ""]:
    """Σ_i (1 - C_ii)² + λ Σ_{i≠j} C_ij² (Zbontar et al., ICML 2021, arXiv:2103.03230, eq. 1).

    C is the cross-correlation over the batch, (d, d): of all processes together, so gather the projections first.

    Args:
        z1, z2: projections of two views of the same images.
        redundancy: λ.
    """
    c = _standardised(z1).T @ _standardised(z2) / len(z1)
    diagonal = c.diagonal()
    return (1 - diagonal).square().sum() + redundancy * (c.square().sum() - diagonal.square().sum())


def _standardised(z: Tensor) -> Tensor:
    return (z - z.mean(0)) / (z.var(0, correction=0) + 1e-5).sqrt()  # as BatchNorm does


def simsiam_loss(
    p1: Float[Tensor, "b d"], z1: Float[Tensor, "b d"], p2: Float[Tensor, "b d"], z2: Float[Tensor, "b d"]
) -> Float[Tensor, ""]:
    """-½ cos(p1, z2) - ½ cos(p2, z1), the mean over the batch (Chen and He, CVPR 2021, arXiv:2011.10566, eq. 2).

    Args:
        p1, p2: predictions from the projections of two views.
        z1, z2: the projections; no gradient passes through them.
    """
    return -(F.cosine_similarity(p1, z2.detach()).mean() + F.cosine_similarity(p2, z1.detach()).mean()) / 2


class Projection(nn.Module):
    """The layers on the features while an objective trains them: a projection, and for SimSiam a prediction.

    Two layers each, where the papers have three in the projection: our networks are small.

    Args:
        objective: see :meth:`loss`.
        inputs: the features' dimension.
        width: of the projection; SimSiam's predictor has a quarter between.
    """

    def __init__(self, objective: Objective, inputs: int, width: int) -> None:
        super().__init__()
        self.objective = objective
        last = [nn.BatchNorm1d(width)] if objective == "simsiam" else []
        self.projector = nn.Sequential(*_hidden(inputs, width), nn.Linear(width, width, bias=False), *last)
        if objective == "simsiam":
            self.predictor = nn.Sequential(*_hidden(width, max(width // 4, 1)), nn.Linear(max(width // 4, 1), width))

    def forward(self, features: Tensor) -> Tensor:
        """(b, width), or (b, 2 width) with the prediction beside the projection."""
        z = self.projector(features)
        return torch.cat([z, self.predictor(z)], 1) if self.objective == "simsiam" else z

    def loss(self, first: Tensor, second: Tensor) -> Tensor:
        """The objective of what :meth:`forward` gave for two views."""
        if self.objective == "barlow":
            return barlow_twins_loss(first, second)
        (z1, p1), (z2, p2) = first.chunk(2, 1), second.chunk(2, 1)
        return simsiam_loss(p1, z1, p2, z2)


def _hidden(inputs: int, width: int) -> list[nn.Module]:
    return [nn.Linear(inputs, width, bias=False), nn.BatchNorm1d(width), nn.ReLU()]


@dataclass(eq=False)
class Views(SplitOfViews):
    """A split each of whose samples is two augmented views of an image; implements ``Split``.

    Each view is what the split's own augmentation makes, and then a window of a random share of the area, of aspect
    3/4 to 4/3, brought back to the image's size: zero padding and a shift, as for training a classifier, are too weak
    for self-supervision. A view is a function of (seed, 2 epoch or 2 epoch + 1, sample).

    Args:
        split: the images.
        scale: the smallest share of the area; 1 for no window.
    """

    scale: float

    def batch(self, index: Tensor, *, device: torch.device, view: tuple[int, int] | None = None) -> Batch:
        """Images (b, 2, c, h, w)."""
        seed, epoch = view or (0, 0)
        made, ids = [], self.split.ids.index_select(0, index)
        for k in range(2):
            own = (seed, 2 * epoch + k)
            batch = self.split.batch(index, device=device, view=own)
            made.append(batch.images if self.scale == 1 else resized_crop(batch.images, windows(own, ids, self.scale)))
        return batch._replace(inputs=torch.stack(made, 1))
