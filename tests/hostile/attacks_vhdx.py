"""Attacks by way of vhdx images."""

import struct
import uuid

from table import ANY, DAMAGED, HARMED, MIB, OK, Refused, rows
from vhdxbuild import (BAT, DATA_WRITE, LOG, LOGICAL, METADATA, PAGE, PARAMETERS, PARENT, PARTIAL, PHYSICAL,
                       PRESENT, SIZE, Vhdx, header, locator, log_entry, region_table)

TABLE, row = rows("vhdx")
VHDX = ("-f", "vhdx")
FILL = b"\x5a"
UNKNOWN = uuid.UUID("12345678-1234-1234-1234-123456789abc")


def refused(*words):
    """Not even info opens it."""
    no = Refused(*words)
    return {"info": no, "check": no, "convert": no, "options": VHDX}


def sound(size=4 * MIB, **more):
    image = Vhdx(size, **more)
    image.put_block(0, FILL * MIB)
    return image


def save(image, folder, **more):
    return image.save(folder / "a.vhdx", **more).name


def change_row(name, what, change, *words, cves=(), **expected):
    """A sound image but for what change(image) does to it."""
    @row(name, what, cves=cves, **(expected or refused(*words)))
    def make(folder, secret):
        image = sound()
        change(image)
        return save(image, folder)


# ---------------------------------------------------------------- headers and regions

def headers(**fields):
    def change(image):
        image.headers = (header(1, **fields), header(2, **fields))
    return change


change_row("vhdx-version-2", "a version that does not exist", headers(version=2), "version", "2")
change_row("vhdx-log-version-1", "a log of another version", headers(log_version=1), "version of its log")
change_row("vhdx-log-offset-huge", "a log beyond 8 EiB", headers(log_offset=(1 << 64) - MIB),
           "log", "1 MiB")
change_row("vhdx-log-in-header", "a log that lies in the header", headers(log_offset=0), "log")
change_row("vhdx-log-length-odd", "a log of 1 MiB and a byte", headers(log_length=MIB + 1), "log")
change_row("vhdx-log-length-zero", "a log without a byte", headers(log_length=0), "log")
change_row("vhdx-log-over-bat", "a log that overlaps the BAT", headers(log_length=2 * MIB), "overlap")


@row("vhdx-headers-of-one-number", "two headers that differ, with one sequence number",
     **refused("sequence number"))
def twins(folder, secret):
    image = sound()
    image.headers = (header(3), header(3))
    return save(image, folder)


def regions(*extra, keep=2):
    def change(image):
        image.regions = image.regions[:keep] + [tuple(r) for r in extra]
    return change


def bat_at(offset, length=MIB):
    def change(image):
        image.regions[0] = (BAT, offset, length, 1)
    return change


change_row("vhdx-region-unknown", "a required region that nobody knows",
           regions((UNKNOWN, 20 * MIB, MIB, 1)), str(UNKNOWN), "requires")
change_row("vhdx-region-unknown-optional", "a region that nobody knows nor needs",
           regions((UNKNOWN, 20 * MIB, MIB, 0)), options=VHDX, convert=OK, check=ANY)
change_row("vhdx-region-twice", "two BATs", regions((BAT, 20 * MIB, MIB, 1)), "twice")
change_row("vhdx-region-missing", "no metadata", regions(keep=1), "no metadata")
change_row("vhdx-region-in-header", "the BAT in the header", bat_at(0), "1 MiB")
change_row("vhdx-region-unaligned", "the BAT between MiB", bat_at(2 * MIB + 512), "1 MiB")
change_row("vhdx-region-beyond", "the BAT beyond 8 EiB", bat_at((1 << 64) - MIB), "1 MiB")
change_row("vhdx-region-empty", "a BAT without a byte", bat_at(2 * MIB, 0), "1 MiB")
change_row("vhdx-regions-overlap", "BAT and metadata in one place", bat_at(3 * MIB), "overlap")
change_row("vhdx-region-behind-end", "the BAT behind the end of the file", bat_at(1 << 40),
           "BAT", "not inside the file")


@row("vhdx-region-count", "a region table of 4 billion entries", **refused("region table"))
def many_regions(folder, secret):
    name = save(sound(), folder)
    with open(folder / name, "r+b") as file:
        for at in (192 << 10, 256 << 10):
            file.seek(at)
            file.write(region_table([], count=0xffffffff))
    return name


