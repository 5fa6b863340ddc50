"""Attacks by way of VMDKs."""

import os
import struct
import zlib

from table import ANY, DAMAGED, HARMED, LEAKS, MIB, OK, Refused, rows
from vmdkbuild import (AT_END, COMPRESSED, MARKERS, NL_TEST, REDUNDANT, Sparse, cowd, descriptor,
                       header, sesparse)

TABLE, add_row = rows("vmdk")
VMDK = ("-f", "vmdk")


def row(name, what, **expected):
    """Other formats have rows of the same short name."""
    return add_row(name if name.startswith("CVE") else f"vmdk-{name}", what, **expected)


def refused(*words):
    """Not even info opens it."""
    no = Refused(*words)
    return {"info": no, "check": no, "convert": no, "options": VMDK}


def text_row(name, what, text, *words, cves=()):
    """A row that is a descriptor; {secret} stands for the path of the secret."""
    @row(name, what, cves=cves, **refused(*words))
    def make(folder, secret):
        out = text.replace(b"{secret}", os.fsencode(secret))
        (folder / "a.vmdk").write_bytes(out)
        return "a.vmdk"


def field_row(name, what, fields, *words, cves=()):
    """A row that is a sound sparse extent but for fields of the header."""
    @row(name, what, cves=cves, **refused(*words))
    def make(folder, secret):
        image = Sparse(**fields)
        image.grain(0, b"x" * 65536)
        return image.save(folder / "a.vmdk")


# ---------------------------------------------------------------- what an image may reach

for kind, tail in (("FLAT", " 0"), ("VMFS", ""), ("SPARSE", ""), ("VMFSSPARSE", ""), ("SESPARSE", "")):
    text_row(f"CVE-2022-47951-{kind.lower()}", "an extent that is a file of the host",
             descriptor("monolithicFlat", f'RW 1 {kind} "{{secret}}"{tail}'), "--follow=any",
             cves=("CVE-2022-47951",))
text_row("CVE-2022-47951-up", "an extent above the image's folder",
         descriptor("monolithicFlat", 'RW 1 FLAT "../outside/secret" 0'), "beneath")
text_row("extent-down-and-up", "an extent by way of a folder",
         descriptor("monolithicFlat", 'RW 1 FLAT "x/../../outside/secret" 0'), "beneath")
text_row("extent-nbd", "an extent that is a server",
         descriptor("monolithicFlat", 'RW 1 FLAT "nbd://127.0.0.1:1/" 0'), "--follow=any")
text_row("extent-json", "an extent that is a description",
         descriptor("monolithicFlat", 'RW 1 FLAT "json:{}" 0'), "--follow=any")
text_row("extent-itself", "the descriptor is its own extent",
         descriptor("monolithicFlat", 'RW 1 FLAT "a.vmdk" 0'), "own extent")
text_row("extent-missing", "an extent that is not there",
         descriptor("monolithicFlat", 'RW 1 FLAT "no" 0'), "no")
text_row("extent-control", "an extent whose name drives the terminal",
         descriptor("monolithicFlat", 'RW 1 FLAT "\x1b[2J\x07" 0'), "extent")
for device in ("fullDevice", "partitionedDevice", "vmfsRawDeviceMap", "vmfsPassthroughRawDeviceMap"):
    text_row(f"device-{device}", "a map of a device",
             descriptor(device, 'RW 63 FLAT "/dev/zero" 0'), "device", device)


@row("extent-link", "an extent that is a link out of the folder", **refused("--follow=any"))
def extent_link(folder, secret):
    (folder / "link").symlink_to(secret)
    (folder / "a.vmdk").write_bytes(descriptor("monolithicFlat", 'RW 1 FLAT "link" 0'))
    return "a.vmdk"


@row("extent-fifo", "an extent that never ends to be opened", **refused("--follow=any"))
def extent_fifo(folder, secret):
    os.mkfifo(folder / "pipe")
    (folder / "a.vmdk").write_bytes(descriptor("monolithicFlat", 'RW 1 FLAT "pipe" 0'))
    return "a.vmdk"


@row("parent-of-host", "a parent that is a file of the host", options=VMDK, check=OK,
     convert=Refused("VMDK"))
