"""External data files: of either tool, written by either tool, read and judged by both."""

import os
import shutil
from pathlib import Path

import pytest

from conftest import BIN
from platter import KIB, MIB, Tool, includes, random_content, random_requests, same_bytes, \
    same_map, write_sparse
from qcow2edit import COMPRESSED, COPIED, Qcow2

SIZE = 3 * MIB + 1536


@pytest.fixture
def io():
    return Tool(BIN / "io")


def create(tool, *more, size=SIZE, raw=False, options=""):
    tool("create", "-f", "qcow2", "-o",
         f"data_file=d.raw,data_file_raw={'on' if raw else 'off'}{options}", *more, "a.qcow2", size)


def agree(img, qemu_img, content, raw=False):
    for number, tool in enumerate((img, qemu_img)):
        tool("convert", "-O", "raw", "a.qcow2", f"read{number}.raw")
        same_bytes(f"read{number}.raw", content)
    ours, theirs = (tool("check", "--output=json", "a.qcow2").json for tool in (img, qemu_img))
    includes(ours, theirs)
    ours, theirs = (tool("info", "--output=json", "a.qcow2").json for tool in (img, qemu_img))
    includes(ours, theirs)
    same_map(img("map", "--output=json", "a.qcow2").json,
             qemu_img("map", "--output=json", "a.qcow2").json)
    if raw:    # qemu-img writes whole clusters, beyond the disk's end
        assert Path("d.raw").read_bytes()[:len(content)] == content


VARIANTS = [(raw, options) for raw in (False, True)
            for options in ("", ",cluster_size=4k", ",extended_l2=on,cluster_size=16k")]


