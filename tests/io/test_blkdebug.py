"""blkdebug against qemu-io's: the same rules and breakpoints, the same requests fail, stop and go on."""

import json
from pathlib import Path

import pytest

from iotools import as_qemu_io, both, commands, io  # noqa: F401  (fixtures)
from platter import KIB, MIB

# Config files, and what they are asked. Where the two formats' insides differ (what a qcow2 write touches
# when), only raw is compared; test_qcow2_events has the rest.
RAW_RULES = {
    "always, at one sector": ("""
[inject-error]
event = "none"
sector = "8"
errno = "5"
""", """
read 0 4k
read 4k 512
read 0 8k
write 4k 1
write 5k 512
read 4k 512
"""),
    "once": ("""
# a comment
[inject-error]
event = "read_aio"
errno = "28"
once = "on"

[inject-error "another"]
event = "write_aio"
errno = "1"
once = "on"
""", """
read 0 512
read 0 512
write 0 512
write 0 512
"""),
    "a state machine": ("""
[set-state]
state = "1"
event = "read_aio"
new_state = "2"

[set-state]
state = "2"
event = "write_aio"
new_state = "3"

[inject-error]
state = "3"
event = "read_aio"
iotype = "read"
errno = "13"
once = "off"

[set-state]
state = "3"
event = "write_aio"
new_state = "1"
""", """
write 0 512
read 0 512
read 0 512
write 0 512
read 0 512
read 0 512
write 0 512
read 0 512
read 0 512
"""),
    "by kind of request": ("""
[inject-error]
event = "none"
iotype = "write"
errno = "5"
once = "on"

[inject-error]
event = "none"
iotype = "write-zeroes"
errno = "28"
once = "on"

[inject-error]
event = "none"
iotype = "read"
sector = "100"
errno = "22"
""", """
write -z 0 64k
write -z 0 64k
write 0 512
write 0 512
read 0 64k
read 0 512
"""),
    "an event calls off what another called up": ("""
[inject-error]
event = "none"
sector = "8"
iotype = "read"
errno = "5"

[inject-error]
event = "write_aio"
sector = "1000"
errno = "28"
""", """
read 4k 512
write 0 512
read 4k 512
write 500k 1k
"""),
    "around a write": ("""
[inject-error]
event = "pwritev"
errno = "28"
once = "on"

[inject-error]
event = "pwritev_done"
iotype = "read"
errno = "5"
once = "on"
""", """
write 0 512
write 0 512
read 0 512
read 0 512
"""),
}

BREAKS = {
    "a write": """
break pwritev A
aio_write -P 1 0 512
wait_break A
resume A
aio_flush
read -P 1 0 512
""",
    "a write that is done": """
break pwritev_done A
aio_write -P 1 0 512
wait_break A
read -P 1 1k 512
resume A
aio_flush
""",
    "a zero": """
break pwritev_zero A
aio_write -z 0 64k
wait_break A
resume A
aio_flush
""",
    "a read": """
break read_aio A
aio_read 0 512
wait_break A
resume A
resume A
aio_flush
""",
    "two of one tag": """
break pwritev A
break pwritev_done A
aio_write 0 512
wait_break A
resume A
wait_break A
resume A
aio_flush
""",
    "others pass the one that is held": """
break pwritev A
aio_write -P 1 0 512
wait_break A
write -P 2 64k 512
read -P 2 64k 512
resume A
aio_flush
""",
    "removing one that holds": """
break pwritev A
aio_write 0 512
wait_break A
remove_break A
aio_flush
""",
    "removing one that holds and one that waits": """
break pwritev A
break read_aio A
aio_write 0 512
wait_break A
remove_break A
aio_flush
read 0 512
""",
    "removing all of a tag": """
break pwritev A
break read_aio A
break write_aio B
remove_break A
read 0 512
remove_break A
remove_break B
write 0 512
""",
    "unknown names": """
resume X
remove_break X
break nonsense A
""",
}


@pytest.fixture
def raw(tmp):
    """4 MiB of nothing."""
    with open("a.raw", "wb") as file:
        file.truncate(4 * MIB)


@pytest.mark.parametrize("name", RAW_RULES)
def test_rules(raw, both, name):
    config, script = RAW_RULES[name]
    Path("rules").write_text(config)
    both("-f", "raw", "blkdebug:rules:a.raw", *commands(script))


@pytest.mark.parametrize("name", RAW_RULES)
def test_rules_in_json(raw, both, name):
    """The same file, named in an option."""
    config, script = RAW_RULES[name]
    Path("rules").write_text(config)
    both('json:{"driver": "raw", "file": {"driver": "blkdebug", "config": "rules", '
         '"image": {"driver": "file", "filename": "a.raw"}}}', *commands(script))


@pytest.mark.parametrize("name", BREAKS)
def test_breakpoints(raw, both, name):
    both("-f", "raw", "blkdebug::a.raw", *commands(BREAKS[name]))


