"""A small folder of real pictures, and weights to start from: what the tutorial and the tests of the pages work on.

The pictures are CIFAR-10's where `UPCYCLE_DATA` has them, written as JPEGs; otherwise scikit-learn's handwritten
digits 0, 1 and 2 lie in the same folders. The weights stand in for those that timm would fetch: a network of timm
with the shape of its published weights, trained on the classes that are not among the photographs.
"""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from upcycle.core.frozen import fast_bf16

CLASSES = {"car": 1, "frog": 6, "ship": 8}
"""The photographs' classes, and their numbers in CIFAR-10."""


def cifar10() -> Path | None:
    """The training file of CIFAR-10, where there is one."""
    root = os.environ.get("UPCYCLE_DATA")
    file = Path(root) / "cifar10" / "train.parquet" if root else None
    return file if file is not None and file.is_file() else None


def pictures() -> Iterator[tuple[Image.Image, int]]:
    """Real pictures with their class numbers, one after another: photographs, or digits in their places."""
    if (file := cifar10()) is not None:
        import pyarrow.parquet as pq

        for batch in pq.ParquetFile(file).iter_batches(256):
            for row in batch.to_pylist():
                yield Image.open(io.BytesIO(row["img"]["bytes"])).convert("RGB"), row["label"]
        return
    from sklearn.datasets import load_digits

    found = load_digits()
    numbers = dict(enumerate(CLASSES.values()))
    others = [n for n in range(10) if n not in numbers.values()]
    for pixels, digit in zip(found.images, found.target.tolist(), strict=True):
        grey = Image.fromarray((pixels * 15.9).astype("uint8"))
        yield grey.convert("RGB"), numbers.get(digit, others[digit - 3] if digit >= 3 else 0)


def write(folder: Path, number: int, side: int = 64, skip: int = 0) -> None:
    """Write ``number`` JPEGs of each class into ``folder/CLASS``.

    Args:
        side: of the pictures, in pixels.
        skip: how many of each class are left out first.
    """
    seen = dict.fromkeys(CLASSES, 0)
    names = {label: name for name, label in CLASSES.items()}
    for picture, label in pictures():
        if (name := names.get(label)) is None or seen[name] >= skip + number:
            continue
        seen[name] += 1
        if seen[name] > skip:
            (folder / name).mkdir(parents=True, exist_ok=True)
            large = picture.resize((side, side), Image.Resampling.BICUBIC)
            large.save(folder / name / f"{seen[name]:04d}.jpg", quality=95)
        if min(seen.values()) >= skip + number:
            return


def others(number: int, side: int) -> tuple[Tensor, Tensor]:
    """Pictures of the other classes, uint8 (n, 3, side, side), and their class numbers."""
    found, labels = [], []
    for picture, label in pictures():
        if label in CLASSES.values():
            continue
        large = picture.resize((side, side), Image.Resampling.BICUBIC)
        found.append(torch.frombuffer(bytearray(large.tobytes()), dtype=torch.uint8).view(side, side, 3))
        labels.append(label)
        if len(labels) == number:
            break
    return torch.stack(found).permute(0, 3, 1, 2), torch.tensor(labels)


def weights(file: Path, name: str, number: int, epochs: int, side: int = 64, lr: float = 0.05) -> None:
    """Write weights for ``timm:NAME``, trained on ``number`` pictures of the other classes."""
    import timm
    from safetensors.torch import save_file

    torch.manual_seed(0)
    network = timm.create_model(name).to(memory_format=torch.channels_last)
    config = timm.get_pretrained_cfg(name)
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (config.mean, config.std))
    images, labels = others(number, side)
    optimizer = torch.optim.SGD(network.parameters(), lr, momentum=0.9, weight_decay=5e-4, nesterov=True)
    steps = epochs * -(-len(images) // 64)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, total_steps=steps)
    for _ in range(epochs):
        for index in torch.randperm(len(images)).split(64):
            x = (images[index] / 255 - mean) / std
            x = x.flip(3) if torch.rand(()) < 0.5 else x
            across, down = torch.randint(-side // 8, side // 8 + 1, (2,)).tolist()
            x = x.roll((down, across), (2, 3))
            with torch.autocast("cpu", torch.bfloat16, enabled=fast_bf16()):  # without support many times slower
                z = network(x.contiguous(memory_format=torch.channels_last))
            optimizer.zero_grad()
            F.cross_entropy(z.float(), labels[index]).backward()
            optimizer.step()
            schedule.step()
    save_file({key: value.contiguous() for key, value in network.state_dict().items()}, file)
