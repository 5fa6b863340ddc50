"""-c and -d. There is no kernel with nbd where tests run, so a preloaded library plays it (kernel_shim.c)."""

import os
import subprocess
from pathlib import Path

import pytest
from nbdtools import BIN, nbd  # noqa: F401  fixture


@pytest.fixture
def kernel(tmp, need_tool):
    subprocess.run([need_tool("cc"), "-shared", "-fPIC", "-O1", "-D_GNU_SOURCE", "-o", "shim.so",
                    Path(__file__).parent / "kernel_shim.c", "-ldl"], check=True)

    def run(*argv):
        return subprocess.run([BIN / "nbd", *argv], env={**os.environ, "LD_PRELOAD": str(tmp / "shim.so"),
                                                         "ASAN_OPTIONS": "verify_asan_link_order=0:detect_leaks=0"},
                              capture_output=True, text=True, timeout=30)
    return run


def test_the_kernel_reads_and_writes(kernel, img):
    img("create", "-f", "qcow2", "d", "5M")
    done = kernel("-v", "-c", "/dev/nbd0", "-f", "qcow2", "d")
    assert done.returncode == 0, done.stderr
    said = Path("report").read_text().splitlines()
    flags = int(said[0].split()[3])
    assert said[0].startswith(f"size {5 << 20} ") and flags & 1 and flags & 4 and not flags & 2
    assert said[1:] == ["write 0", "flush 0", "read 0 same"]
    img("check", "d")
    img("convert", "-f", "qcow2", "-O", "raw", "d", "d.raw")
    assert Path("d.raw").read_bytes() == bytes(4096) + b"k" * 8192 + bytes((5 << 20) - 12288)


def test_read_only(kernel, img):
    img("create", "-f", "raw", "d", "1M")
    assert kernel("-v", "-r", "-c", "/dev/nbd0", "-f", "raw", "-x", "name", "d").returncode == 0
    said = Path("report").read_text().splitlines()
    assert int(said[0].split()[3]) & 2
    assert said[1] == "write 1"  # EPERM


def test_disconnect(kernel, img):
    assert kernel("-d", "/dev/nbd0").stdout == "/dev/nbd0 disconnected\n"


def test_without_the_device(nbd, img):
    img("create", "-f", "raw", "d", "1M")
    said = nbd("-v", "-c", "/dev/nbd77", "-f", "raw", "d", code=1).err
    assert "module nbd" in said
