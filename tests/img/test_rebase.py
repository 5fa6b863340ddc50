"""img rebase against qemu-img: the overlay reads as before, whatever it rests on."""

import random
import shutil
import time

import pytest

from chains import copy_all, failing, make_chain, raw_of, slow, sound
from platter import KIB, MIB, random_content, random_requests, write_sparse


def backing_of(qemu_img, name):
    info = qemu_img("info", "-U", "--output=json", name).json
    return info.get("backing-filename"), info.get("backing-filename-format")


def make_other(qemu_img, qemu_io, rng, like):
    """other.qcow2: some of what `like` holds, some of its own, of any size."""
    shutil.copy("content.raw", "mixed.raw")
    size = rng.choice([MIB, 3 * MIB, 5 * MIB + 512])
    content = bytearray(raw_of(qemu_img, like, "qcow2" if like.endswith("qcow2") else "raw"))
    content = content[:size] + random_content(rng, max(0, size - len(content)), 64 * KIB)
    for _ in range(4):
        at = rng.randrange(size) // 512 * 512
        content[at:at + 4096] = bytes([rng.randrange(2)]) * len(content[at:at + 4096])
    write_sparse("mixed.raw", content)
    qemu_img("convert", "-f", "raw", "-O", "qcow2", "-o", f"cluster_size={rng.choice([512, 4096, 65536])}",
             "mixed.raw", "other.qcow2")


@pytest.mark.parametrize("round", range(8))
@pytest.mark.parametrize("compat", ["1.1", "0.10"])
@pytest.mark.parametrize("form", ["raw", "qcow2"])
def test_reads_as_before(img, qemu_img, qemu_io, tmp, rng, form, compat, round):
    names = make_chain(qemu_img, qemu_io, rng, rng.choice([1, 2, 3, 4]), form, compat)
    top = names[0]
    if top == "0.img":
        if form == "raw":
            pytest.skip("raw has no backing files")
        top = names[0]
    make_other(qemu_img, qemu_io, rng, names[-1])
    before = raw_of(qemu_img, top)
    choice = rng.choice(["other", "none", "chain"])
    new, new_format = {"other": ("other.qcow2", "qcow2"), "none": ("", None),
                       "chain": (names[-1], form if names[-1] == "0.img" else "qcow2")}[choice]
    if new == top:
        new, new_format = "other.qcow2", "qcow2"
    copy_all("theirs")
    qemu_img("rebase", "-f", "qcow2", "-b", new, *(["-F", new_format] if new_format else []), top,
             cwd="theirs", code=(0, 1))
    img("rebase", "-f", "qcow2", "-b", new, *(["-F", new_format] if new_format else []),
        *rng.choice([[], ["-c"]]), top)
    assert raw_of(qemu_img, top) == before
    assert backing_of(qemu_img, top) == (new or None, new_format)
    sound(qemu_img, top)


def test_copies_no_more_than_differs(img, qemu_img, qemu_io, tmp):
    """What both chains hold alike stays where it is."""
    qemu_img("create", "-q", "-f", "qcow2", "base.qcow2", "8M")
    qemu_io("-c", "write -P 1 0 8M", "base.qcow2")
    for name in ("a.qcow2", "b.qcow2"):
        qemu_img("create", "-q", "-f", "qcow2", "-b", "base.qcow2", "-F", "qcow2", name)
    qemu_io("-c", "write -P 2 1M 1M", "-c", "write -P 3 4M 64k", "a.qcow2")
    qemu_io("-c", "write -P 3 4M 64k", "-c", "write -P 4 6M 64k", "b.qcow2")
    qemu_img("create", "-q", "-f", "qcow2", "-b", "a.qcow2", "-F", "qcow2", "top.qcow2")
    img("rebase", "-b", "b.qcow2", "-F", "qcow2", "top.qcow2")
    own = [(e["start"], e["length"]) for e in qemu_img("map", "--output=json", "top.qcow2").json
           if e["depth"] == 0]
    assert own[0][0] == MIB and own[-1] == (6 * MIB, 64 * KIB)
    assert sum(length for _, length in own) == MIB + 64 * KIB


