"""The engine of the verbs that make a model: arms, each run with every seed, and what they leave.

A verb resolves networks and data, says which arms there are, and puts the outcome into a sentence; see
:func:`upcycle.verbs.treat.treat`, the shortest.
"""

from __future__ import annotations

import contextlib
import dataclasses
import shlex
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch

from upcycle.core import ingredients, inputs, references
from upcycle.core.building import code_of
from upcycle.core.devices import Processes
from upcycle.core.errors import one_line, require
from upcycle.core.evaluate import evaluate
from upcycle.core.journal import require_same_config
from upcycle.core.lineage import Node
from upcycle.core.method import Method
from upcycle.core.models import Model
from upcycle.core.precision import choose
from upcycle.core.run import Run
from upcycle.core.spoken import spoken
from upcycle.core.task import Evaluation
from upcycle.core.world import first_process
from upcycle.data import Collection, Images, check_reference
from upcycle.data.images import as_images
from upcycle.data.labels import relabelled
from upcycle.data.sources import spelled
from upcycle.data.streams import Stream
from upcycle.measure.machine import matmul_rate
from upcycle.measure.units import duration
from upcycle.verbs import DEFAULT_METHOD, figures, workers
from upcycle.verbs.arms import Arm, Fitted, Make, Measure, Result, answered_at_once, notes_of
from upcycle.verbs.directory import claim_directory, named_after, own_place, write_result
from upcycle.verbs.loading import augmented, load_for
from upcycle.verbs.methods import find_method, name_of, plugin_of
from upcycle.verbs.options import UNRECORDED, Say, Setting, command_line, default_of, plain, split_options

BOUNDS, GRAPH_BOUNDS = (1.25, 8), (8, 120)
"""How much longer training takes than its multiply-adds at the rate of a large matrix product, between these."""


def _spelled(value: Any) -> Any:
    """References as their libraries write them; modules as they are."""
    if isinstance(value, list):
        return [_spelled(one) for one in value]
    return references.spelled(value) if isinstance(value, str) else value


