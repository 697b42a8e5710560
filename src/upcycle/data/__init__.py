"""Images and graphs over real formats, read once; images are augmented a batch at a time.

Names are imported when they are used, so that ``import upcycle`` does not wait for torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from upcycle.data.augment import uniform
    from upcycle.data.collection import Collection, describe
    from upcycle.data.decode import read_images
    from upcycle.data.graphs import GraphSet, GraphSplit, NodeSplit
    from upcycle.data.images import Images, ImageSplit
    from upcycle.data.labels import match_classes, read_label_map
    from upcycle.data.pool import Pool
    from upcycle.data.pool_files import load_pool, parent_node, pool_lineage, save_pool
    from upcycle.data.sources import check_reference, load

__all__ = [
    "Collection",
    "GraphSet",
    "GraphSplit",
    "ImageSplit",
    "Images",
    "NodeSplit",
    "Pool",
    "check_reference",
    "describe",
    "load",
    "load_pool",
    "match_classes",
    "parent_node",
    "pool_lineage",
    "read_images",
    "read_label_map",
    "save_pool",
    "uniform",
]

_HOMES = {
    "augment": ("uniform",),
    "decode": ("read_images",),
    "graphs": ("GraphSet", "GraphSplit", "NodeSplit"),
    "collection": ("Collection", "describe"),
    "images": ("ImageSplit", "Images"),
    "labels": ("match_classes", "read_label_map"),
    "pool": ("Pool",),
    "pool_files": ("load_pool", "pool_lineage", "save_pool", "parent_node"),
    "sources": ("check_reference", "load"),
}


def __getattr__(name: str) -> Any:
    for module, names in _HOMES.items():
        if name in names:
            return getattr(importlib.import_module(f"upcycle.data.{module}"), name)
    raise AttributeError(f"module 'upcycle.data' has no attribute '{name}'")
