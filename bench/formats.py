#!/usr/bin/python3
"""img beside qemu-img with the formats of others: VMDK, VDI, VHDX and VHD.

    bench/formats.py                 all rows
    bench/formats.py vdi stream      the rows whose names contain one of these

Conversions are measured as bench/convert.py measures them. "writes" are 4 KiB writes all over a new dynamic image, so
that nearly each of them allocates: both programs do the same ones, and are told not to flush.
"""

import argparse
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

from convert import IMG, MIB, QEMU, Row, bench, make_disk, run  # noqa: E402  (needs the path above)



class FormatRow(Row):
    """Memory is judged as that of compression: what qemu-img takes here says little."""
    compresses = True


STREAM = "subformat=streamOptimized"

FORMATS = ("vmdk", "vdi", "vhdx", "vpc")

ROWS = [row for fmt in FORMATS for row in (
    FormatRow(f"raw -> {fmt}", f"convert -f raw -O {fmt} disk.raw OUT", 0.8),
    FormatRow(f"{fmt} -> raw", f"convert -f {fmt} -O raw disk.{fmt} OUT", 0.8))] + [
    FormatRow("raw -> streamOptimized", f"convert -f raw -O vmdk -o {STREAM} disk.raw OUT", 0.10),
    FormatRow("streamOptimized -> raw", "convert -f vmdk -O raw stream.vmdk OUT", 0.35),
    FormatRow("create 2T vhdx", "create -q -f vhdx OUT 2T", 1.0),
]
# As prime as it takes to come everywhere: a step of 37 MiB and a bit in an image of 4 GiB.
WRITES = "bench -w -t unsafe -c 20000 -d 8 -s 4096 -S 38801408"
WRITES_TARGET = 0.5


def can_write(fmt):
    return subprocess.run([IMG, "create", "-q", "-f", fmt, "probe.out", "1M"], check=False,
                          stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL).returncode == 0


def prepare(rows, size):
    needed = {word for row in rows for word in row.work}
    if any(word.startswith(("disk.", "stream.")) for word in needed):
        make_disk("disk.raw", size)
    for fmt in FORMATS:
        if f"disk.{fmt}" in needed:
            subprocess.run([QEMU, "convert", "-f", "raw", "-O", fmt, "disk.raw", f"disk.{fmt}"],
                           check=True)
    if "stream.vmdk" in needed:
        subprocess.run([QEMU, "convert", "-f", "raw", "-O", "vmdk", "-o", STREAM, "disk.raw",
                        "stream.vmdk"], check=True)


def bench_writes(fmt, repeat):
    """Both write into images that qemu-img made, new for each run."""
    best = [float("inf")] * 2
    for _ in range(repeat):
        for i, program in enumerate((IMG, QEMU)):
            run([QEMU, "create", "-q", "-f", fmt, f"{i}.img", "4G"])
            best[i] = min(best[i], run([program, *WRITES.split(), "-f", fmt, f"{i}.img"]))
            os.unlink(f"{i}.img")
    ratio = best[0] / best[1]
    print(f"{'writes ' + fmt:22} {best[0] * 1000:9.1f} {best[1] * 1000:9.1f} {ratio:6.2f} "
          f"{WRITES_TARGET:6.2f} {'':15}  {'pass' if ratio <= WRITES_TARGET else 'FAIL'}", flush=True)
    return ratio <= WRITES_TARGET


def main():
    parser = argparse.ArgumentParser(description="img beside qemu-img, formats of others")
    parser.add_argument("rows", nargs="*", help="rows whose names contain one of these")
    parser.add_argument("-n", "--repeat", type=int, default=5, help="repetitions (5)")
    parser.add_argument("-s", "--size", type=int, default=1024, help="MiB of the disk (1024)")
    parser.add_argument("-d", "--dir", default="/dev/shm", help="where the files go (/dev/shm)")
    args = parser.parse_args()

    def wanted(name):
        return not args.rows or any(word in name for word in args.rows)

    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # gigabytes would stay behind
    folder = tempfile.mkdtemp(prefix="platter-bench-", dir=args.dir)
    try:
        os.chdir(folder)
        formats = {fmt for fmt in FORMATS if can_write(fmt)}
        rows = [row for row in ROWS if wanted(row.name)
                and ("vhdx" in formats or "vhdx" not in row.name)]
        prepare(rows, args.size * MIB)
        print(f"{'best of ' + str(args.repeat):22} {'img ms':>9} {'qemu ms':>9} {'ratio':>6} "
              f"{'target':>6} {'img MiB':>7} {'qemu':>7}")
        failed = [row.name for row in rows if not bench(row, args.repeat)]
        failed += [f"writes {fmt}" for fmt in sorted(formats)
                   if wanted(f"writes {fmt}") and not bench_writes(fmt, args.repeat)]
    finally:
        os.chdir("/")
        shutil.rmtree(folder)
    if failed:
        print(f"\nnot: {', '.join(failed)}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
