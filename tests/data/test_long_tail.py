"""Long tails of images: their counts, their draw, and who may not have one."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from tests.settings_graphs import tiny_graphs
from upcycle.core.errors import UserError
from upcycle.core.frequency import counts_of
from upcycle.core.store import tensor_digest
from upcycle.data import Images, load
from upcycle.data.stream_kinds import stream
from upcycle.verbs.loading import loaded


@pytest.fixture(scope="module")
def digits() -> Images:
    return load("digits")


def counts(data: Images) -> list[int]:
    return counts_of(data.train.labels, len(data.classes))


def test_the_counts_are_those_of_the_formula(digits: Images) -> None:
    made, have = digits.long_tailed(20, 0), counts(digits)
    most = int(min(n * 20 ** (j / 9) for j, n in enumerate(have)))
    assert counts(made) == [round(most * 20 ** (-j / 9)) for j in range(10)]
    assert all(n <= m for n, m in zip(counts(made), have, strict=True))
    assert made.name == "digits_lt20"


def test_held_out_images_and_the_set_itself_stay(digits: Images) -> None:
    before = counts(digits), digits.name, list(digits.notes)
    made = digits.long_tailed(20, 0)
    assert made.validation is digits.validation and made.test is digits.test
    assert (counts(digits), digits.name, digits.notes) == before


def test_the_note_and_the_chosen_say_what_was_drawn(digits: Images) -> None:
    made = digits.long_tailed(20, 3)
    most, least = counts(made)[0], counts(made)[-1]
    note = made.notes[-1]
    assert f"from {most:,} training images of '0' to {least:,} training images of '9', drawn with seed 3" in note
    chosen = made.chosen["long_tailed"]
    assert chosen["ids"] == made.train.ids.tolist()
    assert (chosen["ratio"], chosen["seed"], chosen["order"]) == (20, 3, list(range(10)))


def test_the_seed_decides_which_images(digits: Images) -> None:
    ids = [digits.long_tailed(20, seed).train.ids.tolist() for seed in (0, 0, 1)]
    assert ids[0] == ids[1] != ids[2]


def test_a_steeper_tail_is_part_of_a_flatter_one_and_few_keep_the_same(digits: Images) -> None:
    flat, steep = (set(digits.long_tailed(ratio, 0).train.ids.tolist()) for ratio in (10, 40))
    assert steep < flat
    assert set(digits.few(2, 0).train.ids.tolist()) < set(digits.long_tailed(20, 0).train.ids.tolist())


def test_any_order_of_the_classes(digits: Images) -> None:
    order = torch.randperm(10, generator=torch.Generator().manual_seed(0)).tolist()
    found = counts(digits.long_tailed(20, 0, order))
    assert sorted(range(10), key=lambda c: -found[c]) == order
    with pytest.raises(UserError, match="each of the 10 classes"):
        digits.long_tailed(20, 0, [0, 0, *range(2, 10)])


@pytest.mark.parametrize("ratio", [0.5, 1, 0, -3, math.nan, math.inf])
def test_a_ratio_that_is_none(digits: Images, ratio: float) -> None:
    with pytest.raises(UserError, match="long_tail must be more than 1"):
        digits.long_tailed(ratio, 0)


def test_no_class_is_left_without_images(digits: Images) -> None:
    with pytest.raises(UserError, match=r"leaves '[79]' of digits without a training image.*choose a smaller one"):
        digits.long_tailed(1000, 0)
    assert min(counts(digits.long_tailed(counts(digits)[0], 0))) == 1
    with pytest.raises(UserError, match="no labelled training image of '0'"):
        digits.hide_labels(0, 0).long_tailed(10, 0)


def test_samples_without_a_label_are_no_part_of_it(digits: Images) -> None:
    made = digits.hide_labels(40, 0).long_tailed(4, 0)
    assert bool((made.train.labels >= 0).all())
    assert (max(counts(made)), min(counts(made))) == (40, 10)


def test_data_are_loaded_with_a_tail_that_is_always_the_same(digits: Images) -> None:
    made = loaded("digits", long_tail=20)
    assert isinstance(made, Images)
    assert made.train.ids.tolist() == digits.long_tailed(20, 0).train.ids.tolist()
    assert loaded(digits, long_tail=20).digest == made.digest != digits.digest


def test_graphs_have_none() -> None:
    pytest.importorskip("torch_geometric", reason="torch_geometric is not installed (extra graphs)")
    with pytest.raises(UserError, match=r"--long_tail is about images, and .* holds graphs"):
        loaded(tiny_graphs(), long_tail=10)


def test_a_stream_of_a_long_tail(digits: Images, tmp_path: Path) -> None:
    made = stream("splits:digits/5", long_tail=20)
    assert made.name.endswith("a long tail of 20")
    sizes = [len(made.task(t).train) for t in range(5)]
    assert sizes == sorted(sizes, reverse=True) and sum(sizes) == len(digits.long_tailed(20, 0).train)
    with pytest.raises(UserError, match="leave out long_tail"):
        stream(f"folders:{tmp_path}", long_tail=20)


@pytest.mark.parametrize(("name", "size", "least"), [("cifar10", 11_167, 45), ("fashion_mnist_local", 13_650, 55)])
def test_the_usual_sets(name: str, size: int, least: int, cifar10: Path) -> None:
    made = load(name).long_tailed(100, 0)
    assert (made.name, len(made.train)) == (f"{name}_lt100", size)
    assert counts(made)[-1] == least and counts(made)[0] == 100 * least
    assert (
        len(set(torch.bincount(made.test.labels).tolist()))
        == len(set(torch.bincount(made.validation.labels).tolist()))
        == 1
    )
    assert tensor_digest({"x": made.test.images}) == tensor_digest({"x": load(name).test.images})
