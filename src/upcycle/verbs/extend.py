"""``upcycle extend``: a network that learns one task after another, beside fine-tuning and joint training."""

from __future__ import annotations

import base64
import dataclasses
import io
import re
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from upcycle import zoo
from upcycle.continual import Finetune, Joint
from upcycle.continual.protocol.past import Past
from upcycle.continual.protocol.scores import Scores
from upcycle.core import models
from upcycle.core.errors import UserError, require
from upcycle.core.evaluate import evaluate
from upcycle.core.heads import grow_classifier
from upcycle.core.method import Method
from upcycle.core.models import Model
from upcycle.core.recipe import Recipe
from upcycle.core.run import seed_everything
from upcycle.data import Images, describe
from upcycle.data.pool_files import parent_node
from upcycle.data.streams import Stream, check_stream, scenario_of
from upcycle.data.streams import stream as make_stream
from upcycle.distillation.gallery import strip
from upcycle.measure.cost import bytes_, count
from upcycle.verbs.making import (
    Result,
    RunSetting,
    Say,
    augmented,
    command_line,
    estimate,
    figures_of,
    leave,
    row,
    run_in,
    tell,
)
from upcycle.verbs.work import Reference, Work

FIGURES = {
    "task": "task-incremental accuracy",
    "class": "class-incremental accuracy",
    "domain": "domain-incremental accuracy",
    "general": "general accuracy",
}
"""What the average accuracy over all tasks after the last one is called, by scenario."""
MEMORY = "memory"  # the folder beside model/ with what the method keeps
ROWS, COLUMNS = 20, 10  # of the picture of the memory


@dataclass(kw_only=True)
class Setting(RunSetting):
    """The stream, devices, and where it goes.

    Args:
        stream: splits:DATA/TASKS, the classes of a data set, equally many at a time (splits:cifar10/5), first two and
            then one at a time (splits:digits/2+1), or as listed (splits:digits/5,3,2); permuted:DATA/TASKS or
            rotated:DATA/TASKS, all classes, seen differently; parts:DATA/TASKS, a part of the images at a time;
            drifting:DATA, without tasks; or folders:PATH, with a folder TASK/CLASS/IMAGE for each task.
        scenario: task, if the task of an image is known when it is classified; class, if it is not; domain, for the
            same classes all along; general, without tasks. If not given, what the stream's kind has by default.
        shuffle: the seed of another order of classes (splits) or of tasks (folders).
        few: only so many training images of each class in each task.
        weights: that MODEL starts from: pretrained, fresh, or a safetensors file. If not given, trained ones where it
            has any. A network that was extended before goes on from what it is.
        size: resize images to this side, in pixels; if not given, to what a trained MODEL takes.
        augment: crop, flip, color, or none, for training; auto takes crop and flip for colour images.
        control: also fine-tune the same network without a method, and train it on all tasks at once: the lower and the
            upper bound.
    """

    stream: str | None = "splits:digits/5"
    scenario: str | None = None
    shuffle: int | None = None
    few: int | None = None
    weights: str | None = None
    augment: tuple[Literal["auto", "none", "crop", "flip", "color"], ...] = ("auto",)
    control: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        scenario_of(self.scenario)
        require(self.few is None or self.few >= 2, f"few takes at least 2 images a class, not {self.few}.")
        if self.weights not in (None, "pretrained", "fresh"):
            require(Path(str(self.weights)).is_file(), f"weights must be pretrained, fresh or a file, and there is no "
                    f"file {self.weights}.")  # fmt: skip


