"""The kinds of streams, and the way to one from its name.

A stream is written ``KIND:DATA/TASKS``: ``splits:cifar10/5``, ``splits:digits/2+1`` (two classes, then one at a time),
``permuted:mnist/10``, ``rotated:mnist/20``, ``parts:mnist/5`` (a random fifth of the images at a time),
``drifting:mnist`` and ``folders:PATH`` (a folder of images a task). Nodes and graphs come as ``splits:cora/3``,
``parts:cora/5`` and ``tasks:PATH`` (a set of graphs a task).
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from upcycle.core.errors import UserError, require, unknown
from upcycle.core.reading import Reading
from upcycle.core.task import CLASSIFICATION
from upcycle.data.augment import uniform
from upcycle.data.collection import Collection, draw
from upcycle.data.folder_streams import folder_stream
from upcycle.data.graph_sources import is_graphs
from upcycle.data.graph_streams import graph_tasks, require_two
from upcycle.data.images import Images, ImageSplit, as_images
from upcycle.data.labels import relabelled
from upcycle.data.pixels import Size
from upcycle.data.sources import check_reference, load
from upcycle.data.streams import Scenario, Stream

KINDS = ("splits", "permuted", "rotated", "parts", "drifting", "folders", "tasks")
FOLDERS = {"folders": "a folder of images", "tasks": "a set of graphs"}
"""The things that lie in a folder for each task."""
COUNTED = ("splits", "permuted", "rotated", "parts")
"""The kinds whose number of tasks stands in their name."""

_SPEC = re.compile(r"(?P<kind>[a-z]+):(?P<data>.+?)(/(?P<count>\d+(\+\d+|(,\d+)+)?))?")


def check_stream(reference: str) -> None:
    """Raise :class:`UserError` at once for a stream that cannot be made (cheap: no images are read)."""
    kind, data, _ = _parts(reference)
    if kind in FOLDERS:
        require(Path(data).expanduser().is_dir(), f"There is no folder {data} with {FOLDERS[kind]} for each task.")
        return
    _require_number(reference, kind, data)
    check_reference(data)


def _require_number(reference: str, kind: str, data: str) -> None:
    """Say where something else stands in place of the number of tasks, and so was read as part of the data's name."""
    name, stroke, count = data.rpartition("/")
    if kind in COUNTED and stroke and not _is_there(data) and _is_there(name):
        more = ", 2+1 for two classes and then one at a time, or the classes of each task, as in 3,2,2"
        raise UserError(
            f"'{count}' in {reference} is no number of tasks; write {kind}:{name}/2{more if kind == 'splits' else ''}."
        )


def _is_there(data: str) -> bool:
    try:
        check_reference(data)
    except UserError:
        return False
    return True


def is_of_graphs(reference: str) -> bool:
    """Whether a stream is of graphs or nodes, by its name."""
    kind, data, _ = _parts(reference)
    return kind == "tasks" or is_graphs(data)


def _parts(reference: str) -> tuple[str, str, str]:
    found = _SPEC.fullmatch(reference)
    if not found:
        raise UserError(f"A stream is written KIND:DATA/TASKS, for example splits:cifar10/5, not '{reference}'.")
    if found["kind"] not in KINDS:
        raise unknown("kind of stream", found["kind"], KINDS)
    if found["kind"] in COUNTED:
        _require_some(reference, found["count"] or "")
    return found["kind"], found["data"], found["count"] or ""


def _require_some(name: str, count: str) -> None:
    """Each number behind the stroke is one of tasks, or of the classes of a task."""
    if "0" in (number.lstrip("0") or "0" for number in re.findall(r"\d+", count)):
        what = "a task without classes" if set(count) & {"+", ","} else "no task"
        raise UserError(f"{name} has {what}; each number behind the / is 1 or more.")


