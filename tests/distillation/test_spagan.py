"""SPAGAN: what it takes from its teacher, what its product keeps, and what it refuses."""

from __future__ import annotations

import dataclasses
import json
import math
import os
from pathlib import Path
from typing import Any

import pytest
import torch

import upcycle
from tests.settings_graphs import CLASSES, path_networks, tiny_graph_model, tiny_graphs, tiny_nodes
from upcycle import cli
from upcycle.claims.spagan import CLAIM
from upcycle.core import saved
from upcycle.core.errors import UserError
from upcycle.core.evaluate import evaluate
from upcycle.core.graphs import Graphs
from upcycle.core.models import Model
from upcycle.core.recipe import Recipe
from upcycle.core.references import resolve
from upcycle.core.run import Run
from upcycle.core.store import tensor_digest
from upcycle.data.graphs import GraphSet
from upcycle.distillation import SPAGAN, Plain, spagan
from upcycle.distillation.paths.attention import first_attention
from upcycle.distillation.paths.pictures import picture
from upcycle.surgery.one_graph import OnOneGraph

pytest.importorskip("torch_geometric", reason="torch_geometric is not installed (extra graphs)")
REAL = Path(os.environ.get("UPCYCLE_DATA", "none")) / "graphs"
CPU = torch.device("cpu")
WHOLE = Recipe(epochs=4, batch_size=0, optimizer="adam", lr=0.01, schedule="constant")


def graph(data: GraphSet) -> Graphs:
    return data.test.batch(torch.arange(len(data.test)), device=CPU).inputs


def other(data: GraphSet) -> GraphSet:
    """The same nodes with one edge less, both ways."""
    whole = graph(data)
    fewer = whole.edge_index[:, ((whole.edge_index != 5) | (whole.edge_index.flip(0) != 6)).all(0)]
    changed = dataclasses.replace(whole, edge_index=fewer, at=None)
    splits = {
        name: dataclasses.replace(getattr(data, name), graph=changed, placed={})
        for name in ("train", "validation", "test")
    }
    return dataclasses.replace(data, **splits)


def method(**options: Any) -> SPAGAN:
    return SPAGAN(**{**path_networks(), "recipe": WHOLE, "patience": 0, "r": 1.0, **options})


def fitted(data: GraphSet, directory: Path | None = None, **options: Any) -> tuple[Any, Run, SPAGAN]:
    made, run = method(**options), Run(directory, seed=3, quiet=True)
    made.begin(run, data)
    return made.fit(run, data), run, made


# -- attention of a teacher -------------------------------------------------------------------------------------


def own_attention(model: Model, data: GraphSet) -> Any:
    layer = model.module.network.conv1  # type: ignore[union-attr]
    whole = graph(data)
    _, (edges, alpha) = layer.eval()(whole.x, whole.edge_index, return_attention_weights=True)
    return edges, alpha.mean(1)


def test_the_attention_is_that_of_the_first_layer_averaged_over_heads() -> None:
    data, model = tiny_nodes(), path_networks()["teacher"]
    before = tensor_digest(model.module.state_dict())
    edges, attention = first_attention(model, graph(data))
    expected = own_attention(model, data)
    assert torch.equal(edges, expected[0]) and (attention - expected[1]).abs().max() < 1e-6
    assert attention.dtype == torch.float64 and tensor_digest(model.module.state_dict()) == before
    sums = torch.zeros(len(data.train.graph.batch)).double().index_add(0, edges[1], attention)  # type: ignore[union-attr]
    assert torch.allclose(sums, torch.ones_like(sums))
    assert not model.module.network.conv1._forward_hooks  # type: ignore[union-attr]


def test_models_of_the_library_and_dropout_in_training_mode_change_nothing() -> None:
    data = tiny_nodes()
    torch.manual_seed(0)
    for reference in ("pyg:GAT", "zoo:gat", "zoo:gat_1"):
        model = resolve(reference, pretrained=False, num_classes=3, takes=data.takes)
        model.module.train()
        a, b = (first_attention(model, graph(data))[1] for _ in range(2))
        assert torch.equal(a, b) and model.module.training


# -- training ---------------------------------------------------------------------------------------------------


def test_only_attention_of_the_teacher_counts_and_it_stays_as_it_is() -> None:
    data, networks = tiny_nodes(), path_networks()
    before = tensor_digest(networks["teacher"].module.state_dict())
    first = fitted(data, **networks)[0]
    assert tensor_digest(networks["teacher"].module.state_dict()) == before
    networks = path_networks()
    with torch.no_grad():
        networks["teacher"].module.network.conv2.lin.weight.add_(1)
    second = fitted(data, **networks)[0]
    assert tensor_digest(first.state_dict()) == tensor_digest(second.state_dict())
    assert not any(p.requires_grad for p in first.paths) and first.paths[1].shape[1] > 50


