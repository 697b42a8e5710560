"""``upcycle adapt``: a network for a new task or a new domain, beside what there would be without the method."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from upcycle.adaptation import ISO, LinearProbe
from upcycle.core import models
from upcycle.core.errors import require
from upcycle.core.evaluate import judged
from upcycle.core.heads import with_classes
from upcycle.core.lineage import Node, node
from upcycle.core.losses import Terms
from upcycle.core.method import Method
from upcycle.core.models import Model
from upcycle.core.recipe import Recipe
from upcycle.core.seeds import seed_everything
from upcycle.data import Images, ImageSplit, check_reference, describe
from upcycle.data.labels import relabelled
from upcycle.distillation import KD
from upcycle.predictors import Predictor, check_predictor, predictor
from upcycle.verbs import work
from upcycle.verbs.making import Result, Say, figures_of, row
from upcycle.verbs.work import Reference, Work


@dataclass(kw_only=True)
class Setting(work.Setting):
    """Data, devices, and where it goes.

    Args:
        data: the new task or domain: digits, mnist, fashion_mnist, fashion_mnist_local, usps, cifar10, a folder of
            images, a Parquet folder, or hub:ORG/NAME. Where a method needs no labels they only measure.
        source_data: labelled images of the old domain; of several, with commas between them.
        student_weights: of the student: pretrained, or a file; fresh ones if not given.
        augment: crop, flip, color, or none, for training; auto takes crop and flip for colour images.
        top: of a network that is asked: how many classes an answer names; all if not given.
        budget: the most images that an endpoint may be sent.
        cache: a folder for an endpoint's answers; if not given, one in the user's cache.
        control: also train what the method is to be compared with.
    """

    source_data: str | None = None
    student_weights: str | None = None
    top: int | None = None
    budget: int | None = None
    cache: Path | None = None
    control: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.top is None or self.top >= 1, f"top must be at least 1, not {self.top}.")
        require(self.budget is None or self.budget >= 0, f"budget must not be negative, it is {self.budget}.")


Asked = Reference | Predictor


def adapt(
    model: Asked | Sequence[Asked] | None = None,
    *,
    student: Reference | None = None,
    method: str | type[Method] = "ssf",
    data: Any = None,
    source_data: Any = None,
    say: Say = print,
    **options: Any,
) -> Result:
    """A network that works on new data, and, beside it, what there would be without the method.

    Args:
        model: what there is: a trained network to tune (ssf, lora, ia3, iso), or whom to ask (dine, beta): the
            address of an endpoint, an ONNX file, a network, several of them, or an object of one's own that is a
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
    job = Work("adapt", method, {"model": asked, "student": student}, data, say, {**options, "source_data": named},
               kind=Setting)  # fmt: skip
    cls = job.cls
    _require_given(cls, asked, student, sources)
    asks = "predictors" in cls.given
    for reference in sources:
        if isinstance(reference, str):
            check_reference(reference)
    job.check(_stand_ins(cls), looks={"model": check_predictor if asks else models.check_reference})
    if asks:
        return _from_answers(job, asked, student)
    if "source" in cls.roles:
        return _of_source(job, asked[0], sources)
    return _between_domains(job, student, sources)


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


class _Nobody:
    """Whom nobody asks: it stands in while options are checked."""

    name, classes = "nobody", ("a", "b")

    def predict(self, split: ImageSplit) -> Any:
        raise AssertionError("nobody was asked")


NOWHERE = Images.none((1, 8, 8), ("a", "b"), (0.0,), (1.0,))


def _stand_ins(cls: Any) -> dict[str, Any]:
    given = {"predictors": (_Nobody(),), "source_data": NOWHERE, "domains": torch.tensor([0, 0, 1, 1])}
    return {**dict.fromkeys(cls.roles, nn.Identity()), **{name: given[name] for name in cls.given}}


# -- one trained network ----------------------------------------------------------------------------------------


