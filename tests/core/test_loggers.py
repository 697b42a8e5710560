"""Where figures go beside a run's directory: the same ones, by the same names, at the same updates."""

from __future__ import annotations

import csv
import sys
import types
from pathlib import Path
from typing import Any

import pytest

from tests.verbs.test_bad_input import here
from upcycle import cli
from upcycle.core import store
from upcycle.core.errors import UserError
from upcycle.core.loggers import check
from upcycle.core.run import Run
from upcycle.reports.figures import curves

__all__ = ["here"]  # a fixture

DISTILL = ["distill", "--teacher=zoo:digits_teacher", "--student=zoo:convnet_small", "--data=digits", "--epochs=2"]
PIXEL = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAAAAAA6fptVAAAACklEQVR4nGNoAAAAggCBd81ytgAAAABJRU5ErkJggg=="


def rows(run: Path) -> dict[tuple[str, int], float]:
    """The figures of ``metrics.csv`` by name and update; the last of several counts."""
    with open(run / "metrics.csv", newline="") as file:
        return {(f"{r['stage']}/{r['name']}", int(r["step"])): float(r["value"]) for r in csv.DictReader(file)}


def test_tensorboard_and_the_report_agree(here: Path) -> None:
    reading = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    assert cli.main([*DISTILL, "--lr=0.05", "--batch_size=200", "--logger=tensorboard", "--out=run", "--quiet"]) == 0
    events = reading.EventAccumulator("run/events")
    events.Reload()
    known = rows(Path("run"))
    found = {(tag, point.step): point.value for tag in events.Tags()["scalars"] for point in events.Scalars(tag)}
    assert found == pytest.approx(known, rel=1e-6)
    shown = {c.name: c.y for c in curves(Path("run")) if c.arm == "student"}
    for name in ("loss", "validation_accuracy", "lr"):
        points = [point.value for point in events.Scalars(f"main/{name}")]
        assert points == pytest.approx(shown[name], rel=1e-6)
    assert 0 < shown["lr"][1] < shown["lr"][0] < 0.05  # of the last update of each epoch
    session = events.summary_metadata["_hparams_/session_start_info"].plugin_data.content
    assert b"recipe.lr" in session and b"zoo:digits_teacher" in session
    assert "logger" not in Path("run/config.yaml").read_text()


def logged(run: Run) -> None:
    """A figure, a picture that is an image, and one that is a plot."""
    run.begin({})
    run.log(loss=0.5)
    run.picture("1-seen", {"kind": "images", "title": "Seen", "items": [{"png": PIXEL, "label": "cat"}]})
    run.picture("2-lines", {"kind": "lines", "title": "Lines", "series": []})
    run.close()


def test_images_of_the_report_are_in_tensorboard(tmp_path: Path) -> None:
    reading = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    logged(Run(tmp_path / "run", quiet=True, logger="tensorboard"))
    events = reading.EventAccumulator(str(tmp_path / "run" / "events"))
    events.Reload()
    assert events.Tags()["images"] == ["1-seen/cat"]


def test_without_a_logger_nothing_but_the_directory_is_written(tmp_path: Path) -> None:
    logged(Run(tmp_path / "run", quiet=True, logger="none"))
    assert not (tmp_path / "run" / "events").exists() and rows(tmp_path / "run") == {("main/loss", 0): 0.5}


class Told:
    """A stand-in for a client: records what it is told, and answers with itself."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, Any, Any]] = []

    def __getattr__(self, name: str) -> Any:
        def call(*given: Any, **options: Any) -> Any:
            self.calls.append((name, given, options))
            return self

        return call

    def of(self, name: str) -> list[tuple[Any, Any]]:
        return [(given, options) for called, given, options in self.calls if called == name]


def stub(name: str, monkeypatch: pytest.MonkeyPatch, **content: Any) -> None:
    """Put a library in place that is not installed."""
    module = types.ModuleType(name)
    module.__spec__ = types.SimpleNamespace(origin="here", name=name)  # type: ignore[assignment]
    vars(module).update(content)
    monkeypatch.setitem(sys.modules, name, module)


def test_wandb_gets_options_figures_and_images_and_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told, numbers = Told(), iter(["abc", "def"])
    util = types.SimpleNamespace(generate_id=lambda: next(numbers))
    stub("wandb", monkeypatch, init=told.init, Image=lambda image: image.size, util=util)
    config = {"recipe": {"lr": 0.1}, "seed": 3, "out": None, "augment": ["crop", "flip"]}
    logged(Run(tmp_path / "run", quiet=True, logger="wandb", config=config))
    logged(Run(tmp_path / "run", quiet=True, logger="wandb", config=config, resume=True))
    first, second = (options for _, options in told.of("init"))
    assert first["config"] == {"recipe.lr": 0.1, "seed": 3, "augment": "['crop', 'flip']"}
    assert (first["id"], first["name"], first["resume"]) == ("abc", "run", "allow") and second["id"] == "abc"
    assert told.of("log")[:2] == [(({"main/loss": 0.5},), {"step": 0}), (({"1-seen/cat": (1, 1)},), {"step": 0})]
    assert len(told.of("finish")) == 2


def test_mlflow_gets_options_figures_and_images_and_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told = Told()
    told.info = types.SimpleNamespace(run_id="r1")  # type: ignore[attr-defined]
    told.experiment_id = "7"  # type: ignore[attr-defined]
    stub("mlflow", monkeypatch, MlflowClient=lambda: told)
    for resume in (False, True):
        logged(Run(tmp_path / "run", quiet=True, logger="mlflow", config={"seed": 3}, resume=resume))
    assert told.of("create_run") == [(("7",), {"run_name": "run"})]
    assert told.of("log_param") == [(("r1", "seed", 3), {})] * 2
    assert told.of("log_metric") == [(("r1", "main/loss", 0.5), {"step": 0})] * 2
    assert told.of("log_image")[0][0][2] == "1-seen/cat.png" and len(told.of("set_terminated")) == 2
    assert store.read_json(tmp_path / "run" / "events" / "mlflow.json") == {"run": "r1"}


def test_a_logger_that_is_not_there_or_does_not_begin_is_one_sentence(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("mlflow").mkdir()  # as such a library leaves it behind; no library
    monkeypatch.syspath_prepend(str(here))
    for name in ("wandb", "mlflow"):
        if name not in sys.modules:
            with pytest.raises(UserError, match=rf"{name} is not installed: pip install 'upcycle\[{name}\]'"):
                check(name)
    assert cli.main([*DISTILL, "--logger=mlflow", "--out=run"]) == 2
    assert "pip install 'upcycle[mlflow]'" in capsys.readouterr().err and not Path("run").exists()

    def fails(**options: Any) -> None:
        raise RuntimeError("no API key")

    stub("wandb", monkeypatch, init=fails, util=types.SimpleNamespace(generate_id=lambda: "abc"))
    assert cli.main([*DISTILL, "--logger=wandb", "--out=run", "--quiet"]) == 2
    assert "The logger wandb does not begin (RuntimeError: no API key); take another logger." in capsys.readouterr().err
    assert (
        cli.main([*DISTILL, "--batch_size=500", "--out=run", "--quiet", "--resume", "--logger=none"]) == 2
    )  # other options
    assert cli.main([*DISTILL, "--out=run", "--quiet", "--resume", "--logger=none"]) == 0
