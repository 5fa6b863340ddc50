"""qcow2 files that nobody made on purpose: a clear error, no crash, no hang, bounded memory."""

import json
import os
import shutil
import struct
from pathlib import Path

import pytest

from platter import KIB, MIB, random_content, same_bytes, write_sparse
from qcow2edit import COPIED, OFFSET, Qcow2

LIMITS = {"timeout": 20, "memory": 256 * MIB}
ANY = {"code": (0, 1, 2, 3, 63), **LIMITS}


def small_image(qemu_img, rng, path="a.qcow2", compat="1.1", cluster=4 * KIB, size=2 * MIB):
    """An image of many small tables, with a broken end."""
    content = random_content(rng, size + 512, 64 * KIB)
    write_sparse("a.raw", content)
    qemu_img("convert", "-f", "raw", "-O", "qcow2", "-o", f"cluster_size={cluster},compat={compat}",
             "a.raw", path)
    return content


def stress_all(img, path):
    """Every command that reads the image, and those that write to it, on copies."""
    before = Path(path).read_bytes()
    img("info", "-f", "qcow2", "--output=json", path, **ANY)
    img("map", "-f", "qcow2", "--output=json", path, **ANY)
    img("check", "-f", "qcow2", path, **ANY)
    img("convert", "-f", "qcow2", "-O", "raw", path, "out.raw", **ANY)
    assert Path(path).read_bytes() == before, "reading wrote to the image"
    for argv in (["check", "-f", "qcow2", "-r", "all"], ["resize", "-f", "qcow2"],
                 ["convert", "-n", "-f", "raw", "-O", "qcow2", "a.raw"]):
        shutil.copy(path, "copy.qcow2")
        img(*argv, "copy.qcow2", *(["+1M"] if argv[0] == "resize" else []), **ANY)
        os.unlink("copy.qcow2")



@pytest.mark.parametrize("structure", ["header", "l1", "l2[0]", "l2[1]", "refcount table",
                                       "refcount block 0"])
def test_truncated_inside(img, qemu_img, tmp, rng, structure):
    """The file ends at every 512 bytes of a structure: before, inside, and right after it."""
    small_image(qemu_img, rng)
    with Qcow2("a.qcow2") as q:
        at, length = next((at, length) for name, at, length in q.structures() if name == structure)
    for cut in range(at, at + length + 1, 512):
        shutil.copy("a.qcow2", "cut.qcow2")
        os.truncate("cut.qcow2", cut)
        if structure == "header" and cut == 0:
            img.fails("info", "-f", "qcow2", "cut.qcow2", **LIMITS)
        stress_all(img, "cut.qcow2")


def test_truncated_before_the_l1_table(img, qemu_img, tmp, rng):
    """Not an empty disk, but an error; and info still tells what the header says."""
    small_image(qemu_img, rng)
    with Qcow2("a.qcow2") as q:
        at = next(at for name, at, _ in q.structures() if name == "l1")
    os.truncate("a.qcow2", at)
    assert "L1 table" in img.fails("convert", "-f", "qcow2", "-O", "raw", "a.qcow2", "out.raw", **LIMITS).err
    assert not os.path.exists("out.raw")
    img("info", "-f", "qcow2", "a.qcow2")


@pytest.mark.parametrize("length", [0, 1, 3, 4, 8, 71, 72, 103])
def test_truncated_header(img, tmp, qemu_img, rng, length):
    """Shorter than one header: refused, and no output is left behind."""
    small_image(qemu_img, rng)
    os.truncate("a.qcow2", length)
    img.fails("info", "-f", "qcow2", "a.qcow2", **LIMITS)
    img.fails("check", "-f", "qcow2", "a.qcow2", **LIMITS)
    img.fails("convert", "-f", "qcow2", "-O", "raw", "a.qcow2", "out.raw", **LIMITS)
    assert not os.path.exists("out.raw")


EXTREMES = {
    "version": [0, 1, 4, 0xffffffff],
    "backing_offset": [1, 104, 4095, 4096, 1 << 40, (1 << 64) - 1],
    "backing_size": [1, 1023, 1024, 0xffffffff],
    "cluster_bits": [0, 8, 22, 31, 32, 63, 64, 0xffffffff],
    "size": [0, 1, (1 << 62), 1 << 63, (1 << 64) - 1, (1 << 64) - 512],
    "crypt_method": [1, 2, 3, 0xffffffff],
    "l1_size": [0, 1, 1 << 22, (1 << 22) + 1, 1 << 29, 1 << 31, 0xffffffff],
    "l1_offset": [0, 1, 512, 4096, 1 << 40, 1 << 55, 1 << 63, (1 << 64) - 4096, (1 << 64) - 1],
    "refcount_table_offset": [0, 1, 512, 1 << 40, 1 << 63, (1 << 64) - 4096, (1 << 64) - 1],
    "refcount_table_clusters": [0, 2, 1 << 11, 1 << 20, 1 << 31, 0xffffffff],
    "snapshots": [1, 65536, 65537, 0xffffffff],
    "snapshots_offset": [1, 1 << 63],
    "incompatible": [1, 2, 4, 8, 16, 32, 1 << 63, (1 << 64) - 1],
    "compatible": [2, 1 << 63, (1 << 64) - 1],
    "autoclear": [1, 2, 4, 1 << 63, (1 << 64) - 1],
    "refcount_order": [7, 31, 32, 64, 0xffffffff],
    "header_length": [0, 72, 103, 105, 112, 4096, 4104, 0xffffffff],
    "compression_type": [1, 2, 255],
}


