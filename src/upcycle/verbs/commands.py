"""The smaller commands, as functions whose signatures are their options. Each prints and returns an exit code."""

from __future__ import annotations

import csv
import io
import json as json_module
import sys
from pathlib import Path
from typing import Any, Literal

from upcycle.core import lock, references, store
from upcycle.core.devices import device_of
from upcycle.core.errors import UserError, require, unknown
from upcycle.core.evaluate import evaluate as measure
from upcycle.core.evaluate import predict_logits
from upcycle.core.outputs import Columns
from upcycle.measure.cost import count, latency, peak_memory
from upcycle.measure.export import export as write_export
from upcycle.measure.units import bytes_, duration, si
from upcycle.verbs.methods import add_plugin, all_methods


def methods(plugin: Path | None = None, markdown: bool = False) -> int:
    """What there is, and what each method needs.

    Args:
        plugin: a Python file with methods of one's own, listed too.
        markdown: as the table of the documentation.
    """
    from upcycle.verbs.methods import methods_table, methods_table_markdown

    if plugin is not None:
        add_plugin(plugin)
    cards = [m.card for m in all_methods()]
    print(methods_table_markdown(cards) if markdown else methods_table(cards))
    return 0


def advise(
    data: Literal["none", "few", "unlabelled", "labelled"] | None = None,
    teacher: Literal["none", "predictions", "features", "weights"] = "weights",
    architecture: Literal["any", "same", "conv", "transformer"] = "any",
    goal: Literal["smaller", "better", "part", "join", "mend", "explain", "task", "domain", "extend"] = "smaller",
    source: Literal["none", "labelled"] = "none",
    present: Literal["all", "some"] = "all",
    task_id: Literal["unknown", "known"] = "unknown",
    store: Literal["images", "nothing"] = "images",
    growth: Literal["allowed", "none"] = "allowed",
    boundaries: Literal["unknown", "known"] = "known",
) -> int:
    """Which method fits, why, and the command to run; and which cannot work.

    Args:
        data: what you have: no data, a few images, many without labels, many with labels. On a terminal, without
            this option, it and the others are asked for.
        teacher: what you can get of the teacher.
        architecture: of the student: any, the same as the teacher's, convolutional, or a transformer.
        goal: a smaller network, a better one of the same size, a part for some of its classes, to join several, to
            mend one that errs, to explain what a teacher's answers change, a network for another task, one for
            another domain (the same classes on images that look otherwise), or to extend one by task after task.
        source: for another domain, whether you have labelled images of the old one.
        present: for another domain, whether all classes occur in it, or only some, which ones being unknown.
        task_id: to extend, whether the task of an image is known when it is classified.
        store: to extend, whether some images of earlier tasks may be kept.
        growth: to extend, whether what is kept beside the network may grow with every task.
        boundaries: to extend, whether it is known in training where a task ends.
    """
    from upcycle.verbs.advise import advise as ask

    have: dict[str, Any] = {"data": data, "teacher": teacher, "architecture": architecture, "goal": goal,
                            "source": source, "present": present, "task_id": task_id, "store": store,
                            "growth": growth, "boundaries": boundaries}  # fmt: skip
    if data is None:
        require(sys.stdin.isatty(), "Say what you have: --data none, few, unlabelled or labelled.")
        have = _asked()
    print(ask(**have, methods=all_methods()).text())
    return 0


_QUESTIONS = {
    "data": ("Which images do you have?", ("none", "few", "unlabelled", "labelled")),
    "teacher": ("What can you get of the teacher?", ("none", "predictions", "features", "weights")),
    "architecture": ("What shall the student be?", ("any", "same", "conv", "transformer")),
    "goal": ("What is it for?", ("smaller", "better", "part", "join", "mend", "explain", "task", "domain", "extend")),
    "source": ("Which images of the old domain do you have?", ("none", "labelled")),
    "present": ("Which of the classes occur in the new domain?", ("all", "some")),
    "task_id": ("Is the task of an image known when it is classified?", ("unknown", "known")),
    "store": ("What may be kept of earlier tasks?", ("images", "nothing")),
    "growth": ("May what is kept grow with every task?", ("allowed", "none")),
    "boundaries": ("Is it known in training where a task ends?", ("known", "unknown")),
}
_DEFAULTS = {"architecture": "any", "goal": "smaller", "source": "none", "present": "all", "task_id": "unknown",
             "store": "images", "growth": "allowed", "boundaries": "known"}  # fmt: skip
