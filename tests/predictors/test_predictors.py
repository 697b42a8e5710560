"""Black boxes: networks, ONNX files, and endpoints over a real socket, which fail in many ways."""

from __future__ import annotations

import base64
import contextlib
import email.utils
import io
import json
import random
import re
import signal
import sqlite3
import subprocess
import sys
import tempfile
import textwrap
import threading
import time
from dataclasses import replace
from http.server import ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from PIL import Image
from torch import Tensor, nn

from tests.predictor_server import serve
from upcycle.core.errors import UserError
from upcycle.core.evaluate import predict_logits
from upcycle.core.models import Model
from upcycle.core.outputs import own
from upcycle.core.references import resolve
from upcycle.core.saved import save
from upcycle.data import ImageSplit, load
from upcycle.measure.export import METADATA, write_export
from upcycle.predictors import Answers, Predictor, check_predictor, http, predictor, wire
from upcycle.predictors.exchange import Fault
from upcycle.predictors.http import Http
from upcycle.predictors.local import Local
from upcycle.predictors.onnx_file import OnnxFile

N = 20


@pytest.fixture(scope="module")
def digits() -> ImageSplit:
    """Real digits, all different."""
    return load("digits").test.subset(torch.arange(N))


@pytest.fixture(scope="module")
def model() -> Model:
    return resolve("zoo:digits_teacher")


class Net(nn.Module):
    """A linear classifier of 8 x 8 images with fixed weights."""

    def __init__(self, channels: int = 1, k: int = 3, probabilities: bool = False) -> None:
        super().__init__()
        self.linear = nn.Linear(channels * 64, k)
        nn.init.normal_(self.linear.weight, generator=torch.Generator().manual_seed(0))
        nn.init.zeros_(self.linear.bias)
        self.probabilities = probabilities

    def forward(self, x: Tensor) -> Tensor:
        z = self.linear(x.flatten(1))
        return z.softmax(1) if self.probabilities else z


def net(channels: int = 1, k: int = 3, **options: Any) -> Model:
    return resolve(Net(channels, k, **options).eval(), input_shape=(channels, 8, 8), mean=(0.3,) * channels,
                   std=(0.5,) * channels, classes=tuple("abcdefghij"[:k]))  # fmt: skip


@pytest.fixture
def asked(tmp_path: Path) -> Any:
    """An endpoint's client that waits for nothing and caches in a directory of this test."""
    return lambda url, **options: Http(url, **{"wait": 0.0, "cache": tmp_path / "cache", "batch_size": 8, **options})


def same(a: Answers, b: Answers) -> bool:
    return torch.equal(a.classes, b.classes) and torch.equal(a.probabilities, b.probabilities)


def sentence(caught: pytest.ExceptionInfo[UserError]) -> str:
    text = str(caught.value)
    assert "\n" not in text and text.endswith(".") and len(text) < 600, text
    assert "Traceback" not in text and "Error(" not in text, text
    return text


# -- networks ------------------------------------------------------------------------------------------------------


