"""``upcycle treat``: a network whose errors a method mends, beside the same training without the treatment."""

from __future__ import annotations

import statistics
from dataclasses import dataclass
from typing import Any

from upcycle.core import models
from upcycle.core.fetching import dry
from upcycle.core.frequency import counts_of, groups, rare
from upcycle.core.method import Method, built_in
from upcycle.core.models import Model
from upcycle.core.task import Evaluation
from upcycle.data import Images, describe
from upcycle.data.pool_files import parent_node
from upcycle.verbs import DEFAULT_METHOD, options
from upcycle.verbs.arms import Result
from upcycle.verbs.figures import chance, row, share
from upcycle.verbs.frequency import by_group, recall_by_count
from upcycle.verbs.naming import Reference, naming_of
from upcycle.verbs.networks import in_classes_of, network_and_images
from upcycle.verbs.options import Say, tell
from upcycle.verbs.session import Session


@dataclass(kw_only=True)
class Setting(options.NamedSetting):
    """Data, devices, and where it goes.

    Args:
        control: also run the same training without the treatment, so that one sees which of the two helped.
        borders: two numbers of training images, LOW,HIGH: classes with fewer are few, with more many. If not given,
            they divide the way from the rarest to the most frequent class, where some are rare.
    """

    control: bool = True
    borders: tuple[int, ...] | None = None


@dry
def treat(
    model: Reference,
    *,
    method: str | type[Method] = DEFAULT_METHOD["treat"],
    data: Any = None,
    say: Say = tell,
    **options: Any,
) -> Result:
    """The same architecture with weights that err less, and, beside it, plain continued training.

    Args:
        model: reference, module or :class:`~upcycle.core.models.Model` of a trained classifier.
        method: a name of ``upcycle methods``, ``package.module:Class``, or a class.
        data: see :func:`upcycle.data.load`; labelled images to train on. ``None`` is digits.
        say: where progress lines go.
        options: fields of :class:`Setting` and of the method.

    Raises:
        UserError: before any work where the request cannot work.
    """
    data = "digits" if data is None else data
    session = Session("treat", method, {"model": model}, data, say, options, kind=Setting, positional=("model",))
    session.check()
    naming = naming_of(session.setting)
    source, images = network_and_images(model, data, naming)
    images = in_classes_of(source, images, naming)
    seen = session.augmented(images).normalised(source.mean, source.std)
    counts = counts_of(images.train.labels, len(source.classes))
    by = groups(counts, session.setting.borders, name=images.name)
    notes = _nothing_rare(session, images.name, counts) + _repaired(session, source)
    for note in notes:
        session.say(f"note     {note}")
    session.say(f"data     {describe(images)}")
    session.show("source", source, images)
    product, beside = session.arms(lambda seed: (session.method(source=models.own_copy(source)), seen))
    if session.setting.dry_run:
        return session.estimate([product, *beside], source)
    made, others = session.run(product, beside, lambda model, data: session.measured(model, images))
    before = session.measured(source, images)
    rows = [by_group(row(source.name, "source", before, source), before, by)]
    rows += [by_group(other.row(f"{source.name}, {other.arm.words}"), other.measured, by) for other in others]
    rows += [by_group(made.row(f"{source.name}, treated"), made.measured, by)]
    if by is not None:
        words = by.words()
        notes.append(f"Columns by training images of a class: {', '.join(words[name] for name in words)}.")
    after, pictures = made.measured[:1], {}
    if by is not None and before and isinstance(after[0], Evaluation):
        arms = {"before": before[0].per_class, "after": after[0].per_class}
        pictures["recall-by-count"] = recall_by_count(source.classes, counts, arms)
    return session.leave(
        made,
        rows,
        _sentence(rows, made.model.name, seen, trains=bool(session.method(source=source).controls())),
        parents=[parent_node(source, "source")],
        data=seen,
        notes=notes,
        pictures=pictures,
        more=by.plain() if by is not None else {},
    )


def _nothing_rare(session: Session, name: str, counts: list[int]) -> list[str]:
    """A note where the method is for rare classes and none is rare."""
    if not session.cls.card.rare or not any(counts) or rare(counts):
        return []
    return [
        f"Nothing is rare in {name}, whose classes have from {min(counts):,} to {max(counts):,} training images; "
        f"{session.cls.card.name} is for classes with far fewer than others."
    ]


def _repaired(session: Session, source: Model) -> list[str]:
    """A note where a repair for rare classes is given what another one made."""
    made_by = source.lineage["method"] if source.lineage is not None else ""
    if not session.cls.card.rare or made_by not in {m.card.name for m in built_in() if m.card.rare}:
        return []
    return [
        f"{source.name} was made by {made_by}, and {session.cls.card.name} is for networks trained on classes as they "
        "come: a second repair may go too far. Treat the network before it instead."
    ]


def _sentence(rows: list[dict[str, Any]], name: str, data: Images, *, trains: bool) -> str:
    """Accuracies of source, control and product, and whether the test images can tell the last two apart.

    Args:
        trains: the method trains, so that its control would; where it does not, the source is what it is compared with.
    """
    accuracy = {line["role"]: line["accuracy"] for line in rows if line["accuracy"]}
    if "product" not in accuracy:
        return f"{name} was treated; there were no test images to measure it on."
    text = f"The treated network reaches {share(accuracy['product'])} on the test images of {data.name}, and reached "
    text += f"{share(accuracy['source'])} before"
    if trains and "control" not in accuracy:
        return text + ". How much of the difference is the training's own was not measured (--control false)."
    treated, plain = (statistics.fmean(accuracy[role]) for role in ("product", "control" if trains else "source"))
    difference = chance(treated, plain, len(data.test))
    if not trains:
        return f"{text}: {difference}"
    return (
        f"{text}, and {share(accuracy['control'])} after the same training without the treatment. The treatment's own "
        f"part is {difference}"
    )
