"""``upcycle methods`` and ``upcycle advise``: what there is, and which of it serves what one has."""

from __future__ import annotations

import dataclasses
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
Goal = Literal["smaller", "better", "part", "join", "mend", "explain", "task", "domain", "extend"]
Source = Literal["none", "labelled"]
Present = Literal["all", "some"]
Known = Literal["unknown", "known"]
Store = Literal["images", "nothing"]
Growth = Literal["allowed", "none"]

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

GOAL_WORDS: dict[Goal, str] = {
    "smaller": "a smaller network",
    "better": "a better network of the same size",
    "part": "a network for some of its classes only",
    "join": "one network made of several trained ones",
    "mend": "a network that errs less, without starting over",
    "explain": "to see what a network learns from a teacher",
    "task": "a trained network to tell other classes apart",
    "domain": "a network that works on images which look otherwise than those that one was trained on",
    "extend": "a network that learns one task after another and keeps the first ones",
}
_ADAPT = ("task", "domain")  # the goals of upcycle adapt; what the others ask of a teacher is there asked of a network

PLACEHOLDERS = (
    "TEACHER, STUDENT, MODEL, PART and ZOO stand for a reference: zoo:NAME, timm:NAME, torchvision:NAME, hf:ORG/NAME, "
    "package.module:callable or a saved model; to be asked, MODEL may also be http://HOST:PORT/PATH or FILE.onnx. "
    "DATA and SOURCE stand for a data set's name, a folder of images, "
    "a Parquet folder, pool:PATH or hub:ORG/NAME. STREAM stands for splits:DATA/5 (its classes in 5 tasks), "
    "permuted:DATA/10, rotated:DATA/10, parts:DATA/5, drifting:DATA, or folders:PATH (TASK/CLASS/IMAGE in it)."
)


# -- methods --------------------------------------------------------------------------------------------


def methods(cards: Iterable[Card] | None = None) -> str:
    """The table of methods as text for a terminal of 80 columns or more.

    Args:
        cards: of the methods to show; all methods, plugins included, if not given.
    """
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    cards = [m.card for m in _all_methods()] if cards is None else list(cards)
    table = Table(box=SIMPLE_HEAD, show_lines=True, pad_edge=False)
    table.add_column("method (verb): what you get, for which networks,\nat what cost, and what was published", ratio=1)
    for heading in ("needs\ndata", "needs of\nteacher"):
        table.add_column(heading, no_wrap=True)
    for card in cards:
        facts = (f"{card.name} ({card.verb}): {card.summary}\nfor: {card.needs.architectures}\ncost: {card.cost}\n"
                 f"published: {card.published}")  # fmt: skip
        table.add_row(*map(Text, (facts, card.needs.data, card.needs.teacher)))
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
        lines.append(
            _row(
                (
                    f"`{c.name}`",
                    _paper_link(c),
                    c.summary,
                    c.needs.data,
                    c.needs.teacher,
                    c.needs.architectures,
                    c.cost,
                    c.published,
                )
            )
        )
    return "\n".join(lines) + "\n"


def _row(cells: Iterable[str]) -> str:
    return "| " + " | ".join(" ".join(cell.split()).replace("|", r"\|") for cell in cells) + " |"


def _paper_link(card: Card) -> str:
    found = re.search(r"arXiv:(\d{4}\.\d{4,5}|[a-z-]+/\d{7})", card.paper)
    return f"[{card.title}](https://arxiv.org/abs/{found.group(1)})" if found else card.title


# -- advise ---------------------------------------------------------------------------------------------


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
        lines = [*_wrapped(self.have), ""]
        for i, choice in enumerate(self.choices, 1):
            lines += [*_wrapped(choice.reason, f"{i}. {choice.method}: "), f"     {choice.command}", ""]
        if not self.choices:
            lines += [*_wrapped(self.missing, "Nothing here can work. ", ""), ""]
        if self.refused:
            lines.append("Cannot work here:")
            named: dict[str, list[str]] = {}  # methods that one reason rules out stand together
            for r in self.refused:
                named.setdefault(r.reason, []).append(r.method)
            for reason, methods in named.items():
                lines += _wrapped(f"{', '.join(methods)}: {reason}", "   ", "     ")
            lines.append("")
        return "\n".join(lines + (_wrapped(PLACEHOLDERS) if self.choices else [])).rstrip()


