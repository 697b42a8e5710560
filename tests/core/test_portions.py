"""Portions cover the samples once, fit the activations, and change no figure beyond rounding."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from upcycle.core import portions as sizes
from upcycle.core.evaluate import evaluate, predict_logits
from upcycle.core.frozen import frozen
from upcycle.core.portions import portions
from upcycle.core.references import resolve
from upcycle.core.task import judged
from upcycle.data.images import ImageSplit
from upcycle.zoo import ENTRIES

NETS = [name for name in ENTRIES if ENTRIES[name].trained is None]


def some_images(n: int, shape: tuple[int, int, int], classes: int = 10) -> ImageSplit:
    g = torch.Generator().manual_seed(0)
    c, h, w = shape
    pixels = torch.randint(256, (n, h, w, c), generator=g, dtype=torch.uint8)
    return ImageSplit.plain(pixels, torch.randint(classes, (n,), generator=g), torch.arange(n))


def ran(module: nn.Module, n: int, side: int = 8) -> list[Tensor]:
    found = []
    with torch.no_grad():
        for index in portions(module, n):
            module(torch.zeros(len(index), 3, side, side))
            found.append(index)
    return found


def test_portions_are_all_samples_in_order_and_as_large_as_the_activations_allow(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    wide = nn.Sequential(nn.Conv2d(3, 64, 1), nn.AdaptiveAvgPool2d(1))
    each = 64 * 8 * 8 * 4
    found = ran(wide, 1_000)
    assert torch.equal(torch.cat(found), torch.arange(1_000))
    assert [len(p) for p in found[:2]] == [sizes.FIRST, sizes.LARGEST // each]
    assert not wide._forward_hooks and not wide[0]._forward_hooks
    assert [len(p) for p in ran(wide, 9)] == [9]
    monkeypatch.setattr(sizes, "LARGEST", 3 * each)
    assert len(ran(wide, 40)[1]) == sizes.BOUNDS[0]
    places = torch.tensor([5, 3, 9])
    assert [p.tolist() for p in portions(wide, places)] == [[5, 3, 9]]


def test_bf16_takes_twice_as_many() -> None:
    net = nn.Sequential(nn.Conv2d(3, 128, 1), nn.AdaptiveAvgPool2d(1)).eval()
    images = torch.randn(8, 3, 8, 8)
    full, half = (ran(frozen(net, images, precision=p), 2_500)[1] for p in ("32-true", "bf16"))  # type: ignore[arg-type]
    assert len(half) == 2 * len(full)


def test_hooks_go_when_the_loop_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    net = nn.Linear(3, 2)

    def leave() -> None:
        for _ in portions(net, 100):
            raise KeyError

    with pytest.raises(KeyError):
        leave()
    assert not net._forward_hooks


@pytest.mark.filterwarnings("ignore:.*torch.jit.*deprecated")
def test_scripted_and_compiled_networks_get_small_portions() -> None:
    scripted = torch.jit.script(nn.Conv2d(3, 4, 1))
    assert {len(p) for p in ran(scripted, 96)} == {sizes.FIRST}  # type: ignore[arg-type]
    compiled = nn.Conv2d(3, 4, 1)
    compiled._compiled_call_impl = compiled._call_impl  # what compile() leaves, without waiting for a compiler
    assert next(iter(portions(compiled, 96))).numel() == sizes.FIRST and not compiled._forward_hooks


@pytest.mark.parametrize("name", NETS)
def test_an_evaluation_in_portions_is_that_of_one_batch(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sizes, "FIRST", 4)
    monkeypatch.setattr(sizes, "LARGEST", 2**17)
    torch.manual_seed(0)
    c, *sides = ENTRIES[name].shape
    shape = (c, *(min(side, 64) for side in sides))  # how large the images are changes nothing here but the time
    net = resolve(f"zoo:{name}", pretrained=False, num_classes=10, input_shape=shape).module.eval()
    split = some_images(12, shape)
    with torch.no_grad():
        z = net(split.batch(torch.arange(12), device=torch.device("cpu")).images)
    here, there = evaluate(net, split), judged(z, split.labels, name=name)
    torch.testing.assert_close(predict_logits(net, split), z, rtol=1e-5, atol=1e-6 * float(z.abs().max()))
    assert here.accuracy == there.accuracy and here.confusion == there.confusion
    assert here.loss == pytest.approx(there.loss, rel=1e-6) and here.ece == pytest.approx(there.ece, abs=1e-6)
