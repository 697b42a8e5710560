"""Tables, label maps and graphs that lie, a part of `make torture`: see :mod:`benchmarks.hostile_files`."""

from __future__ import annotations

import collections
import json
import os
import pickle
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.hostile_contents import TEACHER, Case, environment, here, noise

DEEP = "[" * 3000 + "]" * 3000


def data(folder: Path) -> Iterator[Case]:
    """Write hostile files into ``folder`` one at a time; see :func:`benchmarks.hostile_files.cases`."""
    for kind in (_tables, _label_maps, _graphs, _papers):
        place = folder / kind.__name__
        place.mkdir()
        yield from kind(place)
        shutil.rmtree(place)


# -- tables and label maps --------------------------------------------------------------------------------------------


def number(value: int, length: int = 0) -> bytes:
    """A whole number as the footer of a Parquet file has it, in so many bytes at least."""
    value, found = 2 * value, bytearray()
    while value > 127 or len(found) + 1 < length:
        found.append(value & 127 | 128)
        value >>= 7
    return bytes([*found, value])


def forged(path: Path, true: int, false: int) -> None:
    """Let a footer say another number than the true one."""
    content = path.read_bytes()
    length = int.from_bytes(content[-8:-4], "little")
    start, old = len(content) - 8 - length, number(true)
    footer = content[start:]
    assert old in footer
    path.write_bytes(content[:start] + footer.replace(old, number(false, len(old))))


