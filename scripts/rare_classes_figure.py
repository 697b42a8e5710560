"""The picture of the page about rare classes: docs/assets/recall-by-count.svg, recall before and after a treatment.

Run from the repository's root, with Fashion-MNIST under `$UPCYCLE_DATA`, about two minutes on two cores:

    upcycle distill --method plain --student zoo:convnet_small --data fashion_mnist_local --long_tail 100 \
        --recipe.epochs 6 --out runs/tail
    upcycle treat runs/tail --method crt --data fashion_mnist_local --long_tail 100 --out runs/mended
    python -m scripts.rare_classes_figure runs/mended
"""

from __future__ import annotations

import argparse
from pathlib import Path

from upcycle.core.store import read_json
from upcycle.reports.scatter import Point, scatter_plot
from upcycle.reports.svg import dot, write

ASSETS = Path(__file__).parents[1] / "docs" / "assets"
TONES = {"before": "alone", "after": "student"}
# A picture in a page does not see the page's colours, so it brings its own, on a ground of its own.
STYLE = (
    'text{font:12px -apple-system,"Segoe UI",Roboto,"Helvetica Neue",Arial,sans-serif;fill:#1b1d1f}'
    ".tick,.note{fill:#5a6066;font-size:11.5px}.tag{stroke:#fff;stroke-width:3;paint-order:stroke}"
    ".grid{stroke:#e2e4e6;fill:none}.tone-alone{fill:#a3a9ae}.tone-student{fill:#0b6b63}"
)


def drawn(run: Path) -> str:
    """Recall against the number of training images of each class, as an SVG file.

    Args:
        run: of ``upcycle treat`` on data with rare classes.
    """
    picture = read_json(run / "pictures" / "recall-by-count.json")
    points = [
        Point(str(item["name"]), item["x"], item["y"], TONES[item["group"]], hint=f"{item['name']}, {item['group']}")
        for item in picture["items"]
    ]
    label = "Recall of each class against the number of its training images, before and after the treatment"
    body = str(
        scatter_plot(points, label=label, x=picture["x"], y=picture["y"], show_x="{:,.0f}".format, log=True, most=0)
    )
    key = "".join(
        str(dot(300 + 58 * i, 9, 4.4, tone, name)) + str(write(308 + 58 * i, 13, name, "note", "start"))
        for i, (name, tone) in enumerate(TONES.items())
    )
    head, _, rest = body.partition(">")
    head = head.replace("<svg ", '<svg xmlns="http://www.w3.org/2000/svg" width="520" ', 1)
    return f'{head}><style>{STYLE}</style><rect width="100%" height="100%" fill="#fff"/>{key}{rest}\n'


def main() -> None:
    """Draw it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("treated", type=Path, help="a run of treat")
    (ASSETS / "recall-by-count.svg").write_text(drawn(parser.parse_args().treated), encoding="utf-8")


if __name__ == "__main__":
    main()