def stream(
    reference: str | Collection,
    *,
    tasks: str = "",
    scenario: Scenario | None = None,
    shuffle: int | None = None,
    few: int | None = None,
    size: Size | None = None,
    channels: int | None = None,
    reading: Reading | None = None,
    columns: tuple[str, str] = ("", ""),
    long_tail: float | None = None,
    keep_in_memory: bool | None = None,
    num_workers: int | None = None,
) -> Stream:
    """A stream from its name, or splits of data that are loaded already.

    Args:
        reference: see this module's docstring; or a :class:`Collection`, whose classes are split.
        tasks: of a :class:`Collection`: how its classes are split, as after the stroke of a name: ``5`` tasks of
            nearly equally many classes, ``2+1`` for two and then one at a time, or ``2,3,5``.
        scenario: class-incremental by default for splits, folders and sets of graphs, domain-incremental for
            permuted and rotated images and for parts (the only one), general for drifting ones.
        shuffle: draws another order of classes (splits) or tasks (folders, tasks) from this seed.
        few: only so many training samples of each class in each task, drawn with a fixed seed.
        size, channels, reading, columns, keep_in_memory, num_workers: as in :func:`upcycle.data.load`.
        long_tail: keep only such a tail of the training images, see :meth:`Images.long_tailed`; not of folders.

    Raises:
        UserError: for what is unknown, not found, or cannot be split so.
    """
    if isinstance(reference, Collection):
        _require_classes(reference)
        if long_tail is not None:
            reference = as_images(reference).long_tailed(long_tail, 0)
        name, whole = f"splits:{reference.name}/{tasks}", cast("Images", reference)
        made = _splits(name, whole, tasks, scenario or "class", shuffle)
        return _few(made, few)
    kind, data, count = _parts(reference)
    kept: dict[str, Any] = {"keep_in_memory": keep_in_memory, "num_workers": num_workers}
    require(kind not in FOLDERS or not count, f"Each folder in {data} is a task, so leave out /{count}.")
    if kind == "tasks":
        require(long_tail is None, "A long tail is one of images, and these are graphs; leave out long_tail.")
        require(size is None and not any(columns), "Graphs have no size and no columns of images; leave these out.")
        return _few(graph_tasks(reference, Path(data).expanduser(), scenario or "class", shuffle), few)
    if kind == "folders":
        require(
            long_tail is None, f"Each folder in {data} is a task with the images that are in it; leave out long_tail."
        )
        read = partial(load, size=size, channels=channels, columns=columns, least_classes=1, **kept)
        root, reading = Path(data).expanduser(), reading or Reading()
        return _few(folder_stream(reference, root, scenario or "class", shuffle, read, reading), few)
    _require_number(reference, kind, data)
    images = load(data, size=size, channels=channels, reading=reading, columns=columns, **kept)
    _require_classes(images)
    if long_tail is not None:
        images, reference = as_images(images).long_tailed(long_tail, 0), f"{reference}, a long tail of {long_tail:g}"
    if kind == "splits":
        return _few(_splits(reference, images, count, scenario or "class", shuffle), few)
    require(
        shuffle is None, f"The order of the tasks of {kind}: streams is part of their definition; leave out shuffle."
    )
    images = images if kind == "parts" else as_images(images)
    if kind == "drifting":
        require(not count, f"A drifting stream has no tasks, so leave out /{count}.")
        require(scenario in (None, "general"), "A drifting stream has no tasks: its scenario is general.")
        return _few(_drifting(reference, images), few)
    require(scenario in (None, "domain"), f"A {kind} stream shows the same classes all along: its scenario is domain.")
    require(count.isdigit(), f"{kind}:{data} needs the number of its tasks: {kind}:{data}/10.")
    if kind == "parts":
        return _few(portions(reference, images, int(count)), few)
    change = _permuted if kind == "permuted" else _rotated(int(count))
    return _few(_domains(reference, images, int(count), change), few)


def _require_classes(data: Collection) -> None:
    """Each sample has to be of one class."""
    require(bool(data.classes), f"{data.name} has no labels, so there are no classes to make a stream of.")
    require(
        data.task == CLASSIFICATION,
        f"A stream is made of classes, one a sample, and the task of {data.name} is {data.task.name}.",
    )


def _few(made: Stream, few: int | None) -> Stream:
    if few is None:
        return made
    require(few >= 2, f"few takes at least 2 {made.base.noun} a class, not {few}.")
    make = made.make

    def fewer(t: int) -> Images:
        images = make(t)
        counts = [few] * len(made.classes)
        return images.subset(draw(images.train.labels, images.train.ids, counts, 0, "few"))

    return dataclasses.replace(
        made, make=fewer, name=f"{made.name}, {few} {made.base.noun} a class", order={**made.order, "few": few}
    )


