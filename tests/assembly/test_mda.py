"""MDA: decision routes, components, and networks assembled of them."""

import copy
import dataclasses
import json

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from upcycle.assembly import MDA, MDAAssembly
from upcycle.assembly.disassembly import component, contribution, meters, routes
from upcycle.core.errors import UserError
from upcycle.core.evaluate import evaluate
from upcycle.core.models import Model, resolve
from upcycle.core.recipe import Recipe
from upcycle.core.run import Run
from upcycle.data import Images, load
from upcycle.distillation import KD
from upcycle.surgery.assembling import assemble, rebuild_resized, zero_blocks
from upcycle.surgery.following import follow_channels
from upcycle.surgery.logits import logit_scales, scale_logits
from upcycle.zoo.convnet import ConvNet
from upcycle.zoo.resnet import ResNet

CPU = torch.device("cpu")


def seen(module: nn.Module, seed: int = 0) -> nn.Module:
    """``module`` with random weights and BatchNorms that are no identities."""
    g = torch.Generator().manual_seed(seed)
    for m in module.modules():
        if isinstance(m, nn.BatchNorm2d):
            for name, low, high in (("running_mean", -0.3, 0.3), ("running_var", 0.5, 1.5), ("weight", 0.5, 1.5),
                                    ("bias", -0.3, 0.3)):  # fmt: skip
                getattr(m, name).data.uniform_(low, high, generator=g)
        elif isinstance(m, nn.Conv2d | nn.Linear):
            m.weight.data.normal_(0.0, (2 / m.weight[0].numel()) ** 0.5, generator=g)
    return module.eval()


class Flat(nn.Module):
    """conv-BN-ReLU, pooling, conv-ReLU, and a flatten of 2 x 2 places into two linear layers; 8 x 8 grey."""

    def __init__(self, k: int = 4) -> None:
        super().__init__()
        self.conv1, self.bn = nn.Conv2d(1, 6, 3, padding=1), nn.BatchNorm2d(6)
        self.conv2 = nn.Conv2d(6, 5, 3, stride=2, padding=1)
        self.fc1, self.fc2 = nn.Linear(20, 7), nn.Linear(7, k)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.max_pool2d(self.bn(self.conv1(x)).relu(), 2)
        return self.fc2(self.fc1(self.conv2(x).relu().flatten(1)).relu())


class Gated(nn.Module):
    """Depthwise convolutions, a gate, a sum and a concatenation, as in MobileNets; 8 x 8 grey."""

    def __init__(self, k: int = 4) -> None:
        super().__init__()
        self.stem, self.bn = nn.Conv2d(1, 6, 3, padding=1), nn.BatchNorm2d(6)
        self.up, self.depthwise, self.down = (
            nn.Conv2d(6, 12, 1),
            nn.Conv2d(12, 12, 3, 1, 1, groups=12),
            nn.Conv2d(12, 6, 1),
        )
        self.squeeze, self.excite = nn.Conv2d(12, 3, 1), nn.Conv2d(3, 12, 1)
        self.prelu, self.head = nn.PReLU(), nn.Linear(12, k)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.prelu(self.bn(self.stem(x)))
        y = self.depthwise(self.up(x)).relu()
        y = y * self.excite(self.squeeze(y.mean((2, 3), keepdim=True)).relu()).sigmoid()
        return self.head(torch.cat([x + self.down(y), x], 1).mean((2, 3)))


def model(module: nn.Module, names: str = "abcd", name: str = "net", stats: tuple[float, float] = (0.3, 0.4)) -> Model:
    return Model(module=module, input_shape=(1, 8, 8), mean=stats[:1], std=stats[1:], classes=tuple(names), name=name)


@pytest.fixture(scope="module")
def digits() -> Images:
    return load("digits")


@pytest.fixture(scope="module")
def teacher() -> Model:
    return resolve("zoo:digits_teacher")


def run() -> Run:
    return Run(None, quiet=True)


# -- 1, 2. contributions ----------------------------------------


