"""The memory: what it keeps, with what probability, and that its state is all there is to it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from scipy import stats
from torch import Tensor

from tests.settings import tiny_data
from upcycle.core.errors import UserError
from upcycle.core.run import Run
from upcycle.core.store import pack, tensor_digest, unpack
from upcycle.data.buffer import Buffer
from upcycle.data.images import ImageSplit

RUN = Run(None, quiet=True)


def numbered(n: int, classes: int = 3) -> ImageSplit:
    """Images that carry their own number."""
    number = torch.arange(n)
    pixels = torch.stack([number // 256, number % 256], 1).to(torch.uint8).view(n, 1, 2, 1)
    return ImageSplit.plain(pixels, number % classes, number)


def digest(buffer: Buffer) -> str:
    return tensor_digest(pack(buffer.state_dict())[1])


def test_it_never_holds_more_than_its_size_and_only_what_it_was_shown() -> None:
    split = numbered(500)
    buffer = Buffer(40, split, logits=2)
    for index in torch.arange(500).split(16):
        buffer.add(RUN, split, index, torch.stack([index, -index], 1).float())
        assert len(buffer) == min(int(index[-1]) + 1, 40)
        number = buffer.images[:, 0, 0, 0].long() * 256 + buffer.images[:, 0, 1, 0].long()
        assert (number % 3).equal(buffer.labels) and buffer.logits[:, 0].long().equal(number)
        assert int(number.max()) <= int(index[-1]) and len(set(number.tolist())) == len(number)
    assert buffer.seen == 500


def test_a_reservoir_is_uniform() -> None:
    split, counts = numbered(100), torch.zeros(100)
    for seed in range(1000):  # ten thousand insertions that stay
        buffer = Buffer(10, split, seed=seed)
        for index in torch.arange(100).split(7):
            buffer.add(RUN, split, index)
        counts[buffer._ids] += 1
    assert counts.sum() == 10_000
    assert stats.chisquare(counts.numpy()).pvalue > 0.01


def test_balanced_keeps_as_many_of_a_rare_class() -> None:
    labels = torch.cat([torch.zeros(400), torch.ones(60), torch.full((40,), 2)]).long()
    split = ImageSplit.plain(torch.zeros(500, 1, 1, 1, dtype=torch.uint8), labels, torch.arange(500))
    balanced, plain = (Buffer(30, split, policy=p) for p in ("balanced", "reservoir"))  # type: ignore[arg-type]
    for index in torch.randperm(500, generator=torch.Generator().manual_seed(0)).split(10):
        balanced.add(RUN, split, index)
        plain.add(RUN, split, index)
    assert balanced.labels.bincount(minlength=3).tolist() == [10, 10, 10]
    assert int(plain.labels.bincount(minlength=3)[0]) > 15


def test_within_a_class_balanced_is_uniform() -> None:
    split, counts = numbered(60, classes=2), torch.zeros(60)
    for seed in range(600):
        buffer = Buffer(10, split, policy="balanced", seed=seed)
        for index in torch.arange(60).split(6):
            buffer.add(RUN, split, index)
        counts[buffer._ids] += 1
    assert stats.chisquare(counts.numpy()).pvalue > 0.01


def test_stored_logits_stay_as_they_are() -> None:
    split = numbered(64)
    buffer = Buffer(64, split, logits=3)
    z = torch.randn(64, 3)
    buffer.add(RUN, split, torch.arange(64), z)
    for _ in range(3):
        old = buffer.draw(RUN, 20)
        assert old.logits.equal(z[buffer._ids[old.places]])
        old.logits.add_(1)
    assert buffer.logits.equal(z)


def test_draws_are_different_samples_drawn_evenly() -> None:
    split, counts = numbered(20), torch.zeros(20)
    buffer = Buffer(20, split)
    buffer.add(RUN, split, torch.arange(20))
    for _ in range(1000):
        old = buffer.draw(RUN, 10)
        assert len(set(old.places.tolist())) == 10 == old.total
        counts[old.places] += 1
    assert stats.chisquare(counts.numpy()).pvalue > 0.01
    assert buffer.draw(RUN, 50).total == 20


def test_what_is_drawn_is_augmented_anew() -> None:
    data = tiny_data().augmented(("crop",))
    buffer = Buffer(1, data.train)
    buffer.add(RUN, data.train, torch.tensor([3]))
    seen = torch.cat([buffer.draw(RUN, 1).images for _ in range(20)])
    assert len({tensor_digest({"x": x.contiguous()}) for x in seen}) > 3
    assert buffer.images[0].equal(data.train.images[3])


def test_it_goes_on_from_its_state_as_if_never_stopped() -> None:
    split = numbered(300)

    def filled(policy: Any, stop: int | None) -> str:
        buffer = Buffer(30, split, logits=1, policy=policy, seed=5)
        for step, index in enumerate(torch.arange(300).split(13)):
            if step == stop:
                state = unpack(*pack(buffer.state_dict()))
                buffer = Buffer(30, split, logits=1, policy=policy, seed=5)
                buffer.load_state_dict(state)
            buffer.add(RUN, split, index, index[:, None].float())
            buffer.draw(RUN, 5)
        return digest(buffer)

    for policy in ("reservoir", "balanced"):
        assert filled(policy, None) == filled(policy, 1) == filled(policy, 11)


def test_a_state_of_fewer_outputs_is_followed_by_zeros() -> None:
    split = numbered(8)
    old, new = Buffer(8, split, logits=2), Buffer(8, split, logits=5)
    old.add(RUN, split, torch.arange(8), torch.ones(8, 2))
    new.load_state_dict(old.state_dict())
    assert new.logits.equal(torch.tensor([1.0, 1, 0, 0, 0]).expand(8, 5))


def test_what_it_refuses() -> None:
    split = numbered(8)
    with pytest.raises(UserError, match="must not be negative"):
        Buffer(-1, split)
    with pytest.raises(UserError, match=r"--replay\.images 8, not 9"):
        Buffer(9, split).load_state_dict(Buffer(8, split).state_dict())
    other = ImageSplit.plain(torch.zeros(8, 4, 4, 1, dtype=torch.uint8), split.labels, split.ids)
    with pytest.raises(UserError, match="--size"):
        Buffer(8, other).load_state_dict(Buffer(8, split).state_dict())
    empty = Buffer(0, split)
    empty.add(RUN, split, torch.arange(8))
    assert len(empty) == 0


def test_five_thousand_images_of_cifar_take_less_than_40_mb() -> None:
    like = ImageSplit.plain(torch.zeros(1, 32, 32, 3, dtype=torch.uint8), torch.zeros(1).long(), torch.zeros(1).long())
    assert Buffer(5000, like, logits=10).nbytes < 40e6


def _shared(ranks: int) -> dict[str, Tensor]:
    run, data = Run(None, seed=1, devices=ranks, accelerator="cpu", quiet=True), tiny_data(151)
    buffer = Buffer(30, data.train, logits=2, seed=1)
    drawn = []
    for _, labels, index in run.batches(data.train, 16):
        if len(buffer):
            old = buffer.draw(run, 7)
            drawn.append(run.gather(old.places))
        buffer.add(run, data.train, index, torch.stack([labels, index], 1).float())
    return {"images": buffer.images, "labels": buffer.labels, "logits": buffer.logits, "drawn": torch.cat(drawn)}


@pytest.mark.xdist_group("ranks")
def test_two_processes_share_one_reservoir(ranks: Any) -> None:
    one = _shared(1)
    for found in ranks(_shared, 2):
        assert all(found[key].equal(one[key]) for key in one)
