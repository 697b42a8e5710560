"""Model Doctor: the invariants of its card, and what a diagnosis says."""

import dataclasses
import json
import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.settings import fitted, tiny_data, tiny_net, tiny_vit
from upcycle.core.errors import UserError
from upcycle.core.feature_maps import FeatureMap, record_layer
from upcycle.core.models import Model
from upcycle.core.recipe import Recipe
from upcycle.core.run import Run
from upcycle.diagnosis import ModelDoctor
from upcycle.diagnosis.errors.class_channels import (
    channel_map,
    channel_mask,
    channel_order,
    channel_scores,
    class_gradients,
    rivals,
    share_on,
    support,
)
from upcycle.diagnosis.errors.findings import diagnose
from upcycle.diagnosis.model_doctor import channel_loss, gaussian, require_penalty, spatial_loss
from upcycle.distillation import Plain

G = torch.Generator().manual_seed(0)
X = torch.randn(6, 1, 8, 8, generator=G)
Y = torch.tensor([3, 1, 4, 1, 5, 9])
SHORT = Recipe(epochs=2, batch_size=32, lr=0.01)


def draw(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=G)


def hooks(module: nn.Module) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in module.modules())


def inner(net: nn.Module, x: Tensor, y: Tensor, mask: Tensor, layer: str = "conv2") -> Tensor:
    with record_layer(net, layer) as seen:
        z = net(x)
    rival = rivals(z, y)
    own, other = (class_gradients(z, seen.f, c, graph=True) for c in (y, rival))
    return channel_loss(own, other, y, rival, mask)


