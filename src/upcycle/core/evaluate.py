"""How good a classifier is on a split, measured without leaving a trace on the network or on randomness."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from upcycle.core.batches import Split
from upcycle.core.errors import UserError, require
from upcycle.core.frozen import Frozen
from upcycle.core.outputs import called
from upcycle.core.portions import portions
from upcycle.core.undisturbed import undisturbed

BINS = 15


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """What :func:`evaluate` measured, as plain data. Only samples whose label is known count.

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


def margin(z: Tensor, y: Tensor) -> Tensor:
    """z_y - log Σ_{c≠y} exp z_c of each row, float64 (n,): grows with the probability of y, and does not end at 1.

    Args:
        z: logits (n, k).
        y: classes (n,).
    """
    z = z.double()
    return z.gather(1, y[:, None])[:, 0] - z.scatter(1, y[:, None], -torch.inf).logsumexp(1)


def predict_logits(module: nn.Module, split: Split, device: torch.device | str | None = None) -> Tensor:
    """The logits of every sample of ``split``, float32 (n, k) on the CPU, in the split's order.

    Args:
        module: maps images to logits (b, k).
        split: read without augmentation.
        device: where to, for as long as it takes; ``None`` leaves the module where it is.

    Raises:
        UserError: the split is empty, or the outputs are not (b, k).
    """
    return _collect(module, split, device)[0]


def evaluate(
    module: nn.Module,
    split: Split,
    *,
    device: torch.device | str | None = None,
    num_classes: int | None = None,
    name: str | None = None,
) -> Evaluation:
    """Accuracy, loss, calibration and confusion of a classifier.

    Args:
        module: maps images to logits (b, k). Its modes are restored afterwards.
        split: samples with label -1 are left out.
        device: where to, for as long as it takes; ``None`` leaves the module where it is.
        num_classes: how many logits are expected; ``None`` takes what comes.
        name: how errors call the network; its class when ``None``.

    Raises:
        UserError: non-finite outputs, no labelled sample, or logits that do not fit the labels.
    """
    logits, labels = _collect(module, split, device)
    return judged(logits, labels, num_classes=num_classes, name=name or called(module))


def judged(logits: Tensor, labels: Tensor, *, num_classes: int | None = None, name: str) -> Evaluation:
    """What :func:`evaluate` measures, from logits (n, k) that are at hand already, and labels int64 (n,)."""
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


@contextlib.contextmanager
def _moved(module: nn.Module, device: torch.device | str | None) -> Iterator[torch.device]:
    home = next((t.device for t in (*module.parameters(), *module.buffers())), torch.device("cpu"))
    there = torch.device(device) if device is not None else home
    try:
        module.to(there)
        yield there
    finally:
        module.to(home)


def _collect(module: nn.Module, split: Split, device: torch.device | str | None) -> tuple[Tensor, Tensor]:
    """Logits float32 (n, k) and labels int64 (n,), on the CPU."""
    require(len(split) > 0, "There is no sample to evaluate on: the split is empty.")
    # Splits give float32, which a network in another format would refuse; a frozen one casts by itself.
    own = () if isinstance(module, Frozen) else (p.dtype for p in module.parameters() if p.is_floating_point())
    dtype = next(iter(own), torch.float32)
    logits, labels = [], []
    with undisturbed(module), _moved(module, device) as there:
        for index in portions(module, len(split)):
            batch = split.batch(index, device=there)
            out = module(batch.images.to(dtype))
            if not isinstance(out, Tensor) or out.ndim != 2 or len(out) != len(index):
                what = f"shape {tuple(out.shape)}" if isinstance(out, Tensor) else f"a {type(out).__name__}"
                raise UserError(
                    f"{called(module)} gives {what} for {len(index)} samples; "
                    f"a classifier gives logits of shape ({len(index)}, classes)."
                )
            logits.append(out.float().cpu())
            labels.append(batch.labels.cpu())
    return torch.cat(logits), torch.cat(labels)
