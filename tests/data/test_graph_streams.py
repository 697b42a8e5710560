"""Streams of nodes and of sets of graphs: what their tasks hold, and what cannot be one."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.settings_streams import CLASSES, graph_stream, six_classes
from upcycle.core.errors import UserError
from upcycle.data.graphs import GraphSet
from upcycle.data.stream_kinds import check_stream, is_of_graphs, stream
from upcycle.data.streams import Stream


@pytest.mark.parametrize("level", ["node", "graph"])
def test_splits_share_the_graphs_and_no_class(level: Any) -> None:
    made = graph_stream(level)(60)
    assert made.tasks == ((0, 1), (2, 3), (4, 5)) and made.scenario == "task" and made.takes == made.base.takes
    for t, columns in enumerate(made.tasks):
        for split in made.task(t).splits().values():
            assert set(split.labels.tolist()) == set(columns)
        if level == "node":  # the whole graph is there, and only what is asked for changes
            assert made.task(t).train.graph is made.base.train.graph
    assert made.protocol == "splits:six/3, 3 tasks of 2 classes, task-incremental"
    joint = made.joint()
    for name, split in joint.splits().items():
        assert split.ids.sort().values.equal(getattr(made.base, name).ids.sort().values)
    assert joint.digest and not joint.train.ordered


def test_the_words_of_images_serve_nodes_too() -> None:
    data = six_classes("node")
    assert [len(c) for c in stream(data, tasks="4").tasks] == [2, 2, 1, 1]
    assert stream(data, tasks="2+1", scenario="class").tasks[0] == (0, 1)
    other = stream(data, tasks="3", shuffle=3)
    assert sorted(other.classes) == sorted(CLASSES) and other.classes != CLASSES
    few = stream(data, tasks="3", few=4)
    assert few.task(1).train.labels.tolist().count(2) == 4 and "4 nodes a class" in few.name
    ordered = stream(data, tasks="1", scenario="general").task(0).train
    assert ordered.ordered and ordered.labels.equal(ordered.labels.sort().values)
    later = stream(data.only(CLASSES[:4]), tasks="2").after(("a", "b"))
    assert later.classes == ("a", "b", *CLASSES[:4]) and set(later.task(0).test.labels.tolist()) == {2, 3}


# -- a folder of sets ---------------------------------------------------------------------------------------------


def tasks_of(root: Path, tasks: dict[str, list[int]], n: int = 40, tags: tuple[int, ...] = (0, 1, 2)) -> Path:
    """A folder of TU sets: ``n`` rings a task, whose labels are drawn from those that are given."""
    chance = torch.Generator().manual_seed(0)
    for name, labels in tasks.items():
        (root / name).mkdir(parents=True)
        sizes = torch.randint(3, 7, (n,), generator=chance).tolist()
        edges, first = [], 1
        for size in sizes:
            edges += [(first + i, first + (i + 1) % size) for i in range(size)]
            first += size
        both = [*edges, *((b, a) for a, b in edges)]
        kinds = torch.randint(len(tags), (first - 1,), generator=chance).tolist()
        files = {
            "A": [f"{a}, {b}" for a, b in both],
            "graph_indicator": [str(i + 1) for i, size in enumerate(sizes) for _ in range(size)],
            "graph_labels": [str(labels[i % len(labels)]) for i in range(n)],
            "node_labels": [str(tags[k]) for k in kinds],
        }
        for part, lines in files.items():
            (root / name / f"set_{part}.txt").write_text("\n".join(lines) + "\n")
    return root


def test_a_set_a_task_with_classes_of_its_own(tmp_path: Path) -> None:
    tasks_of(tmp_path, {"ar": [0, 1], "er": [0, 1]})
    made = stream(f"tasks:{tmp_path}", scenario="task")
    assert made.classes == ("ar 0", "ar 1", "er 0", "er 1") and made.tasks == ((0, 1), (2, 3))
    assert isinstance(made.base, GraphSet) and is_of_graphs(f"tasks:{tmp_path}")
    sizes = [sum(len(split) for split in made.task(t).splits().values()) for t in range(2)]
    assert sizes == [40, 40]
    alone = stream(f"tasks:{tmp_path}", scenario="domain")
    assert alone.classes == ("0", "1") and alone.tasks == ((0, 1), (0, 1))
    assert stream(f"tasks:{tmp_path}", shuffle=1).record()["order"]["folders"] in (["ar", "er"], ["er", "ar"])
    joint = made.joint()
    assert len(joint.train) == sum(len(made.task(t).train) for t in range(2))
    assert made.digests() == stream(f"tasks:{tmp_path}", scenario="task").digests()


def test_a_tag_is_the_same_column_in_every_task(tmp_path: Path) -> None:
    """The second set has another tag in place of one of the first's."""
    tasks_of(tmp_path, {"a": [0, 1]}, tags=(0, 5))
    tasks_of(tmp_path, {"b": [0, 1]}, tags=(5, 9))
    made = stream(f"tasks:{tmp_path}")
    assert made.takes.features == 3  # type: ignore[attr-defined]
    for t, absent in ((0, 2), (1, 0)):
        split: Any = made.task(t).train
        x = split.batch(torch.arange(len(split)), device=torch.device("cpu")).inputs.x
        assert not x[:, absent].any() and (x.sum(1) == 1).all()


