"""Shape checks at run time, one thread a worker, and the real data where they are."""

import os
import shutil
import tempfile
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ["UPCYCLE_OFFLINE"] = "1"  # tests of fetching have servers of their own
if "PYTEST_XDIST_WORKER" not in os.environ:  # whose parent has made the folder
    # Nobody's own but this run's: CIFAR-10 is decoded once for all tests of all workers.
    os.environ["UPCYCLE_CACHE"] = tempfile.mkdtemp(prefix="upcycle-tests-")

import hypothesis
import pytest
import torch
from jaxtyping import install_import_hook

# Every tensor signature of these modules is checked against what it is called with.
install_import_hook(
    [
        f"upcycle.{name}"
        for name in (
            "adaptation",
            "assembly",
            "continual",
            "diagnosis",
            "distillation",
            "predictors",
            "surgery",
            "training",
        )
    ],
    "beartype.beartype",
)
torch.set_num_threads(1)
# A busy machine is no failure: no test measures time.
hypothesis.settings.register_profile("upcycle", deadline=None)
hypothesis.settings.load_profile("upcycle")


def pytest_unconfigure(config: pytest.Config) -> None:
    """Delete the folder of decoded images."""
    if "PYTEST_XDIST_WORKER" not in os.environ:
        shutil.rmtree(os.environ["UPCYCLE_CACHE"], ignore_errors=True)


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip the rows of the gauntlet whose package is not installed."""
    from tests.settings import ROWS

    params = item.callspec.params if hasattr(item, "callspec") else {}
    for row in (ROWS.get(value) for value in params.values() if isinstance(value, str)):
        if row is not None and row.extra:
            pytest.importorskip(row.extra, reason=f"{row.extra} is not installed (extra graphs)")


@pytest.fixture(scope="session", autouse=True)
def _read_at_a_command_line():  # type: ignore[no-untyped-def]
    """Sentences name options as the command line does, in tests of functions too; see tests/core/test_spoken.py."""
    from upcycle.core.spoken import reader

    with reader(types=True):
        yield


DATA = Path(os.environ["UPCYCLE_DATA"]) if os.environ.get("UPCYCLE_DATA") else None


@pytest.fixture
def cifar10() -> Path:
    """The folder of real data, or a skip with its reason."""
    if DATA is None or not (DATA / "cifar10").is_dir():
        pytest.skip("UPCYCLE_DATA is not set, so CIFAR-10 and its networks are not at hand")
    return DATA


@pytest.fixture(scope="session")
def ranks():  # type: ignore[no-untyped-def]
    """Two processes that stay; tests that use them are marked ``xdist_group("ranks")``."""
    from tests.ranks import Ranks

    pair = Ranks()
    yield pair
    pair.close()
