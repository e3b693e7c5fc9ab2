"""The engine `native`: kernels of every instruction set against NumPy to the last bit, and NumPy against PyTorch."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file

import shvit
from conftest import randomize_norms, reseal, tiny_architecture, trained_looking
from shvit import engines
from shvit.data.transforms import Preprocess
from shvit.engines.base import ExportJob
from shvit.engines.exported import EngineError
from shvit.engines.native import engine as native
from shvit.engines.native import library
from shvit.engines.native.engine import NativeEngine, quantized_network
from shvit.engines.native.file import read_native
from shvit.engines.native.layers import FloatLayers
from shvit.engines.native.library import NativeNetwork, NativeWorkspace, instruction_set
from shvit.engines.native.quantization import LayerQuantizer, measure_ranges
from shvit.engines.native.reference import reference_maps, run_reference
from shvit.engines.portable import portable
from shvit.model.architecture import Architecture
from shvit.model.config import Config, Stage
from shvit.modelfile import ModelFile

SETS = [name for name in ("generic", "avx2", "avxvnni", "avx512vnni", "neon") if instruction_set(name)]
compiled = pytest.mark.skipif(not SETS, reason="the kernels were not compiled")
CONFIGS = {
    "odd channels": Config((Stage(24, 1), Stage(75, 2, attended=21), Stage(130, 1, attended=36)), image_size=64),
    "no attention, one convolution in the stem": Config((Stage(33, 2), Stage(64, 1)), image_size=64, stem=1),
    "five convolutions in the stem": Config((Stage(80, 1, attended=17),), image_size=64, stem=5),
}


def pixels(*shape: int) -> torch.Tensor:
    return torch.randint(0, 256, shape, dtype=torch.uint8)


def model_of(config: Config, classes: int = 5) -> ModelFile:
    network = trained_looking(Architecture("odd", classes, config=config).build())
    return ModelFile(network, tuple("abcdefghij"[:classes]), Preprocess(config.image_size))


def outputs(network, images, name="", **options):
    run = NativeWorkspace(NativeNetwork(network, name), options.pop("together", 2), *images.shape[2:], **options)
    return run(images.numpy(), channels_last=False)


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("size", [(64, 64), (33, 70)])
def test_each_layer_is_near_pytorch(name, size):
    """Each layer in fp32, on the values that the bytes before it stand for."""
    fused, images = portable(model_of(CONFIGS[name])), pixels(4, 3, *size)
    layers = FloatLayers(fused.network, fused.mean.flatten())
    quantizer = LayerQuantizer(layers, measure_ranges(layers, [images]))
    found = reference_maps(quantizer.network(), images.numpy())
    maps = {0: images - fused.mean}
    for layer, bytes_ in zip(layers.all, found, strict=True):
        expected = layer(maps)
        if layer is layers.all[-1]:
            values = torch.from_numpy(bytes_)
        else:
            grid, bytes_ = quantizer.grids[layer.target], torch.from_numpy(bytes_).float()
            step = grid.step[:, None, None]
            values = step * (bytes_.permute(0, 3, 1, 2) - grid.zero)
            expected = torch.clamp(expected, step * (0 - grid.zero), step * (255 - grid.zero))
        assert (values - expected).square().mean().sqrt() < 0.03 * expected.std(), layer
        maps[layer.target] = values


def test_the_layers_are_the_network():
    fused, images = portable(model_of(CONFIGS["odd channels"])), pixels(2, 3, 40, 64)
    maps = FloatLayers(fused.network, fused.mean.flatten())(images - fused.mean)
    torch.testing.assert_close(maps[max(maps)], fused(images))


@compiled
@pytest.mark.parametrize("set_name", SETS)
@pytest.mark.parametrize("name", CONFIGS)
def test_kernels_equal_numpy_to_the_last_bit(name, set_name):
    network = quantized_network(model_of(CONFIGS[name]), [pixels(4, 3, 64, 64)])
    for size in ((64, 64), (33, 70), (128, 32)):
        images = pixels(3, 3, *size)
        expected = run_reference(network, images.numpy())
        assert np.isfinite(expected).all()
        for together, threads in ((1, 1), (2, 1), (4, 3)):
            np.testing.assert_array_equal(
                outputs(network, images, set_name, together=together, threads=threads), expected
            )


@compiled
@pytest.mark.parametrize("set_name", SETS)
def test_extreme_values(set_name):
    """Sums as large as they can be, and results beyond what a byte holds."""
    network = quantized_network(model_of(CONFIGS["odd channels"]), [pixels(4, 3, 64, 64)])
    generator = np.random.default_rng(0)
    layers = []
    for layer in network.layers:
        weight = np.where(generator.random(layer.weight.shape) < 0.1, -127, 127).astype(np.int8)
        many = layer.scale * generator.choice([1e-3, 1, 300], layer.scale.shape).astype(np.float32)
        layers.append(replace(layer, weight=weight, scale=many, zero=int(generator.choice([0, 128, 255]))))
    images = torch.where(pixels(2, 1, 64, 64) < 128, 0, 255).to(torch.uint8).expand(-1, 3, -1, -1).contiguous()
    extreme = replace(network, layers=tuple(layers))
    np.testing.assert_array_equal(outputs(extreme, images, set_name), run_reference(extreme, images.numpy()))


@compiled
def test_memory_formats_batches_and_many_sizes(tiny):
    images = pixels(9, 3, 48, 40)
    engine = engines.load(tiny, "native", calibration=[images])
    whole = engine(images)
    assert torch.equal(engine(images.contiguous(memory_format=torch.channels_last)), whole)
    assert torch.equal(engine(images.flip(3).flip(3)), whole)
    assert torch.equal(engine(images.expand(2, -1, -1, -1, -1)[1]), whole)
    for size in (1, 2, 5):
        assert torch.equal(engine(images[:size]), whole[:size])
    for side in range(32, 52):
        engine(pixels(1, 3, side, 64))
    assert torch.equal(engine(images), whole)


@compiled
def test_calls_from_several_threads(tiny):
    batches = [pixels(count, 3, 32, 32) for count in (1, 2, 3, 4)] * 8
    engine = engines.load(tiny, "native", threads=2, calibration=batches[:4])
    expected = [engine(batch) for batch in batches]
    with ThreadPoolExecutor(4) as pool:
        assert all(map(torch.equal, pool.map(engine, batches), expected))


@compiled
@pytest.mark.parametrize(
    ("shape", "dtype"),
    [
        ((1, 4, 32, 32), torch.uint8),
        ((1, 3, 32, 32), torch.float32),
        ((3, 32, 32), torch.uint8),
        ((0, 3, 32, 32), torch.uint8),
    ],
)
def test_other_images_are_refused(tiny, shape, dtype):
    engine = engines.load(tiny, "native", calibration=[pixels(2, 3, 32, 32)])
    with pytest.raises(EngineError, match=r"images must be \(batch, 3, height, width\) in uint8"):
        engine(torch.zeros(shape, dtype=dtype))
    with pytest.raises(EngineError, match="sides of 32 to 8192 pixels, got 40x31"):
        engine(pixels(1, 3, 31, 40))


@compiled
def test_auto_takes_it_for_int8_of_shvit_only(tiny, monkeypatch):
    monkeypatch.setattr(native, "instruction_set", lambda: "avx512vnni")
    assert engines.choose(tiny, precision="int8", device="cpu")[0] == "native"
    assert engines.choose(tiny, device="cpu")[1] != "int8"
    network = Architecture("timm/resnet18", 2).build()
    other = ModelFile(network.eval(), ("a", "b"), Preprocess(64))
    assert engines.choose(other, precision="int8", device="cpu")[0] != "native"
    with pytest.raises(EngineError, match="native cannot run this model: its kernels run SHViT, not TimmModel"):
        engines.load(other, "native", calibration=[pixels(1, 3, 64, 64)])
    monkeypatch.setattr(native, "instruction_set", lambda: "avx2")
    assert engines.choose(tiny, precision="int8", device="cpu")[0] != "native"
    assert engines.choose(tiny, "native", device="cpu") == ("native", "int8", "cpu")
    with pytest.raises(EngineError, match="int8 needs calibration images"):
        engines.load(tiny, "native", device="cpu")


def test_without_compiled_kernels(tiny, monkeypatch):
    monkeypatch.setattr(library, "kernel_library", lambda: None)
    with pytest.raises(EngineError, match="native: its kernels were not compiled: install shvit again on a machine"):
        engines.load(tiny, "native", calibration=[pixels(1, 3, 32, 32)])
    with pytest.raises(EngineError, match="cannot write the format native: its kernels were not compiled"):
        engines.format_of("native")


@pytest.mark.parametrize("mixer", ["study/s3-multi-head"])
def test_other_mixers_are_refused(mixer):
    network = shvit.create_model(mixer, num_classes=2)
    assert "need SingleHeadAttention as token mixer, not" in (NativeEngine.refuses(network) or "")
    grey = shvit.create_model("shvit_s1", num_classes=2, in_channels=1)
    assert "images of 3 channels, not of 1" in (NativeEngine.refuses(grey) or "")


@pytest.fixture
def exported(tiny, tmp_path):
    path = tmp_path / "m.native"
    NativeEngine.export(ExportJob(tiny, path, "int8", calibration=[pixels(4, 3, 32, 32)]))
    return path


@compiled
def test_a_file_computes_the_same_everywhere(tiny, exported):
    images = pixels(2, 3, 32, 32)
    expected = torch.from_numpy(run_reference(read_native(exported), images.numpy()))
    assert torch.equal(engines.load(engines.read(exported))(images), expected)
    random = tiny_architecture().build()
    assert read_native(exported).classes == random.num_classes


def changed(tensors, name, value):
    tensors[name] = value


@compiled
@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda t: t.pop("3.weight"), "3.weight"),
        (lambda t: changed(t, "3.weight", t["3.weight"][:-1]), "3.weight is int8 .* expected int8"),
        (lambda t: changed(t, "3.weight", t["3.weight"].astype(np.int32)), "3.weight is int32"),
        (lambda t: changed(t, "2.scale", t["2.scale"] * np.nan), "2.scale has values that are not finite"),
        (lambda t: changed(t, "1.numbers", t["1.numbers"] + 300.5), "layer 1 has a zero point of 300.5"),
        (lambda t: changed(t, "99.weight", t["3.weight"]), "unknown tensors: 99.weight"),
    ],
)  # fmt: skip
def test_numbers_that_do_not_fit_the_architecture(exported, change, reason):
    from safetensors import safe_open

    with safe_open(exported, "np") as file:
        metadata = file.metadata()
    tensors = load_file(exported)
    change(tensors)
    save_file(tensors, exported, metadata)
    reseal(exported)
    with pytest.raises(EngineError, match=f"m.native is not a usable native file .*{reason}"):
        engines.load(engines.read(exported))


@compiled
def test_an_impossible_architecture(exported):
    from safetensors import safe_open

    with safe_open(exported, "np") as file:
        metadata = file.metadata()
    tensors = load_file(exported)
    for text in (
        "{}",
        "[",
        '{"name": "timm/resnet18", "num_classes": 2}',
        metadata["architecture"].replace("16", "99"),
    ):
        save_file(tensors, exported, {**metadata, "architecture": text})
        reseal(exported)
        with pytest.raises(EngineError, match=r"m\.native is not a usable native file"):
            engines.load(engines.read(exported))


def test_calibration_is_of_each_image(tiny):
    """The limits of a range are means over images, however these are divided into batches."""
    images = pixels(6, 3, 32, 32)
    one, other = (quantized_network(tiny, parts) for parts in ([images], list(images.split(2))))
    for a, b in zip(one.layers, other.layers, strict=True):
        np.testing.assert_allclose(a.shift, b.shift, rtol=1e-4, atol=1e-4)


@compiled
@pytest.mark.slow
@pytest.mark.parametrize("variant", ["shvit_s1", "shvit_s2", "shvit_s3", "shvit_s4"])
def test_whole_variants(variant):
    network = randomize_norms(shvit.create_model(variant, num_classes=7)).eval()
    images = pixels(2, 3, 64, 64)
    quantized = quantized_network(ModelFile(network, tuple("abcdefg"), Preprocess(64)), [images])
    np.testing.assert_array_equal(outputs(quantized, images), run_reference(quantized, images.numpy()))
