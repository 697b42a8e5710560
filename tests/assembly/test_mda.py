"""MDA: components that are smaller and know their classes."""

import copy
import dataclasses

import pytest
import torch
from torch import nn

from tests.assembly.networks import CPU, part_of, run
from upcycle.assembly import MDA
from upcycle.assembly.disassembly import component
from upcycle.core.errors import UserError
from upcycle.core.evaluate import evaluate
from upcycle.core.models import Model
from upcycle.core.recipe import Recipe
from upcycle.data import Images
from upcycle.distillation import KD


@pytest.mark.parametrize("score", ["contribution", "gradient"])
def test_keeping_everything_is_the_source(teacher: Model, digits: Images, score: str) -> None:
    made = part_of(teacher, digits, score=score, alpha=-1.0, alpha_linear=-1.0, beta=-1.0, beta_linear=-1.0)
    x = digits.test.normalised(teacher.mean, teacher.std).batch(torch.arange(100), device=CPU).images
    assert torch.allclose(made.module(x), teacher.module(x), atol=1e-5)
    assert made.classes == teacher.classes


def test_components_on_digits(teacher: Model, digits: Images) -> None:
    names = teacher.classes
    half = part_of(teacher, digits, classes=names[5:])
    fewer = part_of(teacher, digits, classes=names[7:])
    count = lambda m: sum(p.numel() for p in m.module.parameters())  # noqa: E731
    assert half.classes == names[5:] and fewer.classes == names[7:]
    assert count(fewer) <= count(half) < count(teacher)
    assert next(m for m in half.module.modules() if isinstance(m, nn.Conv2d)).in_channels == 1
    joint = digits.only(half.classes).normalised(half.mean, half.std)
    limited = component.restrict(teacher, names[5:])
    right = evaluate(limited.module, joint.test).accuracy
    found = evaluate(half.module, joint.test).accuracy
    assert right > 0.95
    assert found >= right - 0.1
    backwards = part_of(teacher, digits, classes=names[:4:-1])
    x = joint.test.batch(torch.arange(50), device=CPU).images
    assert torch.allclose(backwards.module(x), half.module(x).flip(1), atol=1e-5)


def test_a_component_is_a_student(teacher: Model, digits: Images) -> None:
    part = part_of(teacher, digits, classes=("0", "1", "2"))
    data = digits.only(part.classes).normalised(part.mean, part.std)
    method = KD(
        teacher=component.restrict(teacher, part.classes), student=part, recipe=Recipe(epochs=1, batch_size=64, lr=0.01)
    )
    method.require(data)
    assert evaluate(method.fit(run(), data), data.test).accuracy > 0.9


def test_as_much_is_cut_as_validation_accuracy_allows(teacher: Model, digits: Images) -> None:
    sizes, accuracies = [], []
    for tolerance in (0.01, 0.3):
        method = MDA(source=teacher, classes=("3", "5", "8"), samples=20, tolerance=tolerance)
        method.require(digits)
        watched = run()
        made = method.product(method.fit(watched, digits), digits)
        held = digits.only(made.classes).normalised(made.mean, made.std).validation
        sizes.append(sum(p.numel() for p in made.module.parameters()))
        accuracies.append(evaluate(made.module, held).accuracy)
        assert "validation accuracy falls by no more than" in watched.notes[0]
    source = evaluate(component.restrict(teacher, ("3", "5", "8")).module, held).accuracy
    assert accuracies[0] >= source - 0.01 and accuracies[1] >= source - 0.3
    assert sizes[1] < sizes[0]
    blind = dataclasses.replace(digits, validation=digits.validation.subset(torch.arange(0)))
    assert "there are none with labels" in MDA(source=teacher, tolerance=0.1).check(blind)[0]


def test_wrong_wishes_end_in_a_sentence(teacher: Model, digits: Images) -> None:
    with pytest.raises(UserError, match=r"no class of .* 'eleven'"):
        MDA(source=teacher, classes=("eleven",)).require(digits)
    with pytest.raises(UserError, match="names one class twice"):
        MDA(source=teacher, classes=("1", "1")).require(digits)
    with pytest.raises(UserError, match="alpha must be below 1"):
        MDA(source=teacher, alpha=1.0)
    with pytest.raises(UserError, match="samples must be at least 1"):
        MDA(source=teacher, samples=0)
    only = digits.subset((digits.train.labels != 4).nonzero().flatten())
    with pytest.raises(UserError, match="no labelled training image of 4"):
        MDA(source=teacher, classes=("4", "5")).require(only)
    blind = copy.deepcopy(teacher.module)
    with torch.no_grad():
        [m for m in blind.modules() if isinstance(m, nn.Linear)][-1].bias[2] -= 1000.0
    with pytest.raises(UserError, match="recognises no training image of class '2'"):
        MDA(source=dataclasses.replace(teacher, module=blind), classes=("2",)).fit(run(), digits)
    attention = nn.Sequential(nn.Conv2d(1, 4, 1), nn.GroupNorm(2, 4), nn.Flatten(), nn.Linear(256, 10))
    with pytest.raises(UserError, match="GroupNorm"):
        MDA(source=attention).require(digits)
