"""What a method is: a card that says what it needs, and a ``fit`` that reads like the paper."""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from upcycle.core import ingredients
from upcycle.core.advice import VERB_GOALS, Access, Data, Fit, Situation
from upcycle.core.errors import UserError

if TYPE_CHECKING:
    from torch import nn

    from upcycle.core.models import Model
    from upcycle.core.run import Run


ANY = ("any",)
"""Whatever inputs or tasks there are: for a method that only asks for what they all have."""
ROOMS = ("distillation", "assembly", "diagnosis", "adaptation", "continual")
"""Packages with methods, imported by name where one is looked for, so that core depends on nothing above it."""


@dataclass(frozen=True, kw_only=True)
class Needs:
    """What must be at hand before a method can start.

    Args:
        data: the least that will do: no data, a few unlabelled samples, many unlabelled, many labelled.
        teacher: the least access to the teacher: its predictions, its inner features, its weights.
        architectures: which pairs of networks, in words.
        inputs: the kinds of inputs that it works on (:data:`upcycle.core.takes.KINDS`), or :data:`ANY`.
        tasks: the tasks that it works on (:data:`upcycle.core.task.TASKS`), or :data:`ANY`.
    """

    data: Data
    teacher: Access
    architectures: str = "any pair with the same classes"
    inputs: tuple[str, ...] = ("images",)
    tasks: tuple[str, ...] = ("classification",)

    def admits(self, inputs: str, task: str) -> bool:
        """Whether it works on inputs of this kind, for this task."""
        return bool({inputs, *ANY} & {*self.inputs}) and bool({task, *ANY} & {*self.tasks})


@dataclass(frozen=True, kw_only=True)
class Card:
    """The facts about a method that the command line, the docs table and ``advise`` are made from.

    Args:
        name: how the command line calls it, lower case without punctuation.
        title: the paper's title.
        paper: authors, venue and arXiv id.
        verb: the verb that runs it.
        needs: what must be at hand.
        summary: one sentence, what a person gets.
        cost: one phrase, relative to training the student alone.
        published: the paper's headline result, with its source.
        rare: it is for classes with far fewer training samples than others; without such it has nothing to mend.
    """

    name: str
    title: str
    paper: str
    verb: str
    needs: Needs
    summary: str
    cost: str
    published: str
    rare: bool = False


@dataclass(frozen=True, kw_only=True)
class Control:
    """Another way to the same end, run beside a method so that one sees what the method adds.

    Args:
        method: on the same networks and with as much training.
        role: what it is in a comparison: control, lower bound or upper bound.
        words: what was done with the network, behind its name: ``resnet20, linear probe``.
    """

    method: Method
    role: str = "control"
    words: str


