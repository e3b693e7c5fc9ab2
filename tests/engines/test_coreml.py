"""The `.mlpackage` format. Core ML itself needs a Mac: here the saved program is computed operation by operation."""

import shutil
import sys

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import shvit
from conftest import plain_outputs, random_images, tiny_architecture, trained_looking
from shvit import engines
from shvit.data.transforms import Preprocess
from shvit.engines import base
from shvit.engines.base import ExportJob, Shapes
from shvit.engines.coreml import CoreMLEngine
from shvit.engines.exported import EngineError, ExportError
from shvit.model.architecture import Architecture
from shvit.modelfile import ModelFile
from shvit.suppress import quiet

pytest.importorskip("coremltools.proto", exc_type=ImportError)


def exported(model_file, path, precision="fp16", **shapes):
    CoreMLEngine.export(ExportJob(model_file, path, precision, Shapes(**shapes)))
    return path


@pytest.fixture(scope="module")
def model_file():
    torch.manual_seed(0)
    return ModelFile(
        trained_looking(tiny_architecture(3).build()),
        ("Bär 🐻", "犬", "a b\n"),
        Preprocess(48, 0.9, "bilinear", (0.1, 0.2, 0.3), (0.5, 0.6, 0.7)),
        metrics={"top1": 0.5},
        provenance={"recipe": {"epochs": 3}},
    )


@pytest.fixture(scope="module")
def path(model_file, tmp_path_factory):
    return exported(model_file, tmp_path_factory.mktemp("whole") / "m.mlpackage")


@pytest.fixture
def copy(path, tmp_path):
    return shutil.copytree(path, tmp_path / "m.mlpackage")


def test_facts_come_back(model_file, path):
    facts = CoreMLEngine.read(path)
    assert (facts.engine, facts.precision, facts.task) == ("coreml", "fp16", "classify")
    assert facts.classes == model_file.classes
    assert facts.preprocess == model_file.preprocess
    assert facts.metrics == {"top1": 0.5}
    assert facts.provenance["recipe"] == {"epochs": 3}
    assert Architecture.from_dict(facts.provenance["architecture"]) == model_file.architecture


def test_the_specification(path):
    assert CoreMLEngine.specification(path) == {
        "inputs": {"image": "image 48x48 RGB"},
        "outputs": {"classLabel": "string", "classLabel_probs": "dictionary", "logits": "array 1x3 FLOAT32"},
        "label": "classLabel",
        "probabilities": "classLabel_probs",
        "classes": ["Bär 🐻", "犬", "a b\n"],
        "precision": ["FLOAT16"],
        "specification": 6,
    }


def pad_and_convolve(x, weight, bias, strides, pad_type, pad, dilations, groups):
    top, bottom, left, right = pad if pad_type == "custom" else (0, 0, 0, 0)
    assert pad_type in ("custom", "valid")
    x = F.pad(x, (left, right, top, bottom))
    return F.conv2d(x, weight, bias, tuple(strides), dilation=tuple(dilations), groups=int(groups))


def matmul(x, y, transpose_x, transpose_y):
    return (x.mT if transpose_x else x) @ (y.mT if transpose_y else y)


OPERATIONS = {
    "add": lambda x, y: x + y,
    "cast": lambda x, dtype: x,
    "classify": lambda probabilities, classes: probabilities,
    "concat": lambda values, axis, interleave: torch.cat(values, axis),
    "conv": pad_and_convolve,
    "expand_dims": lambda x, axes: x[(..., *[None] * len(axes))] if tuple(axes) == (-2, -1) else x.unsqueeze(*axes),
    "linear": lambda x, weight, bias: F.linear(x, weight, bias),
    "matmul": matmul,
    "mul": lambda x, y: x * y,
    "real_div": lambda x, y: x / y,
    "reduce_mean": lambda x, axes, keep_dims: x.mean(tuple(axes), bool(keep_dims)),
    "relu": lambda x: x.relu(),
    "reshape": lambda x, shape: x.reshape(tuple(shape)),
    "rsqrt": lambda x, epsilon: (x + epsilon).rsqrt(),
    "sigmoid": lambda x: x.sigmoid(),
    "softmax": lambda x, axis: x.softmax(int(axis)),
    "split": lambda x, split_sizes, axis: x.split(split_sizes.tolist(), int(axis)),
    "sub": lambda x, y: x - y,
    "transpose": lambda x, perm: x.permute(tuple(perm)),
}


def computed(path, image):
    """Logits and probabilities of the saved program and weights, as Apple's documentation has each operation."""
    with quiet():
        import coremltools as ct
        from coremltools.converters.mil.frontend.milproto.load import load

        model = ct.models.MLModel(str(path), skip_model_load=True)
        program = load(model.get_spec(), model.get_spec().specificationVersion, model.weights_dir)
    values = {"image": image.float()}

    def value(variable):
        if isinstance(variable, list | tuple):
            return [value(part) for part in variable]
        if variable.name in values:
            return values[variable.name]
        constant = variable.val
        return (
            torch.from_numpy(constant).float()
            if getattr(constant, "ndim", 0) and constant.dtype.kind == "f"
            else constant
        )

    for operation in program.functions["main"].operations:
        if operation.op_type != "const":
            inputs = {key: value(item) for key, item in operation.inputs.items() if item is not None}
            outputs = OPERATIONS[operation.op_type](**inputs)
            outputs = [outputs] if isinstance(outputs, Tensor) else outputs
            values |= zip([output.name for output in operation.outputs], outputs, strict=False)
    return values["logits"], values["classLabel"]


