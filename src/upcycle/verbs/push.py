"""``upcycle push``: a saved model to a repository of the Hugging Face hub."""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from upcycle.core import saved, store
from upcycle.core.errors import UserError, one_line, require
from upcycle.core.lineage import Node, read
from upcycle.core.read import bytes_of
from upcycle.measure.units import bytes_
from upcycle.reports.card import PLACE
from upcycle.verbs.options import Say, tell

NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
EXTRA = "Pushing to the hub needs an extra: pip install 'upcycle[hub]'."


@dataclass(frozen=True, kw_only=True)
class Pushed:
    """What :func:`push` sent: the address of the repository, and the bytes of each file."""

    address: str
    files: dict[str, int]

    def record(self) -> dict[str, Any]:
        """Give what was sent, as JSON data."""
        return asdict(self)


def push(run: Path | str, repository: str, *, private: bool = False, dry_run: bool = False, say: Say = tell) -> Pushed:
    """Send a saved model to a repository of the Hugging Face hub, as one commit, with its card.

    The login is that of the hub's own tools (``hf auth login``, or ``HF_TOKEN``). What is sent is checked against the
    manifest first; the card's lines on how to load the model name the repository.

    Args:
        run: the path of a run, or of a saved model.
        repository: ORG/NAME; it is made if it is not there.
        private: only those who may see the repository see it; counts where it is made.
        dry_run: say what would be sent, and stop.
        say: where progress lines go.

    Raises:
        UserError: no saved model there, a damaged file, a licence under which it may not be shared, or a hub that
            refuses.
    """
    require(bool(NAME.fullmatch(repository)), f"A repository of the hub is written ORG/NAME, not '{repository}'.")
    directory = saved.directory_of(run)
    files = store.verify_manifest(directory, lambda file: file != saved.CARD)
    for name in (saved.CARD, store.MANIFEST):  # the card may have been edited
        if (directory / name).is_file():
            files[name] = bytes_of(directory / name)
    tree = read(directory / saved.LINEAGE, files[saved.LINEAGE]) if saved.LINEAGE in files else None
    _require_licence(directory, tree, say)
    if saved.CARD in files:
        files[saved.CARD] = _naming(files[saved.CARD].decode("utf-8", "replace"), repository).encode()
    size = sum(map(len, files.values()))
    say(f"{repository}: {', '.join(sorted(files))}, {bytes_(size)} in all")
    found = Pushed(
        address=f"https://huggingface.co/{repository}", files={name: len(content) for name, content in files.items()}
    )
    if dry_run:
        say("Nothing was sent (--dry_run).")
        return found
    _send(repository, files, private)
    say(f"Sent to {found.address}")
    return found


def _require_licence(directory: Path, tree: Node | None, say: Say) -> None:
    """Refuse a model that nobody may share, and say where nothing is known."""
    licence = tree["licence"] if tree is not None else {"id": "unknown", "why": "Nothing is known of where it is from."}
    if licence["id"] == "incompatible":
        raise UserError(f"{directory} may not be shared: {licence['why']}")
    if licence["id"] == "unknown":
        say(f"note     Its licence is unknown, so others may not use it. {licence['why']}")


def _naming(card: str, repository: str) -> str:
    """The card whose lines load the model from the repository; as it is where somebody wrote other lines."""
    fetched = f'upcycle.load(snapshot_download("{repository}")'
    imported = "import upcycle\nfrom huggingface_hub import snapshot_download\n"
    return card.replace("import upcycle\n", imported, 1).replace(PLACE, fetched, 1) if PLACE in card else card


def _send(repository: str, files: dict[str, bytes], private: bool) -> None:
    """Make the repository if need be, and commit the files."""
    try:
        import huggingface_hub
    except ImportError:
        raise UserError(EXTRA) from None
    hub = huggingface_hub.HfApi()
    operations = [
        huggingface_hub.CommitOperationAdd(path_in_repo=name, path_or_fileobj=content)
        for name, content in sorted(files.items())
    ]
    try:
        hub.create_repo(repository, private=private, exist_ok=True)
        hub.create_commit(repository, operations, commit_message="Model, weights and card, by upcycle")
    except Exception as error:  # a dozen kinds, from no network to no right to write there
        raise UserError(
            f"The hub did not take {repository}: {one_line(error)}. Is somebody logged in (hf auth login) who may "
            "write there?"
        ) from error
