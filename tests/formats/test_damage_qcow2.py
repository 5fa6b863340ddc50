"""Images damaged on purpose: check and repair find and do the same as qemu-img's."""

import shutil

import pytest

from platter import KIB, MIB, random_content, write_sparse
from qcow2edit import COMPRESSED, COPIED, OFFSET, Qcow2

# Past the end of these small files. qemu-img repairs by counting every cluster up to there, so no
# further than it can bear; test_repair_of_far_pointers goes further with ours alone.
BEYOND = 1 << 24


def tail(q):
    """Appends a cluster to the file; its number."""
    q.file.seek(0, 2)
    end = -(-q.file.tell() // q.cluster) * q.cluster
    q.write(end, bytes(q.cluster))
    return end // q.cluster


def leaked_cluster(q):
    q.set_refcount(tail(q), 1)


def refcount_too_high(q):
    q.set_refcount((q.data()[3][2] & OFFSET) // q.cluster, 2)


def refcount_zero(q):
    q.set_refcount((q.data()[3][2] & OFFSET) // q.cluster, 0)


def refcount_of_l2_zero(q):
    q.set_refcount(q.l2_table(q.data()[0][0]) // q.cluster, 0)


def refcount_of_header_zero(q):
    q.set_refcount(0, 0)


def two_own_one_cluster(q):
    (_, _, first), (_, at, _) = q.data()[:2]
    q.put64(at, first)


def data_unaligned(q):
    _, at, entry = q.data()[2]
    q.put64(at, entry + 512)


def data_beyond_the_end(q):
    q.put64(q.data()[2][1], BEYOND | COPIED)


def data_on_header(q):
    q.put64(q.data()[2][1], COPIED)


def data_on_l1(q):
    q.put64(q.data()[2][1], q["l1_offset"] | COPIED)


def data_on_refcount_table(q):
    q.put64(q.data()[2][1], q["refcount_table_offset"] | COPIED)


def data_reserved_bits(q):
    _, at, entry = q.data()[2]
    q.put64(at, entry | 1 << 58)


def copied_missing(q):
    _, at, entry = q.data()[2]
    q.put64(at, entry & ~COPIED)


def copied_on_shared(q):
    _, at, entry = q.data()[2]
    q.set_refcount((entry & OFFSET) // q.cluster, 2)
    q.put64(at, entry | COPIED)


def entries_forgotten(q):
    for _, at, _ in q.data()[:5]:
        q.put64(at, 0)


def l1_forgotten(q):
    q.put64(q.l1_at(0), 0)


def l1_unaligned(q):
    q.put64(q.l1_at(0), q.u64(q.l1_at(0)) + 512)


def l1_beyond_the_end(q):
    q.put64(q.l1_at(0), BEYOND | COPIED)


def l1_copied_missing(q):
    q.put64(q.l1_at(0), q.u64(q.l1_at(0)) & ~COPIED)


def l1_on_header(q):
    q.put64(q.l1_at(0), COPIED | q["l1_offset"])


def l2_on_itself(q):
    table = q.l2_table(0)
    q.put64(table, table | COPIED)


def refcount_block_missing(q):
    q.put64(q["refcount_table_offset"], 0)


def refcount_block_unaligned(q):
    q.put64(q["refcount_table_offset"], q.u64(q["refcount_table_offset"]) + 512)


def refcount_block_beyond_the_end(q):
    q.put64(q["refcount_table_offset"], BEYOND)


def refcount_block_on_data(q):
    q.put64(q["refcount_table_offset"], q.data()[1][2] & OFFSET)


def refcount_block_all_ones(q):
    block = q.refcount_block(0)
    q.write(block, b"\xff" * q.cluster)


def refcount_block_all_zero(q):
    q.write(q.refcount_block(0), bytes(q.cluster))


def compressed_beyond_the_end(q):
    at, entry = next((at, entry) for _, at, entry in q.mapped() if entry & COMPRESSED)
    q.put64(at, entry + min(BEYOND, 1 << 50))


def compressed_twice(q):
    entries = [(at, entry) for _, at, entry in q.mapped() if entry & COMPRESSED]
    q.put64(entries[1][0], entries[0][1])


def marked_corrupt(q):
    q["incompatible"] = q["incompatible"] | 2


def marked_dirty(q):
    q["incompatible"] = q["incompatible"] | 1


DAMAGES = [leaked_cluster, refcount_too_high, refcount_zero, refcount_of_l2_zero,
           refcount_of_header_zero, two_own_one_cluster, data_unaligned, data_beyond_the_end,
           data_on_header, data_on_l1, data_on_refcount_table, data_reserved_bits, copied_missing,
           copied_on_shared, entries_forgotten, l1_forgotten, l1_unaligned, l1_beyond_the_end,
           l1_copied_missing, l1_on_header, l2_on_itself, refcount_block_missing,
           refcount_block_unaligned, refcount_block_beyond_the_end, refcount_block_on_data,
           refcount_block_all_ones, refcount_block_all_zero, compressed_beyond_the_end,
           compressed_twice, marked_corrupt, marked_dirty]

GEOMETRIES = {"64k-r16": (64 * KIB, 16), "4k-r1": (4 * KIB, 1), "512-r64": (512, 64)}
# One bit cannot count to two.
CASES = [pytest.param(geometry, damage, id=f"{damage.__name__}-{geometry}")
         for damage in DAMAGES for geometry in GEOMETRIES
         if geometry != "4k-r1" or damage not in (refcount_too_high, copied_on_shared)]


@pytest.fixture
def beyond(monkeypatch):
    monkeypatch.setattr(__name__ + ".BEYOND", 1 << 54)


@pytest.fixture
def damaged(qemu_img, qemu_io, tmp, geometry, damage):
    """An image with some of everything in it, and then the damage."""
    cluster, width = GEOMETRIES[geometry]
    size = 24 * cluster
    qemu_img("create", "-f", "qcow2", "-o", f"cluster_size={cluster},refcount_bits={width}",
             "a.qcow2", size)
    qemu_io("-c", f"write -P 1 0 {10 * cluster}", "-c", f"write -z {12 * cluster} {2 * cluster}",
            *[word for n in (15, 16, 17) for word in
              ("-c", f"write -c -P {n} {n * cluster} {cluster}")],
            "-c", f"write -P 9 {20 * cluster} {cluster}", "a.qcow2")
    with Qcow2("a.qcow2") as q:
        damage(q)
    return "a.qcow2"


# The exit codes of a check, from sound over leaks and corruptions to "could not even look".
BADNESS = {0: 0, 3: 1, 2: 2, 1: 3, 63: 3}


def verdict(result, more_fixed=0):
    """The part of a check's answer that is a promise to programs; more_fixed is added to it."""
    if not result.out.strip():
        return result.code, None
    answer = result.json
    answer["corruptions-fixed"] = answer.get("corruptions-fixed", 0) + more_fixed
    return result.code, {key: answer.get(key, 0) for key in (
        "check-errors", "corruptions", "leaks", "corruptions-fixed", "leaks-fixed",
        "total-clusters", "allocated-clusters", "compressed-clusters")}


def check(tool, path, *options, **limits):
    return tool("check", "--output=json", *options, path, code=(0, 1, 2, 3, 63), **limits)


def content_of(tool, path):
    """What the image reads as, or None if it cannot be read whole."""
    out = f"{path}.raw"
    result = tool("convert", "-O", "raw", path, out, code=(0, 1))
    if result.code:
        return None
    with open(out, "rb") as file:
        return file.read()


@pytest.mark.parametrize("geometry, damage", CASES)
def test_check_agrees(img, qemu_img, damaged):
    before = open(damaged, "rb").read()
    ours = check(img, damaged)
    assert open(damaged, "rb").read() == before, "a check without -r wrote to the image"
    assert verdict(ours) == verdict(check(qemu_img, damaged)), f"{ours}"


@pytest.mark.parametrize("geometry, damage", CASES)
@pytest.mark.parametrize("repair", ["leaks", "all"])
def test_repair_agrees(img, qemu_img, damaged, damage, repair):
    """Both repair a copy each; what is left is judged by both, and reads the same.

    Where qemu-img gives up in the middle we may well come to an end. And where a refcount block lies
    beyond the end it counts, and fixes, that place as one more cluster.
    """
    for copy in ("ours", "theirs"):
        shutil.copy(damaged, copy)
    ours = check(img, "ours", "-r", repair)
    theirs = check(qemu_img, "theirs", "-r", repair)
    left = [check(qemu_img, copy).code for copy in ("ours", "theirs")]
    assert BADNESS[left[0]] <= BADNESS[left[1]], f"our repair left more to do\n{ours}{theirs}"
    again = check(img, "ours")
    assert again.code == left[0], f"we and qemu-img judge our repair differently\n{again}"
    if theirs.code != 1:
        phantom = damage is refcount_block_beyond_the_end and repair == "all"
        assert verdict(ours, phantom) == verdict(theirs), f"{ours}{theirs}"
        if left == [0, 0]:
            assert content_of(qemu_img, "ours") == content_of(qemu_img, "theirs")


@pytest.mark.parametrize("number", range(30))
def test_random_damage(img, qemu_img, tmp, rng, number):
    """Random bits of metadata turn over: no crash, and no repair that reads worse than before."""
    write_sparse("a.raw", random_content(rng, 2 * MIB, 64 * KIB))
    cluster = rng.choice([512, 4 * KIB, 64 * KIB])
    qemu_img("convert", *rng.choice([[], ["-c"]]), "-f", "raw", "-O", "qcow2",
             "-o", f"cluster_size={cluster}", "a.raw", "a.qcow2")
    with Qcow2("a.qcow2") as q:
        places = [(at, length) for name, at, length in q.structures() if name != "header"]
        for _ in range(rng.randrange(1, 8)):
            at, length = rng.choice(places)
            spot = at + rng.randrange(min(length, 512))
            q.write(spot, bytes([q.read(spot, 1)[0] ^ 1 << rng.randrange(8)]))
    shutil.copy("a.qcow2", "theirs")
    ours, theirs = check(img, "a.qcow2"), check(qemu_img, "a.qcow2")
    assert ours.code == theirs.code, f"{ours}{theirs}"
    img("convert", "-O", "raw", "a.qcow2", "b.raw", code=(0, 1))
    check(img, "a.qcow2", "-r", "all", timeout=20)
    # qemu-img counts cluster by cluster up to where the furthest pointer leads, for hours if need be.
    done = qemu_img("check", "-r", "all", "theirs", code=None, timeout=10, signal_is_fine=True)
    if done.code >= 0:
        left = [check(qemu_img, copy).code for copy in ("a.qcow2", "theirs")]
        assert BADNESS[left[0]] <= BADNESS[left[1]]


@pytest.mark.parametrize("geometry", GEOMETRIES)
@pytest.mark.parametrize("damage", [data_beyond_the_end, l1_beyond_the_end,
                                    refcount_block_beyond_the_end, compressed_beyond_the_end],
                         ids=lambda damage: damage.__name__)
def test_repair_of_far_pointers(img, beyond, damaged):
    """A pointer 2^54 bytes away costs neither hours nor all memory."""
    check(img, damaged, "-r", "all", memory=256 * MIB, timeout=20)
    check(img, damaged, memory=256 * MIB, timeout=20)
