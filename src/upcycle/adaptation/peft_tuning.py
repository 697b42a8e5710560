"""LoRA and IA3: a frozen network learns a task by a few added numbers, which are then merged into its weights.

The adapters are those of Hugging Face's ``peft``; where they go, what trains beside them and that merging is exact is
decided here. They go on layers that :func:`layers` names, in a copy of the network with a fresh classifier for the
target's classes, which is trained in full.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fnmatch
import math
import re
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from upcycle.adaptation.probe import probed
from upcycle.core.errors import UserError, one_line, require, unknown
from upcycle.core.evaluate import undisturbed
from upcycle.core.heads import classifier, with_classes
from upcycle.core.losses import ce_loss
from upcycle.core.method import Card, Control, Method, Needs
from upcycle.core.models import Model
from upcycle.core.norms import use_running
from upcycle.core.recipe import Recipe
from upcycle.core.run import Run

if TYPE_CHECKING:
    from upcycle.data.images import Images

Layer = nn.Linear | nn.Conv2d

MERGE_TOLERANCE = 1e-4
"""The largest change of an answer that merging may make, over the largest answer."""

KEYS_AND_VALUES = frozenset(
    ["k", "v", "kv", "qkv", "key", "value", "k_proj", "v_proj", "to_k", "to_v", "to_kv", "to_qkv", "query_key_value"]
)
"""How transformers call the layers that make keys and values."""


# -- where adapters go ----------------------------------------


def layers(model: Model) -> dict[str, Layer]:
    """The linear layers and convolutions that can take an adapter, by name; not the classifier.

    Left out is what would not merge: subclasses (they may compute their weight), parametrised weights, weights
    that two layers share, and layers whose weights the network reads without calling them, such as the projection
    in torch's MultiheadAttention.
    """
    head, module, ran = classifier(model), model.module, set[str]()
    uses = Counter(id(p) for _, p in module.named_parameters(remove_duplicate=False))
    found = {name: m for name, m in module.named_modules()
             if type(m) in (nn.Linear, nn.Conv2d) and uses[id(m.weight)] == 1 and name != head}  # fmt: skip
    hooks = [m.register_forward_hook(lambda *_, name=name: ran.add(name)) for name, m in found.items()]
    try:
        with undisturbed(module), every_layer_called():
            module(model.example().to(next(module.parameters())))
    finally:
        for hook in hooks:
            hook.remove()
    return {name: m for name, m in found.items() if name in ran}


def matching(patterns: tuple[str, ...], names: list[str]) -> list[str]:
    """Those of ``names`` that one of the patterns (``*`` and ``?``, as for files) matches.

    Raises:
        UserError: a pattern that matches none.
    """
    for pattern in patterns:
        if not any(fnmatch.fnmatchcase(name, pattern) for name in names):
            raise unknown("layer to adapt", pattern, names)
    return [name for name in names if any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)]


@contextlib.contextmanager
def every_layer_called() -> Iterator[None]:
    """Within: torch's transformer layers call their linear layers in evaluation too, whose adapters count then."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


# -- with peft ----------------------------------------


def low_rank(module: nn.Module, names: list[str], rank: int, alpha: float, dropout: float,
             generator: torch.Generator) -> Any:  # fmt: skip
    """peft's tuner, which put LoRA on the layers ``names`` of ``module`` and froze all else, in place.

    W' = W + (α / r) B A with B = 0 and A drawn from Kaiming's uniform distribution, as peft has it, with ``generator``.
    """
    peft = _peft()
    config = peft.LoraConfig(r=rank, lora_alpha=alpha, lora_dropout=dropout, target_modules=_exactly(names))
    tuner = peft.LoraModel(module, config, "default")
    for name, p in module.named_parameters():
        if ".lora_A." in name:
            p.data.copy_(nn.init.kaiming_uniform_(torch.empty(p.shape), a=math.sqrt(5), generator=generator))
    return tuner


def scaled(module: nn.Module, names: list[str], feedforward: list[str]) -> Any:
    """peft's tuner, which put IA3 on the layers ``names`` of ``module`` and froze all else, in place.

    y' = l ⊙ y, and for the layers ``feedforward`` among them y = W (l ⊙ x) + b; l starts at 1.
    """
    peft = _peft()
    config = peft.IA3Config(target_modules=_exactly(names), feedforward_modules=_exactly(feedforward))
    return peft.IA3Model(module, config, "default")


