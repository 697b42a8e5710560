"""Blocks put into trained networks: where there is room, what changes, and what is refused."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from tests import inserts
from tests.settings import TinyNet, fitted, tiny_vit
from upcycle.core import saved, store
from upcycle.core.errors import UserError
from upcycle.core.models import Model
from upcycle.core.references import resolve
from upcycle.core.store import tensor_digest
from upcycle.surgery.blocks import chain
from upcycle.surgery.inserts import BLOCKS
from upcycle.surgery.operate import Cut, operate, places, start_error
from upcycle.surgery.signals import Signal
from upcycle.surgery.wrappers import AsMap, AsTokens, Before

SE = Cut(at=("relu?",), block="se")


@pytest.fixture(autouse=True)
def _blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, block in inserts.BLOCKS.items():
        monkeypatch.setitem(BLOCKS, name, block)


class ClassToken(nn.Module):
    """Patches of two by two pixels as tokens behind a class token, one module on them, and the class token's logits."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(1, 8, 2, 2)
        self.token = nn.Parameter(torch.ones(1, 1, 8))
        self.mix = nn.Linear(8, 8)
        self.linear = nn.Linear(8, 10)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.patches(x).flatten(2).transpose(1, 2)
        tokens = torch.cat([self.token.expand(len(x), -1, -1), tokens], 1)
        tokens = tokens + self.mix(tokens)
        return self.linear(tokens[:, 0] + tokens[:, 1:].mean(1))


def model_of(module: nn.Module) -> Model:
    return replace(fitted("source", 7), module=module.eval(), name="net")


def class_token() -> Model:
    torch.manual_seed(0)
    return model_of(ClassToken())


# -- places -------------------------------------------------------------------------------------------------------


def test_places_are_found_by_name_and_by_what_a_batch_shows() -> None:
    found = places(resolve("zoo:cifar10_mobilenetv2"), Cut(at=("stages.[1-9].*.depthwise",), block="coord"))
    assert [place.name for place in found] == [
        f"stages.{i}.{j}.depthwise" for i, n in ((1, 2), (2, 3), (3, 2)) for j in range(n)
    ]
    assert found[0].takes == found[0].gives == Signal("map", 64, (16, 16))
    assert found[-1].takes == Signal("map", 384, (4, 4))


def test_a_block_of_maps_is_told_of_tokens_as_a_map_without_class_tokens() -> None:
    assert [place.takes for place in places(class_token(), Cut(at=("mix",), block="sepconv"))] == [
        Signal("map", 8, (4, 4))
    ]


def test_of_modules_inside_each_other_the_outer_one_is_meant() -> None:
    found = places(resolve("zoo:cifar10_vit"), Cut(at=("blocks.*",), block="identity"))
    assert [place.name for place in found] == [f"blocks.{i}" for i in range(4)]


def test_what_a_wildcard_names_and_is_no_place_is_passed_over() -> None:
    found = places(fitted("source", 7), Cut(at=("*",), block="se"))
    assert "linear" not in [place.name for place in found] and len(found) == 8


def test_looking_leaves_no_trace() -> None:
    model = fitted("source", 7)
    model.module.train()
    before, random = tensor_digest(model.module.state_dict()), torch.get_rng_state()
    operate(model, SE)
    assert tensor_digest(model.module.state_dict()) == before and torch.equal(torch.get_rng_state(), random)
    assert model.module.training and not any(m._forward_hooks or m._forward_pre_hooks for m in model.module.modules())


def test_a_forward_that_looks_at_values_is_looked_at_too() -> None:
    class Asks(TinyNet):
        def forward(self, x: Tensor) -> Tensor:
            assert float(x.abs().max()) > 0
            return super().forward(x)

    assert [place.name for place in places(model_of(Asks()), SE)] == ["relu1", "relu2"]


# -- operations ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("reference", "cut"),
    [
        ("zoo:cifar10_mobilenetv2", Cut(at=("stages.[1-9].*.depthwise",), block="coord")),
        ("zoo:cifar10_mobilenetv2", Cut(at=("stages.[1-9].*.depthwise",), block="se", options={"b0": 0.0})),
        ("zoo:cifar10_resnet20", Cut(at=("layer?",), block="cbam")),
        ("zoo:cifar10_vit", Cut(at=("blocks.0", "blocks.2.mlp"), block="asking")),
        ("zoo:cifar10_vit", Cut(at=("blocks.1",), block="asking", how="before")),
    ],
)
def test_an_exact_start_is_the_network_itself(reference: str, cut: Cut) -> None:
    model = resolve(reference)
    made = operate(model, cut)
    assert start_error(model, made, torch.randn(8, *model.input_shape)) <= 1e-6
    assert made.classes == model.classes and made.mean == model.mean and not made.module.training


