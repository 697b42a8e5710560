"""``extend`` with one class a task, of folders and of splits, by methods of every kind."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import upcycle
from upcycle.core import saved


@pytest.fixture(scope="module")
def tasks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders ``tasks/N/CLASS/IMAGE`` of digits."""
    root = tmp_path_factory.mktemp("one class a task")
    digits = upcycle.load_data("digits")
    for t, k in enumerate((3, 1, 7)):
        folder = root / "tasks" / str(t) / f"digit {k}"
        folder.mkdir(parents=True)
        for i in (digits.train.labels == k).nonzero()[:40, 0].tolist():
            Image.fromarray(digits.train.images[i, :, :, 0].numpy()).save(folder / f"{i}.png")
    return root / "tasks"


@pytest.mark.parametrize("method", ["er", "lwf", "oewc"])
@pytest.mark.parametrize("kind", ["folders", "splits"])
def test_one_class_a_task(method: str, kind: str, tasks: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    recipe = {"epochs": 1, "lr": 0.01, "batch_size": 8}
    if kind == "splits":
        Path("digits of three").mkdir()
        for folder in tasks.glob("*/*"):
            (Path("digits of three") / folder.name).symlink_to(folder)
    reference = f"folders:{tasks}" if kind == "folders" else "splits:digits of three/1+1"
    made = upcycle.extend(
        "zoo:convnet_small", method=method, stream=reference, control=False, quiet=True, out=Path("run"), recipe=recipe
    )
    assert set(made.model.classes) == {"digit 1", "digit 3", "digit 7"}
    assert len(made.rows[-1]["accuracy"]) == 1 and np.isfinite(made.rows[-1]["accuracy"][0])
    assert saved.load("run").classes == made.model.classes
