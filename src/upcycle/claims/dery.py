"""DeRy: similarity by depth, sets by stage, trained blocks against random and shuffled ones, and a transfer."""

from __future__ import annotations

import dataclasses
import itertools
import random
from collections import Counter
from collections.abc import Sequence
from functools import cache

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from upcycle.assembly.dery import DeRy
from upcycle.assembly.reassembly.partition import Partition, block_values, partition
from upcycle.assembly.reassembly.search import Search
from upcycle.assembly.reassembly.zoo import block_table, score_candidates, similarities, used_chains
from upcycle.claims import Check, Claim, Headline, Measured, gain, mean
from upcycle.claims.settings import cifar10, test
from upcycle.core.models import Model
from upcycle.core.recipe import Recipe
from upcycle.core.references import resolve
from upcycle.core.run import Run
from upcycle.core.seeds import seed_everything
from upcycle.data import Images, load
from upcycle.measure.cost import Budget
from upcycle.surgery.blocks import Chain, chain
from upcycle.surgery.stitch import Stitched, plan, stitched

K = 3
BELOW = 6.5e5
"""Parameters; ResNet-44 has 658,586."""
BETWEEN = 5.6e5
"""Parameters between those of ResNet-32 and ResNet-44."""
FROZEN = 3e-2
"""Learning rate of new layers between frozen blocks, which have few updates to learn in."""

Blocks = list[tuple[int, int, int]]


@cache
def _zoo(quick: bool) -> tuple[Model, ...]:
    return tuple(resolve(f"zoo:cifar10_resnet{depth}") for depth in ((20, 32) if quick else (20, 32, 44, 56)))


@cache
def _chains(quick: bool) -> tuple[Chain, ...]:
    return tuple(chain(m) for m in _zoo(quick))


@cache
def _similarity(quick: bool) -> Tensor:
    data = cifar10(64 if quick else 2000, (), _zoo(quick)[0])
    return similarities(_chains(quick), data.train, "debiased")


def _cut(quick: bool, seed: int) -> Partition:
    lengths = [len(c) for c in _chains(quick)]
    return partition(_similarity(quick), lengths, K, 0.2, runs=20, seed=seed)


def by_depth(quick: bool) -> dict[str, float]:
    """CKA of residual blocks of two networks, at equal relative depth and where depths differ by more than 1/3."""
    chains, s = _chains(quick), _similarity(quick)
    starts = list(itertools.accumulate([0, *(len(c) for c in chains)]))
    near, far = [], []
    for a, b in itertools.combinations(range(len(chains)), 2):
        table = s[starts[a] + 1 : starts[a + 1], starts[b] + 1 : starts[b + 1]]  # without the stems
        row, column = (torch.linspace(0, 1, n) for n in table.shape)
        distance = (row[:, None] - column[None]).abs()
        nearest = distance == distance.amin(1, keepdim=True)
        near.append(float(table[nearest].mean()))
        far.append(float(table[distance > 1 / 3].mean()))
    return {"CKA at equal depth": sum(near) / len(near), "CKA at depths apart": sum(far) / len(far)}


def by_stage(quick: bool, seed: int) -> float:
    """Share of blocks that lie in a set whose most frequent stage is theirs, in per cent."""
    sets = _cut(quick, seed).sets
    stages: dict[int, Counter[int]] = {}
    for row in sets:
        for k, group in enumerate(row):
            stages.setdefault(group, Counter())[k] += 1
    return 100 * sum(max(c.values()) for c in stages.values()) / (len(sets) * K)


def _method(quick: bool, epochs: int, lr: float, **options: object) -> DeRy:
    recipe = Recipe(epochs=1 if quick else epochs, batch_size=128, optimizer="adamw", lr=lr, weight_decay=0.05,
                    warmup=0.2)  # fmt: skip
    small = {"probe": 64, "candidates": 4, "score_batches": 1} if quick else {}
    return DeRy(zoo=_zoo(quick), blocks=K, runs=20, recipe=recipe, **{**small, **options})  # type: ignore[arg-type]


def _tuned(method: DeRy, network: Stitched, data: Images, seed: int) -> nn.Module:
    own = data.normalised(tuple(network.recipe["mean"]), tuple(network.recipe["std"]))
    return method.finetune(Run(None, seed=seed, quiet=True), own, network)


def _accuracy(network: nn.Module, data: Images) -> float:
    return 100 * test(network, data).accuracy


