"""A network with a planted shortcut: diagnosed without being told, explained, treated.

Run from the repository's root: `python -m benchmarks.shortcut` (about 20 minutes). A magenta square, more or less
transparent, is laid over a corner of nearly all training horses of CIFAR-10, as a watermark would be; a ResNet-8 that
learns from them takes the square for the horse. What follows is told neither the class nor the place:

1. *Diagnosis.* The class that loses most from training to validation images, which have no square.
2. *Explanation.* The mean heat map of the training images of that class that the network is surest of. An animal has
   no fixed place in a photograph: pixels above half of the map's maximum are the suspect region.
3. *Treatment.* Model Doctor's spatial term at the first convolution, with a box around that region as the background of
   that class's images, and beside it the same training without the term. Both begin with new weights: in the trained
   network the answer for an image with a square is flat, so a penalty on its slope finds little to hold on to.

Figures are on the test images, none of which has a square, and on the same with a square on every horse. The settings
of the treatment were chosen on validation images. The picture of the documentation is drawn along.
"""

from __future__ import annotations

import argparse
import dataclasses
import tempfile
from pathlib import Path

import torch
from PIL import Image, ImageDraw
from torch import Tensor, nn

from benchmarks.common import record
from upcycle.claims.settings import fresh, test, train
from upcycle.core.evaluate import evaluate
from upcycle.core.models import Model
from upcycle.core.recipe import Recipe
from upcycle.data import Images, ImageSplit, load
from upcycle.diagnosis import ModelDoctor
from upcycle.diagnosis.attribution import explain
from upcycle.diagnosis.errors.findings import diagnose
from upcycle.distillation import Plain
from upcycle.verbs.errors_found import suspects
from upcycle.verbs.heatmaps import as_heat, as_image, as_pixels

CLASS, SHARE, SIDE, OPACITY = "horse", 0.95, 6, (0.1, 1.0)
IMAGES, SEED, SURE, METHOD = 10_000, 0, 50, "gradcam"
RECIPE, B = Recipe(epochs=16, batch_size=128, lr=0.1, warmup=1.0), 10.0
MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)
PICTURE = Path(__file__).parents[1] / "docs" / "assets" / "shortcut.png"


def planted(split: ImageSplit, label: int, share: float) -> ImageSplit:
    """The split with a magenta square over the lower left corner of a share of one class."""
    rows = (split.labels == label).nonzero()[:, 0]
    rows = rows[: round(share * len(rows))]
    low, high = OPACITY
    opacity = low + (high - low) * torch.rand(len(rows), 1, 1, 1, generator=torch.Generator().manual_seed(SEED))
    images = split.images.clone()
    corner = images[rows, -SIDE:, :SIDE].float()
    images[rows, -SIDE:, :SIDE] = corner.lerp(torch.tensor([255.0, 0.0, 255.0]), opacity).round().to(torch.uint8)
    return dataclasses.replace(split, images=images)


def suspect(model: Model, data: Images) -> tuple[int, float, Tensor, Tensor]:
    """What the network itself gives away.

    Returns:
        The class with the widest gap between accuracy on training and on validation images; that gap; the positions
        (s,) of its surest training images; their mean heat map (h, w), 1 at its highest.
    """
    found = diagnose(model, data, n=SURE)
    seen, held = evaluate(model.module, data.train, device=torch.device("cpu")), found.evaluation
    worst = suspects(seen, held)[0]
    rows = found.images[data.train.labels[found.images] == worst]
    x = data.train.batch(rows, device=torch.device("cpu")).images
    heat = explain(model, x, worst, method=METHOD).maps.mean(0)
    return worst, seen.per_class[worst] - held.per_class[worst], rows, heat / heat.max()


