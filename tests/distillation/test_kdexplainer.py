"""KDExplainer and its tree of experts: the invariants of their card."""

from __future__ import annotations

import copy
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import upcycle
from tests.settings import seen, tiny_data, tiny_model, tiny_net, tiny_tree
from upcycle.core import references, saved
from upcycle.core.errors import UserError
from upcycle.core.losses import Terms, kd_objective
from upcycle.core.recipe import Recipe
from upcycle.core.run import Run
from upcycle.core.store import tensor_digest
from upcycle.distillation import KDExplainer
from upcycle.distillation.kdexplainer import entropy, soft_factors, tree_of
from upcycle.measure.export import write_export
from upcycle.zoo.tree import Tree, routing

SHORT = Recipe(epochs=1, batch_size=32, lr=0.05)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def deep(seed: int = 0) -> Tree:
    """Three levels, with BatchNorm statistics that are not those of a fresh network."""
    torch.manual_seed(seed)
    tree = Tree((2, 3, 4), (4, 6, 5), 7, (3, 16, 16), width=8, hidden=8)
    tree(torch.randn(32, 3, 16, 16))
    return tree.eval()


X = torch.randn(6, 3, 16, 16, generator=generator(1))


# -- routing ----------------------------------------------------------------------------------------------------


def test_rows_sum_to_one_and_entropy_lies_between_nought_and_log_p() -> None:
    S = torch.rand(9, 4, generator=generator())
    for t in (10.0, 1.0, 0.1, 0.01):
        A = routing(S, t)
        assert torch.allclose(A.sum(1), torch.ones(9)) and (A >= 0).all()
        assert 0 <= float(entropy(A)) <= math.log(4) + 1e-6
    assert float(entropy(torch.full((3, 4), 0.25))) == pytest.approx(math.log(4))
    assert float(entropy(torch.eye(4))) == 0.0


def test_the_formula_of_the_paper_where_it_does_not_underflow() -> None:
    S, t = torch.rand(5, 4, generator=generator(), dtype=torch.float64), 0.3
    pi = torch.softmax(S / 0.5, 1)
    powers = pi ** (1 / t)
    assert torch.allclose(routing(S, t), powers / powers.sum(1, keepdim=True), rtol=1e-12)
    assert torch.allclose(routing(S, 1.0), pi, rtol=1e-12)


def test_hot_is_uniform_and_cold_is_the_argmax() -> None:
    S = torch.rand(9, 4, generator=generator())
    assert torch.allclose(routing(S, 1e6), torch.full((9, 4), 0.25), atol=1e-5)
    for t in (1e-4, 1e-12, 1e-30):
        assert torch.equal(routing(S, t), F.one_hot(S.argmax(1), 4).float())
    S.requires_grad_()
    (gradient,) = torch.autograd.grad((routing(S, 10 / 300) * torch.randn(9, 4)).sum(), S)
    assert gradient.isfinite().all() and gradient.abs().sum() > 0


# -- the network ------------------------------------------------------------------------------------------------


