"""The other commands of img against qemu-img: exit codes, JSON, and what they leave behind."""

import os
import shutil
from pathlib import Path

import pytest

from platter import (GIB, KIB, MIB, TIB, Tool, includes, random_content, same_bytes, same_map,
                     write_sparse)


@pytest.fixture
def disk(qemu_img, tmp, rng):
    """a.raw, the same as a.qcow2, and b.qcow2 on top of that."""
    content = random_content(rng, 3 * MIB + 512, 64 * KIB)
    write_sparse("a.raw", content)
    qemu_img("convert", "-f", "raw", "-O", "qcow2", "a.raw", "a.qcow2")
    qemu_img("create", "-f", "qcow2", "-b", "a.qcow2", "-F", "qcow2", "b.qcow2", "4M")
    return content


def both(img, qemu_img, *args, code=None):
    """Runs both and insists on the same exit code; for commands that change nothing."""
    theirs = qemu_img(*args, code=code)
    ours = img(*args, code=None)
    assert ours.code == theirs.code, f"{ours}{theirs}"
    assert bool(ours.err.strip()) == bool(theirs.err.strip()) or ours.code == 0, f"{ours}{theirs}"
    return ours, theirs


# ---------------------------------------------------------------- info and map

@pytest.mark.parametrize("args", [["a.raw"], ["-f", "raw", "a.raw"], ["a.qcow2"], ["b.qcow2"],
                                  ["--backing-chain", "b.qcow2"], ["-f", "raw", "a.qcow2"],
                                  ["-U", "a.qcow2"],
                                  ["--image-opts", "driver=qcow2,file.filename=a.qcow2"]],
                         ids=" ".join)
def test_info(img, qemu_img, disk, args):
    ours, theirs = both(img, qemu_img, "info", "--output=json", *args, code=0)
    includes(ours.json, theirs.json)


def test_info_says_the_same_to_people(img, qemu_img, disk):
    """The lines that scripts grep for."""
    for name in ("a.raw", "a.qcow2", "b.qcow2"):
        ours = img("info", name).out.splitlines()
        for line in qemu_img("info", name).out.splitlines():
            assert line in ours, f"missing: {line}\n{ours}"


@pytest.mark.parametrize("args", [
    ["a.qcow2"], ["b.qcow2"], ["-f", "raw", "a.raw"], ["--start-offset=1M", "a.qcow2"],
    ["--max-length=1M", "a.qcow2"], ["-s", "1M", "-l", "64k", "b.qcow2"],
    ["--start-offset=512", "--max-length=512", "b.qcow2"], ["--start-offset=100M", "a.qcow2"]],
    ids=" ".join)
def test_map(img, qemu_img, disk, args):
    ours, theirs = both(img, qemu_img, "map", "--output=json", *args)
    if ours.code == 0:
        same_map(ours.json, theirs.json)


def test_map_for_people(img, qemu_img, disk):
    """The table of what is data; header and rows as scripts split them."""
    for name in ("a.qcow2", "b.qcow2"):
        ours, theirs = (tool("map", name).out.split("\n") for tool in (img, qemu_img))
        assert ours[0].split() == theirs[0].split()
        assert [line.split() for line in ours] == [line.split() for line in theirs]


# ---------------------------------------------------------------- check

def test_check_of_a_sound_image(img, qemu_img, disk):
    ours, theirs = both(img, qemu_img, "check", "--output=json", "b.qcow2", code=0)
    includes(ours.json, theirs.json)
    assert "No errors were found on the image." in img("check", "b.qcow2").out


def test_check_of_raw_is_not_supported(img, qemu_img, disk):
    both(img, qemu_img, "check", "-f", "raw", "a.raw", code=63)


# ---------------------------------------------------------------- compare

@pytest.fixture
def variants(disk, qemu_img, qemu_io):
    """Images equal to a.raw and not."""
    shutil.copy("a.raw", "same.raw")
    shutil.copy("a.raw", "longer.raw")
    os.truncate("longer.raw", len(disk) + MIB)
    other = bytearray(disk)
    other[2 * MIB + 5] ^= 1
    write_sparse("other.raw", other)
    write_sparse("longer-other.raw", bytes(disk) + bytes(512) + b"\1" * 512)
    qemu_img("convert", "-S", "0", "-f", "raw", "-O", "qcow2", "a.raw", "full.qcow2")
    qemu_img("convert", "-c", "-f", "raw", "-O", "qcow2", "a.raw", "small.qcow2")


