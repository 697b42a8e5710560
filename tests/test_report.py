"""The report: complete, self-contained, safe with hostile names, and readable in a real browser."""

from __future__ import annotations

import base64
import io
import json
import math
from collections.abc import Iterator
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from sklearn.datasets import load_digits

from tests.browser import Browser, find_chromium, open_browser
from upcycle.core import lineage
from upcycle.core.errors import UserError
from upcycle.report import plots, write_report

CLASSES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
ALIKE = {(3, 5): 0.6, (5, 3): 0.6, (1, 9): 0.5, (9, 1): 0.4, (0, 8): 0.35, (4, 7): 0.3, (2, 0): 0.2}


def arm(name: str, role: str, accuracy: float, seeds: int, cost: float, random: np.random.Generator) -> dict[str, Any]:
    """A row as a verb writes it, with a confusion matrix, classes and calibration that go together."""
    wrong = (1 - accuracy) * random.uniform(0.5, 1.5, 10)
    wrong *= (1 - accuracy) / wrong.mean()
    confusion = []
    for i in range(10):
        weights = np.array([0.0 if i == j else 0.04 + ALIKE.get((i, j), 0.0) for j in range(10)])
        errors = random.multinomial(round(1000 * wrong[i]), weights / weights.sum())
        errors[i] = 1000 - errors.sum()
        confusion.append(errors.tolist())
    centres = (np.arange(15) + 0.5) / 15
    counts = np.round(10000 * centres**6 / (centres**6).sum())
    right = np.clip(centres - 4 * (1 - accuracy) * centres * (1.03 - centres), 0, 1)
    return {
        "name": name, "role": role,
        "accuracy": np.round(accuracy + random.normal(0, 0.003, seeds) * (seeds > 1), 4).tolist(),
        "parameters": int(855_770 * cost), "macs": int(127e6 * cost), "latency": 0.0081 * (cost + 0.1),
        "memory": int(6.2e6 * (cost + 0.2)), "per_class": [confusion[i][i] / 1000 for i in range(10)],
        "ece": round(0.3 * (1 - accuracy), 4), "confusion": confusion,
        "reliability": {"confidence": centres.tolist(), "accuracy": right.tolist(), "count": counts.tolist()},
    }  # fmt: skip


def metrics(random: np.random.Generator, accuracy: float, start: float) -> str:
    lines = ["stage,epoch,step,name,value"]
    for epoch in range(30):
        done = 1 - math.exp(-epoch / 6)
        noise = random.normal(0, 0.012 * (1.1 - done))
        values = {"loss": start * (1.12 - done) + noise,
                  "validation_loss": start * (1.2 - 0.95 * done) - noise,
                  "validation_accuracy": 0.3 + (accuracy - 0.3) * done + noise}  # fmt: skip
        lines += [f"run,{epoch},{(epoch + 1) * 352},{name},{value!r}" for name, value in values.items()]
    return "\n".join(lines) + "\n"


def png(pixels: np.ndarray) -> str:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()


