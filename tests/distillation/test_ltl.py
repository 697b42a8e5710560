"""LTL: the invariants of its card, a small real check, and what it refuses."""

from __future__ import annotations

import dataclasses
import json
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import upcycle
from tests.settings import TinyNet, tiny_data, tiny_model
from tests.settings_spiking import SHAPE, model, spiking_networks, tiny_capped, tiny_spiking
from upcycle import cli
from upcycle.core import saved, store
from upcycle.core.errors import UserError
from upcycle.core.models import Model
from upcycle.core.recipe import Recipe
from upcycle.core.run import Run
from upcycle.core.store import tensor_digest
from upcycle.distillation import LTL, Plain
from upcycle.distillation.ltl import Local, activations, local_loss, output_loss, sums
from upcycle.zoo.spiking import Capped, Spiking

BRIEF = Recipe(epochs=2, batch_size=32, optimizer="adam", lr=1e-2, weight_decay=0.0)


@cache
def _weights() -> dict[str, Tensor]:
    method = Plain(student=model(tiny_capped(), "capped"), recipe=Recipe(epochs=15, batch_size=32, lr=0.1))
    return method.fit(Run(None), tiny_data()).state_dict()


def trained() -> Model:
    """A tiny capped network that recognises digits."""
    made = model(tiny_capped(), "capped")
    made.module.load_state_dict(_weights())
    return made


def method(**options: Any) -> LTL:
    return LTL(**{**spiking_networks(), "recipe": BRIEF, "time_steps": 4, **options})


# -- losses -----------------------------------------------------------------------------------------------------------


def test_sums_are_counted_up_to_each_step_that_counts() -> None:
    x = torch.randn(6, 3, 2, dtype=torch.float64)
    found = dict(sums(x, 3, online=False))
    assert list(found) == [4, 5, 6]
    for t, X in found.items():
        torch.testing.assert_close(X, x[:t].sum(0))
    assert [t for t, _ in sums(x, 0, online=True)] == [1, 2, 3, 4, 5, 6]


def test_online_the_gradient_of_a_step_is_that_with_everything_earlier_constant() -> None:
    x = torch.rand(5, 3, 2, dtype=torch.float64, requires_grad=True)
    A = torch.rand(3, 2, dtype=torch.float64)
    (found,) = torch.autograd.grad(local_loss(x, A, 2, online=True), x)
    expected = torch.zeros_like(x)
    for t in (3, 4, 5):
        step = x[t - 1].detach().requires_grad_()
        (expected[t - 1],) = torch.autograd.grad(F.mse_loss((x[: t - 1].sum(0).detach() + step) / t, A), step)
    torch.testing.assert_close(found, expected)
    (offline,) = torch.autograd.grad(local_loss(x, A, 2), x)
    assert not torch.allclose(offline, found) and float(offline[0].abs().sum()) > 0 == float(found[:2].abs().sum())


def test_the_last_step_alone_counts_offline() -> None:
    y, labels = torch.randn(4, 5, 3, dtype=torch.float64), torch.tensor([0, 1, 2, -1, 1])
    expected = F.cross_entropy(y.mean(0), labels, ignore_index=-1, reduction="sum") / 5
    torch.testing.assert_close(output_loss(y, labels, 3), expected)
    s, A = (y > 0).double(), torch.rand(5, 3, dtype=torch.float64)
    torch.testing.assert_close(local_loss(s, A, 3), (s.mean(0) - A).square().mean())