def test_paths_do_not_hang_on_the_number_format() -> None:
    data, found = tiny_nodes(), []
    for precision in ("32-true", "64-true"):
        run = Run(None, seed=3, quiet=True, precision=precision)  # type: ignore[arg-type]
        made = method()
        made.begin(run, data)
        found.append(made.fit(run, data).paths)
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


def test_patience_brings_back_the_lowest_loss_after_its_start(tmp_path: Path) -> None:
    data, recipe = tiny_nodes(), dataclasses.replace(WHOLE, epochs=40, lr=0.2)
    net, run, _ = fitted(data, tmp_path, recipe=recipe, patience=3, patience_after=5)
    run.close()
    losses: dict[int, float] = {}
    for line in (tmp_path / "metrics.csv").read_text().splitlines():
        if "validation_loss" in line:
            words = line.split(",")
            losses[int(words[1])] = float(words[-1])
    best = min((loss, epoch) for epoch, loss in losses.items() if epoch >= 5)[1]
    assert max(losses) == best + 3 < 39 and min(losses) == 0
    found = evaluate(net, data.validation)
    assert found.loss == pytest.approx(losses[best], rel=1e-4)


# -- the product ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of the command with everything in it."""
    out, data = tmp_path_factory.mktemp("paths") / "run", tiny_nodes()
    teacher = resolve("zoo:gat", pretrained=False, num_classes=3, takes=data.takes)
    upcycle.distill(
        method="spagan",
        teacher=dataclasses.replace(teacher, classes=CLASSES),
        student="zoo:spagan",
        data=data,
        recipe=WHOLE,
        patience=0,
        explain_nodes=(0, 17),
        out=out,
        say=lambda text: None,
    )
    return out


def test_the_command_leaves_a_network_that_comes_back_and_is_for_its_graph_alone(made: Path, tmp_path: Path) -> None:
    data, result = tiny_nodes(), json.loads((made / "result.json").read_text())
    again = saved.load(made)
    assert isinstance(again.module, OnOneGraph) and again.reference == "assembly:one_graph"
    found = upcycle.evaluate(str(made), data)
    assert [found.accuracy] == result["rows"][-1]["accuracy"]
    assert [row["role"] for row in result["rows"]] == ["teacher", "control", "student"]
    with pytest.raises(UserError, match=r"SPAGAN attends along paths of the one graph .* 260 nodes and 516 edges, and"):
        upcycle.evaluate(str(made), other(data))
    changed = graph(data)
    changed.x = changed.x + 1  # other features of the same graph are fine
    assert bool(again.module(changed).isfinite().all())
    upcycle.distill(teacher=str(made), student="zoo:gcn_2_16", data=data, recipe=WHOLE, out=tmp_path / "kd")
    tree = json.loads((tmp_path / "kd" / "model" / "lineage.json").read_text())
    assert tree["parents"][0]["method"] == "spagan" and tree["parents"][0]["parents"][0]["role"] == "teacher"


def test_it_is_exported_for_its_graph(made: Path, tmp_path: Path) -> None:
    upcycle.export(str(made), tmp_path / "m.pt2", format="torch")
    whole = graph(tiny_nodes())
    everyone = dataclasses.replace(whole, at=torch.arange(260))
    answer = torch.export.load(tmp_path / "m.pt2").module()(whole.x, whole.edge_index)
    assert (answer - saved.load(made).module(everyone)).abs().max() < 1e-5


def test_the_report_draws_paths_and_edges_and_says_that_a_gat_is_not_beaten(made: Path) -> None:
    report = (made / "report.html").read_text()
    assert "a GAT of the same size is not beaten" in report and "cannot be drawn" not in report
    for name in ("paths", "edges"):
        drawn = json.loads((made / "pictures" / f"{name}.json").read_text())
        assert [item["label"].split(":")[0] for item in drawn["items"]] == ["node 0", "node 17"]
        for item in drawn["items"]:
            weights = [path["weight"] for path in item["paths"]]
            assert weights == sorted(weights, reverse=True)
            assert math.isclose(sum(weights), 1, abs_tol=1e-3) or "more" in item
    (alone, _) = drawn["items"]
    assert [path["nodes"] for path in alone["paths"]] == [["0", "itself"]]  # the first node has no edge


def test_the_sentence_stands_in_claim_card_and_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    assert "a GAT of the same size is not beaten" in CLAIM.sentence and "not beaten" in spagan.NOT_BEATEN
    assert cli.main(["advise", "--inputs", "graphs", "--data", "labelled", "--goal", "explain"]) == 0
    said = capsys.readouterr().out
    assert "spagan" in said and "A GAT of the same size is not beaten" in " ".join(said.split())
    root = Path(__file__).parents[2]
    for page in ("docs/graphs.md", "src/upcycle/distillation/README.md"):
        assert "GAT of the same size is not beaten" in " ".join((root / page).read_text().split())


