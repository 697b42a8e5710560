"""Image classifiers of transformers: ``hf:ORG/NAME``, or ``hf:`` and a directory. No remote code is run."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import re
from pathlib import Path
from typing import Any

from upcycle.core.errors import UserError, one_line
from upcycle.core.models import Model
from upcycle.core.outputs import Logits


def spelled(name: str) -> str:
    """The name as it is: the hub tells case apart."""
    return name


def check(name: str) -> None:
    """Raise UserError for what is neither ORG/NAME nor a local directory with a ``config.json``."""
    if importlib.util.find_spec("transformers") is None:
        raise UserError('hf: references need transformers: pip install "upcycle[hub]"')
    if Path(name).is_dir():
        if not (Path(name) / "config.json").is_file():
            raise UserError(f"There is no config.json in {name}; hf: takes a directory that transformers saved.")
    elif not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", name):
        raise UserError(f"'hf:{name}' is neither hf:ORG/NAME nor hf: and an existing directory.")


def build(
    name: str,
    *,
    pretrained: bool,
    num_classes: int | None = None,
    input_shape: tuple[int, int, int] | None = None,
    config: dict[str, Any] | None = None,
) -> Model:
    """An image classifier of transformers.

    Args:
        name: ORG/NAME on the hub, or a local directory.
        pretrained: with its trained weights; otherwise only its configuration is read.
        num_classes: outputs of a fresh network; those of the configuration when not given. Trained ones keep
            theirs.
        input_shape: (c, h, w); what the image processor or the configuration says when not given.
        config: the configuration itself, so that a saved model is rebuilt without the hub.

    Raises:
        UserError: transformers missing, no such model, no image classifier, or no network.
    """
    if config is None:
        check(name)
    import transformers

    try:
        if config is None:
            settings = transformers.AutoConfig.from_pretrained(name, trust_remote_code=False)
        else:
            settings = transformers.AutoConfig.for_model(**config)
        preparation = {} if config is not None else _preparation(transformers, name)
        shape = input_shape or _shape(settings, preparation)
        auto = transformers.AutoModelForImageClassification
        if pretrained:
            network = auto.from_pretrained(name, config=settings, trust_remote_code=False)
        else:
            _adapt(settings, num_classes, shape)
            network = auto.from_config(settings, trust_remote_code=False)
    except (OSError, ValueError, TypeError, KeyError, RuntimeError, ImportError) as error:
        raise UserError(
            f"hf:{name} cannot be built: {one_line(error)}. Without a network, give hf: and a directory that "
            "transformers saved."
        ) from error
    labels = network.config.id2label
    named = pretrained or num_classes is None
    mean, std = _normalisation(preparation, shape[0])
    return Model(
        module=Logits(network),
        input_shape=shape,
        mean=mean,
        std=std,
        classes=tuple(str(labels[i]) if named else str(i) for i in range(len(labels))),
        reference=f"hf:{name}",
        options={"input_shape": list(shape), "config": json.loads(network.config.to_json_string())},
        licence=_licence(name) if pretrained else "unknown",
        name=name.rstrip("/").rpartition("/")[2],
    )


def _preparation(transformers: Any, name: str) -> dict[str, Any]:
    """What the model's image processor does, as data; nothing when it has none."""
    with contextlib.suppress(OSError):
        return transformers.ImageProcessingMixin.get_image_processor_dict(name)[0]
    return {}


def _shape(settings: Any, preparation: dict[str, Any]) -> tuple[int, int, int]:
    """(c, h, w), from the processor's crop or size, else from the configuration."""
    size: Any = getattr(settings, "image_size", None) or 224
    if preparation.get("do_resize", True):
        size = preparation.get("size") or size
    if preparation.get("do_center_crop"):
        size = preparation.get("crop_size") or size
    if isinstance(size, dict):
        edge = size.get("shortest_edge")
        size = (size.get("height", edge), size.get("width", edge))
    height, width = (size, size) if isinstance(size, int) else size
    return getattr(settings, "num_channels", 3), int(height), int(width)


def _adapt(settings: Any, num_classes: int | None, shape: tuple[int, int, int]) -> None:
    """Bring the configuration of a fresh network to other classes and images."""
    if num_classes is not None and num_classes != settings.num_labels:
        settings.num_labels = num_classes
    if hasattr(settings, "num_channels"):
        settings.num_channels = shape[0]
    if hasattr(settings, "image_size"):
        settings.image_size = shape[1] if shape[1] == shape[2] else [shape[1], shape[2]]


def _normalisation(preparation: dict[str, Any], channels: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    mean, std = preparation.get("image_mean"), preparation.get("image_std")
    if mean is None or std is None or not preparation.get("do_normalize", True) or len(mean) != channels:
        return (0.0,) * channels, (1.0,) * channels
    return tuple(mean), tuple(std)


def _licence(name: str) -> str:
    """As the model card states it."""
    import huggingface_hub

    card = Path(name) / "README.md" if Path(name).is_dir() else name
    with contextlib.suppress(Exception):  # no card, no network, no header: the licence stays unknown
        return str(huggingface_hub.ModelCard.load(card).data.license or "unknown")
    return "unknown"
