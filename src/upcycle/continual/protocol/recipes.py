"""The recipe that all continual methods have by default."""

from __future__ import annotations

from upcycle.core.recipe import Recipe


def plain_recipe() -> Recipe:
    """Plain SGD, one pass: no momentum and no weight decay, which would move the outputs of classes that rest."""
    return Recipe(epochs=1, batch_size=32, lr=0.03, momentum=0.0, weight_decay=0.0, schedule="constant")
