"""Small networks, small pictures, and the real photographs where they lie beside the checkout."""

import os

if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ["OMP_NUM_THREADS"] = "1"  # each worker has a core; OpenMP reads it when it is loaded

import json
import multiprocessing
import signal
import subprocess
import sys
import time
import warnings
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

if find_spec("triton") and not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # Triton reads it when it meets a kernel, its own among them: before all else
    import shvit.engines.cuda.kernels  # noqa: F401

    del os.environ["TRITON_INTERPRET"]

from shvit.cli import main as cli
from shvit.data.transforms import Preprocess
from shvit.engines.exported import SEAL, UNSEALED, files_of, seal
from shvit.errors import Notice
from shvit.model.architecture import Architecture
from shvit.model.config import Config, Stage
from shvit.modelfile import ModelFile, save

SHARED = Path(__file__).parents[2] / "shared" / "data"
TINY = Config((Stage(16, 1), Stage(24, 1, attended=8), Stage(32, 1, attended=8)), image_size=32)


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def undrawn(request, monkeypatch):
    """Tests of training draw no curves and pages, which take longer than their epochs, but those marked `drawn`."""
    if request.path.parent.name == "train" and "drawn" not in request.keywords:
        monkeypatch.setattr("shvit.train.metrics.draw_curves", lambda *_: None)
        monkeypatch.setattr("shvit.train.finish.write_training_report", lambda *_: None)


@pytest.fixture(scope="session")
def photos() -> Path:
    if not (SHARED / "photos").is_dir():
        pytest.skip("the real photographs are not beside this checkout")
    return SHARED / "photos"


@pytest.fixture(scope="session")
def imagenette(photos) -> Path:
    return SHARED / "imagenette160"


def randomize_norms(model: torch.nn.Module) -> torch.nn.Module:
    """Fresh BatchNorm statistics hide every folding error."""
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm1d | torch.nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.2)
            module.running_var.uniform_(0.5, 2)
            module.weight.data.uniform_(0.5, 1.5)
            module.bias.data.normal_(0, 0.2)
    return model


def trained_looking(model: torch.nn.Module) -> torch.nn.Module:
    """BatchNorm statistics of random images: with random ones the outputs hardly depend on the images."""
    for module in randomize_norms(model).modules():
        if isinstance(module, torch.nn.BatchNorm1d | torch.nn.BatchNorm2d):
            module.momentum = 1.0
    with torch.no_grad():
        model.train()((random_images(16, 64) / 255 - 0.45) / 0.225)
    return model.eval()


@torch.no_grad()
def telling_apart(margin: float, adapted: bool = False) -> torch.nn.Module:
    """A network of two classes, dark and light, whose logits of such pictures differ by about this margin.

    `adapted`: its norms have the statistics of these pictures, as after training. It then makes a few mistakes.
    """
    model = trained_looking(tiny_architecture().build())
    shades = [[np.array(picture(shade, seed, size=(32, 32))) for seed in range(900, 1100)] for shade in (60, 190)]
    images = (torch.from_numpy(np.array(shades)).flatten(0, 1).permute(0, 3, 1, 2) / 255 - 0.45) / 0.225
    model.train(adapted)(images)
    features = model.eval().head.norm(model.forward_features(images).mean((2, 3)))
    targets = torch.tensor([-margin, margin]).repeat_interleave(200)
    fit = torch.linalg.lstsq(torch.cat([features, torch.ones(400, 1)], 1), targets[:, None] / 2).solution[:, 0]
    model.head.linear.weight.copy_(torch.stack([-fit[:-1], fit[:-1]]))
    model.head.linear.bias.copy_(torch.stack([-fit[-1], fit[-1]]))
    return model


def tiny_architecture(num_classes: int = 2, **options) -> Architecture:
    return Architecture("tiny", num_classes, config=TINY, **options)


@pytest.fixture
def tiny() -> ModelFile:
    """A trained-looking network of two classes, dark and light."""
    model = randomize_norms(tiny_architecture().build()).eval()
    return ModelFile(model, ("dark", "light"), Preprocess(32))


@pytest.fixture
def start(tmp_path) -> str:
    """The file of a small classifier to start from."""
    save(ModelFile(tiny_architecture(5).build(), tuple("abcde"), Preprocess(32)), tmp_path / "start.safetensors")
    return str(tmp_path / "start.safetensors")


def reseal(path: Path) -> None:
    """Gives a changed export the digest of what it is now, as whoever changes it on purpose can."""
    for part in files_of(path):
        part.write_bytes(SEAL.sub(UNSEALED, part.read_bytes()))
    seal(path)


def random_images(count: int, height: int, width: int | None = None) -> torch.Tensor:
    """Patches of colour (count, 3, height, width) with the outermost rows and columns as dark or bright as can be."""
    blocks = torch.randint(0, 256, (count, 3, 4, 4), dtype=torch.uint8)
    images = torch.nn.functional.interpolate(blocks, (height, width or height))
    images[:, :, 0], images[:, :, -1], images[..., 0], images[..., -1] = 0, 255, 255, 0
    return images


@torch.inference_mode()
def plain_outputs(model_file: ModelFile, images: torch.Tensor) -> torch.Tensor:
    """Of the network as it was trained: nothing folded, pixels normalised before it."""
    preprocess = model_file.preprocess
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (preprocess.mean, preprocess.std))
    return model_file.model((images / 255 - mean) / std)


def memory_taken(code: str, *arguments) -> tuple[int, str]:
    """By how many MiB the peak memory of a Python process grows in the last of these lines, and what it prints."""
    *first, last = code.strip().splitlines()
    peak = "resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // (2**20 if sys.platform == 'darwin' else 2**10)"
    lines = ["import resource, sys", *first, f"before = {peak}", last, f"print({peak} - before)"]
    command = [sys.executable, "-c", "\n".join(lines), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100)
    assert not done.returncode, done.stderr
    *printed, taken = done.stdout.splitlines()
    return int(taken), "\n".join(printed)


