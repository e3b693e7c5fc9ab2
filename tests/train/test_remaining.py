"""The time that is left follows from steps and evaluations, whatever the first step took."""

import re

import pytest

import shvit
from conftest import tiny_architecture
from shvit.data.transforms import Preprocess
from shvit.modelfile import ModelFile
from shvit.train.remaining import TimeLeft


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


def test_the_first_step_is_not_counted_and_evaluations_are():
    clock = Clock()
    left = TimeLeft(epochs=5, steps=10, eval_every=2, eval_steps=4, clock=clock)
    clock.now += 300  # compiles
    left.step()
    for _ in range(3):
        clock.now += 2
        left.step()
    assert left.seconds(0, 4) == pytest.approx(46 * 2 + 3 * 4 * 2)  # evaluations after epochs 2, 4 and 5
    clock.now += 5
    left.end(1)
    assert left.seconds(1, 0) == pytest.approx(40 * 2 + 3 * 8 + 5)  # and an end without one, of epoch 3
    clock.now += 30
    left.end(2)
    assert left.seconds(2, 0) == pytest.approx(30 * 2 + 2 * 30 + 5)
    assert left.seconds(5, 0) == 0


def test_one_step_is_better_than_none():
    clock = Clock()
    left = TimeLeft(epochs=3, steps=1, eval_every=1, eval_steps=0, clock=clock)
    clock.now += 7
    left.step()
    clock.now += 1
    left.end(1)
    assert left.seconds(1, 0) == 2 * 7 + 2 * 1


def test_each_epochs_line_has_it_also_of_a_run_that_goes_on(run, folder, tmp_path):
    model_file = ModelFile(tiny_architecture().build(), ("dark", "light"), Preprocess(32))
    shvit.save(model_file, tmp_path / "m.safetensors")
    flags = ["--batch-size", 8, "--compile", "off", "--epochs", 3, "--workers", 0, "--ema", 0]
    code, out, err = run("train", folder, "--model", tmp_path / "m.safetensors", "--out", tmp_path / "x", *flags)
    assert code == 0, err
    lines = [line for line in out.splitlines() if line.startswith("epoch ")]
    assert len(lines) == 3
    assert all(re.search(r"· \d+m\d\ds, \d+m\d\ds left", line) for line in lines)
    assert "0m00s left" in lines[-1]
