"""The directory of a run: claimed before any work, filled by a run, and completed with what came out."""

from __future__ import annotations

import contextlib
import itertools
import os
import re
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from upcycle.core import lineage, lock, saved, store
from upcycle.core.errors import UserError
from upcycle.core.method import Method
from upcycle.core.models import Model
from upcycle.core.outputs import own
from upcycle.core.run import Run
from upcycle.core.world import told
from upcycle.data import Collection
from upcycle.measure.machine import machine
from upcycle.reports import write_report
from upcycle.reports.card import model_card
from upcycle.verbs.options import RunSetting, Say


def numbered(place: Path, *, last: bool = False) -> Path:
    """The directory for which no name was given: ``place``, or with the first number that makes it an unused one.

    Args:
        last: the one that was used last in its place, to go on with; ``place`` where none was.
    """
    places = itertools.chain([place], (place.with_name(f"{place.name}-{n}") for n in itertools.count(2)))
    used = list(itertools.takewhile(_used, places))
    if last:
        return used[-1] if used else place
    return place.with_name(f"{place.name}-{len(used) + 1}") if used else place


def named_after(data: Any, called: str) -> str:
    """What a directory is called after its data: the names of their files, or the words of a stream.

    Args:
        data: their reference, or themselves.
        called: the argument that they stand in.
    """
    if not isinstance(data, str):
        return called
    if called == "stream":
        return re.sub(r"[^\w.+,]+", "-", data)
    return "-".join(Path(part).name for part in data.split(",")).replace(":", "-")


def own_place(place: Path, setting: RunSetting, say: Say) -> Path:
    """The directory where none was named: ``place``, with a number if need be.

    Of several processes all need the same, and one of them may have begun to write, so these number nothing.
    """
    if (setting.devices or 1) * setting.num_nodes > 1 or told() is not None:
        return place
    found = numbered(place, last=setting.resume)
    if found != place and not setting.dry_run:
        say(f"run      {found}, since {place} is used")
    return found


def claim_directory(out: Path, *, resume: bool | None, hold: bool = False) -> lock.Hold | None:
    """Make sure that ``out`` can be written, holds nothing that would be lost, and is written by nobody else now.

    Args:
        resume: it may hold a run to go on with; ``None`` for a verb that goes on with none.
        hold: keep others out from here on, until what is returned is released; a run does so itself when it begins.
    """
    if "\0" in str(out):
        raise UserError(f"{str(out)!r} is no path; choose another --out.")
    if out.exists() and not out.is_dir():
        raise UserError(f"{out} is a file; choose another --out.")
    lock.check(out)
    used = _used(out)
    if used and not resume:
        again = "" if resume is None else "add --resume to go on with it, or "
        raise UserError(f"{out} exists and is not empty: {again}choose another --out.")
    if used and not (out / "config.yaml").exists():
        raise UserError(f"{out} holds no run that could go on (no config.yaml); choose another --out.")
    fresh = [p for p in (out, *out.parents) if not p.exists()]
    try:
        out.mkdir(parents=True, exist_ok=True)
        probe = out / f".writable.{os.getpid()}.tmp"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise UserError(f"Cannot write to {out}: {error.strerror}. Choose another --out.") from error
    finally:
        for p in fresh:
            with contextlib.suppress(OSError):
                p.rmdir()
    if not hold:
        return None
    held = lock.Hold(out)
    if _used(out) and not resume:  # by another command that was quicker
        held.release()
        raise UserError(f"{out} exists and is not empty: choose another --out.")
    return held


def _used(out: Path) -> bool:
    """Whether there is more in a directory than a run that was killed at its very start has left."""
    return out.is_dir() and any(p.name != lock.NAME and not store.is_temporary(p) for p in out.iterdir())


def write_result(
    directory: Path,
    cls: type[Method],
    model: Model,
    parents: list[lineage.Node],
    data: Collection,
    run: Run,
    *,
    rows: list[dict[str, Any]],
    config: dict[str, Any],
    figure: str,
    facts: dict[str, Any],
    further: Mapping[str, float] | None = None,
) -> None:
    """Write the product with its lineage and card, ``result.json`` and the report into the run directory.

    Args:
        cls: the method that made the product.
        model: the product; gets its lineage and licence.
        parents: the lineage of what it was made from.
        data: that it was trained and measured on.
        run: that made it.
        rows: of the comparison; the last one is the product's.
        config: every option by its name.
        figure: the name of what is measured.
        facts: further JSON data for ``result.json``: the command, the sentence, the seeds and so on.
        further: figures of the product for its lineage, beside what was measured.
    """
    card = cls.card
    metrics: dict[str, float | list[float]] = {**(further or {})}
    if rows[-1].get("accuracy"):
        metrics[figure] = [round(a, 6) for a in rows[-1]["accuracy"]]
    trained = {"name": data.name, "digest": data.digest, "licence": data.licence} if len(data.train) else None
    made_with = {key: value for key, value in config.items() if key != "out"}  # a place on the maker's machine
    tree = lineage.child(
        parents,
        name=model.name,
        digest=store.tensor_digest(own(model.module).state_dict()),
        verb=card.verb,
        method=card.name,
        config=made_with,
        data=trained,
        metrics=metrics,
    )
    model.lineage, model.licence = tree, tree["licence"]["id"]
    record = {
        "format": 1,
        "verb": card.verb,
        "method": card.name,
        "title": card.title,
        "paper": card.paper,
        "date": time.strftime("%Y-%m-%d"),
        "figure": figure,
        "data": {
            "name": data.title,
            "measured": data.measured or data.name,
            "train": len(data.train),
            "validation": len(data.validation),
            "test": len(data.test),
            "labelled": int(data.task.known(data.train.labels).sum()),
            "classes": list(data.classes),
            "notes": data.notes,
            "chosen": data.chosen,
            "answered": list(data.answered),
        },
        "rows": rows,
        "machine": {**machine(), **run.machine},
        "config": config,
        "notes": run.notes,
        "versions": lineage.versions(),
        **facts,
    }
    measured = {**record, "data": {"name": data.measured or data.name}}
    saved.save(model, directory / "model", readme=model_card(tree, measured, model))
    store.write_json(directory / "result.json", record)
    write_report(directory)
