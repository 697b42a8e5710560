"""Options about a network beside its reference, in every verb, and the network that comes of both."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from torch import nn

from upcycle.core import models, references
from upcycle.core.errors import UserError, require, unknown
from upcycle.core.models import Model
from upcycle.core.outputs import Columns
from upcycle.core.reading import Reading, Resize
from upcycle.data import Collection, Images, ImageSplit
from upcycle.data.files import as_split, read_pictures
from upcycle.data.images import as_images, check_ratio, reshaped_words
from upcycle.data.labels import mapped, read_label_map, relabelled, targets_of
from upcycle.data.pixels import Form, Size
from upcycle.verbs.loading import load_for, loaded

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
            centre is taken; squash, each side is scaled alone; pad, they are scaled to fit, and black fills the rest.
            If not given, what the network was trained with, or crop.
        white: the value that is white in images of more than 8 bits. If not given, what the network was trained with,
            or the largest in the training images, where they never use the highest bit.
        image_column: the column of images in a table; if not given, the usual names are looked for.
        label_column: the column of class numbers or names in a table; if not given, the usual names are looked for.
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
        if self.long_tail is not None:
            check_ratio(self.long_tail)

    def reading(self, usual: Reading | None = None) -> Reading:
        """How image files become pixels: what is asked for, and otherwise as usual, above all as a network has it."""
        usual = usual or Reading()
        return Reading(resize=self.resize or usual.resize, white=self.white or usual.white)

    @property
    def asked(self) -> dict[str, Any]:
        """How data are read beside their size, as keywords of :func:`upcycle.data.load`, where no network says it."""
        return {"reading": self.reading() if self.resize or self.white else None, "columns": self.columns}

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
            lines = Path(names[0]).read_text(encoding="utf-8-sig").splitlines()
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


# -- networks -----------------------------------------------------------------------------------------------------


def network(reference: Reference, naming: Naming, like: Collection | None = None, *, other_task: bool = False) -> Model:
    """The network of images that a reference and what is said about it name; see :func:`any_network`."""
    model = any_network(reference, naming, like, other_task=other_task)
    require(model.inputs is None, f"{model.name} takes {model.takes}, and this works on networks of images alone.")
    return model


def any_network(
    reference: Reference, naming: Naming, like: Collection | None = None, *, other_task: bool = False
) -> Model:
    """The network, of whatever it takes, that a reference and what is said about it name.

    Args:
        reference: see :func:`upcycle.core.references.resolve`; an object that is given weights is copied before.
        like: data that it is used on. They say what a network takes that does not say it itself, and name its
            outputs where nobody else does and no label map is given.
        other_task: the data need not be of what the network was trained on, so they name none of its outputs.

    Raises:
        UserError: see :func:`upcycle.core.references.resolve`; or nothing says what images the network takes.
    """
    fresh = naming.weights == "fresh"
    given = isinstance(reference, nn.Module | Model)
    require(not (fresh and given), "A network that is given as an object comes as it is, and not with fresh weights.")
    bare, classes = references.is_bare(reference), naming.classes
    if like is not None and classes is None and naming.label_map is None and not other_task and (bare or fresh):
        classes = like.classes or None
    shape = _shape(naming, like.shape if isinstance(like, Images) else None)
    other = None if isinstance(like, Images) else like
    if bare:
        name = type(reference).__name__ if isinstance(reference, nn.Module) else reference
        require(
            shape is not None or other is not None,
            f"{name} does not say what images it takes: give --size CHANNELS,HEIGHT,WIDTH, for example --size 3,32,32; "
            "in Python size=(3, 32, 32).",
        )
    if naming.file is not None and given:
        reference = _copied(reference)
    built = bare or fresh
    model = references.resolve(
        reference,
        pretrained=not fresh,
        weights=naming.file,
        weights_key=naming.weights_key,
        num_classes=len(classes) if classes and (built or naming.file is not None) else None,
        input_shape=shape if built else None,
        mean=naming.mean,
        std=naming.std,
        classes=classes,
        takes=other.takes if other is not None and built else None,
        task=other.task if other is not None else None,
        trust=naming.trust,
    )
    of_images = [name for name in ("size", "mean", "std") if model.inputs and getattr(naming, name, None) is not None]
    require(not of_images, f"{model.name} takes {model.takes}, which have no {' and no '.join(of_images)} to be said.")
    usual = like.reading if built and like is not None else model.reading
    model = dataclasses.replace(model, reading=naming.reading(usual))
    if naming.sides is None or built:
        return model
    return _taking(model, _shape(naming, model.input_shape), "leave out --size for its own")


def _taking(model: Model, shape: tuple[int, int, int] | None, remedy: str) -> Model:
    """The network for images of ``shape``, which it must take; ``remedy`` says what else to do, before a size."""
    _, h, w = model.input_shape
    if shape is None or shape == model.input_shape:
        return model
    try:
        return references.resolve(model, input_shape=shape)
    except UserError as error:
        raise UserError(
            f"{model.name} takes no images of {' x '.join(map(str, shape))} (channels, height, width); {remedy} "
            f"{h} x {w}."
        ) from error


def data_as(model: Model, data: Any, naming: Naming, *, other_task: bool = False) -> tuple[Model, Collection]:
    """The data of a network, and the network for images that are loaded already, which are as they are."""
    asked = naming.asked
    reading = None if asked["reading"] is None else model.reading  # which is what was asked for by now
    found = load_for(
        model,
        data,
        naming.sides,
        reading=reading,
        columns=asked["columns"],
        other_task=other_task,
        long_tail=naming.long_tail,
    )
    if isinstance(data, Images) and isinstance(found, Images) and not other_task:
        model = _taking(model, found.shape, "load them at its own")
        if note := _read_otherwise(model, found):
            model = dataclasses.replace(model, notes=(*model.notes, note))
    return model, found


def _read_otherwise(model: Model, images: Images) -> str:
    """A note where images in memory became pixels in another way than those that a network was trained on."""
    differ = [
        f"{name} {found}, and not {own}"
        for name, found, own, counts in (
            ("resize", images.reading.resize, model.reading.resize, images.reshaped),
            ("white", images.reading.white, model.reading.white, images.reading.white and model.reading.white),
        )
        if counts and found != own
    ]
    if not differ:
        return ""
    return (
        f"The images were read with {' and '.join(differ)}, as {model.name} would have them: load them with "
        "reading=model.reading."
    )


def network_and_images(
    reference: Reference, data: Any, naming: Naming, *, resized: bool = False, other_task: bool = False
) -> tuple[Model, Images]:
    """A network and the images that a verb uses it on, each telling of the other what that does not say itself.

    Args:
        data: see :func:`upcycle.data.load`.
        resized: bring any images to what a network from a reference takes, and not only those of a person's own.
        other_task: the network was trained on other images, so they name none of its outputs and are brought to what it
            takes.
    """
    model, found = network_and_data(reference, data, naming, resized=resized, other_task=other_task)
    images = as_images(found)
    return model, images


def network_and_data(
    reference: Reference, data: Any, naming: Naming, *, resized: bool = False, other_task: bool = False
) -> tuple[Model, Collection]:
    """A network and the data that it is used on, of whatever kind; see :func:`network_and_images`."""
    if takes_any(reference, naming):  # what it takes is what the data are
        found = data_for(data, naming)
        return any_network(reference, naming, found, other_task=other_task), found
    model = any_network(reference, naming)
    return data_as(model, data, naming, other_task=other_task or resized)


def network_and_pictures(reference: Reference, place: Path, naming: Naming) -> tuple[Model, ImageSplit, list[str]]:
    """A network and image files as it takes them, with their names; see :func:`network_and_images`.

    What was left out or done to images joins the notes of the network.
    """
    require(naming.columns == ("", ""), "A folder of images is no table; leave out --image_column and --label_column.")
    require(naming.long_tail is None, "These images are used as they are; leave out --long_tail.")
    if takes_any(reference, naming):
        form = Form(size=naming.sides, channels=naming.channels, reading=naming.reading())
        pixels, names, notes = read_pictures(place, form)
        _, height, width, channels = pixels.images.shape
        blank = Images.none((channels, height, width), (), (0.0,) * channels, (1.0,) * channels, pixels.reading)
        model = network(reference, naming, blank)
    else:
        model = network(reference, naming)
        channels, height, width = model.input_shape
        form = Form(size=(height, width), channels=channels, reading=model.reading)
        pixels, names, notes = read_pictures(place, form)
    if pixels.reshaped:
        notes.append(f"{reshaped_words(pixels.reshaped, pixels.reading)} (--resize).")
    model = dataclasses.replace(model, notes=(*model.notes, *notes))
    return model, as_split(pixels.images, model), names


def takes_any(reference: Reference, naming: Naming) -> bool:
    """Whether the images decide what a network takes, and not the network."""
    return references.is_bare(str(reference) if isinstance(reference, Path) else reference) or naming.weights == "fresh"


def images_for(data: Any, naming: Naming, usual: Reading | None = None) -> Images:
    """The images of ``data`` in the size and with the channels that are asked for; see :func:`data_for`."""
    return as_images(data_for(data, naming, usual))


def data_for(data: Any, naming: Naming, usual: Reading | None = None) -> Collection:
    """The data that are named; images in the size and with the channels that are asked for.

    Args:
        usual: how they become pixels where that is not asked for.
    """
    there = isinstance(data, Images) and naming.planes is None
    channels = None if there else naming.channels
    asked = naming.asked
    if usual is not None and not isinstance(data, Images):
        asked["reading"] = naming.reading(usual)
    return loaded(data, size=naming.sides, channels=channels, long_tail=naming.long_tail, **asked)


def _shape(naming: Naming, have: tuple[int, int, int] | None) -> tuple[int, int, int] | None:
    """The (channels, height, width) that is asked for, completed by what there is."""
    channels, sides = naming.channels or (have and have[0]), naming.sides or (have and have[1:])
    if channels is None or sides is None:
        return None
    height, width = (sides, sides) if isinstance(sides, int) else sides
    return channels, height, width


def _copied(reference: Any) -> Any:
    copied = models.own_copy(reference)
    assert isinstance(copied, nn.Module | Model)
    return copied


# -- classes ------------------------------------------------------------------------------------------------------


def in_classes_of(model: Model, images: Images, naming: Naming) -> Images:
    """``images`` with the network's classes as their labels: by the label map, or by their names."""
    if naming.label_map is not None and images.classes:
        return mapped(images, naming.label_map, model.classes)
    return relabelled(images, model.classes)


def answering(model: Model, naming: Naming) -> Model:
    """The network with the outputs that its label map names, called as the map calls them."""
    if naming.label_map is None:
        return model
    targets = targets_of(naming.label_map)
    columns = read_label_map(naming.label_map, model.classes, targets)
    return dataclasses.replace(model, module=Columns(model.module, columns), classes=targets)
