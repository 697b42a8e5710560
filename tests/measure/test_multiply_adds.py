"""Multiply-adds are those that torch's own counter finds, which is slow to import."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from upcycle.core.graph_inputs import table
from upcycle.core.references import resolve
from upcycle.measure.multiply_adds import MultiplyAdds


class Attends(nn.Module):
    """Attention by the fused operator, a transposed and a grouped convolution, and products of all kinds."""

    def __init__(self) -> None:
        super().__init__()
        self.up = nn.ConvTranspose2d(4, 6, 3, stride=2)
        self.grouped = nn.Conv2d(6, 12, 3, groups=3, padding=1)
        self.last = nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.grouped(self.up(x)).flatten(2).transpose(1, 2)
        heads = x.reshape(len(x), -1, 3, 4).transpose(1, 2)
        x = F.scaled_dot_product_attention(heads, heads, heads).transpose(1, 2).flatten(2)
        return torch.einsum("bnd,bmd->bnm", self.last(x), self.last(x))


def both(module: nn.Module, x: Tensor) -> tuple[int, int]:
    theirs, ours = FlopCounterMode(display=False), MultiplyAdds()
    with theirs:
        module(x)
    with ours:
        module(x)
    return ours.total, theirs.get_total_flops() // 2


@pytest.mark.parametrize(
    "name", ["resnet20", "wrn16_1", "mobilenetv2", "densenet", "vgg", "vit", "lenet", "convnet_small"]
)
def test_a_zoo_network_costs_what_torch_counts(name: str) -> None:
    made = resolve(f"zoo:{name}", pretrained=False, num_classes=10, input_shape=(3, 32, 32))
    with torch.no_grad():
        ours, theirs = both(made.module.eval(), torch.zeros(2, 3, 32, 32))
    assert ours == theirs > 0


@pytest.mark.parametrize("grad", [torch.no_grad, torch.inference_mode, torch.enable_grad])
@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_attention_and_every_kind_of_product_count(grad: type, device: str) -> None:
    with grad():
        ours, theirs = both(Attends().to(device).eval(), torch.zeros(2, 4, 5, 5, device=device))
    assert ours == theirs > 0


def test_a_transposed_convolution_counts_its_inputs() -> None:
    with MultiplyAdds() as counter:
        nn.ConvTranspose2d(2, 3, 2)(torch.zeros(1, 2, 4, 4))
    assert counter.total == 2 * 3 * 2 * 2 * 4 * 4


def test_sums_over_neighbours_count_their_messages() -> None:
    messages, to = torch.rand(7, 4), torch.tensor([0, 0, 1, 2, 2, 2, 0])
    for add in (
        lambda: torch.zeros(3, 4).index_add(0, to, messages),
        lambda: torch.zeros(3, 4).index_add_(0, to, messages),
        lambda: torch.zeros(3, 4).scatter_add_(0, to[:, None].expand(7, 4), messages),
        lambda: torch.zeros(3, 4).scatter_reduce(0, to[:, None].expand(7, 4), messages, "sum"),
    ):
        with MultiplyAdds() as counter:
            add()
        assert counter.total == 28


def test_of_a_sparse_matrix_stored_values_count() -> None:
    x = torch.rand(10, 6)
    x *= x > 0.7
    with torch.no_grad(), MultiplyAdds() as counter:
        nn.Linear(6, 4)(table(x))
    assert counter.total == 4 * int((x != 0).sum()) < 240
