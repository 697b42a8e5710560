"""``upcycle reassemble --source``, one network with a block in it, and ``upcycle blocks``."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pytest
import torch

import upcycle
from tests.settings import fitted
from upcycle import cli
from upcycle.core import saved
from upcycle.core.errors import UserError
from upcycle.core.store import tensor_digest
from upcycle.surgery.inserts import BLOCKS
from upcycle.verbs.blocks import blocks, help_of

TEACHER = "zoo:digits_teacher"
SHORT = ["--recipe.epochs=1", "--recipe.batch_size=64", "--quiet"]
SWAP = ["reassemble", f"--source={TEACHER}", "--method=swap", "--data=digits"]


def said(capsys: pytest.CaptureFixture[str]) -> str:
    return capsys.readouterr().err


def test_a_network_gets_a_block(tmp_path: Path) -> None:
    out = tmp_path / "run"
    words = [*SWAP, "--block=coord", "--at=block[12]", "--settings.b0=0", *SHORT, f"--out={out}"]
    assert cli.main(words) == 0
    result, model = json.loads((out / "result.json").read_text()), upcycle.load(out)
    assert [(row["role"], row["name"]) for row in result["rows"]] == [
        ("source", "digits_teacher"),
        ("control", "digits_teacher, trained on"),
        ("product", "digits_teacher-coord"),
    ]
    assert model.options["cut"]["options"] == {"r": 32, "b0": 0}
    assert model.lineage is not None
    assert model.lineage["metrics"]["start error"] <= 1e-6
    assert [(p["name"], p["role"]) for p in model.lineage["parents"]] == [("digits_teacher", "source")]
    more = result["rows"][2]["parameters"] - result["rows"][0]["parameters"]
    assert f"{more / 1000:.3g} k more parameters" in result["sentence"].replace("2.40", "2.4")
    for words_of in ("the source reaches", "after the same training without the block", "The block's own part is"):
        assert words_of in result["sentence"]
    assert any("coord stands at 2 places, 'block1' to 'block2'" in note for note in result["notes"])
    page = (out / "report.html").read_text()
    assert "digits_teacher, trained on" in page and "cannot be drawn" not in page
    _, *again = shlex.split(result["command"])
    assert cli.main([*again, f"--out={tmp_path / 'again'}", "--quiet"]) == 0
    assert tensor_digest(upcycle.load(tmp_path / "again").module.state_dict()) == tensor_digest(
        model.module.state_dict()
    )


def test_in_python_with_a_model(tmp_path: Path) -> None:
    source = fitted("source", 7)
    result = upcycle.reassemble(
        source=source,
        method="swap",
        block="se",
        at=("relu?",),
        settings={"b0": 0.0},
        data="digits",
        control=False,
        recipe={"epochs": 1},
        out=tmp_path / "run",
        quiet=True,
    )
    assert [row["role"] for row in result.rows] == ["source", "product"] and "--control false" in result.sentence
    with pytest.raises(UserError, match="into=module"):
        saved.load(tmp_path / "run")
    into = upcycle.load(tmp_path / "run", into=result.model.module)
    assert into.name == "source-se"


def test_a_dry_run_counts_the_network_that_would_be_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    told: list[str] = []
    upcycle.reassemble(
        source=TEACHER, method="swap", block="se", at=("block1",), data="digits", dry_run=True, say=told.append
    )
    more = 2 * 32 * 8 + 8 + 32
    before = sum(p.numel() for p in upcycle.resolve(TEACHER).module.parameters())
    assert any(f"{before + more:,} parameters (+{more})" in line for line in told)
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (
            ["reassemble", "--data=digits", "--method=swap", "--block=se", "--at=block1"],
            "swap needs a network: give --so",
        ),
        (["reassemble", f"--source={TEACHER}", "--data=digits"], "dery takes several networks: give --zoo"),
        (
            ["reassemble", "--data=digits"],
            "give --zoo DIR or --zoo REFERENCE,REFERENCE. --source REFERENCE is for --meth",
        ),
        ([*SWAP, f"--source={TEACHER},{TEACHER}", "--block=se", "--at=block1"], "swap takes one network"),
        ([*SWAP, f"--zoo={TEACHER},{TEACHER}", "--block=se", "--at=block1"], "swap takes one network"),
        (["reassemble", f"--zoo={TEACHER},{TEACHER}", "--label_map=map.csv"], "no file map.csv"),
        ([*SWAP], "give --block NAME"),
        ([*SWAP, "--block=se"], "swap needs places for se"),
        ([*SWAP, "--block=cord", "--at=block1"], "Did you mean 'coord'"),
        ([*SWAP, "--block=se", "--at=blok1"], "Did you mean 'block1'"),
        ([*SWAP, "--block=se", "--at=linear"], "se cannot be put at 'linear'"),
        ([*SWAP, "--block=pool", "--at=linear"], "pool cannot be put at 'linear'"),
        ([*SWAP, "--block=se", "--at=block1", "--settings.b1=2"], "no option of se 'b1'"),
        ([*SWAP, "--block=se", "--at=block1", "--settings.b0=low"], "must be like 4.6"),
        ([*SWAP, "--block=se", "--at=block1", "--settings=3"], "--settings must be a mapping"),
        ([*SWAP, "--block=se", "--at=block1", "--seting.b0=3"], "no option '--seting.b0'"),
        ([*SWAP, "--block=se", "--at=block1", "--how=behind"], "--how must be one of 'auto'"),
        ([*SWAP, "--block=se", "--at=block1", "--params=1k"], "the cheapest that can be had"),
        ([*SWAP, "--block=pnp", "--at=block1"], "pnp works on tokens"),
        ([*SWAP, "--block=ode", "--at=block2"], "'block2' is no x + f"),
        (["blocks", "cord"], "Did you mean 'coord'"),
        (["blocks", "--shape=3,2"], "three positive numbers, not 3,2"),
        (["blocks", "--shape=3,2,x"], "--shape must be"),
        (["blocks", "se", "--model=zoo:nothing"], "no zoo model"),
    ],
)
def test_a_mistake_is_one_sentence_and_nothing_is_written(
    words: list[str], says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.main(words) == 2
    text = said(capsys)
    assert text.count("\n") == 1 and says in text, text
    assert not any(tmp_path.iterdir())


# -- blocks -------------------------------------------------------------------------------------------------------


def test_all_blocks_are_listed_with_their_costs() -> None:
    lines = blocks(shape=(64, 16, 16)).splitlines()
    assert [line.split()[0] for line in lines[1 : 1 + len(BLOCKS)]] == list(BLOCKS)
    se = next(line for line in lines if line.startswith("se "))
    assert "gate" in se and "maps" in se and " yes " in se and "1.10 k" in se and "1.02 k" in se
    pool = next(line for line in lines if line.startswith("pool "))
    assert "replace" in pool and " no " in pool


@pytest.mark.parametrize("name", BLOCKS)
def test_each_block_has_a_page_with_its_options(name: str) -> None:
    page, block = blocks(name), BLOCKS[name]
    assert page.startswith(f"{name}: {block.summary}") and block.paper in page
    told = help_of(block)
    for option, usual in block.options().items():
        assert re.search(rf"^  {option} \({re.escape(str(usual))}\): \w", page, re.MULTILINE), option
        assert told[option]


def test_places_of_a_network_are_those_that_swap_takes() -> None:
    lines = blocks("coord", model=TEACHER).splitlines()
    assert lines[1].split() == ["block1", "Sequential", "a", "map", "of", "32", "x", "8", "x", "8"]
    assert not [line for line in lines if line.startswith("linear")]
    assert "has no place for pnp" in blocks("pnp", model=TEACHER)
    tokens = blocks("pool", model="zoo:cifar10_vit")
    assert "blocks.0.attention " in tokens and "64 tokens" in tokens
    everything = blocks(model=TEACHER)
    assert re.search(r"On maps: coord, se, .*", everything) and torch.is_grad_enabled()