def box(heat: Tensor, cell: int = 4) -> tuple[int, int, int, int]:
    """(left, top, right, bottom) around the pixels above half of the maximum, outwards to whole cells of Grad-CAM."""
    places = (heat > 0.5).nonzero()
    (top, left), (bottom, right) = (places.amin(0) // cell).tolist(), (places.amax(0) // cell + 1).tolist()
    return left * cell, top * cell, right * cell, bottom * cell


def drawn(
    model: Model, data: Images, rows: Tensor, label: int, heat: Tensor, n: int = 7, side: int = 96
) -> Image.Image:
    """Some of the surest images, their heat maps below, and the mean map at the right with the suspect region."""
    x = data.train.batch(rows[:n], device=torch.device("cpu")).images
    maps = explain(model, x, label, method=METHOD).maps
    sheet = Image.new("RGB", ((side + 8) * n + 2 * side + 8, 2 * side + 8), "white")
    for i, (pixels, m) in enumerate(zip(as_pixels(x, model), maps, strict=True)):
        image = as_image(pixels).resize((side, side), Image.Resampling.NEAREST)
        sheet.paste(image, (i * (side + 8), 0))
        over = as_heat(m).resize((side, side), Image.Resampling.NEAREST)
        sheet.paste(Image.alpha_composite(image.convert("L").convert("RGBA"), over), (i * (side + 8), side + 8))
    mean = as_heat(heat).resize((2 * side + 8,) * 2, Image.Resampling.NEAREST)
    sheet.paste(Image.alpha_composite(Image.new("RGBA", mean.size, "#1d2433"), mean), (n * (side + 8), 0))
    left, top, right, bottom = (round(v * mean.width / heat.shape[1]) for v in box(heat))
    ImageDraw.Draw(sheet).rectangle([n * (side + 8) + left, top, n * (side + 8) + right - 1, bottom - 1],
                                    outline="white", width=2)  # fmt: skip
    return sheet


def treatment(sick: Model, data: Images, label: int, area: tuple[int, int, int, int]) -> dict[str, nn.Module]:
    """What is made of the sick network with that area of a class's images as background, and without the penalty."""
    _, height, width = data.shape
    masks = Image.new("L", (width, height), 255)
    masks.paste(0, area)
    with tempfile.TemporaryDirectory() as folder:
        for number in data.train.ids[data.train.labels == label].tolist():
            masks.save(Path(folder) / f"{number}.png")
        treat = ModelDoctor(source=sick, a=0.0, b=B, layer="conv1", masks=folder, from_scratch=True, recipe=RECIPE)
        plain = treat.controls()["control"].method
        further = dataclasses.replace(plain, from_scratch=False)
        arms = {"treated, anew": treat, "plain, anew": plain, "plain, further": further}
        return {name: train(arm, data, SEED) for name, arm in arms.items()}


def main() -> None:
    """Plant, train, diagnose, explain, treat, record."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--threads", type=int, default=2)
    threads = parser.parse_args().threads
    torch.set_num_threads(threads)
    clean = load("cifar10").subset(torch.arange(IMAGES)).augmented(("crop", "flip")).normalised(MEAN, STD)
    label = clean.classes.index(CLASS)
    data = dataclasses.replace(clean, train=planted(clean.train, label, SHARE),
                               validation=clean.validation.subset(torch.arange(2500)))  # fmt: skip
    new = fresh("zoo:resnet8", data, SEED)
    plain = Plain(student=new, recipe=RECIPE)
    sick = dataclasses.replace(new, module=train(plain, data, SEED), name="sick")

    worst, gap, rows, heat = suspect(sick, data)
    drawn(sick, data, rows, worst, heat).save(PICTURE, optimize=True)
    left, top, right, bottom = box(heat)
    covered = max(0, bottom - max(top, data.shape[1] - SIDE)) * max(0, min(right, SIDE) - left)
    figures = {
        "class suspected": data.classes[worst],
        "its accuracy, training over validation images (points)": round(100 * gap, 1),
        "pixels of the suspect box": (bottom - top) * (right - left),
        "those of the square": SIDE**2,
        "both": covered,
    }
    print(figures, flush=True)
    marked = dataclasses.replace(data, test=planted(data.test, label, 1.0))
    for name, module in {"sick": sick.module, **treatment(sick, data, worst, box(heat))}.items():
        bare, square = test(module, data), test(module, marked)
        figures[name] = {"accuracy (%)": round(100 * bare.accuracy, 1),
                         f"accuracy of {CLASS} (%)": round(100 * bare.per_class[label], 1),
                         f"accuracy of {CLASS} with a square (%)": round(100 * square.per_class[label], 1)}  # fmt: skip
        print(name, figures[name], flush=True)
    record("shortcut", figures, images=IMAGES, share=SHARE, epochs=RECIPE.epochs, b=B, seed=SEED, threads=threads)


if __name__ == "__main__":
    main()
