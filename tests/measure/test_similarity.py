"""Similarity of layers: exact invariances, both forms, the estimators against their definitions, digits."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

from upcycle.core.errors import UserError
from upcycle.core.references import resolve
from upcycle.data import load
from upcycle.measure.similarity import Similarity, linear_cka, similarity_map

KINDS = ("debiased", "linear", "rbf", "regression")


def _gaussians(*shapes: tuple[int, int], seed: int = 0) -> list[Tensor]:
    random = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=random) for shape in shapes]


def _layers(n: int = 60, seed: int = 0) -> list[Tensor]:
    """Features of different width that have something in common."""
    base, *mixes = _gaussians((n, 6), (6, 3), (6, 9), (6, 80), seed=seed)
    noise = _gaussians(*((n, m.shape[1]) for m in mixes), seed=seed + 1)
    return [torch.relu(base @ m + 0.5 * e) + 2.0 for m, e in zip(mixes, noise, strict=True)]


def _hsic1(k: Tensor, m: Tensor) -> Tensor:
    """The card's formula, written out."""
    n = len(k)
    k, m = k - k.diag().diag(), m - m.diag().diag()
    one = torch.ones(n, 1, dtype=k.dtype)
    cross = (one.T @ k @ one) * (one.T @ m @ one) / ((n - 1) * (n - 2))
    return ((k @ m).trace() + cross - 2 / (n - 2) * one.T @ k @ m @ one).squeeze() / (n * (n - 3))


def test_cka_of_a_layer_with_itself_is_one_and_both_forms_agree() -> None:
    x, y, wide = _layers()
    for a, b in itertools.product((x, y, wide), repeat=2):
        torch.testing.assert_close(linear_cka(a, b, "features"), linear_cka(a, b, "gram"), rtol=0, atol=1e-10)
        torch.testing.assert_close(linear_cka(a, b), linear_cka(b, a), rtol=0, atol=1e-12)
    assert abs(linear_cka(wide, wide).item() - 1) < 1e-12
    assert 0.05 < linear_cka(x, y).item() < 0.99


