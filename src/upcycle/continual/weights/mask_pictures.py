"""Pictures of masks: the weights that tasks use, the bits that they switch off alike, the tokens they read."""

from __future__ import annotations

import base64
import io
import math

import torch
from torch import Tensor

from upcycle.continual.weights.attention_masks import Masked, jaccard, unpack_bits
from upcycle.core.run import Run

SHOWN = 6
"""Tasks whose token masks are drawn."""


def leave_mask_pictures(run: Run, masked: Masked, shape: tuple[int, int, int]) -> None:
    """Leave the pictures of a network that carries masks; none where it has no bits.

    Args:
        shape: of an image, (c, h, w).
    """
    sites, names = masked.sites, [f"task {t}" for t in range(len(masked.tasks))]
    if sites.bits == 0:
        return
    off = [unpack_bits(row, sites.bits) for row in masked.off]
    parts = [sites.parts(~row) for row in off]
    of_block: dict[str, list[str]] = {}
    for weight in sites.weights:
        of_block.setdefault(weight.split(".")[1], []).append(weight)
    kept = {
        "kind": "heatmap",
        "title": "Weights that each task uses",
        "digits": 3,
        "caption": "The share of the masked weights of each block that are on.",
        "values": [
            [float(torch.cat([p[w].flatten() for w in found]).double().mean()) for found in of_block.values()]
            for p in parts
        ],
        "rows": names,
        "columns": [f"block {i}" for i in of_block],
    }
    overlap = {
        "kind": "heatmap",
        "title": "What tasks switch off alike",
        "digits": 2,
        "caption": "Bits that are off for both tasks, over those that are off for either.",
        "values": [[jaccard(a, b) for b in off] for a in off],
        "rows": names,
        "columns": names,
    }
    run.picture("kept_weights", kept)
    run.picture("mask_overlap", overlap)
    if not sites.policies:
        return
    tokens = {
        "kind": "images",
        "title": "Tokens that attention may read",
        "caption": "White: read by the other tokens; black: hidden. One grid for each task and masked block.",
        "items": [
            _grid(p[policy], shape, f"{name}, block {policy.split('.')[1]}")
            for name, p in list(zip(names, parts, strict=True))[:SHOWN]
            for policy in sites.policies
        ],
    }
    run.picture("token_masks", tokens)


def _grid(tokens: Tensor, shape: tuple[int, int, int], label: str) -> dict[str, str]:
    """The tokens (N,) as they lie in an image, a PNG; in one row where they form no grid."""
    from PIL import Image

    height = round(math.sqrt(len(tokens) * shape[1] / shape[2]))
    width = len(tokens) // max(height, 1)
    if height * width != len(tokens):
        height, width = 1, len(tokens)
    pixels = (255 * tokens.view(height, width)).to(torch.uint8).cpu().numpy()
    side, file = max(1, 64 // max(height, width)), io.BytesIO()
    Image.fromarray(pixels).resize((width * side, height * side), Image.Resampling.NEAREST).save(file, "PNG")
    share = f"{float(tokens.double().mean()):.0%} of tokens are read"
    return {"png": base64.b64encode(file.getvalue()).decode(), "label": label, "alt": f"{label}: {share}"}
