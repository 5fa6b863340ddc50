"""The target of convert and dd: complete under its name, or not there at all."""

import os
import signal
import stat
import subprocess
import time
from pathlib import Path

import pytest

from platter import KIB, MIB, random_content, same_bytes, write_sparse

SIZE = 16 * MIB


@pytest.fixture
def disk(tmp, rng):
    """a.raw, all of it data, so that a rate limit makes a copy last."""
    content = rng.randbytes(SIZE)
    write_sparse("a.raw", content)
    return content


def begin(img, *args):
    """Starts a conversion that takes 16 seconds and lets it begin."""
    process = subprocess.Popen([img.path, "convert", "-r", "1M", *map(str, args)],
                               stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
                               stderr=subprocess.PIPE, text=True)
    time.sleep(0.4)
    assert process.poll() is None, process.stderr.read()
    return process


def hidden():
    return [name for name in os.listdir(".") if name.startswith(".")]


@pytest.mark.parametrize("signo", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize("form", ["raw", "qcow2"])
def test_a_signal_leaves_nothing_behind(img, disk, signo, form):
    before = set(os.listdir("."))
    process = begin(img, "-f", "raw", "-O", form, "a.raw", "out")
    process.send_signal(signo)
    assert process.wait(10) == 128 + signo
    assert "out" in process.stderr.read()
    assert set(os.listdir(".")) == before


@pytest.mark.parametrize("signo", [signal.SIGINT, signal.SIGKILL])
def test_what_was_there_stays_until_the_end(img, disk, signo):
    Path("out").write_bytes(b"precious")
    process = begin(img, "-f", "raw", "-O", "qcow2", "a.raw", "out")
    assert Path("out").read_bytes() == b"precious"
    process.send_signal(signo)
    process.wait(10)
    assert Path("out").read_bytes() == b"precious"


def test_killed_without_a_backing_file_leaves_no_hidden_file(img, disk):
    """The file has no name yet, so even SIGKILL cannot leave it there."""
    try:
        os.close(os.open(".", os.O_TMPFILE | os.O_RDWR))
    except OSError:
        pytest.skip("no O_TMPFILE here")
    process = begin(img, "-f", "raw", "-O", "qcow2", "a.raw", "out")
    process.kill()
    process.wait(10)
    assert os.listdir(".") == ["a.raw"]


def test_hidden_file_of_an_overlay_goes_with_a_signal(img, disk):
    img("create", "-f", "qcow2", "base", "16M")
    process = begin(img, "-f", "raw", "-O", "qcow2", "-B", "base", "-F", "qcow2", "a.raw", "out")
    assert len(hidden()) == 1 and hidden()[0].startswith(".out.platter-")
    process.send_signal(signal.SIGINT)
    assert process.wait(10) == 130
    assert not hidden() and not os.path.exists("out")


@pytest.mark.parametrize("args", [["-O", "raw"], ["-O", "qcow2"], ["-c", "-O", "qcow2"]], ids=" ".join)
def test_full_disk(img, disk, args):
    Path("out").write_bytes(b"precious")
    error = img.fails("convert", "-f", "raw", *args, "a.raw", "out", code=1, file_size=5 * MIB).err
    assert "out" in error and "platter-" not in error and "/proc/" not in error
    assert Path("out").read_bytes() == b"precious"
    assert sorted(os.listdir(".")) == ["a.raw", "out"]


def test_mode_of_an_existing_target_is_kept(img, disk):
    Path("out").touch(0o600)
    os.chmod("out", 0o640)
    img("convert", "-f", "raw", "-O", "raw", "a.raw", "out")
    assert stat.S_IMODE(os.stat("out").st_mode) == 0o640
    same_bytes("out", disk)


def test_mode_of_a_new_target_follows_the_umask(img, disk):
    old = os.umask(0o027)
    try:
        img("convert", "-f", "raw", "-O", "raw", "a.raw", "out")
    finally:
        os.umask(old)
    assert stat.S_IMODE(os.stat("out").st_mode) == 0o640


def test_link_is_followed(img, disk):
    """The file at its end is replaced, the link stays one."""
    os.mkdir("dir")
    Path("dir/real").write_bytes(b"old")
    os.symlink("dir/real", "out")
    os.symlink("dir/new", "dangling")
    for name, real in (("out", "dir/real"), ("dangling", "dir/new")):
        img("convert", "-f", "raw", "-O", "raw", "a.raw", name)
        assert os.path.islink(name)
        same_bytes(real, disk)


@pytest.mark.parametrize("target", ["a.raw", "./a.raw", "link", "file:a.raw"])
@pytest.mark.parametrize("command", ["convert", "convert -n", "dd"])
def test_source_as_target_is_refused(img, disk, target, command):
    os.symlink("a.raw", "link")
    if command == "dd":
        img.fails("dd", "-f", "raw", "if=a.raw", f"of={target}", "count=1", code=1)
    else:
        img.fails(*command.split(), "-f", "raw", "-O", "raw", "a.raw", target, code=1)
    same_bytes("a.raw", disk)


def test_backing_file_of_the_source_as_target_is_refused(img, disk):
    img("create", "-f", "qcow2", "-b", "a.raw", "-F", "raw", "top")
    error = img.fails("convert", "-f", "qcow2", "-O", "raw", "top", "a.raw", code=1).err
    assert "a.raw" in error
    same_bytes("a.raw", disk)


def test_target_in_use_is_refused(img, qemu_io, disk):
    """Renaming over it would leave its user with a file that nobody sees."""
    img("create", "-f", "qcow2", "out", "1M")
    user = subprocess.Popen([qemu_io.path, "-f", "qcow2", "out"], stdin=subprocess.PIPE,
                            stdout=subprocess.PIPE)
    user.stdout.read(1)
    try:
        inode = os.stat("out").st_ino
        assert "out" in img.fails("convert", "-f", "raw", "-O", "qcow2", "a.raw", "out", code=1).err
        assert os.stat("out").st_ino == inode
    finally:
        user.communicate(b"quit\n")
    img("convert", "-f", "raw", "-O", "qcow2", "a.raw", "out")


def test_no_create_writes_in_place(img, disk):
    Path("out").write_bytes(b"x" * (SIZE + 512))
    inode = os.stat("out").st_ino
    img("convert", "-n", "-f", "raw", "-O", "raw", "a.raw", "out")
    assert os.stat("out").st_ino == inode
    same_bytes("out", disk + b"x" * 512)


def test_no_create_into_something_smaller_is_refused(img, disk):
    Path("out").write_bytes(b"x" * 512)
    img.fails("convert", "-n", "-f", "raw", "-O", "raw", "a.raw", "out", code=1)
    assert Path("out").read_bytes() == b"x" * 512


def test_directory_that_takes_no_new_files(img, disk):
    """What can be written in place is written in place, as before."""
    if os.getuid() == 0:
        pytest.skip("root may write everywhere")
    os.mkdir("dir")
    Path("dir/out").touch()
    os.chmod("dir", 0o555)
    img("convert", "-f", "raw", "-O", "raw", "a.raw", "dir/out")
    same_bytes("dir/out", disk)


def test_file_that_is_mounted_by_itself(img, disk, need_tool):
    """As in containers: nothing can be renamed over it, so it is written in place."""
    Path("real").touch()
    Path("out").touch()
    script = f"mount --bind real out && '{img.path}' convert -f raw -O raw a.raw out"
    done = subprocess.run([need_tool("unshare"), "-rm", "sh", "-c", script], stderr=subprocess.PIPE,
                          text=True)
    if "unshare:" in done.stderr or "mount:" in done.stderr:
        pytest.skip("may not mount here")
    assert done.returncode == 0, done.stderr
    same_bytes("real", disk)


@pytest.mark.parametrize("target", ["", "none/", "./"])
def test_target_without_a_name_is_refused_at_once(img, disk, target):
    img.fails("convert", "-r", "1M", "-f", "raw", "-O", "raw", "a.raw", target, code=1, timeout=5)


def test_long_name(img, disk):
    """The hidden name is longer than the name, which may be as long as a name can be."""
    name = "n" * 255
    img("create", "-f", "qcow2", "base", "16M")
    img("convert", "-f", "raw", "-O", "qcow2", "-B", "base", "-F", "qcow2", "a.raw", name)
    assert img("compare", "-f", "raw", "a.raw", name)


def test_file_prefix(img, disk):
    img("convert", "-f", "raw", "-O", "raw", "file:a.raw", "file:out")
    same_bytes("out", disk)


def test_stopped_twice_leaves_at_once(img, disk):
    process = begin(img, "-f", "raw", "-O", "raw", "a.raw", "out")
    process.send_signal(signal.SIGINT)
    process.send_signal(signal.SIGINT)
    assert process.wait(2) == 130
    assert os.listdir(".") == ["a.raw"]


# ---------------------------------------------------------------- dd

def test_dd_seek(img, disk):
    img("dd", "-f", "raw", "if=a.raw", "of=out", "bs=64k", "skip=2", "count=3", "seek=5")
    same_bytes("out", bytes(5 * 64 * KIB) + disk[2 * 64 * KIB:5 * 64 * KIB])


def test_dd_notrunc_changes_only_the_part(img, disk):
    Path("out").write_bytes(b"x" * MIB)
    inode = os.stat("out").st_ino
    img("dd", "-f", "raw", "if=a.raw", "of=out", "bs=4k", "count=2", "seek=3", "conv=notrunc")
    same_bytes("out", b"x" * 3 * 4 * KIB + disk[:2 * 4 * KIB] + b"x" * (MIB - 5 * 4 * KIB))
    assert os.stat("out").st_ino == inode


def test_dd_notrunc_makes_it_longer(img, disk):
    Path("out").write_bytes(b"x" * 4 * KIB)
    img("dd", "-f", "raw", "if=a.raw", "of=out", "bs=4k", "count=2", "seek=3", "conv=notrunc,fsync")
    same_bytes("out", b"x" * 4 * KIB + bytes(2 * 4 * KIB) + disk[:2 * 4 * KIB])


def test_dd_sparse(img, tmp, rng):
    content = random_content(rng, 4 * MIB, 64 * KIB)
    Path("a.raw").write_bytes(content)
    img("dd", "-f", "raw", "if=a.raw", "of=out", "bs=64k", "conv=sparse")
    same_bytes("out", content)
    assert os.stat("out").st_blocks <= os.stat("a.raw").st_blocks


def test_dd_excl_and_nocreat(img, disk):
    img.fails("dd", "-f", "raw", "if=a.raw", "of=out", "conv=nocreat", code=1)
    img("dd", "-f", "raw", "if=a.raw", "of=out", "conv=excl", "count=1")
    img.fails("dd", "-f", "raw", "if=a.raw", "of=out", "conv=excl", code=1)
    assert os.path.getsize("out") == 512


@pytest.mark.parametrize("args", [["conv=nosuch"], ["status=loud"], ["count=x"], ["seek=-1"], ["bs"]],
                         ids=" ".join)
def test_dd_bad_operands(img, disk, args):
    img.fails("dd", "-f", "raw", "if=a.raw", "of=out", *args, code=1)
    assert os.listdir(".") == ["a.raw"]


def test_dd_status_progress(img, disk):
    result = img("dd", "-f", "raw", "if=a.raw", "of=out", "status=progress")
    assert f"{SIZE} bytes (16 MiB) copied" in result.err
    assert not img("dd", "-f", "raw", "if=a.raw", "of=out").err


@pytest.mark.parametrize("cache,syncs", [([], True), (["-t", "unsafe"], False)], ids=["", "unsafe"])
@pytest.mark.parametrize("form", ["raw", "qcow2"])
def test_target_that_was_there_is_brought_to_the_disk(img, qemu_img, disk, need_tool, form, cache, syncs):
    """convert -n promised that as convert does, and did not do it."""
    qemu_img("create", "-f", form, "out", SIZE)
    trace = [need_tool("strace"), "-f", "-e", "trace=fdatasync,fsync", "-o", "trace"]
    subprocess.run([*trace, img.path, "convert", *cache, "-n", "-f", "raw", "-O", form, "a.raw", "out"],
                   check=True, env={**os.environ, "ASAN_OPTIONS": "detect_leaks=0"})
    assert ("sync(" in Path("trace").read_text()) == syncs


def test_a_signal_does_not_wait_for_the_rate_limit(img, disk):
    """The next piece was due in days, and only the grace period ended the program."""
    process = subprocess.Popen([img.path, "convert", "-r", "1", "-f", "raw", "-O", "raw", "a.raw", "out"],
                               stderr=subprocess.PIPE, text=True)
    time.sleep(0.5)
    process.send_signal(signal.SIGINT)
    assert process.wait(2) == 130
    assert "stopped before the end" in process.stderr.read()
    assert os.listdir(".") == ["a.raw"]


# ---------------------------------------------------------------- targets of several files

FLAT = ("-O", "vmdk", "-o", "subformat=monolithicFlat")
FAULT = ("driver=raw,file.driver=blkdebug,file.image.filename=new.raw,"
         "file.inject-error.0.event=read_aio,file.inject-error.0.errno=5,file.inject-error.0.sector=2000")


@pytest.fixture
def flat(img, tmp):
    """t.vmdk with t-flat.vmdk, and a source of other content."""
    Path("old.raw").write_bytes(b"\1" * (4 << 20))
    Path("new.raw").write_bytes(b"\2" * (4 << 20))
    img("convert", "-f", "raw", *FLAT, "old.raw", "t.vmdk")
    return sorted(os.listdir())


def test_failed_target_keeps_its_extents(img, qemu_img, flat):
    """They were overwritten in place, and the old image was gone."""
    img.fails("convert", "--image-opts", *FLAT, FAULT, "t.vmdk")
    assert sorted(os.listdir()) == flat
    qemu_img("compare", "-f", "raw", "-F", "vmdk", "old.raw", "t.vmdk")


def test_extents_are_replaced_and_keep_their_mode(img, qemu_img, flat):
    os.chmod("t-flat.vmdk", 0o600)
    img("convert", "-f", "raw", *FLAT, "new.raw", "t.vmdk")
    assert sorted(os.listdir()) == flat
    assert os.stat("t-flat.vmdk").st_mode & 0o777 == 0o600
    qemu_img("compare", "-f", "raw", "-F", "vmdk", "new.raw", "t.vmdk")


def test_source_is_no_extent_of_the_target(img, flat):
    img.fails("convert", "-f", "raw", *FLAT, "t-flat.vmdk", "t.vmdk")
    assert Path("t-flat.vmdk").read_bytes() == Path("old.raw").read_bytes()
    assert sorted(os.listdir()) == flat


def test_extent_in_the_way(img, tmp):
    Path("new.raw").write_bytes(b"\2" * (4 << 20))
    Path("t-flat.vmdk").mkdir()
    img.fails("convert", "-f", "raw", *FLAT, "new.raw", "t.vmdk")
    assert sorted(os.listdir()) == ["new.raw", "t-flat.vmdk"]


def test_stopped_target_leaves_no_folder(img, flat):
    process = img.start("convert", "-f", "raw", "-r", "1M", *FLAT, "new.raw", "t.vmdk")
    time.sleep(0.7)
    process.terminate()
    assert process.wait(20) == 128 + signal.SIGTERM
    assert sorted(os.listdir()) == flat
    assert Path("t-flat.vmdk").read_bytes() == Path("old.raw").read_bytes()
