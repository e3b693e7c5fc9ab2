"""The contract of engines.base.Engine, for each engine that can run here."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import shvit
from conftest import randomize_norms, tiny_architecture
from shvit import engines
from shvit.data.transforms import Preprocess
from shvit.engines.base import ExportJob, Shapes
from shvit.engines.exported import EngineError
from shvit.engines.portable import portable
from shvit.errors import Notice
from shvit.modelfile import ModelFile

BOUNDS = {"fp32": 1e-4, "bf16": 0.2, "int8": 0.5}


@pytest.fixture(params=engines.ENGINES)
def name(request) -> str:
    if reason := engines.ENGINES[request.param].unavailable("cpu"):
        pytest.skip(reason)
    return request.param


def pixels(*shape: int) -> torch.Tensor:
    return torch.randint(0, 256, shape, dtype=torch.uint8)


def normalized(images: torch.Tensor, preprocess: Preprocess) -> torch.Tensor:
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (preprocess.mean, preprocess.std))
    return (images / 255 - mean) / std


def options(precision: str, images: torch.Tensor) -> dict:
    return {"calibration": [images]} if precision == "int8" else {}


def usual(name: str) -> str:
    """The precision in which an engine is tested."""
    return "fp32" if "fp32" in engines.ENGINES[name].runs[None] else "int8"


def near(found: torch.Tensor, expected: torch.Tensor, precision: str) -> None:
    """As near as fp32 is, or int8 can be."""
    if precision == "int8":
        assert (found - expected).abs().max() < BOUNDS[precision] * expected.abs().max()
    else:
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)


@pytest.fixture(scope="module")
def described() -> ModelFile:
    """A tiny network that has everything a model file can say."""
    torch.manual_seed(0)
    model = randomize_norms(tiny_architecture(5).build()).eval()
    return ModelFile(model, ("a", "b", "c", "d", "é"), Preprocess(64), provenance={"data_fingerprint": "f"})


def check_outputs(name: str, model_file: ModelFile) -> None:
    images = pixels(3, 3, 64, 64)
    expected = model_file.model(normalized(images, model_file.preprocess))
    for precision in engines.ENGINES[name].precisions("cpu"):
        engine = engines.load(model_file, name, precision, "cpu", **options(precision, images))
        assert (engine.name, engine.precision) == (name, precision)
        outputs = engine(images)
        assert outputs.dtype == torch.float32
        assert (outputs - expected).abs().max() < BOUNDS[precision] * expected.abs().max(), precision


def test_outputs_are_those_of_pytorch(name, described):
    check_outputs(name, described)


@pytest.mark.slow
@pytest.mark.parametrize("variant", ["shvit_s1", "shvit_s4"])
@pytest.mark.parametrize("engine", ["onnx", "openvino"])  # the other engines' own tests run whole variants
def test_outputs_of_whole_variants(engine, variant):
    if reason := engines.ENGINES[engine].unavailable("cpu"):
        pytest.skip(reason)
    model = randomize_norms(shvit.create_model(variant, num_classes=5)).eval()
    check_outputs(engine, ModelFile(model, tuple("abcde"), Preprocess(64)))


def test_any_batch_size_and_memory_format(name, tiny):
    images = pixels(7, 3, 32, 32)
    engine = engines.load(tiny, name, usual(name), "cpu", **options(usual(name), images))
    whole = engine(images)
    for size in (1, 3):
        torch.testing.assert_close(engine(images[:size]), whole[:size], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(engine(images.contiguous(memory_format=torch.channels_last)), whole)
    torch.testing.assert_close(engine(images.flip(3)), engine(images.flip(3).contiguous()))


def test_the_model_is_untouched_and_threads_are_kept(name, tiny):
    before = {key: value.clone() for key, value in tiny.model.state_dict().items()}
    threads = torch.get_num_threads()
    images = pixels(1, 3, 32, 32)
    engines.load(tiny, name, usual(name), "cpu", threads=1, **options(usual(name), images))(images)
    assert torch.get_num_threads() == threads
    assert all(torch.equal(value, before[key]) for key, value in tiny.model.state_dict().items())


def test_an_exported_file_says_and_computes_the_same(name, described, tmp_path):
    kind = engines.ENGINES[name]
    path = tmp_path / f"m{kind.suffix}"
    images, precision = pixels(2, 3, 64, 64), usual(name)
    kind.export(ExportJob(described, path, precision, **options(precision, images)))
    exported = engines.read(path)
    assert (exported.engine, exported.precision, exported.task) == (name, precision, "classify")
    assert (exported.classes, exported.preprocess) == (described.classes, described.preprocess)
    assert exported.provenance["data_fingerprint"] == "f"
    assert exported.provenance["architecture"]["name"] == "tiny"
    expected = described.model(normalized(images, described.preprocess))
    engine = engines.load(shvit.load(path), threads=1)
    assert engine.name == name
    for size in (2, 1):
        near(engine(images[:size]), expected[:size], precision)


def test_other_engines_and_precisions_of_an_exported_file_are_refused(name, tiny, tmp_path):
    path = tmp_path / f"m{engines.ENGINES[name].suffix}"
    precision = usual(name)
    engines.ENGINES[name].export(ExportJob(tiny, path, precision, **options(precision, pixels(2, 3, 32, 32))))
    exported = engines.read(path)
    other = next(other for other in engines.ENGINES if other != name)
    with pytest.raises(EngineError, match=f"runs on the engine {name} only, not on '{other}'"):
        engines.load(exported, other)
    with pytest.raises(EngineError, match=f"was exported in {precision}, not in 'bf16'"):
        engines.load(exported, precision="bf16")
    with pytest.raises(shvit.InputError, match="can only be run: give the original model file"):
        shvit.pretrained.load_model(path)


def test_damaged_and_foreign_files_are_refused(name, tmp_path):
    path = tmp_path / f"m{engines.ENGINES[name].suffix}"
    with pytest.raises(EngineError, match="no such file"):
        engines.read(path)
    path.write_bytes(b"not a network")
    with pytest.raises(EngineError, match=f"m{path.suffix}"):
        engines.read(path)


@pytest.mark.parametrize("engine", ["onnx", "openvino", "torch"])
def test_any_height_and_width(engine, tiny, tmp_path):
    kind = engines.ENGINES[engine]
    if reason := kind.unavailable("cpu"):
        pytest.skip(reason)
    path = tmp_path / f"m{kind.suffix}"
    kind.export(ExportJob(replace(tiny, preprocess=Preprocess(65)), path, "fp32", Shapes(dynamic_size=True)))
    run = engines.load(engines.read(path))
    for shape in ((1, 3, 65, 80), (2, 3, 97, 161)):
        images = pixels(*shape)
        expected = tiny.model(normalized(images, tiny.preprocess))
        torch.testing.assert_close(run(images), expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("engine", ["onnx", "openvino"])
def test_images_of_another_size_than_the_files_are_refused_in_one_line(engine, tiny, tmp_path):
    kind = engines.ENGINES[engine]
    if reason := kind.unavailable("cpu"):
        pytest.skip(reason)
    path = tmp_path / f"m{kind.suffix}"
    kind.export(ExportJob(tiny, path, "fp32"))
    with pytest.raises(EngineError, match=r"takes .* of shape"):
        engines.load(engines.read(path))(pixels(1, 3, 64, 64))


@pytest.mark.parametrize("engine", ["onnx", "openvino"])
def test_more_shapes_than_are_compiled_alone(engine, tiny):
    if reason := engines.ENGINES[engine].unavailable("cpu"):
        pytest.skip(reason)
    engine = engines.load(tiny, engine, "fp32", "cpu")
    images = pixels(12, 3, 32, 32)
    whole = engine(images)
    for size in range(1, 12):
        torch.testing.assert_close(engine(images[:size]), whole[:size], rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_signals_are_safe_after_engines_have_come_and_gone(tmp_path):
    """Plugins of OpenVINO that end in the order in which they began leave the thread without a stack for signals."""
    pytest.importorskip("openvino")
    script = """
