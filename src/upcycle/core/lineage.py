"""Where a model comes from: its family tree, the licence that follows from it, and its model card.

A lineage is JSON data, one :data:`Node` for each model, with its parents inside it. It is written beside the
weights as ``lineage.json`` and read back by every verb that takes the model as its input.
"""

from __future__ import annotations

import datetime
import platform
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib import metadata
from itertools import combinations
from typing import Any

import yaml

Node = dict[str, Any]
POOL = "image pool"  # the role of images that a network was inverted to

NOTICE = (
    "This is not legal advice. upcycle takes the cautious reading that a model made with another's help is "
    "derived from it; licences of data are listed for information and not merged with those of the weights."
)


@dataclass(frozen=True, kw_only=True)
class Terms:
    """What a licence asks of those who share something made from the licensed work.

    Args:
        attribution: the notices are kept and the source is named.
        share_alike: the result goes under the same licence, or under another of ``child``.
        non_commercial: commercial use is not allowed.
        no_derivatives: what is made from it is not shared.
        use_restrictions: certain uses are forbidden, and the rule is handed on.
        child: the licences under which something made from it may be shared, itself among them.
    """

    attribution: bool = True
    share_alike: bool = False
    non_commercial: bool = False
    no_derivatives: bool = False
    use_restrictions: bool = False
    child: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Licence:
    """A licence and what it rests on.

    Args:
        id: SPDX identifier; ``other`` for terms of its own, ``unknown``, or ``incompatible`` when no
            licence meets all parents.
        why: one sentence.
        obligations: what a person who shares the model must do, a sentence each.
    """

    id: str
    why: str
    obligations: tuple[str, ...] = ()

    @classmethod
    def of(cls, stated: str) -> Licence:
        """The licence that a model's publisher states: SPDX identifier, or ``unknown``."""
        licence = canonical(stated)
        if licence == "unknown":
            return cls(licence, "Nobody has stated a licence.")
        if licence not in TERMS:
            return cls(licence, "Stated by its publisher; not in upcycle's table.")
        return cls(licence, "Stated by its publisher.", _obligations([(licence, "its publisher")], [], licence))

    def json(self) -> dict[str, Any]:
        """As it stands in a lineage."""
        return {"id": self.id, "why": self.why, "obligations": list(self.obligations)}


def _table() -> dict[str, Terms]:
    """The licences from the least to the most demanding.

    Sources for ``child``: the licence texts; the Free Software Foundation's list of licences that go with the
    GPL (Apache-2.0 with its version 3 only, CC-BY-4.0 with all); section 3.3 of MPL-2.0; section 13 of the
    GPL-3.0 (with AGPL-3.0); Creative Commons' list of compatible licences (CC-BY-SA-4.0 to GPL-3.0, one way).
    """
    agpl = {"AGPL-3.0-or-later", "AGPL-3.0-only"}
    gpl3_only = {"GPL-3.0-only", "AGPL-3.0-only"}
    gpl3 = {"GPL-3.0-or-later", *gpl3_only, *agpl}
    gpl2 = {"GPL-2.0-or-later", "GPL-2.0-only"}
    lgpl = {"LGPL-3.0-or-later", "LGPL-3.0-only"}
    non_commercial = {"CC-BY-NC-4.0", "CC-BY-NC-SA-4.0"}
    own_terms = {"OpenRAIL-M", "LicenseRef-Llama-Community", "other"}
    apache = {"Apache-2.0", "MPL-2.0", "CC-BY-SA-4.0", *lgpl, *gpl3, *non_commercial, *own_terms}
    by = {"CC-BY-4.0", *apache, *gpl2}
    bsd3 = {"BSD-3-Clause", *by}
    bsd2 = {"BSD-2-Clause", *bsd3}
    mit = {"MIT", *bsd2}

    def alike(*child: str, **also: bool) -> Terms:
        return Terms(share_alike=True, child=frozenset(child), **also)

    def plain(*child: str, **also: bool) -> Terms:
        return Terms(child=frozenset(child), **also)

    return {
        "CC0-1.0": Terms(attribution=False, child=frozenset({"CC0-1.0", *mit})),
        "MIT": plain(*mit),
        "BSD-2-Clause": plain(*bsd2),
        "BSD-3-Clause": plain(*bsd3),
        "CC-BY-4.0": plain(*by),
        "Apache-2.0": plain(*apache),
        "MPL-2.0": alike("MPL-2.0", *lgpl, *gpl2, *gpl3),
        "LGPL-3.0-or-later": alike(*lgpl, *gpl3),
        "LGPL-3.0-only": alike("LGPL-3.0-only", *gpl3_only),
        "GPL-2.0-or-later": alike(*gpl2, *gpl3),
        "GPL-2.0-only": alike("GPL-2.0-only"),
        "CC-BY-SA-4.0": alike("CC-BY-SA-4.0", *gpl3_only),
        "GPL-3.0-or-later": alike(*gpl3),
        "GPL-3.0-only": alike(*gpl3_only),
        "AGPL-3.0-or-later": alike(*agpl),
        "AGPL-3.0-only": alike("AGPL-3.0-only"),
        "CC-BY-NC-4.0": plain(*non_commercial, "other", non_commercial=True),
        "CC-BY-NC-SA-4.0": alike("CC-BY-NC-SA-4.0", non_commercial=True),
        "OpenRAIL-M": plain("OpenRAIL-M", "other", use_restrictions=True),
        "LicenseRef-Llama-Community": plain("LicenseRef-Llama-Community", "other", use_restrictions=True),
        "other": plain("other", use_restrictions=True),
        "CC-BY-ND-4.0": Terms(no_derivatives=True),
        "CC-BY-NC-ND-4.0": Terms(no_derivatives=True, non_commercial=True),
    }


