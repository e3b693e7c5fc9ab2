"""OpenVINO on CPUs in fp32, int8 (with NNCF) and, on some CPUs, bf16. An export is an `.xml` and a `.bin` file."""

import io
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, ClassVar
from xml.etree import ElementTree

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from ..modelfile import HEADER_KEY, ModelFile
from ..suppress import quiet
from ..tasks import kind_of, task_of
from . import end_to_end, quantize
from .base import Engine, ExportJob, Precisions, Runnable, Shapes, batch_of, need_calibration, network_shapes
from .exported import EngineError, Exported, check_end_to_end, check_interface, unreadable
from .openvino_runtime import CompiledNetwork, core
from .portable import portable

if TYPE_CHECKING:
    import onnx
    import openvino as ov


class OpenVINOEngine(Engine):
    """Runs networks with OpenVINO's CPU plugin, in one stream for the lowest latency per batch."""

    name: ClassVar[str] = "openvino"
    suffix: ClassVar[str] = ".xml"
    extra: ClassVar[str | None] = "openvino"
    modules: ClassVar[tuple[str, ...]] = ("openvino", "nncf")
    concurrent: ClassVar[bool] = True
    end_to_end: ClassVar[bool] = True
    runs: ClassVar[Precisions] = {
        None: ("bf16", "fp32", "int8"),
        **dict.fromkeys(("light", "light_masks", "retinanet", "mask_rcnn"), ("fp32", "int8")),
    }
    writes: ClassVar[Precisions] = {
        None: ("fp32", "fp16", "bf16", "int8"),
        **dict.fromkeys(("light", "light_masks", "retinanet", "mask_rcnn"), ("fp32", "fp16", "int8")),
    }

    def __init__(
        self,
        model: Runnable,
        precision: str,
        device: str,
        threads: int | None = None,
        calibration: Sequence[Tensor] = (),
    ) -> None:
        self.precision, self.threads = precision, threads
        exported = isinstance(model, Exported)
        network = core().read_model(model.path) if exported else build(model, precision, calibration)
        self._run = CompiledNetwork(network, computed_in(model.task, precision), threads)

    @classmethod
    def precisions(cls, device: str) -> tuple[str, ...]:
        bf16 = "BF16" in core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
        return cls.runs[None] if bf16 else cls.runs[None][1:]

    @classmethod
    def write(cls, job: ExportJob, facts: Exported) -> None:
        """Write the file. For int8 with `job.accept`, only as many layers are quantized as `job.accept` allows."""
        import openvino as ov

        network = convert(job.model_file, network_shapes(job))
        if job.precision == "int8" and job.accept is None:
            network = quantize.quantize(network, job.calibration)
        elif job.precision == "int8":
            network = quantize.search(network, job, computed_in(facts.task, "int8"))
        if network is not None and job.end_to_end:
            network.reshape([1, *list(network.input(0).partial_shape)[1:]])
            network = _around(network, job.model_file)
        if network is not None:
            network.set_rt_info(facts.to_json(), [HEADER_KEY])
            ov.save_model(network, job.path, compress_to_fp16=job.precision == "fp16")

    @classmethod
    def read(cls, path: Path) -> Exported:
        with unreadable(path, "is not a usable OpenVINO file", RuntimeError):
            network = core().read_model(path)
        known = network.has_rt_info([HEADER_KEY])
        exported = Exported.from_json(path, network.get_rt_info([HEADER_KEY]).astype(str) if known else None)
        if exported.end_to_end:
            inputs = {
                end.any_name: _sizes(end.partial_shape)
                for end in network.inputs
                if end.element_type.get_type_name() == "u8"
            }
            check_end_to_end(exported, inputs, [end.any_name for end in network.outputs])
            return exported
        if len(network.inputs) != 1 or len(network.outputs) != 1:
            raise EngineError(f"{path} does not take one batch of images and return one tensor")
        check_interface(exported, *(_sizes(end.partial_shape) for end in (network.inputs[0], network.outputs[0])))
        return exported

    def results(self, image: UInt8[np.ndarray, "h w 3"]) -> dict[str, np.ndarray]:
        end_to_end.check_image(image)
        return self._run.results(image)

    def __call__(self, images: UInt8[Tensor, "b 3 h w"]) -> Float[Tensor, "b classes"]:
        return self._run(images)


