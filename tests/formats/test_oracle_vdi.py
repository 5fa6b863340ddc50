"""VDI images made by either tool: qemu-img, 7-Zip and we read the same bytes; what others write we read."""

import shutil
from pathlib import Path

import pytest

from batbuild import FREE, ZERO, Vdi
from platter import (GIB, KIB, MIB, TIB, Tool, allocated, includes, random_content, random_requests,
                     same_bytes, same_map, write_sparse)

BLOCKS = [4 * KIB, 64 * KIB, MIB, 8 * MIB]


@pytest.fixture
def io(img):
    """Our io."""
    return Tool(Path(img.path).parent / "io")


@pytest.fixture
def seven(need_tool):
    """What 7-Zip reads out of an image."""
    tool = Tool(need_tool("7z"))

    def read(image):
        return tool("e", "-y", "-so", image, text=False).out
    return read


def agree(img, qemu_img, seven, image, content):
    for number, tool in enumerate((img, qemu_img)):
        tool("convert", "-O", "raw", image, f"read{number}.raw")
        same_bytes(f"read{number}.raw", content)
    assert seven(image) == bytes(content)
    for tool in (img, qemu_img):
        tool("check", image)
    infos = [tool("info", "--output=json", image).json for tool in (img, qemu_img)]
    includes(infos[0], infos[1])
    same_map(img("map", "--output=json", image).json, qemu_img("map", "--output=json", image).json)


@pytest.mark.parametrize("ours", [False, True], ids=["theirs", "ours"])
@pytest.mark.parametrize("static", ["off", "on"])
def test_written_by_qemu(img, qemu_img, qemu_io, seven, tmp, rng, ours, static):
    """Into an image of either tool: they allocate where our header says."""
    content = bytearray(12 * MIB + 512)
    (img if ours else qemu_img)("create", "-f", "vdi", "-o", f"static={static}", "a.vdi", len(content))
    qemu_io(*random_requests(rng, content, MIB, 20), "a.vdi")
    agree(img, qemu_img, seven, "a.vdi", content)


@pytest.mark.parametrize("ours", [False, True], ids=["theirs", "ours"])
@pytest.mark.parametrize("round", range(3))
def test_written_by_us(img, io, qemu_img, qemu_io, seven, tmp, rng, ours, round):
    """Discards and zeroes too: the closed image is dense, so that qemu may go on writing, and then we."""
    content = bytearray(12 * MIB + 512)
    (img if ours else qemu_img)("create", "-f", "vdi", "a.vdi", len(content))
    for tool in (io, qemu_io, io):
        tool(*random_requests(rng, content, MIB, 20), "a.vdi")
        agree(img, qemu_img, seven, "a.vdi", content)


@pytest.mark.parametrize("static", ["off", "on"])
def test_converted_by_us(img, qemu_img, seven, tmp, rng, static):
    content = random_content(rng, 9 * MIB + 512, 300 * KIB)
    write_sparse("a.raw", content)
    img("convert", "-f", "raw", "-O", "vdi", "-o", f"static={static}", "a.raw", "a.vdi")
    agree(img, qemu_img, seven, "a.vdi", content)


@pytest.mark.parametrize("block", BLOCKS)
def test_every_block_size(img, io, tmp, rng, block):
    """Only we read other blocks than of 1 MiB."""
    content = bytearray(24 * MIB + 512)
    img("create", "-f", "vdi", "-o", f"block_size={block}", "a.vdi", len(content))
    io(*random_requests(rng, content, block, 40), "a.vdi")
    img("check", "a.vdi")
    img("convert", "-O", "raw", "a.vdi", "a.raw")
    same_bytes("a.raw", content)
    assert img("info", "--output=json", "a.vdi").json["cluster-size"] == block


@pytest.mark.parametrize("prealloc", ["metadata", "falloc", "full"])
def test_preallocation(img, qemu_img, seven, tmp, prealloc):
    img("create", "-f", "vdi", "-o", f"preallocation={prealloc}", "a.vdi", "4M")
    agree(img, qemu_img, seven, "a.vdi", bytes(4 * MIB))
    if prealloc != "metadata":
        assert allocated("a.vdi") >= 4 * MIB


