"""Making: its ranges, and the updates and work that a method without data is told by it."""

from __future__ import annotations

import dataclasses

import pytest
from torch import nn

from tests.settings import seen, tiny_model
from upcycle.core.errors import UserError
from upcycle.core.recipe import Recipe
from upcycle.core.run import Run
from upcycle.data import Images
from upcycle.distillation import CMI, DeepInversion, FastDFKD, OneStageGAN
from upcycle.distillation.data_free.making import Making, generator_work
from upcycle.distillation.data_free.synthesis import Synthesis

RECIPE = Recipe(epochs=3, batch_size=10)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"rounds": 0}, "rounds must be at least 1"),
        ({"kd_steps": 0}, "kd_steps must be at least 1"),
        ({"batch": 1}, "batch must be at least 2"),
        ({"batch": 9, "capacity": 8}, r"batch must be at most capacity \(8\)"),
        ({"warmup": 5, "rounds": 4}, r"warmup must lie between 0 and rounds \(4\)"),
        ({"warmup": -1}, "warmup must lie between"),
        ({"views": -1}, "views must not be negative"),
        ({"temperature": 0.0}, "temperature must be positive"),
    ],
)
def test_impossible_options_are_refused(options: dict[str, float], words: str) -> None:
    with pytest.raises(UserError, match=words):
        Making(**options)  # type: ignore[arg-type]


def test_the_defaults_of_each_method_are_its_own() -> None:
    made = {
        m: dataclasses.astuple(m(teacher=nn.Identity(), student=nn.Identity()).making)
        for m in (CMI, DeepInversion, FastDFKD, OneStageGAN)
    }
    assert made == {
        CMI: (40, 0, 256, 400, 20.0, 65_536, 16),
        DeepInversion: (20, 0, 256, 400, 20.0, 65_536, 16),
        FastDFKD: (70, 10, 256, 100, 20.0, 65_536, 12),
        OneStageGAN: (60, 0, 256, 100, 20.0, 65_536, 16),
    }


def test_the_discriminator_has_no_warm_up() -> None:
    with pytest.raises(UserError, match="no warm-up"):
        OneStageGAN(teacher=nn.Identity(), student=nn.Identity(), making=Making(warmup=1))


def test_work_is_that_of_the_images_the_answers_and_the_updates() -> None:
    anew, kept = Making(rounds=4, batch=8, kd_steps=5, views=0), Making(rounds=4, batch=8, kd_steps=5, views=2)
    assert anew.steps(RECIPE) == kept.steps(RECIPE) == 15
    # Three epochs have room for three rounds of eight images; 15 updates of ten images.
    assert anew.work(RECIPE, 100, 7, 3) == 3 * 8 * 100 + 150 * (3 * 3 + 7)
    assert kept.work(RECIPE, 100, 7, 3) == 3 * 8 * (100 + 2 * 7) + 150 * 3 * 3
    assert generator_work(tiny_model("teacher", 7), 8, 4) < generator_work(nn.Identity(), 8, 4)


@pytest.mark.parametrize(("rounds", "warmup", "epochs"), [(3, 1, 4), (4, 0, 2), (2, 2, 1)])
def test_rounds_make_images_and_the_student_trains_between(rounds: int, warmup: int, epochs: int) -> None:
    teacher = seen(tiny_model("teacher", 7))
    making = Making(rounds=rounds, warmup=warmup, batch=4, kd_steps=1, views=0)
    recipe = Recipe(epochs=epochs, batch_size=4)
    method = FastDFKD(teacher=teacher, student=tiny_model("student", 1), making=making, recipe=recipe)
    run = Run(None)
    made = Synthesis(run, method, Images.none((1, 8, 8), teacher.classes, teacher.mean, teacher.std))
    order: list[str] = []
    made.distil = lambda student, optimizer, epoch: order.append(f"train {epoch}")  # type: ignore[method-assign]

    student, optimizer = run.setup(tiny_model("student", 1).module, recipe)
    for e in made.rounds(student, optimizer):
        order.append(f"make {e}")
    expected = []
    for e in range(warmup + epochs):
        expected += [f"make {e}"] * (e < rounds) + [f"train {e - warmup}"] * (e >= warmup)
    assert order == expected
