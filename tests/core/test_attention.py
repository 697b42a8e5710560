"""Queries, keys and values of each family are those of a forward written by hand; nothing runs behind them."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.settings import tiny_model, tiny_vit
from upcycle.core.attention import Heads, SelfAttention, divide, self_attentions
from upcycle.core.errors import UserError
from upcycle.core.frozen import frozen
from upcycle.core.models import Model
from upcycle.core.outputs import Logits
from upcycle.core.taps import Taps
from upcycle.zoo.vit import Attention

X = torch.randn(3, 1, 8, 8, generator=torch.Generator().manual_seed(1))
H, D = 2, 16


def model_of(module: nn.Module) -> Model:
    return dataclasses.replace(tiny_model("other", 0), module=module.eval())


def timm_vit(**options: Any) -> nn.Module:
    timm = pytest.importorskip("timm", reason="timm is not installed (extra vision)")
    torch.manual_seed(0)
    size = {"img_size": 8, "patch_size": 2, "in_chans": 1, "embed_dim": D, "num_heads": H, "num_classes": 10}
    made: nn.Module = timm.models.vision_transformer.VisionTransformer(depth=3, **size, **options)
    with torch.no_grad():  # away from ones and zeros, which any norm would look like
        for name, p in made.named_parameters():
            if "_norm" in name or "bias" in name:
                p.normal_()
    return made


def transformers_vit() -> nn.Module:
    transformers = pytest.importorskip("transformers", reason="transformers is not installed (extra hub)")
    torch.manual_seed(0)
    config = transformers.ViTConfig(
        hidden_size=D,
        num_hidden_layers=3,
        num_attention_heads=H,
        intermediate_size=32,
        image_size=8,
        patch_size=2,
        num_channels=1,
        num_labels=10,
    )
    return Logits(transformers.ViTForImageClassification(config))


def torchvision_vit() -> nn.Module:
    torchvision = pytest.importorskip("torchvision", reason="torchvision is not installed (extra vision)")
    torch.manual_seed(0)
    made: nn.Module = torchvision.models.VisionTransformer(
        image_size=8, patch_size=2, num_layers=3, num_heads=H, hidden_dim=D, mlp_dim=32, num_classes=10
    )
    made.conv_proj = nn.Conv2d(1, D, 2, 2)
    with torch.no_grad():
        made.class_token.normal_()
        made.encoder.layers[1].self_attention.in_proj_bias.normal_()
    return made


# -- by hand: from what a block's attention is given, one head after the other ---------------------------------------


def each_head(x: Tensor, weights: list[Tensor], biases: list[Tensor | None]) -> list[Tensor]:
    """Queries, keys and values, (b, h, n, d) each, by one small product for each head and image."""
    made, d = [], D // H
    for W, bias in zip(weights, biases, strict=True):
        t = torch.empty(len(x), H, x.shape[1], d, dtype=x.dtype)
        for b in range(len(x)):
            for m in range(H):
                rows = slice(m * d, (m + 1) * d)
                t[b, m] = x[b] @ W[rows].T + (0 if bias is None else bias[rows])
        made.append(t)
    return made


def fused(x: Tensor, weight: Tensor, bias: Tensor | None) -> list[Tensor]:
    return each_head(x, list(weight.split(D)), [None] * 3 if bias is None else list(bias.split(D)))


def zoo_by_hand(net: Any, i: int) -> list[Tensor]:
    x = net.tokens(net.stem(X))
    for block in net.blocks[:i]:
        x = block(x)
    return fused(net.blocks[i].norm1(x), net.blocks[i].attention.qkv.weight, None)


def timm_by_hand(net: Any, i: int) -> list[Tensor]:
    x = net.patch_embed(X)
    registers = [] if net.reg_token is None else [net.reg_token.expand(len(X), -1, -1)]
    x = torch.cat([net.cls_token.expand(len(X), -1, -1), *registers, x], 1)
    assert net.pos_embed.shape[1] == x.shape[1]
    x = x + net.pos_embed
    for block in net.blocks[:i]:
        x = block(x)
    attn = net.blocks[i].attn
    q, k, v = fused(net.blocks[i].norm1(x), attn.qkv.weight, attn.qkv.bias)
    return [attn.q_norm(q), attn.k_norm(k), v]


def transformers_by_hand(net: Any, i: int) -> list[Tensor]:
    vit = net.network.vit
    x = vit.embeddings(X)
    for layer in vit.layers[:i]:
        x = layer(x)
    x, attention = vit.layers[i].layernorm_before(x), vit.layers[i].attention
    layers = [attention.q_proj, attention.k_proj, attention.v_proj]
    return each_head(x, [one.weight for one in layers], [one.bias for one in layers])


def torchvision_by_hand(net: Any, i: int) -> list[Tensor]:
    x = net.conv_proj(X).flatten(2).transpose(1, 2)
    x = torch.cat([net.class_token.expand(len(X), -1, -1), x], 1) + net.encoder.pos_embedding
    for block in net.encoder.layers[:i]:
        x = block(x)
    attention = net.encoder.layers[i].self_attention
    return fused(net.encoder.layers[i].ln_1(x), attention.in_proj_weight, attention.in_proj_bias)


Family = tuple[Callable[[], nn.Module], Callable[[Any, int], list[Tensor]], tuple[int, ...], int]
FAMILIES: dict[str, Family] = {
    "zoo": (lambda: tiny_vit(3, depth=3).module, zoo_by_hand, (), 4),
    "timm": (lambda: timm_vit(class_token=True), timm_by_hand, (0,), 17),
    "timm, normed": (lambda: timm_vit(qk_norm=True), timm_by_hand, (0,), 17),
    "timm, registers": (lambda: timm_vit(reg_tokens=2), timm_by_hand, (0, 1, 2), 19),
    "transformers": (transformers_vit, transformers_by_hand, (0,), 17),
    "torchvision": (torchvision_vit, torchvision_by_hand, (0,), 17),
}
EACH = pytest.mark.parametrize("family", FAMILIES)


def read(family: str) -> tuple[nn.Module, list[SelfAttention]]:
    net = FAMILIES[family][0]().eval()
    return net, self_attentions(model_of(net))


@EACH
def test_what_is_read_is_what_a_forward_by_hand_gives(family: str) -> None:
    net, found = read(family)
    _, by_hand, beside, n = FAMILIES[family]
    assert len(found) == 3
    for i, attention in enumerate(found):
        assert (attention.heads, attention.width, attention.tokens) == (H, D, n)
        assert attention.beside == beside and len(attention.grid) == n - len(beside)
        assert attention.plain
        with torch.no_grad():
            heads, expected = attention.read(net, X), by_hand(net, i)
        assert heads.scale == (D // H) ** -0.5
        for t, right in zip(heads, expected, strict=True):
            assert t.shape == (3, H, n, D // H)
            assert torch.allclose(t, right, atol=1e-5)


@EACH
def test_nothing_runs_behind_and_it_equals_the_full_forward(family: str) -> None:
    net, found = read(family)
    expected = []
    for attention in found:  # while the whole network runs
        with torch.no_grad(), Taps(net, attention.layers, kind=attention.kind) as taps:
            assert net(X).shape == (3, 10)
        tapped = [taps[layer] for layer in attention.layers]
        expected.append(divide(net.get_submodule(attention.name), tapped, attention.heads))
    began: list[str] = []
    for name, m in net.named_modules():
        m.register_forward_pre_hook(lambda m, x, name=name: began.append(name))
    for attention, right in zip(found, expected, strict=True):
        began.clear()
        with torch.no_grad():
            heads = attention.read(net, X)
        ran = [name for name in began if not name.endswith(("q_norm", "k_norm"))]  # which the reading itself asks
        assert ran[-1] == attention.layers[-1]
        assert all(torch.equal(a, b) for a, b in zip(heads, right, strict=True))
    assert not any(m._forward_hooks for m in net.modules())


@EACH
def test_a_frozen_copy_is_read_alike_and_without_gradients(family: str) -> None:
    net, found = read(family)
    fixed = frozen(net, X, keep_modules=True, precision="32-true")
    for attention in found:
        with torch.no_grad():
            pairs = zip(attention.read(fixed, X), attention.read(net, X), strict=True)
            assert all(torch.allclose(a, b, atol=1e-5) for a, b in pairs)
    assert not any(p.requires_grad for p in fixed.parameters())


def test_the_width_is_divided_anew_without_a_change_of_the_network() -> None:
    net, found = read("timm, normed")
    before = copy.deepcopy(net.state_dict())
    own, four = found[1].read(net, X), found[1].read(net, X, heads=4)
    assert four.q.shape == (3, 4, 17, 4) and four.scale == 0.5
    for a, b in zip(own, four, strict=True):
        assert torch.equal(a.transpose(1, 2).flatten(2), b.transpose(1, 2).flatten(2))
    assert list(before) == list(net.state_dict())
    assert all(torch.equal(value, net.state_dict()[key]) for key, value in before.items())


def test_some_tokens_alone() -> None:
    heads = Heads(*torch.randn(3, 2, 2, 5, 4))
    assert heads.among(range(5)) is heads
    some = heads.among((1, 3))
    assert all(torch.equal(a, b[:, :, [1, 3]]) for a, b in zip(some, heads, strict=True))


# -- what cannot be read, and what is more than it ------------------------------------------------------------------


def test_a_network_without_attention_is_refused_with_its_layers() -> None:
    with pytest.raises(UserError, match=r"no self-attention .* its layers are AdaptiveAvgPool2d, BatchNorm2d, Conv2d"):
        self_attentions(tiny_model("net", 0))


def test_attention_in_windows_is_refused() -> None:
    timm = pytest.importorskip("timm", reason="timm is not installed (extra vision)")
    swin = timm.models.swin_transformer.SwinTransformer(
        img_size=32, patch_size=4, in_chans=1, num_classes=10, embed_dim=16, depths=(2,), num_heads=(2,), window_size=4
    )
    with pytest.raises(UserError, match="over all tokens of an image"):
        self_attentions(dataclasses.replace(model_of(swin), input_shape=(1, 32, 32)))


class Biased(Attention):
    """Attention with a bias of positions in its scores."""

    def forward(self, x: Tensor) -> Tensor:
        qkv = self.qkv(x).unflatten(-1, self.split).permute(2, 0, 3, 1, 4)
        bias = torch.eye(x.shape[1], dtype=x.dtype)
        weights = (qkv[0] @ qkv[1].transpose(2, 3) * self.split[2] ** -0.5 + 3 * bias).softmax(dim=3)
        return self.out((weights @ qkv[2]).transpose(1, 2).flatten(2))


def test_attention_that_is_more_than_products_is_known() -> None:
    net = tiny_vit(3).module
    biased = Biased(16, 2)
    biased.load_state_dict(net.blocks[1].attention.state_dict())
    net.blocks[1].attention = biased
    assert [attention.plain for attention in self_attentions(model_of(net))] == [True, False]


def test_attention_that_runs_twice_is_left_out() -> None:
    net = tiny_vit(3, depth=3).module
    net.blocks = nn.Sequential(net.blocks[0], net.blocks[1], net.blocks[1])
    assert [attention.name for attention in self_attentions(model_of(net))] == ["blocks.0.attention"]


def test_the_network_is_left_as_it_was() -> None:
    net = tiny_vit(3).module.train()
    before = copy.deepcopy(net.state_dict())
    self_attentions(dataclasses.replace(tiny_model("other", 0), module=net))
    assert net.training and all(torch.equal(value, net.state_dict()[key]) for key, value in before.items())