def _wrapped(text: str, first: str = "", rest: str = "   ") -> list[str]:
    return textwrap.wrap(
        text,
        88,
        initial_indent=first,
        subsequent_indent=rest if first else "",
        break_on_hyphens=False,
        break_long_words=False,
    )


@dataclass(frozen=True, kw_only=True)
class _Have:
    data: Data
    teacher: Access
    architecture: Architecture
    goal: Goal
    source: Source = "none"
    present: Present = "all"
    task_id: Known = "unknown"
    store: Store = "images"
    growth: Growth = "allowed"
    boundaries: Known = "known"

    def words(self) -> str:
        images, access = DATA_WORDS[self.data], ACCESS_WORDS[self.teacher]
        if self.goal in _ADAPT:
            images, access = f"{images} of the new {self.goal}", access.replace("teacher", "network")
        if self.goal == "extend":
            images, access = f"{images} of each task", access.replace("teacher", "network")
        old = ", labelled images of the old domain" if self.source == "labelled" else ""
        some = "Some of the classes do not occur. " if self.present == "some" else ""
        if self.goal == "extend":
            which = {"unknown": "is not known", "known": "is known"}
            some = (
                f"The task of an image {which[self.task_id]} when it is classified, where one task ends "
                f"{which[self.boundaries]} in training; of earlier tasks "
                f"{'some images' if self.store == 'images' else 'no images'} may be kept, and the network "
                f"{'may' if self.growth == 'allowed' else 'may not'} grow with the tasks. "
            )
        return (
            f"You have {images}{old} and {access}; {ARCHITECTURE_WORDS[self.architecture]}. {some}"
            f"You want {GOAL_WORDS[self.goal]}."
        )


@dataclass(frozen=True)
class _Fit:
    """Where a method stands among those that can work (lower is better), and why."""

    rank: int
    reason: str
    options: str = ""
    teacher: bool = True
    networks: str = ""  # instead of the verb's


