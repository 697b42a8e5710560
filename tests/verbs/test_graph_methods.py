"""The commands of methods over graphs: without data, on what was made, and with shares of two groups in the table."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

import upcycle
from tests.settings_graphs import tiny_graphs
from tests.settings_groups import group_networks, layer_networks, tiny_groups
from upcycle.core import saved
from upcycle.core.errors import UserError
from upcycle.core.graphs import GraphTakes
from upcycle.core.recipe import Recipe
from upcycle.core.references import resolve

pytest.importorskip("torch_geometric")
RECIPE = Recipe(epochs=2, batch_size=16, optimizer="adam", lr=0.01, weight_decay=0.0)
BRIEF: dict[str, Any] = {"recipe": RECIPE, "say": lambda text: None}
FREE = {"method": "gfkd", "student": "zoo:gcn_3_32", "iterations": 3, "graphs": 20, "batch": 20, **BRIEF}


def test_a_student_without_graphs_is_measured_on_others_or_agrees_on_its_own(tmp_path: Path) -> None:
    teacher = layer_networks()["teacher"]
    made = upcycle.distill(teacher=teacher, test_data=tiny_graphs(), sizes=(3, 6), out=tmp_path / "free", **FREE)
    assert [row["role"] for row in made.rows] == ["teacher", "student"] and "50 test graphs of rings" in made.sentence
    assert "which served for nothing else" in made.report.read_text()
    alone = upcycle.distill(teacher=teacher, sizes=(3, 6), out=tmp_path / "alone", **FREE)
    assert "of 4 graphs that it was trained on; this is agreement" in alone.sentence
    more = upcycle.distill(
        teacher=teacher,
        student="zoo:gin_3_32",
        data=f"pool:{tmp_path / 'free'}",
        test_data=tiny_graphs(),
        out=tmp_path / "kd",
        **BRIEF,
    )
    parents = {parent["role"]: parent for parent in more.student.lineage["parents"]}
    assert set(parents) == {"teacher", "graph pool"} and parents["graph pool"]["method"] == "gfkd"
    assert "graphs " + parents["graph pool"]["digest"][:8] in (tmp_path / "kd" / "model" / "README.md").read_text()
    other = dataclasses.replace(teacher, module=layer_networks()["student"].module)
    with pytest.raises(UserError, match="were made from teacher"):
        upcycle.distill(
            teacher=other, student="zoo:gin_3_32", data=f"pool:{tmp_path / 'free'}", out=tmp_path / "x", **BRIEF
        )


def test_both_groups_stand_in_the_table_beside_what_has_no_proxy(tmp_path: Path) -> None:
    made = upcycle.distill(
        teacher=group_networks()["teacher"],
        student="zoo:gcn_2_16",
        data=tiny_groups(),
        method="reliant",
        sensitive="group",
        alone=True,
        seeds=2,
        out=tmp_path / "run",
        **BRIEF | {"recipe": dataclasses.replace(RECIPE, batch_size=0)},
    )
    shown = {row["name"]: row.get("shown", {}) for row in made.rows}
    assert list(shown) == [
        "teacher",
        "gcn_2_16 distilled plainly",
        "gcn_2_16 with B and no proxy",
        "gcn_2_16 alone",
        "gcn_2_16 by reliant",
    ]
    columns = ["Δ_SP", "Δ_EO", "rate, group 0", "rate, group 1"]
    assert all(list(shown[name]) == columns for name in shown if name != "gcn_2_16 alone")
    assert "±" in shown["gcn_2_16 by reliant"]["Δ_SP"]
    again = saved.load(tmp_path / "run")
    assert again.takes == made.student.takes == GraphTakes(4, 0, (260, 260), "node")
    assert json.loads((tmp_path / "run" / "pictures" / "fairness.json").read_text())["kind"] == "bars"


@pytest.mark.parametrize(
    ("options", "part"),
    [
        ({"method": "cmi", "teacher": "graphs"}, "cmi cannot run here: it works on images, .* take --method gfkd"),
        ({"method": "gfkd", "teacher": "zoo:digits_teacher"}, "it works on graphs, .* take --method fastdfkd"),
        ({"method": "gfkd", "teacher": "graphs", "sizes": (6, 3)}, "sizes must be the fewest"),
        ({"method": "gfkd", "teacher": "graphs", "data": "mutag"}, "makes its own graphs and takes no --data"),
    ],
)
def test_what_cannot_work_says_what_would(tmp_path: Path, options: dict[str, Any], part: str) -> None:
    if options["teacher"] == "graphs":
        options = {**options, "teacher": layer_networks()["teacher"]}
        student = resolve("zoo:gcn_3_32", pretrained=False, num_classes=3, takes=options["teacher"].takes)
    else:
        student = resolve("zoo:convnet_small", pretrained=False, num_classes=10, input_shape=(1, 8, 8))
    with pytest.raises(UserError, match=part):
        upcycle.distill(student=student, out=tmp_path / "run", **options)
    assert not (tmp_path / "run").exists()
