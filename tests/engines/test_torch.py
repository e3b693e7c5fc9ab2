"""The `.pt2` format: what is loaded computes what the network does, and what is wrong with a file is one line."""

import io
import zipfile
from dataclasses import replace

import pytest
import torch

import shvit
from conftest import plain_outputs, random_images, tiny_architecture, trained_looking
from shvit import engines
from shvit.data.transforms import Preprocess
from shvit.engines.base import ExportJob, Shapes
from shvit.engines.exported import EngineError, ExportError
from shvit.engines.torch import DYNAMIC_SIDES, TorchEngine
from shvit.model.architecture import Architecture
from shvit.modelfile import ModelFile


def exported(model_file, folder, precision="fp32", **shapes):
    TorchEngine.export(ExportJob(model_file, folder / "m.pt2", precision, Shapes(**shapes)))
    return engines.read(folder / "m.pt2")


@pytest.fixture(scope="module")
def model_file():
    torch.manual_seed(0)
    return ModelFile(trained_looking(tiny_architecture().build()), ("a", "b"), Preprocess(32))


@pytest.fixture(scope="module")
def whole(model_file, tmp_path_factory):
    """The bytes of a file that is as it should be."""
    return exported(model_file, tmp_path_factory.mktemp("whole")).path.read_bytes()


@pytest.mark.parametrize(("precision", "bound"), [("fp32", 1e-5), ("bf16", 0.2)])
@pytest.mark.parametrize("name", ["tiny", pytest.param("shvit_s1", marks=pytest.mark.slow)])
def test_outputs_are_those_of_pytorch(tmp_path, name, precision, bound):
    architecture = tiny_architecture(5) if name == "tiny" else Architecture(name, 5)
    model_file = ModelFile(trained_looking(architecture.build()), tuple("abcde"), Preprocess(64))
    engine = engines.load(exported(model_file, tmp_path, precision), device="cpu")
    assert (engine.name, engine.precision) == ("torch", precision)
    for count in (3, 1):
        images = random_images(count, 64)
        expected = plain_outputs(model_file, images)
        assert (engine(images) - expected).abs().max() < bound * expected.abs().max()


def test_any_size(model_file, tmp_path):
    larger = replace(model_file, preprocess=Preprocess(DYNAMIC_SIDES[0]))
    engine = engines.load(exported(larger, tmp_path, dynamic_size=True), device="cpu")
    for count, height, width in ((1, 65, 65), (2, 100, 230), (5, 321, 96)):
        images = random_images(count, height, width)
        torch.testing.assert_close(engine(images), plain_outputs(model_file, images), rtol=1e-4, atol=1e-5)


def test_a_file_for_any_size_takes_the_models_own_or_is_refused(model_file, tmp_path):
    with pytest.raises(engines.EngineError, match=r"at least 65 pixels, but the model has 32: give --image-size 65"):
        exported(model_file, tmp_path, dynamic_size=True)


def test_a_fixed_batch_serves_any(model_file, tmp_path):
    engine = engines.load(exported(model_file, tmp_path, batch=3), device="cpu")
    for count in (1, 3, 7):
        images = random_images(count, 32)
        torch.testing.assert_close(engine(images), plain_outputs(model_file, images), rtol=1e-4, atol=1e-5)


def test_facts_come_back(tiny, tmp_path):
    model_file = replace(
        tiny,
        classes=("Bär 🐻", "犬"),
        preprocess=Preprocess(48, 0.9, "bilinear", (0.1, 0.2, 0.3), (0.5, 0.6, 0.7)),
        metrics={"top1": 0.5},
        provenance={"recipe": {"epochs": 3}},
    )
    facts = exported(model_file, tmp_path)
    assert (facts.engine, facts.precision, facts.task) == ("torch", "fp32", "classify")
    assert facts.classes == model_file.classes
    assert facts.preprocess == model_file.preprocess
    assert facts.metrics == {"top1": 0.5}
    assert facts.provenance["recipe"] == {"epochs": 3}
    assert Architecture.from_dict(facts.provenance["architecture"]) == tiny.architecture


def test_the_file_holds_no_pickle(whole):
    with zipfile.ZipFile(io.BytesIO(whole)) as archive:
        starts = {archive.read(name)[:2] for name in archive.namelist()}
    assert not starts & {b"PK", b"\x80\x02"}  # what torch.save writes, and what pickle does


def unusable(path, data):
    path.write_bytes(data)
    with pytest.raises(shvit.InputError) as caught:
        engines.read(path)
    message = str(caught.value)
    assert str(path) in message
    assert "\n" not in message
    return message


@pytest.mark.parametrize("keep", [0, 5, 0.5, -1])
def test_truncated(whole, tmp_path, keep):
    kept = whole[: int(len(whole) * keep)] if isinstance(keep, float) else whole[:keep]
    message = unusable(tmp_path / "m.pt2", kept)
    assert "truncated or not a .pt2 file" in message or "is damaged" in message


def test_changed(whole, tmp_path):
    changed = bytearray(whole)
    changed[len(whole) // 3] ^= 1
    assert "is damaged" in unusable(tmp_path / "m.pt2", changed)


def test_foreign(tmp_path):
    program = torch.export.export(torch.nn.ReLU(), (torch.zeros(2),))
    program.example_inputs = None
    for facts, reason in (
        ({}, "was not written by shvit export"),
        ({"shvit": "{broken"}, "metadata is not JSON"),
        ({"shvit": "[]"}, "was not written by shvit export"),
        ({"shvit": '{"version": 3}'}, "version 3, but this shvit reads up to 2"),
    ):
        file = io.BytesIO()
        torch.export.save(program, file, extra_files=facts)
        assert reason in unusable(tmp_path / "m.pt2", file.getvalue())


def test_other_precisions_are_refused(tiny, tmp_path):
    with pytest.raises(EngineError, match=r"\.pt2 files have no precision 'int8': allowed are fp32, bf16"):
        exported(tiny, tmp_path, "int8")


@pytest.mark.slow
def test_a_network_of_one_size_has_no_dynamic_size(tmp_path):
    model_file = ModelFile(shvit.create_model("timm/efficientvit_m0", num_classes=2).eval(), ("a", "b"))
    with pytest.raises(ExportError, match=r"timm/efficientvit_m0 cannot be exported .*m\.pt2"):
        exported(model_file, tmp_path, dynamic_size=True)
    assert not (tmp_path / "m.pt2").exists()
