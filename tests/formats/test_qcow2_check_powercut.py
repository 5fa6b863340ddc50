"""Power cuts in the middle of a repair: nothing is worse than before, and another repair ends well.

The repair runs over blklogwrites. Then the image is built anew as it may have been at every point: what
came before the last flush is there, each sector written since may have landed or not.
"""

import shutil
import struct

import pytest

from platter import KIB
from powerlog import FLUSH, cut, read_log
from qcow2edit import COPIED, OFFSET, Qcow2

VARIANTS = ("kept", "torn", "torn")


def refcounts_wrong(q):
    block = q.u64(q["refcount_table_offset"] + 8)
    q.write(block, struct.pack(">H", 2) * 60 + bytes(2 * 60))


def leaks(q):
    block = q.u64(q["refcount_table_offset"] + 8 * 2)
    q.write(block, struct.pack(">H", 3) * 100)


def refcounts_lost(q):
    q.write(q["refcount_table_offset"], bytes(q["refcount_table_clusters"] * q.cluster))


def flags_missing(q):
    for _, at, entry in q.data()[5:400:7]:
        q.put64(at, entry & ~COPIED)
    q.put64(q.l1_at(1), q.u64(q.l1_at(1)) & ~COPIED)


def entry_twice(q):
    data = q.data()
    q.put64(data[9][1], data[8][2])


def all_of_it(q):
    entry_twice(q)
    flags_missing(q)
    leaks(q)


@pytest.mark.parametrize("damage", [refcounts_wrong, leaks, refcounts_lost, flags_missing,
                                    entry_twice, all_of_it], ids=lambda damage: damage.__name__)
def test_powercut_in_repair(img, qemu_img, qemu_io, tmp, rng, damage):
    qemu_img("create", "-f", "qcow2", "-o", "cluster_size=512,lazy_refcounts=on", "a.qcow2", 512 * KIB)
    qemu_io("-c", "write -P 1 0 200k", "-c", "write -P 2 210k 100k", "-c", "write -z 50k 10k",
            "a.qcow2")
    with Qcow2("a.qcow2") as q:
        damage(q)
        q["incompatible"] = 1  # dirty: it must stay until all is good
        assert (q.data()[0][2] & OFFSET) % 512 == 0
    shutil.copy("a.qcow2", "run.qcow2")
    before = open("a.qcow2", "rb").read()
    qemu_img("convert", "-O", "raw", "a.qcow2", "a.raw")
    content = open("a.raw", "rb").read()
    open("log", "wb").close()
    img("check", "-r", "all", "--image-opts",
        "driver=qcow2,file.driver=blklogwrites,file.log.driver=file,file.log.filename=log,"
        "file.file.filename=run.qcow2")
    log = read_log("log")
    assert any(entry.flags & FLUSH for entry in log)
    for at, variant in ((at, variant) for at in range(len(log) + 1) for variant in VARIANTS):
        with open("b.qcow2", "wb") as file:
            file.write(cut(before, log, at, variant, rng))
        with Qcow2("b.qcow2") as q:
            dirty = q["incompatible"]
        where = f"{damage.__name__}, {at} of {len(log)}, {variant}"
        if not dirty:
            assert img("check", "b.qcow2", code=None).code == 0, where
        img("convert", "-f", "qcow2", "-O", "raw", "b.qcow2", "b.raw")
        assert open("b.raw", "rb").read() == content, where
        assert img("check", "-r", "all", "b.qcow2", code=None).code == 0, where
    img("convert", "-f", "qcow2", "-O", "raw", "b.qcow2", "b.raw")
    assert open("b.raw", "rb").read() == content
    assert qemu_img("check", "b.qcow2").code == 0
