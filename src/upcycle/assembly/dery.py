"""Deep Model Reassembly: blocks of a zoo of trained networks, stitched into the best new one within a budget."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from upcycle.assembly.naswot import naswot, scores
from upcycle.assembly.partition import Partition, partition, values
from upcycle.assembly.search import Block, Passage, Search, Size
from upcycle.core.errors import UserError, require
from upcycle.core.evaluate import evaluate
from upcycle.core.losses import ce_loss
from upcycle.core.method import Card, Method, Needs
from upcycle.core.models import Model
from upcycle.core.recipe import Recipe
from upcycle.core.run import Run
from upcycle.measure.cost import Budget, count
from upcycle.measure.similarity import Kind, Similarity
from upcycle.measure.units import amount, si
from upcycle.surgery.blocks import Chain, Signal, chain, features
from upcycle.surgery.stitch import Stitched, pieces, plan, stitched

if TYPE_CHECKING:
    from upcycle.data.images import Images, ImageSplit

BATCH = 256
"""Images of the probe in one batch of the debiased similarity."""
SCORED = 32
"""Images in a batch of the training-free score."""

Choice = tuple[int, int, int]
"""A block: the network's number, first and last node."""


# -- the zoo as tables --------------------------------------------------------------------------------------------


def similarities(chains: Sequence[Chain], split: ImageSplit, kind: Kind, device: torch.device | str = "cpu") -> Tensor:
    """Similarity of every node of the zoo with every other, float64 (L, L), those of one network after another.

    Args:
        split: the probe, at least four images; each network runs once over it.
        kind: see :class:`~upcycle.measure.similarity.Similarity`.
    """
    gathered = Similarity(kind)
    for rows in zip(*(features(c, split, BATCH, device) for c in chains), strict=True):
        gathered.add([x for row in rows for x in row])
    return gathered.map().cpu()


def block_table(chains: Sequence[Chain], made: Partition) -> tuple[list[Choice], list[Block]]:
    """Every block of a partition, and what the search must know of it."""
    choices, table = [], []
    for n, (own, cuts, sets) in enumerate(zip(chains, made.cuts, made.sets, strict=True)):
        for k, (first, end) in enumerate(itertools.pairwise(cuts)):
            takes, gives = own.nodes[first].takes, own.nodes[end - 1].gives
            choices.append((n, first, end - 1))
            table.append(Block(network=n, stage=k, equivalence=sets[k], inputs=takes.channels, outputs=gives.channels,
                               size=takes.size, cost=_passage(own, first, end - 1), takes=takes.kind,
                               gives=gives.kind))  # fmt: skip
    return choices, table


def _passage(own: Chain, first: int, last: int) -> Any:
    native = own.nodes[first].takes

    def cost(size: Size) -> Passage | None:
        found = _placed(size, native)
        spent = own.cost(first, last, found) if found else None
        return Passage(spent.params, spent.macs, _size(spent.gives)) if spent else None

    return cost


def _size(signal: Signal) -> Size:
    """What the search calls a size: (h, w), or how many tokens there are where some have no place in (h, w)."""
    return (signal.extra + math.prod(signal.size),) if signal.extra else signal.size


def _placed(size: Size, native: Signal) -> Signal | None:
    """The signal of that size that a block takes which was trained on ``native``."""
    if len(size) == 2:
        return Signal(native.layout, native.channels, (size[0], size[1]))
    tokens, extra = size[0], size[0] - math.prod(native.size)
    if native.layout == "tokens" and extra >= 0:
        return Signal(native.layout, native.channels, native.size, extra)
    side = math.isqrt(tokens)
    return Signal(native.layout, native.channels, (side, side), 0 if native.layout == "grid" else tokens - side**2)


def mixed(chains: Sequence[Chain], choices: Sequence[Choice]) -> tuple[list[Chain], list[Choice]]:
    """The networks that a choice of blocks uses, and the choice by their new numbers."""
    used = list(dict.fromkeys(n for n, _, _ in choices))
    return [chains[n] for n in used], [(used.index(n), first, last) for n, first, last in choices]


