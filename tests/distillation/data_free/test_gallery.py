"""The pictures of a run without data: exact measures, and pictures that show what the pool holds."""

from __future__ import annotations

import base64
import io
import json
import math
import xml.etree.ElementTree as ET
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from scripts.data_free_figures import accuracy_svg, grid
from torch import Tensor, nn

from upcycle.core.models import Model
from upcycle.core.references import resolve
from upcycle.data import Images, Pool, load, pool_lineage, save_pool
from upcycle.distillation.data_free import gallery
from upcycle.reports import pictures
from upcycle.reports.lines import Series, line_plot


@dataclass
class FakeRun:
    """Keeps what a run would write."""

    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    pictures: dict[str, dict[str, Any]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def picture(self, name: str, data: dict[str, Any]) -> None:
        self.pictures[name] = json.loads(json.dumps(data, allow_nan=False))

    def note(self, text: str) -> None:
        self.notes.append(text)


@dataclass
class FakeSynthesis:
    pool: Pool
    model: Model
    data: Images
    curve: list[tuple[float, float, float]] = field(default_factory=list)
    run: FakeRun = field(default_factory=FakeRun)


def draw(made: FakeSynthesis) -> None:
    gallery.draw(made.run, made.pool, made.model, made.data.validation, made.curve)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def teacher() -> Model:
    return resolve("zoo:digits_teacher")


@pytest.fixture(scope="module")
def digits() -> Images:
    return load("digits")


def pool_of(teacher: Model, digits: Images, n: int = 256, capacity: int = 1024, label: int | None = None) -> Pool:
    pool = Pool(capacity, teacher.input_shape, teacher.mean, teacher.std)
    for index in torch.arange(n).split(64):
        y = digits.train.labels[index]
        pool.append(digits.train.images[index].permute(0, 3, 1, 2) / 255, y if label is None else y * 0 + label)
    return pool


def none_of(teacher: Model) -> Images:
    return Images.none(teacher.input_shape, teacher.classes, teacher.mean, teacher.std)


def pixels(item: dict[str, str]) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(item["png"]))))


# -- measures -------------------------------------------------------------------------------------------------


def test_similarity_is_the_mean_over_all_pairs() -> None:
    torch.manual_seed(0)
    features, labels = torch.randn(12, 5), torch.tensor([0, 0, 0, 1, 1, 3, -1, 3, 3, 1, 0, -1])
    found = gallery.similarity(features, labels, 5)
    for a in range(5):
        for b in range(5):
            pairs = [F.cosine_similarity(features[i], features[j], 0).item() for i in range(12) for j in range(12)
                     if i != j and labels[i] == a and labels[j] == b]  # fmt: skip
            expected = sum(pairs) / len(pairs) if pairs else math.nan
            assert found[a, b].item() == pytest.approx(expected, abs=1e-6, nan_ok=True)


def test_similarity_of_repeated_of_opposite_and_of_single_images() -> None:
    features = torch.tensor([[1.0, 2.0], [2.0, 4.0], [-1.0, -2.0]])
    found = gallery.similarity(features, torch.tensor([0, 0, 1]), 2)
    assert found[0, 0].item() == pytest.approx(1) and found[0, 1].item() == pytest.approx(-1)
    assert found[1, 1].isnan()


def test_distance_counts_standard_deviations() -> None:
    torch.manual_seed(0)
    mu, var = torch.randn(6, dtype=torch.float64), torch.rand(6, dtype=torch.float64) + 0.5
    running = [(mu, var)]
    assert gallery.distances(running, running) == [0.0]
    assert gallery.distances([(mu + 2 * var.sqrt(), var)], running, eps=0.0) == [pytest.approx(2)]
    assert gallery.distances([(mu, 4 * var)], running, eps=0.0) == [pytest.approx(1)]
    assert gallery.distances([(mu + 3 * var.sqrt(), 25 * var)], running, eps=0.0) == [pytest.approx(5)]


