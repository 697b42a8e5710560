"""The quadratic penalty: its gradient without a graph, and the clip that hides nothing."""

import torch

from tests.settings import tiny_net
from upcycle.continual.weights.penalty import clip, pull


def test_the_pull_is_the_gradient_of_the_penalty_and_makes_no_graph() -> None:
    net = tiny_net().double()
    net.conv1.weight.requires_grad_(False)
    parameters = [p for p in net.parameters() if p.requires_grad]
    g = torch.Generator().manual_seed(0)
    importance, anchor, loss = ([torch.rand(p.shape, generator=g, dtype=p.dtype) for p in parameters] for _ in range(3))
    for p, own in zip(parameters[1:], loss[1:], strict=True):  # the loss does not reach the first
        p.grad = own.clone()
    terms = [(w * (p - a).square()).sum() for p, w, a in zip(parameters, importance, anchor, strict=True)]
    expected = torch.autograd.grad(3.0 * torch.stack(terms).sum(), parameters)
    pull(parameters, importance, anchor, 3.0)
    for i, (p, e) in enumerate(zip(parameters, expected, strict=True)):
        assert torch.allclose(p.grad, e + (loss[i] if i else 0), rtol=1e-12) and p.grad.grad_fn is None
    assert net.conv1.weight.grad is None


def test_clipping_holds_each_number_and_hides_no_bad_one() -> None:
    a, b = torch.tensor([-3.0, 0.25, 1.5]), torch.tensor([[0.5, torch.inf], [-torch.inf, torch.nan]])
    clip([a, b])
    assert a.tolist() == [-1.0, 0.25, 1.0]
    assert b.isnan().tolist() == [[False, True], [True, True]] and float(b[0, 0]) == 0.5
