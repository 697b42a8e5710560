"""What several processes share: a differentiable gather, averaged gradients, BatchNorm over all processes."""

from __future__ import annotations

from types import MethodType
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
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


def _in_steps(x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float) -> Tensor:
    """BatchNorm over all processes in operations that each have a derivative, and a second one."""
    axes = [d for d in range(x.dim()) if d != 1]
    shape = [1, -1] + [1] * (x.dim() - 2)
    local = torch.cat([x.sum(axes), x.new_tensor([x.numel() / x.shape[1]])])
    total: Tensor = _AllReduce.apply(local)
    count = total[-1].detach()
    centred = x - (total[:-1] / count).view(shape)
    variance: Tensor = _AllReduce.apply(centred.square().sum(axes)) / count
    y = centred * (variance + eps).rsqrt().view(shape)
    y = y if weight is None else y * weight.view(shape)
    return y if bias is None else y + bias.view(shape)


class _SyncedNorm(torch.autograd.Function):
    """BatchNorm over all processes by torch's own kernels, one message forward and one back.

    Means and variances of parts are joined as in Chan, Golub and LeVeque, "Updating Formulae and a Pairwise Algorithm
    for Computing Sample Variances" (1979).
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        mean, variance = torch.batch_norm_update_stats(x, None, None, 0.0)
        own = torch.cat([mean, variance, mean.new_tensor([x.numel() / x.shape[1]])])
        parts = [torch.empty_like(own) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, own)
        means, variances, counts = torch.stack(parts).split([len(mean), len(mean), 1], 1)
        count = counts.sum()
        mean = (counts * means).sum(0) / count
        variance = (counts * (variances + (means - mean).square())).sum(0) / count
        ctx.eps = eps
        ctx.save_for_backward(x, weight, bias, mean, variance, count)
        ctx.mark_non_differentiable(mean, variance, count)
        return F.batch_norm(x, mean, variance, weight, bias, False, 0.0, eps), mean, variance, count

    @staticmethod
    def backward(ctx: Any, grad: Tensor, *beside: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None, None]:
        x, weight, bias, mean, variance, count = ctx.saved_tensors
        if torch.is_grad_enabled():  # a gradient of this gradient is wanted
            every = [t for t in (x, weight, bias) if t is not None and t.requires_grad]
            found = iter(torch.autograd.grad(_in_steps(x, weight, bias, ctx.eps), every, grad, create_graph=True))
            to_x, to_weight, to_bias = (
                next(found) if t is not None and t.requires_grad else None for t in (x, weight, bias)
            )
            return to_x, to_weight, to_bias, None
        scale = torch.ones_like(mean) if weight is None else weight
        to_x, to_weight, to_bias = torch.ops.aten.native_batch_norm_backward(
            grad, x, scale, mean, variance, None, None, False, ctx.eps, [True, True, True]
        )
        sums = torch.cat([to_weight, to_bias])
        dist.all_reduce(sums)
        along, flat = (sums / count).split(len(mean))
        # x reaches the loss through mean and variance too, which adds a multiple of x and a constant, by channel.
        shape = [1, -1] + [1] * (x.dim() - 2)
        inverse = (variance + ctx.eps).rsqrt()
        slope = -scale * inverse.square() * along
        constant = -scale * inverse * flat - slope * mean
        to_x = to_x.addcmul_(x, slope.view(shape)).add_(constant.view(shape))
        return to_x, None if weight is None else to_weight, None if bias is None else to_bias, None


def _synced_forward(self: _BatchNorm, x: Tensor) -> Tensor:
    """BatchNorm's training forward with mean and variance over all processes (torch's works on GPUs only)."""
    if not self.training:
        return type(self).forward(self, x)
    self._check_input_dim(x)
    wide = x if x.dtype == torch.float64 else x.float()
    y, mean, variance, count = _SyncedNorm.apply(wide, self.weight, self.bias, self.eps)
    if self.track_running_stats and self.running_mean is not None and self.running_var is not None:
        assert self.num_batches_tracked is not None
        self.num_batches_tracked.add_(1)
        share = 1.0 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
        with torch.no_grad():
            self.running_mean.lerp_(mean.to(self.running_mean.dtype), share)
            self.running_var.lerp_((variance * count / (count - 1)).to(self.running_var.dtype), share)
    result: Tensor = y.to(x.dtype)
    return result


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
