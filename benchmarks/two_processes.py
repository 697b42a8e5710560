"""Two processes of one thread each beside one process of two threads: ResNet-56 to ResNet-20 on CIFAR-10, batch 128.

Every arm is a command of its own, both arms once a round; compared are minima over rounds. An arm trains with KD and
measures, over all its processes:

- *step*: seconds of a step, after the first few;
- *evaluation*: seconds to evaluate the student on the validation images;
- *processor*: seconds of a step on all cores together, which a busy machine hardly changes;
- *memory*: of a process, in MB: its own pages and its share of those that it shares with others (PSS on Linux);
- *held*: by how much loading the data made that grow, in the process where it is most; *data*: of all pixels.

Run from the repository: ``python -m benchmarks.two_processes``; ``--quick`` prints a few steps and records nothing.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import torch

from benchmarks.common import record
from upcycle.core.collective import every
from upcycle.core.losses import kd_objective
from upcycle.core.once import once
from upcycle.core.recipe import Recipe
from upcycle.core.references import resolve
from upcycle.core.run import Run
from upcycle.data import Images, load

ARMS = {"one process, two threads": (1, 2), "two processes, one thread each": (2, 1)}
"""Processes, and threads of each."""
WARM = 5
BATCH = 128


def memory() -> float:
    """Megabytes of this process: its own pages, and its part of the shared ones."""
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("Pss:")) / 1024


def arm(devices: int, threads: int, steps: int) -> None:
    """Train and evaluate in so many processes; the first prints the figures."""
    torch.set_num_threads(threads)
    teacher = resolve("zoo:cifar10_resnet56")
    run = Run(None, quiet=True, seed=0, devices=devices, accelerator="cpu")
    torch.set_num_threads(threads)  # whatever was thought fit for so many processes
    before = memory()
    data: Images = once(lambda: load("cifar10")).augmented(("crop", "flip")).normalised(teacher.mean, teacher.std)
    run.fabric.barrier()
    held = every(memory() - before, run.world_size)
    run.fabric.barrier()
    recipe = Recipe(epochs=1, batch_size=BATCH, lr=0.01)
    torch.manual_seed(0)
    net = resolve("zoo:resnet20", pretrained=False, num_classes=10, input_shape=data.shape).module
    student, optimizer = run.setup(net, recipe)
    frozen = run.frozen(teacher, data.validation)
    start = used = 0.0
    student.train()
    for step, (images, labels, _) in enumerate(run.batches(data.train, BATCH, steps=WARM + steps)):
        if step == WARM:
            run.fabric.barrier()
            start, used = time.perf_counter(), time.process_time()
        loss = kd_objective(student(images), frozen(images), labels, temperature=4.0, w_kd=0.9, w_ce=0.1)
        run.step(loss, optimizer, recipe)
    run.fabric.barrier()
    middle, used = time.perf_counter(), time.process_time() - used
    found = run.evaluate(student, data.validation)
    run.fabric.barrier()
    end = time.perf_counter()
    own, all_used = every(memory(), run.world_size), every(used, run.world_size)
    run.fabric.barrier()
    if run.rank == 0 and found is not None:
        figures = {
            "step": (middle - start) / steps,
            "processor": sum(all_used) / steps,
            "evaluation": end - middle,
            "memory": max(own),
            "held": max(held),
            "data": sum(split.pixels().nbytes for split in data.splits().values()) / 2**20,
            "accuracy": found.score,
        }
        print(json.dumps(figures), flush=True)


def measured(name: str, steps: int) -> dict[str, float]:
    """The figures of an arm, from a command of its own."""
    devices, threads = ARMS[name]
    words = [f"--devices={devices}", f"--threads={threads}", f"--steps={steps}"]
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.two_processes", *words],
        env={**os.environ, "OMP_NUM_THREADS": str(threads)},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        sys.exit(f"{name} failed:\n{done.stderr}")
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def main() -> None:
    """Measure both arms side by side, print and record."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="one round of a few steps, printed only")
    parser.add_argument("--devices", type=int, default=0, help=argparse.SUPPRESS)
    parser.add_argument("--threads", type=int, default=1, help=argparse.SUPPRESS)
    words = parser.parse_args()
    if words.devices:
        arm(words.devices, words.threads, words.steps)
        return
    steps, rounds = (10, 1) if words.quick else (words.steps, words.rounds)
    runs: dict[str, list[dict[str, float]]] = {name: [] for name in ARMS}
    for _ in range(rounds):
        for name, found in runs.items():
            found.append(measured(name, steps))
            print(name, {key: round(value, 4) for key, value in found[-1].items()}, flush=True)
    best = {name: {key: round(min(one[key] for one in found), 4) for key in found[0]} for name, found in runs.items()}
    one, two = best.values()
    figures = {
        **best,
        **{
            f"{key}, two to one": round(two[key] / one[key], 3)
            for key in ("step", "processor", "evaluation", "memory", "held")
        },
    }
    print(json.dumps(figures, indent=1))
    if not words.quick:
        path = record("two_processes", figures, steps=steps, rounds=rounds, batch=BATCH)
        print(f"\n{path.relative_to(path.parents[2])}")


if __name__ == "__main__":
    main()
