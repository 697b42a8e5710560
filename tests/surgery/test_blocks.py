"""Networks as chains of nodes: cuts compose to the network, costs add up, features are those of the submodules."""

from __future__ import annotations

import dataclasses
import itertools
import json
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.settings import tiny_data
from upcycle.core.errors import UserError
from upcycle.core.models import Model
from upcycle.core.outputs import Logits
from upcycle.core.references import resolve
from upcycle.core.taps import Taps
from upcycle.measure.cost import count
from upcycle.surgery.blocks import BlockCost, Chain, chain, node_features
from upcycle.surgery.signals import Signal
from upcycle.zoo.convnet import MLP, ConvNet
from upcycle.zoo.resnet import ResNet


def model(module: nn.Module, shape: tuple[int, int, int] = (1, 8, 8), name: str = "net") -> Model:
    """A network with BatchNorm statistics that are not the initial ones."""
    generator = torch.Generator().manual_seed(0)
    for m in module.modules():
        if isinstance(m, nn.BatchNorm2d):
            m.running_mean.copy_(torch.randn(len(m.running_mean), generator=generator) / 5)
            m.running_var.copy_(torch.rand(len(m.running_var), generator=generator) + 0.5)
    return Model(module=module.eval(), input_shape=shape, mean=(0.3,) * shape[0], std=(0.4,) * shape[0],
                 classes=tuple("0123456789"), name=name)  # fmt: skip


def resnet(*blocks: int, projection: bool = False) -> Model:
    torch.manual_seed(sum(blocks))
    return model(ResNet(blocks, 10, 1, projection))


@torch.no_grad()
def composed(made: Chain, cuts: tuple[int, ...], x: Tensor) -> Tensor:
    """Blocks between the cuts, then the head."""
    for first, end in itertools.pairwise([0, *cuts, len(made)]):
        x = made.block(first, end - 1)(x)
    return made.head()(x)


def test_nodes_of_a_residual_network() -> None:
    made = chain(resnet(2, 1, 1))
    assert [n.name for n in made.nodes] == ["conv1", "layer1.0", "layer1.1", "layer2.0", "layer3.0"]
    assert [n.gives for n in made.nodes] == [Signal("map", 16, (8, 8))] * 3 + [Signal("map", 32, (4, 4)),
                                                                               Signal("map", 64, (2, 2))]  # fmt: skip
    assert made.nodes[0].takes == Signal("map", 1, (8, 8))
    assert all(a.gives == b.takes for a, b in itertools.pairwise(made.nodes))


@pytest.mark.parametrize("projection", [False, True])
def test_blocks_compose_to_the_network(projection: bool) -> None:
    made = chain(resnet(2, 2, 1, projection=projection))
    x = made.model.example(3)
    right = made.model.module(x)
    for n in range(3):
        for cuts in itertools.combinations(range(1, len(made)), n):
            torch.testing.assert_close(composed(made, cuts, x), right, rtol=0, atol=0)


FOREIGN = {
    "torchvision:resnet18": (["conv1", "layer1.0", "layer4.1"], 9),
    "torchvision:mobilenet_v2": (["features.0.0", "features.1", "features.18.0"], 19),
    "torchvision:densenet121": (["features.conv0", "features.denseblock1", "features.denseblock4"], 8),
    "torchvision:googlenet": (["conv1", "conv2", "inception5b"], 12),
    "torchvision:shufflenet_v2_x0_5": (["conv1.0", "stage2.0", "conv5.0"], 18),
    "timm:mobilenetv3_small_050": (["conv_stem", "blocks.0.0", "blocks.5.0"], 13),
    "timm:convnext_atto": (["stem.0", "stages.0.blocks.0", "stages.3.blocks.1"], 16),
    "timm:vit_tiny_patch16_224": (["patch_embed", "blocks.0", "blocks.11"], 13),
    "timm:swin_tiny_patch4_window7_224": (["patch_embed", "layers.0.blocks.0", "layers.3.blocks.1"], 16),
}


@pytest.mark.parametrize("reference", FOREIGN)
def test_foreign_networks_are_chains(reference: str) -> None:
    pytest.importorskip("timm")
    torch.manual_seed(0)
    made = chain(resolve(reference, pretrained=False))
    names, n = FOREIGN[reference]
    assert len(made) == n
    assert [made.nodes[0].name, made.nodes[1].name, made.nodes[-1].name] == names
    native = made.cost(0, n - 1, made.nodes[0].takes)
    whole, head = count(made.model.module, made.model.input_shape), sum(p.numel() for p in made.head().parameters())
    assert native is not None
    assert native.params + head == whole.parameters
    assert native.gives == made.nodes[-1].gives


