"""Repairs of rare classes: the invariants of their papers, what they leave alone, how a product is rebuilt."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

import upcycle
from tests.settings import fitted, tiny_data
from upcycle.core import saved
from upcycle.core.errors import UserError
from upcycle.core.evaluate import evaluate, predict_logits
from upcycle.core.heads import features
from upcycle.core.models import Model
from upcycle.core.outputs import gives_probabilities
from upcycle.core.recipe import Recipe
from upcycle.core.references import resolve
from upcycle.core.run import Run
from upcycle.data import Images
from upcycle.diagnosis import BAGS, CRT, LWS, NCM, LogitAdjust, SimCal, Tau
from upcycle.diagnosis.bags import _of_groups, chosen, frequency_groups, group_loss
from upcycle.diagnosis.logitadjust import log_priors
from upcycle.diagnosis.long_tail.further import FurtherTraining
from upcycle.diagnosis.long_tail.heads import Dual, Grouped
from upcycle.diagnosis.ncm import class_means, nearest
from upcycle.diagnosis.tau import GRID, mean_recall, tau_normalised
from upcycle.distillation import KD, Plain
from upcycle.measure.export import write_export
from upcycle.verbs.evaluate import evaluate as evaluate_verb
from upcycle.verbs.treat import treat

HEAD = Recipe(epochs=2, batch_size=32, lr=0.05, sampler="class")
SMALL: dict[str, tuple[Any, dict[str, Any]]] = {
    "tau": (Tau, {"tau": 0.7}),
    "logitadjust": (LogitAdjust, {}),
    "ncm": (NCM, {}),
    "ncm-raw": (NCM, {"features": "raw"}),
    "crt": (CRT, {"recipe": HEAD}),
    "lws": (LWS, {"recipe": HEAD}),
    "bags": (BAGS, {"recipe": HEAD, "edges": (5, 15)}),
    "bags-background": (BAGS, {"recipe": HEAD, "edges": (5, 15), "background": "0"}),
    "simcal": (SimCal, {"recipe": HEAD, "T": 10, "hidden": 8}),
    "simcal-linear": (SimCal, {"recipe": HEAD, "T": 10, "hidden": 0, "background": "0"}),
}
RECORDED = ("ncm", "bags", "bags-background", "simcal", "simcal-linear")
EACH = pytest.mark.parametrize("name", SMALL)


def tail(ratio: float = 8.0) -> Images:
    """Digits of which the last class has an eighth of the first one's images."""
    return tiny_data(400).long_tailed(ratio, 0)


def source() -> Model:
    return fitted("source", 7)


def repaired(name: str, data: Images | None = None, **more: Any) -> Model:
    cls, options = SMALL[name]
    method, data = cls(source=source(), **{**options, **more}), data or tail()
    method.require(data)
    return method.product(method.fit(Run(None, quiet=True), data), data)


def kept(data: Images) -> tuple[Tensor, Tensor]:
    """Features and logits of the test images."""
    run, net = Run(None, quiet=True, precision="32-true", teacher_precision="32-true"), source()
    (f,) = features(run, net, data.test)
    return f, predict_logits(net.module, data.test)


def layer(model: Model) -> nn.Linear:
    return model.module.linear  # type: ignore[union-attr, return-value]


# -- what all have in common ------------------------------------------------------------------------------------


def test_features_are_what_the_classifier_is_given() -> None:
    f, z = kept(tail())
    assert torch.allclose(F.linear(f, layer(source()).weight, layer(source()).bias), z, rtol=1e-4, atol=1e-4)


@EACH
def test_nothing_but_the_classifier_changes(name: str) -> None:
    before, after = source().module.state_dict(), repaired(name).module.state_dict()
    others = [key for key in before if not key.startswith("linear.")]
    assert others and all(torch.equal(before[key], after[key]) for key in others)


@EACH
def test_a_product_is_saved_and_loaded_to_the_bit(name: str, tmp_path: Path) -> None:
    teacher = resolve("zoo:digits_teacher")
    cls, options = SMALL[name]
    method, data = cls(source=teacher, **options), tail().normalised(teacher.mean, teacher.std)
    made = method.product(method.fit(Run(None, quiet=True), data), data)
    if name in RECORDED:
        assert made.reference is not None and made.reference.startswith("diagnosis:")
        json.dumps(made.options)
    else:
        assert (made.reference, made.options) == (teacher.reference, teacher.options)
    saved.save(made, tmp_path / "model")
    again = saved.load(tmp_path / "model")
    assert torch.equal(predict_logits(made.module, data.test), predict_logits(again.module, data.test))
    assert (again.classes, again.reference, again.name) == (made.classes, made.reference, made.name)
    for format, suffix in (("torch", "pt2"), ("onnx", "onnx")):
        if format == "onnx":
            pytest.importorskip("onnxruntime")
            pytest.importorskip("onnxscript")
        assert write_export(again, tmp_path / f"net.{suffix}", format) <= 1e-4


