"""How images fit the square, from training to every command and export; and the old names."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

import shvit
from conftest import picture, tiny_architecture, trained_looking
from shvit import engines
from shvit.calibrate import calibrate_model
from shvit.data.sources import open_source
from shvit.data.transforms import MARGIN, EvalReader, Preprocess
from shvit.engines.base import ExportJob
from shvit.engines.exported import Exported, described
from shvit.engines.torch import TorchEngine
from shvit.evaluate import evaluate_model
from shvit.modelfile import ModelFile
from shvit.requests.train import TrainRequest
from shvit.tasks.classify import Classify
from shvit.train import loop
from shvit.train.distill import LogitsCache
from shvit.train.recipe import Recipe
from shvit.train.recipes import finetune, make_recipe
from shvit.train.run import train

SIZES = (40, 90), (91, 30), (33, 33), (20, 81)


@pytest.fixture
def long(tmp_path):
    """Images of many shapes in `long`, and the same images, letterboxed to 32 pixels by Pillow, in `boxed`."""
    for split, first in (("train", 0), ("val", 50)):
        for label, shade in (("dark", 60), ("light", 190)):
            for folder in ("long", "boxed"):
                (tmp_path / folder / split / label).mkdir(parents=True)
            for number in range(8):
                image = picture(shade, first + number, SIZES[number % 4])
                image.save(tmp_path / "long" / split / label / f"{number}.png")
                width, height = (max(1, round(32 * side / max(image.size))) for side in image.size)
                square = Image.new("RGB", (32, 32), MARGIN)
                resized = image.resize((width, height), Image.Resampling.BICUBIC)
                square.paste(resized, ((32 - width) // 2, (32 - height) // 2))
                square.save(tmp_path / "boxed" / split / label / f"{number}.png")
    return tmp_path


@pytest.fixture
def model():
    """Reads letterboxed images. Its logits differ between images."""
    network = trained_looking(tiny_architecture().build())
    network.head.linear.weight.data *= 20
    return ModelFile(network, ("dark", "light"), Preprocess(32, fit="letterbox"))


def stretched(model_file):
    """The same model for images that are squares of 32 pixels already: stretching does not change them."""
    return replace(model_file, preprocess=replace(model_file.preprocess, fit="stretch"))


def files_in(folder):
    return [str(path) for path in sorted((folder / "val").rglob("*.png"))]


def test_eval_and_calibrate_bn_letterbox_as_pillow_does(long, model):
    sources = [open_source(str(long / name)) for name in ("long", "boxed")]
    both = list(zip((model, stretched(model)), sources, strict=True))
    one, other = (evaluate_model(each, TorchEngine(each, "fp32", "cpu"), data).evaluation.loss for each, data in both)
    assert one == pytest.approx(other, rel=1e-6)
    one, other = (calibrate_model(each, data, 32, batch_size=8, device="cpu").model_file for each, data in both)
    assert one.preprocess.fit == "letterbox"
    for name, value in one.model.state_dict().items():
        torch.testing.assert_close(value, other.model.state_dict()[name])


def test_exports_carry_and_follow_the_fit(long, model):
    pytest.importorskip("onnxruntime")
    engines.FORMATS["onnx"].export(ExportJob(model, long / "m.onnx", "fp32"))
    exported = shvit.load(long / "m.onnx")
    assert exported.preprocess == model.preprocess
    by_onnx = list(shvit.Predictor(exported)(files_in(long / "long")))
    by_torch = list(shvit.Predictor(stretched(model), "torch", "fp32", "cpu")(files_in(long / "boxed")))
    cropped = replace(model, preprocess=Preprocess(32))
    by_crop = list(shvit.Predictor(cropped, "torch", "fp32", "cpu")(files_in(long / "long")))

    def scores(predictions):
        return np.array([dict(zip(each.labels, each.scores, strict=True))["light"] for each in predictions])

    assert abs(scores(by_onnx) - scores(by_torch)).max() < 0.02  # the fast reader rounds differently
    assert abs(scores(by_crop) - scores(by_torch)).max() > 0.1


def test_files_of_earlier_versions_are_read(model, tmp_path, monkeypatch):
    """In their metadata, stretch is called squash."""
    expected, to_dict, path = stretched(model).preprocess, Preprocess.to_dict, tmp_path / "m.safetensors"
    with monkeypatch.context() as patched:
        patched.setattr(Preprocess, "to_dict", lambda self: to_dict(self) | {"fit": "squash"})
        shvit.save(model, path)
        metadata = described(model, path, "onnx", "fp32").to_json()
    assert b"squash" in path.read_bytes()
    assert shvit.load(path).preprocess == Exported.from_json(path, metadata).preprocess == expected
    shvit.save(shvit.load(path), path)
    assert b"squash" not in path.read_bytes()
    assert shvit.load(path).preprocess == expected


def test_a_model_trained_with_crop_can_be_evaluated_with_letterbox(run, long, model):
    shvit.save(replace(model, preprocess=Preprocess(32)), long / "m.safetensors")
    code, out, err = run("eval", long / "m.safetensors", long / "long", "--fit", "letterbox", "--workers", 0, "--json")
    assert (code, json.loads(out)["fit"]) == (0, "letterbox")
    assert "the model was made for fit crop: with fit letterbox, it sees images unlike those" in " ".join(err.split())
    shvit.save(model, long / "boxed.safetensors")
    code, out, err = run("eval", long / "boxed.safetensors", long / "long", "--fit", "letterbox", "--workers", 0)
    assert (code, err) == (0, "")
    assert "fit: letterbox" in run("info", long / "boxed.safetensors")[1]


def test_old_flags_are_read_with_a_notice(run, long, model, monkeypatch):
    monkeypatch.setattr(loop.Trainer, "train_step", lambda *_: None)
    shvit.save(model, long / "m.safetensors")
    small = ["--epochs", 1, "--batch-size", 8, "--workers", 0, "--device", "cpu", "--eval-fit", "squash"]
    code, _, err = run("train", long / "long", "--model", long / "m.safetensors", "--out", long / "run", *small)
    assert code == 0
    assert "--eval-fit has been renamed to --fit" in err
    assert err.count("fit squash has been renamed to stretch") == 1
    assert shvit.load(long / "run" / "best.safetensors").preprocess.fit == "stretch"
    code, _, err = run("train", long / "long", "--out", long / "x", *small, "--fit", "crop")
    assert (code, "--eval-fit is the old name of --fit: give only --fit" in err) == (2, True)
    assert "squash" not in run("train", "--help")[1] + run("eval", "--help")[1]


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["train", "{data}", "--out", "{tmp}/x", "--fit", "squish"], 'Choose from: "crop", "letterbox", "stretch"'),
        (["train", "{data}", "--out", "{tmp}/x", "--task", "detect", "--fit", "letterbox"], "task detect have no fit"),
        (["eval", "{tmp}/boxes.safetensors", "{data}", "--fit", "letterbox"], "for task detect, fit must be whole or"),
    ],
)
def test_wrong_fits_are_refused(run, long, arguments, reason):
    detector = tiny_architecture(detector="retinanet").build().eval()
    shvit.save(ModelFile(detector, ("a", "b"), Preprocess(64, fit="whole"), "detect"), long / "boxes.safetensors")
    code, out, err = run(*(argument.format(data=long / "long", tmp=long) for argument in arguments))
    assert (code, out) == (2, "")
    assert reason in err
    assert not (long / "x").exists()


def test_training_follows_the_fit_unless_the_recipe_says_otherwise():
    task = Classify(("a", "b"))
    for fit in ("crop", "letterbox", "stretch"):
        assert task.train_reader(Preprocess(32, fit=fit), finetune()).fit == fit
        assert task.train_reader(Preprocess(32, fit=fit), replace(finetune(), train_fit="crop")).fit == "crop"


def test_published_recipes_train_with_crops_and_another_fit_replaces_both():
    def fits(**settings):
        recipe = make_recipe("highres", "shvit_s4", settings)
        return recipe.fit, recipe.train_fit

    assert fits() == fits(fit="stretch") == ("stretch", "crop")
    assert fits(fit="letterbox") == ("letterbox", None)
    assert fits(fit="letterbox", train_fit="crop") == ("letterbox", "crop")


def test_a_stopped_run_of_an_earlier_version_is_resumed_to_the_bit(long, model, monkeypatch):
    """It trained on crops and evaluated with squash."""
    settings = {"epochs": 2, "batch_size": 8, "compile": "off", "precision": "fp32", "fit": "stretch"}
    shvit.save(model, long / "m.safetensors")
    step, done = loop.Trainer.train_step, []

    def stopping(self, batch):
        step(self, batch)
        done.append(batch)
        self.stopped_by = 2 if len(done) == 3 else None

    def trained(name, resume=False):
        request = TrainRequest(str(long / "long"), out=long / name, device="cpu", workers=0, resume=resume)
        more = {"model": str(long / "m.safetensors"), "settings": settings | {"train_fit": "crop"}}
        return train(request if resume else replace(request, **more))

    trained("whole")
    with monkeypatch.context() as patched:
        patched.setattr(loop.Trainer, "train_step", stopping)
        assert trained("parts").interrupted
    record = json.loads((long / "parts" / "recipe.json").read_text())
    del record["recipe"]["fit"], record["recipe"]["train_fit"]
    record["recipe"]["eval_fit"] = record["preprocess"]["fit"] = "squash"
    (long / "parts" / "recipe.json").write_text(json.dumps(record))
    trained("parts", resume=True)
    one, other = (shvit.load(long / name / "last.safetensors") for name in ("whole", "parts"))
    assert other.preprocess.fit == "stretch"
    assert all(torch.equal(value, other.model.state_dict()[key]) for key, value in one.model.state_dict().items())


def test_cached_logits_are_of_one_training_fit(tmp_path):
    """And the cache of training with crops is that of earlier versions, whose recipes had no `train_fit`."""
    calm = replace(finetune(), random_erasing=0.0)
    about = {"teacher": "x", "classes": ["a", "b"]}
    for recipe, fit in ((calm, "crop"), (replace(calm, train_fit="crop"), "letterbox"), (calm, "letterbox")):
        LogitsCache(tmp_path, recipe, Preprocess(32, fit=fit), about, 4)
    written = [json.loads(path.read_text()) for path in tmp_path.glob("*/about.json")]
    assert sorted(each["fit"] for each in written) == ["crop", "letterbox"]
    assert not any("train_fit" in each for each in written)


def test_recipes_read_the_old_name_and_value():
    old = Recipe().to_dict() | {"eval_fit": "squash"}
    del old["fit"], old["train_fit"]
    recipe = Recipe.from_dict(old)
    assert (recipe.fit, recipe.train_fit) == ("stretch", "crop")
    assert Recipe.from_dict(old | {"eval_fit": None}).fit is None


def test_a_letterboxed_run_learns_what_crops_cannot_see(tmp_path):
    """Long gray images with black or white ends, of which the center crop shows nothing."""
    for split in ("train", "val"):
        for label, shade in (("dark", 0), ("light", 255)):
            (tmp_path / split / label).mkdir(parents=True)
            for number in range(16):
                pixels = np.asarray(picture(128, number, (32, 128))).copy()
                pixels[:, :40] = pixels[:, -40:] = shade
                Image.fromarray(pixels).save(tmp_path / split / label / f"{number}.png")
    shvit.save(ModelFile(tiny_architecture(3).build(), tuple("abc"), Preprocess(32)), tmp_path / "start.safetensors")
    read = EvalReader(Preprocess(32))
    assert torch.equal(*(read(tmp_path / "val" / label / "0.png") for label in ("dark", "light")))
    settings = {"epochs": 10, "eval_every": 10, "batch_size": 8, "lr": 1e-2, "lr_batch": 8, "compile": "off"}
    start = str(tmp_path / "start.safetensors")
    request = TrainRequest(str(tmp_path), out=tmp_path / "run", model=start, recipe="scratch")
    settings |= {"precision": "fp32", "fit": "letterbox", "epochs": 20, "eval_every": 20}
    assert train(replace(request, device="cpu", workers=0, settings=settings)).best["top1"] == 1.0
