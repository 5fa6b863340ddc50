#!/usr/bin/python3
"""Random 4 KiB reads in a guest, through virtio-blk, AHCI and NVMe, beside QEMU's software CPU.

    bench/guest_disk.py [DEVICE]...

Each figure is reads a second as the guest counts them, with 1 and with 16 at a time; the disk is a raw file that the host
has cached. QEMU is qemu-system-x86_64 from the path, or the one that QEMU names.
"""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent / "tests" / "tools"))

import guests  # noqa: E402  (needs the path above)
from disks import DEVICES  # noqa: E402

SECONDS = 5
THREADS = (1, 16)
GUEST = """
for m in {modules}; do insmod /$m; done
for i in 1 2 3 4 5 6 7 8 9; do [ -b {disk} ] || sleep 1; done
for t in {threads}; do guest_reads {disk} $t {seconds}; done
poweroff -f
"""


def measure(program, folder, device):
    plug, disk, modules = DEVICES[device]
    script = GUEST.format(modules=" ".join(modules), disk=disk, seconds=SECONDS,
                          threads=" ".join(map(str, THREADS)))
    more = {name: guests.module("trixie", name) for name in modules}
    more["bin/guest_reads"] = (folder / "guest_reads").read_bytes()
    ram = guests.initrd(folder / "initrd", script, more)
    said = ""
    for _ in range(3):  # the packaged QEMU panics this kernel now and then
        done = subprocess.run(
            ["timeout", "90",
             program, "-M", "q35", "-accel", "tcg", "-m", "512", "-display", "none", "-serial",
             "stdio", "-monitor", "none", "-no-reboot", "-kernel", guests.kernel("trixie"), "-initrd",
             ram, "-append", "console=ttyS0 quiet panic=-1", "-drive",
             f"file={folder / 'disk'},format=raw,if=none,id=d", *plug],
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True)
        said = done.stdout
        reads = [int(line.split()[1]) for line in done.stdout.splitlines()
                 if line.startswith("READS ")]
        if len(reads) == len(THREADS):
            return reads
    raise SystemExit(f"{program} {device}:\n{said[-2000:]}")


def main():
    ours = Path(os.environ.get("PLATTER_BIN", HERE.parent / "build" / "bin")) / "emulator"
    theirs = os.environ.get("QEMU", "qemu-system-x86_64")
    with tempfile.TemporaryDirectory(dir="/var/tmp") as name:
        folder = Path(name)
        subprocess.run(["cc", "-O2", "-static", "-pthread", "-D_GNU_SOURCE", "-o", folder / "guest_reads",
                        HERE / "guest_reads.c"], check=True)
        (folder / "disk").write_bytes(os.urandom(64 << 20))
        print(f"{'reads a second':16}{'platter':>10}{'qemu':>10}{'ratio':>8}")
        for device in sys.argv[1:] or DEVICES:
            a, b = measure(ours, folder, device), measure(theirs, folder, device)
            for threads, x, y in zip(THREADS, a, b):
                print(f"{device + ' ' + str(threads):16}{x:10}{y:10}{x / y:8.2f}")


if __name__ == "__main__":
    main()
