"""img snapshot beside qemu-img: both make, apply and remove snapshots of the same image in turn."""

import shutil
import struct

import pytest

from platter import KIB, MIB, Tool, includes, random_content, random_requests, same_bytes, write_sparse
from qcow2edit import Qcow2

LAYOUTS = {
    "64k": (64 * KIB, "cluster_size=64k"),
    "4k": (4 * KIB, "cluster_size=4k"),
    "512, 64 bit": (512, "cluster_size=512,refcount_bits=64"),
    "version 2": (4 * KIB, "compat=0.10,cluster_size=4k"),
    "extended L2": (16 * KIB, "extended_l2=on,cluster_size=16k"),
    "zstd": (16 * KIB, "cluster_size=16k,compression_type=zstd"),
}


@pytest.fixture
def io(img):
    return Tool(img.path.replace("bin/img", "bin/io"))


def names(listed):
    return [(s["id"], s["name"]) for s in listed]


def listed_by(img, image):
    return img("snapshot", "-l", "--output=json", image).json


@pytest.mark.parametrize("layout", LAYOUTS)
def test_both_in_turn(img, io, qemu_img, qemu_io, tmp, rng, layout):
    """Random requests and snapshots by either tool; each state comes back as it was."""
    cluster, options = LAYOUTS[layout]
    size = 160 * cluster + 512
    shadow = random_content(rng, size, cluster)
    write_sparse("base.raw", shadow)
    qemu_img("create", "-f", "qcow2", "-o", options, "-b", "base.raw", "-F", "raw", "i.qcow2")
    kept = {}
    for step in range(30):
        ours = rng.random() < 0.6
        snapshot, requests = (img, io) if ours else (qemu_img, qemu_io)
        choice = rng.choice(["requests", "requests", "keep", "apply", "remove"])
        if choice == "requests":
            requests("-f", "qcow2", *random_requests(rng, shadow, cluster, 12), "i.qcow2")
        elif choice == "keep" and len(kept) < 6:
            snapshot("snapshot", "-c", f"at{step}", "i.qcow2")
            kept[f"at{step}"] = bytes(shadow)
        elif choice == "apply" and kept:
            name = rng.choice(list(kept))
            snapshot("snapshot", "-a", name, "i.qcow2")
            shadow = bytearray(kept[name])
        elif choice == "remove" and kept:
            name = rng.choice(list(kept))
            snapshot("snapshot", "-d", name, "i.qcow2")
            del kept[name]
        qemu_img("check", "i.qcow2")
        img("check", "i.qcow2")
        assert [name for _, name in names(listed_by(img, "i.qcow2"))] == list(kept)
    qemu_img("convert", "-O", "raw", "i.qcow2", "out.raw")
    same_bytes("out.raw", shadow)
    for name, content in kept.items():
        img("convert", "-l", name, "-O", "raw", "i.qcow2", "out.raw")
        same_bytes("out.raw", content)


@pytest.fixture
def image(qemu_img, qemu_io, tmp):
    """Two snapshots: "one" (1 in it) and "two" (2), the second named like nobody's id."""
    qemu_img("create", "-f", "qcow2", "i.qcow2", "8M")
    qemu_io("-c", "write -P 1 0 1M", "i.qcow2")
    qemu_img("snapshot", "-c", "one", "i.qcow2")
    qemu_io("-c", "write -P 2 0 1M", "i.qcow2")
    qemu_img("snapshot", "-c", "two", "i.qcow2")


def test_the_list(img, qemu_img, image):
    ours, theirs = img("snapshot", "-l", "i.qcow2").out, qemu_img("snapshot", "-l", "i.qcow2").out
    assert ours == theirs
    assert img("snapshot", "i.qcow2").out == ours
    includes(listed_by(img, "i.qcow2"),
             qemu_img("info", "--output=json", "i.qcow2").json["snapshots"])


def test_without_snapshots_the_list_is_empty(img, tmp):
    img("create", "-q", "-f", "qcow2", "e.qcow2", "1M")
    assert img("snapshot", "-l", "e.qcow2").out == ""
    assert listed_by(img, "e.qcow2") == []


