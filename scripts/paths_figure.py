"""The picture of the page about graphs, docs/assets/paths.svg: what two papers of Cora attend to.

Run from the repository's root, with Cora under `$UPCYCLE_DATA`:

    upcycle distill --config recipes/plain_cora.yaml --recipe.epochs 300
    upcycle distill --config recipes/spagan_cora.yaml --recipe.epochs 300 --out runs/cora-paths
    python -m scripts.paths_figure runs/cora-paths
"""

from __future__ import annotations

import argparse
import json
import re
from pathlib import Path

from markupsafe import Markup

from upcycle.reports import svg
from upcycle.reports.pictures import picture
from upcycle.reports.svg import HUES, WIDTH

FILE = Path(__file__).parents[1] / "docs" / "assets" / "paths.svg"
TONES = (
    "#00897b", "#e96900", "#864ea6", "#a73f15", "#ad8db6", "#979f4f", "#c22b6c", "#5a1408", "#019bd7", "#58ae73",
)  # fmt: skip
STYLE = (
    "text{font:12px sans-serif;fill:#546e7a}.name{fill:#263238;font-weight:600}.in{fill:#37474f}"
    ".rail{stroke:#b0bec5;stroke-opacity:.75;fill:none}.tag{stroke:#fff;stroke-width:3;paint-order:stroke}"
    + "".join(f".tone-{hue}{{fill:{tone}}}" for hue, tone in zip(HUES, TONES, strict=True))
)
MARGIN, LINE = 12, 18


def key(names: list[tuple[str, str]], top: float) -> tuple[Markup, float]:
    """A dot and a name for each class, from ``top`` on, and where they end."""
    parts, x, y = [], 0.0, top
    for name, tone in names:
        width = 7 * len(name) + 28
        if x and x + width > WIDTH:
            x, y = 0.0, y + LINE
        parts.append(svg.dot(x + 5, y + 5, 5, tone, name) + svg.write(x + 15, y + 9, name, "in", "start"))
        x += width
    return Markup("").join(parts), y + LINE


def figure(file: Path) -> str:
    """The paths that a run drew, as an SVG file with its own style and key."""
    data = json.loads(file.read_text())
    seen = {group for item in data["items"] for path in item["paths"] for group in path["groups"]}
    names = [(name.replace("_", " "), HUES[i % len(HUES)]) for i, name in enumerate(data["groups"]) if i in seen]
    return alone(file, names)


def alone(file: Path, names: list[tuple[str, str]], style: str = "") -> str:
    """A picture of a run as an SVG file of its own.

    Args:
        file: of the picture.
        names: what its key says of which tone.
        style: further rules.
    """
    body = re.search(r"<svg.*</svg>", str(picture(file).body), re.DOTALL)
    assert body is not None
    height = float(body[0].split('"', 2)[1].split()[-1])
    legend, top = key(names, 0)
    inner = body[0].replace("<svg ", f'<svg y="{top + 10}" width="{WIDTH}" height="{height}" overflow="visible" ', 1)
    whole = f"{-MARGIN} {-MARGIN} {WIDTH + 2 * MARGIN} {top + 10 + height + 2 * MARGIN:.0f}"
    paper = f'<rect x="{-MARGIN}" y="{-MARGIN}" width="100%" height="100%" fill="#fff"/>'
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="{whole}" width="{1.5 * WIDTH:.0f}">'
        f"<style>{STYLE}{style}</style>{paper}{legend}{inner}</svg>\n"
    )


def main() -> None:
    """Write the file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="a run of spagan with --explain_nodes")
    FILE.write_text(figure(parser.parse_args().run / "pictures" / "paths.json"), encoding="utf-8")


if __name__ == "__main__":
    main()
