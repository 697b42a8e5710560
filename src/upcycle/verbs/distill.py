"""``upcycle distill``: from references and a folder of data to a student, its numbers and its report."""

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
from typing import Any, Literal

import torch
from torch import nn

from upcycle.core import lineage, models, store
from upcycle.core.cost import Cost, bytes_, count, duration, latency, machine, matmul_rate, peak_memory, si
from upcycle.core.errors import UserError, require, unknown
from upcycle.core.evaluate import Evaluation, evaluate, predict_logits
from upcycle.core.frozen import fast_bf16
from upcycle.core.method import Method
from upcycle.core.models import Model
from upcycle.core.outputs import Columns
from upcycle.core.recipe import Recipe
from upcycle.core.run import Run, seed_everything
from upcycle.data import Images, describe
from upcycle.data import load as load_data
from upcycle.data.labels import match_classes, read_label_map
from upcycle.data.pool_files import PREFIX, lineage_of, load_pool, pool_directory, teacher_node, weights_digest
from upcycle.distillation import KD
from upcycle.report import write_report
from upcycle.verbs.methods import all_methods, plugin_of

Say = Callable[[str], None]


@dataclass(kw_only=True)
class Setting:
    """The options of ``distill`` that belong to no method.

    Args:
        data: digits, mnist, fashion_mnist, fashion_mnist_local, usps, cifar10, a folder of images, a Parquet
            folder, pool:PATH, or hub:ORG/NAME. Not given, it is digits, and none for methods that make their own
            images.
        test_data: measure on the validation and test images of this set instead; nothing else is done with it.
        out: the run directory; runs/distill-METHOD-DATA if not given.
        size: resize images to this side, in pixels; without data, the side of the images to make.
        shots: keep only so many training images of each class (0: all).
        labels: keep labels for only so many training images of each class (-1: all, 0: none).
        augment: crop, flip, color, or none; auto takes crop and flip for colour images, and crop for grey ones
            that a method makes itself.
        teacher_weights: a safetensors file for the teacher.
        teacher_mean: what the teacher's inputs are normalised with, one value a channel.
        teacher_std: see teacher_mean.
        student_weights: a safetensors file to start from, or pretrained; fresh weights if not given.
        label_map: CSV with columns teacher,student that maps class names.
        seed: of everything random.
        seeds: how many runs, with seeds from seed on; the report shows their spread.
        alone: also train the student without a teacher, on the labels there are, with as many updates.
        devices: how many processes.
        accelerator: as in Lightning Fabric.
        precision: auto takes bf16-mixed where the machine's flags say that it is fast.
        teacher_precision: auto takes bf16 for the teacher where its answers stay the same.
        compile: torch.compile; pays for itself in long runs.
        save_every: seconds between save points.
        resume: go on from what the run directory holds.
        dry_run: validate, print cost and time, and stop.
        trust: packages whose code a saved model's callable reference may run.
        quiet: print only errors.
    """

    data: str | None = None
    test_data: str | None = None
    out: Path | None = None
    size: int | None = None
    shots: int = 0
    labels: int = -1
    augment: tuple[Literal["auto", "none", "crop", "flip", "color"], ...] = ("auto",)
    teacher_weights: Path | None = None
    teacher_mean: tuple[float, ...] | None = None
    teacher_std: tuple[float, ...] | None = None
    student_weights: str | None = None
    label_map: Path | None = None
    seed: int = 0
    seeds: int = 1
    alone: bool = False
    devices: int = 1
    accelerator: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    precision: Literal["auto", "32-true", "bf16-mixed", "64-true"] = "auto"
    teacher_precision: Literal["auto", "32-true"] = "auto"
    compile: bool = False
    save_every: float = 15.0
    resume: bool = False
    dry_run: bool = False
    trust: tuple[str, ...] = ()
    quiet: bool = False

    def __post_init__(self) -> None:
        for name in ("out", "teacher_weights", "label_map"):  # Python callers may give text
            if getattr(self, name) is not None:
                setattr(self, name, Path(getattr(self, name)))
        require(self.shots >= 0, f"shots must not be negative, it is {self.shots}.")
        require(self.labels >= -1, f"labels must be -1 (all) or more, not {self.labels}.")
        require(self.seeds >= 1, f"seeds must be at least 1, not {self.seeds}.")
        require(self.devices >= 1, f"devices must be at least 1, not {self.devices}.")
        require(0 <= self.save_every < math.inf, f"save_every must be a number of seconds, not {self.save_every}.")
        require(self.size is None or self.size >= 1, f"size must be positive, not {self.size}.")
        require(len(self.augment) == 1 or not {"auto", "none"} & set(self.augment),
                f"augment cannot mix auto or none with others: it is {' '.join(self.augment)}.")  # fmt: skip


