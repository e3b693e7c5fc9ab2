"""`shvit bench` as its users type it."""

import json
import subprocess
import sys
from functools import partial

import pytest
from PIL import Image

import shvit


@pytest.fixture
def run(run):
    """Runs `shvit bench ARGUMENTS`."""
    return partial(run, "bench")


def test_json_table_file_and_figure(run, quick_machine, tiny, tmp_path):
    shvit.save(tiny, tmp_path / "tiny.safetensors")
    flags = ["--engine", "torch", "--precision", "fp32", "--batch-size", 1, 2, "--image-size", 32, "--image-size", 64]
    more = ["--threads", 1, "--device", "cpu", "--rounds", 1, "--out", tmp_path, "--plot", tmp_path / "figure.png"]
    code, out, err = run(tmp_path / "tiny.safetensors", *flags, *more, "--json")
    assert code == 0
    document = json.loads(out)
    configurations = [(row["batch_size"], row["image_size"]) for row in document["rows"]]
    assert configurations == [(1, 32), (2, 32), (1, 64), (2, 64)]
    assert "in every row: engine torch, precision fp32" in err
    [written] = tmp_path.glob("bench_*.json")
    assert json.loads(written.read_text()) == document
    with Image.open(tmp_path / "figure.png") as image:
        image.verify()


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["shvit_s9"], "did you mean"),
        (["timm/no_such_network"], "timm has no model"),
        (["shvit_s1", "--engine", "abacus"], "available here:"),
        (["shvit_s1", "--precision", "fp4"], "available here:"),
        (
            ["shvit_s1", "--protocol", "paper-cpu", "--threads", "4"],
            "--protocol paper-cpu already sets --threads: remove --threads",
        ),
        (["shvit_s1", "--protocol", "paper"], "choose from paper-cpu, paper-onnx, paper-gpu"),
        (["shvit_s1", "--batch-size", "0"], "batch_size must be at least 1"),
        (["shvit_s1", "--plot", "a.pdf"], "--plot must end in .png"),
        (["no/such/file.safetensors"], "no such file"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_wrong_input_is_one_line(run, arguments, reason):
    code, out, err = run(*arguments)
    assert (code, out) == (2, "")
    assert reason in err
    assert len(err.strip().splitlines()) == 1


def test_help_is_instant():
    code = """
import sys
sys.argv = ["shvit", "bench", "--help"]
from shvit.cli.main import main
try:
    main()
finally:
    assert not {"torch", "numpy", "matplotlib"} & set(sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for flag in (
        "MODELS",
        "--engine",
        "--precision",
        "--batch-size",
        "--threads",
        "--image-size",
        "--protocol",
        "--plot",
    ):
        assert flag in done.stdout
