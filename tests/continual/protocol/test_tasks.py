"""The protocol: one stage a task, what is kept between them, what is refused."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.settings import tiny_data, tiny_model, tiny_stream
from upcycle.continual import ER, DERpp, Finetune
from upcycle.continual.protocol.past import Past
from upcycle.continual.protocol.replay import Replay
from upcycle.continual.protocol.tasks import of_task, start, tasks
from upcycle.core.errors import UserError
from upcycle.core.recipe import Recipe
from upcycle.core.run import Run
from upcycle.core.store import tensor_digest
from upcycle.data import load
from upcycle.data.stream_kinds import stream
from upcycle.data.streams import Stream

RECIPE = Recipe(epochs=2, batch_size=16, lr=0.05, momentum=0.0, weight_decay=0.0, schedule="constant")


def fit(cls: Any, data: Stream | None = None, seed: int = 0, **options: Any) -> tuple[str, Any]:
    data = data or tiny_stream()(160)
    method = cls(**{"student": tiny_model("student", 3), "recipe": RECIPE, **options})
    method.require(data)
    run = Run(None, seed=seed, quiet=True)
    return tensor_digest(method.fit(run, data).state_dict()), run


def test_told_the_task_only_its_outputs_compete_and_the_others_rest() -> None:
    data = tiny_stream("5", "task")(160)
    z, y = of_task(torch.arange(10.0).expand(2, 10), torch.tensor([4, 5]), data, 2)
    assert z.tolist() == [[4, 5], [4, 5]] and y.tolist() == [0, 1]
    student = tiny_model("student", 3)
    before = student.module.linear.weight.detach().clone()
    method = Finetune(student=student, recipe=RECIPE)
    one = stream(tiny_data(), tasks="2+8", scenario="task")
    first = Stream(name="first", scenario="task", classes=one.classes, tasks=one.tasks[:1], make=one.make,
                   base=one.base, order={})  # fmt: skip
    after = method.fit(Run(None, quiet=True), first).linear.weight
    assert after[2:].equal(before[2:]) and not after[:2].equal(before[:2])


def test_task_told_is_never_worse_than_not_told() -> None:
    _, run = fit(ER, replay=Replay(images=20))
    for told, not_told in zip(run.left["scores"].matrices["task"], run.left["scores"].matrices["class"], strict=True):
        assert all(a >= b for a, b in zip(told, not_told, strict=True) if a is not None)


def test_extended_again_tomorrow(tmp_path: Path) -> None:
    data = tiny_data()
    today = stream(data.only(tuple("01234")), tasks="5")
    first = DERpp(student=tiny_model("student", 3), recipe=RECIPE, replay=Replay(images=20))
    before, after = Run(None, quiet=True), Run(None, quiet=True)
    net = first.fit(before, today)
    assert net.linear.weight.shape[0] == 5
    before.left["kept"].save(tmp_path)
    assert {p.suffix for p in tmp_path.iterdir()} == {".json", ".safetensors"}

    past = Past.load(tmp_path)
    tomorrow = stream(data.only(tuple("56789")), tasks="5").after(past.classes)
    model = first.product(net, today)
    second = DERpp(student=model, past=past, recipe=RECIPE, replay=Replay(images=20))
    second.require(tomorrow)
    again = second.fit(after, tomorrow)
    assert again.linear.weight.shape[0] == 10
    assert len(after.left["kept"].tasks) == 10 and after.left["kept"].classes == tuple("0123456789")
    old, new = before.left["kept"].state["buffer"], after.left["kept"].state["buffer"]
    assert new["seen"] > old["seen"] and new["logits"].shape[1] == 10
    stayed = new["ids"].unsqueeze(1).eq(old["ids"]).any(1)
    assert stayed.any() and not new["logits"][stayed][:, :5].eq(0).all()
    (tmp_path / "state.json").write_text((tmp_path / "state.json").read_text().replace("derpp", "derpq"))
    with pytest.raises(UserError, match=r"state\.json"):
        Past.load(tmp_path)


def test_another_methods_memory_is_refused() -> None:
    _, first = fit(ER, replay=Replay(images=20))
    second = DERpp(student=tiny_model("student", 3), past=first.left["kept"], recipe=RECIPE)
    with pytest.raises(UserError, match="--method er"):
        second.require(tiny_stream()(160))


def test_a_general_stream_that_is_shown_twice_is_said_to_be() -> None:
    data = tiny_stream("1", "general")(160)
    for epochs in (1, 2):
        run = Run(None, quiet=True)
        method = ER(
            student=tiny_model("student", 3),
            recipe=dataclasses.replace(RECIPE, epochs=epochs),
            replay=Replay(images=20),
        )
        method.fit(run, data)
        assert any("2 times over" in note for note in run.notes) == (epochs == 2)


def test_a_memory_smaller_than_the_number_of_classes_is_refused() -> None:
    with pytest.raises(UserError, match="memory of 9 images cannot hold one of each of the 10 classes"):
        ER(student=tiny_model("student", 3), replay=Replay(images=9)).require(tiny_stream()(160))


def test_a_resumed_run_keeps_its_stream(tmp_path: Path) -> None:
    def go(order: int | None) -> None:
        data = stream(load("digits").normalised((0.3,), (0.4,)), tasks="5", shuffle=order)
        data = stream(tiny_data(), tasks="5", shuffle=order) if order is None else data
        Finetune(student=tiny_model("student", 3), recipe=RECIPE).fit(Run(tmp_path, resume=True, quiet=True), data)

    go(None)
    with pytest.raises(UserError, match="resumed run keeps its stream"):
        go(2)


def test_tasks_that_were_learnt_are_not_gone_through_again(tmp_path: Path) -> None:
    data, method = tiny_stream()(160), Finetune(student=tiny_model("student", 3), recipe=RECIPE)
    went, rows = [], []
    for _ in range(2):
        run, net = Run(tmp_path, resume=True, quiet=True), start(method, data)
        went.append([t for t, _ in tasks(method, run, data, net)])
        rows.append(run.left["scores"].matrix)
        run.close()
    assert went == [[0, 1, 2, 3, 4], []] and rows[0] == rows[1] and len(rows[0]) == 5


def test_bytes_and_passes_may_be_counted_while_it_goes() -> None:
    data, method, run = tiny_stream()(160), Finetune(student=tiny_model("student", 3), recipe=RECIPE), Run(None)
    seen: list[int] = []
    for t, _ in tasks(method, run, data, start(method, data), held=lambda t: 10 * t, passes=lambda: float(len(seen))):
        seen.append(t)
    assert run.left["scores"].held == [0, 10, 20, 30, 40] and run.left["scores"].passes == 5
