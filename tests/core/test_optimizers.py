"""Optimisers without torch's wrappers step as torch's do."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from upcycle.core import optimizers
from upcycle.core.recipe import Recipe

KINDS = {"SGD": {"momentum": 0.9, "nesterov": True, "weight_decay": 5e-4}, "Adam": {}, "AdamW": {"weight_decay": 0.1}}


def stepped(module: nn.Module, optimizer: torch.optim.Optimizer, steps: int = 3) -> None:
    torch.manual_seed(0)
    for _ in range(steps):
        module(torch.randn(4, 3)).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)


@pytest.mark.parametrize("name", KINDS)
def test_they_are_torchs_bit_for_bit_and_hold_the_same_state(name: str) -> None:
    theirs = nn.Linear(3, 2)
    ours = copy.deepcopy(theirs)
    made = [
        getattr(home, name)(m.parameters(), lr=0.1, fused=True, **KINDS[name])
        for home, m in ((torch.optim, theirs), (optimizers, ours))
    ]
    for module, optimizer in zip((theirs, ours), made, strict=True):
        stepped(module, optimizer)
    assert torch.equal(ours.weight, theirs.weight) and not ours.weight.equal(nn.Linear(3, 2).weight)
    first, second = (optimizer.state_dict() for optimizer in made)
    torch.testing.assert_close(first, second, rtol=0, atol=0)
    made[1].load_state_dict(copy.deepcopy(first))  # what torch's saved goes on in ours
    for module, optimizer in zip((theirs, ours), made, strict=True):
        stepped(module, optimizer)
    assert torch.equal(ours.weight, theirs.weight)


def test_a_recipe_makes_what_is_still_an_optimiser_of_torch() -> None:
    module = nn.Linear(3, 2)
    for name, kind in (("sgd", torch.optim.SGD), ("adam", torch.optim.Adam), ("adamw", torch.optim.AdamW)):
        assert isinstance(Recipe(optimizer=name).make(module), kind)  # type: ignore[arg-type]
    assert module.weight.requires_grad and torch.is_grad_enabled()
