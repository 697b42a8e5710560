"""Architectures of our own, some with trained weights: ``zoo:NAME``."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

from torch import nn

from upcycle.core import lineage
from upcycle.core.errors import UserError, require, unknown
from upcycle.core.graphs import GraphTakes
from upcycle.core.models import Model
from upcycle.core.synonyms import same_name
from upcycle.core.takes import Takes
from upcycle.core.weights import load_weights
from upcycle.zoo import densenet, emo, from_pyg, metaformer, mobilenetv2, shunted, spiking, vgg
from upcycle.zoo.convnet import MLP, ConvNet
from upcycle.zoo.from_torchvision import torchvision
from upcycle.zoo.lenet import LeNet
from upcycle.zoo.mlperftiny import TinyResNet8
from upcycle.zoo.odenet import KINDS, Kind, OdeNet
from upcycle.zoo.published import weights_of
from upcycle.zoo.resnet import DEPTHS, ResNet
from upcycle.zoo.tree import Tree
from upcycle.zoo.vit import ViT
from upcycle.zoo.vit_plain import PlainViT
from upcycle.zoo.wrn import WRN

Shape = tuple[int, int, int]
Make = Callable[..., nn.Module]

CIFAR10 = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
VIT_SIZES = ("patch", "width", "depth", "heads")
# For networks that nothing was trained with: any data then lie within [-2, 2].
PLAIN = (0.5, 0.25)


@dataclass(frozen=True, kw_only=True)
class Trained:
    """Trained weights of a zoo network.

    Args:
        mean, std: what its inputs are normalised with.
        classes: names of its outputs.
        licence: of the weights, as their publisher states it.
        origin: where they were published; ``None`` when they are our own.
        script: the command that makes ours, in the repository; ``None`` when they come with this package.
        file: its name without the suffix, where that is not the network's.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    classes: tuple[str, ...]
    licence: str
    origin: str | None = None
    script: str | None = None
    file: str | None = None


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A zoo network: how it is made from (c, h, w) and a number of classes, and what it was trained as.

    Args:
        make: the maker.
        shape: of its images where nobody says another.
        trained: what it was trained as, if it was.
        sizes: names of sizes of its own that the maker takes besides.
    """

    make: Make
    shape: Shape = (3, 32, 32)
    trained: Trained | None = None
    sizes: tuple[str, ...] = ()


def _resnet(depth: int, projection: bool = False) -> Make:
    return _blocks((depth - 2) // 6, (depth - 2) // 6, (depth - 2) // 6, projection)


def _blocks(first: int, second: int, third: int, projection: bool = False) -> Make:
    return lambda shape, k: ResNet((first, second, third), k, shape[0], projection)


def _convnet(first: int, second: int, third: int, groups: int = 0) -> Make:
    return _at_least(4, "convnet", lambda shape, k: ConvNet((first, second, third), k, shape[0], groups))


def _at_least(side: int, name: str, make: Make) -> Make:
    def checked(shape: Shape, k: int) -> nn.Module:
        if min(shape[1:]) < side:
            raise UserError(f"{name} needs images of at least {side} x {side} pixels, not {shape[1]} x {shape[2]}.")
        return make(shape, k)

    return checked


def _mobilenetv2_ca(shape: Shape, k: int) -> nn.Module:
    return mobilenetv2.MobileNetV2(mobilenetv2.SMALL, k, shape[0], attention=True)


def _vit_small(shape: Shape, k: int) -> nn.Module:
    return ViT(shape, k, width=48, depth=3, heads=4)


def _wrn(depth: int, width: int) -> Make:
    return lambda shape, k: WRN(depth, width, k, shape[0])


def _tree(levels: tuple[int, ...], channels: tuple[int, ...], **sizes: int) -> Make:
    return _at_least(2 ** len(levels), "tree", lambda shape, k: Tree(levels, channels, k, shape, **sizes))


def _mlp(*widths: int, dropout: float) -> Make:
    return lambda shape, k: MLP(shape[0] * shape[1] * shape[2], widths, k, dropout)


def _odenet(kind: Kind) -> Make:
    return _at_least(4, "odenet", lambda shape, k: OdeNet(kind, k, shape[0]))


def _of_plan(make: Callable[..., nn.Module], plan: spiking.Plan) -> Make:
    return lambda shape, k: make(shape, k, plan)


def _shufflenet(shape: Shape, k: int) -> nn.Module:
    """ShuffleNetV2 (Ma et al., arXiv:1807.11164) at half width: torchvision's, with the first two halvings left out."""
    module = torchvision().models.ShuffleNetV2([4, 8, 4], [24, 48, 96, 192, 1024], k)
    module.conv1[0] = nn.Conv2d(shape[0], 24, 3, padding=1, bias=False)
    module.maxpool = nn.Identity()
    return module


