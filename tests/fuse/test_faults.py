"""What goes wrong under a mount: the process dies, the disk is full, the image goes away."""

import os
import random
import resource
import signal
import subprocess
import threading
import time
from pathlib import Path

import pytest
from fusetools import mount, mounted, run  # noqa: F401  (fixtures)
from platter import MIB, same_bytes


@pytest.mark.parametrize("fmt", ["qcow2", "vmdk"])
def test_killed_in_the_middle_of_writes(img, mount, tmp, rng, fmt):
    """What was synced is there; check finds leaks at most."""
    for number in range(3):
        name = f"d{number}.{fmt}"
        img("create", "-f", fmt, name, "64M")
        m = mount("-w", "-f", fmt, name)
        data = os.urandom(4 * MIB)
        with open(m / "disk", "r+b", buffering=0) as f:
            f.write(data)
            os.fsync(f.fileno())

        def scribble():
            try:
                with open(m / "disk", "r+b", buffering=0) as f:
                    while True:
                        f.seek(rng.randrange(8, 60) * MIB)
                        f.write(data[:rng.randrange(1, MIB)])
            except OSError:
                pass
        writers = [threading.Thread(target=scribble) for _ in range(3)]
        for w in writers:
            w.start()
        time.sleep(0.1 + 0.1 * number)
        m.process.kill()
        m.process.wait()
        for w in writers:
            w.join(timeout=20)
            assert not w.is_alive()
        with pytest.raises(OSError):
            (m / "disk").stat()
        rows = [r for r in img("mounts", "--output=json").json if r["mountpoint"] == str(m.where)]
        assert rows and "pid" not in rows[0]
        img("umount", m.where)
        assert not mounted(m.where)
        img("check", name, code=(0, 3))
        img("convert", name, "out.raw")
        with open("out.raw", "rb") as f:
            assert f.read(4 * MIB) == data


def test_full_disk(img, mount, tmp):
    """ENOSPC reaches the writer; what was there stays readable, and unmounting works."""
    img("create", "-f", "qcow2", "a.qcow2", "64M")
    Path("full.conf").write_text('[inject-error]\nevent = "write_aio"\nerrno = "28"\nimmediately = "off"\n')
    m = mount("-w", "--image-opts", "driver=qcow2,file.driver=blkdebug,file.image.driver=file,"
                                    "file.image.filename=a.qcow2,file.config=full.conf")
    fd = os.open(m / "disk", os.O_RDWR)
    with pytest.raises(OSError, match="No space"):
        os.pwrite(fd, b"x" * 65536, 0)
    assert os.pread(fd, 512, 0) == bytes(512)
    os.close(fd)
    # The tables cannot be written either: it says so, and stays until it is told not to care.
    assert "No space" in img.fails("umount", m.where, code=1).err
    img("umount", "-z", m.where)
    assert m.process.wait(timeout=20) == 1 and "newest writes" in m.said()
    img("check", "a.qcow2", code=(0, 3))


def test_a_file_that_may_not_grow(img, mount, tmp):
    def limits():
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (4 * MIB, 4 * MIB))
    img("create", "-f", "qcow2", "a.qcow2", "64M")
    m = mount("-w", "a.qcow2", limits=limits)
    fd = os.open(m / "disk", os.O_RDWR)
    written = 0
    with pytest.raises(OSError):
        while written < 32 * MIB:
            written += os.pwrite(fd, b"x" * 65536, written)
    assert 2 * MIB < written < 5 * MIB
    assert os.pread(fd, 65536, 0) == b"x" * 65536
    os.close(fd)
    subprocess.run([img.path, "umount", m.where], capture_output=True)
    m.drop()
    img("check", "a.qcow2", code=(0, 3))