def _of_source(job: Work, reference: Any, sources: list[Any]) -> Result:
    source = models.resolve(reference, trust=job.setting.trust)
    images = job.load(job.data_ref, source, other_task=True)
    own = dict(job.own)
    same = False
    if sources:  # the old domain has the network's classes, and so has the new one
        old = relabelled(job.load(sources[0], source, other_task=True), source.classes)
        own["source_data"] = job.augmented(old).normalised(source.mean, source.std)
        images, same = relabelled(images, source.classes), True
    elif set(source.classes) == set(images.classes):
        images, same = relabelled(images, source.classes), True
    require(bool(images.classes), f"{images.name} has no labels, and {job.cls.card.name} learns from them.")
    seen = job.augmented(images).normalised(source.mean, source.std)
    job.say(f"data     {describe(images)}")
    if same:
        job.measure("source", source, images)
    made = job.cls(source=source, **own)
    beside = {name: (arm, seen) for name, arm in _without(made).items()} if job.setting.control else {}  # type: ignore[attr-defined]

    def rows(product: Model, seen: Images, beside: dict[str, Model]) -> list[dict[str, Any]]:
        lines = [row(source.name, "source", job.measured(source, images) if same else [], source)]
        lines += [row(f"{source.name}, {name}", "control", job.measured(other, images), other)
                  for name, other in beside.items()]  # fmt: skip
        return [*lines, row(f"{source.name}, adapted", "product", job.measured(product, images), product)]

    return job.do(made, seen, [("source", source)], rows, positional=("model",), sentence=_sentence, beside=beside)


def _without(made: Any) -> dict[str, Method]:
    """What there would be without the method: the same source, with all that is no part of it."""
    source = dataclasses.replace(made.source, module=models.copy_of(made.source.module))
    if isinstance(made, ISO):
        return {"trained jointly and not adapted": dataclasses.replace(made, source=source, updates=0)}
    return {} if isinstance(made, LinearProbe) else {"linear probe": LinearProbe(source=source, recipe=made.recipe)}


# -- answers alone ----------------------------------------------------------------------------------------------


def _from_answers(job: Work, asked: list[Any], reference: Any) -> Result:
    setting: Any = job.setting
    predictors = [_predictor(one, setting) for one in asked]
    classes = predictors[0].classes
    student, images = _student(job, reference, classes)
    images = relabelled(images, classes, partial=True)
    images = job.augmented(images).normalised(student.mean, student.std)
    job.say(f"data     {describe(images)}")
    test = images.test.labels
    to_ask = [images.train, *([images.test] if (test >= 0).any() else [])]
    for one in predictors:
        if hasattr(one, "require_budget"):
            one.require_budget(*to_ask)  # before the first query
    made = job.cls(predictors=tuple(predictors), student=student, **job.own)
    beside = {"oracle": (_supervised(student, made, images), images)} if _measurable(job, images) else {}

    def rows(product: Model, seen: Images, beside: dict[str, Model]) -> list[dict[str, Any]]:
        lines = [_answers_row(one, images, classes) for one in predictors]
        lines += [row(f"{student.name}, trained with the labels", "oracle", job.measured(other, images), other)
                  for other in beside.values()]  # fmt: skip
        return [*lines, row(f"{student.name}, adapted", "product", job.measured(product, images), product)]

    boxes = [_box(one) for one in predictors]
    parents = [("initial weights", student)] if setting.student_weights is not None else []
    hidden = images.hide_labels(0, 0)  # from the method; what measures has them
    result = job.do(made, hidden, parents, rows, positional=("model",), sentence=_sentence, beside=beside,
                    origins=boxes)  # fmt: skip
    for one in predictors:
        if hasattr(one, "report") and not setting.dry_run:
            said = one.report()
            job.say(f"asked    {one.name}: {said['queries']:,} images sent, {said['cached']:,} known from before, "
                    f"{said['retries']:,} requests repeated")  # fmt: skip
    return result


