"""Mixing: the invariants of mixup, CutMix and SnapMix."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from upcycle.core.losses import ce_loss
from upcycle.core.seeds import uniform
from upcycle.training.mix import Box, Draw, box, cutmix, draw, mixup, partners, snapmix
from upcycle.training.percent_maps import percent_map

H, W, K = 12, 8, 7
WHOLE, NONE = Box(0, 0, H, W), Box(3, 3, 3, 3)
AREA = H * W


def batch(b: int = 6, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Images, labels and a permutation under which no two partners are of one class."""
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(b, 3, H, W, generator=g).contiguous(memory_format=torch.channels_last)
    return x, torch.arange(b) % K, torch.arange(b).roll(1)


def maps(b: int = 6, seed: int = 1) -> Tensor:
    g = torch.Generator().manual_seed(seed)
    features = torch.randn(b, 4, 3, 2, generator=g)
    return percent_map(features, torch.randn(K, 4, generator=g), torch.arange(b) % K, (H, W))


def uniform_maps(b: int = 6) -> Tensor:
    return torch.full((b, H, W), 1 / AREA)


def drawn(first: int, prob: float, beta: float) -> Draw:
    return draw(uniform(0, 0, torch.tensor([first]), "mix", 7)[0].tolist(), prob, beta, H, W)


def boxes(seed: int) -> tuple[Box, Box]:
    found = drawn(seed, 1.0, 1.0)
    return found.target, found.source


# -- boxes and draws --------------------------------------------------------------------------------------------


@given(st.floats(0, 1), st.floats(0, 1, exclude_max=True), st.floats(0, 1, exclude_max=True))
@settings(max_examples=100, deadline=None)
def test_a_box_lies_in_the_image_and_is_no_larger_than_its_share(lam: float, y: float, x: float) -> None:
    found = box(lam, (y, x), H, W)
    assert 0 <= found.top <= found.bottom <= H and 0 <= found.left <= found.right <= W
    assert found.area <= (1 - lam) * AREA + 1e-9


def test_a_box_of_lambda_one_is_empty_and_one_of_zero_in_the_middle_is_the_image() -> None:
    assert box(1.0, (0.5, 0.5), H, W).area == 0
    assert box(0.0, (0.5, 0.5), H, W) == WHOLE


def test_lambda_is_of_the_beta_distribution_and_so_many_batches_are_mixed() -> None:
    found = [drawn(i, 0.3, 5.0) for i in range(2000)]
    lam = torch.tensor([d.lam for d in found], dtype=torch.float64)
    assert float(lam.mean()) == pytest.approx(0.5, abs=0.01)
    assert float(lam.var()) == pytest.approx(1 / 44, abs=0.002)  # of Beta(5, 5): 1 / (4 (2β + 1))
    assert sum(d.mixes for d in found) / 2000 == pytest.approx(0.3, abs=0.03)
    assert not any(drawn(i, 0.0, 5.0).mixes for i in range(50))
    assert all(drawn(i, 1.0, 5.0).mixes for i in range(50))


def test_partners_are_a_permutation_of_the_labelled_and_others_stay_alone() -> None:
    known = torch.tensor([True, False, True, True, False, True])
    found = partners(torch.tensor([0.5, 0.1, 0.2, 0.9, 0.3, 0.4]), known)
    assert found.tolist() == [2, 1, 5, 0, 4, 3]


def test_every_partner_is_as_likely() -> None:
    ids, seen = torch.arange(4), torch.zeros(4, 4)
    for epoch in range(2000):
        seen[ids, partners(uniform(0, epoch, ids, "mix")[:, 0], torch.ones(4, dtype=torch.bool))] += 1
    assert float((seen / 2000 - 0.25).abs().max()) < 0.04


# -- percent maps -----------------------------------------------------------------------------------------------


def test_a_percent_map_is_not_negative_and_sums_to_one() -> None:
    S = maps()
    assert bool((S >= 0).all())
    torch.testing.assert_close(S.sum((1, 2)), torch.ones(6))


def test_a_percent_map_is_what_the_paper_says() -> None:
    g = torch.Generator().manual_seed(2)
    features, weight, y = torch.randn(2, 4, 3, 2, generator=g), torch.randn(K, 4, generator=g), torch.tensor([1, 4])
    for i in range(2):
        M = sum(weight[y[i], c] * features[i, c].clamp_min(0) for c in range(4))
        M = F.interpolate(M[None, None], (H, W), mode="bilinear", align_corners=False)[0, 0] + 0.7  # any bias
        expected = (M - M.min()) / (M - M.min()).sum()
        torch.testing.assert_close(percent_map(features, weight, y, (H, W))[i], expected)


