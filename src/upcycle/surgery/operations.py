"""Networks that were made of others, built again from what was recorded: the references ``assembly:OPERATION``."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from upcycle.surgery.assembling import rebuild_resized
from upcycle.surgery.constants import rebuild_constants
from upcycle.surgery.epitome import rebuild_epitome
from upcycle.surgery.one_graph import rebuild_one_graph
from upcycle.surgery.operate import rebuild_operated
from upcycle.surgery.stitch import rebuild_stitched

OPERATIONS: dict[str, Callable[..., nn.Module]] = {
    "resized": rebuild_resized,
    "stitched": rebuild_stitched,
    "epitome": rebuild_epitome,
    "constants": rebuild_constants,
    "one_graph": rebuild_one_graph,
    "operated": rebuild_operated,
}
