"""``upcycle extend``: a network that learns one task after another, beside fine-tuning and joint training."""

from __future__ import annotations

import base64
import dataclasses
import io
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from upcycle.continual.protocol.past import Past
from upcycle.continual.protocol.scores import Scores
from upcycle.core import models, references
from upcycle.core.errors import UserError, require
from upcycle.core.evaluate import evaluate
from upcycle.core.fetching import dry
from upcycle.core.heads import grow_classifier
from upcycle.core.method import Method
from upcycle.core.models import Model
from upcycle.core.once import once
from upcycle.core.seeds import seed_everything
from upcycle.core.world import first_process
from upcycle.data import Images, describe
from upcycle.data.pool_files import parent_node
from upcycle.data.stream_kinds import check_stream, is_of_graphs
from upcycle.data.stream_kinds import stream as make_stream
from upcycle.data.streams import Stream, scenario_of
from upcycle.distillation.data_free.gallery import strip
from upcycle.measure.cost import count
from upcycle.measure.units import bytes_
from upcycle.verbs import DEFAULT_METHOD
from upcycle.verbs.arms import Fitted, Result
from upcycle.verbs.figures import TOLD, figures_of, hundredths, like_of, share, spread
from upcycle.verbs.loading import augmented
from upcycle.verbs.naming import Reference, Weights, naming_of
from upcycle.verbs.networks import any_network, is_untrained
from upcycle.verbs.options import RunSetting, Say, tell
from upcycle.verbs.session import Session

FIGURES = {
    "task": TOLD,
    "class": "class-incremental accuracy",
    "domain": "domain-incremental accuracy",
    "general": "general accuracy",
}
"""What the average accuracy over all tasks after the last one is called, by scenario."""
FEWEST = 20
"""Updates a task, below which a network has hardly begun to learn it and may have left what it knew."""
MEMORY = "memory"  # the folder beside model/ with what the method keeps
ROWS, COLUMNS = 20, 10  # of the picture of the memory


@dataclass(kw_only=True)
class Setting(Weights, RunSetting):
    """The stream, devices, and where it goes.

    Args:
        stream: splits:DATA/TASKS, the classes of a data set, equally many at a time (splits:cifar10/5), first two and
            then one at a time (splits:digits/2+1), or as listed (splits:digits/5,3,2); permuted:DATA/TASKS or
            rotated:DATA/TASKS, all classes, seen differently; parts:DATA/TASKS, a part of the images at a time;
            drifting:DATA, without tasks; folders:PATH, with a folder TASK/CLASS/IMAGE, or TASK/IMAGE of one class, for
            each task; or tasks:PATH, with a folder of graphs for each. Nodes and graphs can be DATA of splits and of
            parts.
        scenario: task, if the task of an image is known when it is classified; class, if it is not; domain, for the
            same classes all along; general, without tasks. If not given, what the stream's kind has by default.
        shuffle: the seed of another order of classes (splits) or of tasks (folders).
        few: only so many training samples of each class in each task.
        weights: the weights that MODEL starts from: pretrained, fresh, or a safetensors file. If not given, trained
            ones where it has any. A network that was extended before goes on from what it is.
        classes: the names of the outputs that MODEL has already, in their order, with commas between, or a text file
            with a name in each line; if not given, those of its reference.
        control: also fine-tune the same network without a method, and train it on all tasks at once: the lower and the
            upper bound.
    """

    stream: str | None = "splits:digits/5"
    scenario: str | None = None
    shuffle: int | None = None
    few: int | None = None
    classes: tuple[str, ...] | None = None
    control: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        scenario_of(self.scenario)
        require(self.few is None or self.few >= 2, f"few takes at least 2 samples a class, not {self.few}.")


