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
from hypothesis import example, given
from hypothesis import strategies as st
from PIL import Image
from sklearn.datasets import load_digits

from tests.browser import Browser, find_chromium, open_browser
from upcycle.core import lineage
from upcycle.core.errors import UserError
from upcycle.reports import figures, kinds, pictures, write_report
from upcycle.reports.bars import Bar, bar_chart, starts_late
from upcycle.reports.lines import Series, line_plot
from upcycle.reports.matrices import heatmap
from upcycle.reports.paths import Centre, Walk, fans
from upcycle.reports.scatter import Point, scatter_plot
from upcycle.reports.svg import WIDTH, ticks
from upcycle.reports.trees import tree

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


def convolutions(depths: list[int]) -> list[str]:
    """The names of the layers of a residual network, from the stem to the head."""
    blocks = [f"layer{s + 1}.{b}.conv{c}" for s, n in enumerate(depths) for b in range(n) for c in (1, 2)]
    return ["conv1", *blocks, "fc"]


def route(name: str, classes: list[str], width: int, depth: float, random: np.random.Generator) -> dict[str, Any]:
    """A layer whose channels belong the more to single classes the deeper it lies."""
    shares = [*(0.7 * depth / len(classes) * random.uniform(0.4, 1.6) for _ in classes), 0.75 * (1.1 - depth)]
    counts = [int(width * share) for share in shares]
    labels = [*(f"only {c}" for c in classes), "shared"]
    groups = [{"label": label, "count": n} for label, n in zip(labels, counts, strict=True)]
    return {"name": name, "groups": [*groups, {"label": "unused", "count": width - sum(counts)}]}


def routes(layers: list[str], classes: list[str], random: np.random.Generator) -> list[dict[str, Any]]:
    depths = np.linspace(0, 1, len(layers))
    return [route(n, classes, 2 ** int(4 + 3 * d), float(d), random) for n, d in zip(layers, depths, strict=True)]


