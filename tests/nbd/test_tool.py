"""nbd as a program: its options beside qemu-nbd's, its clients, its beginning and end."""

import json
import os
import shutil
import signal
import socket
import subprocess
import time
from pathlib import Path

import pytest

from conftest import BIN
from nbdtools import Server, foreign, nbd, serve  # noqa: F401  (fixtures)
from platter import KIB, MIB, Tool
from wire import READ, WRITE, Wire


@pytest.fixture
def content(tmp, rng):
    data = rng.randbytes(3 * MIB) + bytes(2 * MIB) + rng.randbytes(MIB)
    (tmp / "a.raw").write_bytes(data)
    return data


@pytest.fixture
def as_qemu_nbd(tmp):
    link = tmp / "qemu-nbd"
    link.symlink_to(BIN / "nbd")
    return Tool(link)


def run(*argv, code=0, timeout=60, **options):
    r = subprocess.run([str(a) for a in argv], capture_output=True, text=True, timeout=timeout, **options)
    assert code is None or r.returncode == code, f"{argv}\n{r.stdout}{r.stderr}"
    return r.stdout


# ---------------------------------------------------------------- foreign clients

def test_nbdinfo(need_tool, serve, content):
    server = serve("a.raw", "-f", "raw", "-D", "text")
    info = json.loads(run(need_tool("nbdinfo"), "--json", server.uri))
    export = info["exports"][0]
    assert export["export-size"] == len(content) and export["description"] == "text"
    assert export["can_multi_conn"] and export["can_fast_zero"] and not export["is_read_only"]
    listed = json.loads(run(need_tool("nbdinfo"), "--list", "--json", server.uri))
    assert [e["export-name"] for e in listed["exports"]] == ["a.raw"]
    runs = json.loads(run(need_tool("nbdinfo"), "--map", "--json", server.uri))
    assert sum(r["length"] for r in runs) == len(content)


@pytest.mark.parametrize("fmt", ["raw", "qcow2"])
def test_nbdcopy_there_and_back(need_tool, img, serve, content, tmp, fmt):
    img("create", "-f", fmt, "b." + fmt, len(content))
    server = serve("-f", fmt, "b." + fmt)
    nbdcopy = need_tool("nbdcopy")
    run(nbdcopy, "a.raw", server.uri)
    run(nbdcopy, "--flush", server.uri, "out.raw")
    assert (tmp / "out.raw").read_bytes() == content
    server.stop()
    img("check", "b.qcow2") if fmt == "qcow2" else None
    img("compare", "-f", "raw", "-F", fmt, "a.raw", "b." + fmt)


def test_nbdsh(serve, content):
    server = serve("a.raw", "-f", "raw")
    assert run("/usr/bin/python3", "-c", "import nbd") == ""
    run("/usr/bin/python3", "-c", f"""
import nbd
h = nbd.NBD()
h.set_handshake_flags(h.get_handshake_flags())
h.add_meta_context("base:allocation")
h.connect_uri("{server.uri}")
assert h.pread(512, 100) == open("a.raw", "rb").read()[100:612]
h.pwrite(b"z" * 4096, 8192, nbd.CMD_FLAG_FUA)
h.zero(512, 8192)
h.trim(4096, 1 << 20)
h.cache(4096, 0)
h.flush()
assert h.pread(4096, 8192) == bytes(512) + b"z" * 3584
h.shutdown()
""")


def test_qemu_img_and_io(qemu_img, qemu_io, img, serve, content):
    img("create", "-f", "qcow2", "b.qcow2", len(content))
    server = serve("b.qcow2")
    qemu_img("convert", "-n", "-f", "raw", "-O", "raw", "a.raw", server.uri)
    qemu_img("compare", "-f", "raw", "-F", "raw", "a.raw", server.uri)
    qemu_io("-f", "raw", "-c", "write -P 9 1M 128k", "-c", "write -z 64k 64k", "-c", "discard 4M 64k",
            "-c", "flush", "-c", "read -P 9 1M 128k", server.uri)
    assert qemu_img("map", "--output=json", "-f", "raw", server.uri).json
    server.stop()
    img("check", "b.qcow2")


