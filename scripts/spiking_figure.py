"""The picture of the page of ltl, docs/assets/firing.svg: how often each layer of a spiking network fires at each step.

Run from the repository's root, with Fashion-MNIST under `$UPCYCLE_DATA` (some minutes):

    upcycle distill --config recipes/plain_capped_fashion.yaml --shots 100
    upcycle distill --config recipes/ltl_fashion.yaml --shots 100 --out runs/spiking
    python -m scripts.spiking_figure runs/spiking
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from scripts.paths_figure import TONES, alone
from upcycle.reports import svg

FILE = Path(__file__).parents[1] / "docs" / "assets" / "firing.svg"
COLOURS = dict(zip(svg.TONES, TONES, strict=False))
STYLE = ".grid{stroke:#e2e4e6;fill:none}.line{fill:none;stroke-width:1.7}.tick,.note{font-size:11.5px}" + "".join(
    f".tone-{tone}{{fill:{hue}}}.line.tone-{tone}{{stroke:{hue};fill:none}}" for tone, hue in COLOURS.items()
)


def main() -> None:
    """Write the file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="a run of ltl")
    file = parser.parse_args().run / "pictures" / "firing.json"
    names = [(str(s["name"]), svg.tone_of(i)) for i, s in enumerate(json.loads(file.read_text())["series"])]
    FILE.write_text(alone(file, names, STYLE), encoding="utf-8")


if __name__ == "__main__":
    main()
