"""Networks that learn one task after another: the list of methods is ``METHODS``."""

from upcycle.continual.baselines import Finetune, Joint
from upcycle.continual.blip import BLIP
from upcycle.continual.coca import CoCa
from upcycle.continual.derpp import DERpp
from upcycle.continual.er import ER
from upcycle.continual.lwf import LwF
from upcycle.continual.meat import MEAT
from upcycle.continual.oewc import EWC
from upcycle.continual.si import SI
from upcycle.continual.simplecil import SimpleCIL
from upcycle.continual.streaming import StreamingSSL
from upcycle.continual.twp import TWP
from upcycle.continual.vpr import VPR
from upcycle.core.method import Method

METHODS: tuple[type[Method], ...] = (
    Finetune,
    Joint,
    EWC,
    SI,
    LwF,
    SimpleCIL,
    ER,
    DERpp,
    CoCa,
    VPR,
    MEAT,
    StreamingSSL,
    BLIP,
    TWP,
)
