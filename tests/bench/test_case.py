"""Real networks in processes of their own."""

import json
import os
import signal
import sys
from pathlib import Path

import pytest
import torch

import shvit
from conftest import plain_outputs, random_images
from shvit import engines
from shvit.bench import case as subject
from shvit.bench.case import Case, Compiled, Eager, Subject, Traced, Worker, has_random_weights, open_model
from shvit.bench.peers import COMPILED, EAGER, TRACED
from shvit.engines import TorchEngine
from shvit.engines.base import ExportJob
from shvit.errors import Failure, InputError


@pytest.fixture
def model(tiny, tmp_path):
    shvit.save(tiny, tmp_path / "tiny.safetensors")
    return str(tmp_path / "tiny.safetensors")


def case(model, **changes):
    settings = {
        "engine": "torch",
        "precision": "fp32",
        "batch_size": 2,
        "image_size": 32,
        "device": "cpu",
        "threads": 1,
    }
    return Case(model, **{**settings, **changes})


def test_a_worker_times_its_case_and_says_what_memory_it_took(model):
    worker = Worker(case(model))
    try:
        seconds = worker.time()
        assert len(seconds) >= 1
        assert all(value > 0 for value in seconds)
        if sys.platform == "linux":
            assert 0 < worker.memory < 2**30
    finally:
        worker.close()
    assert not worker._process.is_alive()


def test_larger_batches_take_more_memory():
    memory = []
    for batch in (1, 64):
        worker = Worker(case("shvit_s1", batch_size=batch, image_size=128))
        memory.append(worker.memory)
        worker.close()
    if sys.platform == "linux":
        pixels = 63 * 3 * 128 * 128 * 4
        assert memory[1] - memory[0] > pixels


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"engine": "abacus"}, "unknown engine 'abacus'"),
        ({"model": "no_such.safetensors"}, "no such file"),
        ({"model": "timm/levit_128s", "image_size": 64}, "RuntimeError: The size of tensor"),
    ],
)
def test_what_cannot_run_says_why(model, changes, reason):
    with pytest.raises(Failure, match=reason):
        Worker(case(**{"model": model, **changes}))


def test_a_killed_worker_is_a_failure(model):
    worker = Worker(case(model))
    os.kill(worker._process.pid, signal.SIGKILL)
    with pytest.raises(Failure, match="killed, perhaps because memory ran out"):
        worker.time()


@pytest.mark.skipif(not Path("/proc/self/status").is_file(), reason="no /proc here")
@pytest.mark.parametrize("error", [FileNotFoundError, PermissionError])
def test_memory_is_not_measured_where_the_peak_cannot_be_reset(model, monkeypatch, error):
    write = Path.write_text

    def refused(path, *arguments, **options):
        if path.name == "clear_refs":
            raise error(path)
        return write(path, *arguments, **options)

    monkeypatch.setattr(Path, "write_text", refused)
    subject = Subject(case(model))
    assert subject.memory is None
    assert subject.time()


@pytest.mark.filterwarnings("ignore:No complete tensor found")  # of torch.export.save
def test_exported_files_can_be_timed(tiny, tmp_path):
    path = tmp_path / "tiny.pt2"
    TorchEngine.export(ExportJob(tiny, path, "fp32"))
    assert Subject(case(str(path))).time()


def test_bare_names_have_random_weights_and_no_work_is_saved_on_zeros(model):
    assert has_random_weights("shvit_s1")
    assert has_random_weights("timm/resnet18")
    assert not has_random_weights("shvit_s1.in1k")
    assert not has_random_weights(model)
    opened = open_model("shvit_s1", 96)
    assert opened.preprocess.image_size == 96
    assert opened.model.stages[0].blocks[0].feed_forward.branch.project.norm.weight.all()
    assert open_model(model, 64).preprocess.image_size == 64
    with pytest.raises(InputError, match="unknown model"):
        open_model("shvit_s5")


def test_int8_is_calibrated_on_random_images(monkeypatch):
    given = {}
    monkeypatch.setattr(engines, "load", lambda *arguments, **options: given.update(options))
    subject._start(case("shvit_s1", precision="int8", image_size=64))
    batches = given["calibration"]
    assert all(batch.dtype == torch.uint8 and batch.shape[1:] == (3, 64, 64) for batch in batches)
    assert len(batches) > 1
    given.clear()
    subject._start(case("shvit_s1", image_size=64))
    assert given == {}


def test_traced_computes_what_the_network_does(tiny):
    traced = Traced(tiny, case("tiny", engine=TRACED))
    with torch.inference_mode():
        torch.testing.assert_close(traced(torch.empty(0)), tiny.model(traced.images), rtol=1e-4, atol=1e-4)


def test_eager_computes_what_the_network_does(tiny):
    images = random_images(3, 32)
    eager = Eager(tiny, case("tiny", engine=EAGER))
    torch.testing.assert_close(eager(images), plain_outputs(tiny, images), rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_compiled_is_the_faster_of_two_layouts_and_says_which(tiny):
    images = random_images(2, 32)
    compiled = Compiled(tiny, case("tiny", engine=COMPILED))
    assert compiled.detail in ("NCHW", "channels_last")
    torch.testing.assert_close(compiled(images), plain_outputs(tiny, images), rtol=1e-4, atol=1e-4)


def test_json_takes_a_case(model):
    assert json.loads(json.dumps(case(model).__dict__))["batch_size"] == 2