def parent_of_host(folder, secret):
    image = Sparse()
    image.put(512, descriptor("monolithicSparse", 'RW 2048 SPARSE "a.vmdk"', parent="12345678",
                              more=f'parentFileNameHint="{secret}"'))
    return image.save(folder / "a.vmdk")


@row("parent-loop", "an image that is its own parent", options=VMDK, check=OK,
     convert=Refused("loop"))
def parent_loop(folder, secret):
    image = Sparse()
    image.put(512, descriptor("monolithicSparse", 'RW 2048 SPARSE "a.vmdk"', parent="12345678",
                              more='parentFileNameHint="a.vmdk"'))
    return image.save(folder / "a.vmdk")


@row("parent-changed", "a parent that is not what it was", options=VMDK, check=OK,
     convert=Refused("changed", "parentCID"))
def parent_changed(folder, secret):
    Sparse().save(folder / "p.vmdk")
    image = Sparse()
    image.put(512, descriptor("monolithicSparse", 'RW 2048 SPARSE "a.vmdk"', parent="00000001",
                              more='parentFileNameHint="p.vmdk"'))
    return image.save(folder / "a.vmdk")


# ---------------------------------------------------------------- descriptors

text_row("extents-none", "no extents", descriptor("monolithicFlat"), "no extents")
text_row("extents-many", "more extents than files can be open",
         descriptor("custom", *['RW 1 ZERO'] * 5000), "4096")
text_row("extents-size", "extents beyond 8 EiB",
         descriptor("custom", *["RW 18014398509481983 ZERO"] * 3), "8 EiB")
text_row("extent-size-overflow", "a number above 64 bits",
         descriptor("custom", "RW 99999999999999999999999 ZERO"), "makes no sense")
text_row("extent-negative", "a number below zero", descriptor("custom", "RW -1 ZERO"),
         "makes no sense")
text_row("extent-type", "a type nobody knows", descriptor("custom", 'RW 1 ODD "x"'), "ODD")
text_row("extent-quote", "a name that does not end", descriptor("custom", 'RW 1 FLAT "x'),
         "makes no sense")
text_row("cid-long", "a CID longer than its field",
         descriptor("custom", "RW 1 ZERO", cid="1" * 4000), "eight hex digits")
text_row("version-9", "a version of the future",
         b"# Disk DescriptorFile\nversion=9\nRW 1 ZERO\n", "version")


@row("descriptor-huge", "a descriptor of 2 MiB", **refused("1 MiB"))
def descriptor_huge(folder, secret):
    (folder / "a.vmdk").write_bytes(b"# Disk DescriptorFile\nversion=1\n" + b"#" * 2 * MIB)
    return "a.vmdk"


@row("descriptor-lines", "a descriptor of nothing but lines", options=VMDK, info=Refused("extents"))
def descriptor_lines(folder, secret):
    (folder / "a.vmdk").write_bytes(b"# Disk DescriptorFile\nversion=1\n" + b"a=\n" * 300000)
    return "a.vmdk"


# ---------------------------------------------------------------- the series of 2014: the header

for grain in (0, 3, 1 << 22, 1 << 63):
    field_row(f"CVE-2014-grain-{grain:x}", "a grain of no size, or any", {"grain": grain}, "grainSize")
for entries in (0, 3, 1024, 0xffffffff):
    field_row(f"CVE-2014-gtes-{entries:x}", "grain tables larger than any buffer",
              {"gt_entries": entries}, "numGTEsPerGT")
field_row("CVE-2014-capacity", "a capacity beyond 8 EiB", {"capacity": 1 << 60}, "capacity")
field_row("CVE-2014-directory", "a directory of 2^45 entries",
          {"capacity": (1 << 54) - 1, "grain": 1, "gt_entries": 512}, "grain tables")
field_row("CVE-2014-directory-short", "a directory longer than the file",
          {"capacity": 1 << 37}, "grain directory", "truncated")
field_row("gd-outside", "a directory beyond the file", {"gd": 1 << 40}, "grain directory")
field_row("gd-overflow", "a directory beyond 8 EiB", {"gd": (1 << 63) + 1}, "grain directory")
field_row("descriptor-outside", "a descriptor beyond the file", {"desc_offset": 1 << 40},
          "descriptor")
