"""Making qcow2 images: every option, as qemu-img makes them; measure says the same numbers."""

import itertools
import json
import os

import pytest

from platter import GIB, KIB, MIB, TIB, allocated, write_sparse

OPTIONS = ["", "compat=0.10", "compat=1.1", "compat=v2", "cluster_size=512", "cluster_size=2M",
           "cluster_size=4k,refcount_bits=1", "refcount_bits=64", "refcount_bits=8",
           "lazy_refcounts=on", "compression_type=zstd", "preallocation=metadata",
           "preallocation=falloc", "preallocation=full", "preallocation=off",
           "cluster_size=512,preallocation=metadata,refcount_bits=64",
           "cluster_size=2M,preallocation=metadata,refcount_bits=2", "compat=0.10,cluster_size=1k",
           "encryption=off,extended_l2=off"]


def facts(tool, path):
    """What info says, but for what two files may differ in."""
    answer = tool("info", "--output=json", path).json
    for key in ("filename", "actual-size", "children"):
        answer.pop(key, None)
    return answer


@pytest.mark.parametrize("size", [0, 1000, 5 * MIB + 512])
@pytest.mark.parametrize("options", OPTIONS)
def test_create(img, qemu_img, tmp, options, size):
    """Same summary, same facts, nothing to complain about, and zeroes inside."""
    argv = ["create", "-f", "qcow2"] + (["-o", options] if options else [])
    ours = img(*argv, "a.qcow2", size)
    theirs = qemu_img(*argv, "b.qcow2", size)
    assert ours.out == theirs.out.replace("b.qcow2", "a.qcow2")
    assert facts(qemu_img, "a.qcow2") == facts(qemu_img, "b.qcow2")
    assert qemu_img("check", "--output=json", "a.qcow2").json["check-errors"] == 0
    checks = [img("check", "--output=json", path).json for path in ("a.qcow2", "b.qcow2")]
    for check in checks:
        for key in ("filename", "image-end-offset", "fragmented-clusters"):
            check.pop(key, None)
    assert checks[0] == checks[1]
    qemu_img("convert", "-f", "qcow2", "-O", "raw", "a.qcow2", "a.raw")
    assert os.path.getsize("a.raw") == -(-size // 512) * 512
    assert not any(open("a.raw", "rb").read())


@pytest.mark.parametrize("cluster, bits, prealloc",
                         itertools.product([512, 4 * KIB, 64 * KIB, 2 * MIB], [1, 4, 16, 64],
                                           ["off", "metadata"]))
def test_written_by_qemu(img, qemu_img, qemu_io, tmp, cluster, bits, prealloc):
    """qemu writes into what we made and finds no fault with it afterwards."""
    img("create", "-f", "qcow2", "-o",
        f"cluster_size={cluster},refcount_bits={bits},preallocation={prealloc}", "a.qcow2", 40 * MIB)
    qemu_io("-c", "write -P 7 1M 3M", "-c", "write -P 8 39M 1M", "-c", "read -P 7 1M 3M",
            "-c", "read -P 8 39M 1M", "-c", "read -P 0 4M 35M", "a.qcow2")
    assert qemu_img("check", "a.qcow2").code == 0
    assert img("check", "a.qcow2").code == 0


@pytest.mark.parametrize("backing", ["base.raw", "x" * 200, "/" + "y" * 900])
@pytest.mark.parametrize("options", ["compat=0.10", "compat=1.1", "cluster_size=2k"])
def test_backing(img, qemu_img, tmp, options, backing):
    argv = ["create", "-f", "qcow2", "-u", "-o", options, "-b", backing, "-F", "raw"]
    ours, theirs = img(*argv, "a.qcow2", "10M"), qemu_img(*argv, "b.qcow2", "10M")
    assert ours.out == theirs.out.replace("b.qcow2", "a.qcow2")
    answer = facts(qemu_img, "a.qcow2")
    assert answer == facts(qemu_img, "b.qcow2")
    assert answer["backing-filename"] == backing and answer["backing-filename-format"] == "raw"


def test_backing_name_wants_room(img, tmp):
    """In a cluster of 512 bytes there is room for a short name, without the feature names."""
    argv = ["create", "-f", "qcow2", "-u", "-o", "cluster_size=512", "-F", "raw", "-b"]
    img(*argv, "x" * 300, "a.qcow2", "10M")
    assert "cluster_size" in img.fails(*argv, "x" * 600, "b.qcow2", "10M").err
    assert "1023" in img.fails("create", "-f", "qcow2", "-u", "-F", "raw", "-b", "x" * 1024,
                               "c.qcow2", "10M").err


@pytest.mark.parametrize("options, word", [
    ("cluster_size=100", "power of two"), ("cluster_size=256", "power of two"),
    ("cluster_size=4M", "power of two"), ("refcount_bits=3", "power of two"),
    ("refcount_bits=128", "power of two"), ("compat=0.10,refcount_bits=8", "compat"),
    ("compat=0.10,lazy_refcounts=on", "compat"), ("compat=0.10,compression_type=zstd", "compat"),
    ("compression_type=lz4", "zlib"), ("preallocation=some", "metadata"), ("compat=4", "1.1"),
    ("extended_l2=on,cluster_size=8k", "16384"), ("data_file=x,compat=0.10", "compat=1.1"),
    ("data_file_raw=on", "data_file"), ("data_file=a.qcow2", "own data file"),
    ("data_file=x,data_file_raw=on,backing_file=b,backing_fmt=raw", "backing_file"),
    ("encryption=on", "later version"), ("encrypt.format=luks", "later version"),
    ("backing_fmt=raw", "backing file"), ("backing_file=b,backing_fmt=raw,preallocation=full",
                                          "preallocation"),
    ("clustersize=64k", "cluster_size")])
def test_refused(img, tmp, options, word):
    """One sentence that names the way out."""
    open("b", "wb").truncate(MIB)
    assert word in img.fails("create", "-f", "qcow2", "-o", options, "a.qcow2", "1M").err


@pytest.mark.parametrize("options, size", [("cluster_size=512", "129G"), ("", "3P"),
                                           ("cluster_size=512,refcount_bits=64,preallocation=metadata",
                                            "128G"), ("cluster_size=2M", "4E")])
def test_too_large(img, tmp, options, size):
    argv = ["-o", options] if options else []
    img.fails("create", "-f", "qcow2", *argv, "a.qcow2", size, memory=64 * MIB)


@pytest.mark.parametrize("options, size", [("cluster_size=512", "128G"), ("", "2P"),
                                           ("cluster_size=2M", "1E"), ("preallocation=metadata", "1T")])
def test_large(img, tmp, options, size):
    argv = ["-o", options] if options else []
    img("create", "-f", "qcow2", *argv, "a.qcow2", size, timeout=10, memory=64 * MIB)
    assert img("check", "a.qcow2", timeout=20).code == 0


def test_preallocation_takes_space(img, tmp):
    for how in ("off", "metadata", "falloc", "full"):
        img("create", "-f", "qcow2", "-o", f"preallocation={how}", f"{how}.qcow2", "16M")
    sizes = {how: os.path.getsize(f"{how}.qcow2") for how in ("off", "metadata", "falloc", "full")}
    assert sizes["off"] < MIB and all(sizes[how] > 16 * MIB for how in ("metadata", "falloc", "full"))
    assert allocated("off.qcow2") < MIB and allocated("metadata.qcow2") < MIB
    assert allocated("falloc.qcow2") >= 16 * MIB and allocated("full.qcow2") >= 16 * MIB


def test_full_disk_leaves_no_image(img, qemu_img, tmp):
    """The header comes last: what could not be finished is not an image."""
    img.fails("create", "-f", "qcow2", "-o", "preallocation=metadata", "a.qcow2", "10G",
              file_size=MIB)
    assert qemu_img("info", "-f", "qcow2", "a.qcow2", code=None).code != 0


@pytest.mark.parametrize("options", ["", "cluster_size=512", "cluster_size=2M", "refcount_bits=64",
                                     "refcount_bits=1", "preallocation=metadata",
                                     "preallocation=full", "compat=0.10",
                                     "cluster_size=512,refcount_bits=64"])
@pytest.mark.parametrize("size", [0, 512, MIB, GIB, 1000001024, 100 * GIB, TIB])
def test_measure_size(img, qemu_img, tmp, options, size):
    argv = ["measure", "--output=json", "-O", "qcow2", "--size", size]
    argv += ["-o", options] if options else []
    theirs = qemu_img(*argv, code=(0, 1))
    ours = img(*argv, code=(0, 1))
    assert ours.code == theirs.code
    if theirs.code == 0:
        ours, theirs = ours.json, theirs.json
        assert [ours[key] for key in ("required", "fully-allocated")] == \
            [theirs[key] for key in ("required", "fully-allocated")]


@pytest.mark.parametrize("options", ["", "cluster_size=512", "cluster_size=2M",
                                     "preallocation=falloc"])
def test_measure_source(img, qemu_img, qemu_io, tmp, rng, options):
    """Of raw, qcow2, compressed and layered sources."""
    content = bytearray(10 * MIB)
    for _ in range(12):
        at = rng.randrange(len(content) - 300 * KIB)
        length = rng.randrange(1, 300 * KIB)
        content[at:at + length] = rng.randbytes(length)
    write_sparse("a.raw", content)
    qemu_img("convert", "-O", "qcow2", "a.raw", "a.qcow2")
    qemu_img("convert", "-c", "-O", "qcow2", "a.raw", "c.qcow2")
    qemu_img("create", "-f", "qcow2", "-b", "a.qcow2", "-F", "qcow2", "top.qcow2")
    qemu_io("-c", "write 0 64k", "-c", "write 3M 100k", "-c", "write -z 5M 1M", "top.qcow2")
    qemu_img("create", "-f", "qcow2", "-o", "preallocation=metadata", "p.qcow2", "10M")
    for source in ("a.raw", "a.qcow2", "c.qcow2", "top.qcow2", "p.qcow2"):
        argv = ["measure", "--output=json", "-O", "qcow2"] + (["-o", options] if options else [])
        ours, theirs = img(*argv, source).json, qemu_img(*argv, source).json
        assert [ours[key] for key in ("required", "fully-allocated")] == \
            [theirs[key] for key in ("required", "fully-allocated")], f"{source} {json.dumps(ours)}"
