"""Architectures of our own, and those of timm, torchvision and transformers."""

from __future__ import annotations

import functools
import importlib
import inspect
import io
import itertools
import math
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import load_file
from scripts.train_cifar10_zoo import RECIPES
from sklearn.datasets import load_digits
from torch import Tensor, fx, nn

from upcycle import zoo
from upcycle.core import building, store
from upcycle.core.cut import cut, trace
from upcycle.core.errors import UserError
from upcycle.core.lineage import node
from upcycle.core.models import Model
from upcycle.core.references import check_reference, resolve
from upcycle.core.saved import load, save
from upcycle.measure import cost
from upcycle.zoo import published
from upcycle.zoo.densenet import DenseLayer
from upcycle.zoo.mlperftiny import TinyResNet8
from upcycle.zoo.mobilenetv2 import InvertedResidual
from upcycle.zoo.resnet import PadShortcut, ResNet
from upcycle.zoo.vit import Attention, Tokens

# Accuracy on the whole test set, and the licence.
PUBLISHED = {
    "cifar10_resnet20": (0.9173, "BSD-2-Clause"),
    "cifar10_resnet32": (0.9262, "BSD-2-Clause"),
    "cifar10_resnet44": (0.9311, "BSD-2-Clause"),
    "cifar10_resnet56": (0.9339, "BSD-2-Clause"),
    "cifar10_resnet20_chenyaofo": (0.9262, "BSD-3-Clause"),
    "cifar10_resnet20_robust_pgd": (0.8419, "MIT"),
    "cifar10_resnet8_mlperftiny": (0.8720, "Apache-2.0"),
    "cifar10_shufflenetv2_x0_5": (0.9064, "BSD-3-Clause"),
    "cifar10_lenet_captum": (0.5908, "BSD-3-Clause"),
}
SMALL = ["vgg", "mobilenetv2", "densenet", "vit"]
OURS = [f"cifar10_{name}" for name in SMALL]
LATER = ["cifar10_emo", "cifar10_shunted", "cifar10_caformer", "cifar10_poolformer"]


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


