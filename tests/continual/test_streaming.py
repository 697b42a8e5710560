"""Streaming self-supervision: the invariants of its card, its losses and its probes."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.settings import TinyNet, tiny_data, tiny_model, tiny_stream
from upcycle.continual import StreamingSSL
from upcycle.continual.probing import Probing, features, flatness, linear_probe, recalibrated, union
from upcycle.continual.ssl import Projection, Views, barlow_twins_loss, resized_crop, simsiam_loss, windows
from upcycle.continual.streaming import Share, flat, importance, penalty
from upcycle.core.errors import UserError
from upcycle.core.recipe import Recipe
from upcycle.core.run import Run
from upcycle.data.images import Images
from upcycle.data.stream_kinds import portions, stream
from upcycle.data.streams import Stream
from upcycle.measure.similarity import linear_cka

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
    one = pretrained(whole(), objective=objective, replay=0.1, mas=1.0)
    assert equal(one, pretrained(whole(), objective=objective, joint=True))


def test_it_learns_and_the_projection_is_carried_over() -> None:
    data, before = tiny_stream("2")(160), TinyNet()
    made = method(replay=0.0)
    after = made.fit(Run(None, seed=5, quiet=True), data)
    start = tiny_model("student", 3).module.state_dict()
    assert not torch.equal(after.state_dict()["conv1.weight"], start["conv1.weight"])
    assert after.state_dict().keys() == before.state_dict().keys()
    one = method(replay=0.0)
    one.fit(Run(None, seed=5, quiet=True), dataclasses.replace(data, tasks=data.tasks[:1]))
    weight = "projector.0.weight"
    first, last = one.kept.state["head"][weight], made.kept.state["head"][weight]
    fresh = Projection("barlow", 16, 16).state_dict()[weight]
    assert float((last - first).abs().mean()) < 0.2 * float((fresh - first).abs().mean())


def test_without_weight_and_share_it_is_sequential_training() -> None:
    data = tiny_stream("2")(160)
    st = pretrained(data, replay=0.0, mas=0.0)
    assert not equal(st, pretrained(data, replay=0.0, mas=100.0))
    assert not equal(st, pretrained(data, replay=0.5, mas=0.0))
    # The penalty and the memory have their say from the second chunk on; the importance alone changes nothing.
    first = dataclasses.replace(data, tasks=data.tasks[:1])
    assert equal(pretrained(first, replay=0.0, mas=0.0), pretrained(first, replay=0.5, mas=100.0))
    tiny = pretrained(data, replay=0.0, mas=1e-12)
    assert all(torch.allclose(tiny[k].double(), st[k].double(), atol=1e-5) for k in st)


def test_mas_holds_the_weights() -> None:
    data = tiny_stream("2")(160)
    first = pretrained(dataclasses.replace(data, tasks=data.tasks[:1]), replay=0.0)["conv2.weight"]
    moved = [float((pretrained(data, replay=0.0, mas=mas)["conv2.weight"] - first).norm()) for mas in (0.0, 1e4)]
    assert moved[1] < 0.7 * moved[0]


def test_a_whole_share_replays_what_joint_training_sees(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[list[Tensor]] = []
    init = Views.__init__

    def watched(self: Views, split: Any, scale: float) -> None:
        seen[-1].append(split.images)
        init(self, split, scale)

    monkeypatch.setattr(Views, "__init__", watched)
    for options in ({"replay": 1.0}, {"joint": True}, {"replay": 0.25}):
        seen.append([])
        method(recipe=dataclasses.replace(RECIPE, epochs=1), **options).fit(Run(None, quiet=True), tiny_stream()(160))
    assert len(seen[0]) == 5 and all(map(torch.equal, seen[0], seen[1]))
    data = tiny_stream()(160)
    sizes = [len(data.task(t).train) for t in range(5)]
    assert [len(s) for s in seen[2]] == [n + sum(round(0.25 * m) for m in sizes[:t]) for t, n in enumerate(sizes)]


def test_joint_training_begins_anew_with_each_chunk() -> None:
    # The last chunk alone brings something new, so training on all of them is training on their union.
    data = tiny_stream("2")(160)
    made = method(joint=True)
    made.fit(Run(None, seed=5, quiet=True), data)
    assert made.scores.updates == 2 * (-(-len(data.task(0).train) // 32) + 5)


def test_no_label_is_read() -> None:
    data = tiny_stream("2")(160)
    for options in ({"replay": 0.5, "mas": 1.0}, {"joint": True}):
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
    made = method(recipe=dataclasses.replace(RECIPE, epochs=10, batch_size=16), probes=160)
    net = made.fit(Run(None, seed=1, quiet=True), data)
    encoder = TinyNet().eval()
    encoder.load_state_dict(net.state_dict())
    encoder.linear = nn.Identity()
    x = features(encoder, data.base.test)
    z = net(data.base.test.batch(torch.arange(50), device=torch.device("cpu")).images)
    expected = Probing(encoder, data, 160).fitted()
    assert expected is not None
    assert torch.allclose(z.double(), expected(x), atol=1e-3)
    accuracy = float((z.argmax(1) == data.base.test.labels).double().mean())
    row = [a for a in made.scores.matrices["class"][-1] if a is not None]
    sizes = [len(data.task(t).test) for t in range(5)]
    assert accuracy == pytest.approx(sum(a * n for a, n in zip(row, sizes, strict=True)) / 50)
    assert accuracy > 0.4


def test_it_goes_on_from_its_past() -> None:
    data = stream(tiny_data(), tasks="5")
    first = dataclasses.replace(data, tasks=data.tasks[:2])
    made = method(replay=0.5, mas=1.0)
    net = made.fit(Run(None, quiet=True), first)
    kept = len(made.kept.state["memory"]["ids"])
    assert kept == sum(round(0.5 * len(data.task(t).train)) for t in range(2))
    later = dataclasses.replace(data, tasks=data.tasks[2:], make=lambda t: data.make(t + 2))
    again = StreamingSSL(student=dataclasses.replace(tiny_model("student", 3), module=net), past=made.kept,
                         recipe=RECIPE, projection=16, probes=100, replay=0.5, mas=1.0)  # fmt: skip
    again.require(later)
    again.fit(Run(None, quiet=True), later)
    assert len(again.kept.tasks) == 5
    assert len(again.kept.state["memory"]["ids"]) == kept + sum(round(0.5 * len(later.task(t).train)) for t in range(3))
    assert bool((again.kept.state["memory"]["images"][:kept] == made.kept.state["memory"]["images"]).all())
    again.projection = 8
    assert "another projection" in again.check(later)[0]


def test_mistakes_are_named() -> None:
    for options, words in (({"objective": "moco"}, "objective"), ({"replay": 1.5}, "replay is a share"),
                           ({"mas": -1.0}, "mas must not"), ({"scale": 0.0}, "scale is a share"),
                           ({"view": ("blur",)}, "augmentation"), ({"projection": 1}, "projection must"),
                           ({"probes": 1}, "probes must")):  # fmt: skip
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
    made = method(mas=1.0, replay=0.0)
    made.fit(Run(None, quiet=True), tiny_stream()(160))
    omega = made.kept.state["omega"]
    assert bool((omega >= 0).all()) and float(omega.mean()) == pytest.approx(1.0, abs=1e-4)


# -- the memory ---------------------------------------------------------------------------------------------------


def test_the_memory_holds_no_labels_and_reloads() -> None:
    data = tiny_data()
    memory = Share(data.train)
    memory.add(data.train, 0.25, 0, 0)
    memory.add(data.train, 0.25, 0, 1)
    assert len(memory.kept) == 80 and bool((memory.kept.labels == -1).all())
    assert len(memory.kept.ids[:40].unique()) == 40 and not torch.equal(memory.kept.ids[:40], memory.kept.ids[40:])
    assert memory.nbytes == 80 * (64 + 8)
    again = Share(data.train)
    again.load_state_dict(memory.state_dict())
    assert torch.equal(again.kept.images, memory.kept.images) and len(again.kept.labels) == 80
    with pytest.raises(UserError, match="--size"):
        again.load_state_dict({"images": torch.zeros(2, 9, 9, 1, dtype=torch.uint8), "ids": torch.arange(2)})


# -- objectives and views -----------------------------------------------------------------------------------------


def test_barlow_twins() -> None:
    z = normal(64, 5)
    q = torch.linalg.qr(z - z.mean(0)).Q * 8  # uncorrelated, of variance 1
    assert float(barlow_twins_loss(q, q)) == pytest.approx(0.0, abs=1e-6)
    assert float(barlow_twins_loss(3 * q + 1, q)) == pytest.approx(0.0, abs=1e-6)  # scale and mean do not matter
    assert float(barlow_twins_loss(-q, q)) == pytest.approx(4 * 5, rel=1e-4)
    one = q[:, :1].expand(-1, 5)  # all dimensions alike: C is all ones
    assert float(barlow_twins_loss(one, one, 0.1)) == pytest.approx(0.1 * 20, rel=1e-4)
    a, b = normal(64, 5), normal(64, 5, seed=1)
    c = torch.corrcoef(torch.cat([a, b], 1).T)[:5, 5:]
    expected = (1 - c.diagonal()).square().sum() + 0.5 * (c - c.diagonal().diag()).square().sum()
    assert float(barlow_twins_loss(a, b, 0.5)) == pytest.approx(float(expected), rel=1e-3)


def test_simsiam() -> None:
    p = [normal(8, 5, seed=i).requires_grad_() for i in range(4)]
    assert simsiam_loss(p[0], p[1], p[1], p[0]).item() == pytest.approx(-1.0)
    simsiam_loss(p[0], p[1], p[2], p[3]).backward()
    assert p[1].grad is None and p[3].grad is None  # gradients stop at the projections
    assert p[0].grad is not None and p[2].grad is not None
    assert simsiam_loss(*p).item() == pytest.approx(simsiam_loss(p[2], p[3], p[0], p[1]).item())


def test_a_projection_keeps_apart_what_it_projects_and_predicts() -> None:
    head, x, y = Projection("simsiam", 6, 8), normal(16, 6, dtype=torch.float32), normal(16, 6, 1, 1, seed=1).float()
    z = head.projector(x)
    assert torch.equal(head(x)[:, :8], z) and torch.equal(head(x)[:, 8:], head.predictor(z))
    second = y.flatten(1)
    expected = simsiam_loss(head(x)[:, 8:], head(x)[:, :8], head(second)[:, 8:], head(second)[:, :8])
    assert torch.allclose(head.loss(head(x), head(second)), expected)
    barlow = Projection("barlow", 6, 8)
    assert barlow(x).shape == (16, 8)
    assert torch.equal(barlow.loss(barlow(x), barlow(second)), barlow_twins_loss(barlow(x), barlow(second)))


def test_a_window_of_the_whole_image_is_the_image() -> None:
    x = normal(3, 2, 8, 6)
    whole = torch.tensor([[1.0, 1.0, 0.0, 0.0]]).expand(3, -1).double()
    assert torch.allclose(resized_crop(x, whole), x, atol=1e-6)
    ramp = torch.arange(8.0).view(1, 1, 8, 1).expand(1, 1, 8, 8)
    lower = resized_crop(ramp, torch.tensor([[0.5, 1.0, 0.5, 0.0]]))  # rows 4 to 7
    assert lower[0, 0, :, 0].tolist() == [3.75, 4.25, 4.75, 5.25, 5.75, 6.25, 6.75, 7.0]  # the border repeats
    assert torch.equal(lower, resized_crop(ramp.mT, torch.tensor([[1.0, 0.5, 0.0, 0.5]])).mT)


def test_windows_lie_inside_and_have_their_share() -> None:
    ids = torch.arange(2000)
    height, width, row, column = windows((0, 0), ids, 0.4).double().unbind(1)
    assert float((row.abs() + height).max()) <= 1 + 1e-6 and float((column.abs() + width).max()) <= 1 + 1e-6
    area = height * width
    assert 0.35 < float(area.min()) < 0.45 and 0.9 < float(area.max()) <= 1
    assert float(area.mean()) == pytest.approx(0.69, abs=0.03)
    assert not torch.equal(windows((0, 0), ids, 0.4), windows((0, 1), ids, 0.4))


def test_two_views_differ_and_repeat() -> None:
    split = dataclasses.replace(tiny_data().train, augment=("flip", "color"))
    views, index, cpu = Views(split, 0.4), torch.arange(10, 30), torch.device("cpu")
    batch = views.batch(index, device=cpu, view=(1, 2))
    first, second = batch.images.unbind(1)
    assert batch.images.shape == (20, 2, 1, 8, 8) and bool((first != second).flatten(1).any(1).all())
    assert torch.equal(views.batch(index, device=cpu, view=(1, 2)).images, batch.images)
    assert not torch.equal(views.batch(index, device=cpu, view=(1, 3)).images, batch.images)
    assert torch.equal(views.batch(index[5:9], device=cpu, view=(1, 2)).images, batch.images[5:9])
    still = Views(dataclasses.replace(split, augment=()), 1.0).batch(index, device=cpu, view=(1, 2)).images
    assert torch.equal(still[:, 0], split.batch(index, device=cpu).images) and torch.equal(still[:, 0], still[:, 1])


# -- probes -------------------------------------------------------------------------------------------------------


def blobs(n: int, seed: int, k: int = 3) -> tuple[Tensor, Tensor]:
    y = torch.arange(n) % k
    return 3 * torch.eye(k, 4, dtype=torch.float64)[y] + normal(n, 4, seed=seed), y


def test_a_probe_is_the_minimum_of_its_objective() -> None:
    (x, y), strength = blobs(90, 0), 0.1
    probe = linear_probe(x, y, 3, strengths=(strength,))
    mean, std = x.mean(0), x.std(0, correction=0)
    weight = (probe.weight * std).requires_grad_()
    bias = (probe.bias + probe.weight @ mean).requires_grad_()
    z = ((x - mean) / std) @ weight.T + bias
    (nn.functional.cross_entropy(z, y) + strength / 2 * weight.square().sum()).backward()
    assert float(weight.grad.abs().max()) < 1e-3 and float(bias.grad.abs().max()) < 1e-3  # type: ignore[union-attr]


def test_a_probe_chooses_on_validation_and_ignores_scale() -> None:
    (x, y), (held, its) = blobs(90, 0), blobs(300, 1)
    probe = linear_probe(x, y, 3, (held, its))
    each = [linear_probe(x, y, 3, (held, its), strengths=(s,)).validation for s in (1e-3, 1e-2, 1e-1, 1.0, 10.0)]
    assert probe.validation == max(each) and probe.validation == probe.accuracy(held, its) > 0.9  # type: ignore[type-var]
    scale = torch.tensor([1e-3, 1.0, 1e3, 10.0], dtype=torch.float64)
    other = linear_probe(x * scale + 5, y, 3, (held * scale + 5, its))
    assert torch.allclose(other(held * scale + 5), probe(held), atol=1e-2)


def test_a_probe_of_two_classes_and_of_classes_it_did_not_see() -> None:
    x, y = blobs(80, 0, 2)
    probe = linear_probe(x, 3 * y, 5)
    assert set(probe(x).argmax(1).tolist()) == {0, 3} and probe.accuracy(x, 3 * y) > 0.9
    with pytest.raises(UserError, match="two classes"):
        linear_probe(x, torch.zeros(80, dtype=torch.int64), 5)


def test_a_probe_learns_from_equally_many_images_of_each_task() -> None:
    data = tiny_stream()(160)
    probing = Probing(TinyNet().eval(), data, 40)
    train, _ = probing._labelled
    assert train is not None
    assert [int(torch.isin(train.labels, torch.tensor(c)).sum()) for c in data.tasks] == [8] * 5


def test_features_are_those_of_evaluation() -> None:
    encoder, data = TinyNet(), tiny_data()
    encoder.linear = nn.Identity()  # type: ignore[assignment]
    encoder.train()
    x = features(encoder, data.test, 16)
    assert encoder.training and torch.equal(x, features(encoder.eval(), data.test, 16))
    assert torch.allclose(features(encoder.double(), data.test), x, atol=1e-5)
    encoder.conv1.weight.data[0] = float("nan")
    with pytest.raises(UserError, match="NaN"):
        features(encoder, data.test)


def test_recalibrated_statistics_are_those_of_the_images() -> None:
    encoder, data = TinyNet(), tiny_data()
    made = recalibrated(encoder, data.test, 25)
    x = data.test.batch(torch.arange(50), device=torch.device("cpu")).images
    assert torch.allclose(made.bn1.running_mean, encoder.conv1(x).mean((0, 2, 3)), atol=1e-5)
    assert made.bn1.momentum == 0.1 and not torch.equal(made.bn1.running_mean, encoder.bn1.running_mean)
    assert not bool(encoder.bn1.running_mean.any())  # the network itself is left alone


def test_cka_of_features() -> None:
    k = normal(60, 5)
    q = torch.linalg.qr(normal(5, 5, seed=2)).Q
    assert float(linear_cka(k, k)) == pytest.approx(1.0)
    assert float(linear_cka(k, 7 * k @ q)) == pytest.approx(1.0)
    assert 0 <= float(linear_cka(k, normal(60, 5, seed=3))) <= 1


def test_flatness_of_a_bowl() -> None:
    line = nn.Linear(4, 3).double()
    with torch.no_grad():
        line.weight.copy_(normal(3, 4))
    before = line.weight.clone()

    def loss(m: nn.Module) -> Tensor:
        return (m.weight - before).square().sum()  # type: ignore[union-attr,operator]

    found = flatness(line, loss, (0.0, 0.5, 1.0), 3, torch.Generator().manual_seed(0))
    norm = before.square().sum().item()  # steps are as long as each filter: the loss at ε is ε² |W|²
    assert found == pytest.approx([0.0, 0.25 * norm, norm])
    assert torch.equal(line.weight, before)
    with pytest.raises(UserError, match="direction"):
        flatness(line, loss, (0.1,), 0, torch.Generator())


def test_union_keeps_order() -> None:
    split = tiny_data().train
    both = union([split.subset(torch.tensor([3, 1])), split.subset(torch.tensor([2]))])
    assert torch.equal(both.ids, split.ids[[3, 1, 2]]) and torch.equal(both.images, split.images[[3, 1, 2]])
