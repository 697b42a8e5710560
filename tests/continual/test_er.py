"""Fine-tuning, joint training, ER and DER++: limit cases that are each other, and what replay is for."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import Tensor

from tests.settings import tiny_model, tiny_stream
from upcycle.continual import ER, DERpp, Finetune, Joint
from upcycle.continual.protocol.replay import Replay, logit_loss
from upcycle.core.losses import cross_entropy
from upcycle.core.recipe import Recipe
from upcycle.core.run import Run
from upcycle.core.store import tensor_digest
from upcycle.data.stream_kinds import stream
from upcycle.data.streams import Stream

RECIPE = Recipe(epochs=2, batch_size=16, lr=0.05, momentum=0.0, weight_decay=0.0, schedule="constant")


def fit(cls: Any, data: Stream | None = None, seed: int = 0, **options: Any) -> tuple[str, Any]:
    data = data or tiny_stream()(160)
    method = cls(**{"student": tiny_model("student", 3), "recipe": RECIPE, **options})
    method.require(data)
    run = Run(None, seed=seed, quiet=True)
    return tensor_digest(method.fit(run, data).state_dict()), run


def test_without_a_memory_replay_is_fine_tuning_to_the_bit() -> None:
    plain, _ = fit(Finetune)
    assert fit(ER, replay=Replay(images=0))[0] == plain
    assert fit(DERpp, replay=Replay(images=0))[0] == plain
    assert fit(DERpp, replay=Replay(images=20), alpha=0.0, beta=0.0)[0] == plain
    assert fit(ER, replay=Replay(images=20))[0] != plain


def test_der_draws_once() -> None:
    _, both = fit(DERpp, replay=Replay(images=20))
    _, der = fit(DERpp, replay=Replay(images=20), beta=0.0)
    assert both.left["kept"].state["buffer"]["drawn"] == 2 * der.left["kept"].state["buffer"]["drawn"] > 0
    assert (both.left["scores"].passes, der.left["scores"].passes) == (3, 2)


def test_losses_by_hand() -> None:
    z, stored = torch.randn(4, 3), torch.randn(4, 3)
    assert torch.allclose(logit_loss(z, stored, 4), torch.nn.functional.mse_loss(z, stored))
    y = torch.tensor([0, 1, 2, 0])
    assert torch.allclose(cross_entropy(z, y, 4), torch.nn.functional.cross_entropy(z, y))
    parts: Tensor = sum(cross_entropy(a, b, 4) for a, b in zip(z.split(1), y.split(1), strict=True))  # type: ignore[assignment]
    assert torch.allclose(parts, cross_entropy(z, y, 4))


def test_joint_training_does_not_depend_on_the_order_of_the_tasks() -> None:
    data = tiny_stream()(160)
    turned = Stream(
        name=data.name,
        scenario="class",
        classes=data.classes,
        tasks=data.tasks[::-1],
        base=data.base,
        make=lambda t: data.task(4 - t),
        order={},
    )
    accuracy = [fit(Joint, d)[1].left["scores"].summary()["average accuracy"] for d in (data, turned)]
    assert sorted(data.joint().train.ids.tolist()) == sorted(turned.joint().train.ids.tolist())
    assert abs(accuracy[0] - accuracy[1]) < 0.15  # the same images in another order


def test_replay_keeps_what_fine_tuning_forgets() -> None:
    data = stream("splits:digits/5").normalised((0.3,), (0.4,))
    longer = dataclasses.replace(RECIPE, epochs=8, lr=0.1)
    plain, er, dark = (fit(c, data, recipe=longer)[1].left["scores"].summary() for c in (Finetune, ER, DERpp))
    assert plain["average accuracy"] < 0.35 and plain["forgetting"] > 0.5
    assert er["average accuracy"] > plain["average accuracy"] + 0.2
    assert dark["average accuracy"] > plain["average accuracy"] + 0.2
    joint = fit(Joint, data, recipe=longer)[1].left["scores"].summary()
    assert joint["average accuracy"] > plain["average accuracy"] + 0.3 and set(joint) == {"average accuracy"}
