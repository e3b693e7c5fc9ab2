"""The programs of `shvit export --snippet`, run as a user would run them."""

import ast
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch
from filelock import FileLock
from PIL import Image
from test_export_detectors import detector

import shvit
from conftest import picture, telling_apart
from shvit import engines
from shvit.data.transforms import Preprocess
from shvit.engines import Shapes
from shvit.engines.exported import ExpectedSample, Exported
from shvit.errors import InputError
from shvit.export.export import export_model
from shvit.export.snippets import LANGUAGES, check_snippet, snippet
from shvit.modelfile import ModelFile
from shvit.predict.predictor import Predictor

SIDE = 32
CACHE = Path(tempfile.gettempdir()) / "shvit-readers"
"""Packages from npm and Debian, kept for the next run."""
EXAMPLES = Path(__file__).parents[2] / "examples" / "readers"
UNTESTED = "Not run by shvit's tests"


def every_program():
    """Each program: its language, format, task, and whether its file is end to end."""
    for language, programs in LANGUAGES.items():
        for name in programs.templates:
            for task in ("classify", "detect", "segment"):
                for end_to_end in (False, True):
                    try:
                        check_snippet(language, name, task, end_to_end)
                    except InputError:
                        continue
                    if not end_to_end or engines.FORMATS[name].end_to_end:
                        yield language, name, task, end_to_end


def described(name: str, path: str, task: str = "classify", end_to_end: bool = False) -> Exported:
    sample = ExpectedSample("m.sample.png", (1, 0), (0.75, 0.25))
    classes, preprocess = ("dark", "light"), Preprocess(SIDE)
    return Exported(Path(path), name, "fp32", classes, preprocess, task, end_to_end=end_to_end, sample=sample)


@pytest.mark.parametrize(("language", "name", "task", "end_to_end"), list(every_program()))
def test_every_program_is_short(language, name, task, end_to_end):
    text = snippet(language, described(name, f"m{engines.FORMATS[name].suffix}", task, end_to_end))
    lines = text.splitlines()
    assert len(lines) < 40
    assert max(map(len, lines)) <= 120
    assert text == "\n".join(line.rstrip() for line in lines) + "\n"
    assert (UNTESTED in text) == (language in ("csharp", "swift", "kotlin") or name == "coreml")
    if language == "python":
        ast.parse(text)


def test_every_language_and_format_has_a_program():
    found = {(language, name) for language, name, _, _ in every_program()}
    assert found == {(language, name) for language, one in LANGUAGES.items() for name in one.templates}


@pytest.mark.parametrize(("language", "name"), [("python", "onnx"), ("python", "openvino"), ("javascript", "onnx")])
def test_detectors_with_and_without_masks_have_the_same_program(language, name):
    boxes, masks = (snippet(language, described(name, "m", task, True)) for task in ("detect", "segment"))
    assert boxes == masks


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        (("perl", "onnx", "classify"), "unknown --snippet 'perl': choose from python, javascript, cpp, csharp, swift"),
        (("swift", "onnx", "classify"), "swift reads only some formats: choose --format coreml, or --snippet python"),
        (("javascript", "torch", "classify"), "choose --format onnx, or --snippet python"),
        (("javascript", "onnx", "classify"), "--snippet needs --end-to-end for javascript"),
        (("python", "onnx", "detect"), "--snippet needs --end-to-end for models of task detect"),
        (("python", "torch", "detect"), "choose --snippet python with --format onnx or openvino and --end-to-end"),
        (("cpp", "openvino", "segment", True), "cpp does not read models of task segment as openvino"),
        (("python", "onnx", "classify", False, Shapes(8)), "one image at a time: leave out --batch-size"),
    ],
)
def test_a_wrong_request_is_one_line(asked, message):
    with pytest.raises(InputError) as error:
        check_snippet(*asked)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_a_wrong_request_costs_no_export(run, tmp_path, tiny):
    shvit.save(tiny, tmp_path / "m.safetensors")
    code, _, err = run("export", tmp_path / "m.safetensors", "--format", "torch", "--snippet", "kotlin")
    assert (code, err.count("\n")) == (2, 1)
    assert [path.name for path in tmp_path.iterdir()] == ["m.safetensors"]


@pytest.mark.parametrize("language", LANGUAGES)
def test_any_path_is_a_literal(language):
    name = next(iter(LANGUAGES[language].templates))
    path = 'a "b" \\ ${c} \n.x'
    text = snippet(language, described(name, path, end_to_end=engines.FORMATS[name].end_to_end))
    dollar = "\\$" if language == "kotlin" else "$"
    assert rf'"a \"b\" \\ {dollar}{{c}} \n.x"' in text


