import importlib.metadata
import os
import shutil
import subprocess
import sys
import tomllib
from collections import namedtuple
from pathlib import Path

import numpy as np
import pytest
import torch

from upcycle import cli
from upcycle.core.errors import UserError
from upcycle.data import cache
from upcycle.data.sources import NAMED
from upcycle.verbs import doctor as doctor_module
from upcycle.verbs.doctor import OPTIONAL, REQUIRED, TORCH, TORCHVISION, Report, doctor
from upcycle.verbs.stock import Check, stock

ROOT = Path(__file__).parents[2]
NMS = "operator torchvision::nms does not exist"


def fake_package(monkeypatch, folder, name, content, version=None):
    """Put a package in front of the real one; it is imported anew."""
    for module in [m for m in sys.modules if m == name or m.startswith(f"{name}.")]:
        monkeypatch.delitem(sys.modules, module)
    (folder / name).mkdir()
    (folder / name / "__init__.py").write_text(content)
    monkeypatch.syspath_prepend(folder)
    installed = importlib.metadata.version

    def says(dist):
        return version if dist == name and version else installed(dist)

    monkeypatch.setattr(importlib.metadata, "version", says)


def absent(monkeypatch, *names):
    """Make packages look as if they were never installed."""
    for name in names:
        for module in [m for m in sys.modules if m == name or m.startswith(f"{name}.")]:
            monkeypatch.delitem(sys.modules, module)
        monkeypatch.setitem(sys.modules, name, None)
    installed = importlib.metadata.version

    def says(dist):
        if dist in names:
            raise importlib.metadata.PackageNotFoundError(dist)
        return installed(dist)

    monkeypatch.setattr(importlib.metadata, "version", says)


def of(checks, name):
    (check,) = (c for c in checks if c.name == name)
    return check


def test_whole_report_in_a_fresh_process_with_a_torchvision_that_does_not_fit(tmp_path):
    (tmp_path / "torchvision").mkdir()
    (tmp_path / "torchvision" / "__init__.py").write_text(f"print('noise')\nraise RuntimeError({NMS!r})\n")
    code = "from upcycle.verbs.doctor import doctor; r = doctor(); print(r.text()); print(r.ok)"
    path = os.pathsep.join([str(tmp_path), str(ROOT / "src")])
    env = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    env.pop("UPCYCLE_DATA", None)
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    i = next(i for i, line in enumerate(lines) if line.startswith("BROKEN torchvision"))
    assert "--force-reinstall torch torchvision" in "\n".join(lines[i : i + 7])
    assert NMS in " ".join(done.stdout.split())
    assert "noise" not in done.stdout and "Traceback" not in done.stdout + done.stderr
    assert any(line.startswith("ok     torch ") for line in lines)
    assert any(line.startswith("absent UPCYCLE_DATA") for line in lines)
    assert lines[-1] == "False"


@pytest.mark.parametrize(
    "content",
    [
        f"raise RuntimeError({NMS!r})",
        "raise ImportError('libc10_cuda.so: cannot open')",
        "raise OSError('x')",
        "",
    ],
)
def test_a_torchvision_that_does_not_fit_becomes_one_pip_line(monkeypatch, tmp_path, content):
    fake_package(monkeypatch, tmp_path, "torchvision", content, version="0.30.1")
    check = doctor_module._torchvision()
    assert check.status == "broken"
    assert f"does not fit torch {torch.__version__}" in check.found
    assert check.mend == "pip install --upgrade --force-reinstall torch torchvision"


def test_a_missing_torchvision_is_installed_together_with_torch(monkeypatch):
    absent(monkeypatch, "torchvision")
    check = doctor_module._torchvision()
    assert check.status == "absent" and check.mend == "pip install --upgrade torch torchvision"


def test_timm_beside_a_broken_torchvision_is_mended_by_torchvisions_line(monkeypatch, tmp_path):
    fake_package(monkeypatch, tmp_path, "timm", f"raise RuntimeError({NMS!r})", version="1.0.31")
    vision = Check("torchvision", "broken", "does not fit", "the line")
    check = doctor_module._package("timm", "timm", "1.0", "no timm:NAME models", neighbour=vision)
    assert (check.status, check.mend) == ("broken", "the line")
    alone = doctor_module._package("timm", "timm", "1.0", "no timm:NAME models")
    assert NMS in alone.found and alone.mend == 'pip install --force-reinstall "timm>=1.0"'


@pytest.mark.parametrize("module", OPTIONAL)
def test_an_optional_package_that_is_not_installed_is_absent_and_no_fault(monkeypatch, module):
    dist, least, without = OPTIONAL[module]
    absent(monkeypatch, *{module, dist})
    check = doctor_module._package(module, dist, least, without)
    assert check == Check(dist, "absent", f"not installed: {without}", f'pip install --upgrade "{dist}>={least}"')
    assert Report((check,)).ok


