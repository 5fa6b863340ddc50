"""Guest software as Debian packages, fetched once and unpacked: kernels, busybox, an initrd.

PLATTER_GUESTS names the folder they are kept in (default ~/.cache/platter-guests). Without a network
and without what was kept a test is skipped, in CI it fails.
"""

import gzip
import lzma
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

FOLDER = Path(os.environ.get("PLATTER_GUESTS", Path.home() / ".cache" / "platter-guests"))
KEYS = "/usr/share/keyrings/debian-archive-keyring.gpg"


def missing(what):
    if os.environ.get("CI"):
        pytest.fail(what)
    pytest.skip(what)


def mirror():
    """Where this machine has its own packages from; every suite of Debian is there."""
    lines = subprocess.run(["apt-get", "indextargets", "--format", "$(CODENAME) $(REPO_URI)"], check=True,
                           capture_output=True, text=True).stdout.splitlines()
    places = [line.split()[1] for line in lines if "-" not in line.split()[0]]
    if not places:
        missing("apt-get has no source of packages")
    return places[0]


class Suite:
    """One Debian suite, with a package index of its own beside that of the host."""

    def __init__(self, name):
        self.name = name
        self.folder = FOLDER / name
        self.options = [
            f"-o=Dir::State={self.folder}/state",
            f"-o=Dir::Cache={self.folder}/cache",
            f"-o=Dir::Etc={self.folder}/etc",
            f"-o=Dir::Etc::sourcelist={self.folder}/etc/sources.list",
            "-o=Dir::Etc::sourceparts=-",
            "-o=Dir::State::status=/dev/null",
            "-o=APT::Architecture=amd64",
            "-o=APT::Sandbox::User=root",
        ]

    def prepare(self):
        for part in ("state/lists/partial", "cache/archives/partial", "etc/apt.conf.d",
                     "etc/preferences.d", "root"):
            (self.folder / part).mkdir(parents=True, exist_ok=True)
        (self.folder / "etc/sources.list").write_text(
            f"deb [signed-by={KEYS}] {mirror()} {self.name} main\n")
        subprocess.run(["apt-get", *self.options, "-q", "update"], check=True, capture_output=True)

    def depends(self, package, pattern):
        """The package that this one depends on and whose name matches."""
        text = subprocess.run(["apt-cache", *self.options, "show", "--no-all-versions", package],
                              check=True, capture_output=True, text=True).stdout
        return re.search(pattern, text).group(0)

    def unpack(self, package):
        subprocess.run(["apt-get", *self.options, "-q", "download", package], check=True,
                       capture_output=True, cwd=self.folder)
        for deb in self.folder.glob("*.deb"):
            subprocess.run(["dpkg", "-x", deb, self.folder / "root"], check=True)
            deb.unlink()

    def file(self, pattern, package, dependency=None):
        """The file of the package, fetched when it is not there yet."""
        found = sorted((self.folder / "root").glob(pattern))
        if found:
            return found[-1]
        if not shutil.which("apt-get"):
            missing("apt-get is missing")
        try:
            self.prepare()
            self.unpack(self.depends(package, dependency) if dependency else package)
        except (subprocess.CalledProcessError, AttributeError) as error:
            missing(f"{package} of {self.name} cannot be fetched: {error}")
        return sorted((self.folder / "root").glob(pattern))[-1]


def kernel(suite):
    """Debian's kernel for clouds."""
    return Suite(suite).file("boot/vmlinuz-*-cloud-amd64", "linux-image-cloud-amd64",
                             r"linux-image-[0-9][^ ,]*-cloud-amd64")


def busybox():
    return Suite("bookworm").file("bin/busybox", "busybox-static")


def module(suite, name):
    """A module of that kernel, unpacked."""
    found = list(kernel(suite).parents[1].glob(f"**/kernel/**/{name}.ko*"))
    data = found[0].read_bytes()
    return lzma.decompress(data) if found[0].suffix == ".xz" else data


def initrd(path, script, more=None):
    """An initrd that runs this script with busybox's shell; its tools are in the path. more: further files, in
    folders that there are."""
    files = {"bin/busybox": (0o755, busybox().read_bytes())}
    files |= {name: (0o755, content) for name, content in (more or {}).items()}
    files["init"] = (0o755, ("#!/bin/busybox sh\n/bin/busybox --install -s /bin\n"
                             "mount -t proc proc /proc; mount -t sysfs sysfs /sys\n"
                             "mount -t devtmpfs dev /dev\n" + script).encode())
    data = b""
    for number, name in enumerate(["bin", "proc", "sys", "dev", "root", *files], 1):
        mode, content = files.get(name, (0o755, b""))
        mode |= 0o100000 if name in files else 0o040000
        fields = (number, mode, 0, 0, 1, 0, len(content), 0, 0, 0, 0, len(name) + 1, 0)
        data += b"070701" + b"".join(b"%08x" % n for n in fields) + name.encode() + b"\0"
        data += b"\0" * (-len(data) % 4) + content
        data += b"\0" * (-len(data) % 4)
    data += b"070701" + b"%08x" % 0 * 11 + b"%08x" % 11 + b"%08x" % 0 + b"TRAILER!!!\0"
    Path(path).write_bytes(gzip.compress(data, 1))
    return path
