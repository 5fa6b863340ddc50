"""Disks compressed as a whole: read like the disk inside, never cut short, and only where nobody is deceived."""

import gzip
import lzma
import os
import subprocess
from pathlib import Path

import pytest

from platter import KIB, MIB, Tool, random_content, same_bytes, write_sparse


def xz_blocks(data):
    return subprocess.run(["xz", "-0", "-T2", "--block-size=300KiB", "-c"], input=data, check=True,
                          stdout=subprocess.PIPE).stdout


def zstd(data, *options):
    """From a pipe: the frame does not say how long it is."""
    return subprocess.run(["zstd", "-q", "-c", *options], input=data, check=True,
                          stdout=subprocess.PIPE).stdout


def zstd_sized(data):
    return zstd(data, f"--stream-size={len(data)}")


def pieces(data, pack, size=300 * KIB):
    return b"".join(pack(data[at:at + size]) for at in range(0, len(data), size))


def skippable(data):
    return b"\x50\x2a\x4d\x18" + len(data).to_bytes(4, "little") + data


PACKED = {
    "gzip": lambda data: gzip.compress(data, 1),
    "gzip-members": lambda data: pieces(data, lambda part: gzip.compress(part, 1)),
    "gzip-padded": lambda data: gzip.compress(data, 1) + bytes(1000),
    "xz": lambda data: lzma.compress(data, preset=0),
    "xz-blocks": xz_blocks,
    "xz-streams": lambda data: pieces(data, lambda part: lzma.compress(part, preset=0)) + bytes(8),
    "zstd": zstd_sized,
    "zstd-unsized": zstd,
    "zstd-frames": lambda data: pieces(data, zstd_sized),
    "zstd-skippable": lambda data: skippable(b"12") + pieces(data, zstd_sized) + skippable(b"345"),
}
CODEC = {name: name.split("-")[0] for name in PACKED}


@pytest.fixture
def pack(need_tool):
    for tool in ("xz", "zstd"):
        need_tool(tool)

    def write(way, data, name="a.packed"):
        Path(name).write_bytes(PACKED[way](bytes(data)))
    return write


@pytest.mark.parametrize("way", PACKED)
def test_raw(img, pack, tmp, rng, way):
    content = random_content(rng, 3 * MIB, 70 * KIB)
    pack(way, content)
    img("convert", "-O", "raw", "a.packed", "a.raw")
    same_bytes("a.raw", content)
    img("compare", "a.packed", "a.raw")
    info = img("info", "--output=json", "a.packed").json
    assert (info["format"], info["wrapped"], info["virtual-size"]) == ("raw", CODEC[way], len(content))


@pytest.mark.parametrize("fmt", ["qcow2", "vmdk", "vdi", "vpc"])
@pytest.mark.parametrize("way", ["gzip", "xz", "xz-blocks", "zstd", "zstd-frames"])
def test_format_inside(img, qemu_img, pack, tmp, rng, way, fmt):
    """Made by qemu-img, packed by the format's own tool."""
    content = random_content(rng, 4 * MIB, 70 * KIB)
    write_sparse("a.raw", content)
    qemu_img("convert", "-f", "raw", "-O", fmt, "a.raw", "a.img")
    pack(way, Path("a.img").read_bytes())
    info = img("info", "--output=json", "a.packed").json
    assert (info["format"], info["wrapped"]) == (fmt, CODEC[way])
    img("convert", "-O", "qcow2", "a.packed", "a.qcow2")
    qemu_img("compare", "a.qcow2", "a.img")


def test_nothing_inside(img, pack, tmp):
    for way in ("gzip", "xz", "zstd"):
        pack(way, b"")
        assert img("info", "--output=json", "a.packed").json["virtual-size"] == 0


def test_zeroes_are_not_decoded_twice(img, pack, tmp):
    """A disk of zeroes takes no space on the way, neither in the hidden file nor in the target."""
    Path("a.gz").write_bytes(gzip.compress(bytes(64 * MIB)) * 8)
    img("convert", "-O", "raw", "a.gz", "a.raw", memory=128 * MIB)
    assert os.stat("a.raw").st_size == 512 * MIB and os.stat("a.raw").st_blocks < 100


# ---------------------------------------------------------------- damage

@pytest.mark.parametrize("way", [way for way in PACKED if way != "gzip-padded"])
def test_cut_short(img, pack, tmp, rng, way):
    content = random_content(rng, MIB, 70 * KIB)
    pack(way, content)
    whole = Path("a.packed").read_bytes()
    for length in [len(whole) - 1, len(whole) - 9, *(rng.randrange(20, len(whole)) for _ in range(8))]:
        Path("cut.packed").write_bytes(whole[:length])
        result = img("convert", "-O", "raw", "cut.packed", "a.raw", code=(0, 1))
        if result.code == 0:  # between members the shorter file is a whole one
            assert way in ("gzip-members", "zstd-frames", "zstd-skippable", "xz-streams")
            assert content.startswith(Path("a.raw").read_bytes())
            os.unlink("a.raw")
        else:
            assert "cut.packed" in result.err
            assert not os.path.exists("a.raw")


