"""Meetings of the body of a batch loop with a batch: mixed beforehand, and met again where an optimiser asks for it.

The body of the loop is what closures are elsewhere. An optimiser that :class:`Ascends` meets each batch twice, or three
times, with the same random numbers:

1. *first*: its ``update`` ascends in place of a step.
2. *look*, where it selects samples: without gradients, to see by how much the loss of each rises.
3. *last*: the whole batch, or the samples whose loss rises most; its ``update`` steps.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, NoReturn, Protocol

import torch
from torch import Tensor, nn

from upcycle.core import collective
from upcycle.core.batches import Batch, Split
from upcycle.core.devices import Processes
from upcycle.core.norms import unrecorded
from upcycle.core.recipe import Recipe, maker
from upcycle.core.stage import Stage, Stages
from upcycle.core.updates import Updates

if TYPE_CHECKING:
    from upcycle.core.models import Model

Met = tuple[Batch, float, int]
"""A batch, this process' share in it times the number of processes, and its samples over all processes."""


class Ascends(Protocol):
    """An optimiser that ascends before it descends, such as :class:`upcycle.training.esam.Sharp`.

    Attributes:
        select: share of the samples that it descends on; below 1 it has to know the loss of each.
        local: each process ascends along its own gradient.
        ascended: the weights are those of the ascent.
        spares: it switches off gradients that it will not use.
    """

    select: float
    local: bool
    ascended: bool
    spares: bool

    def prepare(self, generator: torch.Generator) -> None:
        """Draw what it draws for a batch."""
        ...

    def ascend(self) -> None:
        """Move the weights, by their gradients."""
        ...

    def sharpest(self, before: Tensor, after: Tensor, least: int) -> Tensor:
        """The samples to descend on, by their losses before and after the ascent; ascending."""
        ...

    def restore(self) -> None:
        """Move the weights back if it had ascended, and let all have gradients."""
        ...


def ascends(optimizer: Any) -> bool:
    """Whether an optimiser is one of :class:`Ascends`."""
    return hasattr(optimizer, "ascended")


