"""Files are written completely or not at all, and by one process at a time; cells are safe in spreadsheets."""

import errno
import subprocess
import sys

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from shvit.errors import Failure, InputError
from shvit.files import escaped, from_cell, locked, replacing, to_cell, unescaped, write_csv, writing

NAMES = st.text(st.sampled_from([*"\\ud8cf'=+-@1.\t\r\n", "\udcff", "\ud800", "é"]), max_size=12)


@given(NAMES)
def test_names_come_back(name):
    assert unescaped(escaped(name)) == name
    assert from_cell(to_cell(name)) == name
    to_cell(name).encode()


def test_names_that_are_not_utf8_are_escaped():
    assert escaped("é\udcff\\udcff\\n") == r"é\udcff\\udcff\n"


@pytest.mark.parametrize("begin", ["=", "+", "-", "@", "\t", "\r", "'="])
def test_formulas_are_quoted_and_numbers_are_not(begin):
    assert to_cell(f"{begin}cmd|' /C calc'!A0") == f"'{begin}cmd|' /C calc'!A0"
    assert to_cell(f"{begin}cmd", raw=True) == f"{begin}cmd"
    assert [to_cell(cell) for cell in ("-1.50", "+2e-3", -1.5, "a=b", "'quoted'")] == [
        "-1.50", "+2e-3", -1.5, "a=b", "'quoted'"
    ]  # fmt: skip


def test_a_table_of_such_cells(tmp_path):
    write_csv(tmp_path / "a.csv", ["=x"], [["b\udcff", -1], ["@x", 2]])
    assert (tmp_path / "a.csv").read_bytes() == b"'=x\r\nb\\udcff,-1\r\n'@x,2\r\n"


def test_a_lock_holds_for_other_processes_and_ends_with_its_process(tmp_path):
    code = (
        "import os, sys; from pathlib import Path; from shvit.files import locked\n"
        "with locked(Path(sys.argv[1]), 'taken'): print('held', flush=True); sys.stdin.read(1); os._exit(9)"
    )
    lock = tmp_path / ".lock"
    with subprocess.Popen(
        [sys.executable, "-c", code, lock], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout.readline() == "held\n"
        with pytest.raises(InputError, match="taken"), locked(lock, "taken"):
            pass
        other.communicate("x")
    with locked(lock, "taken"):
        pass
    assert not lock.exists()


@pytest.fixture
def small_files():
    """Limits files of this process to 100 kB, which has the effect of a full disk."""
    import resource

    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def torch_save(path):
    torch.save({"a": torch.zeros(100_000)}, path)


def safetensors(path):
    from safetensors.torch import save_file

    save_file({"a": torch.zeros(100_000)}, path)


@pytest.mark.parametrize("write", [torch_save, safetensors, lambda path: path.write_bytes(bytes(200_000))])
def test_a_full_disk_is_a_failure_whatever_the_library_says(tmp_path, small_files, write):
    (tmp_path / "a.bin").write_bytes(b"old")
    with (
        pytest.raises(Failure, match=f"no space left on {tmp_path} to write a.bin"),
        replacing(tmp_path / "a.bin") as t,
    ):
        write(t)
    assert [path.name for path in tmp_path.iterdir()] == ["a.bin"]
    assert (tmp_path / "a.bin").read_bytes() == b"old"


def test_other_errors_stay_as_they_are(tmp_path):
    with pytest.raises(RuntimeError, match="something else"), writing(tmp_path / "a"):
        raise RuntimeError("something else")
    with pytest.raises(OSError, match="denied"), writing(tmp_path / "a"):
        raise OSError(errno.EACCES, "denied")
