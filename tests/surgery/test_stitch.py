"""Stitched networks: one network from its own blocks is itself; recipes are data and come back from JSON."""

from __future__ import annotations

import copy
import itertools
import json
from typing import Any

import pytest
import torch
from torch import nn

from tests.surgery.test_blocks import model, resnet
from upcycle.core.errors import UserError
from upcycle.core.models import Model, source_of
from upcycle.core.references import resolve
from upcycle.measure.cost import count
from upcycle.surgery.blocks import Chain, chain
from upcycle.surgery.signals import Signal
from upcycle.surgery.stitch import Stitch, plan, rebuild_stitched, stitched
from upcycle.zoo.convnet import ConvNet

MAP, GRID = Signal("map", 6, (4, 6)), Signal("grid", 5, (2, 3))
TOKENS, CLASSED = Signal("tokens", 5, (2, 3)), Signal("tokens", 6, (4, 6), 1)


@pytest.mark.parametrize(
    ("takes", "gives", "stride"),
    [
        (MAP, Signal("map", 9, (4, 6)), 1),
        (MAP, Signal("map", 9, (2, 3)), 2),
        (MAP, TOKENS, 2),
        (MAP, GRID, 2),
        (CLASSED, Signal("tokens", 9, (4, 6), 1), 1),
        (CLASSED, Signal("grid", 9, (4, 6)), 1),
        (GRID, TOKENS, 1),
        (CLASSED, Signal("map", 9, (2, 3)), 2),
        (GRID, Signal("map", 9, (2, 3)), 1),
    ],
)
def test_shapes_and_size_of_a_stitch(takes: Signal, gives: Signal, stride: int) -> None:
    stitch = Stitch(takes, gives, stride)
    assert stitch(torch.randn(takes.shape(3))).shape == gives.shape(3)
    a, b = takes.channels, gives.channels
    assert sum(p.numel() for p in stitch.parameters()) == 2 * a + a * b * stride**2
    places = gives.extra + gives.size[0] * gives.size[1] if stride > 1 or "map" in (takes.layout, gives.layout) else (
        takes.extra + takes.size[0] * takes.size[1])  # fmt: skip
    assert count(stitch, takes.shape(1)[1:]).macs == a * b * stride**2 * places


@pytest.mark.parametrize("layout", ["map", "grid", "tokens"])
@pytest.mark.parametrize("to", ["map", "grid", "tokens"])
def test_every_place_stays_where_it_is(layout: str, to: str) -> None:
    """With positive inputs, no normalisation and the identity for weights, a stitch only rearranges."""
    takes, gives = (Signal(name, 5, (2, 3)) for name in (layout, to))  # type: ignore[arg-type]
    stitch = Stitch(takes, gives)
    stitch.layers[0] = nn.Identity()
    with torch.no_grad():
        stitch.layers[1].weight.copy_(torch.eye(5).view_as(stitch.layers[1].weight))
    places = torch.rand(4, 2, 3, 5)  # b h w c

    def laid(name: str) -> torch.Tensor:
        return {"map": places.permute(0, 3, 1, 2), "grid": places, "tokens": places.flatten(1, 2)}[name]

    torch.testing.assert_close(stitch(laid(layout)), laid(to))


def own_blocks(made: Chain, cuts: tuple[int, ...]) -> list[tuple[int, int, int]]:
    return [(0, a, b - 1) for a, b in itertools.pairwise([0, *cuts, len(made)])]


@pytest.mark.parametrize("k", [1, 2, 3, 4])
def test_the_blocks_of_one_network_are_that_network(k: int) -> None:
    made = chain(resnet(2, 2, 1))
    x = made.model.example(4)
    for cuts in itertools.islice(itertools.combinations(range(1, len(made)), k - 1), 6):
        recipe = plan([made], own_blocks(made, cuts), None)
        network = stitched(recipe, [made])
        assert len(network.blocks) == k and recipe["stitches"] == [None] * (k - 1)
        torch.testing.assert_close(network(x), made.model.module(x), rtol=1e-5, atol=1e-5)
        assert count(network, (1, 8, 8)).parameters == count(made.model.module, (1, 8, 8)).parameters