@pytest.mark.parametrize(
    ("size", "stride", "padding", "dilation"),
    [((3, 3), (1, 1), (1, 1), (1, 1)), ((3, 5), (2, 1), (0, 2), (1, 1)), ((2, 3), (2, 3), (1, 2), (2, 1)),
     ((1, 1), (2, 2), (0, 0), (1, 1)), ((7, 7), (2, 2), (3, 3), (1, 1))],
)  # fmt: skip
def test_contributions_are_those_of_explicit_convolutions_and_sum_to_the_output(
    size: tuple[int, int], stride: tuple[int, int], padding: tuple[int, int], dilation: tuple[int, int]
) -> None:
    torch.manual_seed(0)
    x, m = torch.randn(3, 4, 9, 11), nn.Conv2d(4, 5, size, stride, padding, dilation)
    found = contribution.contribution_conv(x, m.weight, stride, padding, dilation)
    for k in range(5):
        for p in range(4):
            one = F.conv2d(x[:, p : p + 1], m.weight[k : k + 1, p : p + 1], None, stride, padding, dilation)
            assert torch.allclose(found[:, k, p], one.sum((1, 2, 3)), atol=1e-4)
    y = m(x)
    assert torch.allclose(found.sum(2) + y[0, 0].numel() * m.bias, y.sum((2, 3)), atol=1e-3)
    z = contribution.tap_sums(x, size, stride, padding, dilation)
    summed = contribution.summed_contribution(z.flatten(2), m.weight.flatten(2))
    assert torch.allclose(summed, found.relu().sum(0), atol=1e-4)


def test_linear_contributions_need_no_array_of_all_samples() -> None:
    torch.manual_seed(0)
    x, m = torch.randn(6, 7), nn.Linear(7, 3)
    each = contribution.contribution_linear(x, m.weight)
    assert torch.allclose(each.sum(2) + m.bias, m(x), atol=1e-5)
    assert torch.allclose(
        contribution.summed_contribution(x[:, :, None], m.weight[:, :, None]), each.relu().sum(0), atol=1e-5
    )


def test_relative_contribution_is_a_min_max_over_the_inputs() -> None:
    s = torch.tensor([[0.0, 5.0, 10.0], [3.0, 3.0, 3.0]])
    assert torch.allclose(contribution.relative(s), torch.tensor([[0.0, 0.5, 1.0], [0.0, 0.0, 0.0]]), atol=1e-5)


@pytest.mark.parametrize("padding", ["same", "reflect"])
def test_other_paddings(padding: str) -> None:
    mode = {"padding": "same"} if padding == "same" else {"padding": 1, "padding_mode": "reflect"}
    m, x = nn.Conv2d(2, 3, (2, 3) if padding == "same" else 3, bias=False, **mode), torch.randn(2, 2, 6, 6)
    z = contribution.layer_tap_sums(m, x)
    assert torch.allclose(torch.einsum("bit,oit->bo", z, m.weight.flatten(2)), m(x).sum((2, 3)), atol=1e-4)


# -- 3. routes ----------------------------------------


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


def test_the_slope_of_a_sure_answer_is_not_cancelled() -> None:
    z, y = torch.tensor([[30.0, 0.0, -5.0], [0.3, -1.0, 2.0]]), torch.tensor([0, 1])
    exact = z.double().requires_grad_()
    exact.softmax(1).gather(1, y[:, None]).sum().backward()
    assert exact.grad is not None
    found = meters._softmax_slope(z, y)
    assert torch.allclose(found[1].double(), exact.grad[1], rtol=1e-5)
    assert found[0, 0] == pytest.approx(torch.tensor([-30.0, -35.0]).exp().sum().item(), rel=1e-4)
    assert found[0, 0] > 0 > found[0, 1]


def test_gradient_scores_are_those_of_autograd(digits: Images) -> None:
    net = seen(Flat(4), seed=3)
    split = digits.train.normalised((0.3,), (0.4,))
    channels = follow_channels(net, torch.randn(2, 1, 8, 8))
    meter = meters.GradientMeter(copy.deepcopy(net).requires_grad_(False), channels)
    found = meter(split, {2: torch.arange(70)}, CPU)[2]
    images = split.batch(torch.arange(70), device=CPU).images
    maps = net.bn(net.conv1(images)).relu()
    kept = net.conv2(F.max_pool2d(maps, 2))
    p = net.fc2(net.fc1(kept.relu().flatten(1)).relu()).softmax(1)[:, 2].sum()
    slope = torch.autograd.grad(p, kept)[0]
    assert torch.allclose(found["conv2"], slope.relu().sum((0, 2, 3)), rtol=1e-3, atol=1e-7)
    rows = routes.find_routes(net, channels, split, {2: torch.arange(70)}, score="gradient")
    assert all(rows[0, layer.outputs].any() for layer in channels.layers)
    assert not rows.all()


