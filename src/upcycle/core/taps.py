"""Named intermediate features of any module, read and replaced through forward hooks."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from upcycle.core.errors import UserError, unknown
from upcycle.core.undisturbed import undisturbed

if TYPE_CHECKING:
    from upcycle.core.models import Model


class _Reached(BaseException):
    """Ends a forward in which every tap has been read; no network catches it."""


class Call(NamedTuple):
    """One call of a submodule while its network saw a batch."""

    name: str
    module: nn.Module
    input: Any  # its first positional argument
    output: Any


def observed(
    model: Model, images: Tensor | None = None, *, kind: type[nn.Module] | tuple[type[nn.Module], ...] = nn.Module
) -> list[Call]:
    """Every call of a submodule of ``kind`` in one forward, in the order in which they end; the network's own is last.

    The network is in evaluation mode meanwhile and unchanged afterwards; no gradient is recorded.

    Args:
        model: its ``module`` is run.
        images: a batch for it; if not given, :meth:`Model.example` on its device and in its number format.
        kind: of the submodules wanted.
    """
    calls: list[Call] = []
    network = model.module
    wanted = [(name, m) for name, m in network.named_modules() if name and isinstance(m, kind)]
    hooks = [
        m.register_forward_hook(lambda m, i, out, name=name: calls.append(Call(name, m, i[0] if i else None, out)))
        for name, m in wanted
    ]
    if images is None:
        images = model.example().to(next(network.parameters(), torch.zeros(())))
    try:
        with undisturbed(network):
            out = network(images)
    finally:
        for hook in hooks:
            hook.remove()
    return [*calls, Call("", network, images, out)]


class Taps:
    """Captures what flows through named submodules while the ``with`` block lasts.

    >>> with Taps(net, ["layer1", "layer2.0"]) as taps:  # doctest: +SKIP
    ...     logits = net(images)
    ...     features = taps["layer1"]

    Tensors keep their graph. A module that is called several times in a forward keeps its last call. Where a
    module gives a tuple or a list, its first element is meant. The hooks go when the block ends, also by an
    exception; the tensors stay readable. A :class:`~upcycle.core.frozen.Frozen` network is tapped as
    ``Taps(f.network, ...)``; its convolutions give the values *after* a BatchNorm that was folded into them,
    unless made with ``keep_bn``.

    Args:
        module: any network.
        names: submodules, as ``module.named_modules()`` calls them; ``""`` is the network itself.
        kind: capture what these submodules give ("output") or their first positional argument ("input").
        apart: of each output captured the network goes on with a copy, so that what overwrites its input, as an
            activation does in place, leaves the captured tensor as it was given.
        replace: for each name, a function whose result takes the place of that submodule's output. The rest
            of the network, and an output tap of the same name, see the replacement.
        stop: end the forward once every tap has been read, so that nothing behind them runs. The call of the network
            gives nothing then, and the block ends there. No compiled network can be stopped.

    Raises:
        UserError: a name that the module does not have; on reading, a name that is not tapped or was not
            called.
    """

    def __init__(
        self,
        module: nn.Module,
        names: Iterable[str] = (),
        *,
        kind: Literal["output", "input"] = "output",
        apart: bool = False,
        replace: Mapping[str, Callable[[Tensor], Tensor]] | None = None,
        stop: bool = False,
    ) -> None:
        self.names = tuple(names)
        self._replace = dict(replace or {})
        self._modules = {name: _named(module, name) for name in (*self.names, *self._replace)}
        self._kind, self._apart, self._stop = kind, apart, stop
        self._handles: list[RemovableHandle] = []
        self._captured: dict[str, Tensor] = {}

    def __enter__(self) -> Taps:
        if self._stop:
            self._captured.clear()
        # Replacements first: PyTorch hands each hook the output of the one before.
        for name, function in self._replace.items():
            self._handles.append(self._modules[name].register_forward_hook(self._replacer(name, function)))
        for name in self.names:
            module = self._modules[name]
            if self._kind == "output":
                self._handles.append(module.register_forward_hook(self._output_catcher(name)))
            else:
                self._handles.append(module.register_forward_pre_hook(self._input_catcher(name)))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool | None:
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        return self._stop and kind is _Reached

    def __getitem__(self, name: str) -> Tensor:
        if name not in self.names:
            raise unknown("tap", name, self.names)
        if name not in self._captured:
            raise UserError(f"Submodule '{name}' was not called in the forward, so there is nothing to read from it.")
        return self._captured[name]

    def _capture(self, name: str, value: Any) -> None:
        self._captured[name] = _tensor(name, value)
        if self._stop and self._captured.keys() >= set(self.names):
            raise _Reached

    def _replacer(self, name: str, function: Callable[[Tensor], Tensor]) -> Callable[..., Any]:
        def hook(module: nn.Module, args: Any, output: Any) -> Any:
            return _with(output, function(_tensor(name, output)))

        return hook

    def _output_catcher(self, name: str) -> Callable[..., Any]:
        def hook(module: nn.Module, args: Any, output: Any) -> Any:
            self._capture(name, output)
            return _with(output, self._captured[name].clone()) if self._apart else None

        return hook

    def _input_catcher(self, name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: Any) -> None:
            self._capture(name, args)

        return hook


def _named(module: nn.Module, name: str) -> nn.Module:
    """The submodule of that name; the names of all, of which there can be hundreds, are asked for only in an error."""
    found: nn.Module | None = module
    for part in name.split(".") if name else ():
        found = None if found is None else found._modules.get(part)
    if found is None:
        near = difflib.get_close_matches(name, dict(module.named_modules(remove_duplicate=False)), n=1, cutoff=0.5)
        top = [child for child, _ in module.named_children()]
        raise unknown(f"submodule of {type(module).__name__}", name, dict.fromkeys([*near, *top]))
    return found


def _tensor(name: str, value: Any) -> Tensor:
    """``value``, or its first element, when that is a tensor."""
    if isinstance(value, tuple | list) and value:
        value = value[0]
    if not isinstance(value, Tensor):
        raise UserError(f"Submodule '{name}' passes a {type(value).__name__}, not a tensor; tap one inside it.")
    return value


def _with(output: Any, tensor: Tensor) -> Any:
    """An output with another tensor in the place of its tensor, or of its first element."""
    return tensor if isinstance(output, Tensor) else type(output)((tensor, *output[1:]))
