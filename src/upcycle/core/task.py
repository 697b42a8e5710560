"""Tasks: what a network answers, and how its answers are judged."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from upcycle.core.errors import UserError, require, unknown
from upcycle.core.losses import ce_loss

BINS = 15


class Measured(Protocol):
    """Figures that a judge measured on a split."""

    @property
    def score(self) -> float:
        """The task's figure, in its unit."""
        ...

    @property
    def figures(self) -> dict[str, float]:
        """The figures that a run logs, by name."""
        ...

    @property
    def count(self) -> int:
        """The number of samples that it is a measurement of."""
        ...


class Judge(Protocol):
    """A judge of the answers to a split, fed batch by batch, so that no more than it needs is kept."""

    def add(self, answers: Any, targets: Any) -> None:
        """Take in the answers to a batch and its targets."""
        ...

    def join(self, other: Any) -> None:
        """Take in what another judge of this kind was given, of samples that come behind: of another process."""
        ...

    def result(self) -> Measured:
        """Give what was measured.

        Raises:
            UserError: answers that are not finite or do not fit the targets, or no sample whose target is known.
        """
        ...


class Task(Protocol):
    """A network's kind of answers and their judge; a frozen dataclass, whose fields are what :meth:`plain` gives.

    Attributes:
        name: its key in :data:`TASKS`.
        figure: the name of the score.
        unit: of the score: a share of 1, dB, or a plain number.
        higher: whether a higher score is a better one.
    """

    name: ClassVar[str]
    figure: ClassVar[str]
    unit: ClassVar[Literal["share", "dB", "number"]]
    higher: ClassVar[bool]

    def outputs(self, answer: Any, n: int, noun: str = "samples") -> int:
        """The number of outputs k, of the answer to n samples.

        Args:
            noun: what the samples are called.

        Raises:
            UserError: an answer that is none of this task; the sentence lacks its subject, the network's name.
        """
        ...

    def judge(self, *, classes: int | None = None, name: str = "the network") -> Judge:
        """A judge of one split's answers.

        Args:
            classes: how many outputs are expected; ``None`` takes what comes.
            name: how errors call the network.
        """
        ...

    def agreement(self, a: Any, b: Any) -> float:
        """The share of the samples that two answers decide alike, in [0, 1]."""
        ...

    def loss(self, answers: Any, targets: Any) -> Tensor:
        """Give what plain training descends: a scalar, divided by the number of samples of the batch, known or not."""
        ...

    def known(self, targets: Any) -> Tensor:
        """Whether each sample's target is known, bool (n,)."""
        ...

    def plain(self) -> dict[str, Any]:
        """Its fields as JSON data: ``TASKS[name](**plain)`` is the same task again."""
        ...


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """Figures of a classifier, as plain data. Only samples whose label is known count.

    Args:
        accuracy: share of samples whose highest logit is at their label, in [0, 1].
        loss: mean cross-entropy, in nats.
        ece: expected calibration error over 15 equal-width bins of confidence, in [0, 1] (Naeini et al.
            2015).
        per_class: recall of each class; ``None`` for a class without samples.
        confusion: k rows of k counts; row = label, column = prediction.
        count: number of samples.
        confidence: the reliability diagram, three lists of 15: ``confidence`` (mean of the bin), ``accuracy``
            and ``count``; zeros in an empty bin.
    """

    accuracy: float
    loss: float
    ece: float
    per_class: list[float | None]
    confusion: list[list[int]]
    count: int
    confidence: dict[str, list[float]]

    @property
    def score(self) -> float:
        """The accuracy."""
        return self.accuracy

    @property
    def figures(self) -> dict[str, float]:
        """The figures that a run logs: accuracy and loss."""
        return {"accuracy": self.accuracy, "loss": self.loss}


def margin(z: Tensor, y: Tensor) -> Tensor:
    """z_y - log Σ_{c≠y} exp z_c of each row, float64 (n,): grows with the probability of y, and does not end at 1.

    Args:
        z: logits (n, k).
        y: classes (n,).
    """
    z = z.double()
    return z.gather(1, y[:, None])[:, 0] - z.scatter(1, y[:, None], -torch.inf).logsumexp(1)


