"""Bad names, bad arguments, full disks and sudden ends: a sentence, and the old data intact."""

import os
import random
import signal
import stat
import subprocess
import time
from pathlib import Path

import pytest

from platter import KIB, MIB, random_content, same_bytes, write_sparse


@pytest.fixture
def disk(tmp, rng, qemu_img):
    """a.raw and a.qcow2, 8 MiB; their content."""
    content = random_content(rng, 8 * MIB, 64 * KIB)
    write_sparse("a.raw", content)
    qemu_img("convert", "-f", "raw", "-O", "qcow2", "a.raw", "a.qcow2")
    return content


# ---------------------------------------------------------------- arguments

@pytest.mark.parametrize("args", [
    [], ["nosuch"], ["--nosuch"], ["info"], ["info", "--nosuch", "a.raw"], ["info", "a", "b"],
    ["info", "--output=yaml", "a.raw"], ["convert"], ["convert", "a.raw"],
    ["convert", "-O", "nosuch", "a.raw", "x"], ["convert", "-f", "nosuch", "a.raw", "x"],
    ["convert", "-f", "qcow2", "a.raw", "x"], ["convert", "-S", "x", "a.raw", "x"],
    ["convert", "-m", "0", "a.raw", "x"], ["convert", "-m", "17", "a.raw", "x"],
    ["convert", "-r", "x", "a.raw", "x"], ["convert", "-t", "nosuch", "a.raw", "x"],
    ["convert", "-c", "-O", "raw", "a.raw", "x"], ["convert", "-C", "-S", "4k", "a.raw", "x"],
    ["convert", "-c", "-C", "-O", "qcow2", "a.raw", "x"],
    ["convert", "-o", "nosuch=1", "-O", "qcow2", "a.raw", "x"],
    ["convert", "-B", "none.qcow2", "-F", "qcow2", "-O", "qcow2", "a.raw", "x"],
    ["convert", "-l", "nosuch", "a.qcow2", "x"], ["check"], ["check", "-r", "nosuch", "a.qcow2"],
    ["check", "none"], ["compare", "a.raw"], ["compare", "a.raw", "none"],
    ["map", "--output=xml", "a.raw"], ["map", "--start-offset=x", "a.raw"], ["resize", "a.raw"],
    ["resize", "none", "1M"], ["dd", "if=none", "of=x"], ["dd", "of=x"], ["dd", "if=a.raw"],
    ["measure"], ["bench"], ["bench", "-c", "x", "a.raw"], ["bench", "-d", "0", "a.raw"],
    ["bench", "-s", "0", "a.raw"], ["create"], ["create", "-f", "raw"]],
    ids=lambda args: " ".join(args) or "nothing")
def test_bad_arguments(img, disk, args):
    """One sentence on standard error, no new file, and the sources as they were."""
    before = set(os.listdir("."))
    img.fails(*args, code=(1, 2), timeout=10)
    assert set(os.listdir(".")) == before
    same_bytes("a.raw", disk)


def test_did_you_mean(img, disk):
    assert "convert" in img.fails("covert", "a.raw", "x").err
    assert "cluster_size" in img.fails("create", "-f", "qcow2", "-o", "clustersize=4k", "x",
                                       "1M").err


@pytest.mark.parametrize("command", ["create", "info", "check", "convert", "compare", "map",
                                     "measure", "resize", "dd", "bench"])
def test_help(img, command):
    """img help COMMAND and img COMMAND --help say the same, on standard output."""
    text = img("help", command).out
    assert command in text
    assert img(command, "--help").out == text


def test_option_help(img, tmp):
    """-o help lists the options of the format."""
    text = img("create", "-f", "qcow2", "-o", "help").out
    for name in ("compat", "cluster_size", "preallocation", "lazy_refcounts", "refcount_bits",
                 "compression_type", "backing_file", "backing_fmt", "size"):
        assert name in text
    assert "preallocation" in img("convert", "-O", "raw", "-o", "help").out