_ONLY = {
    "source": "domain",
    "present": "domain",
    **dict.fromkeys(("task_id", "store", "growth", "boundaries"), "extend"),
}
"""The goal that a question belongs to."""


def _asked() -> dict[str, Any]:
    """The answers of the person at the terminal; an empty one takes the default."""
    answers: dict[str, Any] = {}
    for name, (question, choices) in _QUESTIONS.items():
        if name in _ONLY and answers["goal"] != _ONLY[name]:
            continue
        default = _DEFAULTS.get(name, choices[-1])
        answer = input(f"{question} ({', '.join(choices)}) [{default}] ").strip().lower() or default
        if answer not in choices:
            raise unknown(f"answer to '{question}'", answer, choices)
        answers[name] = answer
    return answers


def prove(method: str, seeds: int = 3, quick: bool = False, out: Path | None = None) -> int:
    """Run a method's claim here and print both figures; exits with 1 when it does not hold.

    Args:
        method: its name.
        seeds: how many seeds.
        quick: a miniature that shows the machinery, not the claim.
        out: a JSON file for the figures; if not given, runs/prove-METHOD.json, and none for a miniature.
    """
    from upcycle.verbs.prove import prove as run

    if out is None and not quick:
        out = Path("runs") / f"prove-{method}.json"
    proof = run(method, seeds=seeds, quick=quick, out=out)
    print("\n" + proof.text())
    if out is not None:
        print(f"Figures: {out}")
    return 0 if proof.holds else 1


def evaluate(
    model: str,
    data: str = "digits",
    split: Literal["train", "validation", "test"] = "test",
    weights: Path | None = None,
    json: bool = False,
    trust: tuple[str, ...] = (),
) -> int:
    """Measure a model on a data set: accuracy by class, calibration, size, speed.

    Args:
        model: a reference, or the path of a saved model or run.
        data: a data set, as for distill.
        split: which part of it.
        weights: a safetensors file for the model.
        json: print JSON.
        trust: packages whose code a saved model's callable reference may run.
    """
    from upcycle.data import check_reference, load
    from upcycle.data.labels import match_classes

    references.check_reference(model)
    check_reference(data)
    net = references.resolve(model, weights=weights, trust=trust)
    images = load(data, **({"size": net.input_shape[1], "channels": net.input_shape[0]} if Path(data).is_dir() else {}))
    require(images.shape[0] == net.input_shape[0], f"{net.name} takes {net.input_shape[0]} input channels, and the "
            f"images of {images.name} have {images.shape[0]}.")  # fmt: skip
    columns, _ = match_classes(net.classes, images.classes)
    part = getattr(images.normalised(net.mean, net.std), split)
    result = measure(Columns(net.module, columns), part, device=device_of("auto"))
    cost = count(net.module, net.input_shape)
    if json:
        print(json_module.dumps({"model": net.name, "data": images.name, "split": split, "accuracy": result.accuracy,
                                 "loss": result.loss, "ece": result.ece, "per_class": result.per_class,
                                 "count": result.count, "parameters": cost.parameters, "macs": cost.macs}))  # fmt: skip
        return 0
    print(f"{net.name} on {result.count:,} {split} images of {images.name}\n\n"
          f"  accuracy           {result.accuracy:.2%}\n  loss               {result.loss:.4f}\n"
          f"  calibration error  {result.ece:.2%}\n  parameters         {si(cost.parameters)}\n"
          f"  multiply-adds      {si(cost.macs)}\n"
          f"  latency            {duration(latency(net.module, net.input_shape))}\n"
          f"  memory             {bytes_(peak_memory(net.module, net.input_shape))}\n\n  by class")  # fmt: skip
    width = max(map(len, images.classes))
    for name, share in zip(images.classes, result.per_class, strict=True):
        print(f"    {name.ljust(width)}  {share:.1%}")
    return 0


def predict(model: str, images: Path, out: Path = Path("predictions.csv"), trust: tuple[str, ...] = ()) -> int:
    """Apply a saved model to a folder of images, with its own preprocessing and class names, to CSV.

    Args:
        model: a reference, or the path of a saved model or run.
        images: a folder; sub-folders are searched too.
        out: the CSV: path, predicted class, its probability, and the probability of every class.
        trust: packages whose code a saved model's callable reference may run.
    """
    from upcycle.data.files import read_folder

    references.check_reference(model)
    require(images.is_dir(), f"There is no folder {images}.")
    if out.exists():
        raise UserError(f"{out} exists; choose another --out.")
    net = references.resolve(model, trust=trust)
    split, paths = read_folder(images, net)
    p = predict_logits(net.module, split, device=device_of("auto")).softmax(1)
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["path", "class", "probability", *net.classes])
    for path, row in zip(paths, p.tolist(), strict=True):
        best = max(range(len(row)), key=row.__getitem__)
        writer.writerow([path, net.classes[best], f"{row[best]:.6f}", *(f"{v:.6f}" for v in row)])
    store.write_atomic(out, text.getvalue().encode())
    print(f"{len(paths):,} images to {out}")
    return 0


