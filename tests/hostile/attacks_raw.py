"""Attacks by way of raw images: their content is the guest's, so it must not be believed."""

from qcow2build import Image
from table import OK, rows

TABLE, row = rows("raw")
SIZE = 1 << 16


def disguised(name="/nowhere"):
    """A disk whose guest wrote the header of another format to it."""
    image = Image(backing=name, backing_format="raw")
    return bytes(image.bytes[:4096]).ljust(SIZE, b"\0")


@row("CVE-2008-2004", "the guest wrote a qcow2 header that names a file of the host",
     convert=OK, check=None, options=("-f", "raw"), content=lambda: disguised())
def guest_writes_header(folder, secret):
    (folder / "a.raw").write_bytes(disguised())
    return "a.raw"


@row("raw-odd-size", "a size that is no multiple of a sector",
     convert=OK, check=None, options=("-f", "raw"), content=lambda: b"\1" * 1023 + bytes(1))
def odd_size(folder, secret):
    (folder / "a.raw").write_bytes(b"\1" * 1023)
    return "a.raw"


@row("raw-empty", "nothing at all", convert=OK, check=None, options=("-f", "raw"),
     content=lambda: b"")
def empty(folder, secret):
    (folder / "a.raw").write_bytes(b"")
    return "a.raw"
