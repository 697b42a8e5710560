"""Files of strangers that mean harm, a part of `make torture`: alone, `python -m benchmarks.hostile_files`.

Here each names a network, a place or a command elsewhere; in the parts beside it what they hold lies. Held is one
sentence and exit code 2 within ten seconds; nobody was asked for the network, nothing was made outside the folder of
the command, and the peak of memory rose by no more than 256 MB. Of what does no harm, such as a name that leads
elsewhere, exit code 0 and nothing made there.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import itertools
import json
import os
import resource
import shutil
import socket
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from benchmarks.hostile_contents import TEACHER, Case, Words, contents
from benchmarks.hostile_data import data
from benchmarks.hostile_runs import runs
from upcycle import cli
from upcycle.core import references, saved, store
from upcycle.core.errors import UserError

MEMORY = 2**28
"""Bytes by which a file may raise the peak."""
SECONDS = 10.0
ESCAPES = (
    "\x1b[2J",
    "\x1b]0;owned\x07",
    "\x9b31m",
    "a\nnote: all is well",
    "a\rb",
    "\x00",
    "a\x08b",
    "\x7f",
    "a\u2028b",
)
OUTSIDE = ("../x", "../../x", "../../../../x", "/no/such/place/x", "..", ".", "a/../../../x", "~/x", "x/y", "a\\..\\b")
PATHS = (
    "../x.png",
    "../../x.png",
    "/dev/zero",
    "/dev/stdin",
    "/etc/passwd",
    "link.png",
    "pipe.png",
    "deep/../../x.png",
)
WRAPPED = {"model_type": "timm_wrapper", "architecture": "resnet10t", "num_classes": 2, "label_names": ["a", "b"]}
CONFIGURATIONS: tuple[dict[str, Any], ...] = (
    {"architecture": "hf-hub:evil/x"},
    {"architecture": "hf_hub:evil/x"},
    {"architecture": "local-dir:/etc"},
    {"architecture": "https://evil/x"},
    {"model_args": {"checkpoint_path": "x.pth"}},
    {"model_args": {"cache_dir": "x"}},
    {"model_args": {"pretrained_cfg": {"file": "/etc/passwd"}}, "architecture": "../x"},
    {"attn_implementation": "evil/kernel"},
    {"_attn_implementation": "flash_attention_2"},
    {"experts_implementation": "evil/kernel"},
    {"backbone": "evil"},
    {"backbone": "evil", "use_pretrained_backbone": True},
    {"vision_config": {"backbone": "evil/x"}},
    {"text_config": {"model_type": "detr"}},
    {"quantization_config": {"quant_method": "evil"}},
    *(
        {"model_type": kind, "backbone": "evil/x", "use_pretrained_backbone": True}
        for kind in (
            "detr",
            "dpt",
            "rt_detr",
            "upernet",
            "vitmatte",
            "mask2former",
            "maskformer",
            "depth_anything",
            "conditional_detr",
            "deformable_detr",
            "table-transformer",
            "grounding-dino",
            "tvp",
            "vitpose",
        )
    ),
)
READERS = {
    "x.safetensors": ["evaluate", TEACHER, "--weights=x.safetensors", "--data=digits"],
    "x.pth": ["evaluate", TEACHER, "--weights=x.pth", "--data=digits"],
    "x.pt": ["evaluate", TEACHER, "--weights=x.pt", "--data=digits"],
    "x.ckpt": ["evaluate", TEACHER, "--weights=x.ckpt", "--data=digits"],
    "x.onnx": ["adapt", "x.onnx", "--method=dine", "--student=zoo:convnet_small", "--data=digits"],
    "x.yaml": ["distill", "--config=x.yaml"],
    "map.csv": ["evaluate", TEACHER, "--data=digits", "--label_map=map.csv"],
    "m/manifest.json": ["evaluate", "m", "--data=digits"],
    "m/architecture.json": ["evaluate", "m", "--data=digits"],
    "m/weights.safetensors": ["evaluate", "m", "--data=digits"],
    "m/lineage.json": ["evaluate", "m", "--data=digits"],
    "t/config.json": ["evaluate", "hf:t", "--data=digits"],
    "t/model.safetensors": ["evaluate", "hf:t", "--data=digits"],
    "t/preprocessor_config.json": ["evaluate", "hf:t", "--data=digits"],
    "g/g_A.txt": ["evaluate", "zoo:gcn_2_16", "--data=graphs:g"],
    "d/train.parquet": ["evaluate", TEACHER, "--data=d"],
    "d/cat/1.png": ["evaluate", TEACHER, "--data=d"],
    "one.png": ["predict", TEACHER, "one.png"],
}
"""A reader by the file that it takes, in the place of which is a pipe or a device."""


def cases(folder: Path) -> Iterator[Case]:
    """Write hostile files into ``folder`` one at a time: their kind, the command that meets each, and its exit code."""
    model = references.resolve(TEACHER)
    for i, changes in enumerate(CONFIGURATIONS):
        config = {**WRAPPED, **changes}
        place = _model(model, folder / f"n{i}", reference="hf:org/name", options={"config": config})
        yield "a saved model that names a network elsewhere", ["evaluate", place, "--data=digits"], 2
        (folder / f"h{i}").mkdir()
        (folder / f"h{i}" / "config.json").write_text(json.dumps(config))
        yield (
            "a directory of transformers that names one",
            ["evaluate", f"hf:h{i}", "--weights=fresh", "--data=digits"],
            2,
        )
    for i, options in enumerate(({}, {"config": None}, {"config": "org/name"}, {"config": []})):
        place = _model(model, folder / f"w{i}", reference="hf:org/name", options=options)
        yield "a saved model without what it is built from", ["evaluate", place, "--data=digits"], 2
    for i, name in enumerate(OUTSIDE):
        shutil.rmtree(folder / "runs", ignore_errors=True)  # of the name before, which may have become the same
        place = _model(model, folder / f"o{i}", name=name)
        yield "a name that leads outside", ["diagnose", place, "--data=digits"], 0
    for i, name in enumerate(ESCAPES):
        for field, value in (("name", name), ("licence", name), ("classes", [name, *"123456789"])):
            place = _model(model, folder / f"e{i}{field}", **{field: value})
            yield "a name that is a command", ["evaluate", place, "--data=digits"], 2
        yield "a word that is a command", ["evaluate", TEACHER, f"--data={name}".replace("\x00", "\x01")], 2
    for i, path in enumerate(PATHS):
        yield (
            "a table that names images elsewhere",
            ["evaluate", TEACHER, f"--data={_table(folder / f't{i}', path)}"],
            2,
        )
    for name, words in READERS.items():
        for kind in ("pipe", "device", "link"):
            _special(model, folder, name, kind)
            yield "a pipe or a device for a file", words, 2


def _model(model: Any, place: Path, **changes: Any) -> str:
    saved.save(model, place)
    record = {**store.read_json(place / saved.ARCHITECTURE), **changes}
    store.write_json(place / saved.ARCHITECTURE, record)
    store.write_manifest(place)
    return place.name


def _table(place: Path, path: str) -> str:
    (place / "deep").mkdir(parents=True)
    Image.new("L", (8, 8)).save(buffer := io.BytesIO(), "PNG")
    Image.new("L", (8, 8)).save(place.parent / "x.png")
    (place / "link.png").symlink_to(place.parent / "x.png")
    os.mkfifo(place / "pipe.png")
    rows = [*({"bytes": buffer.getvalue(), "path": None} for _ in range(29)), {"bytes": None, "path": path}]
    pq.write_table(pa.table({"image": rows, "label": pa.array([0, 1] * 15)}), place / "train.parquet")
    return place.name


def _special(model: Any, folder: Path, name: str, kind: str) -> None:
    path = folder / name
    if "/" in name:
        shutil.rmtree(folder / name.partition("/")[0], ignore_errors=True)
    if name.startswith("m/"):
        saved.save(model, folder / "m")
    path.parent.mkdir(parents=True, exist_ok=True)
    if name.startswith("t/"):
        (path.parent / "config.json").write_text(json.dumps(WRAPPED))
    path.unlink(missing_ok=True)
    if kind == "pipe":
        os.mkfifo(path)
    else:
        path.symlink_to("/dev/zero" if kind == "device" else folder / "pipe")


def hostile_files(tally: dict[str, dict[str, int]], step: int = 1) -> None:
    """Put each file before the command that reads it, and count what held.

    Args:
        step: take one in so many.
    """
    home = Path.cwd()
    importlib.import_module("transformers.models.auto.modeling_auto")  # takes long, and is nobody's file
    importlib.import_module("timm")
    with tempfile.TemporaryDirectory() as name, _nobody_asked() as asked:
        folder = Path(name) / "a" / "b" / "c" / "d"
        folder.mkdir(parents=True)
        os.mkfifo(folder / "pipe")
        os.chdir(folder)
        try:
            for kind, words, code in itertools.islice(
                itertools.chain(*(part(folder) for part in (cases, contents, data, runs))), 0, None, step
            ):
                row = tally.setdefault(f"hostile file: {kind}", {"tried": 0, "held": 0, "failed": 0})
                outside = set(Path(name).glob("*")) | set(Path(name).glob("*/*")) | set(Path(name).glob("*/*/*"))
                start, said, told, before = time.monotonic(), io.StringIO(), io.StringIO(), peak(True)
                try:
                    with contextlib.redirect_stderr(said), contextlib.redirect_stdout(told):
                        found = outcome(words)
                except BaseException as error:
                    found = -1
                    said.write(f"{type(error).__name__}: {error}")
                text = said.getvalue()
                plain = code == 0 or text.count("\n") == 1
                plain = plain and (text + told.getvalue()).replace("\n", "").isprintable()
                now = set(Path(name).glob("*")) | set(Path(name).glob("*/*")) | set(Path(name).glob("*/*/*"))
                held = found == code and plain and not asked and now == outside
                seconds, grown = time.monotonic() - start, peak() - before
                held = held and seconds < SECONDS and grown < MEMORY
                row["tried"] += 1
                row["held" if held else "failed"] += 1
                if not held:
                    facts = f"{found} {text[:300]!r} {asked} {seconds:.1f} s, {grown >> 20} MB"
                    print(f"not held: {kind}: {words}: {facts} {sorted(map(str, now - outside))}", file=sys.stderr)
                asked.clear()
        finally:
            os.chdir(home)


def outcome(words: Words) -> int:
    """The exit code of a command, or of a function that is called as Python's user calls it."""
    if isinstance(words, list):
        return cli.main(words)
    try:
        words()
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


def peak(anew: bool = False) -> int:
    """Bytes of memory that this process has had at most; Linux forgets them where they shall be counted anew."""
    if anew:
        with contextlib.suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5")
    try:
        status = Path("/proc/self/status").read_text()
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return 1024 * int(status.partition("VmHWM:")[2].split()[0])


@contextlib.contextmanager
def _nobody_asked() -> Iterator[list[Any]]:
    """Every attempt to reach anybody fails and is kept."""
    asked: list[Any] = []

    def refuse(*given: Any, **options: Any) -> None:
        asked.append(given)
        raise OSError("no network")

    before = socket.socket.connect, socket.getaddrinfo
    socket.socket.connect, socket.getaddrinfo = refuse, refuse  # type: ignore[method-assign, assignment]
    try:
        yield asked
    finally:
        socket.socket.connect, socket.getaddrinfo = before  # type: ignore[method-assign]


if __name__ == "__main__":
    found: dict[str, dict[str, int]] = {}
    hostile_files(found)
    for what, row in found.items():
        print(what, row)
    sys.exit(any(row["failed"] for row in found.values()))
