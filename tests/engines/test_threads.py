"""Engines in several threads at once: what they compute, and what they leave behind."""

import os
import subprocess
import sys
import threading
from pathlib import Path
from threading import Event, Thread

import pytest
import torch

from shvit import engines
from shvit.engines.threads import torch_threads

IMAGES = torch.zeros(2, 3, 32, 32, dtype=torch.uint8)


def in_new_thread(call):
    """What the call gives in a thread that has not used torch before."""
    given = []
    thread = Thread(target=lambda: given.append(call()))
    thread.start()
    thread.join()
    return given[0]


EIGHT_THREADS = """
import logging, sys, threading, warnings
from pathlib import Path
import torch
from conftest import randomize_norms, tiny_architecture
from shvit import engines
from shvit.data.transforms import Preprocess
from shvit.modelfile import ModelFile

torch.manual_seed(0)
model_file = ModelFile(randomize_norms(tiny_architecture().build()).eval(), ("a", "b"), Preprocess(32))
images = torch.randint(0, 256, (5, 3, 32, 32), dtype=torch.uint8)
before = torch.get_num_threads(), sys.stdout, logging.root.manager.disable
name, file = sys.argv[1:]
in_fp32 = "fp32" in engines.ENGINES[name].runs[None]
precision, options = ("fp32", {}) if in_fp32 else ("int8", {"calibration": [images]})
expected = engines.load(model_file, "torch" if in_fp32 else name, precision, "cpu", **options)(images)
made_of = model_file
if name in ("executorch", "litert"):  # a model file takes it seconds
    engines.ENGINES[name].export(engines.base.ExportJob(model_file, Path(file), "fp32"))
    made_of = engines.read(file)
shared = [engines.load(made_of, name, precision, "cpu", threads, **options) for threads in (1, 2)]
start, right = threading.Barrier(8), []

def work(number):
    start.wait()
    for time in range(4):
        engine = shared[(number + time) % 2]
        if time == 3:
            engine = engines.load(made_of, name, precision, "cpu", 1 + number % 3, **options)
        for size in (5, 1):
            torch.testing.assert_close(engine(images[:size]), expected[:size], rtol=1e-3, atol=1e-4)
    right.append(number)

threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
[thread.start() for thread in threads]
[thread.join() for thread in threads]
assert sorted(right) == list(range(8))
assert before == (torch.get_num_threads(), sys.stdout, logging.root.manager.disable)
new = []
thread = threading.Thread(target=lambda: new.append(torch.get_num_threads()))
thread.start()
thread.join()
assert new == [before[0]]
assert ("ignore", None, Warning, None, 0) not in warnings.filters
print("as before")
"""


@pytest.mark.parametrize("name", engines.ENGINES)
def test_eight_threads_make_call_and_drop_engines_of_other_thread_counts(name, tmp_path):
    if reason := engines.ENGINES[name].unavailable("cpu"):
        pytest.skip(reason)
    folder = Path(__file__).parents[1]
    command = [sys.executable, "-c", EIGHT_THREADS, name, tmp_path / f"m{engines.ENGINES[name].suffix}"]
    variables = {**os.environ, "OMP_NUM_THREADS": "2", "OMP_WAIT_POLICY": "passive"}
    done = subprocess.run(command, cwd=folder, env=variables, capture_output=True, text=True, timeout=300)
    assert (done.returncode, done.stdout) == (0, "as before\n"), done.stderr


def test_calls_that_overlap_leave_the_numbers_of_threads(tiny):
    before = torch.get_num_threads()
    engine = engines.load(tiny, "torch", "fp32", "cpu", threads=before + 1)
    inside, left, seen = [Event(), Event()], [Event(), Event()], []

    def waiting(images):
        number = int(threading.current_thread().name)
        seen.append(torch.get_num_threads())
        inside[number].set()
        left[number].wait(60)
        return torch.zeros(len(images), 2)

    engine.network = waiting
    after = []
    threads = [
        Thread(target=lambda: (engine(IMAGES), after.append(torch.get_num_threads())), name=str(number))
        for number in range(2)
    ]
    for thread, entered in zip(threads, inside, strict=True):
        thread.start()
        assert entered.wait(60)
    new_meanwhile = in_new_thread(torch.get_num_threads)
    for thread, leave in zip(threads, left, strict=True):
        leave.set()
        thread.join()
    assert seen == [before + 1] * 2
    assert after == [before] * 2
    assert (new_meanwhile, in_new_thread(torch.get_num_threads), torch.get_num_threads()) == (before,) * 3


@pytest.mark.skipif(sys.platform != "linux" or not torch.backends.mkl.is_available(), reason="looks at MKL's threads")
def test_matrix_products_keep_to_the_number_too():
    """MKL has a number of its own as soon as anybody has called `torch.set_num_threads`."""
    script = """
import os
from threading import Thread
import torch
from shvit.engines.threads import torch_threads

torch.set_num_threads(4)
a = torch.zeros(600, 600)
started = []

def multiply(count):
    before = len(os.listdir("/proc/self/task"))
    with torch_threads(count):
        a @ a
    started.append(len(os.listdir("/proc/self/task")) - before)

for count in (1, None):
    thread = Thread(target=multiply, args=(count,))
    thread.start()
    thread.join()
assert started[0] == 0 < started[1], started
"""
    subprocess.run([sys.executable, "-c", script], check=True, timeout=300)


def test_errors_restore_the_number():
    before = torch.get_num_threads()
    with pytest.raises(RuntimeError), torch_threads(before + 2):
        torch.zeros(2) @ torch.zeros(3)
    assert torch.get_num_threads() == before
