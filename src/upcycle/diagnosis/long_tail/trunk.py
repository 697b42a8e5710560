"""A trained network apart from its classifier: the counts of its classes, and the features of every image, kept."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized

from upcycle.core.batches import Batch
from upcycle.core.errors import UserError, unknown
from upcycle.core.frequency import counts_of
from upcycle.core.heads import classifier, features, linear
from upcycle.core.models import Model, copy_of, source_of
from upcycle.core.patterns import Values
from upcycle.core.run import Run
from upcycle.data.collection import Samples
from upcycle.diagnosis.errors.class_channels import aligned, labelled

if TYPE_CHECKING:
    from upcycle.core.method import Method
    from upcycle.data.images import Images


@dataclass(eq=False, kw_only=True)
class Rows(Samples):
    """The features of a split; its batches are what :meth:`upcycle.core.run.Run.batches` trains a head on.

    Args:
        x: float32 (n, d), on the CPU.
        labels, ids, augment, ordered: see :class:`upcycle.data.collection.Samples`; all labels are known.
    """

    x: Tensor

    def batch(self, index: Tensor, *, device: torch.device, view: tuple[int, int] | None = None) -> Batch:
        """The rows ``index``; there is nothing to augment."""
        x, y = self.x.index_select(0, index), self.labels.index_select(0, index)
        return Batch(x.to(device), y.to(device), index.to(device))

    def subset(self, index: Tensor) -> Rows:
        """The rows ``index``, in that order, also some of them several times."""
        return replace(self, x=self.x[index], labels=self.labels[index], ids=self.ids[index])

    def contents(self) -> tuple[Tensor, ...]:
        """The features."""
        return (self.x,)


class Trunk(NamedTuple):
    """A network, the data as it expects them, and its classifier.

    Args:
        source: the network, which stays as it is.
        data: their labels are the numbers of its logits.
        name: of the classifier in it.
        layer: the classifier: W (k, d), and b where it has one.
        n: int64 (k,), labelled training images of each class.
    """

    source: Model
    data: Images
    name: str
    layer: nn.Linear
    n: Tensor

    @classmethod
    def of(cls, method: Method, data: Images) -> Trunk:
        """The trunk of the network that a method repairs."""
        source = method.model("source", data)
        data, name = aligned(source, data), classifier(source)
        n = torch.tensor(counts_of(data.train.labels, len(source.classes)))
        return cls(source, data, name, linear(source.module, name), n)

    def rows(self, run: Run, *names: str) -> list[Rows]:
        """The features of the labelled images of some splits, from the stage ``features`` of the run."""
        splits = [labelled(self.data.splits()[name]) for name in names]
        like = [Values((len(split), self.layer.in_features)) for split in splits]
        kept = run.stage("features", lambda: features(run, self.source, *splits), like=tuple(like))
        made = zip(kept, splits, strict=True)
        return [Rows(x=x, labels=split.labels, ids=split.ids) for x, split in made]

    @torch.no_grad()
    def head(self, W: Float[Tensor, "k d"], b: Float[Tensor, " k"]) -> nn.Linear:
        """A classifier of the same form with other values; one without a bias leaves ``b`` out."""
        made = copy_of(self.layer)
        assert isinstance(made, nn.Linear)
        made.weight.copy_(W)
        if made.bias is not None:
            made.bias.copy_(b)
        return made

    def bias(self) -> Float[Tensor, " k"]:
        """The b of the classifier; zeros where it has none."""
        W, b = self.layer.weight.detach(), self.layer.bias
        return W.new_zeros(len(W)) if b is None else b.detach()

    def ended(self, run: Run, head: nn.Module, held: Rows | None = None) -> nn.Module:
        """A copy of the network that ends in ``head``; this is measured on the features ``held`` of held-out images."""
        if held is not None:
            run.evaluate(head.to(run.device), held)
        module = copy_of(self.source.module)
        module.set_submodule(self.name, head)
        return run.plain(module).requires_grad_(True)


def number(source: Model, name: str | None) -> int | None:
    """The number of the class of that name, if there is a name.

    Raises:
        UserError: the network has no such class.
    """
    if name is None:
        return None
    if name not in source.classes:
        raise unknown(f"class of {source.name}", name, source.classes)
    return source.classes.index(name)


def problems(method: Method, data: Images, *, bias: str = "", background: str | None = None) -> list[str]:
    """The reasons why the classifier of a network cannot be repaired, in words.

    Args:
        bias: what would serve where the classifier has no bias, for a method that changes it; "" for others.
        background: a class that must be there.
    """
    source = method.model("source", data)
    if source.input_shape[0] != data.shape[0]:
        return [f"{source.name} takes {source.input_shape[0]} input channels and the images have {data.shape[0]}"]
    try:
        layer = (trunk := Trunk.of(method, data)).layer
        number(source, background)
    except UserError as error:
        return [str(error).rstrip(".")]
    if is_parametrized(layer):
        return [f"the weight of the classifier of {source.name} is computed from other weights, and cannot be replaced"]
    found = []
    if none := [name for name, count in zip(source.classes, trunk.n.tolist(), strict=True) if not count]:
        found.append(f"{data.name} has no labelled training image of {', '.join(none[:3])}")
    if bias and layer.bias is None:
        found.append(f"the classifier of {source.name} has no bias, which would be changed; {bias}")
    return found


def named(method: Method, module: nn.Module, data: Images) -> Model:
    """The product of a repair that is a linear classifier again: the source's architecture."""
    source = method.model("source", data)
    return replace(source, module=module, lineage=None, name=f"{source.name}-{method.card.name}")


def recorded(method: Method, module: nn.Module, data: Images, operation: str, options: dict[str, Any]) -> Model:
    """The product of a repair whose classifier is none of the source's architecture.

    Args:
        operation: what it is rebuilt by, see :mod:`upcycle.diagnosis.long_tail.rebuild`.
        options: its arguments, beside the source and the name of the classifier.
    """
    made = named(method, module, data)
    origin, layer = source_of(made), classifier(method.model("source", data))
    if origin is None:
        return replace(made, options={})
    return replace(made, reference=f"diagnosis:{operation}", options={"source": origin, "layer": layer, **options})
