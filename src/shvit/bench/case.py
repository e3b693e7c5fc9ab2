"""What is timed: one network in one engine at one size, in a process of its own; and the memory that it takes."""

import ctypes
import gc
import multiprocessing
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
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
from ..engines.cuda.engine import CudaEngine
from ..engines.portable import portable
from ..engines.torch import DTYPES
from ..errors import Failure, InputError
from ..model.architecture import TIMM_PREFIX, Architecture
from ..model.fuse import fuse
from ..modelfile import ModelFile
from ..pretrained import default_preprocess, load
from ..suppress import unwarned
from ..tasks import TASKS, task_of
from .machine import synchronize
from .peers import COMPILED, EAGER, TRACED, Top1
from .profile import OpTime, profiled
from .timing import sample, warm_up
from .torchvision import TORCHVISION_PREFIX, TorchvisionDetector

WHOLE, BACKBONE = "whole", "backbone"
PARTS = {"classify": (WHOLE,), "detect": (BACKBONE, WHOLE), "segment": (BACKBONE, WHOLE)}
"""What is timed of a network for a task."""
CLASSES = 80
"""Of detectors with random weights: COCO's."""
CALIBRATION_BATCHES, CALIBRATION_SIZE = 4, 8


@dataclass(frozen=True)
class Case:
    """One configuration."""

    model: str
    engine: str
    """A key of `engines.ENGINES`, or of `YARDSTICKS`."""
    precision: str
    batch_size: int
    image_size: int
    device: str
    threads: int | None
    """None: as many as the engine takes by itself."""
    task: str = "classify"
    part: str = WHOLE
    """Of a detector: all of it, from pixels to boxes; or its backbone, until the last map is there."""


def has_random_weights(name: str) -> bool:
    """Whether this is the name of a variant or `timm/NAME`, not a file's: of a network without weights."""
    return not Path(name).exists() and (name.startswith(TIMM_PREFIX) or not Path(name).suffix)


def runs_as_it_is(name: str) -> bool:
    """Whether engine and precision are not to be chosen: those of exported files, and of torchvision's detectors."""
    return engines.is_exported(name) or name.startswith(TORCHVISION_PREFIX)


def open_model(
    name: str, image_size: int | None = None, task: str = "classify", part: str = WHOLE
) -> Runnable | TorchvisionDetector:
    """The model; a bare name's, and a backbone, with random weights, an exported file's as it was written.

    Raises:
        InputError: No such model, a file that is not usable, or a model of another task.
    """
    if name.startswith(TORCHVISION_PREFIX):
        if task == "classify" or image_size is None:
            raise InputError(f"{name} is a detector: give --task detect or segment")
        return TorchvisionDetector(name.removeprefix(TORCHVISION_PREFIX), image_size)
    if engines.is_exported(name):
        return _of_task(engines.read(name), name, task)
    architecture: Architecture | None = None
    if not has_random_weights(name):
        model_file = load(name)
        assert isinstance(model_file, ModelFile)
        opened = _at_size(_of_task(model_file, name, task), image_size)
        if part == WHOLE:
            return opened
        architecture = model_file.architecture
    torch.manual_seed(0)
    architecture = architecture or Architecture(name)
    if part == BACKBONE:
        architecture = replace(architecture, num_classes=1, distilled=False, detector=None)
    elif task != "classify":
        kind = TASKS[task].detector
        architecture = replace(architecture, num_classes=CLASSES, distilled=False, detector=kind)
    model = architecture.build().eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d) and module.affine:
            nn.init.ones_(module.weight)  # some start at zero, and zeros are no work
    classes = tuple(str(index) for index in range(model.architecture.num_classes))
    if task == "classify":
        return ModelFile(model, classes, default_preprocess(model, image_size))
    side = image_size or model.image_size
    return ModelFile(model, classes, Preprocess(side, fit="whole"), "classify" if part == BACKBONE else task)


def own_top1(name: str) -> Top1 | None:
    """A file's accuracy, as its training or `shvit calibrate-bn` measured it; None of a network without such a file."""
    if has_random_weights(name) or name.startswith(TORCHVISION_PREFIX):
        return None
    model = load(name)
    top1, size = model.metrics.get("top1"), model.preprocess.image_size
    return None if top1 is None else Top1(100 * top1, size, f"{name}, its own metrics", own=True)