def test_fio_verifies(need_tool, img, serve, tmp):
    img("create", "-f", "qcow2", "b.qcow2", "64M")
    server = serve("b.qcow2")
    fio = need_tool("fio")
    if "nbd" not in run(fio, "--enghelp").split():
        pytest.skip("fio has no nbd engine")
    run(fio, "--name=x", "--ioengine=nbd", f"--uri={server.uri}", "--rw=randrw", "--bsrange=512-64k",
        "--size=64M", "--io_size=64M", "--iodepth=32", "--verify=crc32c", "--randseed=7",
        "--verify_fatal=1", timeout=120)
    server.stop()
    img("check", "b.qcow2")


def test_nbdkit_in_front(need_tool, serve, foreign, content, tmp):
    """nbdkit's nbd plugin is a client that is a server."""
    server = serve("a.raw", "-f", "raw")
    front = foreign("front", need_tool("nbdkit"), "-f", "-U", tmp / "front", "nbd",
                    f"socket={server.socket}")
    run(need_tool("nbdcopy"), front.uri, "out.raw")
    assert (tmp / "out.raw").read_bytes() == content


def test_nbd_client_lists(need_tool, nbd, content):
    """The kernel client's list, over TCP."""
    port = free_port()
    process = subprocess.Popen([str(BIN / "nbd"), "serve", "-b", "127.0.0.1", "-p", str(port), "-f", "raw",
                                "a.raw"],
                               stderr=subprocess.PIPE)
    try:
        wait_for(port)
        out = run(need_tool("nbd-client"), "-l", "127.0.0.1", "-N", "", str(port), code=None)
        assert "a.raw" in out
    finally:
        process.terminate()
        process.wait()


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def wait_for(port):
    until = time.monotonic() + 10
    while time.monotonic() < until:
        try:
            socket.create_connection(("127.0.0.1", port)).close()
            return
        except OSError:
            time.sleep(0.02)
    raise AssertionError("it does not listen")


# ---------------------------------------------------------------- TLS

@pytest.fixture
def keys(need_tool, tmp):
    """An authority, a server and two clients; and a stranger."""
    certtool = need_tool("certtool")

    def make(name, ca, **lines):
        folder = tmp / f"keys-{name}"
        folder.mkdir(exist_ok=True)
        key = folder / f"{'server' if name == 'server' else 'client'}-key.pem"
        run(certtool, "--generate-privkey", "--ecc", "--outfile", key)
        info = tmp / f"{name}.info"
        info.write_text("\n".join([f"cn = {lines['cn']}", *lines["more"]]))
        run(certtool, "--generate-certificate", "--load-privkey", key, "--template", info,
            "--load-ca-certificate", f"{ca}.pem", "--load-ca-privkey", f"{ca}.key",
            "--outfile", str(key).replace("-key", "-cert"))
        shutil.copy("ca.pem", folder / "ca-cert.pem")
    for ca in ("ca", "strange"):
        run(certtool, "--generate-privkey", "--ecc", "--outfile", f"{ca}.key")
        (tmp / f"{ca}.info").write_text(f"cn = {ca}\nca\ncert_signing_key\n")
        run(certtool, "--generate-self-signed", "--load-privkey", f"{ca}.key", "--template", f"{ca}.info",
            "--outfile", f"{ca}.pem")
    make("server", "ca", cn="localhost", more=["dns_name = localhost", "tls_www_server"])
    make("alice", "ca", cn="alice", more=["tls_www_client"])
    make("mallory", "strange", cn="alice", more=["tls_www_client"])
    return tmp


def tls_uri(server, who, keys):
    return f"nbds+unix:///?socket={server.socket}&tls-certificates={keys}/keys-{who}&tls-hostname=localhost"


