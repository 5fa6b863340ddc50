"""io as a program: help, manual, completion, its two names, the terminal, and what it does by itself."""

import os
import pty
import re
import select
import signal
import subprocess
import threading
import time
from pathlib import Path

import pytest

from iotools import as_qemu_io, both, commands, io  # noqa: F401  (fixtures)
from platter import KIB, MIB

ROOT = Path(__file__).parent.parent.parent
MANUAL = ROOT / "docs" / "man" / "io.1"
COMPLETION = ROOT / "docs" / "completion" / "io"


@pytest.fixture
def raw(tmp):
    """a.raw, 1 MiB of nothing."""
    with open("a.raw", "wb") as file:
        file.truncate(MIB)


# ---------------------------------------------------------------- help and manual

def help_options(io):
    rows = set()
    for line in io("--help").out.splitlines():
        match = re.match(r"  (?:-(\w), )?--([\w-]+)(?:=(\w+))?  ", line)
        if match:
            rows.add(match.groups())
    return rows


def sections():
    return dict(re.findall(r"(?m)^\.S[hs] (.*)\n((?:(?!\.S[hs] ).*\n)*)", MANUAL.read_text()))


def test_manual_and_help_list_the_same_options(io):
    rows = set()
    for line in sections()["OPTIONS"].splitlines():
        match = re.match(r"\.It (?:Fl (\w) , )?Fl -([\w-]+)(?: Ns = Ns Ar (\w+))?$", line)
        assert match or not line.startswith(".It"), line
        if match:
            rows.add(match.groups())
    ours = help_options(io)
    assert len(ours) == 17 and ours == rows


def listed(io):
    """{name: arguments} of the commands."""
    lines = io("-c", "help").out.split("\n\n")[0].splitlines()
    return dict(re.match(r"(\w+) (?:(.*) )?-- ", line).groups() for line in lines)


def test_manual_and_help_list_the_same_commands(io):
    titles = dict(title.partition(" ")[::2] for title in sections() if title[0].islower())
    ours = listed(io)
    assert ours.keys() == titles.keys()
    for name, args in ours.items():
        assert (args or "").strip() in ("", titles[name]), name


def test_manual_and_help_of_each_command_agree(io):
    texts = {title.partition(" ")[0]: text for title, text in sections().items()}
    for name in listed(io):
        said = set(re.findall(r"^ -(\w), -- ", io("-c", f"help {name}").out, re.M))
        written = set(re.findall(r"^\.It Fl (\w)", texts[name], re.M))
        assert said == written or name == "truncate", name
    assert "It Fl m" in texts["truncate"]


def test_lines_of_help_are_those_of_qemu_io(io, qemu_io):
    assert io("-c", "help").out == qemu_io("-c", "help").out


def test_help_speaks_of_every_flag_of_qemu_io(io, qemu_io):
    for name in listed(io):
        theirs = set(re.findall(r"^ -(\w), -- ", qemu_io("-c", f"help {name}").out, re.M))
        assert theirs <= set(re.findall(r"^ -(\w), -- ", io("-c", f"help {name}").out, re.M)), name


def test_manual_has_no_faults(need_tool):
    done = subprocess.run([need_tool("mandoc"), "-Tlint", "-Wwarning", MANUAL], capture_output=True,
                          text=True)
    assert not [line for line in done.stdout.splitlines() if "mandoc.db" not in line]


def test_names_and_versions(io, as_qemu_io, raw):
    assert re.fullmatch(r"io \(Platter\) \d+\.\d+\.\d+\n", io("--version").out)
    assert re.match(r"qemu-io version \d+\.\d+\.\d+ ", as_qemu_io("-V").out)
    assert io("missing", code=1).err.startswith("io: can't open device missing: ")
    assert as_qemu_io("missing", code=1).err.startswith("qemu-io: can't open device missing: ")
    assert io("-r", "-f", "raw", "a.raw", stdin=b"length\n").out == "io> 1 MiB\nio> "


def test_formats_are_listed(io):
    assert {"raw", "qcow2"} <= set(io("-f", "help").out.split())


def complete(io, *words):
    """What the shell would offer for the last word."""
    script = f"source '{COMPLETION}'; compopt() {{ :; }}; COMP_WORDS=(\"$@\"); " \
             "COMP_CWORD=$(($# - 1)); _io; printf '%s\\n' \"${COMPREPLY[@]}\""
    done = subprocess.run(["bash", "-c", script, "bash", io.path, *words], capture_output=True,
                          text=True, check=True)
    return done.stdout.split()


@pytest.mark.parametrize("words,offers", [
    (["--im"], ["--image-opts"]), (["-f", "qc"], ["qcow2"]), (["-t", "w"], ["writeback", "writethrough"]),
    (["--cache", "=", "uns"], ["unsafe"]), (["-c", "aio_f"], ["aio_flush"]), (["a.r"], ["a.raw"])], ids=str)
def test_completion(io, raw, words, offers):
    assert complete(io, *words) == offers


# ---------------------------------------------------------------- at a terminal

