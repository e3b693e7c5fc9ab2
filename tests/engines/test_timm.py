"""A folder that timm loads: the same logits, classes and preprocessing, with one head for two."""

import json

import pytest
import timm
import torch
from timm.data import create_transform, resolve_model_data_config

import shvit
from conftest import picture, plain_outputs, random_images, tiny_architecture, trained_looking
from shvit import engines
from shvit.cli.main import app
from shvit.data.transforms import EvalReader, Preprocess
from shvit.engines.base import ExportJob, Shapes
from shvit.engines.exported import EngineError
from shvit.export.export import export_model
from shvit.model.architecture import Architecture
from shvit.model.config import Config, Stage
from shvit.modelfile import ModelFile, save


def by_timm(folder, model_file, images):
    network = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    data = resolve_model_data_config(network)
    mean, std = (torch.tensor(data[key]).view(1, 3, 1, 1) for key in ("mean", "std"))
    with torch.inference_mode():
        return network, network((images / 255 - mean) / std)


@pytest.mark.parametrize("distilled", [False, True])
def test_timm_computes_the_same(distilled, tmp_path):
    model = trained_looking(tiny_architecture(3, distilled=distilled).build())
    for part in model.head.norm, *([model.distillation_head.norm] if distilled else []):
        part.running_mean.normal_()  # the two heads' differ
        part.weight.data[0] = 0
    preprocess = Preprocess(96, 0.9, "bilinear", (0.5, 0.4, 0.3), (0.2, 0.3, 0.4))
    model_file = ModelFile(model, ("an apple", "b", "b b"), preprocess)
    folder = tmp_path / "m.timm"
    report = export_model(model_file, "timm", folder, threads=1)
    assert sorted(path.name for path in folder.iterdir()) == ["config.json", "model.safetensors"]
    assert report["ran"]
    assert report["parity"]["relative_difference"] < 1e-5
    images = random_images(4, 96)
    network, logits = by_timm(folder, model_file, images)
    torch.testing.assert_close(logits, plain_outputs(model_file, images), rtol=1e-5, atol=1e-5)
    assert network.pretrained_cfg["label_names"] == ["an apple", "b", "b b"]
    assert network.num_classes == 3
    data = resolve_model_data_config(network)
    assert (tuple(data["input_size"]), data["crop_pct"], data["interpolation"]) == ((3, 96, 96), 0.9, "bilinear")
    assert data["crop_mode"] == "center"
    exported = shvit.load(folder)
    assert exported.classes == model_file.classes
    torch.testing.assert_close(engines.load(exported)(images), logits, rtol=1e-5, atol=1e-5)


def test_names_of_timm_and_of_the_variants(tmp_path):
    for name, base, fit, mode in (
        ("timm/mobilenetv3_small_050", "mobilenetv3_small_050", "letterbox", "border"),
        ("shvit_s1", "shvit_s1", "stretch", "squash"),
    ):
        model_file = ModelFile(trained_looking(Architecture(name, 2).build()), ("a", "b"), Preprocess(64, fit=fit))
        out = tmp_path / f"{base}.timm"
        engines.FORMATS["timm"].export(ExportJob(model_file, out, "fp32"))
        config = json.loads((out / "config.json").read_text())
        assert (config["architecture"], config["model_args"]) == (base, {})
        images = random_images(2, 64)
        network, logits = by_timm(out, model_file, images)
        torch.testing.assert_close(logits, plain_outputs(model_file, images), rtol=1e-5, atol=1e-5)
        data = resolve_model_data_config(network)
        assert (data["crop_mode"], data["crop_pct"]) == (mode, 1.0)
        image = picture(100, size=(40, 90))
        as_timm = create_transform(**data, use_prefetcher=True)(image)
        assert torch.equal(torch.as_tensor(as_timm), EvalReader(model_file.preprocess)(image))


def test_what_timm_cannot_build_is_refused(tiny, tmp_path):
    config = Config((Stage(16, 1), Stage(16, 1)))
    model = ModelFile(Architecture("tiny", 2, config=config).build().eval(), ("a", "b"), Preprocess(32))
    with pytest.raises(EngineError, match="timm cannot build tiny"):
        export_model(model, "timm", tmp_path / "m.timm")
    for shapes in (Shapes(batch=2), Shapes(dynamic_size=True)):
        with pytest.raises(EngineError, match="leave out"):
            export_model(tiny, "timm", tmp_path / "m.timm", shapes=shapes)
    with pytest.raises(EngineError, match="fp16"):
        export_model(tiny, "timm", tmp_path / "m.timm", "fp16")
    with pytest.raises(EngineError, match="not as timm"):
        engines.format_of("timm", "detect")
    assert list(tmp_path.iterdir()) == []


def test_it_is_no_engine_for_models(tiny):
    assert "timm" not in engines.ENGINES
    with pytest.raises(EngineError, match="unknown engine 'timm'"):
        engines.load(tiny, "timm")


def test_the_command(tiny, tmp_path, capsys):
    save(tiny, tmp_path / "m.safetensors")
    app(["export", str(tmp_path / "m.safetensors"), "--format", "timm", "--json"], result_action="return_value")
    report = json.loads(capsys.readouterr().out)
    assert report["file"] == str(tmp_path / "m.timm")
    assert report["engine"] == "timm"
