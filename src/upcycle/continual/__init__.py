"""Networks that learn one task after another: the list of methods is ``METHODS``."""

from upcycle.continual.finetune import Finetune, Joint
from upcycle.continual.replay import ER, DERpp
from upcycle.core.method import Method

METHODS: tuple[type[Method], ...] = (
    Finetune, Joint, ER, DERpp
)  # fmt: skip

__all__ = ["ER", "METHODS", "DERpp", "Finetune", "Joint"]
