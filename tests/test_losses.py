"""All losses in one place, as pure functions."""

from __future__ import annotations

import importlib
import inspect
import pkgutil

import torch

import upcycle
from upcycle import losses

ROOMS = ("adaptation", "assembly", "continual", "core", "diagnosis", "distillation", "surgery", "training")
OWN = {"run", "network", "model", "student", "teacher"}
"""Arguments of what is no pure function of tensors."""


def test_every_loss_of_every_method_is_there() -> None:
    here = {id(inspect.unwrap(getattr(losses, name))) for name in losses.__all__}
    lacking = []
    for room in ROOMS:
        package = importlib.import_module(f"upcycle.{room}")
        for info in pkgutil.walk_packages(package.__path__, f"upcycle.{room}."):
            module = importlib.import_module(info.name)
            for name, thing in vars(module).items():
                if not name.endswith(("_loss", "_losses", "_objective")) or name.startswith("_"):
                    continue
                if inspect.isfunction(thing) and thing.__module__ == info.name:
                    pure = not OWN & inspect.signature(thing).parameters.keys()
                    lacking += [f"{info.name}.{name}"] if pure and id(inspect.unwrap(thing)) not in here else []
    assert not lacking


def test_they_are_the_functions_of_the_methods_and_lie_in_upcycle() -> None:
    assert upcycle.losses is losses and "losses" in dir(upcycle)
    assert losses.kd_loss is upcycle.kd_loss
    z = torch.tensor([[2.0, 0.0]])
    assert losses.kd_loss(z, z, temperature=2.0) == 0
    assert losses.__all__ == sorted(losses.__all__)


def test_dir_has_every_public_name_and_nothing_else() -> None:
    names = dir(upcycle)
    assert {"distill", "push", "load", "save", "Model", "KD", "DINE", "losses", "__version__"} <= {*names}
    assert not {"Any", "TYPE_CHECKING", "import_module", "Iterator"} & {*names}
    assert all(getattr(upcycle, name) is not None for name in names)
