"""NASWOT: equal to a plain loop, blind to the order of the batch, -inf where inputs agree; prefixes run once."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from upcycle.assembly.reassembly.naswot import agreement, log_det, naswot, score_paths, unscorable
from upcycle.core.errors import UserError


def images(n: int, seed: int = 0) -> Tensor:
    return torch.randn(n, 1, 6, 6, generator=torch.Generator().manual_seed(seed))


def net(seed: int = 0, inplace: bool = False) -> nn.Sequential:
    torch.manual_seed(seed)
    first = [nn.Conv2d(1, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(inplace)]
    return nn.Sequential(*first, nn.Conv2d(6, 8, 3), nn.GELU(), nn.Flatten(), nn.Linear(128, 5))


def by_hand(module: nn.Sequential, x: Tensor) -> float:
    """The definition, bit by bit."""
    k = torch.zeros(len(x), len(x), dtype=torch.float64)
    with torch.no_grad():
        for layer in module.eval():
            x = layer(x)
            if isinstance(layer, nn.ReLU | nn.GELU | nn.Linear):
                bits = (x > 0).flatten(1)
                for i in range(len(x)):
                    for j in range(len(x)):
                        k[i, j] += int((bits[i] == bits[j]).sum())
    return float(torch.linalg.slogdet(k).logabsdet) / len(x)


def test_equals_the_definition() -> None:
    batches = [images(8, 0), images(8, 1)]
    right = sum(by_hand(net(), x) for x in batches) / 2
    assert naswot(net(), batches) == pytest.approx(right, rel=1e-10)


def test_order_of_the_batch() -> None:
    x = images(16)
    order = torch.randperm(16, generator=torch.Generator().manual_seed(3))
    assert naswot(net(), [x]) == pytest.approx(naswot(net(), [x[order]]), rel=1e-12)


def test_a_duplicate_is_singular() -> None:
    x = images(8)
    assert math.isfinite(naswot(net(), [x]))
    x[5] = x[2]
    assert naswot(net(), [x]) == -math.inf
    assert naswot(net(), [images(8), x]) == -math.inf


def test_more_inputs_than_bits_can_tell_apart() -> None:
    assert naswot(nn.Sequential(nn.Flatten(), nn.Linear(36, 3)), [images(16)]) == -math.inf
    assert naswot(nn.Sequential(nn.Flatten()), [images(4)]) == -math.inf


def test_agreement_counts_equal_bits() -> None:
    out = torch.tensor([[1.0, -1.0, 2.0], [0.0, 3.0, 1.0], [1.0, -2.0, 5.0]])
    assert agreement(out).tolist() == [[3, 1, 3], [1, 3, 1], [3, 1, 3]]
    assert log_det(torch.diag(torch.tensor([2.0, 4.0], dtype=torch.float64))) == pytest.approx(math.log(8))


class Functional(nn.Module):
    """The same as :func:`net`, written with functions."""

    def __init__(self, twin: nn.Sequential) -> None:
        super().__init__()
        self.conv1, self.bn, _, self.conv2, _, _, self.linear = twin

    def forward(self, x: Tensor) -> Tensor:
        x = F.gelu(self.conv2(self.bn(self.conv1(x)).relu_()))
        return F.linear(x.flatten(1), self.linear.weight, self.linear.bias)


def test_functions_count_as_modules_do() -> None:
    x = [images(8)]
    assert naswot(Functional(net()), x) == naswot(net(), x)


def test_nothing_is_left_behind() -> None:
    module = net().train()
    before = {k: v.clone() for k, v in module.state_dict().items()}
    random = torch.get_rng_state()
    naswot(module, [images(8)])
    assert all(m.training and not m._forward_hooks for m in module.modules())
    assert all(torch.equal(v, before[k]) for k, v in module.state_dict().items())
    assert torch.equal(torch.get_rng_state(), random)


class Counted(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner, self.runs = inner, 0

    def forward(self, x: Tensor) -> Tensor:
        self.runs += 1
        return self.inner(x)


def test_shared_beginnings_run_once() -> None:
    torch.manual_seed(0)
    made: dict[str, Any] = {}
    for key in "abcde":
        layers = (nn.Conv2d(1, 1, 3, padding=1), nn.LayerNorm(6), nn.ReLU(inplace=True))
        made[key] = Counted(nn.Sequential(nn.ReLU(inplace=True), *layers))
    candidates = ["abc", "abd", "ae", "abc", "bca", "ab"]
    batches = [images(8, seed) for seed in range(2)]
    found = score_paths([tuple(c) for c in candidates], made.__getitem__, batches)
    runs = {key: made[key].runs for key in made}
    # Of a, b, c, d, e: a begins four, ab three; behind b come c and a.
    assert runs == {"a": 2 * 2, "b": 2 * 2, "c": 2 * 2, "d": 2, "e": 2}
    for candidate, score in zip(candidates, found, strict=True):
        alone = naswot(nn.Sequential(*(made[key] for key in candidate)), batches)
        assert score == pytest.approx(alone, rel=1e-12)
    assert len(set(found)) == 5


class Windows(nn.Module):
    """A linear layer over windows that are folded into the batch, as in Swin; or on the map itself, as ever.

    Args:
        fold: image after image, window after window ("turns"), or not at all.
    """

    def __init__(self, fold: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.linear, self.fold = nn.Linear(9, 5), fold

    def forward(self, x: Tensor) -> Tensor:
        b = len(x)
        windows = x.unfold(2, 3, 3).unfold(3, 3, 3).reshape(b, 4, 9)
        if self.fold == "images":
            return self.linear(windows.reshape(4 * b, 9)).view(b, 4, 5).flatten(1)
        if self.fold == "turns":
            return self.linear(windows.transpose(0, 1).reshape(4 * b, 9)).view(4, b, 5).transpose(0, 1).flatten(1)
        return self.linear(windows).flatten(1)


def test_windows_in_the_batch_are_parts_of_their_image() -> None:
    x = images(6)
    assert naswot(Windows("images"), [x]) == naswot(Windows("not"), [x]) > -math.inf
    assert unscorable(Windows("images"), images(5)) is unscorable(Windows("not"), images(5)) is None
    assert "parts of several images in turn" in str(unscorable(Windows("turns"), images(5)))


class Few(nn.Module):
    """Units over places, of which there are four for any number of images."""

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x.flatten(1).T[:4]).T


def test_units_that_know_no_images_are_named() -> None:
    assert unscorable(Few(), images(5)) == "a unit gives 4 rows for 5 images"
    with pytest.raises(UserError, match="4 rows for 5 images"):
        naswot(Few(), [images(5)])


def test_attention_of_torch_counts_by_images() -> None:
    torch.manual_seed(0)
    attention = nn.MultiheadAttention(6, 2, batch_first=True)

    class Attending(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return attention(x[:, 0], x[:, 0], x[:, 0], need_weights=True)[0].flatten(1)

    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)  # as on devices that lack it
    try:
        x = images(4)
        with torch.no_grad():
            right = log_det(agreement(Attending()(x))) / 4
            assert naswot(Attending(), [x]) == pytest.approx(right)
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
