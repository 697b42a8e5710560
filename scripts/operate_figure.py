"""The picture of the page about operations: docs/assets/operate.svg, two networks before and after one.

The modules in it and their numbers are those of the networks. Run from the repository's root, in seconds, with the
trained networks of CIFAR-10 under `$UPCYCLE_DATA`:

    python -m scripts.operate_figure
"""

from __future__ import annotations

from pathlib import Path
from xml.sax.saxutils import escape

from torch import nn

from upcycle.core.models import Model
from upcycle.core.references import resolve
from upcycle.measure.cost import count
from upcycle.measure.units import si
from upcycle.surgery.operate import Cut, operate

ASSETS = Path(__file__).parents[1] / "docs" / "assets"
WIDTH, ROW, BOX, GAP = 168, 30, 24, 14
EXAMPLES = (
    ("zoo:cifar10_mobilenetv2", "stages.1.1", Cut(at=("stages.[1-9].*.depthwise",), block="coord")),
    ("zoo:cifar10_vit", "blocks.0", Cut(at=("blocks.*.attention",), block="pool")),
)
STYLE = (
    'text{font:12px -apple-system,"Segoe UI",Roboto,"Helvetica Neue",Arial,sans-serif;fill:#1b1d1f}'
    ".note{fill:#5a6066;font-size:11.5px}.head{font-weight:600}.old{fill:#e6e8ea}.new{fill:#0b6b63}.on{fill:#fff}"
    ".line{stroke:#a3a9ae;fill:none}"
)


def rows(module: nn.Module, block: str) -> list[tuple[str, bool]]:
    """The parts of a module in their order, by name, and whether each is new; new ones are called ``block``."""
    found = []
    for name, part in module.named_children():
        inner = dict(part.named_children())
        if "block" in inner:
            found += [(name, False)] if "module" in inner else []
            found.append((block, True))
        else:
            found.append((name, False))
    return found


def panel(model: Model, name: str, title: str, block: str, x: int) -> tuple[str, int]:
    """A module of a network as boxes under each other; returns the height too."""
    parts = rows(model.module.get_submodule(name), block)
    drawn = [f'<text class="head" x="{x}" y="16">{escape(title)}</text>']
    for i, (label, new) in enumerate(parts):
        y = 28 + ROW * i
        if i:
            middle = x + WIDTH // 2
            drawn.append(f'<path class="line" d="M{middle} {y - ROW + BOX}V{y}"/>')
        drawn.append(
            f'<rect class="{"new" if new else "old"}" x="{x}" y="{y}" width="{WIDTH}" height="{BOX}" rx="4"/>'
            f'<text class="{"on" if new else "name"}" x="{x + 10}" y="{y + 16}">{escape(label)}</text>'
        )
    cost = count(model.module, model.input_shape)
    y = 28 + ROW * len(parts) + 12
    for line in (f"{si(cost.parameters)} parameters", f"{si(cost.macs)} multiply-adds"):
        drawn.append(f'<text class="note" x="{x}" y="{y}">{line}</text>')
        y += 16
    return "".join(drawn), y


def drawn() -> str:
    """The picture as an SVG file."""
    parts, height, x = [], 0, 8
    for reference, name, cut in EXAMPLES:
        model = resolve(reference)
        start = "same" if cut.block == "coord" else "fresh"
        for title, network in (
            (model.name, model),
            (f"with {cut.block}", operate(model, cut, start)),  # type: ignore[arg-type]
        ):
            text, bottom = panel(network, name, title, cut.block, x)
            parts.append(text)
            height, x = max(height, bottom), x + WIDTH + GAP
        x += GAP
    size = f'width="{x}" height="{height}" viewBox="0 0 {x} {height}"'
    ground = f'<rect width="{x}" height="{height}" fill="#fff"/>'
    return f'<svg xmlns="http://www.w3.org/2000/svg" {size}><style>{STYLE}</style>{ground}{"".join(parts)}</svg>\n'


if __name__ == "__main__":
    (ASSETS / "operate.svg").write_text(drawn())