def extend(
    model: Reference,
    *,
    stream: str | Stream = "splits:digits/5",
    method: str | type[Method] = "derpp",
    say: Say = print,
    **options: Any,
) -> Result:
    """A network that learns the tasks of a stream one after another, and, beside it, what bounds it from both sides.

    The run directory holds also ``memory/``, from which the network can be extended again: give that directory as
    ``model``, and a stream of further classes.

    Args:
        model: reference, module or :class:`~upcycle.core.models.Model`; or the directory of an earlier run.
        stream: see :class:`Setting`; or a :class:`~upcycle.data.streams.Stream` of one's own.
        method: a name of ``upcycle methods``, ``package.module:Class``, or a class.
        say: where progress lines go.
        options: fields of :class:`Setting` and of the method.

    Raises:
        UserError: before any work where the request cannot work.
    """
    started = time.time()
    job = Work("extend", method, {"model": model}, stream, say, options, kind=Setting, called="stream")
    setting: Any = job.setting
    if setting.out is None:
        named = re.sub(r"[^\w.+,]+", "-", stream) if isinstance(stream, str) else "stream"
        job.out = Path("runs") / f"extend-{job.cls.card.name}-{named}"
    job.check({role: nn.Identity() for role in job.cls.roles}, look=check_stream)
    past = None if setting.weights == "fresh" else _past(model)
    require(past is None or "past" in job.cls.given, f"{job.cls.card.name} cannot go on from an earlier stream.")
    student, data, origin = _start(job, model, past)
    job.say(f"stream   {data.protocol}\ndata     {describe(data.base)}")
    job.say(f"network  {student.name}: {_beginning(origin, past)}")
    made = job.cls(student=student, **({"past": past} if "past" in job.cls.given else {}), **job.own)
    made.require(data)
    bounds = _bounds(made, student) if setting.control else {}
    if setting.dry_run:
        return _estimated(job, [made, *bounds.values()], student, data)
    return _do(job, made, bounds, data, origin, started)


# -- what it starts from ----------------------------------------------------------------------------------------


def _past(reference: Any) -> Past | None:
    """What an earlier run left beside its model, whether its directory or its ``model`` is named."""
    if not isinstance(reference, str | Path):
        return None
    place = Path(reference)
    return next((Past.load(p / MEMORY) for p in (place, place.parent) if (p / MEMORY).is_dir()
                 and (p / "model").is_dir() and place in (p, p / "model")), None)  # fmt: skip


def _start(job: Work, reference: Any, past: Past | None) -> tuple[Model, Stream, Model | None]:
    """The network with an output for each class, its stream, and what it was before; ``None`` if it is fresh."""
    setting: Any = job.setting
    seed_everything(setting.seed, "student")
    if setting.weights == "fresh" and isinstance(reference, nn.Module | Model):
        raise UserError("A network that is given as an object comes as it is; leave out weights='fresh'.")
    origin: Model | None = None
    if setting.weights == "fresh" or (setting.weights is None and _is_untrained(reference)):
        data = _stream(job, None)
        k = None if isinstance(reference, nn.Module) else len(data.classes)
        net = models.resolve(reference, pretrained=False, num_classes=k, input_shape=data.shape, trust=setting.trust)
        # Of all tasks, as everybody has it, though a stream would show only its first.
        mean, std = data.base.statistics
        net = dataclasses.replace(net, mean=mean, std=std, lineage=None, licence="unknown")
        if len(net.classes) == len(data.classes):
            net = dataclasses.replace(net, classes=data.classes)
    else:
        weights = None if setting.weights == "pretrained" else setting.weights
        origin = net = models.resolve(reference, weights=weights, trust=setting.trust)
        data = _stream(job, net)
    if past is not None:
        require(past.classes == net.classes, f"{reference} was learnt with the classes {', '.join(past.classes)}, and "
                f"its model has {', '.join(net.classes)}: they do not belong together.")  # fmt: skip
        data = data.after(past.classes)
    auto = ("none",) if setting.augment == ("auto",) and data.name.startswith("permuted:") else setting.augment
    return grow_classifier(net, data.classes), augmented(data, auto).normalised(net.mean, net.std), origin


def _is_untrained(reference: Any) -> bool:
    """Whether there are no trained weights to start from."""
    if isinstance(reference, str) and reference.startswith("zoo:"):
        return zoo.ENTRIES[reference.removeprefix("zoo:")].trained is None
    return models.is_bare(str(reference) if isinstance(reference, Path) else reference)


def _stream(job: Work, like: Model | None) -> Stream:
    """The stream, its images brought to what a trained network takes."""
    setting: Any = job.setting
    asked = {"scenario": scenario_of(setting.scenario), "shuffle": setting.shuffle, "few": setting.few}
    if isinstance(job.data_ref, Stream):
        given = [name for name, value in {**asked, "size": setting.size}.items() if value is not None]
        require(not given, f"A stream that is given as an object is as it is; leave out {', '.join(given)}.")
        data = job.data_ref
    else:
        c, h = (like.input_shape[0], like.input_shape[1]) if like else (None, None)
        data = make_stream(job.data_ref, size=setting.size or h, channels=c, **asked)
    there = set(data.base.test.labels.tolist())
    for t, columns in enumerate(data.tasks):
        found = bool(there & set(columns)) or bool((data.task(t).test.labels >= 0).any())
        require(found, f"Task {t} of {data.name} has no labelled test images, and what is left of "
                "a task is measured with them.")  # fmt: skip
    return data