def advise(
    *,
    data: Data,
    teacher: Access = "weights",
    architecture: Architecture = "any",
    goal: Goal = "smaller",
    source: Source = "none",
    present: Present = "all",
    task_id: Known = "unknown",
    store: Store = "images",
    growth: Growth = "allowed",
    boundaries: Known = "known",
    methods: Iterable[type[Method]] | None = None,
) -> Advice:
    """Which methods serve what one has, best first, each with its reason and its command.

    What can work follows from the :class:`~upcycle.core.method.Needs` of each card; a method whose needs are
    not met is never recommended. Which of the others comes first, and what a method cannot do for a goal or
    an architecture, is judgement, and stands in this file.

    Args:
        data: none; few: about 1 to 50 images a class; unlabelled: many; labelled: many, each with its label.
        teacher: none; predictions: it only answers; features: its inner activations can be read too; weights:
            it is at hand as a whole.
        architecture: any, if it is open; same, if the student is built exactly like the teacher; conv or
            transformer, if both are.
        goal: a smaller network, or a better one of the same size; a part for some of its classes; to join several
            trained networks; to mend one that errs; to explain what a teacher's answers change; a network for
            another task; one for another domain, that is, the same classes on images that look otherwise; or to
            extend a network by one task after another.
        source: for another domain, whether there are labelled images of the old one.
        present: for another domain, whether all classes occur there, or only some, which ones being unknown.
        task_id: to extend, whether the task of an image is known when it is classified.
        store: to extend, whether some images of earlier tasks may be kept, or nothing of them.
        growth: to extend, whether what is kept beside the network may grow with every task.
        boundaries: to extend, whether it is known in training where a task ends.
        methods: to choose from; all methods, plugins included, if not given.

    Raises:
        UserError: a value that is not among those above, with the nearest.
    """
    for kind, value, known in (
        ("level of data", data, DATA_LEVELS),
        ("level of access to the teacher", teacher, ACCESS_LEVELS),
        ("kind of architecture", architecture, get_args(Architecture)),
        ("goal", goal, get_args(Goal)),
        ("kind of images of the old domain", source, get_args(Source)),
        ("share of classes", present, get_args(Present)),
        ("answer to whether the task is known", task_id, get_args(Known)),
        ("kind of what may be kept", store, get_args(Store)),
        ("answer to whether it may grow", growth, get_args(Growth)),
        ("answer to whether boundaries are known", boundaries, get_args(Known)),
    ):
        if value not in known:
            raise unknown(kind, value, known)
    have = _Have(data=data, teacher=teacher, architecture=architecture, goal=goal, source=source, present=present,
                 task_id=task_id, store=store, growth=growth, boundaries=boundaries)  # fmt: skip
    fits: list[tuple[Card, _Fit]] = []
    refused: list[Refusal] = []
    paths: dict[str, list[str]] = {}
    for card in (m.card for m in (_all_methods() if methods is None else methods)):
        judged = _lacking(card, have) or _judge(card, have)
        if isinstance(judged, _Fit):
            fits.append((card, judged))
            continue
        refused.append(Refusal(method=card.name, reason=judged))
        if isinstance(_judge(card, _supplied(card, have)), _Fit):
            paths.setdefault(_needed(card, have), []).append(card.name)
    fits.sort(key=lambda pair: pair[1].rank)
    choices = tuple(Choice(method=c.name, reason=f.reason, command=_command(c, f)) for c, f in fits)
    missing = "" if choices else _missing(have, paths)
    return Advice(have=have.words(), choices=choices, refused=tuple(refused), missing=missing)


def _all_methods() -> tuple[type[Method], ...]:
    from upcycle.verbs.methods import all_methods

    return all_methods()


# kd is worth having with many images; on a few it still runs, and is recommended last and called weak. vpr is made for
# a few, which must have labels.
_RUNS_ON: dict[str, Data] = {"kd": "few", "vpr": "few"}


def _lacking(card: Card, have: _Have) -> str:
    """Which of the card's needs are not met, in words; empty if all are."""
    data, access, lacks = _RUNS_ON.get(card.name, card.needs.data), card.needs.teacher, []
    if DATA_LEVELS.index(have.data) < DATA_LEVELS.index(data):
        lacks.append(f"it needs {DATA_WORDS[card.needs.data]}, and you have {DATA_WORDS[have.data]}")
    if ACCESS_LEVELS.index(have.teacher) < ACCESS_LEVELS.index(access):
        lacks.append(f"it needs {ACCESS_WORDS[access]}, and you have {ACCESS_WORDS[have.teacher]}")
    return "; ".join(lacks) + "." if lacks else ""


def _supplied(card: Card, have: _Have) -> _Have:
    """``have`` with what the card still needs."""
    data = max(have.data, card.needs.data, key=DATA_LEVELS.index)
    teacher = max(have.teacher, card.needs.teacher, key=ACCESS_LEVELS.index)
    return dataclasses.replace(have, data=data, teacher=teacher)


def _needed(card: Card, have: _Have) -> str:
    """What would have to be added to ``have`` for the card's needs to be met."""
    supplied, added = _supplied(card, have), []
    if supplied.data != have.data:
        folder = " (a folder of any public images of the same kind serves)"
        added.append(DATA_WORDS[supplied.data] + (folder if supplied.data == "unlabelled" else ""))
    if supplied.teacher != have.teacher:
        added.append(ACCESS_WORDS[supplied.teacher])
    return " and ".join(added)


