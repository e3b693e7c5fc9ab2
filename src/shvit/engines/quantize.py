"""int8 for OpenVINO. NNCF quantizes the network. This module makes the result faster and, on request, more accurate.

With NNCF's default settings, a sixth of the time in int8 is not spent in convolutions (LOG.md): pixels are converted to
floats and back, the small matrix products of squeeze-excite and attention run in slow int8 kernels, and maps are
written in fp32 because one of their two readers needs fp32. `tune` and the choice of layers remove these costs.
"""

from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from ..suppress import quiet
from . import mixed as mixed_precision
from .base import ExportJob
from .mixed import DETECTOR_PARTS, whole_batches
from .openvino_runtime import CompiledNetwork, core

if TYPE_CHECKING:
    import openvino as ov

QUANTIZED = ("Convolution", "GroupConvolution", "ConvolutionBackpropData")


def quantize(network: "ov.Model", calibration: Sequence[Tensor]) -> "ov.Model":
    """Quantize the convolutions of a network to int8. Matrix products stay in floating point."""
    return tune(quantize_convolutions(network, calibration))


def quantize_convolutions(network: "ov.Model", calibration: Sequence[Tensor]) -> "ov.Model":
    """Quantize the convolutions with NNCF's post-training quantization.

    Matrix products stay in floating point. In attention and squeeze-excite, they are so small that the conversions take
    longer than int8 saves; in the classifier, they take almost no time. The last convolution of each detector head also
    stays in floating point, since 256 values are too few for boxes in pixels. These layers do little of the work.
    """
    names = {node.get_friendly_name(): node.get_type_name() for node in network.get_ops()}
    detector = any(DETECTOR_PARTS[0] in name for name in names)
    left = [
        name
        for name, kind in names.items()
        if kind == "MatMul" or (detector and not any(part in name for part in DETECTOR_PARTS))
    ]
    size = network.input(0).partial_shape[0]
    batches = whole_batches(calibration, size.get_length() if size.is_static else None)
    with quiet():
        import nncf

        return nncf.quantize(
            network.clone(),
            nncf.Dataset([batch.numpy() for batch in batches]),
            subset_size=len(batches),
            ignored_scope=nncf.IgnoredScope(names=left),
        )


def tune(network: "ov.Model") -> "ov.Model":
    """Make a quantized network faster without changing its ranges."""
    return share_quantized_maps(read_uint8_pixels(network))


def search(network: "ov.Model", job: ExportJob, compute: str) -> "ov.Model | None":
    """Quantize an fp32 network, with as few layers in floating point as `job.accept` allows; None if none is accepted.

    See `mix_precisions`. `compute` is the precision of layers that are not quantized.
    """
    quantized, threads = quantize_convolutions(network, job.calibration), job.threads

    def mixed(back: Collection[str]) -> "ov.Model":
        return tune(restore_layers(quantized, network, back))

    def run(candidate: "ov.Model") -> CompiledNetwork:
        return CompiledNetwork(candidate, compute, threads)

    return mixed_precision.mix_precisions(
        CompiledNetwork(network, "fp32", threads), mixed, run, quantized_layers(quantized), job
    )


def quantized_layers(network: "ov.Model") -> list[str]:
    """Names of the layers that run in int8, in the order of the network."""
    return [
        node.get_friendly_name()
        for node in network.get_ordered_ops()
        if node.get_type_name() in QUANTIZED and _type_before(node, 0) == "FakeQuantize"
    ]


def restore_layers(network: "ov.Model", original: "ov.Model", layers: Collection[str]) -> "ov.Model":
    """The quantized network, but these layers run in floating point again and have their original weights."""
    network = network.clone()
    originals = {node.get_friendly_name(): node for node in original.get_ops()}
    for node in network.get_ops():
        if (name := node.get_friendly_name()) in layers:
            node.input(0).replace_source_output(node.input_value(0).get_node().input_value(0))
            node.input(1).replace_source_output(_constant(_value(originals[name].input_value(1))))
    network.validate_nodes_and_infer_types()
    return network


