"""Poll and pool: every token once, nested choices, masks of mixed batches, and the identity at ratio 1."""

from __future__ import annotations

import copy
import itertools
import math
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from upcycle.core import saved
from upcycle.core.errors import UserError
from upcycle.core.models import Model
from upcycle.core.references import resolve
from upcycle.measure.cost import count
from upcycle.surgery.inserts.base import Place
from upcycle.surgery.inserts.pnp import (
    LEAST,
    MOST,
    PNP,
    PollAndPool,
    Sample,
    Sampler,
    make,
    number_polled,
    numbers_polled,
    pool,
    ranks,
    sample,
)
from upcycle.surgery.operate import Cut, inserts, operate, start_error
from upcycle.surgery.ratio import ratio_of, set_ratio
from upcycle.surgery.signals import Signal
from upcycle.verbs.export import export

B, L, C, M = 3, 12, 8, 4
PADDING = torch.arange(L) >= torch.tensor([[L], [7], [3]])
"""Samples of 12, 7 and 3 tokens."""
RATIOS = (0.05, 1 / 3, 0.5, 0.8, 1.0)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def tokens(seed: int = 0) -> Tensor:
    return torch.randn(B, L, C, generator=generator(seed)).double()


def sampler(m: int = M, b0: float | None = None) -> Sampler:
    torch.manual_seed(1)
    return Sampler(C, m, b0).double()


def scores() -> Tensor:
    return torch.rand(B, L, generator=generator(5)).double()


def place(signal: Signal) -> Place:
    return Place("b", nn.Identity(), signal, signal)


# -- the sampler ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("padding", [None, PADDING], ids=["alike", "mixed"])
@pytest.mark.parametrize("ratio", RATIOS)
def test_every_token_is_polled_or_pooled_once(padding: Tensor | None, ratio: float) -> None:
    """Tokens are one-hot, so that what is in a slot tells which token it is."""
    x = torch.eye(L).double().expand(B, L, L)
    made = sample(x, torch.ones(B, L).double(), nn.Linear(L, M).double(), nn.Identity(), ratio, padding)
    real = torch.full((B,), L) if padding is None else (~padding).sum(1)
    n = torch.full((B,), number_polled(ratio, L)) if padding is None else numbers_polled(ratio, padding)
    fine = made.tokens[:, : int(n.max())].masked_fill(made.empty[:, : int(n.max()), None], 0)
    in_pool = (made.weights > 0).any(2)  # of slots behind the least number
    index = ranks(torch.ones(B, L).double(), padding)[:, int(n.min()) :]
    membership = fine.sum(1) + torch.zeros(B, L).double().scatter(1, index, in_pool.double())
    expected = torch.ones(B, L).double() if padding is None else (~padding).double()
    assert torch.equal(membership, expected)
    assert torch.equal(membership.sum(1).long(), real)


def test_lengths_and_masks() -> None:
    n = numbers_polled(0.5, PADDING)
    assert n.tolist() == [6, 3, 1]
    made, _ = sampler()(tokens(), 0.5, PADDING)
    assert made.tokens.shape == (B, 6 + M, C) and made.empty.shape == (B, 6 + M)
    assert (~made.empty).sum(1).tolist() == [6 + M, 3 + M, 1 + M]
    assert not made.empty[:, 6:].any()
    whole, _ = sampler()(tokens(), 0.5)
    assert whole.tokens.shape == (B, 6 + M, C) and not whole.empty.any()


@pytest.mark.parametrize("padding", [None, PADDING], ids=["alike", "mixed"])
def test_weights_are_means_over_what_is_left(padding: Tensor | None) -> None:
    made, _ = sampler()(tokens(), 0.5, padding)
    assert torch.allclose(made.weights.sum(1), torch.ones(B, M).double())
    if padding is not None:
        n, real = numbers_polled(0.5, padding), (~padding).sum(1)
        slots = torch.arange(int(n.min()), L)
        absent = (slots < n[:, None]) | (slots >= real[:, None])
        assert (made.weights[absent] == 0).all() and (made.weights[~absent] > 0).all()


