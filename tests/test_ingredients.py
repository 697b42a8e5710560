"""Ingredients of a recipe: each method takes those that it admits, and refuses the others."""

from __future__ import annotations

import dataclasses
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.settings import ROWS, tiny_data, tiny_model
from upcycle import cli
from upcycle.core import ingredients
from upcycle.core.errors import UserError
from upcycle.core.recipe import Recipe
from upcycle.core.run import Run
from upcycle.core.store import tensor_digest
from upcycle.diagnosis import Tau
from upcycle.distillation import KD, Plain
from upcycle.verbs import methods
from upcycle.verbs.options import Setting, default_of, split_options

ASKS: dict[str, dict[str, Any]] = {
    "sharpness": {"sharpness": "sam"},
    "dropping": {"sharpness": "esam", "select": 1.0},
    "selection": {"sharpness": "esam", "keep": 1.0},
    "mix": {"mix": "cutmix"},
    "sampler": {"sampler": "class"},
}
NEUTRAL = {
    "sharpness": {"sharpness": "sam", "rho": 0.0},
    "dropping": {"sharpness": "esam", "rho": 0.0, "select": 1.0},
    "mix": {"mix": "cutmix", "mix_prob": 0.0},
}
"""Values that change no bit. A sampler has none but its default; a selection sums in another order."""
WITH_RECIPE = {
    name: row
    for name, row in ROWS.items()
    if "recipe" in {f.name for f in dataclasses.fields(row.method)}  # type: ignore[arg-type]
}
BARE = [
    name
    for name, row in WITH_RECIPE.items()
    if not ingredients.asked(row.options.get("recipe") or default_of(row.method, "recipe"))
]
ADMITTED = [(name, what) for name in BARE for what in ASKS if what in ROWS[name].method.admits]
REFUSED = [
    (name, what)
    for name in BARE
    for what in ASKS
    if what not in (admits := ROWS[name].method.admits)
    and (what not in ingredients.PARTS or "sharpness" in admits)  # which is refused first
]


def with_recipe(name: str, **changes: Any) -> Any:
    made: Any = ROWS[name].make()
    made.recipe = dataclasses.replace(made.recipe, **changes)
    return made


def fit(method: Any, data: Any) -> dict[str, Tensor]:
    try:
        method.require(data)
    except UserError as error:  # a condition of its own, such as outputs that are kept
        pytest.skip(str(error))
    try:
        state: dict[str, Tensor] = method.fit(Run(None, seed=5), data).state_dict()
    except NotImplementedError as error:
        pytest.skip(str(error))
    return state


@cache
def bare(name: str) -> str:
    return tensor_digest(ROWS[name].make().fit(Run(None, seed=5), ROWS[name].data(100)).state_dict())


@pytest.mark.parametrize(("name", "what"), [(name, what) for name, what in ADMITTED if what in NEUTRAL])
def test_a_neutral_value_changes_no_bit(name: str, what: str) -> None:
    """Whatever a body does besides shows here, since it does so once more."""
    found = fit(with_recipe(name, **NEUTRAL[what]), ROWS[name].data(100))
    assert tensor_digest(found) == bare(name)


@pytest.mark.parametrize(("name", "what"), [pair for pair in ADMITTED if pair[1] in ("selection", "sampler")])
def test_an_ingredient_without_a_neutral_value_works(name: str, what: str) -> None:
    found = fit(with_recipe(name, **ASKS[what]), ROWS[name].data(100))
    assert all(bool(value.isfinite().all()) for value in found.values())
    draws = ROWS[name].make().recipe.batch_size  # type: ignore[attr-defined]
    assert not draws or tensor_digest(found) != bare(name)


@pytest.mark.parametrize(("name", "what"), [(n, w) for n, w in ADMITTED if w == "selection" and "-" not in n])
def test_a_selection_of_all_is_the_mean_of_all(name: str, what: str) -> None:
    found = fit(with_recipe(name, sharpness="esam", rho=0.0, select=0.999), ROWS[name].data(100))
    state = ROWS[name].make().fit(Run(None, seed=5), ROWS[name].data(100)).state_dict()
    for key, value in state.items():
        assert float((found[key] - value).abs().max()) < 1e-3, key