def reads(uri, setup=""):
    """Whether libnbd reads through it."""
    code = f"""
import nbd
h = nbd.NBD()
h.set_uri_allow_local_file(True)
{setup}
h.connect_uri("{uri}")
assert h.get_tls_negotiated()
print(len(h.pread(1 << 20, 5)), h.pread(100, 7) == open("a.raw", "rb").read()[7:107])
h.pwrite(b"s" * 300000, 1 << 20)
assert h.pread(300000, 1 << 20) == b"s" * 300000
"""
    r = subprocess.run(["/usr/bin/python3", "-c", code], capture_output=True, text=True, timeout=30)
    return r.returncode == 0 and r.stdout == "1048576 True\n"


def test_tls_x509(keys, serve, content, need_tool, qemu_img):
    server = serve("a.raw", "-f", "raw", "--object", f"tls-creds-x509,id=t,dir={keys}/keys-server,endpoint=server",
                   "--tls-creds", "t")
    assert reads(tls_uri(server, "alice", keys))
    assert not reads(tls_uri(server, "mallory", keys))
    with Wire(server.socket).greet() as w:  # in plain text nothing is told
        assert w.ask(3)[-1][0] == (1 << 31) + 5
        assert w.go()[-1][0] == (1 << 31) + 5
        assert w.ask(8)[-1][0] == (1 << 31) + 5
    run(need_tool("nbdcopy"), tls_uri(server, "alice", keys), "out.raw")
    qemu_img("compare", "--object", f"tls-creds-x509,id=c,dir={keys}/keys-alice,endpoint=client",
             "--image-opts", "driver=raw,file.driver=file,file.filename=a.raw",
             f"driver=raw,file.driver=nbd,file.path={server.socket},file.tls-creds=c,file.tls-hostname=localhost")


def test_tls_authorization(keys, serve, content):
    for identity, welcome in (("CN=alice", True), ("CN=bob", False)):
        server = serve("a.raw", "-f", "raw", "--object",
                       f"tls-creds-x509,id=t,dir={keys}/keys-server,endpoint=server", "--tls-creds", "t",
                       "--object", f"authz-simple,id=z,identity={identity}", "--tls-authz", "z", "-v")
        assert reads(tls_uri(server, "alice", keys)) is welcome
        assert welcome or "not authorized" in server.said()
        server.stop()


def test_tls_optional(keys, serve, content):
    server = serve("a.raw", "-f", "raw", "--object", f"tls-creds-x509,id=t,dir={keys}/keys-server",
                   "--tls-creds", "t", "--tls-optional")
    assert reads(tls_uri(server, "alice", keys))
    with Wire(server.socket).ready() as w:
        assert w.read(0, 10)[1] == 0


def test_tls_psk(need_tool, serve, content, tmp):
    run(need_tool("psktool"), "-u", "alice", "-p", tmp / "keys.psk")
    server = serve("a.raw", "-f", "raw", "--object", f"tls-creds-psk,id=t,dir={tmp},endpoint=server",
                   "--tls-creds", "t")
    assert reads(f"nbds+unix://alice@/?socket={server.socket}&tls-psk-file={tmp}/keys.psk")
    (tmp / "wrong.psk").write_text("alice:" + "00" * 32 + "\n")
    assert not reads(f"nbds+unix://alice@/?socket={server.socket}&tls-psk-file={tmp}/wrong.psk")


def test_plain_text_before_tls_is_forgotten(keys, serve, content):
    """CVE-2021-3716: what was injected behind STARTTLS must not be acted on inside it."""
    import ssl
    server = serve("a.raw", "-f", "raw", "--object",
                   f"tls-creds-x509,id=t,dir={keys}/keys-server,verify-peer=off", "--tls-creds", "t")
    with Wire(server.socket).greet() as w:
        w.option(5)
        magic = w.get(20)
        assert magic[12:16] == b"\0\0\0\1"
        context = ssl.create_default_context(cafile=f"{keys}/ca.pem")
        w.s = context.wrap_socket(w.s, server_hostname="localhost")
        assert w.meta(b"base:allocation")[-1][0] == (1 << 31) + 3  # no structured replies so far
        assert w.go()[-1][0] == 1
        assert w.read(0, 512) == (content[:512], 0)
    with Wire(server.socket).greet() as w:
        w.option(5, b"", None)
        w.option(8)  # in the same breath
        w.get(20)
        time.sleep(0.1)
        context = ssl.create_default_context(cafile=f"{keys}/ca.pem")
        with pytest.raises((ssl.SSLError, OSError)):
            s = context.wrap_socket(w.s, server_hostname="localhost")
            s.sendall(b"x")
            assert s.recv(1) == b"no"


