"""The picture of the page about CMAE, docs/assets/cmae.png: images, what the encoder sees, and what is made of it.

Run from the repository's root, with Fashion-MNIST under `$UPCYCLE_DATA`, in minutes:

    upcycle adapt zoo:vit_plain_mean --method cmae --data fashion_mnist_local --group 1 --w_contrast 0 \\
        --recipe.epochs 3 --recipe.batch_size 128 --control false --out runs/cmae
    python -m scripts.cmae_figure runs/cmae
"""

from __future__ import annotations

import argparse
import base64
import io
import json
from pathlib import Path

from PIL import Image

FILE = Path(__file__).parents[1] / "docs" / "assets" / "cmae.png"
COLUMNS, GAP = 2, 24


def figure(file: Path) -> Image.Image:
    """The rows of a run's picture, several beside each other."""
    rows = [Image.open(io.BytesIO(base64.b64decode(item["png"]))) for item in json.loads(file.read_text())["items"]]
    width, height = rows[0].width, rows[0].height
    lines = -(-len(rows) // COLUMNS)
    size = (COLUMNS * (width + GAP) - GAP, lines * (height + GAP // 4) - GAP // 4)
    whole = Image.new("RGB", size, "white")
    for i, row in enumerate(rows):
        whole.paste(row, (i % COLUMNS * (width + GAP), i // COLUMNS * (height + GAP // 4)))
    return whole


def main() -> None:
    """Write the file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="a run of cmae")
    figure(parser.parse_args().run / "pictures" / "1-reconstruction.json").save(FILE, optimize=True)


if __name__ == "__main__":
    main()
