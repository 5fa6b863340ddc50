#!/usr/bin/python3
"""The NBD server beside qemu-nbd and nbdkit: fio on a unix socket, the page cache warm.

    bench/nbd.py                 all rows
    bench/nbd.py randread 256k   the rows whose names contain one of these
    bench/nbd.py --short         a second each instead of three

Each server has a copy of its own of the same disk of 1 GiB in /dev/shm. They take turns, and the best of the
repetitions counts. Requests per second; the ratios are ours to theirs, and what is asked stands behind
them. TLS and nbdcopy are rows of their own.
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
NBD = os.environ.get("NBD", str(ROOT / "build" / "bin" / "nbd"))
IMG = os.environ.get("IMG", str(ROOT / "build" / "bin" / "img"))
SIZE = 1 << 30


def run(*argv, **options):
    return subprocess.run([str(a) for a in argv], check=True, capture_output=True, text=True, **options).stdout


class Server:
    def __init__(self, name, argv):
        self.sock = Path.cwd() / f"{name}.sock"
        self.process = subprocess.Popen([str(a).replace("SOCK", str(self.sock)) for a in argv],
                                        stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
        self.uri = f"nbd+unix:///?socket={self.sock}"
        until = time.monotonic() + 10
        while not self.sock.exists():
            assert time.monotonic() < until, f"{argv} does not start"
            time.sleep(0.02)
        time.sleep(0.1)

    def stop(self):
        self.process.terminate()
        self.process.wait()
        self.sock.unlink(missing_ok=True)

    def cpu(self):
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rsplit(")", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def servers(fmt):
    """One each, on its copy."""
    out = {"ours": Server("ours", [NBD, "serve", "-f", fmt, "-k", "SOCK", f"ours.{fmt}"]),
           "qemu-nbd": Server("qemu", ["qemu-nbd", "-t", "-e", "16", "-f", fmt, "-k", "SOCK", f"qemu.{fmt}"])}
    if fmt == "raw":
        out["nbdkit"] = Server("nbdkit", ["nbdkit", "-f", "-U", "SOCK", "file", "nbdkit.raw"])
    return out


def fio(server, rw, bs, depth, seconds, jobs=1):
    """Requests per second, and the server's processor time for each."""
    before = server.cpu()
    text = run("fio", "--name=x", "--ioengine=nbd", f"--uri={server.uri}", f"--rw={rw}", f"--bs={bs}",
               f"--iodepth={depth}", f"--runtime={seconds}", "--time_based", f"--size={SIZE}",
               f"--numjobs={jobs}", "--group_reporting", "--randrepeat=1", "--output-format=json")
    import json
    job = json.loads(text[text.index("{"):])["jobs"][0]
    side = job["read" if "read" in rw else "write"]
    return side["iops"], (server.cpu() - before) / max(side["total_ios"], 1)


#       name                   format   rw           bs      depth jobs  asked of qemu-nbd, of nbdkit
ROWS = [("randread 4k 32", "raw", "randread", "4k", 32, 1, 4.0, 1.5),
        ("randread 4k 32 qcow2", "qcow2", "randread", "4k", 32, 1, 4.0, None),
        ("randwrite 4k 32", "raw", "randwrite", "4k", 32, 1, 4.0, 1.1),
        ("randwrite 4k 32 qcow2", "qcow2", "randwrite", "4k", 32, 1, 4.0, None),
        ("randread 4k 1", "raw", "randread", "4k", 1, 1, 1.3, 1.0),
        ("randwrite 4k 1", "raw", "randwrite", "4k", 1, 1, 1.3, 1.0),
        ("read 256k 8", "raw", "read", "256k", 8, 1, 3.0, None),
        ("write 256k 8", "raw", "write", "256k", 8, 1, 3.0, None),
        ("randread 4k 32, 8 clients", "raw", "randread", "4k", 32, 8, None, None)]


