"""``upcycle doctor``: what this installation can and cannot do, each with the line that mends it."""

from __future__ import annotations

import contextlib
import importlib
import importlib.metadata
import os
import platform
import re
import shutil
import sys
import sysconfig
import textwrap
import warnings
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from upcycle.core import cells
from upcycle.core.memory import free_memory
from upcycle.data import cache
from upcycle.verbs.stock import Check, first_line, installed, stock

PYTHON = (3, 11)
TORCH, TORCHVISION = "2.10", "0.25"
REQUIRED = {
    "lightning_fabric": ("lightning-fabric", "2.5"),
    "numpy": ("numpy", "1.26"),
    "safetensors.torch": ("safetensors", "0.5"),
    "PIL.Image": ("pillow", "10"),
    "pyarrow.parquet": ("pyarrow", "15"),
    "sklearn.datasets": ("scikit-learn", "1.4"),
    "jsonargparse": ("jsonargparse", "4.38"),
    "docstring_parser": ("docstring-parser", "0.16"),
    "yaml": ("pyyaml", "6"),
    "rich": ("rich", "13"),
    "jinja2": ("jinja2", "3.1"),
    "jaxtyping": ("jaxtyping", "0.2.36"),
    "msgspec": ("msgspec", "0.20"),
    "filelock": ("filelock", "3.12"),
    "shtab": ("shtab", "1.7"),
}
"""Module to import: the distribution that brings it and its least version, as pyproject.toml has them."""
OPTIONAL = {
    "timm": ("timm", "1.0", "no timm:NAME models"),
    "transformers": ("transformers", "4.45", "no hf:ORG/NAME models"),
    "datasets": ("datasets", "3", "no hub:ORG/NAME data"),
    "torch_geometric": ("torch-geometric", "2.6", "no networks over graphs"),
    "torch.utils.tensorboard": ("tensorboard", "2.16", "no events for TensorBoard"),
    "onnx": ("onnx", "1.17", "no export to ONNX"),
    "onnxscript": ("onnxscript", "0.5", "no export to ONNX"),
    "onnxruntime": ("onnxruntime", "1.20", "no export to ONNX, which is compared with its network"),
}
"""As :data:`REQUIRED`, and what cannot be done without it."""

# In bytes: what distilling on CIFAR-10 takes, and what a few runs leave behind.
LEAST_MEMORY, LEAST_DISK = 2.5e9, 1e9


@dataclass(frozen=True)
class Report:
    """What :func:`doctor` found."""

    checks: tuple[Check, ...]

    def __repr__(self) -> str:
        return cells.line(self, "everything that is needed works" if self.ok else "something is to be mended")

    def _repr_html_(self) -> str:
        return cells.block(self.text())

    @property
    def ok(self) -> bool:
        """Whether nothing is broken. Optional things may be absent."""
        return all(check.status != "broken" for check in self.checks)

    def record(self) -> dict[str, Any]:
        """All that was looked at, as JSON data."""
        return {"ok": self.ok, "checks": [asdict(check) for check in self.checks]}

    def text(self) -> str:
        """The report for a terminal; the mending lines stand unbroken below what they mend."""
        marks = {"ok": "ok     ", "absent": "absent ", "broken": "BROKEN "}
        width = max(len(check.name) for check in self.checks) + 2
        indent = " " * (7 + width)
        lines: list[str] = []
        for c in self.checks:
            found = textwrap.wrap(c.found, 96 - len(indent), break_on_hyphens=False, break_long_words=False)
            lines.append(marks[c.status] + c.name.ljust(width) + found[0])
            lines += [indent + line for line in found[1:]]
            lines += [f"{indent}-> {c.mend}"] if c.mend else []
        broken = [c.name for c in self.checks if c.status == "broken"]
        absent = [c.name for c in self.checks if c.status == "absent"]
        verdict = f"To be mended: {', '.join(broken)}." if broken else "Everything that is needed works."
        also = f" Optional and not here: {', '.join(absent)}." if absent else ""
        return "\n".join([*lines, "", *textwrap.wrap(verdict + also, 96, break_on_hyphens=False)])


