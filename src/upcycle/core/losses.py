"""The losses that several methods share. Logits z are (n, k), labels y (n,), targets p rows of probabilities (n, k)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from upcycle.core.errors import require
from upcycle.core.ranges import ranges

Reduction = Literal["mean", "none"]
"""What becomes of the losses of the samples of a batch: their mean, or nothing (b,), of which it is the mean."""
EPS = 1e-5
"""Inside the logarithm of entropies, as in the code of SHOT and DINE."""


def entropy(p: Float[Tensor, "*n k"]) -> Float[Tensor, "*n"]:
    """H(p) of each row, in nats."""
    return -(p * (p + EPS).log()).sum(-1)


def information(z: Float[Tensor, "n k"], *, diversity: bool = True) -> Float[Tensor, ""]:
    """mean_i H(q_i) - H(mean_i q_i) with q = softmax(z): the negative mutual information of input and class.

    Small where every answer is certain and all classes occur (Liang, Hu, Feng; ICML 2020, eq. 3).

    Args:
        diversity: with the second term, which is wrong where classes are missing.
    """
    q = z.softmax(1)
    loss = entropy(q).mean()
    return loss - entropy(q.mean(0)) if diversity else loss


def divergence(p: Float[Tensor, "n k"], z: Float[Tensor, "n k"]) -> Float[Tensor, ""]:
    """mean over rows of KL(p ‖ softmax(z)); no gradient to p is asked for."""
    return F.kl_div(z.log_softmax(1), p, reduction="batchmean")


def kd_loss(
    z_s: Float[Tensor, "b k *pixels"],
    z_t: Float[Tensor, "b k *pixels"],
    temperature: float,
    reduction: Reduction = "mean",
) -> Float[Tensor, ""] | Float[Tensor, " b"]:
    """L_kd = T² mean_b KL(softmax(z_t / T) || softmax(z_s / T)), summed over classes, mean over batch and pixels.

    The factor T² keeps the gradient's size independent of T: dL/dz_s = (T/B)(p_s - p_t).

    Args:
        z_s: logits of the student.
        z_t: logits of the teacher; no gradient goes there.
        temperature: T > 0.
        reduction: see :data:`Reduction`.

    Hinton, Vinyals and Dean, arXiv:1503.02531, section 2. Computed in float32 or better.
    """
    wide = torch.float64 if z_s.dtype == torch.float64 else torch.float32
    log_p_s = F.log_softmax(z_s.to(wide) / temperature, dim=1)
    log_p_t = F.log_softmax(z_t.detach().to(wide) / temperature, dim=1)
    if reduction == "none":
        each = F.kl_div(log_p_s, log_p_t, reduction="none", log_target=True).flatten(1).sum(1)
        return temperature**2 * each * (z_s.shape[0] * z_s.shape[1] / z_s.numel())
    divergence = F.kl_div(log_p_s, log_p_t, reduction="sum", log_target=True)
    return temperature**2 * divergence / (z_s.numel() // z_s.shape[1])


def ce_loss(
    z: Float[Tensor, "b k"],
    target: Int[Tensor, " b"] | Float[Tensor, "b k"],
    smoothing: float = 0.0,
    reduction: Reduction = "mean",
) -> Float[Tensor, ""] | Float[Tensor, " b"]:
    """Cross-entropy, summed over the labelled samples and divided by the batch size b.

    A sample without a label adds nothing, so the loss is defined when no label is there and several processes
    agree on it; where all samples are labelled it is the ordinary mean. A one-hot row gives the bits of its label.

    Args:
        z: logits.
        target: labels, -1 where there is none; or targets T, whose loss is -Σ T log p, a row of zeros where there is
            none. T is taken as it is: its rows need not sum to one.
        smoothing: share of the target that is spread over all classes; of T, that share of each row's sum.
        reduction: see :data:`Reduction`.
    """
    wide = torch.float64 if z.dtype == torch.float64 else torch.float32
    if not target.is_floating_point():
        how = "none" if reduction == "none" else "sum"
        loss = F.cross_entropy(z.to(wide), target, ignore_index=-1, label_smoothing=smoothing, reduction=how)
        return loss if reduction == "none" else loss / len(target)
    log_p, T = z.to(wide).log_softmax(1), target.to(wide)
    if reduction == "none":
        each = -(T * log_p).sum(1)
        return (1 - smoothing) * each - smoothing / z.shape[1] * T.sum(1) * log_p.sum(1) if smoothing else each
    # torch's own loss of probabilities smooths rows of zeros too. Its nll_loss sums over samples as it does for labels.
    first = -(T == 0).all(1).long()  # -1 without a target, and is left out; else 0, the only column
    summed = F.nll_loss((T * log_p).sum(1, keepdim=True), first, ignore_index=-1, reduction="sum")
    if smoothing:
        spread = -(T.sum(1) * log_p.sum(1)).sum()
        summed = (1 - smoothing) * summed + spread * (smoothing / z.shape[1])
    return summed / len(target)


def balanced_targets(y: Int[Tensor, " n"], k: int) -> Float[Tensor, "n k"]:
    """Targets for :func:`ce_loss` in which all classes weigh alike: n / (k n_c) at the label, zeros where it is -1.

    Args:
        y: all labels; n counts those that are known, n_c those of class c.
        k: the number of classes.
    """
    counts = torch.bincount(y[y >= 0], minlength=k)
    weights = counts.sum() / (k * counts.clamp_min(1))
    return F.one_hot(y.clamp_min(0), k) * (weights[y.clamp_min(0)] * (y >= 0))[:, None]


def kd_objective(
    z_s: Tensor,
    z_t: Tensor,
    y: Tensor,
    *,
    temperature: float,
    w_kd: float,
    w_ce: float,
    smoothing: float = 0.0,
    reduction: Reduction = "mean",
) -> Tensor:
    """L = w_ce L_ce + w_kd L_kd. A term with weight zero is not computed, so ``w_ce = 0`` needs no labels."""
    terms = []
    if w_ce:
        terms.append(w_ce * ce_loss(z_s, y, smoothing, reduction))
    if w_kd:
        terms.append(w_kd * kd_loss(z_s, z_t, temperature, reduction))
    return torch.stack(terms).sum(0) if len(terms) > 1 else terms[0]


@dataclass(kw_only=True)
class Terms:
    """The two terms of distillation from logits: L = w_ce L_ce + w_kd L_kd, see :func:`kd_objective`.

    Args:
        temperature: T, which softens both networks' probabilities in L_kd; 4 is the field's convention (RepDistiller).
        w_kd: weight of the teacher's term, not negative; at 0 the labels alone count, as in ``plain``.
        w_ce: weight of the labels' term, not negative; at 0 no label is used. The defaults are those of KDExplainer's
            published configurations.
    """

    temperature: float = 4.0
    w_kd: float = 0.9
    w_ce: float = 0.1

    def __post_init__(self) -> None:
        ranges(self, positive=("temperature",), not_negative=("w_kd", "w_ce"))
        require(self.w_kd + self.w_ce > 0, "w_kd and w_ce must not both be zero.")

    def __call__(
        self, z_s: Tensor, z_t: Tensor, y: Tensor, smoothing: float = 0.0, reduction: Reduction = "mean"
    ) -> Tensor:
        """L of a batch.

        Args:
            z_s: logits of the student.
            z_t: logits of the teacher; not looked at where ``w_kd`` is 0.
            y: labels, -1 where there is none.
            smoothing: share of the target of L_ce that is spread over all classes.
            reduction: see :data:`Reduction`.
        """
        return kd_objective(
            z_s,
            z_t,
            y,
            temperature=self.temperature,
            w_kd=self.w_kd,
            w_ce=self.w_ce,
            smoothing=smoothing,
            reduction=reduction,
        )


def cross_entropy(z: Float[Tensor, "b k"], y: Int[Tensor, " b"], total: int) -> Float[Tensor, ""]:
    """This process' part of the mean cross-entropy over ``total`` images; for ``run.backward(..., "sum")``.

    So a batch from the stream, ``run.count`` images over all processes, and one from the memory can be summed.
    """
    return F.cross_entropy(z, y, reduction="sum") / total


def contrastive_loss(u: Float[Tensor, "n d"], w: Float[Tensor, "m d"], tau: float, first: int = 0) -> Float[Tensor, ""]:
    """mean_i -log( exp(u_i · w_j / tau) / sum_m exp(u_i · w_m / tau) ), where j = first + i is i's own key: InfoNCE.

    Args:
        u: queries, of unit length; gradients go here alone.
        w: keys, those of all samples that u shall be told from.
        tau: temperature.
        first: the place of the first query's own key.
    """
    own = first + torch.arange(len(u), device=u.device)
    return F.cross_entropy(u @ w.detach().T / tau, own)
