"""A budget is of all that an endpoint was sent, whoever sent it; a cache is checked like answers."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sqlite3
import subprocess
import sys
import textwrap
import threading
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.predictor_server import serve
from tests.settings import fitted
from upcycle.core.errors import UserError
from upcycle.core.store import tensor_digest
from upcycle.data import ImageSplit, load
from upcycle.predictors import Answers
from upcycle.predictors.cache import AnswerFile
from upcycle.predictors.http import Http

N = 210  # images that one command asks for: 160 to train, 50 to measure
BATCH = 32

# Forks commands, so that each starts at once. It has one thread, which makes that safe.
COMMANDS = """
    import json, os, sys
    from tests.settings import tiny_data
    from upcycle.core.errors import UserError
    from upcycle.verbs.adapt import adapt
    data = tiny_data()
    for line in sys.stdin:
        if line == "wait\\n":
            print(os.waitstatus_to_exitcode(os.waitpid(-1, 0)[1]), flush=True)
            continue
        given = json.loads(line)
        pid = os.fork()
        if pid:
            print(pid, flush=True)
            continue
        try:
            adapt(data=data, student="zoo:convnet_small", epochs_tune=1, control=False, quiet=True,
                  bottleneck={"width": 16, "backbone_rate": 1.0}, recipe={"epochs": 2, "batch_size": 32}, **given)
        except UserError as error:
            print(error, file=sys.stderr, flush=True)
            os._exit(2)
        os._exit(0)
