"""One row a method: the tiny networks, data and options that the promises are tested with.

A method appears in every promise by appearing here, and a test fails for one that does not.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import nn

from tests.settings_factors import factor_networks, label_networks, taught_networks, tiny_factors
from tests.settings_graphs import networks, other_graphs, path_networks, spoil_graphs, tiny_graphs, tiny_nodes
from tests.settings_groups import group_networks, layer_networks, tiny_groups
from tests.settings_spiking import spiking_networks
from tests.settings_streams import gat, graph_stream, one_convolution, plain_net
from upcycle.adaptation import BA3US, BETA, CMAE, DINE, IA3, ISO, SSF, AttentionDiversification, LinearProbe, LoRA
from upcycle.adaptation.black_box.bottleneck import Bottleneck
from upcycle.assembly import MDA, NES, DeRy, MDAAssembly, Swap
from upcycle.continual import (
    BLIP,
    ER,
    EWC,
    MEAT,
    SI,
    TWP,
    VPR,
    CoCa,
    DERpp,
    Finetune,
    Joint,
    LwF,
    SimpleCIL,
    StreamingSSL,
)
from upcycle.continual.protocol.replay import Replay
from upcycle.core.evaluate import predict_logits
from upcycle.core.losses import Terms
from upcycle.core.method import Method
from upcycle.core.models import Model
from upcycle.core.recipe import Recipe
from upcycle.core.run import Run
from upcycle.data import Images, ImageSplit, load
from upcycle.data.stream_kinds import stream
from upcycle.data.streams import Stream
from upcycle.diagnosis import BAGS, CRT, LWS, NCM, LogitAdjust, ModelDoctor, SimCal, Tau
from upcycle.distillation import (
    CMI,
    GFKD,
    KD,
    LTL,
    RELIANT,
    SPAGAN,
    VAM,
    BootstrapViT,
    DeepInversion,
    FactorGCN,
    FastDFKD,
    Features,
    KDExplainer,
    NetGraft,
    OneStageGAN,
    Plain,
    TfKD,
    TinyMIM,
)
from upcycle.distillation.data_free.making import Making
from upcycle.predictors import Answers
from upcycle.zoo.convnet import ConvNet
from upcycle.zoo.tree import Tree
from upcycle.zoo.vit import ViT
from upcycle.zoo.vit_plain import PlainViT


class TinyNet(nn.Module):
    """conv-BN-ReLU twice, pooling, linear; 8x8 grey."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.relu1, self.relu2, self.pool1 = nn.ReLU(), nn.ReLU(), nn.MaxPool2d(2)
        self.conv1, self.bn1 = nn.Conv2d(1, width, 3, padding=1, bias=False), nn.BatchNorm2d(width)
        self.conv2, self.bn2 = nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width)
        self.pool, self.linear = nn.AdaptiveAvgPool2d(1), nn.Linear(width, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.relu1(self.bn1(self.conv1(x)))
        x = self.relu2(self.bn2(self.conv2(self.pool1(x))))
        return self.linear(self.pool(x).flatten(1))


def tiny_net(seed: int = 0, width: int = 16) -> nn.Module:
    torch.manual_seed(seed)
    return TinyNet(width)


@cache
def _digits() -> Images:
    return load("digits")


def tiny_data(n: int = 160) -> Images:
    """The first ``n`` digits to train on, 50 to validate and 50 to test."""
    data = _digits().normalised((0.3,), (0.4,))
    return dataclasses.replace(
        data, train=data.train.subset(torch.arange(n)), validation=data.validation.subset(torch.arange(50)),
        test=data.test.subset(torch.arange(50)))  # fmt: skip


def tiny_stream(tasks: str = "5", scenario: str = "class") -> Callable[[int], Stream]:
    """The first digits, two classes at a time."""
    return lambda n=160: stream(tiny_data(n), tasks=tasks, scenario=scenario)  # type: ignore[arg-type]


def turned_stream(n: int = 160) -> Stream:
    """The first digits upright, then lying on their side, then on their head."""
    data = tiny_data(n)

    def make(t: int) -> Images:
        def of(split: ImageSplit) -> ImageSplit:
            upright = split.images.dtype == torch.uint8
            return dataclasses.replace(split, images=split.images.rot90(t, (1, 2) if upright else (2, 3)).contiguous())

        return dataclasses.replace(data, train=of(data.train), validation=of(data.validation), test=of(data.test))

    return Stream(name="turned:digits", scenario="domain", classes=data.classes, tasks=(tuple(range(10)),) * 3,
                  make=make, base=data, order={"turns": 3})  # fmt: skip


def tiny_model(name: str, seed: int, width: int = 16) -> Model:
    return Model(module=tiny_net(seed, width), input_shape=(1, 8, 8), mean=(0.3,), std=(0.4,),
                 classes=tuple("0123456789"), name=name)  # fmt: skip


def tiny_tree(seed: int) -> Model:
    """Two experts before three; without dropout, whose draws would differ between one process and two."""
    torch.manual_seed(seed)
    module = Tree((2, 3), (4, 4), 10, (1, 8, 8), width=4, hidden=8, dropout=0.0)
    return dataclasses.replace(tiny_model("student", seed), module=module)


def tiny_vit(seed: int, name: str = "student", width: int = 16, depth: int = 2, heads: int = 2) -> Model:
    """Two blocks, four tokens."""
    torch.manual_seed(seed)
    return dataclasses.replace(tiny_model(name, seed), module=ViT((1, 8, 8), 10, width, depth, heads))


def token_networks() -> dict[str, Model]:
    """Two vision transformers of as many tokens: the teacher wider and deeper, with another number of heads."""
    return {"teacher": seen(tiny_vit(7, "teacher", 24, 4, 3)), "student": tiny_vit(100, width=12)}


def tiny_plain_vit(seed: int) -> Model:
    """Two blocks of four heads, sixteen tokens and one of the class."""
    torch.manual_seed(seed)
    module = PlainViT((1, 8, 8), 10, patch=2, width=12, depth=2, heads=4)
    return dataclasses.replace(tiny_model("student", seed), module=module)


def tiny_plain(seed: int) -> Model:
    """Convolutions with GroupNorm, in which no sample depends on others."""
    torch.manual_seed(seed)
    return dataclasses.replace(tiny_model("student", seed), module=ConvNet((4, 4, 8), 10, 1, groups=2))


def seen(model: Model) -> Model:
    """``model`` with the BatchNorm statistics of 160 digits, as if it had been trained on them."""
    data = tiny_data()
    module = model.module.train()
    for m in module.modules():
        if isinstance(m, nn.BatchNorm2d):
            m.momentum = None  # of all that it sees, not a tenth
    with torch.no_grad():
        module(data.train.batch(torch.arange(len(data.train)), device=torch.device("cpu")).images)
    module.eval()
    return model


def parts() -> tuple[Model, ...]:
    """Two trained networks for different digits, one of which expects another normalisation."""
    data, made = tiny_data(), []
    for i, classes in enumerate((("0", "1", "2"), ("7", "8", "9"))):
        source = fitted(f"source{i}", 7 + i)
        if i:
            source = dataclasses.replace(source, mean=(0.25,), std=(0.5,))
        method = MDA(
            source=source, classes=classes, samples=8, alpha=-1.0, beta=-1.0, alpha_linear=-1.0, beta_linear=-1.0
        )
        made.append(method.product(method.fit(Run(None, quiet=True), data), data))
    return tuple(made)


@cache
def _trained(seed: int, width: int) -> dict[str, torch.Tensor]:
    """The weights of a tiny network after twenty epochs of cross-entropy on 160 digits."""
    model, recipe = tiny_model("fitted", seed, width), Recipe(epochs=20, batch_size=32, lr=0.1)
    method = Plain(student=model, recipe=recipe)
    return method.fit(Run(None, seed=seed, quiet=True), tiny_data()).state_dict()


def fitted(name: str, seed: int, width: int = 16) -> Model:
    """A tiny network that recognises digits."""
    model = tiny_model(name, seed, width)
    model.module.load_state_dict(_trained(seed, width))
    model.module.eval()
    return model


class Said:
    """A black box: what a network says of each image, its ``t`` most probable classes; counts the images."""

    def __init__(self, model: Model, t: int = 1) -> None:
        self.name, self.classes, self.model, self.t, self.asked = model.name, model.classes, model, t, 0

    def predict(self, split: ImageSplit) -> Answers:
        self.asked += len(split)
        best = predict_logits(self.model.module, split).softmax(1).topk(self.t, 1)
        return Answers(best.indices, best.values)


class EvenAndOdd(AttentionDiversification):
    """Two domains, whatever the number of training images: those of even and of odd positions."""

    def check(self, data: Images) -> list[str]:
        self.domains = torch.arange(len(data.train)) % 2
        return super().check(data)

    def fit(self, run: Run, data: Images) -> nn.Module:
        self.domains = torch.arange(len(data.train)) % 2
        return super().fit(run, data)


def spoil_images(data: Any) -> None:
    """Make training images of several classes NaN, in place."""
    bad = data.train.images.permute(0, 3, 1, 2).float() / 255
    bad[17:25] = float("nan")
    data.train.images = bad.contiguous()


def spoil_validation(data: Any) -> None:
    """Make validation images NaN, in place, for a method that looks at no others."""
    bad = data.validation.images.permute(0, 3, 1, 2).float() / 255
    bad[17:25] = float("nan")
    data.validation.images = bad.contiguous()


def other_images(split: ImageSplit) -> ImageSplit:
    """A split of which the first image has another first pixel."""
    images = split.images.clone()
    images.view(-1)[0] = 1 - images.view(-1)[0].clamp(0, 1)
    return dataclasses.replace(split, images=images)


@dataclass(frozen=True)
class Row:
    """A method's options for the gauntlet, its networks, and the command line that runs it.

    ``spoil`` makes training samples of its data NaN, in place; ``other`` gives a split with another first sample.
    Without the package ``extra`` its tests are skipped.
    """

    method: type[Method]
    options: dict[str, Any]
    words: tuple[str, ...]
    teacher: bool = True
    student_width: int = 16
    networks: Callable[[], dict[str, Any]] | None = None  # in place of teacher and student
    draws: bool = True  # whether anything is random
    data: Callable[[int], Any] = tiny_data
    spoil: Callable[[Any], None] = spoil_images
    other: Callable[[Any], Any] = other_images
    extra: str = ""

    def make(self, seed: int = 0) -> Method:
        if self.networks is not None:
            return self.method(**self.networks(), **self.options)
        roles = {"student": tiny_model("student", 100 + seed, self.student_width)}
        if self.teacher:
            roles["teacher"] = seen(tiny_model("teacher", 7))
        return self.method(**roles, **self.options)


PYG = "torch_geometric"
_RECIPE = Recipe(epochs=3, batch_size=32, lr=0.05)
_TUNE = Recipe(epochs=3, batch_size=32, optimizer="adamw", lr=0.01)
_GENTLE = dataclasses.replace(_TUNE, lr=0.003)  # two networks that learn from each other amplify what is rounded
_LEARN = Recipe(epochs=2, batch_size=16, lr=0.05, momentum=0.0, weight_decay=0.0, schedule="constant")
_PRETRAIN = Recipe(epochs=2, batch_size=16, optimizer="adam", lr=1e-3, weight_decay=0.0)
_BETA = Recipe(epochs=3, batch_size=16, lr=0.05)  # small batches, so that there are some of hard images
_MASKED = {"mask": 0.5, "shift": 1, "projection": 8, "decoder_width": 8}
_HEAD = Recipe(epochs=3, batch_size=32, lr=0.05, sampler="class")
_WORDS = ("--recipe.epochs=2", "--recipe.batch_size=64")
_MAKING = Making(rounds=4, batch=32, kd_steps=4, capacity=128)
_WARMING = dataclasses.replace(_MAKING, warmup=1)
_GENERATE = {"nz": 16, "ngf": 8}
_MAKING_WORDS = (*_WORDS, "--making.rounds=3", "--making.batch=32", "--making.kd_steps=4")
_GENERATE_WORDS = (*_MAKING_WORDS, "--nz=16", "--ngf=8")

_GRAPHS: dict[str, Any] = {"spoil": spoil_graphs, "other": other_graphs}
_WHOLE = Recipe(epochs=3, batch_size=0, optimizer="adam", lr=0.01)
_FREE = {"graphs": 24, "batch": 16, "sizes": (3, 6), "iterations": 4, "decay_every": 3}
_REASSEMBLE = {"blocks": 2, "probe": 64, "runs": 5, "candidates": 4, "score_batches": 1}
_PARTIAL = {
    "iterations": 30,
    "batch_size": 13,
    "mu": 3,
    "bottleneck": Bottleneck(width=16, backbone_rate=1.0),
    "hidden": 16,
}
_PARTIAL_WORDS = ("--iterations=20", "--batch_size=16", "--bottleneck.width=16", "--hidden=16")
_EPISODES = {"recipe": _LEARN, "episodes": 8, "later": 3, "draws": 3, "width": 8, "images": 4}
_EPISODE_WORDS = ("--recipe.epochs=2", "--episodes=8", "--later=3", "--draws=3", "--width=8")

ROWS = {
    "kd": Row(KD, {"recipe": _RECIPE}, _WORDS),
    "kd-views": Row(
        KD, {"recipe": _RECIPE, "views": 2, "cache": "on", "terms": Terms(w_ce=0.0, w_kd=1.0)}, (*_WORDS, "--views=2")
    ),
    "plain": Row(Plain, {"recipe": _RECIPE, "label_smoothing": 0.1}, (*_WORDS, "--label_smoothing=0.1"), teacher=False),
    "kd+esam": Row(
        KD,
        {"recipe": dataclasses.replace(_RECIPE, sharpness="esam")},
        (*_WORDS, "--recipe.sharpness=esam"),
    ),
    "plain+sam": Row(
        Plain,
        {"recipe": dataclasses.replace(_RECIPE, sharpness="sam")},
        (*_WORDS, "--recipe.sharpness=sam"),
        teacher=False,
    ),
    "kd+snapmix": Row(
        KD,
        {"recipe": dataclasses.replace(_RECIPE, mix="snapmix")},
        (*_WORDS, "--recipe.mix=snapmix"),
    ),
    "kd+snapmix-teacher": Row(
        KD,
        {"recipe": dataclasses.replace(_RECIPE, mix="snapmix", mix_map="teacher", mix_prob=0.5)},
        (*_WORDS, "--recipe.mix=snapmix", "--recipe.mix_map=teacher", "--recipe.mix_prob=0.5"),
    ),
    "plain+cutmix": Row(
        Plain,
        {"recipe": dataclasses.replace(_RECIPE, mix="cutmix", mix_beta=1.0)},
        (*_WORDS, "--recipe.mix=cutmix", "--recipe.mix_beta=1"),
        teacher=False,
    ),
    "plain+mixup": Row(
        Plain,
        {"recipe": dataclasses.replace(_RECIPE, mix="mixup", mix_beta=0.4)},
        (*_WORDS, "--recipe.mix=mixup", "--recipe.mix_beta=0.4"),
        teacher=False,
    ),
    "plain+class": Row(
        Plain,
        {"recipe": dataclasses.replace(_RECIPE, sampler="class")},
        (*_WORDS, "--recipe.sampler=class"),
        teacher=False,
    ),
    "kd+progressive": Row(
        KD,
        {"recipe": dataclasses.replace(_RECIPE, sampler="progressive")},
        (*_WORDS, "--recipe.sampler=progressive"),
    ),
    "kd-graphs": Row(KD, {"recipe": _RECIPE}, _WORDS, networks=lambda: networks("graph"), data=tiny_graphs, **_GRAPHS),
    "kd-nodes": Row(
        KD,
        {"recipe": dataclasses.replace(_RECIPE, batch_size=0, epochs=5), "cache": "on"},
        ("--recipe.epochs=5", "--recipe.batch_size=0"),
        networks=lambda: networks("node"),
        data=tiny_nodes,
        draws=False,
        **_GRAPHS,
    ),
    "tfkd": Row(TfKD, {"recipe": _RECIPE, "variant": "self"}, _WORDS, teacher=False),
    "tfkd-reg": Row(TfKD, {"recipe": _RECIPE, "variant": "reg"}, (*_WORDS, "--variant=reg"), teacher=False),
    "netgraft": Row(
        NetGraft,
        {"cuts": ("pool1", "relu2"), "epochs_block": (2,), "epochs_chain": 2, "batch_size": 32},
        ("--shots=4",),
        student_width=8,
    ),
    "kdexplainer": Row(
        KDExplainer,
        {"recipe": _RECIPE, "epochs_soft": 3},
        ("--student=zoo:tree_small", "--epochs_soft=3", *_WORDS),
        networks=lambda: {"teacher": seen(tiny_model("teacher", 7)), "student": tiny_tree(100)},
    ),
    "vam": Row(VAM, {"recipe": _RECIPE, "block": 8}, (*_WORDS, "--block=8")),
    "features": Row(Features, {"recipe": _RECIPE, "pairs": 2}, (*_WORDS, "--pairs=2")),
    "features-hint": Row(Features, {"recipe": _RECIPE, "loss": "hint"}, (*_WORDS, "--loss=hint"), student_width=8),
    "features-attention": Row(
        Features,
        {"recipe": _RECIPE, "loss": "attention", "weight": 10.0, "layers": ("relu1", "bn2")},
        (*_WORDS, "--loss=attention", "--weight=10", "--layers=block1,block2.1"),
    ),
    "bootstrapvit": Row(
        BootstrapViT,
        {"recipe": _GENTLE},
        ("--student=zoo:vit_plain", *_WORDS),
        networks=lambda: {"student": tiny_plain_vit(100)},
    ),
    "bootstrapvit-shared": Row(
        BootstrapViT,
        {"recipe": _GENTLE, "mode": "shared", "pool_after": (0,), "norm": "post"},
        ("--student=zoo:vit_plain", *_WORDS, "--mode=shared", "--norm=post"),
        networks=lambda: {"student": tiny_plain_vit(100)},
    ),
    "fastdfkd": Row(
        FastDFKD,
        {"recipe": _RECIPE, "making": dataclasses.replace(_WARMING, views=12), **_GENERATE, "k": 2, "reset": 1},
        (*_GENERATE_WORDS, "--making.warmup=1", "--k=2"),
    ),
    "fastdfkd-reptile": Row(
        FastDFKD,
        {"recipe": _RECIPE, "making": dataclasses.replace(_WARMING, views=2), **_GENERATE, "k": 2, "reuse": "reptile"},
        (*_GENERATE_WORDS, "--making.warmup=1", "--k=2", "--reuse=reptile", "--making.views=2"),
    ),
    "cmi": Row(
        CMI,
        {"recipe": _RECIPE, "making": _WARMING, **_GENERATE, "g_steps": 3, "n_neg": 16, "bank": 64, "bank_every": 2},
        (*_GENERATE_WORDS, "--making.warmup=1", "--g_steps=3", "--n_neg=16", "--bank=64"),
    ),
    "deepinversion": Row(
        DeepInversion,
        {"recipe": _RECIPE, "making": _WARMING, "g_steps": 3},
        (*_MAKING_WORDS, "--making.warmup=1", "--g_steps=3"),
    ),
    "onestagegan": Row(
        OneStageGAN,
        {"recipe": _RECIPE, "making": _MAKING, **_GENERATE, "g_steps": 3},
        (*_GENERATE_WORDS, "--g_steps=3"),
    ),
    "gfkd": Row(
        GFKD,
        {"recipe": _RECIPE, **_FREE},
        ("--iterations=3",),
        networks=layer_networks,
        data=tiny_graphs,
        extra=PYG,
        **_GRAPHS,
    ),
    "gfkd-edges": Row(
        GFKD,
        {"recipe": _RECIPE, **_FREE, "symmetric": True, "features": "real"},
        ("--iterations=3", "--symmetric"),
        networks=lambda: networks("graph"),
        data=tiny_graphs,
        extra=PYG,
        **_GRAPHS,
    ),
    "gfkd-degrees": Row(
        GFKD,
        {"recipe": _RECIPE, **_FREE, "features": "degree"},
        ("--iterations=3", "--features=degree"),
        networks=layer_networks,
        data=tiny_graphs,
        extra=PYG,
        **_GRAPHS,
    ),
    "reliant": Row(
        RELIANT,
        {"recipe": _WHOLE, "sensitive": "group", "balanced": True},
        ("--sensitive=group",),
        networks=group_networks,
        data=tiny_groups,
        extra=PYG,
        **_GRAPHS,
    ),
    "reliant-eo": Row(
        RELIANT,
        {"recipe": _WHOLE, "sensitive": "group", "objective": "eo", "proxy": 0, "alpha": 10.0},
        ("--sensitive=group", "--proxy=0"),
        networks=group_networks,
        data=tiny_groups,
        draws=False,
        extra=PYG,
        **_GRAPHS,
    ),
    "factorgcn": Row(FactorGCN, {"recipe": _RECIPE}, _WORDS, networks=factor_networks, data=tiny_graphs, **_GRAPHS),
    "factorgcn-teacher": Row(
        FactorGCN,
        {"recipe": _RECIPE, "factors": 2, "terms": Terms(w_kd=0.5, w_ce=0.5)},
        (*_WORDS, "--factors=2", "--terms.w_kd=0.5"),
        networks=taught_networks,
        data=tiny_graphs,
        **_GRAPHS,
    ),
    "factorgcn-labels": Row(
        FactorGCN,
        {"recipe": _RECIPE, "lambda_d": 1.0},
        (*_WORDS, "--lambda_d=1"),
        networks=label_networks,
        data=tiny_factors,
        **_GRAPHS,
    ),
    "spagan": Row(
        SPAGAN,
        {"recipe": _WHOLE, "r": 1.0, "patience": 0},
        ("--r=1", "--patience=0"),
        networks=path_networks,
        data=tiny_nodes,
        draws=False,
        extra=PYG,
        **_GRAPHS,
    ),
    "spagan-patience": Row(
        SPAGAN,
        {
            "recipe": dataclasses.replace(_WHOLE, epochs=6, batch_size=40),
            "patience": 2,
            "patience_after": 1,
            "depth_limit": True,
        },
        ("--patience=2", "--patience_after=1", "--depth_limit"),
        networks=path_networks,
        data=tiny_nodes,
        extra=PYG,
        **_GRAPHS,
    ),
    "ltl": Row(
        LTL,
        {"recipe": _PRETRAIN, "time_steps": 4},
        ("--teacher=zoo:capped", "--teacher_weights=fresh", "--student=zoo:spiking", "--time_steps=2", *_WORDS),
        networks=spiking_networks,
    ),
    "ltl-online": Row(
        LTL,
        {"recipe": _PRETRAIN, "time_steps": 5, "form": "online", "warmup_steps": 2},
        (
            "--teacher=zoo:capped",
            "--teacher_weights=fresh",
            "--student=zoo:spiking",
            "--time_steps=3",
            "--form=online",
            *_WORDS,
        ),
        networks=spiking_networks,
    ),
    "tinymim": Row(
        TinyMIM,
        {"recipe": _TUNE},
        ("--teacher=zoo:cifar10_vit", "--student=zoo:vit_small", *_WORDS),
        networks=token_networks,
    ),
    "tinymim-last": Row(
        TinyMIM,
        {"recipe": _TUNE, "block": 4, "heads": 4, "jitter": False},
        ("--teacher=zoo:cifar10_vit", "--student=zoo:vit_small", "--block=4", "--heads=4", "--jitter=false", *_WORDS),
        networks=token_networks,
    ),
    "mda": Row(
        MDA,
        {"classes": ("3", "5", "8"), "samples": 8},
        (),
        networks=lambda: {"source": fitted("source", 7)},
        draws=False,
    ),
    "mda-gradient": Row(
        MDA,
        {"samples": 8, "score": "gradient"},
        ("--score=gradient",),
        networks=lambda: {"source": fitted("source", 7)},
        draws=False,
    ),
    "mdaassembly": Row(MDAAssembly, {"tune": True, "recipe": _RECIPE}, _WORDS, networks=lambda: {"parts": parts()}),
    "mdaassembly-zeros": Row(
        MDAAssembly,
        {"tune": True, "keep_zeros": True, "scale": False, "recipe": _RECIPE},
        (*_WORDS, "--keep_zeros"),
        networks=lambda: {"parts": parts()},
    ),
    "dery": Row(
        DeRy,
        {**_REASSEMBLE, "recipe": _RECIPE},
        _WORDS,
        networks=lambda: {"zoo": (fitted("a", 7), fitted("b", 8, 24), fitted("c", 9, 12))},
    ),
    "dery-all": Row(
        DeRy,
        {**_REASSEMBLE, "tune": "all", "recipe": _RECIPE},
        (*_WORDS, "--tune=all"),
        networks=lambda: {"zoo": (fitted("a", 7), fitted("b", 8, 24))},
    ),
    "swap": Row(
        Swap,
        {"block": "coord", "at": ("relu?",), "settings": {"b0": 0.0}, "recipe": _RECIPE},
        ("--block=coord", "--at=relu?", *_WORDS),
        networks=lambda: {"source": fitted("source", 7)},
    ),
    "swap-regress": Row(
        Swap,
        {"block": "sepconv", "at": ("blocks.*.attention",), "regress_epochs": 2, "recipe": _TUNE},
        ("--block=sepconv", "--at=blocks.*.attention", "--regress_epochs=1", *_WORDS),
        networks=lambda: {"source": tiny_vit(7)},
    ),
    "swap-pnp": Row(
        Swap,
        {"block": "pnp", "at": ("blocks.0",), "settings": {"m": 2}, "recipe": _TUNE},
        ("--block=pnp", "--at=blocks.0", "--settings.m=2", *_WORDS),
        networks=lambda: {"source": tiny_vit(7)},
    ),
    "modeldoctor": Row(
        ModelDoctor,
        {"recipe": _RECIPE, "b": 0.05, "n": 8, "noise": 0.5, "masks": "gradcam"},
        (*_WORDS, "--b=0.05", "--masks=gradcam"),
        networks=lambda: {"source": fitted("source", 7)},
    ),
    "tau": Row(
        Tau,
        {"held": 2},
        ("--held=2",),
        networks=lambda: {"source": fitted("source", 7)},
        draws=False,
        spoil=spoil_validation,
    ),
    "logitadjust": Row(
        LogitAdjust, {}, (), networks=lambda: {"source": fitted("source", 7)}, draws=False, spoil=spoil_validation
    ),
    "ncm": Row(NCM, {}, (), networks=lambda: {"source": fitted("source", 7)}, draws=False),
    "ncm-raw": Row(
        NCM, {"features": "raw"}, ("--features=raw",), networks=lambda: {"source": fitted("source", 7)}, draws=False
    ),
    "crt": Row(CRT, {"recipe": _HEAD}, _WORDS, networks=lambda: {"source": fitted("source", 7)}),
    "lws": Row(LWS, {"recipe": _HEAD}, _WORDS, networks=lambda: {"source": fitted("source", 7)}),
    "bags": Row(
        BAGS,
        {"recipe": _HEAD, "edges": (16, 17)},
        (*_WORDS, "--edges=[90,100]"),
        networks=lambda: {"source": fitted("source", 7)},
    ),
    "bags-background": Row(
        BAGS,
        {"recipe": dataclasses.replace(_HEAD, sampler="instance"), "edges": (16, 17), "beta": 2.0, "background": "3"},
        (*_WORDS, "--background=3", "--recipe.sampler=instance"),
        networks=lambda: {"source": fitted("source", 7)},
    ),
    "simcal": Row(
        SimCal, {"recipe": _HEAD, "T": 21}, (*_WORDS, "--T=100"), networks=lambda: {"source": fitted("source", 7)}
    ),
    "simcal-background": Row(
        SimCal,
        {"recipe": _HEAD, "T": None, "hidden": 0, "background": "3"},
        (*_WORDS, "--T=null", "--hidden=0", "--background=3"),
        networks=lambda: {"source": fitted("source", 7)},
    ),
    "dine": Row(
        DINE,
        {"recipe": _RECIPE, "epochs_tune": 2, "bottleneck": Bottleneck(width=16)},
        (*_WORDS, "--epochs_tune=2", "--bottleneck.width=16"),
        networks=lambda: {"predictors": (Said(fitted("api", 7)),), "student": tiny_model("student", 100)},
    ),
    "dine-partial": Row(
        DINE,
        {
            "recipe": _RECIPE,
            "epochs_tune": 2,
            "bottleneck": Bottleneck(width=16, backbone_rate=1.0),
            "partial": True,
            "r": 0,
        },
        (*_WORDS, "--epochs_tune=2", "--bottleneck.width=16", "--partial", "--r=0"),
        networks=lambda: {
            "predictors": (Said(fitted("api", 7), 10), Said(fitted("second", 8), 3)),
            "student": tiny_model("student", 100),
        },
    ),
    "beta": Row(
        BETA,
        {"recipe": _BETA, "epochs_tune": 2, "bottleneck": Bottleneck(width=16)},
        (*_WORDS, "--epochs_tune=2", "--bottleneck.width=16"),
        networks=lambda: {"predictors": (Said(fitted("api", 7)),), "student": tiny_model("student", 100)},
    ),
    "beta-all": Row(
        BETA,
        {
            "recipe": _BETA,
            "epochs_tune": 2,
            "bottleneck": Bottleneck(width=16),
            "warmup": 1,
            "lambda_u": 10.0,
            "lambda_t": 1.0,
            "fresh": True,
            "tau": 0.5,
        },
        (*_WORDS, "--epochs_tune=2", "--bottleneck.width=16", "--warmup=1", "--lambda_u=10", "--lambda_t=1", "--fresh"),
        networks=lambda: {"predictors": (Said(fitted("api", 7), 10),), "student": tiny_model("student", 100)},
    ),
    "lora": Row(LoRA, {"recipe": _TUNE, "rank": 2}, (*_WORDS, "--rank=2"), networks=lambda: {"source": fitted("s", 7)}),
    "ia3": Row(IA3, {"recipe": _TUNE}, _WORDS, networks=lambda: {"source": fitted("source", 7)}),
    "attentiondiversification": Row(
        EvenAndOdd,
        {"recipe": _RECIPE, "epochs_domain": 1, "epochs_inter": 2, "p_inter": 0.5, "lr_inter": 0.01},
        (*_WORDS, "--epochs_domain=1", "--epochs_inter=1"),
        networks=lambda: {"student": tiny_model("student", 100), "domains": torch.arange(4) % 2},
    ),
    "iso": Row(
        ISO,
        {"recipe": _RECIPE, "copies": 8, "reset_every": 100, "pull": 1e-3},
        (*_WORDS, "--copies=8", "--reset_every=100"),
        networks=lambda: {"source": tiny_model("source", 7), "source_data": tiny_data()},
    ),
    "iso-vanilla": Row(
        ISO,
        {"recipe": _RECIPE, "mode": "vanilla", "updates": 2, "copies": 4, "params": "norm-affine"},
        (*_WORDS, "--mode=vanilla", "--updates=2", "--copies=4", "--params=norm-affine"),
        networks=lambda: {"source": tiny_model("source", 7), "source_data": tiny_data()},
    ),
    "cmae": Row(
        CMAE,
        {"recipe": _TUNE, **_MASKED},
        ("--weights=fresh", *_WORDS, "--group=1"),
        networks=lambda: {"source": tiny_plain_vit(7)},
    ),
    "cmae-mae": Row(
        CMAE,
        {"recipe": _TUNE, **_MASKED, "w_contrast": 0.0, "scale": 1.0, "group": 1},
        ("--weights=fresh", *_WORDS, "--w_contrast=0", "--group=1"),
        networks=lambda: {"source": dataclasses.replace(tiny_plain_vit(7), classes=tuple("abcdefghij"))},
    ),
    "ssf": Row(
        SSF,
        {"recipe": _TUNE},
        _WORDS,
        networks=lambda: {"source": dataclasses.replace(fitted("source", 7), classes=tuple("abcdefghij"))},
    ),
    "ssf+sam": Row(
        SSF,
        {"recipe": dataclasses.replace(_TUNE, sharpness="sam")},
        (*_WORDS, "--recipe.sharpness=sam"),
        networks=lambda: {"source": fitted("source", 7)},
    ),
    "ssf+snapmix": Row(
        SSF,
        {"recipe": dataclasses.replace(_TUNE, mix="snapmix")},
        (*_WORDS, "--recipe.mix=snapmix"),
        networks=lambda: {"source": dataclasses.replace(fitted("source", 7), classes=tuple("abcdefghij"))},
    ),
    "ssf-all": Row(
        SSF,
        {"recipe": _TUNE, "sites": ("conv*", "bn2")},
        (*_WORDS, '--sites=["*"]'),
        networks=lambda: {"source": fitted("source", 7)},
    ),
    "ba3us": Row(
        BA3US,
        {**_PARTIAL, "select": "entropy"},
        (*_PARTIAL_WORDS, "--select=entropy"),
        networks=lambda: {"student": tiny_model("student", 100), "source_data": tiny_data()},
    ),
    "ba3us-dann": Row(
        BA3US,
        {**_PARTIAL, "mu": 0, "class_weights": False, "conditioning": False, "eta_a": 0.0, "eta_t": 0.0},
        (*_PARTIAL_WORDS, "--mu=0", "--class_weights=false", "--conditioning=false", "--eta_a=0", "--eta_t=0"),
        networks=lambda: {"student": tiny_model("student", 100), "source_data": tiny_data()},
    ),
    "finetune": Row(Finetune, {"recipe": _LEARN}, _WORDS, teacher=False, data=tiny_stream()),
    "finetune+asam": Row(
        Finetune,
        {"recipe": dataclasses.replace(_LEARN, sharpness="asam", rho=0.5)},
        (*_WORDS, "--recipe.sharpness=asam", "--recipe.rho=0.5"),
        teacher=False,
        data=tiny_stream(),
    ),
    "finetune-task": Row(Finetune, {"recipe": _LEARN}, _WORDS, teacher=False, data=tiny_stream("2+4", "task")),
    "joint": Row(Joint, {"recipe": _LEARN}, _WORDS, teacher=False, data=tiny_stream()),
    "er": Row(
        ER,
        {"recipe": _LEARN, "replay": Replay(images=20)},
        (*_WORDS, "--replay.images=20"),
        teacher=False,
        data=tiny_stream(),
    ),
    "er-balanced": Row(
        ER,
        {"recipe": _LEARN, "replay": Replay(images=20, policy="balanced")},
        (*_WORDS, "--replay.images=20", "--replay.policy=balanced"),
        teacher=False,
        data=tiny_stream("1", "general"),
    ),
    "oewc": Row(EWC, {"recipe": _LEARN}, _WORDS, teacher=False, data=tiny_stream()),
    "oewc-task": Row(
        EWC,
        {"recipe": _LEARN, "samples": 20, "gamma": 0.5, "weighted": False},
        (*_WORDS, "--samples=20", "--gamma=0.5", "--weighted=false"),
        teacher=False,
        data=tiny_stream("2+4", "task"),
    ),
    "si": Row(SI, {"recipe": _LEARN}, _WORDS, teacher=False, data=tiny_stream()),
    "si-task": Row(SI, {"recipe": _LEARN}, _WORDS, teacher=False, data=tiny_stream("2+4", "task")),
    "lwf": Row(LwF, {"recipe": _LEARN}, _WORDS, teacher=False, data=tiny_stream()),
    "lwf-task": Row(LwF, {"recipe": _LEARN}, _WORDS, teacher=False, data=tiny_stream("2+4", "task")),
    "simplecil": Row(SimpleCIL, {"recipe": _LEARN}, _WORDS, teacher=False, data=tiny_stream(), draws=False),
    "simplecil-first": Row(
        SimpleCIL,
        {"recipe": _LEARN, "train_first": True},
        (*_WORDS, "--train_first"),
        teacher=False,
        data=tiny_stream("2+4", "task"),
    ),
    "derpp": Row(
        DERpp,
        {"recipe": _LEARN, "replay": Replay(images=20)},
        (*_WORDS, "--replay.images=20"),
        teacher=False,
        data=tiny_stream(),
    ),
    "coca": Row(
        CoCa,
        {"recipe": _LEARN, "replay": Replay(images=20)},
        (*_WORDS, "--replay.images=20"),
        teacher=False,
        data=tiny_stream(),
    ),
    "coca-boundaries": Row(
        CoCa,
        {"recipe": _LEARN, "replay": Replay(images=20), "boundaries": True, "zoom": False, "gamma": 0.5},
        (*_WORDS, "--replay.images=20", "--boundaries"),
        teacher=False,
        data=tiny_stream(),
    ),
    "vpr": Row(VPR, _EPISODES, _EPISODE_WORDS, teacher=False, data=tiny_stream("2+2")),
    "vpr-domain": Row(
        VPR,
        {**_EPISODES, "replay_tasks": 1, "told": True},
        (*_EPISODE_WORDS, "--replay_tasks=1", "--told"),
        teacher=False,
        data=turned_stream,
    ),
    "meat": Row(
        MEAT,
        {"recipe": _TUNE, "gamma": 1.0},
        ("--student=zoo:vit", *_WORDS, "--gamma=1"),
        networks=lambda: {"student": tiny_vit(100)},
        data=tiny_stream("5", "task"),
    ),
    "meat-all": Row(
        MEAT,
        {"recipe": _TUNE, "gamma": 1.0, "masks": "all"},
        ("--student=zoo:vit", *_WORDS, "--gamma=1", "--masks=all"),
        networks=lambda: {"student": tiny_vit(100)},
        data=tiny_stream("5", "task"),
    ),
    "streaming": Row(
        StreamingSSL,
        {"recipe": _PRETRAIN, "projection": 16, "probes": 100},
        (*_WORDS, "--projection=16", "--probes=100"),
        teacher=False,
        data=tiny_stream(),
    ),
    "streaming-mas": Row(
        StreamingSSL,
        {"recipe": _PRETRAIN, "projection": 16, "probes": 100, "objective": "simsiam", "mas": 1.0, "replay_share": 0.5},
        (*_WORDS, "--projection=16", "--objective=simsiam", "--mas=1"),
        teacher=False,
        data=tiny_stream("2", "task"),
    ),
    "blip": Row(
        BLIP,
        {"recipe": _LEARN, "samples": 50},
        ("--student=zoo:convnet_groupnorm", *_WORDS, "--samples=50"),
        networks=lambda: {"student": tiny_plain(100)},
        data=tiny_stream("5", "task"),
    ),
    "blip-fresh": Row(
        BLIP,
        {"recipe": _LEARN, "fresh": True, "f0": 1e-9},
        ("--student=zoo:convnet_groupnorm", *_WORDS, "--fresh", "--f0=1e-9"),
        networks=lambda: {"student": tiny_plain(100)},
        data=tiny_stream("2+4", "task"),
    ),
    "finetune-nodes": Row(
        Finetune,
        {"recipe": _WHOLE},
        (),
        networks=lambda: plain_net("node"),
        data=graph_stream("node"),
        draws=False,
        **_GRAPHS,
    ),
    "joint-graphs": Row(
        Joint,
        {"recipe": _LEARN},
        (),
        networks=lambda: plain_net("graph"),
        data=graph_stream("graph", "class"),
        **_GRAPHS,
    ),
    "si-nodes": Row(
        SI,
        {"recipe": _WHOLE},
        (),
        networks=lambda: plain_net("node"),
        data=graph_stream("node", "class"),
        draws=False,
        **_GRAPHS,
    ),
    "lwf-graphs": Row(
        LwF, {"recipe": _LEARN}, (), networks=lambda: plain_net("graph"), data=graph_stream("graph"), **_GRAPHS
    ),
    "twp": Row(
        TWP,
        {"recipe": _WHOLE},
        ("--recipe.epochs=2",),
        networks=gat,
        data=graph_stream("node"),
        draws=False,
        extra=PYG,
        **_GRAPHS,
    ),
    "twp-sparse": Row(
        TWP,
        {"recipe": _WHOLE, "beta": 0.1, "lambda_t": 100.0},
        ("--recipe.epochs=2", "--beta=0.1"),
        networks=lambda: one_convolution("node"),
        data=graph_stream("node", "class"),
        draws=False,
        extra=PYG,
        **_GRAPHS,
    ),
    "twp-graphs": Row(
        TWP,
        {"recipe": dataclasses.replace(_WHOLE, batch_size=16), "accumulate": True},
        ("--recipe.epochs=2", "--accumulate"),
        networks=lambda: one_convolution("graph"),
        data=graph_stream("graph", tasks="2+4"),
        extra=PYG,
        **_GRAPHS,
    ),
    "probe": Row(LinearProbe, {"recipe": _RECIPE}, _WORDS, networks=lambda: {"source": fitted("source", 7)}),
    "nes": Row(NES, {"recipe": _RECIPE}, _WORDS, teacher=False),
    "nes-tile": Row(
        NES, {"recipe": _RECIPE, "mode": "tile", "terms": Terms(w_kd=0.5, w_ce=0.5)}, (*_WORDS, "--mode=tile")
    ),
}
