"""What several processes share: a differentiable gather, averaged gradients, BatchNorm over all processes."""

from __future__ import annotations

from types import MethodType
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        size = torch.tensor([len(x)], device=x.device)
        sizes = [torch.empty_like(size) for _ in range(dist.get_world_size())]
        dist.all_gather(sizes, size)
        ctx.lengths = [int(n) for n in sizes]  # a last batch may not divide among the processes
        whole = x.new_zeros(max(ctx.lengths), *x.shape[1:])
        whole[: len(x)] = x
        parts = [torch.empty_like(whole) for _ in ctx.lengths]
        dist.all_gather(parts, whole)
        return torch.cat([part[:n] for part, n in zip(parts, ctx.lengths, strict=True)])

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        grad = grad.contiguous()
        dist.all_reduce(grad)
        return grad.split(ctx.lengths)[dist.get_rank()]


class _AllReduce(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        x = x.clone()
        dist.all_reduce(x)
        return x

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return _AllReduce.apply(grad)  # by itself, so that there is a second derivative


def gather(x: Tensor, world_size: int) -> Tensor:
    """Concatenate ``x`` (b, ...) of all processes, each with its own b, with gradients to each."""
    return _Gather.apply(x) if world_size > 1 else x


def largest(*numbers: int, device: torch.device) -> list[int]:
    """The largest value that any process has of each whole number."""
    found = torch.tensor(numbers, device=device)
    dist.all_reduce(found, dist.ReduceOp.MAX)
    return [int(n) for n in found]


def every(thing: Any, world_size: int) -> list[Any]:
    """What each process has, in their order; it travels pickled, between the processes of one command."""
    found: list[Any] = [thing]
    if world_size > 1:
        found = [None] * world_size
        dist.all_gather_object(found, thing)
    return found


def average_gradients(parameters: list[nn.Parameter], world_size: int) -> None:
    """Replace each gradient by its mean over processes, in one flat all-reduce a dtype."""
    by_type: dict[torch.dtype, list[Tensor]] = {}
    for p in parameters:
        if p.grad is None:  # unused on this process, perhaps not on another
            p.grad = torch.zeros_like(p)
        by_type.setdefault(p.grad.dtype, []).append(p.grad)
    for grads in by_type.values():
        flat = torch.cat([g.reshape(-1) for g in grads])
        dist.all_reduce(flat)
        flat /= world_size
        for g, part in zip(grads, flat.split([g.numel() for g in grads]), strict=True):
            g.copy_(part.view_as(g))


def _synced_forward(self: _BatchNorm, x: Tensor) -> Tensor:
    """BatchNorm's training forward with mean and variance over all processes (torch's works on GPUs only)."""
    if not self.training:
        return type(self).forward(self, x)
    self._check_input_dim(x)
    axes = [d for d in range(x.dim()) if d != 1]
    shape = [1, -1] + [1] * (x.dim() - 2)
    wide = x if x.dtype == torch.float64 else x.float()
    local = torch.cat([wide.sum(axes), wide.new_tensor([x.numel() / x.shape[1]])])
    total: Tensor = _AllReduce.apply(local)
    count = total[-1].detach()
    mean = total[:-1] / count
    centred = wide - mean.view(shape)
    variance: Tensor = _AllReduce.apply(centred.square().sum(axes)) / count
    if self.track_running_stats and self.running_mean is not None and self.running_var is not None:
        assert self.num_batches_tracked is not None
        self.num_batches_tracked.add_(1)
        share = 1.0 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
        with torch.no_grad():
            self.running_mean.lerp_(mean.to(self.running_mean.dtype), share)
            self.running_var.lerp_((variance * count / (count - 1)).to(self.running_var.dtype), share)
    y = centred * (variance + self.eps).rsqrt().view(shape)
    if self.affine:
        y = y * self.weight.view(shape) + self.bias.view(shape)
    return y.to(x.dtype)


_synced_forward.upcycle = True  # type: ignore[attr-defined]


def leave_batchnorm(module: nn.Module) -> None:
    """Undo :func:`sync_batchnorm`."""
    for m in module.modules():
        if isinstance(m, _BatchNorm) and getattr(m.__dict__.get("forward"), "__func__", None) is _synced_forward:
            del m.forward


def sync_batchnorm(module: nn.Module) -> None:
    """Let every BatchNorm of ``module`` use the statistics of all processes; undone by removing ``forward``."""
    for m in module.modules():
        if isinstance(m, _BatchNorm):
            m.forward = MethodType(_synced_forward, m)  # type: ignore[method-assign]
