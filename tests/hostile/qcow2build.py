"""A small writer of qcow2 images, sound ones until somebody changes a number.

The layout is always the same: header, refcount table, refcount block, L1 table, L2 table, data.
"""

import struct

from qcow2edit import COPIED, HEADER

HEADER_AT, REFTABLE, REFBLOCK, L1, L2, DATA = range(6)

EXT_BACKING_FORMAT = 0xe2792aca
EXT_FEATURES = 0x6803f857
EXT_BITMAPS = 0x23852875
EXT_DATA_FILE = 0x44415441

FILL = 0x5a      # every byte of the guest's first cluster


class Image:
    """Bytes of an image of `size`, whose first cluster holds data; one refcount block counts all."""

    def __init__(self, bits=12, version=3, size=1 << 20, backing=None, backing_format=None,
                 extensions=(), data=True):
        self.bits, self.cluster = bits, 1 << bits
        self.bytes = bytearray((DATA + 1) * self.cluster)
        self.extensions = list(extensions)
        per_table = self.cluster * self.cluster // 8
        for field, value in {
            "magic": 0x514649fb, "version": version, "cluster_bits": bits, "size": size,
            "l1_size": max(1, -(-size // per_table)), "l1_offset": L1 * self.cluster,
            "refcount_table_offset": REFTABLE * self.cluster, "refcount_table_clusters": 1,
        }.items():
            self[field] = value
        if version == 3:
            self["refcount_order"], self["header_length"] = 4, 112
        self.put64(REFTABLE * self.cluster, REFBLOCK * self.cluster)
        for cluster in range(DATA + 1 if data else DATA):
            self.count(cluster, 1)
        self.put64(L1 * self.cluster, L2 * self.cluster | COPIED)
        if data:
            self.map(0, DATA * self.cluster | COPIED)
            self.put(DATA * self.cluster, bytes([FILL]) * self.cluster)
        if backing_format is not None:
            self.extensions.append((EXT_BACKING_FORMAT, backing_format.encode()))
        self.write_extensions(backing)

    def __setitem__(self, field, value):
        at, code = HEADER[field]
        struct.pack_into(">" + code, self.bytes, at, value)

    def __getitem__(self, field):
        at, code = HEADER[field]
        return struct.unpack_from(">" + code, self.bytes, at)[0]

    def write_extensions(self, backing):
        at = 112 if self["version"] == 3 else 72
        for kind, data in self.extensions:
            self.put(at, struct.pack(">II", kind, len(data)) + data)
            at += 8 + -(-len(data) // 8) * 8
        if backing is not None:
            name = backing if isinstance(backing, bytes) else str(backing).encode()
            self["backing_offset"], self["backing_size"] = at + 8, len(name)
            self.put(at + 8, name)

    def put(self, at, data):
        """Writes bytes, and makes the file longer when they lie behind its end."""
        if at + len(data) > len(self.bytes):
            self.bytes.extend(bytes(at + len(data) - len(self.bytes)))
        self.bytes[at:at + len(data)] = data

    def put64(self, at, value):
        self.put(at, struct.pack(">Q", value))

    def count(self, cluster, value):
        """A refcount of 16 bits."""
        self.put(REFBLOCK * self.cluster + 2 * cluster, struct.pack(">H", value))

    def map(self, index, entry):
        """The L2 entry of the guest's cluster number index."""
        self.put64(L2 * self.cluster + 8 * index, entry)

    def append(self, data, count=1):
        """Appends clusters; the offset of the first."""
        at = -(-len(self.bytes) // self.cluster) * self.cluster
        self.put(at, data.ljust(-(-len(data) // self.cluster) * self.cluster, b"\0"))
        for cluster in range(at // self.cluster, len(self.bytes) // self.cluster):
            self.count(cluster, count)
        return at

    def compressed(self, at, length):
        """The L2 entry of compressed data in these bytes of the file."""
        shift = 62 - (self.bits - 8)
        sectors = (at + length - 1) // 512 - at // 512
        return 1 << 62 | sectors << shift | at

    def save(self, folder, name="a.qcow2", length=None):
        with open(folder / name, "wb") as file:
            file.write(self.bytes)
            if length is not None:
                file.truncate(length)
        return name
