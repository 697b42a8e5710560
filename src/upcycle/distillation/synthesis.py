"""What accumulates while a method makes images of its own, and the student's training on them."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from upcycle.core.errors import UserError, require
from upcycle.core.losses import kd_loss
from upcycle.core.store import write_json
from upcycle.data.pool import Pool
from upcycle.data.pool_files import pool_lineage, save_pool
from upcycle.distillation import gallery
from upcycle.measure.units import duration

if TYPE_CHECKING:
    from upcycle.core.batches import Batch
    from upcycle.core.method import Method
    from upcycle.core.models import Model
    from upcycle.core.recipe import Recipe
    from upcycle.core.run import Run
    from upcycle.data.images import Images

SAME = 1 / 255
"""A batch whose images differ from their mean by less than this, on average, has collapsed."""


class Synthesis:
    """What accumulates while images are made: the pool, the teacher's answers, the seconds; resumable.

    Args:
        run: the run, whose save points it joins.
        method: whose images these are, for its name in what is left behind.
        teacher: the network that they are made from.
        data: real images, only to measure with; may be empty. Its augmentation is what the student gets.
        capacity: of the pool.
        views: if positive, the student's augmentation repeats after so many passes, and the teacher's answers to
            each view of an image are computed once.
    """

    def __init__(
        self, run: Run, method: Method, teacher: Model, data: Images, *, capacity: int, views: int = 0
    ) -> None:  # fmt: skip
        self.run, self.method, self.model, self.data, self.views = run, method, teacher, data, views
        self.pool = Pool(capacity, teacher.input_shape, teacher.mean, teacher.std, data.train.augment)
        # It only answers, so its BatchNorm may be folded: another copy than the one that images come from.
        self.teacher = run.frozen(teacher, None)
        exact = run.precision == "64-true"
        self._answers = torch.empty(views, capacity, len(teacher.classes), dtype=torch.float64 if exact else torch.half)
        self.seconds = 0.0  # of synthesis
        self.total = 0.0  # of everything, the student's training included
        self.curve: list[tuple[float, float, float]] = []  # (synthesis seconds, all seconds, accuracy)
        self.collapsed = 0  # rounds in a row
        self._since = time.perf_counter()
        run.register("synthesis", self)

    @contextmanager
    def clock(self) -> Iterator[None]:
        """Count the seconds of synthesis; all that it costs belongs within, and nothing of the student's training."""
        start = time.perf_counter()
        yield
        if self.run.device.type == "cuda":
            torch.cuda.synchronize(self.run.device)
        self.seconds += time.perf_counter() - start

    def append(self, x: Float[Tensor, "b c h w"], y: Int[Tensor, " n"]) -> None:
        """Add a round to the pool: this process' images and those of the others, and the classes of all.

        Images that are all alike are left out, and said to be.

        Raises:
            UserError: they are not finite, or three rounds in a row collapsed.
        """
        x = self.run.gather(x.detach())
        if not x.isfinite().all():
            raise UserError(f"The images made by {self.method.card.name} are not finite numbers; lower its rates.")
        if float((x - x.mean(0)).abs().mean()) < SAME:
            self.collapsed += 1
            self.run.note("In some rounds all images came out alike; those were left out of the pool.")
            if self.collapsed == 3:
                raise UserError(f"{self.method.card.name} has collapsed: in three rounds in a row all images came out "
                                "alike. Lower its learning rate or the weight of the class loss, --oh.")  # fmt: skip
            return
        self.collapsed = 0
        places = self.pool.append(x, y)
        for view in range(self.views):
            images = self.pool.batch(places, device=self.run.device, view=(self.run.seed, view)).images
            self._answers[view, places] = self.teacher(images).to(self._answers.dtype).cpu()

    def answers(self, batch: Batch) -> Float[Tensor, "b k"]:
        """The teacher's logits on a batch of the pool: looked up where views repeat, else computed."""
        if not self.views:
            return self.teacher(batch.images)
        return self._answers[self.run.view].index_select(0, batch.index.cpu()).to(batch.images)

    def learn(
        self, student: nn.Module, optimizer: torch.optim.Optimizer, recipe: Recipe, epoch: int, steps: int, T: float
    ) -> None:  # fmt: skip
        """``steps`` updates of the student on the whole pool, augmented: T² KL(p_t || p_s), no labels.

        Args:
            epoch: of the student's ``recipe.epochs``, each of so many steps.
            T: temperature.
        """
        require(len(self.pool) > 0, "There are no images to learn from: in every round so far all came out alike.")
        student.train()
        batches = self.run.batches(self.pool, recipe.batch_size, steps=steps, views=self.views)
        for step, batch in enumerate(batches):
            recipe.schedule_rate(optimizer, (epoch + step / steps) / recipe.epochs)
            loss = kd_loss(student(batch.images), self.answers(batch), T)
            self.run.backward(loss)
            self.run.update(optimizer)
            self.run.track(loss=loss)
        every = max(1, recipe.epochs // 20)
        if (epoch + 1) % every == 0 or epoch + 1 == recipe.epochs:
            found = self.run.evaluate(student, self.data.validation)
            if found is not None:
                self._tick()
                self.curve.append((self.seconds, self.total, found.accuracy))

    def finish(self, student: nn.Module) -> nn.Module:
        """Leave the pool, the pictures and the seconds; returns the student as an ordinary module."""
        self._tick()
        run, made = self.run, self.pool.made
        run.note(f"Synthesis took {duration(self.seconds)} for {made:,} images, {duration(self.seconds / made)} an "
                 f"image; everything, the student's training included, {duration(self.total)}.")  # fmt: skip
        student = run.plain(student)
        if run.directory is not None and run.rank == 0:
            gallery.draw(self)
            card = self.method.card
            name = f"images from {self.model.name}"
            tree = pool_lineage(self.pool, self.model, name=name, method=card.name)
            note = f"Made from {self.model.name} by {card.name} ({card.paper}), without any data."
            save_pool(self.pool, run.directory / "pool", classes=self.model.classes, name=name, lineage=tree, note=note)
            write_json(run.directory / "synthesis.json", {"images": made, "seconds": self.seconds,
                       "total_seconds": self.total, "curve": self.curve})  # fmt: skip
        return student

    def _tick(self) -> None:
        now = time.perf_counter()
        self.total, self._since = self.total + now - self._since, now

    def state_dict(self) -> dict[str, Any]:
        self._tick()
        answers = self._answers[:, : len(self.pool)].clone()
        return {"pool": self.pool.state_dict(), "answers": answers, "seconds": self.seconds, "total": self.total,
                "curve": self.curve, "collapsed": self.collapsed}  # fmt: skip

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.pool.load_state_dict(state["pool"])
        self._answers[:, : len(self.pool)] = state["answers"]
        self.seconds, self.total = state["seconds"], state["total"]
        self.curve, self.collapsed = state["curve"], state["collapsed"]
