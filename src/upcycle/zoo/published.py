"""Where the trained weights of the zoo are: in the package, in a person's folder, or with their authors.

Some of others are fetched from where their authors publish them, and checked tensor by tensor.

Addresses: the table in the README of github.com/akamaster/pytorch_resnet_cifar10, and the releases of
github.com/chenyaofo/pytorch-cifar-models. The digests are of the tensors that the accuracies of the zoo were measured
with. Other weights of the zoo have no home that is known to hold the same tensors.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor, nn

from upcycle.core import fetching, store
from upcycle.core.checkpoint import COUNTER
from upcycle.core.errors import UserError, require
from upcycle.core.weights import load_weights

_AKAMASTER = "https://github.com/akamaster/pytorch_resnet_cifar10/raw/master/pretrained_models/"
_CHENYAOFO = "https://github.com/chenyaofo/pytorch-cifar-models/releases/download/"


@dataclass(frozen=True, kw_only=True)
class Published:
    """A file of weights.

    Args:
        address: where it is published.
        digest: of its tensors, see :func:`digest_of`.
        megabytes: its size.
    """

    address: str
    digest: str
    megabytes: float


SHIPPED = Path(__file__).parent / "weights"
"""Our own that come with the package."""


def place_of(file: str) -> Path | None:
    """Where a weights file of the zoo lies, its name without the suffix; ``None`` where it is not here."""
    folder = os.environ.get("UPCYCLE_DATA")
    kept = fetching.fetched(file)
    places = [SHIPPED, *([Path(folder).expanduser() / "weights"] if folder else []), *([kept] if kept else [])]
    return next((found for place in places if (found := place / f"{file}.safetensors").is_file()), None)


def weights_of(name: str, file: str, origin: str | None, script: str | None, make: Callable[[], nn.Module]) -> Path:
    """The weights file of a network of the zoo, fetched where that is possible.

    Args:
        name: of the network.
        file: the name of its file, without the suffix.
        origin: where the weights were published; ``None`` when they are our own.
        script: the command that makes ours; ``None`` when they come with the package.
        make: the network, fresh.

    Raises:
        UserError: they are not to be had, with what to do.
    """
    if (found := place_of(file)) is not None:
        return found
    if origin is None and script is None:
        raise UserError(f"The weights of zoo:{name} are missing from this installation; install upcycle again.")
    why = _obtain(name, make) if name in PUBLISHED else ""
    if isinstance(why, Path):
        return why
    folder = os.environ.get("UPCYCLE_DATA")
    source = f"make them in a checkout by '{script}'" if script else f"fetch them from {origin}"
    raise UserError(
        f"The weights of zoo:{name} are not there{why}: {source} and name the file as its "
        f"weights, or put it as safetensors at {folder or '$UPCYCLE_DATA'}/weights/{file}.safetensors"
        + ("." if folder else ", where the environment variable UPCYCLE_DATA names a folder.")
    )


def _obtain(name: str, make: Callable[[], nn.Module]) -> Path | str:
    """The weights of a network of the zoo, fetched once.

    Args:
        name: one of :data:`PUBLISHED`.
        make: the network, fresh.

    Returns:
        a safetensors file; or why nothing is fetched, in words to follow "The weights are not there".

    Raises:
        UserError: fetching began and failed, or what came is something else.
    """
    known = PUBLISHED[name]
    folder = fetching.fetched(name)
    if folder is None:
        return ", and UPCYCLE_CACHE keeps nothing that could be fetched"
    if not folder.is_dir() and not fetching.may_fetch(known.address):
        return f", and {fetching.why_not(known.address)}"

    def fill(fresh: Path) -> None:
        file = fresh / known.address.rpartition("/")[2]
        fetching.fetch(known.address, file, most=2e6 * known.megabytes)
        module = make()
        load_weights(module, file)
        state = module.state_dict()
        require(
            digest_of(state) == known.digest,
            f"The file at {known.address} holds other weights than those of zoo:{name}; name a file as its weights.",
        )
        store.save_tensors(fresh / f"{name}.safetensors", state)
        file.unlink()

    return fetching.keep(name, fill) / f"{name}.safetensors"


def digest_of(state: dict[str, Tensor]) -> str:
    """The digest of all tensors but counters, which files of different ages have or lack."""
    return store.tensor_digest({key: tensor for key, tensor in state.items() if not key.endswith(COUNTER)})


PUBLISHED: dict[str, Published] = {
    "cifar10_resnet20": Published(
        address=f"{_AKAMASTER}resnet20-12fca82f.th",
        digest="17ab93de04bd56db6dca3847ec214b9e3ba8ebe1641b6380dc4dbada18d348a4",
        megabytes=1.1,
    ),
    "cifar10_resnet32": Published(
        address=f"{_AKAMASTER}resnet32-d509ac18.th",
        digest="0ce99689dd551e064c58511b4442936ccbcf2f8014f742d8912725ad7cfe714b",
        megabytes=1.9,
    ),
    "cifar10_resnet44": Published(
        address=f"{_AKAMASTER}resnet44-014dd654.th",
        digest="f3fe427278ae7f81e44f3fde2e9c73767a0b242979981b2414a679c05e075296",
        megabytes=2.7,
    ),
    "cifar10_resnet56": Published(
        address=f"{_AKAMASTER}resnet56-4bfd9763.th",
        digest="afa9e31ead285815ba6e3aa3ce42ff641891c2205a6065af17df2fcb3f0fc31d",
        megabytes=3.5,
    ),
    "cifar10_resnet20_chenyaofo": Published(
        address=f"{_CHENYAOFO}resnet/cifar10_resnet20-4118986f.pt",
        digest="e960f5cbbae09522209e2ca214b59e8d44107d20746993b641a204c83c60370e",
        megabytes=1.1,
    ),
    "cifar10_shufflenetv2_x0_5": Published(
        address=f"{_CHENYAOFO}shufflenetv2/cifar10_shufflenetv2_x0_5-1308b4e9.pt",
        digest="b6626c66efa985706ac6f72a1426ce29024d2d89f51d8ac3f8da57abc381f646",
        megabytes=1.6,
    ),
}
"""Networks of the zoo whose weights are fetched; the others of its weights are made, converted or shipped."""
