"""The notebooks run: their cells in order, what a cell ends with is shown, and the cell that trains runs twice."""

from __future__ import annotations

import ast
import json
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
PLACE = ROOT / "docs" / "notebooks"
LEAST = {"distil-my-network": 0.9, "without-data": 0.75, "extend": 0.6}
"""What the product of each reaches at least on the test images."""


def cells(name: str) -> list[str]:
    found = json.loads((PLACE / f"{name}.ipynb").read_text())
    assert found["nbformat"] == 4
    return ["".join(cell["source"]) for cell in found["cells"] if cell["cell_type"] == "code"]


def show(cell: str, names: dict[str, Any]) -> str:
    """Run a cell as a notebook does; returns what it would show of its last line."""
    *before, last = ast.parse(cell).body
    if not isinstance(last, ast.Expr):
        before, last = [*before, last], None  # type: ignore[assignment]
    exec(compile(ast.Module(before, []), "cell", "exec"), names)
    if last is None:
        return ""
    value = eval(compile(ast.Expression(last.value), "cell", "eval"), names)
    shown = getattr(value, "_repr_html_", lambda: repr(value))()
    assert len(repr(value)) < 400 and "tensor(" not in repr(value), cell
    return str(shown)


@pytest.mark.parametrize("name", ["distil-my-network", pytest.param("without-data", marks=pytest.mark.slow), "extend"])
def test_a_notebook_runs(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    shown = [show(cell, names) for cell in cells(name)]
    assert any("<table>" in text for text in shown)
    result = names["result"]
    assert result.rows[-1]["accuracy"][0] >= LEAST[name]
    assert result.report.is_file() and result.directory.parent == Path("runs")


def test_no_notebook_has_outputs_and_each_is_linked() -> None:
    files = sorted(PLACE.glob("*.ipynb"))
    assert {file.stem for file in files} == LEAST.keys()
    page = (ROOT / "docs" / "notebooks.md").read_text()
    for file in files:
        code = [cell for cell in json.loads(file.read_text())["cells"] if cell["cell_type"] == "code"]
        assert all(cell["outputs"] == [] and cell["execution_count"] is None for cell in code), file
        assert f"(notebooks/{file.name})" in page
