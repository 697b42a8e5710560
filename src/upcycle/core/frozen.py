"""A trained network that only gives answers: made fast, and checked against itself."""

from __future__ import annotations

import contextlib
import copy
import functools
import inspect
import io
import operator
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from upcycle.core.cut import optional
from upcycle.core.errors import UserError, require
from upcycle.core.layers import base_of
from upcycle.core.outputs import called, layout_of, mapped, tensors_of
from upcycle.core.task import CLASSIFICATION, Task

Precision = Literal["auto", "32-true", "bf16", "64-true"]
Normalisation = tuple[tuple[float, ...], tuple[float, ...]]

FOLD_TOLERANCE = 1e-5
"""Largest relative error of a folded network; a refused one stays unfolded."""
FOLD_SAMPLES = 8
"""Samples that folding is checked on, at most: a wrong fold shows in each of them."""
BF16_TOLERANCE = 5e-2
"""Largest relative error of a bf16 network that ``auto`` accepts."""
BF16_AGREEMENT = 0.99
"""Least share of equal top classes that ``auto`` accepts bf16 at."""

PART = 2**18
"""Pixels that a copy is checked on at a time."""

_NAMES = {torch.float32: "float32", torch.bfloat16: "bf16", torch.float64: "float64"}
_PAIRS: dict[type[nn.Module], type[nn.Module]] = {
    nn.Conv1d: nn.BatchNorm1d,
    nn.Conv2d: nn.BatchNorm2d,
    nn.Conv3d: nn.BatchNorm3d,
    nn.Linear: nn.BatchNorm1d,
}


class Frozen(nn.Module):
    """A network in eval mode whose parameters never train; made by :func:`frozen`.

    Takes float32 (or float64) images (b, c, h, w) normalised as the student's, or whatever other
    :class:`upcycle.core.batches.Inputs` its network takes, and gives float32 outputs: without a graph, or with one to
    its inputs when made with ``input_grad``. Autocast around it does not reach it, ``train()`` does not wake it, and
    ``to`` moves it between devices but leaves its number format.

    Args:
        network: the copied network, ready: eval, without gradients, in ``dtype``.
        dtype: what it computes in.
        renormalise: ((mean, std) of the inputs given, (mean, std) that the network expects).
        input_grad: gradients flow to the inputs.

    Attributes:
        network: the network; with ``keep_modules`` its submodules are the original's by name.
        precision: "bf16", "float32" or "float64".
        folded: number of BatchNorms folded into the layer before.
        error: largest relative error of the folded network's outputs on up to 32 samples of the example; 0 without
            folding.
        agreement: share of the example that it decides as the original does; 1 without an example.
    """

    _scale: Tensor | None
    _shift: Tensor | None

    def __init__(
        self,
        network: nn.Module,
        dtype: torch.dtype,
        renormalise: tuple[Normalisation, Normalisation] | None = None,
        input_grad: bool = False,
    ) -> None:
        super().__init__()
        self.network = network
        self.precision = _NAMES[dtype]
        self.folded = 0
        self.error = 0.0
        self.agreement = 1.0
        self.input_grad = input_grad
        self._dtype = dtype
        scale, shift = _affine(renormalise, torch.float64 if dtype == torch.float64 else torch.float32)
        self.register_buffer("_scale", scale, persistent=False)
        self.register_buffer("_shift", shift, persistent=False)
        self.eval()

    def forward(self, inputs: Any) -> Any:
        double = inputs.dtype == self._dtype == torch.float64
        grad = contextlib.nullcontext() if self.input_grad else torch.no_grad()
        with grad, torch.autocast(inputs.device.type, enabled=False):
            if self._scale is not None and self._shift is not None:
                inputs = inputs * self._scale + self._shift
            inputs = inputs.to(self._dtype)
            if inputs.ndim == 4:
                inputs = inputs.contiguous(memory_format=torch.channels_last)
            out = self.network(inputs)
            if not tensors_of(out):
                raise UserError(f"{called(self.network)} gives a {type(out).__name__}; one tensor is needed.")
            return mapped(Tensor.double if double else Tensor.float, out)

    def train(self, mode: bool = True) -> Frozen:
        """Stays in eval mode, whatever the module around it does."""
        return super().train(False)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Frozen:
        # The number format was checked when it was chosen: a cast of the module around must not undo that.
        def move(tensor: Tensor) -> Tensor:
            new = fn(tensor)
            return new if new.dtype == tensor.dtype else tensor.to(new.device)

        return super()._apply(move, recurse)

    def summary(self) -> str:
        """A phrase on what was made of the original, for a person to read."""
        folded = f"{self.folded} BatchNorm folded with error {self.error:.1e}"
        return f"{self.precision}, {folded}, top-1 agreement {self.agreement:.1%}"

    def extra_repr(self) -> str:
        return f"precision={self.precision}, folded={self.folded}, input_grad={self.input_grad}"


