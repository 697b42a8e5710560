import dataclasses
import itertools
import shlex
from typing import get_args

import pytest

from upcycle.claims.found import Found
from upcycle.core.advice import ACCESS_LEVELS, DATA_LEVELS, Architecture, Fit, Goal, Situation
from upcycle.core.errors import UserError
from upcycle.core.method import Card, Method, Needs
from upcycle.verbs.advise import Advice, advise
from upcycle.verbs.methods import all_methods, methods_list

METHODS = all_methods()


def _stub(name: str) -> type[Method]:
    """A method of this name that makes its own images, known by its card alone."""
    card = Card(name=name, title=name, paper="", verb="distill", needs=Needs(data="none", teacher="weights"),
                summary="A student from nothing.", cost="high", published="none")  # fmt: skip
    return type(name, (Method,), {"card": card})


REPAIRS = ["logitadjust", "tau", "ncm", "crt", "lws", "bags", "simcal"]
FREE = ["fastdfkd", "cmi", "deepinversion", "onestagegan"]
REAL = {m.card.name: m for m in METHODS}
EVERY = (*METHODS, *(_stub(name) for name in FREE if name not in REAL))
CARDS = {m.card.name: m.card for m in EVERY}
EXTENDING = [
    Situation(data="labelled", goal="extend", architecture=architecture, task_id="known")
    for architecture in ("conv", "transformer")
] + [Situation(data="labelled", goal="domain", source="labelled")]
SITUATIONS = [
    dict(zip(("data", "teacher", "architecture", "goal"), values, strict=True))
    for values in itertools.product(DATA_LEVELS, ACCESS_LEVELS, get_args(Architecture), get_args(Goal))
]


@pytest.fixture(autouse=True)
def verdicts(monkeypatch) -> dict[str, Found]:
    """Give what was found, for a test to fill: the committed figures change and the places that methods take do not."""
    found: dict[str, Found] = {}
    monkeypatch.setattr("upcycle.verbs.advise.found", lambda: found)
    return found


def verdict(word: str, gain: float, low: float, high: float) -> Found:
    return Found(
        verdict=word,
        says="it over plain training",
        gain=gain,
        interval=[low, high],
        unit="points",
        seeds=5,
        claim="kd",
        date="2026-11-30",
        commit="0",
    )


def ask(**have) -> Advice:
    return advise(**have, all=True, methods=EVERY)


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
            # The exceptions say so: kd is weak on a few images, those that learn from labels can take a few, and what
            # is joined needs none.
            said = {"kd": "weak", "mdaassembly": "networks with one sequence of layers"}
            fewer = choice.reason.startswith(said.get(choice.method, "if your few images have labels"))
            assert enough or (fewer and have["data"] in REAL[choice.method].runs_on), have
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
        (
            {"data": "labelled"},
            ["kd", "features", "vam", "netgraft", "dery", "tfkd", "mda", "nes", "tinymim", *FREE, "plain"],
        ),
        ({"data": "labelled", "teacher": "predictions"}, ["kd", "dine", "vam", "tfkd", "nes", "plain"]),
        ({"data": "labelled", "teacher": "none"}, ["tfkd", "nes", "plain"]),
        (
            {"data": "labelled", "architecture": "transformer"},
            ["kd", "features", "tinymim", "netgraft", "dery", "tfkd", "bootstrapvit", "swap", "plain"],
        ),
        (
            {"data": "labelled", "architecture": "transformer", "teacher": "none"},
            ["bootstrapvit", "tfkd", "plain"],
        ),
        ({"data": "labelled", "goal": "part"}, ["mda"]),
        ({"data": "labelled", "goal": "part", "architecture": "transformer"}, []),
        ({"data": "unlabelled", "goal": "part"}, []),
        ({"data": "labelled", "goal": "join"}, ["mdaassembly", "dery"]),
        ({"data": "labelled", "goal": "mend"}, ["modeldoctor", *REPAIRS]),
        ({"data": "unlabelled", "goal": "mend"}, []),
        ({"data": "labelled", "goal": "explain", "teacher": "predictions"}, ["kdexplainer"]),
        ({"data": "labelled", "goal": "explain", "architecture": "transformer"}, []),
        ({"data": "labelled", "goal": "spikes"}, ["ltl"]),
        ({"data": "labelled", "goal": "spikes", "architecture": "transformer"}, []),
        ({"data": "labelled", "goal": "spikes", "teacher": "predictions"}, []),
        ({"data": "labelled", "goal": "join", "architecture": "transformer"}, ["dery"]),
        ({"data": "labelled", "architecture": "same", "goal": "better"}, ["tfkd", "kd", "features", "vam", "plain"]),
        ({"data": "labelled", "goal": "better"}, ["kd", "features", "vam", "tfkd", "swap", "plain"]),
        ({"data": "labelled", "goal": "task"}, ["ssf", "lora", "ia3", "probe"]),
        ({"data": "unlabelled", "goal": "task"}, []),
        ({"data": "unlabelled", "goal": "domain"}, ["dine", "beta"]),
        ({"data": "unlabelled", "goal": "domain", "present": "some", "source": "labelled"}, ["ba3us", "dine", "iso"]),
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


