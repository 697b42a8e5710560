"""Kinds of inputs and tasks: those that there are, and one that the package does not know."""

from __future__ import annotations

import dataclasses
import importlib
import json
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from torch import nn

from tests.toy_kind import Errors, OnRows, Rows, Scores, Table, TableSplit, prices
from upcycle.core import lineage, saved, store
from upcycle.core.batches import Batch, divide, endless
from upcycle.core.collective import leave_batchnorm, sync_batchnorm
from upcycle.core.errors import UserError
from upcycle.core.evaluate import evaluate, measured
from upcycle.core.frozen import frozen
from upcycle.core.method import Card, Needs, serving
from upcycle.core.models import Model, fields_of
from upcycle.core.precision import choose
from upcycle.core.recipe import Recipe
from upcycle.core.references import resolve
from upcycle.core.run import Run
from upcycle.core.takes import KINDS, Pictures, Takes, described, takes_of
from upcycle.core.task import CLASSIFICATION, TASKS, task_of
from upcycle.data.collection import describe
from upcycle.distillation import KD, Plain
from upcycle.measure.cost import count
from upcycle.verbs.directory import write_result
from upcycle.verbs.figures import row

PICTURES = Pictures((3, 8, 6), (0.1, 0.2, 0.3), (1.0, 0.5, 0.2))
EXAMPLES: dict[str, dict[str, Any]] = {"images": {"kind": "images", **PICTURES.plain()}, "table": described(Table(3))}
"""A description of each kind; those of kinds that have a home elsewhere are tested there."""


@pytest.fixture(autouse=True)
def toy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(KINDS, "table", "tests.toy_kind:Table")
    monkeypatch.setitem(TASKS, "scores", Scores)


def network(width: int = 3) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(width, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 1))


def model(width: int = 3) -> Model:
    return resolve(network(width), takes=Table(width), task=Scores(), classes=("price",))


# -- what there is ----------------------------------------------------------------------------------------------------


def kinds() -> list[Takes]:
    return [takes_of(plain) for name, plain in EXAMPLES.items() if name in KINDS]


def test_every_kind_comes_back_from_its_description() -> None:
    for takes in kinds():
        takes.check()
        assert takes_of(json.loads(json.dumps(described(takes)))) == takes
        assert str(takes) and takes.noun in str(takes)


def test_every_kind_has_examples_that_are_inputs_and_do_not_change() -> None:
    for takes in kinds():
        inputs = takes.example(3)
        assert len(inputs) == 3 and len(inputs[:2]) == 2 and len(inputs[torch.tensor([2])]) == 1
        assert inputs.double().dtype == torch.float64 and inputs.to(torch.float64).dtype == torch.float64
        assert inputs.device.type == "cpu" and not inputs.is_cuda and (inputs.ndim == 4) == (takes.kind == "images")
        assert type(inputs.clone()) is type(inputs)


def test_kinds_take_their_own_data_and_no_others() -> None:
    for takes in kinds():
        for data in kinds():
            assert bool(takes.problems(data)) == (takes.kind != data.kind), (takes, data)
    assert "3 input channels" in PICTURES.problems(Pictures((1, 8, 6), (0,), (1,)))[0]
    assert "8 x 6 pixels" in PICTURES.problems(Pictures((3, 8, 8), (0,) * 3, (1,) * 3))[0]


def test_the_home_of_every_kind_says_its_own_name() -> None:
    for kind, home in KINDS.items():
        module, _, name = home.partition(":")
        if importlib.util.find_spec(module) is not None:
            assert getattr(importlib.import_module(module), name).kind == kind


def test_every_task_comes_back_from_its_description() -> None:
    for name, task in TASKS.items():
        assert task.name == name
        assert task_of({"name": name, **json.loads(json.dumps(task().plain()))}) == task()


def test_unknown_kinds_and_tasks_are_refused_by_name() -> None:
    with pytest.raises(UserError, match="kind of inputs"):
        takes_of({"kind": "imags"})
    with pytest.raises(UserError, match="task"):
        task_of({"name": "clasification"})


def test_classification_is_what_it_was() -> None:
    z, y = torch.randn(6, 4), torch.tensor([0, 1, 2, 3, -1, 0])
    judge = CLASSIFICATION.judge(classes=4, name="net")
    judge.add(z[:2], y[:2])
    judge.add(z[2:], y[2:])
    found = judge.result()
    assert found.count == 5 and found.score == float((z.argmax(1) == y)[y >= 0].double().mean())
    assert CLASSIFICATION.known(y).tolist() == [True, True, True, True, False, True]
    assert CLASSIFICATION.agreement(z, z) == 1.0 and CLASSIFICATION.outputs(z, 6) == 4
    with pytest.raises(UserError, match="is no classifier of images: two images give"):
        CLASSIFICATION.outputs(z, 2, "images")


