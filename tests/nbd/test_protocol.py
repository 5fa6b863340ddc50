"""The NBD server's words, one by one, as doc/proto.md has them."""

import random
import struct
import threading
import time

import pytest

from nbdtools import nbd, serve  # noqa: F401  (fixtures)
from platter import KIB, MIB
from wire import (CACHE, CHUNK_DATA, CHUNK_HOLE, CHUNK_NONE, DF, ERR_INVALID, ERR_POLICY, ERR_TOO_BIG,
                  ERR_UNKNOWN, ERR_UNSUP, EXTENDED, FAST_ZERO, FLUSH, FUA, NO_HOLE, OPT_ABORT,
                  OPT_EXPORT_NAME, OPT_EXTENDED, OPT_INFO, OPT_LIST, OPT_LIST_META, OPT_STARTTLS,
                  OPT_STRUCTURED, READ, REP_ACK, REP_INFO, REP_META, REP_SERVER, REQ_ONE, SIMPLE, STATUS,
                  STRUCTURED, TRIM, WRITE, ZEROES, Gone, Wire)

EPERM, EIO, ENOMEM, EINVAL, ENOSPC, ENOTSUP = 1, 5, 12, 22, 28, 95
STYLES = pytest.mark.parametrize("style", [SIMPLE, STRUCTURED, EXTENDED],
                                 ids=["simple", "structured", "extended"])
CHUNKED = pytest.mark.parametrize("style", [STRUCTURED, EXTENDED], ids=["structured", "extended"])


@pytest.fixture
def disk(img, tmp, rng):
    """A raw disk of 4 MiB, every byte random."""
    content = rng.randbytes(4 * MIB)
    (tmp / "a.raw").write_bytes(content)
    return content


# ---------------------------------------------------------------- options

def test_list(img, serve, disk):
    img("create", "-f", "qcow2", "b.qcow2", "1G")
    server = serve("a.raw", "name with spaces=b.qcow2", "-f", "raw")
    with Wire(server.socket).greet() as w:
        replies = w.ask(OPT_LIST)
        assert [(k, d[4:]) for k, d in replies] == \
            [(REP_SERVER, b"a.raw"), (REP_SERVER, b"name with spaces"), (REP_ACK, b"")]
        assert w.ask(OPT_LIST, b"x")[-1][0] == ERR_INVALID


def test_info_and_go(serve, disk):
    server = serve("-D", "what it is", "-f", "raw", "n=a.raw")
    with Wire(server.socket).greet() as w:
        assert w.go(b"nobody")[-1][0] == ERR_UNKNOWN
        assert w.go(b"n" * 5000)[-1][0] == ERR_UNKNOWN
        replies = w.go(b"n", OPT_INFO, infos=(1, 2, 3, 99))
        assert replies[-1] == (REP_ACK, b"")
        assert (REP_INFO, b"\0\1n") in replies and (REP_INFO, b"\0\2what it is") in replies
        sizes = [d for k, d in replies if d[:2] == b"\0\3"]
        assert struct.unpack(">HIII", sizes[0]) == (3, 1, 4096, 32 * MIB)
        assert w.size == 4 * MIB and not w.flags & 2
        assert w.go(b"n")[-1][0] == REP_ACK
        assert w.read(5, 100) == (disk[5:105], 0)


def test_the_only_export_is_the_default(serve, disk):
    with Wire(serve("a.raw", "-f", "raw").socket).ready() as w:
        assert w.size == 4 * MIB


@pytest.mark.parametrize("zeroes", [True, False])
def test_export_name(serve, disk, zeroes):
    server = serve("a.raw", "-f", "raw")
    with Wire(server.socket).greet(1 if zeroes else 3) as w:
        w.option(OPT_EXPORT_NAME, b"a.raw")
        size, _ = struct.unpack(">QH", w.get(10))
        assert size == 4 * MIB
        if zeroes:
            assert w.get(124) == bytes(124)
        assert w.read(0, 512) == (disk[:512], 0)
    with Wire(server.socket).greet() as w:
        w.option(OPT_EXPORT_NAME, b"nobody")
        assert w.is_gone()


