"""Wrappers of a network, so that it takes images as runs have them and answers with logits."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn


class Around(nn.Module):
    """A wrapper of a network, whose weights are saved without it.

    Its own ``train`` and ``eval`` can be chained, also where the network's return nothing.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        return self.network(images)


class Logits(Around):
    """A network that answers with an object, a mapping or a tuple, reduced to its logits.

    Takes ``output.logits``, ``output["logits"]`` or the first element of a tuple; a tensor passes as it is.

    Args:
        part: the name, key or place of the logits, for a network whose answer has parts in training mode only.
    """

    def __init__(self, network: nn.Module, part: str | int | None = None) -> None:
        super().__init__(network)
        self.part = part

    def forward(self, images: Tensor) -> Tensor:
        output = self.network(images)
        if isinstance(output, Tensor) or (self.part is not None and not self.training):
            return output
        if self.part is not None:
            return parts_of(output)[self.part]
        if hasattr(output, "logits"):
            return output.logits
        return output["logits"] if isinstance(output, dict) else output[0]


Squashed = Literal["softmax", "sigmoid"]
"""What made probabilities of logits: a softmax, one distribution a row, or a sigmoid, each class by itself."""
_LEAST, _MARGIN = torch.finfo(torch.float32).tiny, torch.finfo(torch.float32).eps / 2


class FromProbabilities(Around):
    """A network that answers with probabilities p (b, k), from which logits are taken back.

    Behind a softmax they are log p, which differs from what the softmax was given by a number a row, so that softmax,
    losses and ranks are as if it were not there. Behind a sigmoid they are log p - log(1 - p), which is what it was
    given. The softmax of that is the probability of each class given that exactly one of independent classes is there:
    p_c Π_{j≠c} (1 - p_j) is proportional to p_c / (1 - p_c).

    Logits of probabilities that are rounded to 0 or 1 are finite, and pass no gradient. That bf16 does soon with those
    near 1, where a sigmoid has nothing else to tell classes apart by: it is trained in the format of its weights.

    Args:
        evaluation: what it ends in, in evaluation mode; ``None``: it answers with logits there.
        training: the same in training mode.
    """

    def __init__(self, network: nn.Module, evaluation: Squashed | None, training: Squashed | None) -> None:
        super().__init__(network)
        self.ends = {False: evaluation, True: training}

    def forward(self, images: Tensor) -> Tensor:
        if (end := self.ends[self.training]) is None:
            return self.network(images)
        if end == "sigmoid" and self.training:
            with torch.autocast(images.device.type, enabled=False):
                p = self.network(images)
        else:
            p = self.network(images)
        log_p = p.clamp_min(_LEAST).log()
        return log_p if end == "softmax" else log_p - (1 - p).clamp_min(_MARGIN).log()


class Contiguous(Around):
    """A network that is run in contiguous memory only, since its forward views a feature map as rows.

    Images are brought to that order here; :func:`upcycle.core.devices.place` and
    :func:`upcycle.core.frozen.frozen` leave the weights in it.
    """

    def forward(self, images: Tensor) -> Tensor:
        return self.network(images.contiguous())


class Columns(nn.Module):
    """A network of which only some outputs are read, in another order: ``network(images)[:, columns]``.

    Args:
        network: maps images to logits (b, k).
        columns: int64 (j,), for each of the j new outputs the old one that it reads.
    """

    columns: Tensor

    def __init__(self, network: nn.Module, columns: Tensor) -> None:
        super().__init__()
        self.network = network
        self.register_buffer("columns", columns)

    def forward(self, images: Tensor) -> Tensor:
        return self.network(images)[:, self.columns]


def mapped(function: Callable[[Tensor], Tensor], answer: Any) -> Any:
    """An answer with ``function`` done to its tensors: a tensor, or a NamedTuple of them; else as it is."""
    if isinstance(answer, Tensor):
        return function(answer)
    return type(answer)(*map(function, answer)) if hasattr(answer, "_fields") else answer


def tensors_of(answer: Any) -> tuple[Tensor, ...]:
    """The tensors of an answer: of a tensor itself, of a NamedTuple all; none of anything else."""
    if isinstance(answer, Tensor):
        return (answer,)
    return tuple(answer) if hasattr(answer, "_fields") else ()


def parts_of(output: Any) -> dict[str | int, Any]:
    """Take an answer of several parts apart, by name, key or place."""
    if isinstance(output, Mapping):
        return dict(output)
    if isinstance(output, tuple | list):
        return dict(enumerate(output))
    return dict(vars(output)) if hasattr(output, "__dict__") else {}


def layout_of(module: nn.Module) -> torch.memory_format:
    """The order in memory that a network runs in: channels_last, which is the fast one, unless it cannot."""
    narrow = any(isinstance(m, Contiguous) for m in module.modules())
    return torch.contiguous_format if narrow else torch.channels_last


def unwrapped(module: nn.Module) -> nn.Module:
    """A network without what torch puts around it to compile it or to run it on several devices; it shares weights."""
    while True:
        if isinstance(module, nn.DataParallel | nn.parallel.DistributedDataParallel):
            module = module.module
        elif isinstance(inner := getattr(module, "_orig_mod", None), nn.Module):  # torch.compile
            module = inner
        else:
            return module


def own(module: nn.Module) -> nn.Module:
    """A network as its author wrote it: what its weights are saved from, and compared by."""
    while isinstance(module, Around):
        module = module.network
    return unwrapped(module)


def innermost(module: nn.Module) -> nn.Module:
    """A network as its author wrote it, whose submodules have the names that he gave them."""
    while isinstance(module, Columns | Around):
        module = module.network
    return unwrapped(module)


def called(module: nn.Module) -> str:
    """The class of a network as its author wrote it, for a sentence about it."""
    return type(innermost(module)).__name__


class LogScores(nn.Module):
    """A classifier that answers with log-scores: the highest decides, but they are no logarithms of probabilities.

    So accuracy means what it always does, and calibration error and cross-entropy mean nothing.
    """


def gives_probabilities(module: nn.Module) -> bool:
    """Whether the softmax of a classifier's answers is meant as probabilities: it has no :class:`LogScores` in it."""
    return not any(isinstance(m, LogScores) for m in module.modules())
