"""``Run``: the directory, devices, randomness, save points and log around a method's open loops.

A method writes its loops; ``Run`` makes them resumable, logged and equal on one or several processes::

    student, optimizer = run.setup(student, recipe)
    for epoch in run.epochs(recipe.epochs):
        for images, labels, index in run.batches(data.train, recipe.batch_size):
            run.step(loss(student(images), labels), optimizer, recipe)
        run.evaluate(student, data.validation)

*Stages.* ``run.stage(name, fn)`` runs ``fn`` once and stores what it returns; on resume it returns that. With
``run.stored(name)`` and ``run.open_stage(name)`` the body of a stage stands in the open. The unfinished stage
re-enters at the last save point of its outermost loop; loops inside are atomic, but for a batch loop that nothing in
the epoch precedes which changes state. Each stage has one outermost loop, and state is registered before it starts.

*Randomness* is stateless: every step is seeded from (seed, stage, step, rank), every shuffle from (seed, stage,
epoch), every sample's augmentation from (seed, epoch, sample). So nothing about generators needs saving.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import torch
from torch import Tensor, nn

from upcycle.core import collective, store
from upcycle.core.batches import Batch, Split, endless, read_in_order, reading_ahead
from upcycle.core.devices import launch, make_deterministic, place, plain
from upcycle.core.errors import require
from upcycle.core.evaluate import measured
from upcycle.core.frozen import Frozen
from upcycle.core.guide import frozen_for
from upcycle.core.interrupt import Interrupted, catching
from upcycle.core.journal import Journal
from upcycle.core.log import Log, LoggerName
from upcycle.core.meetings import Meetings
from upcycle.core.outputs import gives_probabilities
from upcycle.core.precision import Precision, choose
from upcycle.core.recipe import Recipe
from upcycle.core.seeds import seed_of
from upcycle.core.stage import Stage, Stages
from upcycle.core.task import Measured
from upcycle.core.updates import Updates

if TYPE_CHECKING:
    from upcycle.core.models import Model

Network = TypeVar("Network", bound=nn.Module)
ROOT = "main"


class Run:
    """One run of a method: its directory, seed, devices, save points and log.

    Args:
        directory: where everything goes; ``None`` writes nothing.
        seed: of everything random.
        resume: go on from what ``directory`` holds.
        devices, accelerator, num_nodes: see :func:`upcycle.core.devices.launch`.
        precision: 32-true, bf16-mixed or 64-true; auto takes bf16-mixed where that is fast, and for tensors alone.
        teacher_precision: auto takes bf16 for a frozen teacher where that is fast and its answers stay the same.
        save_every: seconds between save points; if not given, 15, or so many that they take at most 2 % of the time.
        compile: compile what is set up with ``torch.compile``; pays for itself in long runs.
        config: what ``config.yaml`` records; a resumed run must bring the same.
        quiet: no progress: no bar on a terminal, and no line an epoch elsewhere.
        logger: what else gets figures and pictures, see :mod:`upcycle.core.loggers`.
    """

    def __init__(
        self,
        directory: str | Path | None = None,
        *,
        seed: int = 0,
        resume: bool = False,
        devices: int | None = 1,
        accelerator: str = "auto",
        num_nodes: int = 1,
        precision: Precision = "auto",
        teacher_precision: Literal["auto", "32-true"] = "auto",
        save_every: float | None = None,
        compile: bool = False,
        config: dict[str, Any] | None = None,
        quiet: bool = False,
        logger: LoggerName = "auto",
    ) -> None:
        self.directory = Path(directory) if directory is not None else None
        self.seed, self.compile, self.teacher_precision = seed, compile, teacher_precision
        self.fabric = launch(devices, accelerator, num_nodes)
        self.rank, self.world_size = self.fabric.global_rank, self.fabric.world_size
        self.device: torch.device = self.fabric.device
        make_deterministic(self.device)
        self.journal = Journal(self.directory, self.rank == 0)
        self.machine = self.journal.open(resume, choose(precision, self.device), self.world_size, config)
        self.fabric.barrier()
        self.precision: str = self.machine["precision"]
        self.notes, self._auto = self.journal.notes, precision == "auto"
        self._log = Log(self.journal, quiet or self.rank > 0, lambda: self.progress, logger, config)
        self.left: dict[str, Any] = {}  # see leave
        self.classes: tuple[str, ...] = ()  # names, for pictures; set by Method.begin
        self.interrupt: int | None = None  # the signal that asked for an end
        self.view = self.count = 0  # of the batch at hand: see batches; its samples, over all processes
        self._share = 1.0  # of this process in it, times the number of processes
        self._updates = Updates(self.device, self.world_size, lambda: self._stages.place())
        self._stages = Stages(self.journal, self._updates, self.fabric, seed, save_every)
        self._meetings = Meetings(self._stages, self._updates, self.fabric, seed)
        self._stages.enter(ROOT)

    def begin(self, inputs: Mapping[str, str], code: Mapping[str, str] | None = None) -> None:
        """Record what goes into this run, or compare with what it was begun with; see :meth:`Journal.begin`."""
        self.journal.begin(inputs, code or {})
        self._log.begin()
        self._stages.seed()  # whatever looking at the inputs drew

    # -- stages -------------------------------------------------------------------------------------------------

    @property
    def _stage(self) -> Stage:
        return self._stages.top

    def stage(self, name: str, fn: Callable[[], Any], like: Any = None) -> Any:
        """Run ``fn`` once and store what it returns; on resume return that. Tensors come back detached, on the CPU.

        Args:
            name: unique within the enclosing stage.
            fn: returns tensors and plain data, nested in dict, list and tuple.
            like: what comes back on resume must fit it, see :mod:`upcycle.core.patterns`.
        """
        if self._stages.is_stored(name):
            return self._stages.recall(name, like)
        self._stages.begin(name)
        return self._end(fn())

    def stored(self, name: str, like: Any = None) -> Any:
        """Recall the result of a stage, see :meth:`stage`; ``None`` if it has yet to run: then :meth:`open_stage`."""
        return self._stages.recall(name, like) if self._stages.is_stored(name) else None

    @contextlib.contextmanager
    def open_stage(self, name: str) -> Iterator[dict[str, Any]]:
        """A stage whose body is that of the ``with`` block; what it fills the dict with is stored when the block ends.

        Opened where :meth:`stored` gives ``None``: ``with run.open_stage(name) as found: ... found |= {...}``.

        Yields:
            an empty dict, for tensors and plain data; after the block it holds what :meth:`stored` returns.
        """
        self._stages.begin(name)
        left: dict[str, Any] = {}
        yield left
        stored = self._end(dict(left))
        left.clear()
        left.update(stored)

    def leave(self, name: str, thing: Any) -> None:
        """Hand over a result beside the network that ``fit`` returns, such as scores: ``run.left[name]``."""
        self.left[name] = thing

    def register(self, name: str, thing: Any) -> None:
        """Add state to save points, before the stage loops: with ``state_dict``, or a tensor (filled in place)."""
        self._stage.register(name, thing)

    def _end(self, result: Any) -> Any:
        result = store.unpack(*store.pack(result))
        path, name = self._stages.leave()
        self._finish_stage(path, result)
        self._stages.seed("after", name)
        return result

    def _finish_stage(self, path: str, result: Any) -> None:
        self._stages.finish(path, result)

    # -- loops --------------------------------------------------------------------------------------------------

    @property
    def dtype(self) -> torch.dtype:
        """The type that networks are trained in: float64 in a float64 run, or else float32."""
        return torch.float64 if self.precision == "64-true" else torch.float32

    @property
    def updates(self) -> int:
        """Optimiser steps so far, in all stages."""
        return self._updates.count

    @property
    def reduction(self) -> Literal["mean", "none"]:
        """The loss that :meth:`backward` is to get: "mean", or "none" where single samples are selected by it."""
        return self._meetings.reduction

    @property
    def progress(self) -> float:
        """The share of this stage's outermost loop that is done, from 0 to below 1."""
        return self._stage.progress

    def epochs(self, n: int) -> Iterator[int]:
        """The outermost loop: epochs 0 to n - 1, from where a resumed run stopped, with save points between."""
        stage = self._stage
        self._stages.start_loop(n)
        for epoch in range(stage.epoch, n):
            stage.start_epoch(epoch)
            self._stages.seed(epoch, "epoch", self.rank)
            self._log.show(self._stages.path, epoch, n)
            yield epoch
            self._end_epoch()
        self._updates.check()
        if self._stages.path == ROOT:  # so that a run that comes back finds itself done
            self._stages.save()

    def batches(
        self,
        split: Split,
        batch_size: int | Recipe,
        *,
        augment: bool = True,
        shuffle: bool | None = None,
        views: int = 0,
        steps: int | None = None,
        save_within: bool | None = None,
    ) -> Iterator[Batch]:
        """One pass over ``split``: this process' slice of each global batch. Outside :meth:`epochs` the outermost loop.

        Args:
            split: see :class:`upcycle.core.batches.Split`.
            batch_size: over all processes together; 0 for all at once. A last batch of one sample, or smaller than the
                number of processes, is dropped. A recipe in its place brings what it asks for.
            augment: let the split augment its samples, keyed by (seed, epoch, sample).
            shuffle: in an order drawn from (seed, stage, epoch). If not given, unless the split says that it is
                ``ordered``.
            views: if positive, augmentation repeats after so many passes, so that outputs can be cached.
            steps: so many batches, in as many passes as that takes, each in its own order and with its own
                augmentation; ``None`` for one pass.
            save_within: allow save points inside the epoch, between which :attr:`progress` moves. If not given, where
                nothing before it in the epoch's body changed registered state or took batches of :meth:`others`.
        """
        stage, outermost = self._stage, not self._stage.looping
        if outermost:
            self._stages.start_loop(1)
            if stage.epoch:  # a resumed run that had finished it
                return
        self._stages.synchronise(split)
        batches = self._stages.batches(split, batch_size, steps, shuffle, views)
        save_within, first = stage.start_batches(outermost, save_within, len(batches))
        read, todo = partial(self._read, split), batches[first:]
        try:
            with reading_ahead(split, ((self._mine(s), (self.seed, v) if augment else None) for v, s in todo)):
                for step, (self.view, samples) in enumerate(todo, first):
                    stage.step = step if save_within else stage.step
                    met = self._meetings.of(batch_size, split, samples, read, self.view, augment, step)
                    for batch, self._share, self.count in met:
                        self._stage.index = batch.index
                        yield batch
                    if save_within and step + 1 < len(batches):
                        stage.step = step + 1
                        self.interrupt = self._stages.save_if_due(self.interrupt, every=16) or self.interrupt
        finally:
            stage.end_batches()
        if outermost:
            self._end_epoch()

    def others(
        self, split: Split, batch_size: int, name: str, *, among: Tensor | None = None, augment: bool = True
    ) -> Iterator[Batch]:
        """Batches of a second split, without end, to be taken beside those of :meth:`batches` or of each other.

        Each pass has its own order and augmentation, drawn from (seed, stage, epoch, name). What is left at the end
        of a pass joins the next one, so that every batch is whole. Made anew in each epoch, so the batch loop beside
        it has no save points within.

        Args:
            batch_size: over all processes together; each gets its share. 0 for all at once.
            name: of this stream; two streams of one split differ.
            among: positions in ``split`` (int64, on the CPU) that the stream is restricted to; ``None`` for all.
        """
        self._stage.clean = False
        self._stages.synchronise(split)
        places = torch.arange(len(split)) if among is None else among
        require(len(places) > 0, f"There are no samples for the batches of {name}.")
        epoch = self._stage.epoch
        asked = (
            (self._mine(samples), (self.seed, seed_of(name, epoch, i) % 2**31) if augment else None)
            for i, samples in endless(places, batch_size, partial(self._stages.order, epoch, name))
        )
        return read_in_order(split, asked, self._read)

    def _read(self, split: Split, samples: Tensor, view: tuple[int, int] | None) -> Batch:
        if not self._stage.batch_loop:
            self._stage.index = samples
        self._meetings.draw()
        batch = split.batch(samples, device=self.device, view=view)
        return batch._replace(inputs=batch.inputs.double()) if self.precision == "64-true" else batch

    def _mine(self, samples: Tensor) -> Tensor:
        return samples.tensor_split(self.world_size)[self.rank]

    def generator(self, name: str) -> torch.Generator:
        """Random numbers for ``name`` in this stage and epoch, the same on every process and after a resume.

        For what all processes must draw alike, such as a global batch of noise; it lives on the CPU.
        """
        return self._stages.generator(self._stage.epoch, "generator", name)

    def mine(self, n: int) -> Tensor:
        """This process' share of ``n`` things that every process holds: positions, int64; equally many on each."""
        problem = f"{n} samples do not divide among {self.world_size} processes; take a multiple."
        require(n % self.world_size == 0, problem)
        self._stage.index = self._mine(torch.arange(n))
        return self._stage.index

    def _end_epoch(self) -> None:
        means = self._stage.means()
        if self.world_size > 1:
            means = {name: self.fabric.all_reduce(mean) for name, mean in means.items()}
        self.log(**means, **self._stage.rates())
        self._log.end_epoch(self._stage.epoch + 1, self._stage.length)
        self._meetings.show(self._stage, self.classes, self.picture)
        self._stage.end_epoch()
        self.interrupt = self._stages.save_if_due(self.interrupt) or self.interrupt  # it may come while that is written

    # -- training -----------------------------------------------------------------------------------------------

    def setup(
        self, module: Network, optimizer: Recipe | Callable[[Network], torch.optim.Optimizer] | None = None
    ) -> tuple[Network, Any]:
        """Put a module on the device, ready to train, and make its optimiser; both join the save points.

        The module stays what it is: its ``forward`` is wrapped in this run's precision until :meth:`plain`.
        """
        place(module, self.device, self.dtype, self.precision, self.world_size, self._auto)
        if self.compile:
            module.compile()
        number = sum(key.startswith("module") for key in self._stage.state)
        self.register(f"module{number}", module)
        if optimizer is None:
            return module, None
        made = optimizer.make(module) if isinstance(optimizer, Recipe) else optimizer(module)
        self.register(f"optimizer{number}", made)
        self._meetings.welcome(made, self.compile, self.note)
        return module, made

    def frozen(self, model: Model, split: Split | None, **kept: bool) -> Frozen:
        """A teacher made fast for this run (see :func:`upcycle.core.frozen.frozen`), checked on up to 256 samples.

        Args:
            split: whose batches the teacher will see, renormalised where it expects others; ``None``: checked on noise.
            kept: what the method needs of it: ``input_grad``, ``keep_bn``, ``keep_modules``.
        """
        precision = "64-true" if self.precision == "64-true" else self.teacher_precision
        made = frozen_for(split, model, self.device, precision, **kept)
        self.machine[model.name], self._meetings.teacher = made.summary(), model
        return made

    def step(
        self,
        loss: Tensor,
        optimizer: torch.optim.Optimizer,
        recipe: Recipe | None = None,
        reduction: Literal["mean", "sum", "global"] = "mean",
        clip: float | None = None,
    ) -> None:
        """One ordinary step: set the learning rate, :meth:`backward`, :meth:`update`, and track ``loss``.

        Args:
            loss: see :meth:`backward`.
            optimizer: what :meth:`setup` made.
            recipe: whose schedule sets the learning rate by :attr:`progress`; ``None`` leaves it as it is.
            reduction: see :meth:`backward`.
            clip: see :meth:`update`.
        """
        if recipe is not None:
            recipe.schedule_rate(optimizer, self.progress)
        self.backward(loss, reduction)
        self.update(optimizer, clip)
        self.track(loss=loss * self.world_size if reduction == "sum" else loss)

    def backward(self, loss: Tensor, reduction: Literal["mean", "sum", "global"] = "mean") -> None:
        """Accumulate gradients of ``loss``.

        Args:
            loss: scalar; or one loss a sample, (b,), which stands for their mean.
            reduction: how ``loss`` treats this process' samples, so that several processes equal one: their mean,
                their sum, or a value of the gathered global batch that is the same on every process.
        """
        weights = {"mean": self._share, "sum": float(self.world_size), "global": 1.0}
        self._meetings.backward(loss, weights[reduction] if self.world_size > 1 else 1.0)
        self._stage.clean = False

    def update(self, optimizer: torch.optim.Optimizer, clip: float | None = None) -> None:
        """Average gradients over processes, stop before one that is not a number, step, and clear them.

        An optimiser that asks for it meets the same batch again, with the same random numbers; only the last meeting
        counts as an update.

        Args:
            clip: largest allowed norm of the whole gradient.
        """
        if self.interrupt is not None and not self._stage.within:  # the last save point is what there is
            raise Interrupted(self.interrupt)
        self._meetings.update(optimizer, clip)
        self._stage.clean = False

    def gather(self, x: Tensor) -> Tensor:
        """Concatenate ``x`` (b, ...) of all processes, differentiably; use with ``backward(..., "global")``."""
        return collective.gather(x, self.world_size)

    def plain(self, module: nn.Module) -> nn.Module:
        """The module as an ordinary one: on the CPU, in :attr:`dtype`, contiguous, in eval mode, nothing wrapped."""
        return plain(module, self.dtype)

    # -- what is seen -------------------------------------------------------------------------------------------

    def log(self, **values: float | Tensor) -> None:
        """Record scalars at the current epoch, in ``metrics.csv`` and with the logger."""
        found = {name: float(value) for name, value in values.items()}
        self._log.add(self._stages.path, self._stage.epoch, self.updates, found)

    def track(self, **values: Tensor) -> None:
        """Add to each value's mean over the epoch, which is logged when the epoch ends; no host synchronisation."""
        for name, value in values.items() if not self._meetings.again else ():
            self._stage.track(name, value)

    def evaluate(self, module: nn.Module, split: Split, name: str = "validation") -> Measured | None:
        """Measure a network on a split and log the figures of the task; every process answers its part of the samples.

        ``None`` where no sample has a label. No loss is logged of scores that are no probabilities.
        """
        if split.labels is not None and not bool(split.task.known(split.labels).any()):
            return None
        found, sure = measured(module, split, among=self.fabric), gives_probabilities(module)
        self.log(**{f"{name}_{key}": value for key, value in found.figures.items() if sure or key != "loss"})
        return found

    def picture(self, name: str, data: dict[str, Any]) -> None:
        """Leave a picture for the report: ``kind`` (images, heatmap, lines, bars), ``title``, ``caption``, data."""
        self._log.picture(name, data, self.updates)

    def note(self, text: str) -> None:
        """Record a sentence that the person must read; once, however often the run resumes."""
        self._log.note(text)

    def interruptible(self) -> contextlib.AbstractContextManager[None]:
        """Let Ctrl-C and SIGTERM save at the next step and then raise :class:`Interrupted`; a second one kills."""
        return catching(lambda signum: setattr(self, "interrupt", signum))

    def close(self) -> None:
        """Finish the log, and let other processes write the directory."""
        self._log.close()
        self.journal.close()
