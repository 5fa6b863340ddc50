"""img when the n-th request fails: it says so, leaves with an error, and what lies on the disk is sound.

Three places where things go wrong: a blkdebug node in the graph; a file that may not grow beyond so many bytes
(short writes among them); system calls that fail, by strace, for what makes its files itself. A run
that says it went well must have done it all, fault or not.

FAULT_STEP=1 in the environment tries each request, FAULT_SEED others of them.
"""

import os
import random
import re
import shutil
from pathlib import Path

import pytest

from faults import (ERRORS, FOREIGN, NOT_REACHED, WRITERS, Judge, Traced, blkdebug, content, make_images,
                    make_target, points, restore, snapshot, source, told)
from platter import KIB

SEED = int(os.environ.get("FAULT_SEED", 0))


@pytest.fixture
def judge(tally):
    """Complains at the end of the test about all points that failed."""
    judge = Judge(tally)
    yield judge
    judge.end()


IMAGES = {}


@pytest.fixture
def files(tmp, qemu_img, qemu_io):
    """The images, as they are restored before each run. They are made once."""
    if not IMAGES:
        make_images(random.Random(SEED), qemu_img, qemu_io)
        IMAGES.update(snapshot())
    restore(IMAGES)
    return IMAGES


def plan(count, some):
    """(number, error, whether it goes on failing)"""
    kinds = [("EIO", False), ("ENOSPC", True), ("ENOSPC", False), ("EIO", True)]
    numbers = points(count, some, SEED)
    if os.environ.get("FAULT_STEP"):
        return [(number, error, on) for number in numbers for error, on in kinds]
    return [(number, *kinds[i % 4]) for i, number in enumerate(numbers)]


def requests(result):
    """How many there were, of a run that was to fail far beyond the last."""
    return int(NOT_REACHED.search(result.err).group(1))


def not_reached(result):
    return bool(NOT_REACHED.search(result.err))


# ---------------------------------------------------------------- sources

READERS = {
    "info": ["info", "--output=json", "--image-opts", "SOURCE"],
    "map": ["map", "--output=json", "--image-opts", "SOURCE"],
    "measure": ["measure", "--output=json", "-O", "qcow2", "--image-opts", "SOURCE"],
    "compare": ["compare", "--image-opts", "SOURCE", "driver=raw,file.filename=raw"],
    "check": ["check", "--output=json", "--image-opts", "SOURCE"],
    "bench": ["bench", "-q", "-c", "40", "-d", "2", "-S", "8k", "--image-opts", "SOURCE"],
    "convert": ["convert", "-m", "1", "--image-opts", "-O", "raw", "SOURCE", "out"],
    "convert to qcow2": ["convert", "--image-opts", "-O", "qcow2", "SOURCE", "out"],
    "convert -c": ["convert", "-c", "--image-opts", "-O", "qcow2", "-o", "cluster_size=4k", "SOURCE",
                   "out"],
    "convert to a stream": ["convert", "--image-opts", "-O", "raw", "SOURCE", "-"],
    "convert of two": ["convert", "--image-opts", "-O", "raw", "driver=raw,file.filename=raw",
                       "SOURCE", "out"],
    "dd": ["dd", "--image-opts", "-O", "qcow2", "if=SOURCE", "of=out", "bs=3k", "skip=5"],
}
FAILED = {"compare": (2, 3, 4)}


def answer(img, result):
    """What an exit code 0 promised: the output, and the bytes of the target."""
    text = re.sub(r"fail-\w+=\w+", "", result.out.decode(errors="replace"))
    if Path("out").exists() and result.argv[1] == "convert":
        img("convert", "-O", "raw", "out", "out.raw")  # the same may be stored in many ways
        Path("out.raw").rename("out")
    return text, Path("out").read_bytes() if Path("out").exists() else None


