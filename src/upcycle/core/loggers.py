"""Where the figures of a run go beside its own directory: TensorBoard, Weights & Biases or MLflow.

Each takes the figures that ``metrics.csv`` has, by the same names and at the same updates, the options of the run as
hyper-parameters, and its pictures of images. A run that is resumed goes on in the same place.
"""

from __future__ import annotations

import base64
import importlib.util
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, Protocol

from upcycle.core import store
from upcycle.core.errors import UserError, one_line

LoggerName = Literal["auto", "tensorboard", "wandb", "mlflow", "none"]
PROJECT = "upcycle"
"""What the runs are filed under, where a service files them."""


class Logger(Protocol):
    """Takes what a run logs."""

    def figures(self, values: dict[str, float], updates: int) -> None:
        """Take figures by name, after so many updates."""

    def image(self, name: str, image: Any, updates: int) -> None:
        """Take a PIL image."""

    def close(self) -> None:
        """Finish."""


def check(name: LoggerName) -> None:
    """Raise :class:`UserError` for a logger whose library is not installed."""
    if name not in ("auto", "none") and not _is_installed(name):
        raise UserError(f"The logger {name} is not installed: pip install 'upcycle[{name}]', or take another logger.")


def begin(name: LoggerName, directory: Path, config: dict[str, Any]) -> Logger | None:
    """The logger of a run.

    Args:
        name: auto is TensorBoard where it is installed, and none elsewhere.
        directory: of the run.
        config: its options.

    Raises:
        UserError: it is not installed, or does not begin.
    """
    check(name)
    if name == "none" or (name == "auto" and not _is_installed("tensorboard")):
        return None
    made: type[TensorBoard] | type[WandB] | type[MLflow]
    made = WandB if name == "wandb" else MLflow if name == "mlflow" else TensorBoard
    try:
        return made(directory, dict(_flat(config)))
    except Exception as error:  # of whatever service answers, or does not
        raise UserError(f"The logger {name} does not begin ({one_line(error)}); take another logger.") from error


def images_of(name: str, picture: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """The images in a picture of a run, as PIL images, by name; nothing for plots, which the report draws."""
    from PIL import Image

    for i, item in enumerate(picture.get("items", ()) if picture.get("kind") == "images" else ()):
        if isinstance(item.get("png"), str):
            yield f"{name}/{item.get('label', i)}", Image.open(io.BytesIO(base64.b64decode(item["png"])))


def _is_installed(package: str) -> bool:
    """Whether a package is there; a folder of that name, as these libraries leave one behind, is none."""
    found = importlib.util.find_spec(package)
    return found is not None and found.origin is not None


def _flat(config: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, str | float | bool]]:
    """Options as hyper-parameters: groups with a dot, lists as text; what has no value is left out."""
    for key, value in config.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{key}.")
        elif value is not None:
            yield f"{prefix}{key}", value if isinstance(value, str | int | float) else str(value)


class TensorBoard:
    """Event files in ``events/`` of the run directory."""

    def __init__(self, directory: Path, options: dict[str, Any]) -> None:
        self._place, self._options = directory / "events", options
        self._writer: Any = None

    def figures(self, values: dict[str, float], updates: int) -> None:
        """Write scalars; what an interrupted run wrote from here on is hidden."""
        for name, value in values.items():
            self._open(updates).add_scalar(name, value, updates)

    def image(self, name: str, image: Any, updates: int) -> None:
        """Write an image."""
        import numpy as np

        self._open(updates).add_image(name, np.asarray(image.convert("RGB")), updates, dataformats="HWC")

    def close(self) -> None:
        """Write what is not written yet."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    def _open(self, updates: int) -> Any:
        if self._writer is None:
            from torch.utils.tensorboard import SummaryWriter
            from torch.utils.tensorboard.summary import hparams

            self._writer = SummaryWriter(str(self._place), purge_step=updates)
            for part in hparams(self._options, {}):
                self._writer.file_writer.add_summary(part)
        return self._writer


class WandB:
    """A run of Weights & Biases, whose number is kept in the run directory."""

    def __init__(self, directory: Path, options: dict[str, Any]) -> None:
        import wandb

        self._wandb, known = wandb, directory / "events" / "wandb.json"
        self._run = wandb.init(
            project=PROJECT,
            name=_name(directory),
            dir=str(directory),
            config=options,
            id=_kept(known, wandb.util.generate_id),
            resume="allow",
            reinit="create_new",  # the runs of other seeds are open beside it
        )

    def figures(self, values: dict[str, float], updates: int) -> None:
        """Send figures."""
        self._run.log(values, step=updates)

    def image(self, name: str, image: Any, updates: int) -> None:
        """Send an image."""
        self._run.log({name: self._wandb.Image(image)}, step=updates)

    def close(self) -> None:
        """Say that the run is over."""
        self._run.finish()


class MLflow:
    """A run of MLflow, whose number is kept in the run directory."""

    def __init__(self, directory: Path, options: dict[str, Any]) -> None:
        import mlflow

        self._client = mlflow.MlflowClient()
        experiment = self._client.get_experiment_by_name(PROJECT)
        number = self._client.create_experiment(PROJECT) if experiment is None else experiment.experiment_id

        def make() -> str:
            return str(self._client.create_run(number, run_name=_name(directory)).info.run_id)

        self._run = _kept(directory / "events" / "mlflow.json", make)
        self._client.update_run(self._run, status="RUNNING")
        for name, value in options.items():
            self._client.log_param(self._run, name, value)

    def figures(self, values: dict[str, float], updates: int) -> None:
        """Send figures."""
        for name, value in values.items():
            self._client.log_metric(self._run, name, value, step=updates)

    def image(self, name: str, image: Any, updates: int) -> None:
        """Send an image."""
        self._client.log_image(self._run, image, f"{name}.png")

    def close(self) -> None:
        """Say that the run is over."""
        self._client.set_terminated(self._run)


def _name(directory: Path) -> str:
    """What a run is called: its directory, and for a further seed or arm the one that it stands under."""
    place = directory.resolve()
    return f"{place.parent.parent.name}/{place.name}" if place.parent.name == "more" else place.name


def _kept(file: Path, make: Any) -> str:
    """The number of a run with a service: the one that it has, or a new one that is kept."""
    if file.is_file():
        return str(store.read_json(file)["run"])
    number = str(make())
    store.write_json(file, {"run": number})
    return number
