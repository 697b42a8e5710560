"""``upcycle distill``: from references and a folder of data to a student, its numbers and its report."""

from __future__ import annotations

import dataclasses
import math
import statistics
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

from torch import nn

from upcycle.core import lineage, models, references
from upcycle.core.devices import Processes
from upcycle.core.errors import UserError, require
from upcycle.core.evaluate import measured
from upcycle.core.fetching import dry
from upcycle.core.guide import frozen_for
from upcycle.core.method import Method
from upcycle.core.models import Model
from upcycle.core.once import once
from upcycle.core.recipe import Recipe
from upcycle.core.run import Run
from upcycle.core.seeds import seed_everything
from upcycle.core.task import CLASSIFICATION, Measured
from upcycle.data import Collection, Images, describe
from upcycle.data.collection import Samples
from upcycle.data.pool_files import parent_node
from upcycle.data.sources import spelled
from upcycle.measure.cost import count
from upcycle.measure.units import si
from upcycle.verbs import DEFAULT_METHOD, options
from upcycle.verbs.arms import Arm, Result
from upcycle.verbs.figures import like_of, points, row, show_accuracy, showing, spent, spread
from upcycle.verbs.loading import augmented
from upcycle.verbs.methods import all_methods, baseline, find_method
from upcycle.verbs.naming import SAID, naming_of
from upcycle.verbs.options import Say, tell
from upcycle.verbs.pairing import answered_by, on_its_pool, teacher_and_data
from upcycle.verbs.session import Session


@dataclass(kw_only=True)
class Setting(options.Setting):
    """Data, devices, and where it goes.

    Args:
        data: digits, mnist, fashion_mnist, fashion_mnist_local, usps, cifar10, a folder of images, a Parquet
            folder, pool:PATH, hub:ORG/NAME, or graphs (cora, mutag, ..., graphs:PATH). Not given, it is digits, and
            none for methods that make their own samples.
        test_data: measure on the validation and test images of this set instead; nothing else is done with it.
        size: resize images to SIDE or HEIGHT,WIDTH pixels; CHANNELS,HEIGHT,WIDTH also says how many channels a network
            of one's own takes. Without data, the size of the images to make.
        shots: keep only so many training images of each class (0: all).
        labels: keep labels for only so many training images of each class (-1: all, 0: none).
        augment: crop, flip, color, or none; auto takes crop and flip for colour images, and crop for grey ones
            that a method makes itself.
        teacher_weights: a file for the teacher (safetensors, or what torch.save wrote), pretrained, or fresh for random
            ones; if not given, trained ones where the reference has any.
        teacher_weights_key: which weights of the teacher's file to take where it holds several: the name of their
            envelope or of their prefix, such as state_dict_ema.
        teacher_mean: what is taken from the teacher's inputs to normalise them, one value a channel.
        teacher_std: what the teacher's are divided by then, one value a channel.
        teacher_classes: the names of the teacher's outputs in their order, with commas between, or a text file with a
            name in each line; if not given, those of the reference, or else of the data.
        student_weights: a safetensors file to start from, or pretrained; fresh weights if not given.
        student_weights_key: likewise, of the student's file.
        student_mean: what is taken from the student's inputs to normalise them, one value a channel; if not given, a
            fresh student takes its teacher's.
        student_std: what the student's are divided by then, one value a channel.
        label_map: CSV with columns teacher,student that maps class names.
        alone: also train the student without a teacher, on the labels there are, with as many updates.
        teacher_precision: auto takes bf16 for the teacher where its answers stay the same.
        compile: speed training up with torch.compile, which pays for itself in long runs.
    """

    test_data: str | None = None
    shots: int = 0
    labels: int = -1
    teacher_weights: str | None = None
    teacher_weights_key: str | None = None
    teacher_mean: tuple[float, ...] | None = None
    teacher_std: tuple[float, ...] | None = None
    teacher_classes: tuple[str, ...] | None = None
    student_weights: str | None = None
    student_weights_key: str | None = None
    student_mean: tuple[float, ...] | None = None
    student_std: tuple[float, ...] | None = None
    label_map: Path | None = None
    alone: bool = False
    teacher_precision: Literal["auto", "32-true"] = "auto"
    compile: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.label_map is not None:
            self.label_map = Path(self.label_map)
        require(self.shots >= 0, f"shots must not be negative, it is {self.shots}.")
        require(self.labels >= -1, f"labels must be -1 (all) or more, not {self.labels}.")
        require(
            not self.shots or self.long_tail is None,
            "shots keep equally many training images of each class, so nothing is left of long_tail; leave one out.",
        )