@pytest.mark.parametrize("name", RECORDED)
def test_a_product_that_cannot_be_rebuilt_says_so(name: str, tmp_path: Path) -> None:
    made = repaired(name)
    assert made.reference is None and made.options == {}
    saved.save(made, tmp_path)
    with pytest.raises(UserError, match="Python object"):
        saved.load(tmp_path)


@pytest.mark.parametrize(
    ("operation", "options"),
    [
        ("grouped", {"groups": [[0, 1]], "background": None}),
        ("grouped", {"groups": [[0, 0]], "background": None}),
        ("dual", {"hidden": -1, "rare": []}),
        ("dual", {"hidden": 4, "rare": [77]}),
        ("normalised", {"more": 1}),
    ],
)
def test_a_damaged_record_is_named(operation: str, options: dict[str, Any], tmp_path: Path) -> None:
    teacher = resolve("zoo:digits_teacher")
    origin = {"reference": teacher.reference, "options": teacher.options, "input_shape": list(teacher.input_shape)}
    options = {"source": origin, "layer": "linear", **options}
    saved.save(dataclasses.replace(teacher, reference=f"diagnosis:{operation}", options=options), tmp_path)
    with pytest.raises(UserError, match="damaged"):
        saved.load(tmp_path)


@EACH
def test_scores_that_are_no_probabilities_are_said_to_be_none(name: str) -> None:
    made = repaired(name)
    assert gives_probabilities(made.module) == (name not in RECORDED)
    found = evaluate_verb(made, tiny_data())
    assert found.accuracy > 0.5
    assert ("calibration error  not probabilities" in found.text()) == (name in RECORDED)
    assert (found.record()["ece"] is None) == (name in RECORDED)


@EACH
def test_a_network_learns_from_a_repaired_one(name: str) -> None:
    made, data = repaired(name), tiny_data()
    method = KD(teacher=made, student=fitted("student", 8), recipe=Recipe(epochs=1, batch_size=32, lr=0.01))
    method.require(data)
    assert evaluate(method.fit(Run(None, quiet=True), data), data.test).accuracy > 0.3


def test_the_control_trains_the_old_classifier_as_often() -> None:
    method = CRT(source=source(), recipe=HEAD)
    (control,) = method.controls().values()
    assert isinstance(control.method, FurtherTraining) and control.method.recipe is not None
    assert control.method.steps(100) == method.steps(100) and control.method.recipe.sampler == "instance"
    for untrained in (Tau(source=source(), tau=1.0), LogitAdjust(source=source()), NCM(source=source())):
        assert untrained.steps(100) == 0 and not untrained.controls()  # the network as it was stands beside it anyway


# -- tau --------------------------------------------------------------------------------------------------------


def test_tau_0_gives_the_old_logits_without_bias_and_1_rows_of_length_1() -> None:
    data = tail()
    _, z = kept(data)
    old = layer(source())
    made = repaired("tau", data, tau=0.0)
    assert torch.allclose(predict_logits(made.module, data.test), z - old.bias, atol=1e-5)
    assert torch.equal(layer(made).weight, old.weight) and not layer(made).bias.any()
    assert torch.allclose(layer(repaired("tau", data, tau=1.0)).weight.norm(dim=1), torch.ones(10))


def test_tau_is_chosen_by_mean_recall_and_the_smallest_of_equals() -> None:
    W = torch.tensor([[4.0, 0.0], [0.0, 1.0]])
    z = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0], [1.0, 0.0]])
    assert mean_recall(z, torch.tensor([0, 0, 0, 1])) == pytest.approx((2 / 3 + 0) / 2)
    f = torch.tensor([[1.0, 0.5], [1.0, 2.0]])  # the second needs 4^(1-τ) < 2, so τ > 1/2
    right = [mean_recall(f @ tau_normalised(W, t).T, torch.tensor([0, 1])) for t in GRID]
    assert GRID[right.index(max(right))] == 0.6


