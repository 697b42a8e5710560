"""``upcycle distill``: from references and a folder of data to a student, its numbers and its report."""

from __future__ import annotations

import dataclasses
import math
import statistics
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from upcycle.core import lineage, models
from upcycle.core.errors import UserError, require
from upcycle.core.evaluate import Evaluation, evaluate, predict_logits
from upcycle.core.method import Method
from upcycle.core.models import Model
from upcycle.core.outputs import Columns
from upcycle.core.recipe import Recipe
from upcycle.core.run import Run
from upcycle.core.seeds import seed_everything
from upcycle.data import Images, describe
from upcycle.data import load as load_data
from upcycle.data.labels import match_classes, read_label_map
from upcycle.data.pool_files import PREFIX, lineage_of, load_pool, parent_node, pool_directory, weights_digest
from upcycle.distillation import KD
from upcycle.measure.cost import Cost, count
from upcycle.measure.units import si
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
    points,
    row,
    run_in,
    show_accuracy,
    split_options,
    spread,
    tell,
)
from upcycle.verbs.methods import plugin_of


@dataclass(kw_only=True)
class Setting(RunSetting, DataSetting):
    """Data, devices, and where it goes.

    Args:
        data: digits, mnist, fashion_mnist, fashion_mnist_local, usps, cifar10, a folder of images, a Parquet
            folder, pool:PATH, or hub:ORG/NAME. Not given, it is digits, and none for methods that make their own
            images.
        test_data: measure on the validation and test images of this set instead; nothing else is done with it.
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
        seeds: how many runs, with seeds from seed on; the report shows their spread.
        alone: also train the student without a teacher, on the labels there are, with as many updates.
        teacher_precision: auto takes bf16 for the teacher where its answers stay the same.
        compile: torch.compile; pays for itself in long runs.
    """

    test_data: str | None = None
    shots: int = 0
    labels: int = -1
    augment: tuple[Literal["auto", "none", "crop", "flip", "color"], ...] = ("auto",)
    teacher_weights: Path | None = None
    teacher_mean: tuple[float, ...] | None = None
    teacher_std: tuple[float, ...] | None = None
    student_weights: str | None = None
    label_map: Path | None = None
    seeds: int = 1
    alone: bool = False
    teacher_precision: Literal["auto", "32-true"] = "auto"
    compile: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("teacher_weights", "label_map"):
            if getattr(self, name) is not None:
                setattr(self, name, Path(getattr(self, name)))
        require(self.shots >= 0, f"shots must not be negative, it is {self.shots}.")
        require(self.labels >= -1, f"labels must be -1 (all) or more, not {self.labels}.")
        require(self.seeds >= 1, f"seeds must be at least 1, not {self.seeds}.")
        require(len(self.augment) == 1 or not {"auto", "none"} & set(self.augment),
                f"augment cannot mix auto or none with others: it is {' '.join(self.augment)}.")  # fmt: skip


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
    cls = method if isinstance(method, type) else find_method(method, "distill")
    common, own = split_options(cls, Setting, options)
    if data is None:
        data = "none" if cls.card.needs.data == "none" else "digits"
    setting = Setting(**common, data=data if isinstance(data, str) else "data")
    return _Distillation(cls, setting, own, teacher, student, data, (lambda text: None) if setting.quiet else say).run()


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
        self.first = first_process()
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
            return Result(directory=self.out, model=student, rows=[], sentence="", report=self.out / "report.html")

        arms: dict[str, list[Evaluation]] = {}
        product, run, data = self._fit("student", setting.seed, self.out, teacher, whole, arms)
        for seed in range(setting.seed + 1, setting.seed + setting.seeds):
            self._fit("student", seed, self.out / "more" / f"student-{seed}", teacher, whole, arms)
        if setting.alone:
            for seed in range(setting.seed, setting.seed + setting.seeds):
                self._fit("alone", seed, self.out / "more" / f"alone-{seed}", teacher, whole, arms)
        rows = []
        if teacher is not None:
            seen = data.normalised(teacher.mean, teacher.std).test
            measured = evaluate(teacher.module, seen, device=setting.device)
            rows.append(row(teacher.name, "teacher", [measured], teacher))
        if setting.alone:
            rows.append(row(f"{student.name} alone", "alone", arms["alone"], student))
        rows.append(row(f"{student.name} by {self.cls.card.name}", "student", arms["student"], product))
        result = Result(directory=self.out, model=product, rows=rows, report=self.out / "report.html",
                        sentence=_sentence(rows, data, agreement=not len(whole.test)))  # fmt: skip
        if run.rank == 0:
            leave(result, self.cls, self._parents(teacher, product, data), data, run, config=self.config(),
                  command=self.command(), seconds=time.time() - start, figure=self.figure,
                  seeds=list(range(setting.seed, setting.seed + setting.seeds)))  # fmt: skip
            tell(result, run, self.say, self.figure)
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
        measurable = _measurable(data, teacher, self.setting.device)
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
            data = load_data(self.data_ref, size=size if is_files(self.data_ref) else setting.size,
                             channels=teacher.input_shape[0] if is_files(self.data_ref) else None)  # fmt: skip
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
        files = is_files(setting.test_data)
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
        return augmented(data, setting.augment, grey).normalised(student.mean, student.std)

    def _method(self, teacher: Model | None, student: Model) -> Method:
        return self.cls(teacher=teacher, student=student, **self.options)

    def _show_teacher(self, teacher: Model | None, data: Images) -> None:
        self.say(f"data     {describe(data)}")
        if teacher is not None:
            hint = " See --teacher_mean, --teacher_std and --label_map."
            show_accuracy(self.say, "teacher", teacher, data, self.setting.device, hint)

    def _costs(self, teacher: Model | None, student: Model) -> tuple[Cost | None, Cost]:
        cost = count(student.module, student.input_shape)
        self.say(f"student  {student.name}: {si(cost.parameters)} parameters, {si(cost.macs)} multiply-adds")
        return (count(teacher.module, teacher.input_shape) if teacher else None), cost

    def _dry_run(self, method: Method, teacher: Cost | None, student: Cost, data: Images) -> None:
        n = len(data.train)
        steps, work = method.steps(n), method.work(n, teacher.macs if teacher else 0, student.macs)
        runs = self.setting.seeds * (2 if self.setting.alone else 1)
        self.say(estimate(runs * work, self.setting, updates=steps, runs=runs))

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
        run = run_in(directory, setting, self.config(arm, seed), seed=seed, compile=setting.compile,
                     teacher_precision=setting.teacher_precision)  # fmt: skip
        with run.interruptible():
            module = method.fit(run, data).float()
        product = method.product(module, data)
        on = "on test"
        if not len(data.test):
            assert teacher is not None  # a method without data has one
            run.fabric.barrier()  # the first process leaves the pool
            data, on = self._on_its_pool(directory, data, teacher), "agreement with the teacher, on its own images"
        arms.setdefault(arm, []).append(evaluate(module, data.test, device=run.device))
        for note in data.notes:
            run.note(note)
        if directory != self.out:
            run.close()
        self.say(f"{arm}, seed {seed}: {arms[arm][-1].accuracy:.1%} {on}")
        return product, run, data

    def config(self, arm: str = "student", seed: int | None = None) -> dict[str, Any]:
        """Everything that re-makes this run, as plain data in the names of the command line."""
        own = {key: self.options.get(key, default_of(self.cls, key)) for key in self.cls.options()}
        setting = {f.name: getattr(self.setting, f.name) for f in dataclasses.fields(Setting)
                   if f.name not in UNRECORDED}  # fmt: skip
        setting["seed"] = self.setting.seed if seed is None else seed
        if arm == "alone" or setting["seed"] != self.setting.seed:
            setting |= {"seeds": 1, "alone": arm == "alone"}
        if (plugin := plugin_of(self.cls)) is not None:
            setting["plugin"] = plugin
        config = {"teacher": self.teacher_ref, "student": self.student_ref, "method": self.cls.card.name, **setting,
                  "data": self.data_ref, "out": self.out, **own}  # fmt: skip
        return {key: plain(value) for key, value in config.items()}

    # -- after it -----------------------------------------------------------------------------------------------

    def _parents(self, teacher: Model | None, student: Model, data: Images) -> list[lineage.Node]:
        """The models whose weights, answers or images went into the student."""
        parents = []
        if teacher is not None:
            parents.append(parent_node(teacher))
        if data.lineage is not None:  # images that a network made hand its licence on
            parents.append({**data.lineage, "role": lineage.POOL})
        if self.setting.student_weights is not None and student.lineage is not None:
            parents.append({**student.lineage, "role": "initial weights"})
        return parents

    def command(self) -> str:
        """The command line that re-makes this run, as short as the defaults allow."""
        always = ("teacher", "student", "method", "data")
        return command_line("distill", self.config(), always, self._default_of)

    def _on_its_pool(self, directory: Path, data: Images, teacher: Model) -> Images:
        """Without any data, what a student is measured on: images of the pool it learnt from, the teacher's answers."""
        pool = load_pool(directory / "pool")
        held = dataclasses.replace(data, validation=pool.validation, test=pool.test, measured=pool.name)
        answered = _measurable(held.normalised(data.train.mean, data.train.std), teacher, self.setting.device)
        note = ("Every figure is agreement with the teacher on images that the student was trained on, which is no "
                "accuracy; give --test_data to measure one.")  # fmt: skip
        return dataclasses.replace(answered, notes=[*data.notes, note])

    def _default_of(self, key: str) -> Any:
        return default_of(self.cls, key) if key in self.cls.options() else getattr(Setting(), key, None)


