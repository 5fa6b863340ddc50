"""libplatter as others meet it: installed, found by pkg-config, with one header that stands alone.

And the rules about who may include what, as the compiler was told them.
"""

import json
import re
import subprocess
from pathlib import Path

import pytest

from conftest import BIN

BUILD = BIN.parent
ROOT = Path(__file__).resolve().parents[2]

PROGRAM = r"""
#include <block/block.h>
#include <stdio.h>

int main(int argc, char **argv)
{
    struct blk_open_args args = { 0 };
    struct blk_node *node;
    struct error *err = NULL;
    if (blk_open(argv[argc - 1], &args, &node, &err) < 0) {
        fprintf(stderr, "%s\n", blk_error_text(err));
        blk_error_free(err);
        return 1;
    }
    printf("%s %llu\n", blk_format(node), (unsigned long long)blk_size(node));
    return blk_close(node, &err) < 0;
}
"""


def run(*argv, **options):
    result = subprocess.run(list(map(str, argv)), capture_output=True, text=True, check=False,
                            **options)
    assert result.returncode == 0, f"{argv}\n{result.stdout}{result.stderr}"
    return result.stdout


@pytest.fixture
def prefix(img, tmp):
    """Where the library is installed to; None for a sanitized one, which programs cannot link."""
    if img.sanitized:
        return None
    run("cmake", "--install", BUILD, "--prefix", tmp / "usr")
    return tmp / "usr"


@pytest.mark.parametrize("static", [False, True], ids=["shared", "static"])
def test_program_links_by_pkg_config(img, prefix, tmp, static):
    if not prefix:
        return
    lib = next(prefix.glob("lib*/**/pkgconfig")).parent
    flags = run("pkg-config", "--cflags", "--libs", *(["--static"] if static else []), "platter",
                env={"PKG_CONFIG_PATH": str(lib / "pkgconfig"), "PATH": "/usr/bin:/bin"}).split()
    if static:
        flags[flags.index("-lplatter")] = str(lib / "libplatter.a")
    Path("program.c").write_text(PROGRAM)
    run("cc", "-std=c17", "-Wall", "-Werror", "-o", "program", "program.c", *flags)
    img("create", "-q", "-f", "qcow2", "a.qcow2", "3M")
    out = run("./program", "a.qcow2", env={"LD_LIBRARY_PATH": str(lib)})
    assert out == f"qcow2 {3 << 20}\n"


def test_shared_library_exports_only_its_interface(prefix):
    if not prefix:
        return
    library = next(prefix.glob("lib*/**/libplatter.so"))
    names = [line.split()[-1] for line in
             run("nm", "-D", "--defined-only", library).splitlines()]
    assert names and all(name.startswith("blk_") for name in names), names
    header = (ROOT / "block" / "block.h").read_text()
    assert not [name for name in names if name not in header], "exported, but not declared"
    declared = set(re.findall(r"BLK_API[^;]*?\b(blk_\w+)\(", header))
    assert not declared - set(names), "declared, but not exported"


def test_manual_and_completion_are_installed(prefix):
    if prefix:
        assert list(prefix.glob("share/man/man1/img.1*"))
        assert list(prefix.glob("share/bash-completion/completions/img"))


@pytest.mark.parametrize("compiler", ["cc -std=c17", "c++ -std=c++17"])
def test_public_header_stands_alone(tmp, compiler):
    run(*compiler.split(), "-Wall", "-Wextra", "-Werror", "-fsyntax-only", "-x",
        "c++" if "++" in compiler else "c", ROOT / "block" / "block.h")


# Folder and the tiers it may see; the longest match counts.
TIERS = {
    "base": {"base"},
    "block": {"base", "public", "driver"},
    "formats": {"base", "public", "driver"},
    "nbd": {"base", "public", "driver"},
    "partitions": {"base", "public"},
    "exports": {"base", "public", "partitions"},
    "tools": {"base", "public", "tools", "exports", "partitions"},
    "emulator": {"base", "chardev", "devices", "blockdev", "machine", "monitor", "tools"},
    "emulator/blockdev": {"base", "public", "tools"},  # nothing else there sees block/block.h
    "emulator/cpu": {"base", "emulator", "x86"},
    "emulator/chardev": {"base", "chardev"},
    "emulator/devices": {"base", "emulator", "devices", "chardev", "blockdev"},
    "emulator/machine": {"base", "emulator", "x86", "devices", "chardev", "blockdev", "machine"},
    "emulator/monitor": {"base", "chardev", "blockdev", "machine", "monitor"},
}


def test_include_paths_keep_the_rules():
    """No target has the repository or another's folder as an include path."""
    for unit in json.loads((BUILD / "compile_commands.json").read_text()):
        path = Path(unit["file"])
        if ROOT not in path.parents:
            continue
        name = str(path.relative_to(ROOT))
        folder = max((f for f in TIERS if name.startswith(f)), key=len, default=None)
        if not folder:
            continue
        seen = [Path(word) for word in re.findall(r"-I(\S+)", unit["command"])]
        allowed = {BUILD / "include" / tier for tier in TIERS[folder]}
        inside = {place for place in seen if ROOT == place or BUILD in place.parents
                  or (ROOT in place.parents and BUILD not in place.parents)}
        assert inside <= allowed, f"{path} sees {inside - allowed}"
