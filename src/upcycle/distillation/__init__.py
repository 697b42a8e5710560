"""Distil one trained network into another. This list is the registry: a new method is imported and added here."""

from upcycle.distillation.kd import KD, kd_loss
from upcycle.distillation.netgraft import NetGraft
from upcycle.distillation.tfkd import TfKD
from upcycle.distillation.vam import VAM

METHODS = (KD, TfKD, NetGraft, VAM)

__all__ = ["KD", "METHODS", "VAM", "NetGraft", "TfKD", "kd_loss"]
