"""The long form of the promises: kills, corruption, wrong configurations, malicious files. `make torture`.

Real commands on real digits. Every random choice is seeded; the moments of the kills fall where the machine lets
them. Prints a table, records it, and exits with 1 when a promise does not hold. With `--claims` also a miniature of
each claim against its recorded band (minutes; needs CIFAR-10).
"""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import random
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from tests import corpus

from benchmarks.common import RESULTS, record
from benchmarks.hostile_answers import hostile_answers
from benchmarks.hostile_files import hostile_files
from upcycle import cli
from upcycle.claims import all_claims
from upcycle.core import references, saved, store
from upcycle.core.errors import UserError
from upcycle.verbs import distill
from upcycle.verbs.prove import prove

DIGITS = ["distill", "--data=digits", "--student=zoo:convnet_small", "--save_every=0", "--quiet"]
TEACHER = "--teacher=zoo:digits_teacher"
KINDS = {
    "plain (kd)": [*DIGITS, TEACHER, "--recipe.epochs=15", "--recipe.batch_size=64"],
    "staged (tfkd)": [*DIGITS, "--method=tfkd", "--recipe.epochs=8", "--recipe.batch_size=64"],
    "few-shot (netgraft)": [*DIGITS, TEACHER, "--method=netgraft", "--shots=6", "--cuts=block2.0,block3.0,block3",
                            "--epochs_block=12", "--epochs_chain=10", "--batch_size=20"],
    "data-free (fastdfkd)": ["distill", "--method=fastdfkd", "--test_data=digits", "--student=zoo:convnet_small",
                             "--save_every=0", "--quiet", TEACHER, "--making.rounds=20", "--making.warmup=3",
                             "--making.batch=64", "--making.kd_steps=10", "--ngf=16",
                             "--recipe.epochs=20", "--recipe.batch_size=64"],
}  # fmt: skip
Tally = dict[str, dict[str, int]]


