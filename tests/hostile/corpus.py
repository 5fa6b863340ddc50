#!/usr/bin/env python3
"""The corpus of hostile images: one row for each attack, by format.

As a program it writes them: corpus.py FOLDER [NAME...] makes FOLDER/NAME/..., and prints what is
expected of each. A new format adds attacks_FORMAT.py with a list called TABLE and stands in FORMATS.
"""

import importlib
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tools"))

from table import SECRET  # noqa: E402  (the attacks need the path above)

FORMATS = ["raw", "qcow2", "vdi", "vpc", "vmdk", "vhdx", "wrapped"]

ATTACKS = [attack for fmt in FORMATS for attack in importlib.import_module(f"attacks_{fmt}").TABLE]
assert len({attack.name for attack in ATTACKS}) == len(ATTACKS), "two rows have one name"


def main(argv):
    if len(argv) < 2:
        sys.exit(__doc__)
    folder = Path(argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    secret = folder.resolve() / "secret"
    secret.write_bytes(SECRET)
    for attack in ATTACKS:
        if len(argv) > 2 and attack.name not in argv[2:]:
            continue
        place = folder / attack.name
        place.mkdir()
        image = attack.make(place, secret)
        print(f"{place / image}: {attack.what}")
        for command in ("info", "check", "convert"):
            print(f"    {command}: {getattr(attack, command)}")


if __name__ == "__main__":
    main(sys.argv)
