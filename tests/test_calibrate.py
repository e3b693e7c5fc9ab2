"""Calibration sets the statistics of the norms to those of the images, and changes nothing else."""

import copy
import json
from dataclasses import replace

import pytest
import torch
from torch import nn

import shvit
from conftest import random_images, tiny_architecture
from shvit.calibrate import calibrate_model, with_statistics_of
from shvit.cli.main import app
from shvit.data.loader import Batch
from shvit.data.sources import open_source
from shvit.data.transforms import Normalize, Preprocess
from shvit.modelfile import ModelFile, load, save
from shvit.requests.train import TrainRequest
from shvit.train.run import train


def batches_of(*sizes):
    return [
        Batch(random_images(size, 48), torch.zeros(size, dtype=torch.int64), list(range(size)), {}) for size in sizes
    ]


@pytest.mark.parametrize("sizes", [(6, 6, 6), (16, 16, 2), (2, 3)], ids=str)
def test_statistics_are_those_of_all_images(tiny, sizes):
    """With any batches, the statistics of the first norm are those of all images as a single batch."""
    batches = batches_of(*sizes)
    batches[-1] = replace(batches[-1], images=255 - batches[-1].images // 4)  # unlike the others
    network, seen = with_statistics_of(tiny.model, Preprocess(48), batches)
    assert seen == sum(sizes)
    first = network.stem[0].norm
    maps = tiny.model.stem[0].conv(Normalize(Preprocess(48))(torch.cat([batch.images for batch in batches])))
    torch.testing.assert_close(first.running_mean, maps.mean((0, 2, 3)), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(first.running_var, maps.var((0, 2, 3)), rtol=1e-4, atol=1e-5)
    assert first.momentum == tiny.model.stem[0].norm.momentum
    assert not network.training
    assert not any(module.training for module in network.modules())


def test_a_single_batch_gives_its_own_statistics(tiny):
    """In every norm, as PyTorch computes them."""
    [batch] = batches_of(6)
    network, _ = with_statistics_of(tiny.model, Preprocess(48), [batch])
    expected = copy.deepcopy(tiny.model).train()
    for module in expected.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.momentum = 1.0
    with torch.no_grad():
        expected(Normalize(Preprocess(48))(batch.images))
    for name, value in network.state_dict().items():
        if "running" in name:
            torch.testing.assert_close(value, expected.state_dict()[name], rtol=1e-4, atol=1e-5)


def test_weights_stay_and_the_model_given_is_not_changed(tiny):
    before = {name: tensor.clone() for name, tensor in tiny.model.state_dict().items()}
    network, _ = with_statistics_of(tiny.model, Preprocess(48), batches_of(4, 1, 0))
    assert all(torch.equal(tensor, before[name]) for name, tensor in tiny.model.state_dict().items())
    for name, parameter in network.named_parameters():
        assert torch.equal(parameter, before[name])
    assert not torch.equal(network.head.norm.running_mean, before["head.norm.running_mean"])


def test_it_repairs_a_network_whose_statistics_are_wrong(folder, tmp_path):
    save(ModelFile(tiny_architecture().build(), ("dark", "light"), Preprocess(32)), tmp_path / "start.safetensors")
    settings = {
        "epochs": 16,
        "batch_size": 8,
        "lr": 1e-2,
        "lr_batch": 8,
        "flip": 0.5,
        "compile": "off",
        "precision": "fp32",
    }
    train(
        TrainRequest(
            folder,
            out=tmp_path / "run",
            model=str(tmp_path / "start.safetensors"),
            device="cpu",
            workers=0,
            settings=settings,
        )
    )
    trained = load(tmp_path / "run" / "best.safetensors")
    assert trained.metrics["top1"] == 1.0
    for module in trained.model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean += 30 * module.running_var.sqrt()
    result = calibrate_model(trained, open_source(folder), 48, batch_size=8, device="cpu")
    assert result.before["top1"] <= 0.6
    assert result.after["top1"] >= 0.8
    assert result.model_file.preprocess.image_size == 48
    assert result.model_file.metrics["top1"] == result.after["top1"]
    assert result.model_file.provenance["calibrated"] == {"from_image_size": 32, "images": 40, "seed": 0}


def test_other_networks(folder):
    peer = ModelFile(shvit.create_model("timm/test_resnet", 2).eval(), ("dark", "light"), Preprocess(160))
    assert calibrate_model(peer, open_source(folder), 64, device="cpu").images == 40
    without = ModelFile(shvit.create_model("timm/test_vit", 2).eval(), ("dark", "light"), Preprocess(160))
    with pytest.raises(shvit.InputError, match="timm/test_vit has no BatchNorm"):
        calibrate_model(without, open_source(folder), 160, device="cpu")


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ({"image_size": 16}, "32 to 8192 pixels"),
        ({"images": 1}, "at least 2, got 1"),
        ({"batch_size": 1}, "at least 2"),
    ],
    ids=str,
)
def test_impossible_arguments(tiny, folder, arguments, reason):
    with pytest.raises(shvit.InputError, match=reason):
        calibrate_model(tiny, open_source(folder), **{"image_size": 48, "device": "cpu", **arguments})


def test_the_command(tiny, folder, tmp_path, capsys):
    save(tiny, tmp_path / "m.safetensors")
    command = ["calibrate-bn", str(tmp_path / "m.safetensors"), str(folder), "--image-size", "64", "--workers", "0"]
    app([*command, "--device", "cpu", "--json"], exit_on_error=False, result_action="return_value")
    result = json.loads(capsys.readouterr().out)
    assert result["out"] == str(tmp_path / "m_64.safetensors")
    assert {"before", "after", "images", "image_size"} <= set(result)
    assert load(result["out"]).preprocess.image_size == 64
