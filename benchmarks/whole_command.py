"""Whole commands, as a person waits for them: `upcycle distill` beside a tuned script that does the same work.

Run from the repository's root: `python -m benchmarks.whole_command [PART ...]`; `--help` lists the parts. Every arm is
a process of its own, started anew each time, all arms once a round; compared are minima of wall-clock seconds, with
processor seconds (all its processes) and the largest memory of one of its processes beside them. The rival is
`benchmarks/plain_distillation.py`, on the files that upcycle reads, and on 5,000 images of CIFAR-10 that were decoded
beforehand too.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from benchmarks.common import record
from upcycle.core.references import resolve
from upcycle.data import load
from upcycle.measure.cost import count
from upcycle.measure.machine import matmul_rate

RIVAL = str(Path(__file__).parent / "plain_distillation.py")
UPCYCLE = [sys.executable, "-m", "upcycle.cli", "distill"]
PARTS = ("digits", "cifar-5000", "cifar-45000", "cifar-kept", "jpeg")
KEPT = 5  # epochs of the part with kept outputs: the fewest at which one of the four views is used again


def timed(words: Sequence[str], threads: int) -> dict[str, float]:
    """Run a process to its end: wall-clock and processor seconds, and the largest memory of one process, in MB."""
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    start = time.perf_counter()
    with tempfile.TemporaryFile() as output:
        process = subprocess.Popen(words, stdout=output, stderr=output, env=environment)
        _, status, used = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - start
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            output.seek(0)
            raise SystemExit(f"{' '.join(words)} failed:\n{output.read().decode(errors='replace')}")
    memory = used.ru_maxrss / 1024
    return {"seconds": seconds, "processor": used.ru_utime + used.ru_stime, "memory_mb": memory}


def side_by_side(arms: dict[str, list[str]], repetitions: int, threads: int) -> dict[str, dict[str, Any]]:
    """Every arm once a round; the minimum of each figure, and all wall-clock times."""
    found: dict[str, list[dict[str, float]]] = {name: [] for name in arms}
    for _ in range(repetitions):
        for name, words in arms.items():
            with tempfile.TemporaryDirectory() as out:
                ours = words[: len(UPCYCLE)] == UPCYCLE
                found[name].append(timed([*words, "--out", f"{out}/run"] if ours else words, threads))
            last = found[name][-1]
            print(f"  {name:36} {last['seconds']:7.2f} s, {last['processor']:7.2f} processor s", flush=True)
    return {
        name: {
            **{key: round(min(one[key] for one in times), 3) for key in times[0]},
            "all": [round(one["seconds"], 2) for one in times],
        }
        for name, times in found.items()
    }


def floor(
    pair: Sequence[str],
    shape: tuple[int, int, int],
    train: int,
    beside: tuple[int, int],
    *,
    views: int,
    epochs: int,
) -> float:
    """Seconds that the multiply-adds alone take at the rate of a large bf16 matrix product.

    Args:
        pair: references of teacher and student.
        shape: of one image.
        train: images to train on.
        beside: images to validate and to test on.
        views: passes of the teacher over the training images.
        epochs: passes of the student over them.
    """
    cost = [
        count(resolve(name, num_classes=10, input_shape=shape, pretrained=False).module, shape).macs for name in pair
    ]
    work = train * (views * cost[0] + epochs * 3 * cost[1]) + beside[0] * epochs * cost[1] + beside[1] * sum(cost)
    return 2 * work / matmul_rate(torch.bfloat16)


def cifar(
    folder: Path, images: int, repetitions: int, threads: int, *, views: int = 0, epochs: int = 1
) -> dict[str, Any]:
    """ResNet-56 to ResNet-20 on so many training images of CIFAR-10, 5,000 for validation and 10,000 for the test."""
    source = next(place for place in _places() if (place / "train.parquet").exists())
    weights, decoded = folder / "resnet56.pt", folder / "decoded"
    torch.save(resolve("zoo:cifar10_resnet56").module.state_dict(), weights)
    decoded.mkdir(exist_ok=True)
    data = load("cifar10")
    whole = [torch.cat([getattr(s, name) for s in (data.train, data.validation)]) for name in ("images", "labels")]
    torch.save((whole[0].permute(0, 3, 1, 2).contiguous(), whole[1].tolist()), decoded / "train.pt")
    torch.save((data.test.images.permute(0, 3, 1, 2).contiguous(), data.test.labels.tolist()), decoded / "test.pt")
    pair = ("zoo:cifar10_resnet56", "zoo:resnet20")
    ours = [*UPCYCLE, "--teacher", pair[0], "--student", pair[1], "--data", "cifar10", "--recipe.epochs", str(epochs)]
    ours += ["--shots", str(images // 10)] if images < 45_000 else []
    rival = [sys.executable, RIVAL, "--weights", str(weights), "--images", str(images), "--epochs", str(epochs)]
    arms = {
        "upcycle": [*ours, *(["--views", str(views)] if views else [])],
        "tuned script": [*rival, "--data", str(source)],
    }
    if images < 45_000:  # where decoding weighs
        arms["tuned script, images decoded before"] = [*rival, "--data", str(decoded)]
    passes = min(views or epochs, epochs)
    least = floor(pair, (3, 32, 32), images, (5_000, 10_000), views=passes, epochs=epochs)
    return {"arms": side_by_side(arms, repetitions, threads), "floor": round(least, 2)}


def _places() -> Iterator[Path]:
    for root in (os.environ.get("UPCYCLE_DATA"), "data"):
        if root:
            yield Path(root) / "cifar10"


def jpeg(folder: Path, repetitions: int, threads: int) -> dict[str, Any]:
    """A pair of timm's on a folder of 2,000 JPEGs of 256 x 256 pixels, brought to 112; fresh weights for both."""
    data, start = load("cifar10"), 0
    for name, number in (("train", 2_000), ("val", 200), ("test", 400)):
        for i in range(start, start + number):
            place = folder / "jpegs" / name / data.classes[int(data.train.labels[i])]
            place.mkdir(parents=True, exist_ok=True)
            picture = Image.fromarray(data.train.images[i].numpy())
            picture.resize((256, 256), Image.Resampling.BICUBIC).save(place / f"{i:05d}.jpg", quality=90)
        start += number
    pair = ("resnet34", "resnet18")
    named = [f"timm:{name}" for name in pair]
    ours = [
        *UPCYCLE,
        "--teacher",
        named[0],
        "--teacher_weights",
        "fresh",
        "--student",
        named[1],
        "--data",
        str(folder / "jpegs"),
        "--size",
        "112",
        "--recipe.epochs",
        "1",
        "--augment",
        "crop,flip",
    ]
    rival = [sys.executable, RIVAL, "--pair", *pair, "--data", str(folder / "jpegs"), "--size", "112"]
    least = floor(named, (3, 112, 112), 2_000, (200, 400), views=1, epochs=1)
    arms = {"upcycle": ours, "tuned script": rival}
    return {"arms": side_by_side(arms, repetitions, threads), "floor": round(least, 2)}


