"""The nbd driver: every command on an export, of every server."""

import json
import os
import shutil
import signal
import subprocess
import threading
import time
from pathlib import Path

import pytest

from conftest import BIN
from nbdtools import Server, foreign, nbd, serve  # noqa: F401  (fixtures)
from platter import KIB, MIB, Tool, random_content


@pytest.fixture
def io():
    return Tool(BIN / "io")


@pytest.fixture
def content(tmp, rng):
    data = random_content(rng, 8 * MIB, 64 * KIB)
    (tmp / "a.raw").write_bytes(data)
    return data


SERVERS = {
    "qemu-nbd": lambda sock: ["qemu-nbd", "-t", "-e", "8", "-f", "raw", "-k", sock, "a.raw"],
    "qemu-nbd one client": lambda sock: ["qemu-nbd", "-t", "-f", "raw", "-k", sock, "a.raw"],
    "nbdkit": lambda sock: ["nbdkit", "-f", "-U", sock, "file", "a.raw"],
    "nbdkit, blocks of 4096": lambda sock: ["nbdkit", "-f", "-U", sock, "--filter=blocksize-policy", "file",
                                            "a.raw", "blocksize-minimum=4096",
                                            "blocksize-error-policy=error"],
    "nbdkit, simple": lambda sock: ["nbdkit", "-f", "--no-sr", "-U", sock, "file", "a.raw"],
    "ours": lambda sock: [BIN / "nbd", "serve", "-f", "raw", "-k", sock, "a.raw"],
}


@pytest.fixture(params=SERVERS)
def server(request, foreign, need_tool, content, tmp):
    argv = SERVERS[request.param](str(tmp / "s"))
    return foreign("s", need_tool(argv[0]), *argv[1:])


def test_convert_both_ways(img, server, content, tmp):
    img("convert", "-f", "raw", "-O", "qcow2", server.uri, "b.qcow2")
    img("compare", "-U", "-f", "raw", "-F", "qcow2", "a.raw", "b.qcow2")
    img("compare", "-U", "-f", "raw", "-F", "raw", "a.raw", server.uri)
    (tmp / "c.raw").write_bytes(content[::-1])
    img("convert", "-n", "-f", "raw", "-O", "raw", "c.raw", server.uri)
    assert (tmp / "a.raw").read_bytes() == content[::-1]


def test_requests(io, server, content, tmp):
    io("-f", "raw", "-c", "write -P 1 5 70000", "-c", "write -z 1M 512k", "-c", "discard 2M 1M",
       "-c", "write -f -P 2 3M 4k", "-c", "flush", "-c", "read -P 1 5 70000", "-c", "read -P 0 1M 512k",
       "-c", "read -P 2 3M 4k", "-c", "aio_write -P 3 4M 1M", "-c", "aio_write -P 4 5M 1M", "-c", "aio_flush",
       "-c", "read -P 3 4M 1M", "-c", "read -P 4 5M 1M", server.uri)
    data = (tmp / "a.raw").read_bytes()
    assert data[5:70005] == b"\1" * 70000 and data[:5] == content[:5]
    assert data[4 * MIB:6 * MIB] == b"\3" * MIB + b"\4" * MIB


def test_map(img, qemu_img, server, content):
    """Holes are seen through the server, where it tells them."""
    ours = img("map", "--output=json", "-f", "raw", server.uri).json
    theirs = qemu_img("map", "--output=json", "-f", "raw", server.uri).json

    def zeroes(runs):
        out = []
        for r in runs:
            if out and out[-1][1] == r["zero"]:
                out[-1][0] += r["length"]
            else:
                out.append([r["length"], r["zero"]])
        return out
    assert zeroes(ours) == zeroes(theirs)


def test_old_server(need_tool, foreign, img, content, tmp):
    """nbd-server of the project itself. In the foreground it serves one connection, and the others that we
    should like to have are never answered."""
    config = tmp / "config"
    config.write_text(f"[generic]\nunixsock = {tmp}/s\n[disk]\nexportname = {tmp}/a.raw\nflush = true\nfua = true\n"
                      "trim = true\n")

    def once(*argv):
        server = foreign("s", need_tool("nbd-server"), "-d", "-C", config)
        img(*argv, server.uri_of("disk"), timeout=30)
        server.process.kill()
        server.process.wait()
        (tmp / "s").unlink(missing_ok=True)

    once("compare", "-U", "-f", "raw", "-F", "raw", "a.raw")
    (tmp / "c.raw").write_bytes(content[::-1])
    once("convert", "-n", "-f", "raw", "-O", "raw", "c.raw")
    assert (tmp / "a.raw").read_bytes() == content[::-1]


def test_names(img, serve, content, tmp):
    server = serve("disk=a.raw", "-f", "raw")
    sock = server.socket
    for name in (server.uri_of("disk"), f"nbd:unix:{sock}:exportname=disk",
                 "json:" + json.dumps({"driver": "nbd", "server": {"type": "unix", "path": str(sock)},
                                       "export": "disk"}),
                 "json:" + json.dumps({"driver": "raw", "file": {"driver": "nbd", "path": str(sock)}})):
        info = img("info", "--output=json", name).json
        assert info["virtual-size"] == len(content) and info["format"] in ("raw", "nbd")
    info = img("info", "--output=json", "--image-opts",
               f"driver=nbd,server.type=unix,server.path={sock},export=disk").json
    assert info["filename"] == server.uri_of("disk")


@pytest.mark.parametrize("name, says", [
    ("nbd+unix:///x?socket=nowhere", "nowhere"),
    ("nbd:nonsense", "nbd://"),
    ("nbd://127.0.0.1:1/x", "127.0.0.1"),
    ("json:{\"driver\": \"nbd\"}", "host"),
    ("nbdx://y", "nbdx"),
])
def test_names_that_are_wrong(img, tmp, name, says):
    assert says in img.fails("info", name).err


