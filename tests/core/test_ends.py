"""Networks that answer with probabilities: found, taken as what they are, and taken for nothing else."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import upcycle
from tests.corpus import picture_folder
from tests.settings import fitted, tiny_data, tiny_model
from upcycle.core.errors import UserError
from upcycle.core.evaluate import predict_logits
from upcycle.core.frozen import frozen
from upcycle.core.heads import classifier
from upcycle.core.models import Model
from upcycle.core.outputs import Columns, FromProbabilities, own
from upcycle.core.probe import training_problems
from upcycle.core.recipe import Recipe
from upcycle.core.references import resolve
from upcycle.core.run import Run
from upcycle.core.saved import load, save
from upcycle.distillation.kd import KD
from upcycle.measure.export import write_export
from upcycle.predictors import predictor

End = Callable[[Tensor, bool], Tensor]
ENDS: dict[str, End] = {
    "softmax": lambda z, _: z.softmax(1),
    "log-softmax": lambda z, _: z.log_softmax(1),
    "sigmoid": lambda z, _: z.sigmoid(),
    "softmax in evaluation": lambda z, training: z if training else z.softmax(1),
    "log-softmax to train with": lambda z, training: z.log_softmax(1) if training else z.softmax(1),
    "mean of two softmaxes": lambda z, _: (z.softmax(1) + z.flip(1).softmax(1)) / 2,
    "softmax of two": lambda z, _: z[:, :2].softmax(1),
    "sigmoid of two": lambda z, _: z[:, :2].sigmoid(),
}
LOGITS: dict[str, End] = {
    "logits": lambda z, _: z,
    "zeros": lambda z, _: 0 * z,
    "two small positive ones": lambda z, _: 0.5 + 0.01 * z[:, :2].tanh(),
    "not negative": lambda z, _: z.relu(),
    "one": lambda z, _: z[:, :1].sigmoid() / z[:, :1].sigmoid(),
    "a gate inside": lambda z, _: 3 * z * z.sigmoid(),
}


class Ending(nn.Module):
    """A network with something behind its logits.

    Args:
        network: gives the logits.
        end: from these and whether it is in training mode to what it answers.
    """

    def __init__(self, network: nn.Module, end: End) -> None:
        super().__init__()
        self.network, self.end = network, end

    def forward(self, images: Tensor) -> Tensor:
        return self.end(self.network(images), self.training)


def ending(end: End, seed: int = 0) -> Model:
    model = tiny_model("net", seed)
    return dataclasses.replace(model, module=Ending(model.module, end).eval(), classes=())


def plain(seed: int = 0) -> nn.Module:
    return tiny_model("net", seed).module.eval()


def centred(z: Tensor) -> Tensor:
    return z - z.mean(1, keepdim=True)


# -- found --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ENDS)
def test_the_logits_are_those_in_front_of_the_end(name: str) -> None:
    model = resolve(ending(ENDS[name]))
    x, k = model.example(8), len(model.classes)
    with torch.no_grad():
        z, found = plain()(x), model.module(x)
    right = z[:, :2] if k == 2 else z
    if name == "mean of two softmaxes":
        right = ENDS[name](z, False).log()
    exact = found if "sigmoid" in name else centred(found)
    torch.testing.assert_close(exact, right if "sigmoid" in name else centred(right), rtol=1e-4, atol=1e-4)
    assert model.notes and all(note.startswith("net") for note in model.notes)
    assert resolve(model).notes == model.notes and type(resolve(model).module) is type(model.module)


@pytest.mark.parametrize("name", LOGITS)
def test_numbers_that_look_like_probabilities_by_chance_stay_logits(name: str) -> None:
    model = resolve(ending(LOGITS[name]))
    assert not isinstance(model.module, FromProbabilities) and model.notes == ()


def test_numbers_between_0_and_1_of_another_origin_are_named() -> None:
    class Cosine(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = plain()

        def forward(self, images: Tensor) -> Tensor:
            return F.normalize(self.network(images).exp(), dim=1)

    model = resolve(Cosine().eval(), input_shape=(1, 8, 8))
    assert not isinstance(model.module, FromProbabilities)
    assert "numbers between 0 and 1 that do not sum to 1, which are used as logits" in model.notes[0]


def test_what_is_rounded_to_nought_or_one_stays_finite() -> None:
    class Sure(nn.Module):
        def __init__(self, end: End) -> None:
            super().__init__()
            self.linear, self.end = nn.Linear(64, 3), end

        def forward(self, images: Tensor) -> Tensor:
            return self.end(1e4 * self.linear(images.flatten(1)), True)

    for end in (ENDS["softmax"], ENDS["sigmoid"]):
        model = resolve(Sure(end), input_shape=(1, 8, 8))
        z = model.module(model.example(16))
        F.cross_entropy(z, torch.zeros(16, dtype=torch.long)).backward()
        grads = [p.grad for p in model.module.parameters() if p.grad is not None]
        assert z.isfinite().all() and len(grads) == 2 and all(g.isfinite().all() for g in grads)


def test_mixed_precision_rounds_no_sigmoid_to_one() -> None:
    network = nn.Sequential(nn.Flatten(), nn.Linear(64, 3), nn.Sigmoid())
    model = resolve(network, input_shape=(1, 8, 8))
    with torch.no_grad():
        network[1].weight.zero_()
        network[1].bias.copy_(torch.tensor([9.0, -9.0, 1.0]))
    with torch.autocast("cpu", torch.bfloat16):
        z = model.module.train()(model.example(2))
    z[:, 0].sum().backward()
    torch.testing.assert_close(z[0], torch.tensor([9.0, -9.0, 1.0]), rtol=1e-3, atol=0)
    assert float(network[1].bias.grad[0]) == pytest.approx(2, rel=1e-3)  # in bf16 it was 0


@pytest.mark.parametrize("name", ["softmax", "log-softmax", "sigmoid"])
def test_gradients_are_those_of_the_logits(name: str) -> None:
    model, bare = resolve(ending(ENDS[name])), plain()
    model.module.train()
    x, y = model.example(8), torch.arange(8)
    for module in (model.module, bare.train()):
        F.cross_entropy(module(x), y).backward()
    for p, q in zip(model.module.parameters(), bare.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad, rtol=1e-3, atol=1e-5)
    assert training_problems(model, mixed=True) == []


# -- in the verbs -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["softmax", "log-softmax", "sigmoid"])
@pytest.mark.parametrize("role", ["teacher", "student"])
def test_kd_with_a_network_that_ends_so_is_kd_without_it(role: str, name: str) -> None:
    data, recipe = tiny_data(320), Recipe(epochs=3, batch_size=32, lr=0.1)  # more would amplify rounding
    found = []
    for end in (LOGITS["logits"], ENDS[name]):
        networks = {"teacher": fitted("teacher", 7), "student": tiny_model("student", 0)}
        ended = Ending(networks[role].module, end).train(role == "student")
        networks[role] = resolve(dataclasses.replace(networks[role], module=ended))
        method = KD(**networks, recipe=recipe)
        method.require(data, "bf16-mixed")
        module = method.fit(Run(None, seed=0, precision="32-true"), data)
        found.append(predict_logits(module, data.test).softmax(1))
    assert float((found[0] - found[1]).abs().max()) < 0.02
    assert float(found[0].max(1).values.mean()) > 0.2  # of a student that learnt


def test_the_verbs_say_it_and_probabilities_are_right(tmp_path: Path) -> None:
    whole = fitted("whole", 7)
    ended = dataclasses.replace(whole, module=Ending(whole.module, ENDS["softmax"]).eval())
    right, found = (upcycle.evaluate(model, "digits") for model in (whole, ended))
    said = "whole answers with probabilities (a softmax); their logarithms are used as its logits."
    assert said in found.notes and set(found.notes) - {said} == set(right.notes)
    assert (found.accuracy, found.loss, found.ece) == pytest.approx((right.accuracy, right.loss, right.ece), abs=1e-6)
    pictures = picture_folder(tmp_path / "pictures", n=2)
    p, q = (upcycle.predict(model, pictures).probabilities for model in (whole, ended))
    torch.testing.assert_close(p, q, rtol=1e-4, atol=1e-6)


def test_weights_are_saved_without_it_and_it_comes_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("ends_7f.py").write_text(
        "from torch import nn\n\n\ndef soft(num_classes=3):\n"
        "    return nn.Sequential(nn.Flatten(), nn.Linear(64, num_classes), nn.Softmax(1))\n"
    )
    model = resolve("ends_7f:soft", input_shape=(1, 8, 8))
    save(model, tmp_path / "m")
    back = resolve(tmp_path / "m", trust=("ends_7f",))
    assert own(back.module).state_dict().keys() == {"1.weight", "1.bias"}
    assert isinstance(back.module, FromProbabilities) and back.notes == model.notes
    for again in (back, load(tmp_path / "m", trust=("ends_7f",)), load(tmp_path / "m", into=own(model.module))):
        assert torch.equal(again.module(model.example(4)), model.module(model.example(4)))


@pytest.mark.parametrize("name", ["softmax", "log-softmax", "sigmoid"])
def test_some_of_the_classes_share_what_is_theirs(name: str) -> None:
    model, columns = resolve(ending(ENDS[name])), torch.tensor([7, 2, 5])
    x = model.example(8)
    with torch.no_grad():
        p = Columns(model.module, columns)(x).softmax(1)
        torch.testing.assert_close(p, plain()(x)[:, columns].softmax(1), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["softmax", "log-softmax", "sigmoid"])
def test_a_classifier_with_something_behind_it_is_not_replaced(name: str) -> None:
    with pytest.raises(UserError, match=r"softmax or a sigmoid behind the linear layer .* answer with what that layer"):
        classifier(resolve(ending(ENDS[name])))
    assert classifier(resolve(ending(LOGITS["logits"]))) == "network.linear"


@pytest.mark.parametrize("name", ["softmax", "sigmoid"])
def test_frozen_and_exported_it_answers_the_same(name: str, tmp_path: Path) -> None:
    whole = fitted("whole", 7)
    model = resolve(dataclasses.replace(whole, module=Ending(whole.module, ENDS[name]).eval()))
    x = model.example(64)
    quick = frozen(model.module, x, precision="32-true")
    assert quick.folded == frozen(whole.module, x, precision="32-true").folded > 0
    torch.testing.assert_close(quick(x), model.module(x).detach(), rtol=1e-3, atol=1e-3)
    assert write_export(model, tmp_path / "net.pt2", "torch") < 1e-4


@pytest.mark.parametrize("name", ["softmax", "log-softmax", "sigmoid"])
def test_a_black_box_that_ends_so_gives_its_probabilities(name: str) -> None:
    whole, data = fitted("whole", 7), tiny_data()
    said = predictor(dataclasses.replace(whole, module=Ending(whole.module, ENDS[name]).eval())).predict(data.test)
    right = predictor(whole).predict(data.test)
    assert torch.equal(said.classes[:, 0], right.classes[:, 0])
    torch.testing.assert_close(said.probabilities, right.probabilities, rtol=1e-3, atol=1e-5)
