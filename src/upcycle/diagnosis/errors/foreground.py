"""Foreground masks of training images: from files or by Grad-CAM, and moved as augmentation moves the images.

Masks are themselves an :class:`~upcycle.data.images.ImageSplit`: grey images, one for each training image and with its
number, so that a view of them is the view of the images. Their label is 1, or 0 for an image that has no mask.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int, UInt8
from PIL import Image, ImageDraw
from torch import Tensor, nn

from upcycle.core.errors import UserError, require
from upcycle.core.feature_maps import FeatureMap, record_layer
from upcycle.core.portions import portions
from upcycle.core.read import read
from upcycle.diagnosis.errors.class_channels import class_gradients

if TYPE_CHECKING:
    from upcycle.data.images import ImageSplit


def as_masks(foreground: Bool[Tensor, "m h w"], rows: Int[Tensor, " m"], split: ImageSplit) -> ImageSplit:
    """Masks of some images of a split.

    Args:
        foreground: what belongs to the object.
        rows: the images' positions in ``split``.

    Raises:
        UserError: the masks are of another size than the images.
    """
    _, h, w = split.shape
    require(foreground.shape[1:] == (h, w), f"The masks are {foreground.shape[2]} x {foreground.shape[1]} pixels "
            f"(width x height) and the images {w} x {h}; make them alike.")  # fmt: skip
    pixels = torch.zeros(len(split), h, w, 1, dtype=torch.uint8)
    pixels[rows, :, :, 0] = foreground.byte() * 255
    has = torch.zeros(len(split), dtype=torch.long)
    has[rows] = 1
    moves = tuple(name for name in split.augment if name != "color")
    return dataclasses.replace(split, images=pixels, labels=has, mean=(0.0,), std=(1.0,), augment=moves)


def foreground(
    masks: ImageSplit,
    index: Int[Tensor, " b"],
    size: tuple[int, int],
    *,
    view: tuple[int, int] | None = None,
    device: torch.device | str = "cpu",
) -> Float[Tensor, "b h w"]:
    """m of a batch at the resolution of a layer, 0 or 1, resized by the nearest pixel; 1 all over without a mask.

    Args:
        index: positions in the split, on the CPU.
        size: (h, w).
        view: that of the images, see :class:`upcycle.core.batches.Split`. What a crop adds is background.
    """
    pixels, has, _ = masks.batch(index, device=torch.device(device), view=view)
    m = (F.interpolate(pixels, size, mode="nearest-exact")[:, 0] > 0.5).float()
    return m.where(has[:, None, None] > 0, 1.0)


def load_masks(path: str | Path, split: ImageSplit) -> ImageSplit:
    """Masks of training images from files; numbers that ``split`` does not have are passed over.

    Args:
        path: a folder of images named by the number of the training image (``17.png``), where anything but black is
            foreground; or a JSON file in the format of COCO, with polygons, whose ``image_id`` is that number.
        split: the images, which need not all have a mask.

    Raises:
        UserError: nothing there, a file that is neither, masks of another size, or none for these images.
    """
    path = Path(path)
    require(path.exists(), f"There are no masks at {path}: give a folder of PNG files or a COCO file, or gradcam.")
    read = _folder if path.is_dir() else _coco
    ids, pixels = read(path, split)
    place = {int(number): row for row, number in enumerate(split.ids)}
    known = [i for i, number in enumerate(ids) if number in place]
    require(bool(known), f"{path} holds no mask of a training image: name them by the images' numbers, such as "
            f"{int(split.ids[0])}.")  # fmt: skip
    return as_masks(pixels[known] > 0, torch.tensor([place[ids[i]] for i in known]), split)


def _folder(path: Path, split: ImageSplit) -> tuple[list[int], UInt8[Tensor, "m h w"]]:
    from upcycle.data.decode import read_images
    from upcycle.data.listing import image_files

    files = image_files(path)
    require(bool(files), f"{path} holds no image, so there are no masks; name them by the images' numbers (17.png).")
    odd = next((f for f in files if not f.stem.isdecimal()), None)
    require(odd is None, f"{odd} is not named by the number of a training image (17.png), so it is the mask of none.")
    return [int(f.stem) for f in files], read_images(files, channels=1)[..., 0]


def _coco(path: Path, split: ImageSplit) -> tuple[list[int], UInt8[Tensor, "m h w"]]:
    _, h, w = split.shape
    drawn: dict[int, Image.Image] = {}
    content = read(path, dict[str, Any])
    try:
        for image in content.get("images", ()):
            found = (int(image.get("width", w)), int(image.get("height", h)))
            require(found == (w, h), f"{path} has masks for images of {found[0]} x {found[1]} pixels (width x height), "
                    f"but the images are {w} x {h}; bring both to one size.")  # fmt: skip
        for annotation in content["annotations"]:
            polygons = annotation["segmentation"]
            require(isinstance(polygons, list), f"{path} holds run-length masks; only polygons are read.")
            mask = drawn.setdefault(int(annotation["image_id"]), Image.new("L", (w, h)))
            for polygon in polygons:
                ImageDraw.Draw(mask).polygon([float(x) for x in polygon], fill=1, outline=1)
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:
        raise UserError(
            f"{path} is not a file of masks in the format of COCO: {type(error).__name__} {error}."
        ) from None
    require(bool(drawn), f"{path} holds no annotation, so there are no masks.")
    pixels = [torch.frombuffer(bytearray(m.tobytes()), dtype=torch.uint8).view(h, w) for m in drawn.values()]
    return list(drawn), torch.stack(pixels)


def gradcam_masks(
    network: nn.Module, split: ImageSplit, layer: str | FeatureMap, *, device: torch.device | str
) -> ImageSplit:
    """Masks of all images from the network itself: where Grad-CAM of the true class is above its mean.

    Σ_ch α_ch F[ch] with α the spatial mean of G (Selvaraju et al., arXiv:1610.02391). F is taken before BatchNorm,
    whose shift would add a constant to the map, so the threshold is the map's mean and not zero (our choice). Such
    masks hold training to where the network looks already; they cannot tell it where to look.
    """
    _, height, width = split.shape
    maps = []
    for index in portions(network, len(split)):
        images, y, _ = split.batch(index, device=torch.device(device))
        with torch.enable_grad(), record_layer(network, layer, leaf=True) as seen:
            z = network(images)
        alpha = class_gradients(z, seen.f, y).mean((2, 3), keepdim=True)
        cam = (alpha * seen.f.detach()).sum(1)
        above = (cam > cam.mean((1, 2), keepdim=True)).float()
        maps.append(F.interpolate(above[:, None], (height, width), mode="nearest-exact")[:, 0].cpu() > 0.5)
    found = torch.cat(maps)
    rows = found.flatten(1).any(1).nonzero()[:, 0]
    return as_masks(found[rows], rows, split)
