"""ONNX Runtime on CPUs. Its format is `.onnx`, in fp32, fp16 or int8."""

import io
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from ..modelfile import HEADER_KEY, ModelFile
from ..suppress import quiet
from ..tasks import detector_of, kind_of
from . import onnx_int8
from .base import Engine, ExportJob, Precisions, Runnable, Shapes, batch_of, network_shapes
from .end_to_end import OPSET, around, check_image
from .exported import EngineError, Exported, check_end_to_end, check_interface, unreadable
from .mixed import DETECTOR_PARTS, mix_precisions
from .onnx_runtime import OnnxNetwork
from .portable import portable

if TYPE_CHECKING:
    import onnx


class OnnxEngine(Engine):
    """Runs networks with ONNX Runtime on the CPU, at any batch size. Exported files may fix the height and width."""

    name: ClassVar[str] = "onnx"
    suffix: ClassVar[str] = ".onnx"
    extra: ClassVar[str | None] = "onnx"
    modules: ClassVar[tuple[str, ...]] = ("onnx", "onnxscript", "onnxruntime")
    concurrent: ClassVar[bool] = True
    end_to_end: ClassVar[bool] = True
    runs: ClassVar[Precisions] = dict.fromkeys((None, "light", "light_masks", "retinanet", "mask_rcnn"), ("fp32",))
    writes: ClassVar[Precisions] = {
        **dict.fromkeys((None, "light", "light_masks", "retinanet"), ("fp32", "fp16", "int8")),
        "mask_rcnn": ("fp32", "int8"),  # in fp16, rounding would change the proposals
    }

    def __init__(self, model: Runnable, precision: str, device: str, threads: int | None = None) -> None:
        self.precision, self.threads = precision, threads
        exported = isinstance(model, Exported)
        content = model.path.read_bytes() if exported else traced(model, Shapes(dynamic_size=kind_of(model).any_size))
        self.network = OnnxNetwork(content, threads)
        self._outputs = kind_of(model).result_names if exported and model.end_to_end else ()

    @classmethod
    def write(cls, job: ExportJob, facts: Exported) -> None:
        """Write the file. For int8 with `job.accept`, only as many layers are quantized as `job.accept` allows."""
        model = _in_precision(job)
        if model is None:
            return
        if job.end_to_end:
            model = around(model, job.model_file)
        model.metadata_props.add(key=HEADER_KEY, value=facts.to_json())
        job.path.write_bytes(model.SerializeToString())

    @classmethod
    def read(cls, path: Path) -> Exported:
        import onnxruntime as ort

        content = path.read_bytes()
        exported = Exported.from_json(path, _facts(path, content))
        options = ort.SessionOptions()
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        options.log_severity_level = 4
        with unreadable(path, "is not a usable ONNX file", Exception):  # its exceptions have no other common base
            session = ort.InferenceSession(content, options, providers=["CPUExecutionProvider"])
        ends = session.get_inputs(), session.get_outputs()
        if exported.end_to_end:
            inputs = {end.name: _sizes(end) for end in ends[0] if end.type == "tensor(uint8)"}
            check_end_to_end(exported, inputs, [end.name for end in ends[1]])
            return exported
        if [len(part) for part in ends] != [1, 1] or ends[0][0].name != "images":
            raise EngineError(f"{path} does not take one batch of images and return one tensor")
        check_interface(exported, *(_sizes(part[0]) for part in ends))
        return exported

    def __call__(self, images: UInt8[Tensor, "b 3 h w"]) -> Float[Tensor, "b classes"]:
        return self.network(images)

    def results(self, image: UInt8[np.ndarray, "h w 3"]) -> dict[str, np.ndarray]:
        check_image(image)
        return self.network.results(image, self._outputs)


def _quantized_parts(model_file: ModelFile) -> tuple[str, ...] | None:
    """The parts of a detector that are quantized; None for classifiers.

    The paths of nodes in the backbone do not contain `backbone`, because its `forward` is not called.
    """
    if detector_of(model_file) is None:
        return None
    network: Any = model_file.model
    names = {name for name, _ in network.backbone.named_children()}.difference(dict(network.named_children()))
    return (*DETECTOR_PARTS, *(f"network.{name}." for name in sorted(names)))


def _in_precision(job: ExportJob) -> "onnx.ModelProto | None":
    """The network in the precision of the job; None if no int8 network was accepted."""
    import onnx

    network = onnx.load_from_string(traced(job.model_file, network_shapes(job)))  # names its nodes after the modules
    if job.precision == "fp32":
        return network
    if job.precision == "fp16":
        return onnx_int8.in_fp16(network)
    quantizer = onnx_int8.Quantizer(network, job.calibration, _quantized_parts(job.model_file))
    if job.accept is None:
        return quantizer.quantized()
    exact = OnnxNetwork(network.SerializeToString(), job.threads)
    return mix_precisions(
        exact, quantizer.quantized, lambda one: OnnxNetwork(one.SerializeToString(), job.threads), quantizer.layers, job
    )


def _facts(path: Path, content: bytes) -> str | None:
    """shvit's metadata as text; None if the file has none. Raises EngineError if the weights are in other files."""
    import onnx
    from google.protobuf.message import DecodeError
    from onnx.external_data_helper import _get_all_tensors, uses_external_data

    with unreadable(path, "is not a usable ONNX file", DecodeError):
        model = onnx.load_from_string(content)
    if any(map(uses_external_data, _get_all_tensors(model))):
        raise EngineError(f"{path} is refused: its weights are in other files")
    return {entry.key: entry.value for entry in model.metadata_props}.get(HEADER_KEY)


def _sizes(end: Any) -> list[int | None]:
    """The shape of an input or output of a session. A dimension that varies is None."""
    return [size if type(size) is int else None for size in end.shape]


def traced(model_file: ModelFile, shapes: Shapes) -> bytes:
    """Export the network to ONNX. torch's older exporter takes 1 s, the newer one 10 s, and the graphs are as fast."""
    buffer, kind = io.BytesIO(), kind_of(model_file)
    batch = batch_of(model_file, shapes)
    varying = {0: "batch"} if batch is None else {}
    of_images = {**varying, 2: "height", 3: "width"} if shapes.dynamic_size else varying
    with quiet():
        torch.onnx.export(
            portable(model_file),
            (_example(model_file, replace(shapes, batch=batch)),),
            buffer,  # pyright: ignore[reportArgumentType]: it also takes file objects
            dynamo=False,
            opset_version=OPSET,
            input_names=["images"],
            output_names=[kind.output],
            dynamic_axes={"images": of_images, kind.output: varying},
        )
    return buffer.getvalue()


def _example(model_file: ModelFile, shapes: Shapes) -> UInt8[Tensor, "b 3 h w"]:
    side = model_file.preprocess.image_size
    return torch.zeros(shapes.batch or 2, 3, side, side, dtype=torch.uint8)