@pytest.mark.parametrize("field, value", [(field, value) for field, values in EXTREMES.items()
                                          for value in values])
def test_header_field(img, qemu_img, tmp, rng, field, value):
    """Accepted if and only if qemu-img accepts it, and an error names something."""
    small_image(qemu_img, rng)
    with Qcow2("a.qcow2") as q:
        q[field] = value
        if field == "snapshots" or field == "snapshots_offset":
            q["snapshots_offset" if field == "snapshots" else "snapshots"] = 1 << 16
    theirs = qemu_img("info", "-f", "qcow2", "a.qcow2", code=None, signal_is_fine=True)
    ours = img("info", "-f", "qcow2", "a.qcow2", **ANY)
    if theirs.code >= 0 and (field, value) not in STRICTER:
        assert (ours.code == 0) == (theirs.code == 0), f"{ours}{theirs}"
    if ours.code:
        assert ours.err.strip()
    stress_all(img, "a.qcow2")


# Where we are right to differ: what comes with a later version is refused, and so is damage that
# qemu-img only finds later.
STRICTER = [("snapshots", 1)]


@pytest.mark.parametrize("bit", [3, 4, 5, 17, 63])
def test_unknown_incompatible_bit_is_refused(img, qemu_img, tmp, rng, bit):
    small_image(qemu_img, rng)
    with Qcow2("a.qcow2") as q:
        q["incompatible"] = 1 << bit
        # Room for a feature name table: header extension 0x6803f857, one 48-byte entry.
        name = f"frobnication{bit}".encode()
        q.write(112, struct.pack(">II", 0x6803f857, 48) + bytes([0, bit]) + name.ljust(46, b"\0")
                + bytes(8))
        q["header_length"] = 112
    result = img.fails("info", "-f", "qcow2", "a.qcow2")
    if bit > 4:
        assert f"frobnication{bit}" in result.err, "the feature name table knows its name"


@pytest.mark.parametrize("kind", [0xe2792aca, 0x6803f857, 0x23852875, 0x0537be77, 0x44415441,
                                  0x12345678])
@pytest.mark.parametrize("length", [0xffffffff, 1 << 31, 4 * KIB, 1023, 0])
def test_header_extension(img, qemu_img, tmp, rng, kind, length):
    """A header extension of some length, up to ones that leave the cluster and the address space."""
    small_image(qemu_img, rng)
    with Qcow2("a.qcow2") as q:
        q.write(q["header_length"], struct.pack(">II", kind, length) + bytes(48))
    stress_all(img, "a.qcow2")


def test_unknown_extension_survives_a_write(img, qemu_img, tmp, rng):
    small_image(qemu_img, rng)
    mark = struct.pack(">II", 0x12345678, 8) + b"PLATTER!"
    with Qcow2("a.qcow2") as q:
        q.write(q["header_length"], mark + bytes(8))
    img("resize", "-f", "qcow2", "a.qcow2", "+1M")
    img("check", "a.qcow2")
    assert mark in Path("a.qcow2").read_bytes()[:4 * KIB]


def test_autoclear_bits_are_cleared_by_a_write(img, qemu_img, tmp, rng):
    small_image(qemu_img, rng)
    with Qcow2("a.qcow2") as q:
        q["autoclear"] = 1 << 40
    img("info", "a.qcow2")
    with Qcow2("a.qcow2") as q:
        assert q["autoclear"] == 1 << 40
    img("resize", "-f", "qcow2", "a.qcow2", "+1M")
    with Qcow2("a.qcow2") as q:
        assert q["autoclear"] == 0


# ---------------------------------------------------------------- tables that point astray

def l2_at_itself(q):
    table = q.l2_table(0)
    for index in range(8):
        q.put64(table + 8 * index, table | COPIED)


def l2_at_header(q):
    q.put64(q.l1_at(0), COPIED | 0)
    q.put64(q.l1_at(1), COPIED | q.cluster)


