"""The table of faults: every case is a test that exists, and what is recorded is what is listed."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from benchmarks.common import RESULTS
from benchmarks.fault_kinds import KINDS

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize("kind", KINDS)
def test_a_kind_has_three_cases_or_more(kind: str) -> None:
    assert len(KINDS[kind]) >= 3


def test_every_case_is_a_test_that_exists() -> None:
    listed = {test for cases in KINDS.values() for test in cases.values()}
    files = sorted({test.partition("::")[0] for test in listed})
    options = ["--collect-only", "-q", "-o", "addopts=", "-p", "no:cacheprovider"]
    words = [sys.executable, "-m", "pytest", *options, *files]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False)
    there = set(done.stdout.splitlines())
    there |= {test.partition("[")[0] for test in there}
    assert not listed - there, done.stdout[-1000:] + done.stderr[-1000:]


def test_the_record_is_of_what_is_listed_and_all_of_it_holds() -> None:
    figures = json.loads((RESULTS / "faults.json").read_text())["figures"]
    said = "run python -m benchmarks.faults"
    assert {kind: set(cases) for kind, cases in figures.items()} == {k: set(c) for k, c in KINDS.items()}, said
    assert all(one["holds"] for cases in figures.values() for one in cases.values())
