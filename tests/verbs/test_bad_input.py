"""A mistake is one sentence, exit code 2, at once, and nothing half-written; bad data and files are named."""

from __future__ import annotations

import errno
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import nn

import upcycle
from tests import corpus
from upcycle import cli
from upcycle.core import references, saved, store
from upcycle.core.errors import UserError
from upcycle.verbs import distill

DISTILL = ["distill", "--teacher=zoo:digits_teacher", "--student=zoo:convnet_small", "--data=digits"]
TREAT = ["treat", "zoo:digits_teacher", "--data=digits"]
SHORT = ["--recipe.epochs=1", "--quiet"]
NETS = """
import torch
from torch import nn

def net(num_classes=10, channels=1, width=4):
    return nn.Sequential(nn.Conv2d(channels, width, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
                         nn.Linear(width, num_classes))

def seven():
    return net(7)

def colour():
    return net(channels=3)

def mlp(num_classes=10):
    return nn.Sequential(nn.Flatten(), nn.Linear(64, num_classes))
"""


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty current directory with a module ``nets`` in it."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "nets.py").write_text(NETS)
    monkeypatch.delitem(sys.modules, "nets", raising=False)
    return tmp_path


Refused = Callable[..., str]


@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str]) -> Refused:
    """Run a command that must be refused; returns its one line. What was there stays, nothing is added."""

    def check(words: list[str], *parts: str, out: str = "run") -> str:
        before = _tree(Path.cwd())
        if words[0] == "distill" and not any(w.startswith(("--out", "--config")) for w in words):
            words = [*words, f"--out={out}"]
        capsys.readouterr()
        assert cli.main(words) == 2, words
        said = capsys.readouterr().err
        assert said.startswith("upcycle: ") and said.count("\n") == 1 and len(said) < 1100, said
        assert "Traceback" not in said and "Error(" not in said, said
        for part in parts:
            assert part in said, said
        assert _tree(Path.cwd()) == before
        return said

    return check


def _tree(folder: Path) -> dict[str, bytes]:
    return {
        str(p): p.read_bytes() if p.is_file() else b"folder"
        for p in sorted(folder.rglob("*"))
        if "__pycache__" not in p.parts
    }


# -- options ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (["distil"], ["command 'distil'", "Did you mean 'distill'"]),
        ([*DISTILL, "--method=kdd"], ["method 'kdd'", "Did you mean 'kd'"]),
        ([*DISTILL, "--student=zoo:convnet_smal"], ["'convnet_smal'", "Did you mean 'convnet_small'"]),
        ([*DISTILL, "--teacher=zoo:digit_teacher"], ["Did you mean 'digits_teacher'"]),
        ([*DISTILL, "--teacher=zoo:"], ["names no model"]),
        ([*DISTILL, "--teacher="], ["--teacher names nothing"]),
        ([*DISTILL, "--data="], ["--data names nothing"]),
        ([*DISTILL, "--data=digit"], ["'digit'", "Did you mean 'digits'"]),
        ([*DISTILL, "--data=no/such/folder"], ["There is no folder no/such/folder"]),
        ([*DISTILL, "--terms.temprature=3"], ["'--terms.temprature'", "Did you mean '--terms.temperature'"]),
        ([*DISTILL, "--recipe.epoch=3"], ["Did you mean '--recipe.epochs'"]),
        ([*DISTILL, "--terms.temperature=hot"], ["--terms.temperature must be a number, not 'hot'"]),
        ([*DISTILL, "--terms.temperature=.nan"], ["temperature must be positive"]),
        ([*DISTILL, "--terms.temperature=1" + 400 * "0"], ["beyond all bounds"]),
        ([*DISTILL, "--teacher_mean=[a]"], ["--teacher_mean must be a list such as [1,2]"]),
        ([*DISTILL, "--recipe=3"], ["--recipe must be a mapping of its options"]),
        ([*DISTILL, "--recipe.optimizer=sgdd"], ["one of 'sgd', 'adam', 'adamw'"]),
        ([*DISTILL, "--augment=[croop]"], ["--augment must be one of", "not 'croop'"]),
        ([*DISTILL, "--resume=maybe"], ["--resume must be true or false"]),
        ([*DISTILL, "extra"], ["Unrecognized arguments: extra"]),
        (["distill", "--config=none.yaml"], ["There is no file none.yaml"]),
        ([*DISTILL, "--plugin=none.py"], ["There is no file none.py"]),
        ([*DISTILL, "--alone", "--labels=0"], ["cannot be trained alone without labels"]),
        ([*DISTILL, "--shots=5000"], ["too few labelled training images"]),
        ([*DISTILL, "--shots=5", "--long_tail=10"], ["so nothing is left of long_tail; leave one out"]),
        ([*TREAT, "--method=bags", "--edges=[a]"], ["--edges must be a whole number, not 'a'"]),
        ([*TREAT, "--method=bags", "--edges=50,10"], ["edges must ascend"]),
        ([*TREAT, "--method=simcal", "--T=1"], ["no class of digits has fewer than T = 1", "or null for all classes"]),
        ([*TREAT, "--method=simcal", "--hidden=null"], ["--hidden must be a whole number, not 'None'"]),
        ([*TREAT, "--method=tau", "--tau=1e9"], ["tau 1e+09 gives weights beyond all numbers"]),
        ([*TREAT, "--method=logitadjust", "--tau=1e300"], ["tau 1e+300 gives biases beyond all numbers"]),
        (
            [*DISTILL, "--method=tfkd", "--labels=0"],
            ["tfkd cannot run here", "1000 of 1000", "kd works without labels"],
        ),
        (["distill", "--student=zoo:convnet_small"], ["kd needs a teacher"]),
        (["distill", "--teacher=zoo:digits_teacher"], ["needs a student"]),
        (["evaluate", "zoo:digits_teacher", "--split=tset"], ["one of 'train', 'validation', 'test'"]),
        (["evaluate", "zoo:convnett"], ["Did you mean 'convnet'"]),
        (["predict", "zoo:digits_teacher", "nowhere"], ["There is no folder or image nowhere"]),
        (["report", "nowhere"], ["no finished run"]),
        (["lineage", "nowhere"], ["no directory"]),
        (["export", "zoo:digits_teacher", "x.txt"], ["ends in .onnx"]),
        (["prove", "kdd"], ["Did you mean 'kd'"]),
        (["advise", "--data=some"], ["Known: none, few, unlabelled, labelled", "--model REFERENCE"]),
    ],
)
def test_mistakes_in_options(here: Path, refused: Refused, words: list[str], parts: list[str]) -> None:
    refused(words, *parts)


