"""`shvit train`: old names of flags, and what the help lists."""

import re

import pytest

from shvit.cli.flags import Typed
from shvit.train.recipes import RECIPES


@pytest.mark.parametrize(
    ("old", "new", "value", "reason"),
    [
        ("--rate", "--lr", "-1", "lr must be at least 0, got -1"),
        ("--rate-batch", "--lr-batch", "0", "lr_batch must be a whole number of at least 1, got 0"),
        ("--min-rate", "--min-lr", "1000", "--min-lr has no effect above the effective learning rate"),
        ("--warmup-rate", "--warmup-lr", "1000", "--warmup-lr has no effect above the effective learning rate"),
    ],
)
def test_old_names_of_flags_still_work_and_errors_name_the_new_ones(run, folder, tmp_path, old, new, value, reason):
    command = ["train", folder, "--out", tmp_path / "x", "--model", "timm/test_resnet", "--image-size", 32]
    code, _, err = run(*command, old, value)
    assert code == 2
    assert f"{old} has been renamed to {new}" in " ".join(err.split())
    assert reason in err
    code, _, err = run(*command, old, value, new, value)
    assert code == 2
    assert f"{old} is the old name of {new}: give only {new}" in err
    assert Typed.of([f"{old}=1"]).flags == {new[2:]}


def test_proposals_were_regions(run, folder, tmp_path):
    code, _, err = run("train", folder, "--out", tmp_path / "x", "--regions", 0)
    assert (code, "no proposals" in err) == (2, True)


def test_help_lists_all_recipes_and_no_old_name(run):
    code, out, _ = run("train", "--help")
    words = set(re.split(r"[\s,;:]+|\.\s", out))
    assert code == 0
    assert {*RECIPES, "--lr", "--lr-batch", "--min-lr", "--warmup-lr", "--proposals"} <= words
    assert words.isdisjoint({"--rate", "--rate-batch", "--min-rate", "--warmup-rate", "--regions"})
