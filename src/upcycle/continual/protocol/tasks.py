"""The tasks of a stream: one stage each, what is kept between them, and what is measured after each.

A method writes the loop of one task and says what it keeps beside the network; :func:`tasks` does the rest::

    def fit(self, run, data):
        net, buffer = start(self, data), self.replay.buffer(data.train, run.seed)
        for t, task in tasks(self, run, data, net, keep={"buffer": buffer}):
            student, optimizer = run.setup(net.module, self.recipe)
            for _ in run.epochs(self.recipe.epochs):
                student.train()
                for images, labels, index in run.batches(task.train, self.recipe.batch_size):
                    ...
                    buffer.add(run, task.train, index)
        return run.plain(net.module)
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Annotated, Any, ClassVar, Protocol, runtime_checkable

import torch
from msgspec import Meta
from torch import Tensor, nn

from upcycle.continual.protocol.past import Past
from upcycle.continual.protocol.scores import Scores
from upcycle.core import store
from upcycle.core.checks import problems_of
from upcycle.core.errors import UserError, one_line, require
from upcycle.core.evaluate import predict_logits
from upcycle.core.heads import grow_classifier
from upcycle.core.method import Card
from upcycle.core.models import Model
from upcycle.core.patterns import weights_of
from upcycle.core.read import Count
from upcycle.core.recipe import Recipe
from upcycle.core.run import Run
from upcycle.data.collection import Samples
from upcycle.data.images import Images
from upcycle.data.streams import Stream

Answers = Callable[[Any, int], Tensor]
"""The logits (n, k) of every sample of a split; told the task of the samples, which only some may look at."""


@runtime_checkable
class Learner(Protocol):
    """A method of continual learning, as far as its protocol looks at it."""

    card: ClassVar[Card]
    past: Past | None
    recipe: Recipe

    def model(self, role: str, data: Any) -> Model:
        """The network in ``role``."""
        ...


# -- before the first task --------------------------------------------------------------------------------------


def start(method: Learner, data: Stream) -> Model:
    """A copy of the method's network, with an output for each class of the stream; see :func:`grow_classifier`."""
    return grow_classifier(method.model("student", data), data.classes)


def problems(method: Learner, data: Stream, *, memory: int | None = None, option: str = "memory") -> list[str]:
    """The reasons why a network cannot learn a stream, in words; none if it can.

    Args:
        memory: images that the method stores; fewer than classes will not do.
        option: the name of the option that says so.
    """
    found = problems_of(method.model("student", data), data)
    if memory is not None and 0 < memory < len(data.classes):
        found.append(
            f"a memory of {memory} images cannot hold one of each of the {len(data.classes)} classes; raise --{option}"
        )
    if method.past is not None and method.past.method != method.card.name:
        found.append(
            f"the network was extended by {method.past.method}, and {method.card.name} cannot read what that keeps; "
            f"go on with --method {method.past.method}"
        )
    return found


def learnt(method: Learner) -> int:
    """Count the tasks that the network learnt before this stream."""
    return len(method.past.tasks) if method.past is not None else 0


def of_task(z: Tensor, y: Tensor, data: Stream, t: int) -> tuple[Tensor, Tensor]:
    """The outputs of task t alone and labels among them, where the task of a sample will be known; else all.

    Args:
        z: logits (b, k).
        y: columns (b,).
    """
    if data.scenario != "task":
        return z, y
    columns = data.tasks[t]
    first, last = columns[0], columns[-1]
    assert last - first + 1 == len(columns), "the classes of a task lie side by side"
    return z[:, first : last + 1], y - first


# -- one task after another -------------------------------------------------------------------------------------


