"""Tables and data sets as others give them: types of labels, columns, the hub's file names, samples that are dicts."""

from __future__ import annotations

import types
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

import upcycle
from tests.data.test_data import encode, pixels, table
from upcycle.core.errors import UserError
from upcycle.core.reading import Reading
from upcycle.data import load


def rows(n: int, seed: int = 0) -> list[dict[str, Any]]:
    return [{"bytes": encode(pixels(8, 8, 3, seed=seed + i)), "path": f"{i}.png"} for i in range(n)]


def whole(data: upcycle.data.Images) -> tuple[torch.Tensor, torch.Tensor]:
    """The labels of training, validation and test images, and the numbers of the first two, in the table's order."""
    labels = torch.cat([data.train.labels, data.validation.labels, data.test.labels])
    ids = torch.cat([data.train.ids, data.validation.ids, data.test.ids])
    return labels[ids.argsort()], ids.sort().values


@pytest.mark.parametrize(
    "labels",
    [
        pa.array([0, 1] * 15, pa.uint8()),
        pa.array([0, 1] * 15, pa.uint64()),
        pa.array([0, 1] * 15, pa.int8()),
        pa.array([[0], [1]] * 15, pa.list_(pa.int64())),
        pa.array([[0], [1]] * 15, pa.list_(pa.uint8(), 1)),
        pa.array(["cat", "dog"] * 15),
        pa.array(["cat", "dog"] * 15, pa.large_string()),
        pa.array(["cat", "dog"] * 15).dictionary_encode(),
        pa.array([["cat"], ["dog"]] * 15),
    ],
    ids=str,
)
def test_labels_of_any_type(labels: pa.Array, tmp_path: Path) -> None:
    pq.write_table(pa.table({"image": rows(30), "label": labels}), tmp_path / "train.parquet")
    data = load(tmp_path)
    assert data.classes == (("cat", "dog") if "string" in str(labels.type) else ("0", "1"))
    found, ids = whole(data)
    assert found.tolist() == [0, 1] * 15 and ids.tolist() == list(range(30))
    assert np.array_equal(data.train.images[0], pixels(8, 8, 3, seed=int(data.train.ids[0])))


def test_unknown_labels_of_unsigned_type(tmp_path: Path) -> None:
    pq.write_table(pa.table({"image": rows(4), "label": pa.array([None] * 4, pa.uint8())}), tmp_path / "test.parquet")
    pq.write_table(
        pa.table({"image": rows(20), "label": pa.array([0, 1] * 10, pa.uint8())}), tmp_path / "train.parquet"
    )
    data = load(tmp_path)
    assert not data.test.labelled and data.train.labelled


def test_names_are_those_of_the_training_images_in_order(tmp_path: Path) -> None:
    pq.write_table(pa.table({"image": rows(30), "label": ["owl", "cat", "dog"] * 10}), tmp_path / "train.parquet")
    pq.write_table(pa.table({"image": rows(2, 50), "label": ["dog", "cat"]}), tmp_path / "test.parquet")
    data = load(tmp_path)
    assert data.classes == ("cat", "dog", "owl") and data.test.labels.tolist() == [1, 0]
    assert any(note.endswith("No test image of " + data.name + " belongs to the class 'owl'.") for note in data.notes)
    pq.write_table(pa.table({"image": rows(2, 50), "label": ["dog", "hen"]}), tmp_path / "test.parquet")
    with pytest.raises(UserError, match=r"test\.parquet has the class 'hen', which no training image has"):
        load(tmp_path)


def test_text_that_is_no_utf8(tmp_path: Path) -> None:
    odd = pa.StringArray.from_buffers(2, pa.array([0, 4, 7], pa.int32()).buffers()[1], pa.py_buffer(b"caf\xe9tea"))
    labels = pa.concat_arrays([odd] * 15)
    pq.write_table(pa.table({"image": rows(30), "label": labels}), tmp_path / "train.parquet")
    assert load(tmp_path).classes == (r"caf\xe9", "tea")


@pytest.mark.parametrize(
    ("image", "label"),
    [("img", "label"), ("image", "labels"), ("img", "fine_label"), ("image", "target"), ("jpg", "cls")],
)
def test_usual_names_of_columns(image: str, label: str, tmp_path: Path) -> None:
    columns = {image: rows(20), label: [0, 1] * 10, "coarse_label": [0] * 20}
    pq.write_table(pa.table(columns), tmp_path / "train.parquet")
    assert whole(load(tmp_path))[0].tolist() == [0, 1] * 10


def test_columns_can_be_named(tmp_path: Path) -> None:
    columns = {"scan": rows(20), "grade": ["low", "high"] * 10, "label": [0] * 20}
    pq.write_table(pa.table(columns), tmp_path / "train.parquet")
    data = load(tmp_path, columns=("scan", "grade"))
    assert data.classes == ("high", "low") and whole(data)[0].tolist() == [1, 0] * 10
    with pytest.raises(
        UserError, match=r"no image column .* but scan, grade, label\. Name .* --image_column and --label_column"
    ):
        load(tmp_path)
    with pytest.raises(UserError, match=r"has no 'grde', but scan, grade, label\. .* and --label_column"):
        load(tmp_path, columns=("scan", "grde"))
    # As options of a verb, on what a network takes.
    net = upcycle.resolve(
        "zoo:convnet_small", pretrained=False, num_classes=2, input_shape=(3, 8, 8), classes=("low", "high")
    )
    found = upcycle.evaluate(net, tmp_path, image_column="scan", label_column="grade")
    assert found.count == len(data.test) and found.classes == ("high", "low")