@pytest.mark.parametrize("raw, options", VARIANTS)
@pytest.mark.parametrize("number", range(4))
def test_written_by_turns(img, io, qemu_img, qemu_io, tmp, rng, number, raw, options):
    """Each tool goes on where the other stopped; a raw data file always reads the same."""
    content = bytearray(SIZE)
    create((img, qemu_img)[number % 2], raw=raw, options=options)
    for turn in range(4):
        writer = (io, qemu_io)[(turn + number // 2) % 2]
        writer("-d", "unmap", *random_requests(rng, content, rng.choice([2 * KIB, 64 * KIB]), 30),
               "a.qcow2")
        agree(img, qemu_img, content, raw)


@pytest.mark.parametrize("number", range(3))
def test_on_a_backing_file(img, io, qemu_img, qemu_io, tmp, rng, number):
    content = bytearray(b"\xbb" * SIZE)
    write_sparse("base.raw", content)
    create((img, qemu_img)[number % 2], "-b", "base.raw", "-F", "raw")
    for writer in (io, qemu_io, io):
        writer(*random_requests(rng, content, 64 * KIB, 20), "a.qcow2")
        agree(img, qemu_img, content)


@pytest.mark.parametrize("raw", [False, True], ids=["mapped", "raw"])
@pytest.mark.parametrize("preallocation", ["off", "metadata", "falloc", "full"])
def test_created_alike(img, qemu_img, tmp, raw, preallocation):
    lengths = []
    for tool in (img, qemu_img):
        create(tool, raw=raw, options=f",preallocation={preallocation}", size=4 * MIB)
        agree(img, qemu_img, bytes(4 * MIB), raw)
        stat = os.stat("d.raw")
        lengths.append((stat.st_size, stat.st_blocks >= 4 * MIB // 512))
    assert lengths[0] == lengths[1]


@pytest.mark.parametrize("raw", [False, True], ids=["mapped", "raw"])
def test_resized(img, io, qemu_img, tmp, rng, raw):
    """The data file is as long as the disk, and what comes anew reads as zeroes."""
    content = bytearray(SIZE)
    create(img, raw=raw)
    for size in (5 * MIB, MIB, 2 * MIB + 512, 40 * MIB):
        io(*random_requests(rng, content, 64 * KIB, 10), "a.qcow2")
        img("resize", *(["--shrink"] if size < len(content) else []), "a.qcow2", size)
        content = content[:size] + bytes(max(0, size - len(content)))
        assert os.path.getsize("d.raw") == size
        agree(img, qemu_img, content, raw)


def test_a_longer_data_file_does_not_show_when_the_disk_grows(img, tmp):
    create(img, raw=True, size=MIB)
    with open("d.raw", "ab") as file:
        file.write(b"\x66" * MIB)
    img("resize", "a.qcow2", 2 * MIB)
    same_bytes("d.raw", bytes(2 * MIB))


def test_converted(img, qemu_img, tmp, rng):
    content = random_content(rng, SIZE, 64 * KIB)
    write_sparse("in.raw", content)
    img("convert", "-f", "raw", "-O", "qcow2", "-o", "data_file=d.raw,data_file_raw=on", "in.raw",
        "a.qcow2")
    agree(img, qemu_img, content, raw=True)
    img("convert", "-O", "qcow2", "a.qcow2", "b.qcow2")
    assert qemu_img("compare", "b.qcow2", "a.qcow2").code == 0


def test_nothing_compressed(img, io, qemu_img, tmp):
    create(img)
    assert io("-c", "write -c 0 64k", "a.qcow2", code=1)
    write_sparse("in.raw", b"\x11" * MIB)
    img.fails("convert", "-c", "-f", "raw", "-O", "qcow2", "-o", "data_file=e.raw", "in.raw", "b.qcow2")


def test_measured_alike(img, qemu_img, tmp):
    argv = ("measure", "--output=json", "-O", "qcow2", "-o", "data_file=x", "--size", "10G")
    assert img(*argv).json == qemu_img(*argv).json
    assert not os.path.exists("x")


def test_info_needs_no_data_file(img, qemu_img, tmp):
    create(img)
    os.unlink("d.raw")
    for how in (["--output=json"], []):
        ours, theirs = (tool("info", *how, "a.qcow2") for tool in (img, qemu_img))
        assert ours.out == theirs.out or how == []
    assert "d.raw" in img.fails("map", "a.qcow2").err


def test_named_by_the_user(img, io, qemu_img, tmp):
    """data-file takes the place of the name in the image; it is bytes, whatever they look like."""
    create(img)
    io("-c", "write -P 1 0 64k", "a.qcow2")
    os.rename("d.raw", "e.raw")
    edges = ["data-file.filename=e.raw", "data-file.driver=file,data-file.filename=e.raw",
             "data-file.driver=raw,data-file.file.filename=e.raw", "data-file.file.filename=e.raw"]
    for edge in edges:
        img("--follow=none", "convert", "-O", "raw", "--image-opts",
            f"driver=qcow2,file.filename=a.qcow2,{edge}", "out.raw")
        same_bytes("out.raw", b"\1" * 64 * KIB + bytes(SIZE - 64 * KIB))
    img("create", "-f", "qcow2", "plain.qcow2", "1M")
    assert "no data file" in img.fails("map", "--image-opts", "driver=qcow2,file.filename=plain.qcow2,"
                                       "data-file.filename=e.raw").err


def test_a_data_file_is_never_probed(img, io, tmp):
    """The guest writes the header of an image into it."""
    create(img, raw=True)
    img("create", "-f", "qcow2", "x.qcow2", "1M")
    header = Path("x.qcow2").read_bytes()
    with open("d.raw", "r+b") as file:
        file.write(header)
    for edge in ("", ",data-file.file.filename=d.raw"):
        img("convert", "-O", "raw", "--image-opts", f"driver=qcow2,file.filename=a.qcow2{edge}",
            "out.raw")
        assert Path("out.raw").read_bytes()[:len(header)] == header


@pytest.mark.parametrize("policy, where, code", [
    ("none", "d.raw", 1), ("local", "d.raw", 0), ("any", "d.raw", 0), ("local", "sub/d.raw", 0),
    ("local", "../outside.raw", 1), ("any", "../outside.raw", 0), ("local", "link", 1),
    ("local", "file:d.raw", 1), ("any", "file:d.raw", 0)])
def test_follow(img, tmp, policy, where, code):
    """Its stated name leads to a regular file in the image's folder, unless the user says more."""
    Path("in/sub").mkdir(parents=True)
    os.symlink("../outside.raw", "in/link")
    for name in ("in/d.raw", "in/sub/d.raw", "outside.raw"):
        write_sparse(name, b"\x44" * MIB)
    img("create", "-f", "qcow2", "-o", "data_file=t.raw,data_file_raw=on", "in/a.qcow2", "1M")
    with Qcow2("in/a.qcow2") as q:
        q.write(112 + 4, len(where).to_bytes(4, "big") + where.encode().ljust(24, b"\0"))
        q.write(112 + 8 + -(-len(where) // 8) * 8, bytes(8))
    result = img(f"--follow={policy}", "convert", "-O", "raw", "a.qcow2", "../out.raw", cwd="in",
                 code=code)
    if code:
        assert "--follow" in result.err and "data file" in result.err
    else:
        same_bytes("out.raw", b"\x44" * MIB)


def test_half_made_files_are_taken_away(img, tmp):
    img.fails("create", "-f", "qcow2", "-o", "data_file=nowhere/d.raw", "a.qcow2", "1M")
    assert os.listdir(".") == []


def test_the_raw_bit_survives_writing(img, io, qemu_img, tmp):
    create(img, raw=True)
    with Qcow2("a.qcow2") as q:
        q["autoclear"] = 2 | 1 << 5
    io("-c", "write 0 64k", "a.qcow2")
    with Qcow2("a.qcow2") as q:
        assert q["autoclear"] == 2


# ---------------------------------------------------------------- damage

def put(number, value):
    def damage(q):
        q.put64(q.l2_table(0) + 8 * number, value(q.u64(q.l2_table(0) + 8 * number)))
    return damage


DAMAGES = {
    "not-copied-at-0": put(0, lambda v: 0),
    "not-copied": put(1, lambda v: v & ~COPIED),
    "unaligned": put(1, lambda v: v + 512),
    "unaligned-zero": put(1, lambda v: v + 512 | 1),
    "compressed": put(1, lambda v: COMPRESSED | 0x10200),
    "reserved": put(1, lambda v: v | 1 << 58),
    "leak": lambda q: q.set_refcount(5, 1),
    "l2-refcount": lambda q: q.set_refcount(q.l2_table(0) // q.cluster, 0),
    "not-its-place": put(1, lambda v: COPIED | 0x30000),
    "far": put(1, lambda v: COPIED | 1 << 50),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damage(img, qemu_img, qemu_io, tmp, damage):
    create(qemu_img, size=MIB)
    qemu_io("-c", "write -P 1 0 2k", "-c", "write -P 2 64k 64k", "-c", "write -z 128k 64k", "a.qcow2")
    with Qcow2("a.qcow2") as q:
        DAMAGES[damage](q)
    shutil.copy("a.qcow2", "b.qcow2")
    codes = (0, 1, 2, 3)
    ours, theirs = (tool("check", "--output=json", "a.qcow2", code=codes) for tool in (img, qemu_img))
    if damage in ("not-its-place", "far"):
        assert (ours.code, theirs.code) == (2, 0)      # and yet theirs cannot read it
    else:
        assert ours.code == theirs.code
        includes(ours.json, theirs.json)
    reads = [tool("convert", "-O", "raw", "a.qcow2", f"{n}.raw", code=(0, 1)).code
             for n, tool in enumerate((img, qemu_img))]
    assert reads[0] == reads[1]
    if not reads[0]:
        same_bytes("0.raw", Path("1.raw").read_bytes())
    ours = img("check", "-r", "all", "a.qcow2", code=codes)
    theirs = qemu_img("check", "-r", "all", "b.qcow2", code=codes)
    assert ours.code == theirs.code or damage in ("not-its-place", "far")
    assert [qemu_img("check", copy, code=codes).code for copy in ("a.qcow2", "b.qcow2")] \
        == [theirs.code] * 2


@pytest.mark.parametrize("raw", [False, True], ids=["mapped", "raw"])
def test_truncated_data_file_is_not_zeroes(img, io, tmp, raw):
    create(img, raw=raw, size=MIB)
    io("-c", "write -P 1 0 1M", "a.qcow2")
    with open("d.raw", "r+b") as file:
        file.truncate(512 * KIB)
    assert "data file" in img.fails("convert", "-O", "raw", "a.qcow2", "out.raw").err
