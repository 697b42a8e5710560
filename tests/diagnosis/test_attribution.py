"""explain: every method on small networks, equal to Captum where Captum has it, and nothing left behind."""

import copy
import inspect

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from upcycle.core.errors import UserError
from upcycle.core.models import Model
from upcycle.diagnosis.attribution import EXPLAINERS, Attribution, explain
from upcycle.diagnosis.attribution.checks import checked
from upcycle.diagnosis.attribution.faithfulness import rank_correlation
from upcycle.diagnosis.attribution.gradients import gradient, guided_gradient
from upcycle.diagnosis.attribution.perturbation import perturbed, pyramid, upsampled
from upcycle.zoo.convnet import ConvNet
from upcycle.zoo.vit import ViT

QUICK = {
    "learned": {"iterations": 2},
    "rise": {"masks": 20},
    "extremal": {"iterations": 3},
    "smoothgrad": {"samples": 4},
}
OWN = [name for name in EXPLAINERS if name not in ("lrp", "deeplift")]


def _x(b: int = 2, c: int = 3, side: int = 12) -> Tensor:
    return torch.randn(b, c, side, side, generator=torch.Generator().manual_seed(0))


def _plain() -> nn.Module:
    """Only what all of Captum understands: modules, each used once, with a bias and BatchNorm that do something."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(), nn.MaxPool2d(2),
                        nn.Conv2d(6, 8, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(288, 4))  # fmt: skip
    net[1].running_mean.normal_()
    net[1].running_var.uniform_(0.5, 2)
    return net.eval()


def _conv() -> nn.Module:
    torch.manual_seed(0)
    return ConvNet((6, 8, 8), 4, 3).eval()


def _vit() -> nn.Module:
    torch.manual_seed(0)
    return ViT((3, 12, 12), 4, width=12, depth=1, heads=2).eval()


@pytest.mark.parametrize("method", OWN)
def test_every_method_gives_maps_in_0_1_and_leaves_the_network_as_it_was(method: str) -> None:
    net = _conv().train()
    next(net.parameters()).requires_grad_(False)
    net.block1[2].register_forward_hook(lambda m, a, o: None)

    def marks() -> list[object]:
        hooks = [(m, m.training, len(m._forward_hooks), len(m._forward_pre_hooks), len(m._backward_hooks))
                 for m in net.modules()]  # fmt: skip
        return [*hooks, *((p.requires_grad, id(p), p.grad) for p in net.parameters())]

    state, before, x = copy.deepcopy(net.state_dict()), marks(), _x()
    given = x.clone()
    with torch.inference_mode():
        found = explain(net, x, method=method, **QUICK.get(method, {}))
    assert isinstance(found, Attribution) and found.method == method
    assert found.maps.shape == found.signed.shape == (2, 12, 12) and found.maps.dtype == torch.float32
    assert found.maps.min() >= 0 and found.maps.amax((1, 2)).tolist() == [1, 1]
    z = net.eval()(x)
    net.train()
    assert torch.equal(found.target, z.argmax(1))
    assert torch.allclose(found.probability, z.softmax(1).amax(1), atol=2e-2)
    assert marks() == before and torch.equal(x, given)
    assert all(torch.equal(v, state[k]) for k, v in net.state_dict().items())


@pytest.mark.parametrize("method", OWN)
def test_the_chunk_changes_nothing_but_memory(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    x, largest = _x(3).double(), 0
    net = _conv().double()
    options = QUICK.get(method, {})
    whole = explain(net, x, method=method, **options).signed
    forward = ConvNet.forward

    def counting(self: ConvNet, images: Tensor) -> Tensor:
        nonlocal largest
        largest = max(largest, len(images))
        return forward(self, images)

    frozen = checked(net, x, torch.tensor([0, 1, 2]))[0]
    target = explain(net, x, method="saliency").target
    monkeypatch.setattr(ConvNet, "forward", counting)
    with torch.enable_grad():
        parts = EXPLAINERS[method](frozen, x, target, chunk=2, **options)[0]
    assert torch.allclose(parts.float(), whole, atol=1e-6 * float(whole.abs().max())) and 1 <= largest <= 2


@pytest.mark.parametrize("method", ["integrated_gradients", "smoothgrad", "rise", "occlusion", "saliency", "learned"])
def test_vision_transformers(method: str) -> None:
    found = explain(_vit(), _x(), method=method, **QUICK.get(method, {}))
    assert found.maps.shape == (2, 12, 12) and found.maps.max() == 1


def test_a_timm_transformer() -> None:
    timm = pytest.importorskip("timm")
    net = timm.create_model("vit_tiny_patch16_224", img_size=32, patch_size=8, depth=1, num_classes=4)
    for method in ("integrated_gradients", "occlusion", "learned"):
        assert explain(net, _x(1, side=32), method=method, **QUICK.get(method, {})).maps.max() == 1


def test_gradcam_of_tokens_is_that_of_their_maps() -> None:
    """From its definition, on a transformer with a class token; the last block leaves the patches nothing to say."""
    timm = pytest.importorskip("timm")
    torch.manual_seed(0)
    net = timm.create_model("vit_tiny_patch16_224", img_size=32, patch_size=8, depth=3, num_classes=4).eval()
    nn.init.normal_(net.head.weight)
    x, y, kept = _x(side=32), torch.tensor([1, 3]), []
    found = explain(net, x, y, method="gradcam")
    handle = net.blocks[1].register_forward_hook(lambda m, i, out: kept.append(out))
    (g,) = torch.autograd.grad(net(x).gather(1, y[:, None]).sum(), kept[0])
    handle.remove()
    a, g = (t[:, 1:].mT.reshape(2, -1, 4, 4) for t in (kept[0], g))
    cam = (g.mean((2, 3), keepdim=True) * a).sum(1, keepdim=True).relu()
    expected = F.interpolate(cam, (32, 32), mode="bilinear")[:, 0].detach()
    assert expected.max() > 0 and torch.allclose(found.signed, expected, atol=1e-6 * float(expected.max()))
    assert "'blocks.1'" in found.notes[0]


def test_gradcam_goes_through_parametrised_layers() -> None:
    plain, x, y = _plain(), _x(), torch.tensor([1, 3])
    normed = copy.deepcopy(plain)
    for i in (0, 4):
        nn.utils.parametrizations.weight_norm(normed[i])
    assert torch.allclose(normed(x), plain(x), atol=1e-5)
    for options in ({}, {"layer": "4"}):
        a, b = (explain(net, x, y, method="gradcam", **options) for net in (plain, normed))
        assert a.notes == b.notes and torch.allclose(a.signed, b.signed, atol=1e-5) and a.signed.max() > 0


def test_gradcam_takes_any_layer_that_gives_places() -> None:
    assert "'stem.6'" in explain(_vit(), _x(), method="gradcam", layer="stem.6").notes[0]
    assert explain(_vit(), _x(), method="gradcam").maps.shape == (2, 12, 12)
    with pytest.raises(UserError, match=r"'linear' gives"):
        explain(_vit(), _x(), method="gradcam", layer="linear")
    with pytest.raises(UserError, match="stm"):
        explain(_vit(), _x(), method="gradcam", layer="stm")
    with pytest.raises(UserError, match=r"finds no feature map.*rise"):
        explain(nn.Sequential(nn.Flatten(), nn.Linear(432, 4)), _x(), method="gradcam")


@pytest.mark.parametrize("method", ["gradcam", "saliency", "gradient_x_input", "guided_backprop"])
def test_the_network_itself_gives_what_a_frozen_copy_gives(method: str) -> None:
    """Methods of one pass run on the network; asked for in another format they run on a copy as all others do."""
    net, x = _conv().train(), _x(3)
    found = explain(net, x, method=method)
    frozen, _, target, p = checked(net, x, None, whole=True)
    assert torch.equal(found.target, target) and torch.allclose(found.probability, p)
    with torch.enable_grad():
        expected = EXPLAINERS[method](frozen, x, target, chunk=3)[0]
    assert torch.allclose(found.signed, expected, atol=1e-6)
    double = explain(net, x.double(), method=method).signed
    assert torch.allclose(found.signed, double.float(), atol=1e-4 * float(double.abs().max()))
    assert net.training and all(q.requires_grad and q.grad is None for q in net.parameters())
    with pytest.raises(UserError, match=r"out of range.*4 classes"):
        explain(net, x, 4, method=method)
    with pytest.raises(UserError, match="one an image"):
        explain(net, x, torch.tensor([0, 1]), method=method)
    with pytest.raises(UserError, match="does not take images"):
        explain(net, x[:, :2], method=method)


# -- against Captum ----------------------------------------


def test_integrated_gradients_is_captums_and_complete() -> None:
    captum = pytest.importorskip("captum.attr")
    net, x, y = _conv(), _x(), torch.tensor([1, 3])
    expected = captum.IntegratedGradients(net).attribute(x, target=y, n_steps=50)
    found = explain(net, x, y, method="integrated_gradients", precision="32-true", chunk=7)
    assert torch.allclose(found.signed, expected.sum(1), atol=1e-4)
    difference = (net(x) - net(torch.zeros_like(x))).gather(1, y[:, None])[:, 0]
    assert torch.allclose(found.signed.sum((1, 2)), difference, atol=0.02 * float(difference.abs().max()))
    baseline = torch.ones_like(x)
    expected = captum.IntegratedGradients(net).attribute(x, baseline, target=y, n_steps=20)
    found = explain(net, x, y, method="integrated_gradients", precision="32-true", baseline=1.0, steps=20)
    assert torch.allclose(found.signed, expected.sum(1), atol=1e-4)


def test_bf16_gives_the_same_ranks() -> None:
    net, x = _conv(), _x(4)
    maps = [explain(net, x, method="integrated_gradients", precision=p).maps.flatten(1) for p in ("32-true", "bf16")]
    assert not torch.equal(*maps) and rank_correlation(*maps).min() > 0.98


def test_gradients_guided_backprop_and_occlusion_are_captums() -> None:
    captum = pytest.importorskip("captum.attr")
    net, x, y = _plain(), _x(), torch.tensor([1, 3])
    assert torch.allclose(gradient(net, x, y), captum.Saliency(net).attribute(x, target=y, abs=False), atol=1e-6)
    expected = captum.InputXGradient(net).attribute(x, target=y).sum(1)
    assert torch.allclose(explain(net, x, y, method="gradient_x_input").signed, expected, atol=1e-5)
    expected = captum.GuidedBackprop(copy.deepcopy(net)).attribute(x, target=y)
    assert torch.allclose(guided_gradient(net, x, y), expected, atol=1e-6)
    assert not torch.allclose(expected, gradient(net, x, y), atol=1e-3)
    expected = captum.Occlusion(net).attribute(x, (3, 4, 4), (3, 3, 3), target=y)[:, 0]
    found = explain(net, x, y, method="occlusion", window=4, stride=3).signed
    assert torch.allclose(found, expected, atol=1e-5)


def test_gradcam_is_captums() -> None:
    captum = pytest.importorskip("captum.attr")
    net, x, y = _plain(), _x(), torch.tensor([1, 3])
    expected = captum.LayerGradCam(net, net[5]).attribute(x, target=y, relu_attributions=True)
    expected = F.interpolate(expected, (12, 12), mode="bilinear")[:, 0]
    found = explain(net, x, y, method="gradcam")
    assert torch.allclose(found.signed, expected, atol=1e-6) and "'5'" in found.notes[0] and expected.max() > 0


def test_lrp_and_deeplift_are_captums() -> None:
    captum = pytest.importorskip("captum.attr")
    net, x, y = _plain(), _x(), torch.tensor([1, 3])

    class Without(nn.Module):  # Captum's LRP has no rule for a Flatten module
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = copy.deepcopy(net[:6]), copy.deepcopy(net[7])

        def forward(self, x: Tensor) -> Tensor:
            return self.last(self.first(x).flatten(1))

    expected = captum.LRP(Without().eval()).attribute(x, target=y).sum(1)
    scale = float(expected.abs().max())
    assert torch.allclose(explain(net, x, y, method="lrp").signed, expected, atol=1e-5 * scale) and scale > 0
    expected = captum.DeepLift(copy.deepcopy(net)).attribute(x, torch.zeros_like(x), target=y).sum(1)
    found = explain(net, x, y, method="deeplift")
    assert torch.allclose(found.signed, expected, atol=1e-5) and not found.notes
    with pytest.raises(UserError, match=r"Captum's lrp.*integrated_gradients"):
        explain(_vit(), _x(), method="lrp")


def test_without_captum_its_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "captum", None)
    monkeypatch.setitem(__import__("sys").modules, "captum.attr", None)
    for method in ("lrp", "deeplift"):
        with pytest.raises(UserError, match=r"upcycle\[explain\]"):
            explain(_plain(), _x(), method=method)


# -- perturbations ----------------------------------------


class _Corner(nn.Module):
    """Two classes; the logit of class 1 is the mean of the upper left 4 x 4 pixels."""

    def forward(self, x: Tensor) -> Tensor:
        z = x[:, :, :4, :4].mean((1, 2, 3))
        return torch.stack([torch.zeros_like(z), 6 * z], 1)


@pytest.mark.parametrize(("method", "options"), [("rise", {"masks": 300, "grid": 3}), ("occlusion", {"window": 4}),
                                                 ("extremal", {"area": 0.15, "iterations": 150})])  # fmt: skip
def test_perturbations_find_what_the_network_looks_at(method: str, options: dict[str, object]) -> None:
    torch.manual_seed(0)
    x = torch.rand(2, 1, 12, 12) + 0.5 + (torch.arange(12) % 2)  # stripes, so that blurring takes something away
    found = explain(_Corner(), x, 1, method=method, **options).maps
    rest = torch.ones(12, 12, dtype=torch.bool)
    rest[:6, :6] = False
    assert (found[:, :4, :4].mean((1, 2)) > found[:, rest].mean(1) + 0.1).all()


def test_rise_and_occlusion_need_no_gradient() -> None:
    class Steps(_Corner):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x).detach().round()

    x = torch.rand(1, 1, 12, 12) + 0.5
    assert explain(Steps(), x, 1, method="occlusion", window=4).maps.max() == 1
    assert explain(Steps(), x, 1, method="rise", masks=20).maps.max() == 1
    for method in ("saliency", "integrated_gradients", "learned", "gradcam"):
        with pytest.raises(UserError, match=r"passes none.*occlusion"):
            explain(Steps(), x, method=method)


def test_the_parts_of_extremal_perturbation() -> None:
    x = _x(2)
    levels = pyramid(x, 1.5)
    assert levels.shape == (8, 2, 3, 12, 12)
    ones = torch.ones(2, 1, 12, 12)
    assert torch.allclose(perturbed(levels, ones), x) and torch.allclose(perturbed(levels, 0 * ones), levels[0])
    assert torch.allclose(perturbed(levels, ones * 3 / 7), levels[3], atol=1e-5)
    assert levels.std((1, 2, 3, 4)).diff().min() > 0
    grid = torch.zeros(1, 1, 6, 6)
    assert not upsampled(grid, 2, 4.0).any()
    grid[0, 0, 2, 3] = 1
    fine = upsampled(grid, 2, 4.0)[0, 0]
    assert fine.shape == (12, 12) and fine.min() >= 0 and fine.max() <= 1
    assert divmod(int(fine.argmax()), 12)[0] in (4, 5) and divmod(int(fine.argmax()), 12)[1] in (6, 7)
    assert upsampled(torch.ones(1, 1, 6, 6), 2, 4.0).min() > 0.9


# -- what a reader must know, and mistakes ----------------------------------------


def test_zero_maps_certain_classes_and_contrary_evidence_are_reported() -> None:
    constant = nn.Sequential(nn.Conv2d(3, 2, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    nn.init.zeros_(constant[0].weight)
    found = explain(constant, _x(3), method="saliency")
    assert not found.maps.any() and any("Images 0, 1, 2: the attribution is zero" in n for n in found.notes)
    sure = explain(_Corner(), 50 * torch.ones(1, 1, 12, 12), method="gradient_x_input")
    assert any("probability one" in n for n in sure.notes)
    against = explain(_Corner(), -torch.ones(1, 1, 12, 12), 1, method="gradient_x_input")
    assert not against.maps.any() and against.signed.min() < 0 and any("all against" in n for n in against.notes)
    rough = explain(nn.Sequential(_Corner(), _Steep()), torch.ones(1, 1, 12, 12), 1, method="integrated_gradients",
                    steps=2)  # fmt: skip
    assert any("raise steps" in n for n in rough.notes)


class _Steep(nn.Module):
    def forward(self, z: Tensor) -> Tensor:
        return torch.sigmoid(40 * (z - 2))


def test_mistakes_are_named() -> None:
    net, x = _conv(), _x()
    model = Model(module=net, input_shape=(3, 12, 12), mean=(0,) * 3, std=(1,) * 3, classes=tuple("abcd"), name="small")
    assert torch.equal(explain(model, x, 2, method="saliency").target, torch.tensor([2, 2]))
    for target in (4, -1, torch.tensor([0, 7])):
        with pytest.raises(UserError, match=r"out of range.*4 classes"):
            explain(net, x, target)
    for bad, words in ((x[0], r"x\[None\]"), (x.long(), "float images"), (x[:0], "float images"),
                       (x / 0, "NaN or infinite"), (x[:, :2], "does not take images")):  # fmt: skip
        with pytest.raises(UserError, match=words):
            explain(net, bad)
    with pytest.raises(UserError, match="small takes 3 input channels, and x has 1"):
        explain(model, x[:, :1])
    with pytest.raises(UserError, match="one an image"):
        explain(net, x, torch.tensor([0, 1, 2]))
    with pytest.raises(UserError, match="integers"):
        explain(net, x, torch.tensor([0.0, 1.0]))
    with pytest.raises(UserError, match=r"Did you mean 'saliency'"):
        explain(net, x, method="salience")
    with pytest.raises(UserError, match=r"no option of rise 'mask'. Did you mean 'masks'"):
        explain(net, x, method="rise", mask=3)
    with pytest.raises(UserError, match="chunk"):
        explain(net, x, method="saliency", chunk=0)
    with pytest.raises(UserError, match="does not fit images"):
        explain(net, x, method="integrated_gradients", baseline=torch.zeros(5))
    with pytest.raises(UserError, match="logits"):
        explain(nn.Conv2d(3, 4, 3), x)
    for method, options in (("smoothgrad", {"samples": 0}), ("integrated_gradients", {"steps": 0}),
                            ("occlusion", {"window": 40}), ("rise", {"keep": 1.0}), ("extremal", {"area": 0.0}),
                            ("extremal", {"iterations": 0}), ("learned", {"lr": 0.0})):  # fmt: skip
        with pytest.raises(UserError):
            explain(net, x, method=method, **options)


def test_every_method_says_in_one_line_what_it_shows() -> None:
    for name, function in EXPLAINERS.items():
        line = (inspect.getdoc(function) or "").splitlines()[0]
        assert line.endswith((".", ")")) or ")." in line, name
