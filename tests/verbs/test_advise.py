import dataclasses
import itertools
import shlex
from typing import get_args

import pytest

from upcycle.core.errors import UserError
from upcycle.core.method import ACCESS_LEVELS, DATA_LEVELS, Card, Method, Needs
from upcycle.verbs.advice.situation import Architecture, Goal
from upcycle.verbs.advise import Advice, advise
from upcycle.verbs.methods import all_methods, methods_list

METHODS = all_methods()


def _stub(name: str) -> type[Method]:
    """A method of this name that makes its own images, known by its card alone."""
    card = Card(name=name, title=name, paper="", verb="distill", needs=Needs(data="none", teacher="weights"),
                summary="A student from nothing.", cost="high", published="none")  # fmt: skip
    return type(name, (Method,), {"card": card})


FREE = ["fastdfkd", "cmi", "deepinversion", "onestagegan"]
REAL = {m.card.name: m for m in METHODS}
EVERY = (*METHODS, *(_stub(name) for name in FREE if name not in REAL))
CARDS = {m.card.name: m.card for m in EVERY}
SITUATIONS = [
    dict(zip(("data", "teacher", "architecture", "goal"), values, strict=True))
    for values in itertools.product(DATA_LEVELS, ACCESS_LEVELS, get_args(Architecture), get_args(Goal))
]


def ask(**have) -> Advice:
    return advise(**have, methods=EVERY)


def names(advice: Advice) -> list[str]:
    return [choice.method for choice in advice.choices]


def test_what_cannot_work_is_never_recommended_and_every_method_is_spoken_of():
    for have in SITUATIONS:
        advice = ask(**have)
        assert sorted([*names(advice), *(r.method for r in advice.refused)]) == sorted(CARDS)
        for choice in advice.choices:
            needs = CARDS[choice.method].needs
            assert ACCESS_LEVELS.index(have["teacher"]) >= ACCESS_LEVELS.index(needs.teacher), have
            enough = DATA_LEVELS.index(have["data"]) >= DATA_LEVELS.index(needs.data)
            # The exceptions say so: kd is weak on a few images, and vpr is made for a few that have labels.
            said = {"kd": "weak", "vpr": "if your few images have labels"}.get(choice.method, "never")
            weak = have["data"] == "few" and choice.reason.startswith(said)
            assert enough or weak, have
        if have["goal"] == "smaller":
            assert not (advice.choices and have["architecture"] == "same")
        if have["architecture"] == "transformer":
            assert "vam" not in names(advice)
        if have["goal"] == "better":
            assert not {"netgraft", *FREE} & set(names(advice))
        if "transformer" in have.values():
            assert not set(FREE) & set(names(advice))


def test_nothing_fits_exactly_when_it_says_what_is_missing():
    for have in SITUATIONS:
        advice = ask(**have)
        assert bool(advice.missing) == (not advice.choices)
        assert ("Nothing here can work" in advice.text()) == (not advice.choices)
        for refusal in advice.refused:
            assert refusal.reason.endswith(".") and len(refusal.reason) > 20


@pytest.mark.parametrize(
    ("have", "order"),
    [
        ({"data": "labelled"}, ["kd", "vam", "netgraft", "dery", "tfkd", "mda", "nes", *FREE]),
        ({"data": "labelled", "teacher": "predictions"}, ["kd", "vam", "tfkd", "nes"]),
        ({"data": "labelled", "teacher": "none"}, ["tfkd", "nes"]),
        ({"data": "labelled", "architecture": "transformer"}, ["kd", "netgraft", "dery", "tfkd"]),
        ({"data": "labelled", "goal": "part"}, ["mda"]),
        ({"data": "labelled", "goal": "part", "architecture": "transformer"}, []),
        ({"data": "unlabelled", "goal": "part"}, []),
        ({"data": "labelled", "goal": "join"}, ["mdaassembly", "dery"]),
        ({"data": "labelled", "goal": "mend"}, ["modeldoctor"]),
        ({"data": "unlabelled", "goal": "mend"}, []),
        ({"data": "labelled", "goal": "explain", "teacher": "predictions"}, ["kdexplainer"]),
        ({"data": "labelled", "goal": "explain", "architecture": "transformer"}, []),
        ({"data": "labelled", "goal": "join", "architecture": "transformer"}, ["dery"]),
        ({"data": "unlabelled", "goal": "extend", "teacher": "predictions"}, []),
        ({"data": "labelled", "architecture": "same", "goal": "better"}, ["tfkd", "kd", "vam"]),
        ({"data": "labelled", "goal": "better"}, ["kd", "vam", "tfkd"]),
        ({"data": "unlabelled", "teacher": "predictions"}, ["kd", "vam"]),
        ({"data": "unlabelled", "architecture": "same", "goal": "better"}, []),
        ({"data": "few"}, ["netgraft", "kd", *FREE]),
        ({"data": "few", "teacher": "features"}, ["kd"]),
        ({"data": "few", "goal": "better"}, []),
        ({"data": "unlabelled", "teacher": "none"}, []),
        ({"data": "none"}, FREE),
        ({"data": "none", "architecture": "conv"}, FREE),
        ({"data": "none", "architecture": "transformer"}, []),
        ({"data": "none", "teacher": "features"}, []),
        ({"data": "none", "goal": "better"}, []),
    ],
)
def test_ranking(have, order):
    assert names(ask(**have)) == order