@dataclass(kw_only=True)
class Result:
    """What a verb leaves: the directory, the product, and the numbers that its report shows."""

    directory: Path
    student: Model
    rows: list[dict[str, Any]]
    sentence: str
    report: Path


def distill(
    *,
    student: str | nn.Module | Model,
    teacher: str | nn.Module | Model | None = None,
    method: str | type[Method] = "kd",
    data: Any = None,
    say: Say = print,
    **options: Any,
) -> Result:
    """Distil ``teacher`` into ``student``.

    Args:
        student: reference, module or :class:`~upcycle.core.models.Model`; a module is copied, not changed.
        teacher: likewise; not needed by teacher-free methods.
        method: a name of ``upcycle methods``, ``package.module:Class``, or a class.
        data: see :func:`upcycle.data.load`; ``None`` is digits, or no data for methods that make their own.
        say: where progress lines go.
        options: fields of :class:`Setting` and of the method.

    Raises:
        UserError: before any work where the request cannot work.
    """
    cls = method if isinstance(method, type) else find_method(method)
    fields = {f.name for f in dataclasses.fields(Setting)}
    known = [*sorted(fields), *cls.options()]
    for key in options:
        if key not in known:
            raise unknown(f"option of {cls.card.name}", key, known)
    if data is None:
        data = "none" if cls.card.needs.data == "none" else "digits"
    setting = Setting(**{key: value for key, value in options.items() if key in fields},
                      data=data if isinstance(data, str) else "data")  # fmt: skip
    own = {key: value for key, value in options.items() if key not in fields}
    for key, value in own.items():  # nested dataclasses may come as plain mappings
        if isinstance(value, dict) and dataclasses.is_dataclass(kind := type(_default(cls, key))):
            own[key] = kind(**value)
    return _Distillation(cls, setting, own, teacher, student, data, (lambda text: None) if setting.quiet else say).run()


def find_method(name: str) -> type[Method]:
    """A method by its command-line name or as ``package.module:Class``."""
    if ":" in name:
        found = models.import_object(name)
        if isinstance(found, type) and issubclass(found, Method):
            return found
        raise UserError(f"{name} is not a Method class.")
    known = {m.card.name: m for m in all_methods()}
    if name not in known:
        raise unknown("method", name, known)
    return known[name]


def _default(cls: type[Method], option: str) -> Any:
    f = cls.options()[option]
    return f.default_factory() if f.default_factory is not dataclasses.MISSING else f.default