# ---------------------------------------------------------------- metadata

def item(guid, data, flags=None):
    def change(image):
        image.items = [(g, data if g == guid else d, f if g != guid or flags is None else flags)
                       for g, d, f in image.items]
    return change


def parameters(block, flags=0):
    return item(PARAMETERS, struct.pack("<II", block, flags))


for block in (0, 1, 512, MIB - 1, MIB + 1, 3 * MIB, 512 * MIB, 0x80000000, 0xffffffff):
    change_row(f"CVE-2014-0148-block-size-{block:#x}", "divisions and shifts by the block size",
               parameters(block), "block size", str(block), cves=("CVE-2014-0148",))
for sector in (0, 1, 511, 1024, 0xffffffff):
    change_row(f"CVE-2014-0148-sector-size-{sector:#x}", "divisions by the sector size",
               item(LOGICAL, struct.pack("<I", sector)), "logical sector size", str(sector),
               cves=("CVE-2014-0148",))
change_row("vhdx-physical-sector-size", "a physical sector of 3 bytes",
           item(PHYSICAL, struct.pack("<I", 3)), "physical sector size")
for size in ((64 << 40) + 512, (1 << 64) - 512, 513):
    change_row(f"CVE-2014-0143-size-{size:#x}", "the number of BAT entries overflows",
               item(SIZE, struct.pack("<Q", size)), "64 TiB", cves=("CVE-2014-0143",))
change_row("CVE-2014-0143-bat-too-short", "a disk that needs more BAT entries than there are",
           item(SIZE, struct.pack("<Q", 64 << 40)), "BAT entries", cves=("CVE-2014-0143",))
change_row("vhdx-flags-unknown", "file parameters from the future", parameters(MIB, 0x80), "flags")
change_row("vhdx-item-missing", "no disk size",
           lambda i: i.items.pop(1), "virtual disk size", "missing")
change_row("vhdx-item-twice", "two disk sizes",
           lambda i: i.items.append(i.items[1]), "twice")
change_row("vhdx-item-unknown", "a required item that nobody knows",
           lambda i: i.items.append((UNKNOWN, b"x", 4)), str(UNKNOWN), "requires")
change_row("vhdx-item-short", "a disk size of two bytes", item(SIZE, b"\0\0"), "virtual disk size")
change_row("vhdx-parent-without-locator", "a parent, but nowhere", parameters(MIB, 2), "no parent locator")


def patch_row(name, what, at, data, *words):
    """A sound image but for bytes of the metadata region."""
    @row(name, what, **refused(*words))
    def make(folder, secret):
        image = sound()
        saved = save(image, folder)
        with open(folder / saved, "r+b") as file:
            file.seek(image.meta_offset + at)
            file.write(data)
        return saved


patch_row("vhdx-metadata-count", "a metadata table of 65535 entries", 10, b"\xff\xff", "entries")
patch_row("vhdx-metadata-signature", "metadata that is none", 0, b"metadatA", "signature")
patch_row("vhdx-item-offset", "an item 4 GiB behind its region", 32 + 16, b"\xff\xff\xff\xff",
          "file parameters")
patch_row("vhdx-item-over-table", "an item in the table itself", 32 + 16, b"\0\0\0\0", "file parameters")
patch_row("vhdx-item-length", "an item of 4 GiB", 32 + 20, b"\xff\xff\xff\xff", "file parameters")


@row("vhdx-bat-of-512-mib", "64 TiB in blocks of 1 MiB: a BAT of 512 MiB that is a hole", options=VHDX,
     check=ANY, convert=ANY)
def huge_bat(folder, secret):
    image = Vhdx(64 << 40, MIB)
    return save(image, folder)


# ---------------------------------------------------------------- BAT entries

def entry_row(name, what, entry, **expected):
    @row(name, what, options=VHDX, check=DAMAGED, **expected)
    def make(folder, secret):
        image = sound()
        image.bat[1] = entry
        return save(image, folder)


entry_row("vhdx-block-far-out", "a block 16 EiB away", (1 << 64) - MIB + PRESENT,
          convert=Refused("beyond the end"))
entry_row("vhdx-block-behind-end", "a block that ends behind the file", 5 * MIB + PRESENT + MIB // MIB * 8 * MIB,
          convert=Refused("beyond the end"))
