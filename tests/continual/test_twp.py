"""TWP: its importance and its attention, the form of EWC that it comes to, and what it refuses."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.settings_streams import CLASSES, FEATURES, convolutions, gat, graph_stream, plain_net, student
from tests.stops import Killed, StopsAfter
from upcycle.continual.baselines import Finetune
from upcycle.continual.twp import TWP, importance, merge
from upcycle.core.edge_attention import FirstAttention, virtual_attention
from upcycle.core.errors import UserError
from upcycle.core.graph_inputs import Graphs, sorted_by_target, table
from upcycle.core.recipe import Recipe
from upcycle.core.run import Run
from upcycle.core.store import tensor_digest
from upcycle.data.streams import Stream

pytest.importorskip("torch_geometric")

ADAM = Recipe(epochs=6, batch_size=0, optimizer="adam", lr=0.02, schedule="constant")
SGD = Recipe(epochs=4, batch_size=0, lr=0.1, momentum=0.0, schedule="constant")


def nodes(n: int = 60, scenario: Any = "task") -> Stream:
    return graph_stream("node", scenario)(n)


def ran(method: Any, data: Stream | None = None, precision: Any = "32-true") -> tuple[nn.Module, Run]:
    run = Run(None, seed=1, precision=precision)
    return method.fit(run, data or nodes()), run


def same(a: nn.Module, b: nn.Module) -> bool:
    theirs = b.state_dict()
    return all(torch.equal(v, theirs[k]) for k, v in a.state_dict().items())


def loss_of(net: nn.Module, data: Stream, t: int) -> Tensor:
    """The mean loss over the training nodes of a task, among its outputs."""
    split, columns = data.task(t).train, data.tasks[t]
    graphs, labels, _ = split.batch(torch.arange(len(split)), device=torch.device("cpu"))
    z = net(graphs.to(next(net.parameters())))[:, columns[0] : columns[-1] + 1]
    return F.cross_entropy(z, labels - columns[0], reduction="sum") / len(labels)


class Watched(Run):
    """A run that remembers the weights after each step."""

    def update(self, optimizer: torch.optim.Optimizer, clip: float | None = None) -> None:
        super().update(optimizer, clip)
        now = [p.detach().clone() for group in optimizer.param_groups for p in group["params"]]
        self.steps = [*getattr(self, "steps", []), now]


def ewc(data: Stream, lam: float, precision: torch.dtype, *, apart: bool = False) -> list[list[Tensor]]:
    """Elastic weight consolidation with squares of mean gradients, one Adam throughout: the weights after each step.

    Args:
        apart: an anchor for each task, as the card has it, in place of one for all.
    """
    net = gat()["student"].module.to(precision).train()
    weights, steps = list(net.parameters()), []
    adam = torch.optim.Adam(weights, lr=ADAM.lr, weight_decay=ADAM.weight_decay, fused=True)
    kept = [([torch.zeros_like(p) for p in weights], [torch.zeros_like(p) for p in weights])]
    for t in range(len(data)):
        for _ in range(ADAM.epochs):
            adam.zero_grad()
            loss_of(net, data, t).backward()
            for total, anchor in kept:
                for p, o, a in zip(weights, total, anchor, strict=True):
                    assert p.grad is not None
                    p.grad.addcmul_(o, p.detach() - a, value=2)
            adam.step()
            steps.append([p.detach().clone() for p in weights])
        new = [lam * g.square() for g in torch.autograd.grad(loss_of(net, data, t), weights)]
        if apart:
            kept.append((new, steps[-1]))
        else:
            kept = [merge(*kept[0], new, steps[-1])]
    return steps


def test_without_lambda_t_it_is_ewc_bit_for_bit_after_each_step() -> None:
    run = Watched(None, seed=1, precision="32-true")
    TWP(**gat(), lambda_l=100.0, lambda_t=0.0, recipe=ADAM).fit(run, nodes())
    expected = ewc(nodes(), 100.0, torch.float32)
    assert len(run.steps) == len(expected) == 3 * ADAM.epochs
    for step, (ours, theirs) in enumerate(zip(run.steps, expected, strict=True)):
        assert all(map(torch.equal, ours, theirs)), step
    other = Watched(None, seed=1, precision="32-true")
    TWP(**gat(), lambda_l=100.0, lambda_t=100.0, recipe=ADAM).fit(other, nodes())
    assert not all(map(torch.equal, other.steps[-1], run.steps[-1]))


def test_one_anchor_for_all_tasks_pulls_as_one_for_each() -> None:
    run = Watched(None, seed=1, precision="64-true")
    TWP(**gat(), lambda_l=100.0, lambda_t=0.0, recipe=ADAM).fit(run, nodes())
    for ours, theirs in zip(run.steps, ewc(nodes(), 100.0, torch.float64, apart=True), strict=True):
        for a, b in zip(ours, theirs, strict=True):
            assert torch.allclose(a, b, rtol=0, atol=1e-9)


def test_without_weights_it_is_fine_tuning() -> None:
    plain, _ = ran(Finetune(**gat(), recipe=SGD))
    assert same(ran(TWP(**gat(), lambda_l=0.0, lambda_t=0.0, recipe=SGD))[0], plain)
    assert not same(ran(TWP(**gat(), lambda_l=1.0, lambda_t=1.0, recipe=SGD))[0], plain)
    twice = dataclasses.replace(SGD, lr=2 * SGD.lr, weight_decay=SGD.weight_decay / 2)
    halved = ran(TWP(**gat(), lambda_l=0.0, lambda_t=0.0, accumulate=True, recipe=SGD))[0]
    expected = ran(TWP(**gat(), lambda_l=0.0, lambda_t=0.0, recipe=twice))[0]
    for a, b in zip(halved.parameters(), expected.parameters(), strict=True):
        assert torch.allclose(a, b, atol=1e-5)  # twice the loss is twice the rate


def test_the_optimiser_goes_on_over_the_tasks() -> None:
    free = {"lambda_l": 0.0, "lambda_t": 0.0}
    kept, run = ran(TWP(**gat(), **free, recipe=ADAM))
    assert not same(kept, ran(Finetune(**gat(), recipe=ADAM))[0])  # which begins anew in each
    state = run.left["kept"].state["optimizer"]
    assert set(state) == {name for name, _ in kept.named_parameters()}
    assert {float(one["step"]) for one in state.values()} == {3.0 * ADAM.epochs}
    longer = dataclasses.replace(ADAM, epochs=3 * ADAM.epochs)
    one = graph_stream("node", "task", "1")(60)
    assert len(one) == 1
    assert same(ran(TWP(**gat(), **free, recipe=longer), one)[0], ran(Finetune(**gat(), recipe=longer), one)[0])


# -- importance ---------------------------------------------------------------------------------------------------


def test_importance_is_of_both_gradients_and_what_is_kept_rests() -> None:
    data = nodes()
    first = dataclasses.replace(data, tasks=data.tasks[:1])
    net, run = ran(TWP(**gat(), lambda_l=3.0, lambda_t=5.0, recipe=ADAM), first, "64-true")
    kept = run.left["kept"].state["beside"]
    net = net.double()
    names, weights = zip(*net.named_parameters(), strict=True)
    g_l = torch.autograd.grad(loss_of(net, data, 0), weights)
    split = data.task(0).train
    with FirstAttention(net) as seen:
        net(split.batch(torch.arange(2), device=torch.device("cpu")).inputs.double())
    s = seen.attention()[0].norm()
    g_s = torch.autograd.grad(s, weights, allow_unused=True)
    for name, l_, s_, p in zip(names, g_l, g_s, weights, strict=True):
        expected = 3 * l_.square() + (0 if s_ is None else 5 * s_.square())
        assert torch.allclose(kept["importance"][name], expected, rtol=1e-6, atol=1e-18), name
        assert (kept["importance"][name] >= 0).all() and not kept["importance"][name].requires_grad
        where = kept["importance"][name] > 0
        assert torch.equal(kept["anchor"][name][where], p.detach()[where]), name  # no pull right after the task
        assert (s_ is None or not s_.any()) == ("conv1.lin" not in name and "conv1.att" not in name), name


def test_the_form_of_the_authors_code_squares_the_sum() -> None:
    g_l, g_s = [torch.tensor([1.0, -2.0])], [torch.tensor([3.0, 2.0])]
    assert importance(g_l, g_s, 2.0, 10.0)[0].tolist() == [92.0, 48.0]
    assert importance(g_l, g_s, 2.0, 10.0, accumulate=True)[0].tolist() == [162.0, 8.0]


def test_gradients_over_batches_are_those_of_all_graphs() -> None:
    """With BatchNorm in evaluation mode, in which no graph feels the others of its batch."""
    data, method = graph_stream("graph")(40), {"lambda_l": 1.0, "lambda_t": 1.0}
    found = []
    for size in (0, 8):
        made = TWP(**convolutions("graph"), **method, recipe=dataclasses.replace(ADAM, batch_size=size))
        run, net = Run(None, seed=1, precision="64-true"), made.model("student", data).module.double()
        for m in net.modules():
            if isinstance(m, nn.BatchNorm1d):
                m.register_forward_pre_hook(lambda m, x: setattr(m, "training", False))
        found.append([g for both in made.gradients(run, net, data, 0) for g in both])
    assert all(torch.allclose(a, b, rtol=1e-9, atol=1e-15) for a, b in zip(*found, strict=True))
    assert sum(float(g.abs().sum()) for g in found[0]) > 0


def test_looking_at_importance_leaves_batchnorm_as_it_was() -> None:
    data, made = nodes(), TWP(**convolutions("node"), recipe=ADAM)
    net = made.model("student", data).module
    before = {k: v.clone() for k, v in net.state_dict().items()}
    made.gradients(Run(None, seed=1, precision="32-true"), net, data, 0)
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())
    assert not any(m._forward_pre_hooks for m in net.modules())


def test_dropout_draws_by_the_seed_of_the_run() -> None:
    data = nodes()
    made = TWP(**gat(p=0.5), recipe=ADAM)
    net = made.model("student", data).module
    a, b, c = (
        torch.cat([g.flatten() for g in made.gradients(Run(None, seed=s, precision="32-true"), net, data, 0)[0]])
        for s in (1, 1, 2)
    )
    assert torch.equal(a, b) and not torch.equal(b, c)


# -- attention ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("networks", [gat, lambda: gat(p=0.5), lambda: convolutions("node")])
def test_attention_sums_to_one_at_each_node_and_changes_no_answer(networks: Any) -> None:
    net, split = networks()["student"].module, nodes().task(0).train
    graphs = split.batch(torch.arange(len(split)), device=torch.device("cpu")).inputs
    torch.manual_seed(0)
    plain = net.train()(graphs)
    torch.manual_seed(0)
    with FirstAttention(net) as first:
        seen = net(graphs)
    e, (source, target) = first.attention()
    assert torch.equal(seen, plain)
    n = len(graphs.batch)
    sums = torch.zeros(n, e.shape[1]).index_add(0, target, e)
    assert torch.allclose(sums, torch.ones_like(sums), atol=1e-5)
    loops = source == target
    assert int(loops.sum()) == n and len(e) == graphs.edge_index.shape[1] + n
    assert e.shape[1] == (2 if "GAT" in type(net.network).__name__ else 1)
    alone = torch.bincount(target, minlength=n) == 1
    assert alone.any() and torch.allclose(e[loops][alone[source[loops]]], torch.ones(()), atol=1e-6)


def test_virtual_attention_is_its_formula_and_takes_sparse_features() -> None:
    torch.manual_seed(0)
    x, W = torch.randn(4, 3), torch.randn(5, 3, requires_grad=True)
    edge_index, _ = sorted_by_target(torch.tensor([[0, 1, 2, 0, 3], [1, 0, 1, 2, 3]]))
    e, (source, target) = virtual_attention(x, W, edge_index)
    h, expected = x @ W.T, torch.zeros(4, 4)
    scores = F.leaky_relu(h @ h.tanh().T, 0.2)  # of j for i
    for i in range(4):
        near = sorted({i, *edge_index[0][edge_index[1] == i].tolist()})
        expected[near, i] = scores[near, i].softmax(0)
    assert torch.allclose(e[:, 0], expected[source, target], atol=1e-6) and len(e) == 8
    sparse, _ = virtual_attention(table(x), W, edge_index)
    assert torch.allclose(sparse, e, atol=1e-6)
    assert float(torch.autograd.grad(sparse.norm(), W)[0].abs().sum()) > 0


def test_a_network_that_projects_before_it_passes_messages_is_held_there() -> None:
    """Its first layer of message passing has no weights of its own."""
    from torch_geometric.nn import SimpleConv

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.conv, self.last = nn.Linear(FEATURES, 5), SimpleConv("mean"), nn.Linear(5, len(CLASSES))

        def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
            return self.last(self.conv(self.first(x), edge_index).relu())

    torch.manual_seed(0)
    method = TWP(student=student(Net(), "node"), lambda_l=0.0, recipe=ADAM)
    assert method.check(nodes()) == []
    kept = ran(method)[1].left["kept"].state["beside"]["importance"]
    assert {name for name, value in kept.items() if value.any()} == {"network.first.weight", "network.first.bias"}


# -- the exact form of β ------------------------------------------------------------------------------------------


def test_the_term_of_beta_has_the_gradient_of_finite_differences() -> None:
    """On a graph of three nodes, in float64."""
    from upcycle.continual.twp import sparsity

    torch.manual_seed(0)
    edge_index, _ = sorted_by_target(torch.tensor([[0, 1, 1, 2], [1, 0, 2, 1]]))
    x = torch.randn(3, FEATURES, dtype=torch.float64)
    graphs = Graphs(x, edge_index, torch.zeros(3, dtype=torch.long), n=1, at=torch.arange(3))
    net, run = gat()["student"].module.double(), Run(None, precision="64-true")
    weights, y = tuple(net.parameters()), torch.tensor([0, 1, 2])

    def term() -> Tensor:
        return sparsity(run, F.cross_entropy(net(graphs), y), weights)

    for p, g in zip(weights, torch.autograd.grad(term(), weights, allow_unused=True), strict=True):
        flat, found = p.detach().view(-1), torch.zeros(p.numel(), dtype=torch.float64)
        for i in range(0, p.numel(), 5):
            old, values = flat[i].item(), []
            for step in (1e-6, -1e-6):
                flat[i] = old + step
                values.append(term().item())
            flat[i] = old
            found[i] = (values[0] - values[1]) / 2e-6
            assert float(found[i]) == pytest.approx(0.0 if g is None else float(g.view(-1)[i]), abs=1e-4)


def test_beta_runs_on_sparse_features() -> None:
    data = nodes()
    sparse = dataclasses.replace(data.base.train.graph, x=table(data.base.train.graph.x))

    def of(split: Any) -> Any:
        return dataclasses.replace(split, graph=sparse, placed={})

    base = dataclasses.replace(data.base, **{k: of(v) for k, v in data.base.splits().items()})
    make = data.make
    there = dataclasses.replace(
        data,
        base=base,
        make=lambda t: dataclasses.replace(make(t), **{k: of(v) for k, v in make(t).splits().items()}),
    )
    options = {"beta": 0.1, "lambda_l": 1.0, "lambda_t": 1.0, "recipe": SGD}
    a, b = (ran(TWP(**gat(), **options), one, "64-true")[0] for one in (data, there))
    for p, q in zip(a.parameters(), b.parameters(), strict=True):
        assert torch.allclose(p, q, atol=1e-5)


# -- streams ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("share", [0.15, 0.34, 0.5, 0.67, 0.9])
def test_killed_within_and_between_tasks_it_comes_to_the_same_bits(share: float, tmp_path: Path) -> None:
    def fit(run: Run) -> str:
        method, data = TWP(**gat(p=0.3), recipe=ADAM), nodes()
        method.begin(run, data)
        made = tensor_digest(method.fit(run, data).state_dict())
        run.close()
        return made

    whole = StopsAfter(tmp_path / "whole", seed=4, save_every=0)
    expected = fit(whole)
    run = StopsAfter(tmp_path / "cut", seed=4, save_every=0)
    run.due = max(1, int(share * whole.done))
    with pytest.raises(Killed):
        fit(run)
    assert fit(Run(tmp_path / "cut", seed=4, save_every=0, resume=True)) == expected


def test_a_second_stream_goes_on_with_what_was_kept() -> None:
    """A network that ends in a linear layer grows; moments and importances of new outputs begin at zero."""
    data = nodes()
    first = graph_stream("node", "task", "2,4")(60)
    first = dataclasses.replace(first, tasks=first.tasks[:1], classes=first.classes)
    made, run = ran(TWP(**convolutions("node"), recipe=ADAM), first)
    past = run.left["kept"]
    again = TWP(student=dataclasses.replace(convolutions("node")["student"], module=made), past=past, recipe=ADAM)
    _, after = ran(again, dataclasses.replace(data, tasks=data.tasks[1:], make=lambda t: data.make(t + 1)))
    steps = {float(one["step"]) for one in after.left["kept"].state["optimizer"].values()}
    assert steps == {3.0 * ADAM.epochs} and len(after.left["kept"].tasks) == 3


@pytest.mark.parametrize(
    ("made", "says"),
    [
        (lambda: TWP(**plain_net("node")), "TinyGraphNet has no layer of message passing.*--lambda_t 0"),
        (lambda: TWP(**gat(), lambda_t=-1.0), "lambda_t must not be negative"),
        (lambda: TWP(**gat(), beta=-1.0), "beta must not be negative"),
    ],
)
def test_what_cannot_be_is_refused(made: Any, says: str) -> None:
    with pytest.raises(UserError, match=says):
        made().require(nodes())
    TWP(**plain_net("node"), lambda_t=0.0).require(nodes())


def test_a_network_that_does_not_end_in_a_linear_layer_must_have_all_classes() -> None:
    fewer = dataclasses.replace(gat()["student"], classes=tuple("abcdef"))
    assert TWP(**gat()).check(nodes()) == []
    assert "does not end in a linear layer" in TWP(student=fewer).check(nodes())[0]


def test_importance_beyond_all_numbers_is_said() -> None:
    with pytest.raises(UserError, match=r"not a finite number; lower lambda_l \(10000\) or lambda_t \(1e\+308\)"):
        importance([torch.ones(2)], [torch.ones(2)], 1e4, 1e308)
