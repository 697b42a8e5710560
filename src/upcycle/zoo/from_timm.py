"""Networks of timm: ``timm:NAME``."""

from __future__ import annotations

import importlib.util
from typing import Any

from torch import nn

from upcycle.core.errors import UserError, one_line
from upcycle.core.fetching import may_fetch, not_here
from upcycle.core.models import Model
from upcycle.core.reading import Reading, Resize
from upcycle.zoo.from_torchvision import FILE, fetched, no_such, tensors_only, torchvision


def import_timm() -> Any:
    """Import the library.

    Raises:
        UserError: it, or torchvision which it needs, is missing or broken.
    """
    if importlib.util.find_spec("timm") is None:
        raise UserError('timm is not installed: pip install "upcycle[vision]"')
    torchvision()  # timm needs it, and explains less when it is broken
    import timm

    return timm


def gate_class(name: str) -> Any:
    """Find the class of a gate, by the name that ``timm.layers.create_attn`` has for it.

    Raises:
        UserError: timm is missing, or too old to have it.
    """
    timm = import_timm()
    try:
        return timm.layers.get_attn(name)
    except AssertionError as error:
        raise UserError(f"timm {timm.__version__} has no gate '{name}': pip install --upgrade timm") from error


def spelled(name: str) -> str:
    """The name as timm has it: in small letters, but for some tags of weights."""
    architecture, dot, tag = name.partition(".")
    return f"{architecture.lower().replace('-', '_')}{dot}{tag}"


def check(name: str) -> None:
    """Raise UserError for a name that timm does not have; ``NAME.TAG`` picks among its trained weights."""
    timm = import_timm()
    architecture, _, tag = name.partition(".")
    if not timm.is_model(architecture):
        raise no_such("timm", name, timm.list_models())
    if tag and name not in (known := timm.list_pretrained(f"{architecture}.*")):
        raise no_such("timm", name, known)


def build(
    name: str,
    *,
    pretrained: bool,
    num_classes: int | None = None,
    input_shape: tuple[int, int, int] | None = None,
) -> Model:
    """A network of timm.

    Args:
        name: as ``timm.list_models`` has it, with or without the tag of its weights.
        pretrained: with trained weights, which are fetched or come from the hub's cache.
        num_classes: outputs of a fresh network; those of the trained weights when not given.
        input_shape: (c, h, w); what the weights expect when not given. The first layer adapts to the
            channels, and a transformer to the size.

    Raises:
        UserError: unknown name, timm missing, or weights that cannot be had.
    """
    check(name)
    timm = import_timm()
    config = timm.get_pretrained_cfg(name)
    shape = input_shape or tuple(config.input_size)
    options: dict[str, Any] = {"in_chans": shape[0]}
    if config.fixed_input_size and tuple(shape) != tuple(config.input_size):
        options["img_size"] = tuple(shape[1:])
    if num_classes is not None and not pretrained:
        options["num_classes"] = num_classes
    if pretrained:
        options |= _kept(name, config)
    try:
        with tensors_only():
            module = timm.create_model(name, pretrained=pretrained, **options)
    except Exception as error:
        raise UserError(f"timm:{name} cannot be built: {one_line(error)}. {FILE}") from error
    k = int(module.num_classes)
    if k == 0:
        raise UserError(f"timm:{name} has no classifier; give the number of classes or choose another.")
    return Model(
        module=module,
        input_shape=shape,
        mean=_channels(config.mean, shape[0]),
        std=_channels(config.std, shape[0]),
        classes=_classes(timm, module, k) if pretrained else tuple(map(str, range(k))),
        reference=f"timm:{name}",
        options={"num_classes": k, "input_shape": list(shape)},
        name=name,
        licence=(config.license if pretrained else None) or "unknown",
        reading=_reading(timm, config, shape),
    )


def _reading(timm: Any, config: Any, shape: tuple[int, int, int]) -> Reading:
    """How its configuration makes inputs of photographs; as usual where it is built for another size than that.

    Of the modes ``border`` is not followed: it pads with another colour than black.
    """
    found = timm.data.resolve_data_config(pretrained_cfg=config.to_dict())
    modes: dict[str, Resize] = {"center": "center", "squash": "squash"}
    if tuple(found["input_size"][1:]) != shape[1:] or found["crop_mode"] not in modes:
        return Reading()
    return Reading(
        resize=modes[found["crop_mode"]], interpolation=found["interpolation"], crop_pct=float(found["crop_pct"])
    )


def _kept(name: str, config: Any) -> dict[str, Any]:
    """The option that names the weights file on this machine, where none is fetched; nothing where they may be.

    Raises:
        UserError: there is none.
    """
    if config.hf_hub_id:
        from huggingface_hub import constants, try_to_load_from_cache

        address = constants.ENDPOINT
        if may_fetch(address):
            return {}
        repository, _, revision = config.hf_hub_id.partition("@")
        files = (config.hf_hub_filename,) if config.hf_hub_filename else ("model.safetensors", "pytorch_model.bin")
        places = (try_to_load_from_cache(repository, file, revision=revision or None) for file in files)
        file = next((place for place in places if isinstance(place, str)), None)
    elif config.url:
        address, file = config.url, None
        if fetched(address).is_file() or may_fetch(address):
            return {}
    else:  # timm says itself that there are none
        return {}
    if file is None:
        raise not_here(f"The weights file of timm:{name}", address, FILE)
    return {"pretrained_cfg_overlay": {"file": file}}


def _channels(values: tuple[float, ...], channels: int) -> tuple[float, ...]:
    """Statistics for another number of channels: their average in each."""
    return tuple(values) if len(values) == channels else (sum(values) / len(values),) * channels


def _classes(timm: Any, module: nn.Module, k: int) -> tuple[str, ...]:
    subset = timm.data.infer_imagenet_subset(module)
    if not subset:
        return tuple(map(str, range(k)))
    info = timm.data.ImageNetInfo(subset)
    return tuple(info.index_to_description(i) for i in range(k))