def test_zeroes_hide_the_new_backing_file(img, qemu_img, qemu_io, tmp):
    """An image without a backing file reads as zeroes where it holds nothing, and goes on doing so."""
    qemu_img("create", "-q", "-f", "qcow2", "other.qcow2", "8M")
    qemu_io("-c", "write -P 9 0 8M", "other.qcow2")
    for compat in ("1.1", "0.10"):
        qemu_img("create", "-q", "-f", "qcow2", "-o", f"compat={compat}", "top.qcow2", f"{4 * MIB + 512}")
        qemu_io("-c", "write -P 3 1M 64k", "top.qcow2")
        before = raw_of(qemu_img, "top.qcow2")
        img("rebase", "-b", "other.qcow2", "-F", "qcow2", "top.qcow2")
        assert raw_of(qemu_img, "top.qcow2") == before
        sound(qemu_img, "top.qcow2")


@pytest.mark.parametrize("args", [
    [], ["top.qcow2"], ["-b", "base.qcow2", "top.qcow2"], ["-u", "-b", "none.qcow2", "top.qcow2"],
    ["-u", "-b", "none.qcow2", "-F", "qcow2", "top.qcow2"], ["-b", "none.qcow2", "-F", "qcow2", "top.qcow2"],
    ["-u", "-b", "base.qcow2", "-F", "nosuch", "top.qcow2"], ["-u", "-b", "", "top.qcow2"],
    ["-b", "", "top.qcow2"], ["-b", "", "base.qcow2"], ["-u", "top.qcow2"],
    ["-b", "top.qcow2", "-F", "qcow2", "top.qcow2"], ["-b", "mid.qcow2", "-F", "qcow2", "mid.qcow2"],
    ["-b", "top.qcow2", "-F", "qcow2", "mid.qcow2"],
    ["-u", "-b", "a" * 1023, "-F", "qcow2", "top.qcow2"],
    ["-u", "-b", "a" * 1024, "-F", "qcow2", "top.qcow2"],
    ["-u", "-b", "a" * 600, "-F", "qcow2", "tiny.qcow2"], ["-u", "-b", "b", "-F", "raw", "tiny.qcow2"],
    ["-f", "raw", "-b", "base.qcow2", "-F", "qcow2", "x.raw"],
    ["-f", "raw", "-u", "-b", "base.qcow2", "-F", "qcow2", "x.raw"],
    ["-p", "-b", "base.qcow2", "-F", "qcow2", "top.qcow2"], ["-q", "-b", "", "top.qcow2"],
    ["-U", "-b", "base.qcow2", "-F", "qcow2", "top.qcow2"],
    ["-t", "none", "-T", "none", "-b", "base.qcow2", "-F", "qcow2", "top.qcow2"],
    ["-t", "nosuch", "-b", "", "top.qcow2"], ["-T", "nosuch", "-b", "", "top.qcow2"],
    ["--image-opts", "-b", "base.qcow2", "-F", "qcow2", "driver=qcow2,file.filename=top.qcow2"],
    ["--nosuch", "-b", "", "top.qcow2"], ["-u", "-b", "base.qcow2", "-F", "raw", "old.qcow2"]],
    ids=lambda args: " ".join(a[:12] for a in args) or "none")
def test_options(img, qemu_img, qemu_io, tmp, args):
    qemu_img("create", "-q", "-f", "qcow2", "base.qcow2", "1M")
    qemu_io("-c", "write -P 1 0 1M", "base.qcow2")
    qemu_img("create", "-q", "-f", "raw", "x.raw", "1M")
    qemu_img("create", "-q", "-f", "qcow2", "-b", "base.qcow2", "-F", "qcow2", "mid.qcow2")
    qemu_img("create", "-q", "-f", "qcow2", "-b", "mid.qcow2", "-F", "qcow2", "top.qcow2")
    qemu_img("create", "-q", "-f", "qcow2", "-b", "mid.qcow2", "-F", "qcow2", "-o", "compat=0.10", "old.qcow2")
    qemu_img("create", "-q", "-f", "qcow2", "-o", "cluster_size=512", "tiny.qcow2", "1M")
    for folder in ("theirs", "ours"):
        copy_all(folder)
    theirs = qemu_img("rebase", *args, code=(0, 1), cwd="theirs")
    ours = img("rebase", *args, code=None, cwd="ours")
    assert ours.code == theirs.code, f"{ours}{theirs}"
    assert ours.code == 0 or ours.err.strip()
    for name in ("top.qcow2", "tiny.qcow2", "old.qcow2", "mid.qcow2"):
        assert backing_of(qemu_img, f"ours/{name}") == backing_of(qemu_img, f"theirs/{name}")
        sound(qemu_img, f"ours/{name}")


