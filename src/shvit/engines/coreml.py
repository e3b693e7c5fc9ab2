"""Core ML for Apple's devices. A `.mlpackage` takes an image and returns class labels. shvit runs it only on macOS."""

import math
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Lock
from typing import Any, ClassVar

import torch
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor, nn

from ..classnames import unique_names
from ..data.transforms import Preprocess
from ..header import parsed
from ..model.architecture import DETECTORS
from ..modelfile import HEADER_KEY, ModelFile
from ..suppress import quiet
from ..tasks import detector_of, kind_of
from .base import Engine, ExportJob, Precisions, Runnable
from .decompose import MEANS
from .exported import EngineError, Exported, ExportError, check_interface, unreadable
from .portable import portable

IMAGE, LABEL, PROBABILITIES = "image", "classLabel", "classLabel_probs"
CLASSIFIER = "classify"
"""Core ML's operation that turns probabilities into a label. It is unrelated to the task `classify`."""
PRECISION_NAMES = {"fp16": "FLOAT16", "fp32": "FLOAT32"}
"""Names of the precisions in coremltools."""


class CoreMLEngine(Engine):
    """Runs a `.mlpackage` on macOS. On device `cpu`, it uses only the CPU; on `mps`, Core ML chooses the hardware.

    Running files needs a Mac and has not been tested.
    """

    name: ClassVar[str] = "coreml"
    suffix: ClassVar[str] = ".mlpackage"
    extra: ClassVar[str | None] = "coreml"
    modules: ClassVar[tuple[str, ...]] = ("coremltools",)
    runs: ClassVar[Precisions] = dict.fromkeys((None, "light", "retinanet"), ("fp16", "fp32"))
    writes: ClassVar[Precisions] = runs

    def __init__(self, model: Runnable, precision: str, device: str, threads: int | None = None) -> None:
        if threads is not None:
            raise EngineError(f"Core ML chooses the number of threads itself: leave out --threads, got {threads}")
        self.precision = precision
        self._outputs = kind_of(model).output
        self._lock = Lock()
        """Held during each call. Apple's documentation says that only one thread at a time may use a model."""
        ct = _coremltools()
        units = ct.ComputeUnit.CPU_ONLY if device == "cpu" else ct.ComputeUnit.ALL
        with TemporaryDirectory() as folder:
            path = model.path if isinstance(model, Exported) else Path(folder, "model.mlpackage")
            if isinstance(model, ModelFile):
                self.export(ExportJob(model, path, precision))
            self._model = ct.models.MLModel(str(path), compute_units=units)

    @classmethod
    def unavailable(cls, device: str) -> str | None:
        if sys.platform != "darwin":
            return "runs on macOS only"
        return cls.absent() if device in ("cpu", "mps") else f"does not run on {device}"

    @classmethod
    def write(cls, job: ExportJob, facts: Exported) -> None:
        """Write a file that takes one image and returns its label, the probability of each class, and the logits.

        The file of a detector returns the detector's raw outputs. Core ML returns probabilities by class name.
        Therefore, the index of the class is appended to names that several classes share.
        """
        if job.shapes.dynamic_size or job.shapes.batch not in (None, 1):
            raise EngineError(f"{cls.suffix} files take one image of one size: omit --batch-size and --dynamic-size")
        labels_images = kind_of(facts).labels_images
        outside = [label for label in facts.classes if label.encode(errors="ignore").decode() != label]
        if labels_images and outside:
            raise EngineError(f"Core ML needs class names in UTF-8, got {outside[0]!r}")
        with quiet():
            model = _convert(job.model_file, job.precision)
            what = "classification into" if labels_images else "detection of"
            model.short_description = f"{job.model_file.architecture.name}: {what} {len(facts.classes)} classes"
            model.input_description[IMAGE] = _input_description(facts.preprocess)
            model.user_defined_metadata[HEADER_KEY] = facts.to_json()
            model.save(str(job.path))

    @classmethod
    def read(cls, path: Path) -> Exported:
        description = _specification(path).description
        exported = Exported.from_json(path, dict(description.metadata.userDefined).get(HEADER_KEY))
        outputs = {end.name: list(end.type.multiArrayType.shape) for end in description.output}
        name = kind_of(exported).output
        if len(description.input) != 1 or name not in outputs:
            raise EngineError(f"{path} does not take one image and return {name}")
        image = description.input[0].type.imageType
        check_interface(exported, (1, 3, image.height, image.width), outputs[name])
        return exported

    @classmethod
    def specification(cls, path: Path) -> dict[str, Any]:
        facts, specification = cls.read(path), _specification(path)
        found = _declared(specification)
        for key, value in _expected(facts).items():
            if found[key] != value:
                raise ExportError(f"{path} does not match its metadata: found {key} {found[key]}, expected {value}")
        return {**found, "specification": specification.specificationVersion}

    def __call__(self, images: UInt8[Tensor, "b 3 h w"]) -> Float[Tensor, "b classes"]:
        pictures = [Image.fromarray(pixels) for pixels in images.permute(0, 2, 3, 1).numpy()]
        with self._lock:
            outputs = [self._model.predict({IMAGE: picture})[self._outputs] for picture in pictures]
        return torch.cat([torch.from_numpy(output) for output in outputs])


