"""Attacks by way of qcow2 images."""

import json
import os
import socket
import struct
import zlib

from qcow2build import (DATA, EXT_BITMAPS, EXT_DATA_FILE, EXT_FEATURES, FILL, L1, L2, REFBLOCK,
                        REFTABLE, Image)
from qcow2edit import COMPRESSED, COPIED, OFFSET
from table import ANY, DAMAGED, HARMED, MIB, OK, Refused, rows

TABLE, row = rows("qcow2")
QCOW2 = ("-f", "qcow2")


def first_cluster():
    return bytes([FILL]) * 4096 + bytes(MIB - 4096)


def refused(*words):
    """Not even info opens it."""
    no = Refused(*words)
    return {"info": no, "check": no, "convert": no, "options": QCOW2}


def field_row(name, what, fields, *words, cves=(), bits=12):
    """A row that is a sound image but for fields of the header."""
    @row(name, what, cves=cves, **refused(*words))
    def make(folder, secret):
        image = Image(bits)
        for field, value in fields.items():
            image[field] = value
        return image.save(folder)


# ---------------------------------------------------------------- the series of 2014: the header

field_row("CVE-2014-0143-l1-size", "8 * l1_size overflows 32 bits",
          {"l1_size": 0x20000001}, "L1 table", "limit")
field_row("CVE-2014-0143-l1-size-max", "the longest L1 table that the field can say",
          {"l1_size": 0xffffffff}, "L1 table", "limit")
field_row("CVE-2014-0143-snapshots", "the number of snapshots times their size overflows",
          {"snapshots": 0xffffffff, "snapshots_offset": 6 << 12}, "snapshots", "65536")
field_row("CVE-2014-0143-reftable", "refcount_table_clusters << cluster_bits overflows",
          {"refcount_table_clusters": 0xffffffff}, "refcount table", "limit")
field_row("CVE-2014-0144-reftable-offset", "a refcount table beyond 8 EiB",
          {"refcount_table_offset": (1 << 64) - 4096}, "refcount table", "8 EiB")
field_row("CVE-2014-0144-reftable-unaligned", "a refcount table between clusters",
          {"refcount_table_offset": 4096 + 512}, "refcount table", "aligned")
field_row("CVE-2014-0144-l1-offset", "an L1 table beyond 8 EiB",
          {"l1_offset": (1 << 64) - 4096}, "L1 table", "8 EiB")
for bits in (0, 8, 22, 31, 32, 63, 64, 0xffffffff):
    field_row(f"CVE-2014-0144-cluster-bits-{bits}", "a shift by more than there are bits",
              {"cluster_bits": bits}, "cluster_bits", str(bits))
for length in (0, 103, 4097, 0xffffffff):
    field_row(f"CVE-2014-0144-header-length-{length}", "extensions are looked for outside",
              {"header_length": length}, "header_length", str(length))
field_row("CVE-2014-0145-backing-length", "a backing name longer than any buffer",
          {"backing_offset": 200, "backing_size": 0xffffffff}, "backing file name", "1023")
field_row("CVE-2014-0145-backing-length-1024", "a backing name one byte too long",
          {"backing_offset": 200, "backing_size": 1024}, "backing file name", "1023")
field_row("backing-outside", "a backing name that crosses the end of the header's cluster",
          {"backing_offset": 4000, "backing_size": 200}, "backing file name", "first cluster")
field_row("backing-longer-than-cluster", "a backing name longer than a cluster, somewhere in the file",
          {"backing_offset": 1536, "backing_size": 1023}, "backing file name", "first cluster",
          bits=9)
field_row("refcount-order", "a shift by 2^32", {"refcount_order": 32}, "refcount_order", "limit")
field_row("size-max", "a virtual size beyond 8 EiB", {"size": (1 << 64) - 512}, "virtual size")
field_row("size-beyond-l1", "a virtual size that the L1 table cannot hold",
          {"size": 1 << 62}, "L1 table", "needed")
field_row("version-4", "a version of the future", {"version": 4}, "version 4")
field_row("encryption-unknown", "an unknown encryption", {"crypt_method": 0xffffffff}, "encryption")


