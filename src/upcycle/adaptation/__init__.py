"""Networks made to serve a new task or a new domain: the list of methods is ``METHODS``."""

from upcycle.adaptation.attention_diversification import AttentionDiversification
from upcycle.adaptation.ba3us import BA3US
from upcycle.adaptation.beta import BETA
from upcycle.adaptation.cmae import CMAE
from upcycle.adaptation.dine import DINE
from upcycle.adaptation.ia3 import IA3
from upcycle.adaptation.iso import ISO
from upcycle.adaptation.lora import LoRA
from upcycle.adaptation.probe import LinearProbe
from upcycle.adaptation.ssf import SSF
from upcycle.core.method import Method

METHODS: tuple[type[Method], ...] = (
    SSF,
    LoRA,
    IA3,
    LinearProbe,
    DINE,
    BETA,
    BA3US,
    AttentionDiversification,
    ISO,
    CMAE,
)
