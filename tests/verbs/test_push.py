"""A saved model goes to the hub as one commit, with a card that loads it from there."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from PIL import Image

import upcycle
from upcycle.core import lineage, saved
from upcycle.core.errors import UserError
from upcycle.core.licences import Licence
from upcycle.reports.card import model_card

hub = pytest.importorskip("huggingface_hub", reason="huggingface_hub is not installed (extra hub)")


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A saved model with its card."""
    network = upcycle.resolve("zoo:digits_teacher")
    assert network.lineage is not None
    saved.save(network, tmp_path / "mine", readme=model_card(network.lineage, of=network))
    return tmp_path / "mine"


class Hub:
    """A hub that keeps what it is sent in a folder."""

    def __init__(self, place: Path) -> None:
        self.place, self.said = place, []  # type: ignore[var-annotated]

    def create_repo(self, repository: str, **how: Any) -> None:
        self.said.append((repository, how))

    def create_commit(self, repository: str, operations: Any, **how: Any) -> None:
        self.said.append((repository, how))
        for one in operations:
            file = self.place / repository / one.path_in_repo
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(one.path_or_fileobj)


def test_a_model_is_sent_and_its_card_loads_it_from_there(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    there = Hub(tmp_path / "hub")
    monkeypatch.setattr(hub, "HfApi", lambda: there)
    found = upcycle.push(model, "org/mine", private=True)
    assert found.address == "https://huggingface.co/org/mine" and found.address in capsys.readouterr().out
    assert there.said[0] == ("org/mine", {"private": True, "exist_ok": True}) and len(there.said) == 2
    sent = tmp_path / "hub" / "org" / "mine"
    for name in (saved.WEIGHTS, saved.ARCHITECTURE, saved.LINEAGE, "manifest.json"):
        assert (sent / name).read_bytes() == (model / name).read_bytes()

    card = hub.ModelCard((sent / "README.md").read_text())
    assert 'upcycle.load(snapshot_download("org/mine"))' in card.text
    Image.new("L", (20, 30), 200).save(tmp_path / "image.png")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(hub, "snapshot_download", lambda repository: str(tmp_path / "hub" / repository))
    names: dict[str, Any] = {}
    exec(card.text.split("```python\n")[1].split("```")[0], names)
    assert names["answer"].predicted[0] in names["model"].classes


def test_what_cannot_be_sent_is_said_before_anything_is_sent(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "HfApi", lambda: pytest.fail("the hub was asked"))
    for repository in ("mine", "org/", "a/b/c", "org/mi ne"):
        with pytest.raises(UserError, match="is written ORG/NAME"):
            upcycle.push(model, repository)
    with pytest.raises(UserError, match="There is no saved model"):
        upcycle.push(model / "nowhere", "org/mine")
    assert upcycle.push(model, "org/mine", dry_run=True).files.keys() >= {saved.WEIGHTS, saved.CARD}
    whole = (model / saved.WEIGHTS).read_bytes()
    (model / saved.WEIGHTS).write_bytes(whole[:-1] + b"x")
    with pytest.raises(UserError, match="damaged"):
        upcycle.push(model, "org/mine")


def test_a_licence_that_forbids_it_is_kept(tmp_path: Path) -> None:
    network = upcycle.resolve("zoo:digits_teacher")
    licence = Licence("incompatible", "CC-BY-ND-4.0 (teacher) does not allow a model made from it to be shared.")
    network.lineage = lineage.node(name="m", digest="", licence=licence)
    saved.save(network, tmp_path / "mine")
    with pytest.raises(UserError, match="may not be shared: CC-BY-ND"):
        upcycle.push(tmp_path / "mine", "org/mine", dry_run=True)


def test_a_hub_that_refuses_is_one_sentence(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*words: Any, **how: Any) -> None:
        raise OSError("401 Client Error\nand more")

    monkeypatch.setattr(hub, "HfApi", lambda: SimpleNamespace(create_repo=refuse))
    with pytest.raises(UserError, match=r"did not take org/mine: OSError: 401 Client Error\. Is somebody logged in"):
        upcycle.push(model, "org/mine")
