"""int8 by OpenVINO: what is done to the quantized network, and the floor."""

from pathlib import Path

import numpy as np
import pytest
import torch

from conftest import randomize_norms, tiny_architecture
from shvit.data.loader import Batch
from shvit.data.transforms import Preprocess
from shvit.engines.base import ExportJob, Shapes
from shvit.export.accuracy_floor import FloorError, Judge
from shvit.modelfile import ModelFile
from shvit.tasks import task_of

pytest.importorskip("openvino")
pytest.importorskip("nncf")

from shvit.engines import openvino, quantize
from shvit.engines.mixed import fewest, rank_layers
from shvit.engines.openvino_runtime import CompiledNetwork


@pytest.fixture(scope="module")
def model_file() -> ModelFile:
    torch.manual_seed(0)
    return ModelFile(randomize_norms(tiny_architecture(4).build()).eval(), tuple("abcd"), Preprocess(48))


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    return torch.randint(0, 256, (16, 3, 48, 48), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def exact(model_file):
    return openvino.convert(model_file, Shapes())


@pytest.fixture(scope="module")
def quantized(exact, images):
    return quantize.quantize_convolutions(exact, [images[:8], images[8:]])


def outputs(network, images, precision="int8"):
    return CompiledNetwork(network, precision, 1)(images)


def error(network, exact, images) -> float:
    expected = outputs(exact, images, "fp32")
    return float((outputs(network, images) - expected).square().mean() / expected.square().mean())


def test_all_convolutions_are_quantized_and_no_product(quantized):
    layers = quantize.quantized_layers(quantized)
    convolutions = [n for n in quantized.get_ops() if n.get_type_name() in ("Convolution", "GroupConvolution")]
    assert len(layers) == len(convolutions) > 20
    products = [n for n in quantized.get_ops() if n.get_type_name() == "MatMul"]
    assert all(product.input_value(0).get_node().get_type_name() != "FakeQuantize" for product in products)


def test_giving_all_layers_back_is_fp32(quantized, exact, images):
    back = quantize.restore_layers(quantized, exact, quantize.quantized_layers(quantized))
    assert quantize.quantized_layers(back) == []
    assert error(quantized, exact, images) > 1e-5
    assert error(back, exact, images) < 0.5 * error(quantized, exact, images)


def test_giving_a_layer_back_leaves_the_others(quantized, exact):
    layers = quantize.quantized_layers(quantized)
    assert quantize.quantized_layers(quantize.restore_layers(quantized, exact, layers[3:5])) == layers[:3] + layers[5:]
    assert quantize.quantized_layers(quantized) == layers


@pytest.mark.parametrize("step", [quantize.read_uint8_pixels, quantize.share_quantized_maps, quantize.tune])
def test_tuning_costs_no_accuracy(step, quantized, exact, images):
    tuned = step(quantized)
    assert len(tuned.get_ops()) != len(quantized.get_ops())
    assert error(tuned, exact, images) < 1.5 * error(quantized, exact, images)


def test_pixels_are_read_as_they_are_up_to_the_borders(quantized, exact):
    """Images of one color: only at the borders do they look otherwise, where the padding is the mean."""
    tuned = quantize.read_uint8_pixels(quantized)
    for color in (0, 124, 255):
        images = torch.full((2, 3, 48, 48), color, dtype=torch.uint8)
        assert error(tuned, exact, images) < max(1.5 * error(quantized, exact, images), 0.05)
    assert not [node for node in tuned.get_ops() if node.get_friendly_name().startswith("aten::sub/Subtract/fq")]


def test_a_first_layer_that_was_given_back_is_left_alone(quantized, exact, images):
    first = quantize.quantized_layers(quantized)[0]
    back = quantize.restore_layers(quantized, exact, [first])
    torch.testing.assert_close(outputs(quantize.read_uint8_pixels(back), images), outputs(back, images))


def test_the_layer_whose_return_mends_most_ranks_first(quantized, exact, images):
    """Planted: giving `good` back gives the exact network, `bad` one with more layers quantized than any."""
    layers = quantize.quantized_layers(quantized)
    some = quantize.restore_layers(quantized, exact, layers[:-5])
    planted = {(): quantized, ("good",): exact, ("middling",): some, ("none",): quantized}
    costs = rank_layers(
        CompiledNetwork(exact, "fp32", 1),
        lambda back: CompiledNetwork(planted[tuple(back)], "int8", 1),
        ["none", "middling", "good"],
        images,
    )
    assert list(costs) == ["good", "middling", "none"]
    assert costs["good"] == pytest.approx(1, abs=0.05)  # what is not int8 runs in bf16 where the processor has it
    assert costs["none"] == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("least", range(1, 12))
def test_fewest(least):
    asked = []

    def holds(count):
        asked.append(count)
        return count >= least

    assert fewest(holds, 10) == (least if least <= 10 else None)
    assert len(asked) == len(set(asked)) <= 8
    assert max(asked) <= 10


def labelled(network, images) -> list[Batch]:
    """Batches whose labels are what the network says itself: its own top-1 is 1."""
    labels = outputs(network, images, "fp32").argmax(1)
    return [Batch(images, labels, list(range(len(images))), {})]


def quantize_within(model_file, network, images, validation, max_drop, log=lambda _: None):
    """Return the int8 network that holds the floor, and the floor."""
    task = task_of(model_file)
    judge = Judge(task, validation, max_drop, log)
    job = ExportJob(model_file, Path("m.xml"), "int8", calibration=[images], accept=judge, threads=1)
    found = quantize.search(network, job, "int8")
    return found, judge.result()


def test_a_floor_that_holds_gives_nothing_back(model_file, exact, images):
    network, floor = quantize_within(model_file, exact, images, labelled(exact, images), 100.0)
    assert (floor.reference, floor.given_back, floor.images) == (1.0, {}, 16)
    first_reads_pixels = 1
    assert floor.layers == len(quantize.quantized_layers(network)) + first_reads_pixels
    assert floor.to_dict()["drop"] == pytest.approx(100 * (1 - floor.score))


@pytest.mark.slow
def test_a_floor_is_held_by_giving_layers_back(model_file, exact, images, monkeypatch):
    """Judge int8 as worse than it is until two layers run in floating point."""
    real = quantize.CompiledNetwork

    class Judged(real):
        def __init__(self, network, precision, threads):
            super().__init__(network, precision, threads)
            self.bad = precision == "int8" and len(quantize.quantized_layers(network)) > all_layers - 2

        def __call__(self, batch):
            return -super().__call__(batch) if self.bad and len(batch) == 12 else super().__call__(batch)

    all_layers = len(quantize.quantized_layers(quantize.quantize(exact, [images])))
    monkeypatch.setattr(quantize, "CompiledNetwork", Judged)
    said = []
    network, floor = quantize_within(model_file, exact, images, labelled(exact, images[:12]), 25.0, said.append)
    assert len(floor.given_back) == 2
    assert len(quantize.quantized_layers(network)) == all_layers - 2
    assert floor.drop <= 25
    assert [count for count, _ in floor.tried] == [1, 2]
    assert any("2 of" in line and "in higher precision" in line for line in said)


@pytest.mark.slow
def test_a_floor_that_cannot_be_held_fails_and_names_the_best(model_file, exact, images):
    with pytest.raises(
        FloorError, match=r"loses -?[\d.]+ points of top-1 at best, with \d+ of \d+ layers in higher precision"
    ):
        quantize_within(model_file, exact, images, labelled(exact, images), -1.0)


def test_values_of_constant_parts(exact):
    weights = next(n for n in exact.get_ordered_ops() if n.get_type_name() == "Convolution").input_value(1)
    assert np.isfinite(quantize._value(weights)).all()
