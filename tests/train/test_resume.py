"""A run that is killed at any moment and resumed ends with the same weights as an uninterrupted run."""

import io
import multiprocessing
import os
import random
import signal
import sys
import time

import pytest
import torch
from safetensors.torch import load_file

import shvit
from conftest import tiny_architecture, wait_for
from shvit.data.transforms import Preprocess
from shvit.engines.torch import DTYPES
from shvit.modelfile import ModelFile
from shvit.requests.train import TrainRequest
from shvit.train import checkpoint as state_module
from shvit.train import loop, metrics
from shvit.train.checkpoint import NAMES, Checkpoint
from shvit.train.loop import Trainer
from shvit.train.metrics import read_metrics
from shvit.train.progress import Reporter
from shvit.train.run import train

SETTINGS = {
    "epochs": 3,
    "batch_size": 8,
    "lr": 1e-2,
    "lr_batch": 8,
    "compile": "off",
    "precision": "fp32",
    "mixup": 0.5,
}


@pytest.fixture
def start(tmp_path):
    """A small network to start from, and a teacher."""
    for name, distilled in (("start", False), ("teacher", True)):
        network = tiny_architecture(distilled=distilled).build()
        shvit.save(ModelFile(network, ("dark", "light"), Preprocess(32)), tmp_path / f"{name}.safetensors")
    return tmp_path / "start.safetensors"


def go(folder, start, out, resume=False, workers=0, save_every=2, reporter=None, **settings):
    options = {"device": "cpu", "workers": workers, "save_every": save_every}
    if resume:
        return train(TrainRequest(folder, out=out, resume=True, **options), reporter)
    return train(TrainRequest(folder, out=out, model=str(start), settings={**SETTINGS, **settings}, **options))


CLEAN = multiprocessing.get_context("forkserver")
"""Starts processes from a clean server: forks of a process that used torch.compile cannot run backward."""
CLEAN.set_forkserver_preload(["torch", "shvit.train.run"])


def in_child(work, *args, kill_after=None, **options):
    """Calls `work` in a new process, and kills it after `kill_after` seconds. Returns whether it finished."""
    child = CLEAN.Process(target=alone, args=(work, args, options))
    child.start()
    if kill_after is not None:
        child.join(kill_after)
        child.kill()
    child.join(240)
    if child.exitcode is None:
        child.kill()
    assert child.exitcode in (0, -signal.SIGKILL)
    return child.exitcode == 0


def alone(work, args, options):
    torch.set_num_threads(1)
    metrics.draw_curves = lambda *_: None
    work(*args, **options)


def resume_or_begin(folder, start, out, **options):
    """What a script on a cluster does."""
    return go(folder, start, out, resume=(out / "recipe.json").exists(), **options)


def assert_same(one, other):
    for name in ("last", "best"):
        ours, theirs = load_file(one / f"{name}.safetensors"), load_file(other / f"{name}.safetensors")
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[key], theirs[key]) for key in ours)
    assert [row["train_loss"] for row in read_metrics(one)] == [row["train_loss"] for row in read_metrics(other)]
    assert len((one / "metrics.jsonl").read_text().splitlines()) == SETTINGS["epochs"]
    ours, theirs = Checkpoint.load(one)[0], Checkpoint.load(other)[0]
    for part in ("model", "ema"):
        assert all(torch.equal(value, getattr(theirs, part)[key]) for key, value in getattr(ours, part).items())


@pytest.mark.parametrize(("workers", "settings"), [(0, {}), (2, {}), (0, {"teacher": "teacher"})], ids=str)
def test_killed_at_random_moments(folder, start, tmp_path, workers, settings):
    if "teacher" in settings:
        settings = {"teacher": str(start.with_stem("teacher"))}
    settings = {"workers": workers, **settings}
    began = time.monotonic()
    assert in_child(go, folder, start, tmp_path / "whole", **settings)
    whole = time.monotonic() - began
    moments = random.Random(str(settings))
    for _ in range(3):
        moment = moments.uniform(0.05, 0.7) * whole
        in_child(resume_or_begin, folder, start, tmp_path / "parts", kill_after=moment, **settings)
    assert in_child(resume_or_begin, folder, start, tmp_path / "parts", **settings)
    assert_same(tmp_path / "whole", tmp_path / "parts")
    assert not list((tmp_path / "parts").glob(".*"))


