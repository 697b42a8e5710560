"""Which channels belong together, and networks made narrower."""

import json

import pytest
import torch
import torchvision
from torch import nn

from upcycle.core.errors import UserError
from upcycle.core.outputs import Logits
from upcycle.surgery.channels import Channels
from upcycle.surgery.following import follow_channels
from upcycle.surgery.joined_layers import Scatter
from upcycle.surgery.resizing import resized, shrink, widths
from upcycle.zoo.convnet import MLP
from upcycle.zoo.resnet import PadShortcut, ResNet


def seen(module: nn.Module) -> nn.Module:
    """``module`` in eval mode, with BatchNorms that are no identities."""
    for m in module.modules():
        if isinstance(m, nn.modules.batchnorm._BatchNorm):
            for name, low, high in (("running_mean", -0.3, 0.3), ("running_var", 0.5, 1.5), ("weight", 0.5, 1.5),
                                    ("bias", -0.3, 0.3)):  # fmt: skip
                getattr(m, name).data.uniform_(low, high)
    return module.eval()


def vgg11() -> nn.Module:
    """torchvision's, with narrow linear layers behind its 7 x 7 map."""
    net = torchvision.models.vgg11_bn(num_classes=10, init_weights=False)
    for i, (inputs, outputs) in {0: (512 * 49, 32), 3: (32, 32), 6: (32, 10)}.items():
        net.classifier[i] = nn.Linear(inputs, outputs)
    return net


def torchvisions(name: str, **options: object) -> nn.Module:
    return torchvision.models.get_model(name, num_classes=10, **options)


NETWORKS = {
    "resnet20, option A": lambda: ResNet((3, 3, 3), 10),
    "resnet8, projection": lambda: ResNet((1, 1, 1), 10, projection=True),
    "mlp": lambda: MLP(3 * 32 * 32, (24, 16), 10, 0.5),
    "vgg11_bn": vgg11,
    "resnet18": lambda: torchvisions("resnet18"),
    "resnet50": lambda: torchvisions("resnet50"),
    "googlenet": lambda: torchvisions("googlenet", transform_input=True, init_weights=False),
    "mobilenet_v2": lambda: torchvisions("mobilenet_v2"),
    "mobilenet_v3_small": lambda: torchvisions("mobilenet_v3_small"),
    "shufflenet": lambda: torchvisions("shufflenet_v2_x0_5"),
    "squeezenet": lambda: torchvisions("squeezenet1_1"),
    "efficientnet": lambda: torchvisions("efficientnet_b0"),
}


def timms(name: str) -> nn.Module:
    return pytest.importorskip("timm").create_model(name, num_classes=10)


def hugging_face(kind: str, **options: object) -> nn.Module:
    """An image classifier of Hugging Face's, which asks for shapes in its forward."""
    transformers = pytest.importorskip("transformers")
    config = getattr(transformers, f"{kind}Config")(num_labels=10, **options)
    return Logits(getattr(transformers, f"{kind}ForImageClassification")(config))


FOREIGN = {
    "timm's own linear layer": lambda: timms("mobilenetv3_small_050"),
    "hard gates": lambda: timms("lcnet_035"),
    "cheap features": lambda: timms("ghostnet_050"),
    "products of branches": lambda: timms("starnet_s1"),
    "TensorFlow's padding": lambda: timms("tf_mobilenetv3_small_minimal_100"),
    "Hugging Face's ResNet": lambda: hugging_face(
        "ResNet", embedding_size=16, hidden_sizes=[16, 24, 32, 48], depths=[1, 1, 1, 1], layer_type="bottleneck"
    ),
    "Hugging Face's MobileNet": lambda: hugging_face("MobileNetV1", depth_multiplier=0.25),
}


def some(channels: Channels, share: float = 0.6) -> torch.Tensor:
    """A random choice that leaves every layer a channel."""
    keep = torch.rand(channels.n, generator=torch.Generator().manual_seed(0)) < share
    for layer in channels.layers:
        keep[layer.outputs[0]] = True
    return keep


