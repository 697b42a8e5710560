"""Rare classes: who is rare, and the means of groups."""

import pytest
import torch

from upcycle.core.errors import UserError
from upcycle.core.frequency import Groups, counts_of, groups, rare, usual_borders

COUNTS = [5400, 3237, 1941, 1163, 697, 418, 251, 150, 90, 54]
RECALL = [0.95, 0.9, 0.9, 0.8, 0.8, 0.7, 0.7, 0.5, 0.4, 0.3]


def test_counts_leave_out_what_has_no_label() -> None:
    assert counts_of(torch.tensor([0, 0, 2, -1, -1]), 4) == [2, 0, 1, 0]


def test_who_is_rare() -> None:
    assert rare(COUNTS) == [4, 5, 6, 7, 8, 9]
    assert rare([100, 100, 100]) == rare([100, 20, 95]) == rare([]) == rare([0, 0]) == []
    assert rare([100, 0, 90]) == []  # which is only measured, or was never there
    assert rare([100, 19]) == [1]


def test_every_class_is_in_one_group_and_all_is_their_mean_by_size() -> None:
    made = Groups(tuple(COUNTS), (300, 1500))
    members = made.members()
    assert {name: len(classes) for name, classes in members.items()} == {"many": 3, "medium": 3, "few": 4}
    assert sorted(k for classes in members.values() for k in classes) == list(range(10))
    means = made.means(RECALL)
    assert means["few"] == pytest.approx((0.7 + 0.5 + 0.4 + 0.3) / 4)
    assert means["all"] == pytest.approx(sum(len(members[g]) * (means[g] or 0) for g in members) / 10)


def test_on_the_border_is_in_the_middle() -> None:
    assert Groups((99, 100, 200, 201), (100, 200)).members() == {"many": [3], "medium": [1, 2], "few": [0]}


def test_an_empty_group_has_no_mean() -> None:
    means = Groups((500, 500, 400), (20, 100)).means([1.0, 0.5, None])
    assert means == {"many": 0.75, "medium": None, "few": None, "all": 0.75}
    assert Groups((5,), (20, 100)).means([None]) == {"many": None, "medium": None, "few": None, "all": None}


def test_usual_borders_divide_the_way_on_a_logarithmic_scale() -> None:
    assert usual_borders([1000, 1]) == (10, 100)
    assert usual_borders([1000, 0, 1]) == (10, 100)
    made = groups(COUNTS)
    assert made is not None and made.borders == (251, 1163)
    assert all(made.members().values())


def test_balanced_classes_have_no_groups_unless_borders_are_given() -> None:
    assert groups([100, 95, 105]) is None
    made = groups([100, 95, 105], (96, 104))
    assert made is not None and made.members() == {"many": [2], "medium": [0], "few": [1]}


@pytest.mark.parametrize(
    ("borders", "words"),
    [
        ((300,), "two numbers"),
        ((1500, 300), "must ascend"),
        ((300, 300), "must ascend"),
        ((0, 300), "must ascend"),
        ((20, 100), "no class in 'few'.*54 to 5,400"),
        ((300, 6000), "no class in 'many'"),
        ((420, 690), "no class in 'medium'"),
    ],
)
def test_borders_that_cannot_be(borders: tuple[int, ...], words: str) -> None:
    with pytest.raises(UserError, match=words):
        groups(COUNTS, borders)


def test_borders_without_labels() -> None:
    with pytest.raises(UserError, match="photos has no labelled training samples"):
        groups([0, 0], (3, 5), name="photos")
