"""The `.tflite` format: run by LiteRT it computes what the network does, and what is wrong with a file is one line."""

import json
import subprocess
import sys
from threading import Barrier, Thread

import pytest
import torch

import shvit
from conftest import plain_outputs, random_images, reseal, tiny_architecture, trained_looking
from shvit import engines
from shvit.data.transforms import Preprocess
from shvit.engines import base
from shvit.engines.base import ExportJob, Shapes
from shvit.engines.exported import EngineError
from shvit.engines.litert import _QUANTIZED, LiteRTEngine
from shvit.model.architecture import Architecture
from shvit.modelfile import ModelFile

interpreters = pytest.importorskip("ai_edge_litert.interpreter", exc_type=ImportError)
for module in LiteRTEngine.modules:
    pytest.importorskip(module, exc_type=ImportError)


def exported(model_file, path, precision="fp32", calibration=(), **shapes):
    LiteRTEngine.export(ExportJob(model_file, path, precision, Shapes(**shapes), calibration))
    return engines.read(path)


def outputs_of(facts, images):
    return engines.load(facts, device="cpu", threads=1)(images)


@pytest.fixture(scope="module")
def model_file():
    torch.manual_seed(0)
    model = trained_looking(tiny_architecture(3).build())
    return ModelFile(
        model,
        ("Bär 🐻", "犬", "c"),
        Preprocess(48, 0.9, "bilinear", (0.1, 0.2, 0.3), (0.5, 0.6, 0.7)),
        metrics={"top1": 0.5},
        provenance={"recipe": {"epochs": 3}},
    )


@pytest.fixture(scope="module")
def facts(model_file, tmp_path_factory):
    return exported(model_file, tmp_path_factory.mktemp("whole") / "m.tflite")


@pytest.fixture(scope="module")
def pairs(model_file, tmp_path_factory):
    """An int8 file that takes two images per call, and the images that it was calibrated on."""
    calibration = [random_images(4, 48), random_images(3, 48)]
    path = tmp_path_factory.mktemp("int8") / "m.tflite"
    return exported(model_file, path, "int8", calibration, batch=2), torch.cat(calibration)


def weights(facts):
    """The types of the weights that the file stores for `_QUANTIZED` operations, and whether channels have scales."""
    interpreter = interpreters.Interpreter(model_path=str(facts.path))
    tensors = {tensor["index"]: tensor for tensor in interpreter.get_tensor_details()}
    made_by = {step["outputs"][0]: step for step in interpreter._get_ops_details()}
    kinds = set()
    for step in interpreter._get_ops_details():
        index = step["inputs"][1] if step["op_name"] in _QUANTIZED else None
        if index in made_by and made_by[index]["op_name"] == "DEQUANTIZE":
            index = made_by[index]["inputs"][0]
        if index is not None and index not in made_by:
            scales = tensors[index]["quantization_parameters"]["scales"]
            kinds.add((tensors[index]["dtype"].__name__, len(scales) > 1))
    return kinds


def test_facts_come_back(model_file, facts):
    assert (facts.engine, facts.precision, facts.task) == ("litert", "fp32", "classify")
    assert facts.classes == model_file.classes
    assert facts.preprocess == model_file.preprocess
    assert facts.metrics == {"top1": 0.5}
    assert facts.provenance["recipe"] == {"epochs": 3}
    assert Architecture.from_dict(facts.provenance["architecture"]) == model_file.architecture


@pytest.mark.parametrize("count", [1, 5])
def test_outputs_are_those_of_pytorch(model_file, facts, count):
    images = random_images(count, 48)
    engine = engines.load(facts, device="cpu")
    assert (engine.name, engine.precision) == ("litert", "fp32")
    torch.testing.assert_close(engine(images), plain_outputs(model_file, images), rtol=1e-4, atol=1e-5)


def test_images_in_channels_last(model_file, facts):
    images = random_images(2, 48)
    outputs = outputs_of(facts, images.contiguous(memory_format=torch.channels_last))
    torch.testing.assert_close(outputs, plain_outputs(model_file, images), rtol=1e-4, atol=1e-5)