def test_a_network_gives_the_probabilities_of_all_classes(model: Model, digits: ImageSplit) -> None:
    box = Local(model)
    assert isinstance(box, Predictor) and box.classes == model.classes and box.name == model.name
    answers = box.predict(digits)
    assert answers.classes.dtype == torch.int64 and answers.probabilities.dtype == torch.float32
    assert answers.classes.shape == answers.probabilities.shape == (N, 10)
    z = predict_logits(model.module, digits.normalised(model.mean, model.std))
    p = torch.zeros(N, 10).scatter(1, answers.classes, answers.probabilities)
    torch.testing.assert_close(p, z.softmax(1), rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(p.sum(1), torch.ones(N))
    assert (answers.probabilities.diff(dim=1) <= 0).all()
    # Whatever the split is normalised with.
    assert same(answers, box.predict(digits.normalised((9.0,), (7.0,))))


def test_a_network_gives_the_best_or_labels_only(model: Model, digits: ImageSplit) -> None:
    every, three, label = (Local(model, **o).predict(digits) for o in ({}, {"top": 3}, {"probabilities": False}))
    assert same(three, Answers(every.classes[:, :3], every.probabilities[:, :3]))
    assert torch.equal(label.classes, every.classes[:, :1])
    assert label.probabilities.shape == (N, 1) and (label.probabilities == 1).all()


def test_equal_probabilities_are_ranked_by_class() -> None:
    flat = net()
    with torch.no_grad():
        for p in flat.module.parameters():
            p.zero_()
    split = ImageSplit.plain(torch.zeros(2, 8, 8, 1, dtype=torch.uint8), torch.zeros(2).long(), torch.arange(2))
    assert Local(flat).predict(split).classes.tolist() == [[0, 1, 2]] * 2


def test_mistakes_with_a_network_are_named(model: Model, digits: ImageSplit) -> None:
    for options, says in (({"top": 0}, "from 1 to the 10"), ({"top": 11}, "not 11"),
                          ({"top": 2, "probabilities": False}, "Labels only")):  # fmt: skip
        with pytest.raises(UserError, match=says):
            Local(model, **options)
    with pytest.raises(UserError, match=r"3 x 8 x 8 .* these are 1 x 8 x 8"):
        Local(net(channels=3)).predict(digits)
    with pytest.raises(UserError, match="empty"):
        Local(model).predict(digits.subset(torch.arange(0)))
    broken = net(k=10)
    with torch.no_grad():
        broken.module.linear.bias[3] = torch.nan
    with pytest.raises(UserError, match=f"NaN or infinite outputs for {N} of {N}"):
        Local(broken).predict(digits)


# -- ONNX files ----------------------------------------------------------------------------------------------------


def to_onnx(module: nn.Module, path: Path, batch: int | None = None, channels: int = 1, size: int = 8) -> Path:
    """A file as others write it: nothing in it about us."""
    pytest.importorskip("onnxscript")
    shapes = ({0: torch.export.Dim("n")},) if batch is None else None
    torch.onnx.export(module.eval(), (torch.zeros(batch or 2, channels, size, size),), str(path), dynamo=True,
                      verbose=False, external_data=False, dynamic_shapes=shapes)  # fmt: skip
    return path


def test_an_exported_network_answers_as_it_did(model: Model, digits: ImageSplit, tmp_path: Path) -> None:
    pytest.importorskip("onnxscript")
    file = tmp_path / "net.onnx"
    write_export(model, file, "onnx")
    (tmp_path / "net.onnx.json").unlink()  # the file alone knows
    box = OnnxFile(file, batch_size=7)
    assert isinstance(box, Predictor) and box.name == "net" and box.classes == model.classes
    assert box.mean == pytest.approx(model.mean) and box.std == pytest.approx(model.std)
    here, there = box.predict(digits), Local(model).predict(digits)
    assert torch.equal(here.classes[:, 0], there.classes[:, 0])
    torch.testing.assert_close(here.probabilities, there.probabilities, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("probabilities", [False, True])
@pytest.mark.parametrize("batch", [None, 3])
def test_a_file_of_others_with_logits_or_probabilities(
    probabilities: bool, batch: int | None, digits: ImageSplit, tmp_path: Path
) -> None:
    inside = net(probabilities=probabilities)
    file = to_onnx(own(inside.module), tmp_path / "theirs.onnx", batch)  # as their author wrote it
    box = OnnxFile(file, mean=inside.mean, std=inside.std)
    expected = Local(net()).predict(digits)  # the same weights, and logits
    assert box.classes == ("0", "1", "2")
    answers = box.predict(digits)
    assert torch.equal(answers.classes, expected.classes)
    torch.testing.assert_close(answers.probabilities, expected.probabilities, rtol=1e-4, atol=1e-6)
    said = OnnxFile(file, ["x", "y", "z"], inside.mean, inside.std, logits=not probabilities)
    assert said.classes == ("x", "y", "z") and same(said.predict(digits), answers)
    if not probabilities:
        with pytest.raises(UserError, match="gives no probabilities"):
            OnnxFile(file, mean=inside.mean, std=inside.std, logits=False).predict(digits)


def test_a_file_that_ends_in_a_sigmoid_is_not_guessed(digits: ImageSplit, tmp_path: Path) -> None:
    inside = net()
    file = to_onnx(nn.Sequential(inside.module, nn.Sigmoid()), tmp_path / "sigmoid.onnx", None)
    usual = {"mean": inside.mean, "std": inside.std}
    with pytest.raises(UserError, match="between 0 and 1 that do not sum to 1: in Python, give it as an OnnxFile"):
        OnnxFile(file, **usual).predict(digits)
    answers, expected = OnnxFile(file, **usual, logits=False).predict(digits), Local(inside).predict(digits)
    assert torch.equal(answers.classes, expected.classes)
    torch.testing.assert_close(answers.probabilities, expected.probabilities, rtol=1e-3, atol=1e-5)
    assert float(OnnxFile(file, **usual, logits=True).predict(digits).probabilities.max()) < 0.6  # e / (e + 2)


def test_mistakes_with_onnx_files_are_named(
    digits: ImageSplit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    onnx = pytest.importorskip("onnx")
    file, usual = to_onnx(Net(), tmp_path / "net.onnx"), {"mean": (0.0,), "std": (1.0,)}
    with pytest.raises(
        UserError, match=r"net\.onnx does not say what its inputs are normalised with: give mean and std"
    ):
        OnnxFile(file)
    with pytest.raises(UserError, match="has 3 outputs, but 2 class names"):
        OnnxFile(file, ["a", "b"], **usual)
    with pytest.raises(UserError, match="1 channel, the normalisation is for 3"):
        OnnxFile(file, mean=(0.0,) * 3, std=(1.0,) * 3).predict(digits)
    with pytest.raises(UserError, match="takes images of 1 x 8 x 8"):
        OnnxFile(file, **usual).predict(replace(digits, images=digits.images.repeat(1, 2, 2, 1)))
    with pytest.raises(UserError, match="There is no file"):
        OnnxFile(tmp_path / "none.onnx", **usual)
    with pytest.raises(UserError, match="batch_size"):
        OnnxFile(file, **usual, batch_size=0)

    (tmp_path / "cut.onnx").write_bytes(file.read_bytes()[:200])
    with pytest.raises(UserError, match=r"cut\.onnx cannot be read as ONNX") as caught:
        OnnxFile(tmp_path / "cut.onnx", **usual)
    sentence(caught)
    with pytest.raises(UserError, match="no classifier of images"):
        OnnxFile(to_onnx(nn.Conv2d(1, 2, 3), tmp_path / "map.onnx"), **usual)
    for text, says in (("[1", "damaged"), ('{"mean": "x"}', "damaged"), ("[]", "must be a mapping")):
        content = onnx.load(file)
        onnx.helper.set_model_props(content, {METADATA: text})
        onnx.save(content, tmp_path / "meta.onnx")
        with pytest.raises(UserError, match=says):
            OnnxFile(tmp_path / "meta.onnx")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r'pip install "upcycle\[onnx\]"'):
        check_predictor(str(file))


# -- endpoints: what they say --------------------------------------------------------------------------------------


@pytest.mark.parametrize("top", [None, 1, 3])
def test_an_endpoint_answers_as_its_network(asked: Any, model: Model, digits: ImageSplit, top: int | None) -> None:
    with serve(model, top=top) as url:
        box = asked(url)
        assert isinstance(box, Predictor) and box.classes == model.classes and box.top == (top or 10)
        answers, expected = box.predict(digits), Local(model, top).predict(digits)
        assert url.requests == 3 and url.images == N
    assert answers.classes.dtype == torch.int64 and answers.probabilities.dtype == torch.float32
    assert torch.equal(answers.classes[:, 0], expected.classes[:, 0])
    torch.testing.assert_close(answers.probabilities, expected.probabilities, rtol=1e-4, atol=1e-6)
    assert box.report() == {"queries": N, "cached": 0, "retries": 0, "billed": N}


def test_an_endpoint_of_labels_only(asked: Any, model: Model, digits: ImageSplit) -> None:
    with serve(model, labels_only=True) as url:
        answers = asked(url).predict(digits)
        again = asked(url).predict(digits)
    assert same(answers, Local(model, probabilities=False).predict(digits)) and same(answers, again)


def test_pixels_arrive_as_they_are(asked: Any, digits: ImageSplit) -> None:
    def flat(split: ImageSplit) -> Answers:
        return Answers(torch.zeros(len(split), 1).long(), torch.ones(len(split), 1))

    g = torch.Generator().manual_seed(0)
    colour = torch.randint(0, 256, (5, 6, 7, 3), dtype=torch.uint8, generator=g)
    for images in (digits.images, colour, colour.permute(0, 3, 1, 2).float() / 255):
        n = len(images)
        split = ImageSplit.plain(images, torch.zeros(n).long(), torch.arange(n))
        with serve(flat, classes=["a"]) as url:
            asked(url).predict(split)
            sent = digits.images if images is digits.images else colour
            assert url.seen == [image.numpy().tobytes() for image in sent]


def test_a_picture_of_four_channels_is_refused(asked: Any, model: Model) -> None:
    split = ImageSplit.plain(torch.zeros(2, 8, 8, 4, dtype=torch.uint8), torch.zeros(2).long(), torch.arange(2))
    with serve(model) as url, pytest.raises(UserError, match="1 or 3 channels, not 4"):
        asked(url).predict(split)


def test_pairs_come_in_any_order_and_rounded(asked: Any, digits: ImageSplit) -> None:
    def shuffled(split: ImageSplit) -> Answers:
        return Answers(torch.tensor([[2, 0, 1]] * len(split)), torch.tensor([[0.21, 0.3, 0.495]] * len(split)))

    with serve(shuffled, classes=["a", "b", "c"]) as url:
        answers = asked(url).predict(digits)
    assert answers.classes.tolist() == [[1, 0, 2]] * N
    torch.testing.assert_close(answers.probabilities, torch.tensor([[0.495, 0.3, 0.21]] * N) / 1.005)


# -- endpoints: faults ---------------------------------------------------------------------------------------------

FAULTS = [
    [503],
    [(429, "0")],
    [(429, "0.01"), 503, 500],
    ["drop"],
    ["half", "drop"],
    ["json"],
    ["count", "nan"],
    [None, "label", None, "negative"],
    [None, "sum", "twice"],
    ["classes", "mixed"],
    [502, None, 504, b"", None, b"\xff\xfe\x00"],
    [b"[]", b'{"predictions": null}'],
    [b'{"predictions": [[["x", 1]]]}', "json"],
]


@pytest.mark.parametrize("faults", FAULTS, ids=lambda f: "-".join(str(x) for x in f))
def test_faults_change_no_answer(
    asked: Any, model: Model, digits: ImageSplit, faults: list[Any], tmp_path: Path
) -> None:
    with serve(model) as url:
        expected = asked(url).predict(digits)
    with serve(model, faults) as url:
        box = asked(url)
        assert same(box.predict(digits), expected)
        wrong = [fault for fault in faults if fault is not None]
        assert box.retried == len(wrong) == url.requests - 3
        free = sum(fault == 503 or isinstance(fault, tuple) for fault in wrong)
        # Batches of 8, 8 and 4: each free fault here met a whole one.
        assert box.queries == url.images - 8 * free


def test_a_slow_answer_is_asked_for_again(asked: Any, model: Model, digits: ImageSplit) -> None:
    with serve(model, [None, "slow"]) as url:
        box = asked(url, timeout=2.0)
        answers = box.predict(digits)
        assert box.report() == {"queries": N + 8, "cached": 0, "retries": 1, "billed": N + 8}
    assert torch.equal(answers.classes[:, 0], Local(model).predict(digits).classes[:, 0])


def test_an_answer_that_drips_is_given_up(asked: Any, model: Model, digits: ImageSplit) -> None:
    def drip(handler: Any) -> None:
        handler.send_response(200)
        handler.send_header("Content-Length", "1000000")
        handler.end_headers()
        with contextlib.suppress(ConnectionError):
            for _ in range(1000):
                handler.wfile.write(b" ")
                time.sleep(0.05)

    with serve(model, [drip]) as url, pytest.raises(UserError, match=r"no whole answer within 0\.5 seconds"):
        asked(url, timeout=0.5, retries=0).predict(digits)


def test_an_endless_answer_is_given_up(asked: Any, model: Model, digits: ImageSplit) -> None:
    with serve(model, [b" " * 6_000_000]) as url, pytest.raises(UserError, match=r"answer of more than .* bytes"):
        asked(url, retries=0).predict(digits)


def test_the_waits_double_with_jitter_and_obey_retry_after(
    asked: Any, model: Model, digits: ImageSplit, monkeypatch: pytest.MonkeyPatch
) -> None:
    waits: list[float] = []
    clock = SimpleNamespace(sleep=waits.append, time=time.time, monotonic=time.monotonic)
    monkeypatch.setattr(http, "time", clock)
    soon = email.utils.formatdate(time.time() + 100, usegmt=True)
    faults = [503, 503, 503, (429, "7"), (503, soon), None, (429, "-5"), (429, "nan"), (429, "tomorrow")]
    for _ in range(2):
        with serve(model, faults) as url:
            asked(url, wait=0.5, retries=9).predict(digits)
    assert waits[0] != waits[1] and waits[:4] == waits[8:12]  # from a fixed generator
    assert all(0.25 * 2**i <= w <= 0.5 * 2**i for i, w in enumerate([*waits[:3]]))
    assert waits[3] == 7 and 90 < waits[4] <= 100
    assert all(0.25 * 2**i <= w <= 0.5 * 2**i for i, w in enumerate(waits[5:8]))


@pytest.mark.parametrize(
    ("fault", "says", "tries"),
    [
        (503, "answers with 503", 4),
        (500, "answers with 500", 4),
        ((429, "3600"), "429 Too Many Requests and asks to wait 3,600 seconds", 1),
        (404, r"refuses with 404 Not Found \(not now\)", 1),
        (413, "refuses with 413", 1),
        (501, "refuses with 501", 1),
        ("drop", "breaks the connection", 4),
        ("half", "breaks the connection", 4),
        ("json", "no JSON", 3),
        ("count", "7 predictions for 8 images", 3),
        ("nan", "probability NaN", 3),
        ("negative", r"probability -0\.1", 3),
        ("sum", "the 3 probabilities of an image sum to", 3),
        ("label", "class 3, and the 3 classes are 0 to 2", 3),
        ("twice", "one class twice", 3),
        ("classes", "4 classes for an image instead of 3", 3),
        ("mixed", "probability null", 3),
        (b"\xff\xfe\x00", "no JSON", 3),
        (b"[" * 50_000, "no JSON", 3),
        (b"{}", "predictions", 3),
    ],
    ids=str,
)
def test_what_goes_on_too_long_ends_in_a_sentence(
    asked: Any, digits: ImageSplit, fault: Any, says: str, tries: int
) -> None:
    with serve(net(), [None, *[fault] * tries]) as url:
        box = asked(url, retries=3)
        with pytest.raises(UserError, match=says) as caught:
            box.predict(digits)
        assert url.rstrip("/") in sentence(caught) and "the same command goes on from there" in str(caught.value)
        assert url.requests == 1 + tries
        box = asked(url)  # and so it does
        box.predict(digits)
        refused = fault == 503 or isinstance(fault, tuple) or fault in (404, 413)
        billed = N if refused else N + 8 * tries
        assert box.report() == {"queries": N - 8, "cached": 8, "retries": 0, "billed": billed}


def test_mixed_answers_are_refused_across_batches(asked: Any, digits: ImageSplit) -> None:
    with serve(net(), [None, "mixed", "mixed", "mixed"], top=1) as url, pytest.raises(UserError) as caught:
        asked(url).predict(digits)
    assert "labels only for others" in sentence(caught)


def test_no_redirection_is_followed(asked: Any, model: Model, digits: ImageSplit) -> None:
    with serve(model) as other:

        def moved(handler: Any) -> None:
            handler.send_response(302)
            handler.send_header("Location", other + "?key=secret")
            handler.send_header("Content-Length", "0")
            handler.end_headers()

        with serve(model, [moved]) as url, pytest.raises(UserError, match="points to http://127") as caught:
            asked(url).predict(digits)
        assert other in sentence(caught) and "secret" not in str(caught.value)
        assert other.requests == 0


def test_an_endpoint_that_stops_is_gone_on_with(asked: Any, model: Model, digits: ImageSplit, tmp_path: Path) -> None:
    with serve(model, [None, "stop"]) as url:
        box = asked(url, retries=2)
        with pytest.raises(
            UserError, match=r"cannot be reached \(Connection refused\), and is given up after 3"
        ) as caught:
            box.predict(digits)
        sentence(caught)
        assert box.queries == 16  # one answered, one broken off, two refused


@pytest.mark.parametrize(
    ("opening", "says"),
    [
        ([b"hello"] * 3, "no JSON"),
        ([b"[1]"] * 3, "a GET should give"),
        ([b'{"classes": []}'] * 3, "a GET should give"),
        ([b'{"classes": "abc"}'] * 3, "a GET should give"),
        ([b'{"classes": [1, 2]}'] * 3, "a GET should give"),
        ([b'{"classes": ["\\ud800"]}'] * 3, "cannot be printed"),
        ([b'{"classes": ["a", "b"], "top": 3}'] * 3, "top is 3 of 2 classes"),
        ([b'{"classes": ["a", "b"], "top": true}'] * 3, "top is true"),
        ([b'{"classes": ["a", "b"], "top": [[]]}'] * 3, "top is a list"),
        ([503] * 9, "answers with 503"),
        ([401], "refuses with 401"),
    ],
    ids=str,
)
def test_an_endpoint_that_does_not_say_what_it_is(asked: Any, model: Model, opening: list[Any], says: str) -> None:
    with serve(model, opening=opening) as url, pytest.raises(UserError, match=says) as caught:
        asked(url)
    assert url.rstrip("/") in sentence(caught) and "kept" not in str(caught.value)
    with serve(model, opening=[503, "drop", b"?"]) as url:
        assert asked(url).retried == 3


@settings(max_examples=60)
@given(garbage=st.binary(max_size=300), whole=st.booleans(), opening=st.booleans())
def test_garbage_is_never_a_traceback(garbage: bytes, whole: bool, opening: bool, digits: ImageSplit) -> None:
    def raw(handler: Any) -> None:
        handler.wfile.write(garbage)
        handler.connection.shutdown(2)

    faults: list[Any] = [raw if whole else garbage] * 3
    posts, gets = ([], faults) if opening else (faults, [])
    with serve(net(), posts, opening=gets) as url, tempfile.TemporaryDirectory() as cache:
        with pytest.raises(UserError) as caught:
            Http(url, retries=1, wait=0.0, cache=Path(cache)).predict(digits)
        assert url.rstrip("/") in sentence(caught)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=8,
)


@settings(max_examples=300)
@given(said=JSON, rows=JSON, n=st.integers(1, 3), top=st.integers(1, 3))
def test_any_json_is_read_or_refused(said: Any, rows: Any, n: int, top: int) -> None:
    for value in (said, {"predictions": said}, {"predictions": [said] * n}, {"predictions": [[said, rows]] * n},
                  {"predictions": [[[rows, said]] * top] * n}, {"classes": [said, rows], "top": said}):  # fmt: skip
        for read in (wire.read_facts, lambda v: wire.read_answers(v, n, 3, top, None)):
            with contextlib.suppress(Fault):
                assert len(read(value)) in (n, 2)


# -- endpoints: the cache ------------------------------------------------------------------------------------------


def test_a_second_run_asks_nothing(asked: Any, model: Model, digits: ImageSplit) -> None:
    with serve(model) as url:
        first = asked(url).predict(digits)
        box = asked(url, budget=0, batch_size=3)
        assert same(box.predict(digits), first)
        order = torch.arange(N).flip(0)
        turned = box.predict(digits.subset(order))
        assert url.images == N and box.report() == {"queries": 0, "cached": 2 * N, "retries": 0, "billed": N}
    assert torch.equal(turned.classes, first.classes[order])


def test_the_same_image_is_asked_for_once(asked: Any, model: Model, digits: ImageSplit) -> None:
    index = torch.tensor([0, 1, 0, 2, 1, 0])
    with serve(model) as url:
        box = asked(url, batch_size=2)
        answers = box.predict(digits.subset(index))
        assert url.images == 3 and box.report() == {"queries": 3, "cached": 3, "retries": 0, "billed": 3}
    expected = Local(model).predict(digits.subset(index))
    assert torch.equal(answers.classes[:, 0], expected.classes[:, 0])
    assert torch.equal(answers.probabilities[0], answers.probabilities[5])


def test_equal_bytes_of_another_shape_are_another_image(asked: Any) -> None:
    def by_height(split: ImageSplit) -> Answers:
        c = torch.full((len(split), 1), int(split.shape[1] == 4))
        return Answers(c, torch.ones(len(split), 1))

    pixels = torch.arange(64, dtype=torch.uint8)
    with serve(by_height, classes=["a", "b"], top=1) as url:
        for i, shape in enumerate(((1, 8, 8, 1), (1, 4, 16, 1))):
            split = ImageSplit.plain(pixels.view(shape), torch.zeros(1).long(), torch.arange(1))
            assert asked(url).predict(split).classes.tolist() == [[i]]


def test_it_goes_on_where_it_broke_off(asked: Any, model: Model, digits: ImageSplit) -> None:
    with serve(model) as url:
        expected = asked(url).predict(digits)
    with serve(model, [None, None, 404]) as url:
        with pytest.raises(UserError, match="goes on from there"):
            asked(url).predict(digits)
        box = asked(url)
        assert same(box.predict(digits), expected)
        assert box.report() == {"queries": 4, "cached": 16, "retries": 0, "billed": N}


def test_a_killed_process_loses_one_batch_at_most(model: Model, digits: ImageSplit, tmp_path: Path) -> None:
    code = textwrap.dedent("""
        import sys, torch
        from upcycle.data import load
        from upcycle.predictors.http import Http
        split = load("digits").test.subset(torch.arange(20))
        Http(sys.argv[1], cache=sys.argv[2], batch_size=4, wait=0.0).predict(split)
    """)
    killed: list[subprocess.Popen[bytes]] = []

    def kill(handler: Any) -> None:
        killed[0].send_signal(signal.SIGKILL)

    with serve(model, [None, None, kill]) as url:
        child = subprocess.Popen([sys.executable, "-c", code, url, str(tmp_path)])
        killed.append(child)
        assert child.wait(120) == -signal.SIGKILL
        box = Http(url, cache=tmp_path, batch_size=4)
        box.predict(digits)
        assert box.report() == {"queries": 12, "cached": 8, "retries": 0, "billed": 24}  # four died with it


def test_two_endpoints_do_not_share_answers(asked: Any, model: Model, digits: ImageSplit, tmp_path: Path) -> None:
    with serve(model) as url, serve(model) as other:
        for address in (url, url + "?model=b", other):
            asked(address).predict(digits)
        assert url.images == 2 * N and other.images == N
    files = list((tmp_path / "cache").glob("*.sqlite"))
    assert len(files) == 3 and all("127.0.0.1" in f.name for f in files)


@pytest.mark.parametrize("change", [{"classes": list("abd")}, {"classes": list("abcd")}, {"top": 2}], ids=str)
def test_other_classes_than_the_cache_are_refused(
    asked: Any, digits: ImageSplit, tmp_path: Path, change: dict[str, Any]
) -> None:
    changed = json.dumps({"classes": list("abc"), "top": None} | change).encode()
    with serve(net(), opening=[None, changed]) as url:
        asked(url).predict(digits)
        with pytest.raises(UserError, match="has changed") as caught:
            asked(url)
        assert "move that file away" in sentence(caught) and str(tmp_path) in str(caught.value)
        asked(url, budget=0).predict(digits)  # it is as before again


def test_the_default_place(model: Model, digits: ImageSplit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with serve(model) as url:
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
        Http(url).predict(digits)
        assert len(list((tmp_path / "xdg/upcycle/answers").glob("*.sqlite"))) == 1
        monkeypatch.delenv("XDG_CACHE_HOME")
        monkeypatch.setenv("HOME", str(tmp_path / "home"))
        Http(url)
        assert len(list((tmp_path / "home/.cache/upcycle/answers").iterdir())) == 1


def test_a_damaged_cache_is_named(asked: Any, digits: ImageSplit) -> None:
    """Flipped bits and cut ends: an error that names the file, or the right answers; nothing else."""
    with serve(net()) as url:
        box = asked(url)
        expected, path = box.predict(digits), box._answers.path
        whole = path.read_bytes()
        draw, named, other = random.Random(0), 0, 0
        for i in range(120):
            content = bytearray(whole)
            if i % 4:
                content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
            else:
                del content[draw.randrange(1, len(content)) :]
            path.write_bytes(content)
            try:
                answers = asked(url).predict(digits)  # what is lost is asked for again, in other batches
                assert torch.equal(answers.classes, expected.classes)
                torch.testing.assert_close(answers.probabilities, expected.probabilities, rtol=1e-4, atol=1e-6)
            except UserError as error:
                named += str(path) in str(error)
                other += str(path) not in str(error)
        assert named > 20 and not other  # the rest hit what SQLite does not use

        path.write_bytes(whole)
        database = sqlite3.connect(path)
        with database:
            database.execute("UPDATE answers SET content = zeroblob(24) WHERE length(key) = 32")
        database.close()
        with pytest.raises(UserError, match=r"is damaged .*checksum.* move it away") as caught:
            asked(url).predict(digits)
        assert str(path) in sentence(caught)


def test_a_cache_that_cannot_be_written_is_named(model: Model, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with serve(model) as url, pytest.raises(UserError, match="cannot be read or written") as caught:
        Http(url, cache=tmp_path / "file" / "cache")
    sentence(caught)


# -- endpoints: the budget -----------------------------------------------------------------------------------------


def test_too_small_a_budget_sends_nothing(asked: Any, model: Model, digits: ImageSplit) -> None:
    with serve(model) as url:
        with pytest.raises(
            UserError, match=r"20 images, more than the budget of 19 allows;.* with a budget of 20 goes on"
        ) as caught:
            asked(url, budget=19).predict(digits)
        sentence(caught)
        assert url.requests == 0
        asked(url, budget=5).predict(digits.subset(torch.arange(5)))
        box = asked(url, budget=N)  # what is cached costs nothing more
        box.predict(digits)
        assert url.images == N and box.queries == 15


def test_a_budget_is_of_all_that_one_object_asks(asked: Any, model: Model, digits: ImageSplit) -> None:
    with serve(model) as url:
        box = asked(url, budget=12)
        box.predict(digits.subset(torch.arange(10)))
        with pytest.raises(UserError, match="10 images, more than the budget of 12 allows, of which 10 are used"):
            box.predict(digits)
        assert url.images == 10


@pytest.mark.parametrize("fault", ["json", "nan", "drop", "half", 500, 504])
def test_retries_count_where_they_may_be_billed(asked: Any, digits: ImageSplit, fault: Any) -> None:
    with serve(net(), [None, fault]) as url:
        box = asked(url, budget=N + 7)
        with pytest.raises(
            UserError,
            match=r"12 images, more than the budget of 27 allows, of which 16 are used.* a budget of 28 goes on",
        ):
            box.predict(digits)
        assert url.images == box.queries == 16
        box = asked(url, budget=28)  # the same command with that budget goes on from there
        box.predict(digits)
        assert url.images == 28 and box.cached == 8


def test_refusals_are_free(asked: Any, model: Model, digits: ImageSplit) -> None:
    with serve(model, [503, (429, "0"), None, 503]) as url:
        box = asked(url, budget=N)
        box.predict(digits)
        assert box.queries == N and url.images > N and box.retried == 3


@settings(max_examples=25)
@given(
    faults=st.lists(st.sampled_from([None, None, 429, 503, 500, "json", "drop", "count", "nan", 404]), max_size=8),
    budget=st.integers(0, 40),
    batch_size=st.integers(1, 9),
)
def test_no_schedule_of_faults_exceeds_a_budget(
    faults: list[Any], budget: int, batch_size: int, digits: ImageSplit
) -> None:
    some = digits.subset(torch.arange(9))
    # A cache of its own: ports come again.
    with serve(net(), faults) as url, tempfile.TemporaryDirectory() as cache:
        box = Http(url, budget=budget, batch_size=batch_size, cache=Path(cache), wait=0.0)
        with contextlib.suppress(UserError):
            answers = box.predict(some)
            assert torch.equal(answers.classes[:, 0], Local(net()).predict(some).classes[:, 0])
        assert box.queries <= budget
        # What our count leaves out of all that came was refused, and there is a fault for each such request.
        refused = sum(fault in (429, 503, 404) for fault in faults[: url.requests])
        assert box.queries <= url.images <= box.queries + refused * batch_size
        assert url.requests - len(faults) <= 9


# -- from a reference ----------------------------------------------------------------------------------------------


def test_a_predictor_from_each_kind_of_reference(model: Model, digits: ImageSplit, tmp_path: Path) -> None:
    assert isinstance(predictor("zoo:digits_teacher", top=2), Local)
    assert isinstance(predictor(model), Local)
    save(model, tmp_path / "saved")
    assert same(predictor(tmp_path / "saved").predict(digits), predictor(model).predict(digits))
    with serve(model) as url:
        assert isinstance(box := predictor(url, cache=tmp_path, budget=3), Http) and box.budget == 3
    file = to_onnx(Net(), tmp_path / "net.onnx")
    for reference in (file, str(file)):
        assert isinstance(predictor(reference, mean=(0.0,), std=(1.0,)), OnnxFile)


def test_wrong_references_and_options_are_named(tmp_path: Path) -> None:
    for reference, says in (
        ("zoo:digits_teachr", "Did you mean 'digits_teacher'"),
        ("nothing", "no model reference"),
        (str(tmp_path / "no.onnx"), "There is no file"),
        ("http://", "no address of an endpoint"),
        ("http://host:99999/", "no address of an endpoint"),
        ("http://host/a b", "no address of an endpoint"),
        ("https://[::1/", "no address of an endpoint"),
        ("https://me:word@host/", "carries no name and password"),
    ):
        with pytest.raises(UserError, match=says) as caught:
            check_predictor(reference)
        assert "word@" not in str(caught.value)
        with pytest.raises(UserError, match=re.escape(str(caught.value))):
            predictor(reference)
    for reference in ("zoo:digits_teacher", "http://host:8000/path?key=1", "HTTPS://HOST"):
        check_predictor(reference)
    with pytest.raises(UserError, match=r"no option of Local 'budget'\. Known: top"):
        predictor("zoo:digits_teacher", budget=3)
    with pytest.raises(UserError, match=r"option of Http 'buget'\. Did you mean 'budget'"):
        predictor("http://127.0.0.1:1/", buget=3)
    for options, says in (({"batch_size": 0}, "batch_size"), ({"budget": -1}, "budget"), ({"timeout": 0.0}, "timeout"),
                          ({"retries": -1}, "retries"), ({"wait": float("nan")}, "wait")):  # fmt: skip
        with pytest.raises(UserError, match=says):
            Http("http://127.0.0.1:1/", **options)


def test_a_secret_in_an_address_is_never_shown(asked: Any, model: Model, digits: ImageSplit, tmp_path: Path) -> None:
    with serve(model, [404]) as url:
        box = asked(url + "?key=secret")
        with pytest.raises(UserError) as caught:
            box.predict(digits)
        assert "secret" not in str(caught.value) and "secret" not in box.name
        assert not any("secret" in p.name or b"secret" in p.read_bytes() for p in (tmp_path / "cache").iterdir())


def test_the_adapter_of_the_documentation_works(
    digits: ImageSplit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The text of the module docstring, on a free port, before an API that tells bright images from dark ones."""
    _, _, rest = (http.__doc__ or "").partition("for the API::\n")
    code = textwrap.dedent(rest).replace("8000", "0")
    head, _, tail = code.rpartition("http.server.ThreadingHTTPServer")
    assert len(code.strip().splitlines()) <= 25 and tail.endswith(".serve_forever()\n")

    def ask(png: bytes) -> list[list[Any]]:
        return [[int(np.array(Image.open(io.BytesIO(png))).mean() > 80), None]]

    space: dict[str, Any] = {"ask": ask, "NAMES": ["dark", "bright"]}
    exec(head, space)
    adapter = space["Adapter"]
    adapter.log_message = lambda *args: None
    with ThreadingHTTPServer(("127.0.0.1", 0), adapter) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        monkeypatch.setenv("no_proxy", "127.0.0.1")
        answers = Http(f"http://127.0.0.1:{server.server_port}/", cache=tmp_path).predict(digits)
        server.shutdown()
    bright = digits.images.float().mean((1, 2, 3)) > 80
    assert torch.equal(answers.classes[:, 0], bright.long()) and 0 < bright.sum() < N
    assert base64.b64decode(wire.as_png(digits.images[0].numpy())).startswith(b"\x89PNG")
