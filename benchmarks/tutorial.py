"""The figures of the tutorial: its commands on 900 photographs of CIFAR-10, from weights made as those of timm are.

Run from the repository's root: `python -m benchmarks.tutorial`. The weights that timm would fetch are replaced by a
network of the same shape that is trained here on CIFAR-10's seven other classes, so that all of it can be made again
without a network: a few minutes on two cores. The commands are those of `docs/tutorial.md`, word for word.
"""

from __future__ import annotations

import contextlib
import io
import re
import shlex
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from scripts import photographs

from benchmarks.common import record
from upcycle.cli import main as upcycle
from upcycle.core.store import read_json

PAGE = Path(__file__).parents[1] / "docs" / "tutorial.md"
PICTURES, NUMBER, EPOCHS, SIDE = 300, 6_000, 6, 32


def commands() -> list[list[str]]:
    """The words after ``upcycle`` of each command of the page."""
    consoles = re.findall(r"```console\n(.*?)```", PAGE.read_text(), re.DOTALL)
    lines = [line[2:] for text in consoles for line in text.splitlines() if line.startswith("$ upcycle ")]
    return [shlex.split(line)[1:] for line in lines]


def main() -> None:
    """Make photographs and weights, run, print and record."""
    torch.set_num_threads(1)
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        photographs.write(Path("photos"), PICTURES, SIDE)
        for words in commands():
            timm = words[0] == "adapt" and words[1].startswith("timm:")
            if timm:
                photographs.weights(Path("timm.safetensors"), words[1][5:], NUMBER, EPOCHS, SIDE)
            start, said = time.perf_counter(), io.StringIO()
            with contextlib.redirect_stdout(said):
                assert upcycle([*words, *(["--weights", "timm.safetensors"] if timm else [])]) == 0, words
            seconds = time.perf_counter() - start
            print(f"{seconds:6.1f} s  upcycle {shlex.join(words)}", flush=True)
            if words[0] in ("adapt", "distill"):
                found = read_json(Path(words[words.index("--out") + 1]) / "result.json")
                print(found["sentence"])
                keep = ("name", "role", "accuracy", "parameters", "macs", "latency")
                rows += [{**{key: line.get(key) for key in keep}, "step": words[0]} for line in found["rows"]]
                rows[-1]["seconds"] = round(seconds, 1)
        sizes = {"onnx_bytes": Path("small.onnx").stat().st_size}
    print(record("tutorial", {"rows": rows, **sizes}, photographs=3 * PICTURES, size=SIDE, seed=0))


if __name__ == "__main__":
    main()
