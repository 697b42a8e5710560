"""What `make run` shows, recorded: `python -m benchmarks.quickstart` runs its recipe and keeps the table."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

from benchmarks.common import record
from upcycle.cli import arguments_of
from upcycle.core.store import read_json
from upcycle.verbs.distill import distill

KEEP = ("name", "role", "accuracy", "parameters", "macs", "latency", "memory")


def main() -> None:
    """Run, print and record."""
    with tempfile.TemporaryDirectory() as folder:
        values, _ = arguments_of("distill", ["--config", "recipes/quickstart.yaml", "--out", f"{folder}/run"])
        start = time.perf_counter()
        result = distill(**values)
        seconds = time.perf_counter() - start
        rows = read_json(Path(folder) / "run" / "result.json")["rows"]
    figures = {"rows": [{key: row[key] for key in KEEP} for row in rows], "sentence": result.sentence,
               "seconds": round(seconds, 1)}  # fmt: skip
    print(record("quickstart", figures, seeds=values["seeds"], recipe="recipes/quickstart.yaml"))


if __name__ == "__main__":
    main()
