"""Files of strangers whose contents lie, a part of `make torture`: see :mod:`benchmarks.hostile_files`.

Each announces more than it holds, contradicts itself, points elsewhere, or holds what would run. They are read as a
person reads them: by a command, or by the function of Python where no command reads such a file.
"""

from __future__ import annotations

import contextlib
import gzip
import io
import json
import os
import shutil
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from upcycle.core import references, saved, store

TEACHER = "zoo:digits_teacher"
Words = list[str] | Callable[[], object]
Case = tuple[str, Words, int]


def contents(folder: Path) -> Iterator[Case]:
    """Write hostile files into ``folder`` one at a time; see :func:`benchmarks.hostile_files.cases`."""
    for kind in (_configurations, _weights, _checkpoints, _models, _onnx, _images, _idx):
        place = folder / kind.__name__
        place.mkdir()
        yield from kind(place)
        shutil.rmtree(place)


def here(path: Path) -> str:
    """A path as a person in the folder of the command gives it."""
    return str(path.relative_to(Path.cwd()))


def noise(side: int) -> bytes:
    """A square picture that cannot be packed."""
    pixels = np.random.default_rng(0).integers(0, 256, (side, side), np.uint8)
    Image.fromarray(pixels).save(buffer := io.BytesIO(), "PNG")
    return buffer.getvalue()


@contextlib.contextmanager
def environment(**values: str) -> Iterator[None]:
    """Set variables of the environment while the block lasts."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value


def _configurations(folder: Path) -> Iterator[Case]:
    """Name code, or are no configuration."""
    canary = folder.parents[2] / "canary"
    Path("evil.py").write_text(f"open({str(canary)!r}, 'w')\nX = f = None\n")
    plain = {"teacher": TEACHER, "student": "zoo:convnet_small", "data": "digits", "quiet": True}
    named: tuple[dict[str, Any], ...] = (
        {"plugin": "evil.py"},
        {"method": "evil:X"},
        {"teacher": "evil:f"},
        {"student": "evil:f", "trust": ["evil"]},
        {"teacher": "os:abort", "dry_run": True},
        {"data": "evil:f"},
    )
    texts = {f"code{i}": json.dumps({**plain, **changes}) for i, changes in enumerate(named)}
    texts |= {
        "tag": f"teacher: !!python/object/apply:os.system ['touch {canary}']\n",
        "module": "teacher: !!python/module:evil\n",
        "deep": "a: " + "{a: " * 2000 + "1" + "}" * 2000,
        "keys": "{? [1, 2] : 3}",
        "numbers": json.dumps({**plain, "recipe": [1, 2]}),
        "infinite": "recipe: {lr: .inf}\n" + json.dumps(plain)[1:-1].replace(", ", "\n").replace('"', ""),
        "binary": "teacher: !!binary |\n  /9j/4AAQ\n",
        "date": "teacher: 2026-01-01\nstudent: zoo:convnet_small\ndata: digits\n",
        "merge": "<<: 3\nteacher: x\n",
        "two": "teacher: x\n---\nteacher: y\n",
        "long": "teacher: " + "x" * 2**21,
    }
    for name, text in texts.items():
        (folder / f"{name}.yaml").write_text(text)
        what = "names code" if name.startswith("code") else "is none"
        yield f"a configuration that {what}", ["distill", f"--config={here(folder / f'{name}.yaml')}"], 2
    (folder / "wide.yaml").write_bytes("teacher: x\n".encode("utf-16"))
    yield "a configuration that is none", ["distill", f"--config={here(folder / 'wide.yaml')}"], 2


def _header(header: Any, data: bytes = b"", length: int | None = None) -> bytes:
    """A safetensors file of this header, whose length may be another than it says."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def _weights(folder: Path) -> Iterator[Case]:
    """Safetensors whose header lies."""
    one = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}
    files = {
        "longer": _header({"a": one}, bytes(8), 2**40),
        "endless": _header({"a": one}, bytes(8), 2**64 - 1),
        "empty": b"",
        "negative": _header({"a": {**one, "shape": [-2]}}, bytes(8)),
        "huge": _header({"a": {**one, "shape": [2**40, 2**40]}}, bytes(8)),
        "overlapping": _header({"a": one, "b": one}, bytes(8)),
        "gap": _header({"a": {**one, "data_offsets": [8, 16]}}, bytes(16)),
        "backwards": _header({"a": {**one, "data_offsets": [8, 0]}}, bytes(8)),
        "format": _header({"a": {**one, "dtype": "F1024"}}, bytes(8)),
        "nested": _header(b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}"),
        "metadata": _header({"__metadata__": {"a": {"b": 1}}, "a": one}, bytes(8)),
        "names": _header({f"{i}\x1b[2J": {**one, "shape": [0], "data_offsets": [0, 0]} for i in range(1000)}),
    }
    for name, content in files.items():
        path = folder / f"{name}.safetensors"
        path.write_bytes(content)
        yield "weights whose header lies", ["evaluate", TEACHER, f"--weights={here(path)}", "--data=digits"], 2