# -- one that the package does not know -------------------------------------------------------------------------------


def test_a_network_of_another_kind_is_probed_and_adapted() -> None:
    made = model()
    assert isinstance(made.module, OnRows) and made.takes == Table(3) and made.input_shape == ()
    with pytest.raises(UserError, match=r"does not take rows of 5 numbers"):
        resolve(network(3), takes=Table(5), task=Scores())
    with pytest.raises(UserError, match="gives no a, b of rows"):
        resolve(network(3), takes=Table(3), task=Scores(("a", "b")))
    with pytest.raises(UserError, match="has columns"):
        resolve(network(3), takes=Table(0), task=Scores())


def test_it_trains_is_saved_and_goes_on_where_it_was(tmp_path: Path) -> None:
    data, made = prices(), model()
    before = measured(made.module, data.test)
    method = Plain(student=made, recipe=Recipe(epochs=20, batch_size=8, lr=0.02, weight_decay=0.0))
    run = Run(tmp_path / "run", seed=1, quiet=True)
    method.begin(run, data)
    product = method.product(method.fit(run, data), data)
    after = measured(product.module, data.test)
    assert isinstance(after, Errors) and after.score < 0.7 * before.score
    assert "validation_mae" in {line[3] for line in run.journal.rows}

    rows = [row("net", "student", [after], product)]
    write_result(
        tmp_path / "run",
        Plain,
        product,
        [],
        data,
        run,
        rows=rows,
        config={},
        figure="mean error",
        facts={"sentence": "It errs little.", "seeds": [1], "seconds": 1.0},
    )
    run.close()
    page = (tmp_path / "run" / "report.html").read_text()
    assert f"{after.score:.4g}" in page and "%" not in page.partition("Mean error")[2][:200]
    record = store.read_json(tmp_path / "run" / "model" / "architecture.json")
    assert record["format"] == 2 and record["takes"] == {"kind": "table", "width": 3} and "input_shape" not in record
    assert record["task"] == {"name": "scores", "names": ["price"]}
    back = saved.load(tmp_path / "run", into=network())
    assert back.takes == Table(3) and back.task == Scores() and back.classes == ("price",)
    assert measured(back.module, data.test) == after
    tree = saved.lineage_of(tmp_path / "run")
    assert tree is not None and "prices" in lineage.tree(tree)


def test_a_killed_run_of_it_resumes_to_the_same_bits(tmp_path: Path) -> None:
    class Killed(Exception):
        pass

    class Dies(Run):
        def update(self, *args: Any, **kwargs: Any) -> None:
            super().update(*args, **kwargs)
            if self.updates == 7:
                raise Killed

    def fit(run: Run) -> nn.Module:
        return Plain(student=model(), recipe=Recipe(epochs=4, batch_size=8, lr=0.02)).fit(run, prices())

    whole = fit(Run(None, seed=1, quiet=True))
    dying = Dies(tmp_path, seed=1, save_every=0, quiet=True)
    with pytest.raises(Killed):
        fit(dying)
    dying.close()
    again = Run(tmp_path, seed=1, resume=True, quiet=True)
    for a, b in zip(whole.state_dict().values(), fit(again).state_dict().values(), strict=True):
        assert torch.equal(a, b)
    again.close()


def test_methods_of_other_tasks_refuse_it_before_any_work() -> None:
    data = prices()
    with pytest.raises(UserError, match=r"kd cannot run here: it is for classification, and scores is the task of"):
        KD(teacher=model(), student=model()).require(data)


def test_a_method_of_images_names_one_that_would_serve() -> None:
    class OfImages(Plain):
        card = Card(
            name="pixels",
            title="",
            paper="",
            verb="distill",
            summary="",
            cost="",
            published="",
            needs=Needs(data="labelled", teacher="none"),
        )

    data = prices()
    data.train.task = data.validation.task = data.test.task = CLASSIFICATION  # type: ignore[misc]
    assert "kd" in serving("distill", "table", "classification")
    with pytest.raises(UserError, match=r"it works on images, and these are rows; take --method plain"):
        OfImages(student=model()).require(data)


def test_networks_that_take_others_are_refused_by_their_reasons() -> None:
    with pytest.raises(UserError, match="it takes rows of 4 numbers, and not rows of 3 numbers"):
        Plain(student=model(4)).require(prices())


