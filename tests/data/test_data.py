"""Data sets: where they come from, what is drawn from them, and that bad ones are named."""

import dataclasses
import gzip
import io
import json
import os
import random
import string
import sys
import types
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch.utils.data import DataLoader, Dataset, TensorDataset

from upcycle.core import fetching
from upcycle.core.errors import UserError
from upcycle.data import (
    Images,
    ImageSplit,
    check_reference,
    describe,
    load,
    match_classes,
    memory,
    read_images,
    read_label_map,
)
from upcycle.data import images as images_module
from upcycle.data.collection import stratified

CPU = torch.device("cpu")


def pixels(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def encode(array: np.ndarray, kind: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, kind, **options)
    return buffer.getvalue()


def folder(root: Path, counts: dict[str, int], shape: tuple[int, ...] = (8, 8, 3)) -> Path:
    """Class folders of random PNG images; each image's first pixel tells its class and number."""
    for k, (name, count) in enumerate(counts.items()):
        (root / name).mkdir(parents=True)
        for i in range(count):
            array = pixels(*shape, seed=1000 * k + i)
            array[0, 0] = i
            (root / name / f"{i:03}.png").write_bytes(encode(array))
    return root


# --- named sets ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def digits() -> Images:
    return load("digits")


def test_digits_are_scikit_learns_each_in_one_split(digits: Images) -> None:
    from sklearn.datasets import load_digits

    found = load_digits()
    splits = (digits.train, digits.validation, digits.test)
    assert [len(s) for s in splits] == [1000, 297, 500] and digits.shape == (1, 8, 8)
    ids = torch.cat([s.ids for s in splits])
    assert sorted(ids.tolist()) == list(range(1797))
    assert np.array_equal(torch.cat([s.labels for s in splits]), found.target[ids])
    expected = np.floor(found.images[ids] * 255 / 16 + 0.5)
    assert np.array_equal(torch.cat([s.images for s in splits])[..., 0], expected)
    share = [torch.bincount(s.labels) / len(s) for s in splits]
    assert max((a - b).abs().max() for a in share for b in share) < 0.005  # stratified
    assert "ours" in " ".join(digits.notes)
    assert describe(digits) == "digits: 1,000 train, 297 validation, 500 test images, 10 classes, 1 x 8 x 8"
    assert torch.equal(load("digits").test.ids, digits.test.ids)


def test_size_and_channels_of_arrays(digits: Images) -> None:
    big = load("digits", size=16, channels=3)
    assert big.shape == (3, 16, 16) and torch.equal(big.train.ids, digits.train.ids)
    one, two, three = big.train.images.unbind(3)
    assert torch.equal(one, two) and torch.equal(two, three)
    image = Image.fromarray(digits.train.images[0, :, :, 0].numpy()).resize((16, 16), Image.Resampling.BILINEAR)
    assert np.abs(np.asarray(image).astype(int) - one[0].numpy()).max() <= 1


def idx(root: Path, split: str, images: np.ndarray, labels: np.ndarray) -> None:
    for kind, array in (("images-idx3", images), ("labels-idx1", labels.astype(np.uint8))):
        head = bytes([0, 0, 8, array.ndim]) + b"".join(n.to_bytes(4, "big") for n in array.shape)
        (root / f"{split}-{kind}-ubyte.gz").write_bytes(gzip.compress(head + array.tobytes()))


@pytest.fixture
def fashion(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    root = tmp_path / "fashion_mnist"
    root.mkdir()
    idx(root, "train", pixels(200, 28, 28), np.arange(200) % 10)
    idx(root, "t10k", pixels(20, 28, 28), np.array([9, 2, 1, 1, 6, 1, 4, 6, 5, 7, *range(10)]))
    monkeypatch.setenv("UPCYCLE_DATA", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    return root


def test_idx_files(fashion: Path) -> None:
    data = load("fashion_mnist")
    assert [len(s) for s in (data.train, data.validation, data.test)] == [180, 20, 20]
    assert torch.equal(data.train.images[..., 0], torch.from_numpy(pixels(200, 28, 28))[data.train.ids])
    assert torch.bincount(data.validation.labels).tolist() == [2] * 10 and data.classes[9] == "Ankle boot"


def test_another_split_does_not_pass_for_the_official_one(fashion: Path) -> None:
    idx(fashion, "t10k", pixels(20, 28, 28), np.arange(20) % 10)
    with pytest.raises(UserError, match=r"official split.*fashion_mnist_local"):
        load("fashion_mnist")


@pytest.mark.parametrize("damage", [lambda b: b[:-20], lambda b: b[:3], lambda b: b"", lambda b: gzip.compress(b"x")])
def test_damaged_idx_files_are_named(fashion: Path, damage: Callable[[bytes], bytes]) -> None:
    path = fashion / "train-images-idx3-ubyte.gz"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(UserError, match=r"train-images-idx3-ubyte\.gz is damaged"):
        load("fashion_mnist")


def test_real_sets(monkeypatch: pytest.MonkeyPatch) -> None:
    if not os.environ.get("UPCYCLE_DATA"):
        pytest.skip("UPCYCLE_DATA is not set")
    usps = load("usps")
    both = torch.bincount(torch.cat([usps.train.labels, usps.validation.labels]))
    assert both.tolist() == [1194, 1005, 731, 658, 652, 556, 664, 645, 542, 644] and usps.shape == (1, 16, 16)
    mnist = load("mnist")
    assert [len(s) for s in (mnist.train, mnist.validation, mnist.test)] == [55_000, 5_000, 10_000]
    assert mnist.statistics[0][0] == pytest.approx(0.1307, abs=5e-4)


def test_cifar10_is_the_official_one() -> None:
    if not os.environ.get("UPCYCLE_DATA"):
        pytest.skip("UPCYCLE_DATA is not set")
    data = load("cifar10")
    assert data.shape == (3, 32, 32) and len(data.train) == 45_000 and len(data.test) == 10_000
    order = torch.cat([data.train.ids, data.validation.ids]).argsort()
    whole = torch.cat([data.train.images, data.validation.images])[order]
    mean = whole.view(-1, 3).double().mean(0) / 255
    assert mean.tolist() == pytest.approx([0.49139968, 0.48215819, 0.44653040], abs=1e-7)
    table = pq.read_table(Path(os.environ["UPCYCLE_DATA"]) / "cifar10" / "test.parquet")
    assert data.test.labels.tolist() == table["label"].to_pylist()
    for i in (0, 4321, 9999):
        image = Image.open(io.BytesIO(table["img"][i].as_py()["bytes"]))
        assert np.array_equal(data.test.images[i], image)


@pytest.mark.parametrize(
    ("reference", "words"),
    [
        ("cifar", "no data set or folder 'cifar'. Did you mean 'cifar10'"),
        ("Digitz", "Did you mean 'digits'"),
        ("./nowhere/at/all", "no folder ./nowhere/at/all"),
        ("hub:cifar10", "hub:ORG/NAME"),
        (__file__, "is a file"),
        (Path("digits"), "no folder digits"),
    ],
)
def test_unknown_references(reference: str | Path, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for function in (check_reference, load):
        with pytest.raises(UserError) as caught:
            function(reference)
        assert words in str(caught.value)


def test_a_set_that_is_not_here_says_what_to_fetch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    monkeypatch.delenv("UPCYCLE_DATA", raising=False)
    check_reference("cifar10")
    with pytest.raises(UserError, match=r"train\.parquet.*\$UPCYCLE_DATA/cifar10; .* is not set"):
        load("cifar10")
    monkeypatch.setenv("UPCYCLE_DATA", str(tmp_path))
    with pytest.raises(UserError, match=rf"put them into {tmp_path}/mnist\."):
        load("mnist")


# --- folders ------------------------------------------------------------------------------------------------


def test_a_folder_of_class_folders(tmp_path: Path) -> None:
    root = folder(tmp_path / "pets", {"dog": 20, "cat": 30})
    (root / "cat" / "notes.txt").write_text("not an image")
    (root / ".hidden").mkdir()
    data = load(root)
    assert data.name == "pets" and data.classes == ("cat", "dog") and data.shape == (3, 8, 8)
    counts = [len(s) for s in (data.train, data.validation, data.test)]
    assert sum(counts) == 50 and min(counts) >= 1 and counts[0] > 20
    assert data.notes[0] == (
        "Left out of pets: 1 hidden file or folder (.hidden), 1 file that is no image by its name (notes.txt)."
    )
    assert f"The test split of pets is ours: {counts[2]} of its 50 training images, by what they hold" in data.notes[1]
    assert sum("ours" in note for note in data.notes) == 2
    # Sorted by class and name, so id 30 is the first dog; each pixel is where its label is.
    for split in (data.train, data.validation, data.test):
        for image, label, i in zip(split.images, split.labels.tolist(), split.ids.tolist(), strict=True):
            number = i - 30 * label
            expected = pixels(8, 8, 3, seed=1000 * (1 - label) + number)
            assert label == (i >= 30) and np.array_equal(image[1:], expected[1:]) and image[0, 0, 0] == number


def test_a_folder_with_splits(tmp_path: Path) -> None:
    for split, counts in (("train", [10, 12]), ("val", [3, 4]), ("test", [5, 6])):
        folder(tmp_path / split, dict(zip(("a", "b"), counts, strict=True)))
    data = load(str(tmp_path))
    assert [torch.bincount(s.labels).tolist() for s in (data.train, data.validation, data.test)] == [
        [10, 12], [3, 4], [5, 6]]  # fmt: skip
    splits = "train (train), val (validation), test (test)"
    assert data.notes == [f"The splits of {tmp_path.name} are its folders {splits}."]
    (tmp_path / "test" / "c").mkdir()
    with pytest.raises(UserError, match=r"'c'.*Known: a, b"):
        load(tmp_path)


def test_a_class_may_be_called_train(tmp_path: Path) -> None:
    assert load(folder(tmp_path, {"boat": 10, "train": 10})).classes == ("boat", "train")


def test_images_without_labels(tmp_path: Path) -> None:
    folder(tmp_path, {"pictures": 20})
    data = load(tmp_path / "pictures")
    assert data.classes == () and (data.train.labels == -1).all() and 0 < len(data.train) < 20
    assert any("no labels" in note for note in data.notes)
    assert len(data.hide_labels(0, seed=0).train) == len(data.train)
    with pytest.raises(UserError, match="no labels to draw"):
        data.few(1, seed=0)
    with pytest.raises(UserError, match="1 class;"):
        load(tmp_path)


def test_folder_named_like_an_official_set(tmp_path: Path) -> None:
    assert load(folder(tmp_path / "cifar10", {"a": 10, "b": 10})).name == "cifar10_local"


def test_empty_classes_are_named(tmp_path: Path) -> None:
    folder(tmp_path, {"a": 3, "b": 3})
    (tmp_path / "void").mkdir()
    with pytest.raises(UserError, match=r"no image in .*void\."):
        load(tmp_path)


def test_images_that_differ_in_size_need_one(tmp_path: Path) -> None:
    folder(tmp_path / "x", {"a": 6, "b": 6})
    (tmp_path / "x" / "a" / "tall.png").write_bytes(encode(pixels(40, 20, 3)))
    with pytest.raises(UserError, match=r"differ in size: 8 x 8 .*20 x 40 \(.*tall\.png\).*--size 8"):
        load(tmp_path / "x")
    assert load(tmp_path / "x", size=12).shape == (3, 12, 12)


def test_size_is_the_shorter_side_then_the_centre(tmp_path: Path) -> None:
    array = np.zeros((40, 20), np.uint8)
    array[10:30] = 200
    (tmp_path / "a.png").write_bytes(encode(array))
    assert (read_images([tmp_path / "a.png"], size=20) == 200).all()
    assert read_images([tmp_path / "a.png"], size=7).shape == (1, 7, 7, 1)
    with pytest.raises(UserError, match="at least 4"):
        read_images([tmp_path / "a.png"], size=2)


def test_a_size_may_have_two_sides(tmp_path: Path) -> None:
    """Height and width: what covers both, then the centre; a square is the special case."""
    array = np.zeros((40, 20), np.uint8)
    array[15:25] = 200
    (tmp_path / "a.png").write_bytes(encode(array))
    assert (read_images([tmp_path / "a.png"], size=(10, 20)) == 200).all()
    assert torch.equal(read_images([tmp_path / "a.png"], size=(9, 9)), read_images([tmp_path / "a.png"], size=9))
    with pytest.raises(UserError, match="at least 4"):
        read_images([tmp_path / "a.png"], size=(16, 2))
    assert load("digits", size=(16, 48)).shape == (1, 16, 48)
    assert torch.equal(load("digits", size=(12, 12)).train.images, load("digits", size=12).train.images)


def test_grey_until_a_coloured_image_comes(tmp_path: Path) -> None:
    grey, colour = pixels(8, 8), pixels(8, 8, 3)
    for name, array in (("0", grey), ("1", colour), ("2", grey)):
        (tmp_path / f"{name}.png").write_bytes(encode(array))
    files = sorted(tmp_path.iterdir())
    assert read_images([files[0], files[2]]).shape == (2, 8, 8, 1)
    both = read_images(files)
    assert both.shape == (3, 8, 8, 3) and np.array_equal(both[1], colour)
    assert all(np.array_equal(both[2, :, :, c], grey) for c in range(3))
    assert np.array_equal(read_images(files, channels=1)[1, :, :, 0], Image.fromarray(colour).convert("L"))


# --- odd and broken images ----------------------------------------------------------------------------------


def test_sixteen_bits_are_rounded_to_eight(tmp_path: Path) -> None:
    values = np.linspace(0, 65535, 64).astype(np.uint16).reshape(8, 8)
    for kind in ("png", "tif"):
        Image.fromarray(values).save(tmp_path / f"a.{kind}")
        found = read_images([tmp_path / f"a.{kind}"])
        assert np.array_equal(found[0, :, :, 0], np.round(values / 257))


def test_odd_images_become_rgb(tmp_path: Path) -> None:
    """All show the same: CMYK and progressive JPEG, palette with transparency, RGBA, GIF, WebP, BMP, PPM."""
    array = np.zeros((16, 16, 3), np.uint8)
    array[:8] = (200, 40, 90)
    image = Image.fromarray(array)
    image.convert("CMYK").save(tmp_path / "cmyk.jpg", quality=100, subsampling=0)
    image.save(tmp_path / "progressive.jpg", quality=100, subsampling=0, progressive=True)
    image.convert("P", palette=Image.Palette.ADAPTIVE).save(tmp_path / "palette.png", transparency=bytes([0, 255]))
    image.convert("RGBA").save(tmp_path / "rgba.png")
    image.save(tmp_path / "a.gif")
    image.save(tmp_path / "a.webp", lossless=True)
    image.save(tmp_path / "a.bmp")
    image.save(tmp_path / "a.ppm")
    files = sorted(tmp_path.iterdir())
    assert len(files) == 8
    for file, found in zip(files, read_images(files).numpy().astype(int), strict=True):
        assert np.abs(found - array).max() <= (4 if file.suffix == ".jpg" else 0), file
    Image.fromarray(array[:, :, 0] > 100).save(tmp_path / "bit.png")
    assert np.array_equal(read_images([tmp_path / "bit.png"])[0, :, :, 0], (array[:, :, 0] > 100) * 255)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(tmp_path: Path, orientation: int) -> None:
    upright = np.zeros((16, 24, 3), np.uint8)
    upright[:8, :8] = 255  # the upper left corner of what is to be seen
    # How the camera stores it, by the EXIF table: undo what a viewer does.
    stored = {1: upright, 2: upright[:, ::-1], 3: upright[::-1, ::-1], 4: upright[::-1],
              5: upright.transpose(1, 0, 2), 6: np.rot90(upright), 7: np.rot90(upright, 2).transpose(1, 0, 2),
              8: np.rot90(upright, -1)}[orientation]  # fmt: skip
    exif = Image.Exif()
    exif[0x0112] = orientation
    for kind in ("jpg", "png", "webp"):
        path = tmp_path / f"a.{kind}"
        Image.fromarray(np.ascontiguousarray(stored)).save(path, exif=exif, quality=100)
        found = read_images([path])
        assert found.shape == (1, 16, 24, 3)
        assert found[0, :7, :7].min() > 200 and found[0, 10:].max() < 50 and found[0, :, 12:].max() < 50


def broken(root: Path) -> dict[str, str]:
    """Files that are no images (any more), and a word that the error has for each."""
    png, jpeg = encode(pixels(64, 64, 3)), encode(pixels(64, 64, 3), "JPEG")
    (root / "truncated.png").write_bytes(png[: len(png) // 2])
    (root / "truncated.jpg").write_bytes(jpeg[: len(jpeg) // 2])
    (root / "head.jpg").write_bytes(jpeg[:10])
    (root / "flipped.png").write_bytes(png[:5000] + bytes([png[5000] ^ 1]) + png[5001:])
    (root / "empty.png").write_bytes(b"")
    (root / "text.png").write_text("I am not an image")
    (root / "script.jpg").write_text("%!PS-Adobe-3.0 EPSF-3.0\n")
    (root / "one.png").write_bytes(encode(pixels(1, 1, 3)))
    Image.fromarray(np.full((8, 8), 1e6, np.float32)).save(root / "float.tif")
    Image.fromarray(np.full((8, 8), 10**6, np.int32)).save(root / "deep.tif")
    (root / "link.png").symlink_to(root / "nowhere")
    return {"truncated.png": "truncated", "truncated.jpg": "truncated", "head.jpg": "", "flipped.png": "",
            "empty.png": "0 bytes", "text.png": "not a PNG", "script.jpg": "not a PNG", "one.png": "1 x 1",
            "float.tif": "floating-point", "deep.tif": "32-bit", "link.png": "No such file"}  # fmt: skip


@pytest.mark.parametrize("size", [None, 32])
def test_each_broken_image_is_named(tmp_path: Path, size: int | None) -> None:
    (tmp_path / "good.png").write_bytes(encode(pixels(64, 64, 3)))
    for name, word in broken(tmp_path).items():
        with pytest.raises(UserError) as caught:
            read_images([tmp_path / "good.png", tmp_path / name], size=size)
        message = str(caught.value)
        assert name in message and word in message and "1 of 2" in message and "0x" not in message
        assert "good.png" not in message and "\n" not in message


def test_all_broken_images_are_looked_for(tmp_path: Path) -> None:
    folder(tmp_path, {"a": 10, "b": 10})
    count = len(broken(tmp_path / "b")) - 1  # the dangling link is no file of the folder
    with pytest.raises(UserError, match=rf"{count} of {20 + count} images .*\({count} images in all\)"):
        load(tmp_path, size=8)


def test_large_images_in_threads_keep_their_order(tmp_path: Path) -> None:
    arrays = [pixels(100, 100, 3, seed=i) for i in range(20)]
    for i, array in enumerate(arrays):
        (tmp_path / f"{i:02}.png").write_bytes(encode(array))
    assert (tmp_path / "00.png").stat().st_size > 20_000
    assert np.array_equal(read_images(sorted(tmp_path.iterdir())), arrays)


def test_what_does_not_fit_the_memory_is_refused_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = folder(tmp_path / "x", {"a": 10, "b": 10})
    assert memory.free_memory() > 10_000_000
    monkeypatch.setattr(memory, "free_memory", lambda: 3_000)
    with pytest.raises(UserError, match="GB in memory"):
        load(root)


# --- Parquet and the hub ------------------------------------------------------------------------------------

FEATURES = {
    "info": {"features": {"image": {"_type": "Image"}, "label": {"names": ["no", "yes"], "_type": "ClassLabel"}}}
}


def table(labels: list[int | None], content: Callable[[int], bytes | None] | None = None) -> pa.Table:
    content = content or (lambda i: encode(pixels(8, 8, 3, seed=i)))
    rows = [{"bytes": content(i), "path": f"{i}.png"} for i in range(len(labels))]
    found = pa.table({"image": rows, "label": pa.array(labels, pa.int64())})
    return found.replace_schema_metadata({b"huggingface": json.dumps(FEATURES).encode()})


def test_parquet_in_shards(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    whole = table([0, 1] * 50)
    pq.write_table(whole.slice(0, 30), tmp_path / "data" / "train-00000-of-00002.parquet", row_group_size=7)
    pq.write_table(whole.slice(30), tmp_path / "data" / "train-00001-of-00002.parquet")
    pq.write_table(table([0, 1, 1]), tmp_path / "data" / "test-00000-of-00001.parquet")
    data = load(tmp_path)
    assert data.classes == ("no", "yes") and len(data.train) + len(data.validation) == 100 and len(data.test) == 3
    for split in (data.train, data.validation):
        assert torch.equal(split.labels, split.ids % 2)
        for image, i in zip(split.images, split.ids.tolist(), strict=True):
            assert np.array_equal(image, pixels(8, 8, 3, seed=i))


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (table([0, 1, 7, 1, -3]), "between 0 and 1 .* row 2 of .*train.parquet has 7, row 4 .* has -3"),
        (table([0, 1, None, 1]), "row 2 of .* has -1"),
        (table([0] * 10), "class 'yes'"),
        (
            table([0, 1] * 9, lambda i: None if i == 3 else encode(pixels(8, 8))),
            r"1 of \d+ images .*row 3 of",
        ),
        (table([0, 1] * 9, lambda i: b"\x89PNG" if i > 3 else encode(pixels(8, 8))), r"row 4 of .*in all"),
        (pa.table({"img": ["a"], "label": [0]}), "column 'img' .* holds string"),
        (pa.table({"image": [b"a"], "label": [0.5]}), "column 'label' .* holds double"),
        (pa.table({"image": [b"a"], "label": ["cat"]}), "1 class; a classifier needs"),
        (pa.table({"image": [b"a"], "label": [[0, 1]]}), "lists of other lengths than 1"),
        (pa.table({"image": [b"a"], "label": pa.array([2**63], pa.uint64())}), "column 'label' .* no class numbers"),
        (pa.table({"text": ["a"], "label": [0]}), "no image column .* text, label.* --image_column and"),
        (table([0, 1]).slice(0, 0), "split of .* is empty"),
    ],
)
def test_bad_parquet_is_named(tmp_path: Path, content: pa.Table, words: str) -> None:
    pq.write_table(content, tmp_path / "train.parquet")
    with pytest.raises(UserError, match=words):
        load(tmp_path)


def test_damaged_parquet_is_named(tmp_path: Path) -> None:
    path = tmp_path / "train.parquet"
    pq.write_table(table([0, 1] * 20), path)
    whole = path.read_bytes()
    for damaged in (whole[:-50], whole[:100], b""):
        path.write_bytes(damaged)
        with pytest.raises(UserError, match=r"train\.parquet is not a whole Parquet file"):
            load(tmp_path)


def test_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    """Through a stand-in for ``datasets`` with what is used of it."""
    from huggingface_hub import constants

    stand_in, answers = types.ModuleType("datasets"), [True]
    stand_in.config = types.SimpleNamespace(HF_HUB_OFFLINE=False)
    monkeypatch.setitem(sys.modules, "datasets", stand_in)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.delenv("UPCYCLE_OFFLINE")
    monkeypatch.setattr(fetching, "_answers", lambda server, minute: answers[0])

    def split(labels: list[int | None]) -> types.SimpleNamespace:
        return types.SimpleNamespace(
            data=types.SimpleNamespace(table=table(labels)),
            features={"label": types.SimpleNamespace(names=["no", "yes"])},
            info=types.SimpleNamespace(license="MIT"),
        )

    stand_in.load_dataset = lambda name: {"train": split([0, 1] * 20), "test": split([1, 0])}
    data = load("hub:org/name")
    assert (data.name, data.licence, data.classes) == ("org/name", "MIT", ("no", "yes"))
    assert len(data.train) + len(data.validation) == 40 and len(data.test) == 2

    def offline(name: str) -> None:
        raise ConnectionError(f"Couldn't reach '{name}' on the Hub\nand a traceback of details")

    stand_in.load_dataset = offline
    with pytest.raises(UserError, match=r"Cannot load hub:org/name: Couldn't reach .* Without a network, .* Parquet"):
        load("hub:org/name")

    asked = []

    def kept(name: str) -> dict[str, types.SimpleNamespace]:
        asked.append((stand_in.config.HF_HUB_OFFLINE, constants.HF_HUB_OFFLINE))
        return {"train": split([0, 1] * 20)}

    answers[0] = False  # one try has failed, and nobody is asked again
    with pytest.raises(UserError, match=r"^hub:org/name is not kept on this machine, and .* does not answer within 5"):
        load("hub:org/name")
    stand_in.load_dataset = kept
    assert len(load("hub:org/name").train) > 20 and asked == [(True, True)]
    assert not stand_in.config.HF_HUB_OFFLINE and not constants.HF_HUB_OFFLINE
    with fetching.nothing_fetched("a dry run downloads nothing"):
        stand_in.load_dataset = offline
        with pytest.raises(UserError, match=r"and a dry run downloads nothing\. Give the folder of its Parquet files"):
            load("hub:org/name")
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(UserError, match=r"pip install 'upcycle\[hub\]'"):
        load("hub:org/name")


# --- torch Datasets -----------------------------------------------------------------------------------------


class Pairs(Dataset):  # type: ignore[type-arg]
    classes = ("zero", "one")

    def __init__(self, *images: object, labels: list[object] | None = None) -> None:
        self.images, self.labels = images, labels

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, i: int) -> tuple[object, object]:
        return self.images[i], i % 2 if self.labels is None else self.labels[i]


def test_a_dataset_of_float_tensors() -> None:
    x = torch.rand(40, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    data = load(DataLoader(TensorDataset(x, torch.arange(40) % 2), batch_size=7, shuffle=True))
    assert data.shape == (3, 8, 8) and len(data.train) + len(data.validation) + len(data.test) == 40
    assert torch.equal(data.train.images, x[data.train.ids]) and data.classes == ("0", "1")
    data = data.normalised((0.5, 0.4, 0.3), (0.1, 0.2, 0.3))
    batch = data.train.batch(torch.tensor([3, 1]), device=CPU)
    expected = (x[data.train.ids[[3, 1]]].double() - torch.tensor([0.5, 0.4, 0.3])[:, None, None]) / torch.tensor(
        [0.1, 0.2, 0.3]
    )[:, None, None]
    assert torch.allclose(batch.images.double(), expected, atol=1e-5) and batch.index.tolist() == [3, 1]
    assert batch.images.is_contiguous(memory_format=torch.channels_last)
    before = data.train.images.clone()
    data.augmented(("crop", "flip", "color")).train.batch(torch.arange(len(data.train)), device=CPU, view=(0, 0))
    assert torch.equal(data.train.images, before)
    grey = load(TensorDataset(x, torch.arange(40) % 2), channels=1, size=4)
    assert grey.shape == (1, 4, 4) and grey.train.images.dtype == torch.float32


def test_datasets_of_pil_images_and_bytes_by_split() -> None:
    arrays = [pixels(8, 8, 3, seed=i) for i in range(20)]
    pictures = Pairs(*map(Image.fromarray, arrays))
    tensors = Pairs(*(torch.from_numpy(a).permute(2, 0, 1) for a in arrays))
    data = load({"train": pictures, "val": tensors, "test": tensors})
    assert data.classes == ("zero", "one") and not data.notes and data.name.endswith("_local")
    for split in (data.train, data.validation, data.test):
        assert np.array_equal(split.images, arrays)
    drawn = load((pictures, tensors))
    assert 0 < len(drawn.validation) < 10 and len(drawn.validation) + len(drawn.train) == 20
    assert load(data) is data


def test_bad_datasets_are_named() -> None:
    good = [torch.rand(1, 8, 8, generator=torch.Generator().manual_seed(i)) for i in range(10)]
    nan = good[0].clone()
    nan[0, 3, 3] = float("nan")
    cases: list[tuple[object, str]] = [
        (Pairs(*good, nan), r"1 samples .*sample 10 \(NaN"),
        (Pairs(*good, good[0] * 4 - 2), r"sample 10 \(pixels outside \[0, 1\]; take Normalize out"),
        (Pairs(*good, torch.rand(1, 9, 9)), "differ.*--size 3,32,32"),
        (Pairs(*good, torch.zeros(1, 8, 8, dtype=torch.int64)), "int64"),
        (Pairs(*good, "a.png"), "neither a PIL image nor a tensor"),
        (Pairs(*good, labels=[0, 1] * 4 + [0, 5]), "sample 9 of the train data set has 5"),
        (Pairs(*good, labels=[0, 1] * 4 + [0, -2]), "has -2"),
        (Pairs(*good, labels=[0, 1] * 4 + [0, 0.5]), "label 0.5 is no class number"),
        (Pairs(*good, labels=[0] * 10), "class 'one'"),
        (Pairs(), "is empty"),
        ({"train": Pairs(*good), "tset": Pairs(*good)}, "no split 'tset'. Did you mean 'test'"),
        ({"test": Pairs(*good)}, "'train' too"),
        (3, "A int is no data"),
        (Pairs(Image.fromarray(pixels(1, 1, 3)), *good), "1 x 1"),
    ]
    for dataset, words in cases:
        with pytest.raises(UserError, match=words):
            load(dataset)


def test_random_transforms_are_refused() -> None:
    class Noisy(Pairs):
        def __getitem__(self, i: int) -> tuple[object, object]:
            return torch.rand(1, 8, 8), i % 2

    with pytest.raises(UserError, match="another image each time"):
        load(Noisy(*range(20)))


# --- drawing ------------------------------------------------------------------------------------------------


def toy(labels: list[int], classes: int = 3) -> Images:
    n = len(labels)
    split = ImageSplit.plain((torch.arange(n * 16) % 251).byte().view(n, 4, 4, 1), torch.tensor(labels),
                             torch.arange(n) + 100)  # fmt: skip
    return Images(name="toy", classes=("ape", "bee", "cow")[:classes], train=split, validation=split, test=split)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(0, 2), min_size=12, max_size=60), st.integers(1, 5), st.integers())
def test_few_draws_just_so_many_of_each_class(labels: list[int], per_class: int, seed: int) -> None:
    data = toy(labels)
    counts = [labels.count(k) for k in range(3)]
    if min(counts) < per_class:
        with pytest.raises(UserError) as caught:
            data.few(per_class, seed)
        for name, count in zip(data.classes, counts, strict=True):
            assert (f"'{name}' has {count}" in str(caught.value)) == (count < per_class)
        return
    few = data.few(per_class, seed)
    assert torch.bincount(few.train.labels).tolist() == [per_class] * 3
    assert few.chosen["few"] == {"per_class": per_class, "seed": seed, "ids": few.train.ids.tolist()}
    json.dumps(few.chosen)
    for image, label, i in zip(few.train.images, few.train.labels, few.train.ids, strict=True):
        assert torch.equal(image, data.train.images[i - 100]) and label == labels[i - 100]
    # Fewer are part of more; labels are kept for the same images; the order of the samples plays no part.
    more = set(data.few(min(counts), seed).train.ids.tolist())
    assert set(few.train.ids.tolist()) <= more
    hidden = data.hide_labels(per_class, seed)
    assert hidden.train.ids[hidden.train.labels >= 0].tolist() == few.train.ids.tolist()
    order = list(range(len(labels)))
    random.Random(seed).shuffle(order)
    assert set(data.subset(torch.tensor(order)).few(per_class, seed).train.ids.tolist()) == set(few.train.ids.tolist())


def test_seeds_draw_differently(digits: Images) -> None:
    a, b = (set(digits.few(10, seed).chosen["few"]["ids"]) for seed in (0, 1))
    assert len(a & b) < 30
    assert digits.few(10, 0).digest == digits.few(10, 0).digest != digits.few(10, 1).digest


def test_hidden_labels(digits: Images) -> None:
    data = digits.hide_labels(10, seed=0)
    assert len(data.train) == 1000 and (data.train.labels >= 0).sum() == 100
    known = data.train.labels >= 0
    assert torch.equal(data.train.labels[known], digits.train.labels[known])
    assert "(100 labelled)" in describe(data) and "10 a class" in data.notes[-1]
    none = digits.hide_labels(0, seed=0)
    assert (none.train.labels == -1).all() and none.chosen["labels"]["ids"] == []
    assert torch.equal(none.test.labels, digits.test.labels) and (digits.train.labels >= 0).all()
    with pytest.raises(UserError, match="too few"):
        none.few(1, seed=0)
    assert (digits.few(10, 0).hide_labels(0, 0).train.labels == -1).all()


def test_the_digest_sees_every_pixel_and_label(digits: Images) -> None:
    data = toy([0, 1, 2] * 4)
    first = data.digest
    assert first == toy([0, 1, 2] * 4).digest == data.normalised((0.5,), (0.5,)).digest
    assert first != toy([0, 1, 2] * 3 + [0, 2, 1]).digest
    data.train.images[3, 2, 1] ^= 1
    assert first != data.subset(torch.arange(12)).digest


def test_normalisation_must_fit(digits: Images) -> None:
    data = digits.normalised(*digits.statistics)
    x = data.train.batch(torch.arange(1000), device=CPU).images
    assert abs(x.mean()) < 1e-5 and abs(x.std() - 1) < 1e-3
    assert data.train.images is digits.train.images
    with pytest.raises(UserError, match=r"1 channel,.*channels=3"):
        digits.normalised((0.5,) * 3, (0.5,) * 3)
    for mean, std in (((0.5,), (0.0,)), ((float("nan"),), (1.0,))):
        with pytest.raises(UserError, match="positive"):
            digits.normalised(mean, std)
    with pytest.raises(UserError, match="'crop'"):
        digits.augmented(("corp",))


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(0, 4), min_size=1, max_size=80), st.floats(0.01, 0.6))
def test_stratified_takes_each_class_in_proportion(labels: list[int], share: float) -> None:
    given_labels, size = torch.tensor(labels), max(1, int(share * len(labels)))
    index = stratified(given_labels, torch.arange(len(labels)), size, 0, "test")
    assert index.tolist() == sorted(set(index.tolist())) and len(index) <= size
    took, have = (torch.bincount(x, minlength=5) for x in (given_labels[index], given_labels))
    spare = (have - 1).clamp_min(0)
    assert (took <= spare).all() and (len(index) == size or torch.equal(took, spare))
    if (have[have > 0] * share >= 1).all():
        assert ((took - have * size / len(labels)).abs() <= 1).all()


# --- label maps ---------------------------------------------------------------------------------------------

NAMES = st.lists(st.text(string.ascii_letters + " ,é\"'", min_size=1).map(str.strip).filter(bool), min_size=2,
                 max_size=12, unique_by=str.casefold)  # fmt: skip


def write_map(path: Path, rows: list[tuple[str, str]], header: str = "teacher,student") -> Path:
    import csv

    with path.open("w", newline="", encoding="utf-8") as file:
        file.write(header + "\n")
        csv.writer(file).writerows(rows)
    return path


@settings(max_examples=60, deadline=None)
@given(NAMES, st.data())
def test_a_label_map_reads_the_outputs_it_names(tmp_path_factory: pytest.TempPathFactory, names: list[str],
                                                data: st.DataObject) -> None:  # fmt: skip
    target = [f"class {i}" for i in range(data.draw(st.integers(1, len(names))))]
    reads = data.draw(st.permutations(range(len(names))))[: len(target)]
    rows = data.draw(st.permutations([(names[s], t) for s, t in zip(reads, target, strict=True)]))
    path = write_map(tmp_path_factory.mktemp("map") / "map.csv", rows, data.draw(st.sampled_from(
        ("teacher,student", "source,target", "\ufeffTeacher, Student"))))  # fmt: skip
    assert read_label_map(path, names, target).tolist() == list(reads)


@settings(max_examples=60, deadline=None)
@given(NAMES, st.randoms(use_true_random=False))
def test_names_match_whatever_their_order_and_case(names: list[str], chance: random.Random) -> None:
    target = [chance.choice((name, name.swapcase())) for name in names]
    chance.shuffle(target)
    index, note = match_classes(names, target)
    assert note == "" and [names[i].casefold() for i in index.tolist()] == [t.casefold() for t in target]


def test_names_that_do_not_match() -> None:
    index, note = match_classes(("0", "1"), ("cat", "dog"))
    assert index.tolist() == [0, 1] and "by position" in note
    assert match_classes(("a", "A", "b"), ("b", "a", "A"))[0].tolist() == [2, 0, 1]
    assert match_classes(("x", "x"), ("x", "x"))[0].tolist() == [0, 1]
    for source, target in (
        (("a", "b"), ("a", "c")),
        (("a", "b", "c"), ("a", "b")),
        (("0", "1", "2"), ("a", "b")),
    ):
        with pytest.raises(UserError, match="--label_map"):
            match_classes(source, target)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "must begin with the line"),
        ("a,b\n", "must begin with the line"),
        ("teacher,student\ncta,chat\n", "Line 2 .* no teacher class 'cta'. Did you mean 'cat'"),
        ("teacher,student\ncat,caht\n", "no student class 'caht'. Did you mean 'chat'"),
        ("teacher,student\ncat,chat\ndog,chat\n", "student class 'chat' twice, again in line 3"),
        ("teacher,student\ncat,chat\ncat,chien\n", "Lines 2 and 3 .* same teacher class 'cat'"),
        ("teacher,student\ncat,chat\n", "no line for the student class 'chien'"),
        ("teacher,student\ncat\n", "Line 2 .* 1 cells"),
    ],
)
def test_bad_label_maps(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "map.csv"
    path.write_text(text)
    with pytest.raises(UserError, match=words):
        read_label_map(path, ("cat", "dog", "cow"), ("chat", "chien"))


def test_a_label_map_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"Cannot read the label map .*none\.csv"):
        read_label_map(tmp_path / "none.csv", ("a",), ("b",))
    (tmp_path / "latin.csv").write_bytes("teacher,student\né,b".encode("latin-1"))
    with pytest.raises(UserError, match="UTF-8"):
        read_label_map(tmp_path / "latin.csv", ("a",), ("b",))


def test_statistics_are_the_same_in_pieces(digits: Images, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = digits.statistics
    monkeypatch.setattr(images_module, "PIECE", 7 * 64)
    assert dataclasses.replace(digits).statistics == whole
    pixels = digits.train.images.double() / 255
    assert whole[0] == pytest.approx([float(pixels.mean())], abs=1e-12)
    assert whole[1] == pytest.approx([float(pixels.std(correction=0))], abs=1e-12)
