"""Progress: lines and ``log.txt`` off a terminal, a bar on one that is gone at the end."""

from __future__ import annotations

import io
import os
import pty
import re
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from upcycle import cli
from upcycle.core.progress import Count, Progress, Transcript, clock, figures_in_words
from upcycle.verbs import prove
from upcycle.verbs.options import tell

DISTILL = ["distill", "--teacher=zoo:digits_teacher", "--student=zoo:convnet_small", "--data=digits", "--epochs=3"]
LINE = r"epoch \d/3  \d+ %  loss [\d.]+  validation accuracy \d+\.\d %"


def test_a_line_an_epoch_off_a_terminal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([*DISTILL, "--alone", f"--out={tmp_path / 'run'}"]) == 0
    said = capsys.readouterr()
    lines = said.err.splitlines()
    assert [re.sub(r"  epoch.*|^epoch.*", "", line) for line in lines] == 3 * [""] + 3 * ["alone-0"]
    assert all(re.search(LINE, line) for line in lines)
    assert [" left" in line for line in lines] == 2 * [True, True, False]
    assert "epoch 1" not in said.out


def test_every_run_keeps_a_transcript(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "run"
    assert cli.main([*DISTILL, "--alone", "--quiet", f"--out={out}"]) == 0
    said = capsys.readouterr()
    assert not said.out and not said.err
    text = (out / "log.txt").read_text()
    for part in ("upcycle distill --teacher", "teacher  digits_teacher", "by kd", "Report: ", "student, seed 0"):
        assert part in text, part
    assert len(re.findall(LINE, text)) == 3
    assert len(re.findall(LINE, (out / "more" / "alone-0" / "log.txt").read_text())) == 3
    assert all(re.match(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d", line) for line in text.splitlines())
    assert cli.main([*DISTILL, "--alone", "--quiet", f"--out={out}", "--resume"]) == 0
    assert (out / "log.txt").read_text().startswith(text)
    assert "goes on from what this directory holds" in (out / "log.txt").read_text().removeprefix(text)


def on_a_terminal(words: list[str]) -> tuple[str, str, int]:
    """What a command draws in a terminal of its own, what it prints elsewhere, and how it ends."""
    ours, theirs = pty.openpty()
    there = {**os.environ, "TERM": "xterm", "COLUMNS": "120", "OMP_NUM_THREADS": "1"}
    done = subprocess.Popen(
        [sys.executable, "-m", "upcycle", *words], stdout=subprocess.PIPE, stderr=theirs, env=there, text=True
    )
    os.close(theirs)
    drawn = b""
    while True:
        try:
            piece = os.read(ours, 65536)
        except OSError:  # the other end is closed
            break
        if not piece:
            break
        drawn += piece
    assert done.stdout is not None
    said, code = done.stdout.read(), done.wait()
    os.close(ours)
    return drawn.decode(), said, code


def require_cleared(text: str) -> None:
    """The line is erased after it was drawn last, and the cursor is back."""
    assert text.rindex("\x1b[2K") > text.rindex("%")
    assert text.count("\x1b[?25h") == text.count("\x1b[?25l") > 0


def test_a_bar_on_a_terminal_is_gone_at_the_end(tmp_path: Path) -> None:
    text, said, code = on_a_terminal([*DISTILL, f"--out={tmp_path / 'run'}"])
    assert "Report: " in said and code == 0
    assert re.search(r"epoch [123]/3", text) and "%" in text and "loss" in text
    require_cleared(text)
    assert not re.search(LINE, text)  # lines are for where there is no bar


def test_a_bar_of_images_on_a_terminal(tmp_path: Path) -> None:
    for i in range(40):
        Image.new("L", (8, 8), i).save(tmp_path / f"{i}.png")
    words = ["predict", "zoo:digits_teacher", str(tmp_path), "--out", str(tmp_path / "found.csv")]
    text, said, code = on_a_terminal(words)
    assert code == 0 and "40 images to" in said and "images 0/40" in text
    require_cleared(text)


def test_a_count_off_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    with Count("images", 3, bar=False, pause=0.0) as progress:
        progress.at(1)
        progress.at(3)
    assert re.fullmatch(r"images 1/3  33 %  \d+ s left\n", capsys.readouterr().err)
    with Count("seeds", 3, bar=False, pause=None) as progress:  # each has a line of its own
        progress.at(1)
    assert not capsys.readouterr().err


def test_prove_says_how_long_it_will_take(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    arms = dict.fromkeys([*prove.find("kd").headline.arms, *map(str, range(10))], 1.0)  # of many, those that decide
    monkeypatch.setattr(prove, "_measured", lambda name, seed, quick: (seed, arms, 60.0))
    monkeypatch.setattr("upcycle.data.load", lambda name: None)
    prove.prove("kd", seeds=2, quick=True)
    said = capsys.readouterr()
    assert re.search(r"seed 0: .*\(1 of 2, about \d+ s left\)\nseed 1: .*[^)]$", said.out.rstrip()) and not said.err
    assert "CIFAR-10 KD (%) 1.00" in said.out and ", 9 1.00" not in said.out


def test_a_terminal_that_can_draw_nothing_gets_lines(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    monkeypatch.setenv("TERM", "dumb")
    assert cli.main([*DISTILL, "--epochs=1", f"--out={tmp_path / 'run'}"]) == 0
    assert "epoch 1/1  100 %" in capsys.readouterr().err


def test_lines_of_nested_loops_and_of_hostile_names(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    progress = Progress("", lambda: 0.0, bar=False, lines=True, transcript=Transcript(tmp_path))
    progress.begin("main/\x1b[31mtask0", 0, 2)
    progress.figures({"loss": 0.5})
    progress.end(1, 2)
    progress.rest()
    progress.end(2, 2)  # a loop that never began, such as one pass over the batches of a stage
    said = capsys.readouterr().err
    assert said.startswith("\\x1b[31mtask0  epoch 1/2  50 %  loss 0.5  ") and said.count("\n") == 1
    assert "\x1b" not in (tmp_path / "log.txt").read_text()


def test_a_transcript_follows_no_link(tmp_path: Path) -> None:
    (tmp_path / "other").write_text("precious")
    (tmp_path / "log.txt").symlink_to(tmp_path / "other")
    with pytest.raises(OSError, match=r"log\.txt"):
        Transcript(tmp_path).write("something")
    assert (tmp_path / "other").read_text() == "precious"
    Transcript(None).write("nowhere")


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_sentences_wrap_on_a_terminal_and_nothing_else_does(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    table = "name  " + 50 * "─"
    command = "Further: upcycle extend runs/one --method er --stream STREAM"
    there, piped = Terminal(), io.StringIO()
    for file in (there, piped):
        tell(f"note     {8 * 'whole words '}end\n{table}\n{command}", file=file)
    lines = there.getvalue().splitlines()
    assert lines[-2:] == [table, command] and all(len(line) <= 40 for line in lines[:-2])
    assert lines[0].startswith("note     whole") and lines[1].startswith("         w")
    assert piped.getvalue().count("\n") == 3


def test_words() -> None:
    assert figures_in_words({"validation_agreement": 0.5, "loss": 2.0}) == "loss 2  validation agreement 50.0 %"
    assert figures_in_words({"a_b": 1.0, "c": 2.0, "d": 3.0}) == "a b 1  c 2"
    assert (clock(0), clock(3599), clock(3600)) == ("0 s", "59 min 59 s", "1 h 0 min")
