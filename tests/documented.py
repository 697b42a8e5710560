"""The examples of the documentation: the bar that each of their figures has to reach.

A bar is by page and by the figure's name: the directory of a run, ``evaluate MODEL``, the file of predictions, or the
variable of a Python block. Every figure has one, and every bar a figure. The bars say what success is: well above
chance, and above what the method is compared with; they are not what was measured.
"""

from __future__ import annotations

import csv
import re
import statistics
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from scripts import photographs
from torch import nn
from torch.nn import functional as F

import upcycle
from upcycle.core.store import read_json
from upcycle.verbs.evaluate import Evaluated
from upcycle.verbs.predict import Predictions

Rows = list[dict[str, Any]]


@dataclass(frozen=True)
class Bar:
    """A bar that an example has to reach.

    Args:
        least: accuracy of what it makes or measures, from 0 to 1.
        over: the role of a row that it has to beat; none if empty.
        by: how far at least.
    """

    least: float
    over: str = ""
    by: float = 0.0

    def check(self, rows: Rows, name: str) -> None:
        """Fail where the last row does not reach the bar."""
        made = statistics.fmean(rows[-1]["accuracy"])
        assert made >= self.least, f"{name}: {made:.1%}, and {self.least:.0%} would show success"
        for row in rows[:-1]:
            if row["role"] == self.over:
                other = statistics.fmean(row["accuracy"])
                assert made - other >= self.by, f"{name}: {made:.1%}, no better than {row['name']}, {other:.1%}"
        assert not self.over or any(row["role"] == self.over for row in rows[:-1]), f"{name} has no row {self.over}"


BARS: dict[str, dict[str, Bar]] = {
    "README.md": {
        "runs/distill-kd-photos": Bar(0.6),
        "runs/first": Bar(0.95),
        "evaluate runs/first": Bar(0.95),
    },
    "CONTRIBUTING.md": {"runs/logits": Bar(0.95)},
    "docs/tutorial.md": {
        "runs/adapted": Bar(0.6),
        "runs/small": Bar(0.55),
        "evaluate runs/small": Bar(0.55),
        "runs/looked-into": Bar(0.55),
        "predictions.csv": Bar(0.55),
        "answers": Bar(0.55),
    },
    "docs/index.md": {"runs/distill-kd-digits": Bar(0.95)},
    "docs/quickstart.md": {"runs/first": Bar(0.95), "evaluate runs/first": Bar(0.95), "found": Bar(0.95)},
    "docs/methods.md": {"runs/distill-logits-digits": Bar(0.95)},
    "docs/take-apart.md": {
        "runs/three-five-eight": Bar(0.95),
        "runs/zero-one-two": Bar(0.95),
        "runs/six-digits": Bar(0.95),
        "runs/mixed": Bar(0.9),
    },
    "docs/operate.md": {"runs/gated": Bar(0.95)},
    "docs/without-data.md": {"runs/without-data": Bar(0.85), "runs/from-the-pool": Bar(0.85)},
    "docs/graphs.md": {
        "runs/factors": Bar(0.85),
        "evaluate runs/factors": Bar(0.85),
        "runs/large": Bar(0.75),
        "runs/small": Bar(0.75),
        "runs/looked-into": Bar(0.75),
        "found": Bar(0.75),
        "runs/learnt": Bar(0.85, over="lower bound", by=0.02),
        "runs/gat": Bar(0.75),
        "runs/paths": Bar(0.75),
        "along": Bar(0.75),
    },
    "docs/look-inside.md": {"runs/looked-into": Bar(0.95)},
    "docs/rare-classes.md": {
        "runs/tail": Bar(0.7),
        "evaluate runs/tail": Bar(0.7),
        "runs/looked-into": Bar(0.7),
        "runs/mended": Bar(0.8, over="control", by=0.01),
    },
    "docs/adapt.md": {
        "runs/five": Bar(0.95),
        "runs/tuned": Bar(0.95, over="control", by=0.01),
        "runs/from-answers": Bar(0.75, over="source", by=0.15),
    },
    "docs/ingredients.md": {"runs/mixed": Bar(0.9)},
    "docs/notebooks.md": {"found": Bar(0.95)},
    "docs/extend.md": {"runs/extended": Bar(0.75, over="lower bound", by=0.4)},
    "docs/your-model-your-data.md": {
        "runs/distill-kd-data": Bar(0.9),
        "evaluate my_models:large": Bar(0.7),
        "ships.csv": Bar(0.7),
        "found": Bar(0.7),
        "runs/seen": Bar(0.7),
        "runs/seen too": Bar(0.7),
        "runs/small": Bar(0.6),
        "runs/treated": Bar(0.6),
        "runs/adapted": Bar(0.6),
        "runs/extended": Bar(0.6),
        "runs/two": Bar(0.6),
        "runs/third": Bar(0.6),
        "runs/joined": Bar(0.6),
        "runs/built": Bar(0.6),
        "runs/a": Bar(0.6),
        "runs/b": Bar(0.6),
        "runs/c": Bar(0.6),
        "runs/d": Bar(0.6),
        "runs/e": Bar(0.6),
        "runs/f": Bar(0.6),
        "runs/g": Bar(0.6),
        "runs/h": Bar(0.6),
    },
}


