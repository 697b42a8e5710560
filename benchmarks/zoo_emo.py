"""EMO-1M and Shunted-T, forward and backward at 224 x 224, against a plain rewrite of the published formulas.

The rewrite does what the papers write down, in their order: windows cut out first and everything up to the expansion
computed inside them, maps kept as (b, c, h, w) and tokens as (b, n, c), copied from one to the other at every change,
attention written out. It holds the same weights and gives the same answers, to 1e-4. It is timed in both orders of
memory, and the faster one counts. Each figure is the minimum of several rounds in which all take turns, on one thread.
Run from the repository: ``python -m benchmarks.zoo_emo``.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.common import alternate, record
from upcycle.core.memory import keep_freed
from upcycle.zoo.emo import EMO, IRMB, WindowAttention
from upcycle.zoo.emo import SIZES as EMO_SIZES
from upcycle.zoo.layers import ChannelNorm
from upcycle.zoo.shunted import SIZES, Block, ShuntedAttention, ShuntedTransformer

BATCH, SIDE, ROUNDS = 8, 224, 8


class PlainIRMB(IRMB):
    """The block as the paper writes it, with windows around the expansion too."""

    def forward(self, x: Tensor) -> Tensor:
        u = normalised(self.norm, x)
        v = self.in_windows(u) if isinstance(self.attention, WindowAttention) else self.expand(u)
        d = self.depthwise(v)
        return x + self.project(v + d) if self.residual else self.project(d)

    def in_windows(self, u: Tensor) -> Tensor:
        """Attention and expansion of windows (b n1 n2, c, s, s)."""
        made = self.attention
        assert isinstance(made, WindowAttention)
        (b, c, h, w), s, heads = u.shape, made.window, made.heads
        u = F.pad(u, (0, -w % s, 0, -h % s))
        n1, n2 = u.shape[2] // s, u.shape[3] // s
        u = u.view(b, c, s, n1, s, n2).permute(0, 3, 5, 1, 2, 4).reshape(-1, c, s, s).contiguous()
        q, k = made.qk(u).view(-1, 2, heads, c // heads, s * s).transpose(3, 4).contiguous().unbind(1)
        weights = (q @ k.transpose(2, 3) * made.scale).softmax(dim=3)
        mixed = weights @ u.view(-1, heads, c // heads, s * s).transpose(2, 3).contiguous()
        v = self.expand(mixed.transpose(2, 3).reshape(-1, c, s, s).contiguous())
        v = v.view(b, n1, n2, -1, s, s).permute(0, 3, 4, 1, 5, 2).reshape(b, v.shape[1], n1 * s, n2 * s)
        return v[:, :, :h, :w].contiguous()


class PlainAttention(ShuntedAttention):
    """Attention of tokens (b, n, c) as the paper writes it."""

    def on_tokens(self, x: Tensor, h: int, w: int) -> Tensor:
        """Give the mixed tokens."""
        b, n, c = x.shape
        q = self.q(x).view(b, n, self.heads, -1).permute(0, 2, 1, 3)
        if not len(self.merged):
            k, v = self.kv(x).view(b, n, 2, self.heads, -1).permute(2, 0, 3, 1, 4)
            local = self.local(v.transpose(2, 3).reshape(b, c, h, w)).flatten(2).transpose(1, 2)
            return self.out(attended(q, k, v) + local)
        found, share = [], self.heads // len(self.merged)
        for i, part in enumerate(self.merged):
            t = part.merge(x.transpose(1, 2).reshape(b, c, h, w))
            h_i, w_i = t.shape[2:]
            t = F.gelu(part.norm(t.flatten(2).transpose(1, 2)))
            k, v = part.kv(t).view(b, -1, 2, share, c // self.heads).permute(2, 0, 3, 1, 4)
            local = part.local(v.transpose(2, 3).reshape(b, -1, h_i, w_i))
            v = v + local.view(b, share, c // self.heads, -1).transpose(2, 3)
            found.append(attended(q[:, i * share : (i + 1) * share], k, v))
        return self.out(torch.cat(found, dim=2))


class PlainBlock(Block):
    """The block on tokens (b, n, c), with maps made of them where there is a convolution."""

    def forward(self, x: Tensor) -> Tensor:
        b, c, h, w = x.shape
        x = x.flatten(2).transpose(1, 2)
        x = x + self.attention.on_tokens(self.norm1(x), h, w)
        y = self.feed_forward.expand(self.norm2(x))
        local = self.feed_forward.local(y.transpose(1, 2).reshape(b, -1, h, w)).flatten(2).transpose(1, 2)
        x = x + self.feed_forward.project(F.gelu(y + local))
        return x.transpose(1, 2).reshape(b, c, h, w)


def normalised(norm: nn.Module, x: Tensor) -> Tensor:
    """Normalise a map, over channels by copies of it."""
    if not isinstance(norm, ChannelNorm):
        return norm(x)
    y = F.layer_norm(x.permute(0, 2, 3, 1).contiguous(), norm.normalized_shape, norm.weight, norm.bias, norm.eps)
    return y.permute(0, 3, 1, 2).contiguous()


def attended(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Attention written out; (b, heads, n, d) to (b, n, heads d)."""
    weights = (q @ k.transpose(2, 3) * q.shape[3] ** -0.5).softmax(dim=3)
    return (weights @ v).transpose(1, 2).reshape(q.shape[0], q.shape[2], -1)


