"""Runs and stores of strangers that lie, a part of `make torture`: see :mod:`benchmarks.hostile_files`."""

from __future__ import annotations

import dataclasses
import json
import shutil
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from benchmarks.hostile_contents import TEACHER, Case, environment, here
from benchmarks.hostile_data import DEEP
from upcycle import cli
from upcycle.adaptation.adapters import scale_shift
from upcycle.continual.protocol.past import Past
from upcycle.core import references, saved, store
from upcycle.core.graphs import GraphTakes
from upcycle.core.heads import classifiers
from upcycle.core.lineage import node
from upcycle.data import cache
from upcycle.data.graph_pool import NAMES, TENSORS, save_graph_pool
from upcycle.predictors.cache import AnswerFile

RUN = ["distill", f"--teacher={TEACHER}", "--student=zoo:convnet_small", "--data=digits", "--recipe.epochs=1"]


def runs(folder: Path) -> Iterator[Case]:
    """Write hostile files into ``folder`` one at a time; see :func:`benchmarks.hostile_files.cases`."""
    for kind in (_runs, _kept, _answers):
        place = folder / kind.__name__
        place.mkdir()
        yield from kind(place)
        shutil.rmtree(place)


def _runs(folder: Path) -> Iterator[Case]:
    """Run directories that say what no run says, to go on with, to compare and to draw."""
    good = folder / "good"
    assert cli.main([*RUN, "--recipe.batch_size=64", "--quiet", f"--out={here(good)}"]) == 0

    def copy(name: str) -> Path:
        shutil.copytree(good, folder / name)
        return folder / name

    result = store.read_json(good / "result.json")
    results: dict[str, Any] = {
        "a list": [],
        "another format": {**result, "format": 10**9},
        "rows of text": {**result, "rows": "x"},
        "no numbers": {**result, "rows": [{"name": "a", "role": "student", "accuracy": ["x"]}]},
        "no accuracy": {**result, "rows": [{"name": "a", "role": "student", "accuracy": {"a": 1}}]},
        "data of numbers": {**result, "data": 3},
        "nested": DEEP,
    }
    for name, value in results.items():
        run = copy(name.replace(" ", "_"))
        (run / "result.json").write_text(value if isinstance(value, str) else json.dumps(value))
        for verb in ("compare", "report"):
            yield f"a result that lies, to {verb}", [verb, here(run)], 2
    run = copy("pictures")
    (run / "pictures").mkdir(exist_ok=True)
    large = {"kind": "heatmap", "title": "h", "rows": ["r"] * 1500, "columns": ["c"] * 1500}
    (run / "pictures" / "x.json").write_text(json.dumps({**large, "values": [[0.5] * 1500] * 1500}))
    yield "a picture that is too large to draw", ["report", here(run)], 0  # it stands there as such
    changes: dict[str, Callable[[Path], object]] = {
        "another machine": lambda run: _edited(run / "config.yaml", "seed:", "seed: 1e9 #"),
        "code": lambda run: _edited(run / "config.yaml", "seed:", "plugin: evil.py\nseed:"),
        "a row that never ends": lambda run: (run / "metrics.csv").write_text("," * 10**6),
        "a row of text": lambda run: (run / "metrics.csv").write_bytes(b"\xff" * 100),
        "an index elsewhere": lambda run: _index(run, {"../../x.safetensors": {"sha256": "0" * 64, "bytes": 1}}),
        "an index of much": lambda run: _index(run, {"x.safetensors": {"sha256": "0" * 64, "bytes": 2**53}}),
    }
    for name, change in changes.items():
        run = copy(name.replace(" ", "_"))
        change(run)
        words = [*RUN, "--recipe.batch_size=64", "--quiet", "--resume", f"--out={here(run)}"]
        yield "a run that cannot be gone on with", words, 2
    tree = store.read_json(good / "model" / "lineage.json")
    deep = tree
    for _ in range(150):
        deep = {**tree, "parents": [deep]}
    for i, value in enumerate(({**tree, "parents": [[]]}, {**tree, "name": 7}, {**tree, "digest": 7}, deep)):
        run = copy(f"lineage{i}")
        (run / "model" / "lineage.json").write_text(json.dumps(value))
        store.write_manifest(run / "model")
        yield "a family that cannot be", ["lineage", here(run)], 2


def _edited(file: Path, old: str, new: str) -> None:
    text = file.read_text()
    assert old in text
    file.write_text(text.replace(old, new, 1))


def _index(run: Path, files: dict[str, Any]) -> None:
    path = run / "checkpoints" / "index.json"
    known = store.unsealed(path, dict[str, Any])
    store.write_json(path, store.sealed({**known, "files": {**known["files"], **files}}))


