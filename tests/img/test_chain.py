"""img chain: what it says of a chain, and that what it changes leaves the content alone."""

import os
import shutil

import pytest

from chains import make_chain, raw_of, sound
from platter import KIB, MIB


@pytest.fixture
def chain(qemu_img, qemu_io, tmp):
    """base.qcow2, mid.qcow2, top.qcow2 with 8, 1 and 1 MiB of data; top.qcow2 has 1 MiB of zeroes, too."""
    qemu_img("create", "-q", "-f", "qcow2", "base.qcow2", "8M")
    qemu_io("-c", "write -P 1 0 8M", "base.qcow2")
    qemu_img("create", "-q", "-f", "qcow2", "-b", "base.qcow2", "-F", "qcow2", "mid.qcow2")
    qemu_io("-c", "write -P 2 1M 1M", "mid.qcow2")
    qemu_img("create", "-q", "-f", "qcow2", "-b", "mid.qcow2", "-F", "qcow2", "top.qcow2")
    qemu_io("-c", "write -P 3 1536k 1M", "-c", "write -z 3M 1M", "top.qcow2")
    return raw_of(qemu_img, "top.qcow2")


def stated(qemu_img, name):
    return qemu_img("info", "-U", "--output=json", name).json.get("backing-filename")


def test_what_each_layer_holds_and_hides(img, chain):
    answer = img("chain", "--output=json", "top.qcow2").json
    rows = [[layer[key] for key in ("filename", "depth", "virtual-size", "data", "zero", "hidden-data",
                                    "hidden-zero")] for layer in answer["layers"]]
    assert rows == [["top.qcow2", 0, 8 * MIB, MIB, MIB, 0, 0],
                    ["mid.qcow2", 1, 8 * MIB, MIB, 0, 512 * KIB, 0],
                    ["base.qcow2", 2, 8 * MIB, 8 * MIB, 0, 2 * MIB + 512 * KIB, 0]]
    assert answer["sound"] and not any(layer["faults"] for layer in answer["layers"])


def test_a_shorter_layer_hides_what_lies_behind_its_end(img, qemu_img, chain):
    qemu_img("create", "-q", "-f", "qcow2", "-b", "base.qcow2", "-F", "qcow2", "short.qcow2", "3M")
    base = img("chain", "--output=json", "short.qcow2").json["layers"][1]
    assert base["data"] == 8 * MIB and base["hidden-data"] == 5 * MIB
    assert "hides" in img("chain", "short.qcow2").out


@pytest.mark.parametrize("round", range(4))
def test_sums_of_random_chains(img, qemu_img, qemu_io, tmp, rng, round):
    """What is not hidden is what map says of each depth."""
    names = make_chain(qemu_img, qemu_io, rng, 4)
    layers = img("chain", "--output=json", names[0]).json["layers"]
    assert [layer["filename"] for layer in layers] == names
    seen = [[0, 0] for _ in names]
    for run in img("map", "--output=json", names[0]).json:
        if run["present"] or run["data"]:
            seen[run["depth"]][not run["data"]] += run["length"]
    assert [[layer["data"] - layer["hidden-data"], layer["zero"] - layer["hidden-zero"]]
            for layer in layers] == seen


def test_for_people(img, chain):
    lines = img("chain", "top.qcow2").out.splitlines()
    assert [line.split()[0 if i == 0 else 1] for i, line in enumerate(lines[::2])] == \
        ["top.qcow2", "mid.qcow2", "base.qcow2"]
    assert "hidden above" in lines[3]


# ---------------------------------------------------------------- verify

def test_a_sound_chain(img, chain):
    img("chain", "--verify", "top.qcow2")


def test_a_missing_file(img, chain):
    os.unlink("base.qcow2")
    result = img("chain", "--verify", "top.qcow2", code=2)
    assert "base.qcow2" in result.out and "No such file" in result.out
    img("chain", "top.qcow2", code=2)
    img.fails("chain", "none.qcow2", code=1)


def test_a_loop(img, qemu_img, chain):
    qemu_img("rebase", "-u", "-b", "top.qcow2", "-F", "qcow2", "base.qcow2")
    result = img("chain", "--output=json", "--verify", "top.qcow2", code=2).json
    assert not result["sound"] and "loop" in result["layers"][3]["faults"][0]


def test_a_format_that_is_not_stated(img, qemu_img, chain):
    img("rebase", "-u", "-b", "base.qcow2", "mid.qcow2", code=1)
    data = open("mid.qcow2", "rb").read()
    with open("mid.qcow2", "wb") as file:  # the extension that states it becomes one nobody knows
        file.write(data.replace(b"\xe2\x79\x2a\xca", b"\x01\x79\x2a\xca"))
    result = img("chain", "--verify", "top.qcow2", code=2)
    assert "does not state its format" in result.out