def write_run(directory: Path, classes: list[str] = CLASSES) -> Path:
    """A run as ``distill`` leaves it: three arms, three seeds, ten classes, curves and pictures."""
    random = np.random.default_rng(0)
    rows = [
        arm("cifar10_resnet56", "teacher", 0.944, 1, 1.0, random),
        arm("cifar10_resnet20 alone", "alone", 0.823, 3, 0.3184, random),
        arm("cifar10_resnet20 by kd", "student", 0.921, 3, 0.3184, random),
    ]
    means = [float(np.mean(row["accuracy"])) for row in rows]
    data = {"name": "cifar10", "digest": "5f" * 32, "licence": "unknown"}
    teacher = lineage.node(name="cifar10_resnet56", digest="9a" * 32, licence="MIT", role="teacher",
                           data=data, metrics={"test_accuracy": 0.944}, date="2025-05-04")  # fmt: skip
    versions = {"python": "3.12.4", "upcycle": "0.1.0", "torch": "2.10.0", "numpy": "2.1.0"}
    family = lineage.child([teacher], name="cifar10_resnet20", digest="3c" * 32, verb="distill", method="kd",
                           data=data, metrics={"test_accuracy": rows[2]["accuracy"]}, versions=versions,
                           date="2026-02-11")  # fmt: skip
    command = "upcycle distill --teacher zoo:cifar10_resnet56 --student zoo:cifar10_resnet20 --data cifar10"
    result = {
        "format": 1, "verb": "distill", "method": "kd",
        "title": "Distilling the Knowledge in a Neural Network",
        "paper": "Hinton, Vinyals, Dean; NIPS 2014 Deep Learning Workshop; arXiv:1503.02531",
        "command": command + " --labels 50 --method kd --seeds 3 --alone",
        "date": "2026-02-11", "seconds": 2712.4,
        "sentence": f"The student reaches {100 * means[2]:.1f} % on the 10,000 test images of cifar10, "
        f"{100 * (means[0] - means[2]):.1f} points below its teacher, with 3.14 times fewer parameters, and "
        f"{100 * (means[2] - means[1]):.1f} points above the same network trained alone.",
        "data": {"name": "cifar10", "train": 45000, "validation": 5000, "test": 10000, "labelled": 500,
                 "classes": classes, "notes": ["The validation split was drawn from the training images."]},
        "rows": rows, "seeds": [0, 1, 2],
        "machine": {"cpu": "Intel Xeon Platinum 8488C", "cores": 2, "precision": "bf16-mixed",
                    "teacher": "bf16, 57 BatchNorm folded, error 3e-7"},
        "config": {"teacher": "zoo:cifar10_resnet56", "student": "zoo:cifar10_resnet20", "temperature": 4.0,
                   "recipe": {"epochs": 30, "lr": 0.1}},
        "notes": ["The student trained alone saw 50 labels a class; the distilled one saw none."],
        "versions": versions,
    }  # fmt: skip
    (directory / "model").mkdir(parents=True)
    (directory / "pictures").mkdir()
    (directory / "result.json").write_text(json.dumps(result))
    (directory / "model" / "lineage.json").write_text(json.dumps(family))
    (directory / "metrics.csv").write_text(metrics(random, 0.92, 2.4))
    for name, accuracy, start in [("student-1", 0.918, 2.4), ("student-2", 0.923, 2.4), *(
        (f"alone-{seed}", 0.82 + 0.004 * seed, 1.6) for seed in range(3))]:  # fmt: skip
        (directory / "more" / name).mkdir(parents=True)
        (directory / "more" / name / "metrics.csv").write_text(metrics(random, accuracy, start))
    digits = load_digits()
    shown = [{"png": png((digits.images[i] * 15.9).astype(np.uint8)), "label": f"{digits.target[i]} for sure"}
             for i in range(16)]  # fmt: skip
    layers = ["stem", "stage1", "stage2", "stage3", "head"]
    similarity = [[round(math.exp(-0.35 * abs(i - j)), 3) for j in range(5)] for i in range(5)]
    pictures = {
        "1-images": {"kind": "images", "title": "Synthesised digits",
                     "caption": "What the teacher dreams of.", "items": shown},
        "2-cka": {"kind": "heatmap", "title": "Similarity of layers", "caption": "Linear CKA on 512 images.",
                  "rows": layers, "columns": layers, "values": similarity},
        "3-entropy": {"kind": "lines", "title": "Entropy of the teacher's answers", "caption": "In nats.",
                      "x": "epoch", "y": "entropy", "series": [{"name": "training", "x": list(range(1, 31)),
                                                  "y": [1.2 * 0.93**i for i in range(30)]}]},
        "4-blocks": {"kind": "bars", "title": "Error of each graft",
                     "caption": "Mean square, after its stage.",
                     "items": [{"name": f"block {i}", "value": 0.01 * (i + 1) ** 1.5, "spread": 0.004}
                               for i in range(4)]},
    }  # fmt: skip
    for name, picture in pictures.items():
        (directory / "pictures" / f"{name}.json").write_text(json.dumps(picture))
    return directory


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_run(tmp_path_factory.mktemp("report") / "run")


@pytest.fixture(scope="module")
def page(run: Path) -> str:
    return write_report(run).read_text()