def score_all(
    chains: Sequence[Chain], candidates: Sequence[Sequence[Choice]], classes: int, split: ImageSplit,
    seed: int, batches: int, device: torch.device | str = "cpu",
) -> list[float]:  # fmt: skip
    """The training-free score (:mod:`upcycle.assembly.naswot`) of stitched, untuned networks.

    Args:
        candidates: the blocks of each.
        split: where the first ``batches`` x 32 images come from.
        seed: of the new weights, as in :func:`~upcycle.surgery.stitch.stitched`.
    """
    found = [0.0] * len(candidates)
    by_first: dict[int, list[int]] = {}
    for i, blocks in enumerate(candidates):
        by_first.setdefault(blocks[0][0], []).append(i)
    for n, members in by_first.items():  # one normalisation each
        images = list(_batches(split.normalised(chains[n].model.mean, chains[n].model.std), batches, device))
        makers: dict[Any, Any] = {}
        paths = []
        for i in members:
            own, blocks = mixed(chains, candidates[i])
            parts = pieces(plan(own, blocks, classes), own, seed)
            makers.update(parts)
            paths.append([key for key, _ in parts])
        made = scores(paths, functools.partial(_made, makers, device), images)
        for i, value in zip(members, made, strict=True):
            found[i] = value
    return found


def _made(makers: dict[Any, Any], device: torch.device | str, key: Any) -> nn.Module:
    """The piece of that key, built."""
    return makers[key]().to(device)


def _batches(split: ImageSplit, batches: int, device: torch.device | str) -> Any:
    for index in torch.arange(min(batches * SCORED, len(split))).split(SCORED):
        if len(index) == SCORED or len(split) < SCORED:
            yield split.batch(index, device=torch.device(device)).images


# -- the method ----------------------------------------------------------------------------------------------------


