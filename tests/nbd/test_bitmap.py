"""Dirty bitmaps that a qcow2 image keeps, as a context of block status: beside qemu-nbd."""

import json
import random
import struct
import subprocess

import pytest
from nbdtools import foreign, nbd, serve  # noqa: F401  fixtures

BITS = {"a": 512, "b": 65536, "big name, with a comma": 1 << 20}


@pytest.fixture
def image(qemu_img, qemu_io, tmp):
    """Three bitmaps of writes at random places; one was turned off halfway."""
    dice = random.Random(5)
    qemu_img("create", "-f", "qcow2", "-o", "cluster_size=4k", "x.qcow2", "300M")
    for name, granularity in BITS.items():
        qemu_img("bitmap", "--add", "-g", granularity, "x.qcow2", name)
    for half in range(2):
        writes = [f"write {dice.randrange(300 << 11) * 512} {dice.randrange(1, 64) * 512}" for _ in range(30)]
        writes = [w for w in writes if sum(map(int, w.split()[1:])) <= 300 << 20]
        qemu_io("-f", "qcow2", *[word for w in [*writes, "write 10M 33M"] for word in ("-c", w)], "x.qcow2")
        if half == 0:
            qemu_img("bitmap", "--disable", "x.qcow2", "a")
    return tmp / "x.qcow2"


def dirty(need_tool, uri, name):
    out = subprocess.run([need_tool("nbdinfo"), "--json", f"--map=qemu:dirty-bitmap:{name}", uri], check=True,
                         capture_output=True, text=True, timeout=60).stdout
    return [(e["offset"], e["length"], e["type"]) for e in json.loads(out)]


@pytest.mark.parametrize("name", BITS)
def test_same_as_qemu_nbd(need_tool, serve, foreign, image, tmp, name):
    ours = serve(image, "-f", "qcow2", "-r", "-B", name)
    theirs = foreign("theirs.sock", "qemu-nbd", "-t", "-k", tmp / "theirs.sock", "-f", "qcow2", "-r", "-B", name, image)
    runs = dirty(need_tool, ours.uri, name)
    assert runs == dirty(need_tool, theirs.uri, name)
    assert len(runs) > 20 or name.startswith("big")


def test_several_at_once(need_tool, serve, image):
    server = serve(image, "-f", "qcow2", "-r", "-A", *[word for name in BITS for word in ("-B", name)])
    out = subprocess.run([need_tool("nbdinfo"), "--json", server.uri], check=True, capture_output=True,
                         text=True).stdout
    assert json.loads(out)["exports"][0]["contexts"] == [
        "base:allocation", "qemu:allocation-depth", *[f"qemu:dirty-bitmap:{name}" for name in BITS]]
    for name in BITS:
        assert any(kind for _, _, kind in dirty(need_tool, server.uri, name))


def test_found_below_an_overlay(need_tool, qemu_img, serve, image):
    qemu_img("create", "-f", "qcow2", "-b", image, "-F", "qcow2", "top.qcow2")
    server = serve("top.qcow2", "-B", "b")
    assert any(kind for _, _, kind in dirty(need_tool, server.uri, "b"))


def test_info_lists_them(img, qemu_img, image):
    ours = img("info", "--output=json", image).json["format-specific"]["data"]["bitmaps"]
    assert ours == qemu_img("info", "--output=json", image).json["format-specific"]["data"]["bitmaps"]


def find_directory(data):
    at = 112 if data[100:104] == b"\0\0\0\x70" else 104
    while True:
        kind, length = struct.unpack_from(">II", data, at)
        assert kind
        if kind == 0x23852875:
            return at + 8, struct.unpack_from(">Q", data, at + 24)[0]
        at += 8 + (length + 7) // 8 * 8


@pytest.mark.parametrize("where, at, value, says", [
    ("extension", 8, 1 << 40, "damaged"), ("extension", 16, 513, "damaged"),
    ("directory", 0, 77, "damaged"), ("directory", 8, 0xffffffff << 32, "damaged"),
    ("directory", 16, 0x01ff000000000000, "damaged"), ("directory", 16, 0x0109ffffffffffff, "damaged"),
    ("directory", 8, 1, "inconsistent"), ("directory", 16, 0x0200000000000000, "damaged"),
    ("table", 0, 0x8000000000000000, "damaged"), ("table", 0, 1 << 55, "bitmap"),
])
def test_damage(nbd, image, where, at, value, says):
    """Names, numbers and places that lie: a sentence, no crash, nothing huge in memory."""
    data = bytearray(image.read_bytes())
    extension, directory = find_directory(data)
    place = {"extension": extension, "directory": directory,
             "table": struct.unpack_from(">Q", data, directory)[0]}[where] + at
    old = struct.unpack_from(">Q", data, place)[0]
    if (where, at, value) == ("directory", 8, 1):
        value = old | 1  # in use
    struct.pack_into(">Q", data, place, value)
    image.write_bytes(data)
    assert says in nbd("-f", "qcow2", "-r", "-B", "a", image, code=1).err
    assert says in nbd("-f", "qcow2", "-r", "-B", "nobody", image, code=1).err or "no bitmap" in nbd(
        "-f", "qcow2", "-r", "-B", "nobody", image, code=1).err


def test_writing_needs_no_bitmaps(nbd, image):
    assert "read-only" in nbd("-f", "qcow2", "-B", "a", image, code=1).err
