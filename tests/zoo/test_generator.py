"""The image generator: shapes, range, and weights that depend on nothing but the random numbers given."""

import pytest
import torch
from torch import nn

from upcycle.core.store import tensor_digest
from upcycle.zoo.generator import Generator


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(
    ("height", "width"),
    [(8, 8), (9, 9), (28, 28), (30, 30), (31, 33), (32, 32), (64, 64), (65, 65), (96, 64), (224, 224)],
)
def test_images_have_the_shape_asked_for_and_lie_between_0_and_1(channels: int, height: int, width: int) -> None:
    g = Generator((channels, height, width), nz=6, ngf=4)
    g.reset(seeded(0))
    x = g(torch.randn(3, 6, generator=seeded(1))).detach()
    assert x.shape == (3, channels, height, width) and x.dtype == torch.float32
    assert float(x.min()) > 0 and float(x.max()) < 1
    assert float((x[0] - x[1]).abs().max()) > 0


def test_it_is_the_network_of_the_paper() -> None:
    g = Generator((3, 32, 32))
    linear, first = 256 * 2 * 64 * 8 * 8 + 2 * 64 * 8 * 8, 2 * 128
    blocks = 128 * 128 * 9 + 2 * 128 + 128 * 64 * 9 + 2 * 64
    assert sum(p.numel() for p in g.parameters()) == linear + first + blocks + 64 * 3 * 9 + 3
    assert g.start == (8, 8) and Generator((3, 64, 64)).start == (16, 16)
    # A large side costs more doublings and not a larger linear layer.
    assert Generator((3, 224, 224)).start == (14, 14)
    kinds = [type(m).__name__ for m in g.layers]
    block = ["Upsample", "Conv2d", "BatchNorm2d", "LeakyReLU"]
    assert kinds == [*block, *block, "Conv2d"]
    assert [m.negative_slope for m in g.layers if isinstance(m, nn.LeakyReLU)] == [0.2, 0.2]
    assert [m.bias is None for m in g.layers if isinstance(m, nn.Conv2d)] == [True, True, False]


def test_a_reset_depends_on_the_random_numbers_alone() -> None:
    a, b = Generator((1, 28, 28), 16, 8), Generator((1, 28, 28), 16, 8)
    for _ in range(3):
        b(torch.randn(4, 16))  # moves the BatchNorm statistics
    with torch.no_grad():
        for p in b.parameters():
            p.add_(1)
    a.reset(seeded(2))
    b.reset(seeded(2))
    assert tensor_digest(a.state_dict()) == tensor_digest(b.state_dict())
    b.reset(seeded(3))
    assert tensor_digest(a.state_dict()) != tensor_digest(b.state_dict())


def test_what_a_reset_draws() -> None:
    g = Generator((3, 32, 32))
    g.reset(seeded(0))
    for m in g.modules():
        if isinstance(m, nn.Linear | nn.Conv2d | nn.BatchNorm2d):
            centre, weight = float(isinstance(m, nn.BatchNorm2d)), m.weight.detach()
            n = weight.numel()
            assert abs(float(weight.mean()) - centre) < 5 * 0.02 / n**0.5, m
            assert abs(float(weight.std()) - 0.02) < 5 * 0.02 / (2 * n) ** 0.5, m
            assert m.bias is None or not m.bias.any()
        if isinstance(m, nn.BatchNorm2d):
            assert not m.running_mean.any() and (m.running_var == 1).all() and m.num_batches_tracked == 0


def test_the_first_layers_alone_are_drawn_anew() -> None:
    g = Generator((1, 28, 28), 16, 64)
    g.reset(seeded(0))
    with torch.no_grad():
        for p in g.parameters():
            p.add_(1)
    before = {name: value.clone() for name, value in g.state_dict().items()}
    g.reset_first(seeded(1))
    changed = {name for name, value in g.state_dict().items() if not torch.equal(before[name], value)}
    assert changed == {"linear.weight", "linear.bias", "norm.weight", "norm.bias"}
    assert abs(float(g.norm.weight.detach().mean())) < 5 * 0.02 / 128**0.5  # around 0, not 1
    assert not g.linear.bias.any() and not g.norm.bias.any()
