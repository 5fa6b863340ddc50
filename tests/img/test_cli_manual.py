"""The manual, the help, the completion and what the program accepts agree."""

import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
MANUAL = ROOT / "docs" / "man" / "img.1"
COMPLETION = ROOT / "docs" / "completion" / "img"
COMMANDS = ["amend", "bench", "chain", "check", "commit", "compare", "convert", "create", "dd", "info",
            "map", "measure", "mount", "mounts", "partitions", "rebase", "resize", "umount"]


def help_options(img, command):
    """{(letter or None, name or None, value or None)} of the help."""
    text = img("help", command).out
    rows = set()
    for line in text[text.index("Options:"):text.index("Exit codes:")].splitlines():
        match = re.match(r"  (?:-(\w))?(?:, )?(?:--([\w-]+))?(?:\[?[= ](\w+)\]?)?(?:  |$)", line)
        if line.startswith("  -") and match:
            rows.add(match.groups())
    return rows


def manual_options(command):
    text = MANUAL.read_text()
    section = re.search(rf"\n\.Ss {command}\n(.*?)\n\.S[sh] ", text, re.S).group(1)
    rows = set()
    for line in section.splitlines():
        match = re.match(r"\.It (?:Fl (\w)(?: , |$))?(?:Fl -([\w-]+))?"
                         r"(?: Ns (?:Op )?=(?: Ns)? Ar (\w+))?$", line)
        if line.startswith(".It Fl"):
            assert match, line
            rows.add(match.groups())
    return rows


@pytest.mark.parametrize("command", COMMANDS)
def test_manual_and_help_list_the_same_options(img, command):
    ours = help_options(img, command)
    assert ours and ours == manual_options(command)


def test_the_page_of_mount_lists_its_options(img):
    text = (MANUAL.parent / "img-mount.1").read_text()
    names = {name for _, name, _ in help_options(img, "mount")}
    assert names == set(re.findall(r"^\.It .*Fl -([\w-]+)", text, re.M))


def test_manual_names_every_command(img):
    text = MANUAL.read_text()
    for command in re.findall(r"^  (\w+) ", img("help").out.split("Commands:")[1], re.M):
        assert re.search(rf"^\.Ss .*\b{command}\b", text, re.M), command


def test_manual_has_no_faults(need_tool):
    done = subprocess.run([need_tool("mandoc"), "-Tlint", "-Wwarning", MANUAL, MANUAL.parent / "img-mount.1"],
                          capture_output=True, text=True)
    faults = [line for line in done.stdout.splitlines() if "mandoc.db" not in line]
    assert not faults


@pytest.mark.parametrize("command", COMMANDS)
def test_every_option_is_accepted(img, tmp, command):
    """Each option of the help is known: the complaint is about something else."""
    values = {"FMT": "raw", "CACHE": "none", "OFMT": "human", "AIO": "threads", "HOW": "none",
              "WHAT": "leaks", "MODE": "off", "SIZE": "4k", "STEP": "4k", "OPTIONS": "size=1"}
    operands = ["x", "1M"] if command == "resize" else []
    for letter, name, value in help_options(img, command):
        value = value and values.get(value, "1")
        spellings = [[f"-{letter}"] + ([value] if value and name != "progress" else [])] if letter else []
        if name:
            spellings.append([f"--{name}={value}"] if value else [f"--{name}"])
        for args in spellings:
            err = img(command, *args, *operands, code=None).err
            assert "has no option" not in err and "needs a value" not in err, args


