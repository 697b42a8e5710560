"""Options of the verbs that make a model, how they are recorded, and the command line that repeats a run."""

from __future__ import annotations

import dataclasses
import inspect
import json
import math
import re
import shlex
import shutil
import sys
import textwrap
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TextIO

import torch

from upcycle.core import ingredients, loggers
from upcycle.core.devices import Processes, device_of, hurry, launch
from upcycle.core.errors import UserError, require, unknown, without_secrets
from upcycle.core.loggers import LoggerName
from upcycle.core.method import Method, built_in
from upcycle.core.models import Model
from upcycle.core.printable import printable
from upcycle.core.recipe import Recipe
from upcycle.core.spoken import spoken
from upcycle.core.world import check_devices, check_strategy
from upcycle.data import Collection
from upcycle.data.decode import readable
from upcycle.verbs.naming import Naming, Sight

Say = Callable[[str], None]
LABEL = 9
"""The width of a word, such as note or data, that what is said begins with, and of the space behind it."""


def tell(text: str, file: TextIO | None = None) -> None:
    """Print a sentence, or several lines, in the words of the reader; names that others wrote are text alone in it.

    On a terminal, sentences wrap at the ends of words; commands and tables stay as they are.
    """
    lines = printable(spoken(text), keep="\n").split("\n")
    if (file or sys.stdout).isatty():
        width = shutil.get_terminal_size().columns
        lines = [line for long in lines for line in _sentences(long, width)]
    print("\n".join(lines), file=file)


def _sentences(line: str, width: int) -> list[str]:
    """A line as it fits, with what follows below its text; what is no sentence stays whole."""
    before = LABEL if re.fullmatch(r"\w+ {2,}", line[:LABEL]) else len(line) - len(line.lstrip())
    indent = " " * before
    if len(line) <= width or "  " in line[len(indent) :] or "upcycle " in line:
        return [line]
    return textwrap.wrap(line, width, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)


@dataclass(kw_only=True)
class RunSetting(Sight):
    """Devices, seeds, and where it goes.

    Args:
        out: the run directory; if not given, one under runs/, named after the verb, the method and the data, with a
            number behind it where that is used.
        augment: resized_crop, crop, flip, color, or none, for training; auto takes crop and flip for colour images.
            resized_crop cuts a random window out of whole photographs, and goes with --keep_in_memory false.
        seed: the seed of everything random.
        seeds: how many runs, with seeds from seed on; the product is the first one's, the report shows their spread.
        workers: how many of these runs are made side by side, each in a process of its own with its part of the cores.
        devices: how many processes on each machine; if not given, one, or those that torchrun, SLURM or Kubernetes
            started.
        num_nodes: how many machines, on each of which this command is started.
        strategy: ddp, a copy of each network in every process, is the one that there is; auto takes it.
        accelerator: the kind of device, as in Lightning Fabric.
        precision: auto takes bf16-mixed where the machine's flags say that it is fast.
        tf32: let a GPU round what matrix products of float32 take to 10 bits, which is faster.
        cudnn_benchmark: let a GPU time its convolutions and take the fastest; other bits may come out each time.
        save_every: seconds between save points, whatever they cost; if not given, so many that they take at most 2 % of
            the time, and 15 at least.
        resume: go on from what the run directory holds.
        dry_run: validate, print cost and time, and stop.
        quiet: print only errors.
        logger: what else gets the figures, beside the run directory: tensorboard, wandb, mlflow or none; auto is
            tensorboard where it is installed.
    """

    out: Path | None = None
    augment: tuple[Literal["auto", "none", "resized_crop", "crop", "flip", "color"], ...] = ("auto",)
    seed: int = 0
    seeds: int = 1
    workers: int = 1
    devices: int | None = None
    num_nodes: int = 1
    strategy: str = "auto"
    accelerator: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    precision: Literal["auto", "32-true", "bf16-mixed", "64-true"] = "auto"
    tf32: bool = False
    cudnn_benchmark: bool = False
    save_every: float | None = None
    resume: bool = False
    dry_run: bool = False
    quiet: bool = False
    logger: LoggerName = "auto"

    def __post_init__(self) -> None:
        if self.out is not None:  # Python callers may give text
            self.out = Path(self.out)
        super().__post_init__()
        loggers.check(self.logger)
        require(self.seeds >= 1, f"seeds must be at least 1, not {self.seeds}.")
        require(self.workers >= 1, f"workers must be at least 1, not {self.workers}.")
        require(
            self.workers == 1 or (self.devices or 1) * self.num_nodes == 1,
            "workers make whole runs side by side, and devices divide each run; leave one of the two out.",
        )
        require(self.devices is None or self.devices >= 1, f"devices must be at least 1, not {self.devices}.")
        require(self.num_nodes >= 1, f"num_nodes must be at least 1, not {self.num_nodes}.")
        check_strategy(self.strategy)
        require(
            self.save_every is None or 0 <= self.save_every < math.inf,
            f"save_every must be a number of seconds, not {self.save_every}.",
        )
        require(
            len(self.augment) == 1 or not {"auto", "none"} & set(self.augment),
            f"augment cannot mix auto or none with others: it is {' '.join(self.augment)}.",
        )

    def launch(self) -> Processes:
        """Start the processes of a command, see :func:`upcycle.core.devices.launch`."""
        check_devices(self.devices, self.num_nodes)
        found = launch(self.devices, self.accelerator, self.num_nodes)
        hurry(tf32=self.tf32, cudnn_benchmark=self.cudnn_benchmark)
        return found

    @property
    def device(self) -> torch.device:
        """Where what is measured outside of runs is measured."""
        return device_of(self.accelerator)


