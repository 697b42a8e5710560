"""How processes learn of each other's end: small processes without torch, in pairs."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest

from upcycle.core.world import Told, first_process, told

PROGRAM = """
import json, os, signal, sys, time
from pathlib import Path
from upcycle.core import line

rank, place, what = int(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]
if rank == 0:
    desk = line.Desk("127.0.0.1", 2)
    place.with_suffix(".new").write_text(json.dumps(desk.place))
    place.with_suffix(".new").rename(place)
    desk.open()
else:
    while not place.exists():
        time.sleep(0.02)
    host, port, word = json.loads(place.read_text())
    line.join((host, port, word), 1, 2)

def fail(cause):
    if line.end(cause, 2):
        print(f"upcycle: {cause}", file=sys.stderr)
    sys.exit(2)

if what == "both":
    fail("no such file.")
if what == "first" and rank == 0 or what == "second" and rank == 1:
    fail("the label of sample 7 is 12.")
if what == "killed" and rank == 1 or what == "killed first" and rank == 0:
    os.kill(os.getpid(), signal.SIGKILL)
if what == "uncaught" and rank == 1:
    raise ValueError("of somebody's own")
time.sleep(0.3 if what == "done" and rank == 1 else 0.6 if what == "done" else 60)
"""
SILENT = "ended without a word, as a process does that is killed or runs out of memory."


def test_one_sentence_names_the_first_cause_whoever_ends(tmp_path: Path) -> None:
    expected = {
        "done": ((0, ""), (0, "")),
        "both": ((2, "upcycle: no such file."), (2, "")),
        "first": ((2, "upcycle: the label of sample 7 is 12."), (2, "")),
        "second": ((2, "upcycle: process 2 of 2 stopped: the label of sample 7 is 12."), (2, "")),
        "killed": ((2, f"upcycle: process 2 of 2 {SILENT}"), (-9, "")),
        "killed first": ((-9, ""), (2, f"upcycle: process 1 of 2 {SILENT}")),
        "uncaught": ((1, "upcycle: process 2 of 2 stopped: ValueError: of somebody's own"), (1, "ValueError")),
    }
    pairs = {
        what: [
            subprocess.Popen(
                [sys.executable, "-c", PROGRAM, str(rank), str(tmp_path / what), what],
                stderr=subprocess.PIPE,
                text=True,
            )
            for rank in (0, 1)
        ]
        for what in expected
    }
    for what, pair in pairs.items():
        for process, (code, said) in zip(pair, expected[what], strict=True):
            _, errors = process.communicate(timeout=60)
            assert process.returncode == code, (what, errors)
            if said == "ValueError":  # Python's own, beside ours
                assert "of somebody's own" in errors and "upcycle:" not in errors
            else:
                assert errors.strip() == said, what


def test_a_stranger_is_not_listened_to(tmp_path: Path) -> None:
    import json
    import socket

    place = tmp_path / "place"
    command = [sys.executable, "-c", PROGRAM, "0", str(place), "done"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as first:
        while not place.exists():
            time.sleep(0.02)
        host, port, _ = json.loads(place.read_text())
        for word in (b"wrong 1\n", b"x" * 10_000, b"\xff\xfe\n", b""):
            with socket.create_connection((host, port)) as stranger:
                stranger.sendall(word)
        with subprocess.Popen([*command[:-3], "1", str(place), "done"]) as second:
            assert second.wait(60) == 0
        assert first.wait(60) == 0


TORCHRUN = {"TORCHELASTIC_RUN_ID": "x", "WORLD_SIZE": "4", "LOCAL_WORLD_SIZE": "2", "RANK": "3", "LOCAL_RANK": "1"}
SRUN = {"SLURM_STEP_ID": "0", "SLURM_NTASKS": "6", "SLURM_NTASKS_PER_NODE": "3", "SLURM_PROCID": "0"}
POD = {"KUBERNETES_SERVICE_HOST": "x", "MASTER_ADDR": "x", "MASTER_PORT": "1", "WORLD_SIZE": "2", "RANK": "1"}


@pytest.mark.parametrize(
    ("env", "expected"),
    [
        (TORCHRUN, Told("torchrun", 2, 2, 3)),
        (SRUN, Told("srun", 3, 2, 0)),
        (POD, Told("Kubernetes", 1, 2, 1)),
        ({**SRUN, "SLURM_JOB_NAME": "interactive"}, None),
        ({**SRUN, "SLURM_NTASKS": "1", "SLURM_NTASKS_PER_NODE": "1"}, None),  # of a job array, say
        ({key: value for key, value in SRUN.items() if key != "SLURM_STEP_ID"}, None),  # in the script, without srun
        ({"KUBERNETES_SERVICE_HOST": "x"}, None),
        ({"WORLD_SIZE": "2", "RANK": "1"}, None),
    ],
)
def test_what_launchers_say(env: dict[str, str], expected: Told | None) -> None:
    assert told(env) == expected


def test_the_first_process_of_the_first_machine_speaks(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("NODE_RANK", "LOCAL_RANK", *TORCHRUN):
        monkeypatch.delenv(name, raising=False)
    assert first_process()
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert not first_process()
    monkeypatch.setenv("LOCAL_RANK", "0")
    monkeypatch.setenv("NODE_RANK", "1")
    assert not first_process()
