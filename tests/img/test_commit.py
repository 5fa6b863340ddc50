"""img commit against qemu-img: what the base and the overlay hold afterwards, and what is left when it is
stopped, killed, or the disk fails."""

import os
import random
import signal
import subprocess
import time

import pytest

from chains import copy_all, failing, make_chain, raw_of, sound
from platter import KIB, MIB


def both(img, qemu_img, *args):
    """Runs both, each in a copy of the folder; their exit codes are the same."""
    for folder in ("theirs", "ours"):
        copy_all(folder)
    theirs = qemu_img(*args, code=(0, 1), cwd="theirs")
    ours = img(*args, code=None, cwd="ours")
    assert ours.code == theirs.code, f"{ours}{theirs}"
    return ours


def own_clusters(qemu_img, name):
    return [e for e in qemu_img("map", "--output=json", name).json if e["depth"] == 0]


@pytest.mark.parametrize("round", range(6))
@pytest.mark.parametrize("compat", ["1.1", "0.10"])
@pytest.mark.parametrize("form", ["raw", "qcow2"])
def test_as_qemu_img_does(img, qemu_img, qemu_io, tmp, rng, form, compat, round):
    depth = rng.choice([2, 3, 4])
    names = make_chain(qemu_img, qemu_io, rng, depth, form, compat)
    before = raw_of(qemu_img, names[0])
    base = rng.choice([None] + names[1:])
    args = rng.choice([[], ["-d"]]) if base is None else ["-b", base]
    both(img, qemu_img, "commit", "-f", "qcow2", *args, names[0])
    target = base or names[1]
    target_format = form if target == "0.img" else "qcow2"
    ours = raw_of(qemu_img, f"ours/{target}", target_format)
    assert ours == raw_of(qemu_img, f"theirs/{target}", target_format)
    assert ours[:len(before)] == before
    if not args or len(names) == 2:
        assert raw_of(qemu_img, f"ours/{names[0]}") == before
    for name in names:
        if name != "0.img" or form == "qcow2":
            sound(qemu_img, f"ours/{name}")
    emptied = own_clusters(qemu_img, f"theirs/{names[0]}")
    assert bool(own_clusters(qemu_img, f"ours/{names[0]}")) == bool(emptied)


def test_the_emptied_overlay_gives_its_space_back(img, qemu_img, qemu_io, tmp):
    qemu_img("create", "-q", "-f", "qcow2", "base.qcow2", "16M")
    qemu_img("create", "-q", "-f", "qcow2", "-b", "base.qcow2", "-F", "qcow2", "top.qcow2")
    qemu_io("-c", "write -P 5 0 16M", "top.qcow2")
    img("commit", "top.qcow2")
    assert os.path.getsize("top.qcow2") <= MIB
    sound(qemu_img, "top.qcow2")
    qemu_io("-c", "read -P 5 0 16M", "top.qcow2")
    qemu_io("-c", "write -P 6 1M 4M", "-c", "read -P 6 1M 4M", "-c", "read -P 5 5M 11M", "top.qcow2")
    sound(qemu_img, "top.qcow2")


def test_snapshots_of_the_overlay_stay(img, qemu_img, qemu_io, tmp):
    qemu_img("create", "-q", "-f", "qcow2", "base.qcow2", "4M")
    qemu_img("create", "-q", "-f", "qcow2", "-b", "base.qcow2", "-F", "qcow2", "top.qcow2")
    qemu_io("-c", "write -P 5 0 2M", "top.qcow2")
    qemu_img("snapshot", "-c", "one", "top.qcow2")
    qemu_io("-c", "write -P 6 1M 2M", "top.qcow2")
    before = raw_of(qemu_img, "top.qcow2")
    img("commit", "top.qcow2")
    sound(qemu_img, "top.qcow2")
    assert raw_of(qemu_img, "top.qcow2") == raw_of(qemu_img, "base.qcow2") == before
    qemu_img("snapshot", "-a", "one", "top.qcow2")
    qemu_io("-r", "-c", "read -P 5 0 2M", "top.qcow2")
    sound(qemu_img, "top.qcow2")