def test_unknown_export(img, serve, content):
    server = serve("one=a.raw", "two=a.raw", "-f", "raw", "-r")
    assert img.fails("info", server.uri_of("three")).err
    assert "read-only" in img.fails("convert", "-n", "-f", "raw", "-O", "raw", "a.raw", server.uri_of("one")).err


def test_image_inside(img, qemu_io, serve, tmp):
    """A qcow2 file served as raw bytes, read through the format driver here; and as a backing file."""
    img("create", "-f", "qcow2", "b.qcow2", "64M")
    qemu_io("-c", "write -P 7 1M 1M", "b.qcow2")
    server = serve("x=b.qcow2", "-f", "raw")
    assert img("info", "--output=json", server.uri).json["format"] == "qcow2"
    img("compare", "-U", "-f", "qcow2", "-F", "qcow2", "b.qcow2", server.uri)
    img("check", server.uri)
    img("create", "-f", "qcow2", "-b", server.uri, "-F", "qcow2", "--follow=any", "c.qcow2")
    assert "--follow" in img.fails("info", "--backing-chain", "c.qcow2").err
    img("convert", "--follow=any", "-O", "raw", "c.qcow2", "c.raw")
    assert (tmp / "c.raw").read_bytes()[MIB:2 * MIB] == b"\7" * MIB


def test_many_threads(img, serve, tmp, rng):
    """bench keeps 32 requests under way; the disk holds what was written."""
    img("create", "-f", "raw", "b.raw", "64M")
    server = serve("b.raw", "-f", "raw")
    img("bench", "-f", "raw", "-w", "--pattern=0x5a", "-c", "16384", "-d", "32", "-s", "4096", server.uri)
    img("bench", "-f", "raw", "-c", "16384", "-d", "32", "-s", "4096", server.uri)
    server.stop()
    assert (tmp / "b.raw").read_bytes() == b"\x5a" * (64 * MIB)


def test_reconnect(img, serve, tmp, nbd):
    """The server goes and comes back: requests wait, and none is lost."""
    img("create", "-f", "raw", "b.raw", "64M")
    sock = tmp / "s"
    start = lambda: Server([nbd.path, "serve", "-f", "raw", "-k", sock, "b.raw"], sock, "server.log")  # noqa: E731
    server = start()
    client = subprocess.Popen([img.path, "bench", "-w", "--pattern=0x5a", "-c", "200000", "-d", "8",
                               "-s", "4096", "--image-opts", f"driver=raw,file.driver=nbd,file.path={sock},"
                               "file.reconnect-delay=30"], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    for _ in range(4):
        time.sleep(0.3)
        server.process.kill()
        server.process.wait()
        time.sleep(0.2)
        server = start()
    err = client.communicate(timeout=120)[1].decode()
    assert client.returncode == 0, err
    server.stop()
    assert (tmp / "b.raw").read_bytes() == b"\x5a" * (64 * MIB)


def test_server_gone(img, serve, tmp):
    """Without reconnect-delay an error, soon."""
    img("create", "-f", "raw", "b.raw", "64M")
    server = serve("b.raw", "-f", "raw")
    client = subprocess.Popen([img.path, "bench", "-f", "raw", "-w", "-c", "10000000", "-d", "8", "-s", "4096",
                               server.uri], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    time.sleep(0.5)
    server.process.send_signal(signal.SIGKILL)
    server.process.wait()
    assert client.wait(timeout=20) == 1
    assert b"Input/output error" in client.stderr.read()


def test_server_stopped_and_going_on(io, serve, content):
    """A server that is silent for a while is waited for."""
    server = serve("a.raw", "-f", "raw")
    client = subprocess.Popen([io.path, "-r", "-f", "raw", "-c", "read 0 4k", "-c", "sleep 500", "-c", "read 0 1M",
                               server.uri], stdout=subprocess.PIPE)
    time.sleep(0.3)
    os.kill(server.process.pid, signal.SIGSTOP)
    threading.Timer(1.5, os.kill, (server.process.pid, signal.SIGCONT)).start()
    out = client.communicate(timeout=30)[0].decode()
    assert client.returncode == 0 and out.count("read ") == 2


def test_tls(need_tool, img, serve, content, tmp):
    subprocess.run([need_tool("psktool"), "-u", "alice", "-p", "keys.psk"], check=True, capture_output=True)
    server = serve("-r", "a.raw", "-f", "raw", "--object", f"tls-creds-psk,id=t,dir={tmp},endpoint=server",
                   "--tls-creds", "t")
    uri = f"nbds+unix://alice@/?socket={server.socket}&tls-psk-file={tmp}/keys.psk"
    img("compare", "-f", "raw", "-F", "raw", "a.raw", uri)
    img("compare", "--image-opts", "driver=raw,file.filename=a.raw",
        f"driver=raw,file.driver=nbd,file.path={server.socket},file.tls-psk-file={tmp}/keys.psk,"
        "file.tls-username=alice")
    (tmp / "keys").mkdir()
    shutil.copy("keys.psk", "keys")
    img("compare", "--object", f"tls-creds-psk,id=c,dir={tmp}/keys,username=alice,endpoint=client", "--image-opts",
        "driver=raw,file.filename=a.raw", f"driver=raw,file.driver=nbd,file.path={server.socket},file.tls-creds=c")
    assert "'d'" in img.fails("info", "--image-opts", f"driver=nbd,path={server.socket},tls-creds=d").err
    assert "nonsense" in img.fails("info", "--object", "nonsense,id=c", "a.raw").err
    assert img.fails("info", server.uri).err
