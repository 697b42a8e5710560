"""Masks of the foreground: read from files, moved with the images, resized by the nearest pixel."""

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from PIL import Image

from tests.settings import fitted, tiny_data
from upcycle.core.errors import UserError
from upcycle.core.recipe import Recipe
from upcycle.core.run import Run
from upcycle.data.images import ImageSplit
from upcycle.diagnosis import ModelDoctor
from upcycle.diagnosis.errors.class_channels import probe
from upcycle.diagnosis.errors.foreground import as_masks, foreground, gradcam_masks, load_masks

ALL = torch.arange(160)


@pytest.fixture
def split() -> ImageSplit:
    return tiny_data().train


def left_half() -> torch.Tensor:
    return torch.arange(8)[None].lt(4).expand(8, 8)


def test_a_mask_is_moved_as_its_image(split: ImageSplit) -> None:
    # A mask that is its own image stays so, whatever the view.
    shape = split.images[..., 0] > 128
    split = dataclasses.replace(split, images=(shape * 255).byte()[..., None], augment=("crop", "flip"), mean=(0.0,),
                                std=(1.0,))  # fmt: skip
    masks = as_masks(shape, ALL, split)
    moved = 0
    for epoch in range(3):
        view = (5, epoch)
        seen = split.batch(ALL, device=torch.device("cpu"), view=view).images[:, 0]
        m = foreground(masks, ALL, (8, 8), view=view)
        assert torch.equal(m, (seen > 0.5).float())
        moved += int(not torch.equal(m, shape.float()))
    assert moved == 3


def test_without_a_mask_all_is_foreground_also_where_a_crop_adds_pixels(split: ImageSplit) -> None:
    split = dataclasses.replace(split, augment=("crop", "flip", "color"))
    masks = as_masks(left_half()[None], torch.tensor([7]), split)
    for view in (None, (0, 1)):
        m = foreground(masks, ALL, (4, 4), view=view)
        assert m.shape == (160, 4, 4)
        assert float(m[ALL != 7].min()) == 1.0 and 0 < float(m[7].mean()) < 1
    assert torch.equal(foreground(masks, torch.tensor([7, 3]), (4, 4))[0], left_half()[::2, ::2].float())


def test_a_folder_of_masks_is_matched_by_number(tmp_path: Path, split: ImageSplit) -> None:
    split = split.subset(torch.arange(20, 60))
    number = int(split.ids[11])
    Image.fromarray((left_half() * 255).byte().numpy()).save(tmp_path / f"{number}.png")
    Image.fromarray((~left_half() * 1).byte().numpy()).save(tmp_path / f"{int(split.ids[0])}.png")
    Image.fromarray((left_half() * 255).byte().numpy()).save(tmp_path / "999999.png")  # of no training image
    m = foreground(load_masks(tmp_path, split), torch.tensor([11, 0, 1]), (8, 8))
    assert torch.equal(m, torch.stack([left_half(), ~left_half(), torch.ones(8, 8)]).float())


def test_polygons_in_the_format_of_coco(tmp_path: Path, split: ImageSplit) -> None:
    file = tmp_path / "masks.json"
    number = int(split.ids[5])
    file.write_text(json.dumps({
        "images": [{"id": number, "width": 8, "height": 8}],
        "annotations": [
            {"image_id": number, "segmentation": [[0, 0, 3, 0, 3, 7, 0, 7]]},
            {"image_id": number, "segmentation": [[6, 6, 7, 6, 7, 7, 6, 7]]},
        ],
    }))  # fmt: skip
    m = foreground(load_masks(file, split), torch.tensor([5]), (8, 8))[0].bool()
    expected = left_half().clone()
    expected[6:, 6:] = True
    assert torch.equal(m, expected)


def test_masks_that_do_not_fit_are_named(tmp_path: Path, split: ImageSplit) -> None:
    with pytest.raises(UserError, match="no masks at"):
        load_masks(tmp_path / "nowhere", split)
    folder = tmp_path / "folder"
    folder.mkdir()
    with pytest.raises(UserError, match="holds no image"):
        load_masks(folder, split)
    Image.new("L", (16, 16), 255).save(folder / f"{int(split.ids[0])}.png")
    with pytest.raises(UserError, match=r"16 x 16 pixels.*images 8 x 8"):
        load_masks(folder, split)
    Image.new("L", (16, 16), 255).save(folder / "cat.png")
    with pytest.raises(UserError, match=r"cat.png is not named"):
        load_masks(folder, split)

    file = tmp_path / "masks.json"
    for content, match in (
        ("[1", "is not JSON"),
        ("{}", "format of COCO"),
        ('{"annotations": []}', "no annotation"),
        ('{"annotations": [{"image_id": 1, "segmentation": {"counts": "a"}}]}', "run-length"),
        ('{"annotations": [{"image_id": 1, "segmentation": [[0, 0, 1]]}]}', "format of COCO"),
        ('{"images": [{"id": 1, "width": 9, "height": 8}], "annotations": []}', "9 x 8"),
        ('{"annotations": [{"image_id": 123456, "segmentation": [[0, 0, 1, 0, 1, 1]]}]}', "no mask of a training"),
    ):
        file.write_text(content)
        with pytest.raises(UserError, match=match):
            load_masks(file, split)


def test_gradcam_marks_a_part_of_every_image(split: ImageSplit) -> None:
    network = probe(fitted("source", 7).module)
    masks = gradcam_masks(network, split, "conv2", device="cpu")
    m = foreground(masks, ALL, (4, 4))
    assert int(masks.labels.sum()) > 150
    of = m[masks.labels > 0].mean((1, 2))
    assert float(of.min()) > 0 and float(of.max()) < 1


def test_masks_from_files_take_part_in_training(tmp_path: Path) -> None:
    data = tiny_data()
    for i in range(40):
        Image.fromarray((left_half() * 255).byte().numpy()).save(tmp_path / f"{int(data.train.ids[i])}.png")
    states = []
    for b in (0.0, 1.0):
        method = ModelDoctor(source=fitted("source", 7), a=0.0, b=b, masks=str(tmp_path),
                             recipe=Recipe(epochs=1, batch_size=32, lr=0.01))  # fmt: skip
        method.require(data)
        states.append(method.fit(Run(None, precision="32-true", quiet=True), data).state_dict())
    assert not torch.equal(states[0]["linear.weight"], states[1]["linear.weight"])
