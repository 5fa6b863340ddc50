#!/usr/bin/python3
"""Random 4 KiB requests: img bench beside qemu-img bench, in requests per second.

    bench/requests.py                all rows
    bench/requests.py snapshot       the rows whose names contain one of these
    bench/requests.py --short        a tenth of the requests

Both programs send the same requests to copies of the same image in /dev/shm: a step that is large and odd, in
units of 4 KiB, comes by every place of the disk before it comes by one again. They run in turn, and the best
of the repetitions counts. "ratio" is ours to theirs, "2 threads" is depth 2 to depth 1 of ours.
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests" / "tools"))

from platter import GIB, KIB, MIB  # noqa: E402  (needs the path above)

ROOT = Path(__file__).resolve().parent.parent
IMG = os.environ.get("IMG", str(ROOT / "build" / "bin" / "img"))
QEMU = os.environ.get("QEMU_IMG", "qemu-img")
TARGETS = {1: 1.2, 32: 2.0}


def run(*argv):
    return subprocess.run(argv, check=True, capture_output=True, text=True).stdout


def qemu_io(image, *commands):
    run("qemu-io", "-f", "qcow2", *(word for c in commands for word in ("-c", c)), image)


# ---------------------------------------------------------------- images

def full(name, size=GIB):
    run(QEMU, "create", "-f", "qcow2", name, str(size))
    qemu_io(name, f"write -P 7 0 {size}")


def empty(name):
    run(QEMU, "create", "-f", "qcow2", name, str(8 * GIB))


def huge(name):
    """Its L2 tables have 128 MiB, the cache 32. No data: it would not fit."""
    run(QEMU, "create", "-f", "qcow2", "-o", "preallocation=metadata", name, str(1 << 40))


def chain(name):
    """Ten overlays, each with every tenth 64 KiB of a disk of 512 MiB."""
    below = None
    for layer in range(11):
        image = name if layer == 10 else f"layer{layer}.qcow2"
        backing = ["-b", below, "-F", "qcow2"] if below else []
        run(QEMU, "create", "-f", "qcow2", *backing, image, str(512 * MIB))
        if layer < 10:
            qemu_io(image, *(f"write -P {layer + 1} {at} 64k"
                             for at in range(layer * 64 * KIB, 512 * MIB, 640 * KIB)))
        below = image


def snapshot(name):
    full(name)
    run(QEMU, "snapshot", "-c", "before", name)


# name: (makes the image, reads, writes)
ROWS = {
    "full": (full, 300000, 200000),
    "empty": (empty, 300000, 60000),
    "1 TiB": (huge, 100000, 100000),
    "chain of 10": (chain, 200000, 8192),
    "snapshot": (snapshot, 0, 16384),
}


# ---------------------------------------------------------------- measuring

def rate(program, image, write, depth, count, size):
    """Requests per second."""
    step = (min(size, 3 * GIB) // 4096 * 618 // 1000 | 1) * 4096  # qemu-img takes less than 2 GiB
    kind = ["-w", "--pattern=9"] if write else []
    out = run(program, "bench", "-f", "qcow2", "-c", str(count), "-d", str(depth), "-s", "4096", "-S",
              str(step), "-t", "writeback", *kind, image)
    return count / float(re.search(r"completed in ([0-9.]+) seconds", out)[1])


def best(program, make, original, write, depth, count, repeat):
    size = int(re.search(r"\((\d+) bytes\)", run(QEMU, "info", original))[1])
    rates = []
    for _ in range(repeat):
        image = original
        if write:
            image = "work.qcow2"
            run("cp", "--sparse=always", original, image)
        rates.append(rate(program, image, write, depth, count, size))
    return max(rates)


def row(name, share, repeat):
    make, reads, writes = ROWS[name]
    make("image.qcow2")
    for write, count in ((False, reads // share), (True, writes // share)):
        if not count:
            continue
        ours = {}
        for depth in (1, 2, 32):
            ours[depth] = best(IMG, make, "image.qcow2", write, depth, count, repeat)
            if depth not in TARGETS:
                continue
            theirs = best(QEMU, make, "image.qcow2", write, depth, count, repeat)
            ratio = ours[depth] / theirs
            verdict = "" if ratio >= TARGETS[depth] else f"  MISSED {TARGETS[depth]}"
            threads = f"{ours[2] / ours[1]:8.2f}" if depth == 32 else ""
            print(f"| {name} | {'write' if write else 'read'} | {depth} | {ours[depth] / 1000:.0f}k | "
                  f"{theirs / 1000:.0f}k | {ratio:.2f}{verdict} | {threads} |", flush=True)
    for path in Path(".").glob("*.qcow2"):
        path.unlink()


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("names", nargs="*")
    parser.add_argument("--short", action="store_true")
    parser.add_argument("--repeat", type=int, default=3)
    args = parser.parse_args()
    folder = tempfile.mkdtemp(dir="/dev/shm", prefix="platter-bench-")
    os.chdir(folder)
    try:
        print("| image | requests | depth | img | qemu-img | ratio | 2 threads |")
        print("|---|---|---|---|---|---|---|")
        for name in ROWS:
            if not args.names or any(word in name for word in args.names):
                row(name, 10 if args.short else 1, args.repeat)
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
