"""BETA: the invariants of its card."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from tests.settings import ROWS, Said, fitted, tiny_data, tiny_model
from upcycle.adaptation import BETA
from upcycle.adaptation import beta as module
from upcycle.adaptation.beta import (
    draw_major_share,
    ensemble,
    imbalance,
    refine_labels,
    sharpen,
    soft_cross_entropy,
    squared_error,
)
from upcycle.adaptation.black_box.answers import ask
from upcycle.adaptation.black_box.bottleneck import Bottleneck
from upcycle.adaptation.black_box.division import easiness, split_easy_hard
from upcycle.adaptation.black_box.strong_view import strong_augment
from upcycle.adaptation.black_box.training import distil_loss, draw_beta, rate, set_rate
from upcycle.core.errors import UserError
from upcycle.core.recipe import Recipe
from upcycle.core.run import Run
from upcycle.data import ImageSplit
from upcycle.predictors import Answers

RECIPE = Recipe(epochs=3, batch_size=16, lr=0.05)


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def method(**options: Any) -> BETA:
    given = {"recipe": RECIPE, "bottleneck": Bottleneck(width=16), "epochs_tune": 0, **options}
    return BETA(predictors=(Said(fitted("api", 7)),), student=tiny_model("student", 100), **given)


def logged(run: Run, name: str) -> list[float]:
    return [float(row[4]) for row in run.journal.rows if row[3] == name]


# -- dividing ----------------------------------------


def test_easy_and_hard_partition_the_set() -> None:
    w = torch.rand(50, generator=torch.Generator().manual_seed(0))
    for tau in (0.0, 0.3, 0.8, 1.0, 1.5):
        easy, hard = split_easy_hard(w, tau)
        assert torch.equal(torch.cat([easy, hard]).sort().values, torch.arange(50))
        assert (w[easy] >= tau).all() and (w[hard] < tau).all()
    assert len(split_easy_hard(w, 0.0)[0]) == 50 and len(split_easy_hard(w, 1.01)[1]) == 50


def test_small_losses_are_easy_and_large_ones_hard() -> None:
    losses = torch.cat([0.1 + 0.02 * draw(60).abs(), 3 + 0.3 * draw(40, seed=1).abs()])
    w = easiness(losses)
    assert (w[:60] > 0.99).all() and (w[60:] < 0.01).all()
    assert torch.equal(easiness(losses), w)
    assert torch.allclose(easiness(5 * losses + 2), w, atol=1e-5)  # it sees no scale


def test_where_nothing_tells_labels_apart_all_are_easy(monkeypatch: pytest.MonkeyPatch) -> None:
    assert torch.equal(easiness(torch.full((20,), 0.7)), torch.ones(20))
    assert torch.equal(easiness(torch.tensor([0.3])), torch.ones(1))
    from sklearn.mixture import GaussianMixture

    fit = GaussianMixture.fit

    def equal_means(self: Any, x: Any) -> Any:
        made = fit(self, x)
        made.means_[:] = 0.5
        return made

    monkeypatch.setattr(GaussianMixture, "fit", equal_means)
    assert torch.equal(easiness(torch.arange(20.0)), torch.ones(20))


def test_a_loss_that_is_no_number_is_refused() -> None:
    with pytest.raises(UserError, match="not finite"):
        easiness(torch.tensor([0.1, float("nan"), 0.2]))


# -- targets and losses ----------------------------------------


def test_full_trust_keeps_the_label_and_none_takes_the_answer() -> None:
    labels, q = torch.arange(5), draw(5, 6).softmax(1)
    assert torch.equal(refine_labels(labels, torch.ones(5), q, 1.0), torch.eye(6)[:5])
    assert torch.allclose(refine_labels(labels, torch.zeros(5), q, 1.0), q)
    half = refine_labels(labels, torch.full((5,), 0.25), q, 1.0)
    assert torch.allclose(half, 0.25 * torch.eye(6)[:5] + 0.75 * q)


@settings(max_examples=50)
@given(st.integers(0, 10_000), st.floats(0.1, 1.0))
def test_sharpened_rows_sum_to_one_and_keep_their_arg_max(seed: int, temperature: float) -> None:
    p = draw(4, 7, seed=seed).double().softmax(1)
    sharp = sharpen(p, temperature)
    assert torch.allclose(sharp.sum(1), torch.ones(4, dtype=torch.float64))
    assert torch.equal(sharp.argmax(1), p.argmax(1))
    assert (sharp.max(1).values >= p.max(1).values - 1e-12).all()


def test_at_temperature_one_sharpening_is_the_identity() -> None:
    p = draw(4, 7).softmax(1)
    assert torch.allclose(sharpen(p, 1.0), p)
    assert torch.allclose(sharpen(torch.tensor([[0.8, 0.2]]), 0.5), torch.tensor([[0.64, 0.04]]) / 0.68)


def test_imbalance_is_zero_only_for_a_uniform_mean() -> None:
    certain = 50 * torch.eye(4)  # each class once: a uniform mean of certain answers
    assert float(imbalance(certain)) == pytest.approx(0.0, abs=1e-6)
    assert float(imbalance(torch.zeros(3, 4))) == pytest.approx(0.0, abs=1e-6)
    for seed in range(20):
        assert float(imbalance(draw(5, 4, seed=seed))) > 1e-4
    z = draw(5, 4)
    mean = z.softmax(1).mean(0)
    assert float(imbalance(z)) == pytest.approx(float((0.25 * (0.25 / mean).log()).sum()), abs=1e-6)
    assert imbalance(200 * torch.eye(4)[:1]).isfinite()


def test_the_two_losses_of_mixed_samples() -> None:
    z = draw(6, 4)
    q = z.softmax(1)
    assert float(soft_cross_entropy(z, q)) == pytest.approx(float(-(q * q.log()).sum(1).mean()), abs=1e-6)
    labels = torch.tensor([0, 1, 2, 3, 0, 1])
    assert torch.allclose(soft_cross_entropy(z, torch.eye(4)[labels]), nn.functional.cross_entropy(z, labels))
    assert float(squared_error(z, q)) == 0
    assert float(squared_error(torch.zeros(1, 2), torch.tensor([[1.0, 0.0]]))) == pytest.approx(0.25)


def test_the_major_share_is_at_least_one_half() -> None:
    g = torch.Generator().manual_seed(0)
    drawn = torch.tensor([draw_major_share(alpha, g) for alpha in (0.3, 1.0, 4.0) for _ in range(200)])
    assert drawn.min() >= 0.5 and drawn.max() <= 1
    uniform = drawn[200:400]  # of α = 1: uniform from one half to one
    assert abs(float(uniform.mean()) - 0.75) < 0.03


@pytest.mark.parametrize("channels", [1, 3])
def test_the_strong_view_is_decided_by_each_samples_own_numbers(channels: int) -> None:
    images, u = draw(6, channels, 12, 16), torch.rand(6, 9, generator=torch.Generator().manual_seed(1))
    seen = strong_augment(images, u)
    assert seen.shape == images.shape and seen.isfinite().all()
    assert (seen - images).flatten(1).abs().amax(1).min() > 0.1
    assert torch.allclose(strong_augment(images[2:4], u[2:4]), seen[2:4], atol=1e-6)


def test_in_the_middle_of_all_ranges_only_the_cut_out_remains() -> None:
    images = draw(2, 1, 16, 16)
    seen = strong_augment(images, torch.full((2, 9), 0.5))
    hole = torch.zeros(16, 16, dtype=torch.bool)
    hole[6:10, 6:10] = True
    assert (seen[:, :, hole] == 0).all()
    assert torch.allclose(seen[:, :, ~hole], images[:, :, ~hole], atol=1e-5)


# -- the whole ----------------------------------------


def test_with_no_easy_sample_each_network_is_distilled_alone() -> None:
    data, m, run = tiny_data(60), method(tau=1.01, gamma=1.0), Run(None, seed=5, precision="32-true")
    both = m.adapt(run, data)
    assert not logged(run, "teach_loss") and max(logged(run, "easy_share")) == 0
    for i, network in enumerate(both):
        alone = Run(None, seed=5, precision="32-true")
        P = ask(alone, m.predictors, data, 1)
        f = m._networks(alone, data)[i]

        def distilled(f: Any = f, run: Run = alone, P: Tensor = P, name: str = module.NAMES[i]) -> Any:
            f, optimizer = run.setup(f, lambda f: m.bottleneck.optimizer(f, RECIPE))
            for epoch in run.epochs(3):
                f.train()
                set_rate(optimizer, rate((epoch + 1) / 3))
                g = run.generator(f"distil, {name}")
                for _, (x, _, index) in zip(range(4), run.others(data.train, 16, f"distil, {name}"), strict=False):
                    order, lam = torch.randperm(16, generator=g), draw_beta(0.3, g)
                    run.backward(distil_loss(f, x, P[index], order=order, lam=lam, mix=1.0, diversity=True))
                    run.update(optimizer)
            return f.state_dict()

        expected = alone.stage("adapt", distilled)
        for key, value in network.state_dict().items():
            assert torch.allclose(value, expected[key], atol=1e-6), key


def test_swapping_the_seeds_of_the_networks_swaps_their_results(monkeypatch: pytest.MonkeyPatch) -> None:
    data, run = tiny_data(), Run(None, seed=5)
    first, second = method().adapt(run, data)
    assert logged(run, "teach_loss")
    monkeypatch.setattr(module, "NAMES", module.NAMES[::-1])
    other_first, other_second = method().adapt(Run(None, seed=5), data)
    for f, g in ((first, other_second), (second, other_first)):
        assert all(torch.equal(v, g.state_dict()[k]) for k, v in f.state_dict().items())
    assert any(not torch.equal(v, second.state_dict()[k]) for k, v in first.state_dict().items())


def test_gradients_reach_one_network_at_a_time_and_no_target(monkeypatch: pytest.MonkeyPatch) -> None:
    targets = []

    def spy(z: Tensor, y: Tensor) -> Tensor:
        targets.append(y)
        return soft_cross_entropy(z, y)

    class Watched(Run):
        def backward(self, *args: Any, **kwargs: Any) -> None:
            super().backward(*args, **kwargs)
            assert sum(any(p.grad is not None for p in f.parameters()) for f in networks) == 1

    monkeypatch.setattr(module, "soft_cross_entropy", spy)
    m, data, run = method(lambda_u=1.0), tiny_data(), Watched(None)
    networks = m._networks(run, data)
    monkeypatch.setattr(m, "_networks", lambda run, data: networks)
    m.adapt(run, data)
    assert targets and not any(y.requires_grad for y in targets)


def test_each_switched_off_loss_changes_the_result_when_on() -> None:
    data = tiny_data(96)

    def weights(**options: float) -> Tensor:
        run = Run(None, seed=2)
        network = method(tau=0.5, **options).adapt(run, data)[0]
        assert logged(run, "teach_loss")
        return torch.cat([p.detach().flatten() for p in network.parameters()])

    plain = weights()
    assert not torch.allclose(plain, weights(lambda_u=10.0), atol=1e-4)
    assert not torch.allclose(plain, weights(lambda_t=1.0), atol=1e-4)


def test_warm_up_is_cross_entropy_and_the_predictor_is_asked_once() -> None:
    m, data, run = method(warmup=2), tiny_data(96), Run(None)
    m.adapt(run, data)
    assert len(logged(run, "warmup_loss")) == 2 and len(logged(run, "distil_loss")) == 1
    assert m.predictors[0].asked == 96  # type: ignore[attr-defined]
    assert len(logged(run, "ensemble_accuracy")) == 3


class Confused:
    """Right for most images; for every third one it says the next class, just as surely."""

    name, classes = "confused", tuple("0123456789")

    def predict(self, split: ImageSplit) -> Answers:
        wrong = (torch.arange(len(split)) % 3 == 0).long()
        return Answers(((split.labels + wrong) % 10)[:, None], torch.full((len(split), 1), 0.9))


def test_easy_labels_are_more_often_right_than_the_predictors() -> None:
    data, run = tiny_data(320), Run(None, seed=0)
    recipe = Recipe(epochs=10, batch_size=32, lr=0.05)
    m = BETA(
        predictors=(Confused(),),
        student=tiny_model("s", 100),
        recipe=recipe,
        bottleneck=Bottleneck(width=32, backbone_rate=1.0),
    )
    networks = m.adapt(run, data)
    assert logged(run, "easy_label_accuracy")[-1] >= 2 / 3 + 0.1
    found = ensemble(networks, data.train).argmax(1)
    assert float((found == data.train.labels).float().mean()) >= 2 / 3 + 0.1


def test_the_product_is_the_student_whole_with_one_linear_classifier() -> None:
    data, m = tiny_data(), ROWS["beta"].make()
    made = m.product(m.fit(Run(None), data), data)
    assert {k: v.shape for k, v in made.module.state_dict().items()} == {
        k: v.shape for k, v in tiny_model("student", 100).module.state_dict().items()
    }
    assert made.classes == data.classes


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"tau": -0.1}, "tau must not be negative"),
        ({"tau": math.nan}, "tau must not be negative"),
        ({"lambda_u": -1.0}, "lambda_u must not be negative"),
        ({"lambda_t": math.inf}, "lambda_t must not be negative"),
        ({"temperature": 0.0}, "temperature must be positive"),
        ({"alpha": 0.0}, "alpha must be positive"),
        ({"gamma": 1.5}, "gamma must lie between 0 and 1"),
        ({"warmup": 4}, "between 0 and the 3 epochs"),
        ({"rampup": -1}, "rampup must not be negative"),
        ({"epochs_tune": -1}, "epochs_tune must not be negative"),
        ({"r": -1}, "r must not be negative"),
    ],
)
def test_wrong_values_are_named(options: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        method(**options)


def test_what_cannot_work_is_named_before_any_work() -> None:
    data = tiny_data()
    with pytest.raises(UserError, match="at least one predictor"):
        BETA(predictors=(), student=tiny_model("student", 100)).require(data)
    with pytest.raises(UserError, match="does not end in a linear layer"):
        flat = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(1, 10, 1), nn.Flatten())
        BETA(predictors=(Said(fitted("api", 7)),), student=flat).require(data)
