"""``upcycle adapt``: a network for a new task or a new domain, beside what there would be without the method."""

from __future__ import annotations

import dataclasses
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from upcycle.core import models, references
from upcycle.core.errors import require
from upcycle.core.fetching import dry
from upcycle.core.heads import with_classes
from upcycle.core.lineage import Node, node
from upcycle.core.method import Method
from upcycle.core.models import Model
from upcycle.core.once import once
from upcycle.core.reading import Reading
from upcycle.core.recipe import Recipe
from upcycle.core.seeds import seed_everything
from upcycle.core.task import judged
from upcycle.data import Images, check_reference, describe
from upcycle.data import load as load_data
from upcycle.data.joining import pooled
from upcycle.data.labels import mapped, relabelled
from upcycle.data.pool_files import parent_node
from upcycle.predictors import Predictor, check_predictor, predictor
from upcycle.verbs import DEFAULT_METHOD, options
from upcycle.verbs.arms import Arm, Result
from upcycle.verbs.figures import figures_of, row, share
from upcycle.verbs.methods import baseline
from upcycle.verbs.naming import SAID, Naming, Reference, naming_of
from upcycle.verbs.networks import images_for, in_classes_of, is_untrained, network, network_and_images, takes_any
from upcycle.verbs.options import Say, tell
from upcycle.verbs.session import Session


@dataclass(kw_only=True)
class Setting(options.NamedSetting):
    """Data, devices, and where it goes.

    Args:
        data: the new task or domain: digits, mnist, fashion_mnist, fashion_mnist_local, usps, cifar10, a folder of
            images, a Parquet folder, or hub:ORG/NAME. Where a method needs no labels they only measure.
        source_data: labelled images of the old domain; of several, with commas between them.
        student_weights: the weights that the student starts from: pretrained, or a file; fresh ones if not given.
        student_weights_key: which weights of the student's file to take where it holds several.
        student_mean: what is taken from the student's inputs to normalise them, one value a channel; if not given, what
            trained weights expect, or the mean of the new images.
        student_std: what the student's are divided by then, one value a channel.
        student_classes: the names of the outputs of a student that is trained already, as those of MODEL.
        top: how many classes an answer names, of a network that is asked; all if not given.
        budget: the most images that an endpoint may bill, over all commands with this cache.
        cache: a folder for an endpoint's answers; if not given, one in the user's cache.
        control: also train what the method is to be compared with.
    """

    source_data: str | None = None
    student_weights: str | None = None
    student_weights_key: str | None = None
    student_mean: tuple[float, ...] | None = None
    student_std: tuple[float, ...] | None = None
    student_classes: tuple[str, ...] | None = None
    top: int | None = None
    budget: int | None = None
    cache: Path | None = None
    control: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.top is None or self.top >= 1, f"top must be at least 1, not {self.top}.")
        require(self.budget is None or self.budget >= 0, f"budget must not be negative, it is {self.budget}.")


Asked = Reference | Predictor


@dry
def adapt(
    model: Asked | Sequence[Asked] | None = None,
    *,
    student: Reference | None = None,
    method: str | type[Method] = DEFAULT_METHOD["adapt"],
    data: Any = None,
    source_data: Any = None,
    say: Say = tell,
    **options: Any,
) -> Result:
    """A network that works on new data, and, beside it, what there would be without the method.

    Args:
        model: a trained network to tune; or, for methods that learn from answers alone, the address of an endpoint,
            an ONNX file, a network, several of them, or an object of one's own that is a
            :class:`~upcycle.predictors.Predictor`.
        student: the network to train, for the methods that train one of its own.
        method: a name of ``upcycle methods``, ``package.module:Class``, or a class.
        data: see :func:`upcycle.data.load`; the new task or domain. ``None`` is digits.
        source_data: likewise, labelled images of the old domain, for the methods that need them; of several
            domains, a list, or with commas between names.
        say: where progress lines go.
        options: fields of :class:`Setting` and of the method.

    Raises:
        UserError: before any work where the request cannot work.
    """
    asked = list(model) if isinstance(model, list | tuple) else [] if model is None else [model]
    data = "digits" if data is None else data
    sources = _listed(source_data)
    named = source_data if isinstance(source_data, str) else None
    session = Session(
        "adapt",
        method,
        {"model": asked, "student": student},
        data,
        say,
        {**options, "source_data": named},
        kind=Setting,
        positional=("model",),
    )
    cls = session.cls
    _require_given(cls, asked, student, sources)
    asks = "predictors" in cls.given
    for reference in sources:
        if isinstance(reference, str):
            check_reference(reference)
    _require_used(session, asked, student)
    session.check(looks={"model": check_predictor if asks else references.check_reference})
    if asks:
        return _from_answers(session, asked)
    if "source" in cls.roles:
        return _of_source(session, asked[0], sources)
    return _between_domains(session, sources)


