"""End-to-end exports: any image in, results out, as `shvit predict` computes them."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from conftest import randomize_norms, tiny_architecture
from shvit import Predictor, save
from shvit.data.letterbox import read_whole
from shvit.data.transforms import EvalReader, Preprocess
from shvit.engines import EngineError, read
from shvit.engines.end_to_end import preprocessing
from shvit.errors import InputError
from shvit.export.export import export_model
from shvit.modelfile import ModelFile

pytest.importorskip("onnx")
ort = pytest.importorskip("onnxruntime")

FORMATS = {"onnx": "m.onnx", "openvino": "m.xml"}
SIZES = [(48, 64), (64, 48), (40, 40), (1, 90), (90, 1), (1, 1), (7, 500), (500, 7), (41, 40), (333, 77)]
"""Height and width of images, among them very thin ones, which are cut before they are resized."""


def photo(height: int, width: int) -> np.ndarray:
    """Smooth colors with an edge, so that a shift or another filter changes the pixels."""
    y, x = np.mgrid[0:height, 0:width]
    waves = [
        128 + 100 * np.sin(x / 7 + y / 11),
        128 + 100 * np.cos(x / 5),
        np.where(x + y > (height + width) / 2, 200, 40),
    ]
    return np.stack(waves, 2).astype(np.uint8)


def by_onnx(graph):
    options = ort.SessionOptions()
    options.log_severity_level = 3
    session = ort.InferenceSession(graph.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return lambda image: session.run(["images"], {"image": image})[0][0]


def by_openvino(graph):
    pytest.importorskip("openvino")
    from shvit.engines.openvino import _exact, _from_onnx
    from shvit.engines.openvino_runtime import core

    request = core().compile_model(_exact(_from_onnx(graph)), "CPU").create_infer_request()
    return lambda image: request.infer([image])[0][0]


CASES = [
    *[Preprocess(32, fit="crop", interpolation=name) for name in ("bicubic", "bilinear")],
    *[Preprocess(32, crop=crop) for crop in (1.0, 0.95)],
    *[Preprocess(33, fit=fit, interpolation="bicubic") for fit in ("letterbox", "stretch")],
    Preprocess(64, fit="whole"),
]


@pytest.mark.parametrize("preprocess", CASES, ids=lambda one: f"{one.fit}-{one.interpolation}-{one.crop}")
@pytest.mark.parametrize("products", [False, True], ids=["onnx", "openvino"])
def test_pixels_are_those_of_pillow(preprocess, products):
    """ONNX Runtime's own antialiasing differs near edges. OpenVINO on CPUs with bf16 rounds the weights."""
    run = (by_openvino if products else by_onnx)(preprocessing(preprocess, products))
    for size in SIZES:
        image = photo(*size)
        expected = read_whole(image, preprocess)[0] if preprocess.fit == "whole" else EvalReader(preprocess)(image)
        difference = np.abs(run(image).astype(int) - expected.numpy())
        cut = preprocess.fit == "crop" and max(size) > 64 * min(size)
        assert difference.mean() < (1.5 if cut else 1), size
        assert np.percentile(difference, 99) <= (20 if cut else 10), size


def test_an_interpolation_without_antialiasing_is_refused(tiny, tmp_path):
    model = replace(tiny, preprocess=Preprocess(32, interpolation="lanczos"))
    with pytest.raises(EngineError, match="bicubic or bilinear, but the model uses lanczos"):
        export_model(model, "onnx", tmp_path / "m.onnx", end_to_end=True)


@pytest.fixture(scope="module")
def model() -> ModelFile:
    torch.manual_seed(0)
    return ModelFile(randomize_norms(tiny_architecture(4).build()).eval(), tuple("abcd"), Preprocess(48))


@pytest.fixture(scope="module", params=FORMATS)
def exported(request, model, tmp_path_factory):
    """The model in a format, end to end, with its report."""
    if request.param == "openvino":
        pytest.importorskip("openvino")
    out = tmp_path_factory.mktemp(request.param) / FORMATS[request.param]
    return out, export_model(model, request.param, out, end_to_end=True)


