"""The compiled kernels, called with ctypes."""

import ctypes
import sys
from ctypes import POINTER, c_char_p, c_float, c_int, c_int8, c_int32, c_uint8, c_void_p
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from ...errors import Failure, counted
from .quantization import ARRAYS, IntegerLayer, IntegerNetwork

LAYER_KINDS = "convolve", "depthwise", "pointwise", "attend", "excite", "classify"
"""In the order of `LayerKind`."""


_INTEGERS = "kind", "source", "target", "residual", "inputs", "outputs", "hidden", "stride", "zero"
_FLOATS = "in_step", "out_scale", "residual_scale", "epsilon"
_POINTERS = {name: POINTER(c_int8 if name.startswith("weight") else c_float) for name in ARRAYS}


class _Layer(ctypes.Structure):
    """`ShvitLayer` of network.hpp."""

    _fields_ = (*((name, c_int32) for name in _INTEGERS), *((name, c_float) for name in _FLOATS), *_POINTERS.items())


@cache
def kernel_library() -> ctypes.CDLL | None:
    """The compiled kernels; None if they were not compiled when shvit was installed."""
    folders = map(Path, sys.modules[__package__ or ""].__path__)  # an editable installation has two
    found = next((file for folder in folders for file in folder.glob("kernels.*")), None)
    if found is None:
        return None
    kernels = ctypes.CDLL(str(found))
    kernels.shvit_set.argtypes, kernels.shvit_set.restype = [c_char_p], c_char_p
    kernels.shvit_network.argtypes = [POINTER(_Layer), c_int, c_int, POINTER(c_uint8), c_char_p]
    kernels.shvit_network.restype = c_void_p
    kernels.shvit_workspace.argtypes, kernels.shvit_workspace.restype = [c_void_p, *[c_int] * 4], c_void_p
    kernels.shvit_run.argtypes = [c_void_p, c_void_p, c_int, c_int, c_void_p, c_void_p]
    kernels.shvit_run.restype = None
    for free in (kernels.shvit_free_network, kernels.shvit_free_workspace):
        free.argtypes, free.restype = [c_void_p], None
    return kernels


def instruction_set(wanted: str = "") -> str | None:
    """The fastest instruction set of this processor that the kernels use; None if they are not compiled.

    With `wanted`, that set, or None if it is not available.
    """
    kernels = kernel_library()
    name = kernels and kernels.shvit_set(wanted.encode())
    return name.decode() if name else None


class NativeNetwork:
    """An int8 network in the memory of the kernels, with packed weights."""

    def __init__(self, network: IntegerNetwork, wanted: str = "") -> None:
        kernels = kernel_library()
        assert kernels is not None
        self._kernels = kernels
        self.classes, self.layers = network.classes, len(network.layers)
        rows = (_Layer * len(network.layers))(*map(_row, network.layers))
        self.pointer = kernels.shvit_network(
            rows, len(rows), network.slots, (c_uint8 * 3)(*network.border), wanted.encode()
        )
        if not self.pointer:
            raise Failure(f"the int8 network was not created: too little memory, or no instruction set {wanted!r}")

    def __del__(self) -> None:
        if getattr(self, "pointer", None):
            self._kernels.shvit_free_network(self.pointer)


class NativeWorkspace:
    """The memory for the maps of some images of one size. Used by one thread at a time."""

    def __init__(self, network: NativeNetwork, images: int, height: int, width: int, threads: int = 1) -> None:
        self._network = network  # must live as long as this
        self._kernels: Any = kernel_library()
        self._pointer = self._kernels.shvit_workspace(network.pointer, images, height, width, threads)
        if not self._pointer:
            raise Failure(f"too little memory for {counted(images, 'image')} of {width}x{height} pixels at once")

    def __call__(self, pixels: np.ndarray, channels_last: bool, seconds: np.ndarray | None = None) -> np.ndarray:
        """The logits of any number of images, contiguous as (b, 3, h, w) or (b, h, w, 3). Releases the GIL.

        The time of each layer is added to `seconds` (fp64).
        """
        out = np.empty((len(pixels), self._network.classes), np.float32)
        times = None if seconds is None else seconds.ctypes.data
        self._kernels.shvit_run(self._pointer, pixels.ctypes.data, len(pixels), channels_last, out.ctypes.data, times)
        return out

    def __del__(self) -> None:
        if getattr(self, "_pointer", None):
            self._kernels.shvit_free_workspace(self._pointer)


def _row(layer: IntegerLayer) -> _Layer:
    values = {**vars(layer), "kind": LAYER_KINDS.index(layer.kind)}
    return _Layer(**values | {name: values[name].ctypes.data_as(pointer) for name, pointer in _POINTERS.items()})
