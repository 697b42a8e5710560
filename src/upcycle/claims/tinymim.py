"""TinyMIM: a small vision transformer that few labels have to teach, after relations of a larger one and without."""

from __future__ import annotations

import dataclasses
import math
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from upcycle.claims import Check, Claim, Headline, gain
from upcycle.claims.settings import BESIDE, cifar10, fresh, test, train
from upcycle.core.heads import classifier, headless, linear
from upcycle.core.losses import Terms
from upcycle.core.models import Model
from upcycle.core.recipe import Recipe
from upcycle.core.references import resolve
from upcycle.core.run import Run
from upcycle.data import Images
from upcycle.distillation import KD, Plain, TinyMIM
from upcycle.training.linear_probe import probe_of

STUDENT = "zoo:vit_small"
LABELS = 50
"""Labels a class."""


@cache
def setting(quick: bool) -> tuple[Model, Images]:
    """The trained vision transformer of CIFAR-10, and a part of the images that it was trained on."""
    teacher = resolve("zoo:cifar10_vit")
    data = cifar10(1_000 if quick else 20_000, ("crop", "flip"), teacher)
    return teacher, dataclasses.replace(data, test=data.test.subset(torch.arange(500))) if quick else data


def pretraining(quick: bool) -> Recipe:
    """Four epochs over images without labels, batches of 128."""
    return Recipe(
        epochs=1 if quick else 4, optimizer="adamw", lr=2e-3, weight_decay=0.05, decayed="matrices", warmup=0.5
    )


def tuning(quick: bool, updates: int = 0) -> Recipe:
    """Thirty epochs over the images with labels, batches of 50; and so many updates more.

    Args:
        updates: in whole epochs, rounded up.
    """
    epochs = (1 if quick else 30) + math.ceil(updates / (10 * LABELS / 50))
    return Recipe(
        epochs=epochs,
        batch_size=50,
        optimizer="adamw",
        lr=1e-3,
        weight_decay=0.05,
        decayed="matrices",
        warmup=min(2.0, epochs / 4),
    )


def final_feature(teacher: Model, student: Model, data: Images, recipe: Recipe, seed: int) -> nn.Module:
    """The student after its last feature, behind a linear map, has come near the teacher's: mean squared error.

    The feature is what the classifier is given, the mean over tokens. As in TinyMIM a linear probe is its classifier.
    """
    run = Run(None, seed=seed, quiet=True)
    target = run.frozen(headless(teacher), data.validation)
    ours, theirs = (linear(model.module, classifier(model)).in_features for model in (student, teacher))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        both = nn.Sequential(headless(student).module, nn.Linear(ours, theirs))
    both, optimizer = run.setup(both, recipe)
    for _ in run.epochs(recipe.epochs):
        both.train()
        for images, _, _ in run.batches(data.train, recipe):
            run.step(F.mse_loss(both(images), target(images)), optimizer, recipe)
    run.plain(both)
    student.module.load_state_dict({**student.module.state_dict(), **both[0].state_dict()})
    if (found := probe_of(run, student, data)) is not None:
        student.module.set_submodule(classifier(student), found.head)
    return student.module


def measure(seed: int, quick: bool) -> dict[str, float]:
    """All arms: the same first weights, images and 500 labels, which the seed draws; each tuned on these at last."""
    teacher, whole = setting(quick)
    some, few = whole.hide_labels(LABELS, seed), whole.few(LABELS, seed)
    recipe = pretraining(quick)
    updates = recipe.steps(len(some.train))

    def student() -> Model:
        return fresh(STUDENT, whole, seed)

    def tuned(module: nn.Module, more: int = 0) -> float:
        start = dataclasses.replace(student(), module=module)
        return 100 * test(train(Plain(student=start, recipe=tuning(quick, more)), few, seed), few).accuracy

    networks: dict[str, nn.Module] = {
        "relations": train(TinyMIM(teacher=teacher, student=student(), recipe=recipe), some, seed)
    }
    figures = {
        "from scratch (%)": tuned(student().module),
        "from scratch, as many updates (%)": tuned(student().module, updates),
        "relations, linear probe (%)": 100 * test(networks["relations"], few).accuracy,
        "relations, then tuned (%)": tuned(networks["relations"]),
    }
    if seed < BESIDE:
        options: dict[str, Any] = {"teacher": teacher, "student": student(), "recipe": recipe}
        answers = train(KD(**options, terms=Terms(w_ce=0.0, w_kd=1.0)), some, seed)
        figures |= {
            "final feature, then tuned (%)": tuned(final_feature(teacher, student(), some, recipe, seed)),
            "the teacher's answers, then tuned (%)": tuned(answers),
        }
    return figures


CLAIM = Claim(
    method="tinymim",
    sentence="Where few labels are there, a small vision transformer that first learnt how the tokens of a larger, "
    "trained one relate, from images without labels, is far better than one that starts from nothing.",
    published="ImageNet top-1 after fine-tuning: ViT-T 75.8 with TinyMIM, 71.6 with MAE; ViT-S 83.0 and 80.6; ViT-B "
    "85.0 and 83.6 (official README). 79.6 of its ViT-T* had a distillation of labels besides. The teachers "
    "there are trained by masking, without labels.",
    setting="CIFAR-10, a vision transformer of width 96, 4 blocks, 3 heads (81.4 %, trained with labels, which its "
    "relations do not say) to one of width 48, 3 blocks, 4 heads. Relations of its third block, 4 epochs over 20,000 "
    "images, AdamW at 2e-3, batches of 128; then 30 epochs over 500 of them with labels, drawn by the seed, AdamW at "
    "1e-3, batches of 50. From scratch: these 30 epochs alone, and with as many updates as both trainings together. "
    "Other rates were not tried; a shortened form was, with a seed outside the claim, on validation images. "
    "Beside it, with the first three seeds and the same updates: the mean of the last tokens, regressed through a "
    "linear map; and the teacher's answers (kd without labels), which only a teacher of the same classes has.",
    data=("cifar10",),
    measure=measure,
    headline=Headline(
        product="relations, then tuned (%)",
        baseline="from scratch, as many updates (%)",
        says="relations of a larger network, then 500 labels, over the same labels with as many updates",
    ),
    checks=(
        Check(
            text="it gains at least 3 points on the same tuning from scratch",
            value=gain("relations, then tuned (%)", "from scratch (%)"),
            bound=3.0,
        ),
    ),
)
