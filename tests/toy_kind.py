"""A kind of inputs and a task that nothing in the package names: rows of numbers, and scores with a mean error."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from upcycle.core.batches import Batch
from upcycle.core.errors import UserError, require
from upcycle.core.outputs import Around
from upcycle.data.collection import Collection, Samples


class Rows:
    is_cuda, ndim = False, 2

    def __init__(self, of: Tensor) -> None:
        self.of, self.dtype, self.device = of, of.dtype, of.device

    def __len__(self) -> int:
        return len(self.of)

    def __getitem__(self, part: Any) -> Rows:
        return Rows(self.of[part])

    def to(self, *where: Any) -> Rows:
        return Rows(self.of.to(*where))

    def double(self) -> Rows:
        return Rows(self.of.double())

    def clone(self) -> Rows:
        return Rows(self.of.clone())


class OnRows(Around):
    def forward(self, rows: Rows) -> Tensor:
        return self.network(rows.of)


@dataclass(frozen=True)
class Table:
    kind: ClassVar[str] = "table"
    noun: ClassVar[str] = "rows"
    width: int

    def example(self, n: int) -> Rows:
        return Rows(torch.randn(n, self.width, generator=torch.Generator().manual_seed(0)))

    def check(self) -> None:
        require(self.width > 0, f"A table has columns, and not {self.width}.")

    def adapted(self, module: nn.Module) -> nn.Module:
        return module if any(isinstance(m, OnRows) for m in module.modules()) else OnRows(module)

    def problems(self, data: Any) -> list[str]:
        return [] if data == self else [f"it takes {self}, and not {data}"]

    def plain(self) -> dict[str, Any]:
        return {"width": self.width}

    def __str__(self) -> str:
        return f"rows of {self.width} numbers"


@dataclass(frozen=True)
class Errors:
    score: float
    count: int

    @property
    def figures(self) -> dict[str, float]:
        return {"mae": self.score}


class Summed:
    def __init__(self) -> None:
        self.total, self.count = 0.0, 0

    def add(self, answers: Tensor, targets: Tensor) -> None:
        known = ~targets.isnan()
        self.total += float((answers - targets)[known].abs().sum())
        self.count += int(known.sum())

    def join(self, other: Summed) -> None:
        self.total, self.count = self.total + other.total, self.count + other.count

    def result(self) -> Errors:
        return Errors(self.total / self.count, self.count)


@dataclass(frozen=True)
class Scores:
    name: ClassVar[str] = "scores"
    figure: ClassVar[str] = "mean error"
    unit: ClassVar[Any] = "number"
    higher: ClassVar[bool] = False
    names: tuple[str, ...] = ("price",)

    def outputs(self, answer: Any, n: int, noun: str = "samples") -> int:
        if isinstance(answer, Tensor) and answer.shape == (n, len(self.names)):
            return len(self.names)
        raise UserError(f"gives no {', '.join(self.names)} of {noun}.")

    def judge(self, *, classes: int | None = None, name: str = "the network") -> Summed:
        return Summed()

    def agreement(self, a: Tensor, b: Tensor) -> float:
        return float(torch.isclose(a, b, atol=1e-3).double().mean())

    def loss(self, answers: Tensor, targets: Tensor) -> Tensor:
        return (answers - targets).nan_to_num().abs().sum() / len(targets)

    def known(self, targets: Tensor) -> Tensor:
        return ~targets.isnan().any(1)

    def plain(self) -> dict[str, Any]:
        return {"names": list(self.names)}


@dataclass(eq=False, kw_only=True)
class TableSplit(Samples):
    rows: Tensor
    task: Any = Scores()

    def batch(self, index: Tensor, *, device: torch.device, view: tuple[int, int] | None = None) -> Batch:
        return Batch(Rows(self.rows[index].to(device)), self.labels[index].to(device), index.to(device))

    def contents(self) -> tuple[Tensor, ...]:
        return (self.rows,)


class TableSet(Collection):
    @property
    def takes(self) -> Table:
        return Table(self.train.rows.shape[1])  # type: ignore[attr-defined]


def prices(n: int = 96, width: int = 3) -> TableSet:
    """Rows whose price is the sum of their numbers, a few unknown."""
    x = torch.randn(n, width, generator=torch.Generator().manual_seed(1))
    y = x.sum(1, keepdim=True)
    y[::7] = torch.nan
    parts = [TableSplit(rows=x[i::3], labels=y[i::3], ids=torch.arange(n)[i::3]) for i in range(3)]
    return TableSet(name="prices", classes=("price",), train=parts[0], validation=parts[1], test=parts[2])
