"""Mixing in a run: maps of networks, partners on every process, and what is refused."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.settings import fitted, seen, tiny_data, tiny_model, tiny_vit
from upcycle.core.batches import Batch
from upcycle.core.errors import UserError
from upcycle.core.losses import Terms
from upcycle.core.models import Model
from upcycle.core.recipe import Recipe
from upcycle.core.run import Run
from upcycle.core.seeds import uniform
from upcycle.data import Images
from upcycle.distillation import KD, Plain
from upcycle.training.mix import Mixer, cutmix, draw, partners
from upcycle.training.percent_maps import PercentMaps, evidence, percent_map
from upcycle.zoo.resnet import ResNet


class Flattens(nn.Module):
    """A convolution whose map is flattened."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.linear = nn.Conv2d(1, 4, 3, padding=1), nn.Linear(256, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(self.conv(x).relu().flatten(1))


class OfTokens(nn.Module):
    """Patches of 2 x 2 as tokens, a class token beside them; it, or the mean of the patches' tokens, is classified."""

    def __init__(self, mean: bool) -> None:
        super().__init__()
        self.mean = mean
        self.patches, self.norm, self.head = nn.Conv2d(1, 12, 2, 2), nn.LayerNorm(12), nn.Linear(12, 10)
        self.token = nn.Parameter(torch.randn(1, 1, 12))

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.patches(x).flatten(2).mT
        tokens = self.norm(torch.cat([self.token.expand(len(x), -1, -1), tokens], 1))
        return self.head(tokens[:, 1:].mean(1) if self.mean else tokens[:, 0])


def model_of(module: nn.Module, side: int = 8) -> Model:
    return dataclasses.replace(tiny_model("net", 0), module=module.eval(), input_shape=(1, side, side))


def images(n: int = 12) -> Batch:
    return tiny_data().train.batch(torch.arange(n), device=torch.device("cpu"))


# -- where the evidence is --------------------------------------------------------------------------------------


def test_the_map_before_the_mean_is_found_in_a_network() -> None:
    place, classifier = evidence(tiny_model("net", 0))
    assert (place.name, classifier, place.grid) == ("relu2", "linear", (4, 4))
    place, classifier = evidence(model_of(ResNet((1, 1, 1), 10, 1), 16))
    assert (place.name, place.grid) == ("layer3", (4, 4))


def test_tokens_whose_mean_is_classified_are_a_map() -> None:
    place, classifier = evidence(model_of(OfTokens(mean=True)))
    assert (place.name, classifier, place.grid, place.beside) == ("norm", "head", (4, 4), (0,))
    place, classifier = evidence(tiny_vit(0))
    assert (place.name, classifier, place.grid) == ("norm", "linear", (2, 2))


@pytest.mark.parametrize(
    "model", [model_of(Flattens()), model_of(OfTokens(mean=False))], ids=["flattens", "class token"]
)
def test_other_networks_are_refused_by_name_with_a_way_out(model: Model) -> None:
    model = dataclasses.replace(model, name="mine")
    with pytest.raises(UserError, match=r"^mine does not answer .* mean .*; take --recipe.mix cutmix\.$"):
        evidence(model)


def test_a_map_is_that_of_the_networks_own_forward() -> None:
    model, batch = fitted("net", 3), images()
    S = PercentMaps(model)(batch.images, batch.labels)
    net: Any = model.module
    with torch.no_grad():
        x = net.relu1(net.bn1(net.conv1(batch.images)))
        features = net.relu2(net.bn2(net.conv2(net.pool1(x))))
    torch.testing.assert_close(S, percent_map(features, net.linear.weight, batch.labels, (8, 8)))


@pytest.mark.parametrize("training", [True, False])
def test_a_map_leaves_no_trace(training: bool) -> None:
    model, batch = fitted("net", 3), images()
    model.module.train(training)
    model.module.bn1.eval()  # type: ignore[union-attr]
    maps = PercentMaps(model)
    before = {name: value.clone() for name, value in model.module.state_dict().items()}
    modes, state = [m.training for m in model.module.modules()], torch.get_rng_state()
    maps(batch.images, batch.labels)
    assert all(torch.equal(before[name], value) for name, value in model.module.state_dict().items())
    assert [m.training for m in model.module.modules()] == modes
    assert torch.equal(torch.get_rng_state(), state)
    assert not any(m._forward_hooks for m in model.module.modules())
    assert all(p.grad is None for p in model.module.parameters())


def test_maps_are_heard_in_a_compiled_network() -> None:
    model, batch = fitted("net", 3), images()
    expected = PercentMaps(model)(batch.images, batch.labels)
    model.module.compile(backend="eager")
    assert torch.equal(PercentMaps(model)(batch.images, batch.labels), expected)
    assert model.module._compiled_call_impl is not None


# -- batches ----------------------------------------------------------------------------------------------------


