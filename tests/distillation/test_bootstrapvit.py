"""BootstrapViT: the convolution that heads are, what is shared, who learns from what, and what is refused."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import upcycle
from tests.settings import tiny_data, tiny_model, tiny_plain_vit
from upcycle import cli
from upcycle.claims.bootstrapvit import CLAIM
from upcycle.core.errors import UserError
from upcycle.core.losses import Terms, ce_loss
from upcycle.core.models import Model
from upcycle.core.recipe import Recipe
from upcycle.core.run import Run
from upcycle.core.store import tensor_digest
from upcycle.core.taps import Taps
from upcycle.core.tokens import blocks_of
from upcycle.distillation import BootstrapViT, Plain
from upcycle.distillation.bootstrapvit import (
    Agent,
    feature_loss,
    generalised_convolution,
    head_kernel,
    reset_faithfully,
    shared_of,
)
from upcycle.zoo.vit import ViT
from upcycle.zoo.vit_plain import PlainViT

RECIPE = Recipe(epochs=2, batch_size=32, optimizer="adamw", lr=0.01)


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def nine(depth: int = 2) -> Model:
    """Nine heads over six rows of four columns."""
    torch.manual_seed(0)
    module = PlainViT((1, 12, 8), 10, patch=2, width=18, depth=depth, heads=9)
    return dataclasses.replace(tiny_model("student", 0), module=module, input_shape=(1, 12, 8))


def agent_of(model: Model, **options: Any) -> Agent:
    torch.manual_seed(1)
    return BootstrapViT(student=model, recipe=RECIPE, **options).agent(model)


def shifts(h: int, w: int, k: int) -> Tensor:
    """Φ (k², n, n): 1 where token j stands at place m of the window around token i, in an image of n = h w tokens."""
    phi = torch.zeros(k * k, h * w, h * w)
    for i in range(h * w):
        for m in range(k * k):
            row, column = i // w + m // k - k // 2, i % w + m % k - k // 2
            if 0 <= row < h and 0 <= column < w:
                phi[m, i, row * w + column] = 1
    return phi


@pytest.mark.parametrize("heads", [4, 9, 16])
def test_the_layer_is_attention_that_looks_at_one_place_a_head(heads: int) -> None:
    d, h, w = 3 * heads, 5, 4
    w_v, w_o, b_o, x = draw(d, d, seed=1) / d**0.5, draw(d, d, seed=2) / d**0.5, draw(d, seed=3), draw(2, h * w, d)
    mixed = torch.zeros_like(x)
    for m, phi in enumerate(shifts(h, w, round(heads**0.5))):
        rows = slice(3 * m, 3 * m + 3)
        mixed = mixed + phi @ x @ (w_o[:, rows] @ w_v[rows]).T
    found = generalised_convolution(x.transpose(1, 2).unflatten(2, (h, w)), w_v, w_o, b_o, heads)
    torch.testing.assert_close(found.flatten(2).transpose(1, 2), mixed + b_o, rtol=1e-5, atol=1e-5)


def test_nine_heads_are_a_3x3_convolution_borders_included() -> None:
    w_v, w_o, b_o, x = draw(18, 18, seed=1), draw(18, 18, seed=2), draw(18, seed=3), draw(2, 18, 6, 4)
    weight = torch.empty(18, 18, 3, 3)
    for dy in range(3):
        for dx in range(3):
            m = slice(2 * (3 * dy + dx), 2 * (3 * dy + dx) + 2)
            weight[:, :, dy, dx] = w_o[:, m] @ w_v[m]
    expected = F.conv2d(x, weight, b_o, padding=1)
    found = generalised_convolution(x, w_v, w_o, b_o, 9)
    assert float((found - expected).abs().max()) <= 1e-5 * float(expected.abs().max())


def test_attention_that_is_forced_to_the_window_is_the_agents_layer() -> None:
    """The transformer's own attention, its class token removed and b_V zero, with Φ in the place of its softmax."""
    model = nine()
    block = model.module.get_submodule("blocks.0")
    x = draw(2, 24, 18)
    qkv = block.attention.qkv(x).unflatten(-1, block.attention.split).permute(2, 0, 3, 1, 4)
    forced = block.attention.out((shifts(6, 4, 3) @ qkv[2]).transpose(1, 2).flatten(2))
    spread = agent_of(model, mode="shared").blocks[0].spread(x.transpose(1, 2).unflatten(2, (6, 4)))
    torch.testing.assert_close(spread.flatten(2).transpose(1, 2), forced, rtol=1e-5, atol=1e-5)


