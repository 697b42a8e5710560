"""Networks assembled of parts: their logits are those of the parts, and they are rebuilt from a record."""

from __future__ import annotations

import dataclasses
import json

import pytest
import torch
from torch import nn

from tests.assembly.networks import Flat, Gated, model, part_of, some_part
from upcycle.assembly.disassembly import component
from upcycle.core.errors import UserError
from upcycle.core.models import Model
from upcycle.core.references import resolve
from upcycle.data import Images
from upcycle.surgery.assembling import assemble, rebuild_resized, zero_blocks
from upcycle.surgery.following import follow_channels
from upcycle.zoo.convnet import ConvNet
from upcycle.zoo.resnet import ResNet


class Plain(ConvNet):
    """Convolutions and average pooling for grey images."""

    def __init__(self) -> None:
        super().__init__((8, 12, 9), 4, 1)


class Padded(ResNet):
    """A ResNet with option A shortcuts for grey images."""

    def __init__(self) -> None:
        super().__init__((1, 2, 1), 4, 1)


@pytest.mark.parametrize("kind", [Flat, Gated, Padded, Plain])
@torch.no_grad()
def test_assembled_logits_are_those_of_the_parts(kind: type[nn.Module]) -> None:
    parts = [some_part(kind, i, 0.5, classes=(f"{i}a", f"{i}b"), name=f"part{i}") for i in range(3)]
    x = parts[0].example(6)
    whole = assemble(parts)
    assert whole.classes == ("0a", "0b", "1a", "1b", "2a", "2b")
    assert type(whole.module) is kind
    right = torch.cat([part.module(x) for part in parts], 1)
    assert torch.allclose(whole.module(x), right, atol=1e-5 * float(right.abs().max()))
    zeros = zero_blocks(parts)
    count = sum(p.numel() for p in whole.module.parameters()) - sum(int(m.sum()) for m in zeros.values())
    shared_slopes = sum(m.weight.numel() for m in whole.module.modules() if isinstance(m, nn.PReLU))
    alone = sum(p.numel() for part in parts for p in part.module.parameters())
    assert count == alone + (shared_slopes - 3 if shared_slopes else 0)

    # A class more later: the old logits stay, also when the old one was assembled with shortcuts.
    later = assemble((whole, some_part(kind, 7, 0.5, classes=("x", "y"), name="new")))
    assert torch.allclose(later.module(x)[:, :6], right, atol=1e-5 * float(right.abs().max()))


@pytest.mark.parametrize("kind", [Flat, Gated, Padded])
@torch.no_grad()
def test_parts_with_other_normalisations_see_their_own_images(kind: type[nn.Module]) -> None:
    stats = [(0.3, 0.4), (0.5, 0.25), (0.1, 0.9)]
    parts = [some_part(kind, i, 0.6, classes=(f"{i}a", f"{i}b"), mean=(m,), std=(s,)) for i, (m, s) in enumerate(stats)]
    raw = torch.rand(5, 1, 8, 8)
    right = torch.cat([part.module((raw - part.mean[0]) / part.std[0]) for part in parts], 1)
    whole = assemble(parts)
    found = whole.module((raw - 0.3) / 0.4)
    assert torch.allclose(found, right, atol=1e-4)
    nested = assemble((assemble(parts[1:]), parts[0]))
    assert torch.allclose(nested.module((raw - 0.5) / 0.25), right[:, [2, 3, 4, 5, 0, 1]], atol=1e-4)
    # What was assembled can be taken apart again.
    channels = follow_channels(whole.module, whole.example(2))
    again = component.cut_component(
        whole.module, channels, torch.ones(1, channels.n, dtype=torch.bool), [4, 0], example=whole.example(4)
    )
    assert torch.allclose(again((raw - 0.3) / 0.4), right[:, [4, 0]], atol=1e-4)


def test_parts_that_do_not_fit_are_named() -> None:
    a = some_part(Flat, 0, 0.5, classes=("a", "b"), name="left")
    other = some_part(Gated, 1, 0.5, classes=("c", "d"), name="right")
    with pytest.raises(
        UserError, match=r"left and right cannot be assembled, for their layers differ .*: relu in left, PReLU in right"
    ):
        assemble((a, other))
    strided = Flat()
    strided.conv2.stride = (1, 1)
    strided.fc1 = nn.Linear(80, 7)
    with pytest.raises(UserError, match=r"at 'conv2': Conv2d \(3, 3\), stride \(2, 2\).* in left, .*stride \(1, 1\)"):
        assemble((a, model(strided.eval(), "wxyz", "right")))
    with pytest.raises(UserError, match="The class 'b' is in two of the networks"):
        assemble((a, dataclasses.replace(a, classes=("b", "c"))))
    with pytest.raises(UserError, match="left takes images of 1 x 8 x 8 and right of 1 x 16 x 16"):
        assemble((a, dataclasses.replace(a, classes=("c", "d"), input_shape=(1, 16, 16), name="right")))
    with pytest.raises(UserError, match="At least two networks"):
        assemble((a,))


def test_products_are_rebuilt_from_their_record(halves: tuple[Model, Model], teacher: Model, digits: Images) -> None:
    other = dataclasses.replace(halves[1], mean=(0.1,), std=(0.7,))
    for made in (halves[0], assemble(halves), assemble((halves[0], other))):
        assert made.reference == "assembly:resized"
        options = json.loads(json.dumps(made.options))

        def rebuild(source: dict) -> Model:
            assert source["reference"] == teacher.reference
            return resolve(source["reference"], pretrained=False)

        again = rebuild_resized(**options, rebuild=rebuild)
        again.load_state_dict(made.module.state_dict())
        x = made.example(3)
        assert torch.equal(again.eval()(x), made.module.eval()(x))
        for name, value in {"copies": -1, "widths": {}, "source": {}}.items():
            if name == "widths":
                layer = next(iter(options["widths"]))
                value = {**options["widths"], layer: [*options["widths"][layer][:-2], 3, 1]}
            with pytest.raises((ValueError, KeyError, TypeError, AttributeError, UserError)):
                rebuild_resized(**{**options, name: value}, rebuild=rebuild)
    bare = dataclasses.replace(teacher, reference=None)
    assert part_of(bare, digits, classes=("3",)).reference is None
