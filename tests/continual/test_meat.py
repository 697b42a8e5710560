"""MEAT: the invariants of its card."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.settings import tiny_model, tiny_net, tiny_stream, tiny_vit
from upcycle.continual.meat import MEAT
from upcycle.continual.weights.attention_masks import (
    Masked,
    default_blocks,
    jaccard,
    masked_softmax,
    pack_bits,
    sample_mask,
    share_penalty,
    unpack_bits,
)
from upcycle.core.errors import UserError
from upcycle.core.models import Model, copy_of
from upcycle.core.recipe import Recipe
from upcycle.core.references import resolve
from upcycle.core.run import Run
from upcycle.core.saved import load, save
from upcycle.measure.export import write_export

timm = pytest.importorskip("timm")

X = torch.randn(4, 1, 8, 8, generator=torch.Generator().manual_seed(0))
RECIPE = Recipe(epochs=2, batch_size=8, optimizer="adamw", lr=0.02)
QUICK: dict[str, Any] = {"recipe": RECIPE, "gamma": 0.5}
TASKS = tiny_stream("2+4", "task")(160)


def drawn(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def timm_vit(depth: int = 2, **options: Any) -> Model:
    """Of 16 tokens and a class token; 8x8 grey."""
    torch.manual_seed(0)
    size = {"img_size": 8, "patch_size": 2, "in_chans": 1, "embed_dim": 16, "num_heads": 2, "num_classes": 10}
    module = timm.models.vision_transformer.VisionTransformer(depth=depth, **size, **options)
    return dataclasses.replace(tiny_model("timm", 0), module=module)


def zoo_vit() -> Model:
    torch.manual_seed(0)
    model = resolve("zoo:vit", pretrained=False, input_shape=(1, 8, 8), num_classes=10)
    return dataclasses.replace(model, mean=(0.3,), std=(0.4,))


def masked(model: Model, kind: str = "meat", blocks: tuple[int, ...] | None = None) -> Masked:
    """A copy of a network, all of whose classes are one task."""
    own = dataclasses.replace(model, module=copy_of(model.module).eval())
    return Masked(own, [tuple(range(10))], kind, blocks)


def fit(run: Run | None = None, data: Any = TASKS, **options: Any) -> tuple[MEAT, Any, Run]:
    method = MEAT(**{"student": tiny_vit(100), **QUICK, **options})
    method.require(data)
    run = run or Run(None, seed=1, quiet=True)
    return method, method.fit(run, data), run


@pytest.fixture(scope="module")
def fitted() -> tuple[MEAT, Any, Run]:
    return fit()


# -- the pure parts -----------------------------------------------------------------------------


def test_rows_sum_to_one_and_with_nothing_hidden_it_is_the_softmax() -> None:
    s = 5 * torch.randn(2, 3, 6, 6, generator=drawn())
    a = masked_softmax(s, torch.ones(6))
    assert torch.allclose(a, s.softmax(-1), atol=1e-5)
    a = masked_softmax(s, torch.tensor([1.0, 0, 1, 0, 0, 1]))
    assert torch.allclose(a.sum(-1), torch.ones(2, 3, 6), atol=1e-6)


def test_a_hidden_token_is_read_by_itself_alone() -> None:
    a = masked_softmax(torch.randn(1, 1, 5, 5, generator=drawn()), torch.tensor([1.0, 0, 0, 0, 0]))[0, 0]
    keep = torch.eye(5, dtype=torch.bool)
    keep[:, 0] = True  # the class token
    assert a[~keep].abs().max() < 1e-5
    assert torch.allclose(a[:, 0] + a.diagonal() - a[0, 0] * keep[:1, :1] * torch.eye(5)[0], torch.ones(5), atol=1e-5)


def test_scores_are_exponentiated_in_float32() -> None:
    assert masked_softmax(torch.zeros(1, 1, 2, 2, dtype=torch.bfloat16), torch.ones(2)).dtype == torch.float32
    assert masked_softmax(torch.zeros(1, 1, 2, 2).double(), torch.ones(2)).dtype == torch.float64


def test_masks_are_binary_and_as_probable_as_the_gates_say() -> None:
    a = torch.cat([torch.full((40_000,), 0.5), torch.full((40_000,), -4.0)]).requires_grad_()
    m = sample_mask(a, 1.0, drawn())
    assert set(m.unique().tolist()) == {0.0, 1.0}
    assert m[:40_000].mean().item() == pytest.approx(torch.tensor(1.0).sigmoid().item(), abs=0.01)  # σ(2γ)
    assert m[40_000:].mean().item() == pytest.approx(torch.tensor(-8.0).sigmoid().item(), abs=0.001)
    m.sum().backward()
    assert bool((a.grad >= 0).all()) and float(a.grad.max()) <= 0.25


def test_one_logit_a_gate_does_what_the_pair_does() -> None:
    """(a, b) from (γ, -γ) with two Gumbel variables, against a alone with their difference."""
    w = torch.randn(64, generator=drawn(5))
    a = torch.full((64,), 0.3, requires_grad=True)
    pair = torch.tensor([0.3, -0.3]).repeat(64, 1).requires_grad_()
    one, two = torch.optim.AdamW([a], lr=0.1, weight_decay=0.0), torch.optim.AdamW([pair], lr=0.1, weight_decay=0.0)
    for step in range(5):
        noise = torch.rand(64, generator=drawn(step)).logit()
        ((sample_mask(a, 0.7, drawn(step)) * w).sum() - 1).square().backward()
        soft = ((pair + torch.stack([noise, torch.zeros(64)], 1)) / 0.7).softmax(1)[:, 0]
        hard = (pair[:, 0] + noise > pair[:, 1]).float()
        (((hard + soft - soft.detach()) * w).sum() - 1).square().backward()
        for optimizer in (one, two):
            optimizer.step()
            optimizer.zero_grad()
    assert torch.allclose(a, pair[:, 0], atol=1e-5) and torch.allclose(a, -pair[:, 1], atol=1e-5)
    assert float((a.detach() - 0.3).abs().max()) > 0.1


@pytest.mark.parametrize("n", [0, 1, 8, 21])
def test_bits_are_packed_eight_to_a_byte(n: int) -> None:
    bits = torch.rand(n, generator=drawn()) < 0.5
    content = pack_bits(bits)
    assert len(content) == -(-n // 8) and torch.equal(unpack_bits(content, n), bits)


def test_the_penalty_is_zero_only_at_the_share_that_is_asked_for() -> None:
    m = torch.ones(10)
    m[0] = 0
    assert float(share_penalty([m, m], 0.9)) == pytest.approx(0, abs=1e-12)
    assert float(share_penalty([m, torch.ones(10)], 0.9)) == pytest.approx(0.01)


def test_overlap_of_bits() -> None:
    a, b = torch.tensor([1, 1, 0, 0]), torch.tensor([0, 1, 1, 0])
    assert jaccard(a, b) == pytest.approx(1 / 3) and jaccard(a, a) == 1 and jaccard(0 * a, 0 * a) == 1


# -- the masked network -------------------------------------------------------------------------


@pytest.mark.parametrize("make", [timm_vit, zoo_vit, lambda: timm_vit(qk_norm=True, reg_tokens=2, init_values=0.1)])
@pytest.mark.parametrize("kind", ["meat", "all", "none"])
def test_without_a_mask_it_is_the_frozen_network(make: Any, kind: str) -> None:
    model = make()
    net = masked(model, kind)
    assert torch.allclose(net(X), model.module.eval()(X), atol=1e-5)
    assert {f"net.{key}" for key in model.module.state_dict()} | {"off"} == set(net.state_dict())


@pytest.mark.parametrize("make", [timm_vit, zoo_vit])
def test_the_mask_reaches_weights_and_tokens(make: Any) -> None:
    model = make()
    net = masked(model, blocks=(1,))
    expected = copy_of(model.module).eval()
    off = torch.rand(net.sites.bits, generator=drawn()) < 0.3
    off[-2:] = True
    parts = net.sites.parts(off)
    with torch.no_grad():
        for name in net.sites.weights:
            expected.get_parameter(name)[parts[name]] = 0
    net.off[0] = pack_bits(off & (torch.arange(len(off)) < len(off) - net.sites.tokens))  # weights alone
    assert torch.allclose(net.told(X, 0), expected(X), atol=1e-5)
    weights_only = net.told(X, 0)
    net.off[0] = pack_bits(off)
    assert not torch.allclose(net.told(X, 0), weights_only, atol=1e-5)


def test_a_hidden_token_changes_no_other() -> None:
    """In the masked block the answer does not depend on the keys of a hidden token, which are changed here."""
    model = timm_vit(depth=1)
    net = masked(model, blocks=(0,))
    off = torch.zeros(net.sites.bits, dtype=torch.bool)
    off[-16:] = True  # all image tokens
    net.off[0] = pack_bits(off)
    other = X.clone()
    other[:, :, 2:] += 1.0
    assert torch.allclose(net.told(X, 0), net.told(other, 0), atol=1e-5)  # the class token saw itself alone
    assert not torch.allclose(model.module.eval()(X), model.module(other), atol=1e-3)


def test_where_masks_go_and_what_they_take() -> None:
    deit = resolve("timm:deit_tiny_patch16_224", pretrained=False)
    sites = masked(deit).sites
    assert sites.bits == 8 * 192**2 * 12 + 3 * 196
    assert sites.policies == tuple(f"blocks.{i}.attn.policy" for i in (3, 6, 9))
    assert sites.storage(192, 100) == 8 * 192**2 * 12 + 3 * 196 + 32 * 193 * 100
    assert masked(deit, "all").sites.bits == 12 * 192**2 * 12
    assert masked(deit, "none").sites.bits == 0
    assert [default_blocks(depth) for depth in (12, 6, 4, 1)] == [(3, 6, 9), (1, 3, 4), (1, 2, 3), (0,)]


def test_gradients_reach_gates_and_head_alone_and_the_penalty_token_gates() -> None:
    net = masked(timm_vit()).requires_grad_(False)
    a = torch.full((net.sites.bits,), 0.5, requires_grad=True)
    parts = net.sites.parts(sample_mask(a, 1.0, drawn()))
    (grad,) = torch.autograd.grad(share_penalty([parts[p] for p in net.sites.policies], 0.9), a)
    tokens = torch.arange(len(a)) >= len(a) - 16 * len(net.sites.policies)
    assert bool((grad[tokens] != 0).all()) and bool((grad[~tokens] == 0).all())
    z = torch.func.functional_call(net.net, net.sites.tensors(net.net, sample_mask(a, 1.0, drawn())), (X,))
    (grad,) = torch.autograd.grad(z[:, 0].sum(), a)
    assert all(bool(part.any()) for part in net.sites.parts(grad).values())


# -- the method ---------------------------------------------------------------------------------


def test_the_backbone_never_changes(fitted: tuple[MEAT, Any, Run]) -> None:
    student, (_, net, _) = tiny_vit(100).module, fitted
    for key, value in student.state_dict().items():
        assert key.startswith("linear") or torch.equal(net.state_dict()[f"net.{key}"], value), key
    assert not any(p.grad is not None for p in net.parameters())
    assert int(net.off.count_nonzero()) > 0


def test_a_later_task_leaves_every_bit_of_earlier_answers(fitted: tuple[MEAT, Any, Run]) -> None:
    _, net, run = fitted
    assert run.left["scores"].scenario == "task"
    for j in range(len(TASKS)):
        assert len({row[j] for row in run.left["scores"].matrices["task"][j:]}) == 1
    assert run.left["scores"].summary()["forgetting"] == run.left["scores"].summary()["backward transfer"] == 0
    _, alone, _ = fit(data=dataclasses.replace(TASKS, tasks=TASKS.tasks[:1]))
    with torch.no_grad():
        assert torch.equal(alone(X)[:, :2], net(X)[:, :2])
        assert not torch.equal(alone(X)[:, 2:], net(X)[:, 2:])


def test_it_answers_as_if_it_were_told_each_task(fitted: tuple[MEAT, Any, Run]) -> None:
    _, net, _ = fitted
    for t, columns in enumerate(TASKS.tasks):
        assert torch.equal(net(X)[:, list(columns)], net.told(X, t))


def test_it_learns() -> None:
    recipe = Recipe(epochs=8, batch_size=16, optimizer="adamw", lr=0.02)
    data = tiny_stream("2", "task")(400)
    scores = {}
    for kind in ("meat", "none"):
        _, _, run = fit(data=data, masks=kind, recipe=recipe, gamma=2.0)
        scores[kind] = run.left["scores"].summary()["average accuracy"]
    assert scores["meat"] > max(scores["none"], 0.5)


def test_what_is_held_is_what_the_formula_says(fitted: tuple[MEAT, Any, Run]) -> None:
    _, net, run = fitted
    sites = net.sites
    assert sites.bits == 2 * 2 * 16 * 32 + 2 * 4  # two blocks of four tokens
    assert run.left["scores"].held == [sum(sites.bits // 8 + 4 * 17 * len(c) for c in TASKS.tasks[: t + 1])
                                  for t in range(len(TASKS))]  # fmt: skip
    assert net.off.shape == (3, sites.bits // 8) and net.off.dtype == torch.uint8


def test_all_bits_and_none() -> None:
    _, net, run = fit(masks="none", data=tiny_stream("2", "task")(160))
    assert net.sites.bits == 0 and run.left["scores"].held == [4 * 17 * 5, 4 * 17 * 10]
    _, net, _ = fit(masks="all", data=tiny_stream("2", "task")(160))
    assert net.sites.bits == 2 * (2 * 16 * 32 + 4 * 16 * 16) and not net.sites.policies


@pytest.mark.slow
@pytest.mark.parametrize("format", ["torch", "onnx"])
def test_the_product_exports(format: str, tmp_path: Path) -> None:
    if format == "onnx":
        pytest.importorskip("onnxruntime")
    method, net, _ = fit(data=tiny_stream("2", "task")(160))
    path = tmp_path / {"torch": "a.pt2", "onnx": "a.onnx"}[format]
    assert write_export(method.product(net, TASKS), path, format) < 1e-4


def test_the_product_is_data(tmp_path: Path) -> None:
    method, net, _ = fit(student=zoo_vit(), blocks=(1, 3), data=tiny_stream("2", "task")(160))
    product = method.product(net, TASKS)
    assert product.reference == "continual:meat" and product.classes == TASKS.classes
    save(product, tmp_path / "model")
    again = load(tmp_path / "model")
    with torch.no_grad():
        assert torch.equal(again.module(X), net(X))
    assert json.loads((tmp_path / "model" / "architecture.json").read_text())["options"]["blocks"] == [1, 3]


def test_damaged_options_are_named(tmp_path: Path) -> None:
    method, net, _ = fit(student=zoo_vit(), data=tiny_stream("2", "task")(160))
    good = method.product(net, TASKS)
    for change in ({"tasks": [[99]]}, {"blocks": [9]}, {"masks": "some"}, {"tasks": 3}, {"source": {}}, {"more": 1}):
        save(dataclasses.replace(good, options={**good.options, **change}), tmp_path / "model")
        with pytest.raises(UserError):
            load(tmp_path / "model")
    with pytest.raises(UserError, match="directory"):
        resolve("continual:meat")


def test_it_goes_on_from_what_it_kept(tmp_path: Path) -> None:
    whole = tiny_stream("2,3,5", "task")(160)
    five = whole.classes[:5]
    start = dataclasses.replace(
        whole, tasks=whole.tasks[:2], classes=five, make=lambda t: dataclasses.replace(whole.make(t), classes=five)
    )
    first, net, run = fit(student=zoo_vit(), data=start)
    save(first.product(net, start), tmp_path / "model")
    rest = dataclasses.replace(whole, tasks=whole.tasks[2:], make=lambda t: whole.make(t + 2))
    options: dict[str, Any] = {"student": load(tmp_path / "model"), "past": run.left["kept"], "data": rest}
    method, extended, again = fit(**options)
    with torch.no_grad():
        assert torch.equal(extended(X)[:, :5], net(X))
    assert extended.tasks == whole.tasks and again.left["kept"].tasks == whole.tasks
    save(method.product(extended, rest), tmp_path / "more")
    assert torch.equal(load(tmp_path / "more").module(X), extended(X))
    with pytest.raises(UserError, match="--masks meat"):
        fit(**options, masks="all")
    with pytest.raises(UserError, match="not given"):
        fit(**{**options, "past": None})


def test_classes_of_no_task_are_answered_as_before() -> None:
    student = tiny_vit(100)
    stream = dataclasses.replace(TASKS, tasks=TASKS.tasks[2:], make=lambda t: TASKS.make(t + 2))
    _, net, _ = fit(student=student, data=stream)
    assert torch.allclose(net(X)[:, :6], student.module.eval()(X)[:, :6], atol=1e-5)
    assert not torch.allclose(net(X)[:, 6:], student.module(X)[:, 6:], atol=1e-3)


def test_pictures_of_what_tasks_use(tmp_path: Path) -> None:
    fit(Run(tmp_path, seed=1, quiet=True), data=tiny_stream("2", "task")(160))
    found = {f.stem: json.loads(f.read_text()) for f in (tmp_path / "pictures").iterdir()}
    overlap, kept = found["mask_overlap"]["values"], found["kept_weights"]["values"]
    assert overlap[0][0] == overlap[1][1] == 1 and 0 < overlap[0][1] == overlap[1][0] < 1
    assert all(0 < share < 1 for row in kept for share in row) and len(kept[0]) == 2
    assert len(found["token_masks"]["items"]) == 4


def convolutional() -> Model:
    return dataclasses.replace(tiny_model("student", 0), module=tiny_net())


class Linear(nn.Module):
    """Attention that is no softmax, under the usual names."""

    def __init__(self, d: int) -> None:
        super().__init__()
        self.num_heads, self.qkv = 2, nn.Linear(d, 3 * d)

    def forward(self, x: Tensor, **_: Any) -> Tensor:
        return self.qkv(x)[..., : x.shape[-1]]


def another() -> Model:
    model = timm_vit()
    model.module.blocks[1].attn = Linear(16)
    return model


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"data": tiny_stream("5", "class")(160)}, "--scenario task"),
        ({"student": convolutional()}, "no blocks"),
        ({"student": another()}, "softmax"),
        ({"blocks": (2,)}, "blocks 0 to 1"),
        ({"gamma": 0.0}, "gamma"),
        ({"kappa": 1.5}, "kappa"),
        ({"r": -1.0}, "r must"),
        ({"recipe": Recipe()}, "adamw"),
    ],
)
def test_mistakes_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        fit(**options)
