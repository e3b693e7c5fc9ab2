"""int8 and fp16 for ONNX Runtime: which layers are quantized, and that layers in fp32 bring the outputs back."""

from pathlib import Path

import pytest
import torch

from conftest import randomize_norms, tiny_architecture
from shvit.data.loader import Batch
from shvit.data.transforms import Preprocess
from shvit.engines.base import ExportJob, Shapes
from shvit.export.accuracy_floor import Judge
from shvit.modelfile import ModelFile
from shvit.tasks import task_of

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

from shvit.engines import onnx_int8  # noqa: E402
from shvit.engines.onnx import OnnxEngine, traced  # noqa: E402
from shvit.engines.onnx_runtime import OnnxNetwork  # noqa: E402


@pytest.fixture(scope="module")
def model_file() -> ModelFile:
    torch.manual_seed(0)
    return ModelFile(randomize_norms(tiny_architecture(4).build()).eval(), tuple("abcd"), Preprocess(48))


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    return torch.randint(0, 256, (16, 3, 48, 48), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def exact(model_file):
    return onnx.load_from_string(traced(model_file, Shapes()))


@pytest.fixture(scope="module")
def quantizer(exact, images):
    return onnx_int8.Quantizer(exact, [images[:8], images[8:]])


def outputs(network, images):
    return OnnxNetwork(network.SerializeToString(), 1)(images)


def error(network, exact, images) -> float:
    expected = outputs(exact, images)
    return float((outputs(network, images) - expected).square().mean() / expected.square().mean())


def quantized_weights(network) -> int:
    """Number of convolutions whose weights are int8."""
    weights = {tensor.name: tensor.data_type for tensor in network.graph.initializer}
    made_by = {name: node for node in network.graph.node for name in node.output}
    readers = [made_by.get(node.input[1]) for node in network.graph.node if node.op_type == "Conv"]
    return sum(one is not None and weights[one.input[0]] == onnx.TensorProto.INT8 for one in readers)


def test_all_convolutions_but_the_first_and_qkv_are_quantized(quantizer, exact):
    convolutions = [node.name for node in exact.graph.node if node.op_type == "Conv"]
    left = [name for name in convolutions[1:] if "qkv" in name]
    assert left
    assert len(quantizer.layers) == len(convolutions) - 1 - len(left) == quantized_weights(quantizer.quantized())


def test_layers_in_fp32_bring_the_outputs_back(quantizer, exact, images):
    whole, none = quantizer.quantized(), quantizer.quantized(quantizer.layers)
    assert quantized_weights(quantizer.quantized(quantizer.layers[:3])) == len(quantizer.layers) - 3
    assert quantized_weights(none) == 0
    assert 0.01 > error(whole, exact, images) > 1.5 * error(none, exact, images)


def test_pixels_are_converted_in_one_step(quantizer, exact, images):
    """The mean is rounded, so outputs differ a little, at the borders."""
    network = quantizer._copy()
    onnx_int8.dequantize_pixels(network)
    types = [node.op_type for node in network.graph.node]
    assert "DequantizeLinear" in types
    assert "Cast" not in types[:5]
    assert error(network, exact, images) < 1e-3


def test_fp16_keeps_inputs_and_outputs(exact, images):
    network = onnx_int8.in_fp16(onnx.load_from_string(exact.SerializeToString()))
    assert any(tensor.data_type == onnx.TensorProto.FLOAT16 for tensor in network.graph.initializer)
    assert outputs(network, images).dtype == torch.float32
    assert error(network, exact, images) < 1e-3


@pytest.mark.parametrize("max_drop", [100.0, -1.0])
def test_a_floor_is_held_or_nothing_is_written(model_file, exact, images, tmp_path, max_drop):
    """Nothing gains a point over the labels of fp32, so the second floor gives back up to half of the layers."""
    labels = outputs(exact, images).argmax(1)
    batches = [Batch(images, labels, list(range(len(images))), {})]
    judge = Judge(task_of(model_file), batches, max_drop)
    path = Path(tmp_path, "m.onnx")
    OnnxEngine.export(ExportJob(model_file, path, "int8", calibration=[images], accept=judge, threads=1))
    assert path.exists() == (max_drop > 0)
    assert max(len(floor.given_back) for floor in judge.floors) == (0 if max_drop > 0 else judge.floors[0].layers // 2)