def merged(tuner: Any, images: Tensor) -> tuple[nn.Module, float]:
    """The tuner's network with its adapters merged into the weights, in place, and by how much answers changed.

    Args:
        images: a batch to compare both on; the change is the largest one over the largest answer.

    Raises:
        UserError: it is more than rounding.
    """
    with undisturbed(tuner.model), every_layer_called():
        before = tuner.model(images)
        module = tuner.merge_and_unload()
        module.__dict__.pop("peft_config", None)
        after = module(images)
    error = float((after - before).abs().max() / before.abs().max().clamp_min(1e-30))
    require(error <= MERGE_TOLERANCE, f"Merging changes the answers of {type(module).__name__} by {error:.1e} of the "
            "largest, so it uses an adapted layer's weight in a second way; leave that out of targets.")  # fmt: skip
    return module.requires_grad_(True), error


def _exactly(names: list[str]) -> str:
    """An expression that peft takes for these layers and no others: a list would mean endings of names."""
    return "|".join(map(re.escape, names))


def _peft() -> Any:
    try:
        import peft
    except ImportError as error:
        raise UserError("lora and ia3 need Hugging Face's peft: pip install 'upcycle[peft]'.") from error
    return peft


# -- what both methods share ----------------------------------------


def _problems(source: Model, data: Images, sites: Callable[[Model], Any]) -> list[str]:
    """Labels, images that fit, a linear classifier, layers to adapt, and peft itself."""
    problems = []
    if unlabelled := int((data.train.labels < 0).sum()):
        problems.append(f"it learns from labels, and {unlabelled} of {len(data.train)} training images have none")
    if source.input_shape[0] != data.shape[0]:
        return [*problems, f"{source.name} takes {source.input_shape[0]} input channels and the images have "
                f"{data.shape[0]}"]  # fmt: skip
    try:
        _peft()
        sites(dataclasses.replace(source, input_shape=data.shape))
    except UserError as error:
        problems.append(str(error).rstrip("."))
    except (RuntimeError, ValueError, AssertionError) as error:
        problems.append(f"{source.name} does not take images of {data.shape[1]} x {data.shape[2]} pixels "
                        f"({one_line(error)}); load the data at {source.input_shape[1]}")  # fmt: skip
    return problems


def _tuned(
    run: Run, data: Images, recipe: Recipe, tuner: Any, head: str,
    optimizer: Recipe | Callable[[nn.Module], torch.optim.Optimizer],
) -> nn.Module:  # fmt: skip
    """Train adapters and classifier by cross-entropy, then merge; BatchNorm keeps its statistics."""
    tuner.model.get_submodule(head).requires_grad_(True)
    student, opt = run.setup(tuner.model, optimizer)
    with every_layer_called():
        for _ in run.epochs(recipe.epochs):
            student.train()
            use_running(student)
            for images, y, _ in run.batches(data.train, recipe.batch_size, save_within=True):
                recipe.schedule_rate(opt, run.progress)
                loss = ce_loss(student(images), y)
                run.backward(loss)
                run.update(opt)
                run.track(loss=loss)
            run.evaluate(student, data.validation)
    trained = sum(p.numel() for p in student.parameters() if p.requires_grad)
    some = data.validation.batch(torch.arange(min(16, len(data.validation))), device=torch.device("cpu")).images
    module, error = merged(tuner, some.to(next(run.plain(student).parameters())))
    run.note(f"{trained:,} numbers were trained beside {sum(p.numel() for p in module.parameters()):,} of the network; "
             f"merging them changed its answers by {error:.0e} of the largest.")  # fmt: skip
    return module


def _product(source: Model, module: nn.Module, data: Images, method: str) -> Model:
    made = with_classes(source, data.classes)
    return dataclasses.replace(made, module=module, lineage=None, name=f"{source.name}-{method}")


def _recipe(lr: float) -> Recipe:
    """A short run, with the epochs, batches and decay of ssf here, so that they compare; the papers tune language
    models."""
    return Recipe(epochs=20, batch_size=64, optimizer="adamw", lr=lr, weight_decay=0.05, warmup=1)


# -- the methods ----------------------------------------


