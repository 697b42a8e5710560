"""The promises, for every method through one settings table (tests/settings.py)."""

from __future__ import annotations

import dataclasses
import json
import re
import socket
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.settings import ROWS, tiny_data, tiny_net
from tests.stops import Killed, StopsAfter
from upcycle.core import lock, once
from upcycle.core.errors import UserError
from upcycle.core.run import Run
from upcycle.core.store import tensor_digest
from upcycle.data.on_disk import Held, OnDisk
from upcycle.data.pixels import Form
from upcycle.data.streams import Stream
from upcycle.verbs.methods import all_methods

EACH = pytest.mark.parametrize("name", ROWS)


def fit(name: str, run: Run, n: int = 160) -> dict[str, Tensor]:
    data, method = ROWS[name].data(n), ROWS[name].make()
    method.begin(run, data)
    state = method.fit(run, data).state_dict()
    run.close()
    return state


def is_lock(file: Path) -> bool:
    return file.name == lock.NAME and not file.stat().st_size


def test_every_method_has_a_row() -> None:
    assert {m.card.name for m in all_methods()} == {row.method.card.name for row in ROWS.values()}


@EACH
def test_p1_killed_anywhere_the_same_bits(name: str, tmp_path: Path) -> None:
    whole = StopsAfter(tmp_path / "whole", seed=4, save_every=0)
    expected = tensor_digest(fit(name, whole))
    log = (tmp_path / "whole" / "metrics.csv").read_text()
    n = whole.done
    for share in (0.1, 0.55, 0.97):
        out = tmp_path / str(share)
        run = StopsAfter(out, seed=4, save_every=0)
        run.due = max(1, int(share * n))
        with pytest.raises(Killed):
            fit(name, run)
        assert tensor_digest(fit(name, Run(out, seed=4, save_every=0, resume=True))) == expected
        assert (out / "metrics.csv").read_text() == log


@EACH
def test_p2_a_run_directory_is_data(name: str, tmp_path: Path) -> None:
    fit(name, Run(tmp_path, save_every=0))
    for file in tmp_path.rglob("*"):
        if file.is_file() and file.parent.name != "events":
            images = {".parquet", ".md"} if file.parent.name == "pool" else set()
            assert file.suffix in {".safetensors", ".json", ".yaml", ".csv", ".txt"} | images or is_lock(file), file
            assert b"cpickle" not in file.read_bytes()[:64].lower()
    assert not list(tmp_path.rglob("*.tmp"))


@EACH
def test_p3_corruption_is_named(name: str, tmp_path: Path) -> None:
    fit(name, Run(tmp_path, save_every=0))
    g = torch.Generator().manual_seed(0)
    for file in sorted((tmp_path / "checkpoints").iterdir()):
        content = file.read_bytes()
        for _ in range(3):
            at, bit = int(torch.randint(len(content), (), generator=g)), int(torch.randint(8, (), generator=g))
            flipped = bytearray(content)
            flipped[at] ^= 1 << bit
            for damaged in (bytes(flipped), content[:at]):
                file.write_bytes(damaged)
                with pytest.raises(UserError, match=file.name):
                    fit(name, Run(tmp_path, save_every=0, resume=True))
        file.write_bytes(content)


@EACH
def test_p13_a_run_goes_on_only_with_what_it_was_begun_with(name: str, tmp_path: Path) -> None:
    run = StopsAfter(tmp_path, seed=4, save_every=0)
    run.due = 1
    with pytest.raises(Killed):
        fit(name, run)
    names = ROWS[name].make().inputs(ROWS[name].data(160))
    for field in (*ROWS[name].method.roles, *ROWS[name].method.given):
        assert any(re.search(rf"\b{field}\b", one) for one in names), field
    for one in names:
        method, data = ROWS[name].make(), ROWS[name].data(160)
        data = spoil(one, method, data, ROWS[name].other)
        if "classes" in one or one.endswith("of past"):  # which may not even fit, and that is another refusal
            method.check = lambda data: []  # type: ignore[method-assign]
        with pytest.raises(UserError, match=f"^{one[:1].upper()}{one[1:]}( and .*)? differ from those that"):
            method.begin(Run(tmp_path, seed=4, resume=True), data)