def test_the_answer_does_not_change_with_a_factor_on_the_classifier() -> None:
    W, f = torch.randn(5, 8, generator=torch.Generator().manual_seed(0)), torch.randn(20, 8)
    one, other = (f @ tau_normalised(scale * W, 0.7).T for scale in (1.0, 3.0))
    assert torch.equal(one.argmax(1), other.argmax(1))
    assert not tau_normalised(torch.zeros(2, 3), 1.5).any()


def test_tau_is_not_chosen_without_images_held_out_of_each_class() -> None:
    with pytest.raises(
        UserError, match=r"50 images of each class that were held out .* give --tau, or take logitadjust"
    ):
        Tau(source=source()).require(tail())
    Tau(source=source(), tau=1.0).require(tail())


# -- logit adjustment -------------------------------------------------------------------------------------------


def test_logit_adjustment_shifts_each_logit_by_the_logarithm_of_its_share() -> None:
    data = tail()
    _, z = kept(data)
    n = data.train.labels.bincount(minlength=10)
    found = predict_logits(repaired("logitadjust", data).module, data.test)
    assert torch.allclose(found, z - (n / n.sum()).log(), atol=1e-5)
    assert log_priors(torch.tensor([1, 3])).exp().tolist() == pytest.approx([0.25, 0.75])
    same = predict_logits(repaired("logitadjust", data, tau=0.0).module, data.test)
    assert torch.allclose(same, z, atol=1e-6)


# -- ncm --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["raw", "l2n", "cl2n"])
def test_ncm_answers_with_the_nearest_mean(kind: str) -> None:
    data = tail()
    run = Run(None, quiet=True)
    x, f = features(run, source(), data.train, data.test)
    if kind == "cl2n":
        f, x = f - x.mean(0), x - x.mean(0)
    if kind != "raw":
        x, f = F.normalize(x, dim=1), F.normalize(f, dim=1)
    c = torch.stack([x[data.train.labels == k].mean(0) for k in range(10)])
    distance = (f[:, None] - c).square().sum(2)
    found = predict_logits(repaired("ncm", data, features=kind).module, data.test)
    expected = -distance if kind != "raw" else f.square().sum(1, keepdim=True) - distance
    assert torch.allclose(found, expected, atol=1e-4, rtol=1e-4)


def test_ncm_is_exact_on_one_hot_features() -> None:
    x, y = torch.eye(4).repeat(3, 1), torch.arange(4).repeat(3)
    W, b = nearest(class_means(x, y, 4))
    assert torch.equal((x @ W.T + b).argmax(1), y)


def test_centred_means_do_not_see_a_constant_nor_the_scale() -> None:
    g = torch.Generator().manual_seed(0)
    x, y = torch.randn(60, 6, generator=g).double(), torch.arange(60) % 3

    def means(x: Tensor) -> Tensor:
        return class_means(F.normalize(x - x.mean(0), dim=1), y, 3)

    assert torch.allclose(means(x), means(5 * x + torch.arange(6)))


# -- lws and crt ------------------------------------------------------------------------------------------------


def test_lws_scales_and_does_nothing_else() -> None:
    old, made = layer(source()), layer(repaired("lws"))
    s = made.weight / old.weight
    assert torch.allclose(s, s[:, :1].expand_as(s), rtol=1e-3) and not torch.allclose(s, torch.ones_like(s))
    assert torch.allclose(made.bias, s[:, 0] * old.bias, rtol=1e-3)
    still = layer(repaired("lws", recipe=dataclasses.replace(HEAD, lr=1e-30)))
    assert torch.equal(still.weight, old.weight) and torch.equal(still.bias, old.bias)


def test_no_decay_reaches_the_scales() -> None:
    one, other = (layer(repaired("lws", recipe=dataclasses.replace(HEAD, weight_decay=w))) for w in (0.0, 0.5))
    assert torch.equal(one.weight, other.weight)


def test_crt_begins_anew_and_shows_classes_equally_often() -> None:
    seen: list[Tensor] = []

    class Watching(Run):
        def batches(self, *args: Any, **more: Any) -> Any:
            for batch in super().batches(*args, **more):
                seen.append(batch.labels)
                yield batch

    data = tail()
    method = CRT(source=source(), recipe=dataclasses.replace(HEAD, epochs=40))
    method.fit(Watching(None, quiet=True), data)
    n = torch.cat(seen).bincount(minlength=10)
    share = n / n.sum()
    assert float((share - 0.1).abs().max()) < 4 * (0.1 * 0.9 / int(n.sum())) ** 0.5
    cold = layer(repaired("crt", recipe=dataclasses.replace(HEAD, lr=1e-30)))
    assert not torch.allclose(cold.weight, layer(source()).weight, atol=1e-2)