def _of_task(model: Runnable, name: str, task: str) -> Runnable:
    if model.task != task:
        raise InputError(f"{name} is a model to {model.task}, and --task is {task}")
    return model


def _at_size(model_file: Runnable, image_size: int | None) -> Runnable:
    fit = model_file.preprocess.fit if model_file.task == "classify" else "whole"
    changed = replace(model_file.preprocess, image_size=image_size or model_file.preprocess.image_size, fit=fit)
    return replace(model_file, preprocess=changed)


class Traced:
    """Runs a network as the paper's scripts did. The images are made on the device once; outputs stay there."""

    @torch.inference_mode()
    def __init__(self, model_file: ModelFile, case: Case) -> None:
        self.case = case
        size = case.image_size
        self.images = torch.randn(case.batch_size, 3, size, size, device=case.device)
        network: Any = model_file.model
        with unwarned():  # torch would rather have it exported
            self.network: Any = torch.jit.trace(fuse(network).to(case.device), self.images)

    @torch.inference_mode()
    def __call__(self, images: UInt8[Tensor, "b 3 h w"]) -> Float[Tensor, "b classes"]:
        with torch.autocast(torch.device(self.case.device).type, torch.float16, self.case.precision == "fp16"):
            outputs = self.network(self.images)
        synchronize(self.case.device)
        return outputs


class Eager:
    """PyTorch without an engine's care: uint8 images and the network's outputs stay on the device."""

    def __init__(self, model_file: ModelFile, case: Case) -> None:
        self.network: Any = portable(model_file).to(case.device, DTYPES[case.precision])
        self.network.to(memory_format=torch.channels_last)

    @torch.inference_mode()
    def __call__(self, images: UInt8[Tensor, "b 3 h w"]) -> Float[Tensor, "b classes"]:
        return self.network(images)


class Compiled:
    """`Eager`, compiled in both memory formats; `detail` says which is the faster and runs."""

    def __init__(self, model_file: ModelFile, case: Case) -> None:
        torch._dynamo.config.recompile_limit = 10**6  # else the ninth network of a process runs as if not compiled
        shape = (case.batch_size, 3, case.image_size, case.image_size)
        images = torch.randint(0, 256, shape, dtype=torch.uint8, device=case.device)
        seconds: dict[str, float] = {}
        networks: dict[str, Any] = {}
        for name, layout in (("NCHW", torch.contiguous_format), ("channels_last", torch.channels_last)):
            network = portable(model_file).to(case.device, DTYPES[case.precision])
            network = network.to(memory_format=layout)  # pyright: ignore[reportCallIssue]
            networks[name] = self._network = torch.compile(network, mode="max-autotune", fullgraph=True, dynamic=False)
            call = self._to_the_end(images, case.device)
            seconds[name] = median(sample(call, warm_up(call)))
        self.detail = min(seconds, key=lambda name: seconds[name])
        self._network = networks[self.detail]

    def _to_the_end(self, images: Tensor, device: str) -> Callable[[], object]:
        return lambda: (self(images), synchronize(device))

    @torch.inference_mode()
    def __call__(self, images: UInt8[Tensor, "b 3 h w"]) -> Float[Tensor, "b classes"]:
        return self._network(images)


YARDSTICKS: dict[str, Callable[[ModelFile, Case], Callable[[Tensor], Tensor]]] = {
    TRACED: Traced,
    EAGER: Eager,
    COMPILED: Compiled,
}


class Subject:
    """A case, loaded and warm.

    Raises:
        Failure: It cannot run; the message is the reason. So does `time`.
    """

    def __init__(self, case: Case) -> None:
        self._case = case
        with as_failure():
            memory = _Memory(case.device)
            engine = _start(case)
            shape = (case.batch_size, 3, case.image_size, case.image_size)
            images = torch.randint(0, 256, shape, dtype=torch.uint8).to(case.device)
            self._call: Callable[[], object] = lambda: (engine(images), synchronize(case.device))
            self._profile = lambda: profiled(
                self._call, case.device, engine.launches(images) if isinstance(engine, CudaEngine) else ()
            )
            self.detail: str | None = getattr(engine, "detail", None)
            """What else is to be known of how it runs."""
            gc.collect()
            memory.loaded()
            self._repetitions = warm_up(self._call)
            self.memory = memory.peak()
            """Bytes: the most that was held while it ran, less what was held before it was loaded. None: not known."""

    def time(self) -> list[float]:
        with as_failure():
            return sample(self._call, self._repetitions)

    def profile(self) -> list[OpTime]:
        """What a call spends its time on; empty where the engine does not show it to PyTorch's profiler."""
        if self._case.device == "cpu" and self._case.engine not in (*YARDSTICKS, "torch"):
            return []
        with as_failure():
            return self._profile()

    def close(self) -> None:
        del self._call, self._profile


