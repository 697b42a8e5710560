"""ODE blocks in trained networks: f is found, the start is exact, h falls, and BatchNorm keeps to its statistics."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from upcycle.core import saved
from upcycle.core.errors import UserError
from upcycle.core.euler import euler
from upcycle.core.models import Model
from upcycle.core.references import resolve
from upcycle.measure.cost import count
from upcycle.measure.export import write_export
from upcycle.surgery.inserts import BLOCKS
from upcycle.surgery.inserts.base import Place
from upcycle.surgery.inserts.ode import ODE, TISODE, Autonomous, OdeBlock, make_ode, make_tisode, residual_of
from upcycle.surgery.operate import Cut, inserts, operate, start_error
from upcycle.surgery.signals import Signal

MAP = Signal("map", 8, (6, 5))
TOKENS = Signal("tokens", 12, (4, 3), 1)


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


class Written(nn.Module):
    """x + f(x) in some spelling."""

    def __init__(self, forward: Callable[[nn.Module, Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.conv, self.norm, self.relu = nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(inplace=True)
        self.skip, self.nothing = nn.Identity(), nn.Sequential()
        self.spelled = forward

    def forward(self, x: Tensor) -> Tensor:
        return self.spelled(self, x, self.norm(self.conv(x)))


def _in_place(m: nn.Module, x: Tensor, out: Tensor) -> Tensor:
    out += x
    return m.relu(out)


SPELLINGS: dict[str, tuple[Callable[[nn.Module, Tensor, Tensor], Tensor], bool]] = {
    "x + out": (lambda m, x, out: x + out, False),
    "out + x": (lambda m, x, out: out + x, False),
    "torch.add": (lambda m, x, out: torch.add(out, x), False),
    "out.add(x)": (lambda m, x, out: out.add(x), False),
    "out += x, in-place ReLU": (_in_place, True),
    "F.relu": (lambda m, x, out: F.relu(out + x), True),
    "torch.relu": (lambda m, x, out: torch.relu(x + out), True),
    ".relu()": (lambda m, x, out: (x + out).relu(), True),
    "an empty shortcut": (lambda m, x, out: out + m.skip(m.nothing(x)), False),
    "two residuals": (lambda m, x, out: (x + out) + m.conv(F.gelu(x + out)), False),
    "two residuals, other order": (lambda m, x, out: m.conv(F.gelu(out + x)) + (out + x), False),
}


def trained(block: nn.Module) -> nn.Module:
    """A block whose BatchNorms have statistics of their own."""
    for m in block.modules():
        if isinstance(m, nn.BatchNorm2d):
            nn.init.uniform_(m.running_mean, -0.5, 0.5)
            nn.init.uniform_(m.running_var, 0.5, 1.5)
            nn.init.uniform_(m.weight, 0.5, 1.5)
    return block.eval()


def written(name: str) -> Place:
    torch.manual_seed(0)
    return Place("b", trained(Written(SPELLINGS[name][0])), MAP, MAP)


@pytest.mark.parametrize("name", SPELLINGS)
def test_f_is_found_however_the_sum_is_written(name: str) -> None:
    place = written(name)
    x = torch.randn(3, 8, 6, 5)
    before = place.module(x.clone())
    f, rectified = residual_of(place)
    assert rectified == SPELLINGS[name][1]
    z = x + f(x)
    assert (F.relu(z) if rectified else z).sub(before).abs().max() < 1e-6
    block = make_tisode(place, "replace", "same").eval()
    assert block.step == 1 and (block(x) - before).abs().max() < 1e-6
    own = dict(place.module.named_parameters())
    assert {id(p) for p in block.parameters()} <= {id(p) for p in own.values()}  # the trained weights, and no others
    block.prepare(1.0, generator())
    expected = euler(lambda t, y: f(y), x, 0.1)
    assert torch.allclose(block(x), F.relu(expected) if rectified else expected, atol=1e-6)


NO_RESIDUAL: dict[str, Callable[[nn.Module, Tensor, Tensor], Tensor]] = {
    "no sum": lambda m, x, out: out,
    "a sum without x": lambda m, x, out: out + m.conv(out),
    "half of x": lambda m, x, out: 0.5 * x + out,
    "a difference": lambda m, x, out: out - x,
    "another activation": lambda m, x, out: F.gelu(x + out),
    "scaled": lambda m, x, out: 2 * (x + out),
    "added with a factor": lambda m, x, out: torch.add(x, out, alpha=0.5),
    "x rectified": lambda m, x, out: F.relu(x) + out,
}


@pytest.mark.parametrize("name", NO_RESIDUAL)
def test_what_is_no_residual_block_is_refused_in_one_sentence(name: str) -> None:
    torch.manual_seed(0)
    place = Place("layer.3", trained(Written(NO_RESIDUAL[name])), MAP, MAP)
    with pytest.raises(UserError, match=r"'layer\.3' is no x \+ f\(x\)") as caught:
        make_ode(place, "replace", "same")
    assert "\n" not in str(caught.value)


def test_a_block_that_changes_the_shape_is_refused_with_both() -> None:
    place = Place("b", nn.Conv2d(8, 16, 3, 2, 1), MAP, Signal("map", 16, (3, 3)))
    with pytest.raises(UserError, match="16 x 3 x 3 of 8 x 6 x 5"):
        make_tisode(place, "replace", "same")


RESIDUAL = {
    "zoo:cifar10_resnet20": "layer*.[1-9]",
    "zoo:mobilenetv2": "stages.*.[1-9]",
    "zoo:vit": "blocks.*",
    "timm:resnet18": "layer*.1",
    "timm:mobilenetv2_035": "blocks.*.[1-9]",
    "timm:test_vit": "blocks.*",
    "torchvision:resnet18": "layer*.1",
    "torchvision:mobilenet_v2": "features.*",
}


@pytest.mark.parametrize("reference", RESIDUAL)
def test_networks_start_at_their_own_function(reference: str) -> None:
    if not reference.startswith("zoo"):
        pytest.importorskip(reference.partition(":")[0], reason="the extra vision is not installed")
    torch.manual_seed(0)
    side = (3, 32, 32) if reference.startswith("zoo") else (3, 64, 64)
    shape = None if reference == "timm:test_vit" else side
    model = resolve(reference, pretrained=False, input_shape=shape)
    trained(model.module)
    made = operate(model, Cut(at=(RESIDUAL[reference],), block="tisode"))
    blocks = [m for m in made.module.modules() if isinstance(m, OdeBlock)]
    assert len(blocks) >= 2 and start_error(model, made) <= 1e-6
    before, after = (sum(p.numel() for p in m.module.parameters()) for m in (model, made))
    assert before == after
    for block in inserts(made.module):
        block.prepare(1.0, generator())
    assert start_error(model, made) > 1e-5  # ten steps are another function


def test_a_stage_that_halves_is_passed_over_and_refused_where_it_is_named() -> None:
    torch.manual_seed(0)
    model, said = resolve("zoo:resnet8", pretrained=False), []
    made = operate(model, Cut(at=("layer*.*",), block="ode"), say=said.append)
    assert sum(isinstance(m, OdeBlock) for m in made.module.modules()) == 1  # layer1.0
    with pytest.raises(UserError, match=r"layer2\.0"):
        operate(model, Cut(at=("layer2.0",), block="ode"))


def test_batch_norms_inside_keep_to_their_statistics_and_others_do_not() -> None:
    torch.manual_seed(0)
    model = resolve("zoo:resnet14", pretrained=False)
    made = operate(model, Cut(at=("layer*.1",), block="tisode"))
    made.module.train()
    inside = {m for b in made.module.modules() if isinstance(b, Autonomous) for m in b.modules()}
    norms = [m for m in made.module.modules() if isinstance(m, nn.BatchNorm2d)]
    assert len([m for m in norms if m in inside]) == 6
    assert all(m.training != (m in inside) for m in norms)
    state = {k: v.clone() for k, v in made.module.state_dict().items() if "running" in k}
    made.module(made.example(8)).sum().backward()
    after = made.module.state_dict()
    moved = {k for k, v in state.items() if not torch.equal(v, after[k])}
    assert moved and not [k for k in moved if ".block." in k]
    assert [k for k in state if ".block." in k]
    assert all(m.weight.grad is not None for m in norms)  # scale and shift learn all the same
    copy.deepcopy(made.module).eval().train()
    assert all(m.training != (m in inside) for m in norms)


def test_h_falls_while_it_is_tuned_and_then_the_term_comes_in() -> None:
    place = written("F.relu")
    block = make_tisode(place, "replace", "same", until=0.5)
    x, seen = torch.randn(4, 8, 6, 5), []
    for progress in (0.0, 0.1, 0.2, 0.3, 0.4, 0.49, 0.5, 0.9, 1.0):
        block.prepare(progress, generator())
        block.train()
        block(x)
        seen.append((round(block.step, 3), block.penalty() is not None))
    falling = [(1.0, False), (0.631, False), (0.398, False), (0.251, False), (0.158, False), (0.105, False)]
    assert seen == [*falling, *[(0.1, True)] * 3]
    block.eval()
    block(x)
    assert block.penalty() is None


def test_the_term_is_weighted_once_and_can_be_left_out() -> None:
    x, terms = torch.randn(4, 8, 6, 5), []
    for weight in (0.01, 1.0):
        block = make_tisode(written("x + out"), "replace", "same", weight=weight, until=0.0)
        block.prepare(0.0, generator())
        block.train()(x)
        terms.append(block.penalty())
        assert block.penalty() is None
    assert torch.isclose(100 * terms[0], terms[1]) and terms[1] > 0
    for still in (
        make_tisode(written("x + out"), "replace", "same", weight=0.0),
        make_ode(written("x + out"), "replace", "same"),
    ):
        still.prepare(1.0, generator())
        still.train()(x)
        assert still.step == 0.1 and still.penalty() is None


def test_a_term_that_nobody_took_does_not_stop_a_copy() -> None:
    block = make_tisode(written("x + out"), "replace", "same", until=0.0)
    block.prepare(0.0, generator())
    block.train()(torch.randn(2, 8, 6, 5))
    again = copy.deepcopy(block)
    assert again.penalty() is None and block.penalty() is not None
    assert again.step == block.step == 0.1


def test_the_step_is_saved_with_the_weights_and_loaded(tmp_path: Path) -> None:
    torch.manual_seed(0)
    made = operate(resolve("zoo:resnet14", pretrained=False), Cut(at=("layer*.1",), block="tisode"))
    for block in inserts(made.module):
        block.prepare(0.2, generator())
    saved.save(made, tmp_path / "m")
    again = saved.load(tmp_path / "m")
    assert [round(b.step, 4) for b in inserts(again.module)] == [0.3981] * 3  # type: ignore[attr-defined]
    x = made.example(3)
    with torch.no_grad():
        assert torch.equal(again.module(x), made.module.eval()(x))
        assert write_export(made, tmp_path / "m.pt2", "torch") < 1e-4
        assert torch.allclose(torch.export.load(tmp_path / "m.pt2").module()(x), made.module(x), atol=1e-4)


@pytest.mark.parametrize("step", [0.0, -0.1, 1e-9, 2.0, float("nan")])
def test_a_damaged_step_is_refused(step: float) -> None:
    block = make_tisode(written("x + out"), "replace", "same")
    with pytest.raises(UserError, match=r"lies between 0\.001 and 1"):
        block.load_state_dict({**block.state_dict(), "kept_step": torch.tensor(step)})


def test_the_state_changes_continuously_with_h() -> None:
    block, x = make_tisode(written("x + out"), "replace", "same").eval(), torch.randn(3, 8, 6, 5)
    for h in (1.0, 0.5, 1 / 3, 0.1):  # where a step more is needed
        block.step = h
        at = block(x)
        block.step = h * (1 - 1e-5)
        assert 0 < (block(x) - at).abs().max() < 1e-3
    block.step = 0.4
    z = euler(block.field, x, 0.4, 0.8)
    assert torch.allclose(block(x), z + 0.2 * block.field(0.8, z), atol=1e-6)


@pytest.mark.parametrize("name", ["ode", "tisode"])
def test_a_new_block_has_the_numbers_that_are_said(name: str) -> None:
    entry, options = BLOCKS[name], {"step": 0.2} | ({"window": (0.8, 1.4)} if name == "tisode" else {})
    for signal in (MAP, Signal("map", 64, (13, 13))):
        made = entry.make(Place("b", nn.Identity(), signal, signal), "replace", "fresh", **options)
        assert sum(p.numel() for p in made.parameters()) == entry.parameters(signal, **options)
        assert count(made, signal.shape(1)[1:]).macs == entry.macs(signal, **options)
        assert isinstance(made, OdeBlock) and made.step == 0.2


def test_a_new_tisode_of_64_channels_is_that_of_the_paper() -> None:
    signal = Signal("map", 64, (13, 13))
    assert TISODE.parameters(signal) == 2 * 64 * 64 * 9 + 4 * 64
    assert ODE.parameters(signal) - TISODE.parameters(signal) == 142_410 - 141_130


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"step": 0.3}, "no multiple of the step 0.3"),
        ({"step": 0.0}, "must be positive"),
        ({"step": 1e-5}, "at most 1,000 steps"),
        ({"window": (0.95, 1.5)}, "T1 0.95 is no multiple"),
        ({"window": (1.5, 0.9)}, "must end behind its beginning"),
        ({"window": (0.9,)}, "two times, and not 1"),
        ({"weight": -1.0}, "weight must not be negative"),
        ({"until": 2.0}, "until must lie between 0 and 1"),
    ],
)
def test_options_out_of_range_are_named(options: dict[str, object], says: str) -> None:
    with pytest.raises(UserError, match=says):
        make_tisode(written("x + out"), "replace", "same", **options)  # type: ignore[arg-type]


def test_tokens_have_no_new_block() -> None:
    with pytest.raises(UserError, match="'t' takes 13 x 12"):
        make_ode(Place("t", nn.Identity(), TOKENS, TOKENS), "replace", "fresh")


def test_w_of_nought_gives_the_gradients_of_the_loss_alone() -> None:
    grads = []
    for weight, penalised in ((0.0, False), (0.01, False), (0.01, True)):
        block = make_tisode(written("x + out"), "replace", "same", weight=weight, until=0.0)
        block.prepare(1.0, generator())
        x = torch.randn(2, 8, 6, 5, generator=generator())
        loss = block.train()(x).square().mean()
        if (term := block.penalty()) is not None and penalised:
            loss = loss + term
        loss.backward()
        grads.append(block.field.body.conv.weight.grad.clone())
    assert torch.allclose(grads[0], grads[1], atol=1e-7)
    assert not torch.allclose(grads[0], grads[2], atol=1e-7)


def test_a_model_of_ones_own_with_a_block_used_twice_is_refused() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.block, self.head = Written(SPELLINGS["x + out"][0]), nn.Linear(8, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.block(self.block(x)).mean((2, 3)))

    model = Model(module=Twice(), input_shape=(8, 6, 5), mean=(0.5,) * 8, std=(1.0,) * 8, classes=("a", "b"))
    with pytest.raises(UserError, match="block"):
        operate(model, Cut(at=("block",), block="ode"))