def test_options_that_are_wrong(serve, disk):
    server = serve("a.raw", "-f", "raw")
    with Wire(server.socket).greet() as w:
        assert w.ask(4)[-1][0] == ERR_UNSUP
        assert w.ask(0xdeadbeef, b"x" * 1000)[-1][0] == ERR_UNSUP
        assert w.ask(OPT_STRUCTURED, b"x")[-1][0] == ERR_INVALID
        assert w.ask(OPT_STARTTLS)[-1][0] == ERR_POLICY
        for data in (b"", b"\0" * 5, b"\0\0\0\xff\0\0", b"\0\0\0\0\0\1", b"\xff\xff\xff\xff\0\0"):
            assert w.ask(OPT_INFO, data)[-1][0] == ERR_INVALID, data
        assert w.ask(OPT_INFO, b"x" * (1 << 20))[-1][0] == ERR_TOO_BIG
        assert w.meta(b"base:allocation")[-1][0] == ERR_INVALID  # before structured replies
        assert w.ask(OPT_ABORT)[-1][0] == REP_ACK
        assert w.is_gone()


def test_meta_contexts(serve, disk):
    with Wire(serve("a.raw", "-f", "raw", "-A").socket).greet() as w:
        assert w.ask(OPT_STRUCTURED)[-1][0] == REP_ACK
        w.style = STRUCTURED

        def names(*queries, **options):
            return [d[4:] for k, d in w.meta(*queries, **options) if k == REP_META]
        both = [b"base:allocation", b"qemu:allocation-depth"]
        assert names(option=OPT_LIST_META) == both
        assert names(b"base:", option=OPT_LIST_META) == both[:1]
        assert names(b"qemu:", b"other:x", option=OPT_LIST_META) == both[1:]
        assert names(b"base:") == [] and names(b"base:nothing", b"") == []
        assert names(b"qemu:allocation-depth", b"base:allocation") == both
        for data in (b"", bytes(7), b"\0\0\0\0\0\0\0\1", b"\0\0\0\0\0\0\0\1\0\0\0\5abc",
                     b"\0\0\0\0\xff\xff\xff\xff", b"\0\0\0\0\0\0\0\0x"):
            assert w.ask(10, data)[-1][0] == ERR_INVALID, data
        assert w.go()[-1][0] == REP_ACK
        assert w.do(STATUS, 0, 512) == EINVAL  # the last SET_META_CONTEXT failed


def test_meta_contexts_of_another_export(img, serve, disk):
    img("create", "-f", "raw", "b.raw", "1M")
    with Wire(serve("a.raw", "b.raw", "-f", "raw").socket).greet() as w:
        w.ask(OPT_STRUCTURED)
        w.style = STRUCTURED
        assert w.meta(b"base:allocation", name=b"a.raw")[-1][0] == REP_ACK
        assert w.go(b"b.raw")[-1][0] == REP_ACK
        assert w.do(STATUS, 0, 512) == EINVAL


# ---------------------------------------------------------------- requests

@STYLES
def test_random_requests(img, qemu_img, serve, tmp, style, rng):
    """Against a shadow, many under way at once."""
    img("create", "-f", "qcow2", "a.qcow2", "8M")
    server = serve("a.qcow2")
    shadow = bytearray(8 * MIB)
    with Wire(server.socket).ready(style) as w:
        for _ in range(60):
            batch = []
            for slot in range(rng.randrange(1, 12)):
                # Slots do not overlap, so that the order of the batch does not matter.
                base, limit = slot * 700 * KIB, rng.choice([1000, 64 * KIB, 700 * KIB])
                offset = base + rng.randrange(limit)
                length = rng.randrange(1, limit - (offset - base) + 1)
                kind = rng.choice([READ, READ, WRITE, WRITE, ZEROES, TRIM])
                data = rng.randbytes(1) * length if kind == WRITE else b""
                flags = FUA if kind in (WRITE, ZEROES, TRIM) and rng.random() < 0.1 else 0
                w.request(kind, offset, length, data, flags, cookie=slot)
                batch.append((kind, offset, length, data))
            sizes = {slot: r[2] if r[0] == READ else 0 for slot, r in enumerate(batch)}
            got = collect(w, sizes, batch)
            for slot, (kind, offset, length, data) in enumerate(batch):
                if kind == READ:
                    assert got[slot] == shadow[offset:offset + length], (offset, length)
                elif kind != TRIM:
                    shadow[offset:offset + length] = data or bytes(length)
                else:  # whatever it says now
                    shadow[offset:offset + length] = w.read(offset, length)[0]
        assert w.do(FLUSH) == 0
        w.request(2)
        assert w.is_gone()
    server.stop()
    qemu_img("check", "a.qcow2")
    qemu_img("convert", "-O", "raw", "a.qcow2", "out.raw")
    assert (tmp / "out.raw").read_bytes() == shadow