class InPlace(nn.Module):
    """Writes over the convolution's output, as many networks do."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.linear = nn.Conv2d(1, 6, 3, padding=1), nn.Linear(6, 10)

    def forward(self, x: Tensor) -> Tensor:
        f = self.conv(x)
        f += 1.0
        return self.linear(F.relu(f, inplace=True).mean((2, 3)))


# -- gradients ----------------------------------------


def test_with_pooling_and_a_linear_head_the_support_is_the_weight() -> None:
    net = nn.Sequential(nn.Conv2d(1, 6, 3, padding=1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 10))
    with record_layer(net, "0") as seen:
        z = net(X)
    g = class_gradients(z, seen.f, Y)
    weight = net[3].weight.detach()[Y]
    assert torch.allclose(g, (weight / 64)[:, :, None, None].expand(6, 6, 8, 8))
    assert torch.allclose(support(g), weight.relu(), atol=1e-6)
    assert torch.allclose(support(g, "abs"), weight.abs(), atol=1e-6)


def test_the_gradient_is_of_each_sample_alone_and_never_a_mean() -> None:
    net = tiny_net().eval()
    with record_layer(net, "conv2") as seen:
        z = net(X)
    g = class_gradients(z, seen.f, Y)
    for i in range(len(X)):
        with record_layer(net, "conv2") as seen:
            one = net(X[i : i + 1])
        assert torch.allclose(class_gradients(one, seen.f, Y[i : i + 1])[0], g[i], atol=1e-6)


def test_the_output_is_kept_though_the_network_writes_over_it() -> None:
    net = InPlace()
    expected, f = net(X), net.conv(X)
    for leaf in (False, True):
        with record_layer(net, "conv", leaf=leaf) as seen:
            z = net(X)
        assert torch.equal(z, expected) and torch.equal(seen.f, f)
        g = class_gradients(z, seen.f, Y)
        assert torch.allclose(g, net.linear.weight[Y][:, :, None, None] / 64 * (f + 1 > 0))
    with record_layer(net, "conv", noise=lambda f: torch.full_like(f, 0.5)) as seen:
        z = net(X)
    assert torch.equal(seen.f, f)
    assert torch.allclose(z, net.linear(F.relu(f + 1.5).mean((2, 3))))
    assert hooks(net) == 0


def test_as_a_leaf_nothing_before_it_has_a_graph() -> None:
    net = tiny_net().eval().requires_grad_(False)
    with record_layer(net, "conv2", leaf=True) as seen:
        z = net(X)
    assert seen.f.is_leaf and seen.f.requires_grad and z.requires_grad
    assert bool(class_gradients(z, seen.f, Y).any())
    with record_layer(net, "conv2", leaf=False) as seen:
        assert not net(X).requires_grad


def test_hooks_go_when_the_forward_fails() -> None:
    net = tiny_net()
    with pytest.raises(RuntimeError), record_layer(net, "conv2"):
        net(torch.zeros(2, 7, 8, 8))
    assert hooks(net) == 0


def test_the_rival_is_the_most_probable_wrong_class() -> None:
    z = torch.tensor([[3.0, 2.0, 1.0], [3.0, 2.0, 1.0], [0.0, 5.0, 9.0]])
    assert rivals(z, torch.tensor([0, 1, 2])).tolist() == [1, 0, 1]


# -- masks of channels ----------------------------------------


def test_scores_lie_between_nought_and_one_and_every_class_has_a_channel() -> None:
    aggregate = torch.cat([draw(4, 12).abs(), torch.zeros(1, 12), torch.full((1, 12), 7.0), torch.rand(1, 12) * 1e-9])
    scores, mask = channel_scores(aggregate), channel_mask(aggregate, 0.2)
    assert float(scores.min()) >= 0 and float(scores.max()) <= 1
    assert bool(mask.any(1).all())
    assert torch.equal(mask[:4], scores[:4] > 0.2)
    assert mask[4:].sum(1).tolist() == [1, 1, 1]


def test_the_share_on_channels() -> None:
    g = torch.tensor([[1.0, 3.0, 0.0], [0.0, 0.0, 0.0]])
    found = share_on(g, torch.tensor([[True, False, True], [True, True, True]]))
    assert float(found[0]) == 0.25 and math.isnan(float(found[1]))


def test_channels_of_one_class_stand_together() -> None:
    scores = torch.tensor([[0.9, 0.0, 1.0, 0.2], [0.1, 0.8, 0.0, 0.7]])
    assert channel_order(scores).tolist() == [2, 0, 1, 3]


# -- losses ----------------------------------------


def test_the_channel_loss_is_its_formula() -> None:
    own, other, mask = draw(3, 5, 2, 2), draw(3, 5, 2, 2), draw(4, 5) > 0
    y, rival = torch.tensor([0, 1, 3]), torch.tensor([2, 0, 1])
    for act in ("relu", "abs"):
        expected = 0.0
        for b in range(3):
            for ch in range(5):
                parts = [(t[b, ch].relu() if act == "relu" else t[b, ch].abs()).sum() for t in (own, other)]
                expected += float(~mask[y[b], ch] * parts[0] + mask[rival[b], ch] * parts[1]) / 3
        assert float(channel_loss(own, other, y, rival, mask, act)) == pytest.approx(expected, rel=1e-5)


def test_all_channels_for_the_true_class_and_none_for_others_cost_nothing() -> None:
    y = torch.full((6,), 2)
    mask = torch.zeros(10, 16, dtype=torch.bool)
    mask[2] = True
    net = tiny_net()
    assert float(inner(net, X, y, mask).detach()) == 0.0
    assert float(inner(net, X, y, ~mask).detach()) > 0.0


def test_the_spatial_loss_counts_what_lies_outside_the_mask() -> None:
    own, m = draw(4, 3, 5, 5), (draw(4, 5, 5) > 0).float()
    assert float(spatial_loss(own, torch.ones(4, 5, 5))) == 0.0
    assert float(spatial_loss(own, torch.zeros(4, 5, 5))) == pytest.approx(float(own.abs().sum() / 4), rel=1e-5)
    both = float(spatial_loss(own, m) + spatial_loss(own, 1 - m))
    assert both == pytest.approx(float(own.abs().sum() / 4), rel=1e-5)
    assert float(spatial_loss(own, m)) > 0


def test_a_duplicated_batch_changes_no_loss() -> None:
    net, mask = tiny_net().eval(), draw(10, 16) > 0
    twice = (torch.cat([X, X]), torch.cat([Y, Y]))
    expected = inner(net, X, Y, mask).detach()
    assert torch.allclose(inner(net, *twice, mask).detach(), expected, rtol=1e-5)
    own, m = draw(4, 3, 5, 5), (draw(4, 5, 5) > 0).float()
    doubled = spatial_loss(torch.cat([own, own]), torch.cat([m, m]))
    assert float(doubled) == pytest.approx(float(spatial_loss(own, m)), rel=1e-5)


def test_the_penalties_have_a_gradient_for_the_weights() -> None:
    net, mask = tiny_net(), draw(10, 16) > 0
    for penalty in ("channel", "spatial"):
        net.zero_grad()
        if penalty == "channel":
            loss = inner(net, X, Y, mask)
        else:
            with record_layer(net, "conv2") as seen:
                z = net(X)
            own = class_gradients(z, seen.f, Y, graph=True)
            loss = spatial_loss(own, torch.zeros(6, 4, 4))
        loss.backward()
        for name in ("linear.weight", "bn2.weight", "conv2.weight"):  # conv2 through the batch's variance
            grad = net.get_parameter(name).grad
            assert grad is not None and float(grad.abs().max()) > 0, (penalty, name)


def test_the_noise_of_a_sample_depends_on_no_other() -> None:
    f, ids = torch.zeros(3, 2, 20, 20), torch.tensor([5, 7, 9])
    noise = gaussian(f, ids=ids, view=(0, 1), deviation=2.0)
    assert torch.equal(noise[1:2], gaussian(f[1:2], ids=ids[1:2], view=(0, 1), deviation=2.0))
    assert not torch.equal(noise, gaussian(f, ids=ids, view=(0, 2), deviation=2.0))
    assert abs(float(noise.mean())) < 0.2 and 1.8 < float(noise.std()) < 2.2


# -- diagnosis ----------------------------------------


def test_a_diagnosis_does_not_depend_on_the_order_of_the_images() -> None:
    data, model = tiny_data(), fitted("source", 7)
    order = torch.randperm(160, generator=torch.Generator().manual_seed(3))
    shuffled = dataclasses.replace(data, train=data.train.subset(order), validation=data.validation.subset(
        torch.randperm(50, generator=torch.Generator().manual_seed(4))))  # fmt: skip
    one, other = (diagnose(model, d, n=6) for d in (data, shuffled))
    assert torch.equal(one.mask, other.mask)
    assert torch.allclose(one.scores, other.scores, atol=1e-5)
    assert one.concentration == pytest.approx(other.concentration)
    assert one.wrong == pytest.approx(other.wrong)
    assert (one.confused, one.doubtful, one.shared) == (other.confused, other.doubtful, other.shared)
    chosen = [set(d.train.ids[found.images].tolist()) for d, found in ((data, one), (shuffled, other))]
    assert chosen[0] == chosen[1]


def test_what_a_diagnosis_says() -> None:
    data, model = tiny_data(), fitted("source", 7)
    before = {k: v.clone() for k, v in model.module.state_dict().items()}
    found = diagnose(model, data, n=6)
    assert found.layer == FeatureMap("conv2", "maps", (4, 4)) and not found.unrecognised
    assert found.scores.shape == found.mask.shape == (10, 16)
    assert bool(found.mask.any(1).all()) and not bool(found.mask.all())
    assert torch.bincount(data.train.labels[found.images], minlength=10).max() <= 6
    z = model.module(data.train.batch(found.images, device=torch.device("cpu")).images)
    assert torch.equal(z.argmax(1), data.train.labels[found.images])  # confident and right

    # concentration, from its definition
    split = data.validation
    with record_layer(model.module, "conv2") as seen:
        z = model.module(split.batch(torch.arange(50), device=torch.device("cpu")).images)
    g = class_gradients(z, seen.f, split.labels).relu().sum((2, 3))
    share = (g * found.mask[split.labels]).sum(1) / g.sum(1)
    for c in range(10):
        assert found.concentration[c] == pytest.approx(float(share[split.labels == c].mean()), rel=1e-4)

    assert found.evaluation.accuracy == pytest.approx(float((z.argmax(1) == split.labels).float().mean()))
    wrong = (z.argmax(1) != split.labels).nonzero()[:, 0]
    assert sorted(n for *_, numbers in found.confused for n in numbers) == sorted(split.ids[wrong].tolist())
    values = [v for *_, v in found.shared]
    assert values == sorted(values, reverse=True)
    a, b, jaccard = found.shared[0]
    first, second = found.mask[model.classes.index(a)], found.mask[model.classes.index(b)]
    assert jaccard == pytest.approx(float((first & second).sum() / (first | second).sum()))
    assert set(found.doubtful) == set(model.classes)
    assert json.loads(json.dumps(found.to_json()))["classes"] == list(model.classes)

    for key, value in model.module.state_dict().items():
        assert torch.equal(value, before[key])
    assert hooks(model.module) == 0 and all(p.requires_grad and p.grad is None for p in model.module.parameters())


def test_doubtful_images_are_the_least_sure_right_and_the_surest_wrong() -> None:
    data, model = tiny_data(400), fitted("source", 7)
    found = diagnose(model, data, n=6).doubtful["8"]
    with torch.no_grad():
        p = model.module(data.train.batch(torch.arange(400), device=torch.device("cpu")).images).softmax(1)
    of = {int(number): i for i, number in enumerate(data.train.ids)}
    unsure, wrong = ([p[of[number]] for number in found[key]] for key in ("unsure", "wrong"))
    assert unsure and all(int(row.argmax()) == 8 for row in unsure)
    tops = [float(row.max()) for row in unsure]
    assert tops == sorted(tops)
    eights = (data.train.labels == 8) & (p.argmax(1) == 8)
    assert tops[0] == pytest.approx(float(p[eights].max(1).values.min()))
    assert all(int(row.argmax()) != 8 for row in wrong)


def test_classes_are_matched_by_name() -> None:
    data, model = tiny_data(), fitted("source", 7)
    turned = data.only(tuple("9876543210"))
    assert torch.equal(diagnose(model, data, n=6).mask, diagnose(model, turned, n=6).mask)


class Joined(nn.Module):
    """A block of two branches, a sum or side by side, before another one; then pooling and a linear layer."""

    def __init__(self, sum_: bool) -> None:
        super().__init__()
        self.stem, self.sum = nn.Conv2d(1, 6, 3, padding=1), sum_
        self.a, self.b = nn.Conv2d(6, 6, 3, padding=1), nn.Conv2d(6, 6, 1)
        self.end = nn.Identity()
        self.linear = nn.Linear(6 if sum_ else 12, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        a, b = self.a(x.relu()), self.b(x.relu())
        x = self.end((a + b if self.sum else torch.cat([a, b], 1)).relu())
        return self.linear(x.mean((2, 3)))


def test_channels_are_those_of_the_last_convolution_if_it_is_no_branch_of_several() -> None:
    from upcycle.zoo.resnet import ResNet

    def found(net: nn.Module) -> str | None:
        place = channel_map(net.eval().requires_grad_(False), X)
        return place and place.name

    torch.manual_seed(0)
    assert found(tiny_net()) == "conv2"
    assert found(ResNet((1, 1, 1), 10, 1)) == "layer3.0.conv2"  # its shortcut has no convolution
    # Behind the end of the block the gradient is that of the linear layer, for every image.
    assert found(Joined(sum_=True)) == found(Joined(sum_=False)) == "stem"
    assert found(nn.Sequential(nn.Flatten(), nn.Linear(64, 9), nn.ReLU(), nn.Linear(9, 10))) == "2"
    assert found(nn.Sequential(nn.Flatten(), nn.Linear(64, 10))) is None


def test_a_transformer_is_looked_at_where_its_tokens_are() -> None:
    net, data = tiny_vit(0), tiny_data()
    found = diagnose(net, data, n=6)
    assert found.layer is not None and found.layer.kind == "tokens" and found.layer.grid == (2, 2)
    assert found.scores.shape == (10, 16)
    assert ModelDoctor(source=net).check(data) == []


def test_a_class_that_is_never_recognised_is_reported() -> None:
    data, blind = tiny_data(), fitted("blind", 7)
    with torch.no_grad():
        blind.module.linear.bias[8] -= 1000.0
    found = diagnose(blind, data, n=6)
    assert found.unrecognised == {"8": int((data.train.labels == 8).sum())}
    others = [k for k in range(10) if k != 8]
    assert not found.mask[8].any() and found.mask[others].any(1).all() and not found.scores[8].any()
    assert found.concentration[8] is None and all(found.concentration[k] is not None for k in others)
    assert "8" not in {name for *pair, _ in found.shared for name in pair}
    assert found.evaluation.per_class[8] == 0 and json.loads(json.dumps(found.to_json()))["unrecognised"]
    assert all(t.isfinite().all() for t in train(ModelDoctor(source=blind, recipe=SHORT)).values())


def test_a_network_that_recognises_nothing_has_no_channels_to_show() -> None:
    data, wrong = tiny_data(), fitted("wrong", 7)
    with torch.no_grad():
        wrong.module.linear.weight.zero_()
        wrong.module.linear.bias.zero_()
    none = dataclasses.replace(data, train=data.train.subset((data.train.labels != 0).nonzero()[:, 0]))
    found = diagnose(wrong, none)
    assert found.layer is None and found.mask.shape == (10, 0) and found.unrecognised["0"] == 0
    assert found.concentration == [None] * 10 and len(found.unrecognised) == 10


def test_validation_images_that_were_trained_on_are_familiar() -> None:
    data, model = tiny_data(), fitted("source", 7)
    assert not diagnose(model, data).familiar
    split = data.train.subset(torch.arange(0, 160, 2)), data.train.subset(torch.arange(1, 160, 2))
    assert diagnose(model, dataclasses.replace(data, train=split[0], validation=split[1])).familiar


# -- treatment ----------------------------------------


def train(method: ModelDoctor | Plain, seed: int = 0, n: int = 160) -> dict[str, Tensor]:
    return method.fit(Run(None, seed=seed, precision="32-true", quiet=True), tiny_data(n)).state_dict()


@pytest.fixture(scope="module")
def control() -> dict[str, Tensor]:
    return train(ModelDoctor(source=fitted("source", 7), a=0.0, recipe=SHORT))


def test_without_penalties_it_is_plain_training_bit_for_bit(control: dict[str, Tensor]) -> None:
    model = fitted("source", 7)
    plain = train(Plain(student=model, recipe=SHORT))
    assert all(torch.equal(plain[key], control[key]) for key in plain)


def test_each_term_moves_the_weights(control: dict[str, Tensor]) -> None:
    for options in ({"a": 0.1}, {"a": 0.0, "b": 0.1, "masks": "gradcam"}, {"a": 0.0, "noise": 1.0}):
        treated = train(ModelDoctor(source=fitted("source", 7), recipe=SHORT, **options))
        assert not torch.equal(treated["linear.weight"], control["linear.weight"]), options
        assert all(t.isfinite().all() for t in treated.values())


def test_treatment_lowers_what_it_penalises_on_images_it_has_not_seen() -> None:
    source, data = fitted("source", 7), tiny_data()
    mask = diagnose(source, data).mask
    x, y, _ = data.test.batch(torch.arange(50), device=torch.device("cpu"))

    def measure(a: float) -> float:
        net = tiny_net().eval()
        net.load_state_dict(train(ModelDoctor(source=source, a=a, recipe=Recipe(epochs=10, batch_size=32, lr=0.01))))
        return float(inner(net, x, y, mask).detach())

    assert measure(0.1) < 0.7 * measure(0.0)


def test_the_product_runs_without_hooks_as_a_fresh_network_with_its_weights() -> None:
    source, data = fitted("source", 7), tiny_data()
    before = {k: v.clone() for k, v in source.module.state_dict().items()}
    method = ModelDoctor(source=source, noise=1.0, recipe=SHORT)
    made = method.product(method.fit(Run(None, quiet=True), data), data)
    again = tiny_net().eval()
    again.load_state_dict(made.module.state_dict())
    assert hooks(made.module) == 0 and torch.equal(made.module(X), again(X))
    assert made.classes == source.classes and made.reference == source.reference
    assert all(torch.equal(v, before[k]) for k, v in source.module.state_dict().items())


def test_from_scratch_forgets_the_trained_weights(control: dict[str, Tensor]) -> None:
    once = Recipe(epochs=1, batch_size=32, lr=1e-6)
    started, loaded = (
        train(ModelDoctor(source=fitted("source", 7), recipe=once, from_scratch=f)) for f in (True, False)
    )
    trained = fitted("source", 7).module.state_dict()
    assert torch.allclose(loaded["conv2.weight"], trained["conv2.weight"], atol=1e-3)
    assert float((started["conv2.weight"] - trained["conv2.weight"]).abs().max()) > 0.05


def test_the_pictures_and_the_note_of_a_run(tmp_path) -> None:  # type: ignore[no-untyped-def]
    run = Run(tmp_path, quiet=True)
    ModelDoctor(source=fitted("source", 7), recipe=SHORT).fit(run, tiny_data())
    for name in ("1-before", "2-after"):
        picture = json.loads((tmp_path / "pictures" / f"channels-{name}.json").read_text())
        assert picture["kind"] == "heatmap" and len(picture["rows"]) == 10
        assert sorted(map(int, picture["columns"])) == list(range(16))
        assert all(0 <= v <= 1 for row in picture["values"] for v in row)
    assert any("conv2" in note for note in run.notes)
    run.close()
    names = {line.split(",")[3] for line in (tmp_path / "metrics.csv").read_text().splitlines()[1:]}
    assert {"loss", "channel_loss", "validation_accuracy"} <= names


# -- what is refused ----------------------------------------


class Once(torch.autograd.Function):
    """A ReLU whose backward has no derivative."""

    @staticmethod
    def forward(ctx, x):  # type: ignore[no-untyped-def]
        ctx.save_for_backward(x)
        return x.relu()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, g):  # type: ignore[no-untyped-def]
        return g * (ctx.saved_tensors[0] > 0)


class OnceNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.linear = nn.Conv2d(1, 6, 3), nn.Linear(6, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(Once.apply(self.conv(x)).mean((2, 3)))


class Attending(nn.Module):
    """Attention by the library's function, of whose fast kernels none has a second derivative."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.linear = nn.Conv2d(1, 8, 2, stride=2), nn.Linear(8, 10)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.conv(x).flatten(2).mT[:, None].contiguous()
        return self.linear(nn.functional.scaled_dot_product_attention(tokens, tokens, tokens).mean((1, 2)))