def compare(name, fmt, rw, bs, depth, jobs, of_qemu, of_nbdkit, seconds, repeat):
    all_of_them = servers(fmt)
    best = dict.fromkeys(all_of_them, 0.0)
    cpu = dict.fromkeys(all_of_them, 1.0)
    for _ in range(repeat):
        for who, server in all_of_them.items():
            rate, cost = fio(server, rw, bs, depth, seconds, jobs)
            best[who] = max(best[who], rate)
            cpu[who] = min(cpu[who], cost)
    for server in all_of_them.values():
        server.stop()
    line = f"{name:26}" + "".join(f"  {who} {rate:8.0f}/s {cpu[who] * 1e6:6.1f} us" for who, rate in best.items())
    for other, wanted in (("qemu-nbd", of_qemu), ("nbdkit", of_nbdkit)):
        if other in best:
            ratio = best["ours"] / max(best[other], 1)
            verdict = "" if wanted is None else f" (>= {wanted}{'' if ratio >= wanted else ' MISSED'})"
            line += f"  / {other} {ratio:.2f}{verdict}"
    print(line, flush=True)


def copy_with_nbdcopy(repeat):
    for fmt in ("raw", "qcow2"):
        all_of_them = servers(fmt)
        best = dict.fromkeys(all_of_them, 1e9)
        for _ in range(repeat):
            for who, server in all_of_them.items():
                began = time.monotonic()
                run("nbdcopy", server.uri, "null:")
                best[who] = min(best[who], time.monotonic() - began)
        for server in all_of_them.values():
            server.stop()
        print(f"nbdcopy {fmt:18}" + "".join(f"  {who} {t:6.3f} s" for who, t in best.items())
              + f"  ratio {best['ours'] / best['qemu-nbd']:.2f}", flush=True)


def tls(repeat):
    Path("psk").mkdir()
    run("psktool", "-u", "alice", "-p", "psk/keys.psk")
    creds = ["--object", f"tls-creds-psk,id=t,dir={Path.cwd()}/psk,endpoint=server", "--tls-creds", "t"]
    pair = {"ours": Server("ours", [NBD, "serve", "-f", "raw", "-k", "SOCK", *creds, "ours.raw"]),
            "qemu-nbd": Server("qemu", ["qemu-nbd", "-t", "-e", "16", "-f", "raw", "-k", "SOCK", *creds, "qemu.raw"])}
    # fio takes no keys in a name.
    best = dict.fromkeys(pair, 1e9)
    for _ in range(repeat):
        for who, server in pair.items():
            uri = f"nbds+unix://alice@/?socket={server.sock}&tls-psk-file={Path.cwd()}/psk/keys.psk"
            began = time.monotonic()
            run("nbdcopy", uri, "null:")
            best[who] = min(best[who], time.monotonic() - began)
    print("nbdcopy tls               " + "".join(f"  {who} {t:6.3f} s" for who, t in best.items())
          + f"  ratio {best['ours'] / best['qemu-nbd']:.2f}", flush=True)
    for server in pair.values():
        server.stop()


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("rows", nargs="*")
    parser.add_argument("--short", action="store_true")
    parser.add_argument("--repeat", type=int, default=3)
    args = parser.parse_args()
    seconds = 1 if args.short else 3

    def wanted(name):
        return not args.rows or any(re.search(re.escape(word), name) for word in args.rows)
    folder = tempfile.mkdtemp(dir="/dev/shm")
    os.chdir(folder)
    try:
        with open("ours.raw", "wb") as f:
            for _ in range(SIZE >> 20):
                f.write(os.urandom(1 << 20))
        for who in ("qemu", "nbdkit"):
            shutil.copy("ours.raw", f"{who}.raw")
        if any("qcow2" in row[0] and wanted(row[0]) for row in ROWS) or wanted("nbdcopy"):
            run("qemu-img", "convert", "-f", "raw", "-O", "qcow2", "ours.raw", "ours.qcow2")
            shutil.copy("ours.qcow2", "qemu.qcow2")
        for row in ROWS:
            if wanted(row[0]):
                compare(*row, seconds, args.repeat)
        if wanted("nbdcopy"):
            copy_with_nbdcopy(args.repeat)
        if wanted("tls"):
            tls(args.repeat)
    finally:
        os.chdir("/")
        shutil.rmtree(folder)


if __name__ == "__main__":
    sys.exit(main())
