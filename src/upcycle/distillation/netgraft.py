"""Progressive network grafting: a student's blocks learn inside the teacher, from a few unlabelled images."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _BatchNorm

from upcycle.core.checks import same_classes
from upcycle.core.cut import cut, describe
from upcycle.core.errors import UserError, require
from upcycle.core.evaluate import undisturbed
from upcycle.core.frozen import Frozen, frozen
from upcycle.core.method import Card, Method, Needs
from upcycle.core.models import Model
from upcycle.core.run import Run

if TYPE_CHECKING:
    from upcycle.data.images import Images, ImageSplit

TOLERANCE = 1e-5
"""Largest relative error between a student with adapters and the one that they are merged into."""
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


# -- adapters ----------------------------------------


def adapter(channels: int, to: int, ndim: int) -> nn.Module:
    """s2t or t2s: a bias-free 1x1 convolution (``ndim`` 4) or linear map (2); nothing where widths are equal.

    Kaiming normal over the outgoing connections, as the paper has it. Bias-free, so that merging it into a
    zero-padded convolution is exact up to the border.
    """
    if channels == to:
        return nn.Identity()
    made = nn.Conv2d(channels, to, 1, bias=False) if ndim == 4 else nn.Linear(channels, to, bias=False)
    nn.init.kaiming_normal_(made.weight, mode="fan_out", nonlinearity="relu")
    return made


class WrappedBlock(nn.Module):
    """H_l = s2t_l ∘ h_l ∘ t2s_{l-1}: a student's block that fits where the teacher's block l was."""

    def __init__(self, t2s: nn.Module, h: nn.Module, s2t: nn.Module) -> None:
        super().__init__()
        self.t2s, self.h, self.s2t = t2s, h, s2t

    def forward(self, x: Tensor) -> Tensor:
        return self.s2t(self.h(self.t2s(x)))


_PASSES = (nn.AvgPool2d, nn.AdaptiveAvgPool2d, nn.Identity, nn.Flatten, nn.Dropout, nn.Dropout2d)
_PASS_CALLS: dict[str, tuple[Any, ...]] = {
    "call_function": (F.avg_pool2d, F.adaptive_avg_pool2d, torch.flatten, torch.mean),
    "call_method": ("flatten", "view", "reshape", "mean"),
}


def merge_map(piece: fx.GraphModule, m: Float[Tensor, "c c"]) -> None:
    """Change a block's first layers, in place, so that it does to x what it did to M x (over channels).

    W'[o, i, ...] = Σ_j W[o, j, ...] M[j, i] in every convolution or linear layer that meets the block's
    input, perhaps behind average pooling or flattening, which commute with M. The arithmetic is float64.

    Raises:
        UserError: something else meets the input first.
    """
    for layer in _first_layers(piece):
        with torch.no_grad():
            w = layer.weight
            require(w[0].numel() % len(m) == 0, f"its linear layer does not take {len(m)} channels")
            by_channel = w.double().reshape(len(w), len(m), -1)
            w.copy_(torch.einsum("ojp,ji->oip", by_channel, m.to(by_channel)).reshape(w.shape))


def _first_layers(piece: fx.GraphModule) -> list[nn.Conv2d | nn.Linear]:
    found: dict[str, nn.Conv2d | nn.Linear] = {}
    waiting = [next(iter(piece.graph.nodes))]
    while waiting:
        for user in waiting.pop().users:
            m = piece.get_submodule(str(user.target)) if user.op == "call_module" else None
            if type(m) is nn.Linear or (type(m) is nn.Conv2d and m.groups == 1):
                found[str(user.target)] = m
            elif isinstance(m, _PASSES) or user.target in _PASS_CALLS.get(user.op, ()):
                waiting.append(user)
            elif (user.op, user.target) != ("call_method", "size"):  # only numbers come of it
                what = "the end of the block" if user.op == "output" else describe(user)
                kind = f" ({type(m).__name__})" if m is not None else ""
                raise UserError(f"its input meets {what}{kind} before any ungrouped convolution or linear layer")
    return list(found.values())


def _relative_error(found: Tensor, right: Tensor) -> float:
    """Largest difference over the largest value."""
    return ((found - right).abs().max() / right.abs().max().clamp_min(1e-30)).item()


def _unmergeable(piece: fx.GraphModule, x: Tensor) -> str | None:
    """Why a map of the channels of ``x`` cannot be merged into ``piece``: one is tried on a copy."""
    x, c = x.double(), x.shape[1]
    m = torch.randn(c, c, dtype=torch.float64, device=x.device) / math.sqrt(c)
    trial = copy.deepcopy(piece).double().eval()
    right = trial(torch.einsum("ji,bi...->bj...", m, x))
    try:
        merge_map(trial, m)
    except UserError as error:
        return str(error)
    same = _relative_error(trial(x.clone()), right) <= TOLERANCE
    return None if same else "its first layer is also used otherwise"


# -- the method ----------------------------------------


class _Chain(nn.Module):
    """H_m ∘ ... ∘ H_l as one module. Blocks that do not train stand in it, but are no part of its state.

    Args:
        blocks: the blocks that train, by number; copied, so that a stage starts from what it was given.
        still: the teacher's blocks between them.
    """

    def __init__(self, blocks: Mapping[int, WrappedBlock], still: Mapping[int, Frozen]) -> None:
        super().__init__()
        self.blocks = nn.ModuleDict({str(i): copy.deepcopy(block) for i, block in blocks.items()})
        order = sorted([*blocks, *still])
        self._order = tuple(still[i] if i in still else self.blocks[str(i)] for i in order)  # not registered

    def forward(self, x: Tensor) -> Tensor:
        return _through(self._order, x)

    def states(self) -> dict[str, dict[str, Tensor]]:
        """The state of each block that trains, by its number."""
        return {i: block.state_dict() for i, block in self.blocks.items()}


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
        student_cuts: those of the student; none given: the same names.
        copy: numbers, from 1, of the blocks that are copied from the teacher.
        epochs_block: of stage 1; several numbers are for the trained blocks in turn, the last for the rest.
            (100, 60, 60) is the paper's on CIFAR-10, (1000, 200, 200) on CIFAR-100.
        epochs_chain: of each step of stage 2; 150 on CIFAR-100.
        batch_size: 0 takes 64 f.
        lr_block: Adam's in stage 1, one or several as ``epochs_block``; 0 takes 2.5e-4 f, the paper's on
            CIFAR-10. On CIFAR-100 it has 2.5e-4 f, 1e-3 f, 1e-3 f.
        lr_adapter: that of the adapters in stage 1; 0 takes 2.5e-3 f. On CIFAR-100: 1e-3 f.
        lr_chain: of everything in stage 2, not scaled.
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
        epochs, rates = _each(self.epochs_block), _each(self.lr_block)
        require(
            bool(epochs) and min(*epochs, self.epochs_chain) >= 1,
            f"epochs_block and epochs_chain must be at least 1: they are {self.epochs_block} and {self.epochs_chain}.",
        )
        require(
            self.batch_size == 0 or self.batch_size >= 2,
            f"batch_size must be 0 (the paper's) or at least 2, not {self.batch_size}.",
        )
        require(
            bool(rates) and all(0 <= lr < math.inf for lr in (*rates, self.lr_adapter)),
            f"lr_block and lr_adapter must be 0 (the paper's) or positive: they are {self.lr_block} and "
            f"{self.lr_adapter}.",
        )
        require(0 < self.lr_chain < math.inf, f"lr_chain must be positive, not {self.lr_chain}.")

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

    # -- whether it fits ----------------------------------------

    def check(self, data: Images) -> list[str]:
        """Equal classes, blocks of equal size, copies that are copies, adapters that can be merged."""
        teacher, student = self.model("teacher", data), self.model("student", data)
        problems = same_classes(teacher, student)
        if len(data.train) < 2:
            problems.append(f"it needs at least 2 training images, and there are {len(data.train)}")
        if problems:
            return problems
        try:
            t, h = cut(teacher.module, self.cuts), self._cut_student(student.module)
            images = _first(data.train, 8)
            with undisturbed(teacher.module), undisturbed(student.module):
                x_t, x_h = _features(teacher, t, images), _features(student, h, images)
                problems += [*self._unequal(x_t, x_h, h), *self._untrainable(h)]
                problems += [p for i in self.copy if (p := _uncopied(i, t, h, x_t))]
        except UserError as error:
            problems.append(str(error).rstrip("."))
        if 1 in self.copy and (data.train.mean, data.train.std) != (teacher.mean, teacher.std):
            problems.append("block 1 cannot be copied, for the student's images are normalised differently")
        return problems

    def _cut_student(self, module: nn.Module) -> list[fx.GraphModule]:
        names = self.student_cuts or self.cuts
        with undisturbed(module):
            pieces = cut(module, names)
            module.train()
            same = [p.code for p in pieces] == [p.code for p in cut(module, names)]
        require(
            same,
            f"{type(module).__name__} asks for self.training in its forward, which a block cannot follow; "
            "use modules such as nn.Dropout there, not functions.",
        )
        return pieces

    def _unequal(self, x_t: list[Tensor], x_h: list[Tensor], h: list[fx.GraphModule]) -> Iterator[str]:
        """Block outputs whose shapes differ by more than a width that adapters bridge and merging removes."""
        for i, (a, b) in enumerate(zip(x_t, x_h, strict=True), 1):
            bridged = i < len(x_t) and a.ndim == b.ndim and a.ndim in (2, 4)
            dims = slice(2 if bridged else 1, None)
            if a.shape[dims] != b.shape[dims]:
                yield (
                    f"block {i} gives {_size(a)} in the teacher and {_size(b)} in the student, and the "
                    f"{'spatial ' if bridged else ''}sizes must be equal: give other cuts or another student"
                )
            elif a.shape[1] != b.shape[1]:
                widths = f"after block {i} the teacher has {a.shape[1]} channels and the student {b.shape[1]}"
                if {i, i + 1} & {*self.copy}:
                    yield f"{widths}, but a copied block needs equal widths on both sides"
                elif problem := _unmergeable(h[i], b):
                    yield (
                        f"{widths}, and adapters cannot be merged into block {i + 1} of the student: "
                        f"{problem}; make the widths equal, or cut where a convolution follows"
                    )

    def _untrainable(self, h: list[fx.GraphModule]) -> Iterator[str]:
        owners: dict[int, int] = {}
        for i, piece in enumerate(h, 1):
            if i not in self.copy and not any(p.requires_grad for p in piece.parameters()):
                yield f"block {i} of the student has no weights to train: add it to copy, or cut elsewhere"
            for name, p in piece.named_parameters():
                if (first := owners.setdefault(id(p), i)) != i:
                    yield f"blocks {first} and {i} of the student share the weight '{name}': cut elsewhere"

    # -- the algorithm ----------------------------------------

    def fit(self, run: Run, data: Images) -> nn.Module:
        """The algorithm; returns the student, the adapters merged into it."""
        teacher, student = self.model("teacher", data), self.model("student", data)
        n, classes = len(data.train), len(data.classes)
        f, batch_size = _f(n, classes), self._batch_size(n, classes)
        student.module.to(device="cpu", dtype=_dtype(run))
        own, h = cut(teacher.module, self.cuts), self._cut_student(student.module)
        t = _frozen_blocks(run, data, teacher, own)
        blocks = self._wrapped(run, data, (teacher, own), (student, h))
        if batch_size < 32 and any(isinstance(m, _BatchNorm) for b in blocks.values() for m in b.modules()):
            run.note(
                f"Batches of {batch_size} images make poor statistics for the student's BatchNorm; 32 or "
                "more are better (batch_size, shots)."
            )

        def graft(name: str, first: int, last: int, epochs: int, lr_block: float, lr_adapter: float) -> None:
            """Train blocks ``first`` to ``last`` in place of the teacher's, all else frozen."""
            below, replaced, above = t[: first - 1], t[first - 1 : last], t[last:]
            inside = range(first, last + 1)

            def train() -> dict[str, Any]:
                trained = {i: blocks[i] for i in inside if i in blocks}
                made = _Chain(trained, {i: t[i - 1] for i in inside if i not in blocks})
                chain, optimizer = run.setup(made, lambda m: _adam(m, lr_block, lr_adapter))
                for _ in run.epochs(epochs):
                    chain.train()
                    for images, _, _ in run.batches(data.train, batch_size, save_within=True):
                        # The clones let a block begin with an operation in place, such as ReLU(inplace=True).
                        with torch.no_grad():
                            x = _through(below, images)
                            z_t = _through((*replaced, *above), x.clone())
                        z_s = _through(above, chain(x).clone())
                        loss = normalised_logit_loss(z_s, z_t)
                        run.backward(loss, reduction="sum")
                        run.update(optimizer)
                        run.track(loss=loss / len(images))
                _estimate_statistics(run, data, below, chain, batch_size)
                if (data.validation.labels >= 0).any():  # to be looked at: nothing is chosen by it
                    run.evaluate(nn.Sequential(*below, chain, *above), data.validation)
                return made.states()

            _load(blocks, run.stage(name, train))

        for j, i in enumerate(self.trained):  # stage 1: each block alone
            lr_block, lr_adapter = _at(self.lr_block, j) or 2.5e-4 * f, self.lr_adapter or 2.5e-3 * f
            graft(f"block {i}", i, i, _at(self.epochs_block, j), lr_block, lr_adapter)
        for m in self.trained[1:]:  # stage 2: all blocks up to m together
            graft(f"chain {m}", self.trained[0], m, self.epochs_chain, self.lr_chain, self.lr_chain)

        for i, piece in enumerate(h, 1):
            if i in blocks:
                piece.load_state_dict(blocks[i].h.state_dict())
            else:
                _copy_weights(own[i - 1], piece)
        return _merged(run, data, student.module, h, blocks)

    def _wrapped(
        self,
        run: Run,
        data: Images,
        teacher: tuple[Model, list[fx.GraphModule]],
        student: tuple[Model, list[fx.GraphModule]],
    ) -> dict[int, WrappedBlock]:
        """H_l for each trained block; what they start from is kept, so that a resumed run has it too."""
        images, h = _first(data.train, 2), student[1]
        with undisturbed(teacher[0].module), undisturbed(student[0].module):
            x_t, x_h = _features(*teacher, images), _features(*student, images)
        widths = [(a.shape[1], b.shape[1], a.ndim) for a, b in zip(x_t, x_h, strict=True)]

        def wrap(i: int) -> WrappedBlock:
            t2s = adapter(*widths[i - 2]) if i > 1 else nn.Identity()
            ct, cs, ndim = widths[i - 1]
            return WrappedBlock(t2s, copy.deepcopy(h[i - 1]), adapter(cs, ct, ndim)).to(_dtype(run))

        states = run.stage("start", lambda: {str(i): wrap(i).state_dict() for i in self.trained})
        blocks = {i: wrap(i) for i in self.trained}
        _load(blocks, states)
        return blocks


