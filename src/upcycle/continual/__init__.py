"""Networks that learn one task after another: the list of methods is ``METHODS``."""

from upcycle.continual.blip import BLIP
from upcycle.continual.coca import CoCa
from upcycle.continual.finetune import Finetune, Joint
from upcycle.continual.lwf import LwF
from upcycle.continual.meat import MEAT
from upcycle.continual.penalties import EWC, SI
from upcycle.continual.replay import ER, DERpp
from upcycle.continual.streaming import StreamingSSL
from upcycle.continual.vpr import VPR
from upcycle.core.method import Method

METHODS: tuple[type[Method], ...] = (
    Finetune, Joint, EWC, SI, LwF, ER, DERpp, CoCa, VPR, MEAT, StreamingSSL, BLIP
)  # fmt: skip

__all__ = [
    "BLIP",
    "ER",
    "EWC",
    "MEAT",
    "METHODS",
    "SI",
    "VPR",
    "CoCa",
    "DERpp",
    "Finetune",
    "Joint",
    "LwF",
    "StreamingSSL",
]
