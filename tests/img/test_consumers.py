"""What well-known consumers of qemu-img read out of its answers is there.

Each test states what the consumer looks at, as it does so.
"""

import json

import pytest

from platter import MIB, write_sparse


@pytest.fixture
def images(img, tmp):
    write_sparse("base.raw", b"\1" * MIB)
    img("convert", "-f", "raw", "-O", "qcow2", "base.raw", "base.qcow2")
    img("create", "-f", "qcow2", "-b", "base.qcow2", "-F", "qcow2", "top.qcow2", "2M")


def test_oslo_utils_image_info(img, images):
    """QemuImgInfo(format='json') of OpenStack takes these keys, and int() of the sizes."""
    info = json.loads(img("info", "--output=json", "--force-share", "top.qcow2").out)
    assert info["filename"] == "top.qcow2"
    assert info["format"] == "qcow2"
    assert int(info["virtual-size"]) == 2 * MIB
    assert int(info["actual-size"]) > 0
    assert int(info["cluster-size"]) == 65536
    assert info["backing-filename"] == "base.qcow2"
    assert info["backing-filename-format"] == "qcow2"
    assert info.get("snapshots", []) == []
    assert not info.get("encrypted", False)
    data = info["format-specific"]["data"]
    assert info["format-specific"]["type"] == "qcow2" and not data.get("data-file")


def test_oslo_utils_human_info(img, images):
    """Its parser of the text splits lines at ':' and reads the size in parentheses."""
    fields = {}
    for line in img("info", "top.qcow2").out.splitlines():
        if ":" in line and not line.startswith(" "):
            key, _, value = line.partition(":")
            fields[key.strip().lower().replace(" ", "_")] = value.strip()
    assert fields["image"] == "top.qcow2"
    assert fields["file_format"] == "qcow2"
    assert fields["virtual_size"].split("(")[1] == f"{2 * MIB} bytes)"
    assert fields["disk_size"]
    assert fields["cluster_size"] == "65536"
    assert fields["backing_file"].startswith("base.qcow2")


def test_libvirt_style_chain(img, images):
    """virt-install and virt-clone walk the chain by --backing-chain -U."""
    chain = json.loads(img("info", "-U", "--backing-chain", "--output=json", "top.qcow2").out)
    assert [layer["filename"] for layer in chain] == ["top.qcow2", "base.qcow2"]
    assert chain[0]["full-backing-filename"] == "base.qcow2"
    assert "backing-filename" not in chain[1]


def test_packer_command_lines(img, images):
    """packer's qemu builder runs exactly these."""
    img("create", "-f", "qcow2", "disk", "40960M")
    img("create", "-f", "qcow2", "-b", "base.qcow2", "-F", "qcow2", "disk2", "40960M")
    img("resize", "-f", "qcow2", "disk", "50000M")
    img("convert", "-c", "-O", "qcow2", "top.qcow2", "out.convert")
    assert json.loads(img("info", "--output=json", "disk").out)["virtual-size"] == 50000 * MIB


def test_check_as_backup_tools_read_it(img, images):
    """They take the exit code, and these keys if there are any."""
    answer = json.loads(img("check", "--output=json", "top.qcow2").out)
    assert answer["filename"] == "top.qcow2" and answer["format"] == "qcow2"
    assert answer["check-errors"] == 0
    for key in ("image-end-offset", "total-clusters"):
        assert isinstance(answer[key], int)
    assert "corruptions" not in answer and "leaks" not in answer


def test_measure_as_ovirt_reads_it(img, images):
    """oVirt sizes its volumes by "required"."""
    answer = json.loads(img("measure", "--output=json", "-O", "qcow2", "top.qcow2").out)
    assert answer["required"] > 0 and answer["fully-allocated"] >= answer["required"]


def test_map_as_imageio_reads_it(img, images):
    """start, length, zero, data and depth of every run; together they cover the disk."""
    at = 0
    for entry in json.loads(img("map", "--output=json", "top.qcow2").out):
        assert entry["start"] == at and entry["length"] > 0
        assert isinstance(entry["zero"], bool) and isinstance(entry["data"], bool)
        assert isinstance(entry["depth"], int) and isinstance(entry["present"], bool)
        at += entry["length"]
    assert at == 2 * MIB
