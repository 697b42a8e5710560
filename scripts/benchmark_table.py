"""The table of `docs/benchmarks.md`: for each job what one would use instead, how many times faster, and the floor."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from benchmarks.code import is_older

from scripts.benchmark_jobs import JOBS, NOTHING, Job
from scripts.tables import table
from upcycle.measure.units import duration

OLD, ELSEWHERE = "†", "‡"
USUAL = "AMD EPYC"
"""The processor that most lines were measured on; the page says so."""
MISSING = "not measured yet"


def cells(job: Job, record: dict[str, Any] | None) -> tuple[str, ...]:
    """Give the cells of the line of a job from a record; a record that is not there says so."""
    if record is None:
        return (job.does, job.instead, MISSING, MISSING if job.least else NOTHING, "")
    figures, ratio, floor = record["figures"], NOTHING, NOTHING
    ours = job.ours(figures)
    if job.theirs is not None:
        theirs = job.theirs(figures)
        ratio = f"**{times(theirs / ours)} ×** ({duration(ours)}, not {duration(theirs)})"
    else:
        ratio = f"{duration(ours)}"
    if job.least is not None:
        floor = f"{ours / job.least(figures):.3g} × {job.floor}"
    marks = OLD * is_older(job.record, record) + ELSEWHERE * (USUAL not in _processor(record))
    when = f"{record['date'][:10]}{'&nbsp;' if marks else ''}{marks}"
    return (job.does, job.instead, ratio, floor, when)


def _processor(record: dict[str, Any]) -> str:
    """The processor that a record was measured on."""
    return str(record["machine"].get("cpu", USUAL))


def times(ratio: float) -> str:
    """A ratio, to two digits."""
    return f"{ratio:,.0f}" if ratio >= 100 else f"{ratio:.2g}"


def benchmark_table(result: Callable[[str], dict[str, Any] | None]) -> str:
    """Give the table, and what its marks mean.

    Args:
        result: gives a committed record by its name, or None.
    """
    rows = [cells(job, result(job.record)) for job in JOBS]
    text = table(("job", "what you would use instead", "how many times faster", "over the floor", "measured"), rows)
    old, elsewhere = (sum(mark in row[-1] for row in rows) for mark in (OLD, ELSEWHERE))
    notes = [f"{OLD} The code has changed since it was measured ({old} of {len(rows)})."]
    if elsewhere:
        others = {_processor(r) for job in JOBS if (r := result(job.record)) is not None} - {USUAL}
        notes.append(f"{ELSEWHERE} On {' and '.join(sorted(others))}.")
    return f"{text}\n{' '.join(notes)}\n"
