"""``upcycle prove``: run a method's claim here and print both figures, the paper's and ours, and what they decide."""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, field
from functools import partial
from json import dumps
from multiprocessing import get_context
from pathlib import Path
from typing import Any, TypedDict

from upcycle.claims import Claim, Headline, Measured, Verdict, find
from upcycle.core import cells, store
from upcycle.core.errors import UserError, require
from upcycle.core.lineage import versions
from upcycle.core.progress import Count
from upcycle.core.read import checked
from upcycle.measure.machine import machine
from upcycle.verbs.options import tell

TOLD = 8
"""Figures of a seed that are said as it ends; of more, those that decide."""


class Seed(TypedDict):
    """Where and when one seed was measured."""

    seed: int
    seconds: float
    date: str
    commit: str
    machine: dict[str, Any]
    versions: dict[str, str]


class Record(TypedDict):
    """The part of a record that is read back, to go on with it."""

    method: str
    setting: str
    measured: dict[str, list[float]]
    seeds: list[Seed]


@dataclass(kw_only=True)
class Proof:
    """The figures of a claim: per arm the figure of each seed, and what the figures decide.

    Args:
        claim: whose it is.
        measured: by arm, one figure a seed.
        seeds: where and when each seed was measured.
    """

    claim: Claim
    measured: Measured
    seeds: list[Seed] = field(default_factory=list)

    def __repr__(self) -> str:
        return cells.line(self, self.sentence())

    def _repr_html_(self) -> str:
        return cells.block(self.text())

    @property
    def verdict(self) -> Verdict:
        """Give what the headline comparison decides."""
        return self.claim.headline.verdict(self.measured)

    @property
    def holds(self) -> bool:
        """Whether the headline shows what is claimed and every condition holds."""
        return self.verdict.good and all(c.holds(self.measured) for c in self.claim.checks)

    def record(self) -> dict[str, Any]:
        """The proof as JSON data."""
        c = self.claim
        covered = {name: headline for name, headline in c.covers.items() if headline is not None}
        return {
            "method": c.method,
            "claim": c.sentence,
            "published": c.published,
            "setting": c.setting,
            "verdicts": {name: _decided(h, self.measured) for name, h in {c.method: c.headline, **covered}.items()},
            "checks": [
                {
                    "text": check.text,
                    "value": check.value(self.measured),
                    "bound": check.bound,
                    "exact": check.exact,
                    "holds": check.holds(self.measured),
                }
                for check in c.checks
            ],
            "measured": self.measured,
            "seeds": self.seeds,
        }

    def sentence(self) -> str:
        """The verdict in one sentence."""
        return sentence(self.claim.method, self.claim.headline, self.verdict)

    def text(self) -> str:
        """The proof for a terminal."""
        c = self.claim
        lines = [f"{c.method}: {c.sentence}", "", f"published  {c.published}", f"here       {c.setting}", ""]
        width = max(map(len, self.measured))
        for arm, values in self.measured.items():
            mark = "*" if arm in c.headline.arms else " "
            spread = f" ± {statistics.stdev(values):.3g}" if len(values) > 1 else ""
            lines.append(f"{mark} {arm.ljust(width)}  {_number(statistics.fmean(values))}{spread}   "
                         f"({', '.join(_number(v) for v in values)})")  # fmt: skip
        lines.append("")
        for check in c.checks:
            word = "holds         " if check.holds(self.measured) else "does not hold "
            every = ", in every seed" if check.exact else ""
            found = f"{_number(check.value(self.measured))}, asked {check.bound:g}{every}"
            lines.append(f"  {word}  {check.text}: {found}")
        for name, headline in c.covers.items():
            if headline is not None:
                lines.append(f"  {sentence(name, headline, headline.verdict(self.measured))}")
        minutes = sum(s["seconds"] for s in self.seeds) / 60
        lines += ["", f"{self.sentence()} It took {minutes:.1f} minutes of one process.", "(*: the arms that decide)"]
        return "\n".join(lines)


def sentence(name: str, headline: Headline, verdict: Verdict) -> str:
    """A verdict in one sentence, for example ``kd works: +5.4 points (95 % interval +5.3 to +5.5, 5 seeds), ...``."""
    unit, v = headline.unit, verdict
    spread = f"95 % interval {v.low:+.2f} to {v.high:+.2f}, {v.seeds} seeds" if v.seeds > 1 else "one seed"
    return f"{name}: {v.word}, {v.gain:+.2f} {unit} ({spread}), {headline.says}."


def _decided(headline: Headline, measured: Measured) -> dict[str, Any]:
    """A verdict as JSON data."""
    v = headline.verdict(measured)
    bounds = [v.low, v.high] if v.seeds > 1 else None
    return {
        "verdict": v.word,
        "says": headline.says,
        "gain": v.gain,
        "interval": bounds,
        "unit": headline.unit,
        "differences": headline.differences(measured),
        "margin": headline.margin,
        "allowed": headline.allowed,
        "reason": headline.reason,
        "arms": list(headline.arms),
    }


def _commit() -> str:
    """The commit of the checkout that this package runs from, or nothing."""
    done = subprocess.run(["git", "rev-parse", "--short=12", "HEAD"], cwd=Path(__file__).parent, capture_output=True,
                          text=True, check=False)  # fmt: skip
    return done.stdout.strip()