@pytest.mark.parametrize("image", ["raw", "qcow2", "compressed", "overlay", "backing"])
@pytest.mark.parametrize("reader", READERS)
def test_source_fails(img, files, judge, reader, image):
    """Nothing is written that looks like a result; the sources stay as they are."""
    if reader == "check" and image in ("raw", "backing"):
        pytest.skip("check looks at no such file")
    code = 1 if reader == "compare" and image in ("overlay", "backing") else 0

    def run(number, error="EIO", on=False):
        Path("out").unlink(missing_ok=True)
        graph = source(image, number, error, on)
        args = [word.replace("SOURCE", graph) for word in READERS[reader]]
        return img(*args, code=None, text=False)

    whole = run(1 << 40)
    assert whole.code == code, whole
    count, right = requests(whole), answer(img, whole)

    def point(number, error, on):
        result = run(number, error, on)
        assert {**snapshot(), "out": None} == {**files, "out": None}, "another file was changed"
        if result.code == code:
            text, target = answer(img, result)
            assert target == right[1], f"exit code {code}, but another result\n{result}"
            assert reader == "bench" or text == right[0], f"other words\n{result}"
            return "not reached" if not_reached(result) else "tolerated"
        assert result.code in FAILED.get(reader, (1,)), result
        assert not not_reached(result), f"failed without a failure\n{result}"
        assert not Path("out").exists(), "half a target"
        told(result, [image, "base"], ERRORS[error][1], apart=reader == "check")
        return "told"

    for args in plan(count, 4):
        judge.point(f"request {args} of {count}", lambda: point(*args))


# ---------------------------------------------------------------- targets

def into(target, form):
    """A description of an existing image for -n and others that write."""
    return f"driver={form},file.image.filename={target}," + \
        ",".join(f"{key}={value}" for key, value in blkdebug("file", "NUMBER", "EIO").items()) \
        .replace("fail-errno=5", "fail-errno=ERRNO").replace("fail-on=off", "fail-on=ON")


@pytest.mark.parametrize("writer", WRITERS)
def test_target_fails(img, qemu_img, files, judge, writer):
    """What is written to checks with leaks at most, keeps what was not to change, and goes on from there."""
    name, form, start, args = WRITERS[writer]
    make_target(name, start, qemu_img)
    before = snapshot()
    mending = args[0] == "check"
    old = None if mending else content(img, name, form)

    def run(number, error="EIO", on=False):
        graph = into(name, form).replace("NUMBER", str(number)) \
            .replace("ERRNO", str(ERRORS[error][0])).replace("ON", "on" if on else "off")
        return img(*[word.replace("TARGET", graph) for word in args], code=None)

    whole = run(1 << 40)
    assert whole.code == 0, whole
    count, right = requests(whole), content(img, name, form)

    def sound():
        if form == "raw":
            return
        if mending:
            assert content(img, name, form) == right, "the repair changed what the guest reads"
            img("check", "-q", "-r", "all", name)
        img("check", "-q", "-f", form, name, code=(0, 3))
        qemu_img("check", "-q", "-f", form, name, code=FOREIGN[form])

    def point(number, error, on):
        restore(before)
        result = run(number, error, on)
        after = snapshot()
        assert {**after, name: None} == {**before, name: None}, "another file was changed"
        if result.code == 0:
            assert content(img, name, form) == right, f"exit code 0, but another result\n{result}"
            sound()
            return "not reached" if not_reached(result) else "tolerated"
        assert result.code == 1, result
        assert not not_reached(result), f"failed without a failure\n{result}"
        told(result, [f" {name}:", f"'{name}'", f"/{name}:"], ERRORS[error][1], apart=mending)
        sound()
        if args[0] == "resize":
            both = min(len(old), len(right))
            assert content(img, name, form)[:both] == old[:both], "guest data was lost"
        if args[0] in ("amend", "rebase", "snapshot") and "-a" not in args:
            assert content(img, name, form) == old, "guest data changed"
        if args[0] == "convert":
            img("convert", "-n", "-f", "raw", "-O", form, "raw", name)
            assert content(img, name, form) == right, "cannot be done again"
        return "told"

    for args_ in plan(count, 8):
        judge.point(f"request {args_} of {count}", lambda: point(*args_))


