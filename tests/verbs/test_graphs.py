"""Commands on graphs: the same as on images, and one sentence for what does not fit."""

from __future__ import annotations

import importlib.util
import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.settings_graphs import networks, tiny_graph_model, tiny_graphs, tiny_nodes
from upcycle import cli
from upcycle.core import saved
from upcycle.core.errors import UserError
from upcycle.core.evaluate import evaluate
from upcycle.core.recipe import Recipe
from upcycle.verbs.distill import distill

needs_data = pytest.mark.skipif(
    not (Path(os.environ.get("UPCYCLE_DATA", "none")) / "graphs").is_dir(),
    reason="UPCYCLE_DATA is not set, so real graphs are not at hand",
)
WITHOUT = "torch_geometric is not installed (extra graphs)"


@pytest.fixture
def rings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with 90 graphs in text form, tags of which tell two classes apart; and the current directory."""
    monkeypatch.chdir(tmp_path)
    chance = torch.Generator().manual_seed(0)
    lines = ["90"]
    for i in range(90):
        n = int(torch.randint(4, 9, (1,), generator=chance))
        lines.append(f"{n} {i % 2}")
        for node in range(n):
            tag = int(torch.rand((), generator=chance) < 0.2 + 0.6 * (i % 2)) + 2 * int(node == 0)
            lines.append(f"{tag} 2 {(node - 1) % n} {(node + 1) % n}")
    (tmp_path / "rings").mkdir()
    (tmp_path / "rings" / "rings.txt").write_text("\n".join(lines))
    return tmp_path


def refused(words: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    assert cli.main(words) == 2, words
    out, err = capsys.readouterr()
    assert not out and err.count("\n") == 1, err
    return err


def test_graphs_go_through_the_commands(rings: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("torch_geometric", reason=WITHOUT)
    from upcycle.core.references import resolve
    from upcycle.data import load

    data = load("graphs:rings")
    torch.manual_seed(0)
    teacher = resolve("zoo:gcn_3_64", pretrained=False, num_classes=2, takes=data.takes, classes=data.classes)
    saved.save(teacher, rings / "teacher")
    words = ["distill", "--teacher", "teacher", "--student", "zoo:gcn_2_16", "--data", "graphs:rings"]
    assert cli.main([*words, "--out", "run", "--recipe.epochs=3", "--recipe.batch_size=16"]) == 0
    out, _ = capsys.readouterr()
    assert "test graphs, 2 classes" in out and "gcn_2_16 by kd" in out
    assert cli.main(["evaluate", "run", "--data", "graphs:rings"]) == 0
    out, _ = capsys.readouterr()
    assert "test graphs of rings" in out and "multiply-adds" in out
    assert cli.main(["lineage", "run"]) == 0
    assert cli.main(["export", "run", "m.pt2", "--format", "torch"]) == 0
    assert json.loads((rings / "m.pt2.json").read_text())["inputs"] == ["x", "edge_index", "batch", "first"]
    capsys.readouterr()
    assert "such networks are not written as ONNX" in refused(["export", "run", "m.onnx"], capsys)
    assert "takes graphs with" in refused(["evaluate", "run", "--data", "digits"], capsys)
    words = ["distill", "--teacher", "zoo:digits_teacher", "--student", "zoo:gcn_2_16", "--out", "other", "--data"]
    assert "digits_teacher does not fit rings" in refused([*words, "graphs:rings"], capsys)
    assert "zoo:gcn_2_16 is a network over graphs" in refused(
        [
            "distill",
            "--teacher",
            "zoo:digits_teacher",
            "--student",
            "zoo:gcn_2_16",
            "--data",
            "digits",
            "--out",
            "other",
        ],
        capsys,
    )
    streams = ["extend", "zoo:gat", "--stream", "splits:digits/5", "--method", "finetune", "--out", "other"]
    assert "zoo:gat is a network over graphs" in refused(streams, capsys)
    assert not (rings / "other").exists()


def test_without_the_library_commands_end_in_the_remedy(
    rings: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *more: None if name == "torch_geometric" else find(name, *more)
    )
    model = tiny_graph_model("tiny", 0)
    model.reference, model.options = "zoo:gcn_2_16", {"num_classes": 3}
    saved.save(model, rings / "m")
    for words in (
        ["distill", "--teacher", "m", "--student", "zoo:gcn_2_16", "--data", "graphs:rings", "--out", "run"],
        ["evaluate", "m", "--data", "graphs:rings"],
        ["evaluate", "pyg:GAT", "--data", "graphs:rings"],
    ):
        assert 'torch_geometric is not installed: pip install "upcycle[graphs]"' in refused(words, capsys)
    assert not (rings / "run").exists()


@pytest.mark.parametrize("level", ["graph", "node"])
def test_a_network_and_graphs_of_ones_own_in_python(level: Any, tmp_path: Path) -> None:
    data = tiny_graphs() if level == "graph" else tiny_nodes()
    said: list[str] = []
    teacher = networks(level)["teacher"]
    student = tiny_graph_model("student", 3, level).module.network  # as a person wrote it
    result = distill(
        teacher=teacher,
        student=student,
        data=data,
        out=tmp_path / "run",
        say=said.append,
        recipe=Recipe(epochs=2, lr=0.05),
    )
    assert result.student.takes == data.takes
    noted = "All nodes are one batch" in "\n".join(said)
    assert noted is (level == "node")
    again = saved.load(tmp_path / "run", into=tiny_graph_model("student", 4, level).module.network)  # type: ignore[arg-type]
    assert evaluate(again.module, data.test).accuracy == result.rows[-1]["accuracy"][0]


def test_bad_graphs_are_refused_before_any_work(rings: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = rings / "rings" / "rings.txt"
    text = file.read_text()
    words = [
        "distill",
        "--teacher",
        "zoo:digits_teacher",
        "--student",
        "zoo:convnet_small",
        "--data",
        "graphs:rings",
        "--out",
        "run",
    ]
    for change, said in (
        (lambda t: t.replace(" 2 ", " 3 ", 1), "neighbours, and"),
        (lambda t: t[: len(t) // 2], "rings.txt"),
        (lambda t: t.replace("90\n", "91\n", 1), "it ends where"),
    ):
        file.write_text(change(text))
        assert said in refused(words, capsys)
    assert "There is no folder" in refused([*words[:-3], "graphs:nothing", "--out", "run"], capsys)
    assert "Did you mean 'mutag'" in refused([*words[:-3], "mutagg", "--out", "run"], capsys)
    assert not (rings / "run").exists()


def test_a_method_of_images_says_so(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"works on images, and these are graphs|images alone"):
        distill(
            method="vam",
            student=tiny_graph_model("student", 0),
            teacher=tiny_graph_model("teacher", 1),
            data=tiny_graphs(),
            quiet=True,
        )


@pytest.mark.parametrize("name", ["graphs", "nodes", pytest.param("mutag", marks=needs_data)])
def test_a_diagnosis_of_graphs_is_by_class_and_degree(name: str, tmp_path: Path) -> None:
    pytest.importorskip("torch_geometric", reason=WITHOUT)
    import upcycle
    from upcycle.core.references import resolve

    nodes = name == "nodes"
    data = upcycle.load_data("mutag") if name == "mutag" else tiny_nodes() if nodes else tiny_graphs()
    reference = "zoo:gcn_2_16"
    made = resolve(reference, pretrained=False, num_classes=len(data.classes), takes=data.takes, classes=data.classes)
    found = upcycle.diagnose(made, data=data, out=tmp_path / "looked", say=lambda line: None)
    expected = evaluate(made.module, data.test)
    assert found.inside is None and found.evaluation == expected
    picture = json.loads((tmp_path / "looked" / "pictures" / "1-degrees.json").read_text())
    assert picture["rows"] == [*data.classes, "all classes"]
    degrees = data.test.degrees()
    of_all = [share for share in picture["values"][-1] if share is not None]
    assert len(of_all) == len(picture["columns"]) and min(of_all) <= expected.accuracy <= max(of_all)
    one = int(degrees.argmin())
    graph = data.test.batch(torch.tensor([one]), device=torch.device("cpu")).inputs
    edges = (graph.edge_index[1] == graph.at).sum() if nodes else graph.edge_index.shape[1] / len(graph.batch)
    assert float(degrees[one]) == pytest.approx(float(edges))
    assert f"right on {expected.accuracy:.1%} of the" in found.sentence
    with pytest.raises(UserError, match="--layer is about images"):
        upcycle.diagnose(made, data=data, out=tmp_path / "again", layer="conv1")
