"""Verbs on inputs and tasks that the package does not know; see :mod:`tests.toy_kind`."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from tests.toy_kind import Scores, Table, TableSet, prices
from upcycle.core import store
from upcycle.core.errors import UserError
from upcycle.core.recipe import Recipe
from upcycle.core.references import resolve
from upcycle.core.takes import KINDS
from upcycle.core.task import CLASSIFICATION, TASKS
from upcycle.data.images import as_images
from upcycle.distillation import Plain
from upcycle.verbs.adapt import adapt
from upcycle.verbs.distill import distill
from upcycle.verbs.evaluate import evaluate


@pytest.fixture(autouse=True)
def toy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(KINDS, "table", "tests.toy_kind:Table")
    monkeypatch.setitem(TASKS, "scores", Scores)


def network(k: int, width: int = 8) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, width), nn.ReLU(), nn.Linear(width, k))


def halves(together: bool = False) -> TableSet:
    """The same rows, to be told apart by the sign of their price."""
    data = prices(300)
    for split in data.splits().values():
        split.task = CLASSIFICATION  # type: ignore[misc]
        split.labels = torch.where(split.labels[:, 0].isnan(), -1, (split.labels[:, 0] > 0).long())
        split.together = together  # type: ignore[misc]
    return dataclasses.replace(data, classes=("low", "high"))


def told(together: bool = False, **options: Any) -> tuple[Any, list[str]]:
    said: list[str] = []
    data = halves(together)
    teacher = resolve(network(2, 32), takes=Table(3), classes=data.classes)
    optimizer = torch.optim.Adam(teacher.module.parameters(), 0.02)
    inputs = data.train.batch(torch.arange(len(data.train)), device=torch.device("cpu"))
    for _ in range(60):
        optimizer.zero_grad()
        CLASSIFICATION.loss(teacher.module(inputs.inputs), inputs.labels).backward()
        optimizer.step()
    found = distill(
        student=network(2),
        teacher=dataclasses.replace(teacher, name="big"),
        data=data,
        say=said.append,
        recipe=Recipe(epochs=12, lr=0.1),
        **options,
    )
    return found, said


def test_kd_distils_rows(tmp_path: Path) -> None:
    found, said = told(out=tmp_path / "run", alone=True)
    assert "data     prices: 100 train" in "\n".join(said) and any("validation rows" in line for line in said)
    assert "test rows of prices" in found.sentence and found.rows[-1]["accuracy"][0] > 0.8
    assert found.model.takes == Table(3) and found.model.input_shape == ()
    record = store.read_json(tmp_path / "run" / "result.json")
    assert record["machine"]["precision"] == "32-true" and record["figure"] == "test accuracy"
    assert "TableSet instance" in (tmp_path / "run" / "config.yaml").read_text()
    back = resolve(found.model)
    measured = evaluate(back, halves())
    assert (
        measured.accuracy == pytest.approx(found.rows[-1]["accuracy"][0]) and "test rows of prices" in measured.text()
    )


def test_what_lies_together_is_one_batch_unless_a_size_is_named(tmp_path: Path) -> None:
    _, said = told(together=True, out=tmp_path / "run")
    assert any("All rows are one batch" in line for line in said)
    assert "All rows are one batch" in " ".join(store.read_json(tmp_path / "run" / "result.json")["notes"])
    _, said = told(together=True, out=tmp_path / "dry", dry_run=True)
    assert any("12 updates" in line for line in said)


def test_scores_are_distilled_by_no_method_and_trained_by_labels(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="kd cannot run here: it is for classification"):
        distill(
            student=network(1),
            teacher=resolve(network(1, 32), takes=Table(3), task=Scores()),
            data=prices(),
            out=tmp_path / "run",
            say=lambda text: None,
        )
    said: list[str] = []
    found = distill(
        student=network(1),
        method=Plain,
        data=prices(),
        out=tmp_path / "alone",
        say=said.append,
        recipe=Recipe(epochs=8, batch_size=8, lr=0.02, weight_decay=0.0),
    )
    assert "the mean error is" in found.sentence and "%" not in found.sentence
    assert any("seed 0: test mean error" in line for line in said)


def test_verbs_of_images_refuse_it_in_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="takes rows of 3 numbers"):
        adapt(resolve(network(2), takes=Table(3)), method="lora", data="digits", out=tmp_path, say=lambda text: None)
    with pytest.raises(UserError, match="not rows of 3 numbers"):
        adapt("zoo:digits_teacher", method="lora", data=prices(), out=tmp_path, say=lambda text: None)
    with pytest.raises(UserError, match="prices holds rows, and this works on images alone"):
        as_images(prices())


def test_what_is_said_of_images_is_not_said_of_it(tmp_path: Path) -> None:
    for said, word in (({"size": 8}, "size"), ({"teacher_mean": (0.5,)}, "mean")):
        with pytest.raises(UserError, match=f"rows of 3 numbers, which have no {word}"):
            told(out=tmp_path, **said)
    with pytest.raises(UserError, match="no augmentation of rows"):
        told(out=tmp_path, augment=("crop",))