def _start(case: Case) -> Callable[[Tensor], Any]:
    """What runs the case; a whole detector from pixels to boxes, as it is used."""
    model = open_model(case.model, case.image_size, case.task, case.part)
    if isinstance(model, TorchvisionDetector):
        return model.to(case.device)
    engine = _engine(model, case)
    if model.task == "classify":
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
        shape = (CALIBRATION_SIZE, 3, case.image_size, case.image_size)
        options["calibration"] = [torch.randint(0, 256, shape, dtype=torch.uint8) for _ in range(CALIBRATION_BATCHES)]
    return engines.load(model, case.engine, case.precision, case.device, case.threads, **options)


class _Memory:
    """Of this process, on the CPU; on CUDA what torch's allocator handed out there."""

    def __init__(self, device: str) -> None:
        self.device = device
        self.before = self._read("VmRSS", "allocated_bytes.all.current")

    def loaded(self) -> None:
        """From here on the peak counts: loading takes memory that running does not need."""
        if self.device.startswith("cuda"):
            torch.cuda.reset_peak_memory_stats(self.device)
        elif self.before is not None:
            give_back = getattr(ctypes.CDLL(None), "malloc_trim", None)
            if give_back:  # glibc keeps what loading has freed, several times the network, and would count it
                give_back(0)
            try:
                Path("/proc/self/clear_refs").write_text("5")  # the peak, from now
            except OSError:  # some containers have no such file, or do not let it be written
                self.before = None

    def peak(self) -> int | None:
        after = self._read("VmHWM", "allocated_bytes.all.peak")
        return None if self.before is None or after is None else after - self.before

    def _read(self, of_process: str, of_cuda: str) -> int | None:
        if self.device.startswith("cuda"):
            return torch.cuda.memory_stats(self.device).get(of_cuda, 0)
        status = Path("/proc/self/status")
        if self.device != "cpu" or not status.is_file():
            return None
        lines = [line for line in status.read_text(encoding="utf-8").splitlines() if line.startswith(of_process)]
        return int(lines[0].split()[1]) * 1024 if lines else None


class Worker:
    """A `Subject` in a process of its own: what it does to itself or to memory costs nobody else.

    Raises:
        Failure: It cannot run; the message is the reason.
    """

    def __init__(self, case: Case) -> None:
        context: Any = multiprocessing.get_context("forkserver" if sys.platform == "linux" else "spawn")
        if sys.platform == "linux":
            context.set_forkserver_preload([__name__])  # torch is imported once, not by each
        self._pipe, pipe = context.Pipe()
        self._process = context.Process(target=_serve, args=(pipe, case), daemon=True)
        self._process.start()
        pipe.close()
        self.memory: int | None
        self.detail: str | None
        self.memory, self.detail = self._answer()

    def time(self) -> list[float]:
        return self._answer("time")

    def profile(self) -> list[OpTime]:
        return self._answer("profile")

    def close(self) -> None:
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
            cause = "killed, perhaps for want of memory" if code == -signal.SIGKILL else f"exit code {code}"
            raise Failure(f"its process ended ({cause})") from None
        if isinstance(answer, Failure):
            raise answer
        return answer


def _serve(pipe: Connection, case: Case) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    os.dup2(2, 1)  # stdout is for the parent's JSON
    if case.threads:
        torch.set_num_threads(case.threads)
    try:
        subject = Subject(case)
        pipe.send((subject.memory, subject.detail))
        while True:
            question = pipe.recv()
            pipe.send(subject.profile() if question == "profile" else subject.time())
    except EOFError:
        return
    except Failure as failure:
        pipe.send(failure)


@contextmanager
def as_failure() -> Iterator[None]:
    """Whatever a runtime raises, it is the reason of one row, in one line."""
    try:
        yield
    except (Failure, InputError) as error:
        raise Failure(" ".join(str(error).split())) from None
    except Exception as error:
        raise Failure(f"{type(error).__name__}: {' '.join(str(error).split())[:300]}") from error