def test_create_options(img, qemu_img, tmp):
    ours, theirs = (tool("create", "-f", "vdi", "-o", "help").out for tool in (img, qemu_img))
    for option in ("size", "static"):
        assert option in ours and option in theirs
    for size in ("0", "1", "511", "3000000", "1T"):
        for tool, name in ((img, "o.vdi"), (qemu_img, "t.vdi")):
            tool("create", "-f", "vdi", name, size)
        assert Vdi.load("o.vdi")["disk_size"] == Vdi.load("t.vdi")["disk_size"]
    for bad in ("block_size=5000", "block_size=2k", "block_size=2G"):
        img.fails("create", "-f", "vdi", "-o", bad, "b.vdi", "1M")
    assert not Path("b.vdi").exists()


# ---------------------------------------------------------------- size

@pytest.mark.parametrize("sizes", [(20 * MIB, 7 * MIB), (300 * GIB, 2 * TIB), (TIB, 3 * MIB, TIB)])
def test_resized(img, io, qemu_img, tmp, rng, sizes):
    """The map outgrows its room, more than once, and blocks move away before it."""
    content = random_content(rng, 5 * MIB, 256 * KIB)
    write_sparse("a.raw", content)
    img("convert", "-f", "raw", "-O", "vdi", "a.raw", "a.vdi")
    for size in sizes:
        img("resize", "--shrink", "a.vdi", size)
        content = content[:size]
        img("check", "a.vdi")
        qemu_img("check", "a.vdi")
        assert qemu_img("info", "--output=json", "a.vdi").json["virtual-size"] == size
        io("-c", f"write -P 77 {size - 65536} 64k", "-c", f"write -z -u {size - 65536} 64k", "a.vdi")
        qemu_img("dd", "-f", "vdi", "-O", "raw", "bs=64k", f"count={len(content) // 65536}",
                 "if=a.vdi", "of=b.raw")
        assert Path("b.raw").read_bytes() == bytes(content)[:len(content) // 65536 * 65536]


def test_map_moves_with_small_blocks(img, io, tmp, rng):
    """4 KiB blocks: the map needs the place of many of them."""
    content = random_content(rng, 3 * MIB, 64 * KIB)
    write_sparse("a.raw", content)
    img("convert", "-f", "raw", "-O", "vdi", "-o", "block_size=4k", "a.raw", "a.vdi")
    for size in (2 * GIB, 4 * GIB, 8 * GIB):
        img("resize", "a.vdi", size)
        assert Vdi.load("a.vdi")["map_offset"] % 512 == 0
        img("check", "a.vdi")
    img("resize", "--shrink", "a.vdi", len(content))
    img("convert", "-O", "raw", "a.vdi", "b.raw")
    same_bytes("b.raw", content)


def test_empty_huge_image_is_quick(img, qemu_img, tmp):
    img("create", "-f", "vdi", "a.vdi", "16T")
    img("convert", "-O", "vdi", "a.vdi", "b.vdi", timeout=20, memory=256 * MIB)
    assert qemu_img("info", "--output=json", "b.vdi").json["virtual-size"] == 16 * TIB


# ---------------------------------------------------------------- discard

def test_discarded_blocks_are_marked_and_used_again(img, io, seven, qemu_img, tmp):
    img("create", "-f", "vdi", "a.vdi", "8M")
    io("-c", "write -P 1 0 8M", "a.vdi")
    io("-c", "discard 2M 2M", "-c", "flush", "-c", "write -P 3 6M 64k", "a.vdi")
    image = Vdi.load("a.vdi")
    assert [image.entry(n) for n in (2, 3)] == [ZERO, ZERO]
    assert image["allocated"] == 6 and len(image.bytes) == 7 * MIB
    content = bytearray(b"\1" * (8 * MIB))
    content[2 * MIB:4 * MIB] = bytes(2 * MIB)
    content[6 * MIB:6 * MIB + 65536] = b"\3" * 65536
    agree(img, qemu_img, seven, "a.vdi", content)
    io("-c", "write -P 5 2M 1M", "a.vdi")
    assert len(Path("a.vdi").read_bytes()) == 8 * MIB


# ---------------------------------------------------------------- differencing

def chain(img, io, rng):
    content = random_content(rng, 6 * MIB, 256 * KIB)
    write_sparse("a.raw", content)
    img("convert", "-f", "raw", "-O", "vdi", "a.raw", "base.vdi")
    img("create", "-f", "vdi", "-b", "base.vdi", "-F", "vdi", "mid.vdi")
    io(*random_requests(rng, content, MIB, 10), "mid.vdi")
    img("create", "-f", "vdi", "-b", "mid.vdi", "-F", "vdi", "top.vdi")
    io(*random_requests(rng, content, MIB, 10), "top.vdi")
    return content


def test_differencing(img, io, tmp, rng):
    """Zeroes hide the parent; the parent is found by its UUID whatever the file is called."""
    content = chain(img, io, rng)
    Path("mid.vdi").rename("{another name}.vdi")
    for name in ("top.vdi", f"{tmp}/top.vdi"):
        img("convert", "-O", "raw", name, "b.raw")
        same_bytes("b.raw", content)
    assert img("info", "--output=json", "top.vdi").json["backing-filename"] == "{another name}.vdi"
    img("check", "top.vdi")
    img("convert", "-O", "vdi", "top.vdi", "flat.vdi")
    assert img("compare", "top.vdi", "flat.vdi").code == 0


def test_differencing_obeys_follow(img, io, tmp, rng):
    chain(img, io, rng)
    assert "--follow" in img.fails("--follow=none", "convert", "-O", "raw", "top.vdi", "b.raw").err
    Path("away").mkdir()
    shutil.move("mid.vdi", "away/mid.vdi")
    assert "backing" in img.fails("convert", "-O", "raw", "top.vdi", "b.raw").err


def test_differencing_commits(img, io, tmp, rng):
    content = chain(img, io, rng)
    img("commit", "top.vdi")
    img("convert", "-O", "raw", "mid.vdi", "b.raw")
    same_bytes("b.raw", content)
    assert all(Vdi.load("top.vdi").entry(n) == FREE for n in range(6))


def test_parent_must_be_beside(img, tmp):
    Path("sub").mkdir()
    img("create", "-f", "vdi", "sub/base.vdi", "1M")
    assert "folder" in img.fails("create", "-f", "vdi", "-b", "sub/base.vdi", "-F", "vdi", "a.vdi").err


# ---------------------------------------------------------------- damage

def damaged(img, tmp, change, errors, leaks, kept):
    """Checked, repaired, checked again; `kept` says which of the blocks still hold what they held."""
    image = Vdi(blocks=6, entries=(0, 1, 2, 3))
    for number in range(4):
        at = image["data_offset"] + number * MIB
        image.bytes[at:at + MIB] = bytes([number + 1]) * MIB
    change(image)
    image.save(tmp)
    found = img("check", "--output=json", "a.vdi", code=2 if errors else 3).json
    assert found.get("corruptions", 0) == errors and found.get("leaks", 0) == leaks
    mended = img("check", "-r", "all", "--output=json", "a.vdi", code=0).json
    assert mended.get("corruptions", 0) == 0 and mended.get("leaks", 0) == 0
    img("check", "a.vdi")
    img("convert", "-O", "raw", "a.vdi", "a.raw")
    data = Path("a.raw").read_bytes()
    for block, value in kept.items():
        assert data[block * MIB:block * MIB + MIB] == bytes([value]) * MIB, f"block {block}"
    return Vdi.load("a.vdi")


def test_repair_crossed(img, tmp, qemu_img):
    """Two entries with one block: each gets its own, with the same bytes. Block 1 leaks by it."""
    damaged(img, tmp, lambda image: image.put_entry(1, 2), 1, 1, {0: 1, 1: 3, 2: 3, 3: 4})
    qemu_img("check", "a.vdi")


def test_repair_outside(img, tmp, qemu_img):
    image = damaged(img, tmp, lambda image: image.put_entry(2, 1000), 1, 1, {0: 1, 1: 2, 2: 0, 3: 4})
    assert image.entry(2) == FREE
    qemu_img("check", "a.vdi")


def test_repair_leaks(img, tmp, qemu_img):
    image = damaged(img, tmp, lambda image: image.put_entry(0, FREE), 0, 1, {0: 0, 1: 2, 2: 3, 3: 4})
    assert image["allocated"] == 3 and len(image.bytes) == 1024 + 3 * MIB
    qemu_img("check", "a.vdi")


def test_repair_count(img, tmp, qemu_img):
    def lower(image):
        image["allocated"] = 1
    assert damaged(img, tmp, lower, 1, 0, {0: 1, 1: 2, 2: 3, 3: 4})["allocated"] == 4
    qemu_img("check", "a.vdi")


def test_crossed_image_is_not_written(img, io, tmp):
    image = Vdi(entries=(0, 0))
    image.save(tmp)
    assert "check" in io.fails("-c", "write 0 512", "a.vdi").err
    assert Path("a.vdi").read_bytes() == bytes(image.bytes)