@row("CVE-2014-0145-backing-format", "a backing format longer than any buffer",
     **refused("backing format", "15"))
def long_backing_format(folder, secret):
    return Image(backing="b.raw", backing_format="r" * 1000).save(folder)


@row("CVE-2014-0147", "refcounts of zero: the next free cluster is the header",
     check=DAMAGED, convert=OK, content=first_cluster, options=QCOW2)
def refcounts_of_zero(folder, secret):
    image = Image()
    image.put(REFBLOCK * image.cluster, bytes(image.cluster))
    return image.save(folder)


@row("CVE-2014-0147-no-table", "no refcount table at all", check=HARMED,
     info=Refused("refcount table"), convert=Refused("refcount table"), options=QCOW2)
def no_refcount_table(folder, secret):
    image = Image()
    image["refcount_table_clusters"] = 0
    return image.save(folder)


# ---------------------------------------------------------------- and its snapshots

def snapshot(l1_offset=L1 << 12, l1_size=1, id_len=1, name_len=1, extra=16, rest=b"", after=b""):
    """An entry of the snapshot table; rest: extra data, id and name."""
    return struct.pack(">QIHHIIQII", l1_offset, l1_size, id_len, name_len, 0, 0, 0, 0, extra) \
        + rest + after


def snapshot_row(name, what, entry, words, count=1, **expected):
    @row(name, what, **{**refused(*words), "check": HARMED, **expected})
    def make(folder, secret):
        image = Image()
        image["snapshots_offset"] = image.append(entry)
        image["snapshots"] = count
        return image.save(folder)


snapshot_row("CVE-2014-0144-snapshot-l1", "8 * l1_size of a snapshot overflows 32 bits",
             snapshot(l1_size=0x20000001, rest=bytes(18)), ["snapshot", "entries", "limit"])
snapshot_row("CVE-2014-0145-snapshot-extra", "a snapshot with 4 GiB of extra data",
             snapshot(extra=0xffffffff), ["snapshot", "extra data", "limit"])
snapshot_row("CVE-2014-0145-snapshot-extra-1025", "extra data one byte beyond the limit",
             snapshot(extra=1025, rest=bytes(1100)), ["snapshot", "extra data", "limit"])
snapshot_row("snapshot-l1-unaligned", "the L1 table of a snapshot between clusters",
             snapshot(l1_offset=(L1 << 12) + 8, rest=bytes(18)), ["snapshot", "aligned"])
snapshot_row("snapshot-name-of-no-characters", "a snapshot whose name is no text",
             snapshot(id_len=2, name_len=4, rest=bytes(16) + b"\xff\xfe\xff\0\x1b["), [], info=OK,
             convert=OK, content=first_cluster)


@row("CVE-2014-0146", "a snapshot table beyond the end of the file: it cannot be loaded, so clean up",
     info=None, convert=None, options=QCOW2)
def snapshots_beyond_the_end(folder, secret):
    image = Image()
    image["snapshots"], image["snapshots_offset"] = 3, 1 << 50
    return image.save(folder)


@row("snapshots-65536", "as many snapshots as may be, in a table that is hardly there",
     info=None, convert=None, options=QCOW2)
def most_snapshots(folder, secret):
    image = Image()
    image["snapshots_offset"] = image.append(snapshot(rest=bytes(18)))
    image["snapshots"] = 65536
    return image.save(folder)


@row("snapshots-65536-long", "as many snapshots as may be, with long names",
     info=None, convert=None, options=QCOW2, written=256 * MIB)
