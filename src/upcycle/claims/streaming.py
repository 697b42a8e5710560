"""Streaming self-supervision: what pre-training chunk by chunk costs, with labels and without."""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import nn

from upcycle.claims import Check, Claim, Headline, Measured, gain, mean
from upcycle.claims.nes import fashion, net
from upcycle.continual import Finetune, Joint, StreamingSSL
from upcycle.continual.protocol.probing import Probing, features, recalibrate_batchnorm
from upcycle.continual.protocol.tasks import accuracy_among
from upcycle.core.heads import classifier
from upcycle.core.method import Method
from upcycle.core.models import Model, copy_of
from upcycle.core.recipe import Recipe
from upcycle.core.run import Run
from upcycle.data import Images, load
from upcycle.data.stream_kinds import portions, stream
from upcycle.data.streams import Stream
from upcycle.measure.similarity import linear_cka

WIDTHS = (16, 32, 64)
CHUNKS = 5
TRANSFER = ("mnist", "usps", "cifar10")


class Watched(Run):
    """A run that keeps the network as it is after each task."""

    def __init__(self, seed: int) -> None:
        super().__init__(None, seed=seed, quiet=True)
        self.after: list[dict[str, torch.Tensor]] = []

    def stage(self, name: str, fn: Callable[[], Any], like: Any = None) -> Any:
        """As every run, and what it returned is kept."""
        result = super().stage(name, fn, like)
        if name.startswith("task"):
            self.after.append(result["network"])
        return result


def encoders(method: Method, data: Stream, seed: int) -> list[nn.Module]:
    """The network without its classifier after each task, or at the end where nothing is trained task by task."""
    method.require(data)
    run, student = Watched(seed), method.model("student", data)
    final = method.fit(run, data).state_dict()
    name, made = classifier(student), []
    for state in run.after or [final]:
        module = copy_of(student.module)
        module.set_submodule(name, nn.Identity())
        module.load_state_dict({k: v for k, v in state.items() if not k.startswith(f"{name}.")})
        made.append(module.eval())
    return made


