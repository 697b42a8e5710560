"""Ingredients of a recipe, what training takes beside its optimiser: which methods take them, and on which data."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from upcycle.core.errors import UserError
from upcycle.core.recipe import Recipe, maker

INGREDIENTS = {
    "sharpness": "each batch is used again, at the sharpest point nearby",
    "dropping": "a part of the weights stays where it is meanwhile: esam with keep below 1",
    "selection": "the step follows the samples whose loss rises most: esam with select below 1",
    "mix": "images and labels of a batch are mixed",
    "sampler": "samples are drawn by their class, some more than once",
}
"""What a method may say that it admits, each with what that asks of it."""

PARTS = {"dropping": "keep", "selection": "select"}
"""The field of the recipe that asks for a part of esam; 1 does without that."""

EVERY = frozenset(INGREDIENTS)
"""For a method whose loss is a mean over samples of something that compares answers and labels, and nothing else."""


def asked(recipe: Recipe) -> dict[str, str]:
    """The ingredients that a recipe asks for, each with the option that does."""
    found = {}
    if recipe.sharpness != "none":
        found["sharpness"] = f"--recipe.sharpness {recipe.sharpness}"
    if recipe.sharpness == "esam":
        found |= {
            what: f"--recipe.{field} {getattr(recipe, field)}"
            for what, field in PARTS.items()
            if getattr(recipe, field) < 1
        }
    if recipe.mix != "none":
        found["mix"] = f"--recipe.mix {recipe.mix}"
    if recipe.sampler != "instance":
        found["sampler"] = f"--recipe.sampler {recipe.sampler}"
    return found


def times(method: Any) -> float:
    """How many times the work of plain training a method's recipe asks for.

    2 with sam, (3 + β + 3γ) / 3 with esam; a forward more, a third, with snapmix.
    """
    recipe = getattr(method, "recipe", None)
    if not isinstance(recipe, Recipe):
        return 1.0
    maps = recipe.mix_prob / 3 if recipe.mix == "snapmix" else 0.0
    if recipe.sharpness != "esam":
        return maps + (1.0 if recipe.sharpness == "none" else 2.0)
    return maps + (2 + recipe.keep + (recipe.select < 1) + 3 * recipe.select) / 3


def refuse(method: Any, others: Callable[[], Iterable[Any]]) -> None:
    """Refuse an ingredient that a method does not admit, in a sentence that names some that do.

    Args:
        method: a :class:`~upcycle.core.method.Method`.
        others: gives all methods.

    Raises:
        UserError: its recipe asks for such a one.
    """
    recipe = getattr(method, "recipe", None)
    for ingredient, option in asked(recipe).items() if isinstance(recipe, Recipe) else ():
        if ingredient not in method.admits:
            because = f", because {why}" if (why := method.refuses.get(ingredient) or method.refuses.get("any")) else ""
            raise UserError(f"{method.card.name} takes no {option}{because}; {_who(method, ingredient, others())}.")


FIELDS = {"sharpness": "sharpness", "keep": "dropping", "select": "selection", "mix": "mix", "sampler": "sampler"}
"""The ingredient that a field of a recipe asks for."""


def without_recipe(method: Any, field: str, others: Callable[[], Iterable[Any]]) -> UserError:
    """The error for a field of a recipe, where a method has none: which options it has, and who takes an ingredient.

    Args:
        method: its class.
        field: of a recipe, such as ``mix``; "" for the whole.
        others: gives all methods.
    """
    option = f"--recipe.{field}" if field else "--recipe"
    own = ", ".join(f"--{name}" for name in method.options())
    able = _able(method, FIELDS[field], others()) if field in FIELDS else []
    who = f" {option} is for {', '.join(able)}." if able else ""
    return UserError(f"{method.card.name} has no recipe, and so no {option}; its own options are {own}.{who}")


def _who(method: Any, ingredient: str, others: Iterable[Any]) -> str:
    """The methods that do admit an ingredient, those of the same verb where there are any."""
    near = _able(method, ingredient, others)
    names = f"{', '.join(near)} do{'es' if len(near) == 1 else ''}" if near else "no method does"
    if ingredient in PARTS and "sharpness" in method.admits:
        return f"{names}, and {method.card.name} takes --recipe.{PARTS[ingredient]} 1"
    return names


def _able(method: Any, ingredient: str, others: Iterable[Any]) -> list[str]:
    able = [m.card for m in others if ingredient in m.admits]
    return [card.name for card in [card for card in able if card.verb == method.card.verb] or able]


def problems(method: Any, data: Any) -> list[str]:
    """Why the ingredients that a method admits cannot be had on these data or networks, in words; empty if they can."""
    recipe, train = getattr(method, "recipe", None), getattr(data, "train", None)
    if not isinstance(recipe, Recipe) or train is None or not (asks := asked(recipe)):
        return []
    if "mix" in asks and (takes := getattr(data, "takes", None)) is not None and takes.kind != "images":
        return [f"mixing is for pictures, and these are {takes.noun}"]
    found = []
    for ingredient in ("selection", "mix", "sampler"):
        if ingredient not in asks:
            continue
        option = asks[ingredient]
        if train.task.name != "classification":
            found.append(f"{option} is for classes, and the task is {train.task.name}")
        elif train.together:
            found.append(f"{option} needs batches, and these samples all lie in one thing and are answered at once")
        elif ingredient == "sampler" and not bool((train.labels >= 0).any()):
            found.append(f"{option} draws by class, and no training sample has a label")
    if "mix" in asks and not found:
        cache, views = getattr(method, "cache", "off"), getattr(method, "views", 0)
        if cache == "on" or (cache == "auto" and views):  # auto alone keeps none of mixtures
            found.append(
                f"{asks['mix']} mixes anew in every epoch, so the teacher's outputs cannot be kept: --cache off"
            )
        found += maker(recipe.mix).problems(method, data)
    return found