def _random_chains(chains: Sequence[Chain], seed: int) -> list[Chain]:
    """The same networks with random weights."""
    seed_everything(seed, "random blocks")
    made = []
    for c in chains:
        fresh = resolve(c.model.reference or "", pretrained=False)
        made.append(chain(dataclasses.replace(fresh, name=c.model.name, mean=c.model.mean, std=c.model.std)))
    return made


@torch.no_grad()
def _with_statistics(network: Stitched, data: Images) -> Stitched:
    """BatchNorm statistics of the data: random blocks that are frozen would otherwise have none at all."""
    norms = [m for m in network.modules() if isinstance(m, _BatchNorm)]
    for m in norms:
        m.momentum = None
    network.train()
    for index in torch.arange(min(1024, len(data.train))).split(128):
        network(data.train.batch(index, device=torch.device("cpu")).images)
    for m in norms:
        m.momentum = 0.1
    return network.eval()


def _blocks(recipe: dict[str, list[dict[str, int]]]) -> Blocks:
    return [(b["source"], b["first"], b["last"]) for b in recipe["blocks"]]


def shuffled(blocks: Blocks, seed: int) -> Blocks:
    """The blocks in another order of stages; the trained stem stays in front."""
    source, first, last = blocks[0]
    body = ([(source, first + 1, last)] if last > first else []) + blocks[1:]
    orders = [order for order in itertools.permutations(body) if order != tuple(body)]
    return [(source, first, first), *random.Random(seed).choice(orders)]


def frozen_blocks(seed: int, quick: bool) -> dict[str, float]:
    """Chosen blocks, the same with random weights, and in another order; all are frozen while new layers learn."""
    data = cifar10(128 if quick else 10_000, (), _zoo(quick)[0])
    data.validation = data.validation.subset(torch.arange(100))
    if quick:
        data.test = data.test.subset(torch.arange(100))
    method, chains = _method(quick, 2, FROZEN, params=BELOW), _chains(quick)
    found = method.fit(Run(None, seed=seed, quiet=True), data)
    assert isinstance(found, Stitched)
    own = [next(c for c in chains if c.model.name == name) for name in found.recipe["names"]]
    blocks = _blocks(found.recipe)
    empty = stitched(found.recipe, _random_chains(own, seed), seed)
    other = stitched(plan(own, shuffled(blocks, seed), len(data.classes)), own, seed)
    return {
        "reassembled, frozen (%)": _accuracy(found, data),
        "random blocks, frozen (%)": _accuracy(_tuned(method, _with_statistics(empty, data), data, seed), data),
        "blocks in another order, frozen (%)": _accuracy(_tuned(method, other, data, seed), data),
    }


def score_and_accuracy(seed: int, quick: bool) -> float:
    """Kendall's tau between the training-free score and the accuracy of ten random reassemblies, blocks frozen."""
    chains, made = _chains(quick), _cut(quick, seed)
    data = cifar10(128 if quick else 4000, (), _zoo(quick)[0])
    data.validation = data.validation.subset(torch.arange(100))
    data.test = data.test.subset(torch.arange(100 if quick else 2000))
    choices, table = block_table(chains, made)
    tables = block_values(_similarity(quick), [len(c) for c in chains], made)
    search = Search(table, *tables, input_size=(32, 32), classes=10)
    sample = search.sample(2 if quick else 10, seed, Budget(params=BELOW, params_min=BELOW / 3))
    candidates = [[choices[i] for i in c.blocks] for c in sample]
    scores = score_candidates(chains, candidates, 10, data.train, seed, 1 if quick else 5)
    method, accuracies = _method(quick, 1, FROZEN), []
    for blocks in candidates:
        own, mix = used_chains(chains, blocks)
        network = stitched(plan(own, mix, 10), own, seed)
        accuracies.append(_accuracy(_tuned(method, network, data, seed), data))
    signs = [(a > b) - (a < b) for a, b in itertools.combinations(scores, 2)]
    others = [(a > b) - (a < b) for a, b in itertools.combinations(accuracies, 2)]
    return sum(x * y for x, y in zip(signs, others, strict=True)) / max(len(signs), 1)


