"""Blocks of a teacher and of a student: their outputs, whether they fit, and those that are at work in a graft."""

from __future__ import annotations

import copy
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _BatchNorm

from upcycle.core.cut import cut
from upcycle.core.errors import UserError, require
from upcycle.core.frozen import Frozen, frozen
from upcycle.core.models import Model
from upcycle.core.outputs import called
from upcycle.core.run import Run
from upcycle.core.undisturbed import undisturbed
from upcycle.distillation.grafting.adapters import TOLERANCE, WrappedBlock, relative_error, unmergeable

if TYPE_CHECKING:
    from upcycle.data.images import Images, ImageSplit


# -- whether they fit -------------------------------------------------------------------------------------------


def cut_trained(module: nn.Module, names: tuple[str, ...]) -> list[fx.GraphModule]:
    """The blocks of a network that is to be trained, cut after the modules ``names``.

    Raises:
        UserError: its forward is another one in training mode, which a traced block cannot follow.
    """
    with undisturbed(module):
        pieces = cut(module, names)
        module.train()
        same = [p.code for p in pieces] == [p.code for p in cut(module, names)]
    require(
        same,
        f"{called(module)} asks for self.training in its forward, which a block cannot follow; "
        "use modules such as nn.Dropout there, not functions.",
    )
    return pieces


def unequal(x_t: list[Tensor], x_h: list[Tensor], h: list[fx.GraphModule], copied: Collection[int]) -> Iterator[str]:
    """Outputs of blocks whose shapes differ by more than a width that adapters bridge and merging removes, in words.

    Args:
        x_t: output of each block of the teacher.
        x_h: output of each block of the student.
        h: the blocks of the student.
        copied: numbers, from 1, of those that take the teacher's weights.
    """
    for i, (a, b) in enumerate(zip(x_t, x_h, strict=True), 1):
        bridged = i < len(x_t) and a.ndim == b.ndim and a.ndim in (2, 4)
        dims = slice(2 if bridged else 1, None)
        if a.shape[dims] != b.shape[dims]:
            yield (
                f"block {i} gives {size_of(a)} in the teacher and {size_of(b)} in the student, and the "
                f"{'spatial ' if bridged else ''}sizes must be equal: give other cuts or another student"
            )
        elif a.shape[1] != b.shape[1]:
            widths = f"after block {i} the teacher has {a.shape[1]} channels and the student {b.shape[1]}"
            if {i, i + 1} & {*copied}:
                yield f"{widths}, but a copied block needs equal widths on both sides"
            elif problem := unmergeable(h[i], b):
                yield (
                    f"{widths}, and adapters cannot be merged into block {i + 1} of the student: "
                    f"{problem}; make the widths equal, or cut where a convolution follows"
                )


def untrainable(h: list[fx.GraphModule], copied: Collection[int]) -> Iterator[str]:
    """Blocks of the student that cannot be trained one by one, in words."""
    owners: dict[int, int] = {}
    for i, piece in enumerate(h, 1):
        if i not in copied and not any(p.requires_grad for p in piece.parameters()):
            yield f"block {i} of the student has no weights to train: add it to copy, or cut elsewhere"
        for name, p in piece.named_parameters():
            if (first := owners.setdefault(id(p), i)) != i:
                yield f"blocks {first} and {i} of the student share the weight '{name}': cut elsewhere"


def uncopied(i: int, t: list[fx.GraphModule], h: list[fx.GraphModule], x_t: list[Tensor]) -> str | None:
    """Say why block ``i`` of the student cannot be the teacher's."""
    own, needed = t[i - 1].state_dict(), h[i - 1].state_dict()
    if len(own) != len(needed):
        return f"block {i} cannot be copied: the teacher has {len(own)} tensors there, the student {len(needed)}"
    for name, a, b in zip(needed, own.values(), needed.values(), strict=True):
        if a.shape != b.shape:
            sizes = f"{tuple(a.shape)} in the teacher and {tuple(b.shape)} in the student"
            return f"block {i} cannot be copied: '{name}' has shape {sizes}"
    if i > 1:
        piece = copy.deepcopy(h[i - 1]).eval()
        copy_weights(t[i - 1], piece)
        if relative_error(piece(x_t[i - 2].clone()), x_t[i - 1]) > TOLERANCE:
            return f"block {i} cannot be copied: with the teacher's weights the student computes something else"
    return None


def features(model: Model, pieces: list[fx.GraphModule], images: Tensor) -> list[Tensor]:
    """The output of each block of a network, that of the last one checked against the network itself."""
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
        raise UserError(f"{model.name} cannot take images of size {size_of(images)}: {reason}.") from error
    require(
        right.shape == x.shape and not relative_error(x, right) > TOLERANCE,
        f"the blocks of {model.name} do not compute what it computes as a whole",
    )
    return outputs


# -- at work ----------------------------------------------------------------------------------------------------


class Chain(nn.Module):
    """H_m ∘ ... ∘ H_l as one module. Blocks that do not train stand in it, but are no part of its state.

    Args:
        blocks: the wrapped blocks by number, from 1; copied, so that a stage starts from what it was given.
        t: the teacher's blocks, which stand where there is no wrapped one.
        inside: numbers of the blocks in the chain, in order.
    """

    def __init__(self, blocks: Mapping[int, WrappedBlock], t: list[Frozen], inside: Iterable[int]) -> None:
        super().__init__()
        numbers = list(inside)
        self.blocks = nn.ModuleDict({str(i): copy.deepcopy(blocks[i]) for i in numbers if i in blocks})
        self._order = tuple(self.blocks[str(i)] if i in blocks else t[i - 1] for i in numbers)  # not registered

    def forward(self, x: Tensor) -> Tensor:
        return through(self._order, x)

    def states(self) -> dict[str, dict[str, Tensor]]:
        """The state of each block that trains, by its number."""
        return {i: block.state_dict() for i, block in self.blocks.items()}


def frozen_blocks(run: Run, data: Images, teacher: Model, pieces: list[fx.GraphModule]) -> list[Frozen]:
    """t_1 ... t_L, which gradients pass through. The first takes images normalised as the student's."""
    x = first_images(data.validation, 256, run.device).to(run.dtype)
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
def estimate_statistics(run: Run, data: Images, below: list[Frozen], chain: nn.Module, batch_size: int) -> None:
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
        chain(through(below, images))
    for m, momentum in zip(norms, momenta, strict=True):
        m.momentum = momentum


# -- passing on -------------------------------------------------------------------------------------------------


def through(pieces: Iterable[nn.Module], x: Tensor) -> Tensor:
    """The output of the last of ``pieces``, each given what the one before it gives."""
    for piece in pieces:
        x = piece(x)
    return x


def first_images(split: ImageSplit, n: int, device: torch.device | None = None) -> Tensor:
    """Up to ``n`` images of a split, not augmented."""
    return split.batch(torch.arange(min(n, len(split))), device=device or torch.device("cpu")).images


def copy_weights(source: nn.Module, target: nn.Module) -> None:
    """Fill ``target`` with the weights of ``source``, in the order in which both use them."""
    target.load_state_dict(dict(zip(target.state_dict(), source.state_dict().values(), strict=True)))


def load_blocks(blocks: Mapping[int, nn.Module], states: Mapping[str, Any]) -> None:
    """Fill blocks with the states of :meth:`Chain.states`."""
    for i, state in states.items():
        blocks[int(i)].load_state_dict(state)


def size_of(x: Tensor) -> str:
    """The shape of one sample, as 3x32x32."""
    return "x".join(str(n) for n in x.shape[1:])
