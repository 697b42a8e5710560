"""Which networks go into which verbs: 40 architectures of three libraries and ten awkward ones, against every verb.

``python -m benchmarks.architectures [--networks a,b] [--verbs 0,1] [--again] [--jobs 2]``. Each network has a process
of its own, random weights, a few dozen of scikit-learn's digits and a few updates: asked is whether a verb takes it,
not what comes out. Where a verb looks at images that the network recognises, its classifier is fitted to them first. A
cell of the table says that it worked, that it was refused (with the sentence), or that it failed: any other exception,
a crash, or no end. What is in the results is left out, so that a long table can be made in parts.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import subprocess
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache, partial
from itertools import pairwise
from pathlib import Path
from threading import Lock
from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image
from tests.awkward import AWKWARD
from torch import Tensor, nn
from torch.optim.swa_utils import update_bn

import upcycle
from benchmarks.common import RESULTS, record
from upcycle.core.errors import UserError, one_line
from upcycle.core.heads import classifier, linear
from upcycle.core.lineage import tree
from upcycle.core.models import Model
from upcycle.core.outputs import own
from upcycle.core.recipe import Recipe
from upcycle.core.references import resolve
from upcycle.core.taps import Taps
from upcycle.data import Images, load
from upcycle.data.stream_kinds import stream
from upcycle.zoo import from_timm, from_torchvision

NAME = "architectures"
SECONDS = 600  # of one network
CLASSES = tuple("0123456789")
WORKED, REFUSED, FAILED = "worked", "refused", "failed"

# -- networks -----------------------------------------------------------------------------------------------------

TIMM = {
    **dict.fromkeys(
        (
            "resnet10t",
            "convnext_atto",
            "mobilenetv3_small_050",
            "efficientnet_lite0",
            "ghostnet_050",
            "regnetx_002",
            "edgenext_xx_small",
            "mobilevit_xxs",
            "vit_tiny_patch16_224",
            "xcit_nano_12_p16_224",
            "repvgg_a0",
            "pvt_v2_b0",
            "rexnet_100",
            "lcnet_035",
            "poolformer_s12",
            "starnet_s1",
            "cait_xxs24_224",
            "gmlp_ti16_224",
            "resmlp_12_224",
            "eca_nfnet_l0",
        ),
        64,
    ),
}
TORCHVISION = {
    **dict.fromkeys(
        (
            "squeezenet1_1",
            "densenet121",
            "mobilenet_v2",
            "shufflenet_v2_x0_5",
            "resnet18",
            "efficientnet_b0",
        ),
        64,
    ),
}


def _tokens(**options: Any) -> dict[str, Any]:
    return {
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 64,
        "image_size": 32,
        "patch_size": 8,
        **options,
    }


TRANSFORMERS: dict[str, dict[str, Any]] = {
    "ViT": _tokens(),
    "DeiT": _tokens(),
    "Beit": _tokens(),
    "Dinov2": _tokens(mlp_ratio=2),
    "ConvNext": {"hidden_sizes": [16, 24, 32, 48], "depths": [1, 1, 1, 1]},
    "ResNet": {"embedding_size": 16, "hidden_sizes": [16, 24, 32, 48], "depths": [1, 1, 1, 1], "layer_type": "basic"},
    "Swin": {
        "image_size": 32,
        "patch_size": 2,
        "embed_dim": 16,
        "depths": [1, 1],
        "num_heads": [2, 2],
        "window_size": 4,
    },
    "MobileNetV1": {"depth_multiplier": 0.25},
    "MobileViT": {"image_size": 64, "hidden_sizes": [16, 24, 32], "neck_hidden_sizes": [8, 16, 24, 32, 48, 64, 96]},
    "PoolFormer": {"hidden_sizes": [16, 24, 32, 48], "depths": [1, 1, 1, 1]},
}


def _with_size(build: Callable[..., Model], name: str, size: int) -> Model:
    return build(name, pretrained=False, num_classes=len(CLASSES), input_shape=(3, size, size))


def _bare(make: Callable[[], nn.Module], name: str, size: int) -> Model:
    """A network of Python code alone, as a person's own is."""
    statistics = (0.5,) * 3, (0.25,) * 3
    return Model(
        module=make(), input_shape=(3, size, size), mean=statistics[0], std=statistics[1], classes=CLASSES, name=name
    )


def _of_transformers(kind: str) -> nn.Module:
    import transformers

    config = getattr(transformers, f"{kind}Config")(num_labels=len(CLASSES), **TRANSFORMERS[kind])
    return getattr(transformers, f"{kind}ForImageClassification")(config)