def _declared(specification: Any) -> dict[str, Any]:
    """The inputs, outputs, class labels and precision of a specification."""
    description, main = specification.description, specification.mlProgram.functions["main"]
    operations = main.block_specializations[main.opset].operations
    labels = [
        label
        for operation in operations
        if operation.type == CLASSIFIER
        for label in operation.inputs["classes"].arguments[0].value.immediateValue.list.values
    ]
    convolutions = [operation.outputs[0].type.tensorType for operation in operations if operation.type == "conv"]
    return {
        "inputs": {feature.name: _described(feature.type) for feature in description.input},
        "outputs": {feature.name: _described(feature.type) for feature in description.output},
        "label": description.predictedFeatureName,
        "probabilities": description.predictedProbabilitiesName,
        "classes": [label.immediateValue.tensor.strings.values[0] for label in labels],
        "precision": sorted({_name(tensor, "dataType") for tensor in convolutions}),
    }


def _expected(facts: Exported) -> dict[str, Any]:
    """What `_declared` must return for a file with these facts."""
    task, side, classes = kind_of(facts), facts.preprocess.image_size, len(facts.classes)
    shape = str(classes)
    if (detector := detector_of(facts)) is not None:
        shape = f"{DETECTORS[detector].rows_at(side, classes)}x{DETECTORS[detector].output_width(classes)}"
    expected: dict[str, Any] = {
        "inputs": {IMAGE: f"image {side}x{side} RGB"},
        "outputs": {task.output: f"array 1x{shape} FLOAT32"},
        "precision": [PRECISION_NAMES[facts.precision]],
    }
    if task.labels_images:
        expected["outputs"] |= {LABEL: "string", PROBABILITIES: "dictionary"}
        expected |= {"label": LABEL, "probabilities": PROBABILITIES, "classes": list(unique_names(facts.classes))}
    return expected


def _input_description(preprocess: Preprocess) -> str:
    """The preprocessing that the file expects, as text for its documentation."""
    side, resized = preprocess.image_size, math.floor(preprocess.image_size / preprocess.crop)
    if preprocess.fit == "whole":
        return f"A whole image whose longer side was resized to {side} pixels, in the upper left corner of a square"
    method = f"{preprocess.interpolation}, with antialiasing"
    if preprocess.fit == "stretch":
        return f"A whole image, resized to {side} x {side} pixels ({method})"
    if preprocess.fit == "letterbox":
        return f"A whole image whose longer side was resized to {side} pixels ({method}), in the center of a square"
    return (
        f"The central {side} x {side} pixels of an image whose shorter side was resized to {resized} pixels ({method})"
    )


def _described(kind: Any) -> str:
    """The type of a feature as text."""
    which = kind.WhichOneof("Type")
    if which == "imageType":
        image = kind.imageType
        return f"image {image.height}x{image.width} {_name(image, 'colorSpace')}"
    if which == "multiArrayType":
        array = kind.multiArrayType
        return f"array {'x'.join(map(str, array.shape))} {_name(array, 'dataType')}"
    return which.removesuffix("Type")


def _name(message: Any, field: str) -> str:
    """The name of an enum field's value in a protobuf message."""
    return message.DESCRIPTOR.fields_by_name[field].enum_type.values_by_number[getattr(message, field)].name


class _Classifier(nn.Module):
    """Returns the logits and the probabilities."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, pixels: Float[Tensor, "b 3 h w"]) -> tuple[Tensor, Tensor]:
        logits = self.network(pixels)
        return logits, logits.softmax(1)


def _convert(model_file: ModelFile, precision: str) -> Any:
    """The network as coremltools' `MLModel`."""
    ct, task, side = _coremltools(), kind_of(model_file), model_file.preprocess.image_size
    pixels, network = torch.zeros(1, 3, side, side), portable(model_file)
    whole = _Classifier(network) if task.labels_images else network
    program = torch.export.export(whole, (pixels,)).run_decompositions(MEANS)
    outputs, *probabilities = program.graph_signature.user_outputs
    labels = [ct.ClassifierConfig(list(unique_names(model_file.classes)), LABEL, name) for name in probabilities]
    model = ct.convert(
        program,
        inputs=[ct.ImageType(IMAGE, shape=pixels.shape, color_layout=ct.colorlayout.RGB)],
        classifier_config=labels[0] if labels else None,
        # coremltools 9.0 allows classifiers a second output only for this target, not for later ones
        minimum_deployment_target=ct.target.iOS15,
        compute_precision=getattr(ct.precision, PRECISION_NAMES[precision]),
        skip_model_load=True,
    )
    specification = model.get_spec()
    ct.utils.rename_feature(specification, outputs, task.output)
    return ct.models.MLModel(specification, weights_dir=model.weights_dir, skip_model_load=True)


def _specification(path: Path) -> Any:
    """The file's protobuf message."""
    ct = _coremltools()
    from google.protobuf.message import DecodeError

    if not (path / "Manifest.json").is_file():
        raise EngineError(f"{path} is not an .mlpackage: it must be a folder with a Manifest.json")
    errors = (RuntimeError, OSError, DecodeError, ValueError, KeyError, TypeError, AttributeError)
    with unreadable(path, "is damaged", *errors):
        for entry in parsed((path / "Manifest.json").read_bytes())["itemInfoEntries"].values():
            if not (path / "Data" / entry["path"]).resolve().is_relative_to(path.resolve()):
                raise EngineError(f"{path} is refused: its part {entry['path']!r} lies outside the folder")
        return ct.utils.load_spec(str(path))


def _coremltools() -> Any:
    """Import coremltools without its warnings about versions and about features of macOS."""
    with quiet():
        import coremltools
    return coremltools
