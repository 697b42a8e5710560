"""The past of an extended network: what the next stream needs beside its weights."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypedDict

from upcycle.core import store
from upcycle.core.errors import require
from upcycle.core.inputs import of_plain
from upcycle.core.read import Count


class Memory(TypedDict):
    """``state.json``: what is remembered, and the record of the file with the tensors."""

    format: Literal[1]
    method: str
    classes: list[str]
    tasks: list[list[Count]]
    streams: list[dict[str, Any]]
    state: store.Record


@dataclass(kw_only=True)
class Past:
    """The things an extended network must bring to be extended again: tensors and JSON data.

    Args:
        method: the name of the method that learnt it.
        classes: the names of the network's outputs.
        tasks: the columns of each task that was learnt.
        streams: the record of each stream so far, see :meth:`Stream.record`.
        state: the state that the method keeps, by name.
    """

    method: str
    classes: tuple[str, ...]
    tasks: tuple[tuple[int, ...], ...]
    streams: list[dict[str, Any]] = field(default_factory=list)
    state: dict[str, Any] = field(default_factory=dict)

    def save(self, directory: Path) -> None:
        """Write ``state.safetensors`` and ``state.json`` into ``directory``, whole or not at all."""
        value = {
            "format": 1,
            "method": self.method,
            "classes": list(self.classes),
            "tasks": [list(c) for c in self.tasks],
            "streams": self.streams,
            "state": store.save_state(directory / "state.safetensors", self.state),
        }
        store.write_json(directory / "state.json", store.sealed(value))

    @property
    def digest(self) -> str:
        """SHA-256 (hex) of all of it."""
        skeleton, tensors = store.pack(self.state)
        return of_plain([self.classes, self.tasks, self.streams, skeleton, store.tensor_digest(tensors)])

    @classmethod
    def load(cls, directory: Path) -> Past:
        """Read it again.

        Raises:
            UserError: nothing there, or damaged.
        """
        file = directory / "state.json"
        value = store.unsealed(file, Memory)
        known = all(column < len(value["classes"]) for columns in value["tasks"] for column in columns)
        require(known, f"{file} is damaged: a task has a class that is none of its {len(value['classes'])}.")
        state = store.load_state(directory / "state.safetensors", value["state"])
        require(isinstance(state, dict), f"{directory / 'state.safetensors'} is damaged: it holds no state by names.")
        return cls(
            method=value["method"],
            classes=tuple(value["classes"]),
            streams=value["streams"],
            tasks=tuple(tuple(columns) for columns in value["tasks"]),
            state=state,
        )
