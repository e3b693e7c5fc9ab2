"""Compiled kernels for SHViT in int8. An export is a `.native` file."""

from collections.abc import Sequence
from pathlib import Path
from threading import Lock
from typing import Any, ClassVar

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from ...model.config import MAX_IMAGE_SIZE
from ...modelfile import ModelFile
from ..base import STATIC_SHAPES, Engine, ExportJob, Precisions, Runnable, Shapes, need_calibration
from ..exported import EngineError, Exported
from ..portable import portable
from .file import native_facts, read_native, write_native
from .layers import FloatLayers, kernels_refuse
from .library import NativeNetwork, NativeWorkspace, instruction_set
from .quantization import IntegerNetwork, quantize_layers

_FAST = "avx512vnni", "avxvnni"
"""Instruction sets with which the kernels were measured to be, or multiply like those measured to be, the fastest."""
_MIN_SIDE = 32
_TOGETHER = 16 * 256 * 256
"""Pixels of the images that go through the network together. More would leave the cache."""


class NativeEngine(Engine):
    """Runs SHViT with kernels for the vector instructions of the processor, in int8.

    The outputs are the same on all processors, to the last bit.
    """

    name: ClassVar[str] = "native"
    suffix: ClassVar[str] = ".native"
    concurrent: ClassVar[bool] = True
    every_network: ClassVar[bool] = False
    runs: ClassVar[Precisions] = {None: ("int8",)}
    writes: ClassVar[Precisions] = {None: ("int8",)}

    def __init__(
        self,
        model: Runnable,
        precision: str,
        device: str,
        threads: int | None = None,
        calibration: Sequence[Tensor] = (),
    ) -> None:
        self.precision, self.threads = precision, threads
        self._threads = threads or torch.get_num_threads()
        network = read_native(model.path) if isinstance(model, Exported) else quantized_network(model, calibration)
        self._network = NativeNetwork(network)
        self._free: dict[tuple[int, int, int], list[NativeWorkspace]] = {}
        self._lock = Lock()

    @classmethod
    def absent(cls) -> str | None:
        missing = "its kernels were not compiled: install shvit again on a machine with CMake and GCC or Clang"
        return None if instruction_set() else missing

    @classmethod
    def preferred(cls) -> bool:
        return instruction_set() in _FAST

    @classmethod
    def refuses(cls, network: Any) -> str | None:
        return kernels_refuse(network)

    @classmethod
    def write(cls, job: ExportJob, facts: Exported) -> None:
        if job.shapes != Shapes():
            raise EngineError(
                f"{cls.suffix} files take any number of images of any size: leave out --batch-size and --dynamic-size"
            )
        write_native(quantized_network(job.model_file, job.calibration), job.model_file.architecture, facts, job.path)

    @classmethod
    def read(cls, path: Path) -> Exported:
        return native_facts(path)

    def __call__(self, images: UInt8[Tensor, "b 3 h w"]) -> Float[Tensor, "b classes"]:
        return self._run(images)

    def layer_seconds(self, images: UInt8[Tensor, "b 3 h w"]) -> Float[np.ndarray, " layers"]:
        """How long each layer takes in one call."""
        seconds = np.zeros(self._network.layers)
        self._run(images, seconds)
        return seconds

    def _run(self, images: Tensor, seconds: np.ndarray | None = None) -> Tensor:
        if images.ndim != 4 or not len(images) or images.shape[1] != 3 or images.dtype != torch.uint8:
            raise EngineError(f"images must be (batch, 3, height, width) in uint8, got {images.dtype} {images.shape}")
        _, _, height, width = images.shape
        if not (min(height, width) >= _MIN_SIDE and max(height, width) <= MAX_IMAGE_SIZE):
            raise EngineError(f"images must have sides of {_MIN_SIDE} to {MAX_IMAGE_SIZE} pixels, got {width}x{height}")
        channels_last = images.is_contiguous(memory_format=torch.channels_last)
        pixels = images.permute(0, 2, 3, 1) if channels_last else images.contiguous()
        key = _together(len(images), height * width), height, width
        workspace = self._workspace(key)
        try:
            return torch.from_numpy(workspace(pixels.numpy(), channels_last, seconds))
        finally:
            with self._lock:
                if key in self._free:
                    self._free[key].append(workspace)

    def _workspace(self, key: tuple[int, int, int]) -> NativeWorkspace:
        """Memory for (images, height, width) that no other thread uses. That of the last few keys is kept."""
        with self._lock:
            free = self._free.pop(key, [])
            self._free[key] = free
            while len(self._free) > STATIC_SHAPES:
                del self._free[next(iter(self._free))]
            if free:
                return free.pop()
        return NativeWorkspace(self._network, *key, threads=self._threads)


def quantized_network(model_file: ModelFile, calibration: Sequence[Tensor]) -> IntegerNetwork:
    """The int8 network of a model. Raises EngineError if the kernels cannot run it, or images are missing."""
    if reason := kernels_refuse(model_file.model):
        raise EngineError(f"the engine {NativeEngine.name} cannot run this model: {reason}")
    need_calibration(calibration)
    fused = portable(model_file)
    return quantize_layers(FloatLayers(fused.network, fused.mean.flatten()), calibration)


def _together(images: int, pixels: int) -> int:
    """How many images go through the network together: a power of two, so that few sizes of memory are needed."""
    most = max(1, min(images, _TOGETHER // pixels))
    return 1 << (most - 1).bit_length() if most == images else 1 << (most.bit_length() - 1)
