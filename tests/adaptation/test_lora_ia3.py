"""LoRA and IA3 by peft: where they go, what trains, and that merging is exact."""

from __future__ import annotations

import dataclasses
import sys
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from tests.settings import fitted, tiny_data, tiny_model
from upcycle.adaptation.adapters.peft_layers import layers, merge
from upcycle.adaptation.ia3 import IA3, add_ia3
from upcycle.adaptation.lora import LoRA, add_lora
from upcycle.adaptation.probe import LinearProbe
from upcycle.adaptation.ssf import SSF
from upcycle.core.errors import UserError
from upcycle.core.evaluate import evaluate, predict_logits
from upcycle.core.heads import with_classes
from upcycle.core.models import Model
from upcycle.core.recipe import Recipe
from upcycle.core.references import resolve
from upcycle.core.run import Run
from upcycle.core.saved import load, save
from upcycle.data import Images

RECIPE = Recipe(epochs=2, batch_size=32, optimizer="adamw", lr=0.01)
METHODS = pytest.mark.parametrize("method", [LoRA, IA3])


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def of(module: nn.Module, name: str = "net") -> Model:
    """A network for 8x8 grey images and ten classes."""
    return dataclasses.replace(tiny_model(name, 0), module=module.eval())


class Attention(nn.Module):
    """One block of a ViT of patches of 2x2, with the names that timm gives."""

    def __init__(self, d: int = 16) -> None:
        super().__init__()
        self.embed, self.norm = nn.Conv2d(1, d, 2, 2), nn.LayerNorm(d)
        self.qkv, self.proj = nn.Linear(d, 3 * d), nn.Linear(d, d)
        self.fc1, self.fc2, self.head = nn.Linear(d, 4 * d), nn.Linear(4 * d, d), nn.Linear(d, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x).flatten(2).transpose(1, 2)
        q, k, v = self.qkv(self.norm(x)).chunk(3, -1)
        x = x + self.proj(nn.functional.scaled_dot_product_attention(q, k, v))
        x = x + self.fc2(nn.functional.gelu(self.fc1(x)))
        return self.head(x.mean(1))


