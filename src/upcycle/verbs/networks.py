"""The networks that references and options about them name, and data and classes as they fit them."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from torch import nn

from upcycle import zoo
from upcycle.core import models, references
from upcycle.core.errors import UserError, require
from upcycle.core.models import Model
from upcycle.core.outputs import Columns
from upcycle.core.reading import Reading
from upcycle.data import Collection, Images, ImageSplit
from upcycle.data.files import as_split, read_pictures
from upcycle.data.images import as_images, reshaped_words
from upcycle.data.labels import mapped, read_label_map, relabelled, targets_of
from upcycle.data.pixels import Form
from upcycle.verbs.figures import told_the_task
from upcycle.verbs.loading import load_for, loaded
from upcycle.verbs.naming import Naming, Reference


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
            f"{name} does not say what images it takes: give --size CHANNELS,HEIGHT,WIDTH, for example --size 3,32,32.",
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
    notes = () if other_task else told_the_task(model)
    model = dataclasses.replace(model, reading=naming.reading(usual), notes=(*model.notes, *notes))
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
        **naming.kept,
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


def is_untrained(reference: Any) -> bool:
    """Whether there are no trained weights to start from."""
    kind, _, name = str(reference).partition(":")
    if isinstance(reference, str) and kind.lower() == "zoo":
        entry = zoo.ENTRIES.get(zoo.spelled(name))
        return entry is None or entry.trained is None  # those over graphs are not trained
    if isinstance(reference, str) and kind.lower() == "pyg":
        return True
    return references.is_bare(str(reference) if isinstance(reference, Path) else reference)


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