def read_uint8_pixels(network: "ov.Model") -> "ov.Model":
    """Let the first convolution read the 8-bit pixels directly, since quantizing them again takes two more passes.

    The mean, rounded to whole numbers, becomes the zero point of that convolution. The kernel also pads with this zero
    point. The rounding error goes into the bias. At the borders, an error of at most half an 8-bit step remains.
    """
    import openvino.opset13 as ops

    network = network.clone()
    first = next(node for node in network.get_ordered_ops() if node.get_type_name() == "Convolution")
    quantizer = first.input_value(0).get_node()
    if quantizer.get_type_name() != "FakeQuantize":
        return network  # its first convolution is in floating point
    shift = quantizer.input_value(0).get_node()
    weights = first.input_value(1).get_node()
    [bias] = [target.get_node() for target in first.output(0).get_target_inputs()]
    pixels = shift.input_value(0).get_node()
    shapes = [node.get_type_name() for node in (pixels, shift, weights, bias)]
    if shapes not in (["Convert", "Add", "Multiply", "Add"], ["Convert", "Subtract", "Multiply", "Add"]):
        return network  # does not begin like shvit's networks
    mean = _value(shift.input_value(1)) * (-1 if shift.get_type_name() == "Add" else 1)
    zero_point = mean.round()
    scale = np.float32(1 / 64)  # any value works, but without a scale OpenVINO does not recognize a quantized map
    centered = ops.subtract(pixels.output(0), ops.convert(_constant(zero_point.astype(np.uint8)), "f32"))
    first.input(0).replace_source_output(ops.multiply(centered, _constant(np.full((1, 1, 1, 1), scale))).output(0))
    rest = (_value(weights.output(0)) * (zero_point - mean)).sum((1, 2, 3)).reshape(1, -1, 1, 1)
    weights.input(1).replace_source_output(_constant(_value(weights.input_value(1)) / scale))
    bias.input(1).replace_source_output(_constant(_value(bias.input_value(1)) + rest))
    network.validate_nodes_and_infer_types()
    return network


def share_quantized_maps(network: "ov.Model") -> "ov.Model":
    """If a map is already quantized for the residual sum, let attention also read the quantized map."""
    network = network.clone()
    for node in network.get_ordered_ops():
        if node.get_type_name() != "Add" or _type_before(node, 0) != "GroupConvolution":
            continue
        readers = list(node.output(0).get_target_inputs())
        quantizers = [r.get_node() for r in readers if r.get_node().get_type_name() == "FakeQuantize"]
        splits = [r for r in readers if r.get_node().get_type_name() == "VariadicSplit"]
        if len(quantizers) != 1 or len(splits) != 1:
            continue
        splits[0].replace_source_output(quantizers[0].output(0))
        for part in splits[0].get_node().outputs():
            for reader in list(part.get_target_inputs()):
                if reader.get_node().get_type_name() == "FakeQuantize":  # already in 8 bits
                    for target in list(reader.get_node().output(0).get_target_inputs()):
                        target.replace_source_output(part)
    network.validate_nodes_and_infer_types()
    return network


def _type_before(node: Any, index: int) -> str:
    return node.input_value(index).get_node().get_type_name()


def _constant(value: np.ndarray) -> Any:
    import openvino.opset13 as ops

    return ops.constant(value.astype(np.float32) if value.dtype.kind == "f" else value).output(0)


def _value(output: Any) -> np.ndarray:
    """The value of a constant in a network."""
    import openvino as ov
    import openvino.opset13 as ops

    part: Any = ov.Model([ops.result(output)], [])  # pyright: ignore[reportGeneralTypeIssues]: openvino's own stubs
    exact = {"INFERENCE_PRECISION_HINT": "f32"}
    return core().compile_model(part, "CPU", exact)([])[0].astype(np.float32)
