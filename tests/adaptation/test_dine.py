"""DINE: the invariants of its card."""

import dataclasses
import math
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings
from torch import Tensor, nn

from tests.predictor_server import serve
from tests.settings import Said, fitted, tiny_data, tiny_model
from upcycle.adaptation.black_box.answers import adaptive_smoothing, ask
from upcycle.adaptation.black_box.bottleneck import Bottleneck
from upcycle.adaptation.black_box.training import distil_loss, due, late_rate, rate, tune
from upcycle.adaptation.dine import DINE
from upcycle.core.errors import UserError
from upcycle.core.evaluate import evaluate, predict_logits
from upcycle.core.heads import WithBottleneck
from upcycle.core.losses import information
from upcycle.core.norms import batchnorms
from upcycle.core.recipe import Recipe
from upcycle.core.run import Run
from upcycle.core.store import tensor_digest
from upcycle.predictors import Answers
from upcycle.predictors.http import Http

RECIPE = Recipe(epochs=2, batch_size=32, lr=0.05)
X = torch.randn(12, 1, 8, 8, generator=torch.Generator().manual_seed(0))
ORDER = torch.randperm(12, generator=torch.Generator().manual_seed(1))


def network(seed: int = 0) -> WithBottleneck:
    torch.manual_seed(seed)
    return WithBottleneck(tiny_model("student", seed), 10, 8, norm=True, weight_norm=True).train()


def targets() -> Tensor:
    return torch.rand(12, 10, generator=torch.Generator().manual_seed(2)).softmax(1)


def dine(*predictors: Any, **options: Any) -> DINE:
    given = predictors or (Said(fitted("api", 7)),)
    options = {"recipe": RECIPE, "epochs_tune": 1, "bottleneck": Bottleneck(width=8)} | options
    return DINE(predictors=given, student=tiny_model("student", 100), **options)


def fit(method: DINE, run: Run | None = None, data: Any = None) -> dict[str, Tensor]:
    return method.fit(run or Run(None, seed=3), data or tiny_data()).state_dict()


# -- 1, 2: the memory ----------------------------------------


@settings(max_examples=40)
@given(st.integers(2, 8), st.integers(1, 8), st.integers(0, 100))
def test_smoothed_rows_sum_to_one_and_the_best_stay(k: int, r: int, seed: int) -> None:
    p = torch.randn(6, k, generator=torch.Generator().manual_seed(seed)).softmax(1)
    best = p.sort(1, descending=True)
    r = min(r, k)
    smooth = adaptive_smoothing(best.indices, best.values, k, r)
    assert torch.allclose(smooth.sum(1), torch.ones(6), atol=1e-6)
    kept = best.indices[:, :r]
    assert torch.equal(smooth.gather(1, kept), p.gather(1, kept))
    if r == k:
        assert torch.equal(smooth, p)
    filler = (1 - best.values[:, :r].sum(1)) / max(k - r, 1)
    clear = best.values[:, 0] > filler + 1e-6
    assert torch.equal(smooth.argmax(1)[clear], p.argmax(1)[clear])


def test_all_probabilities_are_kept_with_r_nought_and_with_r_of_all_classes() -> None:
    data, api = tiny_data(40), fitted("api", 7)
    said = predict_logits(api.module, data.train).softmax(1)
    for r in (0, 10):
        assert torch.allclose(ask(Run(None), (Said(api, 10),), data, r), said, atol=1e-6)
    one = ask(Run(None), (Said(api, 10),), data, 1)
    assert torch.equal(one, ask(Run(None), (Said(api, 1),), data, 1))
    assert torch.allclose(one.sum(1), torch.ones(len(one))) and not torch.allclose(one, said, atol=1e-3)


class Watching(Run):
    """Keeps the memory as the run registers it, and its first state."""

    def register(self, name: str, thing: Any) -> None:
        super().register(name, thing)
        if name == "memory":
            self.memory, self.first = thing, thing.clone()


