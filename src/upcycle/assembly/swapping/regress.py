"""Regression at the places of a block: each learns, alone, to give what the trained network gives there."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from upcycle.core.frozen import Frozen, frozen
from upcycle.core.models import Model
from upcycle.core.outputs import own
from upcycle.core.patterns import weights_of
from upcycle.core.recipe import Recipe
from upcycle.core.run import Run
from upcycle.core.seeds import seed_of
from upcycle.surgery.operate import inserts

if TYPE_CHECKING:
    from upcycle.data.images import Images

STAGE = "regress"
Call = tuple[tuple[Any, ...], dict[str, Any], Tensor]
"""Arguments of a module, by position and by name, and its output."""


def imitation_loss(y: Float[Tensor, " b *rest"], target: Float[Tensor, " b *rest"]) -> Float[Tensor, ""]:
    """mean_b |y - t|² / |t|²: 0 where both are equal, 1 where y is 0; the scale of a place does not matter."""
    apart = (y - target).flatten(1).square().sum(1)
    return (apart / target.flatten(1).square().sum(1).clamp_min(1e-12)).mean()


def regress(run: Run, source: Model, made: Model, names: Sequence[str], data: Images, recipe: Recipe) -> None:
    """Train the blocks in a network, in place, at the source's own activations; everything else rests.

    Each place is given what the source gives its module, and descends :func:`imitation_loss` against what that makes
    of it: no gradient passes from one place to another. The source is in evaluation mode.

    Args:
        run: keeps the result as the stage :data:`STAGE`.
        source: the trained network.
        made: what was made of it; its modules ``names`` hold a ``block`` that is to learn.
        names: of the places, as in the source.
        data: normalised as both expect; no label is used.
        recipe: of each block.
    """
    network = own(made.module)
    parts = nn.ModuleList(network.get_submodule(name) for name in names)
    found = run.stored(STAGE, weights_of(parts))
    if found is None:
        with run.open_stage(STAGE) as found:
            blocks = _train(run, source, parts, names, data, recipe)
            found |= {key: value.clone() for key, value in run.plain(blocks).state_dict().items()}
    parts.load_state_dict(found)


def _train(
    run: Run, source: Model, parts: nn.ModuleList, names: Sequence[str], data: Images, recipe: Recipe
) -> nn.ModuleList:
    precise: Literal["64-true", "32-true"] = "64-true" if run.precision == "64-true" else "32-true"
    example = source.example(8).to(run.device)
    teacher = frozen(source.module, example, keep_bn=True, keep_modules=True, precision=precise)
    asked = {p: p.requires_grad for p in parts.parameters()}
    parts.requires_grad_(False)
    for part in parts:
        for p in part.get_submodule("block").parameters():
            p.requires_grad_(asked[p])
    parts, optimizer = run.setup(parts, partial(_optimizer, recipe))
    for _ in run.epochs(recipe.epochs):
        parts.eval()
        for part in parts:
            part.get_submodule("block").train()
        for images, _, _ in run.batches(data.train, recipe.batch_size):
            prepare(run, parts, 0.0)
            with watched(teacher, names) as calls:
                teacher(images)
            losses = [
                imitation_loss(part(*given, **named), out)
                for part, (given, named, out) in zip(parts, calls, strict=True)
            ]
            run.step(torch.stack(losses).sum(), optimizer, recipe)
    for p, flag in asked.items():
        p.requires_grad_(flag)
    return parts


def _optimizer(recipe: Recipe, parts: nn.Module) -> torch.optim.Optimizer:
    return recipe.make([p for p in parts.parameters() if p.requires_grad])


@contextlib.contextmanager
def watched(teacher: Frozen, names: Sequence[str]) -> Iterator[list[Call]]:
    """Within: each forward of the teacher fills the list, in the order of the names; copies, whatever is overwritten.

    Args:
        teacher: a copy whose submodules are the original's by name.
        names: of modules that run once in a forward.
    """
    calls: dict[str, Call] = {}
    given: dict[str, tuple[tuple[Any, ...], dict[str, Any]]] = {}
    found: list[Call] = []

    def before(name: str, module: nn.Module, args: tuple[Any, ...], named: dict[str, Any]) -> None:
        given[name] = (tuple(map(_copy, args)), {key: _copy(value) for key, value in named.items()})

    def after(name: str, module: nn.Module, args: tuple[Any, ...], out: Tensor) -> None:
        calls[name] = (*given.pop(name), _copy(out))
        if len(calls) == len(names):
            found[:] = [calls[key] for key in names]

    network, hooks = own(teacher.network), []
    for name in names:
        m = network.get_submodule(name)
        hooks += [
            m.register_forward_pre_hook(partial(before, name), with_kwargs=True),
            m.register_forward_hook(partial(after, name)),
        ]
    try:
        yield found
    finally:
        for hook in hooks:
            hook.remove()


def _copy(value: Any) -> Any:
    return value.clone() if isinstance(value, Tensor) else value


def prepare(run: Run, network: nn.Module, progress: float) -> None:
    """Prepare the blocks of a network for a batch; the draws depend on the seed and the update alone."""
    generator = torch.Generator().manual_seed(seed_of(run.seed, "inserts", run.updates))
    for block in inserts(network):
        block.prepare(progress, generator)