@pytest.mark.parametrize("online", [False, True])
def test_each_loss_reaches_its_own_layer_alone(online: bool) -> None:
    net, images = Local(tiny_spiking(), online), torch.randn(8, *SHAPE, generator=torch.Generator().manual_seed(0))
    y, spikes = net(images)
    A = [torch.rand(s.shape[1:]) for s in spikes]
    losses = {f"synapses.{i}.": local_loss(s, a, 2, online) for i, (s, a) in enumerate(zip(spikes, A, strict=True))}
    losses["readout."] = output_loss(y, torch.arange(8), 2, online)
    for name, loss in losses.items():
        found = torch.autograd.grad(loss, list(net.network.parameters()), retain_graph=True, allow_unused=True)
        for (key, _), slope in zip(net.network.named_parameters(), found, strict=True):
            assert (slope is not None and float(slope.abs().sum()) > 0) == key.startswith(name), (name, key)


# -- the whole --------------------------------------------------------------------------------------------------------


def test_with_one_step_both_forms_are_the_same() -> None:
    def made(form: Any) -> str:
        fitted = method(time_steps=1, form=form, q=99.5).fit(Run(None, seed=3), tiny_data())
        return tensor_digest(fitted.state_dict())

    assert made("offline") == made("online")
    assert method(time_steps=1, form="online").T_w == 0


def test_without_the_weight_of_rates_hidden_layers_stay() -> None:
    before = spiking_networks()["student"].module.state_dict()
    after = method(c=0.0).fit(Run(None), tiny_data()).state_dict()
    changed = {key for key in before if not torch.equal(before[key], after[key])}
    assert changed == {"readout.weight", "readout.bias"}
    after = method().fit(Run(None), tiny_data()).state_dict()
    assert all(not torch.equal(before[key], after[key]) for key in before)


def test_the_teacher_stays_and_so_does_the_student_that_was_given() -> None:
    networks = spiking_networks()
    before = [tensor_digest(m.module.state_dict()) for m in networks.values()]
    made = LTL(**networks, recipe=BRIEF, time_steps=3)
    made.fit(Run(None), tiny_data())
    assert [tensor_digest(m.module.state_dict()) for m in networks.values()] == before
    assert networks["student"].module.time_steps == 4 and made.student.module.time_steps == 3  # type: ignore[union-attr]


def test_activations_are_those_behind_batchnorm_and_cap() -> None:
    teacher, data, run = trained(), tiny_data(), Run(None)
    names = ("blocks.0.2", "blocks.1.2", "blocks.2.4")
    images = data.validation.batch(torch.arange(20), device=torch.device("cpu")).images
    found = activations(run.frozen(teacher, data.validation, keep_modules=True), names, images)
    with torch.no_grad():
        x = images
        for block, a in zip(teacher.module.blocks, found, strict=True):
            x = block(x)
            torch.testing.assert_close(a, x, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("form", "least"), [("offline", 0.75), ("online", 0.6)])
def test_it_learns_digits_and_its_rates_come_closer(form: Any, least: float) -> None:
    data = tiny_data(600)
    recipe = Recipe(epochs=15, batch_size=32, optimizer="adam", lr=2e-2, weight_decay=0.0)
    made = LTL(teacher=trained(), student=model(tiny_spiking(), "student"), time_steps=8, form=form, recipe=recipe)
    made.require(data)
    run = Run(None, seed=1)
    net = made.fit(run, data)
    assert isinstance(net, Spiking)
    with torch.no_grad():
        batch = data.test.batch(torch.arange(50), device=torch.device("cpu"))
        accuracy = float((net(batch.images).argmax(1) == batch.labels).double().mean())
    assert accuracy >= least
    before, after = run.left["distances"]["before"], run.left["distances"]["after"]
    assert len(before) == 3 and all(b > 2 * a for b, a in zip(before, after, strict=True))


def test_pictures_show_how_often_layers_fire(tmp_path: Path) -> None:
    run = Run(tmp_path)
    method().fit(run, tiny_data())
    run.close()
    firing = json.loads((tmp_path / "pictures" / "firing.json").read_text())
    assert [s["name"] for s in firing["series"]] == ["layer 1", "layer 2", "layer 3"]
    assert all(s["x"] == [1, 2, 3, 4] and max(s["y"]) <= 1 for s in firing["series"])
    rates = json.loads((tmp_path / "pictures" / "rates.json").read_text())
    assert rates["columns"] == ["before", "after"] and len(rates["values"]) == 3


