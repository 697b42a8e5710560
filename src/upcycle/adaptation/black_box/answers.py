"""The answers of predictors to a target's training images: asked for once, checked, and smoothed to targets."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float, Int
from torch import Tensor

from upcycle.core.errors import require
from upcycle.core.patterns import Values
from upcycle.core.run import Run
from upcycle.data.memory import require_memory

if TYPE_CHECKING:
    from upcycle.data.images import Images
    from upcycle.predictors import Answers, Predictor


def adaptive_smoothing(
    classes: Int[Tensor, "n t"], probabilities: Float[Tensor, "n t"], k: int, r: int
) -> Float[Tensor, "n k"]:
    """Smooth answers (AdaLS): keep the r largest probabilities, spread the rest over the other classes (DINE, eq. 2).

    Args:
        classes: the classes of the t answers to each image, best first.
        probabilities: those of the t answers; over all k classes they would sum to 1.
        k: number of all classes.
        r: number of probabilities that stay; r >= t takes all that there are, r >= k changes nothing.

    Returns:
        rows that sum to 1.
    """
    require(r >= 1, f"r must be at least 1, not {r}.")
    r = min(r, classes.shape[1])
    top, kept = classes[:, :r], probabilities[:, :r]
    rest = (1 - kept.sum(1, keepdim=True)).clamp_min(0)
    if r == k:
        return torch.zeros(len(top), k, dtype=kept.dtype).scatter(1, top, kept)
    return (rest / (k - r)).expand(-1, k).scatter(1, top, kept)


def ask(run: Run, predictors: tuple[Predictor, ...], data: Images, r: int) -> Float[Tensor, "n k"]:
    """Ask for P: the mean of the predictors' smoothed answers to the training images, columns in ``data``'s order.

    Each predictor is asked once for each image, by the first process, in a stage of its own: a resumed run does not
    ask again.

    Args:
        run: where the answers are kept.
        predictors: the black boxes, with the classes of the data in any order.
        data: the target, whose training images are shown.
        r: number of probabilities that stay, see :func:`adaptive_smoothing`; 0 keeps all.

    Raises:
        UserError: answers that are none, or one class for all images, from which there is nothing to learn.
    """
    k, rows = len(data.classes), []
    needed = 8 * len(data.train) * k * (len(predictors) + 1)
    require_memory(needed, f"The answers to {len(data.train):,} images, each over {k:,} classes,")
    for i, predictor in enumerate(predictors, 1):
        n, m = len(data.train), len(predictor.classes)
        like = (Values((n, None), 0, m - 1, whole=True), Values((n, None), 0, 1.001))
        classes, probabilities = run.stage(f"answers {i}", partial(_answers, run, predictor, data), like)
        t = classes.shape[1]
        if t < min(r or k, k):
            run.note(f"{predictor.name} answers with {t} of {k} classes, fewer than the {r or k} that are to stay.")
        columns = torch.tensor([data.classes.index(name) for name in predictor.classes])
        rows.append(adaptive_smoothing(columns[classes], probabilities, k, r or k))
    # In float64, so that the mean of equal rows is that row.
    p = torch.stack(rows).double().mean(0).float()
    labels = p.argmax(1)
    require(
        bool((labels != labels[0]).any()),
        f"All {len(p)} images of {data.name} are taken for "
        f"'{data.classes[int(labels[0])]}', so there is nothing to learn from the predictions; bring images of "
        "more classes, or another predictor.",
    )
    return p


def _answers(run: Run, predictor: Predictor, data: Images) -> list[Tensor]:
    found = predictor.predict(data.train) if run.rank == 0 else None
    found = run.fabric.broadcast(found) if run.world_size > 1 else found
    assert found is not None
    _check_answers(found, predictor, len(data.train))
    return [found.classes, found.probabilities]


def _check_answers(found: Answers, predictor: Predictor, n: int) -> None:
    classes, p, k = found.classes, found.probabilities, len(predictor.classes)
    require(
        classes.shape == p.shape and len(p) == n and p.ndim == 2 and 1 <= p.shape[1] <= k,
        f"{predictor.name} answers {n} images with classes {tuple(classes.shape)} and probabilities "
        f"{tuple(p.shape)}; ({n}, t) of each is needed, with t from 1 to {k}.",
    )
    broken = int((~p.isfinite()).any(1).sum())
    require(
        broken == 0,
        f"{predictor.name} answers {broken} of {n} images with what is not a finite probability; "
        "look at those images, and at the predictor.",
    )
    right = (p >= 0).all() and (p.sum(1) <= 1 + 1e-3).all() and (classes >= 0).all() and (classes < k).all()
    require(
        bool(right),
        f"{predictor.name} gives probabilities that are negative or sum to more than 1, or classes "
        f"outside of its {k}; a predictor answers with probabilities, not logits.",
    )


def check_predictors(predictors: tuple[Predictor, ...], data: Images, r: int) -> list[str]:
    """List in words all that keeps predictors from naming the classes of ``data``; r as in :func:`ask`."""
    problems = [] if predictors else ["it needs at least one predictor"]
    for predictor in predictors:
        if sorted(predictor.classes) != sorted(data.classes):
            apart = sorted(set(predictor.classes) ^ set(data.classes)) or ["one of them twice"]
            problems.append(
                f"{predictor.name} has {len(predictor.classes)} classes and {data.name} "
                f"{len(data.classes)}, and they differ ({', '.join(apart[:3])}); the data take the "
                "predictors' classes, also those that they have no image of"
            )
    if r > len(data.classes):
        problems.append(f"r = {r} keeps more classes than the {len(data.classes)} that there are; 0 keeps all")
    return problems