def test_the_agents_own_gradient_reaches_what_it_shares_and_nothing_else_of_the_transformer() -> None:
    model, x = nine(), draw(4, 1, 12, 8)
    ce_loss(agent_of(model, mode="shared")(x), torch.arange(4)).backward()
    qkv = model.module.get_parameter("blocks.0.attention.qkv.weight").grad
    assert qkv is not None and not qkv[:36].any() and qkv[36:].abs().sum() > 0
    reached = {name for name, p in model.module.named_parameters() if p.grad is not None and p.grad.any()}
    of_block = (
        "attention.qkv.weight",
        "attention.out.weight",
        "attention.out.bias",
        "mlp.0.weight",
        "mlp.0.bias",
        "mlp.2.weight",
        "mlp.2.bias",
    )
    assert reached == {f"blocks.{i}.{name}" for i in range(2) for name in of_block}


def test_shared_weights_are_the_same_after_a_step_and_counted_once() -> None:
    model = nine()
    agent = agent_of(model, mode="shared")
    assert set(agent.parameters()).isdisjoint(model.module.parameters())
    count = sum(p.numel() for p in agent.parameters())
    assert count == (4 + 1) * 18 + 2 * 4 * 18 + 2 * 18 + 19 * 10  # stem, norms of the blocks, head
    x = draw(4, 1, 12, 8)
    before, kernel = agent(x), agent.blocks[0].spread(draw(1, 18, 6, 4))
    optimizer = torch.optim.SGD([*model.module.parameters(), *agent.parameters()], lr=0.1)
    model.module(x).square().mean().backward()  # of the transformer alone
    optimizer.step()
    assert not torch.equal(agent.blocks[0].spread(draw(1, 18, 6, 4)), kernel) and not torch.equal(agent(x), before)
    layers = shared_of(model.module.get_submodule("blocks.0"))
    assert layers is not None
    made = head_kernel(layers.qkv.weight[36:], layers.out.weight, 9)
    torch.testing.assert_close(made[:, :, 0, 0], layers.out.weight[:, :2] @ layers.qkv.weight[36:38])


def test_the_loss_between_features_reaches_the_transformer_alone_and_vanishes_where_features_are_alike() -> None:
    model, x = nine(), draw(4, 1, 12, 8)
    agent, blocks = agent_of(model), blocks_of(model)
    assert (blocks.prefix, blocks.grid, blocks.width, blocks.places) == (1, (6, 4), 18, 24)
    with Taps(model.module, blocks.names) as tokens, Taps(agent, ["blocks.0", "blocks.1"]) as maps:
        model.module(x)
        agent(x)
    of_vit, of_agent = [tokens[n][:, 1:] for n in blocks.names], [maps[f"blocks.{i}"] for i in range(2)]
    loss = feature_loss(of_vit, of_agent, (6, 4))
    loss.backward()
    assert all(p.grad is None for p in agent.parameters()) and loss.item() > 0.1
    assert model.module.get_parameter("stem.weight").grad.abs().sum() > 0  # type: ignore[union-attr]
    scaled = [3 * t.transpose(1, 2).unflatten(2, (6, 4)) + 1 for t in of_vit]
    assert feature_loss(of_vit, scaled, (6, 4)).item() < 1e-6  # normalised over channels


