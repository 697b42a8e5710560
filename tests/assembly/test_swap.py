"""Blocks in trained networks that are tuned: what is learnt, what is asked of blocks, budgets, and the product."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from tests import inserts
from tests.settings import fitted, seen, tiny_data, tiny_model, tiny_net, tiny_vit
from upcycle.assembly import MDA, DeRy, Swap
from upcycle.assembly.swap import penalties
from upcycle.assembly.swapping.budget import cost_of, within
from upcycle.assembly.swapping.regress import imitation_loss, regress
from upcycle.core import saved
from upcycle.core.errors import UserError
from upcycle.core.losses import Terms
from upcycle.core.models import Model
from upcycle.core.recipe import Recipe
from upcycle.core.references import resolve
from upcycle.core.run import Run
from upcycle.core.store import tensor_digest
from upcycle.distillation import KD
from upcycle.measure.cost import Budget, count
from upcycle.measure.export import write_export
from upcycle.surgery.inserts import BLOCKS
from upcycle.surgery.operate import Cut, operate, start_error

RECIPE = Recipe(epochs=2, batch_size=32, lr=0.01)
MIXER = Cut(at=("blocks.*.attention",), block="sepconv")


@pytest.fixture(autouse=True)
def _blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, block in inserts.BLOCKS.items():
        monkeypatch.setitem(BLOCKS, name, block)


def swap(source: Model | None = None, **options: Any) -> Swap:
    return Swap(
        **{"source": source or fitted("source", 7), "block": "se", "at": ("relu?",), "recipe": RECIPE, **options}
    )


def made(method: Swap, **run: Any) -> Model:
    data = tiny_data(100)
    method.require(data)
    return method.product(method.fit(Run(None, quiet=True, **run), data), data)


def asked(network: nn.Module) -> list[inserts.Asking]:
    return [m for m in network.modules() if isinstance(m, inserts.Asking)]


# -- tuning -------------------------------------------------------------------------------------------------------


def test_all_weights_learn_and_the_source_stays() -> None:
    source = fitted("source", 7)
    before = tensor_digest(source.module.state_dict())
    start, end = operate(source, Cut(at=("relu?",), block="se")).module, made(swap(source)).module
    assert tensor_digest(source.module.state_dict()) == before
    now = dict(end.named_parameters())
    assert not [name for name, p in start.named_parameters() if torch.equal(p, now[name])]


def test_blocks_are_told_of_every_batch_and_of_the_end() -> None:
    network = made(swap(block="asking", how="after", at=("relu1",))).module
    (block,) = asked(network)
    progress, draws = zip(*block.told, strict=True)
    assert list(progress) == pytest.approx([i / 8 for i in range(8)] + [1.0])  # 100 samples: 4 batches, 2 epochs
    assert len(set(draws)) == 9
    again = asked(made(swap(block="asking", how="after", at=("relu1",))).module)[0]
    assert again.told == block.told
    other = asked(made(swap(block="asking", how="after", at=("relu1",)), seed=1).module)[0]
    assert other.told[0] != block.told[0]


def test_what_a_block_adds_to_the_loss_moves_it() -> None:
    shifts = [
        asked(made(swap(block="asking", how="after", at=("relu1",), settings={"weight": w})).module)[0].shift.detach()
        for w in (0.0, 1.0)
    ]
    assert float(shifts[1].mean()) > float(shifts[0].mean()) + 0.05


def test_terms_of_all_blocks_are_summed() -> None:
    network = nn.Sequential(inserts.Asking(2, 1.0), inserts.Asking(3, 2.0), inserts.Asking(3, 0.0), nn.ReLU())
    assert float(penalties(network)) == 2 + 6  # type: ignore[arg-type]
    assert penalties(nn.ReLU()) is None


def test_the_control_takes_as_many_updates_and_knows_no_block() -> None:
    method = swap(tiny_vit(7), block="sepconv", at=MIXER.at, regress_epochs=3)
    control = method.controls()["control"].method
    assert method.steps(100) == control.steps(100) == 5 * 4
    data = tiny_data(100)
    net = control.fit(Run(None, quiet=True), data)
    assert net.state_dict().keys() == tiny_vit(7).module.state_dict().keys()
    assert tensor_digest(net.state_dict()) != tensor_digest(tiny_vit(7).module.state_dict())


def test_with_labels_alone_the_control_is_plain_training() -> None:
    from upcycle.distillation import Plain

    data, terms = tiny_data(100), Terms(w_kd=0.0, w_ce=1.0)
    control = swap(terms=terms).controls()["control"].method
    plain = Plain(student=fitted("source", 7), recipe=RECIPE)
    a, b = (method.fit(Run(None, quiet=True), data).state_dict() for method in (control, plain))
    assert tensor_digest(a) == tensor_digest(b)


# -- regression ---------------------------------------------------------------------------------------------------


def test_the_loss_of_imitation_is_a_share_of_the_target() -> None:
    t = torch.randn(3, 4, 5)
    assert float(imitation_loss(t, t)) == 0
    assert float(imitation_loss(torch.zeros_like(t), t)) == pytest.approx(1)
    assert float(imitation_loss(1e3 * 1.5 * t, 1e3 * t)) == pytest.approx(0.25)


def test_blocks_learn_what_the_network_does_at_their_places() -> None:
    source, data = tiny_vit(7), tiny_data(160)
    new = operate(source, MIXER, "fresh")
    names = [place["name"] for place in new.options["cut"]["places"]]
    images = data.validation.batch(torch.arange(50), device=torch.device("cpu")).images

    def apart() -> list[float]:
        found = []
        for name in names:
            held: dict[str, Any] = {}
            attention = source.module.get_submodule(name)
            hook = attention.register_forward_hook(lambda m, i, out, held=held: held.update(x=i[0], y=out))
            source.module.eval()(images)
            hook.remove()
            with torch.no_grad():
                found.append(float(imitation_loss(new.module.get_submodule(name).eval()(held["x"]), held["y"])))
        return found

    rest = {key: value.clone() for key, value in new.module.state_dict().items() if ".block." not in key}
    before = apart()
    regress(
        Run(None, quiet=True), source, new, names, data, Recipe(epochs=10, batch_size=32, optimizer="adam", lr=0.01)
    )
    after = apart()
    assert all(b < 0.6 * a for a, b in zip(before, after, strict=True))
    state = new.module.state_dict()
    assert all(torch.equal(state[key], value) for key, value in rest.items())
    assert all(p.requires_grad for p in new.module.parameters())


def test_what_a_block_stands_beside_rests_while_the_block_learns() -> None:
    """Behind a BatchNorm, whose statistics would move in training mode."""
    source = fitted("source", 7)
    new = operate(source, Cut(at=("bn1",), block="asking", how="after"), "fresh")
    kept = {key: value.clone() for key, value in new.module.state_dict().items() if "shift" not in key}
    regress(Run(None, quiet=True), source, new, ["bn1"], tiny_data(64), Recipe(epochs=1, batch_size=32))
    state = new.module.state_dict()
    assert all(torch.equal(state[key], value) for key, value in kept.items())


def test_there_is_no_regression_without_need() -> None:
    assert swap().regression is None
    assert swap(tiny_vit(7), block="pool", at=MIXER.at).regression is None  # it has no weights
    assert swap(tiny_vit(7), block="sepconv", at=MIXER.at, regress_epochs=0).regression is None
    assert swap(tiny_vit(7), block="sepconv", at=MIXER.at).regression is not None
    assert swap(block="coord", start="fresh").regression is not None


# -- budgets ------------------------------------------------------------------------------------------------------


def test_a_budget_is_kept_by_counting() -> None:
    source = fitted("source", 7)
    exact = count(operate(source, Cut(at=("relu?",), block="se")).module, (1, 8, 8))
    data = tiny_data(64)
    swap(source, params=float(exact.parameters), flops=float(exact.macs)).require(data)
    for bound in ({"params": exact.parameters - 1.0}, {"flops": exact.macs - 1.0}):
        with pytest.raises(UserError, match=r"cheapest that can be had, with it at 'relu[12]' alone, has") as error:
            swap(source, **bound).require(data)
        assert "\n" not in str(error.value)


def test_a_budget_below_the_cheapest_names_it() -> None:
    with pytest.raises(UserError, match=r"with se at 'relu1' the network has .* the budget is at most 10 parameters"):
        swap(at=("relu1",), params=10.0).require(tiny_data(64))


@pytest.mark.parametrize("share", [0.75, 0.85, 0.95])
def test_a_budget_takes_the_largest_share_of_tokens_that_fits(share: float) -> None:
    source = resolve("zoo:cifar10_vit")
    cut = Cut(at=("blocks.0",), block="pnp", options={"ratio": 1.0})
    most = int(share * cost_of(operate(source, cut)).macs)
    found = within(source, cut, "same", Budget(macs=most))
    ratio = found.options["ratio"]
    larger = Cut(at=cut.at, block="pnp", options={"ratio": ratio + 0.01})
    assert cost_of(operate(source, found)).macs <= most < cost_of(operate(source, larger)).macs
    with pytest.raises(UserError, match="the cheapest that can be had"):
        within(source, cut, "same", Budget(macs=10_000))


# -- refused ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"block": ""}, "give --block NAME"),
        ({"at": ()}, "swap needs places for se"),
        ({"block": "see"}, "no block 'see'. Did you mean 'se"),
        ({"settings": {"b": 1}}, "no option of se 'b'"),
        ({"settings": {"b0": "low"}}, "option b0 of se must be like 4.6"),
        ({"how": "before"}, "how gate or replace, not before"),
        ({"block": "pool", "start": "same"}, "pool has no start at the network's own function"),
        ({"params": "many"}, "'many' is no amount"),
        ({"params": -1.0}, "-1 is no|must be positive|no amount"),
        ({"regress_epochs": -1}, "regress_epochs must not be negative"),
        ({"regress_lr": 0.0}, "regress_lr must be above 0|positive"),
    ],
)
def test_options_that_cannot_be(options: dict[str, Any], says: str) -> None:
    with pytest.raises(UserError, match=says) as error:
        swap(**options)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"at": ("linear",)}, "se cannot be put at 'linear'"),
        ({"at": ("relu7",)}, "no module of source called 'relu7'"),
        ({"block": "halving", "how": "after"}, "gives 16 x 4 x 4 where 16 x 8 x 8 is needed"),
        ({"block": "pnp"}, "there is a map of 16 x 8 x 8, and pnp works on tokens"),
        ({"terms": Terms(w_kd=0.0, w_ce=1.0)}, "nothing is left to learn from"),
    ],
)
def test_what_cannot_be_done_to_this_network(options: dict[str, Any], says: str) -> None:
    data = tiny_data(64)
    if "terms" in options:
        data.train.labels.fill_(-1)
    with pytest.raises(UserError, match=says):
        swap(**options).require(data)


def test_images_of_another_size_are_refused() -> None:
    source = Model(
        module=tiny_net(), input_shape=(1, 16, 16), mean=(0.3,), std=(0.4,), classes=tuple("0123456789"), name="larger"
    )
    with pytest.raises(UserError, match="larger takes images of 1 x 16 x 16 and the data have 1 x 8 x 8"):
        swap(source).require(tiny_data(64))


# -- what becomes of the product ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def product(tmp_path_factory: pytest.TempPathFactory) -> Model:
    """A trained network of convolutions with gates, saved and loaded."""
    source = resolve("zoo:digits_teacher")
    method = swap(source, block="coord", at=("block[12]",), recipe=Recipe(epochs=1, batch_size=64, lr=0.01))
    place = tmp_path_factory.mktemp("product") / "model"
    saved.save(made(method), place)
    return saved.load(place)


def test_the_product_is_built_again_from_its_record(product: Model, tmp_path: Path) -> None:
    assert product.reference == "assembly:operated" and product.options["source"]["reference"] == "zoo:digits_teacher"
    saved.save(product, tmp_path / "again")
    again = saved.load(tmp_path / "again")
    assert start_error(product, again) == 0
    assert tensor_digest(again.module.state_dict()) == tensor_digest(product.module.state_dict())
    fresh = resolve(str(tmp_path / "again"), pretrained=False, num_classes=10)
    assert fresh.module.state_dict().keys() == product.module.state_dict().keys()


def test_the_product_is_exported(product: Model, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime", reason="onnxruntime is not installed (extra export)")
    assert write_export(product, tmp_path / "net.onnx", "onnx") <= 1e-4


def test_the_product_teaches_and_learns(product: Model) -> None:
    data, run = tiny_data(64), Run(None, quiet=True)
    teacher = KD(teacher=product, student=tiny_model("student", 1), recipe=RECIPE)
    teacher.require(data)
    assert teacher.fit(run, data).state_dict().keys() == tiny_net().state_dict().keys()
    student = KD(teacher=seen(tiny_model("teacher", 7)), student=product, recipe=RECIPE)
    student.require(data)
    assert student.fit(Run(None, quiet=True), data).state_dict().keys() == product.module.state_dict().keys()


def test_the_product_is_a_member_of_a_reassembly(product: Model, tmp_path: Path) -> None:
    data = tiny_data(64)
    method = DeRy(
        zoo=(product, resolve("zoo:digits_teacher")),
        blocks=2,
        probe=32,
        runs=3,
        candidates=2,
        score_batches=1,
        tune="none",
    )
    method.require(data)
    whole = method.product(method.fit(Run(None, quiet=True), data), data)
    saved.save(whole, tmp_path / "whole")
    assert start_error(whole, saved.load(tmp_path / "whole")) == 0


def test_the_product_is_taken_apart(product: Model) -> None:
    data = tiny_data(160)
    method = MDA(source=product, classes=("3", "5", "8"), samples=8)
    method.require(data)
    part = method.product(method.fit(Run(None, quiet=True), data), data)
    assert part.module(part.example(2)).shape == (2, 3)


def test_the_product_gets_another_block(product: Model, tmp_path: Path) -> None:
    again = operate(product, Cut(at=("block1",), block="eca"))
    saved.save(again, tmp_path / "again")
    assert start_error(product, saved.load(tmp_path / "again")) <= 1e-6
