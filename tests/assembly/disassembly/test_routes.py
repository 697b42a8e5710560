"""Decision routes against the algorithm by hand."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from tests.assembly.networks import CPU, Flat, Gated, seen
from upcycle.assembly.disassembly import routes
from upcycle.data import Images
from upcycle.surgery.following import follow_channels


def by_hand(
    net: Flat, x: torch.Tensor, target: int, k: int, a: float, b: float, al: float, bl: float
) -> list[list[bool]]:
    """The algorithm on :class:`Flat`, layer by layer and in loops: the masks of the layers' inputs, the last first."""
    with torch.no_grad():
        x2 = F.max_pool2d(net.bn(net.conv1(x)).relu(), 2)
        x3 = net.conv2(x2).relu().flatten(1)
        x4 = net.fc1(x3).relu()

    def normal(v: list[float]) -> list[float]:
        return [(i - min(v)) / (max(v) - min(v) + 1e-5) for i in v]

    def back(s: torch.Tensor, m: list[bool], alpha: float, beta: float) -> list[bool]:
        hard = [[i > alpha for i in normal(row.tolist())] for row in s]
        v = normal([float(sum(m[o] and hard[o][p] for o in range(len(m)))) for p in range(s.shape[1])])
        return [i > beta for i in v]

    linear = lambda w, x: torch.stack([(w * row).relu() for row in x]).sum(0)  # noqa: E731
    m4 = back(linear(net.fc2.weight, x4), [c == target for c in range(k)], al, bl)
    m3 = back(linear(net.fc1.weight, x3), m4, al, bl)
    channels = [any(m3[4 * c : 4 * c + 4]) for c in range(5)]  # behind the flatten
    s = torch.zeros(5, 6)
    for o in range(5):
        for p in range(6):
            one = F.conv2d(x2[:, p : p + 1], net.conv2.weight[o : o + 1, p : p + 1], stride=2, padding=1)
            s[o, p] = one.sum((1, 2, 3)).relu().sum()
    return [m4, channels, back(s, channels, a, b)]


@torch.no_grad()
def test_routes_are_those_of_the_algorithm_by_hand(digits: Images) -> None:
    net = seen(Flat(4), seed=3)
    split = digits.train.normalised((0.3,), (0.4,))
    channels = follow_channels(net, torch.randn(2, 1, 8, 8))
    samples = {2: torch.arange(0, 90), 0: torch.arange(90, 100)}  # classes that share a batch, and more than one
    thresholds = (0.2, 0.7, 0.3, 0.6)
    a, b, al, bl = thresholds
    found = routes.find_routes(net, channels, split, samples, alpha=a, beta=b, alpha_linear=al, beta_linear=bl)
    conv1, conv2, fc1, _fc2 = channels.layers
    for row, (target, index) in zip(found, samples.items(), strict=True):
        images = split.batch(index, device=CPU).images
        m4, m3, m2 = by_hand(net, images, target, 4, *thresholds)
        assert row[fc1.outputs].tolist() == m4
        assert row[conv2.outputs].tolist() == m3
        assert row[conv1.outputs].tolist() == m2
        assert row[channels.logits].tolist() == [c == target for c in range(4)]
    # Masks of classes do not depend on which others are asked for.
    alone = routes.find_routes(net, channels, split, {0: samples[0]}, alpha=a, beta=b, alpha_linear=al, beta_linear=bl)
    assert torch.equal(alone[0], found[1])


def test_a_sum_wants_what_any_consumer_wants() -> None:
    """conv2 and stem are summed: a channel that only fc wants is kept in both."""
    net = Gated(3)
    channels = follow_channels(net, torch.randn(2, 1, 8, 8))
    layers = {x.name: x for x in channels.layers}
    s = {x.name: torch.ones(len(x.outputs), len(x.inputs)) for x in channels.layers if x.groups == 1}
    s["head"] = torch.zeros(3, 12)
    s["head"][1, 4] = 1.0  # logit 1 comes from channel 4 of the sum
    s["up"] = torch.zeros(12, 6)
    s["up"][:, 2] = 1.0  # and the block reads channel 2
    thresholds = dict.fromkeys(layers, 0.2)
    found = routes.contribution_route(channels, s, 1, thresholds, thresholds)
    assert found[layers["stem"].outputs].nonzero().flatten().tolist() == [2, 4]
    assert torch.equal(found[layers["down"].outputs], found[layers["stem"].outputs])
    assert torch.equal(found[layers["depthwise"].inputs], found[layers["depthwise"].outputs])


def test_a_route_never_ends() -> None:
    channels = follow_channels(Flat(2), torch.randn(2, 1, 8, 8))
    s = {x.name: torch.zeros(len(x.outputs), len(x.inputs)) for x in channels.layers}
    thresholds = dict.fromkeys(s, 0.99)
    found = routes.contribution_route(channels, s, 0, thresholds, thresholds)
    assert all(found[layer.outputs].any() for layer in channels.layers)