def l2_shared(q):
    q.put64(q.l1_at(1), q.u64(q.l1_at(0)))


def data_at_refcount_block(q):
    q.put64(q.data()[0][1], q.refcount_block(0) | COPIED)


def data_at_the_end_of_offsets(q):
    q.put64(q.data()[0][1], OFFSET | COPIED)


def compressed_at_the_end_of_offsets(q):
    q.put64(q.data()[0][1], (1 << 63) - 1)


def l1_all_ones(q):
    q.write(q["l1_offset"], b"\xff" * 8 * q["l1_size"])


def refcount_table_at_itself(q):
    table = q["refcount_table_offset"]
    for index in range(16):
        q.put64(table + 8 * index, table)


def refcount_table_is_l1(q):
    q["refcount_table_offset"] = q["l1_offset"]


@pytest.mark.parametrize("astray", [
    l2_at_itself, l2_at_header, l2_shared, data_at_refcount_block, data_at_the_end_of_offsets,
    compressed_at_the_end_of_offsets, l1_all_ones, refcount_table_at_itself, refcount_table_is_l1],
    ids=lambda astray: astray.__name__)
def test_tables_that_point_astray(img, qemu_img, tmp, rng, astray):
    """Reading says what it can; writing never lands on metadata: what was the header stays one."""
    small_image(qemu_img, rng)
    with Qcow2("a.qcow2") as q:
        astray(q)
    header = Path("a.qcow2").read_bytes()[:72]
    stress_all(img, "a.qcow2")
    img("convert", "-n", "-f", "raw", "-O", "qcow2", "a.raw", "a.qcow2", **ANY)
    assert Path("a.qcow2").read_bytes()[:72] == header


@pytest.mark.parametrize("compression", ["zlib", "zstd"])
def test_rotten_compressed_data(img, qemu_img, tmp, rng, compression):
    """Bits turn over inside compressed clusters: an error that names the place, or other bytes."""
    write_sparse("a.raw", bytes(random_content(rng, MIB, 64 * KIB)))
    qemu_img("convert", "-c", "-f", "raw", "-O", "qcow2", "-o", f"compression_type={compression}",
             "a.raw", "a.qcow2")
    size = os.path.getsize("a.qcow2")
    for _ in range(10):
        with open("a.qcow2", "r+b") as file:
            file.seek(rng.randrange(5 * 64 * KIB, size))
            file.write(rng.randbytes(4))
        result = img("convert", "-O", "raw", "a.qcow2", "out.raw", **ANY)
        assert result.code == 0 or result.err.strip()


# ---------------------------------------------------------------- backing files

def overlay(qemu_img, path, backing, backing_format="qcow2"):
    """An overlay of something that need not exist."""
    qemu_img("create", "-f", "qcow2", "-u", "-b", backing, "-F", backing_format, path, "1M")


@pytest.mark.parametrize("length", [1, 2, 5])
def test_backing_loop(img, qemu_img, tmp, length):
    for number in range(length):
        # By way of another name, as qemu-img sees through the shortest loop.
        overlay(qemu_img, "new.qcow2", f"{(number + 1) % length}.qcow2")
        os.rename("new.qcow2", f"{number}.qcow2")
    img("info", "0.qcow2", **LIMITS)
    for command in (["info", "--backing-chain"], ["map"], ["compare", "0.qcow2"]):
        img.fails(*command, "0.qcow2", **LIMITS)
    result = img.fails("convert", "-O", "raw", "0.qcow2", "out.raw", **LIMITS)
    assert not os.path.exists("out.raw")
    assert ".qcow2" in result.err


def test_backing_loop_through_a_link(img, qemu_img, tmp):
    overlay(qemu_img, "a.qcow2", "b.qcow2")
    os.symlink("a.qcow2", "b.qcow2")
    img.fails("convert", "-O", "raw", "a.qcow2", "out.raw", **LIMITS)


def test_backing_missing(img, qemu_img, tmp):
    overlay(qemu_img, "a.qcow2", "nowhere.qcow2")
    assert img("info", "--output=json", "a.qcow2").json["backing-filename"] == "nowhere.qcow2"
    assert "nowhere.qcow2" in img.fails("convert", "-O", "raw", "a.qcow2", "out.raw").err


@pytest.mark.parametrize("name", ["json:{", "json:[]", "json:{}", 'json:{"driver":"qcow2"}',
                                  'json:{"driver":"nonsense","file":{"driver":"file"}}',
                                  'json:{"driver":"file","filename":7}',
                                  "nbd://localhost:1/x", "http://localhost:1/x", "ssh://x/y",
                                  "x" * 1023, "\n\x1b[31m", "%n%n%s%s"])
