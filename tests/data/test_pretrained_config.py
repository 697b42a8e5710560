"""Photographs as a pretrained network's own configuration has them: timm's logits, after saving and loading."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from upcycle.core import saved
from upcycle.core.errors import UserError
from upcycle.core.evaluate import predict_logits
from upcycle.core.reading import Reading
from upcycle.core.references import resolve
from upcycle.data.files import as_split, read_pictures
from upcycle.data.pixels import Form

timm = pytest.importorskip("timm")


def photographs(root: Path, n: int, least: int = 40, most: int = 120) -> list[Path]:
    """JPEG and PNG files of many sizes and proportions, smooth and with edges."""
    files = []
    for i in range(n):
        rng = np.random.default_rng(i)
        height, width = (int(x) for x in rng.integers(least, most, 2))
        rows, columns = np.mgrid[:height, :width] / 9.0
        waves = [np.sin(rows * a + columns * b) for a, b in rng.uniform(0.2, 2, (3, 2))]
        pixels = 127 + 80 * np.stack(waves, 2) + rng.normal(0, 15, (height, width, 3))
        pixels[height // 3 : height // 2, width // 3 : width // 2] = rng.integers(0, 255, 3)
        files.append(root / f"{i:03}.{'png' if i % 4 == 3 else 'jpg'}")
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(files[-1])
    return files


@pytest.mark.parametrize(("name", "resize"), [("test_resnet.r160_in1k", "center"), ("test_vit", "center")])
def test_logits_are_those_of_timms_own_pipeline(name: str, resize: str, tmp_path: Path) -> None:
    files = photographs(tmp_path, 100, 100, 400)
    torch.manual_seed(0)
    made = resolve(f"timm:{name}", pretrained=False)
    saved.save(made, tmp_path / "saved")
    model = saved.load(tmp_path / "saved")
    assert model.reading == made.reading and model.reading.resize == resize

    config = timm.data.resolve_data_config(pretrained_cfg=timm.get_pretrained_cfg(name).to_dict())
    transform = timm.data.create_transform(**config)
    theirs = torch.stack([transform(Image.open(file).convert("RGB")) for file in files])
    with torch.no_grad():
        wanted = made.module.eval()(theirs)

    c, h, w = model.input_shape
    pixels, _, _ = read_pictures(tmp_path, Form(size=(h, w), channels=c, reading=model.reading))
    found = predict_logits(model.module, as_split(pixels.images, model))
    assert wanted.std() > 1e-3
    torch.testing.assert_close(found, wanted, atol=1e-4, rtol=0)


@pytest.mark.parametrize("size", [(48, 48), (48, 64)])
@pytest.mark.parametrize("crop_pct", [1.0, 0.875, 0.9])
@pytest.mark.parametrize(
    ("mode", "interpolation"), [("center", "bicubic"), ("center", "bilinear"), ("squash", "bicubic")]
)
def test_pixels_are_those_of_timms_own_pipeline(
    mode: str, interpolation: str, crop_pct: float, size: tuple[int, int], tmp_path: Path
) -> None:
    files = photographs(tmp_path, 12)
    transform = timm.data.create_transform(
        (3, *size), interpolation=interpolation, crop_pct=crop_pct, crop_mode=mode, normalize=False
    )
    wanted = torch.stack([transform(Image.open(file).convert("RGB")) for file in files]).permute(0, 2, 3, 1)
    reading = Reading(resize=mode, interpolation=interpolation, crop_pct=crop_pct)
    found, _, _ = read_pictures(tmp_path, Form(size=size, channels=3, reading=reading))
    assert torch.equal(found.images, wanted)


def test_another_size_than_its_own_is_read_as_usual() -> None:
    assert resolve("timm:test_resnet", pretrained=False, input_shape=(3, 32, 32)).reading == Reading()


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"crop_pct": 0.01, "resize": "center"}, "from 0.25 to 1"),
        ({"crop_pct": 0.9}, "goes with resize center or squash"),
        ({"interpolation": "cubic"}, "interpolation must be one of nearest"),
    ],
)
def test_a_reading_that_is_none(fields: dict[str, object], words: str) -> None:
    with pytest.raises(UserError, match=words):
        Reading(**fields)  # type: ignore[arg-type]
