"""Streams: data that come as a sequence of tasks, under a protocol that says what may be known.

Tasks are annotated as images, since most methods learn those; graphs come as they are.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, cast

import torch

from upcycle.core import cells
from upcycle.core.errors import UserError, require, unknown
from upcycle.core.inputs import of_plain
from upcycle.core.reading import Reading
from upcycle.core.takes import Takes
from upcycle.data.images import Images, ImageSplit

if TYPE_CHECKING:
    from upcycle.core.models import Model

Scenario = Literal["task", "class", "domain", "general"]
SCENARIOS: dict[str, str] = {
    "task": "task-incremental (the task of an image is known when it is classified)",
    "class": "class-incremental (an image is classified among all classes seen)",
    "domain": "domain-incremental (the same classes all along, seen differently)",
    "general": "general (no tasks, no boundaries, each image seen once in a fixed order)",
}


@dataclass(eq=False, kw_only=True)
class Stream:
    """A sequence of tasks. Labels are columns in ``classes``, the same ones in every task.

    Args:
        name: as it is written.
        scenario: see :data:`SCENARIOS`.
        classes: the names of all classes, in the order in which they come.
        tasks: for each task the columns of its classes.
        make: the samples of task t; made when they are asked for, so that a stream needs the memory of one task.
        base: what the tasks are made of; for the name, the normalisation and the shape of samples.
        order: JSON data: what decides the order of classes and tasks.
        before: the columns of classes that the network learnt before this stream.
        derived: the tasks follow from ``base`` and ``order`` alone.

    Raises:
        UserError: no task, a task without classes, or a class in two tasks where the scenario forbids it.
    """

    name: str
    scenario: Scenario
    classes: tuple[str, ...]
    tasks: tuple[tuple[int, ...], ...]
    make: Callable[[int], Images]
    base: Images
    order: dict[str, Any]
    before: tuple[int, ...] = ()
    derived: bool = False

    def __post_init__(self) -> None:
        require(self.scenario in SCENARIOS, f"scenario must be one of {', '.join(SCENARIOS)}, not '{self.scenario}'.")
        require(bool(self.tasks), f"The stream {self.name} has no task.")
        before: set[int] = set()
        for t, columns in enumerate(self.tasks):
            require(bool(columns), f"Task {t} of {self.name} has no class.")
            if self.scenario in ("task", "class") and (again := before & set(columns)):
                raise UserError(
                    f"Task {t} of {self.name} has the class '{self.classes[min(again)]}' that an earlier task had. A "
                    f"{self.scenario}-incremental stream brings new ones: leave it out, or use --scenario domain."
                )
            before |= set(columns)

    def __len__(self) -> int:
        return len(self.tasks)

    def __repr__(self) -> str:
        return cells.line(self, self.protocol)

    @property
    def shape(self) -> tuple[int, int, int]:
        """(c, h, w) of one image; graphs have none."""
        return self.base.shape

    @property
    def takes(self) -> Takes:
        """A description of what a network for these data takes."""
        return self.base.takes

    @property
    def train(self) -> ImageSplit:
        """The training samples that the tasks are made of; for their normalisation and type."""
        return self.base.train

    @property
    def test(self) -> ImageSplit:
        """The test samples of all tasks, as far as these are made of one set."""
        return self.base.test

    @property
    def reading(self) -> Reading:
        """How the files of images became pixels."""
        return self.base.reading

    @property
    def ordered(self) -> bool:
        """Whether the samples of a task come in a fixed order, each once."""
        return self.scenario == "general"

    def task(self, t: int) -> Images:
        """The samples of task t, from 0: training, validation and test.

        Raises:
            UserError: no such task, one without training samples, or one that does not fit the first.
        """
        require(0 <= t < len(self), f"{self.name} has the tasks 0 to {len(self) - 1}, so there is no task {t}.")
        images = self.make(t)
        require(len(images.train) > 1, f"Task {t} of {self.name} has {len(images.train)} training {images.noun}.")
        self._require_alike(t, images)
        return dataclasses.replace(images, train=dataclasses.replace(images.train, ordered=self.ordered))

    def seen(self, t: int) -> tuple[int, ...]:
        """The columns of all classes of the tasks 0 to t."""
        return tuple(sorted({k for columns in self.tasks[: t + 1] for k in columns}))

    def _require_alike(self, t: int, images: Images) -> None:
        """A network must take the samples of every task."""
        if isinstance(images, Images):
            require(
                images.shape == self.shape,
                f"Task {t} of {self.name} has images of {_by(images.shape)} and the first task of {_by(self.shape)}; "
                "--size brings images to one size.",
            )
            return
        problems = self.takes.problems(images.takes)
        require(not problems, f"Task {t} of {self.name} is not for a network of the first task: {'; '.join(problems)}.")

    def joint(self) -> Images:
        """All tasks at once; one copy of the images of a domain for each."""
        first, *others = (self.task(t) for t in range(len(self)))
        rest = {name: [other.splits()[name] for other in others] for name in first.splits()}
        joined: dict[str, Any] = {name: split.with_others(rest[name]) for name, split in first.splits().items()}
        return dataclasses.replace(first, **joined)

    def normalised(self, mean: tuple[float, ...], std: tuple[float, ...]) -> Stream:
        """The same stream, whose batches are normalised with ``mean`` and ``std``."""
        self.base.normalised(mean, std)  # a mistake shows now and not when a task is made
        make = self.make
        return dataclasses.replace(self, base=self.base.normalised(mean, std),
                                   make=lambda t: make(t).normalised(mean, std))  # fmt: skip

    def seen_by(self, model: Model) -> Stream:
        """The same stream as ``model`` takes it, see :meth:`Collection.seen_by`."""
        make, base = self.make, self.base.seen_by(model)
        return dataclasses.replace(self, base=base, make=lambda t: make(t).seen_by(model))

    @property
    def usual_augmentation(self) -> tuple[str, ...]:
        """That of the data."""
        return self.base.usual_augmentation

    def augmented(self, operations: tuple[str, ...]) -> Stream:
        """The same stream, whose training images are augmented; see :meth:`Images.augmented`."""
        make = self.make
        return dataclasses.replace(self, base=self.base.augmented(operations),
                                   make=lambda t: make(t).augmented(operations))  # fmt: skip

    def after(self, classes: tuple[str, ...]) -> Stream:
        """The same tasks for a network that has ``classes`` already, whose columns come first.

        Raises:
            UserError: a class that it has, where the scenario forbids it.
        """
        if self.scenario in ("task", "class") and (again := [c for c in self.classes if c in classes]):
            raise UserError(f"{self.name} brings the class '{again[0]}', which the network has learnt already; a "
                            f"{self.scenario}-incremental stream brings new ones.")  # fmt: skip
        whole = (*classes, *(c for c in self.classes if c not in classes))
        column = torch.tensor([whole.index(c) for c in self.classes])
        make = self.make

        def moved(t: int) -> Images:
            images = make(t)

            def of(split: ImageSplit) -> ImageSplit:
                labels = split.labels
                return dataclasses.replace(split, labels=torch.where(labels >= 0, column[labels.clamp_min(0)], -1))

            return dataclasses.replace(images, classes=whole, train=of(images.train),
                                       validation=of(images.validation), test=of(images.test))  # fmt: skip

        tasks = tuple(tuple(int(column[k]) for k in columns) for columns in self.tasks)
        return dataclasses.replace(self, classes=whole, tasks=tasks, make=moved, before=tuple(range(len(classes))))

    def digests(self) -> dict[str, str]:
        """The digest of each part of all tasks, by its name in a sentence; see :meth:`Images.digests`."""
        parts = [self.base] if self.derived else [self.task(t) for t in range(len(self))]
        each = [part.digests() for part in parts]
        joined = {name: of_plain([found[name] for found in each]) for name in each[0]}
        return {**joined, "the tasks of the stream": of_plain(self.record())}

    def record(self) -> dict[str, Any]:
        """What a run must find again when it goes on: name, scenario, classes and order, as JSON data."""
        return {"name": self.name, "scenario": self.scenario, "classes": list(self.classes),
                "tasks": [list(columns) for columns in self.tasks], "order": self.order}  # fmt: skip

    @property
    def protocol(self) -> str:
        """One line for beside every figure."""
        sizes = [str(len(columns)) for columns in self.tasks]
        each = sizes[0] if len(set(sizes)) == 1 else "+".join(sizes)
        return f"{self.name}, {len(self)} tasks of {each} classes, {SCENARIOS[self.scenario].split(' (')[0]}"


def _by(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape))


def scenario_of(text: str | None) -> Scenario | None:
    """A scenario from the command line.

    Raises:
        UserError: there is none of that name.
    """
    if text is not None and text not in SCENARIOS:
        raise unknown("scenario", text, tuple(SCENARIOS))
    return cast("Scenario | None", text)