class Convolutions(nn.Module):
    """Strided, padded, 1x1, biased or not; with BatchNorm whose statistics are not its initial ones."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(1, 8, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(8)
        self.c, self.d, self.e = nn.Conv2d(8, 12, 1), nn.Conv2d(12, 12, (3, 1), padding=(1, 0)), nn.Linear(12, 10)
        self.b.running_mean.normal_(generator=generator())
        self.b.running_var.uniform_(0.5, 2, generator=generator())

    def forward(self, x: Tensor) -> Tensor:
        return self.e(self.d(self.c(self.b(self.a(x)).relu()).relu()).mean((2, 3)))


def disturb(module: nn.Module) -> None:
    """Adapters that do something."""
    for i, (name, p) in enumerate(module.named_parameters()):
        if "lora_" in name or "ia3_l" in name:
            noise = torch.randn(p.shape, generator=torch.Generator().manual_seed(i))
            p.data.copy_(0.3 * noise + ("ia3_l" in name))


# -- where they go ----------------------------------------


def test_defaults_follow_the_architecture() -> None:
    vit, cnn = of(Attention()), of(Convolutions())
    assert LoRA(source=vit).sites(vit) == ["qkv", "proj", "fc1", "fc2"]
    assert LoRA(source=cnn).sites(cnn) == ["a", "c", "d"]
    assert IA3(source=vit).sites(vit) == (["qkv", "fc2"], ["fc2"])
    assert IA3(source=cnn).sites(cnn) == (["a", "c", "d"], [])
    flat = of(nn.Sequential(nn.Flatten(), nn.Linear(64, 80), nn.ReLU(), nn.Linear(80, 10)))
    assert IA3(source=flat).sites(flat) == (["1"], [])  # neither keys, values nor feed-forward, nor a convolution


def test_patterns_choose() -> None:
    vit = of(Attention())
    assert LoRA(source=vit, targets=("fc?", "qkv")).sites(vit) == ["qkv", "fc1", "fc2"]
    assert LoRA(source=vit, targets=("embed",)).sites(vit) == ["embed"]
    assert IA3(source=vit, targets=("*",)).sites(vit) == (["embed", "qkv", "proj", "fc1", "fc2"], ["fc2"])
    assert IA3(source=vit, targets=("fc*",), feedforward=("fc1",)).sites(vit) == (["fc1", "fc2"], ["fc1"])


def test_a_name_that_ends_like_another_is_another() -> None:
    """peft takes a list of names for endings, which would put adapters where nobody asked for them."""
    net = nn.ModuleDict({"fc": nn.Linear(4, 4), "block": nn.ModuleDict({"fc": nn.Linear(4, 4)})})
    add_lora(net, ["fc"], 2, 2.0, 0.0, generator())
    assert {name for name, _ in net.named_parameters() if "lora" in name} == {
        "fc.lora_A.default.weight", "fc.lora_B.default.weight"}  # fmt: skip
    net = nn.Sequential(nn.Linear(4, 4), *[nn.Identity()] * 9, nn.Linear(4, 4))  # "0" and "10"
    add_ia3(net, ["0", "10"], ["0"])
    assert net[0].is_feedforward and not net[10].is_feedforward


def test_layers_that_would_not_merge_are_left_out() -> None:
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.plain, self.computed = nn.Linear(64, 8), parametrizations.weight_norm(nn.Linear(8, 8))
            self.one, self.other, self.idle = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 8)
            self.other.weight = self.one.weight
            self.attention, self.head = nn.MultiheadAttention(8, 2, batch_first=True), nn.Linear(8, 10)

        def forward(self, x: Tensor) -> Tensor:
            x = self.other(self.one(self.computed(self.plain(x.flatten(1)))))[:, None]
            return self.head(self.attention(x, x, x)[0][:, 0])

    assert list(layers(of(Odd()))) == ["plain"]
    dilated = of(nn.Sequential(nn.Conv2d(1, 4, 3, padding=2, dilation=2), nn.Conv2d(4, 4, 3, groups=2),
                               nn.Conv2d(4, 4, 3, padding=1, padding_mode="reflect"), nn.AdaptiveAvgPool2d(1),
                               nn.Flatten(), nn.Linear(4, 10)))  # fmt: skip
    assert list(layers(dilated)) == ["0", "1", "2"]
    with pytest.raises(UserError, match="no plain convolution"):
        LoRA(source=dilated).sites(dilated)
    assert IA3(source=dilated).sites(dilated) == (["0", "1", "2"], [])


# -- numbers and exactness ----------------------------------------


def trained(method: Any, model: Model, **options: Any) -> int:
    """How many numbers the optimiser of a whole ``fit`` holds."""
    held = []

    class Counting(Run):
        def update(self, optimizer: torch.optim.Optimizer, clip: float | None = None) -> None:
            held.append(sum(p.numel() for group in optimizer.param_groups for p in group["params"]))
            super().update(optimizer, clip)

    one = dataclasses.replace(RECIPE, epochs=1, batch_size=160)
    method(source=model, recipe=one, **options).fit(Counting(None, quiet=True), tiny_data())
    return held[0]


def test_as_many_numbers_train_as_computed() -> None:
    head = 16 * 10 + 10
    linear = {"qkv": (16, 48), "proj": (16, 16), "fc1": (16, 64), "fc2": (64, 16)}
    assert trained(LoRA, of(Attention()), rank=3) == 3 * sum(i + o for i, o in linear.values()) + head
    assert trained(IA3, of(Attention())) == 48 + 64 + head  # outputs of qkv, inputs of fc2
    head = 12 * 10 + 10
    assert trained(LoRA, of(Convolutions()), rank=2) == 2 * (9 + 8 + 8 + 12 + 12 * 3 + 12) + head
    assert trained(IA3, of(Convolutions())) == 8 + 12 + 12 + head


@pytest.mark.parametrize("network", [Attention, Convolutions])
@METHODS
def test_merged_equals_unmerged_and_the_architecture_is_what_it_was(network: Any, method: Any) -> None:
    model = of(network())
    module, images = with_classes(model, tuple("abc")).module, model.example(8)
    with torch.no_grad():
        module.get_submodule("head" if network is Attention else "e").weight.normal_(generator=generator())
    before, plain = {k: (v.shape, v.dtype) for k, v in module.state_dict().items()}, module(images)
    if method is LoRA:
        tuner = add_lora(module, LoRA(source=model).sites(model), 3, 5.0, 0.0, generator())
    else:
        names, inputs = IA3(source=model, targets=("*",)).sites(model)
        tuner = add_ia3(module, names, inputs or names[1:2])
    assert torch.equal(module(images), plain)  # at the start nothing changes
    disturb(module)
    expected = module(images)
    assert float((expected - plain).detach().abs().max()) > 1e-2
    found, error = merge(tuner, images)
    assert torch.allclose(found(images), expected, atol=1e-5) and error < 1e-5
    assert {k: (v.shape, v.dtype) for k, v in found.state_dict().items()} == before
    assert not any(type(m).__module__.startswith("peft") for m in found.modules()) and not hasattr(found, "peft_config")
    assert all(p.requires_grad for p in found.parameters())


def test_a_layer_used_in_a_second_way_is_refused_when_merging() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.head = nn.Linear(64, 64), nn.Linear(64, 10)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.a(x.flatten(1)) @ self.a.weight)

    net = Twice()
    tuner = add_lora(net, ["a"], 2, 2.0, 0.0, generator())
    disturb(net)
    with pytest.raises(UserError, match="second way"):
        merge(tuner, torch.randn(4, 1, 8, 8, generator=generator()))


class Looking(Run):
    """Keeps the state that training ended with, before adapters are merged."""

    def plain(self, module: nn.Module) -> nn.Module:
        self.last = {name: value.clone() for name, value in module.state_dict().items()}
        return super().plain(module)


@METHODS
def test_what_is_frozen_stays_bit_for_bit(method: Any) -> None:
    source = fitted("source", 7)
    run = Looking(None, quiet=True, precision="32-true")
    method(source=source, recipe=RECIPE).fit(run, tiny_data())
    frozen = {name.replace(".base_layer", ""): value for name, value in run.last.items()
              if "lora_" not in name and "ia3_l" not in name and not name.startswith("linear")}  # fmt: skip
    original = source.module.state_dict()
    assert set(frozen) == {name for name in original if not name.startswith("linear")}
    assert any("running_mean" in name for name in frozen)
    assert all(torch.equal(value, original[name]) for name, value in frozen.items())
    adapters = {name: value for name, value in run.last.items() if "lora_B" in name or "ia3_l" in name}
    start = 1.0 if method is IA3 else 0.0
    assert adapters and all(bool((value != start).any()) for value in adapters.values())


def test_the_network_given_is_left_alone() -> None:
    source = fitted("source", 7)
    before = {name: value.clone() for name, value in source.module.state_dict().items()}
    LoRA(source=source, recipe=RECIPE).fit(Run(None, quiet=True), tiny_data())
    assert all(torch.equal(value, before[name]) for name, value in source.module.state_dict().items())


def test_vectors_are_not_decayed() -> None:
    network = with_classes(of(Convolutions()), tuple("ab")).module
    add_ia3(network, ["a", "c"], [])
    network.get_submodule("e").requires_grad_(True)
    optimizer = IA3(source=network, recipe=dataclasses.replace(RECIPE, weight_decay=0.1))._optimizer(network)
    decay = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    found = {name: decay[id(p)] for name, p in network.named_parameters() if p.requires_grad}
    assert len(found) == len(decay)
    assert found == {name: 0.0 if "ia3_l" in name else 0.1 for name in found} and set(found.values()) == {0.0, 0.1}


def test_fused_transformer_layers_see_their_adapters() -> None:
    """Torch's encoder layer reads its linear layers' weights in evaluation mode, past the adapters."""

    class Encoder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.block, self.head = nn.TransformerEncoderLayer(8, 2, 16, 0.0, batch_first=True), nn.Linear(8, 10)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.block(x[:, 0]).mean(1))

    method = LoRA(source=of(Encoder()), recipe=RECIPE)
    seen = []

    class Watching(Run):
        def evaluate(self, module: nn.Module, split: Any, name: str = "validation") -> Any:
            module.eval()
            z = module(split.batch(torch.arange(8), device=self.device).images)  # with gradients: nothing fused
            with torch.no_grad():
                seen.append(float((module(split.batch(torch.arange(8), device=self.device).images) - z).abs().max()))
            return super().evaluate(module, split, name)

    network = method.fit(Watching(None, quiet=True, precision="32-true"), tiny_data())
    assert method.sites(of(Encoder())) == ["block.linear1", "block.linear2"]
    assert max(seen) < 1e-5 and not hasattr(network.block.linear1, "lora_A")
    assert torch.backends.mha.get_fastpath_enabled()


# -- what one gets ----------------------------------------


def subset(*names: str) -> Images:
    return tiny_data(400).only(names)


@METHODS
def test_other_classes_are_learnt_and_the_product_is_rebuilt_from_files(method: Any, tmp_path: Any) -> None:
    source = resolve("zoo:digits_teacher")
    data = subset("7", "2", "5").normalised(source.mean, source.std)
    tuning = method(source=source, recipe=dataclasses.replace(RECIPE, epochs=4))
    tuning.require(data)
    run = Run(None, quiet=True)
    module = tuning.fit(run, data)
    made = tuning.product(module, data)
    assert made.classes == ("7", "2", "5") and made.name.endswith(tuning.card.name)
    assert list(module.state_dict()) == list(with_classes(source, made.classes).module.state_dict())
    assert evaluate(module, data.validation).accuracy > 0.8
    assert any("numbers were trained" in note for note in run.notes)
    save(made, tmp_path / "model")
    again = load(tmp_path / "model")
    images = made.example(4)
    with torch.no_grad():
        assert torch.equal(again.module(images), module(images))


@pytest.mark.parametrize("order", [1, -1])
@pytest.mark.parametrize("method", [LoRA, IA3, SSF, LinearProbe])
def test_where_the_classes_are_the_source_s_it_goes_on_from_its_classifier(method: Any, order: int) -> None:
    source = fitted("source", 7)
    data = tiny_data().only(source.classes[::order]).normalised(source.mean, source.std)
    still = Recipe(epochs=1, batch_size=160, optimizer="sgd", lr=1e-9)
    module = method(source=source, recipe=still).fit(Run(None, quiet=True, precision="32-true"), data)
    z = predict_logits(module, data.test)
    right = predict_logits(source.module, data.test)
    right = right if order > 0 else right.flip(1)
    assert float((z - right).abs().max() / right.abs().max()) < (
        0.3 if method is SSF else 1e-3
    )  # SSF begins with noise


def test_dropout_acts_in_training_only() -> None:
    network = of(Attention()).module
    add_lora(network, ["fc1"], 4, 4.0, 0.5, generator())
    disturb(network)
    images = of(network).example(4)
    network.eval()
    assert torch.equal(network(images), network(images))
    network.train()
    assert not torch.equal(network(images), network(images))


def test_the_draw_of_lora_is_the_generators() -> None:
    def drawn(seed: int, own: int) -> Tensor:
        torch.manual_seed(seed)
        network = nn.Sequential(nn.Linear(4, 4))
        add_lora(network, ["0"], 2, 2.0, 0.0, torch.Generator().manual_seed(own))
        return network.state_dict()["0.lora_A.default.weight"]

    assert torch.equal(drawn(0, 5), drawn(1, 5)) and not torch.equal(drawn(0, 5), drawn(0, 6))
    assert float(drawn(0, 5).abs().max()) <= 0.5  # 1 / √4


# -- mistakes ----------------------------------------


@METHODS
def test_a_pattern_that_matches_nothing_is_named_with_the_nearest(method: Any) -> None:
    with pytest.raises(UserError, match=r"no layer to adapt 'convv1'\. Did you mean 'conv1'"):
        method(source=tiny_model("source", 0), targets=("convv1",)).require(tiny_data())
    with pytest.raises(UserError, match="no layer to adapt 'linear'"):  # the classifier trains in full anyway
        method(source=tiny_model("source", 0), targets=("linear",)).require(tiny_data())


def test_what_cannot_work_is_said_before_any_work() -> None:
    data, source = tiny_data(), tiny_model("source", 0)
    for options, words in (({"rank": 0}, "rank"), ({"alpha": 0.0}, "alpha"), ({"dropout": 1.0}, "dropout")):
        with pytest.raises(UserError, match=words):
            LoRA(source=source, **options)  # type: ignore[arg-type]
    with pytest.raises(UserError, match="no layer to adapt 'conv2'"):  # not among targets
        IA3(source=source, targets=("conv1",), feedforward=("conv2",)).require(data)
    grouped = of(nn.Sequential(nn.Conv2d(1, 4, 3), nn.Conv2d(4, 4, 3, groups=4), nn.Flatten(), nn.Linear(64, 10)))
    with pytest.raises(UserError, match="grouped convolution"):
        IA3(source=grouped, targets=("*",), feedforward=("1",)).require(data)
    with pytest.raises(UserError, match="no linear layer but its classifier"):
        LoRA(source=of(nn.Sequential(nn.Flatten(), nn.Linear(64, 10)))).require(data)
    with pytest.raises(UserError, match="end in a linear layer"):
        LoRA(source=of(nn.Sequential(nn.Conv2d(1, 10, 8), nn.Flatten()))).require(data)
    large = dataclasses.replace(of(nn.Sequential(nn.Flatten(), nn.Linear(3 * 64, 8), nn.Linear(8, 10))),
                                input_shape=(3, 8, 8))  # fmt: skip
    with pytest.raises(UserError, match="takes 3 input channels and the images have 1"):
        LoRA(source=large).require(data)
    large = dataclasses.replace(of(nn.Sequential(nn.Flatten(), nn.Linear(256, 8), nn.Linear(8, 10))),
                                input_shape=(1, 16, 16))  # fmt: skip
    with pytest.raises(UserError, match=r"does not take images of 8 x 8 pixels.*load the data at 16"):
        LoRA(source=large).require(data)
    data.train.labels[3] = -1
    with pytest.raises(UserError, match="1 of 160 training images"):
        LoRA(source=source).require(data)


def test_without_peft_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(UserError, match=r"pip install 'upcycle\[peft\]'"):
        LoRA(source=tiny_model("source", 0)).require(tiny_data())
