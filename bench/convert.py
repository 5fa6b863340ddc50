#!/usr/bin/python3
"""img beside qemu-img: time, memory and file size, with the targets the project set itself.

    bench/convert.py                 all rows
    bench/convert.py zlib compare    the rows whose names contain one of these
    IMG=path QEMU_IMG=path           other programs than build/bin/img and qemu-img

Both run in turn, and the best of the repetitions counts. Files lie in /dev/shm, as the write-back of
a disk would drown the figures. "of cp" compares with `cp --sparse=always` of the same bytes: what the
machine can do at most.
"""

import argparse
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests" / "tools"))

from platter import KIB, MIB, text_like  # noqa: E402  (needs the path above)

ROOT = Path(__file__).resolve().parent.parent
IMG = os.environ.get("IMG", str(ROOT / "build" / "bin" / "img"))
QEMU = os.environ.get("QEMU_IMG", "qemu-img")

# The memory that parallel compression may take, whatever qemu-img takes.
COMPRESSION_MEMORY = 64 * MIB


class Row:
    """One kind of work.

    work: the arguments after the program's name; OUT is a file that is made anew each time.
    target: the most that our time may be of qemu-img's. of_cp: the most it may be of cp's.
    size: the most that our output's length may be of qemu-img's.
    """

    def __init__(self, name, work, target, of_cp=None, size=None):
        self.name, self.work, self.target = name, work.split(), target
        self.of_cp, self.size = of_cp, size

    @property
    def compresses(self):
        return "-c" in self.work


ROWS = [
    Row("raw -> qcow2", "convert -f raw -O qcow2 disk.raw OUT", 0.8, of_cp=1.2),
    Row("qcow2 -> raw", "convert -f qcow2 -O raw disk.qcow2 OUT", 0.8, of_cp=1.2),
    Row("raw -> qcow2 -c zlib", "convert -c -f raw -O qcow2 disk.raw OUT", 0.12, size=1.02),
    Row("raw -> qcow2 -c zstd",
        "convert -c -f raw -O qcow2 -o compression_type=zstd disk.raw OUT", 0.5, size=1.10),
    Row("zlib qcow2 -> raw", "convert -f qcow2 -O raw zlib.qcow2 OUT", 0.35),
    Row("zstd qcow2 -> raw", "convert -f qcow2 -O raw zstd.qcow2 OUT", 0.6),
    Row("compare raw qcow2", "compare -f raw -F qcow2 disk.raw disk.qcow2", 0.6),
    Row("create", "create -q -f qcow2 OUT 20G", 1.0),
    Row("info empty", "info empty.qcow2", 1.0),
    Row("info small", "info small.qcow2", 1.0),
    Row("map empty", "map --output=json empty.qcow2", 1.0),
    Row("map small", "map --output=json small.qcow2", 1.0),
    Row("convert empty 16T", "convert -f qcow2 -O qcow2 huge.qcow2 OUT", 0.5),
    Row("check full 1T", "check -f qcow2 full.qcow2", 0.5),
]


def run(argv):
    """Seconds of one run, into new output files."""
    for word in argv:
        if word.endswith(".out"):
            Path(word).unlink(missing_ok=True)
    began = time.perf_counter()
    code = subprocess.run(argv, stdout=subprocess.DEVNULL, check=False).returncode
    seconds = time.perf_counter() - began
    if code:
        raise SystemExit(f"{' '.join(argv)}: exit code {code}")
    return seconds


def peak_of(argv):
    """The largest resident set of one run, in bytes.

    By way of GNU time: a child of ours would start out with the peak of this very process.
    """
    run(["/usr/bin/time", "-q", "-f", "%M", "-o", "peak", *argv])
    return int(Path("peak").read_text()) * KIB


def best_of(commands, repeat):
    """The best of some runs of each, taken in turn so that a busy moment hits all alike.

    Short runs are repeated more, for they are noisier.
    """
    best = [float("inf")] * len(commands)
    spent, rounds = 0.0, 0
    while rounds < repeat or (spent < 1.0 and rounds < 10 * repeat):
        times = [run(command) for command in commands]
        best = [min(pair) for pair in zip(best, times)]
        spent += sum(times)
        rounds += 1
    return best


