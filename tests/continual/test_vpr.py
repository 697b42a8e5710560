"""VPR: the invariants of its card."""

from __future__ import annotations

import copy
import dataclasses
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tests.settings import tiny_data, tiny_model, tiny_stream, turned_stream
from upcycle.continual.embeddings.prototypes import (
    UNSEEN,
    Memory,
    closeness,
    draw_gaussian,
    fold_prototypes,
    gaussian_head,
    prototype_loss,
)
from upcycle.continual.vpr import VPR, with_embedding
from upcycle.core.errors import UserError
from upcycle.core.evaluate import predict_logits
from upcycle.core.heads import classifier
from upcycle.core.models import Model
from upcycle.core.recipe import Recipe
from upcycle.core.run import Run
from upcycle.core.store import tensor_digest
from upcycle.data.stream_kinds import stream
from upcycle.data.streams import Stream

RECIPE = Recipe(epochs=2, lr=0.05, momentum=0.0, weight_decay=0.0, schedule="constant")
SHORT: dict[str, Any] = {"recipe": RECIPE, "episodes": 4, "later": 2, "draws": 3, "width": 8}


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def fit(data: Stream, student: Model | None = None, **options: Any) -> tuple[Model, Run]:
    method = VPR(student=student or tiny_model("student", 3), **{**SHORT, **options})
    method.require(data)
    run = Run(None, quiet=True, precision="32-true")
    return method.product(method.fit(run, data), data), run


def memory_of(run: Run, data: Stream) -> Memory:
    memory = Memory(data.train)
    memory.load_state_dict(run.left["kept"].state["memory"])
    return memory


def test_without_variance_it_is_a_prototypical_network() -> None:
    mu, p = torch.randn(6, 4, generator=rng()), torch.randn(3, 4, generator=rng(1))
    y = torch.tensor([0, 1, 2, 0, 1, 2])
    z = draw_gaussian(mu, torch.full_like(mu, -torch.inf), torch.randn(6, 5, 4, generator=rng(2)))
    assert torch.equal(z, mu[:, None].expand(6, 5, 4))
    expected = F.cross_entropy(-torch.cdist(mu, p).square() / 2, y)
    assert torch.allclose(prototype_loss(z, y, p, 2.0), expected, atol=1e-6)


def test_probabilities_sum_to_one_and_do_not_change_with_a_translation() -> None:
    z, p, shift = (torch.randn(n, 4, generator=rng(n), dtype=torch.float64) for n in (7, 3, 1))
    before = closeness(z, p, 2.0).softmax(1)
    assert torch.allclose(before.sum(1), torch.ones(7, dtype=torch.float64))
    assert torch.allclose(closeness(z + shift, p + shift, 2.0).softmax(1), before)
    assert torch.allclose((-torch.cdist(z, p).square() / 2).softmax(1), before)


def test_draws_have_the_mean_and_the_variance_that_they_should_and_pass_gradients() -> None:
    mu = torch.tensor([[0.5, -2.0]], dtype=torch.float64, requires_grad=True)
    ell = torch.tensor([[-1.0, 1.0]], dtype=torch.float64, requires_grad=True)
    n = 40_000
    z = draw_gaussian(mu, ell, torch.randn(1, n, 2, generator=rng(), dtype=torch.float64))[0]
    variance = ell.exp()[0]
    assert bool(((z.mean(0) - mu[0]).abs() < 4 * (variance / n).sqrt()).all())
    assert bool(((z.var(0) - variance).abs() < 4 * variance * (2 / n) ** 0.5).all())
    z.square().mean(0).sum().backward()  # E z² = μ² + exp ℓ
    assert torch.allclose(mu.grad, 2 * mu, atol=0.1) and torch.allclose(ell.grad, ell.exp(), rtol=0.05)


def test_head_and_prototypes_fold_into_one_linear_layer() -> None:
    head = gaussian_head(6, 4, rng())
    p, x = torch.randn(3, 4, generator=rng(1)), torch.randn(9, 6, generator=rng(2))
    weight, bias = fold_prototypes(head, p, 2.0)
    mu = head(x)[:, :4]
    distances = -torch.cdist(mu, p).square() / 2
    assert torch.allclose(F.linear(x, weight, bias) - mu.square().sum(1, keepdim=True) / 2, distances, atol=1e-5)


