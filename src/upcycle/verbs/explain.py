"""``upcycle explain``: which pixels of a person's own images speak for a class."""

from __future__ import annotations

import csv
import io
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from upcycle.core import cells, lineage, references, store
from upcycle.core.errors import require, unknown
from upcycle.core.models import Model
from upcycle.core.outputs import gives_probabilities
from upcycle.core.printable import cell, file_name, path_cell
from upcycle.diagnosis.attribution import Attribution
from upcycle.measure.machine import machine
from upcycle.measure.units import counted
from upcycle.reports import write_report
from upcycle.verbs.directory import claim_directory, numbered
from upcycle.verbs.heatmaps import as_heat, as_image, as_pixels, known, maps_of, overlay
from upcycle.verbs.naming import Naming, Reference, options_as
from upcycle.verbs.networks import answering, network_and_pictures
from upcycle.verbs.options import Say, command_of, tell

DEFAULT = ("learned", "gradcam")


@dataclass(frozen=True, kw_only=True)
class Explained:
    """What :func:`explain_images` leaves: the directory with report and maps, and the maps of each method."""

    directory: Path
    report: Path
    maps: dict[str, Attribution]

    def __repr__(self) -> str:
        return cells.line(self, f"maps by {', '.join(self.maps)} in {self.directory}")

    def _repr_html_(self) -> str:
        rows = [(method, counted(len(found.maps), "image")) for method, found in self.maps.items()]
        return cells.table("", ("maps by", "of"), rows, [f"Report: {self.report}"])

    def record(self) -> dict[str, Any]:
        """Where everything is, and what the network answered, as JSON data."""
        places = {"directory": str(self.directory), "report": str(self.report)}
        first = next(iter(self.maps.values()))
        shares = [round(share, 6) for share in first.probability.tolist()]
        return {**places, "methods": list(self.maps), "target": first.target.tolist(), "probability": shares}


def explain_images(
    model: Reference,
    images: Path | str,
    *,
    methods: tuple[str, ...] | None = None,
    target: str | None = None,
    out: Path | str | None = None,
    say: Say = tell,
    **naming: Any,
) -> Explained:
    """Which pixels of images speak for a class: a report, a picture of each map over its image, and a table.

    Args:
        model: a reference, or the path of a saved model or run; in Python also a module or a
            Model. A trained classifier.
        images: an image, or a folder of images; sub-folders are searched too.
        methods: of the heat maps, see upcycle diagnose; if not given, learned and gradcam, as far as the network allows
            them.
        target: the class that is asked for; if not given, what the network says of each image.
        out: the directory; if not given, explained, with a number behind it where that is used.
        say: where progress lines go.
        naming: fields of :class:`~upcycle.verbs.naming.Naming`, that is, what the reference does not say.

    Raises:
        UserError: before any work where the request cannot work.
    """
    start, folder = time.time(), Path(images)
    place = Path(out) if out is not None else numbered(Path("explained"))
    said = options_as(Naming, "explain", naming)
    if isinstance(model, str):
        references.check_reference(model)
    require(folder.exists(), f"There is no folder or image {folder}.")
    known(methods if methods is not None else DEFAULT)
    net, split, names = network_and_pictures(model, folder, said)
    net = answering(net, said)
    if target is not None and target not in net.classes:
        raise unknown(f"class of {net.name}", target, net.classes)
    asked = None if target is None else net.classes.index(target)
    claim_directory(place, resume=None)
    x, found, left = maps_of(net, split, methods or DEFAULT, asked, strict=methods is not None)
    held = claim_directory(place, resume=None, hold=True)
    pixels = as_pixels(x, net)
    for method, attribution in found.items():
        for i, name in enumerate(names):
            image = as_image(pixels[i]).convert("RGBA")
            image.alpha_composite(as_heat(attribution.maps[i]))
            buffer = io.BytesIO()
            image.save(buffer, "PNG")
            store.write_atomic(place / "maps" / method / f"{i:04d}-{file_name(Path(name).stem)}.png", buffer.getvalue())
    first = next(iter(found.values()))
    store.write_atomic(place / "explained.csv", _table(names, first, net).encode())
    about = "each image's answer" if target is None else target
    picture = overlay(
        f"What speaks for {about}",
        "A method at a time; bright is what counts most in this image.",
        net,
        split,
        x,
        found,
        left,
        names,
    )
    store.write_json(place / "pictures" / "1-maps.json", picture)
    typed = {"model": model, "images": images, "methods": methods, "target": target}
    typed |= {"out": out, **naming}
    command = command_of("explain", explain_images, typed, positional=("model", "images"))
    sentence = f"Heat maps of {counted(len(names), 'image')} in {folder.name} by {', '.join(found)}."
    store.write_json(place / "result.json", {
        "format": 1, "verb": "explain", "method": ", ".join(found), "title": f"What {net.name} looks at",
        "command": command, "date": time.strftime("%Y-%m-%d"), "seconds": round(time.time() - start, 2),
        "sentence": sentence, "shows": "Heat maps",
        "rows": [], "data": {}, "notes": [*net.notes, *left], "machine": machine(), "versions": lineage.versions(),
    })  # fmt: skip
    report = write_report(place)
    if held is not None:
        held.release()
    for note in dict.fromkeys([*net.notes, *left, *(note for a in found.values() for note in a.notes)]):
        say(note)
    say(f"Report:  {report}")
    return Explained(directory=place, report=report, maps=found)


def _table(names: list[str], found: Attribution, net: Model) -> str:
    """A line an image: path, class, and how much of the softmax of the network's answer is that class'."""
    text = io.StringIO()
    writer: Callable[[list[str]], object] = csv.writer(text, lineterminator="\n").writerow
    writer(["path", "class", "probability" if gives_probabilities(net.module) else "softmax of scores"])
    for name, c, p in zip(names, found.target.tolist(), found.probability.tolist(), strict=True):
        writer([path_cell(name), cell(net.classes[c]), f"{p:.6f}"])
    return text.getvalue()
