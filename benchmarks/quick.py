"""A few ratios measured anew, against the committed ones: `make bench-quick`, by hand, under five minutes.

Measured are a step of distillation beside the plain loop, loading beside torchvision, and one whole command on 5,000
images beside the tuned script. Compared are ratios of times of one run on one machine, so that a slower machine changes
nothing as long as its processor is of the same kind: one without bf16, say, changes them all. It exits with 1 where a
ratio is worse than the committed one by more than its band, and with 2 where CIFAR-10 is not at hand or the machine
does something else. A ratio that was never committed, or on another kind of processor, is shown and decides nothing.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.common import RESULTS, alternate, machine

REPETITIONS = 5
BUSY = 0.8  # load average of the last minute above which something else runs


@dataclass(frozen=True)
class Ratio:
    """One ratio, larger is better.

    Args:
        name: in words.
        record: the committed result that has it.
        of: the ratio in the figures of that result.
        measure: the ratio, measured now.
        band: share of the committed ratio that chance may take, about twice what repeated runs differ by.
    """

    name: str
    record: str
    of: Callable[[dict[str, Any]], float]
    measure: Callable[[], float]
    band: float

    def committed(self) -> tuple[float, str] | None:
        """The committed ratio and the processor that it was measured on, if there is one."""
        file = RESULTS / f"{self.record}.json"
        if not file.is_file():
            return None
        record = json.loads(file.read_text())
        return float(self.of(record["figures"])), record["machine"]["cpu"]


def _step() -> float:
    """Times that a step of upcycle is faster than the plain loop."""
    import torch

    from benchmarks import kd_step

    torch.set_num_threads(2)

    times = alternate({"naive": kd_step.naive(), "upcycle": kd_step.ours()}, REPETITIONS)
    return min(times["naive"]) / min(times["upcycle"])


def _loading() -> float:
    """Times that loading with crop and flip is faster than torchvision's."""
    import torch

    from benchmarks import loading

    torch.set_num_threads(2)

    times = {name: min(seconds) for name, seconds in loading.measured(REPETITIONS).items()}
    return times[f"torchvision, {loading.WORKERS} workers, crop and flip"] / times["upcycle, crop and flip"]


def _command() -> float:
    """Times that a whole command on 5,000 images is faster than the tuned script."""
    from benchmarks import whole_command

    with tempfile.TemporaryDirectory() as folder:
        arms = whole_command.cifar(Path(folder), 5_000, 2, 2)["arms"]
    return float(arms["tuned script"]["seconds"] / arms["upcycle"]["seconds"])


RATIOS = (
    Ratio(
        "a step of distillation, over the plain loop",
        "kd_step",
        lambda f: f["ratios"]["upcycle against naive float32 (times)"],
        _step,
        0.2,
    ),
    Ratio(
        "loading with crop and flip, over torchvision",
        "loading",
        lambda f: f["upcycle, crop and flip"]["times_torchvision"],
        _loading,
        0.35,
    ),
    Ratio(
        "distilling with 5,000 images, over the tuned script",
        "whole_command_cifar-5000",
        lambda f: f["ratios"]["tuned script"]["seconds"],
        _command,
        0.25,
    ),
)


def judged(found: float, committed: float, band: float) -> str:
    """Give the word for a ratio: ``as before``, ``better`` or ``worse``."""
    if found < committed * (1 - band):
        return "worse"
    return "better" if found > committed * (1 + band) else "as before"


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print, and say whether something got worse."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.parse_args(argv)
    if not (Path(os.environ.get("UPCYCLE_DATA", "data")) / "cifar10").is_dir():
        print("CIFAR-10 is needed: set UPCYCLE_DATA to the folder that has it.", file=sys.stderr)
        return 2
    if (load := os.getloadavg()[0]) > BUSY:
        print(
            f"The machine is busy (load {load:.1f}), so that ratios would say nothing: wait until it is idle.",
            file=sys.stderr,
        )
        return 2
    words, here = [], machine()["cpu"]
    for ratio in RATIOS:
        found, before = ratio.measure(), ratio.committed()
        if before is None:
            words.append("none was committed")
        elif before[1] != here:
            words.append(f"{before[0]:.2f} on {before[1]}, which {here} is not compared with")
        else:
            word = judged(found, before[0], ratio.band)
            words.append(f"{before[0]:.2f} committed, band {ratio.band:.0%}: {word}")
        print(f"{ratio.name:54} {found:6.2f} times ({words[-1]})", flush=True)
    return int(any(word.endswith("worse") for word in words))


if __name__ == "__main__":
    sys.exit(main())