def test_a_required_package_that_is_missing_or_old_is_a_fault(monkeypatch):
    absent(monkeypatch, "jinja2")
    check = doctor_module._package("jinja2", "jinja2", "3.1")
    assert check == Check("jinja2", "broken", "not installed", 'pip install --upgrade "jinja2>=3.1"')
    old = doctor_module._package("rich", "rich", "999")
    assert old.status == "broken" and "older than 999" in old.found


def test_a_torch_that_does_not_import_leaves_the_rest_of_the_report(monkeypatch):
    monkeypatch.setattr(doctor_module, "_torch", lambda: Check("torch", "broken", "does not import", "pip"))
    monkeypatch.setattr(doctor_module, "OPTIONAL", {})
    report = doctor()
    assert not report.ok
    assert of(report.checks, "torchvision").status == "absent"
    assert of(report.checks, "memory").found


def test_the_versions_are_those_of_pyproject():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    declared = [
        *project["dependencies"],
        *(r for rs in project["optional-dependencies"].values() for r in rs),
    ]
    pairs = dict(REQUIRED.values()) | {d: v for d, v, _ in OPTIONAL.values()}
    pairs |= {"torch": TORCH, "torchvision": TORCHVISION}
    for dist, least in pairs.items():
        assert f"{dist}>={least}" in declared
    required = {r.partition(">=")[0] for r in project["dependencies"]}
    assert required == {d for d, _ in REQUIRED.values()} | {"torch"}


def test_version_numbers_compare_as_numbers():
    numbers = doctor_module._numbers
    assert numbers("2.15.0+cu132") == (2, 15) >= numbers("2.10")
    assert numbers("0.9") < numbers("0.10") and numbers("1.0") == numbers("1")


@pytest.fixture
def nothing_here(monkeypatch, tmp_path):
    """No data, no weights but those of the package, and a cache of one's own."""
    monkeypatch.delenv("UPCYCLE_DATA", raising=False)
    monkeypatch.setenv("UPCYCLE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hub"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_data_unset(nothing_here):
    checks = list(stock())
    assert of(checks, "UPCYCLE_DATA").status == "absent"
    assert of(checks, "UPCYCLE_DATA").mend.startswith("export UPCYCLE_DATA=")
    assert of(checks, "data sets").found == "digits"
    assert of(checks, "zoo").found.endswith(", digits_teacher")


def test_what_can_be_fetched_and_how_large_it_is(nothing_here, monkeypatch):
    pytest.importorskip("torchvision", exc_type=ImportError)
    checks = list(stock())
    kept = nothing_here / "cache" / "fetched"
    assert of(checks, "cifar10").found == f"not here: 170 MB, fetched into {kept / 'cifar10'} when it is first named"
    assert of(checks, "fashion_mnist_local").found == "not here"
    assert "cifar10_resnet20 (1.1 MB)" in of(checks, "zoo to fetch").found
    assert "cifar10_lenet_captum" in of(checks, "zoo elsewhere").found
    assert all(check.status != "broken" for check in checks)
    (kept / "mnist").mkdir(parents=True)
    (kept / "mnist" / "train-images-idx3-ubyte.gz").write_bytes(b"x")
    (kept / "cifar10_resnet20").mkdir()
    (kept / "cifar10_resnet20" / "cifar10_resnet20.safetensors").write_bytes(b"x")
    checks = list(stock())
    assert of(checks, "data sets").found == "digits, mnist" and "mnist" not in [c.name for c in checks]
    assert "cifar10_resnet20," in of(checks, "zoo").found and "resnet20 (" not in of(checks, "zoo to fetch").found
    monkeypatch.setenv("UPCYCLE_CACHE", "0")
    assert of(stock(), "cifar10").found == "not here" and "zoo to fetch" not in [c.name for c in stock()]


def test_data_wrong(monkeypatch, tmp_path):
    monkeypatch.setenv("UPCYCLE_DATA", str(tmp_path / "nowhere"))
    check = of(stock(), "UPCYCLE_DATA")
    assert check.status == "broken" and "nowhere does not exist" in check.found and check.mend
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("UPCYCLE_DATA", str(tmp_path / "file"))
    check = of(stock(), "UPCYCLE_DATA")
    assert check.status == "broken" and "is a file" in check.found


def test_data_found_and_not_found(nothing_here, monkeypatch):
    from safetensors.torch import save_file

    root = nothing_here / "root"
    monkeypatch.setenv("UPCYCLE_DATA", str(root))
    (root / "digits" / "mnist").mkdir(parents=True)
    (root / "digits" / "mnist" / "train-images-idx3-ubyte.gz").write_bytes(b"x")
    (root / "cifar10").mkdir()  # empty: not found
    checks = list(stock())
    assert of(checks, "data sets").found == "digits, mnist"
    assert of(checks, "cifar10").status == "absent"
    assert str(root / "cifar10") in of(checks, "cifar10").mend
    names = {"UPCYCLE_DATA", "data sets", "weights", "zoo", "zoo to fetch", "zoo elsewhere"}
    assert {c.name for c in checks} == names | (set(NAMED) - {"mnist"})
    assert of(checks, "weights").status == "absent"

    (root / "weights").mkdir()
    save_file({"w": torch.ones(100)}, root / "weights" / "net.safetensors")
    assert of(stock(), "weights") == Check("weights", "ok", "net")
    whole = (root / "weights" / "net.safetensors").read_bytes()
    (root / "weights" / "cut.safetensors").write_bytes(whole[:-8])
    check = of(stock(), "weights")
    assert check.status == "broken" and "cut.safetensors" in check.found and "net" not in check.found


@pytest.mark.skipif("UPCYCLE_DATA" not in os.environ, reason="UPCYCLE_DATA is not set")
def test_the_real_data_are_found():
    checks = list(stock())
    assert of(checks, "UPCYCLE_DATA").status == "ok"
    assert "cifar10_resnet56" in of(checks, "weights").found


def test_no_compiler(monkeypatch):
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setattr(shutil, "which", lambda name: None)
    monkeypatch.setattr(doctor_module.platform, "system", lambda: "Linux")
    check = doctor_module._compiler()
    assert check.status == "absent" and "no C++ compiler" in check.found and "g++" in check.mend
    monkeypatch.setattr(shutil, "which", lambda name: f"/usr/bin/{name}" if name == "g++" else None)
    monkeypatch.setattr(doctor_module.sysconfig, "get_paths", lambda: {"include": "/nowhere"})
    check = doctor_module._compiler()
    assert check.found.startswith("no Python.h") and check.mend.endswith("install python3-dev")


def test_cuda(monkeypatch):
    device = namedtuple("Device", "name total_memory")("H100", 80e9)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda i: device)
    assert doctor_module._cuda() == Check("CUDA", "ok", "H100 (80 GB), H100 (80 GB)")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(shutil, "which", lambda name: None)
    assert doctor_module._cuda().status == "absent" and not doctor_module._cuda().mend
    monkeypatch.setattr(shutil, "which", lambda name: f"/usr/bin/{name}")
    monkeypatch.setattr(torch.version, "cuda", None)
    assert "built for processors only" in doctor_module._cuda().found

    def fails():
        raise RuntimeError("driver too old\nsecond line")

    monkeypatch.setattr(torch.cuda, "is_available", fails)
    check = doctor_module._cuda()
    assert check.status == "broken" and "driver too old)" in check.found