@pytest.mark.parametrize("event", ["pwritev_rmw_head", "pwritev_rmw_after_head",
                                   "pwritev_rmw_tail", "pwritev_rmw_after_tail"])
def test_parts_of_a_block(raw, both, event):
    """A write that begins and ends within blocks stops where it reads the rest of them."""
    script = f"break {event} A\naio_write -P 5 1000 8000\nwait_break A\nresume A\naio_flush\n" \
             "read -P 5 1000 8000\nread -P 0 0 1000\nread -P 0 9000 1000"
    both("--image-opts", "driver=raw,file.driver=blkdebug,file.align=4096,"
         "file.image.driver=file,file.image.filename=a.raw", *commands(script))


# qemu-io names what failed by the request, and the events of a qcow2's insides come when its caches say: compared is
# that the same requests fail.
QCOW2 = {
    "l2_load": "read 0 512\nread 0 512",
    "write_aio": "write 0 64k\nwrite 0 64k\nread 0 64k",
    "read_aio": "read 0 512\nread 0 512",
    "read_backing_aio": "read 3M 512\nread 3M 512",
    "cow_read": "write 3M 512\nwrite 3M 512",
}


@pytest.mark.parametrize("event", QCOW2)
def test_qcow2_events(tmp, qemu_img, both, qemu_io, event):
    """An error at a point of qcow2's work, once: the request fails, the next one does not."""
    qemu_img("create", "-f", "qcow2", "base", "4M")
    qemu_io("-f", "qcow2", "-c", "write -P 7 2M 2M", "base")
    qemu_img("create", "-f", "qcow2", "-b", "base", "-F", "qcow2", "top", "4M")
    qemu_io("-f", "qcow2", "-c", "write -P 1 0 64k", "top")
    Path("rules").write_text(f'[inject-error]\nevent = "{event}"\nerrno = "5"\nonce = "on"\n'
                             f'iotype = "{"write" if event == "write_aio" else "read"}"\n')
    both("--image-opts", "driver=qcow2,file.driver=blkdebug,file.config=rules,"
         "file.image.driver=file,file.image.filename=top", *commands(QCOW2[event]))


NAMES = ["blkdebug::a.raw", "blkdebug::./a.raw", "blkdebug::blkdebug::a.raw",
         "blkdebug::file:a.raw", "blkdebug::null-co://", "null-co://", "null-aio://",
         'blkdebug::json:{"driver": "null-co", "size": 65536}',
         "blkverify:a.raw:a.qcow2"]


@pytest.mark.parametrize("name", NAMES)
def test_file_names(raw, qemu_img, both, name):
    qemu_img("create", "-f", "qcow2", "a.qcow2", "4M")
    both("-f", "raw", name, *commands("length\nwrite 0 512\nflush"))


@pytest.mark.parametrize("name", ["null-co:", "null-co://x", "blkdebug:a.raw", "blkdebug::none",
                                  "blkdebug:none:a.raw", "blkverify:a.raw", "blkverify::a.raw",
                                  "blklogwrites:a.raw:a.raw", "blkdebug::blkdebug:", "blkdebug:"])
def test_file_names_refused(raw, both, name):
    ours, theirs = both("-f", "raw", name, "-c", "length", err=False)
    assert ours.code == 1 and theirs.code == 1


def test_a_protocol_is_no_part_of_a_plain_filename_option(raw, both):
    """file.filename is taken as it is."""
    both("--image-opts", "driver=raw,file.filename=blkdebug::a.raw", "-c", "length", err=False)


def test_alignment_is_what_it_says(raw, both):
    both("--image-opts", "driver=raw,file.driver=blkdebug,file.align=4096,file.max-transfer=64k,"
         "file.image.driver=file,file.image.filename=a.raw",
         *commands(f"write -P 3 512 {200 * KIB}\nread -P 3 512 {200 * KIB}\nread -P 0 0 512"))


# ---------------------------------------------------------------- caches

def l2_reads_fail_after_a_while(io, image, options):
    """Reads a place, waits, and reads it again when an L2 table can no longer be read."""
    description = {
        "driver": "qcow2", **options,
        "file": {"driver": "blkdebug", "image": {"driver": "file", "filename": image},
                 "set-state": [{"event": "l2_load", "state": 1, "new_state": 2}],
                 "inject-error": [{"event": "l2_load", "state": 2, "errno": 5, "once": False}]}}
    return io("-c", "read 0 64k", "-c", "sleep 2300", "-c", "read 0 64k",
                "json:" + json.dumps(description), code=None)


def test_unused_tables_leave_memory(io, img, tmp):
    """Only where cache-clean-interval says so."""
    img("create", "-f", "qcow2", "a.qcow2", "1G")
    io("-c", "write 0 64k", "a.qcow2")
    assert "error" not in (out := l2_reads_fail_after_a_while(io, "a.qcow2", {})).out + out.err
    out = l2_reads_fail_after_a_while(io, "a.qcow2", {"cache-clean-interval": 1})
    assert "read failed: Input/output error" in out.out + out.err
