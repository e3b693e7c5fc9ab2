"""The web folder: complete, sealed, and written whole or not at all. The page itself is tested in test_web_page.py."""

import base64
import functools
import hashlib
import io
import json
import re
import shutil
import tarfile

import numpy as np
import pytest
from PIL import Image

import shvit
from conftest import picture, randomize_norms, reseal, tiny_architecture
from shvit.data.sources import open_source
from shvit.data.transforms import Preprocess
from shvit.engines import FORMATS
from shvit.engines.base import ExportJob, Shapes
from shvit.engines.exported import SEAL, EngineError, files_of, weights_digest
from shvit.engines.web import runtime
from shvit.engines.web.format import WEB_PAGE
from shvit.errors import Failure, InputError
from shvit.export.export import export_model

pytest.importorskip("onnxruntime")
ARCHIVE = f"{runtime.ORT_WEB}-{runtime.ORT_WEB_VERSION}.tgz"


@functools.cache
def package() -> bytes:
    """A package whose files contain only their names."""
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w:gz") as members:
        for name in runtime.ORT_WEB_FILES:
            member = tarfile.TarInfo(f"package/dist/{name}")
            member.size = len(name)
            members.addfile(member, io.BytesIO(name.encode()))
    return archive.getvalue()


def checksum(content: bytes) -> str:
    return base64.b64encode(hashlib.sha512(content).digest()).decode()


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """A folder and the report of its export; written once, since PyTorch takes seconds to export a network."""
    folder = tmp_path_factory.mktemp("export")
    (folder / ARCHIVE).write_bytes(package())
    model = randomize_norms(tiny_architecture().build()).eval()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SHVIT_CACHE", str(folder))
        patch.setattr(runtime, "ORT_WEB_SHA512", checksum(package()))
        model_file = shvit.ModelFile(model, ("dark", "light"), Preprocess(32))
        return folder / "m.web", export_model(model_file, "web", folder / "m.web", "fp32")


@pytest.fixture
def out(exported, tmp_path):
    """A copy of the folder."""
    for part in exported[0].parent.glob("m.web*"):
        (shutil.copytree if part.is_dir() else shutil.copyfile)(part, tmp_path / part.name)
    return tmp_path / "m.web"


@pytest.fixture
def cache(tmp_path_factory, monkeypatch):
    """An empty cache folder, and no npm."""
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("SHVIT_CACHE", str(folder))
    monkeypatch.setenv("PATH", str(tmp_path_factory.mktemp("empty")))
    return folder


@pytest.fixture
def cached(cache, monkeypatch):
    """A cache that has a package."""
    (cache / ARCHIVE).write_bytes(package())
    monkeypatch.setattr(runtime, "ORT_WEB_SHA512", checksum(package()))


def fake_npm(folder, monkeypatch, script: str) -> None:
    program = folder / "npm"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")


def write(tiny, folder, **options):
    out = folder / "m.web"
    return out, export_model(tiny, "web", out, options.pop("precision", "fp32"), **options)


def names_in(folder):
    return {str(part.relative_to(folder)) for part in folder.rglob("*") if part.is_file()}


def listed(script: str, name: str) -> set[str]:
    """The names in an array of the service worker."""
    return set(re.findall(r'"(.*?)"', re.search(rf"const {name} = \[(.*?)\]", script, re.S)[1]))


def test_the_folder_has_what_the_page_needs(exported, out, tmp_path):
    report = exported[1]
    script = (out / "sw.js").read_text()
    kept, on_demand = listed(script, "FILES"), listed(script, "FOR_WEBGPU")
    licenses = {f"ort/{name}" for name in runtime.ORT_LICENSES}
    assert names_in(out) - licenses == kept - {""} | on_demand | {"index.html", "sw.js"}
    assert names_in(out) - licenses == {str(part.relative_to(out)) for part in files_of(out)}
    assert on_demand == {f"ort/{name}" for name in runtime.ORT_WEB_FILES[3:]}
    assert "MIT License" in (out / "ort" / "LICENSE").read_text()
    assert (out / "ort" / runtime.ORT_WEB_FILES[0]).read_text() == runtime.ORT_WEB_FILES[0]
    assert report["bytes"] == sum(part.stat().st_size for part in out.rglob("*") if part.is_file())
    assert (report["end_to_end"], report["precision"]) == (True, "fp32")
    assert report["parity"]["images"] == 64
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


def test_the_page_gets_the_facts_and_the_sample(exported, out, tmp_path):
    report = exported[1]
    facts = json.loads((out / "model.json").read_text())
    assert facts["classes"] == ["dark", "light"]
    assert facts["sample"] == json.loads(json.dumps(report["sample"]))
    sample = np.asarray(Image.open(out / "sample.png"))
    assert (sample == np.asarray(Image.open(tmp_path / "m.web.sample.png"))).all()
    exported = shvit.load(out)
    assert (exported.engine, exported.path, exported.end_to_end) == ("web", out, True)
    [prediction] = shvit.Predictor(exported)(sample)
    scores = dict(zip(prediction.labels, prediction.scores, strict=True))
    expected = dict(zip(facts["sample"]["classes"], facts["sample"]["scores"], strict=True))
    assert [scores[facts["classes"][index]] for index in expected] == pytest.approx(list(expected.values()), abs=1e-5)


def test_one_digest_is_the_version_of_the_page(out):
    marks = {name: set(SEAL.findall((out / name).read_bytes())) for name in ("sw.js", "model.json", "model.onnx")}
    assert all(len(found) == 1 for found in marks.values())
    [version] = set.union(*marks.values())
    (out / "model.onnx").write_bytes((out / "model.onnx").read_bytes() + b"\0")
    reseal(out)
    assert version not in (out / "sw.js").read_bytes()


