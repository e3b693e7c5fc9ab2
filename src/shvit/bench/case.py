"""Measure the speed and memory of one case: one network, engine, precision and size, in a separate process."""

import ctypes
import gc
import multiprocessing
import os
import re
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import median
from typing import Any

import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from .. import engines
from ..data.letterbox import Letterbox
from ..data.transforms import Preprocess
from ..engines import Exported, Runnable
from ..engines.portable import portable
from ..engines.torch import DTYPES
from ..errors import Failure, InputError, one_line
from ..model.architecture import TIMM_PREFIX, Architecture
from ..model.fuse import fuse
from ..modelfile import ModelFile
from ..pretrained import default_preprocess, load
from ..suppress import unwarned
from ..tasks import kind_of, task_of, with_head
from .machine import synchronize
from .peers import COMPILED, EAGER, TRACED, Top1
from .profile import OpTime, profiled
from .timing import sample, warm_up
from .torchvision import TORCHVISION_PREFIX, TorchvisionDetector, is_torchvision

WHOLE, BACKBONE = "whole", "backbone"
BACKBONE_TASK = "classify"
"""Task of backbones, which are timed as classifiers with a single class."""
RANDOM_CLASSES = 80
"""Number of classes of detectors with random weights, as in COCO."""
CALIBRATION_BATCHES, CALIBRATION_SIZE = 4, 8

OpenedModel = Any
"""A `ModelFile`, an `Exported` file, or a torchvision detector."""


def is_detector(task: str) -> bool:
    """Whether networks for this task are detectors."""
    return kind_of(task).detector is not None


@dataclass(frozen=True)
class Case:
    """One configuration that is timed."""

    model: str
    engine: str
    """A key of `engines.ENGINES`, or of `YARDSTICKS`."""
    precision: str
    batch_size: int
    image_size: int
    device: str
    threads: int | None
    """Number of CPU threads. None: the engine's default."""
    task: str = "classify"
    part: str = WHOLE
    """Part of a detector: `whole` (from pixels to boxes) or `backbone` (up to the last feature map)."""
    head: str | None = None
    """Kind of detector to build, as in `Task.head`. None: the task's default."""

    def __str__(self) -> str:
        what = f"{self.model}, {self.task} ({self.part})" if is_detector(self.task) else self.model
        return f"{what}, {self.engine} {self.precision}, batch {self.batch_size}, {self.image_size} pixels"


def has_random_weights(name: str) -> bool:
    """Whether `name` is a network, such as `timm/NAME` or `shvit_s1`, and not a file. Its weights are then random."""
    return not Path(name).exists() and (name.startswith(TIMM_PREFIX) or not Path(name).suffix)


def runs_as_it_is(name: str) -> bool:
    """Whether the model determines engine and precision, as exported files and torchvision detectors do."""
    return engines.is_exported(name) or is_torchvision(name)


def open_model(
    name: str,
    image_size: int | None = None,
    task: str = BACKBONE_TASK,
    part: str = WHOLE,
    head: str | None = None,
) -> OpenedModel:
    """Open a model. Networks given by name and all backbones get random weights. Exported files keep their image size.

    `head` is the kind of detector that networks given by name get. None: the task's default.

    Raises:
        InputError: The model does not exist, its file is not usable, or the model was made for a different task.
    """
    if is_torchvision(name):
        if not is_detector(task) or image_size is None:
            raise InputError(f"{name} is a detector: give --task detect or segment")
        return TorchvisionDetector(name.removeprefix(TORCHVISION_PREFIX), image_size)
    if has_random_weights(name):
        architecture = Architecture(name)
    else:
        opened = load(name)
        if opened.task != task:
            raise InputError(f"{name} has the task {opened.task}, but --task is {task}")
        if isinstance(opened, Exported):
            return opened
        if part == WHOLE:
            preprocess = opened.preprocess
            size, fit = image_size or preprocess.image_size, kind_of(task).new_fit(preprocess.fit)
            return replace(opened, preprocess=replace(preprocess, image_size=size, fit=fit))
        architecture = opened.architecture
    if part == BACKBONE:
        architecture = replace(architecture, num_classes=1, distilled=False, detector=None)
    elif is_detector(task):
        kind = with_head(task, head) if head else kind_of(task)
        architecture = replace(architecture, num_classes=RANDOM_CLASSES, distilled=False, detector=kind.detector)
    return _random_model(architecture, image_size, task, part)


def _random_model(architecture: Architecture, image_size: int | None, task: str, part: str) -> ModelFile:
    """A model with random weights. All BatchNorm weights are 1.

    The usual initialization sets some of these weights to zero. The network would then run faster than after training.
    """
    torch.manual_seed(0)
    model = architecture.build().eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d) and module.affine:
            nn.init.ones_(module.weight)
    classes = tuple(str(index) for index in range(model.architecture.num_classes))
    if not is_detector(task):
        return ModelFile(model, classes, default_preprocess(model, image_size), task)
    side = image_size or model.image_size
    return ModelFile(model, classes, Preprocess(side, fit="whole"), BACKBONE_TASK if part == BACKBONE else task)