@pytest.mark.parametrize("objects, says", [
    (["--tls-creds", "t"], "no TLS credentials 't'"),
    (["--object", "tls-creds-x509,id=t,dir=nowhere", "--tls-creds", "t"], "nowhere"),
    (["--object", "tls-creds-psk,id=t,dir=.", "--tls-creds", "t"], "keys.psk"),
    (["--object", "tls-creds-x509,id=t,dir=.,endpoint=client", "--tls-creds", "t"], "not a server"),
    (["--object", "whatever,id=t"], "whatever"),
    (["--tls-authz", "z"], "--tls-creds"),
])
def test_tls_mistakes(nbd, content, objects, says):
    assert says in nbd.fails(*objects, "-f", "raw", "a.raw").err


# ---------------------------------------------------------------- like qemu-nbd

def test_list_as_qemu_nbd(need_tool, nbd, serve, foreign, content, img):
    """Ours lists theirs as theirs does, and theirs lists ours."""
    theirs = need_tool("qemu-nbd")
    other = foreign("other", theirs, "-t", "-f", "raw", "-k", Path.cwd() / "other", "-x", "n", "-D", "text",
                    "-A", "-e", "5", "a.raw")
    assert nbd("-L", "-k", other.socket).out == run(theirs, "-L", "-k", other.socket)
    other.process.kill()
    ours = serve("a.raw", "-f", "raw", "-A", "-D", "text")
    assert nbd("-L", "-k", ours.socket).out == run(theirs, "-L", "-k", ours.socket)


def test_ends_with_the_last_client(nbd, serve, content):
    server = serve("-f", "raw", "-e", "2", "a.raw", command=None)
    with Wire(server.socket).ready():
        with Wire(server.socket).ready():
            pass
        time.sleep(0.2)
        assert server.process.poll() is None
    assert server.process.wait(timeout=10) == 0
    assert not server.socket.exists()


def test_persistent(serve, content):
    server = serve("-f", "raw", "-t", "a.raw", command=None)
    for _ in range(3):
        with Wire(server.socket).ready() as w:
            assert w.read(0, 5)[1] == 0
    assert server.process.poll() is None
    server.stop()
    assert not server.socket.exists()


def test_fork(as_qemu_nbd, content, tmp):
    as_qemu_nbd("--fork", "-t", "-f", "raw", "-k", tmp / "s", "--pid-file", "pid", "a.raw")
    pid = int(Path("pid").read_text())
    with Wire(tmp / "s").ready() as w:
        assert w.read(0, 512) == (content[:512], 0)
    os.kill(pid, signal.SIGTERM)
    until = time.monotonic() + 10
    while os.path.exists(f"/proc/{pid}") and time.monotonic() < until:
        time.sleep(0.02)
    assert not Path("s").exists() and not Path("pid").exists()
    assert "nosuch" in as_qemu_nbd.fails("--fork", "-f", "raw", "nosuch").err


def test_snapshot_leaves_the_image_alone(serve, content, tmp):
    server = serve("-s", "-f", "raw", "a.raw", command=None)
    with Wire(server.socket).ready() as w:
        assert w.do(WRITE, 0, 4096, b"q" * 4096) == 0
        assert w.read(0, 4096) == (b"q" * 4096, 0)
    server.process.wait(timeout=10)
    assert (tmp / "a.raw").read_bytes() == content


@pytest.mark.parametrize("what", ["one", "1", "snapshot.name=one", "snapshot.id=1"])
def test_load_snapshot(img, qemu_io, serve, tmp, what):
    img("create", "-f", "qcow2", "b.qcow2", "1M")
    qemu_io("-c", "write -P 1 0 64k", "b.qcow2")
    img("snapshot", "-c", "one", "b.qcow2")
    qemu_io("-c", "write -P 2 0 64k", "b.qcow2")
    server = serve("-l", what, "b.qcow2", command=None)
    with Wire(server.socket).ready() as w:
        assert w.read(0, 4096) == (b"\1" * 4096, 0)
        assert w.do(WRITE, 0, 512, b"x" * 512) == 1


