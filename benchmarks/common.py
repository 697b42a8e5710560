"""What every benchmark shares: timing side by side, and a committed record of where the figures come from."""

from __future__ import annotations

import argparse
import datetime
import importlib.metadata
import os
import platform
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.code import MEASURED, here
from upcycle.core.store import write_json

RESULTS = Path(__file__).parent / "results"
PACKAGES = (
    "torch",
    "torchvision",
    "timm",
    "transformers",
    "lightning-fabric",
    "numpy",
    "pillow",
    "torchdistill",
    "snntorch",
    "upcycle",
)


def alternate(functions: dict[str, Callable[[], Any]], repetitions: int = 9) -> dict[str, list[float]]:
    """Seconds that each function takes, all of them once a round, so that a busy moment hits them alike.

    One round before the first is not counted. Compare minima: what disturbs only ever adds time.
    """
    times: dict[str, list[float]] = {name: [] for name in functions}
    for round_ in range(repetitions + 1):
        for name, function in functions.items():
            start = time.perf_counter()
            function()
            if round_:
                times[name].append(time.perf_counter() - start)
    return times


@dataclass(frozen=True)
class Sizes:
    """How much a benchmark does.

    Args:
        batch: samples at a time.
        repetitions: rounds that are timed.
        quick: too little to be recorded.
    """

    batch: int
    repetitions: int
    quick: bool


def asked_sizes(batch: int, repetitions: int) -> Sizes:
    """Read ``--batch``, ``--repetitions`` and ``--quick`` off the command line, with these as defaults."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--batch", type=int, default=batch)
    parser.add_argument("--repetitions", type=int, default=repetitions)
    parser.add_argument("--quick", action="store_true", help="two repetitions of two images, printed only")
    words = parser.parse_args()
    return Sizes(2, 2, True) if words.quick else Sizes(words.batch, words.repetitions, False)


def record(name: str, figures: dict[str, Any], **settings: Any) -> Path:
    """Write ``results/NAME.json``: figures and settings, with machine, versions, date, commit, digest of the code."""
    path = RESULTS / f"{name}.json"
    write_json(path, {
        "benchmark": name,
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "commit": _commit(),
        **({"code": here(name)} if name in MEASURED else {}),
        "machine": machine(),
        "versions": {"python": platform.python_version()} | _versions(),
        "settings": settings,
        "figures": figures,
    })  # fmt: skip
    return path


def machine() -> dict[str, Any]:
    """Processor, cores that this process may use, memory, system."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {
        "cpu": _cpu_model(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory_gb": round(memory / 2**30, 1),
        "system": f"{platform.system()} {platform.machine()}",
    }


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or "unknown"
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "unknown")


def _versions() -> dict[str, str]:
    found = {}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def _commit() -> str:
    """The commit that was measured, with ``+`` when the working tree differs from it."""

    def git(*words: str) -> str:
        done = subprocess.run(["git", *words], cwd=RESULTS.parent, capture_output=True, text=True, check=False)
        return done.stdout.strip() if done.returncode == 0 else ""

    head = git("rev-parse", "--short=12", "HEAD")
    return f"{head}+" if head and git("status", "--porcelain", "--", "../src") else head or "unknown"