def judged(logits: Tensor, labels: Tensor, *, num_classes: int | None = None, name: str) -> Evaluation:
    """How good a classifier is, from logits (n, k) that are at hand already, and labels int64 (n,).

    Args:
        num_classes: how many logits are expected; ``None`` takes what comes.
        name: how errors call the network.

    Raises:
        UserError: non-finite outputs, no labelled sample, or logits that do not fit the labels.
    """
    known = labels >= 0
    logits, labels = logits[known], labels[known]
    count, k = logits.shape
    require(count > 0, f"There is no labelled sample to evaluate {name} on.")
    require(num_classes in (None, k), f"{name} gives {k} logits, but the data have {num_classes} classes.")
    require(int(labels.max()) < k, f"{name} gives {k} logits, but a sample has label {int(labels.max())}.")
    broken = int((~logits.isfinite()).any(1).sum())
    require(
        broken == 0,
        f"{name} gives NaN or infinite outputs for {broken} of {count} samples; check its weights.",
    )

    log_p = F.log_softmax(logits.double(), 1)
    top, predicted = log_p.exp().max(1)
    right = (predicted == labels).double()
    confusion = torch.bincount(labels * k + predicted, minlength=k * k).view(k, k)
    support = confusion.sum(1)
    recall = (confusion.diagonal() / support).tolist()

    bins = (top * BINS).long().clamp_max(BINS - 1)
    size = torch.bincount(bins, minlength=BINS)
    hits = torch.bincount(bins, right, minlength=BINS)
    trust = torch.bincount(bins, top, minlength=BINS)
    return Evaluation(
        accuracy=right.mean().item(),
        loss=F.nll_loss(log_p, labels).item(),
        ece=((hits - trust).abs().sum() / count).item(),
        per_class=[r if n else None for r, n in zip(recall, support.tolist(), strict=True)],
        confusion=confusion.tolist(),
        count=count,
        confidence={
            "confidence": (trust / size.clamp_min(1)).tolist(),
            "accuracy": (hits / size.clamp_min(1)).tolist(),
            "count": size.double().tolist(),
        },
    )


class _Logits:
    """The judge of a classifier: keeps float32 logits (n, k) and labels, of which :func:`judged` makes all figures."""

    def __init__(self, classes: int | None, name: str) -> None:
        self.classes, self.name = classes, name
        self.logits: list[Tensor] = []
        self.labels: list[Tensor] = []

    def add(self, answers: Any, targets: Any) -> None:
        self.logits.append(logits_of(answers, len(targets), self.name))
        self.labels.append(targets.cpu())

    def join(self, other: _Logits) -> None:
        self.logits += other.logits
        self.labels += other.labels

    def result(self) -> Evaluation:
        return judged(torch.cat(self.logits), torch.cat(self.labels), num_classes=self.classes, name=self.name)


def logits_of(answer: Any, n: int, name: str) -> Tensor:
    """The answer to n samples as float32 logits (n, k) on the CPU.

    Raises:
        UserError: it is something else.
    """
    if not isinstance(answer, Tensor) or answer.ndim != 2 or len(answer) != n:
        what = f"shape {tuple(answer.shape)}" if isinstance(answer, Tensor) else f"a {type(answer).__name__}"
        raise UserError(f"{name} gives {what} for {n} samples; a classifier gives logits of shape ({n}, classes).")
    return answer.float().cpu()


@dataclass(frozen=True)
class Classification:
    """Logits (n, k), one of k classes a sample; labels int64 (n,), -1 where unknown."""

    name: ClassVar[str] = "classification"
    figure: ClassVar[str] = "accuracy"
    unit: ClassVar[Literal["share", "dB", "number"]] = "share"
    higher: ClassVar[bool] = True

    def outputs(self, answer: Any, n: int, noun: str = "samples") -> int:
        """See :meth:`Task.outputs`."""
        return _columns(answer, n, noun)

    def judge(self, *, classes: int | None = None, name: str = "the network") -> Judge:
        """See :meth:`Task.judge`; its result is an :class:`Evaluation`."""
        return _Logits(classes, name)

    def agreement(self, a: Tensor, b: Tensor) -> float:
        """The share of equal top classes."""
        dim = min(1, b.ndim - 1)
        return (a.argmax(dim) == b.argmax(dim)).double().mean().item()

    def loss(self, answers: Tensor, targets: Tensor) -> Tensor:
        """See :func:`upcycle.core.losses.ce_loss`."""
        return ce_loss(answers, targets)

    def known(self, targets: Tensor) -> Tensor:
        """Where the label is not -1."""
        return targets >= 0

    def plain(self) -> dict[str, Any]:
        """Nothing: there is one classification."""
        return {}


@dataclass(frozen=True, kw_only=True)
class LabelFigures:
    """Figures of a network that says yes or no to each of k labels, as plain data. Only known targets count.

    Args:
        f1: micro-F1: 2 TP / (2 TP + FP + FN), the counts of all labels added up, in [0, 1].
        loss: mean binary cross-entropy of an answer, in nats.
        per_class: F1 of each label by itself; ``None`` where it is neither there nor said to be.
        count: number of samples.
    """

    f1: float
    loss: float
    per_class: list[float | None]
    count: int

    @property
    def score(self) -> float:
        """The micro-F1."""
        return self.f1

    @property
    def figures(self) -> dict[str, float]:
        """The figures that a run logs: F1 and loss."""
        return {"F1": self.f1, "loss": self.loss}


