"""The shape of each kind of picture in ``pictures/*.json``, which is checked before anything of it is drawn.

A method leaves ``{"kind": ..., ...}`` by ``run.picture``; what is not named here is left out of the drawing.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal, NotRequired, TypedDict

from msgspec import Meta

from upcycle.core.errors import UserError
from upcycle.core.read import Count, checked

Text = str | int | float
"""A name or a label; numbers will do."""
Number = float | None
"""A value; none leaves its place empty."""
Places = Annotated[list[Count], Meta(max_length=10_000)]


class _Picture(TypedDict):
    kind: str
    title: NotRequired[Text]
    caption: NotRequired[str]
    notes: NotRequired[list[Text]]


class _Item(TypedDict):
    png: str
    label: NotRequired[Text]
    alt: NotRequired[Text]


class _Images(_Picture):
    items: list[_Item]
    layout: NotRequired[Literal["rows"]]


class _Mapped(_Item):
    maps: dict[str, str]


class _Overlay(_Picture):
    methods: list[str]
    items: list[_Mapped]


class _Matrix(_Picture):
    rows: Annotated[list[Text], Meta(min_length=1)]
    columns: Annotated[list[Text], Meta(min_length=1)]
    values: list[list[Number]]


class _Heatmap(_Matrix):
    digits: NotRequired[Annotated[int, Meta(ge=0, le=12)] | None]


class _Map(_Matrix):
    low: NotRequired[float]
    high: NotRequired[float]
    row_breaks: NotRequired[Places]
    column_breaks: NotRequired[Places]
    x: NotRequired[str]
    y: NotRequired[str]


class _Series(TypedDict):
    name: Text
    x: list[float]
    y: list[Number]


class _Lines(_Picture):
    series: list[_Series]
    unit: NotRequired[str]
    x: NotRequired[str]
    y: NotRequired[str]


class _Bar(TypedDict):
    name: Text
    value: float
    spread: NotRequired[Annotated[float, Meta(ge=0)] | None]


class _Bars(_Picture):
    items: list[_Bar]


class _Group(TypedDict):
    label: Text
    count: Count


class _Layer(TypedDict):
    name: Text
    groups: list[_Group]


class _Routes(_Picture):
    layers: Annotated[list[_Layer], Meta(min_length=1)]


class _Point(TypedDict):
    name: Text
    x: Number
    y: Number
    group: NotRequired[Text]
    front: NotRequired[bool]


class _Scatter(_Picture):
    x: str
    y: str
    items: Annotated[list[_Point], Meta(min_length=1)]
    log: NotRequired[bool]
    noun: NotRequired[str]


class _Block(TypedDict):
    label: Text
    width: Annotated[float, Meta(ge=0)]
    set: Count


class _Network(TypedDict):
    name: Text
    blocks: list[_Block]


class _Blocks(_Picture):
    networks: list[_Network]


class _Tree(_Picture):
    levels: Annotated[list[str], Meta(min_length=1)]
    leaves: Annotated[list[str], Meta(min_length=1)]
    paths: list[list[int]]
    leaf: NotRequired[str]


class _Ring(TypedDict):
    label: Text
    nodes: Places
    edges: list[tuple[Count, Count]]


class _Rings(_Picture):
    items: Annotated[list[_Ring], Meta(min_length=1, max_length=60)]
    groups: NotRequired[list[Text]]


class _Path(TypedDict):
    nodes: Annotated[list[Text], Meta(min_length=2, max_length=4)]
    groups: Annotated[list[Count], Meta(min_length=2, max_length=4)]
    weight: Annotated[float, Meta(ge=0)]


class _Centre(TypedDict):
    label: Text
    paths: Annotated[list[_Path], Meta(min_length=1, max_length=60)]
    more: NotRequired[str]


class _Paths(_Picture):
    items: Annotated[list[_Centre], Meta(min_length=1, max_length=60)]
    groups: NotRequired[list[Text]]


KINDS: dict[str, Any] = {
    "images": _Images,
    "overlay": _Overlay,
    "heatmap": _Heatmap,
    "lines": _Lines,
    "bars": _Bars,
    "routes": _Routes,
    "scatter": _Scatter,
    "map": _Map,
    "blocks": _Blocks,
    "tree": _Tree,
    "graphs": _Rings,
    "paths": _Paths,
}


def check(data: dict[str, Any], file: Path) -> str:
    """The kind of a picture, which has the shape of that kind.

    Args:
        file: that it comes from.

    Raises:
        UserError: it has not, naming the place; or there is no such kind.
    """
    kind = data.get("kind")
    if not isinstance(kind, str) or kind not in KINDS:
        raise UserError(f"{file} is damaged: $.kind must be one of {', '.join(KINDS)}.")
    checked(data, KINDS[kind], file)
    counts = {
        "$.values": (data.get("values"), data.get("rows")),
        "$.paths": (data.get("paths"), data.get("leaves")),
        **{f"$.values[{i}]": (line, data["columns"]) for i, line in enumerate(data.get("values", ()))},
        **{f"$.paths[{i}]": (path, data["levels"]) for i, path in enumerate(data.get("paths", ()))},
        **{f"$.series[{i}].y": (line["y"], line["x"]) for i, line in enumerate(data.get("series", ()))},
    }
    for place, (values, names) in counts.items():
        if values is not None and names is not None and len(values) != len(names):
            raise UserError(f"{file} is damaged: {place} must have {len(names)} items, not {len(values)}.")
    for i, item in enumerate(data["items"] if kind == "graphs" else ()):
        for j, edge in enumerate(item["edges"]):
            if max(edge) >= len(item["nodes"]):
                raise UserError(f"{file} is damaged: $.items[{i}].edges[{j}] names a node that is not there.")
    for i, item in enumerate(data["items"] if kind == "paths" else ()):
        for j, path in enumerate(item["paths"]):
            if len(path["groups"]) != len(path["nodes"]):
                raise UserError(f"{file} is damaged: $.items[{i}].paths[{j}].groups must have a group for each node.")
    for i, item in enumerate(data["items"] if kind == "overlay" else ()):
        if lacking := [method for method in data["methods"] if method not in item["maps"]]:
            raise UserError(f"{file} is damaged: $.items[{i}].maps lacks {lacking[0]}.")
    return kind
