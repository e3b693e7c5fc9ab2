"""The engine `cuda`: SHViT on shvit's own kernels for NVIDIA GPUs, in fp16 or bf16. The engine has no file format.

Each batch runs as a CUDA graph: one launch for the whole network. Batch sizes are powers of two. The graph for a batch
size is created when the size is first used, from the kernels that are fastest on this GPU.
"""

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from statistics import median
from threading import Lock
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from ...errors import Failure, notice
from ...model.shapes import MIN_SIDE
from ...model.shvit import SHViT
from ...modelfile import ModelFile
from ..base import Engine, Precisions, Runnable
from ..exported import EngineError
from ..portable import portable
from ..torch import DTYPES, TorchEngine, gpu_failures, no_triton
from .plan import Choices, Launch, TooLarge, Way

if TYPE_CHECKING:
    from .network import KernelNetwork

CAPABILITY = (8, 0)
"""Minimum compute capability. Older GPUs have neither bf16 nor asynchronous copies."""
MAX_BATCH = 1024
MAX_GRAPHS = 32
"""Maximum number of graphs, each of which has its own memory. The oldest graph is deleted to make room for another."""
QUEUED_LAUNCHES, QUEUE_CYCLES = 30, 8_000_000
"""For timing: the number of queued launches (about 30 us each), and the cycles (4 ms) that the GPU waits meanwhile."""


class Size(NamedTuple):
    """The images that a graph is made for."""

    batch: int
    height: int
    width: int
    channels_last: bool


class CudaEngine(Engine):
    """Runs SHViT on Triton kernels. The torch engine runs networks that the kernels cannot run, with a notice.

    If GPU memory runs out, the batch size is halved, with a notice. Triton's interpreter can run the kernels on a CPU.
    """

    name: ClassVar[str] = "cuda"
    every_network: ClassVar[bool] = False
    runs: ClassVar[Precisions] = {None: ("fp16", "bf16")}

    def __init__(self, model: Runnable, precision: str, device: str, threads: int | None = None) -> None:
        from .network import KernelNetwork, UnsupportedNetwork

        assert isinstance(model, ModelFile), "this engine has no file format"
        self.precision = precision
        self.most = MAX_BATCH
        """Maximum batch size."""
        self._device = torch.empty(0, device=device).device  # with the index of the current GPU if none is given
        self.device = str(self._device)
        self._choices = Choices()
        self._graphs: dict[Size, Graph] = {}
        self._lock = Lock()
        self._most_images: dict[tuple[int, int], int] = {}
        self._torch: TorchEngine | None = None
        self._make_torch = lambda: TorchEngine(model, precision, device, threads)
        try:
            self._kernels: KernelNetwork | None = KernelNetwork(portable(model), DTYPES[precision], str(self._device))
        except UnsupportedNetwork as reason:
            self._kernels = None
            self._use_torch(reason)

    @classmethod
    def absent(cls) -> str | None:
        return no_triton()

    @classmethod
    def unavailable(cls, device: str) -> str | None:
        if torch.device(device).type != "cuda" or torch.version.cuda is None:
            return "runs only on NVIDIA GPUs"
        capability = torch.cuda.get_device_capability(device)
        if capability < CAPABILITY:
            return "needs compute capability {}.{}, this GPU has {}.{}".format(*CAPABILITY, *capability)
        return cls.absent()

    @classmethod
    def refuses(cls, network: Any) -> str | None:
        return None if isinstance(network, SHViT) else "its kernels run only SHViT: use --engine torch"

    @torch.inference_mode()
    def __call__(self, images: UInt8[Tensor, "b 3 h w"]) -> Float[Tensor, "b classes"]:
        if images.ndim != 4 or not len(images) or images.shape[1] != 3 or images.dtype != torch.uint8:
            raise EngineError(f"images must be (batch, 3, height, width) in uint8, got {images.dtype} {images.shape}")
        if min(images.shape[2:]) < MIN_SIDE:
            size = f"{images.shape[2]}x{images.shape[3]}"
            raise EngineError(f"images must be at least {MIN_SIDE} pixels high and wide, got {size}")
        current = torch.cuda.device(self._device) if self._device.type == "cuda" else nullcontext()
        with self._lock, current, gpu_failures(self._device):  # kernels are launched on the current device
            outputs: list[Tensor] = []
            while (done := sum(map(len, outputs))) < len(images):
                if self._torch:
                    outputs.append(self._torch(images[done:]))
                elif (logits := self._next(images[done:])) is not None:
                    outputs.append(logits)
            return torch.cat(outputs) if len(outputs) > 1 else outputs[0]

    def launches(self, images: UInt8[Tensor, "b 3 h w"]) -> Sequence[Launch]:
        """The kernels that a call with these images launches, batch by batch; empty if the torch engine is used."""
        self(images)
        launches: list[Launch] = []
        left = len(images)
        while left and not self._torch:
            size = self._size(images[:left])
            launches += self._graphs[size].launches
            left -= min(left, size.batch)
        return launches

    def _next(self, images: Tensor) -> Tensor | None:
        """The logits of the next batch. None: the batch failed, and the batch size was halved or the engine changed."""
        size = self._size(images)
        try:
            return self._graph(size)(images[: size.batch])
        except TooLarge as reason:
            self._use_torch(reason)
        except RuntimeError as error:  # from torch or from other parts of CUDA
            if "out of memory" not in str(error):
                raise
            self._halve(size.batch)
        return None

    def _size(self, images: Tensor) -> Size:
        assert self._kernels is not None
        _, _, height, width = images.shape
        channels_last = not images.is_contiguous() and images.is_contiguous(memory_format=torch.channels_last)
        if (height, width) not in self._most_images:
            self._most_images[height, width] = self._kernels.most_images(height, width)
        most = min(self.most, self._most_images[height, width])
        return Size(bucket(len(images), most), height, width, channels_last)

    def _graph(self, size: Size) -> "Graph":
        assert self._kernels is not None
        if size not in self._graphs:
            if len(self._graphs) >= MAX_GRAPHS:
                del self._graphs[next(iter(self._graphs))]
            self._graphs[size] = Graph(self._kernels, self._choices, size, self._device)
        return self._graphs[size]

    def _halve(self, batch: int) -> None:
        self._graphs.clear()
        if self._device.type == "cuda":
            torch.cuda.empty_cache()
        if batch == 1:
            raise Failure(f"{self._device} has too little memory for one image")
        self.most = batch // 2
        notice(f"{self._device} has too little memory for {batch} images at once: using {self.most} from now on")

    def _use_torch(self, reason: Exception) -> None:
        self._graphs.clear()
        self._torch = self._make_torch()
        notice(
            f"the kernels of engine cuda cannot run this network ({reason}): the torch engine runs it {self._torch.how}"
        )


