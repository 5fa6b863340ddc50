"""A Debian 12 disk with GRUB in the MBR, made once and kept beside the fetched packages (guests.py)."""

import shutil
import struct
import subprocess
import tempfile
from pathlib import Path

import guests

UUID = "11111111-2222-3333-4444-555555555555"
SECTOR = 512
START = 2048  # sectors before the partition
SIZE = 400 << 20  # of the partition
GRUB = Path("/usr/lib/grub/i386-pc")
PACKAGES = "sysvinit-core,linux-image-amd64,initramfs-tools,zstd,e2fsprogs"
# Modules that no virtual disk wants are most of the kernel's package.
UNWANTED = ["sound", "net", "drivers/scsi/[a-r]"] + [f"drivers/{d}" for d in (
    "gpu net media infiniband staging usb iio hwmon input platform isdn mtd i2c md target hid video "
    "comedi bluetooth mfd gpio power rtc tty watchdog leds regulator edac firewire "
    "thunderbolt").split()]

SHORT_INITRD = r"""mkdir -p "$1/etc/initramfs-tools/conf.d"
printf "MODULES=list\nCOMPRESS=zstd\nRESUME=none\n" > "$1/etc/initramfs-tools/conf.d/short"
printf "virtio_pci\nvirtio_blk\nnvme\nahci\nsd_mod\next4\n" > "$1/etc/initramfs-tools/modules"
"""


def unpack(folder):
    """Debian's packages as they would be installed, in a folder."""
    excludes = ["/usr/share/doc/*", "/usr/share/locale/*", "/usr/share/man/*"]
    excludes += [f"/lib/modules/*/kernel/{name}*" for name in UNWANTED]
    tar = folder / "root.tar"
    subprocess.run(["mmdebstrap", "--quiet", "--variant=minbase", f"--include={PACKAGES}",
                    "--components=main", '--aptopt=Apt::Install-Recommends "false"',
                    f"--essential-hook={SHORT_INITRD}",
                    *(f"--dpkgopt=path-exclude={name}" for name in excludes),
                    "bookworm", tar, guests.mirror()], check=True, capture_output=True)
    root = folder / "root"
    root.mkdir()
    subprocess.run(["tar", "-xf", tar, "-C", root, "--exclude=./dev/*"], check=True)
    tar.unlink()
    return root


def configure(root):
    """Root without a password, a login on the serial line."""
    version = next((root / "lib/modules").iterdir()).name
    (root / "etc/fstab").write_text(f"UUID={UUID} / ext4 errors=remount-ro 0 1\n")
    (root / "etc/hostname").write_text("platter\n")
    shadow = (root / "etc/shadow").read_text().splitlines()
    (root / "etc/shadow").write_text("".join(
        ":".join(["root", "", *line.split(":")[2:]] if line.startswith("root:")
                 else line.split(":")) + "\n" for line in shadow))
    inittab = [line for line in (root / "etc/inittab").read_text().splitlines()
               if "getty" not in line]
    inittab.append("T0:2345:respawn:/sbin/getty -L ttyS0 115200 vt100")
    (root / "etc/inittab").write_text("\n".join(inittab) + "\n")
    (root / "boot/grub").mkdir(exist_ok=True)
    (root / "boot/grub/grub.cfg").write_text(
        f"linux /boot/vmlinuz-{version} root=UUID={UUID} ro console=ttyS0\n"
        f"initrd /boot/initrd.img-{version}\nboot\n")


def boot_loader(folder):
    """GRUB's core, which finds the partition and the configuration there."""
    early = folder / "early.cfg"
    early.write_text("set root=(hd0,msdos1)\nconfigfile /boot/grub/grub.cfg\n")
    core = folder / "core.img"
    subprocess.run(["grub-mkimage", "-O", "i386-pc", "-p", "(hd0,msdos1)/boot/grub", "-c", early,
                    "-o", core, "biosdisk", "part_msdos", "ext2", "linux", "normal", "configfile",
                    "boot"], check=True)
    return core.read_bytes()


def assemble(folder, root):
    part = folder / "part.raw"
    with open(part, "wb") as f:
        f.truncate(SIZE)
    subprocess.run(["mkfs.ext4", "-q", "-O", "^has_journal", "-U", UUID, "-d", root, part], check=True)
    disk = folder / "disk.raw"
    subprocess.run(["dd", f"if={part}", f"of={disk}", "bs=1M", f"seek={START * SECTOR >> 20}",
                    "conv=sparse", "status=none"], check=True)
    entry = struct.pack("<B3sB3sII", 0x80, b"\xfe\xff\xff", 0x83, b"\xfe\xff\xff", START,
                        SIZE // SECTOR)
    core = boot_loader(folder)
    assert len(core) < (START - 1) * SECTOR
    with open(disk, "r+b") as f:
        f.truncate(START * SECTOR + SIZE)
        f.write((GRUB / "boot.img").read_bytes()[:440])
        f.seek(446)
        f.write(entry + bytes(48) + b"\x55\xaa" + core)
    return disk


def disk(img):
    """The disk as a compressed qcow2 image, not to be written to."""
    kept = guests.FOLDER / "debian-12.qcow2"
    if kept.exists():
        return kept
    for tool in ("mmdebstrap", "grub-mkimage", "mkfs.ext4"):
        if not shutil.which(tool):
            guests.missing(f"{tool} is missing")
    guests.FOLDER.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=guests.FOLDER) as name:
        folder = Path(name)
        try:
            root = unpack(folder)
        except subprocess.CalledProcessError as error:
            guests.missing(f"Debian cannot be fetched: {error.stderr[-300:]}")
        configure(root)
        raw = assemble(folder, root)
        img("convert", "-f", "raw", "-O", "qcow2", "-c", raw, folder / "done")
        (folder / "done").rename(kept)
    return kept
