"""Save points write the blocks of large tensors that have changed, and nothing else twice."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from upcycle.core import blocks, store
from upcycle.core.errors import UserError
from upcycle.core.journal import Journal


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blocks, "BLOCK", 800)


def opened(place: Path, resume: bool = False) -> Journal:
    journal = Journal(place, True)
    journal.open(resume, "32-true", 1, {})
    return journal


def files(place: Path) -> set[str]:
    return {file.name for file in (place / "checkpoints").glob("*.safetensors")}


def save(journal: Journal, state: dict[str, Any], step: int = 0) -> None:
    journal.save("main", state, epoch=0, step=step, updates=step)


@pytest.mark.parametrize("tensor", [torch.randn(150, 4), torch.randn(3, 500), torch.randint(9, (901,)), torch.ones(())])
def test_what_is_split_is_put_together(tensor: Tensor) -> None:
    named = {"a.b#c": tensor, "small": torch.ones(2)}
    left, parts = blocks.split_off(named)
    assert all(part.numel() * part.element_size() <= 800 or len(part) == 1 for part in parts.values())
    found = {**left, **blocks.put_together(parts)}
    assert found.keys() == named.keys() and all(torch.equal(found[name], named[name]) for name in named)


def test_only_changed_blocks_are_written_and_old_ones_go(tmp_path: Path) -> None:
    store, weights = torch.randn(200, 10), torch.zeros(3)  # 8,000 bytes: ten blocks of 20 rows
    journal = opened(tmp_path)
    save(journal, {"store": store[:100], "weights": weights})
    first = files(tmp_path)
    assert len(first) == 6
    save(journal, {"store": store[:110], "weights": weights + 1}, 1)  # it grew by half a block
    second = files(tmp_path)
    assert len(second) == 7 and len(second & first) == 5
    store[3] += 1
    save(journal, {"store": store[:110], "weights": weights + 1}, 2)
    third = files(tmp_path)
    assert len(third) == 7 and len(third & second) == 5
    journal.close()

    again = opened(tmp_path, resume=True)
    found = again.saved("main")
    assert found is not None and found[1]["step"] == 2
    assert torch.equal(found[0]["store"], store[:110]) and torch.equal(found[0]["weights"], weights + 1)
    save(again, {"store": store[:110], "weights": weights + 2}, 3)
    assert len(files(tmp_path) & third) == 6  # what was read is known
    again.finish("main", {"end": 1}, 3)
    assert files(tmp_path) == set()
    save(again, {"store": store[:110]}, 4)  # nothing that is gone is named
    assert len(files(tmp_path)) == 7
    again.close()


def test_a_damaged_or_missing_block_is_named(tmp_path: Path) -> None:
    journal = opened(tmp_path)
    save(journal, {"store": torch.randn(100, 10)})
    journal.close()
    name = sorted(files(tmp_path))[2]
    file = tmp_path / "checkpoints" / name
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    broken = opened(tmp_path, resume=True)
    with pytest.raises(UserError, match=rf"{name} is damaged: tensor '\.store#2'"):
        broken.saved("main")
    broken.close()
    file.unlink()
    lost = opened(tmp_path, resume=True)
    with pytest.raises(UserError, match=name):
        lost.saved("main")
    lost.close()


def test_tensors_that_share_memory_are_saved_like_others(tmp_path: Path) -> None:
    """As those of a network do that is registered whole and in parts."""
    weight = torch.randn(4, 4, generator=torch.Generator().manual_seed(0))
    state = {"network": {"weight": weight}, "head": {"weight": weight, "row": weight[1]}}
    record = store.save_state(tmp_path / "state.safetensors", state)
    found = store.load_state(tmp_path / "state.safetensors", record)
    assert torch.equal(found["network"]["weight"], weight) and torch.equal(found["head"]["weight"], weight)
    assert torch.equal(found["head"]["row"], weight[1])
