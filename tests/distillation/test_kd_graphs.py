"""Distillation over graphs: the same file, frozen teachers, and what does not fit."""

from __future__ import annotations

import dataclasses
import inspect
import os
import re
from pathlib import Path

import pytest
import torch

from tests.settings import tiny_data, tiny_model
from tests.settings_graphs import networks, tiny_graph_model, tiny_graphs, tiny_nodes
from upcycle.core import saved
from upcycle.core.errors import UserError
from upcycle.core.evaluate import evaluate, predict_logits
from upcycle.core.frozen import frozen
from upcycle.core.losses import Terms
from upcycle.core.recipe import Recipe
from upcycle.core.references import resolve
from upcycle.core.run import Run
from upcycle.data import load
from upcycle.distillation import KD, kd

RECIPE = Recipe(epochs=30, batch_size=32, lr=0.05)
NODES = dataclasses.replace(RECIPE, batch_size=0, epochs=60)
REAL = Path(os.environ.get("UPCYCLE_DATA", "none")) / "graphs"


def test_distillation_has_no_line_about_graphs() -> None:
    assert not re.search(r"\b(graph|node|edge)", inspect.getsource(kd), re.IGNORECASE)


@pytest.mark.parametrize("level", ["graph", "node"])
def test_a_student_learns_from_labels_and_then_from_its_teacher(level: str) -> None:
    data, recipe = (tiny_graphs(), RECIPE) if level == "graph" else (tiny_nodes(), NODES)
    roles = networks(level)  # type: ignore[arg-type]
    method = KD(**roles, terms=Terms(w_kd=0.0, w_ce=1.0), recipe=recipe)
    teacher = method.product(method.fit(Run(None, quiet=True), data), data)
    right = evaluate(teacher.module, data.test).accuracy
    assert right > 0.5  # of three classes
    student = tiny_graph_model("student", 3, level)  # type: ignore[arg-type]
    distil = KD(teacher=teacher, student=student, terms=Terms(w_kd=1.0, w_ce=0.0), recipe=recipe, cache="on")
    made = distil.product(distil.fit(Run(None, quiet=True), data.hide_labels(0, 0)), data)
    assert evaluate(made.module, data.test).accuracy > 0.45
    answers = [predict_logits(m.module, data.test).argmax(1) for m in (teacher, made)]
    assert float((answers[0] == answers[1]).float().mean()) > 0.7


@pytest.mark.parametrize("level", ["graph", "node"])
def test_a_frozen_teacher_answers_as_it_did_and_passes_gradients_to_features(level: str) -> None:
    model, data = tiny_graph_model("teacher", 7, level, seen=True), tiny_graphs() if level == "graph" else tiny_nodes()  # type: ignore[arg-type]
    graphs = data.train.batch(torch.arange(40), device=torch.device("cpu")).inputs
    fast = frozen(model.module, graphs, input_grad=True)
    assert fast.precision == "float32" and fast.agreement == 1
    with torch.no_grad():
        assert torch.allclose(fast(graphs), model.module(graphs), atol=1e-6)
    leaf = graphs.detach().clone().requires_grad_()
    fast(leaf).sum().backward()
    assert leaf.x.grad is not None and bool(leaf.x.grad.abs().sum() > 0)
    assert all(p.grad is None for p in model.module.parameters())


def test_kinds_that_do_not_fit_are_named() -> None:
    images, graphs = tiny_data(), tiny_graphs()
    student = tiny_graph_model("student", 1)
    with pytest.raises(
        UserError, match=r"kd cannot run here: .*graphs with 5 features a node, and not 1 x 8 x 8 images"
    ):
        KD(teacher=tiny_graph_model("teacher", 0), student=student).require(images)
    with pytest.raises(UserError, match=r"kd cannot run here: .*1 x 8 x 8 images, and not graphs with 5 features"):
        KD(teacher=tiny_model("teacher", 0), student=student).require(graphs)
    with pytest.raises(UserError, match="labels of single nodes"):
        KD(teacher=tiny_graph_model("teacher", 0), student=student).require(tiny_nodes())


@pytest.mark.slow
@pytest.mark.skipif(not REAL.is_dir(), reason="UPCYCLE_DATA is not set, so real graphs are not at hand")
@pytest.mark.parametrize(
    ("name", "teacher", "student", "recipe", "least"),
    [
        ("mutag", "zoo:gcn_5_64", "zoo:gcn_3_32", Recipe(epochs=20, batch_size=32, optimizer="adam", lr=0.01), 0.6),
        ("cora", "zoo:gat", "zoo:gcn_2_16", Recipe(epochs=80, batch_size=0, optimizer="adam", lr=0.01), 0.65),
    ],
)
def test_real_graphs_and_nodes(
    name: str, teacher: str, student: str, recipe: Recipe, least: float, tmp_path: Path
) -> None:
    pytest.importorskip("torch_geometric", reason="torch_geometric is not installed (extra graphs)")
    data = load(name)
    torch.manual_seed(0)
    made = {
        role: resolve(r, pretrained=False, num_classes=len(data.classes), takes=data.takes, classes=data.classes)
        for role, r in (("teacher", teacher), ("student", student))
    }
    method = KD(**{**made, "student": made["teacher"]}, terms=Terms(w_kd=0.0, w_ce=1.0), recipe=recipe)
    trained = method.product(method.fit(Run(None, quiet=True), data), data)
    method = KD(teacher=trained, student=made["student"], recipe=recipe)
    method.begin(run := Run(tmp_path / "run", quiet=True), data)
    product = method.product(method.fit(run, data), data)
    run.close()
    saved.save(product, tmp_path / "m")
    again = saved.load(tmp_path / "m")
    before, after = (evaluate(m.module, data.test) for m in (product, again))
    assert before == after and before.accuracy > least