def _checkpoints(folder: Path) -> Iterator[Case]:
    """Files of torch that are built by hand."""
    network = references.resolve(TEACHER).module
    state = network.state_dict()
    name, tensor = next((key, value) for key, value in state.items() if value.ndim > 1)

    def kept(value: Any) -> bytes:
        torch.save(value, buffer := io.BytesIO())
        return buffer.getvalue()

    def repacked(change: Callable[[zipfile.ZipFile, zipfile.ZipFile], None]) -> bytes:
        with (
            zipfile.ZipFile(io.BytesIO(kept(dict(state)))) as old,
            zipfile.ZipFile(made := io.BytesIO(), "w") as new,
        ):
            for item in old.infolist():
                new.writestr(item.filename, old.read(item))
            change(old, new)
        return made.getvalue()

    wide = torch.zeros(1).expand(2**20, 2**20)  # one number that is said to be a terabyte's
    deep: dict[str, Any] = {}
    for _ in range(400):
        deep = {"x": deep}
    files = {
        "one number as a terabyte": kept({**state, name: wide}),
        "all of one number": kept({key: torch.zeros(1).expand(2**20, 2**20) for key in state}),
        "nested": kept(deep),
        "a path outside": repacked(lambda old, new: new.writestr("../../canary", b"x")),
        "twice the same": repacked(lambda old, new: new.writestr(old.infolist()[0].filename, b"x")),
        "a sparse tensor out of itself": kept(
            {**state, name: torch.sparse_coo_tensor([[10**6]], [1.0], (10**7,), check_invariants=False)}
        ),
        "text for a tensor": kept({**state, name: "x" * 1000}),
        "numbers that are complex": kept({**state, name: tensor.to(torch.complex64)}),
        "a tensor without numbers": kept({**state, name: torch.empty(tensor.shape, device="meta")}),
        "cut in two": (whole := kept(dict(state)))[: len(whole) // 2],
        "no archive": b"PK\x03\x04" + bytes(100),
    }
    for what, content in files.items():
        path = folder / f"{what.replace(' ', '_')}.pt"
        path.write_bytes(content)
        code = 0 if what == "twice the same" else 2  # of which the first one counts, for torch too
        yield "a checkpoint made by hand", ["evaluate", TEACHER, f"--weights={here(path)}", "--data=digits"], code


def _models(folder: Path) -> Iterator[Case]:
    """Saved models whose record does not go with their weights; all digests hold."""
    teacher = references.resolve(TEACHER)
    changes: tuple[dict[str, Any], ...] = (
        {"input_shape": [1, 100_000, 100_000]},
        {"input_shape": [2**40, 8, 8]},
        {"input_shape": [1, 0, 8]},
        {"mean": [0.5] * 1000},
        {"std": [0.0]},
        {"std": [float("nan")]},
        {"classes": ["a"]},
        {"classes": [str(i) for i in range(100_000)]},
        {"classes": [["a"]] * 10},
        {"reference": "zoo:../../x"},
        {"reference": "evil:f"},
        {"reference": "assembly:stitched", "options": {"parts": "x"}},
        {"reference": "assembly:operated", "options": {}},
        {"options": {"depth": 10**9}},
        {"options": {"num_classes": -1}},
        {"options": {"__class__": "x"}},
        {"format": 10**9},
        {"reading": {"crop_pct": 1e-9}},
    )
    for i, change in enumerate(changes):
        place = folder / f"m{i}"
        saved.save(teacher, place)
        record = {**store.read_json(place / saved.ARCHITECTURE), **change}
        (place / saved.ARCHITECTURE).write_text(json.dumps(record))
        store.write_manifest(place)
        yield "a saved model whose record lies", ["evaluate", here(place), "--data=digits"], 2
    for i, name in enumerate(("../x", "/etc/passwd", "..", "a\x00b", "weights.safetensors")):
        place = folder / f"f{i}"
        saved.save(teacher, place)
        files = {**store.manifest(place), name: {"sha256": "0" * 64, "bytes": 2**50}}
        (place / store.MANIFEST).unlink()
        store.write_json(place / store.MANIFEST, store.sealed({"format": 1, "files": files}))
        yield "a manifest that names what is not there", ["evaluate", here(place), "--data=digits"], 2


def _onnx(folder: Path) -> Iterator[Case]:
    """ONNX files that point elsewhere, never end, or take what is not there."""
    import onnx
    from onnx import TensorProto, helper

    def file(name: str, nodes: list[Any], weights: list[Any], shape: list[Any] | None = None, domain: str = "") -> Path:
        images = helper.make_tensor_value_info("x", TensorProto.FLOAT, shape or ["b", 1, 8, 8])
        answer = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["b", 10])
        graph = helper.make_graph(nodes, "g", [images], [answer], weights)
        opsets = [helper.make_opsetid("", 17), *([helper.make_opsetid(domain, 1)] if domain else [])]
        made = helper.make_model(graph, opset_imports=opsets, ir_version=8)
        facts = {"classes": list("0123456789"), "mean": [0.0], "std": [1.0]}
        helper.set_model_props(made, {"upcycle": json.dumps(facts)})
        path = folder / f"{name}.onnx"
        path.write_bytes(made.SerializeToString())
        return path

    flat = helper.make_node("Flatten", ["x"], ["f"])
    product = helper.make_node("MatMul", ["f", "w"], ["y"])

    def elsewhere(place: str, length: int = 2560) -> Any:
        weight = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[64, 10])
        weight.data_location = TensorProto.EXTERNAL
        weight.external_data.add(key="location", value=place)
        weight.external_data.add(key="length", value=str(length))
        return weight

    (folder.parent.parent / "w.bin").write_bytes(bytes(2560))
    for i, place in enumerate(
        ("../../w.bin", "/etc/passwd", "/dev/zero", "nowhere.bin", str(folder.parents[1] / "w.bin"))
    ):
        path = file(f"elsewhere{i}", [flat, product], [elsewhere(place)])
        yield "an ONNX file that points elsewhere", _adapt(path), 2
    short = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[2**31, 2**31], raw_data=bytes(8))
    size = helper.make_tensor("size", TensorProto.INT64, [2], [2**20, 2**20])
    room = helper.make_node("ConstantOfShape", ["size"], ["large"])
    total = helper.make_node("ReduceSum", ["large"], ["s"], keepdims=0)
    plain = helper.make_tensor("w", TensorProto.FLOAT, [64, 10], [0.0] * 640)
    beside = helper.make_node("Add", ["p", "s"], ["y"])
    body = helper.make_graph(
        [helper.make_node("Identity", ["c"], ["d"]), helper.make_node("Identity", ["v"], ["u"])],
        "body",
        [
            helper.make_tensor_value_info("i", TensorProto.INT64, []),
            helper.make_tensor_value_info("c", TensorProto.BOOL, []),
            helper.make_tensor_value_info("v", TensorProto.FLOAT, None),
        ],
        [
            helper.make_tensor_value_info("d", TensorProto.BOOL, []),
            helper.make_tensor_value_info("u", TensorProto.FLOAT, None),
        ],
    )
    count = helper.make_tensor("n", TensorProto.INT64, [], [2**62])
    yes = helper.make_tensor("yes", TensorProto.BOOL, [], [True])
    loop = helper.make_node("Loop", ["n", "yes", "p"], ["y"], body=body)
    first = helper.make_node("MatMul", ["f", "w"], ["p"])
    files = {
        "dims": ([flat, product], [short]),
        "room": ([flat, first, room, total, beside], [plain, size]),
        "loop": ([flat, first, loop], [plain, count, yes]),
        "foreign": ([flat, helper.make_node("Evil", ["f", "w"], ["y"], domain="evil")], [plain]),
        "python": ([flat, helper.make_node("PyOp", ["f", "w"], ["y"], domain="com.microsoft")], [plain]),
    }
    for name, (nodes, weights) in files.items():
        domain = {"foreign": "evil", "python": "com.microsoft"}.get(name, "")
        yield (
            f"an ONNX file that {'never ends' if name == 'loop' else 'lies'}",
            _adapt(file(name, nodes, weights, domain=domain)),
            2,
        )
    wide = file("wide", [flat, product], [plain], ["b", 1, 200_000, 200_000])
    yield "an ONNX file that lies", _adapt(wide), 2
    for i, facts in enumerate(({"std": [0.0]}, {"classes": ["\x1b[2J"] * 10}, {"classes": []}, {"mean": [1e400]}, "[")):
        made = onnx.load(file(f"facts{i}", [flat, product], [plain]))
        del made.metadata_props[:]
        text = facts if isinstance(facts, str) else json.dumps({"mean": [0.0], "std": [1.0], **facts})
        helper.set_model_props(made, {"upcycle": text})
        (folder / f"facts{i}.onnx").write_bytes(made.SerializeToString())
        yield "an ONNX file whose metadata lie", _adapt(folder / f"facts{i}.onnx"), 2
    (folder / "cut.onnx").write_bytes(wide.read_bytes()[:-40])
    yield "an ONNX file that lies", _adapt(folder / "cut.onnx"), 2


