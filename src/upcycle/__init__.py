"""upcycle makes new models from trained ones.

>>> import upcycle
>>> result = upcycle.distill(teacher="zoo:digits_teacher", student="zoo:convnet_small", data="digits", dry_run=True,
...                          quiet=True)
>>> result.student.name
'convnet_small'
"""

from collections.abc import Iterator
from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

# Each public name and the module it lives in. Imported when first used: `import upcycle` loads no torch.
_HOME = {
    "distill": "upcycle.verbs.distill",
    "disassemble": "upcycle.verbs.disassemble",
    "assemble": "upcycle.verbs.assemble",
    "reassemble": "upcycle.verbs.reassemble",
    "treat": "upcycle.verbs.treat",
    "adapt": "upcycle.verbs.adapt",
    "extend": "upcycle.verbs.extend",
    "diagnose": "upcycle.verbs.diagnose",
    "explain": "upcycle.diagnosis.attribution",
    "explain_images": "upcycle.verbs.explain",
    "evaluate": "upcycle.verbs.evaluate",
    "compare": "upcycle.verbs.compare",
    "predict": "upcycle.verbs.predict",
    "report": "upcycle.verbs.report",
    "lineage": "upcycle.verbs.lineage",
    "Result": "upcycle.verbs.arms",
    "advise": "upcycle.verbs.advise",
    "doctor": "upcycle.verbs.doctor",
    "prove": "upcycle.verbs.prove",
    "load": "upcycle.core.saved",
    "save": "upcycle.core.saved",
    "resolve": "upcycle.core.references",
    "export": "upcycle.verbs.export",
    "push": "upcycle.verbs.push",
    "Model": "upcycle.core.models",
    "Method": "upcycle.core.method",
    "Card": "upcycle.core.method",
    "Needs": "upcycle.core.method",
    "Recipe": "upcycle.core.recipe",
    "Terms": "upcycle.core.losses",
    "Run": "upcycle.core.run",
    "UserError": "upcycle.core.errors",
    "frozen": "upcycle.core.frozen",
    "Taps": "upcycle.core.taps",
    "load_data": "upcycle.data",
    "Making": "upcycle.distillation.data_free.making",
    "kd_loss": "upcycle.core.losses",
    "Bottleneck": "upcycle.adaptation.black_box.bottleneck",
    "Replay": "upcycle.continual.protocol.replay",
    "Stream": "upcycle.data.streams",
    "Buffer": "upcycle.data.buffer",
    "GraphSet": "upcycle.data.graphs",
}
_MODULES = ("losses",)
"""Modules that are public by themselves, and are imported when first used too."""

# Where methods live, each in its room's list ``METHODS``, by the name of its class.
_ROOMS = ("distillation", "assembly", "adaptation", "continual", "diagnosis")

__all__ = [*_HOME, *_MODULES]

if TYPE_CHECKING:
    from upcycle import losses as losses
    from upcycle.adaptation import *  # noqa: F403
    from upcycle.adaptation.black_box.bottleneck import Bottleneck as Bottleneck
    from upcycle.assembly import *  # noqa: F403
    from upcycle.continual import *  # noqa: F403
    from upcycle.continual.protocol.replay import Replay as Replay
    from upcycle.core.errors import UserError as UserError
    from upcycle.core.frozen import frozen as frozen
    from upcycle.core.losses import Terms as Terms
    from upcycle.core.losses import kd_loss as kd_loss
    from upcycle.core.method import Card as Card
    from upcycle.core.method import Method as Method
    from upcycle.core.method import Needs as Needs
    from upcycle.core.models import Model as Model
    from upcycle.core.recipe import Recipe as Recipe
    from upcycle.core.references import resolve as resolve
    from upcycle.core.run import Run as Run
    from upcycle.core.saved import load as load
    from upcycle.core.saved import save as save
    from upcycle.core.taps import Taps as Taps
    from upcycle.data import load as load_data  # noqa: F401
    from upcycle.data.buffer import Buffer as Buffer
    from upcycle.data.graphs import GraphSet as GraphSet
    from upcycle.data.streams import Stream as Stream
    from upcycle.diagnosis import *  # noqa: F403
    from upcycle.diagnosis.attribution import explain as explain
    from upcycle.distillation import *  # noqa: F403
    from upcycle.distillation.data_free.making import Making as Making
    from upcycle.verbs.adapt import adapt as adapt
    from upcycle.verbs.advise import advise as advise
    from upcycle.verbs.arms import Result as Result
    from upcycle.verbs.assemble import assemble as assemble
    from upcycle.verbs.compare import compare as compare
    from upcycle.verbs.diagnose import diagnose as diagnose
    from upcycle.verbs.disassemble import disassemble as disassemble
    from upcycle.verbs.distill import distill as distill
    from upcycle.verbs.doctor import doctor as doctor
    from upcycle.verbs.evaluate import evaluate as evaluate
    from upcycle.verbs.explain import explain_images as explain_images
    from upcycle.verbs.export import export as export
    from upcycle.verbs.extend import extend as extend
    from upcycle.verbs.lineage import lineage as lineage
    from upcycle.verbs.predict import predict as predict
    from upcycle.verbs.prove import prove as prove
    from upcycle.verbs.push import push as push
    from upcycle.verbs.reassemble import reassemble as reassemble
    from upcycle.verbs.report import report as report
    from upcycle.verbs.treat import treat as treat


def __getattr__(name: str) -> Any:
    value: Any
    if name in _MODULES:
        value = import_module(f"upcycle.{name}")
    elif name in _HOME:
        value = getattr(import_module(_HOME[name]), "load" if name == "load_data" else name)
    else:  # rooms import torch, and a submodule is asked for here before it is imported
        value = next((method for method in _methods() if method.__name__ == name), None) if name[:1].isupper() else None
    if value is None:
        raise AttributeError(f"module 'upcycle' has no attribute '{name}'")
    globals()[name] = value
    return value


def _methods() -> Iterator[Any]:
    """Go through the methods, importing a room only when its turn comes."""
    for room in _ROOMS:
        yield from import_module(f"upcycle.{room}").METHODS


def __dir__() -> list[str]:
    return sorted({"__version__", *__all__, *(method.__name__ for method in _methods())})