class _Distillation:
    """One ``distill`` command: the things it resolves, in the order in which it needs them."""

    def __init__(
        self,
        cls: type[Method],
        setting: Setting,
        options: dict[str, Any],
        teacher: Any,
        student: Any,
        data: Any,
        say: Say,
    ) -> None:
        self.cls: Any = cls  # a dataclass with teacher and student, which its base does not have
        self.setting, self.options = setting, options
        # Fabric starts further processes as the same command again; only the first one speaks and claims.
        self.first = os.environ.get("LOCAL_RANK", "0") == "0"
        self.say: Say = say if self.first else lambda text: None
        self.teacher_ref, self.student_ref, self.data_ref = teacher, student, data
        self.free = cls.card.needs.data == "none"
        # What the figures are: without real labels to measure with, agreement with the teacher.
        self.figure = "agreement" if self.free and setting.test_data is None else "test accuracy"
        default = Path("runs") / f"distill-{cls.card.name}-{Path(setting.data or 'data').name.replace(':', '-')}"
        self.out = setting.out or default

    def run(self) -> Result:
        start, setting = time.time(), self.setting
        self._validate()
        teacher, whole = self._resolve()
        student = self._student(teacher, whole, setting.seed)
        data = self._prepared(whole, student, setting.seed)
        self._method(teacher, student).require(data)
        require(not setting.alone or int((data.train.labels >= 0).sum()) >= 2,
                "The student cannot be trained alone without labels; drop --alone or keep some --labels.")  # fmt: skip
        self._show_teacher(teacher, data)
        teacher_cost, student_cost = self._costs(teacher, student)
        if setting.dry_run:
            self._dry_run(self._method(teacher, student), teacher_cost, student_cost, data)
            return Result(directory=self.out, student=student, rows=[], sentence="", report=self.out / "report.html")

        arms: dict[str, list[Evaluation]] = {}
        product, run, data = self._fit("student", setting.seed, self.out, teacher, whole, arms)
        for seed in range(setting.seed + 1, setting.seed + setting.seeds):
            self._fit("student", seed, self.out / "more" / f"student-{seed}", teacher, whole, arms)
        if setting.alone:
            for seed in range(setting.seed, setting.seed + setting.seeds):
                self._fit("alone", seed, self.out / "more" / f"alone-{seed}", teacher, whole, arms)
        rows = []
        if teacher is not None:
            measured = evaluate(
                teacher.module, data.normalised(teacher.mean, teacher.std).test, device=torch.device("cpu")
            )
            rows.append(_row(teacher.name, "teacher", [measured], teacher_cost, teacher))
        if setting.alone:
            rows.append(_row(f"{student.name} alone", "alone", arms["alone"], student_cost, product))
        rows.append(_row(f"{student.name} by {self.cls.card.name}", "student", arms["student"], student_cost, product))
        result = Result(directory=self.out, student=product, rows=rows, report=self.out / "report.html",
                        sentence=_sentence(rows, data, agreement=not len(whole.test)))  # fmt: skip
        if run.rank == 0:
            self._leave(result, teacher, data, run, time.time() - start)
            self.say(_table(rows, self.figure))
            self.say(result.sentence)
            for note in run.notes:
                self.say(f"note     {note}")
            self.say(f"Report: {result.report}\nModel:  {self.out / 'model'}")
        run.close()
        return result

    # -- before any work ----------------------------------------------------------------------------------------

    def _validate(self) -> None:
        """Everything that can be known to be wrong without building or reading anything large."""
        from upcycle.data import check_reference

        needs = self.cls.card.needs
        if self.teacher_ref is None and needs.teacher != "none":
            raise UserError(f"{self.cls.card.name} needs a teacher: give --teacher REFERENCE. tfkd needs none.")
        for role, reference in (("teacher", self.teacher_ref), ("student", self.student_ref), ("data", self.data_ref),
                                ("test_data", self.setting.test_data)):  # fmt: skip
            require(not isinstance(reference, str) or bool(reference.strip()), f"--{role} names nothing.")
        for reference in (self.teacher_ref, self.student_ref):
            if isinstance(reference, str):
                models.check_reference(reference)
        self._validate_data()
        for reference in (None if self.free else self.data_ref, self.setting.test_data):
            if isinstance(reference, str):
                check_reference(reference)
        probe = nn.Identity()
        self.cls(teacher=probe, student=probe, **self.options)  # its __post_init__ checks the values
        for file in (self.setting.teacher_weights, self.setting.label_map):
            if file is not None and not file.is_file():
                raise UserError(f"There is no file {file}.")
        if not self.setting.dry_run and self.first:
            claim_directory(self.out, resume=self.setting.resume)

    def _validate_data(self) -> None:
        """Whether the data that are named are of the kind that the method takes."""
        name, setting, none = (
            self.cls.card.name,
            self.setting,
            isinstance(self.data_ref, str) and self.data_ref == "none",
        )
        if not self.free:
            require(not none, f"{name} needs images, so --data none cannot serve; upcycle advise --data none says what "
                    "works without.")  # fmt: skip
            return
        require(none, f"{name} makes its own images and takes no --data; to measure on real ones, give --test_data "
                f"{self.data_ref if isinstance(self.data_ref, str) else 'DATA'}.")  # fmt: skip
        require(not setting.shots and setting.labels < 0,
                f"{name} takes no data, so there is nothing for --shots and --labels to choose from.")  # fmt: skip
        require(setting.label_map is None or setting.test_data is not None,
                f"{name} takes no data, so --label_map has nothing to map unless --test_data is given.")  # fmt: skip

    def _resolve(self) -> tuple[Model | None, Images]:
        """The teacher and the data, brought to the same classes."""
        teacher: Model | None
        if self.free:
            teacher = self._lone_teacher()
            data = Images.none(teacher.input_shape, teacher.classes, teacher.mean, teacher.std)
        else:
            teacher, data = self._pair()
        data = self._tested(data)
        if teacher is None:
            require(bool((data.test.labels >= 0).any()), f"{data.name} has no labels to measure with, and without a "
                    "teacher there are no answers in their place; give --test_data.")  # fmt: skip
            return None, data
        measurable = _measurable(data, teacher)
        if measurable is not data:
            self.figure = "agreement"
            self.say(measurable.notes[-1])
        return teacher, measurable

    def _lone_teacher(self) -> Model:
        """The teacher of a method that takes no data; it alone says what images are like."""
        setting, shape, classes = self.setting, None, None
        if models.is_bare(self.teacher_ref):
            if setting.test_data is not None:
                like = load_data(setting.test_data, size=setting.size)
                shape, classes = like.shape, like.classes or None
            elif setting.size is not None and setting.teacher_mean is not None:
                shape = (len(setting.teacher_mean), setting.size, setting.size)
            else:
                raise UserError("The teacher does not say what images it takes: give --size with --teacher_mean and "
                                "--teacher_std, or --test_data.")  # fmt: skip
        teacher = models.resolve(self.teacher_ref, weights=setting.teacher_weights, input_shape=shape, classes=classes,
                                 mean=setting.teacher_mean, std=setting.teacher_std, trust=setting.trust)  # fmt: skip
        c, h, w = teacher.input_shape
        if setting.size is None or (h, w) == (setting.size, setting.size):
            return teacher
        try:
            return models.resolve(teacher, input_shape=(c, setting.size, setting.size))
        except UserError as error:
            raise UserError(f"{teacher.name} takes no images of {setting.size} x {setting.size} pixels; leave out "
                            f"--size for its own {h} x {w}.") from error  # fmt: skip

    def _pair(self) -> tuple[Model | None, Images]:
        """The teacher and the data that both are given."""
        setting, teacher = self.setting, None
        if self.teacher_ref is not None and models.is_bare(self.teacher_ref):  # what it takes is what the data are
            data = load_data(self.data_ref, size=setting.size)
            teacher = models.resolve(self.teacher_ref, weights=setting.teacher_weights, input_shape=data.shape,
                                     num_classes=len(data.classes) or None, classes=data.classes or None,
                                     mean=setting.teacher_mean, std=setting.teacher_std)  # fmt: skip
            self._require_own_pool(teacher)
        elif self.teacher_ref is not None:
            teacher = models.resolve(self.teacher_ref, weights=setting.teacher_weights, mean=setting.teacher_mean,
                                     std=setting.teacher_std, trust=setting.trust)  # fmt: skip
            self._require_own_pool(teacher)
            size = setting.size or teacher.input_shape[1]
            data = load_data(self.data_ref, size=size if _is_files(self.data_ref) else setting.size,
                             channels=teacher.input_shape[0] if _is_files(self.data_ref) else None)  # fmt: skip
        else:
            data = load_data(self.data_ref, size=setting.size)
        if teacher is None:
            return None, data
        if not data.classes:  # a folder without class folders: unlabelled images, the teacher's classes
            data = dataclasses.replace(data, classes=teacher.classes)
        if teacher.input_shape[0] != data.shape[0]:
            raise UserError(f"The teacher takes {teacher.input_shape[0]} input channels, and the images of "
                            f"{data.name} have {data.shape[0]}.")  # fmt: skip
        if setting.label_map is not None:
            columns = read_label_map(setting.label_map, teacher.classes, data.classes)
        else:
            columns, note = match_classes(teacher.classes, data.classes)
            if note:
                self.say(note)
        if columns.tolist() != list(range(len(teacher.classes))):
            module = Columns(teacher.module, columns)
            teacher = dataclasses.replace(teacher, module=module, classes=data.classes)
        return teacher, data

    def _require_own_pool(self, teacher: Model) -> None:
        """Refuse a pool that another network's images are in: its labels and its look belong to that one."""
        if not (isinstance(self.data_ref, str | Path) and str(self.data_ref).startswith(PREFIX)):
            return
        maker, digest = lineage_of(self.data_ref)["parents"][0], weights_digest(teacher.module)
        if maker["digest"] != digest:
            raise UserError(
                f"The images of {self.data_ref} were made from {maker['name']} (weights {maker['digest'][:8]}) and the "
                f"teacher is {teacher.name} (weights {digest[:8]}): give that teacher, or take them as ordinary images "
                f"by --data {pool_directory(self.data_ref)}."
            )

    def _tested(self, data: Images) -> Images:
        """``data`` with the validation and test images of ``--test_data``, if that is given."""
        setting, (channels, height, _) = self.setting, data.shape
        if setting.test_data is None:
            return data
        files = _is_files(setting.test_data)
        like = load_data(
            setting.test_data, size=height if files else setting.size, channels=channels if files else None
        )
        if like.shape != data.shape:
            ours, theirs = (" x ".join(map(str, shape)) for shape in (data.shape, like.shape))
            raise UserError(f"--test_data {like.name} has images of {theirs} (channels, height, width), but {ours} are "
                            "needed here; --size brings images to another size.")  # fmt: skip
        if like.classes and self.free and setting.label_map is not None:
            columns, note = read_label_map(setting.label_map, data.classes, like.classes), ""
        elif like.classes and data.classes:
            try:
                columns, note = match_classes(data.classes, like.classes)
            except UserError as error:
                raise UserError(f"--test_data {like.name} cannot measure here: its {len(like.classes)} classes "
                                f"({like.classes[0]}, ...) do not match the {len(data.classes)} of the student "
                                f"({data.classes[0]}, ...).") from error  # fmt: skip
        else:
            columns, note = torch.arange(len(data.classes)), ""
        if note:
            self.say(note)
        splits = {}
        for name in ("validation", "test"):
            split = getattr(like, name)
            labels = (
                torch.where(split.labels >= 0, columns[split.labels.clamp_min(0)], -1) if len(columns) else split.labels
            )
            splits[name] = dataclasses.replace(split, labels=labels)
        said = f"Measured on the validation and test images of {like.name}, which served for nothing else."
        return dataclasses.replace(data, **splits, measured=like.name, notes=[*data.notes, *like.notes, said])

    def _student(self, teacher: Model | None, data: Images, seed: int) -> Model:
        """A student with fresh weights drawn from ``seed``, or the weights asked for."""
        setting, weights = self.setting, self.setting.student_weights
        seed_everything(seed, "student")
        if isinstance(self.student_ref, nn.Module | Model):
            module = self.student_ref.module if isinstance(self.student_ref, Model) else self.student_ref
            student = models.resolve(self.student_ref, input_shape=data.shape, classes=data.classes)
            return dataclasses.replace(student, module=models.copy_of(module))
        pretrained = weights == "pretrained"
        student = models.resolve(self.student_ref, pretrained=pretrained, num_classes=len(data.classes),
                                 input_shape=data.shape, weights=None if pretrained else weights,
                                 trust=setting.trust)  # fmt: skip
        if weights is None:  # fresh weights take any normalisation; the teacher's saves renormalising
            like = (teacher.mean, teacher.std) if teacher else data.statistics
            student = dataclasses.replace(student, mean=like[0], std=like[1], lineage=None, licence="unknown")
        return dataclasses.replace(student, classes=data.classes)

    def _prepared(self, data: Images, student: Model, seed: int) -> Images:
        """The data as this seed's run sees them: its own draw of images or labels, augmented, normalised."""
        setting = self.setting
        if setting.shots:
            data = data.few(setting.shots, seed)
        if setting.labels >= 0:
            data = data.hide_labels(setting.labels, seed)
        grey = ("crop",) if self.free else ()
        names = {"auto": ("crop", "flip") if data.shape[0] == 3 else grey, "none": ()}
        augment = names.get(setting.augment[0], setting.augment)
        return data.augmented(tuple(augment)).normalised(student.mean, student.std)

    def _method(self, teacher: Model | None, student: Model) -> Method:
        return self.cls(teacher=teacher, student=student, **self.options)

    def _show_teacher(self, teacher: Model | None, data: Images) -> None:
        """The teacher's own accuracy on these data, so that a wrong normalisation or head shows at once."""
        self.say(f"data     {describe(data)}")
        if teacher is None or not (data.validation.labels >= 0).any():
            return
        split = data.normalised(teacher.mean, teacher.std).validation
        measured = evaluate(teacher.module, split, device=torch.device("cpu"))
        self.say(f"teacher  {teacher.name}: {measured.accuracy:.1%} on {measured.count:,} validation images")
        if measured.accuracy < 2 / len(data.classes) and len(data.classes) > 2:
            self.say(
                "         That is near chance. Is its normalisation right (--teacher_mean, --teacher_std), and the "
                "order of its classes (--label_map)?"
            )

    def _costs(self, teacher: Model | None, student: Model) -> tuple[Cost | None, Cost]:
        cost = count(student.module, student.input_shape)
        self.say(f"student  {student.name}: {si(cost.parameters)} parameters, {si(cost.macs)} multiply-adds")
        return (count(teacher.module, teacher.input_shape) if teacher else None), cost

    def _dry_run(self, method: Method, teacher: Cost | None, student: Cost, data: Images) -> None:
        n = len(data.train)
        steps, work = method.steps(n), method.work(n, teacher.macs if teacher else 0, student.macs)
        mixed = self.setting.precision == "bf16-mixed" or (self.setting.precision == "auto" and fast_bf16())
        runs = self.setting.seeds * (2 if self.setting.alone else 1)
        # Training reaches between most and an eighth of the rate of a large matrix product, by how small networks are.
        floor = runs * 2 * work / matmul_rate(torch.bfloat16 if mixed else torch.float32)
        self.say(f"{runs} run(s) of {steps:,} updates; between {duration(1.25 * floor)} and {duration(8 * floor)} on "
                 "this machine.\nNothing was written (--dry_run).")  # fmt: skip

    # -- the work -----------------------------------------------------------------------------------------------

    def _fit(
        self,
        arm: str,
        seed: int,
        directory: Path,
        teacher: Model | None,
        data: Images,
        arms: dict[str, list[Evaluation]],
    ) -> tuple[Model, Run, Images]:
        setting = self.setting
        student = self._student(teacher, data, seed)
        data = self._prepared(data, student, seed)
        method = self._method(teacher, student)
        if arm == "alone":
            method, data = _alone(method, student, data)
        run = Run(
            directory,
            seed=seed,
            resume=setting.resume and (directory / "config.yaml").exists(),
            devices=setting.devices,
            accelerator=setting.accelerator,
            precision=setting.precision,
            teacher_precision=setting.teacher_precision,
            save_every=setting.save_every,
            compile=setting.compile,
            config=self.config(arm, seed),
            quiet=setting.quiet,
        )
        with run.interruptible():
            module = method.fit(run, data).float()
        product = dataclasses.replace(student, module=module)
        on = "on test"
        if not len(data.test):
            assert teacher is not None  # a method without data has one
            run.fabric.barrier()  # the first process leaves the pool
            data, on = _on_its_pool(directory / "pool", data, teacher), "agreement with the teacher, on its own images"
        arms.setdefault(arm, []).append(evaluate(module, data.test, device=torch.device("cpu")))
        for note in data.notes:
            run.note(note)
        if directory != self.out:
            run.close()
        self.say(f"{arm}, seed {seed}: {arms[arm][-1].accuracy:.1%} {on}")
        return product, run, data

    def config(self, arm: str = "student", seed: int | None = None) -> dict[str, Any]:
        """Everything that re-makes this run, as plain data in the names of the command line."""
        own = {key: self.options.get(key, _default(self.cls, key)) for key in self.cls.options()}
        setting = {f.name: getattr(self.setting, f.name) for f in dataclasses.fields(Setting)
                   if f.name not in ("resume", "dry_run", "quiet", "save_every")}  # fmt: skip
        setting["seed"] = self.setting.seed if seed is None else seed
        if arm == "alone" or setting["seed"] != self.setting.seed:
            setting |= {"seeds": 1, "alone": arm == "alone"}
        if (plugin := plugin_of(self.cls)) is not None:
            setting["plugin"] = plugin
        config = {"teacher": self.teacher_ref, "student": self.student_ref, "method": self.cls.card.name, **setting,
                  "data": self.data_ref, "out": self.out, **own}  # fmt: skip
        return {key: _plain(value) for key, value in config.items()}

    # -- after it -----------------------------------------------------------------------------------------------

    def _leave(self, result: Result, teacher: Model | None, data: Images, run: Run, seconds: float) -> None:
        card, student = self.cls.card, result.student
        parents = []
        if teacher is not None:
            parents.append(teacher_node(teacher))
        if data.lineage is not None:  # images that a network made hand its licence on
            parents.append({**data.lineage, "role": lineage.POOL})
        if self.setting.student_weights is not None and student.lineage is not None:
            parents.append({**student.lineage, "role": "initial weights"})
        metrics = {self.figure: [round(a, 6) for a in result.rows[-1]["accuracy"]]}
        trained = {"name": data.name, "digest": data.digest, "licence": data.licence} if len(data.train) else None
        tree = lineage.child(parents, name=student.name, digest=store.tensor_digest(student.module.state_dict()),
                             verb="distill", method=card.name, config=self.config(),
                             data=trained, metrics=metrics)  # fmt: skip
        student.lineage, student.licence = tree, tree["licence"]["id"]
        record = {
            "format": 1, "verb": "distill", "method": card.name, "title": card.title, "paper": card.paper,
            "command": self.command(), "date": time.strftime("%Y-%m-%d"), "seconds": round(seconds, 2),
            "sentence": result.sentence, "figure": self.figure,
            "data": {"name": data.title, "train": len(data.train), "validation": len(data.validation),
                     "test": len(data.test), "labelled": int((data.train.labels >= 0).sum()),
                     "classes": list(data.classes), "notes": data.notes, "chosen": data.chosen},
            "rows": result.rows, "seeds": list(range(self.setting.seed, self.setting.seed + self.setting.seeds)),
            "machine": {**machine(), **run.machine}, "config": self.config(), "notes": run.notes,
            "versions": lineage.versions(),
        }  # fmt: skip
        measured = {**record, "data": {"name": data.measured or data.name}}
        models.save(student, self.out / "model", readme=lineage.model_card(tree, measured))
        store.write_json(self.out / "result.json", record)
        write_report(self.out)

    def command(self) -> str:
        """The command line that re-makes this run, as short as the defaults allow."""
        words = ["upcycle distill"]
        for key, value in self.config().items():
            if key in ("teacher", "student", "data", "method") or value != _plain(self._default_of(key)):
                words.append(
                    f"--{key} {_word(value)}"
                    if not isinstance(value, dict)
                    else " ".join(
                        f"--{key}.{k} {_word(v)}" for k, v in value.items() if v != _plain(self._default_of(key))[k]
                    )
                )
        return " ".join(w for w in words if w)

    def _default_of(self, key: str) -> Any:
        if key in self.cls.options():
            return _default(self.cls, key)
        return getattr(Setting(), key, None)