def test_the_steps_are_a_part_of_the_product() -> None:
    networks = spiking_networks()
    student = dataclasses.replace(networks["student"], reference="zoo:spiking", options={"time_steps": 4, "x": 1})
    made = LTL(**{**networks, "student": student}, time_steps=6, form="online", recipe=BRIEF)
    product = made.product(made.student.module, tiny_data())  # type: ignore[union-attr]
    assert product.options == {"time_steps": 6, "warmup_steps": 4, "x": 1}
    again = LTL(**{**networks, "student": product}, time_steps=6, recipe=BRIEF)
    assert again.student.options == {"time_steps": 6, "x": 1}  # type: ignore[union-attr]
    own = dataclasses.replace(networks["student"], reference="nets:spiking")
    assert LTL(**{**networks, "student": own}, time_steps=4, recipe=BRIEF)
    with pytest.raises(UserError, match="student is built by code that lets it run with"):
        LTL(**{**networks, "student": own}, time_steps=5, recipe=BRIEF)


# -- what it refuses --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"time_steps": 0}, "time_steps must be at least 1, and it is 0"),
        ({"form": "online", "warmup_steps": 4}, "warmup_steps must be below time_steps, 4, and it is 4"),
        ({"form": "online", "warmup_steps": 9}, "warmup_steps must be below time_steps, 4, and it is 9"),
        ({"form": "online", "warmup_steps": -1}, "warmup_steps must not be negative"),
        ({"warmup_steps": 2}, "warmup_steps 2 has no effect offline; leave it out, or take form online"),
        ({"q": 0.0}, "q must be positive"),
        ({"q": 101.0}, "q must be at most 100"),
        ({"c": -1.0}, "c must not be negative"),
    ],
)
def test_options_that_cannot_be(options: dict[str, Any], says: str) -> None:
    with pytest.raises(UserError, match=says):
        method(**options)


class Named(nn.Sequential):
    """Layers like a tiny capped network's, with another activation in the second place."""

    def __init__(self, activation: nn.Module, halving: nn.Module | None = None) -> None:
        first = [nn.Conv2d(1, 4, 3, padding=1), nn.ReLU()]
        second = [nn.Conv2d(4, 8, 3, 2, padding=1), activation, halving or nn.Identity(), nn.Flatten()]
        super().__init__(*first, *second, nn.Linear(128 if halving is None else 32, 12), nn.ReLU(), nn.Linear(12, 10))


def refused(teacher: nn.Module | Model, says: str, **options: Any) -> None:
    teacher = teacher if isinstance(teacher, Model) else model(teacher, "capped")
    made = method(teacher=teacher, **options)
    with pytest.raises(UserError, match=says) as told:
        made.require(tiny_data())
    assert "\n" not in str(told.value)


def test_a_teacher_whose_activations_can_be_negative_is_refused_by_the_layer() -> None:
    torch.manual_seed(0)
    refused(
        Named(nn.GELU()), r"layer '3' \(GELU\) of capped has values below 0, and a rate has none; take .*zoo:capped"
    )
    refused(Named(nn.Tanh()), r"layer '3' \(Tanh\)")


def test_a_teacher_with_max_pooling_is_refused() -> None:
    refused(Named(nn.ReLU(), nn.MaxPool2d(2)), r"capped has max pooling \('4'\), and the largest of several spikes")


def test_a_layer_of_zeros_is_refused() -> None:
    teacher = trained()
    nn.init.constant_(teacher.module.blocks[1][1].bias, -100.0)
    refused(teacher, r"layer 'blocks\.1\.2' \(Hardtanh\) of capped is zero on 99\.9 % of its values")


