"""Progress: percents, bar, JSON, SIGUSR1."""

import fcntl
import json
import os
import pty
import re
import signal
import struct
import subprocess
import termios
import time

import pytest

from platter import MIB, write_sparse


@pytest.fixture
def disk(tmp, rng):
    write_sparse("a.raw", rng.randbytes(4 * MIB))


SLOW = ["convert", "-r", "2M", "-f", "raw", "-O", "raw", "a.raw", "out"]


def on_a_terminal(img, *args, stdout=False, columns=100):
    """What the program writes to standard error (or output) when that is a terminal."""
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    env = {**os.environ, "TERM": "xterm", "LC_ALL": "C.UTF-8"}
    env.pop("COLUMNS", None)
    process = subprocess.Popen([img.path, *args], stdin=subprocess.DEVNULL, env=env,
                               **{"stdout" if stdout else "stderr": slave})
    os.close(slave)
    seen = b""
    while True:
        try:
            part = os.read(master, 4096)
        except OSError:
            break
        if not part:
            break
        seen += part
    os.close(master)
    assert process.wait(30) == 0
    return seen.decode()


def test_percents_as_qemu_img_prints_them(img, qemu_img, disk):
    ours = img("convert", "-p", "-f", "raw", "-O", "raw", "a.raw", "out").out
    theirs = qemu_img("convert", "-p", "-f", "raw", "-O", "raw", "a.raw", "out").out
    line = re.compile(r"(    \(\d+\.\d\d/100%\)\r)+\n")
    for text in (ours, theirs):
        assert line.fullmatch(text)
        assert text.startswith("    (0.00/100%)\r") and text.endswith("    (100.00/100%)\r\n")
    values = [float(v) for v in re.findall(r"\((\d+\.\d\d)/100%\)", ours)]
    assert values == sorted(values)


def test_quiet_silences_percents(img, disk):
    result = img("convert", "-p", "-q", "-f", "raw", "-O", "raw", "a.raw", "out")
    assert not result.out.strip() and not result.err


@pytest.mark.parametrize("args", [["-p"], ["--progress"], ["--progress=qemu"]], ids=" ".join)
def test_percents_of_compare(img, disk, args):
    out = img("compare", *args, "-f", "raw", "-F", "raw", "a.raw", "a.raw").out
    assert "(100.00/100%)" in out and out.endswith("Images are identical.\n")


def test_json_lines(img, disk):
    err = img(*SLOW, "--progress=json").err
    lines = [json.loads(line) for line in err.splitlines()]
    assert len(lines) >= 3
    assert [line["state"] for line in lines] == ["running"] * (len(lines) - 1) + ["finished"]
    assert all(line["command"] == "convert" and line["total"] == 4 * MIB for line in lines)
    assert lines[-1]["done"] == 4 * MIB and lines[-1]["percent"] == 100
    done = [line["done"] for line in lines]
    assert done == sorted(done) and done[0] < 4 * MIB


def test_json_tells_failure(img, disk):
    err = img.fails("convert", "--progress=json", "-f", "raw", "-O", "raw", "a.raw", "no/such/out",
                    code=1).err
    assert json.loads(err.splitlines()[-1])["state"] == "failed"


def test_bar_on_a_terminal(img, disk):
    text = on_a_terminal(img, *SLOW)
    assert "█" in text and "%" in text and "left" in text
    assert text.endswith("\r\033[K"), "the bar stays on the screen"
    for frame in text.split("\r"):
        assert len(frame.replace("\033[K", "")) < 100


def test_narrow_terminal(img, disk):
    for frame in on_a_terminal(img, *SLOW, columns=40).split("\r"):
        assert len(frame.replace("\033[K", "")) <= 60


def test_no_bar_for_short_work_quiet_work_or_when_told(img, disk):
    short = ["convert", "-f", "raw", "-O", "raw", "a.raw", "out"]
    assert not on_a_terminal(img, *short)
    assert not on_a_terminal(img, *SLOW, "-q")
    assert not on_a_terminal(img, *SLOW, "--progress=none")


def test_no_bar_when_standard_error_is_no_terminal(img, disk):
    assert not img(*SLOW).err


def test_sigusr1_prints_one_line(img, disk):
    process = subprocess.Popen([img.path, *SLOW], stderr=subprocess.PIPE, text=True)
    time.sleep(0.5)
    process.send_signal(signal.SIGUSR1)
    assert process.wait(20) == 0
    lines = process.stderr.read().splitlines()
    assert len(lines) == 1
    assert re.match(r"img: convert: \d+\.\d\d% of 4 MiB, .*/s, .* left$", lines[0]), lines


def test_info_shows_a_bar_on_a_terminal_only(img, disk):
    assert "allocated:" in on_a_terminal(img, "info", "a.raw", stdout=True)
    assert "allocated:" not in img("info", "a.raw").out
    assert "allocated:" not in on_a_terminal(img, "info", "--output=json", "a.raw", stdout=True)
