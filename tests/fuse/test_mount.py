"""img mount: images as files, read and written by the programs that people have."""

import os
import shutil
import subprocess
import tempfile
from pathlib import Path

import pytest
from fusetools import mount, mounted, nbd, run  # noqa: F401  (fixtures)
from platter import MIB, allocated, random_content, same_bytes, write_sparse
from tables import LINUX, write_gpt
from test_partitions import disk, put

FORMATS = ["raw", "qcow2", "vmdk", "vhdx"]
PARTS = [(2048, 34815, "boot", LINUX), (40960, 106495, "root/fs", LINUX)]


def writable(img, fmt):
    if fmt not in img("help").out.split("Supported formats:")[1].split():
        pytest.skip(f"no {fmt} yet")
    return fmt


@pytest.fixture
def gpt(img, tmp):
    """gpt(format): an image with two partitions, d.FORMAT."""
    def make(fmt="qcow2"):
        write_gpt(disk("d.raw"), 64 * MIB, PARTS)
        if fmt != "raw":
            img("convert", "-f", "raw", "-O", writable(img, fmt), "d.raw", f"d.{fmt}")
        return f"d.{fmt}"
    return make


def test_what_is_shown(gpt, mount):
    m = mount(gpt())
    assert sorted(os.listdir(m.where)) == ["by-guid", "by-label", "disk", "p1", "p2"]
    assert [(m / name).stat().st_size for name in ("disk", "p1", "p2")] == [64 * MIB, 16 * MIB, 32 * MIB]
    assert (m / "disk").stat().st_mode == 0o100400
    assert sorted(os.listdir(m / "by-label")) == ["boot", "root_fs"]
    assert (m / "by-label/root_fs").resolve() == m / "p2"
    assert len(os.listdir(m / "by-guid")) == 2
    assert not (m / "p3").exists() and m.said() == ""
    m.end()


def test_read_only_is_the_default(gpt, mount):
    m = mount(gpt())
    for name in ("disk", "p1"):
        with pytest.raises(OSError, match="Read-only"):
            open(m / name, "r+b")
    with pytest.raises(OSError):
        (m / "new").touch()
    m.end()


@pytest.mark.parametrize("fmt", FORMATS)
def test_a_file_system_written_and_read(img, qemu_img, gpt, mount, need_tool, tmp, fmt):
    """mke2fs -d copies a tree into p2; after unmounting it is there for our readers and others'."""
    mke2fs, e2fsck, debugfs = need_tool("mke2fs"), need_tool("e2fsck"), need_tool("debugfs")
    tree = Path("tree")
    tree.mkdir()
    for number in range(20):
        (tree / f"f{number}").write_bytes(os.urandom(number * 10000))
    name = gpt(fmt)
    m = mount("-w", "-f", fmt, name)
    run(mke2fs, "-q", "-t", "ext4", "-d", tree, m / "p2")
    run(e2fsck, "-fn", m / "p2")
    m.end()
    if fmt in ("qcow2", "vhdx"):
        qemu_img("check", name)
    qemu_img("convert", "-f", fmt, "-O", "raw", name, "all.raw")
    img("convert", "-f", fmt, f"{name}:p2", "p2.raw")
    same_bytes("p2.raw", Path("all.raw").read_bytes()[40960 * 512:106496 * 512])
    m = mount("-f", fmt, name)
    for number in range(20):
        run(debugfs, "-R", f"dump /f{number} out", m / "p2")
        same_bytes("out", (tree / f"f{number}").read_bytes())
    m.end()


def test_loop_device(gpt, mount, need_tool, tmp):
    """The kernel's own file system driver on p1."""
    if os.getuid() != 0 or not Path("/dev/loop-control").exists():
        pytest.skip("no loop devices")
    losetup, mke2fs = need_tool("losetup"), need_tool("mke2fs")
    m = mount("-w", gpt())
    run(mke2fs, "-q", "-t", "ext4", m / "p2")
    found = subprocess.run([losetup, "-f", "--show", m / "p2"], capture_output=True, text=True)
    if found.returncode:
        pytest.skip(f"no loop devices: {found.stderr}")
    device = found.stdout.strip()
    Path("fs").mkdir()
    try:
        if subprocess.run(["mount", "-t", "ext4", device, "fs"], capture_output=True).returncode:
            pytest.skip("ext4 cannot be mounted here")
        data = os.urandom(3 * MIB)
        Path("fs/a").write_bytes(data)
        run("umount", "fs")
        run("mount", "-t", "ext4", "-o", "ro", device, "fs")
        same_bytes("fs/a", data)
        run("umount", "fs")
    finally:
        subprocess.run(["umount", "-l", "fs"], capture_output=True)
        run(losetup, "-d", device)
    m.end()