@pytest.mark.parametrize("gamma", [1.0, 0.6, 0.0])
def test_the_memory_starts_with_the_answers_and_moves_to_the_student(gamma: float) -> None:
    data, run, method = tiny_data(), Watching(None, seed=3), dine(gamma=gamma, epochs_tune=0)
    # One step an epoch, ten epochs: nine moves, the last before the tenth step.
    method.recipe = Recipe(epochs=10, batch_size=160, lr=0.05)
    seen: list[Tensor] = []

    def evaluated(net: nn.Module, split: Any, name: str = "") -> None:
        seen.append(predict_logits(net, data.train).softmax(1))

    run.evaluate = evaluated  # type: ignore[method-assign,assignment]
    method.fit(run, data)
    assert torch.equal(run.first, ask(Run(None), method.predictors, data, 1))
    expected = run.first.clone()
    for q in seen[:-1]:
        expected = gamma * expected + (1 - gamma) * q
    assert torch.allclose(run.memory, expected, atol=1e-6)
    assert torch.equal(run.memory, run.first) == (gamma == 1.0)
    if gamma == 0.0:
        assert torch.allclose(run.memory, seen[-2], atol=1e-6)


# -- 3, 4, 5: the losses ----------------------------------------


def test_no_gradient_reaches_the_memory_or_the_mixed_targets() -> None:
    p = targets().requires_grad_(True)
    net = network()
    loss = distil_loss(net, X, p.detach(), order=ORDER, lam=0.3, mix=1.0, diversity=True)
    grads = torch.autograd.grad(loss, list(net.parameters()))
    # By hand, with the target of the mixed images as a constant.
    net = network()
    z = net(X)
    q = z.softmax(1)
    target = (0.3 * q + 0.7 * q[ORDER]).detach()
    log_mixed = net(0.3 * X + 0.7 * X[ORDER]).log_softmax(1)
    by_hand = ((p.detach() * (p.detach().log() - z.log_softmax(1))).sum(1).mean()
               - (q * (q + 1e-5).log()).sum(1).mean() + (q.mean(0) * (q.mean(0) + 1e-5).log()).sum()
               + (target * (target.log() - log_mixed)).sum(1).mean())  # fmt: skip
    assert float((loss - by_hand).detach().abs()) < 1e-5
    for mine, other in zip(grads, torch.autograd.grad(by_hand, list(net.parameters())), strict=True):
        assert torch.allclose(mine, other, atol=1e-5)


def test_information_of_uniform_and_of_spread_certain_answers() -> None:
    assert float(information(torch.zeros(8, 5))) == pytest.approx(0.0, abs=1e-6)
    certain = 50 * torch.eye(5).repeat(3, 1)
    assert float(information(certain)) == pytest.approx(-math.log(5), abs=1e-4)
    assert float(information(certain, diversity=False)) == pytest.approx(0.0, abs=1e-4)


def test_mixing_with_lambda_one_adds_nothing() -> None:
    losses = [float(distil_loss(network(), X, targets(), order=ORDER, lam=1.0, mix=mix, diversity=True).detach())
              for mix in (0.0, 5.0)]  # fmt: skip
    assert losses[0] == pytest.approx(losses[1], abs=1e-5)
    half = float(distil_loss(network(), X, targets(), order=ORDER, lam=0.5, mix=5.0, diversity=True).detach())
    assert half > losses[0] + 1e-3


def test_mixed_images_do_not_move_the_running_statistics() -> None:
    with_mix, without = network(), network()
    for net, mix in ((with_mix, 1.0), (without, 0.0)):
        distil_loss(net, X, targets(), order=ORDER, lam=0.5, mix=mix, diversity=True)
    before = dict(network().named_buffers())
    for name, value in with_mix.named_buffers():
        assert torch.equal(value, dict(without.named_buffers())[name]), name
        assert not torch.equal(value, before[name])  # the plain images do


def test_the_rates_fall_as_published() -> None:
    assert rate(0.0) == 1.0 and rate(1.0) == pytest.approx(11**-1.5)
    assert late_rate(0.0) == pytest.approx(0.1655, abs=1e-3) and late_rate(1.0) == pytest.approx(0.1019, abs=1e-3)


def test_the_backbone_learns_at_its_share_of_the_rate() -> None:
    rates: list[list[float]] = []

    class Watched(Run):
        def update(self, optimizer: torch.optim.Optimizer, clip: float | None = None) -> None:
            rates.append([group["lr"] for group in optimizer.param_groups])
            super().update(optimizer, clip)

    fit(dine(bottleneck=Bottleneck(width=8, backbone_rate=0.2)), Watched(None, seed=3))
    assert rates[0] == pytest.approx([0.01, 0.05])
    assert rates[5] == pytest.approx([0.01 * rate(0.5), 0.05 * rate(0.5)])
    assert rates[10] == pytest.approx([0.01 * late_rate(0.0), 0.05 * late_rate(0.0)])


