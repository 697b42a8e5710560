"""Feature distillation: the losses' invariants, which layers go together, and what is left of the training."""

import copy
import csv
import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.settings import fitted, tiny_data, tiny_model, tiny_net, tiny_vit
from upcycle import cli
from upcycle.core.errors import UserError
from upcycle.core.feature_maps import FeatureMap
from upcycle.core.frozen import Frozen, folds_across, frozen
from upcycle.core.losses import Terms
from upcycle.core.models import Model
from upcycle.core.outputs import Logits
from upcycle.core.recipe import Recipe
from upcycle.core.references import resolve
from upcycle.core.run import Run
from upcycle.core.store import tensor_digest
from upcycle.data import Images, ImageSplit
from upcycle.distillation.features import Features, Translator, attention_loss, hint_loss, relation_loss
from upcycle.distillation.kd import KD
from upcycle.distillation.layer_pairs.pairs import Spot, chosen, comparable, compared, spots
from upcycle.measure.similarity import linear_cka

RECIPE = Recipe(epochs=1, batch_size=32, lr=0.05)


def maps(seed: int, c: int = 5, size: int = 4, b: int = 6) -> Tensor:
    return torch.randn(b, c, size, size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def turned(c: int, seed: int = 9) -> Tensor:
    """A rotation of channels."""
    return torch.linalg.qr(torch.randn(c, c, generator=torch.Generator().manual_seed(seed), dtype=torch.float64))[0]


def pictures(n: int = 8, size: int = 32, channels: int = 3) -> Images:
    """Random images of ten classes, as many to train on as to validate."""
    g = torch.Generator().manual_seed(0)
    images = torch.randint(256, (n, size, size, channels), generator=g, dtype=torch.uint8)
    split = ImageSplit.plain(images, torch.arange(n) % 10, torch.arange(n))
    classes = tuple("0123456789")
    data = Images(name="random", classes=classes, train=split, validation=split, test=split)
    return data.normalised((0.5,) * channels, (0.25,) * channels)


def network(module: nn.Module, data: Images, name: str = "net") -> Model:
    shape, mean, std = data.shape, data.train.mean, data.train.std
    return Model(module=module, input_shape=shape, mean=mean, std=std, classes=data.classes, name=name)


def fresh(reference: str, data: Images, seed: int = 0) -> Model:
    torch.manual_seed(seed)
    return resolve(reference, pretrained=False, num_classes=len(data.classes), input_shape=data.shape)


# -- losses -----------------------------------------------------------------------------------------------------


def test_a_hint_is_a_mean_squared_error_with_its_gradient() -> None:
    f_s, f_t = maps(0).requires_grad_(), maps(1).requires_grad_()
    hint_loss(f_s, f_t).backward()
    assert torch.allclose(f_s.grad, 2 * (f_s - f_t).detach() / f_s.numel()) and f_t.grad is None
    assert hint_loss(f_t, f_t) == 0


def test_attention_sees_where_and_neither_channels_nor_strength() -> None:
    f, other = maps(0), maps(1)
    for same in (f[:, torch.randperm(5)], -3 * f, torch.einsum("dc,bchw->bdhw", turned(5), f)):
        assert attention_loss(same, other) == pytest.approx(float(attention_loss(f, other)), rel=1e-12)
    assert attention_loss(f, f) == 0 < attention_loss(f, other) < 2
    apart = torch.zeros(2, 1, 2, 2, dtype=torch.float64)
    here, there = apart.clone(), apart.clone()
    here[:, :, 0, 0], there[:, :, 1, 1] = 1.0, 5.0
    assert attention_loss(here, there) == 2
    assert attention_loss(here, torch.cat([here, here], 1)) == 0  # of another width


def test_a_map_without_activity_has_a_finite_gradient() -> None:
    f = torch.zeros(3, 4, 2, 2, requires_grad=True)
    (attention_loss(f, maps(1, size=2, b=3).float()) + relation_loss(f, maps(2, b=3).float())).backward()
    assert f.grad.isfinite().all()


def test_relations_see_which_samples_are_alike_and_neither_rotation_nor_scale_nor_shift() -> None:
    f, other = maps(0, c=6), maps(1, c=3, size=2)
    expected = relation_loss(f, other)
    moved = maps(2, c=6, b=1)
    for same in (7 * f, f + moved, torch.einsum("dc,bchw->bdhw", turned(6), f)):
        assert relation_loss(same, other) == pytest.approx(float(expected), rel=1e-12)
    order = torch.randperm(len(f))
    assert relation_loss(f[order], other[order]) == pytest.approx(float(expected), rel=1e-12)
    assert relation_loss(f, f) == pytest.approx(0, abs=1e-14) and 0 < expected < 1
    assert expected == pytest.approx(1 - float(linear_cka(f.flatten(1), other.flatten(1), "gram")), rel=1e-10)


def test_two_samples_are_always_alike_and_equal_ones_are_like_nothing() -> None:
    assert relation_loss(maps(0, b=2), maps(1, b=2)) == pytest.approx(0, abs=1e-12)
    assert relation_loss(torch.ones(4, 3, 2, 2), maps(1, b=4).float()) == 1


@pytest.mark.parametrize("loss", [attention_loss, relation_loss])
def test_no_gradient_reaches_the_teacher(loss: Any) -> None:
    f_s, f_t = maps(0).requires_grad_(), maps(1).requires_grad_()
    loss(f_s, f_t).backward()
    assert f_t.grad is None and f_s.grad.abs().max() > 0


# -- which layers -----------------------------------------------------------------------------------------------


def names(method: Features, data: Images) -> list[tuple[str, str]]:
    return [(pair.student.place.name, pair.teacher.place.name) for pair in method.found(data)]


def test_convolutional_networks_go_together_by_stages() -> None:
    data = pictures()
    both = {"teacher": fresh("zoo:resnet20", data), "student": fresh("zoo:resnet8", data)}
    assert names(Features(**both), data) == [("layer3.0", "layer3.2")]
    expected = [("layer3.0", "layer3.2"), ("layer2.0", "layer2.2"), ("layer1.0", "layer1.2")]
    assert names(Features(**both, pairs=3), data) == expected


def test_blocks_of_transformers_go_together_by_depth() -> None:
    def blocks(n: int) -> list[Spot]:
        return [Spot(FeatureMap(f"{n}.{i}", "tokens", (3, 3)), (9, 4), (3, 3)) for i in range(1, n + 1)]

    assert [(s.place.name, t.place.name) for s, t in chosen(blocks(4), blocks(12), 2)] == [
        ("4.4", "12.12"),
        ("4.2", "12.6"),
    ]
    three = [(s.place.name, t.place.name) for s, t in chosen(blocks(3), blocks(12), 3)]
    assert three == [("3.3", "12.12"), ("3.2", "12.8"), ("3.1", "12.4")]
    with pytest.raises(UserError, match="pairs 4 are more than there are layers to choose from, 3"):
        chosen(blocks(3), blocks(12), 4)


def test_of_a_transformer_the_tokens_are_chosen_and_not_what_stands_before_them() -> None:
    data = pictures()
    both = {"teacher": fresh("zoo:vit", data), "student": fresh("zoo:vit", data, 1)}
    found = Features(**both, pairs=2).found(data)
    assert [pair.teacher.place.kind for pair in found] == ["tokens", "tokens"] and all(pair.whole for pair in found)
    assert [pair.teacher.place.name for pair in found] == ["norm", "blocks.1"]


def test_a_convolutional_teacher_and_a_transformer_go_together_where_grids_agree() -> None:
    data = pictures()
    method = Features(teacher=fresh("zoo:resnet8", data), student=fresh("zoo:vit", data))
    (pair,) = method.found(data)
    assert pair.teacher.place.name == "layer3.0" and pair.student.place.kind == "tokens"
    assert pair.grid == (8, 8) and (pair.student.width, pair.teacher.width) == (96, 64)
    method.require(data)


def test_a_perceptron_gives_its_last_vector() -> None:
    data = pictures(size=8, channels=1)
    mlp = nn.Sequential(nn.Flatten(), nn.Linear(64, 12), nn.ReLU(), nn.Linear(12, 10))
    method = Features(teacher=tiny_net(1), student=mlp)
    (pair,) = method.found(data)
    assert pair.grid == (1, 1) and (pair.student.place.name, pair.student.width) == ("2", 12)
    out_s, out_t = torch.randn(2, 12), torch.randn(2, 16, 4, 4)
    f_s, f_t = pair.features(out_s, out_t)
    assert torch.equal(f_s[:, :, 0, 0], out_s) and torch.allclose(f_t[:, :, 0, 0], out_t.mean((2, 3)), atol=1e-6)
    with pytest.raises(UserError, match="attention compares places"):
        Features(teacher=tiny_net(1), student=mlp, loss="attention").require(data)


def tokens(name: str, n: int, grid: tuple[int, int] | None, beside: tuple[int, ...] = (), width: int = 4) -> Spot:
    return Spot(FeatureMap(name, "tokens", grid or (n, 1), beside), (n, width), grid)


def test_a_class_token_is_kept_where_both_have_it_and_dropped_where_one_has_none() -> None:
    out = torch.randn(2, 10, 4)
    pair = comparable(tokens("s", 10, (3, 3), (0,)), tokens("t", 10, (3, 3), (0,), 8))
    assert torch.equal(pair.features(out, out)[0], out.mT[..., None])
    pair = comparable(tokens("s", 9, (3, 3)), tokens("t", 10, (3, 3), (0,)))
    f_s, f_t = pair.features(out[:, 1:], out)
    assert torch.equal(f_s, f_t) and f_s.shape == (2, 4, 3, 3)
    assert "the teacher's tokens without a place (1) are left out" in pair.words("attention")


def test_another_number_of_tokens_is_refused_with_both() -> None:
    with pytest.raises(UserError, match=r"'s' of the student gives 10 tokens and 't' of the teacher 17; choose layers"):
        comparable(tokens("s", 10, (3, 3), (0,)), tokens("t", 17, (4, 4), (0,)))
    with pytest.raises(UserError, match=r"9 tokens and 't' of the teacher 16, without those"):
        comparable(tokens("s", 9, (3, 3)), tokens("t", 17, (4, 4), (0,)))
    with pytest.raises(UserError, match="no grid is known for 's'"):
        comparable(tokens("s", 7, None), Spot(FeatureMap("t", grid=(4, 4)), (8, 4, 4), (4, 4)))


def test_tokens_that_are_dropped_in_training_are_named() -> None:
    pair = comparable(tokens("s", 10, (3, 3), (0,)), tokens("t", 10, (3, 3), (0,)))
    with pytest.raises(UserError, match="'s' gives 6 tokens in training and 10 in evaluation mode"):
        pair.features(torch.randn(2, 6, 4), torch.randn(2, 10, 4))


def test_maps_of_another_size_are_pooled_in_two_dimensions() -> None:
    large, small = (Spot(FeatureMap(n, grid=(s, s)), (5, s, s), (s, s)) for n, s in (("s", 8), ("t", 4)))
    out = maps(0, size=8).float()
    f_s, f_t = comparable(large, small).features(out, maps(1).float())
    assert torch.equal(f_s, F.avg_pool2d(out, 2)) and f_t.shape == f_s.shape
    assert "the student's are average-pooled to 4 x 4" in comparable(large, small).words("hint")
    odd = Spot(FeatureMap("t", grid=(3, 3)), (5, 3, 3), (3, 3))
    assert torch.equal(comparable(large, odd).features(out, maps(1, size=3).float())[0], F.adaptive_avg_pool2d(out, 3))
    strip = tokens("s", 64, (8, 8), width=5)  # the same places as tokens
    row = out.flatten(2).mT
    assert torch.allclose(comparable(strip, small).features(row, maps(1).float())[0], f_s)


# -- reading them -----------------------------------------------------------------------------------------------


class InPlace(nn.Module):
    """Layers whose output is overwritten by the next, in three ways."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.relu = nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(inplace=True)
        self.stage = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1))
        self.norm2, self.linear = nn.BatchNorm2d(8), nn.Linear(8, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.norm(self.conv(x)))
        y = self.norm2(self.stage(x))
        y += x
        return self.linear(F.relu_(y).mean((2, 3)))


def in_place(seed: int) -> Model:
    torch.manual_seed(seed)
    module = InPlace()
    for norm in (module.norm, module.norm2):  # as if trained, so that folding changes what convolutions give
        nn.init.uniform_(norm.running_var, 0.5, 2.0)
        nn.init.normal_(norm.running_mean)
        nn.init.normal_(norm.bias)
    return dataclasses.replace(tiny_model("in_place", seed), module=module.eval())


@pytest.mark.parametrize("name", ["conv", "norm", "relu", "stage", "stage.0", "norm2"])
def test_the_teacher_gives_what_its_layer_gives(name: str) -> None:
    """Whatever overwrites it, and whatever BatchNorm was folded."""
    model, data = in_place(0), tiny_data()
    images = data.validation.batch(torch.arange(8), device=torch.device("cpu")).images
    seen: list[Tensor] = []
    handle = model.module.get_submodule(name).register_forward_hook(lambda m, i, out: seen.append(out.clone()))
    with torch.no_grad():
        logits = model.module(images)
    handle.remove()
    folded = folds_across(model.module, [name])
    assert folded == (name in ("conv", "stage", "stage.0"))
    teacher = Run(None, precision="32-true", teacher_precision="32-true").frozen(
        model, data.validation, keep_modules=True, keep_bn=folded
    )
    student = in_place(1)
    pairs = [comparable(*spots(student, images[:2], [name]), *spots(model, images[:2], [name]))]
    with compared(pairs, student.module, teacher) as features:
        student.module(images)
        z_t = teacher(images)
        ((_, f_t),) = features()
    assert torch.allclose(f_t, seen[0], atol=1e-5) and torch.allclose(z_t, logits, atol=1e-5)


def test_folding_a_batchnorm_would_change_what_its_convolution_gives() -> None:
    """So the case above is one: the copy that folds answers alike and gives something else there."""
    model, data = in_place(0), tiny_data()
    images = data.validation.batch(torch.arange(8), device=torch.device("cpu")).images
    copies = [frozen(model.module, images, keep_modules=True, keep_bn=keep, precision="32-true") for keep in (0, 1)]
    found = []
    for made in copies:
        made.network.conv.register_forward_hook(lambda m, i, out: found.append(out.clone()))
        made(images)
    assert copies[0].folded == 2 and not torch.allclose(*found, atol=1e-2)


@pytest.mark.parametrize("loss", ["hint", "attention", "relations"])
def test_a_student_that_overwrites_its_layers_trains(loss: str) -> None:
    layers = ("norm", "norm2")
    method = Features(teacher=in_place(0), student=in_place(1), loss=loss, layers=layers, recipe=RECIPE)  # type: ignore[arg-type]
    method.require(tiny_data())
    assert all(p.isfinite().all() for p in method.fit(Run(None), tiny_data()).parameters())


# -- the method -------------------------------------------------------------------------------------------------


def roles() -> dict[str, Any]:
    return {"teacher": tiny_model("teacher", 1), "student": tiny_model("student", 2, 8)}


@pytest.mark.parametrize("loss", ["hint", "attention", "relations"])
@pytest.mark.parametrize("recipe", [RECIPE, dataclasses.replace(RECIPE, mix="snapmix", sharpness="sam")])
def test_with_weight_0_it_is_kd_bit_for_bit(loss: Any, recipe: Recipe) -> None:
    data = tiny_data()
    kd = KD(**roles(), recipe=recipe, cache="off").fit(Run(None, seed=3, precision="32-true"), data)
    made = Features(**roles(), recipe=recipe, loss=loss, weight=0.0, layers=("conv1",)).fit(
        Run(None, seed=3, precision="32-true"), data
    )
    assert tensor_digest(made.state_dict()) == tensor_digest(kd.state_dict())
    more = Features(**roles(), recipe=recipe, loss=loss, weight=0.5).fit(Run(None, seed=3, precision="32-true"), data)
    assert tensor_digest(more.state_dict()) != tensor_digest(kd.state_dict())


def test_the_maps_train_are_saved_and_are_no_part_of_the_product() -> None:
    run, data = Run(None), tiny_data()
    made = Features(**roles(), recipe=RECIPE, loss="hint", pairs=2).fit(run, data)
    assert {k: v.shape for k, v in made.state_dict().items()} == {
        k: v.shape for k, v in tiny_net(2, 8).state_dict().items()
    }
    state = run._stage.state
    kept = state["module1"]
    assert [type(m) for m in kept] == [Translator] * 2 and kept[0].linear.weight.shape == (16, 8)
    trained = {id(p) for group in state["optimizer0"].param_groups for p in group["params"]}
    assert all(id(p) in trained for p in kept.parameters())
    start = Translator(8, 16, Run(None).generator("translators"))  # the first that was drawn
    assert not torch.equal(kept[0].linear.weight, start.linear.weight) and kept[0].linear.bias.abs().max() > 0
    assert 0 < float(kept[0].scale) != 1
    (said, other) = (note for note in run.notes if note.startswith("Layer "))
    assert "a linear map of 8 to 16 channels that is no part of the product" in said and "relu1" in other


def test_a_hint_no_better_than_a_constant_costs_one() -> None:
    f_t = 30 * maps(0, b=64).float() + 5
    translator = Translator(3, 5, torch.Generator().manual_seed(0))
    translator.fit(f_t)
    with torch.no_grad():
        translator.linear.weight.zero_()
        translator.linear.bias.copy_(f_t.mean((0, 2, 3)) / translator.scale)
    assert hint_loss(*translator(maps(1, c=3, b=64).float(), f_t)).item() == pytest.approx(1.0, rel=1e-4)


def test_the_teacher_answers_once_a_step(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    forward = Frozen.forward

    def counted(self: Frozen, inputs: Tensor) -> Tensor:
        asked.append(len(inputs))
        return forward(self, inputs)

    monkeypatch.setattr(Frozen, "forward", counted)
    recipe = dataclasses.replace(RECIPE, batch_size=40)  # as many samples as nothing else has
    Features(**roles(), recipe=recipe, loss="hint", pairs=2).fit(Run(None), tiny_data(160))
    assert asked.count(40) == 4


@pytest.mark.parametrize(("loss", "weight"), [("hint", 1.0), ("attention", 10.0), ("relations", 4.0)])
def test_layers_come_together_and_the_report_shows_it(loss: Any, weight: float, tmp_path: Path) -> None:
    run, both = Run(tmp_path), {"teacher": fitted("teacher", 7), "student": tiny_model("student", 2, 8)}
    recipe = Recipe(epochs=6, batch_size=32, lr=0.05)
    Features(**both, recipe=recipe, loss=loss, weight=weight).fit(run, tiny_data())
    run.close()
    with (tmp_path / "metrics.csv").open() as file:
        apart = [float(row["value"]) for row in csv.DictReader(file) if row["name"] == "features"]
    assert len(apart) == 6 and apart[-1] < 0.8 * apart[0]
    before, after = json.loads((tmp_path / "pictures" / "features.json").read_text())["items"]
    assert before["name"] == "relu2 beside relu2, before training" and after["name"].endswith("after it")
    # Attention does not ask which images are alike, and a hint's linear map may come together in place of the layers.
    assert 0 < before["value"] < 1 and 0 < after["value"] < 1
    assert loss != "relations" or before["value"] < after["value"]


def test_tokens_of_two_transformers() -> None:
    data = tiny_data()
    for loss in ("hint", "attention", "relations"):
        options: dict[str, Any] = {"loss": loss, "recipe": RECIPE, "layers": ("blocks.0", "blocks.1")}
        method = Features(teacher=tiny_vit(1), student=tiny_vit(2), **options)
        method.require(data)
        made = method.fit(Run(None), data)
        assert all(p.isfinite().all() for p in made.parameters())


def test_a_network_of_transformers_by_its_own_names() -> None:
    transformers = pytest.importorskip("transformers")
    data = pictures(size=8, channels=1)
    config = transformers.ViTConfig(
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        image_size=8,
        patch_size=4,
        num_channels=1,
        num_labels=10,
    )
    torch.manual_seed(0)
    hugging = transformers.ViTForImageClassification(config)
    layer = next(name for name, m in hugging.named_modules() if type(m).__name__ == "ViTLayer")
    teacher = network(Logits(hugging), data)
    method = Features(
        teacher=teacher, student=tiny_vit(2), layers=(layer,), student_layers=("blocks.0",), recipe=RECIPE
    )
    (pair,) = method.found(data)
    assert pair.teacher.shape == (5, 16) and pair.grid == (2, 2) and pair.teacher.place.beside == (0,)
    method.require(data)
    method.fit(Run(None), data)


@pytest.mark.slow
def test_small_and_tiny_vision_transformers_of_timm_at_224() -> None:
    pytest.importorskip("timm", reason="timm is not installed (extra vision)")
    data = pictures(n=2, size=224)
    teacher = fresh("timm:vit_small_patch16_224", data)
    student = fresh("timm:vit_tiny_patch16_224", data, 1)
    run = Run(None)
    recipe = Recipe(epochs=1, batch_size=2, lr=0.01)
    method = Features(teacher=teacher, student=student, loss="hint", recipe=recipe)
    (pair,) = method.found(data)
    assert pair.whole and pair.teacher.shape == (197, 384) and pair.student.shape == (197, 192)
    method.require(data)
    made = method.fit(run, data)
    assert run.updates == 1 and all(p.isfinite().all() for p in made.parameters())
    assert any("a linear map of 192 to 384 channels" in note for note in run.notes)


# -- mistakes ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"weight": -1.0}, "weight"),
        ({"weight": float("nan")}, "weight"),
        ({"pairs": 0}, "pairs"),
        ({"student_layers": ("conv1",)}, "student_layers are named and layers, the teacher's, are not"),
        ({"layers": ("a", "b"), "student_layers": ("a",)}, "layers are 2 and student_layers 1; name as many"),
        ({"layers": ("a",), "pairs": 2}, "pairs 2 has no effect where layers are named"),
    ],
)
def test_impossible_options(options: dict[str, Any], says: str) -> None:
    with pytest.raises(UserError, match=says):
        Features(teacher=nn.Identity(), student=nn.Identity(), **options)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"layers": ("conv3",)}, r"no submodule of TinyNet 'conv3'\. Did you mean 'conv2'\?"),
        ({"layers": ("conv1",), "student_layers": ("block1",)}, r"no submodule of TinyNet 'block1'"),
        ({"layers": ("",)}, "gives no tensor of the images"),
        ({"pairs": 9}, "pairs 9 are more than there are layers to choose from"),
        ({"layers": ("linear",), "loss": "attention"}, "attention compares places"),
        ({"terms": Terms(w_kd=0.0, w_ce=1.0)}, "nothing teaches the student's classifier"),
    ],
)
def test_layers_that_there_are_not_and_other_needs(options: dict[str, Any], says: str) -> None:
    data = tiny_data().hide_labels(0, seed=0) if "terms" in options else tiny_data()
    with pytest.raises(UserError, match=says):
        Features(**roles(), **options).require(data)


class Wrapped(nn.Module):
    """A layer that gives a mapping."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"x": self.conv(x)}


class Mapping(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body, self.unused, self.linear = Wrapped(), nn.Linear(2, 2), nn.Linear(4, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(self.body(x)["x"].mean((2, 3)))


@pytest.mark.parametrize("name", ["body", "unused"])
def test_a_layer_without_a_tensor_is_refused(name: str) -> None:
    method = Features(teacher=Mapping(), student=Mapping(), layers=(name,))
    with pytest.raises(UserError, match=f"'{name}' of (student|teacher) gives no tensor of the images"):
        method.require(tiny_data())


def test_transformers_with_other_patches_are_refused_with_both_numbers() -> None:
    data = pictures(size=16, channels=1)
    small = pictures(size=8, channels=1)
    coarse = fresh("zoo:vit", data)
    module = copy.deepcopy(fresh("zoo:vit", small).module)
    module.stem[0].stride, module.stem[3].stride = (4, 4), (2, 2)  # type: ignore[union-attr]
    method = Features(teacher=coarse, student=network(module, data), layers=("blocks.1",))
    with pytest.raises(UserError, match=r"gives 4 tokens and 'blocks.1' of the teacher 16; choose layers with as many"):
        method.require(data)


def test_the_command_says_it_in_a_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["distill", "--method=features", "--teacher=zoo:digits_teacher", "--student=zoo:convnet_small"]
    words += ["--data=digits", f"--out={tmp_path / 'run'}"]
    assert cli.main([*words, "--layers=block4"]) == 2
    said = capsys.readouterr().err
    assert "There is no submodule of ConvNet 'block4'. Did you mean 'block" in said and not (tmp_path / "run").exists()
    assert cli.main([*words, "--loss=hints"]) == 2
    assert "hint" in capsys.readouterr().err


def test_a_student_whose_layers_have_other_names_is_told_of_the_option() -> None:
    data = pictures()
    method = Features(teacher=fresh("zoo:resnet8", data), student=fresh("zoo:convnet", data), layers=("layer3",))
    with pytest.raises(
        UserError, match=r"no submodule of ConvNet 'layer3'.* other names, give these by --student_layers"
    ):
        method.require(data)
