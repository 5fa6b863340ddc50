"""The NBD protocol by hand: a client that says just what a test wants said, right or wrong."""

import socket
import struct

MAGIC, IHAVEOPT, REP_MAGIC = 0x4e42444d41474943, 0x49484156454f5054, 0x0003e889045565a9
REQUEST, EXTENDED_REQUEST = 0x25609513, 0x21e41c71
SIMPLE, STRUCTURED, EXTENDED = 0x67446698, 0x668e33ef, 0x6e8a278c
OPT_EXPORT_NAME, OPT_ABORT, OPT_LIST, OPT_STARTTLS, OPT_INFO, OPT_GO, OPT_STRUCTURED, OPT_LIST_META, \
    OPT_SET_META, OPT_EXTENDED = 1, 2, 3, 5, 6, 7, 8, 9, 10, 11
REP_ACK, REP_SERVER, REP_INFO, REP_META = 1, 2, 3, 4
ERR = 1 << 31
ERR_UNSUP, ERR_POLICY, ERR_INVALID, ERR_PLATFORM, ERR_TLS_REQD, ERR_UNKNOWN, ERR_SHUTDOWN, \
    ERR_BLOCK_SIZE_REQD, ERR_TOO_BIG = (ERR + n for n in range(1, 10))
READ, WRITE, DISC, FLUSH, TRIM, CACHE, ZEROES, STATUS = range(8)
FUA, NO_HOLE, DF, REQ_ONE, FAST_ZERO, PAYLOAD_LEN = (1 << n for n in range(6))
CHUNK_NONE, CHUNK_DATA, CHUNK_HOLE, CHUNK_STATUS, CHUNK_STATUS_EXT, CHUNK_ERROR, CHUNK_ERROR_OFFSET = \
    0, 1, 2, 5, 6, 0x8001, 0x8002


class Gone(Exception):
    """The server closed the connection."""


