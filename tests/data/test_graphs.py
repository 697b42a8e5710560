"""Sets of graphs: how they are drawn, batched and refused, and the real ones where they are at hand."""

from __future__ import annotations

import gzip
import os
import pickle
import subprocess
import sys
from collections import defaultdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.corpus import malicious_files
from upcycle.core.errors import UserError
from upcycle.core.graph_inputs import Graphs
from upcycle.core.task import MULTILABEL
from upcycle.data import check_reference, load
from upcycle.data.collection import describe
from upcycle.data.fair_tables import similar
from upcycle.data.graph_files import read_graphs
from upcycle.data.graph_sources import NAMED, load_graphs
from upcycle.data.graphs import GraphSet, GraphSplit, NodeSplit
from upcycle.data.planetoid import read_citations, undirected, unpickled
from upcycle.data.stream_kinds import stream

CPU = torch.device("cpu")
REAL = Path(os.environ.get("UPCYCLE_DATA", "none")) / "graphs"
needs_data = pytest.mark.skipif(not REAL.is_dir(), reason="UPCYCLE_DATA is not set, so real graphs are not at hand")


def one(seed: int, nodes: int | None = None, **other: Any) -> SimpleNamespace:
    """A graph as PyTorch Geometric has it: a ring of 3 to 8 nodes with 4 features and a label."""
    chance = torch.Generator().manual_seed(seed)
    n = nodes or int(torch.randint(3, 9, (1,), generator=chance))
    ring = torch.stack([torch.arange(n), (torch.arange(n) + 1) % n])
    fields = {
        "x": torch.rand(n, 4, generator=chance),
        "edge_index": torch.cat([ring, ring.flip(0)], 1),
        "y": torch.tensor([seed % 2]),
    }
    return SimpleNamespace(**{"num_nodes": n, **fields, **other})


def several(n: int = 40) -> list[SimpleNamespace]:
    return [one(seed) for seed in range(n)]


def nodes(n: int = 60, **other: Any) -> SimpleNamespace:
    """One graph whose nodes have labels 0, 1, 2 in turn."""
    return one(7, n, **{"y": torch.arange(n) % 3, **other})


def masks(n: int, train: int, validation: int) -> dict[str, Tensor]:
    place = torch.arange(n)
    return {
        "train_mask": place < train,
        "val_mask": (place >= train) & (place < train + validation),
        "test_mask": place >= train + validation,
    }


# -- sets of graphs ---------------------------------------------------------------------------------------------------


def test_a_batch_holds_the_graphs_that_were_given() -> None:
    given = several()
    data = GraphSet.of(given, name="rings")
    assert data.noun == "graphs" and data.takes.features == 4 and data.takes.level == "graph"
    assert data.takes.nodes == (min(g.num_nodes for g in given), max(g.num_nodes for g in given))
    index = torch.tensor([3, 0, 5])
    graphs, labels, which = data.train.batch(index, device=CPU)
    assert isinstance(graphs, Graphs) and len(graphs) == 3 and torch.equal(which, index)
    for place, number in enumerate(data.train.ids[index].tolist()):
        mine, first = (graphs.batch == place).nonzero()[:, 0], int((graphs.batch < place).sum())
        assert torch.equal(graphs.x[mine], given[number].x) and labels[place] == given[number].y
        edges = graphs.edge_index[:, torch.isin(graphs.edge_index[1], mine)] - first
        assert sorted(edges.T.tolist()) == sorted(given[number].edge_index.T.tolist())
    assert (graphs.edge_index[1].diff() >= 0).all()


def test_graphs_stay_where_they_are_when_others_are_added() -> None:
    few, many = GraphSet.of(several(40), name="rings"), GraphSet.of(several(80), name="rings")
    for split in ("train", "validation", "test"):
        before, after = (set(getattr(d, split).ids.tolist()) for d in (few, many))
        assert before == {i for i in after if i < 40} and before
    assert sum(len(s) for s in (few.train, few.validation, few.test)) == 40
    assert all("rings is ours" in note for note in few.notes) and len(few.notes) == 2


