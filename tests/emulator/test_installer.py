"""A CD made of Debian's installer: GRUB, the generic kernel, and what it draws on the text screen."""

import os
import shutil
import subprocess

import guests
import pytest
from vm import VM

PLACE = "usr/lib/debian-installer/images/12/amd64/text/debian-installer/amd64/"
GRUB = """linux /linux vga=normal fb=false
initrd /initrd.gz
boot
"""


@pytest.fixture
def cd(need_tool, tmp_path):
    for tool in ("grub-mkrescue", "xorriso", "mformat"):
        need_tool(tool)
    disc = tmp_path / "disc"
    (disc / "boot/grub").mkdir(parents=True)
    (disc / "boot/grub/grub.cfg").write_text(GRUB)
    for name in ("linux", "initrd.gz"):
        file = guests.Suite("bookworm").file(PLACE + name, "debian-installer-12-netboot-amd64")
        shutil.copy(file, disc / name)
    subprocess.run(["grub-mkrescue", "-o", tmp_path / "cd.iso", disc], check=True, capture_output=True)
    return tmp_path / "cd.iso"


@pytest.mark.skipif(not os.environ.get("PLATTER_ALL"), reason="takes a minute: PLATTER_ALL=1, as in tests/night")
def test_the_installer_asks_its_first_question(tmp, cd):
    with VM(tmp, "-m", 1024, "-cdrom", cd) as vm:
        screen = vm.screen_shows("Language:", 250)
        assert "Choose the language to be used for the installation process" in screen
        assert "English              -  English" in screen
        vm.ask("sendkey tab")
        vm.ask("sendkey ret")  # <Go Back>: the menu
        vm.screen_shows("Debian installer main menu", 60)