TERMS = _table()

_ALIASES = {
    **{name.lower(): name for name in TERMS},
    **{name.lower().removesuffix("-only"): name for name in TERMS if name.endswith("-only")},
    **dict.fromkeys(
        ("openrail", "openrail++", "creativeml-openrail-m", "bigscience-openrail-m", "bigcode-openrail-m"),
        "OpenRAIL-M",
    ),
    **dict.fromkeys(("llama2", "llama3", "llama3.1", "llama3.2", "llama3.3", "llama4"), "LicenseRef-Llama-Community"),
    "cc-by-nd": "CC-BY-ND-4.0",
    "apache2": "Apache-2.0",
    "": "unknown",
}


def canonical(licence: str) -> str:
    """The identifier that the table uses; one that it does not know comes back as it is.

    >>> canonical("apache-2.0"), canonical("GPL-2.0"), canonical("WTFPL")
    ('Apache-2.0', 'GPL-2.0-only', 'WTFPL')
    """
    return _ALIASES.get(licence.strip().lower(), licence.strip())


def licence_of(parents: Sequence[tuple[str, str]]) -> Licence:
    """The licence of a model that is made from others.

    It is the least demanding licence under which a child of every parent may be shared; the obligations
    towards all parents stay. When no licence will do, the first pair that conflicts is named; otherwise, as
    long as one parent's licence is not known, neither is the child's. The parents' order does not matter.

    Args:
        parents: (licence identifier, role or name of that parent); those without parents of their own.
    """
    origins = sorted({(canonical(licence), who) for licence, who in parents})
    if not origins:
        return Licence("unknown", "It was made from no other model, and its maker has stated no licence.")
    known = [(licence, who) for licence, who in origins if licence in TERMS]
    unknown = [(licence, who) for licence, who in origins if licence not in TERMS]
    common = frozenset(TERMS).intersection(*(TERMS[licence].child for licence, _ in known))
    if not common:
        return Licence("incompatible", _conflict(known), _obligations(known, unknown, None))
    if unknown:
        return Licence("unknown", _missing(unknown), _obligations(known, unknown, None))
    chosen = next(licence for licence in TERMS if licence in common)
    return Licence(chosen, _reason(known, chosen), _obligations(known, unknown, chosen))


def _conflict(origins: list[tuple[str, str]]) -> str:
    for licence, who in origins:
        if TERMS[licence].no_derivatives:
            return f"{licence} ({who}) does not allow a model made from it to be shared."
    clash = next(pair for pair in combinations(origins, 2) if not TERMS[pair[0][0]].child & TERMS[pair[1][0]].child)
    return f"No licence that upcycle knows meets both {_listed(list(clash))}."


def _missing(unknown: list[tuple[str, str]]) -> str:
    reasons = [
        f"the licence of {who} is not stated"
        if licence == "unknown"
        else f"the licence '{licence}' of {who} is not in upcycle's table"
        for licence, who in unknown
    ]
    return "Unknown, because " + " and ".join(reasons) + "."


def _reason(origins: list[tuple[str, str]], chosen: str) -> str:
    licences = {licence for licence, _ in origins}
    if licences == {chosen}:
        return f"It follows from {_listed(origins)}."
    if chosen in licences:
        return f"{_listed(origins)} combine to {chosen}, the most demanding of them."
    if chosen == "other":
        return f"{_listed(origins)} hold together, and no standard licence states the demands of all."
    return f"{chosen} is the least demanding licence that meets {_listed(origins)}."


def _listed(origins: list[tuple[str, str]]) -> str:
    parts = [f"{licence} ({who})" for licence, who in origins]
    return " and ".join([", ".join(parts[:-1]), parts[-1]]) if len(parts) > 1 else parts[0]