def test_scores_are_those_of_predict(model, exported):
    images = [photo(*size) for size in SIZES]
    found, expected = Predictor(exported[0])(images), Predictor(model, "torch", "fp32", "cpu")(images)
    for one, other in zip(found, expected, strict=True):
        assert one.labels == other.labels
        np.testing.assert_allclose(one.scores, other.scores, atol=0.01)


def test_files_give_what_arrays_give_and_bad_images_their_reason(exported, tmp_path):
    gray = Image.fromarray(photo(50, 70)).convert("L")
    clear = Image.fromarray(np.dstack([photo(50, 70), np.full((50, 70), 80, np.uint8)]))
    on_white = Image.alpha_composite(Image.new("RGBA", clear.size, "white"), clear).convert("RGB")
    for name, image in (("gray.png", gray), ("clear.png", clear)):
        image.save(tmp_path / name)
    (tmp_path / "bad.png").write_bytes(b"no image")
    predictor = Predictor(exported[0])
    files = predictor([tmp_path / name for name in ("gray.png", "clear.png", "bad.png")])
    arrays = predictor([np.asarray(gray.convert("RGB")), np.asarray(on_white)])
    assert [one.scores for one in files[:2]] == [one.scores for one in arrays]
    assert files[2].error
    assert not files[2].labels


def test_the_metadata_has_a_sample_with_the_scores_of_the_file(exported):
    out, report = exported
    facts = read(out)
    assert facts.end_to_end
    assert report["sample"] == facts.sample.to_dict()
    pixels = np.asarray(Image.open(out.with_name(facts.sample.image)))
    scores = Predictor(out).engine.results(pixels)["scores"][list(facts.sample.classes)]
    np.testing.assert_allclose(scores, facts.sample.scores, atol=1e-4)
    assert sorted(facts.sample.scores, reverse=True) == list(facts.sample.scores)


def test_an_array_that_is_no_rgb_image_is_one_clear_line(exported):
    engine = Predictor(exported[0]).engine
    for wrong in (np.zeros((5, 5), np.uint8), np.zeros((5, 5, 4), np.uint8), np.zeros((5, 5, 3), np.float32)):
        with pytest.raises(InputError, match=r"takes uint8 RGB \(height, width, 3\), got"):
            engine.results(wrong)


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (["export", "m.safetensors", "--format", "torch", "--end-to-end"], "not available with --format torch"),
        (
            ["export", "m.safetensors", "--format", "onnx", "--end-to-end", "--batch-size", "2"],
            "leave out --batch-size",
        ),
        (["eval", "m.onnx", "images"], "is an end-to-end file, which shvit eval cannot use"),
        (["bench", "m.onnx"], "is an end-to-end file, which shvit bench cannot use"),
        (["predict", "m.onnx", "images", "--batch-size", "4"], "--batch-size has no effect"),
    ],
)
def test_requests_that_make_no_sense_are_refused(command, message, tiny, folder, run, monkeypatch):
    monkeypatch.chdir(folder.parent)
    save(tiny, "m.safetensors")
    if "m.onnx" in command:
        assert run("export", "m.safetensors", "--format", "onnx", "--end-to-end")[0] == 0
    code, _, error = run(*command)
    assert code == 2
    assert message in error
    assert len(error.strip().splitlines()) == 1


def test_a_file_of_another_model_is_not_replaced(tiny, model, tmp_path):
    out = tmp_path / "m.onnx"
    export_model(tiny, "onnx", out)
    before = out.read_bytes()
    with pytest.raises(InputError, match="is not an export of this model: give another --out, or --overwrite"):
        export_model(model, "onnx", out)
    assert out.read_bytes() == before
    export_model(tiny, "onnx", out, end_to_end=True)  # another export of the same weights
    export_model(model, "onnx", out, overwrite=True)
    assert read(out).classes == model.classes
    out.write_bytes(b"anything")
    with pytest.raises(InputError, match="is not an export of this model"):
        export_model(model, "onnx", out)