@pytest.mark.parametrize("name", [*NETWORKS, *FOREIGN])
@torch.no_grad()
def test_a_narrower_network_computes_what_the_source_does_without_the_removed_channels(name: str) -> None:
    torch.manual_seed(0)
    net, x = seen({**NETWORKS, **FOREIGN}[name]()), torch.randn(2, 3, 32, 32)
    channels = follow_channels(net, x)
    whole = shrink(net, channels, torch.ones(channels.n, dtype=torch.bool), example=x)
    right = net(x)
    assert (whole(x) - right).abs().max() <= 1e-5 * right.abs().max()

    keep = some(channels)
    small = shrink(net, channels, keep, [7, 2, 4], example=x)
    keep[torch.cat([channels.image, channels.fixed])] = True
    for layer in channels.layers:  # an oracle of its own: kernels that read a removed channel become zero
        m = net.get_submodule(layer.name)
        if layer.groups == 1:
            m.weight[:, ~keep[layer.inputs]] = 0.0
    right = net(x)[:, [7, 2, 4]]
    assert (small(x) - right).abs().max() <= 1e-4 * right.abs().max()
    assert type(small) is type(net)
    assert sum(p.numel() for p in small.parameters()) < 0.8 * sum(p.numel() for p in net.parameters())

    again = resized(net, json.loads(json.dumps(widths(small))))
    again.load_state_dict(small.state_dict())
    assert torch.equal(again.eval()(x), small(x))


def test_a_sum_couples_its_terms_and_padding_couples_nothing() -> None:
    net = ResNet((2, 1, 1), 10)
    channels = follow_channels(net, torch.randn(2, 3, 16, 16))
    by_name = {layer.name: layer for layer in channels.layers}
    stem, last = by_name["conv1"].outputs, by_name["layer1.1.conv2"].outputs
    assert torch.equal(stem, last)
    assert torch.equal(by_name["layer1.0.conv2"].outputs, stem)
    inner = by_name["layer1.0.conv1"].outputs
    assert not torch.isin(inner, stem).any()
    wider = by_name["layer2.0.conv2"].outputs  # 32: eight zeros, the sixteen of stage 1, eight zeros
    assert torch.equal(wider[8:24], stem)
    assert not torch.isin(wider[:8], torch.cat([stem, wider[8:]])).any()
    assert channels.n == 3 + 16 + 2 * 16 + 16 + 32 + 32 + 64 + 10  # stage 2's 32 hold stage 1's 16, stage 3's 64 those


class Shuffled(nn.Module):
    """Two 1x1 convolutions with the channels of the first in another order between them."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.norm = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 4, 1), nn.BatchNorm2d(8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        b, _, h, w = x.shape
        y = self.norm(self.a(x).view(b, 2, -1, h, w).transpose(1, 2).reshape(b, -1, h, w))
        return self.b(y).mean((2, 3))


def test_a_shuffle_is_followed_where_widths_allow_it() -> None:
    net, x = seen(Shuffled()), torch.randn(2, 3, 4, 4)
    channels = follow_channels(net, x)
    first, second = channels.layers
    assert torch.equal(second.inputs, first.outputs[[0, 4, 1, 5, 2, 6, 3, 7]])
    keep = torch.zeros(channels.n, dtype=torch.bool)
    keep[first.outputs[[0, 3, 4, 7]]] = True  # the same two of each half
    assert shrink(net, channels, keep, example=x).a.out_channels == 4
    keep[first.outputs[5]] = True  # and with it the second of the other half
    assert shrink(net, channels, keep, example=x).a.out_channels == 6


class Counting(nn.Module):
    """A forward that computes with the number of its channels."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.norm, self.b = nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8), nn.Conv2d(8, 4, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.a(x)
        return self.b(self.norm(x * (8 / x.shape[1]))).mean((2, 3))


