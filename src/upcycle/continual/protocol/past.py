"""The past of an extended network: what the next stream needs beside its weights."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from upcycle.core import store


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

    @classmethod
    def load(cls, directory: Path) -> Past:
        """Read it again.

        Raises:
            UserError: nothing there, or damaged.
        """
        value = store.unsealed(directory / "state.json")
        return cls(
            method=value["method"],
            classes=tuple(value["classes"]),
            streams=value["streams"],
            tasks=tuple(tuple(c) for c in value["tasks"]),
            state=store.load_state(directory / "state.safetensors", value["state"]),
        )