# -- 6, 7: the black boxes ----------------------------------------


def test_each_box_is_asked_once_for_each_image(tmp_path: Path) -> None:
    data, boxes = tiny_data(), (Said(fitted("a", 7)), Said(fitted("b", 8)))
    whole = fit(dine(*boxes), Run(tmp_path, seed=3, save_every=0))
    assert [box.asked for box in boxes] == [len(data.train)] * 2
    again = fit(dine(*boxes), Run(tmp_path, seed=3, save_every=0, resume=True))
    assert [box.asked for box in boxes] == [len(data.train)] * 2
    assert tensor_digest(again) == tensor_digest(whole)


@pytest.mark.parametrize("m", [2, 3])
def test_identical_boxes_give_the_run_of_one(m: int) -> None:
    box = Said(fitted("api", 7), 3)
    assert tensor_digest(fit(dine(*[box] * m, r=2))) == tensor_digest(fit(dine(box, r=2)))


def test_classes_are_matched_by_name() -> None:
    class Reversed(Said):
        """The same answers, with its classes in another order."""

        def __init__(self) -> None:
            super().__init__(fitted("api", 7), 3)
            self.classes = self.classes[::-1]

        def predict(self, split: Any) -> Answers:
            found = super().predict(split)
            return Answers(9 - found.classes, found.probabilities)

    data = tiny_data()
    assert torch.equal(ask(Run(None), (Reversed(),), data, 2), ask(Run(None), (Said(fitted("api", 7), 3),), data, 2))


# -- the whole ----------------------------------------


def test_labels_are_never_read() -> None:
    data, digests = tiny_data(), set()
    for labels in (data.train.labels, torch.full_like(data.train.labels, -1), data.train.labels.flip(0)):
        other = dataclasses.replace(data, train=dataclasses.replace(data.train, labels=labels))
        digests.add(tensor_digest(fit(dine(), data=other)))
    assert len(digests) == 1


def test_the_student_keeps_its_architecture_and_what_is_given_stays_as_it_was() -> None:
    data, method = tiny_data(), dine()
    before = tensor_digest(method.student.module.state_dict())  # type: ignore[union-attr]
    made = method.product(method.fit(Run(None), data), data)
    assert tensor_digest(method.student.module.state_dict()) == before  # type: ignore[union-attr]
    shapes = {k: v.shape for k, v in tiny_model("student", 0).module.state_dict().items()}
    assert {k: v.shape for k, v in made.module.state_dict().items()} == shapes and made.classes == data.classes


def test_fine_tuning_ends_when_predictions_stay() -> None:
    data, net, run = tiny_data(), network(), Run(None)
    for m in batchnorms(net):
        m.momentum = 0.0
    # Nothing moves at this rate: the second evaluation, at a tenth of 20 epochs, is the first one again.
    recipe, bottleneck = Recipe(epochs=1, batch_size=32, lr=1e-12), Bottleneck(backbone_rate=1.0)
    tune(run, net, data, recipe=recipe, epochs=20, bottleneck=bottleneck, schedule=late_rate, diversity=True)
    assert run.notes == ["Fine-tuning ended after 10% of its 20 epochs: the predictions no longer changed."]
    assert run.updates == 10


def test_tenths_are_counted_from_the_progress() -> None:
    class Going(Run):
        progress = 0.0  # type: ignore[assignment]

    run, tenth, found = Going(None), torch.ones((), dtype=torch.int64), []
    for i in range(30):
        run.progress = i / 30  # type: ignore[misc,assignment]
        if due(run, tenth):
            found.append(i)
    assert found == [3, 6, 9, 12, 15, 18, 21, 24, 27]


def test_on_digits_the_student_learns_from_labels_alone_of_a_box() -> None:
    data = tiny_data(400)
    box = Said(fitted("api", 7))
    method = dine(
        box,
        recipe=Recipe(epochs=12, batch_size=32, lr=0.1),
        epochs_tune=3,
        bottleneck=Bottleneck(width=16, backbone_rate=1.0),
    )
    student = evaluate(method.fit(Run(None, quiet=True), data), data.test).accuracy
    assert student > 0.7


