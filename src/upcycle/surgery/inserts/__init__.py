"""Blocks that can be put into trained networks, by name."""

from __future__ import annotations

from upcycle.surgery.inserts.base import Block
from upcycle.surgery.inserts.gates import GATES
from upcycle.surgery.inserts.irmb import IRMB_BLOCK
from upcycle.surgery.inserts.mixers import MIXERS
from upcycle.surgery.inserts.ode import ODE, TISODE
from upcycle.surgery.inserts.pnp import PNP
from upcycle.surgery.inserts.shunted import SHUNTED
from upcycle.surgery.inserts.strip_pooling import STRIPS

_ALL = (*GATES, *STRIPS, *MIXERS, SHUNTED, IRMB_BLOCK, PNP, ODE, TISODE)
BLOCKS: dict[str, Block] = {block.name: block for block in _ALL}
