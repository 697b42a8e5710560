"""Sentences in the words of their reader: options on a command line, arguments in Python."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

import upcycle
from upcycle import cli
from upcycle.core.errors import UserError
from upcycle.core.spoken import reader, spoken
from upcycle.verbs.options import tell


@pytest.fixture
def in_python() -> Iterator[None]:
    """Somebody reads who called a function."""
    with reader(types=False):
        yield


@pytest.mark.parametrize(
    ("typed", "called"),
    [
        ("run is not empty: add --resume to go on, or choose another --out.",
         "run is not empty: add resume=True to go on, or choose another out=."),
        ("give --size 3,32,32.", "give size=(3, 32, 32)."),
        ("give --size CHANNELS,HEIGHT,WIDTH, for example", "give size=(CHANNELS, HEIGHT, WIDTH), for example"),
        ("--size brings images to one size", "size= brings images to one size"),
        ("take --recipe.mix cutmix with it", "take recipe={'mix': 'cutmix'} with it"),
        ("give a smaller --recipe.batch_size", "give a smaller recipe={'batch_size': ...}"),
        ("leave out --terms.w_ce 0 and these count", "leave out terms={'w_ce': 0} and these count"),
        ("read as they are used (--keep_in_memory false)", "read as they are used (keep_in_memory=False)"),
        ("leave out --compile.", "leave out compile=."),
        ("Nothing was written (--dry_run).", "Nothing was written (dry_run=True)."),
        ("if you trust it, add --trust nets.", "if you trust it, add trust=('nets',)."),
        ("nothing for --shots and --long_tail to choose", "nothing for shots= and long_tail= to choose"),
        ("give --precision 32-true", "give precision='32-true'"),
        ("give --student zoo:tree, or zoo:tree_small", "give student='zoo:tree', or zoo:tree_small"),
        ("write over it with --overwrite=true", "write over it with overwrite=True"),
        # commands, names and paths stay what they are
        ("upcycle advise --data none says what works", "upcycle advise --data none says what works"),
        ("upcycle adapt MODEL --data DATA, or --student NET.", "upcycle adapt MODEL --data DATA, or student=NET."),
        ("pip install --upgrade torch", "pip install --upgrade torch"),
        ("There is no folder my--data.", "There is no folder my--data."),
    ],
)  # fmt: skip
def test_a_sentence_is_put_into_words_of_python(in_python: None, typed: str, called: str) -> None:
    assert spoken(typed) == called
    with reader(types=True):
        assert spoken(typed) == typed


def test_an_error_names_arguments_in_python_and_options_on_the_command_line(
    in_python: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "mine").touch()
    with pytest.raises(UserError) as raised:
        upcycle.distill(teacher="zoo:digits_teacher", student="zoo:convnet_small", out="run", quiet=True)
    assert str(raised.value) == "run exists and is not empty: add resume=True to go on with it, or choose another out=."
    words = ["--teacher=zoo:digits_teacher", "--student=zoo:convnet_small", "--out=run"]
    assert cli.main(["distill", *words]) == 2
    assert "add --resume to go on with it, or choose another --out." in capsys.readouterr().err
    assert "out=" in str(raised.value)  # whoever typed a command has not changed who reads now


def test_what_is_said_on_the_way_is_in_the_same_words(in_python: None, capsys: pytest.CaptureFixture[str]) -> None:
    tell("Nothing was written (--dry_run).")
    with reader(types=True):
        tell("Nothing was written (--dry_run).")
    assert capsys.readouterr().out == "Nothing was written (dry_run=True).\nNothing was written (--dry_run).\n"
