"""Images that are read from disk as they are used: the same samples, bits and sentences as in memory."""

from __future__ import annotations

import dataclasses
import threading
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import Dataset

import upcycle
from tests.data.photographs import photographs
from tests.stops import Killed, StopsAfter
from upcycle.core.errors import UserError
from upcycle.core.evaluate import predict_logits
from upcycle.core.recipe import Recipe
from upcycle.core.run import Run
from upcycle.data import Images, Pool, cache, describe, folders, headers, load, memory, on_disk
from upcycle.data.augment import resized_window, window_draws
from upcycle.data.joining import joined
from upcycle.data.on_disk import OnDisk
from upcycle.data.pixels import decode_one

CPU = torch.device("cpu")
SIZE = (20, 24)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Photographs as people have them, of many sizes, some grey, some of 16 bits."""
    return photographs(tmp_path_factory.mktemp("photographs"), "usual", range(20))


def table(folder: Path, to: Path, group: int = 7) -> Path:
    """The same photographs in a Parquet file."""
    files = sorted((folder / "train").rglob("*.*"))
    names = sorted({file.parent.name for file in files})
    columns = {"image": [f.read_bytes() for f in files], "label": [names.index(f.parent.name) for f in files]}
    to.mkdir()
    pq.write_table(pa.table(columns), to / "train.parquet", row_group_size=group)
    return to


class Photographs(Dataset):  # type: ignore[type-arg]
    """PIL images, or tensors, with class numbers; only one thread may ask at a time."""

    def __init__(self, folder: Path, kind: str) -> None:
        self.files, self.kind, self.lock = sorted((folder / "train").rglob("*.*")), kind, threading.Lock()
        self.names = sorted({file.parent.name for file in self.files})

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, i: int) -> tuple[object, int]:
        assert self.lock.acquire(blocking=False), "two threads at a time"
        try:
            image = Image.open(self.files[i])
            label = self.names.index(self.files[i].parent.name)
            if self.kind == "pil":
                return image, label
            pixels = torch.from_numpy(np.asarray(image.convert("RGB").resize((24, 20))).copy()).permute(2, 0, 1)
            return (pixels / 255 if self.kind == "float" else pixels), label
        finally:
            self.lock.release()


def both(reference: object, num_workers: int = 2, **options: object) -> tuple[Images, Images]:
    """The set in memory, and read as it is used."""
    held = load(reference, keep_in_memory=True, **options)
    stored = load(reference, keep_in_memory=False, num_workers=num_workers, **options)
    assert not held.on_disk and stored.on_disk
    return held, stored


def assert_same(held: Images, stored: Images) -> None:
    for name, split in held.splits().items():
        other = stored.splits()[name]
        assert isinstance(other.images, OnDisk) and other.images.shape == split.images.shape
        assert torch.equal(split.labels, other.labels) and torch.equal(split.ids, other.ids)
        for index in (torch.arange(len(split)), torch.arange(len(split)).flip(0)[:5]):
            a, b = (s.batch(index, device=CPU, view=(0, 1)) for s in (split, other))
            assert torch.equal(a.images, b.images) and torch.equal(a.labels, b.labels)


@pytest.mark.parametrize("kind", ["folder", "table", "pil", "uint8", "float"])
def test_every_source_gives_the_same_samples_as_in_memory(kind: str, folder: Path, tmp_path: Path) -> None:
    reference: object = folder
    if kind == "table":
        reference = table(folder, tmp_path / "table")
    elif kind != "folder":
        reference = Photographs(folder, kind)
    options = {} if kind in ("uint8", "float") else {"size": SIZE}
    if kind == "pil":
        options["channels"] = 3
    held, stored = both(reference, **options)
    assert held.notes == stored.notes and held.reading == stored.reading and held.reshaped == stored.reshaped
    assert held.classes == stored.classes and held.takes == stored.takes
    augmented = [data.augmented(("crop", "flip")) for data in (held, stored)]
    assert_same(*augmented)
    assert held.statistics == stored.statistics
    said = "read from disk as they are used"
    assert said in describe(stored) and said not in describe(held)


def test_a_share_of_the_memory_decides(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert not load(folder, size=SIZE).on_disk
    n = sum(1 for _ in folder.rglob("*.*"))
    for total, stays in ((4 * n * 20 * 24 * 3 + 4, False), (4 * n * 20 * 24 * 3 - 4, True)):
        monkeypatch.setattr(memory, "total_memory", lambda total=total: total)
        assert load(folder, size=SIZE).on_disk is stays
    assert not load(folder, size=SIZE, keep_in_memory=True).on_disk


def test_subsets_and_joined_sets_stay_on_disk(folder: Path, tmp_path: Path) -> None:
    held, stored = both(folder, size=SIZE)
    assert_same(held.only(held.classes[:2]), stored.only(held.classes[:2]))
    few = stored.few(2, 0)
    assert few.on_disk and torch.equal(few.train.pixels(), held.few(2, 0).train.pixels())

    def renamed(data: Images) -> Images:
        return dataclasses.replace(data, classes=tuple(f"another {name}" for name in data.classes))

    assert_same(joined([held, renamed(held)]), joined([stored, renamed(stored)]))
    assert_same(joined([held, renamed(held)]), joined([held, renamed(stored)]))
    whole, other = (d.train.with_others([d.validation]) for d in (held, stored))
    assert torch.equal(whole.pixels(), other.pixels()) and torch.equal(whole.ids, other.ids)


def test_a_window_is_torchvisions(folder: Path) -> None:
    F = pytest.importorskip("torchvision.transforms.v2.functional")
    rng = np.random.default_rng(0)
    draws = window_draws((0, 0), torch.arange(500)).numpy()
    areas, shapes = [], rng.integers(10, 400, (500, 2))
    for (height, width), numbers in zip(shapes.tolist(), draws, strict=True):
        top, left, h, w = resized_window(height, width, numbers)
        assert 0 <= top <= height - h and 0 <= left <= width - w and h > 0 and w > 0
        assert 0.74 * (h - 1) <= w + 1 and w - 1 <= 1.34 * (h + 1)
        areas.append(h * w / (height * width))
    assert 0.05 < min(areas) < 0.12 and max(areas) > 0.9
    stored = load(folder, size=SIZE, keep_in_memory=False, num_workers=0).augmented(("resized_crop",))
    index = torch.arange(8)
    found = stored.train.batch(index, device=CPU, view=(3, 4)).images
    source, form = stored.train.images.sources[0]  # type: ignore[union-attr]
    for i in index.tolist():
        whole = decode_one(source.content(i), dataclasses.replace(form, size=None))[0]
        numbers = window_draws((3, 4), stored.train.ids[[i]])[0].numpy()
        top, left, h, w = resized_window(*whole.shape[:2], numbers)
        wanted = F.resized_crop(Image.fromarray(whole), top, left, h, w, list(SIZE))
        assert torch.equal((found[i] * 255).round().byte().permute(1, 2, 0), torch.from_numpy(np.array(wanted)))
    again = stored.train.batch(index.flip(0), device=CPU, view=(3, 4)).images
    assert torch.equal(again.flip(0), found)
    assert not torch.equal(stored.train.batch(index, device=CPU, view=(3, 5)).images, found)
    with pytest.raises(UserError, match="--keep_in_memory false"):
        load(folder, size=SIZE).augmented(("resized_crop",))


# --- runs --------------------------------------------------------------------------------------------------


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3, 2), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(16, 3))


def learn(run: Run, data: Images) -> dict[str, Tensor]:
    """Three epochs with save points within, batches of a second split beside them, and a validation."""
    recipe = Recipe(epochs=3, batch_size=8, lr=0.05)
    net, optimizer = run.setup(network(), recipe)
    for epoch in run.epochs(3):
        others = run.others(data.validation, 4, "others") if epoch == 1 else None
        for images, labels, _ in run.batches(data.train, recipe):
            beside = net(next(others).images).square().mean() if others is not None else 0.0
            run.step(nn.functional.cross_entropy(net(images), labels) + beside, optimizer, recipe)
        run.evaluate(net, data.validation)
    return run.plain(net).state_dict()


def trained(folder: Path, workers: int) -> Images:
    data = load(folder, size=SIZE, keep_in_memory=False, num_workers=workers)
    return data.augmented(("resized_crop", "flip", "color"))


def test_any_number_of_workers_gives_the_same_bits_killed_or_not(folder: Path, tmp_path: Path) -> None:
    wanted = learn(Run(seed=1, quiet=True), trained(folder, 0))
    for workers in (2, 4):
        found = learn(Run(seed=1, quiet=True), trained(folder, workers))
        assert all(torch.equal(found[name], tensor) for name, tensor in wanted.items())
    steps = 3 * -(-len(trained(folder, 0).train) // 8)
    for due in (1, steps // 2, steps - 1):
        out = tmp_path / f"run{due}"
        run = StopsAfter(out, seed=1, save_every=0.0, quiet=True)
        run.due = due
        with pytest.raises(Killed):
            learn(run, trained(folder, 2))
        run.close()
        again = Run(out, seed=1, save_every=0.0, resume=True, quiet=True)
        found = learn(again, trained(folder, 4))
        again.close()
        assert all(torch.equal(found[name], tensor) for name, tensor in wanted.items())


def test_reading_runs_ahead_and_no_further(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    begun: list[Tensor] = []
    start = on_disk._Piece.start

    def noted(piece: on_disk._Piece) -> on_disk._Piece:
        begun.append(piece.index)
        return start(piece)

    monkeypatch.setattr(on_disk._Piece, "start", noted)
    run, data = Run(seed=0, quiet=True), trained(folder, 2)
    batches = run.batches(data.train, 4)
    for seen, batch in enumerate(batches, 1):
        assert torch.equal(begun[seen - 1], batch.index) and len(begun) <= seen + on_disk.AHEAD
        if seen == 3:
            break
    batches.close()  # type: ignore[attr-defined]
    assert len(begun) == 3 + on_disk.AHEAD and not data.train.images._plans  # type: ignore[union-attr]
    # A batch that is asked for out of order comes too, and the plan goes on.
    index = torch.arange(6).split(2)
    plain = [data.train.batch(part, device=CPU).images for part in index]
    with data.train.ahead((part, None) for part in index):
        assert torch.equal(data.train.batch(index[2], device=CPU).images, plain[2])
        for part, wanted in zip(index, plain, strict=True):
            assert torch.equal(data.train.batch(part, device=CPU).images, wanted)
    whole = data.train.batch(torch.arange(6), device=CPU).images
    with data.train.ahead((part, None) for part in index):  # asked for in other portions than were announced
        first, rest = (data.train.batch(torch.arange(*ends), device=CPU).images for ends in ((0, 3), (3, 6)))
    assert torch.equal(torch.cat([first, rest]), whole)


def test_damage_is_named_at_once_or_when_it_is_met(tmp_path: Path) -> None:
    root = photographs(tmp_path / "photographs", "usual", range(10))
    (root / "train" / "bird" / "no image.png").write_bytes(b"\x89PNG and no more")
    with pytest.raises(UserError, match=r"1 of \d+ images cannot be used: .*no image.png \(.*\)\. Mend or remove"):
        load(root, size=SIZE, keep_in_memory=False)
    (root / "train" / "bird" / "no image.png").unlink()
    for workers in (0, 2):
        data = load(root, size=SIZE, keep_in_memory=False, num_workers=workers)
        victim = root / "train" / "bird" / "000.bmp"
        content = victim.read_bytes()
        victim.write_bytes(content[: len(content) // 2])
        met = 0
        with pytest.raises(UserError, match=r"1 image cannot be read: .*000.bmp \(.*truncated.*\)\. Mend or remove it"):
            for _ in Run(seed=0, quiet=True).batches(data.train, 2):
                met += 1
        assert met < len(data.train) // 2
        victim.write_bytes(content)


def test_a_network_answers_as_in_memory(folder: Path) -> None:
    held, stored = both(folder, size=SIZE)
    assert torch.equal(predict_logits(network(), held.train), predict_logits(network(), stored.train))


def test_another_file_is_another_digest(tmp_path: Path) -> None:
    root = photographs(tmp_path / "photographs", "usual", range(10))

    def digests(**options: object) -> dict[str, str]:
        return load(root, keep_in_memory=False, **{"size": SIZE, **options}).digests()

    before = digests()
    assert before == digests(num_workers=0)
    assert before != digests(size=21)
    Image.open(root / "train" / "car" / "000.bmp").transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(
        root / "train" / "car" / "000.bmp"
    )
    after = digests()
    assert {name for name in before if before[name] != after[name]} == {"the training images"}


def test_of_too_many_files_only_headers_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = photographs(tmp_path / "photographs", "classes", range(20))
    monkeypatch.setattr(folders, "READ_FIRST", 0)
    monkeypatch.setattr(headers, "READ_FIRST", -1)
    monkeypatch.setattr(headers, "_read", None)
    held, stored = both(root, size=SIZE)
    assert_same(held, stored)
    (root / "car" / "000.bmp").touch()
    assert load(root, size=SIZE, keep_in_memory=False).digest != stored.digest


def test_a_large_pool_lies_in_a_file(monkeypatch: pytest.MonkeyPatch) -> None:
    images = torch.rand(30, 3, 8, 8, generator=torch.Generator().manual_seed(0))

    def filled() -> Pool:
        pool = Pool(20, (3, 8, 8), (0.5,) * 3, (0.5,) * 3, ("flip",))
        for part in images.split(10):
            pool.append(part, torch.zeros(10, dtype=torch.int64))
        return pool

    held = filled()
    monkeypatch.setattr(memory, "total_memory", lambda: 4 * 20 * 8 * 8 * 3 - 4)
    asked: list[int] = []
    scratch = cache.scratch
    monkeypatch.setattr(cache, "scratch", lambda size: asked.append(size) or scratch(size))
    stored = filled()
    assert asked == [20 * 8 * 8 * 3] and stored.digest == held.digest
    again = filled()
    again.load_state_dict(held.state_dict())
    assert again.digest == held.digest
    index = torch.tensor([3, 19])
    a, b = (pool.batch(index, device=CPU, view=(0, 1)).images for pool in (held, stored))
    assert torch.equal(a, b)


def test_a_wrong_number_of_workers() -> None:
    with pytest.raises(UserError, match="num_workers must lie between 0 and 256, not -1"):
        load("digits", num_workers=-1)


# --- two processes -----------------------------------------------------------------------------------------


def rank_learns(folder: Path) -> dict[str, Tensor]:
    run = Run(seed=1, devices=2, accelerator="cpu", precision="64-true", quiet=True)
    found = learn(run, trained(folder, 2))
    run.close()
    return found


@pytest.mark.xdist_group("ranks")
def test_p9_two_processes_equal_one(ranks, folder: Path) -> None:  # type: ignore[no-untyped-def]
    run = Run(seed=1, precision="64-true", quiet=True)
    one = learn(run, trained(folder, 2))
    for found in ranks(rank_learns, folder):
        for name, tensor in one.items():
            torch.testing.assert_close(found[name], tensor, atol=1e-10, rtol=0)


# --- commands ----------------------------------------------------------------------------------------------


def test_a_command_reads_from_disk_and_says_so(folder: Path, tmp_path: Path) -> None:
    half = {"method": "plain", "student": "zoo:convnet_small", "size": SIZE, "recipe": {"epochs": 1}, "quiet": False}
    weights = []
    for place, keep in (("memory", True), ("disk", False)):
        said: list[str] = []
        made = upcycle.distill(
            data=folder, out=tmp_path / place, say=said.append, keep_in_memory=keep, num_workers=2, **half
        )
        weights.append(made.model.module.state_dict())
        assert any("read from disk as they are used" in line for line in said) is not keep
    assert all(torch.equal(weights[0][name], tensor) for name, tensor in weights[1].items())
    with pytest.raises(UserError, match="resized_crop cuts windows out of whole images"):
        upcycle.distill(data=folder, out=tmp_path / "no", augment=("resized_crop",), **{**half, "quiet": True})
    assert not (tmp_path / "no").exists()
    upcycle.distill(
        data=folder,
        out=tmp_path / "cut",
        augment=("resized_crop", "flip"),
        keep_in_memory=False,
        dry_run=True,
        **{**half, "quiet": True},
    )
