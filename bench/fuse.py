#!/usr/bin/python3
"""img mount beside qemu-storage-daemon's FUSE export and nbdfuse over qemu-nbd.

    bench/fuse.py              all rows
    bench/fuse.py read open    the rows whose names contain one of these
    bench/fuse.py --short      a disk of 256 MiB and half a second instead of 1 GiB and three

Each has a copy of its own of the same disk in /dev/shm. They take turns, the best of the repetitions counts, and the
page cache of the mount is dropped by mounting anew for each run. The
ratios are ours to theirs, of writes the better of ours. Random reads pass the mount's cache by (O_DIRECT), which
nbdfuse does not get through.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
IMG = os.environ.get("IMG", str(ROOT / "build" / "bin" / "img"))


def run(*argv, **options):
    return subprocess.run([str(a) for a in argv], check=True, capture_output=True, text=True, **options).stdout


def wait_for(path, size):
    """Until the file has its size: nothing else says that these servers are ready."""
    until = time.monotonic() + 10
    while not path.exists() or path.stat().st_size != size:
        assert time.monotonic() < until, f"{path} does not come"
        time.sleep(0.0005)


class Ours:
    name = "ours"
    options = []

    def __init__(self, fmt, size):
        self.folder, self.fmt, self.size = Path("ours.d"), fmt, size
        self.folder.mkdir(exist_ok=True)
        self.file = self.folder / "disk"

    def start(self):
        run(IMG, "mount", "-w", *self.options, "-f", self.fmt, f"ours.{self.fmt}", self.folder)

    def stop(self):
        run(IMG, "umount", self.folder)


class Writeback(Ours):
    name = "--writeback"
    options = ["--writeback"]


class Process:
    def stop(self):
        run("fusermount3", "-u", self.mountpoint)
        for process in self.processes:
            process.terminate()
            process.wait()

    def spawn(self, *argv):
        self.processes.append(subprocess.Popen([str(a) for a in argv], stdout=subprocess.DEVNULL,
                                               stderr=subprocess.DEVNULL))


class Qsd(Process):
    name = "qsd"

    def __init__(self, fmt, size):
        self.fmt, self.size, self.file = fmt, size, Path("qsd.file").absolute()
        self.file.touch()
        self.mountpoint = self.file

    def start(self):
        self.processes = []
        self.spawn("qemu-storage-daemon", "--blockdev", f"driver=file,node-name=f,filename=theirs.{self.fmt}",
                   "--blockdev", f"driver={self.fmt},node-name=d,file=f", "--export",
                   f"type=fuse,id=e,node-name=d,mountpoint={self.file},writable=on")
        wait_for(self.file, self.size)

    def stop(self):
        # It unmounts by itself when told to end.
        for process in self.processes:
            process.terminate()
            process.wait()


class Nbdfuse(Process):
    name = "nbdfuse"

    def __init__(self, fmt, size):
        self.fmt, self.size, self.file = fmt, size, Path("nbdfuse.file").absolute()
        self.file.touch()
        self.mountpoint = self.file

    def start(self):
        self.processes = []
        sock = Path("nbd.sock").absolute()
        sock.unlink(missing_ok=True)
        self.spawn("qemu-nbd", "-t", "-e", "8", "-f", self.fmt, "-k", sock, f"nbd.{self.fmt}")
        while not sock.exists():
            time.sleep(0.0005)
        self.spawn("nbdfuse", self.file, f"nbd+unix:///?socket={sock}")
        wait_for(self.file, self.size)


def fio(server, rw, bs, jobs, seconds):
    """Bytes per second for sequential rows, requests per second for random ones."""
    server.start()
    try:
        args = ["--direct=1", "--randrepeat=1", "--time_based", f"--runtime={seconds}"] if "rand" in rw else []
        text = run("fio", "--name=x", f"--filename={server.file}", "--ioengine=psync", f"--rw={rw}", f"--bs={bs}",
                   f"--numjobs={jobs}", f"--size={server.size}", "--group_reporting", "--allow_file_create=0",
                   "--fallocate=none", "--end_fsync=1", "--invalidate=0", "--output-format=json", *args)
    finally:
        server.stop()
    job = json.loads(text[text.index("{"):])["jobs"][0]
    side = job["read" if "read" in rw else "write"]
    return side["iops"] if "rand" in rw else side["bw_bytes"] / 1e6


def first_byte(server):
    """Milliseconds from the command to the first byte."""
    began = time.monotonic()
    server.start()
    with open(server.file, "rb", buffering=0) as f:
        f.read(512)
    seconds = time.monotonic() - began
    server.stop()
    return seconds * 1000


#       name                  format   rw          bs    jobs  asked
ROWS = [("read 1M raw", "raw", "read", "1M", 1, 1.5), ("write 1M raw", "raw", "write", "1M", 1, 1.5),
        ("read 1M qcow2", "qcow2", "read", "1M", 1, 1.5), ("write 1M qcow2", "qcow2", "write", "1M", 1, 1.5),
        ("randread 4k 16 raw", "raw", "randread", "4k", 16, 2.0),
        ("randread 4k 16 qcow2", "qcow2", "randread", "4k", 16, 2.0),
        ("open qcow2 (ms)", "qcow2", None, None, None, 30)]


def row(name, fmt, rw, bs, jobs, asked, seconds, repeat, size):
    servers = [kind(fmt, size) for kind in (Ours, Qsd) + (Nbdfuse,) * (rw != "randread")
               + (Writeback,) * (rw == "write")]
    best = {}
    for _ in range(repeat):
        for server in servers:
            value = fio(server, rw, bs, jobs, seconds) if rw else -first_byte(server)
            best[server.name] = max(best.get(server.name, value), value)
    ours = max(best[who] for who in ("ours", "--writeback") if who in best)
    if rw:
        verdict = "".join(f"  / {other} {ours / best[other]:.2f}" for other in ("qsd", "nbdfuse")
                          if other in best)
        verdict += f" (>= {asked}{'' if ours >= asked * best['qsd'] else ' MISSED'})"
    else:
        verdict = f" (<= {asked}{'' if -ours <= asked else ' MISSED'})"
    print(f"{name:22}" + "".join(f"  {who} {abs(value):9.0f}" for who, value in best.items()) + verdict, flush=True)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("rows", nargs="*")
    parser.add_argument("--short", action="store_true")
    parser.add_argument("--repeat", type=int, default=3)
    args = parser.parse_args()
    seconds, size = (0.5, 256 << 20) if args.short else (3, 1 << 30)
    folder = tempfile.mkdtemp(dir="/dev/shm")
    os.chdir(folder)
    try:
        with open("ours.raw", "wb") as f:
            for _ in range(size >> 20):
                f.write(os.urandom(1 << 20))
        for fmt in ("raw", "qcow2"):
            if fmt == "qcow2":
                run("qemu-img", "convert", "-f", "raw", "-O", "qcow2", "ours.raw", "ours.qcow2")
            for who in ("theirs", "nbd"):
                shutil.copy(f"ours.{fmt}", f"{who}.{fmt}")
        for one in ROWS:
            if not args.rows or any(word in one[0] for word in args.rows):
                row(*one, seconds, args.repeat, size)
    finally:
        os.chdir("/")
        shutil.rmtree(folder)


if __name__ == "__main__":
    sys.exit(main())