@pytest.mark.parametrize("fmt", ["raw", "qcow2", "vmdk", "vhdx"])
def test_grow(img, serve, need_tool, tmp, fmt):
    """A small image takes a large one; what is large enough stays, and what nobody may write to, too."""
    img("create", "-f", fmt, "b", "1M")
    img("create", "-f", "qcow2", "large", "5G")
    img("create", "-f", "qcow2", "ro", "1M")
    server = serve("-f", fmt, "--grow=1G", "b", command="serve")
    run("/usr/bin/python3", "-c", f"""
import nbd
h = nbd.NBD()
h.connect_uri("{server.uri}")
assert h.get_size() == 1 << 30
h.pwrite(b"z" * 4096, (1 << 30) - 4096)
h.flush()
""")
    server.stop()
    assert img("info", "--output=json", "b").json["actual-size"] < 40 << 20
    assert img("info", "--output=json", "-f", fmt, "b").json["virtual-size"] == 1 << 30
    serve("-f", "qcow2", "--grow=1G", "large", "--ro", "ro").stop()
    assert img("info", "--output=json", "large").json["virtual-size"] == 5 << 30
    assert img("info", "--output=json", "ro").json["virtual-size"] == 1 << 20


def test_offset(serve, content):
    server = serve("-o", "1M", "-f", "raw", "a.raw", command=None)
    with Wire(server.socket).ready() as w:
        assert w.size == len(content) - MIB
        assert w.read(5, 512) == (content[MIB + 5:MIB + 517], 0)


@pytest.mark.parametrize("args, says", [
    ([], "which image"),
    (["a.raw", "b.raw"], "serve"),
    (["-p", "99999", "a.raw"], "65535"),
    (["-p", "x", "a.raw"], "65535"),
    (["-e", "-1", "a.raw"], "number"),
    (["-o", "nonsense", "a.raw"], "nonsense"),
    (["-k", "s", "-p", "5", "a.raw"], "-k"),
    (["-k", "x" * 200, "-f", "raw", "a.raw"], "socket"),
    (["--cache=sometimes", "a.raw"], "writeback"),
    (["--discard=sometimes", "a.raw"], "unmap"),
    (["-f", "nosuch", "a.raw"], "nosuch"),
    (["-f", "qcow2", "a.raw"], "qcow2"),
    (["nosuch"], "nosuch"),
    (["--nonsense"], "--help"),
    (["-L", "a.raw"], "a.raw"),
    (["-B", "b0", "a.raw"], "bitmap"),
    (["--allow", "300.1.2.3", "-f", "raw", "a.raw"], "300.1.2.3"),
    (["-b", "203.0.113.77", "-p", "12345", "-f", "raw", "a.raw"], "203.0.113.77"),
    (["-c", "/dev/nosuch", "-f", "raw", "-v", "a.raw"], "/dev/nosuch"),
    (["-d", "/dev/nosuch"], "/dev/nosuch"),
])
def test_mistakes(nbd, content, args, says):
    assert says in nbd.fails(*args, code=1).err


def test_help_and_version(nbd, as_qemu_nbd):
    for word in ("--help", "-h"):
        assert "--export-name" in nbd(word).out
    assert "--ro" in nbd("serve", "--help").out
    assert nbd("-V").out.startswith("nbd (Platter)")
    assert as_qemu_nbd("--version").out.startswith("qemu-nbd 7.")


# ---------------------------------------------------------------- beyond it

def test_a_folder(img, serve, tmp, content):
    folder = tmp / "disks"
    folder.mkdir()
    img("create", "-f", "qcow2", "disks/b.qcow2", "1M")
    shutil.copy("a.raw", folder / "a.raw")
    (folder / "notes.txt").write_text("no image")
    server = serve("disks")
    with Wire(server.socket).greet() as w:
        assert [d[4:] for _, d in w.ask(3)[:-1]] == [b"a.raw", b"b.qcow2"]
        assert w.go(b"b.qcow2")[-1][0] == 1 and w.size == MIB


