"""Networks that a method of continual learning made of others: the references ``continual:METHOD``."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from upcycle.continual.weights.attention_masks import rebuild_masked

OPERATIONS: dict[str, Callable[..., nn.Module]] = {"meat": rebuild_masked}
