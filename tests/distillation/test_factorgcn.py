"""FactorGCN: what tells factors apart, and training with and without it."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from tests.settings_factors import factor_model, factor_networks, label_networks, taught_networks, tiny_factors
from tests.settings_graphs import tiny_graph_model, tiny_graphs, tiny_nodes
from upcycle.core import saved
from upcycle.core.errors import UserError
from upcycle.core.losses import Terms, kd_loss
from upcycle.core.models import Model
from upcycle.core.recipe import Recipe
from upcycle.core.run import Run
from upcycle.core.store import read_json, tensor_digest
from upcycle.data.graphs import GraphSet
from upcycle.distillation import FactorGCN, Plain
from upcycle.distillation.factorgcn import (
    Discriminated,
    Discriminator,
    disentangling_loss,
    factor_graphs,
    soft_loss,
    told_apart,
    with_factors,
)
from upcycle.zoo.factorgcn import layers_of, seen_factors

RECIPE = Recipe(epochs=3, batch_size=32, optimizer="adam", lr=0.01)


def graphs_of(data: GraphSet, n: int = 8) -> Any:
    return data.train.batch(torch.arange(n), device=torch.device("cpu")).inputs


def fitted(method: Any, data: GraphSet, directory: Path | None = None) -> tuple[nn.Module, Run]:
    run = Run(directory, seed=3, quiet=True)
    method.begin(run, data)
    return method.fit(run, data), run


def same(a: nn.Module, b: nn.Module) -> bool:
    return tensor_digest(a.state_dict()) == tensor_digest(b.state_dict())


# -- disentangling ----------------------------------------------------------------------------------------------------


def test_factors_that_are_the_same_cannot_be_told_apart() -> None:
    data = tiny_graphs()
    net, graphs = factor_networks()["student"].module, graphs_of(data)
    layer = layers_of(net)[0]
    with torch.no_grad():
        for scorer in (layer.of_source, layer.of_target):
            scorer.weight.copy_(scorer.weight[:1].expand_as(scorer.weight))
            scorer.bias.copy_(scorer.bias[:1].expand_as(scorer.bias))
    with seen_factors(net) as seen:
        net(graphs)
    torch.manual_seed(1)
    guess = Discriminator(8, 4)
    logits = guess(seen[layer], graphs.batch, graphs.n)
    assert logits.shape == (8, 4, 4) and torch.allclose(logits, logits[:, :1].expand_as(logits), atol=1e-6)
    assert disentangling_loss(logits) >= math.log(4) - 1e-6
    with torch.no_grad():
        guess.V.weight.zero_(), guess.V.bias.zero_()
    assert disentangling_loss(guess(seen[layer], graphs.batch, graphs.n)).item() == pytest.approx(math.log(4))


def test_the_loss_is_small_where_each_factor_is_recognised() -> None:
    right = 50 * torch.eye(3).expand(5, 3, 3)
    assert disentangling_loss(right) < 1e-6 and disentangling_loss(right.roll(1, 1)) > 40
    assert disentangling_loss(right.double()).dtype == torch.float64


def test_the_discriminator_is_the_published_one_factor_by_factor() -> None:
    data = tiny_graphs()
    net, graphs = factor_networks()["student"].module, graphs_of(data, 1)
    with seen_factors(net) as seen:
        net(graphs)
    found, guess = seen[layers_of(net)[0]], Discriminator(8, 4)
    n = len(graphs.x)
    for e in range(4):
        E = torch.zeros(n, n)
        source, target = torch.cat([found.edge_index, torch.arange(n).repeat(2, 1)], 1)
        E[target, source] = found.sent[:, e]
        x = torch.tanh(E @ guess.U_1(found.h))
        x = torch.tanh(E @ guess.U_2(x))
        expected = guess.V(torch.tanh(x.mean(0)))
        assert torch.allclose(guess(found, graphs.batch, 1)[0, e], expected, atol=1e-5)


def test_only_layers_with_several_factors_are_looked_at() -> None:
    model = with_factors(factor_networks()["student"], 2)
    whole = Discriminated(model.module)
    assert [layer.factors for layer in layers_of(model.module)] == [2, 1] and len(whole.discriminators) == 1
    z, L_d = whole(graphs_of(tiny_graphs()))
    assert z.shape == (8, 3) and L_d.isfinite() and not layers_of(model.module)[0]._forward_hooks


def test_everything_descends_the_loss_of_telling_apart() -> None:
    whole = Discriminated(factor_networks()["student"].module)
    _, L_d = whole(graphs_of(tiny_graphs()))
    L_d.backward()
    layer = layers_of(whole)[0]
    for p in (layer.project.weight, layer.of_source.weight, *whole.discriminators.parameters()):
        assert p.grad is not None and p.grad.abs().sum() > 0


# -- training ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("networks", "make"), [(factor_networks, tiny_graphs), (label_networks, tiny_factors)])
def test_without_telling_apart_it_is_plain_training_bit_for_bit(networks: Any, make: Any) -> None:
    data = make()
    alone, _ = fitted(FactorGCN(**networks(), lambda_d=0.0, recipe=RECIPE), data)
    plain, _ = fitted(Plain(**networks(), recipe=RECIPE), data)
    other, _ = fitted(FactorGCN(**networks(), lambda_d=0.2, recipe=RECIPE), data)
    assert same(alone, plain) and not same(alone, other)


def test_a_teacher_is_listened_to_where_it_has_a_weight() -> None:
    data = tiny_graphs()
    terms = Terms(temperature=2.0, w_kd=1.0, w_ce=0.0)
    taught, _ = fitted(FactorGCN(**taught_networks(), terms=terms, recipe=RECIPE), data)
    blank = dataclasses.replace(data, train=dataclasses.replace(data.train, labels=torch.full((160,), -1)))
    unlabelled, _ = fitted(FactorGCN(**taught_networks(), terms=terms, recipe=RECIPE), blank)
    assert same(taught, unlabelled)


def test_soft_answers_of_classes_and_of_labels() -> None:
    z, z_t = torch.randn(2, 6, 3, generator=torch.Generator().manual_seed(0))
    assert torch.equal(soft_loss(z, z_t, 2.0), kd_loss(z, z_t, 2.0))
    at, off = (float(soft_loss(one, z_t, 2.0, several=True)) for one in (z_t, z))
    assert at < off
    p = torch.sigmoid(z_t / 2)
    log = p * torch.sigmoid(z / 2).log() + (1 - p) * torch.sigmoid(-z / 2).log()
    assert off == pytest.approx(float(-4 * log.mean()), rel=1e-5)


def test_the_loss_falls_and_relations_are_reported(tmp_path: Path) -> None:
    data = tiny_factors()
    method = FactorGCN(**label_networks(), recipe=dataclasses.replace(RECIPE, epochs=8))
    net, run = fitted(method, data, tmp_path)
    logged = {name: [row for row in run.journal.rows if row[3] == name] for name in ("loss", "disentangling_loss")}
    assert all(float(rows[-1][4]) < float(rows[0][4]) for rows in logged.values())
    assert {row[3] for row in run.journal.rows} >= {"validation_F1", "validation_loss"}
    found, chance = told_apart(net, data)
    assert run.left["shown"] == {"C-Score": found.c_score} and 0.25 <= found.c_score <= 1 and chance.ged > 5
    heat = read_json(tmp_path / "pictures" / "factors.json")
    assert heat["rows"] == ["Turán", "house", "tree", "grid"] and f"{found.ged:.1f}" in heat["caption"]
    drawn = read_json(tmp_path / "pictures" / "factors-0.json")
    assert len(drawn["rows"]) == 2 * 15 and len(drawn["columns"]) == 4 * 15 and drawn["rows"][15] == "factors 1 to 4"
    assert len(list((tmp_path / "pictures").iterdir())) == 4


def test_factors_of_graphs_are_symmetric_and_lie_on_edges() -> None:
    data = tiny_factors()
    found = factor_graphs(label_networks()["student"].module, data.test, torch.tensor([4, 7]))
    truth = data.columns["relations"][data.test.ids[[4, 7]]].any(1)
    assert found.shape == (2, 4, 15, 15) and torch.equal(found, found.transpose(2, 3))
    assert torch.equal(found[:, 0] > 0, truth) and found.max() < 1


def test_graphs_of_another_test_set_bring_their_own_relations(tmp_path: Path) -> None:
    data, once = tiny_factors(), dataclasses.replace(RECIPE, epochs=1)
    test = dataclasses.replace(data.test, columns={})
    _, run = fitted(
        FactorGCN(**label_networks(), recipe=once), dataclasses.replace(data, test=test, measured="others"), tmp_path
    )
    assert "shown" not in run.left and (tmp_path / "pictures" / "factors-0.json").is_file()
    train = dataclasses.replace(data.train, columns={})
    _, run = fitted(
        FactorGCN(**label_networks(), recipe=once), dataclasses.replace(data, train=train, measured="others")
    )
    assert "C-Score" in run.left["shown"]


def test_fewer_factors_than_relations_are_not_measured() -> None:
    method = FactorGCN(**label_networks(), factors=1, lambda_d=0.0, recipe=dataclasses.replace(RECIPE, epochs=1))
    _, run = fitted(method, tiny_factors())
    assert "shown" not in run.left and any("1 factors cannot stand for 2 relations" in note for note in run.notes)


def test_nodes_of_one_graph_are_trained_on_too() -> None:
    data = tiny_nodes()
    net, run = fitted(FactorGCN(student=factor_model(data), recipe=dataclasses.replace(RECIPE, batch_size=0)), data)
    assert not run.left and net(graphs_of(data)).shape == (8, 3)


# -- the number of factors --------------------------------------------------------------------------------------------


def test_a_network_of_the_zoo_is_built_for_another_number_and_comes_back(tmp_path: Path) -> None:
    data = tiny_graphs()
    method = FactorGCN(student=factor_model(data), factors=8, recipe=RECIPE)
    net, _ = fitted(method, data)
    model = method.product(net, data)
    assert model.options == {"num_classes": 3, "factors": 8} and model.classes == data.classes
    saved.save(model, tmp_path / "m")
    again = saved.load(tmp_path / "m")
    graphs = graphs_of(data)
    assert [layer.factors for layer in layers_of(again.module)] == [8, 4]
    assert torch.equal(again.module(graphs), net(graphs))


def test_its_own_number_leaves_a_network_as_it_is() -> None:
    model = factor_networks()["student"]
    assert with_factors(model, 4) is model and FactorGCN(student=model, factors=0).student is model


@pytest.mark.parametrize(
    ("options", "part"),
    [
        ({"factors": 5}, "32 features cannot be divided among 5 factors; take a number that divides 32"),
        ({"factors": -1}, "factors must not be negative, and it is -1"),
        ({"lambda_d": -0.1}, "lambda_d must not be negative"),
        ({"lambda_d": float("nan")}, "lambda_d must not be negative"),
    ],
)
def test_numbers_that_cannot_be_are_refused(options: dict[str, Any], part: str) -> None:
    with pytest.raises(UserError, match=part):
        FactorGCN(**factor_networks(), **options)


def test_a_network_without_factors_cannot_get_any() -> None:
    other = tiny_graph_model("student", 100)
    with pytest.raises(UserError, match="student cannot be built with 4 factors: leave out factors, or take zoo:"):
        FactorGCN(student=other, factors=4)
    with pytest.raises(UserError, match="student has no layer with factors; take zoo:factorgcn"):
        FactorGCN(student=other).require(tiny_graphs())


def _bare() -> nn.Module:
    return factor_networks()["student"].module


@pytest.mark.parametrize(
    ("networks", "options", "part"),
    [
        (lambda: {"student": _bare()}, {"factors": 2}, "student has 4 factors, and factors is 2"),
        (factor_networks, {"factors": 1}, "one factor alone has no other to be told from"),
        (factor_networks, {"terms": Terms(w_kd=0.5)}, "terms.w_kd is for the answers of a teacher, and there is none"),
        (taught_networks, {}, "Nothing is learnt from the teacher while terms.w_kd is 0"),
    ],
)
def test_what_does_not_go_together_is_refused(networks: Any, options: dict[str, Any], part: str) -> None:
    with pytest.raises(UserError, match=part):
        FactorGCN(**networks(), **options).require(tiny_graphs())


def test_labels_are_needed_unless_a_teacher_answers() -> None:
    data = tiny_graphs()
    data = dataclasses.replace(data, train=dataclasses.replace(data.train, labels=torch.full((160,), -1)))
    with pytest.raises(UserError, match="there are no labels; with a teacher"):
        FactorGCN(**factor_networks()).require(data)


def test_a_student_of_classes_is_no_student_of_labels() -> None:
    data = tiny_factors()
    student: Model = dataclasses.replace(label_networks()["student"], task=tiny_graphs().task)
    with pytest.raises(UserError, match="student is for classification, and the task of these graphs is multilabel"):
        FactorGCN(student=student).require(data)
