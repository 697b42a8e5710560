"""The verb on nodes and on sets of graphs: from a name, a folder and an object, again, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import upcycle
from tests.data.test_graph_streams import tasks_of
from tests.settings import tiny_model, tiny_stream
from tests.settings_streams import graph_stream, plain_net, six_classes
from upcycle import cli
from upcycle.core.errors import UserError
from upcycle.core.store import read_json, tensor_digest
from upcycle.data.stream_kinds import stream
from upcycle.verbs.extend import FIGURES

SHORT = {"recipe": {"epochs": 3}, "quiet": True}


def test_nodes_two_classes_at_a_time(tmp_path: Path) -> None:
    pytest.importorskip("torch_geometric")
    made = upcycle.extend("zoo:gat", stream=graph_stream("node")(60), method="twp", out=tmp_path / "run", **SHORT)
    result = read_json(tmp_path / "run" / "result.json")
    assert [line["role"] for line in result["rows"]] == ["lower bound", "upper bound", "product"]
    assert result["figure"] == FIGURES["task"] and set(result["scores"]) == {"finetune", "joint", "twp"}
    assert len(result["scores"]["twp"]["matrices"]["task"]) == 3
    assert "test nodes, the mean over tasks" in made.sentence and "task-incremental" in made.sentence
    assert (tmp_path / "run" / "pictures" / "accuracy_task.json").is_file()
    assert any("one batch" in note for note in result["notes"])
    again = upcycle.load(tmp_path / "run")
    assert again.classes == tuple("uvwxyz") and again.takes == graph_stream("node")(60).takes
    assert "Accuracy after each task" in made.report.read_text()


@pytest.mark.parametrize("scenario", ["class", "task", "domain"])
def test_a_folder_of_sets_and_again(scenario: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("torch_geometric")
    tasks_of(tmp_path / "first", {"ar": [0, 1], "er": [0, 1]})
    tasks_of(tmp_path / "second", {"hse": [0, 1], "p53": [0, 1]})
    own = ["--method=twp", "--recipe.epochs=2", "--recipe.batch_size=16", "--quiet", f"--scenario={scenario}"]
    words = ["extend", "zoo:gcn_3_32", f"--stream=tasks:{tmp_path / 'first'}", f"--out={tmp_path / 'run'}", *own]
    assert cli.main(words) == 0
    before = tensor_digest(upcycle.load(tmp_path / "run").module.state_dict())
    assert cli.main([*words, "--resume"]) == 0
    assert tensor_digest(upcycle.load(tmp_path / "run").module.state_dict()) == before
    second = ["extend", str(tmp_path / "run"), f"--stream=tasks:{tmp_path / 'second'}", f"--out={tmp_path / 'again'}"]
    assert cli.main([*second, *own]) == 0, capsys.readouterr().err
    classes = upcycle.load(tmp_path / "again").classes
    assert len(classes) == (2 if scenario == "domain" else 8)
    assert (tmp_path / "again" / "memory" / "state.json").is_file()


@pytest.mark.parametrize("method", ["finetune", "si", "lwf"])
def test_methods_of_images_that_need_no_images(method: str, tmp_path: Path) -> None:
    made = upcycle.extend(
        plain_net("node")["student"], stream=graph_stream("node")(60), method=method, out=tmp_path / "run", **SHORT
    )
    assert made.model.classes == tuple("uvwxyz")
    source = Path(upcycle.__file__).parent / "continual"
    for file in ("baselines", "si", "lwf"):
        lines = (source / f"{file}.py").read_text().replace('inputs=("images", "graphs")', "")
        assert "graph" not in lines and "node" not in lines


def test_what_does_not_fit_is_refused_and_says_what_would_serve(tmp_path: Path) -> None:
    nodes: Any = graph_stream("node")(60)
    student = plain_net("node")["student"]
    for method in ("derpp", "er", "oewc", "coca", "simplecil", "streaming", "vpr", "blip", "meat"):
        with pytest.raises(UserError, match=f"{method} .*works on images, and these are nodes; take --method twp"):
            upcycle.extend(student, stream=nodes, method=method, out=tmp_path / "run", quiet=True)
    with pytest.raises(UserError, match=r"twp .*works on graphs, and these are images"):
        upcycle.extend(tiny_model("s", 1), stream=tiny_stream()(160), method="twp", out=tmp_path / "run", quiet=True)
    with pytest.raises(UserError, match=r"does not fit .*it takes 1 x 8 x 8 images, and not nodes"):
        upcycle.extend(tiny_model("s", 1), stream=nodes, method="finetune", out=tmp_path / "run", quiet=True)
    with pytest.raises(UserError, match=r"does not fit .*it takes nodes of a graph with 6 features a node, and not"):
        upcycle.extend(student, stream="splits:digits/5", method="finetune", out=tmp_path / "run", quiet=True)
    with pytest.raises(UserError, match="There is no augmentation of nodes"):
        upcycle.extend(student, stream=nodes, method="finetune", augment=("crop",), out=tmp_path / "run", quiet=True)
    with pytest.raises(UserError, match="no layer of message passing"):
        upcycle.extend(student, stream=nodes, method="twp", out=tmp_path / "run", quiet=True)
    assert not (tmp_path / "run").exists()


def test_a_gat_cannot_grow_and_says_so(tmp_path: Path) -> None:
    pytest.importorskip("torch_geometric")
    data = six_classes("node", 60)
    first, later = (stream(data.only(tuple(c)), tasks="1", scenario="task") for c in ("uvw", "xyz"))
    upcycle.extend("zoo:gat", stream=first, method="twp", control=False, out=tmp_path / "run", **SHORT)
    with pytest.raises(UserError, match="gat does not end in a linear layer"):
        upcycle.extend(tmp_path / "run", stream=later, method="twp", control=False, out=tmp_path / "again", **SHORT)


def test_advice_for_graphs_begins_with_what_is_made_for_them(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["advise", "--inputs=graphs", "--goal=extend", "--data=labelled", "--task_id=known", "--all"]
    assert cli.main(words) == 0
    said = " ".join(capsys.readouterr().out.split())
    places = [said.index(f"--method {name}") for name in ("twp", "si", "lwf", "joint", "finetune")]
    assert places == sorted(places) and "no graph is kept" in said and "tasks:PATH" in said
    assert "measured on images" in said.partition("--method si")[2]
