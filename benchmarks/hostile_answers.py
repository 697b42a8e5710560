"""Answers of endpoints that mean harm, a part of `make torture`: alone, `python -m benchmarks.hostile_answers`."""

from __future__ import annotations

import os
import resource
import sys
import tempfile
import time
from pathlib import Path

import torch
from tests.hostile_answers import FACTS, TO_GET, TO_POST, Talk, peer, said

from upcycle.core.errors import UserError
from upcycle.data import ImageSplit, load
from upcycle.predictors.http import Http

MEMORY = 2**28
"""Bytes by which the peak may rise over all of them."""
SECONDS = 10.0


def hostile_answers(tally: dict[str, dict[str, int]]) -> None:
    """Ask an endpoint for every hostile answer: one sentence, in seconds, in bounded memory, and nothing kept."""
    os.environ["no_proxy"] = "127.0.0.1"
    split = load("digits").test.subset(torch.arange(2))
    with tempfile.TemporaryDirectory() as folder:
        cases = [(name, talk, None) for name, talk in TO_GET.items()]
        cases += [(name, said(FACTS), talk) for name, talk in TO_POST.items()]
        for i, (name, get, post) in enumerate(cases):
            what = f"hostile answer of an endpoint: {name.partition(':')[0]}"
            row = tally.setdefault(what, {"tried": 0, "held": 0, "failed": 0})
            held = _held(get, post, Path(folder) / str(i), split)
            row["tried"] += 1
            row["held" if held else "failed"] += 1
            if not held:
                print(f"not held: {name}", file=sys.stderr)


def _held(get: Talk, post: Talk | None, cache: Path, split: ImageSplit) -> bool:
    before, begun = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.monotonic()
    with peer(get, post) as place:
        try:
            Http(f"http://{place}", timeout=1.0, retries=2, wait=0.0, cache=cache).predict(split)
            return False
        except UserError as error:
            text = str(error)
        except Exception as error:
            print(f"{type(error).__name__}: {error}", file=sys.stderr)
            return False
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
    plain = text.isprintable() and len(text) < 600 and place in text
    return plain and time.monotonic() - begun < SECONDS and grown < MEMORY


if __name__ == "__main__":
    found: dict[str, dict[str, int]] = {}
    hostile_answers(found)
    for what, row in found.items():
        print(what, row)
    sys.exit(any(row["failed"] for row in found.values()))