@pytest.mark.parametrize("way", ["gzip", "xz", "xz-blocks"])
def test_flipped_bit(img, pack, tmp, rng, way):
    """All three have checksums: no other disk comes out."""
    content = random_content(rng, MIB, 70 * KIB)
    pack(way, content)
    whole = Path("a.packed").read_bytes()
    for _ in range(12):
        data = bytearray(whole)
        data[rng.randrange(24, len(data))] ^= 1 << rng.randrange(8)
        Path("bad.packed").write_bytes(data)
        result = img("convert", "-O", "raw", "bad.packed", "a.raw", code=(0, 1))
        if result.code == 0:
            same_bytes("a.raw", content)
            os.unlink("a.raw")
        else:
            assert "bad.packed" in result.err


@pytest.mark.parametrize("way", ["gzip", "xz", "zstd", "zstd-frames"])
def test_something_behind(img, pack, tmp, way):
    pack(way, b"disk" * 1000)
    with open("a.packed", "ab") as file:
        file.write(b"more")
    assert "damaged" in img.fails("info", "a.packed").err


# ---------------------------------------------------------------- limits

@pytest.mark.parametrize("way", ["gzip", "xz", "zstd", "zstd-unsized"])
def test_max_size(img, pack, tmp, way):
    pack(way, bytes(MIB))
    opts = f"driver={CODEC[way]},file.driver=file,file.filename=a.packed,max-size="
    img("info", "--image-opts", opts + "1M")
    assert "max-size" in img.fails("info", "--image-opts", opts + "1048575").err


def test_no_room(img, tmp, rng):
    """What is decoded must fit where TMPDIR says."""
    Path("a.gz").write_bytes(gzip.compress(rng.randbytes(4 * MIB), 1))
    assert "TMPDIR" in img.fails("convert", "-O", "raw", "a.gz", "a.raw", file_size=MIB).err


def test_no_folder(img, tmp, monkeypatch):
    monkeypatch.setenv("TMPDIR", "/nowhere/at/all")
    Path("a.gz").write_bytes(gzip.compress(bytes(1000)))
    assert "/nowhere/at/all" in img.fails("info", "a.gz").err


# ---------------------------------------------------------------- who is looked into

def test_stated_format_is_the_truth(img, pack, tmp):
    pack("gzip", b"disk" * 10000)
    packed = Path("a.packed").read_bytes()
    assert img("info", "-f", "raw", "--output=json", "a.packed").json["virtual-size"] in (
        len(packed), -(-len(packed) // 512) * 512)
    img.fails("info", "-f", "qcow2", "a.packed")


def test_backing_file_is_taken_as_it_is(img, pack, tmp):
    content = b"disk" * (1 << 18)
    pack("gzip", content)
    img("create", "-f", "qcow2", "-b", "a.packed", "-F", "raw", "a.qcow2")
    packed = Path("a.packed").read_bytes()
    img("convert", "-O", "raw", "a.qcow2", "a.raw")
    assert Path("a.raw").read_bytes()[:len(packed)] == packed
    img("rebase", "-u", "-b", "a.packed", "-F", "raw", "a.qcow2")


def test_rebase_takes_it_as_it_is(img, pack, tmp):
    """What it compares is what the overlay will read."""
    pack("gzip", b"disk" * (1 << 18))
    packed = Path("a.packed").read_bytes()
    img("create", "-f", "qcow2", "a.qcow2", MIB)
    img("rebase", "-b", "a.packed", "-F", "raw", "a.qcow2")
    img("convert", "-O", "raw", "a.qcow2", "a.raw")
    assert Path("a.raw").read_bytes() == bytes(MIB) and len(packed) > 100


@pytest.mark.parametrize("argv", [["resize", "a.packed", "+1M"],
                                  ["convert", "-n", "-f", "raw", "-O", "qcow2", "new.raw", "a.packed"]])
def test_never_written_into(img, pack, tmp, argv):
    pack("gzip", b"disk" * 10000)
    packed = Path("a.packed").read_bytes()
    Path("new.raw").write_bytes(b"new" * 1024)
    img(*argv, code=(0, 1))
    assert Path("a.packed").read_bytes()[:len(packed)] == packed


def test_not_writable_as_a_description(img, pack, tmp):
    pack("gzip", bytes(MIB))
    Path("new.raw").write_bytes(b"new" * 1024)
    result = img.fails("convert", "-n", "-f", "raw", "--target-image-opts", "new.raw",
                       "driver=raw,file.driver=gzip,file.file.driver=file,file.file.filename=a.packed")
    assert "compressed as a whole" in result.err


@pytest.mark.parametrize("way", ["gzip", "xz", "zstd"])
def test_guest_cannot_wrap_a_guessed_disk(img, pack, tmp, way):
    """Neither as another format: the next one to look at the disk would look inside."""
    io = Tool(Path(img.path).parent / "io")
    pack(way, b"disk" * 1000)
    Path("a.raw").write_bytes(bytes(MIB))
    io("-c", "write -s a.packed 0 64k", "a.raw", code=1)
    assert Path("a.raw").read_bytes() == bytes(MIB)
    io("-f", "raw", "-c", "write -s a.packed 0 64k", "a.raw")