def test_nodes_stay_where_they_are_when_others_are_added() -> None:
    few, many = GraphSet.of(nodes(60), name="ring"), GraphSet.of(nodes(120), name="ring")
    assert set(few.test.ids.tolist()) == {i for i in many.test.ids.tolist() if i < 60}


def test_a_split_that_is_brought_is_taken() -> None:
    split = {"train": torch.arange(20), "validation": torch.arange(20, 25), "test": torch.arange(25, 40)}
    data = GraphSet.of(several(), split=split)
    assert torch.equal(data.test.ids, split["test"]) and not data.notes
    lacking = GraphSet.of(several(), split={"train": torch.arange(25), "test": torch.arange(25, 40)})
    assert len(lacking.validation) and len(lacking.train) + len(lacking.validation) == 25
    assert "validation split" in lacking.notes[0]


def test_a_subset_and_a_digest_follow_the_samples() -> None:
    data = GraphSet.of(several())
    part = data.train.subset(torch.tensor([1, 4]))
    assert isinstance(part, GraphSplit) and len(part) == 2 and part.union is data.train.union
    assert torch.equal(part.labels, data.train.labels[[1, 4]])
    fewer = data.subset(torch.tensor([1, 4])).digests()
    assert fewer["the training graphs"] != data.digests()["the training graphs"]
    assert fewer["the test graphs"] == data.digests()["the test graphs"]
    again = GraphSet.of(several())
    assert again.digests() == data.digests() and "the training graphs" in data.digests()
    other = GraphSet.of([one(99), *several()[1:]])
    assert other.digests()["the training graphs"] != data.digests()["the training graphs"]


def test_a_set_is_described_in_a_line() -> None:
    data = GraphSet.of(
        several(),
        name="rings",
        split={"train": torch.arange(30), "validation": torch.arange(30, 34), "test": torch.arange(34, 40)},
    )
    assert describe(data) == "rings: 30 train, 4 validation, 6 test graphs, 2 classes, 4 features a node"
    assert describe(GraphSet.of(nodes(**masks(60, 30, 10)), name="ring")) == (
        "ring: 30 train, 10 validation, 20 test nodes, 3 classes, 4 features a node, in a graph of 60 nodes and "
        "120 edges"
    )


def test_graphs_without_features_have_their_degrees() -> None:
    data = GraphSet.of([SimpleNamespace(**{**vars(g), "x": None}) for g in several()], name="rings")
    assert data.takes.features == 3 and "each has its degree, of up to 2" in data.notes[0]
    x = data.train.batch(torch.arange(2), device=CPU)[0].x
    assert torch.equal(x, torch.tensor([0.0, 0.0, 1.0]).expand(len(x), 3))


def test_features_of_edges_come_along() -> None:
    given = [one(i, edge_attr=torch.arange(2.0 * g.num_nodes)) for i, g in enumerate(several())]
    data = GraphSet.of(given)
    assert data.takes.edges == 1
    graphs = data.train.batch(torch.tensor([0]), device=CPU)[0]
    number = int(data.train.ids[0])
    pairs = {
        tuple(e): float(a) for e, a in zip(given[number].edge_index.T.tolist(), given[number].edge_attr, strict=True)
    }
    assert {tuple(e): float(a) for e, a in zip(graphs.edge_index.T.tolist(), graphs.edge_attr, strict=True)} == pairs


def test_no_graphs_say_what_graphs_would_be_like() -> None:
    takes = GraphSet.of(several()).takes
    none = GraphSet.none(takes, ("a", "b"))
    assert len(none.train) == 0 and none.takes == takes and none.noun == "graphs" and none.digests()


# -- nodes ------------------------------------------------------------------------------------------------------------


def test_samples_are_the_nodes_of_a_mask_and_bring_the_whole_graph() -> None:
    data = GraphSet.of(nodes(**masks(60, 30, 10)), name="ring", classes=("a", "b", "c"))
    assert isinstance(data.train, NodeSplit) and data.train.together and data.noun == "nodes" and not data.notes
    assert (len(data.train), len(data.validation), len(data.test)) == (30, 10, 20) and data.takes.level == "node"
    graphs, labels, _ = data.test.batch(torch.tensor([2, 0]), device=CPU)
    assert len(graphs) == 2 and len(graphs.x) == 60 and graphs.at.tolist() == [42, 40] and labels.tolist() == [0, 1]
    other = data.train.batch(torch.tensor([1]), device=CPU)[0]
    assert other.x is graphs.x and other.edge_index is graphs.edge_index  # splits share the graph
    part = data.train.subset(torch.tensor([5, 6]))
    assert part.ids.tolist() == [5, 6] and part.labels.tolist() == [2, 0]