def _dtype(run: Run) -> torch.dtype:
    return torch.float64 if run.precision == "64-true" else torch.float32


def _adam(chain: nn.Module, lr_block: float, lr_adapter: float) -> torch.optim.Optimizer:
    adapters: list[nn.Parameter] = []
    rest: list[nn.Parameter] = []
    for name, p in chain.named_parameters():  # blocks.NUMBER.PART. ...
        if p.requires_grad:
            (adapters if name.split(".")[2] in ("t2s", "s2t") else rest).append(p)
    groups = [{"params": rest, "lr": lr_block}, {"params": adapters, "lr": lr_adapter}]
    return torch.optim.Adam([g for g in groups if g["params"]], betas=(0.9, 0.999), fused=True)


def _frozen_blocks(run: Run, data: Images, teacher: Model, pieces: list[fx.GraphModule]) -> list[Frozen]:
    """t_1 ... t_L, which gradients pass through. The first takes images normalised as the student's."""
    x = _first(data.validation, 256, run.device).to(_dtype(run))
    renormalise = ((data.train.mean, data.train.std), (teacher.mean, teacher.std))
    t: list[Frozen] = []
    for piece in pieces:
        # Not bf16: it would save little here, and blur the gradients that come back through these blocks.
        precision: Literal["64-true", "32-true"] = "64-true" if run.precision == "64-true" else "32-true"
        block = frozen(piece, x, input_grad=True, precision=precision, renormalise=None if t else renormalise)
        x = block(x.clone())
        t.append(block)
    run.machine[teacher.name] = (
        f"{t[0].precision}, {sum(b.folded for b in t)} BatchNorm folded with error "
        f"{max(b.error for b in t):.1e}, in {len(t)} blocks"
    )
    return t


