"""Nothing wrong in silence: kinds of faults that people met, and the tests that show that none of them is left.

``python -m benchmarks.faults [WORDS ...]`` runs the tests of every case, or of those whose kind or own sentence has one
of the arguments, and records whether each holds. A new kind is an entry in ``benchmarks/fault_kinds.py``.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import defaultdict
from typing import Any

import pytest

from benchmarks.common import RESULTS, record
from benchmarks.fault_kinds import KINDS


class _Outcomes:
    """How each test ended, as a plugin of pytest."""

    def __init__(self) -> None:
        self.found: dict[str, set[str]] = defaultdict(set)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when == "call" or report.outcome != "passed":
            self.found[report.nodeid].add(report.outcome)

    def of(self, test: str) -> list[set[str]]:
        """Of a test, or of each of its parameters."""
        return [ends for name, ends in self.found.items() if name == test or name.startswith(f"{test}[")]


def main() -> int:
    """Run, print and record; 1 where a case does not hold."""
    parser = argparse.ArgumentParser(description="Run the tests of all kinds of faults, and record what holds.")
    parser.add_argument("words", nargs="*", help="of the cases to run, if not all; the record keeps the others")
    words = parser.parse_args().words
    chosen = {
        (kind, case): test
        for kind, cases in KINDS.items()
        for case, test in cases.items()
        if not words or any(word in f"{kind}: {case}" for word in words)
    }
    outcomes = _Outcomes()
    tests = sorted(set(chosen.values()))
    pytest.main(["-q", "-p", "no:cacheprovider", *tests], plugins=[outcomes])
    file = RESULTS / "faults.json"
    before = json.loads(file.read_text())["figures"] if file.is_file() else {}
    figures: dict[str, dict[str, Any]] = {}
    for kind, cases in KINDS.items():
        figures[kind] = {case: before.get(kind, {}).get(case, {"tests": 0, "holds": False}) for case in cases}
        for case in cases:
            if (kind, case) in chosen:
                ends = outcomes.of(chosen[kind, case])
                figures[kind][case] = {"tests": len(ends), "holds": bool(ends) and all(e == {"passed"} for e in ends)}
    failed = [f"{kind}: {case}" for kind, case in chosen if not figures[kind][case]["holds"]]
    print("\n".join([*failed, str(record("faults", figures))]))
    return bool(failed)


if __name__ == "__main__":
    sys.exit(main())