# ---------------------------------------------------------------- files

def test_directory_and_device_names(img, disk):
    os.mkdir("dir")
    for command in (["info", "dir"], ["convert", "-O", "raw", "dir", "x"],
                    ["convert", "-O", "raw", "a.raw", "dir"], ["create", "-f", "raw", "dir", "1M"],
                    ["create", "-f", "raw", "no/such/folder", "1M"],
                    ["convert", "-O", "raw", "a.raw", "no/such/folder"]):
        img.fails(*command, timeout=10)
    assert stat.S_ISDIR(os.stat("dir").st_mode)


def test_empty_file(img, tmp):
    Path("empty").touch()
    assert img("info", "--output=json", "empty").json["virtual-size"] == 0
    img.fails("info", "-f", "qcow2", "empty")
    img("convert", "-f", "raw", "-O", "qcow2", "empty", "x.qcow2")


def test_source_is_target(img, disk):
    """Onto itself, also by another name, is refused or harmless; the data stays."""
    os.link("a.raw", "link.raw")
    os.symlink("a.raw", "symlink.raw")
    for target in ("a.raw", "./a.raw", "symlink.raw", "link.raw"):
        img("convert", "-f", "raw", "-O", "raw", "a.raw", target, code=(0, 1))
        same_bytes("a.raw", disk)
        img("convert", "-n", "-f", "raw", "-O", "raw", "a.raw", target, code=(0, 1))
        same_bytes("a.raw", disk)


def test_read_only_target(img, disk):
    """Reading a read-only file works; root may write to it all the same."""
    os.chmod("a.qcow2", 0o444)
    img("info", "a.qcow2")
    img("check", "a.qcow2")
    img("convert", "-O", "raw", "a.qcow2", "x.raw")
    same_bytes("x.raw", disk)
    if os.geteuid() != 0:
        img.fails("resize", "a.qcow2", "+1M")
        img.fails("convert", "-n", "-O", "qcow2", "x.raw", "a.qcow2")


def test_program_file_is_busy(img, tmp):
    """A file that is being executed cannot be opened for writing, even by root."""
    Path("sleep").write_bytes(Path("/bin/sleep").read_bytes())
    os.chmod("sleep", 0o755)
    with subprocess.Popen(["./sleep", "60"]) as process:
        try:
            assert "sleep" in img.fails("resize", "-f", "raw", "sleep", "+1M").err
        finally:
            process.kill()


# ---------------------------------------------------------------- full disks

@pytest.mark.parametrize("options", [["-O", "raw"], ["-O", "qcow2"], ["-c", "-O", "qcow2"]],
                         ids=["raw", "qcow2", "compressed"])
@pytest.mark.parametrize("limit", [4 * KIB, 64 * KIB, 256 * KIB + 1, MIB])
def test_file_size_limit(img, disk, options, limit):
    """The target cannot grow: an error with the cause, and nothing is left under its name."""
    write_sparse("noise.raw", random.Random(1).randbytes(4 * MIB))
    error = img.fails("convert", *options, "-f", "raw", "noise.raw", "x", file_size=limit).err
    assert "File too large" in error
    assert not os.path.exists("x")


@pytest.mark.parametrize("limit", [4 * KIB, 64 * KIB, MIB])
def test_file_size_limit_keeps_the_old_target(img, disk, limit):
    Path("old").write_bytes(b"precious")
    write_sparse("noise.raw", random.Random(1).randbytes(4 * MIB))
    img.fails("convert", "-f", "raw", "-O", "raw", "noise.raw", "old", file_size=limit)
    same_bytes("old", b"precious")