def frozen(
    module: nn.Module,
    example: Any = None,
    *,
    input_grad: bool = False,
    keep_bn: bool = False,
    keep_modules: bool = False,
    precision: Precision = "auto",
    renormalise: tuple[Normalisation, Normalisation] | None = None,
    task: Task = CLASSIFICATION,
) -> Frozen:
    """A fast copy of a trained network that only gives answers. ``module`` itself is left as it is.

    The copy has its BatchNorms folded into the layers before them, convolutions in channels_last memory, and
    runs in bf16 where the processor is made for it and the answers on ``example`` stay the same. Each step is
    checked on ``example`` and left out when it fails.

    Args:
        module: any network that maps a batch to one tensor, or to a NamedTuple of tensors.
        example: inputs like those to come, on the device where the copy shall live, such as (b, c, h, w) normalised
            like them; 64 real samples or more make a good check. Without it nothing can be checked: no folding, and
            ``auto`` is float32.
        input_grad: the method needs gradients with respect to the images.
        keep_bn: the method needs the BatchNorm layers and their statistics.
        keep_modules: the method taps submodules by name; otherwise activations and sums overwrite their inputs.
        precision: ``auto``: bf16 for images, when :func:`fast_bf16` says so, at least 99 % of the top classes on
            ``example`` are the float32 ones and the outputs differ by at most 5 % of the largest; else
            float32. ``bf16``, ``32-true`` and ``64-true`` decide it.
        renormalise: ((mean, std) that the images given are normalised with, (mean, std) that ``module``
            expects).
        task: says by which share of ``example`` two copies agree; of classes, that of equal top ones.

    Raises:
        UserError: an unknown precision, or outputs on ``example`` that are not one finite tensor.
    """
    known = ("auto", "32-true", "bf16", "64-true")
    require(precision in known, f"precision must be one of {', '.join(known)}, not {precision!r}.")
    network = copy.deepcopy(module).requires_grad_(False)
    network.eval()
    dtype = torch.float64 if precision == "64-true" else torch.float32
    device = next((t.device for t in (example, *module.parameters()) if t is not None), torch.device("cpu"))

    def wrap(network: nn.Module, dtype: torch.dtype) -> Frozen:
        network = _laid_out(network.to(device, dtype))
        return Frozen(network, dtype, renormalise, input_grad).to(device)

    if example is None:
        return wrap(network, torch.bfloat16 if precision == "bf16" else dtype)

    reference = _answers(wrap(network, dtype), example)
    if not all(part.isfinite().all() for part in tensors_of(reference)):
        raise UserError(
            f"{called(module)} gives NaN or infinite outputs; check its weights and the normalisation of its inputs."
        )
    folded, count, error = (network, 0, 0.0) if keep_bn else _checked_fold(network, example, reference, wrap)
    result, answers = wrap(folded, dtype), None

    if precision == "bf16" or (precision == "auto" and example.ndim == 4 and fast_bf16(example.device)):
        half = wrap(copy.deepcopy(folded), torch.bfloat16)
        with contextlib.nullcontext() if precision == "bf16" else contextlib.suppress(RuntimeError):
            # RuntimeError: an operation without a bf16 kernel, or constants made in float32
            found = _answers(half, example)
            if precision == "bf16" or _bf16_passes(found, reference, task):
                result, answers = half, found
    if answers is None:
        answers = _answers(result, example)
    if not keep_modules:
        _overwriting(result, example, answers)
    result.folded, result.error = count, error
    result.agreement = task.agreement(answers, reference)
    return result


