"""qcow2 images made by either tool: both read the same bytes and say the same about them."""

from pathlib import Path

import pytest

from platter import (KIB, MIB, includes, random_content, random_requests, same_bytes, same_map,
                     write_sparse)

CLUSTERS = [512 << n for n in range(13)]
WIDTHS = [1, 2, 4, 8, 16, 32, 64]


def variants():
    """All cluster sizes and all refcount widths, paired so that the list stays short."""
    for number, cluster in enumerate(CLUSTERS):
        yield cluster, "1.1", WIDTHS[number % 7], ("zlib", "zstd")[number % 2]
        yield cluster, "1.1", WIDTHS[(number + 3) % 7], ("zstd", "zlib")[number % 2]
        yield cluster, "0.10", 16, "zlib"


def label(variant):
    cluster, compat, width, compression = variant
    return f"{cluster}-v{compat}-r{width}-{compression}"


def options(variant, **more):
    cluster, compat, width, compression = variant
    pairs = {"compat": compat, "cluster_size": cluster} | more
    if compat != "0.10":
        pairs |= {"refcount_bits": width, "compression_type": compression}
    return ",".join(f"{key}={value}" for key, value in pairs.items())


def disk_size(cluster):
    """Some tables of small clusters, not too many bytes of large ones, and a broken end."""
    return min(max(40 * cluster, 1 * MIB), 12 * MIB) + 3 * 512


def agree(img, qemu_img, image, content):
    """Both tools read content out of image, find it sound, and tell the same about it."""
    for number, tool in enumerate((img, qemu_img)):
        tool("convert", "-O", "raw", image, f"read{number}.raw")
        same_bytes(f"read{number}.raw", content)
    checks = [tool("check", "--output=json", image).json for tool in (img, qemu_img)]
    includes(checks[0], checks[1])
    infos = [tool("info", "--output=json", image).json for tool in (img, qemu_img)]
    includes(infos[0], infos[1])
    same_map(img("map", "--output=json", image).json, qemu_img("map", "--output=json", image).json)


@pytest.mark.parametrize("variant", variants(), ids=label)
def test_random_image_of_qemu(img, qemu_img, qemu_io, tmp, rng, variant):
    cluster = variant[0]
    content = bytearray(disk_size(cluster))
    qemu_img("create", "-f", "qcow2", "-o", options(variant), "a.qcow2", len(content))
    qemu_io(*random_requests(rng, content, cluster, 60, compressed=cluster), "a.qcow2")
    agree(img, qemu_img, "a.qcow2", content)


@pytest.mark.parametrize("variant", variants(), ids=label)
def test_random_image_of_ours(img, qemu_img, qemu_io, tmp, rng, variant):
    """Created by us, written by qemu, so that it works on our tables."""
    cluster = variant[0]
    content = bytearray(disk_size(cluster))
    img("create", "-f", "qcow2", "-o", options(variant), "a.qcow2", len(content))
    qemu_io(*random_requests(rng, content, cluster, 60, compressed=cluster), "a.qcow2")
    agree(img, qemu_img, "a.qcow2", content)


@pytest.mark.parametrize("compress", [False, True], ids=["plain", "compressed"])
@pytest.mark.parametrize("variant", variants(), ids=label)
def test_converted_by_us(img, qemu_img, tmp, rng, variant, compress):
    cluster = variant[0]
    content = random_content(rng, disk_size(cluster), cluster)
    write_sparse("a.raw", content)
    img("convert", *(["-c"] if compress else []), "-f", "raw", "-O", "qcow2",
        "-o", options(variant), "a.raw", "a.qcow2")
    agree(img, qemu_img, "a.qcow2", content)
    assert img("compare", "-f", "raw", "a.raw", "a.qcow2").code == 0
    assert qemu_img("compare", "-f", "raw", "a.raw", "a.qcow2").code == 0


