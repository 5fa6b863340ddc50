"""Builds VMDKs byte by byte, sound ones and others, for tests of reading."""

import struct
import zlib

SECTOR = 512
KDMV, COWD = 0x564d444b, 0x44574f43
NL_TEST, REDUNDANT, ZEROED, COMPRESSED, MARKERS = 1, 2, 4, 1 << 16, 1 << 17
AT_END = (1 << 64) - 1

FIELDS = {  # name: (offset, format)
    "magic": (0, "<I"), "version": (4, "<I"), "flags": (8, "<I"), "capacity": (12, "<Q"),
    "grain": (20, "<Q"), "desc_offset": (28, "<Q"), "desc_size": (36, "<Q"),
    "gt_entries": (44, "<I"), "rgd": (48, "<Q"), "gd": (56, "<Q"), "overhead": (64, "<Q"),
    "unclean": (72, "B"), "algorithm": (77, "<H"),
}


def descriptor(create_type, *lines, cid="12345678", parent="ffffffff", more=""):
    """The text of a descriptor with these extents."""
    return (f"# Disk DescriptorFile\nversion=1\nCID={cid}\nparentCID={parent}\n"
            f'createType="{create_type}"\n{more}\n# Extent description\n'
            + "".join(f"{line}\n" for line in lines)
            + '\n#DDB\nddb.adapterType = "ide"\n').encode()


def header(**fields):
    values = {"magic": KDMV, "version": 1, "flags": NL_TEST, "grain": 128, "gt_entries": 512,
              "overhead": 128} | fields
    out = bytearray(SECTOR)
    out[73:77] = b"\n \r\n"
    for name, value in values.items():
        offset, code = FIELDS[name]
        struct.pack_into(code, out, offset, value)
    return out


class Sparse:
    """A hosted sparse extent of `grains` grains of 64 KiB: descriptor at sector 1, directory at 21, tables from 22,
    grains from sector 128."""

    GD, GT, FIRST = 21, 22, 128

    def __init__(self, grains=16, text=True, **fields):
        sectors = grains * 128
        self.fields = {"capacity": sectors, "gd": self.GD,
                       "desc_offset": 1 if text else 0, "desc_size": 20 if text else 0} | fields
        self.bytes = bytearray(self.FIRST * SECTOR)
        if text:
            self.put(SECTOR, descriptor("monolithicSparse", f'RW {sectors} SPARSE "a.vmdk"'))
        for table in range((grains + 511) // 512):
            self.entry(self.GD, table, self.GT + 4 * table)

    def put(self, offset, data):
        if len(self.bytes) < offset + len(data):
            self.bytes.extend(bytes(offset + len(data) - len(self.bytes)))
        self.bytes[offset:offset + len(data)] = data

    def entry(self, sector, index, value):
        self.put(sector * SECTOR + 4 * index, struct.pack("<I", value))

    def map(self, grain, sector):
        self.entry(self.GT, grain, sector)

    def grain(self, number, data):
        """Puts data behind all that is there and maps the grain to it."""
        sector = (len(self.bytes) + SECTOR - 1) // SECTOR
        self.put(sector * SECTOR, data)
        self.map(number, sector)
        return sector

    def compressed(self, number, data, lba=None, size=None, packed=None):
        packed = zlib.compress(data) if packed is None else packed
        marker = struct.pack("<QI", number * 128 if lba is None else lba,
                             len(packed) if size is None else size)
        return self.grain(number, marker + packed)

    def save(self, path, length=None):
        self.bytes[:SECTOR] = header(**self.fields)
        path.write_bytes(self.bytes)
        if length is not None:
            with open(path, "r+b") as file:
                file.truncate(length)
        return path.name


def cowd(grains, data, grain=128):
    """A COW disk of ESX: grain number n holds data[n]."""
    sectors = grains * grain
    tables = (grains + 4095) // 4096
    out = bytearray(4 * SECTOR)
    struct.pack_into("<8I", out, 0, COWD, 1, 3, sectors, grain, 4, tables, 0)
    directory = bytearray((tables * 4 + 511) // 512 * 512)
    place = 4 + len(directory) // SECTOR
    entries = [bytearray(16384) for _ in range(tables)]
    for table in range(tables):
        struct.pack_into("<I", directory, 4 * table, place + 32 * table)
    body, at = bytearray(), place + 32 * tables
    for number, content in sorted(data.items()):
        struct.pack_into("<I", entries[number // 4096], 4 * (number % 4096), at)
        body += content.ljust(grain * SECTOR, b"\0")
        at += grain
    return bytes(out + directory + b"".join(entries) + body)


def sesparse(grains, data, zero=(), unmapped=(), journal=0):
    """An SE sparse disk: grains of 4 KiB; grain number n holds data[n]."""
    tables = (grains + 4095) // 4096
    directory, first, store = 2, 8, 8 + 64 * tables
    head = bytearray(SECTOR)
    struct.pack_into("<6Q", head, 0, 0xcafebabe, 0x200000001, grains * 8, 8, 64, 0)
    struct.pack_into("<16Q", head, 80, 1, 1, 3, 1, 4, 1, directory, 1, first, 64 * tables,
                     0, 0, 0, 0, store, 8 * len(data))
    volatile = bytearray(SECTOR)
    struct.pack_into("<4Q", volatile, 0, 0xcafecafe, 0, 0, journal)
    out = bytearray(store * SECTOR)
    out[:SECTOR], out[SECTOR:2 * SECTOR] = head, volatile
    for table in range(tables):
        struct.pack_into("<Q", out, directory * SECTOR + 8 * table, 1 << 60 | table)
    for number in zero:
        struct.pack_into("<Q", out, first * SECTOR + 8 * number, 2 << 60)
    for number in unmapped:
        struct.pack_into("<Q", out, first * SECTOR + 8 * number, 1 << 60)
    for index, (number, content) in enumerate(sorted(data.items())):
        entry = 3 << 60 | (index & 0xfff) << 48 | index >> 12
        struct.pack_into("<Q", out, first * SECTOR + 8 * number, entry)
        out += content.ljust(4096, b"\0")
    return bytes(out)