def _listed(source_data: Any) -> list[Any]:
    if source_data is None:
        return []
    if isinstance(source_data, str) and not Path(source_data).exists():  # a folder may have a comma in its name
        return [part.strip() for part in source_data.split(",")]
    return list(source_data) if isinstance(source_data, list | tuple) else [source_data]


def _require_given(cls: Any, asked: list[Any], student: Any, sources: list[Any]) -> None:
    """Whether all that this method is made of was given, and nothing else."""
    name = cls.card.name
    if "predictors" in cls.given:
        require(bool(asked), f"{name} needs whom to ask: upcycle adapt http://HOST:PORT/PATH --method {name}, an ONNX "
                "file, or a network.")  # fmt: skip
    elif "source" in cls.roles:
        require(len(asked) == 1, f"{name} adapts one network: upcycle adapt MODEL --method {name}.")
    else:
        require(not asked, f"{name} trains a network on labelled images of the source, so it takes --student in place "
                "of MODEL.")  # fmt: skip
    if "student" in cls.roles:
        require(student is not None, f"{name} needs a network to train: give --student REFERENCE.")
    else:
        require(student is None, f"{name} adapts MODEL itself and takes no --student.")
    several = "domains" in cls.given
    if several or "source_data" in cls.given:
        require(bool(sources), f"{name} needs labelled images of the source: give --source_data DATA"
                f"{',DATA' if several else ''}.")  # fmt: skip
        require(not several or len(sources) > 1, f"{name} needs two source domains or more: --source_data DATA,DATA.")
        require(several or len(sources) == 1, f"{name} takes one source domain, not {len(sources)}.")
    else:
        require(not sources, f"{name} needs no images of the source, so leave out --source_data.")


def _require_used(session: Session, asked: list[Any], student: Any) -> None:
    """Refuse what is said about a network that is not there."""
    for role, there, prefix in (("MODEL", bool(asked), ""), ("student", student is not None, "student_")):
        names = [f"{prefix}{name}" for name in SAID]
        said = [name for name in names if getattr(session.setting, name) is not None]
        require(there or not said, f"{session.cls.card.name} was given no {role}; leave out --{', --'.join(said)}.")


# -- one trained network ----------------------------------------------------------------------------------------


