"""Names of published weights, one by one, and files that have them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from upcycle.core.errors import UserError
from upcycle.core.references import resolve
from upcycle.core.weights import load_weights, renamed
from upcycle.zoo import keys
from upcycle.zoo.emo import EMO, SIZES
from upcycle.zoo.shunted import SIZES as SHUNTED_SIZES
from upcycle.zoo.shunted import ShuntedTransformer

Shapes = dict[str, tuple[int, ...]]


def both(name: str, weight: tuple[int, ...]) -> Shapes:
    """A layer with a bias."""
    return {f"{name}.weight": weight, f"{name}.bias": weight[:1]}


def batch_norm(name: str, c: int) -> Shapes:
    return {
        **both(name, (c,)),
        f"{name}.running_mean": (c,),
        f"{name}.running_var": (c,),
        f"{name}.num_batches_tracked": (),
    }


# Depths, widths, hidden channels of the first block and of the others in each stage.
EMO_1M = ((2, 2, 8, 3), (32, 48, 80, 168), (96, 160, 288, 560), (64, 120, 240, 588))
EMO_2M = ((3, 3, 9, 3), (32, 48, 120, 200), (96, 160, 288, 840), (64, 120, 360, 700))
EMO_5M = ((3, 3, 9, 3), (48, 72, 160, 288), (96, 288, 576, 1280), (96, 216, 640, 1152))
EMO_6M = ((3, 3, 9, 3), (48, 72, 160, 320), (96, 288, 576, 1600), (96, 216, 640, 1600))


def emo_names(
    depths: tuple[int, ...], widths: tuple[int, ...], firsts: tuple[int, ...], others: tuple[int, ...]
) -> Shapes:
    """Every weight of a released EMO, as its training log lists them (github.com/zhangzjn/EMO, resources)."""

    def local(name: str, c: int, kernel: int) -> Shapes:
        return {f"{name}.conv_local.conv.weight": (c, 1, kernel, kernel), **batch_norm(f"{name}.conv_local.norm", c)}

    found = {**both("stage0.0.convs.0.0", (24, 3, 3, 3)), **batch_norm("stage0.0.convs.0.1", 24)}
    found |= local("stage0.1", 24, 3)
    found |= both("stage0.1.se.conv_reduce", (24, 24, 1, 1)) | both("stage0.1.se.conv_expand", (24, 24, 1, 1))
    found |= {"stage0.1.proj.conv.weight": (24, 24, 1, 1)}
    width = 24
    for i in range(4):
        for j in range(depths[i]):
            name, hidden = f"stage{i + 1}.{j}", others[i] if j else firsts[i]
            found |= batch_norm(f"{name}.norm", width) if i < 2 else both(f"{name}.norm.norm", (width,))
            if i >= 2 and j > 0:
                found |= both(f"{name}.qk.conv", (2 * width, width, 1, 1))
            found |= both(f"{name}.v.conv", (hidden, width, 1, 1)) | local(name, hidden, 3 if i < 2 else 5)
            found |= {f"{name}.proj.conv.weight": (widths[i], hidden, 1, 1)}
            width = widths[i]
    return found | both("norm.norm", (width,)) | both("head", (1000, width))


def shunted_names(depths: tuple[int, ...], convolutions: int) -> Shapes:
    """Every weight of a released Shunted Transformer.

    Reconstructed from the modules at github.com/OliverRensu/Shunted-Transformer; the files were not at hand.
    """
    found = {"patch_embed1.conv.0.weight": (64, 3, 7, 7), **batch_norm("patch_embed1.conv.1", 64)}
    for n in range(convolutions):
        found |= {f"patch_embed1.conv.{3 * n + 3}.weight": (64, 64, 3, 3)}
        found |= batch_norm(f"patch_embed1.conv.{3 * n + 4}", 64)
    found |= both(f"patch_embed1.conv.{3 * convolutions + 3}", (64, 64, 2, 2))
    for i, depth in enumerate(depths, 1):
        c, rates = 32 * 2**i, {1: (8, 4), 2: (4, 2), 3: (2, 1)}.get(i, ())
        if i > 1:
            found |= both(f"patch_embed{i}.proj", (c, c // 2, 3, 3))
        found |= both(f"patch_embed{i}.norm", (c,)) | both(f"norm{i}", (c,))
        for j in range(depth):
            name, m = f"block{i}.{j}", (8, 8, 4, 4)[i - 1] * c
            for part in ("norm1", "norm2"):
                found |= both(f"{name}.{part}", (c,))
            for part in ("q", "proj"):
                found |= both(f"{name}.attn.{part}", (c, c))
            for n, rate in enumerate(rates, 1):
                found |= both(f"{name}.attn.sr{n}", (c, c, rate, rate)) | both(f"{name}.attn.norm{n}", (c,))
                found |= both(f"{name}.attn.kv{n}", (c, c)) | both(f"{name}.attn.local_conv{n}", (c // 2, 1, 3, 3))
            if not rates:
                found |= both(f"{name}.attn.kv", (2 * c, c)) | both(f"{name}.attn.local_conv", (c, 1, 3, 3))
            found |= both(f"{name}.mlp.fc1", (m, c)) | both(f"{name}.mlp.dwconv.dwconv", (m, 1, 3, 3))
            found |= both(f"{name}.mlp.fc2", (c, m))
    return found | both("head", (1000, 512))


def mobilenetv2_ca_names(version: int) -> Shapes:
    """Every weight of MobileNetV2 with coordinate attention, as the modules at github.com/houqb/CoordAttention have it.

    Args:
        version: 0 for ``mbv2_ca.py``, 1 for the layers' names in ``coordatt.py``.
    """
    rows, columns = (("conv2", "conv3"), ("conv_h", "conv_w"))[version]
    found, width, n = {"features.0.0.weight": (32, 3, 3, 3), **batch_norm("features.0.1", 32)}, 32, 1
    stages = ((1, 16, 1), (6, 24, 2), (6, 32, 3), (6, 64, 4), (6, 96, 3), (6, 160, 3), (6, 320, 1))
    for t, c, depth in stages:
        for _ in range(depth):
            name, hidden, at = f"features.{n}.conv", t * width, 0
            if t > 1:
                found |= {f"{name}.0.weight": (hidden, width, 1, 1), **batch_norm(f"{name}.1", hidden)}
                at, m = 3, max(8, hidden // 32)
                found |= both(f"{name}.6.conv1", (m, hidden, 1, 1)) | batch_norm(f"{name}.6.bn1", m)
                found |= both(f"{name}.6.{rows}", (hidden, m, 1, 1)) | both(f"{name}.6.{columns}", (hidden, m, 1, 1))
            found |= {f"{name}.{at}.weight": (hidden, 1, 3, 3), **batch_norm(f"{name}.{at + 1}", hidden)}
            last = 7 if t > 1 else 3
            found |= {f"{name}.{last}.weight": (c, hidden, 1, 1), **batch_norm(f"{name}.{last + 1}", c)}
            width, n = c, n + 1
    found |= {"conv.0.weight": (1280, 320, 1, 1), **batch_norm("conv.1", 1280)}
    return found | both("classifier.1", (1000, 1280))


def networks() -> Iterator[tuple[Shapes, nn.Module, keys.Names]]:
    with torch.device("meta"):
        for name, sizes in {"1m": EMO_1M, "2m": EMO_2M, "5m": EMO_5M, "6m": EMO_6M}.items():
            yield emo_names(*sizes), EMO(SIZES[name], 1000), keys.EMO
        for name, (depths, n) in {"t": ((1, 2, 4, 1), 0), "s": ((2, 4, 12, 1), 1), "b": ((3, 4, 24, 2), 2)}.items():
            yield shunted_names(depths, n), ShuntedTransformer(SHUNTED_SIZES[name], 1000), keys.SHUNTED


def test_both_versions_of_coordinate_attention_are_one_to_one() -> None:
    pytest.importorskip("timm", reason="timm is not installed (extra vision)")
    net = resolve("zoo:mobilenetv2_100_ca", pretrained=False, num_classes=1000).module
    ours = {key: tuple(t.shape) for key, t in net.state_dict().items()}
    for version in (0, 1):
        published = mobilenetv2_ca_names(version)
        translated = renamed(dict(published), keys.MOBILENETV2_CA)
        assert len(translated) == len(published) and translated == ours
    assert list(renamed(dict.fromkeys(ours), keys.MOBILENETV2_CA)) == list(ours)


def test_a_file_of_coordinate_attention_fills_the_network(tmp_path: Path) -> None:
    pytest.importorskip("timm", reason="timm is not installed (extra vision)")
    published = drawn(mobilenetv2_ca_names(0))
    torch.save({"state_dict": published}, tmp_path / "mbv2_ca.pth")
    state = resolve("zoo:mobilenetv2_100_ca", weights=tmp_path / "mbv2_ca.pth", num_classes=1000).module.state_dict()
    assert torch.equal(state["blocks.1.0.se.conv_h.weight"], published["features.2.conv.6.conv2.weight"])
    assert torch.equal(state["blocks.6.0.bn3.running_var"], published["features.17.conv.8.running_var"])


def test_published_names_and_ours_are_one_to_one() -> None:
    for published, net, names in networks():
        ours = {key: tuple(t.shape) for key, t in net.state_dict().items()}
        translated = renamed(dict(published), names)
        assert len(translated) == len(published)
        assert translated == ours


def test_our_own_names_stay() -> None:
    for _, net, names in networks():
        assert list(renamed(dict.fromkeys(net.state_dict()), names)) == list(net.state_dict())


def drawn(shapes: Shapes) -> dict[str, Tensor]:
    torch.manual_seed(0)
    return {
        key: torch.tensor(7) if key.endswith("num_batches_tracked") else torch.rand(shape) + 0.1
        for key, shape in shapes.items()
    }


@pytest.mark.parametrize("form", ["net.pth", "net.safetensors", "prefixed.pth"])
def test_a_file_with_the_published_names_fills_the_network(form: str, tmp_path: Path) -> None:
    published, file = drawn(emo_names(*EMO_1M)), tmp_path / form
    if form.endswith(".safetensors"):
        save_file(published, file)
    elif form == "net.pth":
        torch.save({"net": published, "epoch": 300}, file)
    else:
        torch.save({f"module.{key}": tensor for key, tensor in published.items()}, file)
    model = resolve("zoo:emo_1m", weights=file, num_classes=1000)
    state = model.module.state_dict()
    assert torch.equal(state["stages.2.1.attention.qk.weight"], published["stage3.1.qk.conv.weight"])
    assert torch.equal(state["stem.5.reduce.bias"], published["stage0.1.se.conv_reduce.bias"])
    for ours, theirs in renamed({key: key for key in published}, keys.EMO).items():
        assert torch.equal(state[ours], published[theirs])
    assert any("names that their authors gave them" in note for note in model.notes)


def test_our_own_file_is_read_as_ever(tmp_path: Path) -> None:
    model = resolve("zoo:shunted_tiny", pretrained=False)
    save_file(model.module.state_dict(), tmp_path / "ours.safetensors")
    assert load_weights(resolve("zoo:shunted_tiny", pretrained=False).module, tmp_path / "ours.safetensors") == ()


def test_published_weights_of_another_size_are_refused_by_their_shapes(tmp_path: Path) -> None:
    torch.save({"net": drawn(emo_names(*EMO_1M))}, tmp_path / "net.pth")
    with pytest.raises(UserError, match=r"lacks .* of the .* weights of EMO|with shape"):
        resolve("zoo:emo_2m", weights=tmp_path / "net.pth", num_classes=1000)
    with pytest.raises(UserError, match=r"'linear.weight' with shape \(1000, 168\), but EMO has \(7, 168\)"):
        resolve("zoo:emo_1m", weights=tmp_path / "net.pth", num_classes=7)