@pytest.fixture(scope="module")
def network() -> ModelFile:
    torch.manual_seed(0)
    return ModelFile(telling_apart(1.0), ("dark", "light"), Preprocess(SIDE, crop=1.0))


@pytest.fixture(scope="module")
def exports(network, tmp_path_factory):
    """Writes each export once, and returns its path."""
    made = {}

    def get(name: str, end_to_end: bool = False, task: str = "classify") -> Path:
        if reason := engines.FORMATS[name].absent():
            pytest.skip(reason)
        key = name, end_to_end, task
        if key not in made:
            made[key] = tmp_path_factory.mktemp("export") / f"my $model{engines.FORMATS[name].suffix}"
            model_file = network if task == "classify" else finder()
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(f"shvit.tasks.{task}.{task.capitalize()}.parity_images", 4)
                export_model(model_file, name, made[key], threads=1, end_to_end=end_to_end)
        return made[key]

    return get


def finder() -> ModelFile:
    """An untrained detector that is sure enough of some objects."""
    model_file = detector("retinanet")
    last = model_file.model.head.classification_head.cls_logits
    torch.nn.init.normal_(last.weight, std=0.05)
    torch.nn.init.constant_(last.bias, -5.5)
    return model_file


@pytest.fixture(scope="module")
def images(tmp_path_factory) -> Path:
    """Images of any size, and images of the network's size, in several modes."""
    folder = tmp_path_factory.mktemp("images")
    for name, size in (("any", (60, 47)), ("fit", (SIDE, SIDE))):
        for shade in (60, 190):
            picture(shade, size=size).save(folder / f"{name}_{shade}.png")
        middle = picture(120, size=size)
        gradient = Image.fromarray(np.linspace(0, 255, middle.width * middle.height).reshape(size).astype(np.uint8))
        middle.convert("L").save(folder / f"{name}_gray.png")
        middle.quantize(16).save(folder / f"{name}_palette.png", transparency=2)
        middle.putalpha(gradient)
        middle.save(folder / f"{name}_rgba.png")
        middle.convert("LA").save(folder / f"{name}_gray_alpha.png")
    picture(150, size=(1, 50)).save(folder / "any_thin.png")
    return folder


def outcome(command, *arguments) -> tuple[int, list[str], str]:
    command = [str(part) for part in (*command, *arguments)]
    variables = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, env=variables)
    return done.returncode, done.stdout.splitlines(), done.stderr


def program_for(exported: Path, language: str, folder: Path, suffix: str) -> Path:
    program = folder / f"reader{suffix}"
    program.write_text(snippet(language, engines.read(exported)), encoding="utf-8")
    return program


def check_labels(network: ModelFile, command, exported: Path, files: list[Path]) -> None:
    """The program passes its self-check. Its labels and scores are those of `shvit predict`."""
    code, [first, *lines], err = outcome(command, exported, *files)
    assert (code, first) == (0, "self-check passed"), err
    known = engines.read(exported)
    expected = Predictor(known if known.end_to_end else network, device="cpu", precision="fp32", threads=1)(files)
    for line, file, prediction in zip(lines, files, expected, strict=True):
        found = re.fullmatch(rf"{re.escape(str(file))}: (\w+) ([\d.]+)", line)
        assert found, line
        assert found[1] == prediction.labels[0], line
        assert abs(float(found[2]) - prediction.scores[0]) <= 0.01, (line, prediction.scores)


def check_wrong_sample(command, exported: Path, tmp_path: Path) -> None:
    """A file with another sample image fails the self-check, in one line."""
    for part in exported.parent.glob(f"{exported.stem}.*"):
        (shutil.copytree if part.is_dir() else shutil.copy)(part, tmp_path / part.name)
    sample = tmp_path / f"{exported.name}.sample.png"
    with Image.open(sample) as image:
        Image.eval(image, lambda value: 255 - value).save(sample)
    code, lines, err = outcome(command, tmp_path / exported.name)
    text = "\n".join(lines) + err
    assert code == 1
    assert "self-check passed" not in text
    assert text.count("self-check failed") == 1


def check_refused(command, exported: Path, file: Path, reason: str) -> None:
    code, lines, err = outcome(command, exported, file)
    assert (code, lines) == (1, ["self-check passed"])
    assert str(file) in err
    assert reason in err


@pytest.mark.slow
def test_the_program_alone_goes_to_stdout(run, exports, network, monkeypatch, tmp_path):
    model, out = tmp_path / "m.safetensors", exports("onnx", True)
    shvit.save(network, model)
    report = json.loads(out.with_name(f"{out.name}.parity.json").read_text())
    monkeypatch.setattr("shvit.export.export.export_model", lambda *_, **__: report)
    flags = ["export", model, "--format", "onnx", "--end-to-end", "--out", out, "--snippet", "javascript"]
    code, program, err = run(*flags)
    assert code == 0
    assert program == snippet("javascript", engines.read(out))
    assert f"wrote {out}" in err
    code, text, _ = run(*flags, "--json")
    assert json.loads(text) == {**report, "snippet": program}


