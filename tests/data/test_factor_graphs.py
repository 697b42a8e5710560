"""The synthetic graphs of hidden relations."""

from __future__ import annotations

import pytest
import torch

from upcycle.core.errors import UserError
from upcycle.core.task import MULTILABEL
from upcycle.data import describe, load
from upcycle.data.factor_graphs import KINDS, load_factors, relations
from upcycle.data.graph_sources import load_graphs
from upcycle.measure.factors import TRUTH


def test_relations_are_the_graphs_that_they_are_called() -> None:
    made = relations()
    assert torch.equal(made, made.transpose(1, 2)) and not made.diagonal(dim1=1, dim2=2).any()
    assert (made.sum((1, 2)) // 2).tolist() == [6, 8, 12, 12, 12, 12]  # edges
    assert [int(m.any(1).sum()) for m in made] == [5, 5, 13, 9, 8, 6]  # nodes
    assert [sorted(set(m.sum(1).tolist()) - {0}) for m in made] == [[2, 3], [2, 3, 4], [1, 3, 4], [2, 3, 4], [3], [4]]


def test_a_graph_is_the_union_of_its_relations_and_its_features_count_them() -> None:
    data = load("factors:4")
    assert data.task == MULTILABEL and data.classes == KINDS[:4] and data.takes.nodes == (15, 15)
    truth, whole = data.columns[TRUTH], data.train.union
    labels = torch.cat([split.labels for split in data.splits().values()])
    assert torch.equal(truth.flatten(2).any(2), labels.bool()) and (labels.sum(1) == 2).all()
    edges = torch.zeros(5500, 15, 15, dtype=torch.bool)
    source, target = whole.edge_index % 15
    edges[whole.batch[whole.edge_index[0]], source, target] = True
    assert torch.equal(edges, truth.any(1))
    assert torch.equal(whole.x.view(5500, 15, 15), truth.sum(1).float()) and whole.x.max() == 2
    assert torch.equal(
        truth.sum((2, 3))[labels.bool()] // 2, torch.tensor([6, 8, 12, 12]).expand(5500, 4)[labels.bool()]
    )
    text = "factors:4: 4,000 train, 500 validation, 1,000 test graphs, 4 classes, 15 features a node"
    assert describe(data) == text


def test_a_seed_is_a_set() -> None:
    assert load("factors:4").digest == load("factors:4").digest
    assert load_graphs("factors:4", split=1).digest != load("factors:4").digest
    assert load("factors:3").train.labels.shape == (4000, 3)


def test_binary_features_do_not_say_how_many_relations_an_edge_has() -> None:
    counted, binary = load_factors("factors:4"), load_factors("factors:4,binary")
    assert torch.equal(binary.train.union.x, counted.train.union.x.clamp_max(1))
    assert torch.equal(binary.train.union.edge_index, counted.train.union.edge_index)


@pytest.mark.parametrize(
    ("reference", "part"),
    [
        ("factors:", "should read factors:F"),
        ("factors:four", "should read factors:F"),
        ("factors:4,bin", "should read factors:F"),
        ("factors:1", "has 2 to 6 relations, not 1"),
        ("factors:7", "has 2 to 6 relations, not 7"),
    ],
)
def test_what_is_no_such_set_is_refused(reference: str, part: str) -> None:
    with pytest.raises(UserError, match=part):
        load(reference)


def test_there_are_no_classes_to_draw_by() -> None:
    with pytest.raises(UserError, match="no classes to draw graphs of: its task is multilabel"):
        load("factors:2").few(3, 0)
