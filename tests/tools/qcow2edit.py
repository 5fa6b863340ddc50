"""A small editor of qcow2 metadata, for images that are wrong on purpose.

It trusts the image it opens and writes whatever it is told.
"""

import struct

# name: (offset, struct code); all big endian
HEADER = {
    "magic": (0, "I"), "version": (4, "I"), "backing_offset": (8, "Q"), "backing_size": (16, "I"),
    "cluster_bits": (20, "I"), "size": (24, "Q"), "crypt_method": (32, "I"), "l1_size": (36, "I"),
    "l1_offset": (40, "Q"), "refcount_table_offset": (48, "Q"),
    "refcount_table_clusters": (56, "I"), "snapshots": (60, "I"), "snapshots_offset": (64, "Q"),
    # version 3 only
    "incompatible": (72, "Q"), "compatible": (80, "Q"), "autoclear": (88, "Q"),
    "refcount_order": (96, "I"), "header_length": (100, "I"), "compression_type": (104, "B"),
}

COPIED = 1 << 63
COMPRESSED = 1 << 62
ZERO = 1
OFFSET = 0x00fffffffffffe00


class Qcow2:
    """An open image; use it in a with statement."""

    def __init__(self, path):
        self.file = open(path, "r+b", buffering=0)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.file.close()

    def read(self, offset, length):
        self.file.seek(offset)
        return self.file.read(length)

    def write(self, offset, data):
        self.file.seek(offset)
        self.file.write(data)

    def u64(self, offset):
        return struct.unpack(">Q", self.read(offset, 8))[0]

    def put64(self, offset, value):
        self.write(offset, struct.pack(">Q", value))

    # -- header

    def __getitem__(self, field):
        if field == "refcount_order" and self["version"] < 3:
            return 4
        offset, code = HEADER[field]
        return struct.unpack(">" + code, self.read(offset, struct.calcsize(code)))[0]

    def __setitem__(self, field, value):
        offset, code = HEADER[field]
        self.write(offset, struct.pack(">" + code, value))

    @property
    def cluster(self):
        return 1 << self["cluster_bits"]

    # -- mapping

    def l1_at(self, index):
        """File offset of an entry of the first level."""
        return self["l1_offset"] + 8 * index

    def l2_table(self, guest):
        """File offset of the second level table for a guest offset, 0 if none."""
        return self.u64(self.l1_at(guest // (self.cluster * self.cluster // 8))) & OFFSET

    def l2_at(self, guest):
        """File offset of the second level entry for a guest offset."""
        table = self.l2_table(guest)
        assert table, f"no second level table for {guest}"
        return table + 8 * (guest // self.cluster % (self.cluster // 8))

    def mapped(self):
        """(guest offset, file offset of the entry, entry) of every entry that is not 0."""
        per_table = self.cluster // 8
        for l1 in range(self["l1_size"]):
            table = self.u64(self.l1_at(l1)) & OFFSET
            if not table:
                continue
            entries = struct.unpack(f">{per_table}Q", self.read(table, self.cluster))
            for index, entry in enumerate(entries):
                if entry:
                    yield (l1 * per_table + index) * self.cluster, table + 8 * index, entry

    def data(self):
        """The standard data clusters among those."""
        return [(guest, at, entry) for guest, at, entry in self.mapped()
                if not entry & COMPRESSED and entry & OFFSET]

    # -- refcounts

    def refcount_block(self, cluster):
        """File offset of the refcount block that counts this cluster of the file, 0 if none."""
        per_block = self.cluster * 8 >> self["refcount_order"]
        return self.u64(self["refcount_table_offset"] + 8 * (cluster // per_block)) & OFFSET

    def refcount(self, cluster):
        return self._refcount(cluster, None)

    def set_refcount(self, cluster, value):
        self._refcount(cluster, value)

    def _refcount(self, cluster, value):
        order = self["refcount_order"]
        bits = 1 << order
        block = self.refcount_block(cluster)
        if not block:
            assert value is None, f"no refcount block for cluster {cluster}"
            return 0
        index = cluster % (self.cluster * 8 >> order)
        if bits >= 8:
            at, width = block + index * bits // 8, bits // 8
            if value is None:
                return int.from_bytes(self.read(at, width), "big")
            self.write(at, value.to_bytes(width, "big"))
            return value
        # Narrow counts are packed into bytes from the least significant bit on.
        at, shift, mask = block + index * bits // 8, index * bits % 8, (1 << bits) - 1
        byte = self.read(at, 1)[0]
        if value is None:
            return byte >> shift & mask
        self.write(at, bytes([byte & ~(mask << shift) | (value & mask) << shift]))
        return value

    # -- places

    def structures(self):
        """(name, file offset, length) of every piece of metadata."""
        cluster = self.cluster
        yield "header", 0, cluster
        yield "l1", self["l1_offset"], 8 * self["l1_size"]
        for index in range(self["l1_size"]):
            table = self.u64(self.l1_at(index)) & OFFSET
            if table:
                yield f"l2[{index}]", table, cluster
        table, length = self["refcount_table_offset"], self["refcount_table_clusters"] * cluster
        yield "refcount table", table, length
        for index in range(length // 8):
            block = self.u64(table + 8 * index) & OFFSET
            if block:
                yield f"refcount block {index}", block, cluster