def long_snapshots(folder, secret):
    image = Image()
    entry = snapshot(extra=1024, id_len=65535, name_len=65535, rest=bytes(1024))
    image["snapshots"], image["snapshots_offset"] = 65536, 1 << 20
    for number in range(65536 // 64):
        image.put((1 << 20) + number * 132144 // 8 * 8, entry) if number < 8 else None
    return image.save(folder, length=8 << 30)


# ---------------------------------------------------------------- extensions of the header

def extension_row(name, what, extensions, **expected):
    @row(name, what, options=QCOW2, **expected)
    def make(folder, secret):
        return Image(extensions=extensions).save(folder)


extension_row("extensions-empty", "hundreds of extensions without content, and no end",
              [(0x12345678, b"")] * 498, convert=OK, content=first_cluster)
extension_row("features-odd-length", "a feature name table that is no whole number of names",
              [(EXT_FEATURES, b"\0\x05" + b"x" * 45)], convert=OK, content=first_cluster)
extension_row("bitmaps-short", "a bitmap extension without content", [(EXT_BITMAPS, b"")],
              convert=OK, content=first_cluster)


@row("extension-past-the-cluster", "an extension that says it is 4 GiB long",
     **{**refused("extension"), "check": None})
def long_extension(folder, secret):
    image = Image()
    image.put(112, struct.pack(">II", 0x12345678, 0xffffffff))
    return image.save(folder)


@row("extension-over-backing-name", "an extension that holds the backing name",
     info=None, convert=None, options=QCOW2)
def overlapping_extension(folder, secret):
    image = Image(backing="b.raw", extensions=[(0x12345678, b"x" * 64)])
    image["backing_offset"] = 124
    return image.save(folder)


@row("backing-name-is-the-header", "the header's own fields as a backing name: it begins with NUL",
     options=QCOW2, convert=OK, content=first_cluster)
def header_as_name(folder, secret):
    image = Image()
    image["backing_offset"], image["backing_size"] = 4, 20
    return image.save(folder)


@row("features-escape", "an unknown feature whose name drives the terminal",
     **refused("frob"))
def feature_with_escapes(folder, secret):
    name = b"\x1b]0;owned\x07\x1b[2Jfrob"
    image = Image(extensions=[(EXT_FEATURES, b"\0\x11" + name.ljust(46, b"\0"))])
    image["incompatible"] = 1 << 17
    return image.save(folder)


@row("features-crowd", "a thousand names for one unknown feature", **refused("feature17"))
def many_features(folder, secret):
    entry = b"\0\x11" + b"feature17".ljust(46, b"\0")
    image = Image(16, extensions=[(EXT_FEATURES, entry * 1000)])
    image["incompatible"] = 0xffffffffffff0000
    return image.save(folder)


# ---------------------------------------------------------------- what the image refers to

def secret_overlay(folder, name, backing_format="raw"):
    """An overlay of something, with nothing of its own."""
    image = Image(backing=name, backing_format=backing_format, data=False)
    return image.save(folder)


@row("CVE-2015-5163", "a backing file of the host, where nothing is to be followed",
     convert=Refused("--follow"), options=QCOW2 + ("--follow=none",))
def backing_of_the_host(folder, secret):
    return secret_overlay(folder, secret)


def reference_row(name, what, backing, *words, make_it=None, **expected):
    """backing: the name, or a function of the secret's path."""
    expected.setdefault("convert", Refused(*words))

    @row(name, what, options=QCOW2, **expected)
    def make(folder, secret):
        if make_it:
            make_it(folder, secret)
        return secret_overlay(folder, backing(secret) if callable(backing) else backing)


def in_json(**description):
    return lambda secret: "json:" + json.dumps(description).replace("SECRET", str(secret))


reference_row("CVE-2024-4467", "json: as a backing name opens what it likes",
              in_json(driver="file", filename="SECRET"), "--follow=any", cves=("CVE-2024-4467",))
reference_row("CVE-2024-4467-raw", "json: with a format around the file",
              in_json(driver="raw", file={"driver": "file", "filename": "SECRET"}),
              "--follow=any")
reference_row("CVE-2024-4467-data-file", "json: with a data file of the host",
              in_json(driver="qcow2", file={"driver": "file", "filename": "a.qcow2"},
                      **{"data-file": {"driver": "file", "filename": "SECRET"}}), "--follow=any")
reference_row("CVE-2024-4467-inline", "json: that names a json: again",
              lambda secret: 'json:{"file.filename":"json:{\\"driver\\":\\"file\\"}"}',
              "--follow=any")
for scheme in ("file:", "nbd://127.0.0.1:1/x", "nbd+unix:///x?socket=/nowhere", "http://127.0.0.1:1/x",
               "ssh://127.0.0.1/x", "fat:rw:/", "host_device:/dev/zero", "fd:0", "vvfat:x"):
    reference_row(f"protocol-{scheme.split(':')[0]}", "a backing name with a protocol",
                  lambda secret, s=scheme: s + str(secret) if s == "file:" else s, "--follow=any")


def fifo(folder, secret):
    os.mkfifo(folder / "fifo")


def unix_socket(folder, secret):
    here = os.getcwd()
    os.chdir(folder)
    listener = socket.socket(socket.AF_UNIX)
    listener.bind("socket")
    listener.close()
    os.chdir(here)


def link_to_fifo(folder, secret):
    fifo(folder, secret)
    os.symlink("fifo", folder / "link")


reference_row("backing-stdin", "standard input as a backing file", "/dev/stdin", "--follow=any")
reference_row("backing-stdin-proc", "standard input by its number", "/proc/self/fd/0", "--follow=any")
reference_row("backing-zero", "a character device as a backing file", "/dev/zero", "--follow=any")
reference_row("backing-fifo", "a pipe as a backing file: nobody ever writes", "fifo",
              "--follow=any", make_it=fifo)
reference_row("backing-fifo-link", "the same by way of a link", "link", "--follow=any",
              make_it=link_to_fifo)
reference_row("backing-socket", "a socket as a backing file", "socket", "--follow=any",
              make_it=unix_socket)
reference_row("backing-directory", "a folder as a backing file", ".", "--follow=any")
reference_row("backing-root", "the root as a backing file", "/", "--follow=any")
reference_row("backing-environ", "the program's own environment", "/proc/self/environ", convert=None)
reference_row("backing-escape", "a name that drives the terminal",
              "\x1b]0;owned\x07\x1b[2Jnowhere.raw", "nowhere.raw")
reference_row("backing-nul", "a name with a NUL inside", "no\0where", "no")


@row("probed-twice", "a backing file said to be raw whose guest made it look like qcow2",
     convert=OK, options=QCOW2, content=lambda: disguised().ljust(MIB, b"\0"))
def stated_format_is_believed(folder, secret):
    (folder / "b.raw").write_bytes(disguised())
    return secret_overlay(folder, "b.raw")


def disguised():
    return bytes(Image(backing="/etc/passwd", backing_format="raw").bytes[:4096])


def data_file_row(name, what, data_file, raw):
    @row(name, what, info=None, check=None, convert=Refused("data file"), options=QCOW2)
    def make(folder, secret):
        target = data_file(secret) if callable(data_file) else data_file
        image = Image(extensions=[(EXT_DATA_FILE, str(target).encode())], data=False)
        image["incompatible"] = 4
        image["autoclear"] = 2 if raw else 0
        image.map(0, COPIED)
        return image.save(folder)


data_file_row("CVE-2024-32498", "a data file of the host", lambda secret: secret, False)
data_file_row("CVE-2024-32498-raw", "the same, said to be raw", lambda secret: secret, True)
data_file_row("CVE-2024-4467-json-data-file", "json: as the name of a data file",
              in_json(driver="file", filename="SECRET"), False)
for place, where in (("parent", "../outside/secret"), ("device", "/dev/null"), ("stdin", "/dev/stdin"),
                     ("environ", "/proc/self/environ"), ("protocol", "nbd://127.0.0.1:1/x"),
                     ("folder", "."), ("nul", "no\0where"), ("empty", "")):
    data_file_row(f"data-file-{place}", "a data file that is none", where, False)


@row("data-file-link", "a link in the image's folder that leads out of it", info=None, check=None,
     convert=Refused("data file", "--follow=any"), options=QCOW2)
def data_file_link(folder, secret):
    os.symlink(secret, folder / "link")
    image = Image(extensions=[(EXT_DATA_FILE, b"link")], data=False)
    image["incompatible"] = 4
    image.map(0, COPIED)
    return image.save(folder)


@row("data-file-raw-without", "a raw data file, and no data file", convert=OK, check=OK,
     content=first_cluster, options=QCOW2)
def raw_without_data_file(folder, secret):
    image = Image()
    image["autoclear"] = 2
    return image.save(folder)


def external_row(name, what, *entries, **expected):
    """An image with a data file of a cluster of 0x33, and these L2 entries."""
    @row(name, what, options=QCOW2, **expected)
    def make(folder, secret):
        (folder / "d.raw").write_bytes(b"\x33" * 4096)
        image = Image(extensions=[(EXT_DATA_FILE, b"d.raw")], data=False)
        image["incompatible"] = 4
        for index, entry in enumerate(entries):
            image.map(index, entry)
        return image.save(folder)


external_row("data-file-elsewhere", "guest data at another guest's place", 0x1000 | COPIED,
             check=DAMAGED, convert=Refused("data file"))
external_row("data-file-far", "guest data at 2^54 in the data file", 0, 1 << 54 | COPIED,
             check=DAMAGED, convert=Refused("data file"))
external_row("data-file-compressed", "compressed data in a data file", COMPRESSED | 0x1000,
             check=DAMAGED, convert=Refused("compressed"))
external_row("data-file-short", "a data file shorter than what is mapped", COPIED, 0x1000 | COPIED,
             convert=Refused("data file", "truncated"))


# ---------------------------------------------------------------- extended L2 entries

def extended_row(name, what, entry, bitmap, bits=14, **expected):
    @row(name, what, options=QCOW2, **expected)
    def make(folder, secret):
        image = Image(bits, data=False)
        image["incompatible"] = 16
        at = image.append(bytes([FILL]) * image.cluster)
        image.put64(L2 * image.cluster, entry(at) if callable(entry) else entry)
        image.put64(L2 * image.cluster + 8, bitmap)
        return image.save(folder)


extended_row("extended-both-bits", "subclusters with data that read as zeroes", lambda at: at | COPIED,
             1 << 32 | 1, check=DAMAGED, convert=Refused("bitmap"))
extended_row("extended-no-storage", "subclusters with data and no storage", 0, 0xffffffff,
             check=DAMAGED, convert=Refused("bitmap"))
extended_row("extended-compressed", "a compressed cluster with a bitmap",
             lambda at: COMPRESSED | at, (1 << 64) - 1, check=DAMAGED, map=OK, convert=Refused())
extended_row("extended-beyond", "subclusters beyond the end of the file", 1 << 40 | COPIED, 2,
             check=DAMAGED, map=Refused("beyond"), convert=Refused("beyond"))
extended_row("extended-unaligned", "subclusters of a cluster between clusters",
             lambda at: at + 512 | COPIED, 2, check=DAMAGED, convert=Refused("aligned"))


@row("extended-small-clusters", "a shift by a negative number of bits", **refused("16 KiB"))
def extended_small(folder, secret):
    image = Image(9)
    image["incompatible"] = 16
    return image.save(folder)


data_file_row("data-file-itself", "the image as its own data file", "a.qcow2", False)


# ---------------------------------------------------------------- chains

def chain(folder, length, backing="0.raw"):
    (folder / "0.raw").write_bytes(b"\x77" * 4096)
    for number in range(length):
        below = f"{number - 1}.qcow2" if number else backing
        Image(9, size=4096, backing=below, backing_format="qcow2" if number else "raw",
              data=False).save(folder, f"{number}.qcow2")
    return f"{length - 1}.qcow2"


@row("chain-1000", "a thousand backing files", convert=OK, content=lambda: b"\x77" * 4096,
     options=QCOW2, seconds=60, memory=2048 * MIB)
def long_chain(folder, secret):
    return chain(folder, 1000)


@row("chain-1200", "more backing files than we follow", convert=Refused("chain"),
     options=QCOW2, seconds=60, memory=2048 * MIB)
def too_long_chain(folder, secret):
    return chain(folder, 1200)


@row("chain-itself", "an image that is its own backing file", convert=Refused("loop"), options=QCOW2)
def own_backing(folder, secret):
    return Image(backing="a.qcow2", backing_format="qcow2").save(folder)


@row("chain-loop", "a loop through a link and a hard link", convert=Refused("loop"), options=QCOW2)
def loop(folder, secret):
    Image(backing="link.qcow2", backing_format="qcow2").save(folder)
    Image(backing="hard.qcow2", backing_format="qcow2").save(folder, "b.qcow2")
    os.symlink("b.qcow2", folder / "link.qcow2")
    os.link(folder / "a.qcow2", folder / "hard.qcow2")
    return "a.qcow2"


# ---------------------------------------------------------------- compression

def deflate(data):
    packer = zlib.compressobj(9, zlib.DEFLATED, -12)
    return packer.compress(data) + packer.flush()


@row("bomb", "one compressed cluster of a few KiB, mapped over and over: 64 MiB from 2 KiB",
     convert=OK, content=lambda: bytes([7]) * (64 * MIB), check=HARMED, options=QCOW2)
def bomb(folder, secret):
    image = Image(21, size=64 * MIB, data=False)
    packed = deflate(bytes([7]) * image.cluster)
    entry = image.compressed(image.append(packed), len(packed))
    for index in range(32):
        image.map(index, entry)
    return image.save(folder)


@row("bomb-stream", "a stream that goes on for 256 MiB behind the cluster's end", convert=OK,
     content=lambda: bytes([7]) * 65536, options=QCOW2)
def long_stream(folder, secret):
    image = Image(16, size=65536, data=False)
    packed = deflate(bytes([7]) * (16 * MIB))[:32768]
    image.map(0, image.compressed(image.append(packed), len(packed)))
    return image.save(folder)


def zstd_row(name, what, frame):
    @row(name, what, convert=Refused(), map=OK, options=QCOW2)
    def make(folder, secret):
        image = Image(16, size=65536, data=False)
        image["incompatible"], image["compression_type"] = 8, 1
        image.map(0, image.compressed(image.append(frame), len(frame)))
        return image.save(folder)


ZSTD = b"\x28\xb5\x2f\xfd"
zstd_row("zstd-window", "a frame that wants a window of 3.75 TiB",
         ZSTD + b"\x00\xff" + b"\x01\x00\x00")
zstd_row("zstd-content-size", "a frame that says it holds 8 EiB",
         ZSTD + b"\xe0" + struct.pack("<Q", 1 << 63) + b"\x02\x00\x04x")
zstd_row("zstd-empty-frames", "frames of nothing until the sectors end",
         (ZSTD + b"\x20\x00" + b"\x01\x00\x00") * 3000)
zstd_row("zstd-skippable", "a frame to be skipped that is 4 GiB long",
         b"\x50\x2a\x4d\x18\xff\xff\xff\xff" + bytes(64))


@row("compressed-everything", "compressed clusters that lie on all metadata, and beyond the file",
     convert=Refused(), map=ANY, check=HARMED, options=QCOW2)
def compressed_everywhere(folder, secret):
    image = Image()
    image["compression_type"] = 0
    for index in range(1, 200):
        image.map(index, image.compressed(512 * index, 8192))
    image.map(200, COMPRESSED | ((1 << 58) - 1) | 0xf << 58)
    return image.save(folder)


# ---------------------------------------------------------------- tables

@row("l2-itself", "an L2 table that maps itself as data", check=DAMAGED, convert=None, options=QCOW2)
def l2_maps_itself(folder, secret):
    image = Image()
    for index in range(256):
        image.map(index, L2 << 12 | COPIED)
    return image.save(folder)


@row("l1-names-itself", "an L1 table that is its own L2 table", check=DAMAGED, convert=None,
     options=QCOW2)
def l1_is_l2(folder, secret):
    image = Image()
    image.put64(L1 << 12, L1 << 12 | COPIED)
    return image.save(folder)


@row("l1-in-header", "the header as L1 table", check=HARMED, convert=None, info=None, options=QCOW2)
def l1_in_header(folder, secret):
    image = Image()
    image["l1_offset"] = 0
    return image.save(folder)


@row("l2-shared", "one L2 table for all of an L1 table", check=DAMAGED, convert=OK,
     content=lambda: (bytes([FILL]) * 4096 + bytes(2 * MIB - 4096)) * 8, options=QCOW2)
def shared_l2(folder, secret):
    image = Image(size=16 * MIB)
    for index in range(8):
        image.put64((L1 << 12) + 8 * index, L2 << 12 | COPIED)
    return image.save(folder)


@row("cross-linked", "every guest cluster on the same host cluster", check=DAMAGED, convert=OK,
     content=lambda: bytes([FILL]) * MIB, options=QCOW2)
def cross_linked(folder, secret):
    image = Image()
    for index in range(256):
        image.map(index, DATA << 12 | COPIED)
    return image.save(folder)


@row("data-on-metadata", "guest data on header, tables and refcounts", check=DAMAGED, convert=None,
     options=QCOW2)
def data_on_metadata(folder, secret):
    image = Image()
    for index in range(DATA):
        image.map(index, index << 12 | COPIED)
    return image.save(folder)


@row("data-beyond-everything", "guest data at the last offset there is", check=HARMED,
     convert=Refused(), map=ANY, options=QCOW2)
def data_far_away(folder, secret):
    image = Image()
    image.map(0, OFFSET & ~0xfff | COPIED)
    return image.save(folder)


@row("reserved-bits", "reserved bits in every entry", check=HARMED, convert=None, options=QCOW2)
def reserved_bits(folder, secret):
    image = Image()
    for index in range(256):
        image.map(index, 1 << (1 + index % 61))
    return image.save(folder)


@row("refcount-overflow", "refcounts at their limit for every cluster", check=HARMED, convert=OK,
     content=first_cluster, options=QCOW2)
def refcount_overflow(folder, secret):
    image = Image()
    image.put(REFBLOCK << 12, b"\xff" * 4096)
    return image.save(folder)


@row("reftable-itself", "a refcount table whose blocks are itself", check=HARMED, convert=None,
     info=None, options=QCOW2)
def refcount_table_of_itself(folder, secret):
    image = Image()
    for index in range(512):
        image.put64((REFTABLE << 12) + 8 * index, REFTABLE << 12)
    return image.save(folder)


@row("reftable-8MiB", "the largest refcount table, every entry one block", check=HARMED, convert=OK,
     content=lambda: bytes([FILL]) * 65536 + bytes(MIB - 65536), options=QCOW2, seconds=60)
def largest_refcount_table(folder, secret):
    image = Image(16)
    image["refcount_table_offset"] = image.append(struct.pack(">Q", REFBLOCK << 16) * MIB)
    image["refcount_table_clusters"] = 128
    return image.save(folder)


@row("huge-disk", "2 EiB of nothing in a file of 32 MiB that is all holes", options=QCOW2,
     convert=None, map=OK)
def huge_disk(folder, secret):
    image = Image(21, size=1 << 61, data=False)
    image["l1_size"] = 1 << 22
    image.bytes[L1 << 21:] = b""
    image["l1_offset"] = L1 << 21
    return image.save(folder, length=(L1 << 21) + (32 << 20))


@row("huge-disk-full", "2 EiB, and all of them on the same two MiB", options=QCOW2, convert=None,
     map=None, check=HARMED, seconds=60)
def huge_full_disk(folder, secret):
    image = Image(21, size=1 << 61)
    image["l1_size"] = 1 << 22
    image["l1_offset"] = 6 << 21
    image.put(L2 << 21, struct.pack(">Q", DATA << 21 | COPIED) * (1 << 18))
    image.put(6 << 21, struct.pack(">Q", L2 << 21 | COPIED) * (1 << 12))
    return image.save(folder, length=(6 << 21) + (32 << 20))


@row("truncated", "the file ends where the tables begin", options=QCOW2, info=None, check=HARMED,
     convert=None)
def truncated(folder, secret):
    return Image().save(folder, length=4096)
