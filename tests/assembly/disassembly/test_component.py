"""The samples that decide on a component, and the component itself."""

from __future__ import annotations

import json

import torch

from tests.assembly.networks import CPU
from upcycle.assembly.disassembly import component, routes
from upcycle.core.models import Model
from upcycle.data import Images
from upcycle.surgery.following import follow_channels


def test_masks_of_a_union_are_joined(teacher: Model, digits: Images) -> None:
    split = digits.train.normalised(teacher.mean, teacher.std)
    channels = follow_channels(teacher.module, teacher.example(2))
    samples = component.find_confident(teacher.module, split, {c: c for c in range(10)}, 20)
    found = routes.find_routes(teacher.module, channels, split, samples)
    left, right = (
        component.cut_component(teacher.module, channels, found[rows], rows, example=teacher.example(4))
        for rows in ([0, 1, 2], [3, 4])
    )
    both = component.cut_component(teacher.module, channels, found[:5], range(5), example=teacher.example(4))
    for layer in channels.layers:
        a, b, c = (m.get_submodule(layer.name).weight.shape[1] for m in (left, right, both))
        assert max(a, b) <= c <= a + b
        if not channels.reads_image(layer):
            assert c == int((found[:3, layer.inputs].any(0) | found[3:5, layer.inputs].any(0)).sum())
    picture = routes.route_picture(channels, found, teacher.classes)
    assert [x["name"] for x in picture["layers"]] == [x.name for x in channels.layers[:-1]]
    for drawn, layer in zip(picture["layers"], channels.layers, strict=False):
        assert sum(g["count"] for g in drawn["groups"]) == len(layer.outputs)
    json.dumps(picture)


def test_the_surest_images_that_are_right(teacher: Model, digits: Images) -> None:
    split = digits.train.normalised(teacher.mean, teacher.std)
    found = component.find_confident(teacher.module, split, {3: 3, 8: 8}, 15)
    with torch.no_grad():
        z = teacher.module(split.batch(torch.arange(len(split)), device=CPU).images)
    own = ((split.labels == 3) & (z.argmax(1) == 3)).nonzero().flatten()
    p = z.double().softmax(1)[:, 3]
    assert len(found[3]) == 15
    assert (split.labels[found[8]] == 8).all()
    assert p[found[3]].min() >= p[[i for i in own.tolist() if i not in found[3].tolist()]].max()
