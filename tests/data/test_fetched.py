"""Named sets that no folder holds are fetched, once, from where torchvision says, and checked."""

from __future__ import annotations

import bz2
import gzip
import hashlib
import io
import pickle
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.file_server import Served, serving
from upcycle.core import fetching
from upcycle.core.errors import UserError
from upcycle.core.fetching import nothing_fetched
from upcycle.data import load
from upcycle.data.fetched import HOMES

sets = pytest.importorskip("torchvision.datasets", exc_type=ImportError)
NUMBERS = np.random.default_rng(0)


def idx(array: np.ndarray) -> bytes:
    header = bytes([0, 0, 8, array.ndim]) + b"".join(side.to_bytes(4) for side in array.shape)
    return gzip.compress(header + array.tobytes())


def md5(content: bytes) -> str:
    return hashlib.md5(content).hexdigest()


@pytest.fixture
def served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Served]:
    """A server in place of all others, a cache of one's own, and a place where nothing is."""
    fetching._answers.cache_clear()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("UPCYCLE_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("UPCYCLE_OFFLINE")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hub"))
    monkeypatch.delenv("UPCYCLE_DATA", raising=False)
    with serving({}) as server:
        yield server
    fetching._answers.cache_clear()


def as_mnist(served: Served, monkeypatch: pytest.MonkeyPatch) -> tuple[np.ndarray, np.ndarray]:
    images, labels = NUMBERS.integers(0, 256, (60, 28, 28), np.uint8), np.arange(60, dtype=np.uint8) % 10
    named = {"train-images-idx3": images, "train-labels-idx1": labels, "t10k-images-idx3": images[:20],
             "t10k-labels-idx1": labels[:20]}  # fmt: skip
    served.files = {f"{name}-ubyte.gz": idx(array) for name, array in named.items()}
    monkeypatch.setattr(sets.MNIST, "mirrors", [served.address])
    monkeypatch.setattr(sets.MNIST, "resources", [(name, md5(content)) for name, content in served.files.items()])
    return images, labels


def test_mnist_is_fetched_once(
    served: Served, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    images, labels = as_mnist(served, monkeypatch)
    found = load("mnist")
    assert torch.equal(found.test.images[..., 0], torch.from_numpy(images[:20]))
    assert found.test.labels.tolist() == labels[:20].tolist() and len(found.train) + len(found.validation) == 60
    assert sorted(served.asked) == sorted(served.files)
    assert capsys.readouterr().err.splitlines()[0] == "fetching train-images-idx3-ubyte.gz"
    assert torch.equal(load("mnist").train.images, found.train.images) and len(served.asked) == 4
    with nothing_fetched("a dry run downloads nothing"):  # it is here now
        assert len(load("mnist").test) == 20


def test_what_is_not_the_published_file_is_refused_and_not_kept(
    served: Served, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    as_mnist(served, monkeypatch)
    right = served.files["t10k-labels-idx1-ubyte.gz"]
    served.files["t10k-labels-idx1-ubyte.gz"] = right[:-1] + b"x"
    with pytest.raises(UserError, match=r"was not fetched from 127.0.0.1:.*its MD5 differs"):
        load("mnist")
    del served.files["t10k-labels-idx1-ubyte.gz"]
    with pytest.raises(UserError, match="the answer is 404"):
        load("mnist")
    assert not [path for path in (tmp_path / "cache").rglob("*") if path.is_file() and path.suffix != ".lock"]
    served.files["t10k-labels-idx1-ubyte.gz"] = right
    assert len(load("mnist").test) == 20


def test_usps_is_read_from_the_table_of_libsvm(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    images, labels = NUMBERS.integers(0, 256, (40, 16, 16), np.uint8), np.arange(40) % 10
    lines = [
        " ".join([str(label + 1), *(f"{i}:{v:.6f}" for i, v in enumerate(image.reshape(-1) / 127.5 - 1, 1))])
        for image, label in zip(images, labels, strict=True)
    ]
    for split, name in (("train", "usps.bz2"), ("test", "usps.t.bz2")):
        served.files[name] = bz2.compress("\n".join(lines).encode() + b"\n")
        entry = [served.address + name, name, md5(served.files[name])]
        monkeypatch.setitem(sets.USPS.split_list, split, entry)
    found = load("usps")
    assert torch.equal(found.test.images[..., 0], torch.from_numpy(images))
    assert found.test.labels.tolist() == labels.tolist()


def test_cifar10_is_read_from_its_archive_and_nothing_in_it_runs(
    served: Served, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    images, labels = NUMBERS.integers(0, 256, (120, 32, 32, 3), np.uint8), [i % 10 for i in range(120)]
    planes = images.transpose(0, 3, 1, 2).reshape(120, -1)
    names = [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]

    def archive(spoilt: bool) -> bytes:
        packed = io.BytesIO()
        with tarfile.open(fileobj=packed, mode="w:gz") as opened:
            for i, name in enumerate(names):
                part = slice(20 * i, 20 * i + 20)
                batch = {"data": planes[part], "labels": labels[part], "beside": Path("x") if spoilt else "y"}
                content = pickle.dumps(batch, protocol=4)
                member = tarfile.TarInfo(f"cifar-10-batches-py/{name}")
                member.size = len(content)
                opened.addfile(member, io.BytesIO(content))
        return packed.getvalue()

    monkeypatch.setattr(sets.CIFAR10, "url", served.address + "cifar-10-python.tar.gz")
    for spoilt in (True, False):
        served.files = {"cifar-10-python.tar.gz": archive(spoilt)}
        monkeypatch.setattr(sets.CIFAR10, "tgz_md5", md5(served.files["cifar-10-python.tar.gz"]))
        if spoilt:
            with pytest.raises(UserError, match=r"What was fetched of cifar10 is not what is known of it: .*pathlib"):
                load("cifar10")
    found = load("cifar10")
    assert torch.equal(found.test.images, torch.from_numpy(images[100:])) and found.classes[3] == "cat"
    assert found.test.labels.tolist() == labels[100:]
    assert {p.suffix for p in (tmp_path / "cache" / "fetched" / "cifar10").iterdir()} == {""}  # the archive is gone


def test_where_nothing_is_fetched_the_sentence_says_why_and_what_to_do(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    as_mnist(served, monkeypatch)
    rest = r"Fetch .*-ubyte.gz of MNIST and put them into \$UPCYCLE_DATA/mnist; .* is not set\."
    with nothing_fetched("a dry run downloads nothing"), pytest.raises(UserError, match="a dry run downloads nothing"):
        load("mnist")
    monkeypatch.setattr(sets.MNIST, "mirrors", ["http://127.0.0.1:1/"])
    with pytest.raises(UserError, match=rf"mnist is not here, and 127.0.0.1:1 does not answer within.*\. {rest}"):
        load("mnist")
    monkeypatch.setitem(sys.modules, "torchvision.datasets", None)
    with pytest.raises(UserError, match=rf"torchvision, .* is not installed or does not work\. {rest}"):
        load("mnist")
    monkeypatch.setenv("UPCYCLE_CACHE", "0")
    with pytest.raises(UserError, match=rf"UPCYCLE_CACHE keeps nothing that could be fetched\. {rest}"):
        load("mnist")
    assert not served.asked


def test_torchvision_knows_every_set_that_can_be_fetched() -> None:
    """In the form that is read here; another one would be told as a torchvision that does not work."""
    from upcycle.data.fetched import _files

    for home in HOMES.values():
        files = _files(getattr(sets, home.called))
        assert files and all(addresses and address.startswith("http") and len(digest) == 32
                             for _, addresses, digest in files for address in addresses)  # fmt: skip