@pytest.mark.parametrize("preallocation", ["metadata", "falloc", "full"])
@pytest.mark.parametrize("cluster", [512, 64 * KIB, 2 * MIB])
def test_preallocated_by_us(img, qemu_img, tmp, cluster, preallocation):
    size = disk_size(cluster)
    img("create", "-f", "qcow2", "-o", f"cluster_size={cluster},preallocation={preallocation}",
        "a.qcow2", size)
    agree(img, qemu_img, "a.qcow2", bytes(size))
    assert qemu_img("check", "--output=json", "a.qcow2").json["allocated-clusters"] \
        == -(-size // cluster)


@pytest.mark.parametrize("ours", [False, True], ids=["theirs", "ours"])
@pytest.mark.parametrize("number", range(6))
def test_chain(img, qemu_img, qemu_io, tmp, rng, number, ours):
    """Overlays of other sizes and cluster sizes, in other folders, over a raw or qcow2 base."""
    maker = img if ours else qemu_img
    base_format = rng.choice(["raw", "qcow2"])
    content = random_content(rng, rng.randrange(1, 8) * 512 * KIB + 512, 64 * KIB)
    write_sparse("base.raw", content)
    Path("sub").mkdir()
    below, below_format = "base.raw", "raw"
    if base_format == "qcow2":
        maker("convert", "-f", "raw", "-O", "qcow2", "base.raw", "base.qcow2")
        below, below_format = "base.qcow2", "qcow2"
    for layer in range(3):
        path = f"sub/{layer}.qcow2" if layer else "top0.qcow2"
        name = below if layer == 0 else ("../top0.qcow2" if layer == 1 else Path(below).name)
        size = max(len(content) + rng.choice([0, 512 * KIB, -512 * KIB + 512]), 512)
        cluster = rng.choice([512, 4 * KIB, 64 * KIB, MIB])
        maker("create", "-f", "qcow2", "-b", name, "-F", below_format,
              "-o", f"cluster_size={cluster}", path, size)
        content = content[:size] + bytes(max(0, size - len(content)))
        qemu_io(*random_requests(rng, content, cluster, 12), path)
        agree(img, qemu_img, path, content)
        chains = [tool("info", "--backing-chain", "--output=json", path).json
                  for tool in (img, qemu_img)]
        includes(chains[0], chains[1])
        below, below_format = path, "qcow2"


@pytest.mark.parametrize("feature", ["lazy_refcounts=on", "extended_l2=off", "compat=v3",
                                     "compat=v2", "cluster_size=128k"])
def test_create_options(img, qemu_img, tmp, feature):
    for tool, path in ((img, "ours"), (qemu_img, "theirs")):
        tool("create", "-f", "qcow2", "-o", feature, path, "10M")
    ours, theirs = (qemu_img("info", "--output=json", path).json for path in ("ours", "theirs"))
    for key in ("virtual-size", "cluster-size", "format-specific", "dirty-flag"):
        assert ours[key] == theirs[key]


def test_zero_clusters_hide_the_backing_file(img, qemu_img, qemu_io, tmp):
    write_sparse("base.raw", b"\xaa" * MIB)
    qemu_img("create", "-f", "qcow2", "-b", "base.raw", "-F", "raw", "a.qcow2")
    qemu_io("-c", "write -z 128k 128k", "-c", "write -z -u 512k 64k", "a.qcow2")
    content = bytearray(b"\xaa" * MIB)
    content[128 * KIB:256 * KIB] = bytes(128 * KIB)
    content[512 * KIB:576 * KIB] = bytes(64 * KIB)
    agree(img, qemu_img, "a.qcow2", content)


def test_dirty_image_of_a_killed_writer_reads(img, qemu_img, qemu_io, tmp):
    """Lazy refcounts: the process ends without a close, and refcounts are behind."""
    qemu_img("create", "-f", "qcow2", "-o", "lazy_refcounts=on", "a.qcow2", "4M")
    qemu_io("-c", "write -P 7 1M 1M", "-c", "abort", "a.qcow2", code=None, signal_is_fine=True)
    content = bytearray(4 * MIB)
    content[MIB:2 * MIB] = b"\x07" * MIB
    assert qemu_img("info", "--output=json", "a.qcow2").json["dirty-flag"]
    img("convert", "-O", "raw", "a.qcow2", "a.raw")
    same_bytes("a.raw", content)
    img("check", "-r", "all", "a.qcow2", code=(0,))
    qemu_img("check", "a.qcow2")
    agree(img, qemu_img, "a.qcow2", content)
