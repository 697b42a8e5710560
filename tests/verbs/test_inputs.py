"""A run goes on only with what it was begun with, one process at a time, and deletes only what it wrote."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file, save_file

from tests.verbs.test_bad_input import DISTILL, SHORT, Refused, here, refused, start
from upcycle import cli
from upcycle.claims import Claim, Headline
from upcycle.core import saved, store
from upcycle.core.lock import NAME
from upcycle.verbs import prove

__all__ = ["here", "refused"]  # fixtures

TINY = [*SHORT, "--recipe.batch_size=64"]


def pictures(folder: Path, n: int, first: int = 0) -> Path:
    """A folder of ``n`` grey images of 8 x 8 pixels in each of two classes."""
    g = torch.Generator().manual_seed(first)
    for name, low in (("dark", 0), ("light", 128)):
        (folder / name).mkdir(parents=True, exist_ok=True)
        for i in range(first, first + n):
            pixels = torch.randint(low, low + 128, (8, 8), dtype=torch.uint8, generator=g)
            Image.fromarray(pixels.numpy()).save(folder / name / f"{i:03d}.png")
    return folder


@pytest.fixture
def teacher(here: Path) -> Path:
    """The weights of a network of one's own with two classes, in a file."""
    from upcycle.core.references import resolve

    torch.manual_seed(1)
    net = resolve("zoo:convnet_small", pretrained=False, num_classes=2, input_shape=(1, 8, 8)).module
    save_file(net.state_dict(), here / "teacher.safetensors")
    return here / "teacher.safetensors"


def own(*more: str) -> list[str]:
    return [
        "distill",
        "--teacher=two:net",
        "--teacher_weights=teacher.safetensors",
        "--student=zoo:convnet_small",
        "--data=pictures",
        *TINY,
        *more,
        "--out=run",
    ]


TWO = """
from upcycle.core.references import resolve

def net():
    return resolve("zoo:convnet_small", pretrained=False, num_classes=2, input_shape=(1, 8, 8)).module
"""