def _of_source(session: Session, reference: Any, sources: list[Any]) -> Result:
    naming, needs = naming_of(session.setting), session.cls.card.needs
    if needs.teacher == "none" and naming.weights is None and isinstance(reference, str) and is_untrained(reference):
        naming = dataclasses.replace(naming, weights="fresh")  # nothing was asked of the network that it begins with
    given: dict[str, Any] = {}
    if sources:  # the old domain has the network's classes, and so has the new one
        source, old = network_and_images(reference, sources[0], naming, resized=True)
        images = session.load(session.data_ref, source, other_task=True)
        old = relabelled(old, source.classes, remedy=" Name the outputs of the network with --classes.")
        given["source_data"] = session.augmented(old).normalised(source.mean, source.std)
    else:
        source, images = network_and_images(reference, session.data_ref, naming, other_task=True)
    same = bool(sources or naming.label_map) or set(source.classes) == set(images.classes)
    if same:
        images = in_classes_of(source, images, naming)
    labels = bool(images.classes) or needs.data != "labelled"
    require(labels, f"{images.name} has no labels, and {session.cls.card.name} learns from them.")
    seen = session.augmented(images).normalised(source.mean, source.std)
    session.say(f"data     {describe(images)}")
    if same:
        session.show("source", source, images)
    product, beside = session.arms(lambda seed: (session.method(source=models.own_copy(source), **given), seen))
    if session.setting.dry_run:
        return session.estimate([product, *beside], source)
    made, others = session.run(product, beside, lambda model, _: session.measured(model, images))
    rows = [row(source.name, "source", session.measured(source, images) if same else [], source)]
    rows += [other.row(f"{source.name}, {other.arm.words}") for other in others]
    rows.append(made.row(f"{source.name}, adapted"))
    parents = [parent_node(source, "source")]
    return session.leave(made, rows, _sentence(rows, made.model, seen), parents=parents, data=seen)


# -- answers alone ----------------------------------------------------------------------------------------------


def _from_answers(session: Session, asked: list[Any]) -> Result:
    setting, naming = session.setting, naming_of(session.setting)
    predictors = tuple(_predictor(one, session, naming) for one in asked)
    classes = predictors[0].classes
    students = _Students(session, classes, getattr(predictors[0], "reading", None))
    images = _known_as(students.images, classes, naming)
    images = session.augmented(images).normalised(students.first.mean, students.first.std)
    session.say(f"data     {describe(images)}")
    to_ask = [images.train, *([images.test] if images.test.labelled else [])]
    for one in predictors:
        if hasattr(one, "require_budget"):
            one.require_budget(*to_ask)  # before the first query
    hidden = images.hide_labels(0, 0)  # from the method; what measures has them

    def make(seed: int) -> tuple[Method, Images]:
        return session.method(predictors=predictors, student=students.draw(seed)), hidden

    product, beside = session.arms(make)
    if _labelled(session, images):
        beside = [
            *beside,
            Arm(
                name="oracle",
                role="oracle",
                words="trained with the labels",
                make=lambda seed: _supervised(make(seed)[0], images),
            ),
        ]
    if setting.dry_run:
        return session.estimate([product, *beside], students.first)
    made, others = session.run(product, beside, lambda model, _: session.measured(model, images))
    rows = [_answers_row(one, images, classes) for one in predictors]
    rows += [other.row(f"{students.first.name}, {other.arm.words}") for other in others]
    rows.append(made.row(f"{students.first.name}, adapted"))
    parents = [*students.parents(), *map(_box, predictors)]
    result = session.leave(made, rows, _sentence(rows, made.model, hidden), parents=parents, data=hidden)
    for one in predictors:
        if hasattr(one, "report"):
            said = one.report()
            session.say(
                f"asked    {one.name}: {said['queries']:,} images sent, {said['cached']:,} known from before, "
                f"{said['retries']:,} requests repeated; {said['billed']:,} images may have been billed in all"
            )
    return result


def _known_as(images: Images, classes: tuple[str, ...], naming: Naming) -> Images:
    """``images`` with ``classes`` as their labels, of which some may be lacking."""
    if naming.label_map is not None and images.classes:
        return mapped(images, naming.label_map, classes)
    return relabelled(images, classes, partial=True)


