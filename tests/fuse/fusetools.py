"""What the FUSE tests share: mounts that end with the test."""

import os
import subprocess
import time
from pathlib import Path

import pytest
from conftest import BIN
from platter import REPORT, Tool

def mounted(path):
    with open("/proc/self/mountinfo") as f:
        return any(line.split()[4] == str(path) for line in f)


class Mount:
    """`img mount --foreground`, so that its end and its words are seen."""

    def __init__(self, img, argv, where, log, limits=None):
        self.img, self.where, self.log = img, where, log
        self.process = subprocess.Popen([img.path, "mount", "--foreground", *map(str, argv),
                                         str(where)], stdin=subprocess.DEVNULL, stdout=open(log, "wb"),
                                        stderr=subprocess.STDOUT, preexec_fn=limits)
        until = time.monotonic() + 20
        while not mounted(where):
            assert self.process.poll() is None, f"{argv} ended: {self.said()}"
            assert time.monotonic() < until, f"{argv} does not mount: {self.said()}"
            time.sleep(0.01)

    def __truediv__(self, name):
        return self.where / name

    def said(self):
        return Path(self.log).read_text(errors="replace")

    def end(self, code=0):
        """img umount; the image is closed when it returns."""
        done = subprocess.run([self.img.path, "umount", str(self.where)], capture_output=True,
                              text=True)
        assert done.returncode == 0, done.stderr
        got = self.process.wait(timeout=30)
        assert not REPORT.search(self.said()), self.said()
        assert got == code, f"exit code {got}: {self.said()}"

    def drop(self):
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        if mounted(self.where):
            subprocess.run(["umount", "-l", str(self.where)] if os.getuid() == 0
                           else ["fusermount3", "-uz", str(self.where)], check=False)


@pytest.fixture
def mount(tmp, img):
    """mount(image, options...): mounted on a folder of its own, or on the file `on`."""
    if not os.access("/dev/fuse", os.W_OK):
        pytest.skip("/dev/fuse is missing")
    mounts = []

    def start(*argv, on=None, limits=None):
        where = Path(on) if on else tmp / f"m{len(mounts)}"
        if not on:
            where.mkdir()
        mounts.append(Mount(img, argv, where.absolute(), f"mount{len(mounts)}.log", limits))
        return mounts[-1]

    yield start
    for one in mounts:
        one.drop()
        assert not REPORT.search(one.said()), one.said()


@pytest.fixture
def nbd():
    return Tool(BIN / "nbd")


def run(*argv, code=0, **options):
    done = subprocess.run([str(a) for a in argv], capture_output=True, text=True, **options)
    assert code is None or done.returncode == code, f"{argv}: {done.returncode}\n{done.stdout}{done.stderr}"
    return done.stdout
