"""The two bounds that stand beside every method, and the recipe that all have by default."""

from __future__ import annotations

from typing import Any

from upcycle.core.method import Control
from upcycle.core.recipe import Recipe


def plain_recipe() -> Recipe:
    """Plain SGD, one pass: no momentum and no weight decay, which would move the outputs of classes that rest."""
    return Recipe(epochs=1, batch_size=32, lr=0.03, momentum=0.0, weight_decay=0.0, schedule="constant")


def bounds(method: Any) -> dict[str, Control]:
    """The bounds of a continual method from both sides: the same network fine-tuned, and trained on all tasks at once.

    Args:
        method: whose ``student`` and, where it has one, ``recipe`` they take.
    """
    # Here and not above, for these two are methods themselves and have each other as their bounds.
    from upcycle.continual.finetune import Finetune
    from upcycle.continual.joint import Joint

    own = {"student": method.student}
    if isinstance(recipe := getattr(method, "recipe", None), Recipe):
        own["recipe"] = recipe
    both = {
        "finetune": (Finetune, "lower bound", "fine-tuned"),
        "joint": (Joint, "upper bound", "trained jointly"),
    }
    return {
        name: Control(method=cls(**own), role=role, words=words)
        for name, (cls, role, words) in both.items()
        if not isinstance(method, cls)
    }