def test_larger_maps_are_pooled_in_two_dimensions() -> None:
    tokens, image = draw(2, 4, 3), draw(2, 3, 4, 6)
    pooled = F.avg_pool2d(image, (2, 3))
    norm = nn.LayerNorm(3, elementwise_affine=False)
    expected = F.mse_loss(norm(tokens), norm(pooled.flatten(2).transpose(1, 2)))
    torch.testing.assert_close(feature_loss([tokens], [image], (2, 2)), expected)
    swapped = feature_loss([image.flatten(2).transpose(1, 2)], [tokens.transpose(1, 2).unflatten(2, (2, 2))], (4, 6))
    torch.testing.assert_close(swapped, expected)


def fit(method: Any, data: Any = None) -> tuple[nn.Module, Any]:
    run = Run(None, seed=5, quiet=True)
    return method.fit(run, tiny_data() if data is None else data), run.journal.rows


def test_without_terms_between_the_networks_it_is_plain_training_bit_for_bit() -> None:
    alone, _ = fit(Plain(student=tiny_plain_vit(3), recipe=RECIPE))
    terms = Terms(w_kd=0.0, w_ce=1.0)
    beside, _ = fit(BootstrapViT(student=tiny_plain_vit(3), terms=terms, w_feat=0.0, recipe=RECIPE))
    assert tensor_digest(alone.state_dict()) == tensor_digest(beside.state_dict())
    joint, _ = fit(BootstrapViT(student=tiny_plain_vit(3), recipe=RECIPE))
    assert tensor_digest(joint.state_dict()) != tensor_digest(alone.state_dict())


@pytest.mark.parametrize("mode", ["joint", "shared"])
def test_the_product_answers_alike_without_its_agent(mode: Any) -> None:
    made, rows = fit(BootstrapViT(student=tiny_plain_vit(3), mode=mode, recipe=RECIPE))
    fresh, x = tiny_plain_vit(4).module, draw(3, 1, 8, 8)
    fresh.load_state_dict(made.state_dict())
    with torch.no_grad():
        assert torch.equal(fresh.eval()(x), made(x))
    names = {row[3] for row in rows}
    assert {"transformer_loss", "agent_loss", "feature_loss", "agent_accuracy", "validation_accuracy"} <= names


def test_each_option_changes_what_is_learnt() -> None:
    data = tiny_data(64)
    options: list[dict[str, Any]] = [
        {},
        {"mode": "shared"},
        {"stem": "convolutions"},
        {"pool_after": (0,)},
        {"norm": "post"},
        {"w_feat": 1.0},
        {"faithful_init": True},
        {"mode": "shared", "norm": "post"},
    ]
    made = [fit(BootstrapViT(student=tiny_plain_vit(3), recipe=RECIPE, **one), data)[0] for one in options]
    assert len({tensor_digest(network.state_dict()) for network in made}) == len(options)


def test_the_authors_initialisation() -> None:
    model = nine(4)
    before = model.module.get_parameter("blocks.0.attention.qkv.weight").clone()
    reset_faithfully(model, blocks_of(model))
    bias, patches = (model.module.get_parameter(name) for name in ("blocks.3.mlp.0.bias", "stem.weight"))
    assert bias.std().item() == pytest.approx(1, abs=0.3) and patches.std().item() == pytest.approx(1, abs=0.3)
    assert torch.equal(model.module.get_parameter("blocks.0.attention.qkv.weight"), before)


def test_it_works_on_transformers_of_timm_and_without_a_class_token() -> None:
    vision = pytest.importorskip("timm.models.vision_transformer", reason="timm is not installed (extra vision)")
    torch.manual_seed(0)
    theirs = vision.VisionTransformer(8, 2, 1, 10, embed_dim=12, depth=2, num_heads=4)
    model = dataclasses.replace(tiny_model("student", 3), module=theirs)
    method = BootstrapViT(student=model, mode="shared", recipe=RECIPE)
    method.require(tiny_data())
    made, _ = fit(method)
    assert made is theirs and all(p.isfinite().all() for p in made.parameters())
    zoo = dataclasses.replace(tiny_model("student", 3), module=ViT((1, 8, 8), 10, 16, 2, 4))
    assert blocks_of(zoo).prefix == 0
    BootstrapViT(student=zoo, recipe=RECIPE).require(tiny_data())


