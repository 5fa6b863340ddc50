"""The manual, the help and what the program accepts agree."""

import re
import subprocess
from pathlib import Path

import pytest

from nbdtools import nbd  # noqa: F401  (fixture)

MANUAL = Path(__file__).parent.parent.parent / "docs" / "man" / "nbd.1"


def test_manual_and_help_list_the_same_options(nbd):
    shown = set()
    for text in (nbd("--help").out, nbd("serve", "--help").out):
        shown |= set(re.findall(r"^  (?:-\w, )?--([\w-]+)", text, re.M))
    manual = set(re.findall(r"^\.It (?:Fl \w , )?Fl -([\w-]+)", MANUAL.read_text(), re.M))
    assert shown and shown == manual


def test_manual_has_no_faults(need_tool):
    done = subprocess.run([need_tool("mandoc"), "-Tlint", "-Wwarning", MANUAL], capture_output=True, text=True)
    assert [line for line in done.stdout.splitlines() if "mandoc.db" not in line] == []


@pytest.mark.parametrize("words", [[], ["serve"]])
def test_every_option_is_known(nbd, tmp, words):
    """None is an unknown option; what it says of the value or the file does not matter."""
    for letter, name, value in re.findall(r"^  (?:-(\w), )?--([\w-]+)(=\w+)?", nbd(*words, "--help").out, re.M):
        if name in ("help", "version", "follow", "list", "fork", "stdio"):
            continue
        for spelling in ([f"--{name}"] + ([f"-{letter}"] if letter else [])):
            said = nbd.fails(*words, spelling, *(["1"] if value else []), "nosuch").err
            assert "--help' tells" not in said, spelling
