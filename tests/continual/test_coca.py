"""CoCa: the invariants of its card."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.settings import TinyNet, tiny_data, tiny_model, tiny_stream
from upcycle.continual import CoCa, DERpp
from upcycle.continual.coca import (
    R,
    affinity,
    assign_rotations,
    propagate_logits,
    random_crop,
    rotate,
    supcon_loss,
    without,
)
from upcycle.continual.protocol.replay import Replay, logit_loss
from upcycle.core.errors import UserError
from upcycle.core.heads import with_classes
from upcycle.core.losses import cross_entropy
from upcycle.core.recipe import Recipe
from upcycle.core.run import Run
from upcycle.core.store import tensor_digest
from upcycle.data.augment import uniform
from upcycle.data.buffer import Buffer
from upcycle.data.stream_kinds import stream
from upcycle.data.streams import Stream

RECIPE = Recipe(epochs=1, batch_size=16, lr=0.05, momentum=0.9, weight_decay=1e-3, schedule="constant")
G = torch.Generator().manual_seed(0)
Z = torch.randn(9, 5, generator=G, dtype=torch.float64)
V = F.normalize(torch.randn(9, 64, generator=G, dtype=torch.float64))
ONES = torch.ones(9, dtype=torch.float64)


def fit(cls: Any, data: Stream | None = None, seed: int = 0, **options: Any) -> tuple[nn.Module, Run]:
    data = data or tiny_stream()(160)
    method = cls(**{"student": tiny_model("student", 3), "recipe": RECIPE, **options})
    method.require(data)
    run = Run(None, seed=seed, quiet=True)
    return method.fit(run, data), run


def digest(found: tuple[nn.Module, Any]) -> str:
    return tensor_digest(found[0].state_dict())


# -- invariant 1: the averages are averages ---------------------------------------------------------------------


@pytest.mark.parametrize("omega", [0.0, 0.1, 0.9])
def test_rows_sum_to_one_and_equal_logits_stay(omega: float) -> None:
    assert torch.allclose(affinity(V).sum(1), ONES)
    assert torch.allclose(propagate_logits(torch.eye(9).double(), V, omega).sum(1), ONES)
    same = Z[:1].expand(9, 5)
    assert torch.allclose(propagate_logits(same, V, omega), same)


def test_it_is_what_repeated_averaging_tends_to() -> None:
    A, S = affinity(V), Z
    for _ in range(60):
        S = 0.4 * A @ S + 0.6 * Z
    assert torch.allclose(propagate_logits(Z, V, 0.4), S)


def test_an_image_is_told_from_itself_by_a_tenth_only() -> None:
    A = affinity(V)
    expected = (V @ V.T).exp()
    expected.fill_diagonal_(float(torch.tensor(0.9).double().exp()))
    assert torch.allclose(A, expected / expected.sum(1, keepdim=True))


# -- invariant 2: limit cases -----------------------------------------------------------------------------------


def test_without_omega_logits_are_their_own_average() -> None:
    assert torch.allclose(propagate_logits(Z, V, 0.0), Z)


@pytest.mark.parametrize("beta", [0.5, 0.0])
def test_without_gamma_and_self_supervision_it_is_derpp_to_the_bit(beta: float) -> None:
    expected, derpp = fit(DERpp, replay=Replay(images=20), beta=beta)
    found, coca = fit(CoCa, replay=Replay(images=20), beta=beta, gamma=0.0, w_sc=0.0, w_rot=0.0)
    assert tensor_digest(found.state_dict()) == tensor_digest(expected.state_dict())
    for key in ("ids", "logits"):
        assert coca.left["kept"].state["buffer"][key].equal(derpp.left["kept"].state["buffer"][key])
    assert coca.left["scores"].passes == derpp.left["scores"].passes


def test_each_part_changes_the_network() -> None:
    options = {"replay": Replay(images=20), "gamma": 0.0, "w_sc": 0.0, "w_rot": 0.0}
    plain = digest(fit(CoCa, **options))
    parts = [digest(fit(CoCa, **{**options, **part})) for part in ({"gamma": 0.5}, {"w_sc": 0.3}, {"w_rot": 0.3})]
    assert len({plain, *parts}) == 4


def test_self_supervision_without_a_label_of_the_memory_replays_in_it_all_the_same() -> None:
    _, with_labels = fit(CoCa, replay=Replay(images=20))
    _, without = fit(CoCa, replay=Replay(images=20), beta=0.0)
    assert with_labels.left["kept"].state["buffer"]["drawn"] == without.left["kept"].state["buffer"]["drawn"] > 0


# -- invariant 3: the target is fixed ---------------------------------------------------------------------------


def test_no_gradient_reaches_the_average() -> None:
    z, v = Z.clone().requires_grad_(), V.clone().requires_grad_()
    stored = torch.randn(9, 5, generator=G).double()
    S = propagate_logits(z, v, 0.1)
    assert not S.requires_grad
    target = 0.7 * stored + 0.3 * S
    loss = logit_loss(z, target, 9)
    assert torch.allclose(loss, F.mse_loss(Z, target))
    loss.backward()
    assert v.grad is None and z.grad is not None
    assert torch.allclose(z.grad, 2 * (Z - target) / Z.numel())  # that of a constant target


def test_distillation_alone_leaves_the_heads() -> None:
    def state(epochs: int) -> dict[str, Tensor]:
        recipe = Recipe(epochs=epochs, batch_size=16, lr=0.5, weight_decay=0.0, schedule="constant")
        _, run = fit(CoCa, replay=Replay(images=20), gamma=1.0, w_sc=0.0, w_rot=0.0, recipe=recipe)
        heads: dict[str, Tensor] = run.left["kept"].state["v"]
        return {name: value for name, value in heads.items() if name.endswith(("weight", "bias"))}

    one, three = state(1), state(3)
    assert one and all(one[name].equal(three[name]) for name in one)


# -- invariants 4 and 5: the memory (more in test_buffer.py) ----------------------------------------------------


def test_every_image_of_the_stream_stays_with_the_same_probability() -> None:
    split, counts, seeds = tiny_data(80).train, torch.zeros(80), 400
    for seed in range(seeds):
        buffer = Buffer(20, split, logits=1, seed=seed)
        for index in torch.arange(80).split(16):
            buffer.put(split.images[index], split.labels[index], index, index[:, None].float())
        counts[buffer.logits[:, 0].long()] += 1
    deviation = (seeds * 0.25 * 0.75) ** 0.5
    assert counts.sum() == 20 * seeds and float((counts - seeds * 0.25).abs().max()) < 4.5 * deviation


def test_stored_logits_are_those_of_the_step_that_saw_the_image() -> None:
    data, method = stream(tiny_data(48), tasks="1", scenario="general"), CoCa(student=tiny_model("s", 3), recipe=RECIPE)
    run = Run(None, precision="32-true", quiet=True)
    method.fit(run, data)
    state = run.left["kept"].state["buffer"]  # larger than the stream: nothing was overwritten
    first = data.task(0).train.batch(torch.arange(16), device=torch.device("cpu"))
    expected = tiny_model("student", 3).module.train()(first.images)
    assert len(state["labels"]) == 48
    assert torch.allclose(state["logits"][:16], expected, atol=1e-6) and state["labels"][:16].equal(first.labels)


# -- invariant 6: transforms ------------------------------------------------------------------------------------


def test_unturned_is_as_it_was_and_four_quarters_are_a_whole() -> None:
    images = torch.randn(5, 2, 6, 6, generator=G)
    assert rotate(images, torch.zeros(5, dtype=torch.int64)).equal(images)
    s = torch.tensor([0, 1, 2, 3, 1])
    assert rotate(images, s)[1].equal(images[1].rot90(1, (1, 2)))
    assert rotate(rotate(images, s), (R - s) % R).equal(images)


@pytest.mark.parametrize("n", [8, 11, 64])
def test_transforms_are_balanced_and_drawn(n: int) -> None:
    draws = [assign_rotations(uniform(0, step, torch.arange(n), "transforms", 4)[:, 0]) for step in (1, 2)]
    for s in draws:
        assert set(s.bincount(minlength=R).tolist()) <= {n // R, -(-n // R)}
    assert not draws[0].equal(draws[1])


def test_zoom_shows_two_thirds_of_the_image() -> None:
    ramp = torch.linspace(0, 1, 32).expand(1, 1, 32, 32)
    u = torch.rand(200, 3, generator=G, dtype=torch.float64)
    seen = random_crop(ramp.expand(200, 1, 32, 32), u)
    side = (seen[:, 0, 0, -2] - seen[:, 0, 0, 1]) * 31 / 29  # in the middle, away from the border
    assert torch.allclose(side.square(), torch.tensor(0.665), atol=0.006)
    assert float(seen.min()) >= 0 and float(seen.max()) <= 1
    assert float(seen[:, 0, 0, 0].min()) < 0.01 and float(seen[:, 0, 0, -1].max()) > 0.99  # from border to border
    constant = torch.full((200, 1, 8, 8), 0.7)
    assert torch.allclose(random_crop(constant, u), constant)  # nothing from outside


# -- invariant 7: SupCon ----------------------------------------------------------------------------------------


def test_supcon_knows_no_order_of_images_or_views() -> None:
    first, second = V, F.normalize(torch.randn(9, 64, generator=G, dtype=torch.float64))
    y = torch.tensor([0, 1, 2, 0, 1, 2, 0, 1, 5])
    loss = supcon_loss(first, second, y, 0.07)
    order = torch.randperm(9, generator=G)
    assert torch.allclose(loss, supcon_loss(first[order], second[order], y[order], 0.07))
    assert torch.allclose(loss, supcon_loss(second, first, y, 0.07))


def test_supcon_by_hand() -> None:
    first, second = (F.normalize(torch.randn(3, 4, generator=G)) for _ in range(2))
    y = torch.tensor([0, 1, 0])
    v, classes = torch.cat([first, second]), torch.cat([y, y])
    anchors = []
    for i in range(6):
        others = [j for j in range(6) if j != i]
        logits = torch.stack([v[i] @ v[j] / 0.1 for j in others])
        positive = torch.tensor([bool(classes[i] == classes[j]) for j in others])
        anchors.append(-logits.log_softmax(0)[positive].mean())
    assert torch.allclose(supcon_loss(first, second, y, 0.1), torch.stack(anchors).mean(), atol=1e-6)


def test_supcon_has_finite_gradients() -> None:
    v = V.float().clone().requires_grad_()
    supcon_loss(F.normalize(v), F.normalize(v.flip(0)), torch.arange(9), 0.07).backward()
    assert v.grad is not None and v.grad.isfinite().all() and float(v.grad.abs().max()) > 0


# -- boundaries -------------------------------------------------------------------------------------------------


def test_only_the_columns_of_a_task_compete() -> None:
    z, y = torch.randn(4, 6, generator=G, requires_grad=True), torch.tensor([2, 3, 3, 2])
    loss = cross_entropy(z.masked_fill(without(6, (2, 3)), -torch.inf), y, 4)
    assert torch.allclose(loss, F.cross_entropy(z[:, 2:4], y - 2))
    loss.backward()
    assert z.grad is not None and not z.grad[:, [0, 1, 4, 5]].any()


def test_with_boundaries_outputs_of_classes_to_come_rest() -> None:
    whole = tiny_stream()(160)
    first = Stream(name="first", scenario="class", classes=whole.classes, tasks=whole.tasks[:1], make=whole.make,
                   base=whole.base, order={})  # fmt: skip
    before = tiny_model("student", 3).module.linear.weight.detach()
    recipe = Recipe(epochs=1, batch_size=16, lr=0.05, momentum=0.0, weight_decay=0.0, schedule="constant")
    for boundaries in (True, False):
        net, run = fit(CoCa, first, replay=Replay(images=20), alpha=0.0, boundaries=boundaries, recipe=recipe)
        assert isinstance(net, TinyNet)
        assert net.linear.weight[2:].equal(before[2:]) == boundaries and not net.linear.weight[:2].equal(before[:2])
        assert ("told the boundaries" in run.left["scores"].protocol) == boundaries


# -- behaviour --------------------------------------------------------------------------------------------------


def test_what_comes_back_is_the_network_that_came() -> None:
    net, run = fit(CoCa, replay=Replay(images=20))
    assert isinstance(net, TinyNet) and net.state_dict().keys() == TinyNet().state_dict().keys()
    assert run.left["kept"].state.keys() == {"buffer", "e", "v"}
    assert run.left["scores"].passes == 5 and len(run.left["scores"].matrix) == 5


def test_it_goes_on_with_another_stream() -> None:
    both = [stream(tiny_data().only(tuple(classes)), tasks="2") for classes in ("0123", "6789")]
    start = with_classes(tiny_model("student", 3), both[0].classes)
    net, first = fit(CoCa, both[0], student=start, replay=Replay(images=20), boundaries=True)
    then = both[1].after(both[0].classes)
    options: dict[str, Any] = {"recipe": RECIPE, "replay": Replay(images=20), "boundaries": True}
    student = CoCa(student=start, **options).product(net, both[0])
    _, second = fit(CoCa, then, student=student, past=first.left["kept"], **options)
    columns_of_both = CoCa(student=student, past=first.left["kept"], **options)._competing(then, 0)
    rest, rest_old = (without(8, columns) for columns in columns_of_both)
    assert (~rest).nonzero()[:, 0].tolist() == [4, 5] and (~rest_old).nonzero()[:, 0].tolist() == [0, 1, 2, 3, 4, 5]
    assert set(second.left["kept"].state["buffer"]["labels"].tolist()) > {4, 5, 6, 7}  # and some of before
    assert int(second.left["kept"].state["e"]["1.num_batches_tracked"]) > int(
        first.left["kept"].state["e"]["1.num_batches_tracked"]
    )


def test_drifting_images_in_their_order() -> None:
    data = stream(tiny_data(96), tasks="1", scenario="general")
    a, run = fit(CoCa, data, replay=Replay(images=20))
    b, _ = fit(CoCa, data, replay=Replay(images=20))
    assert tensor_digest(a.state_dict()) == tensor_digest(b.state_dict()) and run.left["scores"].scenario == "general"


def test_what_it_refuses() -> None:
    data = tiny_stream()(160)
    student = tiny_model("student", 3)
    for options, words in (
        ({"omega": 1.0}, "omega"),
        ({"gamma": 1.5}, "gamma"),
        ({"tau": 0.0}, "tau"),
        ({"w_sc": -1.0}, "w_sc"),
        ({"replay": Replay(draw=1)}, "Batch"),
    ):
        with pytest.raises(UserError, match=words):
            CoCa(student=student, **options)  # type: ignore[arg-type]
    for wrong, words in (
        ({"images": -1}, "images must not"),
        ({"draw": -1}, "draw must not"),
    ):
        with pytest.raises(UserError, match=words):
            Replay(**wrong)
    with pytest.raises(UserError, match="cannot hold one of each"):
        CoCa(student=student, replay=Replay(images=4)).require(data)
    with pytest.raises(UserError, match="no boundaries"):
        CoCa(student=student, boundaries=True).require(stream(tiny_data(48), tasks="1", scenario="general"))