# -- what is refused --------------------------------------------------------------------------------------------


def heads(number: int, width: int = 12) -> Model:
    module = PlainViT((1, 8, 8), 10, patch=2, width=width, depth=2, heads=number)
    return dataclasses.replace(tiny_model("student", 0), module=module)


def test_heads_that_fill_no_window_are_refused_by_name() -> None:
    for number in (1, 2, 3, 6):
        with pytest.raises(UserError, match=f"has {number} heads in blocks.0, and only 4, 9 or 16 fill a square"):
            BootstrapViT(student=heads(number)).require(tiny_data())
    for number in (4, 9, 16):
        BootstrapViT(student=heads(number, 144)).require(tiny_data())


def test_what_is_no_transformer_is_refused() -> None:
    with pytest.raises(UserError, match="bootstrapvit cannot run here: student is no vision transformer whose blocks"):
        BootstrapViT(student=tiny_model("student", 0)).require(tiny_data())
    odd = tiny_plain_vit(0)
    odd.module.get_submodule("blocks.1").mlp = None  # type: ignore[assignment]
    odd.module.get_submodule("blocks.1").forward = lambda x: x  # type: ignore[method-assign]
    with pytest.raises(UserError, match=r"one linear layer qkv and one behind it, or no mlp, in blocks\.1"):
        BootstrapViT(student=odd).require(tiny_data())


def test_images_labels_and_options_that_do_not_fit_are_refused() -> None:
    with pytest.raises(UserError, match="it learns from labels, and no training image has one"):
        BootstrapViT(student=tiny_plain_vit(0)).require(tiny_data().hide_labels(0, 0))
    with pytest.raises(UserError, match="takes images of 1 x 12 x 8, and those of digits are 1 x 8 x 8"):
        BootstrapViT(student=nine()).require(tiny_data())
    with pytest.raises(UserError, match="has the blocks 0 to 1, so pool_after cannot name 2"):
        BootstrapViT(student=tiny_plain_vit(0), pool_after=(0, 2)).require(tiny_data())
    for options in ({"w_feat": -1.0}, {"w_feat": float("inf")}, {"pool_after": (-1,)}):
        with pytest.raises(UserError, match=next(iter(options))):
            BootstrapViT(student=tiny_plain_vit(0), **options)  # type: ignore[arg-type]


def test_the_command_takes_no_teacher_and_can_train_the_student_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["distill", "--method=bootstrapvit", "--student=zoo:vit_plain", "--data=digits", "--shots=20"]
    words += ["--recipe.epochs=1", f"--out={tmp_path / 'run'}"]
    assert cli.main([*words, "--teacher=zoo:digits_teacher"]) == 2
    assert "bootstrapvit takes no teacher; leave out --teacher" in capsys.readouterr().err
    for odd in ("--mode=both", "--stem=resnet", "--norm=none"):
        assert cli.main([*words, odd]) == 2 and not (tmp_path / "run").exists()
        assert odd.split("=")[1] in capsys.readouterr().err
    assert cli.main([*words, "--alone"]) == 0
    said = capsys.readouterr().out
    assert "vit_plain alone" in said and "vit_plain by bootstrapvit" in said and "trained alone" in said
    back = upcycle.load(tmp_path / "run")
    assert back.module(back.example()).shape == (2, 10)


@pytest.mark.slow
def test_the_claim_runs_in_small(cifar10: Path) -> None:
    figures = CLAIM.measure(99, True)
    assert set(CLAIM.headline.arms) <= set(figures)
    assert figures["shared convolution against F.conv2d (relative)"] <= 1e-5
    assert figures["the product without its agent (apart)"] == 0