def _measurable(data: Images, teacher: Model) -> Images:
    """Where held-out images have no labels, the teacher's answers take their place, and the notes say so."""
    if not len(data.test) or ((data.validation.labels >= 0).any() and (data.test.labels >= 0).any()):
        return data
    seen, answered = data.normalised(teacher.mean, teacher.std), {}
    for name in ("validation", "test"):
        z = predict_logits(teacher.module, getattr(seen, name), device=torch.device("cpu"))
        answered[name] = dataclasses.replace(getattr(data, name), labels=z.argmax(1))
    name = data.measured or data.name
    # Of a pool nothing is held out.
    where = ", on images that the student is trained on" if data.lineage is not None and not data.measured else ""
    note = f"{name} has no labels to measure with: every accuracy here is agreement with the teacher{where}."
    return dataclasses.replace(data, **answered, notes=[*data.notes, note])


def _on_its_pool(folder: Path, data: Images, teacher: Model) -> Images:
    """Without any data, what a student is measured on: images of the pool it learnt from, the teacher's answers."""
    pool = load_pool(folder)
    held = dataclasses.replace(data, validation=pool.validation, test=pool.test, measured=pool.name)
    answered = _measurable(held.normalised(data.train.mean, data.train.std), teacher)
    note = ("Every figure is agreement with the teacher on images that the student was trained on, which is no "
            "accuracy; give --test_data to measure one.")  # fmt: skip
    return dataclasses.replace(answered, notes=[*data.notes, note])


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
    if used and not (out / "config.yaml").exists():
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


