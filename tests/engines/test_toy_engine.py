"""A new engine is one file and one row of the registry: every verb then runs it, without another edit."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import shvit

COMMANDS = """
import json, sys
from shvit.cli.main import main
for arguments in json.loads(sys.argv[1]):
    sys.argv = ["shvit", *arguments]
    try:
        main()
    except SystemExit as end:
        if end.code:
            raise
"""

WITHOUT_EDITABLE = """
import sys  # an editable installation of shvit comes before PYTHONPATH
sys.meta_path[:] = [finder for finder in sys.meta_path if not type(finder).__module__.startswith("_editable_")]
"""


@pytest.fixture
def package(tmp_path):
    """A copy of shvit with the engine toy."""
    copy = tmp_path / "package" / "shvit"
    shutil.copytree(Path(shvit.__file__).parent, copy, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(Path(__file__).with_name("toy.py"), copy / "engines")
    registry = copy / "engines" / "__init__.py"
    row = "register(TimmFormat)\n"
    text = registry.read_text(encoding="utf-8")
    assert text.count(row) == 1
    registry.write_text(text.replace(row, f"{row}from .toy import ToyEngine\nregister(ToyEngine)\n"), encoding="utf-8")
    (copy.parent / "sitecustomize.py").write_text(WITHOUT_EDITABLE)
    return copy.parent


@pytest.fixture
def data(tmp_path):
    """Four dark and four light pictures."""
    for name, level in (("dark", 40), ("light", 200)):
        for split in ("train", "val"):
            folder = tmp_path / "data" / split / name
            folder.mkdir(parents=True)
            for index in range(2):
                pixels = np.random.default_rng(index).integers(level - 30, level + 30, (40, 40, 3)).astype(np.uint8)
                Image.fromarray(pixels).save(folder / f"{index}.png")
    return tmp_path / "data"


def test_every_verb_runs_a_new_engine(package, data, tiny, tmp_path):
    model, exported = tmp_path / "tiny.safetensors", tmp_path / "tiny.toy"
    shvit.save(tiny, model)
    on_toy = ["--engine", "toy", "--device", "cpu"]
    few = ["--rounds", "1", "--batch-size", "1"]
    commands = [
        ["export", model, "--format", "toy", "--out", exported],
        ["eval", model, data, *on_toy, "--out", tmp_path / "toy"],
        ["eval", exported, data, "--out", tmp_path / "exported"],
        [
            "eval",
            model,
            data,
            "--engine",
            "torch",
            "--precision",
            "fp32",
            "--device",
            "cpu",
            "--out",
            tmp_path / "torch",
        ],
        ["predict", model, data / "val", *on_toy, "--out", tmp_path / "labels.csv"],
        ["bench", model, exported, *on_toy, *few, "--out", tmp_path / "bench.json"],
    ]
    texts = json.dumps([[str(part) for part in command] for command in commands])
    environment = {**os.environ, "PYTHONPATH": str(package), "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", COMMANDS, texts], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    parity = json.loads((tmp_path / "tiny.toy.parity.json").read_text())
    assert (parity["engine"], parity["ran"]) == ("toy", True)
    metrics = [json.loads((tmp_path / name / "metrics.json").read_text()) for name in ("toy", "exported", "torch")]
    assert metrics[0]["top1"] == metrics[1]["top1"] == metrics[2]["top1"]
    assert len((tmp_path / "labels.csv").read_text().splitlines()) == 1 + 4
    rows = json.loads((tmp_path / "bench.json").read_text())["rows"]
    assert [(Path(row["model"]).suffix, row["engine"]) for row in rows] == [(".safetensors", "toy"), (".toy", "toy")]
