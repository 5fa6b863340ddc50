"""Fixtures of all Python tests: the programs under test, their oracles, a place for images.

Environment:
    PLATTER_BIN   folder of the programs under test (default build/bin)
    PLATTER_SEED  seed of the random content (default 1), or "random"
    CI            set: a missing tool fails the test instead of skipping it
"""

import os
import random
import shutil
import sys
import zlib
from collections import Counter
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent / "tools"))

from platter import Tool  # noqa: E402  (needs the path above)

BIN = Path(os.environ.get("PLATTER_BIN", Path(__file__).parent.parent / "build" / "bin"))
os.environ["PATH"] += ":/usr/sbin:/sbin"


def need(name):
    """The path of a foreign tool. Without it the test is skipped, loudly; in CI it fails."""
    path = shutil.which(name)
    if path:
        return path
    if os.environ.get("CI"):
        pytest.fail(f"{name} is missing")
    pytest.skip(f"{name} is missing")


@pytest.fixture
def img():
    """Our img."""
    if not (BIN / "img").exists():
        pytest.fail(f"{BIN}/img is not built")
    return Tool(BIN / "img")


@pytest.fixture
def qemu_img():
    """The oracle."""
    return Tool(need("qemu-img"))


@pytest.fixture
def qemu_io():
    """The oracle's reader and writer of single requests."""
    return Tool(need("qemu-io"))


@pytest.fixture
def need_tool():
    """need(), for a test that wants some other tool."""
    return need


@pytest.fixture
def tmp(tmp_path, request):
    """An empty working directory, in memory where there is room; it is also the current one."""
    path = tmp_path
    shm = Path("/dev/shm")
    if shm.is_dir() and shutil.disk_usage(shm).free > 2 << 30:
        name = zlib.crc32(request.node.nodeid.encode())
        path = shm / f"platter-{os.getpid()}-{name:08x}"
        path.mkdir()
    before = os.getcwd()
    os.chdir(path)
    yield path
    os.chdir(before)
    if path != tmp_path:
        shutil.rmtree(path, ignore_errors=True)


TALLY = Counter(points=0, failures=0)


@pytest.fixture
def tally():
    """Counts what a test tried: points, failures and so on. The sum is printed at the end."""
    return TALLY


def pytest_terminal_summary(terminalreporter):
    if TALLY["points"]:
        terminalreporter.write_line(", ".join(f"{TALLY[key]} {key}" for key in TALLY))


@pytest.fixture
def rng(request):
    """A random generator of the test's own; its seed is in the output of a failed test."""
    seed = os.environ.get("PLATTER_SEED", "1")
    if seed == "random":
        seed = str(random.SystemRandom().randrange(1 << 32))
    print(f"PLATTER_SEED={seed}")
    return random.Random(f"{seed} {request.node.name}")