def assembly_pictures() -> dict[str, dict[str, Any]]:
    """What taking networks apart and putting them together shows: routes, budgets, similarities and blocks."""
    random = np.random.default_rng(1)
    rows, columns = convolutions([9, 9, 9]), convolutions([4, 4, 4])
    where = [np.linspace(0, 1, len(names)) for names in (rows, columns)]
    alike = np.clip(np.exp(-3.2 * np.abs(where[0][:, None] - where[1][None])) + random.normal(0, 0.03, (56, 26)), 0, 1)
    values: list[list[float | None]] = [[round(float(v), 4) for v in line] for line in alike]
    values[3][3] = None
    zoo = [(f"cifar10_resnet{n}", (n - 2) / 6 * 48_000 - 130_000, 90.2 + 0.075 * n) for n in (20, 32, 44, 56)]
    zoo += [("cifar10_vgg11_bn", 9_755_000, 92.5), ("cifar10_mobilenetv2_x0_5", 700_000, 92.8),
            ("cifar10_mobilenetv2_x1_4", 4_330_000, 94.0), ("cifar10_shufflenetv2_x2_0", 5_370_000, 93.6),
            ("cifar10_repvgg_a0", 7_840_000, 94.4)]  # fmt: skip
    made = [(f"candidate {i}", 10.0 ** random.uniform(5.3, 6.7), random.uniform(80, 93)) for i in range(14)]
    made += [("reassembled under 0.5 M", 470_000, 93.3), ("reassembled under 4 M", 3_600_000, 94.3)]
    every = [(*item, "zoo") for item in zoo] + [(*item, "reassembled") for item in made]
    items = [{"name": n, "x": x, "y": y, "group": g, "front": not any(a <= x and b > y for _, a, b, _ in every)}
             for n, x, y, g in every]  # fmt: skip
    cuts = {
        "cifar10_resnet20": [0.2, 0.33, 0.47],
        "cifar10_resnet56": [0.13, 0.4, 0.47],
        "cifar10_vgg11_bn": [0.02, 0.25, 0.73],
    }
    networks = [{"name": name, "blocks": [{"label": f"{name[8:]}.{i}", "width": w, "set": i} for i, w in enumerate(c)]}
                for name, c in cuts.items()]  # fmt: skip
    mixed = [("cifar10_resnet56", 0, 0.25), ("stitch", 3, 0.04), ("cifar10_vgg11_bn", 1, 0.3), ("stitch", 3, 0.06),
             ("cifar10_resnet20", 2, 0.35)]  # fmt: skip
    networks.append({"name": "reassembled", "blocks": [{"label": n, "width": w, "set": s} for n, s, w in mixed]})
    return {
        "1-few": {"kind": "routes", "title": "Routes of two classes", "caption": "Channels of each layer by class.",
                  "layers": routes([f"features.{i}" for i in range(0, 26, 2)], ["cat", "dog"], random)},
        "2-many": {"kind": "routes", "title": "Routes of ten classes", "caption": "Channels of each layer by class.",
                   "layers": routes(rows, CLASSES, random)},
        "3-pareto": {"kind": "scatter", "title": "Size and accuracy", "x": "parameters", "y": "accuracy (%)",
                     "log": True, "caption": "No network on the line is beaten in both by another.", "items": items},
        "4-cka": {"kind": "map", "title": "Similarity of all layers", "caption": "Lines are the borders of the blocks.",
                  "rows": rows, "columns": columns, "values": values, "low": 0, "high": 1, "x": "cifar10_resnet26",
                  "y": "cifar10_resnet56", "row_breaks": [19, 37, 55], "column_breaks": [9, 17, 25]},
        "5-blocks": {"kind": "blocks", "title": "Blocks that can replace each other", "networks": networks,
                     "caption": "Blocks of one colour belong to one set."},
        "6-tree": {"kind": "tree", "title": "Which classes share which expert", "caption": "Blocks and classes.",
                   "levels": ["level 1", "level 2", "level 3"], "leaf": "class", "leaves": CLASSES,
                   "paths": [[(i + 1) // 6, (i + 1) // 3, (i + 1) // 2] for i in range(10)]},
    }  # fmt: skip


def write_assembly(directory: Path) -> Path:
    """A run that put a network together from parts of two others, with every picture of that work."""
    random = np.random.default_rng(2)
    rows = [
        arm("cifar10_resnet56", "source", 0.944, 1, 1.0, random),
        arm("cifar10_vgg11_bn", "source", 0.925, 1, 11.4, random),
        arm("cat and dog of cifar10_resnet56", "part", 0.961, 1, 0.2, random),
        arm("ship of cifar10_vgg11_bn", "part", 0.913, 1, 0.9, random),
        arm("three_classes", "product", 0.95, 3, 1.1, random),
    ]
    result = {
        "format": 1, "verb": "assemble", "method": "mda", "title": "Made from parts", "rows": rows, "seeds": [0, 1, 2],
        "sentence": "The assembled network reaches 95.0 % on its classes without training.",
        "data": {"name": "cifar10", "train": 45000, "test": 10000, "classes": CLASSES},
    }  # fmt: skip
    (directory / "pictures").mkdir(parents=True)
    (directory / "result.json").write_text(json.dumps(result))
    (directory / "metrics.csv").write_text(metrics(random, 0.95, 2.4))
    for name, picture in assembly_pictures().items():
        (directory / "pictures" / f"{name}.json").write_text(json.dumps(picture))
    return directory


@pytest.fixture(scope="module")
def assembly(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = write_assembly(tmp_path_factory.mktemp("assembly") / "run")
    write_report(run)
    return run


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
        "2.63× faster", "Validation accuracy", "'dog' is called 'cat' 67 times in 1,000 (teacher: 54 times)",
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
    for name, picture in assembly_pictures().items():
        (run / "pictures" / f"made-{name}.json").write_text(json.dumps(picture))

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
    assert "<b>'class 77'</b> is called <b>'class 3'</b> 30 times in 120 (teacher: 30 times)" in page
    assert "The 2 of 100 classes that are confused most" in page
    assert page.count("class 77, cifar10_resnet20 by kd: 20.0 %") == 1


@pytest.mark.parametrize(("errors", "words"), [(1, "once"), (2, "twice"), (5, "5 times")])
def test_a_number_of_errors_is_a_sentence(errors: int, words: str, run: Path, tmp_path: Path) -> None:
    result = json.loads((run / "result.json").read_text())
    result["data"]["classes"] = [str(k) for k in range(10)]
    for row in result["rows"]:
        row["confusion"] = [[48 if i == j else 0 for j in range(10)] for i in range(10)]
        if row["role"] == "student":
            row["confusion"][8][1], row["confusion"][8][8] = errors, 48 - errors
    (tmp_path / "result.json").write_text(json.dumps(result))
    page = write_report(tmp_path).read_text()
    assert f"<b>'8'</b> is called <b>'1'</b> {words} in 48 (teacher: never)" in page


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
    found = ticks(low, high, count)
    width = (high - low) or abs(low) or 1
    assert found[0] <= low + 1e-6 * width and found[-1] >= high - 1e-6 * width
    steps = np.diff(found)
    assert len(found) >= 2 and np.allclose(steps, steps[0], rtol=1e-6) and len(found) <= 2 * count + 2


def marks(svg: str, tag: str, *names: str) -> list[tuple[float, ...]]:
    return [tuple(float(a[n] or "nan") for n in names) for a in Tags(svg).named(tag)]


@given(st.lists(st.tuples(st.integers(0, 300), finite), min_size=1, max_size=30))
def test_lines_stay_in_their_frame(points: list[tuple[int, float]]) -> None:
    svg = line_plot([Series("s", [p[0] for p in points], [p[1] for p in points])], label="l")
    dots = marks(svg, "circle", "cx", "cy")
    assert len(dots) == len(points)
    assert all(0 <= x <= WIDTH and 0 <= y <= 230 for x, y in dots)


def test_bars_have_the_lengths_of_their_values() -> None:
    items = [Bar("a", 10.0), Bar("b", 40.0), Bar("c", -20.0)]
    (xa, wa), (xb, wb), (xc, wc) = marks(bar_chart(items, label="l"), "rect", "x", "width")
    assert wb == pytest.approx(4 * wa, abs=0.5) and wc == pytest.approx(2 * wa, abs=0.5)
    assert xa == xb and xc + wc == pytest.approx(xa, abs=0.2)


def test_bars_never_pretend_a_length_on_a_cut_axis() -> None:
    close = [Bar("a", 0.95, (0.94, 0.96), 0.01), Bar("b", 0.93)]
    svg = bar_chart(close, label="l", top=1.0)
    assert starts_late(close) and not marks(svg, "rect", "x") and len(marks(svg, "circle", "cx")) == 2
    far = [Bar("a", 0.95), Bar("b", 0.5)]
    assert not starts_late(far) and len(marks(bar_chart(far, label="l"), "rect", "x")) == 2


def test_a_heat_map_is_strongest_where_its_value_is() -> None:
    svg = heatmap(["r1", "r2"], ["c1", "c2"], [[0.0, -2.0], [1.0, None]], label="l")
    cells = [(a["class"], float(a["fill-opacity"] or 0)) for a in Tags(svg).named("rect")]
    assert cells == [("cell", 0.06), ("cell negative", 1.0), ("cell", 0.53)]
    hidden = heatmap(["a", "b"], ["a", "b"], [[90.0, 10.0], [5.0, 95.0]], label="l", diagonal=False)
    assert [a["class"] for a in Tags(hidden).named("rect")] == ["cell muted", "cell", "cell", "cell muted"]
    assert Tags(hidden).named("rect")[1]["fill-opacity"] == "1.00"


# -- networks taken apart and put together ---------------------------------------------------------------


def test_roles_of_a_verb_that_assembles(assembly: Path) -> None:
    text = " ".join(Tags((assembly / "report.html").read_text()).text.split())
    assert "Comparison with cifar10_resnet56" in text
    for needed in ("cifar10_vgg11_bn source", "ship of cifar10_vgg11_bn part", "three_classes product"):
        assert needed in text, needed
    assert "Confusions of three_classes" in text and "(source: " in text
    for needed in ("11.4× more", "5× fewer", "+1.7 points"):  # of the first source
        assert needed in text, needed
    assert "Loss: student" not in text and "Loss: three_classes" in text


def test_what_rows_are_compared_with_and_how_they_are_told_apart() -> None:
    def of(*roles: str) -> list[figures.Arm]:
        return figures.arms([{"name": f"{i}", "role": role} for i, role in enumerate(roles)])

    assert figures.reference(of("product", "source", "source"))["name"] == "1"
    assert figures.reference(of("source", "teacher", "student"))["name"] == "1"
    assert figures.reference(of("member", "product")) == {} and figures.reference([]) == {}
    assert [a.tone for a in of("teacher", "alone", "student", "student")] == ["teacher", "alone", "student", "second"]
    made = [a.tone for a in of("source", "source", "part", *["member"] * 6, "product")]
    assert made[0] == "teacher" and made[-1] == "student" and len(set(made)) == len(made)
    assert len({a.tone for a in of(*["member"] * 12)}) == 10
    found = [figures.product(of(*roles)) for roles in (("source", "product", "alone"), ("teacher", "other"))]
    assert [a.name for a in found if a] == ["1", "1"] and figures.product([]) is None


def drawn(directory: Path, **picture: Any) -> figures.Figure:
    file = directory / "picture.json"
    file.write_text(json.dumps(picture))
    return pictures.picture(file)


@pytest.mark.parametrize("count", [5, 16, 17, 56])
def test_routes_are_shares_of_each_layer(tmp_path: Path, count: int) -> None:
    groups = [{"label": "shared", "count": 10}, {"label": "only cat", "count": 20}, {"label": "unused", "count": 10}]
    layers = [{"name": f"layer {i}", "groups": groups} for i in range(count - 1)] + [{"name": "none", "groups": []}]
    figure = drawn(tmp_path, kind="routes", layers=layers)
    wide, tall = ("width", "height") if count > 16 else ("height", "width")
    found = Tags(figure.body)
    lengths = np.array([[float(r[wide] or 0), float(r[tall] or 0)] for r in found.named("rect")]).reshape(-1, 3, 2)
    assert len(lengths) == count - 1 and np.allclose(lengths[:, :, 1], lengths[0, 0, 1])
    whole = lengths[:, :, 0] + 1  # the gap between pieces
    assert np.allclose(whole / whole.sum(1, keepdims=True), [0.5, 0.25, 0.25], atol=1e-3)
    assert [r["class"] for r in found.named("rect")[:3]] == [
        "piece tone-hue0",
        "piece tone-shared",
        "piece tone-unused",
    ]
    assert "layer 0, only cat: 20 of 40 channels (50.0 %)" in found.text
    assert "only cat 50.0 %, shared 25.0 %" in str(found.named("svg")[0]["aria-label"])
    assert figure.table is not None and figure.table[0] == ["layer", "only cat", "shared", "unused", "channels"]
    assert figure.table[1][0] == ["layer 0", "20", "10", "10", "40"]


def test_routes_of_many_classes_are_one_group(tmp_path: Path) -> None:
    many = [{"label": f"only {i}", "count": 1} for i in range(11)]
    figure = drawn(tmp_path, kind="routes", layers=[{"name": "a", "groups": [*many, {"label": "unused", "count": 5}]}])
    assert figure.table == (["layer", "of one class only", "unused", "channels"], [["a", "11", "5", "16"]])
    assert len(Tags(figure.body).named("rect")) == 2


def boxes(svg: str) -> list[tuple[float, float, float, float]]:
    """Where the names beside the points of a scatter plot lie, for letters of 6 units."""
    found = []
    for attributes, text in zip(
        Tags(svg).named("text"), [t.split("</text")[0] for t in svg.split("<text")[1:]], strict=True
    ):
        if attributes["class"] == "tick in tag":
            width = 6 * len(text.split(">")[1].split("<")[0])
            x, y = float(attributes["x"] or 0), float(attributes["y"] or 0)
            start = x - width * {"start": 0, "middle": 0.5, "end": 1}[str(attributes["text-anchor"])]
            found.append((start, y - 9, start + width, y + 2))
    return found


plane = st.tuples(st.floats(1, 1e7), st.floats(0, 100), st.booleans(), st.integers(1, 30))


@example([(1.0, 5e-324, False, 1)], False)
@given(st.lists(plane, min_size=1, max_size=40), st.booleans())
def test_names_in_a_scatter_plot_cover_nothing(points: list[tuple[float, float, bool, int]], log: bool) -> None:
    items = [Point("n" * size, x, y, front=front) for x, y, front, size in points]
    svg = scatter_plot(items, label="l", x="x", y="y", log=log)
    dots = marks(svg, "circle", "cx", "cy")
    assert len(dots) == len(items) and all(0 <= x <= WIDTH and 0 <= y <= 320 for x, y in dots)
    found = boxes(svg)
    assert len(found) <= 12 and (found or len(items) > 1)
    for i, (left, top, right, bottom) in enumerate(found):
        assert left >= 0 and right <= WIDTH
        assert not any(left < x < right and top < y < bottom for x, y in dots)
        assert not any(left < c and a < right and top < d and b < bottom for a, b, c, d in found[:i])


def test_the_front_of_a_scatter_plot_is_a_line(tmp_path: Path) -> None:
    front = {"a": (40_000, 91.0), "b": (10_000, 80.0), "c": (1_000_000, 95.5)}
    items = [{"name": n, "x": x, "y": y, "group": "zoo", "front": True} for n, (x, y) in front.items()]
    items += [{"name": "worse", "x": 500_000, "y": 85.0, "group": "ours"}, {"name": "lost", "x": 1, "y": math.nan}]
    figure = drawn(tmp_path, kind="scatter", x="parameters", y="accuracy (%)", log=True, items=items)
    tags = Tags(figure.body)
    (line,) = tags.named("polyline")
    dots = dict(zip(["a", "b", "c", "worse"], marks(figure.body, "circle", "cx", "cy"), strict=True))
    assert line["points"] == " ".join(f"{x},{y}" for x, y in (dots["b"], dots["a"], dots["c"]))
    assert dots["c"][0] - dots["a"][0] == pytest.approx(
        math.log(25) / math.log(4) * (dots["a"][0] - dots["b"][0]), abs=0.3
    )
    assert "worse, ours, parameters 500 k, accuracy (%) 85" in tags.text and "on the front b, a, c" in figure.body
    assert figure.table and figure.table[1][0] == ["a", "zoo", "40.0 k", "91", "yes"]
    assert (
        "no room for zero"
        in drawn(tmp_path, kind="scatter", x="", y="", log=True, items=[{**items[0], "x": 0}]).caption
    )


def test_a_map_joins_equal_cells_and_leaves_out_unknown_ones(tmp_path: Path) -> None:
    values = [[0.5, 0.502, None], [1.2, 0.0, -0.1]]
    figure = drawn(tmp_path, kind="map", rows=["r", "s"], columns=["a", "b", "c"], values=values, low=0, high=1,
                   row_breaks=[1], x="X", y="Y")  # fmt: skip
    cells = [(str(p["d"]), p["fill-opacity"]) for p in Tags(figure.body).named("path") if str(p["d"]).count("v1H")]
    assert cells == [("M0 0h2v1H0z", "0.53"), ("M0 1h1v1H0z", "1.00"), ("M1 1h1v1H1z", "0.05"), ("M2 1h1v1H2z", "0.05")]
    text = Tags(figure.body).text
    assert "r, a to b: 0.50" in text and "s, a: 1.20" in text and "s, c: −0.10" in text
    assert figure.table == (["Y", "largest in X", "value"], [["r", "b", "0.50"], ["s", "a", "1.20"]])


def test_a_map_of_two_large_networks_stays_small(tmp_path: Path) -> None:
    names = convolutions([10, 10, 9])
    values = np.random.default_rng(0).uniform(size=(60, 60)).tolist()
    figure = drawn(tmp_path, kind="map", rows=names, columns=names, values=values)
    assert len(figure.body) < 500_000


def test_blocks_have_the_lengths_of_their_shares(tmp_path: Path) -> None:
    networks = [
        {"name": "a", "blocks": [{"label": "one", "width": 0.25, "set": 3}, {"label": "two", "width": 0.75, "set": 7}]},
        {"name": "b", "blocks": [{"label": "all of it", "width": 1, "set": 7}]},
    ]
    figure = drawn(tmp_path, kind="blocks", networks=networks)
    tags = Tags(figure.body)
    widths = [float(r["width"] or 0) + 1 for r in tags.named("rect")]
    assert widths[1] == pytest.approx(3 * widths[0], abs=0.1) and widths[2] == pytest.approx(widths[0] + widths[1])
    assert [r["class"] for r in tags.named("rect")] == [f"piece tone-hue{i}" for i in (0, 1, 1)]
    assert "a, one: set 3, 25.0 % of the network" in tags.text and "set 7" in tags.text
    assert figure.table and figure.table[1][1] == ["a", "two", "7", "75.0 %"]


def test_a_tree_joins_leaves_and_crosses_nothing(tmp_path: Path) -> None:
    leaves, paths = ["a", "b", "c", "d"], [[2, 1], [1, 3], [2, 1], [1, 4]]
    figure = drawn(tmp_path, kind="tree", levels=["first", "second"], leaf="class", leaves=leaves, paths=paths)
    tags = Tags(figure.body)
    nodes = marks(figure.body, "rect", "x", "y")
    assert len(nodes) == 5 and len({x for x, _ in nodes}) == 2
    tones = [str(r["class"]) for r in tags.named("rect")]
    assert sorted(tones)[-2:] == ["piece tone-unused"] * 2 and len(set(tones)) == 4
    curves = [str(p["d"]).replace("C", " ").replace("M", "").split() for p in tags.named("path")]
    assert len(curves) == 3 + 4  # to each block of the second level, and to each leaf
    ends = sorted((float(c[1]), float(c[-1])) for c in curves[-4:])
    assert [y for _, y in ends] == sorted(y for _, y in ends), "branches cross"
    hints = [t for t in ("first, 1: b, d", "first, 2: a, c", "second, 1: a, c", "second, 3: b") if t in tags.text]
    assert len(hints) == 4
    assert "1 and 3 has b; 1 and 4 has d; 2 and 1 has a, c" in str(tags.named("svg")[0]["aria-label"])
    assert figure.table == (["class", "first", "second"],
                            [["b", "1", "3"], ["d", "1", "4"], ["a", "2", "1"], ["c", "2", "1"]])  # fmt: skip


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 5)), min_size=1, max_size=60))
def test_nodes_and_leaves_of_a_tree_cover_nothing(paths: list[tuple[int, int]]) -> None:
    svg = tree(["one", "two"], [("n" * 40, path) for path in paths], label="l", leaf="class")
    nodes = sorted(marks(svg, "rect", "x", "y", "height"))
    assert len(nodes) == len({p[:1] for p in paths}) + len(set(paths))
    assert all(b[1] >= a[1] + a[2] for a, b in pairwise(nodes) if a[0] == b[0])
    rows = [float(t["y"] or 0) for t in Tags(svg).named("text") if t["text-anchor"] == "start"][3:]
    assert len(rows) == len(paths) and all(b - a >= 14 for a, b in pairwise(sorted(rows)))
    height = float(str(Tags(svg).named("svg")[0]["viewbox"]).split()[-1])
    assert max(rows) <= height and all(y + h <= height for _, y, h in nodes)