def mixer(kind: str = "snapmix", teacher: Model | None = None, **fields: Any) -> Mixer:
    recipe = Recipe(mix=kind, **fields)  # type: ignore[arg-type]
    return Mixer(recipe, fitted("net", 3).module, teacher, ((0.3,), (0.4,)))


def mixed(one: Mixer, parts: int = 1, n: int = 12, key: tuple[int, int] = (0, 0)) -> Batch:
    """The batch of all processes, put together from their shares."""
    split, samples = tiny_data().train, torch.arange(n).flip(0)
    read = lambda index: split.batch(index, device=torch.device("cpu"))  # noqa: E731
    found = [
        one(read(samples[mine]), samples, split.labels[samples], mine, read, key)
        for mine in torch.arange(n).tensor_split(parts)
    ]
    return Batch(*(torch.cat([getattr(b, field) for b in found]) for field in Batch._fields))


@pytest.mark.parametrize("kind", ["mixup", "cutmix", "snapmix"])
@pytest.mark.parametrize("parts", [2, 3])
def test_shares_of_processes_make_up_the_whole(kind: str, parts: int) -> None:
    whole, part = mixed(mixer(kind)), mixed(mixer(kind), parts)
    assert whole.labels.shape == (12, 10) and whole.labels.is_floating_point()
    for a, b in zip(whole, part, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


def test_a_batch_is_mixed_by_what_is_drawn_for_it() -> None:
    split, samples = tiny_data().train, torch.arange(12).flip(0)
    u = uniform(0, 0, samples, "mix", 8)
    drawn = draw(u[0, 1:].tolist(), 1.0, 5.0, 8, 8)
    rows = partners(u[:, 0], torch.ones(12, dtype=torch.bool))
    x, y, _ = split.batch(samples, device=torch.device("cpu"))
    expected = cutmix(x, y, x, y, rows, drawn.target, 10)
    found = mixed(mixer("cutmix"))
    assert torch.equal(found.images, expected[0]) and torch.equal(found.labels, expected[1])
    assert not torch.equal(found.images, mixed(mixer("cutmix"), key=(0, 1)).images)


def test_a_batch_that_is_not_mixed_is_the_batch() -> None:
    batch = images()
    one = mixer(mix_prob=0.0)
    assert one(batch, torch.arange(12), batch.labels, torch.arange(12), lambda index: batch, (0, 0)) is batch


def test_the_teachers_map_is_that_of_the_teacher_as_it_is() -> None:
    teacher = dataclasses.replace(seen(fitted("teacher", 5)), mean=(0.2,), std=(0.5,))
    batch = images()
    found = mixer(teacher=teacher, mix_map="teacher").looking(batch.images)(batch.images, batch.labels)
    renormalised = ((batch.images * 0.4 + 0.3) - 0.2) / 0.5
    torch.testing.assert_close(
        found, PercentMaps(teacher)(renormalised, batch.labels), rtol=1e-3, atol=1e-5, equal_nan=True
    )
    assert next(teacher.module.parameters()).requires_grad


# -- in runs ----------------------------------------------------------------------------------------------------


def method(**fields: Any) -> KD:
    recipe = Recipe(epochs=2, batch_size=32, lr=0.05, **fields)
    teacher, student = fitted("teacher", 7), tiny_model("student", 100)
    return KD(teacher=teacher, student=student, terms=Terms(w_kd=0.5, w_ce=0.5), recipe=recipe)


def fit(made: Any, run: Run, data: Images | None = None) -> dict[str, Tensor]:
    data = data or tiny_data()
    made.begin(run, data)
    state: dict[str, Tensor] = made.fit(run, data).state_dict()
    run.close()
    return state


def test_no_batch_mixed_is_training_without_mixing_to_the_bit() -> None:
    plain = fit(method(), Run(None, seed=1))
    for kind in ("mixup", "cutmix", "snapmix"):
        found = fit(method(mix=kind, mix_prob=0.0), Run(None, seed=1))
        assert all(torch.equal(plain[name], value) for name, value in found.items())


@pytest.mark.parametrize("mix_map", ["self", "teacher"])
def test_a_run_mixes_and_leaves_a_picture(mix_map: str, tmp_path: Path) -> None:
    found = fit(method(mix="snapmix", mix_map=mix_map), Run(tmp_path, seed=1))
    plain = fit(method(), Run(None, seed=1))
    assert not all(torch.equal(plain[name], value) for name, value in found.items())
    picture = json.loads((tmp_path / "pictures" / "mixing.json").read_text())
    assert picture["kind"] == "images" and len(picture["items"]) == 6
    from upcycle.reports.pictures import picture as drawn

    figure = drawn(tmp_path / "pictures" / "mixing.json")
    assert "cannot be drawn" not in figure.caption and "<img" in figure.body


def test_partly_labelled_data_are_mixed_where_they_have_labels() -> None:
    data = tiny_data().hide_labels(4, 0)
    found = fit(method(mix="snapmix"), Run(None, seed=1), data)
    assert all(value.isfinite().all() for value in found.values())


@pytest.mark.parametrize("sharpness", ["none", "sam", "esam"])
def test_a_batch_that_is_met_again_is_mixed_once(sharpness: str, monkeypatch: pytest.MonkeyPatch) -> None:
    calls, plain = [], Mixer.__call__
    monkeypatch.setattr(Mixer, "__call__", lambda self, *given: (calls.append(given[1]), plain(self, *given))[1])
    found = fit(method(mix="snapmix", sharpness=sharpness), Run(None, seed=1))
    assert len(calls) == 2 * 5  # batches of 32 of 160, two epochs
    assert all(value.isfinite().all() for value in found.values())


def _two(mix_map: str) -> dict[str, Tensor]:
    made = method(mix="snapmix", mix_map=mix_map)
    return fit(made, Run(None, seed=3, devices=2, accelerator="cpu", precision="64-true"), tiny_data(151))


@pytest.mark.xdist_group("ranks")
@pytest.mark.parametrize("mix_map", ["self", "teacher"])
def test_two_processes_mix_as_one_does(mix_map: str, ranks: Any) -> None:
    one = fit(method(mix="snapmix", mix_map=mix_map), Run(None, seed=3, precision="64-true"), tiny_data(151))
    for found in ranks(_two, mix_map):
        for name, value in one.items():
            assert float((found[name] - value).abs().max()) <= 1e-10, name


# -- refusals ---------------------------------------------------------------------------------------------------


def refused(made: Any, data: Images | None, words: str) -> None:
    with pytest.raises(UserError, match=words) as error:
        made.require(data or tiny_data())
    assert str(error.value).count(". ") == 0  # one sentence


def test_a_network_that_flattens_is_refused_for_snapmix_alone() -> None:
    student = dataclasses.replace(tiny_model("mine", 0), module=Flattens())
    made = Plain(student=student, recipe=Recipe(epochs=1, mix="snapmix"))
    refused(made, None, "mine does not answer .*take --recipe.mix cutmix")
    Plain(student=student, recipe=Recipe(epochs=1, mix="cutmix")).require(tiny_data())


def test_a_teacher_that_flattens_is_refused_where_its_map_is_asked_for() -> None:
    made = method(mix="snapmix", mix_map="teacher")
    made.teacher = dataclasses.replace(tiny_model("mine", 0), module=Flattens())
    refused(made, None, "mine does not answer")


@pytest.mark.parametrize("kind", ["mixup", "cutmix", "snapmix"])
def test_without_labels_there_is_nothing_to_mix(kind: str) -> None:
    made = method(mix=kind)
    refused(made, tiny_data().hide_labels(0, 0), f"mix={kind} .*labels, and there are none")


def test_the_teachers_map_needs_a_teacher() -> None:
    made = Plain(student=tiny_model("s", 0), recipe=Recipe(mix="snapmix", mix_map="teacher"))
    refused(made, None, "mix_map=teacher needs a teacher, and there is none; take mix_map=self")


def test_kept_outputs_exclude_mixing() -> None:
    made = method(mix="cutmix")
    made.cache = "on"
    refused(made, None, "cannot be kept")
    made.cache, made.views = "auto", 2
    refused(made, None, "cannot be kept")


def test_balanced_labels_exclude_mixing() -> None:
    made = Plain(student=tiny_model("s", 0), balanced=True, recipe=Recipe(mix="cutmix"))
    refused(made, None, "balanced weighs labels")


def test_mixing_is_for_pictures() -> None:
    pytest.importorskip("torch_geometric", reason="torch_geometric is not installed (extra graphs)")
    from tests.settings_graphs import tiny_graph_model, tiny_graphs, tiny_nodes

    for level, data in (("graph", tiny_graphs()), ("node", tiny_nodes())):
        made = Plain(student=tiny_graph_model("student", 0, level), recipe=Recipe(mix="cutmix"))
        refused(made, data, "mixing is for pictures, and these are")


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"mix": "snapmix", "mix_prob": 2.0}, "mix_prob"),
        ({"mix": "snapmix", "mix_prob": -0.1}, "mix_prob"),
        ({"mix": "snapmix", "mix_prob": float("nan")}, "mix_prob"),
        ({"mix": "snapmix", "mix_beta": 0.0}, "mix_beta"),
        ({"mix": "snapmix", "mix_beta": float("inf")}, "mix_beta"),
        ({"mix": "cutmix", "mix_map": "teacher"}, "mix_map teacher has no effect"),
        ({"mix_prob": 0.5}, "mix_prob 0.5 has no effect"),
    ],
)
def test_values_that_cannot_be_are_refused(fields: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        Recipe(**fields)