def test_a_frozen_copy_answers_the_same() -> None:
    made = model().module.eval()
    copy = frozen(made, Table(3).example(64), task=Scores(), precision="auto")
    assert copy.precision == "float32" and copy.agreement == 1.0
    rows = Table(3).example(5)
    assert torch.allclose(copy(rows), made(rows), atol=1e-5)
    assert frozen(made, Table(3).example(9), precision="64-true")(rows.double()).dtype == torch.float64
    assert isinstance(Run(None, quiet=True).frozen(model(), prices().validation)(rows), torch.Tensor)


def test_a_figure_of_classes_is_not_asked_of_it() -> None:
    with pytest.raises(UserError, match="its task is scores"):
        evaluate(model().module, prices().test)


def test_it_is_described_counted_and_has_no_bf16_of_its_own() -> None:
    text = "prices: 32 train (27 labelled), 32 validation, 32 test rows, 1 class, rows of 3 numbers"
    assert describe(prices()) == text
    assert count(model().module, model().example(1)).macs == 3 * 8 + 8
    assert choose("auto", torch.device("cpu"), "table") == "32-true"
    with pytest.raises(UserError, match="no classes to draw rows of"):
        prices().few(2, 0)


def test_nothing_in_the_package_names_it() -> None:
    root = Path(saved.__file__).parents[1]
    kd = (root / "distillation" / "kd.py").read_text().lower()
    assert "graph" not in kd
    assert not [file for file in root.rglob("*.py") if "toy_kind" in (text := file.read_text()) or "TableSet" in text]
    assert fields_of(PICTURES)["inputs"] is None and fields_of(Table(2))["input_shape"] == ()


# -- all at once ------------------------------------------------------------------------------------------------------


def test_a_batch_size_of_nought_is_all_at_once() -> None:
    def order(n: int, number: int) -> torch.Tensor:
        return torch.arange(n)

    assert [len(b) for _, b in divide(7, 0, None, 2, order)] == [7]
    assert [len(b) for _, b in divide(7, 0, 3, 2, order)] == [7, 7, 7]
    assert len(next(endless(torch.arange(5), 0, order))[1]) == 5
    assert Recipe(epochs=3, batch_size=0).steps(100) == 3
    with pytest.raises(UserError, match="at least 2"):
        Recipe(batch_size=1)


def test_batchnorm_is_left_to_each_process_again() -> None:
    net = network()
    sync_batchnorm(net)
    assert "forward" in net[1].__dict__
    leave_batchnorm(net)
    assert not any("forward" in m.__dict__ for m in net.modules())


def test_samples_that_lie_together_are_answered_at_once() -> None:
    seen: list[int] = []

    class Watched(nn.Module):
        def forward(self, rows: Rows) -> torch.Tensor:
            seen.append(len(rows))
            return rows.of.sum(1, keepdim=True)

    data = prices(300)
    measured(Watched(), data.test)
    assert len(seen) > 1
    seen.clear()
    data.test.together = True  # type: ignore[misc]
    assert measured(Watched(), data.test).score < 1e-6 and seen == [100]


class Asked(Rows):
    """All rows, and those that are asked for."""

    def __init__(self, of: torch.Tensor, at: torch.Tensor) -> None:
        super().__init__(of)
        self.at = at

    def __len__(self) -> int:
        return len(self.at)

    def double(self) -> Asked:
        return Asked(self.of.double(), self.at)


class OfAll(nn.Sequential):
    """Sees all rows, and answers those that are asked for."""

    def forward(self, rows: Asked) -> torch.Tensor:
        return super().forward(rows.of)[rows.at]


@dataclasses.dataclass(eq=False, kw_only=True)
class Whole(TableSplit):
    together: ClassVar[bool] = True

    def batch(self, index: torch.Tensor, *, device: torch.device, view: tuple[int, int] | None = None) -> Batch:
        return Batch(Asked(self.rows, index), self.labels[index], index)


def _of_all(ranks: int) -> dict[str, torch.Tensor]:
    split = Whole(**vars(prices(99).train))
    run = Run(None, seed=3, devices=ranks, accelerator="cpu", precision="64-true", quiet=True)
    net, optimizer = run.setup(OfAll(*network()), recipe := Recipe(epochs=6, batch_size=0, lr=0.02))
    for _ in run.epochs(recipe.epochs):
        for inputs, labels, _ in run.batches(split, recipe.batch_size):
            run.step(split.task.loss(net(inputs), labels.double()), optimizer, recipe)
    return run.plain(net).state_dict()


@pytest.mark.xdist_group("ranks")
def test_samples_that_lie_together_train_the_same_on_two_processes(ranks: Any) -> None:
    """With BatchNorm, which sees all of them on each process."""
    alone = _of_all(1)
    for found in ranks(_of_all, 2):
        for key, tensor in alone.items():
            assert (found[key] - tensor).abs().max() < 1e-10, key
