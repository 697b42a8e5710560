"""What is here and what can be fetched: data sets and weights, as ``upcycle doctor`` shows them."""

from __future__ import annotations

import importlib.metadata
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from upcycle.core import fetching
from upcycle.core.read import require_file

Status = Literal["ok", "absent", "broken"]


@dataclass(frozen=True)
class Check:
    """One thing looked at.

    Args:
        name: of the thing.
        status: ok; absent: an optional thing is not here; broken: something is wrong and should be mended.
        found: what is there, or what cannot be done.
        mend: the command, or the sentence, that mends it; empty where there is nothing to mend.
    """

    name: str
    status: Status
    found: str
    mend: str = ""


def first_line(error: BaseException) -> str:
    """An error in one line."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:200]}" if lines else type(error).__name__


def installed(dist: str) -> str | None:
    """The version of a distribution that is installed, if it is."""
    try:
        return importlib.metadata.version(dist)
    except importlib.metadata.PackageNotFoundError:
        return None


def stock() -> Iterator[Check]:
    """Which data sets and weights are here, and which can be fetched."""
    value = os.environ.get("UPCYCLE_DATA")
    export = "export UPCYCLE_DATA=/path/to/data"
    root = Path(value).expanduser() if value else None
    if root is None:
        yield Check("UPCYCLE_DATA", "absent", "not set: no folder of data sets and weights of yours", export)
    elif not root.is_dir():
        what = "is a file, not a folder" if root.exists() else "does not exist"
        yield Check("UPCYCLE_DATA", "broken", f"{value} {what}", export)
        root = None
    else:
        yield Check("UPCYCLE_DATA", "ok", str(root))
    try:
        yield from _data_sets(root)
        if root is not None:
            yield _weights(root / "weights")
        yield from _zoo_weights(root)
    except Exception as error:  # a folder that may not be read, or a broken library that is named above
        found = f"what lies in {value or fetching.place()} cannot be looked at ({first_line(error)})"
        yield Check("data sets", "broken", found, f"ls -lR {value or fetching.place()}")


def _data_sets(root: Path | None) -> Iterator[Check]:
    """The named sets: those that are here, and for each other one how large it is, or what to put where."""
    from upcycle.data.fetched import HOMES
    from upcycle.data.sources import NAMED, places

    def holds(folder: Path) -> bool:
        return folder.is_dir() and any(folder.iterdir())

    found = [name for name in NAMED if any(holds(place) for place in places(name))]
    yield Check("data sets", "ok", ", ".join(["digits", *found]))
    for name, known in NAMED.items():
        if name not in found:
            mend = f"put {known.fetch} into {root or '$UPCYCLE_DATA'}/{known.folders[0]}"
            if name in HOMES and (kept := fetching.fetched(name)) is not None and installed("torchvision"):
                large = f"{HOMES[name].megabytes:.0f} MB, fetched into {kept} when it is first named"
                yield Check(name, "absent", f"not here: {large}", f"upcycle evaluate MODEL --data {name}, or {mend}")
            else:
                yield Check(name, "absent", "not here", mend)


def _weights(folder: Path) -> Check:
    """The weights files, each opened: its header announces its size, so a truncated one shows."""
    from safetensors import safe_open

    whole, broken = [], []
    for file in sorted(folder.glob("*.safetensors")):
        try:
            require_file(file)
            with safe_open(file, framework="pt"):
                whole.append(file.stem)
        except Exception:
            broken.append(file.name)
    if broken:
        found = f"damaged in {folder}: {', '.join(broken)}"
        return Check("weights", "broken", found, "restore them from a copy, or delete them")
    if not whole:
        return Check("weights", "absent", f"no NAME.safetensors in {folder}", f"put them into {folder}")
    return Check("weights", "ok", ", ".join(whole))


def _zoo_weights(root: Path | None) -> Iterator[Check]:
    """Trained networks of the zoo: those whose weights are here, and for the others how large they are, or whose."""
    from upcycle.zoo import ENTRIES
    from upcycle.zoo.published import PUBLISHED, place_of

    trained = {name: entry.trained for name, entry in ENTRIES.items() if entry.trained is not None}
    here = [name for name, known in trained.items() if place_of(known.file or name) is not None]
    yield Check("zoo", "ok", f"trained networks: {', '.join(here)}")
    rest = [name for name in trained if name not in here]
    keeps = fetching.place() is not None
    if large := [f"{name} ({PUBLISHED[name].megabytes:g} MB)" for name in rest if keeps and name in PUBLISHED]:
        yield Check("zoo to fetch", "absent", f"fetched when they are first named: {', '.join(large)}")
    if elsewhere := [name for name in rest if not (keeps and name in PUBLISHED)]:
        mend = f"upcycle evaluate zoo:NAME says where it comes from; put it into {root or '$UPCYCLE_DATA'}/weights"
        yield Check("zoo elsewhere", "absent", f"not here: {', '.join(elsewhere)}", mend)
