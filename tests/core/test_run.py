"""Run: loops that resume to the same bits, stages that run once, randomness without state."""

import signal
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from upcycle.core import devices
from upcycle.core import stage as stage_module
from upcycle.core.batches import Batch
from upcycle.core.errors import UserError
from upcycle.core.interrupt import Interrupted
from upcycle.core.recipe import Recipe
from upcycle.core.run import Run
from upcycle.core.store import tensor_digest
from upcycle.core.task import CLASSIFICATION


class Points:
    """Noisy points in the plane; the noise stands for augmentation."""

    mean, std = (0.0,), (1.0,)
    labels, augment, together, task = None, (), False, CLASSIFICATION

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


@pytest.mark.parametrize("clip", [None, 0.5])
@pytest.mark.parametrize("kind", ["sgd", "adam"])
def test_on_an_accelerator_a_nan_step_is_skipped_without_waiting(
    kind: str, clip: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The device is not asked each step; until it is, what is not finite must leave weights and momenta alone."""
    run = Run(None, accelerator="cpu")
    model, optimizer = run.setup(net(), Recipe(optimizer=kind, lr=0.1, weight_decay=0.1))  # type: ignore[arg-type]
    x, y = torch.randn(8, 6), torch.zeros(8, dtype=torch.int64)

    def step(x: torch.Tensor) -> None:
        run.backward(nn.functional.cross_entropy(model(x), y))
        run.update(optimizer, clip)

    monkeypatch.setattr(run._updates, "device", SimpleNamespace(type="cuda"))
    step(x)
    before = {k: v.clone() for k, v in model.named_parameters()}
    step(x * float("nan"))
    assert all(torch.equal(before[k], v) for k, v in model.named_parameters())
    with pytest.raises(UserError, match="not a finite number"):
        run._updates.check()
    step(x)
    assert not any(torch.equal(before[k], v) for k, v in model.named_parameters())


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


# -- so many steps ----------------------------------------------------------------------------------------------


def passes(run: Run, epochs: int, size: int = 8, **options: Any) -> list[list[tuple[list[int], int, Tensor]]]:
    """By epoch, each batch's samples, view and inputs."""
    split, found = Points(), []
    for _ in run.epochs(epochs):
        found.append([(b.index.tolist(), run.view, b.images) for b in run.batches(split, size, **options)])
    return found


@pytest.mark.parametrize("steps", [1, 3, 7, 8, 17, 30])
def test_so_many_batches_in_as_many_passes_as_that_takes(steps: int) -> None:
    for epoch in passes(Run(None), 2, steps=steps):
        assert len(epoch) == steps
        orders = [[sample for index, _, _ in epoch[i : i + 7] for sample in index] for i in range(0, steps, 7)]
        assert all(sorted(order) == list(range(50)) for order in orders if len(order) == 50)
        assert all(len(set(order)) == len(order) for order in orders)
        assert len({tuple(order) for order in orders}) == len(orders)
        views = [view for _, view, _ in epoch]
        assert [views[i] == views[i - 1] for i in range(1, steps)] == [i % 7 != 0 for i in range(1, steps)]


def test_one_pass_in_so_many_steps_is_one_pass() -> None:
    for a, b in zip(passes(Run(None), 2), passes(Run(None), 2, steps=7), strict=True):
        assert all(x[:2] == y[:2] and torch.equal(x[2], y[2]) for x, y in zip(a, b, strict=True))


def test_the_passes_are_the_same_each_time_and_differ_between_epochs_and_seeds() -> None:
    orders = [[[index for index, _, _ in epoch] for epoch in passes(Run(None, seed=s), 2, steps=14)] for s in (1, 1, 2)]
    assert orders[0] == orders[1] != orders[2] and orders[0][0] != orders[0][1]


def test_every_pass_is_augmented_anew_unless_views_repeat() -> None:
    run = Run(None)
    assert len({view for epoch in passes(run, 3, steps=21) for _, view, _ in epoch}) == 9
    met: dict[tuple[int, int], Tensor] = {}
    for epoch in passes(Run(None), 3, steps=21, views=2):
        assert [view for _, view, _ in epoch[::7]] in ([0, 1, 0], [1, 0, 1])
        for index, view, x in epoch:
            for i, row in zip(index, x, strict=True):
                assert torch.equal(met.setdefault((i, view), row), row)
    assert len(met) == 100


def test_a_split_too_small_for_a_batch_is_refused_in_any_number_of_steps() -> None:
    with pytest.raises(UserError, match="1 samples are too few"):
        for _ in Run(None).batches(Points(1), 8, steps=3):
            pass


def descend(run: Run, stop_after: int | None = None, interrupt_at: int | None = None) -> dict[str, Tensor]:
    """Epochs of 10 steps over 7 batches, with numbers that all processes draw alike."""
    split, done = Points(), 0
    model, optimizer = run.setup(net(), RECIPE)
    drawn = torch.zeros(3)
    run.register("drawn", drawn)
    for _ in run.epochs(3):
        drawn.add_(torch.randn(3, generator=run.generator("noise")))
        model.train()
        for x, y, _ in run.batches(split, 8, steps=10, views=2):
            RECIPE.schedule_rate(optimizer, run.progress)
            run.backward(nn.functional.cross_entropy(model(x + drawn.sum()), y))
            run.update(optimizer)
            done += 1
            if done == stop_after:
                raise Killed
            if done == interrupt_at:
                run.interrupt = signal.SIGTERM
    return {**run.plain(model).state_dict(), "drawn": drawn}


def test_killed_in_any_pass_the_same_bits_come_out(tmp_path: Path) -> None:
    expected = tensor_digest(descend(Run(None, seed=5)))
    for stop in (1, 8, 10, 11, 19, 25, 30):
        out = tmp_path / str(stop)
        with pytest.raises(Killed):
            descend(Run(out, seed=5, save_every=0), stop_after=stop)
        assert tensor_digest(descend(Run(out, seed=5, save_every=0, resume=True))) == expected, stop


def test_save_points_within_so_many_steps(tmp_path: Path) -> None:
    def within(run: Run, stop_after: int | None = None) -> dict[str, Tensor]:
        split, done = Points(), 0
        model, optimizer = run.setup(net(), RECIPE)
        for _ in run.epochs(3):
            for x, y, _ in run.batches(split, 8, steps=10, views=2):
                RECIPE.schedule_rate(optimizer, run.progress)
                run.backward(nn.functional.cross_entropy(model(x), y))
                run.update(optimizer)
                done += 1
                if done == stop_after:
                    raise Killed
        return run.plain(model).state_dict()

    expected = tensor_digest(within(Run(None, seed=5)))
    for stop in (1, 7, 8, 10, 13, 29):
        out = tmp_path / str(stop)
        with pytest.raises(Killed):
            within(Run(out, seed=5, save_every=0), stop)
        assert tensor_digest(within(Run(out, seed=5, save_every=0, resume=True))) == expected, stop


def test_numbers_for_all_processes_depend_on_seed_stage_epoch_and_name_alone() -> None:
    def numbers(run: Run, disturb: bool = False) -> dict[tuple[str, int, str], list[float]]:
        found = {}

        def loop(stage: str) -> None:
            for e in run.epochs(3):
                if disturb:
                    torch.rand(17)
                    run.generator("other").seed()
                for name in ("a", "b"):
                    found[stage, e, name] = torch.rand(2, generator=run.generator(name)).tolist()

        run.stage("s", lambda: loop("s"))
        loop("")
        return found

    expected = numbers(Run(None, seed=4))
    assert len({tuple(v) for v in expected.values()}) == len(expected) == 12
    assert numbers(Run(None, seed=4), disturb=True) == expected
    assert numbers(Run(None, seed=5)) != expected
    assert not set(map(tuple, numbers(Run(None, seed=5)).values())) & set(map(tuple, expected.values()))


def test_a_share_of_what_every_process_holds() -> None:
    run = Run(None)
    assert run.mine(5).tolist() == [0, 1, 2, 3, 4]
    run.world_size, run.rank = 2, 1
    assert run.mine(6).tolist() == [3, 4, 5]
    with pytest.raises(UserError, match="5 samples do not divide among 2 processes"):
        run.mine(5)


# -- an interrupt -----------------------------------------------------------------------------------------------


def test_an_interrupt_stops_a_long_epoch_at_the_next_update(tmp_path: Path) -> None:
    expected = tensor_digest(descend(Run(None, seed=5)))
    run = Run(tmp_path, seed=5, save_every=0)
    with pytest.raises(Interrupted) as interrupted:
        descend(run, interrupt_at=13)  # in the second epoch
    assert interrupted.value.signum == signal.SIGTERM and run.updates == 13  # not one more
    resumed = Run(tmp_path, seed=5, save_every=0, resume=True)
    state = resumed.journal.current
    assert state is not None and (state["epoch"], state["step"], state["updates"]) == (1, 0, 10)
    assert tensor_digest(descend(resumed)) == expected


def test_an_interrupt_while_a_save_point_is_written_is_not_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save = stage_module.Stages.save

    def slowly(stages: stage_module.Stages) -> None:
        save(stages)
        if run.updates >= 13:
            run.interrupt = signal.SIGINT  # as a signal's handler does

    monkeypatch.setattr(stage_module.Stages, "save", slowly)
    run = Run(tmp_path, save_every=0)
    with pytest.raises(Interrupted):
        descend(run)
    assert 13 <= run.updates <= 26  # at the next save point or update, and not at the end


def test_an_interrupt_before_the_first_save_point_begins_anew(tmp_path: Path) -> None:
    with pytest.raises(Interrupted):
        descend(Run(tmp_path, seed=5, save_every=1e9), interrupt_at=2)
    resumed = Run(tmp_path, seed=5, resume=True)
    assert resumed.journal.current is None
    assert tensor_digest(descend(resumed)) == tensor_digest(descend(Run(None, seed=5)))


def test_an_interrupt_where_there_are_save_points_saves_first(tmp_path: Path) -> None:
    run, split = Run(tmp_path, seed=5, save_every=1e9), Points()
    model, optimizer = run.setup(net(), RECIPE)
    weights: dict[str, Tensor] = {}
    with pytest.raises(Interrupted):
        for _ in run.epochs(2):
            for x, y, _ in run.batches(split, 8, save_within=True):
                run.backward(nn.functional.cross_entropy(model(x), y))
                run.update(optimizer)
                run.interrupt = signal.SIGINT if run.updates == 3 else None
                weights = {k: v.clone() for k, v in model.state_dict().items()}
    assert run.updates == 3
    again = Run(tmp_path, seed=5, resume=True)
    restored, _ = again.setup(net(), RECIPE)
    for _ in again.epochs(2):
        for _ in again.batches(split, 8, save_within=True):
            assert again._stage.step == 3
            assert all(torch.equal(weights[k], v) for k, v in restored.state_dict().items())
            break
        break


def test_save_points_within_only_where_nothing_changed_state_before() -> None:
    """A module in training mode, a tensor, an object with state, batches without end: each is noticed."""
    split = Points()

    def within(before: Any) -> bool:
        run = Run(None)
        model, _ = run.setup(nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2)), RECIPE)
        drawn, store = torch.zeros(3), Buffered()
        run.register("drawn", drawn)
        run.register("store", store)
        seen = []
        for _ in run.epochs(1):
            before(run, model, drawn, store)
            for _ in run.batches(split, 8):
                seen.append(run.progress)
        return len(set(seen)) > 1

    assert within(lambda run, model, drawn, store: model.train())
    assert within(lambda run, model, drawn, store: model.eval()(torch.zeros(4, 2)))
    assert not within(lambda run, model, drawn, store: model.train()(torch.zeros(4, 2)))
    assert not within(lambda run, model, drawn, store: drawn.add_(1))
    assert not within(lambda run, model, drawn, store: store.held.append(1))
    assert not within(lambda run, model, drawn, store: run.others(split, 4, "more"))


