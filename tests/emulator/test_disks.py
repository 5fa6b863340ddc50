"""Guests on disks: Debian and its kernels on images of every format, through every front end."""

import hashlib
import os
import re
import signal
import subprocess
import time
from pathlib import Path

import pytest

import debian
import guests
from platter import MIB
from vm import VM

DEVICES = {
    "virtio": (["-device", "virtio-blk-pci,drive=d"], "/dev/vda", ["virtio_blk"]),
    "ahci": (["-device", "ide-hd,drive=d"], "/dev/sda",
             ["scsi_common", "scsi_mod", "libata", "libahci", "ahci", "sd_mod"]),
    "nvme": (["-device", "nvme,drive=d,serial=platter"], "/dev/nvme0n1", []),
}


@pytest.fixture
def tmp(tmp_path):
    """On a disk, since images of whole systems are too large for memory."""
    before = os.getcwd()
    os.chdir(tmp_path)
    yield tmp_path
    os.chdir(before)


def drive(image, fmt, *more):
    return ["-drive", ",".join([f"file={image},format={fmt},if=none,id=d", *more])]


def checked(img, image, fmt="qcow2"):
    """Nothing worse than leaks, which a kill may leave."""
    found = img("check", "--output=json", "-f", fmt, image, code=(0, 3)).json
    assert not found.get("corruptions") and not found["check-errors"]


def file_within(raw, path, offset=0):
    """The content of a file in the ext2 or ext4 that begins there."""
    out = Path("dumped")
    name = f"{raw}?offset={offset}" if offset else raw
    subprocess.run(["debugfs", "-R", f"dump {path} {out}", name], check=True, capture_output=True)
    return out.read_bytes()


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


@pytest.mark.parametrize("fmt, device", [("qcow2", "virtio"), ("vmdk", "ahci"), ("vdi", "nvme"),
                                         ("vhdx", "virtio"), ("qcow2", "ahci"), ("qcow2", "nvme")])
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