class Tags(HTMLParser):
    """Every start tag with its attributes, and all text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data

    def named(self, name: str) -> list[dict[str, str | None]]:
        return [attributes for tag, attributes in self.tags if tag == name]


def assert_harmless(tags: Tags) -> None:
    """Nothing runs and nothing is fetched: no script, no handler, no address but data inside the page."""
    assert not {"script", "iframe", "object", "embed", "base", "form"} & {tag for tag, _ in tags.tags}
    for tag, attributes in tags.tags:
        for name, value in attributes.items():
            assert not name.startswith("on"), (tag, name)
            if name in ("src", "href", "xlink:href", "srcset", "action", "style"):
                assert value is not None and value.startswith(("data:image/png;base64,", "data:,", "#")), (
                    tag,
                    value,
                )


def test_the_page_answers_what_it_is_for(page: str) -> None:
    text = " ".join(Tags(page).text.split())
    for needed in (
        "cifar10_resnet20, made from cifar10_resnet56", "The student reaches 91.8 %", "500 of 45,000",
        "45 min 12 s for 3 seeds", "82.4 ± 0.3 %", "−2.6 points", "856 k", "3.14× fewer", "8.91 ms",
        "2.63× faster", "Validation accuracy", "dog is called cat 67 times in 1,000 (teacher: 54)",
        "expected calibration error", "Synthesised digits", "Similarity of layers", "Licence: MIT",
        "The data cifar10 come without a stated licence", "--labels 50", "temperature: 4.0", "Xeon",
        "0, 1, 2", "saw 50 labels a class", "The validation split was drawn",
    ):  # fmt: skip
        assert needed in text, needed
    assert text.count("not legal advice") == 1


def test_the_page_is_accessible_and_self_contained(page: str) -> None:
    tags = Tags(page)
    assert_harmless(tags)
    assert "@import" not in page and "url(" not in page and "http:" not in page and "https:" not in page
    headings = [int(tag[1]) for tag, _ in tags.tags if tag in ("h1", "h2", "h3", "h4")]
    assert headings[0] == 1 and headings.count(1) == 1
    assert all(b - a <= 1 for a, b in pairwise(headings))
    assert all(th.get("scope") in ("row", "col") for th in tags.named("th"))
    assert all(svg.get("role") == "img" and svg.get("aria-label") for svg in tags.named("svg"))
    assert all(img.get("alt") for img in tags.named("img"))
    ids = [attributes["id"] for _, attributes in tags.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    named = [section.get("aria-labelledby") for section in tags.named("section")]
    assert {name for name in named if name} <= set(ids)
    scrolled = [a for _, a in tags.tags if a.get("class") == "scroll"]
    assert scrolled and all(a.get("tabindex") == "0" and a.get("aria-label") for a in scrolled)


HOSTILE = [
    "<script>window.hacked=1</script>", '"><img src=x onerror="window.hacked=1">', "a'b\"c",
    "</svg></style>&amp;", "{{ 7*7 }}", "javascript:alert(1)", "\u202eright to left", "\x00\ud800", "x" * 300,
    "",
]  # fmt: skip


@pytest.fixture(scope="module")
def hostile_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every string that comes from outside is an attack, a piece of mark-up or far too long."""
    run = write_run(tmp_path_factory.mktemp("hostile") / "run", HOSTILE)

    def spoil(value: Any, key: str = "") -> Any:
        if isinstance(value, dict):
            return {k: spoil(v, k) for k, v in value.items()}
        if isinstance(value, list):
            return [spoil(v, key) for v in value]
        return (
            HOSTILE[len(value) % 6] + value if isinstance(value, str) and key not in ("kind", "role", "png") else value
        )

    for file in [run / "result.json", run / "model" / "lineage.json", *run.glob("pictures/*.json")]:
        file.write_text(json.dumps(spoil(json.loads(file.read_text()))))
    text = (run / "metrics.csv").read_text()
    (run / "metrics.csv").write_text(text.replace("run,", "<script>window.hacked=1</script>,"))
    return run


def test_hostile_names_are_text_and_nothing_else(hostile_run: Path) -> None:
    page = write_report(hostile_run).read_text()
    tags = Tags(page)
    assert_harmless(tags)
    assert "<script>window.hacked=1</script>" in tags.text and "{{ 7*7 }}" in tags.text
    images = json.loads((hostile_run / "pictures" / "1-images.json").read_text())
    images["items"][0]["png"] = 'x" onerror="window.hacked=1'
    (hostile_run / "pictures" / "1-images.json").write_text(json.dumps(images))
    page = write_report(hostile_run).read_text()
    assert_harmless(Tags(page))
    assert "This picture cannot be drawn" in page


KEYS = ["method", "title", "paper", "command", "date", "seconds", "sentence", "data", "rows", "seeds",
        "machine", "config", "notes", "versions"]  # fmt: skip


@pytest.mark.parametrize("key", KEYS)
def test_missing_pieces_are_left_out(run: Path, tmp_path: Path, key: str) -> None:
    result = json.loads((run / "result.json").read_text())
    del result[key]
    (tmp_path / "result.json").write_text(json.dumps(result))
    assert_harmless(Tags(write_report(tmp_path).read_text()))