def spoil(name: str, method: Any, data: Any, change: Callable[[Any], Any]) -> Any:
    """Change the one input of ``method`` that is called ``name``, in place where it is no data; returns the data."""
    if column := re.fullmatch(r"the column (\w+)", name):
        turned = {column[1]: 1 - data.columns[column[1]]}
        parts = ("train", "validation", "test")
        return dataclasses.replace(data, **{p: dataclasses.replace(getattr(data, p), columns=turned) for p in parts})
    samples = r"the (labels of the )?(training|validation|test) (?:images|graphs|nodes)"
    found = re.fullmatch(rf"({samples}|the names of the classes|the tasks of the stream)(?: of (\w+))?", name)
    if found and found[4]:
        setattr(method, found[4], other(getattr(method, found[4]), found[1], found[2], found[3], change))
    elif found:
        return other(data, found[1], found[2], found[3], change)
    else:
        what, field, number = re.fullmatch(r"the ([\w ]+) of (?:the )?(\w+)(?: (\d+))?", name).groups()  # type: ignore[union-attr]
        value = getattr(method, field)
        thing = value[int(number) - 1] if number else value
        if what == "weights":
            module = getattr(thing, "model", thing)
            with torch.no_grad():
                next(p for p in module.module.parameters() if p.numel()).view(-1)[0] += 1
        elif what == "values":
            method.check = lambda data: []  # which would make them anew
            setattr(method, field, thing.flip(0))
        elif thing is None:
            setattr(method, field, SimpleNamespace(digest="another"))
        elif what == "contents":
            thing.name = "another"
        else:
            at = getattr(thing, "model", thing)
            at.classes = tuple(reversed(at.classes))
    return data


def other(data: Any, what: str, labels: str | None, word: str | None, change: Callable[[Any], Any]) -> Any:
    """``data`` with another first sample, first label, class name, or order of tasks."""
    if isinstance(data, Stream):
        if what == "the tasks of the stream":
            return dataclasses.replace(data, order={**data.order, "seed": 77})
        make = data.make
        return dataclasses.replace(
            data,
            base=other(data.base, what, labels, word, change),
            make=lambda t: other(make(t), what, labels, word, change),
        )
    if word is None:
        return dataclasses.replace(data, classes=("another", *data.classes[1:]))
    key = {"training": "train"}.get(word, word)
    split = getattr(data, key)
    if labels is None:
        return dataclasses.replace(data, **{key: change(split)})
    changed = split.labels.clone()
    changed[0] = 1 - changed[0].clamp(0, 1)
    return dataclasses.replace(data, **{key: dataclasses.replace(split, labels=changed)})


@EACH
def test_p4_same_seed_same_bits_another_seed_others(name: str) -> None:
    a, b, c = (tensor_digest(fit(name, Run(None, seed=s))) for s in (1, 1, 2))
    assert a == b
    assert (b != c) == ROWS[name].draws


@EACH
def test_p6_a_bad_number_stops_before_harm(name: str, tmp_path: Path) -> None:
    data, method = ROWS[name].data(160), ROWS[name].make()
    if method.card.needs.data == "none":  # it sees no images but its own
        next(method.model("teacher", data).module.parameters()).data[0] = float("nan")  # type: ignore[attr-defined]
    else:
        ROWS[name].spoil(data)
    networks = [method.model("student", data)] if "student" in method.roles else []
    for role in set(method.roles) - {"teacher", "student"}:
        several = isinstance(getattr(method, role), tuple)
        networks += method.models(role, data) if several else [method.model(role, data)]
    with pytest.raises(UserError, match=r"not a finite|NaN|not finite|infinite"):
        method.fit(Run(tmp_path, save_every=0), data)
    assert all(p.isfinite().all() for network in networks for p in network.module.parameters())


def _validated(run: Run) -> dict[tuple[str, str, str], float]:
    """The figures of a network in the course of a run, by stage, epoch and name."""
    found = {}
    for path, epoch, _, key, value in run.journal.rows:
        if key.startswith("validation"):
            found[path, str(epoch), key] = float(value)
    return found


Fitted = tuple[dict[str, Tensor], dict[tuple[str, str, str], float]]


def _two_ranks(name: str) -> Fitted:
    run = Run(None, seed=3, devices=2, accelerator="cpu", precision="64-true")
    return fit(name, run, n=211), _validated(run)


def _same(one: Fitted, both: list[Fitted]) -> None:
    for found, figures in both:
        for key, value in one[0].items():
            assert float((found[key] - value).abs().max()) <= 1e-10, key
        assert figures == pytest.approx(one[1], rel=1e-5)  # of logits in float32


@pytest.mark.xdist_group("ranks")
@EACH
def test_p9_two_processes_equal_one(name: str, ranks: Any) -> None:
    run = Run(None, seed=3, precision="64-true")
    one = fit(name, run, n=211), _validated(run)
    _same(one, ranks(_two_ranks, name))