_SERVES: dict[str, tuple[str, ...]] = {"part": ("mda",), "join": ("mdaassembly", "dery"), "mend": ("modeldoctor",),
                                       "explain": ("kdexplainer",), "task": ("ssf", "lora", "ia3", "probe"),
                                       "domain": ("dine", "beta", "ba3us", "iso", "attentiondiversification", "ssf",
                                                  "lora", "ia3", "probe")}  # fmt: skip


def _missing(have: _Have, paths: dict[str, list[str]]) -> str:
    """What would be needed, from the methods that each addition would make work."""
    if have.goal == "smaller" and have.architecture == "same":
        return "Choose a smaller student, or ask for --goal better."
    if not paths:
        return "No method serves this goal with these architectures."
    # Every level of data but "none" speaks of images; a path without them leads to a method that makes its own.
    least = "At least a few images are needed. " if have.data == "none" and all("images" in p for p in paths) else ""
    return least + " ".join(f"With {what}: {', '.join(names)}." for what, names in paths.items())


_NETWORKS = {
    "distill": "--teacher TEACHER --student STUDENT",
    "disassemble": "MODEL",
    "assemble": "PART1 PART2",
    "reassemble": "--zoo ZOO1,ZOO2",
    "treat": "MODEL",
    "adapt": "MODEL",
    "extend": "MODEL",
}


def _command(card: Card, fit: _Fit) -> str:
    networks = fit.networks or (_NETWORKS[card.verb] if fit.teacher else "--student STUDENT")
    data = "" if card.needs.data == "none" else "--data DATA "
    data = "--stream STREAM " if card.verb == "extend" else data
    return f"upcycle {card.verb} {networks} {data}--method {card.name} {fit.options}".strip()


# -- judgement: where a method stands once its needs are met, or why it still cannot serve --------------


def _judge(card: Card, have: _Have) -> _Fit | str:
    if have.goal in _SERVES and card.name not in _SERVES[have.goal]:
        return {"part": "it keeps all classes.", "join": "it takes one network, not several.",
                "mend": "it makes another network, and mends none.",
                "explain": "it makes a network, and says nothing of how. For a trained one: upcycle diagnose MODEL.",
                "task": "it is for the classes that its networks have.",
                "domain": "it knows of no other domain than that of its images."}[have.goal]  # fmt: skip
    if have.goal == "extend" and card.verb != "extend":
        return "it learns once, and not one task after another."
    if have.goal != "extend" and card.verb == "extend":
        return "it teaches a network one task after another; ask for --goal extend."
    if have.goal not in _ADAPT and card.verb == "adapt":
        return "it adapts a network to other images; ask for --goal task or --goal domain."
    if have.goal == "smaller" and have.architecture == "same":
        return "a student that is built exactly like its teacher is as large as the teacher."
    if card.name in _RULES:
        found = _RULES[card.name](have)
        if have.goal == "extend" and have.task_id == "known" and isinstance(found, _Fit):
            return dataclasses.replace(found, options=f"--scenario task {found.options}".strip())
        return found
    return _Fit(40, card.summary, teacher=card.needs.teacher != "none")


def _no_better(have: _Have) -> str:
    """Why imitating a teacher does not give a better network; empty if it may."""
    if have.goal == "better" and have.data == "few":
        return "a few images make no network better; that takes many."
    if have.goal == "better" and have.data != "labelled" and have.architecture == "same":
        return "a student that only imitates a teacher built like itself gets no better than that teacher."
    return ""


def _kd(have: _Have) -> _Fit | str:
    if why := _no_better(have):
        return why
    if have.data == "few":
        reason = (
            "weak on a few images, which crop and flip stretch but do not replace; a folder of any public "
            "images of the same kind serves better. If yours have labels, leave out --terms.w_ce 0."
        )
        return _Fit(30, reason, "--terms.w_ce 0")
    stronger = " It helps most when the teacher is the stronger network." if have.goal == "better" else ""
    if have.data == "unlabelled":
        reason = (
            "the student learns the teacher's predictions on your images, without any label. If a part of "
            "them has labels, leave out --terms.w_ce 0 and these count."
        )
        return _Fit(10, reason + stronger, "--terms.w_ce 0")
    reason = "the student learns from your labels and from the teacher's predictions on the same images."
    return _Fit(10, reason + stronger)