def test_graphs_are_rings_of_nodes_in_the_tones_of_their_groups(tmp_path: Path) -> None:
    items = [
        {"label": "no", "nodes": [0, 1, 1], "edges": [[0, 1], [2, 0]]},
        {"label": "yes", "nodes": [3], "edges": []},
    ]
    figure = drawn(tmp_path, kind="graphs", items=items, groups=["C", "N"])
    tags = Tags(figure.body)
    dots = [str(c["class"]) for c in tags.named("circle")]
    assert dots == ["dot tone-hue0", "dot tone-hue1", "dot tone-hue1", "dot tone-hue3"]
    assert [str(p["d"]).count("L") for p in tags.named("path")] == [2, 0]
    assert "node 0: C" in tags.text and "node 0: group 3" in tags.text
    assert figure.table == (["graph", "nodes", "edges"], [["no", "3", "2"], ["yes", "1", "0"]])


def test_paths_leave_a_node_as_thick_as_they_are_heavy(tmp_path: Path) -> None:
    paths = [
        {"nodes": ["17", "5", "88"], "groups": [0, 1, 1], "weight": 0.6},
        {"nodes": ["17", "itself"], "groups": [0, 0], "weight": 0.3},
    ]
    items = [{"label": "node 17: C", "paths": paths, "more": "3 more, 10 % together"}]
    figure = drawn(tmp_path, kind="paths", items=items, groups=["C", "N", "O"])
    tags = Tags(figure.body)
    widths = [float(str(p["stroke-width"])) for p in tags.named("path")]
    assert widths[0] == pytest.approx(2 * widths[1])
    assert [str(c["class"]) for c in tags.named("circle")] == [f"dot tone-hue{i}" for i in (1, 1, 0, 0)]
    said = ("17 – 5 – 88: 60.0 %", "88: N", "node 17: C: C", "3 more, 10 % together")
    assert all(words in tags.text for words in said)
    assert "O" not in tags.text
    cells = [["node 17: C", "17 – 5 – 88", "60.0 %"], ["node 17: C", "17 – itself", "30.0 %"]]
    assert figure.table == (["of", "path", "weight"], cells)


