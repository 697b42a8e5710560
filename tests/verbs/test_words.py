"""The words that people who come from other libraries type first: each works, or is answered by what serves."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

import upcycle
from tests.verbs.test_bad_input import here
from tests.verbs.test_remedies import accepted
from upcycle import cli
from upcycle.commands import SERVES, SUMMARY
from upcycle.core import references
from upcycle.core.errors import UserError
from upcycle.core.synonyms import MEANT, meant
from upcycle.data.sources import check_reference, spelled
from upcycle.verbs.methods import find_method

__all__ = ["here"]  # a fixture

DISTILL = ["--teacher=zoo:digits_teacher", "--student=zoo:convnet_small"]

WORK = {  # what is typed of distill's options, and the value that it sets
    "--epochs 3": ("epochs", 3),
    "--epochs=3": ("epochs", 3),
    "--Epochs 3": ("epochs", 3),
    "--lr 0.3": ("lr", 0.3),
    "--batch_size 64": ("batch_size", 64),
    "--batch-size 64": ("batch_size", 64),
    "--batch-size=64": ("batch_size", 64),
    "--momentum 0.5": ("momentum", 0.5),
    "--weight-decay 0": ("weight_decay", 0.0),
    "--optimizer adamw": ("optimizer", "adamw"),
    "--milestones 2,3": ("milestones", (2, 3)),
    "--local": ("local", True),
    "--recipe.lr 0.3": ("lr", 0.3),
}
MEAN = {  # what is typed of distill's options, and what is suggested
    "--learning-rate": "--recipe.lr",
    "--learning_rate": "--recipe.lr",
    "--num_epochs": "--recipe.epochs",
    "--num-train-epochs": "--recipe.epochs",
    "--epoch": "--recipe.epochs",
    "--bs": "--recipe.batch_size",
    "--wd": "--recipe.weight_decay",
    "--scheduler": "--recipe.schedule",
    "--temperature": "--terms.temperature",
    "--T": "--terms.temperature",
    "--alpha": "--terms.w_kd",
    "--dataset": "--data",
    "--data-dir": "--data",
    "--output_dir": "--out",
    "-o": None,  # no option at all, which the parser says
    "--device": "--accelerator",
    "--gpus": "--devices",
    "--fp16": "--precision",
    "--random-seed": "--seed",
    "--imgsz": "--size",
    "--pretrained": "--teacher_weights",
    "--checkpoint": "--teacher_weights",
    "--model": "--student",
    "--trust-remote-code": "--trust",
    "--techer": "--teacher",
    "--qiet": "--quiet",
}
COMMANDS = {  # what is typed for a command, and a part of the one sentence that answers it
    "train": "upcycle distill --student REFERENCE --data DATA --method plain",
    "fit": "upcycle distill",
    "finetune": "upcycle adapt MODEL --data DATA",
    "fine-tune": "upcycle adapt MODEL --data DATA",
    "merge": "upcycle assemble PART1 PART2",
    "ensemble": "upcycle assemble PART1 PART2",
    "prune": "upcycle distill --teacher MODEL --student REFERENCE",
    "compress": "upcycle distill --teacher MODEL --student REFERENCE",
    "quantize": "upcycle export MODEL FILE.onnx",
    "list": "upcycle methods lists the methods",
    "info": "upcycle methods NAME",
    "eval": "upcycle evaluate MODEL",
    "infer": "upcycle predict MODEL IMAGES",
    "convert": "upcycle export MODEL FILE.onnx",
    "visualize": "upcycle diagnose MODEL",
    "distil": "Did you mean 'distill'?",
    "evalute": "Did you mean 'evaluate'?",
}


def test_the_tables_hold_at_least_forty_words() -> None:
    assert len({*WORK, *MEAN, *COMMANDS}) >= 40


def field_of(typed: str) -> str:
    return WORK[typed][0]


@pytest.mark.parametrize("typed", WORK)
def test_a_field_of_the_recipe_stands_alone(typed: str) -> None:
    more = ["--recipe.sharpness=esam"] if field_of(typed) == "local" else []
    values, _ = cli.arguments_of("distill", [*DISTILL, *typed.split(), *more])
    field, value = WORK[typed]
    assert getattr(values["recipe"], field) == value


def test_it_is_recorded_under_its_one_name(here: Path) -> None:
    assert cli.main(["distill", *DISTILL, "--Epochs=1", "--batch-size", "500", "--quiet", "--out=run"]) == 0
    config = yaml.safe_load(Path("run/config.yaml").read_text())
    assert config["recipe"]["epochs"] == 1 and config["recipe"]["batch_size"] == 500
    assert not {"epochs", "batch_size"} & config.keys()


def test_an_option_of_the_method_comes_first() -> None:
    values, _ = cli.arguments_of("adapt", ["zoo:digits_teacher", "--data=digits", "--method=iso", "--lr=0.003"])
    assert values["lr"] == 0.003


def test_a_method_without_a_recipe_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["disassemble", "zoo:digits_teacher", "--data=digits", "--classes=1,2", "--epochs=3"]) == 2
    assert "mda" in (said := capsys.readouterr().err) and "recipe" in said


@pytest.mark.parametrize("typed", MEAN)
def test_an_option_is_suggested_by_what_it_means(typed: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["distill", *DISTILL, typed, "1"]) == 2
    said, wanted = capsys.readouterr().err, MEAN[typed]
    assert said.count("\n") == 1
    assert wanted is None or f"Did you mean '{wanted}'?" in said


@pytest.mark.parametrize("typed", COMMANDS)
def test_a_command_is_answered_by_what_serves(typed: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([typed, "anything"]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and f"There is no command '{typed}'" in said and COMMANDS[typed] in said


def test_what_answers_names_commands_and_options_that_there_are() -> None:
    for serves in SERVES.values():
        for after in serves.split("upcycle ")[1:]:
            verb, *words = re.split(r"[ ;,]+", after)
            if verb not in ("--version", "prunes", "quantises"):
                assert verb in SUMMARY and {w[2:] for w in words if w.startswith("--")} <= accepted(verb), serves
    assert not SERVES.keys() & SUMMARY.keys()


def test_every_synonym_means_an_option_or_a_name_that_there_is() -> None:
    from upcycle.data.sources import NAMES
    from upcycle.verbs.methods import all_methods

    known = {*NAMES, *(method.card.name for method in all_methods())}
    for verb in cli.MAKERS:
        known |= {name.removeprefix("--") for name in cli.MAKERS[verb].networks}
    for method in all_methods():
        known |= {"method", *cli.parser_of(method.card.verb, method)[1]}
    for verb in SUMMARY.keys() - cli.MAKERS.keys():
        known |= {name for kind in cli.options_for(verb) for name in kind.__dataclass_fields__}
    wanted = {target for targets in MEANT.values() for target in targets}
    assert wanted <= known, wanted - known
    assert meant("lr", ["trust"]) is None


def test_names_are_known_in_any_case(here: Path) -> None:
    assert find_method("KD", "distill").card.name == "kd" and find_method("TfKD", "distill").card.name == "tfkd"
    assert references.resolve("Zoo:ConvNet-Small", pretrained=False).reference == "zoo:convnet_small"
    references.check_reference("timm:ResNet18")
    references.check_reference("torchvision:ResNet18")
    assert references.spelled("timm:ResNet18") == "timm:resnet18"
    assert (spelled("Digits"), spelled("Fashion-MNIST"), spelled("CORA")) == ("digits", "fashion_mnist", "cora")
    check_reference("DIGITS")
    with pytest.raises(UserError, match="Did you mean zoo:convnet_small"):
        references.check_reference("ConvNet_Small")
    Path("MNIST").mkdir()
    assert spelled("MNIST") == "MNIST"  # a folder of that name comes first


def test_a_run_records_the_one_name(here: Path) -> None:
    words = ["Distill", "--teacher=ZOO:Digits_Teacher", "--student=zoo:ConvNet_Small", "--data=Digits", "--method=KD"]
    assert cli.main([*words, "--epochs=1", "--batch_size=500", "--quiet", "--out=run"]) == 0
    config = yaml.safe_load(Path("run/config.yaml").read_text())
    found = [config[name] for name in ("teacher", "student", "data", "method")]
    assert found == ["zoo:digits_teacher", "zoo:convnet_small", "digits", "kd"]


def test_a_python_caller_is_told_where_a_field_of_the_recipe_goes() -> None:
    with pytest.raises(UserError, match=r"write recipe=\{'epochs': 3\}"):
        upcycle.distill(teacher="zoo:digits_teacher", student="zoo:convnet_small", epochs=3)


def test_version_and_module(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["-V"]) == 0 and cli.main(["--version"]) == 0
    assert capsys.readouterr().out == 2 * f"upcycle {upcycle.__version__}\n"
    done = subprocess.run([sys.executable, "-m", "upcycle", "-V"], capture_output=True, text=True, check=True)
    assert done.stdout == f"upcycle {upcycle.__version__}\n"
