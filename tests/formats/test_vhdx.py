"""vhdx images: differencing ones, logs that are to be replayed, damage and repair, new sizes."""

import random
import shutil
from pathlib import Path

import pytest

from conftest import BIN
from platter import GIB, KIB, MIB, TIB, Tool, allocated, random_content, same_bytes, write_sparse
from vhdxbuild import (DATA_WRITE, LOG, NOBODY, PAGE, PARTIAL, PRESENT, UNMAPPED, ZERO, Vhdx, entries,
                       header, locator, log_entry, region_table, set_entry)


@pytest.fixture
def io():
    return Tool(BIN / "io")


def read(img, name, content, *options):
    img("convert", *options, "-f", "vhdx", "-O", "raw", name, "out.raw")
    same_bytes("out.raw", content)


# ---------------------------------------------------------------- differencing images

def linked(parent="parent.vhdx", guid=DATA_WRITE, **more):
    return locator(parent_linkage=f"{{{guid}}}", relative_path=f".\\{parent}", **more)


@pytest.mark.parametrize("sector", [512, 4096])
@pytest.mark.parametrize("block", [1 * MIB, 8 * MIB])
def test_sectors_of_child_and_parent(img, io, tmp, rng, block, sector):
    content = random_content(rng, 3 * block, 64 * KIB)
    parent = Vhdx(3 * block, block, sector)
    for number in range(3):
        parent.put_block(number, bytes(content[number * block:(number + 1) * block]))
    parent.save("parent.vhdx")
    child = Vhdx(3 * block, block, sector, parent=linked())
    sectors = {n: rng.randbytes(sector) for n in rng.sample(range(block // sector), 40)}
    child.put_partial(1, sectors)
    child.bat[child.bat_index(2)] = ZERO
    child.save("child.vhdx")
    for number, data in sectors.items():
        at = block + number * sector
        content[at:at + sector] = data
    content[2 * block:] = bytes(block)
    read(img, "child.vhdx", content)
    info = img("info", "--output=json", "child.vhdx").json
    assert info["backing-filename"] == "parent.vhdx"

    # and written to, in parts of sectors
    for _ in range(30):
        at, length = rng.randrange(2 * block), rng.randrange(1, 9 * KIB)
        byte = rng.randrange(1, 256)
        io("-f", "vhdx", "-c", f"write -P {byte} {at} {length}", "child.vhdx")
        content[at:at + length] = bytes([byte]) * length
    read(img, "child.vhdx", content)
    assert img("check", "child.vhdx", code=None).code in (0, 3)


def test_only_written_sectors_are_stored(img, io, tmp):
    img("create", "-f", "vhdx", "p.vhdx", "1G")
    img("create", "-f", "vhdx", "-b", "p.vhdx", "-F", "vhdx", "c.vhdx")
    io("-f", "vhdx", *[a for k in range(0, 1024, 64) for a in ("-c", f"write -P 1 {k}M 4k")],
       "c.vhdx")
    assert allocated("c.vhdx") < 2 * MIB
    told = [(e["start"], e["length"]) for e in img("map", "--output=json", "c.vhdx").json
            if e["depth"] == 0 and e["data"]]
    assert told == [(k * MIB, 4 * KIB) for k in range(0, 1024, 64)]


def test_parent_that_was_written_to_is_refused(img, io, tmp):
    img("create", "-f", "vhdx", "p.vhdx", "8M")
    img("create", "-f", "vhdx", "-b", "p.vhdx", "-F", "vhdx", "c.vhdx")
    assert img("map", "c.vhdx").code == 0
    io("-f", "vhdx", "-c", "read 0 4k", "p.vhdx")
    assert img("map", "c.vhdx").code == 0
    io("-f", "vhdx", "-c", "write 0 4k", "p.vhdx")
    assert "written to since" in img("map", "c.vhdx", code=1).err


def test_second_linkage_counts(img, tmp):
    Vhdx(4 * MIB).save("parent.vhdx")
    Vhdx(4 * MIB, parent=linked(guid=LOG, parent_linkage2=f"{{{DATA_WRITE}}}")).save("child.vhdx")
    assert img("map", "child.vhdx").code == 0


@pytest.mark.parametrize("pairs", [
    {"absolute_win32_path": "C:\\Users\\Public\\disks\\parent.vhdx"},
    {"volume_path": "\\\\?\\Volume{26a21bda-a627-11d7-9931-806e6f6e6963}\\parent.vhdx"},
    {"relative_path": "parent.vhdx", "absolute_win32_path": "C:\\other.vhdx"},
])
def test_paths_of_windows(img, tmp, pairs):
    Vhdx(4 * MIB).save("parent.vhdx")
    Vhdx(4 * MIB, parent=locator(parent_linkage=str(DATA_WRITE), **pairs)).save("child.vhdx")
    assert img("map", "child.vhdx").code == 0


def test_relative_path_leads_through_folders(img, tmp):
    Path("a/b").mkdir(parents=True)
    Vhdx(4 * MIB).save("a/parent.vhdx")
    Vhdx(4 * MIB, parent=locator(parent_linkage=str(DATA_WRITE),
                                 relative_path="..\\parent.vhdx")).save("a/b/child.vhdx")
    assert img("map", "a/b/child.vhdx").code == 0
    assert "--follow" in img("map", "--follow=none", "a/b/child.vhdx", code=1).err


def test_parent_of_another_kind_is_refused(img, tmp):
    Path("p.raw").write_bytes(bytes(MIB))
    assert "must be vhdx" in img("create", "-f", "vhdx", "-b", "p.raw", "-F", "raw", "c.vhdx",
                                 code=1).err
    img("create", "-f", "vhdx", "p.vhdx", "8M")
    assert "fixed" in img("create", "-f", "vhdx", "-o", "subformat=fixed", "-b", "p.vhdx", "-F",
                          "vhdx", "c.vhdx", code=1).err


# ---------------------------------------------------------------- logs

def dirty(entries_at, content_change=True, **more):
    """An image whose block 0 only the log maps. entries_at: (position in the log, entry)."""
    image = Vhdx(4 * MIB, **more)
    image.log = LOG
    offset = image.place(MIB)
    image.parts[offset] = b"\x5a" * MIB
    page = bytearray(image.bat_page())
    page[:8] = (offset | PRESENT).to_bytes(8, "little")
    for position, make in entries_at:
        raw = make(image, bytes(page))
        at = position % image.log_length
        first = min(len(raw), image.log_length - at)
        image.parts[image.log_offset + at] = raw[:first]
        if first < len(raw):
            image.parts[image.log_offset] = raw[first:]
    return image


def good(sequence, tail):
    def make(image, page):
        return log_entry(sequence, [(image.bat_offset, page)], tail, flushed=image.end,
                         last=image.end)
    return make


def stale(sequence, tail):
    """Would unmap the block again."""
    def make(image, page):
        return log_entry(sequence, [(image.bat_offset, bytes(PAGE))], tail, flushed=image.end,
                         last=image.end)
    return make


WHOLE = b"\x5a" * MIB + bytes(3 * MIB)
LOGS = {
    "one entry": [(0, good(1, 0))],
    "in the middle": [(40 * PAGE, good(7, 40 * PAGE))],
    "around the end": [(MIB - PAGE, good(7, MIB - PAGE))],
    "an older sequence": [(0, stale(3, 0)), (64 * PAGE, good(9, 64 * PAGE))],
    "two entries": [(0, stale(3, 0)), (2 * PAGE, good(4, 0))],
    "the tail is the second": [(0, stale(3, 0)), (2 * PAGE, good(4, 2 * PAGE))],
    "two entries around the end": [(MIB - 2 * PAGE, stale(3, MIB - 2 * PAGE)),
                                   (0, good(4, MIB - 2 * PAGE))],
    "a high number": [(0, good((5 << 32) + 17, 0))],
    "other people's entries": [
        (0, lambda image, page: log_entry(99, [(image.bat_offset, bytes(PAGE))], 0, guid=NOBODY)),
        (4 * PAGE, good(5, 4 * PAGE))],
    "a torn one behind": [(0, good(5, 0)), (2 * PAGE, lambda image, page: log_entry(
        6, [(image.bat_offset, bytes(PAGE))], 2 * PAGE)[:-PAGE] + bytes(PAGE))],
}


@pytest.mark.parametrize("name", LOGS)
def test_log_is_replayed(img, io, qemu_img, tmp, name):
    dirty(LOGS[name]).save("a.vhdx")
    before = Path("a.vhdx").read_bytes()
    shutil.copy("a.vhdx", "q.vhdx")
    assert img("info", "--output=json", "a.vhdx").json["dirty-flag"]
    read(img, "a.vhdx", WHOLE)  # read-only: in memory
    assert img("check", "a.vhdx").code == 0
    assert Path("a.vhdx").read_bytes() == before, "reading wrote to it"
    qemu_img("check", "-r", "all", "q.vhdx")  # the oracle's own replay
    read(img, "q.vhdx", WHOLE)
    io("-f", "vhdx", "-c", "read -P 0x5a 0 1M", "a.vhdx")  # open for writing: in place
    assert not img("info", "--output=json", "a.vhdx").json["dirty-flag"]
    for tool in (img, qemu_img):
        tool("convert", "-f", "vhdx", "-O", "raw", "a.vhdx", "out.raw")
        same_bytes("out.raw", WHOLE)


def test_zero_descriptors_are_replayed(img, tmp):
    image = dirty([(0, good(1, 0)), (2 * PAGE, lambda i, page: log_entry(
        2, [(i.bat_offset, 8 * PAGE)], 0, flushed=i.end, last=i.end))])
    image.save("a.vhdx")
    read(img, "a.vhdx", bytes(4 * MIB))
    assert img("check", "-r", "all", "a.vhdx", code=None).code in (0, 3)
    read(img, "a.vhdx", bytes(4 * MIB))


def test_log_makes_the_file_longer(img, io, tmp):
    """The file was cut where its last size was not durable yet."""
    image = dirty([(0, lambda i, page: log_entry(1, [(i.bat_offset, page)], 0,
                                                 flushed=i.end - 0, last=i.end + 3 * MIB))])
    image.save("a.vhdx")
    read(img, "a.vhdx", WHOLE)
    io("-f", "vhdx", "-c", "read 0 512", "a.vhdx")
    assert Path("a.vhdx").stat().st_size == image.end + 3 * MIB
    read(img, "a.vhdx", WHOLE)


def test_log_in_bitmaps_of_a_child(img, tmp):
    """Sector bitmap and BAT change in one entry."""
    Vhdx(4 * MIB).save("parent.vhdx")
    child = Vhdx(4 * MIB, parent=linked())
    child.put_partial(1, {3: b"\x77" * 512})
    bits_at = child.bat[child.bitmap_index(1)] & ~(MIB - 1)
    bits, page = bytes(child.parts[bits_at][:PAGE]), child.bat_page(child.bitmap_index(1) // 512)
    changes = [(bits_at, bits), (child.bat_offset, child.bat_page(0)),
               (child.bat_offset + child.bitmap_index(1) // 512 * PAGE, page)]
    child.parts[child.log_offset] = log_entry(1, changes, 0, flushed=child.end, last=child.end)
    child.parts[bits_at] = bytes(PAGE)
    child.bat = {}
    child.log = LOG
    child.save("child.vhdx")
    want = bytearray(4 * MIB)
    want[MIB + 1536:MIB + 2048] = b"\x77" * 512
    read(img, "child.vhdx", want)
    img("check", "-r", "all", "child.vhdx", code=None)
    read(img, "child.vhdx", want)


# ---------------------------------------------------------------- damage and repair

def make(img, io, name="a.vhdx"):
    """8 MiB in blocks of 1 MiB: 0 and 2 and 5 are written."""
    img("create", "-f", "vhdx", "-o", "block_size=1M", name, "8M")
    io("-f", "vhdx", "-c", "write -P 1 0 1M", "-c", "write -P 2 2M 1M", "-c", "write -P 3 5M 4k", name)
    content = bytearray(8 * MIB)
    content[:MIB], content[2 * MIB:3 * MIB] = b"\1" * MIB, b"\2" * MIB
    content[5 * MIB:5 * MIB + 4096] = b"\3" * 4096
    return content


BAT_AT = 2 * MIB


def repair(img, name="a.vhdx", before=2):
    """Check finds corruptions, repair mends them, and check is content."""
    assert img("check", name, code=None).code == before
    img("check", "-r", "all", name)
    assert img("check", name).code == 0


@pytest.mark.parametrize("slot", [1, 2])
def test_lost_header_copy(img, io, qemu_img, tmp, slot):
    content = make(img, io)
    with open("a.vhdx", "r+b") as file:
        file.seek(slot << 16)
        file.write(b"\xee" * 4096)
    read(img, "a.vhdx", content)
    repair(img)
    read(img, "a.vhdx", content)
    qemu_img("check", "a.vhdx")


@pytest.mark.parametrize("slot", [3, 4])
def test_lost_region_table_copy(img, io, qemu_img, tmp, slot):
    content = make(img, io)
    with open("a.vhdx", "r+b") as file:
        file.seek((slot << 16) + 40)
        file.write(b"\xee")
    read(img, "a.vhdx", content)
    repair(img)
    read(img, "a.vhdx", content)
    qemu_img("check", "a.vhdx")


def test_both_copies_lost_is_refused(img, io, tmp):
    make(img, io)
    with open("a.vhdx", "r+b") as file:
        file.seek(1 << 16)
        file.write(bytes(2 << 16))
    assert "neither of its two headers" in img("info", "a.vhdx", code=1).err


def test_cross_linked_blocks_get_apart(img, io, qemu_img, tmp):
    content = make(img, io)
    first = entries("a.vhdx", BAT_AT, 8)[0]
    set_entry("a.vhdx", BAT_AT, 7, first)
    content[7 * MIB:] = content[:MIB]
    assert "two things lie" in io("-f", "vhdx", "-c", "write 0 512", "a.vhdx", code=1).err
    read(img, "a.vhdx", content)
    repair(img)
    read(img, "a.vhdx", content)
    io("-f", "vhdx", "-c", "write -P 9 0 512", "a.vhdx")
    content[:512] = b"\x09" * 512
    read(img, "a.vhdx", content)
    qemu_img("check", "a.vhdx")


@pytest.mark.parametrize("entry", [(1 << 40) | PRESENT, PRESENT, (63 << 20) | PRESENT],
                         ids=["far out", "in the header", "behind the end"])
def test_entry_out_of_the_file(img, io, qemu_img, tmp, entry):
    content = make(img, io)
    set_entry("a.vhdx", BAT_AT, 2, entry)
    content[2 * MIB:3 * MIB] = bytes(MIB)
    repair(img)
    read(img, "a.vhdx", content)
    qemu_img("check", "a.vhdx")


@pytest.mark.parametrize("target", [MIB, BAT_AT, 3 * MIB], ids=["log", "bat", "metadata"])
def test_block_in_metadata_moves_out(img, io, qemu_img, tmp, target):
    make(img, io)
    set_entry("a.vhdx", BAT_AT, 2, target | PRESENT)
    repair(img)
    io("-f", "vhdx", "-c", "write -P 9 2M 1M", "a.vhdx")
    assert img("check", "a.vhdx").code == 0
    qemu_img("check", "a.vhdx")


@pytest.mark.parametrize("entry", [4, 5, 7 | (9 << 20)])
def test_unknown_state(img, io, tmp, entry):
    content = make(img, io)
    set_entry("a.vhdx", BAT_AT, 1, entry)
    assert "corrupt" in io("-f", "vhdx", "-c", "write 0 512", "a.vhdx", code=1).err
    repair(img)
    read(img, "a.vhdx", content)


def test_leak_is_given_back(img, io, tmp):
    content = make(img, io)
    set_entry("a.vhdx", BAT_AT, 0, ZERO)
    content[:MIB] = bytes(MIB)
    full = allocated("a.vhdx")
    repair(img, before=3)
    assert allocated("a.vhdx") <= full - MIB
    read(img, "a.vhdx", content)


def test_leak_at_the_end_is_cut_off(img, io, tmp):
    make(img, io)
    size = Path("a.vhdx").stat().st_size
    with open("a.vhdx", "ab") as file:
        file.write(b"x" * 3 * MIB)
    repair(img, before=3)
    assert Path("a.vhdx").stat().st_size == size


# ---------------------------------------------------------------- discard, resize

def test_discarded_space_is_used_again(img, io, tmp):
    img("create", "-f", "vhdx", "-o", "block_size=1M", "a.vhdx", "16M")
    io("-d", "unmap", "-f", "vhdx", "-c", "write -P 1 0 8M", "a.vhdx")
    size = Path("a.vhdx").stat().st_size
    io("-d", "unmap", "-f", "vhdx", "-c", "discard 1M 3M", "-c", "write -zu 5M 1M", "a.vhdx")
    assert [e & 7 for e in entries("a.vhdx", BAT_AT, 8)] == [6, UNMAPPED, UNMAPPED, UNMAPPED, 6,
                                                             ZERO, 6, 6]
    assert img("check", "a.vhdx").code == 0
    io("-d", "unmap", "-f", "vhdx", "-c", "write -P 2 9M 4M", "a.vhdx")
    assert Path("a.vhdx").stat().st_size == size
    # one block in the place of an old one, of which only a part is written
    io("-d", "unmap", "-f", "vhdx", "-c", "discard 9M 1M", "-c", "flush", "-c", "write -P 3 14M 512",
       "-c", "read -P 0 14680576 1048064", "a.vhdx")


def test_fixed_keeps_its_blocks(img, io, tmp):
    img("create", "-f", "vhdx", "-o", "block_size=1M,subformat=fixed", "a.vhdx", "8M")
    before = entries("a.vhdx", BAT_AT, 8)
    assert all(e & 7 == PRESENT for e in before)
    io("-d", "unmap", "-f", "vhdx", "-c", "write -P 1 0 8M", "-c", "discard 1M 3M",
       "-c", "write -zu 5M 1M", "-c", "read -P 0 5M 1M", "-c", "write -z 6M 1M",
       "-c", "read -P 0 6M 1M", "a.vhdx")
    assert entries("a.vhdx", BAT_AT, 8) == before


@pytest.mark.parametrize("subformat", ["dynamic", "fixed"])
def test_grow_and_shrink(img, io, qemu_img, tmp, subformat):
    img("create", "-f", "vhdx", "-o", f"block_size=1M,subformat={subformat}", "a.vhdx", "7680k")
    io("-f", "vhdx", "-c", "write -P 1 0 7680k", "a.vhdx")
    content = bytearray(b"\1" * (7680 * KIB))
    for size in (7681 * KIB, 12 * MIB, 3 * MIB + 512, 20 * MIB, MIB, 30 * MIB):
        img("resize", "--shrink", "-f", "vhdx", "a.vhdx", size)
        content = content[:size] + bytes(max(0, size - len(content)))
        read(img, "a.vhdx", content)
        assert img("check", "a.vhdx").code == 0
        qemu_img("convert", "-f", "vhdx", "-O", "raw", "a.vhdx", "q.raw")
        same_bytes("q.raw", content)
    assert "--shrink" in img("resize", "-f", "vhdx", "a.vhdx", "1M", code=1).err


def test_bat_moves_when_it_is_full(img, io, qemu_img, tmp):
    content = make(img, io)
    where = [e & ~7 for e in entries("a.vhdx", BAT_AT, 8)]
    img("resize", "-f", "vhdx", "a.vhdx", 256 * GIB)  # 2 MiB of BAT
    told = img("map", "--output=json", "a.vhdx").json
    assert [e["offset"] for e in told if not e["zero"]] == [where[0], where[2], where[5]]
    assert img("check", "a.vhdx").code == 0
    qemu_img("check", "a.vhdx")
    io("-f", "vhdx", "-c", "write -P 4 200G 4k", "-c", "read -P 4 200G 4k", "-c", "read -P 1 0 1M",
       "a.vhdx")
    img("resize", "-f", "vhdx", "--shrink", "a.vhdx", 8 * MIB)
    read(img, "a.vhdx", content)
    assert img("check", "a.vhdx").code == 0


def test_resize_of_a_child(img, io, tmp):
    img("create", "-f", "vhdx", "-o", "block_size=1M", "p.vhdx", "8M")
    io("-f", "vhdx", "-c", "write -P 1 0 8M", "p.vhdx")
    img("create", "-f", "vhdx", "-o", "block_size=1M", "-b", "p.vhdx", "-F", "vhdx", "c.vhdx")
    io("-f", "vhdx", "-c", "write -P 2 1M 4k", "c.vhdx")
    img("resize", "-f", "vhdx", "--shrink", "c.vhdx", "3584k")
    img("resize", "-f", "vhdx", "c.vhdx", "12M")
    content = bytearray(12 * MIB)
    content[:3584 * KIB] = b"\1" * (3584 * KIB)
    content[MIB:MIB + 4096] = b"\2" * 4096
    read(img, "c.vhdx", content)
    assert img("check", "c.vhdx").code == 0


def test_limits_of_sizes(img, tmp):
    img("create", "-f", "vhdx", "a.vhdx", "8M")
    assert "64 TiB" in img("resize", "-f", "vhdx", "a.vhdx", 65 * TIB, code=1).err
    img("resize", "-f", "vhdx", "a.vhdx", 64 * TIB)
    assert img("info", "--output=json", "a.vhdx").json["virtual-size"] == 64 * TIB


# ---------------------------------------------------------------- commit

@pytest.mark.parametrize("second", [True, False], ids=["ours", "without parent_linkage2"])
def test_commit_into_the_parent(img, io, tmp, second):
    """The parent becomes another one for its children, but for the one that is committed."""
    img("create", "-f", "vhdx", "-o", "block_size=1M", "p.vhdx", "8M")
    io("-f", "vhdx", "-c", "write -P 1 0 4M", "p.vhdx")
    if second:
        img("create", "-f", "vhdx", "-o", "block_size=1M", "-b", "p.vhdx", "-F", "vhdx", "c.vhdx")
    else:
        guid = img("create", "-f", "vhdx", "-b", "p.vhdx", "-F", "vhdx", "x.vhdx") and None
        with open("p.vhdx", "rb") as file:
            heads = []
            for at in (64 << 10, 128 << 10):
                file.seek(at)
                heads.append(file.read(PAGE))
        import uuid
        newest = max(heads, key=lambda h: int.from_bytes(h[8:16], "little"))
        guid = uuid.UUID(bytes_le=newest[32:48])
        Vhdx(8 * MIB, parent=locator(parent_linkage=f"{{{guid}}}",
                                     relative_path="p.vhdx")).save("c.vhdx")
    img("create", "-f", "vhdx", "-b", "p.vhdx", "-F", "vhdx", "other.vhdx")
    content = bytearray(b"\1" * 4 * MIB + bytes(4 * MIB))
    for turn in range(2, 5):
        at = turn * 1500 * KIB
        io("-f", "vhdx", "-c", f"write -P {turn} {at} 5000", "c.vhdx")
        content[at:at + 5000] = bytes([turn]) * 5000
        read(img, "c.vhdx", content)
        img("commit", *(["-d"] if turn == 3 and second else []), "-f", "vhdx", "c.vhdx")
        read(img, "c.vhdx", content)
        read(img, "p.vhdx", content)
        assert img("check", "c.vhdx").code == 0
    assert "written to since" in img("map", "other.vhdx", code=1).err
