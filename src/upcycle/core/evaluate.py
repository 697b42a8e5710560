"""How good a network is on a split, measured without leaving a trace on the network or on randomness."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from upcycle.core import collective
from upcycle.core.batches import Split, reading_ahead
from upcycle.core.devices import Processes
from upcycle.core.errors import UserError, require
from upcycle.core.frozen import Frozen
from upcycle.core.outputs import called
from upcycle.core.portions import FIRST, portions
from upcycle.core.task import Evaluation, Measured, logits_of
from upcycle.core.undisturbed import undisturbed


def predict_logits(
    module: nn.Module,
    split: Split,
    device: torch.device | str | None = None,
    *,
    done: Callable[[int], None] = lambda n: None,
) -> Tensor:
    """The logits of every sample of ``split``, float32 (n, k) on the CPU, in the split's order.

    Args:
        module: maps images to logits (b, k).
        split: read without augmentation.
        device: where to, for as long as it takes; ``None`` leaves the module where it is.
        done: told how many samples are answered, after every portion.

    Raises:
        UserError: the split is empty, or the outputs are not (b, k).
    """
    found: list[Tensor] = []
    name = called(module)

    def take(answers: Any, targets: Any) -> None:
        found.append(logits_of(answers, len(targets), name))
        done(sum(map(len, found)))

    _answer(module, split, device, take)
    return torch.cat(found)


def measured(
    module: nn.Module,
    split: Split,
    *,
    device: torch.device | str | None = None,
    outputs: int | None = None,
    name: str | None = None,
    among: Processes | None = None,
) -> Measured:
    """How good a network is at the task of ``split``.

    Args:
        module: answers as the task asks for. Its modes are restored afterwards.
        split: samples whose target is not known are left out.
        device: where to, for as long as it takes; ``None`` leaves the module where it is.
        outputs: how many are expected, such as classes; ``None`` takes what comes.
        name: how errors call the network; its class when ``None``.
        among: processes that all call this, each with the same network: each answers its part of the samples, in the
            portions that one process would take, and all have the figures that it would have.

    Raises:
        UserError: non-finite answers, no sample with a known target, or answers that do not fit the targets.
    """
    judge = split.task.judge(classes=outputs, name=name or called(module))
    if among is None or among.world_size == 1 or split.together:  # one forward answers all
        _answer(module, split, device, judge.add)
        return judge.result()
    _answer(module, split, device, judge.add, (among.global_rank, among.world_size))
    judge, *others = collective.every(judge, among.world_size)
    for other in others:
        judge.join(other)
    return judge.result()


def evaluate(
    module: nn.Module,
    split: Split,
    *,
    device: torch.device | str | None = None,
    num_classes: int | None = None,
    name: str | None = None,
    among: Processes | None = None,
) -> Evaluation:
    """Accuracy, loss, calibration and confusion of a classifier: :func:`measured` for that task.

    Args:
        module: maps inputs to logits (b, k).
        split: samples with label -1 are left out.
        device, num_classes, name, among: see :func:`measured`.

    Raises:
        UserError: non-finite outputs, no labelled sample, logits that do not fit the labels, or a split of another
            task.
    """
    found = measured(module, split, device=device, outputs=num_classes, name=name, among=among)
    if not isinstance(found, Evaluation):
        raise UserError(f"The accuracy of {name or called(module)} is asked for, and its task is {split.task.name}.")
    return found


@contextlib.contextmanager
def _moved(module: nn.Module, device: torch.device | str | None) -> Iterator[torch.device]:
    home = next((t.device for t in (*module.parameters(), *module.buffers())), torch.device("cpu"))
    there = torch.device(device) if device is not None else home
    try:
        module.to(there)
        yield there
    finally:
        module.to(home)


def _answer(
    module: nn.Module,
    split: Split,
    device: torch.device | str | None,
    take: Callable[[Any, Any], None],
    part: tuple[int, int] = (0, 1),
) -> None:
    """Give ``take`` the answers to every batch of a split, and its targets.

    Args:
        part: which of how many parts of the batches, in their order. The first batch, by which the others are divided,
            is of the first part, and answered in each.
    """
    require(len(split) > 0, "There is no sample to evaluate on: the split is empty.")
    # Splits give float32, which a network in another format would refuse; a frozen one casts by itself.
    own = () if isinstance(module, Frozen) else (p.dtype for p in module.parameters() if p.is_floating_point())
    dtype = next(iter(own), torch.float32)

    def answered(index: Tensor) -> tuple[Any, Any]:
        batch = split.batch(index, device=there)
        return module(batch.inputs.to(dtype)), batch.labels

    with undisturbed(module), _moved(module, device) as there:
        each = portions(module, split)
        first = answered(next(each))
        if part[0] == 0:
            take(*first)
        rest = list(each)
        mine = rest[len(rest) * part[0] // part[1] : len(rest) * (part[0] + 1) // part[1]]
        plan = ((index, None) for index in torch.cat(mine).split(FIRST)) if mine else ()
        with reading_ahead(split, plan):
            for index in mine:
                take(*answered(index))