@pytest.mark.parametrize(
    ("config", "part"),
    [
        ({"recipe": {"epochs": "three"}}, "--recipe.epochs must be a whole number, not 'three'"),
        ({"recipe": {"epoch": 3}}, "Did you mean 'epochs'"),
        ({"recipe": [{"epochs": 3}]}, "--recipe must be a mapping"),
        ({"recipe": {"lr": None}}, "--recipe.lr must not be null; leave it out for its default, 0.1"),
        ({"epochs": 3}, "Did you mean 'recipe.epochs'"),
        ({"out": "a\0b"}, "is no path"),
        ({"milestones": 3}, "Did you mean 'recipe.milestones'"),
        ({"size": "large"}, "--size must be a whole number or a list such as [1,2], not 'large'"),
        ({"method": ""}, "There is no method ''"),
        ({"plugin": "none.py"}, "names code to run, none.py: if you trust it, add --trust none on the command line"),
    ],
)
def test_mistakes_in_a_configuration(here: Path, refused: Refused, config: dict[str, Any], part: str) -> None:
    Path("c.yaml").write_text(yaml.safe_dump({"teacher": "zoo:digits_teacher", "student": "zoo:convnet", **config}))
    refused(["distill", "--config=c.yaml", *([] if "out" in config else ["--out=run"])], part)


class Accepted(Exception):
    """Validation let a command line through."""


def test_p5_mutated_configurations(here: Path, refused: Refused, monkeypatch: pytest.MonkeyPatch) -> None:
    """Wrong ones are one line, before any work; harmless ones pass. ``make torture`` has more, and the time."""

    def stop(*given: Any, **options: Any) -> None:
        raise Accepted

    monkeypatch.setattr(distill, "teacher_and_data", stop)
    (folder := here / "configs").mkdir()
    found = list(corpus.mutations(64, seed=0, folder=folder))
    assert {text.split(":")[0] for text in (m.text for m in found)} >= {"kd", "tfkd", "vam", "netgraft"}
    for m in found:
        if not m.wrong:
            with pytest.raises(Accepted):
                cli.main(m.words)
            continue
        assert cli.main(m.words) == 2, m
        if m.words[1] != "--config":  # those that name no out of their own
            refused(m.words)
    assert not Path("runs").exists()


# -- networks ---------------------------------------------------------------------------------------------------


