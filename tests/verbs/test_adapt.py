"""The verb: what it refuses before any work, what it shows, and an endpoint asked over a real socket."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

import upcycle
from tests.predictor_server import serve
from tests.settings import fitted, tiny_data
from upcycle import cli
from upcycle.core.errors import UserError
from upcycle.core.store import read_json
from upcycle.data.joining import pooled
from upcycle.data.labels import relabelled
from upcycle.predictors.cache import AnswerFile
from upcycle.predictors.http import Http
from upcycle.verbs.adapt import adapt

TEACHER = "zoo:digits_teacher"
QUICK = {"recipe": {"epochs": 1, "batch_size": 64}, "quiet": True}
SMALL = {"student": "zoo:convnet_small", "epochs_tune": 1, "bottleneck": {"width": 16, "backbone_rate": 1.0}}


def rows(result: upcycle.Result) -> dict[str, float | None]:
    return {line["role"]: line["accuracy"][0] if line["accuracy"] else None for line in result.rows}


def test_a_network_is_tuned_beside_a_linear_probe(tmp_path: Path) -> None:
    result = adapt("zoo:digits_teacher", data="digits", out=tmp_path / "run", **QUICK)
    assert list(rows(result)) == ["source", "control", "product"] and min(rows(result).values()) > 0.9
    saved = upcycle.load(tmp_path / "run" / "model")
    x = saved.example(4)
    assert torch.equal(saved.module(x), result.model.module(x))
    assert (tmp_path / "run" / "adapter.safetensors").stat().st_size < 100_000
    again = adapt("zoo:digits_teacher", data="digits", out=tmp_path / "again", control=False, **QUICK)
    assert list(rows(again)) == ["source", "product"]
    assert torch.equal(again.model.module(x), result.model.module(x))  # what stands beside it changes nothing


def test_other_classes_get_another_classifier_and_the_source_no_figure(tmp_path: Path) -> None:
    some = upcycle.load_data("digits").only(("3", "8"))
    result = adapt("zoo:digits_teacher", data=some, out=tmp_path / "run", **QUICK)
    assert rows(result)["source"] is None and result.model.classes == ("3", "8")
    assert upcycle.load(tmp_path / "run" / "model").module(result.model.example(2)).shape == (2, 2)


def test_answers_of_an_endpoint_are_enough_and_are_asked_for_once(tmp_path: Path) -> None:
    options: dict[str, Any] = {"method": "dine", "data": tiny_data(), "cache": tmp_path / "cache", **SMALL, **QUICK}
    said: list[str] = []
    with serve(fitted("api", 7), faults=[(429, "0.01"), "json", None, 503], top=1) as url:
        first = adapt(url, out=tmp_path / "a", say=said.append, **{**options, "quiet": False})
        assert list(rows(first)) == ["source", "oracle", "product"]
        sent = url.images
        second = adapt(url, out=tmp_path / "b", **options)
        assert url.images == sent  # the second asks nothing
    assert any(line.startswith("asked    http://127.0.0.1") for line in said)
    for a, b in zip(first.model.module.parameters(), second.model.module.parameters(), strict=True):
        assert torch.equal(a, b)
    tree = read_json(tmp_path / "a" / "model" / "lineage.json")
    assert [(p["role"], p["licence"]["id"]) for p in tree["parents"]] == [("predictor", "unknown")]
    assert tree["parents"][0]["name"].startswith("http://127.0.0.1")


def test_a_budget_that_cannot_do_is_refused_before_the_first_query(tmp_path: Path) -> None:
    with serve(fitted("api", 7)) as url:
        with pytest.raises(UserError, match="210 images, more than the budget of 200"):
            adapt(
                url, method="dine", data=tiny_data(), budget=200, cache=tmp_path, out=tmp_path / "run", **SMALL, **QUICK
            )
        assert url.images == 0
    assert not (tmp_path / "run").exists()


def test_a_network_stands_in_for_an_endpoint_and_a_loss_is_called_one(tmp_path: Path) -> None:
    result = adapt("zoo:digits_teacher", method="dine", data="digits", top=1, out=tmp_path / "run", **SMALL, **QUICK)
    found = rows(result)
    assert found["source"] > 0.95 and found["product"] < found["source"]
    record = read_json(tmp_path / "run" / "result.json")
    assert record["data"]["labelled"] == 0  # which the oracle alone has seen
    assert "Adapting did harm here: digits_teacher, not adapted is better" in result.sentence


def test_source_and_target(tmp_path: Path) -> None:
    some = upcycle.load_data("digits").only(("0", "1", "2"))
    result = adapt(
        student="zoo:convnet_small",
        method="ba3us",
        source_data="digits",
        data=some,
        iterations=20,
        batch_size=16,
        bottleneck={"width": 16},
        hidden=16,
        out=tmp_path / "run",
        quiet=True,
    )
    assert [line["role"] for line in result.rows] == ["source", "oracle", "product"]
    assert result.model.classes == tuple("0123456789")
    assert result.rows[-1]["per_class"][5] is None  # which does not occur in the target


@pytest.mark.parametrize("words", [[TEACHER], [TEACHER, "--method=dine", "--student=zoo:convnet_small"]])
def test_an_estimate_writes_nothing(words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["adapt", *words, "--data=digits", "--dry_run", f"--out={tmp_path / 'run'}"]) == 0
    assert "Nothing was written" in capsys.readouterr().out and not (tmp_path / "run").exists()


def test_a_stream(tmp_path: Path) -> None:
    data = tiny_data()
    result = adapt("zoo:digits_teacher", method="iso", source_data=upcycle.load_data("digits"), data=data, copies=4,
                   out=tmp_path / "run", **QUICK)  # fmt: skip
    assert [line["role"] for line in result.rows] == ["source", "control", "product"]


@pytest.mark.parametrize("method", ["dine", "beta", "ba3us"])
def test_a_folder_without_a_single_label_will_do(method: str, tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    photos.mkdir()
    data = upcycle.load_data("digits")
    for i, image in enumerate(data.train.images[:120]):
        Image.fromarray(image[..., 0].numpy()).save(photos / f"{i}.png")
    out = {"data": str(photos), "size": 8, "out": tmp_path / "run", "quiet": True, "bottleneck": {"width": 16}}
    if method == "ba3us":
        result = adapt(student="zoo:convnet_small", method=method, source_data="digits", iterations=20, batch_size=16,
                       hidden=16, **out)  # fmt: skip
    else:
        result = adapt(
            TEACHER, method=method, student="zoo:convnet_small", epochs_tune=1, recipe=QUICK["recipe"], **out
        )
    assert result.rows[-1]["accuracy"] == [] and "no labelled test images" in result.sentence
    assert result.model.classes == tuple("0123456789")


def test_domains_are_pooled_in_order_and_measured_on_the_unseen_one() -> None:
    data = upcycle.load_data("digits")
    a, b = data.subset(torch.arange(30)), data.subset(torch.arange(30, 50))
    whole, domains = pooled([a, b], data)
    assert domains.tolist() == [0] * 30 + [1] * 20
    assert torch.equal(whole.train.images, data.train.images[:50]) and torch.equal(
        whole.train.labels, data.train.labels[:50]
    )
    assert len(whole.train.ids.unique()) == 50 and len(whole.validation) == 2 * len(data.validation)
    assert whole.test is data.test and whole.measured == "digits"


def test_several_domains(tmp_path: Path) -> None:
    result = adapt(student="zoo:convnet_small", method="attentiondiversification", source_data="digits,digits",
                   data="digits", epochs_domain=1, epochs_inter=1, out=tmp_path / "run", **QUICK)  # fmt: skip
    assert [line["role"] for line in result.rows] == ["source", "product"]


def test_classes_that_the_data_lack_stay_without_images() -> None:
    some = upcycle.load_data("digits").only(("7", "2"))
    whole = relabelled(some, tuple("0123456789"), partial=True)
    assert whole.classes == tuple("0123456789") and set(whole.train.labels.tolist()) == {2, 7}
    assert int((whole.train.labels == 7).sum()) == int((some.train.labels == 0).sum())
    with pytest.raises(UserError):
        relabelled(some, tuple("0123456789"))


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ([], "adapts one network"),
        ([TEACHER, TEACHER], "adapts one network"),
        ([TEACHER, "--student", TEACHER], "takes no --student"),
        ([TEACHER, "--source_data", "digits"], "leave out --source_data"),
        ([TEACHER, "--sites", "nothing*"], "nothing"),
        ([TEACHER, "--method", "iso"], "give --source_data"),
        ([TEACHER, "--method", "dine"], "give --student"),
        (["--method", "dine", "--student", TEACHER], "whom to ask"),
        ([TEACHER, "--method", "dine", "--student", TEACHER, "--budget", "3"], "are for endpoints"),
        ([TEACHER, "--method", "dine", "--student", TEACHER, "--top", "0"], "top must be at least 1"),
        (["ftp://x/y", "--method", "dine", "--student", TEACHER], "no model reference"),
        (["http://", "--method", "dine", "--student", TEACHER], "no address of an endpoint"),
        (["missing.onnx", "--method", "dine", "--student", TEACHER], "missing.onnx"),
        ([TEACHER, "--method=ba3us", "--student", TEACHER, "--source_data=digits"], "in place of MODEL"),
        (["--method", "ba3us", "--student", "zoo:convnet_small"], "give --source_data DATA."),
        (["--method=attentiondiversification", "--student", "zoo:convnet_small", "--source_data=digits"], "two source"),
        (["--method", "ba3us", "--student", "zoo:convnet_small", "--source_data=digits,digits"], "one source domain"),
    ],
)  # fmt: skip
def test_mistakes_end_in_one_sentence(
    words: list[str], says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["adapt", *words, "--data", "digits", "--out", str(tmp_path / "run")]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and says in said
    assert not (tmp_path / "run").exists()


def test_a_target_of_one_class_is_told(tmp_path: Path) -> None:
    one = tiny_data()
    one.train = one.train.subset((one.train.labels == 3).nonzero()[:, 0])
    said: list[str] = []
    try:
        adapt(
            TEACHER,
            method="dine",
            data=one,
            out=tmp_path / "run",
            say=said.append,
            **SMALL,
            **{**QUICK, "quiet": False},
        )
    except UserError as error:
        said.append(str(error))
    assert any("are taken for '3', so there is nothing to learn" in line for line in said), said


@pytest.mark.parametrize("method", ["dine", "beta"])
def test_faults_and_a_stop_in_the_middle_change_no_weight(method: str, tmp_path: Path) -> None:
    """The server fails, then is gone; the same command with --resume goes on, and no image is asked for twice."""
    model, data = fitted("api", 7), tiny_data()
    recipe = {"recipe": {"epochs": 2, "batch_size": 16}, "quiet": True, "control": False}
    options: dict[str, Any] = {"method": method, "data": data, **recipe, **SMALL}

    def weights(result: upcycle.Result) -> list[torch.Tensor]:
        return [p.detach() for p in result.model.module.parameters()]

    with serve(model, top=1) as url:
        clean = adapt(url, out=tmp_path / "clean", cache=tmp_path / "a", **options)
        assert url.images == 210
    with serve(model, faults=[None, 503, (429, "0"), "json", None, None, "stop"], top=1) as url:
        with pytest.raises(UserError, match="the same command goes on from there"):
            adapt(Http(url, cache=tmp_path / "b", wait=0.0), out=tmp_path / "run", **options)
        seen = len({hash(image) for image in url.seen})
    box: Any = None
    with serve(model, top=1) as other:  # the same endpoint, come back at another port
        box = Http(other, cache=tmp_path / "c", wait=0.0)
        box.name = url
        box._answers = AnswerFile(
            next((tmp_path / "b").glob("*.sqlite")), box.name, {"classes": list(box.classes), "top": 1}
        )
        again = adapt(box, out=tmp_path / "run", resume=True, **options)
        assert 0 < seen < 210 and other.images == 210 - 96  # three batches of 32 were answered before
    for a, b in zip(weights(clean), weights(again), strict=True):
        assert torch.equal(a, b)
