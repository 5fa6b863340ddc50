"""What a user of img sees when another program has the image open."""

import subprocess
import time
from pathlib import Path

import pytest

from platter import MIB


def is_locked(path):
    inode = f":{Path(path).stat().st_ino} "
    return inode in Path("/proc/locks").read_text()


@pytest.fixture
def held(tmp, qemu_img, need_tool):
    """a.raw, which a qemu-io has open for writing until the test ends."""
    Path("a.raw").write_bytes(bytes(range(256)) * 4096)
    holder = subprocess.Popen([need_tool("qemu-io"), "-f", "raw", "a.raw"], stdin=subprocess.PIPE,
                              stdout=subprocess.DEVNULL)
    while not is_locked("a.raw"):
        assert holder.poll() is None
        time.sleep(0.01)
    yield holder
    holder.communicate()


def test_the_sentence_names_the_holder_and_the_way_out(img, held):
    err = img("info", "a.raw", code=1).err
    assert "a.raw" in err and f"qemu-io (process {held.pid})" in err and "-U" in err


def test_shared_reading_is_allowed(img, held):
    assert img("info", "-U", "--output=json", "a.raw").json["virtual-size"] == MIB


@pytest.mark.parametrize("command", [["resize", "-f", "raw", "a.raw", "2M"],
                                     ["create", "-f", "raw", "a.raw", "64k"],
                                     ["convert", "-n", "-f", "raw", "-O", "raw", "b.raw", "a.raw"]],
                         ids=lambda c: c[0])
def test_a_used_image_is_not_touched(img, held, command):
    Path("b.raw").write_bytes(bytes(MIB))
    assert f"qemu-io (process {held.pid})" in img(*command, code=1).err
    assert Path("a.raw").read_bytes() == bytes(range(256)) * 4096
