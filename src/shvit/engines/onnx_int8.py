"""int8 and fp16 for ONNX files, with ONNX Runtime's tools.

int8 networks are in QDQ form: every quantized tensor passes through QuantizeLinear and DequantizeLinear, which runtimes
fuse with the convolutions. Weights are int8 per output channel. Activations are uint8, since the kernels of x86, ARM
and WebAssembly multiply uint8 with int8.
"""

import tempfile
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from ..suppress import quiet
from .mixed import whole_batches

if TYPE_CHECKING:
    import onnx

IN_INT8 = ("Conv", "Relu", "Add")
"""Types of operations that run in int8. Matrix products are too small: the conversions take longer than int8 saves."""
WITHIN = 99.99
"""Percentage of the values of a map that its range covers. Rare larger values would make the steps too coarse."""
FLOAT_PARTS = ("qkv",)
"""Convolutions whose names contain one of these run in floating point, because their inputs and outputs do (LOG.md)."""


class Quantizer:
    """Quantizes the convolutions of a network, with value ranges that are measured once.

    Args:
        network: The network in fp32, with the input `images`. Names of nodes must be paths of modules.
        calibration: Batches of images for measuring the ranges.
        parts: Quantize only operations whose paths contain one of these. None: all operations.
    """

    def __init__(
        self, network: "onnx.ModelProto", calibration: Sequence[Tensor], parts: Sequence[str] | None = None
    ) -> None:
        from onnxruntime.quantization import CalibrationMethod, create_calibrator
        from onnxruntime.quantization.shape_inference import quant_pre_process

        size = network.graph.input[0].type.tensor_type.shape.dim[0].dim_value or None
        with tempfile.TemporaryDirectory() as folder, quiet():
            whole, prepared = Path(folder, "whole.onnx"), Path(folder, "prepared.onnx")
            whole.write_bytes(network.SerializeToString())
            quant_pre_process(whole, prepared, skip_symbolic_shape=True)
            self._network = prepared.read_bytes()
            calibrator = create_calibrator(
                prepared,
                IN_INT8,
                augmented_model_path=str(Path(folder, "augmented.onnx")),
                calibrate_method=CalibrationMethod.Percentile,
                extra_options={"percentile": WITHIN},
            )
            for batch in whole_batches(calibration, size):  # one at a time, since all maps of a call are in memory
                calibrator.collect_data(_reader([batch]))
            self._ranges = calibrator.compute_data()
        convolutions = [node.name for node in self._copy().graph.node if node.op_type == "Conv"]
        names = [node.name for node in self._copy().graph.node if node.op_type in IN_INT8]
        left = {name for name in names if parts and not any(part in path_of(name) for part in parts)}
        self.layers = [
            name
            for name in convolutions[1:]  # the first convolution reads only three channels, and is faster in fp32
            if not any(part in name for part in FLOAT_PARTS) and name not in left
        ]
        """Names of the layers that are quantized."""
        self._never = sorted(left.union(convolutions).difference(self.layers))

    def quantized(self, back: Collection[str] = ()) -> "onnx.ModelProto":
        """The quantized network, with these layers in floating point."""
        from onnxruntime.quantization import QDQQuantizer, QuantType

        with quiet():
            quantizer = QDQQuantizer(
                self._copy(),
                per_channel=True,
                reduce_range=False,
                weight_qType=QuantType.QInt8,
                activation_qType=QuantType.QUInt8,
                tensors_range=self._ranges,
                nodes_to_quantize=[],
                nodes_to_exclude=[*self._never, *back],
                op_types_to_quantize=IN_INT8,
                extra_options={},
            )
            quantizer.quantize_model()
            quantizer.model.topological_sort()
        dequantize_pixels(quantizer.model.model)
        return quantizer.model.model

    def _copy(self) -> "onnx.ModelProto":
        import onnx

        return onnx.load_from_string(self._network)


def dequantize_pixels(network: "onnx.ModelProto") -> None:
    """Let one DequantizeLinear convert the pixels and subtract the mean, which otherwise takes two passes.

    Its zero point is the mean, rounded to whole numbers. The rounding error goes into the bias of the first
    convolution. At the borders, an error of at most half an 8-bit step remains. Other networks are not changed.
    """
    import onnx.helper
    from onnx.numpy_helper import from_array, to_array

    graph = network.graph
    values = {tensor.name: tensor for tensor in graph.initializer}
    made_by = {name: node for node in graph.node for name in node.output}
    first = next(node for node in graph.node if node.op_type == "Conv")
    shift = made_by.get(first.input[0])
    cast = made_by.get(shift.input[0]) if shift is not None and shift.op_type == "Sub" else None
    if shift is None or cast is None or cast.op_type != "Cast" or len(first.input) != 3:
        return  # does not begin like shvit's networks
    if any(name not in values for name in (shift.input[1], first.input[1], first.input[2])):
        return
    mean, weights, bias = (to_array(values[name]) for name in (shift.input[1], first.input[1], first.input[2]))
    zero_point = mean.round()
    rest = (weights * (zero_point - mean)).sum((1, 2, 3))
    values[first.input[2]].CopyFrom(from_array((bias + rest).astype(np.float32), first.input[2]))
    ends = (
        from_array(np.ones(mean.size, np.float32), "pixels_scale"),
        from_array(zero_point.astype(np.uint8).reshape(-1), "pixels_zero_point"),
    )
    graph.initializer.extend(ends)
    inputs = [cast.input[0], *(end.name for end in ends)]
    reads = onnx.helper.make_node("DequantizeLinear", inputs, [first.input[0]], name="/pixels", axis=1)
    index = list(graph.node).index(cast)
    graph.node.remove(cast)
    graph.node.remove(shift)
    graph.node.insert(index, reads)


def path_of(node: str) -> str:
    """The name of a node as a path of modules: network.backbone.stem for /network/backbone/stem/Conv."""
    return node.strip("/").replace("/", ".")


def _reader(batches: Sequence[Tensor]) -> Any:
    """An object from which ONNX Runtime's tools read the inputs of a network."""
    from onnxruntime.quantization import CalibrationDataReader

    class _Reader(CalibrationDataReader):
        def __init__(self) -> None:
            self.rest: Iterator[Tensor] = iter(batches)

        def get_next(self) -> Any:
            batch = next(self.rest, None)
            return None if batch is None else {"images": batch.numpy()}

    return _Reader()


def in_fp16(network: "onnx.ModelProto") -> "onnx.ModelProto":
    """The network with weights and computations in fp16. Its inputs and outputs keep their types."""
    from onnxruntime.transformers.float16 import convert_float_to_float16

    with quiet():
        return convert_float_to_float16(network, keep_io_types=True)