FORMATS = [("onnx", True), ("openvino", True), *((name, False) for name in LANGUAGES["python"].templates)]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "end_to_end"), [(name, whole) for name, whole in FORMATS if name != "coreml"])
def test_python_labels_images_as_predict_does(name, end_to_end, exports, network, images, tmp_path):
    exported = exports(name, end_to_end)
    command = [sys.executable, program_for(exported, "python", tmp_path, ".py")]
    check_labels(network, command, exported, sorted(images.glob("*.png" if end_to_end else "fit_*.png")))
    check_wrong_sample(command, exported, tmp_path)


@pytest.mark.slow
def test_python_knows_its_file_and_refuses_other_images(exports, network, images, tmp_path):
    whole, fixed = exports("onnx", True), exports("onnx", False)
    command = [sys.executable, program_for(whole, "python", tmp_path, ".py")]
    assert outcome(command) == (0, ["self-check passed"], "")
    deep = tmp_path / "deep.png"
    Image.fromarray(np.full((SIDE, SIDE), 40000, np.uint16)).save(deep)
    check_refused(command, whole, deep, "8 bits per value")
    check_labels(network, command, whole, [turned(images, tmp_path)])
    command = [sys.executable, program_for(fixed, "python", tmp_path, ".py")]
    check_refused(command, fixed, images / "any_60.png", "resize it to 32 x 32 pixels, or export with --end-to-end")


def turned(images: Path, folder: Path) -> Path:
    """A JPEG that is stored on its side."""
    orientation = Image.Exif()
    orientation[0x0112] = 6
    with Image.open(images / "any_60.png") as image:
        light = Image.new("RGB", image.size, "white")
        light.paste(image.crop((0, 0, 20, image.height)))
        light.save(folder / "turned.jpg", quality=95, exif=orientation)
    return folder / "turned.jpg"


@pytest.fixture(scope="session")
def npm(tmp_path_factory) -> Path:
    """A folder `node_modules` with what the JavaScript program needs."""
    if not (shutil.which("node") and shutil.which("npm")):
        pytest.skip("Node.js is not installed")
    folder = CACHE / "npm"
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(CACHE / "npm.lock"):
        if not (folder / "done").exists():
            command = ["npm", "install", "--ignore-scripts", "--no-audit", "--no-fund", "onnxruntime-node", "sharp"]
            done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120)
            if done.returncode:
                pytest.skip(f"npm cannot install: {done.stderr.strip()[-200:]}")
            (folder / "done").touch()
    return folder / "node_modules"


@pytest.mark.slow
def test_javascript_labels_images_as_predict_does(npm, exports, network, images, tmp_path):
    exported = exports("onnx", True)
    (tmp_path / "node_modules").symlink_to(npm)
    command = ["node", program_for(exported, "javascript", tmp_path, ".mjs")]
    check_labels(network, command, exported, [*sorted(images.glob("*.png")), turned(images, tmp_path)])
    check_wrong_sample(command, exported, tmp_path)
    deep = tmp_path / "deep.png"
    Image.fromarray(np.full((SIDE, SIDE), 40000, np.uint16)).save(deep)
    check_refused(command, exported, deep, "8 bits per value")
    check_refused(command, exported, tmp_path / "missing.png", "missing")


def check_objects(command, exported: Path, files: list[Path]) -> None:
    """The program passes its self-check, and prints the objects that `Predictor` finds."""
    code, [first, *lines], err = outcome(command, exported, *files)
    assert (code, first) == (0, "self-check passed"), err
    predictor = Predictor(exported, device="cpu", threads=1)
    expected = [
        (f"{file}: {label}", [score, *box])
        for file, prediction in zip(files, predictor(files), strict=True)
        for label, score, box in zip(prediction.labels, prediction.scores, prediction.boxes, strict=True)
    ]
    assert len(lines) == len(expected) > 0
    for line, (label, numbers) in zip(lines, expected, strict=True):
        found = re.fullmatch(rf"{re.escape(label)} ([\d.]+) at ([\d.]+) ([\d.]+) ([\d.]+) ([\d.]+)", line)
        assert found, (line, label)
        assert np.allclose([float(number) for number in found.groups()], numbers, rtol=0, atol=[0.01, 2, 2, 2, 2])