def _shape(name: str) -> Shape:
    """The input of a network that comes in a tiny size, for CIFAR-10, and in those of its paper, for ImageNet."""
    return (3, 32, 32) if name.endswith("_tiny") else (3, 224, 224)


def _convnet128(shape: Shape, k: int) -> nn.Module:
    """Two 3x3 convolutions with ReLU and halving by max-pooling, then a linear layer to 128 features; no BatchNorm."""
    c, h, w = shape
    return nn.Sequential(
        nn.Conv2d(c, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(32 * (h // 4) * (w // 4), 128), nn.ReLU(), nn.Linear(128, k))  # fmt: skip


def _entries() -> dict[str, Entry]:
    # Accuracies on the CIFAR-10 test set: 91.73, 92.62, 93.11 and 93.39 % for depths 20, 32, 44 and 56, 92.62 % for
    # the one with projection shortcuts, 90.64 % for ShuffleNetV2, 84.19 % for the adversarially trained one, 87.20 %
    # for ResNet-8 and 59.08 % for LeNet; of our own 88.86 % for VGG, 91.71 % for MobileNetV2, 89.89 % for DenseNet,
    # 81.38 % for ViT and 92.42 % for WRN-40-2. Several were trained with ImageNet's statistics. On the first 1,000 test
    # images of MNIST 99.5, 99.1 and 99.3 % for the CNN, the ODENet and the TisODE.
    he = Trained(
        mean=(0.485, 0.456, 0.406),
        std=(0.229, 0.224, 0.225),
        classes=CIFAR10,
        licence="BSD-2-Clause",
        origin="https://github.com/akamaster/pytorch_resnet_cifar10",
    )
    chenyaofo = Trained(
        mean=(0.4914, 0.4822, 0.4465),
        std=(0.2023, 0.1994, 0.2010),
        classes=CIFAR10,
        licence="BSD-3-Clause",
        origin="https://github.com/chenyaofo/pytorch-cifar-models",
    )
    robust = Trained(
        mean=he.mean, std=he.std, classes=CIFAR10, licence="MIT", origin="https://github.com/EhanW/advrob-cifar10"
    )
    mlperf = Trained(  # on pixels from 0 to 255
        mean=(0.0,) * 3,
        std=(1 / 255,) * 3,
        classes=CIFAR10,
        licence="Apache-2.0",
        origin="https://github.com/mlcommons/tiny",
    )
    captum = Trained(
        mean=(0.5,) * 3,
        std=(0.5,) * 3,
        classes=CIFAR10,
        licence="BSD-3-Clause",
        origin="https://github.com/pytorch/captum",
    )

    def distilled(name: str) -> Trained:  # from cifar10_resnet56, whose licence goes with it
        script = f"python scripts/train_cifar10_zoo.py {name}"
        return Trained(mean=he.mean, std=he.std, classes=CIFAR10, licence=he.licence, script=script)

    small: dict[str, Make] = {
        "vgg": _at_least(8, "vgg", lambda shape, k: vgg.VGG(vgg.SMALL, k, shape[0])),
        "mobilenetv2": lambda shape, k: mobilenetv2.MobileNetV2(mobilenetv2.SMALL, k, shape[0]),
        "densenet": _at_least(4, "densenet", lambda shape, k: densenet.DenseNet(densenet.SMALL, k, shape[0])),
        "vit": ViT,
    }
    yan = Trained(  # grey images in [0, 1] as they are
        mean=(0.0,),
        std=(1.0,),
        classes=tuple("0123456789"),
        licence="unknown",
        origin="https://github.com/HanshuYAN/TisODE",
    )
    digits = Trained(mean=(0.3053,), std=(0.3759,), classes=tuple("0123456789"), licence="Apache-2.0")
    return {
        **{f"cifar10_resnet{depth}": Entry(make=_resnet(depth), trained=he) for depth in (20, 32, 44, 56)},
        "cifar10_resnet20_chenyaofo": Entry(make=_resnet(20, projection=True), trained=chenyaofo),
        "cifar10_resnet20_robust_pgd": Entry(make=_resnet(20, projection=True), trained=robust),
        "cifar10_resnet8_mlperftiny": Entry(make=TinyResNet8, trained=mlperf),
        "cifar10_shufflenetv2_x0_5": Entry(make=_shufflenet, trained=chenyaofo),
        "cifar10_lenet_captum": Entry(make=_at_least(16, "lenet", LeNet), trained=captum),
        **{f"cifar10_{name}": Entry(make=make, trained=distilled(name)) for name, make in small.items()},
        "cifar10_wrn40_2": Entry(make=_wrn(40, 2), trained=distilled("wrn40_2")),
        "cifar10_emo": Entry(make=emo.MAKERS["emo_tiny"], trained=distilled("emo")),
        "cifar10_shunted": Entry(make=shunted.MAKERS["shunted_tiny"], trained=distilled("shunted")),
        "cifar10_caformer": Entry(make=metaformer.MAKERS["caformer_tiny"], trained=distilled("caformer")),
        "cifar10_poolformer": Entry(make=metaformer.MAKERS["poolformer_tiny"], trained=distilled("poolformer")),
        **{
            f"mnist_{kind}": Entry(
                make=_odenet(kind), shape=(1, 28, 28), trained=replace(yan, file=f"mnist_{kind}_yan")
            )
            for kind in KINDS
        },
        "digits_teacher": Entry(make=_convnet(32, 64, 128), shape=(1, 8, 8), trained=digits),
        **{f"resnet{depth}": Entry(make=_resnet(depth)) for depth in DEPTHS},
        "resnet3-1-1": Entry(make=_blocks(3, 1, 1)),
        "resnet20_projection": Entry(make=_resnet(20, projection=True)),
        "convnet": Entry(make=_convnet(32, 64, 128)),
        "convnet_small": Entry(make=_convnet(8, 16, 16)),
        "convnet_groupnorm": Entry(make=_convnet(16, 32, 64, groups=8)),
        **{name: Entry(make=make) for name, make in small.items()},
        "vit_small": Entry(make=_vit_small),
        "vit_plain": Entry(make=PlainViT, sizes=VIT_SIZES),
        "vit_plain_mean": Entry(make=partial(PlainViT, pool="mean"), sizes=VIT_SIZES),
        "mobilenetv2_ca": Entry(make=_mobilenetv2_ca),
        "mobilenetv2_100_ca": Entry(make=mobilenetv2.published_with_attention, shape=(3, 224, 224)),
        **{
            name: Entry(make=make, shape=_shape(name))
            for name, make in {**emo.MAKERS, **shunted.MAKERS, **metaformer.MAKERS}.items()
        },
        "tree": Entry(make=_tree((2, 4, 8), (64, 64, 32))),
        "tree_small": Entry(make=_tree((2, 4), (16, 8), width=16, hidden=32)),
        "wrn16_1": Entry(make=_wrn(16, 1)),
        "wrn40_2": Entry(make=_wrn(40, 2)),
        "lenet": Entry(make=_at_least(16, "lenet", LeNet)),
        "mlp": Entry(make=_mlp(1200, 1200, dropout=0.5), shape=(1, 28, 28)),
        "convnet128": Entry(make=_at_least(4, "convnet128", _convnet128), shape=(1, 28, 28)),
        "mlp100": Entry(make=_mlp(100, 100, dropout=0.0), shape=(1, 28, 28)),
        "mlp400": Entry(make=_mlp(400, dropout=0.0), shape=(1, 28, 28)),
        "mlp_small": Entry(make=_mlp(300, dropout=0.0), shape=(1, 28, 28)),
        "spiking": Entry(make=_of_plan(spiking.spiking, spiking.SMALL), shape=(1, 28, 28)),
        "spiking_vgg11": Entry(make=_of_plan(spiking.spiking, spiking.VGG11)),
        "capped": Entry(make=_of_plan(spiking.Capped, spiking.SMALL), shape=(1, 28, 28)),
        "capped_vgg11": Entry(make=_of_plan(spiking.Capped, spiking.VGG11)),
    }


ENTRIES = _entries()
# Over graphs, in zoo/gnn.py and zoo/factorgcn.py, imported when one is made: the first needs PyTorch Geometric.
GRAPH_NETWORKS = (
    *(f"gcn_{size}" for size in ("5_64", "5_32", "3_64", "3_32", "2_16")),
    *(f"gin_{size}" for size in ("5_64", "5_32", "3_64", "3_32")),
    "gat",
    "gat_1",
    "sage",
    "factorgcn",
    "factorgcn_5_64",
    "spagan",
    "spagan_1",
)
FACTORED = "factorgcn"
"""How the names of networks with factors begin, which need no library."""


def names() -> list[str]:
    """The zoo, trained networks first and those over graphs last."""
    return [*ENTRIES, *GRAPH_NETWORKS]


def spelled(name: str) -> str:
    """The name as the zoo has it, whatever its case; one that is unknown stays as it is."""
    return same_name(name, names()) or name


def check(name: str) -> None:
    """Raise UserError for a name that is not in the zoo, or that needs a library which is missing."""
    if name in GRAPH_NETWORKS:
        if not name.startswith(FACTORED):
            from_pyg.require_installed()
    elif name not in ENTRIES:
        raise unknown("zoo model", name, names())


def build(
    name: str,
    *,
    pretrained: bool,
    num_classes: int | None = None,
    input_shape: Shape | None = None,
    takes: Takes | None = None,
    factors: int | None = None,
    time_steps: int | None = None,
    warmup_steps: int | None = None,
    patch: int | None = None,
    width: int | None = None,
    depth: int | None = None,
    heads: int | None = None,
) -> Model:
    """A network of the zoo.

    Args:
        name: one of :func:`names`.
        pretrained: with trained weights, from this package or ``$UPCYCLE_DATA/weights``.
        num_classes: outputs of a fresh network; 10 when not given. Trained ones keep theirs.
        input_shape: (c, h, w); the network's own when not given. ResNets and conv nets take any size.
        takes: what the graphs are like, for a network over graphs; 2 classes when not given.
        factors: of the first layer, for a network that has some; its own number when not given.
        time_steps, warmup_steps: of a spiking network, see :class:`upcycle.zoo.spiking.Spiking`.
        patch: side of a patch in pixels, for a network that lets one choose; its own when not given.
        width: of a token, likewise.
        depth: number of blocks, likewise.
        heads: of each attention, likewise.

    Raises:
        UserError: unknown name, no trained weights to be had, or channels that those weights don't fit.
    """
    check(name)
    asked = {"patch": patch, "width": width, "depth": depth, "heads": heads}
    sizes = {key: size for key, size in asked.items() if size is not None}
    for key in sizes:
        chosen = name in ENTRIES and key in ENTRIES[name].sizes
        require(chosen, f"zoo:{name} is of one {key}; zoo:vit_plain lets you choose.")
    if name in GRAPH_NETWORKS:
        return _over_graphs(name, from_pyg.graphs_for(f"zoo:{name}", pretrained, takes), num_classes or 2, factors)
    require(factors is None, f"zoo:{name} has no factors.")
    entry = ENTRIES[name]
    shape, trained = input_shape or entry.shape, entry.trained
    if pretrained and trained is None:
        raise UserError(f"zoo:{name} has no trained weights; name a file as its weights.")
    if pretrained and shape[0] != entry.shape[0]:
        raise UserError(f"zoo:{name} was trained on images with {entry.shape[0]} channels, not {shape[0]}.")
    k = len(trained.classes) if pretrained and trained else num_classes or 10
    mean, std = ((PLAIN[0],) * shape[0], (PLAIN[1],) * shape[0])
    if trained is not None and shape[0] == entry.shape[0]:
        mean, std = trained.mean, trained.std
    module = entry.make(shape, k, **sizes)
    steps = _run_for(name, module, time_steps, warmup_steps)
    model = Model(
        module=module,
        input_shape=shape,
        mean=mean,
        std=std,
        classes=tuple(map(str, range(k))),
        reference=f"zoo:{name}",
        options={"num_classes": k, "input_shape": list(shape), **sizes, **steps},
        name=name,
    )
    if pretrained and trained is not None:
        file = weights_of(
            name, trained.file or name, trained.origin, trained.script, lambda: entry.make(entry.shape, k)
        )
        load_weights(model.module, file)
        model.classes, model.licence = trained.classes, trained.licence
        tree = file.with_name(f"{name}.lineage.json")
        model.lineage = lineage.read(tree) if tree.is_file() else None
    return model


def _run_for(name: str, module: nn.Module, time_steps: int | None, warmup_steps: int | None) -> dict[str, int]:
    """Set the steps of a spiking network, and give what it is rebuilt with; of another there are none to set."""
    if not isinstance(module, spiking.Spiking):
        require(time_steps is None and warmup_steps is None, f"zoo:{name} has no time steps.")
        return {}
    if time_steps is not None or warmup_steps is not None:
        module.run_for(module.time_steps if time_steps is None else time_steps, warmup_steps)
    return module.steps()


def _over_graphs(name: str, takes: GraphTakes, k: int, factors: int | None) -> Model:
    """A fresh network over graphs."""
    if not name.startswith(FACTORED):
        require(factors is None, f"zoo:{name} has no factors.")
        from_pyg.torch_geometric()
        network = importlib.import_module("upcycle.zoo.gnn").make(name, takes.features, k, takes.level)
        return from_pyg.graph_model(f"zoo:{name}", network, takes, k)
    make = importlib.import_module("upcycle.zoo.factorgcn").make
    model = from_pyg.graph_model(f"zoo:{name}", make(name, takes.features, k, takes.level, factors), takes, k)
    return model if factors is None else replace(model, options={**model.options, "factors": factors})