def test_the_first_of_several_masks_is_used_and_said() -> None:
    found = {key: torch.stack([mask, ~mask], 1) for key, mask in masks(60, 30, 10).items()}
    data = GraphSet.of(nodes(**found), name="ring")
    assert len(data.train) == 30 and data.notes == ["ring comes with 2 splits, of which the first is used."]


def test_features_that_are_nearly_all_zero_become_sparse() -> None:
    x = torch.zeros(600, 500)
    x[torch.arange(600), torch.arange(600) % 500] = 1
    data = GraphSet.of(nodes(600, x=x), name="ring")
    graphs = data.train.batch(torch.arange(3), device=CPU)[0]
    assert graphs.sparse and torch.equal(graphs.x.to_dense(), x) and data.takes.features == 500
    assert not GraphSet.of(nodes(600, x=torch.rand(600, 500))).train.batch(torch.arange(3), device=CPU)[0].sparse
    assert data.digests() == GraphSet.of(nodes(600, x=x.clone()), name="ring").digests()


# -- what is refused --------------------------------------------------------------------------------------------------


def edge(source: Any, target: Any) -> Tensor:
    return torch.tensor([[source], [target]])


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (one(0, 5, edge_index=edge(0, 5)), "graph 3 of rings goes from node 0 to node 5, and there are 0 to 4"),
        (one(0, 5, edge_index=edge(-1, 2)), "goes from node -1 to node 2"),
        (one(0, 5, edge_index=edge(0.0, 1.0)), "edges of rings are float32 numbers"),
        (one(0, 5, edge_index=torch.zeros(3, 2).long()), "two rows, sources and targets"),
        (one(0, 5, edge_index=None), "Graph 3 of rings has no edge_index"),
        (one(0, 5, x=torch.full((5, 4), torch.nan)), "A feature of node 0 of graph 3 of rings is nan"),
        (one(0, 5, x=torch.full((5, 4), torch.inf)), "is inf"),
        (one(0, 5, x=torch.rand(0, 4), edge_index=torch.zeros(2, 0).long()), "graph 3 of rings has no nodes"),
        (one(0, 5, x=torch.rand(5, 7)), "Graph 0 of rings has 4 features a node and graph 3 has 7"),
        (one(0, 5, y=torch.tensor([5])), "must lie between 0 and 1 .*, and graph 3 has 5"),
        (one(0, 5, y=torch.tensor([-2])), "and graph 3 has -2"),
        (one(0, 5, y=torch.tensor([0.5])), "are not whole"),
        (one(0, 5, y=torch.tensor([0, 1])), "Graph 3 of rings has labels of shape"),
        (one(0, 5, y=torch.arange(5)), "a label for each of its nodes, and there are several graphs"),
        (one(0, 5, y=None), "Graph 3 of rings has no label y"),
        (one(0, 5, edge_attr=torch.rand(10, 2)), "0 features an edge and graph 3 has 2"),
    ],
)
def test_a_graph_that_is_wrong_is_named(wrong: SimpleNamespace, said: str) -> None:
    with pytest.raises(UserError, match=said):
        GraphSet.of([*several()[:3], wrong, *several()[3:]], name="rings", classes=("a", "b"))


@pytest.mark.parametrize(
    ("graph", "said"),
    [
        (
            nodes(**{**masks(60, 30, 10), "test_mask": torch.arange(60) >= 25}),
            "30 or more|are in both the train and the test",
        ),
        (nodes(**{**masks(60, 30, 10), "test_mask": torch.zeros(60, dtype=torch.bool)}), "ring has no test nodes"),
        (nodes(train_mask=torch.arange(60) < 30), "ring has no test nodes"),
        (nodes(**{**masks(60, 30, 10), "train_mask": torch.zeros(60, dtype=torch.bool)}), "no training nodes"),
        (nodes(**{**masks(60, 30, 10), "train_mask": torch.arange(60) == 0}), "belongs to the classes '1', '2'"),
        (nodes(**{**masks(60, 30, 10), "train_mask": torch.ones(7, dtype=torch.bool)}), r"\(7,\) entries for 60 nodes"),
        (nodes(y=torch.arange(59) % 3), "60 nodes and 59 labels"),
        (nodes(y=torch.zeros(60)), "1 class"),
    ],
)
def test_a_split_of_nodes_that_is_wrong_is_named(graph: SimpleNamespace, said: str) -> None:
    with pytest.raises(UserError, match=said):
        GraphSet.of(graph, name="ring")


