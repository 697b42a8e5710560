"""What methods of continual learning share: one stage a task, what is kept between tasks, what is measured after each.

A method writes the loop of one task and says what it keeps beside the network; :func:`follow` does the rest::

    def fit(self, run, data):
        net, buffer = start(self, data), Buffer(self.memory, data.train, seed=run.seed)

        def learn(t, task):
            student, optimizer = run.setup(net.module, self.recipe)
            for _ in run.epochs(self.recipe.epochs):
                student.train()
                for images, labels, index in run.batches(task.train, self.recipe.batch_size, shuffle=not data.ordered,
                                                         save_within=True):
                    ...
                    buffer.add(run, task.train, index)

        return follow(self, run, data, net, learn, keep={"buffer": buffer})
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from upcycle.continual.scores import Scores
from upcycle.core import store
from upcycle.core.checks import problems_of
from upcycle.core.errors import UserError, require
from upcycle.core.evaluate import predict_logits
from upcycle.core.heads import grow_classifier
from upcycle.core.models import Model
from upcycle.core.run import Run
from upcycle.data.images import Images, ImageSplit
from upcycle.data.streams import Stream

Answers = Callable[[ImageSplit, int], Tensor]
"""The logits (n, k) of every image of a split; told the task of the images, which only some may look at."""


@dataclass(kw_only=True)
class Past:
    """What an extended network must bring to be extended again: tensors and JSON data.

    Args:
        method: the name of the method that learnt it.
        classes: the names of the network's outputs.
        tasks: the columns of each task that was learnt.
        streams: what :meth:`Stream.record` says of each stream so far.
        state: what the method keeps, by name.
    """

    method: str
    classes: tuple[str, ...]
    tasks: tuple[tuple[int, ...], ...]
    streams: list[dict[str, Any]] = field(default_factory=list)
    state: dict[str, Any] = field(default_factory=dict)

    def save(self, directory: Path) -> None:
        """Write ``state.safetensors`` and ``state.json`` into ``directory``, whole or not at all."""
        record = store.save_state(directory / "state.safetensors", self.state)
        store.write_json(directory / "state.json", store.sealed(
            {"format": 1, "method": self.method, "classes": list(self.classes), "tasks": [list(c) for c in self.tasks],
             "streams": self.streams, "state": record}))  # fmt: skip

    @classmethod
    def load(cls, directory: Path) -> Past:
        """Read it again.

        Raises:
            UserError: nothing there, or damaged.
        """
        value = store.unsealed(directory / "state.json")
        return cls(method=value["method"], classes=tuple(value["classes"]), streams=value["streams"],
                   tasks=tuple(tuple(c) for c in value["tasks"]),
                   state=store.load_state(directory / "state.safetensors", value["state"]))  # fmt: skip


def start(method: Any, data: Stream) -> Model:
    """A copy of the method's network, with an output for each class of the stream; see :func:`grow_classifier`."""
    return grow_classifier(method.model("student", data), data.classes)


def problems(method: Any, data: Stream, *, memory: int | None = None) -> list[str]:
    """What keeps a network from learning a stream, in words.

    Args:
        memory: images that the method stores; fewer than classes will not do.
    """
    found = problems_of(method.model("student", data), data.shape[0])
    if memory is not None and 0 < memory < len(data.classes):
        found.append(f"a memory of {memory} images cannot hold one of each of the {len(data.classes)} classes; raise "
                     "--memory")  # fmt: skip
    past: Past | None = method.past
    if past is not None and past.method != method.card.name:
        found.append(f"the network was extended by {past.method}, and {method.card.name} cannot read what that keeps; "
                     f"go on with --method {past.method}")  # fmt: skip
    return found


