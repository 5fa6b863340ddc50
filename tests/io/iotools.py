"""What the tests of io share: the program under both names, and comparing what two runs say."""

import re
import shutil
from pathlib import Path

import pytest

from conftest import BIN
from platter import Tool


@pytest.fixture
def io():
    """Our io."""
    if not (BIN / "io").exists():
        pytest.fail(f"{BIN}/io is not built")
    return Tool(BIN / "io")


@pytest.fixture
def as_qemu_io(io, tmp_path):
    """Our io through a link named qemu-io."""
    link = tmp_path / "qemu-io"
    link.symlink_to(Path(io.path).resolve())
    return Tool(link)


def masked(text):
    """What was said, without how long it took."""
    text = re.sub(r"ops; [\d:.]+( sec)? \([\d.]+ \w+/sec and [\d.]+ ops/sec\)", "ops; TIME", text)
    return re.sub(r"(?m)^(\d+,1),\d+:\d\d:\d\d\.\d\d,[\d.]+,[\d.]+$", r"\1,TIME", text)


def commands(script):
    """The arguments for the commands of a text, one per line."""
    return [word for line in script.strip("\n").splitlines() for word in ("-c", line)]


@pytest.fixture
def both(as_qemu_io, qemu_io):
    """Runs the same with both, each in its own copy of the current folder, and compares what they say, their exit
    codes, and the files that end in .raw."""

    def run(*args, stdin=None, err=True):
        folders = {}
        results = []
        for name, tool in (("theirs", qemu_io), ("ours", as_qemu_io)):
            folders[name] = Path(name)
            shutil.rmtree(name, ignore_errors=True)
            Path(name).mkdir()
            for file in Path().iterdir():
                if file.is_file():
                    shutil.copy(file, name)
            results.append(tool(*args, code=None, cwd=name, stdin=stdin, signal_is_fine=True))
        theirs, ours = results
        assert masked(ours.out) == masked(theirs.out), f"{ours}{theirs}"
        assert ours.code == theirs.code, f"{ours}{theirs}"
        if err:
            assert ours.err == theirs.err, f"{ours}{theirs}"
        else:
            assert bool(ours.err) == bool(theirs.err), f"{ours}{theirs}"
        for file in folders["theirs"].glob("*.raw"):
            assert (folders["ours"] / file.name).read_bytes() == file.read_bytes(), file.name
        return ours, theirs

    return run