def _adapt(path: Path) -> list[str]:
    return [
        "adapt",
        here(path),
        "--method=dine",
        "--student=zoo:convnet_small",
        "--data=digits",
        "--quiet",
        f"--out={here(path)}.run",
    ]


def _chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def _images(folder: Path) -> Iterator[Case]:
    """Pictures that are something else, or unfold to more than there is."""
    header = struct.pack(">2I5B", 8, 8, 8, 0, 0, 0, 0)
    pixels = _chunk(b"IDAT", zlib.compress(bytes(72)))
    start, end = b"\x89PNG\r\n\x1a\n", _chunk(b"IEND", b"")
    bomb = zlib.compress(bytes(2**28), 9)

    def png(width: int, height: int, *more: bytes) -> bytes:
        return (
            start + _chunk(b"IHDR", struct.pack(">2I5B", width, height, 8, 0, 0, 0, 0)) + b"".join(more) + pixels + end
        )

    Image.new("L", (8, 8)).save(buffer := io.BytesIO(), "TIFF")
    tiff = bytearray(buffer.getvalue())
    Image.new("L", (8, 8)).save(buffer := io.BytesIO(), "JPEG")
    jpeg = bytearray(buffer.getvalue())
    at = jpeg.index(b"\xff\xc0") + 5
    jpeg[at : at + 4] = b"\xff\xdc\xff\xdc"
    directory = int.from_bytes(tiff[4:8], "little")
    tiff[-4:] = struct.pack("<I", directory)
    files = {
        "postscript": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EOF\n(canary) (w) file closefile\n",
        "drawing": b"<svg xmlns='http://www.w3.org/2000/svg'><image href='file:///etc/passwd'/></svg>",
        "page": b"<!DOCTYPE html><script>x</script>",
        "wide": png(2**31 - 1, 1),
        "tall": png(1, 60_000_000),
        "square": png(2**20, 2**20),
        "large jpeg": bytes(jpeg),
        "large gif": b"GIF89a" + struct.pack("<2H", 65535, 65535) + b"\x00\x00\x00" + b";",
        "large bitmap": b"BM"
        + struct.pack("<IHHI", 200, 0, 0, 54)
        + struct.pack("<IiiHHIIiiII", 40, 2**30, -(2**30), 1, 24, 0, 0, 0, 0, 0, 0),
        "cut webp": b"RIFF\xff\xff\xff\x7fWEBPVP8L\xff\xff\xff\x7f/\xff\xff\xff\x0f",
        "names in it": start + _chunk(b"IHDR", header) + _chunk(b"PLTE", b"x") + end,
        "a value too large": b"P5 8 8 4294967297\n" + bytes(64),
        "no numbers": b"P2 8 8 255\n" + b"x " * 64,
    }
    for name, content in files.items():
        path = folder / f"{name.replace(' ', '_')}.png"
        path.write_bytes(content)
        yield "a picture that is none", ["predict", TEACHER, here(path)], 2
    for name, chunk in (("iCCP", b"a\0\0" + bomb), ("zTXt", b"a\0\0" + bomb), ("iTXt", b"a\0\1\0\0\0" + bomb)):
        path = folder / f"{name}.png"
        path.write_bytes(png(8, 8, _chunk(name.encode(), chunk)))
        yield "a picture with a bomb beside it", ["predict", TEACHER, here(path)], 2
    (folder / "circle.png").write_bytes(bytes(tiff))
    yield "a picture whose directories form a circle", ["predict", TEACHER, here(folder / "circle.png")], 0