@pytest.mark.parametrize(
    ("where", "nth"),
    [("half a state", 1), ("half a state", 5), ("between two names", 4), ("after the weights", 2), ("before any", 1)],
)
def test_killed_while_writing(folder, start, tmp_path, where, nth):
    assert in_child(go, folder, start, tmp_path / "whole")
    assert not in_child(go_and_die, where, nth, folder, start, tmp_path / "parts")
    assert in_child(resume_or_begin, folder, start, tmp_path / "parts")
    assert_same(tmp_path / "whole", tmp_path / "parts")
    names = [{path.name for path in (tmp_path / run).iterdir()} for run in ("whole", "parts")]
    assert names[0] == names[1]


def go_and_die(where, nth, *args):
    """Trains and is killed the nth time that it gets there."""
    calls = []

    def die(*_):
        calls.append(None)
        if len(calls) == nth:
            os.kill(os.getpid(), signal.SIGKILL)

    def half(content, path):
        save(content, buffer := io.BytesIO())
        whole = buffer.getvalue()
        path.write_bytes(whole[: len(whole) // 2])
        die()
        path.write_bytes(whole)

    save, write = torch.save, loop.append_row
    if where == "half a state":
        state_module.torch.save = half
    elif where == "between two names":
        state_module.suppress = lambda *_: _Then(die)
    elif where == "after the weights":
        loop.append_row = lambda *given: (write(*given), die())
    else:
        Trainer._probe = die
    go(*args)


class _Then:
    """Replaces `suppress`, and calls a function at its end."""

    def __init__(self, after):
        self.after = after

    def __enter__(self):
        pass

    def __exit__(self, kind, *_):
        self.after()
        return kind is FileNotFoundError


class Heard(Reporter):
    """Keeps the warnings."""

    def __init__(self):
        super().__init__()
        self.warnings = []

    def warn(self, message):
        self.warnings.append(message)


@pytest.mark.parametrize("harm", ["cut", "flipped", "gone"])
def test_a_damaged_checkpoint_falls_back_to_the_previous_one(folder, start, tmp_path, harm):
    go(folder, start, tmp_path / "run")
    before = load_file(tmp_path / "run" / "last.safetensors")
    newest = tmp_path / "run" / NAMES[0]
    content = bytearray(newest.read_bytes())
    if harm == "flipped":
        place = content.index(b"data/0") + 20_000
        content[place] ^= 1
    newest.unlink() if harm == "gone" else newest.write_bytes(content[: 5000 if harm == "cut" else None])
    reporter = Heard()
    go(folder, start, tmp_path / "run", resume=True, reporter=reporter)
    if harm != "gone":
        assert "state.pt is damaged" in reporter.warnings[0]
        assert "the previous checkpoint" in reporter.warnings[0]
    after = load_file(tmp_path / "run" / "last.safetensors")
    assert all(torch.equal(before[key], after[key]) for key in before)
    assert Checkpoint.load(tmp_path / "run")[1] == []


def test_resuming_in_another_precision_warns(folder, start, tmp_path, monkeypatch):
    go(folder, start, tmp_path / "run", epochs=1, image_size=64)
    state, _ = Checkpoint.load(tmp_path / "run")
    state.epoch, state.precision = 0, "bf16"
    state.save(tmp_path / "run")
    monkeypatch.setattr("shvit.train.loop.pick_training_precision", lambda *_: "fp16")
    monkeypatch.setitem(DTYPES, "fp16", torch.bfloat16)  # fp16 takes minutes on a CPU
    reporter = Heard()
    assert go(folder, start, tmp_path / "run", resume=True, reporter=reporter).epochs == 1
    assert reporter.warnings == ["the run began with precision bf16 and resumes with precision fp16"]


def test_a_worker_that_dies_during_a_step_is_a_failure(folder, start, tmp_path, monkeypatch):
    def lose_it(self, _):
        [worker] = self.train_loader._loader._iterator._workers
        os.kill(worker.pid, signal.SIGKILL)
        time.sleep(5)

    monkeypatch.setattr(Trainer, "train_step", lose_it)
    with pytest.raises(shvit.Failure, match=r"a data-loading worker died \(out of memory\?\): try fewer --workers"):
        go(folder, start, tmp_path / "run", workers=1)


def test_the_loss_scale_is_resumed(folder, start, tmp_path, monkeypatch):
    """Stands for fp16 on a GPU, but computes in bf16: fp16 takes minutes on a CPU."""
    monkeypatch.setitem(DTYPES, "fp16", torch.bfloat16)
    half = {"precision": "fp16", "epochs": 1, "image_size": 64}
    go(folder, start, tmp_path / "whole", **half)
    step, done = Trainer.train_step, []

    def stopping(self, pieces):
        step(self, pieces)
        done.append(pieces)
        self.stopped_by = signal.SIGTERM if len(done) == 3 else None

    with monkeypatch.context() as patched:
        patched.setattr(Trainer, "train_step", stopping)
        assert go(folder, start, tmp_path / "parts", **half).stopped_by == signal.SIGTERM
    assert Checkpoint.load(tmp_path / "parts")[0].scaler["_growth_tracker"] == 3
    go(folder, start, tmp_path / "parts", resume=True)
    one, other = (Checkpoint.load(tmp_path / name)[0] for name in ("whole", "parts"))
    assert one.scaler == other.scaler
    assert one.scaler["scale"] > 1
    assert all(torch.equal(value, other.model[key]) for key, value in one.model.items())


def test_two_damaged_checkpoints_are_refused(folder, start, tmp_path):
    go(folder, start, tmp_path / "run")
    for name in NAMES:
        (tmp_path / "run" / name).write_bytes(b"nothing")
    with pytest.raises(shvit.InputError, match=r"state\.pt is damaged.*state\.previous\.pt is damaged") as caught:
        go(folder, start, tmp_path / "run", resume=True)
    assert "\n" not in str(caught.value)


def test_epochs_without_a_checkpoint_are_repeated(folder, start, tmp_path, monkeypatch):
    """Short epochs without evaluation have no checkpoint of their own."""
    monkeypatch.setattr(loop, "SAVE_SECONDS", 1e9)
    settings, step, done = {"epochs": 4, "eval_every": 4, "save_every": 1000}, Trainer.train_step, []
    go(folder, start, tmp_path / "whole", **settings)

    class CrashError(Exception):
        pass

    def crashing(self, pieces):
        if self.epoch == 3:
            raise CrashError
        step(self, pieces)
        done.append(self.epoch)

    with monkeypatch.context() as patched:
        patched.setattr(Trainer, "train_step", crashing)
        with pytest.raises(CrashError):
            go(folder, start, tmp_path / "parts", **settings)
    checkpoint = Checkpoint.load(tmp_path / "parts")[0]
    assert (checkpoint.epoch, set(done)) == (0, {0, 1, 2})
    assert [row["epoch"] for row in read_metrics(tmp_path / "parts")] == [1, 2, 3]
    assert shvit.load(tmp_path / "parts" / "last.safetensors").metrics["epoch"] == 3
    go(folder, start, tmp_path / "parts", resume=True, save_every=1000)
    assert [row["epoch"] for row in read_metrics(tmp_path / "parts")] == [1, 2, 3, 4]
    one, other = (Checkpoint.load(tmp_path / name)[0] for name in ("whole", "parts"))
    assert all(torch.equal(value, other.model[key]) for key, value in one.model.items())


def test_checkpoints_are_saved_every_few_steps(folder, start, tmp_path, monkeypatch):
    saved = []
    save = Checkpoint.save
    monkeypatch.setattr(Checkpoint, "save", lambda self, out: saved.append((self.epoch, self.step)) or save(self, out))
    go(folder, start, tmp_path / "run", save_every=2, epochs=2)
    assert saved == [(0, 0), (0, 2), (0, 4), (1, 0), (1, 2), (1, 4), (2, 0)]
    with pytest.raises(shvit.InputError, match="save_every must be at least 1, got 0"):
        go(folder, start, tmp_path / "other", save_every=0)


def test_other_data_is_refused(folder, start, tmp_path):
    go(folder, start, tmp_path / "run", epochs=1)
    (folder / "train" / "dark" / "000.png").rename(folder / "train" / "light" / "other.png")
    with pytest.raises(shvit.Failure, match="not the data"):
        go(folder, start, tmp_path / "run", resume=True)


def test_a_finished_run_says_so(run, folder, start, tmp_path):
    out = tmp_path / "run"
    go(folder, start, out, epochs=1)
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    code, text, _ = run("train", folder, "--out", out, "--resume", "--workers", 0, "--device", "cpu")
    assert code == 0
    assert f"nothing to resume: the run in {out} is complete (1 of 1 epochs)" in text
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before


def test_ctrl_c_before_the_first_step_prints_what_is_kept(run, folder, start, tmp_path, monkeypatch):
    def stop(*_):
        raise KeyboardInterrupt

    out = tmp_path / "run"
    command = ["train", folder, "--model", start, "--out", out, "--epochs", 1, "--batch-size", 8, "--workers", 0]
    with monkeypatch.context() as patched:
        patched.setattr("shvit.train.run._planned", stop)
        code, _, err = run(*command)
    assert (code, err.splitlines()[-1]) == (130, "stopped: nothing was written")
    assert not out.exists()
    with monkeypatch.context() as patched:
        patched.setattr(Trainer, "_probe", stop)
        code, _, err = run(*command)
    assert code == 130
    assert f"stopped: the run is kept in {out}; resume with: shvit train {folder} --out {out} --resume" in err
    assert run("train", folder, "--out", out, "--resume", "--workers", 0)[0] == 0


@pytest.mark.slow
def test_one_of_two_trainings_into_a_new_folder_is_refused(folder, start, tmp_path, begin):
    out = tmp_path / "run"
    command = [sys.executable, "-m", "shvit", "train", str(folder), "--model", str(start), "--out", str(out)]
    flags = ["--epochs", "2", "--batch-size", "8", "--compile", "off", "--workers", "0", "--device", "cpu"]
    both = [begin([*command, *flags]) for _ in range(2)]
    errors = [process.communicate(timeout=240)[1] for process in both]
    assert sorted(process.returncode for process in both) == [0, 2], errors
    refused = errors[[process.returncode for process in both].index(2)]
    assert "another training run is writing to" in refused or "is not empty" in refused
    assert len((out / "metrics.jsonl").read_text().splitlines()) == 2
    assert not list(out.glob(".*"))


def test_a_running_run_is_not_resumed_a_second_time(folder, start, tmp_path, begin, monkeypatch):
    """The lock is also held before the first step."""
    out, seen = tmp_path / "run", []

    def meanwhile(self):
        command = [sys.executable, "-m", "shvit", "train", str(folder), "--out", str(out), "--resume"]
        seen.append(begin([*command, "--workers", "0"]))
        seen.append(seen[0].communicate(timeout=240)[1])
        return {}, {}

    monkeypatch.setattr(Trainer, "_probe", meanwhile)
    go(folder, start, out, epochs=1, workers=1)
    assert seen[0].returncode == 2
    assert f"another training run is writing to {out}" in seen[1]


@pytest.mark.parametrize(("limit", "name"), [(100_000, "state.pt"), (200, "recipe.json")])
def test_a_full_disk_is_a_one_line_error(folder, start, tmp_path, limit, name):
    """A limit on the file size replaces the full disk."""
    resource = pytest.importorskip("resource")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
    try:
        with pytest.raises(shvit.Failure, match=f"^no space left on {tmp_path / 'run'} to write {name}"):
            go(folder, start, tmp_path / "run")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert not list((tmp_path / "run").glob(".*"))


@pytest.mark.slow
def test_sigterm_saves_and_prints_how_to_resume(folder, start, tmp_path, begin):
    command = [
        sys.executable,
        "-m",
        "shvit",
        "train",
        str(folder),
        "--model",
        str(start),
        "--out",
        str(tmp_path / "run"),
    ]
    flags = ["--epochs", "500", "--batch-size", "8", "--compile", "off", "--workers", "2"]
    process = begin([*command, *flags], start_new_session=True)
    wait_for(tmp_path / "run" / "metrics.jsonl", process)
    os.killpg(process.pid, signal.SIGTERM)  # to all processes with their workers, as clusters do
    out, err = process.communicate(timeout=240)
    assert process.returncode == 75, err
    assert "--resume" in out
    assert "Traceback" not in err
    assert Checkpoint.load(tmp_path / "run")[0].epoch >= 1