def _alone(method: Method, student: Model, data: Images) -> tuple[Method, Images]:
    """The student trained by cross-entropy on the labels there are, with as many updates as the method makes."""
    known = (data.train.labels >= 0).nonzero()[:, 0]
    recipe = getattr(method, "recipe", Recipe())
    batch = min(recipe.batch_size, len(known))
    epochs = max(1, round(method.steps(len(data.train)) / math.ceil(len(known) / batch)))
    recipe = dataclasses.replace(
        recipe,
        epochs=epochs,
        batch_size=batch,
        warmup=recipe.warmup / recipe.epochs * epochs,
        milestones=tuple(round(m / recipe.epochs * epochs) for m in recipe.milestones),
    )
    data = dataclasses.replace(data, train=data.train.subset(known))
    return KD(teacher=student, student=student, w_kd=0.0, w_ce=1.0, recipe=recipe, cache="off"), data


def _row(name: str, role: str, arms: list[Evaluation], cost: Cost | None, model: Model) -> dict[str, Any]:
    assert cost is not None
    first = arms[0]
    return {"name": name, "role": role, "accuracy": [a.accuracy for a in arms], "parameters": cost.parameters,
            "macs": cost.macs, "latency": latency(model.module, model.input_shape),
            "memory": peak_memory(model.module, model.input_shape), "per_class": first.per_class, "ece": first.ece,
            "confusion": first.confusion,
            "reliability": [dict(zip(("confidence", "accuracy", "count"), b, strict=True)) for b in zip(
                *(first.confidence[k] for k in ("confidence", "accuracy", "count")), strict=True)]}  # fmt: skip


