"""EMO: windows, attention, blocks and the network."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Literal

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from upcycle.core.frozen import fold_batchnorm, frozen
from upcycle.core.references import resolve
from upcycle.measure.export import write_export
from upcycle.surgery.blocks import chain
from upcycle.zoo.emo import EMO, IRMB, SIZES, WindowAttention, join_windows, split_windows
from upcycle.zoo.layers import ChannelNorm

TINY = SIZES["tiny"]


def attention(channels: int = 8, head: int = 4, window: int = 4) -> WindowAttention:
    torch.manual_seed(0)
    return WindowAttention(channels, head, window)


def emo_1m() -> EMO:
    torch.manual_seed(0)
    return EMO(SIZES["1m"], 1000).eval()


@pytest.mark.parametrize(("h", "w"), [(8, 8), (12, 4), (4, 4), (16, 20)])
def test_windows_put_together_again_are_the_map(h: int, w: int) -> None:
    x = torch.randn(2, 6, h, w)
    parts = split_windows(x, 4, 3)
    assert parts.shape == (2, h // 4, w // 4, 3, 16, 2)
    assert torch.equal(join_windows(parts, 4), x)


@pytest.mark.parametrize(("h", "w"), [(5, 7), (1, 1), (9, 4), (13, 8)])
def test_what_is_padded_is_cropped(h: int, w: int) -> None:
    """Where every pixel answers for itself alone, attention is the identity at any size."""
    made = attention(window=4)
    nn.init.zeros_(made.qk.bias)
    x = torch.randn(2, 8, h, w, dtype=torch.float64)
    # Of one length in each head, so that a pixel is nearest to itself, and so long that it hears no other.
    x = 1000 * x / x.unflatten(1, (2, 4)).norm(dim=2).repeat_interleave(4, dim=1)
    with torch.no_grad():
        made.qk.weight.copy_(torch.cat([torch.eye(8), torch.eye(8)])[:, :, None, None])
        found = made.double()(x)
    assert found.shape == x.shape
    torch.testing.assert_close(found, x, atol=1e-6, rtol=0)


def test_windows_are_strided() -> None:
    """Pixel (i, j) belongs to window (i mod n1, j mod n2), at place (i div n1, j div n2)."""
    x = torch.arange(2 * 8 * 12).view(1, 2, 8, 12).float()
    parts = split_windows(x, 4, 1)
    for i in range(8):
        for j in range(12):
            assert torch.equal(parts[0, i % 2, j % 3, 0, (i // 2) * 4 + j // 3], x[0, :, i, j])


def test_without_queries_and_keys_attention_is_the_mean_over_a_strided_window() -> None:
    made, x = attention(), torch.randn(2, 8, 8, 12)
    nn.init.zeros_(made.qk.weight)
    nn.init.zeros_(made.qk.bias)
    found = made(x)
    for i in range(8):
        for j in range(12):
            expected = x[:, :, i % 2 :: 2, j % 3 :: 3].mean(dim=(2, 3))
            torch.testing.assert_close(found[:, :, i, j], expected, atol=1e-6, rtol=0)


def test_padded_zeros_are_keys() -> None:
    """A map of 3 x 4 in windows of 4 x 4: without queries the mean is over 16 pixels, of which 4 are zeros."""
    made, x = attention(), torch.randn(2, 8, 3, 4)
    nn.init.zeros_(made.qk.weight)
    found = made(x)
    expected = x.sum(dim=(2, 3), keepdim=True) / 16
    torch.testing.assert_close(found, expected.expand_as(x), atol=1e-6, rtol=0)


def test_one_window_is_full_attention() -> None:
    made, x = attention(window=7), torch.randn(2, 8, 7, 7)
    q, k = made.qk(x).flatten(2).unflatten(1, (2, 2, 4)).transpose(3, 4).unbind(1)
    expected = F.scaled_dot_product_attention(q, k, x.flatten(2).unflatten(1, (2, 4)).transpose(2, 3))
    torch.testing.assert_close(made(x), expected.transpose(2, 3).reshape(2, 8, 7, 7), atol=1e-5, rtol=0)


def after(block: IRMB, x: Tensor) -> tuple[Tensor, Tensor]:
    """Give the output of a block's expansion, and its output if attention averaged that instead of its input.

    The heads then share the expanded channels.
    """
    made = block.attention
    assert isinstance(made, WindowAttention)
    u = block.norm(x)
    q, k = split_windows(made.qk(u), made.window, 2 * made.heads).chunk(2, dim=3)
    weights = (q @ k.transpose(4, 5) * made.scale).softmax(dim=5)
    mixed = join_windows(weights @ split_windows(block.expand(u), made.window, made.heads), made.window)
    return block.expand(made(u)), mixed


def test_attention_comes_before_the_expansion() -> None:
    """With one head and no activation the order changes nothing; with two heads, or with GELU, it does."""
    torch.manual_seed(0)
    x = torch.randn(2, 8, 8, 8)
    one, two, curved = (IRMB(8, 8, 2, 3, head=head, window=4, norm="layer").eval() for head in (8, 4, 8))
    for block in (one, two):
        block.expand[1] = nn.Identity()
    assert (torch.sub(*after(one, x))).abs().max() < 1e-5
    assert (torch.sub(*after(two, x))).abs().max() > 1e-3
    assert (torch.sub(*after(curved, x))).abs().max() > 1e-3


@pytest.mark.parametrize("head", [0, 4])
def test_a_block_that_projects_nothing(head: int) -> None:
    x = torch.randn(2, 8, 9, 6)
    same, halving = IRMB(8, 8, 3, 5, head=head, norm="layer"), IRMB(8, 8, 3, 5, 2)
    for block in (same, halving):
        nn.init.zeros_(block.project.weight)
    assert torch.equal(same(x), x)
    assert torch.equal(halving(x), torch.zeros(2, 8, 5, 3))
    assert not IRMB(8, 12, 3, 5).residual


def test_a_block_is_the_formula_of_the_paper() -> None:
    torch.manual_seed(0)
    block, x = IRMB(8, 8, 2.5, 3), torch.randn(2, 8, 6, 6)
    u = F.batch_norm(x, None, None, training=True, eps=1e-6)
    v = F.silu(F.conv2d(u, block.expand[0].weight, block.expand[0].bias))
    d = F.conv2d(v, block.depthwise[0].weight, padding=1, groups=20)
    d = F.silu(F.batch_norm(d, None, None, training=True, eps=1e-6))
    torch.testing.assert_close(block(x), x + F.conv2d(v + d, block.project.weight))


def test_the_first_block_of_a_stage_doubles_the_ratio_of_the_incoming_width() -> None:
    net = EMO(SIZES["1m"], 10)
    hidden = [[block.project.in_channels for block in stage] for stage in net.stages]
    assert hidden == [[96, 64], [160, 120], [288, *[240] * 7], [560, 588, 588]]
    with_attention = [[isinstance(block.attention, WindowAttention) for block in stage] for stage in net.stages]
    assert with_attention == [[False] * 2, [False] * 2, [False] + [True] * 7, [False, True, True]]
    assert [stage[1].attention.heads for stage in net.stages[2:]] == [4, 8]
    assert all(isinstance(block.norm, ChannelNorm) for stage in net.stages[2:] for block in stage)
    assert [stage[0].depthwise[0].kernel_size[0] for stage in net.stages] == [3, 3, 5, 5]


def test_maps_have_the_strides_and_widths_of_the_paper() -> None:
    net = emo_1m()
    with torch.no_grad():
        for h, w in ((224, 224), (160, 192)):
            x = torch.randn(2, 3, h, w)
            maps = net.features(x)
            assert [tuple(m.shape) for m in maps] == [
                (2, c, h // s, w // s) for c, s in zip((24, 32, 48, 80, 168), (2, 4, 8, 16, 32), strict=True)
            ]
            assert net(x).shape == (2, 1000)
            torch.testing.assert_close(net(x), net.linear(net.norm(maps[-1]).mean(dim=(2, 3))))


@pytest.mark.parametrize(("h", "w"), [(32, 32), (33, 20), (5, 47)])
def test_the_tiny_size_takes_images_of_any_size(h: int, w: int) -> None:
    net, x = EMO(TINY, 10).eval(), torch.randn(2, 3, h, w)
    assert net(x).shape == (2, 10)
    h, w = -(-h // 8), -(-w // 8)
    assert net.features(x)[-1].shape == (2, 64, h, w)


def test_strided_and_contiguous_windows_differ_at_twice_the_resolution() -> None:
    """At 32 pixels the last stage is one window; at 64 contiguous ones would compute something else."""

    def contiguous(x: Tensor, side: int, heads: int) -> Tensor:
        parts = x.permute(0, 2, 3, 1).unflatten(3, (heads, -1)).unflatten(2, (-1, side)).unflatten(1, (-1, side))
        return parts.permute(0, 1, 3, 5, 2, 4, 6).flatten(4, 5)

    made = attention()
    for side, differ in ((4, False), (8, True)):
        x = torch.randn(2, 8, side, side)
        q, k = contiguous(made.qk(x), 4, 4).chunk(2, dim=3)
        other = (q @ k.transpose(4, 5) * made.scale).softmax(dim=5) @ contiguous(x, 4, 2)
        other = other.unflatten(4, (4, 4)).permute(0, 1, 4, 2, 5, 3, 6).reshape(2, side, side, 8).permute(0, 3, 1, 2)
        assert bool((made(x) - other).abs().max() > 1e-2) is differ


def test_drop_path_grows_over_the_blocks_and_leaves_whole_samples_out() -> None:
    net = EMO(SIZES["1m"], 10)
    drops = [block.drop.p for stage in net.stages for block in stage]
    assert drops[0] == 0 and drops[-1] == pytest.approx(0.04036)
    steps = torch.tensor(drops).diff()
    torch.testing.assert_close(steps, steps.mean().expand_as(steps))
    torch.manual_seed(0)
    block = IRMB(4, 4, 2, 3, norm="layer", drop_path=0.5).train()
    x = torch.randn(1, 4, 6, 6).repeat(64, 1, 1, 1)
    gone = (block(x) == x).flatten(1).all(dim=1)
    assert 16 <= gone.sum() <= 48
    kept = block.eval()(x) - x
    block.train()
    torch.manual_seed(1)
    with torch.no_grad():
        block.depthwise[1].eval()
        added = block(x) - x
    added = added[added.flatten(1).any(dim=1)]
    torch.testing.assert_close(added, 2 * kept[: len(added)])


def test_batchnorms_behind_convolutions_are_folded_and_layernorms_stay() -> None:
    model = resolve("zoo:emo_tiny", pretrained=False)
    net = model.module
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.uniform_(-0.5, 0.5)
            module.running_var.uniform_(0.5, 1.5)
    x = model.example(8)
    fast = frozen(net, x, precision="32-true")
    assert fast.folded == sum(isinstance(m, nn.BatchNorm2d) for m in net.modules()) == 9
    assert fast.error < 1e-5
    folded, _ = fold_batchnorm(net)
    kinds = [[isinstance(m, kind) for m in folded.modules()].count(True) for kind in (nn.BatchNorm2d, nn.LayerNorm)]
    assert kinds == [0, 6]
    with torch.no_grad():
        torch.testing.assert_close(fast(x), net.eval()(x), atol=1e-5, rtol=1e-4)


def test_its_blocks_are_the_nodes_of_a_chain() -> None:
    model = resolve("zoo:emo_tiny", pretrained=False)
    nodes = chain(model).nodes
    assert [node.name for node in nodes][-6:] == [f"stages.{i}.{j}" for i, n in enumerate((1, 2, 3)) for j in range(n)]
    assert [(node.gives.channels, node.gives.size) for node in nodes[-6:]] == [
        (24, (16, 16)),
        *[(40, (8, 8))] * 2,
        *[(64, (4, 4))] * 3,
    ]


def test_every_parameter_of_a_released_network_learns() -> None:
    torch.manual_seed(0)
    net = EMO(dataclasses.replace(SIZES["1m"], drop_path=0.0), 10)
    net(torch.randn(2, 3, 64, 64)).square().mean().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in net.parameters())


@pytest.mark.parametrize("name", ["emo_tiny", "shunted_tiny"])
@pytest.mark.parametrize("form", ["onnx", "torch"])
def test_it_is_exported_for_batches_of_any_length(name: str, form: Literal["onnx", "torch"], tmp_path: Path) -> None:
    if form == "onnx":
        pytest.importorskip("onnx")
        pytest.importorskip("onnxscript")
        runtime = pytest.importorskip("onnxruntime")
    torch.manual_seed(0)
    model = resolve(f"zoo:{name}", pretrained=False)
    file = tmp_path / ("net.onnx" if form == "onnx" else "net.pt2")
    assert write_export(model, file, form) < 1e-4
    x = model.example(5)
    with torch.no_grad():
        expected = model.module.eval()(x)
    if form == "onnx":
        session = runtime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
        found = torch.from_numpy(session.run(None, {session.get_inputs()[0].name: x.numpy()})[0])
    else:
        found = torch.export.load(file).module()(x)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-3)