def test_statistics(serve, content):
    server = serve("a.raw", "-f", "raw", "--stats")
    with Wire(server.socket).ready() as w:
        for _ in range(10):
            w.read(0, 4096)
        w.do(WRITE, 0, 4096, b"x" * 4096)
        server.process.send_signal(signal.SIGUSR1)
        until = time.monotonic() + 5
        while "}" not in server.said() and time.monotonic() < until:
            time.sleep(0.02)
        stats = json.loads(server.said())
        export = stats["exports"][0]
        assert stats["clients"] == 1 and export["name"] == "a.raw" and export["clients"] == 1
        assert (export["reads"], export["reads-bytes"], export["writes"]) == (10, 40960, 1)
    assert '"served": 1' in server.stop()


def test_allow(nbd, content):
    for listed, welcome in (("127.0.0.0/8", True), ("192.0.2.1,10.0.0.0/8", False)):
        port = free_port()
        process = subprocess.Popen([nbd.path, "-t", "-v", "-b", "127.0.0.1", "-p", str(port), "-f", "raw",
                                    "--allow", listed, "a.raw"], stderr=subprocess.DEVNULL)
        try:
            wait_for(port)
            with socket.create_connection(("127.0.0.1", port)) as s:
                s.settimeout(5)
                try:
                    got = s.recv(8)
                except ConnectionResetError:
                    got = b""
                assert got == (b"NBDMAGIC" if welcome else b"")
        finally:
            process.terminate()
            process.wait()


def test_socket_activation(nbd, content, need_tool, tmp):
    """As systemd does it: libnbd plays its part."""
    run("/usr/bin/python3", "-c", f"""
import nbd
h = nbd.NBD()
h.connect_systemd_socket_activation(["{nbd.path}", "-f", "raw", "a.raw"])
assert h.pread(512, 5) == open("a.raw", "rb").read()[5:517]
h.shutdown()
""")


def test_stdio(nbd, content):
    run("/usr/bin/python3", "-c", f"""
import nbd
h = nbd.NBD()
h.connect_command(["{nbd.path}", "--stdio", "-f", "raw", "a.raw"])
assert h.pread(512, 5) == open("a.raw", "rb").read()[5:517]
h.shutdown()
""")


def test_socket_in_use(nbd, serve, content, img, tmp):
    """A server that listens is not pushed aside; a socket that was left behind is."""
    img("create", "-f", "raw", "b.raw", "1M")
    server = serve("a.raw", "-f", "raw")
    assert "another server" in nbd.fails("-k", server.socket, "-f", "raw", "b.raw").err
    Path("file").write_text("precious")
    assert "no socket" in nbd.fails("-k", "file", "-f", "raw", "b.raw").err
    assert Path("file").read_text() == "precious"
    server.process.kill()
    server.process.wait()
    assert server.socket.exists()
    serve_again = Server([nbd.path, "-k", server.socket, "-f", "raw", "-t", "b.raw"], server.socket, "again.log")
    serve_again.stop()


def test_killed(img, qemu_img, serve, tmp):
    """What was flushed is there, whatever happens to the server."""
    img("create", "-f", "qcow2", "b.qcow2", "64M")
    server = serve("b.qcow2")
    with Wire(server.socket).ready() as w:
        for i in range(20):
            assert w.do(WRITE, i * MIB, 65536, bytes([i + 1]) * 65536) == 0
        assert w.do(3) == 0
        for i in range(20):
            w.request(WRITE, i * MIB + 65536, 65536, b"\xee" * 65536, cookie=i)
        server.process.kill()
        server.process.wait()
    assert qemu_img("check", "b.qcow2", code=(0, 3))
    qemu_img("convert", "-O", "raw", "b.qcow2", "out.raw")
    with open("out.raw", "rb") as f:
        for i in range(20):
            f.seek(i * MIB)
            assert f.read(65536) == bytes([i + 1]) * 65536
