"""What the page of a method shows of its claim: the verdict, the seeds as a plot, every arm, every condition."""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Any

from scripts.tables import percent, provenance, table
from upcycle.claims import Claim, Headline
from upcycle.claims.found import Found, short
from upcycle.measure.units import duration
from upcycle.reports.bars import Bar, bar_chart

PLOTS = Path("docs") / "assets" / "claims"
STYLE = (
    "text{font:12px sans-serif;fill:#607d8b}.name{fill:#37474f}.grid,.rail{stroke:#cfd8dc;fill:none}"
    ".whisker{stroke:#546e7a;fill:none}.tone-student{fill:#00897b;stroke:#00897b}.tone-other{fill:#90a4ae;stroke:#90a4ae}"
    ".bar{opacity:.5;stroke:none}.mean{stroke-width:2}"
)


def plot(headline: Headline, measured: dict[str, list[float]]) -> str:
    """The arms that decide, seed by seed, as an SVG file; empty where nothing was measured."""
    product = (headline.product,) if isinstance(headline.product, str) else headline.product
    bars = []
    for arm in headline.arms:
        values = measured.get(arm, [])
        if not values:
            return ""
        spread = statistics.stdev(values) if len(values) > 1 else None
        bars.append(Bar(arm, statistics.fmean(values), values, spread, "student" if arm in product else "other"))
    drawn = str(bar_chart(bars, label=headline.says))
    return (
        drawn.replace("<svg ", '<svg xmlns="http://www.w3.org/2000/svg" width="400" ', 1).replace(
            ">", f"><style>{STYLE}</style>", 1
        )
        + "\n"
    )


def figures(claim: Claim, record: dict[str, Any] | None, name: str, assets: str = "../assets") -> str:
    """The claim, its setting, and what was measured; the plot is that of the method ``name``."""
    text = f"## The claim\n\n{claim.sentence}\n\n*Published.* {claim.published}\n\n*Here.* {claim.setting}\n\n"
    if record is None:
        return text + "*Not measured yet.*\n"
    decided = [(f"`{method}`", v["says"], *cells(v)) for method, v in record["verdicts"].items()]
    text += table(("method", "what decides", "verdict", "gain, 95 % interval", "seeds"), decided) + "\n"
    headline = claim.of(name)
    if headline is not None and plot(headline, record["measured"]):
        text += f"![{headline.says}, seed by seed]({assets}/claims/{name}.svg)\n\n"
    arms = [
        (arm, percent(values), ", ".join(percent([v]) for v in values)) for arm, values in record["measured"].items()
    ]
    whole = table(("arm", "mean ± std", "each seed"), arms)
    text += f'<details markdown="1">\n<summary>Every arm, seed by seed</summary>\n\n{whole}\n</details>\n\n'
    if record["checks"]:
        checks = [
            (
                c["text"],
                percent([c["value"]]),
                f"{c['bound']:g}" + (", in every seed" if c["exact"] else ""),
                "yes" if c["holds"] else "no",
            )
            for c in record["checks"]
        ]
        text += table(("condition", "found", "asked at least", "holds"), checks) + "\n"
    took = duration(sum(seed["seconds"] for seed in record["seeds"]))
    return text + f"It took {took}.\n\n" + provenance(record["seeds"][-1], f"upcycle prove {claim.method}")


SITUATIONS = (
    ("the network is too large for the device", "distill --teacher T --student S --data photos", "kd"),
    ("there are ten images a class, without labels", "distill ... --data photos --method netgraft", "netgraft"),
    ("there are no images at all", "distill --teacher T --student S --method fastdfkd", "fastdfkd"),
    ("a new task, and few weights to store for it", "adapt T --data photos --method ssf", "ssf"),
    ("only the answers of a network can be had", "adapt http://... --student S --data photos --method dine", "dine"),
    ("images in use look other than those trained on", "adapt T --source_data old --data photos --method iso", "iso"),
    ("new classes come one after another", "extend T --stream folders:tasks --method er", "er"),
    ("two classifiers shall become one", "assemble A B --data photos", "mdaassembly"),
)
"""What readers have, the command for it, and the method whose verdict stands beside it."""


def situations(found: dict[str, Found], folder: str = "docs/methods") -> str:
    """Which situation calls for which command, and what was measured; the methods' pages lie in ``folder``."""
    rows = []
    for have, command, name in SITUATIONS:
        gain = f"{short(found[name])}, {found[name]['says']}" if name in found else "not measured yet"
        rows.append((have, f"`upcycle {command}`", f"[{name}]({folder}/{name}.md): {gain}"))
    return table(("you have", "command", "measured here"), rows)


def cells(decided: dict[str, Any] | None) -> tuple[str, str, str]:
    """A verdict, its gain with the interval, and the number of seeds."""
    if decided is None or decided["verdict"] == "not measured":
        return "not measured yet", "", ""
    low, high = decided["interval"] or (None, None)
    spread = f" ({low:+.2f} to {high:+.2f})" if low is not None else ""
    return decided["verdict"], f"{decided['gain']:+.2f}{spread} {decided['unit']}", str(len(decided["differences"]))
