"""io against qemu-io: the same scripts say the same, end the same, and leave the same bytes."""

from pathlib import Path

import pytest

from iotools import as_qemu_io, both, commands, io, masked  # noqa: F401  (fixtures)
from platter import KIB, MIB, normal_map, random_content, random_requests, same_bytes, write_sparse


@pytest.fixture
def raw(tmp):
    """a.raw, 4 MiB of nothing, and two small files to fill buffers from."""
    with open("a.raw", "wb") as file:
        file.truncate(4 * MIB)
    Path("five").write_bytes(b"abcde")
    Path("nothing").touch()


RAW_SCRIPTS = {
    "write and read": """
write -P 0x41 0 64k
read -P 0x41 0 64k
read -P 0x42 0 64k
read -P 0x41 -s 512 -l 1k 0 64k
read -P 1 -s 10 50 100
read -P 1 -l 10 50 100
read -P 1 -s 10 -l 0 0 10
read -v 0 40
read -v -P 1 0x3ffff0 16
read -qP 1 0 100
read -P0x41 0 100
read 0 100 -P 1 -q
write 1 3
read 1 3
read -v 0 8
write -p 0 512
read -p 0 512
read 0 0
write 0 0
read 1.5k 512
read 0x200 0x200
read 010 1
read +5 5
""",
    "figures for programs and none": """
write -C 0 64k
read -C 0 64k
write -C -q 0 1M
read -q 0 64k
read -v -q 0 20
discard -C 0 1M
discard -q 0 1M
readv -C 0 512 512
writev -C 0 512 512
""",
    "wrong arguments of read": """
read
read 0
read x 1
read 0 y
read 0 4096 5
read -Z 0 4096
read -1 512
read -- -1 512
read 0 -- -512
read 0 -512
read -P 256 0 64k
read -P -1 0 64k
read -P abc 0 64k
read -P 1 -s 512 -l 64k 0 64k
read -P 1 -s 65k 0 64k
read -P 1 -s x 0 10
read -P 1 -l x 0 10
read -s 512 0 64k
read -l 512 0 64k
read -a 0 512
read -b 1 512
read -b 0 1000
read -b 0 512
read --help 0 1
""",
    "sizes": """
discard 1.0 0
discard 1.k 0
discard 1.5B 0
discard 1.5 0
discard .5k 0
discard 1.9k 0
discard 1.1M 0
discard 0x 0
discard 0x1b 0
discard 0X10 0
discard 0x10k 0
discard 1kk 0
discard 1kb 0
discard 1KiB 0
discard 1K 0
discard 1m 0
discard 1e3 0
discard 1_0 0
discard 0x1.8k 0
discard inf 0
discard 8e 0
discard 18446744073709551616 0
discard "" 0
""",
    "beyond the end": """
read 0 8M
read 4M 512
read 9223372036854775807 512
read 1e 512
read 0 3G
read 0 2147483137
read 0 2147483136
write 0 8M
write 4M 512
write 0 3G
write -z 0 3G
write -z 0 100M
write -z 0 8E
discard 0 8M
discard 8M 1M
discard 0 3G
readv 8M 512
readv 0 9G
readv 0 1G 1G 1G
writev 0 9G
writev 8M 1
""",
    "all of write": """
write -z 0 64k
write -z -u 0 64k
write -z -f 0 64k
write -f 0 512
write -c -z 0 512
write -c 0 64k
write -s five 0 16
read -v 0 20
write -s five 100 3
write -s missing 0 512
write -s . 0 512
write -s nothing 0 512
write -z -P 1 0 512
write -s five -P 1 0 512
write -s five -z 0 512
write -u 0 512
write -n 0 512
write -b -z 0 512
write -b -f 0 512
write -c -f 0 512
write -b 0 1
write -b 512 1000
write -b 0 512
write -P 0x100 0 512
write -x 0 1
write -P
write -s
write 0 1 -s
write 0 1 2
""",
    "vectors": """
writev -P 7 0 512 1k 3
readv -P 7 0 512 1k 3
readv -P 8 0 512 1k
readv -v 0 8 8 4
writev -f 0 512
writev -q 0 512
readv 0
readv 0 x
readv x 512
readv -Z 0 1
readv -P 300 0 512
writev 0
writev 0 1x
writev -P x 0 512
""",
    "discard": """
write -P 3 0 1M
discard 0 64k
discard 1 3
discard 0 0
discard x 1
discard 0 x
discard 0
discard 0 1 2
discard -Z 0 1
""",
    "truncate and length": """
length
truncate 8M
length
truncate -m off 9M
truncate -m falloc 10M
truncate -m full 11M
truncate -m wrong 12M
truncate x
truncate
truncate 1 2 3 4
truncate -Z 1
truncate 1000
length
read -P 0 0 1024
truncate 4M
length 1
length -q
length
""",
    "alloc and map": """
alloc 0
alloc 0 1M
alloc 0 8M
alloc 8M
alloc 1
alloc 1 1
alloc 512 1000
alloc 4M 0
alloc x
alloc 0 x
alloc 0 1M 1
alloc
map
map 1
info
info 1
""",
    "words": """
bogus
   read   0   512
r 0 512
w 0 512
f
l
i

# comment
read 0 512;read 0 512
help length
help bogus
help 1 2
flush 1
sleep 1
sleep x
sleep -1
sleep
sleep 1 2
sleep 1k
sleep 0x1
sigraise
sigraise x
sigraise 1k
sigraise 99999
sigraise 66
sigraise 0
abort 1
quit 1
read 0 512
""",
    "asynchronous": """
aio_write -P 3 0 512 1k
aio_flush
aio_read -P 3 0 1536
aio_flush
aio_read -P 4 0 512
aio_flush
aio_read -v 0 32
aio_flush
aio_read -q -v 0 32
aio_read 8M 512
aio_flush
aio_write 8M 512
aio_flush
aio_write -z 8M 512
aio_flush
aio_write -C 0 512
aio_flush
aio_write -q 0 512
aio_write -z -u 0 64k
aio_flush
aio_write -u 0 64k
aio_write -z 0 64k 64k
aio_write -z -P 1 0 64k
aio_flush
aio_write -i 0 512
aio_read -i 0 512
aio_read x 512
aio_read 0 x
aio_read 0
aio_read 0 3G
aio_write 0 3G
aio_read -P 444 0 512
aio_read -Z 0 512
aio_flush 1
aio_write 0 512
length
""",
    "close and open": """
close
read 0 512
close
open -r -o driver=raw a.raw
write 0 512
open a.raw
close
open -o driver=raw a.raw
write -P 2 0 512
close
open -t wrong a.raw
open -d wrong a.raw
open -i wrong a.raw
open -Z a.raw
open
open -o driver=raw a.raw b.raw
open -o driver=raw -o discard=off,read-only=off a.raw
read -P 2 0 512
aio_write 0 512
close
close 1
""",
    "reopen": """
reopen
write -P 1 0 512
reopen -r
write 0 512
reopen -w
write -P 1 512 512
reopen -r -w
reopen -r -r
reopen -c wrong
reopen -c writethrough
reopen -c none -o cache.direct=off
reopen -r -o read-only=off
reopen -o driver=qcow2
reopen x
reopen -Z
reopen -o
read -P 1 0 1024
reopen -o discard=off
write 0 1M
discard 0 1M
read -P 0 0 1M
""",
}


