"""Names of files and classes that are not UTF-8, or contain terminal escapes, in every verb."""

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import shvit
from conftest import write_pictures
from shvit.console import visible
from shvit.data.sources import open_source
from shvit.files import from_cell, unescaped
from shvit.modelfile import ModelFile

DARK, LIGHT = os.fsdecode(b"dark\xff"), "light\x1b[31m"


@pytest.fixture
def strange(tmp_path):
    root = tmp_path / os.fsdecode(b"images\xfe")
    for name, shade in ((DARK, 60), (LIGHT, 190)):
        write_pictures(root / "train" / name, shade, 10)
        write_pictures(root / "val" / name, shade, 4, first=100)
        (root / "val" / name / os.fsdecode(b"broken\xff.png")).write_text("no image")
        (root / "val" / name / "100.png").rename(root / "val" / name / os.fsdecode(b"one\xff.png"))
    return root


@pytest.fixture
def model(tiny, tmp_path):
    path = tmp_path / os.fsdecode(b"tiny\xff.safetensors")
    shvit.save(ModelFile(tiny.model, (DARK, LIGHT), tiny.preprocess), path)
    return path


def done(outcome):
    """The stdout of a command that succeeded and wrote no terminal escapes."""
    code, out, err = outcome
    assert code == 0, err
    assert visible(out + err).replace("\\n", "\n") == out + err
    return out


def test_names_that_are_not_utf8_are_used_everywhere(run, strange, model, tmp_path):
    assert r"dark\udcff" in done(run("info", strange))
    assert json.loads(done(run("info", strange, "--json")))["classes"][0]["name"] == DARK
    assert json.loads(done(run("info", model, "--json")))["file"]["classes"] == [DARK, LIGHT]
    out = tmp_path / os.fsdecode(b"run\xff")
    flags = ["--epochs", 1, "--batch-size", 8, "--workers", 0, "--compile", "off", "--max-bad-share", 0.5]
    assert "epoch 1/1" in done(run("train", strange, "--model", model, "--out", out, *flags))
    with (out / "bad_images.csv").open(encoding="utf-8", newline="") as file:
        assert all(Path(from_cell(row["image"])).exists() for row in csv.DictReader(file))
    best = out / "best.safetensors"
    text = done(run("eval", best, strange, "--out", tmp_path / "eval", "--workers", 0, "--engine", "torch"))
    assert r"light\x1b[31m" in text
    assert (tmp_path / "eval" / "confusion.png").exists()
    flags = ["--workers", 0, "--max-bad-share", 0.5]
    assert "28 images in 2 shards" in done(run("shard", strange, "--out", tmp_path / "shards", *flags))
    assert open_source(tmp_path / "shards").classes == (DARK, LIGHT)


@pytest.mark.parametrize("suffix", ["csv", "jsonl", "parquet"])
def test_names_in_results_are_read_back_to_the_same_file(run, strange, model, tmp_path, suffix):
    out = tmp_path / os.fsdecode(f"out.{suffix}".encode() + b"\xff").replace(f".{suffix}", "")
    out = out.with_name(f"{out.name}.{suffix}")
    done(run("predict", model, strange / "val", "--out", out, "--engine", "torch"))
    if suffix == "csv":
        with out.open(encoding="utf-8", newline="") as file:
            rows = [(from_cell(row["path"]), from_cell(row["label"])) for row in csv.DictReader(file)]
    elif suffix == "jsonl":
        read = [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()]
        rows = [(row["path"], *row["labels"][:1]) for row in read]
    else:
        parquet = pytest.importorskip("pyarrow.parquet")
        with out.open("rb") as file:
            read = parquet.read_table(file).to_pylist()
        rows = [(unescaped(row["path"]), *map(unescaped, row["labels"][:1])) for row in read]
    assert sorted(row[0] for row in rows) == sorted(str(path) for path in (strange / "val").rglob("*.png"))
    assert {row[1] for row in rows if len(row) > 1} <= {DARK, LIGHT, ""}
    text = done(run("predict", model, strange / "val", "--engine", "torch"))
    assert text.count("\n") == 11


def test_a_csv_of_ours_is_data(strange, tmp_path, run, model):
    (tmp_path / "=a.png").write_bytes(next((strange / "val" / LIGHT).glob("*.png")).read_bytes())
    rows = [["'=a.png", "'=x"], [r"images\udcfe/train/dark\udcff/000.png", "y"]]
    with (tmp_path / "data.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(rows)
    source = open_source(tmp_path / "data.csv")
    assert source.classes == ("=x", "y")
    assert all(image.exists() for image in source.whole().images)


@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
def test_a_terminal_that_lacks_the_signs(strange, encoding):
    variables = {**os.environ, "PYTHONIOENCODING": encoding}
    command = [sys.executable, "-m", "shvit", "info", strange]
    done = subprocess.run(command, env=variables, capture_output=True, timeout=240)
    assert done.returncode == 0, done.stderr
    assert rb"light\x1b[31m" in done.stdout
    assert b"\x1b" not in done.stdout + done.stderr


def test_errors_and_notes_show_no_escapes(run, tmp_path):
    code, _, err = run("predict", "no\x1b[31m\u202emodel.safetensors", tmp_path)
    assert code in (1, 2)
    assert "\x1b" not in err
    assert "\u202e" not in err