@pytest.mark.parametrize("args", [
    [], ["top.qcow2", "extra"], ["-b", "none", "top.qcow2"], ["-b", "top.qcow2", "top.qcow2"],
    ["base.qcow2"], ["-f", "raw", "top.qcow2"], ["-t", "nosuch", "top.qcow2"], ["-r", "x", "top.qcow2"],
    ["none.qcow2"], ["-q", "top.qcow2"], ["-p", "top.qcow2"], ["-t", "none", "top.qcow2"],
    ["-b", "./base.qcow2", "top.qcow2"], ["-d", "-r", "100M", "top.qcow2"], ["--nosuch", "top.qcow2"],
    ["--image-opts", "driver=qcow2,file.filename=top.qcow2"]], ids=" ".join)
def test_options(img, qemu_img, tmp, args):
    qemu_img("create", "-q", "-f", "qcow2", "base.qcow2", "1M")
    qemu_img("create", "-q", "-f", "qcow2", "-b", "base.qcow2", "-F", "qcow2", "top.qcow2")
    ours = both(img, qemu_img, "commit", *args)
    assert ours.code == 0 or ours.err.strip()
    if ours.code == 0 and "-q" not in args:
        assert "Image committed." in ours.out


@pytest.fixture
def overlay(qemu_img, qemu_io, tmp, rng):
    """base.qcow2 and top.qcow2 on it, with small clusters here and there. What top.qcow2 reads as."""
    qemu_img("create", "-q", "-f", "qcow2", "-o", "cluster_size=4k", "base.qcow2", "16M")
    qemu_io("-c", "write -P 1 0 12M", "base.qcow2")
    qemu_img("create", "-q", "-f", "qcow2", "-o", "cluster_size=4k", "-b", "base.qcow2", "-F", "qcow2",
             "top.qcow2", "20M")
    args = []
    for _ in range(150):
        offset = rng.randrange(20 * MIB - 64 * KIB) // 4096 * 4096
        kind = rng.choice([f"-P {rng.randrange(256)}", f"-P {rng.randrange(256)}", "-z", "-z -u"])
        args += ["-c", f"write {kind} {offset} {rng.randrange(1, 16) * 4096}"]
    qemu_io(*args, "top.qcow2")
    return raw_of(qemu_img, "top.qcow2")


@pytest.mark.parametrize("round", range(8))
def test_killed(img, qemu_img, overlay, round):
    """At whatever moment: both images are whole, the overlay reads as before, and commit can be repeated."""
    process = img.start("commit", "-r", "20M", "top.qcow2")
    time.sleep(0.01 + 0.13 * round)
    process.kill()
    process.wait()
    for name in ("base.qcow2", "top.qcow2"):
        sound(qemu_img, name, leaks=True)
    assert raw_of(qemu_img, "top.qcow2") == overlay
    img("commit", "top.qcow2")
    assert raw_of(qemu_img, "base.qcow2") == overlay
    assert raw_of(qemu_img, "top.qcow2") == overlay


def test_interrupted(img, qemu_img, overlay):
    process = subprocess.Popen([img.path, "commit", "-r", "4M", "top.qcow2"], stderr=subprocess.PIPE)
    time.sleep(0.3)
    process.send_signal(signal.SIGINT)
    err = process.stderr.read().decode()
    assert process.wait() == 130 and "stopped" in err
    for name in ("base.qcow2", "top.qcow2"):
        sound(qemu_img, name)
    assert raw_of(qemu_img, "top.qcow2") == overlay


@pytest.mark.parametrize("where", ["overlay", "base"])
@pytest.mark.parametrize("on", [True, False], ids=["dead", "once"])
def test_failing_disk(img, qemu_img, overlay, where, on):
    """One request fails, or all from then on: the overlay reads as before."""
    backing = {"driver": "qcow2", "file": {"driver": "file", "filename": "base.qcow2"}}
    seeded = random.Random(1)
    request = 1
    ended = 0
    copy_all("fresh")
    while request < 4000 and ended < 2:
        for name in ("base.qcow2", "top.qcow2"):
            subprocess.run(["cp", f"fresh/{name}", name], check=True)
        if where == "overlay":
            spec = failing("top.qcow2", request, on, backing=backing)
        else:
            broken = {"driver": "qcow2", "file": {
                "driver": "blkdebug", "fail-request": request, "fail-on": on,
                "image": backing["file"]}}
            spec = failing("top.qcow2", 1 << 40, on, backing=broken)
        result = img("commit", spec, code=(0, 1))
        ended += result.code == 0
        for name in ("base.qcow2", "top.qcow2"):
            sound(qemu_img, name, leaks=True)
        assert raw_of(qemu_img, "top.qcow2") == overlay, request
        request += seeded.randrange(1, 1 + request)
    assert ended, "no run came to its end"
