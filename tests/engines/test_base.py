"""What an export says of itself is checked: it is the file that shvit wrote, and its network is as described."""

import json
import re
import shutil

import pytest
import torch

import shvit
from conftest import randomize_norms, reseal, tiny_architecture
from shvit import engines
from shvit.cli.describe import describe
from shvit.data.transforms import Preprocess
from shvit.engines.base import ExportJob
from shvit.engines.exported import UNSEALED, EngineError, files_of
from shvit.errors import InputError, Notice
from shvit.modelfile import ModelFile

FORMATS = [name for name, kind in engines.FORMATS.items() if not kind.absent() and not kind.always_end_to_end]
TAKE_SECONDS = ("executorch", "litert", "coreml")
SLOW = [pytest.param(name, marks=pytest.mark.slow) if name in TAKE_SECONDS else name for name in FORMATS]


@pytest.fixture(scope="module")
def exports(tmp_path_factory):
    """Writes a format once, and gives copies."""
    folder, written = tmp_path_factory.mktemp("exports"), {}
    model_file = ModelFile(randomize_norms(tiny_architecture().build()).eval(), ("red", "green"), Preprocess(32))

    def copy(name, to):
        kind = engines.FORMATS[name]
        if name not in written:
            written[name] = folder / f"m{kind.suffix}"
            images = [torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)]
            kind.export(ExportJob(model_file, written[name], kind.writes[None][0], calibration=images))
        shutil.copytree(folder, to, dirs_exist_ok=True)
        return to / f"m{kind.suffix}"

    return copy


def refused(path):
    with pytest.raises(InputError) as caught:
        describe(str(path))
    message = str(caught.value)
    assert str(path) in message
    assert "\n" not in message
    assert len(message) < 1500
    return message


def change(path, old, new):
    """Other metadata in the file, filled up to the same length, and a digest that fits."""
    for part in files_of(path):
        text = part.read_bytes()
        for quote in ('"', "&quot;"):
            was, by = (value.replace('"', quote).encode() for value in (old, new))
            assert len(by) <= len(was)
            text = text.replace(was, by.ljust(len(was)))
        part.write_bytes(text)
    reseal(path)


@pytest.mark.parametrize("name", SLOW)
def test_damage_to_any_part_is_noticed(name, exports, tmp_path):
    path = exports(name, tmp_path)
    shvit.load(path)
    for part in files_of(path):
        whole = part.read_bytes()
        for share in (0.2, 0.5, 0.9):
            place = int(len(whole) * share)
            length = min(100_000, len(whole) - place, len(whole) // 20)
            part.write_bytes(
                whole[:place] + bytes(byte ^ 1 for byte in whole[place : place + length]) + whole[place + length :]
            )
            refused(path)
        part.write_bytes(whole)
    shvit.load(path)


@pytest.mark.skipif("onnx" not in FORMATS, reason="onnx is not installed")
def test_a_file_without_its_digest(exports, tmp_path):
    path = exports("onnx", tmp_path)
    path.write_bytes(path.read_bytes().replace(b"shvit-sha256:", b"shvit-sha255:"))
    assert "its digest is missing" in refused(path)
    path.write_bytes(path.read_bytes().replace(b'"version": 2', b'"version": 1'))
    with pytest.warns(Notice, match="no digest to detect damage, because an older version of shvit wrote it"):
        shvit.load(path)


@pytest.mark.skipif("openvino" not in FORMATS, reason="openvino is not installed")
def test_the_weights_of_another_network(exports, tmp_path):
    path = exports("openvino", tmp_path)
    torch.manual_seed(1)
    other = ModelFile(randomize_norms(tiny_architecture().build()).eval(), ("green", "red"), Preprocess(32))
    engines.FORMATS["openvino"].export(ExportJob(other, tmp_path / "other.xml", "fp32"))
    shutil.copy(tmp_path / "other.bin", path.with_suffix(".bin"))
    assert "m.xml and m.bin changed since shvit export wrote the file, or came from a different export" in refused(path)


@pytest.mark.parametrize("name", [name for name in FORMATS if name in ("onnx", "openvino")])
@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        ('"engine": "{name}"', '"engine": "torh"', "its metadata names engine"),
        ('"precision": "fp32"', '"precision": "fp3"', "an unknown precision"),
        ('"classes": ["red", "green"]', '"classes": ["red"]', "does not match 1 class$"),
        ('"classes": ["red", "green"]', '"classes": [1, 2]', "class names must be strings"),
        ('"metrics": {}', '"metrics": 1', "metrics must be a dict"),
        ('"image_size": 32', '"image_size": 64', "images of 64 pixels"),
        ('"crop": 0.875', '"crop": 1e-9', "crop must be"),
        ('"mean": [0.485, 0.456, 0.406]', '"mean": "abc"', "mean and std must be"),
        ('"version": 2', '"version":9', "metadata has version 9"),
    ],
)  # fmt: skip
def test_impossible_metadata(name, old, new, reason, exports, tmp_path):
    path = exports(name, tmp_path)
    change(path, old.replace("{name}", name), new)
    assert re.search(reason, refused(path))


def test_an_onnx_file_that_names_other_files(exports, tmp_path):
    onnx = pytest.importorskip("onnx")
    path = exports("onnx", tmp_path)
    model = onnx.load(path)
    tensor = model.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="weights.bin")
    path.write_bytes(model.SerializeToString())
    reseal(path)
    assert "its weights are in other files" in refused(path)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("model_args", {"pretrained": True}),
        ("model_args", {"depth": [100_000, 2, 2]}),
        ("model_args", {"checkpoint_path": "/etc/passwd"}),
        ("model_args", {"cache_dir": "/"}),
        ("model_args", []),
        ("architecture", "hf-hub:owner/name"),
        ("architecture", 5),
        ("num_classes", 3),
        ("pretrained_cfg", {"url": "https://example.org/weights.pt"}),
        ("pretrained_cfg", {"custom_load": True}),
    ],
    ids=str,
)
def test_a_timm_folder_builds_its_own_network_alone(key, value, exports, tmp_path):
    path = exports("timm", tmp_path)
    config = json.loads((path / "config.json").read_text())
    config[key] = {**config[key], **value} if isinstance(value, dict) else value
    (path / "config.json").write_text(json.dumps(config))
    reseal(path)
    refused(path)


@pytest.mark.parametrize("name", SLOW)
def test_a_format_leaves_a_place_for_one_digest(name, exports, tmp_path):
    parts = files_of(exports(name, tmp_path))
    assert sum(part.read_bytes().count(UNSEALED[:13]) for part in parts) == 1
    assert not any(UNSEALED in part.read_bytes() for part in parts)


def test_a_part_of_a_folder_that_lies_elsewhere(exports, tmp_path):
    path = exports("timm", tmp_path)
    (tmp_path / "elsewhere.json").write_text("{}")
    (path / "more.json").symlink_to(tmp_path / "elsewhere.json")
    with pytest.raises(EngineError, match=r"its part .*more\.json lies outside"):
        shvit.load(path)