@pytest.mark.parametrize("kind", KINDS)
def test_invariant_to_rotation_scale_and_shift(kind: str) -> None:
    x, y, _ = (a.double() for a in _layers())
    rotation = torch.linalg.qr(torch.randn(9, 9, generator=torch.Generator().manual_seed(3)).double())[0]
    # Float32 features, large against their spread: the mean must go before digits do.
    moved = (-0.3 * y @ rotation + torch.linspace(-5, 5, 9)).float()
    expected, got = similarity_map([x], [y], kind), similarity_map([x], [moved], kind)
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-5)
    if kind != "regression":
        torch.testing.assert_close(similarity_map([moved], [x], kind), expected.T, rtol=0, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_one_on_the_diagonal_and_the_same_with_two_lists(kind: str) -> None:
    layers = _layers(n=100)
    own, two = similarity_map(layers, kind=kind), similarity_map(layers, list(layers), kind=kind)
    torch.testing.assert_close(own.diag(), torch.ones(3, dtype=torch.float64), rtol=0, atol=1e-10)
    torch.testing.assert_close(own, two, rtol=0, atol=1e-10)
    assert (own <= 1 + 1e-10).all()
    if kind != "regression":
        torch.testing.assert_close(own, own.T, rtol=0, atol=1e-12)


def test_the_map_of_linear_cka_is_its_pairs() -> None:
    layers = _layers()
    expected = torch.tensor([[linear_cka(a, b).item() for b in layers] for a in layers], dtype=torch.float64)
    torch.testing.assert_close(similarity_map(layers, kind="linear"), expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize("n", [4, 7, 200])
def test_debiased_is_its_definition_also_over_batches(n: int) -> None:
    """Narrow and wide layers, so that Gram matrices and features both come about."""
    layers = _layers(n=2 * n)
    grams = [[(a.double()[s] @ a.double()[s].T) for a in layers] for s in (slice(n), slice(n, None))]
    h = torch.stack([torch.stack([torch.stack([_hsic1(k, m) for m in batch]) for k in batch]) for batch in grams])
    mean = h.mean(0)
    expected = mean / torch.outer(mean.diag(), mean.diag()).sqrt()
    torch.testing.assert_close(similarity_map(layers, batch=n), expected, rtol=0, atol=1e-9)
    gathered = Similarity()
    gathered.add([a[:n] for a in layers])
    gathered.add([a[n:] for a in layers])
    torch.testing.assert_close(gathered.map(), expected, rtol=0, atol=1e-9)


def test_debiased_of_independent_features_is_zero_where_linear_is_not() -> None:
    debiased, linear = [], []
    for seed in range(20):
        x, y = _gaussians((256, 512), (256, 512), seed=seed)
        debiased.append(similarity_map([x], [y]).item())
        linear.append(linear_cka(x, y, "gram").item())
    assert abs(sum(debiased) / 20) < 0.02
    assert min(debiased) < 0 < max(debiased)
    assert abs(sum(linear) / 20 - 512 / (512 + 256)) < 0.02


def test_debiased_does_not_depend_on_the_length_of_the_batch() -> None:
    layers = _layers(n=2048)
    whole, short = similarity_map(layers), similarity_map(layers, batch=16)
    assert (whole - short).abs().max() < 0.02
    biased = similarity_map(layers, kind="linear", batch=16) - similarity_map(layers, kind="linear")
    assert biased.abs().max() > 0.05


def test_rbf_is_its_definition() -> None:
    x, y, _ = (a.double() for a in _layers(n=30))
    h = torch.eye(30, dtype=torch.float64) - 1 / 30

    def kernel(a: Tensor) -> Tensor:
        d = torch.cdist(a, a, compute_mode="donot_use_mm_for_euclid_dist").square()
        return h @ torch.exp(-d / (2 * d[d > 0].median())) @ h

    k, m = kernel(x), kernel(y)
    expected = (k * m).sum() / (k.norm() * m.norm())
    torch.testing.assert_close(similarity_map([x], [y], "rbf")[0, 0], expected, rtol=0, atol=1e-10)


def test_regression_is_r_squared_of_least_squares_also_with_dead_and_doubled_channels() -> None:
    x, y, _ = (a.double() for a in _layers(n=100))
    y = torch.cat([y, y[:, :2], torch.full((100, 1), 0.1)], dim=1)
    design = torch.cat([y[:, :9], torch.ones(100, 1, dtype=torch.float64)], dim=1)
    rest = x - design @ torch.linalg.lstsq(design, x).solution
    expected = 1 - rest.square().sum() / (x - x.mean(0)).square().sum()
    forth, back = similarity_map([x], [y], "regression")[0, 0], similarity_map([y], [x], "regression")[0, 0]
    torch.testing.assert_close(forth, expected, rtol=0, atol=1e-10)
    assert abs(forth - back) > 0.01


@pytest.mark.parametrize("kind", KINDS)
def test_a_layer_that_does_not_vary_is_similar_to_nothing(kind: str) -> None:
    x, dead = _layers()[0], torch.full((60, 5), 0.1)
    got = similarity_map([x, dead], kind=kind)
    torch.testing.assert_close(got, torch.tensor([[1.0, 0.0], [0.0, 0.0]], dtype=torch.float64), rtol=0, atol=1e-10)
    assert linear_cka(x, dead).item() == 0


def test_half_precision_features_are_centred_in_float64() -> None:
    x, y, _ = _layers()
    x, y = x.half(), y.half()
    assert torch.equal(similarity_map([x], [y]), similarity_map([x.double()], [y.double()]))


@pytest.mark.parametrize(
    ("xs", "kind", "sentence"),
    [
        ([torch.ones(3, 2)], "debiased", "at least 4 inputs, not 3"),
        ([], "debiased", "at least one layer"),
        ([torch.ones(8, 2), torch.ones(9, 2)], "linear", "Layer 1 has features of 9 inputs where layer 0 has 8"),
        ([torch.full((8, 2), torch.nan)], "rbf", "layer 0 hold NaN"),
        (_gaussians((8, 20)), "regression", "needs more than 8 inputs a batch"),
        ([torch.ones(8, 2)], "cka", "There is no similarity 'cka'"),
    ],
)
def test_mistakes_end_in_one_sentence(xs: list[Tensor], kind: str, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        similarity_map(xs, kind=kind)


def test_batches_must_agree_and_come() -> None:
    similarity = Similarity()
    with pytest.raises(UserError, match="no features yet"):
        similarity.map()
    similarity.add(_gaussians((8, 2)))
    with pytest.raises(UserError, match=r"\(2, 2\) layers and those before had \(1, 1\)"):
        similarity.add(_gaussians((8, 2), (8, 2)))
    with pytest.raises(UserError, match="at least 4 inputs, not 3"):
        similarity_map(_gaussians((8, 2)), batch=3)


def test_layers_near_each_other_are_more_alike_on_digits() -> None:
    model, data = resolve("zoo:digits_teacher"), load("digits")
    data = data.normalised(model.mean, model.std)
    found: list[Tensor] = []
    hooks = [
        m.register_forward_hook(lambda _, __, out: found.append(out.mean((2, 3))))
        for m in model.module.modules()
        if isinstance(m, torch.nn.ReLU)
    ]
    images, *_ = data.train.batch(torch.arange(500), device=torch.device("cpu"))
    with torch.no_grad():
        model.module.eval()(images)
    for hook in hooks:
        hook.remove()
    s = similarity_map([f for f in found if f.ndim == 2])
    assert len(s) >= 3
    assert s[0, 1] > s[0, -1]
    assert s[-2, -1] > s[0, -1]
