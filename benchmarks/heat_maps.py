"""Grad-CAM, saliency and occlusion, ours against Captum: the same networks, images and classes, all in turns.

Run from the repository's root: `python -m benchmarks.heat_maps` (about two minutes on two cores). Ours is the whole
call of `explain`, with its checks and probabilities; Captum is told the layer, ours is told it and not. Occlusion by
Captum runs with the best of several ``perturbations_per_eval``. The minimum of many repetitions is recorded.
"""

from __future__ import annotations

import argparse
import functools
from collections.abc import Callable
from typing import Any

import captum.attr
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.common import alternate, record
from upcycle.core.references import resolve
from upcycle.core.seeds import seed_everything
from upcycle.diagnosis.attribution import explain

NETWORKS = {"zoo:cifar10_resnet20": "layer3.2.conv2", "zoo:cifar10_resnet56": "layer3.8.conv2"}
IMAGES = (1, 8, 64)
AT_A_TIME = (8, 32, 128)  # windows of occlusion


def by_gradcam(network: nn.Module, layer: str, x: Tensor, y: Tensor) -> Tensor:
    """(b, 1, h, w)."""
    found = captum.attr.LayerGradCam(network, network.get_submodule(layer)).attribute(x, y, relu_attributions=True)
    return F.interpolate(found, x.shape[2:], mode="bilinear")


def by_occlusion(network: nn.Module, x: Tensor, y: Tensor, n: int) -> Tensor:
    """(b, c, h, w)."""
    side = x.shape[2] // 8
    stride, window = (x.shape[1], side // 2, side // 2), (x.shape[1], side, side)
    return captum.attr.Occlusion(network).attribute(x, window, stride, target=y, perturbations_per_eval=n)


def main() -> None:
    """Time, print and record."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--repetitions", type=int, default=15)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--fresh", action="store_true", help="weights drawn anew, when no trained ones are at hand")
    parser.add_argument("--dry", action="store_true", help="print only")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    seed_everything(0, "benchmark")
    figures: dict[str, Any] = {}
    for reference, layer in NETWORKS.items():
        model = resolve(reference, pretrained=not arguments.fresh)
        network = model.module.eval()
        for n in IMAGES:
            x = model.example(n)
            with torch.no_grad():
                y = network(x).argmax(1)
            ours = functools.partial(explain, network, x, y)
            arms: dict[str, Callable[[], Any]] = {
                "gradcam, captum": functools.partial(by_gradcam, network, layer, x, y),
                "gradcam, ours": functools.partial(ours, method="gradcam", layer=layer),
                "gradcam, ours, layer found": functools.partial(ours, method="gradcam"),
                "saliency, captum": functools.partial(captum.attr.Saliency(network).attribute, x, y),
                "saliency, ours": functools.partial(ours, method="saliency"),
            }
            best = {name: min(seconds) for name, seconds in alternate(arms, arguments.repetitions).items()}
            if n <= AT_A_TIME[0]:
                arms = {f"occlusion, captum, {k}": functools.partial(by_occlusion, network, x, y, k) for k in AT_A_TIME}
                arms["occlusion, ours"] = functools.partial(ours, method="occlusion")
                best |= {name: min(seconds) for name, seconds in alternate(arms, 2).items()}
                best["occlusion, captum"] = min(best.pop(f"occlusion, captum, {k}") for k in AT_A_TIME)
            for name in [name for name in best if "ours" in name]:
                theirs = best[f"{name.split(',')[0]}, captum"]
                row = {"ms": round(1e3 * best[name], 2), "captum ms": round(1e3 * theirs, 2)}
                row["captum over ours"] = round(theirs / best[name], 2)
                figures[f"{model.name}, {n}: {name}"] = row
                print(f"{model.name:18s} {n:3d} {name:28s}", row, flush=True)
    if not arguments.dry:
        print(
            record(
                "heat_maps",
                figures,
                threads=arguments.threads,
                captum=captum.__version__,
                trained=not arguments.fresh,
                repetitions=arguments.repetitions,
            )
        )


if __name__ == "__main__":
    main()