def collect(w, sizes, batch):
    """The answers of a batch, in whatever order they come; what was read, by slot."""
    out = {slot: bytearray(n) for slot, n in sizes.items()}
    left = set(sizes)
    while left:
        magic = struct.unpack(">I", w.get(4))[0]
        if magic == SIMPLE:
            error, slot = struct.unpack(">IQ", w.get(12))
            assert error == 0
            if sizes[slot] and w.style == SIMPLE:
                out[slot][:] = w.get(sizes[slot])
            left.remove(slot)
            continue
        flags, kind, slot = struct.unpack(">HHQ", w.get(12))
        length = struct.unpack(">QQ", w.get(16))[1] if magic == EXTENDED else \
            struct.unpack(">I", w.get(4))[0]
        data = w.get(length)
        base = batch[slot][1]
        if kind == CHUNK_DATA:
            at = struct.unpack(">Q", data[:8])[0] - base
            assert 0 <= at and at + len(data) - 8 <= sizes[slot]
            out[slot][at:at + len(data) - 8] = data[8:]
        elif kind == CHUNK_HOLE:
            at, n = struct.unpack(">QI", data)
            assert at >= base and at + n <= base + sizes[slot]
        else:
            assert kind == CHUNK_NONE, kind
        if flags:
            left.remove(slot)
    return out


@STYLES
def test_errors(serve, disk, style):
    size = 4 * MIB
    with Wire(serve("a.raw", "-f", "raw").socket).ready(style) as w:
        assert w.do(READ, size, 1) == EINVAL
        assert w.do(READ, size - 1, 2) == EINVAL
        assert w.do(READ, (1 << 64) - 1, 2) == EINVAL
        assert w.do(WRITE, size, 1, b"x") == ENOSPC
        assert w.do(WRITE, (1 << 64) - 4, 8, b"x" * 8) == ENOSPC
        assert w.do(ZEROES, size - 512, 1024) == ENOSPC
        assert w.do(TRIM, size - 512, 1024) == EINVAL
        assert w.do(99, 0, 512) == EINVAL
        assert w.do(READ, 0, 512, flags=FAST_ZERO) == EINVAL
        assert w.do(WRITE, 0, 512, b"x" * 512, flags=NO_HOLE) == EINVAL
        assert w.do(STATUS, 0, 512) == EINVAL
        assert w.do(CACHE, 0, size) == 0
        assert w.do(FLUSH) == 0
        if style != SIMPLE:
            assert w.read(7, 0) == (b"", 0)
        assert w.do(WRITE, 7, 0) == 0
        assert w.read(0, size) == (disk, 0)  # nothing changed, and the stream is in step


def test_too_long(serve, disk):
    """Requests beyond 32 MiB fail, one by one."""
    with Wire(serve("a.raw", "-f", "raw").socket).ready() as w:
        assert w.do(READ, 0, (32 * MIB) + 1) == EINVAL
        assert w.do(READ, 0, (1 << 32) - 1) == EINVAL
        length = 32 * MIB + 1
        w.request(WRITE, 0, length)
        for _ in range(33):
            w.send(bytes(min(length, MIB)))
            length -= min(length, MIB)
        assert w.answer()[1] == EINVAL
        assert w.read(0, 4 * MIB) == (disk, 0)


