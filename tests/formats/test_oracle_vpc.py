"""VHD images made by either tool: qemu-img, libvhdi, 7-Zip and we read the same bytes; what others write we read."""

import struct
import subprocess
from pathlib import Path

import pytest

from batbuild import FILL, FREE, Footer, Header, Vhd
from platter import (GIB, KIB, MIB, TIB, Tool, includes, random_content, random_requests,
                     same_bytes, same_map, write_sparse)

VPC = ("-f", "vpc")


@pytest.fixture
def io(img):
    """Our io."""
    return Tool(Path(img.path).parent / "io")


@pytest.fixture
def seven(need_tool):
    """What 7-Zip reads out of an image."""
    tool = Tool(need_tool("7z"))

    def read(image):
        return tool("e", "-y", "-so", image, text=False).out
    return read


@pytest.fixture
def libvhdi(need_tool, tmp_path):
    """What libvhdi reads out of an image; without FUSE nothing is asked."""
    mount = Tool(need_tool("vhdimount"))
    place = tmp_path / "mounted"
    place.mkdir()

    def read(image):
        if mount(image, place, code=None).code:
            pytest.skip("vhdimount cannot mount here")
        try:
            return (place / "vhdi1").read_bytes()
        finally:
            subprocess.run(["umount", place], check=True)
    return read


def footer(path):
    return Footer(Path(path).read_bytes()[-512:])


def agree(img, qemu_img, image, content, *readers):
    content = bytes(content)
    for number, tool in enumerate((img, qemu_img)):
        tool("convert", *VPC, "-O", "raw", image, f"read{number}.raw")
        same_bytes(f"read{number}.raw", content)
    for reader in readers:
        assert reader(image) == content
    img("check", *VPC, image)
    infos = [tool("info", *VPC, "--output=json", image).json for tool in (img, qemu_img)]
    includes(infos[0], infos[1])


# ---------------------------------------------------------------- the same bytes

@pytest.mark.parametrize("subformat", ["dynamic", "fixed"])
@pytest.mark.parametrize("ours", [False, True], ids=["theirs", "ours"])
def test_written_by_both(img, io, qemu_img, qemu_io, seven, libvhdi, tmp, rng, ours, subformat):
    options = f"subformat={subformat},force_size=on"
    content = bytearray(13 * MIB + 512)
    (img if ours else qemu_img)("create", *VPC, "-o", options, "a.vhd", len(content))
    for tool in (qemu_io, io, qemu_io, io):
        tool(*VPC, *random_requests(rng, content, MIB, 15), "a.vhd")
        agree(img, qemu_img, "a.vhd", content, seven, libvhdi)


@pytest.mark.parametrize("subformat", ["dynamic", "fixed"])
def test_converted_by_us(img, qemu_img, seven, libvhdi, tmp, rng, subformat):
    content = random_content(rng, 9 * MIB + 512, 300 * KIB)
    write_sparse("a.raw", content)
    img("convert", "-f", "raw", "-O", "vpc", "-o", f"force_size=on,subformat={subformat}", "a.raw",
        "a.vhd")
    agree(img, qemu_img, "a.vhd", content, seven, libvhdi)
    if subformat == "dynamic":
        same_map(img("map", "--output=json", "a.vhd").json,
                 qemu_img("map", "--output=json", "a.vhd").json)


@pytest.mark.parametrize("block", [4 * KIB, 512 * KIB, 8 * MIB])
def test_block_sizes(img, io, qemu_img, libvhdi, tmp, rng, block):
    content = bytearray(24 * MIB + 512)
    img("create", *VPC, "-o", f"block_size={block},force_size=on", "a.vhd", len(content))
    io(*random_requests(rng, content, block, 30), "a.vhd")
    agree(img, qemu_img, "a.vhd", content)


# ---------------------------------------------------------------- sizes

SIZES = [512, 1000, 34816, MIB, 10 * MIB, 100 * MIB, 1000000000, 504 * MIB + 512, 2 * GIB - 512,
         4 * GIB, 31 * GIB + 5120, 100 * GIB, 127 * GIB, 128 * GIB, TIB, 2040 * GIB]


@pytest.mark.parametrize("force", ["on", "off"])
@pytest.mark.parametrize("size", SIZES)
def test_sizes_are_those_of_qemu(img, qemu_img, tmp, size, force):
    for tool, name in ((img, "o.vhd"), (qemu_img, "t.vhd")):
        tool("create", *VPC, "-o", f"force_size={force}", name, size)
    ours, theirs = footer("o.vhd"), footer("t.vhd")
    for field in ("size", "original_size", "cylinders", "heads", "sectors", "creator", "type",
                  "features", "version", "header_offset"):
        assert ours[field] == theirs[field], field
    ours, theirs = (Header(Path(name).read_bytes()[512:1536]) for name in ("o.vhd", "t.vhd"))
    for field in ("table_offset", "entries", "block_size", "version", "next"):
        assert ours[field] == theirs[field], field


@pytest.mark.parametrize("creator", [b"vpc ", b"vs  ", b"qemu", b"qem2", b"win ", b"d2v ", b"tap\0",
                                     b"CTXS", b"xxxx"])