class Method:
    """Base of all methods: a dataclass of hyper-parameters with a :class:`Card` and a ``fit``.

    A subclass is a ``@dataclass(kw_only=True, eq=False, repr=False)``. Its fields named in ``roles`` are networks
    (:class:`~upcycle.core.models.Model` or ``nn.Module``, or a tuple of them), those in ``given`` other things at
    hand that no option can say, such as further data sets or a predictor; every other field is an option of the
    command line and a key of the configuration, by its name, type and default. Those of ``roles`` that are in
    ``trains`` have to take training steps. ``__post_init__`` checks values. What
    ``fit`` has to hand over beside its network it leaves with the run, see :meth:`~upcycle.core.run.Run.leave`.
    :meth:`serves` says when to take it.
    """

    card: ClassVar[Card]
    roles: ClassVar[tuple[str, ...]] = ("teacher", "student")
    trains: ClassVar[tuple[str, ...]] = ("student", "source")
    given: ClassVar[tuple[str, ...]] = ()
    runs_on: ClassVar[tuple[Data, ...]] = ()
    """The data on which it runs too, though its card asks for more: ``advise`` may name it there."""
    admits: ClassVar[frozenset[str]] = frozenset()
    """The ingredients of a recipe that its loop takes, of :data:`upcycle.core.ingredients.INGREDIENTS`."""
    refuses: ClassVar[Mapping[str, str]] = {}
    """Why it does not admit an ingredient, as a clause behind "because"; by the ingredient, or "any" for those left."""
    compares: ClassVar[bool] = True
    """Whether answers of the teacher are looked at, so that its classes have to be those of the data."""

    @classmethod
    def serves(cls, have: Situation) -> Fit | str | None:
        """Say where the method stands in a situation that has what it needs; asked by ``upcycle advise``.

        Returns:
            its place, reason and options; or, as a sentence, why it still cannot serve; or
            ``None``, if the goal is not one of its own. By default its card speaks, for the goals of its verb.
        """
        if have.goal not in VERB_GOALS.get(cls.card.verb, ()):
            return None
        return Fit(40, cls.card.summary, teacher=cls.card.needs.teacher != "none")

    def check(self, data: Any) -> list[str]:
        """Problems that would stop ``fit`` on these data, in words; an empty list when there is none.

        Called before any work starts, with the real networks and data. It may run one batch.
        """
        return []

    def fit(self, run: Run, data: Any) -> nn.Module:
        """Run the method and return an ordinary module: no hooks, no teacher, no training-only parts."""
        raise NotImplementedError

    def steps(self, n: int) -> int:
        """The number of updates that ``fit`` makes on ``n`` training samples, for estimates and fair baselines."""
        return int(self.recipe.steps(n))  # type: ignore[attr-defined]

    def work(self, n: int, teacher: int, student: int) -> float:
        """The multiply-adds of the whole ``fit`` on ``n`` training samples, for estimates of its time.

        Args:
            teacher, student: multiply-adds of one forward of one sample; 0 without a teacher.

        Returns:
            by default, of each sample of each update a forward of the teacher and three of the student: its own,
            and a backward worth two.
        """
        from upcycle.core.recipe import Recipe

        batch_size = getattr(self, "recipe", Recipe()).batch_size
        return float(self.steps(n) * (batch_size or n) * (teacher + 3 * student))

    def product(self, module: nn.Module, data: Any) -> Model:
        """What :meth:`fit` returned, with all that one must know to use, save and rebuild it.

        By default the student with new weights, and with the classes of the data where its own were others. A method
        that makes a new architecture says here what it is rebuilt from (``reference`` and ``options``), and its
        classes.
        """
        student = dataclasses.replace(self.model("student", data), module=module, reading=data.reading)
        if data.classes in ((), student.classes):
            return student
        options = student.options
        if student.reference is not None and len(data.classes) != len(student.classes):
            options = {**options, "num_classes": len(data.classes)}
        return dataclasses.replace(student, classes=data.classes, options=options)

    def model(self, role: str, data: Any) -> Model:
        """The network in ``role``; a bare module is taken to fit ``data``: what these take, their task and classes."""
        return _fitted(getattr(self, role), data, role)

    def models(self, role: str, data: Any) -> list[Model]:
        """The networks in a ``role`` that takes several; see :meth:`model`."""
        return [_fitted(found, data, f"{role}{i}") for i, found in enumerate(getattr(self, role), 1)]

    def controls(self) -> dict[str, Control]:
        """Give the controls that a verb runs beside this method with the same seed, by name; none by default."""
        return {}

    @classmethod
    def stand_ins(cls) -> dict[str, Any]:
        """Stand-ins for the networks and what else is given, for checking the options before anything is loaded."""
        from torch import nn

        return {**{role: nn.Identity() for role in cls.roles}, **dict.fromkeys(cls.given)}

    def require(self, data: Any, precision: str = "32-true") -> None:
        """Raise :class:`UserError` with what keeps its networks from training in ``precision``, or :meth:`fit`.

        An ingredient of the recipe that the method does not admit comes first.
        """
        self.require_ingredients()
        problems = self.misfits(data) or ingredients.problems(self, data)
        problems = problems or self._untrainable(data, precision == "bf16-mixed") or self.check(data)
        if problems:
            raise UserError(f"{self.card.name} cannot run here: " + "; ".join(problems))

    def require_ingredients(self) -> None:
        """Raise :class:`UserError` where the recipe asks for an ingredient that the method does not admit."""
        ingredients.refuse(self, built_in)

    def misfits(self, data: Any) -> list[str]:
        """Why it is no method for such inputs or for their task, or its networks take others; empty if it is.

        Data that do not say what a network takes are taken to be right.
        """
        from upcycle.core.models import Model

        if (takes := getattr(data, "takes", None)) is None:
            return []
        needs, task = self.card.needs, data.train.task
        if not needs.admits(takes.kind, task.name):
            if needs.admits(takes.kind, *needs.tasks[:1]):
                own, theirs = f"it is for {' and '.join(needs.tasks)}", f"{task.name} is the task of these {takes.noun}"
            else:
                own, theirs = f"it works on {' and '.join(needs.inputs)}", f"these are {takes.noun}"
            others = serving(self.card.verb, takes.kind, task.name, needs.data)
            return [f"{own}, and {theirs}{f'; take --method {others[0]}' if others else ''}"]
        problems = []
        for role in self.roles:
            several = isinstance(found := getattr(self, role), tuple | list)
            for model in found if several else [found]:
                if not isinstance(model, Model) or (model.takes.kind == takes.kind == "images"):
                    continue
                problems += [f"{model.name}: {problem}" for problem in model.takes.problems(takes)]
                if model.task.name != task.name:
                    own = f"{model.name} is for {model.task.name}"
                    problems.append(f"{own}, and the task of these {takes.noun} is {task.name}")
        return problems

    def inputs(self, data: Any) -> dict[str, str]:
        """The digest of everything that goes into :meth:`fit`, by its name in a sentence.

        A resumed run is compared by it. Data of one's own say what they are by a method ``digests()``, as those of
        :class:`upcycle.data.images.Images` do.
        """
        from upcycle.core.inputs import digests

        found: dict[str, str] = data.digests() if hasattr(data, "digests") else {}
        for role in self.roles:
            several = isinstance(getattr(self, role), tuple | list)
            found |= digests(getattr(self, role), role if several else f"the {role}")
        return found | {key: value for name in self.given for key, value in digests(getattr(self, name), name).items()}

    def begin(
        self, run: Run, data: Any, beside: Mapping[str, str] | None = None, code: Mapping[str, str] | None = None
    ) -> None:
        """Check everything before :meth:`fit`: what :meth:`require` finds, and that a resumed run has the same inputs.

        Args:
            beside: digests of what only the caller knows, see :meth:`inputs`.
            code: digests of files of code that networks come from, by their names; a change there is a note.

        Raises:
            UserError: a need that is not met, or an input that is not what the run was begun with.
        """
        self.require(data, run.precision)
        run.classes = tuple(getattr(data, "classes", ()))
        run.begin({**self.inputs(data), **(beside or {})}, code)

    def _untrainable(self, data: Any, mixed: bool) -> list[str]:
        from upcycle.core.probe import training_problems

        batch_size = getattr(getattr(self, "recipe", self), "batch_size", None)
        roles = [role for role in self.roles if role in self.trains and getattr(self, role) is not None]
        return [
            problem
            for role in roles
            for problem in training_problems(
                self.model(role, data), batch_size=batch_size, own_weights=role == "student", mixed=mixed
            )
        ]

    @classmethod
    def options(cls) -> dict[str, dataclasses.Field[Any]]:
        """The hyper-parameters by name: every field that is neither a network nor given beside it."""
        own = dataclasses.fields(cls)  # type: ignore[arg-type]
        return {f.name: f for f in own if f.name not in (*cls.roles, *cls.given)}

    def __repr__(self) -> str:
        options = ", ".join(f"{name}={getattr(self, name)!r}" for name in self.options())
        return f"{type(self).__name__}({options})"


def built_in() -> tuple[type[Method], ...]:
    """Every method of the package, in the order of the docs."""
    return tuple(method for room in ROOMS for method in importlib.import_module(f"upcycle.{room}").METHODS)


def serving(verb: str, inputs: str, task: str, data: Data | None = None) -> list[str]:
    """The names of a verb's methods that work on inputs of a kind, for a task; first those that need as much data,
    and of these the best.
    """
    able = [m for m in built_in() if m.card.verb == verb and m.card.needs.admits(inputs, task)]
    return [m.card.name for m in sorted(able, key=lambda m: (m.card.needs.data != data, _rank(m)))]


def _rank(method: type[Method]) -> int:
    """The place of a method where there is all that it may ask for; last where it does not say."""
    goals = VERB_GOALS.get(method.card.verb, ())
    fit = method.serves(Situation(data="labelled", goal=goals[0], task_id="known")) if goals else None
    return fit.rank if isinstance(fit, Fit) else 100


def _fitted(found: Any, data: Any, name: str) -> Model:
    from upcycle.core.models import Model, fields_of

    if isinstance(found, Model):
        return found
    return Model(module=found, **fields_of(data.takes), task=data.train.task, classes=data.classes, name=name)
