"""vhdx images made by either tool: qemu-img, 7-zip and libvhdi read the same bytes as img."""

import subprocess
import time
from pathlib import Path

import pytest

from conftest import BIN
from platter import (KIB, MIB, TIB, Tool, includes, random_content, random_requests, same_bytes,
                     write_sparse)

BLOCKS = [1 * MIB, 2 * MIB, 8 * MIB, 256 * MIB]


@pytest.fixture
def io():
    return Tool(BIN / "io")


def agree(img, qemu_img, image, content):
    for number, tool in enumerate((img, qemu_img)):
        tool("convert", "-f", "vhdx", "-O", "raw", image, f"read{number}.raw")
        same_bytes(f"read{number}.raw", content)
    for tool in (img, qemu_img):
        assert tool("check", image, code=None).code in (0, 3)
    infos = [tool("info", "--output=json", image).json for tool in (img, qemu_img)]
    for info in infos:
        del info["actual-size"]
    includes(infos[0], infos[1])


def size_for(block):
    return min(5 * block, 11 * MIB) + 3 * 512


@pytest.mark.parametrize("subformat", ["dynamic", "fixed"])
@pytest.mark.parametrize("block", BLOCKS)
def test_made_by_qemu(img, qemu_img, tmp, rng, block, subformat):
    if subformat == "fixed" and block > 8 * MIB:
        pytest.skip("too large")
    content = random_content(rng, size_for(block), 64 * KIB)
    write_sparse("a.raw", content)
    qemu_img("convert", "-f", "raw", "-O", "vhdx", "-o", f"block_size={block},subformat={subformat}",
             "a.raw", "a.vhdx")
    agree(img, qemu_img, "a.vhdx", content)


@pytest.mark.parametrize("options", ["", "subformat=fixed,", "block_state_zero=off,"])
@pytest.mark.parametrize("block", BLOCKS)
def test_made_by_us(img, qemu_img, tmp, rng, block, options):
    if "fixed" in options and block > 8 * MIB:
        pytest.skip("too large")
    content = random_content(rng, size_for(block), 64 * KIB)
    write_sparse("a.raw", content)
    img("convert", "-f", "raw", "-O", "vhdx", "-o", f"{options}block_size={block}", "a.raw", "a.vhdx")
    agree(img, qemu_img, "a.vhdx", content)
    assert img("compare", "-f", "raw", "-F", "vhdx", "a.raw", "a.vhdx").code == 0


@pytest.mark.parametrize("options", ["", "subformat=fixed,", "block_state_zero=off,"])
@pytest.mark.parametrize("block", BLOCKS[:3])
def test_seven_zip_reads_ours(img, need_tool, tmp, rng, block, options):
    content = random_content(rng, 11 * MIB, 64 * KIB)  # it wants whole MiB, of other tools, too
    write_sparse("a.raw", content)
    img("convert", "-f", "raw", "-O", "vhdx", "-o", f"{options}block_size={block}", "a.raw", "a.vhdx")
    out = subprocess.run([need_tool("7z"), "e", "-so", "a.vhdx"], stdout=subprocess.PIPE,
                         check=True).stdout
    assert out == bytes(content), "7-zip reads other bytes"


@pytest.mark.parametrize("first", [0, 1])
@pytest.mark.parametrize("block", BLOCKS[:3])
def test_written_in_turn(img, io, qemu_img, qemu_io, tmp, rng, block, first):
    """Each tool goes on with what the other left. Block 0 is written at first: the oracle up to 7.2 shifts the page
    of the BAT whose first entry it changes while others are set."""
    content = bytearray(size_for(block))
    (img, qemu_img)[first]("create", "-f", "vhdx", "-o", f"block_size={block}", "a.vhdx",
                           len(content))
    qemu_io("-f", "vhdx", "-c", "write -P 1 0 512", "a.vhdx")
    content[:512] = b"\1" * 512
    for turn in range(4):
        requests = random_requests(rng, content, 256 * KIB, 12)
        if turn % 2 == first:
            io("-d", "unmap", "-f", "vhdx", *requests, "a.vhdx")
        else:
            # it has no zeroes of its own
            qemu_io("-f", "vhdx", *[r.replace(" -u", "") for r in requests], "a.vhdx")
        agree(img, qemu_img, "a.vhdx", content)


