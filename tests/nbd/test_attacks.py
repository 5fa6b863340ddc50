"""What clients did to NBD servers, and what a server on the network must bear."""

import os
import socket
import struct
import time

import pytest

from nbdtools import nbd, serve  # noqa: F401  (fixtures)
from platter import MIB
from wire import (ERR_TOO_BIG, EXTENDED, IHAVEOPT, OPT_EXPORT_NAME, OPT_GO, OPT_INFO, OPT_LIST, OPT_SET_META,
                  OPT_STRUCTURED, READ, REP_ACK, REQUEST, STATUS, STRUCTURED, WRITE, ZEROES, Gone, Wire)


@pytest.fixture
def server(serve, tmp):
    (tmp / "a.raw").write_bytes(b"\x55" * (2 * MIB))
    one = serve("a.raw", "-f", "raw")
    with Wire(one.socket).ready() as w:  # what is allocated once, is
        assert w.read(0, 512)[1] == 0
    before = settled(one)
    yield one
    with Wire(one.socket).ready() as w:
        assert w.read(2 * MIB - 512, 512) == (b"\x55" * 512, 0), "it does not serve any more"
    until = time.monotonic() + 5
    while settled(one) > before and time.monotonic() < until:
        time.sleep(0.05)
    assert one.descriptors() <= before, "descriptors are left open"


def settled(server):
    time.sleep(0.05)
    return server.descriptors()


def session():
    """All that a well-behaved client says."""
    go = struct.pack(">I", 0) + struct.pack(">H", 1) + struct.pack(">H", 3)
    meta = struct.pack(">II", 0, 1) + struct.pack(">I", 15) + b"base:allocation"
    words = [struct.pack(">I", 3)]
    for option, data in ((OPT_STRUCTURED, b""), (OPT_LIST, b""), (OPT_SET_META, meta), (OPT_GO, go)):
        words.append(struct.pack(">QII", IHAVEOPT, option, len(data)) + data)
    words.append(struct.pack(">IHHQQI", REQUEST, 0, READ, 1, 0, 512))
    words.append(struct.pack(">IHHQQI", REQUEST, 0, WRITE, 2, 0, 512) + b"\x55" * 512)
    words.append(struct.pack(">IHHQQI", REQUEST, 0, STATUS, 3, 0, 512))
    return b"".join(words)


def test_gone_at_every_byte(server):
    """CVE-2024-7383 and others: early disconnects."""
    words = session()
    for end in [*range(0, 250), *range(250, len(words) + 1, 37)]:
        s = socket.socket(socket.AF_UNIX)
        s.connect(str(server.socket))
        s.sendall(words[:end])
        if end % 3 == 0:  # a reset rather than an end
            s.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        s.close()


def test_one_byte_at_a_time(server):
    with Wire(server.socket) as w:
        for byte in session():
            w.send(bytes([byte]))
        w.greet_only = w.get(18)
        assert len(w.get(200)) == 200


@pytest.mark.parametrize("length", [4096, 4097, 65536, 65537, 1 << 20, (1 << 25) + 1, (1 << 32) - 1])
@pytest.mark.parametrize("option", [OPT_EXPORT_NAME, OPT_GO, OPT_INFO, OPT_LIST, OPT_SET_META, 77])
def test_long_options(server, option, length):
    """CVE-2019-14842, CVE-2021-20286, CVE-2017-15118 (an export name of 4096 bytes overran the stack)."""
    with Wire(server.socket).greet() as w:
        try:
            w.option(option, b"n" * min(length, 100000), length)
            if option == OPT_EXPORT_NAME or length > 1 << 25:
                assert w.is_gone()
            elif length <= 1 << 20:
                w.send(b"n" * (length - min(length, 100000)))
                assert w.replies(option)[-1][0] != REP_ACK
        except Gone:
            assert option == OPT_EXPORT_NAME or length > 1 << 25


@pytest.mark.parametrize("inside", [4096, 1 << 16, 1 << 31, (1 << 32) - 1])
def test_long_names_inside_options(server, inside):
    """The length within the option contradicts the option's own."""
    with Wire(server.socket).greet() as w:
        w.ask(OPT_STRUCTURED)
        for option in (OPT_GO, OPT_INFO, OPT_SET_META):
            data = struct.pack(">I", inside) + b"x" * 5000
            assert w.ask(option, data)[-1][0] != REP_ACK
        many = struct.pack(">II", 0, inside) + b"\0\0\0\0" * 1000
        assert w.ask(OPT_SET_META, many)[-1][0] != REP_ACK


def test_queries_without_end(server):
    """16000 of them, all answered or none, in little time."""
    with Wire(server.socket).greet() as w:
        w.ask(OPT_STRUCTURED)
        query = struct.pack(">I", 0)
        began = time.monotonic()
        assert w.ask(OPT_SET_META, struct.pack(">II", 0, 16000) + query * 16000)[-1] == (REP_ACK, b"")
        assert w.ask(OPT_SET_META, struct.pack(">II", 0, 20000) + query * 20000)[-1][0] == ERR_TOO_BIG
        assert time.monotonic() - began < 5


