"""What the Python tests share: running programs, making content, comparing answers."""

import json
import os
import re
import resource
import signal
import subprocess
import tempfile
import threading
import time
from pathlib import Path

KIB, MIB, GIB, TIB = 1 << 10, 1 << 20, 1 << 30, 1 << 40

# What a sanitizer writes when it found something.
REPORT = re.compile(r"(Address|Leak|Thread|UndefinedBehavior)Sanitizer|runtime error:")


class Result:
    """How a program ended."""

    def __init__(self, argv, code, out, err, seconds, peak):
        self.argv, self.code, self.out, self.err = argv, code, out, err
        self.seconds, self.peak = seconds, peak

    @property
    def json(self):
        return json.loads(self.out)

    def __repr__(self):
        command = " ".join(map(str, self.argv))
        return f"$ {command}\nexit code {self.code}\n{self.out[-4000:]}{self.err[-4000:]}"


def feed(pipe, data):
    """Writes data to a program that may end before it has read all."""
    try:
        pipe.write(data)
        pipe.close()
    except BrokenPipeError:
        pass


class Tool:
    """A program. Calling it runs it and insists on a decent end: no signal, no sanitizer report."""

    def __init__(self, path):
        self.path = str(path)
        self.sanitized = re.search(rb"__[at]san_", Path(path).resolve().read_bytes()) is not None

    def __call__(self, *args, code=0, timeout=60, cwd=None, memory=None, file_size=None, stdin=None,
                 text=True, signal_is_fine=False):
        """Runs with args. code: the exit code to insist on; None: any; a tuple: one of these.

        signal_is_fine: the program, an oracle, may die or hang. memory: the limit of the peak
        resident set. file_size: RLIMIT_FSIZE, a disk that fills up.
        """
        argv = [self.path, *map(str, args)]

        def limits():
            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
            if file_size is not None:
                resource.setrlimit(resource.RLIMIT_FSIZE, (file_size, file_size))
                # Without the signal the write says EFBIG, much as a full disk says ENOSPC.
                signal.signal(signal.SIGXFSZ, signal.SIG_IGN)

        began = time.monotonic()
        with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
            process = subprocess.Popen(argv, cwd=cwd, stdout=out, stderr=err, preexec_fn=limits,
                                       stdin=subprocess.PIPE if stdin else subprocess.DEVNULL)
            late = threading.Timer(timeout, process.kill)
            late.daemon = True  # an interrupted test run ends at once
            late.start()
            if stdin:
                feed(process.stdin, stdin)
            # wait4 and not wait, because it tells the peak memory of just this child.
            _, status, usage = os.wait4(process.pid, 0)
            process.returncode = os.waitstatus_to_exitcode(status)
            late.cancel()
            out.seek(0)
            err.seek(0)
            out, err = out.read(), err.read().decode(errors="replace")
        seconds = time.monotonic() - began
        assert signal_is_fine or process.returncode != -signal.SIGKILL, \
            f"hangs ({timeout} s): {argv}\n{err[-2000:]}"
        if text:
            out = out.decode(errors="replace")
        peak = usage.ru_maxrss * KIB
        result = Result(argv, process.returncode, out, err, seconds, peak)
        assert signal_is_fine or process.returncode >= 0, f"died of signal {-process.returncode}\n{result}"
        assert not REPORT.search(err), f"sanitizer report\n{result}"
        if memory is not None and not self.sanitized:
            assert peak <= memory, f"took {peak} bytes of memory, limit {memory}\n{result}"
        if code is not None:
            codes = code if isinstance(code, tuple) else (code,)
            assert result.code in codes, f"expected exit code {code}\n{result}"
        return result

    def fails(self, *args, **options):
        """Runs and insists on an error with a message: at least one sentence, no torrent."""
        options.setdefault("code", (1, 2, 3, 63))
        result = self(*args, **options)
        assert result.err.strip(), f"failed without a word\n{result}"
        assert len(result.err) < 20000, f"torrent of messages\n{result!r}"
        return result

    def start(self, *args):
        """Starts without waiting, for tests that kill."""
        return subprocess.Popen([self.path, *map(str, args)], stdin=subprocess.DEVNULL,
                                stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


# ---------------------------------------------------------------- content

def text_like(rng, length):
    """Bytes that compress about as well as text does."""
    words = [rng.randbytes(rng.randrange(2, 9)).hex().encode() for _ in range(200)]
    out = bytearray()
    while len(out) < length:
        out += b" ".join(rng.choices(words, k=100)) + b"\n"
    return bytes(out[:length])


def random_content(rng, size, granule):
    """Bytes in runs of whole and broken granules: random, text, one repeated byte, zero."""
    out = bytearray(size)
    at = 0
    while at < size:
        length = rng.randrange(1, 6) * granule
        if rng.random() < 0.3:
            length += rng.randrange(granule)
        length = min(max(length, 1), size - at)
        kind = rng.randrange(5)
        if kind == 0:
            out[at:at + length] = rng.randbytes(length)
        elif kind == 1:
            out[at:at + length] = text_like(rng, length)
        elif kind == 2:
            out[at:at + length] = bytes([rng.randrange(1, 256)]) * length
        at += length
    return out


def write_sparse(path, content, block=4096):
    """Writes content with holes where whole blocks are zero."""
    zero = bytes(block)
    with open(path, "wb") as file:
        for at in range(0, len(content), block):
            piece = bytes(content[at:at + block])
            if piece != zero[:len(piece)]:
                file.seek(at)
                file.write(piece)
        file.truncate(len(content))


def random_requests(rng, shadow, granule, count, compressed=0):
    """qemu-io commands that change an image, and shadow with them.

    compressed: the cluster size, if compressed writes (whole clusters) are wanted too. Returns the
    arguments for one run of qemu-io.
    """
    size = len(shadow)
    args = []
    if compressed:
        # First, since qemu compresses only into clusters that have no place of their own yet.
        clusters = range(0, size, compressed)
        for offset in rng.sample(clusters, min(count // 5, len(clusters))):
            length = min(compressed, size - offset)
            byte = rng.randrange(1, 256)
            args += ["-c", f"write -c -P {byte} {offset} {length}"]
            shadow[offset:offset + length] = bytes([byte]) * length
    for _ in range(count):
        kind = rng.choice(["write", "write", "write", "zero", "unmap"])
        offset = rng.randrange(size) // 512 * 512
        length = min(rng.randrange(1, 4 * granule + 1) // 512 * 512 + 512, size - offset)
        byte = rng.randrange(1, 256)
        if kind == "zero":
            args += ["-c", f"write -z {offset} {length}"]
            fill = bytes(length)
        elif kind == "unmap":
            args += ["-c", f"write -z -u {offset} {length}"]
            fill = bytes(length)
        else:
            args += ["-c", f"write -P {byte} {offset} {length}"]
            fill = bytes([byte]) * length
        shadow[offset:offset + length] = fill
    return args


# ---------------------------------------------------------------- comparison

def same_bytes(path, content):
    """Asserts that the file holds content, and says where it does not."""
    data = Path(path).read_bytes()
    assert len(data) == len(content), f"{path} has {len(data)} bytes, not {len(content)}"
    if data != bytes(content):
        at = next(i for i, (a, b) in enumerate(zip(data, content)) if a != b)
        raise AssertionError(f"{path} differs at {at} ({at:#x}): {data[at:at + 8].hex()}, "
                             f"not {bytes(content[at:at + 8]).hex()}")


def normal_map(entries):
    """A map as the answer to "what is where", whatever the pieces it was told in."""
    out = []
    for entry in entries:
        entry = {key: entry[key] for key in
                 ("start", "length", "depth", "present", "zero", "data", "offset") if key in entry}
        last = out[-1] if out else None
        if last and all(last.get(key) == entry.get(key)
                        for key in ("depth", "present", "zero", "data")) \
                and ("offset" in last) == ("offset" in entry) \
                and ("offset" not in last or last["offset"] + last["length"] == entry["offset"]):
            last["length"] += entry["length"]
        else:
            out.append(entry)
    return out


def same_map(ours, theirs):
    """Asserts that two maps say the same."""
    ours, theirs = normal_map(ours), normal_map(theirs)
    for mine, other in zip(ours, theirs):
        assert mine == other, f"maps differ: {mine}, the oracle says {other}"
    assert len(ours) == len(theirs)


def includes(ours, theirs, path=""):
    """Asserts that ours says all that theirs does; it may say more."""
    if isinstance(theirs, dict):
        for key, value in theirs.items():
            assert isinstance(ours, dict) and key in ours, f"{path}/{key} is missing in {ours}"
            includes(ours[key], value, f"{path}/{key}")
    elif isinstance(theirs, list):
        assert len(ours) == len(theirs), f"{path}: {ours} is not {theirs}"
        for number, (mine, other) in enumerate(zip(ours, theirs)):
            includes(mine, other, f"{path}[{number}]")
    else:
        assert ours == theirs, f"{path}: {ours!r}, the oracle says {theirs!r}"


def allocated(path):
    """Bytes on disk."""
    return os.stat(path).st_blocks * 512
