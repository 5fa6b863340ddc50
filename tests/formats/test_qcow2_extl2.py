"""Extended L2 entries: images of either tool, written by either tool, read and judged by both."""

import shutil
import struct

import pytest

from conftest import BIN
from platter import KIB, MIB, Tool, random_content, random_requests, same_bytes, same_map, \
    write_sparse
from qcow2edit import COMPRESSED, COPIED, OFFSET, Qcow2

CLUSTERS = [16 * KIB, 64 * KIB, 2 * MIB]


@pytest.fixture
def io():
    return Tool(BIN / "io")


def create(tool, name, cluster, *more, options=""):
    tool("create", "-f", "qcow2", "-o", f"extended_l2=on,cluster_size={cluster}{options}", *more[:-1],
         name, *more[-1:])


def agree(img, qemu_img, image, content):
    """Both read the content, map it alike and find the image sound."""
    for number, tool in enumerate((img, qemu_img)):
        tool("convert", "-O", "raw", image, f"read{number}.raw")
        same_bytes(f"read{number}.raw", content)
    ours, theirs = (tool("check", "--output=json", image).json for tool in (img, qemu_img))
    for key in theirs:
        if key != "filename":
            assert ours[key] == theirs[key], key
    same_map(img("map", "--output=json", image).json, qemu_img("map", "--output=json", image).json)


def size_of(cluster):
    return min(max(40 * cluster, MIB), 12 * MIB) + 3 * 512


