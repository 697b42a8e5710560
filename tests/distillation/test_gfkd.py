"""GFKD: the invariants of its card, and what a run leaves."""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from tests.settings_graphs import networks, tiny_graphs, tiny_nodes
from tests.settings_groups import layer_network, layer_networks
from upcycle.claims.graphs import fresh_for, trained_on
from upcycle.core import lineage, losses
from upcycle.core.errors import UserError
from upcycle.core.graphs import GraphTakes
from upcycle.core.recipe import Recipe
from upcycle.core.run import Run
from upcycle.core.store import tensor_digest
from upcycle.data.graph_pool import read_graph_pool
from upcycle.data.graph_sources import load_graphs
from upcycle.data.graphs import GraphSet
from upcycle.distillation import GFKD, gfkd
from upcycle.distillation.graph_free.answers import Answers
from upcycle.distillation.graph_free.blocks import Places
from upcycle.reports.pictures import picture

pytest.importorskip("torch_geometric")
REAL = Path(os.environ.get("UPCYCLE_DATA", "none")) / "graphs"
RECIPE = Recipe(epochs=2, batch_size=16, optimizer="adam", lr=0.01, weight_decay=0.0, schedule="linear")
SMALL: dict[str, Any] = {"graphs": 24, "batch": 24, "sizes": (3, 6), "iterations": 4, "recipe": RECIPE}


def none() -> GraphSet:
    data = tiny_graphs()
    return GraphSet.none(data.takes, data.classes)


def made(directory: Path | None = None, given: dict[str, Any] | None = None, **options: Any) -> tuple[Any, Run]:
    method, run = GFKD(**(given or layer_networks()), **{**SMALL, **options}), Run(directory, seed=3, quiet=True)
    method.begin(run, none())
    return method.fit(run, none()), run


def test_the_teacher_stands_still_and_gets_no_gradient() -> None:
    given = layer_networks()
    teacher = given["teacher"].module
    before = tensor_digest(teacher.state_dict())
    made(given=given)
    assert tensor_digest(teacher.state_dict()) == before
    assert all(p.grad is None for p in teacher.parameters())


@pytest.mark.parametrize("make", [layer_networks, lambda: networks("graph")])
def test_statistics_of_a_batch_that_are_the_running_ones_have_no_distance(make: Any) -> None:
    model = make()["teacher"]
    answers = Answers(Run(None, quiet=True), model)
    places = Places(torch.tensor([3, 5, 4]))
    X = torch.randn(12, model.takes.features, generator=torch.Generator().manual_seed(0))
    A = places.pairs * (torch.rand(3, 5, 5, generator=torch.Generator().manual_seed(1)) < 0.5)
    assert answers(A, X, places)[1] > 0.1
    for name, layer in answers.layers.items():  # one after the other, since each changes what the next one sees
        answers(A, X, places)
        x = answers._taps[name]
        layer.running_mean, layer.running_var = x.mean(0).detach(), x.var(0, correction=0).detach()
    assert float(answers(A, X, places)[1].detach()) == pytest.approx(0, abs=1e-5)


def test_blocks_and_edges_of_one_teacher_say_the_same() -> None:
    model = layer_networks()["teacher"]
    dense, edges = Answers(Run(None, quiet=True), model), Answers(Run(None, quiet=True), model)
    edges.over_edges()
    assert dense.dense and not edges.dense and not Answers(Run(None, quiet=True), networks("graph")["teacher"]).dense
    places = Places(torch.tensor([3, 5, 1]))
    X = torch.randn(9, model.takes.features, generator=torch.Generator().manual_seed(0))
    for ours, theirs in zip(dense(places.pairs, X, places), edges(places.pairs, X, places), strict=True):
        assert torch.allclose(ours, theirs, atol=1e-5)


@pytest.mark.parametrize(
    ("options", "same"),
    [({"lr_structure": 0.0}, "edge_index"), ({"lr_structure": 0.0, "lr_features": 0.0}, "both"), ({}, "none")],
)
def test_what_has_no_rate_stays_as_it_was_drawn(tmp_path: Path, options: dict[str, Any], same: str) -> None:
    for name, rates in (("drawn", {"lr_structure": 0.0, "lr_features": 0.0, "iterations": 1}), ("made", options)):
        made(tmp_path / name, **rates, features="real")
    drawn, found = (read_graph_pool(tmp_path / name)[0] for name in ("drawn", "made"))
    edges = drawn.edge_index.shape == found.edge_index.shape and torch.equal(drawn.edge_index, found.edge_index)
    assert edges == (same in ("edge_index", "both"))
    assert torch.equal(drawn.x, found.x) == (same == "both")