def _predictor(reference: Any, session: Session, naming: Naming) -> Predictor:
    setting = session.setting
    said = [name for name in SAID if getattr(naming, name) is not None]
    if isinstance(reference, Predictor):
        require(not said, f"A predictor that is given as an object is as it is; leave out {', '.join(said)}.")
        return reference
    endpoint = isinstance(reference, str) and reference.lower().startswith(("http://", "https://"))
    if endpoint:
        require(not said, f"An endpoint says itself what it is; leave out --{', --'.join(said)}.")
        require(setting.top is None, "An endpoint says itself how many classes an answer names; leave out --top.")
        given = {"budget": setting.budget, "cache": setting.cache}
    else:
        require(setting.budget is None and setting.cache is None, "--budget and --cache are for endpoints, and "
                f"{reference} is asked here.")  # fmt: skip
        file = isinstance(reference, str) and reference.endswith(".onnx")  # which runs on the CPU
        if file:
            require(naming.weights is None, f"{reference} has its own weights; leave out --weights.")
            require(setting.top is None, f"{reference} answers with all its classes; leave out --top.")
            given = {name: getattr(naming, name) for name in ("classes", "mean", "std")}
        else:
            given = {"top": setting.top, "device": setting.device}
            like = images_for(session.data_ref, naming) if takes_any(reference, naming) else None
            reference = network(reference, naming, like)
    return predictor(reference, **{k: v for k, v in given.items() if v is not None})


def _box(one: Predictor) -> Node:
    """The lineage of what was asked: a network's own, or only its name."""
    model = getattr(one, "model", None)
    if isinstance(model, Model):
        return parent_node(model, "predictor")
    return {**node(name=one.name, digest="", licence="unknown"), "role": "predictor"}


def _answers_row(one: Predictor, images: Images, classes: tuple[str, ...]) -> dict[str, Any]:
    """What was asked, on the test images: no adaptation."""
    found: dict[str, Any] = {"name": f"{one.name}, not adapted", "role": "source", "accuracy": []}
    if not images.test.labelled:
        return found
    answers = one.predict(images.test)
    column = torch.tensor([classes.index(name) for name in one.classes])
    k = len(classes)
    p = torch.full((len(images.test), k), 1e-6).scatter(
        1, column[answers.classes], answers.probabilities.clamp_min(1e-6)
    )
    return {**found, **figures_of([judged(p.log(), images.test.labels, name=one.name)])}


# -- labelled images of one domain or several -------------------------------------------------------------------


def _between_domains(session: Session, sources: list[Any]) -> Result:
    setting, student = session.setting, session.networks["student"]
    own = student.input_shape[1:] if isinstance(student, Model) and not isinstance(sources[0], Images) else None
    like = load_data(sources[0], size=setting.sides or own, channels=setting.planes, **setting.asked)
    students = _Students(session, like.classes)
    first = students.first
    same = f" All domains need class folders of the same names as {like.name}."
    olds = [relabelled(session.load(ref, first, other_task=True), like.classes, remedy=same) for ref in sources]
    unseen = _known_as(students.images, like.classes, naming_of(setting)).normalised(first.mean, first.std)
    olds = [session.augmented(old).normalised(first.mean, first.std) for old in olds]
    if "domains" in session.cls.given:
        data, domains = pooled(olds, unseen)
        session.say(f"data     {describe(data)}, never seen in training: {unseen.name}")
        given: dict[str, Any] = {"domains": domains}
        plain = {"ERM": data}
    else:
        whole = session.augmented(unseen)
        session.say(f"source   {describe(olds[0])}\ntarget   {describe(whole)}")
        given, data = {"source_data": olds[0]}, whole.hide_labels(0, 0)  # from the method; what measures has them
        plain = {"source only": olds[0], **({"oracle": whole} if _labelled(session, whole) else {})}

    def make(seed: int) -> tuple[Method, Images]:
        return session.method(student=students.draw(seed), **given), data

    def plainly(labelled: Images, seed: int) -> tuple[Method, Images]:
        return _supervised(make(seed)[0], labelled)

    product, beside = session.arms(make)
    if setting.control:
        beside += [
            Arm(name=name, role="oracle" if name == "oracle" else "source", words=name, make=partial(plainly, its))
            for name, its in plain.items()
        ]
    if setting.dry_run:
        return session.estimate([product, *beside], first)
    made, others = session.run(product, beside, lambda model, _: session.measured(model, unseen))
    rows = [other.row(f"{first.name}, {other.arm.words}") for other in others]
    rows.append(made.row(f"{first.name}, adapted"))
    return session.leave(made, rows, _sentence(rows, made.model, data), parents=students.parents(), data=data)