def tasks(
    method: Learner,
    run: Run,
    data: Stream,
    net: Model,
    *,
    keep: Mapping[str, Any] | None = None,
    answers: Answers | None = None,
    held: Callable[[int], int] | None = None,
    allowed: str = "",
    passes: float | Callable[[], float] = 1.0,
) -> Iterator[tuple[int, Images]]:
    """Go through the tasks in their order; the body of the loop learns each, in a stage of its own.

    The state of the network and of what is kept is stored with each stage, so a run that was killed goes on within
    the task that it was killed in: tasks that were learnt are not yielded again. After the last one the run has
    ``left["scores"]``, see :class:`Scores`, and ``left["kept"]``, see :class:`Past`.

    Args:
        net: the network that :func:`start` made; its module is trained in place.
        keep: tensors (changed in place) and things with ``state_dict``, carried from task to task and saved with it.
        answers: the logits to measure with, in place of the network's own.
        held: counts the bytes beside the network after task t; those of ``keep`` if not given.
        allowed: the part of the protocol's line about memory and the like.
        passes: see :class:`Scores`; a function is asked after the last task.

    Yields:
        the number of the task, from 0, and its samples.
    """
    keep = dict(keep or {})
    module = net.module.to(run.device, run.dtype)
    _recall_past(method, keep)
    ask = answers or (lambda split, t: predict_logits(module, split, run.device))
    tests = [data.task(j).test for j in range(len(data))]  # once: a domain is made anew each time
    scores = Scores(protocol=", ".join(filter(None, (data.protocol, allowed))), scenario=data.scenario)
    same_stream(run, data)
    if data.ordered and method.recipe.epochs > 1:
        run.note(
            f"The stream was shown {method.recipe.epochs} times over; general continual learning sees each image once "
            "(--recipe.epochs 1)."
        )
    if data.scenario in ("task", "domain"):
        scores.initial = _row(data, -1, ask, tests)
    accuracies = Annotated[list[float | None], Meta(min_length=len(data), max_length=len(data))]
    like = {"keep": dict.fromkeys(keep, Any), "row": dict.fromkeys(_measured(data), accuracies), "held": Count}
    for t in range(len(data)):
        found = run.stored(f"task{t}", {**like, "network": weights_of(module)})
        if found is None:
            with run.open_stage(f"task{t}") as found:
                for name, thing in keep.items():
                    run.register(name, thing)
                yield t, data.task(t)
                row = _row(data, t, ask, tests)
                _log_means(run, row, t)
                found["network"] = module.state_dict()
                found["keep"] = {name: _state(thing) for name, thing in keep.items()}
                found["row"] = row
                found["held"] = sum(map(_bytes, keep.values())) if held is None else held(t)
        module.load_state_dict(found["network"])
        for name, thing in keep.items():
            restore(thing, found["keep"][name], name)
        for scenario, found_here in found["row"].items():
            scores.matrices.setdefault(scenario, []).append(found_here)
        scores.held.append(found["held"])
    if data.scenario == "class":
        scores.initial = {key: [None] * len(data) for key in scores.matrices}
    scores.updates = run.updates
    scores.passes = passes() if callable(passes) else passes
    _leave(method, run, data, scores, {name: _state(thing) for name, thing in keep.items()})
    leave_pictures(run, scores, [f"task {t}" for t in range(len(data))])


def leave_joint(method: Learner, run: Run, data: Stream, module: nn.Module) -> None:
    """Leave what :func:`tasks` leaves, for a network that learnt all tasks at once: one row."""
    tests = [data.task(j).test for j in range(len(data))]
    row = _row(data, len(data) - 1, lambda split, t: predict_logits(module, split, run.device), tests)
    scores = Scores(
        protocol=f"{data.protocol}, all tasks at once",
        scenario=data.scenario,
        updates=run.updates,
        matrices={key: [accuracies] for key, accuracies in row.items()},
        held=[0],
    )
    _leave(method, run, data, scores, {})


def _leave(method: Learner, run: Run, data: Stream, scores: Scores, state: dict[str, Any]) -> None:
    before = method.past
    kept = Past(
        method=method.card.name,
        classes=data.classes,
        tasks=(*(before.tasks if before else ()), *data.tasks),
        streams=[*(before.streams if before else []), data.record()],
        state=state,
    )
    run.leave("scores", scores)
    run.leave("kept", kept)


def same_stream(run: Run, data: Stream) -> None:
    """Stop where a resumed run finds another stream than it began with."""
    now = store.unpack(*store.pack(data.record()))
    began = run.stage("stream", lambda: now, dict[str, Any])
    if began != now:
        what = next(key for key in now if began.get(key) != now[key])
        raise UserError(
            f"This run began with a stream whose {what} is {began.get(what)!r}, and this one has {now[what]!r}; a "
            "resumed run keeps its stream. Use another --out for a new one."
        )


# -- what is measured -------------------------------------------------------------------------------------------


@torch.no_grad()
def _row(data: Stream, t: int, ask: Answers, tests: Sequence[Samples]) -> dict[str, list[float | None]]:
    """Accuracy on every task after task t, told the task of each image and, where the scenario has it, not told."""
    rows: dict[str, list[float | None]] = {key: [] for key in _measured(data)}
    for j, columns in enumerate(data.tasks):
        # Before a class was seen there is nothing to find it by, unless the task is told.
        if data.scenario == "class" and j > t:
            for row in rows.values():
                row.append(None)
            continue
        z = ask(tests[j], j)
        known = (*data.before, *data.seen(t))  # what earlier streams brought competes too
        among = {"task": columns, "domain": columns, "class": known, "general": known}
        for key, row in rows.items():
            row.append(accuracy_among(z, tests[j].labels, among[key]))
    return rows