def _slope(network: Frozen, example: Any) -> Tensor:
    """The gradient of the summed answers with respect to the first samples of the example; nought without one."""
    if not network.input_grad:
        return torch.zeros(())
    with torch.enable_grad():
        leaf = example[:8].detach().clone().requires_grad_()
        total = torch.stack([part.sum() for part in tensors_of(network(leaf))]).sum()
        return torch.autograd.grad(total, leaf if isinstance(leaf, Tensor) else leaf.x)[0]  # features of graphs


_FRESH = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)
_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)  # these only: others may end in an activation
_RELU = (F.relu, torch.relu)
_SUM = (operator.add, operator.iadd, torch.add)


class _Tracer(fx.Tracer):
    """Leaves every layer and BatchNorm whole, of whatever library: others read its inputs, weights and statistics."""

    def __init__(self, root: nn.Module) -> None:
        super().__init__()  # layers are asked before tracing, in which they would answer with proxies
        self.layers = {m for m in root.modules() if isinstance(m, _FRESH) and base_of(m, repadded=True) is not None}

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        whole = m in self.layers or isinstance(m, nn.modules.batchnorm._BatchNorm)
        return whole or super().is_leaf_module(m, module_qualified_name)


def _overwriting(result: Frozen, example: Any, before: Any) -> None:
    """Let ReLUs and sums write over an input that a layer has just made and nobody else reads.

    That saves the memory traffic of a new tensor each, a fifth of a small network's time. Only outputs of
    convolutions, linear layers, BatchNorms and such sums are overwritten: no backward pass looks at them.
    Kept only where the answers on the example stay the same to the bit, and so do the gradients that reach it: tracing
    loses a backward that the network's author wrote.
    """
    network = result.network
    if len(inspect.signature(network.forward).parameters) != 1:
        return
    try:
        graph = _Tracer(network).trace(network)
        slope = _slope(result, example)
        modules = dict(network.named_modules())

        def fresh(x: Any) -> bool:
            if not isinstance(x, fx.Node) or len(x.users) != 1:
                return False
            m = modules[str(x.target)] if x.op == "call_module" else None
            made = isinstance(m, _FRESH) or (m is not None and base_of(m) in _NORMS)
            return made or (type(m) is nn.Identity and fresh(x.args[0])) or x.target is operator.iadd

        for node in graph.nodes:
            relu = node.op == "call_module" and type(modules[str(node.target)]) is nn.ReLU
            if node.op == "call_function" and node.target in _SUM and not node.kwargs:
                a, b = node.args
                if isinstance(a, fx.Node) and isinstance(b, fx.Node) and a is not b and (fresh(a) or fresh(b)):
                    node.target, node.args = operator.iadd, (a, b) if fresh(a) else (b, a)
            elif (relu or (node.op == "call_function" and node.target in _RELU)) and fresh(node.args[0]):
                node.op, node.target, node.args, node.kwargs = "call_function", torch.relu_, (node.args[0],), {}
        result.network = fx.GraphModule(network, graph)
        # Where a sum broadcasts, the larger tensor may be the other one; torch.fx prints what went wrong.
        with contextlib.redirect_stderr(io.StringIO()):
            first = _parts(example)[0]  # enough: an operation that writes where it must not does so for every sample
            known = (part[: len(first)] for part in tensors_of(before)) if example.ndim == 4 else tensors_of(before)
            same = all(map(torch.equal, tensors_of(_answers(result, first)), known))
            same = same and torch.equal(_slope(result, example), slope)
    except Exception:  # a network that cannot be traced stays as it is, which only costs speed
        same = False
    if not same:
        result.network = network