@pytest.mark.slow
@pytest.mark.parametrize("name", ["onnx", "openvino"])
def test_python_finds_the_objects_that_predict_finds(name, exports, images, tmp_path):
    exported = exports(name, True, "detect")
    command = [sys.executable, program_for(exported, "python", tmp_path, ".py")]
    check_objects(command, exported, [images / "any_60.png", images / "any_rgba.png"])
    check_wrong_sample(command, exported, tmp_path)


@pytest.mark.slow
def test_javascript_finds_the_objects_that_predict_finds(npm, exports, images, tmp_path):
    exported = exports("onnx", True, "detect")
    (tmp_path / "node_modules").symlink_to(npm)
    command = ["node", program_for(exported, "javascript", tmp_path, ".mjs")]
    check_objects(command, exported, [images / "any_60.png", images / "any_rgba.png"])
    check_wrong_sample(command, exported, tmp_path)


def compiles(includes: str, *flags: str) -> bool:
    command = ["g++", "-std=c++17", "-fsyntax-only", "-x", "c++", "-", *flags]
    return not subprocess.run(command, input=includes, capture_output=True, text=True, timeout=120).returncode


@pytest.fixture(scope="session")
def headers() -> list[str]:
    """Flags of g++ for nlohmann/json and stb_image: those of the system, or from Debian's packages."""
    if not shutil.which("g++"):
        pytest.skip("g++ is not installed")
    includes = "#include <nlohmann/json_fwd.hpp>\n#include <stb/stb_image.h>\n"
    if compiles(includes):
        return []
    folder = CACHE / "debian"
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(CACHE / "debian.lock"):
        if not (folder / "usr").exists():
            names = ["libstb-dev", "nlohmann-json3-dev"]
            if (
                not shutil.which("apt-get")
                or subprocess.run(
                    ["apt-get", "download", *names], cwd=folder, capture_output=True, timeout=120
                ).returncode
            ):
                pytest.skip("nlohmann/json and stb_image are not installed")
            for package in folder.glob("*.deb"):
                subprocess.run(["dpkg", "-x", package, folder], check=True)
    return [f"-I{folder / 'usr' / 'include'}"]


def library(name: str, folder: Path) -> list[str]:
    """Flags of g++ for a runtime: headers, and the library of its Python package."""
    package = Path(importlib.util.find_spec({"onnx": "onnxruntime", "openvino": "openvino"}[name]).origin).parent
    if name == "onnx" and not compiles("#include <onnxruntime_cxx_api.h>"):
        pytest.skip("ONNX Runtime's headers are not installed; g++ also looks for them in CPLUS_INCLUDE_PATH")
    where, file = {"onnx": ("capi", "libonnxruntime.so.*"), "openvino": ("libs", "libopenvino.so.*")}[name]
    found = sorted((package / where).glob(file))
    if not found:
        pytest.skip(f"the Python package of {name} has no library for C++")
    links = folder / "libraries"
    links.mkdir()
    (links / file.removesuffix(".*")).symlink_to(found[0])
    if name == "onnx":
        (links / "libonnxruntime.so.1").symlink_to(found[0])
    paths = [f"-Wl,-rpath,{path}" for path in (links, package / where)]
    return [f"-I{package / 'include'}", f"-L{links}", f"-l{file.removesuffix('.so.*').removeprefix('lib')}", *paths]


@pytest.mark.slow
@pytest.mark.parametrize("name", LANGUAGES["cpp"].templates)
def test_cpp_labels_images_as_predict_does(name, headers, exports, network, images, tmp_path):
    exported = exports(name, True)
    program = program_for(exported, "cpp", tmp_path, ".cpp")
    command = ["g++", "-std=c++17", program, "-o", tmp_path / "reader", *headers, *library(name, tmp_path)]
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    check_labels(network, [tmp_path / "reader"], exported, sorted(images.glob("*.png")))
    check_wrong_sample([tmp_path / "reader"], exported, tmp_path)
    deep = tmp_path / "deep.png"
    Image.fromarray(np.full((SIDE, SIDE), 40000, np.uint16)).save(deep)
    check_refused([tmp_path / "reader"], exported, deep, "8-bit")
    check_refused([tmp_path / "reader"], exported, tmp_path / "missing.png", "missing.png")


PROGRAMS = {
    **{"python": "reader.py", "javascript": "reader.mjs", "cpp": "reader.cpp"},
    **{"csharp": "Reader.cs", "swift": "Reader.swift", "kotlin": "Reader.kt"},
}


@pytest.mark.parametrize("language", LANGUAGES)
def test_the_examples_are_what_the_command_prints(language):
    whole = "onnx" in LANGUAGES[language].templates
    exported = described("onnx", "best.onnx", end_to_end=True) if whole else described("coreml", "best.mlpackage")
    assert (EXAMPLES / PROGRAMS[language]).read_text(encoding="utf-8") == snippet(language, exported)