@pytest.mark.parametrize("name", RAW_SCRIPTS)
def test_script_on_raw(both, raw, name):
    both("-f", "raw", *commands(RAW_SCRIPTS[name]), "a.raw")


@pytest.mark.parametrize("options", [["-n"], ["-m"], ["-n", "-m"], ["-n", "-k"], ["-i", "threads"], ["-t", "off"],
                                     ["-t", "writethrough"], ["-t", "unsafe"], ["-d", "ignore"],
                                     ["--discard=unmap"], ["--nocache", "--native-aio"], ["-r"],
                                     ["-r", "-U"], ["-s"], ["--object", "secret,id=a,data=b"],
                                     ["-T", "file=/dev/null"]], ids=" ".join)
def test_options(both, raw, options):
    script = "write -P 9 0 64k\nread 1 3\nread -P 9 0 64k\ndiscard 0 64k\nlength"
    both(*options, "-f", "raw", *commands(script), "a.raw")


@pytest.mark.parametrize("options", [["-t", "wrong"], ["-d", "wrong"], ["-i", "wrong"], ["-U"],
                                     ["-r", "-C"], ["-k"]], ids=" ".join)
def test_refused_options(both, raw, options):
    both(*options, "-f", "raw", "-c", "length", "a.raw")


@pytest.mark.parametrize("options", [["-f", "wrong", "a.raw"], ["missing"], ["-f", "qcow2", "a.raw"]],
                         ids=" ".join)
