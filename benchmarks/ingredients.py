"""Costs of ingredients of a recipe: the hook that all loops run through, sharpness, and what else is a part here.

Run from the repository's root: `python -m benchmarks.ingredients` (some minutes on an idle machine). `--part NAME`
takes one part, `--quick` few repetitions, and both print only. Every figure is the minimum of alternating repetitions,
and ratios are between minima of the same run. A part is a function from the number of repetitions to its figures, in
`PARTS`.

The standard public loop of SAM is stated anew here, as the widely copied implementation has it: `first_step` and
`second_step` over parameters one by one. Where pytorch_optimizer can be imported, its SAM takes part too.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.common import alternate, record
from upcycle.core.batches import Batch, divide, view_of
from upcycle.core.losses import ce_loss, kd_objective
from upcycle.core.recipe import Recipe
from upcycle.core.references import resolve
from upcycle.core.run import Run
from upcycle.data import Images, load

B = 128
STEPS = 4  # of one repetition
RECIPE = Recipe(epochs=10_000, batch_size=B, lr=0.01)
Step = Callable[[], None]


def data() -> Images:
    """CIFAR-10 as it is distilled."""
    teacher = resolve("zoo:cifar10_resnet20")
    return load("cifar10").augmented(("crop", "flip")).normalised(teacher.mean, teacher.std)


def student() -> nn.Module:
    """A fresh ResNet-8 in training mode."""
    torch.manual_seed(0)
    return resolve("zoo:resnet8", pretrained=False, num_classes=10, input_shape=(3, 32, 32)).module.train()


def several(step: Step) -> Step:
    """So many steps of a training as are timed at once."""

    def steps() -> None:
        for _ in range(STEPS):
            step()

    return steps


# -- the hook ---------------------------------------------------------------------------------------------------


class Bypassed(Run):
    """A run whose batch loop, backward and update are what they were before a batch could be met again."""

    def batches(self, split: Any, batch_size: Any, **options: Any) -> Iterator[Batch]:
        """As in the commit before ingredients, without the options."""
        stage = self._stage
        self._stages.synchronise(split)
        order = lambda n, number: self._stages.order(stage.epoch, "", n, number)  # noqa: E731
        batches = divide(len(split), batch_size.batch_size, None, max(2, self.world_size), order)
        save_within, first = stage.start_batches(False, None, len(batches))
        try:
            for step, (number, samples) in enumerate(batches[first:], first):
                stage.step = step if save_within else stage.step
                self._stages.seed(stage.epoch, step, self.rank)
                mine = stage.index = self._mine(samples)
                self._share, self.count = len(mine) * self.world_size / len(samples), len(samples)
                self.view = view_of(stage.epoch, number, 0)
                yield split.batch(mine, device=self.device, view=(self.seed, self.view))
                if save_within and step + 1 < len(batches):
                    stage.step = step + 1
                    self.interrupt = self._stages.save_if_due(self.interrupt, every=16)
        finally:
            stage.end_batches()

    def backward(self, loss: Tensor, reduction: Any = "mean") -> None:
        """Of one process."""
        loss.backward()
        self._stage.clean = False

    def update(self, optimizer: torch.optim.Optimizer, clip: float | None = None) -> None:
        """A step."""
        self._updates.step(optimizer, clip)
        self._stage.clean = False


def kd_step(run: Run, images: Images) -> Step:
    """A step of distillation in KD's own words."""
    teacher = run.frozen(resolve("zoo:cifar10_resnet20"), images.validation)
    net, optimizer = run.setup(student(), RECIPE)

    def steps() -> Iterator[None]:
        for _ in run.epochs(RECIPE.epochs):
            for batch in run.batches(images.train, RECIPE):
                z_t = teacher(batch.images)
                loss = kd_objective(net(batch.images), z_t, batch.labels, temperature=4.0, w_kd=0.9, w_ce=0.1)
                run.step(loss, optimizer, RECIPE)
                yield

    return steps().__next__


def operations(step: Step, steps: int = 3) -> dict[str, int]:
    """How often each operation of torch is called in some steps."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as seen:
        for _ in range(steps):
            step()
    return dict(Counter({event.key: event.count for event in seen.key_averages() if event.key.startswith("aten::")}))


def hook(repetitions: int) -> dict[str, Any]:
    """KD's step with the hook in place and without."""
    images = data()
    arms = {"with": kd_step(Run(None, quiet=True), images), "without": kd_step(Bypassed(None, quiet=True), images)}
    for step in arms.values():
        step()
    counts = {name: operations(step) for name, step in arms.items()}
    times = alternate({name: several(step) for name, step in arms.items()}, repetitions)
    best = {name: min(seconds) / STEPS for name, seconds in times.items()}
    return {
        "seconds": best,
        "ratio": best["with"] / best["without"],
        "operations": {name: sum(found.values()) for name, found in counts.items()},
        "same operations": counts["with"] == counts["without"],
    }


# -- sharpness --------------------------------------------------------------------------------------------------