class Meetings:
    """The way from a batch to the body of the loop over it.

    Args:
        stages: of the run.
        updates: the steps of its optimisers.
        fabric: the processes.
        seed: of everything random.

    Attributes:
        teacher: what the run's last frozen teacher was made of.
        meeting: which one is under way; "" where batches are met once.
        reduction: what the loss has to be: its mean over samples, or "none", the loss of each.
    """

    def __init__(self, stages: Stages, updates: Updates, fabric: Processes, seed: int) -> None:
        self._stages, self._updates, self._seed = stages, updates, seed
        self.rank, self.world_size = fabric.global_rank, fabric.world_size
        self.teacher: Model | None = None
        self.meeting: Literal["", "first", "look", "last"] = ""
        self.reduction: Literal["mean", "none"] = "mean"
        self._optimizer: Any = None  # that ascends
        self._losses: dict[str, Tensor] = {}  # of each sample, by the meeting

    @property
    def again(self) -> bool:
        """Whether the batch at hand has been met before."""
        return self.meeting in ("look", "last")

    def welcome(self, optimizer: Any, compiled: bool, note: Callable[[str], None]) -> None:
        """Fit an optimiser of the run to what it will meet, and note what that costs.

        Args:
            optimizer: any; one that does not ascend stays as it is.
            compiled: its network is compiled, which would have to be done again for each set of tensors with gradients.
            note: records a sentence.
        """
        if not ascends(optimizer):
            return
        if compiled:
            optimizer.spares = False
            note(
                "A batch that is met again is compiled for its second form too, which takes as long as the first time; "
                "and gradients of weights that the ascent leaves out are computed all the same."
            )
        if optimizer.local and self.world_size > 1:
            note(
                f"Each of {self.world_size} processes ascends along its own gradient, so the result is not that of one "
                "process."
            )

    def of(
        self,
        batch_size: int | Recipe,
        split: Split,
        samples: Tensor,
        read: Callable[..., Batch],
        view: int,
        augment: bool,
        step: int,
    ) -> Iterator[Met]:
        """The meetings with a batch: one, or more if its loop has a recipe and an optimiser of the stage ascends.

        Args:
            batch_size: of the loop, or its recipe.
            samples: of the global batch, positions in ``split``.
            read: fetches samples by their positions, in a view or none.
            view: the number of the view.
            augment: let the split augment its samples.
            step: the number of the batch in this epoch.
        """
        stage, recipe = self._stages.top, batch_size if isinstance(batch_size, Recipe) else None
        key = self._seed, view
        read = partial(read, view=key if augment else None)
        self._stages.seed(stage.epoch, step, self.rank)
        own = self._part(samples)
        batch = read(own)
        if recipe is not None and recipe.mix != "none":
            mine = self._part(torch.arange(len(samples)))
            batch = self._mixer(stage, recipe, split)(batch, samples, split.labels[samples], mine, read, key)
        met = batch, len(own) * self.world_size / len(samples), len(samples)
        found = [thing for thing in stage.state.values() if ascends(thing)] if recipe is not None else []
        if not found:
            yield met
            return
        if len(found) > 1:
            raise RuntimeError(f"{len(found)} optimisers of stage '{stage.name}' ascend, and one can")
        self._optimizer, self._losses = found[0], {}
        self._optimizer.prepare(self._stages.generator(stage.epoch, step, "sharpness"))
        self.meeting, self.reduction = "first", "none" if self._optimizer.select < 1 else "mean"
        try:
            yield met
            if self._optimizer.ascended:
                yield from self._again(stage, met, step)
        finally:  # also where the loop is left early, or by an error
            self.meeting, self.reduction = "", "mean"
            self._optimizer.restore()

    def _mixer(self, stage: Stage, recipe: Recipe, split: Split) -> Any:
        """The mixer of a stage, made when the first batch comes."""
        if stage.mixer is None:
            network = next(thing for thing in stage.state.values() if isinstance(thing, nn.Module))
            known = hasattr(split, "mean") and hasattr(split, "std")
            normalisation = (split.mean, split.std) if known else None  # type: ignore[attr-defined]
            stage.mixer = maker(recipe.mix).Mixer(recipe, network, self.teacher, normalisation)
        return stage.mixer

    def show(self, stage: Stage, classes: tuple[str, ...], leave: Callable[[str, dict[str, Any]], None]) -> None:
        """Leave a picture of what was mixed, once: at the end of a stage's last epoch.

        Args:
            classes: their names.
            leave: takes a picture by its name.
        """
        if stage.mixer is None or self.rank or stage.epoch + 1 < stage.length:
            return
        if (picture := stage.mixer.picture(classes)) is not None:
            leave("mixing" if stage.name == "main" else f"mixing-{stage.name}", picture)

    def _again(self, stage: Stage, met: Met, step: int) -> Iterator[Met]:
        with contextlib.ExitStack() as still:
            for thing in stage.state.values():
                if isinstance(thing, nn.Module):
                    still.enter_context(unrecorded(thing))
            if self._optimizer.select < 1:
                self.meeting = "look"
                self._stages.seed(stage.epoch, step, self.rank)
                with torch.no_grad():
                    yield met
                met = self._sharpest(met)
            self.meeting = "last"
            self._stages.seed(stage.epoch, step, self.rank)
            yield met

    def _sharpest(self, met: Met) -> Met:
        """This process' share of the samples whose loss rises most; of none, its own sharpest, which weighs nothing."""
        batch, _, count = met
        before, after = (collective.gather(self._losses[name], self.world_size) for name in ("first", "look"))
        chosen = self._optimizer.sharpest(before, after, max(2, self.world_size))  # as few as any batch has
        mine = self._part(torch.arange(count)).to(chosen.device)
        own = chosen[(chosen >= mine[0]) & (chosen <= mine[-1])]
        share = len(own) * self.world_size / len(chosen)
        if not len(own):
            own = mine[(after - before)[mine].argmax()][None]
        rows = own - mine[0]
        index = batch.index[rows.to(batch.index.device)]
        return Batch(batch.inputs[rows], batch.labels[rows.to(batch.labels.device)], index), share, len(chosen)

    def _part(self, samples: Tensor) -> Tensor:
        return samples.tensor_split(self.world_size)[self.rank]

    # -- what the body does -------------------------------------------------------------------------------------

    def backward(self, loss: Tensor, weight: float) -> None:
        """Accumulate gradients of ``weight`` times a loss, or note it where this meeting only looks.

        Args:
            loss: scalar, or one loss a sample (b,), which stands for their mean.
        """
        if self.reduction == "none":
            if loss.ndim != 1:
                _wrong("hands run.backward one number, and the loss of each sample is needed", "selection")
            self._losses[self.meeting] = loss.detach()
            if self.meeting == "look":
                return
        loss = loss if loss.ndim == 0 else loss.mean()
        (loss if weight == 1.0 else loss * weight).backward()

    def update(self, optimizer: Any, clip: float | None) -> None:
        """Step, or do what this meeting asks for in its place.

        Raises:
            UserError: a gradient that is not finite; the weights are those before the ascent.
            RuntimeError: the loop is none that a batch can be met in again.
        """
        if optimizer is not self._optimizer or not self.meeting:
            if self.again:
                _wrong("updates by an optimiser that does not ascend, which would do so twice a batch", "sharpness")
            if ascends(optimizer):
                _wrong("takes run.batches(split, batch_size) in place of run.batches(split, recipe)", "sharpness")
            self._updates.step(optimizer, clip)
        elif self.meeting == "first":
            if optimizer.ascended:
                _wrong("updates twice with one batch", "sharpness")
            self._updates.ascend(optimizer)
        elif self.meeting == "last":
            try:
                self._updates.step(optimizer, clip)
            except BaseException:
                optimizer.restore()
                raise

    def draw(self) -> None:
        """Raise where the body takes what it had another of in the first meeting."""
        if self.again:
            _wrong("takes batches of run.others, which would be others when a batch is met again", "sharpness")


def _wrong(does: str, ingredient: str) -> NoReturn:
    raise RuntimeError(f"this loop {does}: its method must not admit '{ingredient}'")
