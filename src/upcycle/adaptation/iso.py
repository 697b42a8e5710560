"""Inference stage optimization: a network takes gradient steps on a self-supervised loss of a sample, then answers.

:func:`adapt` does that with any module, any such loss and any stream; :class:`Adapter` is the same with the network to
keep; :class:`ISO` trains an image classifier jointly with rotation prediction first, as adaptation needs it.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from upcycle.core.errors import UserError, require
from upcycle.core.evaluate import predict_logits
from upcycle.core.heads import classifier
from upcycle.core.losses import ce_loss, information
from upcycle.core.method import Card, Control, Method, Needs
from upcycle.core.models import Model, copy_of, own_copy
from upcycle.core.recipe import Recipe
from upcycle.core.run import Run
from upcycle.data.images import Images, ImageSplit
from upcycle.data.labels import match_classes

Mode = Literal["vanilla", "online"]
Params = Literal["encoder", "all", "norm-affine"]
Optimizer = Literal["adam", "sgd"]
Loss = Callable[[nn.Module, Tensor], Tensor]

CHUNK = 64
"""Samples of the stream between save points."""
CHECKED = 128
"""Source validation images that the gradients are compared on."""
SHIFTS = tuple(sorted(itertools.product(range(-2, 3), repeat=2), key=lambda s: (s[0] ** 2 + s[1] ** 2, s)))
"""By how many pixels the copies of an image are moved, the nearest first; the first one not at all."""

# -- losses of an input alone ----------------------------------------


def shifted(x: Float[Tensor, "b c h w"], copies: int) -> Float[Tensor, "n c h w"]:
    """``copies`` of each image, moved by :data:`SHIFTS`; what comes in at the border repeats it. n = copies b."""
    _, _, h, w = x.shape
    padded = F.pad(x, (2, 2, 2, 2), mode="replicate")
    return torch.cat([padded[:, :, 2 + i : 2 + i + h, 2 + j : 2 + j + w] for i, j in SHIFTS[:copies]])


def rotated(x: Float[Tensor, "b c h w"]) -> Float[Tensor, "4*b c h w"]:
    """All images turned by 0, then all by 90, 180 and 270 degrees."""
    require(x.shape[2] == x.shape[3], f"Rotation prediction turns images by 90 degrees, so they must be square, not "
            f"{x.shape[2]} x {x.shape[3]}; crop or resize them.")  # fmt: skip
    return torch.cat([torch.rot90(x, turn, (2, 3)) for turn in range(4)])


def rotation_loss(
    predict: Callable[[Tensor], Tensor], x: Float[Tensor, "b c h w"], copies: int = 16
) -> Float[Tensor, ""]:
    """Mean cross-entropy of telling by how much ``copies`` of x are turned (Gidaris et al., arXiv:1803.07728).

    Args:
        predict: from images (n, c, h, w) to logits (n, 4) of the turns by 0, 90, 180 and 270 degrees.
        copies: of each image, every four of them one shift in all its turns.
    """
    views = rotated(shifted(x, copies // 4))
    return turn_loss(predict(views))


def turn_loss(z: Float[Tensor, "n 4"]) -> Float[Tensor, ""]:
    """Mean cross-entropy of logits for what :func:`rotated` gives."""
    return F.cross_entropy(z, torch.arange(4, device=z.device).repeat_interleave(len(z) // 4))


def entropy_loss(predict: Callable[[Tensor], Tensor], x: Float[Tensor, "b ..."]) -> Float[Tensor, ""]:
    """Mean entropy of the network's own answers, in nats (as in Wang et al., arXiv:2006.10726)."""
    return information(predict(x), diversity=False)