@pytest.mark.parametrize("flags", [4, 0x80000000, 0xffffffff])
def test_unknown_client_flags(server, flags):
    with Wire(server.socket).greet(flags) as w:
        assert w.is_gone()


def test_wrong_magic(server):
    with Wire(server.socket).greet() as w:
        w.send(b"NOT AN OPTION AT ALL")
        assert w.is_gone()
    for style in (STRUCTURED, EXTENDED):
        with Wire(server.socket).ready(style) as w:
            w.request(READ, 0, 512, magic=0x12345678)
            assert w.is_gone()


def test_options_after_the_handshake(server):
    with Wire(server.socket).ready() as w:
        w.option(OPT_LIST)
        assert w.is_gone()


def test_handshakes_that_never_end(serve, tmp):
    """CVE-2024-7409: they are bounded in number and time, and others get through."""
    (tmp / "a.raw").write_bytes(bytes(MIB))
    server = serve("a.raw", "-f", "raw", "--handshake-limit", "2")
    sockets = []
    for i in range(400):
        s = socket.socket(socket.AF_UNIX)
        s.setblocking(False)
        try:
            s.connect(str(server.socket))
        except BlockingIOError:
            pass
        sockets.append(s)
        if i % 2:
            try:
                s.send(b"\0\0")
            except OSError:
                pass
    time.sleep(1)
    assert server.descriptors() < 300
    with Wire(server.socket, timeout=20).ready() as w:
        assert w.read(0, 512) == (bytes(512), 0)
    for s in sockets:
        s.close()


def test_idle_clients(serve, tmp):
    """A thousand that say nothing cost little, and nothing when they have gone."""
    (tmp / "a.raw").write_bytes(bytes(MIB))
    server = serve("a.raw", "-f", "raw")
    Wire(server.socket).ready().close()
    before = server.memory()
    clients = [Wire(server.socket).ready() for _ in range(400)]
    assert server.memory() - before < 20 * MIB
    began = time.monotonic()
    for w in clients[::40]:
        assert w.read(0, 4096)[1] == 0
    assert time.monotonic() - began < 2
    for w in clients:
        w.close()
    until = time.monotonic() + 5
    while server.descriptors() > 40 and time.monotonic() < until:
        time.sleep(0.05)
    assert server.descriptors() <= 40


def test_announced_and_not_sent(server):
    """Writes of 32 MiB that never arrive hold no memory."""
    before = server.memory()
    clients = [Wire(server.socket).ready() for _ in range(60)]
    for w in clients:
        w.request(WRITE, 0, 2 * MIB)
        w.send(b"x" * 1000)
    time.sleep(0.3)
    assert server.memory() - before < 150 * MIB
    for w in clients:
        w.close()


def test_half_a_write_is_not_a_write(server, tmp):
    """Nothing of a write that was cut short within its first MiB is there."""
    with Wire(server.socket).ready() as w:
        w.request(WRITE, MIB, 512 * 1024)
        w.send(b"x" * (512 * 1024 - 1))
    time.sleep(0.2)
    assert (tmp / "a.raw").read_bytes() == b"\x55" * (2 * MIB)


def test_random_bytes(server, rng):
    for _ in range(100):
        with Wire(server.socket) as w:
            try:
                if rng.random() < 0.5:
                    w.ready(rng.choice([STRUCTURED, EXTENDED]))
                    w.send(struct.pack(">IHH", REQUEST, rng.randrange(64), rng.randrange(1, 10) | 1)
                           + rng.randbytes(20))
                w.send(rng.randbytes(rng.randrange(1, 400)))
            except Gone:
                pass
    repaired(server)


def repaired(server):
    """What random writes hit is as it was."""
    with Wire(server.socket).ready() as w:
        assert w.do(WRITE, 0, 2 * MIB, b"\x55" * (2 * MIB)) == 0


def test_shrunk_below_the_server(server, tmp):
    """The file ends before the export does: an error, and the server lives."""
    with Wire(server.socket).ready() as w:
        os.truncate(tmp / "a.raw", MIB)
        w.read(MIB + 4096, 4096)
        assert w.read(0, 512)[0] == b"\x55" * 512
        (tmp / "a.raw").write_bytes(b"\x55" * (2 * MIB))


def test_disk_full(img, serve, tmp):
    """ENOSPC reaches the client."""
    img("create", "-f", "qcow2", "a.qcow2", "64M")
    config = tmp / "full.conf"
    config.write_text('[inject-error]\nevent = "write_aio"\nerrno = "28"\nimmediately = "off"\n')
    server = serve("--image-opts", "driver=qcow2,file.driver=blkdebug,file.image.driver=file,"
                                   "file.image.filename=a.qcow2,file.config=full.conf")
    with Wire(server.socket).ready() as w:
        assert w.do(WRITE, 0, 65536, b"x" * 65536) == 28
        assert w.do(WRITE, 0, 2 * MIB, b"x" * (2 * MIB)) == 28
        assert w.read(0, 512) == (bytes(512), 0)
        assert w.do(ZEROES, 0, 512) == 0
    server.process.terminate()
    server.process.wait()
