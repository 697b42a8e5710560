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
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

Status = Literal["ok", "absent", "broken"]

PYTHON = (3, 11)
REQUIRED = {
    "lightning_fabric": ("lightning-fabric", "2.5"),
    "numpy": ("numpy", "1.26"),
    "safetensors.torch": ("safetensors", "0.5"),
    "PIL.Image": ("pillow", "10"),
    "pyarrow.parquet": ("pyarrow", "15"),
    "sklearn.datasets": ("scikit-learn", "1.4"),
    "jsonargparse": ("jsonargparse", "4.38"),
    "yaml": ("pyyaml", "6"),
    "rich": ("rich", "13"),
    "jinja2": ("jinja2", "3.1"),
    "torch.utils.tensorboard": ("tensorboard", "2.16"),
}
"""Module to import: the distribution that brings it and its least version, as pyproject.toml has them."""
OPTIONAL = {
    "timm": ("timm", "1.0", "no timm:NAME models"),
    "transformers": ("transformers", "4.45", "no hf:ORG/NAME models"),
    "datasets": ("datasets", "3", "no hub:ORG/NAME data"),
    "onnx": ("onnx", "1.17", "no export to ONNX"),
    "onnxscript": ("onnxscript", "0.5", "no export to ONNX"),
    "onnxruntime": ("onnxruntime", "1.20", "an ONNX export cannot be compared with its network"),
}
"""As :data:`REQUIRED`, and what cannot be done without it."""
TORCH, TORCHVISION = "2.10", "0.25"

LEAST_MEMORY, LEAST_DISK = (
    2.5e9,
    1e9,
)  # bytes: what distilling on CIFAR-10 takes; what a few runs leave behind


@dataclass(frozen=True)
class Check:
    """One thing looked at.

    Args:
        name: of the thing.
        status: ok; absent: an optional thing is not here; broken: something is wrong and should be mended.
        found: what is there, or what cannot be done.
        mend: the command, or the sentence, that mends it; empty where there is nothing to mend.
    """

    name: str
    status: Status
    found: str
    mend: str = ""


@dataclass(frozen=True)
class Report:
    """What :func:`doctor` found."""

    checks: tuple[Check, ...]

    @property
    def ok(self) -> bool:
        """Whether nothing is broken. Optional things may be absent."""
        return all(check.status != "broken" for check in self.checks)

    def text(self) -> str:
        """The report for a terminal; the mending lines stand unbroken below what they mend."""
        marks = {"ok": "ok     ", "absent": "absent ", "broken": "BROKEN "}
        width = max(len(check.name) for check in self.checks) + 2
        indent = " " * (7 + width)
        lines = []
        for c in self.checks:
            lines += textwrap.wrap(c.found, 96, initial_indent=marks[c.status] + c.name.ljust(width),
                                   subsequent_indent=indent, break_on_hyphens=False, break_long_words=False)
            lines += [f"{indent}-> {c.mend}"] if c.mend else []
        broken = [c.name for c in self.checks if c.status == "broken"]
        absent = [c.name for c in self.checks if c.status == "absent"]
        verdict = f"To be mended: {', '.join(broken)}." if broken else "Everything that is needed works."
        also = f" Optional and not here: {', '.join(absent)}." if absent else ""
        return "\n".join([*lines, "", *textwrap.wrap(verdict + also, 96)])


def doctor() -> Report:
    """Look at Python, the libraries, the processor, memory, disk and data. Needs no network and changes nothing."""
    torch = _torch()
    vision = _torchvision() if torch.status == "ok" else Check(
        "torchvision", "absent", "not looked at: torch comes first")
    checks = [_python(), torch, *([] if torch.status == "broken" else [_processor(), _cuda()])]
    checks += [_package(module, dist, least) for module, (dist, least) in REQUIRED.items()]
    checks += [vision, *(_package(m, d, v, without, vision) for m, (d, v, without) in OPTIONAL.items())]
    checks += [_compiler(), _memory(), _disk(), *_data()]
    return Report(tuple(checks))