def _vam(have: _Have) -> _Fit | str:
    if have.architecture == "transformer":
        return "it works on the student's convolutions, and a transformer has next to none."
    if why := _no_better(have):
        return why
    condition = ", if the student has convolutions" if have.architecture == "any" else ""
    reason = (
        f"kd{condition} with attention over groups of filters while training, folded away afterwards. Its published "
        "gain is some tenths of a point, which did not show here: try it after kd."
    )
    return _Fit(20, reason, "" if have.data == "labelled" else "--terms.w_ce 0")


def _netgraft(have: _Have) -> _Fit | str:
    if have.goal == "better":
        return "it makes a smaller network that imitates its teacher, not a better one."
    options = []
    if have.architecture == "transformer":
        cut = "both networks need the same tokens and width, as only depth shrinks; MODULE names where to cut"
        options.append("--cuts '[MODULE,MODULE]'")
    else:
        cut = "both networks must cut into blocks of equal spatial size, at layer1 to layer3 or your --cuts"
    if have.data == "few":
        rank, reason = (
            0,
            "made for a few images, without labels: the student grows block by block in the teacher",
        )
    else:
        rank, reason = (
            25,
            "made for a few images; with as many as you have, kd trains the whole student freely",
        )
    if have.data == "labelled":  # drawing so many of each class takes labels
        options.append("--shots 10")
    return _Fit(rank, f"{reason}; {cut}.", " ".join(options))


def _tfkd(have: _Have) -> _Fit | str:
    if have.architecture == "same" and have.teacher != "none":
        reason = (
            "the teacher serves as the student's earlier self: a fresh network of its build learns from it "
            "and from your labels."
        )
        return _Fit(5, reason)
    reason = "the student learns from your labels and its own earlier self (--variant reg: in one training)."
    if have.teacher != "none":
        reason = f"for when the teacher, which it does not use, is no better than the student could be: {reason}"
        return _Fit(30, reason, teacher=False)
    small = " It shrinks nothing: choose a small STUDENT." if have.goal == "smaller" else ""
    return _Fit(10, reason + small, teacher=False)


def _from_the_teacher(have: _Have, place: int, reason: str) -> _Fit | str:
    """A method that makes its own images: ``place`` among its kind, after all others where images are at hand."""
    if have.architecture == "transformer":
        return (
            "it makes images from the statistics that BatchNorm layers keep, and a transformer has none; images of "
            "any kind would serve, with kd."
        )
    if have.goal == "better":
        return "a student of images that a teacher dreamt up gets no better than that teacher."
    if have.data != "none":
        kind = "a few real images say more" if have.data == "few" else "real images teach more"
        reason = (
            f"it needs no images, and {kind} than those it makes: for when yours may not be used. As to it, {reason}"
        )
        return _Fit(60 + place, reason)
    return _Fit(place, f"{reason} The teacher must have BatchNorm layers.")


def _fastdfkd(have: _Have) -> _Fit | str:
    reason = (
        "images are inverted out of the teacher by a generator that is a few steps away from each batch, and the "
        "student learns on them: few steps a batch, so most of the time is the student's (--dry_run says how much)."
    )
    return _from_the_teacher(have, 1, reason)


def _cmi(have: _Have) -> _Fit | str:
    reason = (
        "like fastdfkd with a new generator and hundreds of steps for every batch, held apart from all images before: "
        "more diverse, for many times the synthesis. Try it when fastdfkd falls short and there are hours to spend."
    )
    return _from_the_teacher(have, 2, reason)