def diagnose(
    model: str,
    data: str = "digits",
    out: Path | None = None,
    images: int = 12,
    methods: tuple[str, ...] = ("gradcam", "saliency", "integrated_gradients"),
    layer: str | None = None,
    samples: int = 50,
    theta: float = 0.2,
    weights: Path | None = None,
    trust: tuple[str, ...] = (),
    accelerator: Literal["auto", "cpu", "cuda", "mps"] = "auto",
) -> int:
    """Where a classifier errs, what it looks at, and which channels speak for which class, as a report.

    Args:
        model: a reference, or the path of a saved model or run.
        data: digits, mnist, fashion_mnist, fashion_mnist_local, usps, cifar10, a folder of images, a Parquet folder,
            or hub:ORG/NAME; labelled.
        out: the directory; if not given, runs/diagnose-MODEL.
        images: how many right answers, and how many wrong ones, are shown with heat maps.
        methods: of the heat maps: gradcam, saliency, gradient_x_input, smoothgrad, integrated_gradients, learned,
            guided_backprop, extremal, rise, occlusion, and, with upcycle[explain], lrp and deeplift.
        layer: whose channels are meant; if not given, the last convolution.
        samples: confident training images of a class that its channels are found from.
        theta: what a channel's score must exceed to belong to a class.
        weights: a safetensors file for the model.
        trust: packages whose code a saved model's callable reference may run.
        accelerator: as in Lightning Fabric.
    """
    from upcycle.verbs.diagnose import diagnose as look

    look(model, data=data, out=out, images=images, methods=methods, layer=layer, samples=samples, theta=theta,
         weights=weights, trust=trust, accelerator=accelerator)  # fmt: skip
    return 0


def explain(
    model: str,
    images: Path,
    methods: tuple[str, ...] = ("learned", "gradcam"),
    target: str | None = None,
    out: Path = Path("explained"),
    weights: Path | None = None,
    trust: tuple[str, ...] = (),
) -> int:
    """Which pixels of the images in a folder speak for a class: a report, a picture of each map, and a table.

    Args:
        model: a reference, or the path of a saved model or run.
        images: a folder; sub-folders are searched too.
        methods: see upcycle diagnose.
        target: the class that is asked for; if not given, what the network says of each image.
        out: the directory.
        weights: a safetensors file for the model.
        trust: packages whose code a saved model's callable reference may run.
    """
    from upcycle.verbs.explain import explain_images

    explain_images(model, images, methods=methods, target=target, out=out, weights=weights, trust=trust)
    return 0


def report(run: Path) -> int:
    """Write report.html of a run again.

    Args:
        run: a run directory.
    """
    from upcycle.report import write_report

    require((run / "result.json").is_file(), f"{run} holds no finished run (no result.json).")
    lock.check(run)
    print(write_report(run))
    return 0


def lineage(model: str) -> int:
    """Draw the family tree of a saved model, with licences.

    Args:
        model: the path of a saved model or run, or a reference.
    """
    from upcycle.core.lineage import tree

    references.check_reference(model)
    net = references.resolve(model)
    require(net.lineage is not None, f"{net.name} carries no lineage.")
    assert net.lineage is not None
    print(tree(net.lineage))
    return 0


def export(
    model: str,
    out: Path,
    format: Literal["onnx", "torch"] = "onnx",
    trust: tuple[str, ...] = (),
    overwrite: bool = False,
) -> int:
    """Write a model for deployment, and compare both sides on a held batch.

    Args:
        model: a reference, or the path of a saved model or run.
        out: the file.
        format: onnx, or torch for torch.export.
        trust: packages whose code a saved model's callable reference may run.
        overwrite: write over the files that are there.
    """
    references.check_reference(model)
    error = write_export(references.resolve(model, trust=trust), out, format, overwrite=overwrite)
    print(f"{out}: equal to the network to {error:.1e} on a held batch")
    return 0


def doctor() -> int:
    """What this installation can and cannot do, with the line that mends it."""
    from upcycle.verbs.doctor import doctor as look

    found = look()
    print(found.text())
    return 0 if found.ok else 1
