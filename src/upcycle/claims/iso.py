"""ISO: what a stream of shifted images gains from steps on rotation prediction before each answer."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch

from upcycle.adaptation.iso import ISO
from upcycle.adaptation.test_time.joint_network import JointNetwork
from upcycle.claims import Check, Claim, Headline, gain
from upcycle.claims.nes import fashion
from upcycle.claims.settings import fresh, short, test, train
from upcycle.core.evaluate import evaluate
from upcycle.core.models import Model, copy_of
from upcycle.core.run import Run
from upcycle.data import Images, ImageSplit
from upcycle.distillation import Plain

MODES: dict[str, dict[str, Any]] = {
    "vanilla": {"params": "norm-affine", "updates": 5, "lr": 1e-3},
    "online": {"params": "norm-affine", "updates": 1, "lr": 1e-3},
}
"""Chosen with seed 99 on 1,000 images that nothing was trained with (numbers 20,000 to 20,999 of the training set),
once blurred by 3 x 3 means with a tenth of the pixels black or white and once as they are: the most accurate there
among those that lost clearly less than 0.5 points here."""


def pale(split: ImageSplit, seed: int) -> ImageSplit:
    """Contrast times 0.4 about middle grey, and Gaussian noise of 0.2; pixels in [0, 1], cut off there."""
    x = split.pixels().permute(0, 3, 1, 2).float() / 255
    noise = 0.2 * torch.randn(x.shape, generator=torch.Generator().manual_seed(seed))
    return dataclasses.replace(split, images=(0.5 + 0.4 * (x - 0.5) + noise).clamp(0, 1))


def answered(model: Model, joint: JointNetwork, split: ImageSplit, mode: str) -> float:
    """The accuracy in per cent of the answers that a copy of ``joint`` gives along ``split``."""
    adapter = ISO(source=model, mode=mode, **MODES[mode]).adapter(copy_of(joint))  # type: ignore[arg-type]
    images, y, _ = split.batch(torch.arange(len(split)), device=torch.device("cpu"))
    z = torch.cat(list(adapter.answers(images.split(1))))
    return 100 * (z.argmax(1) == y).double().mean().item()


def measure(seed: int, quick: bool) -> dict[str, float]:
    """One joint training, whose network answers the same streams adapted and not; and one without rotation."""
    data: Images = fashion(*(500, 100) if quick else (20_000, 2_000))
    recipe, model = short(1 if quick else 4), fresh("zoo:convnet_groupnorm", data, seed)
    joint = ISO(source=model, source_data=data, recipe=recipe).train_jointly(
        Run(None, seed=seed, quiet=True), model, data
    )
    alone = train(Plain(student=model, recipe=recipe), data, seed)
    shifted = dataclasses.replace(data, test=pale(data.test, seed))
    figures = {}
    for where, images in (("shifted", shifted), ("as it is", data)):
        figures[f"trained without rotation, {where} (%)"] = 100 * test(alone, images).accuracy
        figures[f"no adaptation, {where} (%)"] = 100 * evaluate(joint, images.test).accuracy
        for mode in MODES:
            figures[f"{mode}, {where} (%)"] = answered(model, joint, images.test, mode)
    return figures


CLAIM = Claim(
    method="iso",
    sentence="A network trained jointly with rotation prediction answers a shifted stream better after steps on that "
    "loss alone, the more so if it keeps them from sample to sample, and loses little where nothing has shifted.",
    published="MPI-INF-3DHP, a model of another scenario: 83.6 % 3D-PCK, 9.7 points above the best before (abstract). "
    "That is for pose; there is no published figure for this general form, and no public code.",
    setting="Fashion-MNIST (a split of its own), first 20,000 training images, conv net 16-32-64 with GroupNorm, joint "
    "training with rotation prediction for 4 epochs; 2,000 test images in order, as they are and with contrast x 0.4 "
    "and Gaussian noise of 0.2; 16 copies; scales and shifts adapt, in one step (online) or five (vanilla) of Adam.",
    data=("fashion_mnist_local",),
    measure=measure,
    headline=Headline(
        product="online, shifted (%)",
        baseline="no adaptation, shifted (%)",
        says="online adaptation over none, on the shifted stream",
    ),
    checks=(
        Check(text="online gains at least 2 points on the shifted stream",
              value=gain("online, shifted (%)", "no adaptation, shifted (%)"), bound=2.0),
        Check(text="vanilla loses no more than 0.5 points there",
              value=gain("vanilla, shifted (%)", "no adaptation, shifted (%)"), bound=-0.5),
        Check(text="online is no worse than vanilla there",
              value=gain("online, shifted (%)", "vanilla, shifted (%)"), bound=0.0),
        Check(text="online loses no more than 0.5 points where nothing has shifted",
              value=gain("online, as it is (%)", "no adaptation, as it is (%)"), bound=-0.5),
        Check(text="vanilla loses no more than 0.5 points where nothing has shifted",
              value=gain("vanilla, as it is (%)", "no adaptation, as it is (%)"), bound=-0.5),
    ),
)  # fmt: skip
