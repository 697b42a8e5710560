"""The choice under a budget: equal to brute force, within the budget by a counter that builds the network."""

from __future__ import annotations

import functools
import itertools
import math
import random
from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from upcycle.assembly.reassembly.search import Block, Passage, Search, StitchCost, stitch_cost
from upcycle.core.errors import UserError
from upcycle.measure.cost import UNLIMITED, Budget, count


def _problem(seed: int, networks: int, K: int) -> tuple[list[Block], list[float], list[list[float]]]:
    """Blocks with made-up costs: sets that mix stages, sizes that some blocks refuse, tokens, scores with many ties."""
    draw = random.Random(seed)
    blocks = []
    for i, k in itertools.product(range(networks), range(K)):
        size = 16 >> draw.choice([k, k, max(0, k - 1)])
        takes = "tokens" if k and blocks[-1].gives == "tokens" else "map"
        gives = "tokens" if takes == "tokens" or draw.random() < 0.15 else "map"
        shrink = draw.choice([1, 2])
        table = {
            (s, s): Passage(draw.randint(1, 60), draw.randint(1, 60), (s // shrink, s // shrink))
            for s in range(2, 17)
            if draw.random() < 0.95
        }
        blocks.append(Block(network=i, stage=k, equivalence=k if draw.random() < 0.7 else draw.randrange(K),
                            inputs=draw.randint(1, 4), outputs=draw.randint(1, 4), size=(size, size), cost=table.get,
                            takes=takes, gives=gives))  # fmt: skip
    unary = [draw.randrange(8) / 4 for _ in blocks]
    return blocks, unary, [[draw.randrange(4) / 4 for _ in blocks] for _ in blocks]


def _brute_force(
    blocks: list[Block], unary: list[float], pairwise: list[list[float]], classes: int, min_sources: int
) -> list[tuple[float, tuple[int, ...], int, int]]:
    """(score, blocks, params, macs) of every choice that keeps the rules, best first; written from the rules."""
    stages = [[i for i, b in enumerate(blocks) if b.stage == k] for k in range(1 + max(b.stage for b in blocks))]
    found = []
    for choice in itertools.product(*stages):
        used = [blocks[i] for i in choice]
        sets = {b.equivalence for b in used}
        if sets != {b.equivalence for b in blocks} or len(sets) < len(used):
            continue
        if len({b.network for b in used}) < min_sources or used[0].takes == "tokens":
            continue
        last_cnn = max((k for k, b in enumerate(used) if b.takes == "map"), default=-1)
        if any("tokens" in (b.takes, b.gives) for b in used[:last_cnn]):
            continue
        size, params, macs = (16, 16), classes * used[-1].outputs + classes, classes * used[-1].outputs
        for k, after in enumerate(used):
            before = used[k - 1]
            if k and before.network != after.network:
                a, b, t = before.outputs, after.inputs, 1
                if before.gives == "map":
                    while all(h // (t + 1) >= want for h, want in zip(size, after.size, strict=True)):
                        t += 1
                    size = (size[0] // t, size[1] // t)
                params, macs = params + 2 * a + a * b * t * t, macs + a * b * t * t * size[0] * size[1]
            passage = after.cost(size)
            if passage is None:
                break
            params, macs, size = params + passage.params, macs + passage.macs, passage.size
        else:
            score = sum(unary[i] for i in choice) + sum(pairwise[i][j] for i, j in itertools.pairwise(choice))
            found.append((score, choice, params, macs))
    return sorted(found, key=lambda row: (-row[0], row[1]))


@settings(max_examples=200)
@given(
    seed=st.integers(0, 10**6),
    networks=st.integers(1, 4),
    K=st.integers(1, 4),
    n=st.integers(1, 12),
    sources=st.integers(1, 3),
    tight=st.tuples(*[st.floats(0, 1)] * 4),
)
def test_the_n_best_are_those_of_brute_force(
    seed: int, networks: int, K: int, n: int, sources: int, tight: tuple[float, ...]
) -> None:
    problem = _problem(seed, networks, K)
    sources = min(sources, K)
    search = Search(*problem, input_size=(16, 16), classes=3, min_sources=sources)
    every = _brute_force(*problem, 3, sources)
    if not every:
        with pytest.raises(UserError, match="No network can be assembled"):
            search.best(n)
        return
    costs = np.array([row[2:] for row in every])
    low, high = costs.min(0), costs.max(0)
    least = (low + (high - low) * np.array(tight[:2]) / 2).tolist()
    most = (low + (high - low) * (0.5 + np.array(tight[2:]) / 2)).tolist()
    for budget in (
        UNLIMITED,
        Budget(params=most[0], macs=most[1]),
        Budget(params=most[0], macs=most[1], params_min=least[0], macs_min=least[1]),
    ):
        expected = [row for row in every if budget.allows(*row[2:])]
        if not expected:
            with pytest.raises(UserError, match=f"the smallest feasible one has {low[0]:,} parameters"):
                search.best(n, budget)
            continue
        got = search.best(n, budget)
        assert [(c.score, c.blocks, c.params, c.macs) for c in got] == expected[:n]
        sample = search.sample(len(expected) + 5, seed, budget)
        assert sorted(c.blocks for c in sample) == sorted(row[1] for row in expected)
    assert search.smallest().params == low[0]
    assert search.smallest("macs").macs == low[1]
    if sources == 1:
        assert search.count == len(every)
    for _, choice, params, macs in every[:20]:
        judged = search.judge(choice)
        assert judged is not None and (judged.params, judged.macs) == (params, macs)


# -- real layers, and a counter that knows nothing of tables -------------------------------------------------------


class _Tokens(nn.Module):
    """A block of tokens (b, t, c)."""

    def __init__(self, inputs: int, outputs: int, from_map: bool) -> None:
        super().__init__()
        self.linear, self.from_map = nn.Linear(inputs, outputs), from_map

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.linear(x.flatten(2).transpose(1, 2) if self.from_map else x))


class _Layer(nn.Module):
    """The stitch of step 7 of the card."""

    def __init__(self, before: Block, after: Block, stride: int) -> None:
        super().__init__()
        self.before, self.after = before, after
        a, b = before.outputs, after.inputs
        if before.gives == "map":
            self.norm, self.mix = nn.BatchNorm2d(a), nn.Conv2d(a, b, stride, stride, bias=False)
        else:
            self.norm, self.mix = nn.LayerNorm(a), nn.Linear(a, b, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = nn.functional.leaky_relu(self.mix(self.norm(x)), 0.1)
        return x.flatten(2).transpose(1, 2) if (self.before.gives, self.after.takes) == ("map", "tokens") else x


class _Head(nn.Module):
    def __init__(self, inputs: int, classes: int) -> None:
        super().__init__()
        self.linear = nn.Linear(inputs, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x.mean((2, 3)) if x.ndim == 4 else x.mean(1))


def _zoo(seed: int, networks: int, K: int) -> tuple[list[Block], list[nn.Module]]:
    """Networks of real layers, and the table of each block from running it alone."""
    draw = random.Random(seed)
    blocks: list[Block] = []
    modules: list[nn.Module] = []
    for i in range(networks):
        channels, size, tokens = 3, 16, K if i % 3 else K - 1 - i % 2
        for k in range(K):
            outputs, stride, takes = draw.choice([4, 6, 8, 12]), draw.choice([1, 2]), "map" if k <= tokens else "tokens"
            gives = "map" if k < tokens else "tokens"
            if gives == "map":
                convolution = nn.Conv2d(channels, outputs, 3, stride, 1, bias=False)
                module: nn.Module = nn.Sequential(convolution, nn.BatchNorm2d(outputs), nn.ReLU())
            else:
                module, stride = _Tokens(channels, outputs, takes == "map"), 1

            @functools.cache
            def cost(
                at: tuple[int, int], module: nn.Module = module, inputs: int = channels, takes: str = takes,
                stride: int = stride,
            ) -> Passage:  # fmt: skip
                shape = (inputs, *at) if takes == "map" else (math.prod(at), inputs)
                counted = count(module, shape)
                return Passage(counted.parameters, counted.macs, (-(-at[0] // stride), -(-at[1] // stride)))

            blocks.append(Block(network=i, stage=k, equivalence=k, inputs=channels, outputs=outputs,
                                size=(size, size), cost=cost, takes=takes, gives=gives))  # fmt: skip
            modules.append(module)
            channels, size = outputs, -(-size // stride)
    return blocks, modules


def _built(
    blocks: list[Block], modules: list[nn.Module], choice: tuple[int, ...], stitches: tuple[StitchCost, ...]
) -> nn.Module:
    layers: list[nn.Module] = [modules[choice[0]]]
    for (i, j), layer in zip(itertools.pairwise(choice), stitches, strict=True):
        layers += [modules[j]] if layer.identity else [_Layer(blocks[i], blocks[j], layer.stride), modules[j]]
    return nn.Sequential(*layers, _Head(blocks[choice[-1]].outputs, 5))


def test_a_budget_is_a_budget() -> None:
    """1,000 random budgets, the chosen networks built and counted: no violation."""
    blocks, modules = _zoo(0, 6, 4)
    values = np.random.default_rng(0).random((len(blocks), len(blocks)))
    search = Search(blocks, values[0], values, input_size=(16, 16), classes=5)

    @functools.cache
    def counted(choice: tuple[int, ...], stitches: tuple[StitchCost, ...]) -> tuple[int, int]:
        cost = count(_built(blocks, modules, choice, stitches), (3, 16, 16))
        return cost.parameters, cost.macs

    draw, answered, tokens = random.Random(0), 0, 0
    for _ in range(1000):
        least = draw.uniform(200, 2500), draw.uniform(2e4, 2e5)
        budget = Budget(params=least[0] * draw.uniform(1, 3), macs=least[1] * draw.uniform(1, 3),
                        params_min=draw.choice([0, least[0]]), macs_min=draw.choice([0, least[1]]))  # fmt: skip
        try:
            best, *_ = search.best(1, budget)
        except UserError as error:
            assert "No network can be assembled with at" in str(error)  # noqa: PT017
            continue
        params, macs = counted(best.blocks, best.stitches)
        assert budget.params_min <= params <= budget.params
        assert budget.macs_min <= macs <= budget.macs
        assert (params, macs) == (best.params, best.macs)
        chosen = [blocks[i] for i in best.blocks]
        assert [b.stage for b in chosen] == [0, 1, 2, 3]
        assert sorted(b.equivalence for b in chosen) == [0, 1, 2, 3]
        answered, tokens = answered + 1, tokens + (chosen[-1].gives == "tokens")
    assert answered > 300 and 0 < tokens < answered


def test_a_sample_is_uniform_and_within_the_budget() -> None:
    """Both by drawing, in a space large enough for that, and by enumerating."""
    for networks, K, drawing in ((5, 3, False), (9, 4, True)):
        blocks, _ = _zoo(1, networks, K)
        values = np.zeros((len(blocks), len(blocks)))
        search = Search(blocks, values[0], values, input_size=(16, 16), classes=5)
        assert (search.count > 1000 + 20) == drawing
        every = sorted(search.sample(10**4, 0), key=lambda c: c.params)
        budget = Budget(params_min=every[len(every) // 4].params, params=every[len(every) * 3 // 4].params)
        feasible = search.sample(10**4, 0, budget)
        assert {c.blocks for c in feasible} == {c.blocks for c in every if budget.allows(c.params, c.macs)}
        assert len({c.blocks for c in feasible}) == len(feasible) < len(every)
        seeds = range(400)
        firsts = Counter(search.sample(1, seed, budget)[0].blocks[0] for seed in seeds)
        share = Counter(c.blocks[0] for c in feasible)
        for first, n in share.items():
            p = n / len(feasible)
            assert abs(firsts[first] - len(seeds) * p) < 4 * math.sqrt(len(seeds) * p * (1 - p)) + 1
        assert search.sample(7, 3, budget) == search.sample(7, 3, budget) != search.sample(7, 4, budget)
        assert len({c.blocks for c in search.sample(7, 3, budget)}) == 7


def test_where_few_fit_all_of_them_are_found() -> None:
    blocks, _ = _zoo(1, 9, 4)
    values = np.zeros((36, 36))
    search = Search(blocks, values[0], values, input_size=(16, 16), classes=5)
    least = search.smallest().params
    few = search.sample(20, 0, Budget(params=least + 20))
    assert 0 < len(few) < 20
    assert all(least <= c.params <= least + 20 for c in few)


def test_neighbours_of_one_network_need_no_stitch() -> None:
    blocks, modules = _zoo(2, 3, 4)
    pairwise = np.array([[float(a.network == b.network) for b in blocks] for a in blocks])
    search = Search(blocks, np.zeros(12), pairwise, input_size=(16, 16), classes=5, min_sources=1)
    whole = search.judge(range(4, 8))
    assert whole is not None and whole.score == 3
    assert all(s.identity and s.params == s.macs == 0 for s in whole.stitches)
    own = nn.Sequential(*modules[4:8], _Head(blocks[7].outputs, 5))
    assert whole.params == count(own, (3, 16, 16)).parameters
    mixed = Search(blocks, np.zeros(12), pairwise, input_size=(16, 16), classes=5)
    assert mixed.judge(range(4, 8)) is None
    assert len({blocks[i].network for i in mixed.best()[0].blocks}) == 2


@pytest.mark.parametrize(
    ("have", "want", "stride", "size"),
    [(16, 16, 1, 16), (16, 8, 2, 8), (8, 16, 1, 8), (15, 8, 1, 15), (15, 7, 2, 7), (32, 8, 4, 8)],
)
def test_the_stride_makes_resolutions_agree(have: int, want: int, stride: int, size: int) -> None:
    before, after = (
        Block(network=i, stage=i, equivalence=i, inputs=3, outputs=5, size=(want, want), cost={}.get) for i in (0, 1)
    )
    assert stitch_cost(before, after, (have, have)) == StitchCost(
        stride, 10 + 15 * stride**2, 15 * stride**2 * size**2, (size, size)
    )


def test_no_map_follows_tokens() -> None:
    kinds = [("map", "map"), ("map", "tokens"), ("tokens", "tokens")]
    made = [Block(network=i, stage=0, equivalence=0, inputs=1, outputs=1, size=(4, 4), cost={}.get, takes=takes,
                  gives=gives) for i, (takes, gives) in enumerate(kinds)]  # fmt: skip
    follows = [[stitch_cost(a, b, (4, 4)) is not None for b in made] for a in made]
    assert follows == [[True, True, True], [False, False, True], [False, False, True]]


def test_an_empty_answer_says_what_there_is() -> None:
    blocks, _ = _zoo(0, 3, 3)
    search = Search(blocks, np.zeros(9), np.zeros((9, 9)), input_size=(16, 16), classes=5)
    small, cheap = search.smallest(), search.smallest("macs")
    with pytest.raises(UserError) as caught:
        search.best(1, Budget(params=small.params - 1, macs=2e9))
    assert str(caught.value).startswith(
        f"No network can be assembled with at most {small.params - 1:,} parameters and at most 2,000,000,000 "
        f"multiply-adds: the smallest feasible one has {small.params:,} parameters, the cheapest {cheap.macs:,} "
    )
    assert search.best(1, Budget(params=small.params))[0].params == small.params
    with pytest.raises(UserError, match="the smallest feasible one has"):
        search.sample(3, 0, Budget(macs=cheap.macs - 1))
    unlucky = [Block(network=b.network, stage=b.stage, equivalence=0, inputs=3, outputs=3, size=(16, 16),
                     cost=b.cost) for b in blocks]  # fmt: skip
    with pytest.raises(UserError, match="No network can be assembled: no 3 blocks from at least 2 networks"):
        Search(unlucky, np.zeros(9), np.zeros((9, 9)), input_size=(16, 16), classes=5).best()


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda b: Search([], [], np.zeros((0, 0)), input_size=(16, 16), classes=5), "no blocks"),
        (lambda b: Search(b, [0.0], np.zeros((4, 4)), input_size=(16, 16), classes=5), "4 blocks need unary"),
        (lambda b: Search(b, [math.nan] * 4, np.zeros((4, 4)), input_size=(16, 16), classes=5), "finite"),
        (lambda b: Search(b, [0.0] * 4, np.zeros((4, 4)), input_size=(16, 16), classes=5, min_sources=3), "from 3"),
        (lambda b: Budget(params=0), "params must be positive"),
        (lambda b: Budget(macs=10, macs_min=11), "macs_min must lie between 0 and macs = 10"),
    ],
)
def test_mistakes_end_in_one_sentence(make, sentence: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(UserError, match=sentence):
        make(_zoo(0, 2, 2)[0])
