"""CMAE: masks, views, losses, who follows whom, the step of a masked autoencoder, and what is refused."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from benchmarks.cmae_step import twin_of
from torch import Tensor, nn

import upcycle
from tests.settings import tiny_data, tiny_model, tiny_plain_vit, tiny_vit
from upcycle import cli
from upcycle.adaptation import CMAE
from upcycle.adaptation.cmae import contrast_loss, reconstruction_loss
from upcycle.adaptation.masked import pictures
from upcycle.adaptation.masked.parts import (
    Decoder,
    average,
    groups_of,
    hidden_places,
    images_of,
    patches_of,
    positions,
    standardised,
    trained,
    visible_places,
)
from upcycle.adaptation.masked.views import ShiftedViews, blur
from upcycle.claims.cmae import CLAIM
from upcycle.core.errors import UserError
from upcycle.core.models import Model, copy_of
from upcycle.core.recipe import Recipe
from upcycle.core.run import Run
from upcycle.core.store import tensor_digest
from upcycle.core.tokens import Blocks, blocks_of, encode, last_of, leaking
from upcycle.data import Images
from upcycle.zoo.vit_plain import PlainViT

CPU = torch.device("cpu")
PAPER = Blocks(names=tuple(f"blocks.{i}" for i in range(12)), prefix=1, grid=(14, 14), width=768)
SMALL: dict[str, Any] = {"mask": 0.5, "shift": 1, "projection": 8, "decoder_width": 8}
RECIPE = Recipe(epochs=2, batch_size=32, optimizer="adamw", lr=0.01, weight_decay=0.1)


def draw(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def made(**options: Any) -> CMAE:
    return CMAE(**{"source": tiny_plain_vit(3), "recipe": RECIPE, **SMALL, **options})


# -- masks, patches, decoders -----------------------------------------------------------------------------------


def test_masks_are_unions_of_whole_groups_and_leave_as_many_tokens_as_in_the_paper() -> None:
    kept = CMAE(source=nn.Identity()).kept(49)
    assert kept == 17
    keep = visible_places(draw(3, 49).abs(), (14, 14), 2, kept)
    assert keep.shape == (3, 68) and bool((keep.diff(dim=1) > 0).all())
    seen = torch.zeros(3, 196).scatter_(1, keep, 1.0).view(3, 7, 2, 7, 2)
    assert torch.equal(seen.amax((2, 4)), seen.amin((2, 4)))  # no group in part
    assert not torch.equal(keep[0], keep[1])
    hidden = hidden_places(keep, 196)
    assert torch.equal(torch.cat([keep, hidden], 1).sort(1).values, torch.arange(196).expand(3, -1))
    assert [CMAE(source=nn.Identity(), mask=0.9).kept(n) for n in (10, 20, 9)] == [1, 2, 0]  # no rounding down of 1


def test_every_visible_token_comes_back_to_its_place() -> None:
    decoder = Decoder(PAPER, 16, 1, 5)
    decoder.position.zero_()
    decoder.blocks, decoder.norm = nn.Sequential(), nn.LayerNorm(16, elementwise_affine=False)
    keep, z = visible_places(draw(2, 49), (14, 14), 2, 17), draw(2, 69, 768)
    found, expected = decoder(z, keep), decoder.out(decoder.norm(decoder.embed(z[:, 1:])))
    torch.testing.assert_close(found.gather(1, keep[..., None].expand(-1, -1, 5)), expected)
    others = found.gather(1, hidden_places(keep, 196)[..., None].expand(-1, -1, 5))
    torch.testing.assert_close(others, decoder.out(decoder.norm(decoder.hidden)).expand(2, 128, -1))


def test_patches_and_back() -> None:
    images = draw(2, 3, 8, 12)
    patches = patches_of(images, (2, 4))
    assert patches.shape == (2, 8, 36)
    assert torch.equal(patches[1, 6].view(4, 3, 3), images[1, :, 4:8, 6:9].permute(1, 2, 0))
    assert torch.equal(images_of(patches, (2, 4), (3, 8, 12)), images)
    ready, mean, divisor = standardised(patches)
    assert float(ready.mean(2).abs().max()) < 1e-5
    torch.testing.assert_close(ready.var(2), torch.ones(2, 8), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(ready * divisor + mean, patches)


def test_parameters_are_as_many_as_the_papers() -> None:
    def count(module: nn.Module) -> int:
        return sum(p.numel() for p in module.parameters())

    method = CMAE(source=nn.Identity())
    assert method.width(PAPER) == 512
    pixels, online, _ = method.parts(nn.Identity(), PAPER, 768)
    assert pixels is not None and online is not None
    assert count(pixels) == 26_008_320 and len(pixels.blocks) == 8
    assert count(online.decoder) == 7_094_016 and len(online.decoder.blocks) == 2
    assert count(online.projector) == 1_577_472 and count(online.predictor) == 791_040
    assert pixels.blocks[0].attention.split == (3, 16, 32)


def test_positions_are_those_of_transformers() -> None:
    theirs = pytest.importorskip("transformers.models.vit_mae.modeling_vit_mae", reason="transformers is not installed")
    table = theirs.build_2d_sinusoidal_position_embedding(3, 5, 16, cls_token=True)
    expected = torch.cat([table[:, 8:], table[:, :8]], 1)  # rows and columns as MAE's own code has them
    torch.testing.assert_close(positions((3, 5), 16, 1)[0], expected)


# -- views ------------------------------------------------------------------------------------------------------


def views(data: Images, **options: Any) -> Tensor:
    made = ShiftedViews(data.train, **{"shift": 2, "scale": 1.0, **options})
    return made.batch(torch.arange(len(data.train)), device=CPU, view=(1, 0)).images


def test_the_target_is_the_online_view_shifted_by_whole_pixels() -> None:
    data = tiny_data(100)
    both, h = views(data, recolour=False), 8
    found = set()
    for online, target in both:
        fits = [
            (r, c)
            for r in range(3)
            for c in range(3)
            if torch.allclose(online[:, r:, c:], target[:, : h - r, : h - c], atol=1e-5)
        ]
        assert fits
        found |= {fits[0]} if len(fits) == 1 else set()
    assert len(found) == 9  # 0 to 2 in both directions
    still = views(data, shift=0, recolour=False)
    assert torch.equal(still[:, 0], still[:, 1])
    whole = data.train.batch(torch.arange(100), device=CPU).images
    torch.testing.assert_close(still[:, 0], whole, rtol=1e-4, atol=1e-4)  # scale 1 and no shift: the image
    moved = views(data, shift=0)
    assert not torch.equal(moved[:, 0], moved[:, 1]) and torch.equal(moved[:, 0], still[:, 0])


def test_a_view_depends_on_nothing_but_seed_epoch_and_sample() -> None:
    data = tiny_data(40)
    split = ShiftedViews(data.train, 2, 0.3)
    whole = split.batch(torch.arange(40), device=CPU, view=(1, 3)).images
    part = split.batch(torch.tensor([7, 30]), device=CPU, view=(1, 3)).images
    assert torch.equal(part, whole[[7, 30]])
    assert not torch.equal(split.batch(torch.arange(40), device=CPU, view=(1, 4)).images, whole)
    alone = ShiftedViews(data.train, 2, 0.3, target=False).batch(torch.arange(40), device=CPU, view=(1, 3)).images
    assert alone.shape == (40, 1, 1, 8, 8) and torch.equal(alone[:, 0], whole[:, 0])
    assert (len(split), split.ordered, split.together) == (40, data.train.ordered, False)
    assert torch.equal(split.labels, data.train.labels)


def test_colours_change_grey_and_blur_some() -> None:
    g = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (400, 16, 16, 3), generator=g, dtype=torch.uint8)
    split = dataclasses.replace(
        tiny_data().train,
        images=pixels,
        labels=torch.zeros(400, dtype=torch.long),
        ids=torch.arange(400),
        mean=(0.0,) * 3,
        std=(1.0,) * 3,
    )
    both = ShiftedViews(split, 0, 1.0).batch(torch.arange(400), device=CPU, view=(1, 0)).images
    grey = (both[:, 1].amax(1) - both[:, 1].amin(1)).amax((1, 2)) < 1e-5
    assert 0.1 < float(grey.float().mean()) < 0.3
    same = (both[:, 1] - both[:, 0]).abs().amax((1, 2, 3)) < 1e-3
    assert 0.08 < float(same.float().mean()) < 0.25  # neither jittered nor grey; so few pixels are hardly blurred
    image = torch.zeros(1, 1, 224, 224)
    image[..., 112, 112] = 1
    made = blur(image, torch.tensor([2.0]))
    assert float(made.sum()) == pytest.approx(1, abs=1e-5)
    spread = (made[0, 0].sum(1) * (torch.arange(224.0) - 112) ** 2).sum().sqrt()
    assert float(spread) == pytest.approx(2, abs=0.05)


# -- losses -----------------------------------------------------------------------------------------------------


def test_the_reconstruction_ignores_what_was_visible() -> None:
    pred, patches, keep = draw(2, 16, 4), draw(2, 16, 4, seed=1), visible_places(draw(2, 4), (4, 4), 2, 2)
    hidden = hidden_places(keep, 16)
    loss = reconstruction_loss(pred, patches, hidden)
    other = pred.scatter(1, keep[..., None].expand(-1, -1, 4), 7.0)
    assert torch.equal(reconstruction_loss(other, patches, hidden), loss) and loss.shape == (2,)
    expected = (pred - standardised(patches)[0])[0, hidden[0]].square().mean()
    torch.testing.assert_close(loss[0], expected)
    assert float(reconstruction_loss(standardised(patches)[0], patches, hidden).max()) == 0


def test_the_contrast_of_equal_targets_and_of_images_that_are_apart() -> None:
    p = draw(6, 8, dtype=torch.float64)
    assert float(contrast_loss(p, torch.ones(6, 8, dtype=torch.float64), 0.07)) == pytest.approx(0.14 * math.log(6))
    apart = torch.eye(6, dtype=torch.float64)
    assert float(contrast_loss(3 * apart, apart, 0.01)) < 1e-12
    assert float(contrast_loss(apart, apart.roll(1, 0), 0.07)) > 2 - 1e-3
    z = p.clone().requires_grad_()
    contrast_loss(z, z, 0.07).backward()
    again = p.clone().requires_grad_()
    contrast_loss(again, p, 0.07).backward()
    assert torch.equal(z.grad, again.grad)  # type: ignore[arg-type]  # none through the targets


# -- who learns, and who follows --------------------------------------------------------------------------------


class Known(CMAE):
    """Keeps the parts that a fit makes."""

    def parts(self, network: nn.Module, blocks: Blocks, patch: int) -> Any:
        torch.manual_seed(9)
        self.made = super().parts(network, blocks, patch)
        self.first = copy_of(network)
        self.begun = [None if part is None else copy_of(part) for part in self.made]
        return self.made


def known(**options: Any) -> Known:
    return Known(**{"source": tiny_plain_vit(3), "recipe": RECIPE, **SMALL, **options})


def test_the_target_gets_no_gradient_and_follows_by_name() -> None:
    data = tiny_data(32)
    method = known(recipe=dataclasses.replace(RECIPE, epochs=1))
    made = method.fit(Run(None, seed=5, precision="64-true"), data)
    _, online, target = method.made
    begun = {name: p.detach().double() for name, p in method.begun[2].named_parameters()}  # type: ignore[union-attr]
    after = {f"network.{name}": p.detach() for name, p in made.named_parameters()}
    after |= {f"projector.{name}": p.detach() for name, p in online.projector.named_parameters()}
    moved = 0
    for name, p in target.named_parameters():
        assert p.grad is None and not p.requires_grad
        expected = 0.996 * begun[name] + 0.004 * after[name]
        assert float((p.cpu() - expected).abs().max()) <= 1e-7, name
        moved += int(not torch.equal(p.cpu(), begun[name]))
    assert moved > 20
    means = [m.running_mean for m in target.modules() if isinstance(m, nn.BatchNorm1d)]
    assert means and all(bool(mean.abs().sum() > 0) for mean in means)  # of its own batches


def test_averages_go_by_name_and_not_by_order() -> None:
    a, b = nn.ModuleDict({"x": nn.Linear(1, 1), "y": nn.Linear(1, 1)}), nn.ModuleDict()
    b["y"], b["x"] = nn.Linear(1, 1), nn.Linear(1, 1)
    for name in ("x", "y"):
        b[name].load_state_dict(a[name].state_dict())
    before = {name: p.clone() for name, p in a.named_parameters()}
    average(a, b, 0.5)
    assert all(torch.equal(p, before[name]) for name, p in a.named_parameters())
    with pytest.raises(KeyError):
        average(a, nn.ModuleDict({"x": nn.Linear(1, 1)}), 0.5)


def test_without_the_contrast_it_is_the_masked_autoencoder_of_transformers_step_by_step() -> None:
    """Loss, gradients and weights after two epochs, against ViTMAEForPreTraining with the same masks and views."""
    pytest.importorskip("transformers", reason="transformers is not installed (extra hub)")
    data = tiny_data(70)
    method = known(w_contrast=0.0, group=1, scale=0.5, source=tiny_plain_vit(3))
    found = method.fit(Run(None, seed=5, precision="64-true"), data)
    pixels = method.begun[0]
    assert method.made[1:] == (None, None) and pixels is not None
    theirs = twin_of(method.first.double(), pixels.double(), 8, 1, 0.5)
    own = [p for p in theirs.parameters() if p.requires_grad]
    optimizer = RECIPE.make(groups_of(own, betas=(0.9, 0.95)))
    run = Run(None, seed=5, precision="64-true")
    for _ in run.epochs(RECIPE.epochs):
        for both, _, index in run.batches(method.views(data.normalised((0.3,), (0.4,))), 32):
            noise = torch.ones(len(index), 16, dtype=torch.float64)
            noise.scatter_(1, method.visible(run, data.train.ids[index], blocks_of(tiny_plain_vit(3))), 0.0)
            noise += torch.arange(16) * 1e-3
            loss = theirs(both[:, 0], noise=noise).loss
            RECIPE.schedule_rate(optimizer, run.progress)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
    expected = twin_of(found.double(), method.made[0].double().cpu(), 8, 1, 0.5)  # type: ignore[arg-type]
    after = theirs.state_dict()
    for name, value in expected.state_dict().items():
        assert float((value - after[name]).abs().max()) <= 1e-8, name


def test_labels_play_no_part_but_in_the_classifier() -> None:
    data = tiny_data(64)
    with_labels = made().fit(Run(None, seed=5), data)
    bare = dataclasses.replace(data.validation, labels=torch.full_like(data.validation.labels, -1))
    without = made().fit(Run(None, seed=5), dataclasses.replace(data.hide_labels(0, 0), validation=bare))
    for (name, p), (_, q) in zip(with_labels.named_parameters(), without.named_parameters(), strict=True):
        assert torch.equal(p, q) == (not name.startswith("linear.")), name
    assert torch.equal(without.linear.weight, tiny_plain_vit(3).module.linear.weight)  # as it came


def test_each_option_changes_what_is_learnt_and_no_weights_is_a_probe_alone() -> None:
    data = tiny_data(64)
    options: list[dict[str, Any]] = [
        {},
        {"mask": 0.75},
        {"group": 1},
        {"shift": 0},
        {"scale": 1.0},
        {"recolour": False},
        {"w_pixels": 0.0},
        {"w_contrast": 0.0},
        {"tau": 0.5},
        {"momentum": 0.5},
        {"projection": 4},
        {"decoder_width": 16},
        {"decoder_depth": 2},
        {"feature_depth": 2},
    ]
    nets = [made(**one).fit(Run(None, seed=5), data) for one in options]
    assert len({tensor_digest(net.state_dict()) for net in nets}) == len(options)
    method = made(w_pixels=0.0, w_contrast=0.0)
    still = method.fit(Run(None, seed=5), data)
    assert method.steps(64) == 0 and made().steps(64) == 4
    before = tiny_plain_vit(3).module.state_dict()
    assert all(torch.equal(p, before[name]) for name, p in still.state_dict().items() if not name.startswith("linear."))
    assert not torch.equal(still.linear.weight, before["linear.weight"])


def test_the_classifier_is_left_out_of_training_and_of_what_decays() -> None:
    network = tiny_plain_vit(3).module
    blocks = blocks_of(tiny_plain_vit(3))
    x, last = draw(2, 1, 8, 8), last_of(tiny_plain_vit(3), blocks)
    assert last == "norm"
    theta = trained(network, x, blocks, last)
    names = {name for name, p in network.named_parameters() if any(p is q for q in theta)}
    assert {name for name, _ in network.named_parameters()} - names == {"linear.weight", "linear.bias"}
    decays, rest = groups_of(theta, betas=(0.9, 0.95))
    assert {p.ndim for p in decays["params"]} == {2, 4} and {p.ndim for p in rest["params"]} == {1, 3}
    assert rest["weight_decay"] == 0 and "weight_decay" not in decays


def test_tokens_that_are_left_out_cost_nothing_and_leave_the_others_what_they_are() -> None:
    model = tiny_plain_vit(3)
    network, blocks, x = model.module, blocks_of(model), draw(2, 1, 8, 8)
    keep = torch.tensor([[0, 3, 15], [1, 2, 9]])
    tokens = network.tokens(network.stem(x))
    expected = network.norm(
        network.blocks(
            torch.cat([tokens[:, :1], torch.stack([t[1 + places] for t, places in zip(tokens, keep, strict=True)])], 1)
        )
    )
    assert torch.equal(encode(network, x, blocks, "norm", keep), expected)
    assert torch.equal(encode(network, x, blocks, "norm"), network.norm(network.blocks(tokens)))
    assert not any(m._forward_pre_hooks or m._forward_hooks for m in network.modules())


def test_the_probe_is_as_good_as_the_features_are_and_the_picture_shows_them(tmp_path: Path) -> None:
    run = Run(tmp_path, seed=1)
    data = tiny_data(160)
    method = made()
    net = method.fit(run, data)
    x = data.train.batch(torch.arange(160), device=CPU).images
    accuracy = float((net(x).argmax(1) == data.train.labels).double().mean())
    assert accuracy > 0.3
    model = method.product(net, data)
    assert model.classes == data.classes and model.name == "student-cmae"
    assert (tmp_path / "pictures" / "1-reconstruction.json").is_file()
    run.close()
    images, keep = x[:2], torch.tensor([[0, 1], [4, 5]])
    whole = standardised(patches_of(images, (4, 4)))[0]
    torch.testing.assert_close(pictures.rebuilt(images, whole, keep, (4, 4)), images, rtol=1e-4, atol=1e-4)
    flat = pictures.rebuilt(images, torch.zeros_like(whole), keep, (4, 4))
    assert torch.equal(flat[0, :, :2, :4], images[0, :, :2, :4])  # what was visible
    torch.testing.assert_close(flat[0, 0, 6, 6], images[0, 0, 6:, 6:].mean())


# -- what is refused --------------------------------------------------------------------------------------------


def odd() -> Model:
    module = PlainViT((1, 12, 12), 10, patch=4, width=12, depth=1, heads=4)
    return dataclasses.replace(tiny_model("student", 0), module=module, input_shape=(1, 12, 12))


def enlarged() -> Images:
    data = tiny_data(32)
    splits = {
        name: dataclasses.replace(split, images=F.pad(split.images, (0, 0, 2, 2, 2, 2)))
        for name, split in data.splits().items()
    }
    return dataclasses.replace(data, **splits)


def test_masks_that_cannot_be_are_refused() -> None:
    with pytest.raises(UserError, match="3 x 3 patches do not divide into groups of 2 x 2: give --group 1"):
        CMAE(source=odd()).require(enlarged())
    CMAE(source=odd(), group=1).require(enlarged())
    with pytest.raises(UserError, match=r"mask 0\.9 leaves no token visible of 4 groups"):
        made(mask=0.9).require(tiny_data())
    with pytest.raises(UserError, match=r"mask 1 leaves no token visible of 4 groups"):
        made(mask=1.0).require(tiny_data())
    with pytest.raises(UserError, match="leaves nothing hidden of 4 groups"):
        made(mask=1e-12).require(tiny_data())


def test_networks_whose_tokens_see_other_patches_are_refused() -> None:
    assert leaking(tiny_plain_vit(0), blocks_of(tiny_plain_vit(0))) == 0
    assert leaking(tiny_vit(0), blocks_of(tiny_vit(0))) > 0
    with pytest.raises(UserError, match=r"see pixels of other patches before the first block.* take zoo:vit_plain"):
        CMAE(source=tiny_vit(0), group=1).require(tiny_data())
    with pytest.raises(UserError, match="is no vision transformer whose blocks are known"):
        CMAE(source=tiny_model("net", 0)).require(tiny_data())


def test_batches_of_one_and_single_images_are_refused() -> None:
    with pytest.raises(UserError, match="batch_size must be at least 2"):
        Recipe(batch_size=1)
    with pytest.raises(UserError, match="it tells images apart, and there is one training image"):
        made().require(tiny_data(1))


def test_other_values_that_cannot_be_are_refused() -> None:
    for name, value in {
        "mask": -0.1,
        "scale": 0.0,
        "tau": 0.0,
        "momentum": 1.5,
        "group": 0,
        "shift": -1,
        "projection": 1,
        "probes": 1,
        "w_pixels": -1.0,
        "w_contrast": math.nan,
        "decoder_width": 2,
        "decoder_depth": 0,
        "feature_depth": 0,
    }.items():
        with pytest.raises(UserError, match=name):
            made(**{name: value})
    with pytest.raises(UserError, match="decoder_width must be a multiple of 4, and it is 10"):
        made(decoder_width=10).require(tiny_data())
    with pytest.raises(UserError, match="shift 9 is more than the 8 pixels of an image"):
        made(shift=9).require(tiny_data())
    with pytest.raises(UserError, match="takes images of 1 x 12 x 12, and those of digits are 1 x 8 x 8"):
        CMAE(source=odd(), group=1).require(tiny_data())
    bare = tiny_plain_vit(0)
    bare.module.linear = nn.Linear(12, 10, bias=False)
    with pytest.raises(UserError, match="has no bias, which a linear probe needs"):
        made(source=bare).require(tiny_data())


def test_transformers_of_timm_are_taken_and_one_that_needs_all_its_tokens_is_refused() -> None:
    vision = pytest.importorskip("timm.models.vision_transformer", reason="timm is not installed (extra vision)")
    for options in ({}, {"global_pool": "avg"}, {"reg_tokens": 2}, {"class_token": False, "global_pool": "avg"}):
        torch.manual_seed(0)
        net = vision.VisionTransformer(8, 2, 1, 10, embed_dim=12, depth=2, num_heads=2, **options)
        method = made(source=dataclasses.replace(tiny_model("vit", 3), module=net))
        method.require(tiny_data())
        assert all(p.isfinite().all() for p in method.fit(Run(None), tiny_data(64)).parameters())
    beit = pytest.importorskip("timm.models.beit", reason="timm is not installed (extra vision)")
    net = beit.Beit(8, 2, 1, 10, embed_dim=12, depth=2, num_heads=2, use_rel_pos_bias=True)
    with pytest.raises(UserError, match=r"the blocks of beit do not take 8 of 16 tokens"):
        made(source=dataclasses.replace(tiny_model("beit", 3), module=net)).require(tiny_data())


# -- the command ------------------------------------------------------------------------------------------------


def test_the_command_takes_a_network_without_trained_weights(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    words = ["adapt", "zoo:vit_plain_mean", "--method=cmae", "--data=digits", "--recipe.epochs=1", f"--out={out}"]
    assert cli.main(words) == 2  # 2 x 2 patches of four pixels are one group
    assert "mask 0.65 leaves no token visible of 1 groups" in capsys.readouterr().err and not out.exists()
    assert cli.main([*words, "--group=1"]) == 0
    said = capsys.readouterr().out
    assert "vit_plain_mean, as it came, probed" in said and "The adapted network reaches" in said
    back = upcycle.load(out)
    assert back.module(back.example()).shape == (2, 10)


def test_unlabelled_images_are_enough(tmp_path: Path) -> None:
    from PIL import Image

    folder = tmp_path / "photos"
    folder.mkdir()
    g = torch.Generator().manual_seed(0)
    for i in range(40):
        pixels = torch.randint(0, 256, (16, 16, 3), generator=g, dtype=torch.uint8).numpy()
        Image.fromarray(pixels).save(folder / f"{i}.png")
    options = {"out": tmp_path / "run", "recipe": {"epochs": 1, "batch_size": 16}, "quiet": True}
    result = upcycle.adapt("zoo:vit_plain", method="cmae", data=str(folder), **options)
    assert [row["accuracy"] for row in result.rows if row["role"] == "product"] == [[]]
    assert "there were no labelled test images" in result.sentence
    assert upcycle.load(tmp_path / "run").module(result.model.example()).shape == (2, 10)


@pytest.mark.slow
def test_the_claim_runs_in_small(cifar10: Path) -> None:
    figures = CLAIM.measure(99, True)
    assert set(CLAIM.headline.arms) <= set(figures)