def test_what_is_no_graph_is_refused() -> None:
    with pytest.raises(UserError, match="not as a int"):
        GraphSet.of(3)
    with pytest.raises(UserError, match="has no graphs"):
        GraphSet.of([])
    with pytest.raises(UserError, match="names graph 40, and there are 0 to 39"):
        GraphSet.of(several(), split={"train": torch.tensor([40]), "test": torch.tensor([1])})
    with pytest.raises(UserError, match="not trainn"):
        GraphSet.of(several(), split={"trainn": torch.tensor([0]), "test": torch.tensor([1])})


# -- files of a person's own ------------------------------------------------------------------------------------------

TEXT = "2\n3 0\n0 1 1\n1 2 0 2\n0 1 1\n2 7\n1 1 1\n1 1 0\n"


def written(folder: Path, text: str, name: str = "own.txt") -> Path:
    folder.mkdir(exist_ok=True)
    (folder / name).write_bytes(gzip.compress(text.encode()) if name.endswith("gz") else text.encode())
    return folder


@pytest.mark.parametrize("name", ["own.txt", "own.txt.gz"])
def test_one_text_file_is_read(tmp_path: Path, name: str) -> None:
    found = read_graphs(written(tmp_path / "d", TEXT, name), "own")
    assert found.parts.sizes.tolist() == [3, 2] and found.labels.tolist() == [0, 1] and found.classes == ("0", "7")
    assert found.parts.x.tolist() == [[1, 0], [0, 1], [1, 0], [0, 1], [0, 1]] and found.parts.edges.tolist() == [4, 2]
    assert sorted(found.parts.edge_index.T.tolist()[:4]) == [[0, 1], [1, 0], [1, 2], [2, 1]]
    assert sorted(found.parts.edge_index.T.tolist()[4:]) == [[0, 1], [1, 0]]