def _number(value: float) -> str:
    return f"{value:.2f}" if 0.01 <= abs(value) < 1000 or value == 0 else f"{value:.1e}"


# -- measuring ----------------------------------------------------------------------------------------------------


def prove(
    method: str,
    *,
    seeds: int = 5,
    quick: bool = False,
    out: Path | str | None = None,
    resume: bool = False,
    overwrite: bool = False,
    workers: int = 1,
    say: Callable[[str], None] = tell,
) -> Proof:
    """Measure the claim of ``method`` over ``seeds`` seeds.

    Args:
        method: its name.
        seeds: how many.
        quick: a miniature, which shows that the machinery runs and not whether the claim holds.
        out: a JSON file for the figures, written after each seed with machine, versions, date and commit.
        resume: keep the seeds that are in ``out`` already, if it is there.
        overwrite: write over the file that is there.
        workers: processes that measure seeds side by side; figures that are seconds want one.
        say: where progress goes.

    Raises:
        UserError: if no claim has or covers the method, its data are not at hand, or ``out`` is there already, or is
            of another claim.
    """
    from upcycle.data import load

    claim = find(method)
    require(seeds >= 1, f"seeds must be at least 1, not {seeds}.")
    require(workers >= 1, f"workers must be at least 1, not {workers}.")
    out = Path(out) if out is not None else None
    proof = _begun(claim, out) if resume and out is not None and out.exists() else Proof(claim=claim, measured={})
    if out is not None:
        store.require_free(out, overwrite or bool(proof.seeds))
    for name in claim.data:
        load(name)
    todo = range(len(proof.seeds), seeds)
    with Count(f"{claim.method}: seeds", len(todo), pause=None) as progress:  # each has a line of its own
        for i, (seed, figures, seconds) in enumerate(_figures(claim.method, todo, quick, workers), 1):
            for arm, value in figures.items():
                proof.measured.setdefault(arm, []).append(value)
            proof.seeds.append(
                Seed(
                    seed=seed,
                    seconds=round(seconds, 1),
                    date=time.strftime("%Y-%m-%d"),
                    commit=_commit(),
                    machine=machine(),
                    versions=versions(),
                )
            )
            progress.rest()
            told = list(figures) if len(figures) <= TOLD else [arm for arm in figures if arm in claim.headline.arms]
            left = f" ({i} of {len(todo)}, about {progress.left(i)} left)" if i < len(todo) else ""
            say(f"seed {seed}: " + ", ".join(f"{arm} {_number(figures[arm])}" for arm in told) + left)
            progress.at(i)
            if out is not None:
                store.write_json(out, proof.record())
    return proof


def _figures(
    method: str, seeds: Sequence[int], quick: bool, workers: int
) -> Iterator[tuple[int, dict[str, float], float]]:
    """Each seed in order, with the figure of each arm and the seconds it took."""
    if workers == 1:
        yield from (_measured(method, seed, quick) for seed in seeds)
        return
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        waiting = [pool.submit(_measured, method, seed, quick) for seed in seeds]
        done: dict[int, tuple[int, dict[str, float], float]] = {}
        following = iter(seeds)
        turn = next(following, None)
        for future in as_completed(waiting):
            found = future.result()
            done[found[0]] = found
            while turn in done:  # the record keeps the order of seeds
                yield done.pop(turn)
                turn = next(following, None)


def _measured(method: str, seed: int, quick: bool) -> tuple[int, dict[str, float], float]:
    start = time.perf_counter()
    return seed, find(method).measure(seed, quick), time.perf_counter() - start


def _begun(claim: Claim, out: Path) -> Proof:
    """Give what a record holds already."""
    found = checked(store.read_json(out), Record, out)
    if found["method"] != claim.method or found["setting"] != claim.setting:
        raise UserError(f"{out} is of another claim, or of this one in another setting; give another --out.")
    return Proof(claim=claim, measured=found["measured"], seeds=found["seeds"])


def command(
    method: str,
    seeds: int = 5,
    quick: bool = False,
    out: Path | None = None,
    resume: bool = False,
    overwrite: bool = False,
    workers: int = 1,
    json: bool = False,
) -> int:
    """Run a method's claim here and print both figures.

    Exits with 0 when the headline shows what is claimed and every condition holds, else with 1.

    Args:
        method: its name.
        seeds: how many seeds.
        quick: a miniature that shows the machinery, not the claim.
        out: a JSON file for the figures; if not given, runs/prove-METHOD.json, and none for a miniature.
        resume: keep the seeds that the file holds already.
        overwrite: write over the file that is there.
        workers: processes that measure seeds side by side; figures that are seconds want one.
        json: print JSON; progress goes to standard error then.
    """
    if out is None and not quick:
        out = Path("runs") / f"prove-{method.lower()}.json"
    say = partial(tell, file=sys.stderr) if json else tell
    asked = {"seeds": seeds, "quick": quick, "out": out, "resume": resume, "overwrite": overwrite, "workers": workers}
    proof = prove(method, say=say, **asked)  # type: ignore[arg-type]  # whose types are those above
    if json:
        print(dumps({**proof.record(), "holds": proof.holds}))
        return 0 if proof.holds else 1
    tell("\n" + proof.text())
    if out is not None:
        print(f"Figures: {out}")
    return 0 if proof.holds else 1
