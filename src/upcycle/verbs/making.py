"""What the verbs that make a model share: common options, the run directory, the figures, and what they leave."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import os
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

import torch

from upcycle.core import lineage, models, saved, store
from upcycle.core.devices import device_of
from upcycle.core.errors import UserError, require, unknown
from upcycle.core.evaluate import Evaluation, evaluate
from upcycle.core.frozen import fast_bf16
from upcycle.core.method import Method
from upcycle.core.models import Model
from upcycle.core.run import Run
from upcycle.data import Images
from upcycle.data.streams import Stream
from upcycle.measure.cost import count, latency, peak_memory
from upcycle.measure.machine import machine, matmul_rate
from upcycle.measure.units import bytes_, duration, si
from upcycle.report import write_report
from upcycle.report.card import model_card
from upcycle.verbs.methods import all_methods

Say = Callable[[str], None]


@dataclass(kw_only=True)
class DataSetting:
    """What a verb works on.

    Args:
        data: digits, mnist, fashion_mnist, fashion_mnist_local, usps, cifar10, a folder of images, a Parquet
            folder, pool:PATH, or hub:ORG/NAME.
    """

    data: str | None = None


@dataclass(kw_only=True)
class RunSetting:
    """Devices, and where it goes.

    Args:
        out: the run directory; if not given, one under runs/, named after the verb, the method and the data.
        size: resize images to this side, in pixels.
        seed: of everything random.
        devices: how many processes.
        accelerator: as in Lightning Fabric.
        precision: auto takes bf16-mixed where the machine's flags say that it is fast.
        save_every: seconds between save points.
        resume: go on from what the run directory holds.
        dry_run: validate, print cost and time, and stop.
        trust: packages whose code a saved model's callable reference may run.
        quiet: print only errors.
    """

    out: Path | None = None
    size: int | None = None
    seed: int = 0
    devices: int = 1
    accelerator: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    precision: Literal["auto", "32-true", "bf16-mixed", "64-true"] = "auto"
    save_every: float = 15.0
    resume: bool = False
    dry_run: bool = False
    trust: tuple[str, ...] = ()
    quiet: bool = False

    def __post_init__(self) -> None:
        if self.out is not None:  # Python callers may give text
            self.out = Path(self.out)
        for name in self.trust:
            require(name.isidentifier(), f"trust must name Python packages, and '{name}' is no such name.")
        require(self.devices >= 1, f"devices must be at least 1, not {self.devices}.")
        require(0 <= self.save_every < math.inf, f"save_every must be a number of seconds, not {self.save_every}.")
        require(self.size is None or self.size >= 1, f"size must be positive, not {self.size}.")

    @property
    def device(self) -> torch.device:
        """Where what is measured outside of runs is measured."""
        return device_of(self.accelerator)


UNRECORDED = ("resume", "dry_run", "quiet", "save_every", "budget", "cache")
"""Options that change no result, and so are no part of a configuration."""


@dataclass(kw_only=True)
class Result:
    """What a verb leaves: the directory, the product, and the numbers that its report shows."""

    directory: Path
    model: Model
    rows: list[dict[str, Any]]
    sentence: str
    report: Path

    @property
    def student(self) -> Model:
        """The product, by the name that ``distill`` has for it."""
        return self.model


# -- methods and their options ------------------------------------------------------------------------------------


def find_method(name: str, verb: str) -> type[Method]:
    """A method of a verb by its command-line name or as ``package.module:Class``."""
    if ":" in name:
        found = models.import_object(name)
        if not (isinstance(found, type) and issubclass(found, Method)):
            raise UserError(f"{name} is not a Method class.")
    else:
        known = {m.card.name: m for m in all_methods()}
        if name not in known:
            raise unknown("method", name, [n for n, m in known.items() if m.card.verb == verb])
        found = known[name]
    require(found.card.verb == verb, f"{found.card.name} is run by upcycle {found.card.verb}, not {verb}.")
    return found


def split_options(cls: type[Method], kind: type, options: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Options for the dataclass ``kind`` and for the method, or an error for what belongs to neither."""
    fields = {f.name for f in dataclasses.fields(kind)}
    known = [*sorted(fields), *cls.options()]
    for key in options:
        if key not in known:
            raise unknown(f"option of {cls.card.name}", key, known)
    own = {key: value for key, value in options.items() if key not in fields}
    for key, value in own.items():  # nested dataclasses may come as plain mappings
        if isinstance(value, dict) and dataclasses.is_dataclass(nested := type(default_of(cls, key))):
            own[key] = nested(**value)
    return {key: value for key, value in options.items() if key in fields}, own