@torch.no_grad()
def _estimate_statistics(run: Run, data: Images, below: list[Frozen], chain: nn.Module, batch_size: int) -> None:
    """BatchNorm's running statistics as plain averages over one pass of augmented images, weights at rest."""
    norms = [m for m in chain.modules() if isinstance(m, _BatchNorm) and m.track_running_stats]
    if not norms:
        return
    chain.eval()
    momenta = [m.momentum for m in norms]
    for m in norms:
        m.reset_running_stats()
        m.momentum = None  # the average of all batches
        m.train()
    for images, _, _ in run.batches(data.train, max(batch_size, 256)):  # large ones: small ones are noisy
        chain(_through(below, images))
    for m, momentum in zip(norms, momenta, strict=True):
        m.momentum = momentum


def _merged(
    run: Run, data: Images, student: nn.Module, h: list[fx.GraphModule], blocks: Mapping[int, WrappedBlock]
) -> nn.Module:
    """Merge every pair of adapters into ``h``, the blocks of ``student``; compare on held-out images."""
    unmerged = [copy.deepcopy(blocks.get(i, piece)).double().eval() for i, piece in enumerate(h, 1)]
    after = []
    for i in range(1, len(h)):
        pair = [blocks[i + 1].t2s, blocks[i].s2t] if {i, i + 1} <= {*blocks} else []
        weights = [m.weight.detach().double().flatten(1) for m in pair if isinstance(m, nn.Conv2d | nn.Linear)]
        if weights:
            merge_map(h[i], weights[0] @ weights[1])
            after.append(str(i))
    whole = run.plain(student)
    images = _first(data.validation, 64).double()
    with torch.no_grad():
        right = _through(unmerged, images.clone())
        error = _relative_error(copy.deepcopy(whole).double()(images), right)
    if not error <= TOLERANCE:
        raise UserError(
            f"The joined student and its blocks differ by {error:.1e} on {len(images)} held-out images, more "
            f"than {TOLERANCE:.0e}; make the widths of its blocks the teacher's, so that nothing is merged."
        )
    if after:
        run.note(
            f"The adapters after block {', '.join(after)} are merged into the student; its logits on "
            f"{len(images)} held-out images changed by {error:.1e} of the largest."
        )
    return whole


