"""Every image of the corpus, through every command that reads: it does what its row says, in time, in
little memory, and touches and tells nothing of the world outside."""

import os
import re
import shutil
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from corpus import ATTACKS  # noqa: E402  (needs the path above)
from table import OK, SECRET, Code, Refused  # noqa: E402

CONTROL = re.compile(rb"[\x00-\x08\x0b-\x1f\x7f]")


@pytest.fixture
def outside(tmp_path, monkeypatch):
    """A folder beside the working directory, with the secret; it must stay as it is."""
    folder = tmp_path / "outside"
    folder.mkdir()
    (folder / "secret").write_bytes(SECRET)
    monkeypatch.setenv("PLATTER_SECRET", SECRET.decode().strip())
    monkeypatch.delenv("PLATTER_FOLLOW", raising=False)
    before = listing(folder)
    yield folder / "secret"
    assert listing(folder) == before, "something outside the working directory was changed"


def listing(folder):
    """Names, kinds, sizes and times of what is in a folder; the time of reading does not count."""
    return {path.name: (s.st_mode, s.st_ino, s.st_size, s.st_mtime_ns, s.st_ctime_ns)
            for path in folder.iterdir() for s in [path.lstat()]}


def tells_nothing(result, *files):
    """Neither the answers nor the files hold the secret, and messages leave the terminal alone."""
    secret = SECRET.strip()
    texts = [result.out, result.err.encode(errors="surrogateescape")]
    for text in texts + [Path(file).read_bytes() for file in files]:
        assert secret not in text, f"the secret got out\n{result.argv}"
    # What info prints for people is quoted as it is, as qemu-img does.
    for text in texts[1:] if "info" in result.argv else texts:
        assert not CONTROL.search(text), f"control characters in an answer: {text[:400]!r}"


def run(img, attack, command, expected, *argv, file_size=None, files=()):
    """Runs a command within the attack's limits and compares its end with what is expected."""
    result = img(command, *attack.options, *argv, code=None, timeout=attack.seconds,
                 memory=attack.memory, file_size=file_size, text=False, cwd="work")
    tells_nothing(result, *[file for file in files if os.path.exists(file)])
    assert result.code in (0, 1, 2, 3, 4, 63), result
    if isinstance(expected, Refused):
        assert result.code != 0, f"not refused: {result!r}"
        text = " ".join(result.err.split())
        assert text, f"refused without a word: {result.argv}"
        for word in expected.words:
            assert word in text, f"{word!r} is missing in: {text}"
    elif isinstance(expected, Code):
        assert result.code in expected.codes, f"expected {expected}: {result.argv}\n{result.err}"
    if result.code:
        assert result.err.strip() or command in ("check", "compare"), "failed without a word"
    return result


@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: attack.name)
def test_attack(img, tmp, outside, attack):
    Path("work").mkdir()
    image = attack.make(Path("work"), outside)
    before = listing(Path("work"))
    no_file = attack.written

    run(img, attack, "info", attack.info, "--output=json", image, file_size=no_file)
    run(img, attack, "info", attack.info, image, file_size=no_file)
    run(img, attack, "info", None, "--backing-chain", image, file_size=no_file)
    if attack.format != "raw":
        run(img, attack, "check", attack.check, image, file_size=no_file)
    run(img, attack, "map", attack.map_expected, "--output=json", image, file_size=no_file)
    out = Path("out.raw")
    run(img, attack, "convert", attack.convert, "-O", "raw", image, "../out.raw",
        file_size=no_file, files=[out])
    if isinstance(attack.convert, Refused):
        assert not out.exists(), "a refused image left an output"
    if attack.content and attack.convert is OK:
        content = attack.content()
        assert out.read_bytes() == content, "it reads as something else"
        run(img, attack, "compare", OK, "-F", "raw", image, "../out.raw", file_size=no_file)
    out.write_bytes(b"\1" * 512)
    run(img, attack, "compare", Code(1, 2, 3, 4), "-F", "raw", image, "../out.raw",
        file_size=no_file)
    assert listing(Path("work")) == before, "reading changed something beside the image"


WRITES = [["check", "-r", "all"], ["resize"], ["convert", "-n", "-f", "raw", "-O"]]
MAGIC = {"qcow2": (0, b"QFI\xfb"), "vdi": (0x40, b"\x7f\x10\xda\xbe"), "vpc": (512, b"cxsparse")}


@pytest.mark.parametrize("attack", [a for a in ATTACKS if a.format in MAGIC
                                    and not a.name.startswith(("chain-", "huge-", "snapshots-"))],
                         ids=lambda attack: attack.name)
