"""OpenStack's own parser of qemu-img's output (oslo.utils) reads the same from img."""

import pytest

from platter import KIB, MIB, random_content, write_sparse


@pytest.fixture
def parse(need_tool):
    try:
        from oslo_utils import imageutils
    except ImportError:
        need_tool("python3-oslo.utils")

    def fields(text, form):
        known = imageutils.QemuImgInfo(text, format=form)
        return {key: value for key, value in vars(known).items()}
    return fields


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("form", ["human", "json"])
@pytest.mark.parametrize("name", ["a.raw", "a.qcow2", "top.qcow2", "small.qcow2", "sub/top.qcow2"])
def test_oslo_utils(img, qemu_img, tmp, rng, parse, form, name):
    write_sparse("a.raw", random_content(rng, 3 * MIB, 64 * KIB))
    qemu_img("convert", "-f", "raw", "-O", "qcow2", "a.raw", "a.qcow2")
    qemu_img("convert", "-c", "-f", "raw", "-O", "qcow2", "a.raw", "small.qcow2")
    (tmp / "sub").mkdir()
    for place in ("", "sub/"):
        qemu_img("create", "-f", "qcow2", "-u", "-b", "a.qcow2", "-F", "qcow2", f"{place}top.qcow2", "4M")
    ours, theirs = (parse(tool("info", f"--output={form}", name).out, form) for tool in (img, qemu_img))
    assert ours == theirs
    assert ours["virtual_size"] in (3 * MIB, 4 * MIB)
