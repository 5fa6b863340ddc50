"""What the tests of img under faults and power cuts share: images, commands, where faults come from, judging."""

import os
import re
import shutil
import subprocess
from pathlib import Path

from platter import KIB, REPORT, random_content, write_sparse
from qcow2edit import COPIED, Qcow2

SIZE = 256 * KIB
ERRORS = {"EIO": (5, "Input/output error"), "ENOSPC": (28, "No space left on device")}
NOT_REACHED = re.compile(r"warning: .*: request \d+ did not fail: there were (\d+)\n")


def points(count, some, seed=0):
    """1 to count: all of them when FAULT_STEP=1, each so-manyth when it says more, else `some`, evenly spread."""
    step = int(os.environ.get("FAULT_STEP", 0)) or max(1, -(-count // some))
    return range(1 + seed % step, count + 1, step)


def make_images(rng, qemu_img, qemu_io):
    """One disk in all the ways that it can be stored, and images that want mending. Returns its content."""
    content = bytes(random_content(rng, SIZE, 4 * KIB))
    write_sparse("raw", content)
    write_sparse("base.raw", content[:SIZE // 2] + bytes(SIZE // 2))
    options = ["-f", "raw", "-O", "qcow2", "-o", "cluster_size=4k"]
    qemu_img("convert", *options, "raw", "qcow2")
    qemu_img("convert", *options, "-c", "raw", "compressed")
    qemu_img("convert", "-f", "raw", "-O", "vmdk", "raw", "vmdk")
    qemu_img("convert", *options, "base.raw", "base")
    qemu_img("create", "-f", "qcow2", "-o", "cluster_size=4k", "-b", "base", "-F", "qcow2", "overlay")
    qemu_img("convert", "-n", "-f", "raw", "-O", "qcow2", "raw", "overlay")
    shutil.copy("overlay", "backing")
    qemu_io("-f", "qcow2", "-c", "write -P 3 64k 4k", "-c", "discard 4k 64k", "overlay")
    qemu_io("-f", "qcow2", "-c", "write -P 3 64k 4k", "-c", "discard 4k 64k", "backing")
    return content


def blkdebug(below, number, error, on=False):
    """The options of a blkdebug node under the edge `below`, over a file."""
    return {f"{below}.driver": "blkdebug", f"{below}.fail-request": number,
            f"{below}.fail-errno": ERRORS[error][0], f"{below}.fail-on": "on" if on else "off",
            f"{below}.image.driver": "file"}


def source(name, number, error="EIO", on=False):
    """A description of one of the images with the n-th request to its file (its backing file) failing."""
    options = {"driver": "raw" if name == "raw" else "qcow2"}
    if name == "backing":
        options.update({"file.driver": "file", "file.filename": name, "backing.driver": "qcow2",
                        **blkdebug("backing.file", number, error, on),
                        "backing.file.image.filename": "base"})
    else:
        options.update({**blkdebug("file", number, error, on), "file.image.filename": name})
    return ",".join(f"{key}={value}" for key, value in options.items())


# ---------------------------------------------------------------- commands that write into an image

def leaks(q):
    block = q.u64(q["refcount_table_offset"])
    for cluster in range(40, 90):
        q.write(block + 2 * cluster, b"\0\3")


def wrong_counts(q):
    block = q.u64(q["refcount_table_offset"])
    q.write(block + 2 * 20, bytes(2 * 10))
    for _, at, entry in q.data()[3:30:5]:
        q.put64(at, entry & ~COPIED)


CONVERT = ["convert", "-n", "-m", "1", "-f", "raw", "--target-image-opts"]
# By name: the target, its format, how it is made from the images above, the command.
WRITERS = {
    "convert into raw": ("t", "raw", "base.raw", [*CONVERT, "raw", "TARGET"]),
    "convert into an empty qcow2": ("t", "qcow2", None, [*CONVERT, "raw", "TARGET"]),
    "convert into qcow2": ("t", "qcow2", "base", [*CONVERT, "raw", "TARGET"]),
    "convert into a compressed one": ("t", "qcow2", "compressed", [*CONVERT, "raw", "TARGET"]),
    "convert -c into qcow2": ("t", "qcow2", None, [*CONVERT, "-c", "raw", "TARGET"]),
    "convert into an overlay": ("t", "qcow2", "overlay", [*CONVERT, "raw", "TARGET"]),
    "grow qcow2": ("t", "qcow2", "qcow2", ["resize", "--image-opts", "TARGET", "+3M"]),
    "grow qcow2, metadata": ("t", "qcow2", "qcow2", ["resize", "--preallocation=metadata",
                                                     "--image-opts", "TARGET", "+300k"]),
    "grow qcow2, full": ("t", "qcow2", "qcow2", ["resize", "--preallocation=full", "--image-opts",
                                                 "TARGET", "+300k"]),
    "grow raw, full": ("t", "raw", "raw", ["resize", "--preallocation=full", "--image-opts",
                                           "TARGET", "+300k"]),
    "shrink qcow2": ("t", "qcow2", "qcow2", ["resize", "--shrink", "--image-opts", "TARGET", "100k"]),
    "shrink a compressed one": ("t", "qcow2", "compressed", ["resize", "--shrink", "--image-opts",
                                                             "TARGET", "100k"]),
    **{f"{what} {form}": ("t", form, (start, form), [*command, *size])
       for form in ("vdi", "vpc", "vhdx")
       for what, start, command, size in [
           ("convert into", "base.raw", CONVERT, ["raw", "TARGET"]),
           ("grow", "raw", ["resize", "--image-opts", "TARGET"], ["+3M"]),
           ("shrink", "raw", ["resize", "--shrink", "--image-opts", "TARGET"], ["100k"])]},
    "mend leaks": ("t", "qcow2", ("qcow2", leaks), ["check", "-r", "leaks", "--image-opts", "TARGET"]),
    "mend all": ("t", "qcow2", ("qcow2", wrong_counts), ["check", "-r", "all", "--image-opts",
                                                        "TARGET"]),
    "make a snapshot": ("t", "qcow2", ("qcow2", None), ["snapshot", "--image-opts", "-c", "two", "TARGET"]),
    "go back to a snapshot": ("t", "qcow2", ("qcow2", None), ["snapshot", "--image-opts", "-a", "one",
                                                             "TARGET"]),
    "remove a snapshot": ("t", "qcow2", ("qcow2", None), ["snapshot", "--image-opts", "-d", "one",
                                                         "TARGET"]),
    "amend": ("t", "qcow2", "qcow2", ["amend", "--image-opts", "-o", "compat=0.10", "TARGET"]),
    "rebase onto nothing": ("t", "qcow2", "overlay", ["rebase", "--image-opts", "-b", "", "TARGET"]),
    "convert into vmdk": ("t", "vmdk", "vmdk", [*CONVERT, "raw", "TARGET"]),
    "grow vmdk": ("t", "vmdk", "vmdk", ["resize", "--image-opts", "TARGET", "+40M"]),
    "shrink vmdk": ("t", "vmdk", "vmdk", ["resize", "--shrink", "--image-opts", "TARGET", "100k"]),
    "bench raw": ("t", "raw", "raw", ["bench", "-q", "-w", "-c", "30", "-d", "2",
                                      "--flush-interval=5", "-S", "12k", "--image-opts", "TARGET"]),
    "bench qcow2": ("t", "qcow2", "overlay", ["bench", "-q", "-w", "-c", "30", "-d", "2",
                                              "--flush-interval=5", "-S", "12k", "--image-opts",
                                              "TARGET"]),
}


# How qemu-img check may end on a sound image with leaks; of VDI it calls room made ahead an error, VHD it does not
# check, and a VHDX with a log it opens for repair only.
FOREIGN = {"qcow2": (0, 3), "vdi": (0, 2, 3), "vpc": (63,), "vmdk": (0, 3), "vhdx": (0, 1, 3)}


def make_target(name, start, qemu_img):
    if start is None:
        qemu_img("create", "-f", "qcow2", "-o", "cluster_size=4k", name, SIZE)
    elif start == ("qcow2", None):
        shutil.copy("qcow2", name)
        qemu_img("snapshot", "-c", "one", name)
        qemu_img("convert", "-n", "-f", "raw", "-O", "qcow2", "base.raw", name)
    elif isinstance(start, tuple) and isinstance(start[1], str):
        options = ["-o", "force_size=on"] if start[1] == "vpc" else []
        qemu_img("convert", "-f", "raw", "-O", start[1], *options, start[0], name)
    elif isinstance(start, tuple):
        shutil.copy(start[0], name)
        with Qcow2(name) as image:
            start[1](image)
    else:
        shutil.copy(start, name)


def content(img, name, form):
    """The guest's bytes."""
    if form == "raw":
        return Path(name).read_bytes()
    return img("convert", "-f", form, "-O", "raw", name, "-", text=False).out


# ---------------------------------------------------------------- judging

class Judge:
    """Counts points and collects what went wrong, so that one bad point does not hide the others."""

    def __init__(self, tally):
        self.tally, self.failures = tally, []

    def point(self, name, run):
        """run() says what came of the point: told, tolerated or not reached."""
        self.tally["points"] += 1
        try:
            self.tally[run()] += 1
        except AssertionError as failure:
            self.tally["failures"] += 1
            self.failures.append(f"{name}: {failure}")

    def end(self):
        assert not self.failures, f"{len(self.failures)} failures\n" + "\n".join(self.failures[:6])


def told(result, names, cause, apart=False):
    """One sentence says which file and why (or apart, a sentence for each); nothing else is said twice."""
    lines = [line for line in result.err.splitlines() if line.startswith("img: ")]
    good = [line for line in lines if (cause in line or apart and cause in result.err)
            and any(name in line for name in names)]
    assert good, f"no line names the file and the cause\n{result}"
    assert len(lines) == len(set(lines)) and len(lines) <= 2, f"too many words\n{result}"
    assert "/proc/" not in result.err and ".platter-" not in result.err, f"an inner name\n{result}"


def snapshot():
    """The files here and their bytes."""
    return {path.name: path.read_bytes() for path in Path().iterdir() if path.is_file()}


def restore(files):
    """Puts the files back as they were, and removes all others."""
    for path in list(Path().iterdir()):
        if path.name not in files:
            path.unlink()
    for name, data in files.items():
        path = Path(name)
        if not path.exists() or path.read_bytes() != data:
            path.write_bytes(data)


class Traced:
    """img under strace, which makes the n-th of some system calls fail: also what no graph can be put under."""

    CALLS = "pwrite64,pwritev,pwritev2,ftruncate,fallocate,fsync,fdatasync,linkat,rename,renameat2," \
            "mkdir,copy_file_range"

    def __init__(self, img, strace):
        self.img, self.strace = img, strace

    def run(self, args, inject=None):
        """The exit code, stderr, the calls made, and whether one was made to fail."""
        log = Path("strace.log")
        what = ["-e", f"trace={self.CALLS}", *(["-e", f"inject={inject}"] if inject else [])]
        # A traced process cannot look for leaks.
        env = {**os.environ, "ASAN_OPTIONS": "detect_leaks=0"}
        done = subprocess.run([self.strace, "-f", "-q", "-o", log, *what, self.img.path, *args],
                              stdin=subprocess.DEVNULL, capture_output=True, timeout=60, env=env,
                              text=True, errors="replace", check=False)
        calls = [line for line in log.read_text(errors="replace").splitlines() if "(" in line]
        log.unlink()
        assert not REPORT.search(done.stderr), done.stderr
        assert done.returncode in range(128), f"{args}: ended with {done.returncode}\n{done.stderr}"
        return done, calls