def test_networks_that_do_not_fit(here: Path, refused: Refused) -> None:
    refused([*DISTILL, "--student=nets:seven"], "7 outputs, not 10")
    refused([*DISTILL, "--teacher=nets:seven"], "7 outputs, not 10")
    refused([*DISTILL, "--teacher=nets:colour"], "1 channels of 8 x 8 pixels", "channels")
    refused([*DISTILL, "--student=nets:nett"], "Did you mean 'net'")
    refused([*DISTILL, "--student=netz:net"], "no Python package")
    grey = corpus.picture_folder(here / "three")
    refused(
        [*DISTILL, f"--data={grey}"], "The 10 classes of the teacher and the 3 of three do not match", "--label_map"
    )
    with pytest.raises(UserError, match="7 outputs, but 10 class names"):
        upcycle.distill(
            teacher="zoo:digits_teacher", student=nn.Sequential(nn.Flatten(), nn.Linear(64, 7)), out=here / "r"
        )
    assert not (here / "r").exists()


def test_channels_that_do_not_fit_the_data(here: Path, refused: Refused) -> None:
    refused(
        [*DISTILL, "--teacher=zoo:digits_teacher", "--teacher_mean=[0.3,0.3,0.3]"], "mean must have one number for each"
    )
    refused([*DISTILL, "--student=zoo:digits_teacher", "--student_weights=pretrained", "--teacher_std=[0]"], "positive")


def test_a_colour_teacher_and_grey_images(here: Path, refused: Refused, cifar10: Path) -> None:
    refused([*DISTILL, "--teacher=zoo:cifar10_resnet20"], "takes 3 input channels", "digits have 1")


def test_netgraft_needs_blocks_of_equal_spatial_size(here: Path, refused: Refused) -> None:
    words = [*DISTILL, "--method=netgraft", "--shots=4", "--cuts=[block1,block2]"]
    refused([*words, "--student_cuts=[block2,block3]"], "netgraft cannot run here", "spatial sizes must be equal")
    refused([*words[:-1], "--cuts=[block1,blokc2]"], "no module of ConvNet 'blokc2'", "Did you mean 'block2'")
    refused([*words, "--student=nets:mlp"], "netgraft cannot run here")


# -- weights ----------------------------------------------------------------------------------------------------