def own_top1(name: str) -> Top1 | None:
    """The accuracy that training or `shvit calibrate-bn` stored in a model file. None if nothing is stored."""
    if has_random_weights(name) or is_torchvision(name):
        return None
    model = load(name)
    top1, size = model.metrics.get("top1"), model.preprocess.image_size
    return None if top1 is None else Top1(100 * top1, size, f"{name}, its own metrics", own=True)


def _random_images(count: int, size: int) -> UInt8[Tensor, "b 3 h w"]:
    return torch.randint(0, 256, (count, 3, size, size), dtype=torch.uint8)


def _to_the_end(engine: Callable[[Tensor], Any], images: Tensor) -> Callable[[], object]:
    """A function that runs the engine and returns when the device has finished."""
    return lambda: (engine(images), synchronize(str(images.device)))


class Traced:
    """Runs a network as in the paper's scripts. Images are created once on the device, and outputs stay there."""

    @torch.inference_mode()
    def __init__(self, model_file: ModelFile, case: Case) -> None:
        self.case = case
        size = case.image_size
        self.images = torch.randn(case.batch_size, 3, size, size, device=case.device)
        network: Any = model_file.model
        with unwarned():  # torch warns that tracing is deprecated
            self.network: Any = torch.jit.trace(fuse(network).to(case.device), self.images)

    @torch.inference_mode()
    def __call__(self, images: UInt8[Tensor, "b 3 h w"]) -> Float[Tensor, "b classes"]:
        with torch.autocast(torch.device(self.case.device).type, torch.float16, self.case.precision == "fp16"):
            return self.network(self.images)


class Eager:
    """Runs a network in plain PyTorch. The uint8 images and the outputs are on the device."""

    def __init__(self, model_file: ModelFile, case: Case) -> None:
        self.network: Any = portable(model_file).to(case.device, DTYPES[case.precision])
        self.network.to(memory_format=torch.channels_last)

    @torch.inference_mode()
    def __call__(self, images: UInt8[Tensor, "b 3 h w"]) -> Float[Tensor, "b classes"]:
        return self.network(images)


class Compiled(Eager):
    """`Eager` with torch.compile. Tries two memory formats and keeps the faster one, which `detail` names."""

    def __init__(self, model_file: ModelFile, case: Case) -> None:
        torch._dynamo.config.recompile_limit = 10**6  # by default, the ninth network of a process is not compiled
        call = _to_the_end(self, _random_images(case.batch_size, case.image_size).to(case.device))
        found = []
        for name, layout in (("NCHW", torch.contiguous_format), ("channels_last", torch.channels_last)):
            network: Any = portable(model_file).to(case.device, DTYPES[case.precision])
            network = network.to(memory_format=layout)
            self.network = torch.compile(network, mode="max-autotune", fullgraph=True, dynamic=False)
            found.append((median(sample(call, warm_up(call))), name, self.network))
        _, self.detail, self.network = min(found)


YARDSTICKS: dict[str, Callable[[ModelFile, Case], Callable[[Tensor], Tensor]]] = {
    TRACED: Traced,
    EAGER: Eager,
    COMPILED: Compiled,
}
"""Ways to run a network in PyTorch, by name, for comparison with the engines."""


class Subject:
    """A case, loaded and warmed up.

    Raises:
        Failure: The case cannot run. The message gives the reason. `time` and `profile` also raise Failure.
    """

    def __init__(self, case: Case) -> None:
        self._case = case
        with as_failure():
            before = _memory(case.device)
            engine = _start(case)
            images = _random_images(case.batch_size, case.image_size).to(case.device)
            self._call = _to_the_end(engine, images)
            self._profile = lambda: profiled(
                self._call, case.device, engine.launches(images) if isinstance(engine, engines.Engine) else ()
            )
            self.detail: str | None = getattr(engine, "detail", None)
            """How the engine runs the network, to show in the table. None: nothing to show."""
            gc.collect()
            was_reset = before is not None and _reset_peak(case.device)
            self._repetitions = warm_up(self._call)
            peak = _memory(case.device, peak=True)
            self.memory = None if before is None or peak is None or not was_reset else peak - before
            """Peak memory while the case runs, minus memory before it was loaded, in bytes. None: unknown."""

    def time(self) -> list[float]:
        """Take one sample. Returns the seconds of each call."""
        with as_failure():
            return sample(self._call, self._repetitions)

    def profile(self) -> list[OpTime]:
        """Time of each operation in a call. Empty if PyTorch's profiler cannot record the engine's operations."""
        kind = engines.ENGINES.get(self._case.engine)
        if self._case.device == "cpu" and self._case.engine not in YARDSTICKS and not (kind and kind.profiled):
            return []
        with as_failure():
            return self._profile()

    def close(self) -> None:
        """Free the network."""
        del self._call, self._profile