@pytest.fixture
def begun(here: Path, teacher: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run of one's own network on one's own images, with the teacher's outputs kept."""
    (here / "two.py").write_text(TWO)
    monkeypatch.delitem(sys.modules, "two", raising=False)
    pictures(here / "pictures", 40)
    assert cli.main(own("--cache=on")) == 0
    return here / "run"


def test_a_folder_that_grew_by_ten_images(begun: Path, here: Path, refused: Refused) -> None:
    pictures(here / "pictures", 5, first=100)
    refused([*own("--cache=on"), "--resume"], "The training images", "differ from those that the run in run began with")


def test_one_image_added_under_kept_outputs(begun: Path, here: Path, refused: Refused) -> None:
    shutil.copy(here / "pictures" / "dark" / "000.png", here / "pictures" / "dark" / "900.png")
    refused([*own("--cache=on"), "--resume"], "images", "differ from those that the run in run began with")


def test_another_teacher_behind_the_same_name(begun: Path, teacher: Path, refused: Refused) -> None:
    save_file({key: value + 0.01 for key, value in load_file(teacher).items()}, teacher)
    said = refused([*own("--cache=on"), "--resume"], "The weights of the teacher", "differ from those")
    assert "--teacher_weights" in said and "student" not in said


def test_other_labels(begun: Path, here: Path, refused: Refused) -> None:
    for a, b in (("dark", "other"), ("light", "dark"), ("other", "light")):
        (here / "pictures" / a).rename(here / "pictures" / b)
    refused([*own("--cache=on"), "--resume"], "differ from those that the run in run began with")


def test_a_label_map_that_was_edited(begun: Path, here: Path, refused: Refused) -> None:
    (here / "map.csv").write_text("teacher,student\n0,dark\n1,light\n")
    words = [w.replace("--out=run", "--out=mapped") for w in own("--label_map=map.csv")]
    assert cli.main(words) == 0
    (here / "map.csv").write_text("teacher,student\n0,light\n1,dark\n")
    refused([*words, "--resume"], "of --label_map differ from those")


def test_changed_code_is_a_note(begun: Path, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (here / "two.py").write_text(TWO + "# reworked\n")
    assert cli.main([*own("--cache=on"), "--resume"]) == 0
    assert any(
        "two.py was changed after this run began" in note for note in store.read_json(begun / "result.json")["notes"]
    )


# -- the directory ----------------------------------------------------------------------------------------------


@pytest.fixture
def done(here: Path) -> Path:
    assert cli.main([*DISTILL, *TINY, "--out=run"]) == 0
    return here / "run"


RESUME = [*DISTILL, *TINY, "--out=run", "--resume"]


def test_a_configuration_that_was_edited(done: Path, here: Path, refused: Refused) -> None:
    file = done / "config.yaml"
    config = yaml.safe_load(file.read_text())
    file.write_text(yaml.safe_dump({**config, "seed": 5}))
    refused(RESUME, "config.yaml")
    refused(
        [w for w in RESUME if not w.startswith("--seed")] + ["--seed=5"], "config.yaml was changed since the run began"
    )
    (here / "copy.yaml").write_text(yaml.safe_dump({**config, "seed": 5}))
    assert cli.main(["distill", "--config=copy.yaml", "--out=again", "--quiet"]) == 0


DAMAGED: dict[str, Callable[[str], bytes]] = {
    "empty": lambda text: b"",
    "a list": lambda text: b"- teacher\n- student\n",
    "cut": lambda text: text[: text.index("threads")].encode() + b"threads",
    "binary": lambda text: bytes(range(256)),
    "deep": lambda text: b"a: " + b"[" * 2000,
    "threads": lambda text: text.replace("threads: ", "threads: 100000").encode(),
    "world_size": lambda text: text.replace("world_size: 1", "world_size: a").encode(),
    "nothing of the machine": lambda text: text[: text.index("machine:")].encode(),
}


@pytest.mark.parametrize("damage", DAMAGED)
def test_a_damaged_configuration_is_named(done: Path, refused: Refused, damage: str) -> None:
    file = done / "config.yaml"
    file.write_bytes(DAMAGED[damage](file.read_text()))
    said = refused(RESUME, "run/config.yaml")
    assert "is damaged" in said or "is not YAML" in said
    if damage in ("threads", "world_size"):
        assert f"$.machine.{damage} must be a whole number" in said


def test_a_log_that_was_edited_or_lost(done: Path, refused: Refused) -> None:
    file = done / "metrics.csv"
    text = file.read_text()
    for damaged in (text.replace("0.", "1.", 1), text[: len(text) // 3], ""):
        file.write_text(damaged)
        refused(RESUME, "metrics.csv was changed or damaged")
    file.unlink()
    refused(RESUME, "metrics.csv was changed or damaged")
    file.write_text(text)
    assert cli.main(RESUME) == 0


@pytest.mark.parametrize(
    ("change", "place"),
    [
        ({"format": 1}, "has format 1"),
        ({"saves": -1}, "$.saves must be"),
        ({"rows": "many"}, "$.rows must be a whole number, not text"),
        ({"files": {"../../x.safetensors": {"sha256": "0" * 64, "bytes": 1}}}, "a name in $.files"),
        ({"stages": {"main/a": {"file": None, "updates": 1}}}, "$.stages[] lacks value"),
        ({"current": {"stage": "main", "file": "000077.safetensors", "epoch": 0, "step": 0, "updates": 0}}, "000077"),
        ({"notes": [1]}, "$.notes[0] must be text"),
    ],
)
def test_a_digest_is_no_schema(done: Path, refused: Refused, change: dict[str, object], place: str) -> None:
    """An index that a stranger wrote, with its digest."""
    file = done / "checkpoints" / "index.json"
    store.write_json(file, store.sealed({**store.unsealed(file, dict), **change}))
    refused(RESUME, "index.json", place)


def test_only_what_the_run_wrote_is_deleted(done: Path, here: Path) -> None:
    mine = [
        done / "checkpoints" / "notes.txt",
        done / "checkpoints" / "777777.safetensors",
        done / "thesis.tmp",
        done / ".draft.old",
        done / "model" / "mine.txt",
        done / "pictures" / "keep" / ".x.1.tmp",
    ]
    for file in mine:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("precious")
    (here / "elsewhere").mkdir()
    (here / "elsewhere" / ".config.yaml.7.tmp").write_text("precious")
    (done / "linked").symlink_to(here / "elsewhere")
    (done / ".metrics.csv.7.tmp").write_text("half")
    assert cli.main(RESUME) == 0
    assert all(file.read_text() == "precious" for file in [*mine, here / "elsewhere" / ".config.yaml.7.tmp"])
    assert not (done / ".metrics.csv.7.tmp").exists() and saved.load(done)


def test_a_linked_folder_of_save_points(done: Path, here: Path, refused: Refused) -> None:
    """Which may hold anything, such as another run's."""
    (done / "checkpoints").rename(here / "shared")
    (here / "shared" / "000001.safetensors").write_bytes(b"of another run")
    (done / "checkpoints").symlink_to(here / "shared")
    refused(RESUME, "checkpoints is a symbolic link")
    assert (here / "shared" / "000001.safetensors").read_bytes() == b"of another run"


LONG = [*DISTILL, "--recipe.epochs=200", "--recipe.batch_size=64", "--save_every=0.1", "--quiet", "--out=run"]


def _running(folder: Path) -> subprocess.Popen[str]:
    """A long run that has its first save point."""
    process = start(LONG, folder)
    index, deadline = folder / "run" / "checkpoints" / "index.json", time.monotonic() + 120
    while not (index.exists() and '"epoch"' in index.read_text()) and time.monotonic() < deadline:
        time.sleep(0.05)
    return process


def test_a_second_command_in_a_directory_is_refused(here: Path, refused: Refused) -> None:
    process = _running(here)
    process.send_signal(signal.SIGSTOP)  # so that it writes nothing in between
    try:
        refused([*LONG, "--resume"], "Another command is writing to run")
    finally:
        process.kill()
        process.communicate()
    assert cli.main(["distill", f"--config={here / 'run' / 'config.yaml'}", "--resume", "--dry_run"]) == 0
    assert (here / "run" / NAME).stat().st_size == 0


def test_of_six_simultaneous_starts_one_runs(here: Path) -> None:
    starts = [start([*DISTILL, *TINY, f"--seed={seed}", "--out=run"], here) for seed in range(6)]
    said = [process.communicate(timeout=300)[1] for process in starts]
    codes = [process.returncode for process in starts]
    assert sorted(codes) == [0, 2, 2, 2, 2, 2], said
    for code, text in zip(codes, said, strict=True):
        assert code == 0 or (text.startswith("upcycle: ") and text.count("\n") == 1 and " run" in text), text
    config = yaml.safe_load((here / "run" / "config.yaml").read_text())
    assert config["seed"] == codes.index(0)
    assert saved.load(here / "run").lineage["config"]["seed"] == codes.index(0)  # type: ignore[index]


WRITERS = {
    "distill": RESUME,
    "diagnose": ["diagnose", "zoo:digits_teacher", "--images=1", "--methods=saliency", "--samples=1", "--out=run"],
    "explain": ["explain", "zoo:digits_teacher", "one.png", "--methods=saliency", "--out=run"],
    "report": ["report", "run"],
    "predict": ["predict", "zoo:digits_teacher", "one.png", "--out=run/predictions.csv"],
    "export": ["export", "zoo:digits_teacher", "run/net.pt2", "--format=torch"],
    "prove": ["prove", "kd", "--quick", "--out=run/figures.json"],
}
HOLD = """
from pathlib import Path
from upcycle.core.lock import Hold
held = Hold(Path("run"))
print("held", flush=True)
input()
"""


def test_no_verb_writes_where_another_command_writes(done: Path, here: Path, refused: Refused) -> None:
    Image.new("L", (8, 8), 99).save("one.png")
    pipe = subprocess.PIPE
    with subprocess.Popen([sys.executable, "-c", HOLD], cwd=here, stdin=pipe, stdout=pipe, text=True) as other:
        assert other.stdout is not None and other.stdout.readline() == "held\n"
        for words in WRITERS.values():
            refused(words, "Another command is writing to run; wait for its end")
        other.communicate("go\n", timeout=60)
    assert cli.main(WRITERS["report"]) == 0


# -- files that a person names ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "words",
    [
        ["predict", "zoo:digits_teacher", "one.png", "--out=mine.txt"],
        ["export", "zoo:digits_teacher", "mine.pt2", "--format=torch"],
        ["prove", "none", "--quick", "--out=mine.json"],
    ],
    ids=lambda words: words[0],
)
def test_a_file_is_written_over_only_when_that_is_asked_for(
    words: list[str], here: Path, refused: Refused, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = dict.fromkeys(("method", "sentence", "published", "setting"), "none")
    headline = Headline(product="a", baseline=0.0, says="a over nothing")
    claim = Claim(**said, data=(), measure=lambda seed, quick: {"a": 1.0}, headline=headline)
    monkeypatch.setattr(prove, "find", lambda method: claim)
    Image.new("L", (8, 8), 99).save("one.png")
    (file := here / words[2 if words[0] == "export" else -1].removeprefix("--out=")).write_text("precious")
    refused(words, f"{file.name} exists; choose another file, or write over it with --overwrite")
    assert cli.main([*words, "--overwrite"]) == 0
    assert b"precious" not in file.read_bytes()
    file.unlink()
    file.mkdir()
    refused(words, f"{file.name} is a folder")


# -- exports ----------------------------------------------------------------------------------------------------


def test_an_export_overwrites_nothing_unasked(here: Path, refused: Refused) -> None:
    words = ["export", "zoo:digits_teacher", "net.pt2", "--format=torch"]
    (left := here / ".net.pt2.999999999.tmp").mkdir()
    (left / "net.pt2").write_text("half")
    (foreign := here / ".export-mine").mkdir()
    assert cli.main(words) == 0
    assert not left.exists() and foreign.exists()
    (here / "net.pt2").write_text("precious")
    refused(words, "net.pt2 exists", "--overwrite")
    (here / "net.pt2").unlink()
    refused(words, "net.pt2.json exists", "--overwrite")
    assert cli.main([*words, "--overwrite"]) == 0
    assert sorted(p.name for p in here.glob("*net.pt2*")) == ["net.pt2", "net.pt2.json"]
