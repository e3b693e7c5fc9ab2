"""The estimate of the remaining time, from steps and evaluations without the first step."""

import io
import re
from dataclasses import replace

import pytest
from rich.console import Console

import shvit
from conftest import tiny_architecture
from shvit.data.transforms import Preprocess
from shvit.modelfile import ModelFile
from shvit.tasks.objects import ObjectsEvaluation
from shvit.train.progress import Progress, Reporter
from shvit.train.remaining import TimeLeft


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


def test_the_first_step_is_not_counted_and_evaluations_are():
    clock = Clock()
    left = TimeLeft(epochs=5, steps=10, evaluates=(2, 4, 5).__contains__, eval_steps=4, clock=clock)
    clock.now += 300  # compiles
    left.step()
    for _ in range(3):
        clock.now += 2
        left.step()
    assert left.seconds(0, 4) == pytest.approx(46 * 2 + 3 * 4 * 2)  # evaluations after epochs 2, 4 and 5
    clock.now += 5
    left.end(1)
    assert left.seconds(1, 0) == pytest.approx(40 * 2 + 3 * 8 + 5)  # epoch 3 ends without an evaluation
    clock.now += 30
    left.end(2)
    assert left.seconds(2, 0) == pytest.approx(30 * 2 + 2 * 30 + 5)
    assert left.seconds(5, 0) == 0


def test_a_first_step_that_compiles_gives_no_estimate(monkeypatch):
    monkeypatch.setattr("shvit.train.progress.LINE_SECONDS", -1)
    console = Console(file=io.StringIO(), width=400)
    reporter, clock = Reporter(console), Clock()
    reporter._left = TimeLeft(epochs=2, steps=10, evaluates=bool, eval_steps=0, compiled=True, clock=clock)
    progress = Progress(epoch=0, step=1, epochs=2, steps=10, loss=1.0, lr=0.1, bad_images=0)
    clock.now += 300
    reporter.step(progress)
    clock.now += 2
    reporter.step(replace(progress, step=2))
    first, second = console.file.getvalue().splitlines()
    assert "left" not in first
    assert second.endswith("0m36s left")


def test_a_single_step_gives_an_estimate():
    clock = Clock()
    left = TimeLeft(epochs=3, steps=1, evaluates=bool, eval_steps=0, clock=clock)
    clock.now += 7
    left.step()
    clock.now += 1
    left.end(1)
    assert left.seconds(1, 0) == 2 * 7 + 2 * 1


def test_a_single_step_that_compiles_gives_none():
    clock = Clock()
    left = TimeLeft(epochs=3, steps=1, evaluates=bool, eval_steps=0, compiled=True, clock=clock)
    clock.now += 300
    left.step()
    left.end(1)
    assert not left.measured
    clock.now += 2
    left.step()
    assert left.measured
    assert left.seconds(2, 0) == 2
    assert left.compile_seconds == 298


def test_each_epoch_prints_the_time_left(run, folder, tmp_path):
    model_file = ModelFile(tiny_architecture().build(), ("dark", "light"), Preprocess(32))
    shvit.save(model_file, tmp_path / "m.safetensors")
    flags = ["--batch-size", 8, "--compile", "off", "--epochs", 3, "--workers", 0, "--ema", 0]
    code, out, err = run("train", folder, "--model", tmp_path / "m.safetensors", "--out", tmp_path / "x", *flags)
    assert code == 0, err
    lines = [line for line in out.splitlines() if line.startswith("epoch ") and ", step " not in line]
    assert len(lines) == 3
    assert all(re.search(r"· \d+m\d\ds, \d+m\d\ds left", line) for line in lines)
    assert "0m00s left" in lines[-1]


def test_detectors_show_ap50_beside_ap():
    console = Console(file=io.StringIO(), width=400)
    progress = Progress(epoch=1, step=0, epochs=3, steps=10, loss=1.0, lr=0.1, bad_images=0)
    numbers = {"model_AP": 0.123, "AP": 0.123, "AP50": 0.456}
    row = {"epoch": 1, "train_loss": 1.0, "images_per_second": 9.0, "data_wait": 0.1, "seconds": 61.0, **numbers}
    Reporter(console).epoch(progress, row, "AP")
    assert "· AP 12.30% · AP50 45.60% ·" in console.file.getvalue()
    found = ObjectsEvaluation(("cat",), {"bbox": {"AP": 0.1, "AP50": 0.2}, "segm": {"AP": 0.3, "AP50": 0.4}}, {}, 5)
    assert (found.metrics()["AP"], found.metrics()["AP50"]) == (0.3, 0.4)
