"""Pictures keep proportion: what is small or uncertain does not look large, and what matters is not hidden."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.browser import find_chromium, open_browser
from tests.report.test_report import write_run
from upcycle.reports import figures, write_report
from upcycle.reports.bars import Bar, bar_chart, dumbbells, starts_late
from upcycle.reports.figures import Arm, per_class, pooled
from upcycle.reports.lines import Series, line_plot, settled
from upcycle.reports.matrices import heatmap
from upcycle.verbs.figures import alike
from upcycle.verbs.heatmaps import as_heat, held_by_half


def test_bins_of_few_samples_are_drawn_with_their_neighbours() -> None:
    bins = [(0.1, 1.0, 1), (0.3, 0.0, 3), (0.5, 0.5, 16), (0.7, 0.8, 40), (0.9, 1.0, 2)]
    first, second = pooled(bins)
    assert first == pytest.approx(((0.1 + 0.9 + 8) / 20, (1 + 0 + 8) / 20, 20))
    assert second == pytest.approx(((28 + 1.8) / 42, (32 + 2) / 42, 42))
    assert pooled(bins[3:4]) == bins[3:4] and pooled(bins[:1]) == bins[:1]


def test_the_first_values_of_a_loss_do_not_flatten_all_others() -> None:
    loss = Series("loss", range(1, 21), [20.0, 9.0, *[1.0 - 0.01 * i for i in range(18)]])
    top = settled([loss])
    assert top is not None and top <= 1.0
    drawn = str(line_plot([loss], label="loss", y="loss", top=top))
    heights = [float(y) for path in re.findall(r'points="([^"]+)"', drawn) for y in re.findall(r",([\d.]+)", path)]
    assert min(heights) >= 20 and max(heights) - min(heights) > 30  # within the plot, and not flat
    assert settled([Series("loss", range(1, 21), [2.0 - 0.05 * i for i in range(20)])]) is None
    assert settled([Series("loss", (1, 2), (1.0, 1.0))]) is None


def test_a_line_leaves_the_plot_and_comes_back_where_it_crosses_its_edge() -> None:
    drawn = str(line_plot([Series("a", (0, 1, 2, 3), (0.0, 2.0, 0.0, 1.0))], label="a", top=1.0))
    first, second = (path.split() for path in re.findall(r'points="([^"]+)"', drawn))
    assert len(first) == 2 and len(second) == 3
    left, right = float(first[1].split(",")[0]), float(second[0].split(",")[0])
    start, end = float(first[0].split(",")[0]), float(second[-1].split(",")[0])
    assert (left - start) / (end - start) == pytest.approx(0.5 / 3, abs=0.01)
    assert (right - start) / (end - start) == pytest.approx(1.5 / 3, abs=0.01)


def test_four_tenths_of_a_point_are_no_landslide() -> None:
    items = [Bar("a", 0.990), Bar("b", 0.986)]
    at = [float(x) for x in re.findall(r'class="mean[^"]*" d="M([\d.]+)', str(bar_chart(items, label="x", top=1.0)))]
    assert starts_late(items) and 0 < at[0] - at[1] < 0.1 * figures.svg.WIDTH
    assert not starts_late(items[:1])  # a network by itself is a bar from zero
    drawn = str(dumbbells(["cat"], [("a", "student", [0.990]), ("b", "teacher", [0.986])], label="x"))
    places = [float(x) for x in re.findall(r'cx="([\d.]+)"', drawn)]
    assert max(places) - min(places) < 0.1 * figures.svg.WIDTH


def test_one_mistake_in_fifty_is_pale() -> None:
    def strongest(share: float) -> float:
        values = [[100 - share, share], [0, 100]]
        drawn = str(heatmap("ab", "ab", values, label="x", diagonal=False, full=figures.FULL))
        return max(
            float(v)
            for k, v in re.findall(r'class="(cell[ \w]*)"[^>]*fill-opacity="([\d.]+)"', drawn)
            if "muted" not in k
        )

    assert strongest(2) < 0.2 and strongest(25) == 1 and strongest(50) == 1


def test_a_class_that_is_hardly_recognised_gets_a_sentence() -> None:
    def notes(share: float) -> list[str]:
        row = {"name": "net", "role": "student", "accuracy": [0.7], "per_class": [0.9, share, 0.8]}
        (figure,) = per_class(["cat", "dog", "<ox>"], [Arm(row, "student")])
        return [str(note) for note in figure.notes]

    assert notes(0.6) == []
    (said,) = notes(0.11)
    assert "net recognises <b>'dog'</b> in 11.0 %" in said and "85.0 % on average" in said


def test_networks_of_one_architecture_are_equally_fast_and_noise_is_no_difference(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [
        {"parameters": 5, "macs": 7, "memory": 9, "latency": 3.0},
        {"parameters": 5, "macs": 7, "memory": 9, "latency": 2.0},
        {"parameters": 5, "macs": 8, "memory": 9, "latency": 4.0},
        {"accuracy": [0.5]},
    ]
    alike(rows)
    assert [row.get("latency") for row in rows] == [2.0, 2.0, 4.0, None]
    run = write_run(tmp_path / "run")
    result = json.loads((run / "result.json").read_text())
    for row, seconds in zip(result["rows"], (1.0, 1.1, 2.0), strict=False):
        row["latency"] = seconds
    (run / "result.json").write_text(json.dumps(result))
    page = write_report(run).read_text()
    assert "2× slower" in page and "1.1× slower" not in page


def test_an_image_is_seen_through_its_heat_map() -> None:
    heat = np.asarray(as_heat(torch.tensor([[0.0, 1.0]])))
    assert heat[0, 0, 3] == 0 and heat[0, 1, 3] < 150
    assert held_by_half(torch.tensor([[[1.0, 0.0], [0.0, 0.0]], [[1.0, 1.0], [1.0, 1.0]]])) == (0.25 + 0.5) / 2


@pytest.mark.browser
@pytest.mark.skipif(find_chromium() is None, reason="there is no Chromium on this machine")
def test_names_wrap_between_words_and_lines_stay_in_their_plots(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    table = (run / "metrics.csv").read_text().splitlines()
    first = next(i for i, line in enumerate(table) if ",loss," in line)
    table[first] = table[first].rpartition(",")[0] + ",400.0"
    (run / "metrics.csv").write_text("\n".join(table) + "\n")
    page = write_report(run)
    assert "lie above the plot" in page.read_text()
    script = """[[...document.querySelectorAll('th .word')].filter(e => e.getClientRects().length > 1).length,
      [...document.querySelectorAll('svg polyline')].filter(e => {
        const line = e.getBoundingClientRect(), plot = e.closest('svg').getBoundingClientRect();
        return line.top < plot.top || line.bottom > plot.bottom; }).length,
      document.querySelectorAll('th .word').length > 0]"""
    with open_browser() as browser:
        for width in (400, 1400):
            assert browser.visit(page, width, script=script).answer == [0, 0, True]
