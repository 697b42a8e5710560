"""The picture of the page of `features`, docs/assets/features.svg: which layers of two networks are alike.

Run from the repository's root, with CIFAR-10 under `$UPCYCLE_DATA`: `python -m scripts.features_figure`.
"""

from __future__ import annotations

import re
from pathlib import Path

import torch

from upcycle.core.models import Model
from upcycle.core.references import resolve
from upcycle.core.taps import Taps
from upcycle.core.undisturbed import undisturbed
from upcycle.data import load
from upcycle.measure.similarity import similarity_map
from upcycle.reports.matrices import heatmap

FILE = Path(__file__).parents[1] / "docs" / "assets" / "features.svg"
TEACHER, STUDENT, IMAGES = "zoo:cifar10_resnet56", "zoo:cifar10_resnet20", 512
STYLE = "text{font:10px sans-serif;fill:#546e7a}.on{fill:#fff}.in{fill:#263238}.cell{fill:#00897b}"


def blocks(model: Model, images: torch.Tensor) -> tuple[list[str], list[torch.Tensor]]:
    """The names of a network's blocks, and what they give, pooled to eight places a side."""
    names = [name for name, _ in model.module.named_modules() if re.fullmatch(r"layer\d\.\d+", name)]
    with undisturbed(model.module), Taps(model.module, names) as taps:
        model.module(images)
    return names, [torch.nn.functional.adaptive_avg_pool2d(taps[name], 8).flatten(1) for name in names]


def main() -> None:
    """Write the file."""
    teacher, student = resolve(TEACHER), resolve(STUDENT)
    data = load("cifar10").normalised(teacher.mean, teacher.std)
    images = data.validation.batch(torch.arange(IMAGES), device=torch.device("cpu")).images
    (columns, f_t), (rows, f_s) = blocks(teacher, images), blocks(student, images)
    values = similarity_map(f_s, f_t).tolist()
    label = "Similarity of each block of ResNet-20 with each of ResNet-56"
    head, _, rest = str(
        heatmap(rows, columns, values, label=label, x="blocks of ResNet-56", y="of ResNet-20")
    ).partition(">")
    head = head.replace("<svg ", '<svg xmlns="http://www.w3.org/2000/svg" width="640" ', 1)
    paper = '<rect width="100%" height="100%" fill="#fff"/>'
    FILE.write_text(f"{head}><style>{STYLE}</style>{paper}{rest}\n", encoding="utf-8")


if __name__ == "__main__":
    main()
