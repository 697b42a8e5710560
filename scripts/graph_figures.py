"""The picture of the page about graphs that shows factors: docs/factors.png.

Run from the repository's root, with Chromium:

    upcycle distill --config recipes/factorgcn_factors.yaml --out runs/factors
    python -m scripts.graph_figures runs/factors
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from tests.browser import open_browser

from scripts.assembly_figures import page

FILE = Path(__file__).parents[1] / "docs" / "factors.png"


def main() -> None:
    """Photograph which factor stands for which relation, and the factors of one graph."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="a run of factorgcn")
    run = parser.parse_args().run
    with tempfile.TemporaryDirectory() as folder, open_browser() as browser:
        file = Path(folder) / "factors.html"
        file.write_text(page(run, "factors", "factors-0"), encoding="utf-8")
        FILE.write_bytes(browser.visit(file, 600, height=100).png)


if __name__ == "__main__":
    main()