def test_unsafe_refuses_an_image_on_itself(img, qemu_img, tmp):
    """qemu-img writes the name, and the image does not open any more."""
    qemu_img("create", "-q", "-f", "qcow2", "x.qcow2", "1M")
    img.fails("rebase", "-u", "-b", "x.qcow2", "-F", "qcow2", "x.qcow2")
    assert backing_of(qemu_img, "x.qcow2") == (None, None)


def test_unknown_extensions_stay(img, qemu_img, tmp):
    """Whatever stands in the header beside the backing format is still there."""
    qemu_img("create", "-q", "-f", "qcow2", "-b", "a", "-F", "raw", "-u", "x.qcow2", "1M")
    with open("x.qcow2", "r+b") as file:
        head = bytearray(file.read(4096))
        name = head.index(b"\0\0\0\0\0\0\0\0a")
        extra = b"\x12\x34\x56\x78\0\0\0\5hello\0\0\0"
        head[name:name] = extra
        head[8:16] = (name + len(extra) + 8).to_bytes(8, "big")
        file.seek(0)
        file.write(head[:4096])
    for backing in ("some/much/longer/name.qcow2", "b", ""):
        img("rebase", "-u", "-b", backing, "-F", "qcow2", "x.qcow2")
        assert backing_of(qemu_img, "x.qcow2")[0] == (backing or None)
        head = open("x.qcow2", "rb").read(4096)
        assert head.count(extra) == 1 and b"lazy refcounts" in head
        sound(qemu_img, "x.qcow2")


@pytest.fixture
def overlay(qemu_img, qemu_io, tmp, rng):
    """old.qcow2 under top.qcow2, and new.qcow2. What top.qcow2 reads as."""
    for name in ("old.qcow2", "new.qcow2"):
        qemu_img("create", "-q", "-f", "qcow2", "-o", "cluster_size=4k", name, "8M")
        qemu_io(*random_requests(rng, bytearray(8 * MIB), 64 * KIB, 80), name)
    qemu_img("create", "-q", "-f", "qcow2", "-o", "cluster_size=4k", "-b", "old.qcow2", "-F", "qcow2", "top.qcow2")
    qemu_io(*random_requests(rng, bytearray(8 * MIB), 16 * KIB, 40), "top.qcow2")
    return raw_of(qemu_img, "top.qcow2")


@pytest.mark.parametrize("new", ["new.qcow2", ""])
@pytest.mark.parametrize("round", range(5))
def test_killed(img, qemu_img, overlay, new, round):
    process = img.start("rebase", "-b", new, "-F", "qcow2", slow("top.qcow2", 2000000))
    time.sleep(0.01 + 0.05 * round)
    process.kill()
    process.wait()
    sound(qemu_img, "top.qcow2", leaks=True)
    assert raw_of(qemu_img, "top.qcow2") == overlay
    img("rebase", "-b", new, "-F", "qcow2", "top.qcow2")
    assert raw_of(qemu_img, "top.qcow2") == overlay


@pytest.mark.parametrize("new", ["new.qcow2", ""])
@pytest.mark.parametrize("on", [True, False], ids=["dead", "once"])
def test_failing_disk(img, qemu_img, overlay, new, on):
    seeded = random.Random(2)
    request = 1
    ended = 0
    copy_all("fresh")
    while request < 4000 and ended < 2:
        shutil.copy("fresh/top.qcow2", "top.qcow2")
        result = img("rebase", "-b", new, "-F", "qcow2", failing("top.qcow2", request, on), code=(0, 1))
        ended += result.code == 0
        sound(qemu_img, "top.qcow2", leaks=True)
        assert raw_of(qemu_img, "top.qcow2") == overlay, request
        if result.code == 0:
            assert backing_of(qemu_img, "top.qcow2")[0] == (new or None)
        request += seeded.randrange(1, 1 + request)
    assert ended, "no run came to its end"