class Graph:
    """The network for one `Size`, with its own memory. Raises TooLarge as `Choices.tune` does."""

    def __init__(self, kernels: "KernelNetwork", choices: Choices, size: Size, device: torch.device) -> None:
        layout = torch.channels_last if size.channels_last else torch.contiguous_format
        shape = (size.batch, 3, size.height, size.width)
        self._images = torch.empty(shape, dtype=torch.uint8, device=device, memory_format=layout).random_(0, 256)
        on_gpu = device.type == "cuda"
        about: Any = torch.cuda.get_device_properties(device) if on_gpu else None
        plan, self._logits = kernels.plan(self._images, about.multi_processor_count if on_gpu else 1)
        if on_gpu:
            threads = min(16, os.cpu_count() or 1)
            with ThreadPoolExecutor(threads, "shvit-compile", torch.cuda.set_device, (device,)) as pool:
                choices.tune(plan, _seconds, about.shared_memory_per_block_optin, pool)
        self.launches = choices.launches(plan)
        self._run: Callable[[], None] = _captured(self.launches, device) if on_gpu else lambda: _launch(self.launches)
        self._done = torch.cuda.Event() if on_gpu else None

    def __call__(self, images: UInt8[Tensor, "b 3 h w"]) -> Float[Tensor, "b classes"]:
        """Run at most as many images as the graph was made for."""
        if self._done:  # wait for the previous call, which may be on another stream
            torch.cuda.current_stream().wait_event(self._done)
        self._images[: len(images)].copy_(images, non_blocking=True)
        self._run()
        logits = self._logits[: len(images)].clone()
        if self._done:
            self._done.record()
        return logits.to(images.device)


def bucket(images: int, most: int) -> int:
    """The size of the next batch when this number of images is left. It is a power of two.

    Up to 8 images run in one batch. More images are split unless they fill at least three quarters of a single batch.
    """
    size = 1 << (images - 1).bit_length()
    if images > 8 and 4 * images < 3 * size:
        size //= 2
    return min(size, 1 << (most.bit_length() - 1))


def _launch(launches: Way) -> None:
    for launch in launches:
        launch()


def _captured(launches: Way, device: torch.device) -> Callable[[], None]:
    """Capture all launches as one CUDA graph."""
    _launch(launches)  # loads the kernels, since loading cannot be captured
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=torch.cuda.Stream(device), capture_error_mode="thread_local"):
        _launch(launches)
    return graph.replay


def _seconds(way: Way) -> float:
    """GPU time of these launches. The GPU waits while the CPU queues them, so CPU time does not count."""
    _launch(way)  # loads the kernels
    calls = max(1, QUEUED_LAUNCHES // len(way))
    times = []
    for _ in range(3):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda._sleep(QUEUE_CYCLES)  # torch has no public name for this
        start.record()
        for _ in range(calls):
            _launch(way)
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end) / calls / 1e3)
    return median(times)
