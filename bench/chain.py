#!/usr/bin/python3
"""Commit and rebase of 1 GiB of scattered clusters, beside qemu-img.

    bench/chain.py [FOLDER]      /dev/shm when not given

The overlay holds every other cluster of a disk of 2 GiB. Each program works on a copy of its own of the same
images; they take turns, and the best of three counts. Ours includes bringing all to the disk.
"""

import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
IMG = os.environ.get("IMG", str(ROOT / "build" / "bin" / "img"))
QEMU = os.environ.get("QEMU_IMG", "qemu-img")
DISK, CLUSTER = 2 << 30, 64 << 10


def run(*argv):
    subprocess.run([str(a) for a in argv], check=True, capture_output=True)


def timed(*argv):
    os.sync()
    start = time.monotonic()
    run(*argv)
    return time.monotonic() - start


def make():
    """base.qcow2, other.qcow2 (its like, but for some clusters) and over.qcow2 on top of base."""
    run(QEMU, "create", "-f", "qcow2", "base.qcow2", DISK)
    run("qemu-io", "-f", "qcow2", "-c", f"write -q -P 1 0 {DISK // 2}", "-c",
        f"write -q -P 1 {DISK // 2} {DISK // 2}", "base.qcow2")
    run(QEMU, "create", "-f", "qcow2", "other.qcow2", DISK)
    run("qemu-io", "-f", "qcow2", "-c", f"write -q -P 1 0 {DISK // 2}", "-c",
        f"write -q -P 2 {DISK // 2} {DISK // 2}", "other.qcow2")
    run(QEMU, "create", "-f", "qcow2", "-b", "base.qcow2", "-F", "qcow2", "over.qcow2")
    run(IMG, "bench", "-w", "--pattern=3", "-f", "qcow2", "-c", DISK // CLUSTER // 2, "-s", CLUSTER,
        "-S", 2 * CLUSTER, "-d", "2", "over.qcow2")


def copies(who):
    folder = Path(who)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    for name in ("base", "other", "over"):
        run("cp", "--sparse=always", f"{name}.qcow2", folder)
    return folder


def main():
    folder = tempfile.mkdtemp(dir=sys.argv[1] if len(sys.argv) > 1 else "/dev/shm")
    os.chdir(folder)
    try:
        make()
        for what, argv in (("commit", ["commit", "-q", "-f", "qcow2", "over.qcow2"]),
                           ("rebase", ["rebase", "-f", "qcow2", "-b", "other.qcow2", "-F", "qcow2", "over.qcow2"])):
            best = {IMG: 1e9, QEMU: 1e9}
            for _ in range(3):
                for tool in best:
                    os.chdir(copies("work"))
                    best[tool] = min(best[tool], timed(tool, *argv))
                    os.chdir("..")
            ratio = best[IMG] / best[QEMU]
            print(f"{what:8} img {best[IMG]:6.2f} s  qemu-img {best[QEMU]:6.2f} s  ratio {ratio:.2f}"
                  f" (<= 0.6{'' if ratio <= 0.6 else ' MISSED'})", flush=True)
    finally:
        os.chdir("/")
        shutil.rmtree(folder)


main()