def fast_bf16(device: torch.device | str = "cpu") -> bool:
    """Whether bf16 is faster than float32 there, from the hardware's flags alone: nothing is timed."""
    device = torch.device(device)
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    return device.type == "cpu" and not {"avx512_bf16", "amx_bf16"}.isdisjoint(_cpu_flags())


@functools.cache
def _cpu_flags() -> frozenset[str]:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return frozenset()
    return frozenset(next((line.split(":")[1] for line in lines if line.startswith("flags")), "").split())


def fold_batchnorm(module: nn.Module) -> tuple[nn.Module, int]:
    """A copy in eval mode with each BatchNorm folded into the layer (convolution, linear) that feeds it.

    With ``s = gamma / sqrt(var + eps)`` the layer becomes ``W' = s W``, ``b' = s (b - mean) + beta`` and the
    BatchNorm an identity; submodules keep their names. Folded is what tracing (torch.fx) shows to be safe:
    both are called once, nothing else uses the layer's output, and no weight is shared. A network that cannot
    be traced stays whole.

    Returns:
        the copy and the number of BatchNorms folded into it.
    """
    pairs = _foldable(module)
    result = copy.deepcopy(module).eval()
    for layer_name, norm_name in pairs:
        _fold(result.get_submodule(layer_name), result.get_submodule(norm_name))
        result.set_submodule(norm_name, nn.Identity())
    return result, len(pairs)


def folds_across(module: nn.Module, names: Iterable[str]) -> bool:
    """Whether folding changes what one of these submodules gives: a layer is in it, and its BatchNorm outside."""
    pairs = _foldable(module) if (names := [f"{name}." for name in names if name]) else []
    return any(f"{layer}.".startswith(name) > norm.startswith(name) for layer, norm in pairs for name in names)


def _foldable(module: nn.Module) -> list[tuple[str, str]]:
    """(layer, BatchNorm) names that may be folded."""
    if not any(isinstance(m, tuple(_PAIRS.values())) for m in module.modules()):
        return []
    # A copy, because a forward that stores what it sees would keep the tracer's proxies. Optional arguments
    # take their defaults, as they do when the network is called with images alone.
    shadow = copy.deepcopy(module).eval()
    try:
        graph = _Tracer(shadow).trace(shadow, optional(shadow))
    except Exception:
        # Whatever a stranger's forward does with a proxy; not being traceable only costs speed.
        return []
    modules = dict(shadow.named_modules())
    aliases = Counter(id(m) for _, m in shadow.named_modules(remove_duplicate=False))
    owners = Counter(id(p) for m in modules.values() for p in m.parameters(recurse=False))
    calls = Counter(str(node.target) for node in graph.nodes if node.op == "call_module")
    read = {str(node.target).rpartition(".")[0] for node in graph.nodes if node.op == "get_attr"}

    def own(name: str) -> bool:
        m = modules[name]
        alone = all(owners[id(p)] == 1 for p in m.parameters(recurse=False))
        return calls[name] == 1 and aliases[id(m)] == 1 and name not in read and alone

    pairs = []
    for node in graph.nodes:
        source = node.args[0] if node.op == "call_module" and node.args else None
        if not isinstance(source, fx.Node) or source.op != "call_module" or len(source.users) != 1:
            continue
        layer, norm = modules[str(source.target)], modules[str(node.target)]
        base = base_of(layer, repadded=True)
        fits = base in _PAIRS and base_of(norm) is _PAIRS[base] and getattr(norm, "running_mean", None) is not None
        if fits and own(str(source.target)) and own(str(node.target)):
            pairs.append((str(source.target), str(node.target)))
    return pairs