def _of_torchvision(name: str, **options: Any) -> nn.Module:
    import torchvision

    return torchvision.models.get_model(name, num_classes=len(CLASSES), **options)


def _narrow(name: str) -> nn.Module:
    """A network of torchvision with 128 features in place of 4096, most of its weights and no verb's concern."""
    network = _of_torchvision(name)
    layers = [(i, m) for i, m in enumerate(network.classifier) if isinstance(m, nn.Linear)]
    widths = [layers[0][1].in_features, *[128] * (len(layers) - 1), len(CLASSES)]
    for (i, _), (before, after) in zip(layers, pairwise(widths), strict=True):
        network.classifier[i] = nn.Linear(before, after)
    return network


NETWORKS: dict[str, Callable[[], Model]] = {
    **{f"timm:{name}": partial(_with_size, from_timm.build, name, size) for name, size in TIMM.items()},
    **{
        f"torchvision:{name}": partial(_with_size, from_torchvision.build, name, size)
        for name, size in TORCHVISION.items()
    },
    **{f"torchvision:{name}": partial(_bare, partial(_narrow, name), name, 64) for name in ("alexnet", "vgg11_bn")},
    "torchvision:googlenet": partial(
        _bare, partial(_of_torchvision, "googlenet", aux_logits=True, init_weights=False), "googlenet", 64
    ),
    "torchvision:inception_v3": partial(
        _bare, partial(_of_torchvision, "inception_v3", aux_logits=True, init_weights=False), "inception_v3", 96
    ),
    **{
        f"transformers:{kind}": partial(_bare, partial(_of_transformers, kind), kind, options.get("image_size", 32))
        for kind, options in TRANSFORMERS.items()
    },
    **{f"awkward:{kind}": partial(_bare, make, kind, 32) for kind, make in AWKWARD.items()},
}

# -- verbs --------------------------------------------------------------------------------------------------------

RUN: dict[str, Any] = {"quiet": True}
TRAIN: dict[str, Any] = {**RUN, "recipe": Recipe(epochs=1, batch_size=16, lr=1e-3)}


