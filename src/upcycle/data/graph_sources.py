"""Where graphs come from: names, and folders of a person's own."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import torch

from upcycle.core.errors import UserError, require
from upcycle.data import factor_graphs, graph_shares
from upcycle.data.decode import readable
from upcycle.data.fair_tables import TABLES, read_persons
from upcycle.data.graph_checks import Parts, of_parts
from upcycle.data.graph_files import Found, read_graphs, read_text
from upcycle.data.graphs import GraphSet
from upcycle.data.planetoid import read_citations

PREFIX = "graphs:"
TEST, VALIDATION = 0.3, 0.1
"""Shares of a named set of graphs: tested on, and of the others validated on."""
PER_CLASS = (40, 20)
"""Papers for each class that are trained on and validated on where the split is not the public one, as TWP has it."""
TEST_PERSONS, VALIDATION_PERSONS = 0.5, 0.3
"""Shares of the persons of a table: tested on, and validated on."""


@dataclass(frozen=True, kw_only=True)
class Named:
    """Graphs that have a name.

    Args:
        folder: where they lie, under ``$UPCYCLE_DATA/graphs`` or ``data/graphs``.
        file: the first file that is read.
        origin: the public repository of the files.
        classes: class names; those in the file where not given.
        licence: as that repository states it.
    """

    folder: str
    file: str
    origin: str
    classes: tuple[str, ...] = ()
    licence: str = "MIT"


_PAPERS = {
    "cora": (
        "Theory",
        "Reinforcement Learning",
        "Genetic Algorithms",
        "Neural Networks",
        "Probabilistic Methods",
        "Case Based",
        "Rule Learning",
    ),
    "citeseer": ("AI", "ML", "IR", "DB", "Agents", "HCI"),
}
_TEXTS = {"mutag": "MUTAG", "ptc": "PTC", "proteins": "PROTEINS", "nci1": "NCI1", "imdb_binary": "IMDBBINARY"}

NAMED = {
    **{
        name: Named(folder="planetoid", file=f"ind.{name}.x", origin="kimiyoung/planetoid", classes=classes)
        for name, classes in _PAPERS.items()
    },
    **{
        name: Named(folder="tud", file=f"{stem}.txt.gz", origin="muhanzhang/pytorch_DGCNN")
        for name, stem in _TEXTS.items()
    },
    **{
        name: Named(folder="fair", file=f"{name}.csv.gz", origin="chirag-agarwall/nifty", classes=table.classes)
        for name, table in TABLES.items()
    },
}


def is_graphs(reference: object) -> bool:
    """Whether a reference names graphs: a name, ``factors:F`` or ``graphs:PATH``."""
    return isinstance(reference, str) and (reference in NAMED or reference.startswith((PREFIX, factor_graphs.PREFIX)))


def check_graphs(reference: str) -> None:
    """Raise :class:`UserError` at once for graphs that cannot be loaded (cheap: no data are read).

    Args:
        reference: see :func:`load_graphs`.
    """
    if reference.startswith(factor_graphs.PREFIX):
        factor_graphs.asked(reference)
        return
    if reference in NAMED:
        _folder(reference)
        return
    path = reference.removeprefix(PREFIX)
    require(bool(path), "graphs: names no folder; write graphs:PATH.")
    require(
        Path(path).expanduser().exists(),
        f"There is no folder {path}; graphs:PATH names a folder of graphs or one text file.",
    )


def load_graphs(reference: str, *, split: int = 0) -> GraphSet:
    """Load graphs into memory, with train, validation and test splits.

    ``cora`` and ``citeseer`` have the public split, and others that are drawn. Of the sets of graphs 30 % are tested on
    and a tenth of the others is validated on, of the tables half and 30 %; both are drawn once for all, each class in
    its proportion. Of other
    graphs, what each holds decides (:mod:`upcycle.data.shares`). ``notes`` says so.

    Args:
        reference: ``cora``, ``citeseer``, ``mutag``, ``ptc``, ``proteins``, ``nci1``, ``imdb_binary``, ``credit``,
            ``bail``, ``german``; ``factors:F`` (:mod:`upcycle.data.factor_graphs`); or ``graphs:PATH``, a folder in TU
            layout or with one text file in the form that GIN and DGCNN use, or such a file.
        split: the number of the drawn split of a named set, of which claims take several; of papers 0 is the public
            one.

    Raises:
        UserError: for what is not there, broken or contradicts itself, naming it.
    """
    check_graphs(reference)
    if reference.startswith(factor_graphs.PREFIX):
        return factor_graphs.load_factors(reference, split)
    if reference in _PAPERS:
        return _papers(reference, split)
    if reference in _TEXTS:
        return _set(reference, read_text(_text(reference), reference), split)
    if reference in TABLES:
        return _persons(reference, split)
    path = Path(reference.removeprefix(PREFIX)).expanduser()
    own = readable(path.resolve().name.partition(".")[0])
    name = f"{own}_local" if own in NAMED else own
    found = read_graphs(path, name)
    graphs = of_parts(name, found.parts)
    _require_classes(name, found.classes)
    return GraphSet.of_graphs(name, graphs, found.labels, found.classes, None, notes=found.notes)


def _papers(name: str, split: int) -> GraphSet:
    known, found = NAMED[name], read_citations(_folder(name), name)
    orders, said = found.split, f"The splits of {name} are the public ones of Planetoid."
    if split:
        labelled = (found.labels >= 0).nonzero().flatten()
        n, k = len(labelled), len(known.classes)
        drawn = graph_shares.fixed(found.labels[labelled], split, n - sum(PER_CLASS) * k, PER_CLASS[1] * k)
        orders = {part: labelled[order] for part, order in drawn.items()}
        said = _fixed_note(name, n, "nodes", split, len(orders["validation"]), len(orders["test"]))
    total = found.x.sum(1, keepdim=True)
    parts = Parts(
        x=found.x / total.where(total > 0, torch.ones(())),
        edge_index=found.edge_index,
        sizes=torch.tensor([len(found.x)]),
        edges=torch.tensor([found.edge_index.shape[1]]),
    )
    notes = [
        said,
        f"The features of each node of {name} are divided by their sum.",
    ]
    return GraphSet.of_nodes(
        name, of_parts(name, parts), found.labels, known.classes, orders, licence=known.licence, notes=notes
    )


def _set(name: str, found: Found, split: int) -> GraphSet:
    n = len(found.labels)
    test = n - int(n * (1 - TEST))
    orders = graph_shares.fixed(found.labels, split, test, int((n - test) * VALIDATION))
    notes = [*found.notes, _fixed_note(name, n, "graphs", split, len(orders["validation"]), len(orders["test"]))]
    _require_classes(name, found.classes)
    graphs = of_parts(name, found.parts)
    return GraphSet.of_graphs(
        name, graphs, found.labels, found.classes, orders, licence=NAMED[name].licence, notes=notes
    )


def _persons(name: str, split: int) -> GraphSet:
    known, found = NAMED[name], read_persons(_folder(name), name)
    n, table = len(found.labels), TABLES[name]
    orders = graph_shares.fixed(found.labels, split, int(n * TEST_PERSONS), int(n * VALIDATION_PERSONS))
    notes = [
        _fixed_note(name, n, "nodes", split, len(orders["validation"]), len(orders["test"])),
        f"The features of {name} are standardised over all nodes.",
        f"The sensitive column {table.sensitive} of {name} is one of its features.",
    ]
    if table.share:
        notes.append(
            f"The edges of {name} join persons whose similarity is above {table.share} of the largest of either."
        )
    return GraphSet.of_nodes(
        name,
        of_parts(name, found.parts),
        found.labels,
        known.classes,
        orders,
        licence=known.licence,
        notes=notes,
        columns=found.columns,
    )


def _text(name: str) -> Path:
    """The file of a set of graphs, gzipped or not."""
    file = _folder(name) / NAMED[name].file
    return file if file.is_file() else file.with_suffix("")


def _fixed_note(name: str, n: int, noun: str, split: int, validation: int, test: int) -> str:
    which = f" (number {split})" if split else ""
    return (
        f"The splits of {name} are ours{which}: {test:,} of its {n:,} {noun} are tested on and {validation:,} "
        "validated on, stratified, with a fixed seed."
    )


def _require_classes(name: str, classes: tuple[str, ...]) -> None:
    require(len(classes) >= 2, f"{name} has {len(classes)} class; a classifier needs at least 2.")


def _folder(name: str) -> Path:
    """The folder of graphs that have a name."""
    known, plain = NAMED[name], NAMED[name].file.removesuffix(".gz")
    for root in (os.environ.get("UPCYCLE_DATA"), "data"):
        if root and any((found := Path(root).expanduser() / "graphs" / known.folder).glob(f"{plain}*")):
            return found
    root = os.environ.get("UPCYCLE_DATA")
    raise UserError(
        f"The data set {name} is not here. Fetch {_fetched(name)} of {known.origin} and put them into "
        f"{root or '$UPCYCLE_DATA'}/graphs/{known.folder}"
        + ("." if root else "; the environment variable UPCYCLE_DATA is not set.")
    )


def _fetched(name: str) -> str:
    if name in _PAPERS:
        return f"the files ind.{name}.*"
    if name == "german":
        return "german.csv and german_edges.txt (both may be gzipped)"
    return f"{NAMED[name].file} (or unpacked)"