@pytest.mark.parametrize(("name", "what"), REFUSED)
def test_what_is_not_admitted_is_refused(name: str, what: str) -> None:
    row, asks = ROWS[name], ASKS[what]
    with pytest.raises(UserError) as told:
        with_recipe(name, **asks).require(row.data(100))
    (option,) = {"dropping": ["keep"], "selection": ["select"]}.get(what, [*asks])
    text = str(told.value)
    assert text.startswith(f"{row.method.card.name} takes no --recipe.{option} ") and ", because " in text
    able = [r.method.card.name for r in ROWS.values() if what in r.method.admits]
    assert any(f"{one}" in text.split(";")[-1] for one in able)


def test_methods_admit_what_there_is() -> None:
    for row in ROWS.values():
        assert row.method.admits <= ingredients.EVERY
        assert {*row.method.refuses} <= {*ingredients.INGREDIENTS, "any"}
        assert not {*row.method.refuses} & row.method.admits
        assert "sharpness" in row.method.admits or not row.method.admits & {"dropping", "selection"}
    every = {r.method for r in WITH_RECIPE.values()}
    assert all(m.admits == ingredients.EVERY or m.refuses for m in every), "a refusal says why"


# -- bad input --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("asks", "words"),
    [
        ({"sharpness": "sam", "rho": -0.1}, "rho must not be negative"),
        ({"sharpness": "sam", "rho": float("nan")}, "rho must not be negative"),
        ({"sharpness": "esam", "select": 0.0}, "select must be positive"),
        ({"sharpness": "esam", "keep": 0.0}, "keep must be positive"),
        ({"sharpness": "esam", "keep": 1.5}, "keep must lie between 0 and 1"),
        ({"mix": "cutmix", "mix_prob": 2.0}, "mix_prob must lie between 0 and 1"),
        ({"mix": "cutmix", "mix_beta": 0.0}, "mix_beta must be positive"),
        ({"rho": 0.1}, "rho 0.1 has no effect without sharpness"),
        ({"local": True}, "local True has no effect without sharpness"),
        ({"sharpness": "sam", "keep": 0.5}, "keep 0.5 has no effect without sharpness esam"),
        ({"sharpness": "asam", "select": 0.4}, "select 0.4 has no effect without sharpness esam"),
        ({"mix_prob": 0.5}, "mix_prob 0.5 has no effect without mix"),
        ({"mix": "cutmix", "mix_map": "teacher"}, "mix_map teacher has no effect without mix snapmix"),
        ({"weight_decay": 0.0, "decayed": "matrices"}, "decayed matrices has no effect without a weight_decay"),
    ],
)
def test_a_bad_value_is_refused_at_once(asks: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        Recipe(**asks)


def test_what_cannot_be_had_on_the_data_is_refused() -> None:
    data = tiny_data(64)
    for cache_, views in (("on", 2), ("auto", 2), ("on", 0)):
        method = KD(
            teacher=tiny_model("t", 1), student=tiny_model("s", 2), cache=cache_, views=views,  # type: ignore[arg-type]
            recipe=Recipe(mix="cutmix"))  # fmt: skip
        plain = dataclasses.replace(data, train=dataclasses.replace(data.train, augment=()))
        with pytest.raises(UserError, match=r"cannot be kept: --cache off"):
            method.require(plain)
    weighed = Plain(student=tiny_model("s", 2), balanced=True, recipe=Recipe(mix="cutmix"))
    with pytest.raises(UserError, match=r"balanced weighs labels.* --recipe\.sampler class"):
        weighed.require(data)
    drawn = KD(teacher=tiny_model("t", 1), student=tiny_model("s", 2), recipe=Recipe(sampler="class"))
    with pytest.raises(UserError, match=r"--recipe\.sampler class draws by class, and no training sample has a label"):
        drawn.require(data.hide_labels(0, 0))


def test_one_method_does_and_several_do() -> None:
    with pytest.raises(UserError, match="; modeldoctor does"):
        with_recipe("crt", sharpness="sam").require_ingredients()


# -- weight decay -----------------------------------------------------------------------------------------------


def test_weight_decay_reaches_what_it_should() -> None:
    net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(2, 2))
    groups = Recipe(decayed="matrices").make(net).param_groups
    assert [g["weight_decay"] for g in groups] == [5e-4, 0.0]
    assert [p.ndim for g in groups for p in g["params"]] == [4, 2, 1, 1, 1, 1]
    (one,) = Recipe().make(net).param_groups
    assert len(one["params"]) == 6 and one["weight_decay"] == 5e-4
    own = [{"params": [net[0].weight, net[0].bias], "lr": 1.0}, {"params": [net[3].weight], "weight_decay": 0.1}]
    groups = Recipe(decayed="matrices").make(own).param_groups
    assert [(g["lr"], g["weight_decay"], len(g["params"])) for g in groups] == [
        (1.0, 5e-4, 1), (1.0, 0.0, 1), (0.1, 0.1, 1)]  # fmt: skip


