"""Whatever the encoding of the console: nothing that is printed there fails."""

import io
import json
import os
import subprocess
import sys

import pytest
from rich.console import Console

from shvit.bench.report import watching
from shvit.console import as_json, say, show_table, takes_all
from shvit.train.progress import Reporter


@pytest.mark.parametrize(
    ("encoding", "written"), [("ascii", "a - b x ... \\xe9 \\U0001f98a"), ("latin-1", "a · b × ... é \\U0001f98a")]
)
def test_signs_that_an_encoding_lacks(encoding, written):
    stream = io.TextIOWrapper(io.BytesIO(), encoding)
    takes_all(stream)
    stream.write("a · b × … é \U0001f98a")
    stream.flush()
    assert stream.buffer.getvalue().decode(encoding) == written


def test_names_of_files_that_are_no_utf8():
    stream = io.TextIOWrapper(io.BytesIO(), "utf-8")
    takes_all(stream)
    stream.write("a\udcff.png")
    stream.flush()
    assert stream.buffer.getvalue() == rb"a\udcff.png"


def test_a_reporter_takes_any_console():
    stream = io.TextIOWrapper(io.BytesIO(), "ascii")
    reporter = Reporter(Console(file=stream))
    say(reporter.console, "epoch 1/2 · loss 0.1")
    assert stream.buffer.getvalue() == b"epoch 1/2 - loss 0.1\n"


def test_json_keeps_its_meaning():
    text = as_json({"class": "é"}, "ascii")
    assert text.isascii()
    assert json.loads(text) == {"class": "é"}


def shvit(*arguments):
    command = [sys.executable, "-m", "shvit", *map(str, arguments)]
    variables = {**os.environ, "PYTHONIOENCODING": "ascii", "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, env=variables, capture_output=True, timeout=300)


def test_help_on_an_ascii_console():
    done = shvit("train", "--help")
    assert done.returncode == 0, done.stderr
    assert b"<class>/..." in done.stdout


def test_training_on_an_ascii_console(folder, tmp_path):
    flags = [
        "--model",
        "shvit_s1",
        "--epochs",
        1,
        "--image-size",
        32,
        "--batch-size",
        20,
        "--workers",
        0,
        "--device",
        "cpu",
    ]
    done = shvit("train", folder, "--out", tmp_path / "run", *flags)
    assert done.returncode == 0, done.stderr
    assert b"epoch 1/1 - training loss" in done.stdout
    assert (tmp_path / "run" / "best.safetensors").exists()


def test_what_a_terminal_obeys_is_shown_escaped():
    stream = io.StringIO()
    console = Console(file=stream, force_terminal=True, no_color=True, width=80)
    name = "a\x1b[31m\x9b\u202e\n\udcff"
    say(console, name)
    show_table(console, ["name", "n"], [[name, "1"], ["b", "22"]])
    with watching(console) as progress:
        progress(f"{name}[bold]", 1, 2)
    assert r"a\x1b[31m\x9b\u202e\n\udcff[bold]" in stream.getvalue()
    lines = stream.getvalue().splitlines()
    assert lines[0] == r"a\x1b[31m\x9b\u202e\n\udcff"
    assert lines[2:4] == [r"a\x1b[31m\x9b\u202e\n\udcff   1", f"b{' ' * 28}22"]
    assert not {"\x9b", "\u202e", "\udcff"} & set(stream.getvalue())


def test_json_on_a_terminal_holds_no_escapes():
    text = as_json({"class": "\x1b\x7f\x9b\u202e\udcff é\n"})
    assert json.loads(text) == {"class": "\x1b\x7f\x9b\u202e\udcff é\n"}
    assert not {"\x1b", "\x7f", "\x9b", "\u202e", "\udcff"} & set(text)
    assert "é" in text