@pytest.mark.parametrize("strict", [[], ["-s"]], ids=["", "strict"])
@pytest.mark.parametrize("second", ["same.raw", "longer.raw", "other.raw", "longer-other.raw",
                                    "a.qcow2", "b.qcow2", "full.qcow2", "small.qcow2", "none.raw"])
def test_compare(img, qemu_img, variants, second, strict):
    form = "qcow2" if second.endswith("qcow2") else "raw"
    ours, theirs = both(img, qemu_img, "compare", *strict, "-f", "raw", "-F", form, "a.raw", second)
    if ours.code == 1:
        digits = [word for word in theirs.out.replace("!", "").split() if word.isdigit()]
        assert all(word in ours.out for word in digits), f"the place differs\n{ours}{theirs}"
    quiet = img("compare", "-q", *strict, "-f", "raw", "-F", form, "a.raw", second, code=ours.code)
    assert not quiet.out


# ---------------------------------------------------------------- create

@pytest.mark.parametrize("args", [
    ["-f", "raw", "x", "1M"], ["x", "1M"], ["-f", "qcow2", "x", "1M"], ["-f", "qcow2", "x", "0"],
    ["-f", "qcow2", "x", "513"], ["-f", "raw", "x", "513"], ["-f", "qcow2", "x", "1.5G"],
    ["-f", "qcow2", "x", "8E"], ["-f", "qcow2", "x", "63E"], ["-f", "qcow2", "x", "-1"],
    ["-f", "qcow2", "x", "abc"], ["-f", "qcow2", "x", "1Q"], ["-f", "qcow2", "x"], ["-f", "qcow2"],
    ["-f", "nosuch", "x", "1M"], ["-f", "qcow2", "-o", "nosuch=1", "x", "1M"],
    ["-f", "qcow2", "-o", "cluster_size=3k", "x", "1M"],
    ["-f", "qcow2", "-o", "cluster_size=256", "x", "1M"],
    ["-f", "qcow2", "-o", "cluster_size=4M", "x", "1M"],
    ["-f", "qcow2", "-o", "refcount_bits=3", "x", "1M"],
    ["-f", "qcow2", "-o", "refcount_bits=128", "x", "1M"],
    ["-f", "qcow2", "-o", "compat=0.10,refcount_bits=8", "x", "1M"],
    ["-f", "qcow2", "-o", "compat=0.10,lazy_refcounts=on", "x", "1M"],
    ["-f", "qcow2", "-o", "compat=0.10,compression_type=zstd", "x", "1M"],
    ["-f", "qcow2", "-o", "compat=2.0", "x", "1M"],
    ["-f", "qcow2", "-o", "compression_type=lzma", "x", "1M"],
    ["-f", "qcow2", "-o", "preallocation=nosuch", "x", "1M"],
    ["-f", "qcow2", "-o", "size=2M", "x"], ["-f", "qcow2", "-o", "size=2M", "x", "3M"],
    ["-f", "qcow2", "-o", "cluster_size=512", "x", "64T"],
    ["-f", "qcow2", "-b", "a.qcow2", "-F", "qcow2", "x"],
    ["-f", "qcow2", "-b", "a.qcow2", "x"], ["-f", "qcow2", "-b", "none.qcow2", "-F", "qcow2", "x"],
    ["-f", "qcow2", "-b", "none.qcow2", "-F", "qcow2", "x", "1M"],
    ["-f", "qcow2", "-u", "-b", "none.qcow2", "-F", "qcow2", "x", "1M"],
    ["-f", "qcow2", "-u", "-b", "none.qcow2", "-F", "qcow2", "x"],
    ["-f", "qcow2", "-b", "a.raw", "-F", "raw", "-o", "cluster_size=4k,lazy_refcounts=on", "x"],
    ["-f", "qcow2", "-F", "raw", "x", "1M"], ["-f", "raw", "-b", "a.raw", "-F", "raw", "x"],
    ["-f", "raw", "-o", "preallocation=falloc", "x", "1M"],
    ["-f", "raw", "-o", "preallocation=full", "x", "1M"],
    ["-f", "raw", "-o", "preallocation=metadata", "x", "1M"],
    ["-q", "-f", "qcow2", "x", "1M"], ["-f", "qcow2", "x", "1M", "extra"]],
    ids=lambda args: " ".join(args))
def test_create(img, qemu_img, disk, args):
    """Both make it, or neither does; and what both made is alike."""
    results, infos = [], []
    for tool in (qemu_img, img):
        Path("x").unlink(missing_ok=True)
        results.append(tool("create", *args, code=(0, 1)))
        infos.append(qemu_img("info", "--output=json", "x").json if os.path.exists("x") else None)
    theirs, ours = results
    assert ours.code == theirs.code, f"{ours}{theirs}"
    if ours.code:
        assert ours.err.strip()
        assert infos[1] is None, "left a file behind"
    else:
        for info in infos:
            info.pop("actual-size", None)
        assert infos[1] == infos[0]
        if "-q" not in args:
            assert "Formatting" in ours.out