PARTS = ("index.html", "style.css", "app.js", "sw.js", "model.json", "model.onnx", "sample.png", "ort/ort.wasm.min.mjs")


@pytest.mark.parametrize("how", ["changed", "removed"])
def test_damage_is_refused(tmp_path, out, how):
    for name in PARTS:
        copy = tmp_path / f"{name.replace('/', '-')}.web"
        shutil.copytree(out, copy)
        if how == "removed":
            (copy / name).unlink()
        else:
            content = bytearray((copy / name).read_bytes())
            content[len(content) // 3] ^= 1
            (copy / name).write_bytes(content)
        with pytest.raises(InputError, match=r"damaged|no model\.onnx"):
            shvit.load(copy)


def test_files_of_others_are_ignored(out):
    for name in ("CNAME", "about.html", ".nojekyll", "favicon.png"):
        (out / name).write_text("mine")
    assert shvit.load(out).classes == ("dark", "light")


def test_a_folder_of_another_format_is_refused(tiny, tmp_path):
    FORMATS["onnx"].export(ExportJob(tiny, tmp_path / "m.onnx", "fp32"))
    (tmp_path / "x.web").mkdir()
    with pytest.raises(InputError, match=r"x\.web is not a web folder written by shvit export: it has no model\.onnx"):
        shvit.load(tmp_path / "x.web")
    shutil.copyfile(tmp_path / "m.onnx", tmp_path / "x.web" / "model.onnx")
    with pytest.raises(InputError, match=r"x\.web is damaged: model\.onnx changed"):
        shvit.load(tmp_path / "x.web")


def test_only_an_export_of_the_same_model_is_replaced(tiny, out, tmp_path, cached):
    with pytest.raises(InputError, match="exists and is not an export of this model"):
        write(tiny, tmp_path)
    (out / "of before").touch()
    write(tiny, tmp_path, end_to_end=True, overwrite=True)
    assert not (out / "of before").exists()
    assert shvit.load(out).provenance["weights"] == weights_digest(tiny)


def test_int8_is_the_default_and_needs_images(tiny, tmp_path, cached):
    with pytest.raises(EngineError, match=r"int8 needs calibration images: give --calibrate DATA .* --precision fp32"):
        write(tiny, tmp_path, precision=None)
    with pytest.raises(EngineError, match="leave out --batch-size and --dynamic-size"):
        write(tiny, tmp_path, shapes=Shapes(batch=2))
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_int8(tiny, folder, tmp_path, cached):
    out, report = write(tiny, tmp_path, precision=None, source=open_source(folder), max_drop=100)
    assert (report["precision"], shvit.load(out).precision) == ("int8", "int8")
    [prediction] = shvit.Predictor(shvit.load(out))(picture(60))
    assert set(prediction.labels) == {"dark", "light"}


@pytest.mark.slow
def test_int8_that_loses_too_much_is_not_written(tiny, folder, tmp_path, cached):
    with pytest.raises(Failure, match="Nothing was written"):
        write(tiny, tmp_path / "out", precision=None, source=open_source(folder), max_drop=-101)
    assert not list((tmp_path / "out").iterdir())


def test_without_npm(tiny, tmp_path, cache):
    with pytest.raises(Failure) as caught:
        write(tiny, tmp_path / "out")
    message = str(caught.value)
    assert "\n" not in message
    assert (
        f"{runtime.ORT_WEB}@{runtime.ORT_WEB_VERSION} is not in the cache and cannot be downloaded, because npm"
        in message
    )
    assert message.endswith(f"copy the file to {cache}")
    assert not list((tmp_path / "out").iterdir())


def test_npm_fails(cache, tmp_path, monkeypatch):
    fake_npm(
        tmp_path, monkeypatch, "printf 'npm error code E404\\nnpm error 404 Not Found\\nnpm error log\\n' >&2; exit 1"
    )
    with pytest.raises(Failure, match=r"cannot be downloaded \(404 Not Found\): run `npm pack "):
        runtime.fetched_package()


def test_npm_returns_something_else(cache, tmp_path, monkeypatch):
    fake_npm(tmp_path, monkeypatch, f'echo x > "$5/{ARCHIVE}"')
    with pytest.raises(Failure, match="npm returned a file with another checksum"):
        runtime.fetched_package()
    assert not (cache / ARCHIVE).exists()


def test_npm_is_called_once(cache, tmp_path, monkeypatch):
    (tmp_path / ARCHIVE).write_bytes(package())
    monkeypatch.setattr(runtime, "ORT_WEB_SHA512", checksum(package_bytes := (tmp_path / ARCHIVE).read_bytes()))
    fake_npm(
        tmp_path, monkeypatch, f'test "$1" = pack && cp {tmp_path / ARCHIVE} "$5" && echo "$2" >> {tmp_path / "log"}'
    )
    assert runtime.fetched_package() == runtime.fetched_package() == cache / ARCHIVE
    assert (tmp_path / "log").read_text() == f"{runtime.ORT_WEB}@{runtime.ORT_WEB_VERSION}\n"
    assert (cache / ARCHIVE).read_bytes() == package_bytes
    (cache / ARCHIVE).write_bytes(b"x")
    with pytest.raises(Failure, match="is damaged: delete it"):
        runtime.fetched_package()


def test_the_page_refers_to_nothing_outside():
    for part in WEB_PAGE.iterdir():
        addresses = set(re.findall(r"https?://[\w./:-]+", part.read_text()))
        assert addresses <= {"http://localhost:8000", "http://www.w3.org/2000/svg"}, part.name
