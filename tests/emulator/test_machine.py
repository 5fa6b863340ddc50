"""The machine as firmware, boot loaders and Linux see it."""

import os
import re
import time

import pytest

import guests
from vm import VM

RESCUE = "/usr/lib/grub-rescue/grub-rescue-cdrom.iso"
KERNELS = ["bookworm", "trixie"]


def need_file(path, package):
    if not os.path.exists(path):
        guests.missing(f"{path} is missing (package {package})")
    return path


@pytest.fixture
def seabios():
    return need_file("/usr/share/seabios/bios-256k.bin", "seabios")


def firmware(path, code):
    """64 KiB of HLT with this code at the reset vector."""
    image = bytearray(b"\xf4" * 65536)
    image[0xFFF0 : 0xFFF0 + len(code)] = code
    path.write_bytes(image)
    return path


def linux(tmp, suite, script, *arguments, append=""):
    ram = guests.initrd(tmp / "initrd", script)
    return VM(tmp, "-m", 512, "-kernel", guests.kernel(suite), "-initrd", ram, "-append",
              f"console=ttyS0 panic=-1 {append}", *arguments)


def test_the_first_instruction_comes_soon(tmp):
    """mov $0x15, %al; out %al, $0xf4: the whole process, from exec to exit."""
    rom = firmware(tmp / "rom", b"\xb0\x15\xe6\xf4\xf4")
    best = 9.0
    for _ in range(10):
        begin = time.monotonic()
        with VM(tmp, "-m", 1024, "-bios", rom, "-device", "isa-debug-exit,iobase=0xf4") as vm:
            assert vm.wait_end() == 0x15 * 2 + 1
        best = min(best, time.monotonic() - begin)
        vm.socket.unlink(missing_ok=True)
    assert best < 0.03


RESETS = {
    "triple-fault": "0f 01 1e 00 00 0f 20 c0 0c 01 0f 22 c0 cc",  # no IDT, protected mode, int3
    "cf9": "ba f9 0c b0 06 ee",
    "keyboard-controller": "b0 fe e6 64",
    "port-92": "b0 01 e6 92",
}


@pytest.mark.parametrize("way", RESETS)
def test_a_guest_resets_itself(tmp, way):
    rom = firmware(tmp / "rom", bytes.fromhex(RESETS[way]) + b"\xf4")
    with VM(tmp, "-m", 16, "-bios", rom, "-no-reboot") as vm:
        assert vm.wait_end(20) == 0


@pytest.mark.parametrize("arguments, words", [
    ("-bios no-such-file", "Firmware 'no-such-file' is not in"),
    ("-bios empty", "Firmware 'empty' has 0 bytes"),
    ("-kernel no-such-file", "The kernel 'no-such-file' cannot be opened"),
    ("-kernel empty", "The kernel 'empty' is no bzImage"),
    ("-smp 300", "this machine takes 1 to 255"),
    ("-M q35,hpett=on", "did you mean 'hpet'?"),
    ("-M q36", "did you mean 'q35'?"),
    ("-device VGA,romfile=no-such-file", "romfile 'no-such-file' cannot be opened"),
    ("-device VGA,addr=1f.0", "PCI address 1f.0 is taken by 8086:2918"),
])
def test_what_cannot_be_is_named(tmp, seabios, arguments, words):
    (tmp / "empty").touch()
    with VM(tmp, *arguments.split()) as vm:
        assert vm.wait_end(20) == 1
        assert words in vm.process.stderr.read().decode()


def test_seabios_speaks_on_the_debug_port_and_the_screen(tmp, seabios):
    log = tmp / "log"
    with VM(tmp, "-m", 128, "-smp", 2, "-chardev", f"file,id=d,path={log}", "-device",
            "isa-debugcon,iobase=0x402,chardev=d") as vm:
        screen = vm.screen_shows("No bootable device")
        assert "SeaBIOS (version" in screen
        assert "Booting from Hard Disk" in screen
    text = log.read_text()
    assert "Running on QEMU (q35)" in text
    assert "Found 2 cpu(s)" in text
    assert "PCIe: using q35 mmconfig at 0xb0000000" in text
    assert "ACPI: parse DSDT" in text


def test_seabios_speaks_on_the_serial_line_without_a_display(tmp, seabios):
    with VM(tmp, "-m", 128, "-nographic", display=False) as vm:
        vm.wait_for("SeaBIOS (version")
        vm.wait_for("No bootable device")


def test_grub_from_a_cd_takes_keys(tmp, seabios):
    with VM(tmp, "-m", 256, "-cdrom", need_file(RESCUE, "grub-rescue-pc")) as vm:
        vm.screen_shows("GNU GRUB")
        vm.ask("sendkey c")
        vm.screen_shows("grub>")
        for key in ["e", "c", "h", "o", "spc", "shift-p", "1", "shift-minus", "2", "ret"]:
            vm.ask(f"sendkey {key}")
        vm.screen_shows("\nP1_2")


@pytest.mark.parametrize("cpus", [1, 2])
@pytest.mark.parametrize("suite", KERNELS)
def test_linux_boots_and_switches_off(tmp, suite, cpus):
    script = "echo \"CPUS $(nproc)\"; cat /proc/interrupts; lspci 2>/dev/null; poweroff -f\n"
    with linux(tmp, suite, script, "-smp", cpus) as vm:
        boot = vm.wait_for(f"CPUS {cpus}")
        assert vm.wait_end(30) == 0
        rest = vm.output.decode()
    assert "IO-APIC   9-fasteoi   acpi" in rest
    assert "reboot: Power down" in rest
    for sign in ["Call Trace", "BUG:", "WARNING:", "ACPI Error", "ACPI BIOS", "Unstable clock"]:
        assert sign not in boot + rest


def test_linux_comes_back_after_a_reset(tmp):
    with linux(tmp, "bookworm", "echo MARK; reboot -f\n", "-smp", 2) as vm:
        vm.wait_for("MARK")
        vm.wait_for("MARK")
        vm.ask("system_reset")
        vm.wait_for("MARK")


def test_time_stands_still_while_the_machine_does(tmp):
    script = "while read -r _; do echo \"UP $(cut -d' ' -f1 /proc/uptime) \"; done\n"

    def uptime(vm):
        vm.type("\n")
        vm.wait_for("UP ")
        return float(vm.wait_for(" "))

    with linux(tmp, "bookworm", "echo READY; " + script) as vm:
        vm.wait_for("READY")
        before = uptime(vm)
        vm.ask("stop")
        assert "paused" in vm.ask("info status")
        assert "RIP=" in vm.ask("info registers")
        time.sleep(4)
        vm.ask("cont")
        assert "running" in vm.ask("info status")
        assert uptime(vm) - before < 2


def test_linux_hears_the_power_button_and_reads_the_tables(tmp):
    script = """dmesg | grep DMI; cat /sys/class/dmi/id/product_uuid /sys/class/dmi/id/product_family
        echo READY
        until grep -q " STS " /sys/firmware/acpi/interrupts/ff_pwr_btn; do sleep 0.1; done
        echo PRESSED; poweroff -f\n"""
    with linux(tmp, "trixie", script, "-uuid", "12345678-9abc-def0-1122-334455667788", "-name",
               "a-name") as vm:
        vm.wait_for("DMI: Platter q35")
        vm.wait_for("12345678-9abc-def0-1122-334455667788")
        vm.wait_for("a-name")
        vm.wait_for("READY")
        vm.ask("system_powerdown")
        vm.wait_for("PRESSED")
        assert vm.wait_end() == 0