@cache
def downstream(name: str, n: int, mean: tuple[float, ...], std: tuple[float, ...]) -> Images:
    """The first images of a set in grey at 28 x 28, n to train on and to test, n / 2 to validate."""
    data = load(name, size=28, channels=1).normalised(mean, std)
    sizes = {"train": n, "validation": n // 2, "test": n}
    return dataclasses.replace(data, **{
        k: getattr(data, k).subset(torch.arange(min(m, len(getattr(data, k))))) for k, m in sizes.items()})  # fmt: skip


def transfer(encoder: nn.Module, n: int, like: Images, *, recalibrate: bool = False) -> float:
    """The mean accuracy in per cent of linear probes on other sets; BatchNorm's statistics of each if asked for."""
    found = []
    for name in TRANSFER:
        images = downstream(name, n, like.train.mean, like.train.std)
        own = recalibrate_batchnorm(encoder, images.train) if recalibrate else encoder
        found.append(accuracies(own, portions(name, images, 1), n)[0])
    return 100 * statistics.fmean(found)


def accuracies(encoder: nn.Module, data: Stream, n: int) -> list[float]:
    """Of a linear probe on each task's test images, among the classes of the task."""
    probing, found = Probing(encoder, data, n), []
    for t, columns in enumerate(data.tasks):
        split = data.task(t).test
        accuracy = accuracy_among(probing.answers(split, t), split.labels, columns)
        assert accuracy is not None
        found.append(accuracy)
    return found


def lost(after: list[nn.Module], data: Stream, n: int) -> float:
    """F in points: the mean over all chunks but the last of accuracy right after the chunk less that at the end."""
    rows = [accuracies(encoder, data, n) for encoder in after]
    return 100 * statistics.fmean(rows[j][j] - rows[-1][j] for j in range(len(rows) - 1))


def measure(seed: int, quick: bool) -> dict[str, float]:
    """Six trainings of one network: the same images, and as many passes over each."""
    n, n_test, epochs, labels = (500, 200, 1, 200) if quick else (6_000, 4_000, 10, 2_000)
    data = fashion(n, n_test)
    model: Model = net(WIDTHS, data, seed)
    recipe = Recipe(epochs=epochs, batch_size=64, optimizer="adam", lr=1e-3, weight_decay=0.0)
    classes, instances = stream(data, tasks=str(CHUNKS)), portions("parts:fashion_mnist_local", data, CHUNKS)
    whole = portions("whole:fashion_mnist_local", data, 1)
    supervised = classes.augmented(("crop", "flip", "color"))
    short = dataclasses.replace(recipe, epochs=max(epochs // CHUNKS, 1))

    def ssl(**options: Any) -> StreamingSSL:
        return StreamingSSL(student=model, **{"recipe": recipe, "replay_share": 0.0, "probes": 200, **options})

    after = {
        "self-supervised, by classes": encoders(ssl(), classes, seed),
        "self-supervised, by classes, replay": encoders(ssl(replay_share=0.1), classes, seed),
        "self-supervised, at random": encoders(ssl(), instances, seed),
        "self-supervised, joint": encoders(ssl(), whole, seed),
        "self-supervised, joint, updates of one chunk": encoders(ssl(recipe=short), whole, seed),
        "supervised, by classes": encoders(Finetune(student=model, recipe=recipe), supervised, seed),
        "supervised, joint": encoders(Joint(student=model, recipe=recipe), supervised, seed),
    }
    figures = {f"{name} (%)": transfer(found[-1], labels, data) for name, found in after.items()}
    some = data.validation.subset(torch.arange(min(1000, len(data.validation))))
    for name in ("self-supervised, by classes", "supervised, by classes"):
        figures[f"{name}, statistics of each set (%)"] = transfer(after[name][-1], labels, data, recalibrate=True)
        figures[f"{name}, forgotten (points)"] = lost(after[name], classes, labels)
        figures[f"{name}, CKA of the first and the last encoder"] = float(
            linear_cka(features(after[name][0], some), features(after[name][-1], some)))  # fmt: skip
    return figures


def gap(arm: str, joint: str) -> Callable[[Measured], float]:
    """How far an arm is below joint training, in points."""
    return gain(f"{joint}, joint (%)", f"{arm} (%)")


def less(first: Callable[[Measured], float], second: Callable[[Measured], float]) -> Callable[[Measured], float]:
    """By how much the first figure is below the second."""
    return lambda measured: second(measured) - first(measured)


SSL, SUPERVISED = "self-supervised", "supervised"


def replay_helps(measured: Measured) -> float:
    """What is left of the larger of one point and half the gap, after the gap with replay."""
    allowed = max(1.0, gap(f"{SSL}, by classes", SSL)(measured) / 2)
    return allowed - gap(f"{SSL}, by classes, replay", SSL)(measured)


CLAIM = Claim(
    method="streaming",
    sentence="Self-supervised pre-training chunk by chunk stays near training on everything at once, nearer than "
    "supervised training, and forgets less.",
    published="Sequential self-supervised training with replay or regularisation is mostly on par with joint training, "
    "and forgets much less than supervised training (abstract); there is no figure, and no public code.",
    setting="Fashion-MNIST (a split of its own), first 6,000 training images, conv net 16-32-64, Barlow Twins of width "
    "128, batches of 64, 10 passes over each chunk, five chunks: two classes each, or at random. Linear probes on "
    "MNIST, USPS and CIFAR-10 in grey with 2,000 labels each, 2,000 test images. Supervised twins are fine-tuned with "
    "cross-entropy and probed alike. Forgetting: probes on Fashion-MNIST, among the classes of each chunk.",
    data=("fashion_mnist_local", *TRANSFER),
    measure=measure,
    headline=Headline(
        product="self-supervised, by classes (%)",
        baseline="supervised, by classes (%)",
        says="pre-training on the stream without labels over training on it with labels, probed on other sets",
    ),
    checks=(
        Check(text="chunks at random end within 1 point of joint training",
              value=lambda m: -abs(gap(f"{SSL}, at random", SSL)(m)), bound=-1.0),
        Check(text="chunks of classes cost less than they cost supervised training",
              value=less(gap(f"{SSL}, by classes", SSL), gap(f"{SUPERVISED}, by classes", SUPERVISED)), bound=0.0),
        Check(text="a replay of 10 % halves that cost, or brings it to 1 point",
              value=replay_helps, bound=0.0),
        Check(text="less is forgotten than by supervised training",
              value=less(lambda m: mean(m, f"{SSL}, by classes, forgotten (points)"),
                         lambda m: mean(m, f"{SUPERVISED}, by classes, forgotten (points)")), bound=0.0),
    ),
)  # fmt: skip
