"""Data sets of whatever samples: three splits, their classes, and the book-keeping of their labels."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar, Self

import torch
from torch import Tensor

from upcycle.core import cells
from upcycle.core.batches import Batch
from upcycle.core.errors import UserError, require, require_names, unknown
from upcycle.core.inputs import of_plain, of_tensor
from upcycle.core.reading import Reading
from upcycle.core.takes import Takes
from upcycle.core.task import CLASSIFICATION, Task
from upcycle.data import augment

if TYPE_CHECKING:
    from upcycle.core.models import Model


@dataclass(eq=False, kw_only=True, repr=False)
class Samples:
    """One split of a collection, of which this is what all kinds of samples have; implements ``Split``.

    Args:
        labels: of each sample; of classes int64 (n,), -1 where unknown.
        ids: int64 (n,), each sample's number in its source, which draws and augmentation are keyed by.
        augment: operations that are applied when a batch is asked for with a view.
        ordered: the samples are shown in the order in which they lie, not shuffled.
    """

    together: ClassVar[bool] = False

    labels: Tensor
    ids: Tensor
    augment: tuple[str, ...] = ()
    ordered: bool = False

    def __len__(self) -> int:
        return len(self.ids)

    def __repr__(self) -> str:
        return f"<{type(self).__name__}: {counted(len(self), 'sample')}>"

    @property
    def task(self) -> Task:
        """The task that the labels are of."""
        return CLASSIFICATION

    @property
    def labelled(self) -> bool:
        """Whether its samples have labels, at least some of them."""
        return bool(self.task.known(self.labels).any())

    def batch(self, index: Tensor, *, device: torch.device, view: tuple[int, int] | None = None) -> Batch:
        """See :class:`upcycle.core.batches.Split`."""
        raise NotImplementedError

    def seen_by(self, model: Model) -> Self:
        """The same samples as ``model`` takes them, see :meth:`Collection.seen_by`."""
        return self

    def subset(self, index: Tensor) -> Self:
        """The samples ``index``, in that order."""
        return replace(self, labels=self.labels[index], ids=self.ids[index])

    def with_others(self, others: Sequence[Self]) -> Self:
        """These samples, and after them those of other splits of one source, not in a fixed order."""
        every = (self, *others)
        labels, ids = (torch.cat([getattr(split, name) for split in every]) for name in ("labels", "ids"))
        return replace(self, labels=labels, ids=ids, ordered=False)

    def contents(self) -> tuple[Tensor, ...]:
        """The tensors that the inputs are made of, for digests."""
        raise NotImplementedError


@dataclass(eq=False, kw_only=True, repr=False)
class Collection:
    """A data set with train, validation and test splits; of which this is what has nothing to do with its samples.

    Args:
        name: names the set in every figure; a split that is not the official one carries another name.
        classes: class names.
        licence: as the source states it, or ``unknown``.
        notes: honest sentences about where the splits come from and what was drawn from them.
        chosen: JSON data: which training samples :meth:`few` and :meth:`hide_labels` chose, by their ids.
        measured: the name of the set that validation and test come from, where that is another.
        lineage: the family tree of samples that a network made (:mod:`upcycle.data.pool_files`), else ``None``.
        reading: how files became samples; a network that is trained on them is used in the same way.
        answered: the splits whose labels are a teacher's answers, so that what is measured on them is agreement.
    """

    name: str
    classes: tuple[str, ...]
    train: Samples
    validation: Samples
    test: Samples
    licence: str = "unknown"
    notes: list[str] = field(default_factory=list)
    chosen: dict[str, Any] = field(default_factory=dict)
    measured: str = ""
    lineage: dict[str, Any] | None = None
    reading: Reading = field(default_factory=Reading)
    answered: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        require_names((self.name, self.licence, *self.classes), f"The data set {self.name}")

    def __repr__(self) -> str:
        return cells.line(self, describe(self))

    def _repr_html_(self) -> str:
        splits = {name: getattr(self, name) for name in ("train", "validation", "test")}
        rows = [(name, f"{len(split):,}") for name, split in splits.items()]
        return cells.table(describe(self), ("split", self.noun), rows, self.notes)

    # -- what a kind of data says of itself ---------------------------------------------------------------------------

    @property
    def takes(self) -> Takes:
        """A description of what a network for these data takes."""
        raise NotImplementedError

    @property
    def form(self) -> str:
        """The form of a sample, for a line about the set: ``3 x 32 x 32``."""
        return str(self.takes)

    @property
    def remarks(self) -> list[str]:
        """Sentences about what was done to the samples, beside the notes."""
        return []

    @property
    def usual_augmentation(self) -> tuple[str, ...]:
        """The operations that ``augment`` takes when it is left to decide."""
        return ()

    def seen_by(self, model: Model) -> Self:
        """The same set as ``model`` takes it; images are normalised with its mean and std."""
        return self

    def augmented(self, operations: tuple[str, ...]) -> Self:
        """The same set, whose training samples are augmented with ``operations``."""
        require(not operations, f"There is no augmentation of {self.noun}, so none of {', '.join(operations)}.")
        return self

    # -- the rest -----------------------------------------------------------------------------------------------------

    @property
    def task(self) -> Task:
        """The task that the labels are of."""
        return self.train.task

    @property
    def noun(self) -> str:
        """The name of its samples, in the plural: images, graphs, nodes."""
        return self.takes.noun

    @property
    def title(self) -> str:
        """The name, and that of the set it is measured on."""
        if not self.measured:
            return self.name
        return f"{self.name}, measured on {self.measured}" if len(self.train) else f"{self.measured}, only to measure"

    @cached_property
    def digest(self) -> str:
        """SHA-256 (hex) of the samples and labels of all splits."""
        total = hashlib.sha256()
        for name, split in self.splits().items():
            for tensor in (*split.contents(), split.labels):
                total.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
                total.update(tensor.contiguous().numpy().data)
        return total.hexdigest()

    def digests(self) -> dict[str, str]:
        """The digest of each part, by its name in a sentence; see :meth:`upcycle.core.method.Method.inputs`."""
        found = {"the names of the classes": of_plain(self.classes)}
        for word, split in zip(("training", "validation", "test"), self.splits().values(), strict=True):
            found[f"the {word} {self.noun}"] = of_plain([*map(of_tensor, split.contents()), of_tensor(split.ids)])
            found[f"the labels of the {word} {self.noun}"] = of_tensor(split.labels)
        return found

    def subset(self, index: Tensor) -> Self:
        """The same set with only the training samples ``index``; validation and test stay whole."""
        return replace(self, train=self.train.subset(index))

    def only(self, classes: tuple[str, ...]) -> Self:
        """The samples of some classes alone, labelled by their places in ``classes``.

        Raises:
            UserError: a class that the set does not have.
        """
        for name in classes:
            if name not in self.classes:
                raise unknown(f"class of {self.name}", name, self.classes)
        to = torch.full((len(self.classes) + 1,), -1)  # the last one for label -1
        to[[self.classes.index(name) for name in classes]] = torch.arange(len(classes))

        def of(split: Samples) -> Samples:
            labels = to[split.labels]
            return replace(split, labels=labels).subset((labels >= 0).nonzero()[:, 0])

        train, validation, test = map(of, self.splits().values())
        note = f"Only the classes {listed(list(classes), 'classes')} of {self.name}."
        return replace(
            self,
            classes=tuple(classes),
            train=train,
            validation=validation,
            test=test,
            notes=self.notes if set(classes) == set(self.classes) else [*self.notes, note],
        )

    def few(self, per_class: int, seed: int) -> Self:
        """Only ``per_class`` training samples of each class, drawn with ``seed``.

        For one seed, fewer are always part of more, and :meth:`hide_labels` keeps the labels of the same
        samples.

        Raises:
            UserError: naming the classes that have too few labelled samples.
        """
        require(per_class >= 1, f"few takes at least 1 {self._one} a class, not {per_class}.")
        require(bool(self.classes), f"{self.name} has no labels to draw {self.noun} of each class by.")
        index = self._draw(per_class, seed)
        chosen = {"per_class": per_class, "seed": seed, "ids": self.train.ids[index].tolist()}
        note = f"Only {counted(per_class, f'training {self._one}')} a class of {self.name}, drawn with seed {seed}."
        return replace(self.subset(index), chosen={**self.chosen, "few": chosen}, notes=[*self.notes, note])

    def hide_labels(self, keep: int, seed: int) -> Self:
        """All training samples, but labels for only ``keep`` of each class (0: none); the others become -1.

        Validation and test keep theirs: they only measure.

        Raises:
            UserError: naming the classes that have too few labelled samples.
        """
        require(keep >= 0, f"hide_labels keeps 0 or more labels a class, not {keep}.")
        index = self._draw(keep, seed)
        labels = torch.full_like(self.train.labels, -1)
        labels[index] = self.train.labels[index]
        chosen = {"keep": keep, "seed": seed, "ids": self.train.ids[index].tolist()}
        kept = f"for {keep} a class, drawn with seed {seed}" if keep else "for none"
        note = f"All {len(labels):,} training {self.noun} of {self.name}, labels {kept}."
        return replace(
            self,
            train=replace(self.train, labels=labels),
            chosen={**self.chosen, "labels": chosen},
            notes=[*self.notes, note],
        )

    def splits(self) -> Mapping[str, Samples]:
        """The three splits by name."""
        return {"train": self.train, "validation": self.validation, "test": self.test}

    @property
    def _one(self) -> str:
        return self.noun.removesuffix("s")

    def _draw(self, per_class: int, seed: int) -> Tensor:
        """Positions of ``per_class`` labelled training samples of each class, in ascending order."""
        require(
            self.task.name == "classification",
            f"{self.name} has no classes to draw {self.noun} of: its task is {self.task.name}.",
        )
        index = draw(self.train.labels, self.train.ids, [per_class] * len(self.classes), seed, "few")
        got = torch.bincount(self.train.labels[index], minlength=len(self.classes)).tolist()
        short = [f"'{c}' has {n}" for c, n in zip(self.classes, got, strict=True) if n < per_class]
        if short:
            raise UserError(
                f"{self.name} has too few labelled training {self.noun} to draw {per_class} a class: "
                f"{listed(short, 'classes')}. Ask for fewer, or add {self.noun}."
            )
        return index


def draw(labels: Tensor, ids: Tensor, counts: list[int], seed: int, stream: str) -> Tensor:
    """Positions (ascending) of up to ``counts[k]`` samples of each class k, by their smallest random numbers.

    Each number belongs to a sample's id, so a draw does not depend on the order of the samples or on other
    classes.
    """
    order = augment.uniform(seed, 0, ids, stream)[:, 0].argsort(stable=True)
    ranked = labels[order]
    picked = [order[ranked == k][:count] for k, count in enumerate(counts)]
    return torch.cat([torch.empty(0, dtype=torch.long), *picked]).sort().values


def stratified(labels: Tensor, ids: Tensor, size: int, seed: int, stream: str) -> Tensor:
    """Positions (ascending) of ``size`` samples, each class in its proportion, at least one of each left.

    Shares are rounded by largest remainder; classes that would go without come first. Fewer than ``size``
    come back only when the classes cannot spare more.
    """
    have = torch.bincount(labels)
    exact = have.double() * size / len(labels)
    spare = (have - 1).clamp_min(0)
    counts = exact.floor().long().minimum(spare)
    by_need = sorted(range(len(have)), key=lambda k: (counts[k] > 0, float(counts[k] - exact[k])))
    while (missing := size - int(counts.sum())) > 0:
        takers = [k for k in by_need if counts[k] < spare[k]][:missing]
        if not takers:
            break
        counts[takers] += 1
    return draw(labels, ids, counts.tolist(), seed, stream)


def describe(data: Collection) -> str:
    """One line: name, sizes, classes, and what a sample is like.

    For example ``digits: 1,000 train, 297 validation, 500 test images, 10 classes, 1 x 8 x 8``.
    """
    known = int(data.task.known(data.train.labels).sum())
    labelled = "" if known == len(data.train) else f" ({known:,} labelled)"
    if not len(data.train) and not len(data.test):
        return f"{data.name}; {len(data.classes)} classes, {data.form}"
    return (
        f"{data.title}: {len(data.train):,} train{labelled}, {len(data.validation):,} validation, "
        f"{len(data.test):,} test {data.noun}, {counted(len(data.classes), 'class', 'classes')}, {data.form}"
    )


def listed(items: list[str], what: str) -> str:
    """The first three of ``items``, and how many there are when there are more."""
    shown = ", ".join(items[:3])
    return shown if len(items) <= 3 else f"{shown}, ... ({len(items):,} {what} in all)"


def counted(n: int, noun: str, several: str = "") -> str:
    """How many, with the noun in the number that this takes."""
    return f"{n:,} {noun if n == 1 else several or noun + 's'}"
