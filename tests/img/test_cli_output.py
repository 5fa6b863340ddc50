"""What is printed, character by character as qemu-img prints it; and what only img prints."""

import json
import os
import pty
import re
import shutil
import struct
import subprocess
import xml.etree.ElementTree
from pathlib import Path

import pytest

from platter import KIB, MIB, random_content, write_sparse


@pytest.fixture
def images(qemu_img, qemu_io, tmp, rng):
    """A chain, a compressed image, one with leaks, one that is corrupt."""
    write_sparse("a.raw", random_content(rng, 3 * MIB, 64 * KIB))
    write_sparse("b.raw", bytes(MIB))
    os.truncate("b.raw", 4 * MIB)
    qemu_img("convert", "-f", "raw", "-O", "qcow2", "a.raw", "a.qcow2")
    qemu_img("create", "-f", "qcow2", "-b", "a.qcow2", "-F", "qcow2", "top.qcow2", "4M")
    qemu_io("-c", "write -P 3 64k 128k", "-c", "write -z 1M 1M", "top.qcow2")
    qemu_img("convert", "-c", "-f", "raw", "-O", "qcow2", "a.raw", "small.qcow2")
    qemu_img("create", "-f", "qcow2", "-o", "compat=0.10,cluster_size=4k", "old.qcow2", "1M")
    os.mkdir("sub")
    shutil.copy("a.qcow2", "sub/a.qcow2")
    shutil.copy("top.qcow2", "sub/top.qcow2")
    for name, change in (("leak", {9: 1}), ("corrupt", {5: 0, 6: 2})):
        qemu_img("create", "-f", "qcow2", f"{name}.qcow2", "1M")
        qemu_io("-c", "write 0 256k", f"{name}.qcow2")
        set_refcounts(f"{name}.qcow2", change)


def set_refcounts(name, change):
    with open(name, "r+b") as file:
        file.seek(48)
        table = struct.unpack(">Q", file.read(8))[0]
        file.seek(table)
        block = struct.unpack(">Q", file.read(8))[0]
        for cluster, count in change.items():
            file.seek(block + 2 * cluster)
            file.write(struct.pack(">H", count))
        file.truncate(12 * 65536)


def same(img, qemu_img, *args, stderr=False):
    """Both print the same to standard output, with the same exit code."""
    theirs, ours = qemu_img(*args, code=None), img(*args, code=None)
    assert ours.code == theirs.code, f"{ours}{theirs}"
    assert ours.out == theirs.out
    if stderr:
        assert ours.err == theirs.err


@pytest.mark.parametrize("args", [
    "info a.raw", "info a.qcow2", "info top.qcow2", "info sub/top.qcow2", "info small.qcow2",
    "info old.qcow2", "info --backing-chain top.qcow2", "info --backing-chain sub/top.qcow2",
    "info -f raw a.qcow2", "info --output=json a.qcow2", "info --output=json top.qcow2",
    "info --output=json --backing-chain sub/top.qcow2", "info --output=json a.raw",
    "info --output=json old.qcow2", "info -U top.qcow2",
    "info --image-opts driver=qcow2,file.filename=top.qcow2",
    "map top.qcow2", "map --output=json top.qcow2", "map --output=json -f raw a.raw", "map a.raw",
    "map --output=json old.qcow2", "map --output=json -s 100k -l 1M top.qcow2", "map -s 10M top.qcow2",
    "map --output=json -s 10M top.qcow2", "map --output=json small.qcow2", "map sub/top.qcow2",
    "map -s 1M -l 64k top.qcow2",
    "check a.qcow2", "check top.qcow2", "check --output=json a.qcow2", "check small.qcow2",
    "check --output=json small.qcow2", "check -q a.qcow2", "check old.qcow2", "check -f raw a.raw",
    "check -r all a.qcow2", "check -r leaks --output=json top.qcow2",
    "compare -f raw a.raw a.qcow2", "compare -f raw -F raw a.raw b.raw", "compare a.qcow2 top.qcow2",
    "compare -f raw -F raw -s a.raw b.raw", "compare -s a.qcow2 top.qcow2", "compare -q a.qcow2 top.qcow2",
    "compare small.qcow2 a.qcow2", "compare a.qcow2 nosuch",
    "measure --size 1G", "measure -O qcow2 --size 1G", "measure -O qcow2 --size 1G --output=json",
    "measure -O qcow2 a.qcow2", "measure -O qcow2 -f raw a.raw", "measure -O qcow2 top.qcow2",
    "measure -O raw top.qcow2", "measure -O qcow2 --output=json top.qcow2", "measure -O qcow2 old.qcow2",
    "measure -O qcow2 -o compat=0.10 a.qcow2", "measure -O qcow2 -o cluster_size=4k small.qcow2"])
