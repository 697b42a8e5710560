"""The truth about a run that its directory holds: configuration, finished stages, the last save point, figures.

``config.yaml`` records what was asked for, ``checkpoints/`` holds states, and its ``index.json`` names those that
count. A file is written first and named afterwards, so that a process killed at any moment leaves a whole truth.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Callable, Mapping, Set
from pathlib import Path
from typing import Annotated, Any, Final, Literal, NotRequired, TypedDict

import torch
import yaml
from msgspec import Meta
from torch import Tensor

from upcycle.core import blocks, lock, patterns, store
from upcycle.core.errors import UserError, require
from upcycle.core.progress import Transcript
from upcycle.core.read import Count, Digest, checked, contents, parsed

FORMAT: Final = 2
StateName = Annotated[str, Meta(pattern=r"^\d{6,12}\.safetensors$")]
WRITTEN = (
    "config.yaml",
    "metrics.csv",
    "result.json",
    "report.html",
    "synthesis.json",
    "diagnosis.json",
    "model",
    "pool",
)
"""Names in a run directory itself that a killed process can have left half-written."""


class Machine(TypedDict):
    """Facts of the machine that decide the bits beside the options; they stand in ``config.yaml``."""

    precision: Literal["32-true", "bf16-mixed", "64-true"]
    threads: Annotated[int, Meta(ge=1, le=4096)]
    world_size: Annotated[int, Meta(ge=1, le=65536)]


class Kept(TypedDict):
    """Where the result of a finished stage lies: in a file, or as the skeleton of a state without tensors."""

    file: StateName | None
    value: Any
    updates: Count


class Point(TypedDict):
    """The save point of an unfinished stage; of its large tensors, each block of rows has a file of its own."""

    stage: str
    blocks: NotRequired[dict[str, StateName]]
    file: StateName
    epoch: Count
    step: Count
    updates: Count


class Text(TypedDict):
    """So many bytes from the start of a file, and their digest."""

    bytes: Count
    sha256: Digest


class Index(TypedDict):
    """``checkpoints/index.json``: what of a run directory counts, and what the run was begun with."""

    format: Literal[2]
    config: Digest
    metrics: Text
    inputs: dict[str, Digest]
    code: dict[str, Digest]
    files: dict[StateName, store.Record]
    stages: dict[str, Kept]
    current: Point | None
    rows: Count
    saves: Count
    notes: list[str]


class Journal:
    """The state of a run that is kept, in memory and in its directory.

    Args:
        directory: where everything goes; ``None`` writes nothing.
        writes: this process is the first, which alone writes.

    Attributes:
        stages: by path, where the result of each finished stage lies.
        current: the last save point of an unfinished stage: its path, file, epoch, step and updates.
        rows: of ``metrics.csv``: stage, epoch, updates, name and value.
        notes: sentences that the person must read.
        transcript: what was said and how each epoch went, in ``log.txt``.
    """

    def __init__(self, directory: Path | None, writes: bool) -> None:
        self.directory = directory
        self.writes = writes and directory is not None
        self.stages: dict[str, Kept] = {}
        self.current: Point | None = None
        self.rows: list[list[Any]] = []
        self.notes: list[str] = []
        self.transcript = Transcript(directory if self.writes else None)
        self._files: dict[str, store.Record] = {}  # digest records by name
        self._blocks: dict[str, tuple[str, str]] = {}  # of the save point: digest and file by name
        self._saves = 0
        self._config = ""  # the digest of config.yaml
        self._inputs: dict[str, str] = {}  # digests of what the run was begun with
        self._code: dict[str, str] = {}
        self._hold: lock.Hold | None = None

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
            UserError: other options or another number of processes than it was begun with, damage, or another process
                that writes there.
        """
        machine = {"precision": precision, "threads": torch.get_num_threads(), "world_size": world_size}
        if self.directory is None:
            return machine
        if self.writes:
            self._hold = lock.Hold(self.directory)
        try:
            return self._open(self.directory, resume, machine, config)
        except BaseException:
            self.close()
            raise

    def _open(
        self, directory: Path, resume: bool, machine: dict[str, Any], config: dict[str, Any] | None
    ) -> dict[str, Any]:
        file = directory / "config.yaml"
        for folder in (self._folder, directory / "pictures"):
            require(
                not folder.is_symlink(),
                f"{folder} is a symbolic link, and a run writes and deletes in its own directory only: "
                f"put the folder itself there, or link {directory} as a whole.",
            )
        if self.writes:
            store.clear_temporary(directory, WRITTEN, locked=True)
            store.clear_temporary(self._folder, locked=True)
            store.clear_temporary(directory / "pictures", locked=True)
        if resume and file.exists():
            content = contents(file)
            recorded, begun = _configuration(content, file)
            if (index := self._index()) is not None and store.digest_of(content) != index["config"]:
                raise UserError(
                    f"{file} was changed since the run began, so it does not say what was run: put it back as it was. "
                    "To run with other options, give a changed copy with --config and another --out."
                )
            world_size, begun = machine["world_size"], {**machine, **begun}
            require(
                begun["world_size"] == world_size,
                f"{directory} was begun on {begun['world_size']} processes, so it goes on with as many, not "
                f"{world_size}.",
            )
            if config is not None:
                _require_same(recorded, config, file)
            torch.set_num_threads(begun["threads"])
            self._config = store.digest_of(content)
            if index is None:
                self._commit()
            else:
                self._read(index)
            return begun
        text = yaml.safe_dump({**(config or {}), "machine": machine}, sort_keys=False, allow_unicode=True)
        self._config = store.digest_of(text.encode())
        if self.writes:
            there = [path for path in (file, self._folder) if path.exists()]
            require(not there, f"{directory} holds a run already: go on with it (resume), or choose another directory.")
            store.write_atomic(file, text.encode())
            self._commit()  # an index from the start: without one, a stray checkpoint is damage
        return machine

    def begin(self, inputs: Mapping[str, str], code: Mapping[str, str]) -> None:
        """Record what the run is begun with, or compare it with what it was begun with.

        Args:
            inputs: the digest of each thing that goes in, by its name in a sentence, in the plural.
            code: the digest of each file of code that networks or the method come from; a change is only noted.

        Raises:
            UserError: something differs, naming it.
        """
        if not self._inputs:
            self._inputs, self._code = dict(inputs), dict(code)
            self._commit()
            return
        for file in code:
            note = f"{file} was changed after this run began, so not all of it was made by the same code."
            if self._code.get(file, code[file]) != code[file] and note not in self.notes:
                self.notes.append(note)
        changed = [name for name in {**self._inputs, **inputs} if self._inputs.get(name) != inputs.get(name)]
        if changed:
            *most, last = changed if len(changed) <= 4 else [*changed[:3], f"{len(changed) - 3} more"]
            named = f"{', '.join(most)} and {last}" if most else last
            raise UserError(
                f"{named[:1].upper()}{named[1:]} differ from those that the run in {self.directory} began with; "
                "put back what it began with, or start anew in another --out."
            )

    def close(self) -> None:
        """Let other processes write the directory."""
        if self._hold is not None:
            self._hold.release()

    def recall(self, path: str, like: Any = None) -> tuple[Any, int]:
        """Read the result of the finished stage ``path``, and the updates until its end.

        Args:
            like: the pattern that the result must fit, see :mod:`upcycle.core.patterns`.
        """
        found = self.stages[path]
        file = self._folder / (found["file"] or "index.json")
        state = self._load(file.name) if found["file"] else store.unpacked(found["value"], {}, file)
        if like is not None:
            patterns.check(state, like, file, path)
        return state, found["updates"]

    def finish(self, path: str, result: Any, updates: int) -> None:
        """Keep what a stage left, in place of its save point and of the stages inside it."""
        skeleton, tensors = store.pack(result)
        for key in [key for key in self.stages if key.startswith(path + "/")]:  # what is inside has served
            self._files.pop(self.stages.pop(key)["file"] or "", None)
        if self.current is not None and (self.current["stage"] + "/").startswith(path + "/"):
            self._drop(self.current)
            self.current, self._blocks = None, {}
        if self.writes:
            file, value = None, skeleton
            if tensors:
                file, value = self._write(lambda at: store.save_packed(at, skeleton, tensors)), None
            self.stages[path] = {"file": file, "value": value, "updates": updates}
            self._commit()

    def save(self, path: str, state: dict[str, Any], *, epoch: int, step: int, updates: int) -> None:
        """Replace the save point, on the process that writes; blocks of large tensors that are the same stay.

        Args:
            path: of the unfinished stage.
            state: what it registered.
            epoch, step, updates: where it stands.
        """
        skeleton, tensors = store.pack(state, copy=False)
        small, large = blocks.split_off(tensors)
        self._blocks = {name: self._block(name, rows) for name, rows in large.items()}
        file, old = self._write(lambda at: store.save_packed(at, skeleton, small)), self.current
        named = {name: block for name, (_, block) in self._blocks.items()}
        self.current = {"stage": path, "blocks": named, "file": file, "epoch": epoch, "step": step, "updates": updates}
        self._drop(old, but=set(named.values()))
        self._commit()

    def saved(self, path: str) -> tuple[dict[str, Any], Point] | None:
        """The state and the place (epoch, step, updates) of the save point, if it is one of the stage ``path``."""
        if self.current is None or self.current["stage"] != path:
            return None
        file = self._folder / self.current["file"]
        rows: dict[str, Tensor] = {}
        for name, block in self.current.get("blocks", {}).items():
            place = self._folder / block
            rows |= store.parse_tensors(store.verified(place, self._files[block]), place)
            require(name in rows, f"{place} is damaged: it does not hold {name}.")
            self._blocks[name] = (store.tensor_digest({name: rows[name]}), block)
        state = store.load_state(file, self._files[self.current["file"]], blocks.put_together(rows))
        require(isinstance(state, dict), f"{file} is damaged: it holds no state of a run.")
        return state, self.current

    def write_metrics(self) -> None:
        """Write ``metrics.csv``."""
        if self.writes:
            assert self.directory is not None
            store.write_atomic(self.directory / "metrics.csv", self._metrics())

    def _metrics(self) -> bytes:
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerows([["stage", "epoch", "step", "name", "value"], *self.rows])
        return text.getvalue().encode()

    @property
    def _folder(self) -> Path:
        assert self.directory is not None
        return self.directory / "checkpoints"

    def _index(self) -> Index | None:
        """Read the index; ``None`` where the run was stopped before it had one."""
        file = self._folder / "index.json"
        if not file.exists():
            stray = any(self._folder.glob("*.safetensors"))
            require(not stray, f"{file} is missing, so {self.directory} cannot go on; start anew in another --out.")
            return None
        found = store.unsealed(file, dict[str, Any])
        if found.get("format") != FORMAT:
            raise UserError(
                f"{file} has format {found.get('format')}, and this version of upcycle goes on with format {FORMAT}: "
                "use the version that began it, or start anew in another --out."
            )
        index = checked(found, Index, file)
        used = [kept["file"] for kept in index["stages"].values()]
        used += _files_of(index["current"]) if index["current"] else []
        lost = [name for name in used if name is not None and name not in index["files"]]
        require(not lost, f"{file} is damaged: it names {''.join(lost[:1])} without its digest.")
        return index

    def _read(self, index: Index) -> None:
        assert self.directory is not None
        self._files, self.stages, self.current = index["files"], index["stages"], index["current"]
        self._saves, self.notes = index["saves"], index["notes"]
        self._inputs, self._code = index["inputs"], index["code"]
        file, known = self.directory / "metrics.csv", index["metrics"]
        log = contents(file)[: known["bytes"]] if file.exists() else b""
        if store.digest_of(log) != known["sha256"]:
            raise UserError(
                f"{file} was changed or damaged since the run wrote it, so the run cannot go on with it: "
                "put it back as it was, or start anew in another --out."
            )
        try:
            self.rows = [list(row) for row in csv.reader(io.StringIO(log.decode(), newline=""))][1:]
        except (csv.Error, UnicodeDecodeError) as error:
            raise UserError(f"{file} is damaged: {error}.") from error
        self.write_metrics()

    def _commit(self) -> None:
        """Make the newest files the truth: replace the index, then drop what it no longer names."""
        if not self.writes:
            return
        log = self._metrics()
        self.write_metrics()
        index: Index = {
            "format": FORMAT,
            "config": self._config,
            "metrics": {"bytes": len(log), "sha256": store.digest_of(log)},
            "inputs": self._inputs,
            "code": self._code,
            "files": self._files,
            "stages": self.stages,
            "current": self.current,
            "rows": len(self.rows),
            "saves": self._saves,
            "notes": self.notes,
        }
        store.write_json(self._folder / "index.json", store.sealed(dict(index)))
        for path in self._folder.iterdir():
            if path.name not in self._files and self._wrote(path):
                path.unlink()

    def _wrote(self, path: Path) -> bool:
        """Whether a file in ``checkpoints/`` is a state that this run wrote, or was writing when it was killed."""
        found = re.fullmatch(r"(\d{6,12})\.safetensors", path.name)
        return found is not None and int(found[1]) <= self._saves + 1 and path.is_file() and not path.is_symlink()

    def _write(self, write: Callable[[Path], store.Record]) -> str:
        """Write a file beside the others; it counts only once the index names it."""
        self._saves += 1
        name = f"{self._saves:06d}.safetensors"
        self._files[name] = write(self._folder / name)
        return name

    def _block(self, name: str, rows: Tensor) -> tuple[str, str]:
        """The digest and the file of a block, which is written unless the last save point has the same."""
        digest, known = store.tensor_digest({name: rows}), self._blocks.get(name)
        if known is not None and known[0] == digest:
            return known
        return digest, self._write(lambda at: store.save_tensors(at, {name: rows}))

    def _drop(self, point: Point | None, but: Set[str] = frozenset()) -> None:
        """Let go of a save point's files, but of some."""
        for name in _files_of(point) if point else []:
            if name not in but:
                self._files.pop(name, None)

    def _load(self, name: str) -> Any:
        return store.load_state(self._folder / name, self._files[name])


def _files_of(point: Point) -> list[str]:
    return [point["file"], *point.get("blocks", {}).values()]


def require_same_config(file: Path, config: dict[str, Any]) -> None:
    """Refuse to go on with other options than a run began with, before any work; a new run has no file.

    Raises:
        UserError: naming the option and both values.
    """
    if file.exists():
        recorded, _ = _configuration(contents(file), file)
        recorded.pop("arm", None)
        _require_same(recorded, config, file)


def _configuration(content: bytes, file: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """The options in ``config.yaml``, and what it says of the machine."""
    recorded = checked(parsed(content, file), dict[str, Any], file)
    return recorded, dict(checked(recorded.pop("machine", None), Machine, file, "$.machine"))


def _require_same(recorded: dict[str, Any], config: dict[str, Any], file: Path) -> None:
    """Refuse to go on with other options; where the directory lies, and whom one trusts, are none of them."""
    for key in [*recorded, *(k for k in config if k not in recorded)]:
        if key not in ("out", "trust") and recorded.get(key) != config.get(key):
            raise UserError(
                f"{file} has {key}: {recorded.get(key)!r}, but this command says {config.get(key)!r}; "
                "a resumed run keeps its configuration. Use another --out for a new one."
            )
