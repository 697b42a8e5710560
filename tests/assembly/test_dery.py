"""DeRy: budgets, one block a set and a stage, frozen blocks stay as they are; similarity of real networks."""

from __future__ import annotations

import dataclasses
import math
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from tests.settings import seen, tiny_data
from tests.surgery.test_blocks import model
from upcycle.assembly.dery import DeRy
from upcycle.assembly.reassembly.partition import partition
from upcycle.assembly.reassembly.zoo import similarities
from upcycle.core.errors import UserError
from upcycle.core.evaluate import evaluate
from upcycle.core.losses import ce_loss
from upcycle.core.models import Model
from upcycle.core.outputs import Logits
from upcycle.core.recipe import Recipe
from upcycle.core.references import resolve
from upcycle.core.run import Run
from upcycle.core.saved import load as load_model
from upcycle.core.saved import save
from upcycle.data import load
from upcycle.measure.cost import count
from upcycle.surgery.blocks import chain
from upcycle.surgery.stitch import Stitched
from upcycle.zoo.convnet import MLP, ConvNet
from upcycle.zoo.resnet import ResNet

RECIPE = Recipe(epochs=2, batch_size=32, optimizer="adamw", lr=1e-3, weight_decay=0.05)


@cache
def zoo() -> tuple[Model, ...]:
    """Three small networks that have seen digits pass by, each with its own normalisation."""
    torch.manual_seed(0)
    nets = {"narrow": ResNet((1, 1, 1), 10, 1), "deep": ResNet((2, 2, 2), 10, 1), "plain": ConvNet((12, 20, 24), 10, 1)}
    made = [seen(model(net, name=name)) for name, net in nets.items()]
    return tuple(dataclasses.replace(m, mean=(0.1 * i,), std=(0.3 + 0.1 * i,)) for i, m in enumerate(made, 1))


def dery(**options: Any) -> DeRy:
    small = {"blocks": 3, "eps": 1.0, "probe": 64, "runs": 20, "candidates": 6, "score_batches": 2, "recipe": RECIPE}
    return DeRy(zoo=options.pop("zoo", zoo()), **{**small, **options})


class Watched(Run):
    """Keeps what fit sets up, and looks at the gradients of every step."""

    def setup(self, module: Any, optimizer: Any = None) -> Any:
        self.network = module
        self.start = {k: v.clone() for k, v in module.state_dict().items()}
        return super().setup(module, optimizer)

    def update(self, optimizer: torch.optim.Optimizer, clip: float | None = None) -> None:
        self.grads = {name: p.grad is not None for name, p in self.network.named_parameters()}
        super().update(optimizer, clip)


@cache
def fitted(seed: int = 0, **options: Any) -> tuple[Stitched, Watched]:
    method = dery(**options)
    method.require(tiny_data())
    run = Watched(None, seed=seed, quiet=True, precision="32-true")
    return method.fit(run, tiny_data()), run  # type: ignore[return-value]


def test_loss_is_cross_entropy_over_what_is_labelled() -> None:
    z, y = torch.randn(6, 4), torch.tensor([0, 3, 1, 2, 2, 0])
    torch.testing.assert_close(ce_loss(z, y, 0.1), F.cross_entropy(z, y, label_smoothing=0.1))
    y[3:] = -1
    torch.testing.assert_close(ce_loss(z, y, 0.1), F.cross_entropy(z[:3], y[:3], label_smoothing=0.1) / 2)
    assert ce_loss(z, torch.full((6,), -1), 0.1) == 0


def test_only_what_is_new_learns_when_blocks_are_frozen() -> None:
    network, run = fitted()
    assert run.grads == {name: not name.startswith("blocks.") for name in run.grads}
    assert any(not grad for grad in run.grads.values())
    for name, after in network.state_dict().items():
        if name.startswith("blocks."):  # also running statistics
            assert torch.equal(after, run.start[name]), name
    new = {name for name, _ in network.named_parameters() if not name.startswith("blocks.")}
    assert all(not torch.equal(network.state_dict()[name], run.start[name]) for name in new)
    assert {name.split(".")[0] for name in new} == {"stitches", "head"}
    assert all(p.requires_grad and p.grad is None for p in network.parameters()) and not network.training
    sources = {m.name: m.module.state_dict() for m in zoo()}
    for i, block in enumerate(network.recipe["blocks"]):
        own = sources[network.recipe["names"][block["source"]]]
        assert all(torch.equal(v, own[k]) for k, v in network.blocks[i].state_dict().items())