def test_without_data_it_says_what_would_serve():
    missing = ask(data="none", architecture="transformer").missing
    assert "At least a few images" in missing and "any public images of the same kind" in missing
    assert "With a few images: netgraft, " not in missing and "With a few images: netgraft" in missing
    assert "teacher's predictions" in ask(data="unlabelled", teacher="none").missing
    assert "--goal better" in ask(data="labelled", architecture="same").missing
    missing = ask(data="none", teacher="predictions").missing
    assert f"With the teacher's weights: {', '.join(FREE)}." in missing and "At least a few images" not in missing


def test_without_data_a_student_is_made_from_the_teacher_alone():
    advice = ask(data="none")
    commands = [choice.command for choice in advice.choices]
    assert commands == [f"upcycle distill --teacher TEACHER --student STUDENT --method {name}" for name in FREE]
    assert all("must have BatchNorm layers" in choice.reason for choice in advice.choices)
    for name, part in zip(FREE, ("few steps a batch", "many times the synthesis", "a thousand steps", "the same pass"),
                          strict=True):  # fmt: skip
        assert part in next(choice.reason for choice in advice.choices if choice.method == name)
    refused = {r.method: r.reason for r in ask(data="none", architecture="transformer").refused}
    assert all("images of any kind would serve, with kd" in refused[name] for name in FREE)
    last = [choice for choice in ask(data="unlabelled").choices if choice.method in FREE]
    assert all("real images teach more" in choice.reason for choice in last) and len(last) == 4


def test_commands_name_options_that_exist():
    from upcycle.verbs import distill, extend

    classes = {m.card.name: m for m in EVERY if m.card.name in REAL}
    settings = {verb: {f.name for f in dataclasses.fields(kind)} | {"teacher", "student", "method", "zoo"}
                for verb, kind in (("distill", distill.Setting), ("extend", extend.Setting))}  # fmt: skip
    for have in SITUATIONS:
        for choice in ask(**have).choices:
            words = shlex.split(choice.command)
            verb = CARDS[choice.method].verb
            assert words[:2] == ["upcycle", verb]
            first = next(i for i, word in enumerate(words) if word.startswith("--"))
            options = dict(zip(words[first::2], words[first + 1 :: 2], strict=True))
            assert options["--method"] == choice.method and (verb != "distill" or "--student" in options)
            of_the_verb = settings.get(verb, settings["distill"])
            assert ("--stream" in options) == (verb == "extend")
            assert verb == "extend" or ("--data" in options) == (CARDS[choice.method].needs.data != "none")
            own = set(classes[choice.method].options()) if choice.method in classes else set()
            assert {o.removeprefix("--").split(".")[0] for o in options} <= of_the_verb | own
            needs_one = CARDS[choice.method].needs.teacher != "none"
            assert verb != "distill" or ("--teacher" in options) >= needs_one
            assert not ("--teacher" in options and have["teacher"] == "none")
            if have["data"] != "labelled":  # no command may count on labels that are not there
                assert options.get("--terms.w_ce", "0") == "0" and "--shots" not in options
            assert choice.command in ask(**have).text().replace("     ", "")


def test_every_command_parses():
    from upcycle.cli import arguments_of

    for command in {c.command for have in SITUATIONS for c in ask(**have).choices if c.method in REAL}:
        _, verb, *words = shlex.split(command)
        values, method = arguments_of(verb, words)
        assert f"--method {method.card.name}" in command
        if verb == "distill":
            assert values["student"] in ("STUDENT", "zoo:tree") and (values["teacher"] == "TEACHER") == (
                "--teacher" in command
            )


