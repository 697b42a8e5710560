"""Progressive network grafting: a student's blocks learn inside the teacher, from a few unlabelled images."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _BatchNorm

from upcycle.core.advice import Fit, Situation
from upcycle.core.checks import same_classes
from upcycle.core.cut import cut
from upcycle.core.errors import UserError, require
from upcycle.core.method import Card, Method, Needs
from upcycle.core.models import Model
from upcycle.core.patterns import weights_of
from upcycle.core.ranges import ranges
from upcycle.core.run import Run
from upcycle.core.undisturbed import undisturbed
from upcycle.distillation.grafting.adapters import TOLERANCE, WrappedBlock, adapter, merge, relative_error
from upcycle.distillation.grafting.blocks import (
    Chain,
    copy_weights,
    cut_trained,
    estimate_statistics,
    features,
    first_images,
    frozen_blocks,
    load_blocks,
    through,
    uncopied,
    unequal,
    untrainable,
)

if TYPE_CHECKING:
    from upcycle.data.images import Images

PAPERS_SHOTS = 50
"""The most images a class that the paper has; its scaling of rates goes no further."""


def normalised_logit_loss(z_s: Float[Tensor, "b k"], z_t: Float[Tensor, "b k"]) -> Float[Tensor, ""]:
    """L = Σ_b || z_s / |z_s| - z_t / |z_t| ||², summed over the batch; in [0, 4b].

    Equals 2 Σ_b (1 - cosine). No label and no temperature; the length of a logit row does not matter.

    Args:
        z_s: logits of the grafted network.
        z_t: logits of the teacher; no gradient goes there.

    Shen et al., arXiv:2012.04915. Computed in float32 or better.
    """
    wide = torch.float64 if z_s.dtype == torch.float64 else torch.float32
    return (F.normalize(z_s.to(wide), dim=1) - F.normalize(z_t.detach().to(wide), dim=1)).square().sum()


class Graft(NamedTuple):
    """A stage: blocks ``first`` to ``last`` train in place of the teacher's, all else frozen."""

    name: str
    first: int
    last: int
    epochs: int
    lr_block: float
    lr_adapter: float


