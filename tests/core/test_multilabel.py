"""Several yes-or-no labels a sample, as a task."""

from __future__ import annotations

import pytest
import torch
from sklearn.metrics import f1_score
from torch.nn import functional as F

from upcycle.core.errors import UserError
from upcycle.core.references import resolve
from upcycle.core.task import CLASSIFICATION, MULTILABEL, LabelFigures, MultiLabel, task_of
from upcycle.zoo.convnet import ConvNet

NAN = float("nan")


def judged(z: torch.Tensor, y: torch.Tensor, part: int = 7) -> LabelFigures:
    judge = MULTILABEL.judge(classes=z.shape[1], name="net")
    for a, b in zip(z.split(part), y.split(part), strict=True):
        judge.add(a, b)
    return judge.result()  # type: ignore[return-value]


def test_f1_is_that_of_scikit_learn_however_batches_are_cut() -> None:
    chance = torch.Generator().manual_seed(0)
    z = torch.randn(60, 5, generator=chance)
    y = (torch.rand(60, 5, generator=chance) < 0.3).float()
    found = judged(z, y)
    assert found.f1 == pytest.approx(f1_score(y.numpy(), (z > 0).numpy(), average="micro"))
    assert found.per_class == pytest.approx(list(f1_score(y.numpy(), (z > 0).numpy(), average=None)))
    assert found.loss == pytest.approx(F.binary_cross_entropy_with_logits(z, y).item(), rel=1e-6)
    assert found.score == found.f1 == found.figures["F1"] and found.count == 60
    whole = judged(z, y, 60)
    assert (whole.f1, whole.per_class) == (found.f1, found.per_class) and whole.loss == pytest.approx(found.loss)


def test_by_hand_with_unknown_targets() -> None:
    z = torch.tensor([[2.0, -1, 1], [-1, -1, -1], [3, -2, -4]])
    y = torch.tensor([[1.0, 0, 0], [1, 0, NAN], [NAN, NAN, NAN]])
    found = judged(z, y)
    assert found.f1 == pytest.approx(2 * 1 / (2 * 1 + 1 + 1)) and found.count == 2
    assert found.per_class == [pytest.approx(2 / 3), None, 0.0]
    assert MULTILABEL.known(y).tolist() == [True, True, False]


def test_nothing_there_and_nothing_said_is_right() -> None:
    assert judged(-torch.ones(4, 2), torch.zeros(4, 2)).f1 == 1.0
    assert judged(torch.ones(4, 2), torch.zeros(4, 2)).f1 == 0.0


def test_the_loss_is_over_known_targets_and_divided_by_all() -> None:
    chance = torch.Generator().manual_seed(0)
    z = torch.randn(6, 3, generator=chance, requires_grad=True)
    y = (torch.rand(6, 3, generator=chance) < 0.5).float()
    assert torch.equal(MULTILABEL.loss(z, y), F.binary_cross_entropy_with_logits(z, y))
    y[2] = NAN
    loss = MULTILABEL.loss(z, y)
    loss.backward()
    kept = torch.arange(6) != 2
    known = F.binary_cross_entropy_with_logits(z[kept], y[kept], reduction="sum") / 18
    assert torch.allclose(loss, known) and z.grad is not None
    assert (z.grad[2] == 0).all() and z.grad.isfinite().all()
    assert MULTILABEL.loss(z.double(), y).dtype == torch.float64


def test_answers_agree_where_all_labels_do() -> None:
    a, b = torch.tensor([[1.0, -1], [1, 1]]), torch.tensor([[3.0, -9], [1, -1]])
    assert MULTILABEL.agreement(a, b) == 0.5 and MULTILABEL.agreement(a, a) == 1.0


@pytest.mark.parametrize(
    ("answers", "targets", "part"),
    [
        (torch.full((2, 3), NAN), torch.zeros(2, 3), "NaN or infinite outputs for 2 of 2 samples"),
        (torch.zeros(2, 4), torch.zeros(2, 4), "net gives 4 logits, but the data have 3 labels"),
        (torch.zeros(2, 3), torch.zeros(2, dtype=torch.long), "3 logits, but targets are of shape"),
        (torch.zeros(2, 3, 1), torch.zeros(2, 3), "net gives shape"),
        (torch.zeros(2, 3), torch.full((2, 3), NAN), "no labelled sample to evaluate net on"),
    ],
)
def test_what_cannot_be_judged_is_said(answers: torch.Tensor, targets: torch.Tensor, part: str) -> None:
    with pytest.raises(UserError, match=part):
        judge = MULTILABEL.judge(classes=3, name="net")
        judge.add(answers, targets)
        judge.result()


def test_a_fresh_network_of_a_reference_answers_whatever_it_is_asked_and_a_trained_one_what_it_learnt() -> None:
    fresh = resolve("zoo:convnet_small", pretrained=False, num_classes=3, input_shape=(1, 8, 8), task=MULTILABEL)
    assert fresh.task == MULTILABEL == task_of({"name": "multilabel"}) == MultiLabel()
    assert resolve("zoo:digits_teacher", task=MULTILABEL).task == CLASSIFICATION
    assert resolve("zoo:convnet_small", pretrained=False, input_shape=(1, 8, 8)).task == CLASSIFICATION
    given = resolve(ConvNet((4, 4, 8), 3, 1), input_shape=(1, 8, 8), task=MULTILABEL)
    assert given.task == MULTILABEL