def test_backing_name_of_no_use(img, qemu_img, tmp, name):
    qemu_img("create", "-f", "qcow2", "a.qcow2", "1M")
    with Qcow2("a.qcow2") as q:
        q.write(2 * KIB, name.encode())
        q["backing_offset"], q["backing_size"] = 2 * KIB, len(name.encode())
    img("info", "a.qcow2", **LIMITS)
    img.fails("convert", "-O", "raw", "a.qcow2", "out.raw", **LIMITS)


def test_backing_format_unknown(img, qemu_img, tmp):
    qemu_img("create", "-f", "raw", "b.raw", "1M")
    qemu_img("create", "-f", "qcow2", "-b", "b.raw", "-F", "raw", "a.qcow2")
    data = Path("a.qcow2").read_bytes()
    at = data.index(struct.pack(">II", 0xe2792aca, 3)) + 8
    with Qcow2("a.qcow2") as q:
        q.write(at, b"zzz")
    assert "zzz" in img.fails("convert", "-O", "raw", "a.qcow2", "out.raw").err


def test_deep_chain(img, qemu_img, tmp):
    """A hundred layers open, and the bottom shines through."""
    write_sparse("0.qcow2.raw", b"\x55" * MIB)
    qemu_img("convert", "-O", "qcow2", "-f", "raw", "0.qcow2.raw", "0.qcow2")
    for number in range(100):
        overlay(qemu_img, f"{number + 1}.qcow2", f"{number}.qcow2")
    img("convert", "-O", "raw", "100.qcow2", "out.raw", timeout=60, memory=512 * MIB)
    same_bytes("out.raw", b"\x55" * MIB)
    assert len(img("info", "--backing-chain", "--output=json", "100.qcow2").json) == 101


# ---------------------------------------------------------------- what comes later is refused

@pytest.mark.parametrize("options", ["data_file=ext.raw", "extended_l2=on",
                                     "encrypt.format=aes,encrypt.key-secret=s"])
def test_feature_of_a_later_version(img, qemu_img, tmp, options):
    """Read right, or refused with a sentence; never misread."""
    secret = ["--object", "secret,id=s,data=x"] if "encrypt" in options else []
    qemu_img("create", *secret, "-f", "qcow2", "-o", options, "a.qcow2", "4M", timeout=120)
    result = img("convert", "-O", "raw", "a.qcow2", "out.raw", **ANY)
    if result.code:
        assert result.err.strip()
    else:
        same_bytes("out.raw", bytes(4 * MIB))


def test_internal_snapshot_is_never_harmed(img, qemu_img, qemu_io, tmp):
    """Whatever we do to an image with a snapshot, the snapshot's content stays."""
    qemu_img("create", "-f", "qcow2", "a.qcow2", "4M")
    qemu_io("-c", "write -P 1 0 4M", "a.qcow2")
    qemu_img("snapshot", "-c", "before", "a.qcow2")
    qemu_io("-c", "write -P 2 0 1M", "a.qcow2")
    write_sparse("new.raw", b"\x03" * 4 * MIB)
    img("check", "a.qcow2")
    img("check", "-r", "all", "a.qcow2", code=(0, 1, 2, 3))
    img("resize", "a.qcow2", "+1M", code=(0, 1))
    img("convert", "-n", "-f", "raw", "-O", "qcow2", "new.raw", "a.qcow2", code=(0, 1))
    qemu_img("check", "a.qcow2", code=(0, 3))
    qemu_img("snapshot", "-a", "before", "a.qcow2")
    qemu_img("convert", "-O", "raw", "a.qcow2", "out.raw")
    same_bytes("out.raw", b"\x01" * 4 * MIB)


def test_bitmap_image_reads(img, qemu_img, qemu_io, tmp):
    qemu_img("create", "-f", "qcow2", "a.qcow2", "4M")
    qemu_img("bitmap", "--add", "a.qcow2", "b0")
    qemu_io("-c", "write -P 1 0 1M", "a.qcow2")
    result = img("convert", "-O", "raw", "a.qcow2", "out.raw", code=(0, 1))
    if result.code == 0:
        same_bytes("out.raw", b"\x01" * MIB + bytes(3 * MIB))


def test_json_of_hostile_names_is_json(img, qemu_img, tmp):
    """File names that are not UTF-8, or hold quotes and control characters."""
    for name in (b"a\"b\\c.qcow2", b"\x1b[31m\n.qcow2", b"\xff\xfe.qcow2"):
        path = os.fsdecode(name)
        qemu_img("create", "-q", "-f", "qcow2", path, "1M")
        out = img("info", "--output=json", path, code=(0, 1), text=False)
        if out.code == 0:
            json.loads(out.out.decode("utf-8", errors="surrogateescape"))