@pytest.mark.parametrize(
    ("reference", "layout", "size", "extra"),
    [("timm:vit_tiny_patch16_224", "tokens", (14, 14), 1), ("timm:swin_tiny_patch4_window7_224", "grid", (7, 7), 0)],
)
def test_layout_of_tokens(reference: str, layout: str, size: tuple[int, int], extra: int) -> None:
    pytest.importorskip("timm")
    made = chain(resolve(reference, pretrained=False))
    gives = made.nodes[-1].gives
    assert (gives.layout, gives.size, gives.extra, gives.kind) == (layout, size, extra, "tokens")
    # The mask of shifted windows is made for one grid; attention over all tokens takes any number.
    other = Signal(layout, made.nodes[2].takes.channels, (6, 6))  # type: ignore[arg-type]
    found = made.cost(2, 2, other)
    assert (found is None) == (layout == "grid")


@pytest.mark.parametrize("size", [(8, 8), (5, 7), (16, 16)])
def test_cost_is_that_of_the_block(size: tuple[int, int]) -> None:
    made = chain(resnet(2, 1, 1))
    for first, last in itertools.combinations_with_replacement(range(len(made)), 2):
        takes = made.nodes[first].takes
        found = made.cost(first, last, Signal("map", takes.channels, size))
        block = made.block(first, last)
        right = count(block, (takes.channels, *size))
        assert found is not None
        assert (found.params, found.macs) == (right.parameters, right.macs)
        assert block(torch.zeros(1, takes.channels, *size)).shape == found.gives.shape(1)


def test_cost_where_a_block_cannot_take_it() -> None:
    made = chain(model(ConvNet((4, 8, 8), 10, 1)))
    assert made.cost(0, 2, Signal("map", 1, (1, 1))) is None  # nothing is left to pool
    assert made.cost(1, 2, Signal("map", 5, (8, 8))) is None  # four channels, not five
    assert isinstance(made.cost(0, 2, Signal("map", 1, (8, 8))), BlockCost)


def test_blocks_are_copies_in_the_networks_names() -> None:
    original = resnet(1, 1, 1)
    made = chain(original)
    before = {k: v.clone() for k, v in original.module.state_dict().items()}
    block = made.block(1, 2)
    assert set(block.state_dict()) == {k for k in before if k.startswith(("layer1.0", "layer2.0"))}
    x = torch.randn(2, 16, 8, 8)
    right = made.block(1, 2)(x)
    with torch.no_grad():
        for p in block.parameters():
            p.add_(1)
    torch.testing.assert_close(made.block(1, 2)(x), right, rtol=0, atol=0)
    for k, v in original.module.state_dict().items():
        assert torch.equal(v, before[k])


class Choosy(nn.Module):
    """Asks for numbers in its forward, which no tracer can follow."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Sequential(nn.Conv2d(width, width, 3, padding=1), nn.ReLU())

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x) + x if float(x.detach().sum()) > -1e9 else x


def test_what_cannot_be_traced_stays_whole() -> None:
    layers = (nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), Choosy(4), nn.BatchNorm2d(4), Choosy(4))
    net = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 10))
    made = chain(model(net))
    assert [n.name for n in made.nodes] == ["0", "2", "4"]
    x = made.model.example()
    torch.testing.assert_close(composed(made, (1, 2), x), made.model.module(x))


class Asking(nn.Module):
    """Asks for shapes and number formats before its first layer, and not before each."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(*(nn.Conv2d(4 if i else 1, 4, 3, padding=1) for i in range(3)))
        self.linear = nn.Linear(4, 10)

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[1] != 1 or x.dtype != torch.float32:
            raise ValueError("other images, please")
        for layer in self.layers:
            x = layer(x).relu()
        return self.linear(x.mean((2, 3)))


def test_a_forward_that_asks_for_shapes_is_cut() -> None:
    made = chain(model(Asking()))
    assert [n.name for n in made.nodes] == ["layers.0", "layers.1", "layers.2"]
    x = made.model.example(5)
    torch.testing.assert_close(composed(made, (1, 2), x), made.model.module(x))


@pytest.mark.parametrize("kind", ["ViT", "DeiT", "Beit"])
def test_vision_transformers_of_hugging_face_are_chains(kind: str) -> None:
    transformers = pytest.importorskip("transformers")
    config = getattr(transformers, f"{kind}Config")(
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        image_size=8,
        patch_size=2,
        num_channels=1,
        num_labels=10,
    )
    torch.manual_seed(0)
    made = chain(model(Logits(getattr(transformers, f"{kind}ForImageClassification")(config).eval())))
    assert len(made) == 3 and [n.gives.layout for n in made.nodes] == ["tokens"] * 3
    assert made.nodes[1].gives.extra == (2 if kind == "DeiT" else 1)
    x = made.model.example(5)
    torch.testing.assert_close(composed(made, (1, 2), x), made.model.module(x))


