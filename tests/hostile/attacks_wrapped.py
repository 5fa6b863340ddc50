"""Attacks by way of files that are compressed as a whole: bombs, lies about sizes, and what lies inside."""

import gzip
import lzma
import struct
import zlib

from qcow2build import Image
from table import OK, Refused, rows

TABLE, row = rows("wrapped")
SIZE = 1 << 16
DISK = bytes(range(256)) * (SIZE // 256)


def refused(name, what, *words, **more):
    return row(name, what, info=Refused(*words), convert=Refused(*words), **more)


# ---------------------------------------------------------------- what lies inside

@row("wrapped-backing", "a disk whose guest wrote a compressed image that names a file of the host",
     convert=Refused("--follow"))
def backing(folder, secret):
    inside = Image(backing=str(secret), backing_format="raw")
    (folder / "a.gz").write_bytes(gzip.compress(bytes(inside.bytes)))
    return "a.gz"


@row("wrapped-stated", "with a stated format the bytes are the disk", options=("-f", "raw"),
     convert=OK, content=lambda: gzip.compress(DISK, mtime=0).ljust(SIZE, b"\0"))
def stated(folder, secret):
    (folder / "a.raw").write_bytes(gzip.compress(DISK, mtime=0).ljust(SIZE, b"\0"))
    return "a.raw"


@row("wrapped-twice", "one wrapping is looked through, not as many as there are",
     convert=OK, content=lambda: gzip.compress(DISK, mtime=0).ljust(SIZE, b"\0"))
def twice(folder, secret):
    inner = gzip.compress(DISK, mtime=0).ljust(SIZE, b"\0")
    (folder / "a.gz").write_bytes(gzip.compress(inner))
    return "a.gz"


# ---------------------------------------------------------------- gzip

@refused("wrapped-gzip-size", "the trailer states another length", "damaged")
def gzip_size(folder, secret):
    data = gzip.compress(DISK)
    (folder / "a.gz").write_bytes(data[:-4] + struct.pack("<I", 512))
    return "a.gz"


@refused("wrapped-gzip-tail", "something else follows the stream", "damaged")
def gzip_tail(folder, secret):
    (folder / "a.gz").write_bytes(gzip.compress(DISK) + b"and so on")
    return "a.gz"


@refused("wrapped-gzip-bomb", "a thousand times as much comes out, and there is no room for it", "no room")
def gzip_bomb(folder, secret):
    (folder / "a.gz").write_bytes(gzip.compress(b"\1" * (80 << 20), 1))
    return "a.gz"


# ---------------------------------------------------------------- xz

def number(value):
    out = b""
    while value >= 0x80:
        out += bytes([value & 0x7f | 0x80])
        value >>= 7
    return out + bytes([value])


def checked(data):
    return data + struct.pack("<I", zlib.crc32(data))


def xz(records, blocks=b"", flags=b"\0\1"):
    """A stream whose index says what it likes: pairs of unpadded and decoded sizes."""
    index = b"\0" + number(len(records)) + b"".join(number(a) + number(b) for a, b in records)
    index = checked(index.ljust(-(-len(index) // 4) * 4, b"\0"))
    footer = struct.pack("<I", len(index) // 4 - 1) + flags
    return (b"\xfd7zXZ\0" + checked(flags)[0:2] + struct.pack("<I", zlib.crc32(flags)) + blocks + index +
            struct.pack("<I", zlib.crc32(footer)) + footer + b"YZ")


def block_of(data, **filters):
    """The block of a stream, padded, and its unpadded size."""
    whole = lzma.compress(data, check=lzma.CHECK_CRC32, **filters)
    size = (struct.unpack("<I", whole[-8:-4])[0] + 1) * 4
    index = whole[-12 - size:-12]
    unpadded, at, shift = 0, 2, 0
    while True:
        unpadded |= (index[at] & 0x7f) << shift
        shift += 7
        if not index[at] & 0x80:
            break
        at += 1
    return whole[12:-12 - size], unpadded


@refused("wrapped-xz-huge", "the index states 4 PiB", "max-size")
def xz_huge(folder, secret):
    block, unpadded = block_of(DISK)
    (folder / "a.xz").write_bytes(xz([(unpadded, 1 << 52)], block))
    return "a.xz"


@refused("wrapped-xz-longer", "the index states more than the block holds", "Input/output")
def xz_longer(folder, secret):
    block, unpadded = block_of(DISK)
    (folder / "a.xz").write_bytes(xz([(unpadded, SIZE + 512)], block))
    return "a.xz"


@refused("wrapped-xz-shorter", "the index states less than the block holds", "Input/output")
def xz_shorter(folder, secret):
    block, unpadded = block_of(DISK)
    (folder / "a.xz").write_bytes(xz([(unpadded, SIZE - 512)], block))
    return "a.xz"


@refused("wrapped-xz-longer-spool", "the same, and too large to be decoded at once", "Input/output")
def xz_longer_spool(folder, secret):
    block, unpadded = block_of(DISK)
    (folder / "a.xz").write_bytes(xz([(unpadded, 1 << 30)], block))
    return "a.xz"


@refused("wrapped-xz-index", "the index states more blocks than the stream has", "damaged")
def xz_index(folder, secret):
    block, unpadded = block_of(DISK)
    (folder / "a.xz").write_bytes(xz([(unpadded, SIZE)] * 2, block))
    return "a.xz"


@refused("wrapped-xz-dictionary", "a block that wants 4 GiB of memory", "memory")
def xz_dictionary(folder, secret):
    block, unpadded = block_of(DISK)
    size = (block[0] + 1) * 4
    header = bytearray(block[:size - 4])
    at = header.index(b"\x21\x01")
    header[at + 2] = 40
    (folder / "a.xz").write_bytes(xz([(unpadded, SIZE)], checked(bytes(header)) + block[size:]))
    return "a.xz"


# ---------------------------------------------------------------- zstd

def frame(content, blocks, window=None):
    """A frame that states `content` bytes. blocks: (type, size field, bytes)."""
    head = b"\x28\xb5\x2f\xfd"
    head += bytes([0xe0]) if window is None else bytes([0xc0, window])
    out = head + struct.pack("<Q", content)
    for i, (kind, size, data) in enumerate(blocks):
        last = i == len(blocks) - 1
        out += struct.pack("<I", last | kind << 1 | size << 3)[:3] + data
    return out


RAW, RLE = 0, 1


@refused("wrapped-zstd-huge", "the frame states 4 PiB", "max-size")
def zstd_huge(folder, secret):
    (folder / "a.zst").write_bytes(frame(1 << 52, [(RLE, 1 << 17, b"\1")] * 4))
    return "a.zst"


@refused("wrapped-zstd-sum", "two frames state more than a number holds", "max-size")
def zstd_sum(folder, secret):
    (folder / "a.zst").write_bytes(frame((1 << 63) - 1, [(RLE, 512, b"\1")]) * 3)
    return "a.zst"


@refused("wrapped-zstd-longer", "the frame states more than it holds", "Input/output")
def zstd_longer(folder, secret):
    (folder / "a.zst").write_bytes(frame(SIZE * 2, [(RLE, SIZE, b"\1")]))
    return "a.zst"


@refused("wrapped-zstd-shorter", "the frame states less than it holds", "Input/output")
def zstd_shorter(folder, secret):
    (folder / "a.zst").write_bytes(frame(512, [(RAW, 1024, b"\1" * 1024)]))
    return "a.zst"


@refused("wrapped-zstd-outside", "a block reaches past the end of the file", "cut short")
def zstd_outside(folder, secret):
    (folder / "a.zst").write_bytes(frame(SIZE, [(RAW, SIZE, b"\1" * 100)]))
    return "a.zst"


@refused("wrapped-zstd-window", "a window of 3 GiB is more than a decoder gets", "memory")
def zstd_window(folder, secret):
    (folder / "a.zst").write_bytes(frame(1 << 30, [(RLE, 1 << 17, b"\1")] * 8192, window=0xac))
    return "a.zst"