def test_the_least_result_makes_a_page(tmp_path: Path) -> None:
    row = {"name": "m", "role": "student", "accuracy": [0.5], "parameters": 10}
    (tmp_path / "result.json").write_text(json.dumps({"format": 1, "verb": "merge", "rows": [row]}))
    page = write_report(tmp_path).read_text()
    text = Tags(page).text
    assert "50.0 %" in text and "upcycle merge" in text
    for absent in (
        "Training",
        "Class by class",
        "Calibration",
        "Family tree",
        "Notes",
        "whiskers",
        "None",
        "nan",
    ):
        assert absent not in text.split("</style>")[-1].split("upcycle merge", 1)[1], absent
    assert [f.name for f in tmp_path.iterdir() if f.name.startswith(".")] == []


@pytest.mark.parametrize("row", ["accuracy", "per_class", "confusion", "reliability", "ece", "latency", "parameters"])
def test_a_measure_that_one_row_lacks(run: Path, tmp_path: Path, row: str) -> None:
    result = json.loads((run / "result.json").read_text())
    del result["rows"][0][row]
    result["rows"][1][row] = None
    (tmp_path / "result.json").write_text(json.dumps(result))
    assert_harmless(Tags(write_report(tmp_path).read_text()))


def test_a_run_without_a_readable_result_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"There is no file .*result\.json"):
        write_report(tmp_path)
    for content in ('{"format": 2}', "[]", '{"format": 1'):
        (tmp_path / "result.json").write_text(content)
        with pytest.raises(UserError, match=r"result\.json is "):
            write_report(tmp_path)
    assert not (tmp_path / "report.html").exists()


def test_many_classes_show_those_that_matter(run: Path, tmp_path: Path) -> None:
    result = json.loads((run / "result.json").read_text())
    k = 100
    result["data"]["classes"] = [f"class {i}" for i in range(k)]
    for row in result["rows"]:
        worse = row["role"] == "student"
        row["per_class"] = [0.2 if worse and i == 77 else 0.9 for i in range(k)]
        row["per_class"][5] = None
        row["confusion"] = [[90 if i == j else 0 for j in range(k)] for i in range(k)]
        row["confusion"][77][3] = 30
    (tmp_path / "result.json").write_text(json.dumps(result))
    page = write_report(tmp_path).read_text()
    assert "The 30 of 100 classes where the networks differ most" in page
    assert "<b>class 77</b> is called <b>class 3</b> 30 times in 120 (teacher: 30)" in page
    assert "The 2 of 100 classes that are confused most" in page
    assert page.count("class 77, cifar10_resnet20 by kd: 20.0 %") == 1


def test_curves_count_epochs_from_one_and_pass_over_edited_lines(tmp_path: Path) -> None:
    (tmp_path / "result.json").write_text('{"format": 1, "verb": "distill"}')
    (tmp_path / "metrics.csv").write_text(
        "stage,epoch,step,name,value\nrun,0,5,loss,2.0\nrun,1,10,loss,nan\nrun,2,15,loss,1.5\nrubbish\nrun,x,1,loss,1\n"
        "once,0,5,loss,3.0\nonce,0,9,loss,2.5\n"
    )
    page = write_report(tmp_path).read_text()
    assert "training loss: 2 at epoch 1<" in page and "training loss: 1.5 at epoch 3<" in page
    assert "at epoch 2<" not in page and "training loss: 2.5 at update 9<" in page


finite = st.floats(-1e6, 1e6, allow_subnormal=False).filter(lambda v: v == 0 or abs(v) > 1e-6)


@given(finite, finite, st.integers(2, 8))
def test_ticks_enclose_their_range_evenly(a: float, b: float, count: int) -> None:
    low, high = min(a, b), max(a, b)
    found = plots.ticks(low, high, count)
    width = (high - low) or abs(low) or 1
    assert found[0] <= low + 1e-6 * width and found[-1] >= high - 1e-6 * width
    steps = np.diff(found)
    assert len(found) >= 2 and np.allclose(steps, steps[0], rtol=1e-6) and len(found) <= 2 * count + 2


def marks(svg: str, tag: str, *names: str) -> list[tuple[float, ...]]:
    return [tuple(float(a[n] or "nan") for n in names) for a in Tags(svg).named(tag)]


@given(st.lists(st.tuples(st.integers(0, 300), finite), min_size=1, max_size=30))
def test_lines_stay_in_their_frame(points: list[tuple[int, float]]) -> None:
    svg = plots.lines([plots.Series("s", [p[0] for p in points], [p[1] for p in points])], label="l")
    dots = marks(svg, "circle", "cx", "cy")
    assert len(dots) == len(points)
    assert all(0 <= x <= plots.WIDTH and 0 <= y <= 230 for x, y in dots)