entry_row("vhdx-block-in-header", "a block in the header", PRESENT, convert=Refused("header"))
entry_row("vhdx-block-partial", "a partially present block without a parent", 4 * MIB + PARTIAL,
          convert=Refused("BAT entry"))
entry_row("vhdx-block-state-4", "a state that does not exist", 4 * MIB + 4, convert=Refused("BAT entry"))
entry_row("vhdx-block-in-log", "a block in the log", MIB + PRESENT, convert=OK)
entry_row("vhdx-block-in-bat", "a block in the BAT", 2 * MIB + PRESENT, convert=OK)
entry_row("vhdx-block-twice", "two blocks in one place", 4 * MIB + PRESENT, convert=OK)


@row("vhdx-bitmap-far-out", "sector bitmaps 16 EiB away", options=VHDX, check=HARMED,
     convert=Refused())
def far_bitmap(folder, secret):
    Vhdx(4 * MIB).save(folder / "p.vhdx")
    image = Vhdx(4 * MIB, parent=linked("p.vhdx"))
    image.put_partial(1, {0: b"x" * 512})
    image.bat[image.bitmap_index(1)] = (1 << 63) + PRESENT
    return save(image, folder)


@row("vhdx-bitmap-missing", "a partially present block without its bitmap", options=VHDX, check=HARMED,
     convert=Refused("bitmap"))
def no_bitmap(folder, secret):
    Vhdx(4 * MIB).save(folder / "p.vhdx")
    image = Vhdx(4 * MIB, parent=linked("p.vhdx"))
    image.put_partial(1, {0: b"x" * 512})
    del image.bat[image.bitmap_index(1)]
    return save(image, folder)


# ---------------------------------------------------------------- parents

def linked(path, **more):
    return locator(parent_linkage=str(DATA_WRITE), relative_path=path, **more)


def parent_row(name, what, item, *words, **expected):
    @row(name, what, **(expected or {"options": VHDX, "info": ANY, "check": ANY,
                                     "convert": Refused(*words)}))
    def make(folder, secret):
        made = item(secret) if callable(item) else item
        return save(Vhdx(4 * MIB, parent=made), folder)


parent_row("vhdx-parent-is-the-secret", "a file elsewhere as the parent",
           lambda secret: linked(str(secret)))
parent_row("vhdx-parent-is-a-protocol", "a server as the parent", linked("nbd:unix:/tmp/x"), "nbd")
parent_row("vhdx-parent-is-json", "a description as the parent",
           linked("json:{\"driver\": \"file\", \"filename\": \"/etc/passwd\"}"))
parent_row("vhdx-parent-is-itself", "an image that rests on itself", linked("a.vhdx"), "loop")
parent_row("vhdx-parent-is-a-device", "a device as the parent", linked("/dev/zero"), "--follow")
parent_row("vhdx-locator-type", "a locator of another kind",
           UNKNOWN.bytes_le + struct.pack("<HH", 0, 0), **refused("locator", "type"))
parent_row("vhdx-locator-count", "a locator of 65535 pairs",
           linked("p.vhdx")[:18] + b"\xff\xff" + linked("p.vhdx")[20:], **refused("locator", "65535"))
parent_row("vhdx-locator-offset", "a value 4 GiB behind its locator",
           linked("p.vhdx")[:24] + b"\xff\xff\xff\xff" + linked("p.vhdx")[28:], **refused("locator"))
parent_row("vhdx-locator-no-guid", "a linkage that drives the terminal",
           locator(parent_linkage="\x1b]0;owned\x07", relative_path="p.vhdx"), **refused("linkage"))
parent_row("vhdx-locator-no-path", "a parent without a path",
           locator(parent_linkage=str(DATA_WRITE)), **refused("path"))
parent_row("vhdx-locator-half-a-pair", "a path that is no UTF-16",
           linked("abcd")[:-2] + b"\x00\xd8", **refused("text"))


# ---------------------------------------------------------------- logs

def log_row(name, what, make_entries, *words, log_length=MIB, **expected):
    """make_entries(image): {position in the log: bytes}"""
    @row(name, what, **(expected or refused(*words)))
    def make(folder, secret):
        image = sound(log_length=log_length)
        image.log = LOG
        for at, data in make_entries(image).items():
            image.parts[image.log_offset + at] = data
        return save(image, folder)


def entry(image, changes, sequence=1, tail=0, **more):
    more = {"flushed": image.end, "last": image.end} | more
    return log_entry(sequence, changes, tail, **more)


