"""Mixtures of two images: mixup, CutMix and SnapMix."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from upcycle.core.batches import Batch

if TYPE_CHECKING:
    from upcycle.core.method import Method
    from upcycle.core.models import Model
    from upcycle.core.recipe import Recipe


class Mixer:
    """What mixes the batches of a stage, made once for it; kept by :class:`~upcycle.core.run.Run` while it lasts.

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
        normalisation: tuple[tuple[float, ...], tuple[float, ...]] | None,
    ) -> None:
        self.recipe, self.network, self.teacher, self.normalisation = recipe, network, teacher, normalisation

    def __call__(
        self,
        batch: Batch,
        samples: Tensor,
        labels: Tensor,
        mine: Tensor,
        read: Callable[[Tensor], Batch],
        key: tuple[int, int],
    ) -> Batch:
        """Mix a process' share of a batch; its labels become targets, float (b, k).

        Called once a batch, before it is met. Must draw from nothing but ``key``.

        Args:
            batch: this process' share, as :attr:`Run.batches` has read it.
            samples: of the *global* batch, positions in the split, int64 (n,), on the CPU.
            labels: of the global batch, int64 (n,), on the CPU; -1 where there is none.
            mine: where this process' share lies in ``samples``, int64 (b,): ``samples[mine]`` is ``batch.index``.
            read: fetches samples by their positions in the split as ``batch`` was read: on the device, with the
                augmentation of this epoch, in the precision of the run.
            key: seed and view, for ``uniform(*key, samples[:1], "mix")``; another one in every epoch.

        Returns:
            a batch of the same length and index, which may be ``batch`` itself where it is not mixed.
        """
        raise NotImplementedError("mixtures are not there yet")


def problems(method: Method, data: Any) -> list[str]:
    """Why a method's networks and data cannot be mixed as its recipe asks, in words; empty if they can.

    Called before any work, where the method admits mixing and the task is classification.
    """
    return []