def _deepinversion(have: _Have) -> _Fit | str:
    reason = (
        "each batch of pixels is descended by itself, without a generator, in a thousand steps: the baseline that the "
        "others are measured against."
    )
    return _from_the_teacher(have, 3, reason)


def _onestagegan(have: _Have) -> _Fit | str:
    reason = (
        "generator and student learn from the same pass, one against the other: no step is spent on the generator "
        "alone, and which classes its images are of is not chosen."
    )
    return _from_the_teacher(have, 4, reason)


def _mda(have: _Have) -> _Fit | str:
    if have.architecture == "transformer":
        return "it follows the channels of convolutions, and a transformer has next to none."
    if have.goal == "better":
        return "it cuts a part out of a network and makes none better."
    if have.goal == "part":
        reason = "the channels that chosen classes need are cut out as a smaller network of its own, without training."
        return _Fit(0, reason, "--classes CLASS1,CLASS2")
    reason = (
        "it shrinks a network without training by leaving out channels that no class needs much; kd makes better small "
        "networks, and takes a training. For a network of some classes only, ask for --goal part."
    )
    return _Fit(35, reason, "--beta 0.3")


def _mdaassembly(have: _Have) -> _Fit | str:
    if have.goal != "join":
        return "it joins several networks of different classes; ask for --goal join."
    if have.architecture == "transformer":
        return "it joins convolutional networks channel by channel."
    reason = (
        "networks with one sequence of layers and different classes become one with all classes, without training "
        "(--tune adds a short one); what mda cut out of two networks of one architecture fits together."
    )
    return _Fit(0, reason)


def _dery(have: _Have) -> _Fit | str:
    if have.goal == "better":
        return "it looks for the best network within a budget; ask for --goal smaller or join."
    reason = (
        "if you have several trained networks: blocks of them are stitched together within a budget of parameters and "
        "multiply-adds, and the new layers between them are trained."
    )
    return _Fit(5 if have.goal == "join" else 28, reason, "--params 0.5M --flops 60M")


def _nes(have: _Have) -> _Fit | str:
    if have.architecture == "transformer":
        return "it compresses convolutions, and a transformer has next to none."
    if have.goal == "better":
        return "it stores a network in fewer numbers and makes none better."
    reason = (
        "a network of the student's shapes is trained whose layers are read from smaller tensors: fewer stored "
        "parameters with the same layers. A narrower student by kd is the simpler way; compare."
    )
    return _Fit(36, reason, teacher=have.teacher != "none")


def _modeldoctor(have: _Have) -> _Fit | str:
    if have.goal != "mend":
        return "it trains a network on, and makes no other; ask for --goal mend."
    if have.architecture == "transformer":
        return "it looks at the channels of a last convolution, which a transformer does not have."
    reason = (
        "training goes on with a penalty on channels that speak for wrong classes, beside the same training without "
        "one; see first where the network errs, by upcycle diagnose MODEL."
    )
    return _Fit(0, reason)


def _kdexplainer(have: _Have) -> _Fit | str:
    if have.goal != "explain":
        return "its student is a tree of experts, made to be looked at; ask for --goal explain."
    if have.architecture in ("same", "transformer"):
        return "its student is a tree of convolutional experts, zoo:tree."
    reason = (
        "a tree of experts learns from the teacher, and shows which classes share which expert. For what a trained "
        "network looks at: upcycle diagnose MODEL."
    )
    return _Fit(0, reason, networks="--teacher TEACHER --student zoo:tree")


def _tuned(place: int, reason: str) -> Callable[[_Have], _Fit | str]:
    """A method that tunes a network with labels: the same judgement for a task and for a domain."""

    def rule(have: _Have) -> _Fit | str:
        return _Fit(place, reason)

    return rule


def _dine(have: _Have) -> _Fit | str:
    reason = (
        "a network of your choice learns from what MODEL says of your images, and then from how sure it is of them "
        "itself; no image of the old domain and no weight of MODEL is needed."
    )
    partial = " Classes that do not occur are not forced to (--partial)." if have.present == "some" else ""
    return _Fit(10, reason + partial, "--partial" if partial else "", networks="MODEL --student STUDENT")