@cache
def images(size: int) -> Images:
    """A few digits in three channels: 40 to train on, 20 to validate and 20 to test, all ten classes in each."""
    data = load("digits", size=size, channels=3)
    parts = {name: getattr(data, name) for name in ("train", "validation", "test")}
    few = {}
    for name, n in (("train", 40), ("validation", 20), ("test", 20)):
        labels = parts[name].labels
        each = [(labels == k).nonzero()[:, 0][: n // len(CLASSES)] for k in range(len(CLASSES))]
        few[name] = parts[name].subset(torch.cat(each).sort().values)
    return dataclasses.replace(data, **few)


def small(size: int, classes: tuple[str, ...] = CLASSES) -> Model:
    """An ordinary network beside the one that is tried."""
    made = resolve("zoo:resnet8", pretrained=False, num_classes=len(classes), input_shape=(3, size, size))
    return dataclasses.replace(made, classes=classes)


def folder(data: Images, place: Path) -> Path:
    """Two images as files."""
    place.mkdir()
    for i in range(2):
        Image.fromarray(data.test.images[i].numpy()).save(place / f"{i}.png")
    return place


def taught(net: Model, data: Images) -> Model:
    """The network, recognising the training images: its last layer solved for them, or all of it trained a little.

    Before that BatchNorm gets their statistics, as that of every trained network has those of some images.
    """
    known = resolve(net)
    seen = data.normalised(known.mean, known.std).train
    x, y = seen.batch(torch.arange(len(seen)), device=torch.device("cpu"))[:2]
    with contextlib.suppress(RuntimeError):  # one that takes no images so small in training mode keeps its statistics
        update_bn([x], known.module)
    try:
        name = classifier(known)
    except UserError:
        return dataclasses.replace(net, module=_trained(known.module, x, y))
    with Taps(known.module, [name], kind="input") as taps, torch.no_grad():
        known.module.eval()(x)
    layer, f = linear(known.module, name), taps[name].double()
    centred = f - f.mean(0)
    gram = centred @ centred.T
    ridge = 1e-6 * gram.trace() + 1e-12  # random weights may answer every image alike
    w = centred.T @ torch.linalg.solve(gram + ridge * torch.eye(len(f)), F.one_hot(y, 10).double() - 0.1)
    with torch.no_grad():
        layer.weight.copy_(w.T)
        assert layer.bias is not None
        layer.bias.copy_(0.1 - f.mean(0) @ w)
    return dataclasses.replace(net, module=known.module)


def _trained(module: nn.Module, x: Tensor, y: Tensor) -> nn.Module:
    optimizer = torch.optim.Adam(module.parameters(), lr=3e-4)
    for step in range(400):
        F.cross_entropy(module.train()(x), y).backward()
        optimizer.step()
        optimizer.zero_grad()
        if step % 20 == 0 and bool((module.eval()(x).argmax(1) == y).all()):
            break
    return module.eval()


def as_teacher(net: Model, data: Images, out: Path) -> None:
    upcycle.distill(teacher=net, student=small(data.shape[1]), data=data, out=out, alone=False, **TRAIN)


def as_student(net: Model, data: Images, out: Path) -> None:
    upcycle.distill(teacher=small(data.shape[1]), student=net, data=data, out=out, alone=False, **TRAIN)


def disassemble(net: Model, data: Images, out: Path) -> None:
    upcycle.disassemble(taught(net, data), data=data, out=out, classes=("1", "7"), samples=3, **RUN)


def assemble(net: Model, data: Images, out: Path) -> None:
    other = dataclasses.replace(net, classes=tuple("abcdefghij"), module=upcycle.core.models.copy_of(net.module))
    upcycle.assemble([net, other], out=out, **RUN)


def reassemble(net: Model, data: Images, out: Path) -> None:
    upcycle.reassemble(
        [net, small(data.shape[1])],
        data=data,
        out=out,
        blocks=2,
        probe=16,
        runs=3,
        candidates=3,
        score_batches=1,
        **TRAIN,
    )


def adapt(method: str, net: Model, data: Images, out: Path) -> None:
    upcycle.adapt(net, method=method, data=data, out=out, control=False, **TRAIN)


def extend(net: Model, data: Images, out: Path) -> None:
    upcycle.extend(net, stream=stream(data, tasks="2", scenario="class"), out=out, control=False, **TRAIN)


def treat(net: Model, data: Images, out: Path) -> None:
    upcycle.treat(taught(net, data), data=data, out=out, control=False, n=3, **TRAIN)


def diagnose(net: Model, data: Images, out: Path) -> None:
    upcycle.diagnose(taught(net, data), data=data, out=out, images=1, samples=3, say=_nothing)


def explain(net: Model, data: Images, out: Path) -> None:
    images = folder(data, out.with_name("images"))
    upcycle.explain_images(net, images, methods=("gradcam", "saliency"), out=out, say=_nothing)


def evaluate(net: Model, data: Images, out: Path) -> None:
    found = upcycle.evaluate(net, data)
    assert found.count == 20 and found.record()["macs"] > 0 and "memory" in found.text()


def predict(net: Model, data: Images, out: Path) -> None:
    found = upcycle.predict(net, folder(data, out.with_name("images")), out=out.with_suffix(".csv"))
    assert found.probabilities.shape == (2, len(CLASSES)) and found.probabilities.isfinite().all()


def export(format: str, net: Model, data: Images, out: Path) -> None:
    suffix = {"onnx": ".onnx", "torch": ".pt2"}[format]
    upcycle.export(net, out.with_suffix(suffix), format=format, say=_nothing)  # type: ignore[arg-type]


def lineage(net: Model, data: Images, out: Path) -> None:
    """The family tree of what was distilled into the network, read back from its directory, and the network too."""
    into = None if net.reference else own(upcycle.core.models.copy_of(resolve(net).module))
    as_student(net, data, out)
    assert "teacher: resnet8" in tree(upcycle.lineage(str(out)))
    resolve(upcycle.load(out, into=into))


def _nothing(text: str) -> None:
    """Say nothing."""


VERBS: dict[str, Callable[[Model, Images, Path], None]] = {
    "distill, as teacher": as_teacher,
    "distill, as student": as_student,
    "disassemble": disassemble,
    "assemble": assemble,
    "reassemble": reassemble,
    "adapt by ssf": partial(adapt, "ssf"),
    "adapt by probe": partial(adapt, "probe"),
    "extend": extend,
    "treat": treat,
    "diagnose": diagnose,
    "explain": explain,
    "evaluate": evaluate,
    "predict": predict,
    "export to onnx": partial(export, "onnx"),
    "export to torch": partial(export, "torch"),
    "lineage": lineage,
}

# -- cells --------------------------------------------------------------------------------------------------------


def cell(network: str, verb: str) -> dict[str, Any]:
    """One network in one verb: its ``outcome``, the ``reason`` where it did not work, and ``seconds``."""
    start, reason, outcome = time.perf_counter(), "", WORKED
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as place:
        try:
            net = NETWORKS[network]()
            VERBS[verb](net, images(net.input_shape[1]), Path(place) / "run")
        except UserError as error:
            outcome, reason = REFUSED, str(error)
        except Exception as error:
            outcome, reason = FAILED, one_line(error)
    return {"outcome": outcome, "reason": reason, "seconds": round(time.perf_counter() - start, 1)}


def row(network: str, verbs: list[str]) -> dict[str, Any]:
    """One network in every verb, in a process of its own; what it had not done when it ended has failed."""
    words = [
        sys.executable,
        "-W",
        "ignore",
        "-m",
        "benchmarks.architectures",
        "--cells",
        network,
        "--verbs",
        ",".join(str(list(VERBS).index(verb)) for verb in verbs),
    ]
    try:
        done = subprocess.run(words, capture_output=True, text=True, timeout=SECONDS, check=False)
        output, end = done.stdout, f"the process ended with {done.returncode}: {done.stderr.strip()[-300:]}"
    except subprocess.TimeoutExpired as late:
        output, end = (late.stdout or b"").decode(), f"no end after {SECONDS} seconds"
    found = dict(json.loads(line) for line in output.splitlines() if line.startswith("["))
    lost = {"outcome": FAILED, "reason": end, "seconds": 0.0}
    return {verb: found.get(verb, lost) for verb in verbs}


# -- table --------------------------------------------------------------------------------------------------------


def table(found: dict[str, Any]) -> str:
    """A line for each network, a column for each verb, and below it the counts and the reasons."""
    marks = {WORKED: "+", REFUSED: "-", FAILED: "F"}
    width = max(map(len, found), default=0)
    lines = [f"{i:2}  {verb}" for i, verb in enumerate(VERBS)]
    lines += ["", " " * width + "".join(f"{i:>3}" for i in range(len(VERBS)))]
    for network, cells in found.items():
        lines.append(
            network.ljust(width)
            + "".join(f"{marks[cells[verb]['outcome']] if verb in cells else ' ':>3}" for verb in VERBS)
        )
    for outcome in (WORKED, REFUSED, FAILED):
        counts = [sum(cells.get(verb, {}).get("outcome") == outcome for cells in found.values()) for verb in VERBS]
        lines.append(outcome.ljust(width) + "".join(f"{n:>3}" for n in counts))
    lines.append("")
    for network, cells in found.items():
        lines += [
            f"{network}, {verb}: {c['outcome']}: {c['reason']}" for verb, c in cells.items() if c["outcome"] != WORKED
        ]
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--networks", default=",".join(NETWORKS))
    parser.add_argument("--verbs", default=",".join(map(str, range(len(VERBS)))), help="by their numbers in the table")
    parser.add_argument("--again", action="store_true", help="also what is in the results already")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--show", action="store_true", help="the table of the results, and nothing else")
    parser.add_argument("--cells", help=argparse.SUPPRESS)
    given = parser.parse_args()
    verbs = [list(VERBS)[int(i)] for i in given.verbs.split(",")]
    if given.cells:
        warnings.simplefilter("ignore")
        torch.set_num_threads(1)
        for verb in verbs:
            print(json.dumps([verb, cell(given.cells, verb)]), flush=True)
        return 0
    file, lock = RESULTS / f"{NAME}.json", Lock()
    found: dict[str, Any] = json.loads(file.read_text())["figures"]["cells"] if file.exists() else {}
    if given.show:
        print(table(found))
        return 0

    def one(network: str) -> None:
        missing = [verb for verb in verbs if given.again or verb not in found.get(network, {})]
        cells = row(network, missing) if missing else {}
        with lock:
            known = {**found.get(network, {}), **cells}
            found[network] = {verb: known[verb] for verb in VERBS if verb in known}
            ordered = {name: found[name] for name in NETWORKS if name in found}
            counts = {verb: dict(Counter(c[verb]["outcome"] for c in ordered.values() if verb in c)) for verb in VERBS}
            record(NAME, {"counts": counts, "cells": ordered}, weights="random", images=[40, 20, 20], jobs=given.jobs)
            seconds = sum(c["seconds"] for c in cells.values())
            print(f"{network}: {dict(Counter(c['outcome'] for c in cells.values()))}, {seconds:.0f} s", flush=True)

    with ThreadPoolExecutor(given.jobs) as pool:
        list(pool.map(one, given.networks.split(",")))
    print(table({name: found[name] for name in NETWORKS if name in found}))
    return any(c["outcome"] == FAILED for cells in found.values() for c in cells.values())


if __name__ == "__main__":
    sys.exit(main())
