"""Streams: what their tasks hold, and what cannot be one."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tests.settings import tiny_data
from upcycle.core.errors import UserError
from upcycle.data.stream_kinds import angles, permutation, rotated, stream
from upcycle.data.streams import Stream


def test_splits_share_all_images_and_no_class() -> None:
    made = stream("splits:digits/5")
    whole = made.base
    assert made.tasks == ((0, 1), (2, 3), (4, 5), (6, 7), (8, 9)) and made.scenario == "class"
    ids = torch.cat([made.task(t).train.ids for t in range(5)])
    assert ids.sort().values.equal(whole.train.ids.sort().values)
    for t, columns in enumerate(made.tasks):
        task = made.task(t)
        assert task.classes == whole.classes
        for split in (task.train, task.validation, task.test):
            assert set(split.labels.tolist()) == set(columns)


@pytest.mark.parametrize(
    ("count", "sizes"), [("2+1", [2] + [1] * 8), ("3", [4, 3, 3]), ("3,3,4", [3, 3, 4]), ("10", [1] * 10)]
)
def test_tasks_of_other_sizes(count: str, sizes: list[int]) -> None:
    assert [len(c) for c in stream(f"splits:digits/{count}").tasks] == sizes


def test_the_protocol_in_a_line() -> None:
    assert stream("splits:digits/5").protocol == "splits:digits/5, 5 tasks of 2 classes, class-incremental"
    assert stream("splits:digits/3,7", scenario="task").protocol.endswith("2 tasks of 3+7 classes, task-incremental")


def test_another_order_is_another_stream_with_the_same_images() -> None:
    usual, other = stream("splits:digits/5"), stream("splits:digits/5", shuffle=3)
    assert sorted(other.classes) == sorted(usual.classes) and other.classes != usual.classes
    first = other.task(0).train
    of_class = usual.base.train.labels == usual.classes.index(other.classes[0])
    assert (first.labels == 0).sum() == of_class.sum()
    assert other.record() != usual.record()


def test_few_are_drawn_for_each_class_of_each_task() -> None:
    made = stream("splits:digits/5", few=4)
    for t in range(5):
        assert made.task(t).train.labels.bincount(minlength=10)[list(made.tasks[t])].tolist() == [4, 4]


def test_permutations_are_bijections_alike_for_train_and_test_and_differ_between_tasks() -> None:
    orders = [permutation(64, t) for t in range(4)]
    assert orders[0].equal(torch.arange(64))
    for i, order in enumerate(orders):
        assert order.sort().values.equal(torch.arange(64))
        assert all(not order.equal(other) for other in orders[:i])
    made = stream("permuted:digits/4")
    assert made.scenario == "domain"
    for t in (0, 2):
        for name in ("train", "validation", "test"):
            before, after = (getattr(x, name).images.flatten(1) for x in (made.base, made.task(t)))
            assert after.equal(before[:, orders[t]])


def test_rotation_is_exact_at_right_angles_and_keeps_the_middle() -> None:
    pixels = torch.randint(256, (5, 28, 28, 1), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    for quarter in range(4):
        turned = rotated(pixels, torch.full((5,), 90.0 * quarter))
        assert (turned.int() - torch.rot90(pixels, quarter, (1, 2)).int()).abs().max() <= 1
    assert len(set(angles(20).tolist())) == 20 and float(angles(20).min()) >= 0 and float(angles(20).max()) < 180


def test_a_drifting_stream_is_one_ordered_task_in_which_two_classes_meet() -> None:
    made = stream("drifting:digits")
    assert made.ordered and len(made) == 1 and len(made.classes) == 9
    labels = made.task(0).train.labels
    assert all(len(set(part.tolist())) <= 4 for part in labels.split(16))
    assert set(labels.tolist()) == set(range(9)) == set(labels[: len(labels) // 3].tolist())
    images = made.task(0).train.images
    assert images.dtype == torch.uint8 and len(images) == len(labels)


def test_classes_of_an_ordered_stream_come_one_after_another() -> None:
    labels = stream(tiny_data(), tasks="1", scenario="general").task(0).train.labels
    assert labels.equal(labels.sort().values)


def test_joint_is_the_union_whatever_the_order() -> None:
    one, other = (stream("splits:digits/5", shuffle=s).joint() for s in (None, 1))
    assert len(one.train) == len(other.train) == 1000
    domains = stream("rotated:digits/3").joint()
    assert len(domains.train) == 3000 and len(set(domains.train.ids.tolist())) == 3000


def test_normalised_and_augmented_reach_every_task() -> None:
    made = stream("splits:digits/5").normalised((0.3,), (0.4,)).augmented(("crop",))
    task = made.task(3)
    assert task.train.mean == (0.3,) and task.test.std == (0.4,) and task.train.augment == ("crop",)
    assert made.train.mean == (0.3,)


def test_after_puts_known_classes_first() -> None:
    data = tiny_data()
    later = stream(data.only(tuple("56789")), tasks="5")
    moved = later.after(tuple("01234"))
    assert moved.classes == tuple("0123456789") and moved.tasks == ((5,), (6,), (7,), (8,), (9,))
    assert set(moved.task(2).train.labels.tolist()) == {7}
    with pytest.raises(UserError, match="has learnt already"):
        later.after(tuple("04589"))


def folders(root: Path, tasks: dict[str, dict[str, int]], side: int = 8) -> Path:
    for task, classes in tasks.items():
        for name, n in classes.items():
            (root / task / name).mkdir(parents=True)
            for i in range(n):
                value = np.full((side, side), 20 * i, np.uint8)
                Image.fromarray(value).save(root / task / name / f"{i}.png")
    return root


def test_a_folder_a_task(tmp_path: Path) -> None:
    folders(tmp_path, {"1-pets": {"cat": 12, "dog": 12}, "2-farm": {"cow": 12, "hen": 12}})
    made = stream(f"folders:{tmp_path}")
    assert made.classes == ("cat", "dog", "cow", "hen") and made.tasks == ((0, 1), (2, 3))
    assert set(made.task(1).train.labels.tolist()) == {2, 3}
    assert stream(f"folders:{tmp_path}", shuffle=1).record()["order"] != {}


def test_one_class_a_task(tmp_path: Path) -> None:
    """The commonest question: as TASK/CLASS/IMAGE, as CLASS/IMAGE, both together, and as splits of one folder."""
    folders(tmp_path / "a", {"1-cat": {"cat": 12}, "2-dog": {"dog": 12}, "3-hen": {"hen": 12}})
    folders(tmp_path / "b", {"": {"cat": 12, "dog": 12, "hen": 12}})
    folders(tmp_path / "c", {"1": {"cat": 12}, "": {"dog": 12}, "3": {"hen": 12, "owl": 12}})
    for reference, classes, sizes in (
        (f"folders:{tmp_path / 'a'}", ("cat", "dog", "hen"), [1, 1, 1]),
        (f"folders:{tmp_path / 'b'}", ("cat", "dog", "hen"), [1, 1, 1]),
        (f"folders:{tmp_path / 'c'}", ("cat", "hen", "owl", "dog"), [1, 2, 1]),
        (f"splits:{tmp_path / 'b'}/1+1", ("cat", "dog", "hen"), [1, 1, 1]),
        (f"splits:{tmp_path / 'b'}/3", ("cat", "dog", "hen"), [1, 1, 1]),
    ):
        made = stream(reference)
        assert made.classes == classes and [len(columns) for columns in made.tasks] == sizes
        for t, columns in enumerate(made.tasks):
            task = made.task(t)
            for split in (task.train, task.test):
                assert set(split.labels.tolist()) <= set(columns) and len(split)
        assert made.joint().classes == classes
    (tmp_path / "d" / "blank").mkdir(parents=True)
    with pytest.raises(UserError, match="no image in"):
        stream(f"folders:{tmp_path / 'd'}")


@pytest.mark.parametrize(
    ("reference", "options", "sentence"),
    [
        ("cifar10/5", {}, "KIND:DATA/TASKS"),
        ("split:digits/5", {}, "splits"),
        ("splits:digits", {}, "needs the number of its tasks: splits:digits/5"),
        ("splits:digits/00", {}, "splits:digits/00 has no task; each number behind the / is 1 or more"),
        ("splits:digits/0,10", {}, "splits:digits/0,10 has a task without classes"),
        ("splits:digits/2+0", {}, "splits:digits/2\\+0 has a task without classes"),
        ("permuted:digits/0", {}, "permuted:digits/0 has no task"),
        ("splits:digits/x", {}, "'x' in splits:digits/x is no number of tasks; write splits:digits/2, 2\\+1 for"),
        ("parts:digits/2+1", {}, "parts:digits needs the number of its tasks"),
        ("splits:digits/11", {}, "do not divide"),
        ("splits:digits/2,3", {}, "adds up to 5"),
        ("splits:digits/3+2", {}, "cannot be split"),
        ("splits:digits/5", {"scenario": "domain"}, "bring new classes"),
        ("permuted:digits", {}, "needs the number of its tasks"),
        ("permuted:digits/3", {"scenario": "class"}, "scenario is domain"),
        ("drifting:digits/3", {}, "no tasks"),
        ("splits:digits/5", {"few": 1}, "at least 2"),
    ],
)
def test_what_is_no_stream(reference: str, options: dict[str, object], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        stream(reference, **options)  # type: ignore[arg-type]


def test_tasks_that_cannot_be(tmp_path: Path) -> None:
    folders(tmp_path / "again", {"a": {"cat": 12, "dog": 12}, "b": {"cow": 12, "dog": 12}})
    with pytest.raises(UserError, match="class 'dog' that an earlier task had"):
        stream(f"folders:{tmp_path / 'again'}")
    (tmp_path / "none").mkdir()
    with pytest.raises(UserError, match="each task is one"):
        stream(f"folders:{tmp_path / 'none'}")
    folders(tmp_path / "sizes", {"a": {"cat": 12, "dog": 12}})
    folders(tmp_path / "sizes", {"b": {"cow": 12, "hen": 12}}, side=12)
    made = stream(f"folders:{tmp_path / 'sizes'}")
    with pytest.raises(UserError, match=r"Task 1 .* 1 x 12 x 12"):
        made.task(1)
    usual = stream("splits:digits/5")
    with pytest.raises(UserError, match="there is no task 5"):
        usual.task(5)
    with pytest.raises(UserError, match=r"Task 1 .* no class"):
        dataclasses.replace(usual, tasks=((0, 1), ()))
    empty = dataclasses.replace(usual, make=lambda t: usual.base.subset(torch.arange(0)))
    with pytest.raises(UserError, match=r"Task 0 .* 0 training images"):
        empty.task(0)
    assert isinstance(usual, Stream)