def test_a_sampled_order_has_a_view_a_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    """A sample that comes twice in an epoch is augmented anew, unless views repeat."""
    from upcycle.core import sampling

    monkeypatch.setattr(sampling, "order", lambda labels, *rest: torch.zeros(len(labels), dtype=torch.int64))
    for views, expected in ((0, 5), (2, 1)):
        run, seen = Run(None, seed=1), set()
        for _ in run.epochs(1):
            for _ in run.batches(tiny_data().train, Recipe(batch_size=32, sampler="class"), views=views):
                seen.add(run.view)
        assert len(seen) == expected


# -- what is said -----------------------------------------------------------------------------------------------


def test_the_list_says_who_takes_what_and_why_not(capsys: pytest.CaptureFixture[str]) -> None:
    assert methods.command(ingredients=True, verb="distill") == 0
    said = capsys.readouterr().out
    lines = {line.split()[0]: line for line in said.splitlines() if line.startswith("  ")}
    assert lines["kd"].split()[1:] == ["sharpness,", "dropping,", "selection,", "mix,", "sampler"]
    assert "no selection: its loss has a term without samples" in lines["vam"]
    assert "no sharpness: each forward moves" in lines["nes"] and "no selection" not in lines["nes"]
    assert lines["netgraft"].endswith("it has no recipe") and "it does not say" not in said
    assert "samples are drawn by their class" in lines["sampler"]


@pytest.mark.parametrize(
    ("asks", "times"),
    [
        ({}, 1),
        ({"sharpness": "asam"}, 2),
        ({"sharpness": "esam"}, 5.1 / 3),
        ({"sharpness": "esam", "select": 1.0, "keep": 1.0}, 2),
        ({"mix": "cutmix"}, 1),
        ({"mix": "snapmix", "mix_prob": 0.5}, 1 + 1 / 6),
        ({"mix": "snapmix", "sharpness": "sam"}, 2 + 1 / 3),
    ],
)
def test_estimates_count_the_meetings(asks: dict[str, Any], times: float) -> None:
    assert ingredients.times(with_recipe("kd", **asks)) == pytest.approx(times)


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (["--recipe.mix", "mixup"], "netgraft has no recipe, and so no --recipe.mix; its own options are --cuts, "),
        (["--recipe.mix=mixup"], "--lr_chain. --recipe.mix is for kd, "),
        (["--recipe.epochs", "3"], "so no --recipe.epochs; its own options are --cuts, "),
        (["--config", "c.yaml"], "so no --recipe.sampler; its own options"),
    ],
)
def test_a_method_without_a_recipe_says_so(
    words: list[str], part: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "c.yaml").write_text("recipe:\n  sampler: class\n")
    networks = ["--teacher", "zoo:digits_teacher", "--student", "zoo:convnet"]
    assert cli.main(["distill", "--method", "netgraft", *networks, *words]) == 2
    assert part in capsys.readouterr().err and not (tmp_path / "runs").exists()


def test_in_python_too() -> None:
    with pytest.raises(UserError, match=r"tau has no recipe, and so no --recipe\.sampler; its own options are --tau, "):
        split_options(Tau, Setting, {"recipe": {"sampler": "class"}})
    with pytest.raises(UserError, match=r"tau has no recipe, and so no --recipe; its"):
        split_options(Tau, Setting, {"recipe": Recipe()})