@dry
def extend(
    model: Reference,
    *,
    stream: str | Stream = "splits:digits/5",
    method: str | type[Method] = DEFAULT_METHOD["extend"],
    say: Say = tell,
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
    session = Session(
        "extend", method, {"model": model}, stream, say, options, kind=Setting, called="stream", positional=("model",)
    )
    setting, cls = session.setting, session.cls
    session.check(look=check_stream)
    goes_on = "past" in cls.given
    past = None if setting.weights == "fresh" else _past(model)
    require(past is None or goes_on, f"{cls.card.name} cannot go on from an earlier stream.")
    student, data, origin = _start(session, model, past, setting.seed)
    session.say(f"stream   {data.protocol}\ndata     {describe(data.base)}")
    session.say(f"network  {student.name}: {_beginning(origin, past)}")

    def make(seed: int) -> tuple[Method, Stream]:
        net = student if seed == setting.seed else _start(session, model, past, seed)[0]
        return session.method(data, student=models.own_copy(net), **({"past": past} if goes_on else {})), data

    product, beside = session.arms(make)
    if setting.dry_run:
        cost = count(student.module, like_of(student, data.base)).macs
        return session.estimate([product, *beside], student, teacher=0, student=cost)
    session.figure = FIGURES[data.scenario]
    made, others = session.run(product, beside, lambda model, data: [])
    if first_process():
        made.left[0]["kept"].save(session.out / MEMORY)
    together = dataclasses.replace(data.joint(), name=data.name)
    rows = [_row(arm, f"{made.model.name}, {arm.arm.words}", together, session) for arm in others]
    rows.append(_row(made, f"{made.model.name} by {cls.card.name}", together, session))
    for shown in {key for line in rows for key in line["shown"]}:  # what nothing has is no column
        if not any(line["shown"][shown] for line in rows):
            for line in rows:
                del line["shown"][shown]
    notes = _short(made.left[0]["scores"], len(data)) if "recipe" in cls.options() else []
    if data.before:
        notes.append(
            f"{len(data.before)} classes were learnt before ({', '.join(data.classes[k] for k in data.before)}). "
            f"They compete in every answer, but this stream has no test {data.base.noun} of them, so what is left of "
            "them is not in the figures."
        )
    picture = _memory(made.left[0]["kept"], data)
    scores = {
        (cls.card.name if arm is made else arm.arm.name): arm.left[0]["scores"].record() for arm in (*others, made)
    }
    result = session.leave(
        made,
        rows,
        _sentence(made, rows),
        data=together,
        notes=notes,
        parents=[parent_node(origin, "initial weights")] if origin is not None else [],
        pictures={"memory": picture} if picture else {},
        more={"scores": scores, "shows": "What is left of each task"},
    )
    session.say(f"Further tasks: upcycle extend {session.out} --method {cls.card.name} --stream STREAM")
    return result


# -- what it starts from ----------------------------------------------------------------------------------------


def _past(reference: Any) -> Past | None:
    """What an earlier run left beside its model, whether its directory or its ``model`` is named."""
    if not isinstance(reference, str | Path):
        return None
    place = Path(reference)
    return next(
        (
            Past.load(p / MEMORY)
            for p in (place, place.parent)
            if (p / MEMORY).is_dir() and (p / "model").is_dir() and place in (p, p / "model")
        ),
        None,
    )


def _start(session: Session, reference: Any, past: Past | None, seed: int) -> tuple[Model, Stream, Model | None]:
    """The network with an output for each class, its stream, and what it was before; ``None`` if it is fresh."""
    setting, naming = session.setting, naming_of(session.setting)
    seed_everything(seed, "student")
    if setting.weights == "fresh" and isinstance(reference, nn.Module | Model):
        raise UserError("A network that is given as an object comes as it is; leave out weights='fresh'.")
    origin: Model | None = None
    if setting.weights == "fresh" or (setting.weights is None and is_untrained(reference)):
        data = _stream(session, None)
        k = None if isinstance(reference, nn.Module) else len(data.classes)
        net = references.resolve(
            reference, pretrained=False, num_classes=k, trust=naming.trust, **_asked(data, naming.mean, naming.std)
        )
        net = dataclasses.replace(net, lineage=None, licence="unknown")
        if len(net.classes) == len(data.classes):
            net = dataclasses.replace(net, classes=data.classes)
    else:
        bare = _stream(session, None) if references.is_bare(reference) else None
        origin = net = any_network(reference, naming, bare.base if bare is not None else None, other_task=True)
        data = bare or _stream(session, net)
    if past is not None:
        require(
            past.classes == net.classes,
            f"{reference} was learnt with the classes {', '.join(past.classes)}, and "
            f"its model has {', '.join(net.classes)}: they do not belong together.",
        )
        data = data.after(past.classes)
    require(
        len(data.classes) >= 2,
        f"{data.name} has 1 class, and nothing was learnt before; a classifier needs at least 2.",
    )
    if not net.takes.kind == data.takes.kind == "images":
        problems = net.takes.problems(data.takes)
        require(not problems, f"{net.name} does not fit {data.name}: {'; '.join(problems)}.")
    auto = ("none",) if setting.augment == ("auto",) and data.name.startswith("permuted:") else setting.augment
    return grow_classifier(net, data.classes), augmented(data, auto).seen_by(net), origin


def _asked(data: Stream, mean: tuple[float, ...] | None, std: tuple[float, ...] | None) -> dict[str, Any]:
    """Say what a fresh network shall take."""
    if not isinstance(data.base, Images):
        return {"takes": data.takes}
    base = data.base  # of all tasks, as everybody has it, though a stream would show only its first
    usual = once(lambda: base.statistics)
    return {"input_shape": data.shape, "mean": mean or usual[0], "std": std or usual[1]}


def _stream(session: Session, like: Model | None) -> Stream:
    """The stream; images are brought to what a trained network takes."""
    setting = session.setting
    asked: dict[str, Any] = {"scenario": scenario_of(setting.scenario), "shuffle": setting.shuffle, "few": setting.few}
    asked["long_tail"] = setting.long_tail
    if isinstance(session.data_ref, Stream):
        given = [name for name, value in {**asked, "size": setting.size}.items() if value is not None]
        require(not given, f"A stream that is given as an object is as it is; leave out {', '.join(given)}.")
        data = session.data_ref
    else:
        shape = like.input_shape if like and not is_of_graphs(session.data_ref) else ()
        c, *sides = shape or (setting.channels,)
        size = setting.sides or ((sides[0], sides[1]) if sides else None)
        reading = setting.reading(like.reading if like else None)
        asked |= {"reading": reading, "columns": setting.columns, **setting.kept}
        data = make_stream(session.data_ref, size=size, channels=c, **asked)
    there = set(data.base.test.labels.tolist())
    for t, columns in enumerate(data.tasks):
        found = bool(there & set(columns)) or data.task(t).test.labelled
        require(
            found,
            f"Task {t} of {data.name} has no labelled test {data.base.noun}, and what is left of a task is "
            "measured with them.",
        )
    return data


def _beginning(origin: Model | None, past: Past | None) -> str:
    """Where the network stands, in words."""
    if past is not None:
        return f"goes on after {len(past.tasks)} tasks that it learnt by {past.method}: {', '.join(past.classes)}"
    return "fresh weights" if origin is None else "goes on from its trained weights (--weights fresh for random ones)"


# -- what came out ------------------------------------------------------------------------------------------------


def _row(arm: Fitted, name: str, data: Images, session: Session) -> dict[str, Any]:
    """A line of the comparison: the average accuracy over tasks; by class, and how sure it is, of all test images."""
    line, found = arm.row(name), [left["scores"] for left in arm.left]
    first: Scores = found[0]
    if first.scenario != "task":  # there the answer depends on the task that is told
        where, among = session.setting.device, session.processes
        line |= figures_of([evaluate(arm.model.module, data.test, device=where, among=among)])
    means = [scores.summary() for scores in found]
    if len(first.matrix[0]) == 1:  # nothing came after it
        means = [{"average accuracy": mean["average accuracy"]} for mean in means]
    told = [scores.summary("task") for scores in found] if first.scenario == "class" else []
    shown = {
        "told the task": _percent(told, "average accuracy"),
        "forgetting": _percent(means, "forgetting", unit="points"),
        "backward transfer": _percent(means, "backward transfer", "+", "points"),
        "forward transfer": _percent(means, "forward transfer", "+", "points"),
        "kept": bytes_(first.held[-1]) if first.held and first.held[-1] else "",
        "passes": f"{first.passes:g}",
    }
    accuracy = [mean["average accuracy"] for mean in means]
    return {**line, "accuracy": accuracy, "shown": shown, "protocol": first.protocol}


def _percent(found: Sequence[dict[str, float]], name: str, sign: str = "", unit: str = "%") -> str:
    """A figure of every seed in per cent, or in points where it is a difference; empty where there is none."""
    text = spread([value for one in found if (value := one.get(name)) is not None], sign)
    return text.replace("-", "−").replace("%", unit)


def _sentence(made: Fitted, rows: Sequence[dict[str, Any]]) -> str:
    """What is left of all tasks, between what bounds it, under which protocol; a failure is called one."""
    first, accuracy = made.left[0]["scores"], rows[-1]["accuracy"]
    text = f"After {len(first.matrix[0])} tasks {rows[-1]['name']} recognises {share(accuracy)} of the test "
    text += f"{made.data.base.noun}, the mean over tasks ({first.protocol})"
    bounds = {line["role"]: line["accuracy"] for line in rows[:-1]}
    words = {"lower bound": "plain fine-tuning", "upper bound": "training on all tasks at once"}
    if bounds:
        text += "; " + " and ".join(f"{words[role]} {share(values)}" for role, values in bounds.items())
    lost = [left["scores"].summary().get("forgetting") or 0.0 for left in made.left]
    if any(lost) and len(first.matrix) > 1:
        text += f". It has forgotten {hundredths(lost)} points of each earlier task on average"
    if "lower bound" in bounds and statistics.fmean(accuracy) <= statistics.fmean(bounds["lower bound"]):
        text += ". That is no better than fine-tuning"
    return text + "."


def _short(scores: Scores, tasks: int) -> list[str]:
    """A note where each task had few updates, as it has by default where there are few images."""
    updates = scores.updates / tasks
    if not 0 < updates < FEWEST:
        return []
    return [
        f"Each task was learnt in {updates:.3g} updates on average, which is few: smaller batches "
        "(--recipe.batch_size) and more epochs (--recipe.epochs) give more."
    ]


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
        items.append(
            {
                "png": base64.b64encode(file.getvalue()).decode(),
                "label": f"{data.classes[k]} ({len(mine)})",
                "alt": f"{len(mine[:COLUMNS])} images of class {data.classes[k]} in the memory",
            }
        )
    some = f" {len(shown)} of {len(present)} classes." if len(shown) < len(present) else ""
    return {
        "kind": "images",
        "layout": "rows",
        "title": "What is in the memory",
        "items": items,
        "caption": f"The {len(labels):,} images that are kept after the last task, and how many of each class; at "
        f"most {COLUMNS} of them are shown.{some}",
    }
