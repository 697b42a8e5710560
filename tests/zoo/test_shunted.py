"""Shunted Transformer: merged keys, attention, blocks and the network."""

from __future__ import annotations

import dataclasses

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from upcycle.core.errors import UserError
from upcycle.core.frozen import frozen
from upcycle.core.references import resolve
from upcycle.measure.cost import count
from upcycle.surgery.blocks import chain
from upcycle.zoo.shunted import (
    SIZES,
    Block,
    FeedForward,
    MergedKeys,
    ShuntedAttention,
    ShuntedTransformer,
    Stage,
    split_heads,
)


def attention(rates: tuple[int, ...], channels: int = 8, heads: int = 4) -> ShuntedAttention:
    torch.manual_seed(0)
    return ShuntedAttention(channels, heads, rates)


def ordinary(made: ShuntedAttention, x: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Multi-head attention written out, with softmax(q k' / sqrt(d)); keys and values (b, h, w, c)."""
    q, k, v = (split_heads(t, made.heads) for t in (made.q(x), k, v))
    weights = (q @ k.transpose(2, 3) / q.shape[3] ** 0.5).softmax(dim=3)
    return (weights @ v).transpose(1, 2).reshape(x.shape)


@pytest.mark.parametrize(("rate", "keys"), [(8, 4), (4, 16), (1, 256)])
def test_keys_are_merged_by_squares(rate: int, keys: int) -> None:
    made = MergedKeys(8, 4, 2, rate)
    k, v = made(torch.randn(3, 16, 16, 8))
    assert k.shape == v.shape == (3, 2, keys, 2)


def test_rows_of_attention_sum_to_one() -> None:
    """Where every value is the same, every average is that value."""
    made = attention((4, 2))
    for part in made.merged:
        nn.init.zeros_(part.kv.weight)
        nn.init.zeros_(part.local.weight)
        nn.init.zeros_(part.local.bias)
        nn.init.constant_(part.kv.bias, 3.0)
    nn.init.eye_(made.out.weight)
    nn.init.zeros_(made.out.bias)
    torch.testing.assert_close(made(torch.randn(2, 8, 8, 8)), torch.full((2, 8, 8, 8), 3.0))


def test_coarse_heads_come_first_and_fine_ones_do_not_depend_on_them() -> None:
    made = attention((4, 2))
    with torch.no_grad():
        made.out.weight[:, :4] = 0
    x = torch.randn(2, 8, 8, 8)
    made(x).square().mean().backward()
    for name, p in made.merged[0].named_parameters():
        assert p.grad is not None and p.grad.count_nonzero() == 0, name
    assert made.q.weight.grad is not None
    assert made.q.weight.grad[:4].count_nonzero() == 0 and made.q.weight.grad[4:].abs().min() > 0
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in made.merged[1].parameters())
    assert [part.merge.stride for part in made.merged] == [(4, 4), (2, 2)]


def test_at_rates_of_one_it_is_ordinary_attention(monkeypatch: pytest.MonkeyPatch) -> None:
    """With an identity for the merging convolution, and without the norm, GELU and the local convolution."""
    made, x = attention((1, 1)), torch.randn(2, 5, 7, 8)
    for part in made.merged:
        nn.init.dirac_(part.merge.weight)
        part.norm = nn.Identity()
        for p in (part.merge.bias, part.local.weight, part.local.bias):
            nn.init.zeros_(p)
    monkeypatch.setattr("upcycle.zoo.shunted.F.gelu", lambda t: t)
    (k1, v1), (k2, v2) = (part.kv(x).chunk(2, dim=3) for part in made.merged)
    expected = made.out(ordinary(made, x, torch.cat([k1, k2], dim=3), torch.cat([v1, v2], dim=3)))
    torch.testing.assert_close(made(x), expected, atol=1e-5, rtol=0)


def test_the_local_term_comes_before_attention_on_merged_tokens_and_behind_it_on_whole_ones() -> None:
    x = torch.randn(2, 8, 8, 8)
    merged, plain = attention((2,)), attention(())
    part = merged.merged[0]
    t = F.gelu(part.norm(part.merge(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)))
    k, v = part.kv(t).split(8, dim=3)
    local = part.local(v.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
    q, k, v = (split_heads(a, 4) for a in (merged.q(x), k, v + local))
    o = (q @ k.transpose(2, 3) / 2**0.5).softmax(dim=3) @ v
    torch.testing.assert_close(merged(x), merged.out(o.transpose(1, 2).reshape(x.shape)))

    k, v = plain.kv(x).split(8, dim=3)
    local = plain.local(v.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
    torch.testing.assert_close(plain(x), plain.out(ordinary(plain, x, k, v) + local))
    before = plain.out(ordinary(plain, x, k, v + local))
    assert (plain(x) - before).abs().max() > 1e-3


def test_the_feed_forward_part_sees_neighbours() -> None:
    torch.manual_seed(0)
    made, x = FeedForward(4, 12), torch.randn(2, 5, 6, 4)
    y = made.expand(x)
    local = F.conv2d(y.permute(0, 3, 1, 2), made.local.weight, made.local.bias, padding=1, groups=12)
    torch.testing.assert_close(made(x), made.project(F.gelu(y + local.permute(0, 2, 3, 1))))


@pytest.mark.parametrize("rates", [(4, 2), (2,), ()])
def test_a_block_that_projects_nothing_is_the_identity(rates: tuple[int, ...]) -> None:
    block = Block(Stage(depth=1, width=8, heads=2, rates=rates, expansion=2))
    for layer in (block.attention.out, block.feed_forward.project):
        nn.init.zeros_(layer.weight)
        nn.init.zeros_(layer.bias)
    x = torch.randn(2, 8, 8, 8)
    assert torch.equal(block(x), x)


def test_maps_have_the_strides_and_widths_of_the_paper() -> None:
    torch.manual_seed(0)
    net = ShuntedTransformer(SIZES["t"], 1000).eval()
    with torch.no_grad():
        for h, w in ((224, 224), (224, 160)):
            maps = net.features(torch.randn(2, 3, h, w))
            assert [tuple(m.shape) for m in maps] == [
                (2, 64 * 2**i, h // (4 * 2**i), w // (4 * 2**i)) for i in range(4)
            ]
        x = torch.randn(2, 3, 64, 96)
        torch.testing.assert_close(net(x), net.linear(net.features(x)[-1].mean(dim=(2, 3))))
        assert net(x).shape == (2, 1000)


def test_both_epsilons() -> None:
    found = {
        name: m.eps for name, m in ShuntedTransformer(SIZES["t"], 10).named_modules() if isinstance(m, nn.LayerNorm)
    }
    inner = {name for name in found if "embed" in name or "merged" in name}
    assert {found[name] for name in inner} == {1e-5}
    assert {found[name] for name in found.keys() - inner} == {1e-6}
    assert len(found) == 4 + 4 + 2 * 8 + 2 * 7


def test_images_that_no_whole_squares_fit_are_refused() -> None:
    net = ShuntedTransformer(SIZES["t"], 10)
    says = r"sides are multiples of 32, not 224 x 200; crop or resize them\."
    for run in (net, net.features):
        with pytest.raises(UserError, match=says):
            run(torch.zeros(1, 3, 224, 200))
    with pytest.raises(UserError, match=says):
        resolve("zoo:shunted_t", pretrained=False, input_shape=(3, 224, 200))
    with pytest.raises(UserError, match=r"multiples of 8, not 20 x 32"):
        resolve("zoo:shunted_tiny", pretrained=False, input_shape=(3, 20, 32))


def test_attention_of_the_first_stage_costs_less_than_a_fifth_of_full_attention() -> None:
    """Multiply-adds of everything in it but the projections of queries and outputs, at 224 x 224 pixels."""

    class OnTokens(nn.Module):
        def __init__(self, rates: tuple[int, ...]) -> None:
            super().__init__()
            self.attention = ShuntedAttention(64, 2, rates)

        def forward(self, x: Tensor) -> Tensor:
            return self.attention(x.permute(0, 2, 3, 1))

    shunted, full = (count(OnTokens(rates), (64, 56, 56)).macs for rates in ((8, 4), ()))
    assert shunted < full / 5


def test_norms_behind_convolutions_are_folded() -> None:
    model = resolve("zoo:shunted_tiny", pretrained=False)
    for m in model.module.modules():
        if isinstance(m, nn.BatchNorm2d):
            m.running_mean.uniform_(-0.5, 0.5)
            m.running_var.uniform_(0.5, 1.5)
    fast = frozen(model.module, model.example(8))
    assert fast.folded == 2
    assert fast.error < 1e-5


def test_its_blocks_are_the_nodes_of_a_chain() -> None:
    nodes = chain(resolve("zoo:shunted_tiny", pretrained=False)).nodes
    names = [node.name for node in nodes]
    for name in ("stages.0.blocks.0", "stages.0.blocks.1", "stages.1.blocks.0", "stages.1.blocks.1"):
        assert name in names
    assert [(node.gives.channels, node.gives.size) for node in nodes[-2:]] == [(128, (4, 4))] * 2


def test_one_rate_for_all_heads_takes_as_many_parameters() -> None:
    tiny = SIZES["tiny"]
    one = dataclasses.replace(tiny.stages[0], rates=(2,))
    sizes = [
        sum(p.numel() for p in ShuntedTransformer(size, 10).parameters())
        for size in (tiny, dataclasses.replace(tiny, stages=(one, tiny.stages[1])))
    ]
    assert 1 < sizes[0] / sizes[1] < 1.02