import os, signal
import torch
from conftest import tiny_architecture
from shvit import engines
from shvit.data.transforms import Preprocess
from shvit.modelfile import ModelFile

model_file = ModelFile(tiny_architecture().build().eval(), ("a", "b"), Preprocess(32))
images = torch.zeros(2, 3, 32, 32, dtype=torch.uint8)
signal.signal(signal.SIGUSR1, lambda *_: print("handled"))
first, second = (engines.load(model_file, "openvino", "fp32") for _ in range(2))
first(images), second(images)
del first
del second
os.kill(os.getpid(), signal.SIGUSR1)
"""
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=Path(__file__).parents[1], capture_output=True, text=True, timeout=300
    )
    assert (done.returncode, done.stdout) == (0, "handled\n"), done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["onnx", "openvino"])
def test_the_first_calls_may_come_from_several_threads_at_once(engine, tmp_path):
    if reason := engines.ENGINES[engine].unavailable("cpu"):
        pytest.skip(reason)
    script = f"""
from threading import Barrier, Thread
import torch
from conftest import tiny_architecture
from shvit import engines
from shvit.data.transforms import Preprocess
from shvit.modelfile import ModelFile

engine = engines.load(ModelFile(tiny_architecture().build().eval(), ("a", "b"), Preprocess(32)), "{engine}", "fp32")
start = Barrier(4)
def call():
    start.wait()
    engine(torch.zeros(2, 3, 32, 32, dtype=torch.uint8))
