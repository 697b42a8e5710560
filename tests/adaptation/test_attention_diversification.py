"""Attention diversification: the invariants of its card, where the maps are, the stages, and bad input."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.settings import tiny_data, tiny_model, tiny_net
from upcycle.adaptation import AttentionDiversification
from upcycle.adaptation.attention_diversification import (
    Expanded,
    attention,
    channels_each,
    find_maps,
    inter_losses,
    intra_loss,
    select_top,
    union_attention,
)
from upcycle.core.errors import UserError
from upcycle.core.losses import ce_loss
from upcycle.core.recipe import Recipe
from upcycle.core.references import resolve
from upcycle.core.run import Run

RECIPE = Recipe(epochs=2, batch_size=64, lr=0.05)
DOMAINS = torch.arange(160) % 2


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def stages(m: int, n: int = 6, p: int = 9) -> Tensor:
    """Attention of m models, (m, n, p)."""
    return drawn(m, n, p).mul(3).softmax(2)


def made(**options: Any) -> AttentionDiversification:
    given = {"student": tiny_net(1), "domains": DOMAINS, "recipe": RECIPE, **options}
    return AttentionDiversification(**given)


# -- the losses ----------------------------------------


@pytest.mark.parametrize("k", [1, 3, 12])
def test_attention_sums_to_one_and_everything_lies_between_nought_and_one(k: int) -> None:
    a = attention(drawn(5, 12, 4, 6) * 10)
    assert a.shape == (5, 12, 24) and torch.allclose(a.sum(2), torch.ones(5, 12))
    r = select_top(a, k)
    assert r.shape == (5, 24) and float(r.min()) >= 0 and float(r.max()) <= 1
    assert 0 <= float(intra_loss(a, k)) <= 1


@pytest.mark.parametrize("k", [1, 3])
def test_intra_loss_is_nought_when_k_channels_have_each_position_to_themselves(k: int) -> None:
    p = 16
    focus = torch.arange(k * p) % p
    apart = torch.eye(p)[focus].expand(2, -1, -1)
    assert float(intra_loss(apart, k)) == 0.0
    together = torch.eye(p)[torch.full_like(focus, 5)].expand(2, -1, -1)
    assert float(intra_loss(together, k)) == pytest.approx(1 - 1 / p)
    maps = (apart * 100).view(2, k * p, 4, 4)  # the same through the softmax
    assert float(intra_loss(attention(maps), k)) == pytest.approx(0.0, abs=1e-6)


def test_descending_the_intra_loss_spreads_the_channels() -> None:
    z = (drawn(1, 16, 4, 4) * 0.1).requires_grad_()
    with torch.no_grad():
        z[:, :, 0, 0] += 2  # all look at the corner
    optimizer = torch.optim.Adam([z], lr=0.1)
    for _ in range(300):
        loss = intra_loss(attention(z), 1)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert float(loss.detach()) < 0.5  # from 0.93
    assert len(z.detach().flatten(2).argmax(2).unique()) >= 8  # from 1


def test_the_union_is_that_of_the_members_and_nought_without_one() -> None:
    v = stages(3).requires_grad_()
    members = torch.tensor([[1, 0, 0, 1, 1, 0], [1, 1, 0, 0, 1, 0], [0, 0, 0, 1, 1, 0]]).bool()
    u = union_attention(v, members)
    assert not u.requires_grad
    assert torch.equal(u[0], torch.maximum(v[0, 0], v[1, 0])) and torch.equal(u[1], v[1, 1])
    assert torch.equal(u[2], torch.zeros(9)) and torch.equal(u[4], v[:, 4].amax(0))


def test_all_right_leaves_nothing_to_leave_and_all_wrong_nothing_to_join() -> None:
    v = stages(3)
    direct, diverge = inter_losses(v, torch.ones(3, 6).bool())
    assert float(diverge) == 0 and float(direct) > 0
    direct, diverge = inter_losses(v, torch.zeros(3, 6).bool())
    assert float(direct) == 0 and float(diverge) > 0


def test_a_student_alone_that_is_right_is_where_it_should_be() -> None:
    direct, diverge = inter_losses(stages(1), torch.ones(1, 6).bool())
    assert float(direct) == 0 and float(diverge) == 0


def test_only_the_student_gets_a_gradient_and_the_unions_carry_none() -> None:
    v, right = stages(3).double(), torch.arange(18).view(3, 6) % 4 < 2
    leaves = [one.clone().requires_grad_() for one in v]
    direct, diverge = inter_losses(torch.stack(leaves), right)
    (200 * direct - diverge).backward()
    for expert in leaves[1:]:
        assert expert.grad is not None and float(expert.grad.abs().max()) == 0
    up, down = union_attention(v, right), union_attention(v, ~right)  # numbers
    expected = 2 * (200 * (v[0] * (up > 0) - up) * (up > 0) - (v[0] * (down > 0) - down) * (down > 0)) / v[0].numel()
    assert torch.allclose(leaves[0].grad, expected)


def test_the_released_divergence_is_the_energy_of_the_student_where_somebody_is_wrong() -> None:
    v, right = stages(2), torch.tensor([[1, 1, 1, 0, 0, 1], [1, 0, 1, 1, 0, 1]]).bool()
    wrong = torch.tensor([0, 1, 0, 1, 1, 0])[:, None]
    assert torch.allclose(inter_losses(v, right, t=0.0)[1], (v[0] * wrong).square().mean())
    assert torch.allclose(inter_losses(v, right, t=0.0)[0], inter_losses(v, right)[0])


def test_k_of_the_paper_and_of_small_networks() -> None:
    assert channels_each(2048, 7, 7) == 10
    assert channels_each(64, 7, 7) == channels_each(16, 4, 4) == 1
    assert made().k == 0


# -- where the maps are ----------------------------------------


@pytest.mark.parametrize(
    ("reference", "size", "last", "stages"),
    [
        ("zoo:convnet_small", 28, "block3", ("block1", "block2", "block3")),
        ("zoo:resnet8", 32, "layer3", ("layer1", "layer2", "layer3")),
        ("zoo:densenet", 32, "relu", None),
        ("zoo:vgg", 32, "features", None),
        ("zoo:mobilenetv2", 32, None, None),
    ],
)
def test_the_map_before_the_pooling_and_one_for_each_resolution_are_found(
    reference: str, size: int, last: str | None, stages: tuple[str, ...] | None
) -> None:
    torch.manual_seed(0)
    model = resolve(reference, pretrained=False, input_shape=(3, size, size))
    maps = find_maps(model)
    assert maps.last == (last or maps.last) and maps.stages == (stages or maps.stages)
    images, branch = model.example(3), Expanded(model.module, maps).eval()
    y, y_z, z, f = branch(images)
    assert torch.equal(y, model.module(images)) and y_z.shape == y.shape
    c, h, w = maps.shape
    assert z.shape == (3, c, 2 * h, 2 * w)
    sizes = [one.shape[2] for one in f]
    assert 1 < len(sizes) <= 4 and sizes == sorted(set(sizes), reverse=True) and f[-1].shape[1:] == maps.shape
    head = model.module.get_submodule(maps.classifier)
    assert torch.allclose(head(f[-1].mean((2, 3))), y, atol=1e-5)  # type: ignore[operator]


@pytest.mark.parametrize("reference", ["zoo:lenet", "zoo:vit", "zoo:mlp"])
def test_networks_whose_classifier_reads_no_pooled_map_are_refused(reference: str) -> None:
    model = resolve(reference, pretrained=False, input_shape=(3, 32, 32))
    with pytest.raises(UserError, match="global average pooling"):
        find_maps(model)


def test_a_map_of_one_position_is_refused() -> None:
    model = dataclasses.replace(tiny_model("student", 0), input_shape=(1, 2, 2))
    with pytest.raises(UserError, match="larger images"):
        find_maps(model)


# -- the method ----------------------------------------


def test_without_weights_it_is_pooled_erm_with_the_mean_of_two_logits() -> None:
    data = tiny_data()
    found = made(epochs_domain=0, w_intra=0.0).fit(Run(None, precision="32-true"), data)

    run = Run(None, precision="32-true")
    student = made().model("student", data)

    def train() -> dict[str, Tensor]:
        m, optimizer = run.setup(Expanded(student.module, find_maps(student)), RECIPE)
        for _ in run.epochs(RECIPE.epochs):
            m.train()
            for images, labels, _ in run.batches(data.train, RECIPE.batch_size, save_within=True):
                RECIPE.schedule_rate(optimizer, run.progress)
                x = m.network.relu2(m.network.bn2(m.network.conv2(m.network.pool1(
                    m.network.relu1(m.network.bn1(m.network.conv1(images)))))))  # fmt: skip
                logits = [m.network.linear(f.mean((2, 3))) for f in (x, m.expansion(x))]
                run.backward(sum(ce_loss(y, labels) for y in logits) / 2)
                run.update(optimizer)
        return run.plain(m).network.state_dict()  # type: ignore[union-attr]

    expected = run.stage("all domains", train)
    for name, value in found.state_dict().items():
        assert torch.allclose(value, expected[name], atol=1e-5), name


class Noting(Run):
    """Notes the stages, and of how many images their batches are drawn."""

    def __init__(self) -> None:
        super().__init__(None, precision="32-true")
        self.seen: dict[str, set[tuple[int, ...]]] = {}
        self.tracked: dict[str, set[str]] = {}

    def batches(self, split: Any, *args: Any, **kwargs: Any) -> Any:
        self.seen.setdefault(self._stages.path, set()).add(tuple(split.ids.tolist()))
        return super().batches(split, *args, **kwargs)

    def track(self, **values: Tensor) -> None:
        self.tracked.setdefault(self._stages.path, set()).update(values)
        super().track(**values)


def test_each_domain_has_its_model_and_all_train_the_last_two() -> None:
    data, domains = tiny_data(), torch.where(torch.arange(160) < 70, 1, 0)
    run = Noting()
    options: dict[str, Any] = {"domains": domains, "epochs_domain": 1, "epochs_inter": 1, "p_intra": 1.0}
    method = made(**options, p_inter=1.0, p_intra_inter=0.0)
    method.fit(run, data)
    ids = data.train.ids
    assert run.seen == {
        "main/domain 0": {tuple(ids[domains == 0].tolist())},
        "main/domain 1": {tuple(ids[domains == 1].tolist())},
        "main/all domains": {tuple(ids.tolist())},
        "main/inter": {tuple(ids.tolist())},
    }
    assert run.tracked["main/domain 0"] == run.tracked["main/all domains"] == {"loss", "intra"}
    assert run.tracked["main/inter"] == {"loss", "direct", "diverge"}
    assert run.updates == method.steps(160)

    alone = Noting()
    method = made(**{**options, "epochs_domain": 0})
    method.fit(alone, data)
    assert set(alone.seen) == {"main/all domains"} and alone.updates == method.steps(160)


def test_the_experts_neither_learn_nor_change_their_statistics() -> None:
    data, method = tiny_data(), made()
    student = method.model("student", data)
    maps = find_maps(student)
    experts = [tiny_net(7), tiny_net(8)]
    before = [{k: v.clone() for k, v in m.state_dict().items()} for m in experts]
    m0 = Expanded(student.module, maps)
    run = Run(None, precision="32-true")
    method.p_inter = 1.0
    method._train(run, data, data.train, RECIPE, m0, experts)
    for m, state in zip(experts, before, strict=True):
        assert all(p.grad is None for p in m.parameters())
        assert all(torch.equal(v, state[k]) for k, v in m.state_dict().items())


def test_the_weights_of_stage_three_move_the_student() -> None:
    data, ends = tiny_data(), {}
    for name, options in {"none": {"w_dir": 0.0, "w_dvr": 0.0}, "dir": {"w_dvr": 0.0}, "dvr": {"w_dir": 0.0},
                          "zero": {"w_dir": 0.0, "dvr_target": "zero"}}.items():  # fmt: skip
        method = made(epochs_domain=1, epochs_inter=1, p_inter=1.0, lr_inter=0.05, **options)
        ends[name] = method.fit(Run(None, precision="32-true"), data).conv2.weight  # type: ignore[union-attr]
    for a in ends:
        for b in ends:
            assert torch.equal(ends[a], ends[b]) == (a == b), (a, b)


def test_the_weights_of_stage_three_follow_the_size_of_the_map(monkeypatch: pytest.MonkeyPatch) -> None:
    def end(**options: Any) -> Tensor:
        method = made(epochs_domain=1, epochs_inter=1, p_inter=1.0, lr_inter=0.05, **options)
        return method.fit(Run(None, precision="32-true"), tiny_data()).conv2.weight  # type: ignore[return-value]

    scaled = end(w_dir=490.0, w_dvr=98.0)
    monkeypatch.setattr("upcycle.adaptation.attention_diversification.POSITIONS", 16)  # of the 4 x 4 map
    assert torch.allclose(end(w_dir=490 * (16 / 49) ** 2, w_dvr=98 * (16 / 49) ** 2), scaled, atol=1e-5)
    assert not torch.allclose(end(w_dir=490.0, w_dvr=98.0), scaled, atol=1e-4)


def test_the_product_has_the_parameters_of_the_network_and_gives_y() -> None:
    data, trained = tiny_data(), []

    class Keeping(AttentionDiversification):
        def _train(self, *args: Any) -> nn.Module:
            trained.append(super()._train(*args))
            return trained[-1]

    method = Keeping(student=tiny_net(1), domains=DOMAINS, recipe=RECIPE, epochs_domain=1, epochs_inter=1)
    net = method.fit(Run(None, precision="32-true"), data)
    plain = tiny_net()
    assert type(net) is type(plain)
    assert {k: v.shape for k, v in net.state_dict().items()} == {k: v.shape for k, v in plain.state_dict().items()}
    images = data.test.batch(torch.arange(50), device=torch.device("cpu")).images
    y, y_z, _, _ = trained[-1](images)
    assert torch.equal(net(images), y) and not torch.allclose(y, y_z, atol=1e-3)


def test_the_coins_are_the_share_asked_for_and_fall_alike_again() -> None:
    from upcycle.adaptation.attention_diversification import _heads

    def thrown(seed: int, name: str, p: float) -> list[bool]:
        run, found = Run(None, seed=seed), []
        for _ in run.epochs(3):
            found += [_heads(run, name, p) for _ in run.batches(tiny_data().train, 2, save_within=True)]
        return found

    one = thrown(0, "intra", 0.2)
    assert len(one) == 240 and abs(sum(one) / 240 - 0.2) < 4 * math.sqrt(0.16 / 240)
    assert one == thrown(0, "intra", 0.2) != thrown(1, "intra", 0.2) and one != thrown(0, "inter", 0.2)
    assert all(thrown(0, "intra", 1.0)) and not any(thrown(0, "intra", 0.0))


# -- bad input ----------------------------------------


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"domains": torch.zeros(160, dtype=torch.int64)}, "single domain"),
        ({"domains": DOMAINS.float()}, "int64"),
        ({"domains": DOMAINS - 1}, "from 0"),
        ({"domains": DOMAINS * 2}, "number 1 has fewer"),
        ({"k": -1}, "k must not be negative"),
        ({"w_dir": -1.0}, "w_dir must not be negative"),
        ({"p_inter": 1.5}, "p_inter must lie"),
        ({"epochs_domain": -1}, "epochs_domain"),
        ({"epochs_inter": 0}, "epochs_inter must be at least 1"),
        ({"lr_inter": 0.0}, "lr_inter"),
    ],
)
def test_a_wrong_option_is_one_sentence(options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        made(**options)


def test_what_does_not_fit_the_data_is_said_before_any_work() -> None:
    data = tiny_data()
    assert made().check(data) == []
    for options, sentence in (
        ({"domains": DOMAINS[:100]}, "100 numbers, and there are 160"),
        ({"k": 17}, "has 16 channels"),
        ({"layers": ("conv3",)}, "'conv3' is no submodule"),
        ({"layers": ("linear",)}, "'linear' is no submodule"),
        ({"student": nn.Sequential(nn.Flatten(), nn.Linear(64, 10))}, "global average pooling"),
    ):
        with pytest.raises(UserError, match=sentence):
            made(**options).require(data)
    with pytest.raises(UserError, match="have none"):
        made().require(data.hide_labels(3, 0))
    with pytest.raises(UserError, match="build it for them"):
        made(student=tiny_model("student", 0)).require(data.only(("0", "1")))


def test_named_layers_are_those_compared() -> None:
    maps = find_maps(made().model("student", tiny_data()), ("conv1", "bn2"))
    assert maps.stages == ("conv1", "bn2") and maps.last == "relu2" and maps.shape == (16, 4, 4)
