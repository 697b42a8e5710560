"""MetaFormer networks: published sizes, mixers that do and do not mix, and stages that can be cut."""

from __future__ import annotations

import importlib.util

import pytest
import torch
from torch import nn

from upcycle import zoo
from upcycle.core.errors import UserError
from upcycle.core.references import resolve
from upcycle.measure import cost
from upcycle.surgery.blocks import chain
from upcycle.zoo.metaformer import MAKERS, RandomMixing

TINY = [name for name in MAKERS if name.endswith("_tiny")]

timm = pytest.importorskip("timm", reason="timm is not installed (extra vision)")


def fresh(name: str, **options: object) -> nn.Module:
    torch.manual_seed(0)
    module: nn.Module = resolve(f"zoo:{name}", pretrained=False, **options).module  # type: ignore[arg-type]
    return module.eval()


@pytest.mark.parametrize("name", TINY)
def test_tiny_networks_differ_in_their_mixers_alone(name: str) -> None:
    network, pooled = fresh(name), fresh("poolformer_tiny")
    size = cost.count(network, (3, 32, 32))
    assert size.parameters < 400_000 and size.macs < 41e6  # ResNet-20 has 40.6 million
    names = {k for k, _ in network.named_parameters() if ".token_mixer." not in k}
    assert names == {k for k, _ in pooled.named_parameters()}


@pytest.mark.parametrize("name", TINY)
def test_stages_can_be_cut_between_blocks(name: str) -> None:
    nodes = [node.name for node in chain(resolve(f"zoo:{name}", pretrained=False)).nodes]
    for block in ("stages.0.blocks.0", "stages.1.blocks.0", "stages.2.blocks.0", "stages.2.blocks.1"):
        assert any(node.startswith(block) for node in nodes), nodes


@pytest.mark.parametrize("name", ["identityformer_s12", "randformer_s12"])
def test_features_have_the_published_widths_and_strides(name: str) -> None:
    network, seen = fresh(name, input_shape=(3, 64, 96)), []
    for stage in network.get_submodule("stages").children():
        stage.register_forward_hook(lambda m, i, out: seen.append(tuple(out.shape[1:])))
    assert network(torch.randn(2, 3, 64, 96)).shape == (2, 10)
    assert seen == [(c, 64 // s, 96 // s) for c, s in ((64, 4), (128, 8), (320, 16), (512, 32))]


def test_identityformer_is_poolformer_v2_without_its_pooling() -> None:
    """The second check: the same weights, and the same logits as timm's once its pooling is put in."""
    network = fresh("identityformer_s12", num_classes=5)
    theirs = timm.create_model("poolformerv2_s12", num_classes=5).eval()
    theirs.load_state_dict(network.state_dict())
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        assert (network(x) - theirs(x)).abs().max() > 1e-4
        for name, _ in list(network.named_modules()):
            if name.endswith("token_mixer"):
                network.set_submodule(name, theirs.get_submodule(name))
        assert torch.equal(network(x), theirs(x))


def test_a_block_without_its_mlp_adds_its_norm() -> None:
    block = fresh("identityformer_s12").get_submodule("stages.0.blocks.0")
    nn.init.zeros_(block.get_submodule("mlp.fc2").weight)
    x = torch.randn(2, 64, 5, 7)
    assert torch.allclose(block(x), x + block.get_submodule("norm1")(x))


@pytest.mark.parametrize(("name", "blind"), [("identityformer_tiny", True), ("poolformer_tiny", False)])
def test_pixels_in_another_order_inside_a_stage(name: str, blind: bool) -> None:
    blocks = fresh(name).get_submodule("stages.2.blocks")
    x, order = torch.randn(2, 96, 64), torch.randperm(64)
    with torch.no_grad():
        moved = blocks(x[:, :, order].unflatten(2, (8, 8))).flatten(2)
        stayed = blocks(x.unflatten(2, (8, 8))).flatten(2)[:, :, order]
    assert bool((moved - stayed).abs().max() < 1e-5) is blind


def test_random_matrices_are_state_and_not_trained() -> None:
    network = fresh("randformer_s12", num_classes=1000, input_shape=(3, 224, 224))
    assert sum(p.numel() for p in network.parameters()) == 11_891_712
    mixers = [m for m in network.modules() if isinstance(m, RandomMixing)]
    assert sum(m.random_matrix.numel() for m in mixers) == 6 * 196**2 + 2 * 49**2 == 235_298
    assert {"stages.2.blocks.0.token_mixer.random_matrix"} <= network.state_dict().keys()
    small = fresh("randformer_tiny").train()
    before = {k: v.clone() for k, v in small.state_dict().items() if "random" in k}
    optimizer = torch.optim.SGD(small.parameters(), lr=0.1, weight_decay=0.1)
    small(torch.randn(4, 3, 32, 32)).square().sum().backward()
    optimizer.step()
    assert len(before) == 3 and all(torch.equal(small.state_dict()[k], v) for k, v in before.items())


def test_randformer_refuses_another_size() -> None:
    with pytest.raises(UserError, match="made for 256 places, not for 196: give images of the size it has"):
        fresh("randformer_tiny")(torch.randn(2, 3, 28, 28))


def test_caformer_takes_any_size() -> None:
    network = fresh("caformer_tiny")
    for size in ((32, 32), (48, 20), (33, 31)):
        assert network(torch.randn(1, 3, *size)).shape == (1, 10)


@pytest.mark.parametrize("name", TINY)
def test_training_and_evaluation_agree(name: str) -> None:
    network, x = fresh(name), torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(network.eval()(x), network.train()(x))


def test_star_relu_at_its_theoretical_values_keeps_mean_and_variance() -> None:
    star = timm.models.metaformer.StarReLU(0.8944, -0.4472)
    z = star(torch.randn(10**6, generator=torch.Generator().manual_seed(0))).detach()
    assert z.mean().item() == pytest.approx(0, abs=0.01) and z.var().item() == pytest.approx(1, abs=0.02)


def test_coordinate_attention_stands_where_the_block_is_wide() -> None:
    network = fresh("mobilenetv2_ca")
    found = [k for k, m in network.named_modules() if type(m).__name__ == "CoordAttn"]
    assert found == [
        f"stages.{s}.{b}.depthwise.{4 if b == 0 else 3}" for s, n in ((1, 2), (2, 3), (3, 2)) for b in range(n)
    ]
    plain = fresh("mobilenetv2")
    assert plain.state_dict().keys() < network.state_dict().keys()


def test_they_need_timm(monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "timm" else find(name))
    for name in ("caformer_tiny", "identityformer_s12", "mobilenetv2_ca"):
        with pytest.raises(UserError, match=r'timm is not installed: pip install "upcycle\[vision\]"'):
            zoo.build(name, pretrained=False)