def _beginning(origin: Model | None, past: Past | None) -> str:
    """Where the network stands, in words."""
    if past is not None:
        return (f"goes on after {len(past.tasks)} tasks that it learnt by {past.method}: "
                f"{', '.join(past.classes)}")  # fmt: skip
    return "fresh weights" if origin is None else "goes on from its trained weights (--weights fresh for random ones)"


def _bounds(made: Method, student: Model) -> dict[str, Any]:
    """Fine-tuning and joint training of the same network, as long as the method trains it."""
    recipe = getattr(made, "recipe", None)
    own: dict[str, Any] = {"recipe": recipe} if isinstance(recipe, Recipe) else {}
    return {cls.card.name: cls(student=student, **own) for cls in (Finetune, Joint) if not isinstance(made, cls)}


# -- the work ---------------------------------------------------------------------------------------------------


def _estimated(job: Work, arms: list[Any], student: Model, data: Stream) -> Result:
    """What ``--dry_run`` answers."""
    macs, sizes = count(student.module, student.input_shape).macs, [len(data.task(t).train) for t in range(len(data))]
    each = [[sum(sizes)] if isinstance(arm, Joint) else sizes for arm in arms]
    work = sum(arm.work(n, 0, macs) for arm, counts in zip(arms, each, strict=True) for n in counts)
    updates = sum(arms[0].steps(n) for n in each[0])
    job.say(estimate(work, job.setting, updates=updates, runs=len(arms)))
    return Result(directory=job.out, model=student, rows=[], sentence="", report=job.out / "report.html")


def _do(job: Work, made: Any, bounds: dict[str, Any], data: Stream, origin: Model | None, started: float) -> Result:
    """Run the method and what stands beside it, measure, and leave the run directory."""
    setting, config = job.setting, job.config()
    products: dict[str, Model] = {}
    scores: dict[str, Scores] = {}
    for name, arm in bounds.items():
        aside = run_in(job.out / "more" / f"{name}-{setting.seed}", setting, {"arm": name, **config})
        with aside.interruptible():
            products[name] = arm.product(arm.fit(aside, data).float(), data)
        scores[name] = aside.left["scores"]
        aside.close()
    run = run_in(job.out, setting, config)
    with run.interruptible():
        product = made.product(made.fit(run, data).float(), data)
    own, kept = run.left["scores"], run.left["kept"]
    together = dataclasses.replace(data.joint(), name=data.name)
    said = {"finetune": "fine-tuned", "joint": "trained jointly"}
    roles = {"finetune": "lower bound", "joint": "upper bound"}
    lines = [_row(f"{product.name}, {said[name]}", roles[name], products[name], scores[name], together, job)
             for name in bounds]  # fmt: skip
    lines.append(_row(f"{product.name} by {made.card.name}", "product", product, own, together, job))
    for shown in {key for line in lines for key in line["shown"]}:  # what nothing has is no column
        if not any(line["shown"][shown] for line in lines):
            for line in lines:
                del line["shown"][shown]
    figure = FIGURES[data.scenario]
    result = Result(directory=job.out, model=product, rows=lines, report=job.out / "report.html",
                    sentence=_sentence(made, own, scores, product))  # fmt: skip
    for note in together.notes:
        run.note(note)
    if data.before:
        run.note(f"{len(data.before)} classes were learnt before ({', '.join(data.classes[k] for k in data.before)}). "
                 "They compete in every answer, but this stream has no test images of them, so what is left of them is "
                 "not in the figures.")  # fmt: skip
    if picture := _memory(kept, data):
        run.picture("memory", picture)
    if run.rank == 0:
        kept.save(job.out / MEMORY)
        records = {name: found.record() for name, found in {**scores, made.card.name: own}.items()}
        command = command_line("extend", config, ("stream",), job._default_of, ("model",))
        family = [parent_node(origin, "initial weights")] if origin is not None else []
        leave(result, job.cls, family, together, run, config=config, command=command, seeds=[setting.seed],
              seconds=time.time() - started, figure=figure,
              more={"scores": records, "shows": "What is left of each task"})  # fmt: skip
        tell(result, run, job.say, figure)
        job.say(f"Further tasks: upcycle extend {job.out} --method {made.card.name} --stream STREAM")
    run.close()
    return result