def doctor(*, clear_cache: bool = False) -> Report:
    """Look at Python, libraries, processor, memory, disk and data. Needs no network, and changes nothing by itself.

    Args:
        clear_cache: delete the decoded images that are kept, before all else.

    Raises:
        UserError: they cannot be deleted.
    """
    if clear_cache:
        cache.clear()
    torch = _torch()
    checks = [_python(), torch]
    if torch.status == "ok":
        vision = _torchvision()
        checks += [_processor(), _cuda()]
    else:
        vision = Check("torchvision", "absent", "not looked at: torch comes first")
    checks += [_package(module, dist, least) for module, (dist, least) in REQUIRED.items()]
    checks.append(vision)
    for module, (dist, least, without) in OPTIONAL.items():
        checks.append(_package(module, dist, least, without, neighbour=vision if dist == "timm" else None))
    return Report((*checks, _compiler(), _memory(), _disk(), _cache(), *stock()))


# -- libraries ------------------------------------------------------------------------------------------


def _python() -> Check:
    least = ".".join(map(str, PYTHON))
    found = f"{platform.python_version()} on {platform.system()} {platform.machine()}"
    if sys.version_info >= PYTHON:
        return Check("Python", "ok", found)
    return Check("Python", "broken", f"{found}; {least} is the least", f"python{least} -m venv .venv")


def _numbers(version: str) -> tuple[int, ...]:
    """The leading numbers of a version, without trailing zeros: 2.15.0+cpu is (2, 15)."""
    numbers = [int(n) for n in re.findall(r"\d+", version.split("+")[0])[:3]]
    while numbers and not numbers[-1]:
        numbers.pop()
    return tuple(numbers)


def _import(module: str) -> Any:
    # Whatever it says while it is imported would garble the report.
    with warnings.catch_warnings(), open(os.devnull, "w") as nowhere:
        warnings.simplefilter("ignore")
        with contextlib.redirect_stdout(nowhere), contextlib.redirect_stderr(nowhere):
            return importlib.import_module(module)


def _package(module: str, dist: str, least: str, without: str = "", neighbour: Check | None = None) -> Check:
    """Whether a package imports and is new enough.

    Args:
        module, dist, least, without: see :data:`REQUIRED` and :data:`OPTIONAL`; required without it.
        neighbour: the check of a package that this one cannot be imported without.
    """
    install = f'pip install --upgrade "{dist}>={least}"'
    version = installed(dist)
    try:
        _import(module)
    except Exception as error:  # a package beside a wrong neighbour fails in any way it likes
        if version is None:
            if without:
                return Check(dist, "absent", f"not installed: {without}", install)
            return Check(dist, "broken", "not installed", install)
        if neighbour is not None and neighbour.status != "ok":
            found = f"{version} is installed and does not import without a working {neighbour.name}: {without}"
            return Check(dist, "broken", found, neighbour.mend)
        found = f"{version} is installed and does not import ({first_line(error)})"
        return Check(dist, "broken", found, f'pip install --force-reinstall "{dist}>={least}"')
    if version is not None and _numbers(version) < _numbers(least):
        return Check(dist, "broken", f"{version} is older than {least}", install)
    return Check(dist, "ok", version or "here")


def _torch() -> Check:
    install = f'pip install --upgrade "torch>={TORCH}"'
    try:
        torch = _import("torch")
        works = float((torch.ones(2, 2) @ torch.ones(2, 2)).sum()) == 8
    except Exception as error:
        return Check("torch", "broken", f"does not import ({first_line(error)})", install)
    if not works:
        return Check("torch", "broken", f"{torch.__version__} multiplies matrices wrongly", install)
    if _numbers(torch.__version__) < _numbers(TORCH):
        return Check("torch", "broken", f"{torch.__version__} is older than {TORCH}", install)
    return Check("torch", "ok", torch.__version__)


def _torchvision() -> Check:
    """Whether torchvision is there, and its compiled operators load beside this torch."""
    import torch

    # The compiled part fits one build of torch, so the two are only ever right when they are installed together.
    install = "pip install --upgrade torch torchvision"
    reinstall = "pip install --upgrade --force-reinstall torch torchvision"
    version = installed("torchvision")
    try:
        version = version or _import("torchvision").__version__
        _import("torchvision.ops").nms(torch.tensor([[0.0, 0.0, 1.0, 1.0]]), torch.ones(1), 0.5)
    except Exception as error:  # RuntimeError, ImportError, OSError: whatever its loader met
        if isinstance(error, ModuleNotFoundError) and error.name == "torchvision":
            return Check("torchvision", "absent", "not installed: no torchvision:NAME models, no timm", install)
        found = f"{version or 'it'} does not fit torch {torch.__version__}: neither it nor timm can be used"
        return Check("torchvision", "broken", f"{found} ({first_line(error)})", reinstall)
    if _numbers(version) < _numbers(TORCHVISION):
        return Check("torchvision", "broken", f"{version} is older than {TORCHVISION}", reinstall)
    return Check("torchvision", "ok", f"{version}, and its operators run")


