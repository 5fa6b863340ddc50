"""Guests on disks: Debian's kernels through every front end."""

import hashlib
import re
import signal
import subprocess
import time
from pathlib import Path

import pytest

import guests
from disks import DEVICES, checked, drive, file_within, tmp  # noqa: F401  (fixture)
from platter import MIB
from vm import VM


def root_file_system(folder, init, need_tool):
    """An ext4 of busybox whose init is this script."""
    need_tool("debugfs")
    root = folder / "root"
    for name in ("bin", "sbin", "proc", "sys", "dev", "mnt"):
        (root / name).mkdir(parents=True)
    (root / "bin/busybox").write_bytes(guests.busybox().read_bytes())
    (root / "bin/busybox").chmod(0o755)
    (root / "sbin/init").write_text(
        "#!/bin/busybox sh\n/bin/busybox --install -s /bin\nmount -t proc proc /proc\n"
        "mount -o remount,rw /\n" + init)
    (root / "sbin/init").chmod(0o755)
    image = folder / "root.raw"
    with open(image, "wb") as f:
        f.truncate(48 * MIB)
    subprocess.run(["mkfs.ext4", "-q", "-O", "^has_journal", "-d", root, image], check=True)
    return image


def test_the_root_lies_on_a_chain_behind_nvme(tmp, img, need_tool):
    """No initramfs: the kernel itself finds its root; what it writes is in the overlay alone."""
    raw = root_file_system(tmp, "echo was here > /written; sync\n"
                                'echo "MARKER $(uname -r)"; poweroff -f\n', need_tool)
    img("convert", "-f", "raw", "-O", "qcow2", raw, "base.qcow2")
    img("create", "-q", "-f", "qcow2", "-b", "base.qcow2", "-F", "qcow2", "middle.qcow2")
    img("create", "-q", "-f", "qcow2", "-b", "middle.qcow2", "-F", "qcow2", "top.qcow2")
    before = hashlib.sha256(Path("base.qcow2").read_bytes()).digest()
    with VM(tmp, "-m", 512, "-kernel", guests.kernel("trixie"), "-append",
            "console=ttyS0 root=/dev/nvme0n1 rw panic=-1", "-no-reboot",
            *drive("top.qcow2", "qcow2"), *DEVICES["nvme"][0]) as vm:
        vm.wait_for("MARKER 6.12")
        assert vm.wait_end() == 0
    assert hashlib.sha256(Path("base.qcow2").read_bytes()).digest() == before
    checked(img, "top.qcow2")
    img("convert", "-f", "qcow2", "-O", "raw", "top.qcow2", "seen.raw")
    assert file_within("seen.raw", "/written") == b"was here\n"


GUEST = """
for m in {modules}; do insmod /$m; done
for i in 1 2 3 4 5 6 7 8 9; do [ -b {disk} ] || sleep 1; done
mke2fs {disk} 65536 > /dev/null && mount -t ext2 {disk} /root && echo MOUNTED
dd if=/dev/urandom of=/data bs=64k count=48 2> /dev/null
for i in 1 2 3; do cp /data /root/copy$i; done
sync; echo 3 > /proc/sys/vm/drop_caches
for i in 1 2 3; do cmp /data /root/copy$i || echo DIFFERS; done
umount /root; e2fsck.static -fn {disk} > /fsck && echo CLEAN || cat /fsck
mount -t ext2 {disk} /root && sync
echo "SYNCED $(md5sum < /data)"
while :; do dd if=/data of=/root/more bs=4k 2> /dev/null; rm /root/more; sync; done
"""


@pytest.mark.parametrize("device", DEVICES)
def test_synced_data_outlives_a_kill(tmp, img, need_tool, device):
    """mkfs, data that is compared, fsck, sync; then the emulator dies while the guest goes on writing."""
    need_tool("debugfs")
    arguments, disk, modules = DEVICES[device]
    more = {name: guests.module("trixie", name) for name in modules}
    fsck = guests.Suite("bookworm").file("sbin/e2fsck.static", "e2fsck-static")
    ram = guests.initrd(tmp / "initrd", GUEST.format(modules=" ".join(modules), disk=disk),
                        more | {"bin/e2fsck.static": fsck.read_bytes()})
    img("create", "-q", "-f", "qcow2", "disk.qcow2", "64M")
    with VM(tmp, "-m", 512, "-kernel", guests.kernel("trixie"), "-initrd", ram, "-append",
            "console=ttyS0 quiet panic=-1", *drive("disk.qcow2", "qcow2"), *arguments) as vm:
        vm.wait_for("MOUNTED")
        said = vm.wait_for("SYNCED ")
        assert "CLEAN" in said and "DIFFERS" not in said
        checksum = re.match(r"[0-9a-f]{32}", vm.wait_for("-")).group()
        time.sleep(1)
        vm.process.send_signal(signal.SIGKILL)
        vm.process.wait()
    checked(img, "disk.qcow2")
    img("convert", "-f", "qcow2", "-O", "raw", "disk.qcow2", "seen.raw")
    for i in (1, 2, 3):
        assert hashlib.md5(file_within("seen.raw", f"/copy{i}")).hexdigest() == checksum