@pytest.mark.parametrize("prototypes", ["exemplars", "images"])
def test_the_network_that_comes_back_answers_as_the_last_prototypes_do(prototypes: str) -> None:
    data = tiny_stream("2+4")(160)
    product, run = fit(data, prototypes=prototypes)
    last = memory_of(run, data).snapshots[-1]
    mu = predict_logits(with_embedding(product, run.left["kept"]), data.base.test)[:, :8]
    z = predict_logits(product.module, data.base.test)
    assert torch.allclose(z, closeness(mu, last.mu, 2.0), atol=1e-4)
    assert torch.allclose(z.log_softmax(1), (-torch.cdist(mu, last.mu).square() / 2).log_softmax(1), atol=1e-4)
    right = [float((z[y].argmax(1) == data.base.test.labels[y]).double().mean())
             for c in data.tasks if (y := torch.isin(data.base.test.labels, torch.tensor(c))) is not None]  # fmt: skip
    assert run.left["scores"].matrix[-1] == pytest.approx(right)
    shapes = {k: v.shape for k, v in tiny_model("s", 3).module.state_dict().items()}
    assert {k: v.shape for k, v in product.module.state_dict().items()} == shapes


def test_adding_classes_changes_no_shape_of_the_embedding() -> None:
    data, more = tiny_stream("2+4")(160), tiny_stream("2+2")(160)
    one, few = fit(data)
    other, many = fit(more)
    shapes = [
        {k: v.shape for k, v in with_embedding(p, m.left["kept"]).state_dict().items()}
        for p, m in ((one, few), (other, many))
    ]
    assert shapes[0] == shapes[1]


