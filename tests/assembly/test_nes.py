"""Neural epitome search: the invariants of its card."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from torch import nn

from tests.settings import tiny_data, tiny_model
from tests.surgery.test_epitome import seeded
from upcycle.assembly.nes import NES
from upcycle.core.errors import UserError
from upcycle.core.losses import Terms
from upcycle.core.recipe import Recipe
from upcycle.core.references import resolve
from upcycle.core.run import Run
from upcycle.core.store import tensor_digest
from upcycle.surgery.epitome import (
    compress,
    epitomes,
    materialise,
    rebuild_epitome,
)

RECIPE = Recipe(epochs=2, batch_size=32, lr=0.05)


@pytest.mark.parametrize(
    "options", [{"ratio": 0.0}, {"ratio": float("nan")}, {"ratio": 2.0}, {"momentum": 0.0}, {"lr_learner": -1.0}]
)
def test_impossible_options(options: dict) -> None:
    with pytest.raises(UserError):
        NES(student=nn.Identity(), **options)
    if "ratio" in options:
        with pytest.raises(UserError):
            compress(tiny_model("a", 0).module, **options, generator=seeded())


def test_a_network_without_inner_convolutions_is_refused() -> None:
    net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 10))
    with pytest.raises(UserError, match="nothing to compress"):
        compress(net, 0.25, generator=seeded())
    with pytest.raises(UserError, match="no convolution to compress"):
        NES(student=net).require(tiny_data())


def method(**options: Any) -> NES:
    return NES(**{"student": tiny_model("student", 3), "recipe": RECIPE, **options})


@pytest.mark.parametrize("mode", ["learned", "tile"])
def test_what_fit_returns(mode: str) -> None:
    data, run = tiny_data(), Run(None, precision="32-true")
    made = method(mode=mode)
    before = tensor_digest(made.student.module.state_dict())
    net = made.fit(run, data)
    assert tensor_digest(made.student.module.state_dict()) == before
    (only,) = epitomes(net)
    assert only.learner is None and not net.training
    assert set(dict(only.named_parameters())) == {"epitome"}
    assert all("forward" not in m.__dict__ for m in net.modules())
    x = data.test.batch(torch.arange(16), device=torch.device("cpu")).images
    with torch.no_grad():
        assert torch.allclose(materialise(net)(x), net(x), atol=1e-5)


def test_offsets_are_learned() -> None:
    net = method().fit(Run(None, precision="32-true"), tiny_data())
    start = compress(tiny_model("student", 3).module, 0.25, generator=seeded())
    assert float((epitomes(net)[0].routing - epitomes(start)[0].routing).abs().max()) > 1e-4


def test_the_stored_map_is_averaged_anew_over_the_trained_network() -> None:
    data = tiny_data()
    slow, fast = (method(momentum=m).fit(Run(None, precision="32-true"), data) for m in (0.001, 1.0))
    assert torch.allclose(epitomes(slow)[0].routing, epitomes(fast)[0].routing, atol=1e-5)


@pytest.mark.parametrize("mode", ["learned", "tile"])
def test_it_learns(mode: str) -> None:
    data, run = tiny_data(), Run(None, precision="32-true")
    net = method(mode=mode, recipe=Recipe(epochs=16, batch_size=32, lr=0.1)).fit(run, data)
    assert run.evaluate(net, data.train).accuracy > 0.6


def test_a_teacher_enters_by_its_weight() -> None:
    data, teacher = tiny_data(), tiny_model("teacher", 7, 24)
    alone, ignored, taught = (
        tensor_digest(
            method(teacher=t, terms=Terms(w_kd=w, w_ce=1 - w)).fit(Run(None, precision="32-true"), data).state_dict()
        )
        for t, w in ((None, 0.9), (teacher, 0.0), (teacher, 0.9))
    )
    assert alone == ignored != taught


def test_the_learner_is_slower_and_not_decayed() -> None:
    net = compress(tiny_model("student", 3).module, 0.25, generator=seeded())
    kept, learners = method()._optimizer(net).param_groups
    assert kept["weight_decay"] == RECIPE.weight_decay and learners["weight_decay"] == 0
    assert kept["lr"] == RECIPE.lr and learners["lr"] == pytest.approx(RECIPE.lr / 10)
    assert {id(p) for p in learners["params"]} == {id(p) for p in epitomes(net)[0].learner.parameters()}
    assert len(kept["params"]) + len(learners["params"]) == len(list(net.parameters()))


def test_a_tiled_network_without_normalisation_is_warned_of() -> None:
    def net(bias: bool) -> nn.Module:
        return nn.Sequential(
            nn.Conv2d(1, 8, 3),
            nn.ReLU(),
            nn.Conv2d(8, 8, 3, bias=bias),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(8, 10),
        )

    for bias, mode, said in ((False, "tile", True), (True, "tile", False), (False, "learned", False)):
        run = Run(None, precision="32-true")
        method(student=net(bias), mode=mode, recipe=Recipe(epochs=1, batch_size=80)).fit(run, tiny_data())
        assert any("tiled outputs" in note for note in run.notes) == said


def test_the_product_says_what_it_is_rebuilt_from() -> None:
    data = tiny_data()
    student = resolve("zoo:convnet", pretrained=False, num_classes=10, input_shape=(1, 8, 8))
    for mode in ("learned", "tile"):
        made = NES(student=student, mode=mode, ratio=0.2, recipe=Recipe(epochs=1, batch_size=80))
        product = made.product(made.fit(Run(None, precision="32-true"), data), data)
        assert product.reference == "assembly:epitome"
        options = json.loads(json.dumps(product.options))
        assert options["source"]["reference"] == "zoo:convnet"
        again = rebuild_epitome(**options, rebuild=lambda source: student)
        again.load_state_dict(product.module.state_dict())
        x = product.example(4)
        assert torch.equal(again.eval()(x), product.module(x))
    bare = method()
    product = bare.product(bare.fit(Run(None, precision="32-true"), data), data)
    assert product.reference is None and product.options == {}


def test_labels_are_needed() -> None:
    with pytest.raises(UserError, match="kd works without labels"):
        method().require(tiny_data().hide_labels(2, seed=0))
    with pytest.raises(UserError, match="input channels"):
        method(teacher=resolve("zoo:cifar10_resnet20", pretrained=False)).require(tiny_data())
