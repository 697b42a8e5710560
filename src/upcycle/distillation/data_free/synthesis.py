"""The run of a method that makes images of its own: rounds, the pool, and the student's training on it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from upcycle.core.errors import UserError, require
from upcycle.core.losses import kd_loss
from upcycle.core.store import write_json
from upcycle.data.pool import Pool
from upcycle.data.pool_files import pool_lineage, save_pool
from upcycle.distillation.data_free import gallery
from upcycle.distillation.data_free.inversion import Normalise, Statistics, only_inputs
from upcycle.measure.units import duration

if TYPE_CHECKING:
    from upcycle.core.batches import Batch
    from upcycle.core.method import Card
    from upcycle.core.models import Model
    from upcycle.core.recipe import Recipe
    from upcycle.core.run import Run
    from upcycle.data.images import Images
    from upcycle.distillation.data_free.making import Making

SAME = 1 / 255
"""A batch whose images differ from their mean by less than this, on average, has collapsed."""


@runtime_checkable
class DataFree(Protocol):
    """A method that makes images: how many, and how the student learns from them."""

    @property
    def card(self) -> Card: ...
    @property
    def making(self) -> Making: ...
    @property
    def recipe(self) -> Recipe: ...
    def model(self, role: str, data: Any) -> Model: ...


class Synthesis:
    """The frozen teacher, the pool of images, the teacher's answers to them and the seconds; resumable.

    Args:
        run: the run, whose save points it joins.
        method: the method whose images these are.
        data: real images, only to measure with; may be empty. Its augmentation is what the student gets.

    Attributes:
        model: the network that images are made from.
        teacher: the same, frozen; gradients pass through it to images, and its BatchNorm layers are there to be read.
        statistics: reader of the inputs of these layers.
        normalise: from images in [0, 1] to the teacher's inputs.
        folded: the teacher once more, with its BatchNorm folded, since it only answers here.
        pool: the images made.
    """

    def __init__(self, run: Run, method: DataFree, data: Images) -> None:
        self.run, self.method, self.making, self.data = run, method, method.making, data
        self.model = model = method.model("teacher", data)
        self.teacher = run.frozen(model, None, input_grad=True, keep_bn=True)
        self.statistics = Statistics(self.teacher, run.gather)
        self.normalise = Normalise(model.mean, model.std)
        self.folded = run.frozen(model, None)
        capacity, views = self.making.capacity, self.making.views
        self.pool = Pool(capacity, model.input_shape, model.mean, model.std, data.train.augment)
        dtype = torch.float64 if run.dtype == torch.float64 else torch.half
        self._answers = torch.empty(views, capacity, len(model.classes), dtype=dtype)
        self.seconds = 0.0  # of synthesis
        self.total = 0.0  # of everything, the student's training included
        self.curve: gallery.Curve = []
        self.collapsed = 0  # rounds in a row
        self._since = time.perf_counter()
        run.register("synthesis", self)

    def rounds(self, student: nn.Module, optimizer: torch.optim.Optimizer) -> Iterator[int]:
        """The outermost loop: each round that makes images, from 0; the student trains between them and on afterwards.

        Args:
            student: as :meth:`~upcycle.core.run.Run.setup` made it.
            optimizer: likewise.
        """
        for e in self.run.epochs(self.making.warmup + self.method.recipe.epochs):
            if e < self.making.rounds:
                yield e
            if e >= self.making.warmup:
                self.distil(student, optimizer, e - self.making.warmup)

    @contextmanager
    def inverting(self, student: nn.Module) -> Iterator[None]:
        """Within, images are made: the clock runs, statistics are read, and the student passes gradients on."""
        with self.clock(), only_inputs(student), self.statistics:
            yield

    def noise(self, nz: int, like: nn.Module) -> nn.Parameter:
        """z (N, nz) of a round, normal; as the parameters of ``like``."""
        z = torch.randn(self.making.batch, nz, generator=self.run.generator("noise"))
        return nn.Parameter(z.to(next(like.parameters())))

    def classes(self) -> Int[Tensor, " n"]:
        """The classes y of a round's images, drawn evenly."""
        random = self.run.generator("classes")
        return torch.randint(len(self.model.classes), (self.making.batch,), generator=random).to(self.run.device)

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
        for view in range(self.making.views):
            images = self.pool.batch(places, device=self.run.device, view=(self.run.seed, view)).images
            self._answers[view, places] = self.folded(images).to(self._answers.dtype).cpu()

    def answers(self, batch: Batch) -> Float[Tensor, "b k"]:
        """The teacher's logits on a batch of the pool: looked up where views repeat, else computed."""
        if not self.making.views:
            return self.folded(batch.images)
        return self._answers[self.run.view].index_select(0, batch.index.cpu()).to(batch.images)

    def distil(self, student: nn.Module, optimizer: torch.optim.Optimizer, epoch: int) -> None:
        """``kd_steps`` updates of the student on the whole pool, augmented: T² KL(p_t || p_s), no labels.

        Args:
            student: as :meth:`~upcycle.core.run.Run.setup` made it.
            optimizer: likewise.
            epoch: number of the student's epoch, of ``recipe.epochs``.
        """
        recipe, steps, views = self.method.recipe, self.making.kd_steps, self.making.views
        require(len(self.pool) > 0, "There are no images to learn from: in every round so far all came out alike.")
        student.train()
        # The schedule counts the steps from the first, so a resumed run must not begin among them.
        batches = self.run.batches(self.pool, recipe.batch_size, steps=steps, views=views, save_within=False)
        for step, batch in enumerate(batches):
            recipe.schedule_rate(optimizer, (epoch + step / steps) / recipe.epochs)
            loss = kd_loss(student(batch.images), self.answers(batch), self.making.temperature)
            self.run.step(loss, optimizer)
        every = max(1, recipe.epochs // 20)
        if (epoch + 1) % every == 0 or epoch + 1 == recipe.epochs:
            found = self.run.evaluate(student, self.data.validation)
            if found is not None:
                self._tick()
                self.curve.append((self.seconds, self.total, found.score))

    def finish(self, student: nn.Module) -> nn.Module:
        """Leave the pool, the pictures and the seconds; returns the student as an ordinary module."""
        self._tick()
        run, made = self.run, self.pool.made
        run.note(f"Synthesis took {duration(self.seconds)} for {made:,} images, {duration(self.seconds / made)} an "
                 f"image; everything, the student's training included, {duration(self.total)}.")  # fmt: skip
        student = run.plain(student)
        if run.directory is not None and run.rank == 0:
            gallery.draw(run, self.pool, self.model, self.data.validation, self.curve)
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
        answers = self._answers[:, : len(self.pool)]
        return {"pool": self.pool.state_dict(), "answers": answers, "seconds": self.seconds, "total": self.total,
                "curve": self.curve, "collapsed": self.collapsed}  # fmt: skip

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.pool.load_state_dict(state["pool"])
        self._answers[:, : len(self.pool)] = state["answers"]
        self.seconds, self.total = state["seconds"], state["total"]
        self.curve, self.collapsed = state["curve"], state["collapsed"]
