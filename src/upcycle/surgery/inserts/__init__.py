"""Blocks that can be put into trained networks, by name."""

from __future__ import annotations

from upcycle.surgery.inserts.base import Block
from upcycle.surgery.inserts.irmb import IRMB_BLOCK
from upcycle.surgery.inserts.shunted import SHUNTED

BLOCKS: dict[str, Block] = {block.name: block for block in (IRMB_BLOCK, SHUNTED)}
