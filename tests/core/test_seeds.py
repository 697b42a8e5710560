"""Random numbers that depend on nothing but their arguments: known answers, moments, independence."""

import itertools

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from upcycle.core import seeds
from upcycle.core.seeds import uniform
from upcycle.data import uniform as exported

N = 20_000


def test_uniform_is_what_it_was() -> None:
    """Known answers from SplitMix64 in plain integers: a version must not change a run's crops and draws."""

    def mix(x: int) -> int:
        x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
        x = (x ^ (x >> 27)) * 0x94D049BB133111EB % 2**64
        return x ^ (x >> 31)

    golden = 0x9E3779B97F4A7C15
    for seed, epoch, sample in ((0, 0, 0), (7, 3, 12345), (-1, 2**40, 2**62)):
        key = 0
        for word in (seed, epoch, seeds._word("crop"), sample):
            key = mix(((key ^ (word % 2**64)) + golden) % 2**64)
        expected = [(mix((key + golden * j) % 2**64) >> 11) * 2.0**-53 for j in (1, 2, 3)]
        assert uniform(seed, epoch, torch.tensor([sample]), "crop", 3).tolist() == [expected]
    assert mix(golden) == 0xE220A8397B1DCDAF  # the published first output of SplitMix64 for seed 0


def test_uniform_has_the_moments_of_the_uniform_distribution() -> None:
    u = uniform(0, 0, torch.arange(N), "crop", 4)
    assert u.dtype == torch.float64 and u.shape == (N, 4) and u.min() >= 0 and u.max() < 1
    # Four standard errors of the mean (sqrt(1/12/N)) and of the variance (sqrt(1/180/N)).
    assert ((u.mean(0) - 1 / 2).abs() < 4 * (1 / 12 / N) ** 0.5).all()
    assert ((u.var(0) - 1 / 12).abs() < 4 * (1 / 180 / N) ** 0.5).all()
    counts = torch.histc(u[:, 0], 100, 0, 1)
    assert ((counts - N / 100) ** 2 / (N / 100)).sum() < 99 + 4 * (2 * 99) ** 0.5  # chi squared


def test_uniform_is_uncorrelated_over_seeds_epochs_streams_ids_and_draws() -> None:
    ids = torch.arange(N)
    columns = [
        uniform(seed, epoch, ids, stream, 2).T
        for seed, epoch, stream in itertools.product((0, 1, 2), (0, 1, 17), ("crop", "flip"))
    ]
    columns.append(uniform(0, 0, ids + 1, "crop", 2).T)  # the neighbour's
    columns.append(uniform(0, 0, ids * 2**32, "crop", 2).T)
    correlation = torch.corrcoef(torch.cat(columns)) - torch.eye(2 * len(columns))
    assert correlation.abs().max() < 5 / N**0.5


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(0, 2**63 - 1), min_size=1, max_size=30), st.integers(), st.integers(0, 10**9))
def test_uniform_of_a_sample_does_not_depend_on_the_others(ids: list[int], seed: int, epoch: int) -> None:
    together = uniform(seed, epoch, torch.tensor(ids), "few", 2)
    alone = torch.cat([uniform(seed, epoch, torch.tensor([i]), "few", 2) for i in reversed(ids)]).flip(0)
    assert torch.equal(together, alone)


def test_it_is_one_function_wherever_it_is_imported_from() -> None:
    assert exported is uniform