def test_a_forward_that_counts_its_channels_is_refused_and_says_where() -> None:
    net, x = seen(Counting()), torch.randn(2, 3, 4, 4)
    channels = follow_channels(net, x)
    keep = torch.ones(channels.n, dtype=torch.bool)
    keep[channels.layers[0].outputs[0]] = False
    with pytest.raises(
        UserError, match=r"counts on the widths that it has, at or before 'norm' \(its answers are wrong"
    ):
        shrink(net, channels, keep, example=x)


class Partial(nn.Module):
    """A shortcut to the first channels only, as in ReXNet, a split into fixed sizes and one into thirds."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(3, 6, 1), nn.Conv2d(6, 9, 1), nn.Conv2d(9, 6, 1)
        self.d, self.linear = nn.Conv2d(6, 6, 1), nn.Linear(2, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.a(x).relu()
        y = self.b(x)
        y = self.c(torch.cat([y[:, :6] + x, y[:, 6:]], 1).relu())
        few, more = torch.split(y, [2, 4], dim=1)
        first, second, third = self.d(torch.cat([more, few], 1)).chunk(3, dim=1)
        return self.linear((first * second + third).mean((2, 3)))


def test_channels_that_a_forward_counts_by_itself_stay_and_even_parts_stay_even() -> None:
    net, x = seen(Partial()), torch.randn(2, 3, 4, 4)
    channels = follow_channels(net, x)
    a, b, c, d, _ = channels.layers
    assert torch.isin(torch.cat([a.outputs, b.outputs, c.outputs]), channels.fixed).all()
    assert torch.equal(d.outputs, d.outputs[:2].repeat(3)) and not torch.isin(d.outputs, channels.fixed).any()
    keep = torch.zeros(channels.n, dtype=torch.bool)
    keep[d.outputs[:1]] = True
    small = shrink(net, channels, keep, example=x)
    assert small.d.out_channels == 3 and small.b.out_channels == 9


class Branches(nn.Module):
    """Concatenation, halves, a gate and a flatten."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(1, 4, 1), nn.Conv2d(1, 2, 1), nn.Conv2d(6, 4, 1)
        self.gate, self.linear = nn.Conv2d(4, 4, 1), nn.Linear(2 * 9, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.c(torch.cat([self.a(x), self.b(x)], 1).relu())
        y = y * self.gate(y.mean((2, 3), keepdim=True)).sigmoid()
        left, _ = y.chunk(2, 1)
        return self.linear(torch.flatten(left, 1))


def test_concatenation_halves_gates_and_flatten() -> None:
    channels = follow_channels(Branches(), torch.randn(2, 1, 3, 3))
    a, b, c, gate, linear = channels.layers
    assert torch.equal(c.inputs, torch.cat([a.outputs, b.outputs]))
    assert torch.equal(gate.outputs, c.outputs)
    assert torch.equal(linear.inputs, c.outputs[:2].repeat_interleave(9))
    assert channels.reads_image(a) and channels.reads_image(b) and not channels.reads_image(c)
    assert channels.makes_logits(linear) and torch.equal(channels.logits, linear.outputs)


def test_depthwise_couples_input_and_output_and_groups_stay_whole() -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Conv2d(4, 8, 3, padding=1, groups=4), nn.Conv2d(8, 4, 1, groups=2),
                        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))  # fmt: skip
    channels = follow_channels(net, torch.randn(2, 3, 5, 5))
    first, depthwise, grouped, _ = channels.layers
    assert torch.equal(depthwise.outputs, first.outputs.repeat_interleave(2)[:8])
    assert len(grouped.outputs.unique()) == 2
    assert torch.equal(grouped.outputs[:2], depthwise.inputs[:2])
    keep = torch.zeros(channels.n, dtype=torch.bool)
    keep[first.outputs[2:]] = True
    small = shrink(net, channels, keep, example=torch.randn(2, 3, 5, 5))
    assert widths(small) == {"0": [3, 2, 1], "1": [2, 4, 2], "2": [4, 2, 1], "5": [2, 2]}


