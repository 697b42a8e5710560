"""Decoded images on disk: the same pixels as without them, whatever happens to files, entries and the disk."""

from __future__ import annotations

import errno
import io
import os
import shutil
import subprocess
import sys
from collections import namedtuple
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from tests.data.photographs import photographs
from upcycle.core.errors import UserError
from upcycle.core.inputs import digests
from upcycle.core.reading import Reading
from upcycle.data import Images, cache, decode, load

Usage = namedtuple("Usage", "total used free")


@pytest.fixture
def kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of a cache that keeps everything, however soon it was decoded."""
    monkeypatch.setenv("UPCYCLE_CACHE", str(tmp_path / "kept"))
    monkeypatch.setattr(cache, "WORTH", -1.0)
    return tmp_path / "kept"


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many images were decoded, each time that some were."""
    counts: list[int] = []
    decoding = decode._decode

    def counted(items, n, form, trained):  # type: ignore[no-untyped-def]
        counts.append(n)
        return decoding(items, n, form, trained)

    monkeypatch.setattr(decode, "_decode", counted)
    return counts


def colours(root: Path, count: int = 6, kind: str = "png") -> Path:
    rng = np.random.default_rng(0)
    for i in range(count):
        place = root / "train" / "ab"[i % 2] / f"{i}.{kind}"
        place.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (9, 8, 3), np.uint8)).save(place)
    shutil.copytree(root / "train", root / "test", dirs_exist_ok=True)
    shutil.copytree(root / "train", root / "val", dirs_exist_ok=True)
    return root


def table(root: Path) -> Path:
    """A Parquet file of photographs: their bytes in random order."""
    files = sorted(photographs(root / "as_files", "classes", range(10)).rglob("*.*"))
    order = np.random.default_rng(0).permutation(len(files))
    rows = [{"bytes": files[i].read_bytes(), "path": None} for i in order]
    labels = [("apple", "bird", "car").index(files[i].parent.name) for i in order]
    (root / "table").mkdir()
    pq.write_table(pa.table({"image": rows, "label": labels}), root / "table" / "train.parquet")
    return root / "table"


def facts(data: Images) -> tuple[object, ...]:
    return data.notes, data.reading, data.reshaped, data.shape, digests(data, "data")


@pytest.mark.parametrize(
    ("made", "size", "reading"),
    [
        (colours, None, Reading()),
        (lambda root: colours(root, 30, "jpg"), 5, Reading(resize="pad")),
        (lambda root: photographs(root / "photos", "classes", range(10)), (12, 16), Reading()),
        (lambda root: photographs(root / "photos", "dev and test", range(10)), 12, Reading(resize="squash", white=900)),
        (table, 12, Reading()),
    ],
    ids=["splits", "jpeg", "photographs", "white", "table"],
)
def test_the_second_time_gives_the_same_bits_and_notes(
    kept: Path,
    decoded: list[int],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    made: Callable[[Path], Path],
    size: int,
    reading: Reading,
) -> None:
    folder = made(tmp_path / "data")
    with monkeypatch.context() as patch:
        patch.setenv("UPCYCLE_CACHE", "0")
        without = load(folder, size=size, reading=reading)
    first, times = load(folder, size=size, reading=reading), len(decoded)
    second = load(folder, size=size, reading=reading)
    assert len(decoded) == times and list(kept.iterdir())
    for split in ("train", "validation", "test"):
        images = [getattr(data, split).images for data in (without, first, second)]
        assert torch.equal(images[0], images[1]) and torch.equal(images[0], images[2])
        assert torch.equal(getattr(without, split).labels, getattr(second, split).labels)
    assert facts(without) == facts(first) == facts(second)


def test_a_changed_file_gives_its_new_pixels_whatever_its_date_says(kept: Path, tmp_path: Path) -> None:
    files = [tmp_path / f"{i}.bmp" for i in range(3)]
    for i, file in enumerate(files):
        Image.new("RGB", (8, 8), (i, i, i)).save(file)
    before, dates = decode.read_images(files), os.stat(files[1])
    Image.new("RGB", (8, 8), (200, 0, 0)).save(files[1])
    os.utime(files[1], ns=(dates.st_atime_ns, dates.st_mtime_ns))
    assert os.stat(files[1]).st_size == dates.st_size
    after = decode.read_images(files)
    assert torch.equal(after[[0, 2]], before[[0, 2]]) and after[1, 0, 0].tolist() == [200, 0, 0]
    assert torch.equal(decode.read_images(files[::-1]), after.flip(0))


