"""ISO: the invariants of its card."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from torch import Tensor, nn

from tests.settings import ROWS, fitted, tiny_data, tiny_model, tiny_net
from upcycle.adaptation.iso import ISO
from upcycle.adaptation.test_time.adapter import StreamAdapter, adapt, moving_parameters
from upcycle.adaptation.test_time.joint_network import JointNetwork, gradient_alignment
from upcycle.adaptation.test_time.losses import SHIFTS, entropy_loss, rotate, rotation_loss, shift_copies, turn_loss
from upcycle.core.errors import UserError
from upcycle.core.evaluate import predict_logits
from upcycle.core.recipe import Recipe
from upcycle.core.run import Run
from upcycle.core.store import tensor_digest
from upcycle.data import Images
from upcycle.zoo.convnet import ConvNet

G = torch.Generator().manual_seed(0)
STREAM = list(torch.randn(9, 1, 1, 8, 8, generator=G).unbind())
BOTH = pytest.mark.parametrize("mode", ["vanilla", "online"])
RECIPE = Recipe(epochs=2, batch_size=32, lr=0.05)


def joint(seed: int = 0, norm: str = "batch") -> JointNetwork:
    model = tiny_model("net", seed)
    if norm == "group":
        torch.manual_seed(seed)
        model = dataclasses.replace(model, module=ConvNet((8, 8, 16), 10, 1, groups=4))
    for m in model.module.modules():  # statistics that one sample would change much
        if isinstance(m, nn.BatchNorm2d):
            m.running_mean.uniform_(-0.5, 0.5)  # type: ignore[union-attr]
            m.running_var.uniform_(0.5, 2.0)  # type: ignore[union-attr]
    return JointNetwork(model).train()


def turning(network: nn.Module, x: Tensor) -> Tensor:
    return rotation_loss(network.turns, x, 4)  # type: ignore[arg-type]


def answers(network: nn.Module, stream: list[Tensor], mode: str, **options: float | str) -> Tensor:
    values = {"steps": 2, "lr": 1e-2, "head": "phi", **options}
    return torch.cat(list(adapt(network, stream, turning, mode=mode, **values)))  # type: ignore[arg-type]


# -- the losses ----------------------------------------


def test_turns_are_turns_and_their_labels_follow() -> None:
    x = torch.randn(3, 2, 5, 5, generator=G)
    views = rotate(x)
    assert torch.equal(views[:3], x) and torch.equal(views[3:6].rot90(-1, (2, 3)), x)
    assert torch.equal(views[9:].rot90(1, (2, 3)), x)
    z = torch.zeros(12, 4)
    z[torch.arange(12), torch.tensor([0] * 3 + [1] * 3 + [2] * 3 + [3] * 3)] = 50.0
    assert float(turn_loss(z)) < 1e-6 < float(turn_loss(z.roll(1, 1)))
    assert float(turn_loss(torch.zeros(12, 4))) == pytest.approx(math.log(4))


def test_copies_are_shifts_of_the_image_that_comes_first() -> None:
    x = torch.randn(2, 1, 6, 6, generator=G)
    views = shift_copies(x, 5).view(5, 2, 1, 6, 6)
    assert torch.equal(views[0], x) and len(set(SHIFTS)) == 25 and SHIFTS[0] == (0, 0)
    for (i, j), view in zip(SHIFTS[:5], views, strict=True):
        assert torch.equal(view[..., 1:-1, 1:-1], x[..., 1 + i : 5 + i, 1 + j : 5 + j])


def test_rotation_loss_asks_all_copies_in_all_turns() -> None:
    seen = []
    loss = rotation_loss(lambda views: (seen.append(views), torch.zeros(len(views), 4))[1], STREAM[0], copies=16)
    assert seen[0].shape == (16, 1, 8, 8) and float(loss) == pytest.approx(math.log(4))
    assert torch.equal(seen[0][:4], shift_copies(STREAM[0], 4))


def test_entropy_of_equal_and_of_certain_answers() -> None:
    assert float(entropy_loss(lambda x: torch.zeros(3, 10), STREAM[0])) == pytest.approx(math.log(10), abs=1e-3)
    assert float(entropy_loss(lambda x: 99 * torch.eye(10), STREAM[0])) == pytest.approx(0, abs=1e-3)


# -- invariant 1 ----------------------------------------


@BOTH
@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
@pytest.mark.parametrize("still", [{"steps": 0}, {"lr": 0.0}])
def test_without_steps_or_rate_the_answers_are_those_of_the_network(
    mode: str, optimizer: str, still: dict[str, float]
) -> None:
    network = joint().eval()
    with torch.no_grad():
        expected = torch.cat([network(x) for x in STREAM])
    assert torch.equal(answers(network, STREAM, mode, optimizer=optimizer, pull=0.1, **still), expected)
    assert not torch.equal(answers(network, STREAM, mode, optimizer=optimizer), expected)


@BOTH
def test_without_steps_the_whole_method_is_joint_training(mode: str) -> None:
    data = tiny_data(96)
    kept = [ISO(source=tiny_model("source", 7), source_data=data, recipe=RECIPE, mode=mode, updates=t, copies=4)  # type: ignore[arg-type]
            .fit(Run(None), data.subset(torch.arange(20))) for t in (0, 1)]  # fmt: skip
    same = tensor_digest(kept[0].state_dict()) == tensor_digest(kept[1].state_dict())
    assert same == (mode == "vanilla")


# -- invariant 2 ----------------------------------------


def test_vanilla_does_not_depend_on_the_order_and_online_does() -> None:
    order = torch.tensor([4, 0, 8, 2, 6, 1, 7, 3, 5])
    for mode in ("vanilla", "online"):
        straight = answers(joint(), STREAM, mode)
        permuted = answers(joint(), [STREAM[i] for i in order], mode)
        assert torch.equal(permuted, straight[order]) == (mode == "vanilla")


# -- invariant 3 ----------------------------------------


@BOTH
@pytest.mark.parametrize("norm", ["batch", "group"])
def test_the_stored_network_and_the_random_state_stay_as_they_were(mode: str, norm: str) -> None:
    network = joint(norm=norm)
    modes = [m.training for m in network.modules()]
    digest, random = tensor_digest(network.state_dict()), torch.get_rng_state()
    answers(network, STREAM, mode)
    assert tensor_digest(network.state_dict()) == digest and torch.equal(torch.get_rng_state(), random)
    assert [m.training for m in network.modules()] == modes
    assert all(p.requires_grad and p.grad is None for p in network.parameters())


@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
def test_online_that_resets_each_time_is_vanilla(optimizer: str) -> None:
    vanilla = answers(joint(), STREAM, "vanilla", optimizer=optimizer)
    assert torch.equal(answers(joint(), STREAM, "online", optimizer=optimizer, reset_every=1), vanilla)
    assert not torch.equal(answers(joint(), STREAM, "online", optimizer=optimizer, reset_every=2), vanilla)


def test_a_reset_takes_weights_buffers_and_the_optimiser_back() -> None:
    network = joint()
    adapter = StreamAdapter(network, turning, mode="online", steps=1, lr=1e-2, head="phi")
    start = tensor_digest(network.state_dict())
    list(adapter.answers(STREAM))
    next(iter(network.buffers())).add_(1)
    assert tensor_digest(network.state_dict()) != start and adapter.optimizer.state
    adapter.reset()
    assert tensor_digest(network.state_dict()) == start and not adapter.optimizer.state


def test_batch_statistics_are_never_used() -> None:
    network, seen = joint(), []
    adapter = StreamAdapter(network, turning, mode="online", steps=1, lr=1e-2, head="phi")
    for m in network.modules():
        if isinstance(m, nn.BatchNorm2d):
            m.register_forward_hook(lambda m, i, o: seen.append(m.training))
    before = {k: v.clone() for k, v in network.named_buffers()}
    list(adapter.answers(STREAM))
    assert seen and not any(seen)
    assert all(torch.equal(v, before[k]) for k, v in network.named_buffers())


# -- what adapts ----------------------------------------


def test_online_keeps_weights_and_optimiser_and_answers_after_the_step() -> None:
    network, by_hand = joint(), joint().eval()
    theta = [p for name, p in by_hand.named_parameters() if not name.startswith("phi")]
    optimizer = torch.optim.Adam(theta, lr=1e-2)
    expected = []
    for x in STREAM:
        optimizer.zero_grad()
        turning(by_hand, x).backward()
        optimizer.step()
        with torch.no_grad():
            expected.append(by_hand(x))
    assert torch.allclose(answers(network, STREAM, "online", steps=1), torch.cat(expected), atol=1e-5)


def test_a_full_pull_leaves_nothing_of_a_step_and_a_half_one_half() -> None:
    network = joint()
    start = [p.detach().clone() for p in network.parameters()]

    def after(pull: float) -> list[Tensor]:
        for p, q in zip(network.parameters(), start, strict=True):
            p.data.copy_(q)
        adapter = StreamAdapter(
            network, turning, mode="online", steps=1, lr=0.1, head="phi", optimizer="sgd", pull=pull
        )
        adapter.answer(STREAM[0])
        return [p.detach().clone() for p in network.parameters()]

    free, half, full = after(0.0), after(0.5), after(1.0)
    assert all(torch.equal(p, q) for p, q in zip(full, start, strict=True))
    assert any(not torch.equal(p, q) for p, q in zip(free, start, strict=True))
    assert all(torch.allclose(h, (f + q) / 2, atol=1e-6) for h, f, q in zip(half, free, start, strict=True))


# -- invariant 5 ----------------------------------------


@pytest.mark.parametrize("params", ["encoder", "all", "norm-affine"])
def test_no_gradient_reaches_what_is_frozen(params: str) -> None:
    network, grads = joint(), []

    def update(loss: Tensor, optimizer: torch.optim.Optimizer) -> None:
        loss.backward()
        grads.append({name: p.grad for name, p in network.named_parameters()})
        optimizer.step()
        optimizer.zero_grad()

    def both(network: nn.Module, x: Tensor) -> Tensor:  # a loss that φ takes part in
        return turning(network, x) + entropy_loss(network, x)

    before = {name: p.detach().clone() for name, p in network.named_parameters()}
    norms = {name for name in before if ".bn" in name}
    expected = {"all": set(before), "norm-affine": norms,
                "encoder": {name for name in before if not name.startswith("phi")}}[params]  # fmt: skip
    adapter = StreamAdapter(network, both, mode="online", steps=1, lr=1e-2, params=params, head="phi", update=update)  # type: ignore[arg-type]
    list(adapter.answers(STREAM[:2]))
    assert {name for name, g in grads[0].items() if g is not None and bool(g.any())} == expected
    assert {name for name, p in network.named_parameters() if not torch.equal(p, before[name])} == expected


def test_any_module_can_adapt_to_its_entropy() -> None:
    network, stream = tiny_net(), [torch.randn(4, 1, 8, 8, generator=G) for _ in range(3)]
    kept = [torch.cat(list(adapt(network, stream, entropy_loss, mode="online", steps=t, lr=1e-2, params="norm-affine")))
            for t in (0, 5)]  # fmt: skip
    sure = [float(entropy_loss(lambda _, z=z: z, stream[0])) for z in kept]
    assert sure[1] < sure[0]


# -- invariant 7 ----------------------------------------


@BOTH
def test_labels_of_the_stream_change_nothing(mode: str) -> None:
    data = tiny_data(64)
    stream = data.train.subset(torch.arange(20))
    found = []
    for labels in (stream.labels, torch.full_like(stream.labels, -1), stream.labels.flip(0)):
        method = ISO(source=tiny_model("source", 7), source_data=data, recipe=RECIPE, mode=mode, copies=4)  # type: ignore[arg-type]
        target = dataclasses.replace(data, train=dataclasses.replace(stream, labels=labels))
        found.append(tensor_digest(method.fit(Run(None), target).state_dict()))
    assert len(set(found)) == 1


# -- the method ----------------------------------------


def test_the_rotation_head_is_taken_apart_and_put_back() -> None:
    model = fitted("source", 7)
    x = model.example(5)
    with torch.no_grad():
        expected = model.module(x)
        taken = JointNetwork(dataclasses.replace(model, module=model.module)).eval()
        z, turns = taken.parts(x)
        assert torch.equal(z, expected) and torch.equal(taken(x), expected)
        assert torch.equal(turns, taken.turns(x)) and turns.shape == (5, 4)
        assert torch.equal(taken.whole()(x), expected)
    assert taken.whole().state_dict().keys() == tiny_net().state_dict().keys()


def test_online_follows_the_stream_as_the_adapter_does_alone() -> None:
    data = tiny_data(160)
    source = tiny_model("source", 7)
    target = dataclasses.replace(data, train=data.train.subset(torch.arange(70)))  # more than a chunk
    method = ISO(source=source, source_data=data, recipe=RECIPE, lr=1e-3, copies=4)
    product = method.fit(Run(None, seed=5), target)

    run, kept = Run(None, seed=5), []
    run.stage("joint", lambda: kept.append(method.train_jointly(run, source, data)) or 0)
    adapter = method.adapter(kept[0])
    images = target.train.batch(torch.arange(70), device=torch.device("cpu")).images
    assert len(list(adapter.answers(images.split(1)))) == 70
    assert tensor_digest(kept[0].whole().state_dict()) == tensor_digest(product.state_dict())


def test_the_stored_source_is_not_touched_and_labels_of_other_orders_are_understood(tmp_path) -> None:  # type: ignore[no-untyped-def]
    data, source = tiny_data(96), tiny_model("source", 7)
    digest = tensor_digest(source.module.state_dict())
    backwards = data.only(tuple(reversed(data.classes)))
    run = Run(tmp_path, seed=1)
    method = ISO(source=source, source_data=backwards, recipe=Recipe(epochs=15, batch_size=32, lr=0.1), copies=4)
    method.require(data)
    product = method.fit(run, data)
    run.close()
    assert tensor_digest(source.module.state_dict()) == digest
    right = (predict_logits(product, data.train).argmax(1) == data.train.labels).double().mean()
    assert float(right) > 0.5  # by chance 0.1, and with the other order of classes below that
    rows = (tmp_path / "metrics.csv").read_text()
    assert "unadapted_accuracy" in rows and "stream_accuracy" in rows and "gradient_cosine" in rows
    assert (tmp_path / "pictures" / "1-stream.json").is_file() and any("ms a sample" in note for note in run.notes)


def test_alignment_is_one_where_both_losses_are_the_same_and_minus_one_where_they_oppose() -> None:
    # φ gives classes 0..3 and so does ψ; of one image in its four turns, made equal, the turn's label is uniform.
    network = joint().eval()
    x, y = torch.ones(3, 1, 8, 8), torch.zeros(3, dtype=torch.long)
    with torch.no_grad():
        network.phi.weight.zero_()
        network.phi.weight[0] = 1.0
        network.phi.bias.zero_()
        network.psi.weight.zero_()
        network.psi.bias.copy_(torch.tensor([0.0, 9.0, 9.0, 9.0]))  # it says 1, 2 or 3: the first logit is too low
        network.psi.weight[0] = 1.0
    assert gradient_alignment(network, x, y) == pytest.approx((1.0, 0.0), abs=1e-4)
    assert gradient_alignment(network, x[:1], y[:1])[1] == 0
    with torch.no_grad():
        network.psi.weight[0] = -1.0
    assert gradient_alignment(network, x, y) == pytest.approx((-1.0, 0.0), abs=1e-4)


# -- bad input ----------------------------------------


def test_a_cosine_below_zero_by_chance_is_not_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    data = tiny_data(64)
    monkeypatch.setattr("upcycle.adaptation.iso.gradient_alignment", lambda *a: (-0.02, 0.011))
    ISO(source=tiny_model("s", 7), source_data=data, recipe=RECIPE, updates=0).fit(Run(None), data)


def test_losses_that_disagree_are_refused_before_any_step(monkeypatch: pytest.MonkeyPatch) -> None:
    data = tiny_data(64)
    monkeypatch.setattr("upcycle.adaptation.iso.gradient_alignment", lambda *a: (-0.2, 0.01))
    monkeypatch.setattr(StreamAdapter, "answer", lambda *a: pytest.fail("it adapted"))
    with pytest.raises(UserError, match=r"Adapting would hurt.*-0\.200 ± 0\.010.*train longer"):
        ISO(source=tiny_model("s", 7), source_data=data, recipe=RECIPE).fit(Run(None), data)


def test_source_images_are_needed_with_labels() -> None:
    data = tiny_data(64)
    with pytest.raises(UserError, match="give source_data"):
        ISO(source=tiny_model("s", 7)).require(data)
    with pytest.raises(UserError, match="give source_data"):
        ISO(source=tiny_model("s", 7)).fit(Run(None), data)
    with pytest.raises(UserError, match="no labelled training images"):
        ISO(source=tiny_model("s", 7), source_data=data.hide_labels(0, 0)).require(data)
    ISO(source=tiny_model("s", 7), source_data=data).require(data.hide_labels(0, 0))


def oblong(data: Images) -> Images:
    cut = {name: dataclasses.replace(getattr(data, name), images=getattr(data, name).images[:, :6])
           for name in ("train", "validation", "test")}  # fmt: skip
    return dataclasses.replace(data, **cut)


def test_images_must_be_square_and_the_network_end_in_a_linear_layer() -> None:
    data = tiny_data(64)
    method = ISO(source=tiny_model("s", 7), source_data=data, recipe=RECIPE)
    with pytest.raises(UserError, match=r"6 x 8, and rotation prediction needs square ones"):
        method.require(oblong(data))
    with pytest.raises(UserError, match="must be square, not 6 x 8"):
        rotate(torch.zeros(1, 1, 6, 8))
    flat = nn.Sequential(nn.Conv2d(1, 10, 8), nn.Flatten())
    with pytest.raises(UserError, match="does not end in a linear layer"):
        ISO(source=flat, source_data=data).require(data)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"copies": 6}, "multiple of 4"),
        ({"copies": 104}, "multiple of 4"),
        ({"pull": 1.5}, "pull must lie between 0 and 1"),
        ({"lr": -1.0}, "lr must not be negative"),
        ({"updates": -1}, "updates must not"),
        ({"lam": float("nan")}, "lam must"),
        ({"mode": "vanilla", "reset_every": 3}, "reset_every is for --mode online"),
    ],
)
def test_options_out_of_range_are_refused(options: dict, words: str) -> None:  # type: ignore[type-arg]
    with pytest.raises(UserError, match=words):
        ISO(source=tiny_model("s", 7), **options)


def test_a_loss_that_is_not_a_number_stops_and_names_the_sample() -> None:
    network = joint()
    stream = [*STREAM[:3], STREAM[3] * float("nan")]
    adapter = StreamAdapter(network, turning, mode="online", steps=1, lr=1e-2, head="phi")
    with pytest.raises(UserError, match="sample 3 of the stream"):
        list(adapter.answers(stream))
    assert all(p.isfinite().all() for p in network.parameters())


def test_what_moves_must_exist() -> None:
    with pytest.raises(UserError, match="head= the name"):
        moving_parameters(tiny_net(), "encoder")
    with pytest.raises(UserError, match="no parameters"):
        moving_parameters(nn.Linear(2, 2), "norm-affine")


def test_estimates_count_both_stages() -> None:
    data = tiny_data(96)
    method = ISO(source=tiny_model("s", 7), source_data=data, recipe=RECIPE, mode="vanilla", copies=8)
    assert method.steps(10) == 2 * 3 + 10 * 5
    assert method.work(10, 0, 100) == 3 * 100 * (4 * 2 * 96 + 5 * 8 * 10) + 100 * 10
    assert ROWS["iso"].make().options().keys() == method.options().keys()
    assert "source_data" not in method.options()
