"""Whole commands in two processes: under torchrun, as two machines, stopped from outside, ended by one of them."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import upcycle
from upcycle.core.devices import launch
from upcycle.core.errors import UserError
from upcycle.core.updates import Updates
from upcycle.verbs import workers
from upcycle.verbs.distill import Setting

ROOT = Path(__file__).parents[2]

STOP = """
                if os.environ.get("STOP") and run.rank == 1 and run.updates == 3:
                    if os.environ["STOP"] == "term":
                        os.kill(os.getpid(), signal.SIGTERM)
                    else:
                        raise UserError("the shelf of sample 7 fell over.")
"""
WORDS = [
    "--teacher",
    "zoo:digits_teacher",
    "--student",
    "zoo:convnet_small",
    "--data",
    "digits",
    "--precision",
    "64-true",
]
WORDS += ["--method", "logits", "--recipe.epochs", "2", "--accelerator", "cpu", "--save_every", "1000"]
PLAIN = ("RANK", "LOCAL_RANK", "NODE_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "TORCHELASTIC_RUN_ID")


def command(plugin: Path, out: Path, *more: str) -> list[str]:
    return ["upcycle", "distill", *WORDS, "--plugin", str(plugin), "--out", str(out), *more]


def begun(words: list[str], **env: str) -> subprocess.Popen[str]:
    clean = {key: value for key, value in os.environ.items() if key not in PLAIN}
    clean |= {"OMP_NUM_THREADS": "1", **env}
    pipe = subprocess.PIPE
    return subprocess.Popen([sys.executable, "-m", *words], env=clean, stdout=pipe, stderr=pipe, text=True)


def ended(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    said, errors = process.communicate(timeout=300)
    return process.returncode, said, errors


def free_port() -> str:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return str(found.getsockname()[1])


@pytest.fixture(scope="module")
def plugin(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The worked example, whose second process may be stopped in the middle of an epoch."""
    text = (ROOT / "docs" / "example_method.py").read_text()
    step = next(line for line in text.splitlines() if "run.step(" in line)
    text = text.replace(step, STOP + step)
    text = text.replace("import torch\n", "import os\nimport signal\n\nimport torch\n", 1)
    text = text.replace(
        "from upcycle.core.method", "from upcycle.core.errors import UserError\nfrom upcycle.core.method", 1
    )
    place = tmp_path_factory.mktemp("plugin") / "logits.py"
    place.write_text(text)
    return place


@pytest.mark.slow
def test_torchrun_and_two_machines_that_were_stopped_give_the_same_bits(plugin: Path, tmp_path: Path) -> None:
    def machines(port: str, *more: str, **env: str) -> list[subprocess.Popen[str]]:
        words = command(plugin, tmp_path / "machines", "--num_nodes", "2", *more)
        env |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        return [begun(words, NODE_RANK=rank, **env) for rank in ("0", "1")]

    torchrun = ["torch.distributed.run", "--nproc_per_node", "2", "--master_port", free_port(), "-m"]
    both = begun([*torchrun, *command(plugin, tmp_path / "torchrun")])
    stopped = [ended(process) for process in machines(free_port(), STOP="term")]
    assert [code for code, _, _ in stopped] == [143, 143], stopped
    assert "interrupted by SIGTERM, and saved. The same command with --resume goes on." in stopped[0][2]
    assert "upcycle: " not in stopped[1][2]
    first, second = (ended(process) for process in machines(free_port(), "--resume"))
    assert second[:2] == (0, ""), second  # it only computes
    for code, said, errors in (first, ended(both)):
        assert code == 0, errors
        assert said.count("Report:") == 1 and said.count("data     ") == 1
    one, two = (load_file(tmp_path / name / "model" / "weights.safetensors") for name in ("torchrun", "machines"))
    assert all(tensor.equal(two[key]) for key, tensor in one.items())


@pytest.mark.slow
def test_a_mistake_in_one_process_is_one_sentence_and_ends_all(plugin: Path, tmp_path: Path) -> None:
    code, _, errors = ended(begun(command(plugin, tmp_path / "run", "--devices", "2"), STOP="error"))
    said = [line for line in errors.splitlines() if line.startswith("upcycle: ")]
    assert (code, said) == (2, ["upcycle: process 2 of 2 stopped: the shelf of sample 7 fell over."])
    assert "Traceback" not in errors