def _obligations(known: list[tuple[str, str]], unknown: list[tuple[str, str]], chosen: str | None) -> tuple[str, ...]:
    duties = [f"Ask for the licence of {who} before you share this model." for _, who in unknown]
    for licence, who in known:
        terms = TERMS[licence]
        if terms.no_derivatives:
            duties.append(f"Keep this model to yourself, or ask the owner of {who} ({licence}).")
        if terms.non_commercial:
            duties.append(f"Do not use it commercially ({licence} of {who}).")
        if terms.use_restrictions:
            duties.append(f"Hand on the conditions of use in the licence text of {who} ({licence}), and keep to them.")
        if terms.share_alike and chosen:
            duties.append(f"Share it only under {chosen}, as {licence} of {who} asks.")
    for licence, who in known:
        if TERMS[licence].attribution:
            duties.append(f"Name {who} as a source and keep its notices ({licence}).")
    return tuple(dict.fromkeys(duties))


def data_sentence(data: dict[str, Any]) -> str:
    """What is known about the licence of the data a model was trained on."""
    licence = canonical(str(data.get("licence") or "unknown"))
    if licence == "unknown":
        return f"The data {data['name']} come without a stated licence."
    return f"The data {data['name']} are under {licence}, as their source states it."


def node(
    *,
    name: str,
    digest: str,
    verb: str = "",
    method: str = "",
    config: dict[str, Any] | None = None,
    data: dict[str, Any] | None = None,
    metrics: dict[str, float | list[float]] | None = None,
    licence: str | Licence = "unknown",
    versions: dict[str, str] | None = None,
    date: str = "",
    role: str = "",
) -> Node:
    """A model that nothing of its past is known about but what is said here.

    Args:
        name: how tables call it.
        digest: of its weights, hex (:func:`upcycle.core.store.tensor_digest`).
        verb, method, config: what made it; empty when it came from outside.
        data: what it was trained on: name, digest and licence.
        metrics: by name, one value or one for each seed, for example ``{"test accuracy": [0.93, 0.94]}``.
        licence: SPDX identifier as its publisher states it, or ``unknown``.
        versions: of the software that made it (:func:`versions`).
        date: on which it was made, ISO 8601; empty when that is not known.
        role: what it is to the child that it stands in: ``teacher``, ``initial weights`` or the like.
    """
    if isinstance(licence, str):
        licence = Licence.of(licence)
    return {
        "name": name,
        "digest": digest,
        "verb": verb,
        "method": method,
        "config": config or {},
        "data": data,
        "versions": versions or {},
        "metrics": metrics or {},
        "licence": licence.json(),
        "date": date,
        "role": role,
        "parents": [],
    }


def child(parents: Sequence[Node], *, name: str, digest: str, **facts: Any) -> Node:
    """A model made from others; its licence follows from theirs.

    Args:
        parents: the lineage of each model whose weights or answers went into it, with its ``role``. Without
            parents the licence is what ``facts`` state.
        name, digest, facts: as for :func:`node`; unless given, today's date and this installation's versions.
    """
    facts = {"date": datetime.datetime.now(datetime.UTC).date().isoformat(), "versions": versions(), **facts}
    if parents:
        facts["licence"] = licence_of([origin for parent in parents for origin in _origins(parent)])
    return {**node(name=name, digest=digest, **facts), "parents": list(parents)}


def _origins(parent: Node) -> Iterator[tuple[str, str]]:
    """(licence, who) of the ancestors that came from outside; only these state a licence of their own."""
    if parent["parents"]:
        for grandparent in parent["parents"]:
            yield from _origins(grandparent)
    else:
        yield parent["licence"]["id"], f"{parent['role']} {parent['name']}".strip()


def versions() -> dict[str, str]:
    """The versions of Python, upcycle, torch and numpy in use."""
    found = {"python": platform.python_version()}
    for package in ("upcycle", "torch", "numpy"):
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = "not installed"
    return found


def summary(model: Node) -> list[str]:
    """The facts about one model or pool in short phrases: what made it, on what data, figures, licence, digest."""
    made = " ".join(part for part in (model["verb"], model["method"]) if part)
    on = f"{'on' if made else 'trained on'} {model['data']['name']}" if model["data"] else ""
    figures = [f"{name.replace('_', ' ')} {figure(name, value)}" for name, value in model["metrics"].items()]
    phrases = [f"{made} {on}".strip(), *figures, f"licence {model['licence']['id']}"]
    digest = f"{'images' if model['role'] == POOL else 'weights'} {model['digest'][:8]}" if model["digest"] else ""
    return [p for p in (*phrases, model["date"], digest) if p]