# -- small helpers ----------------------------------------


def _through(pieces: Iterable[nn.Module], x: Tensor) -> Tensor:
    for piece in pieces:
        x = piece(x)
    return x


def _first(split: ImageSplit, n: int, device: torch.device | None = None) -> Tensor:
    """Up to ``n`` images of a split, not augmented."""
    return split.batch(torch.arange(min(n, len(split))), device=device or torch.device("cpu")).images


def _features(model: Model, pieces: list[fx.GraphModule], images: Tensor) -> list[Tensor]:
    """What each block of a network gives, the last one checked against the network itself."""
    like = next(model.module.parameters(), images)
    images = images.to(like.device, like.dtype)
    outputs = []
    try:
        right = model.module(images.clone())
        x = images.clone()
        for i, piece in enumerate(pieces, 1):
            x = piece(x)
            require(isinstance(x, Tensor), f"block {i} of {model.name} gives a {type(x).__name__}, not one tensor")
            outputs.append(x.clone())  # the next block may work in place
    except (AssertionError, IndexError, RuntimeError, TypeError, ValueError) as error:
        reason = str(error).strip().split("\n")[0].rstrip(".")
        raise UserError(f"{model.name} cannot take images of size {_size(images)}: {reason}.") from error
    require(
        right.shape == x.shape and not _relative_error(x, right) > TOLERANCE,
        f"the blocks of {model.name} do not compute what it computes as a whole",
    )
    return outputs