def test_a_bare_student_comes_back_into_its_module(tmp_path: Path) -> None:
    data = tiny_nodes()
    net, _, done = fitted(data)
    model = done.product(net, data)
    saved.save(model, tmp_path / "m")
    module = OnOneGraph(path_networks()["student"].module, 260, data.train.graph.edge_index, net.paths)  # type: ignore[union-attr]
    assert torch.equal(saved.load(tmp_path / "m", into=module).module(graph(data)), net(graph(data)))


def test_controls_are_the_same_without_long_paths() -> None:
    (control,) = method(explain_nodes=(3,)).controls().values()
    assert control.method.r == 0 and not control.method.explain_nodes and not method(r=0.0).controls()  # type: ignore[attr-defined]


def test_many_paths_are_drawn_in_part_and_those_that_stay_are_one() -> None:
    walks = [((0, v), 0.05) for v in range(1, 13)] + [((0, 0), 0.1), ((0, 0, 0), 0.3)]
    drawn = picture("t", "c", {0: walks}, torch.zeros(13, dtype=torch.long), ("a", "b"))
    (item,) = drawn["items"]
    assert item["paths"][0] == {"nodes": ["0", "itself"], "groups": [0, 0], "weight": 0.4}
    assert len(item["paths"]) == 10 and item["more"] == "3 more, 15 % together"


# -- what it refuses --------------------------------------------------------------------------------------------


def measured_elsewhere() -> GraphSet:
    return dataclasses.replace(tiny_nodes(), test=other(tiny_nodes()).test)


def without_validation_labels() -> GraphSet:
    data = tiny_nodes()
    blank = dataclasses.replace(data.validation, labels=torch.full_like(data.validation.labels, -1))
    return dataclasses.replace(data, validation=blank)


@pytest.mark.parametrize(
    ("data", "options", "part"),
    [
        (tiny_graphs, {}, "nodes"),
        (
            tiny_nodes,
            {"teacher": tiny_graph_model("t", 0, "node")},
            r"t has no attention over edges .* first \(Linear\)",
        ),
        (tiny_nodes, {"student": tiny_graph_model("s", 0, "node")}, "s does not attend along paths; take zoo:spagan"),
        (tiny_nodes, {"explain_nodes": (3, 260)}, "names node 260, and the graph has the nodes 0 to 259"),
        (measured_elsewhere, {}, "the test nodes are those of another graph"),
        (without_validation_labels, {"patience": 3}, "none has a label; give --patience 0"),
    ],
)
def test_what_cannot_work_is_refused_before_any_work(data: Any, options: dict[str, Any], part: str) -> None:
    with pytest.raises(UserError, match=part):
        method(**options).require(data())


@pytest.mark.parametrize(
    ("options", "part"),
    [
        ({"r": -0.5}, "r must not be negative, and it is -0.5"),
        ({"r": math.nan}, "r must not be negative"),
        ({"patience": -1}, "patience must not be negative"),
        ({"explain_nodes": (-1,)}, "explain_nodes must not be negative"),
        ({"explain_nodes": tuple(range(13))}, "explain_nodes can draw 12 nodes, and these are 13"),
    ],
)
def test_options_out_of_range_are_refused(options: dict[str, Any], part: str) -> None:
    with pytest.raises(UserError, match=part):
        method(**options)


def test_a_teacher_without_attention_is_told_its_layers() -> None:
    data = tiny_nodes()
    model = resolve("zoo:gcn_3_32", pretrained=False, num_classes=3, takes=data.takes)
    part = r"gcn_3_32 has no attention over edges .* convs.0 \(GCNConv\), convs.1 \(GCNConv\). Take a trained zoo:gat"
    with pytest.raises(UserError, match=part):
        method(teacher=model).require(data)


def test_a_large_graph_says_its_memory_and_the_way_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spagan, "LARGEST", 200)
    with pytest.raises(UserError, match=r"260 nodes, .* 67,600 distances \(0 GiB in all\); give --depth_limit"):
        method().require(tiny_nodes())
    method(depth_limit=True).require(tiny_nodes())


@pytest.mark.slow
@pytest.mark.skipif(not REAL.is_dir(), reason="UPCYCLE_DATA is not set, so real graphs are not at hand")
def test_papers_are_told_apart_along_paths() -> None:
    data = upcycle.load_data("cora")
    recipe = dataclasses.replace(WHOLE, epochs=60)
    teacher = resolve("zoo:gat_1", pretrained=False, num_classes=7, takes=data.takes)
    teacher.module = Plain(student=teacher, recipe=recipe).fit(Run(None, seed=5, quiet=True), data)
    student = resolve("zoo:spagan_1", pretrained=False, num_classes=7, takes=data.takes)
    made = SPAGAN(teacher=teacher, student=student, r=1.0, patience=0, recipe=recipe)
    made.require(data)
    net = made.fit(Run(None, seed=5, quiet=True), data)
    assert evaluate(net, data.test).accuracy > 0.7
