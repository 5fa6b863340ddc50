"""Small qcow2 images, mutated at random where it hurts: ours and qemu-img must agree.

They agree when both open the image or both refuse it, when check ends in the same class (sound, leaks,
damaged, could not look), and when convert gives the same bytes. What we mean to do otherwise stands
in ours_is_right.

PLATTER_FUZZ_SECONDS   how long, in seconds (default 30); a longer run goes on where the short one ends
PLATTER_SEED           where it begins (default 1)

A mutated image may claim any size: disks above LARGEST are not converted, no file may grow beyond that,
and an image is always made anew rather than copied.
"""

import os
import random
import struct
import sys
import time
import zlib
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "hostile"))

from platter import MIB  # noqa: E402
from qcow2build import DATA, FILL, L1, L2, REFBLOCK, REFTABLE, Image  # noqa: E402
from qcow2edit import COMPRESSED, COPIED, HEADER  # noqa: E402

SECONDS = float(os.environ.get("PLATTER_FUZZ_SECONDS", 30))
LARGEST = 32 * MIB
LIMITS = {"timeout": 30, "file_size": 2 * LARGEST}


# ---------------------------------------------------------------- making

def sound(rng):
    """An image with some of everything in it."""
    if rng.randrange(4) == 0:
        return extended(rng)
    bits = rng.choice([9, 9, 12, 16])
    size = rng.choice([1, 3, 8]) * (1 << bits) * 4 + rng.choice([0, 512])
    image = Image(bits, version=rng.choice([2, 3, 3]), size=size)
    clusters = min(-(-size // image.cluster), image.cluster // 8)
    for index in range(1, clusters):
        kind = rng.randrange(6)
        data = bytes([rng.randrange(256)]) * image.cluster
        if kind == 0 and image["version"] == 3:
            image.map(index, 1)
        elif kind == 1:
            packer = zlib.compressobj(9, zlib.DEFLATED, -12)
            packed = packer.compress(data) + packer.flush()
            image.map(index, image.compressed(image.append(packed), len(packed)))
        elif kind <= 3:
            image.map(index, image.append(data) | COPIED)
    return image


def extended(rng):
    """The same with subclusters."""
    image = Image(14, size=6 << 14, data=False)
    image["incompatible"] = 16
    for index in range(6):
        kind = rng.randrange(5)
        at = L2 * image.cluster + 16 * index
        if kind == 0:
            packer = zlib.compressobj(9, zlib.DEFLATED, -12)
            packed = packer.compress(bytes([index]) * image.cluster) + packer.flush()
            image.put64(at, image.compressed(image.append(packed), len(packed)))
            continue
        data = rng.getrandbits(32) if kind < 3 else 0
        zero = rng.getrandbits(32) & ~data
        if kind < 4:
            image.put64(at, image.append(bytes([rng.randrange(256)]) * image.cluster) | COPIED)
        image.put64(at + 8, zero << 32 | data)
    return image


def interesting(rng, image):
    """A number that has hurt somebody once."""
    cluster = image.cluster
    return rng.choice([
        0, 1, rng.randrange(1000), cluster * rng.randrange(len(image.bytes) // cluster + 2),
        cluster * rng.randrange(12), cluster * rng.randrange(12) + 512, 1 << rng.randrange(64),
        (1 << rng.randrange(65)) - 1])


def mutate(rng, image):
    """Changes one thing; says what."""
    place = rng.choice(["header", "l1", "l2", "l2", "l2", "l2", "reftable", "refblock", "refblock",
                        "data", "end"])
    if place == "header":
        field = rng.choice([f for f, (at, _) in HEADER.items()
                            if f != "magic" and (image["version"] == 3 or at < 72)])
        _, code = HEADER[field]
        value = interesting(rng, image) & ((1 << 8 * struct.calcsize(code)) - 1)
        image[field] = value
        return f"{field} = {value:#x}"
    if place == "data" and len(image.bytes) > DATA * image.cluster:
        at = rng.randrange(DATA * image.cluster, len(image.bytes))
        image.bytes[at] ^= 1 << rng.randrange(8)
        return f"byte {at:#x}"
    if place in ("data", "end"):  # nothing but metadata may be left by now
        length = rng.randrange(DATA * image.cluster // 512, len(image.bytes) // 512 + 1) * 512
        del image.bytes[length:]
        return f"ends at {length:#x}"
    table = {"l1": L1, "l2": L2, "reftable": REFTABLE, "refblock": REFBLOCK}[place]
    at = table * image.cluster
    if place == "refblock":
        at += 2 * rng.randrange(min(12, image.cluster // 2))
        value = rng.choice([0, 1, 2, 0xffff])
        image.put(at, struct.pack(">H", value))
        return f"refcount at {at:#x} = {value}"
    at += 8 * rng.randrange(min(12, image.cluster // 8) if place == "l2" else 2)
    was = struct.unpack_from(">Q", image.bytes, at)[0]
    value = rng.choice([interesting(rng, image), interesting(rng, image) | COPIED,
                        was ^ 1 << rng.randrange(64), was ^ COMPRESSED, was ^ 1,
                        interesting(rng, image) | COMPRESSED])
    image.put64(at, value)
    return f"{place} at {at:#x}: {was:#x} -> {value:#x}"


# ---------------------------------------------------------------- judging

def check_class(result):
    return "cannot" if result.code in (1, 63) else {0: "sound", 2: "damaged", 3: "leaks"}[result.code]


def ours_is_right(image, what, ours, theirs):
    """Where we differ on purpose; the reason, or None."""
    def we(*words):
        return ours.code and any(word in ours.err for word in words)

    if ours.code == 0 and "data-file-raw requires" in theirs.err:
        return "an autoclear bit that we do not know means nothing"

    if what == "open" and ours.code == 0 and "Data file" in theirs.err:
        return "info does not ask for the data file"
    if what == "open":
        if theirs.code == 0 and we("snapshot"):
            return "a broken snapshot table is told by info, too"
        if ours.code == 0 and "Snapshot table offset" in theirs.err and not image["snapshots"]:
            return "without snapshots nobody asks where their table is"
        if theirs.code == 0 and we("not supported"):
            return "a feature of a later version"
    if what == "check":
        if check_class(theirs) == "cannot" and check_class(ours) == "damaged":
            return "where theirs gives up, ours goes on and counts"
        if image["snapshots"]:
            return "what snapshots refer to is checked more strictly"
    if what == "convert":
        if theirs.code == 0 and we("beyond", "past the end", "lies", "metadata"):
            return "a mapping onto metadata or beyond the end of the file is refused when read"
        if theirs.code == 0 and we("not a table's offset"):
            return "reserved bits in an L1 entry are refused"
        if ours.code == 0 and "pre-v3 image" in theirs.err:
            return "the zero flag is understood in version 2, too"
    return None


def judge(img, qemu_img, image, changes):
    """Compares the verdicts; returns the differences."""
    image.save(Path("."), "a.qcow2")
    both = []

    def ask(what, *argv):
        # qemu-img may die of an assertion; that is no verdict.
        theirs = qemu_img(*argv, code=None, signal_is_fine=True, **LIMITS)
        ours = img(*argv, code=None, memory=256 * MIB, **LIMITS)
        both.append((what, ours, theirs))
        return ours, theirs

    def differ(what, ours, theirs, same):
        if theirs.code < 0 or same or ours_is_right(image, what, ours, theirs):
            return None
        return f"{what} after {changes}:\n{ours!r}\n{theirs!r}"

    ours, theirs = ask("open", "info", "-f", "qcow2", "--output=json", "a.qcow2")
    found = [differ("open", ours, theirs, (ours.code == 0) == (theirs.code == 0))]
    if ours.code == 0 and theirs.code == 0:
        reads = image["size"] <= LARGEST
        ours, theirs = ask("check", "check", "-f", "qcow2", "a.qcow2")
        found.append(differ("check", ours, theirs,
                            theirs.code < 0 or check_class(ours) == check_class(theirs)))
        if reads:
            found.append(converted(img, qemu_img, differ))
    return [text for text in found if text]


def converted(img, qemu_img, differ):
    convert = ["convert", "-f", "qcow2", "-O", "raw", "a.qcow2"]
    theirs = qemu_img(*convert, "theirs.raw", code=None, signal_is_fine=True, **LIMITS)
    ours = img(*convert, "ours.raw", code=None, memory=256 * MIB, **LIMITS)
    same = (ours.code == 0) == (theirs.code == 0)
    if same and ours.code == 0:
        mine, other = Path("ours.raw").read_bytes(), Path("theirs.raw").read_bytes()
        size = struct.unpack_from(">Q", Path("a.qcow2").read_bytes(), HEADER["size"][0])[0]
        if size % 512 and abs(len(mine) - len(other)) <= 512:
            # qemu-img knows whole sectors only
            mine, other = mine[:len(other)], other[:len(mine)]
        same = mine == other
        if not same:
            ours.err += "\nthe bytes differ"
    for name in ("ours.raw", "theirs.raw"):
        if os.path.exists(name):
            os.unlink(name)
    return differ("convert", ours, theirs, same)


def test_mutated_images(img, qemu_img, tmp):
    """As many images as the time allows."""
    seed = os.environ.get("PLATTER_SEED", "1")
    if seed == "random":
        seed = str(random.SystemRandom().randrange(1 << 32))
    until = time.monotonic() + SECONDS
    number, found = 0, []
    while time.monotonic() < until and len(found) < 20:
        rng = random.Random(f"{seed} {number}")
        image = sound(rng)
        changes = [mutate(rng, image) for _ in range(rng.choice([0, 1, 1, 1, 2, 3]))]
        found += [f"PLATTER_SEED={seed}, number {number}: {text}"
                  for text in judge(img, qemu_img, image, changes)]
        number += 1
    print(f"{number} images")
    assert not found, "\n\n".join(found)