@pytest.mark.parametrize("calc", ["auto", "chs", "current_size"])
def test_whose_size_counts(img, qemu_img, tmp, creator, calc):
    """Virtual PC means cylinders, heads and sectors, Hyper-V the number."""
    image = Vhd(blocks=8)
    image.footer["size"] = 10 * MIB
    for field, value in (("creator", creator), ("cylinders", 301), ("heads", 4), ("sectors", 17)):
        image.footer[field] = value
    image.save(tmp)
    option = "" if calc == "auto" else f"force_size_calc={calc},"
    name = f"driver=vpc,{option}file.filename=a.vhd"
    sizes = [tool("info", "--output=json", "--image-opts", name).json["virtual-size"]
             for tool in (img, qemu_img)]
    assert sizes[0] == sizes[1]


def test_align_size(img, qemu_img, tmp):
    """Azure takes fixed images of whole MiB."""
    img("create", *VPC, "-o", "subformat=fixed,align_size=1M", "a.vhd", 3000000)
    assert Path("a.vhd").stat().st_size == 3 * MIB + 512
    assert qemu_img("info", *VPC, "--output=json", "a.vhd").json["virtual-size"] == 3 * MIB
    for bad in ("align_size=1000", "align_size=2T", "subformat=other"):
        img.fails("create", *VPC, "-o", bad, "b.vhd", "1M")
    img.fails("create", *VPC, "b.vhd", 2041 * GIB)
    assert not Path("b.vhd").exists()


def test_empty_huge_image_is_quick(img, qemu_img, tmp):
    img("create", *VPC, "a.vhd", "2T", code=1)
    img("create", *VPC, "a.vhd", "2040G")
    img("convert", "-O", "vpc", "a.vhd", "b.vhd", timeout=20, memory=256 * MIB)
    assert qemu_img("info", "--output=json", "b.vhd").json["virtual-size"] == 2040 * GIB


@pytest.mark.parametrize("subformat", ["dynamic", "fixed"])
@pytest.mark.parametrize("sizes", [(20 * MIB, 6 * MIB), (40 * GIB, 300 * GIB, 3 * MIB)])
def test_resized(img, qemu_img, seven, tmp, rng, subformat, sizes):
    content = random_content(rng, 8 * MIB, 256 * KIB)
    write_sparse("a.raw", content)
    img("convert", "-f", "raw", "-O", "vpc", "-o", f"force_size=on,subformat={subformat}", "a.raw",
        "a.vhd")
    for size in sizes:
        img("resize", *VPC, "--shrink", "a.vhd", size)
        assert qemu_img("info", *VPC, "--output=json", "a.vhd").json["virtual-size"] == size
        img("check", *VPC, "a.vhd")
        content = bytes(content[:size]) + bytes(max(0, min(size, 24 * MIB) - len(content)))
        if size < GIB:
            agree(img, qemu_img, "a.vhd", content, seven)


# ---------------------------------------------------------------- probing

def test_fixed_is_never_guessed(img, qemu_img, tmp):
    """Neither by us nor by qemu: what stands at the end of a disk may be the guest's."""
    img("create", *VPC, "-o", "subformat=fixed", "a.vhd", "1M")
    for tool in (img, qemu_img):
        assert tool("info", "--output=json", "a.vhd").json["format"] == "raw"
    img("create", *VPC, "b.vhd", "1M")
    for tool in (img, qemu_img):
        assert tool("info", "--output=json", "b.vhd").json["format"] == "vpc"


# ---------------------------------------------------------------- bitmaps and parents

def test_sector_bitmap_counts(img, libvhdi, tmp):
    """A sector whose bit is not set was never written; writing it sets the bit."""
    Vhd(bits=0).save(tmp)
    img("convert", "-O", "raw", "a.vhd", "a.raw")
    assert not any(Path("a.raw").read_bytes())
    Tool(Path(img.path).parent / "io")("-c", "write -P 9 4k 700", "a.vhd")
    img("convert", "-O", "raw", "a.vhd", "a.raw")
    content = bytearray(8 * MIB)
    content[4096:4796] = b"\x09" * 700
    same_bytes("a.raw", content)
    assert Path("a.vhd").read_bytes()[2048:2050] == b"\0\xc0"
    img("check", "a.vhd")


def chain(img, io, rng):
    content = random_content(rng, 6 * MIB, 256 * KIB)
    write_sparse("a.raw", content)
    img("convert", "-f", "raw", "-O", "vpc", "-o", "force_size=on", "a.raw", "base.vhd")
    img("create", *VPC, "-b", "base.vhd", "-F", "vpc", "mid.vhd")
    io(*random_requests(rng, content, 512, 10), "mid.vhd")
    img("create", *VPC, "-b", "mid.vhd", "-F", "vpc", "top.vhd")
    io(*random_requests(rng, content, MIB, 10), "top.vhd")
    return content


