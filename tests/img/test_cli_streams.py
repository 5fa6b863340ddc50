"""Pipes: - as source and target of convert and dd."""

import os
import pty
import re
import signal
import subprocess
import time
from pathlib import Path

import pytest

from platter import KIB, MIB, random_content, same_bytes, write_sparse


@pytest.fixture
def disk(tmp, rng):
    content = random_content(rng, 9 * MIB + 1536, 64 * KIB)
    write_sparse("a.raw", content)
    return content


@pytest.mark.parametrize("args", [["-O", "raw"], ["-O", "qcow2"], ["-c", "-O", "qcow2"],
                                  ["-O", "qcow2", "-o", "cluster_size=512"],
                                  ["-c", "-O", "qcow2", "-o", "cluster_size=2M"],
                                  ["-O", "qcow2", "-S", "0"], ["-m", "1", "-O", "raw"]],
                         ids=" ".join)
def test_from_a_pipe(img, qemu_img, disk, args):
    img("convert", *args, "-", "out", stdin=disk)
    form = args[args.index("-O") + 1]
    assert qemu_img("info", "--output=json", "-f", form, "out").json["virtual-size"] == len(disk)
    qemu_img("compare", "-f", "raw", "-F", form, "a.raw", "out")
    if form == "qcow2":
        qemu_img("check", "out")


@pytest.mark.parametrize("length", [0, 1, 511, 512, 2 * MIB - 1, 2 * MIB, 2 * MIB + 1, 80 * MIB])
def test_length_from_a_pipe(img, qemu_img, tmp, length):
    """A disk ends with a whole sector."""
    data = b"\1" * length
    whole = data + bytes(-length % 512)
    img("convert", "-O", "raw", "-", "out", stdin=data or None)
    same_bytes("out", whole)
    img("convert", "-O", "qcow2", "-", "out.qcow2", stdin=data or None)
    assert qemu_img("info", "--output=json", "out.qcow2").json["virtual-size"] == len(whole)
    qemu_img("check", "out.qcow2")
    if length:
        qemu_img("compare", "-f", "raw", "-F", "qcow2", "out", "out.qcow2")


def test_slow_pipe(img, disk):
    """Bytes that come in small pieces, with pauses."""
    process = subprocess.Popen([img.path, "convert", "-", "out"], stdin=subprocess.PIPE)
    for at in range(0, len(disk), 3000001):
        process.stdin.write(disk[at:at + 3000001])
        process.stdin.flush()
        time.sleep(0.02)
    process.stdin.close()
    assert process.wait(30) == 0
    same_bytes("out", disk)


def test_sparse_from_a_pipe(img, tmp):
    img("convert", "-O", "raw", "-", "out", stdin=bytes(8 * MIB) + b"\1" * 4096)
    assert os.path.getsize("out") == 8 * MIB + 4096
    assert os.stat("out").st_blocks * 512 <= 64 * KIB


def test_file_on_standard_input_can_have_any_format(img, qemu_img, disk):
    qemu_img("convert", "-f", "raw", "-O", "qcow2", "a.raw", "a.qcow2")
    with open("a.qcow2", "rb") as file:
        subprocess.run([img.path, "convert", "-O", "raw", "-", "out"], stdin=file, check=True)
    same_bytes("out", disk)


