"""The splits of every named set, which committed records rest on, are what they were when those were made."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import numpy as np
import pytest

from upcycle.core.store import digest_of
from upcycle.data import load
from upcycle.data.images import Images

# (samples, the digest of their ids, that of their labels) of train, validation and test.
SPLITS = {
    "digits": (
        (1000, "4701230c4baf2af5", "1419f17330a6ac8a"),
        (297, "f3645a38822dd309", "1e0e450e64fbfba5"),
        (500, "d74e1fdaa9d32c03", "acd4251b1ff65468"),
    ),
    "mnist": (
        (55_000, "ed0723a9fb9ac4f1", "3b1e8716af14aafa"),
        (5_000, "1afc06a9d2a8a775", "076857105dd946c6"),
        (10_000, "9e1c19b3fdc18541", "2fd8de6bdb8d1178"),
    ),
    "fashion_mnist_local": (
        (55_000, "58775b65f53d6991", "1ce5e23b186f5b38"),
        (5_000, "2cb209e9b5a26fac", "b0662b2575701f67"),
        (10_000, "9e1c19b3fdc18541", "3ecb51fcbd9687ba"),
    ),
    "usps": (
        (6_562, "f444e4dfb9d5529a", "8f1f8c7ec2a693b9"),
        (729, "adb846f81834e4b6", "32369fa5d4a9237f"),
        (2_007, "6830c0e7f7f671e1", "83d5538087f38b4a"),
    ),
    "cifar10": (
        (45_000, "cbd0afb2b691c86b", "9abe678079cd3fda"),
        (5_000, "ef7504af3ebb1396", "f5b66e067ecc4e36"),
        (10_000, "9e1c19b3fdc18541", "cbb7365de8ed11f0"),
    ),
}
FASHION = "2d6c8b280808bcb7"  # of the validation ids of the test below
PIXELS = {"digits": "e3a465d373df1cd1", "usps": "7fecb6f7368b194d"}  # of the training images
WORDS = {
    "digits": "The test split of digits is ours: 500 of its 1,797 training images, stratified, with a fixed seed.",
    "mnist": "The validation split of mnist is ours: 5,000 of its 60,000 training images, stratified, with a fixed "
    "seed.",
}


def brief(values: np.ndarray) -> str:
    return hashlib.sha256(np.ascontiguousarray(values).data).hexdigest()[:16]


def found(data: Images) -> tuple[tuple[int, str, str], ...]:
    splits = (data.train, data.validation, data.test)
    return tuple((len(s), brief(s.ids.numpy()), brief(s.labels.numpy())) for s in splits)


@pytest.mark.parametrize("name", SPLITS)
def test_a_named_set_keeps_its_splits(name: str) -> None:
    if name != "digits" and not os.environ.get("UPCYCLE_DATA"):
        pytest.skip("UPCYCLE_DATA is not set")
    data = load(name)
    assert found(data) == SPLITS[name]
    assert name not in PIXELS or brief(data.train.images.numpy()) == PIXELS[name]
    assert name not in WORDS or WORDS[name] in data.notes


def test_fashion_mnist_is_drawn_by_the_places_of_its_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The official files are at hand for few; places and labels decide alone, so files of others show the draw."""
    from tests.data.test_data import idx

    root = tmp_path / "fashion_mnist"
    root.mkdir()
    idx(root, "train", np.zeros((600, 8, 8), np.uint8), np.arange(600) % 10)
    idx(root, "t10k", np.zeros((20, 8, 8), np.uint8), np.array([9, 2, 1, 1, 6, 1, 4, 6, 5, 7, *range(10)]))
    monkeypatch.setenv("UPCYCLE_DATA", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    data = load("fashion_mnist")
    assert [len(s) for s in (data.train, data.validation, data.test)] == [540, 60, 20]
    assert digest_of(data.validation.ids.numpy().tobytes())[:16] == FASHION