def _predictor(reference: Any, setting: Any) -> Predictor:
    if isinstance(reference, Predictor):
        return reference
    endpoint = isinstance(reference, str) and reference.lower().startswith(("http://", "https://"))
    if endpoint:
        require(setting.top is None, "An endpoint says itself how many classes an answer names; leave out --top.")
        given = {"budget": setting.budget, "cache": setting.cache}
    else:
        require(setting.budget is None and setting.cache is None, "--budget and --cache are for endpoints, and "
                f"{reference} is asked here.")  # fmt: skip
        file = isinstance(reference, str) and reference.endswith(".onnx")  # which runs on the CPU
        given = {"top": setting.top, "device": None if file else setting.device}
    if isinstance(reference, nn.Module) and not isinstance(reference, Model):
        reference = models.resolve(reference)
    return predictor(reference, trust=setting.trust, **{k: v for k, v in given.items() if v is not None})


def _box(one: Predictor) -> Node:
    """The lineage of what was asked: a network's own, or only its name."""
    model = getattr(one, "model", None)
    if isinstance(model, Model):
        from upcycle.data.pool_files import parent_node

        return parent_node(model, "predictor")
    return {**node(name=one.name, digest="", licence="unknown"), "role": "predictor"}


def _answers_row(one: Predictor, images: Images, classes: tuple[str, ...]) -> dict[str, Any]:
    """What was asked, on the test images: no adaptation."""
    found: dict[str, Any] = {"name": f"{one.name}, not adapted", "role": "source", "accuracy": []}
    if not len(images.test) or not (images.test.labels >= 0).any():
        return found
    answers = one.predict(images.test)
    column = torch.tensor([classes.index(name) for name in one.classes])
    k = len(classes)
    p = torch.full((len(images.test), k), 1e-6).scatter(
        1, column[answers.classes], answers.probabilities.clamp_min(1e-6)
    )
    return {**found, **figures_of([judged(p.log(), images.test.labels, name=one.name)])}


# -- labelled images of one domain or several -------------------------------------------------------------------


def _between_domains(job: Work, reference: Any, sources: list[Any]) -> Result:
    setting: Any = job.setting
    like = job.load_any(sources[0])
    student, unseen = _student(job, reference, like.classes)
    olds = [relabelled(job.load(ref, student, other_task=True), like.classes) for ref in sources]
    unseen = relabelled(unseen, like.classes, partial=True).normalised(student.mean, student.std)
    olds = [job.augmented(old).normalised(student.mean, student.std) for old in olds]
    if "domains" in job.cls.given:
        data, domains = pooled(olds, unseen)
        job.say(f"data     {describe(data)}, never seen in training: {unseen.name}")
        made = job.cls(student=student, domains=domains, **job.own)
        beside = {"ERM": (_supervised(student, made, data), data)} if setting.control else {}
    else:
        data = job.augmented(unseen)
        job.say(f"source   {describe(olds[0])}\ntarget   {describe(data)}")
        made = job.cls(student=student, source_data=olds[0], **job.own)
        beside = {}
        if setting.control:
            beside["source only"] = (_supervised(student, made, olds[0]), olds[0])
        if _measurable(job, data):
            beside["oracle"] = (_supervised(student, made, data), data)
        data = data.hide_labels(0, 0)  # from the method; what measures has them

    def rows(product: Model, seen: Images, beside: dict[str, Model]) -> list[dict[str, Any]]:
        roles = {"oracle": "oracle"}
        lines = [row(f"{student.name}, {name}", roles.get(name, "source"), job.measured(other, unseen), other)
                 for name, other in beside.items()]  # fmt: skip
        return [*lines, row(f"{student.name}, adapted", "product", job.measured(product, unseen), product)]

    parents = [("initial weights", student)] if setting.student_weights is not None else []
    return job.do(made, data, parents, rows, positional=(), sentence=_sentence, beside=beside)