def test_image_truncated(img, mount, tmp):
    """Its end reads as zeroes or not at all; the mount goes on."""
    Path("a.raw").write_bytes(b"x" * (4 * MIB))
    m = mount("-f", "raw", "a.raw")
    os.truncate("a.raw", 2 * MIB)
    fd = os.open(m / "disk", os.O_RDONLY)
    assert os.pread(fd, 4096, 0) == b"x" * 4096
    try:
        assert os.pread(fd, 65536, 3 * MIB) == bytes(65536)
    except OSError:
        pass
    assert os.pread(fd, 4096, 4096) == b"x" * 4096
    os.close(fd)
    m.end()


def test_image_deleted(img, mount, tmp):
    Path("a.raw").write_bytes(b"x" * (4 * MIB))
    m = mount("-w", "-f", "raw", "a.raw")
    Path("a.raw").unlink()
    with open(m / "disk", "r+b") as f:
        f.write(b"yes")
    same_bytes(m / "disk", b"yes" + b"x" * (4 * MIB - 3))
    m.end()


def test_image_locked(img, mount, tmp):
    img("create", "-f", "qcow2", "a.qcow2", "4M")
    m = mount("-w", "a.qcow2")
    err = img.fails("mount", "a.qcow2", ".", code=1).err
    assert "a.qcow2" in err and "locked" in err
    m.end()


def test_damaged_images(img, tmp, rng):
    """An error, and nothing stays mounted."""
    img("create", "-f", "qcow2", "a.qcow2", "4M")
    good = Path("a.qcow2").read_bytes()
    Path("m").mkdir()
    for at in (4, 20, 24, 40, 48, 72, 100):
        Path("a.qcow2").write_bytes(good[:at] + b"\xff" * 4 + good[at + 4:])
        done = img("mount", "-f", "qcow2", "a.qcow2", "m", code=(0, 1))
        if done.code == 0:
            img("umount", "m")
        else:
            assert "a.qcow2" in done.err
        assert not mounted(tmp / "m")


def test_readers_and_writers_together(img, mount, tmp, rng):
    """Many threads, each with its own part; every read sees the last write of its own."""
    img("create", "-f", "qcow2", "a.qcow2", "32M")
    m = mount("-w", "a.qcow2")
    faults = []

    def work(number):
        start, shadow = number * 4 * MIB, bytearray(4 * MIB)
        fd = os.open(m / "disk", os.O_RDWR)
        mine = random.Random(number)
        for _ in range(60):
            at, length = mine.randrange(4 * MIB), mine.randrange(1, 200000)
            length = min(length, 4 * MIB - at)
            if mine.random() < 0.5:
                data = mine.randbytes(length)
                os.pwrite(fd, data, start + at)
                shadow[at:at + length] = data
            elif os.pread(fd, length, start + at) != shadow[at:at + length]:
                faults.append((number, at, length))
            if mine.random() < 0.05:
                os.fsync(fd)
        os.close(fd)
    threads = [threading.Thread(target=work, args=(n,)) for n in range(8)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert not faults
    m.end()
    img("check", "a.qcow2")


def test_a_hostile_table_shows_the_disk(img, mount, tmp):
    """The partitions that cannot be are left out, with a warning."""
    from tables import write_gpt
    from test_partitions import disk
    write_gpt(disk("d.raw"), 64 * MIB, [(2048, 1 << 50, "../../etc"), (4096, 8191, ".."), (8192, 9000, "a/b"),
                                        (9001, 9002, "a/b")])
    m = mount("-f", "raw", "d.raw")
    assert sorted(os.listdir(m.where)) == ["by-guid", "by-label", "disk", "p2", "p3", "p4"]
    assert os.listdir(m / "by-label") == ["a_b"]
    assert os.readlink(m / "by-label/a_b") == "../p3" and "leaves the disk" in m.said()
    m.end()
    write_gpt(disk("e.raw"), 64 * MIB, [(2048, 4096, "a")], first=False, backup=False)
    m = mount("-f", "raw", "e.raw")
    assert os.listdir(m.where) == ["disk"] and "checksums" in m.said()
    m.end()
