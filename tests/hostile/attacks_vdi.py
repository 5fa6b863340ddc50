"""Attacks by way of VDI images."""

from batbuild import FILL, ZERO, Vdi
from table import DAMAGED, HARMED, MIB, OK, Refused, rows

TABLE, row = rows("vdi")
VDI = ("-f", "vdi")


def field_row(name, what, fields, *words, cves=()):
    """A row that is a sound image but for fields of the header; not even info opens it."""
    no = Refused(*words)

    @row(name, what, cves=cves, info=no, check=no, convert=no, options=VDI)
    def make(folder, secret):
        image = Vdi()
        for field, value in fields.items():
            image[field] = value
        return image.save(folder)


# ---------------------------------------------------------------- the series of 2014

field_row("CVE-2014-0142-vdi-block-size", "division by a block size of zero",
          {"block_size": 0}, "block size", "0")
field_row("CVE-2014-0144-vdi-blocks", "4 * blocks_in_image overflows 32 bits",
          {"blocks": 0x40000001, "disk_size": 1 << 40}, "number of blocks")
field_row("CVE-2014-0144-vdi-blocks-max", "the most blocks that the field can say",
          {"blocks": 0xffffffff}, "number of blocks")
field_row("CVE-2014-0144-vdi-disk-size", "a disk that its blocks do not hold",
          {"disk_size": (1 << 64) - 512}, "disk size")
field_row("CVE-2014-0144-vdi-disk-size-signed", "a disk size that is negative as a signed number",
          {"disk_size": 1 << 63}, "disk size")
field_row("CVE-2014-0144-vdi-block-size", "blocks of 2 GiB", {"block_size": 1 << 31}, "block size")
field_row("vdi-block-size-odd", "a block size that is no power of two",
          {"block_size": 1000000}, "block size")
field_row("vdi-extra", "room before each block that makes strides of zero",
          {"block_extra": 0xfff00000}, "room before each block")
field_row("vdi-map-in-header", "a block map on the header", {"map_offset": 0}, "block map offset")
field_row("vdi-map-beyond", "a block map beyond the file",
          {"map_offset": 0xfffffe00, "data_offset": 0xfffffe00}, "data offset")
field_row("vdi-map-unaligned", "a block map between sectors", {"map_offset": 513}, "block map")
field_row("vdi-data-on-map", "data that begin on the block map", {"data_offset": 512}, "data offset")
field_row("vdi-sector-size", "sectors of no bytes", {"sector_size": 0}, "sector size")
field_row("vdi-version", "a version from the future", {"version": 0x20001}, "version", "2.1")
field_row("vdi-type", "an undo image", {"type": 3}, "image type")
field_row("vdi-signature", "no signature", {"signature": 0}, "signature")
field_row("vdi-no-parent", "differencing, but on nothing", {"type": 4}, "parent")


@row("vdi-empty-file", "nothing at all", info=Refused("signature"), check=Refused("signature"),
     convert=Refused("signature"), options=VDI)
def empty_file(folder, secret):
    (folder / "a.vdi").write_bytes(b"")
    return "a.vdi"


@row("vdi-cut-in-map", "the file ends in the block map", info=Refused("truncated"),
     check=Refused("truncated"), convert=Refused("truncated"), options=VDI)
def cut_in_map(folder, secret):
    image = Vdi(blocks=1 << 20, block_size=4096)
    image["data_offset"] = 1 << 23
    return image.save(folder)


# ---------------------------------------------------------------- the block map

@row("vdi-entry-beyond", "a block far beyond the file", check=DAMAGED,
     convert=Refused("beyond the end"))
def entry_beyond(folder, secret):
    image = Vdi()
    image.put_entry(1, 0xfffffffd)
    return image.save(folder)


@row("vdi-crossed", "every block is the same one", check=DAMAGED, convert=OK,
     content=lambda: bytes([FILL]) * (4 * MIB))
def crossed(folder, secret):
    return Vdi(entries=(0, 0, 0, 0)).save(folder)


@row("vdi-count-low", "the header says that no block is in use", check=DAMAGED, convert=OK,
     content=lambda: bytes([FILL]) * MIB + bytes(3 * MIB))
def count_low(folder, secret):
    image = Vdi()
    image["allocated"] = 0
    return image.save(folder)


@row("vdi-zero-marks", "blocks that were discarded", check=OK, convert=OK,
     content=lambda: bytes([FILL]) * MIB + bytes(3 * MIB))
def zero_marks(folder, secret):
    return Vdi(entries=(0, ZERO, ZERO)).save(folder)


@row("vdi-huge-zero-map", "a map of zeroes: all of it the first block", check=HARMED,
     convert=None, map=None, info=OK, written=64 * MIB, memory=512 * MIB, seconds=180)
def huge_zero_map(folder, secret):
    image = Vdi(blocks=1 << 17, block_size=512)
    image["data_offset"] = MIB
    name = image.save(folder)
    with open(folder / name, "r+b") as file:
        file.seek(1024)
        file.write(bytes(MIB - 1024))
        file.truncate(2 * MIB)
    return name


# ---------------------------------------------------------------- the parent

def child(folder, **fields):
    image = Vdi(entries=())
    image["type"] = 4
    image["parent"] = b"P" * 16
    for name, value in fields.items():
        image[name] = value
    return image.save(folder)


@row("vdi-parent-missing", "a parent that nobody has", info=None, check=None,
     convert=Refused("backing"))
def parent_missing(folder, secret):
    return child(folder)


@row("vdi-parent-itself", "its own parent", info=None, check=None, convert=Refused("backing"))
def parent_itself(folder, secret):
    return child(folder, uuid=b"P" * 16)


@row("vdi-parent-loop", "two images that are each other's parents", info=None, check=None,
     convert=Refused("loop"))
def parent_loop(folder, secret):
    other = Vdi(entries=())
    for name, value in {"type": 4, "uuid": b"P" * 16, "parent": b"U" * 16}.items():
        other[name] = value
    other.save(folder, "b.vdi")
    return child(folder)


@row("vdi-parent-modified", "a parent that was changed since", info=None, check=None,
     convert=Refused("modified"))
def parent_modified(folder, secret):
    parent = Vdi()
    parent["uuid"] = b"P" * 16
    parent.save(folder, "p.vdi")
    return child(folder, parent_modified=b"X" * 16)


@row("vdi-parent-fifo", "a pipe beside it, which must not be opened", info=None, check=None,
     convert=Refused("backing"))
def parent_fifo(folder, secret):
    import os
    os.mkfifo(folder / "p.vdi")
    return child(folder)