@dry
def distill(
    *,
    student: str | nn.Module | Model,
    teacher: str | nn.Module | Model | None = None,
    method: str | type[Method] = DEFAULT_METHOD["distill"],
    data: Any = None,
    say: Say = tell,
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
    free = cls.card.needs.data == "none"  # it makes its own images
    data = spelled(data)
    if data is None:
        data = "none" if free else "digits"
    networks = {"teacher": teacher, "student": student}
    session = Session("distill", cls, networks, data, say, options, kind=Setting)
    setting = session.setting
    _check(session)
    guide, whole = teacher_and_data(
        setting, teacher, data, free=free, say=session.say, taught=student, compared=cls.compares
    )
    if free and setting.test_data is None:
        session.figure = "agreement"
    else:
        session.figure = f"test {whole.task.figure}"
    if guide is not None and (answered := answered_by(guide, whole, setting.device)) is not whole:
        session.figure, whole = "agreement" if "test" in answered.answered else session.figure, answered
        session.say(whole.notes[-1])

    def make(seed: int) -> tuple[Method, Collection]:
        net = _student(session, guide, whole, seed)
        taken = {role: network for role, network in (("teacher", guide), ("student", net)) if role in cls.roles}
        return session.method(whole, **taken), _prepared(session, whole, net, seed)

    def held(run: Run, data: Any) -> Collection:
        if len(data.test):
            return data
        assert guide is not None and run.directory is not None  # a method without data has a teacher
        run.fabric.barrier()  # the first process leaves the pool
        return on_its_pool(guide, data, run.directory, setting.device)

    def measure(model: Model, data: Collection) -> list[Measured]:
        return [measured(model.module, data.test, device=setting.device, among=session.processes)]

    product, beside = session.arms(make, name="student", role="student", after=held)
    if setting.alone:
        beside.append(Arm(name="alone", role="alone", words="alone", make=lambda seed: _alone(*make(seed)), after=held))
    first, seen = make(setting.seed)
    require(
        not setting.alone or int(seen.task.known(seen.train.labels).sum()) >= 2,
        "The student cannot be trained alone without labels; drop --alone or keep some --labels.",
    )
    net = first.model("student", seen)
    cost = _show(session, guide, net, seen)
    if setting.dry_run:
        guiding = count(guide.module, like_of(guide, seen)).macs if guide else 0
        return session.estimate([product, *beside], net, teacher=guiding, student=cost)
    made, others = session.run(
        product, beside, measure, compile=setting.compile, teacher_precision=setting.teacher_precision
    )
    rows = []
    if guide is not None and guide.classes:
        found = [_guided(session, guide, made.data, made.data.test, session.processes)]
        line = {**row(guide.name, "teacher", found, guide, like_of(guide, made.data)), **spent(guide, made.data)}
        rows.append(showing(line, made.left, "shown of the teacher"))
    rows += [other.row(f"{other.model.name} {other.arm.words}") for other in others]
    rows.append(made.row(f"{made.model.name} by {cls.card.name}"))
    return session.leave(
        made,
        rows,
        _sentence(rows, made.data, seen=not len(whole.test) or (whole.lineage is not None and not whole.measured)),
        parents=_parents(session, guide, made.model, made.data),
        data=made.data,
    )


# -- before any work ----------------------------------------------------------------------------------------------


def _check(session: Session) -> None:
    """Everything that can be known to be wrong without building or reading anything large."""
    setting, networks, needs = session.setting, session.networks, session.cls.card.needs
    if networks["teacher"] is None and needs.teacher != "none":
        able = [m.card.name for m in all_methods() if m.card.verb == "distill" and m.card.needs.teacher == "none"]
        raise UserError(
            f"{session.cls.card.name} needs a teacher: give --teacher REFERENCE. Without one there is "
            f"--method {', '.join(able)}."
        )
    if "teacher" not in session.cls.roles:
        name = session.cls.card.name
        require(networks["teacher"] is None, f"{name} takes no teacher; leave out --teacher, or --method {name}.")
        itself = session.cls is baseline()
        require(not (setting.alone and itself), f"{name} already trains the student alone; leave out --alone.")
    for role, reference in {**networks, "data": session.data_ref, "test_data": setting.test_data}.items():
        require(not isinstance(reference, str) or bool(reference.strip()), f"--{role} names nothing.")
    _check_data(session)
    for role in ("teacher", "student"):
        naming_of(setting, role)  # whose values are checked
    said = [f"teacher_{name}" for name in SAID]
    said = [name for name in said if networks["teacher"] is None and getattr(setting, name) is not None]
    require(not said, f"There is no teacher here; leave out --{', --'.join(said)}.")
    session.check(sets=[None if needs.data == "none" else session.data_ref, setting.test_data])


def _check_data(session: Session) -> None:
    """Whether the data that are named are of the kind that the method takes."""
    name, setting, reference = session.cls.card.name, session.setting, session.data_ref
    none = isinstance(reference, str) and reference == "none"
    if session.cls.card.needs.data != "none":
        require(
            not none,
            f"{name} needs images, so --data none cannot serve; upcycle advise --data none says what works without.",
        )
        return
    require(
        none,
        f"{name} makes its own {session.cls.card.needs.inputs[0]} and takes no --data; to measure on real ones, give "
        f"--test_data {reference if isinstance(reference, str) else 'DATA'}.",
    )
    require(
        not setting.shots and setting.labels < 0 and setting.long_tail is None,
        f"{name} takes no data, so there is nothing for --shots, --labels and --long_tail to choose from.",
    )
    require(
        setting.label_map is None or setting.test_data is not None,
        f"{name} takes no data, so --label_map has nothing to map unless --test_data is given.",
    )


# -- what goes in -------------------------------------------------------------------------------------------------


def _student(session: Session, teacher: Model | None, data: Collection, seed: int) -> Model:
    """A student with fresh weights drawn from ``seed``, or the weights asked for."""
    reference, naming = session.networks["student"], naming_of(session.setting, "student")
    seed_everything(seed, "student")
    if isinstance(reference, nn.Module | Model):
        require(
            naming.weights != "fresh",
            "A student that is given as an object comes as it is; leave out student_weights='fresh'.",
        )
        own = models.own_copy(reference)
        return references.resolve(
            own,
            **_asked(data),
            classes=data.classes,
            weights=naming.file,
            weights_key=naming.weights_key,
            mean=naming.mean,
            std=naming.std,
        )
    mean, std = naming.mean, naming.std
    fresh = naming.weights in (None, "fresh")
    if fresh and isinstance(data, Images):  # fresh weights take any normalisation; the teacher's saves renormalising
        like = (teacher.mean, teacher.std) if teacher else once(lambda: data.statistics)
        mean, std = mean or like[0], std or like[1]
    student = references.resolve(
        reference,
        pretrained=naming.weights == "pretrained",
        num_classes=len(data.classes),
        **_asked(data),
        weights=naming.file,
        weights_key=naming.weights_key,
        mean=mean,
        std=std,
        trust=naming.trust,
    )
    if fresh:
        student = dataclasses.replace(student, lineage=None, licence="unknown")
    return dataclasses.replace(student, classes=data.classes)


def _asked(data: Collection) -> dict[str, Any]:
    """Say what a student shall take and answer."""
    return {"input_shape": data.shape} if isinstance(data, Images) else {"takes": data.takes, "task": data.task}


def _prepared(session: Session, data: Collection, student: Model, seed: int) -> Collection:
    """The data as this seed's run sees them: its own draw of samples or labels, augmented, normalised."""
    setting = session.setting
    if setting.shots:
        data = data.few(setting.shots, seed)
    if setting.labels >= 0:
        data = data.hide_labels(setting.labels, seed)
    grey = ("crop",) if session.cls.card.needs.data == "none" and isinstance(data, Images) else ()
    return augmented(data, setting.augment, grey).seen_by(student)


def _show(session: Session, teacher: Model | None, student: Model, data: Collection) -> int:
    """Say what goes in, and return the multiply-adds of the student."""
    session.say(f"data     {describe(data)}")
    if teacher is not None and teacher.classes:
        hint = " See --teacher_mean, --teacher_std, --teacher_classes and --label_map."
        show_accuracy(session.say, "teacher", teacher, data, partial(_guided, session, teacher, data), hint)
    cost = count(student.module, like_of(student, data))
    session.say(f"student  {student.name}: {si(cost.parameters)} parameters, {si(cost.macs)} multiply-adds")
    return cost.macs


def _guided(
    session: Session, teacher: Model, data: Collection, split: Samples, among: Processes | None = None
) -> Measured:
    """How good the teacher is on a split of what the student sees: as the run asks it, which is faster.

    In float32 where its own answers stand in place of labels, so that it agrees with itself.

    Args:
        among: processes that divide the work, if all of them are here.
    """
    setting = session.setting
    if session.figure == "agreement":
        return measured(teacher.module, split.seen_by(teacher), device=setting.device, name=teacher.name, among=among)
    precision: Any = "64-true" if setting.precision == "64-true" else setting.teacher_precision
    like = data.validation if len(data.validation) else split
    network = frozen_for(like, teacher, setting.device, precision)
    return measured(network, split, name=teacher.name, among=among)


def _alone(method: Any, data: Collection) -> tuple[Method, Collection]:
    """The student trained on the labels there are, with as many updates as the method makes."""
    known = data.task.known(data.train.labels).nonzero()[:, 0]
    recipe = getattr(method, "recipe", Recipe())
    batch = min(recipe.batch_size, len(known))
    epochs = max(1, round(method.steps(len(data.train)) / math.ceil(len(known) / (batch or len(known)))))
    recipe = dataclasses.replace(
        recipe,
        epochs=epochs,
        batch_size=batch,
        warmup=recipe.warmup / recipe.epochs * epochs,
        milestones=tuple(round(m / recipe.epochs * epochs) for m in recipe.milestones),
        mix_map="self",  # it has no teacher to ask
    )
    data = dataclasses.replace(data, train=data.train.subset(known))
    return baseline()(student=method.student, recipe=recipe), data


# -- after it -----------------------------------------------------------------------------------------------------


def _parents(session: Session, teacher: Model | None, student: Model, data: Collection) -> list[lineage.Node]:
    """The models whose weights, answers or images went into the student."""
    parents = [] if teacher is None else [parent_node(teacher)]
    if data.lineage is not None:  # images that a network made hand its licence on
        parents.append({**data.lineage, "role": lineage.POOLS[data.noun]})
    if session.setting.student_weights not in (None, "fresh") and student.lineage is not None:
        parents.append({**student.lineage, "role": "initial weights"})
    return parents


def _sentence(rows: list[dict[str, Any]], data: Collection, *, seen: bool) -> str:
    """Say how good the student is, beside what it is compared with; ``seen``: the test samples are of its own pool."""
    student, agreement, noun = rows[-1], "test" in data.answered, data.noun
    count, name, task = len(data.test), data.measured or data.name, data.task
    if task != CLASSIFICATION:
        share = task.unit == "share"
        shown = [(line["name"], spread(line["accuracy"]) if share else line["shown"][task.figure]) for line in rows]
        beside = "; ".join(f"{network} {score}" for network, score in shown)
        return f"On the {count:,} test {noun} of {name} the {task.figure} is: {beside}."
    accuracy = statistics.fmean(student["accuracy"])
    if agreement:
        which = f"{noun} that it was trained on" if seen else f"test {noun} of {name}, which have no labels"
        text = f"The student gives its teacher's answer for {spread(student['accuracy'])} of {count:,} {which}"
    else:
        text = f"The student reaches {spread(student['accuracy'])} on the {count:,} test {noun} of {name}"
    for line in rows[:-1]:
        other = statistics.fmean(line["accuracy"])
        if line["role"] == "teacher" and not agreement:
            ratio = line["parameters"] / student["parameters"]
            text += f", {points(accuracy - other)} its teacher"
            text += f", with {ratio:.3g} times fewer parameters" if ratio > 1.05 else ""
        if line["role"] == "alone":
            text += f", and {points(accuracy - other)} the same network trained alone"
    return f"{text}; this is agreement and no accuracy, which --test_data would measure." if agreement else f"{text}."
