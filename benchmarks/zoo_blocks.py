"""MetaFormer and coordinate attention, forward and backward, against timm's own and a plain rewrite of the formulas.

CAFormer-S18 is timm's module here, so what is compared is the order of memory in which a run trains it with the one
that timm builds it in. Our tiny CAFormer attends on maps, where timm's stage makes tokens of its map first: both hold
the same weights. Coordinate attention that starts at the network's own function divides its gates by a constant; it is
compared with timm's module as it is, and with the equations of its paper written down one by one, each in the better
order of memory. Answers agree to 1e-4. Each figure is the minimum of several rounds in which all take turns, on one
thread. Run from the repository: ``python -m benchmarks.zoo_blocks``.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.common import alternate, record
from upcycle.core.memory import keep_freed
from upcycle.core.references import resolve
from upcycle.surgery.inserts import BLOCKS
from upcycle.surgery.inserts.base import Place
from upcycle.surgery.signals import Signal
from upcycle.zoo.from_timm import import_timm
from upcycle.zoo.metaformer import TINY
from upcycle.zoo.mobilenetv2 import coordinate_attention

ROUNDS = 8
LAST, FIRST = torch.channels_last, torch.contiguous_format


class PlainCoordinateAttention(nn.Module):
    """Equations 4 to 8 of arXiv:2103.02907, one after the other, with the weights of a module of timm."""

    def __init__(self, own: nn.Module) -> None:
        super().__init__()
        self.own = copy.deepcopy(own)

    def forward(self, x: Tensor) -> Tensor:
        """Give x times both gates."""
        own: Any = self.own
        h, w = x.shape[2:]
        rows = nn.functional.adaptive_avg_pool2d(x, (h, 1))
        columns = nn.functional.adaptive_avg_pool2d(x, (1, w)).permute(0, 1, 3, 2)
        f = own.bn1(own.conv1(torch.cat([rows, columns], dim=2)))
        f = f * nn.functional.relu6(f + 3) / 6
        f_h, f_w = f.split([h, w], dim=2)
        g_h = own.conv_h(f_h).sigmoid().expand(-1, -1, h, w)
        g_w = own.conv_w(f_w.permute(0, 1, 3, 2)).sigmoid().expand(-1, -1, h, w)
        return x * g_w * g_h


def step_of(network: nn.Module, images: Tensor, order: torch.memory_format) -> Callable[[], Any]:
    """Forward and backward of one batch, the images' gradient too."""
    network = copy.deepcopy(network).to(memory_format=order).train()
    images = images.detach().contiguous(memory_format=order).requires_grad_()

    def step() -> None:
        network.zero_grad(set_to_none=True)
        network(images).square().mean().backward()

    return step


def timms_tiny(ours: nn.Module) -> nn.Module:
    """Our tiny CAFormer with the stage of attention as timm has it, on tokens."""
    parts = import_timm().models.metaformer
    made: nn.Module = parts.MetaFormer(
        3,
        10,
        token_mixers=[parts.SepConv, parts.SepConv, parts.Attention],
        norm_layers=[parts.LayerNorm2dNoBias, parts.LayerNorm2dNoBias, parts.LayerNormNoBias],
        res_scale_init_values=(None, None, 1.0),
        use_mlp_head=False,
        **TINY,
    )
    made.get_submodule("stem").conv = copy.deepcopy(ours.get_submodule("stem.conv"))
    shapes = {key: tensor.shape for key, tensor in made.state_dict().items()}
    state = {key.replace("token_mixer.module.", "token_mixer."): tensor for key, tensor in ours.state_dict().items()}
    made.load_state_dict({key: tensor.reshape(shapes[key]) for key, tensor in state.items()})
    return made


def compared(
    ours: dict[str, Callable[[], Any]], others: dict[str, Callable[[], Any]], rounds: int = ROUNDS
) -> dict[str, Any]:
    """Milliseconds of each, and how many times as fast the fastest of ours is as the fastest of the others."""
    best = {name: 1e3 * min(seconds) for name, seconds in alternate(ours | others, rounds).items()}
    ratio = min(best[name] for name in others) / min(best[name] for name in ours)
    return {"milliseconds": {k: round(v, 1) for k, v in best.items()}, "times as fast": round(ratio, 2)}


def in_both(name: str, network: nn.Module, images: Tensor) -> dict[str, Callable[[], Any]]:
    """A step in both orders of memory."""
    return {f"{name}, channels {word}": step_of(network, images, o) for word, o in (("first", FIRST), ("last", LAST))}


@torch.no_grad()
def agree(ours: nn.Module, theirs: nn.Module, images: Tensor, factor: float = 1.0) -> None:
    """Stop where ours does not give ``factor`` times what theirs does."""
    error = float((ours.eval()(images[:2]) - factor * theirs.eval()(images[:2])).abs().max())
    assert error < 1e-4, f"they differ by {error:.1e}"


def main() -> None:
    """Time all, and write the record."""
    torch.set_num_threads(1)
    keep_freed()  # as every run does
    torch.manual_seed(0)
    big = resolve("timm:caformer_s18", pretrained=False).module
    tiny = resolve("zoo:caformer_tiny", pretrained=False).module
    signal = Signal("map", 96, (56, 56))
    gate = BLOCKS["coord"].make(Place("", nn.Identity(), signal, signal), "gate", "same", b0=0.0)
    plain = coordinate_attention(96)
    plain.load_state_dict(gate.state_dict())
    written, rival = PlainCoordinateAttention(plain), timms_tiny(tiny)
    maps, small, large = torch.randn(8, 96, 56, 56), torch.randn(128, 3, 32, 32), torch.randn(8, 3, 224, 224)
    agree(gate, plain, maps, 4.0)  # both gates are divided by 1/2
    agree(plain, written, maps)
    agree(tiny, rival, small)
    figures = {
        "coordinate attention, 8 maps of 96 x 56 x 56": compared(
            in_both("ours", gate, maps), in_both("timm's", plain, maps) | in_both("equations", written, maps)
        ),
        "tiny CAFormer, 128 images of 32 pixels": compared(
            {"ours": step_of(tiny, small, LAST)}, in_both("timm's", rival, small)
        ),
        "CAFormer-S18, 8 images of 224 pixels": compared(
            {"as a run has it": step_of(big, large, LAST)}, {"timm's": step_of(big, large, FIRST)}
        ),
    }
    for name, found in figures.items():
        print(name, found, flush=True)
    print(record("zoo_blocks", figures, rounds=ROUNDS, threads=1))


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    main()
