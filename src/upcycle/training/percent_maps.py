"""SnapMix's semantic percent maps: the share of an image's class evidence that lies at each of its pixels.

S. Huang, X. Wang, D. Tao, "SnapMix: Semantically Proportional Mixing for Augmenting Fine-grained Data", AAAI 2021,
arXiv:2012.04846. A network whose logits are a linear layer on the mean of a feature map says for each place how much it
adds to a class, which is its class activation map (Zhou et al., CVPR 2016).
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from upcycle.core.errors import UserError
from upcycle.core.feature_maps import FeatureMap, Flow
from upcycle.core.heads import classifier, linear
from upcycle.core.models import Model
from upcycle.core.taps import Taps
from upcycle.core.undisturbed import undisturbed

CLOSE = 1e-3
"""How far the mean of a feature map may lie from what the classifier sees, of the largest value there."""
CLOSE_BF16 = 3e-2
"""The same where features are in bf16."""


@torch.no_grad()
def percent_map(
    features: Float[Tensor, "b c h w"],
    weight: Float[Tensor, "k c"],
    labels: Int[Tensor, " b"],
    size: tuple[int, int],
) -> Float[Tensor, "b H W"]:
    """S_i of the paper: the share of the evidence of class y_i that lies at each pixel, not negative, its sum 1.

        M_i = sum_c w[y_i, c] relu(F_i[c]), brought to the image's size;  S_i = (M_i - min M_i) / sum (M_i - min M_i)

    The classifier's bias would add a number to M_i, and falls away with the minimum.

    Args:
        features: F, the last feature map before its mean is taken.
        weight: w, of the classifier.
        labels: y, the classes whose evidence is asked for; whatever is at -1 is of no use.
        size: (H, W) of the images.

    Returns:
        float32, or float64 of such features; NaN for an image whose evidence is the same everywhere.
    """
    wide = torch.float64 if features.dtype == torch.float64 else torch.float32
    w = weight.to(wide)[labels.clamp_min(0)]
    M = torch.einsum("bc,bchw->bhw", w, features.to(wide).relu())
    flat = M.amax((1, 2)) == M.amin((1, 2))  # asked here, since resizing a constant rounds it
    M = F.interpolate(M[:, None], size, mode="bilinear", align_corners=False)[:, 0]
    M = M - M.amin((1, 2), keepdim=True)
    S = M / M.sum((1, 2), keepdim=True)
    return S.masked_fill(flat[:, None, None], float("nan"))


class PercentMaps:
    """The percent maps of a network as it is at the time, in evaluation mode, without a trace on it.

    The authors' code makes them in training mode, which moves the statistics of BatchNorm twice a step and perturbs the
    maps by dropout.

    Args:
        model: a network whose logits are one linear layer on the mean of a feature map; of tokens too, as many
            transformers have it. Its ``module`` is looked at again in every call.

    Raises:
        UserError: it is none, for example since it flattens its feature map.
    """

    def __init__(self, model: Model) -> None:
        self.module = model.module
        with uncompiled(self.module):
            self.place, self.classifier = evidence(model)

    def __call__(self, images: Float[Tensor, "b c H W"], labels: Int[Tensor, " b"]) -> Float[Tensor, "b H W"]:
        """S of normalised images, see :func:`percent_map`."""
        with undisturbed(self.module), uncompiled(self.module), Taps(self.module, [self.place.name]) as taps:
            self.module(images)
        features = self.place.maps(taps[self.place.name])
        return percent_map(features, linear(self.module, self.classifier).weight, labels, images.shape[2:])  # type: ignore[arg-type]


def evidence(model: Model) -> tuple[FeatureMap, str]:
    """The last feature map whose mean over places is what the classifier of ``model`` sees, and the classifier's name.

    A map of which the mean of relu(F) is that serves too, since a percent map looks at relu(F).

    Raises:
        UserError: there is none.
    """
    try:
        name = classifier(model)
    except UserError as error:
        raise _none(model) from error
    p = next(model.module.parameters())
    with undisturbed(model.module), Taps(model.module, [name], kind="input") as taps:
        flow = Flow(model.module, model.example().to(p.device, p.dtype))
    seen_by, width = taps[name].detach(), linear(model.module, name).in_features
    for seen in reversed(flow.seen):
        place = flow.laid_out(seen)
        maps = None if place is None else place.maps(seen.out.detach())
        if place is None or maps is None or maps.shape[1] != width or maps[0, 0].numel() == 1:
            continue
        if _close(maps.mean((2, 3)), seen_by) or _close(maps.relu().mean((2, 3)), seen_by):
            return place, name
    raise _none(model)


def _close(mean: Tensor, seen_by: Tensor) -> bool:
    if mean.shape != seen_by.shape:
        return False
    close = CLOSE_BF16 if torch.bfloat16 in (mean.dtype, seen_by.dtype) else CLOSE
    mean, seen_by = mean.double(), seen_by.double()
    return bool((mean - seen_by).abs().max() <= close * seen_by.abs().max())


def _none(model: Model) -> UserError:
    return UserError(
        f"{model.name} does not answer with one linear layer on the mean of its last feature map (it may flatten it), "
        "so snapmix cannot tell where in an image it sees a class; take --recipe.mix cutmix."
    )


@contextlib.contextmanager
def uncompiled(module: nn.Module) -> Iterator[None]:
    """Within, a call of a network runs its own code, in which taps are heard, and not what was compiled from it."""
    compiled, module._compiled_call_impl = module._compiled_call_impl, None
    try:
        yield
    finally:
        module._compiled_call_impl = compiled
