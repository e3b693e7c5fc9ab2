"""Distributed training: the same images per step as one process, each validation image once, one folder."""

import json
import os
import signal
import sys

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from test_detection import squares

import shvit
from conftest import descendants, tiny_architecture, wait_for, write_pictures
from shvit.data.dataset import Split
from shvit.data.loader import EpochSampler, Share
from shvit.data.transforms import Preprocess
from shvit.modelfile import ModelFile
from shvit.train.checkpoint import Checkpoint
from shvit.train.distributed import ProcessGroup
from shvit.train.metrics import read_metrics
from shvit.train.recipe import Recipe


def split_of(count, shards=None):
    return Split([None] * count, [0] * count, [""] * count, shards)


def test_processes_and_pieces_share_every_batch():
    whole = list(EpochSampler(split_of(50), 8, seed=3, shuffle=True))
    for share in ({"ranks": 2}, {"ranks": 4}, {"pieces": 2}, {"ranks": 2, "pieces": 2}):
        parts = [
            list(EpochSampler(split_of(50), 8, 3, True, Share(rank=rank, **share)))
            for rank in range(share.get("ranks", 1))
        ]
        pieces = share.get("pieces", 1)
        for step, batch in enumerate(whole):
            shared = [key for part in parts for piece in part[step * pieces : (step + 1) * pieces] for key in piece]
            assert sorted(shared) == sorted(batch)
        assert {len(part) for part in parts} == {len(whole) * pieces}


def test_evaluation_shares_every_image_once_and_each_process_has_as_many_batches():
    parts = [list(EpochSampler(split_of(19), 8, share=Share(rank, 4))) for rank in range(4)]
    assert sorted(key[1] for part in parts for batch in part for key in batch) == list(range(19))
    assert {len(part) for part in parts} == {3}


def test_repeated_images_are_different_copies_on_different_processes():
    keys = [
        [
            key
            for batch in EpochSampler(split_of(60), 12, shuffle=True, share=Share(rank, 3), repeats=3)
            for key in batch
        ]
        for rank in range(3)
    ]
    everything = [key for part in keys for key in part]
    assert len(everything) == len(set(everything)) == 60
    images, counts = np.unique([index for _, index, _ in everything], return_counts=True)
    assert len(images) == 20
    assert set(counts) == {3}
    for rank in range(3):
        assert len({index for _, index, _ in keys[rank]}) == len(keys[rank])


def test_views_repeat_and_orders_do_not():
    sampler = EpochSampler(split_of(10), 5, shuffle=True, views=2)
    epochs = []
    for sampler.epoch in range(4):
        epochs.append([key for batch in sampler for key in batch])
    assert [epoch[0][0] for epoch in epochs] == [0, 1, 0, 1]
    assert epochs[0] != epochs[2]
    assert sorted(epochs[0]) == sorted(epochs[2])


def test_images_of_few_shards_are_together(monkeypatch):
    shards = np.arange(400) // 10
    monkeypatch.setattr("shvit.data.loader.WINDOW", 4)
    sampler = EpochSampler(split_of(400, shards), 40, shuffle=True)
    orders = []
    for sampler.epoch in range(2):
        batches = [[index for _, index, _ in batch] for batch in sampler]
        assert sorted(index for batch in batches for index in batch) == list(range(400))
        assert all(len(set(shards[batch])) <= 4 for batch in batches)
        orders.append(batches)
    assert orders[0] != orders[1]
    assert orders[0][0] != sorted(orders[0][0])


def test_a_group_of_one_process():
    group = ProcessGroup()
    assert group.sum(1.5, True) == [1.5, 1]
    assert group.gather("x") == ["x"]
    assert group.on_main(lambda: 3) == 3
    assert group.device("cuda") == "cuda"
    assert group.device("cuda:3") == "cuda:3"
    assert not group.has_begun("run")