# -- libraries -----------------------------------------------------------------------------------------------


def _python() -> Check:
    least = ".".join(map(str, PYTHON))
    found = f"{platform.python_version()} on {platform.system()} {platform.machine()} ({sys.executable})"
    if sys.version_info >= PYTHON:
        return Check("Python", "ok", found)
    return Check("Python", "broken", f"{found}; {least} is the least that will do",
                 mend=f"python{least} -m venv .venv && . .venv/bin/activate && pip install .")


def _numbers(version: str) -> tuple[int, ...]:
    """The leading numbers of a version: 2.15.0+cpu is (2, 15, 0)."""
    return tuple(int(n) for n in re.findall(r"\d+", version.split("+")[0])[:3])


def _import(module: str) -> Any:
    # Whatever it says while it is imported would garble the report.
    with warnings.catch_warnings(), open(os.devnull, "w") as nowhere:
        warnings.simplefilter("ignore")
        with contextlib.redirect_stdout(nowhere), contextlib.redirect_stderr(nowhere):
            return importlib.import_module(module)


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:200]}" if lines else type(error).__name__


def _installed(dist: str) -> str | None:
    try:
        return importlib.metadata.version(dist)
    except importlib.metadata.PackageNotFoundError:
        return None


def _package(module: str, dist: str, least: str, without: str = "", vision: Check | None = None) -> Check:
    """An importable package; ``without`` says what cannot be done without an optional one."""
    mend = f'pip install --upgrade "{dist}>={least}"'
    version = _installed(dist)
    try:
        _import(module)
    except Exception as error:  # a package beside a wrong neighbour fails in any way it likes
        top = module.partition(".")[0]
        if isinstance(error, ModuleNotFoundError) and error.name == top or version is None:
            return Check(dist, "absent" if without else "broken", f"not installed: {without}" if without else "not installed", mend=mend)
        if dist == "timm" and vision is not None and vision.status != "ok":
            return Check(dist, "broken", f"{version} does not import, because it needs torchvision: "
                         f"{without}", mend=vision.mend)
        return Check(dist, "broken", f"{version} is installed and does not import "
                     f"({_first_line(error)})", mend=f'pip install --force-reinstall "{dist}>={least}"')
    if version is not None and _numbers(version) < _numbers(least):
        return Check(dist, "broken", f"{version} is older than {least}", mend=mend)
    return Check(dist, "ok", version or "here")


def _torch() -> Check:
    mend = f'pip install --upgrade "torch>={TORCH}"'
    try:
        torch = _import("torch")
        worked = float(torch.ones(2, 2).mm(torch.ones(2, 2)).sum()) == 8
    except Exception as error:
        absent = isinstance(error, ModuleNotFoundError) and error.name == "torch"
        found = "not installed" if absent else f"does not import ({_first_line(error)})"
        return Check("torch", "broken", found, mend=mend)
    if not worked or _numbers(torch.__version__) < _numbers(TORCH):
        found = (
            f"{torch.__version__} is older than {TORCH}"
            if worked
            else f"{torch.__version__} computes wrongly"
        )
        return Check("torch", "broken", found, mend=mend)
    return Check("torch", "ok", torch.__version__)