def test_evidence_that_is_the_same_everywhere_has_no_map() -> None:
    S = percent_map(torch.full((2, 4, 3, 2), 0.3), torch.randn(K, 4), torch.tensor([0, 1]), (H, W))
    assert bool(S.isnan().all())
    assert bool(percent_map(torch.randn(2, 4, 3, 2), torch.zeros(K, 4), torch.tensor([0, 1]), (7, 7)).isnan().all())


def test_no_gradient_flows_into_a_percent_map() -> None:
    features, weight = torch.randn(2, 4, 3, 2, requires_grad=True), torch.randn(K, 4, requires_grad=True)
    assert not percent_map(features, weight, torch.tensor([0, 1]), (H, W)).requires_grad


# -- images and targets -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(8))
def test_pixels_outside_the_box_stay_and_the_callers_images_too(seed: int) -> None:
    x, y, rows = batch()
    before, (A, B) = x.clone(), boxes(seed)
    outside = torch.ones(H, W, dtype=torch.bool)
    outside[A.part] = False
    for mixed, _ in (cutmix(x, y, x, y, rows, A, K), snapmix(x, y, x, y, rows, A, B, maps(), maps(), K)):
        assert torch.equal(mixed[:, :, outside], x[:, :, outside])
        assert torch.equal(x, before)


def test_cutmix_puts_the_partners_box_where_it_says() -> None:
    x, y, rows = batch()
    A = Box(2, 1, 7, 6)
    mixed, T = cutmix(x, y, x, y, rows, A, K)
    assert torch.equal(mixed[:, :, 2:7, 1:6], x[rows][:, :, 2:7, 1:6])
    for i in range(6):
        assert float(T[i, y[i]]) == pytest.approx(1 - 25 / AREA)
        assert float(T[i, y[rows[i]]]) == pytest.approx(25 / AREA)


def test_mixup_and_its_targets() -> None:
    x, y, rows = batch()
    mixed, T = mixup(x, y, x, y, rows, 0.3, K)
    torch.testing.assert_close(mixed, 0.3 * x + 0.7 * x[rows])
    torch.testing.assert_close(T, 0.3 * F.one_hot(y, K) + 0.7 * F.one_hot(y[rows], K))


@pytest.mark.parametrize("seed", range(4))
def test_targets_of_mixup_and_cutmix_sum_to_one(seed: int) -> None:
    x, y, rows = batch()
    for _, T in (mixup(x, y, x, y, rows, seed / 3, K), cutmix(x, y, x, y, rows, boxes(seed)[0], K)):
        torch.testing.assert_close(T.sum(1), torch.ones(6))


@pytest.mark.parametrize("seed", range(8))
def test_shares_of_snapmix_are_those_of_a_sum_over_pixels(seed: int) -> None:
    x, y, rows = batch()
    (A, B), S = boxes(seed), maps()
    if not A.area or not B.area:
        pytest.skip("an empty box")
    mixed, T = snapmix(x, y, x, y, rows, A, B, S, S, K)
    for i, j in enumerate(rows.tolist()):
        rho_a = 1 - sum(float(S[i, r, c]) for r in range(A.top, A.bottom) for c in range(A.left, A.right))
        rho_b = sum(float(S[j, r, c]) for r in range(B.top, B.bottom) for c in range(B.left, B.right))
        assert float(T[i, y[i]]) == pytest.approx(rho_a, abs=1e-5)
        assert float(T[i, y[j]]) == pytest.approx(rho_b, abs=1e-5)
        part = F.interpolate(x[j : j + 1][:, :, *B.part], A.size, mode="bilinear", align_corners=True)
        torch.testing.assert_close(mixed[i : i + 1][:, :, *A.part], part)
    assert bool((T >= 0).all()) and bool((T <= 1).all())


def test_the_loss_is_the_weighted_sum_of_two_cross_entropies() -> None:
    x, y, rows = batch()
    A, B = boxes(1)
    _, T = snapmix(x, y, x, y, rows, A, B, maps(), maps(), K)
    z = torch.randn(6, K)
    a, b = T[torch.arange(6), y], T[torch.arange(6), y[rows]]
    expected = (a * F.cross_entropy(z, y, reduction="none") + b * F.cross_entropy(z, y[rows], reduction="none")).mean()
    torch.testing.assert_close(ce_loss(z, T), expected)
    assert not math.isclose(float(T.sum()), 6.0, rel_tol=1e-3)  # not normalised