def test_statistics_of_parts_are_those_of_the_whole(teacher: Model, digits: Images) -> None:
    # More images than go through the teacher at once, against all of them in one batch.
    split = digits.train.subset(torch.arange(300)).normalised(teacher.mean, teacher.std)
    network = gallery.frozen(teacher.module, teacher.example(8), keep_bn=True, keep_modules=True, precision="32-true")
    seen = gallery._look(network, split, torch.device("cpu"))
    inputs: list[Tensor] = []
    norms = [m for m in teacher.module.modules() if isinstance(m, nn.BatchNorm2d)]
    hooks = [m.register_forward_pre_hook(lambda m, args: inputs.append(args[0].double())) for m in norms]
    with torch.no_grad():
        logits = teacher.module.eval()(split.batch(torch.arange(300), device=torch.device("cpu")).images)
    for hook in hooks:
        hook.remove()
    moments = [(x.mean((0, 2, 3)), x.var((0, 2, 3), correction=0)) for x in inputs]
    running = [(m.running_mean.double(), m.running_var.double()) for m in norms]
    assert seen.distance == pytest.approx(gallery.distances(moments, running), rel=1e-4)
    assert torch.allclose(seen.probability, logits.softmax(1), atol=1e-5)
    assert seen.features.shape == (300, list(teacher.module.parameters())[-2].shape[1])