@pytest.mark.parametrize("reference", ["timm:vit_tiny_patch16_224", "torchvision:shufflenet_v2_x0_5"])
def test_the_blocks_of_a_foreign_network(reference: str) -> None:
    pytest.importorskip("timm")
    made = chain(resolve(reference, pretrained=False))
    network = stitched(plan([made], own_blocks(made, (2, 7, 11)), None), [made])
    x = made.model.example(1)
    with torch.no_grad():
        torch.testing.assert_close(network(x), made.model.module(x), rtol=1e-5, atol=1e-5)


def mixture() -> tuple[list[Chain], list[tuple[int, int, int]]]:
    chains = [chain(resnet(2, 1, 1)), chain(model(ConvNet((12, 20, 24), 10, 1), name="other"))]
    return chains, [(0, 0, 2), (1, 1, 1), (1, 2, 2), (0, 4, 4)]


def test_strides_bring_maps_to_the_size_of_training() -> None:
    chains, blocks = mixture()
    recipe = plan(chains, blocks, 7)
    first, neighbours, last = recipe["stitches"]
    # The second block of the conv net was trained behind a pooling, on 12 channels of 4 x 4.
    assert (first["takes"]["size"], first["gives"]["size"], first["stride"]) == ([8, 8], [4, 4], 2)
    assert neighbours is None
    assert (last["takes"]["channels"], last["gives"]["channels"], last["stride"]) == (24, 32, 1)  # smaller already
    network = stitched(recipe, chains)
    assert network(torch.randn(3, 1, 8, 8)).shape == (3, 7)
    assert isinstance(network.stem, nn.Identity)
    assert (recipe["mean"], recipe["std"]) == ([0.3], [0.4])


def test_a_new_stem_where_the_first_block_is_no_beginning() -> None:
    chains, blocks = mixture()
    network = stitched(plan(chains, blocks[1:], 7), chains)
    assert [type(m).__name__ for m in network.stem] == ["Conv2d", "BatchNorm2d", "ReLU"]
    assert network.stem[0].stride == (2, 2)
    assert network(torch.randn(2, 1, 8, 8)).shape == (2, 7)
    large = chain(model(ConvNet((4, 4, 4), 10, 3), (3, 32, 32)))
    network = stitched(plan([large], [(0, 2, 2)], 5), [large])
    assert network.stem[0].kernel_size == (7, 7) and isinstance(network.stem[3], nn.MaxPool2d)
    assert network(torch.randn(2, 3, 32, 32)).shape == (2, 5)


def test_tokens_follow_maps_and_give_way_to_maps() -> None:
    timm = pytest.importorskip("timm")
    torch.manual_seed(0)
    vit = timm.create_model("vit_tiny_patch16_224", img_size=16, patch_size=4, in_chans=1, depth=3, embed_dim=24,
                            num_heads=2, num_classes=10)  # fmt: skip
    chains = [chain(model(ConvNet((6, 8, 8), 10, 1), (1, 16, 16))), chain(model(vit, (1, 16, 16), "vit"))]
    assert [n.gives for n in chains[1].nodes] == [Signal("tokens", 24, (4, 4), 1)] * 4
    x = torch.randn(2, 1, 16, 16)
    recipe = plan(chains, [(0, 0, 1), (1, 1, 2), (0, 2, 2)], 3)
    assert [s["gives"]["layout"] for s in recipe["stitches"]] == ["tokens", "map"]
    network = stitched(recipe, chains)
    assert network(x).shape == (2, 3)
    recipe = plan(chains, [(1, 0, 1), (1, 3, 3)], 3)  # tokens to tokens keep the class token
    assert recipe["stitches"][0]["gives"]["extra"] == 1
    assert stitched(recipe, chains)(x).shape == (2, 3)
    with pytest.raises(UserError, match="no new stem"):
        plan(chains, [(1, 1, 2)], 3)