threads = [Thread(target=call) for _ in range(4)]
[thread.start() for thread in threads]
[thread.join() for thread in threads]
"""
    subprocess.run([sys.executable, "-c", script], cwd=Path(__file__).parents[1], check=True, timeout=120)


def test_the_mean_is_subtracted_so_that_borders_are_padded_with_it(tiny):
    """An image of the mean's own color is zero after normalizing, and must look so up to its borders."""
    even = ModelFile(tiny.model, tiny.classes, Preprocess(32, mean=(0.4, 0.6, 0.2), std=(0.3, 0.1, 0.2)))
    images = (255 * torch.tensor([0.4, 0.6, 0.2])).view(1, 3, 1, 1).expand(1, 3, 32, 32).to(torch.uint8)
    network = portable(even)
    stem = network.network.stem[0](network.divide(images.float() - network.mean))
    torch.testing.assert_close(stem, stem[:, :, 1:2, 1:2].expand_as(stem), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(network(images), tiny.model(torch.zeros(1, 3, 32, 32)), atol=1e-4, rtol=1e-4)


def test_peers_of_timm_take_pixels_too():
    peer = shvit.create_model("timm/test_resnet", num_classes=3).eval()
    model_file = ModelFile(peer, ("a", "b", "c"), Preprocess(64))
    images = pixels(2, 3, 64, 64)
    expected = peer(normalized(images, model_file.preprocess))
    for engine in ("torch", "onnx", "openvino"):
        if not engines.ENGINES[engine].unavailable("cpu"):
            torch.testing.assert_close(
                engines.load(model_file, engine, "fp32", "cpu")(images), expected, atol=1e-3, rtol=1e-3
            )


def test_auto_takes_bf16_where_the_processor_has_it(tiny, monkeypatch):
    kinds = engines.ENGINES
    monkeypatch.setattr(kinds["torch"], "precisions", classmethod(lambda cls, device: ("bf16", "fp32")))
    monkeypatch.setattr(kinds["openvino"], "precisions", classmethod(lambda cls, device: ("fp32", "int8")))
    assert (engines.load(tiny, device="cpu").name, engines.load(tiny, device="cpu").precision) == ("torch", "bf16")
    first = next(name for name in kinds if not kinds[name].unavailable("cpu") and "fp32" in kinds[name].runs[None])
    assert engines.load(tiny, precision="fp32", device="cpu").name == first


def test_int8_without_images_is_refused(tiny):
    pytest.importorskip("openvino")
    with pytest.raises(EngineError, match="int8 needs calibration images: give --calibrate DATA"):
        engines.load(tiny, "openvino", "int8")


def test_a_missing_extra_is_named(tiny, monkeypatch):
    from shvit.engines import base

    monkeypatch.setattr(base, "find_spec", lambda name: None)
    with pytest.raises(EngineError, match=r"openvino and nncf not installed: pip install 'shvit\[openvino\]'"):
        engines.load(tiny, "openvino")
    with pytest.raises(
        EngineError, match=r"onnx and onnxscript and onnxruntime not installed: pip install 'shvit\[onnx\]'"
    ):
        engines.format_of("onnx")
    assert engines.load(tiny, device="cpu").name == "torch"


def test_metadata_of_another_version_is_refused(tiny, tmp_path):
    path = tmp_path / "m.xml"
    data = json.loads(engines.exported.described(tiny, path, "openvino", "fp32").to_json())
    assert json.loads(engines.Exported.from_dict(path, data).to_json()) == data
    with pytest.raises(shvit.InputError, match="metadata has version 7"):
        engines.Exported.from_dict(path, {**data, "version": 7})
    del data["classes"]
    with pytest.raises(shvit.InputError, match="lacks 'classes'"):
        engines.Exported.from_dict(path, data)


def test_what_runs_instead_of_the_cuda_engine_is_told(tiny, monkeypatch):
    class TooOld(engines.CudaEngine):
        @classmethod
        def unavailable(cls, device):
            return "needs compute capability 8.0, this GPU has 7.5"

    class OnGpu(engines.TorchEngine):
        def __init__(self, model, precision, device, threads=None):
            super().__init__(model, precision, "cpu", threads)

    monkeypatch.setattr(engines, "ENGINES", {"cuda": TooOld, "torch": OnGpu})
    monkeypatch.setattr(engines, "pick_device", lambda device: "cuda")
    told = r"engine cuda is not available on cuda \(needs compute capability 8.0, this GPU has 7.5\): using"
    with pytest.warns(Notice, match=told):
        assert engines.load(tiny, precision="fp32").name == "torch"
    with pytest.raises(EngineError, match="cuda: needs compute capability"):
        engines.load(tiny, "cuda", device="cuda")
    engines.load(tiny, "torch", "fp32", "cuda")  # asked for by name: nothing to tell
