"""The model card of a saved model: its ``README.md``, in the form of the Hugging Face hub."""

from __future__ import annotations

from typing import Any

import yaml

from upcycle.core.licences import NOTICE, data_sentence, hub_fields
from upcycle.core.lineage import POOLS, Node, figure, tree
from upcycle.core.printable import markdown, printable

_USE = """from upcycle.core.saved import load

model = load("path/to/this/folder")
logits = model.module(images)"""


def model_card(model: Node, result: dict[str, Any] | None = None) -> str:
    """Write the model card: a YAML header, then sections.

    Args:
        model: the lineage of the model.
        result: what the verb found (``result.json`` of the run); its sections are left out without it.
    """
    result = result or {}
    header = yaml.safe_dump(_header(model), sort_keys=False, allow_unicode=True, width=110)
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
    sections += ["## Use", _fenced(_USE, "python")]
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


def _header(model: Node) -> dict[str, Any]:
    header: dict[str, Any] = {**hub_fields(model["licence"]["id"]), "library_name": "upcycle"}
    header["tags"] = ["upcycle", *(tag for tag in (model["verb"], model["method"]) if tag)]
    others = [parent for parent in model["parents"] if parent["role"] not in POOLS.values()]
    if bases := {parent["name"].removeprefix("hf:") for parent in others}:
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
        lines.append(f"| {markdown(str(row['name']))} | {accuracy} | {parameters} |")
    return "\n".join(lines) + (f"\n\nMeasured on {markdown(data['name'])}." if data.get("name") else "")


def _fenced(text: str, language: str = "") -> str:
    fence = "```"
    while fence in text:
        fence += "`"
    return f"{fence}{language}\n{text}\n{fence}"