def change_at(offset):
    return lambda i: {0: entry(i, [(offset(i) if callable(offset) else offset, FILL * PAGE)])}


log_row("vhdx-log-empty", "a log that must be replayed and holds nothing", lambda i: {}, "no whole sequence")
log_row("vhdx-log-descriptors", "an entry of 4 billion descriptors",
        lambda i: {0: entry(i, [(i.bat_offset, FILL * PAGE)], descriptors=0xffffffff)},
        "no whole sequence")
log_row("vhdx-log-more-descriptors", "more descriptors than data",
        lambda i: {0: entry(i, [(i.bat_offset, FILL * PAGE)], descriptors=3)}, "log")
log_row("vhdx-log-entry-length", "an entry longer than the log",
        lambda i: {0: entry(i, [(i.bat_offset, FILL * PAGE)], length=0xfffff000)},
        "no whole sequence")
log_row("vhdx-log-tail-elsewhere", "a tail where no entry is",
        lambda i: {0: entry(i, [(i.bat_offset, FILL * PAGE)], tail=64 * PAGE)}, "no whole sequence")
log_row("vhdx-log-tail-behind", "a tail behind the log",
        lambda i: {0: entry(i, [(i.bat_offset, FILL * PAGE)], tail=0xfffff000)}, "no whole sequence")
log_row("vhdx-log-sequence-zero", "an entry without a number",
        lambda i: {0: entry(i, [(i.bat_offset, FILL * PAGE)], sequence=0)}, "no whole sequence")
log_row("vhdx-log-header", "a log that writes the header", change_at(64 << 10), "not metadata")
log_row("vhdx-log-signature", "a log that writes the file's signature", change_at(0), "not metadata")
log_row("vhdx-log-itself", "a log that writes itself", change_at(MIB + 8 * PAGE), "not metadata")
log_row("vhdx-log-far", "a log that writes 8 EiB away", change_at((1 << 63) - PAGE), "not metadata")
log_row("vhdx-log-wraps", "a log that writes around the end of all numbers", change_at((1 << 64) - PAGE),
        "not metadata")
log_row("vhdx-log-unaligned", "a log that writes between pages", change_at(2 * MIB + 512), "not metadata")
log_row("vhdx-log-zero-all", "a zero descriptor over everything",
        lambda i: {0: entry(i, [(MIB, (1 << 64) - MIB)])}, "not metadata")
log_row("vhdx-log-zero-odd", "a zero descriptor of 5 bytes",
        lambda i: {0: entry(i, [(i.bat_offset, 5)])}, "not metadata")
log_row("vhdx-log-last-huge", "a file of 8 EiB, says the log",
        lambda i: {0: entry(i, [(i.bat_offset, FILL * PAGE)], last=1 << 62)}, "limit")
log_row("vhdx-log-truncated", "a file that had more, says the log",
        lambda i: {0: entry(i, [(i.bat_offset, FILL * PAGE)], flushed=1 << 40, last=1 << 40)},
        "truncated")
log_row("vhdx-log-guest-data", "a log that writes guest data: not in memory",
        change_at(lambda i: 4 * MIB), **(refused("guest data") | {"info": OK}))


def nested(image):
    """Every page claims to be an entry as long as the ring, none of which is right."""
    page = bytearray(entry(image, [])[:PAGE])
    page[8:12] = struct.pack("<I", MIB)
    return {at: bytes(page) for at in range(0, image.log_length, PAGE)}


log_row("vhdx-log-overlapping", "each page of the log is an entry as long as the log", nested,
        log_length=64 * MIB, **(refused("log") | {"seconds": 60}))


def looping(image):
    """Whole entries, all of one number, each the tail of itself."""
    return {at: entry(image, [(image.bat_offset, 0)], 5, at) for at in range(0, MIB, PAGE)}


log_row("vhdx-log-looping", "a ring full of entries of one number", looping, options=VHDX, check=ANY,
        convert=ANY)
log_row("vhdx-log-unknown-descriptor", "a descriptor that nobody knows",
        lambda i: {0: bad_descriptor(i)}, "unknown kind")


def bad_descriptor(image):
    from vhdxbuild import summed
    raw = bytearray(entry(image, [(image.bat_offset, 0)]))
    raw[64:68] = b"frob"
    return summed(raw)