@pytest.mark.parametrize("options", [[], ["--direct-io"]], ids=str)
def test_random_reads_and_writes(img, mount, tmp, rng, options):
    content = random_content(rng, 8 * MIB, 65536)
    write_sparse("d.raw", content)
    img("convert", "-f", "raw", "-O", "qcow2", "d.raw", "d.qcow2")
    m = mount("-w", "-f", "qcow2", *options, "d.qcow2")
    with open(m / "disk", "r+b", buffering=0) as f:
        for _ in range(200):
            at, length = rng.randrange(8 * MIB), rng.randrange(1, 300000)
            length = min(length, 8 * MIB - at)
            f.seek(at)
            if rng.random() < 0.5:
                data = rng.randbytes(length)
                assert f.write(data) == length
                content[at:at + length] = data
            else:
                assert f.read(length) == content[at:at + length]
        os.fsync(f.fileno())
    same_bytes(m / "disk", content)
    m.end()
    img("check", "d.qcow2")
    img("convert", "d.qcow2", "out.raw")
    same_bytes("out.raw", content)


def test_fio_verifies(img, mount, need_tool, tmp):
    """Parallel writers and readers, with checksums."""
    fio = need_tool("fio")
    img("create", "-f", "qcow2", "d.qcow2", "64M")
    m = mount("-w", "d.qcow2")
    run(fio, "--name=x", f"--filename={m / 'disk'}", "--rw=randwrite", "--bsrange=512-256k", "--size=16M",
        "--numjobs=4", "--offset_increment=16M", "--verify=crc32c", "--ioengine=psync", "--do_verify=1",
        "--group_reporting", "--allow_file_create=0", "--fallocate=none", timeout=120)
    m.end()
    img("check", "d.qcow2")


def test_dd_with_any_flags(img, mount, tmp):
    img("create", "-f", "qcow2", "d.qcow2", "16M")
    data = os.urandom(4 * MIB)
    Path("data").write_bytes(data)
    m = mount("-w", "d.qcow2")
    run("dd", "if=data", f"of={m / 'disk'}", "bs=64k", "conv=fsync")
    run("dd", "if=data", f"of={m / 'disk'}", "bs=1M", "seek=8", "oflag=direct", "conv=notrunc")
    run("dd", f"if={m / 'disk'}", "of=out", "bs=1M", "skip=8", "count=4", "iflag=direct")
    assert (m / "disk").stat().st_size == 16 * MIB
    same_bytes("out", data)
    m.end()
    img("convert", "d.qcow2", "all")
    same_bytes("all", data + bytes(4 * MIB) + data + bytes(4 * MIB))


# ---------------------------------------------------------------- holes

def test_holes_are_seen(img, mount, tmp):
    disk("d.raw", 64 * MIB)
    put("d.raw", 8 * MIB, b"x" * MIB)
    img("convert", "-f", "raw", "-O", "qcow2", "d.raw", "d.qcow2")
    m = mount("d.qcow2")
    assert allocated(m / "disk") == MIB
    fd = os.open(m / "disk", os.O_RDONLY)
    assert os.lseek(fd, 0, os.SEEK_DATA) == 8 * MIB and os.lseek(fd, 0, os.SEEK_HOLE) == 0
    assert os.lseek(fd, 8 * MIB, os.SEEK_HOLE) == 9 * MIB
    with pytest.raises(OSError):
        os.lseek(fd, 9 * MIB, os.SEEK_DATA)
    os.close(fd)
    run("cp", "--sparse=auto", m / "disk", "copy")
    assert allocated("copy") <= MIB + 65536
    run("cmp", "copy", "d.raw")
    m.end()


def test_fallocate(img, mount, need_tool, tmp):
    fallocate = need_tool("fallocate")
    Path("d.raw").write_bytes(b"x" * (4 * MIB))
    img("convert", "-f", "raw", "-O", "qcow2", "d.raw", "d.qcow2")
    m = mount("-w", "d.qcow2")
    run(fallocate, "-p", "-o", MIB, "-l", MIB, m / "disk")
    run(fallocate, "-z", "-o", 3 * MIB + 100, "-l", 1000, m / "disk")
    assert (m / "disk").read_bytes() == b"x" * MIB + bytes(MIB) + b"x" * (MIB + 100) + bytes(1000) + \
        b"x" * (MIB - 1100)
    run(fallocate, "-p", "-o", 4 * MIB - 10, "-l", MIB, m / "disk")  # clipped
    run(fallocate, "-l", 5 * MIB, m / "disk", code=1)
    run(fallocate, "-z", "-o", 3 * MIB, "-l", 5 * MIB, m / "disk", code=1)
    assert (m / "disk").stat().st_size == 4 * MIB
    run("sleep", "1.1")
    assert allocated(m / "disk") < 4 * MIB
    m.end()
    img("check", "d.qcow2")