def _start(case: Case) -> Callable[[Tensor], Any]:
    """Return the function that runs the case. For a whole detector, it goes from pixels to boxes."""
    model = open_model(case.model, case.image_size, case.task, case.part, case.head)
    if is_torchvision(case.model):
        return model.to(case.device)
    engine = _engine(model, case)
    if not is_detector(model.task):
        return engine
    task: Any = task_of(model)
    frames = [Letterbox(case.image_size, case.image_size, 1.0, 1.0)] * case.batch_size
    return lambda images: task.decode(engine(images), frames)


def _engine(model: Runnable, case: Case) -> Callable[[Tensor], Tensor]:
    if case.engine in YARDSTICKS:
        assert isinstance(model, ModelFile)
        return YARDSTICKS[case.engine](model, case)
    options: dict[str, Any] = {}
    if case.precision == "int8" and not isinstance(model, Exported):
        batches = (_random_images(CALIBRATION_SIZE, case.image_size) for _ in range(CALIBRATION_BATCHES))
        options["calibration"] = list(batches)
    return engines.load(model, case.engine, case.precision, case.device, case.threads, **options)


def _memory(device: str, peak: bool = False) -> int | None:
    """Bytes in use, or their peak: of this process on a CPU, of torch's allocator on CUDA. None: unknown."""
    if device.startswith("cuda"):
        return torch.cuda.max_memory_allocated(device) if peak else torch.cuda.memory_allocated(device)
    status = Path("/proc/self/status")
    if device != "cpu" or not status.is_file():
        return None
    found = re.search(rf"^{'VmHWM' if peak else 'VmRSS'}:\s*(\d+) kB", status.read_text(encoding="utf-8"), re.MULTILINE)
    return int(found[1]) * 1024 if found else None


def _reset_peak(device: str) -> bool:
    """Reset the memory peak, to exclude the memory used for loading. Returns False if the system cannot reset it."""
    if device.startswith("cuda"):
        torch.cuda.reset_peak_memory_stats(device)
        return True
    if trim := getattr(ctypes.CDLL(None), "malloc_trim", None):
        trim(0)  # after loading, glibc keeps freed memory of several times the network's size
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:  # missing or read-only in some containers
        return False
    return True


def free_memory() -> float:
    """The fraction of the machine's memory that is available. 1 if the system does not report it."""
    meminfo = Path("/proc/meminfo")
    text = meminfo.read_text(encoding="utf-8") if meminfo.is_file() else ""
    found = [re.search(rf"^{name}:\s*(\d+) kB", text, re.MULTILINE) for name in ("MemAvailable", "MemTotal")]
    return int(found[0][1]) / int(found[1][1]) if found[0] and found[1] else 1.0


class Worker:
    """A `Subject` in a separate process, where it cannot affect other cases.

    Raises:
        Failure: The case cannot run. The message gives the reason.
    """

    def __init__(self, case: Case) -> None:
        context: Any = multiprocessing.get_context("forkserver" if sys.platform == "linux" else "spawn")
        if sys.platform == "linux":
            context.set_forkserver_preload([__name__])  # imports torch once for all workers
        self._pipe, pipe = context.Pipe()
        self._process = context.Process(target=_serve, args=(pipe, case), daemon=True)
        self._process.start()
        pipe.close()
        self.memory, self.detail = self._answer()

    def time(self) -> list[float]:
        """See `Subject.time`."""
        return self._answer("time")

    def profile(self) -> list[OpTime]:
        """See `Subject.profile`."""
        return self._answer("profile")

    def close(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.join()

    def _answer(self, question: str | None = None) -> Any:
        try:
            if question:
                self._pipe.send(question)
            answer = self._pipe.recv()
        except (EOFError, OSError):
            self._process.join()
            code = self._process.exitcode
            cause = "killed, perhaps because memory ran out" if code == -signal.SIGKILL else f"exit code {code}"
            raise Failure(f"the process of this case ended early ({cause})") from None
        if isinstance(answer, Failure):
            raise answer
        return answer


def _serve(pipe: Connection, case: Case) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent handles Ctrl-C
    with suppress(OSError):  # if memory runs out, Linux ends this process and not the parent
        Path("/proc/self/oom_score_adj").write_text("1000")
    os.dup2(2, 1)  # stdout is reserved for the parent's JSON
    if case.threads:
        torch.set_num_threads(case.threads)
    try:
        subject = Subject(case)
        pipe.send((subject.memory, subject.detail))
        while True:
            pipe.send(getattr(subject, pipe.recv())())
    except EOFError:
        return
    except Failure as failure:
        pipe.send(failure)


@contextmanager
def as_failure() -> Iterator[None]:
    """Convert any exception to a Failure with a one-line message. The benchmark then continues without this case."""
    try:
        yield
    except (Failure, InputError) as error:
        raise Failure(one_line(error)) from None
    except Exception as error:
        raise Failure(f"{type(error).__name__}: {one_line(error)[:300]}") from error
