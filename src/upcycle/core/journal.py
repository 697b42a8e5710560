"""The truth about a run that its directory holds: configuration, finished stages, the last save point, figures.

``config.yaml`` records what was asked for, ``checkpoints/`` holds states, and its ``index.json`` names those that
count. A file is written first and named afterwards, so that a process killed at any moment leaves a whole truth.
"""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import Any

import torch
import yaml

from upcycle.core import store
from upcycle.core.errors import UserError, require


class Journal:
    """What is kept of a run, in memory and in its directory.

    Args:
        directory: where everything goes; ``None`` writes nothing.
        writes: this process is the first, which alone writes.

    Attributes:
        stages: by path, where the result of each finished stage lies.
        current: the last save point of an unfinished stage: its path, file, epoch, step and updates.
        rows: of ``metrics.csv``: stage, epoch, updates, name and value.
        notes: sentences that the person must read.
    """

    def __init__(self, directory: Path | None, writes: bool) -> None:
        self.directory = directory
        self.writes = writes and directory is not None
        self.stages: dict[str, dict[str, Any]] = {}
        self.current: dict[str, Any] | None = None
        self.rows: list[list[Any]] = []
        self.notes: list[str] = []
        self._files: dict[str, dict[str, Any]] = {}  # digest records by name
        self._saves = 0

    def open(self, resume: bool, precision: str, world_size: int, config: dict[str, Any] | None) -> dict[str, Any]:
        """Begin the directory, or go on from what it holds.

        Args:
            resume: go on where there is something to go on from.
            precision: the number format to train in.
            world_size: number of processes.
            config: what is asked for; a run that goes on must have been begun with the same.

        Returns:
            what else decides the bits: precision, threads and number of processes, of the begun run where it goes on.

        Raises:
            UserError: other options or another number of processes than it was begun with, or damage.
        """
        machine = {"precision": precision, "threads": torch.get_num_threads(), "world_size": world_size}
        if self.directory is None:
            return machine
        file = self.directory / "config.yaml"
        if self.writes:
            store.clear_temporary(self.directory)
        if resume and file.exists():
            recorded = yaml.safe_load(file.read_text())
            begun = {**machine, **recorded.pop("machine", {})}
            require(
                begun["world_size"] == world_size,
                f"{self.directory} was begun on {begun['world_size']} processes, so it goes on with as many, not "
                f"{world_size}.",
            )
            torch.set_num_threads(begun["threads"])
            if config is not None:
                _require_same(recorded, config, file)
            self._read()
            return begun
        if self.writes:
            text = yaml.safe_dump({**(config or {}), "machine": machine}, sort_keys=False, allow_unicode=True)
            store.write_atomic(file, text.encode())
            self._commit()  # an index from the start: without one, a stray checkpoint is damage
        return machine

    def recall(self, path: str) -> tuple[Any, int]:
        """What the finished stage ``path`` left, and the updates until its end."""
        found = self.stages[path]
        result = self._load(found["file"]) if found["file"] else store.unpack(found["value"], {})
        return result, found["updates"]

    def finish(self, path: str, result: Any, updates: int) -> None:
        """Keep what a stage left, in place of its save point and of the stages inside it."""
        skeleton, tensors = store.pack(result)
        for key in [key for key in self.stages if key.startswith(path + "/")]:  # what is inside has served
            self._files.pop(self.stages.pop(key)["file"] or "", None)
        if self.current is not None and (self.current["stage"] + "/").startswith(path + "/"):
            self._files.pop(self.current["file"], None)
            self.current = None
        if self.writes:
            kept = {"file": self._store(result), "value": None} if tensors else {"file": None, "value": skeleton}
            self.stages[path] = {**kept, "updates": updates}
            self._commit()

    def save(self, path: str, state: dict[str, Any], **where: int) -> None:
        """Replace the save point, on the process that writes.

        Args:
            path: of the unfinished stage.
            state: what it registered.
            where: epoch, step and updates.
        """
        old = self.current["file"] if self.current else ""
        self.current = {"stage": path, "file": self._store(state), **where}
        self._files.pop(old, None)
        self._commit()

    def saved(self, path: str) -> tuple[dict[str, Any], dict[str, int]] | None:
        """The state and the place (epoch, step, updates) of the save point, if it is one of the stage ``path``."""
        if self.current is None or self.current["stage"] != path:
            return None
        return self._load(self.current["file"]), self.current

    def write_metrics(self) -> None:
        """Write ``metrics.csv``."""
        if self.writes:
            assert self.directory is not None
            text = io.StringIO()
            csv.writer(text, lineterminator="\n").writerows([["stage", "epoch", "step", "name", "value"], *self.rows])
            store.write_atomic(self.directory / "metrics.csv", text.getvalue().encode())

    @property
    def _folder(self) -> Path:
        assert self.directory is not None
        return self.directory / "checkpoints"

    def _read(self) -> None:
        assert self.directory is not None
        index = self._folder / "index.json"
        if not index.exists():
            stray = any(self._folder.glob("*.safetensors"))
            require(not stray, f"{index} is missing, so {self.directory} cannot go on; start anew in another --out.")
            self._commit()
            return
        value = store.unsealed(index)
        self._files, self.stages, self.current = value["files"], value["stages"], value["current"]
        self._saves, self.notes = value["saves"], value["notes"]
        log = (self.directory / "metrics.csv").read_bytes() if (self.directory / "metrics.csv").exists() else b""
        self.rows = [list(row) for row in csv.reader(io.StringIO(log.decode()))][1 : value["rows"] + 1]
        self.write_metrics()

    def _commit(self) -> None:
        """Make the newest files the truth: replace the index, then drop what it no longer names."""
        if not self.writes:
            return
        self.write_metrics()
        value = {
            "format": 1,
            "files": self._files,
            "stages": self.stages,
            "current": self.current,
            "rows": len(self.rows),
            "saves": self._saves,
            "notes": self.notes,
        }
        store.write_json(self._folder / "index.json", store.sealed(value))
        for path in self._folder.iterdir():
            if path.name != "index.json" and path.name not in self._files:
                path.unlink()

    def _store(self, state: Any) -> str:
        """Write a state beside the others; it counts only once the index names it."""
        self._saves += 1
        name = f"{self._saves:06d}.safetensors"
        self._files[name] = store.save_state(self._folder / name, state)
        return name

    def _load(self, name: str) -> Any:
        return store.load_state(self._folder / name, self._files[name])


def require_same_config(file: Path, config: dict[str, Any]) -> None:
    """Refuse to go on with other options than a run began with, before any work; a new run has no file.

    Raises:
        UserError: naming the option and both values.
    """
    if file.exists():
        recorded = yaml.safe_load(file.read_text())
        for key in ("machine", "arm"):
            recorded.pop(key, None)
        _require_same(recorded, config, file)


def _require_same(recorded: dict[str, Any], config: dict[str, Any], file: Path) -> None:
    """Refuse to go on with other options; where the directory lies is none of them."""
    for key in [*recorded, *(k for k in config if k not in recorded)]:
        if key != "out" and recorded.get(key) != config.get(key):
            raise UserError(
                f"{file} has {key}: {recorded.get(key)!r}, but this command says {config.get(key)!r}; "
                "a resumed run keeps its configuration. Use another --out for a new one."
            )