class Token(nn.Module):
    """A class token, a view of a parameter, that goes into a submodule."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.token = nn.Conv2d(1, 4, 3, padding=1), nn.Parameter(torch.ones(1, 4, 1, 1))
        self.mix, self.linear = nn.Sequential(nn.Conv2d(4, 4, 1), nn.ReLU()), nn.Linear(4, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        return self.linear((x + self.mix(self.token.expand(x.shape[0], -1, 1, 1))).mean((2, 3)))


def test_a_view_of_a_parameter_is_counted() -> None:
    net = Token()
    assert count(net, (1, 8, 8)).macs == 64 * 36 + 16 + 40
    assert all(p.requires_grad for p in net.parameters())


class Inside(nn.Module):
    """All of a network in one submodule that cannot be traced."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.linear = Choosy(1), nn.Linear(1, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(self.body(x).mean((2, 3)))


class Wrapped(nn.Module):
    """Another network with an optional argument."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor, double: bool = False) -> Tensor:
        return self.net(x + x) if double else self.net(x)


def test_a_wrapper_changes_no_node() -> None:
    inner = ConvNet((4, 8, 8), 10, 1)
    made = chain(model(Wrapped(inner)))
    assert [n.name for n in made.nodes] == ["net.block1.0", "net.block2.1", "net.block3.1"]
    assert [n.gives for n in made.nodes] == [n.gives for n in chain(model(inner)).nodes]


class Branching(nn.Module):
    """A value from the beginning is used at the end, so that nothing between is a cut."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = (nn.Conv2d(1 if i == 0 else 4, 4, 3, padding=1) for i in range(3))
        self.linear = nn.Linear(4, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x)
        return self.linear((self.c(self.b(x)) + x).mean((2, 3)))


def test_two_values_cross_inside_a_branch() -> None:
    made = chain(model(Branching()))
    assert [n.name for n in made.nodes] == ["a", "b"]  # the second node holds b, c and the sum
    assert set(made.block(1, 1).state_dict()) == {"b.weight", "b.bias", "c.weight", "c.bias"}


class Unknown(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.mean((2, 3)) if float(x.sum()) > 0 else x.amax((2, 3))


@pytest.mark.parametrize(
    ("module", "words"),
    [
        (MLP(64, (8, 8), 10, 0.0), "no chain of blocks"),
        (Unknown(), "torch.fx cannot trace"),
        (Inside(), r"no chain of blocks .* torch.fx cannot look into 'body' \(TypeError"),
    ],
)
def test_no_chain(module: nn.Module, words: str) -> None:
    with pytest.raises(UserError, match=words):
        chain(model(module))


def test_no_such_block() -> None:
    with pytest.raises(UserError, match="nodes 0 to 3"):
        chain(resnet(1, 1, 1)).block(2, 4)


def test_features_are_pooled_outputs() -> None:
    made = chain(resnet(1, 1, 1))
    split = tiny_data(41).train
    names = ["layer1.0", "layer2.0", "layer3.0"]
    found: list[Any] = list(node_features(made, split, batch_size=16))
    assert [len(rows[0]) for rows in found] == [14, 14, 13]
    own = split.normalised(made.model.mean, made.model.std)
    images = own.batch(torch.arange(41), device=torch.device("cpu")).images
    with torch.no_grad(), Taps(made.model.module, names) as taps:
        made.model.module(images)
    for i, name in enumerate(names, 1):
        x = torch.cat([rows[i] for rows in found])
        assert not x.requires_grad
        torch.testing.assert_close(x, taps[name].mean((2, 3)))


def test_features_in_the_networks_own_normalisation() -> None:
    one = resnet(1, 1, 1)
    other = dataclasses.replace(one, mean=(0.5,), std=(0.1,))
    split = tiny_data(8).train
    a, b = (next(node_features(chain(m), split))[0] for m in (one, other))
    assert not torch.allclose(a, b)
    again = next(node_features(chain(one), split.normalised((0.9,), (0.2,))))[0]
    torch.testing.assert_close(again, a, rtol=0, atol=0)


def test_a_signal_is_what_its_record_says() -> None:
    for signal in (Signal("map", 3, (8, 6)), Signal("grid", 12, (4, 4)), Signal("tokens", 24, (2, 3), 1)):
        assert Signal.from_record(json.loads(json.dumps(signal.record()))) == signal
    with pytest.raises(KeyError):
        Signal.from_record({"layout": "map", "channels": 3})
    with pytest.raises(ValueError):
        Signal.from_record({"layout": "map", "channels": 3, "size": [8], "extra": 0})
