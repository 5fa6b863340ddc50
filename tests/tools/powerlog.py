"""What a blklogwrites node wrote down, and the images that a power cut may leave of it."""

import struct

SECTOR = 512
FLUSH, FUA, DISCARD = 1, 2, 4


class Entry:
    """One write, discard (data is None) or flush."""

    def __init__(self, offset, length, flags, data):
        self.offset, self.length, self.flags, self.data = offset, length, flags, data


def read_log(path):
    """All entries, in the order of the log."""
    with open(path, "rb") as file:
        log = file.read()
    count = struct.unpack_from("<Q", log, 16)[0]
    at, out = SECTOR, []
    for _ in range(count):
        sector, sectors, flags, length = struct.unpack_from("<QQQQ", log, at)
        data = None if flags & DISCARD else log[at + SECTOR:at + SECTOR + length]
        out.append(Entry(sector * SECTOR, sectors * SECTOR, flags, data))
        at += SECTOR + length
    return out


def apply(image, entry, wanted=None):
    """The entry's sectors: all, or those that wanted() says yes to."""
    for at in range(0, entry.length, SECTOR):
        if wanted and not wanted():
            continue
        place = entry.offset + at
        if entry.data is None:
            if place < len(image):
                image[place:place + SECTOR] = bytes(SECTOR)
            continue
        if len(image) < place + SECTOR:
            image.extend(bytes(place + SECTOR - len(image)))
        image[place:place + SECTOR] = entry.data[at:at + SECTOR]


def cut(before, log, at, variant, rng):
    """The image after a cut behind `at` entries.

    What came before the last flush is there. Of the rest, by variant: "kept" all of it, "dropped" nothing,
    "reordered" some of the writes, "torn" some of the sectors.
    """
    synced = max((i + 1 for i in range(at) if log[i].flags & FLUSH), default=0)
    image = bytearray(before)
    image.extend(bytes(-len(image) % SECTOR))
    for entry in log[:synced]:
        apply(image, entry)
    for entry in log[synced:at]:
        if variant == "kept" or variant == "reordered" and rng.random() < 0.5:
            apply(image, entry)
        elif variant == "torn":
            apply(image, entry, lambda: rng.random() < 0.5)
    return image


VARIANTS = ("kept", "dropped", "reordered", "torn")


def last_flush(log):
    """How many entries there are up to the last flush, with it."""
    return max((i + 1 for i, entry in enumerate(log) if entry.flags & FLUSH), default=0)
