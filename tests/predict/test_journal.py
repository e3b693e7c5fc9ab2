"""`shvit predict --out`: the old file stays until the new one is complete, and a stopped run can be resumed."""

import csv
import os
from itertools import islice

import pytest
import torch

import shvit
from conftest import picture, randomize_norms, tiny_architecture, write_pictures
from shvit.data.transforms import Preprocess
from shvit.errors import Failure
from shvit.files import from_cell, locked
from shvit.modelfile import ModelFile
from shvit.predict.predictor import Predictor


@pytest.fixture
def model(tiny, tmp_path):
    shvit.save(tiny, tmp_path / "tiny.safetensors")
    return tmp_path / "tiny.safetensors"


@pytest.fixture
def detector(tmp_path):
    network = randomize_norms(tiny_architecture(2, detector="retinanet").build()).eval()
    shvit.save(ModelFile(network, ("a", "b"), Preprocess(64, fit="whole"), "detect"), tmp_path / "d.safetensors")
    return tmp_path / "d.safetensors"


@pytest.fixture
def images(tmp_path):
    """Eleven images, one of them bad. The last batch of 4 has only 3."""
    write_pictures(tmp_path / "images", 120, 10)
    (tmp_path / "images" / "003b.png").write_text("no image")
    return tmp_path / "images"


def stopping(monkeypatch, after, error):
    """The next run stops with this error after this many rows."""
    stream = Predictor.stream

    def stopped(self, *args):
        yield from islice(stream(self, *args), after)
        raise error

    monkeypatch.setattr(Predictor, "stream", stopped)


@pytest.mark.parametrize("suffix", ["csv", "jsonl", "parquet", "json"])
def test_a_stopped_run_is_resumed_to_the_same_file(run, model, detector, images, tmp_path, monkeypatch, suffix):
    out, whole, partial = (tmp_path / f"{name}.{suffix}" for name in ("out", "whole", "out"))
    partial = out.with_name(f"{out.name}.partial")
    flags = ["--batch-size", 4, "--engine", "torch"]
    flags += ["--threshold", 0.01, "--draw"] if suffix == "json" else []
    drawn = [[tmp_path / "drawn"], [tmp_path / "all"]] if suffix == "json" else [[], []]
    command = ["predict", detector if suffix == "json" else model, images]
    out.write_text("old")
    with monkeypatch.context() as patched:
        stopping(patched, 6, KeyboardInterrupt())
        code, _, err = run(*command, "--out", out, *flags, *drawn[0])
    assert code == 130
    assert f"stopped: 6 of 11 images are done and kept in {partial}; --resume continues from there" in err
    assert out.read_text() == "old"
    code, _, err = run(*command, "--out", out, *flags, *drawn[0])
    assert code == 2
    assert f"{partial} is an unfinished run: resume it with --resume" in err or "--draw" in err
    with partial.open("ab") as file:
        file.write(b'{"path": "cut sho')
    code, text, err = run(*command, "--out", out, *flags, *drawn[0], "--resume")
    assert code == 0, err
    assert "1 could not be read" in text
    assert run(*command, "--out", whole, *flags, *drawn[1])[0] == 0
    assert out.read_bytes() == whole.read_bytes()
    assert not partial.exists()
    assert not list(tmp_path.glob(".*"))
    if suffix == "json":
        assert "score" in out.read_text()
        names = [sorted(path.name for path in (tmp_path / name).iterdir()) for name in ("drawn", "all")]
        assert names[0] == names[1]
        assert len(names[0]) == 10


def other_model(tiny, tmp_path, images):
    torch.nn.init.zeros_(tiny.model.head.linear.weight)
    shvit.save(tiny, tmp_path / "tiny.safetensors")
    return "model"


def other_images(tiny, tmp_path, images):
    picture(3, size=(50, 60)).save(images / "000.png")
    return "list of images"


def one_more(tiny, tmp_path, images):
    picture(3).save(images / "more.png")
    return "list of images"


@pytest.mark.parametrize("change", [other_model, other_images, one_more])
def test_another_model_or_other_images_are_refused(run, tiny, model, images, tmp_path, monkeypatch, change):
    command = ["predict", model, images, "--out", tmp_path / "out.csv", "--batch-size", 4, "--engine", "torch"]
    with monkeypatch.context() as patched:
        stopping(patched, 6, Failure("the engine is gone"))
        code, _, err = run(*command)
    assert code == 1
    assert "failed: the engine is gone; 6 of 11 images are done and kept in" in err
    begun = (tmp_path / "out.csv.partial").read_bytes()
    what = change(tiny, tmp_path, images)
    code, _, err = run(*command, "--resume")
    assert code == 2
    assert f"out.csv.partial belongs to a run that differs in {what}: give the same arguments" in err
    assert (tmp_path / "out.csv.partial").read_bytes() == begun


def test_nothing_to_resume_and_nothing_done(run, model, images, tmp_path, monkeypatch):
    command = ["predict", model, images, "--out", tmp_path / "out.csv", "--engine", "torch"]
    code, _, err = run(*command, "--resume")
    assert code == 2
    assert "there is nothing to resume" in err
    assert run("predict", model, images, "--resume")[0] == 2
    stopping(monkeypatch, 0, KeyboardInterrupt())
    code, _, err = run(*command)
    assert code == 130
    assert "stopped: nothing was written" in err
    assert not list(tmp_path.glob("*out.csv*"))


def test_a_full_disk_keeps_the_rows(run, model, images, tmp_path):
    """Simulated by a limit on the size of files."""
    resource = pytest.importorskip("resource")
    out = tmp_path / "out.csv"
    out.write_text("old")
    command = ["predict", model, images, "--batch-size", 2, "--engine", "torch", "--out"]
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1500, before[1]))
    try:
        code, _, err = run(*command, out)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert code == 1
    assert f"failed: no space left on {tmp_path} to write out.csv.partial" in err
    assert "of 11 images are done and kept in" in err
    assert out.read_text() == "old"
    assert run(*command, out, "--resume")[0] == 0
    assert run(*command, tmp_path / "whole.csv")[0] == 0
    assert out.read_bytes() == (tmp_path / "whole.csv").read_bytes()


def test_two_runs_into_one_file(run, model, images, tmp_path):
    """Tested with another process, since a process can lock a file twice."""
    if not (child := os.fork()):
        with locked(tmp_path / ".out.csv.lock", ""):
            (tmp_path / "held").touch()
            while not (tmp_path / "done").exists():
                pass
        os._exit(0)
    while not (tmp_path / "held").exists():
        pass
    try:
        code, _, err = run("predict", model, images, "--out", tmp_path / "out.csv", "--engine", "torch")
    finally:
        (tmp_path / "done").touch()
        os.waitpid(child, 0)
    assert code == 2
    assert "another process is writing" in err


def test_cells_that_are_no_formulas(run, tiny, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shvit.save(ModelFile(tiny.model, ("=1+1", "@light"), tiny.preprocess), "m.safetensors")
    picture(100).save("-a.png")
    for flags, quote in ((), "'"), (("--raw-cells",), ""):
        assert run("predict", "m.safetensors", "--out", "out.csv", "--engine", "torch", *flags, "--", "-a.png")[0] == 0
        [row] = csv.DictReader((tmp_path / "out.csv").read_text().splitlines())
        assert row["path"] == f"{quote}-a.png"
        assert {row["label"], row["label_2"]} == {f"{quote}=1+1", f"{quote}@light"}
        assert from_cell(row["path"]) == "-a.png"
    assert run("predict", "m.safetensors", "--raw-cells", "--", "-a.png")[0] == 2