TEN = {
    "a smaller network, all at hand": ({"data": "labelled"}, "kd"),
    "a smaller network from a few images": ({"data": "few"}, "netgraft"),
    "a smaller network from a teacher alone": ({"data": "none"}, "fastdfkd"),
    "a network for some of its classes": ({"data": "labelled", "goal": "part"}, "mda"),
    "two classifiers joined without images": ({"data": "none", "goal": "join"}, "mdaassembly"),
    "another task, many labels": ({"data": "labelled", "goal": "task"}, "ssf"),
    "another task, a few labelled images": ({"data": "few", "goal": "task"}, "probe"),
    "answers alone and images without labels": ({"data": "unlabelled", "teacher": "predictions"}, "dine"),
    "new classes, and nothing is left of the old": (
        {"data": "labelled", "goal": "extend", "store": "nothing"},
        "simplecil",
    ),
    "new classes, and some old images": ({"data": "labelled", "goal": "extend"}, "derpp"),
}


@pytest.mark.parametrize("name", TEN)
def test_ten_situations(name):
    have, first = TEN[name]
    advice = ask(**have)
    assert names(advice)[0] == first
    assert f"--method {first}" in advice.choices[0].command and not advice.missing


def test_joining_without_images_is_a_command_without_data():
    for data in ("none", "few", "unlabelled"):
        (choice,) = ask(data=data, goal="join").choices
        assert choice.command == "upcycle assemble PART1 PART2 --method mdaassembly"
        assert "nothing is measured" in choice.reason
    first = ask(data="labelled", goal="join").choices[0]
    assert "--data DATA" in first.command and "nothing is measured" not in first.reason


def test_a_few_labels_determine_a_classifier_first():
    for goal in ("task", "domain"):
        advice = ask(data="few", goal=goal)
        assert names(advice) == ["probe", "ssf", "lora", "ia3"]
        assert all(choice.reason.startswith("if your few images have labels: ") for choice in advice.choices)
    refused = {r.method: r.reason for r in ask(data="unlabelled", goal="task").refused}
    assert "labels (a few serve too), and you have many images without labels" in refused["probe"]


def test_answers_alone_lead_to_dine_whatever_the_goal():
    for goal in get_args(Goal):
        first = ask(data="unlabelled", teacher="predictions", goal=goal).choices[0]
        assert first.method == "dine" and "adapt MODEL --student STUDENT --data DATA" in first.command
        step = "ask again then with --teacher weights" in first.reason
        assert step == (goal not in ("smaller", "better", "domain"))
    assert "dine" not in names(ask(data="unlabelled"))  # with the weights at hand kd asks for less


def test_without_old_images_class_means_come_first_where_tasks_are_not_told():
    have = {"goal": "extend", "store": "nothing"}
    assert names(ask(data="labelled", **have))[:2] == ["simplecil", "oewc"]
    assert names(ask(data="labelled", **have, boundaries="unknown"))[0] == "simplecil"
    assert names(ask(data="few", **have)) == ["simplecil"]
    told = names(ask(data="labelled", **have, task_id="known", architecture="conv"))
    assert told.index("blip") < told.index("simplecil") < told.index("oewc")