@dataclass(kw_only=True, eq=False, repr=False)
class NetGraft(Method):
    """Progressive Network Grafting for Few-Shot Knowledge Distillation (Shen et al.; arXiv:2012.04915).

    Teacher T = t_L ∘ ... ∘ t_1 and student are cut into L blocks of equal spatial size. Where widths differ,
    1x1 maps s2t_l and t2s_l translate: H_l = s2t_l ∘ h_l ∘ t2s_{l-1}.

    1. *Block grafting.* For each l: H_l replaces t_l, all else stays frozen, and H_l alone descends
       :func:`normalised_logit_loss`, whose gradient reaches it through the teacher's blocks above.
    2. *Network grafting.* For m = 2..L: the chain H_m ∘ ... ∘ H_1 replaces t_m ∘ ... ∘ t_1 and trains as a
       whole, with a fresh Adam. At m = L no block of the teacher is left.
    3. *Clean-up.* M = W_t2s W_s2t is merged into the first layers of the next block; both sides are compared.

    Blocks in ``copy`` take the teacher's weights and never train (the paper's CIFAR figures keep three of
    five convolutional blocks so). A step of stage 2 that would add such a block is left out.

    With n training images a class (1 to 50 in the paper) and f = n / 10, the paper's code scales batch size
    and the learning rates of stage 1 by f; the defaults do the same, and stop growing at n = 50.

    Departures: adapters have no bias, so that merging is exact; BatchNorm statistics of the trained blocks
    are estimated anew after each stage, by one pass over augmented images (reconstructed: the paper's
    convolutional blocks have no BatchNorm); the last epoch is kept, not the best on test; the student's
    blocks start from the weights that they come with.

    Args:
        teacher: a trained network that torch.fx can trace.
        student: likewise, in as many blocks. No label is used.
        cuts: the modules of the teacher after which it is cut.
        student_cuts: the modules of the student after which it is cut; none given: the same names.
        copy: numbers, from 1, of the blocks that are copied from the teacher.
        epochs_block: epochs of stage 1; several numbers are for the trained blocks in turn, the last for the rest.
            (100, 60, 60) is the paper's on CIFAR-10, (1000, 200, 200) on CIFAR-100.
        epochs_chain: epochs of each step of stage 2; the paper has 150 on CIFAR-100.
        batch_size: images in a batch of both stages; 0 takes 64 f.
        lr_block: Adam's rate in stage 1, one or several as ``epochs_block``; 0 takes 2.5e-4 f, the paper's on
            CIFAR-10. On CIFAR-100 it has 2.5e-4 f, 1e-3 f, 1e-3 f.
        lr_adapter: Adam's rate of the adapters in stage 1; 0 takes 2.5e-3 f. On CIFAR-100 the paper has 1e-3 f.
        lr_chain: Adam's rate of everything in stage 2, not scaled.
    """

    teacher: Model | nn.Module
    student: Model | nn.Module
    cuts: tuple[str, ...] = ("layer1", "layer2", "layer3")
    student_cuts: tuple[str, ...] = ()
    copy: tuple[int, ...] = ()
    epochs_block: int | tuple[int, ...] = (100, 60)
    epochs_chain: int = 100
    batch_size: int = 0
    lr_block: float | tuple[float, ...] = 0.0
    lr_adapter: float = 0.0
    lr_chain: float = 1e-4

    card = Card(
        name="netgraft",
        title="Progressive Network Grafting for Few-Shot Knowledge Distillation",
        paper="Shen, Wang, Yin, Song, Luo, Song; AAAI 2021; arXiv:2012.04915",
        verb="distill",
        needs=Needs(
            data="few",
            teacher="weights",
            architectures="pairs that can be cut into blocks of equal spatial size",
        ),
        summary="A smaller student from 1 to 50 unlabelled images a class, block by block in the teacher.",
        cost="each block trained alone, then chains of them: minutes, as there are few images",
        published="CIFAR-10, VGG-16 at half the width from block 4 on: 92.89±0.06 with 10 images a class, "
        "90.74±0.49 with one (official README)",
    )

    @classmethod
    def serves(cls, have: Situation) -> Fit | str | None:
        """Made for a few images without labels; only for a smaller network."""
        if have.goal == "better":
            return "it makes a smaller network that imitates its teacher, not a better one."
        if have.goal != "smaller":
            return None
        options = []
        if have.architecture == "transformer":
            cut = "both networks need the same tokens and width, as only depth shrinks; MODULE names where to cut"
            options.append("--cuts '[MODULE,MODULE]'")
        else:
            cut = "both networks must cut into blocks of equal spatial size, at layer1 to layer3 or your --cuts"
        if have.data == "labelled":  # drawing so many of each class takes labels
            options.append("--shots 10")
        rank, made = 25, "made for a few images; with as many as you have, kd trains the whole student freely"
        if have.data == "few":
            rank, made = 0, "made for a few images, without labels: the student grows block by block in the teacher"
        return Fit(rank, f"{made}; {cut}.", " ".join(options))

    def __post_init__(self) -> None:
        for name in ("cuts", "student_cuts", "copy"):
            setattr(self, name, tuple(getattr(self, name)))
        n = len(self.cuts) + 1
        require(n > 1, "cuts must name at least one module after which the teacher is cut.")
        require(
            len(self.student_cuts) in (0, n - 1),
            f"cuts gives {n} blocks and student_cuts {len(self.student_cuts) + 1}, but teacher and student "
            "must be cut into the same number.",
        )
        require(
            all(1 <= i <= n for i in self.copy) and len({*self.copy}) == len(self.copy) < n,
            f"copy must hold different block numbers from 1 to {n}, and not all of them: it is {self.copy}.",
        )
        require(bool(_each(self.epochs_block)), "epochs_block must hold at least one number.")
        require(bool(_each(self.lr_block)), "lr_block must hold at least one number.")
        ranges(
            self,
            at_least={"epochs_block": 1, "epochs_chain": 1},
            not_negative=("lr_block", "lr_adapter"),
            positive=("lr_chain",),
        )
        require(
            self.batch_size == 0 or self.batch_size >= 2,
            f"batch_size must be 0 (the paper's) or at least 2, and it is {self.batch_size}.",
        )

    @property
    def trained(self) -> list[int]:
        """The numbers of the blocks that train."""
        return [i for i in range(1, len(self.cuts) + 2) if i not in self.copy]

    def steps(self, n: int) -> int:
        """The number of updates on ``n`` samples; where no network tells its classes, 10 are assumed."""
        known = [len(m.classes) for m in (self.student, self.teacher) if isinstance(m, Model)]
        full, rest = divmod(n, self._batch_size(n, known[0] if known else 10))
        grafts = sum(_at(self.epochs_block, j) for j in range(len(self.trained)))
        chains = (len(self.trained) - 1) * self.epochs_chain
        return (grafts + chains) * max(full + (rest > 1), 1)

    def _batch_size(self, n: int, classes: int) -> int:
        return self.batch_size or max(int(64 * _f(n, classes)), 2)

    def check(self, data: Images) -> list[str]:
        """Equal classes, blocks of equal size, copies that are copies, adapters that can be merged."""
        teacher, student = self.model("teacher", data), self.model("student", data)
        problems = same_classes(teacher, student)
        if len(data.train) < 2:
            problems.append(f"it needs at least 2 training images, and there are {len(data.train)}")
        if problems:
            return problems
        try:
            t, h = cut(teacher.module, self.cuts), cut_trained(student.module, self.student_cuts or self.cuts)
            images = first_images(data.train, 8)
            with undisturbed(teacher.module), undisturbed(student.module):
                x_t, x_h = features(teacher, t, images), features(student, h, images)
                problems += [*unequal(x_t, x_h, h, self.copy), *untrainable(h, self.copy)]
                problems += [p for i in self.copy if (p := uncopied(i, t, h, x_t))]
        except UserError as error:
            problems.append(str(error).rstrip("."))
        if 1 in self.copy and (data.train.mean, data.train.std) != (teacher.mean, teacher.std):
            problems.append("block 1 cannot be copied, for the student's images are normalised differently")
        return problems

    def fit(self, run: Run, data: Images) -> nn.Module:
        """The algorithm; returns the student, the adapters merged into it."""
        teacher, student = self.model("teacher", data), self.model("student", data)
        n, classes = len(data.train), len(data.classes)
        batch_size = self._batch_size(n, classes)
        student.module.to(device="cpu", dtype=run.dtype)
        own, h = cut(teacher.module, self.cuts), cut_trained(student.module, self.student_cuts or self.cuts)
        t = frozen_blocks(run, data, teacher, own)
        blocks = self._wrapped(run, data, (teacher, own), (student, h))
        if batch_size < 32 and any(isinstance(m, _BatchNorm) for b in blocks.values() for m in b.modules()):
            run.note(
                f"Batches of {batch_size} images make poor statistics for the student's BatchNorm; 32 or "
                "more are better (batch_size, shots)."
            )

        for name, first, last, epochs, lr_block, lr_adapter in self._grafts(_f(n, classes)):
            found = run.stored(name, {str(i): weights_of(blocks[i]) for i in range(first, last + 1) if i in blocks})
            if found is None:
                with run.open_stage(name) as found:
                    below, replaced, above = t[: first - 1], t[first - 1 : last], t[last:]
                    made = Chain(blocks, t, range(first, last + 1))
                    chain, optimizer = run.setup(made, partial(_adam, lr_block=lr_block, lr_adapter=lr_adapter))
                    for _ in run.epochs(epochs):
                        chain.train()
                        for images, _, _ in run.batches(data.train, batch_size):
                            # The clones let a block begin with an operation in place, such as ReLU(inplace=True).
                            with torch.no_grad():
                                x = through(below, images)
                                z_t = through((*replaced, *above), x.clone())
                            loss = normalised_logit_loss(through(above, chain(x).clone()), z_t)
                            run.backward(loss, reduction="sum")
                            run.update(optimizer)
                            run.track(loss=loss / len(images))
                    estimate_statistics(run, data, below, chain, batch_size)
                    # To be looked at: nothing is chosen by it.
                    run.evaluate(nn.Sequential(*below, chain, *above), data.validation)
                    found |= chain.states()
            load_blocks(blocks, found)

        for i, piece in enumerate(h, 1):
            if i in blocks:
                piece.load_state_dict(blocks[i].h.state_dict())
            else:
                copy_weights(own[i - 1], piece)
        return _merged(run, data, student.module, h, blocks)

    def _grafts(self, f: float) -> list[Graft]:
        """The stages: each block alone, then all trained blocks up to m together."""
        stages = []
        for j, i in enumerate(self.trained):
            lr_block, lr_adapter = _at(self.lr_block, j) or 2.5e-4 * f, self.lr_adapter or 2.5e-3 * f
            stages.append(Graft(f"block {i}", i, i, _at(self.epochs_block, j), lr_block, lr_adapter))
        for m in self.trained[1:]:
            stages.append(Graft(f"chain {m}", self.trained[0], m, self.epochs_chain, self.lr_chain, self.lr_chain))
        return stages

    def _wrapped(
        self,
        run: Run,
        data: Images,
        teacher: tuple[Model, list[fx.GraphModule]],
        student: tuple[Model, list[fx.GraphModule]],
    ) -> dict[int, WrappedBlock]:
        """H_l for each trained block; what they start from is kept, so that a resumed run has it too."""
        images, h = first_images(data.train, 2), student[1]
        with undisturbed(teacher[0].module), undisturbed(student[0].module):
            x_t, x_h = features(*teacher, images), features(*student, images)
        widths = [(a.shape[1], b.shape[1], a.ndim) for a, b in zip(x_t, x_h, strict=True)]
        blocks = {i: _wrap(h, widths, i).to(run.dtype) for i in self.trained}
        like = {str(i): weights_of(block) for i, block in blocks.items()}
        states = run.stage("start", lambda: {str(i): _wrap(h, widths, i).state_dict() for i in self.trained}, like)
        load_blocks(blocks, states)
        return blocks