def test_reading(img, qemu_img, images, args):
    same(img, qemu_img, *args.split())


@pytest.mark.parametrize("args", [
    "check leak.qcow2", "check corrupt.qcow2", "check --output=json leak.qcow2",
    "check --output=json corrupt.qcow2", "check -q leak.qcow2"])
def test_check_of_damaged_images(img, qemu_img, images, args):
    same(img, qemu_img, *args.split())


def test_check_tells_of_mended_leaks(img, qemu_img, images):
    for form in ("human", "json"):
        shutil.copy("leak.qcow2", "x.qcow2")
        theirs = qemu_img("check", "-r", "leaks", f"--output={form}", "x.qcow2").out
        shutil.copy("leak.qcow2", "x.qcow2")
        assert img("check", "-r", "leaks", f"--output={form}", "x.qcow2").out == theirs
        qemu_img("check", "x.qcow2")


def test_check_mends_corruption(img, qemu_img, images):
    result = img("check", "-r", "all", "corrupt.qcow2")
    assert "The following inconsistencies were found and repaired:" in result.out
    assert result.out.count("No errors were found on the image.") == 1
    qemu_img("check", "corrupt.qcow2")


@pytest.mark.parametrize("args", [
    "-f raw x 1M", "-f raw x 1000", "x 1.5G", "-f qcow2 x 20G", "-f qcow2 -o cluster_size=4k x 1M",
    "-f qcow2 -b a.qcow2 -F qcow2 x", "-f qcow2 -b a.raw -F raw x 5M",
    "-f qcow2 -o backing_file=a.qcow2,backing_fmt=qcow2 x", "-f qcow2 -u -b no -F raw x 1M",
    "-f qcow2 -o compat=0.10 x 1M", "-f qcow2 -o compat=1.1,lazy_refcounts=on,refcount_bits=8 x 1M",
    "-f qcow2 -o preallocation=metadata x 1M", "-f qcow2 -o compression_type=zstd x 1M",
    "-f qcow2 -o size=3M x", "-q -f qcow2 x 1M", "-f qcow2 -o cluster_size=4k -o compat=1.1 x 1M"])
def test_create(img, qemu_img, images, args):
    same(img, qemu_img, "create", *args.split())


@pytest.mark.parametrize("args", ["+1M", "8M", "-q +1M", "--shrink -1M", "--preallocation=metadata +1M",
                                  "+0"])
def test_resize(img, qemu_img, images, args):
    words = args.split()
    results = []
    for tool in (qemu_img, img):
        shutil.copy("a.qcow2", "x.qcow2")
        results.append(tool("resize", *words[:-1], "x.qcow2", words[-1]))
    assert results[0].out == results[1].out


@pytest.mark.parametrize("args", ["-c 100", "-c 100 -d 4 -s 8k -S 16k -o 64k", "-c 0",
                                  "-w -c 100 --flush-interval=64", "-w -c 64 --flush-interval=64 --no-drain"])
def test_bench(img, qemu_img, images, args):
    out = []
    for tool in (qemu_img, img):
        shutil.copy("a.qcow2", "x.qcow2")
        out.append(re.sub(r"\d+\.\d{3}", "T", tool("bench", *args.split(), "x.qcow2").out))
    assert out[0] == out[1]