def test_damage_and_leaks(img, qemu_img, chain):
    with open("mid.qcow2", "r+b") as file:  # the last cluster counted twice
        file.seek(2 * 64 * KIB + 5 * 2)
        file.write(b"\0\2")
    result = img("chain", "--verify", "top.qcow2", code=(2, 3))
    assert "leaked" in result.out or "damaged" in result.out
    assert result.code == 2 or "damaged" not in result.out


def test_names_in_images_are_followed_as_told(img, qemu_img, chain):
    qemu_img("rebase", "-u", "-b", "/dev/zero", "-F", "raw", "base.qcow2")
    assert "--follow=any" in img("chain", "top.qcow2", code=2).out
    assert "--follow=none" in img("--follow=none", "chain", "top.qcow2", code=2).out
    img.fails("info", "--backing-chain", "base.qcow2", code=1)


# ---------------------------------------------------------------- relocate

def test_a_file_has_moved_to_another_folder(img, qemu_img, chain):
    os.mkdir("store")
    shutil.move("base.qcow2", "store/base.qcow2")
    dry = img("chain", "-n", "--relocate=store", "top.qcow2").out
    assert stated(qemu_img, "mid.qcow2") == "base.qcow2"
    assert img("chain", "--relocate=store", "top.qcow2").out == dry
    assert stated(qemu_img, "mid.qcow2") == os.path.realpath("store/base.qcow2")
    assert stated(qemu_img, "top.qcow2") == "mid.qcow2"
    assert raw_of(qemu_img, "top.qcow2") == chain
    assert not img("chain", "--relocate=store", "top.qcow2").out, "nothing more to do"


def test_all_have_moved_to_another_folder(img, qemu_img, chain):
    """Names with folders become names beside each other."""
    for above, below in (("top.qcow2", "mid.qcow2"), ("mid.qcow2", "base.qcow2")):
        qemu_img("rebase", "-u", "-b", f"/old/place/{below}", "-F", "qcow2", above)
    img("chain", "--relocate=.", "top.qcow2")
    assert [stated(qemu_img, n) for n in ("top.qcow2", "mid.qcow2")] == ["mid.qcow2", "base.qcow2"]
    assert raw_of(qemu_img, "top.qcow2") == chain


def test_the_beginning_of_names(img, qemu_img, chain):
    here = os.getcwd()
    for above, below in (("top.qcow2", "mid.qcow2"), ("mid.qcow2", "base.qcow2")):
        qemu_img("rebase", "-u", "-b", f"/old/place/{below}", "-F", "qcow2", above)
    img.fails("chain", "--relocate=/old/pla=/new", "top.qcow2")
    assert stated(qemu_img, "top.qcow2") == "/old/place/mid.qcow2"
    img("chain", f"--relocate=/old/place={here}", "top.qcow2")
    assert stated(qemu_img, "mid.qcow2") == f"{here}/base.qcow2"
    assert raw_of(qemu_img, "top.qcow2") == chain


def test_nothing_changes_when_a_new_name_leads_nowhere(img, qemu_img, chain):
    """mid.qcow2 is found in its new place, but not what it rests on."""
    os.mkdir("store")
    shutil.move("mid.qcow2", "store/mid.qcow2")
    shutil.move("base.qcow2", "elsewhere.qcow2")
    img.fails("chain", "--relocate=store", "top.qcow2")
    for name, backing in (("top.qcow2", b"mid.qcow2"), ("store/mid.qcow2", b"base.qcow2")):
        assert backing in open(name, "rb").read(4096)
        assert b"/" + backing not in open(name, "rb").read(4096)


@pytest.mark.parametrize("args", [
    [], ["top.qcow2", "x"], ["--verify", "--flatten", "top.qcow2"], ["-n", "top.qcow2"],
    ["--relocate=nosuch", "top.qcow2"], ["--relocate==x", "top.qcow2"], ["--nosuch", "top.qcow2"],
    ["--output=json", "--flatten", "top.qcow2"], ["-f", "nosuch", "top.qcow2"],
    ["--relocate=base.qcow2=top.qcow2", "top.qcow2"]], ids=" ".join)
def test_what_is_refused(img, qemu_img, chain, args):
    img.fails("chain", *args, code=1)
    assert raw_of(qemu_img, "top.qcow2") == chain


# ---------------------------------------------------------------- flatten

@pytest.mark.parametrize("round", range(3))
def test_flatten(img, qemu_img, qemu_io, tmp, rng, round):
    names = make_chain(qemu_img, qemu_io, rng, 4)
    before = raw_of(qemu_img, names[0])
    img("chain", "--flatten", names[0])
    assert stated(qemu_img, names[0]) is None
    for name in names[1:]:
        os.unlink(name)
    assert raw_of(qemu_img, names[0]) == before
    sound(qemu_img, names[0])
    img("chain", "--flatten", names[0])