def _wrap(h: list[fx.GraphModule], widths: list[tuple[int, int, int]], i: int) -> WrappedBlock:
    """H_i around a copy of the student's block, from the widths (teacher's, student's, dimensions) after each block."""
    t2s = adapter(*widths[i - 2]) if i > 1 else nn.Identity()
    ct, cs, ndim = widths[i - 1]
    return WrappedBlock(t2s, copy.deepcopy(h[i - 1]), adapter(cs, ct, ndim))


def _adam(chain: nn.Module, lr_block: float, lr_adapter: float) -> torch.optim.Optimizer:
    adapters: list[nn.Parameter] = []
    rest: list[nn.Parameter] = []
    for name, p in chain.named_parameters():  # blocks.NUMBER.PART. ...
        if p.requires_grad:
            (adapters if name.split(".")[2] in ("t2s", "s2t") else rest).append(p)
    groups = [{"params": rest, "lr": lr_block}, {"params": adapters, "lr": lr_adapter}]
    return torch.optim.Adam([g for g in groups if g["params"]], betas=(0.9, 0.999), fused=True)


def _merged(
    run: Run, data: Images, student: nn.Module, h: list[fx.GraphModule], blocks: dict[int, WrappedBlock]
) -> nn.Module:
    """Merge every pair of adapters into ``h``, the blocks of ``student``; compare on held-out images."""
    unmerged = [copy.deepcopy(blocks.get(i, piece)).double().eval() for i, piece in enumerate(h, 1)]
    after = merge(h, blocks)
    whole = run.plain(student)
    images = first_images(data.validation, 64).double()
    with torch.no_grad():
        right = through(unmerged, images.clone())
        error = relative_error(copy.deepcopy(whole).double()(images), right)
    if not error <= TOLERANCE:
        raise UserError(
            f"The joined student and its blocks differ by {error:.1e} on {len(images)} held-out images, more "
            f"than {TOLERANCE:.0e}; make the widths of its blocks the teacher's, so that nothing is merged."
        )
    if after:
        run.note(
            f"The adapters after block {', '.join(map(str, after))} are merged into the student; its logits on "
            f"{len(images)} held-out images changed by {error:.1e} of the largest."
        )
    return whole


def _f(n: int, classes: int) -> float:
    """f = shots / 10, for n images in all."""
    return min(n / classes, PAPERS_SHOTS) / 10


def _each(values: Any) -> tuple[Any, ...]:
    return tuple(values) if isinstance(values, tuple | list) else (values,)


def _at(values: Any, j: int) -> Any:
    """The value for the j-th trained block; the last one serves the rest."""
    return _each(values)[min(j, len(_each(values)) - 1)]
