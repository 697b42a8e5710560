"""ESAM, SAM and ASAM: an optimiser that ascends to the sharpest point nearby before it descends from where it was."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from upcycle.core.ranges import ranges

if TYPE_CHECKING:
    from upcycle.core.recipe import Recipe

TINY = 1e-12
"""Beside the norm that a gradient is divided by: SAM's. ESAM's code has 1e-7 there."""


@torch.no_grad()
def perturbation(
    grads: Sequence[Tensor | None],
    kept: Sequence[bool],
    rho: float,
    keep: float = 1.0,
    weights: Sequence[Tensor] | None = None,
) -> list[Tensor | None]:
    """ε = (ρ/β) g / ‖g‖ over the kept tensors, so that ‖ε‖ = ρ/β; ``None``, that is 0, on the others.

    The norm is one over all kept tensors. With weights it is ASAM's, ε = (ρ/β) w² g / ‖ |w| g ‖.

    Args:
        grads: a gradient for each tensor; ``None`` where it has none.
        kept: whether each tensor is perturbed.
        rho: radius ρ.
        keep: β, the share of tensors that is kept in the mean.
        weights: w, for ASAM.
    """
    at = [i for i, (g, k) in enumerate(zip(grads, kept, strict=True)) if k and g is not None]
    found: list[Tensor | None] = [None] * len(grads)
    if not at:
        return found
    g = [g.to(torch.promote_types(g.dtype, torch.float32)) for i in at if (g := grads[i]) is not None]
    sizes = None if weights is None else torch._foreach_abs([weights[i].detach() for i in at])
    if sizes is not None:
        g = list(torch._foreach_mul(g, sizes))
    scale = (rho / keep) / (torch.nn.utils.get_total_norm(g) + TINY)
    steps = torch._foreach_mul(g, scale)
    if sizes is not None:
        steps = torch._foreach_mul(steps, sizes)
    for i, step in zip(at, steps, strict=True):
        found[i] = step
    return found


def sharpest(
    before: Float[Tensor, " b"], after: Float[Tensor, " b"], select: float, least: int = 1
) -> Int[Tensor, " k"]:
    """The samples whose loss rises most, in ascending order: k = round(γ b) of them, but ``least`` at any rate.

    Args:
        before: the loss of each sample at w.
        after: at w + ε.
        select: γ.
        least: samples at least, where there are as many.
    """
    k = min(len(before), max(least, round(select * len(before))))
    return (after - before).topk(k).indices.sort().values


class Sharp(torch.optim.Optimizer):
    """Sharpness-aware minimisation around any optimiser (SAM: Foret et al., ICLR 2021, arXiv:2010.01412).

    ESAM (Du et al., ICLR 2022, arXiv:2110.03141) perturbs a random part of the tensors and descends on the sharpest
    part of the samples::

        optimizer = Sharp(torch.optim.SGD(net.parameters(), lr=0.05, momentum=0.9), keep=0.6, select=0.5)
        for x, y in batches:
            optimizer.prepare(generator)                          # draws the kept tensors
            before = loss(net(x), y)                              # of each sample, (b,)
            before.mean().backward()
            optimizer.ascend()                                    # w + ε
            optimizer.zero_grad()
            with torch.no_grad():
                after = loss(net(x), y)
            part = optimizer.sharpest(before.detach(), after)
            loss(net(x[part]), y[part]).mean().backward()
            optimizer.step()                                      # from w, by the gradient at w + ε
            optimizer.zero_grad()

    With ``select = 1`` the second forward can be left out, and with ``keep = 1`` as well it is SAM: ``prepare`` need
    not be called. Counted in forwards and backwards, of three each step of the optimiser inside, a step takes
    3 + β + 3γ, and SAM's 6.

    ``param_groups``, ``state`` and ``state_dict`` are those of the optimiser inside. The mask is drawn for a tensor as
    a whole, and ‖ε‖ = ρ/β over the kept ones, as in the authors' code; their paper has a mask a coordinate and the norm
    of the full gradient. Departures: the mask is drawn before the backward that it belongs to; exactly round(γ b)
    samples are kept, where the code keeps those above a threshold, one fewer; w comes back from a copy.

    Args:
        base: the optimiser that makes the step.
        rho: ρ, radius of the ascent.
        keep: β, share of the tensors that are perturbed, above 0.
        select: γ, share of the samples that the descent sees, above 0.
        adaptive: ASAM's ascent, whose radius follows the size of each weight (Kwon et al., ICML 2021).
        local: with several processes, each ascends along its own gradient; read by :class:`~upcycle.core.run.Run`.

    Attributes:
        ascended: the weights are those of the ascent.
        spares: the gradients of dropped tensors are not computed; otherwise they are, and are then dropped.
    """

    def __init__(
        self,
        base: torch.optim.Optimizer,
        *,
        rho: float = 0.05,
        keep: float = 1.0,
        select: float = 1.0,
        adaptive: bool = False,
        local: bool = False,
    ) -> None:
        self.base, self.rho, self.keep, self.select = base, rho, keep, select  # Optimizer's own state is the base's
        self.adaptive, self.local, self.spares = adaptive, local, True
        ranges(self, not_negative=("rho",), positive=("keep", "select"), share=("keep", "select"))
        self._drawn: list[tuple[torch.nn.Parameter, bool]] = []  # the trained parameters, and whether each is kept
        self._saved: list[tuple[Tensor, Tensor]] = []  # perturbed parameters, and what they were
        self.ascended = False

    def prepare(self, generator: torch.Generator | None = None) -> None:
        """Draw the kept tensors for the next batch, one at least; the others get no gradient meanwhile.

        Args:
            generator: on the CPU; ``None`` draws from torch's.
        """
        self.restore()
        trained = [p for group in self.base.param_groups for p in group["params"] if p.requires_grad]
        kept = torch.ones(len(trained), dtype=torch.bool)
        if self.keep < 1 and trained:
            u = torch.rand(len(trained), generator=generator)
            kept = u < self.keep
            kept[u.argmin()] = True  # also where it is not below β: to draw again may take forever
        self._drawn = list(zip(trained, kept.tolist(), strict=True))
        if self.spares:
            for p, k in self._drawn:
                p.requires_grad_(k)

    @torch.no_grad()
    def ascend(self) -> None:
        """Save w, and add ε, by the gradients that there are; every trained parameter gets gradients again."""
        if self.ascended:
            raise RuntimeError("it has ascended already; step() or restore() comes next")
        if not self._drawn:
            self.prepare()
        params, kept = [p for p, _ in self._drawn], [k for _, k in self._drawn]
        steps = perturbation([p.grad for p in params], kept, self.rho, self.keep, params if self.adaptive else None)
        moved = [(p, step) for p, step in zip(params, steps, strict=True) if step is not None]
        self._saved = [(p, p.clone()) for p, _ in moved]
        if moved:
            torch._foreach_add_([p for p, _ in moved], [step for _, step in moved])
        self.ascended = True
        self._release()

    def sharpest(self, before: Tensor, after: Tensor, least: int = 1) -> Tensor:
        """The samples that the descent sees, see :func:`sharpest`."""
        return sharpest(before, after, self.select, least)

    @torch.no_grad()
    def restore(self) -> None:
        """Go back to w, if it had ascended, and let every trained parameter have gradients."""
        if self._saved:
            torch._foreach_copy_([p for p, _ in self._saved], [saved for _, saved in self._saved])
        self._saved, self.ascended = [], False
        self._release()

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Go back to w and take the step of the optimiser inside, by the gradients of the ascended weights."""
        if closure is not None:
            raise TypeError("Sharp takes no closure: call ascend() between two backwards")
        self.restore()
        self.base.step()

    def _release(self) -> None:
        for p, _ in self._drawn:
            p.requires_grad_(True)
        self._drawn = []

    # -- the optimiser inside -----------------------------------------------------------------------------------

    @property
    def param_groups(self) -> list[dict[str, Any]]:  # type: ignore[override]
        """Those of the optimiser inside."""
        return self.base.param_groups

    @property
    def state(self) -> Any:  # type: ignore[override]
        """That of the optimiser inside."""
        return self.base.state

    @property
    def defaults(self) -> dict[str, Any]:  # type: ignore[override]
        """Those of the optimiser inside."""
        return self.base.defaults

    @property
    def found_inf(self) -> Any:
        """The flag that tells a fused optimiser on a GPU to change nothing."""
        return getattr(self.base, "found_inf", None)

    @found_inf.setter
    def found_inf(self, value: Any) -> None:
        self.base.found_inf = value  # type: ignore[attr-defined]

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Clear the gradients of all parameters."""
        self.base.zero_grad(set_to_none)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add parameters to the optimiser inside."""
        self.base.add_param_group(param_group)

    def state_dict(self) -> dict[str, Any]:
        """That of the optimiser inside: nothing of an ascent outlasts its step."""
        return self.base.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load the state of the optimiser inside."""
        self.base.load_state_dict(state_dict)


def sharp(base: torch.optim.Optimizer, recipe: Recipe) -> Sharp:
    """Let an optimiser ascend before it descends, as a recipe asks for."""
    part = {"keep": recipe.keep, "select": recipe.select} if recipe.sharpness == "esam" else {}
    return Sharp(base, rho=recipe.rho, adaptive=recipe.sharpness == "asam", local=recipe.local, **part)