def spread(values: list[float]) -> str:
    """Mean and sample standard deviation, in per cent."""
    mean = f"{100 * statistics.fmean(values):.1f}"
    return f"{mean} ± {100 * statistics.stdev(values):.1f} %" if len(values) > 1 else f"{mean} %"


def _sentence(rows: list[dict[str, Any]], data: Images, *, agreement: bool) -> str:
    student = rows[-1]
    if agreement:
        return (f"The student gives its teacher's answer for {spread(student['accuracy'])} of {len(data.test):,} "
                "images that it was trained on; this is agreement and no accuracy, which --test_data would "
                "measure.")  # fmt: skip
    accuracy = statistics.fmean(student["accuracy"])
    text = f"The student reaches {spread(student['accuracy'])} on the {len(data.test):,} test images of "
    text += data.measured or data.name
    for row in rows[:-1]:
        other = statistics.fmean(row["accuracy"])
        if row["role"] == "teacher":
            ratio = row["parameters"] / student["parameters"]
            text += f", {_points(accuracy - other)} its teacher"
            text += f", with {ratio:.3g} times fewer parameters" if ratio > 1.05 else ""
        if row["role"] == "alone":
            text += f", and {_points(accuracy - other)} the same network trained alone"
    return text + "."


def _points(difference: float) -> str:
    return f"{abs(100 * difference):.1f} points {'above' if difference >= 0 else 'below'}"