# ---------------------------------------------------------------- size

def test_writing_behind_the_end(img, gpt, mount, tmp):
    m = mount("-w", gpt())
    for name, size in (("p1", 16 * MIB), ("disk", 64 * MIB)):
        with open(m / name, "r+b", buffering=0) as f:
            f.seek(size)
            with pytest.raises(OSError, match="No space"):
                f.write(b"x")
            with pytest.raises(OSError):
                f.truncate(size + 512)
            with pytest.raises(OSError):
                f.truncate(size - 512)
            assert os.fstat(f.fileno()).st_size == size
    m.end()


@pytest.mark.parametrize("fmt", ["raw", "qcow2"])
def test_growable(img, mount, tmp, fmt):
    img("create", "-f", fmt, "d", "1M")
    m = mount("-w", "--growable", "-f", fmt, "d")
    with open(m / "disk", "r+b", buffering=0) as f:
        f.seek(3 * MIB)
        f.write(b"x" * MIB)
        assert os.fstat(f.fileno()).st_size == 4 * MIB
        f.truncate(6 * MIB)
    same_bytes(m / "disk", bytes(3 * MIB) + b"x" * MIB + bytes(2 * MIB))
    m.end()
    assert img("info", "--output=json", "-f", fmt, "d").json["virtual-size"] == 6 * MIB


# ---------------------------------------------------------------- what may be mounted

def test_chain_snapshot_and_description(img, mount, tmp):
    img("create", "-f", "qcow2", "base.qcow2", "4M")
    m = mount("-w", "base.qcow2")
    (m / "disk").write_bytes(b"1" * MIB)
    m.end()
    img("snapshot", "-c", "old", "base.qcow2")
    m = mount("-w", "base.qcow2")
    (m / "disk").write_bytes(b"2" * MIB)
    m.end()
    img("create", "-f", "qcow2", "-b", "base.qcow2", "-F", "qcow2", "top.qcow2")
    rest = bytes(3 * MIB)
    for argv, first in ((["top.qcow2"], b"2"), (["-l", "old", "base.qcow2"], b"1"), (["-U", "top.qcow2"], b"2"),
                        (["--image-opts", "driver=qcow2,file.filename=top.qcow2"], b"2")):
        m = mount(*argv)
        same_bytes(m / "disk", first * MIB + rest)
        m.end()
    assert "read-only" in img.fails("mount", "-w", "-l", "old", "base.qcow2", "x", code=1).err


def test_nbd_name(gpt, mount, nbd, tmp):
    name = gpt()
    server = subprocess.Popen([nbd.path, "serve", "-k", tmp / "s", name])
    try:
        while not Path("s").exists():
            pass
        m = mount("-w", f"nbd+unix:///{name}?socket={tmp}/s")
        data = os.urandom(2 * MIB)
        with open(m / "p1", "r+b") as f:
            f.write(data)
        m.end()
        part = mount(f"nbd+unix:///{name}/1?socket={tmp}/s")
        same_bytes(part / "disk", data + bytes(14 * MIB))
        part.end()
    finally:
        server.terminate()
        assert server.wait() == 0


def test_overlay(img, qemu_img, gpt, mount, tmp):
    name = gpt()
    before = Path(name).read_bytes()
    m = mount("--overlay", name)
    (m / "p1").write_bytes(b"lost")
    assert (m / "p1").read_bytes()[:4] == b"lost"
    m.end()
    for text in (b"kept", b"more"):
        m = mount("--overlay=over.qcow2", name)
        with open(m / "p1", "r+b") as f:
            f.write(text if text == b"kept" else b"KEPT" + text)
        m.end()
    same_bytes(name, before)
    qemu_img("check", "over.qcow2")
    qemu_img("convert", "-O", "raw", "over.qcow2", "out.raw")
    with open("out.raw", "rb") as f:
        f.seek(MIB)
        assert f.read(8) == b"KEPTmore"
    img("create", "-f", "qcow2", "other.qcow2", "64M")
    assert "not of" in img.fails("mount", "--overlay=over.qcow2", "other.qcow2", tmp, code=1).err
    assert "no overlay" in img.fails("mount", "--overlay=other.qcow2", name, tmp, code=1).err


