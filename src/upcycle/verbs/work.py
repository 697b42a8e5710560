"""What the verbs have in common that make one network of others: a command from its options to its run directory."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from torch import nn

from upcycle.core import models
from upcycle.core.errors import UserError, require
from upcycle.core.evaluate import Evaluation, evaluate
from upcycle.core.journal import require_same_config
from upcycle.core.lineage import Node
from upcycle.core.method import Method
from upcycle.core.models import Model
from upcycle.data import Images, check_reference
from upcycle.data import load as load_data
from upcycle.data.labels import relabelled
from upcycle.data.pool_files import parent_node
from upcycle.measure.cost import count
from upcycle.verbs.making import (
    UNRECORDED,
    DataSetting,
    Result,
    RunSetting,
    Say,
    augmented,
    claim_directory,
    command_line,
    default_of,
    estimate,
    find_method,
    first_process,
    is_files,
    leave,
    plain,
    run_in,
    show_accuracy,
    split_options,
    tell,
)

Reference = str | Path | nn.Module | Model


@dataclass(kw_only=True)
class Setting(RunSetting, DataSetting):
    """Data, devices, and where it goes.

    Args:
        data: digits, mnist, fashion_mnist, fashion_mnist_local, usps, cifar10, a folder of images, a Parquet
            folder, or hub:ORG/NAME. To assemble, also several with commas between them, one for each part, or none.
        augment: crop, flip, color, or none, for training; auto takes crop and flip for colour images.
    """

    augment: tuple[Literal["auto", "none", "crop", "flip", "color"], ...] = ("auto",)


class Work:
    """One command: its options, the checks before it, and what it leaves."""

    def __init__(
        self,
        verb: str,
        method: str | type[Method],
        networks: dict[str, Any],
        data: Any,
        say: Say,
        options: dict[str, Any],
        kind: Any = Setting,
        called: str = "data",
    ) -> None:
        """Options are checked as far as each can be alone.

        Args:
            kind: the dataclass of the verb's options; has a field for ``data``.
            called: the name of that field.
        """
        self.verb, self.networks, self.data_ref, self.called = verb, networks, data, called
        self.cls: Any = method if isinstance(method, type) else find_method(method, verb)
        common, self.own = split_options(self.cls, kind, options)
        self.kind: Any = kind
        self.setting: Setting = kind(**common, **{called: data if isinstance(data, str) else None})
        self.say: Say = say if first_process() and not self.setting.quiet else lambda text: None
        named = "-".join(Path(part).name for part in data.split(",")) if isinstance(data, str) else "data"
        self.out = self.setting.out or Path("runs") / f"{verb}-{self.cls.card.name}-{named.replace(':', '-')}"

    def check(
        self,
        probe: dict[str, Any],
        sets: Sequence[Any] | None = None,
        looks: dict[str, Callable[[str], None]] | None = None,
        look: Callable[[str], None] = check_reference,
    ) -> None:
        """Everything that can be known to be wrong without building or reading anything large.

        Args:
            probe: stand-ins for the networks, and for what else the method is given.
            sets: references of the data, if they are several.
            looks: what checks the references of some networks, in place of :func:`models.check_reference`.
            look: what checks the references of the data.
        """
        for name, value in self.networks.items():
            for reference in value if isinstance(value, list) else [value]:
                if isinstance(reference, str):
                    require(bool(reference.strip()), f"{self.verb} was given a model without a name.")
                    (looks or {}).get(name, models.check_reference)(reference)
        for reference in sets or [self.data_ref]:
            if isinstance(reference, str):
                look(reference)
        self.cls(**probe, **self.own)  # its __post_init__ checks the values
        if not self.setting.dry_run and first_process():
            claim_directory(self.out, resume=self.setting.resume)
            if self.setting.resume:
                for file in (self.out / "config.yaml", *sorted(self.out.glob("more/*/config.yaml"))):
                    require_same_config(file, self.config())

    def load(self, reference: Any, like: Model, *, other_task: bool = False) -> Images:
        """The images; those of a person's own, or of another task, are brought to what a network takes."""
        channels, height, _ = like.input_shape
        loaded = isinstance(reference, Images)  # in Python, which are as they are
        files, size = (is_files(reference) or other_task) and not loaded, self.setting.size
        data = load_data(reference, size=size or height if files else size, channels=channels if files else None)
        if data.shape[0] != channels:
            raise UserError(f"{like.name} takes {channels} input channels, and the images of {data.name} have "
                            f"{data.shape[0]}.")  # fmt: skip
        return data

    def load_any(self, reference: Any) -> Images:
        """The images as they are, or at the side asked for."""
        return load_data(reference, size=self.setting.size)

    def augmented(self, data: Images) -> Images:
        """``data`` with the augmentation of the setting."""
        return augmented(data, self.setting.augment)

    def measure(self, role: str, model: Model, data: Images) -> None:
        """Say how good a network is on these data; see :func:`show_accuracy`."""
        show_accuracy(self.say, role, model, data, self.setting.device)

    def measured(self, model: Model, data: Images) -> list[Evaluation]:
        """A model on the test images of its own classes."""
        test = relabelled(data, model.classes).normalised(model.mean, model.std).test
        return [evaluate(model.module, test, device=self.setting.device)] if len(test) else []

    def do(
        self,
        method: Method,
        data: Images,
        parents: list[tuple[str, Model]],
        rows: Callable[[Model, Images, dict[str, Model]], list[dict[str, Any]]],
        positional: tuple[str, ...],
        sentence: Callable[[list[dict[str, Any]], Model, Images], str],
        used: Callable[[Model], list[tuple[str, Model]]] | None = None,
        pictures: Callable[[list[dict[str, Any]]], dict[str, dict[str, Any]]] = lambda lines: {},
        beside: dict[str, tuple[Method, Images]] | None = None,
        origins: Sequence[Node] = (),
    ) -> Result:
        """Run the method, measure, and leave the run directory.

        Args:
            parents: the networks given, with their roles.
            rows: the lines of the comparison, from the product, the data, and what ``beside`` made.
            positional: networks that stand without their names on the command line.
            sentence: what came out, in one sentence, from the lines.
            used: of the networks given those that went into the product; all if not given.
            pictures: further ones, from the lines.
            beside: arms that run first with the same seed, by name, each with its data: what the method is to be
                compared with.
            origins: the lineage of what the product was made from besides networks.
        """
        start, setting = time.time(), self.setting
        method.require(data)
        if setting.dry_run:
            known = [m for _, m in parents]
            if "student" in method.roles:
                known.append(method.model("student", data))
            n, macs = len(data.train), max(count(m.module, m.input_shape).macs for m in known)
            arms = [(method, n), *((arm, len(its.train)) for arm, its in (beside or {}).values())]
            total, updates = sum(m.work(k, macs, macs) for m, k in arms), sum(m.steps(k) for m, k in arms)
            self.say(estimate(total, setting, updates=updates))
            return Result(directory=self.out, model=known[0], rows=[], sentence="",
                          report=self.out / "report.html")  # fmt: skip
        others = {}
        for name, (arm, its) in (beside or {}).items():
            aside = run_in(
                self.out / "more" / f"{name.replace(' ', '-')}-{setting.seed}", setting, {"arm": name, **self.config()}
            )
            with aside.interruptible():
                others[name] = arm.product(arm.fit(aside, its).float(), its)
            aside.close()
        run = run_in(self.out, setting, self.config())
        with run.interruptible():
            module = method.fit(run, data).float()
        product = method.product(module, data)
        lines = rows(product, data, others)
        result = Result(directory=self.out, model=product, rows=lines, sentence=sentence(lines, product, data),
                        report=self.out / "report.html")  # fmt: skip
        for note in data.notes:
            run.note(note)
        for name, picture in pictures(lines).items():
            run.picture(name, picture)
        if run.rank == 0:
            shown = data.only(product.classes) if set(product.classes) < set(data.classes) else data
            named = tuple(name for name, value in self.networks.items() if value is not None and name not in positional)
            command = command_line(self.verb, self.config(), ("data", *named), self._default_of, positional)
            family = [parent_node(model, role) for role, model in (used(product) if used else parents)] + [*origins]
            leave(result, self.cls, family, shown, run,
                  config=self.config(), command=command, seconds=time.time() - start, seeds=[setting.seed])  # fmt: skip
            tell(result, run, self.say)
        run.close()
        return result

    def config(self) -> dict[str, Any]:
        """Everything that re-makes this run, as plain data in the names of the command line."""
        own = {key: self.own.get(key, default_of(self.cls, key)) for key in self.cls.options()}
        names = [f.name for f in dataclasses.fields(self.kind) if f.name not in UNRECORDED]
        common = {name: getattr(self.setting, name) for name in names}
        config = {**self.networks, "method": self.cls.card.name, **common, self.called: self.data_ref, "out": self.out,
                  **own}  # fmt: skip
        return {key: plain(value) for key, value in config.items()}

    def _default_of(self, key: str) -> Any:
        if key == "method":
            return self.cls.card.name
        return default_of(self.cls, key) if key in self.cls.options() else getattr(self.kind(), key, None)
