"""Options about a network beside its reference, in every verb."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from torch import nn

from upcycle.core.errors import UserError, require, unknown
from upcycle.core.models import Model
from upcycle.core.read import bytes_of
from upcycle.core.reading import Reading, Resize
from upcycle.data.images import check_ratio
from upcycle.data.parts import Keeping
from upcycle.data.pixels import Size

Reference = str | Path | nn.Module | Model
OWN = ("pretrained", "fresh")  # what weights may be beside a file
SAID = ("weights", "weights_key", "mean", "std", "classes")
"""What is said about one network, by its role where there are several; the rest holds for all."""


@dataclass(kw_only=True)
class Sight:
    """Options for every network of a verb.

    Args:
        size: resize images to SIDE or HEIGHT,WIDTH pixels; CHANNELS,HEIGHT,WIDTH also says how many channels a network
            of one's own takes. If not given, what a network from a reference takes, or what the images are.
        trust: packages whose code a saved model's callable reference may run.
        resize: what happens to images of other proportions than that size: crop, they are scaled to cover it and their
            centre is taken; squash, each side is scaled alone; pad, they are scaled to fit, and black fills the rest;
            center, the shorter side is scaled and the centre taken, to the pixel as timm does. If not given, what the
            network was trained with or its own configuration says, or crop.
        white: the value that is white in images of more than 8 bits. If not given, what the network was trained with,
            or the largest in the training images, where they never use the highest bit.
        image_column: the column of images in a table; if not given, the usual names are looked for.
        label_column: the column of class numbers or names in a table; if not given, the usual names are looked for.
        keep_in_memory: decode all images once and keep them in memory (true), or read them from disk as they are used
            (false). If not given, in memory where they take up to a quarter of it. What is learnt is the same.
        num_workers: threads that decode images that are read from disk; if not given, one a processor, 8 at most. Any
            number gives the same bits.
        long_tail: keep only a long tail of the training images of every data set: all of its first class, one in so
            many of its last one, and in between evenly on a logarithmic scale, always the same images. Validation and
            test images stay as they are.
    """

    size: int | tuple[int, ...] | None = None
    trust: tuple[str, ...] = ()
    resize: Resize | None = None
    white: int | None = None
    image_column: str | None = None
    label_column: str | None = None
    keep_in_memory: bool | None = None
    num_workers: int | None = None
    long_tail: float | None = None

    def __post_init__(self) -> None:
        for f in dataclasses.fields(self):
            if f.name.endswith("classes") and getattr(self, f.name) is not None:
                setattr(self, f.name, names_in(getattr(self, f.name)))
        for name in self.trust:
            require(name.isidentifier(), f"trust must name Python packages, and '{name}' is no such name.")
        if self.size is not None:
            if not isinstance(self.size, int):
                self.size = tuple(self.size)
            numbers = (self.size,) if isinstance(self.size, int) else self.size
            require(
                len(numbers) in (1, 2, 3) and min(numbers) >= 1,
                "size must be positive, SIDE or HEIGHT,WIDTH or CHANNELS,HEIGHT,WIDTH, not "
                f"{','.join(map(str, numbers))}.",
            )
        require(
            self.white is None or self.white >= 1, f"white must be a value of a pixel, 1 or more, not {self.white}."
        )
        self.reading()
        Keeping(in_memory=self.keep_in_memory, num_workers=self.num_workers)
        if self.long_tail is not None:
            check_ratio(self.long_tail)

    def reading(self, usual: Reading | None = None) -> Reading:
        """How image files become pixels: what is asked for, and otherwise as usual, above all as a network has it."""
        usual = usual or Reading()
        white = self.white or usual.white
        if self.resize is None or self.resize == usual.resize:
            return dataclasses.replace(usual, white=white)
        return Reading(resize=self.resize, interpolation=usual.interpolation, white=white)

    @property
    def asked(self) -> dict[str, Any]:
        """How data are read beside their size, as keywords of :func:`upcycle.data.load`, where no network says it."""
        reading = self.reading() if self.resize or self.white else None
        return {"reading": reading, "columns": self.columns, **self.kept}

    @property
    def kept(self) -> dict[str, Any]:
        """Where images are kept, as keywords of :func:`upcycle.data.load`."""
        return {"keep_in_memory": self.keep_in_memory, "num_workers": self.num_workers}

    @property
    def columns(self) -> tuple[str, str]:
        """The columns of a table, of images and of labels; empty where the usual names are meant."""
        return self.image_column or "", self.label_column or ""

    @property
    def sides(self) -> Size | None:
        """The side or the (height, width) that images are brought to, if any."""
        if self.size is None or isinstance(self.size, int):
            return self.size
        return self.size[0] if len(self.size) == 1 else (self.size[-2], self.size[-1])

    @property
    def planes(self) -> int | None:
        """The channels that ``size`` names, if it does."""
        return self.size[0] if isinstance(self.size, tuple) and len(self.size) == 3 else None


@dataclass(kw_only=True)
class Weights(Sight):
    """Options for the weights and the normalisation of a network, where its reference does not say them.

    Args:
        weights: a file that fills the network (safetensors, or what torch.save wrote), pretrained, or fresh for random
            ones; if not given, trained ones where the reference has any.
        weights_key: which weights of that file to take where it holds several: the name of the envelope or of the
            prefix that they are under, such as state_dict_ema, or student. If not given, averaged ones (EMA) are not
            taken where there are others.
        mean: what is taken from the network's inputs to normalise them, one value a channel.
        std: what they are divided by then, one value a channel.
    """

    weights: str | None = None
    weights_key: str | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.weights is not None:
            self.weights = str(self.weights)
            require(
                self.weights in OWN or Path(self.weights).exists(),
                f"weights must be pretrained, fresh or a file. There is no file {self.weights}.",
            )

        require(
            self.weights_key is None or self.file is not None,
            "weights_key chooses among the weights in a file, and no file is given as weights.",
        )

    @property
    def file(self) -> str | None:
        """The file of weights, if one is named."""
        return None if self.weights in (None, *OWN) else self.weights

    @property
    def channels(self) -> int | None:
        """How many channels the network takes, as far as that is said."""
        return self.planes or next((len(values) for values in (self.mean, self.std) if values), None)


@dataclass(kw_only=True)
class Naming(Weights):
    """Options for all that the reference of a network does not say.

    Args:
        classes: the names of the network's outputs in their order, with commas between, or a text file with a name in
            each line; if not given, those of the reference, or else of the data.
        label_map: CSV with columns teacher,student (or source,target) that says which output of the network is which
            class of the data.
    """

    classes: tuple[str, ...] | None = None
    label_map: Path | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.label_map is not None:
            self.label_map = Path(self.label_map)
            require(self.label_map.is_file(), f"There is no file {self.label_map}.")


def names_in(classes: str | tuple[str, ...]) -> tuple[str, ...]:
    """Class names as they are given: one by one, with commas between, or in a text file."""
    names = tuple(part.strip() for part in classes.split(",")) if isinstance(classes, str) else tuple(classes)
    if len(names) == 1 and Path(names[0]).is_file():
        try:
            lines = bytes_of(Path(names[0])).decode("utf-8-sig").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"Cannot read class names from {names[0]}: it is no text in UTF-8.") from error
        names = tuple(line.strip() for line in lines if line.strip())
    require(bool(names) and all(names), "classes must be names with commas between, or a file with one in each line.")
    return names


N = TypeVar("N", bound=Sight)


def options_as(kind: type[N], verb: str, options: Mapping[str, Any]) -> N:
    """The options of a group from keyword arguments, or an error for those that it does not have."""
    known = [f.name for f in dataclasses.fields(kind)]
    for key in options:
        if key not in known:
            raise unknown(f"option of {verb}", key, known)
    return kind(**options)


def naming_of(setting: Any, role: str = "", **other: Any) -> Naming:
    """Pick the options about one network from those of a verb.

    Args:
        setting: the verb's; what holds for all its networks has no prefix: ``label_map`` and the options of
            :class:`Sight`.
        role: the prefix of the network's own options, as in ``teacher_weights``; empty in a verb with one network.
        other: values of options that this verb calls otherwise.
    """
    shared = ("label_map", *(f.name for f in dataclasses.fields(Sight)))
    values: dict[str, Any] = {name: getattr(setting, name, None) for name in shared}
    for name in SAID:
        values[name] = getattr(setting, f"{role}_{name}" if role else name, None)
    return Naming(**{**values, **other})