# -- 4. components ----------------------------------------


def part_of(source: Model, digits: Images, **options: object) -> Model:
    method = MDA(source=source, **options)
    return method.product(method.fit(run(), digits), digits)


@pytest.mark.parametrize("score", ["contribution", "gradient"])
def test_keeping_everything_is_the_source(teacher: Model, digits: Images, score: str) -> None:
    made = part_of(teacher, digits, score=score, alpha=-1.0, alpha_linear=-1.0, beta=-1.0, beta_linear=-1.0)
    x = digits.test.normalised(teacher.mean, teacher.std).batch(torch.arange(100), device=CPU).images
    assert torch.allclose(made.module(x), teacher.module(x), atol=1e-5)
    assert made.classes == teacher.classes


def test_components_on_digits(teacher: Model, digits: Images) -> None:
    names = teacher.classes
    half = part_of(teacher, digits, classes=names[5:])
    fewer = part_of(teacher, digits, classes=names[7:])
    count = lambda m: sum(p.numel() for p in m.module.parameters())  # noqa: E731
    assert half.classes == names[5:] and fewer.classes == names[7:]
    assert count(fewer) <= count(half) < count(teacher)
    assert next(m for m in half.module.modules() if isinstance(m, nn.Conv2d)).in_channels == 1
    joint = digits.only(half.classes).normalised(half.mean, half.std)
    limited = component.restrict(teacher, names[5:])
    right = evaluate(limited.module, joint.test).accuracy
    found = evaluate(half.module, joint.test).accuracy
    assert right > 0.95
    assert found >= right - 0.1
    backwards = part_of(teacher, digits, classes=names[:4:-1])
    x = joint.test.batch(torch.arange(50), device=CPU).images
    assert torch.allclose(backwards.module(x), half.module(x).flip(1), atol=1e-5)


def test_masks_of_a_union_are_joined(teacher: Model, digits: Images) -> None:
    split = digits.train.normalised(teacher.mean, teacher.std)
    channels = follow_channels(teacher.module, teacher.example(2))
    samples = component.find_confident(teacher.module, split, {c: c for c in range(10)}, 20)
    found = routes.find_routes(teacher.module, channels, split, samples)
    left, right = (component.cut_component(teacher.module, channels, found[rows], rows, example=teacher.example(4))
                   for rows in ([0, 1, 2], [3, 4]))  # fmt: skip
    both = component.cut_component(teacher.module, channels, found[:5], range(5), example=teacher.example(4))
    for layer in channels.layers:
        a, b, c = (m.get_submodule(layer.name).weight.shape[1] for m in (left, right, both))
        assert max(a, b) <= c <= a + b
        if not channels.reads_image(layer):
            assert c == int((found[:3, layer.inputs].any(0) | found[3:5, layer.inputs].any(0)).sum())
    picture = routes.route_picture(channels, found, teacher.classes)
    assert [x["name"] for x in picture["layers"]] == [x.name for x in channels.layers[:-1]]
    for drawn, layer in zip(picture["layers"], channels.layers, strict=False):
        assert sum(g["count"] for g in drawn["groups"]) == len(layer.outputs)
    json.dumps(picture)


def test_the_surest_images_that_are_right(teacher: Model, digits: Images) -> None:
    split = digits.train.normalised(teacher.mean, teacher.std)
    found = component.find_confident(teacher.module, split, {3: 3, 8: 8}, 15)
    with torch.no_grad():
        z = teacher.module(split.batch(torch.arange(len(split)), device=CPU).images)
    own = ((split.labels == 3) & (z.argmax(1) == 3)).nonzero().flatten()
    p = z.double().softmax(1)[:, 3]
    assert len(found[3]) == 15
    assert (split.labels[found[8]] == 8).all()
    assert p[found[3]].min() >= p[[i for i in own.tolist() if i not in found[3].tolist()]].max()