def test_read_only(serve, disk, tmp):
    for options in (["-r", "a.raw"], ["--ro", "a.raw"]):
        server = serve("-f", "raw", *options)
        with Wire(server.socket).ready() as w:
            assert w.flags & 2
            for kind in (WRITE, ZEROES, TRIM):
                assert w.do(kind, 0, 512, b"x" * 512 if kind == WRITE else b"") == EPERM
            assert w.read(0, 4 * MIB) == (disk, 0)
        server.stop()
    assert (tmp / "a.raw").read_bytes() == disk


@CHUNKED
def test_holes(img, qemu_io, serve, tmp, style):
    """Sparse reads and block status tell the same, and what qemu-img map tells."""
    img("create", "-f", "qcow2", "base.qcow2", "64M")
    qemu_io("-c", "write -P 1 1M 3M", "-c", "write -P 2 40M 64k", "base.qcow2")
    img("create", "-f", "qcow2", "-b", "base.qcow2", "-F", "qcow2", "a.qcow2")
    qemu_io("-c", "write -P 3 2M 64k", "-c", "write -z 3M 512k", "a.qcow2")
    server = serve("-A", "a.qcow2")
    with Wire(server.socket).ready(style, b"base:allocation", b"qemu:allocation-depth") as w:
        got, error = w.status(0, 64 * MIB)
        assert error == 0
        mapped = img("map", "-U", "--output=json", "a.qcow2").json
        assert sum(n for n, _ in got[b"base:allocation"]) == 64 * MIB
        assert merged(got[b"base:allocation"]) == merged(
            (m["length"], (0 if m["present"] else 1) | (2 if m["zero"] else 0)) for m in mapped)
        assert merged(got[b"qemu:allocation-depth"]) == merged(
            (m["length"], m["depth"] + 1 if m["present"] else 0) for m in mapped)
        one, _ = w.status(MIB, 63 * MIB, flags=REQ_ONE)
        assert all(len(runs) == 1 for runs in one.values())
        assert w.do(STATUS, 0, 0) == EINVAL
        # A read that crosses them comes in pieces, and with DF in one.
        w.request(READ, 0, 8 * MIB)
        parts, _ = w.answer()
        assert {CHUNK_DATA, CHUNK_HOLE} <= {k for k, _ in parts}
        assert sum(len(d) - 8 for k, d in parts if k == CHUNK_DATA) < 5 * MIB
        w.request(READ, 0, 8 * MIB, flags=DF)
        parts, _ = w.answer()
        assert [k for k, _ in parts] == [CHUNK_DATA]
        whole = parts[0][1][8:]
        assert w.read(0, 8 * MIB)[0] == whole
        assert whole[2 * MIB:2 * MIB + 65536] == b"\3" * 65536 and whole[MIB] == 1


def merged(runs):
    out = []
    for length, state in runs:
        if out and out[-1][1] == state:
            out[-1][0] += length
        else:
            out.append([length, state])
    return out


def test_extended_lengths(img, serve):
    """More than 4 GiB in one request, where there is no data."""
    img("create", "-f", "qcow2", "a.qcow2", "1T")
    with Wire(serve("a.qcow2").socket).ready(EXTENDED, b"base:allocation") as w:
        assert w.status(0, 1 << 40)[0][b"base:allocation"] == [(1 << 40, 3)]
        assert w.do(ZEROES, 0, 1 << 40) == 0
        assert w.do(TRIM, 1 << 30, 100 << 30) == 0
        assert w.do(READ, 0, 1 << 40) == EINVAL