# As `qemu-img --help` of version 7.2 lists them.
QEMU_OPTIONS = {
    "amend": "--object x --image-opts -p -q -f F -t none --force -o x",
    "bench": "-c N -d N -f F --flush-interval=N -i threads -n --no-drain -o N --pattern=N -q -s N -S N "
             "-t none -w -U --image-opts",
    "check": "--object x --image-opts -q -f F --output=json -r all -T none -U --force-share",
    "commit": "--object x --image-opts -q -f F -t none -b x -r 1M -d -p",
    "compare": "--object x --image-opts -f F -F F -T none -p -q -s -U --force-share",
    "convert": "--object x --image-opts --target-image-opts --target-is-zero --bitmaps -U -C -c -p -q -n "
               "-f F -t none -T none -O F -B x -F F -o x -l x -S 4k -r 1M -m 1 -W --salvage "
               "--skip-broken-bitmaps --force-share",
    "create": "--object x -q -f F -b x -F F -u -o x",
    "dd": "--image-opts -U -f F -O F --force-share --object x",
    "info": "--object x --image-opts -f F --output=json --backing-chain -U --format=F --force-share",
    "map": "--object x --image-opts -f F --start-offset=0 --max-length=1 --output=json -U -s 0 -l 1 "
           "--force-share --format=F",
    "measure": "--output=json -O F -o x --size=1 --object x --image-opts -f F -l x -U --force-share",
    "rebase": "--object x --image-opts -U -q -f F -t none -T none -p -u -b x -F F --force-share",
    "resize": "--object x --image-opts -f F --preallocation=off -q --shrink",
}


@pytest.mark.parametrize("command", QEMU_OPTIONS)
def test_every_option_of_qemu_img_is_accepted(img, tmp, command):
    words = QEMU_OPTIONS[command].replace(" F", " raw").replace("=F", "=raw").replace(" N", " 1")
    err = img(command, *words.replace("=N", "=1").split(), code=None).err
    assert "has no option" not in err and "needs a value" not in err


def test_shortened_options(img, tmp):
    """As getopt_long has it: --output may be --out."""
    assert img("create", "--obj", "secret,id=a", "-f", "raw", "x", "1M")
    assert img("info", "--out=json", "x").json["format"] == "raw"


@pytest.mark.parametrize("args,word", [(["cretae"], "create"), (["info", "--outptu=json", "x"], "--output"),
                                       (["info", "-f", "qcow3", "x"], "qcow2"),
                                       (["dd", "iff=x", "of=y"], "if="),
                                       (["help", "covnert"], "convert")], ids=str)
def test_did_you_mean(img, tmp, args, word):
    assert f"did you mean '{word}" in img.fails(*args, code=1).err


@pytest.mark.parametrize("command", ["bitmap"])
def test_commands_to_come_say_so(img, tmp, command):
    err = img.fails(command, "-l", "x", code=1).err
    assert "not there yet" in err and len(err.splitlines()) == 1


def test_version(img):
    assert re.fullmatch(r"img \(Platter\) \d+\.\d+\.\d+\n", img("--version").out)
    assert img("-V").out == img("--version").out


# ---------------------------------------------------------------- completion

def complete(img, *words):
    """What the shell would offer for the last word."""
    script = f"source '{COMPLETION}'; compopt() {{ :; }}; COMP_WORDS=(\"$@\"); " \
             "COMP_CWORD=$(($# - 1)); _img; printf '%s\\n' \"${COMPREPLY[@]}\""
    done = subprocess.run(["bash", "-c", script, "bash", img.path, *words], capture_output=True,
                          text=True, check=True)
    return done.stdout.split()


@pytest.mark.parametrize("words,offers", [
    (["conv"], ["convert"]), (["convert", "--target-i"], ["--target-is-zero", "--target-image-opts"]),
    (["convert", "-O", "qc"], ["qcow2"]), (["convert", "-t", "w"], ["writeback", "writethrough"]),
    (["map", "--output", "=", "p"], ["picture"]), (["check", "-r", ""], ["leaks", "all"]),
    (["create", "-f", "qcow2", "-o", "lazy"], ["lazy_refcounts="]),
    (["create", "-f", "qcow2", "-o", "lazy_refcounts", "=", "on,cluster"],
     ["on,cluster_size="]),
    (["create", "-f", "qcow2", "-o", "lazy_refcounts", "=", ""], ["on", "off"]),
    (["convert", "-f", "raw", "-O", "qcow2", "-o", "compression"], ["compression_type="]),
    (["amend", "-f", "qcow2", "-o", "comp"], ["compat="]), (["dd", "se"], ["seek="]), (["dd", "conv", "=", "sp"], ["sparse"]),
    (["help", "comp"], ["compare"]), (["info", "a.r"], ["a.raw"]), (["dd", "if", "=", "a.r"], ["a.raw"])],
    ids=str)
def test_completion(img, tmp, words, offers):
    Path("a.raw").touch()
    assert complete(img, *words) == offers
