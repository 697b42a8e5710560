"""SimpleCIL: its classifier decides by cosines, in any order, and forgets nothing."""

import dataclasses

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tests.settings import fitted, tiny_data, tiny_model, tiny_net, tiny_stream
from upcycle.continual.embeddings.prototypes import UNSEEN
from upcycle.continual.simplecil import SimpleCIL, features, mean_directions
from upcycle.core.errors import UserError
from upcycle.core.evaluate import evaluate, predict_logits
from upcycle.core.recipe import Recipe
from upcycle.core.run import Run
from upcycle.data.stream_kinds import stream
from upcycle.data.streams import Stream

G = torch.Generator().manual_seed(0)
RECIPE = Recipe(epochs=4, batch_size=16, lr=0.05, momentum=0.0, weight_decay=0.0, schedule="constant")


def ran(data: Stream, **options: object) -> tuple[nn.Module, Run]:
    run = Run(None, seed=1, precision="32-true")
    return SimpleCIL(**{"student": fitted("network", 7), **options}).fit(run, data), run


def test_the_largest_output_is_at_the_largest_cosine() -> None:
    f, sums = (torch.randn(n, 16, generator=G, dtype=torch.float64) for n in (200, 7))
    weight = mean_directions(sums, 3.0, 16.0)
    cosine = F.cosine_similarity(f[:, None], sums[None], dim=2)
    assert torch.equal((f @ weight.T).argmax(1), cosine.argmax(1))
    alike = 3.0 * F.normalize(f, dim=1)  # of the length that is given
    assert torch.allclose(alike @ weight.T, 16 * cosine, rtol=1e-10)
    assert torch.allclose(mean_directions(5 * sums, 3.0, 16.0), weight, rtol=1e-12)
    sums[2] = 0
    assert not mean_directions(sums, 3.0, 16.0)[2].any()


def test_the_network_answers_with_the_nearest_mean_of_features() -> None:
    data, net = tiny_stream()(160), fitted("network", 7)
    made, run = ran(data)
    images = data.joint()
    f, y = features(run, net.module, "linear", images.train), images.train.labels
    means = torch.stack([f[y == c].mean(0) for c in range(10)])
    test = features(run, net.module, "linear", images.test)
    expected = F.cosine_similarity(test[:, None], means[None], dim=2).argmax(1)
    assert torch.equal(predict_logits(made, images.test).argmax(1), expected)
    before, after = net.module.state_dict(), made.state_dict()
    assert all(torch.equal(after[key], before[key]) for key in before if not key.startswith("linear"))


def test_neither_the_order_of_tasks_nor_their_ends_matter_and_nothing_is_forgotten() -> None:
    by_two, by_five = (ran(tiny_stream(tasks)(160)) for tasks in ("5", "5,5"))
    assert torch.allclose(by_two[0].linear.weight, by_five[0].linear.weight, rtol=1e-6)
    whole = tiny_stream()(160)
    turned = ran(dataclasses.replace(whole, tasks=whole.tasks[::-1], make=lambda t: whole.make(4 - t)))
    assert torch.allclose(by_two[0].linear.weight, turned[0].linear.weight, rtol=1e-6)
    told = by_two[1].left["scores"].summary("task")
    assert told["forgetting"] == 0 and told["average accuracy"] > 0.9


def test_a_network_goes_on_where_an_earlier_stream_ended() -> None:
    whole = tiny_stream("5,5")(160)
    first = dataclasses.replace(whole, classes=whole.classes[:5], tasks=whole.tasks[:1])
    second = dataclasses.replace(
        whole, classes=whole.classes[5:], tasks=(tuple(range(5)),), make=lambda t: _as_columns(whole.make(1))
    ).after(first.classes)
    made, run = ran(first)
    model = dataclasses.replace(tiny_model("network", 7), module=made, classes=first.classes)
    again, _ = ran(second, student=model, past=run.left["kept"])
    assert torch.allclose(again.linear.weight, ran(whole)[0].linear.weight, rtol=1e-6)


def _as_columns(images):  # type: ignore[no-untyped-def]
    def of(split):  # type: ignore[no-untyped-def]
        return dataclasses.replace(split, labels=split.labels - 5)

    parts = {name: of(getattr(images, name)) for name in ("train", "validation", "test")}
    return dataclasses.replace(images, classes=images.classes[5:], **parts)


def test_a_class_that_was_never_shown_is_never_the_answer() -> None:
    whole = tiny_stream("5,5")(160)
    made, _ = ran(dataclasses.replace(whole, tasks=whole.tasks[:1]))
    assert (made.linear.bias[5:] == UNSEEN).all() and not made.linear.bias[:5].any()
    assert int(predict_logits(made, whole.task(1).test).argmax(1).max()) < 5


def test_training_first_gives_a_fresh_network_features() -> None:
    data = stream(tiny_data(), tasks="5,5")
    plain, trained = (ran(data, student=tiny_net(1), recipe=RECIPE, train_first=first)[0] for first in (False, True))
    frozen = tiny_net(1).conv1.weight
    assert torch.equal(plain.conv1.weight, frozen) and not torch.equal(trained.conv1.weight, frozen)
    assert SimpleCIL(student=tiny_net()).steps(160) == 0
    assert SimpleCIL(student=tiny_net(), recipe=RECIPE, train_first=True).steps(160) == 40


def test_the_scale_says_how_sure_answers_are_and_changes_none() -> None:
    data = tiny_stream()(160)
    low, high = (ran(data, scale=scale)[0] for scale in (1.0, 16.0))
    test = data.joint().test
    a, b = (predict_logits(made, test) for made in (low, high))
    assert torch.equal(a.argmax(1), b.argmax(1)) and torch.allclose(16 * a, b, rtol=1e-5)
    assert evaluate(high, test).loss < evaluate(low, test).loss


@pytest.mark.parametrize("scale", [0.0, -1.0])
def test_a_scale_that_is_not_positive_is_refused(scale: float) -> None:
    with pytest.raises(UserError, match="scale"):
        SimpleCIL(student=tiny_net(), scale=scale)