class Buffered:
    def __init__(self) -> None:
        self.held: list[int] = []

    def state_dict(self) -> dict[str, Any]:
        return {"held": self.held}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.held = state["held"]


def test_an_open_stage_runs_once_and_is_the_same_as_a_function(tmp_path: Path) -> None:
    """Weights, randomness after it and what is stored: as with ``run.stage``; recalled when the run comes back."""

    def learn(run: Run, opened: bool, raises: bool = False) -> dict[str, Any]:
        def body() -> dict[str, Any]:
            drawn = torch.rand(2)
            model, optimizer = run.setup(net(), RECIPE)
            for _ in run.epochs(2):
                for x, y, _ in run.batches(Points(), 8):
                    run.step(nn.functional.cross_entropy(model(x), y), optimizer, RECIPE)
            return {"network": model.state_dict(), "drawn": drawn}

        if opened:
            found = run.stored("one")
            if found is None:
                with run.open_stage("one") as found:
                    found |= body()
                    if raises:
                        raise Killed
        else:
            found = run.stage("one", body)
        return {**found, "after": torch.rand(3), "updates": run.updates}

    expected = learn(Run(None, seed=3), opened=False)
    run = Run(tmp_path, seed=3, save_every=0)
    with pytest.raises(Killed):
        learn(run, opened=True, raises=True)
    for found in (
        learn(Run(None, seed=3), opened=True),
        learn(Run(tmp_path, seed=3, save_every=0, resume=True), opened=True),
        learn(Run(tmp_path, seed=3, save_every=0, resume=True), opened=True),
    ):
        assert tensor_digest(found["network"]) == tensor_digest(expected["network"])
        assert torch.equal(found["drawn"], expected["drawn"]) and torch.equal(found["after"], expected["after"])
        assert found["updates"] == expected["updates"]


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_a_step_is_schedule_backward_update_and_track(reduction: Any) -> None:
    def train(by_hand: bool) -> tuple[dict[str, Tensor], list[Any]]:
        run = Run(None, seed=2)
        model, optimizer = run.setup(net(), RECIPE)
        for _ in run.epochs(2):
            for x, y, _ in run.batches(Points(), 8):
                loss = nn.functional.cross_entropy(model(x), y, reduction=reduction)
                if by_hand:
                    RECIPE.schedule_rate(optimizer, run.progress)
                    run.backward(loss, reduction)
                    run.update(optimizer, clip=0.5)
                    run.track(loss=loss)
                else:
                    run.step(loss, optimizer, RECIPE, reduction, clip=0.5)
        return run.plain(model).state_dict(), run.journal.rows

    (a, rows), (b, others) = train(True), train(False)
    assert tensor_digest(a) == tensor_digest(b) and rows == others


