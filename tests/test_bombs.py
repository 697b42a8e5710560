"""Small files that announce much: each is refused in one sentence, before there is memory for what it says.

All of them are read in one child process, whose peak of memory is compared with that of a process that reads honest
files of every kind: it is at most four times as high, and 256 MB.
"""

from __future__ import annotations

import gzip
import io
import json
import os
import shutil
import struct
import subprocess
import sys
import textwrap
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from upcycle.core import store
from upcycle.core.errors import UserError, is_memory, one_line
from upcycle.core.limits import Allocations, gunzip
from upcycle.core.read import read
from upcycle.core.references import resolve
from upcycle.core.saved import load, rebuilt, save
from upcycle.core.weights import load_weights
from upcycle.data import load as load_data

LARGE = 10**9  # bytes that a bomb unfolds to, at least

Make = Callable[[Path], tuple[str, str]]
"""Writes files into a folder; gives the kind of reader and the reference."""


# -- honest and not ---------------------------------------------------------------------------------------------------


def idx_files(images: bytes, labels: bytes, shape: tuple[int, ...]) -> Make:
    def make(folder: Path) -> tuple[str, str]:
        place = folder / "usps"
        place.mkdir(parents=True)
        head = struct.pack(f">4B{len(shape)}I", 0, 0, 8, len(shape), *shape)
        for stem in ("train", "t10k"):
            (place / f"{stem}-images-idx3-ubyte.gz").write_bytes(gzip.compress(head + images, 1))
            content = struct.pack(">4BI", 0, 0, 8, 1, shape[0]) + labels
            (place / f"{stem}-labels-idx1-ubyte.gz").write_bytes(gzip.compress(content, 1))
        return "idx", str(folder)

    return make


def honest_idx(folder: Path) -> tuple[str, str]:
    n = 4000
    noise = np.random.default_rng(0).integers(0, 256, (n, 16, 16), np.uint8)
    return idx_files(noise.tobytes(), bytes(i % 10 for i in range(n)), noise.shape)(folder)


