"""Squared gradients: equal to a loop over samples, whatever the network."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.core.test_layers import Activated, Same, Standardised
from tests.settings import fitted, tiny_data
from upcycle.continual.weights.fisher import fisher, squared_gradients
from upcycle.core.run import Run
from upcycle.zoo.resnet import ResNet
from upcycle.zoo.vit import ViT


class Odd(nn.Module):
    """What has no form of its own: shared and tied layers, tokens first, in place, a parameter at the root."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.again = nn.Linear(8, 8), nn.Linear(8, 8)
        self.tied = nn.Linear(8, 8)
        self.tied.weight = self.again.weight
        self.scale = nn.Parameter(torch.rand(8))
        self.tokens, self.norm, self.unused = nn.Linear(8, 8), nn.LayerNorm(8), nn.Linear(2, 2)
        self.relu, self.head = nn.ReLU(inplace=True), nn.Linear(8, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.first(self.relu(self.first(x[:, 0]))))  # (b, 8, 8), a layer twice
        x = self.tied(self.again(x)) * self.scale
        x = self.norm(self.tokens(x.transpose(0, 1)).transpose(0, 1))
        return self.head(x.mean(1))


def convolutions() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 6, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(6), nn.ReLU(inplace=True),
        nn.Conv2d(6, 4, (3, 2), padding=(2, 1), dilation=(2, 1), groups=2), nn.ReLU(inplace=True),
        nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 3, padding="same"), nn.Conv2d(4, 4, 3, groups=4), nn.Flatten(),
        nn.LazyLinear(10))  # fmt: skip


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "mlp": lambda: nn.Sequential(nn.Flatten(), nn.Linear(64, 20), nn.BatchNorm1d(20), nn.ReLU(), nn.Linear(20, 10)),
    "convolutions": convolutions,
    "resnet": lambda: ResNet((1, 1, 1), 10, in_channels=1, projection=True),
    "vit": lambda: ViT((1, 8, 8), 10, width=12, depth=1, heads=2),
    "odd": Odd,
    "subclasses": lambda: nn.Sequential(
        Standardised(1, 4, 3), Activated(4), Same(4, 4, 3, stride=2), nn.Flatten(), nn.Linear(36, 10)
    ),
}


def looped(module: nn.Module, images: Tensor, labels: Tensor) -> dict[str, Tensor]:
    module.eval()
    trained = {name: p for name, p in module.named_parameters() if p.requires_grad}
    total = {name: torch.zeros_like(p) for name, p in trained.items()}
    for n in range(len(images)):
        loss = F.cross_entropy(module(images[n : n + 1]), labels[n : n + 1])
        grads = torch.autograd.grad(loss, list(trained.values()), allow_unused=True)
        for t, g in zip(total.values(), grads, strict=True):
            if g is not None:
                t += g.square()
    return total


def losses(z: Tensor, y: Tensor) -> Tensor:
    return F.cross_entropy(z, y, reduction="none")


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("name", NETWORKS)
def test_the_same_as_a_loop_over_samples(name: str, last: bool) -> None:
    torch.manual_seed(0)
    images, labels = torch.randn(8, 1, 8, 8), torch.arange(8)  # as many images as tokens in a row
    module = NETWORKS[name]()
    module.train()(images)  # BatchNorm has seen something
    module, images = module.double(), images.double()
    if last:
        module, images = module.to(memory_format=torch.channels_last), images.to(memory_format=torch.channels_last)
    next(module.parameters()).requires_grad_(name != "mlp")  # one that does not train
    state, random = {k: v.clone() for k, v in module.state_dict().items()}, torch.get_rng_state()
    found = squared_gradients(module.train(), images, labels, losses)
    assert torch.equal(torch.get_rng_state(), random) and all(m.training for m in module.modules())
    assert all(torch.equal(v, state[k]) for k, v in module.state_dict().items())
    assert all(p.grad is None for p in module.parameters()) and not any(m._forward_hooks for m in module.modules())
    expected = looped(module, images, labels)
    assert list(found) == list(expected)
    for key, value in expected.items():
        assert found[key].shape == value.shape and torch.allclose(found[key], value, rtol=1e-6, atol=1e-12), key
        assert key.startswith("unused") or float(value.sum()) > 0, key


def test_the_fisher_of_a_split_is_a_mean_over_its_samples() -> None:
    data, run = tiny_data(), Run(None, precision="64-true")
    module = fitted("network", 7).module.double()
    images, labels, _ = data.train.batch(torch.arange(160), device=torch.device("cpu"))
    images = images.double()
    z = module(images)[:, 2:6].detach()
    mask = (labels >= 2) & (labels < 6)
    few = data.train.subset(mask.nonzero()[:, 0])

    def among(z: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        return z[:, 2:6], y - 2

    for weighted in (True, False):
        total = [torch.zeros_like(p) for p in module.parameters()]
        for n in mask.nonzero()[:, 0].tolist():
            loss = F.cross_entropy(*among(module(images[n : n + 1]), labels[n : n + 1]))
            weight = float(z[n].softmax(0)[labels[n] - 2]) if weighted else 1.0
            for t, g in zip(total, torch.autograd.grad(loss, list(module.parameters())), strict=True):
                t += weight * g.square() / int(mask.sum())
        found = fisher(run, module, few, among, weighted=weighted)
        assert all(torch.allclose(a, b, rtol=1e-8, atol=1e-14) for a, b in zip(found, total, strict=True))
        # Drawn ones: all of them, in another order, are the same; fewer are not.
        whole, part = (fisher(run, module, few, among, samples=n, weighted=weighted) for n in (len(few), 5))
        assert all(torch.allclose(a, b, rtol=1e-8, atol=1e-14) for a, b in zip(found, whole, strict=True))
        assert not torch.allclose(found[0], part[0], rtol=1e-3)