@given(st.lists(st.tuples(st.integers(1, 3), st.floats(0, 1)), min_size=1, max_size=30), st.booleans())
def test_paths_cover_nothing_and_stay_inside(drawn_: list[tuple[int, float]], more: bool) -> None:
    walks = [Walk(["n" * 30] * (n + 1), [0] * (n + 1), weight) for n, weight in drawn_]
    svg = fans([Centre("c" * 90, walks, "m" * bool(more)), Centre("d", walks)], label="l")
    width, height = (float(v) for v in str(Tags(svg).named("svg")[0]["viewbox"]).split()[2:])
    dots = marks(svg, "circle", "cx", "cy", "r")
    assert len(dots) == 2 * (1 + sum(n for n, _ in drawn_))
    assert all(r <= x <= width - r and r <= y <= height - r for x, y, r in dots)
    columns = {x for x, _, _ in dots}
    for column in columns:
        ys = sorted(y for x, y, _ in dots if x == column)
        assert all(b - a >= 10 for a, b in pairwise(ys))


@pytest.mark.parametrize("wrong", [
    {"kind": "routes", "layers": []},
    {"kind": "routes", "layers": [{"name": "a", "groups": [{"label": "shared", "count": -1}]}]},
    {"kind": "routes", "layers": [{"name": "a", "groups": [{"label": "shared", "count": "many"}]}]},
    {"kind": "scatter", "x": "", "y": "", "items": []},
    {"kind": "map", "rows": ["a"], "columns": ["b"], "values": [[1, 2]]},
    {"kind": "map", "rows": ["a"], "columns": ["b"], "values": [[1]], "low": 1, "high": 1},
    {"kind": "map", "rows": [], "columns": [], "values": []},
    {"kind": "blocks", "networks": [{"name": "a", "blocks": [{"label": "b", "width": -1, "set": 0}]}]},
    {"kind": "blocks", "networks": [["a"]]},
    {"kind": "tree", "levels": [], "leaves": ["a"], "paths": [[]]},
    {"kind": "tree", "levels": ["l"], "leaves": [], "paths": []},
    {"kind": "tree", "levels": ["l"], "leaves": ["a"], "paths": [[1, 2]]},
    {"kind": "tree", "levels": ["l"], "leaves": ["a", "b"], "paths": [[1]]},
    {"kind": "graphs", "items": []},
    {"kind": "graphs", "items": [{"label": "a", "nodes": [0, 1], "edges": [[0, 2]]}]},
    {"kind": "graphs", "items": [{"label": "a", "nodes": [0], "edges": [[0]]}]},
    {"kind": "paths", "items": []},
    {"kind": "paths", "items": [{"label": "a", "paths": []}]},
    {"kind": "paths", "items": [{"label": "a", "paths": [{"nodes": ["1"], "groups": [0], "weight": 1}]}]},
    {"kind": "paths", "items": [{"label": "a", "paths": [{"nodes": ["1", "2"], "groups": [0, -1], "weight": 1}]}]},
    {"kind": "paths", "items": [{"label": "a", "paths": [{"nodes": ["1", "2"], "groups": [0, 0], "weight": -1}]}]},
    {"kind": "paths", "items": [{"label": "a", "paths": [{"nodes": ["1", "2"], "groups": [0, 0, 0], "weight": 1}]}]},
    {"kind": "cake"},
    {"kind": ["lines"]},
    {"kind": "images", "items": [{"label": "no image"}]},
    {"kind": "images", "items": [], "notes": [{"a": 1}]},
    {"kind": "overlay", "methods": ["gradcam"], "items": [{"png": "", "maps": {"other": ""}}]},
    {"kind": "heatmap", "rows": ["a"], "columns": ["b"], "values": [["1"]]},
    {"kind": "heatmap", "rows": ["a"], "columns": ["b"], "values": [[1]], "digits": 10**6},
    {"kind": "heatmap", "rows": ["a", "b"], "columns": ["c"], "values": [[1]]},
    {"kind": "lines", "series": [{"name": "a", "x": [1, 2], "y": [1]}]},
    {"kind": "lines", "series": [{"name": "a", "x": [1], "y": ["up"]}]},
    {"kind": "lines", "title": ["of", "lists"], "series": []},
    {"kind": "bars", "items": [{"name": "a", "value": 1, "spread": -1}]},
    {"kind": "map", "rows": ["a"], "columns": ["b"], "values": [[1]], "row_breaks": [-3]},
])  # fmt: skip
def test_a_damaged_picture_is_named_and_costs_no_report(tmp_path: Path, wrong: dict[str, Any]) -> None:
    caption = drawn(tmp_path, **wrong).caption
    assert "This picture cannot be drawn" in caption and "Error" not in caption and str(tmp_path) not in caption


