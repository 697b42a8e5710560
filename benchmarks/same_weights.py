"""Whether two commits train the same weights: ``python -m benchmarks.same_weights BEFORE [AFTER]``.

Every row of the gauntlet is fitted, and the quick forms of some claims are run, in a checkout of each commit; the
digests of all networks that come out are compared bit by bit. Without AFTER it is the working tree. Exits with 1 if any
differs.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
CLAIMS = ("kd", "coca", "dine", "modeldoctor", "vpr", "fastdfkd")


@contextlib.contextmanager
def checkout(commit: str | None) -> Iterator[Path]:
    """A directory with that commit, for as long as the block lasts; the working tree for ``None``."""
    if commit is None:
        yield ROOT
        return
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder) / "tree"
        git = ["git", "-C", str(ROOT), "worktree"]
        subprocess.run([*git, "add", "--quiet", "--detach", str(place), commit], check=True)
        try:
            yield place
        finally:
            subprocess.run([*git, "remove", "--force", str(place)], check=True)


def trained(place: Path, rows: str, claims: str) -> dict[str, list[str]]:
    """The digests of what the checkout at ``place`` trains, by row and claim; in a process of its own."""
    environment = {**os.environ, "PYTHONPATH": f"{place / 'src'}{os.pathsep}{place}", "OMP_NUM_THREADS": "1"}
    words = [sys.executable, str(Path(__file__).resolve()), "--here", "--rows", rows, "--claims", claims]
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run(words, cwd=folder, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def here(rows: str, claims: str) -> dict[str, list[str]]:
    """The same in this process: uses only what both commits have."""
    import torch
    from tests.settings import ROWS

    from upcycle.claims import find
    from upcycle.core.run import Run
    from upcycle.core.store import tensor_digest

    torch.set_num_threads(1)
    found: list[str] = []
    plain = Run.plain

    def noted(self: Run, module: torch.nn.Module) -> torch.nn.Module:
        made = plain(self, module)
        found.append(tensor_digest(made.state_dict()))
        return made

    digests: dict[str, list[str]] = {}
    for name in [name for name in ROWS if rows in ("all", name) or name in rows.split(",")]:
        data, method = ROWS[name].data(160), ROWS[name].make()
        method.require(data)
        digests[name] = [tensor_digest(method.fit(Run(None, seed=4, quiet=True), data).state_dict())]
        print(name, file=sys.stderr)
    Run.plain = noted  # type: ignore[method-assign]
    for name in filter(None, claims.split(",")):
        found.clear()
        figures = find(name).measure(0, True)
        shown = [f"{arm}: {value!r}" for arm, value in figures.items() if "s)" not in arm]  # seconds differ
        digests[f"prove {name} --quick"] = [*found, *shown]
        print(name, file=sys.stderr)
    return digests


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("commits", nargs="*", help="BEFORE and AFTER")
    parser.add_argument("--rows", default="all", help="rows of the gauntlet with commas between them")
    parser.add_argument("--claims", default=",".join(CLAIMS), help="claims with commas between them, or nothing")
    parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)
    words = parser.parse_args()
    if words.here:
        print(json.dumps(here(words.rows, words.claims)))
        return 0
    before, after = [*words.commits, None][:2]
    results = []
    for commit in (before, after):
        with checkout(commit) as place:
            results.append(trained(place, words.rows, words.claims))
    first, second = results
    other = [name for name in {**first, **second} if first.get(name) != second.get(name)]
    for name in {**first, **second}:
        there = "the same" if name not in other else "differs" if name in first and name in second else "in one only"
        print(f"{there:12} {name}")
    print(f"{len(first) - len(other)} of {len(first)} the same, bit for bit: {before} and {after or 'working tree'}")
    return bool(other)


if __name__ == "__main__":
    sys.exit(main())