def default_of(cls: type[Method], option: str) -> Any:
    """The default of a method's option."""
    f = cls.options()[option]
    return f.default_factory() if f.default_factory is not dataclasses.MISSING else f.default


# -- data and measuring -----------------------------------------------------------------------------------------


Seen = TypeVar("Seen", Images, Stream)


def augmented(data: Seen, choice: tuple[str, ...], grey: tuple[str, ...] = ()) -> Seen:
    """``data`` with the augmentation of a setting: ``auto`` takes crop and flip for colour images, else ``grey``."""
    usual = {"auto": ("crop", "flip") if data.shape[0] == 3 else grey, "none": ()}
    return data.augmented(usual.get(choice[0], choice))


def show_accuracy(
    say: Say, role: str, model: Model, data: Images, where: torch.device | Evaluation, hint: str = ""
) -> None:
    """Say how good a network is on these data, so that a wrong normalisation or order of classes shows at once.

    Args:
        where: to measure on validation images, or what was measured there already.
        hint: options that would mend it.
    """
    split = data.normalised(model.mean, model.std).validation
    if not (split.labels >= 0).any():
        return
    measured = where if isinstance(where, Evaluation) else evaluate(model.module, split, device=where)
    say(f"{role.ljust(8)} {model.name}: {measured.accuracy:.1%} on {measured.count:,} validation images")
    if measured.accuracy < 2 / len(data.classes) and len(data.classes) > 2:
        say(f"         That is near chance. Is its normalisation right, and the order of its classes?{hint}")


# -- configuration ------------------------------------------------------------------------------------------------


def plain(value: Any) -> Any:
    """A value as YAML and JSON can hold it."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type | Model | Images):
        return {f.name: plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, Path | str):
        return str(value)
    if isinstance(value, tuple | list):
        return [plain(item) for item in value]
    if value is None or isinstance(value, int | float | bool):
        return value
    if isinstance(value, Model):
        return value.reference or f"<{type(value.module).__name__} instance>"
    return f"<{type(value).__name__} instance>"


def command_line(
    verb: str,
    config: dict[str, Any],
    always: tuple[str, ...],
    default: Callable[[str], Any],
    positional: tuple[str, ...] = (),
) -> str:
    """The command that re-makes a run, as short as the defaults allow.

    Args:
        config: every option by its name.
        always: those that are shown whatever their value.
        default: of an option.
        positional: those that stand without their names, first.
    """
    words = [f"upcycle {verb}"]
    for key in positional:
        value = config[key]
        words += map(_word, value if isinstance(value, list) else [value])
    for key, value in config.items():
        usual = plain(default(key))
        if key in positional or (value == usual and key not in always):
            continue
        if isinstance(value, dict) and isinstance(usual, dict):
            words += [f"--{key}.{k} {_word(v)}" for k, v in value.items() if v != usual[k]]
        else:
            words.append(f"--{key} {_word(value)}")
    return " ".join(words)


def _word(value: Any) -> str:
    if isinstance(value, list):
        return "[" + ",".join(str(v) for v in value) + "]"
    return str(value).lower() if isinstance(value, bool) else str(value)


def is_files(reference: Any) -> bool:
    """Whether a data reference names files of a person's own, which can be brought to another size."""
    return isinstance(reference, str | Path) and (str(reference).startswith("hub:") or Path(reference).is_dir())


