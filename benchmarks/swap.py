"""Seconds to put SE into a network of 25 M parameters, timm's ResNet-50 at 224, and to load what was saved of it.

Beside it the floors: a copy of the network and a forward of two images without weights, which is the least that an
operation that keeps its source and looks at shapes takes; and timm's own way of reading such a network, building the
architecture and filling it from a safetensors file. Saving is timed for itself. Run from the repository: ``python -m
benchmarks.swap``.
"""

from __future__ import annotations

import copy
import tempfile
from pathlib import Path

import timm
import torch
from safetensors.torch import load_file

from benchmarks.common import alternate, record
from upcycle.core import saved
from upcycle.core.references import resolve
from upcycle.surgery.looking import look
from upcycle.surgery.operate import Cut, operate

CUT = Cut(at=("layer?.?",), block="se")
REPETITIONS, ASKED = 5, 2.0


def main() -> None:
    torch.set_num_threads(2)
    model = resolve("timm:resnet50", pretrained=False)
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder) / "model"
        saved.save(operate(model, CUT), place)
        plain = Path(folder) / "plain"
        saved.save(model, plain)

        def theirs() -> None:
            net = timm.create_model("resnet50", pretrained=False)
            net.load_state_dict(load_file(plain / saved.WEIGHTS))

        times = alternate(
            {
                "swap": lambda: operate(model, CUT),
                "load": lambda: saved.load(place),
                "load without a block": lambda: saved.load(plain),
                "timm and safetensors": theirs,
                "copy": lambda: copy.deepcopy(model.module),
                "look": lambda: look(model),
            },
            REPETITIONS,
        )
    best = {name: min(seconds) for name, seconds in times.items()}
    both = best["swap"] + best["load"]
    for name, seconds in best.items():
        print(f"{name:24}{seconds:8.3f} s")
    print(f"{'swap + rebuild + load':24}{both:8.3f} s; asked for: below {ASKED:.0f} s")
    figures = {
        name: {"best_seconds": round(best[name], 4), "seconds": [round(s, 4) for s in times[name]]} for name in times
    }
    figures["both"] = {"best_seconds": round(both, 4)}
    parameters = sum(p.numel() for p in model.module.parameters())
    record(
        "swap", figures, network="timm:resnet50", parameters=parameters, block="se", places=16, asked=ASKED, threads=2
    )


if __name__ == "__main__":
    main()