def _kept(folder: Path) -> Iterator[Case]:
    """Memories, pools and adapters, with digests that hold."""
    teacher = references.resolve(TEACHER)
    renamed = dataclasses.replace(teacher, classes=tuple("abcdefghij"))
    states: dict[str, dict[str, Any]] = {
        "a class that is not there": {"tasks": ((10**6,),)},
        "a method that is not there": {"method": "../x"},
        "another network": {"classes": ("a", "b")},
        "a stream of numbers": {"streams": [{"name": 3}]},
        "an empty state": {"state": {}},
        "images of nothing": {"state": {"buffer": {"images": torch.zeros(0), "labels": torch.zeros(3)}}},
    }
    for name, change in states.items():
        run = folder / name.replace(" ", "_")
        saved.save(renamed, run / "model")
        past = {"method": "er", "classes": renamed.classes, "tasks": ((0,),), "streams": [], "state": {}}
        Past(**{**past, **change}).save(run / "memory")  # type: ignore[arg-type]
        yield (
            "a memory that lies",
            ["extend", here(run), "--stream=splits:digits/5", "--method=er", "--quiet", f"--out={here(run)}-out"],
            2,
        )
    graphs = GraphTakes(4).example(6)
    family = node(name="made", digest="", licence="MIT")
    family = {**family, "verb": "distill", "method": "gfkd", "parents": [family]}
    forgeries: dict[str, Callable[[dict[str, torch.Tensor], dict[str, Any]], object]] = {
        "an edge outside": lambda t, names: t["edge_index"].add_(10**9),
        "more graphs": lambda t, names: names.update(graphs=2**31),
        "no feature": lambda t, names: t["x"].fill_(float("nan")),
        "another class": lambda t, names: t["labels"].fill_(99),
    }
    for name, forge in forgeries.items():
        place = folder / f"pool_{name.replace(' ', '_')}"
        save_graph_pool(graphs, torch.zeros(6, dtype=torch.long), place, classes=("a", "b"), name="p", lineage=family)
        tensors, names = store.parse_tensors((place / TENSORS).read_bytes(), place), store.read_json(place / NAMES)
        forge(tensors, names)
        store.save_tensors(place / TENSORS, tensors)
        store.write_json(place / NAMES, names)
        store.write_manifest(place)
        yield (
            "a pool of graphs that lies",
            ["evaluate", "zoo:gcn_2_16", "--weights=fresh", f"--data=pool:{here(place)}"],
            2,
        )
    base = store.tensor_digest(teacher.module.state_dict())
    (head,) = classifiers(teacher)
    adapters: dict[str, dict[str, str]] = {
        "elsewhere": {"classifier": "../x"},
        "sites": {"sites": DEEP},
        "classes": {"classes": json.dumps(["a"] * 10**6), "classifier": head},
        "weights": {"classifier": head},
        "layers": {"classifier": head, "sites": json.dumps(["../x"]), "classes": json.dumps(["a"] * 2)},
        "base": {"base": "0" * 64},
        "digest": {"digest": "0" * 64},
        "method": {"method": "evil"},
    }
    for name, about in adapters.items():
        path = folder / f"{name}.safetensors"
        known = {
            "method": "ssf",
            "format": "1",
            "classifier": "fc",
            "sites": "[]",
            "classes": '["a", "b"]',
            "base": base,
        }
        tensors = {f"{head}.weight": torch.zeros(3 if name == "weights" else 2, 1), "x": torch.zeros(2)}
        seal = scale_shift._seal(tensors, {**known, **about})
        store.save_tensors(path, tensors, {**known, "digest": seal, **about})
        yield "an adapter that lies", lambda path=path: scale_shift.load_adapter(path, teacher), 2


def _answers(folder: Path) -> Iterator[Case]:
    """Answers of an endpoint, and decoded pixels, that another has written into their files."""
    facts = {"classes": ["a", "b"], "top": 1}
    files: dict[str, Callable[[Path], object]] = {
        "no database": lambda path: path.write_bytes(b"x" * 5000),
        "half a database": lambda path: path.write_bytes(b"SQLite format 3\0" + bytes(84)),
        "another table": lambda path: _database(path, "CREATE TABLE answers (x)"),
        "a view for the table": lambda path: _database(path, "CREATE VIEW answers AS SELECT 1 AS key"),
        "facts of much": lambda path: _database(
            path,
            "CREATE TABLE answers (key BLOB PRIMARY KEY, content BLOB, checksum INTEGER)",
            "INSERT INTO answers VALUES (CAST('facts' AS BLOB), zeroblob(100000000), 0)",
        ),
        "an endless view": lambda path: _database(
            path,
            "CREATE VIEW answers AS WITH RECURSIVE c(key) AS (SELECT 1 UNION ALL SELECT key + 1 FROM c) "
            "SELECT key, key AS content, key AS checksum FROM c",
        ),
    }
    for name, write in files.items():
        path = folder / f"{name.replace(' ', '_')}.sqlite"
        write(path)
        yield "answers that lie", lambda path=path: AnswerFile(path, "endpoint", facts), 2
    headers = {
        "shape": {"shape": [2**40], "facts": {}, "crc": 0},
        "nothing": [],
        "negative": {"shape": [-1, 8], "facts": {}, "crc": 0},
        "facts": {"shape": [1], "facts": DEEP, "crc": "x"},
    }
    with environment(UPCYCLE_CACHE=str(folder / "cache")):
        (folder / "cache").mkdir()
        for name, header in headers.items():
            entry = cache.name_of([(0, name.encode())], "")
            (folder / "cache" / entry).write_bytes(json.dumps(header).encode().ljust(4096) + b"x")
            yield "decoded pixels that lie", lambda entry=entry: _nothing(cache.find(entry)), 0


def _database(path: Path, *statements: str) -> None:
    with sqlite3.connect(path) as database:
        for statement in statements:
            database.execute(statement)
    database.close()


def _nothing(found: object) -> None:
    if found is not None:
        raise AssertionError("a forged entry was taken")