def test_rare_classes_are_found_again() -> None:
    """A network that was trained on a steep tail of digits: three rarest classes before and after."""
    data = dataclasses.replace(tiny_data(900).long_tailed(20.0, 0), test=tiny_data().test)
    recipe = Recipe(epochs=15, batch_size=32, lr=0.05)
    fresh = dataclasses.replace(source(), module=fitted("fresh", 9).module)
    for m in fresh.module.modules():
        if callable(reset := getattr(m, "reset_parameters", None)):
            reset()
    net = dataclasses.replace(fresh, module=Plain(student=fresh, recipe=recipe).fit(Run(None, quiet=True), data))

    def rarest(module: nn.Module) -> float:
        found = evaluate(module, data.validation).per_class[7:]
        return sum(r or 0.0 for r in found) / 3

    before = rarest(net.module)
    for method in (LogitAdjust(source=net), CRT(source=net, recipe=dataclasses.replace(HEAD, epochs=10))):
        assert rarest(method.fit(Run(None, quiet=True), data)) >= before


# -- bags -------------------------------------------------------------------------------------------------------


def test_groups_end_where_the_edges_are() -> None:
    n = torch.tensor([5, 9, 10, 99, 100, 5000, 3])
    assert frequency_groups(n, (10, 100)) == [[0, 1, 6], [2, 3], [4, 5]]
    assert frequency_groups(n, (10, 100), background=5) == [[0, 1, 6], [2, 3], [4]]
    assert frequency_groups(n, (1, 2)) == [[0, 1, 2, 3, 4, 5, 6]]


def test_each_class_is_in_one_group_and_comes_back_in_its_place() -> None:
    head = Grouped(4, [[3, 0], [1], [4, 2]], background=5)
    assert head.linear.out_features == 6 + 1 + 3 + 0 and head.sizes == [2, 3, 2, 3]
    for c in range(5):
        (group,) = (head.target[c, 1:] > 0).nonzero()[:, 0].tolist()
        start = sum(head.sizes[: group + 1])
        assert int(head.place[c]) == start + int(head.target[c, group + 1])
    assert head.target[5].tolist() == [0, 0, 0, 0] and head.target[:5, 0].tolist() == [1] * 5
    with pytest.raises(ValueError, match="do not divide"):
        Grouped(4, [[0, 1], [1, 2]])


def test_probabilities_of_a_group_and_its_others_sum_to_one_and_the_foreground_bounds_them() -> None:
    torch.manual_seed(0)
    head, f = Grouped(4, [[3, 0], [1, 2]], background=4), torch.randn(7, 4)
    p, parts = head(f).exp(), [z.softmax(1) for z in head.logits(f)]
    foreground = parts[0][:, 1]
    assert bool((p[:, :4] <= foreground[:, None] + 1e-6).all())
    assert torch.allclose(p[:, 4], 1 - foreground)
    for group, part in zip(head.groups, parts[1:], strict=True):
        assert torch.allclose(p[:, group].sum(1) + foreground * part[:, 0], foreground)
    without = Grouped(4, [[3, 0], [1, 2]])
    p, parts = without(f).exp(), [z.softmax(1) for z in without.logits(f)]
    assert torch.allclose(p[:, [1, 2]].sum(1), 1 - parts[1][:, 0])


def test_others_are_drawn_and_a_group_without_samples_has_no_loss() -> None:
    g = torch.Generator().manual_seed(0)
    own = torch.zeros(40, 3, dtype=torch.bool)
    own[:2, 0], own[:30, 1] = True, True
    found = chosen(own, torch.rand(40, 3, generator=g), beta=8.0)
    assert found.sum(0).tolist() == [2 + 16, 40, 0] and bool(found[own].all())
    again = chosen(own, torch.rand(40, 3, generator=g), beta=8.0)
    assert not torch.equal(found, again)


