"""Networks of awkward kinds: each is taken as it can be, or refused by its name before anything is written."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import upcycle
from tests import awkward
from tests.awkward import AUXILIARY, CLASSES, DTYPES, SHAPE, Body
from upcycle.core.devices import place, plain
from upcycle.core.errors import UserError
from upcycle.core.evaluate import predict_logits
from upcycle.core.frozen import frozen
from upcycle.core.models import Model
from upcycle.core.outputs import Contiguous, layout_of, own
from upcycle.core.probe import training_problems
from upcycle.core.recipe import Recipe
from upcycle.core.references import resolve
from upcycle.core.saved import load, save
from upcycle.data import Images, ImageSplit
from upcycle.measure.export import write_export


def taken(module: nn.Module) -> Model:
    return resolve(module, input_shape=SHAPE)


def images(n: int = 24) -> Images:
    """Noise with labels, as a data set."""
    g = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (n, 32, 32, 3), generator=g, dtype=torch.uint8)
    split = ImageSplit(
        images=pixels, labels=torch.arange(n) % CLASSES, ids=torch.arange(n), mean=(0.5,) * 3, std=(0.25,) * 3
    )
    return Images(name="noise", classes=tuple(map(str, range(CLASSES))), train=split, validation=split, test=split)


def distilled(student: nn.Module, teacher: nn.Module, out: Path, batch_size: int = 8, **options: Any) -> upcycle.Result:
    return upcycle.distill(
        student=student,
        teacher=teacher,
        data=images(),
        out=out,
        quiet=True,
        alone=False,
        recipe=Recipe(epochs=1, batch_size=batch_size, lr=1e-3),
        **options,
    )


def state_of(module: nn.Module) -> dict[str, Tensor]:
    return {key: t.clone() for key, t in module.state_dict().items()}


def equal(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(a[k].dtype == b[k].dtype and torch.equal(a[k], b[k]) for k in a)


# -- refused ------------------------------------------------------------------------------------------------------

REFUSED: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "torchscript": (awkward.scripted, "is TorchScript"),
    "lazy": (awkward.lazy, r"lazy layers that have not seen an image yet \(0\.weight\); call it with one batch"),
    "quantised": (awkward.quantised, r"is quantised \(Linear\)"),
    "meta": (awkward.meta, r"no weights, only their shapes \(conv1\.weight is on the meta device\)"),
    "exported": (awkward.exported, "is a program of torch.export"),
    "own statistics": (awkward.OwnStatistics, "where other images are in the batch.*BatchNorm without running"),
    "always dropping": (awkward.AlwaysDropping, "another answer when it is asked again.*dropout"),
    "pairs": (awkward.Pairs, "batches of two images and not of three"),
    "half in its code": (lambda: awkward.Hardcoded().half(), "answers in float16 only"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_cannot_be_taken_is_refused_by_its_name(kind: str, tmp_path: Path) -> None:
    make, says = REFUSED[kind]
    for roles in ((make(), Body()), (Body(), make())):
        with pytest.raises(UserError, match=says) as caught:
            distilled(*roles, tmp_path / "run")
        assert "\n" not in str(caught.value)
        assert not (tmp_path / "run" / "config.yaml").exists()


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (awkward.fixed, r"no weights that train .*requires_grad_\(True\)"),
        (awkward.NoGradient, "no gradient passes its forward"),
        (
            lambda: awkward.Auxiliary(lambda a, b: {"a": a[:, :3], "b": b[:, :3]}),
            "in training mode two images give a dict",
        ),
    ],
)
def test_what_cannot_be_trained_serves_as_teacher_only(
    make: Callable[[], nn.Module], says: str, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=says):
        distilled(make(), Body(), tmp_path / "student")
    assert not (tmp_path / "student" / "config.yaml").exists()
    assert distilled(Body(), make(), tmp_path / "teacher").rows


def test_two_maps_of_one_pixel_are_no_batch_for_batchnorm(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"maps of one pixel by BatchNorm.* take a larger batch_size than 2"):
        distilled(awkward.Narrow(), Body(), tmp_path / "two", batch_size=2)
    assert distilled(awkward.Narrow(), Body(), tmp_path / "four", batch_size=4).rows


def test_what_trains_in_float32_only_is_told_the_option(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"cannot be trained in bf16, though in float32: give --precision 32-true"):
        distilled(awkward.Float32Only(), Body(), tmp_path / "mixed", precision="bf16-mixed")
    assert distilled(awkward.Float32Only(), awkward.Float32Only(), tmp_path / "whole", precision="32-true").rows


# -- taken --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [*AUXILIARY, "view", "silent", "compiled", *DTYPES])
def test_what_can_be_taken_trains_teaches_and_reloads(kind: str, tmp_path: Path) -> None:
    make = {**AUXILIARY, **DTYPES, "view": awkward.Viewing, "silent": awkward.Silent, "compiled": awkward.compiled}[
        kind
    ]
    result = distilled(make(), make(), tmp_path / "run")
    back = own(make()).float()
    load(tmp_path / "run", into=back)  # the weights by the names that its author gave them
    again, x = taken(back), images().test.batch(torch.arange(24), device=torch.device("cpu")).images
    assert torch.equal(again.module.eval()(x), result.model.module.eval()(x))
    notes = {"view": 1, "silent": 0, "compiled": 0}.get(kind, 1)
    assert len(result.model.notes) == notes


@pytest.mark.parametrize(
    ("name", "side"), [("googlenet", 64), ("inception_v3", 299)], ids=("googlenet", "inception_v3")
)
def test_published_networks_with_heads_for_training(name: str, side: int) -> None:
    models = pytest.importorskip("torchvision.models")
    module = getattr(models, name)(weights=None, num_classes=CLASSES, aux_logits=True, init_weights=False)
    model = resolve(module, input_shape=(3, side, side))
    assert type(module.train()(model.example(2))).__name__ in ("GoogLeNetOutputs", "InceptionOutputs")
    assert model.module.train()(model.example(2)).shape == (2, CLASSES)
    assert any("only number 1, which is its answer in evaluation mode" in note for note in model.notes), model.notes


@pytest.mark.parametrize("make", [AUXILIARY["other dict"], awkward.Viewing, awkward.Silent, DTYPES["float16"]])
def test_what_was_resolved_goes_into_a_method_without_a_verb(make: Callable[[], nn.Module]) -> None:
    method = upcycle.KD(teacher=taken(make()), student=taken(make()), recipe=Recipe(epochs=1, batch_size=8, lr=1e-3))
    data, run = images(), upcycle.Run(None, quiet=True)
    method.begin(run, data)
    assert method.fit(run, data)(torch.zeros(2, *SHAPE)).shape == (2, CLASSES)


@pytest.mark.parametrize("kind", AUXILIARY)
def test_the_answer_that_is_trained_with_is_that_of_evaluation(kind: str) -> None:
    module = AUXILIARY[kind]()
    model = taken(module)
    for m in model.module.modules():
        m.training = not any(m.children()) and not isinstance(m, nn.BatchNorm2d)
    model.module.training = module.training = True
    x = model.example(4)
    for m in module.modules():
        if isinstance(m, nn.BatchNorm2d):
            m.eval()
    assert torch.equal(model.module(x), module.linear(module.features(x).mean((2, 3))))  # type: ignore[operator]


def test_a_view_runs_in_contiguous_memory_everywhere(tmp_path: Path) -> None:
    module = awkward.Viewing()
    model = taken(module)
    x = model.example(6).contiguous(memory_format=torch.channels_last)
    expected = module.eval()(x.contiguous())
    with pytest.raises(RuntimeError, match="view size"):
        module(x)
    assert isinstance(model.module, Contiguous) and model.module.network is module
    assert torch.equal(model.module(x), expected)
    assert torch.allclose(frozen(model.module, x, precision="32-true")(x), expected, atol=1e-5)
    assert torch.equal(
        predict_logits(model.module, images().test)[:6].argmax(1),
        predict_logits(model.module, images().test.subset(torch.arange(6))).argmax(1),
    )
    placed = copy.deepcopy(model.module).train()
    place(placed, torch.device("cpu"), torch.float32, "32-true", 1)
    placed(x).sum().backward()
    assert layout_of(plain(placed, torch.float32)) == torch.contiguous_format
    assert write_export(model, tmp_path / "net.pt2", "torch") < 1e-5


def test_compiled_networks_and_those_on_several_devices_are_unwrapped() -> None:
    module = awkward.compiled()
    assert taken(module).module is module._orig_mod
    assert taken(nn.DataParallel(inner := Body())).module is inner


def test_a_product_made_of_a_wrapped_network_reloads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_networks_3c.py").write_text(
        "from tests.awkward import AUXILIARY\ndef auxiliary():\n    return AUXILIARY['tuple']()\n"
    )
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    model = resolve("my_networks_3c:auxiliary", input_shape=SHAPE)
    tied = resolve(model, classes=tuple("abcdefghij"))
    made = upcycle.assemble([model, tied], out=tmp_path / "run", quiet=True).model
    back = resolve(tmp_path / "run", trust=("my_networks_3c",))
    assert torch.equal(back.module(made.example()), made.module(made.example()))


# -- nothing is left behind ---------------------------------------------------------------------------------------


def test_a_network_and_randomness_are_as_before() -> None:
    module = Body().train()
    module.bn2.eval()
    module.to(memory_format=torch.channels_last)
    state, modes = state_of(module), [m.training for m in module.modules()]
    strides = [p.stride() for p in module.parameters()]
    before = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()
    model = taken(module)
    assert training_problems(model, batch_size=4) == []
    assert model.module is module and equal(state, module.state_dict())
    assert modes == [m.training for m in module.modules()]
    assert strides == [p.stride() for p in module.parameters()]
    assert all(p.grad is None for p in module.parameters())
    after = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()
    assert torch.equal(before[0], after[0]) and before[1:] == after[1:]


def test_a_network_of_another_number_format_is_copied_to_float32() -> None:
    module = Body().half()
    model = taken(module)
    assert {p.dtype for p in module.parameters()} == {torch.float16}
    assert {p.dtype for p in model.module.parameters()} == {torch.float32}
    assert model.notes == ("Body comes in float16 and is used in float32.",)
    assert taken(model.module).notes == ()


# -- number formats of saved models -------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", DTYPES)
def test_a_network_is_measured_in_its_own_number_format(kind: str) -> None:
    assert predict_logits(DTYPES[kind](), images().test).isfinite().all()


@pytest.mark.parametrize("kind", [*DTYPES, "mixed"])
def test_saved_number_formats_come_back(kind: str, tmp_path: Path) -> None:
    module: Any = DTYPES[kind]() if kind in DTYPES else Body()
    if kind == "mixed":
        module.conv1.bfloat16()
        module.linear.double()
        module.linear.weight.data.fill_(1 / 3)
    model = Model(module=module, input_shape=SHAPE, mean=(0.0,) * 3, std=(1.0,) * 3, classes=tuple("abcdefghij"))
    save(model, tmp_path / "m")
    assert equal(state_of(load(tmp_path / "m", into=Body()).module), state_of(module))
    assert equal(state_of(load(tmp_path / "m", into=Body().half()).module), state_of(module))