def trained(recipe: Recipe, images: Images) -> Step:
    """A step of plain training by a recipe: of the whole loop's meetings with one batch."""
    run = Run(None, quiet=True)
    net, optimizer = run.setup(student(), recipe)

    def steps() -> Iterator[None]:
        updates = 0
        for _ in run.epochs(recipe.epochs):
            for batch in run.batches(images.train, recipe):
                if run.updates > updates:  # the one before is over
                    updates = run.updates
                    yield
                run.step(ce_loss(net(batch.images), batch.labels, reduction=run.reduction), optimizer, recipe)

    return steps().__next__


class PublicSAM(torch.optim.Optimizer):
    """SAM as everybody copies it, a parameter at a time; stated anew."""

    def __init__(self, params: Any, base: Any, rho: float = 0.05, **options: Any) -> None:
        super().__init__(params, {"rho": rho, **options})
        self.base = base(self.param_groups, **options)

    @torch.no_grad()
    def first_step(self) -> None:
        """To the top."""
        norms = [p.grad.norm(p=2) for group in self.param_groups for p in group["params"] if p.grad is not None]
        norm = torch.norm(torch.stack(norms), p=2)
        for group in self.param_groups:
            scale = group["rho"] / (norm + 1e-12)
            for p in group["params"]:
                if p.grad is not None:
                    self.state[p]["old"] = p.data.clone()
                    p.add_(p.grad * scale)
        self.zero_grad()

    @torch.no_grad()
    def second_step(self) -> None:
        """Back, and the step."""
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    p.data = self.state[p]["old"]
        self.base.step()
        self.zero_grad()


def bare(images: Images, make: Callable[[nn.Module], Any]) -> Step:
    """The public loop on batches that are made as ours are, in the precision of a run."""
    run = Run(None, quiet=True)
    net, _ = run.setup(student())
    optimizer = make(net)

    def steps() -> Iterator[None]:
        for _ in run.epochs(RECIPE.epochs):
            for batch in run.batches(images.train, B):
                ce_loss(net(batch.images), batch.labels).backward()
                if hasattr(optimizer, "first_step"):
                    optimizer.first_step()
                    ce_loss(net(batch.images), batch.labels).backward()
                    optimizer.second_step()
                else:
                    optimizer.step()
                    optimizer.zero_grad(set_to_none=True)
                yield

    return steps().__next__


def public(images: Images) -> dict[str, Step]:
    """The loops of others."""
    options: dict[str, Any] = {"lr": 0.01, "momentum": 0.9, "weight_decay": 5e-4, "nesterov": True}
    found = {"SAM, public loop": bare(images, lambda net: PublicSAM(net.parameters(), torch.optim.SGD, **options))}
    try:
        from pytorch_optimizer import SAM
    except ImportError:
        return found

    def theirs(net: nn.Module) -> Any:
        made = SAM(net.parameters(), torch.optim.SGD, rho=0.05, **options)
        first, second = made.first_step, made.second_step
        made.first_step, made.second_step = lambda: first(zero_grad=True), lambda: second(zero_grad=True)
        return made

    return {**found, "SAM, pytorch_optimizer": bare(images, theirs)}


def sharpness(repetitions: int) -> dict[str, Any]:
    """Steps of plain training, SAM, ASAM and ESAM, and of the loops of others."""
    images = data()
    kinds: dict[str, dict[str, Any]] = {
        "plain": {},
        "SAM": {"sharpness": "sam"},
        "ASAM": {"sharpness": "asam"},
        "ESAM": {"sharpness": "esam"},
    }
    base = {"epochs": RECIPE.epochs, "batch_size": B, "lr": 0.01}
    arms = {name: trained(Recipe(**base, **asked), images) for name, asked in kinds.items()} | public(images)
    times = alternate({name: several(step) for name, step in arms.items()}, repetitions)
    best = {name: min(seconds) / STEPS for name, seconds in times.items()}
    theirs = [name for name in best if name not in kinds]
    return {
        "seconds": best,
        "over plain": {name: best[name] / best["plain"] for name in best},
        "formula": {"SAM": 2.0, "ESAM": (3 + 0.6 + 3 * 0.5) / 3},
        "SAM over the best of others": best["SAM"] / min(best[name] for name in theirs),
        "others": theirs,
    }


PARTS: dict[str, Callable[[int], dict[str, Any]]] = {"hook": hook, "sharpness": sharpness}


def main() -> None:
    """Measure the parts, print them, and record them where all were measured."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--part", choices=[*PARTS], help="one part alone; not recorded")
    parser.add_argument("--quick", action="store_true", help="few repetitions; not recorded")
    arguments = parser.parse_args()
    names = [arguments.part] if arguments.part else [*PARTS]
    figures = {name: PARTS[name](3 if arguments.quick else 40) for name in names}
    print(json.dumps(figures, indent=1))
    if not arguments.part and not arguments.quick:
        print(record("ingredients", figures, batch=B, steps=STEPS, threads=torch.get_num_threads()))


if __name__ == "__main__":
    main()
