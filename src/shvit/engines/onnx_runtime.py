"""ONNX Runtime: networks with one session for each shape of the images."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from .base import STATIC_SHAPES, in_batches
from .exported import IMAGE_INPUT, EngineError

if TYPE_CHECKING:
    import onnxruntime as ort

DIMENSIONS = ("batch", None, "height", "width")
"""Names of the image dimensions that may vary. None stands for the channels, whose number is fixed."""


class OnnxNetwork:
    """A network in ONNX's binary form, run on the CPU. `threads`: number of CPU threads; None for all cores."""

    def __init__(self, content: bytes, threads: int | None) -> None:
        import onnx

        self._content, self._threads = content, threads
        dims = onnx.load_from_string(content).graph.input[0].type.tensor_type.shape.dim
        self._batch = dims[0].dim_value or None  # None: any number
        self._sessions: dict[tuple[int, ...] | None, ort.InferenceSession] = {}

    def __call__(self, images: UInt8[Tensor, "b 3 h w"]) -> Float[Tensor, "b classes"]:
        return in_batches(self._run, images, self._batch)

    def _run(self, images: UInt8[Tensor, "b 3 h w"]) -> Float[Tensor, "b classes"]:
        import onnxruntime.capi.onnxruntime_pybind11_state as errors

        shape = tuple(images.shape)
        key = shape if shape in self._sessions or len(self._sessions) < STATIC_SHAPES else None
        session = self._sessions.get(key) or self.session(key)
        try:
            [outputs] = session.run(None, {"images": images.contiguous().numpy()})
        except errors.InvalidArgument:  # pyright: ignore[reportAttributeAccessIssue]
            takes = self.session(None).get_inputs()[0]
            raise EngineError(
                f"the network takes {takes.type} images of shape {takes.shape}, got {images.dtype} {shape}"
            ) from None
        self._sessions[key] = session
        return torch.from_numpy(outputs)

    def results(self, image: UInt8[np.ndarray, "h w 3"], names: Sequence[str]) -> dict[str, np.ndarray]:
        """Run an end-to-end network on one image of any size, and return the outputs with these names."""
        session = self._sessions.get(None) or self._sessions.setdefault(None, self.session(None))
        found: Any = session.run(list(names), {IMAGE_INPUT: image})
        return dict(zip(names, found, strict=True))

    def session(self, shape: tuple[int, ...] | None, profile: Path | None = None) -> "ort.InferenceSession":
        """Create a session for images of this shape (None: any shape that the network takes).

        With a fixed shape, ONNX Runtime computes all shapes inside the network in advance. Otherwise, a third of
        SHViT-S1's nodes compute shapes in each run. `profile` is the prefix of files for a profile of the runs.
        """
        import onnxruntime as ort

        options = ort.SessionOptions()
        options.intra_op_num_threads = self._threads or 0  # 0: as many as there are cores
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        if profile:
            options.enable_profiling, options.profile_file_prefix = True, str(profile)
        for name, size in zip(DIMENSIONS, shape or (), strict=False):
            if name:
                options.add_free_dimension_override_by_name(name, size)
        return ort.InferenceSession(self._content, options, providers=["CPUExecutionProvider"])