def transfer(seed: int, quick: bool) -> dict[str, float]:
    """Fashion images, 2,000 with labels: the reassembled network, the zoo's own that fit, and random weights; all of
    each network is tuned by one recipe."""
    data = load("fashion_mnist_local", channels=3, size=32)
    data = data.few(10 if quick else 200, seed).normalised(_zoo(quick)[0].mean, _zoo(quick)[0].std)
    data.validation = data.validation.subset(torch.arange(100))
    if quick:
        data.test = data.test.subset(torch.arange(100))
    chains, k = _chains(quick), len(data.classes)
    method = _method(quick, 10, 1e-3, tune="all", params=BETWEEN)
    found = method.fit(Run(None, seed=seed, quiet=True), data)
    assert isinstance(found, Stitched)
    own = [next(c for c in chains if c.model.name == name) for name in found.recipe["names"]]
    empty = stitched(found.recipe, _random_chains(own, seed), seed)
    arms = {"reassembled (%)": found, "reassembled, random weights (%)": _tuned(method, empty, data, seed)}
    for c in chains[:2]:  # ResNet-20 and ResNet-32, which fit the budget; ResNet-44 does not
        whole = stitched(plan([c], [(0, 0, len(c) - 1)], k), [c], seed)
        arms[f"{c.model.name} (%)"] = _tuned(method, whole, data, seed)
    return {f"Fashion, {name}": _accuracy(network, data) for name, network in arms.items()}


def measure(seed: int, quick: bool) -> dict[str, float]:
    """All parts."""
    return {
        **by_depth(quick),
        "blocks in a set of their stage (%)": by_stage(quick, seed),
        **frozen_blocks(seed, quick),
        "Kendall's tau of score and frozen accuracy": score_and_accuracy(seed, quick),
        **transfer(seed, quick),
    }


def _over_the_zoo(m: Measured) -> float:
    """Over the better of the zoo's networks within the budget."""
    members = [mean(m, f"Fashion, cifar10_resnet{depth} (%)") for depth in (20, 32)]
    return mean(m, "Fashion, reassembled (%)") - max(members)


CLAIM = Claim(
    method="dery",
    sentence="Blocks of trained networks that do alike work can be stitched into a new trained network.",
    published="CIFAR-100, stages 1-2 of ResNet-50 with stages 3-4 of Swin-T 85.77, ResNet-50 84.67, Swin-T 85.56; "
    "blocks of other networks behind stages 1-2 of ResNet-50, frozen, 20 epochs: >= 70 % (paper, table 3, figure 4).",
    setting="CIFAR-10 ResNet-20, 32, 44 and 56, K = 3. (1) Debiased CKA of residual blocks on 2,000 training images. "
    "(2) Partition in 20 runs, stage rule off. (3) Below 650,000 parameters (ResNet-44 has 658,586); only stitches and "
    "head learn, two epochs on 10,000 images; against the same blocks with random weights (BatchNorm statistics taken "
    "from the data), and in "
    "another order of stages behind the same stem; rate 3e-2, the best of three on 600 validation images for "
    "trained and for random blocks (2,048 images, batches of 64). (4) Ten random reassemblies, one epoch on 4,000 "
    "images, 2,000 test images. (5) fashion_mnist_local as 3 x 32 x 32, 200 images a class, below 560,000 parameters "
    "(between ResNet-32 and ResNet-44), everything tuned for 10 epochs by one recipe (AdamW 1e-3, cosine, label "
    "smoothing 0.1).",
    data=("cifar10", "fashion_mnist_local"),
    measure=measure,
    headline=Headline(
        product="Fashion, reassembled (%)",
        baseline="Fashion, cifar10_resnet32 (%)",
        says="the reassembled network over the best of the zoo within the budget, tuned alike",
    ),
    checks=(
        Check(text="CKA at equal depth is 0.15 above that at depths more than a third apart",
              value=gain("CKA at equal depth", "CKA at depths apart"), bound=0.15),
        Check(text="80 % of the blocks lie in a set of their stage",
              value=lambda m: mean(m, "blocks in a set of their stage (%)"), bound=80.0),
        Check(text="trained blocks beat random ones by 20 points, frozen",
              value=gain("reassembled, frozen (%)", "random blocks, frozen (%)"), bound=20.0),
        Check(text="the right order beats another by 5 points, frozen",
              value=gain("reassembled, frozen (%)", "blocks in another order, frozen (%)"), bound=5.0),
        Check(text="on Fashion the reassembled network beats the best one of the zoo within the budget",
              value=_over_the_zoo, bound=0.0),
        Check(text="on Fashion it beats the same architecture from random weights by 1 point",
              value=gain("Fashion, reassembled (%)", "Fashion, reassembled, random weights (%)"), bound=1.0),
    ),
)  # fmt: skip