LAYOUTS = {
    "shards": ("train-00000-of-00002.parquet", "train-00001-of-00002.parquet", "test-00000-of-00001.parquet"),
    "data": ("data/train-00000-of-00001-1a2b.parquet", "data/validation-00000-of-00001.parquet"),
    "converted": ("default/train/0000.parquet", "default/train/0001.parquet", "default/test/0000.parquet"),
    "partial": ("plain_text/partial-train/0000.parquet", "plain_text/test/0000.parquet"),
    "folders": ("train/part.0.parquet", "test/part.0.parquet"),
    "other names": ("Training.parquet", "Testing.parquet"),
    "no split named": ("0000.parquet", "0001.parquet"),
    "validation and test": ("validation-00000-of-00001.parquet", "test-00000-of-00001.parquet"),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_file_names_of_the_hub_and_others(layout: str, tmp_path: Path) -> None:
    for k, name in enumerate(LAYOUTS[layout]):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.table({"image": rows(20, 100 * k), "label": [0, 1] * 10}), tmp_path / name)
    data = load(tmp_path)
    assert len(whole(data)[0]) == 20 * len(LAYOUTS[layout])
    separate = any("est" in name for name in LAYOUTS[layout])
    assert (len(data.test) == 20) == separate


def test_tables_that_cannot_be_placed(tmp_path: Path) -> None:
    pq.write_table(table([0, 1] * 10), tmp_path / "train.parquet")
    pq.write_table(table([0, 1] * 10), tmp_path / "extra.parquet")
    data = load(tmp_path)
    assert len(whole(data)[0]) == 20 and f"Left out of {tmp_path.name}: extra.parquet, which no" in data.notes[0]
    for name in ("one", "two"):
        (tmp_path / "sets" / name).mkdir(parents=True)
        pq.write_table(table([0, 1] * 10), tmp_path / "sets" / name / "train.parquet")
    with pytest.raises(UserError, match=r"several folders of Parquet files: one, two\. Give one of them"):
        load(tmp_path / "sets")
    (tmp_path / "only").mkdir()
    pq.write_table(table([0, 1] * 10), tmp_path / "only" / "test.parquet")
    with pytest.raises(UserError, match="only has a test split alone"):
        load(tmp_path / "only")


def test_a_path_in_a_table_never_leaves_its_folder(tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    for i in range(20):
        (tmp_path / "set" / f"{i}.png").write_bytes(encode(pixels(8, 8, seed=i)))
    (tmp_path / "secret.png").write_bytes(encode(pixels(8, 8)))
    (tmp_path / "set" / "link.png").symlink_to(tmp_path / "secret.png")
    for odd in ("../secret.png", str(tmp_path / "secret.png"), "link.png"):
        paths = [{"path": f"{i}.png"} for i in range(19)]
        images = pa.array([*paths, {"path": "19.png"}], pa.struct([("path", pa.string())]))
        pq.write_table(pa.table({"image": images, "label": [0, 1] * 10}), tmp_path / "set" / "train.parquet")
        assert len(whole(load(tmp_path / "set"))[0]) == 20
        images = pa.array([*paths, {"path": odd}], pa.struct([("path", pa.string())]))
        pq.write_table(pa.table({"image": images, "label": [0, 1] * 10}), tmp_path / "set" / "train.parquet")
        with pytest.raises(UserError, match="which is not in"):
            load(tmp_path / "set")


def test_drawn_splits_of_tables_stand_and_do_not_hang_on_shards(tmp_path: Path) -> None:
    images = rows(60)
    pq.write_table(pa.table({"image": images[:50], "label": [0, 1] * 25}), tmp_path / "train.parquet")
    before = load(tmp_path)
    (tmp_path / "train.parquet").unlink()
    for k in range(2):
        part = pa.table({"image": images[30 * k : 30 * k + 30], "label": [0, 1] * 15})
        pq.write_table(part, tmp_path / f"train-0000{k}-of-00002.parquet")
    after = load(tmp_path)
    for split in ("train", "validation", "test"):
        assert set(getattr(before, split).ids.tolist()) <= set(getattr(after, split).ids.tolist())


# -- samples ------------------------------------------------------------------------------------------------------


class Samples:
    """Samples as ``datasets`` gives them: dicts, features with names; and arrays, labels of one number in a list."""

    def __init__(self, samples: list[Any], **more: Any) -> None:
        self.samples = samples
        vars(self).update(more)

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, i: int) -> Any:
        return self.samples[i]


def picture(i: int) -> Image.Image:
    return Image.fromarray(pixels(8, 8, 3, seed=i))


