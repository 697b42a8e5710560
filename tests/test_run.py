"""Run: loops that resume to the same bits, stages that run once, randomness without state."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from upcycle.core.batches import Batch
from upcycle.core.errors import UserError
from upcycle.core.recipe import Recipe
from upcycle.core.run import Run
from upcycle.core.store import tensor_digest


class Points:
    """Noisy points in the plane; the noise stands for augmentation."""

    mean, std = (0.0,), (1.0,)

    def __init__(self, n: int = 50) -> None:
        g = torch.Generator().manual_seed(1)
        self.x = torch.randn(n, 6, generator=g)
        self.y = (self.x.sum(1) > 0).long()

    def __len__(self) -> int:
        return len(self.x)

    def batch(self, index: Tensor, *, device: torch.device, view: tuple[int, int] | None = None) -> Batch:
        x = self.x[index]
        if view is not None:
            x = x + 0.01 * (view[1] + 1) * torch.sin(index.float())[:, None]
        return Batch(x.to(device), self.y[index].to(device), index)


def net() -> nn.Module:
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.3), nn.Linear(8, 2))


RECIPE = Recipe(epochs=4, batch_size=8, lr=0.1, warmup=1)


class Killed(Exception):
    pass


def train(run: Run, stop_after: int | None = None) -> dict[str, Tensor]:
    """Two stages and a loop of its own, with dropout, augmentation and two optimisers."""
    split, done = Points(), [0]

    def loop(save_within: bool) -> dict[str, Tensor]:
        model, optimizer = run.setup(net(), RECIPE)
        head, second = run.setup(nn.Linear(2, 2), lambda m: torch.optim.Adam(m.parameters(), lr=0.01))
        for _ in run.epochs(RECIPE.epochs):
            model.train()
            for x, y, _ in run.batches(split, RECIPE.batch_size, save_within=save_within):
                RECIPE.schedule_rate(optimizer, run.progress)
                loss = nn.functional.cross_entropy(head(model(x)), y)
                run.backward(loss)
                run.update(optimizer)
                run.update(second)
                run.track(loss=loss)
                done[0] += 1
                if done[0] == stop_after:
                    raise Killed
            run.evaluate(nn.Sequential(model, head), split)
        return {**run.plain(model).state_dict(), **{f"head.{k}": v for k, v in run.plain(head).state_dict().items()}}

    first = run.stage("first", lambda: loop(True))
    second = run.stage("second", lambda: loop(False))
    last = loop(True)
    run.close()
    return {f"{i}{k}": v for i, part in enumerate((first, second, last)) for k, v in part.items()}


def test_killed_anywhere_the_same_bits_come_out(tmp_path: Path) -> None:
    whole = train(Run(tmp_path / "whole", seed=5, save_every=0))
    expected, log = tensor_digest(whole), (tmp_path / "whole" / "metrics.csv").read_text()
    for stop in (1, 5, 27, 28, 30, 55, 57, 84):
        out = tmp_path / str(stop)
        with pytest.raises(Killed):
            train(Run(out, seed=5, save_every=0), stop_after=stop)
        assert tensor_digest(train(Run(out, seed=5, save_every=0, resume=True))) == expected, stop
        assert (out / "metrics.csv").read_text() == log, stop


def test_several_kills_in_a_row(tmp_path: Path) -> None:
    expected = tensor_digest(train(Run(None, seed=5)))
    for _ in range(20):
        try:
            found = train(Run(tmp_path / "r", seed=5, save_every=0, resume=True), stop_after=13)
        except Killed:
            continue
        break
    assert tensor_digest(found) == expected


def test_when_it_saves_changes_nothing(tmp_path: Path) -> None:
    a = train(Run(tmp_path / "a", seed=2, save_every=0))
    b = train(Run(tmp_path / "b", seed=2, save_every=1e9))
    assert tensor_digest(a) == tensor_digest(b) != tensor_digest(train(Run(None, seed=3)))


def test_a_stage_runs_once_and_returns_what_it_stored(tmp_path: Path) -> None:
    calls = []
    value = {"a": torch.arange(3), "b": [1, (2.5, None, "x")], 3: True}

    def fn() -> dict:
        calls.append(1)
        return value

    first = Run(tmp_path).stage("s", fn)
    again = Run(tmp_path, resume=True).stage("s", fn)
    assert len(calls) == 1
    for found in (first, again):
        assert torch.equal(found["a"], value["a"]) and found["b"] == value["b"] and found[3] is True


def test_a_stage_cannot_start_inside_a_loop() -> None:
    run = Run(None)
    with pytest.raises(RuntimeError, match="inside the loop"):
        for _ in run.epochs(2):
            run.stage("s", lambda: 1)


def test_one_outermost_loop_a_stage() -> None:
    run = Run(None)
    for _ in run.epochs(1):
        pass
    with pytest.raises(RuntimeError, match="stage of its own"):
        next(iter(run.epochs(1)))


def test_state_must_be_registered_before_the_loop() -> None:
    run = Run(None)
    with pytest.raises(RuntimeError, match="before the loop"):
        for _ in run.epochs(1):
            run.register("late", torch.zeros(1))


def test_save_within_refuses_a_loop_after_another() -> None:
    run, split = Run(None), Points()
    model, optimizer = run.setup(net(), RECIPE)
    with pytest.raises(RuntimeError, match="save_within"):
        for _ in run.epochs(1):
            for x, y, _ in run.batches(split, 8):
                run.backward(nn.functional.cross_entropy(model(x), y))
                run.update(optimizer)
            for _ in run.batches(split, 8, save_within=True):
                pass


def test_a_nan_stops_before_the_weights_are_touched(tmp_path: Path) -> None:
    run, split = Run(tmp_path), Points()
    model, optimizer = run.setup(net(), RECIPE)
    before = {k: v.clone() for k, v in model.named_parameters()}
    split.x[7] = float("nan")
    with pytest.raises(UserError, match="not a finite number"):
        for _ in run.epochs(1):
            for x, y, _ in run.batches(split, 50):
                run.backward(nn.functional.cross_entropy(model(x), y))
                run.update(optimizer)
    assert all(torch.equal(before[k], v) for k, v in model.named_parameters())


def test_every_sample_once_an_epoch_and_another_order_each_time() -> None:
    run, split, orders = Run(None), Points(), []
    for _ in run.epochs(2):
        orders.append(torch.cat([index for _, _, index in run.batches(split, 8)]).tolist())
    assert sorted(orders[0]) == sorted(orders[1]) == list(range(50))
    assert orders[0] != orders[1] != sorted(orders[1])


def test_a_resumed_run_refuses_another_configuration(tmp_path: Path) -> None:
    Run(tmp_path, config={"lr": 0.1})
    with pytest.raises(UserError, match=r"lr: 0\.1, but this command says 0\.2"):
        Run(tmp_path, config={"lr": 0.2}, resume=True)


def test_damage_is_named(tmp_path: Path) -> None:
    train(Run(tmp_path, save_every=0))
    for file in (tmp_path / "checkpoints").iterdir():
        whole = file.read_bytes()
        file.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
        with pytest.raises(UserError, match=file.name):
            train(Run(tmp_path, save_every=0, resume=True))
        file.write_bytes(whole)
    train(Run(tmp_path, save_every=0, resume=True))


def test_plain_leaves_nothing_behind() -> None:
    run = Run(None, precision="bf16-mixed")
    model, _ = run.setup(net(), RECIPE)
    assert "forward" in model.__dict__
    model = run.plain(model)
    assert all("forward" not in m.__dict__ and not m.training for m in model.modules())
    assert all(p.grad is None and p.dtype == torch.float32 for p in model.parameters())
