"""Streaming self-supervision: the invariants of its card."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.settings import TinyNet, tiny_data, tiny_model, tiny_stream
from upcycle.continual import StreamingSSL
from upcycle.continual.embeddings.two_views import (
    Projection,
    Views,
)
from upcycle.continual.protocol.probing import (
    Probing,
    features,
)
from upcycle.continual.streaming import UnlabelledMemory, flat, importance, penalty
from upcycle.core.errors import UserError
from upcycle.core.recipe import Recipe
from upcycle.core.run import Run
from upcycle.data.images import Images
from upcycle.data.stream_kinds import portions, stream
from upcycle.data.streams import Stream

RECIPE = Recipe(epochs=2, batch_size=32, optimizer="adam", lr=1e-3, weight_decay=0.0)


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def method(**options: Any) -> StreamingSSL:
    return StreamingSSL(
        student=tiny_model("student", 3), **{"recipe": RECIPE, "projection": 16, "probes": 100, **options}
    )


def pretrained(data: Stream, **options: Any) -> dict[str, Tensor]:
    """The encoder's weights and statistics."""
    made = method(**options)
    made.require(data)
    state = made.fit(Run(None, seed=5, quiet=True, precision="32-true"), data).state_dict()
    return {k: v for k, v in state.items() if not k.startswith("linear")}


