"""Networks whose answers are reduced to logits, or to some of them."""

from __future__ import annotations

from torch import Tensor, nn


class Logits(nn.Module):
    """A network that answers with an object, a mapping or a tuple, reduced to its logits.

    Takes ``output.logits``, ``output["logits"]`` or the first element of a tuple; a tensor passes as it is.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        output = self.network(images)
        if isinstance(output, Tensor):
            return output
        if hasattr(output, "logits"):
            return output.logits
        return output["logits"] if isinstance(output, dict) else output[0]


class Columns(nn.Module):
    """A network of which only some outputs are read, in another order: ``network(images)[:, columns]``.

    Args:
        network: maps images to logits (b, k).
        columns: int64 (j,), for each of the j new outputs the old one that it reads.
    """

    columns: Tensor

    def __init__(self, network: nn.Module, columns: Tensor) -> None:
        super().__init__()
        self.network = network
        self.register_buffer("columns", columns)

    def forward(self, images: Tensor) -> Tensor:
        return self.network(images)[:, self.columns]
