"""A linear probe of a network says whose labels it has seen."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch

from tests.settings import fitted, tiny_data
from upcycle.core.evaluate import evaluate
from upcycle.core.heads import classifier, features
from upcycle.core.run import Run
from upcycle.training.linear_probe import linear_probe, probe_of


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
    found = probe_of(run, model, some)
    assert found is not None and (found.split, found.labels) == ("train", 50)
    known = (some.train.labels >= 0).nonzero()[:, 0]
    x, held = features(run, model, some.train.subset(known), some.validation)
    right = linear_probe(x, some.train.labels[known], 10, (held, some.validation.labels))
    with torch.no_grad():
        assert torch.allclose(found.head(held).double(), right(held), atol=1e-2 * float(right(held).abs().max()))
    found = probe_of(Run(None, quiet=True), model, data.hide_labels(0, seed=0))
    assert found is not None and (found.split, found.labels) == ("validation", 50)
    assert probe_of(Run(None, quiet=True), model, without(data, "train", "validation")) is None


def test_no_more_labels_are_looked_at_than_asked_for() -> None:
    found = probe_of(Run(None, quiet=True), fitted("net", 7), tiny_data(), most=40)
    assert found is not None and found.labels == 40


def test_a_probe_of_good_features_is_good() -> None:
    data, model = tiny_data(), fitted("net", 7)
    found = probe_of(Run(None, quiet=True), model, data)
    assert found is not None
    model.module.set_submodule(classifier(model), found.head)
    assert evaluate(model.module, data.test, device=torch.device("cpu")).accuracy > 0.8
