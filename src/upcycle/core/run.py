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
import csv
import hashlib
import io
import logging
import os
import random
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import MethodType
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from upcycle.core import collective, store
from upcycle.core.batches import Batch, Split
from upcycle.core.errors import UserError, require
from upcycle.core.precision import Precision, autocast, choose, double
from upcycle.core.progress import Progress
from upcycle.core.recipe import Recipe

if TYPE_CHECKING:
    from lightning_fabric import Fabric

    from upcycle.core.evaluate import Evaluation
    from upcycle.core.frozen import Frozen
    from upcycle.core.models import Model

Network = TypeVar("Network", bound=nn.Module)
ROOT = "main"
_PASS = 1_000_003  # apart from each other in the numbering of views: an epoch's further passes over a split


class Interrupted(Exception):
    """Ctrl-C or a termination signal, after the state was saved; the command line exits with 128 + signal."""

    def __init__(self, signum: int) -> None:
        super().__init__(f"interrupted by {signal.Signals(signum).name}")
        self.signum = signum


def seed_of(*parts: object) -> int:
    """A 63-bit seed from anything that prints, the same on every machine."""
    return int.from_bytes(hashlib.blake2b(repr(parts).encode(), digest_size=8).digest(), "big") >> 1


def seed_everything(*parts: object) -> None:
    """Seed torch, numpy and Python from ``parts``."""
    seed = seed_of(*parts)
    torch.manual_seed(seed)
    np.random.seed(seed & 0xFFFFFFFF)
    random.seed(seed)


class _Stage:
    """Where a stage stands: its registered state, its loop, and what a resumed run found saved for it."""

    def __init__(self, name: str, saved: dict[str, Any] | None) -> None:
        self.name = name
        self.saved = saved
        self.state: dict[str, Any] = {}
        self.looping = False  # the outermost loop has started
        self.length = 1  # of the outermost loop
        self.epoch = 0
        self.step = 0  # of the batch loop in this epoch
        self.steps = 1
        self.batch_loop = False  # a batch loop is running
        self.within = False  # it has save points of its own
        self.clean = True  # no update and no batch loop since this epoch began
        self.marks: Any = None  # of the state when it began, see _marks
        self.resume_step = 0
        self.tracked: dict[str, tuple[Tensor, int]] = {}  # sums since the epoch began