def test_other_programs_see_pixels_in_and_logits_out(model_file, facts):
    """As an app runs the file: by the names of its signature."""
    interpreter = interpreters.Interpreter(model_path=str(facts.path))
    assert interpreter.get_signature_list() == {"serving_default": {"inputs": ["images"], "outputs": ["logits"]}}
    images = random_images(1, 48)
    outputs = interpreter.get_signature_runner()(images=images.numpy())["logits"]
    torch.testing.assert_close(torch.from_numpy(outputs), plain_outputs(model_file, images), rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_outputs_of_s1(tmp_path):
    model = trained_looking(shvit.create_model("shvit_s1", num_classes=5))
    model_file = ModelFile(model, tuple("abcde"), Preprocess(64))
    images = random_images(4, 64)
    expected = plain_outputs(model_file, images)
    outputs = outputs_of(exported(model_file, tmp_path / "m.tflite"), images)
    assert (outputs - expected).abs().max() < 1e-5 * expected.abs().max()


@pytest.mark.slow
def test_fp16_halves_the_weights(model_file, facts, tmp_path):
    half = exported(model_file, tmp_path / "m.tflite", "fp16")
    assert (weights(facts), weights(half)) == ({("float32", False)}, {("float16", False)})
    assert half.precision == "fp16"
    images = random_images(3, 48)
    expected = plain_outputs(model_file, images)
    error = (outputs_of(half, images) - expected).abs().max() / expected.abs().max()
    assert 1e-6 < error < 1e-2  # rounded, and computed in fp32


@pytest.mark.slow
def test_int8(model_file, pairs):
    facts, images = pairs  # seven images, of which the file takes two at once
    assert facts.precision == "int8"
    assert weights(facts) == {("int8", True)}
    expected = plain_outputs(model_file, images)
    error = (outputs_of(facts, images) - expected).abs().max() / expected.abs().max()
    assert 1e-4 < error < 0.2  # quantized, and well: a random network's logits hardly differ


@pytest.mark.slow
def test_int8_takes_its_ranges_from_the_calibration_images(model_file, pairs, tmp_path):
    facts, images = pairs
    black = exported(model_file, tmp_path / "m.tflite", "int8", [torch.zeros_like(images)], batch=2)
    expected = plain_outputs(model_file, images)
    right, wrong = ((outputs_of(file, images) - expected).abs().max() for file in (facts, black))
    assert wrong > 2 * right


def test_threads(model_file, facts):
    images = random_images(1, 48)
    expected = plain_outputs(model_file, images)
    engines_ = [engines.load(facts, device="cpu", threads=threads) for threads in (1, 2, None)]
    assert [engine.threads for engine in engines_] == [1, 2, None]
    for engine in engines_:
        torch.testing.assert_close(engine(images), expected, rtol=1e-4, atol=1e-5)


def test_calls_at_the_same_time(model_file, facts):
    """Each has an interpreter of its own, so no call sees the images of another."""
    engine, start, right = engines.load(facts, device="cpu", threads=1), Barrier(4), []
    images = random_images(4, 48)
    expected = plain_outputs(model_file, images)

    def call(number):
        start.wait()
        for _ in range(50):
            outputs = engine(images[number : number + 1])
            right.append(torch.allclose(outputs, expected[number : number + 1], rtol=1e-3, atol=1e-4))

    threads = [Thread(target=call, args=(number,)) for number in range(4)]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    assert right == [True] * 200
    assert len(engine._idle) <= 4


@pytest.mark.slow
def test_nothing_is_printed(model_file, tmp_path):
    """By this process, its C++ and JAX: neither while a file is written and run nor when the process forks later."""
    shvit.save(model_file, tmp_path / "m.safetensors")
    code = """
import os, sys, torch, shvit
from pathlib import Path
from shvit import engines
from shvit.engines.base import ExportJob
images = torch.zeros(2, 3, 48, 48, dtype=torch.uint8)
for precision in ("int8", "fp16"):
    job = ExportJob(shvit.load(sys.argv[1]), Path(sys.argv[2]), precision, calibration=[images])
    engines.FORMATS["litert"].export(job)
    engines.load(engines.read(sys.argv[2]), device="cpu", threads=1)(images)
if os.fork() == 0:
    os._exit(0)
os.wait()
"""
    command = [sys.executable, "-c", code, tmp_path / "m.safetensors", tmp_path / "m.tflite"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout + done.stderr == ""


@pytest.mark.slow
def test_commands(run, tiny, folder, tmp_path, quick_machine):
    shvit.save(tiny, tmp_path / "m.safetensors")
    code, out, errors = run(
        *("export", tmp_path / "m.safetensors", "--format", "litert", "--precision", "int8", "--calibrate", folder),
        *("--max-drop", 100, "--threads", 1, "--json"),
    )
    assert code == 0, errors
    report, file = json.loads(out), tmp_path / "m_int8.tflite"
    assert report["parity"]["images"] > 0
    assert report["floor"]["images"] > 0
    code, out, errors = run("predict", file, folder, "--json")
    assert code == 0, errors
    code, out, errors = run("bench", file, "--batch-size", 1, "--threads", 1, "--rounds", 1, "--json")
    assert code == 0, errors
    [row] = json.loads(out)["rows"]
    assert (row["engine"], row["precision"]) == ("litert", "int8")


def test_images_of_another_size(facts):
    with pytest.raises(EngineError, match=r"m\.tflite cannot run on these images .*mismatch"):
        outputs_of(facts, random_images(1, 64))


def unusable(path, data):
    path.write_bytes(data)
    with pytest.raises(shvit.InputError) as caught:
        engines.load(engines.read(path), device="cpu")
    message = str(caught.value)
    assert str(path) in message
    assert "\n" not in message
    return message


@pytest.mark.parametrize("keep", [0, 5, 0.1, 0.5, 0.9, -1])
def test_truncated(facts, tmp_path, keep):
    whole = facts.path.read_bytes()
    kept = whole[: int(len(whole) * keep)] if isinstance(keep, float) else whole[:keep]
    assert "damaged" in unusable(tmp_path / "m.tflite", kept)


def test_damaged(facts, tmp_path):
    whole = facts.path.read_bytes()
    for place in range(8, len(whole), len(whole) // 50):
        flipped = bytes([whole[place] ^ 255])
        assert "damaged" in unusable(tmp_path / "m.tflite", whole[:place] + flipped + whole[place + 1 :])


def foreign():
    """The bytes of a `.tflite` file that another program wrote."""
    import litert_torch

    return litert_torch.convert(torch.nn.ReLU(), (torch.zeros(2),)).model_content()


def test_foreign(tmp_path):
    assert "was not written by shvit export" in unusable(tmp_path / "m.tflite", foreign())


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        (b'"image_size": 48', b'"image_size": 64', "images of 64 pixels"),
        (b', "c"]', b"     ]", "does not match 2 classes"),
        (b'"precision": "fp32"', b'"precision": "bf16"', "an unknown precision"),
        (b'"engine": "litert"', b'"engine": "tensor"', "its metadata names engine 'tensor'"),
        (b'"version": 2', b'"version": 9', "metadata has version 9"),
        (b"shvit-sha256:", b"shvit-sha255:", "its digest is missing"),
    ],
)
def test_impossible_metadata(facts, tmp_path, old, new, reason):
    path = tmp_path / "m.tflite"
    content = facts.path.read_bytes()
    assert content.count(old) == 1
    path.write_bytes(content.replace(old, new))
    if b"sha255" not in new:
        reseal(path)
    assert reason in unusable(path, path.read_bytes())


def test_metadata_on_a_network_that_takes_no_images(facts, tmp_path):
    from shvit.engines.litert import _with_metadata

    path = tmp_path / "m.tflite"
    path.write_bytes(_with_metadata(foreign(), facts))
    reseal(path)
    assert "does not take one batch of images" in unusable(path, path.read_bytes())


def test_what_is_refused(model_file, tmp_path, monkeypatch):
    path = tmp_path / "m.tflite"
    with pytest.raises(EngineError, match="int8 needs calibration images"):
        exported(model_file, path, "int8")
    with pytest.raises(EngineError, match=r"\.tflite files have no precision 'bf16': allowed are fp32, fp16, int8"):
        exported(model_file, path, "bf16")
    with pytest.raises(EngineError, match="images of one size only"):
        exported(model_file, path, dynamic_size=True)
    with pytest.raises(EngineError, match="precision 'bf16' is not available on cpu: litert has fp32"):
        engines.load(model_file, "litert", "bf16", device="cpu")
    assert LiteRTEngine.unavailable("cuda") == "runs only on the CPU"
    monkeypatch.setattr(base, "find_spec", lambda name: None)
    with pytest.raises(EngineError, match=r"ai_edge_quantizer not installed: pip install 'shvit\[litert\]'"):
        exported(model_file, path)
    with pytest.raises(EngineError, match=r"pip install 'shvit\[litert\]'"):
        engines.load(model_file, "litert", device="cpu")
    assert not path.exists()