def of_task(z: Tensor, y: Tensor, data: Stream, t: int) -> tuple[Tensor, Tensor]:
    """The outputs of task t alone and labels among them, where the task of an image will be known; else all.

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


def learnt(method: Any) -> int:
    """How many tasks the network learnt before this stream."""
    return len(method.past.tasks) if method.past is not None else 0


def follow(
    method: Any,
    run: Run,
    data: Stream,
    net: Model,
    learn: Callable[[int, Images], None],
    *,
    keep: Mapping[str, Any] | None = None,
    answers: Answers | None = None,
    held: Callable[[], int] | None = None,
    allowed: str = "",
    passes: float = 1.0,
) -> nn.Module:
    """Learn the tasks in their order, each in a stage of its own, and measure after each.

    The state of the network and of what is kept is stored with each stage, so a run that was killed goes on within
    the task that it was killed in. Sets ``method.scores`` and ``method.kept``.

    Args:
        method: has the fields ``past``, ``scores`` and ``kept``.
        net: what :func:`start` made; its module is trained in place.
        learn: the loop of task t: calls ``run.setup`` and ``run.epochs``.
        keep: tensors (changed in place) and things with ``state_dict``, carried from task to task and saved with it.
        answers: in place of the network's own logits.
        held: bytes beside the network; what ``keep`` takes if not given.
        allowed: what the protocol's line says of memory and the like.
        passes: see :class:`Scores`.

    Returns:
        the network as an ordinary module.
    """
    keep = dict(keep or {})
    module = net.module.to(run.device, torch.float64 if run.precision == "64-true" else torch.float32)
    if method.past is not None:
        require(set(method.past.state) == set(keep), "What the earlier run kept belongs to another network or to other "
                f"options of {method.card.name}: it has {', '.join(method.past.state) or 'nothing'}, and "
                f"{', '.join(keep) or 'nothing'} is needed.")  # fmt: skip
        for name, thing in keep.items():
            restore(thing, method.past.state[name], name)
    ask = answers or (lambda split, t: predict_logits(module, split, run.device))
    tests = [data.task(j).test for j in range(len(data))]  # once: a domain is made anew each time
    scores = Scores(protocol=", ".join(filter(None, (data.protocol, allowed))), scenario=data.scenario, passes=passes)
    same_stream(run, data)
    if data.ordered and method.recipe.epochs > 1:
        run.note(f"The stream was shown {method.recipe.epochs} times over; general continual learning sees each image "
                 "once (--recipe.epochs 1).")  # fmt: skip
    if data.scenario in ("task", "domain"):
        scores.initial = _row(data, -1, ask, tests)
    for t in range(len(data)):

        def stage(t: int = t) -> dict[str, Any]:
            for name, thing in keep.items():
                run.register(name, thing)
            learn(t, data.task(t))
            row = _row(data, t, ask, tests)
            for scenario, accuracies in row.items():
                if not (shown := [a for a in accuracies[: t + 1] if a is not None]):
                    continue  # no test image has a label
                run.log(**{f"{scenario}_accuracy_over_tasks": sum(shown) / len(shown)})
            return {"network": module.state_dict(), "keep": {name: _state(thing) for name, thing in keep.items()},
                    "row": row, "held": sum(map(_bytes, keep.values())) if held is None else held()}  # fmt: skip

        found = run.stage(f"task{t}", stage)
        module.load_state_dict(found["network"])
        for name, thing in keep.items():
            restore(thing, found["keep"][name], name)
        for scenario, accuracies in found["row"].items():
            scores.matrices.setdefault(scenario, []).append(accuracies)
        scores.held.append(found["held"])
    if data.scenario == "class":
        scores.initial = {key: [None] * len(data) for key in scores.matrices}
    scores.updates = run.updates
    method.scores = scores
    method.kept = _past(method, data, {name: _state(thing) for name, thing in keep.items()})
    run.leave("scores", scores)
    run.leave("kept", method.kept)
    leave_scores(run, scores, [f"task {t}" for t in range(len(data))])
    return run.plain(module)


def leave_joint(method: Any, run: Run, data: Stream, module: nn.Module) -> None:
    """What :func:`follow` leaves, for a network that learnt all tasks at once: one row."""
    tests = [data.task(j).test for j in range(len(data))]
    row = _row(data, len(data) - 1, lambda split, t: predict_logits(module, split, run.device), tests)
    scores = Scores(protocol=f"{data.protocol}, all tasks at once", scenario=data.scenario, updates=run.updates,
                    matrices={key: [accuracies] for key, accuracies in row.items()}, held=[0])  # fmt: skip
    method.scores = scores
    method.kept = _past(method, data, {})
    run.leave("scores", scores)
    run.leave("kept", method.kept)


def _past(method: Any, data: Stream, state: dict[str, Any]) -> Past:
    before: Past | None = method.past
    return Past(method=method.card.name, classes=data.classes, state=state,
                tasks=(*(before.tasks if before else ()), *data.tasks),
                streams=[*(before.streams if before else []), data.record()])  # fmt: skip


def same_stream(run: Run, data: Stream) -> None:
    """Stop where a resumed run finds another stream than it began with."""
    now = store.unpack(*store.pack(data.record()))
    began = run.stage("stream", lambda: now)
    if began != now:
        what = next(key for key in now if began.get(key) != now[key])
        raise UserError(f"This run began with a stream whose {what} is {began.get(what)!r}, and this one has "
                        f"{now[what]!r}; a resumed run keeps its stream. Use another --out for a new one.")  # fmt: skip


@torch.no_grad()
def _row(data: Stream, t: int, ask: Answers, tests: list[ImageSplit]) -> dict[str, list[float | None]]:
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


def _state(thing: Any) -> Any:
    return thing.detach().clone() if isinstance(thing, Tensor) else thing.state_dict()


def _bytes(thing: Any) -> int:
    if hasattr(thing, "nbytes"):
        return int(thing.nbytes)
    _, tensors = store.pack(thing.state_dict())
    return sum(t.nbytes for t in tensors.values())


def restore(thing: Any, state: Any, name: str) -> None:
    """Put a saved state into what is kept: a tensor, in place, or a thing with ``load_state_dict``.

    A tensor may be larger than its state, where a classifier has grown: zeros follow.

    Raises:
        UserError: a state of another shape.
    """
    if not isinstance(thing, Tensor):
        thing.load_state_dict(state)
        return
    require(state.dim() == thing.dim() and all(a <= b for a, b in zip(state.shape, thing.shape, strict=True)),
            f"What was kept as {name} has shape {tuple(state.shape)} and this network needs {tuple(thing.shape)}; it "
            "belongs to another network.")  # fmt: skip
    thing.zero_()  # outputs that are new since then have nothing kept
    thing[tuple(slice(n) for n in state.shape)].copy_(state)


def leave_scores(run: Run, scores: Scores, names: list[str]) -> None:
    """The pictures that every stream has: the accuracy matrix and the curves of forgetting."""
    for key, rows in scores.matrices.items():
        if len(rows) < 2:
            continue
        told = " (told the task of each image)" if key == "task" else ""
        run.picture(f"accuracy_{key}", {
            "kind": "heatmap", "title": f"Accuracy after each task{told}",
            "caption": f"Rows: after learning a task; columns: test images of a task. {scores.protocol}.",
            "values": [[None if a is None else round(a, 4) for a in row] for row in rows],
            "digits": 2, "rows": [f"after {name}" for name in names], "columns": names})  # fmt: skip
        run.picture(f"forgetting_{key}", {
            "kind": "lines", "title": f"Each task as others follow{told}",
            "caption": "Accuracy on the test images of each task from when it was learnt. " f"{scores.protocol}.",
            "x": "tasks learnt", "y": "accuracy", "unit": "percent",
            "series": [{"name": name, "x": list(range(j + 1, len(rows) + 1)),
                        "y": [row[j] for row in rows[j:]]} for j, name in enumerate(names)]})  # fmt: skip