def estimate(work: float, setting: RunSetting, *, updates: int, runs: int = 1) -> str:
    """What ``--dry_run`` says of the time.

    Args:
        work: multiply-adds of all runs.
        updates: of one run.
    """
    mixed = setting.precision == "bf16-mixed" or (setting.precision == "auto" and fast_bf16())
    # Training reaches between most and an eighth of the rate of a large matrix product, by how small networks are.
    floor = 2 * work / matmul_rate(torch.bfloat16 if mixed else torch.float32)
    return (f"{runs} run(s) of {updates:,} updates; between {duration(1.25 * floor)} and {duration(8 * floor)} on "
            "this machine.\nNothing was written (--dry_run).")  # fmt: skip


# -- the run directory --------------------------------------------------------------------------------------------


def first_process() -> bool:
    """Whether this is the process that speaks and claims: Fabric starts others as the same command again."""
    return os.environ.get("LOCAL_RANK", "0") == "0"


def claim_directory(out: Path, *, resume: bool) -> None:
    """Make sure that ``out`` can be written and holds nothing that would be lost."""
    if "\0" in str(out):
        raise UserError(f"{str(out)!r} is no path; choose another --out.")
    if out.exists() and not out.is_dir():
        raise UserError(f"{out} is a file; choose another --out.")
    # A run that was killed while it wrote its first file has left nothing but a temporary one.
    used = out.is_dir() and any(p.suffix != ".tmp" for p in out.iterdir())
    if used and not resume:
        raise UserError(f"{out} exists and is not empty: add --resume to go on with it, or choose another --out.")
    # What stands beside a run comes first, so a run may have left nothing but that.
    if used and not (out / "config.yaml").exists() and not any(out.glob("more/*/config.yaml")):
        raise UserError(f"{out} holds no run that could go on (no config.yaml); choose another --out.")
    fresh = [p for p in (out, *out.parents) if not p.exists()]
    try:
        out.mkdir(parents=True, exist_ok=True)
        probe = out / ".writable.tmp"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise UserError(f"Cannot write to {out}: {error.strerror}. Choose another --out.") from error
    finally:
        for p in fresh:
            with contextlib.suppress(OSError):
                p.rmdir()


def run_in(directory: Path, setting: RunSetting, config: dict[str, Any], **options: Any) -> Run:
    """A run in ``directory`` with the devices and the precision of ``setting``."""
    options = {"seed": setting.seed, **options}
    return Run(
        directory,
        resume=setting.resume and (directory / "config.yaml").exists(),
        devices=setting.devices,
        accelerator=setting.accelerator,
        precision=setting.precision,
        save_every=setting.save_every,
        config=config,
        quiet=setting.quiet,
        **options,
    )


def leave(
    result: Result,
    cls: type[Method],
    parents: list[lineage.Node],
    data: Images,
    run: Run,
    *,
    config: dict[str, Any],
    command: str,
    seconds: float,
    figure: str = "test accuracy",
    seeds: list[int],
    more: dict[str, Any] | None = None,
) -> None:
    """Write the product with its lineage and card, ``result.json`` and the report into the run directory.

    Args:
        more: further JSON data for ``result.json``.
    """
    card, model = cls.card, result.model
    product = result.rows[-1]
    metrics: dict[str, float | list[float]] = {}
    if product.get("accuracy"):
        metrics[figure] = [round(a, 6) for a in product["accuracy"]]
    trained = {"name": data.name, "digest": data.digest, "licence": data.licence} if len(data.train) else None
    made_with = {key: value for key, value in config.items() if key != "out"}  # a place on the maker's machine
    tree = lineage.child(parents, name=model.name, digest=store.tensor_digest(model.module.state_dict()),
                         verb=card.verb, method=card.name, config=made_with, data=trained, metrics=metrics)  # fmt: skip
    model.lineage, model.licence = tree, tree["licence"]["id"]
    record = {
        "format": 1, "verb": card.verb, "method": card.name, "title": card.title, "paper": card.paper,
        "command": command, "date": time.strftime("%Y-%m-%d"), "seconds": round(seconds, 2),
        "sentence": result.sentence, "figure": figure,
        "data": {"name": data.title, "train": len(data.train), "validation": len(data.validation),
                 "test": len(data.test), "labelled": int((data.train.labels >= 0).sum()),
                 "classes": list(data.classes), "notes": data.notes, "chosen": data.chosen},
        "rows": result.rows, "seeds": seeds,
        "machine": {**machine(), **run.machine}, "config": config, "notes": run.notes,
        "versions": lineage.versions(), **(more or {}),
    }  # fmt: skip
    measured = {**record, "data": {"name": data.measured or data.name}}
    saved.save(model, result.directory / "model", readme=model_card(tree, measured))
    store.write_json(result.directory / "result.json", record)
    write_report(result.directory)