def test_a_component_is_a_student(teacher: Model, digits: Images) -> None:
    part = part_of(teacher, digits, classes=("0", "1", "2"))
    data = digits.only(part.classes).normalised(part.mean, part.std)
    method = KD(teacher=component.restrict(teacher, part.classes), student=part,
                recipe=Recipe(epochs=1, batch_size=64, lr=0.01))  # fmt: skip
    method.require(data)
    assert evaluate(method.fit(run(), data), data.test).accuracy > 0.9


# -- 5. assembling ----------------------------------------


def some_part(kind: type[nn.Module], seed: int, share: float, **facts: object) -> Model:
    """A component with random routes."""
    whole = model(seen(kind(), seed))
    channels = follow_channels(whole.module, whole.example(2))
    g = torch.Generator().manual_seed(seed)
    keep = torch.rand(2, channels.n, generator=g) < share
    for layer in channels.layers:
        keep[:, layer.outputs[0]] = True
    made = component.cut_component(whole.module, channels, keep, [3, 1], example=whole.example(4))
    return dataclasses.replace(whole, module=made, **facts)  # type: ignore[arg-type]


class Plain(ConvNet):
    """Convolutions and average pooling for grey images."""

    def __init__(self) -> None:
        super().__init__((8, 12, 9), 4, 1)


class Padded(ResNet):
    """A ResNet with option A shortcuts for grey images."""

    def __init__(self) -> None:
        super().__init__((1, 2, 1), 4, 1)


@pytest.mark.parametrize("kind", [Flat, Gated, Padded, Plain])
@torch.no_grad()
def test_assembled_logits_are_those_of_the_parts(kind: type[nn.Module]) -> None:
    parts = [some_part(kind, i, 0.5, classes=(f"{i}a", f"{i}b"), name=f"part{i}") for i in range(3)]
    x = parts[0].example(6)
    whole = assemble(parts)
    assert whole.classes == ("0a", "0b", "1a", "1b", "2a", "2b")
    assert type(whole.module) is kind
    right = torch.cat([part.module(x) for part in parts], 1)
    assert torch.allclose(whole.module(x), right, atol=1e-5 * float(right.abs().max()))
    zeros = zero_blocks(parts)
    count = sum(p.numel() for p in whole.module.parameters()) - sum(int(m.sum()) for m in zeros.values())
    shared_slopes = sum(m.weight.numel() for m in whole.module.modules() if isinstance(m, nn.PReLU))
    alone = sum(p.numel() for part in parts for p in part.module.parameters())
    assert count == alone + (shared_slopes - 3 if shared_slopes else 0)

    # A class more later: the old logits stay, also when the old one was assembled with shortcuts.
    later = assemble((whole, some_part(kind, 7, 0.5, classes=("x", "y"), name="new")))
    assert torch.allclose(later.module(x)[:, :6], right, atol=1e-5 * float(right.abs().max()))


@pytest.mark.parametrize("kind", [Flat, Gated, Padded])
@torch.no_grad()
def test_parts_with_other_normalisations_see_their_own_images(kind: type[nn.Module]) -> None:
    stats = [(0.3, 0.4), (0.5, 0.25), (0.1, 0.9)]
    parts = [some_part(kind, i, 0.6, classes=(f"{i}a", f"{i}b"), mean=(m,), std=(s,)) for i, (m, s) in enumerate(stats)]
    raw = torch.rand(5, 1, 8, 8)
    right = torch.cat([part.module((raw - part.mean[0]) / part.std[0]) for part in parts], 1)
    whole = assemble(parts)
    found = whole.module((raw - 0.3) / 0.4)
    assert torch.allclose(found, right, atol=1e-4)
    nested = assemble((assemble(parts[1:]), parts[0]))
    assert torch.allclose(nested.module((raw - 0.5) / 0.25), right[:, [2, 3, 4, 5, 0, 1]], atol=1e-4)
    # What was assembled can be taken apart again.
    channels = follow_channels(whole.module, whole.example(2))
    again = component.cut_component(
        whole.module, channels, torch.ones(1, channels.n, dtype=torch.bool), [4, 0], example=whole.example(4)
    )
    assert torch.allclose(again((raw - 0.3) / 0.4), right[:, [4, 0]], atol=1e-4)