def test_little_memory_and_idle_cores_are_said(monkeypatch):
    monkeypatch.setattr(doctor_module, "free_memory", lambda: 1e9)
    assert doctor_module._memory().mend
    monkeypatch.setattr(doctor_module, "free_memory", lambda: 8e9)
    assert doctor_module._memory() == Check("memory", "ok", "8.0 GB free")
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(4)), raising=False)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    check = doctor_module._processor()
    assert "cores: 4, threads: 1" in check.found and "OMP_NUM_THREADS" in check.mend


def test_text_keeps_mending_lines_whole_and_names_what_is_wrong():
    long = "pip install " + "x" * 150
    report = Report((Check("a", "ok", "1"), Check("b", "broken", "word " * 60, long), Check("c", "absent", "no c")))
    lines = report.text().splitlines()
    assert any(line.strip() == f"-> {long}" for line in lines)
    assert all(len(line) <= 96 for line in lines if long not in line)
    assert lines[-1] == "To be mended: b. Optional and not here: c."
    assert not report.ok and Report(report.checks[::2]).ok


def test_the_cache_is_shown_and_cleared(monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("UPCYCLE_CACHE", str(tmp_path / "kept"))
    check = doctor_module._cache()
    assert check.status == "ok" and f"0.0 MB of decoded images in {tmp_path / 'kept'}" in check.found
    cache.keep("a" * 64, np.zeros((1, 1000, 1000, 3), np.uint8), {})
    check = doctor_module._cache()
    assert "3.0 MB" in check.found and "--clear_cache" in check.found and "4,295 MB" in check.found
    assert cli.main(["doctor", "--clear_cache"]) in (0, 1)
    assert not list((tmp_path / "kept").iterdir()) and "0.0 MB of decoded images" in capsys.readouterr().out
    monkeypatch.setenv("UPCYCLE_CACHE", "")
    assert "none" in doctor_module._cache().found

    def fails(folder):
        raise PermissionError(13, "Permission denied", str(folder))

    monkeypatch.setenv("UPCYCLE_CACHE", str(tmp_path / "kept"))
    monkeypatch.setattr(Path, "iterdir", fails)
    check = doctor_module._cache()
    assert check.status == "absent" and "UPCYCLE_CACHE" in check.mend
    with pytest.raises(UserError, match="Cannot clear the cache"):
        doctor(clear_cache=True)
