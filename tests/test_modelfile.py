"""A model file is read as it was written, and an unusable file gives an error of one line."""

import json
import pickle
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save, save_file

import shvit
from conftest import tiny_architecture
from shvit.modelfile import HEADER_KEY, ModelFile, ModelFileError


@pytest.fixture
def path(tiny, tmp_path):
    shvit.save(
        replace(tiny, metrics={"top1": 0.5}, provenance={"recipe": {"epochs": 3}}), tmp_path / "tiny.safetensors"
    )
    return tmp_path / "tiny.safetensors"


def header_of(path):
    size = int.from_bytes(path.read_bytes()[:8], "little")
    return json.loads(json.loads(path.read_bytes()[8 : 8 + size])["__metadata__"][HEADER_KEY])


def rewrite(path, header=None, weights=None):
    weights = load_file(path) if weights is None else weights
    metadata = {HEADER_KEY: json.dumps(header_of(path) if header is None else header)}
    path.write_bytes(save(weights, metadata))


def test_round_trip(tiny, path):
    loaded = shvit.load(path)
    images = torch.randn(2, 3, 64, 64)
    torch.testing.assert_close(loaded.model(images), tiny.model(images))
    assert not loaded.model.training
    assert loaded.classes == tiny.classes
    assert loaded.preprocess == tiny.preprocess
    assert loaded.task == "classify"
    assert loaded.metrics == {"top1": 0.5}
    assert loaded.provenance == {"recipe": {"epochs": 3}}
    assert loaded.architecture == tiny.architecture


@pytest.mark.parametrize("name", ["shvit_s2", "timm/mobilenetv3_small_050", "timm/efficientvit_m0"])
def test_every_kind_of_network(name, tmp_path):
    model = shvit.create_model(name, num_classes=2).eval()
    shvit.save(ModelFile(model, ("a", "b")), tmp_path / "m.safetensors")
    images = torch.randn(1, 3, model.image_size, model.image_size)
    torch.testing.assert_close(shvit.load(tmp_path / "m.safetensors").model(images), model(images))


def test_unicode_classes(tmp_path):
    shvit.save(ModelFile(tiny_architecture().build(), ("Bär 🐻", "犬")), tmp_path / "m.safetensors")
    assert shvit.load(tmp_path / "m.safetensors").classes == ("Bär 🐻", "犬")


def test_a_failed_write_leaves_the_old_file(path, tiny, monkeypatch):
    before = path.read_bytes()

    def full(*_):
        raise OSError("disk full")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="disk full"):
        shvit.save(replace(tiny, metrics={"top1": 0.9}), path)
    assert path.read_bytes() == before
    assert list(path.parent.iterdir()) == [path]


def test_a_fused_network_is_not_saved(tiny, tmp_path):
    with pytest.raises(shvit.InputError, match="fused"):
        shvit.save(replace(tiny, model=shvit.fuse(tiny.model)), tmp_path / "m.safetensors")


def test_classes_that_do_not_fit_are_refused(tiny):
    with pytest.raises(shvit.InputError, match="3 class names for a network with 2"):
        replace(tiny, classes=("a", "b", "c"))


def unusable(path):
    with pytest.raises(ModelFileError) as caught:
        shvit.load(path)
    message = str(caught.value)
    assert str(path) in message
    assert "\n" not in message
    return message


def test_missing(tmp_path):
    assert "no such file" in unusable(tmp_path / "no.safetensors")


@pytest.mark.parametrize("keep", [0, 5, 100, 0.5, -1])
def test_truncated(path, keep):
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * keep)] if isinstance(keep, float) else data[:keep])
    assert "truncated or not a safetensors file" in unusable(path)


def test_tampered_weights(path):
    data = bytearray(path.read_bytes())
    data[-3] ^= 1
    path.write_bytes(data)
    assert "changed after it was written" in unusable(path)


@pytest.mark.parametrize("change", [{"classes": ["x", "y"]}, {"metrics": {"top1": 1.0}}, {"provenance": {}}])
def test_tampered_header(path, change):
    rewrite(path, header_of(path) | change)
    assert "changed after it was written" in unusable(path)


def test_foreign_safetensors(tmp_path):
    save_file({"x": torch.zeros(3)}, tmp_path / "m.safetensors")
    assert "no shvit header" in unusable(tmp_path / "m.safetensors")


def test_a_pickle_is_never_loaded(tmp_path):
    class Boom:
        def __reduce__(self):
            return (pytest.fail, ("the pickle was executed",))

    for name in ("m.safetensors", "m.pt"):
        (tmp_path / name).write_bytes(pickle.dumps(Boom()))
        assert "not a safetensors file" in unusable(tmp_path / name)


@pytest.mark.parametrize("version", [0, 2, "1", None])
def test_unknown_version(path, version):
    rewrite(path, header_of(path) | {"version": version})
    assert f"format version is {version}, but this shvit reads only version 1" in unusable(path)


def test_class_count_that_does_not_fit_the_weights(path):
    header = header_of(path)
    header["architecture"]["num_classes"] = 3
    rewrite(path, header | {"classes": ["a", "b", "c"]})
    assert "head.linear" in unusable(path)


def test_class_names_that_do_not_fit_the_network(path):
    rewrite(path, header_of(path) | {"classes": ["a", "b", "c"]})
    assert "3 class names for a network with 2" in unusable(path)


@pytest.mark.parametrize("part", ["task", "architecture", "classes", "preprocess", "metrics", "provenance", "digest"])
def test_missing_parts(path, part):
    header = header_of(path)
    del header[part]
    rewrite(path, header)
    assert f"lacks {part}" in unusable(path)


@pytest.mark.parametrize(
    "header",
    [
        [],
        5,
        {"version": 1},
        {"architecture": 3},
        {"architecture": {"name": "tiny"}},
        {"architecture": {"name": 5, "config": None}},
        {"preprocess": {"image_size": 3}},
    ],
    ids=str,
)
def test_nonsense_headers(path, header):
    rewrite(
        path,
        header_of(path) | header if isinstance(header, dict) and len(header) and "version" not in header else header,
    )
    unusable(path)


def test_header_that_is_no_json(path):
    path.write_bytes(save(load_file(path), {HEADER_KEY: "{broken"}))
    unusable(path)


@pytest.mark.parametrize("change", ["missing", "extra", "shape"])
def test_weights_that_do_not_fit(path, change):
    weights = load_file(path)
    key = "stages.1.blocks.0.mixer.branch.norm.weight"
    if change == "missing":
        del weights[key]
    elif change == "extra":
        weights["more"] = torch.zeros(1)
    else:
        weights[key] = torch.zeros(5)
    rewrite(path, weights=weights)
    assert ("more" if change == "extra" else key) in unusable(path)