def _tables(folder: Path) -> Iterator[Case]:
    """Parquet files that say one thing and hold another, or one image for all rows."""
    small, n = noise(8), 40
    numbers = pa.array([0, 1] * (n // 2))

    def table(name: str, columns: dict[str, Any], metadata: dict[str, str] | None = None, **options: Any) -> Path:
        (folder / name).mkdir()
        made = pa.table(columns)
        made = made.replace_schema_metadata(metadata) if metadata else made
        pq.write_table(made, folder / name / "train.parquet", store_schema=bool(metadata), **options)
        return folder / name / "train.parquet"

    def same(image: bytes, count: int) -> Any:
        return pa.DictionaryArray.from_arrays(pa.array(np.zeros(count, np.int8)), pa.array([image], pa.binary()))

    images = pa.array([small] * n, pa.binary())
    table("one image for all", {"image": same(noise(800), 50_000), "label": pa.array(np.arange(50_000) % 2)})
    names = pa.DictionaryArray.from_arrays(pa.array(np.arange(50_000) % 2, pa.int8()), pa.array(["a" * 10**6, "b"]))
    table("one name for all", {"image": same(small, 50_000), "label": names})
    zeros = pa.array([bytes(2**28)] + [small] * (n - 1), pa.binary())
    path = table("pages", {"image": zeros, "label": numbers}, compression="zstd", use_dictionary=False)
    forged(path, pq.ParquetFile(path).metadata.row_group(0).column(0).total_uncompressed_size, 1000)
    path = table("rows", {"image": pa.array([small] * 5000, pa.binary()), "label": pa.array([0, 1] * 2500)})
    forged(path, 5000, 8000)
    path = table("place", {"image": images, "label": numbers}, use_dictionary=False)
    forged(path, pq.ParquetFile(path).metadata.row_group(0).column(0).data_page_offset, 8000)
    path = table("footer", {"image": images, "label": numbers})
    path.write_bytes(path.read_bytes()[:-8] + (2**31).to_bytes(4, "little") + b"PAR1")
    path = table("page", {"image": images, "label": numbers})
    content = bytearray(path.read_bytes())
    content[4:40] = b"\xff" * 36
    path.write_bytes(content)
    table("lists", {"image": images, "label": pa.array([[0, 1]] * n)})
    table("nothing", {"image": pa.array([None] * n, pa.binary()), "label": numbers})
    table("fractions", {"image": images, "label": pa.array([0.5, 1.5] * (n // 2))})
    table("large", {"image": images, "label": pa.array([0, 2**63 - 1] * (n // 2))})
    table("numbers", {"image": pa.array(range(n)), "label": numbers})
    features = {"info": {"features": {"label": {"names": ["a\x1b[2J", "b"]}}}}
    table("names", {"image": images, "label": numbers}, {"huggingface": json.dumps({"info": {"features": DEEP}})})
    table("nested", {"image": images, "label": numbers}, {"huggingface": DEEP})
    table("commands", {"image": images, "label": numbers}, {"huggingface": json.dumps(features)})
    for place in sorted(folder.iterdir()):
        yield "a table that lies", ["evaluate", "zoo:convnet_small", f"--data={here(place)}", "--weights=fresh"], 2


def _label_maps(folder: Path) -> Iterator[Case]:
    """Label maps that are none."""
    files = {
        "long": b"teacher,student\n" + b"x" * 2**18 + b",0\n",
        "binary": b"teacher,student\n\xff\xfe\x00",
        "nothing": b"teacher,student\n" + b"0,0\n" * 2,
        "formula": b"teacher,student\n=cmd|'/c calc'!A0,0\n",
        "commands": b"teacher,student\n\x1b]0;owned\x07,0\n",
        "quotes": b'teacher,student\n"' + b"0,0\n" * 100_000,
        "numbers": b"teacher,student\n" + b"9" * 5000 + b",0\n",
        "wide": b"teacher,student\n" + b"," * 100_000 + b"\n",
    }
    for name, content in files.items():
        (folder / f"{name}.csv").write_bytes(content)
        path = here(folder / f"{name}.csv")
        yield "a label map that is none", ["evaluate", TEACHER, "--data=digits", f"--label_map={path}"], 2


# -- graphs -----------------------------------------------------------------------------------------------------------


def _graphs(folder: Path) -> Iterator[Case]:
    """Graphs in text that contradict themselves."""
    good = {
        "A": "1, 2\n2, 1\n3, 4\n4, 3\n5, 6\n6, 5\n",
        "graph_indicator": "1\n1\n2\n2\n3\n3\n",
        "graph_labels": "0\n1\n0\n",
    }
    n = 30_000
    sets: dict[str, dict[str, str]] = {
        "dangling": {"A": "1, 999\n"},
        "negative": {"A": "-1, 2\n"},
        "fraction": {"A": "1.5, 2\n"},
        "endless": {"A": "inf, nan\n"},
        "between": {"A": "1, 3\n"},
        "backwards": {"graph_indicator": "3\n1\n2\n2\n3\n3\n"},
        "far": {"graph_indicator": "1\n1\n2\n2\n3\n1000000000000\n"},
        "fewer": {"graph_labels": "0\n"},
        "attributes": {"node_attributes": "nan\n" * 6},
        "infinite": {"node_attributes": "1e999\n" * 6},
        "wider": {"node_attributes": "1\n1 2\n" * 3},
        "text": {"node_labels": "x\n" * 6},
        "words": {"A": "1, two\n"},
        "kinds": {
            "A": "1, 2\n",
            "graph_indicator": "".join(f"{1 + i // 10}\n" for i in range(n)),
            "graph_labels": "0\n1\n" * (n // 20),
            "node_labels": "".join(f"{i}\n" for i in range(n)),
        },
        "degrees": {
            "A": "".join(f"1, {i}\n" for i in range(1, 600)) + "".join(f"{i}, 1\n" for i in range(1, 600)),
            "graph_indicator": "1\n" * 300_000 + "2\n",
            "graph_labels": "0\n1\n",
        },
    }
    for name, changed in sets.items():
        (folder / name).mkdir()
        for part, text in {**good, **changed}.items():
            (folder / name / f"g_{part}.txt").write_text(text)
        yield "graphs that contradict themselves", _on_graphs(folder / name), 2
    texts = {
        "more": "1000000000\n1 0\n0 0\n",
        "nodes": f"2\n{10**15} 0\n0 0\n",
        "neighbours": "2\n1 0\n0 1000000000 1\n1 1\n0 0\n",
        "loops": "1\n-5 0\n",
        "digits": "9" * 100_000,
        "labels": "2\n1 " + "9" * 4000 + "\n0 0\n1 0\n0 0\n",
        "nothing": "",
    }
    for name, text in texts.items():
        (folder / f"{name}.txt").write_text(text)
        yield "graphs that contradict themselves", _on_graphs(folder / f"{name}.txt"), 2


def _on_graphs(place: Path) -> list[str]:
    return ["evaluate", "zoo:gcn_2_16", "--weights=fresh", f"--data=graphs:{here(place)}"]


class _Run:
    """Runs a command where it is unpickled as usual."""

    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self) -> Any:
        return os.system, (self.command,)


def _papers(folder: Path) -> Iterator[Case]:
    """Pickles of Planetoid."""
    import scipy.sparse as sp

    labels = np.eye(7, dtype=np.int32)[np.arange(540) % 7]
    x = sp.csr_matrix(np.eye(4, dtype=np.float32)[np.arange(540) % 4])
    wide = sp.csr_matrix(x[:530])
    wide._shape = (530, 2**24)  # type: ignore[attr-defined]
    outside = x[:530].copy()
    outside.indices = outside.indices + 10**6
    shared = list(range(540))
    changes: dict[str, dict[str, Any]] = {
        "code": {"allx": _Run(f"touch {folder.parents[2] / 'canary'}")},
        "wide": {"allx": wide, "tx": wide[530:]},
        "outside": {"allx": outside},
        "objects": {"ally": np.array([{}] * 530)},
        "one list for all": {"graph": dict.fromkeys(range(100_000), shared)},
        "far": {"graph": {0: [10**12]}},
        "text": {"graph": "x" * 100},
        "fewer": {"ally": labels[:10]},
    }
    for name, changed in changes.items():
        place = folder / name.replace(" ", "_") / "graphs" / "planetoid"
        place.mkdir(parents=True)
        parts = {
            "x": x[:10],
            "tx": x[530:],
            "allx": x[:530],
            "y": labels[:10],
            "ty": labels[530:],
            "ally": labels[:530],
            "graph": collections.defaultdict(list, {i: [(i + 1) % 540] for i in range(540)}),
            **changed,
        }
        for part, value in parts.items():
            (place / f"ind.cora.{part}").write_bytes(pickle.dumps(value, protocol=4))
        (place / "ind.cora.test.index").write_text("\n".join(map(str, range(530, 540))))
        with environment(UPCYCLE_DATA=str(place.parents[1])):
            yield "a pickle of papers", ["evaluate", "zoo:gcn_2_16", "--weights=fresh", "--data=cora"], 2