def test_differencing(img, io, seven, tmp, rng):
    """qemu reads zeroes instead of the parent; 7-Zip and we read the parent."""
    content = chain(img, io, rng)
    img("convert", "-O", "raw", "top.vhd", "b.raw")
    same_bytes("b.raw", content)
    assert seven("top.vhd") == bytes(content)
    img("check", "top.vhd")
    assert img("info", "--output=json", "top.vhd").json["backing-filename"] == "mid.vhd"
    img("commit", "top.vhd")
    img("convert", "-O", "raw", "mid.vhd", "b.raw")
    same_bytes("b.raw", content)


@pytest.mark.parametrize("name", [r".\sub\p.vhd", "./sub/p.vhd", r"sub\p.vhd"])
def test_relative_names_of_parents(img, tmp, name):
    Path("sub").mkdir()
    Vhd().save("sub", "p.vhd")
    image = Vhd(kind=4, entries=())
    image.header["parent_uuid"] = b"V" * 16
    stated = name.encode("utf-16-le")
    image.header.locator(3, b"W2ru", len(stated), 2048)
    image.more[2048] = stated
    image.save(tmp)
    img("convert", "-O", "raw", "a.vhd", "a.raw")
    assert Path("a.raw").read_bytes()[:2 * MIB] == bytes([FILL]) * (2 * MIB)
    assert "--follow" in img.fails("--follow=none", "convert", "-O", "raw", "a.vhd", "b.raw").err


@pytest.mark.parametrize("name", [r"C:\VMs\p.vhd", r"\\server\share\p.vhd"])
def test_absolute_names_of_parents_mean_beside(img, tmp, name):
    Vhd().save(tmp, "p.vhd")
    image = Vhd(kind=4, entries=())
    image.header["parent_uuid"] = b"V" * 16
    stated = name.encode("utf-16-le")
    image.header.locator(0, b"W2ku", len(stated), 2048)
    image.more[2048] = stated
    image.save(tmp)
    img("convert", "-O", "raw", "a.vhd", "a.raw")
    assert Path("a.raw").read_bytes()[:2 * MIB] == bytes([FILL]) * (2 * MIB)


def test_changed_parent_is_told(img, tmp):
    Vhd().save(tmp, "p.vhd")
    img("create", *VPC, "-b", "p.vhd", "-F", "vpc", "a.vhd")
    image = Path("p.vhd").read_bytes()
    end = Footer(image[-512:], time=12345).signed()
    Path("p.vhd").write_bytes(end + image[512:-512] + end)
    # its own time was 0, which says nothing; one that says something is compared
    head = bytearray(Path("a.vhd").read_bytes())
    header = Header(head[512:1536], parent_time=777).signed()
    Path("a.vhd").write_bytes(head[:512] + header + head[1536:])
    assert "time stamp" in img("convert", "-O", "raw", "a.vhd", "a.raw").err


# ---------------------------------------------------------------- damage

def mended(img, errors, leaks):
    found = img("check", *VPC, "--output=json", "a.vhd", code=2 if errors else 3).json
    assert (found.get("corruptions", 0), found.get("leaks", 0)) == (errors, leaks)
    img("check", *VPC, "-r", "all", "a.vhd", code=0)
    img("check", "a.vhd")
    img("convert", "-O", "raw", "a.vhd", "a.raw")
    return Path("a.raw").read_bytes()


def test_lost_footer_is_restored(img, qemu_img, seven, tmp):
    image = Vhd()
    image.end = False
    image.save(tmp)
    content = mended(img, 0, 1)
    agree(img, qemu_img, "a.vhd", content, seven)
    assert Path("a.vhd").read_bytes()[-512:] == image.footer.signed()


def test_lost_copy_is_restored(img, io, qemu_img, seven, tmp):
    image = Vhd()
    image.copy = False
    image.save(tmp)
    assert "check" in io.fails(*VPC, "-c", "write 0 512", "a.vhd").err
    content = mended(img, 1, 0)
    agree(img, qemu_img, "a.vhd", content, seven)
    assert Path("a.vhd").read_bytes()[:512] == image.footer.signed()


def test_crossed_entries_get_their_own(img, qemu_img, seven, tmp):
    Vhd(entries=(4, 4)).save(tmp)
    content = mended(img, 1, 0)
    assert content == bytes([FILL]) * (4 * MIB) + bytes(4 * MIB)
    agree(img, qemu_img, "a.vhd", content, seven)


def test_entry_beyond_the_file_is_cleared(img, qemu_img, seven, tmp):
    Vhd(entries=(4, 0x7fffffff)).save(tmp)
    content = mended(img, 1, 0)
    agree(img, qemu_img, "a.vhd", content, seven)
    assert struct.unpack(">I", Path("a.vhd").read_bytes()[1540:1544])[0] == FREE


def test_leaks_are_given_back(img, qemu_img, seven, tmp):
    """The first and the third block are in use; the place of the second is not."""
    image = Vhd(entries=(4, 4 + 4097, 4 + 2 * 4097))
    image.save(tmp)
    data = bytearray(Path("a.vhd").read_bytes())
    data[1540:1544] = b"\xff" * 4
    Path("a.vhd").write_bytes(data)
    content = mended(img, 0, 1)
    agree(img, qemu_img, "a.vhd", content, seven)
    assert Path("a.vhd").stat().st_size == 2048 + 2 * (512 + 2 * MIB) + 512