def test_create_over_an_existing_image(img, qemu_img, disk):
    """Creating over a file replaces what it was."""
    img("create", "-f", "qcow2", "a.raw", "1M")
    qemu_img("check", "-f", "qcow2", "a.raw")
    img("create", "-f", "raw", "a.raw", "2M")
    same_bytes("a.raw", bytes(2 * MIB))


def test_failed_create_leaves_the_old_file(img, disk):
    img.fails("create", "-f", "qcow2", "-o", "cluster_size=3k", "a.raw", "1M")
    same_bytes("a.raw", disk)


def test_create_backing_chain_by_relative_names(img, qemu_img, disk):
    os.mkdir("sub")
    img("create", "-f", "qcow2", "-b", "../a.qcow2", "-F", "qcow2", "sub/x.qcow2")
    assert qemu_img("info", "--output=json", "sub/x.qcow2").json["backing-filename"] == "../a.qcow2"
    qemu_img("compare", "a.qcow2", "sub/x.qcow2")


# ---------------------------------------------------------------- resize

@pytest.mark.parametrize("args", [
    ["+1M"], ["8M"], ["+512"], ["+1"], ["-1M"], ["--shrink", "-1M"], ["1M"], ["--shrink", "1M"],
    ["--shrink", "0"], ["--shrink", "-100M"], ["8E"], ["abc"], [], ["+0"],
    ["--preallocation=metadata", "+4M"], ["--preallocation=falloc", "+4M"],
    ["--preallocation=full", "+1M"], ["--preallocation=off", "+1M"],
    ["--preallocation=nosuch", "+1M"]], ids=lambda args: " ".join(args) or "no size")
@pytest.mark.parametrize("form", ["raw", "qcow2"])
def test_resize(img, qemu_img, disk, form, args):
    size = [arg for arg in args if not arg.startswith("--")]
    options = [arg for arg in args if arg.startswith("--")]
    results = []
    for tool, name in ((qemu_img, "theirs"), (img, "ours")):
        shutil.copy(f"a.{form}", name)
        results.append(tool("resize", "-f", form, *options, name, *size, code=(0, 1)))
    theirs, ours = results
    assert ours.code == theirs.code, f"{ours}{theirs}"
    infos = [qemu_img("info", "-f", form, "--output=json", name).json for name in ("ours", "theirs")]
    assert infos[0]["virtual-size"] == infos[1]["virtual-size"]
    qemu_img("compare", "-f", form, "-F", form, "ours", "theirs")
    if form == "qcow2":
        qemu_img("check", "ours")


def test_resize_far_up_and_down_again(img, qemu_img, disk):
    img("resize", "a.qcow2", "2T")
    qemu_img("check", "a.qcow2")
    img("resize", "--shrink", "a.qcow2", len(disk) + 512)
    qemu_img("check", "a.qcow2")
    qemu_img("compare", "-f", "raw", "a.raw", "a.qcow2")


# ---------------------------------------------------------------- dd

@pytest.mark.parametrize("args", [
    [], ["bs=64k"], ["bs=1M", "count=1"], ["bs=512", "skip=10"], ["bs=4k", "skip=3", "count=5"],
    ["skip=100000"], ["count=0"], ["bs=0"], ["bs=x"], ["nosuch=1"], ["bs=1M", "skip=2", "count=9"]],
    ids=lambda args: " ".join(args) or "plain")
@pytest.mark.parametrize("form", ["raw", "qcow2"])
def test_dd(img, qemu_img, disk, form, args):
    """The exit code is qemu-img's, the content what dd promises.

    Not qemu-img's content: with skip= and count= that of 7.2 counts from the start of the input.
    """
    ours, theirs = (tool("dd", "-f", "qcow2", "-O", form, *args, "if=a.qcow2", f"of={name}",
                         code=(0, 1)) for tool, name in ((img, "ours"), (qemu_img, "theirs")))
    assert ours.code == theirs.code, f"{ours}{theirs}"
    if ours.code:
        return
    values = dict(arg.split("=") for arg in args)
    block = {"k": KIB, "M": MIB}.get(values.get("bs", "512")[-1], 1) \
        * int(values.get("bs", "512").rstrip("kM"))
    begin = int(values.get("skip", 0)) * block
    end = begin + int(values["count"]) * block if "count" in values else len(disk)
    qemu_img("convert", "-f", form, "-O", "raw", "ours", "ours.raw")
    same_bytes("ours.raw", disk[begin:end])