def test_bars_have_the_lengths_of_their_values() -> None:
    items = [plots.Bar("a", 10.0), plots.Bar("b", 40.0), plots.Bar("c", -20.0)]
    (xa, wa), (xb, wb), (xc, wc) = marks(plots.bars(items, label="l"), "rect", "x", "width")
    assert wb == pytest.approx(4 * wa, abs=0.5) and wc == pytest.approx(2 * wa, abs=0.5)
    assert xa == xb and xc + wc == pytest.approx(xa, abs=0.2)


def test_bars_never_pretend_a_length_on_a_cut_axis() -> None:
    close = [plots.Bar("a", 0.95, (0.94, 0.96), 0.01), plots.Bar("b", 0.93)]
    svg = plots.bars(close, label="l", top=1.0)
    assert plots.starts_late(close) and not marks(svg, "rect", "x") and len(marks(svg, "circle", "cx")) == 2
    far = [plots.Bar("a", 0.95), plots.Bar("b", 0.5)]
    assert not plots.starts_late(far) and len(marks(plots.bars(far, label="l"), "rect", "x")) == 2


def test_a_heat_map_is_strongest_where_its_value_is() -> None:
    svg = plots.heatmap(["r1", "r2"], ["c1", "c2"], [[0.0, -2.0], [1.0, None]], label="l")
    cells = [(a["class"], float(a["fill-opacity"] or 0)) for a in Tags(svg).named("rect")]
    assert cells == [("cell", 0.06), ("cell negative", 1.0), ("cell", 0.53)]
    hidden = plots.heatmap(["a", "b"], ["a", "b"], [[90.0, 10.0], [5.0, 95.0]], label="l", diagonal=False)
    assert [a["class"] for a in Tags(hidden).named("rect")] == ["cell muted", "cell", "cell", "cell muted"]
    assert Tags(hidden).named("rect")[1]["fill-opacity"] == "1.00"


# -- in a browser -----------------------------------------------------------------------------------------

needs_chromium = pytest.mark.skipif(find_chromium() is None, reason="there is no Chromium on this machine")

MISFITS = """[...document.querySelectorAll('svg text, td, th, dd, li, h1, p')].filter(e => {
  const box = e.getBoundingClientRect();
  return box.width && !e.closest('.scroll') && (box.right > innerWidth + 1 || box.left < -1);
}).map(e => e.textContent)"""


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with open_browser() as browser:
        yield browser


@pytest.mark.browser
@needs_chromium
@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("width", [400, 1400])
def test_the_page_in_a_browser(browser: Browser, run: Path, page: str, width: int, dark: bool) -> None:
    seen = browser.visit(run / "report.html", width, dark=dark, script=MISFITS)
    assert seen.requests[0].startswith("file:") and seen.outside == [] and seen.errors == []
    assert seen.window_width == width and seen.page_width <= width
    assert seen.answer == []
    picture = np.asarray(Image.open(io.BytesIO(seen.png)).convert("L"))
    assert (picture.mean() < 80) if dark else (picture.mean() > 200)
    assert picture.std() > 5


@pytest.mark.browser
@needs_chromium
def test_hostile_names_do_nothing_in_a_browser(browser: Browser, hostile_run: Path) -> None:
    seen = browser.visit(write_report(hostile_run), 400, script="[typeof window.hacked, document.title.length > 0]")
    assert seen.answer == ["undefined", True]
    assert seen.outside == [] and seen.errors == [] and seen.page_width <= 400


@pytest.mark.browser
@needs_chromium
def test_everything_is_reached_with_the_keyboard(browser: Browser, run: Path, page: str) -> None:
    script = """[...document.querySelectorAll('summary, pre, .scroll')].filter(e => {
      e.focus(); return document.activeElement !== e && e.closest('details')?.open !== false; }).length"""
    assert browser.visit(run / "report.html", 400, script=script).answer == 0


@pytest.mark.browser
@needs_chromium
def test_the_browser_notices_a_page_that_misbehaves(browser: Browser, tmp_path: Path) -> None:
    (tmp_path / "bad.html").write_text(
        "<!doctype html><title>bad</title><div style='width: 900px'>wide</div><img src='http://127.0.0.1:9/x.png'>"
        "<script>console.error('oh'); throw new Error('no')</script>"
    )
    seen = browser.visit(tmp_path / "bad.html", 400)
    assert seen.outside == ["http://127.0.0.1:9/x.png"] and seen.page_width > 400
    assert any("oh" in error for error in seen.errors) and any("no" in error for error in seen.errors)
