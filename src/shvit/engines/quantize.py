"""int8 for OpenVINO: NNCF chooses the ranges, and what it leaves on the table is taken here.

With NNCF's own settings a sixth of an image's time in int8 is not convolution (LOG.md): pixels turned into floats and
back, squeeze-excite and attention's small matrix products in kernels that are slower in int8, maps written in fp32
because one of two readers wants that. Each function here removes one of these and gives a new network.
"""

from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from ..suppress import quiet
from .openvino import core

if TYPE_CHECKING:
    import openvino as ov

CALIBRATION_IMAGES = 300
"""More change the ranges no further."""
DETECTOR_PARTS = ("network.backbone.", "network.pyramid.", ".conv.", ".mask_head.")
"""In the names of a detector's layers that are quantised."""
QUANTIZED = ("Convolution", "GroupConvolution", "ConvolutionBackpropData")


def quantize(network: "ov.Model", calibration: Sequence[Tensor]) -> "ov.Model":
    """The network in int8: all convolutions, none of the matrix products."""
    return tune(quantize_convolutions(network, calibration))


def quantize_convolutions(network: "ov.Model", calibration: Sequence[Tensor]) -> "ov.Model":
    """NNCF's post-training quantisation.

    Left in floating point are matrix products: attention's and squeeze-excite's are too small for int8 kernels to gain
    anything over their conversions, and the classifier's cost nothing. Of a detector's heads only the convolutions
    before the last are quantised, which are most of its work: 256 steps are too few for boxes in pixels.
    """
    names = {node.get_friendly_name(): node.get_type_name() for node in network.get_ops()}
    detector = any(DETECTOR_PARTS[0] in name for name in names)
    left = [
        name
        for name, kind in names.items()
        if kind == "MatMul" or (detector and not any(part in name for part in DETECTOR_PARTS))
    ]
    size = network.input(0).partial_shape[0]
    lots = [lot for batch in calibration for lot in (batch.split(size.get_length()) if size.is_static else [batch])]
    batches = [lot.numpy() for lot in lots if not size.is_static or len(lot) == size.get_length()]
    with quiet():
        import nncf

        return nncf.quantize(
            network.clone(),
            nncf.Dataset(batches),
            subset_size=len(batches),
            ignored_scope=nncf.IgnoredScope(names=left),
        )


def tune(network: "ov.Model") -> "ov.Model":
    """Everything that makes a quantised network faster and is no matter of ranges."""
    return share_quantized_maps(pixels_as_they_are(network))


def quantized_layers(network: "ov.Model") -> list[str]:
    """Names of the layers that run in int8, in the order of the network."""
    return [
        node.get_friendly_name()
        for node in network.get_ordered_ops()
        if node.get_type_name() in QUANTIZED and _type_before(node, 0) == "FakeQuantize"
    ]


def give_back(network: "ov.Model", original: "ov.Model", layers: Collection[str]) -> "ov.Model":
    """The quantised network with these layers in floating point again, their weights those of the original."""
    network = network.clone()
    weights = {
        node.get_friendly_name(): node.input_value(1)
        for node in original.get_ops()
        if node.get_friendly_name() in layers
    }
    for node in network.get_ops():
        if node.get_friendly_name() in layers:
            node.input(0).replace_source_output(node.input_value(0).get_node().input_value(0))
            node.input(1).replace_source_output(_constant(_value(weights[node.get_friendly_name()])))
    network.validate_nodes_and_infer_types()
    return network


def pixels_as_they_are(network: "ov.Model") -> "ov.Model":
    """The first convolution reads the 8-bit pixels themselves: quantising them again only costs two passes.

    The mean becomes that convolution's zero point, rounded to whole numbers, which the kernel also pads with; what
    rounding leaves goes into the bias. At the borders it stays, half a step of the 8-bit range at most.
    """
    import openvino.opset13 as ops

    network = network.clone()
    first = next(node for node in network.get_ordered_ops() if node.get_type_name() == "Convolution")
    quantizer = first.input_value(0).get_node()
    if quantizer.get_type_name() != "FakeQuantize":
        return network  # given back
    shift = quantizer.input_value(0).get_node()
    weights = first.input_value(1).get_node()
    [bias] = [target.get_node() for target in first.output(0).get_target_inputs()]
    pixels = shift.input_value(0).get_node()
    shapes = [node.get_type_name() for node in (pixels, shift, weights, bias)]
    if shapes not in (["Convert", "Add", "Multiply", "Add"], ["Convert", "Subtract", "Multiply", "Add"]):
        return network  # not one of our networks
    mean = _value(shift.input_value(1)) * (-1 if shift.get_type_name() == "Add" else 1)
    zero_point = mean.round()
    scale = np.float32(1 / 64)  # any: without one OpenVINO does not see that this is a quantised map
    centred = ops.subtract(pixels.output(0), ops.convert(_constant(zero_point.astype(np.uint8)), "f32"))
    first.input(0).replace_source_output(ops.multiply(centred, _constant(np.full((1, 1, 1, 1), scale))).output(0))
    rest = (_value(weights.output(0)) * (zero_point - mean)).sum((1, 2, 3)).reshape(1, -1, 1, 1)
    weights.input(1).replace_source_output(_constant(_value(weights.input_value(1)) / scale))
    bias.input(1).replace_source_output(_constant(_value(bias.input_value(1)) + rest))
    network.validate_nodes_and_infer_types()
    return network


def share_quantized_maps(network: "ov.Model") -> "ov.Model":
    """A map that is quantised for the residual sum and read as it is by attention is written in 8 bits for both."""
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
                if reader.get_node().get_type_name() == "FakeQuantize":  # in 8 bits already
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
    """What a constant part of a network comes to."""
    import openvino as ov
    import openvino.opset13 as ops

    part: Any = ov.Model([ops.result(output)], [])  # pyright: ignore[reportGeneralTypeIssues]: openvino's own stubs
    exact = {"INFERENCE_PRECISION_HINT": "f32"}
    return core().compile_model(part, "CPU", exact)([])[0].astype(np.float32)