def _beta(have: _Have) -> _Fit | str:
    if have.present == "some":
        return "it expects every class in every batch; dine --partial does not."
    reason = (
        "for when MODEL is wrong on a quarter of your images or more: two networks sort its answers into likely right "
        "and likely wrong, and each cleans the other's; about five times the time of dine."
    )
    return _Fit(20, reason, networks="MODEL --student STUDENT")


def _ba3us(have: _Have) -> _Fit | str:
    if have.source == "none":
        return "it needs labelled images of the old domain (--source labelled)."
    reason = (
        "made for a new domain in which only some of the old classes occur, which it finds out; it learns from "
        "labelled images of the old domain and unlabelled ones of the new."
    )
    place = 5 if have.present == "some" else 25
    return _Fit(place, reason, networks="--student STUDENT --source_data SOURCE")


def _iso(have: _Have) -> _Fit | str:
    if have.source == "none":
        return "it trains MODEL on labelled images of the old domain first (--source labelled)."
    reason = (
        "for a shift that shows in use, image by image: MODEL is trained with a second task that needs no labels, and "
        "goes on with that one before each answer."
    )
    return _Fit(30, reason, networks="MODEL --source_data SOURCE")


def _attentiondiversification(have: _Have) -> _Fit | str:
    if have.source == "none":
        return "it needs labelled images of two old domains or more (--source labelled), and none of the new one."
    reason = (
        "for a domain that nobody has seen yet: one network is trained on several labelled domains, so that its "
        "channels look at different places; DATA only measures."
    )
    return _Fit(40, reason, networks="--student STUDENT --source_data SOURCE1,SOURCE2")


def _kept(have: _Have, place: int, reason: str, *, boundaries: bool = False) -> _Fit | str:
    """A method that keeps images of earlier tasks."""
    if have.store == "nothing":
        return "it keeps some images of earlier tasks (--store images)."
    if boundaries and have.boundaries == "unknown":
        return "it must know where a task ends (--boundaries known)."
    return _Fit(place, reason)


def _derpp(have: _Have) -> _Fit | str:
    reason = (
        "a few images stay in a memory, with what the network answered when it saw them, and are learnt again beside "
        "the new ones; it needs neither the task of an image nor to know where one ends."
    )
    return _kept(have, 10, reason)


def _er(have: _Have) -> _Fit | str:
    return _kept(have, 14, "derpp without the answers: simpler, less memory, two thirds of the time.")


def _coca(have: _Have) -> _Fit | str:
    reason = (
        "derpp whose replayed images also teach each other, with two self-supervised tasks beside: about twice the "
        "time. Try it after derpp, and compare."
    )
    return _kept(have, 12, reason)


def _vpr(have: _Have) -> _Fit | str:
    if have.data == "unlabelled":
        return "it needs a few images with labels, and yours have none."
    reason = (
        "each class is kept as a Gaussian among the network's features and an image or so: for the smallest memory, "
        "and for a handful of labelled images a class."
    )
    if have.data == "few":
        reason = f"if your few images have labels: {reason}"
    return _kept(have, 16, reason, boundaries=True)


def _joint(have: _Have) -> _Fit | str:
    reason = (
        "if the images of all tasks can be kept: nothing is forgotten where all are learnt at once. The others "
        "show it beside them as their upper bound."
    )
    return _kept(have, 70, reason)


def _finetune(have: _Have) -> _Fit | str:
    return _Fit(80, "nothing is done against forgetting; the others show it beside them as their lower bound.")