def _measurable(data: Images, teacher: Model, device: torch.device) -> Images:
    """Where held-out images have no labels, the teacher's answers take their place, and the notes say so."""
    if not len(data.test) or ((data.validation.labels >= 0).any() and (data.test.labels >= 0).any()):
        return data
    seen, answered = data.normalised(teacher.mean, teacher.std), {}
    for name in ("validation", "test"):
        z = predict_logits(teacher.module, getattr(seen, name), device=device)
        answered[name] = dataclasses.replace(getattr(data, name), labels=z.argmax(1))
    name = data.measured or data.name
    # Of a pool nothing is held out.
    where = ", on images that the student is trained on" if data.lineage is not None and not data.measured else ""
    note = f"{name} has no labels to measure with: every accuracy here is agreement with the teacher{where}."
    return dataclasses.replace(data, **answered, notes=[*data.notes, note])


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


def _sentence(rows: list[dict[str, Any]], data: Images, *, agreement: bool) -> str:
    student = rows[-1]
    if agreement:
        return (f"The student gives its teacher's answer for {spread(student['accuracy'])} of {len(data.test):,} "
                "images that it was trained on; this is agreement and no accuracy, which --test_data would "
                "measure.")  # fmt: skip
    accuracy = statistics.fmean(student["accuracy"])
    text = f"The student reaches {spread(student['accuracy'])} on the {len(data.test):,} test images of "
    text += data.measured or data.name
    for line in rows[:-1]:
        other = statistics.fmean(line["accuracy"])
        if line["role"] == "teacher":
            ratio = line["parameters"] / student["parameters"]
            text += f", {points(accuracy - other)} its teacher"
            text += f", with {ratio:.3g} times fewer parameters" if ratio > 1.05 else ""
        if line["role"] == "alone":
            text += f", and {points(accuracy - other)} the same network trained alone"
    return text + "."
