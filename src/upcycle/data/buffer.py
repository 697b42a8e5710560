"""The memory of continual learning: a bounded store of images that a stream has shown."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import torch
from torch import Tensor

from upcycle.core.errors import UserError, require
from upcycle.data.augment import uniform
from upcycle.data.images import ImageSplit

if TYPE_CHECKING:
    from upcycle.core.run import Run

Policy = Literal["reservoir", "balanced"]


class Drawn(NamedTuple):
    """This process' share of a minibatch from the memory, on the device.

    Attributes:
        images: (m, c, h, w), normalised.
        labels: int64 (m,).
        logits: (m, k), as they were stored; of no columns where none are.
        places: int64 (m,), where in the memory they lie, on the CPU.
        total: how many all processes drew together.
    """

    images: Tensor
    labels: Tensor
    logits: Tensor
    places: Tensor
    total: int


class Buffer:
    """Images of a stream with their labels and, if asked for, logits, in memory that is taken once.

    All processes of a run hold the same: :meth:`add` inserts the batches of all, in one order, and what is random is a
    function of the seed and of how many samples and draws came before, so nothing about it needs saving but these two
    numbers. Its state joins a run's save points: ``run.register("buffer", buffer)``.

    *Reservoir* (Vitter, ACM TOMS 1985): each sample seen is present with probability capacity / seen. *Balanced*
    (class-balancing reservoir sampling, Chrysakis and Moens, ICML 2020): once full, a sample of a class that is not
    the largest takes the place of one of the largest; within a class it is a reservoir.

    Args:
        capacity: the most images that it holds.
        like: a split of the stream: shape and type of images, normalisation, augmentation.
        logits: k, the columns stored with each image; 0 for none.
        policy: see above.
        seed: of what is random.

    Attributes:
        seen: how many samples were offered.
        drawn: how many times :meth:`draw` was called.
    """

    def __init__(
        self, capacity: int, like: ImageSplit, *, logits: int = 0, policy: Policy = "reservoir", seed: int = 0
    ) -> None:
        require(capacity >= 0, f"memory must not be negative, it is {capacity}.")
        require(policy in ("reservoir", "balanced"), f"policy must be reservoir or balanced, not '{policy}'.")
        self.capacity, self.policy, self.seed, self.like = capacity, policy, seed, like
        self.seen = self.drawn = self._held = 0
        self._images = torch.zeros(capacity, *like.images.shape[1:], dtype=like.images.dtype)
        self._labels = torch.full((capacity,), -1)
        self._ids = torch.zeros(capacity, dtype=torch.int64)
        self._logits = torch.zeros(capacity, logits)
        self._offered: dict[int, int] = {}  # per class, for the balanced policy

    def __len__(self) -> int:
        return self._held

    @property
    def images(self) -> Tensor:
        """What it holds, (n, h, w, c) uint8, or as the stream has them."""
        return self._images[: len(self)]

    @property
    def labels(self) -> Tensor:
        """int64 (n,)."""
        return self._labels[: len(self)]

    @property
    def logits(self) -> Tensor:
        """(n, k), as they were when each image came."""
        return self._logits[: len(self)]

    @property
    def nbytes(self) -> int:
        """The memory that it takes, however full it is."""
        return sum(t.nbytes for t in (self._images, self._labels, self._ids, self._logits))

    # -- in -----------------------------------------------------------------------------------------------------

    def add(self, run: Run, split: ImageSplit, index: Tensor, logits: Tensor | None = None) -> None:
        """Offer samples of ``split``, as they are without augmentation; those of all processes, in one order.

        Args:
            index: int64 (b,), this process' positions in ``split``.
            logits: (b, k), stored beside them.
        """
        index = run.gather(index.to(run.device)).cpu()
        answers = None
        if self._logits.shape[1]:
            assert logits is not None, "this buffer stores logits"
            answers = run.gather(logits.detach()).cpu()
            if answers.dtype == torch.float64 and self._logits.dtype != torch.float64:
                self._logits = self._logits.double()  # a float64 run stores what it computes
        self.put(split.images.index_select(0, index), split.labels[index], split.ids[index], answers)

    @torch.no_grad()
    def put(self, images: Tensor, labels: Tensor, ids: Tensor, logits: Tensor | None = None) -> None:
        """Offer images (b, h, w, c) of the stream's type with their labels (b,), numbers (b,) and logits (b, k)."""
        if not self.capacity:
            return
        places = self._reservoir(len(labels)) if self.policy == "reservoir" else self._balanced(labels)
        # Several may have drawn one place: the last one has it.
        last = torch.full((self.capacity + 1,), -1)
        last.scatter_reduce_(0, places, torch.arange(len(labels)), "amax")
        to = (last[:-1] >= 0).nonzero()[:, 0]
        taken = last[to]
        self._images[to], self._labels[to], self._ids[to] = images[taken], labels[taken], ids[taken]
        if self._logits.shape[1]:
            assert logits is not None
            self._logits[to] = logits[taken].to(self._logits.dtype)

    def _reservoir(self, b: int) -> Tensor:
        """The place of each new sample; ``capacity`` for none."""
        number = self.seen + torch.arange(b)
        u = uniform(self.seed, 0, number, "reservoir")[:, 0]
        places = torch.where(number < self.capacity, number, (u * (number + 1)).long()).clamp_max(self.capacity)
        self.seen += b
        self._held = min(self.seen, self.capacity)
        return places

    def _balanced(self, labels: Tensor) -> Tensor:
        places = []
        held = self._labels[: self._held].clone() if self._held else self._labels[:0]
        for y, u in zip(labels.tolist(), uniform(self.seed, 0, self.seen + torch.arange(len(labels)), "balanced", 2),
                        strict=True):  # fmt: skip
            self._offered[y] = self._offered.get(y, 0) + 1
            self.seen += 1
            if self._held < self.capacity:
                place = self._held
                self._held += 1
                held = torch.cat([held, torch.tensor([y])])
            else:
                counts = held.bincount(minlength=y + 1)
                largest = counts == counts.max()
                own = bool(largest[y])
                candidates = (held == y if own else largest[held]).nonzero()[:, 0]
                stays = own and float(u[0]) * self._offered[y] >= int(counts[y])
                place = self.capacity if stays else int(candidates[int(float(u[1]) * len(candidates))])
                if not stays:
                    held[place] = y
            places.append(place)
        return torch.tensor(places, dtype=torch.int64)

    # -- out ----------------------------------------------------------------------------------------------------

    def draw(self, run: Run, n: int) -> Drawn:
        """``n`` different samples drawn evenly over all processes, or all there are; each process gets its share.

        They are augmented anew, as the stream's training images are.
        """
        u = uniform(self.seed, self.drawn, torch.arange(len(self)), "draw")[:, 0]
        chosen = u.argsort(stable=True)[:n]
        view = (self.seed, self.drawn)
        self.drawn += 1
        mine = chosen.tensor_split(run.world_size)[run.rank]
        images, labels, _ = self.split().batch(mine, device=run.device, view=view)
        if run.precision == "64-true":
            images = images.double()
        return Drawn(images, labels, self._logits[mine].to(run.device), mine, len(chosen))

    def split(self) -> ImageSplit:
        """What it holds as an ordinary split; shares the pixels."""
        return ImageSplit(images=self.images, labels=self.labels, ids=self._ids[: len(self)], mean=self.like.mean,
                          std=self.like.std, augment=self.like.augment)  # fmt: skip

    # -- saved --------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Only what it holds."""
        return {"images": self.images, "labels": self.labels, "ids": self._ids[: len(self)], "logits": self.logits,
                "seen": self.seen, "drawn": self.drawn, "capacity": self.capacity,
                "offered": [[k, n] for k, n in self._offered.items()]}  # fmt: skip

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse; logits of fewer classes are followed by zeros, which is what new outputs begin with.

        Raises:
            UserError: it was made for another capacity or other images.
        """
        n = len(state["labels"])
        require(
            state["capacity"] == self.capacity,
            f"The memory was made for {state['capacity']} images, and a reservoir keeps its size: say --replay.images "
            f"{state['capacity']}, not {self.capacity}.",
        )
        if state["images"].shape[1:] != self._images.shape[1:] or state["images"].dtype != self._images.dtype:
            ours, theirs = tuple(self._images.shape[1:]), tuple(state["images"].shape[1:])
            raise UserError(f"The memory holds images of {theirs} (height, width, channels), and the stream brings "
                            f"{ours}; --size brings them to one size.")  # fmt: skip
        whole = n <= self.capacity and all(len(state[name]) == n for name in ("images", "ids"))
        require(
            whole and state["seen"] >= n and state["drawn"] >= 0 and bool((state["labels"] >= -1).all()),
            "The memory is damaged: it does not hold what it says.",
        )
        self._held, self.seen, self.drawn = n, state["seen"], state["drawn"]
        self._offered = {int(k): int(c) for k, c in state["offered"]}
        self._images[:n], self._labels[:n], self._ids[:n] = state["images"], state["labels"], state["ids"]
        if self._logits.shape[1]:
            self._logits = self._logits.to(state["logits"].dtype)
            self._logits[:n] = 0
            self._logits[:n, : state["logits"].shape[1]] = state["logits"]
