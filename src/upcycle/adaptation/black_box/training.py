"""The steps that students of black boxes share: rates, MixUp, distillation of a moving memory, and fine-tuning."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from upcycle.adaptation.black_box.bottleneck import Bottleneck
from upcycle.core.evaluate import predict_logits
from upcycle.core.heads import WithBottleneck
from upcycle.core.losses import divergence, information
from upcycle.core.norms import unrecorded
from upcycle.core.patterns import weights_of
from upcycle.core.recipe import Recipe
from upcycle.core.run import Run

if TYPE_CHECKING:
    from upcycle.data.images import Images


def rate(progress: float) -> float:
    """Give the factor on the learning rate after a share p of the distillation: (1 + 10 p)^-1.5."""
    return (1 + 10 * progress) ** -1.5


def late_rate(progress: float) -> float:
    """Give that factor for the fine-tuning, which goes on low, from 0.17 to 0.10: (11 + 10 p)^-0.75."""
    return (11 + 10 * progress) ** -0.75


def set_rate(optimizer: torch.optim.Optimizer, factor: float) -> None:
    """Set every group's learning rate: the one that it began with, times ``factor``."""
    for group in optimizer.param_groups:
        group["lr"] = group.setdefault("initial_lr", group["lr"]) * factor


def ema_update(memory: Float[Tensor, "n k"], q: Float[Tensor, "n k"], gamma: float) -> None:
    """Move a memory towards the student, in place: P ← γ P + (1 - γ) q (DINE, eq. 5)."""
    memory.mul_(gamma).add_(q, alpha=1 - gamma)


def mixup(x: Float[Tensor, "n ..."], order: Tensor, lam: float) -> Tensor:
    """Mix inputs or targets with others of the batch: λ x + (1 - λ) x[order] (MixUp; Zhang et al., ICLR 2018).

    Args:
        x: inputs or targets of n samples.
        order: a permutation of the n samples.
        lam: share λ of each sample itself, in [0, 1].
    """
    return lam * x + (1 - lam) * x[order]


def draw_beta(a: float, generator: torch.Generator) -> float:
    """Draw from Beta(a, a) exactly, with one given generator: by rejection (Jöhnk, 1964)."""
    while True:
        u, v = torch.rand(2, generator=generator, dtype=torch.float64).tolist()
        x, y = u ** (1 / a), v ** (1 / a)
        if 0 < x + y <= 1:
            return x / (x + y)


def distil_loss(
    network: nn.Module,
    images: Float[Tensor, "b c h w"],
    p: Float[Tensor, "n k"],
    *,
    order: Int[Tensor, " n"],
    lam: float,
    mix: float,
    diversity: bool,
    run: Run | None = None,
) -> Float[Tensor, ""]:
    """Distil a memory: L = KL(P ‖ q) + L_im + β KL(λ q + (1 - λ) q_π ‖ q̃).

    Here q is the network's answer to the images x, and q̃ that to the mixed ones λ x + (1 - λ) x_π. L_im is
    :func:`~upcycle.core.losses.information`. No gradient goes to P or to the target of q̃. BatchNorm normalises the
    mixed images by their own statistics and does not remember them. The released code means to do so too, but its
    switch is one that BatchNorm ignores, so there mixed images reach the running statistics.

    Args:
        network: the student, in training mode; it gives logits.
        images: this process' share of the batch.
        p: the memory P of the whole batch of n samples, of all processes together (n = b on one).
        order: a permutation π of the whole batch.
        lam: share λ of each image itself in its mixture.
        mix: weight β of MixUp's term; 0 leaves it out.
        diversity: whether L_im asks that all classes occur.
        run: the run whose processes share the batch; the loss is the same on each, so its backward is "global".
    """
    gather = run.gather if run is not None else lambda x: x
    z = gather(network(images))
    loss = divergence(p.to(z), z) + information(z, diversity=diversity)
    if not mix:
        return loss
    target, both = mixup(z.detach().softmax(1), order, lam), mixup(gather(images), order, lam)
    mine = both.tensor_split(run.world_size)[run.rank] if run is not None else both  # as Run.batches does
    with unrecorded(network):
        z_mix = gather(network(mine))
    return loss + mix * divergence(target, z_mix)


def due(run: Run, tenth: Tensor) -> bool:
    """Tell whether the stage's loop has come to its ``tenth`` of ten parts; ``tenth`` then becomes the next one.

    Args:
        run: the run whose :attr:`~upcycle.core.run.Run.progress` is read.
        tenth: a counter (int64, scalar) that is registered with the run; 0 begins with the start, 1 leaves that out.
    """
    now = int(10 * run.progress + 1e-9)
    found = now >= int(tenth)
    if found:
        tenth.fill_(now + 1)
    return found


def tune(
    run: Run,
    network: WithBottleneck,
    data: Images,
    *,
    recipe: Recipe,
    epochs: int,
    bottleneck: Bottleneck,
    schedule: Callable[[float], float],
    diversity: bool,
) -> None:
    """Fine-tune ``network`` by L_im alone, as a stage of its own with an optimiser of its own.

    At every tenth of the way, also at its start, it predicts the whole training split as it is; two equal predictions
    in a row end it.

    Args:
        run: where the stage runs.
        network: the student, trained in place and left on the CPU.
        data: the target; no label of its training images is read.
        recipe: what gives optimiser, learning rate and batch size.
        epochs: the most passes over the training images.
        bottleneck: what gives the backbone's share of the learning rate.
        schedule: the factor on the rates by the share of the epochs that is done, such as :func:`late_rate`.
        diversity: whether L_im asks that all classes occur.
    """
    like = weights_of(network)
    left = run.stage("tune", lambda: _tune(run, network, data, recipe, epochs, bottleneck, schedule, diversity), like)
    network.load_state_dict(left, assign=True)  # with its number format


def _tune(
    run: Run,
    network: WithBottleneck,
    data: Images,
    recipe: Recipe,
    epochs: int,
    bottleneck: Bottleneck,
    schedule: Callable[[float], float],
    diversity: bool,
) -> dict[str, Tensor]:
    _, optimizer = run.setup(network, lambda network: bottleneck.optimizer(network, recipe))
    before, tenth = torch.full((len(data.train),), -1), torch.zeros((), dtype=torch.int64)
    run.register("labels", before)
    run.register("tenth", tenth)
    for _ in run.epochs(epochs):
        network.train()
        for images, _, _ in run.batches(data.train, recipe.batch_size):
            if due(run, tenth):
                now = predict_logits(network, data.train).argmax(1)
                if torch.equal(now, before):
                    run.note(
                        f"Fine-tuning ended after {run.progress:.0%} of its {epochs} epochs: the predictions no longer "
                        "changed."
                    )
                    return network.state_dict()
                before.copy_(now)
            set_rate(optimizer, schedule(run.progress))
            loss = information(run.gather(network(images)), diversity=diversity)
            run.backward(loss, "global")
            run.update(optimizer)
            run.track(information=loss)
        run.evaluate(network, data.validation)
    return network.state_dict()