def test_attributes_stand_behind_the_neighbours(tmp_path: Path) -> None:
    found = read_graphs(written(tmp_path / "d", "1\n2 0\n0 1 1 0.5 2\n0 1 0 -1 3\n"), "own")
    assert found.parts.x.tolist() == [[0.5, 2], [-1, 3]] and not found.notes


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (TEXT.replace("1 2 0 2", "1 1 0 2"), "line 4 announces 1 neighbours, and 2 numbers follow"),
        (TEXT.replace("1 2 0 2", "1 3 0 2"), "line 4 announces 3 neighbours"),
        (TEXT.replace("1 2 0 2", "1 2 0 3"), "edge from node 1 to node 3 in graph 0, whose nodes are 0 to 2"),
        (TEXT.replace("1 2 0 2", "1 2 0 -1"), "node -1"),
        (TEXT.replace("1 2 0 2", "1 -2 0 2"), "announces -2 neighbours"),
        (TEXT.replace("2 7", "4 7"), "ends at node 2 of graph 1, which should have 4 nodes"),
        (TEXT.replace("2\n3", "3\n3", 1), "ends where the number of nodes"),
        (TEXT.replace("2\n3", "1\n3", 1), "announces 1 graphs, and more follow"),
        (TEXT.replace("2\n3", "two\n3", 1), "line 1 should be the number of graphs"),
        (TEXT.replace("1 2 0 2", "1 2 0 x"), "line 4 is not a tag"),
        (TEXT.replace("2 7\n1 1 1\n1 1 0\n", "0 7\n"), "graph 1 of own has no nodes"),
        (TEXT.replace("2 7", "2 0"), "own has 1 class"),
        ("", "line 1|ends where"),
    ],
)
def test_a_text_file_that_contradicts_itself_is_refused(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(UserError, match=said):
        load_graphs(f"graphs:{written(tmp_path / 'own', text)}")


def test_a_file_that_is_cut_off_is_refused(tmp_path: Path) -> None:
    folder = written(tmp_path / "own", TEXT * 50, "own.txt.gz")
    file = folder / "own.txt.gz"
    file.write_bytes(file.read_bytes()[:-12])
    with pytest.raises(UserError, match=r"own\.txt\.gz is damaged"):
        load_graphs(f"graphs:{folder}")


TU = {
    "A": "1, 2\n2, 1\n2, 3\n3, 2\n4, 5\n5, 4\n",
    "graph_indicator": "1\n1\n1\n2\n2\n",
    "graph_labels": "-1\n1\n",
    "node_labels": "0\n1\n0\n2\n2\n",
    "node_attributes": "0.5\n1\n2\n3\n4\n",
    "edge_labels": "0\n0\n1\n1\n0\n0\n",
}


def tu(folder: Path, **changed: str) -> Path:
    folder.mkdir()
    for part, text in {**TU, **changed}.items():
        (folder / f"OWN_{part}.txt").write_text(text)
    return folder


def test_the_tu_layout_is_read(tmp_path: Path) -> None:
    found = read_graphs(tu(tmp_path / "d"), "own")
    assert found.parts.sizes.tolist() == [3, 2] and found.classes == ("-1", "1") and found.labels.tolist() == [0, 1]
    assert found.parts.x.tolist() == [[0.5, 1, 0, 0], [1, 0, 1, 0], [2, 1, 0, 0], [3, 0, 0, 1], [4, 0, 0, 1]]
    assert found.parts.edge_index.T.tolist() == [[0, 1], [1, 0], [1, 2], [2, 1], [0, 1], [1, 0]]
    assert found.parts.edge_attr is not None and found.parts.edge_attr[:, 1].tolist() == [0, 0, 1, 1, 0, 0]


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"A": "1, 9\n"}, r"edge from node 1 to node 9 \(line 1\), and there are 1 to 5"),
        ({"A": "1, 2\n3, 4\n"}, r"between two graphs \(line 2\)"),
        ({"A": "1, 2, 3\n"}, "two numbers in each line, not 3"),
        ({"A": "1, 2\n1\n"}, "line 2 has 1 numbers and line 1 has 2"),
        ({"A": "a, b\n"}, "OWN_A.txt is damaged"),
        ({"graph_indicator": "2\n1\n1\n2\n2\n"}, "graphs 1 to 2 in ascending order"),
        ({"graph_indicator": "1\n1\n1\n3\n3\n"}, "graphs 1 to 2"),
        ({"node_labels": "1\n"}, "has 1 lines and not 5"),
        ({"edge_labels": "1\n"}, "has 1 lines and not 6"),
        ({"graph_labels": ""}, "OWN_graph_labels.txt is empty"),
        ({"node_attributes": "nan\n1\n1\n1\n1\n"}, "A feature of node 0 of graph 0 of own is nan"),
    ],
)
def test_tu_files_that_contradict_each_other_are_refused(tmp_path: Path, changed: dict[str, str], said: str) -> None:
    with pytest.raises(UserError, match=said):
        load_graphs(f"graphs:{tu(tmp_path / 'own', **changed)}")


def test_a_folder_without_graphs_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="There is no folder"):
        load_graphs(f"graphs:{tmp_path / 'nothing'}")
    with pytest.raises(UserError, match="names no folder"):
        load_graphs("graphs:")
    with pytest.raises(UserError, match="holds no set of graphs"):
        load_graphs(f"graphs:{tmp_path}")
    with pytest.raises(UserError, match=r"but a.txt, b.txt"):
        load_graphs(f"graphs:{written(written(tmp_path / 'two', TEXT, 'a.txt'), TEXT, 'b.txt')}")


def test_a_name_whose_files_are_not_here_says_what_to_fetch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("UPCYCLE_DATA", str(tmp_path))
    for name, known in NAMED.items():
        with pytest.raises(UserError, match=f"The data set {name} is not here. Fetch .* of {known.origin}"):
            load_graphs(name)