class Wire:
    def __init__(self, path, timeout=10):
        self.s = socket.socket(socket.AF_UNIX)
        self.s.settimeout(timeout)
        self.s.connect(str(path))
        self.style = SIMPLE

    def close(self):
        self.s.close()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def send(self, data):
        try:
            self.s.sendall(data)
        except (BrokenPipeError, ConnectionResetError):
            raise Gone from None

    def get(self, length):
        data = b""
        while len(data) < length:
            try:
                more = self.s.recv(length - len(data))
            except ConnectionResetError:
                more = b""
            if not more:
                raise Gone
            data += more
        return data

    def is_gone(self):
        """The server closes, whatever it may still say before."""
        try:
            while self.s.recv(65536):
                pass
        except ConnectionResetError:
            pass
        return True

    # ---- handshake

    def greet(self, flags=3):
        magic, opt, have = struct.unpack(">QQH", self.get(18))
        assert (magic, opt, have) == (MAGIC, IHAVEOPT, 3)
        self.send(struct.pack(">I", flags))
        return self

    def option(self, option, data=b"", length=None):
        self.send(struct.pack(">QII", IHAVEOPT, option, len(data) if length is None else length) + data)

    def replies(self, option):
        """Up to the one that ends: [(type, data), ...]."""
        out = []
        while True:
            magic, opt, kind, length = struct.unpack(">QIII", self.get(20))
            assert (magic, opt) == (REP_MAGIC, option)
            out.append((kind, self.get(length)))
            if kind == REP_ACK or kind & ERR:
                return out

    def ask(self, option, data=b""):
        self.option(option, data)
        return self.replies(option)

    def go(self, name=b"", option=OPT_GO, infos=()):
        replies = self.ask(option, struct.pack(">I", len(name)) + name
                           + struct.pack(">H", len(infos)) + b"".join(struct.pack(">H", i) for i in infos))
        for kind, data in replies:
            if kind == REP_INFO and data[:2] == b"\0\0":
                self.size, self.flags = struct.unpack(">QH", data[2:])
        return replies

    def meta(self, *queries, name=b"", option=OPT_SET_META):
        return self.ask(option, struct.pack(">I", len(name)) + name + struct.pack(">I", len(queries))
                        + b"".join(struct.pack(">I", len(q)) + q for q in queries))

    def ready(self, style=STRUCTURED, *contexts):
        """Through the handshake."""
        self.greet()
        if style == STRUCTURED:
            assert self.ask(OPT_STRUCTURED)[-1][0] == REP_ACK
        if style == EXTENDED:
            assert self.ask(OPT_EXTENDED)[-1][0] == REP_ACK
        self.style = style
        if contexts:
            self.contexts = {struct.unpack(">I", d[:4])[0]: d[4:] for k, d in self.meta(*contexts)
                             if k == REP_META}
        assert self.go()[-1][0] == REP_ACK
        return self

    # ---- transmission

    def request(self, kind, offset=0, length=0, data=b"", flags=0, cookie=1, magic=None):
        if self.style == EXTENDED:
            if kind == WRITE:
                flags |= PAYLOAD_LEN
            head = struct.pack(">IHHQQQ", magic or EXTENDED_REQUEST, flags, kind, cookie, offset, length)
        else:
            head = struct.pack(">IHHQQI", magic or REQUEST, flags, kind, cookie, offset, length)
        self.send(head + data)

    def chunk(self, cookie=1, data_length=0):
        """One reply or part of one: (last, type, data, error)."""
        magic = struct.unpack(">I", self.get(4))[0]
        if magic == SIMPLE:
            assert self.style != EXTENDED
            error, got = struct.unpack(">IQ", self.get(12))
            assert got == cookie
            return True, CHUNK_DATA, b"" if error else self.get(data_length), error
        assert magic == self.style, hex(magic)
        flags, kind, got = struct.unpack(">HHQ", self.get(12))
        assert got == cookie and flags in (0, 1)
        length = struct.unpack(">QQ", self.get(16))[1] if magic == EXTENDED else \
            struct.unpack(">I", self.get(4))[0]
        data = self.get(length)
        error = struct.unpack(">I", data[:4])[0] if kind & 0x8000 else 0
        return flags == 1, kind, data, error

    def answer(self, cookie=1, data_length=0):
        """All parts of a reply: [(type, data)], and the error."""
        out, error = [], 0
        while True:
            last, kind, data, wrong = self.chunk(cookie, data_length)
            out.append((kind, data))
            error = error or wrong
            if last:
                return out, error

    def do(self, kind, *args, **options):
        self.request(kind, *args, **options)
        return self.answer(options.get("cookie", 1))[1]

    def read(self, offset, length, flags=0):
        self.request(READ, offset, length, flags=flags)
        out = bytearray(length)
        if self.style == SIMPLE:
            parts, error = self.answer(data_length=length)
            return parts[0][1], error
        parts, error = self.answer()
        for kind, data in parts:
            if kind == CHUNK_DATA:
                at = struct.unpack(">Q", data[:8])[0] - offset
                out[at:at + len(data) - 8] = data[8:]
            elif kind == CHUNK_HOLE:
                at, n = struct.unpack(">QI", data)
                out[at - offset:at - offset + n] = bytes(n)
        return bytes(out), error

    def status(self, offset, length, flags=0):
        """{context: [(length, state), ...]}"""
        self.request(STATUS, offset, length, flags=flags)
        parts, error = self.answer()
        out = {}
        for kind, data in parts:
            if kind == CHUNK_STATUS:
                out[self.contexts[struct.unpack(">I", data[:4])[0]]] = \
                    list(struct.iter_unpack(">II", data[4:]))
            elif kind == CHUNK_STATUS_EXT:
                runs = list(struct.iter_unpack(">QQ", data[8:]))
                assert len(runs) == struct.unpack(">I", data[4:8])[0]
                out[self.contexts[struct.unpack(">I", data[:4])[0]]] = runs
        return out, error