@pytest.mark.parametrize("which", ["one", "1", "snapshot.id=1", "snapshot.name=one",
                                   "snapshot.id=1,snapshot.name=one"])
def test_what_convert_reads(img, qemu_img, image, which):
    img("convert", "-l", which, "-O", "raw", "i.qcow2", "ours.raw")
    qemu_img("convert", "-l", which, "-O", "raw", "i.qcow2", "theirs.raw")
    assert open("ours.raw", "rb").read() == open("theirs.raw", "rb").read()
    includes(img("measure", "-l", which, "-O", "qcow2", "--output=json", "i.qcow2").json,
             qemu_img("measure", "-l", which, "-O", "qcow2", "--output=json", "i.qcow2").json)


def test_an_id_comes_before_a_name_where_it_applies(img, qemu_img, image):
    """A snapshot called "1": -a 1 is the one with the id, -d 1 the one with the name."""
    img("snapshot", "-c", "1", "i.qcow2")
    img("snapshot", "-a", "1", "i.qcow2")
    qemu_img("convert", "-O", "raw", "i.qcow2", "out.raw")
    assert open("out.raw", "rb").read(1) == b"\1"
    img("snapshot", "-d", "1", "i.qcow2")
    assert names(listed_by(img, "i.qcow2")) == [("1", "one"), ("2", "two")]
    img("snapshot", "-d", "2", "i.qcow2")
    assert names(listed_by(img, "i.qcow2")) == [("1", "one")]


def test_names_may_repeat_and_numbers_go_on(img, qemu_img, image):
    img("snapshot", "-c", "two", "i.qcow2")
    img("snapshot", "-d", "one", "i.qcow2")
    img("snapshot", "-c", "", "i.qcow2")
    assert names(listed_by(img, "i.qcow2")) == [("2", "two"), ("3", "two"), ("4", "")]
    img("snapshot", "-d", "two", "i.qcow2")
    assert names(listed_by(img, "i.qcow2")) == [("3", "two"), ("4", "")]
    qemu_img("check", "i.qcow2")


@pytest.mark.parametrize("args", [
    ["-a", "none", "i.qcow2"], ["-d", "none", "i.qcow2"], ["-l", "-c", "x", "i.qcow2"], ["-l"],
    ["-c", "x", "none.qcow2"], ["-c", "x", "-U", "i.qcow2"], ["-c", "x", "raw.img"],
    ["-l", "i.qcow2", "i.qcow2"], ["-x", "i.qcow2"]], ids=" ".join)
def test_refusals(img, qemu_img, image, args):
    write_sparse("raw.img", b"\1" * MIB)
    before = open("i.qcow2", "rb").read()
    qemu_img("snapshot", *args, code=1)
    img.fails("snapshot", *args, code=1)
    assert open("i.qcow2", "rb").read() == before


def test_refusals_of_our_own(img, image):
    img.fails("snapshot", "-c", "x" * 256, "i.qcow2", code=1)
    img.fails("convert", "-l", "none", "-O", "raw", "i.qcow2", "out.raw", code=1)


def test_a_refcount_without_room(img, qemu_img, qemu_io, tmp):
    """One bit counts one reference: the snapshot is refused, and nothing has changed."""
    qemu_img("create", "-f", "qcow2", "-o", "refcount_bits=1", "i.qcow2", "1M")
    qemu_io("-c", "write -P 1 0 1M", "i.qcow2")
    result = img.fails("snapshot", "-c", "x", "i.qcow2", code=1)
    assert "refcount" in result.err
    qemu_img("check", "i.qcow2")
    assert listed_by(img, "i.qcow2") == []