def test_uniform_maps_count_by_area() -> None:
    x, y, rows = batch()
    A, B = Box(0, 0, 4, 4), Box(2, 2, 12, 5)
    _, T = snapmix(x, y, x, y, rows, A, B, uniform_maps(), uniform_maps(), K)
    torch.testing.assert_close(T[torch.arange(6), y], torch.full((6,), 1 - 16 / AREA))
    torch.testing.assert_close(T[torch.arange(6), y[rows]], torch.full((6,), 30 / AREA))


def test_equal_boxes_and_uniform_maps_are_cutmix() -> None:
    x, y, rows = batch()
    A = Box(1, 2, 9, 7)
    one, T = cutmix(x, y, x, y, rows, A, K)
    other, T_snap = snapmix(x, y, x, y, rows, A, A, uniform_maps(), uniform_maps(), K)
    assert torch.equal(one, other)
    torch.testing.assert_close(T, T_snap)


def test_without_evidence_shares_are_those_of_the_target_box() -> None:
    x, y, rows = batch()
    A, B, S = Box(0, 0, 4, 4), Box(2, 2, 12, 5), uniform_maps() * float("nan")
    _, T = snapmix(x, y, x, y, rows, A, B, S, S, K)
    torch.testing.assert_close(T[torch.arange(6), y], torch.full((6,), 1 - 16 / AREA))
    torch.testing.assert_close(T[torch.arange(6), y[rows]], torch.full((6,), 16 / AREA))


def test_whole_images_as_boxes() -> None:
    x, y, rows = batch()
    mixed, T = snapmix(x, y, x, y, rows, WHOLE, WHOLE, maps(), maps(), K)
    assert torch.equal(mixed, x[rows])
    torch.testing.assert_close(T, F.one_hot(y[rows], K).float(), atol=1e-5, rtol=0)


@pytest.mark.parametrize(("A", "B"), [(NONE, WHOLE), (WHOLE, NONE)])
def test_an_empty_box_mixes_nothing(A: Box, B: Box) -> None:
    x, y, rows = batch()
    mixed, T = snapmix(x, y, x, y, rows, A, B, maps(), maps(), K)
    assert torch.equal(mixed, x)
    assert torch.equal(T, F.one_hot(y, K).float())


def test_a_pair_of_one_class_counts_once() -> None:
    x, _, rows = batch()
    y, (A, B) = torch.full((6,), 2), (Box(0, 0, 4, 4), Box(2, 2, 12, 5))
    _, T = snapmix(x, y, x, y, rows, A, B, uniform_maps(), uniform_maps(), K)
    torch.testing.assert_close(T[:, 2], torch.full((6,), 1 - 16 / AREA + 30 / AREA))
    assert int(T.count_nonzero()) == 6


def test_an_image_that_is_its_own_partner_is_pasted_onto_itself() -> None:
    x, y, _ = batch()
    own, (A, B) = torch.arange(6), (Box(0, 0, 4, 4), Box(2, 2, 12, 5))
    mixed, T = snapmix(x, y, x, y, own, A, B, uniform_maps(), uniform_maps(), K)
    assert not torch.equal(mixed, x)
    torch.testing.assert_close(T.sum(1), torch.full((6,), 1 - 16 / AREA + 30 / AREA))
    assert torch.equal(cutmix(x, y, x, y, own, A, K)[0], x)


def test_unlabelled_images_stay_as_they_are_and_have_rows_of_zeros() -> None:
    x, y, _ = batch()
    y = torch.tensor([0, -1, 2, 3, -1, 1])
    rows = partners(torch.rand(6, generator=torch.Generator().manual_seed(0)), y >= 0)
    A, B = Box(0, 0, 4, 4), Box(2, 2, 12, 5)
    made = (
        mixup(x, y, x, y, rows, 0.3, K),
        cutmix(x, y, x, y, rows, A, K),
        snapmix(x, y, x, y, rows, A, B, maps(), maps(), K),
    )
    for mixed, T in made:
        assert torch.equal(mixed[y < 0], x[y < 0])
        assert not T[y < 0].any() and bool(T[y >= 0].any(1).all())


def test_a_pool_that_is_larger_than_the_batch_gives_the_same() -> None:
    x, y, rows = batch()
    A, B = Box(0, 0, 4, 4), Box(2, 2, 12, 5)
    whole, T = snapmix(x, y, x, y, rows, A, B, maps(), maps(), K)
    mine = slice(2, 5)
    part, T_part = snapmix(x[mine], y[mine], x, y, rows[mine], A, B, maps()[mine], maps(), K)
    torch.testing.assert_close(part, whole[mine])
    torch.testing.assert_close(T_part, T[mine])