@dataclass(kw_only=True, eq=False, repr=False)
class LoRA(Method):
    """LoRA: Low-Rank Adaptation of Large Language Models (Hu et al.; ICLR 2022; arXiv:2106.09685), by ``peft``.

    Each adapted weight W (out, in) becomes W + (α / r) B A with B (out, r) and A (r, in); W is frozen, and so is all
    else but a new classifier. Of a convolution, A is one with its kernel to r channels and B one of 1x1. Cross-entropy
    on the target's labels. At the end B A is added to W: the architecture as it was, no cost when used.

    Dropout of the network itself acts in training; BatchNorm uses its running statistics and keeps them.

    Departure: the paper adapts the query and value projections of attention alone; here every linear layer is by
    default, which its successors found better (Dettmers et al., arXiv:2305.14314), and of a fused ``qkv`` all three.

    Args:
        source: a trained classifier of images, whose logits come from a linear layer.
        targets: patterns of module names, such as ``*.qkv``; empty: every linear layer but the classifier, and of a
            network without others every convolution that is neither grouped nor dilated.
        rank: r.
        alpha: α.
        dropout: on the input of A, in training.
        recipe: AdamW on adapters and classifier.
    """

    source: Model | nn.Module
    targets: tuple[str, ...] = ()
    rank: int = 8
    alpha: float = 8.0
    dropout: float = 0.0
    recipe: Recipe = field(default_factory=lambda: _recipe(1e-3))

    card = Card(
        name="lora",
        title="LoRA: Low-Rank Adaptation of Large Language Models",
        paper="Hu, Shen, Wallis, Allen-Zhu, Li, Wang, Wang, Chen; ICLR 2022; arXiv:2106.09685",
        verb="adapt",
        needs=Needs(data="labelled", teacher="weights", architectures="one network with linear layers or convolutions"),
        summary="The network for other classes, tuned by low-rank changes of its weights that are merged into them.",
        cost="fine-tuning without most gradients of weights",
        published="GPT-3 175B: 10,000 times fewer trained numbers and a third of the memory of fine-tuning (abstract)",
    )
    roles: ClassVar[tuple[str, ...]] = ("source",)

    def __post_init__(self) -> None:
        self.targets = tuple(self.targets)
        require(self.rank >= 1, f"rank must be at least 1, not {self.rank}.")
        require(0 < self.alpha < math.inf, f"alpha must be a positive number, not {self.alpha}.")
        require(0 <= self.dropout < 1, f"dropout must lie in [0, 1), not {self.dropout}.")

    def sites(self, source: Model) -> list[str]:
        """The names of the layers that are adapted.

        Raises:
            UserError: a pattern that matches none, or nothing to adapt at all.
        """
        found = {name: m for name, m in layers(source).items() if isinstance(m, nn.Linear) or _factors(m)}
        linear = [name for name, m in found.items() if isinstance(m, nn.Linear)]
        require(bool(found), f"{source.name} has no linear layer but its classifier, and no plain convolution.")
        return matching(self.targets, list(found)) if self.targets else linear or list(found)

    def work(self, n: int, teacher: int, student: int) -> float:
        """A forward and a backward worth one: gradients of features, hardly any of weights."""
        return 2.0 * self.steps(n) * self.recipe.batch_size * max(teacher, student)

    def check(self, data: Images) -> list[str]:
        """Labels, images that fit, a linear classifier, and layers that the patterns match."""
        return _problems(self.model("source", data), data, self.sites)

    def controls(self) -> dict[str, Control]:
        """The linear probe of the same source."""
        return probed(self.source, self.recipe)

    def fit(self, run: Run, data: Images) -> nn.Module:
        """The algorithm; returns the network with its new classifier and the low-rank changes merged."""
        source = self.model("source", data)
        data = data.normalised(source.mean, source.std)
        network = with_classes(source, data.classes).module
        tuner = low_rank(network, self.sites(source), self.rank, self.alpha, self.dropout, run.generator("lora"))
        return _tuned(run, data, self.recipe, tuner, classifier(source), self.recipe)

    def product(self, module: nn.Module, data: Images) -> Model:
        """The source's architecture for the target's classes."""
        return _product(self.model("source", data), module, data, "lora")


def _factors(conv: nn.Conv2d) -> bool:
    """Whether peft's low-rank pair of convolutions computes what this one does, and can be merged."""
    return conv.groups == 1 and conv.dilation == (1, 1) and conv.padding_mode == "zeros"