def test_libvhdi_knows_it(img, need_tool, tmp):
    need_tool("vhdiinfo")
    img("create", "-f", "vhdx", "a.vhdx", "3G")
    img("create", "-f", "vhdx", "-b", "a.vhdx", "-F", "vhdx", "b.vhdx")
    told = [subprocess.run(["vhdiinfo", name], stdout=subprocess.PIPE, check=True,
                           text=True).stdout for name in ("a.vhdx", "b.vhdx")]
    assert "Dynamic" in told[0] and "3221225472" in told[0]
    assert "Differential" in told[1]

    def value(text, key):
        return next(line.split(":", 1)[1].strip() for line in text.splitlines()
                    if line.split(":")[0].strip() == key)
    assert value(told[1], "Parent identifier") == value(told[0], "Identifier")


@pytest.mark.parametrize("size", ["1M", "1G", 2 ** 30 + 512, "100G", "101G", "33T", "64T"])
def test_block_size_is_chosen_alike(img, qemu_img, tmp, size):
    for name, tool in (("a", img), ("b", qemu_img)):
        tool("create", "-f", "vhdx", f"{name}.vhdx", size)
    infos = [img("info", "--output=json", f"{name}.vhdx").json for name in "ab"]
    assert infos[0]["cluster-size"] == infos[1]["cluster-size"]
    assert infos[0]["virtual-size"] == infos[1]["virtual-size"]
    assert qemu_img("info", "--output=json", "a.vhdx").json["cluster-size"] \
        == infos[0]["cluster-size"]


@pytest.mark.parametrize("options", ["block_size=3M", "log_size=5G", "subformat=foo",
                                     "block_size=512M", "block_size=1000", "block_size=1500000",
                                     "log_size=3000000", "log_size=100"])
def test_options_are_taken_alike(img, qemu_img, tmp, options):
    ours = img("create", "-f", "vhdx", "-o", options, "a.vhdx", "1G", code=None)
    theirs = qemu_img("create", "-f", "vhdx", "-o", options, "b.vhdx", "1G", code=None)
    assert ours.code == theirs.code
    if ours.code == 0:
        assert ours.out.replace("a.vhdx", "b.vhdx") == theirs.out
        assert img("info", "--output=json", "a.vhdx").json["cluster-size"] \
            == img("info", "--output=json", "b.vhdx").json["cluster-size"]


def test_all_options_of_qemu_are_there(img, qemu_img, tmp):
    def names(text):
        return {line.split("=")[0].strip() for line in text.splitlines() if "=<" in line}
    assert names(qemu_img("create", "-f", "vhdx", "-o", "help").out) \
        <= names(img("create", "-f", "vhdx", "-o", "help").out)


def test_too_large_is_refused(img, tmp):
    assert "64 TiB" in img("create", "-f", "vhdx", "a.vhdx", "65T", code=1).err


def test_empty_2_tib_are_quick(img, tmp):
    img("create", "-f", "vhdx", "a.vhdx", 2 * TIB)
    began = time.monotonic()
    img("convert", "-O", "vhdx", "a.vhdx", "b.vhdx")
    img("convert", "-O", "raw", "b.vhdx", "b.raw")
    assert time.monotonic() - began < 2
    assert Path("b.raw").stat().st_size == 2 * TIB


def test_map_tells_what_is_where(img, io, tmp):
    img("create", "-f", "vhdx", "-o", "block_size=1M", "a.vhdx", "10M")
    io("-f", "vhdx", "-c", "write -P 1 3M 2M", "a.vhdx")
    told = img("map", "--output=json", "a.vhdx").json
    assert [(e["start"], e["length"], e["data"]) for e in told] == [
        (0, 3 * MIB, False), (3 * MIB, 2 * MIB, True), (5 * MIB, 5 * MIB, False)]
    assert all(e["zero"] for e in told if not e["data"])


def test_measure_is_what_convert_takes(img, tmp, rng):
    content = random_content(rng, 20 * MIB, 512 * KIB)
    write_sparse("a.raw", content)
    told = img("measure", "--output=json", "-O", "vhdx", "-o", "block_size=1M", "a.raw").json
    img("convert", "-f", "raw", "-O", "vhdx", "-o", "block_size=1M", "a.raw", "a.vhdx")
    assert Path("a.vhdx").stat().st_size <= told["required"] <= told["fully-allocated"]
