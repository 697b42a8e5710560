"""The picture of the page about tinymim, docs/assets/relations.png: where a patch looks, in teacher and student.

Run from the repository's root, with CIFAR-10 and its networks under `$UPCYCLE_DATA`:

    upcycle distill --config recipes/tinymim_cifar10.yaml --out runs/tiny
    python -m scripts.relations_figure runs/tiny

Rows are test images with one marked patch; columns its attention to all patches, mean over heads, in the teacher, in a
student with fresh weights, and in the student of the run.
"""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from upcycle.core.models import Model
from upcycle.core.references import resolve
from upcycle.core.seeds import seed_everything
from upcycle.data import load
from upcycle.distillation.tinymim import TinyMIM, relations

FILE = Path(__file__).parents[1] / "docs" / "assets" / "relations.png"
TEACHER, STUDENT = "zoo:cifar10_vit", "zoo:vit_small"
SHOWN = ((0, 27), (1, 18), (5, 28), (8, 35), (13, 27))
"""Test images, and the patch of each that is marked, by its number from the top left."""
SIDE, GAP, HEAD = 128, 10, 26
INK, PAPER, MARK = "#1b1d1f", "#ffffff", "#b0562c"
HOT = (11, 107, 99)
"""The colour of the most that a patch attends to; white is none."""


def attention(made: TinyMIM, role: str, images: Tensor, data: object) -> Tensor:
    """R_QK of one network, the mean over heads, (b, n, n)."""
    blocks = made.blocks(data)  # type: ignore[arg-type]
    model: Model = made.model(role, data)
    with torch.no_grad():
        heads = getattr(blocks, role).read(model.module.eval(), images, blocks.heads)
        return relations(heads)[:, : blocks.heads].softmax(-1).mean(1)


def painted(row: Tensor) -> Image.Image:
    """How much one patch attends to each (64,), as a picture of 8 x 8 squares; the most is full colour."""
    share = (row / row.max()).view(8, 8, 1)
    pixels = 255 + share * (torch.tensor(HOT) - 255)
    square = Image.fromarray(pixels.round().to(torch.uint8).numpy())
    return square.resize((SIDE, SIDE), Image.Resampling.NEAREST)


def marked(pixels: Tensor, patch: int) -> Image.Image:
    """An image (h, w, c) with a frame around one of its 8 x 8 patches."""
    image = Image.fromarray(pixels.numpy()).resize((SIDE, SIDE), Image.Resampling.BICUBIC)
    step, (y, x) = SIDE // 8, divmod(patch, 8)
    ImageDraw.Draw(image).rectangle([x * step, y * step, (x + 1) * step, (y + 1) * step], outline=MARK, width=2)
    return image


def drawn(run: Path) -> Image.Image:
    """The whole picture.

    Args:
        run: a run of tinymim with this teacher and student.
    """
    teacher, student = resolve(TEACHER), resolve(str(run))
    data = load("cifar10").normalised(teacher.mean, teacher.std)
    seed_everything(0, "student")
    fresh = resolve(STUDENT, pretrained=False, num_classes=10, input_shape=data.shape)
    fresh = dataclasses.replace(fresh, mean=teacher.mean, std=teacher.std)
    index = torch.tensor([i for i, _ in SHOWN])
    images = data.test.batch(index, device=torch.device("cpu")).images
    before, after = (TinyMIM(teacher=teacher, student=one) for one in (fresh, student))
    columns = {
        "the teacher": attention(before, "teacher", images, data),
        "untrained": attention(before, "student", images, data),
        "distilled": attention(after, "student", images, data),
    }
    size = ((len(columns) + 1) * (SIDE + GAP) + GAP, HEAD + len(SHOWN) * (SIDE + GAP))
    sheet = Image.new("RGB", size, PAPER)
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(14)
    for i, name in enumerate(("image", *columns)):
        draw.text((GAP + i * (SIDE + GAP), 6), name, fill=INK, font=font)
    for j, (place, patch) in enumerate(SHOWN):
        top = HEAD + j * (SIDE + GAP)
        sheet.paste(marked(data.test.images[place], patch), (GAP, top))
        for i, R in enumerate(columns.values(), 1):
            sheet.paste(painted(R[j, patch]), (GAP + i * (SIDE + GAP), top))
    return sheet


def main() -> None:
    """Write the file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="a run of recipes/tinymim_cifar10.yaml")
    drawn(parser.parse_args().run).save(FILE, optimize=True)


if __name__ == "__main__":
    main()
