"""img amend against qemu-img: what can be changed, what becomes of the image, and what is left when it is
killed or the disk fails."""

import random
import shutil
import time

import pytest

from chains import copy_all, failing, raw_of, slow, sound
from platter import KIB, MIB, random_requests


@pytest.fixture
def image(qemu_img, qemu_io, tmp, rng):
    """Returns a function that makes x.qcow2 of random content, over base.qcow2 if wanted, and says what it
    reads as."""
    def make(options="", backing=True, size=3 * MIB + 512, cluster=64 * KIB, requests=25):
        qemu_img("create", "-q", "-f", "qcow2", "base.qcow2", "2M")
        qemu_io("-c", "write -P 7 0 2M", "base.qcow2")
        over = ["-b", "base.qcow2", "-F", "qcow2"] if backing else []
        qemu_img("create", "-q", "-f", "qcow2", *over, "-o", ",".join(filter(None, [f"cluster_size={cluster}", options])),
                 "x.qcow2", size)
        packed = cluster if size % cluster == 0 and "refcount_bits=1" not in options.split(",") else 0
        qemu_io(*random_requests(rng, bytearray(size), 64 * KIB, requests, packed), "x.qcow2")
        return raw_of(qemu_img, "x.qcow2")
    return make


def specific(qemu_img, name):
    info = qemu_img("info", "--output=json", name).json
    return {key: info.get(key) for key in ("virtual-size", "cluster-size", "backing-filename",
                                           "backing-filename-format", "format-specific", "dirty-flag")}


SEQUENCES = [
    ["compat=0.10"], ["compat=0.10", "compat=1.1"], ["compat=v2", "compat=v3", "compat=v2"],
    ["lazy_refcounts=on", "lazy_refcounts=off"], ["lazy_refcounts=on", "compat=0.10"],
    ["refcount_bits=1"], ["refcount_bits=2", "refcount_bits=64", "refcount_bits=4"], ["refcount_bits=8"],
    ["refcount_bits=64", "compat=0.10"], ["refcount_bits=32", "compat=0.10,refcount_bits=16"],
    ["refcount_bits=7"], ["refcount_bits=0"], ["refcount_bits=128"], ["refcount_bits=x"],
    ["compat=0.10", "refcount_bits=8"], ["compat=0.10", "refcount_bits=8,compat=1.1"],
    ["compat=0.10", "lazy_refcounts=on"], ["compat=0.10,lazy_refcounts=on"],
    ["compat=0.11"], ["compat=1.1"], ["size=8M", "size=1M"], ["size=513"], ["size=x"], ["size=2M,compat=0.10"],
    ["cluster_size=4k"], ["preallocation=full"], ["encryption=on"], ["extended_l2=on"], ["compression_type=zstd"],
    ["encrypt.format=luks"], ["data_file=x"], ["data_file_raw=on"], ["nosuch=1"], ["backing_file=none"],
    ["backing_file=base.qcow2"], ["backing_file=base.qcow2,backing_fmt=qcow2"],
    ["backing_fmt=qcow2"], ["backing_fmt=raw"], ["backing_file="],
    ["compat=0.10,size=8M,refcount_bits=16"], ["lazy_refcounts=on,refcount_bits=64,size=5M"],
]


@pytest.mark.parametrize("backing", [True, False], ids=["overlay", "alone"])
@pytest.mark.parametrize("sequence", SEQUENCES, ids="; ".join)
def test_as_qemu_img_does(img, qemu_img, image, sequence, backing):
    # qemu-img takes seconds to rewrite the counts of large clusters.
    before = image(backing=backing, size=3 * MIB, cluster=4 * KIB if "refcount" in str(sequence) else 64 * KIB)
    for name in ("ours.qcow2", "theirs.qcow2"):
        shutil.copy("x.qcow2", name)
    for options in sequence:
        theirs = qemu_img("amend", "-f", "qcow2", "-o", options, "theirs.qcow2", code=(0, 1))
        ours = img("amend", "-f", "qcow2", "-o", options, "ours.qcow2", code=None)
        assert ours.code == theirs.code, f"{ours}{theirs}"
        assert ours.code == 0 or ours.err.strip()
        assert specific(qemu_img, "ours.qcow2") == specific(qemu_img, "theirs.qcow2")
        assert raw_of(qemu_img, "ours.qcow2") == raw_of(qemu_img, "theirs.qcow2")
        sound(qemu_img, "ours.qcow2")
    if "size" not in str(sequence):
        assert raw_of(qemu_img, "ours.qcow2") == before