class _Counts:
    """The judge of several labels a sample: adds up right and wrong answers, and keeps no logits."""

    def __init__(self, classes: int | None, name: str) -> None:
        self.classes, self.name = classes, name
        self.count = self.answers = 0
        self.loss = 0.0
        self.right: Tensor | int = 0  # for each label: how often it is there and was said to be,
        self.total: Tensor | int = 0  # and how often either, added up

    def add(self, answers: Any, targets: Any) -> None:
        z, y = logits_of(answers, len(targets), self.name).double(), targets.cpu().double()
        k = z.shape[1]
        require(self.classes in (None, k), f"{self.name} gives {k} logits, but the data have {self.classes} labels.")
        require(y.shape == z.shape, f"{self.name} gives {k} logits, but targets are of shape {tuple(y.shape)}.")
        known = ~y.isnan()
        broken = int((~z.isfinite() & known).any(1).sum())
        require(
            broken == 0,
            f"{self.name} gives NaN or infinite outputs for {broken} of {len(z)} samples; check its weights.",
        )
        said, there = (z > 0) & known, y > 0.5
        self.right = self.right + (said & there).sum(0)
        self.total = self.total + said.sum(0) + there.sum(0)
        self.loss += F.binary_cross_entropy_with_logits(z[known], y[known], reduction="sum").item()
        self.answers += int(known.sum())
        self.count += int(known.any(1).sum())

    def join(self, other: _Counts) -> None:
        self.right, self.total = self.right + other.right, self.total + other.total
        self.loss, self.answers, self.count = (
            self.loss + other.loss,
            self.answers + other.answers,
            self.count + other.count,
        )

    def result(self) -> LabelFigures:
        require(self.count > 0, f"There is no labelled sample to evaluate {self.name} on.")
        right, total = torch.as_tensor(self.right), torch.as_tensor(self.total)
        return LabelFigures(
            f1=2 * int(right.sum()) / int(total.sum()) if total.any() else 1.0,
            loss=self.loss / self.answers,
            per_class=[2 * r / n if n else None for r, n in zip(right.tolist(), total.tolist(), strict=True)],
            count=self.count,
        )


@dataclass(frozen=True)
class MultiLabel:
    """Logits (n, k), yes (above 0) or no to each of k labels, of which a sample may have any number.

    Targets are float (n, k): 1 where a label is there, 0 where it is not, NaN where that is unknown.
    """

    name: ClassVar[str] = "multilabel"
    figure: ClassVar[str] = "F1"
    unit: ClassVar[Literal["share", "dB", "number"]] = "share"
    higher: ClassVar[bool] = True

    def outputs(self, answer: Any, n: int, noun: str = "samples") -> int:
        """See :meth:`Task.outputs`."""
        return _columns(answer, n, noun)

    def judge(self, *, classes: int | None = None, name: str = "the network") -> Judge:
        """See :meth:`Task.judge`; its result is a :class:`LabelFigures`."""
        return _Counts(classes, name)

    def agreement(self, a: Tensor, b: Tensor) -> float:
        """The share of samples for which all labels are answered alike."""
        return ((a > 0) == (b > 0)).all(1).double().mean().item()

    def loss(self, answers: Tensor, targets: Tensor) -> Tensor:
        """Binary cross-entropy, summed over known targets and divided by b k; in float32 or better."""
        z = answers.to(torch.float64 if answers.dtype == torch.float64 else torch.float32)
        each = F.binary_cross_entropy_with_logits(z, targets.nan_to_num().to(z.dtype), reduction="none")
        return (each * ~targets.isnan()).sum() / z.numel()

    def known(self, targets: Tensor) -> Tensor:
        """Where of at least one label it is known whether it is there."""
        return ~targets.isnan().all(1)

    def plain(self) -> dict[str, Any]:
        """Nothing: the names of the labels are the classes of data and network."""
        return {}


def _columns(answer: Any, n: int, noun: str) -> int:
    """The number of columns of logits (n, k), or the error of :meth:`Task.outputs`."""
    if isinstance(answer, Tensor) and answer.dim() == 2 and len(answer) == n:
        return answer.shape[1]
    found = tuple(answer.shape) if isinstance(answer, Tensor) else type(answer).__name__
    count = "two" if n == 2 else str(n)
    raise UserError(
        f"is no classifier of {noun}: {count} {noun} give {found} instead of logits of shape ({n}, classes)."
    )


CLASSIFICATION: Task = Classification()
MULTILABEL: Task = MultiLabel()
TASKS: dict[str, type[Task]] = {"classification": Classification, "multilabel": MultiLabel}
"""The tasks by name."""


def task_of(record: dict[str, Any]) -> Task:
    """A task from its name and its :meth:`Task.plain`.

    Raises:
        UserError: no such task.
        TypeError: fields that the task does not have.
    """
    fields = {key: tuple(value) if isinstance(value, list) else value for key, value in record.items()}
    name = fields.pop("name", None)
    if name not in TASKS:
        raise unknown("task", str(name), TASKS)
    return TASKS[name](**fields)
