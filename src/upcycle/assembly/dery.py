"""Deep Model Reassembly: blocks of a zoo of trained networks, stitched into the best new one within a budget."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any, Literal

import torch
from msgspec import Meta
from torch import Tensor, nn

from upcycle.assembly.reassembly.naswot import unscorable
from upcycle.assembly.reassembly.partition import Partition, block_values, partition
from upcycle.assembly.reassembly.pictures import (
    blocks_in_words,
    candidate_pictures,
    partition_picture,
    similarity_picture,
)
from upcycle.assembly.reassembly.search import Search
from upcycle.assembly.reassembly.zoo import Mix, block_table, score_candidates, score_zoo, similarities, used_chains
from upcycle.core.advice import Fit, Situation
from upcycle.core.errors import UserError, require
from upcycle.core.evaluate import evaluate
from upcycle.core.ingredients import EVERY
from upcycle.core.losses import ce_loss
from upcycle.core.method import Card, Method, Needs
from upcycle.core.models import Model
from upcycle.core.patterns import Values, weights_of
from upcycle.core.ranges import ranges
from upcycle.core.read import Count
from upcycle.core.recipe import Recipe
from upcycle.core.run import Run
from upcycle.measure.cost import Budget
from upcycle.measure.similarity import Kind
from upcycle.measure.units import amount, si
from upcycle.surgery.blocks import Chain, chain
from upcycle.surgery.stitch import Stitched, plan, stitched
from upcycle.surgery.trace import cast_like

if TYPE_CHECKING:
    from upcycle.data.images import Images, ImageSplit


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
        blocks: K, how many blocks the new network has, at least 2.
        eps: slack in the size of blocks: one has fewer than (1 + eps) nodes / K of its network.
        params: the most parameters, as a number or as 0.5M; 0 sets no bound.
        flops: the most multiply-adds of one image, which papers call FLOPs, as a number or as 5M; 0 sets no bound.
        params_min: the fewest parameters, as a number or as 0.5M.
        flops_min: the fewest multiply-adds of one image, as a number or as 5M.
        similarity: measure that nodes are compared by. Debiased CKA over batches of 256 is right with few images;
            linear CKA is the paper's.
        probe: how many images the networks are compared on, at least 4 (the paper: a twentieth of the training set).
        runs: how often the partition starts anew.
        candidates: how many networks the search finds and scores.
        top: how many of the best scored are tuned; the one with the highest accuracy on validation images is kept.
        score_batches: how many batches of 32 images the score is averaged over.
        stage_rule: keep blocks of different stage from sharing a set (the authors' code); so it is also where networks
            of tokens are in the zoo, and no network can be assembled otherwise.
        tune: which layers are trained: frozen trains what is new, all trains everything, none leaves it as it is.
        label_smoothing: share of the target that is spread over all classes in the cross-entropy, below 1.
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
    recipe: Recipe = field(
        default_factory=lambda: Recipe(epochs=10, optimizer="adamw", lr=1e-3, weight_decay=0.05, warmup=1.0)
    )

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
    admits = EVERY

    @classmethod
    def serves(cls, have: Situation) -> Fit | str | None:
        """To join blocks of several networks within a budget."""
        if have.goal == "better":
            return "it looks for the best network within a budget; ask for --goal smaller or join."
        if have.goal not in ("join", "smaller"):
            return None
        reason = (
            "if you have several trained networks: blocks of them are stitched together within a budget of parameters "
            "and multiply-adds, and the new layers between them are trained."
        )
        return Fit(5 if have.goal == "join" else 28, reason, "--params 0.5M --flops 60M")

    def __post_init__(self) -> None:
        self.zoo = tuple(self.zoo)
        ranges(
            self,
            not_negative=("eps",),
            below_one=("label_smoothing",),
            at_least={"blocks": 2, "probe": 4, "runs": 1, "candidates": 1, "top": 1, "score_batches": 1},
        )
        for name, bound in (("params", self.params), ("flops", self.flops)):
            most, fewest = amount(bound) or math.inf, amount(getattr(self, f"{name}_min"))
            require(fewest <= most, f"{name}_min must lie between 0 and {name}, not be {fewest:g}.")

    def _budget(self) -> Budget:
        return Budget(
            params=amount(self.params) or math.inf,
            macs=amount(self.flops) or math.inf,
            params_min=amount(self.params_min),
            macs_min=amount(self.flops_min),
        )

    @classmethod
    def stand_ins(cls) -> dict[str, Any]:
        """Two networks."""
        return {**super().stand_ins(), "zoo": (nn.Identity(), nn.Identity())}

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
        for model in zoo:
            problems += self._problems_of(model, data)
        if len(data.train) < 4:
            problems.append(f"networks are compared on at least 4 training images, and there are {len(data.train)}")
        if self.tune != "none" and not (data.train.labels >= 0).any():
            problems.append("there are no labels to tune on: give some, or tune=none")
        if self.top > 1 and not (data.validation.labels >= 0).any():
            problems.append("there are no labelled validation images to choose among candidates by: take top=1")
        return problems

    def _problems_of(self, model: Model, data: Images) -> list[str]:
        """Problems of one network of the zoo: a wrong size, or too few blocks that it could be cut into."""
        if model.input_shape != data.shape:
            ours, theirs = (" x ".join(map(str, shape)) for shape in (model.input_shape, data.shape))
            return [f"{model.name} takes images of {ours} and the data have {theirs}: all must be of one size"]
        try:
            made = chain(model)
        except UserError as error:
            return [str(error).rstrip(".")]
        if len(made) < self.blocks:
            return [f"{model.name} has {len(made)} nodes, too few for {self.blocks} blocks: ask for fewer blocks"]
        if reason := unscorable(made.root, cast_like(model.example(5), made.root)):
            return [f"{model.name} cannot be scored without training, since {reason}"]
        return []

    def fit(self, run: Run, data: Images) -> nn.Module:
        """The algorithm; returns the tuned network."""
        chains = [chain(m) for m in self.models("zoo", data)]
        drawn = torch.randperm(len(data.train), generator=run.generator("probe"))[: self.probe]
        probe, classes = data.train.subset(drawn), len(data.classes)

        like = stored_results([len(c) for c in chains], self.blocks)
        features = partial(similarities, chains, probe, self.similarity, run.device)
        s = run.stage("features", features, like["features"])
        made = Partition(**run.stage("partition", partial(self._partition, run, chains, s, data), like["partition"]))
        search = partial(self._search, chains, s, made, data)
        mixes = [Mix(**m) for m in run.stage("search", search, like["search"])]
        score = partial(self._score, run, chains, mixes, classes, probe)
        scores, zoo_scores = run.stage("score", score, (Values((len(mixes),)), Values((len(chains),))))
        if not scores.isfinite().any():
            run.note(
                f"The training-free score cannot tell the {len(mixes)} candidates apart, since images share all bits "
                "in each; the most stitchable come first."
            )

        ranked = sorted(range(len(mixes)), key=lambda i: (-float(scores[i]), i))[: self.top]
        networks, accuracies = [], []
        for place, i in enumerate(ranked, 1):
            own, blocks = used_chains(chains, mixes[i].blocks)
            network = stitched(plan(own, blocks, classes), own, run.seed)
            seen = data.normalised(own[0].model.mean, own[0].model.std)
            tuning = partial(self._tune_candidate, run, seen, network)
            state, accuracy = run.stage(f"candidate {place}", tuning, (weights_of(network), float))
            network.load_state_dict(state)
            networks.append(network)
            accuracies.append(accuracy)
        first = max(range(len(networks)), key=lambda j: (accuracies[j], -j))

        best = ranked[first]
        self._note(run, chains, mixes, best, ranked, accuracies)
        run.picture("partition", partition_picture(chains, made))
        run.picture("similarity", similarity_picture(chains, s, made, mixes[best].blocks))
        pictures = candidate_pictures(chains, mixes, best, scores.tolist(), zoo_scores.tolist())
        for name, picture in pictures.items():
            run.picture(name, picture)
        return run.plain(networks[first])

    def _partition(self, run: Run, chains: Sequence[Chain], s: Tensor, data: Images) -> dict[str, Any]:
        """Step 2: the networks in blocks, and the blocks in sets; by stage where no network can be made of others."""
        divide = partial(partition, s, [len(c) for c in chains], self.blocks, self.eps, runs=self.runs, seed=run.seed)
        made = divide(stage_rule=self.stage_rule)
        tokens = any(node.gives.kind == "tokens" for own in chains for node in own.nodes)
        if tokens and not self.stage_rule:  # which no block that takes a map can follow
            try:
                self._space(chains, s, made, data)[1].best()
            except UserError:
                made = divide(stage_rule=True)
                run.note(
                    "Blocks share a set with those of their stage only: of other sets no network can be assembled."
                )
        return dataclasses.asdict(made)

    def _space(
        self, chains: Sequence[Chain], s: Tensor, made: Partition, data: Images
    ) -> tuple[list[tuple[int, int, int]], Search]:
        """Every block of a partition, and all networks that can be made of them."""
        choices, table = block_table(chains, made)
        tables = block_values(s, [len(c) for c in chains], made)
        return choices, Search(table, *tables, input_size=data.shape[1:], classes=len(data.classes))

    def _search(self, chains: Sequence[Chain], s: Tensor, made: Partition, data: Images) -> list[dict[str, Any]]:
        """Step 3: the most stitchable networks within the budget, the best first."""
        choices, space = self._space(chains, s, made, data)
        return [
            {"blocks": tuple(choices[i] for i in c.blocks), "params": c.params, "macs": c.macs, "fit": c.score}
            for c in space.best(self.candidates, self._budget())
        ]

    def _score(
        self, run: Run, chains: Sequence[Chain], mixes: Sequence[Mix], classes: int, probe: ImageSplit
    ) -> tuple[Tensor, Tensor]:
        """Step 4: the training-free scores of the candidates, and of the zoo beside them."""
        zoo = score_zoo(chains, probe, self.score_batches, run.device)
        blocks = [m.blocks for m in mixes]
        found = score_candidates(chains, blocks, classes, probe, run.seed, self.score_batches, run.device)
        return torch.tensor(found, dtype=torch.float64), torch.tensor(zoo, dtype=torch.float64)

    def _tune_candidate(self, run: Run, data: Images, network: Stitched) -> tuple[dict[str, Tensor], float]:
        """Step 5 for one network: its weights, and its accuracy on validation images (0 without labels)."""
        module = self.finetune(run, data, network)
        known = bool((data.validation.labels >= 0).any())
        return module.state_dict(), evaluate(module, data.validation).accuracy if known else 0.0

    def finetune(self, run: Run, data: Images, network: Stitched) -> nn.Module:
        """Step 5 alone, on data that are normalised as the first block expects; its loop is this stage's outermost."""
        if self.tune == "none":
            return run.plain(network)
        network.blocks.requires_grad_(self.tune == "all")
        network, optimizer = run.setup(network, self.recipe)
        for _ in run.epochs(self.recipe.epochs):
            network.train()
            network.blocks.train(self.tune == "all")
            for images, labels, _ in run.batches(data.train, self.recipe):
                run.step(ce_loss(network(images), labels, self.label_smoothing, run.reduction), optimizer, self.recipe)
            run.evaluate(network, data.validation)
        return run.plain(network.requires_grad_(True))

    def _note(
        self,
        run: Run,
        chains: Sequence[Chain],
        mixes: Sequence[Mix],
        best: int,
        ranked: Sequence[int],
        accuracies: Sequence[float],
    ) -> None:
        """Say which candidate was taken, and where several were tuned, how accurate each is."""
        run.note(
            f"Of {len(mixes)} candidates within the budget this one was taken: "
            f"{blocks_in_words(chains, mixes[best].blocks)}; {_size_in_words(mixes[best])}."
        )
        if len(ranked) > 1:
            for place, (i, accuracy) in enumerate(zip(ranked, accuracies, strict=True), 1):
                words = blocks_in_words(chains, mixes[i].blocks)
                run.note(f"{place}. {words}: {_size_in_words(mixes[i])}, {accuracy:.1%} on validation images.")

    def product(self, module: nn.Module, data: Images) -> Model:
        """The stitched network, with the first block's normalisation and the data's classes.

        It is rebuilt from its recipe where all networks in it can be.
        """
        assert isinstance(module, Stitched)
        recipe = module.recipe
        known = all(source is not None for source in recipe["sources"])
        return Model(
            module=module,
            input_shape=data.shape,
            mean=tuple(recipe["mean"]),
            std=tuple(recipe["std"]),
            classes=data.classes,
            reference="assembly:stitched" if known else None,
            options={"recipe": recipe} if known else {},
            name="reassembled",
        )


def stored_results(lengths: Sequence[int], blocks: int) -> dict[str, Any]:
    """The patterns of what the stages leave, by their names, for networks of so many nodes cut into so many blocks."""
    networks = range(len(lengths))

    def number(most: int) -> Any:
        return Annotated[int, Meta(ge=0, le=most)]

    choice = (number(len(lengths) - 1), number(max(lengths) - 1), number(max(lengths) - 1))
    return {
        "features": Values((sum(lengths), sum(lengths))),
        "partition": {
            "cuts": tuple((number(lengths[i]),) * (blocks + 1) for i in networks),
            "sets": tuple((number(blocks - 1),) * blocks for i in networks),
            "anchors": ((number(len(lengths) - 1), number(max(lengths)), number(max(lengths))),) * blocks,
            "fit": tuple((float,) * blocks for i in networks),
            "history": Annotated[list[float], Meta(min_length=1)],
        },
        "search": [{"blocks": [choice], "params": Count, "macs": Count, "fit": float}],
    }


def _size_in_words(mix: Mix) -> str:
    return f"{si(mix.params)} parameters, {si(mix.macs)} multiply-adds"
