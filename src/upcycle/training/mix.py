"""Mixing: mixup, CutMix and SnapMix, for any loop whose loss takes soft targets.

The functions of tensors stand first and need no run. Each makes of images x (b, c, h, w) and labels y mixed images and
targets T (b, k), for the loss -Σ T log p (:func:`upcycle.core.losses.ce_loss`):

    mixup    x~ = λ x_a + (1 - λ) x_b                       T = λ e_a + (1 - λ) e_b
    cutmix   x~ = x_a, with the box A of x_b in place        T = (1 - |A|/HW) e_a + |A|/HW e_b
    snapmix  x~ = x_a, with the box B of x_b resized into A  T = (1 - Σ_A S_a) e_a + Σ_B S_b e_b

where S is the percent map of an image (:mod:`upcycle.training.percent_maps`). SnapMix's T need not sum to 1.

Zhang et al., "mixup: Beyond Empirical Risk Minimization", ICLR 2018, arXiv:1710.09412; Yun et al., "CutMix", ICCV 2019,
arXiv:1905.04899; Huang, Wang, Tao, "SnapMix", AAAI 2021, arXiv:2012.04846.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from upcycle.core.batches import Batch
from upcycle.core.errors import UserError
from upcycle.core.frozen import Normalisation, frozen
from upcycle.core.models import Model
from upcycle.core.outputs import tensors_of
from upcycle.core.seeds import uniform
from upcycle.core.undisturbed import undisturbed
from upcycle.training.boxes import Box
from upcycle.training.mix_pictures import ROWS, Shown, picture
from upcycle.training.percent_maps import PercentMaps, evidence, uncompiled

if TYPE_CHECKING:
    from upcycle.core.method import Method
    from upcycle.core.recipe import Recipe


def box(lam: float, centre: tuple[float, float], height: int, width: int) -> Box:
    """CutMix's box: a share 1 - λ of the image, of its proportions, around a pixel, cut at the image's edges.

    Args:
        lam: λ, the share of the image that is kept.
        centre: of the box, from 0 to below 1 of the image's height and width.
        height, width: of the image.
    """
    ratio = (1 - lam) ** 0.5
    edges = []
    for length, place in ((height, centre[0]), (width, centre[1])):
        middle, half = int(length * place), int(length * ratio) // 2
        edges.append((max(middle - half, 0), min(middle + half, length)))
    (top, bottom), (left, right) = edges
    return Box(top, left, bottom, right)


class Draw(NamedTuple):
    """The random numbers of one batch.

    Args:
        mixes: whether it is mixed at all.
        lam: λ of mixup.
        target: A, the box that is pasted over.
        source: B, the box that SnapMix cuts out.
    """

    mixes: bool
    lam: float
    target: Box
    source: Box


def draw(u: Sequence[float], prob: float, beta: float, height: int, width: int) -> Draw:
    """Make what a batch is mixed by of seven random numbers; the same for every way of mixing.

    Args:
        u: in [0, 1), independent.
        prob: probability that it is mixed.
        beta: β; both λ are of Beta(β, β), independently.
        height, width: of the images.
    """
    from scipy.special import betaincinv  # the inverse of the distribution function

    lam, other = (float(betaincinv(beta, beta, v)) for v in u[1:3])
    target, source = box(lam, (u[3], u[4]), height, width), box(other, (u[5], u[6]), height, width)
    return Draw(u[0] < prob, lam, target, source)


def partners(u: Float[Tensor, " n"], known: Tensor) -> Int[Tensor, " n"]:
    """A random permutation of the places in a batch that have a label; the others are their own partner.

    Args:
        u: a random number in [0, 1) for each sample.
        known: bool (n,), which have a label.
    """
    if bool(known.all()):
        return u.argsort(stable=True)
    places = known.nonzero().squeeze(1)
    found = torch.arange(len(u))
    found[places] = places[u[places].argsort(stable=True)]
    return found


def targets(
    y: Int[Tensor, " b"], y_b: Int[Tensor, " b"], rho_a: Tensor | float, rho_b: Tensor | float, k: int, like: Tensor
) -> Float[Tensor, "b k"]:
    """T = ρ_a e_y + ρ_b e_{y_b}, not normalised; a row of zeros where the label is -1.

    Where both labels are one class it gets ρ_a + ρ_b. The code of SnapMix counts such a pair twice.

    Args:
        y, y_b: labels of the images and of their partners.
        rho_a, rho_b: (b,), or one for all.
        k: the number of classes.
        like: a tensor of the type that T shall have, on its device.
    """
    T = like.new_zeros(len(y), k)
    if not isinstance(rho_a, Tensor) and bool((y >= 0).all()) and bool((y_b >= 0).all()):  # as nearly always
        T.scatter_(1, y[:, None], rho_a)
        return T.scatter_add_(1, y_b[:, None], T.new_full((len(y), 1), float(rho_b)))
    for label, rho in ((y, rho_a), (y_b, rho_b)):
        T.scatter_add_(1, label.clamp_min(0)[:, None], ((label >= 0) * rho)[:, None].to(T.dtype))
    return T


def paste(
    x: Tensor, pool: Tensor, rows: Int[Tensor, " b"], target: Box, source: Box, known: Tensor, inplace: bool = False
) -> Tensor:
    """The images x with the box ``source`` of images ``pool[rows]``, resized (bilinear) to ``target``, pasted there.

    Args:
        x: (b, c, h, w).
        pool: (n, c, h, w), may be x itself.
        rows: of the pool, one for each image of x.
        target, source: where to, where from.
        known: bool (b,), which images are pasted over; asked for where an image that is its own partner would change.
        inplace: write into x; if not, into a copy.
    """
    cut = _taken(pool[:, :, *source.part], rows)
    if source != target:
        cut = F.interpolate(cut, target.size, mode="bilinear", align_corners=True)
        cut = torch.where(known[:, None, None, None], cut, x[:, :, *target.part])
    out = x if inplace else x.clone()
    out[:, :, *target.part] = cut
    return out


def _taken(images: Tensor, rows: Int[Tensor, " b"]) -> Tensor:
    """``images[rows]``, a copy; of images that lie in memory with their channels last, as those of splits do, fast."""
    return images.permute(0, 2, 3, 1).index_select(0, rows).permute(0, 3, 1, 2)


def mixup(
    x: Float[Tensor, "b c h w"],
    y: Int[Tensor, " b"],
    pool: Float[Tensor, "n c h w"],
    labels: Int[Tensor, " n"],
    rows: Int[Tensor, " b"],
    lam: float,
    k: int,
) -> tuple[Float[Tensor, "b c h w"], Float[Tensor, "b k"]]:
    """λ x_a + (1 - λ) x_b, and its targets.

    Args:
        x, y: images and labels, -1 for unknown: such an image has to be its own partner.
        pool, labels: images among which the partners are, may be x and y, and their labels.
        rows: of the partners in the pool.
        lam: λ.
        k: the number of classes.
    """
    return _taken(pool, rows).lerp_(x, lam), targets(y, labels[rows], lam, 1 - lam, k, x)


def cutmix(
    x: Float[Tensor, "b c h w"],
    y: Int[Tensor, " b"],
    pool: Float[Tensor, "n c h w"],
    labels: Int[Tensor, " n"],
    rows: Int[Tensor, " b"],
    A: Box,
    k: int,
    inplace: bool = False,
) -> tuple[Float[Tensor, "b c h w"], Float[Tensor, "b k"]]:
    """x_a with the box A of x_b, and targets by area; other arguments as of :func:`mixup`.

    Args:
        A: the box.
        inplace: write into x; if not, into a copy.
    """
    share = A.area / (x.shape[2] * x.shape[3])
    return paste(x, pool, rows, A, A, y >= 0, inplace), targets(y, labels[rows], 1 - share, share, k, x)


def snapmix(
    x: Float[Tensor, "b c h w"],
    y: Int[Tensor, " b"],
    pool: Float[Tensor, "n c h w"],
    labels: Int[Tensor, " n"],
    rows: Int[Tensor, " b"],
    A: Box,
    B: Box,
    S: Float[Tensor, "b h w"],
    S_pool: Float[Tensor, "n h w"],
    k: int,
    inplace: bool = False,
) -> tuple[Float[Tensor, "b c h w"], Float[Tensor, "b k"]]:
    """x_a with the box B of x_b resized into A, and targets by class evidence; other arguments as of :func:`mixup`.

    Args:
        A, B: the boxes; where one is empty nothing is mixed.
        S: percent maps of x; one that is NaN counts by area.
        S_pool: percent maps of the pool.
        inplace: write into x; if not, into a copy.
    """
    if not A.area or not B.area:
        return x, targets(y, y, 1.0, 0.0, k, S)
    share = A.area / (x.shape[2] * x.shape[3])
    rho_a = (1 - S[:, *A.part].sum((1, 2))).nan_to_num(1 - share).clamp(0, 1)
    rho_b = S_pool[:, *B.part].sum((1, 2)).nan_to_num(share).clamp(0, 1)[rows]
    return paste(x, pool, rows, A, B, y >= 0, inplace), targets(y, labels[rows], rho_a, rho_b, k, S)


# -- in a run ---------------------------------------------------------------------------------------------------


class Mixer:
    """The mixer of the batches of a stage, made once for it; kept by :class:`~upcycle.core.run.Run` while it lasts.

    Every number is drawn from (seed, view, samples of the batch over all processes), so nothing has to be saved, and
    several processes mix as one does: a partner that lies in another's share is read from memory, and where SnapMix
    needs its map, that is made here once more.

    Departures from the authors' code of SnapMix: maps are made in evaluation mode, two images of one class count once.

    Args:
        recipe: its ``mix``, ``mix_prob``, ``mix_beta`` and ``mix_map``.
        network: the one being trained, on its device, in whatever mode; left as it is found, and so is randomness.
        teacher: the model that :meth:`Run.frozen` made its last teacher of, untouched: on the CPU, neither folded nor
            in bf16, with the ``mean`` and ``std`` of its own inputs; ``None`` where the method has none.
        normalisation: mean and standard deviation that the batches are normalised with; ``None`` if they do not say.
    """

    def __init__(
        self,
        recipe: Recipe,
        network: nn.Module,
        teacher: Model | None,
        normalisation: Normalisation | None,
    ) -> None:
        self.recipe, self.network, self.teacher, self.normalisation = recipe, network, teacher, normalisation
        self.shown: Shown | None = None  # of the last batch that SnapMix mixed
        self._maps: PercentMaps | None = None
        self._k = 0

    def __call__(
        self,
        batch: Batch,
        samples: Int[Tensor, " n"],
        labels: Int[Tensor, " n"],
        mine: Int[Tensor, " b"],
        read: Callable[[Tensor], Batch],
        key: tuple[int, int],
    ) -> Batch:
        """Mix a process' share of a batch; its labels become targets, float (b, k).

        Called once a batch, before it is met. Draws from nothing but ``key`` and the samples.

        Args:
            batch: this process' share, as :meth:`Run.batches` has read it; its images are written over.
            samples: of the *global* batch, positions in the split, on the CPU.
            labels: of the global batch, on the CPU; -1 where there is none.
            mine: where this process' share lies in ``samples``: ``samples[mine]`` is ``batch.index``.
            read: fetches samples by their positions in the split as ``batch`` was read: on the device, with the
                augmentation of this epoch, in the precision of the run.
            key: seed and view, another one in every epoch.

        Returns:
            a batch of the same length and index; ``batch`` itself where it is not mixed.
        """
        recipe, x, y = self.recipe, batch.images, batch.labels
        u = uniform(*key, samples, "mix", 8)
        drawn = draw(u[0, 1:].tolist(), recipe.mix_prob, recipe.mix_beta, *x.shape[2:])
        if not drawn.mixes:
            return batch
        self._k = self._k or outputs(self.network, x)
        rows = partners(u[:, 0], labels >= 0)[mine]
        pool = batch
        if len(mine) < len(samples):  # some lie with other processes
            pool, rows = read(samples[rows]), torch.arange(len(mine))
        rows = rows.to(x.device)
        pairs = (x, y, pool.images, pool.labels, rows)
        if recipe.mix == "mixup":
            mixed, T = mixup(*pairs, drawn.lam, self._k)
        elif recipe.mix == "cutmix":
            mixed, T = cutmix(*pairs, drawn.target, self._k, inplace=True)
        else:
            maps = self._maps = self._maps or self.looking(x)
            S = maps(x, y)
            S_pool = S if pool is batch else maps(pool.images, pool.labels)
            shown = rows[:ROWS]
            before = x[:ROWS].clone(), S[:ROWS], pool.images[shown], S_pool[shown]
            mixed, T = snapmix(*pairs, drawn.target, drawn.source, S, S_pool, self._k, inplace=True)
            self.shown = Shown(*before, mixed[:ROWS].clone(), T[:ROWS], drawn.target, drawn.source)
        return batch._replace(inputs=mixed, labels=T)

    def picture(self, classes: tuple[str, ...]) -> dict[str, Any] | None:
        """A picture of the last batch that SnapMix mixed, for a report; ``None`` where there is none."""
        return None if self.shown is None else picture(self.shown, self.normalisation, classes)

    def looking(self, x: Tensor) -> PercentMaps:
        """The maps of the network that ``mix_map`` says."""
        shape = tuple(x.shape[1:])
        mean, std = self.normalisation or ((0.0,) * len(x[0]), (1.0,) * len(x[0]))
        own = Model(module=self.network, input_shape=shape, mean=mean, std=std, name=type(self.network).__name__)  # type: ignore[arg-type]
        if self.recipe.mix_map == "self":
            return PercentMaps(own)
        # A copy of its own, in float32 and not traced, so that it has its layers by name and the same maps everywhere.
        teacher = self.teacher
        assert teacher is not None, "problems() refuses it"
        copy = frozen(
            teacher.module,
            x,
            input_grad=True,
            keep_modules=True,
            precision="64-true" if x.dtype == torch.float64 else "32-true",
            renormalise=((mean, std), (teacher.mean, teacher.std)) if self.normalisation else None,
        )
        return PercentMaps(dataclasses.replace(own, module=copy, name=teacher.name))


def outputs(network: nn.Module, x: Tensor) -> int:
    """The number of classes k that a network answers with, asked by one image, without a trace on it."""
    with undisturbed(network), uncompiled(network):
        return int(tensors_of(network(x[:1]))[0].shape[1])


def problems(method: Method, data: Any) -> list[str]:
    """Why a method's networks and data cannot be mixed as its recipe asks, in words; empty if they can.

    Called before any work, where the method admits mixing and the task is classification.
    """
    recipe: Recipe = method.recipe  # type: ignore[attr-defined]
    if not (data.train.labels >= 0).any():
        return [f"mix={recipe.mix} mixes labels, and there are none"]
    if recipe.mix != "snapmix":
        return []
    if recipe.mix_map == "self":
        # A network that is made on the way, as by DeRy, is looked at when it is there.
        looked_at = [method.model(role, data) for role in method.roles if role in method.trains]
    elif getattr(method, "teacher", None) is None:
        return ["mix_map=teacher needs a teacher, and there is none; take mix_map=self"]
    else:
        looked_at = [method.model("teacher", data)]
    found = []
    for model in looked_at:
        try:
            evidence(model)
        except UserError as error:
            found.append(str(error).rstrip("."))
    return found
