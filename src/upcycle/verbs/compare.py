"""``upcycle compare``: a leaderboard over runs, from what each of them measured."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from upcycle.core import cells, lock, store
from upcycle.core.errors import UserError, require
from upcycle.data.decode import readable
from upcycle.measure.units import bytes_, counted, duration, si
from upcycle.reports import RESULT, read_result
from upcycle.reports.leaderboard import Entry, Group, leaderboard_page
from upcycle.verbs.figures import points, spread

MADE = ("student", "product")
GIVEN = ("teacher", "source")


@dataclass(frozen=True, kw_only=True)
class Line:
    """One network of a leaderboard.

    Args:
        run: the directory of the run that made it; empty for what runs began with.
        name: of the network.
        method: that made it, with its verb.
        accuracy: of each seed, from 0 to 1; empty where nothing was measured.
        parameters, macs, latency, memory: its cost, where it is known: a number, a number, seconds and bytes.
        seconds: how long the run took.
        cpu: the processor that its latency was measured on.
    """

    run: str
    name: str
    method: str = ""
    accuracy: tuple[float, ...] = ()
    parameters: float | None = None
    macs: float | None = None
    latency: float | None = None
    memory: float | None = None
    seconds: float | None = None
    cpu: str = ""

    @property
    def mean(self) -> float:
        """The accuracy over all seeds; below any that can be, where nothing was measured."""
        return statistics.fmean(self.accuracy) if self.accuracy else -1.0

    @property
    def seeds(self) -> str:
        """How many seeds the accuracy is of, in words."""
        return "one seed" if len(self.accuracy) == 1 else counted(len(self.accuracy), "seed") if self.accuracy else ""


@dataclass(frozen=True, kw_only=True)
class Board:
    """Networks that were measured alike, the best first.

    Args:
        data: the name of the data set that they were measured on.
        test: the number of its test samples.
        figure: the name of what was measured.
        lines: of the runs.
        given: what the runs began with, such as their teachers.
    """

    data: str
    test: int
    figure: str
    lines: list[Line] = field(default_factory=list)
    given: list[Line] = field(default_factory=list)

    @property
    def title(self) -> str:
        """Name what the networks were measured on."""
        return f"{self.figure} on {self.data}" + (f", {self.test:,} samples" if self.test else "")

    def sentence(self) -> str:
        """Say what came out, and how far it can be trusted."""
        measured = [line for line in self.lines if line.accuracy]
        if not measured:
            return f"Nothing was measured on {self.data}."
        first = measured[0]
        text = f"{first.run} comes first on {self.data} with {spread(first.accuracy)} ({first.seeds})"
        if len(measured) == 1:
            return f"{text}."
        second = measured[1]
        text += f", {points(first.mean - second.mean)} {second.run}"
        alone = [line.run for line in (first, second) if len(line.accuracy) == 1]
        if alone:
            them = "Both are" if len(alone) == 2 else f"{alone[0]} is"
            return f"{text}. {them} of one seed, and one seed does not say what chance makes; three or more do."
        error = sum(statistics.variance(line.accuracy) / len(line.accuracy) for line in (first, second)) ** 0.5
        verdict = "more" if first.mean - second.mean > 2 * error else "no more"
        return f"{text}, {verdict} than two standard errors of the difference."

    def notes(self) -> list[str]:
        """List what a reader must know."""
        cpus = list(dict.fromkeys(line.cpu for line in (*self.lines, *self.given) if line.cpu and line.latency))
        told = f"Latencies come from different machines and are not comparable: {', '.join(cpus)}."
        return [told] if len(cpus) > 1 else []

    def table(self) -> tuple[list[str], list[list[str]]]:
        """Heads and rows; a column stands only where a line has something in it."""
        lines = [*self.lines, *self.given]
        columns: list[tuple[str, list[str]]] = [
            ("run", [line.run or f"({line.method})" for line in lines]),
            ("network", [line.name for line in lines]),
            ("made by", [line.method if line.run else "" for line in lines]),
            (self.figure, [spread(line.accuracy) or "not measured" for line in lines]),
            ("seeds", [line.seeds for line in lines]),
            ("parameters", [_shown(line.parameters, si) for line in lines]),
            ("multiply-adds", [_shown(line.macs, si) for line in lines]),
            ("latency", [_shown(line.latency, duration) for line in lines]),
            ("memory", [_shown(line.memory, bytes_) for line in lines]),
            ("took", [_shown(line.seconds, duration) for line in lines]),
        ]
        kept = [(head, cells) for head, cells in columns if any(cells)]
        return [head for head, _ in kept], [list(row) for row in zip(*(cells for _, cells in kept), strict=True)]


def _shown(value: float | None, words: Any) -> str:
    return "" if value is None else str(words(value))


@dataclass(frozen=True, kw_only=True)
class Leaderboard:
    """The outcome of :func:`compare`: a board for each data set and figure.

    Args:
        boards: the largest first.
        file: the page that was written, if any.
    """

    boards: list[Board]
    file: Path | None = None

    def __repr__(self) -> str:
        return cells.line(self, " ".join(board.sentence() for board in self.boards))

    def _repr_html_(self) -> str:
        shown = [(board, *board.table()) for board in self.boards]
        return "".join(cells.table(b.title, heads, rows, [b.sentence(), *b.notes()]) for b, heads, rows in shown)

    def record(self) -> dict[str, Any]:
        """All figures as JSON data."""
        return {
            "boards": [
                {
                    **{key: value for key, value in asdict(board).items() if key not in ("lines", "given")},
                    "lines": [{**asdict(line), "accuracy": list(line.accuracy)} for line in board.lines],
                    "given": [{**asdict(line), "accuracy": list(line.accuracy)} for line in board.given],
                    "sentence": board.sentence(),
                    "notes": board.notes(),
                }
                for board in self.boards
            ],
            "file": None if self.file is None else str(self.file),
        }

    def text(self) -> str:
        """The tables for a terminal."""
        parts = []
        for board in self.boards:
            heads, rows = board.table()
            widths = [max(len(row[i]) for row in (heads, *rows)) for i in range(len(heads))]
            lines = [
                "  ".join(
                    c.ljust(w) if i < 3 else c.rjust(w) for i, (c, w) in enumerate(zip(row, widths, strict=True))
                ).rstrip()
                for row in (heads, *rows)
            ]
            notes = [f"note     {note}" for note in board.notes()]
            parts.append(
                "\n".join(
                    [board.title, "", lines[0], "─" * max(map(len, lines)), *lines[1:], "", board.sentence(), *notes]
                )
            )
        if len(self.boards) > 1:
            parts.append("Runs that were measured on different data are not compared with each other.")
        return "\n\n".join([*parts, *([f"Page: {self.file}"] if self.file is not None else [])])

    def page(self) -> str:
        """The tables and plots as one HTML file."""
        n = sum(len(board.lines) for board in self.boards)
        return leaderboard_page(f"{counted(n, 'run')} compared", [_group(board) for board in self.boards])


def _group(board: Board) -> Group:
    heads, rows = board.table()
    entries = [
        Entry(
            name=line.run or line.name,
            accuracy=line.mean,
            costs={
                key: value for key, value in (("parameters", line.parameters), ("multiply-adds", line.macs)) if value
            },
            spread=line.seeds,
            product=bool(line.run),
        )
        for line in (*board.lines, *board.given)
        if line.accuracy
    ]
    title, notes = board.title[:1].upper() + board.title[1:], board.notes()
    return Group(
        title=title,
        sentence=board.sentence(),
        heads=heads,
        rows=rows,
        entries=entries,
        figure=board.figure,
        notes=notes,
    )


def compare(
    runs: Path | str | Sequence[Path | str], *, out: Path | str | None = None, overwrite: bool = False
) -> Leaderboard:
    """Compare finished runs: a table for each data set, the best first, with the spread over seeds and the cost.

    Args:
        runs: run directories, or folders that hold some.
        out: an HTML file for the tables, with accuracy over cost as plots.
        overwrite: write over the file that is there.

    Raises:
        UserError: no finished run, one that is damaged, or a file that is there already.
    """
    file = Path(out) if out is not None else None
    if file is not None:
        require(file.suffix == ".html", f"--out names a page that ends in .html, not {file}.")
        store.require_free(file, overwrite)
    found = [*dict.fromkeys(_directories([runs] if isinstance(runs, str | Path) else runs))]
    require(bool(found), "There is nothing to compare: name finished runs, or a folder of them.")
    boards: dict[tuple[str, int, str], Board] = {}
    for directory, name in _names(found).items():
        _enter(boards, directory, name)
    for board in boards.values():
        board.lines.sort(key=lambda line: -line.mean)
        board.given.sort(key=lambda line: -line.mean)
    made = Leaderboard(boards=sorted(boards.values(), key=lambda board: -len(board.lines)), file=file)
    if file is not None:
        store.write_atomic(file, made.page().encode("utf-8", "replace"))
    return made


def _directories(runs: Iterable[Path | str]) -> Iterable[Path]:
    """The runs that are named, and those inside of folders that are named."""
    for run in map(Path, runs):
        if (run / RESULT).is_file():
            yield run
            continue
        if not run.is_dir():
            raise UserError(f"There is no run {run}.")
        inside = sorted(child for child in run.iterdir() if (child / RESULT).is_file())
        require(bool(inside), f"{run} holds no finished run (no {RESULT}), and no folder in it does.")
        yield from inside


def _names(runs: Sequence[Path]) -> dict[Path, str]:
    """Names of the runs: those of their directories, or whole paths where two have the same."""
    own = [run.resolve().name for run in runs]
    return {run: readable(name if own.count(name) == 1 else str(run)) for run, name in zip(runs, own, strict=True)}


def _enter(boards: dict[tuple[str, int, str], Board], directory: Path, name: str) -> None:
    """Put a run on the board of its data, with what it began with."""
    lock.check(directory)
    result = read_result(directory)
    rows, data = result.get("rows", []), result.get("data", {})
    made = next((row for row in reversed(rows) if row.get("role") in MADE), None) or (rows[-1] if rows else None)
    if made is None or made.get("parameters") is None:
        raise UserError(f"{directory} made no network, so there is nothing to compare; leave it out.")
    figure = str(result.get("figure", "test accuracy"))
    tested = str(data.get("measured") or data.get("name", ""))
    key = (readable(tested), int(data.get("test") or 0), figure)
    board = boards.setdefault(key, Board(data=key[0], test=key[1], figure=figure))
    cpu = str(result.get("machine", {}).get("cpu", ""))
    method = " ".join(str(result.get(part, "")) for part in ("verb", "method")).strip()
    board.lines.append(_line(made, run=name, method=method, seconds=result.get("seconds"), cpu=cpu))
    known = {(line.name, line.accuracy) for line in board.given}
    for row in rows:
        line = _line(row, run="", method=str(row.get("role")), seconds=None, cpu=cpu)
        if row.get("role") in GIVEN and row is not made and (line.name, line.accuracy) not in known:
            board.given.append(line)


def _line(row: dict[str, Any], **of: Any) -> Line:
    costs: dict[str, Any] = {key: row.get(key) for key in ("parameters", "macs", "latency", "memory")}
    of |= {key: readable(of[key]) for key in ("method", "cpu")}
    return Line(name=readable(str(row["name"])), accuracy=tuple(row.get("accuracy") or ()), **costs, **of)
