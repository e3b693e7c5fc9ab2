"""OpenVINO, on CPUs: fp32, bf16 where the processor has it, int8 by NNCF. Its format is `.xml` beside `.bin`."""

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from ..errors import one_line
from ..modelfile import HEADER_KEY, ModelFile
from ..suppress import quiet
from .base import (
    OUTPUTS,
    STATIC_SHAPES,
    EngineError,
    Exported,
    Runnable,
    Shapes,
    batch_of,
    check_ends,
    described,
    in_batches,
    missing,
    need_calibration,
    seal,
)
from .portable import portable

if TYPE_CHECKING:
    import openvino as ov

HINTS = {"fp32": {"INFERENCE_PRECISION_HINT": "f32"}, "bf16": {"INFERENCE_PRECISION_HINT": "bf16"}, "int8": {}}
"""In int8, what is not quantised runs in what OpenVINO finds best: bf16 where the processor has it."""


_core_lock = Lock()


def core() -> "ov.Core":
    """The one `Core` of this process, after a first inference.

    One: each `Core` gives the thread a stack for signals, and on its end gives back the stack it found. Of two that end
    in the order in which they began, the second gives back what the first has freed already, and the next signal that
    Python handles (Ctrl-C, the end of a child process) is a segmentation fault or writes into others' memory.

    A first inference: OpenVINO's Python side makes its table of types when it first needs it, and two threads that both
    come first wait for each other forever, one with the table's lock, one with Python's.
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


class OpenVINOEngine:
    """OpenVINO's CPU plugin, one stream: the least time for each batch."""

    name: ClassVar[str] = "openvino"
    suffix: ClassVar[str] = ".xml"
    extra: ClassVar[str | None] = "openvino"
    concurrent: ClassVar[bool] = True

    def __init__(
        self,
        model: Runnable,
        precision: str,
        device: str,
        threads: int | None = None,
        calibration: Sequence[Tensor] = (),
    ) -> None:
        self.precision = precision
        self.threads = threads
        exported = isinstance(model, Exported)
        network = core().read_model(model.path) if exported else build(model, precision, calibration)
        self._run = Compiled(network, computed_in(model.task, precision), threads)

    @classmethod
    def absent(cls) -> str | None:
        return missing("openvino", "openvino", "nncf")

    @classmethod
    def unavailable(cls, device: str) -> str | None:
        if torch.device(device).type != "cpu":
            return "runs on the CPU"
        return cls.absent()

    @classmethod
    def precisions(cls, device: str) -> tuple[str, ...]:
        bf16 = "BF16" in core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
        return ("bf16", "fp32", "int8") if bf16 else ("fp32", "int8")

    @classmethod
    def exports(cls) -> tuple[str, ...]:
        return ("fp32", "fp16", "bf16", "int8")

    @classmethod
    def export(
        cls, model_file: ModelFile, path: Path, precision: str, shapes: Shapes, calibration: Sequence[Tensor] = ()
    ) -> None:
        network = build(model_file, precision, calibration, shapes)
        write(network, described(model_file, path, cls.name, precision))

    @classmethod
    def read(cls, path: Path) -> Exported:
        try:
            network = core().read_model(path)
        except RuntimeError as error:
            raise EngineError(f"{path} is no usable OpenVINO file ({one_line(error, first=True)})") from None
        if not network.has_rt_info([HEADER_KEY]):
            raise EngineError(f"{path} was not written by shvit export")
        exported = Exported.from_json(path, network.get_rt_info([HEADER_KEY]).astype(str))
        if len(network.inputs) != 1 or len(network.outputs) != 1:
            raise EngineError(f"{path} does not take one batch of images and give one tensor")
        check_ends(exported, *(_sizes(end.partial_shape) for end in (network.inputs[0], network.outputs[0])))
        return exported

    def __call__(self, images: UInt8[Tensor, "b 3 h w"]) -> Float[Tensor, "b classes"]:
        return self._run(images)


class Compiled:
    """A network ready to run: compiled anew for each shape of images that it meets, and for channels_last as they are.

    A network compiled for one shape alone runs a sixth faster, image by image, than one for every batch size. Calls
    from several threads at once each get a network of their own.
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
        except (KeyError, IndexError):  # none yet, or each is in use by another thread
            request = self.request(*key)
        try:
            return torch.from_numpy(request.infer([pixels.numpy()], share_inputs=True)[0])
        finally:
            self._free.setdefault(key, []).append(request)

    def request(self, shape: tuple[int, ...] | None, channels_last: bool) -> "ov.InferRequest":
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


def computed_in(task: str, precision: str) -> str:
    """The precision of what is not in int8: a detector's boxes, in pixels, need fp32 wherever bf16 is there."""
    return precision if task == "classify" else "fp32"


def build(
    model_file: ModelFile, precision: str, calibration: Sequence[Tensor] = (), shapes: Shapes | None = None
) -> "ov.Model":
    """The network in OpenVINO's own form; in int8 it is quantised, all layers of it that pay."""
    any_size = precision != "int8" and model_file.task == "classify"
    network = convert(model_file, shapes or Shapes(dynamic_size=any_size))
    if precision == "int8":
        need_calibration(calibration)
        from .quantize import quantize

        return quantize(network, calibration)
    return network


def convert(model_file: ModelFile, shapes: Shapes) -> "ov.Model":
    """The network in fp32."""
    import openvino as ov

    side, batch = model_file.preprocess.image_size, batch_of(model_file, shapes)
    with quiet():  # tracing warns of every check of a shape
        network = ov.convert_model(
            portable(model_file), example_input=torch.zeros(batch or 2, 3, side, side, dtype=torch.uint8), verbose=False
        )
    size = [-1, -1] if shapes.dynamic_size else [side, side]
    network.reshape([batch or -1, 3, *size])
    network.input(0).set_names({"images"})
    network.output(0).set_names({OUTPUTS[model_file.task]})
    return network


def write(network: "ov.Model", facts: Exported) -> None:
    """`.xml` and `.bin`, with the facts in the file's own metadata."""
    import openvino as ov

    network.set_rt_info(facts.to_json(), [HEADER_KEY])
    ov.save_model(network, facts.path, compress_to_fp16=facts.precision == "fp16")
    seal(facts.path)


def takes_channels_last(network: "ov.Model") -> "ov.Model":
    """The same network for images as (batch, height, width, 3), the order in which convolutions read them anyway."""
    import openvino as ov
    from openvino.preprocess import PrePostProcessor

    steps = PrePostProcessor(network)
    steps.input().tensor().set_layout(ov.Layout("NHWC"))
    steps.input().model().set_layout(ov.Layout("NCHW"))
    return steps.build()


def _sizes(shape: "ov.PartialShape") -> list[int | None]:
    """Of an input or output; None where a dimension varies."""
    if shape.rank.is_dynamic:
        return []
    return [size.get_length() if size.is_static else None for size in shape]