def test_full_disk_inside_an_image(img, qemu_img, tmp, rng):
    """convert -n into an image whose file cannot grow: the image stays sound, if leaky."""
    write_sparse("new.raw", rng.randbytes(4 * MIB))
    for limit in (300 * KIB, 512 * KIB, MIB, 2 * MIB + 77, 4 * MIB):
        Path("x.qcow2").unlink(missing_ok=True)
        qemu_img("create", "-f", "qcow2", "x.qcow2", "4M")
        img.fails("convert", "-n", "-f", "raw", "-O", "qcow2", "new.raw", "x.qcow2",
                  file_size=limit)
        qemu_img("check", "x.qcow2", code=(0, 3))


@pytest.fixture
def full(tmp):
    """A small file system of its own; only root can mount one."""
    path = tmp / "full"
    path.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "platter", path],
                             capture_output=True, check=False).returncode == 0
    if not mounted:
        # No mounting here, as in most containers: the file size limit above shows the same.
        path = None
    yield path
    if mounted:
        subprocess.run(["umount", "-l", path], check=True)


@pytest.mark.parametrize("options", [["-O", "raw"], ["-O", "qcow2"], ["-c", "-O", "qcow2"]],
                         ids=["raw", "qcow2", "compressed"])
def test_full_disk(img, full, tmp, options, rng):
    if full is None:
        return
    write_sparse("noise.raw", rng.randbytes(4 * MIB))
    error = img.fails("convert", *options, "-f", "raw", "noise.raw", full / "x").err
    assert "No space left" in error
    assert os.listdir(full) == []
    img.fails("create", "-f", "raw", "-o", "preallocation=full", full / "x", "8M")


# ---------------------------------------------------------------- sudden ends

def run_and_kill(img, rng, signum, args, longest):
    """Starts img and sends it a signal after a while; its exit code."""
    process = img.start(*args)
    time.sleep(rng.uniform(0, longest))
    process.send_signal(signum)
    return process.wait(timeout=20)


@pytest.fixture
def big(tmp, rng):
    """96 MiB that take a moment to convert."""
    block = rng.randbytes(4 * MIB)
    with open("big.raw", "wb") as file:
        for number in range(24):
            file.write(block[number:] + block[:number])


def duration(img, *args):
    """How long a run takes undisturbed."""
    return img(*args).seconds


@pytest.mark.parametrize("options", [["-O", "raw"], ["-O", "qcow2"], ["-c", "-O", "qcow2"]],
                         ids=["raw", "qcow2", "compressed"])
@pytest.mark.parametrize("signum", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM],
                         ids=lambda signum: signum.name)
def test_output_is_complete_or_absent(img, qemu_img, big, rng, options, signum):
    form = options[-1]
    longest = duration(img, "convert", *options, "-f", "raw", "big.raw", "x")
    for _ in range(6):
        Path("x").write_bytes(b"old")
        run_and_kill(img, rng, signum, ["convert", *options, "-f", "raw", "big.raw", "x"],
                     longest * 1.2)
        if os.path.getsize("x") == 3:
            same_bytes("x", b"old")
        else:
            qemu_img("compare", "-f", "raw", "-F", form, "big.raw", "x")
        if signum != signal.SIGKILL:
            assert sorted(os.listdir(".")) == ["big.raw", "x"], "a temporary file is left"


def test_interrupt_is_told(img, big):
    """SIGINT ends with the code that shells expect of it."""
    process = img.start("convert", "-r", "1M", "-f", "raw", "-O", "raw", "big.raw", "x")
    time.sleep(0.5)
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=20) in (-signal.SIGINT, 130, 1)
    assert not os.path.exists("x")