def _start(words: list[str], folder: Path) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "upcycle.cli", *words]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}  # two runs at a time
    return subprocess.Popen(command, cwd=folder, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def kills(n: int, seed: int, folder: Path, tally: Tally) -> None:
    """Kill the command at random moments; the same command with --resume must end with the same bits."""

    def undisturbed(kind: str) -> tuple[bytes, float]:
        start, out = time.perf_counter(), f"whole-{list(KINDS).index(kind)}"
        assert _start([*KINDS[kind], f"--out={out}"], folder).wait() == 0, kind
        return (folder / out / "model" / saved.WEIGHTS).read_bytes(), time.perf_counter() - start

    def once(i: int) -> tuple[str, bool]:
        chance = random.Random(f"{seed} {i}")
        kind = list(KINDS)[i % len(KINDS)]
        expected, seconds = whole[kind]
        out = folder / f"kill-{i}"
        words = [*KINDS[kind], f"--out={out.name}"]
        while True:  # until a kill meets a run that is under way
            process = _start(words, folder)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(chance.uniform(0.35, 1.3) * seconds)
                shutil.rmtree(out)
                continue
            process.send_signal(signal.SIGKILL)
            process.wait()
            if (out / "config.yaml").exists():
                break
        held = _start([*words, "--resume"], folder).wait() == 0
        held = held and (out / "model" / saved.WEIGHTS).read_bytes() == expected and not list(out.rglob("*.tmp"))
        shutil.rmtree(out)
        return kind, held

    with ThreadPoolExecutor(2) as pool:
        kinds = list(KINDS)[:n]
        whole = dict(zip(kinds, pool.map(undisturbed, kinds), strict=True))
        for kind, held in pool.map(once, range(n)):
            _count(tally, f"killed and resumed to the same bits: {kind}", held)


def corruptions(n: int, seed: int, folder: Path, tally: Tally) -> None:
    """Damage every digested file of a finished run; reading it must name the file, and nothing may pass."""
    out, chance = folder / "finished", random.Random(seed)
    assert cli.main([*KINDS["few-shot (netgraft)"], f"--out={out}"]) == 0
    files = sorted(p for part in ("checkpoints", "model") for p in (out / part).iterdir())
    sources = {file: corpus.damaged(file.read_bytes(), chance) for file in files}
    read_all(out)
    for i in range(n):
        file = files[i // 2 % len(files)]
        content = file.read_bytes()
        kind, damaged = next(sources[file])
        file.write_bytes(damaged)
        try:
            read_all(out)
            held = False
        except Exception as error:  # anything but the sentence that names the file is a failure
            held = isinstance(error, UserError) and file.name in str(error)
        file.write_bytes(content)
        _count(tally, "corruption named: " + ("a flipped bit" if kind.startswith("bit") else "truncation"), held)
    read_all(out)


def read_all(out: Path) -> None:
    """Read a run directory as resuming it and loading its model do."""
    checkpoints = out / "checkpoints"
    for name, digests in store.unsealed(checkpoints / "index.json", dict)["files"].items():
        store.load_state(checkpoints / name, digests)
    store.verify_manifest(out / "model")
    saved.load(out)


class _AcceptedError(Exception):
    pass


@contextlib.contextmanager
def _no_work() -> Iterator[None]:
    """Validation runs, and what it lets through stops before the first file is read."""

    def stop(*given: Any, **options: Any) -> None:
        raise _AcceptedError

    resolve, distill.teacher_and_data = distill.teacher_and_data, stop
    try:
        yield
    finally:
        distill.teacher_and_data = resolve


def _refusal(words: list[str]) -> tuple[bool | None, float]:
    """Whether a command is refused in one line (``None``: it is accepted), and the seconds that this took."""
    said, start = io.StringIO(), time.perf_counter()
    try:
        with contextlib.redirect_stderr(said):
            refused = cli.main(words) == 2 and said.getvalue().count("\n") == 1
    except _AcceptedError:
        return None, 0.0
    except Exception:  # a traceback
        refused = False
    return refused, time.perf_counter() - start


def mutations(n: int, seed: int, folder: Path, tally: Tally, patience: float) -> float:
    """Wrong configurations end in one line and exit code 2, harmless changes pass; one in 25 as a whole command.

    Args:
        patience: how many times the promised seconds are allowed.

    Returns:
        seconds that the slowest refusal in process took.
    """
    (configs := folder / "configs").mkdir()
    found = corpus.mutations(100 * n, seed, configs)
    whole = n // 25
    slowest, refused = 0.0, 0
    with _no_work():
        while refused < n - whole:
            m = next(found)
            held, seconds = _refusal(m.words)
            if not m.wrong:
                _count(tally, "harmless change accepted", held is None)
                continue
            for _ in range(2):
                if seconds > 0.1:  # a busy machine is no fault of the parser
                    seconds = min(seconds, _refusal(m.words)[1])
            slowest, refused = max(slowest, seconds), refused + 1
            _count(tally, "wrong configuration refused in 0.1 s, in process", bool(held) and seconds < 0.1 * patience)
    wrong = (m for m in found if m.wrong)
    for _ in range(whole):
        start = time.perf_counter()
        command = [sys.executable, "-m", "upcycle.cli", *next(wrong).words]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
        held = done.returncode == 2 and done.stderr.count("\n") == 1 and time.perf_counter() - start < 5 * patience
        _count(tally, "wrong configuration refused in 5 s, whole command", held)
    return slowest


def pickles(n: int, folder: Path, tally: Tally) -> None:
    """Files that would run code when unpickled are refused as weights, and nothing runs."""
    (evil := folder / "evil").mkdir()
    canary = folder / "canary"
    state = references.resolve("zoo:digits_teacher").module.state_dict()
    for file in corpus.malicious_files(evil, canary, state)[:n]:
        said = io.StringIO()
        with contextlib.redirect_stderr(said):
            code = cli.main([*KINDS["plain (kd)"], f"--teacher_weights={file}", f"--out={folder / 'evil-run'}"])
        _count(tally, "malicious file refused, nothing executed", code == 2 and not canary.exists())


def claims(tally: Tally) -> None:
    """Run a miniature of each claim: every arm within three standard deviations (at least a point) of its record.

    Where nothing is recorded yet, what was measured becomes the record.
    """
    file = RESULTS / "miniatures.json"
    recorded = store.read_json(file)["figures"] if file.is_file() else {}
    for name in all_claims():
        for arm, values in prove(name, seeds=3, quick=True).measured.items():
            if arm.endswith(("(s)", "(ms)")) or arm.startswith("seconds"):  # what a busy machine decides
                continue
            mean, sd = statistics.fmean(values), statistics.stdev(values)
            band = recorded.setdefault(f"{name}: {arm}", {"mean": mean, "sd": sd})
            held = abs(mean - band["mean"]) <= 3 * max(band["sd"], 1 / 3)
            _count(tally, "miniature of a claim within its band (arms)", held)
    record("miniatures", recorded, seeds=3)


def _count(tally: Tally, what: str, held: bool) -> None:
    row = tally.setdefault(what, {"tried": 0, "held": 0, "failed": 0})
    row["tried"] += 1
    row["held" if held else "failed"] += 1


def main(argv: list[str] | None = None) -> int:
    """Run the four campaigns; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--corruptions", type=int, default=2000)
    parser.add_argument("--mutations", type=int, default=500)
    parser.add_argument("--pickles", type=int, default=30)
    parser.add_argument("--one-file-in", type=int, default=1, help="take one hostile file in so many")
    parser.add_argument("--claims", action="store_true", help="also a miniature of each claim")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--patience", type=float, default=1.0, help="times the promised seconds, on a busy machine")
    parser.add_argument("--no-record", action="store_true", help="leave benchmarks/results/torture.json as it is")
    arguments = parser.parse_args(argv)
    torch.set_num_threads(1)  # two runs at a time, and the same bits in all of them
    tally: Tally = {}
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        pickles(arguments.pickles, folder, tally)
        hostile_answers(tally)
        hostile_files(tally, arguments.one_file_in)
        slowest = mutations(arguments.mutations, arguments.seed, folder, tally, arguments.patience)
        corruptions(arguments.corruptions, arguments.seed, folder, tally)
        if arguments.kills:
            kills(arguments.kills, arguments.seed, folder, tally)
        if arguments.claims:
            claims(tally)
    width = max(map(len, tally))
    print(f"{''.ljust(width)}  tried   held  failed")
    for what, row in tally.items():
        print(f"{what.ljust(width)}  {row['tried']:5d}  {row['held']:5d}  {row['failed']:6d}")
    if not arguments.no_record:
        figures = {**tally, "slowest refusal in process, s": round(slowest, 3)}
        print(record("torture", figures, seed=arguments.seed, seconds=round(time.perf_counter() - start)))
    return int(any(row["failed"] for row in tally.values()))


if __name__ == "__main__":
    sys.exit(main())