@pytest.fixture
def at_most_ten_seconds():
    """A test that waits for a pipe fails."""

    def stop(*_):
        raise TimeoutError

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(10)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


def picture(shade: int, seed: int = 0, size: tuple[int, int] = (40, 36)) -> Image.Image:
    """Noise around a shade of grey, (height, width)."""
    noise = np.random.default_rng((shade, seed)).integers(-25, 25, (*size, 3))
    return Image.fromarray((shade + noise).clip(0, 255).astype(np.uint8))


def write_pictures(folder: Path, shade: int, count: int, first: int = 0) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for index in range(first, first + count):
        picture(shade, index).save(folder / f"{index:03}.png")


@pytest.fixture
def folder(tmp_path) -> Path:
    """Two classes that any network can tell apart, with train and val."""
    root = tmp_path / "images"
    for name, shade in (("dark", 60), ("light", 190)):
        write_pictures(root / "train" / name, shade, 20)
        write_pictures(root / "val" / name, shade, 6, first=100)
    return root


@pytest.fixture
def run(monkeypatch, capfd):
    """Runs `shvit ARGUMENTS`; gives exit code, stdout and stderr, those of other processes included."""

    def call(*arguments) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["shvit", *map(str, arguments)])
        monkeypatch.setenv("COLUMNS", "400")
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("default", Notice)
                cli.main()
            code = 0
        except SystemExit as stop:
            code = stop.code or 0
        captured = capfd.readouterr()
        return code, captured.out, captured.err

    return call


POLYGON = [[4, 4, 24, 4, 24, 20, 4, 20]]
COCO = {
    "images": [
        {"id": 5, "file_name": "a.png", "height": 40, "width": 64},
        {"id": 3, "file_name": "b.png", "height": 40, "width": 64},
    ],
    "categories": [{"id": 7, "name": "tree"}, {"id": 0, "name": "cat"}],
    "annotations": [
        {"id": 1, "image_id": 5, "category_id": 7, "bbox": [4, 4, 20, 16], "area": 300.5, "segmentation": POLYGON},
        {"id": 2, "image_id": 5, "category_id": 0, "bbox": [30.5, 2, 8, 9], "iscrowd": 1,
         "segmentation": {"size": [40, 64], "counts": [0, 2560]}},
    ],
}  # fmt: skip


def write_coco(root: Path, file: dict = COCO, splits=("train2017", "val2017"), images="{split}") -> Path:
    """A COCO folder of the same two images in each split."""
    for split in splits:
        folder = root / images.format(split=split)
        folder.mkdir(parents=True, exist_ok=True)
        for name in ("a.png", "b.png"):
            picture(90, size=(40, 64)).save(folder / name)
        (root / "annotations").mkdir(exist_ok=True)
        (root / "annotations" / f"instances_{split}.json").write_text(json.dumps(file))
    return root


@pytest.fixture
def begin():
    """Starts a command, its outputs piped as text. What is left of it, and of its children, ends with the test."""
    begun = []

    def begin(command, **options) -> subprocess.Popen:
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        begun.append(subprocess.Popen(command, **pipes, **options))
        return begun[-1]

    yield begin
    for process in begun:
        for pid in descendants(process.pid):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        process.kill()
        process.communicate()


@pytest.fixture
def processes_end():
    """The test fails where Python processes that it started go on after it."""
    before = multiprocessing.active_children()
    yield
    assert [child for child in multiprocessing.active_children() if child not in before] == []


def descendants(pid: int) -> list[int]:
    """The process's children, and theirs."""
    listed = subprocess.run(["ps", "-o", "pid=", "--ppid", str(pid)], capture_output=True, text=True).stdout
    children = [int(line) for line in listed.split()]
    return [*children, *(below for child in children for below in descendants(child))]


def wait_for(path: Path, process: subprocess.Popen) -> None:
    """Until the process has written it."""
    deadline = time.monotonic() + 240
    while not path.exists():
        assert time.monotonic() < deadline
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.02)


@pytest.fixture
def quick_machine(monkeypatch):
    """`shvit bench` measures this machine in no time, by small matrices."""
    from shvit.bench import machine

    monkeypatch.setattr(machine, "CPU_SIDES", (32, 64))
    monkeypatch.setattr(machine, "MEMORY_BYTES", 2**18)
    monkeypatch.setattr(machine, "REPEAT_SECONDS", 0.001)


@pytest.fixture(
    params=[
        pytest.param("cpu", marks=pytest.mark.skipif(torch.cuda.is_available(), reason="kernels are compiled here")),
        pytest.param("cuda", marks=pytest.mark.gpu),
    ]
)
def kernel_device(request, monkeypatch) -> str:
    """Where kernels run: in Triton's interpreter where there is no GPU."""
    pytest.importorskip("triton")
    if request.param == "cuda":
        if not torch.cuda.is_available():
            pytest.skip("no GPU here")
        return "cuda"
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    from triton.runtime import interpreter

    def create_dot(self, a, b, d, *options):
        """The interpreter holds bf16 as its bits, and multiplies these; here it multiplies the numbers."""
        numbers = [
            (one.data.astype(np.uint32) << 16).view(np.float32) if one.data.dtype == np.uint16 else one.data
            for one in (a, b)
        ]
        return interpreter.TensorHandle(np.matmul(*numbers, dtype=d.data.dtype) + d.data, d.dtype.scalar)

    monkeypatch.setattr(interpreter.InterpreterBuilder, "create_dot", create_dot)
    return "cpu"