PLAIN: dict[type[nn.Module], type[nn.Module]] = {IRMB: PlainIRMB, ShuntedAttention: PlainAttention, Block: PlainBlock}


def rewritten(network: nn.Module) -> nn.Module:
    """A copy of a network whose blocks compute as the papers write it."""
    made = copy.deepcopy(network)
    for module in made.modules():
        if type(module) in PLAIN:
            module.__class__ = PLAIN[type(module)]
    return made


def step_of(network: nn.Module, images: Tensor, order: torch.memory_format) -> Callable[[], Any]:
    """Forward and backward of one batch."""
    network = copy.deepcopy(network).to(memory_format=order).train()
    images = images.contiguous(memory_format=order)

    def step() -> None:
        network.zero_grad(set_to_none=True)
        network(images).square().mean().backward()

    return step


def main() -> None:
    """Time both networks, and write the record."""
    torch.set_num_threads(1)
    keep_freed()  # as every run does
    torch.manual_seed(0)
    images = torch.randn(BATCH, 3, SIDE, SIDE)
    # Nothing is left out at random, so that both compute the same.
    networks = {"EMO-1M": EMO(EMO_SIZES["1m"], 1000), "Shunted-T": ShuntedTransformer(SIZES["t"], 1000)}
    figures: dict[str, Any] = {}
    for name, network in networks.items():
        for module in network.modules():
            if hasattr(module, "p"):
                module.p = 0.0
        plain = rewritten(network)
        with torch.no_grad():
            error = float((network.eval()(images[:2]) - plain.eval()(images[:2])).abs().max())
        assert error < 1e-4, f"{name} differs from the formulas by {error:.1e}"
        steps = {
            "ours": step_of(network, images, torch.channels_last),
            "plain": step_of(plain, images, torch.contiguous_format),
            "plain, channels_last": step_of(plain, images, torch.channels_last),
        }
        best = {key: min(times) for key, times in alternate(steps, ROUNDS).items()}
        ratio = min(best["plain"], best["plain, channels_last"]) / best["ours"]
        figures[name] = {
            "milliseconds": {key: round(1e3 * value, 1) for key, value in best.items()},
            "times as fast as the plain one": round(ratio, 2),
            "error": error,
        }
        print(name, figures[name], flush=True)
    print(record("zoo_emo", figures, batch=BATCH, pixels=SIDE, rounds=ROUNDS, threads=1))


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    main()