def test_a_network_with_attention_can_be_differentiated_twice() -> None:
    module = Attending()
    require_penalty(module, "conv", torch.rand(4, 1, 8, 8))
    assert all(p.grad is None for p in module.parameters())


def refused(module: nn.Module, match: str, n: int = 160, **options) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(UserError, match=match):
        ModelDoctor(source=module, **options).require(tiny_data(n))


def test_networks_that_cannot_be_treated_are_refused() -> None:
    refused(nn.Sequential(nn.Flatten(), nn.Linear(64, 10)), "no features between")
    refused(OnceNet(), "differentiated twice")
    assert ModelDoctor(source=OnceNet(), a=0.0).check(tiny_data()) == []
    headless = nn.Sequential(nn.Conv2d(1, 10, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    refused(headless, "No weight follows '0'")
    refused(tiny_net(), "submodule.*'conv3'", layer="conv3")
    refused(tiny_net(), "not maps", layer="linear")


def test_data_that_cannot_serve_are_refused() -> None:
    model, data = fitted("source", 7), tiny_data()
    hidden = data.hide_labels(2, 0)
    assert "labels" in ModelDoctor(source=model).check(hidden)[0]
    no_eights = dataclasses.replace(data, train=data.train.subset((data.train.labels != 8).nonzero()[:, 0]))
    assert "no labelled training image of 8" in ModelDoctor(source=model).check(no_eights)[0]
    blind = fitted("blind", 7)
    with torch.no_grad():
        blind.module.linear.bias[8] -= 1000.0
    fewer = dataclasses.replace(model, classes=tuple("012345678"))
    assert "9 classes" in ModelDoctor(source=fewer).check(data)[0]
    grey = Model(module=tiny_net(), input_shape=(3, 8, 8), mean=(0.5,) * 3, std=(0.5,) * 3, classes=data.classes)
    assert "3 input channels" in ModelDoctor(source=grey).check(data)[0]


@pytest.mark.parametrize("options", [{"a": -1.0}, {"b": math.inf}, {"theta": 1.0}, {"n": 0}, {"noise": math.nan}])
def test_wrong_values_are_refused(options) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(UserError, match=next(iter(options))):
        ModelDoctor(source=tiny_net(), **options)


def test_the_spatial_term_needs_masks(tmp_path) -> None:  # type: ignore[no-untyped-def]
    refused(tiny_net(), "needs masks", b=1.0)
    refused(tiny_net(), "no masks at", b=1.0, masks=str(tmp_path / "none"))
    assert ModelDoctor(source=tiny_net(), b=1.0, masks="gradcam").check(tiny_data()) == []