@pytest.mark.parametrize("form", ["vmdk", "qcow2", "vdi"])
def test_pipe_with_a_format(img, qemu_img, disk, form):
    """Kept in a hidden file first, since formats are not read in order."""
    options = ["-o", "subformat=streamOptimized"] if form == "vmdk" else []
    qemu_img("convert", "-f", "raw", "-O", form, *options, "a.raw", "a.img")
    img("convert", "-f", form, "-O", "raw", "-", "out", stdin=Path("a.img").read_bytes())
    same_bytes("out", disk)
    part = Path("a.img").read_bytes()[:os.stat("a.img").st_size * 2 // 3]
    img.fails("convert", "-f", form, "-O", "raw", "-", "cut", stdin=part)
    assert not os.path.exists("cut")


def test_pipe_that_does_not_fit(img, qemu_img, disk):
    qemu_img("convert", "-f", "raw", "-O", "qcow2", "a.raw", "a.qcow2")
    assert "keep the stream" in img.fails("convert", "-f", "qcow2", "-O", "raw", "-", "out", file_size=64 * KIB,
                                          stdin=Path("a.qcow2").read_bytes()).err
    assert not os.path.exists("out")


def test_pipe_without_the_format_that_is_stated(img, disk):
    img.fails("convert", "-f", "qcow2", "-O", "raw", "-", "out", stdin=disk, code=1)
    assert not os.path.exists("out")


def test_pipe_longer_than_the_target_is_refused(img, disk):
    Path("out").write_bytes(bytes(MIB))
    img.fails("convert", "-n", "-O", "raw", "-", "out", stdin=disk, code=1)


@pytest.mark.parametrize("form", ["raw", "qcow2"])
def test_into_a_pipe(img, qemu_img, disk, form):
    qemu_img("convert", "-f", "raw", "-O", form, "a.raw", "src")
    result = img("convert", "-f", form, "-O", "raw", "src", "-", text=False)
    assert result.out == disk
    process = subprocess.Popen([img.path, "convert", "-f", form, "-O", "raw", "src", "-"],
                               stdout=subprocess.PIPE)
    assert process.stdout.read() == disk
    assert process.wait(10) == 0


def test_into_a_file_on_standard_output_leaves_holes(img, tmp):
    os.truncate(os.open("a.raw", os.O_CREAT | os.O_WRONLY), 8 * MIB)
    with open("out", "wb") as out:
        subprocess.run([img.path, "convert", "-f", "raw", "a.raw", "-"], stdout=out, check=True)
    assert os.path.getsize("out") == 8 * MIB
    assert os.stat("out").st_blocks * 512 <= 64 * KIB


def test_behind_what_is_in_the_file_already(img, disk):
    """`>>` and a position that others set are respected."""
    Path("out").write_bytes(b"head")
    with open("out", "ab") as out:
        subprocess.run([img.path, "convert", "-f", "raw", "a.raw", "-"], stdout=out, check=True)
    same_bytes("out", b"head" + disk)


def test_several_sources_into_a_pipe(img, disk):
    result = img("convert", "-f", "raw", "-O", "raw", "a.raw", "a.raw", "-", text=False)
    assert result.out == disk + disk


@pytest.mark.parametrize("args", [[], ["-c"], ["-c", "-o", "cluster_size=2M"], ["-S", "0"]], ids=" ".join)
def test_sources_that_end_within_a_cluster_or_a_sector(img, qemu_img, tmp, rng, args):
    for name, length in (("a", 100000), ("b", 3 * MIB + 512), ("c", 1), ("d", 70001)):
        write_sparse(name, random_content(rng, length, 16 * KIB))
    names = ["a", "b", "c", "d", "a"]
    qemu_img("convert", "-f", "raw", "-O", "raw", *names, "theirs")
    img("convert", "-f", "raw", "-O", "qcow2", *args, *names, "ours")
    qemu_img("check", "ours")
    qemu_img("compare", "-f", "raw", "-F", "qcow2", "theirs", "ours")
    whole = Path("theirs").read_bytes()
    assert img("convert", "-f", "raw", "-O", "raw", *names, "-", text=False).out == whole
    img("convert", "-f", "raw", "-O", "raw", *names, "ours.raw")
    same_bytes("ours.raw", whole)


@pytest.mark.parametrize("args", [["-O", "qcow2"], ["-n", "-O", "raw"], ["-c", "-O", "qcow2"]],
                         ids=" ".join)
def test_what_cannot_be_streamed_is_refused(img, disk, args):
    assert not img.fails("convert", "-f", "raw", *args, "a.raw", "-", code=1).out


def test_no_disk_onto_a_terminal(img, disk):
    master, slave = pty.openpty()
    process = subprocess.run([img.path, "convert", "-f", "raw", "a.raw", "-"], stdout=slave,
                             stderr=subprocess.PIPE, text=True)
    os.close(slave)
    os.close(master)
    assert process.returncode == 1 and "terminal" in process.stderr


def test_reader_that_goes_away(img, disk):
    process = subprocess.Popen([img.path, "convert", "-f", "raw", "a.raw", "-"],
                               stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    process.stdout.close()
    assert process.wait(10) == 1
    assert "Broken pipe" in process.stderr.read()


def test_signal_while_waiting_for_a_pipe(img, tmp):
    process = subprocess.Popen([img.path, "convert", "-O", "qcow2", "-", "out"],
                               stdin=subprocess.PIPE, stderr=subprocess.PIPE)
    process.stdin.write(b"x" * MIB)
    process.stdin.flush()
    time.sleep(0.3)
    process.send_signal(signal.SIGINT)
    assert process.wait(2) == 130
    assert os.listdir(".") == []


def test_progress_of_a_stream_goes_to_standard_error(img, disk):
    result = img("convert", "-p", "-f", "raw", "a.raw", "-", text=False)
    assert result.out == disk
    assert "100.00/100%" in result.err


def test_through_two_pipes(img, disk):
    first = subprocess.Popen([img.path, "convert", "-f", "raw", "a.raw", "-"], stdout=subprocess.PIPE)
    second = subprocess.Popen([img.path, "convert", "-c", "-O", "qcow2", "-", "out"],
                              stdin=first.stdout)
    first.stdout.close()
    assert second.wait(30) == 0 and first.wait(30) == 0
    img("compare", "-f", "raw", "-F", "qcow2", "a.raw", "out")


def test_named_pipes(img, disk):
    """What a shell's <(...) and >(...) give."""
    os.mkfifo("in")
    os.mkfifo("out")
    done = subprocess.run(["bash", "-c", f"cat a.raw >in & '{img.path}' convert -O raw in out & cat out"],
                          stdout=subprocess.PIPE, timeout=20, check=True)
    assert done.stdout == disk
    done = subprocess.run(["bash", "-c", f"'{img.path}' convert -O qcow2 <(cat a.raw) x.qcow2"],
                          timeout=20, check=True)
    img("compare", "-f", "raw", "-F", "qcow2", "a.raw", "x.qcow2")


def test_into_nothing(img, disk):
    img("convert", "-f", "raw", "-O", "raw", "a.raw", "/dev/null")
    assert os.path.exists("/dev/null") and not os.path.isfile("/dev/null")


def test_dd_from_and_to_pipes(img, disk):
    img("dd", "if=-", "of=out", "bs=64k", "skip=1", "count=2", "seek=1", stdin=disk)
    same_bytes("out", bytes(64 * KIB) + disk[64 * KIB:3 * 64 * KIB])
    result = img("dd", "-f", "raw", "if=a.raw", "of=-", "bs=512", "skip=3", "count=4", text=False)
    assert result.out == disk[3 * 512:7 * 512]


def test_dd_of_a_pipe_into_a_longer_image(img, disk):
    """conv=notrunc: what lies behind stays."""
    Path("out").write_bytes(b"x" * MIB)
    img("dd", "if=-", "of=out", "bs=4k", "seek=2", "conv=notrunc", stdin=disk[:8 * KIB])
    same_bytes("out", b"x" * 8 * KIB + disk[:8 * KIB] + b"x" * (MIB - 16 * KIB))


def test_memory_of_a_stream_is_bounded(img, tmp):
    if img.sanitized or b"__tsan_init" in Path(img.path).read_bytes():
        pytest.skip("a sanitizer takes its own")
    source = subprocess.Popen(["head", "-c", "300M", "/dev/urandom"], stdout=subprocess.PIPE)
    process = subprocess.Popen([img.path, "convert", "-O", "raw", "-", "out"], stdin=source.stdout)
    source.stdout.close()
    peak = 0
    while process.poll() is None:
        # Not ru_maxrss, which counts what this process had before it became another program.
        status = Path(f"/proc/{process.pid}/status").read_text()
        peak = max([peak] + [int(n) * KIB for n in re.findall(r"VmHWM:\s*(\d+)", status)])
        time.sleep(0.02)
    source.wait(10)
    assert process.returncode == 0
    assert 0 < peak <= 64 * MIB