def test_what_is_no_picture_is_named(tmp_path: Path) -> None:
    for text in ("", "[1]", "[" * 5000, '{"kind": "bars"', "\x00"):
        (tmp_path / "picture.json").write_text(text)
        assert "This picture cannot be drawn: " in pictures.picture(tmp_path / "picture.json").caption


@pytest.mark.parametrize(
    "rows",
    [
        [{"name": "a", "accuracy": "high"}],
        [{"name": "a", "confusion": [[1, "2"], [3, 4]]}],
        [{"name": "a", "reliability": {"confidence": [0.5], "accuracy": [0.5]}}],
        [{"role": "student"}],
        "none",
    ],
)
def test_a_damaged_result_is_named(tmp_path: Path, rows: Any) -> None:
    (tmp_path / "result.json").write_text(json.dumps({"format": 1, "verb": "distill", "rows": rows}))
    with pytest.raises(UserError, match=r"result\.json is damaged"):
        write_report(tmp_path)


def test_every_kind_of_picture_has_its_shape_and_its_drawing() -> None:
    assert kinds.KINDS.keys() == pictures._KINDS.keys()


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


TEXT_OVER_TEXT = """[...document.querySelectorAll('svg')].flatMap(svg => {
  const texts = [...svg.querySelectorAll('text')].filter(t => !t.hasAttribute('transform'));
  const boxes = texts.map(t => t.getBoundingClientRect());
  return texts.filter((t, i) => boxes.some((b, j) => j < i && b.left < boxes[i].right - 1 && boxes[i].left < b.right - 1
    && b.top < boxes[i].bottom - 4 && boxes[i].top < b.bottom - 4)).map(t => t.textContent);
})"""


@pytest.mark.browser
@needs_chromium
@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("width", [400, 1400])
def test_pictures_of_an_assembly_in_a_browser(browser: Browser, assembly: Path, width: int, dark: bool) -> None:
    script = f"[{MISFITS}, {TEXT_OVER_TEXT}]"
    seen = browser.visit(assembly / "report.html", width, dark=dark, script=script)
    assert seen.outside == [] and seen.errors == [] and seen.page_width <= width
    assert seen.answer == [[], []]


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