def simulated(x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
    """A shift to try adaptation on where the real one has no labels: blur by 3 x 3 means, and a tenth of the pixels
    black or white (the least and the greatest value of x), the same ones at each call."""
    blurred = F.avg_pool2d(F.pad(x, (1, 1, 1, 1), mode="replicate"), 3, 1)
    u = torch.rand(x.shape, generator=torch.Generator().manual_seed(0)).to(x.device)
    return torch.where(u < 0.05, x.min(), torch.where(u > 0.95, x.max(), blurred))


# -- adaptation of any network ----------------------------------------


class Adapter:
    """A network that takes ``steps`` on ssl_loss(network, x) before it answers x; it changes in place.

    Vanilla: each x starts from the weights, buffers and empty optimiser that the network came with. Online: from
    what the x before left. The network runs in evaluation mode for good: dropout is off, and no BatchNorm takes
    statistics of one sample.

    Args:
        network: any module; the parts that only the loss uses (ψ) are submodules of it.
        ssl_loss: a scalar from the network and x. Vanilla answers do not depend on the order of the stream if it
            draws nothing at random.
        mode: vanilla or online.
        steps: T, before each answer.
        lr: of the optimiser: adam, or sgd without momentum.
        params: what moves: all but the main head φ (encoder), all, or the scales and shifts of normalisations.
        head: the name of the submodule φ, which ``encoder`` leaves as it is.
        reset_every: in online mode, back to the start after so many answers; 0 for never.
        pull: ρ of θ ← (1 - ρ) θ + ρ θ0 after each step, against drift.
        update: steps down the loss and clears the gradients, in place of the optimiser alone.

    Raises:
        UserError: nothing moves, or a value is out of its range.
    """

    def __init__(
        self, network: nn.Module, ssl_loss: Loss, *, mode: Mode, steps: int, lr: float, params: Params = "encoder",
        head: str = "", optimizer: Optimizer = "adam", reset_every: int = 0, pull: float = 0.0,
        update: Callable[[Tensor, torch.optim.Optimizer], None] | None = None,
    ) -> None:  # fmt: skip
        require(mode in ("vanilla", "online"), f"mode must be vanilla or online, not '{mode}'.")
        require(optimizer in ("adam", "sgd"), f"optimizer must be adam or sgd, not '{optimizer}'.")
        require(steps >= 0, f"steps must not be negative, it is {steps}.")
        require(0 <= lr < math.inf, f"lr must be zero or a positive number, not {lr}.")
        require(reset_every >= 0, f"reset_every must not be negative, it is {reset_every}.")
        require(0 <= pull <= 1, f"pull must lie in [0, 1], not {pull}.")
        self.network = network.eval().requires_grad_(False)
        self.ssl_loss, self.steps, self.pull = ssl_loss, steps, pull
        self.reset_every = 1 if mode == "vanilla" else reset_every
        self.answered = 0
        self._moving = [p.requires_grad_(True) for p in moving(network, params, head)]
        make = torch.optim.Adam if optimizer == "adam" else torch.optim.SGD
        self.optimizer: torch.optim.Optimizer = make(self._moving, lr=lr, fused=True)
        self._update = update or _descend
        self._state = [*(p.data for p in self._moving), *network.buffers()]
        self._start = [t.clone() for t in self._state]

    def reset(self) -> None:
        """Weights, buffers and optimiser as they were at the start."""
        torch._foreach_copy_(self._state, self._start)
        self.optimizer.state.clear()

    def answer(self, x: Float[Tensor, "b ..."]) -> Tensor:
        """What the network says of the next x, usually one sample, after its steps on it.

        Raises:
            UserError: the loss is not finite; the weights were not touched by it.
        """
        if self.reset_every and self.answered % self.reset_every == 0:
            self.reset()
        with torch.enable_grad():
            for _ in range(self.steps):
                loss = self.ssl_loss(self.network, x)
                require(bool(loss.isfinite()), f"The self-supervised loss of sample {self.answered} of the stream is "
                        "not a finite number; lower lr or look at that sample.")  # fmt: skip
                self._update(loss, self.optimizer)
                if self.pull:
                    torch._foreach_lerp_(self._state[: len(self._moving)], self._start[: len(self._moving)], self.pull)
        self.answered += 1
        with torch.no_grad():
            return self.network(x)

    def answers(self, batches: Iterable[Tensor]) -> Iterator[Tensor]:
        """One answer to each x of a stream, in its order."""
        return map(self.answer, batches)


def adapt(
    model: nn.Module, batches: Iterable[Tensor], ssl_loss: Loss, *, mode: Mode, steps: int, lr: float,
    params: Params = "encoder", head: str = "", optimizer: Optimizer = "adam", reset_every: int = 0, pull: float = 0.0,
) -> Iterator[Tensor]:  # fmt: skip
    """The answers of a copy of ``model`` to a stream, each given after the copy has adapted to that x.

    ``model`` stays as it is. Whoever wants the adapted copy makes an :class:`Adapter` of one, which says what the
    arguments are.

    Args:
        batches: each of its tensors x (b, ...) is adapted to at once and answered once; one sample, b = 1, as a rule.
    """
    return Adapter(copy_of(model), ssl_loss, mode=mode, steps=steps, lr=lr, params=params, head=head,
                   optimizer=optimizer, reset_every=reset_every, pull=pull).answers(batches)  # fmt: skip


def moving(network: nn.Module, params: Params, head: str = "") -> list[nn.Parameter]:
    """The parameters that adaptation moves, see :class:`Adapter`.

    Raises:
        UserError: an unknown choice, an encoder without the name of the head, or no such parameter.
    """
    require(params in ("encoder", "all", "norm-affine"), f"params must be encoder, all or norm-affine, not '{params}'.")
    if params == "norm-affine":
        kinds = (_NormBase, nn.GroupNorm, nn.LayerNorm)
        found = [p for m in network.modules() if isinstance(m, kinds) for p in m.parameters(recurse=False)]
    else:
        known = dict(network.named_modules())
        require(params == "all" or (head != "" and head in known), "params='encoder' leaves the main head out: give "
                f"head= the name of that submodule; '{head}' is none.")  # fmt: skip
        out = {id(p) for p in known[head].parameters()} if params == "encoder" else set()
        found = [p for p in network.parameters() if id(p) not in out]
    require(bool(found), f"{type(network).__name__} has no parameters of params='{params}' that could adapt; choose "
            "encoder or all.")  # fmt: skip
    return found


def _descend(loss: Tensor, optimizer: torch.optim.Optimizer) -> None:
    loss.backward()
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)