def test_new_weights_come_from_the_seed_alone() -> None:
    chains, blocks = mixture()
    recipe = plan(chains, blocks, 7)
    random = torch.get_rng_state()
    one, two = stitched(recipe, chains, 1), stitched(json.loads(json.dumps(recipe)), chains, 1)
    other = stitched(recipe, chains, 2)
    assert torch.equal(torch.get_rng_state(), random)
    for key, value in one.state_dict().items():
        assert torch.equal(value, two.state_dict()[key])
    weights = "stitches.0.layers.1.weight"
    assert not torch.equal(one.state_dict()[weights], other.state_dict()[weights])
    block = "blocks.0.layer1.0.conv1.weight"
    assert torch.equal(one.state_dict()[block], chains[0].model.module.state_dict()["layer1.0.conv1.weight"])


def test_own_head_needs_the_end_of_its_network() -> None:
    chains, blocks = mixture()
    with pytest.raises(UserError, match="no head of its own"):
        plan(chains, blocks[:2], None)


def test_what_cannot_follow_says_so() -> None:
    small = chain(model(ConvNet((4, 8, 8), 10, 1), name="small"))
    with pytest.raises(UserError, match=r"small \[block1.0\] cannot follow small \[block3.1\]: it does not take 1 x 1"):
        plan([small], [(0, 0, 2), (0, 0, 0), (0, 2, 2), (0, 0, 0), (0, 2, 2)], 3)


@pytest.fixture(scope="module")
def saved() -> dict[str, Any]:
    chains = [chain(resolve(f"zoo:{name}", pretrained=False, input_shape=(1, 8, 8))) for name in
              ("convnet_small", "convnet")]  # fmt: skip
    return plan(chains, [(0, 0, 0), (1, 1, 1), (0, 2, 2)], 4)


def rebuild(source: Any) -> Model:
    return resolve(source["reference"], pretrained=False, num_classes=source["options"]["num_classes"],
                   input_shape=tuple(source["input_shape"]))  # fmt: skip


def test_rebuilt_from_its_recipe(saved: dict[str, Any]) -> None:
    recipe = json.loads(json.dumps(saved))
    assert recipe == saved
    one, two = (rebuild_stitched(recipe, rebuild).eval() for _ in range(2))
    assert [*one.state_dict()] == [*two.state_dict()]
    two.load_state_dict(one.state_dict())
    x = torch.randn(3, 1, 8, 8)
    torch.testing.assert_close(one(x), two(x), rtol=0, atol=0)
    assert one(x).shape == (3, 4)


def test_sources_are_recorded() -> None:
    assert plan(mixture()[0], mixture()[1], 4)["sources"] == [None, None]  # bare networks
    known = resolve("zoo:convnet_small", pretrained=False, input_shape=(1, 8, 8))
    assert plan([chain(known)], [(0, 0, 2)], 4)["sources"] == [source_of(known)]


DAMAGE: list[tuple[list[Any], Any]] = [
    (["blocks"], []), (["blocks", 0, "source"], 5), (["blocks", 0, "source"], -1), (["blocks", 1, "last"], 99),
    (["blocks", 1, "first"], "x"), (["blocks", 2], None), (["stitches"], []), (["stitches", 0, "stride"], 10**6),
    (["stitches", 0, "stride"], 0), (["stitches", 0, "stride"], 1.5), (["stitches", 0, "gives", "channels"], 10**9),
    (["stitches", 0, "takes", "layout"], "pile"), (["stitches", 0, "takes"], 3), (["stitches", 1], {}),
    (["head"], {"classes": 10**12}), (["head"], {"classes": -1}), (["head"], {"classes": "many"}), (["head"], {}),
    (["head"], {"source": 9}), (["head"], {"source": 1}), (["stem"], {"channels": 10**6, "to": 10**6, "stride": 4}),
    (["stem"], 7), (["stem"], {"channels": 1, "to": 3, "stride": 1}), (["sources"], []), (["sources"], None),
]  # fmt: skip


@pytest.mark.parametrize(("path", "value"), DAMAGE, ids=lambda v: str(v)[:40])
def test_a_damaged_recipe_is_refused(saved: dict[str, Any], path: list[Any], value: Any) -> None:
    recipe = copy.deepcopy(saved)
    at: Any = recipe
    for key in path[:-1]:
        at = at[key]
    at[path[-1]] = value
    with pytest.raises((KeyError, TypeError, ValueError, IndexError, AttributeError, UserError)):
        rebuild_stitched(recipe, rebuild)
