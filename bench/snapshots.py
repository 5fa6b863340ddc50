#!/usr/bin/python3
"""Internal snapshots: what the first and the last of many cost, beside qemu-img.

    bench/snapshots.py [COUNT]       1000 by default

An image of 100 GiB, every cluster mapped, in /dev/shm. Ours makes COUNT snapshots; of each tenth part of them
the fastest and the median is told. qemu-img makes one on the fresh image and one on the same image when it has
all the others, in turn with ours.
"""

import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
IMG = os.environ.get("IMG", str(ROOT / "build" / "bin" / "img"))
QEMU = os.environ.get("QEMU_IMG", "qemu-img")


def timed(*argv):
    start = time.monotonic()
    subprocess.run(argv, check=True, capture_output=True)
    return (time.monotonic() - start) * 1000


def one_more(image, name):
    """Milliseconds of one more snapshot, (ours, theirs): the best of five, each taken back."""
    times = {IMG: [], QEMU: []}
    for _ in range(5):
        for tool, mine in times.items():
            mine.append(timed(tool, "snapshot", "-c", name, image))
            subprocess.run([IMG, "snapshot", "-d", name, image], check=True)
    return tuple(min(mine) for mine in times.values())


def told(what, times):
    ours, theirs = times
    print(f"{what:24} {ours:8.0f} ms  qemu-img {theirs:8.0f} ms  ratio {ours / theirs:.2f}", flush=True)


def main():
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 1000
    folder = tempfile.mkdtemp(dir="/dev/shm")
    os.chdir(folder)
    try:
        subprocess.run([QEMU, "create", "-q", "-f", "qcow2", "-o", "preallocation=metadata",
                        "a.qcow2", "100G"], check=True)
        told("the first", one_more("a.qcow2", "one"))
        times = []
        for number in range(1, count):
            times.append(timed(IMG, "snapshot", "-c", f"s{number}", "a.qcow2"))
            if number % max(count // 10, 1) == 0:
                last = times[-max(count // 10, 1):]
                print(f"{number:6} best {min(last):6.0f} ms  median {statistics.median(last):6.0f} ms",
                      flush=True)
        told(f"number {count}", one_more("a.qcow2", "one"))
        subprocess.run([QEMU, "check", "-q", "a.qcow2"], check=True)
    finally:
        os.chdir("/")
        shutil.rmtree(folder)


main()
