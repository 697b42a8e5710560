"""Early stopping whose count begins late."""

from __future__ import annotations

import torch
from torch import nn

from upcycle.training.patience import Patience


def run(figures: list[float], wait: int, after: int, stop: int = -1) -> tuple[nn.Linear, list[int]]:
    """Train by writing the number of the epoch; after epoch ``stop`` everything is saved and goes on elsewhere."""
    net = nn.Linear(1, 1)
    patience, seen = Patience(net, wait, after), []
    for epoch, figure in enumerate(figures):
        if patience.over:
            continue
        nn.init.constant_(net.weight, epoch)
        patience.see(epoch, float(figure))
        seen.append(epoch)
        if epoch == stop:
            state, kept = patience.state_dict(), {k: v.clone() for k, v in net.state_dict().items()}
            net = nn.Linear(1, 1)
            net.load_state_dict(kept)
            patience = Patience(net, wait, after)
            patience.load_state_dict(state)
    patience.restore()
    return net, seen


def test_the_start_counts_for_nothing() -> None:
    net, seen = run([0.1, 0.1, 5, 4, 3, 3.5, 3.5, 0], wait=2, after=3)
    assert net.weight.item() == 4 and seen == [0, 1, 2, 3, 4, 5, 6]


def test_without_a_lower_figure_it_is_over_and_of_equals_the_first_counts() -> None:
    net, seen = run([1, 1, 1, 0], wait=2, after=0)
    assert net.weight.item() == 0 and seen == [0, 1, 2]


def test_it_never_ends_without_patience_or_before_its_time() -> None:
    for wait, after in ((0, 0), (1, 9)):
        net, seen = run([1, 2, 3, 4], wait=wait, after=after)
        assert net.weight.item() == 3 and len(seen) == 4


def test_a_save_point_changes_nothing() -> None:
    figures = [9, 3, 2, 5, 1, 2, 3, 4, 5, 0]
    for stop in range(8):
        net, seen = run(figures, wait=3, after=1, stop=stop)
        assert torch.equal(net.weight, torch.full((1, 1), 4.0)) and seen[-1] == 7
