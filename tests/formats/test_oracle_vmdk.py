"""VMDKs made by either tool: all read the same bytes and say the same about them."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from platter import (GIB, KIB, MIB, Tool, includes, random_content, random_requests, same_bytes, same_map,
                     write_sparse)
from vmdkbuild import Sparse, cowd, descriptor, sesparse

from conftest import BIN

GRAIN = 64 * KIB
FLAT = ["monolithicFlat", "twoGbMaxExtentFlat"]
SPARSE = ["monolithicSparse", "twoGbMaxExtentSparse"]
STREAM = "streamOptimized"
ALL = FLAT + SPARSE + [STREAM]


@pytest.fixture
def io():
    """Our exerciser."""
    return Tool(BIN / "io")


def disk_size():
    return 40 * GRAIN + 3 * 512


def read_all(img, qemu_img, image, content):
    for number, tool in enumerate((img, qemu_img)):
        tool("convert", "-O", "raw", image, f"read{number}.raw")
        same_bytes(f"read{number}.raw", content)


def agree(img, qemu_img, image, content):
    """Both tools read content out of image, find it sound, and tell the same about it."""
    read_all(img, qemu_img, image, content)
    checks = [tool("check", "--output=json", image, code=(0, 63)) for tool in (img, qemu_img)]
    assert checks[0].code == 0
    infos = [tool("info", "--output=json", image).json for tool in (img, qemu_img)]
    for info in infos:
        info.pop("actual-size", None)
    includes(infos[0], infos[1])
    same_map(img("map", "--output=json", image).json, qemu_img("map", "--output=json", image).json)


def run(*argv):
    if not shutil.which(argv[0]):
        pytest.skip(f"{argv[0]} is missing")
    return subprocess.run(argv, check=True, capture_output=True).stdout


def seven_zip(image, content):
    """What 7-Zip reads out of a sparse VMDK."""
    out = run("7z", "x", "-so", image)
    assert out == bytes(content)[:len(out)] and len(out) == len(content)


@pytest.mark.parametrize("subformat", ALL)
def test_random_image_of_qemu(img, qemu_img, qemu_io, tmp, rng, subformat):
    content = bytearray(disk_size())
    if subformat == STREAM:  # qemu-io cannot write to one
        content = random_content(rng, disk_size(), GRAIN)
        write_sparse("a.raw", content)
        qemu_img("convert", "-O", "vmdk", "-o", f"subformat={STREAM}", "a.raw", "a.vmdk")
    else:
        qemu_img("create", "-f", "vmdk", "-o", f"subformat={subformat}", "a.vmdk", len(content))
        qemu_io(*random_requests(rng, content, GRAIN, 60), "a.vmdk")
    agree(img, qemu_img, "a.vmdk", content)


@pytest.mark.parametrize("subformat", FLAT + SPARSE)
def test_random_image_of_ours(img, qemu_img, qemu_io, tmp, rng, subformat):
    """Created by us, written by qemu, so that it works on our tables."""
    content = bytearray(disk_size())
    img("create", "-f", "vmdk", "-o", f"subformat={subformat}", "a.vmdk", len(content))
    qemu_io(*random_requests(rng, content, GRAIN, 60), "a.vmdk")
    agree(img, qemu_img, "a.vmdk", content)


@pytest.mark.parametrize("subformat", ALL)
def test_written_by_us(img, io, qemu_img, tmp, rng, subformat):
    content = bytearray(disk_size())
    img("create", "-f", "vmdk", "-o", f"subformat={subformat}", "a.vmdk", len(content))
    io(*random_requests(rng, content, GRAIN, 60), "a.vmdk")
    agree(img, qemu_img, "a.vmdk", content)


@pytest.mark.parametrize("subformat", SPARSE + [STREAM])
def test_zeroed_grains(img, io, qemu_img, tmp, rng, subformat):
    content = bytearray(disk_size())
    img("create", "-f", "vmdk", "-o", f"subformat={subformat},zeroed_grain=on", "a.vmdk",
        len(content))
    io(*random_requests(rng, content, GRAIN, 60), "a.vmdk")
    agree(img, qemu_img, "a.vmdk", content)


@pytest.mark.parametrize("subformat", ALL)
def test_converted_by_us(img, qemu_img, tmp, rng, subformat):
    content = random_content(rng, disk_size(), GRAIN)
    write_sparse("a.raw", content)
    img("convert", "-f", "raw", "-O", "vmdk", "-o", f"subformat={subformat}", "a.raw", "a.vmdk")
    agree(img, qemu_img, "a.vmdk", content)
    assert img("compare", "-f", "raw", "a.raw", "a.vmdk").code == 0


@pytest.mark.parametrize("subformat", ["monolithicSparse", STREAM])
def test_seven_zip_reads_ours(img, tmp, rng, subformat):
    content = random_content(rng, disk_size(), GRAIN)
    write_sparse("a.raw", content)
    img("convert", "-f", "raw", "-O", "vmdk", "-o", f"subformat={subformat}", "a.raw", "a.vmdk")
    seven_zip("a.vmdk", content)


@pytest.mark.parametrize("subformat", ALL)
def test_libvmdk_describes_ours(img, tmp, rng, subformat):
    content = random_content(rng, disk_size(), GRAIN)
    write_sparse("a.raw", content)
    img("convert", "-f", "raw", "-O", "vmdk", "-o", f"subformat={subformat}", "a.raw", "a.vmdk")
    told = run("vmdkinfo", "a.vmdk").decode()
    assert f"({len(content)} bytes)" in told
    info = img("info", "--output=json", "a.vmdk").json["format-specific"]["data"]
    assert f"{info['cid']:x}" in told


def test_extents_of_two_gigabytes(img, io, qemu_img, tmp):
    for tool, name in (img, "a"), (qemu_img, "b"):
        tool("create", "-f", "vmdk", "-o", "subformat=twoGbMaxExtentSparse", f"{name}.vmdk", 5 * GIB)
    lines = [[line for line in Path(f"{name}.vmdk").read_text(errors="replace").splitlines()
              if line.startswith("RW")] for name in "ab"]
    assert lines[0] == [line.replace("b-", "a-") for line in lines[1]]
    io("-c", f"write -P 5 {2 * GIB - 70000} 140000", "a.vmdk")
    assert qemu_img("compare", "a.vmdk", "b.vmdk", code=1)
    for tool in (img, qemu_img):
        tool("convert", "-O", "raw", "a.vmdk", "out.raw")
        with open("out.raw", "rb") as file:
            file.seek(2 * GIB - 70000)
            assert file.read(140001) == b"\5" * 140000 + b"\0"
        os.unlink("out.raw")


OPTIONS = ["adapter_type=lsilogic", "adapter_type=buslogic,hwversion=10", "adapter_type=legacyESX",
           "compat6=on", "hwversion=4", "hwversion=21", "toolsversion=12345", "zeroed_grain=on", ""]


@pytest.mark.parametrize("options", OPTIONS)
def test_descriptor_is_as_qemus(img, qemu_img, tmp, options):
    texts = []
    for tool, name in (qemu_img, "theirs"), (img, "ours"):
        os.mkdir(name)
        tool("create", "-f", "vmdk", *(["-o", options] if options else []), f"{name}/a.vmdk", "3G")
        data = Path(name, "a.vmdk").read_bytes()
        texts.append((data[:512], [line for line in data[512:21 * 512].rstrip(b"\0").splitlines()
                                   if line and not line.startswith(b"CID")]))
    assert texts[0] == texts[1]


@pytest.mark.parametrize("options", [
    "adapter_type=IDE", "compat6=on,hwversion=9", "subformat=monolithicFlat,zeroed_grain=on",
    "hwversion=3", "hwversion=22", "toolsversion=x", "subformat=nonsense", "hwversion=4x"])
def test_create_refuses(img, tmp, options):
    img.fails("create", "-f", "vmdk", "-o", options, "a.vmdk", "1M")
    assert not os.path.exists("a.vmdk")


# ---------------------------------------------------------------- parents

def make_chain(tool, rng, io, flat=False):
    tool("create", "-q", "-f", "vmdk", *(["-o", "subformat=monolithicFlat"] if flat else []),
         "base.vmdk", disk_size())
    content = bytearray(disk_size())
    io(*random_requests(rng, content, GRAIN, 30), "base.vmdk")
    tool("create", "-q", "-f", "vmdk", "-b", "base.vmdk", "-F", "vmdk", "a.vmdk")
    return content


@pytest.mark.parametrize("flat", [False, True])
def test_delta_of_ours(img, io, qemu_img, tmp, rng, flat):
    content = make_chain(img, rng, io, flat)
    io(*random_requests(rng, content, GRAIN, 30), "a.vmdk")
    agree(img, qemu_img, "a.vmdk", content)


def test_delta_of_qemu(img, io, qemu_img, qemu_io, tmp, rng):
    content = make_chain(qemu_img, rng, qemu_io)
    io(*random_requests(rng, content, GRAIN, 30), "a.vmdk")
    agree(img, qemu_img, "a.vmdk", content)


def test_changed_parent_is_refused(img, io, qemu_img, tmp, rng):
    make_chain(img, rng, io)
    io("-c", "write 0 512", "base.vmdk")
    assert "changed" in img.fails("convert", "-O", "raw", "a.vmdk", "out.raw").err
    assert "changed" in io.fails("-c", "read 0 512", "a.vmdk").err
    qemu_img("convert", "-O", "raw", "a.vmdk", "out.raw", code=1)
    io("--image-opts", "-c", "read 0 512", "driver=vmdk,file.filename=a.vmdk,backing.driver=vmdk,"
       "backing.file.filename=base.vmdk")


def test_reading_keeps_the_cid(img, io, tmp):
    img("create", "-f", "vmdk", "a.vmdk", "1M")
    before = Path("a.vmdk").read_bytes()
    io("-c", "read 0 1M", "a.vmdk")
    assert Path("a.vmdk").read_bytes() == before
    io("-c", "write 0 512", "a.vmdk")
    assert Path("a.vmdk").read_bytes()[512:1024] != before[512:1024]


def test_commit(img, io, qemu_img, tmp, rng):
    content = make_chain(img, rng, io)
    io(*random_requests(rng, content, GRAIN, 30), "a.vmdk")
    img("commit", "a.vmdk")
    for name in "base.vmdk", "a.vmdk":
        agree(img, qemu_img, name, content)


def test_what_the_descriptor_says_beyond_stays(img, io, tmp):
    img("create", "-f", "vmdk", "-o", "subformat=monolithicFlat", "a.vmdk", "1M")
    more = b'ddb.uuid = "60 00"\nencoding="UTF-8"\n# by hand\n'
    Path("a.vmdk").write_bytes(Path("a.vmdk").read_bytes() + more)
    io("-c", "write 0 512", "a.vmdk")
    img("resize", "a.vmdk", "3M")
    assert more in Path("a.vmdk").read_bytes()
    assert b"RW 6144 FLAT" in Path("a.vmdk").read_bytes()


# ---------------------------------------------------------------- the kinds of ESX

def grains(rng, count, size):
    return {n: rng.randbytes(size) for n in rng.sample(range(count), count // 3)}


def flatten(count, size, data):
    return b"".join(data.get(n, bytes(size)) for n in range(count))


def test_cowd(img, qemu_img, tmp, rng):
    data = grains(rng, 30, 512)
    Path("x.vmdk").write_bytes(cowd(5000, data, grain=1))
    Path("a.vmdk").write_bytes(descriptor("vmfsSparse", 'RW 5000 VMFSSPARSE "x.vmdk"'))
    agree(img, qemu_img, "a.vmdk", flatten(5000, 512, data))
    img.fails("resize", "a.vmdk", "9M")


def test_sesparse(img, io, qemu_img, tmp, rng):
    data = grains(rng, 5000, 4096)
    rest = [n for n in range(5000) if n not in data]
    Path("x.vmdk").write_bytes(sesparse(5000, data, zero=rest[:9], unmapped=rest[9:20]))
    Path("a.vmdk").write_bytes(descriptor("seSparse", 'RW 40000 SESPARSE "x.vmdk"'))
    agree(img, qemu_img, "a.vmdk", flatten(5000, 4096, data))
    assert "read-only" in io.fails("-c", "write 0 512", "a.vmdk").err


def test_vmfs(img, qemu_img, tmp, rng):
    content = rng.randbytes(MIB)
    Path("x-flat.vmdk").write_bytes(content)
    Path("a.vmdk").write_bytes(descriptor("vmfs", 'RW 2048 VMFS "x-flat.vmdk"'))
    agree(img, qemu_img, "a.vmdk", content)


def test_parts_of_files(img, qemu_img, tmp, rng):
    content = rng.randbytes(MIB)
    Path("x").write_bytes(content)
    Path("a.vmdk").write_bytes(descriptor("monolithicFlat", 'RW 100 FLAT "x" 7',
                                          'RW 50 FLAT "x" 1000'))
    agree(img, qemu_img, "a.vmdk", content[7 * 512:107 * 512] + content[1000 * 512:1050 * 512])


# ---------------------------------------------------------------- streams

def test_stream_is_in_order_and_ends_as_the_specification_says(img, tmp, rng):
    content = random_content(rng, 100 * GRAIN, GRAIN)
    write_sparse("a.raw", content)
    img("convert", "-O", "vmdk", "-o", f"subformat={STREAM}", "-m", "8", "a.raw", "a.vmdk")
    data, at, last, kinds = Path("a.vmdk").read_bytes(), 128 * 512, -1, []
    while at < len(data):
        lba, size, kind = (int.from_bytes(data[at + a:at + b], "little")
                           for a, b in ((0, 8), (8, 12), (12, 16)))
        if size:
            assert lba > last and not kinds
            last, at = lba, at + (12 + size + 511) // 512 * 512
        else:
            kinds.append(kind)
            at += 512 + lba * 512
    assert kinds[-3:] == [2, 3, 0] and set(kinds[:-3]) == {1}


def test_lost_footer_is_found_and_written_again(img, qemu_img, tmp, rng):
    content = random_content(rng, disk_size(), GRAIN)
    write_sparse("a.raw", content)
    img("convert", "-O", "vmdk", "-o", f"subformat={STREAM}", "a.raw", "a.vmdk")
    os.truncate("a.vmdk", os.path.getsize("a.vmdk") - 700)
    assert img("compare", "a.raw", "a.vmdk").code == 0
    assert img("check", "a.vmdk", code=3)
    img("check", "-r", "leaks", "a.vmdk")
    agree(img, qemu_img, "a.vmdk", content)


def test_pieces_that_end_within_grains(img, qemu_img, tmp, rng):
    """Several sources one behind the other do not meet at grains."""
    parts = [rng.randbytes(100 * 512 * n) for n in (1, 3, 2)]
    for number, part in enumerate(parts):
        Path(f"{number}.raw").write_bytes(part)
    img("convert", "-O", "vmdk", "-o", f"subformat={STREAM}", "0.raw", "1.raw", "2.raw", "a.vmdk")
    agree(img, qemu_img, "a.vmdk", b"".join(parts))


@pytest.mark.parametrize("subformat", ALL)
def test_measure_is_enough(img, tmp, rng, subformat):
    content = random_content(rng, disk_size(), GRAIN)
    write_sparse("a.raw", content)
    told = img("measure", "--output=json", "-O", "vmdk", "-o", f"subformat={subformat}", "a.raw").json
    img("convert", "-O", "vmdk", "-o", f"subformat={subformat}", "a.raw", "a.vmdk")
    size = sum(os.path.getsize(name) for name in os.listdir(".") if name.startswith("a")
               and name.endswith(".vmdk") and (name != "a.vmdk" or subformat in (STREAM, SPARSE[0])))
    assert size <= told["required"] <= told["fully-allocated"]


# ---------------------------------------------------------------- resize

@pytest.mark.parametrize("subformat", ["monolithicSparse", "monolithicFlat"])
def test_resize(img, io, qemu_img, tmp, rng, subformat):
    content = bytearray(disk_size())
    img("create", "-f", "vmdk", "-o", f"subformat={subformat}", "a.vmdk", len(content))
    for size in (9 * MIB, 5 * MIB, 70 * MIB, 512 * 9, 20 * MIB):
        io(*random_requests(rng, content, GRAIN, 12), "a.vmdk")
        img("resize", "--shrink", "a.vmdk", size)
        content = content[:size] + bytearray(max(0, size - len(content)))
        agree(img, qemu_img, "a.vmdk", content)


@pytest.mark.parametrize("subformat", ["twoGbMaxExtentSparse", STREAM])
def test_resize_is_refused(img, tmp, subformat):
    img("create", "-f", "vmdk", "-o", f"subformat={subformat}", "a.vmdk", "1M")
    assert "convert" in img.fails("resize", "a.vmdk", "2M").err


def test_empty_and_huge(img, qemu_img, tmp):
    img("create", "-f", "vmdk", "a.vmdk", "4T", timeout=20)
    img("convert", "-O", "vmdk", "-o", f"subformat={STREAM}", "a.vmdk", "b.vmdk", timeout=20)
    assert os.path.getsize("b.vmdk") < MIB
    assert qemu_img("info", "--output=json", "b.vmdk").json["virtual-size"] == 4 << 40


# ---------------------------------------------------------------- damage

def test_check_mends_shared_grains(img, qemu_img, tmp, rng):
    image = Sparse()
    data = rng.randbytes(65536)
    sector = image.grain(0, data)
    image.map(5, sector)
    image.map(7, 0xfffffff0)
    image.map(8, 1)
    image.save(Path("a.vmdk"))
    assert img("check", "a.vmdk", code=2)
    img("check", "-r", "all", "a.vmdk", code=(0, 2, 3))
    img("check", "a.vmdk")
    content = data + bytes(4 * 65536) + data + bytes(10 * 65536)
    agree(img, qemu_img, "a.vmdk", content)


@pytest.mark.parametrize("which", [21, 38])
def test_check_mends_directories(img, io, qemu_img, tmp, rng, which):
    content = bytearray(disk_size())
    qemu_img("create", "-f", "vmdk", "a.vmdk", "100M")
    io("-c", "write -P 7 1M 3M", "a.vmdk")
    with open("a.vmdk", "r+b") as file:
        file.seek(which * 512)
        file.write(b"\xff" * 16)
    img("check", "a.vmdk", code=2)
    io("-r", "-c", "read -P 7 1M 3M", "a.vmdk")
    img("check", "-r", "all", "a.vmdk", code=(0, 2, 3))
    img("check", "a.vmdk")
    for tool in (img, qemu_img):
        tool("check", "a.vmdk")
    io("-c", "read -P 7 1M 3M", "-c", "write -P 8 50M 1M", "-c", "read -P 8 50M 1M", "a.vmdk")


def test_check_gives_leaks_back(img, io, qemu_img, tmp):
    qemu_img("create", "-f", "vmdk", "a.vmdk", "10M")
    io("-c", "write -P 7 0 3M", "a.vmdk")
    data = bytearray(Path("a.vmdk").read_bytes())
    gt = 22 * 512, 27 * 512
    for at in gt:
        data[at + 40:at + 80] = bytes(40)
    Path("a.vmdk").write_bytes(data)
    assert img("check", "a.vmdk", code=3)
    before = os.stat("a.vmdk").st_blocks
    img("check", "-r", "leaks", "a.vmdk")
    img("check", "a.vmdk")
    assert os.stat("a.vmdk").st_blocks <= before - 10 * 128
    io("-c", "read -P 7 0 640k", "-c", "read -P 0 640k 640k", "-c", "read -P 7 1280k 1792k", "a.vmdk")
