"""VHDX images made and changed by hand, after [MS-VHDX]: for what no tool makes (differencing images with sector
bitmaps, logs that are to be replayed, nonsense)."""

import struct
import uuid
from pathlib import Path

MIB = 1 << 20
PAGE = 4096
HEADERS = (64 << 10, 128 << 10)
REGIONS = (192 << 10, 256 << 10)

NOT_PRESENT, UNDEFINED, ZERO, UNMAPPED, PRESENT, PARTIAL = 0, 1, 2, 3, 6, 7

BAT = uuid.UUID("2dc27766-f623-4200-9d64-115e9bfd4a08")
METADATA = uuid.UUID("8b7ca206-4790-4b9a-b8fe-575f050f886e")
PARAMETERS = uuid.UUID("caa16737-fa36-4d43-b3b6-33f0aa44e76b")
SIZE = uuid.UUID("2fa54224-cd1b-4876-b211-5dbed83bf4b8")
DISK_ID = uuid.UUID("beca12ab-b2e6-4523-93ef-c309e000c746")
LOGICAL = uuid.UUID("8141bf1d-a96f-4709-ba47-f233a8faab5f")
PHYSICAL = uuid.UUID("cda348c7-445d-4471-9cc9-e9885251c556")
PARENT = uuid.UUID("a8d35f2d-b30b-454d-abf7-d3d84834ab0c")
LOCATOR = uuid.UUID("b04aefb7-d19e-4a81-b789-25b8e9445913")
DATA_WRITE = uuid.UUID("00112233-4455-6677-8899-aabbccddeeff")
LOG = uuid.UUID("aaaaaaaa-bbbb-4ccc-8ddd-eeeeeeeeeeee")
NOBODY = uuid.UUID(int=0)

_TABLE = []
for _byte in range(256):
    for _ in range(8):
        _byte = _byte >> 1 ^ (0x82f63b78 if _byte & 1 else 0)
    _TABLE.append(_byte)


def crc32c(data):
    crc = 0xffffffff
    for byte in data:
        crc = crc >> 8 ^ _TABLE[(crc ^ byte) & 0xff]
    return crc ^ 0xffffffff


def summed(data, at=4):
    """With its checksum in place, which counts as zero itself."""
    data = bytearray(data)
    data[at:at + 4] = bytes(4)
    data[at:at + 4] = struct.pack("<I", crc32c(data))
    return bytes(data)


def header(sequence, log=NOBODY, data_write=DATA_WRITE, log_offset=MIB, log_length=MIB, version=1,
           log_version=0):
    page = struct.pack("<4sIQ16s16s16sHHIQ", b"head", 0, sequence, uuid.uuid4().bytes_le,
                       data_write.bytes_le, log.bytes_le, log_version, version, log_length,
                       log_offset)
    return summed(page.ljust(PAGE, b"\0"))


def region_table(regions, count=None):
    """regions: (guid, offset, length, required)"""
    table = struct.pack("<4sIII", b"regi", 0, len(regions) if count is None else count, 0)
    for guid, offset, length, required in regions:
        table += struct.pack("<16sQII", guid.bytes_le, offset, length, required)
    return summed(table.ljust(64 << 10, b"\0"))


def locator(**pairs):
    """A parent locator item."""
    entries, texts = b"", b""
    at = 20 + 12 * len(pairs)
    for key, value in pairs.items():
        key, value = key.encode("utf-16le"), value.encode("utf-16le")
        entries += struct.pack("<IIHH", at + len(texts), at + len(texts) + len(key), len(key),
                               len(value))
        texts += key + value
    return LOCATOR.bytes_le + struct.pack("<HH", 0, len(pairs)) + entries + texts