@dataclass(kw_only=True)
class DataSetting:
    """The data of a verb.

    Args:
        data: digits, mnist, fashion_mnist, fashion_mnist_local, usps, cifar10, a folder of images, a Parquet
            folder, hub:ORG/NAME, or graphs. To assemble, also several with commas between them, one for each part, or
            none.
    """

    data: str | None = None


@dataclass(kw_only=True)
class Setting(RunSetting, DataSetting):
    """Data, devices, seeds, and where it goes."""


@dataclass(kw_only=True)
class NamedSetting(Naming, Setting):
    """Data, the network, devices, seeds, and where it goes."""


UNRECORDED = ("resume", "dry_run", "quiet", "logger", "save_every", "budget", "cache", "workers")
"""Options that change no result, and so are no part of a configuration."""


def split_options(cls: type[Method], kind: type, options: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Options for the dataclass ``kind`` and for the method, or an error for what belongs to neither."""
    fields = {f.name for f in dataclasses.fields(kind)}
    known = [*sorted(fields), *cls.options()]
    if "recipe" in options and "recipe" not in known:
        of = options["recipe"]
        require_recipe(cls, next(iter(of), "") if isinstance(of, dict) else "")
    for key, value in options.items():
        if key not in known and "recipe" in known and key in (f.name for f in dataclasses.fields(Recipe)):
            raise UserError(f"{key} is a part of the recipe: write recipe={{{key!r}: {value!r}}}.")
        if key not in known:
            raise unknown(f"option of {cls.card.name}", key, known)
    own = {key: value for key, value in options.items() if key not in fields}
    for key, value in own.items():  # a mapping changes some of a group, as options of the command line do
        if isinstance(value, dict) and dataclasses.is_dataclass(usual := default_of(cls, key)):
            own[key] = dataclasses.replace(usual, **value)  # type: ignore[type-var]  # a method's default, no class
    return {key: value for key, value in options.items() if key in fields}, own


def require_recipe(cls: type[Method], field: str) -> None:
    """Raise :class:`UserError` where a field of a recipe is set, and the method has no recipe."""
    if "recipe" not in cls.options():
        raise ingredients.without_recipe(cls, field, built_in)


def default_of(cls: type[Method], option: str) -> Any:
    """The default of a method's option."""
    f = cls.options()[option]
    return f.default_factory() if f.default_factory is not dataclasses.MISSING else f.default


def plain(value: Any) -> Any:
    """A value as YAML and JSON can hold it."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type | Model | Collection):
        return {f.name: plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, Path | str):
        return without_secrets(readable(str(value)))
    if isinstance(value, tuple | list):
        return [plain(item) for item in value]
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
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
    """The command that re-makes a run, as short as the defaults allow, quoted for a shell.

    Args:
        config: every option by its name.
        always: those that are shown whatever their value, unless that is nothing.
        default: of an option.
        positional: those that stand without their names, first.
    """
    words = ["upcycle", verb]
    for key in positional:
        value = config[key]
        words += map(str, value if isinstance(value, list) else [value])
    for key, value in config.items():
        usual = plain(default(key))
        if key in positional or (value == usual and (key not in always or value is None)):
            continue
        if isinstance(value, dict) and isinstance(usual, dict):
            for k, v in value.items():
                words += _option(f"{key}.{k}", v) if v != usual.get(k) else []
        else:
            words += _option(key, value)
    return shlex.join(words)


def command_of(
    verb: str,
    function: Callable[..., Any],
    typed: dict[str, Any],
    *,
    positional: tuple[str, ...],
    always: tuple[str, ...] = (),
) -> str:
    """The command that calls ``function`` with the arguments ``typed`` again; see :func:`command_line`."""
    usual, named = inspect.signature(function).parameters, Naming()
    given = {key: plain(value) for key, value in typed.items()}

    def default(key: str) -> Any:
        return usual[key].default if key in usual else getattr(named, key, None)

    return command_line(verb, given, always, default, positional)


_SIMPLE = re.compile(r"[\w./:+*?][\w./:+*?\[\]-]*")
"""An item that the command line reads back from a list with commas and without brackets."""


def _option(key: str, value: Any) -> list[str]:
    """An option and its value as words, such that the command line reads the value back."""
    if isinstance(value, list):
        simple = all(isinstance(v, str) and v != "null" and _SIMPLE.fullmatch(v) for v in value)
        text = ",".join(value) if value and simple else json.dumps(value, separators=(",", ":"), ensure_ascii=False)
    else:
        text = "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
        text = str(int(value)) if isinstance(value, float) and value.is_integer() and abs(value) < 1e6 else text
    return [f"--{key}={text}"] if text.startswith("-") else [f"--{key}", text]
