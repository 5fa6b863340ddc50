"""The emulator's command line and monitor, with machines that stand still or run firmware only."""

import os
import re
import signal
import subprocess
import time
from pathlib import Path

import pytest
from conftest import BIN
from platter import Tool
from vm import VM

ROOT = Path(__file__).parent.parent.parent
MANUAL = ROOT / "docs" / "man" / "emulator.1"
STILL = ("-S", "-display", "none")


@pytest.fixture
def emulator():
    return Tool(BIN / "emulator")


@pytest.fixture
def firmware(tmp):
    """Says 'A' at the debug port and halts; the end of a 64 KiB ROM jumps to its beginning."""
    code = bytes.fromhex("ba0204 b041 ee f4 ebfd")
    rom = code.ljust(0xfff0, b"\x90") + bytes.fromhex("e90d00") + bytes(13)
    (tmp / "rom").write_bytes(rom)
    return tmp / "rom"


class Monitor(VM):
    """A machine by its monitor, which answers already."""

    def __init__(self, *argv):
        super().__init__(Path.cwd(), *argv)
        self.ask("")

    def ask(self, command):
        """What came after the echo of the command."""
        return super().ask(command, 20).partition("\n")[2]

    def press(self, keys, text):
        """Until this came. (A line that is drawn again looks like a prompt.)"""
        self.monitor.sendall(keys.encode())
        said = ""
        while text not in said:
            more = self.monitor.recv(65536).decode()
            assert more, said
            said += more

    def until(self, command, text):
        end = time.monotonic() + 20
        while text not in (said := self.ask(command)):
            assert time.monotonic() < end, said
            time.sleep(0.05)

    def quit(self):
        self.monitor.sendall(b"quit\r")
        return self.end()

    def end(self):
        code = self.wait_end(20)
        assert b"Sanitizer" not in (said := self.process.stderr.read()), said
        return code


@pytest.fixture
def machine(tmp, firmware):
    machines = []

    def start(*argv):
        machines.append(Monitor("-bios", firmware, *argv))
        return machines[-1]

    yield start
    for m in machines:
        m.__exit__()


def test_manual_and_help_list_the_same_options(emulator):
    shown = set(re.findall(r"^  -([\w-]+)", emulator("-help").out, re.M))
    manual = set(re.findall(r"^\.It Fl ([\w-]+)", MANUAL.read_text(), re.M))
    assert shown and shown == manual


def test_manual_has_no_faults(need_tool):
    done = subprocess.run([need_tool("mandoc"), "-Tlint", "-Wwarning", MANUAL], capture_output=True, text=True)
    assert [line for line in done.stdout.splitlines() if "mandoc.db" not in line] == []


@pytest.mark.parametrize("option, shows", [
    ("-M help", "q35"), ("-cpu help", "max"), ("-device help", 'name "virtio-blk-pci"'), ("-accel help", "tcg"),
    ("-device nvme,help", "serial=<str>"), ("-chardev help", "socket"), ("-chardev socket,help", "server=<bool>"),
    ("-blockdev help", "qcow2"), ("-blockdev qcow2,help", "lazy"), ("-display help", "none"), ("-vga help", "std"),
])
def test_help_for_values(emulator, option, shows):
    assert shows in emulator(*option.split()).out


def test_as_qemu(tmp):
    (tmp / "qemu-system-x86_64").symlink_to(BIN / "emulator")
    assert Tool(tmp / "qemu-system-x86_64")("--version").out.startswith("QEMU emulator version 7.2.")


@pytest.mark.parametrize("argv, says", [
    (["-blokdev", "x"], "is it -blockdev?"), (["-m"], "a value is missing"), (["-m", "9q"], "not a size"),
    (["-netdev", "user,id=n"], "not there yet"), (["-smp", "0"], "from 1"), (["-smp", "3,cores=2"], "whole sockets"),
    (["-device", "nope"], "no device 'nope'"), (["-device", "nvme,drive=x"], "'x'"), (["-M", "nope"], "'nope'"),
    (["-device", "nvme,drve=x"], "did you mean 'drive'"), (["-cpu", "nope"], "'nope'"), (["-accel", "kvm"], "-accel tcg"),
    (["-kernel", "nope"], "nope"), (["-initrd", "x"], "go with -kernel"), (["-serial", "nope"], "no backend 'nope'"),
    (["-drive", "file=nope"], "nope"), (["-drive", "file=a.raw,if=scsi"], "ide, virtio and none"),
    (["-hda", "a.raw", "-hda", "a.raw"], "already"), (["-uuid", "5"], "of the form"), (["-boot", "z"], "letters"),
    (["-blockdev", "file,filename=a.raw"], "node-name"), (["-display", "gtk"], "no window yet"),
    (["-drive", "file=a.raw,format=qcow2"], "a.raw"), (["-append", "x"], "go with -kernel"),
    (["-chardev", "socket,id=a"], "path="), (["-mon", "nobody"], "no chardev 'nobody'"),
])
def test_mistakes(emulator, tmp, argv, says):
    (tmp / "a.raw").write_bytes(bytes(1 << 20))
    assert says in emulator(*STILL, *argv, code=1).err


