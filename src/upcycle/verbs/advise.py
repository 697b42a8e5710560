"""``upcycle methods`` and ``upcycle advise``: what there is, and which of it serves what one has."""

from __future__ import annotations

import dataclasses
import json as json_format
import re
import shutil
import textwrap
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from io import StringIO
from typing import Literal, get_args

from upcycle.core.errors import unknown
from upcycle.core.method import ACCESS_LEVELS, DATA_LEVELS, Access, Card, Data, Method

Architecture = Literal["any", "same", "conv", "transformer"]
Goal = Literal["smaller", "better"]

DATA_WORDS: dict[Data, str] = {
    "none": "no images",
    "few": "a few images",
    "unlabelled": "many images without labels",
    "labelled": "many images with labels",
}
ACCESS_WORDS: dict[Access, str] = {
    "none": "no teacher",
    "predictions": "the teacher's predictions",
    "features": "the teacher's inner features",
    "weights": "the teacher's weights",
}
ARCHITECTURE_WORDS: dict[Architecture, str] = {
    "any": "architectures are open",
    "same": "the student is built like the teacher",
    "conv": "the networks are convolutional",
    "transformer": "the networks are transformers",
}

PLACEHOLDERS = (
    "TEACHER and STUDENT stand for a reference: zoo:NAME, timm:NAME, torchvision:NAME, hf:ORG/NAME, "
    "package.module:callable or a saved model. DATA stands for a data set's name, a folder of images, a Parquet "
    "folder or hub:ORG/NAME."
)


# -- methods -------------------------------------------------------------------------------------------------


def methods(cards: Iterable[Card] | None = None, json: bool = False) -> str:
    """The table of methods as text for a terminal of 80 columns or more.

    Args:
        cards: of the methods to show; all methods, plugins included, if not given.
        json: the cards as a JSON list instead, for programs.
    """
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    cards = [m.card for m in _all_methods()] if cards is None else list(cards)
    if json:
        return json_format.dumps([dataclasses.asdict(card) for card in cards], indent=1, ensure_ascii=False)
    table = Table(box=SIMPLE_HEAD, show_lines=True, pad_edge=False)
    for heading in ("method", "verb", "needs data", "needs of teacher"):
        table.add_column(heading, max_width=11)
    table.add_column("what you get, its cost, and what was published", ratio=1)
    for card in cards:
        facts = (
            f"{card.summary}\nfor: {card.needs.architectures}\ncost: {card.cost}\npublished: {card.published}"
        )
        table.add_row(*map(Text, (card.name, card.verb, card.needs.data, card.needs.teacher, facts)))
    width = min(120, max(80, shutil.get_terminal_size((100, 24)).columns))
    out = StringIO()
    Console(file=out, width=width, color_system=None).print(table)
    return "\n".join(line.rstrip() for line in out.getvalue().strip("\n").splitlines())


def methods_table_markdown(cards: Iterable[Card]) -> str:
    """The table of methods as Markdown, one row a card, for the README and the docs."""
    headings = (
        "method",
        "paper",
        "you get",
        "needs data",
        "needs of the teacher",
        "networks",
        "cost",
        "published",
    )
    lines = [_row(headings), "|" + " --- |" * len(headings)]
    for c in cards:
        lines.append(_row((f"`{c.name}`", _paper_link(c), c.summary, c.needs.data, c.needs.teacher,
                           c.needs.architectures, c.cost, c.published)))
    return "\n".join(lines) + "\n"


def _row(cells: Iterable[str]) -> str:
    return "| " + " | ".join(" ".join(cell.split()).replace("|", r"\|") for cell in cells) + " |"


def _paper_link(card: Card) -> str:
    found = re.search(r"arXiv:(\d{4}\.\d{4,5}|[a-z-]+/\d{7})", card.paper)
    return f"[{card.title}](https://arxiv.org/abs/{found.group(1)})" if found else card.title


# -- advise --------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Choice:
    """A method that can work: why it stands where it stands, and the command to run."""

    method: str
    reason: str
    command: str


@dataclass(frozen=True, kw_only=True)
class Refusal:
    """A method that cannot work, and why."""

    method: str
    reason: str


@dataclass(frozen=True, kw_only=True)
class Advice:
    """What :func:`advise` answers.

    Args:
        have: what was said to be at hand and wanted, in words.
        choices: the methods that can work, best first.
        refused: those that cannot.
        missing: when nothing can work, what would be needed; else empty.
    """

    have: str
    choices: tuple[Choice, ...]
    refused: tuple[Refusal, ...]
    missing: str = ""

    def text(self) -> str:
        """The advice for a terminal; commands are on lines of their own, unbroken."""
        lines = _wrapped(self.have) + [""]
        for i, choice in enumerate(self.choices, 1):
            lines += _wrapped(choice.reason, f"{i}. {choice.method}: ") + [f"     {choice.command}", ""]
        if not self.choices:
            lines += _wrapped(self.missing, "Nothing here can work. ", "") + [""]
        if self.refused:
            lines.append("Cannot work here:")
            lines += [
                line for r in self.refused for line in _wrapped(r.reason, f"   {r.method}: ", "     ")
            ] + [""]
        return "\n".join(lines + (_wrapped(PLACEHOLDERS) if self.choices else [])).rstrip()