# -- a classifier with a rotation head ----------------------------------------


class Joint(nn.Module):
    """A classifier taken apart into the encoder e_θ and the main head φ, and a rotation head ψ on the same features.

    Args:
        model: whose module is taken over, not copied; :meth:`whole` gives it back. It must end in a linear layer.
    """

    def __init__(self, model: Model) -> None:
        super().__init__()
        self.name = classifier(model)
        self.phi: nn.Linear = model.module.get_submodule(self.name)  # type: ignore[assignment]
        model.module.set_submodule(self.name, nn.Identity())
        self.encoder = model.module
        self.psi = nn.Linear(self.phi.in_features, 4).to(self.phi.weight.device, self.phi.weight.dtype)

    def parts(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Logits of the classes (n, k), and of the four turns (n, 4)."""
        features = self.encoder(images)
        return self.phi(features), self.psi(features)

    def forward(self, images: Tensor) -> Tensor:
        return self.phi(self.encoder(images))

    def turns(self, images: Tensor) -> Tensor:
        """Logits of the four turns (n, 4)."""
        return self.psi(self.encoder(images))

    def whole(self) -> nn.Module:
        """The classifier without ψ."""
        self.encoder.set_submodule(self.name, self.phi)
        return self.encoder


def alignment(joint: Joint, x: Float[Tensor, "b c h w"], y: Int[Tensor, " b"]) -> tuple[float, float]:
    """Mean over samples of cos(∇_θ L_main, ∇_θ L_ssl), in evaluation mode, and its standard error (0 of one sample).

    Below zero, a step on the self-supervised loss of a sample tends to make its main loss worse to first order (Sun
    et al.; ICML 2020; arXiv:1909.13231, theorem 1).
    """
    joint.eval()
    theta = [p for p in joint.encoder.parameters() if p.requires_grad]
    cosines = []
    for i in range(len(x)):
        z, turns = joint.parts(rotated(x[i : i + 1]))
        grads = (torch.autograd.grad(loss, theta, retain_graph=True, materialize_grads=True)
                 for loss in (ce_loss(z[:1], y[i : i + 1]), turn_loss(turns)))  # fmt: skip
        main, ssl = (torch.cat([g.flatten() for g in found]) for found in grads)
        cosines.append(F.cosine_similarity(main, ssl, dim=0))
    c = torch.stack(cosines)
    return float(c.mean()), float(c.std(correction=min(1, len(c) - 1))) / math.sqrt(len(c))


@dataclass(kw_only=True, eq=False, repr=False)
class ISO(Method):
    """Inference Stage Optimization for Cross-scenario 3D Human Pose Estimation (Zhang, Nie, Feng; arXiv:2007.02054).

    1. *Joint training* on the labelled source, from the start, of encoder θ, main head φ and rotation head ψ:

        L = L_main(h_φ(e_θ(x)), y) + λ L_ssl(x; θ, ψ)          (cross-entropy, and :func:`rotation_loss`).

    2. *Check.* Adaptation is refused if the gradients of the two losses disagree beyond chance, by two standard
       errors (:func:`alignment`), on source validation images under a shift (:func:`simulated`). On the images as they
       are it says nothing: where joint training ends, ∇L_main = -λ ∇L_ssl on average, and no adaptation is needed.
    3. *Adaptation.* For each sample x of the unlabelled target stream, in its order: T steps on L_ssl(x; θ, ψ), then
       the answer (:class:`Adapter`). Vanilla begins each sample at the stored weights, online where the last one
       ended. The product is the network that was trained jointly (vanilla) or the drifted one (online), without ψ.

    *Reconstructed*: the paper has no public code. This is its general scheme with rotation prediction, as in test-time
    training (Sun et al.; ICML 2020; arXiv:1909.13231); the losses for pose (cycle consistency of lifted joints, and a
    discriminator of 2D poses) are left out. The copies of a sample are its shifts by whole pixels, nearest first, each
    in all four turns: the same in every step, so that nothing is random while adapting, and a vanilla answer depends
    on nothing but its sample.

    Every process walks the whole stream: each online sample begins where the one before ended, so there is nothing
    to share out, and one sample is too small to split.

    Args:
        source: a classifier that ends in a linear layer, fresh or trained; best with GroupNorm or LayerNorm.
        source_data: labelled images for the joint training, with labelled validation images for the check.
        mode: vanilla or online.
        updates: T steps before each answer; none: 5 (vanilla) or 1 (online).
        lr: of these steps; none: 1e-3 (vanilla) or 1e-4 (online).
        optimizer: of these steps; adam keeps its state in online mode, sgd has no momentum.
        params: encoder (θ and ψ), all, or norm-affine (scales and shifts of normalisations), which bears a higher lr
            and forgot least in our trials (1e-3, see the claim).
        copies: of each sample in a step, a multiple of four.
        lam: λ.
        reset_every: in online mode, back to the start after so many samples; 0 for never.
        pull: ρ of θ ← (1 - ρ) θ + ρ θ0 after each step.
        recipe: ordinary training on the source.
    """

    source: Model | nn.Module
    source_data: Images | None = None
    mode: Mode = "online"
    updates: int | None = None
    lr: float | None = None
    optimizer: Optimizer = "adam"
    params: Params = "encoder"
    copies: int = 16
    lam: float = 1.0
    reset_every: int = 0
    pull: float = 0.0
    recipe: Recipe = field(default_factory=lambda: Recipe(lr=0.05, warmup=1.0))

    roles: ClassVar[tuple[str, ...]] = ("source",)
    given: ClassVar[tuple[str, ...]] = ("source_data",)
    card = Card(
        name="iso",
        title="Inference Stage Optimization for Cross-scenario 3D Human Pose Estimation",
        paper="Zhang, Nie, Feng; NeurIPS 2020; arXiv:2007.02054",
        verb="adapt",
        needs=Needs(data="unlabelled", teacher="weights", architectures="a classifier that ends in a linear layer"),
        summary="A classifier that adjusts itself to each unlabelled image, or to the stream, before it answers.",
        cost="four times plain training on the source, then T steps of 16 copies a sample",
        published="MPI-INF-3DHP 83.6 % 3D-PCK across scenarios, 9.7 points above the best before (abstract)",
    )

    def __post_init__(self) -> None:
        require(self.mode in ("vanilla", "online"), f"mode must be vanilla or online, not '{self.mode}'.")
        require(self.mode == "online" or not self.reset_every, "reset_every is for --mode online; vanilla begins anew "
                "with every sample.")  # fmt: skip
        require(self.updates is None or self.updates >= 0, f"updates must not be negative, it is {self.updates}.")
        require(self.lr is None or 0 <= self.lr < math.inf, f"lr must be zero or a positive number, not {self.lr}.")
        require(self.optimizer in ("adam", "sgd"), f"optimizer must be adam or sgd, not '{self.optimizer}'.")
        require(self.params in ("encoder", "all", "norm-affine"), f"params must be encoder, all or norm-affine, not "
                f"'{self.params}'.")  # fmt: skip
        require(self.copies % 4 == 0 and 4 <= self.copies <= 4 * len(SHIFTS), f"copies must be a multiple of 4 from 4 "
                f"to {4 * len(SHIFTS)}, not {self.copies}.")  # fmt: skip
        require(0 <= self.lam < math.inf, f"lam must be zero or positive, not {self.lam}.")
        require(self.reset_every >= 0, f"reset_every must not be negative, it is {self.reset_every}.")
        require(0 <= self.pull <= 1, f"pull must lie in [0, 1], not {self.pull}.")

    def steps(self, n: int) -> int:
        """Updates on the source, and those on ``n`` samples of the stream."""
        known = len(self.source_data.train) if self.source_data is not None else n
        return self.recipe.steps(known) + n * self._updates

    def work(self, n: int, teacher: int, student: int) -> float:
        """Four turns of each source image in each epoch, ``copies`` of each sample in each of its updates."""
        known = len(self.source_data.train) if self.source_data is not None else n
        own = max(teacher, student)
        return float(3 * own * (4 * self.recipe.epochs * known + self._updates * self.copies * n) + own * n)

    def check(self, data: Images) -> list[str]:
        """Source images with labels, square ones on both sides, and a network that ends in a linear layer."""
        source, known = self.model("source", data), self.source_data
        if known is None:
            return ["it trains jointly on labelled images of the source before it adapts, and none were given: give "
                    "source_data"]  # fmt: skip
        problems = []
        for images in (known, data):
            c, h, w = images.shape
            if h != w:
                problems.append(f"{images.name} has images of {h} x {w}, and rotation prediction needs square ones")
            if c != source.input_shape[0]:
                problems.append(f"{source.name} takes {source.input_shape[0]} input channels and {images.name} has {c}")
        for name, split in (("training", known.train), ("validation", known.validation)):
            if not bool((split.labels >= 0).any()):
                problems.append(f"{known.name} has no labelled {name} images")
        if problems:
            return problems
        try:
            classifier(source)
            _expected(known, source)
            _expected(data, source)
        except UserError as error:
            problems.append(str(error).rstrip("."))
        return problems

    def controls(self) -> dict[str, Control]:
        """The source trained jointly with its auxiliary task, and not adapted."""
        return {
            "trained jointly and not adapted": Control(
                method=dataclasses.replace(self, source=own_copy(self.source), updates=0),
                words="trained jointly and not adapted",
            )
        }

    def fit(self, run: Run, data: Images) -> nn.Module:
        """The algorithm; returns the classifier, adapted to the stream in online mode."""
        if self.source_data is None:
            raise UserError("iso trains jointly on labelled images of the source first; give source_data.")
        source = self.model("source", data)
        known, stream = _expected(self.source_data, source), _expected(data, source).train
        joint = self.beside_rotation(source)
        joint.to(run.device, torch.float64 if run.precision == "64-true" else torch.float32)

        joint.load_state_dict(run.stage("joint", lambda: self.train_jointly(run, source, known).state_dict()))
        cosine, error = run.stage("alignment", lambda: self.alignment(joint, known.validation))
        require(cosine >= -2 * error, "Adapting would hurt: on source validation images under a simulated shift, the "
                f"gradients of the main and the self-supervised loss have a mean cosine of {cosine:.3f} ± {error:.3f}, "
                "below zero; train longer or with another --lam.")  # fmt: skip
        before = run.stage("before", lambda: _classes(joint, stream, source.name))

        def update(loss: Tensor, optimizer: torch.optim.Optimizer) -> None:
            run.backward(loss, "global")  # the same on every process
            run.update(optimizer)

        adapter = self.adapter(joint, update)
        after = torch.full((len(stream),), -1)
        for name, state in (("network", joint), ("optimizer", adapter.optimizer), ("answers", after)):
            run.register(name, state)
        seconds, walked = 0.0, 0
        for chunk in run.epochs(math.ceil(len(stream) / CHUNK)):
            index = torch.arange(chunk * CHUNK, min((chunk + 1) * CHUNK, len(stream)))
            images = stream.batch(index, device=run.device).images.to(joint.phi.weight.dtype)
            adapter.answered, start = int(index[0]), time.perf_counter()
            after[index] = torch.cat(list(adapter.answers(images.split(1)))).argmax(1).cpu()
            seconds, walked = seconds + time.perf_counter() - start, walked + len(index)
        if self.mode == "vanilla":
            adapter.reset()
        if walked:  # none is left for a run that comes back when it is done
            run.note(f"Adapting took {1000 * seconds / walked:.1f} ms a sample.")
        run.log(gradient_cosine=cosine)
        self._show(run, stream, before, after)
        run.plain(joint.requires_grad_(True))
        return joint.whole()

    def beside_rotation(self, source: Model) -> Joint:
        """A copy of ``source`` with a fresh rotation head."""
        return Joint(dataclasses.replace(source, module=copy_of(source.module).requires_grad_(True)))

    def train_jointly(self, run: Run, source: Model, data: Images) -> Joint:
        """Stage 1, on images normalised as ``source`` expects them."""
        joint, optimizer = run.setup(self.beside_rotation(source), self.recipe)
        for _ in run.epochs(self.recipe.epochs):
            joint.train()
            for images, y, _ in run.batches(data.train, self.recipe.batch_size, save_within=True):
                self.recipe.schedule_rate(optimizer, run.progress)
                z, turns = joint.parts(rotated(images))
                main, ssl = ce_loss(z[: len(y)], y), turn_loss(turns)
                run.backward(main + self.lam * ssl)
                run.update(optimizer)
                run.track(loss=main, ssl_loss=ssl)
            run.evaluate(joint, data.validation)
        run.plain(joint)
        return joint

    def alignment(self, joint: Joint, split: ImageSplit) -> tuple[float, float]:
        """:func:`alignment` on up to 128 labelled images, spread over ``split``, under the simulated shift."""
        labelled = (split.labels >= 0).nonzero()[:, 0]
        spread = torch.linspace(0, len(labelled) - 1, min(CHECKED, len(labelled))).long()
        images, y, _ = split.batch(labelled[spread], device=joint.phi.weight.device)
        return alignment(joint, simulated(images.to(joint.phi.weight.dtype)), y)

    def adapter(self, joint: Joint, update: Callable[[Tensor, torch.optim.Optimizer], None] | None = None) -> Adapter:
        """Stage 3 for ``joint``, which changes in place; ``update`` as for :class:`Adapter`."""
        lr = self.lr if self.lr is not None else 1e-3 if self.mode == "vanilla" else 1e-4

        def ssl_loss(network: nn.Module, x: Tensor) -> Tensor:
            return rotation_loss(network.turns, x, self.copies)  # type: ignore[arg-type]

        return Adapter(joint, ssl_loss, mode=self.mode, steps=self._updates, lr=lr, params=self.params, head="phi",
                       optimizer=self.optimizer, reset_every=self.reset_every, pull=self.pull,
                       update=update)  # fmt: skip

    def product(self, module: nn.Module, data: Images) -> Model:
        """The same architecture with new weights."""
        source = self.model("source", data)
        return dataclasses.replace(source, module=module, lineage=None, name=f"{source.name}-adapted")

    @property
    def _updates(self) -> int:
        return self.updates if self.updates is not None else 5 if self.mode == "vanilla" else 1

    def _show(self, run: Run, stream: ImageSplit, before: Tensor, after: Tensor) -> None:
        """What was answered along the stream, with and without adaptation; labels serve here alone."""
        known = stream.labels >= 0
        if not bool(known.any()):
            return
        right = {name: (found == stream.labels)[known].double()
                 for name, found in (("no adaptation", before), (self.mode, after))}  # fmt: skip
        run.log(unadapted_accuracy=right["no adaptation"].mean(), stream_accuracy=right[self.mode].mean())
        x = torch.linspace(1, int(known.sum()), min(200, int(known.sum()))).long()
        series = [{"name": name, "x": x.tolist(), "y": (hits.cumsum(0)[x - 1] / x).tolist()}
                  for name, hits in right.items()]  # fmt: skip
        run.picture("1-stream", {
            "kind": "lines", "title": "Accuracy along the stream", "caption": "Of all answers so far. Each was given "
            "once, after the network had adapted to that sample.", "x": "samples", "y": "accuracy", "unit": "percent",
            "series": series})  # fmt: skip


def _expected(images: Images, model: Model) -> Images:
    """As ``model`` expects them: batches have its normalisation, known labels are the numbers of its logits."""
    images = images.normalised(model.mean, model.std)

    def relabelled(split: ImageSplit) -> ImageSplit:
        if not bool((split.labels >= 0).any()):
            return split
        to = torch.full((len(images.classes) + 1,), -1)  # the last one for label -1
        to[match_classes(images.classes, model.classes)[0]] = torch.arange(len(model.classes))
        return dataclasses.replace(split, labels=to[split.labels])

    train, validation, test = map(relabelled, (images.train, images.validation, images.test))
    return dataclasses.replace(images, train=train, validation=validation, test=test)


def _classes(network: nn.Module, split: ImageSplit, name: str) -> Tensor:
    """The class that ``network`` gives each sample, int64 (n,)."""
    z = predict_logits(network, split)
    broken = int((~z.isfinite()).any(1).sum())
    require(broken == 0, f"{name} gives NaN or infinite outputs for {broken} of {len(z)} images of the stream; look at "
            "those images.")  # fmt: skip
    return z.argmax(1)
