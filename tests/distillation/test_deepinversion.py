"""DeepInversion's divergence, against figures worked out by hand."""

import math

import pytest
import torch

from upcycle.distillation.deepinversion import js_divergence


def test_the_divergence_is_clamped_as_in_the_authors_code() -> None:
    """Sure of different classes among ten: m is (1/2, 1/2, 0.01, ...), p is (0.99, 0.01, 0.01, ...)."""
    z = torch.zeros(2, 10)
    z[0, 0] = z[1, 1] = 240.0
    found = js_divergence(z, z.flip(0))
    assert float(found) == pytest.approx(0.5 * math.log(0.5 / 0.99) + 0.5 * math.log(0.5 / 0.01), abs=1e-6)
    far = z / 10  # a gap of 24 logits
    assert float(js_divergence(far, far.flip(0))) == pytest.approx(1.6, abs=0.05)


def test_equal_answers_do_not_diverge_and_the_order_does_not_count() -> None:
    a, b = torch.randn(2, 5, 10, generator=torch.Generator().manual_seed(0))
    assert float(js_divergence(a, a)) == pytest.approx(0, abs=1e-7)
    assert float(js_divergence(a, b)) == pytest.approx(float(js_divergence(b, a)), abs=1e-7)