def test_a_class_has_gradients_from_its_own_group_and_the_foreground_alone() -> None:
    head = Grouped(3, [[0, 1], [2, 3]], background=4)
    f, y = torch.randn(6, 3, generator=torch.Generator().manual_seed(0)), torch.zeros(6, dtype=torch.long)
    target = head.target[y]
    weight = chosen(target > 0, torch.rand(6, 3), 8.0)
    weight[:, 0] = True
    group_loss(head.logits(f), target, weight.float()).backward()
    assert head.linear.weight.grad is not None
    touched = head.linear.weight.grad.abs().sum(1) > 0
    assert touched.tolist() == [True, True, True, True, True, False, False, False]  # no sample of the second group
    y = torch.full((6,), 4)  # background alone
    weight = chosen(head.target[y] > 0, torch.rand(6, 3), 8.0)
    weight[:, 0] = True
    loss = group_loss(logits := head.logits(f), head.target[y], weight.float())
    assert torch.allclose(loss, F.cross_entropy(logits[0], torch.zeros(6, dtype=torch.long)))


def test_one_group_of_all_classes_is_a_plain_softmax_with_a_dead_output() -> None:
    head = Grouped(3, [[0, 1, 2]])
    f, y = torch.randn(9, 3, generator=torch.Generator().manual_seed(1)), torch.arange(9) % 3
    target = head.target[y]
    loss = group_loss(head.logits(f), target, chosen(target > 0, torch.rand(9, 1), 1e9).float())
    assert torch.allclose(loss, F.cross_entropy(head.linear(f), y + 1))


# -- simcal -----------------------------------------------------------------------------------------------------


def test_the_calibrated_head_answers_below_t_and_the_old_one_elsewhere() -> None:
    data = tail()
    _, z = kept(data)
    n = data.train.labels.bincount(minlength=10)
    old = z.log_softmax(1)
    made = repaired("simcal", data, T=10)
    head = made.module.linear
    assert isinstance(head, Dual) and head.rare.tolist() == (n < 10).tolist() and bool((n < 10).any())
    found = predict_logits(made.module, data.test)
    assert torch.allclose(found[:, n >= 10], old[:, n >= 10], atol=1e-5)
    assert not torch.allclose(found[:, n < 10], old[:, n < 10], atol=1e-2)
    assert torch.allclose(predict_logits(repaired("simcal", data, T=0).module, data.test), old, atol=1e-6)
    alone = predict_logits(repaired("simcal", data, T=None).module, data.test)
    assert torch.allclose(alone.exp().sum(1), torch.ones(len(alone)), atol=1e-5)
    assert torch.allclose(alone[:, n < 10], found[:, n < 10], atol=1e-5)


def test_a_calibrated_head_that_starts_as_the_old_one_answers_like_it_before_training() -> None:
    data = tail()
    _, z = kept(data)
    still = dataclasses.replace(HEAD, lr=1e-30)
    for T in (10, 30, None):
        made = repaired("simcal-linear", data, T=T, recipe=still)
        assert torch.allclose(predict_logits(made.module, data.test), z.log_softmax(1), atol=1e-5)


def test_the_background_keeps_the_old_answers() -> None:
    made = repaired("simcal-linear", T=None)
    assert made.module.linear.rare.tolist() == [False] + [True] * 9


# -- bad input --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "says"),
    [
        (BAGS(source=source(), background="cat"), r"class of source 'cat'"),
        (SimCal(source=source(), background="cat"), r"class of source 'cat'"),
        (SimCal(source=source(), T=2), r"no class of .* has fewer than T = 2 training images"),
    ],
    ids=["bags", "simcal", "T"],
)
def test_what_cannot_run_is_said_before_any_work(method: Any, says: str) -> None:
    with pytest.raises(UserError, match=says):
        method.require(tail())


def test_a_class_without_images_and_a_network_without_a_bias_are_named() -> None:
    data = tail()
    lacking = data.subset((data.train.labels != 4).nonzero()[:, 0])
    for cls, options in SMALL.values():
        with pytest.raises(UserError, match="no labelled training image of 4"):
            cls(source=source(), **options).require(lacking)
    bare = source()
    bare.module.linear = nn.Linear(16, 10, bias=False)
    for method, remedy in (
        (LogitAdjust(source=bare), "tau and lws serve without"),
        (NCM(source=bare, features="raw"), "cl2n serves without"),
    ):
        with pytest.raises(UserError, match=f"has no bias.*{remedy}"):
            method.require(data)
    for cls, options in (SMALL["tau"], SMALL["crt"], SMALL["lws"], SMALL["bags"], SMALL["simcal"], SMALL["ncm"]):
        method = cls(source=bare, **options)
        method.require(data)
        assert method.fit(Run(None, quiet=True), data) is not None