@pytest.mark.parametrize("args,code", [
    ("bench --flush-interval=5 a.raw", 1), ("bench -w -d 9 --flush-interval=5 a.raw", 1),
    ("bench --pattern=256 a.raw", 1), ("bench -i nosuch a.raw", 1),
    ("compare a.raw", 1), ("compare a.raw nosuch", 2), ("check nosuch", 1), ("check a.raw", 63),
    ("info a.raw b.raw", 1), ("map -s -1 a.raw", 1), ("measure -O qcow2 -f raw --size 1", 1),
    ("measure", 1), ("measure --size 1 a.raw", 1), ("resize a.raw", 1), ("resize -f raw a.raw 1M", 1),
    ("resize -f raw --shrink a.raw -10M", 1), ("resize --preallocation=full -f raw --shrink a.raw 1M", 1),
    ("convert --target-is-zero -f raw a.raw x", 1), ("convert -n -o size=1 -f raw a.raw x", 1),
    ("convert --skip-broken-bitmaps a.raw x", 1), ("convert --target-image-opts a.raw driver=raw", 1),
    ("convert --image-opts -f raw a.raw x", 1), ("convert -S 1000 -f raw a.raw x", 1),
    ("convert -f raw -O qcow2 -B a.qcow2 a.raw x", 1), ("convert -l nosuch a.qcow2 x", 1),
    ("create -f raw -b a.qcow2 x 1M", 1), ("create -f qcow2 -o size=1M x 2M", 1),
    ("create -f qcow2 -b x -F qcow2 x 1M", 1), ("info --image-opts -f raw driver=raw", 1)])
def test_exit_codes_of_mistakes(img, qemu_img, images, args, code):
    """The same as qemu-img's, with one sentence that names what is wrong."""
    before = sorted(os.listdir("."))
    assert qemu_img(*args.split(), code=None).code == code
    result = img.fails(*args.split(), code=code)
    assert not result.out
    assert result.err.startswith("img: ")
    assert len([line for line in result.err.splitlines() if line.startswith("img: ")]) == 1
    assert sorted(os.listdir(".")) == before


def test_names_that_are_not_utf8(img, qemu_img, tmp):
    """A file name is any bytes; JSON shows what is no letter as U+FFFD."""
    raw, top = b"\xff\xe4\"\\x.raw", b"\xfc.qcow2"
    Path(os.fsdecode(raw)).write_bytes(bytes(1024))

    def run(*args):
        return subprocess.run([os.fsencode(img.path), *args], capture_output=True, check=True).stdout

    assert json.loads(run(b"info", b"--output=json", raw))["filename"] == "\ufffd\ufffd\"\\x.raw"
    assert run(b"info", raw).startswith(b"image: " + raw + b"\n")
    run(b"create", b"-f", b"qcow2", b"-b", raw, b"-F", b"raw", top)
    assert b"backing file: " + raw + b"\n" in run(b"info", top)
    run(b"convert", b"-O", b"raw", top, b"\xe9")
    assert run(b"compare", b"-f", b"raw", b"-F", b"raw", raw, b"\xe9") == b"Images are identical.\n"
    qemu_img("check", os.fsdecode(top))


def test_output_that_cannot_be_written(img, images):
    with open("/dev/full", "w") as full:
        for command in (["info", "a.raw"], ["map", "a.raw"], ["help"], ["compare", "a.raw", "a.raw"]):
            done = subprocess.run([img.path, *command], stdout=full, stderr=subprocess.PIPE, text=True)
            assert done.returncode and "No space left" in done.stderr


