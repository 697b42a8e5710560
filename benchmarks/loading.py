"""Images a second with crop and flip: ours in the training process, torchvision's DataLoader with 2 workers.

Both go once over 10,000 CIFAR-10 images in shuffled batches of 128 and end with normalised float32 batches
in the training process. torchvision's side does what its CIFAR10 class does: uint8 arrays in memory, a PIL
image made of each, RandomCrop(32, padding=4), RandomHorizontalFlip, ToTensor, Normalize; its workers are
started before the clock. Run from the repository: ``python -m benchmarks.loading``.
"""

from __future__ import annotations

import os
import sys

import torch
from torch.utils.data import DataLoader, Dataset

from benchmarks.common import alternate, record
from upcycle.data import Images, load

IMAGES, BATCH, WORKERS, REPETITIONS = 10_000, 128, 2, 9
MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)


class Peer(Dataset[tuple[torch.Tensor, int]]):
    """torchvision's CIFAR10, over arrays that are here already."""

    def __init__(self, data: Images) -> None:
        from torchvision import transforms

        self.images, self.labels = data.train.images.numpy(), data.train.labels.tolist()
        self.transform = transforms.Compose([
            transforms.RandomCrop(32, padding=4), transforms.RandomHorizontalFlip(), transforms.ToTensor(),
            transforms.Normalize(MEAN, STD)])  # fmt: skip

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, i: int) -> tuple[torch.Tensor, int]:
        from PIL import Image

        return self.transform(Image.fromarray(self.images[i])), self.labels[i]


def measured(repetitions: int) -> dict[str, list[float]]:
    """The seconds of one pass over the images, of every arm in turn."""
    data = load("cifar10").subset(torch.arange(IMAGES)).normalised(MEAN, STD)
    peer = DataLoader(Peer(data), batch_size=BATCH, shuffle=True, num_workers=WORKERS, persistent_workers=True)
    device = torch.device("cpu")

    def ours(operations: tuple[str, ...]) -> None:
        split = data.augmented(operations).train
        for index in torch.randperm(IMAGES).split(BATCH):
            split.batch(index, device=device, view=(0, 1))

    def theirs() -> None:
        for _ in peer:
            pass

    return alternate(
        {
            "upcycle, crop and flip": lambda: ours(("crop", "flip")),
            "upcycle, crop, flip and colour": lambda: ours(("crop", "flip", "color")),
            "upcycle, as they are": lambda: ours(()),
            f"torchvision, {WORKERS} workers, crop and flip": theirs,
        },
        repetitions,
    )


def main() -> None:
    """Time, print and record."""
    if not os.environ.get("UPCYCLE_DATA"):
        sys.exit("Skipped: this benchmark needs CIFAR-10; set UPCYCLE_DATA to the folder that has it.")
    torch.set_num_threads(2)
    times = measured(REPETITIONS)
    batches = -(-IMAGES // BATCH)
    best = {name: min(seconds) for name, seconds in times.items()}
    *_, peer_best = best.values()
    print(f"{'':44}{'images/s':>12}{'ms/batch':>10}{'times':>8}")
    for name, seconds in best.items():
        rate, batch = IMAGES / seconds, 1000 * seconds / batches
        print(f"{name:44}{rate:12,.0f}{batch:10.2f}{peer_best / seconds:8.1f}")
    figures = {
        name: {
            "images_per_second": round(IMAGES / best[name]),
            "milliseconds_per_batch": round(1000 * best[name] / batches, 3),
            "times_torchvision": round(peer_best / best[name], 2),
            "seconds": [round(s, 4) for s in times[name]],
        }
        for name in best
    }
    path = record("loading", figures, images=IMAGES, batch=BATCH, workers=WORKERS, repetitions=REPETITIONS,
                  threads=torch.get_num_threads(), statistic="minimum")  # fmt: skip
    print(f"\n{path.relative_to(path.parents[2])}")


if __name__ == "__main__":
    main()