def tell(result: Result, run: Run, say: Say, figure: str = "test accuracy") -> None:
    """The end of a command: the table, the sentence, the notes, and where things lie."""
    say(table(result.rows, figure))
    say(result.sentence)
    for note in run.notes:
        say(f"note     {note}")
    say(f"Report: {result.report}\nModel:  {result.directory / 'model'}")


# -- figures ------------------------------------------------------------------------------------------------------


def row(name: str, role: str, arms: list[Evaluation], model: Model) -> dict[str, Any]:
    """One line of the comparison.

    Args:
        arms: what was measured, one for each seed; empty where there is nothing to measure with.
        model: whose size and speed it shows.
    """
    module, shape = model.module, model.input_shape
    cost = count(module, shape)
    figures = {"name": name, "role": role, "accuracy": [a.accuracy for a in arms], "parameters": cost.parameters,
               "macs": cost.macs, "latency": latency(module, shape), "memory": peak_memory(module, shape)}  # fmt: skip
    return {**figures, **figures_of(arms)} if arms else figures


def figures_of(arms: list[Evaluation]) -> dict[str, Any]:
    """The measured part of a line: accuracies of all seeds, the details of the first."""
    first = arms[0]
    bins = zip(*(first.confidence[k] for k in ("confidence", "accuracy", "count")), strict=True)
    return {"accuracy": [a.accuracy for a in arms], "per_class": first.per_class, "ece": first.ece,
            "confusion": first.confusion,
            "reliability": [dict(zip(("confidence", "accuracy", "count"), b, strict=True)) for b in bins]}  # fmt: skip


def spread(values: list[float]) -> str:
    """Mean and sample standard deviation, in per cent."""
    if not values:
        return ""
    mean = f"{100 * statistics.fmean(values):.1f}"
    return f"{mean} ± {100 * statistics.stdev(values):.1f} %" if len(values) > 1 else f"{mean} %"


def points(difference: float) -> str:
    """A difference of two shares in words: ``1.2 points above``."""
    return f"{abs(100 * difference):.1f} points {'above' if difference >= 0 else 'below'}"


def table(rows: list[dict[str, Any]], figure: str) -> str:
    """The comparison for a terminal: what a row has to show, a text by the name of its column, or else its costs."""
    own = list(dict.fromkeys(name for r in rows for name in r.get("shown", ())))
    lines = [("", figure, *(own or ("parameters", "multiply-adds", "latency", "memory")))]
    for r in rows:
        costs = (("parameters", si), ("macs", si), ("latency", duration), ("memory", bytes_))  # none of a black box
        cells = [show(r[key]) if key in r else "" for key, show in costs]
        cells = [r.get("shown", {}).get(name, "") for name in own] if own else cells
        lines.append((r["name"], spread(r["accuracy"]), *cells))
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    made = ["  ".join(c.ljust(w) if i == 0 else c.rjust(w) for i, (c, w) in enumerate(zip(line, widths, strict=True)))
            for line in lines]  # fmt: skip
    return "\n".join(["", made[0], "─" * len(made[0]), *made[1:], ""])
