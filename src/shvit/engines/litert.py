"""LiteRT (formerly TensorFlow Lite), for phones and small boards: one `.tflite` file, run on the CPU by XNNPACK."""

import struct
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from ..modelfile import HEADER_KEY, ModelFile
from ..suppress import quiet, silent
from ..tasks import kind_of
from .base import Engine, ExportJob, Precisions, Runnable, in_batches
from .decompose import MEANS
from .exported import EngineError, Exported, check_interface, described, unreadable
from .portable import portable

IDENTIFIER = b"TFL3"
"""Bytes 4 to 8 of a `.tflite` file."""
SIGNATURE = "serving_default"
"""LiteRT's name of a file's only function."""
_DAMAGED = "is truncated, damaged or not a .tflite file"
UNREADABLE = (ValueError, RuntimeError, IndexError, TypeError, OverflowError, struct.error)
"""What LiteRT and flatbuffers raise for a damaged file."""
_QUANTIZED = ("CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED")
"""Operations that run in int8. In SHViT-S1, integers for all operations are slower and no more accurate (LOG.md)."""

_NOT_LAST = r"^(?!.*Head_head/torch\.nn\.modules\.conv\.Conv2d_)"
"""Matches the names of all operations except the last layers of light detectors, which compute boxes and scores."""


class LiteRTEngine(Engine):
    """Runs a `.tflite` file. A model file is first converted to a `.tflite` file in memory, which takes some seconds.

    An interpreter takes one call at a time. Calls at the same time use different interpreters of the same file.
    """

    name: ClassVar[str] = "litert"
    suffix: ClassVar[str] = ".tflite"
    extra: ClassVar[str | None] = "litert"
    modules: ClassVar[tuple[str, ...]] = ("litert_torch", "ai_edge_litert", "ai_edge_quantizer")
    concurrent: ClassVar[bool] = True
    runs: ClassVar[Precisions] = dict.fromkeys((None, "light", "light_masks", "retinanet"), ("fp32",))
    writes: ClassVar[Precisions] = {
        **dict.fromkeys((None, "light", "light_masks"), ("fp32", "fp16", "int8")),
        "retinanet": ("fp32", "fp16"),
    }

    def __init__(self, model: Runnable, precision: str, device: str, threads: int | None = None) -> None:
        self.precision, self.threads = precision, threads
        if isinstance(model, Exported):
            self.path, self._file = model.path, model.path.read_bytes()
        else:
            self.path = Path("in memory")
            self._file = _convert(model, described(model, self.path, self.name, precision))
        self._idle: list[Any] = []
        with self._interpreter() as interpreter:
            self._batch = int(interpreter.get_input_details()[0]["shape"][0])

    @classmethod
    def write(cls, job: ExportJob, facts: Exported) -> None:
        """Write a file that takes exactly `shapes.batch` images per call (default 1)."""
        if job.shapes.dynamic_size:
            raise EngineError(f"{cls.suffix} files take images of one size only: leave out --dynamic-size")
        job.path.write_bytes(_convert(job.model_file, facts, job.shapes.batch or 1, job.calibration))

    @classmethod
    def read(cls, path: Path) -> Exported:
        content = path.read_bytes()
        with unreadable(path, _DAMAGED, *UNREADABLE):
            text = _metadata(content)
        exported = Exported.from_json(path, text)
        interpreters = _library("ai_edge_litert.interpreter")
        with silent(), unreadable(path, _DAMAGED, *UNREADABLE):
            interpreter = interpreters.Interpreter(model_content=content)
            ends = interpreter.get_input_details(), interpreter.get_output_details()
        if [[end["dtype"] for end in part] for part in ends] != [[np.uint8], [np.float32]]:
            raise EngineError(f"{path} does not take one batch of images and return one tensor")
        check_interface(exported, *([int(size) for size in part[0]["shape"]] for part in ends))
        return exported

    def __call__(self, images: UInt8[Tensor, "b 3 h w"]) -> Float[Tensor, "b classes"]:
        with self._interpreter() as interpreter, unreadable(self.path, "cannot run on these images", *UNREADABLE):
            [takes], [gives] = interpreter.get_input_details(), interpreter.get_output_details()

            def run(batch: UInt8[Tensor, "size 3 h w"]) -> Float[Tensor, "size classes"]:
                interpreter.set_tensor(takes["index"], batch.contiguous().numpy())
                interpreter.invoke()
                return torch.from_numpy(interpreter.get_tensor(gives["index"]))

            return in_batches(run, images, self._batch)

    @contextmanager
    def _interpreter(self) -> Iterator[Any]:
        """An interpreter that no other call uses."""
        try:
            interpreter = self._idle.pop()
        except IndexError:
            interpreters, threads = _library("ai_edge_litert.interpreter"), self.threads or torch.get_num_threads()
            with silent(), unreadable(self.path, _DAMAGED, *UNREADABLE):
                interpreter = interpreters.Interpreter(model_content=self._file, num_threads=threads)
                interpreter.allocate_tensors()
        try:
            yield interpreter
        finally:
            self._idle.append(interpreter)