def test_graphs_are_left_with_their_family_tree_and_drawn(tmp_path: Path) -> None:
    made(tmp_path)
    graphs, labels, classes, node = read_graph_pool(tmp_path)
    sizes = torch.bincount(graphs.batch)
    assert graphs.n == 24 and sizes.min() >= 3 and sizes.max() <= 6
    assert ((graphs.x == 0) | (graphs.x == 1)).all() and (graphs.x.sum(1) == 1).all()
    assert (graphs.edge_index[0] != graphs.edge_index[1]).all()
    assert torch.bincount(labels).tolist() == [8, 8, 8] and classes == tiny_graphs().classes
    assert node["method"] == "gfkd" and [parent["name"] for parent in node["parents"]] == ["teacher"]
    assert "teacher" in lineage.tree(node)
    file = tmp_path / "pictures" / "graphs.json"
    assert len(json.loads(file.read_text())["items"]) == 9
    assert "cannot be drawn" not in picture(file).caption


@pytest.mark.parametrize("file", ["graphs.safetensors", "pool.json", "lineage.json"])
def test_a_damaged_pool_is_named(tmp_path: Path, file: str) -> None:
    made(tmp_path)
    damaged = tmp_path / "pool" / file
    content = bytearray(damaged.read_bytes())
    content[len(content) // 2] ^= 1
    damaged.write_bytes(content)
    with pytest.raises(UserError, match=file):
        read_graph_pool(tmp_path)


def test_several_batches_are_graphs_of_one_pool(tmp_path: Path) -> None:
    made(tmp_path, batch=10)
    graphs, labels, _, _ = read_graph_pool(tmp_path)
    assert graphs.n == len(labels) == 24 and graphs.batch.max() == 23
    assert (graphs.batch[graphs.edge_index[0]] == graphs.batch[graphs.edge_index[1]]).all()


def test_the_student_learns_by_the_loss_of_distillation() -> None:
    assert gfkd.kd_loss is losses.kd_loss


def test_without_batchnorm_the_answers_alone_guide() -> None:
    given = layer_networks()
    norms = given["teacher"].module.network.norms
    for i in range(len(norms)):
        norms[i] = nn.Identity()
    net, run = made(given=given)
    assert any("no BatchNorm" in note for note in run.notes) and all(p.isfinite().all() for p in net.parameters())


def test_sizes_are_those_that_the_teacher_knows_unless_they_are_given(tmp_path: Path) -> None:
    made(tmp_path, sizes=None)
    sizes = torch.bincount(read_graph_pool(tmp_path)[0].batch)
    assert (sizes.min(), sizes.max()) >= (3, 7) and sizes.max() <= 9  # TAKES of the teacher: 3 to 9


@pytest.mark.parametrize(
    ("options", "part"),
    [
        ({"sizes": (12, 4)}, "sizes must be the fewest"),
        ({"sizes": (1, 4)}, "sizes must be the fewest"),
        ({"graphs": 1}, "graphs must be at least 2"),
        ({"iterations": 0}, "iterations must be at least 1"),
        ({"lr_structure": -1.0}, "lr_structure must not be negative"),
        ({"temperature": 0.0}, "temperature must be positive"),
    ],
)
def test_values_have_ranges(options: dict[str, Any], part: str) -> None:
    with pytest.raises(UserError, match=part):
        GFKD(**layer_networks(), **{**SMALL, **options})


def test_teachers_that_answer_otherwise_are_refused() -> None:
    nodes = tiny_nodes()
    with pytest.raises(UserError, match="gfkd makes whole graphs"):
        GFKD(**networks("node"), **SMALL).require(GraphSet.none(nodes.takes, nodes.classes))
    given = layer_networks()
    takes = dataclasses.replace(given["teacher"].takes, edges=2)
    given["teacher"] = dataclasses.replace(given["teacher"], inputs=takes)
    assert any("features of edges" in problem for problem in GFKD(**given, **SMALL).check(none()))
    given = layer_networks()
    given["student"] = dataclasses.replace(layer_network("student", 1), inputs=GraphTakes(9))
    assert GFKD(**given, **SMALL).check(none())


@pytest.mark.slow
@pytest.mark.skipif(not REAL.is_dir(), reason="UPCYCLE_DATA is not set, so real graphs are not at hand")
def test_a_teacher_of_molecules_recognises_what_was_made_out_of_it(tmp_path: Path) -> None:
    data = load_graphs("mutag", split=11)
    teacher = trained_on("zoo:gcn_5_64", data, 11, dataclasses.replace(RECIPE, epochs=60))
    alike = {}
    for name, options in {"made": {"iterations": 150}, "drawn": {"iterations": 1, "lr_structure": 0.0}}.items():
        method = GFKD(
            teacher=teacher, student=fresh_for("zoo:gcn_3_32", data, 11), sizes=(10, 29), recipe=RECIPE, **options
        )
        run = Run(tmp_path / name, seed=11, quiet=True)
        method.fit(run, GraphSet.none(data.takes, data.classes))
        graphs, labels, _, _ = read_graph_pool(tmp_path / name)
        alike[name] = float((teacher.module.eval()(graphs).argmax(1) == labels).double().mean())
    assert alike["made"] > 0.9 and alike["drawn"] < 0.7