def _wrapped(text: str, first: str = "", rest: str = "   ") -> list[str]:
    return textwrap.wrap(text, 88, initial_indent=first, subsequent_indent=rest if first else "",
                         break_on_hyphens=False, break_long_words=False)


@dataclass(frozen=True, kw_only=True)
class _Have:
    data: Data
    teacher: Access
    architecture: Architecture
    goal: Goal

    def words(self) -> str:
        goal = "a smaller network" if self.goal == "smaller" else "a better network of the same size"
        return (f"You have {DATA_WORDS[self.data]} and {ACCESS_WORDS[self.teacher]}; "
                f"{ARCHITECTURE_WORDS[self.architecture]}. You want {goal}.")


@dataclass(frozen=True)
class _Fit:
    """Where a method stands among those that can work (lower is better), and why."""

    rank: int
    reason: str
    options: str = ""
    teacher: bool = True


def advise(
    *,
    data: Data,
    teacher: Access = "weights",
    architecture: Architecture = "any",
    goal: Goal = "smaller",
    methods: Iterable[type[Method]] | None = None,
) -> Advice:
    """Which methods serve what one has, best first, each with its reason and its command.

    What can work follows from the :class:`~upcycle.core.method.Needs` of each card; a method whose needs are not
    met is never recommended. Which of the others comes first, and what a method cannot do for a goal or an
    architecture, is judgement, and stands in this file.

    Args:
        data: none; few: about 1 to 50 images a class, labelled or not; unlabelled: many; labelled: many, each with
            its label.
        teacher: none; predictions: it only answers; features: its inner activations can be read too; weights:
            it is at hand as a whole.
        architecture: of both networks: any, if it is open; same, if the student is built exactly like the teacher;
            conv; transformer.
        goal: a smaller network, or a better one of the same size.
        methods: to choose from; all methods, plugins included, if not given.

    Raises:
        UserError: a value that is not among those above, with the nearest.
    """
    for kind, value, known in (("level of data", data, DATA_LEVELS), ("level of access to the teacher", teacher, ACCESS_LEVELS),
                               ("kind of architecture", architecture, get_args(Architecture)),
                               ("goal", goal, get_args(Goal))):
        if value not in known:
            raise unknown(kind, value, known)
    have = _Have(data=data, teacher=teacher, architecture=architecture, goal=goal)
    fits: list[tuple[Card, _Fit]] = []
    refused: list[Refusal] = []
    paths: list[str] = []
    for card in (m.card for m in (_all_methods() if methods is None else methods)):
        judged = _lacking(card, have) or _judge(card, have)
        if isinstance(judged, _Fit):
            fits.append((card, judged))
            continue
        refused.append(Refusal(method=card.name, reason=judged))
        if isinstance(_judge(card, _supplied(card, have)), _Fit):
            paths.append(f"{card.name} would work with {_needed(card, have)}")
    fits.sort(key=lambda pair: pair[1].rank)
    choices = tuple(Choice(method=c.name, reason=f.reason, command=_command(c, f)) for c, f in fits)
    missing = "" if choices else _missing(have, paths)
    return Advice(have=have.words(), choices=choices, refused=tuple(refused), missing=missing)


def _all_methods() -> tuple[type[Method], ...]:
    from upcycle.verbs.methods import all_methods

    return all_methods()


# kd needs many images to be worth having; on fewer it still runs, and is recommended last and called weak.
_RUNS_ON: dict[str, Data] = {"kd": "few"}


def _lacking(card: Card, have: _Have) -> str:
    """Which of the card's needs are not met, in words; empty if all are."""
    least = _RUNS_ON.get(card.name, card.needs.data)
    lacks = []
    if DATA_LEVELS.index(have.data) < DATA_LEVELS.index(least):
        lacks.append(f"it needs {DATA_WORDS[card.needs.data]}, and you have {DATA_WORDS[have.data]}")
    if ACCESS_LEVELS.index(have.teacher) < ACCESS_LEVELS.index(card.needs.teacher):
        lacks.append(
            f"it needs {ACCESS_WORDS[card.needs.teacher]}, and you have {ACCESS_WORDS[have.teacher]}"
        )
    return "; ".join(lacks) + "." if lacks else ""