@pytest.mark.parametrize("backing", [False, True], ids=["alone", "backing"])
@pytest.mark.parametrize("cluster", CLUSTERS)
@pytest.mark.parametrize("number", range(4))
def test_written_by_turns(img, io, qemu_img, qemu_io, tmp, rng, cluster, backing, number):
    """Each tool goes on where the other stopped."""
    content = bytearray(size_of(cluster))
    more = []
    if backing:
        content = bytearray(b"\xbb" * len(content))
        write_sparse("base.raw", content)
        more = ["-b", "base.raw", "-F", "raw"]
    create((img, qemu_img)[number % 2], "a.qcow2", cluster, *more, len(content))
    for turn in range(4):
        compressed = cluster if turn == 0 else 0
        writer = (io, qemu_io)[(turn + number // 2) % 2]
        writer(*random_requests(rng, content, rng.choice([cluster, cluster // 32]), 40,
                                compressed=compressed), "a.qcow2")
        agree(img, qemu_img, "a.qcow2", content)


@pytest.mark.parametrize("backing", [False, True], ids=["alone", "backing"])
def test_only_the_subcluster_is_copied(img, io, qemu_img, tmp, backing):
    """A write of 512 bytes takes a cluster and maps one thirty-second of it."""
    write_sparse("base.raw", b"\xbb" * MIB)
    more = ["-b", "base.raw", "-F", "raw"] if backing else []
    create(img, "a.qcow2", 64 * KIB, *more, MIB)
    io("-c", "write -P 1 70k 512", "a.qcow2")
    with Qcow2("a.qcow2") as q:
        table = q.l2_table(0)
        entry, bitmap = struct.unpack(">QQ", q.read(table + 16, 16))
        assert entry & COPIED and bitmap == 1 << 3
    content = bytearray((b"\xbb" if backing else b"\0") * MIB)
    content[70 * KIB:70 * KIB + 512] = b"\1" * 512
    agree(img, qemu_img, "a.qcow2", content)


def test_discard_gives_the_cluster_back_with_its_last_subcluster(img, io, qemu_img, tmp):
    create(img, "a.qcow2", 64 * KIB, MIB)
    io("-c", "write -P 1 64k 64k", *[word for n in range(32) for word in
                                     ("-c", f"discard {64 + 2 * n}k 2k")], "a.qcow2")
    assert not img("check", "--output=json", "a.qcow2").json.get("allocated-clusters")
    agree(img, qemu_img, "a.qcow2", bytes(MIB))


def test_zeroes_in_a_compressed_cluster(img, io, qemu_img, tmp):
    """It has no subclusters: part of it is zeroed by writing it out."""
    create(img, "a.qcow2", 64 * KIB, MIB)
    io("-c", "write -c -P 5 0 64k", "-c", "write -c -P 6 192k 64k", "-c", "write -z 8k 240k", "a.qcow2")
    content = bytearray(MIB)
    content[:8 * KIB], content[248 * KIB:256 * KIB] = b"\5" * 8 * KIB, b"\6" * 8 * KIB
    agree(img, qemu_img, "a.qcow2", content)


@pytest.mark.parametrize("compress", [False, True], ids=["plain", "compressed"])
@pytest.mark.parametrize("cluster", CLUSTERS)
def test_converted_by_us(img, qemu_img, tmp, rng, cluster, compress):
    content = random_content(rng, size_of(cluster), cluster)
    write_sparse("a.raw", content)
    img("convert", *(["-c"] if compress else []), "-f", "raw", "-O", "qcow2",
        "-o", f"extended_l2=on,cluster_size={cluster}", "a.raw", "a.qcow2")
    agree(img, qemu_img, "a.qcow2", content)


@pytest.mark.parametrize("backing", [False, True], ids=["alone", "backing"])
@pytest.mark.parametrize("preallocation", ["metadata", "falloc", "full"])
def test_preallocated(img, io, qemu_img, qemu_io, tmp, rng, preallocation, backing):
    """Storage that no subcluster uses hides nothing, and is used when it is written."""
    content = bytearray((b"\xbb" if backing else b"\0") * (2 * MIB))
    write_sparse("base.raw", content)
    more = ["-b", "base.raw", "-F", "raw"] if backing else []
    create(img, "a.qcow2", 16 * KIB, *more, len(content), options=f",preallocation={preallocation}")
    agree(img, qemu_img, "a.qcow2", content)
    for tool in (io, qemu_io, io):
        tool(*random_requests(rng, content, 4 * KIB, 20), "a.qcow2")
        agree(img, qemu_img, "a.qcow2", content)


@pytest.mark.parametrize("sizes", [(MIB, 3 * MIB, 513 * KIB, 9 * MIB)])
@pytest.mark.parametrize("preallocation", ["off", "metadata", "falloc"])
def test_resized(img, io, qemu_img, tmp, rng, sizes, preallocation):
    """An L2 table maps half of what it otherwise would."""
    content = bytearray(sizes[0])
    create(img, "a.qcow2", 16 * KIB, len(content))
    for size in sizes[1:]:
        io(*random_requests(rng, content, 16 * KIB, 20), "a.qcow2")
        grow = ["--preallocation", preallocation] if size > len(content) else ["--shrink"]
        img("resize", *grow, "a.qcow2", size)
        content = content[:size] + bytes(max(0, size - len(content)))
        agree(img, qemu_img, "a.qcow2", content)


def test_measure_agrees(img, qemu_img, tmp):
    for size in ("10G", "1T"):
        for options in ("extended_l2=on", "extended_l2=on,cluster_size=16k"):
            argv = ("measure", "--output=json", "-O", "qcow2", "-o", options, "--size", size)
            assert img(*argv).json == qemu_img(*argv).json


@pytest.mark.parametrize("options, word", [("extended_l2=on,cluster_size=8k", "16384"),
                                           ("extended_l2=on,compat=0.10", "compat=1.1")])
def test_refused(img, qemu_img, tmp, options, word):
    argv = ("create", "-f", "qcow2", "-o", options, "a.qcow2", "1M")
    assert word in img.fails(*argv).err
    qemu_img(*argv, code=1)


# ---------------------------------------------------------------- damage

def put(number, half, change):
    """Changes the entry (half 0) or the bitmap (half 1) of a cluster of the disk."""
    def damage(q):
        at = q.l2_table(0) + 16 * number + 8 * half
        q.put64(at, change(q.u64(at)))
    return damage


DAMAGES = {
    "both-bits": put(0, 1, lambda v: v | v << 32),
    "all-ones": put(1, 1, lambda v: (1 << 64) - 1),
    "data-without-storage": put(0, 0, lambda v: 0),
    "unallocated-with-data": put(8, 1, lambda v: 1),
    "zero-with-data": put(2, 1, lambda v: v | 1),
    "compressed-with-data": put(3, 1, lambda v: 1),
    "compressed-with-zeroes": put(3, 1, lambda v: 1 << 40),
    "compressed-copied": put(3, 0, lambda v: v | COPIED),
    "plain-zero-flag": put(0, 0, lambda v: v | 1),
    "unaligned": put(0, 0, lambda v: v + 512),
    "unaligned-and-corrupt": lambda q: (put(0, 0, lambda v: v + 512)(q), put(0, 1, lambda v: v << 32 | v)(q)),
    "unaligned-unused": lambda q: (put(0, 0, lambda v: v + 512)(q), put(0, 1, lambda v: 0)(q)),
    "unaligned-zeroes": lambda q: (put(0, 0, lambda v: v + 512)(q), put(0, 1, lambda v: v << 32)(q)),
    "not-copied": put(0, 0, lambda v: v & ~COPIED),
    "reserved-bit": put(0, 0, lambda v: v | 1 << 58),
    "twice": lambda q: put(0, 0, lambda v: q.u64(q.l2_table(0) + 16))(q),
    "far": put(0, 0, lambda v: 1 << 24 | COPIED),
    "on-header": put(0, 0, lambda v: COPIED | q_l1),
}
q_l1 = 0x30000


@pytest.fixture
def damaged(qemu_img, qemu_io, tmp, damage):
    create(qemu_img, "a.qcow2", 64 * KIB, MIB)
    qemu_io("-c", "write -P 1 0 2k", "-c", "write -P 2 64k 64k", "-c", "write -z 128k 2k",
            "-c", "write -c -P 4 192k 64k", "a.qcow2")
    with Qcow2("a.qcow2") as q:
        DAMAGES[damage](q)
    return "a.qcow2"


def verdict(result):
    if not result.out.strip():
        return result.code
    keys = ("check-errors", "corruptions", "leaks", "corruptions-fixed", "leaks-fixed",
            "total-clusters", "allocated-clusters", "compressed-clusters")
    return result.code, [result.json.get(key, 0) for key in keys]


def content_of(tool, image):
    done = tool("convert", "-O", "raw", image, "out.raw", code=(0, 1))
    return None if done.code else open("out.raw", "rb").read()


@pytest.mark.parametrize("damage", DAMAGES)
def test_damage(img, qemu_img, damaged, damage):
    """Checked, read and repaired, with the same verdicts."""
    codes = (0, 1, 2, 3)
    for copy in ("ours", "theirs"):
        shutil.copy(damaged, copy)
    check = ("check", "--output=json")
    ours, theirs = (tool(*check, damaged, code=codes) for tool in (img, qemu_img))
    assert verdict(ours) == verdict(theirs), f"{ours}{theirs}"
    if damage != "on-header":     # which we refuse to read
        assert content_of(img, damaged) == content_of(qemu_img, damaged) or damage == "far"
    ours = img(*check, "-r", "all", "ours", code=codes)
    theirs = qemu_img(*check, "-r", "all", "theirs", code=codes)
    assert verdict(ours) == verdict(theirs), f"{ours}{theirs}"
    assert qemu_img("check", "ours", code=codes).code == qemu_img("check", "theirs", code=codes).code
    # Theirs cuts off what it takes for a leak although a compressed cluster is there.
    assert content_of(qemu_img, "theirs") in (None, content_of(qemu_img, "ours"))


@pytest.mark.parametrize("damage", ["both-bits", "data-without-storage", "unallocated-with-data"])
def test_corrupt_bitmap_stops_writing(img, io, damaged, damage):
    """It is found when it is met; nothing is written by it, and the image is marked."""
    guest = 512 if damage == "unallocated-with-data" else 0
    result = io("-c", f"write -P 9 {guest}k 1k", damaged, code=1)
    assert "rror" in result.out + result.err
    with Qcow2(damaged) as q:
        assert q["incompatible"] & 2


def test_truncated_file_is_not_zeroes(img, qemu_img, qemu_io, tmp):
    """Plain and extended: what lay behind the file's new end is lost, and said to be."""
    for options in ("extended_l2=off", "extended_l2=on"):
        qemu_img("create", "-f", "qcow2", "-o", options, "a.qcow2", "1M")
        qemu_io("-c", "write -P 1 0 1M", "a.qcow2")
        with open("a.qcow2", "r+b") as file:
            file.truncate(0x80000)
        result = img("convert", "-O", "raw", "a.qcow2", "out.raw", code=1)
        assert "beyond the end" in result.err
