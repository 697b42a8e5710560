"""The last feature map is found by what flows, whatever the modules are, and tokens stand at their places."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from upcycle.core.errors import UserError
from upcycle.core.feature_maps import FeatureMap, Flow, record_layer
from upcycle.zoo.resnet import ResNet

X = torch.randn(2, 3, 12, 12, generator=torch.Generator().manual_seed(0))


def last(net: nn.Module, x: Tensor = X) -> FeatureMap | None:
    return next((place for place, _ in Flow(net.eval(), x).maps()), None)


def conv(inputs: int, outputs: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 3, stride, padding=1)


def head(width: int) -> nn.Module:
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 4))


class Branches(nn.Module):
    """A block whose last convolution gives two of its ten channels."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = conv(4, 8), conv(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.a(x).relu(), self.b(x)], 1)


class Shortcut(nn.Module):
    """A sum whose last module called is the convolution of its shortcut."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn, self.shortcut = conv(4, 6), nn.BatchNorm2d(6), nn.Conv2d(4, 6, 1)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.bn(self.conv(x)) + self.shortcut(x))


class Shared(nn.Module):
    """One activation for all layers, the classifier's too."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.act, self.hidden, self.linear = conv(3, 6), nn.ReLU(), nn.Linear(6, 5), nn.Linear(5, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(self.act(self.hidden(self.act(self.conv(x)).mean((2, 3)))))


class Block(nn.Module):
    """Attention and a layer of each token, both with a way around."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm, self.attention = nn.LayerNorm(width), nn.MultiheadAttention(width, 2, batch_first=True)
        self.mlp = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, width), nn.GELU())

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(x)
        x = x + self.attention(y, y, y, need_weights=False)[0]
        return x + self.mlp(x)


class Tokens(nn.Module):
    """A small transformer.

    Args:
        extra: tokens beside those of the patches, the first of which decides; 0 for the mean over patches.
        behind: those stand behind the patches.
        linear: patches are cut out by a view, and not by a convolution.
    """

    def __init__(self, extra: int = 1, behind: bool = False, linear: bool = False) -> None:
        super().__init__()
        self.extra, self.behind, self.linear = extra, behind, linear
        self.embed = nn.Linear(48, 8) if linear else nn.Conv2d(3, 8, 4, 4)
        self.token = nn.Parameter(torch.randn(1, extra, 8))
        self.blocks, self.norm, self.head = (
            nn.Sequential(Block(8), Block(8), Block(8)),
            nn.LayerNorm(8),
            nn.Linear(8, 4),
        )

    def forward(self, x: Tensor) -> Tensor:
        if self.linear:
            x = x.unfold(2, 4, 4).unfold(3, 4, 4).permute(0, 2, 3, 1, 4, 5).flatten(3).flatten(1, 2)
            x = self.embed(x)
        else:
            x = self.embed(x).flatten(2).mT
        token = self.token.expand(len(x), -1, -1)
        x = self.norm(self.blocks(torch.cat([x, token] if self.behind else [token, x], 1)))
        if not self.extra:
            return self.head(x.mean(1))
        return self.head(x[:, -self.extra if self.behind else 0])


class Swapped(nn.Module):
    """Maps whose channels are last, as in Swin."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.norm, self.head = nn.Conv2d(3, 8, 4, 4), nn.LayerNorm(8), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(self.embed(x).permute(0, 2, 3, 1)).mean((1, 2)))


CASES = {
    "what is only pooled is left out": (nn.Sequential(conv(3, 4), nn.ReLU(), nn.MaxPool2d(2), head(4)), "1", (12, 12)),
    "a residual block": (ResNet((1, 1, 1), 4), "layer3.0", (3, 3)),
    "branches that are joined": (nn.Sequential(conv(3, 4, 2), Branches(), head(10)), "1", (6, 6)),
    "a shortcut's convolution runs last": (nn.Sequential(conv(3, 4, 2), Shortcut(), head(6)), "1", (6, 6)),
    "an activation used everywhere": (Shared(), "conv", (12, 12)),
    "weight norm": (nn.Sequential(parametrizations.weight_norm(conv(3, 4)), nn.Tanh(), head(4)), "1", (12, 12)),
    "spectral norm": (nn.Sequential(parametrizations.spectral_norm(conv(3, 4)), head(4)), "0", (12, 12)),
    "a class token": (Tokens(1), "blocks.1", (3, 3)),
    "a class token and others": (Tokens(3), "blocks.1", (3, 3)),
    "a class token behind": (Tokens(1, behind=True), "blocks.1", (3, 3)),
    "the mean of the tokens": (Tokens(0), "norm", (3, 3)),
    "patches without a convolution": (Tokens(1, linear=True), "blocks.1", (3, 3)),
    "channels last": (Swapped(), "norm", (3, 3)),
    "as many channels as rows": (nn.Sequential(conv(3, 12), nn.BatchNorm2d(12), nn.ReLU(), head(12)), "2", (12, 12)),
}


