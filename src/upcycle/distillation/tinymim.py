"""TinyMIM: a small vision transformer learns how the tokens of a pre-trained one relate, without labels."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from upcycle.core.advice import Fit, Situation
from upcycle.core.attention import Heads, SelfAttention, self_attentions
from upcycle.core.checks import inputs_apart, problems_of
from upcycle.core.errors import UserError, one_line, require
from upcycle.core.frozen import Frozen, frozen
from upcycle.core.heads import classifier
from upcycle.core.method import Card, Method, Needs
from upcycle.core.models import Model, copy_of
from upcycle.core.patterns import weights_of
from upcycle.core.ranges import ranges
from upcycle.core.recipe import Recipe
from upcycle.core.run import Run
from upcycle.core.seeds import uniform
from upcycle.core.undisturbed import undisturbed
from upcycle.data import augment
from upcycle.training.linear_probe import probe_of

if TYPE_CHECKING:
    from upcycle.core.batches import Batch
    from upcycle.data.images import Images

SHOWN = 256
"""The most tokens of which the report draws all relations."""


def relations(x: Heads) -> Float[Tensor, "b h2 n n"]:
    """Make the scores of all tokens' relations, before the softmax: Q K^T / √d_h, and behind these heads V V^T / √d_h.

    Both are made for all heads in one product. Computed in float32 or better.
    """
    wide = torch.float64 if x.q.dtype == torch.float64 else torch.float32
    left, right = torch.cat([x.q, x.v], 1).to(wide), torch.cat([x.k, x.v], 1).to(wide)
    return (left * x.scale) @ right.mT


def relation_loss(s: Float[Tensor, "b h2 n n"], t: Float[Tensor, "b h2 n n"]) -> Float[Tensor, ""]:
    """L = KL(R_QK^T ‖ R_QK^S) + KL(R_VV^T ‖ R_VV^S) with R = softmax of scores over the keys.

    KL is the sum over keys of R_T (log R_T - log R_S), and the mean over images, heads and queries.

    Args:
        s: scores of the student, as :func:`relations` gives them: two for each head.
        t: scores of the teacher; no gradient goes there.

    Ren et al., arXiv:2301.01296. Logarithms are those of scores, since softmax and then log underflow.
    """
    log_R_s, log_R_t = F.log_softmax(s, -1), F.log_softmax(t.detach(), -1)
    b, h2, n, _ = s.shape
    return F.kl_div(log_R_s, log_R_t, reduction="sum", log_target=True) / (b * h2 // 2 * n)


@dataclass(frozen=True)
class Blocks:
    """The two blocks whose relations are compared.

    Args:
        teacher, student: where their attention is read.
        block, depth: the number of the teacher's block from 1, and how many it has.
        heads: h, into which the width of both is divided.
        tokens: which tokens of the teacher, and of the student, take part.
    """

    teacher: SelfAttention
    student: SelfAttention
    block: int
    depth: int
    heads: int
    tokens: tuple[tuple[int, ...], tuple[int, ...]]


@dataclass(kw_only=True, eq=False, repr=False)
class TinyMIM(Method):
    """TinyMIM: An Empirical Study of Distilling MIM Pre-trained Models (Ren, Wei, Zhang, Hu; arXiv:2301.01296).

    Teacher and student see the same view of an image, whole and without a mask; the student's colours are jittered.
    Queries Q, keys K and values V of one block of each, h heads of n tokens, give relations

        R_QK = softmax(Q K^T / √d_h),   R_VV = softmax(V V^T / √d_h)

    and the student descends L = KL(R_QK^T ‖ R_QK^S) + KL(R_VV^T ‖ R_VV^S) (:func:`relation_loss`). No label and no
    answer takes part, so the teacher may be trained for anything, and its classes are its own.

    The student's block is its last. Its Q, K and V are divided into as many heads as the teacher's block has, by
    reshape alone, so no weight changes its shape; in use it has its own number of heads again. What lies behind them in
    that block, and the norm at the end, stays as it was initialised. Neither network runs further than its projections.
    Tokens of a class and registers take part where both networks have as many, and otherwise neither's.

    The product is the student with its trained features and a new classifier: a linear probe of them
    (:mod:`upcycle.training.linear_probe`), on the labels of training images where some are known, or else of validation
    images, and a note says which. Its accuracy is that of the probe. To fine-tune it on labels is what comes next. It
    can also be the teacher of a yet smaller one: then ``heads`` are those that it was made with.

    Departures: the probe is ours, where the paper fine-tunes; crop and flip are those of the data, in place of a random
    resized crop; positions of the student are trained where it has trained ones, in place of fixed sines and cosines;
    drop path is as the student has it (0.1 in all blocks but the last in the authors' code); β₂ of AdamW is 0.999 in
    place of 0.95; weights are initialised as the student's library does it. Reconstructed: which block is the target
    where the teacher is deeper, beyond the published 18 of 24.

    Args:
        teacher: a vision transformer whose queries, keys and values can be read: zoo:vit, and many of timm,
            transformers and torchvision.
        student: another such with as many tokens, which ends in a linear classifier.
        block: the teacher's block whose relations are the target, from 1; 0 takes the last one, or that at three
            quarters of the depth where the teacher is deeper than the student.
        heads: h, into which both blocks are divided; 0 takes the number that the teacher's has.
        jitter: change brightness, contrast and saturation of what the student sees, each by up to 0.4.
        recipe: training of the student (paper: 300 epochs of batches of 4096, rate 2.4e-3 for these, 15 of warm-up).
    """

    teacher: Model | nn.Module
    student: Model | nn.Module
    block: int = 0
    heads: int = 0
    jitter: bool = True
    recipe: Recipe = field(
        default_factory=lambda: Recipe(
            epochs=30, batch_size=128, optimizer="adamw", lr=1e-3, weight_decay=0.05, decayed="matrices", warmup=1
        )
    )

    card = Card(
        name="tinymim",
        title="TinyMIM: An Empirical Study of Distilling MIM Pre-trained Models",
        paper="Ren, Wei, Zhang, Hu; CVPR 2023; arXiv:2301.01296",
        verb="distill",
        needs=Needs(
            data="unlabelled",
            teacher="features",
            architectures="vision transformers of equally many tokens; widths, depths and heads may differ",
        ),
        summary="A small vision transformer whose tokens relate as a pre-trained one's do, with a linear probe.",
        cost="student training + the teacher's blocks up to the target a step",
        published="ImageNet top-1 after fine-tuning, MAE and TinyMIM: ViT-T 71.6 and 75.8, ViT-S 80.6 and 83.0, ViT-B "
        "83.6 and 85.0 (official README)",
    )
    compares = False
    refuses = {"any": "no label or answer takes part in its loss"}

    @classmethod
    def serves(cls, have: Situation) -> Fit | str | None:
        """For a smaller transformer from one that was pre-trained for whatever it was."""
        if have.goal != "smaller":
            return None
        if have.architecture == "conv":
            return "it compares the attention of two vision transformers, and convolutions have none."
        condition = "" if have.architecture == "transformer" else "if both are vision transformers of as many tokens: "
        reason = (
            f"{condition}the student learns how the teacher's tokens relate, whatever the teacher was trained for; it "
            "gets a linear probe as its classifier, and wants to be fine-tuned on labels. Where the teacher knows your "
            "classes, kd."
        )
        return Fit(15 if have.architecture == "transformer" else 45, reason)

    def __post_init__(self) -> None:
        ranges(self, not_negative=("block", "heads"))

    def check(self, data: Images) -> list[str]:
        """Attention that can be read, as many tokens, heads that divide both widths, and a classifier to replace."""
        teacher, student = self.model("teacher", data), self.model("student", data)
        if problems := inputs_apart(teacher, student) + problems_of(student, data):
            return problems
        try:
            self.blocks(data)
        except UserError as error:
            return [str(error).rstrip(".")]
        return []

    def blocks(self, data: Images) -> Blocks:
        """The blocks that are compared, found by a forward of two images in each network.

        Raises:
            UserError: they cannot be.
        """
        teacher, student = self.model("teacher", data), self.model("student", data)
        ours, theirs = _attentions(student, data), _attentions(teacher, data)
        last, depth = ours[-1], len(theirs)
        block = self.block or (depth if len(ours) >= depth else max(1, round(0.75 * depth)))
        require(block <= depth, f"{teacher.name} has {depth} blocks with attention, so there is no --block {block}.")
        target = theirs[block - 1]
        heads = self.heads or target.heads
        for name, one in ((teacher.name, target), (student.name, last)):
            require(
                one.width % heads == 0,
                f"the width {one.width} of {name} cannot be divided into {heads} heads, as many as relations are "
                f"compared of: choose --heads, a divisor of {target.width} and {last.width}, or another width.",
            )
        both = len(target.beside) == len(last.beside)
        tokens = (_all(target), _all(last)) if both else (target.grid, last.grid)
        if len(tokens[0]) != len(tokens[1]):
            n = [f"{len(one.grid)} tokens of an image" for one in (target, last)]
            raise UserError(
                f"{teacher.name} has {n[0]} and {student.name} {n[1]}: relations can be compared of as many only; take "
                "a student with the same patches on images of the same size."
            )
        return Blocks(target, last, block, depth, heads, tokens)

    def fit(self, run: Run, data: Images) -> nn.Module:
        """The algorithm; returns the student with its probe."""
        require(not run.compile, "tinymim stops networks half-way, which compiled ones cannot do; leave out --compile.")
        teacher, student, blocks = self.model("teacher", data), self.model("student", data), self.blocks(data)
        module, h = student.module, blocks.heads
        for sentence in _notes(teacher, student, blocks):
            run.note(sentence)
        weights = run.stored("relations", weights_of(module))
        if weights is None:
            with run.open_stage("relations") as weights:
                trained = reached(module, blocks.student, _like(student, data).example())
                fixed = _frozen(run, teacher, data)
                module, optimizer = run.setup(module, lambda _: self.recipe.make(trained))
                for _ in run.epochs(self.recipe.epochs):
                    module.train()
                    for batch in run.batches(data.train, self.recipe):
                        seen = jittered(batch, data, (run.seed, run.view)) if self.jitter else batch.images
                        with torch.no_grad():
                            t = relations(blocks.teacher.read(fixed, batch.images, h).among(blocks.tokens[0]))
                        s = relations(blocks.student.read(module, seen, h).among(blocks.tokens[1]))
                        run.step(relation_loss(s, t), optimizer, self.recipe)
                _show(run, blocks, data, fixed, module)
                weights |= run.plain(module).state_dict()
        module = run.plain(module)
        module.load_state_dict(weights)
        split = data.train
        return self._probed(run, data, replace(student, module=module, mean=split.mean, std=split.std))

    def _probed(self, run: Run, data: Images, student: Model) -> nn.Module:
        """The student with a linear probe as its classifier, and a note on the labels that this has seen."""
        found = probe_of(run, student, data)
        if found is None:
            run.note("No image has a label, so the student's classifier is as it came; train it on labels.")
            return student.module
        student.module.set_submodule(classifier(student), found.head)
        answers = "the teacher's answers to" if found.split in data.answered else "the labels of"
        what = {"train": "training", "validation": "validation"}[found.split]
        run.note(
            f"The student's classifier is a linear probe, fitted to {answers} {found.labels:,} {what} images; its "
            "features saw no label. To tune all of it on labels: upcycle distill --method plain --student RUN "
            "--student_weights pretrained, where RUN is the directory of this run."
        )
        if found.split == "train":
            run.evaluate(copy_of(student.module).to(run.device, torch.float32), data.validation)
        return run.plain(student.module)

    def product(self, module: nn.Module, data: Images) -> Model:
        """The student's architecture with the classes of the data, called a probe."""
        made = super().product(module, data)
        return replace(made, name=f"{made.name}-probe")


# -- what it is made of -------------------------------------------------------------------------------------------


def jittered(batch: Batch, data: Images, view: tuple[int, int]) -> Tensor:
    """Change the colours of a batch of training images, by a function of (seed, epoch, sample) alone.

    Args:
        data: the collection, which normalised them.
        view: seed and epoch.
    """
    images, split = batch.images, data.train
    mean, std = (images.new_tensor(value) for value in (split.mean, split.std))
    ids = split.ids.index_select(0, batch.index.cpu())
    factors = 1 + augment.STRENGTH * (2 * uniform(*view, ids, "colours of the student", 3) - 1)
    pixels = augment.color(images.permute(0, 2, 3, 1) * std + mean, factors.float().to(images.device))
    return ((pixels.to(images.dtype) - mean) / std).permute(0, 3, 1, 2)


def reached(module: nn.Module, attention: SelfAttention, images: Tensor) -> list[nn.Parameter]:
    """List the parameters that the relations of one block depend on; the others are not to be trained.

    An optimiser would let those decay on several processes, where a missing gradient is one of zeros.
    """
    parameters = [p for p in module.parameters() if p.requires_grad]
    with undisturbed(module), torch.enable_grad():
        found = attention.read(module, images.to(parameters[0]))
        total = torch.stack([t.sum() for t in found]).sum()
        grads = torch.autograd.grad(total, parameters, allow_unused=True)
    return [p for p, grad in zip(parameters, grads, strict=True) if grad is not None]


def _frozen(run: Run, teacher: Model, data: Images) -> Frozen:
    """The teacher made fast, with its submodules, for images as the student sees them."""
    split = _held(data)
    images = split.batch(torch.arange(min(64, len(split))), device=run.device).images
    return frozen(
        teacher.module,
        images,
        keep_modules=True,
        precision="64-true" if run.precision == "64-true" else run.teacher_precision,
        renormalise=((data.train.mean, data.train.std), (teacher.mean, teacher.std)),
    )


def _held(data: Images) -> Any:
    """Give the split that networks are tried on: that of validation, where it has images."""
    return data.validation if len(data.validation) else data.train


def _like(model: Model, data: Images) -> Model:
    """A model that gives examples of the size of the data."""
    return replace(model, input_shape=data.shape)


def _attentions(model: Model, data: Images) -> list[SelfAttention]:
    try:
        return self_attentions(_like(model, data))
    except UserError:
        raise
    except Exception as error:  # whatever a network says of images that it does not take
        size = " x ".join(map(str, data.shape))
        raise UserError(f"{model.name} does not take images of {size} ({one_line(error)}).") from error


def _all(attention: SelfAttention) -> tuple[int, ...]:
    return tuple(range(attention.tokens))


def _notes(teacher: Model, student: Model, blocks: Blocks) -> list[str]:
    """Sentences on what is compared."""
    n = len(blocks.tokens[0])
    found = [
        f"Compared are the relations of {n} tokens in {blocks.heads} heads: block {blocks.block} of {blocks.depth} of "
        f"{teacher.name}, and the last one of {student.name}."
    ]
    for model, one, used in zip((teacher, student), (blocks.teacher, blocks.student), blocks.tokens, strict=True):
        if len(used) < one.tokens:
            found.append(
                f"{one.tokens - len(used)} of the tokens of {model.name} are left out: the other has none such."
            )
        if not one.plain:
            found.append(
                f"{model.name} computes its attention not from products of queries and keys alone (positions may be "
                "added or rotated in); relations are of queries and keys as they leave their layers."
            )
    return found


def _show(run: Run, blocks: Blocks, data: Images, teacher: Frozen, student: nn.Module) -> None:
    """Leave pictures of R_QK of one image, the mean over heads, in teacher and student."""
    images = _held(data).batch(torch.arange(1), device=run.device).images.to(run.dtype)
    n = len(blocks.tokens[0])
    if n > SHOWN:
        return
    whose: dict[str, tuple[Any, SelfAttention, tuple[int, ...]]] = {
        "teacher": (teacher, blocks.teacher, blocks.tokens[0]),
        "student": (student, blocks.student, blocks.tokens[1]),
    }
    for name, (network, attention, tokens) in whose.items():
        with undisturbed(network):
            R = relations(attention.read(network, images, blocks.heads).among(tokens)).softmax(-1)
        values = R[0, : blocks.heads].mean(0)
        run.picture(
            f"relations-{name}",
            {
                "kind": "map",
                "title": f"Relations in the {name}",
                "caption": "How much each token (rows) attends to each (columns) in one image: R_QK, mean over heads, "
                "over the largest.",
                "rows": list(range(1, n + 1)),
                "columns": list(range(1, n + 1)),
                "x": "key",
                "y": "query",
                "values": [[round(value, 4) for value in row] for row in (values / values.max()).tolist()],
            },
        )