def test_where_none_is_left_there_are_noughts_and_an_empty_slot() -> None:
    x, absent = tokens(), torch.zeros(B, L, dtype=torch.bool)
    absent[1] = True
    means, weights = pool(x, torch.randn(B, L, M).double(), absent)
    assert (means[1] == 0).all() and (weights[1] == 0).all() and means.isfinite().all()
    made, _ = sampler()(x, 1.0, PADDING)  # all tokens of all samples are polled
    assert made.tokens.isfinite().all() and (~made.empty).sum(1).tolist() == [12, 7, 3]
    made.tokens.masked_fill(made.empty[:, :, None], 0).sum().backward()
    made, _ = sampler()(x, 1.0)
    assert made.tokens.shape == (B, L, C) and made.weights.shape[1] == 0


def _gradient(made: Sample, network: Sampler) -> float:
    network.zero_grad()
    made.tokens.square().sum().backward()
    return sum(float(p.grad.abs().sum()) for p in network.score.parameters() if p.grad is not None)


def test_the_score_learns_by_its_product_with_the_token_alone() -> None:
    network, x = sampler(), tokens()
    s = network.score(x).squeeze(2).sigmoid()
    assert _gradient(sample(x, s, network.weigh, network.value, 0.5), network) > 0
    assert _gradient(sample(x, s.detach(), network.weigh, network.value, 0.5), network) == 0


