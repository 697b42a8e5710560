"""Where the stages of a run stand: their registered state, their loops, their save points, their randomness."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from upcycle.core import collective, sampling, seeds
from upcycle.core.batches import Split, divide, view_of
from upcycle.core.devices import Processes, match_layout
from upcycle.core.errors import UserError, one_line, require
from upcycle.core.interrupt import Interrupted
from upcycle.core.journal import Journal
from upcycle.core.recipe import Recipe
from upcycle.core.updates import Updates

LEAST = 15.0
"""Seconds between two save points at least, where it is not said otherwise."""
SHARE = 0.02
"""Share of the time that they take at most."""


class Stage:
    """One stage of a run while it runs; :class:`upcycle.core.run.Run` has a stack of them.

    Args:
        name: unique within the enclosing stage.
        device: of what is tracked.
    """

    def __init__(self, name: str, device: torch.device) -> None:
        self.name, self.device = name, device
        self.state: dict[str, Any] = {}
        self.looping = False  # the outermost loop has started
        self.length = 1  # of the outermost loop
        self.epoch = 0
        self.step = 0  # of the batch loop in this epoch
        self.steps = 1
        self.batch_loop = False  # a batch loop is running
        self.within = False  # it has save points of its own
        self.clean = True  # no update and no batch loop since this epoch began
        self.resume_step = 0
        self.index = torch.empty(0, dtype=torch.int64)  # of the samples at hand on this process
        self.mixer: Any = None  # of its batches, see upcycle.core.meetings
        self._marks: Any = None  # of the state when this epoch began
        self._tracked: dict[str, tuple[Tensor, int]] = {}  # sums since this epoch began

    @property
    def progress(self) -> float:
        """The share of the outermost loop that is done, from 0 to below 1."""
        return (self.epoch + self.step / max(self.steps, 1)) / self.length

    def register(self, name: str, thing: Any) -> None:
        """Add state, see :meth:`upcycle.core.run.Run.register`."""
        if self.looping:
            raise RuntimeError(f"'{name}' must be registered before the loop of stage '{self.name}' starts")
        if name in self.state:
            raise RuntimeError(f"'{name}' is registered twice in stage '{self.name}'")
        self.state[name] = thing

    def start_loop(self, length: int) -> None:
        """Start the outermost loop, of ``length`` epochs."""
        if self.looping:
            raise RuntimeError(f"stage '{self.name}' has had its outermost loop; put this one in a stage of its own")
        self.looping, self.length = True, max(length, 1)

    def start_epoch(self, epoch: int) -> None:
        """Start a pass of the outermost loop."""
        self.epoch, self.step, self.clean, self._marks = epoch, 0, True, _marks(self.state)

    def means(self) -> dict[str, Tensor]:
        """The mean of each value that was tracked over this epoch."""
        return {name: total / n for name, (total, n) in self._tracked.items()}

    def rates(self) -> dict[str, float]:
        """The learning rate of each optimiser, the highest of its groups; nothing for what has none."""
        made = [thing for thing in self.state.values() if isinstance(thing, torch.optim.Optimizer)]
        return {f"lr{i or ''}": max(group["lr"] for group in one.param_groups) for i, one in enumerate(made)}

    def end_epoch(self) -> None:
        """End a pass of the outermost loop."""
        self._tracked, self.epoch, self.step = {}, self.epoch + 1, 0

    def start_batches(self, outermost: bool, save_within: bool | None, steps: int) -> tuple[bool, int]:
        """Start a batch loop of so many steps.

        Returns:
            whether it has save points within, see :meth:`upcycle.core.run.Run.batches`, and its first step.
        """
        if self.batch_loop:
            raise RuntimeError("a batch loop runs inside another: read the second split with split.batch(...)")
        clean = outermost or (self.clean and (save_within is False or self._marks == _marks(self.state)))
        if save_within and not clean:
            raise RuntimeError("save_within needs a batch loop that nothing before it in the epoch changes state")
        self.batch_loop, self.within = True, outermost or (clean if save_within is None else save_within)
        if not self.within:
            return False, 0
        first, self.resume_step, self.steps = self.resume_step, 0, steps
        return True, first

    def end_batches(self) -> None:
        """End the batch loop."""
        self.batch_loop, self.within, self.clean = False, False, False

    def track(self, name: str, value: Tensor) -> None:
        """Add to the mean of ``name`` over this epoch; of several values, one a sample, their mean."""
        total, n = self._tracked.get(name, (torch.zeros((), device=self.device), 0))
        value = value.detach()
        self._tracked[name] = (total + (value.mean() if value.ndim else value), n + 1)

    def state_dict(self) -> dict[str, Any]:
        """The registered state and what was tracked, for a save point."""
        state = {n: thing if isinstance(thing, Tensor) else thing.state_dict() for n, thing in self.state.items()}
        return {**state, "tracked": self._tracked}

    def load_state_dict(self, state: dict[str, Any], epoch: int, step: int) -> None:
        """Go back to the save point at ``epoch`` and ``step``; ``state`` is what :meth:`state_dict` gave."""
        self._tracked = {name: (total.to(self.device), n) for name, (total, n) in state["tracked"].items()}
        for name, thing in self.state.items():
            if isinstance(thing, Tensor):
                thing.detach().copy_(state[name])
            else:
                thing.load_state_dict(state[name])
            if isinstance(thing, torch.optim.Optimizer):
                match_layout(thing)
        self.epoch, self.resume_step = epoch, step


class Stages:
    """The stages of a run that are under way, each inside the one before.

    Args:
        journal: keeps what finished stages left, and save points.
        updates: their count goes back to that of what is recalled.
        fabric: the processes.
        seed: of everything random.
        save_every: seconds between save points; ``None``: by what the last one cost.
    """

    def __init__(
        self, journal: Journal, updates: Updates, fabric: Processes, seed: int, save_every: float | None
    ) -> None:
        self._journal, self._updates, self._fabric = journal, updates, fabric
        self._seed, self._save_every = seed, save_every
        self._last_save = time.monotonic()
        self._cost = 0.0  # of the last save point, seconds
        self._stack: list[Stage] = []
        self._done: set[str] = set()  # paths that this process has begun or recalled

    @property
    def top(self) -> Stage:
        """The innermost one."""
        return self._stack[-1]

    @property
    def path(self) -> str:
        """The names of all, joined by slashes."""
        return "/".join(stage.name for stage in self._stack)

    def place(self) -> str:
        """Where the run is, in words."""
        samples = ", ".join(str(int(i)) for i in self.top.index[:4])
        return f"{self.path}, epoch {self.top.epoch}, step {self.top.step} (samples {samples}, ...)"

    def seed(self, *parts: object) -> None:
        """Seed everything for this place: ``parts`` in this stage."""
        seeds.seed_everything(self._seed, self.path, *parts)

    def generator(self, *parts: object) -> torch.Generator:
        """Random numbers of their own for ``parts`` in this stage."""
        return torch.Generator().manual_seed(seeds.seed_of(self._seed, self.path, *parts))

    def order(self, epoch: int, name: str, n: int, number: int) -> Tensor:
        """A permutation of ``n`` samples for pass ``number`` over them in this epoch; ``name`` tells streams apart."""
        parts = (epoch, number, name, "order") if name else (epoch, number, "order") if number else (epoch, "order")
        return torch.randperm(n, generator=self.generator(*parts))

    def batches(
        self, split: Split, batch_size: int | Recipe, steps: int | None, shuffle: bool | None, views: int
    ) -> list[tuple[int, Tensor]]:
        """The batches of a loop in this epoch, each with its view; see :meth:`upcycle.core.run.Run.batches`.

        A sampler but "instance" draws a sample more than once in a pass. So every batch has a view of its own, unless
        views repeat.
        """
        stage = self.top
        size = batch_size.batch_size if isinstance(batch_size, Recipe) else batch_size
        sampler = batch_size.sampler if isinstance(batch_size, Recipe) else "instance"
        drawn = sampler != "instance"
        if shuffle is None:
            shuffle = not getattr(split, "ordered", False)
        done = stage.epoch / stage.length  # when the epoch began, so that a resumed one draws alike

        def order(n: int, number: int) -> Tensor:
            if not shuffle:
                return torch.arange(n)
            if not drawn:
                return self.order(stage.epoch, "", n, number)
            generator = self.generator(stage.epoch, number, sampler, "order")
            return sampling.order(split.labels, sampler, done, generator)

        found = divide(len(split), size, steps, max(2, self._fabric.world_size), order)
        each = drawn and not views
        return [(view_of(stage.epoch, step if each else number, views), b) for step, (number, b) in enumerate(found)]

    def synchronise(self, split: Split) -> None:
        """Leave BatchNorm to each process where every one sees all samples of a split, which would be counted twice."""
        if self._fabric.world_size > 1 and split.together:
            for thing in (thing for stage in self._stack for thing in stage.state.values()):
                if isinstance(thing, nn.Module):
                    collective.leave_batchnorm(thing)

    def is_stored(self, name: str) -> bool:
        """Whether the stage ``name`` inside the innermost one is finished."""
        return f"{self.path}/{name}" in self._journal.stages

    def recall(self, name: str, like: Any) -> Any:
        """Recall the result of the finished stage ``name``, which must fit the pattern ``like``."""
        found, self._updates.count = self._journal.recall(self._once(name), like)
        self.seed("after", name)
        return found

    def begin(self, name: str) -> None:
        """Enter the stage ``name``."""
        self._once(name)
        self.enter(name)

    def enter(self, name: str) -> None:
        """Enter a stage, the first one too."""
        self._stack.append(Stage(name, self._updates.device))
        self.seed()

    def leave(self) -> tuple[str, str]:
        """Leave the innermost stage; returns its path and its name."""
        return self.path, self._stack.pop().name

    def _once(self, name: str) -> str:
        """The path of a stage that is about to run or to be recalled, for the first time here."""
        if self.top.looping and self.top.epoch < self.top.length:  # it would be stored once, and returned in every pass
            raise RuntimeError(f"stage '{name}' cannot start inside the loop of stage '{self.top.name}'")
        path = f"{self.path}/{name}"
        if path in self._done:
            raise RuntimeError(f"stage '{path}' runs twice")
        self._done.add(path)
        return path

    def start_loop(self, length: int) -> None:
        """Start the outermost loop of the innermost stage, at its save point where there is one.

        Raises:
            UserError: the save point holds other state than is registered.
        """
        stage = self.top
        stage.start_loop(length)
        if (saved := self._journal.saved(self.path)) is None:
            return
        state, where = saved
        held = ", ".join(name for name in state if name != "tracked")
        require(
            set(state) == {*stage.state, "tracked"},
            f"{self._journal.directory} holds other state ({held}) than this version of the method registers "
            f"({', '.join(stage.state)}); start anew in another --out.",
        )
        try:
            stage.load_state_dict(state, where["epoch"], where["step"])
        except (LookupError, TypeError, ValueError, AttributeError, RuntimeError) as error:
            raise UserError(
                f"{self._journal.directory} holds a save point that does not fit this run ({one_line(error)}); start "
                "anew in another --out."
            ) from error
        require(
            where["epoch"] <= length,
            f"{self._journal.directory} holds a save point after epoch {where['epoch']} of {length}; start anew in "
            "another --out.",
        )
        self._updates.count = where["updates"]

    def save_if_due(self, interrupt: int | None, every: int = 1) -> int | None:
        """Make a save point when it is time, or when a signal asks for an end.

        Args:
            interrupt: the signal, if there was one.
            every: with several processes, steps between two questions whether it is time.

        Returns:
            the signal, where there is one but it was not the time to ask.

        Raises:
            Interrupted: after a save point, where there is a signal.
        """
        due = time.monotonic() - self._last_save >= self._interval or interrupt is not None
        if self._fabric.world_size > 1:  # a signal to any process is one to all, and asking costs a message
            if self.top.step % every:
                return interrupt
            asked = collective.largest(int(due), interrupt or 0, device=self._fabric.device)
            due, interrupt = bool(asked[0]), asked[1] or None
        if due:
            self.save()
        if interrupt is not None:
            raise Interrupted(interrupt)
        return None

    @property
    def _interval(self) -> float:
        """Seconds from one save point to the next."""
        return max(LEAST, self._cost / SHARE) if self._save_every is None else self._save_every

    def save(self) -> None:
        """Make a save point of the innermost stage: its registered state, and where its loop stands."""
        begun = time.monotonic()
        self._updates.check()
        self._fabric.barrier()  # others may still read what this replaces
        if self._journal.writes:
            where = {"epoch": self.top.epoch, "step": self.top.step, "updates": self._updates.count}
            self._journal.save(self.path, self.top.state_dict(), **where)
        self._fabric.barrier()
        self._last_save = time.monotonic()
        self._cost = self._last_save - begun

    def finish(self, path: str, result: Any) -> None:
        """Keep what the stage ``path`` left."""
        self._updates.check()
        self._fabric.barrier()  # as in save
        self._journal.finish(path, result, self._updates.count)
        self._fabric.barrier()


def _marks(state: Any) -> Any:
    """Marks that differ once a state was written to: torch counts writes to a tensor and to all that share it."""
    if isinstance(state, Tensor):
        return state.shape, state._version
    if isinstance(state, np.ndarray):
        return state.tobytes()
    if hasattr(state, "state_dict"):
        return _marks(state.state_dict())
    if isinstance(state, dict):
        return {key: _marks(value) for key, value in state.items()}
    return [_marks(value) for value in state] if isinstance(state, list | tuple) else state
