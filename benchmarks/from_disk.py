"""Images that are read from disk: the reader against the decoder, start-up, an epoch, and the memory of a process.

Makes JPEG files in a temporary folder, ten classes of them in train, val and test, and measures, each in a process of
its own:

- *decoder*: Pillow alone decodes files into arrays, in as many threads; nothing else happens.
- *reader*: the same files through a split, in shuffled order, a batch at a time.
- *batches*: the same with crop, flip and normalisation: what a loop gets.
- *load*: start-up, until the first batch is there.
- *computing*: steps of distillation on one batch that is in memory.
- *epoch*: as many steps of distillation on batches from disk; to be compared with decoding and computing together.
- *distill*: the whole command for one epoch, and its peak memory. Left out with ``--no_command``.

Run from the repository: ``python -m benchmarks.from_disk --images 100000``; ``--quick`` prints and records nothing.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import nn

from benchmarks.common import record
from upcycle.core.losses import kd_objective
from upcycle.core.recipe import Recipe
from upcycle.core.references import resolve
from upcycle.core.run import Run
from upcycle.data import Images, load
from upcycle.data.on_disk import AHEAD

TEACHER, STUDENT = "timm:mobilenetv3_small_100", "timm:mobilenetv3_small_050"
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
CLASSES, BASES = 10, 64
SHARES = {"train": 0.9, "val": 0.05, "test": 0.05}
CPU = torch.device("cpu")


def make(folder: Path, images: int, side: int) -> int:
    """Write the files; returns their bytes. Each is one of a few smooth pictures with noise, moved by an offset."""
    rng = np.random.default_rng(0)
    rows, columns = np.mgrid[: 2 * side, : 2 * side] * (12 / side)
    bases = []
    for _ in range(BASES):
        waves = [np.sin(rows * a + columns * b + c) for a, b, c in rng.uniform(-1.5, 1.5, (6, 3))]
        picture = 127 + 40 * np.stack([waves[0] + waves[1], waves[2] + waves[3], waves[4] + waves[5]], 2)
        bases.append((picture + rng.normal(0, 8, picture.shape)).clip(0, 255).astype(np.uint8))
    ends = np.cumsum([round(share * images) for share in SHARES.values()])
    for split in SHARES:
        for c in range(CLASSES):
            (folder / split / f"class {c}").mkdir(parents=True)

    def write(i: int) -> int:
        split = list(SHARES)[int(np.searchsorted(ends, i, "right").clip(0, len(SHARES) - 1))]
        top, left = (i * 7919) % side, (i * 104729) % side
        file = folder / split / f"class {i % CLASSES}" / f"{i:07}.jpg"
        Image.fromarray(bases[i % BASES][top : top + side, left : left + side]).save(file, quality=90)
        return file.stat().st_size

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return sum(pool.map(write, range(images), chunksize=64))


class Arms:
    """Measurements, each by its name; a method returns figures.

    Args:
        folder: of the files.
        words: the options.
    """

    def __init__(self, folder: Path, words: argparse.Namespace) -> None:
        self.folder, self.words = folder, words
        self.count = words.batch * words.steps

    def data(self) -> Images:
        """The set, on disk."""
        found: Images = load(
            self.folder, size=self.words.side, channels=3, keep_in_memory=False, num_workers=self.words.workers
        )
        return found.normalised(MEAN, STD)

    def order(self, data: Images) -> tuple[torch.Tensor, ...]:
        """The places of the batches that are read."""
        order = torch.randperm(len(data.train), generator=torch.Generator().manual_seed(0))[: self.count]
        return order.split(self.words.batch)

    def decoder(self) -> dict[str, float]:
        """Pillow alone, on as many files in another order than they lie in."""
        files = sorted((self.folder / "train").rglob("*.jpg"))
        order = torch.randperm(len(files), generator=torch.Generator().manual_seed(0))[: self.count].tolist()
        threads = max(1, self.words.workers)

        def decode(part: list[int]) -> int:
            total = 0
            for i in part:
                with Image.open(files[i]) as image:
                    total += np.asarray(image).shape[0]
            return total

        start = time.perf_counter()
        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(decode, [order[k::threads] for k in range(threads)]))
        return {"seconds": time.perf_counter() - start, "images": len(order)}

    def reader(self) -> dict[str, float]:
        """Pixels through the split."""
        images = self.data().train.images
        assert not isinstance(images, torch.Tensor)
        return self._timed(self.order(self.data()), images.ahead, lambda part: images.read(part))

    def batches(self) -> dict[str, float]:
        """Batches of a split with crop and flip."""
        split = self.data().augmented(("crop", "flip")).train
        return self._timed(
            self.order(self.data()),
            lambda plan: split.ahead((part, (0, 0)) for part, _ in plan),
            lambda part: split.batch(part, device=CPU, view=(0, 0)),
        )

    def _timed(
        self, parts: tuple[torch.Tensor, ...], ahead: Callable[[Iterable[Any]], Any], read: Callable[[Any], Any]
    ) -> dict[str, float]:
        start = time.perf_counter()
        with ahead((part, None) for part in parts):
            for part in parts:
                read(part)
        return {"seconds": time.perf_counter() - start, "images": sum(map(len, parts))}

    def load(self) -> dict[str, float]:
        """Start-up: from nothing to the first batch."""
        start = time.perf_counter()
        data = self.data()
        data.train.batch(torch.arange(self.words.batch), device=CPU)
        return {"seconds": time.perf_counter() - start, "images": sum(map(len, data.splits().values()))}

    def _learn(self, data: Images, held: bool) -> dict[str, float]:
        """Steps of distillation on batches from disk, or on one of them again and again."""
        torch.manual_seed(0)
        shape = (3, self.words.side, self.words.side)
        teacher, student = (
            resolve(name, pretrained=False, num_classes=CLASSES, input_shape=shape) for name in (TEACHER, STUDENT)
        )
        run, recipe = Run(seed=0, quiet=True), Recipe(epochs=1, batch_size=self.words.batch)
        frozen = run.frozen(teacher, None)
        net: nn.Module
        net, optimizer = run.setup(student.module, recipe)
        net.train()
        split = data.augmented(("crop", "flip")).train
        batch = split.batch(torch.arange(self.words.batch), device=CPU)
        steps, seen = iter(range(self.words.steps + 2)), 0
        start = 0.0
        loop = ((batch.images, batch.labels) for _ in steps) if held else self._from_disk(run, split)
        for step, (images, labels) in enumerate(loop):
            if step == 2:  # what is done once is done
                start, seen = time.perf_counter(), 0
            loss = kd_objective(net(images), frozen(images), labels, temperature=4.0, w_kd=0.9, w_ce=0.1)
            run.step(loss, optimizer, recipe)
            seen += len(images)
            if step == self.words.steps + 1:
                break
        return {"seconds": time.perf_counter() - start, "images": seen}

    def _from_disk(self, run: Run, split: Any) -> Iterable[Any]:
        steps = self.words.steps + 2 + AHEAD  # as much is read after the last step as was before the first
        return ((b.images, b.labels) for b in run.batches(split, self.words.batch, steps=steps))

    def computing(self) -> dict[str, float]:
        """Steps on one batch in memory."""
        return self._learn(self.data(), held=True)

    def epoch(self) -> dict[str, float]:
        """Steps on batches from disk."""
        return self._learn(self.data(), held=False)

    def distill(self) -> dict[str, float]:
        """The whole command for one epoch."""
        import upcycle

        shape = (3, self.words.side, self.words.side)
        teacher = resolve(TEACHER, pretrained=False, num_classes=CLASSES, input_shape=shape)
        start = time.perf_counter()
        with tempfile.TemporaryDirectory() as out:
            upcycle.distill(
                teacher=teacher,
                student=STUDENT,
                data=self.folder,
                student_weights="fresh",
                out=Path(out) / "run",
                quiet=True,
                keep_in_memory=False,
                num_workers=self.words.workers,
                recipe={"epochs": 1, "batch_size": self.words.batch},
            )
        return {"seconds": time.perf_counter() - start}


def measured(arm: str, folder: Path, words: argparse.Namespace) -> dict[str, float]:
    """The figures of an arm, from a process of its own, with its peak memory in GB."""
    options = [f"--{key}={getattr(words, key)}" for key in ("batch", "steps", "side", "workers", "threads")]
    command = [sys.executable, "-m", "benchmarks.from_disk", f"--arm={arm}", f"--folder={folder}", *options]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{arm} failed:\n{done.stderr}")
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def asked() -> argparse.Namespace:
    """The options of the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--images", type=int, default=100_000, help="JPEG files that are made")
    parser.add_argument("--side", type=int, default=224)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--steps", type=int, default=100, help="batches that are read and learnt from")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1, help="of torch")
    parser.add_argument("--place", type=Path, default=None, help="where the temporary folder is made")
    parser.add_argument("--no_command", action="store_true", help="leave the whole command out")
    parser.add_argument("--quick", action="store_true", help="a few small images, printed only")
    parser.add_argument("--arm", default="", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    words = parser.parse_args()
    if words.quick:
        words.images, words.side, words.batch, words.steps = 600, 64, 16, 8
    return words


def main() -> None:
    """Make the files, measure, print and record."""
    words = asked()
    torch.set_num_threads(words.threads)
    if words.arm:
        found = getattr(Arms(words.folder, words), words.arm)()
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        print(json.dumps({**found, "peak_gb": round(peak, 3)}))
        return
    words.steps = min(words.steps, int(SHARES["train"] * words.images) // words.batch - 2)
    with tempfile.TemporaryDirectory(dir=words.place) as place:
        folder = Path(place) / "photographs"
        start = time.perf_counter()
        size = make(folder, words.images, words.side)
        print(f"{words.images:,} files of {size / words.images / 1000:.0f} kB in {time.perf_counter() - start:.0f} s")
        names = ["load", "decoder", "reader", "batches", "decoder", "reader", "computing", "epoch"]
        names += [] if words.no_command else ["distill"]
        runs: dict[str, list[dict[str, float]]] = {}
        for name in names:
            runs.setdefault(name, []).append(measured(name, folder, words))
            print(name, runs[name][-1], flush=True)
    best = {name: min(found, key=lambda f: f["seconds"]) for name, found in runs.items()}
    alone = best["decoder"]["seconds"] / best["decoder"]["images"]
    images = best["epoch"]["images"]
    parts = images * alone + best["computing"]["seconds"] * images / best["computing"]["images"]
    figures = {
        **{name: {key: round(value, 4) for key, value in found.items()} for name, found in best.items()},
        "decoder_images_per_second": round(1 / alone, 1),
        "reader_over_decoder": round(best["reader"]["seconds"] / best["reader"]["images"] / alone, 3),
        "epoch_over_parts": round(best["epoch"]["seconds"] / parts, 3),
    }
    print(json.dumps(figures, indent=1))
    if not words.quick:
        settings = {key: getattr(words, key) for key in ("images", "side", "batch", "steps", "workers", "threads")}
        path = record("from_disk", figures, **settings, bytes=size, teacher=TEACHER, student=STUDENT)
        print(f"\n{path.relative_to(path.parents[2])}")


if __name__ == "__main__":
    main()
