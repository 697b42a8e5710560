"""The command that a run records makes it again, for every verb: quoted for a shell, with what was typed."""

from __future__ import annotations

import contextlib
import dataclasses
import shlex
import shutil
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from tests.corpus import picture_folder
from tests.verbs.test_bad_input import here
from upcycle import cli
from upcycle.core import saved, store
from upcycle.core.errors import UserError
from upcycle.core.references import resolve
from upcycle.verbs import distill
from upcycle.verbs.methods import all_methods
from upcycle.verbs.options import command_line, default_of
from upcycle.verbs.session import Session

__all__ = ["here"]  # a fixture

BRIEF = ["--recipe.epochs=1", "--recipe.batch_size=64", "--quiet"]
SMALL = ["--blocks=2", "--probe=64", "--runs=5", "--candidates=4", "--score_batches=1"]


@pytest.fixture
def things(here: Path) -> Path:
    """A folder with a blank in its name: networks with classes like those of pictures, and these pictures."""
    folder = here / "my things"
    classes = ("a cat", "a dog", "3")
    picture_folder(folder / "pictures", classes, n=20)
    for i, name in enumerate(("zoo/first", "zoo/second")):
        torch.manual_seed(i)
        net = resolve("zoo:convnet_small", pretrained=False, num_classes=3, input_shape=(1, 8, 8), classes=classes)
        saved.save(net, folder / name)
    saved.save(resolve("zoo:digits_teacher"), folder / "a reader")
    save_file(net.module.state_dict(), folder / "weights.safetensors")
    (folder / "map.csv").write_text("teacher,student\na cat,a cat\na dog,a dog\n3,3\n")
    return folder


PICTURES, FIRST, READER = "my things/pictures", "my things/zoo/first", "my things/a reader"
COMMANDS = {
    "distill": [
        "--teacher=" + FIRST,
        "--student=zoo:convnet_small",
        "--data=" + PICTURES,
        "--augment=crop,flip",
        "--label_map=my things/map.csv",
        "--terms.w_kd=0.5",
        *BRIEF,
    ],
    "disassemble": [READER, "--data=digits", "--classes=3,5", "--samples=4", "--alpha=-1.0", "--quiet"],
    "assemble": [FIRST, "my things/digits", "--quiet"],
    "reassemble": ["--zoo=my things/zoo", "--data=" + PICTURES, *SMALL, *BRIEF],
    "treat": [READER, "--control=false", *BRIEF],
    "adapt": [FIRST, "--data=" + PICTURES, "--control=false", *BRIEF],
    "extend": ["zoo:convnet_small", "--stream=splits:digits/2,3,5", "--control=false", *BRIEF],
}


def test_every_verb_that_makes_a_model_is_here() -> None:
    assert COMMANDS.keys() == cli.MAKERS.keys()


@pytest.mark.parametrize("verb", COMMANDS)
def test_a_recorded_command_makes_the_run_again(verb: str, things: Path) -> None:
    if verb == "assemble":
        saved.save(
            resolve("zoo:convnet_small", pretrained=False, input_shape=(1, 8, 8), classes=tuple("mnopqrstuv")),
            things / "digits",
        )
    assert cli.main([verb, *COMMANDS[verb], "--out=run"]) == 0
    command = store.read_json(Path("run/result.json"))["command"]
    program, *words = shlex.split(command)
    assert (program, words[0]) == ("upcycle", verb) and "None" not in command and "assembly:" not in command
    assert cli.main([*words, "--out=again", "--quiet"]) == 0
    first, second = (store.digest_of((Path(run) / "model" / saved.WEIGHTS).read_bytes()) for run in ("run", "again"))
    assert first == second
    assert store.read_json(Path("again/result.json"))["command"].replace("again", "run") == command


def test_a_recorded_look_makes_it_again(things: Path) -> None:
    words = ["diagnose", READER, "--data=digits", "--images=2", "--methods=gradcam", "--samples=5", "--out=seen"]
    assert cli.main(words) == 0
    _, *again = shlex.split(store.read_json(Path("seen/result.json"))["command"])
    assert cli.main([*again, "--out=again"]) == 0
    one, two = (store.read_json(Path(place) / "diagnosis.json") for place in ("seen", "again"))
    assert one == two and again[1] == READER
    own = ["nets:net", PICTURES + "/a cat", "--weights=my things/net.pt", "--size=1,8,8", "--classes=a cat,a dog,3"]
    net = resolve("nets:net", num_classes=3, input_shape=(1, 8, 8)).module
    torch.save(net.state_dict(), things / "net.pt")
    for words in ([FIRST, PICTURES + "/a cat"], own):
        assert cli.main(["explain", *words, "--methods=gradcam,saliency", "--target=a dog", "--out=why"]) == 0
        _, *again = shlex.split(store.read_json(Path("why/result.json"))["command"])
        assert cli.main([*again, "--out=whence"]) == 0
        assert again[1] == words[0] and _files("why") == _files("whence")
        for place in ("why", "whence"):
            shutil.rmtree(place)