def test_options_that_ask_for_other_processes_than_there_are(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="--strategy fsdp divides or wraps networks"):
        Setting(strategy="fsdp")
    with pytest.raises(UserError, match="num_nodes must be at least 1, not 0"):
        Setting(num_nodes=0)
    env = {"TORCHELASTIC_RUN_ID": "x", "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "RANK": "0", "LOCAL_RANK": "0"}
    for key, value in env.items():
        monkeypatch.setenv(key, value)
    with pytest.raises(UserError, match="torchrun started 2 processes on each of 1 machines, and --devices 4"):
        launch(4, "cpu")
    with pytest.raises(UserError, match="asks for others; leave these two options out"):
        Setting(devices=1).launch()


# -- runs side by side ------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_workers_make_the_runs_that_one_process_makes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers, "cores", lambda: 2)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    updates: list[int] = []
    step = Updates.step
    monkeypatch.setattr(Updates, "step", lambda self, *args: updates.append(1) or step(self, *args))
    asked: dict[str, Any] = {"student": "zoo:convnet_small", "teacher": "zoo:digits_teacher", "data": "digits"}
    asked |= {
        "recipe": {"epochs": 1},
        "precision": "32-true",
        "quiet": True,
        "seeds": 2,
        "alone": True,
    }
    one = upcycle.distill(**asked, out=tmp_path / "one")
    alone = len(updates)
    two = upcycle.distill(**asked, out=tmp_path / "two", workers=2)
    torch.set_num_threads(threads)
    assert len(updates) - alone == alone // 2  # this process made two of the four runs
    for a, b in zip(one.rows, two.rows, strict=True):
        assert a["accuracy"] == b["accuracy"] and a.get("confusion") == b.get("confusion")
    names = sorted(path.name for path in (tmp_path / "two" / "more").iterdir())
    assert names == ["alone-0", "alone-1", "student-1"]
    for name in names:
        logs = [(tmp_path / place / "more" / name / "metrics.csv").read_text() for place in ("one", "two")]
        assert logs[0] == logs[1]


def test_workers_need_names_and_one_process_each(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="workers must be at least 1, not 0"):
        Setting(workers=0)
    with pytest.raises(UserError, match="workers make whole runs side by side, and devices divide each run"):
        Setting(workers=2, devices=2)
    net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10))
    with pytest.raises(UserError, match="take networks and data by name"):
        upcycle.distill(
            student=net, method="plain", data="digits", seeds=2, workers=2, out=tmp_path / "run", quiet=True
        )
    for runs in (2, 5, 12):
        for among in range(1, runs + 1):
            parts = [workers.Share(number, among).of(runs) for number in range(among)]
            assert [i for part in parts for i in part] == [*range(runs)] and all(parts)


STUB = """
def init(): pass
def remote(**asked):
    def made(function):
        function.remote = function
        return function
    return made
def get(found): return found
"""


def test_the_sweeps_of_the_page_run_each_line_once(tmp_path: Path) -> None:
    page = (ROOT / "docs" / "more-data.md").read_text().partition("## Many runs")[2]
    listed, array, script = (
        re.search(rf"```{kind}\n(.*?)```", page, re.DOTALL)[1]  # type: ignore[index]
        for kind in ("text", "bash", "python")
    )
    (tmp_path / "sweep.txt").write_text(listed)
    (tmp_path / "ray.py").write_text(STUB)
    stub = tmp_path / "upcycle"  # in place of the command
    stub.write_text('#!/bin/sh\necho "upcycle $*" >> "$ASKED"\n')
    stub.chmod(0o755)
    env = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}", "PYTHONPATH": str(tmp_path)}
    lines = [f"{line} --resume" for line in listed.splitlines()]
    for number in range(1, 1 + len(lines)):
        job = env | {"SLURM_ARRAY_TASK_ID": str(number), "ASKED": str(tmp_path / "jobs")}
        subprocess.run(["bash", "-c", array], cwd=tmp_path, env=job, check=True)
    subprocess.run([sys.executable, "-c", script], cwd=tmp_path, env=env | {"ASKED": str(tmp_path / "ray")}, check=True)
    for place in ("jobs", "ray"):
        assert (tmp_path / place).read_text().splitlines() == lines