def computed_in(task: str, precision: str) -> str:
    """The precision of layers that are not quantized. For detectors, it is always fp32: boxes in pixels need it."""
    return precision if kind_of(task).labels_images else "fp32"


def build(model_file: ModelFile, precision: str, calibration: Sequence[Tensor] = ()) -> "ov.Model":
    """The network as an OpenVINO model. For int8, all layers that quantization makes faster are quantized."""
    any_size = precision != "int8" and kind_of(model_file).any_size
    network = convert(model_file, Shapes(dynamic_size=any_size))
    if precision == "int8":
        need_calibration(calibration)
        return quantize.quantize(network, calibration)
    return network


def convert(model_file: ModelFile, shapes: Shapes) -> "ov.Model":
    """The network as an OpenVINO model in fp32."""
    import openvino as ov

    side, batch = model_file.preprocess.image_size, batch_of(model_file, shapes)
    with quiet():  # tracing warns about every check of a shape
        network = ov.convert_model(
            portable(model_file), example_input=torch.zeros(batch or 2, 3, side, side, dtype=torch.uint8), verbose=False
        )
    size = [-1, -1] if shapes.dynamic_size else [side, side]
    network.reshape([batch or -1, 3, *size])
    network.input(0).set_names({"images"})
    network.output(0).set_names({kind_of(model_file).output})
    return network


def _around(network: "ov.Model", model_file: ModelFile) -> "ov.Model":
    """The network, which takes one image of the model's size, together with its preprocessing and results."""
    import openvino as ov

    task = task_of(model_file)
    before = _exact(_from_onnx(end_to_end.preprocessing(model_file.preprocess, products=True)))
    after = _exact(_from_onnx(end_to_end.results(task)))
    ready = {end.any_name: end.get_node().input_value(0) for end in before.outputs}
    for part, outputs in ((network, {task.output: network.output(0).get_node().input_value(0)}), (after, {})):
        for end in part.inputs:
            for target in list(end.get_target_inputs()):
                target.replace_source_output(ready[end.any_name])
        ready |= outputs
    ends: Any = [after.output(name).get_node() for name in task.result_names]
    joined = ov.Model(ends, before.get_parameters())  # pyright: ignore[reportGeneralTypeIssues]: openvino's own stubs
    joined.validate_nodes_and_infer_types()
    return joined


def _from_onnx(graph: "onnx.ModelProto") -> "ov.Model":
    import openvino as ov

    return ov.convert_model(io.BytesIO(graph.SerializeToString()))


def _exact(network: "ov.Model") -> "ov.Model":
    """The network with all operations marked to be computed in fp32, whatever the precision of the rest of the model.

    Without this mark, CPUs with bf16 instructions would compute positions in an image with 8 bits.
    """
    import openvino as ov

    with TemporaryDirectory() as folder:
        path = Path(folder, "network.xml")
        ov.save_model(network, path, compress_to_fp16=False)
        document = ElementTree.parse(path)
        for layer in document.iter("layer"):
            if layer.get("type") not in ("Const", "Parameter", "Result"):
                if (facts := layer.find("rt_info")) is None:
                    facts = ElementTree.Element("rt_info")
                    layer.insert(0 if layer.find("data") is None else 1, facts)
                ElementTree.SubElement(facts, "attribute", name="precise", version="0")
        document.write(path)
        return core().read_model(path).clone()


def _sizes(shape: "ov.PartialShape") -> list[int | None]:
    """The shape of an input or output. A dimension that varies is None."""
    if shape.rank.is_dynamic:
        return []
    return [size.get_length() if size.is_static else None for size in shape]
