"""Networks that a method of continual learning made of others: the references ``continual:METHOD``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NoReturn

from torch import nn

from upcycle.continual.masks import rebuild_masked
from upcycle.core.errors import UserError
from upcycle.core.models import Model

Source = dict[str, Any]
OPERATIONS: dict[str, Callable[..., nn.Module]] = {"meat": rebuild_masked}


def check(name: str) -> NoReturn:
    """Such a network lives in the directory that it was saved in, so its reference alone is a mistake."""
    raise UserError(f"continual:{name} is no model by itself; give the directory that the model was saved in.")


def build(name: str, *, pretrained: bool, num_classes: int | None = None, input_shape: Any = None) -> NoReturn:
    """See :func:`check`."""
    check(name)


def again(name: str, options: dict[str, Any], rebuild: Callable[[Source], Model]) -> nn.Module:
    """The architecture with fresh weights.

    Args:
        name: the method.
        options: what was recorded, plain data that a stranger may have written.
        rebuild: builds one of the networks that it was made of.

    Raises:
        KeyError, TypeError, ValueError, IndexError, AttributeError, UserError: ``options`` cannot be right.
    """
    return OPERATIONS[name](**options, rebuild=rebuild)