def test_parts_that_do_not_fit_are_named() -> None:
    a = some_part(Flat, 0, 0.5, classes=("a", "b"), name="left")
    other = some_part(Gated, 1, 0.5, classes=("c", "d"), name="right")
    with pytest.raises(
        UserError, match=r"left and right cannot be assembled, for their layers differ .*: relu in left, PReLU in right"
    ):
        assemble((a, other))
    strided = Flat()
    strided.conv2.stride = (1, 1)
    strided.fc1 = nn.Linear(80, 7)
    with pytest.raises(UserError, match=r"at 'conv2': Conv2d \(3, 3\), stride \(2, 2\).* in left, .*stride \(1, 1\)"):
        assemble((a, model(strided.eval(), "wxyz", "right")))
    with pytest.raises(UserError, match="The class 'b' is in two of the networks"):
        assemble((a, dataclasses.replace(a, classes=("b", "c"))))
    with pytest.raises(UserError, match="left takes images of 1 x 8 x 8 and right of 1 x 16 x 16"):
        assemble((a, dataclasses.replace(a, classes=("c", "d"), input_shape=(1, 16, 16), name="right")))
    with pytest.raises(UserError, match="At least two networks"):
        assemble((a,))


# -- 6. scaling ----------------------------------------


def test_after_scaling_the_mean_winning_logit_is_one(teacher: Model, digits: Images) -> None:
    part = part_of(teacher, digits, classes=("1", "4", "7"))
    r = logit_scales(part, digits, per_class=40)
    made = scale_logits(part, r)
    split = digits.train.normalised(part.mean, part.std)
    for c, label in enumerate((1, 4, 7)):
        index = (split.labels == label).nonzero().flatten()[:40]
        images = split.batch(index, device=CPU).images
        with torch.no_grad():
            z, right = made.module(images), part.module(images).argmax(1) == c
        assert z[right, c].mean() == pytest.approx(1.0, abs=1e-4)
    x = split.batch(torch.arange(200), device=CPU).images
    with torch.no_grad():
        assert torch.allclose(made.module(x), part.module(x) * r, atol=1e-4)
        assert torch.equal(scale_logits(part, 3 * r).module(x).argmax(1), made.module(x).argmax(1))


def test_a_class_without_a_positive_mean_is_not_scaled(teacher: Model, digits: Images) -> None:
    part = part_of(teacher, digits, classes=("1", "4"))
    last = [m for m in part.module.modules() if isinstance(m, nn.Linear)][-1]
    with torch.no_grad():
        last.bias[0] -= 1000.0  # never wins
        last.bias[1] -= 500.0  # wins with a negative logit
    assert logit_scales(part, digits).tolist() == [1.0, 1.0]
    strange = dataclasses.replace(part, classes=("1", "no digit"))
    assert logit_scales(strange, digits).tolist() == [1.0, 1.0]


def test_logits_behind_a_norm_are_not_scaled() -> None:
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 2), nn.BatchNorm1d(2)).eval()
    with pytest.raises(UserError, match="cannot be scaled"):
        scale_logits(model(net, "ab"), torch.ones(2))


# -- the methods ----------------------------------------


def test_as_much_is_cut_as_validation_accuracy_allows(teacher: Model, digits: Images) -> None:
    sizes, accuracies = [], []
    for tolerance in (0.01, 0.3):
        method = MDA(source=teacher, classes=("3", "5", "8"), samples=20, tolerance=tolerance)
        method.require(digits)
        watched = run()
        made = method.product(method.fit(watched, digits), digits)
        held = digits.only(made.classes).normalised(made.mean, made.std).validation
        sizes.append(sum(p.numel() for p in made.module.parameters()))
        accuracies.append(evaluate(made.module, held).accuracy)
        assert "validation accuracy falls by no more than" in watched.notes[0]
    source = evaluate(component.restrict(teacher, ("3", "5", "8")).module, held).accuracy
    assert accuracies[0] >= source - 0.01 and accuracies[1] >= source - 0.3
    assert sizes[1] < sizes[0]
    blind = dataclasses.replace(digits, validation=digits.validation.subset(torch.arange(0)))
    assert "there are none with labels" in MDA(source=teacher, tolerance=0.1).check(blind)[0]


@pytest.fixture(scope="module")
def halves(teacher: Model, digits: Images) -> tuple[Model, Model]:
    return tuple(part_of(teacher, digits, classes=names) for names in (teacher.classes[:5], teacher.classes[5:]))  # type: ignore[return-value]