def log_entry(sequence, changes, tail=0, guid=LOG, flushed=0, last=0, descriptors=None,
              length=None):
    """changes: (file offset, page of bytes) or (file offset, number of zero bytes)."""
    table, data = b"", b""
    for offset, what in changes:
        if isinstance(what, int):
            table += struct.pack("<4sIQQQ", b"zero", 0, what, offset, sequence)
            continue
        table += struct.pack("<4s4s8sQQ", b"desc", what[-4:], what[:8], offset, sequence)
        data += (struct.pack("<4sI", b"data", sequence >> 32) + what[8:-4]
                 + struct.pack("<I", sequence & 0xffffffff))
    size = -(-(64 + len(table)) // PAGE) * PAGE
    head = struct.pack("<4sIIIQII16sQQ", b"loge", 0, length or size + len(data), tail, sequence,
                       len(changes) if descriptors is None else descriptors, 0, guid.bytes_le,
                       flushed, last)
    return summed((head + table).ljust(size, b"\0") + data)


class Vhdx:
    """An image in memory: metadata here, blocks in a dictionary; save() writes it sparse."""

    def __init__(self, size, block=MIB, sector=512, parent=None, flags=None, log_length=MIB,
                 bat_length=None):
        self.size, self.block, self.sector = size, block, sector
        self.chunk = (1 << 23) * sector // block
        self.blocks = -(-size // block)
        entries = self.bat_index(max(self.blocks - 1, 0)) + 1
        if parent:
            entries = -(-self.blocks // self.chunk) * (self.chunk + 1)
        self.log_offset, self.log_length = MIB, log_length
        self.bat_offset = MIB + log_length
        self.bat_length = bat_length or -(-max(entries, 1) * 8 // MIB) * MIB
        self.meta_offset = self.bat_offset + self.bat_length
        self.end = self.meta_offset + MIB
        self.parts = {}                 # offset: bytes
        self.bat = {}                   # index: entry
        self.items = [(PARAMETERS, struct.pack("<II", block, flags if flags is not None
                                               else 2 if parent else 0), 4),
                      (SIZE, struct.pack("<Q", size), 6),
                      (DISK_ID, uuid.uuid4().bytes_le, 6),
                      (LOGICAL, struct.pack("<I", sector), 6),
                      (PHYSICAL, struct.pack("<I", sector), 6)]
        if parent:
            self.items.append((PARENT, parent, 4))
        self.regions = [(BAT, self.bat_offset, self.bat_length, 1),
                        (METADATA, self.meta_offset, MIB, 1)]
        self.log = NOBODY
        self.headers = None             # instead of the usual two
        self.data_write = DATA_WRITE

    def bat_index(self, block):
        return block + block // self.chunk

    def bitmap_index(self, block):
        chunk = block // self.chunk
        return (chunk + 1) * self.chunk + chunk

    def place(self, length):
        """Room for so many bytes, at the end."""
        offset = self.end
        self.end += -(-length // MIB) * MIB
        return offset

    def put_block(self, number, data, state=PRESENT):
        offset = self.place(self.block)
        self.bat[self.bat_index(number)] = offset | state
        self.parts[offset] = data
        return offset

    def put_partial(self, number, sectors):
        """sectors: number in the block: bytes. The rest is the parent's."""
        offset = self.put_block(number, b"", PARTIAL)
        index = self.bitmap_index(number)
        if index not in self.bat:
            self.bat[index] = self.place(MIB) | PRESENT
            self.parts[self.bat[index] & ~(MIB - 1)] = bytearray(MIB)
        bits = self.parts[self.bat[index] & ~(MIB - 1)]
        first = number % self.chunk * (self.block // self.sector)
        for sector, data in sectors.items():
            self.parts[offset + sector * self.sector] = data
            bits[(first + sector) // 8] |= 1 << (first + sector) % 8

    def metadata(self):
        table, data = b"", b""
        for guid, item, flags in self.items:
            table += struct.pack("<16sIIII", guid.bytes_le, (64 << 10) + len(data), len(item), flags,
                                 0)
            data += item
        head = b"metadata" + struct.pack("<HH20x", 0, len(self.items))
        return (head + table).ljust(64 << 10, b"\0") + data

    def bat_page(self, page=0):
        """A page of the BAT, as it is now."""
        return b"".join(struct.pack("<Q", self.bat.get(page * 512 + i, 0)) for i in range(512))

    def save(self, path, size=None):
        first, second = self.headers or (
            header(1, data_write=self.data_write, log_offset=self.log_offset,
                   log_length=self.log_length),
            header(2, self.log, self.data_write, self.log_offset, self.log_length))
        table = region_table(self.regions)
        with open(path, "wb") as file:
            def put(offset, data):
                file.seek(offset)
                file.write(data)
            put(0, b"vhdxfile" + "by hand".encode("utf-16le"))
            put(HEADERS[0], first)
            put(HEADERS[1], second)
            put(REGIONS[0], table)
            put(REGIONS[1], table)
            put(self.meta_offset, self.metadata())
            for index, entry in self.bat.items():
                put(self.bat_offset + 8 * index, struct.pack("<Q", entry))
            for offset, data in self.parts.items():
                put(offset, data)
            file.truncate(self.end if size is None else size)
        return Path(path)


def entries(path, offset, count):
    """So many numbers of the BAT at offset."""
    with open(path, "rb") as file:
        file.seek(offset)
        return list(struct.unpack(f"<{count}Q", file.read(8 * count)))


def set_entry(path, bat_offset, index, entry):
    with open(path, "r+b") as file:
        file.seek(bat_offset + 8 * index)
        file.write(struct.pack("<Q", entry))
