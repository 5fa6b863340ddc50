"""Attacks by way of VHD images."""

from batbuild import FILL, Footer, Vhd
from table import DAMAGED, LEAKS, MIB, OK, Refused, rows

TABLE, row = rows("vpc")
VPC = ("-f", "vpc")


def changed_row(name, what, footer, header, *words, cves=()):
    """A row that is a sound image but for fields of its footers and its header; not even info opens it."""
    no = Refused(*words)

    @row(name, what, cves=cves, info=no, check=no, convert=no, options=VPC)
    def make(folder, secret):
        image = Vhd()
        for field, value in footer.items():
            image.footer[field] = value
        for field, value in header.items():
            image.header[field] = value
        return image.save(folder)


# ---------------------------------------------------------------- the series of 2014

changed_row("CVE-2014-0142-vpc", "division by a block size of zero", {}, {"block_size": 0},
            "block size", "0")
changed_row("CVE-2014-0142-vpc-small", "blocks smaller than a sector", {}, {"block_size": 1},
            "block size")
changed_row("CVE-2014-0144-vpc-entries", "4 * max_table_entries overflows 32 bits", {},
            {"entries": 0x40000001}, "table entries")
changed_row("CVE-2014-0144-vpc-entries-max", "the most entries that the field can say", {},
            {"entries": 0xffffffff}, "table entries")
changed_row("CVE-2014-0144-vpc-few-entries", "a table that is too short for the disk", {},
            {"entries": 1}, "disk size")
changed_row("CVE-2014-0144-vpc-size", "the largest size", {"size": (1 << 64) - 1}, {}, "size")
changed_row("CVE-2014-0144-vpc-table", "a table beyond 8 EiB", {},
            {"table_offset": (1 << 64) - 512}, "block table")
changed_row("vpc-table-beyond", "a table beyond the file", {}, {"table_offset": 1 << 40},
            "block table")
changed_row("vpc-table-unaligned", "a table between sectors", {}, {"table_offset": 1537},
            "block table")
changed_row("vpc-table-on-header", "a table on the header", {}, {"table_offset": 1024}, "overlaps")
changed_row("vpc-block-size-odd", "a block size that is no power of two", {},
            {"block_size": 3 << 20}, "block size")
changed_row("vpc-block-size-huge", "blocks of 2 GiB", {}, {"block_size": 1 << 31}, "block size")
changed_row("vpc-header-beyond", "a dynamic header beyond the file", {"header_offset": 1 << 50}, {},
            "dynamic header")
changed_row("vpc-header-wraps", "a dynamic header whose end wraps", {"header_offset": (1 << 64) - 512},
            {}, "dynamic header")
changed_row("vpc-header-on-footer", "a dynamic header on the footer", {"header_offset": 0}, {},
            "dynamic header")
changed_row("vpc-no-header", "no dynamic header there", {}, {"cookie": b"nonsense"}, "missing")


@row("vpc-header-checksum", "a wrong checksum", info=Refused("checksum"), check=Refused("checksum"),
     convert=Refused("checksum"))
def header_checksum(folder, secret):
    image = Vhd()
    image.more[600] = b"x"
    return image.save(folder)


@row("vpc-type", "a type that nobody knows", info=Refused(), check=Refused(), convert=Refused(),
     options=VPC)
def unknown_type(folder, secret):
    image = Vhd()
    image.footer["type"] = 5
    return image.save(folder)


@row("vpc-empty-file", "nothing at all", info=Refused("bytes"), check=Refused("bytes"),
     convert=Refused("bytes"), options=VPC)
def empty_file(folder, secret):
    (folder / "a.vhd").write_bytes(b"")
    return "a.vhd"


@row("vpc-fixed-cut", "a fixed disk that is larger than its file", info=Refused("truncated"),
     check=Refused("truncated"), convert=Refused("truncated"), options=VPC)
def fixed_cut(folder, secret):
    footer = Footer(cookie=b"conectix", creator=b"win ", size=1 << 40, original_size=1 << 40, type=2)
    (folder / "a.vhd").write_bytes(bytes(65536) + footer.signed())
    return "a.vhd"


@row("vpc-guest-footer", "the guest of a raw disk wrote a footer at its end: it stays a raw disk",
     check=None, convert=OK, content=lambda: bytes(65536) + guest_footer())