def digits(repetitions: int) -> dict[str, Any]:
    """One epoch on digits, the smallest command there is, and what its imports alone take; one thread."""
    command = [*UPCYCLE, "--teacher", "zoo:digits_teacher", "--student", "zoo:convnet_small", "--data", "digits"]
    load_optimiser = "import torch; torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.1)"
    arms = {
        "upcycle, one epoch on digits": [*command, "--recipe.epochs", "1"],
        "upcycle distill --help": [*UPCYCLE, "--help"],
        "import upcycle.verbs.distill": [sys.executable, "-c", "import upcycle.verbs.distill"],
        "import torch": [sys.executable, "-c", "import torch"],
        "import torch, and make an optimiser": [sys.executable, "-c", load_optimiser],
    }
    return {"arms": side_by_side(arms, repetitions, 1)}


def main() -> None:
    """Time, print and record each part that is asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"any of {', '.join(PARTS)}; all if none is given")
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--no-record", action="store_true", help="print, but leave the committed results as they are")
    words = parser.parse_args()
    if unknown := set(words.parts) - set(PARTS):
        parser.error(f"there is no part {', '.join(sorted(unknown))}; there are {', '.join(PARTS)}")
    torch.set_num_threads(words.threads)
    n, threads = words.repetitions, words.threads
    for part in words.parts or PARTS:
        print(part, flush=True)
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            if part == "digits":
                figures = digits(n)
            elif part == "jpeg":
                figures = jpeg(folder, n, threads)
            elif part == "cifar-kept":
                figures = cifar(folder, 45_000, n, threads, views=4, epochs=KEPT)
            else:
                figures = cifar(folder, int(part.partition("-")[2]), n, threads)
        arms = figures["arms"]
        if "tuned script" in arms:
            ours = arms["upcycle"]
            figures["ratios"] = {
                name: {key: round(one[key] / ours[key], 3) for key in ("seconds", "processor", "memory_mb")}
                for name, one in arms.items()
                if name != "upcycle"
            }
        for name, one in arms.items():
            print(f"{name:36} {one['seconds']:7.2f} s {one['processor']:7.2f} processor s {one['memory_mb']:7.0f} MB")
        print({key: figures[key] for key in ("floor", "ratios") if key in figures})
        if not words.no_record:
            print(record(f"whole_command_{part}", figures, repetitions=n, threads=threads))


if __name__ == "__main__":
    main()
