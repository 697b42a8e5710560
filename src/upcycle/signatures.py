"""Where the options of each command come from: the functions of the verbs, and their settings."""

from __future__ import annotations

import dataclasses
import importlib
import inspect
from typing import Any

from upcycle.arguments import arguments_as, options_of


@dataclasses.dataclass(frozen=True)
class Maker:
    """A verb that makes a model with a method: where it lives and what networks it takes.

    Args:
        module: the home of the verb's function and its ``Setting``.
        networks: option or positional argument -> its type, how many words it takes, and its help.
        example: the complaint when a network is missing, which says what to write.
        optional: networks that some methods do without; the verb itself looks whether its method does.
    """

    module: str
    networks: dict[str, tuple[Any, str | None, str]]
    example: str
    optional: tuple[str, ...] = ()


MAKERS = {
    "distill": Maker(
        "upcycle.verbs.distill",
        {
            "--teacher": (str | None, None, "reference of the trained network"),
            "--student": (str | None, None, "reference of the network to train"),
        },
        "distill needs a student: give --student REFERENCE, for example zoo:convnet_small.",
        optional=("--teacher",),
    ),
    "disassemble": Maker(
        "upcycle.verbs.disassemble",
        {"model": (str, "?", "reference of a trained classifier")},
        "disassemble needs a classifier: upcycle disassemble MODEL --classes A,B.",
    ),
    "assemble": Maker(
        "upcycle.verbs.assemble",
        {"parts": (str, "*", "references of two classifiers or more")},
        "assemble needs two parts or more: upcycle assemble PART1 PART2.",
    ),
    "reassemble": Maker(
        "upcycle.verbs.reassemble",
        {
            "--zoo": (str | None, None, "references with commas between them, or a folder of saved models"),
            "--source": (str | None, None, "reference of the one network that swap takes"),
        },
        "reassemble needs networks: give --zoo DIR, --zoo REFERENCE,REFERENCE, or --source REFERENCE.",
        optional=("--zoo", "--source"),
    ),
    "adapt": Maker(
        "upcycle.verbs.adapt",
        {
            "model": (str, "*", "reference of a trained network; or whom to ask: http://..., FILE.onnx, references"),
            "--student": (str | None, None, "reference of the network to train, where a method trains one"),
        },
        "adapt needs a network: upcycle adapt MODEL --data DATA, or --student REFERENCE.",
        optional=("model", "--student"),
    ),
    "extend": Maker(
        "upcycle.verbs.extend",
        {"model": (str, "?", "reference of a network, trained or not; or the directory of an earlier extend")},
        "extend needs a network: upcycle extend MODEL --stream splits:DATA/5.",
    ),
    "treat": Maker(
        "upcycle.verbs.treat",
        {"model": (str, "?", "reference of a trained classifier")},
        "treat needs a classifier: upcycle treat MODEL --data DATA.",
    ),
}


def function_of(verb: str) -> tuple[Any, str]:
    """The module and the name of the function whose arguments are the options of a command that makes no model."""
    module = importlib.import_module(f"upcycle.verbs.{verb}")
    names = ("command", "explain_images", verb)  # the first is a command's own, where Python has no such function
    return module, next(name for name in names if hasattr(module, name))


def options_for(verb: str) -> list[type]:
    """The options of a command that makes no model, as dataclasses: its own, and those that name its network."""
    module, name = function_of(verb)
    function = getattr(module, name)
    groups = [arguments_as(function)]
    if any(p.kind is p.VAR_KEYWORD for p in inspect.signature(function).parameters.values()):
        from upcycle.verbs.naming import Naming

        groups.append(options_of(Naming))
    return groups


NAMED = ("methods", "blocks")
"""The commands that list things, or show one that is named."""
SEVERAL = {"compare": "runs"}
"""The commands that take several things, and what these are called."""