def test_networks_that_do_not_fit_are_refused() -> None:
    refused(
        Capped(SHAPE, 10, (((4, 1), (8, 2)), (16,))), "student are 4 x 8 x 8, 8 x 4 x 4, 12, and .* 8 x 4 x 4, 16: "
    )
    refused(TinyNet(16), "capped has max pooling")
    refused(
        trained(),
        r"4 x 8 x 8, 8 x 4 x 4, 12, and the activations of capped are 4 x 8 x 8: .* --layers",
        layers=("blocks.0.2",),
    )
    refused(trained(), "There is no submodule of Capped 'blocks.9'", layers=("blocks.9",))
    plain = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    refused(plain, "no activation of capped is a module")
    refused(trained(), "student does not send spikes; take zoo:spiking", student=tiny_model("student", 1))
    other = dataclasses.replace(trained(), classes=tuple("01234"))
    refused(other, "the teacher has 5 classes and the student 10")
    data = tiny_data().hide_labels(0, 0)
    with pytest.raises(UserError, match="there are no labels"):
        method().require(data)


# -- the commands -----------------------------------------------------------------------------------------------------


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder to work in, with a trained capped network of the zoo's shape for digits."""
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    words = ["--method=plain", "--student=zoo:capped", "--data=digits", "--recipe.epochs=2", "--quiet", "--out=capped"]
    assert cli.main(["distill", *words]) == 0
    return tmp_path


def test_the_ordinary_verbs_take_it(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--method=ltl", "--teacher=capped", "--student=zoo:spiking", "--data=digits", "--time_steps=4"]
    brief = ["--recipe.epochs=2", "--recipe.lr=0.001", "--quiet"]
    assert cli.main(["distill", *words, *brief, "--out=spiking"]) == 0
    row = store.read_json(here / "spiking" / "result.json")["rows"][-1]
    assert row["macs"] > row["additions"] > 0 and row["energy"] > 0
    page = (here / "spiking" / "report.html").read_text()
    for text in ("Synaptic operations", "Energy of arithmetic, estimated", "Firing rates by layer", "loss of layer 1"):
        assert text in page
    back = saved.load(here / "spiking")
    assert back.module.steps() == {"time_steps": 4} and back.options["time_steps"] == 4
    capsys.readouterr()
    assert cli.main(["evaluate", "spiking", "--data=digits"]) == 0
    text = capsys.readouterr().out
    assert "synaptic operations" in text and "energy, estimated" in text
    assert cli.main(["evaluate", "spiking", "--data=digits", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["accuracy"] == pytest.approx(row["accuracy"][0]) and told["additions"] == pytest.approx(
        row["additions"]
    )
    assert cli.main(["evaluate", "capped", "--data=digits"]) == 0
    assert "synaptic" not in capsys.readouterr().out
    assert cli.main(["export", "spiking", "net.pt2", "--format=torch"]) == 0
    assert cli.main(["report", "spiking"]) == 0
    # As any other network it is a student of other methods, trained through time, and goes on from what it was.
    more = ["--method=kd", "--teacher=spiking", "--student=spiking", "--student_weights=pretrained", "--data=digits"]
    assert cli.main(["distill", *more, *brief, "--out=more"]) == 0
    assert saved.load(here / "more").module.time_steps == 4


def test_a_teacher_that_does_not_fit_is_one_sentence(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["distill", "--method=ltl", "--student=zoo:spiking", "--data=digits", "--out=none"]
    assert cli.main([*words, "--teacher=zoo:digits_teacher"]) == 2
    assert "has max pooling" in capsys.readouterr().err and not (here / "none" / "model").exists()
    assert cli.main([*words, "--teacher=capped", "--time_steps=0"]) == 2
    assert "time_steps must be at least 1" in capsys.readouterr().err


def test_advise_names_it_for_spikes() -> None:
    choice = upcycle.advise(data="labelled", goal="spikes").choices[0]
    assert choice.method == "ltl" and "--teacher TEACHER --student zoo:spiking --data DATA" in choice.command
