"""Image classifiers of transformers: ``hf:ORG/NAME``, or ``hf:`` and a directory. No remote code is run."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import re
from pathlib import Path
from typing import Any, TypedDict

from upcycle.core.errors import UserError, one_line, require
from upcycle.core.fetching import may_fetch, not_here
from upcycle.core.models import Model
from upcycle.core.outputs import Logits
from upcycle.core.read import PlainName, checked, contents, parsed, require_file

REMEDY = "Without a network, give hf: and a directory that transformers saved."
SAID = ("_name_or_path", "id2label", "label2id", "label_names", "pretrained_cfg")
"""Keys of a configuration with free text, which nothing is built from."""
OTHERS = ("attn_implementation", "experts_implementation", "auto_map", "backbone", "quantization_config")
"""Ends of keys that may name code or networks of others."""


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
    import transformers
    from huggingface_hub import constants as hub

    at_home = config is not None or Path(name).is_dir()
    if not at_home:
        check(name)
    local = at_home or not may_fetch(hub.ENDPOINT)
    try:
        settings = _settings(transformers, _described(transformers, name, local) if config is None else config, name)
        preparation = {} if config is not None else _preparation(transformers, name, local)
        shape = input_shape or _shape(settings, preparation)
        auto = transformers.AutoModelForImageClassification
        if pretrained:
            network = auto.from_pretrained(name, config=settings, trust_remote_code=False, local_files_only=local)
        else:
            _adapt(settings, num_classes, shape)
            network = auto.from_config(settings, trust_remote_code=False)
    except Exception as error:
        if isinstance(error, UserError):
            raise
        if isinstance(error, OSError) and local and not at_home:
            raise not_here(f"hf:{name}", hub.ENDPOINT, REMEDY) from error
        if not isinstance(error, OSError | ValueError | TypeError | KeyError | RuntimeError | ImportError):
            raise
        raise UserError(f"hf:{name} cannot be built: {one_line(error)}. {REMEDY}") from error
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
        licence=_licence(name, local) if pretrained else "unknown",
        name=name.rstrip("/").rpartition("/")[2],
    )


class _Index(TypedDict):
    """Which file holds each weight."""

    weight_map: dict[str, PlainName]


def _described(transformers: Any, name: str, local: bool) -> dict[str, Any]:
    """The configuration of a directory or of a model on the hub, as data."""
    place = Path(name)
    if not place.is_dir():
        found: dict[str, Any] = transformers.PreTrainedConfig.get_config_dict(name, local_files_only=local)[0]
        return found
    check(name)
    for file in place.iterdir():
        if not file.is_dir():
            require_file(file)
    for index in place.glob("*.index.json"):  # weights in several files, which lie beside it
        checked(parsed(contents(index), index), _Index, index)
    file = place / "config.json"
    return checked(parsed(contents(file), file), dict[str, Any], file)


def _settings(transformers: Any, config: dict[str, Any], name: str) -> Any:
    """The settings that a configuration holds, which a stranger may have written.

    It may be of a classifier of images alone, since others fetch what they name; and it names no code and no network.

    Raises:
        UserError: it does.
    """
    kind = config.get("model_type", "timm_wrapper" if "pretrained_cfg" in config else None)
    known = transformers.models.auto.modeling_auto.MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES
    require(isinstance(kind, str) and kind in known, f"hf:{name} is no image classifier of transformers, but {kind!r}.")
    kept = {key: value for key, value in config.items() if key not in ("_name_or_path", "pretrained_cfg", "auto_map")}
    if place := _elsewhere(kept):
        raise UserError(f"hf:{name} would be built from elsewhere: its configuration names {place}, so it is refused.")
    return transformers.CONFIG_MAPPING[kind].from_dict({**kept, "model_type": kind})


def _elsewhere(config: dict[str, Any], inside: bool = False) -> str:
    """Where a configuration names code, a file or a network beside itself, in words; empty where it does not."""
    for key, value in config.items():
        if key in SAID or value is None:
            continue
        part = inside and key == "model_type" and not re.fullmatch(r"\w+_(vision_model|text_model|text)", str(value))
        if part or str(key).endswith(OTHERS) or str(key) in ("checkpoint_path", "cache_dir"):
            return f"{key}: {value}"
        for one in value if isinstance(value, list) else [value]:
            if isinstance(one, dict) and (found := _elsewhere(one, True)):
                return f"{key}.{found}"
            if isinstance(one, str) and re.search(r"[/\\:]", one):
                return f"{key}: {one}"
    return ""


def _preparation(transformers: Any, name: str, local: bool) -> dict[str, Any]:
    """What the model's image processor does, as data; nothing when it has none."""
    with contextlib.suppress(OSError):
        return transformers.ImageProcessingMixin.get_image_processor_dict(name, local_files_only=local)[0]
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


def _licence(name: str, local: bool) -> str:
    """As the model card states it."""
    import huggingface_hub

    with contextlib.suppress(Exception):  # no card, no network, no header: the licence stays unknown
        card = Path(name) / "README.md"
        if not Path(name).is_dir():
            card = Path(huggingface_hub.hf_hub_download(name, "README.md", local_files_only=local))
        return str(huggingface_hub.ModelCard.load(card).data.license or "unknown")
    return "unknown"