WHOLE = {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1", "MASTER_ADDR": "localhost", "MASTER_PORT": "29500"}


@pytest.fixture
def environment_of(monkeypatch):
    """The process group of an environment with these variables only."""

    def group(variables):
        for name in WHOLE:
            monkeypatch.delenv(name, raising=False)
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        return ProcessGroup.from_environment()

    return group


@pytest.mark.parametrize(
    "variables",
    [
        {},
        {"RANK": "", "WORLD_SIZE": ""},
        {"WORLD_SIZE": "1"},
        {"WORLD_SIZE": "1", "RANK": "0"},
        {"MASTER_ADDR": "localhost", "MASTER_PORT": "1234"},
    ],
    ids=str,
)
def test_an_environment_of_one_process(environment_of, variables):
    assert environment_of(variables) == ProcessGroup()


def test_an_environment_of_several_processes(environment_of):
    assert environment_of(WHOLE) == ProcessGroup(1, 2, 1)


@pytest.mark.parametrize(
    ("variables", "reason"),
    [
        (
            {"RANK": "1"},
            "set: RANK; missing: WORLD_SIZE, LOCAL_RANK, MASTER_ADDR, MASTER_PORT.: start training with torchrun",
        ),
        ({"RANK": "0", "WORLD_SIZE": "2"}, "set: RANK, WORLD_SIZE; missing: LOCAL_RANK, MASTER_ADDR, MASTER_PORT"),
        ({"RANK": "", "WORLD_SIZE": "2"}, "set: WORLD_SIZE; missing: RANK, LOCAL_RANK"),
        ({"LOCAL_RANK": "0"}, "set: LOCAL_RANK; missing: RANK, WORLD_SIZE"),
        ({**WHOLE, "LOCAL_RANK": ""}, "missing: LOCAL_RANK.: start"),
        ({**WHOLE, "RANK": "2"}, "RANK 2 in the environment must be less than WORLD_SIZE 2"),
        ({**WHOLE, "LOCAL_RANK": "2"}, "LOCAL_RANK 2 .* less than WORLD_SIZE"),
        (
            {**WHOLE, "WORLD_SIZE": "two"},
            "WORLD_SIZE in the environment must be a whole number of at least 1, got 'two'",
        ),
        ({**WHOLE, "WORLD_SIZE": "0"}, "WORLD_SIZE .* at least 1, got '0'"),
        ({**WHOLE, "RANK": "-1"}, "RANK .* at least 0, got '-1'"),
    ],
    ids=str,
)
def test_half_an_environment_is_refused(environment_of, variables, reason):
    with pytest.raises(shvit.InputError, match=reason):
        environment_of(variables)


def test_each_process_has_a_gpu_of_its_own(monkeypatch):
    monkeypatch.setattr("torch.cuda.device_count", lambda: 4)
    assert ProcessGroup(rank=3, size=8, local_rank=1).device("cuda") == "cuda:1"
    assert ProcessGroup(rank=3, size=8, local_rank=1).device("cpu") == "cpu"
    with pytest.raises(shvit.InputError, match="more processes than this machine's 4 GPUs: use --nproc-per-node 4"):
        ProcessGroup(rank=4, size=8, local_rank=4).device("cuda")
    with pytest.raises(shvit.InputError, match="device cuda:0 names a single GPU, but there are 8 processes"):
        ProcessGroup(rank=4, size=8, local_rank=1).device("cuda:0")


@pytest.mark.parametrize(
    ("settings", "processes", "reason"),
    [
        ({"batch_size": 10}, 4, "batch_size must be a multiple of 4 .4 processes x accumulate 1., got 10"),
        ({"batch_size": 12, "accumulate": 2, "mixup": 0.1}, 2, "must be even, got 3 per process and micro-batch"),
    ],
)
def test_batches_that_cannot_be_shared(settings, processes, reason):
    with pytest.raises(shvit.InputError, match=reason):
        Recipe(**{"mixup": 0.0, "cutmix": 0.0, **settings}).check_divisible(processes)


FLAGS = ["--batch-size", "8", "--compile", "off", "--precision", "fp32"]
SHORT = ["--epochs", "3", "--workers", "0"]
LONG = ["--epochs", "500", "--workers", "1"]


@pytest.fixture
def start(tmp_path):
    shvit.save(
        ModelFile(tiny_architecture().build(), ("dark", "light"), Preprocess(32)), tmp_path / "start.safetensors"
    )
    return tmp_path / "start.safetensors"


@pytest.fixture
def train(folder, start, begin):
    """Starts `shvit train` in a process with one thread."""

    def train(out, *flags, launcher=(), length=SHORT):
        command = ["-m", "shvit", "train", str(folder), "--model", str(start), "--out", str(out), *FLAGS, *length]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        return begin([sys.executable, *launcher, *command, *flags], env=environment)

    return train


@pytest.fixture
def torchrun(train):
    """Starts it in two processes."""

    def torchrun(*args, restarts=0, **options):
        launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
        return train(*args, launcher=[*launch, "--max-restarts", str(restarts)], **options)

    return torchrun


@pytest.mark.slow
def test_two_processes_lose_one_and_end_with_the_same_weights(folder, torchrun, tmp_path):
    write_pictures(folder / "val" / "light", 190, 1, first=300)  # 13 images: an uneven split
    (folder / "val" / "dark" / "101.png").write_bytes(b"")
    (folder / "train" / "dark" / "003.png").write_bytes(b"")
    whole = torchrun(tmp_path / "whole", "--json")
    out, err = whole.communicate(timeout=240)
    assert whole.returncode == 0, err
    result = json.loads(out)  # one document, though two processes ran
    assert (result["images"], result["bad_images"]) == (12, 1)
    state = Checkpoint.load(tmp_path / "whole")[0]
    assert state.processes == 2
    assert len(state.bad_images) == len(state.bad_val) == 1

    process = torchrun(tmp_path / "parts", "--save-every", "2", restarts=1)
    wait_for(tmp_path / "parts" / "metrics.jsonl", process)
    second = [pid for pid in descendants(process.pid) if "RANK=1" in environment(pid)]
    os.kill(second[0], signal.SIGKILL)
    out, err = process.communicate(timeout=240)
    assert process.returncode == 0, err
    for name in ("last", "best"):
        one, other = (load_file(tmp_path / run / f"{name}.safetensors") for run in ("whole", "parts"))
        assert all(torch.equal(one[key], other[key]) for key in one)
    assert out.count("epoch 3/3") == 1  # only the main process prints


@pytest.mark.slow
def test_torchrun_is_stopped_and_started_again(torchrun, tmp_path):
    process = torchrun(tmp_path / "run", restarts=1, length=LONG)
    wait_for(tmp_path / "run" / "metrics.jsonl", process)
    process.terminate()
    out, err = process.communicate(timeout=240)
    assert process.returncode != 0
    assert "stopped" in out
    assert "DataLoader worker" not in err
    assert Checkpoint.load(tmp_path / "run")[0].epoch >= 1

    again = torchrun(tmp_path / "run", restarts=1)  # a new run into the same folder, by mistake
    _, err = again.communicate(timeout=240)
    assert again.returncode != 0
    assert "is not empty: give another --out, or --resume" in err
    assert "began with" not in err  # the error if the restarted processes resumed
    (tmp_path / "run" / "state.pt").write_bytes(b"")
    (tmp_path / "run" / "state.previous.pt").write_bytes(b"")
    resumed = torchrun(tmp_path / "run", "--resume", length=LONG)
    _, err = resumed.communicate(timeout=240)
    assert "nothing to resume from" in err


@pytest.mark.slow
def test_two_processes_stop_early_together(torchrun, tmp_path):
    """At a learning rate of 0, weights and BatchNorm statistics soon give the same accuracy in every epoch."""
    still = ["--lr", "0", "--ema", "0", "--patience", "2", "--balance", "sampling", "--json"]
    process = torchrun(tmp_path / "run", *still, length=["--epochs", "500", "--workers", "0"])
    out, err = process.communicate(timeout=240)
    assert process.returncode == 0, err
    result = json.loads(out)
    assert result["stopped_early"]
    assert result["epochs"] == result["epoch"] + 2 == len(read_metrics(tmp_path / "run"))
    resumed = torchrun(tmp_path / "run", "--resume", length=["--workers", "0"])
    out, err = resumed.communicate(timeout=240)
    assert resumed.returncode == 0, err
    assert "is complete" in out


@pytest.mark.slow
def test_two_processes_and_one_that_accumulates_see_the_same_images(torchrun, train, tmp_path):
    """Norms get the same halves of a batch. Uses SGD: Adam turns rounding errors into steps."""
    calm = ["--crop-min", "1", "--flip", "0", "--color-jitter", "0", "--ema", "0", "--clip", "0", "--optimizer", "sgd"]
    both = (
        torchrun(tmp_path / "two", *calm),
        train(tmp_path / "one", "--accumulate", "2", *calm),
    )
    for process in both:
        _, err = process.communicate(timeout=240)
        assert process.returncode == 0, err
    for one, two in zip(read_metrics(tmp_path / "one"), read_metrics(tmp_path / "two"), strict=True):
        assert one["train_loss"] == pytest.approx(two["train_loss"], rel=1e-5)
        assert one["lr"] == two["lr"]


@pytest.mark.slow
def test_two_processes_train_a_detector(start, begin, tmp_path):
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "shvit", "train"]
    flags = ["--task", "detect", "--model", start, "--out", tmp_path / "run", "--image-size", "64", *FLAGS[2:]]
    flags += ["--epochs", "2", "--batch-size", "4", "--eval-every", "2", "--workers", "0"]
    process = begin(
        [sys.executable, *launch, squares(tmp_path / "data"), *flags], env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    _, err = process.communicate(timeout=240)
    assert process.returncode == 0, err
    assert [row["epoch"] for row in read_metrics(tmp_path / "run")] == [1, 2]
    assert "AP" in read_metrics(tmp_path / "run")[-1]
    assert Checkpoint.load(tmp_path / "run")[0].processes == 2


def environment(pid):
    with open(f"/proc/{pid}/environ") as file:  # noqa: PTH123
        return file.read().split("\0")