field_row("descriptor-overflow", "a descriptor of 2^73 bytes", {"desc_size": (1 << 64) - 1},
          "descriptorSize")
field_row("version-4", "a version of the future", {"version": 4}, "version")
field_row("compression-unknown", "a compression nobody knows",
          {"flags": NL_TEST | COMPRESSED | MARKERS, "algorithm": 7}, "compressAlgorithm")
field_row("compressed-grain-huge", "a grain of 1 GiB to be decoded in memory",
          {"flags": NL_TEST | COMPRESSED | MARKERS, "algorithm": 1, "grain": 1 << 21}, "grainSize")
field_row("capacity-0", "nothing at all", {"capacity": 0, "desc_offset": 0, "desc_size": 0},
          "capacity")
field_row("at-end-plain", "a directory at the end of what has no markers", {"gd": AT_END}, "markers")


@row("newlines", "transferred as text", **refused("line ends"))
def newlines(folder, secret):
    image = Sparse()
    name = image.save(folder / "a.vmdk")
    with open(folder / name, "r+b") as file:
        file.seek(73)
        file.write(b"\n \n\n")
    return name


@row("capacity-0-nested", "extents that are descriptors themselves", **refused("capacity"))
def nested(folder, secret):
    image = Sparse(capacity=0)
    image.put(512, descriptor("custom", 'RW 1 SPARSE "b.vmdk"'))
    image.save(folder / "b.vmdk")
    return image.save(folder / "a.vmdk")


# ---------------------------------------------------------------- tables

@row("gd-entry-outside", "a table beyond the file", options=VMDK, info=Refused("table"),
     convert=Refused("table"), check=DAMAGED)
def gd_entry(folder, secret):
    image = Sparse()
    image.entry(Sparse.GD, 0, 0xffffffff)
    return image.save(folder / "a.vmdk")


@row("grain-outside", "a grain beyond the file", options=VMDK, check=DAMAGED,
     convert=Refused("error"), map=Refused())
def grain_outside(folder, secret):
    image = Sparse()
    image.map(0, 0xfffffff0)
    return image.save(folder / "a.vmdk")


@row("grain-header", "a grain that is the header", options=VMDK, check=DAMAGED, convert=ANY)
def grain_header(folder, secret):
    image = Sparse()
    image.map(0, 1)
    return image.save(folder / "a.vmdk")


@row("grain-twice", "all grains in one place", options=VMDK, check=DAMAGED, convert=OK,
     content=lambda: b"x" * 65536 * 16)
def grain_twice(folder, secret):
    image = Sparse()
    sector = image.grain(0, b"x" * 65536)
    for number in range(16):
        image.map(number, sector)
    return image.save(folder / "a.vmdk")


@row("tables-all-one", "64 TiB, and all of it by one table", options=VMDK, check=HARMED, convert=None,
     map=None, seconds=60)
def tables_all_one(folder, secret):
    tables = 1 << 21
    image = Sparse(16, capacity=tables * 65536, gd=1024)
    image.put(Sparse.GT * 512, struct.pack("<I", 128) * 512)
    image.put(1024 * 512, struct.pack("<I", Sparse.GT) * tables)
    return image.save(folder / "a.vmdk")


@row("huge-hole", "64 TiB of nothing", options=VMDK, check=LEAKS, convert=None, map=OK)
def huge_hole(folder, secret):
    tables = 1 << 21
    image = Sparse(16, capacity=tables * 65536, gd=1024)
    return image.save(folder / "a.vmdk", length=16 * MIB)


@row("redundant-outside", "a second directory that leads nowhere", options=VMDK, check=DAMAGED,
     convert=OK)
def redundant(folder, secret):
    image = Sparse(flags=NL_TEST | REDUNDANT, rgd=1 << 50)
    image.grain(0, b"x" * 65536)
    return image.save(folder / "a.vmdk")


# ---------------------------------------------------------------- compressed grains

def stream(**fields):
    return Sparse(flags=NL_TEST | COMPRESSED | MARKERS, algorithm=1, version=3, **fields)