"""


class Commands:
    """``adapt --method dine`` in processes of their own, on one data set, with one cache."""

    def __init__(self, child: subprocess.Popen[str], said: Path, cache: Path) -> None:
        self.child, self.said, self.cache = child, said, cache
        self.pid = 0

    def start(self, url: str, out: Path, budget: int) -> int:
        """Begin one, or go on with it; its process."""
        given = {
            "model": str(url),
            "method": "dine",
            "out": str(out),
            "cache": str(self.cache),
            "budget": budget,
            "resume": (out / "config.yaml").exists(),
        }
        self.pid = int(self._say(json.dumps(given)))
        return self.pid

    def wait(self) -> int:
        """The exit status of one that was begun."""
        return int(self._say("wait"))

    def _say(self, line: str) -> str:
        assert self.child.stdin is not None and self.child.stdout is not None
        print(line, file=self.child.stdin, flush=True)
        return self.child.stdout.readline()


@pytest.fixture(scope="module")
def child(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[subprocess.Popen[str], Path]]:
    said = tmp_path_factory.mktemp("said") / "stderr"
    with said.open("w") as errors:
        code = [sys.executable, "-c", textwrap.dedent(COMMANDS)]
        environment = {**os.environ, "no_proxy": "127.0.0.1", "OMP_NUM_THREADS": "1"}
        with subprocess.Popen(code, stdin=-1, stdout=-1, stderr=errors, text=True, env=environment) as process:
            yield process, said
            assert process.stdin is not None
            process.stdin.close()


@pytest.fixture
def commands(child: tuple[subprocess.Popen[str], Path], tmp_path: Path) -> Commands:
    return Commands(*child, tmp_path / "cache")


def weights(out: Path) -> str:
    from safetensors.torch import load_file

    return tensor_digest(load_file(next((out / "model").glob("*.safetensors"))))


@pytest.mark.slow
def test_ten_kills_and_two_at_a_time_keep_the_budget_and_the_bits(commands: Commands, tmp_path: Path) -> None:
    """Nine die while they wait for answers, with a batch that is paid and lost; one dies between two batches."""

    def kill(handler: Any) -> None:
        os.kill(commands.pid, signal.SIGKILL)

    def kill_after(handler: Any) -> None:
        threading.Timer(0.1, kill, [handler]).start()
        handler.send(503, b"later", {"Retry-After": "5"})

    model, budget = fitted("api", 7), N + 9 * BATCH
    with serve(model, top=1) as url:
        commands.start(url, tmp_path / "clean", N)
        assert commands.wait() == 0 and url.images == N
    fates = [kill, kill, None, kill, kill, None, kill_after, kill, None, None, kill, kill, None, kill, kill]
    assert sum(callable(fate) for fate in fates) == 10
    with serve(model, fates, top=1) as url:
        for _ in range(10):
            commands.start(url, tmp_path / "run", budget)
            assert commands.wait() == -signal.SIGKILL
            assert url.images <= budget
        for out in ("run", "beside"):
            commands.start(url, tmp_path / out, budget)
        assert commands.wait() == commands.wait() == 0, commands.said.read_text()
        assert url.images == budget + BATCH  # of which one batch was refused, which is free
        assert len(set(url.seen)) == N
        commands.start(url, tmp_path / "another", budget)  # the whole of it is used, and not needed
        assert commands.wait() == 0 and url.images == budget + BATCH
    assert weights(tmp_path / "clean") == weights(tmp_path / "run") == weights(tmp_path / "beside")


def test_who_is_killed_has_paid_and_is_told_what_goes_on(commands: Commands, tmp_path: Path) -> None:
    def kill(handler: Any) -> None:
        os.kill(commands.pid, signal.SIGKILL)

    with serve(fitted("api", 7), [None, kill], top=1) as url:
        commands.start(url, tmp_path / "run", N)
        assert commands.wait() == -signal.SIGKILL and url.images == 2 * BATCH
        commands.start(url, tmp_path / "run", N)
        assert commands.wait() == 2 and url.images == 2 * BATCH
        said = commands.said.read_text().splitlines()[-1]
        assert f"still to be asked for {N - BATCH} images, more than the budget of {N} allows, of which 64" in said
        assert said.endswith(f"the same command with a budget of {N + BATCH} goes on from there.")
        commands.start(url, tmp_path / "run", N + BATCH)
        assert commands.wait() == 0 and url.images == N + BATCH


# -- in one process -----------------------------------------------------------------------------------------------


def flat(split: ImageSplit) -> Answers:
    """Two of three classes, by a pixel."""
    c = (split.images[:, 2, 2, 0] > 100).long()
    return Answers(torch.stack([c, c + 1], 1), torch.tensor([[0.6, 0.3]]).expand(len(split), 2))


def some(n: int) -> ImageSplit:
    return load("digits").test.subset(torch.arange(n))


def test_many_at_a_time_send_each_image_once(tmp_path: Path) -> None:
    split, faults = some(40), [None, 503, None, (429, "0"), 503]
    found: list[Answers] = []
    with serve(flat, faults, classes=["a", "b", "c"], top=2) as url:

        def one(batch_size: int, reverse: bool) -> None:
            box = Http(url, cache=tmp_path, wait=0.0, batch_size=batch_size, budget=40)
            index = torch.arange(40).flip(0) if reverse else torch.arange(40)
            found.append(box.predict(split.subset(index)))

        threads = [
            threading.Thread(target=one, args=(b, r)) for b, r in ((8, False), (8, False), (5, True), (7, False))
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        box = Http(url, cache=tmp_path)
        assert len(found) == 4 and box.report()["billed"] == 40
        assert len(set(url.seen)) == 40 and url.images <= 40 + 3 * 8  # three batches were refused


def test_who_waits_comes_before_who_has_just_been(tmp_path: Path) -> None:
    files = [AnswerFile(tmp_path / "a.sqlite", "box", {"classes": ["a"], "top": 1}) for _ in range(2)]
    order: list[int] = []

    def ask(i: int) -> None:
        for _ in range(3):
            with files[i].turn(30.0):
                order.append(i)
                threading.Event().wait(0.15)  # longer than a lock is looked at

    threads = [threading.Thread(target=ask, args=(i,)) for i in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert order in ([0, 1] * 3, [1, 0] * 3)
    with files[0].turn(1.0), pytest.raises(UserError, match="Another command has been asking box"), files[1].turn(0.1):
        pass


def test_a_file_of_answers_alone_counts_them(tmp_path: Path) -> None:
    with serve(flat, classes=["a", "b", "c"], top=2) as url:
        box = Http(url, cache=tmp_path)
        box.predict(some(8))
        with contextlib.closing(sqlite3.connect(box._answers.path)) as database, database:
            database.execute("DELETE FROM answers WHERE key = ?", (b"billed",))
        with pytest.raises(UserError, match="2 images, more than the budget of 9 allows, of which 8 are used"):
            Http(url, cache=tmp_path, budget=9).predict(some(10))


def pack(classes: list[int], p: list[float]) -> bytes:
    return np.array(classes, "<i4").tobytes() + np.array(p, "<f4").tobytes()


def _row(key: bytes | None, content: bytes) -> Callable[[sqlite3.Connection], object]:
    """A row with the right checksum, as who means harm would write it; ``None``: of the first image."""

    def put(database: sqlite3.Connection) -> None:
        found = key or database.execute("SELECT key FROM answers WHERE length(key) = 32").fetchone()[0]
        row = (found, content, zlib.crc32(found + content))
        database.execute("INSERT OR REPLACE INTO answers VALUES (?, ?, ?)", row)

    return put


def _sql(*words: str) -> Callable[[sqlite3.Connection], object]:
    return lambda database: [database.execute(word) for word in words]


FOR_EVER = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n)"
KEPT = {
    "class out of range": (_row(None, pack([0, 3], [0.6, 0.3])), "class 3, and the 3 classes are 0 to 2"),
    "class below 0": (_row(None, pack([-1, 0], [0.6, 0.3])), "class -1"),
    "one class twice": (_row(None, pack([1, 1], [0.6, 0.3])), "one class twice"),
    "NaN": (_row(None, pack([0, 1], [float("nan")] * 2)), "probability nan"),
    "one NaN": (_row(None, pack([0, 1], [0.6, float("nan")])), "probability nan"),
    "infinite": (_row(None, pack([0, 1], [float("inf"), 0.0])), "probability inf"),
    "negative": (_row(None, pack([0, 1], [0.6, -0.1])), r"probability -0\.1"),
    "too high a sum": (_row(None, pack([0, 1], [0.9, 0.9])), r"sum to 1\.8"),
    "too few": (_row(None, pack([0], [0.6])), "8 bytes instead of 16"),
    "too many": (_row(None, pack([0, 1, 2], [0.5, 0.3, 0.2])), "24 bytes instead of 16"),
    "no length": (_row(None, b"12345"), "5 bytes instead of 16"),
    "nothing": (_row(None, b""), "0 bytes instead of 16"),
    "a large one": (_row(None, b"0" * 10_000_000), "is damaged"),
    "large facts": (_row(b"facts", b"0" * 10_000_000), "is damaged"),
    "no facts": (_row(b"facts", b"{"), "is damaged"),
    "a number of billed that is none": (_row(b"billed", b"x"), "billed makes no sense"),
    "a number of billed beyond counting": (_row(b"billed", b"\xff" * 8), "billed makes no sense"),
    "a view": (
        _sql(
            "DROP TABLE answers",
            f"CREATE VIEW answers AS {FOR_EVER} SELECT i AS key, i AS content, i AS checksum FROM n",
        ),
        "other tables",
    ),
    "a trigger": (_sql("CREATE TRIGGER t AFTER INSERT ON answers BEGIN DELETE FROM answers; END"), "other tables"),
    "another table": (_sql("CREATE TABLE more (x)"), "other tables"),
    "a generated column": (
        _sql(
            "DROP TABLE answers",
            "CREATE TABLE answers (key BLOB, content BLOB AS (zeroblob(1000000000)), checksum INTEGER)",
        ),
        "other tables",
    ),
}


@pytest.mark.parametrize(("change", "says"), KEPT.values(), ids=KEPT.keys())
def test_a_kept_answer_is_checked_like_a_fresh_one(change: Callable[..., object], says: str, tmp_path: Path) -> None:
    with serve(flat, classes=["a", "b", "c"], top=2) as url:
        box = Http(url, cache=tmp_path)
        box.predict(some(4))
        with contextlib.closing(sqlite3.connect(box._answers.path)) as database, database:
            change(database)
        with pytest.raises(UserError, match=says) as caught:
            Http(url, cache=tmp_path, budget=5).predict(some(5))
        assert str(box._answers.path) in str(caught.value) and len(str(caught.value)) < 500
        assert url.images == 4


def test_kept_labels_among_kept_probabilities_are_seen(tmp_path: Path) -> None:
    with serve(flat, classes=["a", "b"], top=1) as url:
        box = Http(url, cache=tmp_path)
        split = some(4)
        box.predict(split)
        with contextlib.closing(sqlite3.connect(box._answers.path)) as database, database:
            _row(None, pack([1], [float("nan")]))(database)
        with pytest.raises(UserError, match=r"is damaged .*labels only for others"):
            Http(url, cache=tmp_path).predict(split)
