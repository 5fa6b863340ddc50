"""check and repair of qcow2 beyond single damages: snapshots, bitmaps, hostile images, large ones."""

import json
import os
import shutil
import struct
import subprocess

import pytest

from platter import GIB, KIB, MIB, TIB
from qcow2edit import COMPRESSED, COPIED, OFFSET, Qcow2

BOUNDS = {"timeout": 20, "memory": 256 * MIB}
ANY = (0, 1, 2, 3)
COUNTS = ("check-errors", "corruptions", "leaks", "corruptions-fixed", "leaks-fixed",
          "total-clusters", "allocated-clusters", "compressed-clusters", "fragmented-clusters")


def check(tool, path, *options, code=ANY, **bounds):
    return tool("check", "--output=json", *options, path, code=code, **bounds)


def counts(result):
    answer = json.loads(result.out) if result.out.strip() else {}
    return result.code, [answer.get(key, 0) for key in COUNTS]


def filled(qemu_img, qemu_io, path="a.qcow2", cluster=4 * KIB, options="", clusters=64):
    qemu_img("create", "-f", "qcow2", "-o", f"cluster_size={cluster}{options}", path,
             clusters * cluster)
    qemu_io("-c", f"write -P 1 0 {20 * cluster}", "-c", f"write -z {4 * cluster} {3 * cluster}",
            "-c", f"write -c -P 3 {30 * cluster} {cluster}",
            "-c", f"write -c -P 4 {31 * cluster} {cluster}",
            "-c", f"write -P 5 {40 * cluster} {8 * cluster}", path)


def content(tool, path, *options):
    tool("convert", *options, "-O", "raw", path, "content.raw")
    return open("content.raw", "rb").read()


# ---------------------------------------------------------------- all that can refer to clusters

@pytest.mark.parametrize("cluster", [512, 4 * KIB, 64 * KIB])
@pytest.mark.parametrize("compat", ["0.10", "1.1"])
def test_snapshots_are_counted(img, qemu_img, qemu_io, tmp, cluster, compat):
    filled(qemu_img, qemu_io, cluster=cluster, options=f",compat={compat}")
    for name in ("one", "two"):
        qemu_img("snapshot", "-c", name, "a.qcow2")
        qemu_io("-c", f"write -P 9 {2 * cluster} {6 * cluster}", "a.qcow2")
    assert counts(check(img, "a.qcow2")) == counts(check(qemu_img, "a.qcow2"))
    assert check(img, "a.qcow2").code == 0


def test_bitmaps_are_counted(img, qemu_img, qemu_io, tmp):
    filled(qemu_img, qemu_io)
    qemu_img("bitmap", "--add", "-g", "512", "a.qcow2", "b0")
    qemu_io("-c", "write -P 9 0 100k", "a.qcow2")
    qemu_img("bitmap", "--add", "a.qcow2", "b1")
    assert check(img, "a.qcow2").code == 0
    assert check(img, "a.qcow2", "-r", "all").code == 0
    names = [bitmap["name"] for bitmap in
             qemu_img("info", "--output=json", "a.qcow2").json["format-specific"]["data"]["bitmaps"]]
    assert names == ["b0", "b1"]