def marker_row(name, what, size, cves=()):
    @row(name, what, options=VMDK, check=ANY, convert=Refused("error"), map=OK, cves=cves)
    def make(folder, secret):
        image = stream()
        image.compressed(0, b"x" * 65536, size=size)
        image.put(len(image.bytes), bytes(200000))
        return image.save(folder / "a.vmdk")


marker_row("CVE-2026-2243", "a marker of two grains less its own length", 2 * 65536 - 12,
           cves=("CVE-2026-2243",))
marker_row("marker-max", "a marker of 4 GiB", 0xffffffff)
marker_row("marker-wrap", "a marker whose length wraps with its own", 0xfffffff4)
marker_row("marker-short", "a marker of one byte", 1)


@row("marker-other", "the marker of another grain", options=VMDK, check=DAMAGED, map=OK,
     convert=Refused("error"))
def marker_other(folder, secret):
    image = stream()
    image.compressed(0, b"x" * 65536, lba=128)
    return image.save(folder / "a.vmdk")


@row("bomb", "a grain that holds a gigabyte", options=VMDK, convert=Refused("error"), map=OK,
     check=ANY)
def bomb(folder, secret):
    packer, out = zlib.compressobj(9), b""
    for _ in range(40):
        out += packer.compress(bytes(MIB))
    out += packer.flush()
    image = stream()
    image.compressed(0, b"", packed=out[:65000])
    return image.save(folder / "a.vmdk")


@row("footer-none", "a stream without an end, in a file that is all holes", options=VMDK,
     convert=OK, map=OK, check=ANY)
def footer_none(folder, secret):
    return stream(gd=AT_END).save(folder / "a.vmdk", length=1 << 42)


@row("footer-outside", "a footer that leads out of the file", **refused("directory"))
def footer_outside(folder, secret):
    image = stream(gd=AT_END)
    marker = bytearray(512)
    struct.pack_into("<QII", marker, 0, 1, 0, 3)
    image.put(len(image.bytes), marker + header(**image.fields | {"gd": 1 << 40}) + bytes(512))
    return image.save(folder / "a.vmdk")


@row("footer-itself", "a footer that says: see the footer", options=VMDK, convert=OK, check=ANY)
def footer_itself(folder, secret):
    image = stream(gd=AT_END)
    marker = bytearray(512)
    struct.pack_into("<QII", marker, 0, 1, 0, 3)
    image.put(len(image.bytes), marker + header(**image.fields) + bytes(512))
    return image.save(folder / "a.vmdk")


# ---------------------------------------------------------------- the kinds of ESX

def patched_row(name, what, image, at, value, *words):
    @row(name, what, **refused(*words))
    def make(folder, secret):
        out = bytearray(image)
        out[at:at + len(value)] = value
        (folder / "x.vmdk").write_bytes(out)
        kind = "VMFSSPARSE" if image[:4] == b"COWD" else "SESPARSE"
        (folder / "a.vmdk").write_bytes(descriptor("vmfsSparse", f'RW 128 {kind} "x.vmdk"'))
        return "a.vmdk"


COW, SE = cowd(16, {0: b"x"}), sesparse(16, {0: b"x"})
patched_row("cowd-grain-0", "a grain of nothing", COW, 16, bytes(4), "granularity")
patched_row("cowd-directory", "a directory that is too short", COW, 24, bytes(4), "directory")
patched_row("cowd-directory-outside", "a directory beyond the file", COW, 20, b"\xff" * 4, "directory")
patched_row("cowd-capacity", "2 TiB in a file of kilobytes", COW, 12, b"\xff" * 4, "directory")
patched_row("se-grain", "a grain of another size", SE, 24, b"\xff" * 8, "grain")
patched_row("se-capacity", "8 EiB", SE, 16, struct.pack("<Q", (1 << 54) - 1), "grain")
patched_row("se-directory", "a directory beyond the file", SE, 128, b"\xff" * 8, "directory")
patched_row("se-tables", "tables beyond 8 EiB", SE, 144, b"\xff" * 8, "places")
patched_row("se-journal", "a journal that was not replayed", SE, 512 + 24, b"\x01", "journal")
