"""Backing chains of random content, for the tests of commands that change them."""

import json
import shutil
from pathlib import Path

from platter import KIB, MIB, random_content, random_requests, write_sparse

CLUSTERS = [4 * KIB, 64 * KIB, 512]


def make_chain(qemu_img, qemu_io, rng, depth, base_format="qcow2", compat="1.1"):
    """0.img is the base, and N.qcow2 rests on the one before. Returns the names, the top first."""
    size = rng.choice([3 * MIB, 3 * MIB + 512, 2 * MIB + 4096])
    write_sparse("content.raw", random_content(rng, size, 64 * KIB))
    options = ["-o", f"compat={compat}"] if base_format == "qcow2" else []
    qemu_img("convert", "-f", "raw", "-O", base_format, *options, "content.raw", "0.img")
    names, formats = ["0.img"], [base_format]
    for i in range(1, depth):
        name, cluster = f"{i}.qcow2", rng.choice(CLUSTERS)
        extended = rng.choice(["", ",extended_l2=on"]) if compat == "1.1" and cluster == 64 * KIB else ""
        size = max(MIB, size + rng.choice([0, 0, MIB, -MIB + 512 * rng.randrange(9), 512]))
        qemu_img("create", "-q", "-f", "qcow2", "-b", names[0], "-F", formats[0],
                 "-o", f"cluster_size={cluster},compat={compat}{extended}", name, size)
        compressed = cluster if rng.random() < 0.5 and size % cluster == 0 else 0
        qemu_io(*random_requests(rng, bytearray(size), 64 * KIB, 12, compressed), name)
        names.insert(0, name)
        formats.insert(0, "qcow2")
    return names


def raw_of(qemu_img, name, form="qcow2"):
    """What a guest reads, by the oracle."""
    qemu_img("convert", "-f", form, "-O", "raw", name, "reading.raw")
    return Path("reading.raw").read_bytes()


def copy_all(folder):
    """All images of the current folder, in a new one."""
    Path(folder).mkdir()
    for path in Path(".").iterdir():
        if path.is_file():
            shutil.copy(path, folder)


def sound(qemu_img, name, leaks=False):
    """qemu-img check finds nothing; or, after a crash, leaks at most."""
    alone = "json:" + json.dumps({"driver": "qcow2", "backing": None,
                                  "file": {"driver": "file", "filename": name}})
    qemu_img("check", alone, code=(0, 3) if leaks else 0)


def failing(name, request, on=True, **more):
    """A description of a qcow2 image whose n-th request to its file fails (and all after it)."""
    return "json:" + json.dumps({"driver": "qcow2", **more,
                                 "file": {"driver": "blkdebug", "fail-request": request, "fail-on": on,
                                          "image": {"driver": "file", "filename": name}}})


def slow(name, nanoseconds):
    """A description of a qcow2 image whose file takes its time to write."""
    return "json:" + json.dumps({"driver": "qcow2", "file": {
        "driver": "delay", "write-ns": nanoseconds, "file": {"driver": "file", "filename": name}}})
