"""Pictures of a run without data: its images, and how near they come to those that the teacher has seen."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, UInt8
from PIL import Image
from torch import Tensor, nn

from upcycle.core.errors import UserError
from upcycle.core.frozen import Frozen, frozen
from upcycle.core.portions import portions
from upcycle.core.taps import Taps
from upcycle.data.images import ImageSplit
from upcycle.distillation.data_free.inversion import Statistics

if TYPE_CHECKING:
    from upcycle.core.models import Model
    from upcycle.core.run import Run
    from upcycle.data.pool import Pool

LOOKED_AT = 512
"""Of the newest images, of the real ones and of noise, so many are shown to the teacher."""
ROWS, COLUMNS, MOMENTS = 10, 8, 6
MANY = 30  # more classes than that are not compared with each other
Moments = list[tuple[Tensor, Tensor]]
Curve = list[tuple[float, float, float]]
"""(seconds of synthesis, of everything, the student's accuracy), from the first measurement to the last."""


# -- measures ---------------------------------------------------------------------------------------------------


def similarity(features: Float[Tensor, "n d"], labels: Int[Tensor, " n"], k: int) -> Float[Tensor, "k k"]:
    """Mean cosine similarity of the features of two images, one of class i and one of class j.

    An image is not compared with itself. NaN where there is no such pair; labels below 0 take no part.
    """
    known = labels >= 0
    unit = F.normalize(features[known].double(), dim=1)
    member = F.one_hot(labels[known], k).to(unit)
    sums, count = member.T @ unit, member.sum(0)  # the sum of all pairs is the product of the sums
    pairs = torch.outer(count, count) - count.diag()
    total = sums @ sums.T - (member.T @ unit.square().sum(1)).diag()
    return torch.where(pairs > 0, total / pairs, math.nan)


def distances(found: Moments, running: Moments, eps: float = 1e-5) -> list[float]:
    """Distances of the images' statistics to the training images', layer by layer; 0 is equal.

    For each channel the 2-Wasserstein distance of two normal distributions, √((mean - μ)² + (std - σ)²), as a
    multiple of the training images' σ = √(var + eps); the mean of that over the channels.

    Args:
        found: (mean, biased variance) of each layer's inputs, (c,) each.
        running: the same of the training images.
        eps: what BatchNorm adds to a variance.
    """
    result = []
    for (mean, var), (mu, target) in zip(found, running, strict=True):
        sigma = (target + eps).sqrt()
        distance = ((mean - mu).square() + ((var + eps).sqrt() - sigma).square()).sqrt()
        result.append((distance / sigma).mean().item())
    return result


# -- pixels -----------------------------------------------------------------------------------------------------


def strip(images: Sequence[UInt8[Tensor, "h w c"] | None], *, side: int = 96) -> Image.Image:
    """Images side by side, each enlarged in whole steps to at least ``side`` pixels; transparent between them.

    ``None`` leaves a place empty; not all may be.
    """
    h, w, c = next(one.shape for one in images if one is not None)
    scale = math.ceil(side / max(h, w))
    step = w * scale + max(1, round(0.08 * w * scale))
    sheet = Image.new("RGBA", (step * (len(images) - 1) + w * scale, h * scale))
    for i, pixels in enumerate(images):
        if pixels is not None:
            one = Image.fromarray((pixels[..., 0] if c == 1 else pixels).numpy()).convert("RGB")
            sheet.paste(one.resize((w * scale, h * scale), Image.Resampling.NEAREST), (i * step, 0))
    return sheet.convert("LA") if c == 1 else sheet


def _row(images: Sequence[Tensor | None], label: str, alt: str) -> dict[str, str]:
    file = io.BytesIO()
    strip(images).save(file, "PNG", optimize=True)
    return {"png": base64.b64encode(file.getvalue()).decode(), "label": label, "alt": alt}


# -- what the teacher sees --------------------------------------------------------------------------------------


@dataclass
class _Seen:
    """The teacher's probabilities (n, k), the features before its last layer (n, d), the distance of each layer."""

    probability: Tensor
    features: Tensor
    distance: list[float]


def _look(teacher: Frozen, split: ImageSplit, device: torch.device) -> _Seen:
    probability, features, counts = [], [], []
    parts: list[Moments] = []
    with Statistics(teacher, lambda x: x) as statistics:
        # Where a network ends in a convolution, its last BatchNorm must do.
        linear = [name for name, m in teacher.network.named_modules() if isinstance(m, nn.Linear)]
        head = [*statistics.layers, *linear][-1]
        with Taps(teacher.network, [head], kind="input") as taps:
            for index in portions(teacher, len(split)):
                probability.append(teacher(split.batch(index, device=device).images).float().softmax(1).cpu())
                found = taps[head].float()
                features.append((found.flatten(2).mean(2) if found.dim() > 2 else found).cpu())
                parts.append([(mean.cpu().double(), var.cpu().double()) for mean, var in statistics.read()])
                counts.append(len(index))
        running = [(mean.cpu().double(), var.cpu().double()) for mean, var in statistics.running()]
    share = (torch.tensor(counts, dtype=torch.float64) / len(split))[:, None]
    moments: Moments = []
    for layer in zip(*parts, strict=True):
        means, variances = (torch.stack(some) for some in zip(*layer, strict=True))
        mean = (share * means).sum(0)
        moments.append((mean, (share * (variances + (means - mean).square())).sum(0)))
    return _Seen(torch.cat(probability), torch.cat(features), distances(moments, running))


# -- the pictures -----------------------------------------------------------------------------------------------


def draw(run: Run, pool: Pool, model: Model, validation: ImageSplit, curve: Curve) -> None:
    """Leave the pictures of a run's images for its report; to be called on one process, at the end.

    Draws no random number of the run. Pictures that cannot be made are named in the run's notes, because they must
    not cost a person the result.

    Args:
        run: takes the pictures.
        pool: the images.
        model: the network that they are made from.
        validation: real images to compare with; may be empty.
        curve: of the student's accuracy.
    """
    try:
        if len(curve) > 1:
            _draw_curve(run, curve)
        _draw(run, pool, model, validation)
    except (UserError, RuntimeError, ValueError) as error:
        run.note(f"The pictures of the images could not be made: {type(error).__name__}: {error}")


def _draw(run: Run, pool: Pool, model: Model, validation: ImageSplit) -> None:
    classes, n = model.classes, len(pool)
    order = (pool.made - n + torch.arange(n)) % pool.capacity  # the oldest first
    newest = pool.split().subset(order[-LOOKED_AT:])
    noise = torch.randint(256, newest.images.shape, generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    splits = {"synthesised images": newest}
    if len(validation):
        index = torch.linspace(0, len(validation) - 1, min(LOOKED_AT, len(validation))).long()
        splits["real images"] = validation.subset(index)
    splits["uniform noise"] = ImageSplit.plain(noise, newest.labels, newest.ids)
    teacher = frozen(model.module, model.example(8).to(run.device), keep_bn=True, keep_modules=True,
                     precision="32-true")  # fmt: skip
    looks = {name: _look(teacher, split.normalised(model.mean, model.std), run.device)
             for name, split in splits.items()}  # fmt: skip
    seen = looks["synthesised images"]
    labels = torch.where(newest.labels < 0, seen.probability.argmax(1), newest.labels)
    present = labels.unique()
    shown = present[torch.linspace(0, len(present) - 1, min(ROWS, len(present))).round().long()].tolist()
    some = f" {len(shown)} of the {len(classes)} classes." if len(shown) < len(classes) else ""

    items = []
    for c in shown:
        mine = (labels == c).nonzero().flatten()
        best = mine[seen.probability[mine, c].argsort(descending=True, stable=True)][:COLUMNS]
        low, high = (100 * seen.probability[best[i], c].item() for i in (-1, 0))
        alt = f"{len(best)} images of class {classes[c]}, to which the teacher gives {low:.0f} to {high:.0f} %"
        items.append(_row([*newest.pixels()[best], *[None] * (COLUMNS - len(best))], classes[c], alt))
    caption = f"Of the newest {len(newest):,} images, those of each class that the teacher is surest of." + some
    run.picture("1-classes", {"kind": "images", "layout": "rows", "title": "Synthesised images", "caption": caption,
                              "items": items})  # fmt: skip
    _over_time(run, pool, classes, order, shown)

    caption = ("How far the mean and the spread of each layer's inputs are from those of the training images, as "
               "the teacher knows them: in standard deviations, the mean over the channels. 0 is equal.")  # fmt: skip
    series = [{"name": name, "x": list(range(1, len(look.distance) + 1)), "y": look.distance}
              for name, look in looks.items()]  # fmt: skip
    run.picture("3-statistics", {"kind": "lines", "title": "Distance to the teacher's statistics", "caption": caption,
                                 "x": "BatchNorm layer", "y": "distance", "series": series})  # fmt: skip
    compared = list(range(len(classes))) if len(classes) <= MANY else shown
    caption = ("Mean cosine similarity of two images in the features before the teacher's last layer: of one class on "
               "the diagonal, of two classes elsewhere. At 1 they repeat each other.")  # fmt: skip
    run.picture("5-diversity", _likeness("How alike the synthesised images are", caption, classes, compared,
                                         similarity(seen.features, labels, len(classes))))  # fmt: skip
    if "real images" in looks:
        values = similarity(looks["real images"].features, splits["real images"].labels, len(classes))
        caption = f"The same for {len(splits['real images']):,} validation images."
        run.picture("6-diversity-real", _likeness("How alike real images are", caption, classes, compared, values))


def _draw_curve(run: Run, curve: Curve) -> None:
    spent, total, accuracy = (list(column) for column in zip(*curve, strict=True))
    series = [
        {"name": "of synthesis", "x": spent, "y": accuracy},
        {"name": "of everything", "x": total, "y": accuracy},
    ]
    caption = "The same student over the seconds of synthesis alone, and over all, its own training included."
    run.picture(
        "4-accuracy",
        {
            "kind": "lines",
            "title": "Accuracy over the seconds",
            "caption": caption,
            "x": "seconds",
            "y": "validation accuracy",
            "unit": "percent",
            "series": series,
        },
    )


def _over_time(run: Run, pool: Pool, classes: tuple[str, ...], order: Tensor, shown: list[int]) -> None:
    """Rows from the oldest images to the newest, none of them chosen: the first of each class from there on."""
    part = math.ceil(len(pool) / MOMENTS)
    columns = [pool.labels == c for c in shown]
    caption = f"Each column is a class: {', '.join(classes[c] for c in shown)}."
    if (pool.labels < 0).any():
        columns, caption = [torch.arange(len(pool)) % len(shown) == i for i in range(len(shown))], ""
    items = []
    for start in torch.linspace(0, len(pool) - part, min(MOMENTS, len(pool))).long().tolist():
        window = order[start : start + part]
        found = [window[mine[window]][:1] for mine in columns]
        if any(len(place) for place in found):
            label = f"image {pool.made - len(pool) + start + 1:,}"
            chosen = [pool.images[place[0]] if len(place) else None for place in found]
            items.append(_row(chosen, label, f"{len(chosen)} images from {label} on"))
    caption = f"From the oldest in the pool to the newest, as they came and not chosen. {caption}"
    run.picture("2-time", {"kind": "images", "layout": "rows", "title": "The images over time",
                                     "caption": caption.strip(), "items": items})  # fmt: skip


def _likeness(
    title: str, caption: str, classes: tuple[str, ...], compared: list[int], values: Tensor
) -> dict[str, Any]:  # fmt: skip
    means = {"within a class": values.diagonal().nanmean(),
             "between two": values[~torch.eye(len(values), dtype=torch.bool)].nanmean()}  # fmt: skip
    said = " and ".join(f"{mean:.2f} {where}" for where, mean in means.items() if not mean.isnan())
    names = [classes[c] for c in compared]
    cells = [[None if math.isnan(v) else round(v, 2) for v in row] for row in values[compared][:, compared].tolist()]
    return {"kind": "heatmap", "title": title, "caption": f"{caption} On average {said}." if said else caption,
            "rows": names, "columns": names, "values": cells, "digits": 2}  # fmt: skip
