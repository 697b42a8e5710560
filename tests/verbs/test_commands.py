"""The command that a run records makes it again, for every verb: quoted for a shell, with what was typed."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from tests.corpus import picture_folder
from tests.verbs.test_bad_input import here
from upcycle import cli
from upcycle.core import saved, store
from upcycle.core.references import resolve
from upcycle.verbs import distill
from upcycle.verbs.options import command_line

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
    assert cli.main(["explain", FIRST, PICTURES + "/a cat", "--methods=gradcam", "--out=why"]) == 0
    _, *again = shlex.split(store.read_json(Path("why/result.json"))["command"])
    assert cli.main([*again, "--out=whence"]) == 0
    assert Path("why/explained.csv").read_text() == Path("whence/explained.csv").read_text() and again[1] == FIRST


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
