"""Words to type: the commands, what each is for, and what serves those who type another word for it."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

from upcycle.core.errors import UserError, unknown
from upcycle.core.synonyms import folded, same_name

SUMMARY = {
    "distill": "train a smaller or different student from a trained teacher",
    "disassemble": "cut the part that knows chosen classes out of a classifier",
    "assemble": "join the parts of several classifiers into one",
    "reassemble": "put a block into a network, or build one from blocks of several",
    "diagnose": "where a network errs, what it looks at, which channels decide",
    "explain": "which pixels of your images speak for a class",
    "adapt": "tune a network to a new task, or to a domain of which there are only answers",
    "extend": "teach a network one task after another, so that it does not forget the first ones",
    "treat": "mend a network's errors, beside plain further training",
    "blocks": "what can be put into a network where, with its cost; all about one",
    "methods": "what there is, with the verdict on each; all about one",
    "advise": "given what you have, which method, and the command to run",
    "prove": "run a method's published claim here and show both numbers",
    "evaluate": "measure a model on a data set",
    "compare": "a leaderboard over runs: accuracy with its spread, size, speed",
    "predict": "apply a saved model to a folder of images, to CSV",
    "report": "write report.html of a run again",
    "lineage": "draw the family tree of a saved model",
    "export": "write a model as ONNX or torch.export, both sides compared",
    "push": "send a saved model to the Hugging Face hub, with its card",
    "doctor": "what this installation can and cannot do",
    "completion": "a script with which bash or zsh completes these commands",
}

KINDS = {
    "Make a model": ("distill", "adapt", "extend", "treat", "disassemble", "assemble", "reassemble"),
    "Choose what to do": ("advise", "methods", "blocks", "prove"),
    "Look into a model": ("evaluate", "compare", "diagnose", "explain"),
    "Use and share it": ("predict", "export", "push", "report", "lineage"),
    "This installation": ("doctor", "completion"),
}
"""The commands by what they are for."""

EXAMPLES = {
    "distill": (
        (
            "upcycle distill --teacher zoo:digits_teacher --student zoo:convnet_small --data digits",
            "a network a twentieth of the size, from what comes with the package",
        ),
        (
            "upcycle distill --teacher timm:resnet50 --student timm:resnet18 --data photos --epochs 30 --out runs/out",
            "a smaller student for the images in photos/CLASS/",
        ),
    ),
    "disassemble": (
        ("upcycle disassemble zoo:digits_teacher --data digits --classes 3,5", "the part that tells 3 from 5"),
        ("upcycle disassemble runs/mine --data photos --classes cat,dog", "the part of a network of your own"),
    ),
    "assemble": (
        ("upcycle assemble runs/cats runs/dogs --data photos", "one classifier of two parts, measured on photos"),
        ("upcycle assemble runs/cats runs/dogs", "the same, without data"),
    ),
    "reassemble": (
        (
            "upcycle reassemble --zoo runs/first,runs/second --data photos --params 0.5M",
            "a new network of the blocks of two, within a budget",
        ),
        (
            "upcycle reassemble --source zoo:digits_teacher --method swap --block coord --at 'block*' --data digits",
            "the same network with a block put into it; upcycle blocks lists what there is",
        ),
    ),
    "diagnose": (
        ("upcycle diagnose zoo:digits_teacher --data digits", "its mistakes, heat maps and channels, as a report"),
        (
            "upcycle diagnose runs/mine --data photos --out runs/seen",
            "the same, of your own network on your own images",
        ),
    ),
    "explain": (
        ("upcycle explain runs/mine cat.jpg", "a heat map over one image"),
        ("upcycle explain runs/mine photos --methods gradcam,saliency --target cat", "what speaks for one class"),
    ),
    "adapt": (
        ("upcycle adapt timm:resnet18 --data photos --epochs 10", "a trained network for the classes in photos/CLASS/"),
        (
            "upcycle adapt http://localhost:8000/predict --student timm:resnet18 --data photos --method dine",
            "a network of your own from the answers of another",
        ),
    ),
    "extend": (
        ("upcycle extend zoo:convnet_small --stream splits:digits/5", "ten digits, two at a time"),
        ("upcycle extend runs/mine --stream folders:tasks --method er", "a task after another from tasks/TASK/CLASS/"),
    ),
    "treat": (
        ("upcycle treat runs/mine --data photos", "further training that looks at the right places"),
        ("upcycle treat runs/mine --data photos --method crt", "for classes that have few images"),
    ),
    "blocks": (
        ("upcycle blocks", "all blocks, with their cost"),
        ("upcycle blocks se --model timm:resnet18", "where a block fits into a network"),
    ),
    "methods": (
        ("upcycle methods --verb distill", "the methods of a command, with the verdict on each"),
        ("upcycle methods kd", "all about one"),
    ),
    "advise": (
        (
            "upcycle advise --model timm:resnet50 --data photos",
            "looks at both, and gives three commands that were tried, with a student and the time",
        ),
        ("upcycle advise --data none --goal smaller", "what serves without any images"),
    ),
    "prove": (
        ("upcycle prove kd --quick", "a miniature, which shows that the machinery runs"),
        ("upcycle prove kd --seeds 5", "measures the claim, beside the figure of the paper"),
    ),
    "evaluate": (
        ("upcycle evaluate runs/mine --data photos", "accuracy, by class too, calibration, size and speed"),
        ("upcycle evaluate timm:resnet18 --data photos --json", "the same, to be read by a program"),
    ),
    "compare": (
        ("upcycle compare runs/kd runs/features", "which of two runs is better, and at what cost"),
        ("upcycle compare runs --out leaderboard.html", "all runs in a folder, as a page with plots"),
    ),
    "predict": (
        ("upcycle predict runs/mine photos", "predictions.csv, with a line for each image"),
        ("upcycle predict runs/mine cat.jpg --out cat.csv", "of one image, to another file"),
    ),
    "report": (
        ("upcycle report runs/mine", "its report.html, from what the run left"),
        ("upcycle report runs/mine --json", "the path of the page, to be read by a program"),
    ),
    "lineage": (
        ("upcycle lineage runs/mine", "its parents and their licences"),
        ("upcycle lineage zoo:digits_teacher", "where a network of the zoo comes from"),
    ),
    "export": (
        ("upcycle export runs/mine net.onnx", "a file for deployment, compared with the network"),
        ("upcycle export runs/mine net.pt2 --format torch", "the same for torch.export"),
    ),
    "push": (
        ("upcycle push runs/mine ORG/NAME", "its weights, architecture, family tree and card, as one commit"),
        ("upcycle push runs/mine ORG/NAME --dry_run", "what would be sent"),
    ),
    "doctor": (
        ("upcycle doctor", "what is installed, what it allows, and which data sets and weights are here"),
        ("upcycle doctor --clear_cache", "and throw away the decoded images that are kept"),
    ),
    "completion": (
        ("upcycle completion bash > ~/.local/share/bash-completion/completions/upcycle", "for every bash from now on"),
        ("upcycle completion zsh > ~/.zfunc/_upcycle", "for zsh, where ~/.zfunc is a folder of $fpath"),
    ),
}
"""Two commands of each, with what they give."""

_TRAIN = "upcycle distill --student REFERENCE --data DATA --method plain trains a network on labels alone"
_SMALLER = "upcycle distill --teacher MODEL --student REFERENCE trains a smaller network from a trained one"
_TUNE = "upcycle adapt MODEL --data DATA tunes a trained network to a task of yours"
_JOIN = "upcycle assemble PART1 PART2 joins classifiers, and upcycle reassemble --zoo FOLDER builds one of their blocks"
_MEASURE = "upcycle evaluate MODEL --data DATA measures a network"
_LIST = "upcycle methods lists the methods, upcycle blocks the blocks, and upcycle doctor what is installed"
_ABOUT = "upcycle methods NAME says all about a method, and upcycle lineage MODEL where a model comes from"
_APPLY = "upcycle predict MODEL IMAGES applies a network to a folder of images"
_LOOK = "upcycle diagnose MODEL --data DATA shows what a network looks at, and upcycle explain MODEL IMAGES of yours"
_STREAM = "upcycle extend MODEL --stream splits:DATA/5 teaches a network one task after another"
_WRITE = "upcycle export MODEL FILE.onnx writes a network for deployment"
_WHICH = "upcycle advise --model MODEL --data DATA says which method serves you, and the command to run"

SERVES = {
    **dict.fromkeys(("train", "fit", "run"), f"{_TRAIN}; {_SMALLER}"),
    **dict.fromkeys(("kd", "distillation", "teach"), _SMALLER),
    **dict.fromkeys(("finetune", "fine_tune", "tune", "transfer", "lora"), _TUNE),
    **dict.fromkeys(("merge", "mergekit", "join", "ensemble", "fuse", "stitch"), _JOIN),
    **dict.fromkeys(("compress", "shrink"), _SMALLER),
    "prune": f"upcycle prunes no weights; {_SMALLER}",
    "quantize": f"upcycle quantises nothing; {_SMALLER}, and {_WRITE}",
    **dict.fromkeys(("eval", "test", "val", "validate", "benchmark", "score"), _MEASURE),
    **dict.fromkeys(("list", "ls", "models", "zoo"), _LIST),
    **dict.fromkeys(("info", "show", "describe"), _ABOUT),
    **dict.fromkeys(("leaderboard", "rank", "diff"), "upcycle compare RUN RUN says which run is better"),
    **dict.fromkeys(("infer", "inference", "classify"), _APPLY),
    **dict.fromkeys(("visualize", "visualise", "gradcam", "plot"), _LOOK),
    **dict.fromkeys(("continual", "incremental"), _STREAM),
    **dict.fromkeys(("convert", "onnx", "deploy"), _WRITE),
    **dict.fromkeys(("recommend", "choose", "which", "suggest"), _WHICH),
    **dict.fromkeys(("env", "check", "settings", "collect_env"), "upcycle doctor says what this installation can do"),
    **dict.fromkeys(("upload", "publish", "share", "hub"), "upcycle push RUN ORG/NAME sends a model to the hub"),
    "reproduce": "upcycle prove METHOD runs a method's published claim here",
    **dict.fromkeys(("completions", "autocomplete"), "upcycle completion bash prints what bash completes with"),
    "version": "upcycle --version says which one this is",
}
"""Words that people type for a command, and what serves them."""


TABLE = Path(__file__).parent / "options.json"
FILES = {  # options of the parser itself
    "--config FILE": "a YAML file with any of these options, such as the config.yaml of a run",
    "--print_config": "print the options as such a file, and stop",
    "--plugin FILE": "a Python file with methods of your own",
    "--debug": "show the traceback of an error",
}


@functools.cache
def table() -> dict[str, Any]:
    """All commands, options and methods, as :mod:`upcycle.described` made them of the signatures."""
    found: dict[str, Any] = json.loads(TABLE.read_text())
    return found


def command_named(word: str) -> str:
    """The command of a name, whatever its case.

    Raises:
        UserError: there is none, and what serves who typed the word.
    """
    if found := same_name(word, SUMMARY):
        return found
    if serves := SERVES.get(folded(word)):
        raise UserError(f"There is no command '{word}': {serves}.")
    raise unknown("command", word, SUMMARY)
