"""RELIANT: the invariants of its bias and its two views, on a graph of a few nodes."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.settings_graphs import tiny_nodes
from tests.settings_groups import group_networks, tiny_groups
from upcycle.claims.graphs import fresh_for, trained_on
from upcycle.core import saved
from upcycle.core.errors import UserError
from upcycle.core.losses import Terms
from upcycle.core.recipe import Recipe
from upcycle.core.run import Run
from upcycle.core.store import tensor_digest
from upcycle.data.graph_sources import load_graphs
from upcycle.data.graphs import GraphSet
from upcycle.distillation import KD, RELIANT
from upcycle.distillation.reliant import PHI, bias, fairness, phi
from upcycle.surgery.constants import Constants, beside
from upcycle.surgery.widening import widened

pytest.importorskip("torch_geometric", reason="torch_geometric is not installed (extra graphs)")
REAL = Path(os.environ.get("UPCYCLE_DATA", "none")) / "graphs"
WHOLE = Recipe(epochs=4, batch_size=0, optimizer="adam", lr=0.01, schedule="constant")


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_phi_is_the_published_polynomial_and_grows() -> None:
    p = torch.linspace(0, 1, 1001, dtype=torch.float64)
    x = 2 * p - 1
    legendre = [torch.ones_like(x), x]
    for n in range(1, 9):
        legendre.append(((2 * n + 1) * x * legendre[n] - n * legendre[n - 1]) / (n + 1))
    expected = 0.5 + sum(c * legendre[n] for n, c in {1: 1 / 2, 3: -1 / 8, 5: 1 / 16, 7: -5 / 128, 9: 7 / 256}.items())
    assert torch.allclose(phi(p), expected, atol=1e-12) and len(PHI) == 10
    assert (phi(p).diff() > 0).all()
    found = phi(torch.tensor([0.0, 0.5, 1.0], dtype=torch.float64)).tolist()
    assert found == pytest.approx([0.0742, 0.5, 0.9258], abs=5e-4)


def test_bias_is_nothing_for_groups_that_are_treated_alike_and_twice_one_column_for_two_classes() -> None:
    half = torch.rand(50, 2, generator=generator(), dtype=torch.float64).softmax(1)
    s = torch.tensor([0] * 50 + [1] * 50)
    assert bias(torch.cat([half, half]), s) == 0
    p = torch.rand(100, 2, generator=generator(1), dtype=torch.float64).softmax(1)
    column = (phi(p)[:50, 0].mean() - phi(p)[50:, 0].mean()).square()
    assert torch.allclose(bias(p, s), 2 * column)
    assert torch.allclose(bias(p, 1 - s), bias(p, s))


def test_bias_looks_at_those_that_count() -> None:
    p = torch.rand(100, 2, generator=generator(1), dtype=torch.float64).softmax(1)
    s = torch.arange(100) % 2
    among = torch.arange(100) < 40
    assert torch.allclose(bias(p, s, among), bias(p[:40], s[:40]))
    other = p.clone()
    other[40:] = 0.5
    assert torch.equal(bias(other, s, among), bias(p, s, among))


def test_differences_of_groups_by_hand() -> None:
    decided = torch.tensor([1, 1, 0, 1, 0, 0])
    s = torch.tensor([0, 0, 0, 1, 1, 1])
    y = torch.tensor([1, 0, 1, 1, 1, -1])
    found = fairness(decided, s, y)
    assert found == pytest.approx({"Δ_SP": 1 / 3, "Δ_EO": 0.0, "rate of 0": 2 / 3, "rate of 1": 1 / 3})


# -- training ---------------------------------------------------------------------------------------------------------


def method(**options: Any) -> RELIANT:
    given = {"sensitive": "group", "recipe": WHOLE, **options}
    return RELIANT(**group_networks(), **given)


def fitted(data: GraphSet, directory: Path | None = None, **options: Any) -> tuple[Any, Run, RELIANT]:
    made, run = method(**options), Run(directory, seed=3, quiet=True)
    made.begin(run, data)
    return made.fit(run, data), run, made


def test_without_bias_and_proxy_it_is_distillation_bit_for_bit() -> None:
    data = tiny_groups()
    terms = Terms(temperature=2.0, w_kd=0.7, w_ce=0.3)
    plain, _, _ = fitted(data, alpha=0.0, proxy=0, terms=terms)
    same = KD(**group_networks(), terms=terms, cache="off", recipe=WHOLE).fit(Run(None, seed=3, quiet=True), data)
    assert tensor_digest(plain.state_dict()) == tensor_digest(same.state_dict())


def test_the_product_takes_the_features_as_they_are_and_comes_back_from_files(tmp_path: Path) -> None:
    data = tiny_groups()
    net, run, made = fitted(data, tmp_path / "run")
    model = made.product(net, data)
    assert isinstance(net, Constants) and net.values.shape == (2,) and model.takes == data.takes
    graphs = data.test.batch(torch.arange(len(data.test)), device=torch.device("cpu")).inputs
    saved.save(model, tmp_path / "model")
    again = saved.load(tmp_path / "model")
    assert torch.equal(again.module(graphs), net.eval()(graphs)) and not hasattr(graphs, "group")
    left = run.left["shown"]
    assert list(left) == ["Δ_SP", "Δ_EO", "rate, group 0", "rate, group 1"] == list(run.left["shown of the teacher"])
    assert left["Δ_SP"] == pytest.approx(abs(left["rate, group 0"] - left["rate, group 1"]))
    assert (tmp_path / "run" / "pictures" / "fairness.json").is_file()


@pytest.mark.parametrize("options", [{}, {"objective": "eo"}, {"transductive": True}])
def test_unseen_nodes_give_neither_attribute_nor_label(options: dict[str, Any]) -> None:
    data = tiny_groups()
    group = data.columns["group"].clone()
    group[data.test.ids] = 1 - group[data.test.ids]
    turned = dataclasses.replace(data.test, labels=1 - data.test.labels)
    other = dataclasses.replace(with_columns(data, group=group), test=turned)
    same = tensor_digest(fitted(data, **options)[0].state_dict()) == tensor_digest(
        fitted(other, **options)[0].state_dict()
    )
    assert same != bool(options.get("transductive"))


def test_the_proxy_moves_and_leaves_no_gradient_in_the_student() -> None:
    net, _, _ = fitted(tiny_groups(), alpha=10.0)
    start = torch.rand(260, 2, generator=Run(None, seed=3, quiet=True).generator("proxy")).mean(0)
    assert (net.values - start).abs().max() > 1e-4
    assert all(p.grad is None for p in net.parameters())


def test_the_bias_that_it_looks_at_falls() -> None:
    data, recipe, found = tiny_groups(), dataclasses.replace(WHOLE, epochs=60), []
    graphs = data.train.batch(torch.arange(160), device=torch.device("cpu")).inputs
    for options in ({"alpha": 0.0, "proxy": 0}, {"proxy": 0}, {}):
        net = fitted(data, recipe=recipe, **options)[0].eval()
        with torch.no_grad():
            found.append(float(bias(net(graphs).softmax(1), data.columns["group"][data.train.ids])))
    plain, alone, whole = found
    assert alone < 0.1 * plain and whole < 0.1 * plain


def test_controls_are_plain_distillation_and_the_penalty_alone() -> None:
    made = method().controls()
    assert {name: (one.method.alpha, one.method.proxy) for name, one in made.items()} == {
        "distilled": (0.0, 0),
        "no proxy": (100.0, 0),
    }
    assert not method(proxy=0).controls()


def test_a_wider_network_is_the_same_function_of_the_old_features() -> None:
    data, student = tiny_groups(), group_networks()["student"]
    wide = widened(student, 3, 0)
    graphs = data.test.batch(torch.arange(len(data.test)), device=torch.device("cpu")).inputs
    zeros = torch.zeros(len(graphs.batch), 3)
    assert torch.allclose(wide.module.eval()(beside(graphs, zeros)), student.module.eval()(graphs), atol=1e-5)
    assert not torch.allclose(wide.module(beside(graphs, zeros + 1)), student.module(graphs), atol=1e-3)


def with_columns(data: GraphSet, **columns: torch.Tensor) -> GraphSet:
    parts = {
        part: dataclasses.replace(getattr(data, part), columns=columns) for part in ("train", "validation", "test")
    }
    return dataclasses.replace(data, **parts)


def test_test_nodes_of_another_graph_bring_their_own_attribute(tmp_path: Path) -> None:
    data, other = tiny_groups(), tiny_groups(40)
    turned = dataclasses.replace(other.test, columns={"group": 1 - other.columns["group"]})
    groups = []
    for test in (other.test, turned):
        _, run, _ = fitted(dataclasses.replace(data, test=test, measured="others"))
        groups.append((run.left["shown"]["rate, group 0"], run.left["shown"]["rate, group 1"]))
    assert groups[0] == groups[1][::-1]
    bare = dataclasses.replace(data, test=dataclasses.replace(other.test, columns={}), measured="others")
    assert method().check(bare) == ["the test data others have no column 'group'; there are none"]


@pytest.mark.parametrize(
    ("data", "options", "part"),
    [
        (tiny_groups(), {"sensitive": ""}, "--sensitive has to name the attribute; the data have the columns group"),
        (tiny_groups(), {"sensitive": "grup"}, "no column 'grup'; there are group"),
        (with_columns(tiny_groups(), group=torch.arange(260)), {}, "'group' must be 0 or 1 for every node"),
        (
            with_columns(tiny_groups(), group=torch.zeros(260, dtype=torch.int64)),
            {},
            "one group of 'group' has no training nodes",
        ),
        (tiny_nodes(), {}, "features a node|need two classes"),
    ],
)
def test_what_cannot_be_compared_is_refused(data: GraphSet, options: dict[str, Any], part: str) -> None:
    with pytest.raises(UserError, match=part):
        method(**options).require(data)


def test_labels_of_unseen_nodes_are_not_to_be_had() -> None:
    with pytest.raises(UserError, match="objective eo looks at labels"):
        method(objective="eo", transductive=True)


def test_a_bare_student_cannot_be_widened() -> None:
    networks = group_networks()
    networks["student"] = dataclasses.replace(networks["student"], reference=None)
    with pytest.raises(UserError, match="is a bare module, which cannot be built again with 2 features more"):
        RELIANT(**networks, sensitive="group").require(tiny_groups())


@pytest.mark.slow
@pytest.mark.skipif(not REAL.is_dir(), reason="UPCYCLE_DATA is not set, so real graphs are not at hand")
def test_persons_of_two_groups_are_decided_on_more_alike() -> None:
    """On average of two splits: on a single one plain distillation may happen to be fair."""
    recipe, found = dataclasses.replace(WHOLE, epochs=60), {"plain": 0.0, "fair": 0.0}
    for seed in (11, 12):
        data = load_graphs("credit", split=seed)
        teacher = trained_on("zoo:gcn_3_64", data, seed, recipe, balanced=True)
        for name, options in {"plain": {"alpha": 0.0, "proxy": 0}, "fair": {}}.items():
            student = fresh_for("zoo:gcn_2_16", data, seed)
            made = RELIANT(teacher=teacher, student=student, sensitive="Age", balanced=True, recipe=recipe, **options)  # type: ignore[arg-type]
            run = Run(None, seed=seed, quiet=True)
            made.require(data)
            made.fit(run, data)
            found[name] += run.left["shown"]["Δ_SP"] / 2
    assert found["fair"] < 0.7 * found["plain"]