def make_disk(path, size):
    """Half holes, the rest in equal parts text, random bytes and a tar of /usr/lib, in runs."""
    rng = random.Random(7)
    part = size // 6
    tar = subprocess.Popen(["tar", "--sort=name", "-C", "/usr/lib", "-cf", "-", "."],
                           stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    text = text_like(rng, 8 * MIB)
    with open(path, "wb") as disk:
        disk.truncate(size)
        at, left = 0, {"text": part, "random": part, "tar": part, "hole": size - 3 * part}
        while at < size:
            kind = rng.choices(list(left), weights=list(left.values()))[0]
            length = min(rng.randrange(1, 256) * 64 * KIB, left[kind])
            if kind == "text":
                begin = rng.randrange(len(text))
                data = (text[begin:] + text * 3)[:length]
            elif kind == "random":
                data = rng.randbytes(length)
            else:
                data = tar.stdout.read(length) if kind == "tar" else b""
            if data:
                disk.seek(at)
                disk.write(data)
            at += length
            left[kind] -= length
            if not left[kind]:
                del left[kind]
    tar.stdout.close()
    tar.wait()


def prepare(rows, size):
    """The files that these rows need, all made by qemu-img."""
    needed = {word for row in rows for word in row.work}
    qcow2 = [QEMU, "convert", "-f", "raw", "-O", "qcow2"]

    def want(name, *argv):
        if name in needed:
            subprocess.run(argv, check=True, stdout=subprocess.DEVNULL)

    if needed & {"disk.raw", "disk.qcow2", "zlib.qcow2", "zstd.qcow2"}:
        make_disk("disk.raw", size)
    want("disk.qcow2", *qcow2, "disk.raw", "disk.qcow2")
    want("zlib.qcow2", *qcow2, "-c", "-W", "-m", "8", "disk.raw", "zlib.qcow2")
    want("zstd.qcow2", *qcow2, "-c", "-o", "compression_type=zstd", "disk.raw", "zstd.qcow2")
    want("empty.qcow2", QEMU, "create", "-f", "qcow2", "empty.qcow2", "20G")
    want("huge.qcow2", QEMU, "create", "-f", "qcow2", "huge.qcow2", "16T")
    want("full.qcow2", QEMU, "create", "-f", "qcow2", "-o", "preallocation=metadata", "full.qcow2",
         "1T")
    if "small.qcow2" in needed:
        make_disk("small.raw", 16 * MIB)
        subprocess.run([*qcow2, "small.raw", "small.qcow2"], check=True)


def bench(row, repeat):
    """Measures one row; prints its lines; whether all targets are met."""
    commands = [[program, *(f"{number}.out" if word == "OUT" else word for word in row.work)]
                for number, program in enumerate((IMG, QEMU))]
    if row.of_cp:
        # The bytes that the work moves, from the raw disk to a new sparse file.
        commands.append(["cp", "--sparse=always", "disk.raw", "cp.out"])
    times = best_of(commands, repeat)
    our_peak, their_peak = (peak_of(command) for command in commands[:2])
    ours, theirs = times[:2]
    ratio = ours / theirs
    met, notes = [ratio <= row.target], []
    if row.of_cp:
        of_cp = ours / times[2]
        met.append(of_cp <= row.of_cp)
        notes.append(f"of cp {of_cp:.2f} (target {row.of_cp})")
    memory = max(their_peak, COMPRESSION_MEMORY if row.compresses else 0)
    met.append(our_peak <= memory)
    if our_peak > memory:
        notes.append(f"memory over {memory / MIB:.1f} MiB")
    if row.size:
        size = os.path.getsize("0.out") / os.path.getsize("1.out")
        met.append(size <= row.size)
        notes.append(f"size {size:.3f} (target {row.size})")
    print(f"{row.name:22} {ours * 1000:9.1f} {theirs * 1000:9.1f} {ratio:6.2f} {row.target:6.2f} "
          f"{our_peak / MIB:7.1f} {their_peak / MIB:7.1f}  {'pass' if all(met) else 'FAIL'}  "
          f"{', '.join(notes)}", flush=True)
    for out in Path(".").glob("*.out"):
        out.unlink()
    return all(met)


def main():
    parser = argparse.ArgumentParser(description="img beside qemu-img")
    parser.add_argument("rows", nargs="*", help="rows whose names contain one of these")
    parser.add_argument("-n", "--repeat", type=int, default=5, help="repetitions (5)")
    parser.add_argument("-s", "--size", type=int, default=2048, help="MiB of the disk (2048)")
    parser.add_argument("-d", "--dir", default="/dev/shm", help="where the files go (/dev/shm)")
    parser.add_argument("-l", "--list", action="store_true", help="list the rows")
    args = parser.parse_args()
    rows = [row for row in ROWS
            if not args.rows or any(word in row.name for word in args.rows)]
    if args.list:
        print("\n".join(row.name for row in rows))
        return 0
    for program in (IMG, QEMU, "/usr/bin/time"):
        if shutil.which(program) is None:
            raise SystemExit(f"{program} is missing")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # gigabytes would stay behind
    folder = tempfile.mkdtemp(prefix="platter-bench-", dir=args.dir)
    try:
        os.chdir(folder)
        prepare(rows, args.size * MIB)
        print(f"{'best of ' + str(args.repeat):22} {'img ms':>9} {'qemu ms':>9} {'ratio':>6} "
              f"{'target':>6} {'img MiB':>7} {'qemu':>7}")
        failed = [row.name for row in rows if not bench(row, args.repeat)]
    finally:
        os.chdir("/")
        shutil.rmtree(folder)
    print(f"\n{len(rows) - len(failed)} of {len(rows)} rows meet every target"
          + (f"; not: {', '.join(failed)}" if failed else ""))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
