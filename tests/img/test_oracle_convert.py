"""img convert against qemu-img convert: the same options make the same disks."""

import os
import subprocess
from pathlib import Path

import pytest

from platter import (KIB, MIB, allocated, includes, random_content, same_bytes, same_map,
                     write_sparse)

FORMATS = {
    "raw": ["-O", "raw"],
    "qcow2": ["-O", "qcow2"],
    "qcow2-zlib": ["-c", "-O", "qcow2"],
    "qcow2-zstd": ["-c", "-O", "qcow2", "-o", "compression_type=zstd"],
    "qcow2-v2": ["-O", "qcow2", "-o", "compat=0.10,cluster_size=4k"],
}


@pytest.fixture
def disk(tmp, rng):
    """A raw disk of 5 MiB and a bit; its content."""
    content = random_content(rng, 5 * MIB + 1536, 64 * KIB)
    write_sparse("a.raw", content)
    return content


@pytest.mark.parametrize("target", FORMATS)
@pytest.mark.parametrize("source", FORMATS)
def test_each_format_to_each(img, qemu_img, disk, source, target):
    qemu_img("convert", "-f", "raw", *FORMATS[source], "a.raw", "source")
    form = source.split("-")[0]
    img("convert", "-f", form, *FORMATS[target], "source", "target")
    qemu_img("compare", "-f", "raw", "-F", target.split("-")[0], "a.raw", "target")
    if target != "raw":
        qemu_img("check", "target")


@pytest.mark.parametrize("options", [
    [], ["-S", "0"], ["-S", "4k"], ["-S", "64k"], ["-S", "1M"], ["-W"], ["-m", "1"], ["-m", "16"],
    ["-W", "-m", "4"], ["-C"], ["-t", "none"], ["-T", "none"], ["-t", "unsafe"],
    ["-t", "writethrough"], ["-t", "directsync"], ["-r", "100M"], ["-q"], ["-p"], ["-U"],
    ["--salvage"], ["--no-such-option"]], ids=" ".join)
@pytest.mark.parametrize("form", ["raw", "qcow2"])
def test_options(img, qemu_img, disk, options, form):
    """Whatever the option, the content is right; what is no option fails with both."""
    theirs = qemu_img("convert", *options, "-f", "raw", "-O", form, "a.raw", "theirs", code=None)
    ours = img("convert", *options, "-f", "raw", "-O", form, "a.raw", "ours", code=None)
    assert ours.code == theirs.code, f"{ours}{theirs}"
    if ours.code == 0:
        qemu_img("compare", "-f", "raw", "-F", form, "a.raw", "ours")
        if "-S" in options and form == "qcow2":
            same_map(img("map", "--output=json", "ours").json,
                     qemu_img("map", "--output=json", "ours").json)


@pytest.mark.parametrize("sparse", ["0", "4k", "64k", "512k"])
def test_sparse_size_decides_the_holes(img, qemu_img, disk, sparse):
    """As much space on the disk as qemu-img takes, give or take file system metadata."""
    for tool, out in ((img, "ours"), (qemu_img, "theirs")):
        tool("convert", "-S", sparse, "-f", "raw", "-O", "raw", "a.raw", out)
    same_bytes("ours", disk)
    assert allocated("ours") <= allocated("theirs") + 64 * KIB
    if sparse == "0":
        assert allocated("ours") >= len(disk)


def test_several_sources(img, qemu_img, tmp, rng):
    """They follow each other, each rounded up to sectors."""
    whole = bytearray()
    names = []
    for number, size in enumerate((MIB, 3 * 512, 2 * MIB + 512)):
        content = random_content(rng, size, 32 * KIB)
        write_sparse(f"{number}.raw", content)
        qemu_img("convert", "-f", "raw", "-O", "qcow2", f"{number}.raw", f"{number}.qcow2")
        names.append(f"{number}.qcow2")
        whole += content
    img("convert", "-O", "raw", *names, "out.raw")
    same_bytes("out.raw", whole)


