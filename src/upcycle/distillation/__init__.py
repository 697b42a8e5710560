"""Distil one trained network into another. This list is the registry: a new method is imported and added here."""

from upcycle.core.losses import kd_loss
from upcycle.distillation.cmi import CMI
from upcycle.distillation.deepinversion import DeepInversion
from upcycle.distillation.fastdfkd import FastDFKD
from upcycle.distillation.kd import KD
from upcycle.distillation.kdexplainer import KDExplainer
from upcycle.distillation.netgraft import NetGraft
from upcycle.distillation.onestagegan import OneStageGAN
from upcycle.distillation.tfkd import TfKD
from upcycle.distillation.vam import VAM

METHODS = (KD, TfKD, NetGraft, VAM, KDExplainer, FastDFKD, CMI, DeepInversion, OneStageGAN)

__all__ = [
    "CMI",
    "KD",
    "METHODS",
    "VAM",
    "DeepInversion",
    "FastDFKD",
    "KDExplainer",
    "NetGraft",
    "OneStageGAN",
    "TfKD",
    "kd_loss",
]