@pytest.mark.parametrize("name", zoo.ENTRIES)
def test_every_network_round_trips(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    sides = (32, 64) if "shunted" in name else (20, 16) if "vit_plain" in name else (20, 18)
    model = resolve(f"zoo:{name}", pretrained=False, num_classes=7, input_shape=(1, *sides))
    for buffer in model.module.buffers():  # statistics that a forgotten buffer would not restore
        if buffer.is_floating_point():
            buffer.uniform_(0.5, 1.5)
    assert model.module(model.example(3)).shape == (3, 7)
    assert_round_trip(model, tmp_path / "m")


@pytest.mark.parametrize("name", zoo.ENTRIES)
def test_every_network_can_be_traced_and_learns_in_all_its_weights(name: str) -> None:
    torch.manual_seed(0)
    c, *sides = zoo.ENTRIES[name].shape
    small = (c, *(min(side, 64) for side in sides))
    model = resolve(f"zoo:{name}", pretrained=False, input_shape=small)
    traced = fx.GraphModule(model.module, trace(model.module)[1])
    with torch.no_grad():
        for batch in (2, 3):
            assert torch.equal(traced(model.example(batch)), model.module(model.example(batch)))
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


@pytest.mark.parametrize("name", SMALL)
def test_the_networks_that_are_trained_here_are_small(name: str) -> None:
    size = cost.count(resolve(f"zoo:{name}", pretrained=False).module, (3, 32, 32))
    assert size.parameters < 400_000
    assert size.macs < 26e6


@pytest.mark.parametrize(
    ("name", "places"),
    [
        ("vgg", ["features.2", "features.7"]),
        ("mobilenetv2", ["stem", "stages.1.0", "stages.2"]),
        ("densenet", ["features.0.0", "features.1", "features.3"]),
        ("vit", ["stem", "tokens", "blocks.1"]),
        ("vit_plain", ["stem", "tokens", "blocks.1"]),
        ("cifar10_shufflenetv2_x0_5", ["conv1", "stage2.1", "stage3"]),
        ("cifar10_lenet_captum", ["pool1", "pool2"]),
    ],
)
def test_cut_in_pieces_they_compute_the_same(name: str, places: list[str]) -> None:
    torch.manual_seed(0)
    model = resolve(f"zoo:{name}", pretrained=False)
    x = model.example()
    with torch.no_grad():
        y = model.module(x)
        for piece in cut(model.module, places):
            x = piece(x)
    assert torch.equal(x, y)


def test_the_padding_of_resnet8_is_that_of_tensorflow() -> None:
    for height, width in itertools.product((32, 31, 30, 29), repeat=2):
        net = TinyResNet8((3, height, width), 10)
        sides = [width, height]
        for pad in (net.pad3, net.pad6):
            expected = []
            for side in sides:  # tf.nn.convolution, "SAME": as many windows as ceil(side / stride), centred to the left
                total = max((math.ceil(side / 2) - 1) * 2 + 3 - side, 0)
                expected += [total // 2, total - total // 2]
            assert pad.padding == tuple(expected)
            sides = [math.ceil(side / 2) for side in sides]


@pytest.mark.parametrize("side", [7, 8])
def test_an_inverted_residual_has_its_stride_in_the_depthwise_convolution(side: int) -> None:
    torch.manual_seed(0)
    block = InvertedResidual(4, 6, 2, 3).eval()
    x = torch.randn(2, 12, side, side)
    convolution, _, norm, relu = block.depthwise
    expected = relu(norm(F.conv2d(x, convolution.weight, stride=2, padding=1, groups=12)))
    torch.testing.assert_close(block.depthwise(x), expected)
    assert not block.residual
    same = InvertedResidual(4, 4, 1, 3).eval()
    nn.init.zeros_(same.project[0].weight)
    assert torch.equal(same(x[:, :4]), x[:, :4])


def test_a_dense_layer_keeps_what_it_was_given() -> None:
    x = torch.randn(2, 5, 4, 4)
    y = DenseLayer(5, 12)(x)
    assert y.shape == (2, 17, 4, 4)
    assert torch.equal(y[:, :5], x)


def test_attention_is_that_of_pytorch_and_positions_tell_tokens_apart() -> None:
    torch.manual_seed(0)
    attention, x = Attention(12, 3), torch.randn(2, 5, 12)
    theirs = nn.MultiheadAttention(12, 3, batch_first=True)
    theirs.load_state_dict(
        {
            "in_proj_weight": attention.qkv.weight,
            "in_proj_bias": torch.zeros(36),
            "out_proj.weight": attention.out.weight,
            "out_proj.bias": attention.out.bias,
        }
    )
    torch.testing.assert_close(attention(x), theirs(x, x, x)[0])
    order = torch.randperm(5)
    torch.testing.assert_close(attention(x[:, order]), attention(x)[:, order])
    tokens = Tokens(6, 4)
    x = torch.randn(2, 4, 2, 3)
    assert torch.equal(tokens(x)[1, 4], x[1, :, 1, 1] + tokens.position[0, 4])
    assert len(tokens.position[0].unique(dim=0)) == 6


def test_networks_without_trained_weights_say_so() -> None:
    with pytest.raises(UserError, match=r"zoo:convnet has no trained weights; name a file as its weights\."):
        resolve("zoo:convnet")


@pytest.mark.parametrize(
    ("name", "side"), [("convnet_small", 4), ("vgg", 8), ("densenet", 4), ("cifar10_lenet_captum", 16)]
)
def test_the_smallest_images(name: str, side: int) -> None:
    model = resolve(f"zoo:{name}", pretrained=False, input_shape=(1, side, side))
    assert model.module(model.example()).shape == (2, 10)
    with pytest.raises(UserError, match=f"at least {side} x {side} pixels, not {side - 1} x {side}"):
        resolve(f"zoo:{name}", pretrained=False, input_shape=(1, side - 1, side))


@pytest.mark.parametrize("name", PUBLISHED)
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


def test_our_own_weights_are_found_in_the_package_and_with_the_data(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert [name for name, entry in zoo.ENTRIES.items() if entry.trained and entry.trained.script] == [
        *OURS,
        "cifar10_wrn40_2",
        *LATER,
    ]
    assert list(RECIPES) == [*SMALL, "wrn40_2", *(name.removeprefix("cifar10_") for name in LATER)]
    monkeypatch.setattr(published, "SHIPPED", tmp_path / "package")
    monkeypatch.setenv("UPCYCLE_DATA", str(tmp_path / "data"))
    name = "cifar10_vgg"
    with pytest.raises(UserError, match=rf"python scripts/train_cifar10_zoo\.py vgg.*data/weights/{name}\.safetensors"):
        resolve(f"zoo:{name}")
    for number, place in enumerate((tmp_path / "data" / "weights", tmp_path / "package"), 1):
        fresh = resolve(f"zoo:{name}", pretrained=False)
        store.save_tensors(place / f"{name}.safetensors", fresh.module.state_dict())
        known = node(name=name, digest=str(number) * 64)
        store.write_json(place / f"{name}.lineage.json", known)
        model = resolve(f"zoo:{name}")  # the package comes first
        assert model.lineage == known
        assert (model.licence, model.classes) == ("BSD-2-Clause", zoo.CIFAR10)
        assert torch.equal(model.module(model.example()), fresh.module(fresh.example()))


def test_the_shipped_teacher_or_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    fresh = resolve("zoo:digits_teacher", pretrained=False)
    monkeypatch.setattr(published, "SHIPPED", tmp_path)
    with pytest.raises(UserError, match="missing from this installation"):
        resolve("zoo:digits_teacher")
    store.save_tensors(tmp_path / "digits_teacher.safetensors", fresh.module.state_dict())
    assert resolve("zoo:digits_teacher").lineage is None
    known = node(name="digits_teacher", digest="0" * 64)
    store.write_json(tmp_path / "digits_teacher.lineage.json", known)
    model = resolve("zoo:digits_teacher")
    assert model.lineage == known
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


def assert_accuracy(model: Model, folder: Path, whole: float) -> None:
    """On 500 images within three standard errors of what it is on all."""
    images, labels = first_images(folder)
    images = (images - torch.tensor(model.mean).view(3, 1, 1)) / torch.tensor(model.std).view(3, 1, 1)
    with torch.no_grad():
        answers = torch.cat([model.module(part).argmax(1) for part in images.split(100)])
    accuracy = (answers == labels).float().mean().item()
    assert accuracy == pytest.approx(whole, abs=3 * math.sqrt(whole * (1 - whole) / len(labels)))


@pytest.mark.parametrize("name", PUBLISHED)
def test_trained_weights_reach_their_accuracy(name: str, cifar10: Path, tmp_path: Path) -> None:
    model, (accuracy, licence) = resolve(f"zoo:{name}"), PUBLISHED[name]
    assert_accuracy(model, cifar10, accuracy)
    assert model.classes[3] == "cat" and model.licence == licence
    assert_round_trip(model, tmp_path / "m")


@pytest.mark.parametrize("name", [*OURS, *LATER])
def test_weights_that_are_trained_here_are_what_their_lineage_says(name: str, cifar10: Path) -> None:
    if not (published.SHIPPED / f"{name}.safetensors").is_file():
        pytest.skip(f"{name} is not trained yet")
    model = resolve(f"zoo:{name}")
    lineage = model.lineage
    assert lineage is not None
    assert_accuracy(model, cifar10, lineage["metrics"]["test accuracy"][0])
    assert lineage["name"] == name
    assert lineage["digest"] == store.tensor_digest(model.module.state_dict())
    assert lineage["licence"]["id"] == model.licence
    assert [parent["name"] for parent in lineage["parents"]] == ["cifar10_resnet56"]


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


@pytest.mark.parametrize("reference", ["torchvision:resnet18", "timm:resnet18", "zoo:cifar10_shufflenetv2_x0_5"])
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
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
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
    with pytest.raises(UserError, match="hf:upcycle/none-such is not kept on this machine, and HF_HUB_OFFLINE is set"):
        resolve("hf:upcycle/none-such")
    with pytest.raises(UserError, match=r"no config\.json"):
        check_reference(f"hf:{tmp_path}")


def test_builders_answer_to_the_same_call() -> None:
    for module in building.BUILDERS.values():
        signature = inspect.signature(importlib.import_module(module).build)
        assert list(signature.parameters)[:4] == ["name", "pretrained", "num_classes", "input_shape"]


@pytest.mark.parametrize("reference", ["zoo:emo_tiny", "zoo:shunted_tiny"])
def test_networks_with_attention_learn_in_bf16(reference: str) -> None:
    torch.manual_seed(0)
    net = resolve(reference, num_classes=10, input_shape=(3, 32, 32), pretrained=False).module.train()
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-3)
    x, y = torch.randn(16, 3, 32, 32), torch.randint(10, (16,))
    losses = []
    for _ in range(8):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = F.cross_entropy(net(x).float(), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] - 0.5