def _supplied(card: Card, have: _Have) -> _Have:
    """``have`` with what the card still needs."""
    return dataclasses.replace(have, data=max(have.data, card.needs.data, key=DATA_LEVELS.index),
                               teacher=max(have.teacher, card.needs.teacher, key=ACCESS_LEVELS.index))


def _needed(card: Card, have: _Have) -> str:
    """What would have to be added to ``have`` for the card's needs to be met."""
    supplied, added = _supplied(card, have), []
    if supplied.data != have.data:
        folder = (
            " (a folder of any public images of the same kind serves)"
            if supplied.data == "unlabelled"
            else ""
        )
        added.append(DATA_WORDS[supplied.data] + folder)
    if supplied.teacher != have.teacher:
        added.append(ACCESS_WORDS[supplied.teacher])
    return " and ".join(added)


def _missing(have: _Have, paths: list[str]) -> str:
    if have.goal == "smaller" and have.architecture == "same":
        return ("A student that is built exactly like its teacher is as large as the teacher: choose another "
                "student, or ask for --goal better.")
    least = "At least a few images are needed. " if have.data == "none" else ""
    return least + (
        "; ".join(paths) + "." if paths else "No method serves this goal with these architectures."
    )


def _command(card: Card, fit: _Fit) -> str:
    teacher = "--teacher TEACHER " if fit.teacher else ""
    options = f" {fit.options}" if fit.options else ""
    return f"upcycle {card.verb} {teacher}--student STUDENT --data DATA --method {card.name}{options}"


def _judge(card: Card, have: _Have) -> _Fit | str:
    """Where a method whose needs are met stands, or why it still cannot serve."""
    if have.goal == "smaller" and have.architecture == "same":
        return "a student that is built exactly like its teacher is not smaller."
    if card.name in _RULES:
        return _RULES[card.name](have)
    return _Fit(rank=40, reason=card.summary, teacher=card.needs.teacher != "none")


def _kd(have: _Have) -> _Fit | str:
    if have.data == "few":
        return _Fit(rank=30, options="--w_ce 0", reason=(
            "weak on so few images, which crop and flip can stretch but not replace; a folder of any public images "
            "of the same kind serves better. If yours have labels, leave out --w_ce 0."))
    stronger = (
        " It helps as far as the teacher is stronger than the student." if have.goal == "better" else ""
    )
    if have.data == "unlabelled":
        return _Fit(rank=10, options="--w_ce 0", reason=(
            "the student learns the teacher's predictions on your images, without any label. If some images have "
            "one, leave out --w_ce 0 and they count." + stronger))
    return _Fit(rank=10, reason="the first choice: the student learns from your labels and from the teacher's "
                                "predictions on the same images." + stronger)


def _vam(have: _Have) -> _Fit | str:
    if have.architecture == "transformer":
        return "it works on the student's convolutions, and a transformer has next to none."
    condition = ", if the student has convolutions" if have.architecture == "any" else ""
    return _Fit(rank=20, options="--w_ce 0" if have.data != "labelled" else "", reason=(
        f"kd for the last tenths of a point{condition}: it trains an attention over groups of filters that is "
        "folded away afterwards. Try it after kd."))


def _netgraft(have: _Have) -> _Fit | str:
    if have.goal == "better":
        return "it makes a smaller network that imitates its teacher, not a better one."
    if have.architecture == "transformer":
        return (
            "it joins blocks by their feature maps (channels, height, width), which transformers do not have."
        )
    cut = "both networks must cut into blocks of equal spatial size"
    if have.data == "few":
        return _Fit(rank=0, reason=f"made for a few images, and uses no label: the student grows block by block "
                                   f"inside the teacher; {cut}.")
    return _Fit(rank=25, options="--shots 10", reason=(
        f"made for a few images, here ten of each class; with as many as you have, kd trains the whole student "
        f"freely. {cut.capitalize()}."))


def _tfkd(have: _Have) -> _Fit | str:
    alone = "the student learns from your labels and from its own earlier self, without a stronger network"
    if have.teacher == "none":
        small = " It shrinks nothing: choose a small STUDENT." if have.goal == "smaller" else ""
        return _Fit(
            rank=10, teacher=False, reason=f"{alone}; two trainings, or one with --variant reg.{small}"
        )
    if have.architecture == "same":
        return _Fit(rank=5, reason="the teacher, built like the student, is its earlier self, and a fresh network "
                                   "that learns from it and from your labels ends better than both.")
    return _Fit(rank=30, teacher=False, reason=f"when the teacher is no better than the student could be: {alone}; "
                                               "it does not use the teacher.")


_RULES: dict[str, Callable[[_Have], _Fit | str]] = {
    "kd": _kd,
    "vam": _vam,
    "netgraft": _netgraft,
    "tfkd": _tfkd,
}