EXTEND = ("finetune", "joint", "er", "derpp", "coca", "vpr", "blip", "meat", "streaming", "oewc", "si", "lwf")
HERE = [name for name in EXTEND if name in REAL]


@pytest.mark.parametrize(
    ("have", "order", "never"),
    [
        ({}, ["derpp", "coca", "er", "vpr", "oewc", "si", "lwf", "joint", "finetune", "streaming"], ["blip", "meat"]),
        ({"task_id": "known", "architecture": "transformer"}, ["meat", "derpp", "oewc"], ["blip"]),
        ({"task_id": "known", "architecture": "conv"}, ["blip", "derpp", "oewc", "joint"], ["meat"]),
        ({"task_id": "known", "architecture": "transformer", "growth": "none"}, ["derpp"], ["blip", "meat"]),
        ({"task_id": "known", "architecture": "conv", "store": "nothing"}, ["blip", "oewc", "si", "lwf", "finetune"],
         ["er", "derpp", "coca", "vpr", "joint"]),
        ({"store": "nothing"}, ["oewc", "finetune"], ["er", "derpp", "coca", "vpr", "joint", "blip", "meat"]),
        ({"boundaries": "unknown"}, ["derpp", "coca", "er", "joint", "finetune"], ["vpr", "oewc", "si", "lwf", "blip"]),
        ({"data": "unlabelled"}, ["streaming"], ["er", "derpp", "finetune"]),
        ({"data": "few"}, ["vpr"], ["er", "derpp", "finetune"]),
    ],
)  # fmt: skip
def test_which_method_extends(have, order, never):
    advice = ask(**{"data": "labelled", "goal": "extend", **have})
    found = [name for name in names(advice) if name in order]
    assert found == [name for name in order if name in REAL] and not set(names(advice)) & set(never)
    assert set(names(advice)) <= set(HERE)  # no method of another verb, and none that does not exist
    assert all(("--scenario task" in c.command) == (have.get("task_id") == "known") for c in advice.choices)
    assert advice.have.startswith("You have") and "one task after another" in advice.have


def test_who_extends_is_asked_for_by_its_goal():
    refused = {r.method: r.reason for r in ask(data="labelled").refused}
    assert all("--goal extend" in refused[name] for name in HERE) and len(HERE) >= 4


def test_label_free_kd_is_asked_for_without_labels():
    (kd,) = (c for c in ask(data="unlabelled", teacher="predictions").choices if c.method == "kd")
    assert kd.command == "upcycle distill --teacher TEACHER --student STUDENT --data DATA --method kd --terms.w_ce 0"


@pytest.mark.parametrize(
    ("have", "nearest"),
    [
        ({"data": "labeled"}, "labelled"),
        ({"data": "few", "teacher": "weight"}, "weights"),
        ({"data": "few", "architecture": "convv"}, "conv"),
        ({"data": "few", "goal": "small"}, "smaller"),
        ({"data": "few", "goal": "extend", "task_id": "knwon"}, "known"),
        ({"data": "few", "goal": "extend", "store": "image"}, "images"),
        ({"data": "few", "goal": "extend", "growth": "alowed"}, "allowed"),
        ({"data": "few", "goal": "extend", "boundaries": "unknwon"}, "unknown"),
    ],
)
def test_unknown_values_are_named_with_the_nearest(have, nearest):
    with pytest.raises(UserError, match=f"Did you mean '{nearest}'"):
        ask(**have)


class Strange(Method):
    card = Card(
        name="strange",
        title="A | of its own",
        paper="Nobody 2026",
        verb="distill",
        needs=Needs(data="none", teacher="weights", architectures="any [bold]pair[/bold]"),
        summary="Makes a student from nothing.",
        cost="high",
        published="none",
    )


def test_a_method_of_ones_own_is_judged_by_its_card():
    advice = advise(data="none", methods=[Strange, *METHODS])
    assert "strange" in names(advice) and "--data" not in advice.choices[-1].command
    assert set(names(advice)) <= {"strange", *FREE}
    advice = advise(data="none", teacher="predictions", methods=[Strange])
    assert not advice.choices and "With the teacher's weights: strange." in advice.missing


def test_the_list_has_a_line_a_method_under_its_verb():
    lines = methods_list([*METHODS, Strange]).splitlines()
    for card in [*CARDS.values(), Strange.card]:
        (line,) = [line for line in lines if line.startswith(f"  {card.name} ")]
        above = [other for other in lines[: lines.index(line)] if other and other[0] != " "]
        assert card.summary in line and above[-1] == card.verb
    assert methods_list() == methods_list(METHODS)