@dataclass(kw_only=True, eq=False, repr=False)
class IA3(Method):
    """Infused adapter by inhibiting and amplifying inner activations (Liu et al.; NeurIPS 2022; arXiv:2205.05638).

    A learned vector l multiplies keys, values and the hidden activations of feed-forward blocks: the outputs of the
    layers that make keys and values, the inputs of the second feed-forward layers. By ``peft``; l starts at 1, is never
    decayed, and is merged into the weights at the end. All else is frozen but a new classifier, as for :class:`LoRA`.

    *Reconstructed* for networks of images. Keys and values are known by the names of their layers
    (:data:`KEYS_AND_VALUES`); of a fused ``qkv`` the queries are scaled too. Feed-forward are linear layers with more
    inputs than outputs. In a network with neither, every convolution's output channels are scaled (its linear layers'
    if it has no convolution). There is no shift, which is what SSF adds.

    Args:
        source: a trained classifier of images, whose logits come from a linear layer.
        targets: patterns of module names; empty: as above.
        feedforward: patterns of those among them that are scaled at their input; empty: as above.
        recipe: AdamW on vectors and classifier.
    """

    source: Model | nn.Module
    targets: tuple[str, ...] = ()
    feedforward: tuple[str, ...] = ()
    recipe: Recipe = field(default_factory=lambda: _recipe(3e-3))

    card = Card(
        name="ia3",
        title="Few-Shot Parameter-Efficient Fine-Tuning is Better and Cheaper than In-Context Learning",
        paper="Liu, Tam, Muqeeth, Mohta, Huang, Bansal, Raffel; NeurIPS 2022; arXiv:2205.05638",
        verb="adapt",
        needs=Needs(data="labelled", teacher="weights", architectures="one network with linear layers or convolutions"),
        summary="The network for other classes, tuned by one factor a channel, merged into the weights; the fewest "
        "numbers of all.",
        cost="fine-tuning without most gradients of weights",
        published="T-Few with T0-11B: 6 % absolute over the state of the art on RAFT (abstract)",
    )
    roles: ClassVar[tuple[str, ...]] = ("source",)

    def __post_init__(self) -> None:
        self.targets, self.feedforward = tuple(self.targets), tuple(self.feedforward)

    def sites(self, source: Model) -> tuple[list[str], list[str]]:
        """The names of the layers that are scaled, and of those among them that are at their input.

        Raises:
            UserError: a pattern that matches none, or nothing to adapt at all.
        """
        found = layers(source)
        require(bool(found), f"{source.name} has no linear layer but its classifier, and no convolution.")
        narrow = [name for name, m in found.items() if isinstance(m, nn.Linear) and m.in_features > m.out_features]
        chosen = [name for name in found if name in narrow or name.rpartition(".")[2] in KEYS_AND_VALUES]
        convolutions = [name for name, m in found.items() if isinstance(m, nn.Conv2d)]
        names = matching(self.targets, list(found)) if self.targets else chosen or convolutions or list(found)
        inputs = matching(self.feedforward, names) if self.feedforward else [name for name in names if name in narrow]
        grouped = [name for name in inputs if getattr(found[name], "groups", 1) > 1]
        require(not grouped, f"{', '.join(grouped[:1])} is a grouped convolution, which cannot be scaled at its input; "
                "leave it out of feedforward.")  # fmt: skip
        return names, inputs

    def work(self, n: int, teacher: int, student: int) -> float:
        """A forward and a backward worth one: gradients of features, hardly any of weights."""
        return 2.0 * self.steps(n) * self.recipe.batch_size * max(teacher, student)

    def check(self, data: Images) -> list[str]:
        """Labels, images that fit, a linear classifier, and layers that the patterns match."""
        return _problems(self.model("source", data), data, self.sites)

    def controls(self) -> dict[str, Control]:
        """The linear probe of the same source."""
        return probed(self.source, self.recipe)

    def fit(self, run: Run, data: Images) -> nn.Module:
        """The algorithm; returns the network with its new classifier and the factors merged."""
        source = self.model("source", data)
        data = data.normalised(source.mean, source.std)
        tuner = scaled(with_classes(source, data.classes).module, *self.sites(source))
        return _tuned(run, data, self.recipe, tuner, classifier(source), self._optimizer)

    def _optimizer(self, module: nn.Module) -> torch.optim.Optimizer:
        """Decay would pull the vectors to 0, and it is 1 that changes nothing."""
        trained = {name: p for name, p in module.named_parameters() if p.requires_grad}
        vectors = [p for name, p in trained.items() if ".ia3_l." in name]
        rest = [p for name, p in trained.items() if ".ia3_l." not in name]
        return self.recipe.make([{"params": rest}, {"params": vectors, "weight_decay": 0.0}])

    def product(self, module: nn.Module, data: Images) -> Model:
        """The source's architecture for the target's classes."""
        return _product(self.model("source", data), module, data, "ia3")