# -- bad input ----------------------------------------


class Answering(Said):
    """A box that answers with what it is given."""

    def __init__(self, answers: Answers) -> None:
        super().__init__(tiny_model("box", 0))
        self.answers = answers

    def predict(self, split: Any) -> Answers:
        return self.answers


def answers(classes: Tensor, p: float = 0.5) -> Answers:
    return Answers(classes, torch.full(classes.shape, p))


@pytest.mark.parametrize(
    ("said", "message"),
    [
        (answers(torch.zeros(160, 1, dtype=torch.int64)), "All 160 images of digits are taken for '0'"),
        (answers(torch.arange(159)[:, None] % 10), r"answers 160 images with classes \(159, 1\)"),
        (answers(torch.arange(160)[:, None] % 10, float("nan")), "160 of 160 images with what is not a finite"),
        (answers(torch.arange(160)[:, None] % 10, 1.5), "not logits"),
        (answers(torch.arange(160)[:, None] % 11), "outside of its 10"),
    ],
)
def test_answers_that_are_none(said: Answers, message: str) -> None:
    with pytest.raises(UserError, match=message):
        fit(dine(Answering(said)))


def test_what_does_not_fit_is_said_before_any_work() -> None:
    data, box = tiny_data(), Said(fitted("api", 7))
    box.classes = (*tuple("012345678"), "ten")
    with pytest.raises(UserError, match=r"they differ \(9, ten\)"):
        dine(box).require(data)
    with pytest.raises(UserError, match="r = 11 keeps more classes than the 10"):
        dine(r=11).require(data)
    with pytest.raises(UserError, match="at least one predictor"):
        DINE(predictors=(), student=tiny_model("student", 0)).require(data)
    method = dine()
    method.student = nn.Sequential(nn.Flatten(), nn.Linear(64, 10), nn.ReLU())
    with pytest.raises(UserError, match="does not end in a linear layer"):
        method.require(data)
    assert not box.asked


@pytest.mark.parametrize(
    "options",
    [{"r": -1}, {"gamma": 1.5}, {"mix": -1.0}, {"mix_beta": 0.0}, {"epochs_tune": -1}],
)
def test_a_value_that_cannot_be(options: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=next(iter(options))):
        dine(**options)


def test_the_backbone_must_learn() -> None:
    with pytest.raises(UserError, match="backbone_rate must be positive"):
        dine(bottleneck=Bottleneck(width=8, backbone_rate=0.0))


def test_fewer_answers_than_are_to_stay_are_noted() -> None:
    run = Run(None)
    ask(run, (Said(fitted("api", 7), 2),), tiny_data(), 3)
    assert run.notes == ["api answers with 2 of 10 classes, fewer than the 3 that are to stay."]


# -- over a socket ----------------------------------------


def over_http(faults: Any, cache: Path) -> tuple[dict[str, Tensor], Http, Any]:
    """The weights, the predictor and the endpoint's counts of one run."""
    with serve(fitted("api", 7), faults, top=1) as url:
        box = Http(url, cache=cache, wait=0.0, timeout=1.0, batch_size=40)
        box.name = "box"  # the port is another one each time
        return fit(dine(box)), box, url


def test_an_endpoint_that_fails_teaches_the_same(tmp_path: Path) -> None:
    clean, _, url = over_http((), tmp_path / "clean")
    assert url.images == 160
    faults = ((429, "0"), 503, None, "json", "nan", None, "slow", "drop")
    found, box, _ = over_http(faults, tmp_path / "faulty")
    assert tensor_digest(found) == tensor_digest(clean) and box.retried >= 6


def test_a_second_run_asks_an_endpoint_nothing(tmp_path: Path) -> None:
    data, found, asked = tiny_data(), [], []
    with serve(fitted("api", 7), top=1) as url:
        for _ in range(2):
            box = Http(url, cache=tmp_path)
            found.append(tensor_digest(fit(dine(box), data=data)))
            asked.append(box.queries)
    assert asked == [len(data.train), 0] and url.images == len(data.train)
    assert found[0] == found[1]