def test_attack_by_writing(img, tmp, outside, attack):
    """Repaired, resized, written to: nothing but the image itself changes, and it stays an image."""
    for number, argv in enumerate(WRITES):
        work = Path(f"work{number}")
        work.mkdir()
        image = attack.make(work, outside)
        before = listing(work)
        del before[image]
        before.pop("d.raw", None)      # a data file is the image's own
        made = (work / image).read_bytes()
        (work / "new.raw").write_bytes(b"\2" * 65536)
        args = {"check": [*attack.options, image], "resize": [*attack.options, image, "+1M"],
                "convert": [attack.format, "new.raw", image]}[argv[0]]
        result = img(*argv, *args, code=(0, 1, 2, 3, 63), timeout=attack.seconds,
                     memory=attack.memory, file_size=256 << 20, text=False, cwd=work)
        os.unlink(work / "new.raw")
        tells_nothing(result, work / image)
        after = listing(work)
        after.pop(image)
        after.pop("d.raw", None)
        assert after == before, f"{argv} changed something beside the image"
        at, magic = MAGIC[attack.format]
        if made[at:at + len(magic)] == magic:
            assert (work / image).read_bytes()[at:at + len(magic)] == magic
        shutil.rmtree(work)


@pytest.mark.parametrize("name", ["compressed-everything", "reserved-bits", "data-on-metadata"])
def test_freeing_never_punches_metadata(img, tmp, outside, name):
    """Zeroed and discarded through such entries, the header was freed, and a hole made in its place."""
    attack = next(attack for attack in ATTACKS if attack.name == name)
    image = attack.make(tmp, outside)
    header = Path(image).read_bytes()[:4096]
    Path("zero.raw").write_bytes(bytes(1 << 20))
    img("convert", "-n", "-f", "raw", "-O", "qcow2", "zero.raw", image, code=(0, 1))
    after = Path(image).read_bytes()[:4096]
    # but for the incompatible bit that says "corrupt"
    assert after[:72] + after[80:] == header[:72] + header[80:]


@pytest.mark.parametrize("policy, code", [("none", 1), ("local", 0), ("any", 0)])
def test_follow_local(img, tmp, policy, code):
    """A plain name is followed but with none; the environment says the same as the option."""
    from qcow2build import Image
    Path("b.raw").write_bytes(b"\x33" * 4096)
    Image(backing="b.raw", backing_format="raw", data=False, size=4096).save(tmp)
    result = img(f"--follow={policy}", "convert", "-O", "raw", "a.qcow2", "out.raw", code=code)
    if code:
        assert "--follow" in result.err and "b.raw" in result.err
    else:
        assert Path("out.raw").read_bytes() == b"\x33" * 4096
    os.environ["PLATTER_FOLLOW"] = policy
    try:
        img("map", "a.qcow2", code=code)
        img("map", "--follow=local", "a.qcow2")
    finally:
        del os.environ["PLATTER_FOLLOW"]


@pytest.mark.parametrize("policy, code", [("none", 1), ("local", 1), ("any", 0)])
def test_follow_json(img, tmp, policy, code):
    from qcow2build import Image
    Path("b.raw").write_bytes(b"\x33" * 4096)
    Image(backing='json:{"driver":"raw","file":{"driver":"file","filename":"b.raw"}}', data=False,
          size=4096).save(tmp)
    result = img("convert", f"--follow={policy}", "-O", "raw", "a.qcow2", "out.raw", code=code)
    if code:
        assert "--follow" in result.err and len(result.err.strip().splitlines()) == 1
    else:
        assert Path("out.raw").read_bytes() == b"\x33" * 4096


def test_follow_is_the_users_when_he_names_it(img, tmp):
    """What stands on the command line is the user's own word: no policy touches it."""
    from qcow2build import Image
    Path("b.raw").write_bytes(b"\x33" * 4096)
    Image(backing="b.raw", backing_format="raw", data=False, size=4096).save(tmp)
    name = 'json:{"driver":"qcow2","file":{"driver":"file","filename":"a.qcow2"},' \
           '"backing":{"driver":"raw","file":{"driver":"file","filename":"b.raw"}}}'
    img("convert", "--follow=none", "-O", "raw", name, "out.raw")
    assert Path("out.raw").read_bytes() == b"\x33" * 4096


def test_a_stated_format_is_never_probed(img, tmp):
    """Stated, an unknown format is an error and not a reason to guess."""
    from qcow2build import Image
    Path("b.raw").write_bytes(b"\x33" * 4096)
    Image(backing="b.raw", backing_format="nonsense", data=False, size=4096).save(tmp)
    assert "nonsense" in img.fails("convert", "-O", "raw", "a.qcow2", "out.raw").err