# -- the machine ----------------------------------------------------------------------------------------


def _processor() -> Check:
    import torch

    from upcycle.core.frozen import fast_bf16

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    threads = torch.get_num_threads()
    bf16 = "bf16 is fast and used" if fast_bf16("cpu") else "no fast bf16, float32 is used"
    limited = threads < cores and "OMP_NUM_THREADS" in os.environ
    return Check(
        "processor",
        "ok",
        f"{torch.backends.cpu.get_cpu_capability()}, cores: {cores}, threads: {threads}; {bf16}",
        "unset OMP_NUM_THREADS (it keeps cores idle)" if limited else "",
    )


def _cuda() -> Check:
    import torch

    try:
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        devices = [torch.cuda.get_device_properties(i) for i in range(count)]
    except Exception as error:
        return Check("CUDA", "broken", f"the driver does not answer ({first_line(error)})", "nvidia-smi")
    if devices:
        return Check("CUDA", "ok", ", ".join(f"{d.name} ({d.total_memory / 1e9:.0f} GB)" for d in devices))
    if shutil.which("nvidia-smi") is None:
        return Check("CUDA", "absent", "no device: everything runs on the processor")
    if torch.version.cuda is None:
        found = "a driver is here, and this torch is built for processors only"
        return Check("CUDA", "absent", found, f'pip uninstall -y torch && pip install "torch>={TORCH}"')
    found = f"a driver is here, and this torch (CUDA {torch.version.cuda}) sees no device"
    mend = f"unset CUDA_VISIBLE_DEVICES; if that is not it, a driver for CUDA {torch.version.cuda} is needed"
    return Check("CUDA", "absent", found, mend)


def _compiler() -> Check:
    """What torch.compile needs: a C++ compiler and Python's headers."""
    compiler = next((c for c in (os.environ.get("CXX"), "g++", "clang++") if c and shutil.which(c)), None)
    missing = {} if compiler else {"C++ compiler": "g++"}
    if not Path(sysconfig.get_paths()["include"], "Python.h").is_file():
        missing["Python.h"] = "python3-dev"
    if not missing:
        return Check("compiler", "ok", f"{compiler}: --compile works")
    mend = f"sudo apt-get install {' '.join(missing.values())}"
    if platform.system() == "Darwin":
        mend = "xcode-select --install"
    return Check("compiler", "absent", f"no {' and no '.join(missing)}: no --compile", mend)


def _memory() -> Check:
    free = free_memory()
    if free is None:
        return Check("memory", "ok", "how much is free cannot be told on this system")
    little = "close other programs, or give a smaller --recipe.batch_size" if free < LEAST_MEMORY else ""
    return Check("memory", "ok", f"{free / 1e9:.1f} GB free", little)


def _disk() -> Check:
    try:
        here, free = Path.cwd(), shutil.disk_usage(".").free
    except OSError as error:
        found = f"the working directory cannot be read ({first_line(error)})"
        return Check("disk", "broken", found, "cd to a directory of yours")
    found = f"{free / 1e9:.1f} GB free in {here}"
    if not os.access(here, os.W_OK):
        return Check("disk", "ok", f"{found}, which is read-only", "give --out a directory of yours")
    return Check("disk", "ok", found, "give --out another disk" if free < LEAST_DISK else "")


def _cache() -> Check:
    """The decoded images that are kept."""
    folder = cache.place()
    if folder is None:
        return Check("cache", "ok", "none: data are decoded anew by every command (UPCYCLE_CACHE)")
    try:
        used = cache.size()
    except OSError as error:
        found = f"{folder} cannot be looked at ({first_line(error)}): data are decoded anew by every command"
        return Check("cache", "absent", found, "export UPCYCLE_CACHE=/path/to/a/folder/of/yours")
    clear = "" if not used else "; --clear_cache deletes them"
    most = f"of at most {cache.LIMIT / 1e6:,.0f} MB"
    return Check("cache", "ok", f"{used / 1e6:,.1f} MB of decoded images in {folder}, {most}{clear}")