# -- pixels ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("c", [1, 3])
def test_a_strip_shows_every_pixel_enlarged_and_leaves_gaps_open(c: int) -> None:
    one, two = torch.randint(256, (2, 28, 28, c), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    sheet = np.asarray(gallery.strip([one, None, two]))
    step = (sheet.shape[1] - 112) // 2
    assert sheet.shape == (112, 112 + 2 * step, c + 1)
    assert (sheet[2::4, 2:112:4, :c] == one.numpy()).all()
    assert (sheet[2::4, 2 * step + 2 :: 4, :c] == two.numpy()).all()
    assert (sheet[:, 112 : 2 * step, c] == 0).all() and (sheet[:, :112, c] == 255).all()


# -- the pictures ---------------------------------------------------------------------------------------------


def test_every_picture_is_there_and_can_be_drawn(teacher: Model, digits: Images, tmp_path: Path) -> None:
    state = torch.get_rng_state()
    curve = [(1.0, 3.0, 0.4), (2.0, 6.0, 0.7)]
    made = FakeSynthesis(pool_of(teacher, digits), teacher, digits, curve)
    draw(made)
    assert made.run.notes == [] and torch.equal(torch.get_rng_state(), state)
    assert sorted(made.run.pictures) == ["1-classes", "2-time", "3-statistics", "4-accuracy", "5-diversity",
                                       "6-diversity-real"]  # fmt: skip
    for name, picture in made.run.pictures.items():
        (tmp_path / f"{name}.json").write_text(json.dumps(picture))
        figure = pictures.picture(tmp_path / f"{name}.json")
        assert figure.title == picture["title"] and "cannot be drawn" not in figure.caption and figure.body
    rows = made.run.pictures["1-classes"]["items"]
    assert [row["label"] for row in rows] == list(teacher.classes)
    assert all(row["alt"].startswith(f"8 images of class {row['label']}, ") for row in rows)
    accuracy = made.run.pictures["4-accuracy"]["series"]
    assert [line["x"] for line in accuracy] == [[1.0, 2.0], [3.0, 6.0]]


def test_real_images_are_nearer_to_the_statistics_than_noise(teacher: Model, digits: Images) -> None:
    # The pool holds the teacher's own training images here, so they must come out like the held-out ones.
    made = FakeSynthesis(pool_of(teacher, digits), teacher, digits)
    draw(made)
    lines = {line["name"]: np.array(line["y"]) for line in made.run.pictures["3-statistics"]["series"]}
    assert set(lines) == {"synthesised images", "real images", "uniform noise"}
    assert (lines["uniform noise"] > 2 * lines["real images"]).all()
    assert (lines["uniform noise"] > 2 * lines["synthesised images"]).all()
    alike = np.array(made.run.pictures["5-diversity"]["values"], dtype=float)
    assert (alike.diagonal() > alike.mean(0)).all() and (alike == alike.T).all()


def test_without_real_images_only_what_is_known_is_shown(teacher: Model, digits: Images) -> None:
    made = FakeSynthesis(pool_of(teacher, digits), teacher, none_of(teacher), [(1.0, 2.0, 0.5)])
    draw(made)
    assert made.run.notes == []
    assert list(made.run.pictures) == ["1-classes", "2-time", "3-statistics", "5-diversity"]
    names = [line["name"] for line in made.run.pictures["3-statistics"]["series"]]
    assert names == ["synthesised images", "uniform noise"]


def test_the_surest_come_first(teacher: Model, digits: Images) -> None:
    pool = pool_of(teacher, digits, 60)
    pool.append(torch.rand(64, 1, 8, 8, generator=torch.Generator().manual_seed(0)), torch.full((64,), 3))
    made = FakeSynthesis(pool, teacher, none_of(teacher))
    draw(made)
    row = pixels(made.run.pictures["1-classes"]["items"][3])
    mine = (pool.labels == 3).nonzero().flatten()
    with torch.no_grad():
        sure = teacher.module.eval()(pool.batch(mine, device=torch.device("cpu")).images).softmax(1)[:, 3]
    best = pool.images[mine[sure.argmax()]]
    assert (row[6:96:12, 6:96:12, 0] == best[..., 0].numpy()).all()


def test_a_pool_that_has_gone_round_is_shown_in_the_order_of_time(teacher: Model) -> None:
    # Image number i has the grey value i // 2, and a class of its own in turn; 100 of 200 are left.
    pool = Pool(100, teacher.input_shape, teacher.mean, teacher.std)
    for index in torch.arange(200).split(40):
        grey = (index // 2).float().view(-1, 1, 1, 1).expand(-1, 1, 8, 8) / 255
        pool.append(grey, index % 10)
    made = FakeSynthesis(pool, teacher, none_of(teacher))
    draw(made)
    rows = made.run.pictures["2-time"]["items"]
    assert rows[0]["label"] == "image 101" and len(rows) == 6
    assert pixels(rows[0])[0, 0].tolist() == [50, 255]
    first = [int(pixels(row)[0, 0, 0]) for row in rows]
    assert first == sorted(first) and first[-1] >= 90


def test_images_without_a_class_go_where_the_teacher_puts_them(teacher: Model, digits: Images) -> None:
    known = FakeSynthesis(pool_of(teacher, digits), teacher, none_of(teacher))
    free = FakeSynthesis(pool_of(teacher, digits, label=-1), teacher, none_of(teacher))
    draw(known)
    draw(free)
    assert free.run.notes == [] and "column" not in free.run.pictures["2-time"]["caption"]
    ours, theirs = (s.run.pictures["1-classes"]["items"] for s in (known, free))
    assert [row["label"] for row in ours] == [row["label"] for row in theirs]
    assert sum((pixels(a) == pixels(b)).mean() > 0.99 for a, b in zip(ours, theirs, strict=True)) >= 8


class Convolutional(nn.Module):
    """A hundred classes and no linear layer at the end."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm, self.head = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Conv2d(8, 100, 1)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.norm(self.stem(images)).relu()).mean((2, 3))


def test_many_classes_few_images_and_a_network_without_a_linear_layer() -> None:
    classes = tuple(f"c{i}" for i in range(100))
    model = Model(module=Convolutional(), input_shape=(3, 9, 12), mean=(0.5,) * 3, std=(0.2,) * 3, classes=classes)
    pool = Pool(50, model.input_shape, model.mean, model.std)
    pool.append(torch.rand(30, 3, 9, 12), torch.arange(30))
    made = FakeSynthesis(pool, model, none_of(model))
    draw(made)
    assert made.run.notes == []
    shown = made.run.pictures["1-classes"]
    assert len(shown["items"]) == 10 and "10 of the 100 classes" in shown["caption"]
    heat = made.run.pictures["5-diversity"]
    assert heat["rows"] == [row["label"] for row in shown["items"]]
    assert all(heat["values"][i][i] is None for i in range(10))  # one image of each class: no pair


def test_a_picture_that_fails_is_a_note_and_not_the_end(teacher: Model, digits: Images) -> None:
    class Broken(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            raise RuntimeError("no")

    model = Model(module=Broken(), input_shape=teacher.input_shape, mean=teacher.mean, std=teacher.std,
                  classes=teacher.classes)  # fmt: skip
    made = FakeSynthesis(pool_of(teacher, digits), model, none_of(teacher))
    draw(made)
    assert len(made.run.notes) == 1 and "could not be made" in made.run.notes[0]


# -- how the report draws them --------------------------------------------------------------------------------


def test_rows_of_images_are_told_to_those_who_cannot_see_them(tmp_path: Path) -> None:
    file = io.BytesIO()
    Image.new("LA", (200, 20)).save(file, "PNG")
    item = {"png": base64.b64encode(file.getvalue()).decode(), "label": "cat", "alt": 'eight "cats"'}
    picture = {"kind": "images", "layout": "rows", "title": "t", "items": [item]}
    (tmp_path / "p.json").write_text(json.dumps(picture))
    body = str(pictures.picture(tmp_path / "p.json").body)
    assert '<ul class="images rows">' in body and 'alt="eight &#34;cats&#34;"' in body and "<span>cat</span>" in body


def test_a_logarithmic_axis_is_even_in_ratios() -> None:
    svg = str(line_plot([Series("s", [1, 10, 100, 30], [0, 1, 2, 3])], label="l", log=True))
    x = [float(part.split('"')[0]) for part in svg.split('cx="')[1:]]
    assert x[1] - x[0] == pytest.approx(x[2] - x[1], abs=0.11)
    assert x[3] - x[1] == pytest.approx((x[2] - x[1]) * math.log10(3), abs=0.11)
    for value in (3.0, 0.02):  # a single point has an axis too
        assert "nan" not in str(line_plot([Series("s", [value], [1])], label="l", log=True))


# -- the pictures of the documentation ------------------------------------------------------------------------


def test_the_plot_of_all_methods_is_a_picture_of_its_own() -> None:
    curve = [[1.0, 5.0, 0.2], [10.0, 50.0, 0.6]]
    results = [
        {"benchmark": "data_free_a", "settings": {"title": "A & B"}, "figures": {"curves": {"fast": [curve, curve]}}},
        {"benchmark": "data_free_b", "settings": {}, "figures": {"curves": {"slow": [curve], "fast": [curve]}}},
        {"benchmark": "data_free_c", "settings": {}, "figures": {"seconds": 1}},
    ]
    root = ET.fromstring(accuracy_svg(results))
    name = "{http://www.w3.org/2000/svg}"
    tones = [line.get("class") for line in root.iter(f"{name}polyline")]
    assert tones == ["line tone-student"] * 2 + ["line tone-teacher", "line tone-student"]
    words = [text.text for text in root.iter(f"{name}text")]
    assert {"A & B", "data_free_b", "fast", "slow"} <= set(words) and "data_free_c" not in words


def test_the_grid_of_a_saved_pool_has_a_row_for_each_class(teacher: Model, digits: Images, tmp_path: Path) -> None:
    pool = pool_of(teacher, digits)
    tree = pool_lineage(pool, teacher, name="p", method="kd")
    save_pool(pool, tmp_path / "pool", classes=teacher.classes, name="p", lineage=tree)
    plain, chosen = (grid(tmp_path / "pool", reference) for reference in (None, "zoo:digits_teacher"))
    assert plain.size == chosen.size and plain.height == 10 + 70 * 10 + 4
    newest = pool.images[(pool.labels == 7).nonzero().flatten()[-1], :, :, 0]
    left = plain.width - 10 - (10 * 64 + 9 * 5)
    shown = np.asarray(plain)[10 + 70 * 7 + 4 :: 8, left + 4 :: 8, 0][:8, :8]
    assert (shown == newest.numpy()).all()
