"""Fine-tuning, joint training, ER and DER++: limit cases that are each other, and what replay is for."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.settings import tiny_data, tiny_model, tiny_stream
from upcycle.continual import ER, DERpp, Finetune, Joint
from upcycle.continual.replay import logit_loss
from upcycle.continual.tasks import Past, of_task
from upcycle.core.errors import UserError
from upcycle.core.losses import cross_entropy
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
    return tensor_digest(method.fit(Run(None, seed=seed, quiet=True), data).state_dict()), method


def test_without_a_memory_replay_is_fine_tuning_to_the_bit() -> None:
    plain, _ = fit(Finetune)
    assert fit(ER, memory=0)[0] == plain
    assert fit(DERpp, memory=0)[0] == plain
    assert fit(DERpp, memory=20, alpha=0.0, beta=0.0)[0] == plain
    assert fit(ER, memory=20)[0] != plain


def test_der_draws_once() -> None:
    _, both = fit(DERpp, memory=20)
    _, der = fit(DERpp, memory=20, beta=0.0)
    assert both.kept.state["buffer"]["drawn"] == 2 * der.kept.state["buffer"]["drawn"] > 0
    assert (both.scores.passes, der.scores.passes) == (3, 2)


def test_losses_by_hand() -> None:
    z, stored = torch.randn(4, 3), torch.randn(4, 3)
    assert torch.allclose(logit_loss(z, stored, 4), torch.nn.functional.mse_loss(z, stored))
    y = torch.tensor([0, 1, 2, 0])
    assert torch.allclose(cross_entropy(z, y, 4), torch.nn.functional.cross_entropy(z, y))
    parts: Tensor = sum(cross_entropy(a, b, 4) for a, b in zip(z.split(1), y.split(1), strict=True))  # type: ignore[assignment]
    assert torch.allclose(parts, cross_entropy(z, y, 4))


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


def test_joint_training_does_not_depend_on_the_order_of_the_tasks() -> None:
    data = tiny_stream()(160)
    turned = Stream(name=data.name, scenario="class", classes=data.classes, tasks=data.tasks[::-1], base=data.base,
                    make=lambda t: data.task(4 - t), order={})  # fmt: skip
    accuracy = [fit(Joint, d)[1].scores.summary()["average accuracy"] for d in (data, turned)]
    assert sorted(data.joint().train.ids.tolist()) == sorted(turned.joint().train.ids.tolist())
    assert abs(accuracy[0] - accuracy[1]) < 0.15  # the same images in another order


def test_replay_keeps_what_fine_tuning_forgets() -> None:
    data = stream("splits:digits/5").normalised((0.3,), (0.4,))
    longer = dataclasses.replace(RECIPE, epochs=8, lr=0.1)
    plain, er, dark = (fit(c, data, recipe=longer)[1].scores.summary() for c in (Finetune, ER, DERpp))
    assert plain["average accuracy"] < 0.35 and plain["forgetting"] > 0.5
    assert er["average accuracy"] > plain["average accuracy"] + 0.2
    assert dark["average accuracy"] > plain["average accuracy"] + 0.2
    joint = fit(Joint, data, recipe=longer)[1].scores.summary()
    assert joint["average accuracy"] > plain["average accuracy"] + 0.3 and set(joint) == {"average accuracy"}


def test_task_told_is_never_worse_than_not_told() -> None:
    _, method = fit(ER, memory=20)
    for told, not_told in zip(method.scores.matrices["task"], method.scores.matrices["class"], strict=True):
        assert all(a >= b for a, b in zip(told, not_told, strict=True) if a is not None)


def test_extended_again_tomorrow(tmp_path: Path) -> None:
    data = tiny_data()
    today = stream(data.only(tuple("01234")), tasks="5")
    first = DERpp(student=tiny_model("student", 3), recipe=RECIPE, memory=20)
    net = first.fit(Run(None, quiet=True), today)
    assert net.linear.weight.shape[0] == 5
    first.kept.save(tmp_path)
    assert {p.suffix for p in tmp_path.iterdir()} == {".json", ".safetensors"}

    past = Past.load(tmp_path)
    tomorrow = stream(data.only(tuple("56789")), tasks="5").after(past.classes)
    model = first.product(net, today)
    second = DERpp(student=model, past=past, recipe=RECIPE, memory=20)
    second.require(tomorrow)
    again = second.fit(Run(None, quiet=True), tomorrow)
    assert again.linear.weight.shape[0] == 10
    assert len(second.kept.tasks) == 10 and second.kept.classes == tuple("0123456789")
    old, new = first.kept.state["buffer"], second.kept.state["buffer"]
    assert new["seen"] > old["seen"] and new["logits"].shape[1] == 10
    stayed = new["ids"].unsqueeze(1).eq(old["ids"]).any(1)
    assert stayed.any() and not new["logits"][stayed][:, :5].eq(0).all()
    (tmp_path / "state.json").write_text((tmp_path / "state.json").read_text().replace("derpp", "derpq"))
    with pytest.raises(UserError, match=r"state\.json"):
        Past.load(tmp_path)


def test_another_methods_memory_is_refused() -> None:
    _, first = fit(ER, memory=20)
    second = DERpp(student=tiny_model("student", 3), past=first.kept, recipe=RECIPE)
    with pytest.raises(UserError, match="--method er"):
        second.require(tiny_stream()(160))


def test_a_general_stream_that_is_shown_twice_is_said_to_be() -> None:
    data = tiny_stream("1", "general")(160)
    for epochs in (1, 2):
        run = Run(None, quiet=True)
        method = ER(student=tiny_model("student", 3), recipe=dataclasses.replace(RECIPE, epochs=epochs), memory=20)
        method.fit(run, data)
        assert any("2 times over" in note for note in run.notes) == (epochs == 2)


def test_a_memory_smaller_than_the_number_of_classes_is_refused() -> None:
    with pytest.raises(UserError, match="memory of 9 images cannot hold one of each of the 10 classes"):
        ER(student=tiny_model("student", 3), memory=9).require(tiny_stream()(160))


def test_a_resumed_run_keeps_its_stream(tmp_path: Path) -> None:
    def go(order: int | None) -> None:
        data = stream(load("digits").normalised((0.3,), (0.4,)), tasks="5", shuffle=order)
        data = stream(tiny_data(), tasks="5", shuffle=order) if order is None else data
        Finetune(student=tiny_model("student", 3), recipe=RECIPE).fit(Run(tmp_path, resume=True, quiet=True), data)

    go(None)
    with pytest.raises(UserError, match="resumed run keeps its stream"):
        go(2)
