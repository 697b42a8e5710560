"""Options of a method without data: the number of images that it makes, and its student's updates on them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import nn

from upcycle.core.errors import require
from upcycle.core.models import Model
from upcycle.core.ranges import ranges
from upcycle.measure.cost import count
from upcycle.zoo.generator import Generator

if TYPE_CHECKING:
    from upcycle.core.recipe import Recipe


@dataclass(kw_only=True)
class Making:
    """The making of images, and the student's training on all made so far.

    Synthesis ends after ``rounds``, the student's training after ``warmup + recipe.epochs``: a budget can make fewer
    images and train on.

    Args:
        rounds: batches of images to make, as long as the student trains.
        warmup: rounds before the student's training and the adversarial term begin.
        batch: N, images a round.
        kd_steps: updates of the student on the pool in each round.
        temperature: T of the student's loss on the pool.
        capacity: the most images that the pool keeps; the oldest make room.
        views: passes after which the student's augmentation repeats, so that the teacher answers each view of an
            image once; 0 never repeats.
    """

    rounds: int = 40
    warmup: int = 0
    batch: int = 256
    kd_steps: int = 400
    temperature: float = 20.0
    capacity: int = 65_536
    views: int = 16

    def __post_init__(self) -> None:
        ranges(
            self,
            positive=("temperature",),
            not_negative=("views",),
            at_least={"rounds": 1, "kd_steps": 1, "batch": 2},
        )
        require(
            self.batch <= self.capacity, f"batch must be at most capacity ({self.capacity}), and it is {self.batch}."
        )
        require(
            0 <= self.warmup <= self.rounds,
            f"warmup must lie between 0 and rounds ({self.rounds}), and it is {self.warmup}.",
        )

    def steps(self, recipe: Recipe) -> int:
        """The student's updates on the pool, ``kd_steps`` in each of the recipe's epochs."""
        return recipe.epochs * self.kd_steps

    def work(self, recipe: Recipe, image: int, teacher: int, student: int) -> float:
        """The multiply-adds of a method's whole run.

        Args:
            recipe: of the student.
            image: multiply-adds that making one image takes.
            teacher: those of one forward of one sample.
            student: likewise.
        """
        rounds = min(self.rounds, self.warmup + recipe.epochs)
        made = rounds * self.batch * (image + self.views * teacher)
        sample = 3 * student + (0 if self.views else teacher)
        return float(made + self.steps(recipe) * recipe.batch_size * sample)


def generator_work(teacher: Model | nn.Module, nz: int, ngf: int) -> int:
    """The multiply-adds with which a generator makes one image for ``teacher``; of a bare module 32x32 in colour.

    Args:
        nz: length of the noise.
        ngf: base width.
    """
    shape = teacher.input_shape if isinstance(teacher, Model) else (3, 32, 32)
    return count(Generator(shape, nz, ngf), (nz,)).macs