def _torchvision() -> Check:
    """Whether torchvision is there, and its compiled operators load beside this torch."""
    import torch

    # Torchvision's compiled part fits one build of torch: the same version, CPU or CUDA. Asking pip for both lets it
    # choose the torchvision of this torch, which it keeps. Builds that are not the index's own (+cpu) have another.
    index = "" if torch.version.cuda else " --index-url https://download.pytorch.org/whl/cpu"
    if torch.version.hip or platform.system() == "Darwin":
        index = ""
    install = f'pip install torchvision "torch=={torch.__version__.split("+")[0]}"{index}'
    reinstall = f"pip uninstall -y torchvision && {install}"
    version = _installed("torchvision")
    try:
        vision = _import("torchvision")
        _import("torchvision.ops").nms(torch.tensor([[0.0, 0.0, 1.0, 1.0]]), torch.ones(1), 0.5)
    except Exception as error:  # RuntimeError, ImportError, OSError: whatever its loader met
        if isinstance(error, ModuleNotFoundError) and error.name == "torchvision":
            return Check("torchvision", "absent", "not installed: no torchvision:NAME models, no timm",
                         mend=install)
        return Check("torchvision", "broken", f"{version or 'it'} does not fit torch "
                     f"{torch.__version__}, so neither it nor timm can be used ({_first_line(error)})",
                     mend=reinstall)
    version = version or str(getattr(vision, "__version__", ""))
    if _numbers(version) < _numbers(TORCHVISION):
        return Check(
            "torchvision", "broken", f"{version} is older than {TORCHVISION}",
            mend=reinstall,
        )
    return Check("torchvision", "ok", f"{version}, and its operators run")


# -- the machine ---------------------------------------------------------------------------------------------


def _processor() -> Check:
    import torch

    from upcycle.core.frozen import fast_bf16

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    threads = torch.get_num_threads()
    bf16 = "bf16 is fast and used by default" if fast_bf16("cpu") else "bf16 is not fast, float32 is used"
    found = f"{torch.backends.cpu.get_cpu_capability()}, {cores} cores, {threads} threads; {bf16}"
    fewer = "OMP_NUM_THREADS limits the threads to less than the cores: unset it, or raise it"
    return Check("processor", "ok", found,
                 mend=fewer if threads < cores and "OMP_NUM_THREADS" in os.environ else "")


def _cuda() -> Check:
    import torch

    try:
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        names = [f"{torch.cuda.get_device_name(i)} ({torch.cuda.get_device_properties(i).total_memory / 1e9:.0f} GB)"
                 for i in range(count)]
    except Exception as error:  # a driver that does not answer
        return Check("CUDA", "broken", f"the driver does not answer ({_first_line(error)})",
                     mend="nvidia-smi says what the driver is missing; CUDA_VISIBLE_DEVICES= works without it")
    if names:
        return Check("CUDA", "ok", ", ".join(names))
    if shutil.which("nvidia-smi") is None:
        return Check("CUDA", "absent", "no device: everything runs on the processor")
    if torch.version.cuda is None:
        return Check("CUDA", "absent", "a driver is here, and this torch is a build for processors only",
                     mend=f'pip uninstall -y torch && pip install "torch>={TORCH}"')
    return Check("CUDA", "absent", f"a driver is here, and torch (CUDA {torch.version.cuda}) sees no device",
                 mend="check CUDA_VISIBLE_DEVICES, and that nvidia-smi shows a driver new enough for this torch")


def _compiler() -> Check:
    """What torch.compile needs: a C++ compiler and Python's headers."""
    compiler = next((c for c in (os.environ.get("CXX"), "g++", "clang++") if c and shutil.which(c)), None)
    header = Path(sysconfig.get_paths()["include"], "Python.h").is_file()
    if compiler and header:
        return Check("compiler", "ok", f"{compiler}: --compile works")
    packages = " ".join([*([] if compiler else ["g++"]), *([] if header else ["python3-dev"])])
    mend = "xcode-select --install" if platform.system() == "Darwin" else f"sudo apt-get install {packages}"
    missing = " and ".join([*([] if compiler else ["C++ compiler"]), *([] if header else ["Python.h"])])
    return Check("compiler", "absent", f"no {missing}: no --compile", mend=mend)


def _memory() -> Check:
    free = _free_memory()
    if free is None:
        return Check("memory", "ok", "how much is free cannot be told here")
    little = free < LEAST_MEMORY
    return Check("memory", "ok", f"{free / 1e9:.1f} GB free",
                 mend="little: close other programs, or give a smaller --recipe.batch_size" if little else "")