class Run:
    """One run of a method: its directory, seed, devices, save points and log.

    Args:
        directory: where everything goes; ``None`` writes nothing.
        seed: of everything random.
        resume: go on from what ``directory`` holds.
        devices, accelerator: as in Lightning Fabric.
        precision: 32-true, bf16-mixed or 64-true; auto takes bf16-mixed where the machine's flags say that it is
            fast, float32 elsewhere.
        teacher_precision: auto takes bf16 for a frozen teacher where that is fast and its answers stay the same.
        save_every: seconds between save points. When they fall changes no result.
        compile: compile what is set up with ``torch.compile``; pays for itself in long runs.
        config: what ``config.yaml`` records; a resumed run must bring the same.
        quiet: no progress on the terminal; there is none off a terminal anyway.
    """

    def __init__(
        self,
        directory: str | Path | None = None,
        *,
        seed: int = 0,
        resume: bool = False,
        devices: int = 1,
        accelerator: str = "auto",
        precision: Precision = "auto",
        teacher_precision: Literal["auto", "32-true"] = "auto",
        save_every: float = 15.0,
        compile: bool = False,
        config: dict[str, Any] | None = None,
        quiet: bool = False,
    ) -> None:
        self.directory = Path(directory) if directory is not None else None
        self.seed, self.save_every, self.compile = seed, save_every, compile
        self.teacher_precision = teacher_precision
        self.fabric = _launch(devices, accelerator)
        _deterministic(self.fabric.device)
        self.rank, self.world_size = self.fabric.global_rank, self.fabric.world_size
        self.device: torch.device = self.fabric.device
        self.notes: list[str] = []
        self.interrupt: int | None = None
        self.left: dict[str, Any] = {}  # see leave
        self._results: dict[str, dict[str, Any]] = {}
        self._fresh: set[str] = set()  # stages that this process itself finished
        self._files: dict[str, dict[str, Any]] = {}
        self._current: dict[str, Any] | None = None
        self._stack: list[_Stage] = []
        self._rows: list[list[Any]] = []
        self._global_share = 1.0
        self._last_save = time.monotonic()
        self._writer: Any = None
        self._bad: Tensor | None = None
        self._index = torch.empty(0, dtype=torch.int64)
        self.view = 0  # of the batch at hand, see batches
        self.count = 0  # samples of the batch at hand, over all processes
        self._updates = 0
        self._progress = Progress(quiet or self.rank > 0)
        self._saves = 0
        machine = self._open(resume, precision, config)
        self.precision: str = machine["precision"]
        self.machine = machine
        self._enter(ROOT)

    # -- the directory ------------------------------------------------------------------------------------------

    def _open(self, resume: bool, precision: str, config: dict[str, Any] | None) -> dict[str, Any]:
        machine: dict[str, Any] = {"precision": choose(precision, self.device), "threads": torch.get_num_threads(),
                   "world_size": self.world_size}  # fmt: skip
        if self.directory is None:
            return machine
        import yaml

        file = self.directory / "config.yaml"
        if self.rank == 0:
            store.clear_temporary(self.directory)
        if resume and file.exists():
            recorded = yaml.safe_load(file.read_text())
            machine |= recorded.pop("machine", {})
            require(
                machine["world_size"] == self.world_size,
                f"{self.directory} was begun on "
                f"{machine['world_size']} processes, so it goes on with as many, not {self.world_size}.",
            )
            torch.set_num_threads(machine["threads"])
            if config is not None:
                _same_config(recorded, config, file)
            self._load_index()
        elif self.rank == 0:
            text = yaml.safe_dump({**(config or {}), "machine": machine}, sort_keys=False, allow_unicode=True)
            store.write_atomic(file, text.encode())
            self._commit()  # an index from the start: without one, a stray checkpoint is damage
        self.fabric.barrier()
        return machine

    def _load_index(self) -> None:
        assert self.directory is not None
        index = self.directory / "checkpoints" / "index.json"
        if not index.exists():
            require(not any(self.directory.glob("checkpoints/*.safetensors")),
                    f"{index} is missing, so {self.directory} cannot go on; start anew in another --out.")  # fmt: skip
            self._commit()
            return
        value = store.unsealed(index)
        self._files, self._results, self._current = value["files"], value["stages"], value["current"]
        self._saves = value["saves"]
        log = (self.directory / "metrics.csv").read_bytes() if (self.directory / "metrics.csv").exists() else b""
        self._rows = [list(row) for row in csv.reader(io.StringIO(log.decode()))][1 : value["rows"] + 1]
        self._write_log()
        self.notes = value["notes"]

    def _commit(self) -> None:
        """Make the newest files the truth: replace the index, then drop what it no longer names."""
        if self.directory is None or self.rank > 0:
            return
        folder = self.directory / "checkpoints"
        self._write_log()
        value = {"format": 1, "files": self._files, "stages": self._results, "current": self._current,
                 "rows": len(self._rows), "saves": self._saves, "notes": self.notes}  # fmt: skip
        store.write_json(folder / "index.json", store.sealed(value))
        for path in folder.iterdir():
            if path.name != "index.json" and path.name not in self._files:
                path.unlink()

    def _store(self, state: Any) -> str:
        """Write a state beside the others; it counts only once the index names it."""
        assert self.directory is not None
        self._saves += 1
        name = f"{self._saves:06d}.safetensors"
        self._files[name] = store.save_state(self.directory / "checkpoints" / name, state)
        return name

    def _load(self, name: str) -> Any:
        assert self.directory is not None
        return store.load_state(self.directory / "checkpoints" / name, self._files[name])

    # -- stages -------------------------------------------------------------------------------------------------

    @property
    def _stage(self) -> _Stage:
        return self._stack[-1]

    @property
    def _path(self) -> str:
        return "/".join(s.name for s in self._stack)

    def _enter(self, name: str) -> None:
        path = "/".join([*(s.name for s in self._stack), name])
        saved = self._current if self._current and self._current["stage"] == path else None
        self._stack.append(_Stage(name, saved))
        seed_everything(self.seed, path)

    def stage(self, name: str, fn: Callable[[], Any]) -> Any:
        """Run ``fn`` once and store what it returns; on resume return that.

        Args:
            name: unique within the enclosing stage.
            fn: returns tensors and plain data, nested in dict, list and tuple.

        Returns:
            what ``fn`` returned, as stored: detached tensors on the CPU.
        """
        if self._is_stored(name):
            return self._recall(name)
        self._begin(name)
        result = fn()
        return self._end(result)

    def stored(self, name: str) -> Any:
        """What the stage ``name`` left, or ``None`` where it has yet to run: then open it with :meth:`open_stage`.

        Returns:
            as stored: detached tensors on the CPU.
        """
        return self._recall(name) if self._is_stored(name) else None

    @contextlib.contextmanager
    def open_stage(self, name: str) -> Iterator[dict[str, Any]]:
        """A stage whose body is that of the ``with`` block; what it fills the dict with is stored when the block ends.

        ::

            found = run.stored("first")
            if found is None:
                with run.open_stage("first") as found:
                    ...
                    found["network"] = student.state_dict()

        Args:
            name: unique within the enclosing stage.

        Yields:
            an empty dict, for tensors and plain data; after the block it holds what was stored of them, as
            :meth:`stored` returns it.
        """
        self._begin(name)
        left: dict[str, Any] = {}
        yield left
        stored = self._end(dict(left))
        left.clear()
        left.update(stored)

    def _is_stored(self, name: str) -> bool:
        return f"{self._path}/{name}" in self._results

    def _once(self, name: str) -> str:
        """The path of a stage that is about to run or to be recalled, for the first time here."""
        require_outside_loop(self._stage, f"stage '{name}'")
        path = f"{self._path}/{name}"
        if path in self._fresh:
            raise RuntimeError(f"stage '{path}' runs twice")
        self._fresh.add(path)
        return path

    def _recall(self, name: str) -> Any:
        found = self._results[self._once(name)]
        self._updates = found["updates"]
        result = self._load(found["file"]) if found["file"] else store.unpack(found["value"], {})
        seed_everything(self.seed, self._path, "after", name)
        return result

    def _begin(self, name: str) -> None:
        self._once(name)
        self._enter(name)

    def _end(self, result: Any) -> Any:
        result = store.unpack(*store.pack(result))
        path, stage = self._path, self._stack.pop()
        self._finish_stage(path, result)
        seed_everything(self.seed, self._path, "after", stage.name)
        return result

    def leave(self, name: str, thing: Any) -> None:
        """Hand over a result beside the network that ``fit`` returns, such as scores: ``run.left[name]``."""
        self.left[name] = thing

    def _finish_stage(self, path: str, result: Any) -> None:
        self._raise_if_bad()
        skeleton, tensors = store.pack(result)
        for key in [key for key in self._results if key.startswith(path + "/")]:  # what is inside has served
            self._files.pop(self._results.pop(key)["file"] or "", None)
        if self._current is not None and (self._current["stage"] + "/").startswith(path + "/"):
            self._files.pop(self._current["file"], None)
            self._current = None
        if self.directory is not None and self.rank == 0:
            kept = {"file": self._store(result), "value": None} if tensors else {"file": None, "value": skeleton}
            self._results[path] = {**kept, "updates": self._updates}
            self._commit()
        self.fabric.barrier()

    def register(self, name: str, thing: Any) -> None:
        """Add state to the save points of this stage: anything with ``state_dict``, or a tensor (filled in place).

        Must happen before the stage's outermost loop starts.
        """
        if self._stage.looping:
            raise RuntimeError(f"'{name}' must be registered before the loop of stage '{self._stage.name}' starts")
        if name in self._stage.state:
            raise RuntimeError(f"'{name}' is registered twice in stage '{self._stage.name}'")
        self._stage.state[name] = thing

    def _save(self) -> None:
        """A save point: the registered state and where its loop stands."""
        self._last_save = time.monotonic()
        self._raise_if_bad()
        stage = self._stage
        if self.directory is None:
            return
        if self.rank == 0:
            old = self._current["file"] if self._current else None
            state = {name: thing if isinstance(thing, Tensor) else thing.state_dict()
                     for name, thing in stage.state.items()}  # fmt: skip
            state["tracked"] = stage.tracked
            where = {"epoch": stage.epoch, "step": stage.step, "updates": self._updates}
            self._current = {"stage": self._path, "file": self._store(state), **where}
            if old:
                self._files.pop(old, None)
            self._commit()
        self.fabric.barrier()

    def _start_loop(self, length: int) -> None:
        stage = self._stage
        if stage.looping:
            raise RuntimeError(f"stage '{stage.name}' has had its outermost loop; put this one in a stage of its own")
        stage.looping, stage.length = True, max(length, 1)
        if stage.saved is None:
            return
        state = self._load(stage.saved["file"])
        stage.tracked = {name: (total.to(self.device), n) for name, (total, n) in state.pop("tracked").items()}
        if set(state) != set(stage.state):
            raise UserError(f"{self.directory} holds other state ({', '.join(state)}) than this version of the "
                            f"method registers ({', '.join(stage.state)}); start anew in another --out.")  # fmt: skip
        for name, thing in stage.state.items():
            if isinstance(thing, Tensor):
                thing.detach().copy_(state[name])
            else:
                thing.load_state_dict(state[name])
            if isinstance(thing, torch.optim.Optimizer):
                _match_layout(thing)
        stage.epoch, stage.resume_step = stage.saved["epoch"], stage.saved["step"]
        self._updates = stage.saved["updates"]

    # -- loops --------------------------------------------------------------------------------------------------

    @property
    def updates(self) -> int:
        """Optimiser steps so far, in all stages."""
        return self._updates

    @property
    def dtype(self) -> torch.dtype:
        """What networks are trained in: float64 in a float64 run, float32 in every other."""
        return torch.float64 if self.precision == "64-true" else torch.float32

    @property
    def progress(self) -> float:
        """The share of this stage's outermost loop that is done, from 0 to below 1."""
        stage = self._stage
        return (stage.epoch + stage.step / max(stage.steps, 1)) / stage.length

    def epochs(self, n: int) -> Iterator[int]:
        """The outermost loop: epochs 0 to n - 1, from where a resumed run stopped, with save points between."""
        stage = self._stage
        self._start_loop(n)
        for epoch in range(stage.epoch, n):
            stage.epoch, stage.step, stage.clean, stage.marks = epoch, 0, True, _marks(stage.state)
            seed_everything(self.seed, self._path, epoch, "epoch", self.rank)
            self._progress.show(self._path, epoch, n)
            yield epoch
            self._log_tracked()
            stage.epoch, stage.step = epoch + 1, 0
            self._save_if_due()
        self._raise_if_bad()
        if len(self._stack) == 1:  # so that a run that comes back finds itself done
            self._save()

    def batches(
        self,
        split: Split,
        batch_size: int,
        *,
        augment: bool = True,
        shuffle: bool | None = None,
        views: int = 0,
        steps: int | None = None,
        save_within: bool | None = None,
    ) -> Iterator[Batch]:
        """One pass over ``split``: this process' slice of each global batch of ``batch_size``.

        Args:
            split: see :class:`upcycle.core.batches.Split`.
            batch_size: over all processes together. A last batch of one sample, or smaller than the number of
                processes, is dropped.
            augment: let the split augment its samples, keyed by (seed, epoch, sample).
            shuffle: in an order drawn from (seed, stage, epoch). If not given, unless the split says that it is
                ``ordered``.
            views: if positive, augmentation repeats after so many passes, so that outputs can be cached; the
                number of the present one is :attr:`view`.
            steps: so many batches, in as many passes as that takes, each in its own order and with its own
                augmentation; ``None`` for one pass.
            save_within: allow save points inside the epoch, between which the loop's position moves :attr:`progress`.
                If not given, wherever nothing that came before in the epoch's body changed registered state, such as
                an update, another batch loop or a tensor that was written to, nor took batches of :meth:`others`.

        Used outside :meth:`epochs` it is the outermost loop itself.
        """
        stage = self._stage
        outermost = not stage.looping
        if outermost:
            self._start_loop(1)
            if stage.epoch:  # a resumed run that had finished it
                return
        if stage.batch_loop:
            raise RuntimeError("a batch loop runs inside another: read the second split with split.batch(...)")
        clean = outermost or (stage.clean and (save_within is False or stage.marks == _marks(stage.state)))
        if save_within and not clean:
            raise RuntimeError("save_within needs a batch loop that nothing before it in the epoch changes state")
        save_within = outermost or (clean if save_within is None else save_within)
        if shuffle is None:
            shuffle = not getattr(split, "ordered", False)
        batches: list[tuple[int, Tensor]] = []  # the pass and the samples
        number = 0
        while not batches or (steps is not None and len(batches) < steps):
            order = self._order(len(split), stage.epoch, number) if shuffle else torch.arange(len(split))
            fit = [b for b in order.split(batch_size) if len(b) > 1 and len(b) >= self.world_size]
            require(bool(fit), f"{len(split)} samples are too few for one batch.")
            batches += [(number, b) for b in fit]
            number += 1
        batches = batches[:steps]
        if save_within:
            stage.steps = len(batches)
        first, stage.resume_step = (stage.resume_step, 0) if save_within else (0, stage.resume_step)
        stage.batch_loop, stage.within = True, save_within
        try:
            for step in range(first, len(batches)):
                if save_within:
                    stage.step = step
                seed_everything(self.seed, self._path, stage.epoch, step, self.rank)
                number, samples = batches[step]
                mine = self._index = samples.tensor_split(self.world_size)[self.rank]
                self._global_share, self.count = len(mine) * self.world_size / len(samples), len(samples)
                self.view = stage.epoch + number * _PASS
                self.view = self.view % views if views else self.view
                batch = split.batch(mine, device=self.device, view=(self.seed, self.view) if augment else None)
                if self.precision == "64-true":
                    batch = batch._replace(images=batch.images.double())
                yield batch
                if save_within and step + 1 < len(batches):
                    stage.step = step + 1
                    self._save_if_due(every=16)
        finally:
            stage.batch_loop, stage.within, stage.clean = False, False, False
        if outermost:
            self._log_tracked()
            stage.epoch, stage.step = 1, 0
            self._save_if_due()

    def others(
        self, split: Split, batch_size: int, name: str, *, among: Tensor | None = None, augment: bool = True
    ) -> Iterator[Batch]:
        """Batches of a second split, without end, to be taken beside those of :meth:`batches` or of each other.

        Each pass has its own order and augmentation, drawn from (seed, stage, epoch, name). What is left at the end
        of a pass joins the next one, so that every batch is whole. Made anew in each epoch, so the batch loop beside
        it has no save points within.

        Args:
            batch_size: over all processes together; each gets its share.
            name: of this stream; two streams of one split differ.
            among: positions in ``split`` (int64, on the CPU) that the stream is restricted to; ``None`` for all.
        """
        self._stage.clean = False
        places = torch.arange(len(split)) if among is None else among
        require(len(places) > 0, f"There are no samples for the batches of {name}.")
        return self._endless(split, batch_size, name, places, augment)

    def _endless(self, split: Split, batch_size: int, name: str, places: Tensor, augment: bool) -> Iterator[Batch]:
        epoch, left, number = self._stage.epoch, torch.empty(0, dtype=torch.int64), 0
        while True:
            view = (self.seed, seed_of(name, epoch, number) % 2**31) if augment else None
            while len(left) < batch_size:
                left = torch.cat([left, places[self._order(len(places), epoch, number, name)]])
                number += 1
            samples, left = left[:batch_size], left[batch_size:]
            mine = samples.tensor_split(self.world_size)[self.rank]
            if not self._stage.batch_loop:
                self._index = mine
            batch = split.batch(mine, device=self.device, view=view)
            yield batch._replace(images=batch.images.double()) if self.precision == "64-true" else batch

    def _order(self, n: int, epoch: int, number: int, *name: str) -> Tensor:
        parts = (epoch, number, *name, "order") if number or name else (epoch, "order")
        generator = torch.Generator().manual_seed(seed_of(self.seed, self._path, *parts))
        return torch.randperm(n, generator=generator)

    def generator(self, name: str) -> torch.Generator:
        """Random numbers for ``name`` in this stage and epoch, the same on every process and after a resume.

        For what all processes must draw alike, such as a global batch of noise; it lives on the CPU.
        """
        return torch.Generator().manual_seed(seed_of(self.seed, self._path, self._stage.epoch, "generator", name))

    def mine(self, n: int) -> Tensor:
        """This process' share of ``n`` things that every process holds: positions, int64; equally many on each."""
        require(
            n % self.world_size == 0, f"{n} samples do not divide among {self.world_size} processes; take a multiple."
        )
        self._index = torch.arange(n).tensor_split(self.world_size)[self.rank]
        return self._index

    def _save_if_due(self, every: int = 1) -> None:
        due = time.monotonic() - self._last_save >= self.save_every or self.interrupt is not None
        if self.world_size > 1:  # the first process' clock decides for all, and asking costs a message
            if self._stage.step % every:
                return
            due, self.interrupt = self.fabric.broadcast((due, self.interrupt))
        if due:
            self._save()
        if self.interrupt is not None:
            raise Interrupted(self.interrupt)

    # -- training -----------------------------------------------------------------------------------------------

    def setup(
        self, module: Network, optimizer: Recipe | Callable[[Network], torch.optim.Optimizer] | None = None
    ) -> tuple[Network, Any]:
        """Put a module on the device, ready to train, and make its optimiser; both join the save points.

        The module stays what it is: its ``forward`` is wrapped in this run's precision until :meth:`plain`.
        """
        module.to(device=self.device, dtype=self.dtype)
        if any(p.dim() == 4 for p in module.parameters()):
            module.to(memory_format=torch.channels_last)
        if self.world_size > 1:
            collective.sync_batchnorm(module)
        if self.precision == "bf16-mixed":
            module.forward = MethodType(autocast(self.device.type), module)
        elif self.precision == "64-true":
            module.forward = MethodType(double, module)
        if self.compile:
            module.compile()
        number = sum(key.startswith("module") for key in self._stage.state)
        self.register(f"module{number}", module)
        if optimizer is None:
            return module, None
        made = optimizer.make(module) if isinstance(optimizer, Recipe) else optimizer(module)
        self.register(f"optimizer{number}", made)
        return module, made

    def frozen(self, model: Model, split: Split | None, *, input_grad: bool = False, keep_bn: bool = False) -> Frozen:
        """A teacher made fast for this run (see :func:`upcycle.core.frozen.frozen`), checked on up to 256 samples.

        Args:
            split: whose batches the teacher will see; renormalised when the teacher expects other statistics.
                ``None`` where there are no data: it is checked on noise, and sees its own normalisation.
        """
        from upcycle.core.frozen import frozen

        if split is None:
            images = model.example(256).to(self.device)
        else:
            images = split.batch(torch.arange(min(256, len(split))), device=self.device).images
        own = (getattr(split, "mean", model.mean), getattr(split, "std", model.std))
        dtype = "64-true" if self.precision == "64-true" else self.teacher_precision
        made = frozen(model.module, images, input_grad=input_grad, keep_bn=keep_bn,
                      precision=dtype, renormalise=(own, (model.mean, model.std)))  # fmt: skip
        self.machine[model.name] = (f"{made.precision}, {made.folded} BatchNorm folded with error {made.error:.1e}, "
                                    f"top-1 agreement {made.agreement:.1%}")  # fmt: skip
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
            loss: scalar.
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
            loss: scalar.
            reduction: how ``loss`` treats this process' samples, so that several processes equal one: their mean,
                their sum, or a value of the gathered global batch that is the same on every process.
        """
        if self.world_size > 1:
            loss = loss * {"mean": self._global_share, "sum": float(self.world_size), "global": 1.0}[reduction]
        loss.backward()
        self._stage.clean = False

    def update(self, optimizer: torch.optim.Optimizer, clip: float | None = None) -> None:
        """Average gradients over processes, stop before one that is not a number, step, and clear them.

        Args:
            clip: largest allowed norm of the whole gradient.
        """
        if self.interrupt is not None and not self._stage.within:  # the last save point is what there is
            raise Interrupted(self.interrupt)
        parameters = [p for group in optimizer.param_groups for p in group["params"] if p.requires_grad]
        if self.world_size > 1:
            collective.average_gradients(parameters, self.world_size)
        grads = [p.grad for p in parameters if p.grad is not None]
        norm = nn.utils.get_total_norm(grads)
        self._updates += 1
        if self.device.type == "cpu":
            self._bad = ~norm.isfinite()
            self._raise_if_bad()
        else:  # no host synchronisation in the loop: a bad step is skipped on the device, and reported soon
            bad = ~norm.isfinite()
            if all(group.get("fused") for group in optimizer.param_groups):
                optimizer.found_inf = bad.float()  # type: ignore[attr-defined]  # what a gradient scaler leaves there
            else:  # a step of zeros
                for g in grads:
                    g.masked_fill_(bad, 0.0)
            self._bad = bad if self._bad is None else self._bad | bad
            if self._updates % 50 == 0:
                self._raise_if_bad()
        if clip is not None:
            nn.utils.clip_grads_with_norm_(parameters, clip, norm)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        self._stage.clean = False

    def _raise_if_bad(self) -> None:
        if self._bad is not None and bool(self._bad):
            self._bad = None
            samples = ", ".join(str(int(i)) for i in self._index[:4])
            raise UserError(
                f"The loss or its gradient is not a finite number at {self._path}, epoch {self._stage.epoch}, step "
                f"{self._stage.step} (samples {samples}, ...). The weights were not touched; lower lr or look at "
                "those samples."
            )

    def gather(self, x: Tensor) -> Tensor:
        """Concatenate ``x`` (b, ...) of all processes, differentiably; use with ``backward(..., "global")``."""
        return collective.gather(x, self.world_size)

    def plain(self, module: nn.Module) -> nn.Module:
        """The module as an ordinary one: on the CPU, float32 (float64 in a float64 run), contiguous, in eval mode,
        nothing wrapped."""
        for m in module.modules():
            if getattr(m.__dict__.get("forward"), "upcycle", False):
                del m.forward
            m._compiled_call_impl = None
        module.zero_grad(set_to_none=True)
        return module.to("cpu", self.dtype, memory_format=torch.contiguous_format).eval()  # type: ignore[call-overload]

    # -- what is seen -------------------------------------------------------------------------------------------

    def log(self, **values: float | Tensor) -> None:
        """Record scalars at the current epoch in ``metrics.csv`` and TensorBoard."""
        stage = self._stage
        for name, value in values.items():
            number = float(value)
            self._rows.append([self._path, stage.epoch, self._updates, name, repr(number)])
            if self.directory is not None and self.rank == 0:
                self._tensorboard().add_scalar(f"{self._path}/{name}", number, self._updates)
        self._progress.values({name: float(value) for name, value in values.items()})

    def track(self, **values: Tensor) -> None:
        """Add to each value's mean over the epoch, which is logged when the epoch ends; no host synchronisation."""
        for name, value in values.items():
            total, n = self._stage.tracked.get(name, (torch.zeros((), device=self.device), 0))
            self._stage.tracked[name] = (total + value.detach(), n + 1)

    def _log_tracked(self) -> None:
        means = {name: total / n for name, (total, n) in self._stage.tracked.items()}
        if self.world_size > 1:
            means = {name: self.fabric.all_reduce(mean) for name, mean in means.items()}  # type: ignore[misc]
        self._stage.tracked = {}
        if means:
            self.log(**means)

    def _tensorboard(self) -> Any:
        if self._writer is None:
            from torch.utils.tensorboard import SummaryWriter

            self._writer = SummaryWriter(str(self.directory / "events"), purge_step=self._updates)  # type: ignore[operator]
        return self._writer

    def _write_log(self) -> None:
        if self.directory is None or self.rank > 0:
            return
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerows([["stage", "epoch", "step", "name", "value"], *self._rows])
        store.write_atomic(self.directory / "metrics.csv", text.getvalue().encode())

    def evaluate(self, module: nn.Module, split: Split, name: str = "validation") -> Evaluation | None:
        """Measure accuracy and loss on a split and log them; touches neither randomness nor modes.

        Where no sample has a label there is nothing to measure with, and the answer is ``None``.
        """
        from upcycle.core.evaluate import evaluate

        labels = getattr(split, "labels", None)
        if labels is not None and not bool((labels >= 0).any()):
            return None
        result = evaluate(module, split)
        self.log(**{f"{name}_accuracy": result.accuracy, f"{name}_loss": result.loss})
        return result

    def picture(self, name: str, data: dict[str, Any]) -> None:
        """Leave a picture for the report: ``kind`` (images, heatmap, lines, bars), ``title``, ``caption``, data."""
        if self.directory is not None and self.rank == 0:
            store.write_json(self.directory / "pictures" / f"{name}.json", data)

    def note(self, text: str) -> None:
        """Record a sentence that the person must read; once, however often the run resumes."""
        if text not in self.notes:
            self.notes.append(text)

    @contextlib.contextmanager
    def interruptible(self) -> Iterator[None]:
        """Let Ctrl-C and SIGTERM save at the next step and then raise :class:`Interrupted`; a second one kills."""

        def on_signal(signum: int, frame: Any) -> None:
            self.interrupt = signum
            signal.signal(signum, signal.default_int_handler if signum == signal.SIGINT else signal.SIG_DFL)

        before = {}
        if threading.current_thread() is threading.main_thread():
            before = {s: signal.signal(s, on_signal) for s in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for signum, handler in before.items():
                signal.signal(signum, handler)

    def close(self) -> None:
        """Finish the log."""
        self._write_log()
        self._progress.close()
        if self._writer is not None:
            self._writer.close()
            self._writer = None


def _marks(state: Any) -> Any:
    """What differs once a state was written to: torch counts the writes to a tensor, its views and what is detached."""
    if isinstance(state, Tensor):
        return state.shape, state._version
    if isinstance(state, np.ndarray):
        return state.tobytes()
    if hasattr(state, "state_dict"):
        return _marks(state.state_dict())
    if isinstance(state, dict):
        return {key: _marks(value) for key, value in state.items()}
    return [_marks(value) for value in state] if isinstance(state, list | tuple) else state


def require_outside_loop(stage: _Stage, what: str) -> None:
    """A stage inside a loop would be stored once and returned for every pass: a mistake of the method."""
    if stage.looping and stage.epoch < stage.length:
        raise RuntimeError(f"{what} cannot start inside the loop of stage '{stage.name}'")


def _launch(devices: int, accelerator: str) -> Fabric:
    from lightning_fabric import Fabric

    try:
        # Fabric's ddp only to start processes and find devices: modules stay unwrapped.
        logging.getLogger("lightning_fabric").setLevel(logging.WARNING)  # advice about tensor cores on every start
        fabric = Fabric(devices=devices, accelerator=accelerator, strategy="ddp" if devices > 1 else "auto")
    except (ValueError, RuntimeError) as error:
        raise UserError(f"Cannot use devices={devices} with accelerator='{accelerator}': {error}") from error
    fabric.launch()
    return fabric


def device_of(accelerator: str) -> torch.device:
    """The device that a run of one process has, for measuring outside of it; ``accelerator`` as in :class:`Run`."""
    if accelerator != "auto":
        return torch.device(accelerator)
    return torch.device("cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu")


def _deterministic(device: torch.device) -> None:
    """The same bits again, on a GPU too; only warns of operations that have no such form."""
    if device.type == "cuda":
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # before the first matrix product
        torch.use_deterministic_algorithms(True, warn_only=True)
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]


def _match_layout(optimizer: torch.optim.Optimizer) -> None:
    """Give loaded state the memory format of its parameter: fused optimisers walk both in memory order."""
    for p, state in optimizer.state.items():
        for key, value in state.items():
            if isinstance(value, Tensor) and value.shape == p.shape:
                state[key] = torch.empty_like(p).copy_(value)


def require_same_config(file: Path, config: dict[str, Any]) -> None:
    """Refuse to go on with other options than a run began with, before any work; a new run has no file.

    Raises:
        UserError: naming the option and both values.
    """
    import yaml

    if file.exists():
        recorded = yaml.safe_load(file.read_text())
        for key in ("machine", "arm"):
            recorded.pop(key, None)
        _same_config(recorded, config, file)


def _same_config(recorded: dict[str, Any], config: dict[str, Any], file: Path) -> None:
    """Refuse to go on with other options; where the directory lies is none of them."""
    for key in [*recorded, *(k for k in config if k not in recorded)]:
        if key != "out" and recorded.get(key) != config.get(key):
            raise UserError(f"{file} has {key}: {recorded.get(key)!r}, but this command says {config.get(key)!r}; "
                            "a resumed run keeps its configuration. Use another --out for a new one.")  # fmt: skip
