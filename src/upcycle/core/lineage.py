"""Where a model comes from: its family tree, with the licence that follows from it.

A lineage is JSON data, one :data:`Node` for each model, with its parents inside it. It is written beside the
weights as ``lineage.json`` and read back by every verb that takes the model as its input.
"""

from __future__ import annotations

import datetime
import platform
import statistics
from collections.abc import Iterator, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any, NotRequired, TypedDict

from upcycle.core.licences import Licence, licence_of
from upcycle.core.printable import printable
from upcycle.core.read import contents, parse

Node = dict[str, Any]


class _Data(TypedDict):
    name: str
    digest: NotRequired[str]
    licence: NotRequired[str]


class _Licence(TypedDict):
    id: str
    why: str
    obligations: list[str]


class Tree(TypedDict):
    """``lineage.json``, a :data:`Node` as :func:`node` makes it."""

    name: str
    digest: str
    verb: str
    method: str
    config: dict[str, Any]
    data: _Data | None
    versions: dict[str, str]
    metrics: dict[str, float | list[float]]
    licence: _Licence
    date: str
    role: str
    parents: list[Tree]


def read(path: Path, content: bytes | None = None) -> Node:
    """The lineage in a file.

    Args:
        content: what is in it, where that was read already.

    Raises:
        UserError: it is none.
    """
    return dict(parse(contents(path) if content is None else content, Tree, path))


POOLS = {"images": "image pool", "graphs": "graph pool"}
"""The roles of samples that a method made from a network, by what they are."""


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
    what = next((noun for noun, role in POOLS.items() if role == model["role"]), "weights")
    digest = f"{what} {model['digest'][:8]}" if model["digest"] else ""
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

    Names come from files that others wrote, so that control characters are written out.
    """
    return "\n".join(_branch(model, "", ""))


def _branch(model: Node, first: str, rest: str) -> Iterator[str]:
    role = f"{model['role']}: " if model["role"] else ""
    text = f"{role}{model['name']}  ({', '.join(summary(model))})"
    yield first + printable(text)
    for i, parent in enumerate(model["parents"]):
        last = i == len(model["parents"]) - 1
        yield from _branch(parent, rest + ("└─ " if last else "├─ "), rest + ("   " if last else "│  "))