def test_images_that_do_not_open(both, raw, options):
    """Not the same words, but as many commands fail."""
    both("-c", "length", *options, err=False)


def test_options_both_refuse_as_unknown(as_qemu_io, qemu_io, raw):
    for options in (["-Z"], ["--wrong"], ["-c"], ["-q"], ["a", "b"]):
        ours, theirs = (tool(*options, code=1) for tool in (as_qemu_io, qemu_io))
        assert ours.err.partition(":")[2] == theirs.err.partition(":")[2]
        assert ours.out.startswith("Usage: qemu-io ") and theirs.out.startswith("Usage: qemu-io ")


def test_no_file(both, raw):
    script = "read\nread -Z\nmap 1\ntruncate x\nsleep 1\nwrite x y\nflush\naio_flush\nbreak\nreopen\nhelp"
    both(*commands(script))


def test_read_only(both, raw):
    script = "write -Z 0\nwrite -z -P 3 0 1\ndiscard x\ntruncate -m wrong 1\nwritev 0 1\naio_write 0 1\n" \
             "aio_flush\nflush\nreopen -w\nwrite 0 1"
    both("-r", "-f", "raw", *commands(script), "a.raw")


@pytest.mark.parametrize("signal", [2, 15, 64])
def test_signal(both, raw, signal):
    both("-f", "raw", *commands(f"write -P 1 0 64k\nsigraise {signal}\nwrite 0 1"), "a.raw")


def test_abort(both, raw):
    both("-f", "raw", *commands("write -P 1 0 64k\nabort"), "a.raw")


@pytest.mark.parametrize("typed", ["read 0 512\nbogus\nlength\n", "read 0 512\nquit\nlength\n", "length",
                                   "\n\nlength\n", "", "read -P 1 0 512\n", "aio_write 0 512\naio_flush\n",
                                   "close\nopen -o driver=raw a.raw\nlength\n"])
def test_commands_from_a_pipe(both, raw, typed):
    both("-f", "raw", "a.raw", stdin=typed.encode())