@pytest.mark.parametrize("cluster", ["4k", "64k"])
def test_killed_writer_leaves_a_sound_image(img, qemu_img, big, rng, cluster):
    """kill -9 in the middle of writes: leaks at worst; what was there and not rewritten stays."""
    old = b"\x99" * (8 * MIB)
    size = os.path.getsize("big.raw")
    write_sparse("old.raw", old + bytes(size - len(old)))
    with open("big.raw", "r+b") as file:
        file.write(old)
    args = ["convert", "-n", "-f", "raw", "-O", "qcow2", "big.raw", "x.qcow2"]
    prepare = ["convert", "-f", "raw", "-O", "qcow2", "-o", f"cluster_size={cluster}", "old.raw",
               "x.qcow2"]
    qemu_img(*prepare)
    longest = duration(img, *args)
    for _ in range(8):
        qemu_img(*prepare)
        run_and_kill(img, rng, signal.SIGKILL, args, longest)
        checks = [tool("check", "x.qcow2", code=(0, 3)) for tool in (qemu_img, img)]
        assert checks[0].code == checks[1].code
        img("convert", "-O", "raw", "x.qcow2", "x.raw")
        with open("x.raw", "rb") as got, open("big.raw", "rb") as want:
            assert got.read(len(old)) == old
            want.seek(len(old))
            # Each block is the new one or still none; nothing else ever shows.
            while block := got.read(64 * KIB):
                fresh = want.read(64 * KIB)
                for at in range(0, len(block), 4 * KIB):
                    piece = block[at:at + 4 * KIB]
                    assert piece in (fresh[at:at + 4 * KIB], bytes(len(piece)))
        img("check", "-r", "leaks", "x.qcow2")


# ---------------------------------------------------------------- locks

def test_image_in_use_is_refused(img, need_tool, disk):
    """A writer of qemu's holds the image: we say who, and how to go on all the same."""
    with subprocess.Popen([need_tool("qemu-io"), "a.qcow2"], stdin=subprocess.PIPE,
                          stdout=subprocess.DEVNULL) as holder:
        try:
            for _ in range(100):
                if str(os.stat("a.qcow2").st_ino) in Path("/proc/locks").read_text():
                    break
                time.sleep(0.05)
            error = img.fails("resize", "a.qcow2", "+1M").err
            assert "lock" in error.lower()
            assert str(holder.pid) in error and "-U" in error
            img.fails("convert", "-O", "raw", "a.qcow2", "x")
            img("info", "-U", "a.qcow2")
            img("convert", "-U", "-O", "raw", "a.qcow2", "x")
        finally:
            holder.communicate(b"quit\n")


def test_we_refuse_each_other(img, qemu_img, big):
    """And qemu-img refuses what we write to."""
    qemu_img("create", "-f", "qcow2", "x.qcow2", "96M")
    process = img.start("convert", "-n", "-r", "4M", "-f", "raw", "-O", "qcow2", "big.raw",
                        "x.qcow2")
    try:
        time.sleep(0.7)
        qemu_img.fails("info", "x.qcow2")
        img.fails("resize", "x.qcow2", "+1M")
    finally:
        process.kill()
        process.wait()


# ---------------------------------------------------------------- guests that lie

def test_raw_that_looks_like_qcow2_is_warned_about(img, qemu_img, tmp):
    """Probed raw says so before anybody writes; stated raw is silent."""
    qemu_img("create", "-f", "raw", "g.raw", "1M")
    assert not img("info", "-f", "raw", "g.raw").err
    qemu_img("create", "-f", "qcow2", "q.qcow2", "1M")
    warned = img("convert", "-n", "-O", "raw", "-f", "qcow2", "q.qcow2", "g.raw").err
    assert not warned, "the format was stated"


def test_memory_stays_bounded(img, tmp, rng):
    """Ten thousand scattered extents, and never more than 64 MiB and what a process needs."""
    with open("a.raw", "wb") as file:
        for number in range(10000):
            file.seek(number * 3 * 64 * KIB)
            file.write(b"x" * 4096)
        file.truncate(4 << 30)
    img("convert", "-f", "raw", "-O", "qcow2", "a.raw", "a.qcow2", memory=100 * MIB)
    img("convert", "-O", "raw", "a.qcow2", "b.raw", memory=100 * MIB)
    img("compare", "-f", "raw", "-F", "raw", "a.raw", "b.raw", memory=100 * MIB)
    img("map", "--output=json", "a.qcow2", memory=100 * MIB)