# -- what they share --------------------------------------------------------------------------------------------


class _Students:
    """The network to train: fresh weights drawn from each seed, or copies of those asked for.

    Args:
        classes: the outputs that it shall have.
        reading: how images become pixels, where nothing else says it: as whom it learns from has it.

    Attributes:
        images: of the new domain, for this network.
        first: the student of the first seed, which is only looked at.
    """

    def __init__(self, session: Session, classes: tuple[str, ...], reading: Reading | None = None) -> None:
        self.reference, self.setting, self.classes = session.networks["student"], session.setting, classes
        self.naming = naming_of(self.setting, "student")
        self.fresh = self.naming.weights in (None, "fresh") and not isinstance(self.reference, Model)
        self.bare = references.is_bare(self.reference)
        if self.fresh or self.bare:  # it is built for the images
            self.images = images_for(session.data_ref, self.naming, reading)
        self.first = self.draw(self.setting.seed)
        if not (self.fresh or self.bare):
            self.images = session.load(session.data_ref, self.first, other_task=True)

    def draw(self, seed: int) -> Model:
        """A student of its own for the run of ``seed``."""
        naming = self.naming
        seed_everything(seed, "student")
        if self.fresh:
            mean, std = once(lambda: self.images.statistics)
            student = references.resolve(
                self.reference,
                pretrained=False,
                num_classes=len(self.classes),
                input_shape=self.images.shape,
                mean=naming.mean or mean,
                std=naming.std or std,
                trust=naming.trust,
            )
            student = dataclasses.replace(student, lineage=None, licence="unknown", classes=self.classes)
        else:
            student = network(self.reference, naming, self.images if self.bare else None, other_task=True)
            if self.bare and naming.classes is None and len(student.classes) == len(self.classes):
                student = dataclasses.replace(student, classes=self.classes)  # it has no names of its own
        student = dataclasses.replace(student, module=models.copy_of(student.module))
        return student if student.classes == self.classes else with_classes(student, self.classes)

    def parents(self) -> list[Node]:
        """The lineage of the weights that the student starts from."""
        return [] if self.naming.weights in (None, "fresh") else [parent_node(self.first, "initial weights")]


def _labelled(session: Session, images: Images) -> bool:
    """Whether the new domain has labels, so that what they would give can be shown."""
    return session.setting.control and images.train.labelled


def _supervised(method: Any, data: Images) -> tuple[Method, Images]:
    """The method's student trained with the labels of ``data``, as many updates as the method would make on them."""
    recipe = getattr(method, "recipe", None) or Recipe(batch_size=method.batch_size, lr=method.lr)
    n = int((data.train.labels >= 0).sum())
    epochs = max(1, math.ceil(method.steps(len(data.train)) / math.ceil(n / recipe.batch_size)))
    recipe = dataclasses.replace(recipe, epochs=epochs, warmup=min(recipe.warmup, epochs))
    return baseline()(student=method.student, recipe=recipe), data


def _sentence(rows: list[dict[str, Any]], product: Model, data: Images) -> str:
    """Accuracies, and whether adapting helped: a loss is called one."""
    if not (made := rows[-1]["accuracy"]):
        return f"{product.name} was adapted; there were no labelled test images to measure it on."
    text = f"The adapted network reaches {share(made)} on the test images of {data.measured or data.name}"
    others = [line for line in rows[:-1] if line["accuracy"] and line["role"] in ("source", "control")]
    if others:
        text += ", against " + " and ".join(f"{share(line['accuracy'])} ({line['name']})" for line in others)
    oracle = [line for line in rows[:-1] if line["accuracy"] and line["role"] == "oracle"]
    if oracle:
        text += f"; with the labels of the new domain it would be {share(oracle[0]['accuracy'])}"
    best = max(others, key=lambda line: statistics.fmean(line["accuracy"]), default=None)
    if best is not None and statistics.fmean(best["accuracy"]) > statistics.fmean(made):
        text += f". Adapting did harm here: {best['name']} is better"
    return text + "."