@pytest.mark.parametrize("size", [0, 1, 1000, 1025])
def test_disk_that_ends_within_a_sector(both, tmp, size):
    Path("odd.raw").write_bytes(b"x" * size)
    sectors = -(-size // 512) * 512
    script = f"length\nalloc 0 2500\nmap\nread 0 {sectors}\nread -v {sectors - 16} 16\n" \
             f"read -v {max(0, size - 10)} 12\nread {sectors} 1\ndiscard 0 {sectors}\n"
    both("-r", "-f", "raw", *commands(script), "odd.raw")
    both("-f", "raw", *commands(f"{script}write {sectors - 8} 8\nlength\nread -v {sectors - 16} 16"),
         "odd.raw")


def test_dump_of_every_byte(both, tmp):
    Path("all.raw").write_bytes(bytes(range(256)))
    both("-f", "raw", "-c", "read -v 0 256", "all.raw")


# ---------------------------------------------------------------- qcow2

QCOW2_SCRIPTS = {
    "allocation": """
map
write 64k 128k
discard 96k 32k
write -c 1M 128k
write -c 2M 32k
write -c 33k 32k
write -c 65k 64k
alloc 0
alloc 64k
alloc 64k 1M
alloc 0 5M
alloc 4608k 64k
alloc 5000k 1M
map
write -z -n 64k 64k
write -z -n -u 128k 64k
read -P 0 64k 128k
info
length
""",
    "layers": """
read -P 0x11 0 64k
read -P 0 64k 64k
write -P 0x22 32k 64k
read -P 0x11 0 32k
read -P 0x22 32k 64k
write -z 0 16k
read -P 0 0 16k
map
truncate 6M
read -P 0 5M 1M
truncate 512
truncate 513
length
""",
    "options": """
reopen -o lazy-refcounts=on
write -P 1 0 64k
reopen -c none
read -P 1 0 64k
reopen -r
write 0 512
reopen -w
write 0 512
""",
}


@pytest.fixture
def layers(qemu_img, qemu_io, tmp):
    qemu_img("create", "-f", "qcow2", "base.qcow2", "4M")
    qemu_io("-f", "qcow2", "-c", "write -P 0x11 0 64k", "base.qcow2")
    qemu_img("create", "-f", "qcow2", "-b", "base.qcow2", "-F", "qcow2", "a.qcow2", "5M")


@pytest.mark.parametrize("name", QCOW2_SCRIPTS)
def test_script_on_qcow2(both, layers, qemu_img, name):
    both(*commands(QCOW2_SCRIPTS[name]), "a.qcow2", err=False)
    qemu_img("compare", "ours/a.qcow2", "theirs/a.qcow2")
    qemu_img("check", "ours/a.qcow2")


@pytest.mark.parametrize("args", [
    ["a.qcow2"], ["-f", "qcow2", "a.qcow2"], ["-r", "a.qcow2"], ["-s", "a.qcow2"],
    ["--image-opts", "driver=qcow2,file.driver=file,file.filename=a.qcow2"],
    ['json:{"driver":"qcow2","backing":null,"file":{"driver":"file","filename":"a.qcow2"}}'],
    ['json:{"driver":"qcow2","file":{"driver":"file","filename":"a.qcow2"}}'],
    ["-c", "open a.qcow2"], ["-c", "open -r a.qcow2"], ["-c", "open -s a.qcow2"],
    ["-c", "open -n -o driver=qcow2 a.qcow2"], ["-c", "open -o driver=qcow2,file.driver=file a.qcow2"],
    ["-c", "open -o driver=qcow2,file.driver=file,file.filename=a.qcow2"],
    ["--image-opts", "-c", "open driver=qcow2,file.filename=a.qcow2"]], ids=" ".join)
def test_ways_to_name_an_image(both, layers, args):
    script = "length\nread -P 0x11 0 64k\nwrite -P 3 0 512\nread -P 3 0 512\nread -P 0x11 512 1k\ninfo"
    options = args if "-c" in args else args[:-1]
    names = [] if "-c" in args else args[-1:]
    both(*options, *commands(script), *names)


BREAKS = {
    "no such place or tag": """
break bogus A
remove_break A
resume A
break pwritev A
remove_break A
remove_break A
""",
    "held and let go": """
break write_aio A
aio_write -P 1 0 512
wait_break A
read -P 0x11 64k 512
resume A
aio_flush
read -P 1 0 512
""",
    "two tags": """
break write_aio A
aio_write -P 1 0 512
wait_break A
break write_aio B
aio_write -P 2 512k 512
wait_break B
resume A
sleep 50
resume B
aio_flush
read -P 1 0 512
read -P 2 512k 512
""",
}


@pytest.mark.parametrize("name", BREAKS)
def test_breakpoints(both, layers, name):
    both("--image-opts", *commands(BREAKS[name]),
         "driver=qcow2,file.driver=blkdebug,file.image.driver=file,file.image.filename=base.qcow2")


def test_breakpoints_without_blkdebug(both, raw):
    both("-f", "raw", *commands("break pwritev A\nremove_break A\nresume A\nbreak"), "a.raw")


def test_snapshot_leaves_the_image_alone(io, layers):
    before = Path("a.qcow2").read_bytes(), Path("base.qcow2").read_bytes()
    io("-s", "-c", "write -P 3 0 1M", "-c", "read -P 3 0 1M", "a.qcow2")
    assert (Path("a.qcow2").read_bytes(), Path("base.qcow2").read_bytes()) == before


@pytest.mark.parametrize("form", ["raw", "qcow2"])
def test_random_requests(io, qemu_img, tmp, rng, form):
    """Some hundred requests, and the content is what they say; the judge is qemu-img."""
    content = random_content(rng, 3 * MIB, 64 * KIB)
    write_sparse("a.raw", content)
    qemu_img("convert", "-f", "raw", "-O", form, "a.raw", "a.img")
    args = random_requests(rng, content, 64 * KIB, 300)
    assert "failed" not in io("-f", form, *args, "a.img").out
    qemu_img("convert", "-f", form, "-O", "raw", "a.img", "out.raw")
    same_bytes("out.raw", content)


def test_masked_hides_nothing_but_time():
    assert masked("64 KiB, 1 ops; 00.02 sec (3.8 MiB/sec and 61.4692 ops/sec)") == "64 KiB, 1 ops; TIME"
    assert masked("64 KiB, 1 ops; 0:01:03.02 (8 bytes/sec and 0.0159 ops/sec)") == "64 KiB, 1 ops; TIME"
    assert masked("512,1,0:00:00.00,746621.247,1458.245") == "512,1,TIME"


@pytest.mark.parametrize("commands_", [
    ["read 0 4k", "read 100k 200k", "read 1M 64k"],
    ["write -P 9 64k 1k", "read 60k 10k", "read -P 9 64k 1k"],
    ["write -z 128k 64k", "read 0 512k"],
    ["readv 3k 70k 1k", "aio_read 500k 100k", "aio_flush", "read 1900k 148k"]], ids=", ".join)
def test_copy_on_read(tmp, as_qemu_io, qemu_io, qemu_img, commands_):
    """What -C copies up: the same clusters, the same bytes, and the images check clean."""
    qemu_img("create", "-f", "raw", "base.raw", "2M")
    qemu_io("-f", "raw", "-c", "write -P 5 0 700k", "-c", "write -P 6 1M 1M", "base.raw")
    args = [word for command in commands_ for word in ("-c", command)]
    said, maps = [], []
    for name, tool in (("theirs", qemu_io), ("ours", as_qemu_io)):
        qemu_img("create", "-f", "qcow2", "-b", "base.raw", "-F", "raw", name)
        said.append(masked(tool("-C", "-f", "qcow2", *args, name).out))
        qemu_img("check", name)
        maps.append(normal_map([{key: entry[key] for key in ("start", "length", "depth", "zero", "data")}
                                for entry in qemu_img("map", "--output=json", name).json]))
    assert said[1] == said[0]
    assert maps[1] == maps[0]
    qemu_img("compare", "-f", "qcow2", "-F", "qcow2", "theirs", "ours")


@pytest.mark.parametrize("form", ["raw", "qcow2"])
def test_vm_state(tmp, both, qemu_img, form):
    """-b: what a machine saves of itself, beside the disk."""
    qemu_img("create", "-f", form, f"a.{form}", "1M")
    both("-f", form, f"a.{form}", *commands("""
write -P 1 0 64k
write -b -P 2 0 100k
write -b -P 3 64k 300k
read -b -P 2 0 64k
read -b -P 3 64k 300k
read -b -v 363k 2k
read -b -P 0 10M 4k
read -P 1 0 64k
write -b 100 512
read -b 512 100
"""))


def test_vm_state_is_where_qemu_io_looks(tmp, io, qemu_io, qemu_img):
    for writer, reader, name in ((io, qemu_io, "ours"), (qemu_io, io, "theirs")):
        qemu_img("create", "-f", "qcow2", name, "1M")
        writer("-f", "qcow2", "-c", "write -b -P 7 4k 200k", name)
        reader("-f", "qcow2", "-c", "read -b -P 7 4k 200k", "-c", "read -P 0 0 1M", name)
        qemu_img("check", name)
