"""OpenVINO's runtime: the only `Core` of the process, and networks that are compiled on first use."""

from functools import cache
from threading import Lock
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from .base import STATIC_SHAPES, in_batches
from .exported import EngineError

if TYPE_CHECKING:
    import openvino as ov

HINTS = {"fp32": {"INFERENCE_PRECISION_HINT": "f32"}, "bf16": {"INFERENCE_PRECISION_HINT": "bf16"}, "int8": {}}
"""OpenVINO's options by precision. For int8, OpenVINO runs layers that are not quantized in bf16 if the CPU has it."""

_core_lock = Lock()


def core() -> "ov.Core":
    """Return the only `Core` of this process. The first call also runs an inference.

    There is only one `Core`, because each replaces the thread's signal stack and, when it is destroyed, restores the
    stack that it replaced. If two are destroyed in the order of their creation, the second restores a stack that the
    first has already freed. The next signal that Python handles (Ctrl-C, the end of a child process) then causes a
    segmentation fault or overwrites memory.

    The first inference creates a table of types in OpenVINO's Python binding. If two threads needed this table for the
    first time at once, they would deadlock: one would hold the lock of the table, and the other Python's GIL.
    """
    with _core_lock:
        return _core()


@cache
def _core() -> "ov.Core":
    import openvino as ov
    import openvino.opset13 as ops

    the_one = ov.Core()
    pixel = ops.parameter([1], np.uint8)
    smallest = ov.Model([ops.result(pixel)], [pixel])  # pyright: ignore[reportGeneralTypeIssues]: openvino's own stubs
    request = the_one.compile_model(smallest, "CPU").create_infer_request()
    request.infer([np.zeros(1, np.uint8)], share_inputs=True)[0]
    return the_one


class CompiledNetwork:
    """A network that is compiled on first use, separately for each shape and memory format of the images.

    A network compiled for one shape runs single images a sixth faster than a network compiled for all batch sizes.
    Calls that run at the same time use separate inference requests.
    """

    def __init__(self, network: "ov.Model", precision: str, threads: int | None, **options: Any) -> None:
        self._network = network
        hints = HINTS.get(precision, {})
        self._config: dict[str, Any] = {"PERFORMANCE_HINT": "LATENCY", "NUM_STREAMS": 1, **hints, **options}
        if threads is not None:
            self._config |= {"INFERENCE_NUM_THREADS": threads, "ENABLE_CPU_PINNING": False}
        self._free: dict[tuple[tuple[int, ...] | None, bool], list[ov.InferRequest]] = {}

    def __call__(self, images: UInt8[Tensor, "b 3 h w"]) -> Float[Tensor, "b classes"]:
        batch = self._network.input(0).partial_shape[0]
        return in_batches(self._run, images, batch.get_length() if batch.is_static else None)

    def _run(self, images: UInt8[Tensor, "b 3 h w"]) -> Float[Tensor, "b classes"]:
        if images.ndim != 4 or images.shape[1] != 3 or images.dtype != torch.uint8:
            raise EngineError(f"images must be (batch, 3, height, width) in uint8, got {images.dtype} {images.shape}")
        channels_last = not images.is_contiguous() and images.is_contiguous(memory_format=torch.channels_last)
        pixels = images.permute(0, 2, 3, 1) if channels_last else images.contiguous()
        key = (tuple(images.shape), channels_last)
        if key not in self._free and len(self._free) >= STATIC_SHAPES:
            key = (None, channels_last)
        try:
            request = self._free[key].pop()
        except (KeyError, IndexError):  # there is none yet, or other threads use all of them
            request = self.request(*key)
        try:
            return torch.from_numpy(request.infer([pixels.numpy()], share_inputs=True)[0])
        finally:
            self._free.setdefault(key, []).append(request)

    def results(self, image: UInt8[np.ndarray, "h w 3"]) -> dict[str, np.ndarray]:
        """Run an end-to-end network on one image of any size, and return its outputs by name."""
        free = self._free.setdefault((None, False), [])
        try:
            request = free.pop()
        except IndexError:  # there is none yet, or other threads use all of them
            request = self.request(None, channels_last=False)
        try:
            found = request.infer([image], share_inputs=True)
            return {end.any_name: np.array(found[end]) for end in found}  # the request reuses its memory
        finally:
            free.append(request)

    def request(self, shape: tuple[int, ...] | None, channels_last: bool) -> "ov.InferRequest":
        """Compile the network for images of this shape and memory format. Shape None: every shape that it accepts."""
        import openvino as ov

        network = self._network.clone()
        allowed = network.input(0).partial_shape
        if shape is not None:
            if not allowed.compatible(ov.PartialShape(shape)):
                raise EngineError(f"the network takes images of shape {allowed}, got {shape}")
            network.reshape(list(shape))
        if channels_last:
            network = takes_channels_last(network)
        return core().compile_model(network, "CPU", self._config).create_infer_request()


def takes_channels_last(network: "ov.Model") -> "ov.Model":
    """The same network, but for images as (batch, height, width, 3), the order in which convolutions read images."""
    import openvino as ov
    from openvino.preprocess import PrePostProcessor

    steps = PrePostProcessor(network)
    steps.input().tensor().set_layout(ov.Layout("NHWC"))
    steps.input().model().set_layout(ov.Layout("NCHW"))
    return steps.build()