def one(accuracy: float) -> Rows:
    """The rows of a single figure."""
    return [{"name": "", "role": "product", "accuracy": [accuracy]}]


def runs(desk: Path) -> dict[str, Rows]:
    """The comparison of every run below a directory, other seeds and arms left out."""
    files = [file for file in sorted(desk.rglob("result.json")) if "more" not in file.relative_to(desk).parts]
    found = {file.parent.relative_to(desk).as_posix(): read_json(file)["rows"] for file in files}
    return {name: rows for name, rows in found.items() if rows}  # an explanation compares nothing


def printed(words: list[str], said: str, desk: Path) -> dict[str, Rows]:
    """The figure of an ``evaluate`` or a ``predict`` with known classes; no others have one of their own."""
    if words[0] == "evaluate":
        found = re.search(r"(?:accuracy|F1) +([\d.]+)%", said)
        assert found is not None, said
        return {f"evaluate {words[1]}": one(float(found.group(1)) / 100)}
    if words[0] == "predict" and "--out" in words:
        file = words[words.index("--out") + 1]
        with (desk / file).open() as table:
            lines = list(csv.DictReader(table))
        return {file: one(right([line["path"] for line in lines], [line["class"] for line in lines], words[2]))}
    return {}


def right(paths: list[str], predicted: list[str], place: str) -> float:
    """The share of pictures that were called as the folder that they lie in."""
    named = [Path(place, path).parent.name for path in paths]
    return sum(name == folder for name, folder in zip(predicted, named, strict=True)) / len(paths)


def bound(names: dict[str, Any]) -> dict[str, Rows]:
    """The figures that a Python block has left in variables."""
    found = {name: one(value.accuracy) for name, value in names.items() if isinstance(value, Evaluated)}
    asked = {name: value for name, value in names.items() if isinstance(value, Predictions)}
    return found | {name: one(right(value.paths, value.predicted, "")) for name, value in asked.items()}


def train(network: nn.Module, photos: Path, file: Path) -> None:
    """Train a network of a page on the photographs, as a reader would have, and write its weights."""
    torch.manual_seed(0)
    split = upcycle.load_data(str(photos), size=16).train
    x, y = split.images.permute(0, 3, 1, 2) / 255, split.labels
    optimizer = torch.optim.Adam(network.parameters(), 0.01)
    for _ in range(100):
        optimizer.zero_grad()
        F.cross_entropy(network(x), y).backward()
        optimizer.step()
    torch.save(network.state_dict(), file)


def offline(words: list[str], desk: Path) -> list[str]:
    """The words of a command, with a file in place of the weights that timm would fetch for the network to adapt."""
    if words[0] != "adapt" or not words[1].startswith("timm:"):
        return words
    file, name = desk / "imagenet.safetensors", words[1].removeprefix("timm:")
    photographs.weights(file, name, number=1_200, epochs=4, side=32)
    return [*words, "--weights", str(file)]
