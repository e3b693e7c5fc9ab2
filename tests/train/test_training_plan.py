"""What a run starts from by default, its plan, its estimated time, and what would be faster."""

import io
import json
from dataclasses import replace

import pytest
import torch
from rich.console import Console

import shvit
from conftest import random_images, tiny_architecture
from shvit.data.sources import open_source
from shvit.pretrained import zero_head
from shvit.train.plan import faster_settings
from shvit.train.progress import Progress, Reporter
from shvit.train.recipes import finetune, scratch, small
from shvit.train.remaining import TimeLeft
from shvit.train.start import starting_point

QUICK = "--image-size", 32, "--epochs", 1, "--batch-size", 8, "--workers", 0, "--compile", "off"


def recipe_of(out):
    return json.loads((out / "recipe.json").read_text())["recipe"]["name"]


def test_trained_weights_are_fine_tuned_and_random_ones_trained_from_scratch(run, folder, tiny, tmp_path):
    shvit.save(tiny, tmp_path / "tiny.safetensors")
    for name, flags, recipe in (
        ("tuned", ["--model", tmp_path / "tiny.safetensors"], "finetune"),
        ("asked", ["--model", tmp_path / "tiny.safetensors", "--recipe", "scratch"], "scratch"),
        ("fresh", ["--model", "shvit_s1"], "scratch"),
    ):
        code, _, errors = run("train", folder, *flags, "--out", tmp_path / name, *QUICK)
        assert code == 0, errors
        assert recipe_of(tmp_path / name) == recipe


def test_fine_tuning_begins_with_equal_probabilities(folder, tiny, tmp_path):
    images, source = random_images(4, 32) / 255, open_source(folder)
    path = tmp_path / "m.safetensors"
    shvit.save(replace(tiny, classes=("cat", "dog")), path)
    start = starting_point(str(path), source, finetune())
    assert torch.equal(start.model.eval()(images), torch.zeros(4, 2))
    shvit.save(tiny, path)  # the same classes: the trained head stays
    kept = starting_point(str(path), source, finetune())
    assert torch.equal(kept.model.eval()(images), tiny.model.eval()(images))


def test_both_heads_of_a_distilled_network_learn_from_zero():
    network = tiny_architecture(distilled=True).build().train()
    zero_head(network)
    outputs = network(random_images(8, 32) / 255)
    sum(torch.nn.functional.cross_entropy(logits, torch.arange(8) % 2) for logits in outputs).backward()
    for head in (network.head, network.distillation_head):
        assert not head.linear.weight.any()
        assert head.linear.weight.grad.any()


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


def watched(seconds, steps, compiled=False, faster=()):
    """What the reporter prints for steps of these durations, in epochs of `steps`."""
    console, clock = Console(file=io.StringIO(), width=400), Clock()
    reporter = Reporter(console)
    left = TimeLeft(epochs=10, steps=steps, evaluates=bool, eval_steps=0, compiled=compiled, clock=clock)
    progress = Progress(epoch=0, step=0, epochs=10, steps=steps, loss=1.0, lr=0.1, bad_images=0)
    with reporter.training(["plan: 9 images"], progress, left, faster):
        for number, each in enumerate(seconds, 1):
            clock.now += each
            reporter.step(replace(progress, step=number))
    return reporter, console.file.getvalue().splitlines()


def test_a_few_steps_give_the_time_of_the_run_with_compilation_told_apart():
    reporter, lines = watched([300, 2, 2, 2, 2, 2, 2], steps=100, compiled=True)
    assert lines == ["plan: 9 images", "  estimated time 38m18s: 2 s per step, compilation 4m58s"]
    assert reporter.estimated_seconds == pytest.approx(300 + 999 * 2)


def test_a_network_that_is_not_compiled_has_no_compilation():
    _, lines = watched([3, 2, 2, 2, 2, 2], steps=100)
    assert lines[1] == "  estimated time 33m21s: 2 s per step"


def test_a_long_run_names_what_is_faster():
    faster = ["--image-size 160 (51% of the time)", "--epochs 5 (50%)"]
    _, lines = watched([30, 30], steps=100, faster=faster)
    assert lines[1:] == [
        "  estimated time 8h20m: 30 s per step",
        "  faster: --image-size 160 (51% of the time); --epochs 5 (50%)",
    ]
    assert len(watched([3, 3, 3, 3, 3, 3], steps=100, faster=faster)[1]) == 2  # not for 50 minutes


def test_faster_settings_name_only_what_helps():
    assert faster_settings(scratch(), 224, "classify") == [
        "--image-size 160 (about 51% of the time)",
        "--epochs 150 (50%)",
        f"--model shvit_s1.in1k, which is fine-tuned ({finetune().epochs} epochs, {finetune().epochs / 300:.0%})",
    ]
    assert faster_settings(replace(finetune(), epochs=1, warmup_epochs=0.0), 96, "classify") == []
    assert not any("fine-tuned" in each for each in faster_settings(small(), 320, "detect"))