def pooled(domains: Sequence[Images], unseen: Images) -> tuple[Images, torch.Tensor]:
    """Several domains as one training set, measured on another; and the domain of each training sample, int64 (n,).

    All have the same classes and shape. Validation images are those of the domains, test images of the unseen one.
    """

    def join(name: str) -> ImageSplit:
        splits, ids, before = [getattr(d, name) for d in domains], [], 0
        for split in splits:
            ids.append(split.ids + before)  # augmentation is keyed by them
            before += int(split.ids.max()) + 1 if len(split) else 0
        return dataclasses.replace(splits[0], images=torch.cat([s.images for s in splits]),
                                   labels=torch.cat([s.labels for s in splits]), ids=torch.cat(ids))  # fmt: skip

    whole = dataclasses.replace(
        domains[0],
        name=" + ".join(d.name for d in domains),
        train=join("train"),
        validation=join("validation"),
        test=unseen.test,
        measured=unseen.name,
        notes=list(dict.fromkeys(note for d in (*domains, unseen) for note in d.notes)),
        licence=domains[0].licence if len({d.licence for d in domains}) == 1 else "unknown",
    )
    return whole, torch.repeat_interleave(torch.arange(len(domains)), torch.tensor([len(d.train) for d in domains]))


# -- what they share --------------------------------------------------------------------------------------------


def _student(job: Work, reference: Any, classes: tuple[str, ...]) -> tuple[Model, Images]:
    """The network to train, with weights drawn from the seed or those asked for, and the target's images for it."""
    setting: Any = job.setting
    weights = setting.student_weights
    seed_everything(setting.seed, "student")
    if weights is None and not isinstance(reference, Model):  # a fresh network is built for the images
        images = job.load_any(job.data_ref)
        student = models.resolve(reference, pretrained=False, num_classes=len(classes), input_shape=images.shape,
                                 trust=setting.trust)  # fmt: skip
        mean, std = images.statistics
        student = dataclasses.replace(student, mean=mean, std=std, lineage=None, licence="unknown", classes=classes)
        if isinstance(reference, nn.Module):
            student = dataclasses.replace(student, module=models.copy_of(student.module))
        return student, images
    student = models.resolve(reference, weights=None if weights == "pretrained" else weights, trust=setting.trust)
    student = dataclasses.replace(student, module=models.copy_of(student.module))
    if student.classes != classes:
        student = with_classes(student, classes)
    return student, job.load(job.data_ref, student, other_task=True)


def _measurable(job: Work, images: Images) -> bool:
    """Whether the new domain has labels, so that what they would give can be shown."""
    return bool(job.setting.control and (images.train.labels >= 0).any())  # type: ignore[attr-defined]


def _supervised(student: Model, method: Any, data: Images) -> Method:
    """Cross-entropy with the labels of ``data``, as many updates as the method makes."""
    recipe = getattr(method, "recipe", None) or Recipe(batch_size=method.batch_size, lr=method.lr)
    n = int((data.train.labels >= 0).sum())
    updates = method.steps(len(data.train))
    epochs = max(1, math.ceil(updates / math.ceil(n / recipe.batch_size)))
    recipe = dataclasses.replace(recipe, epochs=epochs, warmup=min(recipe.warmup, epochs))
    student = dataclasses.replace(student, module=models.copy_of(student.module))
    return KD(teacher=student, student=student, terms=Terms(w_kd=0.0, w_ce=1.0), cache="off", recipe=recipe)


def _sentence(rows: list[dict[str, Any]], product: Model, data: Images) -> str:
    """Accuracies, and whether adapting helped: a loss is called one."""
    made = rows[-1]["accuracy"]
    if not made:
        return f"{product.name} was adapted; there were no labelled test images to measure it on."
    text = f"The adapted network reaches {made[0]:.1%} on the test images of {data.measured or data.name}"
    others = [line for line in rows[:-1] if line["accuracy"] and line["role"] in ("source", "control")]
    if others:
        text += ", against " + " and ".join(f"{line['accuracy'][0]:.1%} ({line['name']})" for line in others)
    oracle = [line for line in rows[:-1] if line["accuracy"] and line["role"] == "oracle"]
    if oracle:
        text += f"; with the labels of the new domain it would be {oracle[0]['accuracy'][0]:.1%}"
    if others and max(line["accuracy"][0] for line in others) > made[0]:
        best = max(others, key=lambda line: line["accuracy"][0])
        text += f". Adapting did harm here: {best['name']} is better"
    return text + "."
