"""Networks tried as runs will use them, before any work: both modes, both orders in memory, float32, other batches.

What can be taken is brought to one form, with a note where a person should know of it. What cannot is refused by name.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from upcycle.core.ends import SAID, SQUASHED, Sigmoids, end_of
from upcycle.core.errors import UserError, one_line, require
from upcycle.core.models import Model, copy_of
from upcycle.core.norms import batchnorms
from upcycle.core.outputs import (
    Around,
    Contiguous,
    FromProbabilities,
    Logits,
    gives_probabilities,
    layout_of,
    mapped,
    parts_of,
    tensors_of,
    unwrapped,
)
from upcycle.core.spikes import sends_spikes
from upcycle.core.takes import Pictures
from upcycle.core.task import CLASSIFICATION
from upcycle.core.undisturbed import undisturbed
from upcycle.core.weights import require_finite

TOLERANCE = 1e-3
"""How far two answers to one image may lie apart, over the largest answer: kernels differ with the batch."""
_QUANTISED = ("torch.ao.nn.quantized", "torch.ao.nn.intrinsic.quantized", "torchao", "bitsandbytes")
_MENDED = "give the Python module that it was made from"


def probe(model: Model) -> tuple[Model, int]:
    """``model`` as runs use it: in float32, taking one object, answering with logits (b, k) in both modes; and k.

    Of another task it answers with what that asks for, and k are its outputs. Memory is in an order that it takes.

    The network itself stays as it is, with its weights, statistics, modes and all random states: a copy is tried. Where
    its number format is another, the result has a copy of it.

    Raises:
        UserError: a kind of network that cannot be used, inputs that it does not take, or answers that are no logits,
            differ from call to call, or depend on the other samples of a batch.
    """
    module = unwrapped(model.module)
    _require_kind(module, model.name)
    require_finite(module.state_dict(), model.name)
    trial = _Trial(replace(model, module=module))
    with undisturbed(trial.network):
        trial.formats()
        if sends_spikes(trial.network):  # which rounding would decide, and with them whether two answers are the same
            trial.network.double()
        trial.evaluation()
        trial.batches()
        trial.training()
        trial.scale()
    module = copy_of(module).float() if trial.cast else module
    for wrap in trial.wraps:
        module = _around(wrap, module)
    notes = dict.fromkeys((*model.notes, *(f"{note}." for note in trial.notes)))
    return replace(model, module=module, notes=tuple(notes)), trial.outputs


class _Trial:
    """A copy of a network that is tried, and what was found out so far.

    Attributes:
        network: the copy, in what has to be put around it.
        wraps: what that is, the innermost first.
        cast: whether its number format has to be changed.
        notes: what a person should know of it.
        answers: to two samples in evaluation mode.
        outputs: how many it has.
    """

    def __init__(self, model: Model) -> None:
        self.model, self.name = model, model.name
        self.noun = model.takes.noun
        self.an = f"{'an' if self.noun[0] in 'aeiou' else 'a'} {self.noun.removesuffix('s')}"
        self.classifier = model.task.name == CLASSIFICATION.name
        self.network = copy_of(model.module)
        self.wraps: list[Callable[[nn.Module], nn.Module]] = []
        self.notes: list[str] = []
        self.cast = False
        self.trained: Tensor | None = None  # what it answered in training mode, where that was a tensor
        try:
            self.network.train()
            chained = self.network.eval()
        except Exception as error:
            raise UserError(
                f"{self.name} cannot be put into training and evaluation mode ({one_line(error)}); {_MENDED}."
            ) from error
        if chained is not self.network:  # nothing that is called on the result would reach it
            self.put(Around)
        if model.takes.adapted(self.network) is not self.network:
            self.put(model.takes.adapted)

    def put(self, wrap: Callable[[nn.Module], nn.Module]) -> None:
        self.wraps.append(wrap)
        self.network = wrap(self.network)

    def answer(self, n: int, layout: torch.memory_format = torch.contiguous_format, contrast: float = 1.0) -> Any:
        """Let the copy answer to the first ``n`` samples of an example, images in memory of one order."""
        inputs = self.model.example(3)[:n]
        inputs = contrast * inputs if isinstance(inputs, Tensor) else inputs
        inputs = inputs.contiguous(memory_format=layout) if inputs.ndim == 4 else inputs
        like = next((t for t in self.network.state_dict().values() if t.is_floating_point()), None)
        if any(p.dim() == 4 for p in self.network.parameters()):
            self.network.to(memory_format=layout)
        return self.network(inputs if like is None else inputs.to(like))

    def formats(self) -> None:
        """Bring the copy to float32."""
        state = self.network.state_dict().values()
        others = {t.dtype for t in state if t.is_floating_point() and t.dtype != torch.float32}
        if not others:
            return
        named = " and ".join(sorted(str(d).removeprefix("torch.") for d in others))
        as_it_is = _tried(self.answer, 2)
        self.network.float()
        if as_it_is is not None and _tried(self.answer, 2) is None:
            raise UserError(
                f"{self.name} answers in {named} only, and not in float32, which it would be used in; does "
                "its forward cast to a number format by itself?"
            )
        self.cast = True
        self.notes.append(f"{self.name} comes in {named} and is used in float32")

    def evaluation(self) -> None:
        """Two samples in evaluation mode have to give logits, or what the task asks for, in what wrapping ever."""
        try:
            output = self.answer(2)
        except UserError:
            raise
        except Exception as error:
            takes, asked, remedy = self.model.takes, str(self.model.takes), ""
            if isinstance(takes, Pictures):
                channels, height, width = takes.shape
                asked = f"images with {channels} channels of {height} x {width} pixels"
                remedy = "; give the size that it expects"
            raise UserError(f"{self.name} does not take {asked} ({one_line(error)}){remedy}.") from error
        if self.classifier and not isinstance(output, Tensor):
            named = hasattr(output, "logits") or (isinstance(output, dict) and "logits" in output)
            first = isinstance(output, tuple | list) and output and isinstance(output[0], Tensor)
            if named or first:
                self.put(Logits)
                if not named and len(output) > 1:
                    self.notes.append(
                        f"{self.name} answers with {len(output)} things, of which the first is taken for its logits"
                    )
                output = self.answer(2)
        try:
            self.outputs = self.model.task.outputs(output, 2, self.noun)
        except UserError as error:
            raise UserError(f"{self.name} {error}") from None
        self.answers = output

    def batches(self) -> None:
        """A third sample, and memory in channels_last order, must not change what the first two give."""
        output = _tried(self.answer, 3, torch.channels_last)
        if output is not None and _same(_first(output, 2), self.answers):
            return
        try:
            output = self.answer(3)
        except Exception as error:
            raise UserError(
                f"{self.name} takes batches of two {self.noun} and not of three ({one_line(error)}); a network "
                "has to take batches of any size."
            ) from error
        again = self.answer(2)
        require(
            _same(again, self.answers),
            f"{self.name} gives {self.an} another answer when it is asked again, in "
            "evaluation mode too; is there a dropout that does not look at self.training?",
        )
        require(
            _length(output) == 3 and _same(_first(output, 2), self.answers),
            f"{self.name} gives {self.an} another answer where "
            f"other {self.noun} are in the batch, in evaluation mode too; is there a BatchNorm without running "
            "statistics?",
        )
        if self.noun == "images":
            self.contiguous()

    def contiguous(self) -> None:
        """Leave the order of memory as it is from here on."""
        self.network.to(memory_format=torch.contiguous_format)
        self.put(Contiguous)
        self.notes.append(
            f"{self.name} does not run in memory of channels_last order (a view of a feature map?), so "
            "it runs in contiguous memory, which may be slower"
        )

    def training(self) -> None:
        """Take the logits out of what the network answers in training mode; whether it trains is asked later."""
        if not self.classifier:
            return
        self.network.train()
        output = _tried(self.answer, 2, layout_of(self.network))
        if output is None and layout_of(self.network) == torch.channels_last:
            output = _tried(self.answer, 2)
            if output is not None:
                self.contiguous()
        if output is None or isinstance(output, Tensor):
            self.trained = output
            return
        self.network.eval()
        logits = self.answer(2)  # once more, since statistics have moved
        self.network.train()
        for m in self.network.modules():  # what draws numbers or looks at the batch, where that is a layer
            if not any(m.children()):
                m.training = False
        parts = {key: part for key, part in parts_of(self.answer(2)).items() if isinstance(part, Tensor)}
        fit = [key for key, part in parts.items() if part.shape == logits.shape]
        same = [key for key in fit if _same(parts[key], logits)]
        likely = [key for key in ("logits", 0) if key in fit] or (fit if len(fit) == 1 else [])
        if not (same or likely):
            return
        part = (same or likely)[0]
        self.put(lambda network: Logits(network, part))
        called = f"'{part}'" if isinstance(part, str) else f"number {part + 1}"
        why = "is" if same else "is taken to be"
        self.notes.append(
            f"{self.name} answers with {len(parts)} things in training mode; only {called}, which {why} "
            "its answer in evaluation mode, is trained with"
        )

    def scale(self) -> None:
        """Take logits back from probabilities, in the modes in which the network gives such."""
        if not self.classifier or any(isinstance(m, FromProbabilities) for m in self.network.modules()):
            return
        found: dict[str, str | None] = {}
        for mode in ("evaluation", "training"):
            self.network.train(mode == "training")
            found[mode] = self.ends_in()
        ends = [SQUASHED.get(end or "") for end in found.values()]
        if any(ends):
            self.put(lambda network: FromProbabilities(network, *ends))
        for mode, end in found.items():
            if end is not None and gives_probabilities(self.network):
                where = "" if end == "unknown" or len(set(found.values())) == 1 else f"in {mode} mode "
                self.notes.append(f"{self.name} {where}answers with {SAID[end]}")

    def ends_in(self) -> str | None:
        """Give what makes the answers in this mode, a key of ``SAID``, by images of several contrasts, or ``None``."""
        seen = self.trained if self.network.training else self.answers
        if seen is not None and end_of(seen) is None:
            return None
        found = set()
        for contrast in (1.0, -1.0, 30.0):
            output = _tried(self.answer, 3, torch.contiguous_format, contrast)
            found.add(end_of(output) if isinstance(output, Tensor) else None)
            if None in found or len(found) > 1:
                return None
        if "unknown" not in found:
            return found.pop()
        with Sigmoids() as sigmoids:
            output = _tried(self.answer, 3)
        if isinstance(output, Tensor) and any(p.shape == output.shape and _same(p, output) for p in sigmoids.outputs):
            return "sigmoid"
        # Of two numbers both lie there by chance too often, and BatchNorm keeps answers small in training.
        return None if self.network.training or self.outputs == 2 else "unknown"


# -- for training -----------------------------------------------------------------------------------------------------


def training_problems(
    model: Model, *, batch_size: int | None = None, own_weights: bool = True, mixed: bool = False
) -> list[str]:
    """List the reasons why a network cannot be trained, in words; it is tried on a copy.

    Args:
        batch_size: of the training.
        mixed: that is in bf16 where autocast says so.
        own_weights: those of its weights are meant that train now; otherwise all of them may.
    """
    name = model.name
    if own_weights and not any(p.requires_grad for p in model.module.parameters()):
        return [
            f"{name} has no weights that train (none of its parameters requires a gradient): call "
            "requires_grad_(True) on it"
        ]
    trial = copy_of(model.module)
    if not own_weights:
        trial.requires_grad_(True)
    layout = layout_of(trial)
    inputs = model.example(2)
    inputs = inputs.contiguous(memory_format=layout) if inputs.ndim == 4 else inputs
    two = f"two {model.takes.noun}"
    maps: list[int] = []
    for m in batchnorms(trial):
        m.register_forward_pre_hook(lambda _, given: maps.append(given[0].numel() // max(given[0].shape[1], 1)))
    with undisturbed(trial), torch.enable_grad():
        if any(p.dim() == 4 for p in trial.parameters()):
            trial.to(memory_format=layout)
        trial.train()
        try:
            output = trial(inputs.to(next(trial.parameters()).device))
        except Exception as error:
            return [f"{name} cannot be trained: in training mode it does not take {two} ({one_line(error)})"]
        try:
            model.task.outputs(output, 2)
        except UserError:
            found = tuple(output.shape) if isinstance(output, Tensor) else f"a {type(output).__name__}"
            asked = "logits" if model.task == CLASSIFICATION else f"what {model.task.name} asks for"
            return [f"{name} cannot be trained: in training mode {two} give {found} instead of {asked}"]
        parts = tensors_of(output)
        if not any(part.requires_grad for part in parts):
            return [f"{name} cannot be trained: no gradient passes its forward (is it under torch.no_grad?)"]
        try:
            torch.stack([part.float().sum() for part in parts]).sum().backward()
        except Exception as error:
            return [f"{name} cannot be trained: its backward fails ({one_line(error)})"]
        if mixed and _tried(_mixed_step, trial, inputs) is None:
            return [f"{name} cannot be trained in bf16, though in float32: give --precision 32-true"]
    if batch_size == 2 and 2 in maps and inputs.ndim == 4:
        return [
            f"{name} normalises maps of one pixel by BatchNorm, which makes the same of any two images: take a "
            "larger batch_size than 2"
        ]
    return []


# -- kinds ------------------------------------------------------------------------------------------------------------


def _require_kind(module: nn.Module, name: str) -> None:
    """Refuse, by its name, what is no network of Python code with ordinary numbers as weights."""
    for m in module.modules():
        if isinstance(m, torch.jit.ScriptModule):
            raise UserError(f"{name} is TorchScript, which can be neither cut nor trained here; {_MENDED}.")
        if any(kind.__module__.startswith("torch.export") for kind in type(m).__mro__):
            raise UserError(f"{name} is a program of torch.export, which has one mode only; {_MENDED}.")
        if type(m).__module__.startswith(_QUANTISED):
            raise UserError(f"{name} is quantised ({type(m).__name__}); give the network that it was quantised from.")
    for key, tensor in (*module.named_parameters(), *module.named_buffers()):
        if is_lazy(tensor):
            raise UserError(
                f"{name} has lazy layers that have not seen an image yet ({key}); call it with one batch first."
            )
        if tensor.is_meta:
            raise UserError(
                f"{name} has no weights, only their shapes ({key} is on the meta device); build it on the "
                "CPU, or fill it with to_empty and load_state_dict."
            )
        integer = isinstance(tensor, nn.Parameter) and not (tensor.is_floating_point() or tensor.is_complex())
        if integer or tensor.is_quantized or type(tensor).__module__.startswith(_QUANTISED):
            raise UserError(
                f"{name} is quantised ({key} is {str(tensor.dtype).removeprefix('torch.')}); give the "
                "network that it was quantised from."
            )


# -- small ------------------------------------------------------------------------------------------------------------


def _mixed_step(network: nn.Module, inputs: Any) -> Tensor:
    """The loss of a training step in mixed precision, after its backward."""
    device = next(network.parameters()).device
    with torch.autocast(device.type, torch.bfloat16):
        loss = torch.stack([part.float().sum() for part in tensors_of(network(inputs.to(device)))]).sum()
    loss.backward()
    return loss


def _tried(function: Callable[..., Any], *arguments: Any) -> Any:
    """Make a call; ``None`` if it raises anything but that memory ran out."""
    try:
        return function(*arguments)
    except Exception as error:
        one_line(error)  # which says so
        return None


def _first(answer: Any, n: int) -> Any:
    """The answers to the first ``n`` samples."""
    return mapped(lambda part: part[:n], answer)


def _length(answer: Any) -> int:
    """The number of samples that it is an answer to."""
    return min((len(part) for part in tensors_of(answer)), default=0)


def _same(a: Any, b: Any) -> bool:
    """Whether two answers are the same but for rounding."""
    if not isinstance(a, Tensor) or not isinstance(b, Tensor):
        pairs = list(zip(tensors_of(a), tensors_of(b), strict=False))
        return bool(pairs) and all(_same(*pair) for pair in pairs)
    if a.shape != b.shape:
        return False
    scale = float(b.abs().nan_to_num(posinf=0).max()) if b.numel() else 0.0
    return torch.allclose(a, b, rtol=0, atol=TOLERANCE * scale + 1e-12, equal_nan=True)


def _around(wrap: Callable[[nn.Module], nn.Module], module: nn.Module) -> nn.Module:
    """``module`` in what is put around it, both in the mode that it is in."""
    made = wrap(module)
    made.training = module.training
    return made