def _files(place: str) -> dict[str, bytes]:
    """The table and the maps of an explanation."""
    found = [Path(place) / "explained.csv", *Path(place).glob("maps/*/*.png")]
    return {str(file.relative_to(place)): file.read_bytes() for file in found}


def test_a_command_names_the_run_that_was_looked_into(things: Path) -> None:
    """And not the reference that its product is rebuilt by, which is no model by itself."""
    assert cli.main(["disassemble", READER, "--data=digits", "--classes=3,5,8", "--samples=4", "--out=part"]) == 0
    assert store.read_json(Path("part/model/architecture.json"))["reference"].startswith("assembly:")
    words = ["diagnose", "part", "--data=digits", "--images=1", "--methods=saliency", "--samples=2", "--out=seen"]
    assert cli.main(words) == 0
    command = store.read_json(Path("seen/result.json"))["command"]
    assert shlex.split(command)[:3] == ["upcycle", "diagnose", "part"] and "assembly:" not in command
    assert cli.main([*shlex.split(command)[1:], "--out=again"]) == 0
    assert cli.main(["treat", "part", "--data=digits", "--out=treated", *BRIEF]) == 0
    assert shlex.split(store.read_json(Path("treated/result.json"))["command"])[2] == "part"


def test_every_verb_that_leaves_a_command_is_here() -> None:
    """Give what records one is what writes a result: the verbs that make a model, diagnose and explain."""
    import upcycle.verbs

    files = Path(upcycle.verbs.__file__).parent.glob("*.py")
    writing = {file.stem for file in files if "result.json" in file.read_text() and file.stem in cli.SUMMARY}
    assert writing - cli.MAKERS.keys() == {"diagnose", "explain", "report"}  # the last only reads it


# -- options of every method --------------------------------------------------------------------------------------


def changed(value: Any) -> Any:
    """Another value of the same type, where one is easily found."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        for f in dataclasses.fields(value):
            with contextlib.suppress(UserError):
                value = dataclasses.replace(value, **{f.name: changed(getattr(value, f.name))})
        return value
    if isinstance(value, bool):
        return not value
    if isinstance(value, int):
        return value + 1
    return value / 4 if isinstance(value, float) else value


@pytest.mark.parametrize("cls", all_methods(), ids=lambda cls: cls.card.name)
def test_the_options_of_a_method_are_read_back_from_its_command(cls: Any, here: Path) -> None:
    verb = cls.card.verb
    maker = cli.MAKERS[verb]
    networks = {
        key.removeprefix("--"): ["a b", "runs/c'd"] if number == "*" else "my things/net"
        for key, (_, number, _) in maker.networks.items()
    }
    called = "stream" if verb == "extend" else "data"
    positional = tuple(key for key in maker.networks if not key.startswith("--"))

    def session(data: Any, options: dict[str, Any]) -> Session:
        kind = import_module(maker.module).Setting
        return Session(verb, cls, networks, data, print, options, kind=kind, called=called, positional=positional)

    given = {key: changed(default_of(cls, key)) for key in cls.options()}
    first = session("my things/pictures", {**given, "seed": 3, "quiet": True, "out": "my runs/it's"})
    program, *words = shlex.split(first.command())
    values, found = cli.arguments_of(words[0], words[1:])
    assert (program, words[0], found) == ("upcycle", verb, cls)
    assert {key: values.pop(key) for key in networks} == networks
    del values["method"]
    assert session(values.pop(called), values).config() == first.config()


# -- words --------------------------------------------------------------------------------------------------------


def test_lists_are_read_as_they_were_written() -> None:
    for classes in (("a b", "c,d"), ("3", "5"), ("null",), ("true", "no")):
        words = shlex.split(command_line("disassemble", {"classes": list(classes)}, (), lambda key: ()))[2:]
        values, _ = cli.arguments_of("disassemble", ["zoo:digits_teacher", *words])
        assert values["classes"] == classes
    words = shlex.split(command_line("distill", {"teacher_mean": [-0.5, 1.0]}, (), lambda key: None))[2:]
    values, _ = cli.arguments_of("distill", ["--student=zoo:convnet_small", *words])
    assert values["teacher_mean"] == (-0.5, 1.0)


def test_a_method_of_ones_own_is_recorded_where_it_stands(here: Path) -> None:
    from tests.settings import EvenAndOdd
    from upcycle.verbs.methods import name_of

    assert name_of(EvenAndOdd) == "tests.settings:EvenAndOdd"
    assert name_of(distill.find_method("kd", "distill")) == "kd"
