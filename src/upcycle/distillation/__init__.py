"""Distil one trained network into another. This list is the registry: a new method is imported and added here."""

from upcycle.core.method import Method
from upcycle.distillation.bootstrapvit import BootstrapViT
from upcycle.distillation.cmi import CMI
from upcycle.distillation.deepinversion import DeepInversion
from upcycle.distillation.factorgcn import FactorGCN
from upcycle.distillation.fastdfkd import FastDFKD
from upcycle.distillation.features import Features
from upcycle.distillation.gfkd import GFKD
from upcycle.distillation.kd import KD
from upcycle.distillation.kdexplainer import KDExplainer
from upcycle.distillation.ltl import LTL
from upcycle.distillation.netgraft import NetGraft
from upcycle.distillation.onestagegan import OneStageGAN
from upcycle.distillation.plain import Plain
from upcycle.distillation.reliant import RELIANT
from upcycle.distillation.spagan import SPAGAN
from upcycle.distillation.tfkd import TfKD
from upcycle.distillation.tinymim import TinyMIM
from upcycle.distillation.vam import VAM

METHODS: tuple[type[Method], ...] = (
    KD,
    Features,
    Plain,
    TfKD,
    NetGraft,
    VAM,
    KDExplainer,
    BootstrapViT,
    FastDFKD,
    CMI,
    DeepInversion,
    OneStageGAN,
    GFKD,
    RELIANT,
    FactorGCN,
    SPAGAN,
    LTL,
    TinyMIM,
)