@pytest.mark.parametrize("cluster", [512, 4096, 65536])
@pytest.mark.parametrize("backing", [True, False], ids=["overlay", "alone"])
def test_there_and_back(img, qemu_img, qemu_io, image, rng, cluster, backing):
    """Any sequence leaves the content as it is, and an image that can be written."""
    before = bytearray(image(backing=backing, cluster=cluster, size=4 * MIB))
    for _ in range(12):
        option = rng.choice(["compat=1.1", "compat=0.10,refcount_bits=16", "compat=1.1,refcount_bits=64",
                             "compat=1.1,refcount_bits=8", "compat=1.1,lazy_refcounts=on"])
        img("amend", "-o", option, "x.qcow2")
        sound(qemu_img, "x.qcow2")
        assert raw_of(qemu_img, "x.qcow2") == before
        qemu_io(*random_requests(rng, before, 16 * KIB, 5), "x.qcow2")
        sound(qemu_img, "x.qcow2")


def test_a_count_that_does_not_fit(img, qemu_img, image):
    """Compressed clusters share theirs: a count of more than one cannot have one bit."""
    qemu_img("create", "-q", "-f", "qcow2", "plain.qcow2", "1M")
    with open("plain.raw", "wb") as file:
        file.write(b"some text " * 100000)
    qemu_img("convert", "-c", "-O", "qcow2", "-f", "raw", "plain.raw", "x.qcow2")
    before = raw_of(qemu_img, "x.qcow2")
    error = img.fails("amend", "-o", "refcount_bits=1", "x.qcow2").err
    assert "refcount of" in error and "limit" in error
    assert raw_of(qemu_img, "x.qcow2") == before
    sound(qemu_img, "x.qcow2")


def test_growing_an_old_image_with_a_backing_file(img, qemu_img, image):
    """qemu-img cannot: version 2 has no zero clusters. Zeroes are data there."""
    before = image("compat=0.10", size=MIB)
    img("amend", "-o", "size=3M", "x.qcow2")
    assert raw_of(qemu_img, "x.qcow2") == before + bytes(2 * MIB)
    sound(qemu_img, "x.qcow2")


@pytest.mark.parametrize("options", ["data_file=other.raw", "data_file_raw=off", "data_file_raw=on",
                                     "compat=0.10", "lazy_refcounts=on", "refcount_bits=64", "size=8M"])
@pytest.mark.parametrize("raw", ["on", "off"])
def test_an_external_data_file(img, qemu_img, qemu_io, tmp, options, raw):
    qemu_img("create", "-q", "-f", "qcow2", "-o", f"data_file=x.raw,data_file_raw={raw}", "x.qcow2", "4M")
    qemu_io("-c", "write -P 5 0 1M", "-c", "write -z 64k 64k", "-c", "write -P 6 2M 64k", "x.qcow2")
    shutil.copy("x.raw", "other.raw")
    before = raw_of(qemu_img, "x.qcow2")
    for folder in ("theirs", "ours"):
        copy_all(folder)
    theirs = qemu_img("amend", "-o", options, "x.qcow2", code=(0, 1), cwd="theirs")
    ours = img("amend", "-o", options, "x.qcow2", code=None, cwd="ours")
    assert ours.code == theirs.code, f"{ours}{theirs}"
    assert specific(qemu_img, "ours/x.qcow2") == specific(qemu_img, "theirs/x.qcow2")
    assert raw_of(qemu_img, "ours/x.qcow2")[:len(before)] == before


@pytest.mark.parametrize("options", ["refcount_bits=64", "refcount_bits=1", "refcount_bits=4", "size=8M",
                                     "lazy_refcounts=on"])
def test_internal_snapshots_stay(img, qemu_img, qemu_io, image, options):
    before = image(size=3 * MIB)
    for name in ("one", "two"):
        qemu_img("snapshot", "-c", name, "x.qcow2")
        qemu_io("-c", "write -P 9 1M 256k", "x.qcow2")
    shutil.copy("x.qcow2", "theirs.qcow2")
    theirs = qemu_img("amend", "-o", options, "theirs.qcow2", code=(0, 1))
    ours = img("amend", "-o", options, "x.qcow2", code=(0, 1))
    assert ours.code == theirs.code, f"{ours}{theirs}"
    sound(qemu_img, "x.qcow2")
    qemu_img("snapshot", "-a", "one", "x.qcow2")
    assert raw_of(qemu_img, "x.qcow2") == before
    sound(qemu_img, "x.qcow2")


