"""Every field of a model file's header is checked, and an error is one line."""

import json
from dataclasses import asdict

import pytest
import torch
from safetensors.torch import load_file, save

import shvit
from conftest import tiny_architecture
from shvit.cli.describe import describe
from shvit.data.identity import TrainedOn
from shvit.errors import InputError
from shvit.header import parsed
from shvit.modelfile import HEADER_KEY, ModelFile, _digest


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    path = tmp_path_factory.mktemp("good") / "m.safetensors"
    shvit.save(ModelFile(tiny_architecture().build().eval(), ("a", "b")), path)
    weights = load_file(path)
    size = int.from_bytes(path.read_bytes()[:8], "little")
    return json.loads(json.loads(path.read_bytes()[8 : 8 + size])["__metadata__"][HEADER_KEY]), weights


def written(path, good, **entries):
    """Writes the file with other entries and a matching digest."""
    header, weights = good
    header = {key: value for key, value in (header | entries).items() if key != "digest"}
    path.write_bytes(save(weights, {HEADER_KEY: json.dumps({**header, "digest": _digest(header, weights)})}))
    return path


DEEP = json.loads("[" * 100 + "]" * 100)
PREPROCESS = {
    "image_size": 32,
    "crop": 0.9,
    "interpolation": "bicubic",
    "mean": [0.5] * 3,
    "std": [0.5] * 3,
    "fit": "crop",
}


@pytest.mark.parametrize(
    "entries",
    [
        {"classes": [1, 2]},
        {"classes": "ab"},
        {"classes": {"a": 1, "b": 2}},
        {"classes": ["a", None]},
        {"task": 5},
        {"task": "fly"},
        {"task": "detect"},
        {"metrics": None},
        {"metrics": {"top1": None}},
        {"metrics": {"top1": "0.9"}},
        {"metrics": {"top1": 10**400}},
        {"metrics": [0.9]},
        {"provenance": None},
        {"provenance": DEEP},
        {"provenance": {"more": DEEP}},
        {"provenance": {"recipe": 5}},
        {"provenance": {"recipe": {"name": 5, "epochs": 1}}},
        {"provenance": {"recipe": {"seed": "0"}}},
        {"provenance": {"recipe": {"val_share": 1e300}}},
        {"provenance": {"date": 20260101}},
        {"provenance": {"source": ["x"]}},
        {"provenance": {"categories": [1]}},
        {"provenance": {"categories": "ab"}},
        {"provenance": {"drawn_by": "lot"}},
        {"provenance": {"trained_on": 3}},
        {"provenance": {"trained_on": {"images": "3", "identities": ""}}},
        {"provenance": {"trained_on": {"images": 3}}},
        {"preprocess": PREPROCESS | {"image_size": 10**9}},
        {"preprocess": PREPROCESS | {"image_size": 224.5}},
        {"preprocess": PREPROCESS | {"image_size": True}},
        {"preprocess": PREPROCESS | {"crop": 1e-9}},
        {"preprocess": PREPROCESS | {"crop": "0.9"}},
        {"preprocess": PREPROCESS | {"mean": "abc"}},
        {"preprocess": PREPROCESS | {"mean": [None] * 3}},
        {"preprocess": PREPROCESS | {"mean": [float("nan")] * 3}},
        {"preprocess": PREPROCESS | {"mean": [0.5, 0.5], "std": [0.5, 0.5]}},
        {"preprocess": PREPROCESS | {"std": [1e-300] * 3}},
        {"preprocess": PREPROCESS | {"std": [float("inf")] * 3}},
        {"preprocess": PREPROCESS | {"fit": []}},
        {"preprocess": []},
        {"version": 1.0},
        {"version": True},
    ],
    ids=lambda entries: str(entries)[:60],
)
def test_impossible_headers(entries, good, tmp_path):
    path = written(tmp_path / "m.safetensors", good, **entries)
    with pytest.raises(InputError) as caught:
        describe(str(path))
    message = str(caught.value)
    assert "\n" not in message
    assert len(message) < 1000