def _library(name: str) -> Any:
    """Import a module of the extra without its warnings. Not to be called inside `silent`, for the order of locks."""
    with quiet():
        return import_module(name)


def _convert(model_file: ModelFile, facts: Exported, batch: int = 1, calibration: Sequence[Tensor] = ()) -> bytes:
    """The bytes of a `.tflite` file. `facts` are the metadata of the file, and name the precision to use."""
    side = model_file.preprocess.image_size
    images = torch.zeros(batch, 3, side, side, dtype=torch.uint8)
    named = {"images": images}
    with quiet():
        with silent():  # prints two lines
            import_module("litert_converter.mlir.ir")
        converter = import_module("litert_torch")
        # JAX, which converts some operations, would warn at each later fork that its threads end. No worker uses JAX
        jax: Any = import_module("jax._src.xla_bridge")
        jax._at_fork_handler_installed = True
        program = torch.export.export(portable(model_file), (), named).run_decompositions(MEANS)
        network = converter.convert(program.module(), sample_kwargs=named)
        with silent():
            file = network.model_content()
        if facts.precision != "fp32":
            file = _quantize(file, facts.precision, images, calibration)
    return _with_metadata(file, facts)


def _quantize(
    file: bytes, precision: str, example: UInt8[Tensor, "b 3 h w"], calibration: Sequence[UInt8[Tensor, "n 3 h w"]]
) -> bytes:
    """Store the weights in fp16, or quantize `_QUANTIZED` to int8, with one scale for each output channel.

    The range of an activation is from the minimum to the maximum of all images. By default, LiteRT takes a moving
    average, which leaves out rare values and causes four times the error in SHViT-S1.
    """
    algorithms = _library("ai_edge_quantizer.algorithm_manager").AlgorithmName
    recipe, ranges = _library("ai_edge_quantizer.recipe_manager").RecipeManager(), None
    if precision == "fp16":
        recipe.add_weight_only_config(".*", "*", num_bits=16, algorithm_key=algorithms.FLOAT_CASTING)
    else:
        for operation in _QUANTIZED:
            recipe.add_static_config(_NOT_LAST, operation, activation_num_bits=8, weight_num_bits=8)
        extremes = _library("ai_edge_quantizer.utils.qsv_utils").min_max_update
        calibrators = _library("ai_edge_quantizer.calibrator")
        with silent():  # prints a line
            calibrator = calibrators.Calibrator(file, 1, qsv_update_func=extremes)
        images, size = torch.cat(list(calibration)), len(example)
        chosen = [torch.arange(start, start + size) % len(images) for start in range(0, len(images), size)]
        calibrator.calibrate({SIGNATURE: [{"images": images[indices].numpy()} for indices in chosen]}, recipe)
        ranges = calibrator.get_model_qsvs()
    quantizer = _library("ai_edge_quantizer.quantizer").Quantizer(file, recipe.get_quantization_recipe())
    return bytes(quantizer.quantize(ranges, enable_progress_report=False).quantized_model)


def _with_metadata(file: bytes, facts: Exported) -> bytes:
    """Add the metadata to a file, and name its output."""
    tools, schema = _library("ai_edge_litert.tools.flatbuffer_utils"), _library("ai_edge_litert.schema_py_generated")
    model = tools.read_model_from_bytearray(file)
    model.signatureDefs[0].outputs[0].name = kind_of(facts).output.encode()
    content, entry = schema.BufferT(), schema.MetadataT()
    content.data = np.frombuffer(facts.to_json().encode(), np.uint8)
    entry.name, entry.buffer = HEADER_KEY.encode(), len(model.buffers)
    model.buffers.append(content)
    model.metadata = [*(model.metadata or []), entry]
    return bytes(tools.convert_object_to_bytearray(model))


def _metadata(file: bytes) -> bytes | None:
    """shvit's metadata; None if the file has none. Raises one of `UNREADABLE` for a damaged file."""
    if file[4:8] != IDENTIFIER:
        raise ValueError("it does not begin like one")
    model = _library("ai_edge_litert.schema_py_generated").Model.GetRootAs(file, 0)
    for entry in map(model.Metadata, range(model.MetadataLength())):
        if entry.Name() == HEADER_KEY.encode():
            return model.Buffers(entry.Buffer()).DataAsNumpy().tobytes()
    return None