def test_a_graph_stays_in_its_split_when_a_task_is_added(tmp_path: Path) -> None:
    tasks_of(tmp_path, {"a": [0, 1]})
    before = stream(f"tasks:{tmp_path}").task(0).test.ids
    tasks_of(tmp_path, {"b": [0, 1]})
    assert stream(f"tasks:{tmp_path}").task(0).test.ids.equal(before)


# -- what cannot be -----------------------------------------------------------------------------------------------


def test_streams_of_graphs_that_cannot_be(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no folder nowhere with a set of graphs for each task"):
        check_stream("tasks:nowhere")
    (tmp_path / "none").mkdir()
    with pytest.raises(UserError, match="each task is one"):
        stream(f"tasks:{tmp_path / 'none'}")
    tasks_of(tmp_path / "some", {"a": [0, 1], "b": [0, 2]})
    with pytest.raises(UserError, match=r"a in .* lacks some of the labels"):
        stream(f"tasks:{tmp_path / 'some'}", scenario="domain")
    with pytest.raises(UserError, match="leave out /3"):
        stream(f"tasks:{tmp_path / 'some'}/3")
    with pytest.raises(UserError, match="scenario is class, task or domain"):
        stream(f"tasks:{tmp_path / 'some'}", scenario="general")
    with pytest.raises(UserError, match="Graphs have no size"):
        stream(f"tasks:{tmp_path / 'some'}", size=8)
    (tmp_path / "some" / "b" / "set_node_labels.txt").unlink()
    with pytest.raises(UserError, match=r"a has some labels of nodes, and .*b has none; sets that are one stream"):
        stream(f"tasks:{tmp_path / 'some'}")
    (tmp_path / "broken" / "a").mkdir(parents=True)
    with pytest.raises(UserError, match="holds no set of graphs"):
        stream(f"tasks:{tmp_path / 'broken'}")


def test_a_class_needs_two_nodes_to_train_on() -> None:
    data = six_classes("node")
    labels = data.train.labels
    keep = torch.cat([(labels != 3).nonzero()[:, 0], (labels == 3).nonzero()[:1, 0]])
    with pytest.raises(UserError, match="six has 1 training node of the class 'x', and a stream needs 2 or more"):
        stream(data.subset(keep), tasks="3")


def test_tasks_of_other_features_are_refused_before_they_are_learnt() -> None:
    made = graph_stream("node")(60)
    wide = dataclasses.replace(made.base.takes, features=9)  # type: ignore[type-var]
    other = dataclasses.replace(made, make=lambda t: dataclasses.replace(made.base, described=wide))  # type: ignore[call-arg]
    with pytest.raises(UserError, match=r"Task 1 of .* is not for a network of the first task: .*9"):
        other.task(1)
    assert isinstance(other, Stream)
    apart = graph_stream("node")(60)
    mixed = dataclasses.replace(made, make=lambda t: (made if t else apart).make(t))
    with pytest.raises(UserError, match="Nodes of several graphs cannot be joined"):
        mixed.joint()


@pytest.mark.parametrize("kind", ["permuted", "rotated", "drifting"])
def test_what_changes_pixels_is_for_images(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("upcycle.data.stream_kinds.load", lambda *args, **kwargs: six_classes("node"))
    with pytest.raises(UserError, match="six holds nodes, and this works on images alone"):
        stream(f"{kind}:digits{'' if kind == 'drifting' else '/3'}")
    parts = stream("parts:digits/4")
    assert len(parts) == 4 and sum(len(parts.task(t).train) for t in range(4)) == 160