def _sizes(count: str, k: int, name: str) -> list[int]:
    """How many classes each task has."""
    _require_some(f"splits:{name}/{count}", count)
    if "+" in count:
        first, then = map(int, count.split("+"))
        require(
            then >= 1 and first >= 1 and (k - first) % then == 0 and first <= k,
            f"The {k} classes of {name} cannot be split into {first} and then {then} at a time.",
        )
        return [first, *[then] * ((k - first) // then)]
    if "," in count:
        sizes = [int(n) for n in count.split(",")]
        require(sum(sizes) == k and min(sizes) >= 1, f"{count} adds up to {sum(sizes)} classes, and {name} has {k}.")
        return sizes
    require(count.isdigit(), f"splits:{name} needs the number of its tasks: splits:{name}/{min(5, k)}.")
    n = int(count)
    require(n <= k, f"The {k} classes of {name} do not divide into {n} tasks, for each needs at least one.")
    return [k // n + (t < k % n) for t in range(n)]  # where they do not divide, the first tasks have one more


def _splits(name: str, images: Images, count: str, scenario: Scenario, shuffle: int | None) -> Stream:
    """The classes of one set, some at a time."""
    require(
        scenario in ("class", "task", "general"), "Splits bring new classes: their scenario is class, task or general."
    )
    k = len(images.classes)
    if not isinstance(images, Images):
        require_two(images)
    places = torch.arange(k)
    if shuffle is not None:
        places = torch.randperm(k, generator=torch.Generator().manual_seed(shuffle))
        images = relabelled(images, tuple(images.classes[i] for i in places.tolist()))
    tasks, start = [], 0
    for n in _sizes(count, k, images.name):
        tasks.append(tuple(range(start, start + n)))
        start += n
    if scenario == "general":  # one pass over the classes in their order, no boundaries
        order = images.train.labels.argsort(stable=True)
        return Stream(
            name=name,
            scenario=scenario,
            classes=images.classes,
            tasks=(tuple(range(k)),),
            make=lambda t: images.subset(order),
            base=images,
            order={"classes": places.tolist()},
            derived=True,
        )

    def make(t: int) -> Images:
        columns = torch.tensor(tasks[t])

        def of(split: ImageSplit) -> ImageSplit:
            return split.subset(torch.isin(split.labels, columns).nonzero()[:, 0])

        return dataclasses.replace(
            images, train=of(images.train), validation=of(images.validation), test=of(images.test)
        )

    return Stream(
        name=name,
        scenario=scenario,
        classes=images.classes,
        tasks=tuple(tasks),
        make=make,
        base=images,
        order={"classes": places.tolist()},
        derived=True,
    )


Change = Callable[[Tensor, int], Tensor]  # uint8 (n, h, w, c) and the task


def _domains(name: str, images: Images, n: int, change: Change) -> Stream:
    """All classes in every task, seen differently."""

    def make(t: int) -> Images:
        def of(split: ImageSplit) -> ImageSplit:
            pixels = split.pixels()
            if pixels.dtype != torch.uint8:  # (n, c, h, w)
                changed = change(pixels.permute(0, 2, 3, 1), t).permute(0, 3, 1, 2).contiguous()
            else:
                changed = change(pixels, t)
            return dataclasses.replace(split, images=changed)

        return dataclasses.replace(
            images, train=of(images.train), validation=of(images.validation), test=of(images.test)
        )

    everything = tuple(range(len(images.classes)))
    return Stream(
        name=name,
        scenario="domain",
        classes=images.classes,
        tasks=(everything,) * n,
        make=make,
        base=images,
        order={"seed": 0},
        derived=True,
    )


def portions(name: str, images: Images, n: int) -> Stream:
    """Every image in one task, drawn with a fixed seed: nothing changes from task to task but the images."""

    def make(t: int) -> Images:
        def of(split: ImageSplit) -> ImageSplit:
            order = uniform(0, 0, torch.arange(len(split)), "parts")[:, 0].argsort(stable=True)
            return split.subset(order.tensor_split(n)[t].sort().values)

        return dataclasses.replace(
            images, train=of(images.train), validation=of(images.validation), test=of(images.test)
        )

    everything = tuple(range(len(images.classes)))
    return Stream(
        name=name,
        scenario="domain",
        classes=images.classes,
        tasks=(everything,) * n,
        make=make,
        base=images,
        order={"seed": 0},
        derived=True,
    )


def permutation(pixels: int, t: int) -> Tensor:
    """The permutation of task t, int64 (pixels,); the first task leaves images as they are."""
    if t == 0:
        return torch.arange(pixels)
    return torch.randperm(pixels, generator=torch.Generator().manual_seed(1000 + t))


def _permuted(images: Tensor, t: int) -> Tensor:
    n, h, w, _ = images.shape
    return images.reshape(n, h * w, -1)[:, permutation(h * w, t)].view_as(images)


def angles(n: int) -> Tensor:
    """The angles of n rotated tasks in degrees, float64 (n,), uniform in [0, 180), drawn with a fixed seed."""
    return 180 * uniform(0, 0, torch.arange(n), "rotated")[:, 0]


def _rotated(n: int) -> Change:
    degrees = angles(n)
    return lambda images, t: rotated(images, degrees[t].expand(len(images)))


def rotated(images: Tensor, degrees: Tensor) -> Tensor:
    """Each image turned about its middle, anticlockwise, bilinear, black outside.

    Args:
        images: (n, h, w, c), uint8 or float.
        degrees: (n,).
    """
    made = []
    for pixels, angle in zip(images.split(2048), degrees.split(2048), strict=True):
        b, h, w, c = pixels.shape
        a = torch.deg2rad(angle.double())
        cos, sin, zero = a.cos(), a.sin(), torch.zeros_like(a)
        # affine_grid's coordinates run from -1 to 1 on each side, whatever the sides' lengths
        matrix = torch.stack([cos, -sin * h / w, zero, sin * w / h, cos, zero], 1).view(-1, 2, 3).float()
        grid = F.affine_grid(matrix, [b, c, h, w], align_corners=False)
        turned = F.grid_sample(pixels.permute(0, 3, 1, 2).float(), grid, align_corners=False)
        turned = turned.permute(0, 2, 3, 1)
        made.append(turned.round_().clamp_(0, 255).to(pixels.dtype) if pixels.dtype == torch.uint8 else turned)
    return torch.cat(made)


def _drifting(name: str, images: Images, rounds: int = 3) -> Stream:
    """MNIST-360 of the DER paper (arXiv:2004.07211): pairs of consecutive classes, three rounds, each class turning.

    The last class is left out, as there (a nine is a six upside down). In each round every class meets the one before
    and the one after it; its images turn through 360 degrees in the course of the round. How images are shared among
    the pairs is reconstructed: equally, and the two classes of a pair take turns. Test images stand at angles spread
    evenly over the circle.
    """
    k = len(images.classes) - 1
    require(k >= 2, f"A drifting stream takes at least 3 classes, and {images.name} has {k + 1}.")
    images = images.only(images.classes[:k])

    def of(split: ImageSplit) -> ImageSplit:
        turn = torch.zeros(len(split))
        for c in range(k):
            places = (split.labels == c).nonzero()[:, 0]
            turn[places] = torch.arange(len(places)) * 360.0 / max(len(places), 1)
        return dataclasses.replace(split, images=rotated(split.pixels(), turn))

    split = images.train
    of_class = [(split.labels == c).nonzero()[:, 0] for c in range(k)]
    order, turn = [], []
    for r in range(rounds):
        share = [places.tensor_split(rounds)[r] for places in of_class]
        halves = [s.tensor_split(2) for s in share]
        degrees = [(torch.arange(len(s)) * 360.0 / max(len(s), 1)).tensor_split(2) for s in share]
        for c in range(k):
            d = (c + 1) % k  # class c in its second half, d in its first; class 0 begins with its second
            both = (halves[c][1], halves[d][0])
            n = min(map(len, both))
            order.append(torch.stack([b[:n] for b in both], 1).flatten())
            turn.append(torch.stack([degrees[c][1][:n], degrees[d][0][:n]], 1).flatten())
    train = split.subset(torch.cat(order))
    train = dataclasses.replace(train, images=rotated(train.pixels(), torch.cat(turn)))
    whole = dataclasses.replace(images, train=train, validation=of(images.validation), test=of(images.test))
    return Stream(
        name=name,
        scenario="general",
        classes=images.classes,
        tasks=(tuple(range(k)),),
        make=lambda t: whole,
        base=images,
        order={"rounds": rounds},
        derived=True,
    )
