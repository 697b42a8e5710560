"""A training step of a masked autoencoder: ``cmae`` without its contrast, and ``ViTMAEForPreTraining`` of transformers.

The same sizes, images and share of hidden patches, so as many multiply-adds: forward, loss, backward and AdamW, on one
thread. Beside them a step with the contrast. Each figure is the minimum of many rounds, in which all take turns.
Run from the repository: ``python -m benchmarks.cmae_step``.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.common import alternate, record
from upcycle.adaptation import CMAE
from upcycle.adaptation.cmae import BETAS, contrast_loss, reconstruction_loss
from upcycle.adaptation.masked.parts import Decoder, groups_of, hidden_places, patches_of, trained, visible_places
from upcycle.core.memory import keep_freed
from upcycle.core.models import copy_of
from upcycle.core.recipe import Recipe
from upcycle.core.tokens import blocks_of, encode, last_of
from upcycle.zoo import build
from upcycle.zoo.vit_plain import PlainViT

GATE = 1.0
"""Over the step of transformers, what a step may take."""
MASK = 0.75


@dataclass(frozen=True, kw_only=True)
class Size:
    """A network, its images and a batch of them."""

    side: int
    channels: int
    batch: int
    patch: int
    width: int
    depth: int
    heads: int
    rounds: int


SIZES = {
    "28 x 28, 96 x 4": Size(side=28, channels=1, batch=256, patch=4, width=96, depth=4, heads=3, rounds=30),
    "224 x 224, ViT-Ti": Size(side=224, channels=3, batch=16, patch=16, width=192, depth=12, heads=3, rounds=12),
}


# -- the other side -----------------------------------------------------------------------------------------------


def twin_of(network: PlainViT, decoder: Decoder, side: int, channels: int, mask: float) -> Any:
    """``ViTMAEForPreTraining`` with the weights and positions of an encoder and a pixel decoder of ours.

    Args:
        network: the encoder.
        decoder: what gives pixels.
        side: of the square images.
        channels: of them.
        mask: share of hidden patches.
    """
    from transformers import ViTMAEConfig, ViTMAEForPreTraining

    width = decoder.embed.out_features
    config = ViTMAEConfig(
        hidden_size=network.width,
        num_hidden_layers=network.depth,
        num_attention_heads=network.heads,
        intermediate_size=4 * network.width,
        image_size=side,
        patch_size=network.patch,
        num_channels=channels,
        layer_norm_eps=network.norm.eps,
        mask_ratio=mask,
        norm_pix_loss=True,
        decoder_hidden_size=width,
        decoder_intermediate_size=4 * width,
        decoder_num_hidden_layers=len(decoder.blocks),
        decoder_num_attention_heads=decoder.blocks[0].attention.split[1],  # type: ignore[union-attr, index]
    )
    theirs = ViTMAEForPreTraining(config).to(network.norm.weight.dtype)
    theirs.load_state_dict(
        {
            "vit.embeddings.cls_token": network.tokens.first,
            "vit.embeddings.position_embeddings": network.tokens.position,
            **_renamed(network.stem, "vit.embeddings.patch_embeddings.projection"),
            **_blocks_as(network.blocks, "vit.layers"),
            **_renamed(network.norm, "vit.layernorm"),
            **_renamed(decoder.embed, "decoder.decoder_embed"),
            "decoder.mask_token": decoder.hidden,
            "decoder.decoder_pos_embed": decoder.position,
            **_blocks_as(decoder.blocks, "decoder.decoder_layers"),
            **_renamed(decoder.norm, "decoder.decoder_norm"),
            **_renamed(decoder.out, "decoder.decoder_pred"),
        }
    )
    theirs.vit.embeddings.position_embeddings.requires_grad_(True)  # fixed there, learnt here
    return theirs


def _renamed(module: nn.Module, name: str) -> dict[str, Tensor]:
    return {f"{name}.{key}": value for key, value in module.state_dict().items()}


def _blocks_as(blocks: nn.Sequential, name: str) -> dict[str, Tensor]:
    """Blocks of ours by the names that transformers has for them."""
    found: dict[str, Tensor] = {}
    for i, block in enumerate(blocks.children()):
        at, attention = f"{name}.{i}", block.get_submodule("attention")
        for key in ("weight", "bias"):
            qkv = attention.get_parameter(f"qkv.{key}").chunk(3)
            found |= {f"{at}.attention.{one}_proj.{key}": part for one, part in zip("qkv", qkv, strict=True)}
        found |= _renamed(attention.get_submodule("out"), f"{at}.attention.o_proj")
        found |= _renamed(block.get_submodule("norm1"), f"{at}.layernorm_before")
        found |= _renamed(block.get_submodule("norm2"), f"{at}.layernorm_after")
        found |= _renamed(block.get_submodule("mlp.0"), f"{at}.mlp.fc1")
        found |= _renamed(block.get_submodule("mlp.2"), f"{at}.mlp.fc2")
    return found


# -- steps --------------------------------------------------------------------------------------------------------


def steps(size: Size) -> dict[str, Callable[[], Any]]:
    """A step of each side on the same batch, with masks that are drawn anew."""
    torch.manual_seed(0)
    shape = (size.channels, size.side, size.side)
    sizes = {"patch": size.patch, "width": size.width, "depth": size.depth, "heads": size.heads}
    model = build("vit_plain", pretrained=False, input_shape=shape, **sizes)
    method, blocks = CMAE(source=model, group=1, mask=MASK), blocks_of(model)
    last, images = last_of(model, blocks), torch.randn(size.batch, *shape)
    recipe, keep = Recipe(optimizer="adamw", lr=1e-3, weight_decay=0.05), method.kept(blocks.places)

    def ours(contrast: bool) -> Callable[[], Any]:
        network = copy_of(model.module)
        network.linear = nn.Identity()  # type: ignore[assignment]
        pixels, online, target = method.parts(network, blocks, size.channels * size.patch**2)
        assert pixels is not None and online is not None and target is not None
        learnt = [*trained(network, images[:2], blocks, last), *pixels.parameters()]
        optimizer = recipe.make(groups_of([*learnt, *(online.parameters() if contrast else ())], betas=BETAS))

        def step() -> None:
            seen = visible_places(torch.rand(size.batch, blocks.places), blocks.grid, 1, keep)
            z = encode(network, images, blocks, last, seen)
            hidden = hidden_places(seen, blocks.places)
            loss = reconstruction_loss(pixels(z, keep=seen), patches_of(images, blocks.grid), hidden).mean()
            if contrast:
                loss = loss + contrast_loss(online(z, keep=seen), target(images), method.tau)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            if contrast:
                target.follow(network, online, method.momentum)

        return step

    encoder, decoder = copy_of(model.module), method.parts(nn.Identity(), blocks, size.channels * size.patch**2)[0]
    assert isinstance(encoder, PlainViT) and decoder is not None
    twin = twin_of(encoder, decoder, size.side, size.channels, MASK).train()
    theirs = recipe.make(groups_of([p for p in twin.parameters() if p.requires_grad], betas=BETAS))

    def their_step() -> None:
        twin(images).loss.backward()
        theirs.step()
        theirs.zero_grad()

    return {"without contrast": ours(False), "transformers": their_step, "with contrast": ours(True)}


def main(rounds: int | None = None) -> None:
    """Time all, and write the record.

    Args:
        rounds: so many, and no record.
    """
    torch.set_num_threads(1)
    keep_freed()  # as every run does
    milliseconds, ratios, contrast = {}, {}, {}
    for name, size in SIZES.items():
        times = alternate(steps(size), rounds or size.rounds)
        best = {arm: min(seconds) for arm, seconds in times.items()}
        milliseconds[f"milliseconds, {name}"] = {arm: round(1e3 * value, 1) for arm, value in best.items()}
        ratios[name] = round(best["without contrast"] / best["transformers"], 3)
        contrast[name] = round(best["with contrast"] / best["without contrast"], 2)
    worst = max(ratios.values())
    figures = {
        **milliseconds,
        "without contrast over transformers": ratios,
        "with contrast over without": contrast,
        "gate held": worst <= GATE,
    }
    print(figures)
    if rounds is None:
        batches = ", ".join(f"{size.batch} of {name}" for name, size in SIZES.items())
        print(record("cmae_step", figures, mask=MASK, batches=batches, threads=1))
    if worst > GATE:
        raise SystemExit(f"a step takes {worst:.2f} times that of transformers, and {GATE:g} is allowed")


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    main(int(sys.argv[1]) if len(sys.argv) > 1 else None)
