"""Debian 12 with GRUB in the MBR, on images of every format that guests write to."""

import os
import signal

import pytest

import debian
import guests
from disks import DEVICES, checked, drive, file_within, tmp  # noqa: F401  (fixture)
from vm import VM


# A minute each: one always, all with PLATTER_ALL=1 (tests/night).
PAIRS = [("qcow2", "virtio"), ("vmdk", "ahci"), ("vdi", "nvme"), ("vhdx", "virtio")]


@pytest.mark.parametrize("fmt, device", PAIRS if os.environ.get("PLATTER_ALL") else PAIRS[:1])
def test_debian_boots_to_its_login(tmp, img, need_tool, fmt, device):
    """SeaBIOS, GRUB in the MBR, Debian's kernel and initramfs, to the login on the serial line. What root writes is
    seen through img, as the file of a partition."""
    if not os.path.exists("/usr/share/seabios/bios-256k.bin"):
        guests.missing("SeaBIOS is missing")
    image = f"disk.{fmt}"
    if fmt == "qcow2":
        img("create", "-q", "-f", fmt, "-b", debian.disk(img), "-F", "qcow2", image)
    else:
        img("convert", "-f", "qcow2", "-O", fmt, debian.disk(img), image)
    with VM(tmp, "-m", 512, *drive(image, fmt), *DEVICES[device][0]) as vm:
        vm.wait_for("platter login: ", 300)
        vm.type("root\n")
        vm.wait_for("root@platter:~# ", 60)
        vm.type("echo of $((6*7)) > /root/answer && sync && echo DO'NE'\n")
        vm.wait_for("DONE", 60)
        vm.process.send_signal(signal.SIGTERM)
        vm.process.wait(30)
    if fmt == "qcow2":
        checked(img, image)
    mounted = tmp / "mounted"
    mounted.mkdir()
    need_tool("fusermount3")
    img("mount", "-f", fmt, image, mounted)
    try:
        names = sorted(os.listdir(mounted))
        part = next(mounted / name for name in names if name.endswith("1"))
        assert file_within(part, "/root/answer") == b"of 42\n"
    finally:
        img("umount", mounted)