@pytest.mark.parametrize(
    "entries",
    [
        {"name": "timm/resnet10t:pretrained=True"},
        {"name": "timm/resnet10t:checkpoint_path='/etc/passwd'"},
        {"name": "timm/resnet10t:pretrained_cfg={'file':'/etc/passwd'}"},
        {"name": "timm/resnet10t:cache_dir='/tmp'"},
        {"name": "timm/resnet10t:features_only=True"},
        {"name": "timm/hf-hub:owner/name"},
        {"name": "timm/hf_hub:owner/name"},
        {"name": "timm/local-dir:/tmp"},
        {"name": "timm/deit_tiny_patch16_224:depth=100000"},
        {"name": "timm/deit_tiny_patch16_224:embed_dim=1000000000"},
        {"name": "timm/deit_tiny_patch16_224:depth=" + "(" * 10_000},
        {"name": "timm/deit_tiny_patch16_224:num_heads=0"},
        {"name": "timm/deit_tiny_patch16_224:img_size='a'"},
        {"name": "timm/../../etc/passwd"},
        {"name": "x" * 10**6},
        {"name": None},
    ],
    ids=lambda entries: str(entries)[:60],
)
def test_names_of_networks_that_reach_out(entries, good, tmp_path):
    architecture = {**good[0]["architecture"], "config": None, **entries}
    path = written(tmp_path / "m.safetensors", good, architecture=architecture)
    with pytest.raises(InputError) as caught:
        describe(str(path))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "config",
    [
        {"stages": [{"width": 16, "depth": 100_000, "attended": None}]},
        {"stages": [{"width": 16, "depth": 1, "attended": None}] * 10_000},
        {"stages": [{"width": 16.0, "depth": 1, "attended": None}]},
        {"stages": [{"width": "16", "depth": 1, "attended": None}]},
        {"stages": [{"width": 16, "depth": 1, "attended": 1.5}]},
        {"image_size": 10**9},
        {"stem": 2.5},
    ],
    ids=lambda config: str(config)[:60],
)
def test_sizes_of_networks_that_explode(config, good, tmp_path):
    sizes = {**good[0]["architecture"]["config"], **config}
    path = written(tmp_path / "m.safetensors", good, architecture={**good[0]["architecture"], "config": sizes})
    with pytest.raises(InputError, match=str(path)):
        shvit.load(path)


def test_a_network_of_timm_costs_no_memory_before_its_weights_fit(good, tmp_path):
    """A network with 16,384 channels and 256 blocks would take 3 TB."""
    name = "timm/deit_tiny_patch16_224:embed_dim=16384:depth=256:num_heads=16"
    path = written(
        tmp_path / "m.safetensors", good, architecture={**good[0]["architecture"], "config": None, "name": name}
    )
    with pytest.raises(InputError, match="weights do not fit"):
        shvit.load(path)


def test_nested_json():
    assert parsed('{"a": [{"b": 1}]}') == {"a": [{"b": 1}]}
    for text in ("[" * 100 + "]" * 100, "[" * 10**6, '{"a":' * 10**5):
        with pytest.raises(ValueError, match=r"nested|Expecting"):
            parsed(text)


def test_a_list_of_training_images_that_explodes():
    import base64
    import zlib

    packed = base64.b64encode(zlib.compress(bytes(8 * 10**7), 9)).decode()
    with pytest.raises(InputError, match="cannot be read"):
        TrainedOn.recorded({"trained_on": {"images": 10**7, "identities": packed}})
    with pytest.raises(InputError, match="cannot be read"):
        TrainedOn.recorded({"trained_on": {"images": 3, "identities": "no base64"}})


def test_what_is_right_stays(good, tmp_path):
    provenance = {"recipe": {"name": "scratch", "epochs": 3, "seed": 1}, "date": "2026-01-01", "more": [1, {"x": None}]}
    metrics = {"top1": 1, "bbox": {"AP": -1.0}, "weights": "ema"}
    path = written(tmp_path / "m.safetensors", good, metrics=metrics, provenance=provenance)
    loaded = shvit.load(path)
    assert loaded.provenance == provenance
    assert loaded.metrics == metrics
    assert asdict(loaded.architecture)["name"] == "tiny"
    assert torch.equal(loaded.model.state_dict()["head.linear.bias"], good[1]["head.linear.bias"])