def test_weights_keep_their_values_and_their_names_show_the_place() -> None:
    model = fitted("source", 7)
    old, new = model.module.state_dict(), operate(model, Cut(at=("bn1",), block="se")).module.state_dict()
    renamed = {key.replace("bn1.", "bn1.module."): value for key, value in old.items()}
    assert all(torch.equal(new[key], value) for key, value in renamed.items())
    assert {key.split(".")[:2][1] for key in new.keys() - renamed.keys()} == {"block"}
    signal = Signal("map", 16, (8, 8))
    added = sum(value.numel() for key, value in new.items() if key not in renamed)
    assert added == BLOCKS["se"].parameters(signal)


def test_fresh_weights_are_those_of_the_seed() -> None:
    cut = Cut(at=("blocks.0.attention", "blocks.1.attention"), block="sepconv")
    a, b, c = (operate(tiny_vit(1), cut, "fresh", seed=seed).module.state_dict() for seed in (3, 3, 4))
    key = next(key for key in a if ".block." in key and a[key].ndim > 1)
    assert tensor_digest(a) == tensor_digest(b) != tensor_digest(c)
    assert not torch.equal(a[key], a[key.replace("blocks.0", "blocks.1")])


def test_a_replaced_module_is_gone_and_others_stay() -> None:
    model = resolve("zoo:cifar10_vit")
    made = operate(model, Cut(at=("blocks.*.attention",), block="pool"), "fresh")
    assert not [key for key in made.module.state_dict() if "qkv" in key]
    gone = sum(p.numel() for i in range(4) for p in model.module.get_submodule(f"blocks.{i}.attention").parameters())
    numbers = [sum(p.numel() for p in m.module.parameters()) for m in (model, made)]
    assert numbers[0] - numbers[1] == gone


