"""Networks written for deployment."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import upcycle.measure.export as export_module
from upcycle.core import store
from upcycle.core.errors import UserError
from upcycle.core.models import Model
from upcycle.core.references import resolve
from upcycle.measure.export import write_export

SHAPE = (1, 8, 8)


def small(seed: int = 0) -> Model:
    torch.manual_seed(seed)
    return resolve("zoo:convnet_small", pretrained=False, input_shape=SHAPE)


@pytest.mark.parametrize(("format", "suffix"), [("onnx", ".onnx"), ("torch", ".pt2")])
def test_exports_compute_the_same_for_any_batch(format: str, suffix: str, tmp_path: Path) -> None:
    if format == "onnx":
        onnxruntime = pytest.importorskip("onnxruntime")
        pytest.importorskip("onnxscript")
    model, file = small(1), tmp_path / f"net{suffix}"
    model.module.train()
    error = write_export(model, file, format)
    assert 0 <= error <= 1e-4
    assert model.module.training
    assert sorted(p.name for p in tmp_path.iterdir()) == [file.name, f"{file.name}.json"]
    facts = store.read_json(tmp_path / f"{file.name}.json")
    assert facts["error"] == error and facts["input_shape"] == list(SHAPE) and len(facts["classes"]) == 10
    x = model.example(5)
    if format == "onnx":
        answer = torch.from_numpy(onnxruntime.InferenceSession(str(file)).run(None, {"images": x.numpy()})[0])
    else:
        answer = torch.export.load(file).module()(x)
    with torch.no_grad():
        expected = model.module.eval()(x)
    torch.testing.assert_close(answer, expected, rtol=1e-4, atol=1e-5)


def test_an_export_that_differs_is_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, honest = small(1), export_module._to_torch

    def wrong(network: nn.Module, *rest: Any) -> Tensor:
        return honest(network, *rest) * (1 + 3e-4)

    monkeypatch.setattr(export_module, "_to_torch", wrong)
    with pytest.raises(UserError, match="differs from the original"):
        write_export(model, tmp_path / "net.pt2", "torch")
    assert list(tmp_path.iterdir()) == []


def test_export_mistakes_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="Did you mean 'onnx'"):
        write_export(small(), tmp_path / "net.onnx", "onx")
    with pytest.raises(UserError, match=r"ends in \.pt2"):
        write_export(small(), tmp_path / "net.pth", "torch")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r'pip install "upcycle\[onnx\]"'):
        write_export(small(), tmp_path / "net.onnx", "onnx")
    monkeypatch.undo()

    class Untraceable(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            return images.flatten(1)[:, :3] * (1.0 if images.sum().item() < 1e9 else 2.0)

    with pytest.raises(UserError, match="cannot be exported"):
        write_export(resolve(Untraceable(), input_shape=SHAPE), tmp_path / "net.pt2", "torch")
    assert list(tmp_path.iterdir()) == []


class Windows(nn.Module):
    """Attention within the four quarters of an image, a mask for each quarter."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.head = nn.Linear(4, 12), nn.Linear(4, 3)
        self.mask = nn.Parameter(torch.randn(4, 2, 4, 4))

    def forward(self, images: Tensor) -> Tensor:
        b = images.shape[0]
        x = images.reshape(b * 4, 4, 4)
        q, k, v = (t.view(b * 4, 4, 2, 2).transpose(1, 2) for t in self.qkv(x).chunk(3, -1))
        mask = self.mask.expand(b, -1, -1, -1, -1).reshape(b * 4, 2, 4, 4)
        x = F.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2)
        return self.head(x.reshape(b, 16, 4).mean(1))


@pytest.mark.parametrize(("format", "suffix"), [("onnx", ".onnx"), ("torch", ".pt2")])
def test_windowed_attention_is_exported(format: str, suffix: str, tmp_path: Path) -> None:
    if format == "onnx":
        pytest.importorskip("onnxruntime")
        pytest.importorskip("onnxscript")
    torch.manual_seed(0)
    assert write_export(resolve(Windows(), input_shape=SHAPE), tmp_path / f"net{suffix}", format) <= 1e-4


def test_the_sentence_of_a_failed_export_says_what_went_wrong(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(*_: Any) -> Tensor:
        try:
            raise ValueError("no kernel for \x1b[96maten::odd\x1b[0m\nmore of it")
        except ValueError as error:
            raise RuntimeError("Step 2 of 3 failed. Next steps:") from error

    monkeypatch.setattr(export_module, "_to_torch", failing)
    with pytest.raises(UserError, match=r"exported to net\.pt2: ValueError: no kernel for aten::odd\.$"):
        write_export(small(), tmp_path / "net.pt2", "torch")