@torch.no_grad()
def _fold(layer: Any, norm: Any) -> None:
    """Fold ``norm`` into ``layer``, in place; the arithmetic is float64."""
    zero = torch.zeros_like(norm.running_mean)
    gamma, beta, bias = (default if p is None else p for p, default in
                         ((norm.weight, zero + 1), (norm.bias, zero), (layer.bias, zero)))  # fmt: skip
    scale = gamma.double() / (norm.running_var.double() + norm.eps).sqrt()
    shift = (bias.double() - norm.running_mean.double()) * scale + beta.double()
    weight, grad = layer.weight, layer.weight.requires_grad
    folded = weight.double() * scale.view(-1, *[1] * (weight.ndim - 1))
    layer.weight = nn.Parameter(folded.to(weight.dtype), requires_grad=grad)
    layer.bias = nn.Parameter(shift.to(weight.dtype), requires_grad=grad)


def _checked_fold(
    network: nn.Module, example: Any, reference: Any, wrap: Callable[..., Frozen]
) -> tuple[nn.Module, int, float]:
    """The folded network, the number of folds and its error; or ``network``, 0, 0.0 when it is refused.

    Args:
        reference: the answers of ``network`` on the example.
    """
    folded, count = fold_batchnorm(network)
    if count == 0:
        return network, 0, 0.0
    if isinstance(example, Tensor) and isinstance(reference, Tensor):
        example, reference = example[:FOLD_SAMPLES], reference[:FOLD_SAMPLES]
    # CUDA convolutions round to TF32 by default, which is coarser than the error looked for: compare in
    # float64.
    double = example.is_cuda or any(p.dtype == torch.float64 for p in network.parameters())
    dtype = torch.float64 if double else torch.float32
    try:
        before = _answers(wrap(copy.deepcopy(network), dtype), example.to(dtype)) if double else reference
        error = _relative_error(_answers(wrap(copy.deepcopy(folded), dtype), example.to(dtype)), before)
    except (AttributeError, RuntimeError):  # a forward that reads what an identity does not have
        return network, 0, 0.0
    return (folded, count, error) if error <= FOLD_TOLERANCE else (network, 0, 0.0)


def _bf16_passes(answers: Any, reference: Any, task: Task) -> bool:
    close = _relative_error(answers, reference) <= BF16_TOLERANCE
    return close and task.agreement(answers, reference) >= BF16_AGREEMENT


def _answers(network: Frozen, example: Any) -> Any:
    """Answers to the example; large images go in parts, which make no larger activations than training does."""
    with torch.no_grad():  # a first operation in place must not reach the example
        found = [network(part.clone()) for part in _parts(example)]
    if isinstance(found[0], Tensor):
        return torch.cat(found)
    return type(found[0])(*map(torch.cat, zip(*found, strict=True)))  # a NamedTuple of tensors


def _parts(example: Any) -> Sequence[Any]:
    """The samples that a copy is checked on, divided where they are images."""
    if example.ndim != 4:
        return [example]
    return tuple(example.split(max(1, PART // (example.shape[-1] * example.shape[-2]))))


def _relative_error(answers: Any, reference: Any) -> float:
    """Largest difference over the largest value; of several tensors that of the worst."""
    pairs = zip(tensors_of(answers), tensors_of(reference), strict=True)
    return max(((a - b).abs().max() / b.abs().max().clamp_min(1e-30)).item() for a, b in pairs)


def _laid_out(network: nn.Module) -> nn.Module:
    layout = layout_of(network)
    for m in network.modules():
        if isinstance(m, nn.Conv2d | nn.ConvTranspose2d):
            m.to(memory_format=layout)
    return network


def _affine(
    renormalise: tuple[Normalisation, Normalisation] | None, dtype: torch.dtype
) -> tuple[Tensor | None, Tensor | None]:
    """(c, 1, 1) scale and shift from one normalisation to the other; (None, None) when they are equal."""
    if renormalise is None or renormalise[0] == renormalise[1]:
        return None, None
    (mean, std), (to_mean, to_std) = ((torch.tensor(v, dtype=torch.float64) for v in pair) for pair in renormalise)
    scale, shift = std / to_std, (mean - to_mean) / to_std
    return scale.to(dtype).view(-1, 1, 1), shift.to(dtype).view(-1, 1, 1)
