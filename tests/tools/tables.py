"""Partition tables, made by hand so that they can be wrong in any way."""

import struct
import uuid
import zlib

SECTOR = 512
LINUX = "0fc63daf-8483-4772-8e79-3d69d8477de4"
EFI = "c12a7328-f81f-11d2-ba4b-00a0c93ec93b"


def mbr_entry(kind, start, count, active=False):
    return struct.pack("<B3sB3sII", 0x80 if active else 0, b"\0\2\0", kind, b"\xfe\xff\xff", start, count)


def mbr_sector(*entries, disk_id=0x1234abcd):
    body = b"".join(entries).ljust(64, b"\0")
    return bytes(440) + struct.pack("<IH", disk_id, 0) + body + b"\x55\xaa"


def guid(number):
    return str(uuid.UUID(int=number))


def gpt_entry(first, last, label="", kind=LINUX, number=1):
    return (uuid.UUID(kind).bytes_le + uuid.UUID(int=number).bytes_le + struct.pack("<QQQ", first, last, 0)
            + label.encode("utf-16-le").ljust(72, b"\0"))


def gpt_header(my, other, at, entries, last, sector=SECTOR, count=None, size=128, disk=99):
    count = len(entries) // size if count is None else count
    header = bytearray(struct.pack("<8sIIIIQQQQ16sQIII", b"EFI PART", 0x10000, 92, 0, 0, my, other, 34,
                                   last, uuid.UUID(int=disk).bytes_le, at, count, size, zlib.crc32(entries)))
    header[16:20] = struct.pack("<I", zlib.crc32(header))
    return bytes(header)


def write_gpt(path, size, parts, sector=SECTOR, first=True, backup=True, **header):
    """parts: (first, last, label, type). first, backup: whether that copy is there."""
    entries = b"".join(gpt_entry(*part[:2], *part[2:], number=i + 1) for i, part in enumerate(parts))
    entries = entries.ljust(128 * 128, b"\0")
    sectors, room = size // sector, -(-len(entries) // sector)
    with open(path, "r+b") as f:
        f.truncate(size)
        f.write(mbr_sector(mbr_entry(0xee, 1, min(sectors - 1, 0xffffffff)), disk_id=0))
        if first:
            f.seek(sector)
            f.write(gpt_header(1, sectors - 1, 2, entries, sectors - room - 2, sector, **header))
            f.seek(2 * sector)
            f.write(entries)
        if backup:
            f.seek((sectors - 1 - room) * sector)
            f.write(entries)
            f.seek((sectors - 1) * sector)
            f.write(gpt_header(sectors - 1, 1, sectors - 1 - room, entries, sectors - room - 2, sector,
                               **header))


def write_logical(path, base, count, logical):
    """Fills the extended partition with a chain: (start, count) of each, its link one 2048 before it."""
    with open(path, "r+b") as f:
        for number, (start, length) in enumerate(logical):
            at = base if number == 0 else start - 2048
            entries = [mbr_entry(0x83, start - at, length)]
            if number + 1 < len(logical):
                following = logical[number + 1]
                entries.append(mbr_entry(0x05, following[0] - 2048 - base, following[1] + 2048))
            f.seek(at * SECTOR)
            f.write(mbr_sector(*entries))
