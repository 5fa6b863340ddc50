"""rebase of overlays in the formats of others: they state which parent it was, and the new one is it."""

import os
from pathlib import Path

import pytest

from platter import KIB, MIB, Tool, random_content, random_requests, same_bytes, write_sparse

SIZE = 6 * MIB
FORMATS = ["vmdk", "vdi", "vpc"]


@pytest.fixture(params=FORMATS)
def overlay(request, img, tmp, rng):
    """o.img over a.img, and a second base b.img that differs in places; the overlay's content."""
    fmt, io = request.param, Tool(Path(img.path).parent / "io")
    content = random_content(rng, SIZE, 200 * KIB)
    for name in ("a", "b"):
        write_sparse(f"{name}.raw", content)
        options = ["-o", "force_size=on"] if fmt == "vpc" else []
        img("convert", "-f", "raw", "-O", fmt, *options, f"{name}.raw", f"{name}.img")
        os.unlink(f"{name}.raw")
    other = bytearray(content)
    io("-f", fmt, *random_requests(rng, other, 64 * KIB, 10), "b.img")
    img("create", "-f", fmt, "-b", "a.img", "-F", fmt, "o.img")
    io("-f", fmt, *random_requests(rng, content, 64 * KIB, 20), "o.img")
    return fmt, content


def reads_as(img, fmt, name, content):
    img("convert", "-f", fmt, "-O", "raw", name, "out.raw")
    same_bytes("out.raw", content)
    img("check", "-f", fmt, name)


def backing(img, name):
    return img("info", "--output=json", name).json.get("backing-filename")


def test_other_parent(img, overlay):
    fmt, content = overlay
    img("rebase", "-f", fmt, "-b", "b.img", "-F", fmt, "o.img")
    assert backing(img, "o.img") == "b.img"
    os.unlink("a.img")
    reads_as(img, fmt, "o.img", content)


def test_and_back(img, overlay):
    fmt, content = overlay
    for name in ("b.img", "a.img", "b.img"):
        img("rebase", "-f", fmt, "-b", name, "-F", fmt, "o.img")
        reads_as(img, fmt, "o.img", content)


def test_no_parent(img, qemu_img, overlay):
    fmt, content = overlay
    if fmt == "vpc":  # others would read what was never written
        assert "convert" in img.fails("rebase", "-f", fmt, "-b", "", "o.img").err
        reads_as(img, fmt, "o.img", content)
        return
    img("rebase", "-f", fmt, "-b", "", "o.img")
    assert backing(img, "o.img") is None
    for name in ("a.img", "b.img"):
        os.unlink(name)
    reads_as(img, fmt, "o.img", content)
    qemu_img("convert", "-f", fmt, "-O", "raw", "o.img", "theirs.raw")
    same_bytes("theirs.raw", content)


def test_unsafe(img, overlay):
    """The parent was renamed: it is the same one."""
    fmt, content = overlay
    os.rename("a.img", "c.img")
    img("rebase", "-u", "-f", fmt, "-b", "c.img", "-F", fmt, "o.img")
    assert backing(img, "o.img") == "c.img"
    reads_as(img, fmt, "o.img", content)


def test_qemu_reads_it(img, qemu_img, overlay):
    fmt, content = overlay
    if fmt != "vmdk":
        pytest.skip("qemu-img has parents in VMDK only")
    for name in ("b.img", "a.img"):
        qemu_img("convert", "-f", fmt, "-O", "raw", "o.img", "theirs.raw")
        same_bytes("theirs.raw", content)
        img("rebase", "-f", fmt, "-b", name, "-F", fmt, "o.img")


def test_parent_gained(img, overlay):
    """An image without a parent gets one: what it does not hold is the parent's."""
    fmt, content = overlay
    img("create", "-f", fmt, *(["-o", "force_size=on"] if fmt == "vpc" else []), "n.img", SIZE)
    img("rebase", "-u", "-f", fmt, "-b", "a.img", "-F", fmt, "n.img")
    img("compare", "-f", fmt, "-F", fmt, "a.img", "n.img")
    img("check", "-f", fmt, "n.img")


def test_refused(img, overlay):
    fmt, content = overlay
    img("create", "-f", "qcow2", "q.img", SIZE)
    for argv in (["-b", "q.img", "-F", "qcow2"], ["-u", "-b", "q.img", "-F", "qcow2"],
                 ["-u", "-b", "nowhere.img", "-F", fmt], ["-u", "-b", "o.img", "-F", fmt]):
        img.fails("rebase", "-f", fmt, *argv, "o.img")
        reads_as(img, fmt, "o.img", content)


def test_long_name(img, overlay):
    """Whether there is room for it or not, the image stays readable."""
    fmt, content = overlay
    name = "l" * 200 + ".img"
    os.link("a.img", name)
    code = img("rebase", "-u", "-f", fmt, "-b", name, "-F", fmt, "o.img", code=(0, 1)).code
    if fmt != "vdi":  # which looks for a UUID, and both files have it
        assert backing(img, "o.img") == ("a.img" if code else name)
    reads_as(img, fmt, "o.img", content)


@pytest.mark.parametrize("on", ["off", "on"])
def test_each_request_fails(img, overlay, on):
    """In turn, once and from there on: it rests on the one name or the other, and reads the same."""
    fmt, content = overlay
    whole = Path("o.img").read_bytes()
    os.link("a.img", "c.img")
    for number in range(1, 60):
        Path("o.img").write_bytes(whole)
        graph = (f"driver={fmt},file.driver=blkdebug,file.fail-request={number},file.fail-errno=5,"
                 f"file.fail-on={on},file.image.driver=file,file.image.filename=o.img")
        result = img("rebase", "-u", "-b", "c.img", "-F", fmt, "--image-opts", graph, code=(0, 1))
        img("convert", "-f", fmt, "-O", "raw", "o.img", "out.raw")
        same_bytes("out.raw", content)
        img("check", "-f", fmt, "o.img", code=(0, 3))
        if result.code == 0 and number > 10:
            break
    else:
        assert False, "too many requests"