class Session:
    """One command of a verb: its options, the checks before it, its runs, and its directory."""

    def __init__(
        self,
        verb: str,
        method: str | type[Method],
        networks: dict[str, Any],
        data: Any,
        say: Say,
        options: dict[str, Any],
        *,
        kind: Any = Setting,
        called: str = "data",
        positional: tuple[str, ...] = (),
    ) -> None:
        """Options are checked as far as each can be alone.

        Args:
            networks: what the verb was given, by the names of its arguments.
            data: reference of the data, or the data themselves.
            kind: the dataclass of the verb's options; has a field for ``data``.
            called: the name of that field.
            positional: networks that stand without their names on the command line.
        """
        self.start = time.time()
        data = spelled(data)
        self.verb, self.networks, self.data_ref = verb, networks, data
        self.called, self.positional, self.kind = called, positional, kind
        self.cls: Any = method if isinstance(method, type) else find_method(method, verb)
        common, self.own = split_options(self.cls, kind, options)
        self.setting: Any = kind(**common, **{called: data if isinstance(data, str) else None})
        self.seeds = list(range(self.setting.seed, self.setting.seed + self.setting.seeds))
        self._aloud: Say = say if first_process() and not self.setting.quiet else lambda text: None
        self._said: list[str] = []  # before there was a directory to write it into
        self.figure = "test accuracy"
        self.processes: Processes | None = None  # of this command, once it is checked
        self._main: Run | None = None  # of the product with the first seed; open until everything is left
        usual = Path("runs") / f"{verb}-{self.cls.card.name}-{named_after(data, called)}"
        self.out = self.setting.out or own_place(usual, self.setting, self.say)
        self._product: Arm | None = None
        self._workers = workers.Workers(())
        self._own, self._begun = range(0), 0  # the runs that are this process' own among all, and how many are begun

    def say(self, text: str) -> None:
        """Say something aloud, unless all is quiet, and in any case in ``log.txt``."""
        self._aloud(spoken(text))
        if self._main is None:
            self._said.append(text)
        else:
            self._main.journal.transcript.write(text)

    # -- before any work ----------------------------------------------------------------------------------------

    def check(
        self,
        sets: Sequence[Any] | None = None,
        look: Callable[[str], None] = check_reference,
        looks: Mapping[str, Callable[[str], None]] | None = None,
    ) -> None:
        """Everything that can be known to be wrong without building or reading anything large.

        Args:
            sets: references of the data, if they are several.
            look: checks a reference of the data.
            looks: checks the references of some networks, in place of :func:`references.check_reference`.
        """
        for name, value in self.networks.items():
            for reference in value if isinstance(value, list) else [value]:
                if isinstance(reference, str):
                    require(bool(reference.strip()), f"{self.verb} was given a model without a name.")
                    (looks or {}).get(name, references.check_reference)(reference)
            if name not in (looks or {}):  # as its library writes it, so that a run's record has one name for it
                self.networks[name] = _spelled(value)
        for reference in [self.data_ref] if sets is None else sets:
            if isinstance(reference, str):
                look(reference)
        made = self.cls(**self.cls.stand_ins(), **self.own)  # its __post_init__ checks the values
        made.require_ingredients()
        if not self.setting.dry_run and first_process() and workers.worker() is None:
            claim_directory(self.out, resume=self.setting.resume)
            if self.setting.resume:
                require_same_config(self.out / "config.yaml", self.config())
        if not self.setting.dry_run:  # before data are loaded, so that processes do so side by side
            self.processes = self.setting.launch()

    def method(self, data: Any = None, **given: Any) -> Any:
        """The method with its options, on these networks and what else it is given.

        Args:
            data: where one forward answers all of them, they are a batch, unless another size of it was asked for.
        """
        own = dict(self.own)
        if data is not None and data.train.together and "recipe" in self.cls.options():
            recipe = own.get("recipe", usual := default_of(self.cls, "recipe"))
            if recipe.batch_size == usual.batch_size:
                own["recipe"] = dataclasses.replace(recipe, batch_size=0)
        return self.cls(**given, **own)

    def load(self, reference: Any, like: Model, *, other_task: bool = False) -> Images:
        """The images at the side asked for; see :func:`load_for`."""
        setting = self.setting
        asked = {"columns": setting.columns, "long_tail": setting.long_tail, **setting.kept}
        reading = setting.reading(like.reading)
        return as_images(load_for(like, reference, setting.sides, reading=reading, other_task=other_task, **asked))

    def augmented(self, data: Images) -> Images:
        """``data`` with the augmentation of the setting."""
        return augmented(data, self.setting.augment)

    def show(self, role: str, model: Model, data: Collection) -> None:
        """Say how good a network is on these data; see :func:`figures.show_accuracy`."""
        figures.show_accuracy(self.say, role, model, data, self.setting.device)

    def measured(self, model: Model, data: Images) -> list[Evaluation]:
        """A model on the test images of its own classes, if there are any."""
        if not data.test.labelled:
            return []
        test = relabelled(data, model.classes).normalised(model.mean, model.std).test
        where, among = self.setting.device, self.processes
        return [evaluate(model.module, test, device=where, among=among)] if len(test) else []

    # -- arms ---------------------------------------------------------------------------------------------------

    def arms(self, make: Make, **product: Any) -> tuple[Arm, list[Arm]]:
        """The product's arm and those of the controls that its method names, unless ``control`` is off.

        Args:
            make: the method and its data, from a seed.
            product: further fields of the product's arm.

        Raises:
            UserError: the method cannot run on these data.
        """
        method, data = make(self.setting.seed)
        method.require(data, self.precision(data))
        for note in notes_of(method, data):
            self.say(f"note     {note}")
        main = Arm(make=make, **product)
        if not getattr(self.setting, "control", True):
            return main, []

        def control(name: str, seed: int) -> tuple[Method, Any]:
            method, data = make(seed)
            return method.controls()[name].method, data

        beside = [
            Arm(name=name, role=found.role, words=found.words, make=partial(control, name), after=main.after)
            for name, found in method.controls().items()
        ]
        return main, beside

    def precision(self, data: Any) -> str:
        """The number format that runs on these data train in."""
        return choose(self.setting.precision, self.setting.device, data.takes.kind)

    def estimate(
        self, arms: Sequence[Arm], model: Model, *, teacher: int | None = None, student: int | None = None
    ) -> Result:
        """Say what the arms would cost (``--dry_run``).

        Args:
            arms: the product's first.
            model: stands in the result.
            teacher: multiply-adds of one forward of the teacher; those of ``model`` if not given.
            student: likewise, of the network that is trained.
        """
        setting, work, updates = self.setting, 0.0, []
        macs = figures.macs(model)
        teacher, student = (macs if given is None else given for given in (teacher, student))
        for arm in arms:
            method, data = arm.make(setting.seed)
            tasks = [data.task(t) for t in range(len(data))] if isinstance(data, Stream) else [data]
            updates.append(sum(method.steps(len(task.train)) for task in tasks))
            for task in tasks:
                forwards = answered_at_once(method, task)
                each = method.work(len(task.train), teacher // forwards, student // forwards)
                work += ingredients.times(method) * each
        mixed = self.precision(data) == "bf16-mixed"
        # Training reaches between most and an eighth of the rate of a large matrix product, by how small networks are;
        # over graphs less, where time goes into what is gathered along edges.
        least, most = GRAPH_BOUNDS if data.takes.kind == "graphs" else BOUNDS
        floor = 2 * len(self.seeds) * work / matmul_rate(torch.bfloat16 if mixed else torch.float32)
        runs, bounds = len(self.seeds) * len(arms), f"between {duration(least * floor)} and {duration(most * floor)}"
        sentence = f"{runs} run(s) of {updates[0]:,} updates; {bounds} on this machine."
        self.say(sentence)
        self.say("Nothing was written (--dry_run).")
        return Result(directory=self.out, model=model, rows=[], sentence=sentence)

    def run(self, product: Arm, beside: Sequence[Arm], measure: Measure, **options: Any) -> tuple[Fitted, list[Fitted]]:
        """Run every arm with every seed, and measure what each run makes.

        Args:
            options: of each :class:`~upcycle.core.run.Run`, beside those of every verb.

        Returns:
            what the product's runs left, and those of each arm beside it.
        """
        self._product = product
        pairs = [(arm, seed) for arm in (product, *beside) for seed in self.seeds]
        if (share := workers.worker()) is not None:
            for i in share.of(len(pairs)):
                self._fit(*pairs[i], options)[0].close()
            sys.exit(0)
        among = min(self.setting.workers, len(pairs))
        self._own = workers.Share(0, among).of(len(pairs))
        with workers.begun(self._again, among) as self._workers:
            made, *others = [self._fitted(arm, measure, options) for arm in (product, *beside)]
        return made, others

    def _again(self) -> list[str]:
        """The words of this command, for a process that makes a part of its runs."""
        workers.require_names((*self.networks.values(), self.data_ref))
        typed = {**self.config(), **workers.unrecorded(self.setting, self.out)}
        return shlex.split(self._line(typed))[1:]

    @cached_property
    def _beside(self) -> tuple[dict[str, str], dict[str, str]]:
        """The digests of the files that options name, and of the code that networks and the method come from."""
        named = {f.name: getattr(self.setting, f.name) for f in dataclasses.fields(self.kind)}
        files = {name: value for name, value in named.items() if name not in (self.called, "out", "test_data")}
        references = [
            one for value in self.networks.values() for one in (value if isinstance(value, list) else [value])
        ]
        found = [code_of(one) for one in references if isinstance(one, str)]
        found += [None if (plugin := plugin_of(self.cls)) is None else Path(plugin)]
        return inputs.of_options(files), {file.name: inputs.of_file(file) for file in found if file is not None}

    def _fitted(self, arm: Arm, measure: Measure, options: dict[str, Any]) -> Fitted:
        found: Fitted | None = None
        for seed in self.seeds:
            if self._begun == self._own.stop:
                self._workers.wait()
            run, model, data = self._fit(arm, seed, options)
            self._begun += 1
            found = found or Fitted(arm=arm, model=model, data=data)
            found.left.append(run.left)
            for evaluation in measure(model, data):
                found.measured.append(evaluation)
                self.say(f"{arm.name}, seed {seed}: {self.figure} {figures.scored([evaluation.score], model.task)}")
            if run is not self._main:
                run.close()
        assert found is not None  # there is at least one seed
        return found

    def _fit(self, arm: Arm, seed: int, options: dict[str, Any]) -> tuple[Run, Model, Any]:
        """Run an arm with a seed: the run, its product, and the data that this is measured on."""
        method, data = arm.make(seed)
        run = self._open(arm, seed, data, options)
        with self._closing(run), run.interruptible():
            for note in notes_of(method, data):
                run.note(note)
            method.begin(run, data, *self._beside)
            run.journal.transcript.release()
            module = method.fit(run, data).float()
        # It is used on images that became pixels as those did that it was trained on.
        model = dataclasses.replace(method.product(module, data), reading=data.reading)
        return run, model, arm.after(run, data)

    @contextlib.contextmanager
    def _closing(self, run: Run) -> Iterator[None]:
        """Let others write the directories when something ends the command."""
        try:
            yield
        except BaseException as error:
            for opened in (run, self._main):
                if opened is not None:
                    opened.journal.transcript.write(f"stopped: {one_line(error)}")
                    opened.close()
            raise

    def _open(self, arm: Arm, seed: int, data: Any, options: dict[str, Any]) -> Run:
        """The run of an arm with a seed: in the directory itself, or in ``more/`` beside it."""
        config, place, setting = self.config(), self.out, self.setting
        elsewhere = workers.worker() is not None
        if self._main is not None or elsewhere:
            place = self.out / "more" / f"{arm.name.replace(' ', '-')}-{seed}"
            config |= {"seed": seed, "seeds": 1}
            if arm is self._product:  # so that its file alone makes it again
                config |= {name: False for name in ("alone", "control") if name in config}
            else:
                config = {"arm": arm.name, **config}
        resume = (setting.resume or elsewhere or self._begun >= self._own.stop > 0) and (place / "config.yaml").exists()
        same = self._shared("devices", "num_nodes", "accelerator", "precision", "save_every", "quiet", "logger")
        if data.takes.kind != "images" and setting.precision == "auto":
            same["precision"] = "32-true"
        run = Run(place, seed=seed, resume=resume, config=config, **same, **options)
        if self._main is None and not elsewhere:
            run.journal.transcript.hold()  # until the run takes what it is given
            begun = ["goes on from what this directory holds"] if resume else []
            run.journal.transcript.write("\n".join([*begun, self.command(), *self._said]))
        self._main = self._main or (None if elsewhere else run)
        return run

    def _shared(self, *names: str) -> dict[str, Any]:
        """Options of the verb by their names."""
        return {name: getattr(self.setting, name) for name in names}

    # -- after it -----------------------------------------------------------------------------------------------

    def leave(
        self,
        made: Fitted,
        rows: list[dict[str, Any]],
        sentence: str,
        *,
        parents: Sequence[Node],
        data: Collection,
        notes: Sequence[str] = (),
        pictures: Mapping[str, dict[str, Any]] | None = None,
        more: dict[str, Any] | None = None,
        metrics: Mapping[str, float] | None = None,
    ) -> Result:
        """Write the run directory, and say what came out.

        Args:
            rows: of the comparison; the product's is the last.
            parents: the lineage of what the product was made from.
            data: that it was trained and measured on.
            notes: that a person must read, beside those of the data and of the method.
            pictures: for the report, beside those of the method.
            more: further JSON data for ``result.json``.
            metrics: further figures of the product, for its lineage.
        """
        run, product, config = self._main, made.model, self.config()
        assert run is not None
        rows = run.fabric.broadcast(rows)  # what it costs is measured by the first process alone
        figures.alike(rows)
        result = Result(directory=self.out, model=product, rows=rows, sentence=sentence, figure=self.figure)
        for note in (*data.notes, *data.remarks, *notes):
            run.note(note)
        for name, picture in (pictures or {}).items():
            run.picture(name, picture)
        if run.rank == 0:
            shown = data.only(product.classes) if set(product.classes) < set(data.classes) else data
            facts = {
                "command": self.command(),
                "seconds": round(time.time() - self.start, 2),
                "sentence": sentence,
                "seeds": self.seeds,
                **(more or {}),
            }
            write_result(
                self.out,
                self.cls,
                product,
                list(parents),
                shown,
                run,
                rows=rows,
                config=config,
                figure=self.figure,
                facts=facts,
                further=metrics or {},
            )
            self.say(figures.table(rows, self.figure))
            self.say(sentence)
            for note in run.notes:
                self.say(f"note     {note}")
            self.say(f"Report: {result.report}\nModel:  {self.out / 'model'}")
        run.close()
        return result

    # -- configuration ------------------------------------------------------------------------------------------

    def config(self) -> dict[str, Any]:
        """Everything that re-makes this run, as plain data in the names of the command line."""
        own = {key: self.own.get(key, default_of(self.cls, key)) for key in self.cls.options()}
        names = [f.name for f in dataclasses.fields(self.kind) if f.name not in UNRECORDED]
        config = {**self.networks, "method": name_of(self.cls), self.called: None}
        config |= {name: getattr(self.setting, name) for name in names}
        if (plugin := plugin_of(self.cls)) is not None:
            config["plugin"] = plugin
        config |= {self.called: self.data_ref, "out": self.out, **own}
        return {key: plain(value) for key, value in config.items()}

    def command(self) -> str:
        """The command line that re-makes this run, as short as the defaults allow."""
        return self._line({**self.config(), "out": plain(self.setting.out)})

    def _line(self, typed: dict[str, Any]) -> str:
        always = (*self.networks, "method", self.called)
        return command_line(self.verb, typed, always, self._default_of, self.positional)

    def _default_of(self, key: str) -> Any:
        if key == "method":
            return DEFAULT_METHOD[self.verb]
        return default_of(self.cls, key) if key in self.cls.options() else getattr(self.kind(), key, None)
