"""Inputs of a run: the digest of each thing that goes in, by its name in a sentence, in the plural.

Nothing is read twice in a process: the digest of a tensor or a network is kept for as long as nothing writes to it.
"""

from __future__ import annotations

import json
import weakref
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from upcycle.core.models import Model
from upcycle.core.read import bytes_of
from upcycle.core.store import digest_of, tensor_digest
from upcycle.core.takes import described

_tensors: dict[int, tuple[weakref.ref[Tensor], int, str]] = {}  # by identity: tensors have an equality of their own
_networks: weakref.WeakKeyDictionary[nn.Module, tuple[Any, str]] = weakref.WeakKeyDictionary()


def digests(thing: Any, name: str) -> dict[str, str]:
    """The digests of a network, data, a predictor, or what else a method is given.

    Args:
        thing: with ``digests()`` or ``digest`` it says itself what it is; ``None`` is something too.
        name: of the role or the field that it stands in.
    """
    if isinstance(thing, tuple | list):
        return {key: value for i, one in enumerate(thing, 1) for key, value in digests(one, f"{name} {i}").items()}
    if isinstance(thing, Model):
        facts: list[Any] = [thing.input_shape, thing.mean, thing.std, thing.classes]
        if not thing.ordinary:
            facts += [described(thing.takes), thing.task.name, thing.task.plain()]
        facts += [read] if (read := thing.reading.record()) else []
        return {
            f"the weights of {name}": of_network(thing.module),
            f"the classes and inputs of {name}": of_plain(facts),
        }
    if isinstance(thing, nn.Module):
        return {f"the weights of {name}": of_network(thing)}
    if isinstance(thing, Tensor):
        return {f"the values of {name}": of_tensor(thing)}
    if hasattr(thing, "digests"):
        return {f"{key} of {name}": value for key, value in thing.digests().items()}
    about = [getattr(thing, key, None) for key in ("digest", "name", "classes")]
    found = {f"the contents of {name}": of_plain([type(thing).__name__, *about])}
    inside = getattr(thing, "model", None)
    return found | (digests(inside, name) if isinstance(inside, Model | nn.Module) else {})


def of_plain(value: Any) -> str:
    """The digest of plain data."""
    return digest_of(json.dumps(value, sort_keys=True, default=str).encode())


def of_file(path: Path) -> str:
    """The digest of a file."""
    return digest_of(bytes_of(path))


def of_options(options: Mapping[str, Any]) -> dict[str, str]:
    """The digests of the files that options name, by a sentence's name for each."""
    named = {name: Path(value) for name, value in options.items() if isinstance(value, str | Path)}
    return {f"the contents of --{name}": of_file(path) for name, path in named.items() if path.is_file()}


def of_tensor(tensor: Tensor) -> str:
    """The digest of a tensor: type, shape and values."""
    key, version = id(tensor), 0 if tensor.is_inference() else tensor._version
    reference, before, digest = _tensors.get(key, (None, 0, ""))
    if reference is None or reference() is not tensor or before != version:
        digest = tensor_digest({"": tensor})
        _tensors[key] = (weakref.ref(tensor, lambda _: _tensors.pop(key, None)), version, digest)
    return digest


def of_network(module: nn.Module) -> str:
    """The digest of a network's weights and buffers."""
    state = {name: t for name, t in module.state_dict().items() if isinstance(t, Tensor) and t.layout == torch.strided}
    marks = [(name, t.data_ptr(), 0 if t.is_inference() else t._version) for name, t in state.items()]
    before, digest = _networks.get(module, (None, ""))
    if before != marks:
        digest = tensor_digest(state)
        _networks[module] = (marks, digest)
    return digest