def test_encryption_header_is_counted(img, qemu_img, tmp):
    """The clusters that the extension names are in use."""
    img("create", "-f", "qcow2", "-o", "cluster_size=4k", "a.qcow2", "1M")
    with Qcow2("a.qcow2") as q:
        end = -(-os.path.getsize("a.qcow2") // q.cluster)
        q.write(end * q.cluster, bytes(2 * q.cluster))
        q.set_refcount(end, 1)
        q.set_refcount(end + 1, 1)
        assert check(img, "a.qcow2").json["leaks"] == 2
        q.write(q["header_length"], struct.pack(">IIQQII", 0x0537be77, 16, end * q.cluster,
                                                q.cluster + 100, 0, 0))
    assert check(img, "a.qcow2").code == 0


@pytest.mark.parametrize("damage", ["too high", "too low", "zero"])
def test_refcounts_under_snapshots(img, qemu_img, qemu_io, tmp, damage):
    """What the snapshot and the disk share has two references; mended, both read as before."""
    filled(qemu_img, qemu_io)
    qemu_img("snapshot", "-c", "one", "a.qcow2")
    qemu_io("-c", "write -P 9 0 4k", "a.qcow2")
    before = content(qemu_img, "a.qcow2"), content(qemu_img, "a.qcow2", "-l", "one")
    with Qcow2("a.qcow2") as q:
        shared = (q.data()[6][2] & OFFSET) // q.cluster
        assert q.refcount(shared) == 2
        q.set_refcount(shared, {"too high": 7, "too low": 1, "zero": 0}[damage])
    assert check(img, "a.qcow2").code == check(qemu_img, "a.qcow2").code
    assert check(img, "a.qcow2", "-r", "all").code == 0
    assert check(qemu_img, "a.qcow2").code == 0
    assert before == (content(qemu_img, "a.qcow2"), content(qemu_img, "a.qcow2", "-l", "one"))


def test_lost_snapshot_keeps_its_clusters(img, qemu_img, qemu_io, tmp):
    """A snapshot whose table cannot be read may still be saved by hand: nothing of it is freed."""
    filled(qemu_img, qemu_io)
    qemu_img("snapshot", "-c", "one", "a.qcow2")
    qemu_io("-c", "write -P 9 0 40k", "a.qcow2")
    with Qcow2("a.qcow2") as q:
        at, l1 = q["snapshots_offset"], q.u64(q["snapshots_offset"])
        q.put64(at, l1 + 512)
    assert check(img, "a.qcow2", "-r", "all").code != 0
    with Qcow2("a.qcow2") as q:
        q.put64(at, l1)
    assert check(qemu_img, "a.qcow2").code == 0


# ---------------------------------------------------------------- repair

def test_marks_are_cleared_last(img, qemu_img, qemu_io, tmp):
    """Dirty and corrupt go when the image is good, stay while something is left."""
    filled(qemu_img, qemu_io)
    with Qcow2("a.qcow2") as q:
        q["incompatible"] = 3
        q.set_refcount((q.data()[3][2] & OFFSET) // q.cluster, 2)
    shutil.copy("a.qcow2", "b.qcow2")
    assert check(img, "a.qcow2").code == 2
    assert check(img, "a.qcow2", "-r", "all").code == 0
    with Qcow2("a.qcow2") as q:
        assert q["incompatible"] == 0
    with Qcow2("b.qcow2") as q:
        q.put64(q.data()[2][1], q.data()[2][2] + 512)
    assert check(img, "b.qcow2", "-r", "all").code == 2
    with Qcow2("b.qcow2") as q:
        assert q["incompatible"] & 2


@pytest.mark.parametrize("width", [1, 2, 8, 16, 64])
@pytest.mark.parametrize("cluster", [512, 4 * KIB, 64 * KIB])
def test_rebuild(img, qemu_img, qemu_io, tmp, cluster, width):
    """All refcounts are lost: new ones are made, and the image can be written to as before."""
    filled(qemu_img, qemu_io, cluster=cluster, options=f",refcount_bits={width}")
    before = content(qemu_img, "a.qcow2")
    with Qcow2("a.qcow2") as q:
        q.write(q["refcount_table_offset"], bytes(q["refcount_table_clusters"] * q.cluster))
    assert check(img, "a.qcow2", "-r", "leaks").code == 1
    assert check(img, "a.qcow2", "-r", "all").code == 0
    assert check(qemu_img, "a.qcow2").code == 0
    assert content(qemu_img, "a.qcow2") == before
    qemu_io("-c", f"write -P 7 {50 * cluster} {10 * cluster}", "a.qcow2")
    assert check(qemu_img, "a.qcow2").code == 0


def test_rebuild_of_a_large_image(img, qemu_img, tmp):
    """Some thousand refcount blocks, a refcount table of many clusters."""
    img("create", "-f", "qcow2", "-o", "cluster_size=512,preallocation=metadata", "a.qcow2", "512M")
    with Qcow2("a.qcow2") as q:
        q.write(q["refcount_table_offset"], bytes(4096))
    assert check(img, "a.qcow2", "-r", "all", **BOUNDS).code == 0
    assert check(qemu_img, "a.qcow2").code == 0


def test_interrupted_rebuild(img, qemu_img, qemu_io, tmp):
    """The disk fills up in the middle: the image is as it was."""
    filled(qemu_img, qemu_io)
    with Qcow2("a.qcow2") as q:
        q.write(q["refcount_table_offset"], bytes(q.cluster))
    size = os.path.getsize("a.qcow2")
    before = open("a.qcow2", "rb").read()
    assert check(img, "a.qcow2", "-r", "all", file_size=size + 5 * KIB).code == 1
    assert open("a.qcow2", "rb").read()[:size] == before
    assert check(img, "a.qcow2", "-r", "all").code == 0


def test_repair_never_writes_on_the_l1_table(img, qemu_img, qemu_io, tmp):
    """An L2 table that lies on the refcount table: its flags are not mended."""
    filled(qemu_img, qemu_io)
    with Qcow2("a.qcow2") as q:
        table = q["refcount_table_offset"]
        q.put64(q.l1_at(0), table | COPIED)
        before = q.read(table, 8)
    check(img, "a.qcow2", "-r", "all")
    with Qcow2("a.qcow2") as q:
        assert q.read(table, 8) == before


# ---------------------------------------------------------------- hostile

def test_one_l2_table_for_all(img, tmp):
    """Every L1 entry of the largest table points to one L2 table: no work without end."""
    img("create", "-f", "qcow2", "-o", "cluster_size=64k", "a.qcow2", 2 << 50)
    with Qcow2("a.qcow2") as q:
        end = -(-os.path.getsize("a.qcow2") // q.cluster) * q.cluster
        entries = q["l1_size"]
        q.write(end, struct.pack(">Q", COPIED | end) * (q.cluster // 8))
        q.write(q["l1_offset"], struct.pack(">Q", COPIED | end) * entries)
    assert check(img, "a.qcow2", **BOUNDS).code == 2
    check(img, "a.qcow2", "-r", "all", **BOUNDS)


def test_unaligned_l2_tables(img, tmp):
    """The same with places that are no clusters."""
    img("create", "-f", "qcow2", "-o", "cluster_size=64k", "a.qcow2", 1 << 48)
    with Qcow2("a.qcow2") as q:
        end = -(-os.path.getsize("a.qcow2") // q.cluster) * q.cluster
        q.write(end, b"\x80\x01" * q.cluster)
        q.write(q["l1_offset"], struct.pack(">Q", COPIED | end | 512) * q["l1_size"])
    result = check(img, "a.qcow2", **BOUNDS)
    assert result.code == 2 and len(result.err) < 4 * MIB


def test_many_snapshots_of_one_l1_table(img, qemu_img, qemu_io, tmp):
    """65536 snapshots that claim the same 32 MiB."""
    filled(qemu_img, qemu_io)
    with Qcow2("a.qcow2") as q:
        q.file.seek(0, 2)
        end = -(-q.file.tell() // q.cluster) * q.cluster
        q.write(end, os.urandom(MIB) + bytes(31 * MIB))
        table = end + 32 * MIB
        entry = struct.pack(">QIHHIIQII", end, 4 * MIB, 1, 1, 0, 0, 0, 0, 16) + bytes(16) + b"1a" + bytes(6)
        q.write(table, entry * 65536)
        q["snapshots"], q["snapshots_offset"] = 65536, table
    result = check(img, "a.qcow2", **BOUNDS)
    assert result.code != 0 and len(result.err) < 4 * MIB


@pytest.mark.parametrize("size", [1 << 62, 1 << 52, 1 << 45])
def test_immense_sparse_file(img, qemu_img, qemu_io, tmp, size):
    filled(qemu_img, qemu_io)
    try:
        os.truncate("a.qcow2", size)
    except OSError:
        pytest.skip("the file system has no files of this size")
    check(img, "a.qcow2", code=(0, 1), **BOUNDS)
    check(img, "a.qcow2", "-r", "all", code=(0, 1), **BOUNDS)


def test_far_apart_entries(img, tmp):
    """Entries spread over a large sparse file: memory follows what is there, not what is claimed."""
    img("create", "-f", "qcow2", "-o", "cluster_size=64k", "a.qcow2", TIB)
    with Qcow2("a.qcow2") as q:
        end = -(-os.path.getsize("a.qcow2") // q.cluster) * q.cluster
        far = 1 << 40
        q.write(q["l1_offset"], struct.pack(">Q", end | COPIED))
        q.write(end, b"".join(struct.pack(">Q", (i * (far // 8192) & ~0xffff) + MIB | COPIED)
                              for i in range(8192)))
        q.file.truncate(far + 2 * MIB)
    check(img, "a.qcow2", **BOUNDS)
    assert check(img, "a.qcow2", "-r", "all", **BOUNDS).code == 0
    assert check(img, "a.qcow2", **BOUNDS).code == 0


def test_compressed_descriptors_at_extremes(img, qemu_img, qemu_io, tmp):
    for value in (COMPRESSED | (1 << 62) - 1, COMPRESSED, COMPRESSED | COPIED,
                  COMPRESSED | 0x3fff << 48):
        filled(qemu_img, qemu_io)
        with Qcow2("a.qcow2") as q:
            q.put64(q.l2_at(0), value)
        assert counts(check(img, "a.qcow2", **BOUNDS)) == counts(check(qemu_img, "a.qcow2"))


# ---------------------------------------------------------------- large and good

@pytest.mark.parametrize("options", ["", ",refcount_bits=1", ",refcount_bits=64"])
def test_large_image(img, qemu_img, tmp, options):
    """1 TiB, fully allocated: a second at most where qemu-img takes more than that."""
    img("create", "-f", "qcow2", "-o", "preallocation=metadata" + options, "a.qcow2", TIB)
    result = check(img, "a.qcow2", memory=64 * MIB, timeout=10)
    assert result.code == 0
    assert result.json["allocated-clusters"] == TIB // (64 * KIB)
    assert "fragmented-clusters" not in result.json


def test_shared_table_of_compressed_clusters(img, qemu_img, tmp):
    """More than 65535 clusters of one byte each share host clusters."""
    with open("a.raw", "wb") as file:
        file.write(b"\1" * (48 * MIB))
    qemu_img("convert", "-c", "-O", "qcow2", "-o", "cluster_size=4k", "a.raw", "a.qcow2")
    assert counts(check(img, "a.qcow2")) == counts(check(qemu_img, "a.qcow2"))


def test_progress_and_quiet(img, qemu_img, tmp):
    img("create", "-f", "qcow2", "-o", "preallocation=metadata", "a.qcow2", 4 * GIB)
    assert img("check", "-q", "a.qcow2").out == ""


def test_killed_in_repair(img, qemu_img, tmp):
    """Killed at many moments of a rebuild and of mending: another repair brings it to a good end."""
    img("create", "-f", "qcow2", "-o", "cluster_size=512,preallocation=metadata", "good.qcow2", "64M")
    for number in range(12):
        shutil.copy("good.qcow2", "a.qcow2")
        with Qcow2("a.qcow2") as q:
            if number % 2:
                q.write(q["refcount_table_offset"], bytes(512))
            else:
                q.write(q.u64(q["refcount_table_offset"] + 8 * 50), b"\0\2" * 256)
        process = img.start("check", "-r", "all", "a.qcow2")
        try:
            process.wait(timeout=0.004 * (number + 1))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        assert check(img, "a.qcow2", "-r", "all").code == 0
        assert check(qemu_img, "a.qcow2").code == 0