def _idx(folder: Path) -> Iterator[Case]:
    """Arrays in MNIST's format whose header lies."""

    def array(shape: tuple[int, ...], content: bytes, kind: int = 8, axes: int | None = None) -> bytes:
        return struct.pack(f">4B{len(shape)}I", 0, 0, kind, len(shape) if axes is None else axes, *shape) + content

    good, labels = array((20, 16, 16), bytes(20 * 256)), array((20,), bytes(range(10)) * 2)
    files = {
        "more images than labels": (good, array((10,), bytes(10))),
        "numbers of another type": (array((20, 16, 16), bytes(20 * 256), kind=13), labels),
        "axes without lengths": (array((20, 16, 16), bytes(20 * 256), axes=255), labels),
        "more than it announces": (good + b"x", labels),
        "no image": (array((0, 16, 16), b""), array((0,), b"")),
        "images of nothing": (array((20, 0, 16), b""), labels),
        "a class that is not there": (good, array((20,), bytes([255] * 20))),
        "labels as a picture": (good, array((20, 1, 1), bytes(20))),
    }
    for name, (images, classes) in files.items():
        place = folder / name.replace(" ", "_") / "usps"
        place.mkdir(parents=True)
        for stem in ("train", "t10k"):
            (place / f"{stem}-images-idx3-ubyte").write_bytes(images)
            (place / f"{stem}-labels-idx1-ubyte").write_bytes(classes)
        with environment(UPCYCLE_DATA=str(place.parent)):
            yield "an idx file that lies", ["evaluate", TEACHER, "--data=usps", "--size=8"], 2
    place = folder / "cut" / "usps"
    place.mkdir(parents=True)
    for stem in ("train", "t10k"):
        (place / f"{stem}-images-idx3-ubyte.gz").write_bytes(gzip.compress(good)[:-9])
        (place / f"{stem}-labels-idx1-ubyte.gz").write_bytes(b"\x1f\x8b" + bytes(30))
    with environment(UPCYCLE_DATA=str(place.parent)):
        yield "an idx file that lies", ["evaluate", TEACHER, "--data=usps", "--size=8"], 2
