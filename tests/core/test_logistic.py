"""Logistic regression is scikit-learn's, and a probe says whose labels it has seen."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from tests.settings import fitted, tiny_data
from upcycle.core.evaluate import evaluate
from upcycle.core.heads import classifier, features
from upcycle.core.logistic import linear_probe, logistic_regression
from upcycle.core.run import Run


def drawn(n: int = 120, d: int = 7, k: int = 3) -> tuple[torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(0)
    y = torch.randint(k, (n,), generator=g)
    scales = torch.tensor([1.0, 100.0, 0.01, 1.0, 5.0, 1.0, 0.3])
    return (torch.randn(n, d, generator=g) + F.one_hot(y, d).float()) * scales + 3, y


def test_it_is_that_of_scikit_learn_on_standardised_features() -> None:
    linear_model = pytest.importorskip("sklearn.linear_model", reason="scikit-learn is not installed")
    x, y = drawn()
    W, b = logistic_regression(x, y, 3)
    z = ((x - x.mean(0)) / x.std(0, correction=0)).double()
    right = linear_model.LogisticRegression(tol=1e-10, max_iter=10_000).fit(z.numpy(), y.numpy())
    mine = F.linear(x.double(), W, b).softmax(1)
    assert torch.allclose(mine, torch.from_numpy(right.predict_proba(z.numpy())), atol=1e-5)


def test_the_gradient_is_nought_where_it_ends() -> None:
    x, y = drawn()
    W, b = (t.requires_grad_() for t in logistic_regression(x, y, 3))
    std = x.double().std(0, correction=0)
    loss = F.cross_entropy(F.linear(x.double(), W, b), y, reduction="sum") + 0.5 * (W * std).square().sum()
    for grad in torch.autograd.grad(loss, [W, b]):
        assert float((grad / (std if grad.ndim == 2 else 1)).abs().max()) < 1e-4 * len(x)


def test_scales_and_shifts_of_features_change_nothing() -> None:
    x, y = drawn()
    W, b = logistic_regression(x, y, 3)
    V, c = logistic_regression(10 * x - 4, y, 3)
    assert torch.allclose(F.linear(x.double(), W, b), F.linear(10 * x.double() - 4, V, c), atol=1e-4)


def test_a_feature_that_never_changes_and_a_class_without_samples_do_no_harm() -> None:
    x, y = drawn()
    x[:, 2] = 1.0
    W, b = logistic_regression(x, y, 4)
    assert W.isfinite().all() and b.isfinite().all() and not bool((F.linear(x.double(), W, b).argmax(1) == 3).any())
    constant = logistic_regression(torch.ones(6, 2), torch.tensor([0, 0, 0, 0, 1, 1]), 2)
    assert int(F.linear(torch.ones(1, 2).double(), *constant).argmax()) == 0


def without(data: Any, *splits: str) -> Any:
    """The data without labels in some splits."""
    blank = {
        name: dataclasses.replace(getattr(data, name), labels=torch.full_like(getattr(data, name).labels, -1))
        for name in splits
    }
    return dataclasses.replace(data, **blank)


def test_a_probe_is_fitted_to_training_labels_or_else_to_those_of_validation() -> None:
    data, model = tiny_data(), fitted("net", 7)
    some = data.hide_labels(5, seed=0)
    run = Run(None, quiet=True, precision="32-true")
    found = linear_probe(run, model, some)
    assert found is not None and (found.split, found.labels) == ("train", 50)
    known = (some.train.labels >= 0).nonzero()[:, 0]
    (x,) = features(run, model, some.train.subset(known))
    W, b = logistic_regression(x, some.train.labels[known], 10)
    assert torch.equal(found.head.weight, W.float()) and torch.equal(found.head.bias, b.float())
    found = linear_probe(Run(None, quiet=True), model, data.hide_labels(0, seed=0))
    assert found is not None and (found.split, found.labels) == ("validation", 50)
    assert linear_probe(Run(None, quiet=True), model, without(data, "train", "validation")) is None


def test_a_probe_of_good_features_is_good() -> None:
    data, model = tiny_data(), fitted("net", 7)
    found = linear_probe(Run(None, quiet=True), model, data)
    assert found is not None
    model.module.set_submodule(classifier(model), found.head)
    assert evaluate(model.module, data.test, device=torch.device("cpu")).accuracy > 0.8