def test_reader_that_has_enough(img, tmp):
    """As in `img map disk | head -n 1`: no complaint."""
    os.truncate(os.open("x", os.O_CREAT | os.O_WRONLY), 16 * MIB)
    with open("x", "r+b") as file:
        for at in range(0, 16 * MIB, 8 * KIB):
            file.seek(at)
            file.write(b"x")
    process = subprocess.Popen([img.path, "map", "--output=json", "-f", "raw", "x"],
                               stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    process.stdout.readline()
    process.stdout.close()
    assert process.wait(20) == 128 + 13 and not process.stderr.read()


def test_loop_in_the_backing_chain(img, tmp, qemu_img):
    qemu_img("create", "-f", "qcow2", "a", "1M")
    qemu_img("create", "-f", "qcow2", "-b", "a", "-F", "qcow2", "b")
    qemu_img("rebase", "-u", "-b", "b", "-F", "qcow2", "a")
    for command in (["info", "--backing-chain", "b"], ["convert", "b", "c"], ["map", "b"]):
        img.fails(*command, code=1, timeout=10)


# ---------------------------------------------------------------- bench, beyond qemu-img

def test_bench_json(img, images):
    answer = img("bench", "-c", "500", "-d", "4", "--random", "--mixed=70", "--output=json", "a.qcow2").json
    assert answer["requests"] == 500 and answer["reads"] + answer["writes"] == 500
    assert 250 < answer["reads"] < 450
    latency = answer["latency-us"]
    assert latency["min"] <= latency["p50"] <= latency["p90"] <= latency["p99"] <= latency["max"]
    assert answer["requests-per-second"] > 0


def test_bench_reads_do_not_write(img, images):
    before = Path("a.qcow2").read_bytes()
    img("bench", "-c", "500", "--random", "--mixed=100", "a.qcow2")
    assert Path("a.qcow2").read_bytes() == before


def test_bench_random_says_percentiles(img, images):
    out = img("bench", "-c", "500", "--random", "a.qcow2").out
    assert "requests/s" in out and "p99" in out


# ---------------------------------------------------------------- pictures

def picture(img, name, **env):
    done = subprocess.run([img.path, "map", "--output=picture", name], text=True, capture_output=True,
                          check=True, env={**os.environ, "LC_ALL": "C.UTF-8", **env})
    return done.stdout


def test_picture_fits_the_width(img, images):
    for columns in (60, 80, 120):
        lines = picture(img, "top.qcow2", COLUMNS=str(columns)).splitlines()
        assert max(map(len, lines)) <= columns


def test_picture_has_a_legend_that_adds_up(img, images):
    text = picture(img, "top.qcow2")
    shares = [float(value) for value in re.findall(r"(\d+\.\d)%", text)]
    assert 99 <= sum(shares) <= 101
    assert "data, backing 1" in text and "zero" in text
    assert "compressed" in picture(img, "small.qcow2")


def test_picture_in_a_pipe_and_without_utf8_is_plain(img, images):
    text = picture(img, "top.qcow2", LC_ALL="C")
    assert text.isascii() and "\033" not in text


def colored(img, **env):
    master, slave = pty.openpty()
    subprocess.run([img.path, "map", "--output=picture", "top.qcow2"], stdout=slave, check=True,
                   env={**os.environ, "TERM": "xterm", **env})
    os.close(slave)
    text = b""
    try:
        while part := os.read(master, 65536):
            text += part
    except OSError:
        pass
    os.close(master)
    return b"\033[" in text


def test_picture_has_colours_on_a_terminal_only_if_wanted(img, images):
    env = {key: value for key, value in os.environ.items() if key != "NO_COLOR"}
    os.environ.clear()
    os.environ.update(env)
    assert colored(img)
    assert not colored(img, NO_COLOR="1")
    assert not colored(img, TERM="dumb")


@pytest.mark.parametrize("name", ["a.raw", "top.qcow2", "small.qcow2", "b.raw"])
def test_svg(img, images, name):
    text = img("map", "--output=svg", name).out
    root = xml.etree.ElementTree.fromstring(text)
    assert root.tag.endswith("svg")
    img("map", "--output=svg=out.svg", name)
    assert Path("out.svg").read_text() == text


def test_svg_of_a_name_with_special_letters(img, images):
    shutil.copy("a.raw", "<&>.raw")
    xml.etree.ElementTree.fromstring(img("map", "--output=svg", "<&>.raw").out)


def test_pictures_of_an_empty_disk(img, tmp):
    Path("empty").touch()
    img("map", "--output=picture", "-f", "raw", "empty")
    img("map", "--output=svg", "-f", "raw", "empty")


def test_info_of_a_backing_name_that_means_harm(img, qemu_img, tmp):
    """It neither reaches the terminal as it is nor makes up lines."""
    name = "x\x1b[31m\nfile format: raw"
    qemu_img("create", "-q", "-u", "-f", "qcow2", "-b", name, "-F", "qcow2", "a.qcow2", "1M")
    out = img("info", "a.qcow2").out
    assert "\x1b" not in out and out.count("\nfile format:") == 1
    assert "backing file: x?[31m?file format: raw" in out
    assert img("info", "--output=json", "a.qcow2").json["backing-filename"] == name


def test_warning_with_a_name_that_means_harm(img, tmp):
    Path("a\x1b[31m").write_bytes(bytes(512))
    err = img("info", "--image-opts", "driver=raw,file.driver=blkdebug,file.fail-request=9,"
              "file.image.driver=file,file.image.filename=a\x1b[31m").err
    assert "warning: a?[31m: request 9 did not fail" in err