@dataclass(kw_only=True, eq=False, repr=False)
class DeRy(Method):
    """Deep Model Reassembly (Yang, Zhou, Liu, Ye, Wang; arXiv:2210.17409).

    1. Every network's nodes are compared on a probe of training images (similarity of their pooled outputs).
    2. Each network is cut into K blocks, and blocks that do alike work are put into one of K sets.
    3. Of all networks with one block of each set and of each stage, within the budget, the ``candidates`` most
       stitchable are found: the highest sum of each block's similarity to its set's anchor and of the similarity
       between what a block gives and what the next was trained to take.
    4. A training-free score (NASWOT) picks one of them; new layers stitch its blocks together.
    5. It is tuned on labels: stitches and head only (frozen), or everything.

    Departures: the paper searches for the score of step 4 directly, by random candidates; the search here is exact, so
    its objective adds up over blocks and NASWOT ranks what it finds. The first block keeps its trained stem. Frozen
    blocks keep their BatchNorm statistics, as they are in evaluation mode (the authors' code lets them move).

    NASWOT grows with the size of a network, so give a narrow band of sizes by ``params_min`` or ``flops_min``.

    Args:
        zoo: two or more trained networks for images of one size; of their classes and normalisation nothing is asked.
        blocks: K, blocks of the new network.
        eps: a block has fewer than (1 + eps) nodes / K of its network.
        params: the most parameters, as a number or as 0.5M; 0 sets no bound.
        flops: the most multiply-adds of one image, which papers call FLOPs; likewise.
        params_min, flops_min: the fewest.
        similarity: debiased CKA over batches of 256 is right with few images; linear CKA is the paper's.
        probe: images that the networks are compared on (the paper: a twentieth of the training set).
        runs: restarts of the partition.
        candidates: networks that are scored.
        top: how many of the best scored are tuned; the one with the highest accuracy on validation images is kept.
        score_batches: batches of 32 images for the score.
        stage_rule: blocks of different stage never share a set (the authors' code).
        tune: frozen trains what is new, all trains everything, none leaves it as it is.
        label_smoothing: in the cross-entropy.
        recipe: ordinary training; the rate is the paper's. New layers between frozen blocks have much to learn: where
            a tuning has only hundreds of updates, 1e-2 and more serve better.
    """

    zoo: tuple[Model | nn.Module, ...]
    blocks: int = 4
    eps: float = 0.2
    params: float | str = 0.0
    flops: float | str = 0.0
    params_min: float | str = 0.0
    flops_min: float | str = 0.0
    similarity: Kind = "debiased"
    probe: int = 2000
    runs: int = 200
    candidates: int = 50
    top: int = 1
    score_batches: int = 5
    stage_rule: bool = False
    tune: Literal["frozen", "all", "none"] = "frozen"
    label_smoothing: float = 0.1
    recipe: Recipe = field(default_factory=lambda: Recipe(epochs=10, optimizer="adamw", lr=1e-3, weight_decay=0.05,
                                                          warmup=1.0))  # fmt: skip

    roles = ("zoo",)
    card = Card(
        name="dery",
        title="Deep Model Reassembly",
        paper="Yang, Zhou, Liu, Ye, Wang; NeurIPS 2022; arXiv:2210.17409",
        verb="reassemble",
        needs=Needs(
            data="labelled",
            teacher="weights",
            architectures="two or more networks for images of one size, each a chain of blocks",
        ),
        summary="A new network within a budget, from blocks of several trained ones and a short tuning.",
        cost="one pass of each network over 2,000 images, a search of seconds, then tuning",
        published="ImageNet, blocks frozen, 100 epochs: 78.6 with 1.27 M of 80.7 M parameters trained; all tuned for "
        "300 epochs: 83.2 (Swin-B 83.1) (paper, table 7)",
    )

    def __post_init__(self) -> None:
        self.zoo = tuple(self.zoo)
        for name, least in (("blocks", 2), ("probe", 4), ("runs", 1), ("candidates", 1), ("top", 1),
                            ("score_batches", 1)):  # fmt: skip
            value = getattr(self, name)
            require(value >= least, f"{name} must be at least {least}, not {value}.")
        require(0 <= self.eps < math.inf, f"eps must be 0 or more, not {self.eps}.")
        require(0 <= self.label_smoothing < 1, f"label_smoothing must lie in [0, 1), not {self.label_smoothing}.")
        for name, bound in (("params", self.params), ("flops", self.flops)):
            most, fewest = amount(bound) or math.inf, amount(getattr(self, f"{name}_min"))
            require(fewest <= most, f"{name}_min must lie between 0 and {name}, not be {fewest:g}.")

    def _budget(self) -> Budget:
        return Budget(params=amount(self.params) or math.inf, macs=amount(self.flops) or math.inf,
                      params_min=amount(self.params_min), macs_min=amount(self.flops_min))  # fmt: skip

    def steps(self, n: int) -> int:
        """The number of updates on ``n`` samples."""
        return 0 if self.tune == "none" else self.top * self.recipe.steps(n)

    def work(self, n: int, teacher: float, student: float) -> float:
        """Multiply-adds of the probe and the tuning; ``student``: of a network as large as the zoo's largest."""
        macs = min(amount(self.flops) or student, student)
        backward = 2 if self.tune == "all" else 1
        tuning = self.steps(n) * self.recipe.batch_size * (1 + backward) * macs
        return len(self.zoo) * self.probe * student + tuning

    def check(self, data: Images) -> list[str]:
        """Networks that fit the data and can be cut into K blocks; labels to tune on."""
        zoo = self.models("zoo", data)
        problems = []
        if len(zoo) < 2:
            problems.append(f"it mixes blocks of at least 2 networks, and the zoo has {len(zoo)}")
        for m in zoo:
            if m.input_shape != data.shape:
                problems.append(f"{m.name} takes images of {_by(m.input_shape)} and the data have {_by(data.shape)}: "
                                "all must be of one size")  # fmt: skip
                continue
            try:
                nodes = len(chain(m))
            except UserError as error:
                problems.append(str(error).rstrip("."))
                continue
            if nodes < self.blocks:
                problems.append(f"{m.name} has {nodes} nodes, too few for {self.blocks} blocks: ask for fewer blocks")
        if len(data.train) < 4:
            problems.append(f"networks are compared on at least 4 training images, and there are {len(data.train)}")
        if self.tune != "none" and not (data.train.labels >= 0).any():
            problems.append("there are no labels to tune on: give some, or tune=none")
        if self.top > 1 and not (data.validation.labels >= 0).any():
            problems.append("there are no labelled validation images to choose among candidates by: take top=1")
        return problems

    def fit(self, run: Run, data: Images) -> nn.Module:
        """The algorithm; returns the tuned network."""
        chains = [chain(m) for m in self.models("zoo", data)]
        lengths, classes = [len(c) for c in chains], len(data.classes)

        drawn = torch.randperm(len(data.train), generator=run.generator("probe"))[: self.probe]
        images = data.train.subset(drawn)

        def cut() -> dict[str, Any]:
            made = partition(
                s, lengths, self.blocks, self.eps, runs=self.runs, stage_rule=self.stage_rule, seed=run.seed
            )
            return dataclasses.asdict(made)

        s = run.stage("features", lambda: similarities(chains, images, self.similarity, run.device))
        made = Partition(**run.stage("partition", cut))
        choices, table = block_table(chains, made)

        def search() -> list[dict[str, Any]]:
            everything = Search(table, *values(s, lengths, made), input_size=data.shape[1:], classes=classes)
            return [{"blocks": c.blocks, "params": c.params, "macs": c.macs, "fit": c.score}
                    for c in everything.best(self.candidates, self._budget())]  # fmt: skip

        found = run.stage("search", search)
        candidates = [[choices[i] for i in c["blocks"]] for c in found]

        def score() -> tuple[Tensor, Tensor]:
            n, members = self.score_batches, []
            for c in chains:
                own = images.normalised(c.model.mean, c.model.std)
                members.append(naswot(c.root.to(run.device), _batches(own, n, run.device)))
            mixes = score_all(chains, candidates, classes, images, run.seed, n, run.device)
            return torch.tensor(mixes, dtype=torch.float64), torch.tensor(members, dtype=torch.float64)

        mixes, members = run.stage("score", score)
        if not mixes.isfinite().any():
            run.note(f"The training-free score cannot tell the {len(found)} candidates apart, since images share all "
                     "bits in each; the most stitchable come first.")  # fmt: skip
        ranked = sorted(range(len(found)), key=lambda i: (-float(mixes[i]), i))[: self.top]
        networks, accuracies = [], []
        for place, i in enumerate(ranked, 1):
            own, blocks = mixed(chains, candidates[i])
            network = stitched(plan(own, blocks, classes), own, run.seed)
            seen = data.normalised(own[0].model.mean, own[0].model.std)
            state, accuracy = run.stage(f"candidate {place}", functools.partial(self._candidate, run, seen, network))
            network.load_state_dict(state)
            networks.append(network)
            accuracies.append(accuracy)
        first = max(range(len(networks)), key=lambda j: (accuracies[j], -j))
        self._show(run, chains, s, made, found, mixes.tolist(), members.tolist(), candidates, ranked, first, accuracies)
        return run.plain(networks[first])

    def _candidate(self, run: Run, data: Images, network: Stitched) -> tuple[dict[str, Tensor], float]:
        """Step 5 for one network: its weights, and its accuracy on validation images (0 without labels)."""
        module = self.tuned(run, data, network)
        known = bool((data.validation.labels >= 0).any())
        return module.state_dict(), evaluate(module, data.validation).accuracy if known else 0.0

    def tuned(self, run: Run, data: Images, network: Stitched) -> nn.Module:
        """Step 5 alone, on data that are normalised as the first block expects; its loop is this stage's outermost."""
        if self.tune == "none":
            return run.plain(network)
        network.blocks.requires_grad_(self.tune == "all")
        network, optimizer = run.setup(network, self.recipe)
        for _ in run.epochs(self.recipe.epochs):
            network.train()
            network.blocks.train(self.tune == "all")
            for batch in run.batches(data.train, self.recipe.batch_size, save_within=True):
                self.recipe.schedule_rate(optimizer, run.progress)
                loss = ce_loss(network(batch.images), batch.labels, self.label_smoothing)
                run.backward(loss)
                run.update(optimizer)
                run.track(loss=loss)
            run.evaluate(network, data.validation)
        return run.plain(network.requires_grad_(True))

    def product(self, module: nn.Module, data: Images) -> Model:
        """The stitched network: rebuilt from its recipe where all networks in it can be, with the first block's
        normalisation and the data's classes."""
        assert isinstance(module, Stitched)
        recipe = module.recipe
        known = all(source is not None for source in recipe["sources"])
        return Model(module=module, input_shape=data.shape, mean=tuple(recipe["mean"]), std=tuple(recipe["std"]),
                     classes=data.classes, reference="assembly:stitched" if known else None,
                     options={"recipe": recipe} if known else {}, name="reassembled")  # fmt: skip

    # -- what is seen --------------------------------------------------------------------------------------------

    def _show(
        self, run: Run, chains: Sequence[Chain], s: Tensor, made: Partition, found: list[dict[str, Any]],
        mixes: list[float], members: list[float], candidates: Sequence[Sequence[Choice]], ranked: list[int],
        first: int, accuracies: list[float],
    ) -> None:  # fmt: skip
        names = [c.model.name for c in chains]
        best = ranked[first]
        chosen = candidates[best]
        run.note(f"Of {len(found)} candidates within the budget this one was taken: {_words(chains, chosen)}; "
                 f"{si(found[best]['params'])} parameters, {si(found[best]['macs'])} multiply-adds.")  # fmt: skip
        for place, (i, accuracy) in enumerate(zip(ranked, accuracies, strict=True), 1):
            if len(ranked) > 1:
                run.note(f"{place}. {_words(chains, candidates[i])}: {si(found[i]['params'])} parameters, "
                         f"{si(found[i]['macs'])} multiply-adds, {accuracy:.1%} on validation images.")  # fmt: skip
        run.picture("partition", {
            "kind": "blocks", "title": "Networks cut into blocks",
            "caption": "Blocks of one colour do alike work and can stand for each other.",
            "networks": [{"name": name, "blocks": [
                {"label": _label(c, first, end - 1), "width": (end - first) / len(c), "set": k + 1}
                for (first, end), k in zip(itertools.pairwise(cuts), sets, strict=True)]}
                for name, c, cuts, sets in zip(names, chains, made.cuts, made.sets, strict=True)],
        })  # fmt: skip
        one, two = [*dict.fromkeys(n for n, _, _ in chosen), *range(len(chains))][:2]
        starts = list(itertools.accumulate([0, *(len(c) for c in chains)]))
        inside = s[starts[one] : starts[one + 1], starts[two] : starts[two + 1]]
        run.picture("similarity", {
            "kind": "map", "title": f"Similarity of {names[one]} and {names[two]}",
            "caption": "Of the outputs of their nodes, on the probe; lines are block boundaries.",
            "rows": [node.name for node in chains[one].nodes], "columns": [node.name for node in chains[two].nodes],
            "values": [[round(v, 4) for v in row] for row in inside.tolist()], "x": names[two], "y": names[one],
            "row_breaks": list(made.cuts[one][1:-1]), "column_breaks": list(made.cuts[two][1:-1]), "low": 0, "high": 1,
        })  # fmt: skip
        costs = [count(c.model.module, c.model.input_shape) for c in chains]
        for name, words, zoo, mix in (
            ("params", "parameters", [c.parameters for c in costs], [c["params"] for c in found]),
            ("macs", "multiply-adds", [c.macs for c in costs], [c["macs"] for c in found]),
        ):
            points = [{"name": f"candidate {i + 1}" + (" (chosen)" if i == best else ""), "x": x, "y": y,
                       "group": "reassembled"} for i, (x, y) in enumerate(zip(mix, mixes, strict=True))]  # fmt: skip
            points += [{"name": n, "x": x, "y": y, "group": "zoo"} for n, x, y in zip(names, zoo, members, strict=True)]
            points = [p for p in points if math.isfinite(p["y"])]
            for p in points:
                p["front"] = not any(q["x"] <= p["x"] and q["y"] >= p["y"] and (q["x"], q["y"]) != (p["x"], p["y"])
                                     for q in points)  # fmt: skip
            run.picture(f"candidates-{name}", {
                "kind": "scatter", "title": f"Candidates by {words}",
                "caption": "Before any training. The score grows with size, so compare networks of like size.",
                "x": words, "y": "training-free score (NASWOT)", "log": False, "items": points,
            })  # fmt: skip


def _words(chains: Sequence[Chain], choices: Sequence[Choice]) -> str:
    """The blocks of a network, in words."""
    return ", then ".join(f"{chains[n].model.name} {_label(chains[n], first, last)}" for n, first, last in choices)


def _label(own: Chain, first: int, last: int) -> str:
    a, b = own.nodes[first].name, own.nodes[last].name
    return a if a == b else f"{a} to {b}"


def _by(shape: Sequence[int]) -> str:
    return " x ".join(map(str, shape))