def equal(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    assert a.keys() == b.keys()
    return all(torch.equal(a[k], b[k]) for k in a)


def whole() -> Stream:
    """All digits as one chunk."""
    return portions("whole", tiny_data(), 1)


def mixed(data: Stream, hide: bool = False) -> Stream:
    """The same images with labels permuted within each task, or with none."""
    make = data.make

    def of(t: int) -> Images:
        images = make(t)
        order = torch.randperm(len(images.train), generator=torch.Generator().manual_seed(t))
        labels = torch.full_like(images.train.labels, -1) if hide else images.train.labels[order]
        return dataclasses.replace(images, train=dataclasses.replace(images.train, labels=labels))

    return dataclasses.replace(data, make=of)


# -- the stream ---------------------------------------------------------------------------------------------------


def test_chunks_are_disjoint_and_make_up_the_whole() -> None:
    images = tiny_data()
    for name in ("train", "validation", "test"):
        parts = [getattr(portions("parts", images, 3).task(t), name).ids for t in range(3)]
        assert max(map(len, parts)) - min(map(len, parts)) <= 1
        ids = torch.cat(parts)
        assert len(ids.unique()) == len(ids)
        assert torch.equal(ids.sort().values, getattr(images, name).ids.sort().values)
        assert len(parts[0]) < 3 or not torch.equal(parts[0], getattr(images, name).ids[: len(parts[0])])
    split = tiny_stream()(160)
    assert all(not set(a) & set(b) for i, a in enumerate(split.tasks) for b in split.tasks[:i])
    assert sum(len(split.task(t).train) for t in range(5)) == len(images.train)


def test_parts_have_a_name() -> None:
    data = stream("parts:digits/4")
    assert len(data) == 4 and data.scenario == "domain" and data.tasks == (tuple(range(10)),) * 4
    with pytest.raises(UserError, match="scenario is domain"):
        stream("parts:digits/4", scenario="class")
    with pytest.raises(UserError, match="needs the number of its tasks"):
        stream("parts:digits")


# -- the method ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("objective", ["barlow", "simsiam"])
def test_one_chunk_is_joint_training(objective: str) -> None:
    one = pretrained(whole(), objective=objective, replay_share=0.1, mas=1.0)
    assert equal(one, pretrained(whole(), objective=objective, joint=True))


def test_it_learns_and_the_projection_is_carried_over() -> None:
    data, before = tiny_stream("2")(160), TinyNet()
    run, shorter = Run(None, seed=5, quiet=True), Run(None, seed=5, quiet=True)
    after = method(replay_share=0.0).fit(run, data)
    start = tiny_model("student", 3).module.state_dict()
    assert not torch.equal(after.state_dict()["conv1.weight"], start["conv1.weight"])
    assert after.state_dict().keys() == before.state_dict().keys()
    method(replay_share=0.0).fit(shorter, dataclasses.replace(data, tasks=data.tasks[:1]))
    weight = "projector.0.weight"
    first, last = shorter.left["kept"].state["head"][weight], run.left["kept"].state["head"][weight]
    fresh = Projection("barlow", 16, 16).state_dict()[weight]
    assert float((last - first).abs().mean()) < 0.2 * float((fresh - first).abs().mean())


def test_without_weight_and_share_it_is_sequential_training() -> None:
    data = tiny_stream("2")(160)
    st = pretrained(data, replay_share=0.0, mas=0.0)
    assert not equal(st, pretrained(data, replay_share=0.0, mas=100.0))
    assert not equal(st, pretrained(data, replay_share=0.5, mas=0.0))
    # The penalty and the memory have their say from the second chunk on; the importance alone changes nothing.
    first = dataclasses.replace(data, tasks=data.tasks[:1])
    assert equal(pretrained(first, replay_share=0.0, mas=0.0), pretrained(first, replay_share=0.5, mas=100.0))
    tiny = pretrained(data, replay_share=0.0, mas=1e-12)
    assert all(torch.allclose(tiny[k].double(), st[k].double(), atol=1e-5) for k in st)


def test_mas_holds_the_weights() -> None:
    data = tiny_stream("2")(160)
    first = pretrained(dataclasses.replace(data, tasks=data.tasks[:1]), replay_share=0.0)["conv2.weight"]
    moved = [float((pretrained(data, replay_share=0.0, mas=mas)["conv2.weight"] - first).norm()) for mas in (0.0, 1e4)]
    assert moved[1] < 0.7 * moved[0]


def test_a_whole_share_replays_what_joint_training_sees(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[list[Tensor]] = []
    init = Views.__init__

    def watched(self: Views, split: Any, scale: float) -> None:
        seen[-1].append(split.images)
        init(self, split, scale)

    monkeypatch.setattr(Views, "__init__", watched)
    for options in ({"replay_share": 1.0}, {"joint": True}, {"replay_share": 0.25}):
        seen.append([])
        method(recipe=dataclasses.replace(RECIPE, epochs=1), **options).fit(Run(None, quiet=True), tiny_stream()(160))
    assert len(seen[0]) == 5 and all(map(torch.equal, seen[0], seen[1]))
    data = tiny_stream()(160)
    sizes = [len(data.task(t).train) for t in range(5)]
    assert [len(s) for s in seen[2]] == [n + sum(round(0.25 * m) for m in sizes[:t]) for t, n in enumerate(sizes)]


def test_joint_training_begins_anew_with_each_chunk() -> None:
    # The last chunk alone brings something new, so training on all of them is training on their union.
    data = tiny_stream("2")(160)
    run = Run(None, seed=5, quiet=True)
    method(joint=True).fit(run, data)
    assert run.left["scores"].updates == 2 * (-(-len(data.task(0).train) // 32) + 5)


def test_no_label_is_read() -> None:
    data = tiny_stream("2")(160)
    for options in ({"replay_share": 0.5, "mas": 1.0}, {"joint": True}):
        expected = pretrained(data, **options)
        assert equal(expected, pretrained(mixed(data), **options))
        assert equal(expected, pretrained(mixed(data, hide=True), **options))


def test_without_labels_the_classifier_is_left() -> None:
    data, run = mixed(tiny_stream("2")(160), hide=True), Run(None, quiet=True)
    made = method()
    net = made.fit(run, data)
    assert torch.equal(net.linear.weight, tiny_model("student", 3).module.linear.weight)
    assert any("left as it came" in note for note in run.notes)


def test_the_product_answers_with_its_probe() -> None:
    data = tiny_stream()(160)
    run = Run(None, seed=1, quiet=True)
    net = method(recipe=dataclasses.replace(RECIPE, epochs=10, batch_size=16), probes=160).fit(run, data)
    encoder = TinyNet().eval()
    encoder.load_state_dict(net.state_dict())
    encoder.linear = nn.Identity()
    x = features(encoder, data.base.test)
    z = net(data.base.test.batch(torch.arange(50), device=torch.device("cpu")).images)
    expected = Probing(encoder, data, 160).fitted()
    assert expected is not None
    assert torch.allclose(z.double(), expected(x), atol=1e-3)
    accuracy = float((z.argmax(1) == data.base.test.labels).double().mean())
    row = [a for a in run.left["scores"].matrices["class"][-1] if a is not None]
    sizes = [len(data.task(t).test) for t in range(5)]
    assert accuracy == pytest.approx(sum(a * n for a, n in zip(row, sizes, strict=True)) / 50)
    assert accuracy > 0.4


def test_it_goes_on_from_its_past() -> None:
    data = stream(tiny_data(), tasks="5")
    first = dataclasses.replace(data, tasks=data.tasks[:2])
    before, after = Run(None, quiet=True), Run(None, quiet=True)
    net = method(replay_share=0.5, mas=1.0).fit(before, first)
    kept = len(before.left["kept"].state["memory"]["ids"])
    assert kept == sum(round(0.5 * len(data.task(t).train)) for t in range(2))
    later = dataclasses.replace(data, tasks=data.tasks[2:], make=lambda t: data.make(t + 2))
    again = StreamingSSL(
        student=dataclasses.replace(tiny_model("student", 3), module=net),
        past=before.left["kept"],
        recipe=RECIPE,
        projection=16,
        probes=100,
        replay_share=0.5,
        mas=1.0,
    )
    again.require(later)
    again.fit(after, later)
    assert len(after.left["kept"].tasks) == 5
    assert len(after.left["kept"].state["memory"]["ids"]) == kept + sum(
        round(0.5 * len(later.task(t).train)) for t in range(3)
    )
    assert bool(
        (after.left["kept"].state["memory"]["images"][:kept] == before.left["kept"].state["memory"]["images"]).all()
    )
    again.projection = 8
    assert "another projection" in again.check(later)[0]


def test_mistakes_are_named() -> None:
    for options, words in (
        ({"objective": "moco"}, "objective"),
        ({"replay_share": 1.5}, "replay_share must lie"),
        ({"mas": -1.0}, "mas must not"),
        ({"scale": 0.0}, "scale must be positive"),
        ({"view": ("blur",)}, "view"),
        ({"projection": 1}, "projection must"),
        ({"probes": 1}, "probes must"),
    ):
        made = method()
        vars(made).update(options)
        with pytest.raises(UserError, match=words):
            made.__post_init__()


# -- MAS ----------------------------------------------------------------------------------------------------------


def test_importance_is_of_each_image_and_of_what_matters_alone() -> None:
    encoder = nn.Sequential(nn.Flatten(), nn.Linear(4, 3, bias=False)).double()
    encoder.unused = nn.Linear(2, 2)  # type: ignore[assignment]
    encoder.forward = lambda x: encoder[1](encoder[0](x))  # type: ignore[method-assign]
    x, theta = normal(6, 1, 2, 2), list(encoder.parameters())
    omega = importance(encoder, theta, x)
    w = theta[0].detach()
    rows = x.flatten(1)
    expected = (2 * (rows @ w.T)[:, :, None] * rows[:, None]).abs().mean(0)  # d|Wx|²/dW = 2 (Wx) x'
    assert torch.allclose(omega[:12].view(3, 4), expected)
    assert bool((omega >= 0).all()) and not bool(omega[12:].any())
    # Gradients of a batch cancel, those of its images do not.
    batch = torch.autograd.grad(encoder(x).square().sum() / 6, theta[0])[0].abs()
    assert bool((omega[:12].view(3, 4) >= batch - 1e-12).all()) and float(omega.sum()) > 1.05 * float(batch.sum())


def test_the_penalty_is_nothing_where_it_pulls_to() -> None:
    omega, anchor = normal(9).abs(), normal(9, seed=1)
    theta = anchor.clone().requires_grad_()
    penalty(omega, theta, anchor).backward()
    assert penalty(omega, theta, anchor).item() == 0 and not bool(theta.grad.any())  # type: ignore[union-attr]
    away = (anchor + 1).requires_grad_()
    value = penalty(omega, away, anchor)
    value.backward()
    assert value.item() == pytest.approx(float(omega.sum()) / 2) and torch.allclose(away.grad, omega)  # type: ignore[arg-type]


def test_flat_keeps_the_order_whatever_the_memory_format() -> None:
    w = normal(2, 3, 3, 3)
    assert torch.equal(flat([w.contiguous(memory_format=torch.channels_last), w[0, 0]]), flat([w, w[0, 0].clone()]))


def test_importance_weighs_chunks_alike() -> None:
    run = Run(None, quiet=True)
    method(mas=1.0, replay_share=0.0).fit(run, tiny_stream()(160))
    omega = run.left["kept"].state["omega"]
    assert bool((omega >= 0).all()) and float(omega.mean()) == pytest.approx(1.0, abs=1e-4)


# -- the memory ---------------------------------------------------------------------------------------------------


def test_the_memory_holds_no_labels_and_reloads() -> None:
    data = tiny_data()
    memory = UnlabelledMemory(data.train)
    memory.add(data.train, 0.25, 0, 0)
    memory.add(data.train, 0.25, 0, 1)
    assert len(memory.kept) == 80 and bool((memory.kept.labels == -1).all())
    assert len(memory.kept.ids[:40].unique()) == 40 and not torch.equal(memory.kept.ids[:40], memory.kept.ids[40:])
    assert memory.nbytes == 80 * (64 + 8)
    again = UnlabelledMemory(data.train)
    again.load_state_dict(memory.state_dict())
    assert torch.equal(again.kept.images, memory.kept.images) and len(again.kept.labels) == 80
    with pytest.raises(UserError, match="--size"):
        again.load_state_dict({"images": torch.zeros(2, 9, 9, 1, dtype=torch.uint8), "ids": torch.arange(2)})


# -- probes -------------------------------------------------------------------------------------------------------
