"""A digest is no schema: files that a stranger wrote, with digests that hold, are read or refused in one sentence."""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from upcycle import cli
from upcycle.continual.protocol.past import Past
from upcycle.core import saved, store
from upcycle.core.errors import UserError
from upcycle.core.journal import Journal
from upcycle.reports import write_report
from upcycle.verbs.lineage import lineage

DEEP: Any = "deep"  # stands for nesting that no writer of JSON would write
OTHERS = (None, -1, 2**70, "../x", [None], {"a": None}, DEEP)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run with a stored stage, and a memory."""
    out = tmp_path_factory.mktemp("made") / "run"
    words = ["distill", "--teacher=zoo:digits_teacher", "--student=zoo:convnet_small", "--data=digits", "--cache=on"]
    assert cli.main([*words, "--recipe.epochs=1", "--recipe.batch_size=64", "--quiet", f"--out={out}"]) == 0
    past = Past(
        method="er", classes=("a", "b"), tasks=((0,), (1,)), streams=[{"name": "s"}], state={"x": torch.ones(2)}
    )
    past.save(out / "memory")
    return out


@pytest.fixture
def run(made: Path, tmp_path: Path) -> Path:
    shutil.copytree(made, tmp_path / "run")
    return tmp_path / "run"


def places(value: Any, depth: int = 2) -> Iterator[tuple[Any, ...]]:
    """The way to each value inside JSON data, so deep."""
    inside = value.items() if isinstance(value, dict) else enumerate(value[:1]) if isinstance(value, list) else ()
    for key, item in inside if depth else ():
        yield (key,)
        yield from ((key, *more) for more in places(item, depth - 1))


def forged(value: Any) -> Iterator[Any]:
    """The data with one value in them lacking, or another."""
    yield from OTHERS
    for *way, last in places(value):
        changed = copy.deepcopy(value)
        at = changed
        for key in way:
            at = at[key]
        original = at[last]
        for other in OTHERS:
            if other != original:
                at[last] = other
                yield changed
        if isinstance(at, dict):
            del at[last]
            yield changed


def content(value: Any, seal: bool) -> bytes:
    """The bytes of a file with a digest of its own, where it has one."""
    if seal and isinstance(value, dict):
        value = store.sealed(value)
    text = json.dumps(value, indent=1, ensure_ascii=False).replace(json.dumps(DEEP), "[" * 3000 + "]" * 3000)
    return (text + "\n").encode()


def resume(run: Path) -> None:
    """Go on with a run, reading all that it kept."""
    journal = Journal(run, True)
    machine = journal.open(True, "32-true", 1, None)
    torch.set_num_threads(1)  # what the file said
    try:
        assert machine["precision"] in ("32-true", "bf16-mixed", "64-true")
        journal.saved("main")
        for path in list(journal.stages):
            journal.recall(path)
    finally:
        journal.close()


def load(run: Path) -> None:
    saved.load(run)


def resealed(run: Path) -> None:
    """A model whose manifest is that of its files."""
    store.write_manifest(run / "model")
    load(run)


FILES: dict[str, tuple[str, bool, Callable[[Path], object]]] = {
    "manifest": ("model/manifest.json", True, load),
    "architecture": ("model/architecture.json", False, resealed),
    "lineage": ("model/lineage.json", False, resealed),
    "index": ("checkpoints/index.json", True, resume),
    "memory": ("memory/state.json", True, lambda run: Past.load(run / "memory")),
    "result": ("result.json", False, write_report),
}


@pytest.mark.parametrize("kind", FILES)
def test_whatever_a_file_says_is_read_or_named(kind: str, run: Path) -> None:
    name, seal, read = FILES[kind]
    file = run / name
    original = json.loads(file.read_text())
    if seal:
        del original["digest"]
    said: list[str] = []
    states = {path: path.read_bytes() for path in (run / "checkpoints").glob("*.safetensors")}
    for value in forged(original):
        for path, kept in states.items():
            if not path.exists():  # as one of no use, by what the index before said
                path.write_bytes(kept)
        file.write_bytes(content(value, seal))
        try:
            read(run)
        except UserError as error:
            said.append(str(error))
    assert len(said) > 20 and not [text for text in said if "\n" in text or "Error(" in text]


def test_whatever_a_configuration_says_is_read_or_named(run: Path) -> None:
    file, index = run / "config.yaml", run / "checkpoints" / "index.json"
    recorded = yaml.safe_load(file.read_text())
    known, said = store.unsealed(index, dict[str, Any]), list[str]()
    for value in forged({"machine": recorded["machine"], "seed": 0}):
        text = yaml.safe_dump(value).replace(DEEP, "[" * 3000 + "]" * 3000).encode()
        file.write_bytes(text)
        store.write_json(index, store.sealed({**known, "config": store.digest_of(text)}))
        try:
            resume(run)
        except UserError as error:
            said.append(str(error))
    assert len(said) > 20 and all("config.yaml" in text or "processes" in text for text in said)


def test_a_lineage_alone_is_checked_too(run: Path) -> None:
    tree = json.loads((run / "model" / "lineage.json").read_text())
    for change in ({"parents": [{}]}, {"licence": "free"}, {"metrics": {"accuracy": "high"}}, {"name": 7}):
        (run / "model" / "lineage.json").write_text(json.dumps({**tree, **change}))
        store.write_manifest(run / "model")
        with pytest.raises(UserError, match=r"lineage\.json is damaged: \$"):
            lineage(run / "model")  # type: ignore[arg-type]
