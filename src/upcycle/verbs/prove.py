"""``upcycle prove``: run a method's claim here and print both figures, the paper's and ours."""

from __future__ import annotations

import statistics
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from upcycle.claims import Claim, Measured, find
from upcycle.core import store
from upcycle.core.errors import require
from upcycle.core.lineage import versions
from upcycle.measure.machine import machine


@dataclass(kw_only=True)
class Proof:
    """What a claim measured to: per arm the figure of each seed, and whether each check holds."""

    claim: Claim
    measured: Measured
    seconds: float

    @property
    def holds(self) -> bool:
        """Whether every check holds."""
        return all(c.holds(self.measured) for c in self.claim.checks)

    def record(self) -> dict[str, Any]:
        """The proof as JSON data."""
        return {"method": self.claim.method, "claim": self.claim.sentence, "published": self.claim.published,
                "setting": self.claim.setting, "measured": self.measured, "holds": self.holds,
                "checks": [{"text": c.text, "value": c.value(self.measured), "bound": c.bound,
                            "holds": c.holds(self.measured)} for c in self.claim.checks],
                "seconds": round(self.seconds, 1), "date": time.strftime("%Y-%m-%d"), "machine": machine(),
                "versions": versions(), "commit": _commit()}  # fmt: skip

    def text(self) -> str:
        """The proof for a terminal."""
        c = self.claim
        lines = [f"{c.method}: {c.sentence}", "", f"published  {c.published}", f"here       {c.setting}", ""]
        width = max(map(len, self.measured))
        for arm, values in self.measured.items():
            spread = f" ± {statistics.stdev(values):.3g}" if len(values) > 1 else ""
            lines.append(f"  {arm.ljust(width)}  {_number(statistics.fmean(values))}{spread}   "
                         f"({', '.join(_number(v) for v in values)})")  # fmt: skip
        lines.append("")
        for check in c.checks:
            verdict = "holds       " if check.holds(self.measured) else "does not hold"
            lines.append(f"  {verdict}  {check.text}: {_number(check.value(self.measured))}, asked {check.bound:g}")
        seeds = len(next(iter(self.measured.values())))
        lines += ["", f"{'The claim holds' if self.holds else 'The claim does not hold'} here, over {seeds} seeds "
                  f"({self.seconds / 60:.1f} minutes)."]  # fmt: skip
        return "\n".join(lines)


def _commit() -> str:
    """The commit of the checkout that this package runs from, or nothing."""
    done = subprocess.run(["git", "rev-parse", "--short=12", "HEAD"], cwd=Path(__file__).parent, capture_output=True,
                          text=True, check=False)  # fmt: skip
    return done.stdout.strip()


def _number(value: float) -> str:
    return f"{value:.2f}" if 0.01 <= abs(value) < 1000 or value == 0 else f"{value:.1e}"


def prove(
    method: str,
    *,
    seeds: int = 3,
    quick: bool = False,
    out: Path | str | None = None,
    overwrite: bool = False,
    say: Callable[[str], None] = print,
) -> Proof:
    """Measure the claim of ``method`` over ``seeds`` seeds.

    Args:
        method: its name.
        seeds: how many.
        quick: a miniature, which shows that the machinery runs and not whether the claim holds.
        out: a JSON file for the figures with machine, versions and date.
        overwrite: write over the file that is there.
        say: where progress goes.

    Raises:
        UserError: if no claim has or covers the method, its data are not at hand, or the file is there already.
    """
    from upcycle.data import load

    claim = find(method)
    require(seeds >= 1, f"seeds must be at least 1, not {seeds}.")
    if out is not None:
        store.require_free(Path(out), overwrite)
    start = time.time()
    for name in claim.data:
        load(name)
    measured: Measured = {}
    for seed in range(seeds):
        for arm, value in claim.measure(seed, quick).items():
            measured.setdefault(arm, []).append(value)
        say(f"seed {seed}: " + ", ".join(f"{arm} {_number(values[-1])}" for arm, values in measured.items()))
    proof = Proof(claim=claim, measured=measured, seconds=time.time() - start)
    if out is not None:
        store.write_json(Path(out), proof.record())
    return proof


def command(method: str, seeds: int = 3, quick: bool = False, out: Path | None = None, overwrite: bool = False) -> int:
    """Run a method's claim here and print both figures; exits with 1 when it does not hold.

    Args:
        method: its name.
        seeds: how many seeds.
        quick: a miniature that shows the machinery, not the claim.
        out: a JSON file for the figures; if not given, runs/prove-METHOD.json, and none for a miniature.
        overwrite: write over the file that is there.
    """
    if out is None and not quick:
        out = Path("runs") / f"prove-{method}.json"
    proof = prove(method, seeds=seeds, quick=quick, out=out, overwrite=overwrite)
    print("\n" + proof.text())
    if out is not None:
        print(f"Figures: {out}")
    return 0 if proof.holds else 1
