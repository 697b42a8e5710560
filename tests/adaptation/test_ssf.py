"""SSF: the invariants of its card, folding on many architectures, adapters in files."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.settings import fitted, tiny_data, tiny_model
from upcycle.adaptation.adapters.scale_shift import (
    TINY,
    Adapter,
    ScaleShift,
    _Conv,
    _Linear,
    _Output,
    attach,
    load_adapter,
)
from upcycle.adaptation.ssf import SSF
from upcycle.core import saved
from upcycle.core.errors import UserError
from upcycle.core.heads import classifier
from upcycle.core.models import Model
from upcycle.core.outputs import Logits
from upcycle.core.recipe import Recipe
from upcycle.core.run import Run
from upcycle.surgery.sites import Site, fold, site

RECIPE = Recipe(epochs=2, batch_size=32, optimizer="adamw", lr=0.01)


def model_of(module: nn.Module, size: int = 32, channels: int = 3, classes: int = 5) -> Model:
    return Model(module=module.eval(), input_shape=(channels, size, size), mean=(0.0,) * channels,
                 std=(1.0,) * channels, classes=tuple(map(str, range(classes))))  # fmt: skip


def shake(adapter: Adapter, seed: int = 0) -> None:
    """γ in [0.5, 1.5], β in [-0.5, 0.5]: what is small shows nothing."""
    g = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for s in adapter.sites:
            s.module.ssf.gamma.uniform_(0.5, 1.5, generator=g)
            if s.module.ssf.beta is not None:
                s.module.ssf.beta.uniform_(-0.5, 0.5, generator=g)


def stir(module: nn.Module) -> nn.Module:
    """Draw the gains, biases and statistics that fresh networks have at 0 and 1, so that every branch counts."""
    g = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, p in [*module.named_parameters(), *module.named_buffers()]:
            if p.is_floating_point() and p.ndim == 1:
                low, high = (-0.3, 0.3) if "bias" in name or "mean" in name else (0.5, 1.5)
                p.uniform_(low, high, generator=g)
    return module


def layer(m: nn.Module, mode: str = "") -> tuple[Site, nn.Module, ScaleShift]:
    """One layer in a network of its own, followed by nothing."""
    net = nn.Sequential(m)
    s = site(net, "0", create=True)
    assert s is not None
    ssf = ScaleShift(s.channels, s.axis, bool(s.biases), torch.Generator().manual_seed(0))
    with torch.no_grad():
        ssf.gamma.uniform_(0.5, 1.5)
        if ssf.beta is not None:
            ssf.beta.uniform_(-1, 1)
    return s, net, ssf


# -- the operator ----------------------------------------


def _double(*shape: int, low: float = -1.0) -> Tensor:
    return torch.empty(*shape, dtype=torch.float64).uniform_(low, 1.5).requires_grad_()


@pytest.mark.parametrize("shift", [True, False])
def test_gradients_are_those_of_autograd(shift: bool) -> None:
    torch.manual_seed(0)
    gamma, beta = _double(6, low=0.4), _double(6) if shift else None
    weight, bias = _double(6, 4).detach(), _double(6).detach()
    linear = lambda x, g, *b: _Linear.apply(x, weight, bias, g, *(b or (None,)))  # noqa: E731
    rest = (gamma,) if beta is None else (gamma, beta)
    assert torch.autograd.gradcheck(linear, (_double(3, 2, 4), *rest))
    for axis, shape in ((-1, (3, 2, 6)), (-3, (2, 6, 3, 4)), (-2, (2, 6, 5))):
        output = lambda x, g, *b, axis=axis: _Output.apply(x, g, *(b or (None,)), axis)  # noqa: E731
        assert torch.autograd.gradcheck(output, (_double(*shape), *rest))
    kernels = [(6, 2, 3), (6, 2, 3, 3), (6, 2, 1, 2, 2)]
    for kernel in kernels:
        n = len(kernel) - 2
        w, how = _double(*kernel).detach(), ((2,) * n, (1,) * n, (1,) * n, 2)
        conv = lambda x, g, *b, w=w, how=how: _Conv.apply(x, w, bias, g, *(b or (None,)), *how)  # noqa: E731
        assert torch.autograd.gradcheck(conv, (_double(2, 4, *(4,) * n), *rest))


def test_near_nought_the_gradient_of_gamma_is_damped_and_finite() -> None:
    x, gamma, beta = _double(50, 3), torch.tensor([0.0, TINY / 2, -2 * TINY], dtype=torch.float64), _double(3)
    gamma.requires_grad_()
    dy = torch.randn(50, 3, dtype=torch.float64)
    (found,) = torch.autograd.grad(_Output.apply(x, gamma, beta, -1), gamma, dy)
    expected = (dy * x).sum(0) * torch.tensor([0.0, 0.5, 1.0])
    assert torch.allclose(found, expected, rtol=1e-8, atol=1e-8)


def test_training_keeps_outputs_and_no_inputs() -> None:
    """Of linear, GELU, linear the two outputs are kept, of which GELU keeps the first anyhow, and nothing else."""
    net = nn.Sequential(nn.Linear(5, 7), nn.GELU(), nn.Linear(7, 6), nn.Flatten(), nn.LazyLinear(5))
    net(torch.zeros(1, 4, 5))
    model = Model(module=nn.Sequential(nn.Flatten(2), net), input_shape=(4, 1, 5), mean=(0.0,) * 4, std=(1.0,) * 4,
                  classes=tuple("abcde"))  # fmt: skip
    model.module.requires_grad_(False)
    adapter = attach(model, ("1.0", "1.2"))
    assert [s.mode for s in adapter.sites] == ["fused", "fused"]
    kept: dict[int, tuple[int, ...]] = {}

    def keep(x: Tensor) -> Tensor:
        if x.ndim == 3:
            kept[x.data_ptr()] = tuple(x.shape)
        return x

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
        model.module(torch.randn(2, 4, 1, 5))
    assert sorted(kept.values()) == [(2, 4, 6), (2, 4, 7)]


# -- folding a layer (invariant 2), and its layout (invariant 7) ----------------------------------------

LAYERS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], int]] = {
    "linear": (lambda: nn.Linear(5, 6), (3, 4, 5), -1),
    "linear without bias": (lambda: nn.Linear(5, 6, bias=False), (3, 5), -1),
    "conv, as wide as channels": (lambda: nn.Conv2d(4, 8, 3, padding=1), (2, 4, 5, 8), 1),
    "conv, strided": (lambda: nn.Conv2d(4, 6, 3, stride=2, padding=1, bias=False), (2, 4, 7, 7), 1),
    "conv, reflecting": (lambda: nn.Conv2d(4, 6, 3, padding=1, padding_mode="reflect"), (2, 4, 7, 7), 1),
    "conv, same": (lambda: nn.Conv2d(4, 6, 4, padding="same"), (2, 4, 7, 7), 1),
    "conv, depthwise": (lambda: nn.Conv2d(6, 6, 3, groups=6, padding=1), (2, 6, 6, 6), 1),
    "conv, grouped": (lambda: nn.Conv2d(4, 6, 3, groups=2), (2, 4, 6, 6), 1),
    "conv of sequences": (lambda: nn.Conv1d(4, 6, 3), (2, 4, 6), 1),
    "transposed": (lambda: nn.ConvTranspose2d(4, 6, 3, stride=2), (2, 4, 5, 5), 1),
    "transposed, grouped": (lambda: nn.ConvTranspose2d(4, 6, 3, groups=2, stride=2), (2, 4, 5, 5), 1),
    "LayerNorm": (lambda: nn.LayerNorm(6), (2, 5, 6), -1),
    "LayerNorm without weights": (lambda: nn.LayerNorm(6, elementwise_affine=False), (2, 5, 6), -1),
    "GroupNorm": (lambda: nn.GroupNorm(2, 6), (2, 6, 5, 6), 1),
    "RMSNorm": (lambda: nn.RMSNorm(6), (2, 5, 6), -1),
    "BatchNorm": (lambda: nn.BatchNorm2d(6), (2, 6, 5, 6), 1),
    "BatchNorm without weights": (lambda: nn.BatchNorm2d(6, affine=False), (2, 6, 6, 6), 1),
}


class Behind(nn.Module):
    """A layer, whatever shapes it has, and a linear classifier of its output's square; images are split to shape."""

    def __init__(self, m: nn.Module, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.m, self.shape, self.out = m, shape[1:], nn.LazyLinear(5)

    def forward(self, x: Tensor) -> Tensor:
        self.y = self.m(x.flatten(1)[:, : torch.Size(self.shape).numel()].unflatten(1, self.shape))
        return self.out(self.y.square().flatten(1))


@pytest.mark.parametrize("name", LAYERS)
def test_each_kind_of_layer_is_scaled_along_its_channels_and_folds(name: str) -> None:
    torch.manual_seed(0)
    made, shape, axis = LAYERS[name]
    m = stir(made())
    net = Behind(m, shape)
    model = model_of(net, size=12)
    x = torch.randn(len(model.example()), 3, 12, 12)
    net(x)
    before, keys = net.y.detach(), dict(net.state_dict())
    adapter = attach(model, ("m",), create=True)
    shake(adapter)
    ssf = m.ssf
    gamma, beta = (torch.zeros(6 if "wide" not in name else 8) if p is None else p for p in (ssf.gamma, ssf.beta))
    assert (ssf.beta is None) == (name == "RMSNorm")
    sides = [-1 if a == axis % before.ndim else 1 for a in range(before.ndim)]
    expected = gamma.view(sides) * before + beta.view(sides)
    net(x)
    assert torch.allclose(net.y, expected, rtol=1e-5, atol=1e-5)
    wanted = torch.autograd.grad(expected.square().sum(), list(ssf.parameters()))
    found = torch.autograd.grad(net.y.square().sum(), list(ssf.parameters()))
    assert all(torch.allclose(a, b, rtol=1e-4, atol=1e-4) for a, b in zip(found, wanted, strict=True))
    assert adapter.merge() == [] and type(m) is type(made())
    net(x)
    assert torch.allclose(net.y, expected, rtol=1e-5, atol=1e-5)
    created = {"m.weight"} if "without weights" in name else set()
    created |= {"m.bias"} if name in ("linear without bias", "conv, strided") or created else set()
    assert net.state_dict().keys() == keys.keys() | created
    adapter.unmerge()
    net(x)
    assert torch.allclose(net.y, expected, rtol=1e-5, atol=1e-5)
    assert all(torch.equal(net.state_dict()[k], v) for k, v in keys.items())


def test_two_scales_and_shifts_compose() -> None:
    torch.manual_seed(0)
    m = nn.Conv2d(4, 6, 3)
    s, net, one = layer(m)
    two = layer(nn.Conv2d(4, 6, 3))[2]
    x = torch.randn(2, 4, 5, 5)
    expected = two(one(net(x)))
    assert one.beta is not None and two.beta is not None
    fold(s, two.gamma.detach() * one.gamma.detach(), (two.gamma * one.beta + two.beta).detach())
    assert torch.allclose(net(x), expected, atol=1e-5)


# -- folding networks ----------------------------------------


def _timm(name: str, size: int = 32, **options: Any) -> Model:
    timm = pytest.importorskip("timm")
    return model_of(timm.create_model(name, num_classes=5, **options), size)


def _vit(name: str, **options: Any) -> Model:
    return _timm(name, img_size=32, patch_size=8, embed_dim=24, depth=2, num_heads=2, **options)


def _mixer(block: str = "MixerBlock", norm: str = "LayerNorm") -> Model:
    mlp = pytest.importorskip("timm.models.mlp_mixer")
    kinds = {
        "block_layer": getattr(mlp, block),
        "norm_layer": getattr(mlp, norm, nn.LayerNorm),
        "mlp_ratio": (0.5, 4.0),
    }
    net = mlp.MlpMixer(num_classes=5, img_size=32, patch_size=8, num_blocks=2, embed_dim=24,
                       **{**kinds, "mlp_ratio": 4.0} if block == "ResBlock" else kinds)  # fmt: skip
    return model_of(net)


def _hf(kind: str, **options: Any) -> Model:
    transformers = pytest.importorskip("transformers")
    config = transformers.AutoConfig.for_model(kind, num_labels=5, **options)
    return model_of(Logits(transformers.AutoModelForImageClassification.from_config(config)))


_HF = {"image_size": 32, "patch_size": 8, "hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
_STAGES = {"depths": [1, 1], "hidden_sizes": [16, 24], "num_stages": 2}


def _torchvision() -> Model:
    from torchvision.models import VisionTransformer

    net = VisionTransformer(32, 8, 2, 2, 24, 48, num_classes=5)
    nn.init.normal_(net.heads[0].weight)
    return model_of(net)


NETWORKS: dict[str, Callable[[], Model]] = {
    "vit": lambda: _vit("vit_tiny_patch16_224"),
    "vit, qk norm, no qkv bias": lambda: _vit("vit_tiny_patch16_224", qk_norm=True, qkv_bias=False),
    "deit": lambda: _vit("deit3_small_patch16_224"),
    "beit": lambda: _vit("beit_base_patch16_224"),
    "cait": lambda: _timm("cait_xxs24_224", img_size=32, patch_size=8, embed_dim=24, depth=2, num_heads=2),
    "eva": lambda: _vit("eva02_tiny_patch14_224"),
    "swin": lambda: _timm(
        "swin_tiny_patch4_window7_224", img_size=32, window_size=4, embed_dim=12, depths=(1, 2), num_heads=(1, 2)
    ),
    "swin v2": lambda: _timm(
        "swinv2_tiny_window8_256", img_size=32, window_size=4, embed_dim=12, depths=(1, 1), num_heads=(1, 2)
    ),
    "convnext": lambda: _timm("convnext_atto", depths=(1, 1, 1, 1), dims=(8, 12, 16, 20)),
    "convnext v2": lambda: _timm("convnextv2_atto", depths=(1, 1, 1, 1), dims=(8, 12, 16, 20)),
    "mixer": lambda: _mixer(),
    "resmlp": lambda: _mixer("ResBlock", "Affine"),
    "resnet": lambda: _timm("resnet10t", channels=(8, 8, 12, 16)),
    "mobilenet v3": lambda: _timm("mobilenetv3_small_050"),
    "efficientnet": lambda: _timm("tf_efficientnet_b0"),
    "regnet": lambda: _timm("regnety_002"),
    "maxvit": lambda: _timm("maxvit_rmlp_pico_rw_256", size=64, img_size=64, depths=(1,), embed_dim=(32,)),
    "hf vit": lambda: _hf("vit", intermediate_size=48, **_HF),
    "hf dinov2": lambda: _hf("dinov2", **_HF),
    "hf beit": lambda: _hf("beit", intermediate_size=48, **_HF),
    "hf convnext": lambda: _hf("convnext", **_STAGES),
    "hf resnet": lambda: _hf("resnet", embedding_size=8, **_STAGES),
    "hf swin": lambda: _hf("swin", image_size=32, embed_dim=12, depths=[1, 1], num_heads=[1, 2], window_size=4),
    "torchvision vit": _torchvision,
}
READ_ELSEWHERE = {"beit": 2, "eva": 2, "swin v2": 2, "torchvision vit": 4}
"""Sites whose output cannot be seen, since a kernel takes their weights."""


@pytest.mark.parametrize("name", NETWORKS)
def test_merged_equals_unmerged_equals_the_definition(name: str) -> None:
    torch.manual_seed(0)
    model = NETWORKS[name]()
    stir(model.module)
    head = model.module.get_submodule(classifier(model))
    nn.init.normal_(head.weight)
    reference, keys = copy.deepcopy(model.module), model.module.state_dict().keys()
    x = torch.randn(2, *model.input_shape)
    before = model.module(x)
    adapter = attach(model)
    assert len(adapter.sites) >= 7
    with torch.no_grad():
        for s in adapter.sites:
            s.module.ssf.gamma.fill_(1.0)
            if s.module.ssf.beta is not None:
                s.module.ssf.beta.zero_()
    assert torch.equal(model.module(x), before)  # invariant 1
    shake(adapter)
    unmerged = model.module(x)
    scale = float(unmerged.detach().abs().max())
    assert float((unmerged - before).detach().abs().max()) > 0.05 * scale
    expected, unseen = _by_hooks(reference, adapter, x)
    assert unseen == READ_ELSEWHERE.get(name, 0)
    if not unseen:
        assert float((unmerged - expected).detach().abs().max()) <= 2e-5 * scale
        direction = torch.randn_like(unmerged)
        found, wanted = (torch.autograd.grad(z, adapter.parameters(), direction) for z in (unmerged, expected))
        for f, w in zip(found, wanted, strict=True):
            assert float((f - w).abs().max()) <= 1e-3 * float(w.abs().max()) + 1e-5 * scale
    assert adapter.merge() == []
    assert float((unmerged - model.module(x)).detach().abs().max()) <= 1e-5 * scale
    assert model.module.state_dict().keys() == keys


def _by_hooks(network: nn.Module, adapter: Adapter, x: Tensor) -> tuple[Tensor, int]:
    """The logits with γ y + β after each layer, the layout from its class; how many sites have a layer not called."""
    called = set()

    def scale(name: str, m: nn.Module, gamma: Tensor, beta: Tensor | None, y: Any) -> Any:
        if not isinstance(y, Tensor):  # an attention, which gives a pair
            return
        called.add(name)
        first = isinstance(m, nn.modules.conv._ConvNd | nn.modules.batchnorm._BatchNorm | nn.GroupNorm)
        shape = (-1, 1, 1) if (first or type(m).__name__ == "LayerNorm2d" or
                               getattr(m, "data_format", "") == "channels_first") else (-1,)  # fmt: skip
        act = getattr(m, "act", nn.Identity())  # timm's BatchNorm brings its non-linearity along: tested apart
        assert isinstance(act, nn.Identity) or type(m).__name__ == "BatchNormAct2d"
        return y * gamma.view(shape) + (0 if beta is None else beta.view(shape))

    for s in adapter.sites:
        m, gamma, beta = network.get_submodule(s.name), s.module.ssf.gamma, s.module.ssf.beta
        if type(m).__name__ == "BatchNormAct2d":  # before its non-linearity
            called.add(s.name)
            w, b = m.weight * gamma, m.bias * gamma + beta
            del m.weight, m.bias
            m.weight, m.bias = w, b
            continue
        m.register_forward_hook(lambda m, i, y, n=s.name, g=gamma, b=beta: scale(n, m, g, b, y))
    return network(x), len({s.name for s in adapter.sites} - called)


def test_a_shift_of_the_keys_changes_no_answer() -> None:
    """So an attention that has biases of queries and values alone can take the whole of it."""
    torch.manual_seed(0)
    model = NETWORKS["beit"]()
    stir(model.module)
    x, whole = model.example(), copy.deepcopy(model.module)
    adapter = attach(model, ("*qkv",))
    shake(adapter)
    for s in adapter.sites:
        attention, ssf = whole.get_submodule(s.name.removesuffix(".qkv")), s.module.ssf
        q, k, v = (ssf.gamma * torch.cat((attention.q_bias, attention.k_bias, attention.v_bias)) + ssf.beta).chunk(3)
        attention.qkv.weight = nn.Parameter(ssf.gamma[:, None] * attention.qkv.weight)
        attention.q_bias, attention.k_bias, attention.v_bias = nn.Parameter(q), k, nn.Parameter(v)
    assert torch.allclose(model.module(x), whole(x), rtol=1e-4, atol=1e-5)


def test_the_sites_of_a_vit_are_those_of_the_paper() -> None:
    d, model = 24, NETWORKS["vit"]()
    adapter = attach(model)
    assert sum(p.numel() for p in adapter.parameters()) == 2 * 22 * d + 4 * d
    assert {s.mode for s in adapter.sites} == {"fused", "weights"}


def test_in_networks_with_batchnorm_only_batchnorms_have_one() -> None:
    from upcycle.core.references import resolve

    model = resolve("zoo:resnet20", pretrained=False, num_classes=10, input_shape=(3, 32, 32))
    adapter = attach(model)
    assert len(adapter.sites) == 19 and sum(p.numel() for p in adapter.parameters()) == 1376
    assert all(isinstance(s.module, nn.BatchNorm2d) for s in adapter.sites)


class Tied(nn.Module):
    """Two layers of one weight, one layer that is called twice, a standardised convolution, an overwritten output."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3)
        self.relu = nn.ReLU(inplace=True)
        self.standard = Standardised(4, 4, 3)
        self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)
        self.b.weight = self.a.weight
        self.twice = self.again = nn.Linear(4, 4)
        self.out = nn.Linear(4, 10)
        self.unused = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.standard(self.relu(self.conv(x))).mean((2, 3))
        return self.out(self.again(torch.tanh(self.twice(torch.tanh(self.b(torch.tanh(self.a(x))))))))


class Standardised(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        w = self.weight
        w = (w - w.mean((1, 2, 3), keepdim=True)) / w.std((1, 2, 3), keepdim=True)
        return self._conv_forward(x, w, self.bias)


def test_what_cannot_be_folded_is_kept_and_named() -> None:
    torch.manual_seed(0)
    net = Tied()
    model = model_of(net, 8, 1, 10)
    x = torch.randn(3, 1, 8, 8)
    assert {s.name for s in attach(dataclasses.replace(model, module=copy.deepcopy(net))).sites} == {"conv", "twice"}
    adapter = attach(model, ("*",))
    shake(adapter)
    assert {s.name: s.mode for s in adapter.sites} == {
        "conv": "weights", "standard": "output", "a": "output", "b": "output", "twice": "fused"}  # fmt: skip
    before = net(x)
    before.sum().backward()
    assert all(p.grad is not None for p in adapter.parameters())
    kept = adapter.merge()
    assert [k.split(":")[0] for k in kept] == ["standard", "a", "b"]
    assert "used in another layer" in kept[1] and "does not scale with its weight" in kept[0]
    assert torch.allclose(net(x), before, rtol=1e-4, atol=1e-5)
    assert net.a.weight is net.b.weight and type(net.twice) is nn.Linear
    with pytest.raises(UserError, match=r"a cannot be folded away.*leave it out"):
        SSF(source=model_of(Tied(), 8, 1, 10), sites=("a",), recipe=RECIPE).require(tiny_data())


def test_merging_twice_is_refused_and_unmerging_is_exact() -> None:  # invariant 6
    model = fitted("source", 7)
    before = {k: v.clone() for k, v in model.module.state_dict().items()}
    adapter = attach(model, ("conv*", "bn*"))
    shake(adapter)
    with pytest.raises(UserError, match="merge them first"):
        adapter.unmerge()
    adapter.merge()
    assert model.module.state_dict().keys() == before.keys()
    assert not torch.equal(model.module.state_dict()["conv1.weight"], before["conv1.weight"])
    with pytest.raises(UserError, match="unmerge them first"):
        adapter.merge()
    adapter.unmerge()
    assert all(torch.equal(model.module.state_dict()[k], v) for k, v in before.items())


# -- training ----------------------------------------


class Watched(Run):
    """Keeps what is trained, and the optimiser."""

    def setup(self, module: Any, optimizer: Any = None) -> Any:
        self.network, self.optimizer = super().setup(module, optimizer)
        self.before = {k: v.clone() for k, v in module.state_dict().items()}
        return self.network, self.optimizer

    def plain(self, module: nn.Module) -> nn.Module:
        self.after = {k: v.clone() for k, v in module.state_dict().items()}
        self.trained = [p for p in module.parameters() if p.requires_grad]
        return super().plain(module)


def test_only_scales_shifts_and_the_classifier_move_and_only_its_weight_decays() -> None:  # invariants 3, 4, 5
    source = dataclasses.replace(fitted("source", 7), classes=tuple("abcdefghij"))
    given = {k: v.clone() for k, v in source.module.state_dict().items()}
    run = Watched(None, precision="32-true")
    made = SSF(source=source, recipe=RECIPE).fit(run, tiny_data())
    moved = {k for k in run.before if not torch.equal(run.before[k], run.after[k])}
    ours = {f"bn{i}.ssf.{n}" for i in (1, 2) for n in ("gamma", "beta")}
    assert moved == ours | {"linear.weight", "linear.bias"}
    assert sum(p.numel() for p in run.trained) == 2 * (16 + 16) + 170
    decayed = [p for g in run.optimizer.param_groups if g["weight_decay"] for p in g["params"]]
    assert [p.shape for p in decayed] == [(10, 16)]
    assert all(torch.equal(source.module.state_dict()[k], v) for k, v in given.items())
    assert made.state_dict().keys() == given.keys()
    assert torch.equal(made.bn1.running_mean, given["bn1.running_mean"])  # type: ignore[union-attr,arg-type]
    assert not torch.equal(made.bn1.weight, given["bn1.weight"])  # type: ignore[union-attr,arg-type]


def test_a_fresh_classifier_for_new_classes_and_the_trained_one_for_the_same() -> None:
    data, recipe = tiny_data(), Recipe(epochs=1, batch_size=160, optimizer="adamw", lr=1e-7, weight_decay=0.0)
    source = fitted("source", 7)
    same = SSF(source=source, recipe=recipe).fit(Run(None), data).linear.weight
    new = dataclasses.replace(source, classes=tuple("abcdefghij"))
    other = SSF(source=new, recipe=recipe).fit(Run(None), data).linear.weight
    assert torch.allclose(same, source.module.linear.weight, atol=1e-6) and float(other.detach().abs().max()) < 1e-6


def test_it_learns_more_than_a_probe() -> None:
    """Digits turned upside down, from a network of upright ones."""
    data, source = tiny_data(), dataclasses.replace(fitted("source", 7), classes=tuple("abcdefghij"))
    data = dataclasses.replace(data, train=copy.copy(data.train))
    data.train.images = data.train.images.flip(1, 2)
    recipe = Recipe(epochs=15, batch_size=32, optimizer="adamw", lr=0.02)
    run, probe = Watched(None), Watched(None)
    SSF(source=source, recipe=recipe).fit(run, data)
    loss = {row[3]: float(row[4]) for row in run.journal.rows}["loss"]
    method = SSF(source=source, recipe=recipe)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Adapter, "parameters", lambda self: [])
        method.fit(probe, data)
    assert loss < 0.8 * {row[3]: float(row[4]) for row in probe.journal.rows}["loss"]


# -- files and mistakes ----------------------------------------


def test_an_adapter_alone_makes_the_same_network_and_refuses_another_base(tmp_path: Path) -> None:
    source, data = dataclasses.replace(fitted("source", 7), classes=tuple("abcdefghij")), tiny_data()
    made = SSF(source=source, sites=("conv*", "bn*"), recipe=RECIPE).fit(Run(tmp_path), data)
    file = tmp_path / "adapter.safetensors"
    assert file.stat().st_size < 4096
    again = load_adapter(file, source)
    assert again.classes == data.classes
    state = again.module.state_dict()
    assert all(torch.equal(state[k], v) for k, v in made.state_dict().items())
    with pytest.raises(UserError, match="belongs to another base than other"):
        load_adapter(file, fitted("other", 8))
    content = bytearray(file.read_bytes())
    content[-5] ^= 1
    file.write_bytes(content)
    with pytest.raises(UserError, match="damaged"):
        load_adapter(file, source)
    file.write_bytes(content[:100])
    with pytest.raises(UserError, match="not a whole safetensors file"):
        load_adapter(file, source)
    with pytest.raises(UserError, match="Cannot read"):
        load_adapter(tmp_path / "none.safetensors", source)


def test_the_product_is_saved_and_built_again(tmp_path: Path) -> None:
    from upcycle.core.references import resolve

    torch.manual_seed(0)
    source = resolve("zoo:convnet_small", pretrained=False, num_classes=7, input_shape=(1, 8, 8))
    data, method = tiny_data(), SSF(source=source, recipe=RECIPE)
    product = method.product(method.fit(Run(None), data), data)
    saved.save(product, tmp_path / "model")
    again = saved.load(tmp_path / "model")
    x = product.example(4)
    assert again.classes == data.classes and torch.equal(again.module(x), product.module(x))


def test_mistakes_are_named() -> None:
    data = tiny_data()
    with pytest.raises(UserError, match=r"no layer to scale and shift 'bn3'. Did you mean 'bn[12]'"):
        SSF(source=fitted("source", 7), sites=("bn3",)).require(data)
    wide = dataclasses.replace(tiny_model("source", 7), input_shape=(3, 8, 8))
    wide.module.set_submodule("conv1", nn.Conv2d(3, 16, 3, padding=1, bias=False))
    with pytest.raises(UserError, match="takes 3 input channels and the images have 1"):
        SSF(source=wide).require(data)
    flat = Model(module=nn.Sequential(nn.Flatten(), nn.Linear(100, 8), nn.ReLU(), nn.Linear(8, 10)),
                 input_shape=(1, 10, 10), mean=(0.3,), std=(0.4,), classes=data.classes, name="flat")  # fmt: skip
    with pytest.raises(UserError, match=r"flat does not take images of 8 x 8.*load the data at 10"):
        SSF(source=flat).require(data)
    with pytest.raises(UserError, match="but its classifier"):
        attach(dataclasses.replace(flat, module=nn.Sequential(nn.Flatten(), nn.Linear(100, 10))))
