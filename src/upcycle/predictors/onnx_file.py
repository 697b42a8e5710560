"""A classifier in an ONNX file, run with onnxruntime."""

from __future__ import annotations

import importlib.util
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, TypedDict

import torch
from msgspec import Meta
from torch import Tensor

from upcycle.core.errors import UserError, one_line, require, require_names
from upcycle.core.read import bytes_of, parse
from upcycle.core.reading import Read, Reading
from upcycle.core.store import digest_of
from upcycle.data import ImageSplit
from upcycle.measure.export import METADATA
from upcycle.predictors.answers import Answers, from_logits, ranked, require_shape

TOLERANCE = 1e-4  # by how much the sum of probabilities may miss 1
PATIENCE, LONGEST = 8.0, 300.0  # seconds that an image may take, and a batch: what is in a file need not end


class OnnxFile:
    """An ONNX file as a black box, on the CPU.

    Its one input is images, float32 (b, c, h, w); its first output has a row of k numbers an image. What a file
    that ``upcycle export`` wrote says about itself need not be given.

    Args:
        path: the file.
        classes: names of the k outputs; their numbers where neither this nor the file says.
        mean, std: per channel, of images in [0, 1]: what the inputs are normalised with. zeros and ones where the
            file normalises its inputs itself.
        logits: whether the outputs are logits; ``False``: probabilities, of all classes together (rows with a sum
            of 1) or of each by itself (a sigmoid; they become those of exactly one class being there, which are
            proportional to p / (1 - p)). ``None``: logits, unless all rows have a sum of 1 and nothing negative.

    Raises:
        UserError: onnxruntime is not installed, the file is missing or damaged or no such classifier, or nothing
            says how its inputs are normalised. When it is asked: outputs that may be either, or no answer in time.
    """

    def __init__(
        self,
        path: str | Path,
        classes: Sequence[str] | None = None,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        logits: bool | None = None,
        batch_size: int = 256,
    ) -> None:
        path = Path(path)
        check_file(path)
        require(batch_size >= 1, f"batch_size must be at least 1, not {batch_size}.")
        import onnxruntime

        settings = onnxruntime.SessionOptions()
        settings.log_severity_level = 4  # what it has to say comes as an exception
        settings.intra_op_num_threads = torch.get_num_threads()
        try:
            self._session = onnxruntime.InferenceSession(str(path), settings, providers=["CPUExecutionProvider"])
        except Exception as error:
            raise UserError(f"{path} cannot be read as ONNX: {one_line(error)}.") from error
        self.name, self.logits = path.stem, logits
        self.digest = digest_of(bytes_of(path))
        facts = _facts(self._session.get_modelmeta().custom_metadata_map, path)

        images, outputs = self._session.get_inputs(), self._session.get_outputs()
        shape, row = images[0].shape if images else [], outputs[0].shape
        if len(images) != 1 or images[0].type != "tensor(float)" or len(shape) != 4 or len(row) != 2:
            wants = ", ".join(f"{i.name}: {i.type} {i.shape}" for i in images)
            raise UserError(
                f"{path} is no classifier of images: it takes {wants} and gives {outputs[0].shape}, instead of "
                "float images (batch, channels, height, width) and a row of numbers an image."
            )
        sizes = [n if isinstance(n, int) else None for n in shape]  # a name or nothing stands for any size
        self._input, self._shape = images[0].name, (sizes[1], sizes[2], sizes[3])
        self._fixed, self._batch_size = sizes[0] is not None, sizes[0] or batch_size

        mean, std = mean or facts.get("mean"), std or facts.get("std")
        if mean is None or std is None:
            raise UserError(f"{path} does not say what its inputs are normalised with: give mean and std, a number a "
                            "channel (zeros and ones if it does so itself).")  # fmt: skip
        self.mean, self.std = tuple(mean), tuple(std)
        self.reading = Reading(**facts.get("reading", {}))
        k = row[1] if isinstance(row[1], int) else None
        names = classes or facts.get("classes") or (range(k) if k else ())
        require(len(names) > 0, f"{path} does not say how many classes it has: give their names (classes).")
        require(k in (None, len(names)), f"{path} has {k} outputs, but {len(names)} class names.")
        self.classes = tuple(map(str, names))
        require_names(self.classes, str(path))

    def predict(self, split: ImageSplit) -> Answers:
        """See :class:`upcycle.predictors.Predictor`."""
        require_shape(split, self._shape, self.name)
        split = split.normalised(self.mean, self.std)
        if not self._fixed:
            self._outputs(split, torch.arange(min(1, len(split))))  # which shows within seconds whether it ends
        z = torch.cat([self._outputs(split, index) for index in torch.arange(len(split)).split(self._batch_size)])
        require(
            z.shape[1] == len(self.classes), f"{self.name} gives {z.shape[1]} outputs for {len(self.classes)} classes."
        )
        probable = bool(((z >= 0).all(1) & ((z.double().sum(1) - 1).abs() < TOLERANCE)).all())
        if self.logits is not True and probable:
            return ranked(z / z.sum(1, keepdim=True))
        between = z.shape[1] > 1 and bool(((z >= 0) & (z <= 1)).all())
        require(
            self.logits is not None or not between,
            f"{self.name} answers with numbers between 0 and 1 that do not sum to 1: in Python, give it as an OnnxFile "
            "with logits False where each is the probability of its class by itself, or True where they are logits.",
        )
        if self.logits is False:
            require(between, f"{self.name} gives no probabilities: numbers below 0 or above 1.")
            z = z.double().clamp(1e-7, 1 - 1e-7).logit()
        return ranked(from_logits(z, self.name))

    def _outputs(self, split: ImageSplit, index: Tensor) -> Tensor:
        """float32 (b, k). A file made for one size of batch gets it: the last image stands in for lacking ones."""
        lacking = self._batch_size - len(index) if self._fixed else 0
        batch = split.batch(torch.cat([index, index[-1:].repeat(lacking)]), device=torch.device("cpu"))
        import onnxruntime

        options, patience = onnxruntime.RunOptions(), min(PATIENCE * len(batch.images), LONGEST)
        timer = threading.Timer(patience, setattr, (options, "terminate", True))
        timer.start()
        try:
            out = self._session.run(None, {self._input: batch.images.contiguous().numpy()}, options)[0]
        except Exception as error:
            if options.terminate:
                many = f"{len(batch.images):,} image{'s' * (len(batch.images) > 1)}"
                raise UserError(f"{self.name} gives no answer for {many} within {patience:g} seconds.") from error
            raise UserError(
                f"{self.name} failed on images of {tuple(batch.images.shape)}: {one_line(error)}."
            ) from error
        finally:
            timer.cancel()
        return torch.from_numpy(out)[: len(index)].float()


def check_file(path: Path) -> None:
    """Raise UserError if there is no such file or no onnxruntime."""
    require(path.is_file(), f"There is no file {path}.")
    require(importlib.util.find_spec("onnxruntime") is not None,
            f'{path} needs onnxruntime: pip install "upcycle[onnx]".')  # fmt: skip


class Facts(TypedDict, total=False):
    """Metadata that ``upcycle export`` writes into an ONNX file, as far as a predictor needs it."""

    classes: list[str]
    mean: list[float]
    std: list[Annotated[float, Meta(gt=0)]]
    reading: Read


def _facts(metadata: dict[str, str], path: Path) -> dict[str, Any]:
    """What ``upcycle export`` wrote into the file: class names, mean and std; empty for a file of others."""
    return dict(parse(metadata.get(METADATA, "{}"), Facts, path, f"the metadata '{METADATA}'"))