def test_what_did_harm_is_not_first_where_another_serves(verdicts):
    verdicts["tfkd"] = verdict("harms", -1.1, -1.9, -0.3)
    verdicts["modeldoctor"] = verdict("harms", -1.6, -2.2, -1.1)
    assert names(ask(data="labelled", architecture="same", goal="better")) == ["kd", "tfkd", "features", "vam", "plain"]
    assert names(ask(data="labelled", teacher="none")) == ["nes", "tfkd", "plain"]
    assert names(ask(data="labelled")).index("tfkd") == 5  # its own place, as another is first anyway
    first, second = ask(data="labelled", goal="mend").choices[:2]
    assert (first.method, second.method) == ("logitadjust", "modeldoctor")
    assert second.verdict == "harms: -1.6 points (-2.2 to -1.1, 5 seeds), it over plain training"


def test_a_choice_shows_its_verdict_and_one_without_shows_none(verdicts):
    verdicts["kd"] = verdict("works", 5.44, 5.31, 5.48)
    first, second = ask(data="labelled").choices[:2]
    assert first.verdict == "works: +5.4 points (+5.3 to +5.5, 5 seeds), it over plain training"
    assert not second.verdict
    text = ask(data="labelled").text()
    assert f"     {first.verdict}\n     upcycle distill" in text and text.count("seeds") == 1


@pytest.mark.parametrize("method", METHODS, ids=lambda m: m.card.name)
def test_every_method_of_the_package_speaks_for_itself(method):
    assert "serves" in vars(method)
    situations = [Situation(**have) for have in SITUATIONS]
    said = [method.serves(have) for have in situations]
    assert any(isinstance(answer, Fit) for answer in [*said, *(method.serves(have) for have in EXTENDING)])
    for answer in said:
        if isinstance(answer, str):
            assert answer.endswith(".") and "\n" not in answer


def test_a_method_that_says_nothing_is_placed_by_its_card_for_the_goals_of_its_verb():
    plain = type("Plain", (Strange,), {"card": dataclasses.replace(Strange.card, name="plain", verb="adapt")})
    for goal in get_args(Goal):
        advice = advise(data="none", goal=goal, methods=[plain])
        assert (names(advice) == ["plain"]) == (goal in ("task", "domain")), goal


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
    settings = {verb: {f.name for f in dataclasses.fields(kind)} | {"teacher", "student", "method", "zoo", "source"}
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
            images = CARDS[choice.method].needs.data != "none" and have["data"] != "none"
            images &= verb != "assemble" or have["data"] == "labelled"  # it joins without them, and scales with labels
            assert verb == "extend" or ("--data" in options) == images
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
            assert values["student"] in ("STUDENT", "zoo:tree", "zoo:spiking") and (values["teacher"] == "TEACHER") == (
                "--teacher" in command
            )


EXTEND = (
    *("finetune", "joint", "er", "derpp", "coca", "vpr", "blip", "meat", "streaming", "oewc", "si", "lwf"),
    "simplecil",
)
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
        ({"data": "few"}, ["simplecil", "vpr"], ["er", "derpp", "finetune"]),
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


@pytest.mark.parametrize(
    ("have", "order"),
    [
        ({"data": "none"}, ["gfkd"]),
        ({"data": "unlabelled"}, ["kd", "gfkd"]),
        ({"data": "labelled"}, ["kd", "reliant", "gfkd", "plain", "factorgcn"]),
        ({"data": "labelled", "teacher": "none"}, ["plain", "factorgcn"]),
        ({"data": "labelled", "goal": "explain"}, ["factorgcn", "spagan"]),
    ],
)
def test_graphs_have_methods_of_their_own(have, order):
    advice = ask(**have, inputs="graphs")
    assert names(advice) == order
    assert {r.method for r in advice.refused} >= {"cmi", "fastdfkd", "vam"}
    assert not {"gfkd", "reliant"} & set(names(ask(**have)))