def guest_writes_footer(folder, secret):
    (folder / "a.vhd").write_bytes(bytes(65536) + guest_footer())
    return "a.vhd"


def guest_footer():
    return Footer(cookie=b"conectix", creator=b"win ", size=512, original_size=512, type=2).signed()


# ---------------------------------------------------------------- the block table

def table_row(name, what, entries, check, convert, content=None):
    @row(name, what, check=check, convert=convert, content=content)
    def make(folder, secret):
        return Vhd(entries=entries).save(folder)


table_row("vpc-entry-beyond", "a block beyond the file", (4, 0xfffffffe), DAMAGED,
          Refused("beyond the end"))
table_row("vpc-entry-footer", "a block on the footer's copy", (4, 0), DAMAGED,
          Refused("where no blocks are"))
table_row("vpc-crossed", "every block is the same one", (4, 4, 4, 4), DAMAGED, OK,
          lambda: bytes([FILL]) * (8 * MIB))
table_row("vpc-overlap", "blocks that overlap by half", (4, 2052), DAMAGED, OK)
table_row("vpc-on-table", "a block on the block table", (4, 3), DAMAGED, OK)


@row("vpc-footer-lost", "the footer at the end is lost", check=LEAKS, convert=OK,
     content=lambda: bytes([FILL]) * (2 * MIB) + bytes(6 * MIB))
def footer_lost(folder, secret):
    image = Vhd()
    image.end = False
    return image.save(folder)


@row("vpc-copy-lost", "the footer's copy at the beginning is lost", check=DAMAGED, convert=OK,
     options=VPC)
def copy_lost(folder, secret):
    image = Vhd()
    image.copy = False
    return image.save(folder)


# ---------------------------------------------------------------- the parent's names

def parent_row(name, what, code, text, *words):
    @row(name, what, info=None, check=None, convert=Refused(*words))
    def make(folder, secret):
        image = Vhd(kind=4, entries=())
        stated = text(secret) if callable(text) else text
        image.header["parent_uuid"] = b"P" * 16
        image.header.locator(0, code, len(stated), 2048)
        image.more[2048] = stated
        return image.save(folder)


parent_row("vpc-parent-secret", "a parent elsewhere that is no image", b"W2ku",
           lambda secret: str(secret).encode("utf-16-le"), "backing")
parent_row("vpc-parent-nbd", "a parent on a server", b"W2ru", "nbd://localhost/x".encode("utf-16-le"),
           "--follow")
parent_row("vpc-parent-json", "a parent by description", b"W2ru",
           'json:{"driver":"null-co"}'.encode("utf-16-le"), "--follow")
parent_row("vpc-parent-device", "a parent that is a device", b"W2ku",
           "/dev/zero".encode("utf-16-le"), "--follow")
parent_row("vpc-parent-url", "a file URL", b"MacX", b"file:///dev/zero", "--follow")
parent_row("vpc-parent-itself", "its own parent", b"W2ru", r".\a.vhd".encode("utf-16-le"), "loop")
parent_row("vpc-parent-surrogate", "half a character", b"W2ru", b"\x00\xd8", "parent")
parent_row("vpc-parent-control", "control characters", b"W2ru", "a\x1b[31m\nb".encode("utf-16-le"),
           "backing")


@row("vpc-parent-nameless", "differencing, but on nothing", info=None, check=None,
     convert=Refused("parent"))
def parent_nameless(folder, secret):
    return Vhd(kind=4, entries=()).save(folder)


@row("vpc-parent-long", "a name of 4 GiB", info=None, check=None, convert=Refused("parent"))
def parent_long(folder, secret):
    image = Vhd(kind=4, entries=())
    image.header.locator(0, b"W2ru", 0xffffffff, 2048, 0xffffffff)
    return image.save(folder)


@row("vpc-parent-other", "a parent with another unique ID", info=None, check=None,
     convert=Refused("unique ID"))
def parent_other(folder, secret):
    Vhd().save(folder, "p.vhd")
    image = Vhd(kind=4, entries=())
    stated = r".\p.vhd".encode("utf-16-le")
    image.header["parent_uuid"] = b"P" * 16
    image.header.locator(0, b"W2ru", len(stated), 2048)
    image.more[2048] = stated
    return image.save(folder)
