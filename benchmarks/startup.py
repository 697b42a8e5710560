"""How long a person waits before anything happens: whole processes, and what a run asks before it begins.

Run from the repository's root: `python -m benchmarks.startup [commands] [checks] [cifar10]`; each part alone keeps what
is recorded of the others. `checks` runs the recipe of `make run` as whole processes, in turn with processes in which no
network is tried and inputs have no digests; `cifar10` measures both for ResNet-56 and ResNet-20 on CIFAR-10.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks.common import RESULTS, alternate, record

REPETITIONS = 9
RUNS = 3  # of a whole recipe, each way


def commands() -> dict[str, float]:
    """Seconds of whole processes that do next to nothing."""
    words = {
        "upcycle --help": [str(Path(sys.executable).parent / "upcycle"), "--help"],
        "import upcycle": [sys.executable, "-c", "import upcycle"],
        "python -c pass": [sys.executable, "-c", "pass"],
    }
    runs = {name: lambda w=w: subprocess.run(w, check=True, capture_output=True) for name, w in words.items()}  # type: ignore[misc]
    return {name: round(min(times), 4) for name, times in alternate(runs, REPETITIONS).items()}


# -- what a run asks before it begins -----------------------------------------------------------------------------


@contextmanager
def _checks(replace: Callable[[str, Any], Any]) -> Iterator[None]:
    """Put something in the place of each function that tries a network or digests what goes in, by what it does."""
    from upcycle.core import references
    from upcycle.core.method import Method

    places: list[tuple[Any, str, str]] = [
        (references, "probe", "probe"),
        (Method, "_untrainable", "probe"),
        (Method, "inputs", "digests"),
    ]
    before = [(home, name, getattr(home, name)) for home, name, _ in places]
    for (home, name, what), (_, _, function) in zip(places, before, strict=True):
        setattr(home, name, replace(f"{what}:{name}", function))
    try:
        yield
    finally:
        for home, name, function in before:
            setattr(home, name, function)


def _without(name: str, function: Any) -> Any:
    """A stand-in that asks nothing; the number of outputs alone is needed, and known in the recipe."""
    answers = {"probe": lambda model: (model, 10), "_untrainable": lambda *given: [], "inputs": lambda *given: {}}
    return answers[name.partition(":")[2]]


def _run(asked: bool) -> None:
    """Make the quickstart's run in this process; print the processor seconds in what is asked before."""
    from upcycle.cli import arguments_of
    from upcycle.verbs.distill import distill

    spent = {"probe": 0.0, "digests": 0.0}

    def timed(name: str, function: Any) -> Any:
        def call(*given: Any) -> Any:
            start = time.process_time()
            try:
                return function(*given)
            finally:
                spent[name.partition(":")[0]] += time.process_time() - start

        return call

    with tempfile.TemporaryDirectory() as folder, _checks(timed if asked else _without):
        words = ["--config", "recipes/quickstart.yaml", "--out", f"{folder}/run", "--quiet"]
        distill(**arguments_of("distill", words)[0])
    print(json.dumps(spent))


def checks() -> dict[str, float]:
    """Processor seconds of the quickstart, whole processes, with and without what is asked before its runs."""
    seconds: dict[str, list[float]] = {"asked": [], "unasked": []}
    inside: list[dict[str, float]] = []
    for _ in range(RUNS):
        for name, found in seconds.items():
            words = [sys.executable, "-m", "benchmarks.startup", name]
            with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as process:
                assert process.stdout is not None
                said = process.stdout.read()
                _, status, used = os.wait4(process.pid, 0)
                process.returncode = os.waitstatus_to_exitcode(status)
            assert process.returncode == 0
            found.append(used.ru_utime + used.ru_stime)
            if name == "asked":
                inside.append(json.loads(said.splitlines()[-1]))
    whole, bare = min(seconds["asked"]), min(seconds["unasked"])
    probe, digests = (min(spent[name] for spent in inside) for name in ("probe", "digests"))
    return {
        "processor seconds of the quickstart": round(whole, 2),
        "without probe and digests": round(bare, 2),
        "difference (%)": round(100 * (whole - bare) / bare, 2),
        "spent in the probe (%)": round(100 * probe / whole, 2),
        "spent in digests (%)": round(100 * digests / whole, 2),
    }


def cifar10() -> dict[str, float]:
    """Seconds before a distillation on CIFAR-10, ResNet-56 to ResNet-20."""
    from upcycle.core import inputs
    from upcycle.core.probe import probe, training_problems
    from upcycle.core.references import resolve
    from upcycle.data import load

    data = load("cifar10")
    teacher = resolve("zoo:cifar10_resnet56")
    student = resolve("zoo:resnet20", pretrained=False, num_classes=10, input_shape=(3, 32, 32))

    def digested() -> None:
        inputs._tensors.clear()
        inputs._networks.clear()
        inputs.digests(teacher, "the teacher"), inputs.digests(student, "the student"), data.digests()

    def tried() -> None:
        probe(teacher), probe(student), training_problems(student, batch_size=128)

    found = alternate({"digests": digested, "probe": tried}, 5)
    least = {name: round(min(times), 3) for name, times in found.items()}
    return {"digests, CIFAR-10 (s)": least["digests"], "probe, both networks (s)": least["probe"]}


def main() -> None:
    """Time, print and record."""
    parser = argparse.ArgumentParser(description="Time what happens before anything happens.")
    parser.add_argument("parts", nargs="*", help="of commands, checks, cifar10; all if not given")
    parts = parser.parse_args().parts
    if parts in (["asked"], ["unasked"]):
        return _run(parts == ["asked"])
    file = RESULTS / "startup.json"
    figures = json.loads(file.read_text())["figures"] if file.is_file() else {}
    known = {
        "commands": ("seconds of a whole process", commands),
        "checks": ("before a run", checks),
        "cifar10": ("before a run", cifar10),
    }
    for part in parts or known:
        key, measure = known[part]
        figures[key] = {**figures.get(key, {}), **measure()}
        print(part, figures[key], flush=True)
    print(record("startup", figures, repetitions=REPETITIONS, runs=RUNS))
    return None


if __name__ == "__main__":
    main()