# ---------------------------------------------------------------- what makes its files itself

MAKERS = {
    "create raw": ["create", "-q", "-f", "raw", "out", "1M"],
    "create raw, falloc": ["create", "-q", "-f", "raw", "-o", "preallocation=falloc", "out", "256k"],
    "create raw, full": ["create", "-q", "-f", "raw", "-o", "preallocation=full", "out", "256k"],
    "create qcow2": ["create", "-q", "-f", "qcow2", "out", "1M"],
    "create qcow2, metadata": ["create", "-q", "-f", "qcow2", "-o",
                               "preallocation=metadata,cluster_size=512", "out", "256k"],
    "create qcow2, full": ["create", "-q", "-f", "qcow2", "-o", "preallocation=full,cluster_size=4k",
                           "out", "256k"],
    "create an overlay": ["create", "-q", "-f", "qcow2", "-b", "qcow2", "-F", "qcow2", "out"],
    "convert to raw": ["convert", "-m", "1", "-f", "qcow2", "-O", "raw", "qcow2", "out"],
    "convert to qcow2": ["convert", "-m", "1", "-f", "raw", "-O", "qcow2", "raw", "out"],
    "convert -c": ["convert", "-m", "1", "-c", "-f", "raw", "-O", "qcow2", "-o", "cluster_size=4k",
                   "raw", "out"],
    "convert -C": ["convert", "-m", "1", "-C", "-f", "raw", "-O", "raw", "raw", "out"],
    "convert -S 0": ["convert", "-m", "1", "-S", "0", "-f", "raw", "-O", "raw", "raw", "out"],
    "convert to an overlay": ["convert", "-m", "1", "-f", "qcow2", "-O", "qcow2", "-B", "base", "-F",
                              "qcow2", "-o", "cluster_size=4k", "overlay", "out"],
    "dd": ["dd", "-f", "raw", "-O", "qcow2", "if=raw", "of=out", "bs=4k", "seek=7"],
    "create vmdk": ["create", "-q", "-f", "vmdk", "out", "1M"],
    "convert to vmdk": ["convert", "-m", "1", "-f", "raw", "-O", "vmdk", "raw", "out"],
    "convert to a vmdk stream": ["convert", "-m", "1", "-f", "raw", "-O", "vmdk", "-o",
                                 "subformat=streamOptimized", "raw", "out"],
    "convert to a flat vmdk": ["convert", "-m", "1", "-f", "raw", "-O", "vmdk", "-o",
                               "subformat=monolithicFlat", "raw", "out"],
    "resize raw": ["resize", "-q", "-f", "raw", "t", "+300k"],
    "resize raw, full": ["resize", "-q", "-f", "raw", "--preallocation=full", "t", "+300k"],
    "shrink raw": ["resize", "-q", "--shrink", "-f", "raw", "t", "100k"],
}


def made(args):
    return next(word for word in ("out", "of=out", "t") if word in args)[-3:].lstrip("=")


def judge_made(img, qemu_img, args, before, result, causes):
    """0: all is there. Else nothing is there that was not before."""
    name = made(args)
    after = snapshot()
    if result.code == 0:
        assert name in after, "no target"
        if qemu_img("info", "--output=json", name).json["format"] in ("qcow2", "vmdk"):
            qemu_img("check", "-q", name)
            img("check", "-q", name)
        return
    assert result.code == 1, result
    if name == "t":
        smaller = min(len(after[name]), len(before[name]))
        assert smaller >= 100 * KIB and after[name][:smaller] == before[name][:smaller]
        after[name] = before[name]
    if args[0] == "create" and name in before:
        after[name] = before[name]  # a new image in place of the old one: that is what create does
    assert after == before, f"something is left: {sorted(set(after) - set(before))}\n{result}"
    assert any(cause in result.err for cause in causes), f"no cause\n{result}"
    told(result, [name], next(cause for cause in causes if cause in result.err))


class Answer:
    """What judge_made wants to know of a run under strace."""

    def __init__(self, done):
        self.code, self.out, self.err = done.returncode, done.stdout, done.stderr

    def __repr__(self):
        return f"exit code {self.code}\n{self.err}"


