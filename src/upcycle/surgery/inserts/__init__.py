"""Blocks that can be put into trained networks, by name."""

from __future__ import annotations

from upcycle.surgery.inserts.base import Block

BLOCKS: dict[str, Block] = {}