def test_a_larger_ratio_polls_the_same_tokens_and_more() -> None:
    s = torch.tensor([[0.5] * L, [0.1, 0.9] * (L // 2), [k / L for k in range(L)]]).double()  # with equal ones
    chosen = [set_of(sample(tokens(), s, None, nn.Identity(), k / L).polled) for k in range(1, L + 1)]
    for fewer, more in itertools.pairwise(chosen):
        assert all(a < b for a, b in zip(fewer, more, strict=True))


def set_of(polled: Tensor) -> list[set[int]]:
    return [set(row) for row in polled.tolist()]


def test_padding_at_the_end_changes_nothing() -> None:
    network, x, positions = sampler(), tokens(), tokens(1)
    more = torch.cat([x, 99 * torch.ones(B, 5, C).double()], 1)
    padding = torch.cat([torch.zeros(B, L, dtype=torch.bool), torch.ones(B, 5, dtype=torch.bool)], 1)
    where = torch.cat([positions, torch.zeros(B, 5, C).double()], 1)
    for mixed in (padding, torch.cat([PADDING, torch.ones(B, 5, dtype=torch.bool)], 1)):
        own = mixed[:, :L] if mixed is not padding else None
        before, _ = network(x, 0.5, own, positions)
        after, _ = network(more, 0.5, mixed, where)
        assert torch.equal(before.empty, after.empty)
        for a, b in ((before.tokens, after.tokens), (before.positions, after.positions)):
            assert a is not None and b is not None
            assert (a - b)[~before.empty].abs().max() < 1e-5


def test_without_logits_pooled_vectors_are_means() -> None:
    network, x, positions = sampler(), tokens(), tokens(1)
    assert network.weigh is not None
    nn.init.zeros_(network.weigh.weight)
    nn.init.zeros_(network.weigh.bias)
    made, s = network(x, 0.5, None, positions)
    normalised = nn.functional.layer_norm(x, (C,))
    for b in range(B):
        rest = s[b].argsort(descending=True)[6:]
        assert torch.allclose(made.tokens[b, 6:], network.value(normalised[b, rest]).mean(0).expand(M, C))
        assert made.positions is not None
        assert torch.allclose(made.positions[b, 6:], positions[b, rest].mean(0).expand(M, C))
        polled = s[b].argsort(descending=True)[:6]
        assert torch.allclose(made.tokens[b, :6], normalised[b, polled] * s[b, polled, None])
        assert torch.equal(made.positions[b, :6], positions[b, polled])


def test_the_score_sees_tokens_before_their_normalisation() -> None:
    network, x = sampler(), tokens()
    _, s = network(x, 0.5)
    _, scaled = network(3 * x, 0.5)
    assert not torch.allclose(s, scaled)
    assert torch.equal(s, network.score(x).squeeze(2).sigmoid())


def test_numbers_of_tokens() -> None:
    assert [number_polled(r, 64) for r in (1 / 3, 0.5, 0.8, 1.0, 1e-9)] == [21, 32, 51, 64, 1]
    for n in range(1, 300):  # k / n times n is k, whatever binary numbers make of it
        assert all(number_polled(k / n, n) == k for k in range(1, n + 1))


def test_the_paper_has_as_many_numbers() -> None:
    assert sum(p.numel() for p in Sampler(256, 30).parameters()) == 139_551
    assert PNP.parameters(Signal("tokens", 256, (25, 34)), m=30) == 139_551


# -- the block --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("extra", [0, 2])
@pytest.mark.parametrize("b0", [0.0, 4.6, -2.0])
def test_at_ratio_one_it_starts_as_the_identity(extra: int, b0: float) -> None:
    block = make(place(Signal("tokens", C, (3, 4), extra)), "after", "same", b0=b0)
    x = torch.randn(B, extra + L, C)
    for mode in (True, False):
        assert (block.train(mode)(x) - x).abs().max() < 1e-6 * x.abs().max()
    block.ratio = 0.5
    made = block(x)
    assert made.shape == (B, extra + 6 + 4, C) and torch.equal(made[:, :extra], x[:, :extra])
    means = x[:, extra:][:, 6:]  # equal scores stay in order, so the last six are left
    assert made[:, extra + 6 :].min() >= means.min() and made[:, extra + 6 :].max() <= means.max()


def vit(name: str = "zoo:vit") -> Model:
    torch.manual_seed(0)
    return resolve(name, pretrained=False)


def test_a_network_starts_at_its_own_function_and_has_fewer_tokens_behind() -> None:
    model = vit()
    made = operate(model, Cut(at=("blocks.0",), block="pnp"))
    assert start_error(model, made) <= 1e-6 and ratio_of(made.module) == 1.0
    seen: list[int] = []
    made.module.blocks[2].register_forward_hook(lambda m, i, out: seen.append(out.shape[1]))  # type: ignore[union-attr,operator]
    for ratio in RATIOS:
        set_ratio(made.module, ratio)
        assert made.module(made.example()).isfinite().all()
    assert seen == [3 + 4, 21 + 4, 32 + 4, 51 + 4, 64]


@pytest.mark.parametrize("ratio", RATIOS)
def test_multiply_adds_are_those_of_the_tokens_that_are_left(ratio: float) -> None:
    model = vit()
    d, tokens_ = 96, 64
    made = operate(model, Cut(at=("blocks.0",), block="pnp"))
    set_ratio(made.module, ratio)
    n = number_polled(ratio, tokens_)
    left = n + (4 if n < tokens_ else 0)

    def blocks(t: int) -> int:  # qkv, scores and sums of attention, out, and the MLP
        return t * 3 * d * d + 2 * t * t * d + t * d * d + 4 * t * d * d

    before, after = (count(m.module, m.input_shape).macs for m in (model, made))
    own = PNP.macs(Signal("tokens", d, (8, 8)), ratio=ratio)
    assert after - before == own - 3 * (blocks(tokens_) - blocks(left))
    assert count(made.module, made.input_shape).parameters - count(model.module, model.input_shape).parameters == (
        PNP.parameters(Signal("tokens", d, (8, 8)))
    )


def test_while_it_is_tuned_ratios_are_drawn_and_the_score_is_in_the_loss() -> None:
    block = make(place(Signal("tokens", C, (8, 8))), "after", "same", m=2, lam=0.5, ratio=0.6)
    x, lengths = torch.randn(B, 64, C), []
    assert block.train()(x).shape[1] == 64 and block.penalty() is None
    random = generator()
    for _ in range(200):
        block.prepare(0.3, random)
        lengths.append(block(x).shape[1] - 2)
        term = block.penalty()
        assert term is not None and torch.isclose(term, torch.tensor(0.25)) and block.penalty() is None
    assert number_polled(LEAST, 64) <= min(lengths) < 25 and 48 < max(lengths) <= number_polled(MOST, 64)
    assert block.eval()(x).shape[1] == number_polled(0.6, 64) + 2 and block.penalty() is None
    block.train()
    block.prepare(0.4, generator(1))
    first = block(x)
    block.prepare(0.4, generator(1))
    assert first.shape == block(x).shape
    copy.deepcopy(block)  # although nobody took the term


def test_the_ratio_is_saved_with_the_weights(tmp_path: Path) -> None:
    made = operate(vit(), Cut(at=("blocks.0",), block="pnp"))
    set_ratio(made.module, 0.4)
    saved.save(made, tmp_path / "m")
    again = saved.load(tmp_path / "m")
    assert math.isclose(ratio_of(again.module), 0.4, rel_tol=1e-6)
    x = made.example(3)
    with torch.no_grad():
        assert torch.equal(again.module(x), made.module.eval()(x))


@pytest.mark.parametrize("ratio", [0.0, -1.0, 1.5, float("nan")])
def test_no_other_ratio_is_taken_from_a_person_or_a_file(ratio: float) -> None:
    made = operate(vit(), Cut(at=("blocks.0",), block="pnp"))
    with pytest.raises(UserError, match="ratio must be above 0 and at most 1"):
        set_ratio(made.module, ratio)
    (block,) = inserts(made.module)
    with pytest.raises(UserError, match="ratio must be above 0 and at most 1"):
        block.load_state_dict({**block.state_dict(), "kept_ratio": torch.tensor(ratio)})


@pytest.mark.parametrize(("format", "suffix"), [("torch", ".pt2"), ("onnx", ".onnx")])
def test_an_export_has_one_ratio_and_the_network_keeps_its_own(format: str, suffix: str, tmp_path: Path) -> None:
    if format == "onnx":
        onnxruntime = pytest.importorskip("onnxruntime")
        pytest.importorskip("onnxscript")
    made = operate(vit(), Cut(at=("blocks.0",), block="pnp"))
    (block,) = inserts(made.module)
    assert isinstance(block, PollAndPool)
    nn.init.normal_(block.sampler.score[2].weight)  # so that images differ in their order
    x, file = made.example(5), tmp_path / f"m{suffix}"
    export(made, file, format=format, ratio=0.5, say=lambda text: None)  # type: ignore[arg-type]
    assert ratio_of(made.module) == 1.0
    if format == "onnx":
        session = onnxruntime.InferenceSession(str(file))
        answer = torch.from_numpy(session.run(None, {"images": x.numpy()})[0])
    else:
        answer = torch.export.load(file).module()(x)
    whole = made.module.eval()(x)
    set_ratio(made.module, 0.5)
    assert torch.allclose(answer, made.module(x), atol=1e-4) and not torch.allclose(answer, whole, atol=1e-3)


def test_an_export_of_a_network_without_such_a_block_refuses_a_ratio(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="has no block whose ratio of tokens can be set"):
        export("zoo:digits_teacher", tmp_path / "m.pt2", format="torch", ratio=0.5)
    assert list(tmp_path.iterdir()) == []


def test_a_cnn_has_no_tokens() -> None:
    torch.manual_seed(0)
    with pytest.raises(UserError, match="pnp"):
        operate(resolve("zoo:resnet8", pretrained=False), Cut(at=("layer1.0",), block="pnp"))


@pytest.mark.parametrize(
    ("options", "says"),
    [({"m": -1}, "m must not be negative"), ({"ratio": 0.0}, "ratio must be above 0"), ({"lam": -1.0}, "lam must not")],
)
def test_options_out_of_range_are_named(options: dict[str, float], says: str) -> None:
    with pytest.raises(UserError, match=says):
        make(place(Signal("tokens", C, (3, 4))), "after", "same", **options)  # type: ignore[arg-type]
