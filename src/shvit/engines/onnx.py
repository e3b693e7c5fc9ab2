"""ONNX Runtime, on CPUs, in fp32. Its format is `.onnx`."""

import io
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from ..errors import one_line
from ..model.detector import Detector
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
    seal,
)
from .portable import portable
from .torch import MIN_SIDE, dynamic_dims

if TYPE_CHECKING:
    import onnx
    import onnxruntime as ort

DIMENSIONS = ("batch", None, "height", "width")
"""What the dimensions of the images are called where they may vary."""


class OnnxEngine:
    """ONNX Runtime's own CPU kernels. Any batch size runs; height and width are the file's."""

    name: ClassVar[str] = "onnx"
    suffix: ClassVar[str] = ".onnx"
    extra: ClassVar[str | None] = "onnx"
    concurrent: ClassVar[bool] = True

    def __init__(self, model: Runnable, precision: str, device: str, threads: int | None = None) -> None:
        self.precision = precision
        self.threads = threads
        import onnx

        self._network = model.path.read_bytes() if isinstance(model, Exported) else traced(model, Shapes())
        whole = onnx.load_from_string(self._network)
        [images] = whole.graph.input
        self._batch = images.type.tensor_type.shape.dim[0].dim_value or None  # None: any number
        self._sessions: dict[tuple[int, ...] | None, ort.InferenceSession] = {}

    @classmethod
    def absent(cls) -> str | None:
        return missing("onnx", "onnx", "onnxscript", "onnxruntime")

    @classmethod
    def unavailable(cls, device: str) -> str | None:
        if torch.device(device).type != "cpu":
            return "runs on the CPU"
        return cls.absent()

    @classmethod
    def precisions(cls, device: str) -> tuple[str, ...]:
        return ("fp32",)

    @classmethod
    def exports(cls) -> tuple[str, ...]:
        return ("fp32",)

    @classmethod
    def export(
        cls, model_file: ModelFile, path: Path, precision: str, shapes: Shapes, calibration: Sequence[Tensor] = ()
    ) -> None:
        facts = described(model_file, path, cls.name, precision)
        path.write_bytes(to_onnx(model_file, shapes, facts))
        seal(path)

    @classmethod
    def read(cls, path: Path) -> Exported:
        import onnxruntime as ort

        content = path.read_bytes()
        facts = _facts(path, content)
        options = ort.SessionOptions()
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        options.log_severity_level = 4
        try:
            session = ort.InferenceSession(content, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # ONNX Runtime's own exceptions share no base class
            raise EngineError(f"{path} is no usable ONNX file ({one_line(error, first=True)})") from None
        exported = Exported.from_json(path, facts)
        ends = session.get_inputs(), session.get_outputs()
        if [len(part) for part in ends] != [1, 1] or ends[0][0].name != "images":
            raise EngineError(f"{path} does not take one batch of images and give one tensor")
        check_ends(exported, *([size if type(size) is int else None for size in part[0].shape] for part in ends))
        return exported

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
                f"the file takes {takes.type} images of shape {takes.shape}, got {images.dtype} {shape}"
            ) from None
        self._sessions[key] = session
        return torch.from_numpy(outputs)

    def session(self, shape: tuple[int, ...] | None, profile: Path | None = None) -> "ort.InferenceSession":
        """For images of this shape, or of any that the network takes; with a profile of its runs, in files named so.

        Where the shape is known, ONNX Runtime computes all shapes inside beforehand: a third of S1's nodes do that.
        """
        import onnxruntime as ort

        options = ort.SessionOptions()
        options.intra_op_num_threads = self.threads or 0  # 0: as many as there are cores
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        if profile:
            options.enable_profiling, options.profile_file_prefix = True, str(profile)
        for name, size in zip(DIMENSIONS, shape or (), strict=False):
            if name:
                options.add_free_dimension_override_by_name(name, size)
        return ort.InferenceSession(self._network, options, providers=["CPUExecutionProvider"])


def _facts(path: Path, content: bytes) -> str:
    """What shvit wrote into the metadata. Raises EngineError for a file that names others, or was not written here."""
    import onnx
    from google.protobuf.message import DecodeError
    from onnx.external_data_helper import _get_all_tensors, uses_external_data

    try:
        model = onnx.load_from_string(content)
    except DecodeError as error:
        raise EngineError(f"{path} is no usable ONNX file ({error})") from None
    if any(map(uses_external_data, _get_all_tensors(model))):
        raise EngineError(f"{path} is refused: its weights lie in other files")
    facts = {entry.key: entry.value for entry in model.metadata_props}
    if HEADER_KEY not in facts:
        raise EngineError(f"{path} was not written by shvit export")
    return facts[HEADER_KEY]


def to_onnx(model_file: ModelFile, shapes: Shapes, facts: Exported) -> bytes:
    """An ONNX file's bytes, with the facts in its metadata."""
    import onnx

    if batch_of(model_file, Shapes()):  # one by one: the newer exporter cannot follow what depends on the image
        return with_facts(onnx.load_from_string(traced(model_file, shapes)), facts)
    with quiet():
        program: Any = torch.onnx.export(
            portable(model_file),
            (_example(model_file, shapes),),
            dynamo=True,
            input_names=["images"],
            output_names=[OUTPUTS[model_file.task]],
            dynamic_shapes=(dynamic_dims(shapes),),
            verbose=False,
        )
    return with_facts(program.model_proto, facts)


def with_facts(model: "onnx.ModelProto", facts: Exported) -> bytes:
    entry = model.metadata_props.add()
    entry.key, entry.value = HEADER_KEY, facts.to_json()
    return model.SerializeToString()


def traced(model_file: ModelFile, shapes: Shapes) -> bytes:
    """The network as ONNX to run at once: by torch's older exporter, which takes a second where the newer takes ten."""
    buffer = io.BytesIO()
    batch = batch_of(model_file, shapes)
    varying = {0: "batch"} if batch is None else {}
    of_images = varying if isinstance(model_file.model, Detector) else {**varying, 2: "height", 3: "width"}
    with quiet():
        torch.onnx.export(
            portable(model_file),
            (_example(model_file, replace(shapes, batch=batch)),),
            buffer,  # pyright: ignore[reportArgumentType]: it takes files, too
            dynamo=False,
            input_names=["images"],
            output_names=[OUTPUTS[model_file.task]],
            dynamic_axes={"images": of_images, OUTPUTS[model_file.task]: varying},
        )
    return buffer.getvalue()


def _example(model_file: ModelFile, shapes: Shapes) -> UInt8[Tensor, "b 3 h w"]:
    side = model_file.preprocess.image_size
    if shapes.dynamic_size:
        side = max(side, MIN_SIDE)
    return torch.zeros(shapes.batch or 2, 3, side, side, dtype=torch.uint8)