@pytest.mark.parametrize("exists", [False, True], ids=["new", "existing"])
@pytest.mark.parametrize("maker", MAKERS)
def test_system_call_fails(img, qemu_img, need_tool, files, judge, maker, exists):
    """Each write, truncation, flush and renaming in turn."""
    traced, args = Traced(img, need_tool("strace")), MAKERS[maker]
    if made(args) == "t":
        if not exists:
            pytest.skip("works on an image that is there")
        shutil.copy("raw", "t")
    elif exists:
        Path("out").write_bytes(b"precious" * 4096)
    before = snapshot()
    whole, calls = traced.run(args)
    assert whole.returncode == 0, whole.stderr
    right = Path(made(args)).read_bytes()
    threads = {}
    for call in calls:
        threads[call.split()[0]] = threads.get(call.split()[0], 0) + 1
    count = max(threads.values())

    def point(number, error, on):
        restore(before)
        done, calls = traced.run(args, f"{Traced.CALLS}:error={error}:when={number}{'+' if on else ''}")
        hit = any("INJECTED" in call for call in calls)
        result = Answer(done)
        judge_made(img, qemu_img, args, before, result, [ERRORS[error][1]])
        if result.code:
            assert hit, f"failed without a failure\n{result}"
            return "told"
        same = Path(made(args)).read_bytes() == right or \
            "qcow2" in args or "vmdk" in args  # each has a number of its own
        assert same, f"exit code 0, but another result\n{result}"
        return "tolerated" if hit else "not reached"

    some = 3 if exists else 6
    for at in plan(count, some // 2 if img.sanitized else some):
        judge.point(f"call {at} of {count}", lambda: point(*at))


@pytest.mark.parametrize("maker", [name for name in MAKERS
                                   if made(MAKERS[name]) == "out" and "flat" not in name])
def test_file_may_not_grow(img, qemu_img, files, judge, maker):
    """A disk that fills up, also in the middle of a write, which comes out short then."""
    args, before = MAKERS[maker], snapshot()
    img(*args)
    size = Path("out").stat().st_size

    def point(limit):
        restore(before)
        result = img(*args, code=None, file_size=limit)
        judge_made(img, qemu_img, args, before, result, ["File too large", "No space left"])
        assert (result.code == 0) == (limit > size), f"limit {limit} of {size}\n{result}"
        return "told" if result.code else "not reached"

    for at in points(size // 512, 5, SEED):
        judge.point(f"{at * 512 - 13} bytes", lambda: point(at * 512 - 13))
    judge.point("all it needs", lambda: point(4 * size))


# ---------------------------------------------------------------- what came to light here

@pytest.mark.parametrize("name", ["null-co://", "blkdebug::old", "blkverify:old:old", "nosuch:x"])
def test_create_by_a_protocol_that_makes_nothing(img, qemu_img, tmp, name):
    """It made a file of the whole name, and an image of what the protocol leads to."""
    Path("old").write_bytes(b"precious")
    for tool in (img, qemu_img):
        assert name in tool.fails("create", "-q", "-f", "qcow2", name, "1M").err
        assert snapshot() == {"old": b"precious"}


def test_header_extensions_name_the_cause(img, files):
    error = img.fails("info", "--image-opts", source("qcow2", 4)).err
    assert "qcow2: could not read the header extensions: Input/output error" in error


def test_a_stream_names_the_source_that_failed(img, files):
    """Of two sources the second, with the offset in it."""
    error = img.fails("convert", "-O", "raw", "--image-opts", "driver=raw,file.filename=raw",
                      source("raw", 1), "-", text=False).err
    assert "cannot read 'raw' at offset 0: Input/output error" in error


def test_blkdebug_says_how_many_requests_there_were(img, files):
    assert requests(img("convert", "-O", "raw", "--image-opts", source("raw", 1000), "out")) > 0
    assert "warning" not in img.fails("convert", "-O", "raw", "--image-opts", source("raw", 1), "out").err