def _row(name: str, role: str, model: Model, scores: Scores, data: Images, job: Work) -> dict[str, Any]:
    """A line of the comparison: the average accuracy over tasks; by class, and how sure it is, of all test images."""
    line = row(name, role, [], model)
    if scores.scenario != "task":  # there the answer depends on the task that is told
        line |= figures_of([evaluate(model.module, data.test, device=job.setting.device)])
    found = scores.summary()
    if len(scores.matrix[0]) == 1:  # nothing came after it
        found = {"average accuracy": found["average accuracy"]}
    told = scores.summary("task") if scores.scenario == "class" else {}
    shown = {
        "told the task": _percent(told.get("average accuracy")),
        "forgetting": _percent(found.get("forgetting")),
        "backward transfer": _percent(found.get("backward transfer"), "+"),
        "forward transfer": _percent(found.get("forward transfer"), "+"),
        "kept": bytes_(scores.held[-1]) if scores.held and scores.held[-1] else "",
        "passes": f"{scores.passes:g}",
    }
    return {**line, "accuracy": [found["average accuracy"]], "shown": shown, "protocol": scores.protocol}


def _percent(value: float | None, sign: str = "") -> str:
    return "" if value is None else f"{100 * value:{sign}.1f} %".replace("-", "−")


def _sentence(made: Any, own: Any, bounds: dict[str, Scores], product: Model) -> str:
    """What is left of all tasks, between what bounds it, under which protocol; a failure is called one."""
    found = own.summary()
    accuracy = found["average accuracy"]
    text = (f"After {len(own.matrix[0])} tasks {product.name} by {made.card.name} recognises {accuracy:.1%} of "
            f"the test images, the mean over tasks ({own.protocol})")  # fmt: skip
    beside = {name: scores.summary()["average accuracy"] for name, scores in bounds.items()}
    words = {"finetune": "plain fine-tuning", "joint": "training on all tasks at once"}
    if beside:
        text += "; " + " and ".join(f"{words[name]} {value:.1%}" for name, value in beside.items())
    if found.get("forgetting") and len(own.matrix) > 1:
        text += f". It has forgotten {100 * found['forgetting']:.1f} points of each earlier task on average"
    if "finetune" in beside and accuracy <= beside["finetune"]:
        text += ". That is no better than fine-tuning"
    return text + "."


def _memory(kept: Past, data: Stream) -> dict[str, Any]:
    """The picture of the images that the method keeps, by class; empty where it keeps none."""
    buffer = kept.state.get("buffer")
    if not isinstance(buffer, dict) or not len(buffer.get("labels", ())):
        return {}
    images, labels = buffer["images"], buffer["labels"]
    if images.dtype != torch.uint8:
        images = images.permute(0, 2, 3, 1).mul(255).round().clamp(0, 255).to(torch.uint8)
    present = labels.unique()
    shown = present[torch.linspace(0, len(present) - 1, min(ROWS, len(present))).round().long()].tolist()
    items = []
    for k in shown:
        mine = (labels == k).nonzero()[:, 0]
        file, first = io.BytesIO(), [*images[mine[:COLUMNS]], *[None] * (COLUMNS - len(mine[:COLUMNS]))]
        strip(first).save(file, "PNG", optimize=True)
        items.append({"png": base64.b64encode(file.getvalue()).decode(), "label": f"{data.classes[k]} ({len(mine)})",
                      "alt": f"{len(mine[:COLUMNS])} images of class {data.classes[k]} in the memory"})  # fmt: skip
    some = f" {len(shown)} of {len(present)} classes." if len(shown) < len(present) else ""
    return {"kind": "images", "layout": "rows", "title": "What is in the memory", "items": items,
            "caption": f"The {len(labels):,} images that are kept after the last task, and how many of each class; at "
                       f"most {COLUMNS} of them are shown.{some}"}  # fmt: skip
