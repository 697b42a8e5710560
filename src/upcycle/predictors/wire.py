"""Images to an endpoint, and names of classes and answers that come back, checked.

Answers that were kept on disk go through the same checks: a file may be a stranger's, or of another time.
"""

from __future__ import annotations

import base64
import hashlib
import io
import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image

from upcycle.core.limits import MOST_CLASSES
from upcycle.data import ImageSplit
from upcycle.predictors.exchange import Fault

TOLERANCE = 1e-2  # by how much probabilities may miss a sum of 1: APIs round
EXACT = 1e-5  # what misses 1 by no more is left as it is
FACTS_SIZE = 2**22  # bytes of an answer to a GET
LARGEST = 2**25  # bytes of an answer to a POST, whatever it has to say: 32 images with all of 22,000 classes
PAIR = 64  # bytes of [class index, probability], with every digit that a float has and white space


@dataclass(frozen=True)
class Answer:
    """The answer to one image.

    Args:
        classes: int32 (t,), the most probable first.
        probabilities: float32 (t,); NaN where a label alone was given.
    """

    classes: np.ndarray
    probabilities: np.ndarray

    @property
    def labels_only(self) -> bool:
        return bool(np.isnan(self.probabilities[0]))


def as_bytes(split: ImageSplit) -> np.ndarray:
    """The images as what is sent: uint8 (n, h, w, c)."""
    pixels = split.pixels()
    if pixels.dtype == torch.uint8:
        return pixels.contiguous().numpy()
    return pixels.mul(255).round_().clamp_(0, 255).to(torch.uint8).permute(0, 2, 3, 1).contiguous().numpy()


def as_keys(split: ImageSplit) -> tuple[list[bytes], dict[bytes, np.ndarray]]:
    """Keys that answers are kept under, one for each image; and the pixels of each different one."""
    pixels = as_bytes(split)
    keys = [hashlib.sha256(f"{p.shape}".encode() + p.tobytes()).digest() for p in pixels]
    return keys, dict(zip(keys, pixels, strict=True))


def as_png(pixels: np.ndarray) -> str:
    """uint8 (h, w, c) as a PNG file in base64."""
    file = io.BytesIO()
    Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels).save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()


def answer_size(images: int, top: int) -> int:
    """The most bytes that an answer to ``images`` may have: generous, and bounded whatever the endpoint claims."""
    return min(2**16 + images * (top + 1) * PAIR, LARGEST)


def read_facts(said: Any) -> tuple[tuple[str, ...], int]:
    """Class names and how many an answer has, from the answer to a GET."""
    classes = said.get("classes") if isinstance(said, dict) else None
    if not isinstance(classes, list) or not classes or not all(isinstance(name, str) for name in classes):
        raise _bad('a GET should give {"classes": [names], "top": number or null}')
    if len(classes) > MOST_CLASSES:
        raise _bad(f"it names {len(classes):,} classes, and at most {MOST_CLASSES:,} are taken")
    if not all(name.isprintable() for name in classes):
        raise _bad("the name of a class has characters that cannot be printed")
    top = said.get("top")
    top = len(classes) if top is None else top
    if type(top) is not int or not 1 <= top <= len(classes):
        raise _bad(f"top is {_brief(top)} of {len(classes)} classes")
    return tuple(classes), top


def read_answers(said: Any, n: int, k: int, top: int, like: Answer | None) -> list[Answer]:
    """The answer to each of ``n`` images, in probabilities or labels only as ``like`` was, and all others are."""
    rows = said.get("predictions") if isinstance(said, dict) else None
    if not isinstance(rows, list):
        raise _bad('a POST should give {"predictions": [...]}')
    if len(rows) != n:
        raise _bad(f"{len(rows):,} predictions for {n:,} images")
    answers = [_read_answer(row, k, top) for row in rows]
    if problem := mixed([*answers, *([like] if like is not None else [])]):
        raise _bad(problem)
    return answers


def mixed(answers: Iterable[Answer]) -> str:
    """Say in words that answers are of two kinds; empty where they are of one."""
    kinds = {answer.labels_only for answer in answers}
    return "probabilities for some images, and labels only for others" if len(kinds) > 1 else ""


def unfit(answer: Answer, k: int, top: int) -> str:
    """Say in words why this is no answer of ``top`` of ``k`` classes, whoever said it; empty where it is one."""
    classes, p = answer.classes, answer.probabilities
    if len(classes) != top:
        return f"{len(classes):,} classes for an image instead of {top:,}"
    if classes.min() < 0 or classes.max() >= k:
        return f"class {classes[(classes < 0) | (classes >= k)][0]}, and the {k:,} classes are 0 to {k - 1:,}"
    if len(np.unique(classes)) < top:
        return "an image has one class twice"
    if top == 1 and answer.labels_only:
        return ""
    wrong = p[~((p >= 0) & (p <= 1 + TOLERANCE))]  # NaN is, too
    if len(wrong):
        return f"probability {wrong[0]:.6g}"
    total = float(p.sum(dtype=np.float64))
    if total > 1 + TOLERANCE or (top == k and total < 1 - TOLERANCE):
        return f"the {top:,} probabilities of an image sum to {total:.4g}"
    return ""


def _read_answer(row: Any, k: int, top: int) -> Answer:
    if not isinstance(row, list) or not all(isinstance(pair, list) and len(pair) == 2 for pair in row):
        raise _bad("a prediction is no list of pairs [class index, probability]")
    if len(row) != top:
        raise _bad(f"{len(row):,} classes for an image instead of {top:,}")
    alone = top == 1 and row[0][1] is None
    for c, p in row:  # what goes into arrays
        if type(c) is not int or not 0 <= c < k:
            raise _bad(f"class {_brief(c)}, and the {k:,} classes are 0 to {k - 1:,}")
        if not alone and (type(p) not in (int, float) or not 0 <= p <= 1 + TOLERANCE):
            raise _bad(f"probability {_brief(p)}")
    classes = np.array([c for c, _ in row], np.int32)
    probabilities = np.array([np.nan if alone else p for _, p in row], np.float64)
    if problem := unfit(Answer(classes, probabilities), k, top):
        raise _bad(problem)
    total = probabilities.sum()
    if total > 1 + EXACT or (top == k and total < 1 - EXACT):
        probabilities /= total
    best = np.argsort(-probabilities, kind="stable")
    return Answer(classes[best], probabilities[best].astype(np.float32))


def _bad(reason: str) -> Fault:
    return Fault(f"gives an answer that makes no sense: {reason}", bad=True)


def _brief(value: Any) -> str:
    return f"a {type(value).__name__}" if isinstance(value, list | dict) else json.dumps(value)[:60]
