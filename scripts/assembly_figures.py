"""The pictures of the page about taking networks apart: routes.png, candidates.png and pareto.png in docs/assets.

Run from the repository's root, with CIFAR-10 and its networks under `$UPCYCLE_DATA` and with Chromium:

    upcycle disassemble --config recipes/mda_cifar10.yaml --out runs/mda
    upcycle reassemble --config recipes/dery_cifar10.yaml --recipe.epochs 1 --recipe.warmup 0.2 --out runs/dery
    python -m scripts.assembly_figures runs/mda runs/dery
"""

from __future__ import annotations

import argparse
import re
import tempfile
from pathlib import Path

from tests.browser import open_browser

from upcycle.reports.pictures import picture

ASSETS = Path(__file__).parents[1] / "docs" / "assets"


def page(run: Path, *names: str) -> str:
    """Some of a run's pictures as a page of their own, in the style of its report."""
    style = re.search(r"<style>.*?</style>", (run / "report.html").read_text(), re.DOTALL)
    assert style is not None
    parts = []
    for name in names:
        figure = picture(run / "pictures" / f"{name}.json")
        parts.append(f"<figure><figcaption><h3>{figure.title}</h3><p>{figure.caption}</p></figcaption>{figure.body}"
                     "</figure>")  # fmt: skip
    return f"<!doctype html><meta charset=utf-8>{style.group()}<body><main>{''.join(parts)}</main></body>"


def main() -> None:
    """Photograph all."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("disassembled", type=Path, help="a run of disassemble")
    parser.add_argument("reassembled", type=Path, help="a run of reassemble")
    given = parser.parse_args()
    wanted = {
        "routes": (given.disassembled, "routes"),
        "candidates": (given.reassembled, "partition", "candidates-params"),
        "pareto": (given.reassembled, "zoo-parameters", "zoo-macs", "zoo-latency"),
    }
    with tempfile.TemporaryDirectory() as folder, open_browser() as browser:
        for name, (run, *pictures) in wanted.items():
            file = Path(folder) / f"{name}.html"
            file.write_text(page(run, *pictures), encoding="utf-8")
            (ASSETS / f"{name}.png").write_bytes(browser.visit(file, 600, height=100).png)


if __name__ == "__main__":
    main()