def test_assembly_on_digits(halves: tuple[Model, Model], digits: Images) -> None:
    found = {}
    for name, options in {"as is": {"scale": False}, "scaled": {}, "tuned": {
            "tune": True, "recipe": Recipe(epochs=2, batch_size=64, lr=0.01)}}.items():  # fmt: skip
        method = MDAAssembly(parts=halves, **options)
        method.require(digits)
        made = method.product(method.fit(run(), digits), digits)
        assert made.classes == digits.classes
        found[name] = evaluate(made.module, digits.only(made.classes).normalised(made.mean, made.std).test).accuracy
    assert found["scaled"] > 0.6
    assert found["tuned"] > max(found["as is"], found["scaled"], 0.9)
    assert method.steps(1000) == 2 * 16 and MDAAssembly(parts=halves).steps(1000) == 0


def test_zero_blocks_stay_zero_where_asked(halves: tuple[Model, Model], digits: Images) -> None:
    recipe = Recipe(epochs=1, batch_size=100, lr=0.05)
    masks = zero_blocks(halves)
    assert masks
    for keep in (True, False):
        method = MDAAssembly(parts=halves, tune=True, keep_zeros=keep, recipe=recipe)
        weights = dict(method.fit(run(), digits).named_parameters())
        assert all(bool((weights[name][mask] == 0).all()) == keep for name, mask in masks.items())


def test_products_are_rebuilt_from_their_record(halves: tuple[Model, Model], teacher: Model, digits: Images) -> None:
    other = dataclasses.replace(halves[1], mean=(0.1,), std=(0.7,))
    for made in (halves[0], assemble(halves), assemble((halves[0], other))):
        assert made.reference == "assembly:resized"
        options = json.loads(json.dumps(made.options))

        def rebuild(source: dict) -> Model:
            assert source["reference"] == teacher.reference
            return resolve(source["reference"], pretrained=False)

        again = rebuild_resized(**options, rebuild=rebuild)
        again.load_state_dict(made.module.state_dict())
        x = made.example(3)
        assert torch.equal(again.eval()(x), made.module.eval()(x))
        for name, value in {"copies": -1, "widths": {}, "source": {}}.items():
            if name == "widths":
                layer = next(iter(options["widths"]))
                value = {**options["widths"], layer: [*options["widths"][layer][:-2], 3, 1]}
            with pytest.raises((ValueError, KeyError, TypeError, AttributeError, UserError)):
                rebuild_resized(**{**options, name: value}, rebuild=rebuild)
    bare = dataclasses.replace(teacher, reference=None)
    assert part_of(bare, digits, classes=("3",)).reference is None


def test_wrong_wishes_end_in_a_sentence(teacher: Model, digits: Images) -> None:
    with pytest.raises(UserError, match=r"no class of .* 'eleven'"):
        MDA(source=teacher, classes=("eleven",)).require(digits)
    with pytest.raises(UserError, match="names one class twice"):
        MDA(source=teacher, classes=("1", "1")).require(digits)
    with pytest.raises(UserError, match="alpha must be below 1"):
        MDA(source=teacher, alpha=1.0)
    with pytest.raises(UserError, match="samples must be at least 1"):
        MDA(source=teacher, samples=0)
    with pytest.raises(UserError, match="parts must be two networks or more"):
        MDAAssembly(parts=(teacher,))
    only = digits.subset((digits.train.labels != 4).nonzero().flatten())
    with pytest.raises(UserError, match="no labelled training image of 4"):
        MDA(source=teacher, classes=("4", "5")).require(only)
    blind = copy.deepcopy(teacher.module)
    with torch.no_grad():
        [m for m in blind.modules() if isinstance(m, nn.Linear)][-1].bias[2] -= 1000.0
    with pytest.raises(UserError, match="recognises no training image of class '2'"):
        MDA(source=dataclasses.replace(teacher, module=blind), classes=("2",)).fit(run(), digits)
    attention = nn.Sequential(nn.Conv2d(1, 4, 1), nn.GroupNorm(2, 4), nn.Flatten(), nn.Linear(256, 10))
    with pytest.raises(UserError, match="GroupNorm"):
        MDA(source=attention).require(digits)