def _from_disk(name: str) -> Fitted:
    """As :func:`_two_ranks`, with images that threads read as they are used, out of memory that the ranks share."""
    run = Run(None, seed=3, devices=2, accelerator="cpu", precision="64-true")
    once.LEAST = 1
    data = once.once(lambda: ROWS[name].data(211))
    splits = {}
    for part, split in data.splits().items():
        n = len(split)
        places = torch.stack([torch.zeros(n, dtype=torch.int64), torch.arange(n)], 1)
        digests = torch.zeros(n, 16, dtype=torch.uint8)
        one = tuple(split.images.shape[1:])
        images = OnDisk(sources=((Held(split.images), Form()),), places=places, digests=digests, one=one, num_workers=2)
        splits[part] = dataclasses.replace(split, images=images)
    data, method = dataclasses.replace(data, **splits), ROWS[name].make()
    method.begin(run, data)
    return method.fit(run, data).state_dict(), _validated(run)


@pytest.mark.xdist_group("ranks")
@pytest.mark.parametrize("name", ["kd", "vam", "dine"])
def test_p9_for_images_on_disk_and_in_shared_memory(name: str, ranks: Any) -> None:
    run = Run(None, seed=3, precision="64-true")
    one = fit(name, run, n=211), _validated(run)
    assert one[1]
    _same(one, ranks(_from_disk, name))


def _divided(answered: list[int]) -> Any:
    run, data, net = Run(None, devices=2, accelerator="cpu"), tiny_data(), tiny_net(3).eval()
    split = data.train.with_others([data.validation, data.test])
    batch = split.batch
    split.batch = lambda index, **kwargs: answered.extend(index.tolist()) or batch(index, **kwargs)  # type: ignore[method-assign,func-returns-value]
    return run.evaluate(net, split), answered


@pytest.mark.xdist_group("ranks")
def test_p9_evaluation_is_divided_and_its_figures_are_those_of_one_process(ranks: Any) -> None:
    data = tiny_data()
    split = data.train.with_others([data.validation, data.test])
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as the ranks have
    one = Run(None).evaluate(tiny_net(3).eval(), split)
    torch.set_num_threads(threads)
    (first, mine), (second, theirs) = ranks(_divided, [])
    assert first == second == one
    assert {*mine, *theirs} == {*range(260)} and {*mine} & {*theirs} == {*range(16)}  # all see the first portion


@EACH
def test_p8_the_network_is_optional(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("something asked for the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    fit(name, Run(None))


@EACH
def test_what_fit_returns_is_an_ordinary_module(name: str) -> None:
    data, row = ROWS[name].data(160), ROWS[name]
    net = row.make().fit(Run(None), data)
    distils = row.method.__module__.startswith("upcycle.distillation")
    if distils and "product" not in vars(row.method):  # others make new architectures
        expected = row.make().model("student", data).module  # type: ignore[attr-defined]
        shapes = {k: v.shape for k, v in expected.state_dict().items()}
        assert {k: v.shape for k, v in net.state_dict().items()} == shapes
    for m in net.modules():
        assert not m._forward_hooks and not m._forward_pre_hooks and "forward" not in m.__dict__
    assert not any(m.training for m in net.modules())
    assert all(p.requires_grad and p.dtype == torch.float32 and p.device.type == "cpu" for p in net.parameters())


def test_results_are_json(tmp_path: Path) -> None:
    run = Run(tmp_path)
    run.picture("a", {"kind": "bars", "title": "t", "caption": "c", "items": []})
    assert json.loads((tmp_path / "pictures" / "a.json").read_text())["kind"] == "bars"


def _with_gather(ranks: int) -> Tensor:
    """Descend a loss of all pairs in the global batch: the spread of its outputs."""
    run, data = Run(None, seed=3, devices=ranks, accelerator="cpu", precision="64-true"), tiny_data(160)
    torch.manual_seed(0)
    net, optimizer = run.setup(torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 4)),
                               lambda m: torch.optim.SGD(m.parameters(), lr=0.1))  # fmt: skip
    for _ in run.epochs(2):
        for images, _, _ in run.batches(data.train, 32):
            z = run.gather(torch.tanh(net(images)))
            run.backward((z @ z.T).square().mean(), reduction="global")
            run.update(optimizer)
    return run.plain(net)[1].weight.detach()


@pytest.mark.xdist_group("ranks")
def test_a_loss_of_the_gathered_batch_is_the_same_on_two_processes(ranks: Any) -> None:
    one = _with_gather(1)
    for found in ranks(_with_gather, 2):
        assert float((found - one).abs().max()) <= 1e-10