def test_everything_learns_when_nothing_is_frozen() -> None:
    _, run = fitted(tune="all")
    assert all(run.grads.values())


def test_nothing_learns_without_tuning() -> None:
    network, run = fitted(tune="none")
    assert not hasattr(run, "grads") and dery(tune="none").steps(160) == 0
    again, _ = fitted.__wrapped__(tune="none")  # not the same one
    assert all(torch.equal(v, again.state_dict()[k]) for k, v in network.state_dict().items())


@pytest.mark.parametrize("bound", [{"params": 4e4}, {"flops": 1.5e6}, {"params": 9e4, "params_min": 6e4}])
def test_a_budget_is_a_budget(bound: dict[str, float]) -> None:
    network, _ = fitted(tune="none", **bound)
    cost = count(network, (1, 8, 8))
    assert bound.get("params_min", 0) <= cost.parameters <= bound.get("params", math.inf)
    assert cost.macs <= bound.get("flops", math.inf)
    assert len({b["source"] for b in network.recipe["blocks"]}) >= 2


def test_no_network_is_that_small() -> None:
    with pytest.raises(UserError, match=r"smallest feasible one has [\d,]+ parameters"):
        fitted(params=500.0)


def tables() -> tuple[list[Any], Any, Any]:
    chains = [chain(m) for m in zoo()]
    s = similarities(chains, tiny_data().train, "debiased")
    return chains, s, partition(s, [len(c) for c in chains], 3, 1.0, runs=20, seed=0)


def test_the_first_blocks_network_says_how_images_are_normalised() -> None:
    network, _ = fitted(tune="none")
    product = dery().product(network, tiny_data())
    first = next(m for m in zoo() if m.name == network.recipe["names"][network.recipe["blocks"][0]["source"]])
    assert (product.mean, product.std) == (first.mean, first.std)
    assert product.classes == tiny_data().classes and product.reference is None  # of bare networks


def test_of_several_tuned_candidates_the_best_on_validation_images_is_kept() -> None:
    run = Run(None, quiet=True, precision="32-true")
    chosen = dery(top=3).fit(run, tiny_data())
    shares = [float(note.rpartition(", ")[2].split("%")[0]) / 100 for note in run.notes if note[0] in "123"]
    data = tiny_data().normalised(tuple(chosen.recipe["mean"]), tuple(chosen.recipe["std"]))
    assert len(shares) == 3 and evaluate(chosen, data.validation).accuracy == pytest.approx(max(shares), abs=6e-4)


def test_a_product_of_known_networks_comes_back_from_files(tmp_path: Path) -> None:
    known = tuple(resolve(f"zoo:{name}", pretrained=False, input_shape=(1, 8, 8)) for name in
                  ("convnet_small", "convnet"))  # fmt: skip
    network, _ = fitted(zoo=known, tune="none")
    product = dery(zoo=known).product(network, tiny_data())
    assert product.reference == "assembly:stitched"
    save(product, tmp_path / "model")
    loaded = load_model(tmp_path / "model")
    x = product.example(4)
    torch.testing.assert_close(loaded.module(x), network(x), rtol=0, atol=0)
    assert (loaded.mean, loaded.std, loaded.classes) == (product.mean, product.std, product.classes)


FOLDING = {
    "Swin": {
        "image_size": 8,
        "patch_size": 1,
        "num_channels": 1,
        "embed_dim": 8,
        "depths": [1, 1],
        "num_heads": [2, 2],
        "window_size": 4,
    },
    "MobileViT": {
        "image_size": 32,
        "num_channels": 1,
        "hidden_sizes": [16, 24, 32],
        "neck_hidden_sizes": [8, 16, 24, 32, 48, 64, 96],
    },
}


