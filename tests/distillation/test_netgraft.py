"""NetGraft: the invariants of its card, on two small networks and digits."""

from __future__ import annotations

import copy
import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, fx, nn

from tests.settings import tiny_data
from upcycle.core.cut import cut
from upcycle.core.errors import UserError
from upcycle.core.frozen import Frozen
from upcycle.core.models import Model
from upcycle.core.run import Run
from upcycle.distillation.grafting.adapters import WrappedBlock, adapter, merge_map
from upcycle.distillation.grafting.blocks import frozen_blocks
from upcycle.distillation.netgraft import NetGraft, normalised_logit_loss

CUTS = ("block1", "block2", "block3")


class Net(nn.Module):
    """Three blocks, each ending in ReLU and perhaps pooling, then a head; 8x8 grey."""

    def __init__(self, *widths: int, pool: bool = True, classes: int = 10) -> None:
        super().__init__()
        a, b, c = widths
        halve = nn.AvgPool2d(2) if pool else nn.Identity()
        self.block1 = nn.Sequential(nn.Conv2d(1, a, 3, padding=1), nn.BatchNorm2d(a), nn.ReLU(inplace=True))
        self.block2 = nn.Sequential(nn.Conv2d(a, b, 3, padding=1), nn.BatchNorm2d(b), nn.ReLU(inplace=True), halve)
        self.block3 = nn.Sequential(nn.Conv2d(b, c, 3, padding=1), nn.BatchNorm2d(c), nn.ReLU(inplace=True))
        self.pool, self.drop, self.linear = nn.AdaptiveAvgPool2d(1), nn.Dropout(0.1), nn.Linear(c, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.block3(self.block2(self.block1(x)))
        return self.linear(self.drop(self.pool(x).flatten(1)))


def net(seed: int, *widths: int, **options: Any) -> nn.Module:
    """A network with statistics that are not the initial ones."""
    torch.manual_seed(seed)
    made = Net(*widths, **options)
    for m in made.modules():
        if isinstance(m, nn.BatchNorm2d):
            m.running_mean.normal_(0, 0.2)
            m.running_var.uniform_(0.5, 1.5)
            nn.init.uniform_(m.weight, 0.5, 1.5)
            nn.init.normal_(m.bias, 0, 0.2)
    return made


def method(teacher: nn.Module | None = None, student: nn.Module | None = None, **options: Any) -> NetGraft:
    options = {"cuts": CUTS, "epochs_block": 1, "epochs_chain": 1, "batch_size": 16, **options}
    return NetGraft(teacher=teacher or net(1, 8, 8, 8), student=student or net(2, 8, 6, 4), **options)


@pytest.fixture
def data() -> Any:
    return tiny_data(40)


X = torch.randn(4, 1, 8, 8, generator=torch.Generator().manual_seed(0))
rows = st.lists(st.floats(-8, 8, width=32), min_size=12, max_size=12)


# -- the loss ----------------------------------------


@settings(max_examples=50, deadline=None)
@given(rows, rows, st.floats(0.125, 64), st.floats(0.125, 64))
def test_loss_ignores_the_length_of_rows_and_lies_in_0_to_4b(
    a: list[float], b: list[float], u: float, v: float
) -> None:
    z_s, z_t = torch.tensor(a).view(4, 3).double() + 0.01, torch.tensor(b).view(4, 3).double() + 0.01
    loss = normalised_logit_loss(z_s, z_t)
    assert 0 <= loss <= 4 * 4 + 1e-9
    scale = torch.tensor([u, 1.0, v, u * v]).double()[:, None]
    torch.testing.assert_close(normalised_logit_loss(z_s * scale, z_t * v), loss, rtol=1e-9, atol=1e-9)


def test_loss_at_its_ends_and_as_twice_one_minus_cosine() -> None:
    z, w = torch.randn(5, 7), torch.randn(5, 7)
    assert normalised_logit_loss(z, 3 * z) < 1e-12
    assert float(normalised_logit_loss(z, -z)) == pytest.approx(20)
    expected = 2 * (1 - F.cosine_similarity(z, w)).sum()
    torch.testing.assert_close(normalised_logit_loss(z, w), expected)
    w.requires_grad_()
    assert not normalised_logit_loss(z, w).requires_grad


# -- cutting ----------------------------------------


class Skips(nn.Module):
    """A connection over the cut after ``a``; ``b`` runs twice."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.shift = nn.Linear(4, 4), nn.Linear(4, 4), nn.Parameter(torch.ones(4))

    def forward(self, x: Tensor, verbose: bool = False) -> Tensor:
        y = self.a(x * self.shift)
        if verbose:
            y = -y
        return self.b(self.b(y) + self.shift) + x


class Depends(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x if x.sum() > 0 else -x


def test_pieces_compose_to_the_network_and_share_its_weights() -> None:
    whole = net(1, 8, 8, 8).eval()
    pieces = cut(whole, ("block1.1", "block2", "pool"))
    x = X
    for piece in pieces:
        assert isinstance(piece, fx.GraphModule)
        x = piece(x)
    assert torch.equal(x, whole(X))
    assert {id(p) for piece in pieces for p in piece.parameters()} == {id(p) for p in whole.parameters()}
    assert pieces[0].get_submodule("block1.0") is whole.block1[0]


def test_a_parameter_read_in_two_pieces_and_an_optional_argument() -> None:
    class Twice(Skips):
        def forward(self, x: Tensor, verbose: bool = False) -> Tensor:
            return self.b(self.a(x * self.shift)) + self.shift

    module, x = Twice(), torch.randn(3, 4)
    first, second = cut(module, ("a",))
    assert torch.equal(second(first(x)), module(x))
    assert second.shift is module.shift is first.shift


@pytest.mark.parametrize(
    ("module", "names", "says"),
    [
        (Net(4, 4, 4), ("blok2",), "no module of Net 'blok2'.* 'block2'"),
        (Net(4, 4, 4), ("block2", "block1"), "in the order"),
        (Net(4, 4, 4), ("block1", "block1"), "in the order"),
        (Skips(), ("a",), "after 'a': besides its output, the input"),
        (Skips(), ("b",), "'b': its forward runs it 2 times"),
        (nn.Sequential(nn.Linear(2, 2), Depends()), ("0",), "torch.fx cannot trace"),
    ],
)
def test_what_cannot_be_cut_is_named(module: nn.Module, names: tuple[str, ...], says: str) -> None:
    with pytest.raises(UserError, match=says):
        cut(module, names)


# -- merging ----------------------------------------


class PoolFirst(nn.Module):
    """A block whose input meets two convolutions, one behind pooling, or a linear layer behind flattening."""

    def __init__(self, flat: bool) -> None:
        super().__init__()
        self.enter = nn.Identity()
        self.conv = nn.Conv2d(6, 5, 3, padding=1)
        self.side = nn.Sequential(nn.AvgPool2d(2, 1, 0), nn.Conv2d(6, 5, 1, bias=False))
        self.linear = nn.Linear(6 * 8 * 8, 3)
        self.flat = flat

    def forward(self, x: Tensor) -> Tensor:
        x = self.enter(x)
        if self.flat:
            return self.linear(x.view(x.size(0), -1))
        return torch.relu(self.conv(x))[:, :, 1:, 1:] + self.side(x)


@pytest.mark.parametrize("flat", [False, True])
def test_merged_equals_unmerged_on_every_pixel(flat: bool) -> None:
    torch.manual_seed(0)
    s2t, t2s, x = adapter(6, 9, 4), adapter(9, 6, 4), torch.randn(2, 6, 8, 8)
    piece = cut(PoolFirst(flat), ("enter",))[1]
    right = piece(t2s(s2t(x)))
    merge_map(piece, t2s.weight.flatten(1) @ s2t.weight.flatten(1))
    torch.testing.assert_close(piece(x), right, rtol=1e-5, atol=1e-5)


def test_biased_adapters_would_be_exact_in_the_interior_only() -> None:
    torch.manual_seed(0)
    conv, x, b = nn.Conv2d(6, 5, 3, padding=1), torch.randn(2, 6, 8, 8), torch.randn(6)
    right = conv(x + b.view(-1, 1, 1))
    with torch.no_grad():
        conv.bias += conv.weight.sum((2, 3)) @ b
    error = (conv(x) - right).abs().amax((0, 1))
    assert error[1:-1, 1:-1].max() < 1e-5 < error[0].min()


@pytest.mark.parametrize(
    ("first", "says"),
    [
        (nn.ReLU(), r"'0' \(ReLU\)"),
        (nn.Conv2d(6, 6, 3, groups=2), r"Conv2d"),
        (nn.MaxPool2d(2), "MaxPool2d"),
        (nn.Identity(), "the end of the block"),
    ],
)
def test_what_cannot_take_a_map_is_named(first: nn.Module, says: str) -> None:
    piece = cut(nn.Sequential(first, nn.Identity()), ())[0]
    with pytest.raises(UserError, match=says):
        merge_map(piece, torch.eye(6))


def test_adapters_only_where_widths_differ_and_without_bias() -> None:
    assert isinstance(adapter(4, 4, 4), nn.Identity)
    assert adapter(4, 6, 4).bias is None and adapter(4, 6, 2).bias is None
    assert adapter(4, 6, 4)(torch.randn(2, 4, 3, 3)).shape == (2, 6, 3, 3)
    assert adapter(4, 6, 2)(torch.randn(2, 4)).shape == (2, 6)


# -- the whole method ----------------------------------------


def test_grafting_the_teachers_own_blocks_gives_its_logits(data: Any) -> None:
    teacher = net(1, 8, 8, 8)
    run = Run(None, precision="32-true", accelerator="cpu")
    model = Model(module=teacher, input_shape=(1, 8, 8), mean=(0.3,), std=(0.4,), classes=tuple("0123456789"))
    own = cut(teacher.eval(), CUTS)
    t = frozen_blocks(run, data, model, own)
    z = teacher(X)
    for i, piece in enumerate(own):
        x = X
        for j, block in enumerate(t):
            x = WrappedBlock(nn.Identity(), piece, nn.Identity())(x) if i == j else block(x)
        torch.testing.assert_close(x, z, rtol=0, atol=1e-6)
        assert normalised_logit_loss(x, z) < 1e-10
    assert all(b.folded == 1 for b in t[:3])


class Watching(Run):
    """A run that notes, before each update, the stage, what has a gradient, and what the optimiser holds."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.seen: list[tuple[str, set[str], list[float]]] = []
        self.modules: list[nn.Module] = []

    def setup(self, module: nn.Module, optimizer: Any = None) -> Any:
        self.modules.append(module)
        return super().setup(module, optimizer)

    def update(self, optimizer: torch.optim.Optimizer, clip: float | None = None) -> None:
        module = self.modules[-1]
        moved = {n for n, p in module.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}
        held = [g["lr"] for g in optimizer.param_groups]
        assert sum(len(g["params"]) for g in optimizer.param_groups) == len(list(module.parameters()))
        self.seen.append((self._stage.name, moved, held))
        super().update(optimizer, clip)


def test_each_stage_trains_what_it_should_and_the_teacher_stays(data: Any) -> None:
    m = method(lr_block=(1e-3, 2e-3), lr_adapter=5e-3)
    assert m.check(data) == []
    assert isinstance(m.teacher, nn.Module) and isinstance(m.student, nn.Module)
    before, initial = copy.deepcopy(m.teacher.state_dict()), copy.deepcopy(m.student.state_dict())
    trains = [p.requires_grad for p in m.teacher.parameters()]
    z = copy.deepcopy(m.teacher).eval()(X)
    run = Watching(None, seed=3, precision="32-true")
    result = m.fit(run, data)

    assert all(torch.equal(v, before[k]) for k, v in m.teacher.state_dict().items())
    assert [p.requires_grad for p in m.teacher.parameters()] == trains
    assert torch.equal(m.teacher.eval()(X), z)
    stages = list(dict.fromkeys(name for name, _, _ in run.seen))
    assert stages == ["block 1", "block 2", "block 3", "block 4", "chain 2", "chain 3", "chain 4"]
    assert len(run.seen) == m.steps(40) == 7 * 3
    for name, moved, rates in run.seen:
        kind, number = name.split()
        allowed = {number} if kind == "block" else {str(i) for i in range(1, int(number) + 1)}
        assert {n.split(".")[1] for n in moved} == allowed
        adapters = {".".join(n.split(".")[1:3]) for n in moved} - {f"{i}.h" for i in allowed}
        expected = {
            "1": set(),
            "2": {"2.s2t"},
            "3": {"3.t2s", "3.s2t"},
            "4": {"4.t2s"},
        }  # widths 8 6 4 in 8 8 8
        assert adapters == set().union(*(expected[i] for i in allowed))
        first = {"1": 1e-3}.get(number, 2e-3) if kind == "block" else 1e-4
        assert rates == [first, *([5e-3 if kind == "block" else 1e-4] if adapters else [])]
    assert not all(torch.equal(v, initial[k]) for k, v in result.state_dict().items())
    assert any("adapters after block 2, 3 are merged" in note for note in run.notes)
    assert any("Batches of 16 images" in note for note in run.notes)


def test_a_stages_outcome_is_the_chain_and_statistics_are_those_of_the_images(data: Any) -> None:
    """At m = L the grafted network is the chain alone, and the product computes what it computed."""
    m = method()
    run = Watching(None, seed=3, precision="32-true", accelerator="cpu")
    result = m.fit(run, data)
    chain = run.modules[-1].eval()  # of the last stage: blocks 1 to 4
    assert [*chain.blocks] == ["1", "2", "3", "4"]
    assert not any(isinstance(block, Frozen) for block in chain._order)
    with torch.no_grad():
        torch.testing.assert_close(result(X), chain(X), rtol=1e-5, atol=1e-5)

        images = data.train.batch(torch.arange(40), device=torch.device("cpu")).images
        first = result.block1[0](images)
    torch.testing.assert_close(result.block1[1].running_mean, first.mean((0, 2, 3)), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(result.block1[1].running_var, first.var((0, 2, 3)), rtol=1e-4, atol=1e-5)


def test_labels_change_nothing(data: Any) -> None:
    states = []
    for labels in (data.train.labels, data.train.labels.flip(0), torch.full_like(data.train.labels, -1)):
        other = dataclasses.replace(data, train=dataclasses.replace(data.train, labels=labels))
        states.append(method(epochs_block=2).fit(Run(None, seed=5), other).state_dict())
    for state in states[1:]:
        assert all(torch.equal(v, states[0][k]) for k, v in state.items())


def test_copied_blocks_are_the_teachers_and_never_train(data: Any) -> None:
    teacher, student = net(1, 8, 8, 8), net(2, 8, 6, 8)
    m = method(teacher, student, copy=(1, 4))
    assert m.check(data) == []
    run = Watching(None, seed=3)
    result = m.fit(run, data)
    assert list(dict.fromkeys(name for name, _, _ in run.seen)) == ["block 2", "block 3", "chain 3"]
    assert len(run.seen) == m.steps(40)
    for name in ("block1", "linear"):
        own, got = teacher.get_submodule(name).state_dict(), result.get_submodule(name).state_dict()
        assert all(torch.equal(v, got[k]) for k, v in own.items())
    assert result.block2[0].weight.shape == (6, 8, 3, 3)
    assert not torch.equal(result.block3[0].weight, net(2, 8, 6, 8).block3[0].weight)
    assert all(p.requires_grad for p in result.parameters())


def test_it_resumes_with_another_fresh_student(data: Any, tmp_path: Path) -> None:
    """What the run began with is kept with it, also where the caller draws other initial weights."""

    class Dies(Run):
        def update(self, *args: Any, **kwargs: Any) -> None:
            if self._stage.name == "block 3":
                raise KeyboardInterrupt
            super().update(*args, **kwargs)

    whole = method().fit(Run(None, seed=1), data).state_dict()
    with pytest.raises(KeyboardInterrupt):
        method().fit(Dies(tmp_path, seed=1, save_every=0), data)
    resumed = method(student=net(9, 8, 6, 4)).fit(Run(tmp_path, seed=1, resume=True), data).state_dict()
    assert all(torch.equal(v, whole[k]) for k, v in resumed.items())


def test_the_student_learns_to_agree_with_the_teacher(data: Any) -> None:
    teacher, few = net(1, 8, 8, 8), data.train.batch(torch.arange(40), device=torch.device("cpu")).images
    z = teacher.eval()(few)
    start = normalised_logit_loss(net(2, 8, 6, 4).eval()(few), z)
    m = method(teacher, epochs_block=15, epochs_chain=15, lr_block=1e-2, lr_adapter=1e-2, lr_chain=3e-3)
    end = normalised_logit_loss(m.fit(Run(None), data)(few), z)
    assert end < 0.5 * start


def test_blocks_may_begin_in_place(data: Any) -> None:
    """A block that overwrites its input does not spoil the input of the other network's block."""
    states = []
    for inplace in (False, True):
        pair = [net(seed, 8, 8, 8) for seed in (1, 2)]
        for made in pair:
            made.block1[2], made.block2[2] = (nn.LeakyReLU(0.5, inplace) for _ in range(2))
        # Tanh needs its output for the gradient, so only the teacher's next block may want to overwrite it.
        pair[1].block1[1], pair[1].block1[2] = nn.Sequential(pair[1].block1[1], nn.Tanh()), nn.LeakyReLU(0.5)
        m = method(*pair, cuts=("block1.1", "block2.1"))
        assert m.check(data) == []
        states.append(m.fit(Run(None, precision="64-true"), data).state_dict())
    for k, v in states[1].items():
        torch.testing.assert_close(v, states[0][k], rtol=1e-6, atol=1e-6)


# -- what does not fit ----------------------------------------


class SplitHead(Net):
    """Training-dependent code in the forward."""

    def forward(self, x: Tensor) -> Tensor:
        return F.dropout(super().forward(x), 0.5, self.training)


def _shared() -> nn.Module:
    made = net(2, 8, 8, 8)
    made.block3[0] = made.block2[0]
    return made


def _relu_first() -> nn.Module:
    made = net(2, 8, 6, 8)
    made.block3 = nn.Sequential(nn.ReLU(), *made.block3)
    return made


@pytest.mark.parametrize(
    ("student", "options", "says"),
    [
        (lambda: net(2, 8, 8, 8, pool=False), {}, r"block 2 gives 8x4x4 in the teacher and 8x8x8 .* spatial"),
        (lambda: net(2, 8, 8, 8, classes=7), {}, "block 4 gives 10 in the teacher and 7"),
        (_relu_first, {}, r"after block 2 the teacher has 8 channels and the student 6.*'block3.0' \(ReLU"),
        (lambda: net(2, 8, 6, 8), {"copy": (3,)}, "copied block needs equal widths"),
        (lambda: net(2, 8, 6, 8), {"copy": (3,)}, r"block 3 cannot be copied: 'block3.0.weight' has shape"),
        (_shared, {}, "blocks 2 and 3 of the student share the weight"),
        (lambda: SplitHead(8, 8, 8), {}, "SplitHead asks for self.training"),
        (lambda: net(2, 8, 8, 8), {"cuts": ("block1", "blokc2")}, "no module of Net 'blokc2'.*'block2'"),
        (lambda: net(2, 8, 8, 8), {"cuts": ("block3", "pool")}, "block 2 of the student has no weights"),
    ],
)  # fmt: skip
def test_check_says_what_does_not_fit(student: Any, options: dict[str, Any], says: str, data: Any) -> None:
    m = method(student=student(), **options)
    with pytest.raises(UserError, match=says):
        m.require(data)


def test_check_leaves_no_trace(data: Any) -> None:
    m = method()
    assert isinstance(m.student, nn.Module)
    m.student.block1.eval()
    before, modes = copy.deepcopy(m.student.state_dict()), [x.training for x in m.student.modules()]
    random = torch.get_rng_state()
    assert m.check(data) == []
    assert [x.training for x in m.student.modules()] == modes and torch.equal(torch.get_rng_state(), random)
    assert all(torch.equal(v, before[k]) for k, v in m.student.state_dict().items())


def test_a_copied_first_block_needs_the_teachers_normalisation(data: Any) -> None:
    model = Model(module=net(1, 8, 8, 8), input_shape=(1, 8, 8), mean=(0.5,), std=(0.5,), classes=data.classes)
    m = NetGraft(teacher=model, student=net(2, 8, 8, 8), cuts=CUTS, copy=(1,))
    assert any("normalised differently" in problem for problem in m.check(data))
    assert NetGraft(teacher=model, student=net(2, 8, 8, 8), cuts=CUTS).check(data) == []


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"cuts": ()}, "at least one"),
        ({"student_cuts": ("block1",)}, "same number"),
        ({"copy": (5,)}, "from 1 to 4"),
        ({"copy": (1, 2, 3, 4)}, "not all"),
        ({"epochs_block": (3, 0)}, "epochs_block"),
        ({"batch_size": 1}, "batch_size"),
        ({"lr_block": -1.0}, "lr_block"),
        ({"lr_chain": 0.0}, "lr_chain"),
    ],
)
def test_options_are_checked(options: dict[str, Any], says: str) -> None:
    with pytest.raises(UserError, match=says):
        method(**options)


def test_the_papers_scaling_with_shots() -> None:
    m = method(batch_size=0)
    assert [m._batch_size(10 * n, 10) for n in (1, 10, 50, 5000)] == [6, 64, 320, 320]
    assert method(batch_size=0, epochs_block=(3, 2), epochs_chain=5).steps(100) == (3 + 2 * 3 + 5 * 3) * 2