def _uncopied(i: int, t: list[fx.GraphModule], h: list[fx.GraphModule], x_t: list[Tensor]) -> str | None:
    """Why block ``i`` of the student cannot be the teacher's, in words."""
    own, needed = t[i - 1].state_dict(), h[i - 1].state_dict()
    if len(own) != len(needed):
        return f"block {i} cannot be copied: the teacher has {len(own)} tensors there, the student {len(needed)}"
    for name, a, b in zip(needed, own.values(), needed.values(), strict=True):
        if a.shape != b.shape:
            sizes = f"{tuple(a.shape)} in the teacher and {tuple(b.shape)} in the student"
            return f"block {i} cannot be copied: '{name}' has shape {sizes}"
    if i > 1:
        piece = copy.deepcopy(h[i - 1]).eval()
        _copy_weights(t[i - 1], piece)
        if _relative_error(piece(x_t[i - 2].clone()), x_t[i - 1]) > TOLERANCE:
            return f"block {i} cannot be copied: with the teacher's weights the student computes something else"
    return None


def _copy_weights(source: nn.Module, target: nn.Module) -> None:
    """Fill ``target`` with the weights of ``source``, in the order in which both use them."""
    target.load_state_dict(dict(zip(target.state_dict(), source.state_dict().values(), strict=True)))


def _load(blocks: Mapping[int, nn.Module], states: Mapping[str, Any]) -> None:
    for i, state in states.items():
        blocks[int(i)].load_state_dict(state)


def _size(x: Tensor) -> str:
    return "x".join(str(n) for n in x.shape[1:])


def _f(n: int, classes: int) -> float:
    """f = shots / 10, for n images in all."""
    return min(n / classes, PAPERS_SHOTS) / 10


def _each(values: Any) -> tuple[Any, ...]:
    return tuple(values) if isinstance(values, tuple | list) else (values,)


def _at(values: Any, j: int) -> Any:
    """The value for the j-th trained block; the last one serves the rest."""
    return _each(values)[min(j, len(_each(values)) - 1)]