def _table(rows: list[dict[str, Any]], figure: str) -> str:
    lines = [("", figure, "parameters", "multiply-adds", "latency", "memory")]
    for r in rows:
        lines.append((r["name"], spread(r["accuracy"]), si(r["parameters"]), si(r["macs"]), duration(r["latency"]),
                      bytes_(r["memory"])))  # fmt: skip
    widths = [max(len(line[i]) for line in lines) for i in range(6)]
    made = ["  ".join(c.ljust(w) if i == 0 else c.rjust(w) for i, (c, w) in enumerate(zip(line, widths, strict=True)))
            for line in lines]  # fmt: skip
    return "\n".join(["", made[0], "─" * len(made[0]), *made[1:], ""])


def _is_files(reference: Any) -> bool:
    return isinstance(reference, str | Path) and (str(reference).startswith("hub:") or Path(reference).is_dir())


def _plain(value: Any) -> Any:
    """A value as YAML and JSON can hold it."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type | Model | Images):
        return {f.name: _plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, tuple | list):
        return [_plain(item) for item in value]
    if value is None or isinstance(value, str | int | float | bool):
        return value
    if isinstance(value, Model):
        return value.reference or f"<{type(value.module).__name__} instance>"
    return f"<{type(value).__name__} instance>"


def _word(value: Any) -> str:
    if isinstance(value, list):
        return "[" + ",".join(str(v) for v in value) + "]"
    return str(value).lower() if isinstance(value, bool) else str(value)