def _norm(module: nn.Module) -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 4, 1), module, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))


class Standardised(nn.Conv2d):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        weight = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
        return self._conv_forward(x, weight / weight.std((1, 2, 3), keepdim=True), self.bias)


class Twice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.linear = nn.Conv2d(3, 3, 1), nn.Linear(3, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.linear(self.a(self.a(x)).mean((2, 3)))


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: _norm(nn.GroupNorm(2, 4)), "'1' \\(GroupNorm\\)"),
        (lambda: _norm(nn.Softmax(1)), "'1' \\(Softmax\\)"),
        (lambda: _norm(nn.Conv3d(1, 1, 1)), "forward fails|Conv3d"),
        (lambda: torchvision.models.VisionTransformer(32, 16, 1, 2, 48, 8), "'add' in 'encoder'"),
        (lambda: torchvisions("convnext_tiny"), "layer_norm"),
        (Twice, "runs 'a' more than once"),
        (lambda: _norm(Standardised(4, 4, 1)), r"'1' \(Standardised\) computes something else than torch's layer"),
        (lambda: _norm(nn.utils.parametrizations.weight_norm(nn.Conv2d(4, 4, 1))), "'1' .* computes something else"),
        (lambda: timms("eca_nfnet_l0"), r"'stem.conv1' \(ScaledStdConv2d\)"),
        (lambda: nn.Sequential(nn.Flatten(), nn.Linear(3072, 4), nn.Linear(4, 4), nn.Unflatten(1, (2, 2))), "logits"),
    ],
)  # fmt: skip
def test_what_is_not_understood_is_named(make: object, words: str) -> None:
    with pytest.raises(UserError, match=words) as error:
        follow_channels(make(), torch.randn(2, 3, 32, 32))  # type: ignore[operator]
    assert "\n" not in str(error.value)
    assert "cannot be cut into channels" in str(error.value)


def test_a_layer_must_keep_a_channel() -> None:
    net, x = Branches(), torch.randn(2, 1, 3, 3)
    channels = follow_channels(net, x)
    with pytest.raises(UserError, match="Layer 'a' must keep at least one channel"):
        shrink(net, channels, torch.zeros(channels.n, dtype=torch.bool), example=x)


def test_scatter_computes_what_the_padded_shortcut_does() -> None:
    shortcut, x = PadShortcut(3, 8, 2), torch.randn(2, 3, 6, 6)
    assert torch.equal(Scatter.like(shortcut, 3)(x), shortcut(x))


@pytest.mark.parametrize(
    "wrong",
    [{"conv1": [3, 16]}, {"conv1": [3, -1, 1]}, {"conv1": [3, 16.0, 1]}, {"conv1": [3, 2**29, 1]}, {"nothing": [1]},
     {"conv1": [3, 16, 5]}, {"linear": [2**20, 2**20]}, {"pool": [3]}, {"layer2.0.downsample": [16, 32, 0]},
     {"bn1": [True]}],
)  # fmt: skip
def test_recorded_widths_that_are_none_are_refused(wrong: dict[str, list[int]]) -> None:
    with pytest.raises((ValueError, AttributeError, TypeError)):
        resized(ResNet((1, 1, 1), 10), wrong)


def test_a_timm_network_is_followed() -> None:
    timm = pytest.importorskip("timm")
    net, x = seen(timm.create_model("resnet10t", num_classes=5)), torch.randn(2, 3, 32, 32)
    channels = follow_channels(net, x)
    small = shrink(net, channels, some(channels), example=x)
    assert small(x).shape == (2, 5)
    assert widths(small)["fc"][0] < widths(net)["fc"][0]
