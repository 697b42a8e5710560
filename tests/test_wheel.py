"""The wheel that an index would serve: small, whole, and at work without the source tree."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
MOST = 15_000_000  # bytes


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy, without a network and with the build backend of the test environment."""
    place = tmp_path_factory.mktemp("wheel")
    tree = place / "tree"
    tree.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tree / name)
    shutil.copytree(ROOT / "src", tree / "src", ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
    words = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--no-index", "-q"]
    done = subprocess.run([*words, "-w", str(place), str(tree)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    (found,) = place.glob("*.whl")
    return found


def test_the_wheel_is_whole_and_small(wheel: Path) -> None:
    assert wheel.stat().st_size < MOST
    with zipfile.ZipFile(wheel) as opened:
        names = set(opened.namelist())
    source = ROOT / "src"
    wanted = {
        file.relative_to(source).as_posix()
        for file in (source / "upcycle").rglob("*")
        if file.suffix in (".py", ".json", ".j2", ".safetensors") or file.name == "py.typed"
    }
    assert {"upcycle/py.typed", "upcycle/options.json", "upcycle/zoo/weights/cifar10_vgg.safetensors"} <= wanted
    assert wanted <= names, sorted(wanted - names)
    assert all(name.startswith(("upcycle/", "upcycle-")) for name in names)


@pytest.mark.slow
def test_commands_of_the_readme_run_from_the_wheel(wheel: Path, tmp_path: Path) -> None:
    site, desk = tmp_path / "site", tmp_path / "desk"
    desk.mkdir()
    with zipfile.ZipFile(wheel) as opened:
        opened.extractall(site)
    there = {**os.environ, "PYTHONPATH": str(site)}

    def run(*words: str) -> str:
        done = subprocess.run(
            [sys.executable, *words], cwd=desk, env=there, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    assert Path(run("-c", "import upcycle; print(upcycle.__file__)").strip()).is_relative_to(site)
    commands = re.findall(r"^\$ upcycle (.*--data digits.*)$", (ROOT / "README.md").read_text(), re.MULTILINE)
    distill, evaluate = commands[:2]
    assert distill.startswith("distill") and evaluate.startswith("evaluate")
    assert "Report: runs/first/report.html" in run("-m", "upcycle", *shlex.split(distill))
    assert (desk / "runs" / "first" / "report.html").is_file()
    assert re.search(r"accuracy\s+9\d\.\d", run("-m", "upcycle", *shlex.split(evaluate)))
    assert "cifar10_resnet56" in run("-m", "upcycle", "lineage", "zoo:cifar10_vgg")