# -- Planetoid --------------------------------------------------------------------------------------------------------


def test_no_pickle_makes_anything_run(tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    (tmp_path / "evil").mkdir()
    files = malicious_files(tmp_path / "evil", canary, {"w": torch.zeros(2)})
    for file in files:
        with pytest.raises(UserError, match=r"no file of Planetoid, or damaged|no table of features"):
            read_citations(papers(tmp_path, allx=file.read_bytes()), "cora")
    assert len(files) == 30 and not canary.exists()


class Numpy:
    """Asks for a name of an allowed library that is not on the list."""

    def __reduce__(self) -> Any:
        return np.fromfile, ("/etc/hostname", "u1")


def test_only_six_names_are_known(tmp_path: Path) -> None:
    for value in (Numpy(), SimpleNamespace(), Path("x"), np.random.default_rng(0), slice(3), {1, 2}.__iter__()):
        (tmp_path / "file").write_bytes(pickle.dumps(value, protocol=4))
        with pytest.raises(UserError, match="asks for"):
            unpickled(tmp_path / "file")
    for value in (np.arange(6.0).reshape(2, 3), defaultdict(list, {1: [2]}), [1, "a"], {"a": (1, 2.0)}):
        (tmp_path / "file").write_bytes(pickle.dumps(value, protocol=4))
        found = unpickled(tmp_path / "file")
        assert np.array_equal(found.tensor(), value) if isinstance(value, np.ndarray) else found == value


def papers(folder: Path, **changed: Any) -> Path:
    """A citation graph of 530 training and other nodes and 10 test nodes, in Planetoid's files."""
    import scipy.sparse as sp

    folder.mkdir(exist_ok=True)
    labels = np.eye(2, dtype=np.int32)[np.arange(540) % 2]
    x = sp.csr_matrix(np.eye(4, dtype=np.float32)[np.arange(540) % 4])
    graph = defaultdict(list, {i: [(i + 1) % 540] for i in range(540)})
    parts: dict[str, Any] = {
        "x": x[:10],
        "tx": x[530:],
        "allx": x[:530],
        "y": labels[:10],
        "ty": labels[530:],
        "ally": labels[:530],
        "graph": graph,
        **changed,
    }
    for part, value in parts.items():
        (folder / f"ind.cora.{part}").write_bytes(
            value if isinstance(value, bytes) else pickle.dumps(value, protocol=4)
        )
    (folder / "ind.cora.test.index").write_text("\n".join(map(str, reversed(range(530, 540)))))
    return folder


def test_papers_are_read_in_the_order_of_their_index(tmp_path: Path) -> None:
    found = read_citations(papers(tmp_path), "cora")
    assert found.x.shape == (540, 4) and found.split["train"].tolist() == list(range(10))
    assert found.split["validation"].tolist() == list(range(10, 510)) and found.split["test"].tolist() == list(
        range(530, 540)
    )
    assert found.x[539].argmax() == 530 % 4 and found.labels[539] == 0 and found.edge_index.shape == (2, 1080)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"graph": {0: [540]}}, "edge to node 540 of 540"),
        ({"graph": {0: [-1]}}, "edge to node -1"),
        ({"graph": [1, 2]}, "does not hold the neighbours"),
        ({"allx": np.zeros((530, 4))}, "no table of features"),
        ({"ally": np.zeros(530)}, "no table of labels"),
        ({"ally": np.zeros((529, 2), dtype=np.int32)}, "do not belong together"),
        ({"tx": b"\x80\x02garbage"}, "no file of Planetoid, or damaged"),
    ],
)
def test_papers_that_are_wrong_are_refused(tmp_path: Path, changed: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        read_citations(papers(tmp_path, **changed), "cora")


def test_a_sparse_table_is_looked_at_before_it_is_used(tmp_path: Path) -> None:
    import scipy.sparse as sp

    table = sp.csr_matrix(np.eye(4, dtype=np.float32)[np.arange(530) % 4])
    table.indices[3] = 2**30
    with pytest.raises(UserError, match="do not lie in its table"):
        read_citations(papers(tmp_path, allx=table), "cora")


# -- graphs by rule ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("share", [0.6, 0.7])
def test_similar_rows_are_those_of_the_whole_matrix(share: float) -> None:
    chance = np.random.default_rng(0)
    table = np.round(chance.normal(size=(200, 3)) * 3)  # with rows that are equal
    s = 1 / (1 + np.sqrt(((table[:, None] - table[None]) ** 2).sum(2)))
    best = np.sort(s, 1)[:, -2:-1]
    near = (s > share * best * (1 + 1e-12)) & ~np.eye(200, dtype=bool)
    expected = {tuple(pair) for pair in np.argwhere(near | near.T).tolist()}
    found = similar(table, share)
    assert {tuple(pair) for pair in found.T.tolist()} == expected and len(expected) == found.shape[1]


def test_edges_become_undirected_once_and_without_loops() -> None:
    made = undirected(torch.tensor([[0, 1, 2, 2, 0], [1, 0, 2, 1, 1]]), 3)
    assert made.T.tolist() == [[1, 0], [0, 1], [2, 1], [1, 2]]


# -- the real ones ----------------------------------------------------------------------------------------------------


@needs_data
@pytest.mark.parametrize(
    ("name", "sizes", "graph"),
    [("cora", (140, 500, 1000), (2708, 10556, 1433, 7)), ("citeseer", (120, 500, 1000), (3327, 9104, 3703, 6))],
)
def test_papers_have_the_public_split(name: str, sizes: tuple[int, ...], graph: tuple[int, ...]) -> None:
    data = load_graphs(name)
    assert tuple(len(s) for s in (data.train, data.validation, data.test)) == sizes
    graphs = data.train.batch(torch.arange(4), device=CPU)[0]
    assert (len(graphs.batch), graphs.edge_index.shape[1], data.takes.features, len(data.classes)) == graph
    assert graphs.sparse and torch.allclose(graphs.x.to_dense().sum(1).unique(), torch.ones(1)) is (name == "cora")
    assert torch.bincount(data.train.labels).tolist() == [20] * len(data.classes)


@needs_data
@pytest.mark.parametrize(
    ("name", "n", "features", "test"),
    [("mutag", 188, 7, 57), ("ptc", 344, 19, 104), ("proteins", 1113, 3, 334), ("imdb_binary", 1000, None, 300)],
)
def test_sets_of_graphs_have_a_fixed_split(name: str, n: int, features: int | None, test: int) -> None:
    data = load_graphs(name)
    assert (len(data.train) + len(data.validation) + len(data.test), len(data.test)) == (n, test)
    assert features in (None, data.takes.features) and len(data.classes) == 2
    assert (
        "are ours" in data.notes[-1] and "degree" in data.notes[0] if features is None else "are ours" in data.notes[0]
    )
    share = (data.test.labels == 1).float().mean() - (
        torch.cat([data.train.labels, data.test.labels]) == 1
    ).float().mean()
    assert abs(float(share)) < 0.02


@needs_data
def test_mutag_is_that_of_the_paper() -> None:
    data, other = load_graphs("mutag"), load_graphs("mutag", split=1)
    assert (len(data.train), len(data.validation), data.takes.nodes) == (118, 13, (10, 28))
    assert set(data.test.ids.tolist()) != set(other.test.ids.tolist()) and "number 1" in other.notes[0]
    assert torch.equal(data.test.ids, load_graphs("mutag").test.ids)


@needs_data
@pytest.mark.parametrize(("name", "n", "sensitive"), [("german", 1000, "Gender"), ("credit", 30000, "Age")])
def test_tables_become_graphs_with_their_columns(name: str, n: int, sensitive: str) -> None:
    data = load_graphs(name)
    graph = data.train.graph  # type: ignore[union-attr]
    assert (
        len(graph.batch) == n and len(data.test) == n // 2 and set(data.columns[sensitive].unique().tolist()) == {0, 1}
    )
    assert torch.allclose(graph.x.mean(0), torch.zeros(data.takes.features), atol=1e-4)
    if name == "credit":
        assert graph.edge_index.shape[1] == 2 * 137_376 and data.takes.features == 13
    assert torch.equal(graph.edge_index.flip(0).unique(dim=1), graph.edge_index.unique(dim=1))


# -- load -------------------------------------------------------------------------------------------------------------


def test_load_takes_graphs_as_it_takes_images(tmp_path: Path) -> None:
    rings = "\n".join(f"4 {i % 2}\n{i % 3} 1 1\n0 2 0 2\n{i % 5} 2 1 3\n0 1 2" for i in range(60))
    folder = written(tmp_path / "mutag", f"60\n{rings}\n")
    data = load(f"graphs:{folder}")
    assert isinstance(data, GraphSet) and data.name == "mutag_local" and load(data) is data
    assert len(data.train) + len(data.validation) + len(data.test) == 60
    check_reference(f"graphs:{folder / 'own.txt'}")
    with pytest.raises(UserError, match="no size, channels or columns"):
        load(f"graphs:{folder}", size=8)
    with pytest.raises(UserError, match="no folder"):
        check_reference(f"graphs:{folder / 'other'}")
    with pytest.raises(UserError, match="Did you mean 'mutag'"):
        check_reference("mutga")
    assert load(f"graphs:{folder}").few(3, 0).train.labels.bincount().tolist() == [3, 3]
    assert (
        load(f"graphs:{folder}").hide_labels(0, 0).notes[-1].startswith("All") and not data.augmented(()).train.augment
    )


def test_graphs_of_ones_own_may_have_several_labels() -> None:
    pyg = pytest.importorskip("torch_geometric.data", reason="torch_geometric is not installed (extra graphs)")
    rows = torch.randint(2, (12, 3), generator=torch.Generator().manual_seed(0)).float()
    rows[0, 1] = float("nan")
    edges = torch.tensor([[0, 1], [1, 0]])
    given = [pyg.Data(x=torch.full((2, 4), float(i)), edge_index=edges, y=y[None]) for i, y in enumerate(rows)]
    split = {"train": torch.arange(8), "validation": torch.arange(8, 10), "test": torch.arange(10, 12)}
    data = GraphSet.of(given, split=split, classes=("a", "b", "c"))
    assert data.task == MULTILABEL and data.classes == ("a", "b", "c")
    assert torch.equal(data.train.labels.nan_to_num(2), rows[:8].nan_to_num(2))
    assert GraphSet.of(given).classes == ("0", "1", "2")
    with pytest.raises(UserError, match="made of classes, one a sample, and the task of graphs is multilabel"):
        stream(data, tasks="3", scenario="task")
    with pytest.raises(UserError, match="3 labels a graph and 2 names"):
        GraphSet.of(given, classes=("a", "b"))
    given[3].y = torch.tensor([[0.0, 2.0, 1.0]])
    with pytest.raises(UserError, match="Label 1 of graph 3 of graphs is 2; of several labels each is 0 or 1"):
        GraphSet.of(given)
    given[3].y = torch.zeros(1, 2)
    with pytest.raises(UserError, match=r"graph 3 of \(1, 2\); all graphs of a set have as many"):
        GraphSet.of(given)


def test_load_takes_objects_of_pyg() -> None:
    pyg = pytest.importorskip("torch_geometric.data", reason="torch_geometric is not installed (extra graphs)")
    given = [pyg.Data(x=g.x, edge_index=g.edge_index, y=g.y) for g in several()]
    data = load(given)
    assert isinstance(data, GraphSet) and data.noun == "graphs"
    assert GraphSet.of(pyg.Batch.from_data_list(given)).digests() == data.digests()
    node = nodes(**masks(60, 30, 10))
    data = load(pyg.Data(**{k: v for k, v in vars(node).items() if k != "num_nodes"}))
    assert data.noun == "nodes" and len(data.train) == 30
    back = data.test.batch(torch.arange(2), device=CPU).inputs.data()
    assert back.num_nodes == 60 and back.at.tolist() == [40, 41]


def test_graphs_are_loaded_without_the_library_of_networks() -> None:
    """It takes seconds to import, and so does what only the rule of similar rows needs."""
    code = "import sys; from upcycle.data import GraphSet, load; from upcycle.zoo import from_pyg\n"
    code += "from_pyg.check('GAT'); assert not {'torch_geometric', 'scipy'} & set(sys.modules)"
    pytest.importorskip("torch_geometric", reason="torch_geometric is not installed (extra graphs)")
    subprocess.run([sys.executable, "-c", code], check=True)
