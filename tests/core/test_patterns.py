"""Patterns of what runs keep, and every method's stages read back from files that a stranger wrote."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import pytest
import torch
from msgspec import Meta
from torch import Tensor, nn

from tests.settings import ROWS
from upcycle.core import patterns, store
from upcycle.core.errors import UserError
from upcycle.core.patterns import Values, weights_of
from upcycle.core.run import Run

FILE = Path("state.safetensors")
SHARE = Annotated[float, Meta(ge=0, le=1)]
PATTERN = {
    "positions": Values((None,), low=0, high=9, whole=True),
    "pair": (Values((2, 3)), str),
    "scales": [SHARE],
    "row": dict[str, list[float | None]],
}
STATE: dict[str, Any] = {
    "positions": torch.tensor([0, 9, 3]),
    "pair": [torch.rand(2, 3), "conv"],
    "scales": (0.5, 1.0),
    "row": {"class": [None, 0.5]},
}


def test_what_fits_passes() -> None:
    patterns.check(STATE, PATTERN, FILE)
    patterns.check({**STATE, "positions": torch.zeros(0, dtype=torch.int64)}, PATTERN, FILE)
    module = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2))
    patterns.check(module.state_dict(), weights_of(module), FILE)
    patterns.check(module.double().state_dict(), weights_of(module), FILE)
    patterns.check(torch.tensor([True, False]), Values((2,), 0, 1, whole=True), FILE)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"positions": torch.tensor([0, 10])}, r"\$\.positions must lie between 0 and 9, not between 0 and 10"),
        ({"positions": torch.tensor([-1])}, "must lie between 0 and 9"),
        ({"positions": torch.tensor([1.0])}, "must hold whole numbers"),
        ({"positions": torch.zeros(2, 2, dtype=torch.int64)}, "must be a tensor of any, not of 2 x 2"),
        ({"positions": [0]}, "must be a tensor"),
        ({"pair": (torch.rand(2, 4), "a")}, r"\$\.pair\[0\] must be a tensor of 2 x 3, not of 2 x 4"),
        ({"pair": (torch.rand(2, 3), 1)}, r"\$\.pair\[1\] must be text"),
        ({"pair": (torch.rand(2, 3),)}, "must be a list of 2"),
        ({"scales": []}, "must be a list of one item or more"),
        ({"scales": [0.5, 1.5]}, r"\$\.scales\[1\] must be"),
        ({"row": {"class": ["high"]}}, r"\$\.row"),
        ({"more": 1}, "the names that belong there; more"),
    ],
)
def test_what_does_not_fit_is_named(change: dict[str, Any], says: str) -> None:
    with pytest.raises(UserError, match=r"state\.safetensors is damaged: .*" + says):
        patterns.check({**STATE, **change}, PATTERN, FILE)
    nan = Values((1,), 0, 1)
    with pytest.raises(UserError, match="must lie between"):
        patterns.check(torch.tensor([float("nan")]), nan, FILE)


# -- every method -------------------------------------------------------------------------------------------------


def fit(name: str, run: Run) -> None:
    try:
        data, method = ROWS[name].data(160), ROWS[name].make()
        method.begin(run, data)
        method.fit(run, data)
    finally:
        run.close()


def changed(value: Any) -> Any:
    """A state of the same form in which every tensor, or else every number, is another."""
    if isinstance(value, Tensor) and not value.dim():
        return value[None]
    if isinstance(value, Tensor):
        return value[..., :-1].clone() if value.is_floating_point() or value.dtype == torch.bool else value - 10**6
    if isinstance(value, dict):
        return {key: changed(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [changed(item) for item in value]
    return "far" if isinstance(value, int | float) else value


def forgeries(value: Any) -> Iterator[Any]:
    """Other results of a stage."""
    yield {} if isinstance(value, dict) else None
    yield changed(value)


FIRST = {row.method.card.name: name for name, row in reversed(ROWS.items())}  # a row of each method


@pytest.mark.parametrize("name", FIRST.values())
def test_a_forged_result_of_a_stage_is_named(name: str, tmp_path: Path) -> None:
    fit(name, Run(tmp_path / "run", seed=4, quiet=True))
    file = tmp_path / "run" / "checkpoints" / "index.json"
    index = store.unsealed(file, dict[str, Any])
    folder = file.parent
    stages = list(index["stages"])
    for path in dict.fromkeys((*stages[:1], *stages[-1:])):
        kept = index["stages"][path]
        state = store.load_state(folder / kept["file"], index["files"][kept["file"]]) if kept["file"] else None
        state = store.unpack(kept["value"], {}) if state is None else state
        for other in forgeries(state):
            shutil.rmtree(tmp_path / "again", ignore_errors=True)
            shutil.copytree(tmp_path / "run", tmp_path / "again")
            at = tmp_path / "again" / "checkpoints"
            files = {**index["files"], "000900.safetensors": store.save_state(at / "000900.safetensors", other)}
            forged = {**index, "files": files, "current": None, "saves": 900}
            forged["stages"] = {**index["stages"], path: {**kept, "file": "000900.safetensors", "value": None}}
            store.write_json(at / "index.json", store.sealed(forged))
            with pytest.raises(UserError):
                fit(name, Run(tmp_path / "again", seed=4, resume=True, quiet=True))