def figure(name: str, value: float | Sequence[float]) -> str:
    """A metric as people read it: an accuracy in percent, several values as mean ± standard deviation."""
    values = [float(v) for v in value] if isinstance(value, Sequence) else [float(value)]
    mean, spread = statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else None
    if "accuracy" in name or name == "agreement":
        text = f"{100 * mean:.1f}" + (f" ± {100 * spread:.1f}" if spread is not None else "")
        return f"{text} %"
    return f"{mean:.4g}" + (f" ± {spread:.2g}" if spread is not None else "")


def tree(model: Node) -> str:
    """The family tree for a terminal: the model itself, and below it what it was made from.

    Names come from files that others wrote, so that control characters are taken out.
    """
    return "\n".join(_branch(model, "", ""))


def _branch(model: Node, first: str, rest: str) -> Iterator[str]:
    role = f"{model['role']}: " if model["role"] else ""
    text = f"{role}{model['name']}  ({', '.join(summary(model))})"
    yield first + "".join(c for c in text if c.isprintable())
    for i, parent in enumerate(model["parents"]):
        last = i == len(model["parents"]) - 1
        yield from _branch(parent, rest + ("└─ " if last else "├─ "), rest + ("   " if last else "│  "))


_USE = """from upcycle.core.saved import load

model = load("path/to/this/folder")
logits = model.module(images)"""


def model_card(model: Node, result: dict[str, Any] | None = None) -> str:
    """The model card (``README.md``) in the form of the Hugging Face hub: a YAML header, then sections.

    Args:
        model: the lineage of the model.
        result: what the verb found (``result.json`` of the run); its sections are left out without it.
    """
    result = result or {}
    header = yaml.safe_dump(_header(model), sort_keys=False, allow_unicode=True, width=110)
    sections = [f"# {model['name']}", result.get("sentence", "")]
    if rows := result.get("rows"):
        sections += ["## Results", _results(rows, result.get("data", {}), result.get("figure", "test accuracy"))]
    sections += ["## How it was made", _fenced(tree(model))]
    if paper := result.get("paper"):
        sections.append(f"Method: {result.get('title', model['method'])}. {paper}")
    if command := result.get("command"):
        sections.append(_fenced(command))
    sections += ["## Use", _fenced(_USE, "python")]
    sections.append("`model.mean`, `model.std` and `model.classes` say what the network expects and answers.")
    sections += ["## Licence", f"**{model['licence']['id']}**. {model['licence']['why']}"]
    sections.append("\n".join(f"- {duty}" for duty in model["licence"]["obligations"]))
    sections += [data_sentence(model["data"]) if model["data"] else "", NOTICE]
    if notes := result.get("notes"):
        sections += ["## Notes", "\n".join(f"- {note}" for note in notes)]
    made_with = ", ".join(f"{name} {version}" for name, version in model["versions"].items())
    sections.append(f"Made with {made_with}." if made_with else "")
    return f"---\n{header}---\n\n" + "\n\n".join(section for section in sections if section) + "\n"


def _header(model: Node) -> dict[str, Any]:
    licence = model["licence"]["id"]
    hub = licence.lower().removesuffix("-only").removesuffix("-or-later")
    named = licence in TERMS and not licence.startswith("LicenseRef")
    header: dict[str, Any] = {"license": "openrail" if licence == "OpenRAIL-M" else hub}
    if not named and licence != "unknown":
        header.update(license="other", license_name=licence.lower())
    header["library_name"] = "upcycle"
    header["tags"] = ["upcycle", *(tag for tag in (model["verb"], model["method"]) if tag)]
    if bases := {parent["name"].removeprefix("hf:") for parent in model["parents"] if parent["role"] != POOL}:
        header["base_model"] = sorted(bases)
    if model["data"]:
        header["datasets"] = [model["data"]["name"]]
    if model["metrics"]:
        header["metrics"] = sorted({name.replace("_", " ").split()[-1] for name in model["metrics"]})
    return header


def _results(rows: list[dict[str, Any]], data: dict[str, Any], figure_name: str) -> str:
    lines = [f"| model | {figure_name} | parameters |", "|---|---:|---:|"]
    for row in rows:
        accuracy = figure("accuracy", row["accuracy"]) if row.get("accuracy") else ""
        parameters = f"{row['parameters']:,}" if row.get("parameters") is not None else ""
        lines.append(f"| {str(row['name']).replace('|', '/')} | {accuracy} | {parameters} |")
    return "\n".join(lines) + (f"\n\nMeasured on {data['name']}." if data.get("name") else "")


def _fenced(text: str, language: str = "") -> str:
    fence = "```"
    while fence in text:
        fence += "`"
    return f"{fence}{language}\n{text}\n{fence}"
