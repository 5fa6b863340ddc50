"""Disks of guests: how they are plugged in, and what is on them afterwards."""

import os
import subprocess
from pathlib import Path

import pytest

# The options, the disk's name in Linux, the modules that Debian's kernel for clouds wants for it.
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
