"""Trained weights of others are fetched from their home, once, and are those that were measured."""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tests.file_server import Served, serving
from upcycle.core import fetching
from upcycle.core.errors import UserError
from upcycle.core.references import resolve
from upcycle.zoo import ENTRIES, published
from upcycle.zoo.published import PUBLISHED, digest_of

NAME = "cifar10_resnet20"


@pytest.fixture
def served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Served]:
    """A server that has weights as their authors would write them: of a network on several devices, with a score."""
    fetching._answers.cache_clear()
    monkeypatch.setenv("UPCYCLE_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("UPCYCLE_OFFLINE")
    monkeypatch.delenv("UPCYCLE_DATA", raising=False)
    state = resolve(f"zoo:{NAME}", pretrained=False).module.state_dict()
    written = io.BytesIO()
    torch.save({"state_dict": {f"module.{key}": value for key, value in state.items()}, "best_prec1": 91.7}, written)
    with serving({"net.th": written.getvalue()}) as server:
        known = dataclasses.replace(PUBLISHED[NAME], address=f"{server.address}net.th", digest=digest_of(state))
        monkeypatch.setitem(published.PUBLISHED, NAME, known)
        yield server
    fetching._answers.cache_clear()


def test_they_are_fetched_once_and_kept_as_safetensors(served: Served, tmp_path: Path) -> None:
    first = resolve(f"zoo:{NAME}")
    assert digest_of(first.module.state_dict()) == PUBLISHED[NAME].digest and first.classes[3] == "cat"
    assert [p.name for p in (tmp_path / "cache" / "fetched" / NAME).iterdir()] == [f"{NAME}.safetensors"]
    served.files.clear()
    resolve(f"zoo:{NAME}")
    assert served.asked == ["net.th"]


def test_other_weights_are_refused(served: Served, tmp_path: Path) -> None:
    other = io.BytesIO()
    torch.save(resolve(f"zoo:{NAME}", pretrained=False).module.state_dict(), other)
    served.files["net.th"] = other.getvalue()
    with pytest.raises(UserError, match=f"net.th holds other weights than those of zoo:{NAME}"):
        resolve(f"zoo:{NAME}")
    assert not list((tmp_path / "cache").rglob("*.safetensors"))


def test_without_a_network_the_sentence_says_what_to_do(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    known = dataclasses.replace(PUBLISHED[NAME], address="http://127.0.0.1:1/net.th")
    monkeypatch.setitem(published.PUBLISHED, NAME, known)
    said = "not there, and 127.0.0.1:1 does not answer within 5 seconds: fetch them from https://github.com/akamaster"
    with pytest.raises(UserError, match=said):
        resolve(f"zoo:{NAME}")


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_digests_are_of_the_weights_that_were_measured(name: str, cifar10: Path) -> None:
    assert ENTRIES[name].trained is not None
    assert digest_of(resolve(f"zoo:{name}").module.state_dict()) == PUBLISHED[name].digest
    size = (cifar10 / "weights" / f"{name}.safetensors").stat().st_size
    assert PUBLISHED[name].megabytes == pytest.approx(size / 1e6, rel=0.15)