@pytest.mark.parametrize("memory", [10, 25])
def test_memory_is_bounded_and_holds_one_gaussian_a_class_a_snapshot(memory: int) -> None:
    data = tiny_stream("2+2")(160)
    images: list[int] = []

    class Watched(Run):
        def _finish_stage(self, path: str, result: Any) -> None:
            super()._finish_stage(path, result)
            if isinstance(result, dict) and "keep" in result:
                kept = result["keep"]["memory"]
                images.append(len(kept["images"]))
                t = len(images) - 1
                assert kept["labels"].bincount().tolist() == [min(16, memory // (2 * t + 2))] * (2 * t + 2)
                for seen, (columns, mu, ell) in enumerate(kept["snapshots"]):
                    assert columns.tolist() == list(range(2 * seen + 2)) and mu.shape == ell.shape == (len(columns), 8)

    few = dataclasses.replace(data, make=lambda t: sixteen(data.task(t)))
    VPR(student=tiny_model("student", 3), memory=memory, **SHORT).fit(Watched(None, quiet=True), few)
    assert len(images) == 5 and max(images) <= memory


def sixteen(images: Any) -> Any:
    """With at most 16 training images of each class."""
    labels = images.train.labels
    return images.subset(torch.cat([(labels == c).nonzero()[:16, 0] for c in labels.unique()]))


def test_exemplars_keep_the_first_ones() -> None:
    split = tiny_data().train
    memory = Memory(split)
    first, second = torch.tensor([0, 1, 2, 3]), torch.tensor([4, 5])
    split.labels[:6] = torch.tensor([7, 7, 8, 8, 9, 9])
    memory.store(0, split, first, 2)
    memory.store(1, split, second, 1)
    assert memory.labels.tolist() == [7, 8, 9, 9] and memory.tasks.tolist() == [0, 0, 1, 1]
    assert torch.equal(memory.images, split.images[[0, 2, 4, 5]])


def test_snapshots_stay_to_the_bit_while_later_tasks_train() -> None:
    data = tiny_stream("2+2")(160)
    _, run = fit(data)
    _, first = fit(dataclasses.replace(data, tasks=data.tasks[:2]))
    for a, b in zip(memory_of(first, data).snapshots, memory_of(run, data).snapshots, strict=False):
        assert all(torch.equal(x, y) and not y.requires_grad for x, y in zip(a, b, strict=True))


def test_replay_that_never_comes_is_none() -> None:
    data = tiny_stream("2+4")(160)
    a, b, c = (tensor_digest(fit(data, replay_every=n)[0].module.state_dict()) for n in (0, 10_000, 2))
    assert a == b != c


def test_updates_are_episodes_and_a_replay_for_each_earlier_task() -> None:
    data = tiny_stream("2+4")(160)
    assert fit(data, replay_every=0)[1].left["scores"].updates == 2 * (4 + 2 + 2)
    assert fit(data, replay_every=2)[1].left["scores"].updates == 2 * (4 + 2 + 2) + 2 * (1 + 2)
    assert fit(data, replay_every=2, replay_tasks=1)[1].left["scores"].updates == 2 * (4 + 2 + 2) + 2 * (1 + 1)
    turned = turned_stream()  # two more steps each time
    assert fit(turned, replay_every=2)[1].left["scores"].updates == 2 * (4 + 2 + 2) + 2 * (1 + 2 + 2 + 2)


def test_domains_keep_images_of_each_task_and_answer_by_all_or_by_their_own_prototypes() -> None:
    data = turned_stream()
    union, run = fit(data, memory=20)
    memory = memory_of(run, data)
    for t, s in enumerate(memory.snapshots):
        assert s.columns.tolist() == list(range(10))
        assert memory.labels[memory.tasks == t].bincount().tolist() == [2] * 10
    told_net, told = fit(data, memory=20, told=True)
    assert tensor_digest(union.module.state_dict()) == tensor_digest(told_net.module.state_dict())
    embed = with_embedding(union, run.left["kept"])
    for j in range(3):
        test = data.task(j).test
        mu = predict_logits(embed, test)[:, :8]
        d = torch.stack([torch.cdist(mu, s.mu) for s in memory.snapshots])
        for found, best in ((run, d.amin(0)), (told, d[j])):
            assert found.left["scores"].matrix[-1][j] == pytest.approx(
                float((best.argmin(1) == test.labels).double().mean())
            )
    assert "told the task" in told.left["scores"].protocol and "told the task" not in run.left["scores"].protocol


def test_batchnorm_keeps_its_statistics_after_the_first_task() -> None:
    data = tiny_stream("2+4")(160)
    one, _ = fit(dataclasses.replace(data, tasks=data.tasks[:1]))
    both, _ = fit(data)
    fresh = tiny_model("student", 3).module.bn1.running_mean
    assert not torch.equal(one.module.bn1.running_mean, fresh)
    assert torch.equal(one.module.bn1.running_mean, both.module.bn1.running_mean)
    assert not torch.equal(one.module.bn1.weight, both.module.bn1.weight)


def test_classes_never_shown_are_never_answered() -> None:
    data = tiny_stream("2+2")(160)
    product, _ = fit(dataclasses.replace(data, tasks=data.tasks[:2]))
    z = predict_logits(product.module, data.base.test)
    assert bool((z[:, 4:] == UNSEEN).all()) and int(z.argmax(1).max()) <= 3


def test_it_goes_on_from_what_it_kept() -> None:
    base = tiny_data()
    first = stream(base.only(tuple("0123")), tasks="2")
    product, before = fit(first)
    then = stream(base.only(tuple("4567")), tasks="2").after(product.classes)
    student = dataclasses.replace(product, module=copy.deepcopy(product.module))
    more, after = fit(then, student=student, past=before.left["kept"])
    memory = memory_of(after, then)
    assert [s.columns.tolist() for s in memory.snapshots] == [list(range(n)) for n in (2, 4, 6, 8)]
    assert torch.equal(memory.snapshots[1].mu, memory_of(before, first).snapshots[1].mu)
    assert more.classes == tuple("01234567") and len(after.left["kept"].tasks) == 4
    assert after.left["scores"].updates == 2 * 2 * 2 + 2 * (2 + 3)  # no first task any more
    with pytest.raises(UserError, match="--width 8"):
        VPR(student=product, past=before.left["kept"], width=16).require(then)


def test_a_larger_first_task_teaches_it_two_digits() -> None:
    data = tiny_stream("2+2")(160)
    data = dataclasses.replace(data, tasks=data.tasks[:1])
    _, run = fit(data, episodes=40, images=8, recipe=dataclasses.replace(RECIPE, lr=0.2), prototypes="images")
    accuracy = run.left["scores"].matrix[0][0]
    assert accuracy is not None and accuracy >= 0.9


def test_what_cannot_be_is_said() -> None:
    with pytest.raises(UserError, match="images must be at least 2"):
        VPR(student=tiny_model("s", 0), images=1)
    with pytest.raises(UserError, match="cannot hold one of each"):
        VPR(student=tiny_model("s", 0), memory=4).require(tiny_stream()(160))
    with pytest.raises(UserError, match="use er or derpp"):
        VPR(student=tiny_model("s", 0)).require(tiny_stream("1", "general")(160))
    model = tiny_model("s", 0)
    model.module.linear = nn.Linear(16, 10, bias=False)
    with pytest.raises(UserError, match="no bias"):
        VPR(student=model).require(tiny_stream()(160))
    assert classifier(model) == "linear"
    data = tiny_stream()(160)
    lonely = dataclasses.replace(data, make=lambda t: data.task(t).subset(torch.tensor([0, 1, 2])))
    with pytest.raises(UserError, match="to support and one to"):
        VPR(student=tiny_model("s", 0), **SHORT).fit(Run(None, quiet=True), lonely)