def test_zstd_has_no_way_back(img, qemu_img, image):
    """qemu-img makes an image that nobody can read of it."""
    before = image("compression_type=zstd", size=MIB)
    img.fails("amend", "-o", "compat=0.10", "x.qcow2")
    assert raw_of(qemu_img, "x.qcow2") == before


@pytest.mark.parametrize("args", [
    ["x.qcow2"], ["-o", "help"], ["-f", "qcow2", "-o", "help"], ["-o", "help", "x.qcow2"],
    ["-f", "nosuch", "-o", "help"], ["-f", "raw", "-o", "help"], ["-f", "raw", "-o", "size=2M", "x.raw"],
    ["-o", "size=4M"], ["-o", "size=4M", "x.qcow2", "extra"], ["-o", "size=4M", "none.qcow2"],
    ["-p", "-o", "refcount_bits=8", "x.qcow2"], ["-q", "-o", "refcount_bits=8", "x.qcow2"],
    ["--force", "-o", "compat=v3", "x.qcow2"], ["-t", "none", "-o", "compat=v2", "x.qcow2"],
    ["-t", "nosuch", "-o", "compat=v2", "x.qcow2"], ["--nosuch", "-o", "compat=v2", "x.qcow2"],
    ["-o", "compat=v2", "-o", "lazy_refcounts=off", "x.qcow2"],
    ["--image-opts", "-o", "compat=v2", "driver=qcow2,file.filename=x.qcow2"]], ids=" ".join)
def test_options(img, qemu_img, image, args):
    image()
    qemu_img("create", "-q", "-f", "raw", "x.raw", "1M")
    for folder in ("theirs", "ours"):
        copy_all(folder)
    theirs = qemu_img("amend", *args, code=(0, 1), cwd="theirs")
    ours = img("amend", *args, code=None, cwd="ours")
    assert ours.code == theirs.code, f"{ours}{theirs}"
    assert ours.code == 0 or ours.err.strip()
    assert specific(qemu_img, "ours/x.qcow2") == specific(qemu_img, "theirs/x.qcow2")
    if "help" in args and ours.code == 0:
        theirs_names = {line.split("=")[0] for line in theirs.out.splitlines() if "encrypt." not in line}
        assert theirs_names == {line.split("=")[0] for line in ours.out.splitlines()}


CHANGES = ["compat=0.10", "refcount_bits=1", "refcount_bits=64", "lazy_refcounts=on,refcount_bits=32", "size=9M"]


@pytest.mark.parametrize("options", CHANGES)
@pytest.mark.parametrize("round", range(4))
def test_killed(img, qemu_img, image, options, round):
    before = image(cluster=4096, size=4 * MIB, options="refcount_bits=16")
    process = img.start("amend", "-o", options, slow("x.qcow2", 3000000))
    time.sleep(0.01 + 0.04 * round)
    process.kill()
    process.wait()
    sound(qemu_img, "x.qcow2", leaks=True)
    assert raw_of(qemu_img, "x.qcow2")[:len(before)] == before
    img("check", "-q", "-r", "leaks", "x.qcow2")
    img("amend", "-o", options, "x.qcow2", code=(0, 1))
    assert raw_of(qemu_img, "x.qcow2")[:len(before)] == before
    sound(qemu_img, "x.qcow2")


@pytest.mark.parametrize("on", [True, False], ids=["dead", "once"])
@pytest.mark.parametrize("options", CHANGES)
def test_failing_disk(img, qemu_img, image, options, on):
    before = image(cluster=4096, size=4 * MIB)
    seeded = random.Random(3)
    request, ended = 1, 0
    shutil.copy("x.qcow2", "fresh.qcow2")
    while request < 4000 and ended < 2:
        shutil.copy("fresh.qcow2", "x.qcow2")
        result = img("amend", "-o", options, failing("x.qcow2", request, on), code=(0, 1))
        ended += result.code == 0 or "has a refcount of" in result.err
        sound(qemu_img, "x.qcow2", leaks=True)
        assert raw_of(qemu_img, "x.qcow2")[:len(before)] == before, request
        request += seeded.randrange(1, 2 + request // 4)
    assert ended, "no run came to its end"