def block_by_block(tree: Tree, x: Tensor) -> Tensor:
    """The forward as the paper draws it: every block a module of its own, every sum written out."""
    outputs: list[Tensor] = []
    for i, level in enumerate(tree.levels):
        n = tree.branching[i].shape[1]
        hears = [x] * n
        if i:
            A = routing(tree.branching[i - 1], tree.t)
            hears = [sum(A[c, p] * outputs[p] for p in range(A.shape[1])) for c in range(n)]  # type: ignore[misc]
        outputs = []
        for c, z in enumerate(hears):
            for conv, norm in ((level[0], level[1]), (level[3], level[4])):
                own = slice(c * conv.out_channels // n, (c + 1) * conv.out_channels // n)
                z = F.conv2d(z, conv.weight[own], padding=1)
                z = F.relu(F.batch_norm(z, norm.running_mean[own], norm.running_var[own], norm.weight[own],
                                        norm.bias[own]))  # fmt: skip
            outputs.append(F.max_pool2d(z, 2))
    A, logits = routing(tree.branching[-1], tree.t), []
    for k in range(A.shape[0]):
        z = sum(A[k, p] * outputs[p] for p in range(A.shape[1])).flatten(1)  # type: ignore[union-attr]
        for layer in tree.heads:
            if not isinstance(layer, nn.ReLU | nn.Dropout):
                z = z @ layer.weight[k] + layer.bias[k]
                z = z if z.shape[1] == 1 else F.relu(z)
        logits.append(z[:, 0])
    return torch.stack(logits, 1)


@pytest.mark.parametrize("hard", [False, True])
def test_grouped_blocks_are_the_blocks_one_by_one(hard: bool) -> None:
    tree = deep().double()
    tree.t.fill_(0.4)
    if hard:
        tree.harden()
    assert torch.allclose(tree(X.double()), block_by_block(tree, X.double()), atol=1e-12)


def test_a_class_depends_on_the_blocks_of_its_own_path_only() -> None:
    tree = deep()
    tree.harden()
    paths = torch.tensor(tree_of(tree))
    before = tree(X)
    for level, block in ((0, 1), (1, 2), (2, int(paths[2, 0]))):
        changed = copy.deepcopy(tree)
        width = changed.levels[level][3].out_channels // changed.branching[level].shape[1]
        with torch.no_grad():
            changed.levels[level][4].bias[block * width : (block + 1) * width] += 1.0
        differs = (changed(X) != before).any(0)
        assert torch.equal(differs, paths[level] == block)


@pytest.mark.parametrize("level", [0, 1, 2])
def test_permuting_parents_with_their_columns_changes_nothing(level: int) -> None:
    tree = deep()
    before, n = tree(X), tree.branching[level].shape[1]
    order = torch.randperm(n, generator=generator(3))
    with torch.no_grad():
        for m in tree.levels[level]:
            for value in (*m.parameters(), *m.buffers()):
                if value.dim():
                    value.copy_(value.unflatten(0, (n, -1))[order].flatten(0, 1))
        tree.branching[level].copy_(tree.branching[level][:, order])
        if level:
            tree.branching[level - 1].copy_(tree.branching[level - 1][order])
    assert torch.allclose(tree(X), before, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_hard_tree_routes_by_exact_ones(dtype: torch.dtype) -> None:
    tree = deep().to(dtype)
    tree.t.fill_(10.0)
    at, parents = tree_of(tree), [S.argmax(1) for S in tree.branching]
    tree.harden()
    for S, parent in zip(tree.branching, parents, strict=True):
        assert torch.equal(routing(S, tree.t), F.one_hot(parent, S.shape[1]).to(dtype))
        (gradient,) = torch.autograd.grad((routing(S, tree.t) * torch.randn_like(S)).sum(), S)
        assert not gradient.any()
    state = tensor_digest(tree.state_dict())
    tree.harden()
    assert tree_of(tree) == at and tensor_digest(tree.state_dict()) == state


def test_the_tree_is_plain_data() -> None:
    tree = Tree((2, 3), (2, 2), 4, (1, 8, 8), width=2, hidden=2)
    with torch.no_grad():
        tree.branching[0].copy_(torch.tensor([[0.9, 0.1], [0.2, 0.3], [0.5, 0.1]]))  # 0, 1, 0
        tree.branching[1].copy_(torch.eye(4, 3) + torch.eye(4, 3).flip(0) * 0.5)  # 0, 1, 2, 0
    assert tree_of(tree) == [[0, 1, 0, 0], [0, 1, 2, 0]]
    with pytest.raises(UserError, match="TinyNet has no branching matrices"):
        tree_of(tiny_net())


@pytest.mark.parametrize(("shape", "inputs"), [((3, 32, 32), 4 * 4), ((1, 28, 28), 3 * 3), ((1, 8, 8), 1)])
def test_a_small_map_is_not_enlarged_before_the_heads(shape: tuple[int, int, int], inputs: int) -> None:
    tree = Tree((2, 2, 2), (2, 2, 3), 4, shape, width=2, hidden=2)
    assert tree.heads[0].weight.shape == (4, 3 * inputs, 2)  # type: ignore[union-attr]
    assert tree(torch.zeros(2, *shape)).shape == (2, 4)
    assert Tree((2,), (3,), 4, (1, 30, 34), width=2, hidden=2)(torch.zeros(2, 1, 30, 34)).shape == (2, 4)


def test_the_zoo_has_both_and_refuses_images_too_small() -> None:
    tree = references.resolve("zoo:tree", pretrained=False).module
    assert [tuple(S.shape) for S in tree.branching] == [(4, 2), (8, 4), (10, 8)]  # type: ignore[union-attr]
    widths = [m.out_channels for m in tree.modules() if isinstance(m, nn.Conv2d)]
    assert widths == [128, 128, 256, 256, 512, 256]
    small = references.resolve("zoo:tree_small", pretrained=False, input_shape=(1, 28, 28)).module
    assert [m.out_channels for m in small.modules() if isinstance(m, nn.Conv2d)] == [32, 32, 64, 32]
    with pytest.raises(UserError, match="at least 8 x 8 pixels"):
        references.resolve("zoo:tree", pretrained=False, input_shape=(1, 4, 4))


def test_a_hard_tree_comes_back_from_its_files_and_is_exported(tmp_path: Path) -> None:
    model = references.resolve("zoo:tree_small", pretrained=False, input_shape=(1, 8, 8))
    seen(model).module.harden()  # type: ignore[operator]
    x = model.example(4)
    saved.save(model, tmp_path / "model")
    back = saved.load(tmp_path / "model").module.eval()
    assert tree_of(back) == tree_of(model.module) and torch.equal(back(x), model.module.eval()(x))
    assert write_export(model, tmp_path / "tree.pt2", "torch") <= 1e-4


# -- the method -------------------------------------------------------------------------------------------------


def test_the_published_schedule() -> None:
    found = [soft_factors(e, 300) for e in (1, 2, 3, 4, 5, 6, 7, 299, 300)]
    later = [1 - (e - 1) / (1.03093 * 300) for e in (5, 5, 7, 299, 299)]
    assert found == [(0.25, 0.0), (0.5, 0.0), (1.0, 1.0), (1.0, 1.0), *((f, f) for f in later)]
    assert all(f > 0 for e in range(3, 13) for f in soft_factors(e, 12))


def method(**options: Any) -> KDExplainer:
    roles = {"teacher": seen(tiny_model("teacher", 7)), "student": tiny_tree(3)}
    return KDExplainer(**(roles | {"recipe": SHORT, "epochs_soft": 3} | options))


def test_the_objective_is_that_of_kd_and_smoothing_that_of_torch() -> None:
    made, data = method(), tiny_data()
    batch = data.train.batch(torch.arange(20), device=torch.device("cpu"))
    tree, teacher = made.student.module.eval(), made.teacher.module.eval()  # type: ignore[union-attr]
    z_s, z_t, y = tree(batch.images), teacher(batch.images), batch.labels
    for w_kd, w_ce in ((0.9, 0.1), (0.0, 1.0), (1.0, 0.0)):
        made.terms = Terms(w_kd=w_kd, w_ce=w_ce)
        expected = kd_objective(z_s, z_t, y, temperature=4.0, w_kd=w_kd, w_ce=w_ce)
        torch.testing.assert_close(made._loss(tree, teacher, batch), expected)
    made.terms, made.smoothing = Terms(w_kd=0.0, w_ce=1.0), 0.1
    torch.testing.assert_close(made._loss(tree, teacher, batch), F.cross_entropy(z_s, y, label_smoothing=0.1))
    half = batch._replace(labels=y.masked_fill(torch.arange(20) % 2 == 0, -1))
    made.smoothing = 0.0
    torch.testing.assert_close(made._loss(tree, teacher, half), F.cross_entropy(z_s[1::2], y[1::2]) / 2)


class Spy(KDExplainer):
    """Keeps what stage 1 found, or makes stage 2 start from something else."""

    found: dict[str, Any]
    given: list[Tensor] | None = None

    def _soft(self, run: Run, data: Any, teacher: Any, tree: Tree) -> dict[str, Any]:
        self.found = super()._soft(run, data, teacher, tree)
        self.weights = {name: p.detach().clone() for name, p in tree.named_parameters()}
        if self.given is not None:
            self.found["branching"] = self.given
        return self.found


def spy(seed: int = 3, **options: Any) -> Spy:
    roles = {"teacher": seen(tiny_model("teacher", 7)), "student": tiny_tree(seed)}
    return Spy(**(roles | {"recipe": SHORT, "epochs_soft": 3} | options))


def test_stage_two_keeps_the_argmax_of_stage_one_and_draws_the_rest_anew() -> None:
    made = spy(recipe=Recipe(epochs=1, batch_size=32, lr=1e-12, weight_decay=0.0))
    tree = made.fit(Run(None, precision="32-true"), tiny_data())
    assert isinstance(tree, Tree)
    for S, soft in zip(tree.branching, made.found["branching"], strict=True):
        expected = F.one_hot(soft.argmax(1), S.shape[1]).float()
        assert torch.equal(routing(S, tree.t), expected)
        assert torch.equal(S.detach(), 1000 * expected), "a branching matrix moved in stage 2"
    start = dict(made.student.module.named_parameters())  # type: ignore[union-attr]
    assert start.keys() == made.weights.keys()
    for name, p in tree.named_parameters():
        if p.dim() > 2:  # the learning rate is nought: what is there is the fresh draw
            first = dict(tiny_tree(3).module.named_parameters())[name]
            assert not torch.allclose(p, made.weights[name]) and not torch.allclose(p, first), name


def test_stage_two_remembers_nothing_but_the_tree() -> None:
    given = [torch.rand(*S.shape, generator=generator(5)) for S in tiny_tree(3).module.branching]  # type: ignore[union-attr]
    digests, soft = [], []
    for seed in (3, 4):  # other weights to begin with
        made = spy(seed)
        made.given = [S.clone() for S in given]
        digests.append(tensor_digest(made.fit(Run(None, seed=1), tiny_data()).state_dict()))
        soft.append(tensor_digest(made.weights))
    assert soft[0] != soft[1]
    assert digests[0] == digests[1]


def test_branching_matrices_learn_from_the_third_epoch_and_entropy_is_logged(tmp_path: Path) -> None:
    made = spy(epochs_soft=4, tau=6.0)
    run = Run(tmp_path)
    tree = made.fit(run, tiny_data())
    run.close()
    pi, a = made.found["entropies"].unbind(1)
    start = [float(entropy(routing(S.detach(), 1.0))) for S in tiny_tree(3).module.branching]  # type: ignore[union-attr]
    for epoch, moved in ((0, False), (1, False), (2, True), (3, True)):
        assert (not torch.allclose(pi[epoch], torch.tensor(start))) == moved, epoch
    S = made.found["branching"]
    assert float(a[3, 1]) == pytest.approx(float(entropy(routing(S[1], 6.0 / 4))), abs=1e-6)
    rows = [line.split(",") for line in (tmp_path / "metrics.csv").read_text().splitlines()]
    logged = [float(r[4]) for r in rows if r[3] == "entropy_pi_2"]
    assert logged == pytest.approx(pi[:, 1].tolist(), abs=1e-6)
    picture = json.loads((tmp_path / "pictures" / "1-tree.json").read_text())
    assert [[b - 1 for b in path] for path in picture["paths"]] == [list(p) for p in zip(*tree_of(tree), strict=True)]
    assert picture["leaves"] == list("0123456789")
    heat = json.loads((tmp_path / "pictures" / "2-branching-2.json").read_text())
    assert len(heat["rows"]) == 10 and torch.allclose(torch.tensor(heat["values"]), routing(S[1], 1.0), atol=1e-6)
    assert (tmp_path / "pictures" / "3-entropy-A.json").exists()


def test_what_stops_it_is_said_before_any_work() -> None:
    data = tiny_data()
    with pytest.raises(UserError, match="the student is a TinyNet: give --student zoo:tree"):
        method(student=tiny_model("student", 1)).require(data)
    with pytest.raises(UserError, match=r"--terms\.w_ce 0 learns from the teacher alone"):
        method().require(data.hide_labels(0, 0))
    method(terms=Terms(w_ce=0.0, w_kd=1.0)).require(data.hide_labels(0, 0))
    small = tiny_tree(1)
    small.module = Tree((2,), (2,), 3, (1, 8, 8), width=2, hidden=2)
    small.classes = ("0", "1", "2")
    with pytest.raises(UserError, match="the teacher has 10 classes and the student 3"):
        method(student=small).require(data)


@pytest.mark.parametrize("wrong", [
    {"smoothing": 1.0}, {"epochs_soft": 2},
    {"lr_soft": 0.0}, {"lr_branching": float("nan")}, {"tau": float("inf")},
])  # fmt: skip
def test_wrong_options_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(UserError, match=next(iter(wrong))):
        method(**wrong)


def test_the_number_of_updates_is_that_of_both_stages() -> None:
    made = method(epochs_soft=5, recipe=Recipe(epochs=2, batch_size=32))
    assert made.steps(100) == (5 + 2) * 4


@pytest.mark.parametrize("arm", [{}, {"terms": Terms(w_kd=0.0, w_ce=1.0)}])
def test_the_whole_command_on_digits(tmp_path: Path, arm: dict[str, Any]) -> None:
    result = upcycle.distill(teacher="zoo:digits_teacher", student="zoo:tree_small", method="kdexplainer",
                             data="digits", out=tmp_path / "run", epochs_soft=4, quiet=True,
                             recipe=Recipe(epochs=6, batch_size=64, lr=0.05, schedule="step", milestones=(3, 5)),
                             **arm)  # fmt: skip
    assert result.rows[-1]["accuracy"][0] > 0.8
    back = saved.load(tmp_path / "run" / "model").module
    paths = tree_of(back)
    assert len(paths) == 2 and all(len(p) == 10 for p in paths)
    page = (tmp_path / "run" / "report.html").read_text()
    assert "Which classes share which expert" in page and "Entropy of pi" in page and "cannot be drawn" not in page
