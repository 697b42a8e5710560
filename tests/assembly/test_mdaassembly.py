"""MDA assembly: one classifier of the components of several, with and without a tuning."""

from __future__ import annotations

import pytest

from tests.assembly.networks import run
from upcycle.assembly import MDAAssembly
from upcycle.core.errors import UserError
from upcycle.core.evaluate import evaluate
from upcycle.core.models import Model
from upcycle.core.recipe import Recipe
from upcycle.data import Images
from upcycle.surgery.assembling import zero_blocks


def test_assembly_on_digits(halves: tuple[Model, Model], digits: Images) -> None:
    found = {}
    for name, options in {
        "as is": {"scale": False},
        "scaled": {},
        "tuned": {"tune": True, "recipe": Recipe(epochs=2, batch_size=64, lr=0.01)},
    }.items():
        method = MDAAssembly(parts=halves, **options)
        method.require(digits)
        made = method.product(method.fit(run(), digits), digits)
        assert made.classes == digits.classes
        found[name] = evaluate(made.module, digits.only(made.classes).normalised(made.mean, made.std).test).accuracy
    assert found["scaled"] > 0.6
    assert found["tuned"] > max(found["as is"], found["scaled"], 0.9)
    assert method.steps(1000) == 2 * 16 and MDAAssembly(parts=halves).steps(1000) == 0


def test_zero_blocks_stay_zero_where_asked(halves: tuple[Model, Model], digits: Images) -> None:
    recipe = Recipe(epochs=1, batch_size=100, lr=0.05)
    masks = zero_blocks(halves)
    assert masks
    for keep in (True, False):
        method = MDAAssembly(parts=halves, tune=True, keep_zeros=keep, recipe=recipe)
        weights = dict(method.fit(run(), digits).named_parameters())
        assert all(bool((weights[name][mask] == 0).all()) == keep for name, mask in masks.items())


def test_one_part_is_refused(halves: tuple[Model, Model]) -> None:
    with pytest.raises(UserError, match="parts must be two networks or more"):
        MDAAssembly(parts=halves[:1])