@pytest.mark.parametrize("edges", [(), (10, 10), (100, 10), (0, 5)])
def test_edges_ascend(edges: tuple[int, ...]) -> None:
    with pytest.raises(UserError, match="edges must"):
        BAGS(source=source(), edges=edges)


# -- the command ------------------------------------------------------------------------------------------------


def test_treat_repairs_and_shows_the_groups(tmp_path: Path) -> None:
    said: list[str] = []
    made = treat(
        resolve("zoo:digits_teacher"),
        method="bags",
        data="digits",
        long_tail=10.0,
        edges=(20, 50),
        recipe={"epochs": 2, "batch_size": 64},
        out=tmp_path / "run",
        say=said.append,
    )
    assert [line["role"] for line in made.rows] == ["source", "control", "product"]
    assert {"many", "few"} <= set(made.rows[-1]["shown"]) and "ece" not in made.rows[-1] and "ece" in made.rows[0]
    again = saved.load(made.directory)
    assert again.reference == "diagnosis:grouped" and again.lineage is not None
    assert not any("Nothing is rare" in line for line in said)


def test_treat_says_first_that_nothing_is_rare(tmp_path: Path) -> None:
    said: list[str] = []
    treat("zoo:digits_teacher", method="logitadjust", data="digits", out=tmp_path / "run", say=said.append)
    assert said[0].startswith("note     Nothing is rare in digits")


def test_what_trains_nothing_is_compared_with_the_network_before(tmp_path: Path) -> None:
    said: list[str] = []
    options = {"method": "logitadjust", "data": "digits", "long_tail": 10.0, "say": said.append}
    made = treat(resolve("zoo:digits_teacher"), out=tmp_path / "once", **options)
    assert [line["role"] for line in made.rows] == ["source", "product"]
    assert "the same training" not in made.sentence and "points, within the" in made.sentence
    assert any(line.startswith("note     Columns by training images of a class: many (more than") for line in said)
    assert not any("second repair" in line for line in said)
    treat(str(tmp_path / "once"), out=tmp_path / "twice", **options)
    assert any("was made by logitadjust" in line and "second repair may go too far" in line for line in said)


def test_no_loss_is_logged_of_scores_that_are_no_probabilities(tmp_path: Path) -> None:
    data, logged = tail(), {}
    for name, net in (("plain", source().module), ("scores", nn.Sequential(nn.Flatten(), Grouped(64, [[*range(10)]])))):
        run = Run(tmp_path / name, quiet=True)
        run.evaluate(net, data.validation)
        run.close()
        logged[name] = (tmp_path / name / "metrics.csv").read_text()
    assert "validation_loss" in logged["plain"] and "validation_loss" not in logged["scores"]
    assert "validation_accuracy" in logged["scores"]


def test_bags_says_how_classes_are_divided() -> None:
    assert "ordinary softmax" in _of_groups([[0, 1]])
    assert _of_groups([[0], [1, 2], [3]]) == "The 3 groups have 1, 2 and 1 classes, the rarest first."


def test_predict_and_explain_call_scores_scores(tmp_path: Path) -> None:
    """Exponentials of these do not sum to one, and a softmax of them is the probability of nothing."""
    data, picture = tail(), tmp_path / "picture.png"
    Image.fromarray(data.test.images[0, :, :, 0].numpy()).save(picture)
    made = repaired("ncm")
    found = upcycle.predict(made, picture)
    z = predict_logits(made.module, data.test.subset(torch.tensor([0])))
    assert not found.sure and torch.allclose(found.scores, z, atol=1e-5) and float(found.scores.max()) <= 0
    header, line = found.csv().splitlines()
    assert header.split(",")[:3] == ["path", "class", "score"] and float(line.split(",")[2]) == round(float(z.max()), 6)
    assert "scores alone" in found.text()
    with pytest.raises(UserError, match=r"take \.scores in place of \.probabilities"):
        _ = found.probabilities
    plain = upcycle.predict(source(), picture)
    assert plain.sure and plain.csv().startswith("path,class,probability,")
    assert torch.equal(plain.probabilities, plain.scores) and abs(float(plain.scores.sum()) - 1) < 1e-5
    for model, name in ((made, "softmax of scores"), (source(), "probability")):
        upcycle.explain_images(model, picture, methods=("saliency",), out=tmp_path / name, say=lambda text: None)
        assert (tmp_path / name / "explained.csv").read_text().startswith(f"path,class,{name}\n")
