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
from upcycle.core.cost import Cost, bytes_, count, duration, floor_seconds, latency, machine, peak_memory, si
from upcycle.core.errors import UserError, require, unknown
from upcycle.core.evaluate import Evaluation, evaluate, predict_logits
from upcycle.core.method import Method
from upcycle.core.models import Model
from upcycle.core.recipe import Recipe
from upcycle.core.run import Run, seed_everything
from upcycle.data import Images, describe
from upcycle.data import load as load_data
from upcycle.data.labels import match_classes, read_label_map
from upcycle.distillation import KD
from upcycle.report import write_report
from upcycle.verbs.methods import all_methods, plugin_of

Say = Callable[[str], None]


@dataclass(kw_only=True)
class Setting:
    """The options of ``distill`` that belong to no method.

    Args:
        data: digits, mnist, fashion_mnist, fashion_mnist_local, usps, cifar10, a folder of images, a Parquet
            folder, or hub:ORG/NAME.
        out: the run directory; runs/distill-METHOD-DATA if not given.
        size: resize images to this side, in pixels.
        shots: keep only so many training images of each class (0: all).
        labels: keep labels for only so many training images of each class (-1: all, 0: none).
        augment: crop, flip, color, or none; auto takes crop and flip for colour images.
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

    data: str = "digits"
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
    data: Any = "digits",
    say: Say = print,
    **options: Any,
) -> Result:
    """Distil ``teacher`` into ``student``.

    Args:
        student: reference, module or :class:`~upcycle.core.models.Model`; a module is copied, not changed.
        teacher: likewise; not needed by teacher-free methods.
        method: a name of ``upcycle methods``, ``package.module:Class``, or a class.
        data: see :func:`upcycle.data.load`.
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
        default = Path("runs") / f"distill-{cls.card.name}-{Path(setting.data).name.replace(':', '-')}"
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
            self._dry_run(teacher_cost, student_cost, data)
            return Result(directory=self.out, student=student, rows=[], sentence="", report=self.out / "report.html")

        arms: dict[str, list[Evaluation]] = {}
        product, run = self._fit("student", setting.seed, self.out, teacher, whole, arms)
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
                        sentence=_sentence(rows, data))  # fmt: skip
        if run.rank == 0:
            self._leave(result, teacher, data, run, time.time() - start)
            self.say(_table(rows))
            self.say(result.sentence)
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
        for role, reference in (("teacher", self.teacher_ref), ("student", self.student_ref), ("data", self.data_ref)):
            require(not isinstance(reference, str) or bool(reference.strip()), f"--{role} names nothing.")
        for reference in (self.teacher_ref, self.student_ref):
            if isinstance(reference, str):
                models.check_reference(reference)
        if isinstance(self.data_ref, str):
            check_reference(self.data_ref)
        probe = nn.Identity()
        self.cls(teacher=probe, student=probe, **self.options)  # its __post_init__ checks the values
        for file in (self.setting.teacher_weights, self.setting.label_map):
            if file is not None and not file.is_file():
                raise UserError(f"There is no file {file}.")
        if not self.setting.dry_run and self.first:
            claim_directory(self.out, resume=self.setting.resume)

    def _resolve(self) -> tuple[Model | None, Images]:
        setting, teacher = self.setting, None
        if self.teacher_ref is not None and models.is_bare(self.teacher_ref):  # what it takes is what the data are
            data = load_data(self.data_ref, size=setting.size)
            teacher = models.resolve(self.teacher_ref, weights=setting.teacher_weights, input_shape=data.shape,
                                     num_classes=len(data.classes) or None, classes=data.classes or None,
                                     mean=setting.teacher_mean, std=setting.teacher_std)  # fmt: skip
        elif self.teacher_ref is not None:
            teacher = models.resolve(self.teacher_ref, weights=setting.teacher_weights, mean=setting.teacher_mean,
                                     std=setting.teacher_std, trust=setting.trust)  # fmt: skip
            size = setting.size or teacher.input_shape[1]
            data = load_data(self.data_ref, size=size if _is_files(self.data_ref) else setting.size,
                             channels=teacher.input_shape[0] if _is_files(self.data_ref) else None)  # fmt: skip
        else:
            data = load_data(self.data_ref, size=setting.size)
        if teacher is None:
            require(bool((data.test.labels >= 0).any()), f"{data.name} has no labels, and without a teacher there is "
                    "nothing to learn from.")  # fmt: skip
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
            module = models.Columns(teacher.module, columns)
            teacher = dataclasses.replace(teacher, module=module, classes=data.classes)
        measurable = _measurable(data, teacher)
        if measurable is not data:
            self.say(measurable.notes[-1])
        return teacher, measurable

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
        names = {"auto": ("crop", "flip") if data.shape[0] == 3 else (), "none": ()}
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

    def _dry_run(self, teacher: Cost | None, student: Cost, data: Images) -> None:
        probe = nn.Identity()
        method = self.cls(teacher=None if teacher is None else probe, student=probe, **self.options)
        steps = method.steps(len(data.train))
        batch = getattr(method, "recipe", Recipe()).batch_size
        floor = floor_seconds(teacher.macs if teacher else 0, student.macs, batch, torch.float32)
        runs = self.setting.seeds * (2 if self.setting.alone else 1)
        low, high = duration(2 * runs * steps * floor), duration(10 * runs * steps * floor)
        self.say(f"{runs} run(s) of {steps:,} updates; between {low} and {high} on this machine.\n"
                 "Nothing was written (--dry_run).")  # fmt: skip

    # -- the work -----------------------------------------------------------------------------------------------

    def _fit(
        self,
        arm: str,
        seed: int,
        directory: Path,
        teacher: Model | None,
        data: Images,
        arms: dict[str, list[Evaluation]],
    ) -> tuple[Model, Run]:
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
        arms.setdefault(arm, []).append(evaluate(module, data.test, device=torch.device("cpu")))
        for note in data.notes:
            run.note(note)
        if directory != self.out:
            run.close()
        self.say(f"{arm}, seed {seed}: {arms[arm][-1].accuracy:.1%} on test")
        return product, run

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
            known = teacher.lineage or lineage.node(
                name=teacher.name, digest=store.tensor_digest(teacher.module.state_dict()), licence=teacher.licence
            )
            parents.append({**known, "role": "teacher"})
        if self.setting.student_weights is not None and student.lineage is not None:
            parents.append({**student.lineage, "role": "initial weights"})
        metrics = {"test accuracy": [round(a, 6) for a in result.rows[-1]["accuracy"]]}
        tree = lineage.child(parents, name=student.name, digest=store.tensor_digest(student.module.state_dict()),
                             verb="distill", method=card.name, config=self.config(),
                             data={"name": data.name, "digest": data.digest, "licence": data.licence},
                             metrics=metrics)  # fmt: skip
        student.lineage, student.licence = tree, tree["licence"]["id"]
        record = {
            "format": 1, "verb": "distill", "method": card.name, "title": card.title, "paper": card.paper,
            "command": self.command(), "date": time.strftime("%Y-%m-%d"), "seconds": round(seconds, 2),
            "sentence": result.sentence,
            "data": {"name": data.name, "train": len(data.train), "validation": len(data.validation),
                     "test": len(data.test), "labelled": int((data.train.labels >= 0).sum()),
                     "classes": list(data.classes), "notes": data.notes, "chosen": data.chosen},
            "rows": result.rows, "seeds": list(range(self.setting.seed, self.setting.seed + self.setting.seeds)),
            "machine": {**machine(), **run.machine}, "config": self.config(), "notes": run.notes,
            "versions": lineage.versions(),
        }  # fmt: skip
        models.save(student, self.out / "model", readme=lineage.model_card(tree, record))
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
    if (data.validation.labels >= 0).any() and (data.test.labels >= 0).any():
        return data
    seen, answered = data.normalised(teacher.mean, teacher.std), {}
    for name in ("validation", "test"):
        z = predict_logits(teacher.module, getattr(seen, name), device=torch.device("cpu"))
        answered[name] = dataclasses.replace(getattr(data, name), labels=z.argmax(1))
    note = f"{data.name} has no labels to measure with: every accuracy here is agreement with the teacher."
    return dataclasses.replace(data, **answered, notes=[*data.notes, note])


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


def _sentence(rows: list[dict[str, Any]], data: Images) -> str:
    student = rows[-1]
    accuracy = statistics.fmean(student["accuracy"])
    text = f"The student reaches {spread(student['accuracy'])} on the {len(data.test):,} test images of {data.name}"
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


def _table(rows: list[dict[str, Any]]) -> str:
    lines = [("", "test accuracy", "parameters", "multiply-adds", "latency", "memory")]
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
    if dataclasses.is_dataclass(value) and not isinstance(value, type) and not isinstance(value, Model):
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
