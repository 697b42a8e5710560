"""The two pictures of data-free distillation in the documentation.

`python -m scripts.data_free_figures` draws docs/assets/data_free_accuracy.svg from benchmarks/results/data_free*.json,
whose figures hold ``curves``: {method: [one curve for each seed]}, a curve being a list of
[synthesis seconds, all seconds, accuracy in [0, 1]]. Each file that has curves gets a panel.

`python -m scripts.data_free_figures --pool DIRECTORY --teacher REFERENCE` draws docs/assets/synthesised.png: of each
class the newest images in that pool (or in the run that left it), those first that the teacher is surest of.
"""

from __future__ import annotations

import argparse
import json
import re
from pathlib import Path
from typing import Any

import torch
from markupsafe import Markup
from PIL import Image, ImageDraw, ImageFont

from upcycle.core.frozen import frozen
from upcycle.core.references import resolve
from upcycle.data import load_pool
from upcycle.distillation.data_free.gallery import strip
from upcycle.reports import svg
from upcycle.reports.lines import Series, line_plot

ROOT = Path(__file__).parents[1]
RESULTS, ASSETS = ROOT / "benchmarks" / "results", ROOT / "docs" / "assets"
COLUMNS, RECENT = 10, 100  # images shown of each class, and the newest of it that they are chosen from
INK, PAPER = "#1b1d1f", "#ffffff"

# A picture in a page does not see the page's colours, so it brings its own, on a ground of its own.
STYLE = """
text { font: 12px -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif; fill: #1b1d1f; }
.tick, .note { fill: #5a6066; font-size: 11.5px; } .heading { font-weight: 650; font-size: 13px; }
.grid { stroke: #e2e4e6; fill: none; }
.line { fill: none; stroke: var(--tone); stroke-width: 1.7; stroke-linejoin: round; }
.line.tone-other { stroke-dasharray: 5 4; } .dot { fill: var(--tone); }
.tone-student { --tone: #0b6b63; } .tone-teacher { --tone: #35393d; } .tone-alone { --tone: #a3a9ae; }
.tone-second { --tone: #7bb5ad; } .tone-other { --tone: #b0562c; }
"""
MARGIN, HEAD, KEY, PLOT = 16, 26, 20, 260


def accuracy_svg(results: list[dict[str, Any]]) -> str:
    """Test accuracy over the seconds of synthesis, on a logarithmic axis: a panel for each result.

    Args:
        results: as benchmarks leave them; those without ``figures["curves"]`` are left out.
    """
    results = [r for r in results if r["figures"].get("curves")]
    methods = list(dict.fromkeys(method for result in results for method in result["figures"]["curves"]))
    parts, top = [], MARGIN
    for result in results:
        # Noise costs no synthesis, so it has no place on a logarithm of seconds; the table has it.
        curves = {name: found for name, found in result["figures"]["curves"].items() if found[0][-1][0] >= 1}
        tones = {method: svg.tone_of(methods.index(method)) for method in curves}
        series = [Series(f"{method}, seed {seed}" if len(curves[method]) > 1 else method,
                               [point[0] for point in curve], [point[2] for point in curve], tones[method])
                  for method in curves for seed, curve in enumerate(curves[method])]  # fmt: skip
        title = str(result["settings"].get("title", result["benchmark"]))
        parts.append(Markup('<text class="heading" x="{}" y="{}">{}</text>').format(MARGIN, top + 12, title))
        key, rows = _key(tones, top + HEAD)
        body = line_plot(series, label=f"{title}: student accuracy over the seconds of synthesis",
                           x="seconds of synthesis", y="student accuracy", show=svg.percent, height=PLOT,
                           log=True)  # fmt: skip
        top += HEAD + KEY * rows
        inner = Markup(
            str(body).replace(
                "<svg ", f'<svg x="{MARGIN}" y="{top}" width="{svg.WIDTH}" height="{PLOT}" overflow="visible" ', 1
            )
        )
        parts += [key, inner]
        top += PLOT + 2 * MARGIN
    width = svg.WIDTH + 2 * MARGIN
    label = "Student accuracy over the seconds of synthesis: " + ", ".join(methods)
    return Markup('<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {0} {1}" width="{0}" height="{1}" role="img" '
                  'aria-label="{2}"><style>{3}</style><rect width="{0}" height="{1}" fill="{4}"/>{5}</svg>\n').format(
                      width, top, label, Markup(STYLE), PAPER, Markup("\n").join(parts))  # fmt: skip


def _key(tones: dict[str, str], top: float) -> tuple[Markup, int]:
    """A dot and a name for each method, and how many rows they take."""
    parts, x, row = [], float(MARGIN), 0
    for name, tone in tones.items():
        width = 7 * len(name) + 34
        if x > MARGIN and x + width > svg.WIDTH + MARGIN:
            x, row = MARGIN, row + 1
        y = top + KEY * row
        parts.append(Markup('<circle class="dot tone-{}" cx="{:.0f}" cy="{}" r="5"/><text x="{:.0f}" y="{}">{}</text>')
                     .format(tone, x + 5, y, x + 16, y + 4, name))  # fmt: skip
        x += width
    return Markup("").join(parts), row + 1


def grid(pool: Path, teacher: str | None) -> Image.Image:
    """A row of images for each class, with its name; see the module's docstring."""
    data = load_pool(pool)
    split, label = data.train, data.train.labels
    rows = []
    for c in range(len(data.classes)):
        mine = (label == c).nonzero().flatten().flip(0)[:RECENT]
        if teacher and len(mine):
            model = resolve(teacher)
            network = frozen(model.module, precision="32-true")
            images = split.normalised(model.mean, model.std).batch(mine, device=torch.device("cpu")).images
            mine = mine[network(images).softmax(1)[:, c].argsort(descending=True, stable=True)]
        if len(mine):
            found = list(split.images[mine[:COLUMNS]])
            rows.append((data.classes[c], strip([*found, *[None] * (COLUMNS - len(found))], side=64)))
    font = ImageFont.load_default(22)
    left = max(int(font.getlength(name)) for name, _ in rows) + 30
    step = rows[0][1].height + 6
    sheet = Image.new("RGB", (left + rows[0][1].width + 10, 10 + step * len(rows) + 4), PAPER)
    draw = ImageDraw.Draw(sheet)
    for i, (name, row) in enumerate(rows):
        y = 10 + i * step
        draw.text((left - 16, y + row.height / 2), name, fill=INK, font=font, anchor="rm")
        sheet.paste(row.convert("RGB"), (left, y), row.getchannel("A"))
    return sheet


def main() -> None:
    """Draw the grid of a pool, or else the plot of the committed results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pool", type=Path, help="a saved pool, or a run that left one")
    parser.add_argument("--teacher", help="the network that the pool was made from, to choose the clearest images by")
    given = parser.parse_args()
    ASSETS.mkdir(parents=True, exist_ok=True)
    if given.pool:
        grid(given.pool, given.teacher).save(ASSETS / "synthesised.png", optimize=True)
        return
    results = [json.loads(file.read_text()) for file in sorted(RESULTS.glob("data_free*.json"))]
    drawn = accuracy_svg(results)
    if not re.search(r"<polyline", drawn):
        parser.error(f"no file data_free*.json in {RESULTS} has curves")
    (ASSETS / "data_free_accuracy.svg").write_text(drawn, encoding="utf-8")


if __name__ == "__main__":
    main()