def _held(place: int, reason: str) -> Callable[[_Have], _Fit | str]:
    """A method that holds on to weights or answers, without images: it keeps little where tasks are not told."""

    def rule(have: _Have) -> _Fit | str:
        if have.boundaries == "unknown":
            return "it takes stock at the end of each task, so it must know where that is (--boundaries known)."
        if have.task_id == "known":
            return _Fit(place, reason)
        weak = (
            " Where the task of an image is not known, it keeps next to nothing of classes that came apart from each "
            "other (on Split CIFAR-10 no more than fine-tuning, arXiv:2004.07211); for the same classes seen "
            "differently it helps."
        )
        return _Fit(place + 40, reason + weak)

    return rule


def _told(have: _Have) -> str:
    """Why a method cannot serve that is told the task of each image; empty if it can."""
    if have.task_id == "unknown":
        return "it must be told the task of an image when it classifies one (--task_id known)."
    if have.boundaries == "unknown":
        return "it must know in training where a task ends (--boundaries known)."
    return ""


def _blip(have: _Have) -> _Fit | str:
    if why := _told(have):
        return why
    if have.architecture == "transformer":
        return "it freezes the bits of linear layers and convolutions; for a transformer there is meat."
    reason = (
        "after each task as many leading bits of each weight are frozen as it has taught: no images are kept, and no "
        "more memory with more tasks. The network must be without BatchNorm."
    )
    return _Fit(4, reason)


def _meat(have: _Have) -> _Fit | str:
    if why := _told(have):
        return why
    if have.architecture in ("conv", "same"):
        return "it is for vision transformers (--architecture transformer)."
    if have.growth == "none":
        return "it keeps masks and a head for every task, which grow with them (--growth allowed)."
    only = "" if have.architecture == "transformer" else "if MODEL is a trained vision transformer: "
    reason = (
        f"{only}its weights stay as they are, and each task gets masks of a bit a weight and a head of its own, so "
        "nothing is forgotten."
    )
    return _Fit(0 if have.architecture == "transformer" else 5, reason)


def _streaming(have: _Have) -> _Fit | str:
    reason = (
        "for images without labels: the features go on learning by themselves, chunk after chunk; where there are "
        "labels, a classifier on them is trained at the end, on all tasks at once."
    )
    options = "--replay 0" if have.store == "nothing" else ""
    return _Fit(2 if have.data == "unlabelled" else 85, reason, options)


_RULES: dict[str, Callable[[_Have], _Fit | str]] = {
    "kd": _kd,
    "vam": _vam,
    "netgraft": _netgraft,
    "tfkd": _tfkd,
    "fastdfkd": _fastdfkd,
    "cmi": _cmi,
    "deepinversion": _deepinversion,
    "onestagegan": _onestagegan,
    "mda": _mda,
    "mdaassembly": _mdaassembly,
    "dery": _dery,
    "nes": _nes,
    "modeldoctor": _modeldoctor,
    "kdexplainer": _kdexplainer,
    "ssf": _tuned(0, "a scale and a shift behind every layer are trained, under a hundredth of the weights, and then "
                  "folded into them: the network's size and speed stay as they were."),
    "lora": _tuned(5, "low-rank changes of the weights are trained and merged into them; --rank says how much may "
                   "change. Its library, peft, comes with upcycle[peft]."),
    "ia3": _tuned(8, "one factor a channel of some layers is trained, even less than ssf's scales and shifts."),
    "probe": _tuned(12, "only a new classifier is trained; what the others must beat."),
    "dine": _dine,
    "beta": _beta,
    "ba3us": _ba3us,
    "iso": _iso,
    "attentiondiversification": _attentiondiversification,
    "finetune": _finetune,
    "joint": _joint,
    "er": _er,
    "derpp": _derpp,
    "coca": _coca,
    "vpr": _vpr,
    "blip": _blip,
    "meat": _meat,
    "streaming": _streaming,
    "oewc": _held(20, "weights that earlier tasks depend on are held, the more so the more they do: no image is kept."),
    "si": _held(22, "like oewc, with the importance of a weight added up while it is learnt."),
    "lwf": _held(24, "the network's own answers of before are held on the new images: no image is kept."),
}  # fmt: skip