def test_an_ordered_split_is_not_shuffled() -> None:
    class Ordered(Points):
        ordered = True

    for split, ordered in ((Ordered(), True), (Points(), False)):
        index = torch.cat([index for _, _, index in Run(None, seed=1).batches(split, 8)])
        assert bool((index == torch.arange(len(index))).all()) == ordered


def test_what_is_left_beside_the_network() -> None:
    run = Run(None)
    run.leave("scores", [1, 2])
    assert run.left == {"scores": [1, 2]}


def test_save_points_are_as_seldom_as_they_are_dear(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now, costs = [0.0], [0.0]
    monkeypatch.setattr(stage_module.time, "monotonic", lambda: now[0])

    def saved(run: Run, step: float) -> list[float]:
        """When a run of 100 epochs, each so many seconds long, was saved while each save point took ``costs[0]``."""
        found: list[float] = []
        save = run.journal.save

        def slow(*words: Any, **where: Any) -> None:
            found.append(now[0])
            now[0] += costs[0]
            save(*words, **where)

        monkeypatch.setattr(run.journal, "save", slow)
        start = now[0]
        for _ in run.epochs(100):
            now[0] += step
        return [moment - start for moment in found[:-1]]  # the last one is at the end

    assert saved(Run(tmp_path / "cheap"), 5) == [15 * i for i in range(1, 34)]
    costs[0] = 2.0
    dear = saved(Run(tmp_path / "dear"), 5)
    assert dear[:2] == [15, 15 + 2 + 100] and len(dear) * 2 / (500 + 2 * len(dear)) < 0.03
    asked = saved(Run(tmp_path / "asked", save_every=5), 5)
    assert len(asked) == 100


def test_one_process_needs_no_fabric_and_gpus_that_are_not_here_are_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(devices._HERE, "cuda", lambda: False)
    monkeypatch.setitem(devices._HERE, "mps", lambda: False)
    for accelerator in ("auto", "cpu"):
        alone = devices.launch(1, accelerator)
        assert (type(alone), alone.device, alone.world_size) == (devices.Alone, torch.device("cpu"), 1)
        assert alone.broadcast((1, 2)) == (1, 2)
    if not torch.cuda.is_available() and not torch.backends.mps.is_available():
        for accelerator in ("gpu", "cuda", "mps"):
            with pytest.raises(UserError, match=f"accelerator='{accelerator}'"):
                devices.launch(1, accelerator)