def test_paused_until_cont(machine):
    m = machine("-S", "-chardev", "file,id=d,path=said", "-device", "isa-debugcon,iobase=0x402,chardev=d")
    assert m.ask("info status") == "VM status: paused (prelaunch)\n"
    assert Path("said").read_text() == ""
    m.ask("cont")
    assert m.ask("info status") == "VM status: running\n"
    until = time.monotonic() + 10
    while Path("said").read_text() != "A":
        assert time.monotonic() < until
    m.ask("stop")
    assert m.ask("info status") == "VM status: paused\n"
    assert "HLT=1" in m.ask("info registers")
    m.ask("cont")
    m.ask("system_reset")
    while Path("said").read_text() != "AA":
        assert time.monotonic() < until
    assert m.quit() == 0


def test_drives_are_plugged_in(machine, img, tmp):
    for name in "abcd":
        img("create", "-f", "qcow2", name, "16M")
    m = machine("-S", "-hda", "a", "-drive", "file=b,if=virtio,id=two,serial=S,werror=stop", "-cdrom", "c", "-blockdev",
                '{"driver": "qcow2", "node-name": "n", "file": {"driver": "file", "filename": "d"}}',
                "-device", "nvme,drive=n,serial=1,addr=0a")
    said = m.ask("info block")
    assert all(f"{name}" in said for name in ("two", "n:", "qcow2"))
    pci = m.ask("info pci")
    assert "device  10" in pci and "1af4" in pci
    assert m.quit() == 0


def test_mux_of_serial_port_and_monitor(tmp, firmware):
    process = subprocess.Popen([BIN / "emulator", "-nographic", "-bios", firmware], stdin=subprocess.PIPE,
                               stdout=subprocess.PIPE)
    process.stdin.write(b"\1cinfo version\r\1h")
    process.stdin.flush()
    time.sleep(0.5)
    out, _ = process.communicate(b"\1x", timeout=20)
    assert process.returncode == 0
    assert b"Platter 0." in out and b"Ctrl-a x" in out


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_signals_end_it_well(machine, number):
    m = machine()
    m.process.send_signal(number)
    assert m.end() == 0


def test_daemon_writes_its_number(tmp, firmware):
    subprocess.run([BIN / "emulator", *STILL, "-bios", firmware, "-daemonize", "-pidfile", "pid"], check=True,
                   timeout=20, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    number = int(Path("pid").read_text())
    os.kill(number, signal.SIGTERM)
    until = time.monotonic() + 10
    while Path(f"/proc/{number}").exists() and "Z" not in Path(f"/proc/{number}/stat").read_text().split()[2]:
        assert time.monotonic() < until
        time.sleep(0.05)


def test_guest_says_how_it_ends(emulator, tmp):
    """isa-debug-exit: 5 becomes 11."""
    code = bytes.fromhex("b005 ba0105 ee f4")
    (tmp / "rom").write_bytes(code.ljust(0xfff0, b"\x90") + bytes.fromhex("e90d00") + bytes(13))
    emulator("-display", "none", "-bios", "rom", "-device", "isa-debug-exit", code=11)


def test_line_editing(machine):
    m = machine("-S")
    m.press("info stXX\x7f\x7f\t\r", "VM status: paused")
    m.press("nonsense\r", "unknown command: 'nonsense'")
    m.press("\x1b[A\x1b[A\r", "VM status: paused")
    m.press("elp\x1b[Hh\r", "info registers")


@pytest.mark.parametrize("follow, code", [("none", 1), ("local", 0)])
def test_follow(img, tmp, firmware, follow, code):
    img("create", "-f", "raw", "base", "1M")
    img("create", "-f", "qcow2", "-b", "base", "-F", "raw", "top")
    process = subprocess.Popen([BIN / "emulator", *STILL, "-bios", firmware, "-hda", "top", f"--follow={follow}"],
                               stderr=subprocess.PIPE, stdin=subprocess.DEVNULL)
    try:
        process.wait(2)
    except subprocess.TimeoutExpired:
        process.terminate()
    assert process.wait(10) == code
    process.stderr.close()