def test_class_tokens_are_kept_aside_and_put_back() -> None:
    class Twice(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            assert x.shape[1:] == (5, 2, 3)
            return 2 * x

    x = torch.randn(2, 2 + 6, 5)
    y = AsMap(Twice(), Signal("tokens", 5, (2, 3), 2))(x)
    assert torch.equal(y[:, :2], x[:, :2]) and torch.equal(y[:, 2:], 2 * x[:, 2:])
    grid = torch.randn(2, 2, 3, 5)
    assert torch.equal(AsMap(Twice(), Signal("grid", 5, (2, 3)))(grid), 2 * grid)


def test_places_of_tokens_on_a_map_keep_their_order() -> None:
    """h before w, with h != w: a column of the map is every w-th token."""

    class FirstColumn(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x * torch.tensor([1.0, 0.0, 0.0])

    x = torch.ones(1, 6, 4)
    y = AsMap(FirstColumn(), Signal("tokens", 4, (2, 3)))(x)
    assert y[0, :, 0].tolist() == [1, 0, 0, 1, 0, 0]
    grid = torch.randn(2, 2, 3, 5)
    assert torch.equal(AsTokens(nn.Identity(), Signal("grid", 5, (2, 3)))(grid), grid)


def test_what_a_module_is_given_beside_its_first_argument_reaches_it() -> None:
    class Adds(nn.Module):
        def forward(self, x: Tensor, y: Tensor, *, scale: float) -> Tensor:
            return x + scale * y

    assert Before(Adds(), nn.Identity())(torch.ones(1), torch.ones(1), scale=2.0) == 3


def test_a_network_with_blocks_is_still_a_chain_of_blocks() -> None:
    model = resolve("zoo:cifar10_mobilenetv2")
    made = operate(model, Cut(at=("stages.[1-9].*.depthwise",), block="coord"))
    assert [node.name for node in chain(made).nodes] == [node.name for node in chain(model).nodes]


def test_a_second_operation_goes_into_the_first_ones_network(tmp_path: Path) -> None:
    model = resolve("zoo:cifar10_resnet20")
    once = operate(model, Cut(at=("layer1.1",), block="se"))
    twice = operate(once, Cut(at=("layer1.1", "layer3.0"), block="eca"))
    assert start_error(model, twice) <= 1e-6
    assert "layer1.1.module.block.fc1.weight" in twice.module.state_dict()
    saved.save(twice, tmp_path / "model")
    assert start_error(twice, saved.load(tmp_path / "model")) == 0


# -- built again --------------------------------------------------------------------------------------------------


@pytest.fixture
def stored(tmp_path: Path) -> Path:
    """A saved network with gates, one of whose weights is not what it starts with."""
    made = operate(resolve("zoo:cifar10_mobilenetv2"), Cut(at=("stages.[1-9].*.depthwise",), block="coord"))
    with torch.no_grad():
        made.module.get_submodule("stages.1.0.depthwise.block.conv_h").weight.normal_()
    saved.save(made, tmp_path / "model")
    return tmp_path / "model"


def test_a_saved_network_answers_alike_in_a_fresh_process(stored: Path) -> None:
    code = (
        "import sys, torch; from upcycle.core import saved; m = saved.load(sys.argv[1]); torch.manual_seed(0);"
        "print(m.module(torch.randn(2, *m.input_shape)).tolist())"
    )
    said = subprocess.run([sys.executable, "-c", code, str(stored)], capture_output=True, text=True, check=True)
    model = saved.load(stored)
    torch.manual_seed(0)
    right = model.module(torch.randn(2, *model.input_shape))
    assert torch.equal(torch.tensor(json.loads(said.stdout)), right.detach())
    plain = resolve("zoo:cifar10_mobilenetv2")
    assert start_error(plain, model) > 1e-3  # the changed weight counts


def _place(record: dict[str, Any], **change: Any) -> None:
    record["places"][0].update(change)


@pytest.mark.parametrize(
    ("tamper", "says"),
    [
        (lambda r: _place(r, name="stages.1.0.expand"), "weights|another place|stages"),
        (lambda r: _place(r, name="nothing"), "no module of"),
        (lambda r: _place(r, name="*"), "odd names"),
        (lambda r: _place(r, name="linear"), "neither a map nor tokens"),
        (lambda r: _place(r, name=7), r"str"),
        (lambda r: _place(r, takes={"layout": "map", "channels": 3, "size": [1, 1], "extra": 0}), "another place"),
        (lambda r: _place(r, takes={}), "channels|layout|size"),
        (lambda r: r.update(places=[]), "length"),
        (lambda r: r.update(places=r["places"] + r["places"][:1]), "odd names"),
        (lambda r: r.update(places=r["places"][1:]), "weights|lacks|has no|not"),
        (lambda r: r.update(block="evil"), "no block 'evil'"),
        (lambda r: r.update(how="instead"), "Invalid enum"),
        (lambda r: r.update(how="replace"), "replace|places|start"),
        (lambda r: r.update(start="now"), "Invalid enum"),
        (lambda r: r["options"].update(r="many"), "must be like 32"),
        (lambda r: r["options"].update(r=0), "r must be at least 1"),
        (lambda r: r["options"].update(other=1), "no option of coord"),
        (lambda r: r.update(options=[]), "object"),
        (lambda r: r.pop("options"), "options"),
    ],
)
def test_a_tampered_record_is_refused_in_one_sentence(
    stored: Path, tamper: Callable[[dict[str, Any]], object], says: str
) -> None:
    """Also where the digests hold, since a stranger can write both."""
    file = stored / saved.ARCHITECTURE
    architecture = json.loads(file.read_text())
    tamper(architecture["options"]["cut"])
    file.write_text(json.dumps(architecture))
    with pytest.raises(UserError, match="damaged"):  # by its digest
        saved.load(stored)
    store.write_manifest(stored)
    with pytest.raises(UserError, match=says) as error:
        saved.load(stored)
    assert "\n" not in str(error.value)


def test_a_record_asks_for_no_giant() -> None:
    with pytest.raises(UserError, match="too many"):
        operate(
            resolve("zoo:cifar10_vit"),
            Cut(at=("blocks.0.attention",), block="sepconv", options={"expansion": 10**6}),
            "fresh",
        )


# -- refused ------------------------------------------------------------------------------------------------------


class Reuses(TinyNet):
    """Runs its first ReLU twice."""

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu1(self.bn1(self.conv1(x)))
        x = self.relu1(self.bn2(self.conv2(self.pool1(x))))
        return self.linear(self.pool(x).flatten(1))


class Passes(TinyNet):
    """Runs its first ReLU, which stands in a plain list too, from there."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden = [self.relu1]

    def forward(self, x: Tensor) -> Tensor:
        x = self.hidden[0](self.bn1(self.conv1(x)))
        x = self.relu2(self.bn2(self.conv2(self.pool1(x))))
        return self.linear(self.pool(x).flatten(1))


class Scripted(TinyNet):
    """Has a module of TorchScript."""

    def __init__(self) -> None:
        super().__init__()
        self.relu1 = torch.jit.script(nn.ReLU())  # type: ignore[no-untyped-call]


class Halves(nn.Module):
    """Half of each weight."""

    def forward(self, x: Tensor) -> Tensor:
        return x / 2


def parametrised() -> nn.Module:
    net = TinyNet()
    parametrize.register_parametrization(net.conv1, "weight", Halves())
    return net


def spoilt() -> nn.Module:
    net = TinyNet()
    net.conv2.weight.data[0] = float("nan")
    return net


@pytest.mark.parametrize(
    ("network", "cut", "says"),
    [
        (TinyNet, {"at": ("relu9",)}, "no module of net called 'relu9'. Did you mean 'relu"),
        (TinyNet, {"at": ("layers.*",)}, "no module of net called"),
        (TinyNet, {"at": ()}, "must name modules"),
        (TinyNet, {"at": ("linear",)}, "cannot be put at 'linear': it has 10 numbers of an image there"),
        (TinyNet, {"at": ("relu1", "linear")}, "cannot be put at 'linear'"),
        (TinyNet, {"at": ("linea?",)}, "cannot be put at 'linear'"),
        (TinyNet, {"block": "pool", "at": ("linear",)}, "cannot be put at 'linear'"),
        (TinyNet, {"block": "sea"}, "no block 'sea'. Did you mean 'se'"),
        (TinyNet, {"how": "before"}, "se can be put at a module with how gate or replace, not before"),
        (TinyNet, {"options": {"q": 1}}, "no option of se 'q'"),
        (TinyNet, {"options": {"r": 1.5}}, "option r of se must be like 16"),
        (TinyNet, {"options": {"r": True}}, "option r of se must be like 16"),
        (TinyNet, {"options": {"r": 0}}, "r must be at least 1"),
        (TinyNet, {"block": "halving"}, "halving at 'relu1' gives 16 x 4 x 4 where 16 x 8 x 8 is needed"),
        (TinyNet, {"block": "halving", "how": "before"}, "halving at 'relu1' gives 16 x 4 x 4 where 16 x 8 x 8"),
        (TinyNet, {"block": "shifting"}, "does not start at its own function: its answers differ by"),
        (Reuses, {}, "cannot be put at 'relu1': the network runs it 2 times"),
        (Reuses, {"at": ("relu2",)}, "the network does not run it"),
        (Passes, {}, "runs past 'relu1'"),
        (Scripted, {}, "'relu1' is TorchScript"),
        (parametrised, {}, "'conv1' computes its weights from others"),
        (spoilt, {}, "not finite, in 'conv2.weight'"),
    ],
)
def test_what_cannot_be_is_refused(network: Callable[[], nn.Module], cut: dict[str, Any], says: str) -> None:
    torch.manual_seed(0)
    model = model_of(network())
    with pytest.raises(UserError, match=says) as error:
        operate(
            model, Cut(**{"at": ("relu1",), "block": "se", **cut}), "fresh" if cut.get("block") == "pool" else "same"
        )
    assert "\n" not in str(error.value)


def test_a_mixer_needs_a_square_of_tokens() -> None:
    class Words(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.words, self.mix, self.linear = nn.Linear(64, 33 * 4), nn.Linear(4, 4), nn.Linear(4, 10)

        def forward(self, x: Tensor) -> Tensor:
            return self.linear(self.mix(self.words(x.flatten(1)).unflatten(1, (33, 4))).mean(1))

    says = "there is 33 tokens on no square of places, and sepconv works on maps or tokens on a square of places"
    with pytest.raises(UserError, match=says):
        operate(model_of(Words()), Cut(at=("mix",), block="sepconv"), "fresh")
    made = operate(model_of(Words()), Cut(at=("mix",), block="identity"), "fresh")
    assert made.module(torch.zeros(2, 1, 8, 8)).shape == (2, 10)


def test_a_block_takes_one_tensor() -> None:
    class Two(nn.Module):
        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            return x + y

    class Joins(TinyNet):
        def __init__(self) -> None:
            super().__init__()
            self.two = Two()

        def forward(self, x: Tensor) -> Tensor:
            x = self.relu1(self.bn1(self.conv1(x)))
            return self.linear(self.pool(self.two(x, x)).flatten(1))

    with pytest.raises(UserError, match="it is given 2 tensors, and pool takes one"):
        operate(model_of(Joins()), Cut(at=("two",), block="pool"), "fresh")
    assert start_error(model_of(net := Joins()), operate(model_of(net), Cut(at=("two",), block="se"))) <= 1e-6


def test_no_start_at_the_same_function_is_refused_by_name() -> None:
    with pytest.raises(UserError, match="pool has no start at the same function with how replace"):
        operate(tiny_vit(1), Cut(at=("blocks.*.attention",), block="pool"))


def test_passed_over_modules_are_told() -> None:
    told: list[str] = []
    made = operate(
        tiny_vit(1), Cut(at=("blocks.*",), block="attention", options={"head": 16}), "fresh", say=told.append
    )
    assert not told and len(made.options["cut"]["places"]) == 2