def test_partition_on_a_file(gpt, mount, tmp):
    """Onto one existing file: the disk, or a partition by its name."""
    name = gpt()
    Path("on").write_bytes(b"below")
    m = mount("-w", f"{name}:p2", on="on")
    assert Path("on").stat().st_size == 32 * MIB
    with open("on", "r+b") as f:
        f.write(b"inside")
    m.end()
    assert Path("on").read_bytes() == b"below"
    m = mount(name, on=name)  # over the image itself
    with open(name, "rb") as f:
        f.seek(40960 * 512)
        assert f.read(6) == b"inside" and os.fstat(f.fileno()).st_size == 64 * MIB
    m.end()


# ---------------------------------------------------------------- the process

def test_background(img, gpt, tmp):
    if not os.access("/dev/fuse", os.W_OK):
        pytest.skip("/dev/fuse is missing")
    name = gpt()
    Path("a b").mkdir()
    img("mount", "-w", name, "a b")
    try:
        assert (tmp / "a b/disk").stat().st_size == 64 * MIB
        rows = [r for r in img("mounts", "--output=json").json if r["mountpoint"] == str(tmp / "a b")]
        assert rows[0]["image"] == str(tmp / name) and rows[0]["read-only"] is False
        assert str(tmp / name) in img("mounts").out
        assert "locked" in img.fails("mount", "-w", name, ".", code=1).err
        with open(tmp / "a b/disk", "rb"):
            assert "uses a file" in img.fails("umount", "a b", code=1).err
    finally:
        img("umount", "a b")
    assert not Path(f"/proc/{rows[0]['pid']}").exists() or \
        "State:\tZ" in Path(f"/proc/{rows[0]['pid']}/status").read_text()
    img("check", name)
    assert "no image is mounted" in img.fails("umount", "a b", code=1).err


@pytest.mark.parametrize("number", [15, 2, 1])
def test_signals_unmount(img, gpt, mount, number):
    name = gpt()
    m = mount("-w", name)
    (m / "p1").write_bytes(b"x" * MIB)
    m.process.send_signal(number)
    assert m.process.wait(timeout=20) == 0 and not mounted(m.where)
    img("check", name)
    img("convert", f"{name}:p1", "out")
    assert Path("out").read_bytes()[:MIB] == b"x" * MIB


def test_errors_reach_the_caller(img, tmp, gpt):
    name = gpt()
    assert "No such file" in img.fails("mount", "nosuch.qcow2", ".", code=1).err
    assert "nowhere" in img.fails("mount", name, "nowhere", code=1).err
    assert "neither" in img.fails("mount", name, "/dev/null", code=1).err
    assert "-w" in img.fails("mount", "--growable", name, ".", code=1).err
    assert "no partition 7" in img.fails("mount", f"{name}:p7", ".", code=1).err
    assert not mounted(tmp)


USER_SCRIPT = r"""
set -e
mount --bind fuse /dev/fuse
exec setpriv --reuid=65534 --regid=65534 --clear-groups -- sh -ec '
    mkdir m; "$0" mount -w d.qcow2 m
    dd if=data of=m/p1 bs=64k conv=fsync,notrunc status=none
    "$0" mounts; stat -c %u m/p1; "$0" umount m
    touch f; "$0" mount d.qcow2:p1 f; cmp -n 1048576 data f; "$0" umount f' "$1"
"""


def test_as_an_ordinary_user(gpt, img, tmp_path, need_tool):
    """Without root, through fusermount3; where /dev/fuse is root's, with a device of its own in a namespace."""
    if os.getuid() != 0:
        pytest.skip("a test for root, since the others run as the user")
    need_tool("fusermount3")
    folder = Path(tempfile.mkdtemp(dir="/tmp"))
    try:
        img("convert", "-O", "qcow2", gpt("raw"), folder / "d.qcow2")
        data = os.urandom(MIB)
        (folder / "data").write_bytes(data)
        os.chown(folder / "d.qcow2", 65534, 65534)
        os.chmod(folder, 0o777)
        os.mknod(folder / "fuse", 0o020666, os.makedev(10, 229))
        os.chmod(folder / "fuse", 0o666)
        done = subprocess.run(["unshare", "-m", "sh", "-c", USER_SCRIPT, "sh", img.path], cwd=folder,
                              capture_output=True, text=True)
        if "permitted" in done.stderr or "permission denied" in done.stderr.lower():
            pytest.skip(f"no namespaces here: {done.stderr}")
        assert done.returncode == 0, done.stdout + done.stderr
        assert f"{folder}/d.qcow2 on {folder}/m (writable)\n65534\n" in done.stdout
        img("check", folder / "d.qcow2")
        img("convert", folder / "d.qcow2:p1", "out")
        assert Path("out").read_bytes()[:MIB] == data
    finally:
        shutil.rmtree(folder)