# ---------------------------------------------------------------- measure

@pytest.mark.parametrize("args", [
    ["-O", "raw", "--size", "1G"], ["-O", "qcow2", "--size", "1G"], ["-O", "qcow2", "--size", "0"],
    ["-O", "qcow2", "--size", "5T"], ["-O", "qcow2", "-o", "cluster_size=512", "--size", "10G"],
    ["-O", "qcow2", "-o", "cluster_size=2M,refcount_bits=64", "--size", "100G"],
    ["-O", "qcow2", "-o", "preallocation=full", "--size", "1G"],
    ["-O", "qcow2", "-o", "preallocation=metadata", "--size", "1G"],
    ["-O", "qcow2", "-f", "raw", "a.raw"], ["-O", "raw", "a.qcow2"], ["-O", "qcow2", "a.qcow2"],
    ["-O", "qcow2", "b.qcow2"], ["-O", "qcow2", "-o", "cluster_size=4k", "-f", "raw", "a.raw"],
    ["-O", "nosuch", "--size", "1G"], ["-O", "qcow2"], ["-O", "qcow2", "--size", "x"],
    ["-O", "qcow2", "--size", "1G", "a.qcow2"]], ids=" ".join)
def test_measure(img, qemu_img, disk, args):
    ours, theirs = both(img, qemu_img, "measure", "--output=json", *args)
    if ours.code == 0:
        includes(ours.json, theirs.json)


def test_measure_is_enough(img, disk):
    """What convert writes is never more than what measure promised."""
    required = img("measure", "--output=json", "-f", "raw", "-O", "qcow2", "a.raw").json["required"]
    img("convert", "-f", "raw", "-O", "qcow2", "a.raw", "x.qcow2")
    assert os.path.getsize("x.qcow2") <= required


# ---------------------------------------------------------------- bench

@pytest.mark.parametrize("args", [[], ["-d", "1"], ["-d", "128"], ["-s", "64k"],
                                  ["-S", "128k"], ["-o", "1M"], ["-w"], ["-w", "--pattern=65"],
                                  ["-w", "--flush-interval=100"],
                                  ["-w", "--flush-interval=100", "--no-drain"]],
                         ids=lambda args: " ".join(args) or "plain")
def test_bench(img, qemu_img, tmp, args):
    qemu_img("create", "-f", "qcow2", "a.qcow2", "16M")
    result = img("bench", "-c", "200", *args, "-f", "qcow2", "a.qcow2")
    assert "seconds" in result.out
    qemu_img("check", "a.qcow2")
    if "--pattern=65" in args:
        img("convert", "-O", "raw", "a.qcow2", "a.raw")
        same_bytes("a.raw", b"A" * 200 * 4096 + bytes(16 * MIB - 200 * 4096))


# ---------------------------------------------------------------- the large

@pytest.mark.parametrize("size", [16 * TIB, 64 * TIB])
def test_large_and_empty(img, qemu_img, tmp, size):
    img("create", "-f", "qcow2", "a.qcow2", size)
    qemu_img("check", "a.qcow2")
    assert img("info", "--output=json", "a.qcow2").json["virtual-size"] == size
    img("convert", "-O", "qcow2", "a.qcow2", "b.qcow2", timeout=20)
    assert img("map", "--output=json", "b.qcow2", timeout=20).json[-1]["length"] > 0
    img("compare", "a.qcow2", "b.qcow2", timeout=20)


def test_data_at_the_far_end(img, qemu_img, qemu_io, tmp):
    qemu_img("create", "-f", "qcow2", "a.qcow2", 8 * TIB)
    qemu_io("-c", f"write -P 5 {8 * TIB - MIB} 1M", "a.qcow2")
    img("convert", "-O", "qcow2", "a.qcow2", "b.qcow2", timeout=20)
    qemu_img("compare", "a.qcow2", "b.qcow2")
    same_map(img("map", "--output=json", "a.qcow2").json,
             qemu_img("map", "--output=json", "a.qcow2").json)


def test_answers_as_qemu_img_through_a_link(img, tmp):
    """A program that calls qemu-img does not notice."""
    os.symlink(img.path, "qemu-img")
    linked = Tool(Path("qemu-img").absolute())
    assert linked("--version").out.startswith("qemu-img version")
    linked("create", "-q", "-f", "qcow2", "x.qcow2", GIB)
    error = linked.fails("info", "none.qcow2").err
    assert error.startswith("qemu-img: ")