def test_another_form_or_decoder_is_another_entry(
    kept: Path, decoded: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Image.fromarray(np.arange(20 * 30 * 3, dtype=np.uint8).reshape(20, 30, 3)).save(tmp_path / "x.png")
    read = [tmp_path / "x.png"]
    for options in ({}, {"size": 8}, {"size": 8, "channels": 1}, {"size": 8, "reading": Reading(resize="pad")}):
        decode.read_images(read, **options)
    assert len(decoded) == 4
    monkeypatch.setattr(decode, "_own_source", lambda: "another")
    decode.read_images(read)
    monkeypatch.setattr("PIL.__version__", "another")
    decode.read_images(read)
    assert len(decoded) == 6
    decode.read_images(read)
    assert len(decoded) == 6


def flip(at: int) -> Callable[[Path], None]:
    def damage(path: Path) -> None:
        content = bytearray(path.read_bytes())
        content[at] ^= 4
        path.write_bytes(content)

    return damage


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


@pytest.mark.parametrize(
    "damage",
    [
        *map(flip, (0, 3, 11, 30, -1, 4096, 4100)),
        cut,
        lambda path: path.write_bytes(b""),
        lambda path: path.write_bytes(b"[" * 5000),
        lambda path: path.write_bytes(b"{}".ljust(5000)),
        lambda path: path.write_bytes(path.read_bytes() + b"x"),
    ],
)
def test_a_damaged_entry_is_decoded_anew_and_mended(
    kept: Path, decoded: list[int], tmp_path: Path, damage: Callable[[Path], None]
) -> None:
    Image.fromarray(np.arange(192, dtype=np.uint8).reshape(8, 8, 3)).save(tmp_path / "x.png")
    right = decode.read_images([tmp_path / "x.png"])
    (entry,) = kept.iterdir()
    damage(entry)
    for _ in range(2):
        assert torch.equal(decode.read_images([tmp_path / "x.png"]), right)
    assert len(decoded) == 2


def test_an_entry_under_another_name_is_not_taken(kept: Path, tmp_path: Path) -> None:
    for i in range(2):
        Image.new("L", (8, 8), i).save(tmp_path / f"{i}.png")
        decode.read_images([tmp_path / f"{i}.png"])
    one, two = cache.entries()
    shutil.copy(one, two)
    assert [int(decode.read_images([tmp_path / f"{i}.png"])[0, 0, 0, 0]) for i in range(2)] == [0, 1]


def test_nobody_writes_into_an_entry(kept: Path, tmp_path: Path) -> None:
    Image.new("L", (8, 8), 7).save(tmp_path / "x.png")
    decode.read_images([tmp_path / "x.png"])
    decode.read_images([tmp_path / "x.png"]).fill_(9)
    assert decode.read_images([tmp_path / "x.png"]).unique().tolist() == [7]


def test_the_least_recently_used_make_way_and_nothing_of_others(
    kept: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cache, "LIMIT", 3 * 5000)
    kept.mkdir()
    (kept / "notes.txt").write_text("mine" * 5000)
    names = [str(i) * 64 for i in range(5)]
    half_written = kept / f"{'a' * 64}.1.tmp"
    half_written.write_bytes(b"x")
    os.utime(half_written, (1, 1))
    pixels = {name: np.full((1, 10, 10, 1), i, np.uint8) for i, name in enumerate(names)}
    for i, name in enumerate(names[:3]):
        cache.keep(name, pixels[name], {})
        os.utime(kept / name, (100 + i, 100 + i))
    assert cache.find(names[0]) is not None  # used just now
    cache.keep(names[3], pixels[names[3]], {})
    assert {path.name for path in cache.entries()} == {names[0], names[2], names[3]}
    cache.keep(names[4], np.zeros((1, 200, 200, 1), np.uint8), {})  # more than all of it
    assert {path.name for path in cache.entries()} == {names[0], names[2], names[3]}
    assert cache.size() <= cache.LIMIT
    cache.clear()
    assert [path.name for path in kept.iterdir()] == ["notes.txt"] and not cache.size()


def full(*_: object) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def test_a_cache_that_cannot_be_written_is_no_fault(
    kept: Path, decoded: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Image.new("L", (8, 8), 7).save(tmp_path / "x.png")

    def works() -> None:
        for _ in range(2):
            assert decode.read_images([tmp_path / "x.png"]).unique().tolist() == [7]

    with monkeypatch.context() as patch:
        patch.setattr(cache.os, "replace", full)
        works()
        assert not list(kept.iterdir())
    with monkeypatch.context() as patch:
        patch.setattr(cache.shutil, "disk_usage", lambda _: Usage(1000, 500, 500))
        works()
        assert not list(kept.iterdir())
    kept.rmdir()
    kept.write_text("a file")
    works()
    assert len(decoded) == 6 and not cache.entries()
    monkeypatch.setenv("UPCYCLE_CACHE", "0")
    works()
    assert len(decoded) == 8


def test_what_was_decoded_soon_is_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UPCYCLE_CACHE", str(tmp_path / "kept"))
    Image.new("L", (8, 8), 7).save(tmp_path / "x.png")
    decode.read_images([tmp_path / "x.png"])
    assert not (tmp_path / "kept").exists()


def test_broken_images_are_named_each_time(kept: Path, tmp_path: Path) -> None:
    folder = colours(tmp_path / "data")
    (folder / "train" / "a" / "x.png").write_bytes(b"")
    said = []
    for _ in range(2):
        with pytest.raises(UserError, match=r"x\.png") as error:
            load(folder)
        said.append(str(error.value))
    assert said[0] == said[1]
    (folder / "train" / "a" / "x.png").unlink()
    load(folder)


def test_the_folder_is_the_users_own_or_the_usual_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/ada")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.delenv("UPCYCLE_CACHE")
    assert cache.place() == Path("/home/ada/.cache/upcycle")
    monkeypatch.setenv("XDG_CACHE_HOME", "/fast")
    assert cache.place() == Path("/fast/upcycle")
    monkeypatch.setenv("UPCYCLE_CACHE", "~/kept")
    assert cache.place() == Path("/home/ada/kept")
    for off in ("", "0"):
        monkeypatch.setenv("UPCYCLE_CACHE", off)
        assert cache.place() is None and not cache.entries()


AT_ONCE = """
import sys
import numpy as np
from upcycle.data import cache
cache.LIMIT = 3 * 40_000
for turn in range(60):
    number = (turn * int(sys.argv[1])) % 7
    pixels = np.full((1, 100, 100, 3), number, np.uint8)
    found = cache.find(str(number) * 64)
    assert found is None or np.array_equal(found[0], pixels), number
    cache.keep(str(number) * 64, pixels, {"white": number})
"""


def test_several_processes_at_once(kept: Path) -> None:
    running = [
        subprocess.Popen([sys.executable, "-c", AT_ONCE, str(step)], stderr=subprocess.PIPE, text=True)
        for step in (1, 2, 3)
    ]
    assert [process.communicate(timeout=120)[1] for process in running] == [""] * 3
    assert 1 <= len(cache.entries()) <= 6
    assert not [path for path in cache.entries() if path.suffix]


def test_large_images_are_decoded_in_threads_wherever_they_stand(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import threading

    from upcycle.data.pixels import decode_one

    used: dict[str, bool] = {}

    def noted(content: bytes, form: decode.Form) -> tuple[np.ndarray, bool]:
        used[str(len(content) > decode.LARGE)] = threading.current_thread() is not threading.main_thread()
        return decode_one(content, form)

    monkeypatch.setattr(decode, "decode_one", noted)
    small, large = io.BytesIO(), io.BytesIO()
    Image.new("L", (100, 100)).save(small, "PNG")
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (100, 100, 3), np.uint8)).save(large, "PNG")

    def run(contents: list[bytes], cores: int) -> bool:
        monkeypatch.setattr(decode, "cores", lambda: cores)
        decode.decode(lambda: ((i, str(i), c) for i, c in enumerate(contents)), len(contents), decode.Form(channels=3))
        return used.pop("True", False)

    mixed = [small.getvalue(), *[large.getvalue()] * 9]  # a small one comes first
    assert run(mixed, 2) and not run(mixed, 1)
    assert used.pop("False") is False
    run([small.getvalue()] * 20, 2)
    assert used == {"False": False}