def test_weights_that_do_not_fit(here: Path, refused: Refused) -> None:
    state = references.resolve("zoo:digits_teacher").module.state_dict()
    files = {
        "other": {k.replace(".", "_"): v for k, v in state.items()},
        "some": {k: v for k, v in state.items() if not k.startswith("block3")},
        "more": {**state, "extra.weight": torch.zeros(3)},
        "shape": {**state, "linear.weight": torch.zeros(10, 3)},
        "nan": {**state, "linear.bias": torch.full((10,), float("nan"))},
    }
    says = {"other": "belongs to another network", "some": "lacks", "more": "does not have: extra.weight",
            "shape": "'linear.weight' with shape (10, 3)", "nan": "not finite, in 'linear.bias'"}  # fmt: skip
    for name, content in files.items():
        store.save_tensors(Path(f"{name}.safetensors"), content)
        torch.save(content, f"{name}.pt")
        for suffix in ("safetensors", "pt"):
            refused([*DISTILL, f"--teacher_weights={name}.{suffix}"], f"{name}.{suffix}", says[name])
    store.save_tensors(Path("whole.safetensors"), state)
    torch.save(state, "whole.pt")
    for name in ("whole.safetensors", "whole.pt"):
        content = Path(name).read_bytes()
        Path(f"cut.{name}").write_bytes(content[: len(content) // 2])
        refused([*DISTILL, f"--teacher_weights=cut.{name}"], f"cut.{name}")
    refused([*DISTILL, "--teacher_weights=none.pt"], "There is no file none.pt")


def test_a_damaged_saved_model_is_named(here: Path, refused: Refused) -> None:
    saved.save(references.resolve("zoo:digits_teacher"), here / "saved")
    file = here / "saved" / saved.WEIGHTS
    whole = file.read_bytes()
    file.write_bytes(whole[:-9] + bytes([whole[-9] ^ 4]) + whole[-8:])
    for words in ([*DISTILL, "--teacher=saved"], ["evaluate", "saved"], [*DISTILL, f"--teacher_weights={file}"]):
        refused(words, f"saved/{saved.WEIGHTS} is damaged: tensor '", "does not match its digest")
    file.write_bytes(whole[:-100])
    refused([*DISTILL, "--teacher=saved"], f"{saved.WEIGHTS} is damaged: it has {len(whole) - 100:,} bytes instead of")


def test_malicious_pickles_are_not_executed(here: Path, refused: Refused) -> None:
    canary = here / "canary"
    (folder := here / "evil").mkdir()
    files = corpus.malicious_files(folder, canary, references.resolve("zoo:digits_teacher").module.state_dict())
    assert len(files) == 30 == len({f.read_bytes() for f in files})
    armed = [f for f in files if _would_run(f, canary)]
    assert len(armed) >= 15, "the corpus is harmless by itself"
    for file in files:
        refused([*DISTILL, f"--teacher_weights={file}"], str(file))
        assert not canary.exists(), file


@pytest.mark.parametrize(
    "content",
    [
        {"plugin": "evil.py"},
        {"method": "evil:X"},
        {"teacher": "evil:make"},
        {"student": "evil:make"},
        {"teacher": "os:abort"},
        {"teacher": "evil:make", "trust": ["evil"]},
        {"teacher": "evil:make", "dry_run": True},
    ],
)
def test_a_file_alone_runs_no_code(
    content: dict[str, Any], here: Path, refused: Refused, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(here)
    (here / "evil.py").write_text("from pathlib import Path\n\nPath('canary').write_text('')\n")
    usual = {"teacher": "zoo:digits_teacher", "student": "zoo:convnet_small", "data": "digits"}
    (here / "run.yaml").write_text(yaml.safe_dump(usual | content))
    refused(["distill", "--config=run.yaml"], "run.yaml names code to run", "add --trust ")
    assert not (here / "canary").exists()
    if "os:abort" not in content.values():
        assert cli.main(["distill", "--config=run.yaml", "--trust=evil"]) == 2  # it has no network or method in it
        assert (here / "canary").exists(), "trusted on the command line, it runs"
        sys.modules.pop("evil", None)


def test_no_file_of_several_and_no_space_hides_code(here: Path, refused: Refused) -> None:
    usual = {"teacher": "zoo:digits_teacher", "student": "zoo:convnet_small", "data": "digits"}
    (here / "first.yaml").write_text(yaml.safe_dump(usual | {"teacher": "os:abort"}))
    (here / "last.yaml").write_text(yaml.safe_dump(usual))
    refused(["distill", "--config=first.yaml", "--config", "last.yaml"], "first.yaml names code to run, os:abort")
    (here / "zoo.yaml").write_text(yaml.safe_dump({"zoo": "zoo:digits_teacher, os:abort", "data": "digits"}))
    refused(["reassemble", "--config=zoo.yaml"], "zoo.yaml names code to run, os:abort")


def _would_run(file: Path, canary: Path) -> bool:
    """Whether unpickling without care makes the canary; in another process, as it may do anything."""
    if file.suffix != ".pkl":
        return False
    code = "import pickle, sys; pickle.load(open(sys.argv[1], 'rb'))"
    subprocess.run([sys.executable, "-c", code, str(file)], capture_output=True, check=False)
    sung = canary.exists()
    if canary.is_dir():
        canary.rmdir()
    canary.unlink(missing_ok=True)
    return sung


# -- data -------------------------------------------------------------------------------------------------------


def test_bad_folders_of_images(here: Path, refused: Refused) -> None:
    words = ["distill", "--teacher=nets:net", "--student=nets:net", *SHORT]
    (corpus.picture_folder(here / "a") / "elk").mkdir()
    refused([*words, "--data=./a"], "no image in a/elk")
    (corpus.picture_folder(here / "b") / "cat" / "05.png").write_bytes(b"\x89PNG\r\n\x1a\n damaged")
    (here / "b" / "dog" / "07.png").write_bytes(b"")
    refused([*words, "--data=./b"], "2 of 42 images cannot be used", "b/cat/05.png", "b/dog/07.png (0 bytes)")
    refused([*words, "--data=./b/cat/05.png"], "is a file; give the folder")


def test_labels_out_of_range(here: Path, refused: Refused) -> None:
    labels = [i % 3 for i in range(40)]
    corpus.parquet_folder(here / "p", [*labels, 3, 77], ("cat", "dog", "owl"))
    refused(["distill", "--teacher=nets:net", "--student=nets:net", "--data=./p"], "between 0 and 2", "row 40", "has 3",
            "row 41", "has 77")  # fmt: skip
    images = torch.rand(42, 1, 8, 8)
    pairs = [(image, label) for image, label in zip(images, [*labels, -7, 2], strict=True)]
    with pytest.raises(UserError, match=r"between 0 and 2 .* sample 40 .* has -7"):
        upcycle.distill(teacher=_tiny(), student=_tiny(), data=pairs, out=here / "r", quiet=True)
    pairs[40] = (torch.full((1, 8, 8), float("nan")), 1)
    with pytest.raises(UserError, match=r"sample 40 \(NaN or infinite pixels\)"):
        upcycle.distill(teacher=_tiny(), student=_tiny(), data=pairs, out=here / "r", quiet=True)
    assert not (here / "r").exists()


def _tiny() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 3))


# -- while it runs ----------------------------------------------------------------------------------------------


def test_a_loss_that_is_no_number_ends_the_run(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([*DISTILL, *SHORT, "--recipe.lr=1e30", "--save_every=0", "--out=run"]) == 2
    said = capsys.readouterr().err
    assert "not a finite number" in said and "lower lr" in said and said.count("\n") == 1
    run = here / "run"
    assert not (run / "model").exists() and not (run / "result.json").exists() and not list(run.rglob("*.tmp"))
    files = store.unsealed(run / "checkpoints" / "index.json", dict)["files"]
    for name, record in files.items():
        for key, tensor in store.parse_tensors(store.verified(run / "checkpoints" / name, record), run).items():
            assert tensor.isfinite().all(), key


@pytest.mark.parametrize("code", [errno.EROFS, errno.EACCES])
def test_a_place_that_cannot_be_written(
    here: Path, refused: Refused, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    refused([*DISTILL, "--out=nets.py"], "nets.py is a file; choose another --out")
    refused([*DISTILL, "--out=nets.py/run"], "Cannot write to nets.py/run: Not a directory")

    def read_only(*args: Any, **kwargs: Any) -> None:
        raise OSError(code, os.strerror(code))

    with monkeypatch.context() as patch:
        patch.setattr(Path, "mkdir", read_only)
        refused(DISTILL, f"Cannot write to run: {os.strerror(code)}. Choose another --out")
    with monkeypatch.context() as patch:
        patch.setattr(Path, "touch", read_only)
        refused([*DISTILL, "--out=a/b/run"], f"Cannot write to a/b/run: {os.strerror(code)}")


def test_what_is_there_is_not_overwritten(here: Path, refused: Refused) -> None:
    (here / "run").mkdir()
    (here / "run" / "thesis.tex").write_text("precious")
    refused(DISTILL, "run exists and is not empty: add --resume")
    refused([*DISTILL, "--resume"], "holds no run that could go on")
    seen = ["diagnose", "zoo:digits_teacher", "--data=digits", "--out=run"]  # which cannot be resumed
    refused(seen, "run exists and is not empty: choose another --out")
    (here / "predictions.csv").write_text("mine")
    (here / "images").mkdir()
    refused(["predict", "zoo:digits_teacher", "images"], "predictions.csv exists")


def test_a_resumed_run_keeps_its_configuration(here: Path, refused: Refused) -> None:
    assert cli.main([*DISTILL, *SHORT, "--out=run"]) == 0
    refused([*DISTILL, "--recipe.epochs=2", "--resume"], "recipe", "this command says", "another --out")


def test_a_disk_that_runs_full(here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    words = [*DISTILL, "--recipe.epochs=2", "--recipe.batch_size=256", "--save_every=0", "--quiet"]
    assert cli.main([*words, "--out=whole"]) == 0
    expected = (here / "whole" / "model" / saved.WEIGHTS).read_bytes()
    synced = os.fsync
    for writes in (0, 2, 9, 14, 21):  # until there is no space left: at the start, while saving, ..., near the end
        left = writes

        def full(descriptor: int) -> None:
            nonlocal left
            left -= 1
            if left < 0:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            synced(descriptor)

        run = here / f"run{writes}"
        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", full)
            assert cli.main([*words, f"--out={run}"]) == 2
        said = capsys.readouterr().err
        assert f"Cannot write {run}/" in said and "bytes): No space left on device" in said and said.count("\n") == 1
        assert not list(run.rglob("*.tmp"))
        if (run / "checkpoints" / "index.json").exists():
            for name, record in store.unsealed(run / "checkpoints" / "index.json", dict)["files"].items():
                store.verified(run / "checkpoints" / name, record)
        assert cli.main([*words, f"--out={run}", "--resume"]) == 0
        assert (run / "model" / saved.WEIGHTS).read_bytes() == expected


def test_a_full_disk_that_names_no_file(here: Path, monkeypatch: pytest.MonkeyPatch, refused: Refused) -> None:
    """Event files are TensorBoard's to write, and its errors come without a path."""

    def full(*given: Any, **options: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(distill, "teacher_and_data", full)
    refused(DISTILL, "No space left on device. Free some space")


# -- whole commands ---------------------------------------------------------------------------------------------


SLOW = """
import sys, time
from upcycle import Run, cli
update = Run.update
Run.update = lambda *given, **more: (time.sleep(0.05), update(*given, **more))[1]
sys.exit(cli.main(sys.argv[1:]))
"""
"""The command line, whose updates take so long that a run is still on its way when somebody looks."""


def start(words: list[str], folder: Path, *, slow: bool = False) -> subprocess.Popen[str]:
    command = [sys.executable, *(["-c", SLOW] if slow else ["-m", "upcycle.cli"]), *words]
    return subprocess.Popen(command, cwd=folder, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def test_whole_commands_say_one_line(tmp_path: Path) -> None:
    chance = random.Random(5)
    (folder := tmp_path / "configs").mkdir()
    wrong = [m for m in corpus.mutations(64, seed=1, folder=folder) if m.wrong]
    for m in chance.sample(wrong, 2):
        process = start(m.words, tmp_path)
        output, said = process.communicate(timeout=60)
        assert process.returncode == 2 and not output, m
        assert said.startswith("upcycle: ") and said.count("\n") == 1, said
    assert sorted(p.name for p in tmp_path.iterdir()) == ["configs"]


LONG = [*DISTILL, "--recipe.epochs=60", "--recipe.batch_size=64", "--save_every=0.1"]


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    out = tmp_path_factory.mktemp("whole") / "run"
    assert cli.main([*LONG, "--quiet", f"--out={out}"]) == 0
    return (out / "model" / saved.WEIGHTS).read_bytes()


@pytest.mark.parametrize(("signum", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupted_run_goes_on(tmp_path: Path, uninterrupted: bytes, signum: signal.Signals, code: int) -> None:
    process = start([*LONG, "--out=run"], tmp_path, slow=True)
    index, deadline = tmp_path / "run" / "checkpoints" / "index.json", time.monotonic() + 60
    while not (index.exists() and '"epoch"' in index.read_text()) and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signum)
    _, said = process.communicate(timeout=60)
    assert process.returncode == code, said
    *epochs, last = said.splitlines()
    assert last.startswith("upcycle: ") and "saved" in last and "--resume" in last, said
    assert all(" left" in line for line in epochs), said
    run = tmp_path / "run"
    assert not (run / "model").exists() and not list(run.rglob("*.tmp"))
    assert cli.main([*LONG, "--quiet", f"--out={run}", "--resume"]) == 0
    assert (run / "model" / saved.WEIGHTS).read_bytes() == uninterrupted


def test_the_long_form_in_small(capsys: pytest.CaptureFixture[str]) -> None:
    """`make torture` with a kill, some corruption, wrong configurations and malicious files."""
    from benchmarks import torture

    few = ["--kills=1", "--corruptions=40", "--mutations=16", "--pickles=3", "--no-record", "--one-file-in=25",
           "--patience=1000"]  # fmt: skip
    assert torture.main(few) == 0
    rows = [line.rsplit(maxsplit=3) for line in capsys.readouterr().out.splitlines()[1:]]
    tried = {what: int(n) for what, n, held, failed in rows if n == held and failed == "0"}
    assert sorted(tried.values())[-2:] == [20, 20] and len(tried) >= 5 and all(tried.values())


def test_what_a_kill_leaves_is_cleared(here: Path) -> None:
    """Temporary files alone are no run, and a run that goes on sweeps them away."""
    run, words = here / "run", [*DISTILL, *SHORT, "--out=run"]
    run.mkdir()
    (run / ".config.yaml.77.tmp").write_text("half")
    assert cli.main([*words, "--resume"]) == 0
    expected = (run / "model" / saved.WEIGHTS).read_bytes()
    (run / "checkpoints" / ".index.json.77.tmp").write_text("half")
    (run / "model").rename(run / ".model.77.old")  # killed between the two renames that replace a model
    (run / ".model.77.tmp").mkdir()
    assert cli.main([*words, "--resume"]) == 0
    assert (run / "model" / saved.WEIGHTS).read_bytes() == expected
    assert not [*run.rglob("*.tmp"), *run.rglob("*.old")]
