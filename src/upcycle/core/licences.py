"""Licences: what they ask, and which one a model may be shared under that was made from others."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

NOTICE = (
    "This is not legal advice. upcycle takes the cautious reading that a model made with another's help is "
    "derived from it; licences of data are listed for information and not merged with those of the weights."
)


@dataclass(frozen=True, kw_only=True)
class Terms:
    """Terms of a licence for those who share something made from the licensed work.

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


def hub_fields(licence: str) -> dict[str, str]:
    """The fields that state ``licence`` in the header of a card on the Hugging Face hub, which has names of its own.

    >>> hub_fields("GPL-3.0-or-later"), hub_fields("WTFPL")
    ({'license': 'gpl-3.0'}, {'license': 'other', 'license_name': 'wtfpl'})
    """
    if licence == "OpenRAIL-M":
        return {"license": "openrail"}
    if licence == "unknown" or (licence in TERMS and not licence.startswith("LicenseRef")):
        return {"license": licence.lower().removesuffix("-only").removesuffix("-or-later")}
    return {"license": "other", "license_name": licence.lower()}


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
    """Say what is known about the licence of the data that a model was trained on."""
    licence = canonical(str(data.get("licence") or "unknown"))
    if licence == "unknown":
        return f"The data {data['name']} come without a stated licence."
    return f"The data {data['name']} are under {licence}, as their source states it."
