"""upcycle makes new models from trained ones.

>>> import upcycle
>>> result = upcycle.distill(teacher="zoo:digits_teacher", student="zoo:convnet_small", data="digits", dry_run=True,
...                          quiet=True)
>>> result.student.name
'convnet_small'
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

# Each public name and the module it lives in. Imported when first used: `import upcycle` loads no torch.
_HOME = {
    "distill": "upcycle.verbs.distill",
    "disassemble": "upcycle.verbs.assemble",
    "assemble": "upcycle.verbs.assemble",
    "reassemble": "upcycle.verbs.assemble",
    "treat": "upcycle.verbs.treat",
    "adapt": "upcycle.verbs.adapt",
    "extend": "upcycle.verbs.extend",
    "diagnose": "upcycle.verbs.diagnose",
    "explain": "upcycle.diagnosis.attribution",
    "Result": "upcycle.verbs.session",
    "advise": "upcycle.verbs.advise",
    "doctor": "upcycle.verbs.doctor",
    "prove": "upcycle.verbs.prove",
    "load": "upcycle.core.saved",
    "resolve": "upcycle.core.references",
    "export": "upcycle.measure.export",
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
    "KD": "upcycle.distillation",
    "TfKD": "upcycle.distillation",
    "NetGraft": "upcycle.distillation",
    "VAM": "upcycle.distillation",
    "KDExplainer": "upcycle.distillation",
    "FastDFKD": "upcycle.distillation",
    "CMI": "upcycle.distillation",
    "DeepInversion": "upcycle.distillation",
    "OneStageGAN": "upcycle.distillation",
    "Making": "upcycle.distillation.data_free.making",
    "kd_loss": "upcycle.distillation",
    "MDA": "upcycle.assembly",
    "MDAAssembly": "upcycle.assembly",
    "DeRy": "upcycle.assembly",
    "NES": "upcycle.assembly",
    "ModelDoctor": "upcycle.diagnosis",
    "SSF": "upcycle.adaptation",
    "LoRA": "upcycle.adaptation",
    "IA3": "upcycle.adaptation",
    "LinearProbe": "upcycle.adaptation",
    "DINE": "upcycle.adaptation",
    "BETA": "upcycle.adaptation",
    "BA3US": "upcycle.adaptation",
    "AttentionDiversification": "upcycle.adaptation",
    "ISO": "upcycle.adaptation",
    "Finetune": "upcycle.continual",
    "Joint": "upcycle.continual",
    "ER": "upcycle.continual",
    "DERpp": "upcycle.continual",
    "EWC": "upcycle.continual",
    "SI": "upcycle.continual",
    "LwF": "upcycle.continual",
    "CoCa": "upcycle.continual",
    "BLIP": "upcycle.continual",
    "MEAT": "upcycle.continual",
    "VPR": "upcycle.continual",
    "StreamingSSL": "upcycle.continual",
    "Stream": "upcycle.data.streams",
    "Buffer": "upcycle.data.buffer",
}

__all__ = [*_HOME]

if TYPE_CHECKING:
    from upcycle.adaptation import BA3US as BA3US
    from upcycle.adaptation import BETA as BETA
    from upcycle.adaptation import DINE as DINE
    from upcycle.adaptation import IA3 as IA3
    from upcycle.adaptation import ISO as ISO
    from upcycle.adaptation import SSF as SSF
    from upcycle.adaptation import AttentionDiversification as AttentionDiversification
    from upcycle.adaptation import LinearProbe as LinearProbe
    from upcycle.adaptation import LoRA as LoRA
    from upcycle.assembly import MDA as MDA
    from upcycle.assembly import NES as NES
    from upcycle.assembly import DeRy as DeRy
    from upcycle.assembly import MDAAssembly as MDAAssembly
    from upcycle.continual import BLIP as BLIP
    from upcycle.continual import ER as ER
    from upcycle.continual import EWC as EWC
    from upcycle.continual import MEAT as MEAT
    from upcycle.continual import SI as SI
    from upcycle.continual import VPR as VPR
    from upcycle.continual import CoCa as CoCa
    from upcycle.continual import DERpp as DERpp
    from upcycle.continual import Finetune as Finetune
    from upcycle.continual import Joint as Joint
    from upcycle.continual import LwF as LwF
    from upcycle.continual import StreamingSSL as StreamingSSL
    from upcycle.core.errors import UserError as UserError
    from upcycle.core.frozen import frozen as frozen
    from upcycle.core.losses import Terms as Terms
    from upcycle.core.method import Card as Card
    from upcycle.core.method import Method as Method
    from upcycle.core.method import Needs as Needs
    from upcycle.core.models import Model as Model
    from upcycle.core.recipe import Recipe as Recipe
    from upcycle.core.references import resolve as resolve
    from upcycle.core.run import Run as Run
    from upcycle.core.saved import load as load
    from upcycle.core.taps import Taps as Taps
    from upcycle.data import load as load_data  # noqa: F401
    from upcycle.data.buffer import Buffer as Buffer
    from upcycle.data.streams import Stream as Stream
    from upcycle.diagnosis import ModelDoctor as ModelDoctor
    from upcycle.diagnosis.attribution import explain as explain
    from upcycle.distillation import CMI as CMI
    from upcycle.distillation import KD as KD
    from upcycle.distillation import VAM as VAM
    from upcycle.distillation import DeepInversion as DeepInversion
    from upcycle.distillation import FastDFKD as FastDFKD
    from upcycle.distillation import KDExplainer as KDExplainer
    from upcycle.distillation import NetGraft as NetGraft
    from upcycle.distillation import OneStageGAN as OneStageGAN
    from upcycle.distillation import TfKD as TfKD
    from upcycle.distillation import kd_loss as kd_loss
    from upcycle.distillation.data_free.making import Making as Making
    from upcycle.measure.export import export as export
    from upcycle.verbs.adapt import adapt as adapt
    from upcycle.verbs.advise import advise as advise
    from upcycle.verbs.assemble import assemble as assemble
    from upcycle.verbs.assemble import disassemble as disassemble
    from upcycle.verbs.assemble import reassemble as reassemble
    from upcycle.verbs.diagnose import diagnose as diagnose
    from upcycle.verbs.distill import distill as distill
    from upcycle.verbs.doctor import doctor as doctor
    from upcycle.verbs.extend import extend as extend
    from upcycle.verbs.prove import prove as prove
    from upcycle.verbs.session import Result as Result
    from upcycle.verbs.treat import treat as treat


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'upcycle' has no attribute '{name}'")
    attribute = "load" if name == "load_data" else name
    value = getattr(import_module(_HOME[name]), attribute)
    globals()[name] = value
    return value
