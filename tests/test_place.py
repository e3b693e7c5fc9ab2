"""An export is moved to its target completely or not at all, at whatever step the process crashes."""

import subprocess
import sys
from itertools import count

import pytest

from shvit.errors import InputError
from shvit.files import place

CRASH = """
import os, sys
from pathlib import Path
from shvit.files import place

left = int(sys.argv[3])
def watch(event, arguments):
    global left
    if event in ("os.rename", "os.remove", "os.rmdir", "shutil.rmtree"):
        if left == 0:
            os._exit(9)
        left -= 1
sys.addaudithook(watch)
place(Path(sys.argv[1]), Path(sys.argv[2]))
"""


def crashed(export, target, steps):
    """Whether the process was killed before this change of the folder."""
    done = subprocess.run([sys.executable, "-c", CRASH, export, target, str(steps)], capture_output=True, text=True)
    assert done.returncode in (0, 9), done.stderr
    return done.returncode == 9


def write_pair(folder, which):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "m.xml").write_text(which)
    (folder / "m.bin").write_text(which)
    return folder / "m.xml"


def write_package(folder, which):
    (folder / "m.mlpackage" / "Data").mkdir(parents=True)
    (folder / "m.mlpackage" / "Manifest.json").write_text(which)
    (folder / "m.mlpackage" / "Data" / "weight.bin").write_text(which)
    return folder / "m.mlpackage"


def write_file(folder, which):
    folder.mkdir(parents=True)
    (folder / "m.pt2").write_text(which)
    return folder / "m.pt2"


def write_web(folder, which):
    (folder / "m.web" / "ort").mkdir(parents=True)
    for name in ("index.html", "model.onnx", "ort/runtime.wasm"):
        (folder / "m.web" / name).write_text(which)
    return folder / "m.web"


def contents(target):
    """The contents of the files that a reader of the export finds; none if there is no export."""
    if not target.exists():
        return set()
    if target.is_dir():
        return {part.read_text() for part in target.rglob("*") if part.is_file()}
    beside = target.with_suffix(".bin")
    return {part.read_text() for part in (target, beside) if part.exists()}


@pytest.mark.parametrize("write", [write_pair, write_package, write_web, write_file])
def test_a_crash_leaves_no_half_export(write, tmp_path):
    for steps in count():
        target = write(tmp_path / f"{steps}" / "out", "old")
        new = write(tmp_path / f"{steps}" / "new", "new")
        ended = crashed(new, target, steps)
        assert contents(target) in ({"new"}, *([{"old"}, set()] if ended else []))
        place(write(tmp_path / f"{steps}" / "newer", "newer"), target)
        assert contents(target) == {"newer"}
        assert not [path for path in target.parent.iterdir() if path.name.startswith(".")]
        if not ended:
            break
    assert steps > 0


def test_other_kinds_are_never_replaced(tmp_path):
    folder = tmp_path / "m.pt2"
    folder.mkdir()
    (folder / "mine").write_text("x")
    with pytest.raises(InputError, match=r"m\.pt2 is a folder, but the export is a file: give another --out"):
        place(write_file(tmp_path / "new", "new"), folder)
    assert (folder / "mine").read_text() == "x"
    (tmp_path / "m.mlpackage").write_text("x")
    with pytest.raises(InputError, match=r"m\.mlpackage is a file, but the export is a folder: give another --out"):
        place(write_package(tmp_path / "more", "new"), tmp_path / "m.mlpackage")
