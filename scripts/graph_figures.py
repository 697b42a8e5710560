"""The picture of the page about graphs that shows factors: docs/factors.svg.

Run from the repository's root:

    upcycle distill --config recipes/factorgcn_factors.yaml --out runs/factors
    python -m scripts.graph_figures runs/factors
"""

from __future__ import annotations

import argparse
import re
from pathlib import Path

from markupsafe import Markup

from upcycle.reports import svg
from upcycle.reports.pictures import picture

FILE = Path(__file__).parents[1] / "docs" / "factors.svg"
MARGIN, HEAD = 16, 26

# A picture in a page does not see the page's colours, so it brings its own, on a ground of its own.
STYLE = """
text { font: 12px -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif; fill: #1b1d1f; }
.tick, .note { fill: #5a6066; font-size: 11.5px; } .heading { font-weight: 650; font-size: 13px; }
.tick.on { fill: #ffffff; } .tick.in { fill: #1b1d1f; } .grid { stroke: #e2e4e6; fill: none; }
.cell, .map { fill: #0b6b63; } .map { shape-rendering: crispEdges; }
.edge { fill: none; stroke: #1b1d1f; stroke-width: 1.2; }
"""


def drawn(run: Path, *names: str) -> str:
    """Some of a run's pictures one below the other, each under its title, as one SVG.

    Args:
        run: the directory of a run.
        names: of its pictures.
    """
    parts, top = [], MARGIN
    for name in names:
        figure = picture(run / "pictures" / f"{name}.json")
        size = re.search(r'viewBox="0 0 [\d.]+ ([\d.]+)"', str(figure.body))
        if size is None:
            raise SystemExit(f"{name} cannot be drawn: {figure.caption}")
        height = float(size.group(1))
        place = f'<svg x="{MARGIN}" y="{top + HEAD:g}" width="{svg.WIDTH}" height="{height:g}" overflow="visible" '
        parts.append(
            Markup('<text class="heading" x="{}" y="{}">{}</text>').format(MARGIN, f"{top + 12:g}", figure.title)
        )
        parts.append(Markup(str(figure.body).replace("<svg ", place, 1)))
        top += HEAD + height + MARGIN
    width = svg.WIDTH + 2 * MARGIN
    frame = Markup(
        '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {0} {1}" width="{0}" height="{1}" role="img" '
        'aria-label="{2}"><style>{3}</style><rect width="{0}" height="{1}" fill="#ffffff"/>{4}</svg>\n'
    )
    return frame.format(width, f"{top:g}", "Factors and relations", Markup(STYLE), Markup("").join(parts))


def main() -> None:
    """Draw which factor stands for which relation, and the factors of one graph."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="a run of factorgcn")
    FILE.write_text(drawn(parser.parse_args().run, "factors", "factors-0"), encoding="utf-8")


if __name__ == "__main__":
    main()
