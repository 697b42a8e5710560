"""The matrix of architectures and verbs, as the documentation shows it."""

from __future__ import annotations

import re
from collections import Counter
from itertools import groupby
from typing import Any

from scripts.tables import table

Cells = dict[str, dict[str, dict[str, Any]]]
"""For each network, written ``library:name``, and each verb: ``outcome`` and ``reason``."""

SIGNS = {"worked": "+", "refused": "–", "failed": "**failed**"}
METHOD = re.compile(r"^\w+ cannot run here: ")
SUBJECT = re.compile(r"^\S+ (?=(?:cannot|is|has|comes|takes|gives|does|answers|normalises|carries)\b)")
PARTICULAR = re.compile(r"'[^']*[._][^']*'|\d+(?:\.\d+)?(?:e[+-]?\d+)?")


def matrix(cells: Cells) -> str:
    """A sentence of figures, a row a network with the counts of each verb below, and the refusals by their reasons."""
    verbs = list(dict.fromkeys(verb for row in cells.values() for verb in row))
    outcomes = Counter(cell["outcome"] for row in cells.values() for cell in row.values())
    counted = ", ".join(f"{outcomes[name]} {name}" for name in SIGNS)
    text = f"{len(cells)} networks, {len(verbs)} uses of each, {outcomes.total()} in all: {counted}.\n\n"
    text += f'<div class="matrix" markdown>\n\n{table(("", *verbs), _rows(cells, verbs))}\n</div>\n'
    for name in ("failed", "refused"):
        if found := reasons(cells, name):
            text += f"\n**What was {name}, and why**\n\n" if name == "refused" else "\n**What failed**\n\n"
            text += table(("use", "reason", "networks"), _grouped(found, verbs))
    return text


def _rows(cells: Cells, verbs: list[str]) -> list[list[str]]:
    """A row with the name of each library, below it one for each of its networks, and the counts at the end."""
    rows = []
    for library, names in groupby(cells, key=lambda name: name.partition(":")[0]):
        rows.append([f"**{library}**", *[""] * len(verbs)])
        for name in names:
            signs = [SIGNS[cells[name][verb]["outcome"]] if verb in cells[name] else "" for verb in verbs]
            rows.append([f"`{name.partition(':')[2]}`", *signs])
    for outcome in SIGNS:
        counts = [sum(row.get(verb, {}).get("outcome") == outcome for row in cells.values()) for verb in verbs]
        rows.append([f"**{outcome}**", *map(str, counts)])
    return rows


def reasons(cells: Cells, outcome: str) -> dict[tuple[str, tuple[str, ...]], list[str]]:
    """The networks that have an outcome, by its reason and the verbs that give it.

    Reasons that differ in numbers and names of layers only are one, and the first stands for it.
    """
    first: dict[str, str] = {}
    of_network: dict[tuple[str, str], list[str]] = {}
    for network, row in cells.items():
        for verb, cell in row.items():
            if cell["outcome"] == outcome:
                said = SUBJECT.sub("It ", METHOD.sub("", cell["reason"]))
                kind = PARTICULAR.sub("?", said)
                first.setdefault(kind, said)
                of_network.setdefault((kind, network), []).append(verb)
    found: dict[tuple[str, tuple[str, ...]], list[str]] = {}
    for (kind, network), verbs in of_network.items():
        found.setdefault((first[kind], tuple(verbs)), []).append(network.partition(":")[2])
    return found


def _grouped(found: dict[tuple[str, tuple[str, ...]], list[str]], verbs: list[str]) -> list[tuple[str, str, str]]:
    """Rows of :func:`reasons`, in the order of the verbs."""
    ordered = sorted(found.items(), key=lambda item: (verbs.index(item[0][1][0]), -len(item[1])))
    return [
        ("every one" if len(of) == len(verbs) else ", ".join(of), reason, ", ".join(f"`{n}`" for n in names))
        for (reason, of), names in ordered
    ]