@pytest.mark.parametrize("kind", FOLDING)
def test_networks_that_fold_space_into_the_batch_are_reassembled(kind: str) -> None:
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    options = FOLDING[kind]
    config = getattr(transformers, f"{kind}Config")(num_labels=10, **options)
    foreign = Logits(getattr(transformers, f"{kind}ForImageClassification")(config)).eval()
    size = options["image_size"]
    data = load("digits", size=size).subset(torch.arange(64)) if size != 8 else tiny_data()
    nets = (model(foreign, (1, size, size), kind), model(ResNet((1, 1, 1), 10, 1), (1, size, size), "plain"))
    method = dery(zoo=nets, blocks=2, probe=32, runs=5, candidates=4, score_batches=1, tune="none")
    method.require(data)
    run = Run(None, quiet=True, precision="32-true")
    network = method.fit(run, data)
    assert ("Blocks share a set with those of their stage only" in run.notes[0]) == (kind == "Swin")
    assert network(model(network, (1, size, size)).example(3)).shape == (3, 10)


def test_pictures_and_note(tmp_path: Path) -> None:
    run = Run(tmp_path, quiet=True, precision="32-true")
    dery(tune="none").fit(run, tiny_data())
    pictures = {p.stem for p in (tmp_path / "pictures").iterdir()}
    assert pictures == {"partition", "similarity", "candidates-params", "candidates-macs"}
    assert "candidates within the budget" in run.notes[0]
    run.close()


class Cut(Exception):
    pass


class Failing(Run):
    """Stops before an update, as a killed machine does."""

    def update(self, optimizer: torch.optim.Optimizer, clip: float | None = None) -> None:
        if self.updates == 7:
            raise Cut
        super().update(optimizer, clip)


def test_interrupted_and_resumed_is_the_same(tmp_path: Path) -> None:
    options: dict[str, Any] = {"quiet": True, "precision": "32-true", "save_every": 0.0}
    whole = dery().fit(Run(tmp_path / "whole", **options), tiny_data())
    with pytest.raises(Cut):
        dery().fit(Failing(tmp_path / "cut", **options), tiny_data())
    again = dery().fit(Run(tmp_path / "cut", resume=True, **options), tiny_data())
    assert again.recipe == whole.recipe
    for key, value in whole.state_dict().items():
        assert torch.equal(value, again.state_dict()[key]), key


def test_what_stops_it_is_said_before() -> None:
    data = tiny_data()
    large = model(ConvNet((4, 4, 4), 10, 3), (3, 16, 16), "large")
    flat = model(MLP(64, (8,), 10, 0.0), name="flat")
    unlabelled = dataclasses.replace(data, train=dataclasses.replace(data.train, labels=data.train.labels * 0 - 1))
    for method, words in [
        (dery(zoo=zoo()[:1]), "at least 2 networks, and the zoo has 1"),
        (dery(zoo=(*zoo(), large)), "large takes images of 3 x 16 x 16 and the data have 1 x 8 x 8"),
        (dery(zoo=(*zoo(), flat)), "flat is no chain of blocks"),
        (dery(blocks=4), "plain has 3 nodes, too few for 4 blocks"),
    ]:
        assert any(words in problem for problem in method.check(data)), words
    assert any("no labels" in p for p in dery().check(unlabelled))
    assert dery().check(data) == dery(tune="none").check(unlabelled) == []


@pytest.mark.parametrize(
    ("options", "words"),
    [({"blocks": 1}, "blocks must be"), ({"probe": 3}, "probe must be"), ({"eps": -1.0}, "eps must not be negative"),
     ({"label_smoothing": 1.0}, "label_smoothing must"), ({"params": 10.0, "params_min": 20.0}, "params_min must"),
     ({"flops": "1M", "flops_min": "2M"}, "flops_min must"), ({"flops": -1.0}, "no amount")],
)  # fmt: skip
def test_wrong_options(options: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        dery(**options)