def _measured(data: Stream) -> tuple[str, ...]:
    return ("class", "task") if data.scenario == "class" else (data.scenario,)


def _log_means(run: Run, rows: dict[str, list[float | None]], t: int) -> None:
    for scenario, accuracies in rows.items():
        if shown := [a for a in accuracies[: t + 1] if a is not None]:  # else no test image has a label
            run.log(**{f"{scenario}_accuracy_over_tasks": sum(shown) / len(shown)})


def accuracy_among(z: Tensor, labels: Tensor, columns: tuple[int, ...]) -> float | None:
    """The share of images whose largest logit among ``columns`` is at their label; ``None`` without images.

    Args:
        z: logits (n, k).
        labels: int64 (n,), columns; -1 where unknown.
    """
    known = labels >= 0
    if not bool(known.any()):
        return None
    among = torch.tensor(columns)
    best = among[z[known].cpu()[:, among].argmax(1)]
    return float((best == labels[known]).double().mean())


def leave_pictures(run: Run, scores: Scores, names: list[str]) -> None:
    """Leave the pictures that every stream has: the accuracy matrix and the curves of forgetting."""
    for key, rows in scores.matrices.items():
        if len(rows) < 2:
            continue
        told = " (told the task of each image)" if key == "task" else ""
        matrix = {
            "kind": "heatmap",
            "title": f"Accuracy after each task{told}",
            "caption": f"Rows: after learning a task; columns: test images of a task. {scores.protocol}.",
            "values": [[None if a is None else round(a, 4) for a in row] for row in rows],
            "digits": 2,
            "rows": [f"after {name}" for name in names],
            "columns": names,
        }
        curves = {
            "kind": "lines",
            "title": f"Each task as others follow{told}",
            "caption": f"Accuracy on the test images of each task from when it was learnt. {scores.protocol}.",
            "x": "tasks learnt",
            "y": "accuracy",
            "unit": "percent",
            "series": [
                {"name": name, "x": list(range(j + 1, len(rows) + 1)), "y": [row[j] for row in rows[j:]]}
                for j, name in enumerate(names)
            ],
        }
        run.picture(f"accuracy_{key}", matrix)
        run.picture(f"forgetting_{key}", curves)


# -- what is kept -----------------------------------------------------------------------------------------------


def _state(thing: Any) -> Any:
    return thing.detach().clone() if isinstance(thing, Tensor) else thing.state_dict()


def _bytes(thing: Any) -> int:
    if hasattr(thing, "nbytes"):
        return int(thing.nbytes)
    _, tensors = store.pack(thing.state_dict())
    return sum(t.nbytes for t in tensors.values())


def _recall_past(method: Learner, keep: dict[str, Any]) -> None:
    """Put what an earlier stream kept into ``keep``."""
    if method.past is None:
        return
    there = method.past.state
    require(
        set(there) == set(keep),
        f"What the earlier run kept belongs to another network or to other options of {method.card.name}: it has "
        f"{', '.join(there) or 'nothing'}, and {', '.join(keep) or 'nothing'} is needed.",
    )
    for name, thing in keep.items():
        restore(thing, there[name], name)


def restore(thing: Any, state: Any, name: str) -> None:
    """Put a saved state into what is kept: a tensor, in place, or a thing with ``load_state_dict``.

    A tensor may be larger than its state, where a classifier has grown: zeros follow.

    Raises:
        UserError: a state of another shape.
    """
    if not isinstance(thing, Tensor):
        try:
            thing.load_state_dict(state)
        except (LookupError, TypeError, ValueError, AttributeError, RuntimeError) as error:
            raise UserError(f"What was kept as {name} does not fit this network ({one_line(error)}).") from error
        return
    require(isinstance(state, Tensor), f"What was kept as {name} must be a tensor, and is none.")
    require(
        state.dim() == thing.dim() and all(a <= b for a, b in zip(state.shape, thing.shape, strict=True)),
        f"What was kept as {name} has shape {tuple(state.shape)} and this network needs {tuple(thing.shape)}; it "
        "belongs to another network.",
    )
    thing.zero_()  # outputs that are new since then have nothing kept
    thing[tuple(slice(n) for n in state.shape)].copy_(state)