@pytest.mark.parametrize("options", [["-B", "base.qcow2", "-F", "qcow2"],
                                     ["-o", "backing_file=base.qcow2,backing_fmt=qcow2"]],
                         ids=["B", "o"])
def test_copy_on_top_of_a_backing_file(img, qemu_img, qemu_io, disk, options):
    """-B copies only what the backing file does not have."""
    qemu_img("convert", "-f", "raw", "-O", "qcow2", "a.raw", "base.qcow2")
    qemu_img("create", "-f", "qcow2", "-b", "base.qcow2", "-F", "qcow2", "top.qcow2")
    qemu_io("-c", "write -P 77 1M 128k", "-c", "write -z 2M 64k", "top.qcow2")
    for tool, out in ((img, "ours.qcow2"), (qemu_img, "theirs.qcow2")):
        tool("convert", "-O", "qcow2", *options, "top.qcow2", out)
        qemu_img("compare", "top.qcow2", out)
    assert allocated("ours.qcow2") <= allocated("theirs.qcow2") + 64 * KIB
    infos = [tool("info", "--output=json", "ours.qcow2").json for tool in (img, qemu_img)]
    includes(infos[0], infos[1])
    assert infos[1]["backing-filename"] == "base.qcow2"


def test_into_an_existing_image(img, qemu_img, disk):
    """-n overwrites what is there, zeroes included, and keeps what the target is."""
    write_sparse("old.raw", b"\xee" * len(disk))
    qemu_img("convert", "-f", "raw", "-O", "qcow2", "-o", "cluster_size=4k", "old.raw", "b.qcow2")
    img("convert", "-n", "-f", "raw", "-O", "qcow2", "a.raw", "b.qcow2")
    qemu_img("compare", "-f", "raw", "a.raw", "b.qcow2")
    assert qemu_img("info", "--output=json", "b.qcow2").json["cluster-size"] == 4096
    qemu_img("check", "b.qcow2")


def test_into_an_existing_raw_file_keeps_its_inode(img, disk):
    write_sparse("b.raw", b"\xee" * len(disk))
    inode = os.stat("b.raw").st_ino
    img("convert", "-n", "-f", "raw", "-O", "raw", "a.raw", "b.raw")
    same_bytes("b.raw", disk)
    assert os.stat("b.raw").st_ino == inode


def test_into_a_target_of_another_size(img, qemu_img, disk):
    for size in (len(disk) + MIB, len(disk) - 512):
        codes = []
        for tool in (qemu_img, img):
            qemu_img("create", "-f", "qcow2", "b.qcow2", size)
            codes.append(tool("convert", "-n", "-f", "raw", "-O", "qcow2", "a.raw", "b.qcow2",
                              code=(0, 1)).code)
        assert codes[0] == codes[1]


def test_target_is_zero(img, qemu_img, disk):
    qemu_img("create", "-f", "qcow2", "b.qcow2", len(disk))
    img("convert", "-n", "--target-is-zero", "-f", "raw", "-O", "qcow2", "a.raw", "b.qcow2")
    qemu_img("compare", "-f", "raw", "a.raw", "b.qcow2")
    img.fails("convert", "--target-is-zero", "-f", "raw", "-O", "qcow2", "a.raw", "c.qcow2")
    assert not os.path.exists("c.qcow2")


def test_image_opts(img, qemu_img, disk):
    qemu_img("convert", "-f", "raw", "-O", "qcow2", "a.raw", "b.qcow2")
    img("convert", "--image-opts", "-O", "raw", "driver=qcow2,file.driver=file,file.filename=b.qcow2",
        "out.raw")
    same_bytes("out.raw", disk)
    qemu_img("create", "-f", "qcow2", "c.qcow2", len(disk))
    img("convert", "-n", "--target-image-opts", "-f", "raw", "a.raw",
        "driver=qcow2,file.driver=file,file.filename=c.qcow2")
    qemu_img("compare", "-f", "raw", "a.raw", "c.qcow2")


@pytest.mark.parametrize("name", [
    'json:{"driver":"qcow2","file":{"driver":"file","filename":"b.qcow2"}}',
    'json:{"driver":"qcow2","file.driver":"file","file.filename":"b.qcow2"}',
    "file:b.qcow2"], ids=["nested", "dotted", "file"])