@pytest.mark.parametrize(("precision", "bound"), [("fp16", 3e-2), ("fp32", 1e-5)])
@pytest.mark.parametrize("name", ["tiny", pytest.param("shvit_s1", marks=pytest.mark.slow)])
def test_the_program_computes_what_pytorch_does(tmp_path, name, precision, bound):
    architecture = tiny_architecture(5) if name == "tiny" else Architecture(name, 5)
    model_file = ModelFile(trained_looking(architecture.build()), tuple("abcde"), Preprocess(64))
    exported(model_file, tmp_path / "m.mlpackage", precision)
    images = random_images(2, 64)
    expected = plain_outputs(model_file, images)
    results = [computed(tmp_path / "m.mlpackage", image[None]) for image in images]
    logits, probabilities = (torch.cat(parts) for parts in zip(*results, strict=True))
    assert (logits - expected).abs().max() < bound * expected.abs().max()
    assert (probabilities - expected.softmax(1)).abs().max() < bound


def unusable(path):
    with pytest.raises(shvit.InputError) as caught:
        CoreMLEngine.read(path)
    message = str(caught.value)
    assert str(path) in message
    assert "\n" not in message
    return message


@pytest.mark.parametrize("name", ["Manifest.json", "model.mlmodel", "weight.bin"])
@pytest.mark.parametrize("keep", [0, 0.5])
def test_truncated(copy, name, keep):
    [file] = copy.rglob(name)
    file.write_bytes(file.read_bytes()[: int(file.stat().st_size * keep)])
    with pytest.raises(shvit.InputError, match=str(copy)):
        shvit.load(copy)


@pytest.mark.parametrize("name", ["Manifest.json", "model.mlmodel", "weight.bin"])
def test_incomplete(copy, name):
    [file] = copy.rglob(name)
    file.unlink()
    with pytest.raises(shvit.InputError, match=str(copy)):
        shvit.load(copy)


def test_foreign(copy, tmp_path):
    import coremltools as ct

    [file] = copy.rglob("model.mlmodel")
    specification = ct.utils.load_spec(str(copy))
    del specification.description.metadata.userDefined["shvit"]
    file.write_bytes(specification.SerializeToString())
    assert "was not written by shvit export" in unusable(copy)
    (tmp_path / "text").write_text("hello")
    assert "is not an .mlpackage" in unusable(tmp_path / "text")
    assert "is not an .mlpackage" in unusable(tmp_path)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["m.mlpackage", "text"]  # looking writes nothing


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda description: setattr(description.input[0].type.imageType, "width", 32), "its network takes 1×3×48×32"),
        (lambda description: setattr(description.output[2], "name", "more"), "and return logits"),
        (lambda description: setattr(description, "predictedFeatureName", "logits"), "found label logits, expected"),
    ],
)
def test_a_specification_that_is_not_what_it_should_be(copy, change, reason):
    import coremltools as ct

    [file] = copy.rglob("model.mlmodel")
    specification = ct.utils.load_spec(str(copy))
    change(specification.description)
    file.write_bytes(specification.SerializeToString())
    with pytest.raises((ExportError, EngineError), match=reason):
        CoreMLEngine.specification(copy)


def test_classes_of_one_name_are_kept_apart(model_file, tmp_path):
    path = tmp_path / "m.mlpackage"
    exported(ModelFile(model_file.model, ("crane", "b", "crane"), model_file.preprocess), path)
    assert CoreMLEngine.specification(path)["classes"] == ["crane (0)", "b", "crane (2)"]
    assert CoreMLEngine.read(path).classes == ("crane", "b", "crane")


def test_what_is_refused(model_file, tmp_path, monkeypatch):
    path = tmp_path / "m.mlpackage"
    with pytest.raises(EngineError, match=r"\.mlpackage files have no precision 'int8': allowed are fp16, fp32"):
        exported(model_file, path, "int8")
    for shapes in ({"batch": 2}, {"dynamic_size": True}):
        with pytest.raises(EngineError, match="one image of one size"):
            exported(model_file, path, **shapes)
    with pytest.raises(EngineError, match=r"got '.udcff'"):
        exported(ModelFile(model_file.model, ("a", "b", "\udcff"), model_file.preprocess), path)
    monkeypatch.setattr(base, "find_spec", lambda name: None)
    with pytest.raises(EngineError, match=r"coremltools not installed: pip install 'shvit\[coreml\]'"):
        exported(model_file, path)
    assert not path.exists()


@pytest.mark.skipif(sys.platform == "darwin", reason="it runs on macOS")
def test_it_runs_on_macos_only(model_file, path):
    for model in (model_file, CoreMLEngine.read(path)):
        with pytest.raises(EngineError, match="coreml: runs on macOS only"):
            engines.load(model, "coreml", device="cpu")
