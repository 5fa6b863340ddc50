"""VDI and VHD images byte by byte: for damage, for attacks, and for what no tool writes."""

import struct
from pathlib import Path

FREE = 0xffffffff
ZERO = 0xfffffffe
FILL = 0x33


class Fields:
    """Bytes with named fields. FIELDS: offset and struct format, by name."""

    FIELDS = {}

    def __init__(self, data):
        self.bytes = bytearray(data)

    def __getitem__(self, name):
        at, form = self.FIELDS[name]
        return struct.unpack_from(form, self.bytes, at)[0]

    def __setitem__(self, name, value):
        at, form = self.FIELDS[name]
        struct.pack_into(form, self.bytes, at, value)


class Vdi(Fields):
    """A VDI image of `blocks` blocks; the first one holds FILL bytes."""

    NAME = "a.vdi"
    FIELDS = {"signature": (0x40, "<I"), "version": (0x44, "<I"), "header_size": (0x48, "<I"),
              "type": (0x4c, "<I"), "map_offset": (0x154, "<I"), "data_offset": (0x158, "<I"),
              "sector_size": (0x168, "<I"), "disk_size": (0x170, "<Q"), "block_size": (0x178, "<I"),
              "block_extra": (0x17c, "<I"), "blocks": (0x180, "<I"), "allocated": (0x184, "<I"),
              "uuid": (0x188, "16s"), "modified": (0x198, "16s"), "parent": (0x1a8, "16s"),
              "parent_modified": (0x1b8, "16s")}

    def __init__(self, blocks=4, block_size=1 << 20, entries=(0,), extra=0):
        super().__init__(bytes(1024))
        self.bytes[:10] = b"<<< hand >"
        for name, value in {"signature": 0xbeda107f, "version": 0x10001, "header_size": 0x180,
                            "type": 1, "map_offset": 512, "data_offset": 1024, "sector_size": 512,
                            "disk_size": blocks * block_size, "block_size": block_size,
                            "block_extra": extra, "blocks": blocks, "uuid": b"U" * 16,
                            "modified": b"M" * 16}.items():
            self[name] = value
        self.bytes[512:1024] = b"\xff" * 512
        for number, entry in enumerate(entries):
            self.put_entry(number, entry)
        stored = [entry for entry in entries if entry < ZERO]
        self["allocated"] = len(set(stored))
        self.bytes += (bytes(extra) + bytes([FILL]) * block_size) * (max(stored, default=-1) + 1)

    def put_entry(self, number, entry):
        struct.pack_into("<I", self.bytes, self["map_offset"] + 4 * number, entry)

    def entry(self, number):
        return struct.unpack_from("<I", self.bytes, self["map_offset"] + 4 * number)[0]

    @classmethod
    def load(cls, path):
        image = cls.__new__(cls)
        Fields.__init__(image, Path(path).read_bytes())
        return image

    def save(self, folder, name=None):
        (Path(folder) / (name or self.NAME)).write_bytes(self.bytes)
        return name or self.NAME


def checksum(data, at):
    return ~(sum(data) - sum(data[at:at + 4])) & 0xffffffff


class Footer(Fields):
    FIELDS = {"cookie": (0, "8s"), "features": (8, ">I"), "version": (12, ">I"),
              "header_offset": (16, ">Q"), "time": (24, ">I"), "creator": (28, "4s"),
              "original_size": (40, ">Q"), "size": (48, ">Q"), "cylinders": (56, ">H"),
              "heads": (58, "B"), "sectors": (59, "B"), "type": (60, ">I"), "checksum": (64, ">I"),
              "uuid": (68, "16s")}

    def __init__(self, data=None, **fields):
        super().__init__(data or bytes(512))
        for name, value in fields.items():
            self[name] = value

    def signed(self):
        self["checksum"] = checksum(self.bytes, 64)
        return bytes(self.bytes)


class Header(Fields):
    FIELDS = {"cookie": (0, "8s"), "next": (8, ">Q"), "table_offset": (16, ">Q"),
              "version": (24, ">I"), "entries": (28, ">I"), "block_size": (32, ">I"),
              "checksum": (36, ">I"), "parent_uuid": (40, "16s"), "parent_time": (56, ">I"),
              "parent_name": (64, "512s")}

    def __init__(self, data=None, **fields):
        super().__init__(data or bytes(1024))
        for name, value in fields.items():
            self[name] = value

    def locator(self, number, code, length, offset, space=512):
        struct.pack_into(">4sIIIQ", self.bytes, 576 + 24 * number, code, space, length, 0, offset)

    def signed(self):
        self["checksum"] = checksum(self.bytes, 36)
        return bytes(self.bytes)


class Vhd:
    """A dynamic or differencing VHD of 2 MiB blocks; the first one holds FILL bytes."""

    NAME = "a.vhd"

    def __init__(self, blocks=4, kind=3, entries=(4,), block_size=2 << 20, bits=0xff):
        size = blocks * block_size
        self.footer = Footer(cookie=b"conectix", features=2, version=0x10000, header_offset=512,
                             creator=b"win ", original_size=size, size=size, cylinders=65535,
                             heads=16, sectors=255, type=kind, uuid=b"V" * 16)
        self.header = Header(cookie=b"cxsparse", next=(1 << 64) - 1, table_offset=1536,
                             version=0x10000, entries=blocks, block_size=block_size)
        self.table = list(entries) + [FREE] * (blocks - len(entries))
        self.more = {}                  # other bytes, by offset
        self.block_size, self.bits = block_size, bits
        self.copy = self.end = True     # both footers are there

    def save(self, folder, name=None):
        bitmap = bytes([self.bits]) * ((self.block_size // 512 + 4095) // 4096 * 512)
        footer = self.footer.signed()
        data = bytearray(footer if self.copy else bytes(512)) + self.header.signed()
        table = struct.pack(f">{len(self.table)}I", *self.table)
        data += table + b"\xff" * (-len(table) % 512)
        for entry in self.table:
            if 4 <= entry < 1 << 17:
                at = entry * 512
                data += bytes(max(0, at + len(bitmap) + self.block_size - len(data)))
                data[at:at + len(bitmap) + self.block_size] = bitmap + bytes([FILL]) * self.block_size
        for at, what in self.more.items():
            data += bytes(max(0, at + len(what) - len(data)))
            data[at:at + len(what)] = what
        data += bytes(-len(data) % 512)
        (Path(folder) / (name or self.NAME)).write_bytes(data + (footer if self.end else b""))
        return name or self.NAME