def test_the_size_comes_back(img, qemu_img, qemu_io, image):
    """Resizing is free with snapshots of version 3: they say how large the disk was."""
    for tool in (img, qemu_img):
        tool("resize", "i.qcow2", "32M")
        qemu_io("-c", "write -P 9 31M 1M", "i.qcow2")
        img("convert", "-l", "two", "-O", "raw", "i.qcow2", "out.raw")
        assert len(open("out.raw", "rb").read()) == 8 * MIB
        tool("resize", "--shrink", "i.qcow2", "2M")
        qemu_img("check", "i.qcow2")
        img("snapshot", "-a", "two", "i.qcow2")
        assert qemu_img("info", "--output=json", "i.qcow2").json["virtual-size"] == 8 * MIB
        qemu_io("-c", "read -P 2 0 1M", "-c", "read -P 0 1M 7M", "i.qcow2")
        qemu_img("check", "i.qcow2")


def test_version_2_with_snapshots_keeps_its_size(img, qemu_img, tmp):
    qemu_img("create", "-f", "qcow2", "-o", "compat=0.10", "i.qcow2", "1M")
    img("snapshot", "-c", "x", "i.qcow2")
    qemu_img("resize", "i.qcow2", "2M", code=1)
    img.fails("resize", "i.qcow2", "2M", code=1)


def test_extra_data_that_we_do_not_know_is_kept(img, qemu_img, image):
    extra = bytes(range(1, 17))
    with Qcow2("i.qcow2") as q:
        at = q["snapshots_offset"]
        table = q.read(at, 4096)
        fixed, known, rest = table[:40], table[40:64], table[64:]
        length = (64 + struct.unpack(">H", fixed[12:14])[0] + struct.unpack(">H", fixed[14:16])[0]
                  + 7) // 8 * 8
        first = fixed[:36] + struct.pack(">I", 24 + len(extra)) + known + extra + rest[:length - 64]
        first += bytes(-len(first) % 8)
        q.write(at, first + table[length:])
    img("snapshot", "-c", "three", "i.qcow2")
    img("snapshot", "-d", "two", "i.qcow2")
    with Qcow2("i.qcow2") as q:
        assert extra in q.read(q["snapshots_offset"], 200)
    assert names(listed_by(img, "i.qcow2")) == [("1", "one"), ("3", "three")]
    qemu_img("check", "i.qcow2")


def test_removing_gives_the_space_back(img, qemu_img, qemu_io, tmp):
    qemu_img("create", "-f", "qcow2", "i.qcow2", "64M")
    qemu_io("-c", "write -P 1 0 32M", "i.qcow2")
    img("snapshot", "-c", "full", "i.qcow2")
    qemu_io("-c", "write -P 2 0 32M", "i.qcow2")
    before = img("info", "--output=json", "i.qcow2").json["actual-size"]
    img("snapshot", "-d", "full", "i.qcow2")
    after = img("info", "--output=json", "i.qcow2").json["actual-size"]
    assert after < before - 30 * MIB
    shutil.copy("i.qcow2", "j.qcow2")
    qemu_img("check", "j.qcow2")


def test_many(img, qemu_img, qemu_io, tmp):
    """A hundred of them; each still shows its own state."""
    qemu_img("create", "-f", "qcow2", "i.qcow2", "64M")
    for i in range(100):
        qemu_io("-c", f"write -P {i + 1} {i * 64}k 128k", "i.qcow2")
        img("snapshot", "-c", f"number {i}", "i.qcow2")
    qemu_img("check", "i.qcow2")
    for i in (0, 50, 99):
        img("convert", "-l", f"number {i}", "-O", "raw", "i.qcow2", "out.raw")
        content = open("out.raw", "rb").read()
        assert content[i * 64 * KIB] == content[(i + 1) * 64 * KIB] == i + 1
        assert content[(i + 2) * 64 * KIB] == 0
    for i in range(0, 100, 2):
        img("snapshot", "-d", f"number {i}", "i.qcow2")
    qemu_img("check", "i.qcow2")


def test_delete_with_counts_beyond_the_cache(img, qemu_img, tmp):
    """The freed run is one, and its counts fill the cache many times over: none is left."""
    qemu_img("create", "-f", "qcow2", "-o", "preallocation=metadata", "a.qcow2", "100G")
    img("snapshot", "-c", "one", "a.qcow2")
    img("snapshot", "-d", "one", "a.qcow2")
    qemu_img("check", "a.qcow2")
    img("check", "a.qcow2")
