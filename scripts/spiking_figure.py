"""The picture of the page of ltl, docs/assets/firing.svg: how often each layer of a spiking network fires at each step.

Trains an ordinary network on the digits of scikit-learn and a spiking one of 8 steps from it, in less than a minute.
Run from the repository's root: ``python -m scripts.spiking_figure``.
"""

from __future__ import annotations

import dataclasses
import json
import tempfile
from pathlib import Path

from scripts.paths_figure import TONES, alone
from upcycle.claims.settings import fresh, train
from upcycle.core.recipe import Recipe
from upcycle.core.run import Run
from upcycle.data import load
from upcycle.distillation import LTL, Plain
from upcycle.reports import svg

FILE = Path(__file__).parents[1] / "docs" / "assets" / "firing.svg"
COLOURS = dict(zip(svg.TONES, TONES, strict=False))
STYLE = ".grid{stroke:#e2e4e6;fill:none}.line{fill:none;stroke-width:1.7}.tick,.note{font-size:11.5px}" + "".join(
    f".tone-{tone}{{fill:{hue}}}.line.tone-{tone}{{stroke:{hue};fill:none}}" for tone, hue in COLOURS.items()
)


def recipe(epochs: int, lr: float) -> Recipe:
    """Adam with cosine, batches of 64."""
    return Recipe(epochs=epochs, batch_size=64, optimizer="adam", lr=lr, weight_decay=0.0)


def main() -> None:
    """Write the file."""
    data = load("digits")
    data = data.normalised(*data.statistics)
    start = fresh("zoo:capped", data, 0)
    teacher = dataclasses.replace(start, module=train(Plain(student=start, recipe=recipe(5, 3e-3)), data, 0))
    method = LTL(teacher=teacher, student=fresh("zoo:spiking", data, 0), time_steps=8, recipe=recipe(8, 4e-3))
    with tempfile.TemporaryDirectory() as folder:
        run = Run(folder, seed=0, quiet=True)
        method.begin(run, data)
        method.fit(run, data)
        run.close()
        file = Path(folder) / "pictures" / "firing.json"
        names = [(str(s["name"]), svg.tone_of(i)) for i, s in enumerate(json.loads(file.read_text())["series"])]
        FILE.write_text(alone(file, names, STYLE), encoding="utf-8")


if __name__ == "__main__":
    main()
