"""The model card of a saved model: its ``README.md``, in the form of the Hugging Face hub."""

from __future__ import annotations

import re
import statistics
from typing import Any

import yaml

from upcycle.core.building import BUILDERS, MADE
from upcycle.core.licences import NOTICE, data_sentence, hub_fields
from upcycle.core.lineage import POOLS, Node, figure, tree
from upcycle.core.models import Model
from upcycle.core.printable import markdown, printable

PLACE = 'upcycle.load("path/to/this/folder"'
"""How the snippet of a card loads the model; whoever moves the model may say a better place."""
HUB_SETS = {"cifar10": "uoft-cs/cifar10", "mnist": "ylecun/mnist", "fashion_mnist": "zalando-datasets/fashion_mnist"}
"""The named data sets that the hub has too, with their ids there."""
_MEASURES = {"accuracy": "accuracy", "F1": "f1"}
"""The last word of a figure, and the hub's name for such a metric."""
_TAGS = {"images": "image-classification", "graphs": "graph-ml"}
"""The hub's name for the task, by what a network takes."""
_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


def model_card(model: Node, result: dict[str, Any] | None = None, of: Model | None = None) -> str:
    """Write the model card: a YAML header as the Hugging Face hub reads it, then sections.

    Args:
        model: the lineage of the model.
        result: what the verb found (``result.json`` of the run); its sections are left out without it.
        of: the model itself, for what it takes and how it is loaded; a classifier of images if not given.
    """
    result = result or {}
    kind = of.takes.kind if of is not None else "images"
    header = yaml.safe_dump(_header(model, result, kind), sort_keys=False, allow_unicode=True, width=110)
    sections = [f"# {markdown(model['name'])}", markdown(result.get("sentence", ""))]
    if rows := result.get("rows"):
        sections += [
            "## Results",
            _results(rows, result.get("data", {}), markdown(result.get("figure", "test accuracy"))),
        ]
    sections += ["## How it was made", _fenced(tree(model))]
    if paper := result.get("paper"):
        sections.append(markdown(f"Method: {result.get('title', model['method'])}. {paper}"))
    if command := result.get("command"):
        sections.append(_fenced(printable(command)))
    sections += ["## Use", _fenced(_use(of), "python")]
    sections.append(
        "`model.mean`, `model.std` and `model.classes` say what the network expects and answers, `model.reading` how "
        "image files become its inputs."
    )
    sections += ["## Licence", f"**{markdown(model['licence']['id'])}**. {markdown(model['licence']['why'])}"]
    sections.append("\n".join(f"- {markdown(duty)}" for duty in model["licence"]["obligations"]))
    sections += [markdown(data_sentence(model["data"])) if model["data"] else "", NOTICE]
    if notes := result.get("notes"):
        sections += ["## Notes", "\n".join(f"- {markdown(note)}" for note in notes)]
    made_with = ", ".join(f"{name} {version}" for name, version in model["versions"].items())
    sections.append(markdown(f"Made with {made_with}.") if made_with else "")
    return f"---\n{header}---\n\n" + "\n\n".join(section for section in sections if section) + "\n"


def _use(of: Model | None) -> str:
    """The lines that load a model and ask it."""
    more = ""
    if of is not None and of.reference is None:
        more = f", into=network)  # an instance of {type(of.module).__name__}"
    elif of is not None and of.reference and (kind := of.reference.partition(":")[0]) not in (*BUILDERS, *MADE):
        more = f", trust=({kind.partition('.')[0]!r},))  # whose code builds the network"
    asked = 'answer = model("image.png")  # or a folder, a PIL image, pixels as a tensor\nprint(answer.predicted)'
    if of is not None and not of.ordinary:
        asked = "answer = model.module(model.example())  # inputs like these"
    return f"import upcycle\n\nmodel = {PLACE}{more or ')'}\n{asked}"


def _header(model: Node, result: dict[str, Any], kind: str) -> dict[str, Any]:
    header: dict[str, Any] = {**hub_fields(model["licence"]["id"]), "library_name": "upcycle"}
    if kind in _TAGS:
        header["pipeline_tag"] = _TAGS[kind]
    header["tags"] = ["upcycle", *(tag for tag in (model["verb"], model["method"]) if tag)]
    if bases := _bases(model):
        header["base_model"] = bases
    if model["data"] and (found := _hub_set(model)):
        header["datasets"] = [found]
    if metrics := sorted({_MEASURES[last] for name in model["metrics"] if (last := _last(name)) in _MEASURES}):
        header["metrics"] = metrics
    if kind in _TAGS and (measured := _measured(model, result, _TAGS[kind])):
        header["model-index"] = [{"name": model["name"], "results": [measured]}]
    return header


def _bases(model: Node) -> list[str]:
    """The ids on the hub of the networks that a model was made of: those that its configuration has there."""
    parents = {parent["name"] for parent in model["parents"] if parent["role"] not in POOLS.values()}
    values = [one for value in model["config"].values() for one in (value if isinstance(value, list) else [value])]
    ids = {str(value).removeprefix("hf:") for value in values if str(value).startswith("hf:")}
    return sorted(one for one in ids if _ID.fullmatch(one) and one.partition("/")[2] in parents)


def _hub_set(model: Node) -> str:
    """The id on the hub of the data that a model was made on; empty where it has none."""
    for key in ("data", "stream"):
        reference = str(model["config"].get(key) or "")
        if reference in HUB_SETS and reference == model["data"]["name"]:
            return HUB_SETS[reference]
        if reference.startswith("hub:") and _ID.fullmatch(reference.removeprefix("hub:")):
            return reference.removeprefix("hub:")
    return ""


def _last(name: str) -> str:
    return name.replace("_", " ").split()[-1] if name.strip() else ""


def _measured(model: Node, result: dict[str, Any], task: str) -> dict[str, Any] | None:
    """What was measured of a model, as an entry of the hub's index; none where nothing was that the hub knows."""
    figure, rows = str(result.get("figure", "")), result.get("rows") or []
    shares = rows[-1].get("accuracy") if rows else None
    data = printable(str(result.get("data", {}).get("name") or ""))
    if not shares or not data or _last(figure) not in _MEASURES:
        return None
    seeds = "" if len(shares) == 1 else f", mean of {len(shares)} seeds"
    own = model["data"] is not None and model["data"]["name"] == result["data"]["name"]
    metric = {"type": _MEASURES[_last(figure)], "value": round(statistics.fmean(shares), 4)}
    return {
        "task": {"type": task},
        "dataset": {"name": data, "type": (_hub_set(model) if own else "") or data, "split": "test"},
        "metrics": [{**metric, "name": f"{printable(figure)}{seeds}"}],
    }


def _results(rows: list[dict[str, Any]], data: dict[str, Any], figure_name: str) -> str:
    lines = [f"| model | {figure_name} | parameters |", "|---|---:|---:|"]
    for row in rows:
        accuracy = figure("accuracy", row["accuracy"]) if row.get("accuracy") else ""
        parameters = f"{row['parameters']:,}" if row.get("parameters") is not None else ""
        lines.append(f"| {markdown(str(row['name']))} | {accuracy} | {parameters} |")
    return "\n".join(lines) + (f"\n\nMeasured on {markdown(data['name'])}." if data.get("name") else "")


def _fenced(text: str, language: str = "") -> str:
    fence = "```"
    while fence in text:
        fence += "`"
    return f"{fence}{language}\n{text}\n{fence}"
