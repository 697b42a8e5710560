"""The plain vision transformer: timm's on the same weights, exact sizes, and tokens that saw one patch each."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from upcycle import zoo
from upcycle.core.errors import UserError
from upcycle.core.models import Model
from upcycle.core.references import resolve
from upcycle.core.saved import load, save
from upcycle.core.taps import Taps
from upcycle.measure import cost

NAMES = {
    "stem": "patch_embed.proj",
    "tokens.first": "cls_token",
    "tokens.position": "pos_embed",
    "attention.qkv": "attn.qkv",
    "attention.out": "attn.proj",
    "mlp.0": "mlp.fc1",
    "mlp.2": "mlp.fc2",
    "linear": "head",
}
"""Ours, and what timm calls them."""
SIZE: dict[str, Any] = {"patch": 4, "width": 12, "depth": 2, "heads": 3}


def made(shape: tuple[int, int, int] = (3, 8, 12), k: int = 5, **sizes: int) -> Model:
    torch.manual_seed(0)
    return zoo.build("vit_plain", pretrained=False, num_classes=k, input_shape=shape, **{**SIZE, **sizes})


def renamed(key: str) -> str:
    for ours, theirs in NAMES.items():
        key = key.replace(ours, theirs)
    return key


@pytest.mark.parametrize("name", ["vit_plain", "vit_plain_mean"])
def test_it_is_timms_vision_transformer_on_the_same_weights(name: str) -> None:
    vision = pytest.importorskip("timm.models.vision_transformer", reason="timm is not installed (extra vision)")
    torch.manual_seed(0)
    model = zoo.build(name, pretrained=False, num_classes=5, input_shape=(3, 8, 12), **SIZE)
    pooled = {"global_pool": "avg", "fc_norm": False} if name == "vit_plain_mean" else {}
    theirs = vision.VisionTransformer(
        (8, 12), 4, 3, 5, embed_dim=12, depth=2, num_heads=3, norm_layer=nn.LayerNorm, **pooled
    ).eval()
    theirs.load_state_dict({renamed(key): t for key, t in model.module.state_dict().items()})
    x = torch.randn(3, 3, 8, 12)
    with torch.no_grad():
        torch.testing.assert_close(model.module.eval()(x), theirs(x), rtol=1e-5, atol=1e-5)


def test_sizes_are_exact() -> None:
    model = resolve("zoo:vit_plain", pretrained=False)
    size, d, n = cost.count(model.module, model.input_shape), 72, 64
    block = 12 * d * d + 13 * d
    assert size.parameters == (48 + 1) * d + d + (n + 1) * d + 4 * block + 2 * d + 10 * d + 10 == 261_730
    assert size.macs == n * 48 * d + 4 * ((n + 1) * 12 * d * d + 2 * (n + 1) ** 2 * d) + 10 * d


def test_in_the_papers_size_it_has_as_many_parameters_as_published() -> None:
    # ViT-B/16 for 1,000 classes; without positions and classifier the encoder of MAE and CMAE, 85,647,360.
    model = zoo.build(
        "vit_plain",
        pretrained=False,
        num_classes=1000,
        input_shape=(3, 224, 224),
        patch=16,
        width=768,
        depth=12,
        heads=12,
    )
    number = sum(p.numel() for p in model.module.parameters())
    assert number == 86_567_656
    assert number - 197 * 768 - 769_000 == 85_647_360


def test_before_the_first_block_a_token_has_seen_its_own_patch_alone() -> None:
    model, x = made(), torch.randn(1, 3, 8, 12)
    other = x.clone()
    other[:, :, 4:, 4:8] += 1  # the fifth of six patches
    with Taps(model.module, ["tokens"]) as taps, torch.no_grad():
        model.module(x)
        first = taps["tokens"]
        model.module(other)
        moved = (taps["tokens"] != first).any(2)[0]
    assert moved.nonzero().flatten().tolist() == [5]  # behind the class token


def test_weights_begin_as_in_the_paper() -> None:
    network = made(width=96, heads=3).module
    projection = network.get_parameter("stem.weight")
    assert projection.abs().max() <= (6 / (48 + 96)) ** 0.5
    assert projection.std().item() == pytest.approx((2 / (48 + 96)) ** 0.5, rel=0.05)
    assert network.get_parameter("tokens.position").std().item() == pytest.approx(0.02, rel=0.1)
    bias = network.get_parameter("blocks.0.mlp.0.bias")
    assert 0 < bias.std().item() < 2e-6
    assert not network.get_parameter("blocks.0.attention.qkv.bias").any()


def test_the_sizes_that_were_chosen_are_saved_with_it(tmp_path: Path) -> None:
    model = made()
    assert model.options == {"num_classes": 5, "input_shape": [3, 8, 12], **SIZE}
    save(model, tmp_path / "m")
    back = load(tmp_path / "m")
    with torch.no_grad():
        assert torch.equal(model.module.eval()(model.example()), back.module(back.example()))
    assert len(back.module.get_submodule("blocks")) == 2  # type: ignore[arg-type]
    again = resolve(tmp_path / "m", pretrained=False, num_classes=3)
    assert again.module(again.example()).shape == (2, 3) and again.options["width"] == 12


def test_bad_sizes_are_one_sentence() -> None:
    with pytest.raises(UserError, match=r"8 x 10 is no multiple of that: bring them to 8 x 12 by --size\."):
        made((3, 8, 10))
    with pytest.raises(UserError, match="5 heads do not divide a width of 12"):
        made(heads=5)
    with pytest.raises(UserError, match="patch must be at least 1, and it is 0"):
        made(patch=0)
    with pytest.raises(UserError, match=r"zoo:vit is of one patch; zoo:vit_plain lets you choose\."):
        zoo.build("vit", pretrained=False, patch=8)
