"""Architectures of our own, and those of timm, torchvision and transformers."""

from __future__ import annotations

import functools
import importlib
import inspect
import io
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from sklearn.datasets import load_digits
from torch import Tensor, fx, nn

from upcycle import zoo
from upcycle.core import models, store
from upcycle.core.errors import UserError
from upcycle.core.models import Model, check_reference, load, resolve, save
from upcycle.zoo.resnet import PadShortcut, ResNet

CIFAR = ["cifar10_resnet20", "cifar10_resnet32", "cifar10_resnet44", "cifar10_resnet56"]


def count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def assert_round_trip(model: Model, directory: Path) -> None:
    """Saved and loaded, a network holds the same bits and answers with the same bits."""
    save(model, directory)
    back = load(directory)
    state, again = model.module.state_dict(), back.module.state_dict()
    assert state.keys() == again.keys()
    assert all(torch.equal(state[key], again[key]) for key in state)
    with torch.no_grad():
        assert torch.equal(model.module.eval()(model.example()), back.module(back.example()))


@pytest.mark.parametrize("name", zoo.names())
def test_every_network_round_trips(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = resolve(f"zoo:{name}", pretrained=False, num_classes=7, input_shape=(1, 12, 10))
    for buffer in model.module.buffers():  # statistics that a forgotten buffer would not restore
        if buffer.is_floating_point():
            buffer.uniform_(0.5, 1.5)
    assert model.module(model.example(3)).shape == (3, 7)
    assert_round_trip(model, tmp_path / "m")


@pytest.mark.parametrize("name", zoo.names())
def test_every_network_can_be_traced_and_learns_in_all_its_weights(name: str) -> None:
    torch.manual_seed(0)
    model = resolve(f"zoo:{name}", pretrained=False)
    traced = fx.symbolic_trace(model.module)
    with torch.no_grad():
        assert torch.equal(traced(model.example()), model.module(model.example()))
    model.module.train()
    model.module(model.example(4)).square().mean().backward()
    for key, weight in model.module.named_parameters():
        assert weight.grad is not None and weight.grad.abs().sum() > 0, key


def test_sizes_are_those_of_the_paper() -> None:
    # Table 6 of He et al. in millions, with the parameter-free option A.
    for depth, millions in ((20, 0.27), (32, 0.46), (44, 0.66), (56, 0.85), (110, 1.7)):
        assert count(ResNet(((depth - 2) // 6,) * 3, 10)) / 1e6 == pytest.approx(
            millions, abs=0.03 if depth == 110 else 0.006
        )
        convolutions = [
            m for m in ResNet(((depth - 2) // 6,) * 3, 10).modules() if isinstance(m, nn.Conv2d | nn.Linear)
        ]
        assert len(convolutions) == depth
    teacher, student = (
        resolve(f"zoo:{n}", pretrained=False, input_shape=(1, 8, 8)).module for n in ("digits_teacher", "convnet_small")
    )
    assert count(student) <= 5000
    assert count(teacher) >= 10 * count(student)


def test_the_shortcut_of_option_a_keeps_every_second_pixel_and_adds_zeros() -> None:
    x = torch.arange(2 * 16 * 5 * 5, dtype=torch.float32).view(2, 16, 5, 5) + 1
    y = PadShortcut(16, 32, 2)(x)
    assert y.shape == (2, 32, 3, 3)
    assert torch.equal(y[:, 8:24], x[:, :, ::2, ::2])
    assert y[:, :8].count_nonzero() == y[:, 24:].count_nonzero() == 0


def test_convolutions_start_as_in_the_paper() -> None:
    torch.manual_seed(0)
    weight = ResNet((1, 1, 1), 10).get_parameter("layer3.0.conv2.weight")
    assert weight.std().item() == pytest.approx((2 / (64 * 9)) ** 0.5, rel=0.02)


def test_networks_without_trained_weights_say_so() -> None:
    with pytest.raises(UserError, match=r"zoo:convnet has no trained weights; give --teacher_weights FILE\."):
        resolve("zoo:convnet")
    with pytest.raises(UserError, match="at least 4 x 4 pixels"):
        resolve("zoo:convnet_small", pretrained=False, input_shape=(1, 3, 9))


@pytest.mark.parametrize("name", [*CIFAR, "cifar10_resnet20_chenyaofo"])
def test_absent_weights_say_what_to_fetch(name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    check_reference(f"zoo:{name}")
    for place in (None, str(tmp_path)):
        if place:
            monkeypatch.setenv("UPCYCLE_DATA", place)
        else:
            monkeypatch.delenv("UPCYCLE_DATA", raising=False)
        with pytest.raises(UserError, match=rf"https://github\.com/.*weights/{name}\.safetensors"):
            resolve(f"zoo:{name}")
    fresh = resolve(f"zoo:{name}", pretrained=False, num_classes=3)
    assert fresh.module(fresh.example()).shape == (2, 3)


def test_the_shipped_teacher_or_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    fresh = resolve("zoo:digits_teacher", pretrained=False)
    monkeypatch.setattr(zoo, "SHIPPED", tmp_path)
    with pytest.raises(UserError, match="missing from this installation"):
        resolve("zoo:digits_teacher")
    store.save_tensors(tmp_path / "digits_teacher.safetensors", fresh.module.state_dict())
    assert resolve("zoo:digits_teacher").lineage is None
    store.write_json(tmp_path / "digits_teacher.lineage.json", {"name": "digits_teacher", "parents": []})
    model = resolve("zoo:digits_teacher")
    assert model.lineage == {"name": "digits_teacher", "parents": []}
    assert (model.licence, model.classes, model.input_shape) == ("Apache-2.0", tuple("0123456789"), (1, 8, 8))
    assert torch.equal(model.module(model.example()), fresh.module(fresh.example()))


def test_the_normalisation_of_digits() -> None:
    images = torch.from_numpy(load_digits().images).mul(255 / 16).round() / 255
    model = resolve("zoo:digits_teacher", pretrained=False)
    assert model.mean[0] == pytest.approx(images.mean().item(), abs=5e-5)
    assert model.std[0] == pytest.approx(images.std(correction=0).item(), abs=5e-5)


@functools.cache
def first_images(folder: Path) -> tuple[Tensor, Tensor]:
    """The first 500 test images of CIFAR-10 in [0, 1] and their labels."""
    rows = next(pq.ParquetFile(folder / "cifar10" / "test.parquet").iter_batches(batch_size=500)).to_pydict()
    pixels = np.stack([np.array(Image.open(io.BytesIO(image["bytes"]))) for image in rows["img"]])
    return torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255, torch.tensor(rows["label"])


@pytest.mark.parametrize("name", [*CIFAR, "cifar10_resnet20_chenyaofo"])
def test_trained_weights_reach_their_accuracy(name: str, cifar10: Path, tmp_path: Path) -> None:
    model = resolve(f"zoo:{name}")
    images, labels = first_images(cifar10)
    images = (images - torch.tensor(model.mean).view(3, 1, 1)) / torch.tensor(model.std).view(3, 1, 1)
    with torch.no_grad():
        answers = torch.cat([model.module(part).argmax(1) for part in images.split(100)])
    assert (answers == labels).float().mean() > 0.88
    assert model.classes[3] == "cat" and model.licence.startswith("BSD")
    if name == CIFAR[0]:
        assert_round_trip(model, tmp_path / "m")


def test_trained_weights_fit_only_their_own_images_and_classes(cifar10: Path) -> None:
    with pytest.raises(UserError, match="trained on images with 3 channels, not 1"):
        resolve("zoo:cifar10_resnet20", input_shape=(1, 32, 32))
    with pytest.raises(UserError, match="10 outputs, not 100"):
        resolve("zoo:cifar10_resnet20", num_classes=100)
    file = cifar10 / "weights" / "cifar10_resnet20.safetensors"
    filled = resolve("zoo:resnet20", weights=file, classes=zoo.CIFAR10)
    assert all(torch.equal(filled.module.state_dict()[k], t) for k, t in load_file(file).items())


# -- others' networks ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["timm:test_resnet", "timm:test_vit"])
def test_timm(name: str, tmp_path: Path) -> None:
    pytest.importorskip("timm")
    torch.manual_seed(0)
    check_reference(name)
    model = resolve(name, pretrained=False, num_classes=7, input_shape=(1, 64, 64))
    assert model.module(model.example()).shape == (2, 7)
    assert len(model.mean) == len(model.std) == 1
    assert_round_trip(model, tmp_path / "m")


def test_torchvision(tmp_path: Path) -> None:
    pytest.importorskip("torchvision")
    torch.manual_seed(0)
    model = resolve("torchvision:shufflenet_v2_x0_5", pretrained=False, num_classes=7, input_shape=(3, 32, 32))
    assert model.module(model.example()).shape == (2, 7)
    assert model.mean == (0.485, 0.456, 0.406)
    assert_round_trip(model, tmp_path / "m")
    with pytest.raises(UserError, match="takes 3 input channels, not 1"):
        resolve("torchvision:resnet18", pretrained=False, input_shape=(1, 32, 32))


def test_torchvision_networks_with_side_outputs_answer_with_logits_in_training_too() -> None:
    pytest.importorskip("torchvision")
    model = resolve("torchvision:googlenet", pretrained=False, num_classes=3, input_shape=(3, 64, 64))
    assert model.module.train()(model.example()).shape == (2, 3)


@pytest.mark.parametrize(
    ("reference", "says"),
    [
        ("timm:resnte18", "resnet18"),
        ("timm:resnet18.a9_in1k", r"resnet18\.a1_in1k"),
        ("torchvision:resnte18", "resnet18"),
        ("torchvision:fasterrcnn_resnet50_fpn", "no torchvision model"),
    ],
)
def test_names_that_the_libraries_do_not_have(reference: str, says: str) -> None:
    pytest.importorskip(reference.partition(":")[0])
    with pytest.raises(UserError, match=says):
        check_reference(reference)


@pytest.mark.parametrize("reference", ["torchvision:resnet18", "timm:resnet18"])
@pytest.mark.parametrize("broken", [True, False])
def test_a_broken_torchvision_is_explained(
    reference: str, broken: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    pytest.importorskip("timm")
    for name in [n for n in sys.modules if n.split(".")[0] == "torchvision"]:
        monkeypatch.delitem(sys.modules, name)
    if broken:
        (tmp_path / "torchvision").mkdir()
        (tmp_path / "torchvision" / "__init__.py").write_text(
            "raise RuntimeError('operator torchvision::nms does not exist')"
        )
        monkeypatch.syspath_prepend(tmp_path)
    else:
        monkeypatch.setitem(sys.modules, "torchvision", None)
    with pytest.raises(UserError) as caught:
        resolve(reference, pretrained=False)
    assert "pip install --upgrade torch torchvision" in str(caught.value)
    assert torch.__version__ in str(caught.value) and "\n" not in str(caught.value)


def test_a_missing_library_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(models.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r'pip install "upcycle\[vision\]"'):
        check_reference("timm:resnet18")
    with pytest.raises(UserError, match=r'pip install "upcycle\[hub\]"'):
        check_reference("hf:org/name")


@pytest.fixture
def vit(tmp_path: Path) -> Path:
    """A tiny vision transformer as transformers saves it."""
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.ViTConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32, image_size=16,
        patch_size=4,
        id2label={0: "cat", 1: "dog", 2: "eel"}, label2id={"cat": 0, "dog": 1, "eel": 2},
    )  # fmt: skip
    transformers.ViTForImageClassification(config).save_pretrained(tmp_path / "vit")
    store.write_json(tmp_path / "vit" / "preprocessor_config.json", {
        "image_processor_type": "ViTImageProcessor", "do_normalize": True, "do_resize": True,
        "image_mean": [0.5, 0.4, 0.3], "image_std": [0.2, 0.2, 0.2], "size": {"height": 16, "width": 16},
    })  # fmt: skip
    (tmp_path / "vit" / "README.md").write_text("---\nlicense: mit\n---\n# tiny\n")
    return tmp_path / "vit"


def test_transformers(vit: Path, tmp_path: Path) -> None:
    import transformers

    model = resolve(f"hf:{vit}")
    assert (model.classes, model.input_shape) == (("cat", "dog", "eel"), (3, 16, 16))
    assert (model.mean, model.std, model.licence) == ((0.5, 0.4, 0.3), (0.2, 0.2, 0.2), "mit")
    original = transformers.ViTForImageClassification.from_pretrained(vit).eval()
    with torch.no_grad():
        assert torch.equal(model.module(model.example()), original(model.example()).logits)
    fresh = resolve(f"hf:{vit}", pretrained=False, num_classes=5, input_shape=(1, 8, 8))
    assert fresh.module(fresh.example()).shape == (2, 5)
    (vit / "config.json").unlink()  # the saved model needs neither hub nor directory
    assert_round_trip(model, tmp_path / "m")


def test_transformers_without_a_network(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    hub = pytest.importorskip("huggingface_hub")
    pytest.importorskip("transformers")
    monkeypatch.setattr(hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(hub.constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(UserError, match="hf:upcycle/none-such cannot be built"):
        resolve("hf:upcycle/none-such")
    with pytest.raises(UserError, match=r"no config\.json"):
        check_reference(f"hf:{tmp_path}")


def test_builders_answer_to_the_same_call() -> None:
    for module in models.BUILDERS.values():
        signature = inspect.signature(importlib.import_module(module).build)
        assert list(signature.parameters)[:4] == ["name", "pretrained", "num_classes", "input_shape"]
