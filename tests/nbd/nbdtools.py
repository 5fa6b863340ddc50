"""What the NBD tests share: running servers."""

import os
import signal
import socket
import subprocess
import time
from pathlib import Path

import pytest
from conftest import BIN  # the folder of the programs
from platter import REPORT, Tool


def answers(path):
    try:
        with socket.socket(socket.AF_UNIX) as s:
            s.connect(str(path))
        return True
    except OSError:
        return False


class Server:
    """A server on a unix socket. It must end by itself and cleanly when it is told to."""

    def __init__(self, argv, sock, log):
        self.socket, self.log = sock, log
        self.uri = f"nbd+unix:///?socket={sock}"
        self.process = subprocess.Popen([str(a) for a in argv], stdin=subprocess.DEVNULL,
                                        stdout=open(log, "wb"), stderr=subprocess.STDOUT)
        until = time.monotonic() + 20
        while not Path(sock).exists() or not self.accepts():
            assert self.process.poll() is None, f"{argv} ended: {self.said()}"
            assert time.monotonic() < until, f"{argv} does not listen: {self.said()}"
            time.sleep(0.02)

    def accepts(self):
        with open("/proc/net/unix") as f:
            return any(line.rstrip().endswith(str(self.socket)) and line.split()[3] == "00010000"
                       for line in f)

    def uri_of(self, name):
        return f"nbd+unix:///{name}?socket={self.socket}"

    def said(self):
        return Path(self.log).read_text(errors="replace")

    def descriptors(self):
        return len(os.listdir(f"/proc/{self.process.pid}/fd"))

    def memory(self):
        """Bytes of resident memory; nothing under a sanitizer, whose own memory it would be."""
        if Tool(f"/proc/{self.process.pid}/exe").sanitized:
            return 0
        return int(Path(f"/proc/{self.process.pid}/statm").read_text().split()[1]) * 4096

    def stop(self, code=0, number=signal.SIGTERM):
        if self.process.poll() is None:
            self.process.send_signal(number)
        got = self.process.wait(timeout=30)
        assert not REPORT.search(self.said()), self.said()
        assert code is None or got == code, f"exit code {got}: {self.said()}"
        return self.said()


@pytest.fixture
def nbd():
    """Our nbd."""
    return Tool(BIN / "nbd")


@pytest.fixture
def serve(tmp):
    """serve(...): our server with these arguments, for any number of clients."""
    servers = []

    def start(*argv, command="serve"):
        sock = Path.cwd() / f"s{len(servers)}"
        words = [BIN / "nbd", *([command] if command else []), "-k", sock, *argv]
        servers.append(Server(words, sock, f"server{len(servers)}.log"))
        return servers[-1]

    yield start
    for server in servers:
        if server.process.poll() is None:
            server.stop()


@pytest.fixture
def foreign(tmp):
    """foreign(argv..., sock): somebody else's server."""
    servers = []

    def start(sock, *argv):
        servers.append(Server(argv, Path.cwd() / sock, f"foreign{len(servers)}.log"))
        return servers[-1]

    yield start
    for server in servers:
        server.process.kill()
        server.process.wait()
