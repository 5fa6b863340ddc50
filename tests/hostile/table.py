"""What a row of the corpus says; the rows stand in attacks_FORMAT.py."""

from dataclasses import dataclass, field
from typing import Callable, Optional

MIB = 1 << 20

# Written to a file outside the working directory: whoever shows it has read what he should not.
SECRET = b"PLATTER-SECRET-7f3a9c51-DO-NOT-SHOW\n"


class Refused:
    """The command ends with an error, in a sentence that contains each of these words."""

    def __init__(self, *words):
        self.words = words

    def __repr__(self):
        return f"refused: {', '.join(self.words)}"


class Code:
    """The command ends with one of these exit codes."""

    def __init__(self, *codes):
        self.codes = codes

    def __repr__(self):
        return f"exit code {self.codes}"


OK = Code(0)
ANY = Code(0, 1, 2, 3, 63)         # a decent end, whichever
DAMAGED = Code(2)                  # check finds corruptions
LEAKS = Code(3)
HARMED = Code(1, 2, 3)             # check finds something, or cannot look


@dataclass
class Attack:
    """One image that means harm.

    make(folder, secret) writes it, and what it refers to, into the folder; it returns the image's
    name. secret is the path of a file elsewhere.
    """
    name: str                      # CVE or a short name, unique
    format: str
    what: str
    make: Callable
    info: object = OK
    check: object = ANY
    convert: object = ANY          # read, map and compare go with it
    map: object = None             # when it differs from convert
    content: Optional[Callable] = None   # what it reads as: a function without arguments
    options: tuple = ()            # of every command
    cves: tuple = ()               # when the name says less
    seconds: int = 20              # each command
    memory: int = 256 * MIB
    written: int = 64 * MIB        # no file becomes larger than that

    @property
    def map_expected(self):
        return self.map if self.map is not None else self.convert


def rows(fmt):
    """A decorator that collects attacks into a list: each gets the table's format."""
    table = []

    def row(name, what, **expected):
        def add(make):
            table.append(Attack(name=name, format=fmt, what=what, make=make, **expected))
            return make
        return add

    return table, row