def test_fast_zero(img, serve, disk):
    img("create", "-f", "qcow2", "b.qcow2", "1M")
    with Wire(serve("b.qcow2").socket).ready() as w:
        assert w.do(ZEROES, 0, MIB, flags=FAST_ZERO) == 0
        assert w.do(WRITE, 0, 65536, b"x" * 65536) == 0
        assert w.do(ZEROES, 1, 5, flags=FAST_ZERO) == ENOTSUP
        assert w.read(0, 65536) == (b"x" * 65536, 0)
        assert w.do(ZEROES, 1, 5) == 0
        assert w.read(0, 65536) == (b"x" + bytes(5) + b"x" * 65530, 0)


# ---------------------------------------------------------------- many clients

def test_flush_is_everybodys(img, serve):
    """What one connection wrote, another flushes and reads: the promise of CAN_MULTI_CONN."""
    img("create", "-f", "qcow2", "a.qcow2", "64M")
    server = serve("a.qcow2")
    with Wire(server.socket).ready() as a, Wire(server.socket).ready() as b:
        assert a.flags & (1 << 8)
        for i in range(50):
            assert a.do(WRITE, i * MIB, 4096, bytes([i + 1]) * 4096) == 0
            assert b.do(FLUSH) == 0
            assert b.read(i * MIB, 4096) == (bytes([i + 1]) * 4096, 0)


def test_many_threads(img, qemu_img, serve, tmp):
    """Connections write places of their own at the same time."""
    img("create", "-f", "qcow2", "a.qcow2", "64M")
    server = serve("a.qcow2")
    shadows = {}

    def work(number):
        rng = random.Random(number)
        shadow = bytearray(8 * MIB)
        with Wire(server.socket, timeout=60).ready() as w:
            for _ in range(150):
                offset = rng.randrange(8 * MIB)
                length = min(rng.choice([512, 4096, 70000, 2 * MIB]), 8 * MIB - offset)
                if rng.random() < 0.5:
                    data = rng.randbytes(1) * length
                    assert w.do(WRITE, number * 8 * MIB + offset, length, data) == 0
                    shadow[offset:offset + length] = data
                else:
                    assert w.read(number * 8 * MIB + offset, length) == \
                        (shadow[offset:offset + length], 0)
        shadows[number] = shadow
    threads = [threading.Thread(target=work, args=(n,)) for n in range(8)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert len(shadows) == 8
    server.stop()
    qemu_img("check", "a.qcow2")
    qemu_img("convert", "-O", "raw", "a.qcow2", "out.raw")
    assert (tmp / "out.raw").read_bytes() == b"".join(shadows[n] for n in range(8))


def test_a_client_that_does_not_read(serve, disk):
    """It stops itself, not the others, and the server's memory stays bounded."""
    server = serve("a.raw", "-f", "raw", "--memory", "64M")
    with Wire(server.socket, timeout=2).ready() as slow, Wire(server.socket, timeout=60).ready() as w:
        try:
            for i in range(100000):
                slow.request(READ, 0, 4 * MIB, cookie=i)
        except TimeoutError:
            pass
        else:
            pytest.fail("it took 100000 requests of 4 MiB")
        assert server.memory() < 300 * MIB
        began = time.monotonic()
        for _ in range(20):
            assert w.read(0, 4096) == (disk[:4096], 0)
        assert time.monotonic() - began < 5


def test_stop_answers_what_is_under_way(serve, disk):
    server = serve("a.raw", "-f", "raw")
    with Wire(server.socket).ready() as w:
        for i in range(50):
            w.request(WRITE, i * 4096, 4096, b"y" * 4096, cookie=i)
        assert w.answer(cookie=0)[1] == 0
        server.process.terminate()
        answered = 1
        try:
            while True:
                assert w.answer(cookie=answered)[1] == 0
                answered += 1
        except Gone:
            pass
    server.stop()


def test_limit_of_clients(serve, disk):
    """The second waits until the first has gone."""
    server = serve("-e", "1", "a.raw", "-f", "raw")
    first = Wire(server.socket).ready()
    assert not first.flags & (1 << 8)
    second = Wire(server.socket, timeout=1)
    with pytest.raises(TimeoutError):
        second.get(18)
    first.close()
    second.s.settimeout(10)
    second.ready()
    assert second.read(0, 512) == (disk[:512], 0)