def test_a_map_is_found_where_gradients_are_off() -> None:
    with torch.no_grad():
        assert last(Tokens(1)) == FeatureMap("blocks.1", "tokens", (3, 3), (0,))


@pytest.mark.parametrize("case", CASES)
def test_the_last_map_that_all_logits_pass_through(case: str) -> None:
    net, name, grid = CASES[case]
    for x in (X, X[:1]):  # one image is enough
        found = last(net, x)
        assert found is not None and (found.name, found.grid) == (name, grid)
    with record_layer(net, found, leaf=True) as seen:
        z = net(X)
    assert torch.allclose(z, net(X), atol=1e-5) and seen.f.shape[2:] == grid
    assert not any(m._forward_hooks for m in net.modules())
    # A cut: from F on, nothing but the tokens beside it depends on the images.
    if not found.beside:
        leaf = X.clone().requires_grad_()
        with record_layer(net, found, leaf=True):
            z = net(leaf)
        (g,) = torch.autograd.grad(z.sum() + 0 * leaf.sum(), leaf)
        assert not g.any()


@pytest.mark.parametrize("extra", [0, 1, 3])
@pytest.mark.parametrize("behind", [False, True])
def test_tokens_stand_where_their_patch_is(extra: int, behind: bool) -> None:
    """Only one patch of an oblong image is changed: without attention only its place changes."""
    net = Tokens(extra, behind).eval()
    for block in net.blocks:
        nn.init.zeros_(block.attention.out_proj.weight)
    x = torch.randn(1, 3, 8, 20, generator=torch.Generator().manual_seed(1))
    changed = x.clone()
    changed[:, :, 4:8, 12:16] += 1
    place = Flow(net, x).named("blocks.1")[0]
    assert place.grid == (2, 5) and len(place.beside) == extra
    found = []
    for images in (x, changed):
        with record_layer(net, place) as seen:
            net(images)
        found.append(seen.f)
    where = (found[0] - found[1]).abs().sum((0, 1)).nonzero()
    assert where.tolist() == [[1, 3]]


@pytest.mark.parametrize(
    ("place", "shape"),
    [
        (FeatureMap("", "maps", (2, 3)), (2, 4, 2, 3)),
        (FeatureMap("", "channels last", (2, 3)), (2, 2, 3, 4)),
        (FeatureMap("", "tokens", (2, 3), (0, 7)), (2, 8, 4)),
        (FeatureMap("", "vector"), (2, 4)),
    ],
)
def test_maps_are_put_back_where_they_were(place: FeatureMap, shape: tuple[int, ...]) -> None:
    out = torch.randn(shape)
    maps = place.maps(out)
    assert maps.shape == (2, 4, *place.grid)
    assert torch.equal(place.put(maps, out), out) and place.put(maps, out).data_ptr() != out.data_ptr()
    assert torch.equal(place.maps(place.put(2 * maps, out)), 2 * maps)


def test_networks_without_a_map() -> None:
    mlp = nn.Sequential(nn.Flatten(), nn.Linear(432, 7), nn.ReLU(), nn.Dropout(), nn.Linear(7, 4)).eval()
    assert last(mlp) is None and Flow(mlp, X).vector() == FeatureMap("3", "vector")
    flat = nn.Sequential(nn.Flatten(), nn.Linear(432, 4)).eval()
    assert last(flat) is None and Flow(flat, X).vector() is None

    class Silent(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            with torch.no_grad():
                return mlp(x)

    assert last(Silent()) is None and Flow(Silent(), X).vector() is None


def test_a_layer_that_is_named_must_give_maps() -> None:
    flow = Flow(Tokens().eval(), X)
    assert flow.named("embed")[0] == FeatureMap("embed", "maps", (3, 3))
    with pytest.raises(UserError, match=r"'head' gives .*name another layer"):
        flow.named("head")
    with pytest.raises(UserError, match=r"no submodule.*'block'"):
        flow.named("block")
    net = nn.Sequential(conv(3, 4), head(4))
    net.add_module("idle", nn.Identity())
    net.forward = lambda x: net[1](net[0](x))  # type: ignore[method-assign]
    with pytest.raises(UserError, match="'idle' gives no tensor"):
        Flow(net.eval(), X).named("idle")