def _free_memory() -> float | None:
    """Bytes that can still be had, by the kernel and by the container's limit; ``None`` off Linux."""
    try:
        (kilobytes,) = re.findall(r"MemAvailable:\s+(\d+)", Path("/proc/meminfo").read_text())
        free = float(kilobytes) * 1024
    except (OSError, ValueError):
        return None
    with contextlib.suppress(OSError, ValueError):  # no container, or "max"
        limit, used = (int(Path(f"/sys/fs/cgroup/memory.{f}").read_text()) for f in ("max", "current"))
        free = min(free, float(limit - used))
    return free


def _disk() -> Check:
    try:
        free = shutil.disk_usage(".").free
        writable = os.access(".", os.W_OK)
    except OSError as error:
        return Check("disk", "broken", f"the working directory cannot be read ({error.strerror})",
                     mend="cd to a directory of yours")
    found = f"{free / 1e9:.1f} GB free in {Path.cwd()}"
    if not writable:
        return Check(
            "disk", "ok", f"{found}, which is read-only",
            mend="give --out a directory of yours",
        )
    little = free < LEAST_DISK
    return Check(
        "disk", "ok", found,
        mend="little: free some, or give --out another disk" if little else "",
    )


# -- data ----------------------------------------------------------------------------------------------------


def _data() -> Iterator[Check]:
    """What lies under UPCYCLE_DATA."""
    value = os.environ.get("UPCYCLE_DATA")
    if not value:
        yield Check("UPCYCLE_DATA", "absent", "not set: scikit-learn's digits, and your own folders",
                    mend="export UPCYCLE_DATA=/path/to/data")
        return
    root = Path(value).expanduser()
    if not root.is_dir():
        what = "is a file" if root.exists() else "does not exist"
        yield Check("UPCYCLE_DATA", "broken", f"{value} {what}",
                    mend="export UPCYCLE_DATA=/path/to/data (a folder), or unset UPCYCLE_DATA")
        return
    try:
        folders, fetch = _named()
        found = sorted(
            name for name, places in folders.items() if any(_holds(root / place) for place in places)
        )
        missing = sorted(set(folders) - set(found))
        mend = "; ".join(f"{name}: put {fetch[name]} into {root / folders[name][0]}" for name in missing)
        yield Check("UPCYCLE_DATA", "ok", value)
        yield Check("data sets", "absent" if missing else "ok", ", ".join(["digits", *found]) + (f"; not here: {', '.join(missing)}" if missing else ""),
                    mend=mend)
        yield _weights(root / "weights")
    except Exception as error:  # a folder that may not be read, or a broken library that was named above
        yield Check("UPCYCLE_DATA", "broken", f"{value} cannot be looked at ({_first_line(error)})",
                    mend="mend what is named above first; then check that the folder may be read")


def _named() -> tuple[dict[str, tuple[str, ...]], dict[str, str]]:
    """The folders where each named set may lie, and what to fetch for it."""
    from upcycle.data.sources import NAMED

    return {name: n.folders for name, n in NAMED.items()}, {name: n.fetch for name, n in NAMED.items()}


def _holds(folder: Path) -> bool:
    return folder.is_dir() and any(folder.iterdir())


def _weights(folder: Path) -> Check:
    """The weights files, each opened: its header announces its size, so a truncated one shows."""
    from safetensors import safe_open

    whole, broken = [], []
    for file in sorted(folder.glob("*.safetensors")) if folder.is_dir() else []:
        try:
            with safe_open(file, framework="pt"):
                whole.append(file.stem)
        except Exception:  # SafetensorError, OSError
            broken.append(file.name)
    if broken:
        return Check("weights", "broken", f"not whole in {folder}: {', '.join(broken)}",
                     mend="restore them from a copy, or delete them")
    if not whole:
        return Check("weights", "absent", "none: no zoo:cifar10_... with trained weights",
                     mend=f"put NAME.safetensors into {folder}")
    return Check("weights", "ok", ", ".join(whole))