def zeros(n: int) -> bytes:
    """Gzip of at least ``n`` zeros, in members of 1 MiB, so that making it takes no time."""
    return gzip.compress(bytes(2**20)) * (n // 2**20 + 1)


def idx_bomb(folder: Path) -> tuple[str, str]:
    place = folder / "usps"
    place.mkdir(parents=True)
    n = (LARGE // 2**20 + 1) * 2**12
    for stem in ("train", "t10k"):
        head = gzip.compress(struct.pack(">4B3I", 0, 0, 8, 3, n, 16, 16))
        (place / f"{stem}-images-idx3-ubyte.gz").write_bytes(head + zeros(LARGE))
        (place / f"{stem}-labels-idx1-ubyte.gz").write_bytes(
            gzip.compress(struct.pack(">4BI", 0, 0, 8, 1, n) + bytes(n), 1)
        )
    return "idx", str(folder)


def idx_overflow(folder: Path) -> tuple[str, str]:
    """Sides whose product is 0 in 64 bits."""
    place = folder / "usps"
    place.mkdir(parents=True)
    for stem in ("train", "t10k"):
        (place / f"{stem}-images-idx3-ubyte").write_bytes(struct.pack(">4B3I", 0, 0, 8, 3, 2**31, 2**31, 4))
        (place / f"{stem}-labels-idx1-ubyte").write_bytes(struct.pack(">4BI", 0, 0, 8, 1, 2**31))
    return "idx", str(folder)


def checkpoint(folder: Path, compression: int, count: int) -> tuple[str, str]:
    """A file of ``torch.save``, with one tensor of ``count`` zeros, packed anew."""
    torch.save({"linear.weight": torch.zeros(1000)}, plain := io.BytesIO())
    folder.mkdir(parents=True)
    path = folder / "net.pt"
    with zipfile.ZipFile(plain) as old, zipfile.ZipFile(path, "w", compression, compresslevel=1) as new:
        for item in old.infolist():
            if "/data/" not in item.filename:
                new.writestr(item.filename, old.read(item))
                continue
            with new.open(item.filename, "w", force_zip64=True) as file:
                for _ in range(max(1, count // 2**20)):
                    file.write(bytes(4000 if count < 2**20 else 2**20))
    return "weights", str(path)


def parquet(folder: Path, labels: Any, image: bytes) -> tuple[str, str]:
    folder.mkdir(parents=True)
    n = len(labels)
    images = pa.DictionaryArray.from_arrays(pa.array(np.zeros(n, np.int8)), pa.array([image], pa.binary()))
    table = pa.table({"image": images.cast(pa.binary()) if n < 10**6 else images, "label": labels})
    pq.write_table(table, folder / "train.parquet", compression="zstd", store_schema=False)
    return "data", str(folder)


def png(width: int, height: int, seed: int = 0) -> bytes:
    """Noise from ``seed``; black for 0."""
    file = io.BytesIO()
    if seed:
        pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
        Image.fromarray(pixels).save(file, "PNG")
        return file.getvalue()
    line = zlib.compressobj(1)
    parts = [line.compress(bytes(1 + 3 * width) * 100) for _ in range(height // 100)] + [line.flush()]

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">2I5B", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"".join(parts)) + chunk(b"IEND", b"")


def honest_parquet(folder: Path) -> tuple[str, str]:
    return parquet(folder, pa.array(np.arange(2000) % 2), png(32, 32, seed=1))


def many_rows(folder: Path) -> tuple[str, str]:
    """Fewer than could be, so that the file is written in a moment."""
    return parquet(folder, pa.array(np.zeros(4_000_000, np.int8)), png(100, 100))


def one_large_label(folder: Path) -> tuple[str, str]:
    return parquet(folder, pa.array([0, 1, 10**7] * 4), png(100, 100))


def one_for_all(folder: Path) -> tuple[str, str]:
    """Rows that all name one value of a megabyte."""
    folder.mkdir(parents=True)
    image = pa.DictionaryArray.from_arrays(pa.array(np.zeros(50_000, np.int8)), pa.array([png(600, 600, 1)]))
    table = pa.table({"image": image, "label": pa.array(np.arange(50_000) % 2)})
    pq.write_table(table, folder / "train.parquet", store_schema=False)
    return "data", str(folder)


def kinds_of_nodes(folder: Path) -> tuple[str, str]:
    """Graphs of which every node is of a kind of its own, which would be a column of a table."""
    folder.mkdir(parents=True)
    n = 30_000
    parts = {
        "A": ["1, 2"],
        "graph_indicator": [str(1 + i // 10) for i in range(n)],
        "graph_labels": ["0", "1"] * (n // 20),
        "node_labels": map(str, range(n)),
    }
    for part, lines in parts.items():
        (folder / f"g_{part}.txt").write_text("\n".join(lines))
    return "data", f"graphs:{folder}"


def pictures(folder: Path, content: bytes, suffix: str = "png") -> tuple[str, str]:
    for place in (folder / split / name for split in ("train", "val", "test") for name in "ab"):
        place.mkdir(parents=True)
        (place / f"0.{suffix}").write_bytes(content)
    return "data", str(folder)


def honest_pictures(folder: Path) -> tuple[str, str]:
    for i in range(100):
        place = folder / "train" / f"class{i % 2}"
        place.mkdir(parents=True, exist_ok=True)
        (place / f"{i}.png").write_bytes(png(64, 64, seed=i + 1))
    return "data", str(folder)


def model(folder: Path, **options: Any) -> tuple[str, str]:
    """A saved model whose record says something else of itself, with digests that hold."""
    save(resolve("zoo:digits_teacher"), folder)
    if options:
        path = folder / "architecture.json"
        record = json.loads(path.read_text())
        record["options"] |= options
        path.write_text(json.dumps(record))
        manifest = json.loads((folder / store.MANIFEST).read_text())
        (folder / store.MANIFEST).unlink()
        store.write_manifest(folder, {"weights.safetensors": manifest["files"]["weights.safetensors"]})
    return "model", str(folder)


def text(folder: Path, name: str, content: str) -> tuple[str, str]:
    folder.mkdir(parents=True)
    (folder / name).write_text(content)
    return name.partition(".")[2], str(folder / name)


def aliases(merge: bool) -> str:
    """A kilobyte that unfolds to ten thousand million items."""
    lines = ["a0: &a0 {k: 1}" if merge else "a0: &a0 [1, 1, 1]"]
    for i in range(1, 11):
        inside = ", ".join([f"*a{i - 1}"] * 10)
        lines.append(f"a{i}: &a{i} {{<<: [{inside}]}}" if merge else f"a{i}: &a{i} [{inside}]")
    return "\n".join(lines)


def heat_map(folder: Path, n: int) -> tuple[str, str]:
    content = {"kind": "heatmap", "title": "h", "rows": ["r"] * n, "columns": ["c"] * n, "values": [[0.5] * n] * n}
    return text(folder, "picture.picture", json.dumps(content))


def graph_text(folder: Path) -> tuple[str, str]:
    folder.mkdir(parents=True)
    (folder / "german.csv.gz").write_bytes(zeros(LARGE))
    return "gzip", str(folder / "german.csv.gz")


HONEST: dict[str, Make] = {
    "idx": honest_idx,
    "weights": lambda f: checkpoint(f, zipfile.ZIP_STORED, 1000),
    "parquet": honest_parquet,
    "images": honest_pictures,
    "model": model,
    "yaml": lambda f: text(f, "a.yaml", "a: &a [1, 2]\nb: *a\nc: {<<: &m {d: 1}, e: 2}\n"),
    "json": lambda f: text(f, "a.json", json.dumps([[0.5] * 100] * 100)),
    "picture": lambda f: heat_map(f, 50),
}
BOMBS: dict[str, tuple[Make, str]] = {
    "idx that unfolds a thousandfold": (idx_bomb, "unfolds to more than"),
    "idx whose sides overflow": (idx_overflow, "is damaged"),
    "gzipped text": (graph_text, "unfolds to more than"),
    "checkpoint that unfolds": (lambda f: checkpoint(f, zipfile.ZIP_DEFLATED, LARGE // 2), "which weights do not"),
    "label column of millions": (many_rows, "more than there can be images"),
    "label of ten million": (one_large_label, "class number 10,000,000 among 12 samples"),
    "one image for all rows": (one_for_all, "'image' of"),
    "kinds of nodes": (kinds_of_nodes, "30,000 kinds, each of which becomes a feature"),
    "images of 169 megapixels": (lambda f: pictures(f, png(13_000, 13_000)), "13,000 x 13,000 pixels in"),
    "images of nothing": (lambda f: pictures(f, b"P6 9000 9000 255\n", "ppm"), "9,000 x 9,000 pixels in"),
    "three million classes": (lambda f: model(f, num_classes=3_000_000), "describes a network of more than"),
    "aliases": (lambda f: text(f, "a.yaml", aliases(False)), "aliases unfold to more than"),
    "merged aliases": (lambda f: text(f, "a.yaml", aliases(True)), "aliases unfold to more than"),
    "aliases in a circle": (lambda f: text(f, "a.yaml", "a: &a [*a]"), "nested too deep"),
    "lists without end": (lambda f: text(f, "a.json", "[" + "[]," * 21_000_000 + "[]]"), "more than 20,000,000 items"),
    "a heat map of 3000 x 3000": (lambda f: heat_map(f, 3000), "values, more than the 200,000"),
    "a heat map of 400 x 400": (lambda f: heat_map(f, 400), "400 x 400 cells are more than"),
}


def read_one(kind: str, reference: str) -> str:
    """Read it and give what is said: empty where all is well. This runs in the child."""
    from upcycle.data.fair_tables import _content
    from upcycle.reports.pictures import picture

    try:
        if kind == "idx":
            os.environ["UPCYCLE_DATA"] = reference
            load_data("usps")
        elif kind == "data":
            load_data(reference)
        elif kind == "weights":
            load_weights(torch.nn.ModuleDict({"linear": torch.nn.LayerNorm(1000, bias=False)}), reference)
        elif kind == "model":
            load(reference)
        elif kind == "gzip":
            _content(Path(reference))
        elif kind == "picture":
            said = picture(Path(reference)).caption
            return said if "cannot be drawn" in said else ""
        else:
            read(Path(reference), Any)  # type: ignore[arg-type]
    except UserError as error:
        return str(error)
    return ""


CHILD = """
    import json, re, sys, time
    from pathlib import Path
    from tests.test_bombs import read_one
    found = {}
    for name, kind, reference in json.load(sys.stdin):
        begun = time.process_time()
        said = read_one(kind, reference)
        found[name] = [said, time.process_time() - begun]
    # Not what getrusage says: that begins with the peak of the process that this one was started from.
    peak = int(re.search(r"VmHWM:\\s*(\\d+) kB", Path("/proc/self/status").read_text())[1]) * 1024
    print(json.dumps([found, peak]))
"""


def read_all(files: list[tuple[str, str, str]]) -> tuple[dict[str, list[Any]], int]:
    """Read each: what is said and the seconds of work that it takes, and the peak of memory in bytes."""
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(CHILD)], input=json.dumps(files), text=True, capture_output=True
    )
    assert done.returncode == 0, done.stderr[-2000:]
    found, peak = json.loads(done.stdout.splitlines()[-1])
    return found, peak


@pytest.mark.skipif(not Path("/proc/self/status").is_file(), reason="the peak of memory is Linux's to say")
def test_bombs_take_no_more_than_honest_files(tmp_path: Path) -> None:
    honest = [(name, *make(tmp_path / "honest" / str(i))) for i, (name, make) in enumerate(HONEST.items())]
    bombs = [(name, *make(tmp_path / "bombs" / str(i))) for i, (name, (make, _)) in enumerate(BOMBS.items())]
    good, usual = read_all(honest)
    assert not {name: said for name, (said, _) in good.items() if said}
    bad, peak = read_all(bombs)
    for name, (said, seconds) in bad.items():
        assert said and "\n" not in said and len(said) < 1000 and BOMBS[name][1] in said, (name, said)
        assert seconds < 10, (name, seconds)
    print(peak >> 20, usual >> 20)
    assert peak < usual + 2**28, (peak, usual)  # four times the usual would be more


# -- the parts --------------------------------------------------------------------------------------------------------


def test_gzip_of_several_members_and_damaged_is_as_before(tmp_path: Path) -> None:
    assert gunzip(gzip.compress(b"a") + gzip.compress(b"b"), tmp_path) == b"ab"
    for content in (b"no gzip", gzip.compress(b"abc" * 100)[:-9]):
        with pytest.raises((OSError, EOFError)):
            gunzip(content, tmp_path)


def test_an_ordinary_network_is_built_within_its_limit(tmp_path: Path) -> None:
    """A context that counts changes nothing of what is built."""
    model(tmp_path / "m")
    torch.manual_seed(0)
    free = resolve("zoo:vit", pretrained=False, num_classes=7)
    torch.manual_seed(0)
    with Allocations(10**9, "too much") as counted:
        held = resolve("zoo:vit", pretrained=False, num_classes=7)
    states = [m.module.state_dict() for m in (free, held)]
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])
    size = sum(p.numel() * p.element_size() for p in held.module.parameters())
    assert size <= counted.taken <= 4 * size
    with pytest.raises(UserError, match="too much"), Allocations(size // 2, "too much"):
        resolve("zoo:vit", pretrained=False, num_classes=7)
    assert rebuilt(tmp_path / "m", num_classes=1000).module is not None
    shutil.rmtree(tmp_path / "m")


@pytest.mark.parametrize(
    "error",
    [MemoryError(), RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9")],
    ids=["python", "torch"],
)
def test_memory_that_runs_out_is_told_as_such(error: Exception) -> None:
    class Hungry(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = torch.nn.Linear(64, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            raise error

    assert is_memory(error) and not is_memory(RuntimeError("shapes differ")) and not is_memory(KeyboardInterrupt())
    with pytest.raises(UserError, match="Memory ran out"):
        one_line(error)
    with pytest.raises((UserError, MemoryError)) as caught:
        resolve(Hungry(), input_shape=(1, 8, 8))
    assert "does not take" not in str(caught.value)
