"""Power cuts in the middle of what img does.

The command runs over blklogwrites. Then the image is built anew as it may have been at points of the run. Every
such image must check with leaks at most, hold what the command was not to change, and once the
last flush is through, all that it promised.

POWERCUT_POINTS in the environment tries more than about 5 points of each run, POWERCUT_SEED others.
"""

import os
import random
import shutil
from pathlib import Path

import pytest

from faults import FOREIGN, WRITERS, content, make_images, make_target, restore, snapshot
from powerlog import FLUSH, VARIANTS, cut, last_flush, read_log

POINTS = int(os.environ.get("POWERCUT_POINTS", 5))
SEED = int(os.environ.get("POWERCUT_SEED", 1))


def logged(target, form):
    """A description of the image with all writes going to the file log."""
    return f"driver={form},file.driver=blklogwrites,file.log.driver=file,file.log.filename=log," \
        f"file.file.filename={target}"


def corruptions(img, name):
    """What a check says: found damage, leaks apart."""
    report = img("check", "--output=json", name, code=(0, 2, 3)).json
    return report.get("corruptions", 0)


def chosen(rng, log):
    """The points to cut at: evenly spread, the first and the last among them, and those around the last flush."""
    step = max(1, len(log) // POINTS)
    ends = {0, len(log), last_flush(log), last_flush(log) - 1}
    return sorted(ends | set(range(rng.randrange(step), len(log), step)))


class Run:
    """A command that has gone over blklogwrites, and the judgement of the images it may have left."""

    def __init__(self, img, qemu_img, writer):
        self.img, self.qemu_img = img, qemu_img
        self.name, self.form, start, self.args = WRITERS[writer]
        make_target(self.name, start, qemu_img)
        self.mending, self.resizing = self.args[0] == "check", self.args[0] == "resize"
        self.before = Path(self.name).read_bytes()
        self.old = None if self.mending else content(img, self.name, self.form)
        self.damage = corruptions(img, self.name) if self.mending else 0
        Path("log").touch()
        img(*[word.replace("TARGET", logged(self.name, self.form)) for word in self.args])
        self.size = Path(self.name).stat().st_size
        self.right = content(img, self.name, self.form)
        self.log = read_log("log")
        assert any(entry.flags & FLUSH for entry in self.log), "nothing was ever flushed"

    def check(self, foreign):
        if self.form == "raw":
            return
        if self.mending:
            assert corruptions(self.img, "cut") <= self.damage, "worse than before"
            assert content(self.img, "cut", self.form) == self.right, "another content"
            self.img("check", "-q", "-r", "all", "cut")
        elif self.args[0] == "snapshot" and self.img("info", "--output=json", "cut").json["dirty-flag"]:
            # Marked, and so to be brought into line by whoever writes next.
            self.img("check", "-q", "-r", "all", "cut")
        self.img("check", "-q", "-f", self.form, "cut", code=(0, 3))
        if foreign:
            self.qemu_img("check", "-q", "-f", self.form, "cut", code=FOREIGN[self.form])

    def judge(self, at, variant, rng):
        image = cut(self.before, self.log, at, variant, rng)
        if self.resizing and any(entry.flags & FLUSH for entry in self.log[:at]):
            # The log has no word for a file that was made longer; resize does that before all else.
            image.extend(bytes(max(0, self.size - len(image))))
        Path("cut").write_bytes(image)
        self.check(foreign=variant in ("dropped", "torn"))
        if self.mending:
            return
        holds = content(self.img, "cut", self.form)
        if at >= last_flush(self.log):
            assert holds[:len(self.right)] == self.right, "what was flushed at the end is not there"
        elif self.resizing:
            both = min(len(self.old), len(self.right))
            assert holds[:both] == self.old[:both], "guest data was lost"
        else:
            blocks = range(0, len(self.right), 512)
            assert all(holds[b:b + 512] in (self.old[b:b + 512], self.right[b:b + 512], bytes(512))
                       for b in blocks), "a block is neither the old nor the new one"


@pytest.fixture
def images(tmp, qemu_img, qemu_io):
    make_images(random.Random(SEED), qemu_img, qemu_io)
    return snapshot()


# bench writes on until its end and promises nothing.
@pytest.mark.parametrize("writer", [name for name in WRITERS if not name.startswith("bench")])
def test_power_cut(img, qemu_img, images, tally, writer):
    rng = random.Random(f"{SEED} {writer}")
    run = Run(img, qemu_img, writer)
    failures = []
    for at in chosen(rng, run.log):
        for variant in VARIANTS:
            tally["points"] += 1
            try:
                run.judge(at, variant, rng)
            except AssertionError as failure:
                tally["failures"] += 1
                failures.append(f"cut after entry {at} of {len(run.log)}, {variant}: {failure}")
                if len(failures) == 1 and os.environ.get("POWERCUT_KEEP"):
                    shutil.copy("cut", os.environ["POWERCUT_KEEP"])
    assert not failures, f"{len(failures)} failures\n" + "\n".join(failures[:5])
