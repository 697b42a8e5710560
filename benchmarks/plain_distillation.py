"""The rival of `benchmarks.whole_command`: distillation as a careful person writes it with PyTorch and torchvision.

It has what such scripts are tuned with: bf16 autocast for both networks, channels_last memory, two loading workers, the
teacher under `inference_mode`, a fused optimiser. It trains by the recipe of `upcycle distill` (KD with T = 4, SGD with
Nesterov momentum, a cosine over all steps, crop and flip), measures the student on the validation images after each
epoch, and teacher and student on the test images. It imports nothing of upcycle.
"""

from __future__ import annotations

import argparse
import io
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, Subset
from torchvision import datasets
from torchvision.transforms import v2

MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)


class Block(nn.Module):
    """Two 3x3 convolutions around which the input goes past, with zeros for new channels."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.stride, self.new = stride, outputs - inputs

    def forward(self, x: Tensor) -> Tensor:
        out = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        if self.new:
            half = self.new // 2
            x = F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, half, self.new - half))
        return F.relu(out + x)


class ResNet(nn.Module):
    """ResNet of 6 n + 2 layers for CIFAR (He et al., arXiv:1512.03385)."""

    def __init__(self, n: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16)
        widths = (16, 16, 32, 64)
        for i in (1, 2, 3):
            first = Block(widths[i - 1], widths[i], 1 if i == 1 else 2)
            rest = [Block(widths[i], widths[i], 1) for _ in range(n - 1)]
            self.add_module(f"layer{i}", nn.Sequential(first, *rest))
        self.linear = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(x)))
        for stage in (self.layer1, self.layer2, self.layer3):
            x = stage(x)
        return self.linear(x.mean((2, 3)))


class Table(Dataset):  # type: ignore[type-arg]
    """CIFAR-10 from a folder of Parquet files with encoded images, or decoded already from ``SPLIT.pt``."""

    def __init__(self, folder: Path, split: str, transform: Any) -> None:
        self.transform, decoded = transform, folder / f"{split}.pt"
        if decoded.exists():
            self.images, self.labels = torch.load(decoded)
        else:
            import pyarrow.parquet as pq

            table = pq.read_table(folder / f"{split}.parquet")
            self.images = table["img"].combine_chunks().field("bytes").to_pylist()
            self.labels = table["label"].to_pylist()

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, i: int) -> tuple[Tensor, int]:
        pixels = self.images[i]
        image = pixels if isinstance(pixels, Tensor) else Image.open(io.BytesIO(pixels)).convert("RGB")
        return self.transform(image), int(self.labels[i])


def networks(pair: Sequence[str], weights: Path | None) -> tuple[nn.Module, nn.Module]:
    """Teacher and student: depths of a CIFAR ResNet, or names of timm with ten classes and fresh weights."""
    if all(name.isdigit() for name in pair):
        teacher, student = (ResNet((int(name) - 2) // 6) for name in pair)
    else:
        import timm

        teacher, student = (timm.create_model(name, num_classes=10) for name in pair)
    if weights is not None:
        teacher.load_state_dict(torch.load(weights))
    return teacher.eval(), student


def splits(data: Path, size: int, images: int) -> tuple[Any, Any, Any]:
    """Train, validation and test: of a folder of images the folders, of CIFAR-10 the last 5,000 to validate."""
    last = [v2.ToImage(), v2.ToDtype(torch.float32, scale=True), v2.Normalize(MEAN, STD)]
    first = [] if (data / "train.parquet").exists() or (data / "train.pt").exists() else [v2.Resize((size, size))]
    augmented = v2.Compose([*first, v2.RandomCrop(size, padding=size // 8), v2.RandomHorizontalFlip(), *last])
    plain = v2.Compose([*first, *last])
    if first:
        folders = (("train", augmented), ("val", plain), ("test", plain))
        return tuple(datasets.ImageFolder(data / name, kind) for name, kind in folders)  # type: ignore[return-value]
    train, validation = Table(data, "train", augmented), Table(data, "train", plain)
    place = torch.randperm(len(train), generator=torch.Generator().manual_seed(0))
    some = Subset(train, place[:images].tolist())
    return some, Subset(validation, place[-5000:].tolist()), Table(data, "test", plain)


@torch.inference_mode()
def accuracy(network: nn.Module, loader: Any) -> float:
    """The share of right answers."""
    network.eval()
    right = total = 0
    for x, y in loader:
        with torch.autocast("cpu", torch.bfloat16):
            z = network(x.to(memory_format=torch.channels_last))
        right, total = right + int((z.argmax(1) == y).sum()), total + len(y)
    return right / total


def main() -> None:
    """Train, measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--pair", nargs=2, default=("56", "20"), help="teacher and student")
    parser.add_argument("--weights", type=Path, help="of the teacher, as torch.save wrote them")
    parser.add_argument("--images", type=int, default=45_000, help="to train on")
    parser.add_argument("--size", type=int, default=32)
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--workers", type=int, default=2)
    words = parser.parse_args()
    torch.manual_seed(0)
    teacher, student = networks(words.pair, words.weights)
    teacher, student = (m.to(memory_format=torch.channels_last) for m in (teacher, student))  # type: ignore[call-overload]
    train, validation, test = splits(words.data, words.size, words.images)
    loader = DataLoader(train, 128, shuffle=True, num_workers=words.workers)
    beside = [DataLoader(split, 256, num_workers=words.workers) for split in (validation, test)]
    optimizer = torch.optim.SGD(
        student.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4, nesterov=True, fused=True
    )
    step, steps = 0, words.epochs * len(loader)
    for epoch in range(words.epochs):
        student.train()
        for x, y in loader:
            x = x.to(memory_format=torch.channels_last)
            for group in optimizer.param_groups:
                group["lr"] = 0.05 * (1 + math.cos(math.pi * step / steps))
            with torch.autocast("cpu", torch.bfloat16):
                with torch.inference_mode():
                    z_t = teacher(x)
                z_s = student(x)
            z_s, z_t = z_s.float() / 4, z_t.float() / 4
            kl = F.kl_div(F.log_softmax(z_s, 1), F.log_softmax(z_t, 1), reduction="batchmean", log_target=True)
            loss = 0.1 * F.cross_entropy(4 * z_s, y) + 0.9 * 16 * kl
            loss.backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            step += 1
        print(f"epoch {epoch}: {accuracy(student, beside[0]):.4f} on validation images")
    print(f"teacher {accuracy(teacher, beside[1]):.4f}, student {accuracy(student, beside[1]):.4f} on test images")


if __name__ == "__main__":
    main()