class Terminal:
    """A program at a terminal of its own."""

    def __init__(self, *argv):
        self.pid, self.fd = pty.fork()
        if self.pid == 0:
            os.environ["TERM"] = "dumb"
            os.execv(argv[0], list(map(str, argv)))

    def until(self, text, seconds=20):
        """What is printed up to there."""
        out, end = "", time.monotonic() + seconds
        while text not in out:
            assert time.monotonic() < end, f"no {text!r} in {out!r}"
            if select.select([self.fd], [], [], 0.2)[0]:
                try:
                    out += os.read(self.fd, 4096).decode()
                except OSError:
                    break
        return out

    def type(self, text):
        os.write(self.fd, text.encode())

    def end(self, seconds=20):
        """The exit code."""
        late = threading.Timer(seconds, os.kill, (self.pid, signal.SIGKILL))
        late.start()
        code = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        late.cancel()
        os.close(self.fd)
        return code


def test_terminal(io, raw):
    """A command, one from the history, a completed name, a request that ends by itself, and the end."""
    term = Terminal(io.path, "-f", "raw", "a.raw")
    term.until("io> ")
    term.type("read 0 512\n")
    assert "read 512/512 bytes at offset 0" in term.until("ops/sec)\r\nio> ")
    term.type("\x10\n")  # the previous one
    assert "read 512/512 bytes at offset 0" in term.until("ops/sec)\r\nio> ")
    term.type("leng\t\n")
    term.until("1 MiB\r\nio> ")
    term.type("aio_write 0 1k\n")
    term.until("ops/sec)\r\nio> ")
    term.type("quit\n")
    assert term.end() == 0


def test_terminal_remembers_a_failure(io, raw):
    term = Terminal(io.path, "-f", "raw", "a.raw")
    term.until("io> ")
    term.type("bogus\n")
    term.until("not found\r\nio> ")
    term.type("\x04")
    assert term.end() == 1


# ---------------------------------------------------------------- by itself

def test_unfinished_requests_end_before_the_program(io, raw):
    many = [word for i in range(40) for word in ("-c", f"aio_write -P {i + 1} {i * 4096} 4k")]
    out = io("-f", "raw", *many, "a.raw").out
    assert out.count("wrote 4096/4096") == 40
    data = Path("a.raw").read_bytes()
    assert all(data[i * 4096:(i + 1) * 4096] == bytes([i + 1]) * 4096 for i in range(40))


def test_quit_waits(io, raw):
    assert "wrote 512/512" in io("-f", "raw", *commands("aio_write 0 512\nquit\nread 0 1"), "a.raw").out


def test_sleep_tells_what_ended(io, raw):
    out = io("-f", "raw", *commands("aio_write 0 512\nsleep 300\nlength"), "a.raw").out
    assert out.index("wrote") < out.index("1 MiB")


def test_finished_request_is_told_while_nobody_types(io, raw):
    process = subprocess.Popen([io.path, "-f", "raw", "a.raw"], stdin=subprocess.PIPE,
                               stdout=subprocess.PIPE)
    late = threading.Timer(20, process.kill)
    late.start()
    process.stdin.write(b"aio_write 0 512\n")
    process.stdin.flush()
    out = b""
    while b"wrote 512/512" not in out:
        piece = os.read(process.stdout.fileno(), 4096)
        assert piece, out
        out += piece
    process.stdin.close()
    assert process.wait() == 0
    late.cancel()


def test_reopen_that_fails_leaves_the_image_open(io, raw):
    result = io("-f", "raw", *commands("write -P 7 0 512\nreopen -o nonsense=1\nread -P 7 0 512"), "a.raw", code=1)
    assert "nonsense" in result.err and "read 512/512" in result.out


def test_reopen_cannot_change_the_file(io, raw):
    Path("b.raw").write_bytes(bytes(512))
    for option in ("file.filename=b.raw", "filename=b.raw", "driver=qcow2"):
        err = io("-f", "raw", "-c", f"reopen -o {option}", "a.raw", code=1).err
        assert "Cannot change the option" in err


def test_vm_state_and_breakpoints_say_why_not(io, raw):
    assert "VM state" in io("-f", "raw", "-c", "read -b 0 512", "a.raw", code=1).err
    assert "blkdebug" in io("-f", "raw", "-c", "break pwritev A", "a.raw", code=1).err


def test_long_requests(io, tmp):
    """As long as a request may be, in bounded memory."""
    with open("a.raw", "wb") as file:
        file.truncate(8 << 30)
    result = io("-f", "raw", "-c", "write -z -u -n 0 8G", "-c", "discard 0 2147483136", "a.raw",
                memory=64 * MIB)
    assert "8 GiB, 1 ops" in result.out
    assert os.stat("a.raw").st_blocks * 512 < 64 * KIB


def test_full_output_is_an_error(io, raw):
    with open("/dev/full", "wb") as full:
        done = subprocess.run([io.path, "-f", "raw", "-c", "length", "a.raw"], stdout=full,
                              stderr=subprocess.PIPE)
    assert done.returncode == 1 and b"standard output" in done.stderr