def test_samples_that_are_dicts() -> None:
    features = {"image": None, "label": types.SimpleNamespace(names=["no", "yes"])}
    train = Samples([{"image": picture(i), "label": i % 2} for i in range(30)], features=features)
    data = load({"train": train, "validation": train, "test": train})
    assert data.classes == ("no", "yes") and data.test.labels.tolist() == [0, 1] * 15
    assert np.array_equal(data.test.images[7], pixels(8, 8, 3, seed=7))
    fine = Samples([{"img": picture(i), "coarse_label": 0, "fine_label": i % 2} for i in range(30)])
    assert whole(load(fine))[0].tolist() == [0, 1] * 15
    named = Samples([{"scan": picture(i), "grade": i % 2} for i in range(30)])
    assert whole(load(named, columns=("scan", "grade")))[0].tolist() == [0, 1] * 15
    with pytest.raises(UserError, match=r"sample of the train data set has no image column .* but scan, grade"):
        load(named)


@pytest.mark.parametrize("wrap", [lambda y: np.array([y]), lambda y: torch.tensor([y]), lambda y: [y], np.uint8])
def test_labels_of_one_number(wrap: Any) -> None:
    assert whole(load(Samples([(picture(i), wrap(i % 2)) for i in range(30)])))[0].tolist() == [0, 1] * 15


def test_images_that_are_arrays() -> None:
    data = load(Samples([(pixels(8, 8, 3, seed=i), i % 2) for i in range(30)]))
    assert np.array_equal(data.train.images[0], pixels(8, 8, 3, seed=int(data.train.ids[0])))
    grey = load(Samples([(pixels(8, 8, 1, seed=i), i % 2) for i in range(30)]))
    assert grey.shape == (1, 8, 8)
    with pytest.raises(UserError, match="float64 pixels"):
        load(Samples([(np.zeros((8, 8)), i % 2) for i in range(30)]))


# -- more than 8 bits ---------------------------------------------------------------------------------------------


def scans(root: Path, top: int, n: int = 30) -> Path:
    for k, name in enumerate(("a", "b")):
        (root / name).mkdir(parents=True)
        for i in range(n):
            values = np.random.default_rng(100 * k + i).integers(0, top, (8, 8)).astype(np.uint16)
            values[0, 0] = top
            Image.fromarray(values).save(root / name / f"{i:02d}.png")
    return root


def test_fewer_used_bits_are_scaled_by_the_largest_value(tmp_path: Path) -> None:
    data = load(scans(tmp_path / "scans", 1023))
    assert data.reading == Reading(white=1023) and data.train.images.amax() == 255
    assert sum("end at 1,023 among the training images" in note for note in data.notes) == 1
    values = np.asarray(Image.open(tmp_path / "scans" / "a" / "00.png")).astype(float)
    place = next(s for s in (data.train, data.validation, data.test) if 0 in s.ids.tolist())
    found = place.images[place.ids.tolist().index(0), :, :, 0].numpy()
    assert np.array_equal(found, np.floor(values * 255 / 1023 + 0.5))
    whole_range = load(scans(tmp_path / "wide", 65535))
    assert whole_range.reading == Reading(white=65535) and not any("white" in note for note in whole_range.notes)
    told = load(tmp_path / "scans", reading=Reading(white=2046))
    assert told.reading.white == 2046 and told.train.images.amax() == 128
    assert load(tmp_path / "scans", size=4).reading.white == 1023
    pictures = Samples([(Image.open(p), i % 2) for i, p in enumerate(sorted((tmp_path / "scans" / "a").iterdir()))])
    assert load(pictures).reading.white == 1023


def test_a_network_keeps_what_is_white(tmp_path: Path) -> None:
    """Brighter and darker images than those of the training are read as these were, in every verb."""
    scans(tmp_path / "scans", 1023)
    half = {"recipe": {"epochs": 1}, "quiet": True}
    made = upcycle.distill(
        method="tfkd", student="zoo:convnet_small", data=tmp_path / "scans", out=tmp_path / "run", **half
    )
    assert made.model.reading.white == 1023
    assert upcycle.load(tmp_path / "run").reading.white == 1023
    dark = scans(tmp_path / "dark", 511)
    found = upcycle.evaluate(tmp_path / "run", dark)
    right = upcycle.evaluate(tmp_path / "run", load(dark, reading=Reading(white=1023)))
    assert found.loss == right.loss
    wrong = upcycle.evaluate(tmp_path / "run", load(dark))
    assert found.loss != wrong.loss
    alone = upcycle.predict(tmp_path / "run", dark / "a" / "00.png").probabilities
    among = upcycle.predict(tmp_path / "run", dark / "a").probabilities[:1]
    assert torch.allclose(alone, among, atol=1e-6)
    other = upcycle.resolve("zoo:convnet_small", pretrained=False, num_classes=2, input_shape=(1, 8, 8))
    notes = upcycle.predict(other, dark).model.notes
    assert any("65,535 is taken for it, the end of their range (--white)" in note for note in notes)
    assert not any("--white" in note for note in upcycle.predict(other, dark, white=511).model.notes)