def test_source_by_description(img, qemu_img, disk, name):
    qemu_img("convert", "-f", "raw", "-O", "qcow2", "a.raw", "b.qcow2")
    img("convert", "-O", "raw", name, "out.raw")
    same_bytes("out.raw", disk)


def test_raw_window(img, qemu_img, disk):
    """The raw driver's offset and size show a part of the file."""
    name = ('json:{"driver":"raw","offset":1048576,"size":65536,'
            '"file":{"driver":"file","filename":"a.raw"}}')
    for tool, out in ((img, "ours"), (qemu_img, "theirs")):
        tool("convert", "-O", "raw", name, out)
        same_bytes(out, disk[MIB:MIB + 64 * KIB])


# ---------------------------------------------------------------- streams

def shell(img, command, code=0):
    result = subprocess.run(["bash", "-o", "pipefail", "-c", command.replace("IMG", img.path)],
                            capture_output=True, timeout=60, check=False)
    assert result.returncode == code, result.stderr.decode()
    return result


def test_stream_in(img, qemu_img, disk):
    shell(img, "cat a.raw | IMG convert -f raw -O qcow2 - out.qcow2")
    qemu_img("compare", "-f", "raw", "a.raw", "out.qcow2")
    qemu_img("check", "out.qcow2")


def test_stream_out(img, qemu_img, disk):
    qemu_img("convert", "-f", "raw", "-O", "qcow2", "a.raw", "a.qcow2")
    shell(img, "IMG convert -O raw a.qcow2 - | cat >out.raw")
    same_bytes("out.raw", disk)


def test_stream_through(img, disk):
    shell(img, "cat a.raw | IMG convert -f raw -O raw - - | cat >out.raw")
    same_bytes("out.raw", disk)


def test_stream_compressed(img, qemu_img, disk):
    shell(img, "cat a.raw | IMG convert -c -f raw -O qcow2 - out.qcow2")
    qemu_img("compare", "-f", "raw", "a.raw", "out.qcow2")


def test_stream_out_has_no_chatter(img, disk):
    """Progress and messages stay off standard output when it carries the disk."""
    shell(img, "IMG convert -p -f raw -O raw a.raw - | cat >out.raw")
    same_bytes("out.raw", disk)


def test_stream_reader_goes_away(img, disk):
    """A broken pipe is an error with a message, not a silent success."""
    result = shell(img, "set +o pipefail; IMG convert -f raw -O raw a.raw - 2>err | head -c 1000 | "
                        "wc -c; echo ${PIPESTATUS[0]} >code")
    assert result.stdout.split()[0] == b"1000"
    assert int(Path("code").read_text()) in (1, 141)


def test_progress_is_qemus(img, qemu_img, disk):
    """-p prints lines of the form (NN.NN/100%) and ends at 100."""
    out = img("convert", "-p", "-f", "raw", "-O", "qcow2", "a.raw", "b.qcow2").out
    assert "(100.00/100%)" in out


def test_compressed_size_is_close_to_qemus(img, qemu_img, disk):
    for form in ("zlib", "zstd"):
        for tool, out in ((img, "ours"), (qemu_img, "theirs")):
            tool("convert", "-c", "-f", "raw", "-O", "qcow2", "-o", f"compression_type={form}",
                 "a.raw", out)
        assert os.path.getsize("ours") <= os.path.getsize("theirs") * 1.10


def test_no_needless_zeroes(img, tmp):
    """A disk of nothing but holes, or of zeroes, makes an image of no data."""
    img("create", "-f", "raw", "hole.raw", "64M")
    Path("zero.raw").write_bytes(bytes(16 * MIB))
    for source in ("hole.raw", "zero.raw"):
        img("convert", "-f", "raw", "-O", "qcow2", source, "out.qcow2")
        assert allocated("out.qcow2") < MIB
        img("convert", "-f", "raw", "-O", "raw", source, "out.raw")
        assert allocated("out.raw") < MIB
