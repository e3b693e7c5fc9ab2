"""Core ML, for Apple's devices: a `.mlpackage` with an image input and class labels. Written anywhere, run on macOS."""

import math
import sys
from collections.abc import Sequence
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
from ..errors import one_line
from ..header import parsed
from ..model.retinanet import RetinaNet
from ..modelfile import HEADER_KEY, ModelFile
from ..suppress import quiet
from .base import (
    OUTPUTS,
    EngineError,
    Exported,
    ExportError,
    Runnable,
    Shapes,
    check_ends,
    check_export,
    described,
    missing,
    seal,
)
from .decompose import MEANS
from .portable import portable

IMAGE, LABEL, PROBABILITIES, LOGITS = "image", "classLabel", "classLabel_probs", OUTPUTS["classify"]
DTYPES = {"fp16": "FLOAT16", "fp32": "FLOAT32"}
"""As coremltools names them."""


class CoreMLEngine:
    """Runs a `.mlpackage` on macOS: on the processor alone for `cpu`, wherever Core ML thinks best for `mps`.

    No test has run it: that needs a Mac.
    """

    name: ClassVar[str] = "coreml"
    suffix: ClassVar[str] = ".mlpackage"
    extra: ClassVar[str | None] = "coreml"
    concurrent: ClassVar[bool] = False

    def __init__(self, model: Runnable, precision: str, device: str, threads: int | None = None) -> None:
        if threads is not None:
            raise EngineError(f"Core ML chooses its threads itself: leave out threads, got {threads}")
        self.precision = precision
        self._outputs = OUTPUTS[model.task]
        self._lock = Lock()
        """Apple says of a model that it is for one thread at a time."""
        ct = _coremltools()
        units = ct.ComputeUnit.CPU_ONLY if device == "cpu" else ct.ComputeUnit.ALL
        with TemporaryDirectory() as folder:
            path = Path(folder, "model.mlpackage")
            if isinstance(model, Exported):
                path = model.path
            else:
                self.export(model, path, precision, Shapes())
            self._model = ct.models.MLModel(str(path), compute_units=units)

    @classmethod
    def absent(cls) -> str | None:
        return missing("coreml", "coremltools")

    @classmethod
    def unavailable(cls, device: str) -> str | None:
        if sys.platform != "darwin":
            return "runs on macOS only"
        return cls.absent() if device in ("cpu", "mps") else f"does not run on {device}"

    @classmethod
    def precisions(cls, device: str) -> tuple[str, ...]:
        return ("fp16", "fp32")

    @classmethod
    def exports(cls) -> tuple[str, ...]:
        return tuple(DTYPES)

    @classmethod
    def export(
        cls, model_file: ModelFile, path: Path, precision: str, shapes: Shapes, calibration: Sequence[Tensor] = ()
    ) -> None:
        """The file takes one image and gives its label, the probability of each class, and the logits; of a detector,
        its raw outputs. Classes that share a name get their index appended, since Core ML gives probabilities by label.

        Raises:
            EngineError: Core ML cannot have these class names or shapes.
        """
        check_export(cls, precision, "coremltools")
        if shapes.dynamic_size or shapes.batch not in (None, 1):
            raise EngineError(f"{cls.suffix} files take one image of one size")
        if model_file.task == "classify":
            _check_labels(model_file.classes)
        with quiet():
            model = _convert(model_file, precision)
            kinds = f"{len(model_file.classes)} classes"
            what = {"classify": f"which of {kinds}", "detect": f"boxes of {kinds}"}[model_file.task]
            model.short_description = f"{model_file.architecture.name}: {what}"
            model.input_description[IMAGE] = _input_description(model_file.preprocess)
            model.user_defined_metadata[HEADER_KEY] = described(model_file, path, cls.name, precision).to_json()
            model.save(str(path))
        seal(path)

    @classmethod
    def read(cls, path: Path) -> Exported:
        """Works on every system that coremltools is on."""
        description = _specification(path).description
        facts = description.metadata.userDefined
        if HEADER_KEY not in facts:
            raise EngineError(f"{path} was not written by shvit export")
        exported = Exported.from_json(path, facts[HEADER_KEY])
        outputs = {end.name: list(end.type.multiArrayType.shape) for end in description.output}
        name = OUTPUTS.get(exported.task)
        if len(description.input) != 1 or name not in outputs:
            raise EngineError(f"{path} does not take one image and give {name}")
        image = description.input[0].type.imageType
        check_ends(exported, (1, 3, image.height, image.width), outputs[name])
        return exported

    def __call__(self, images: UInt8[Tensor, "b 3 h w"]) -> Float[Tensor, "b classes"]:
        pictures = [Image.fromarray(pixels) for pixels in images.permute(0, 2, 3, 1).numpy()]
        with self._lock:
            outputs = [self._model.predict({IMAGE: picture})[self._outputs] for picture in pictures]
        return torch.cat([torch.from_numpy(output) for output in outputs])


def check(path: Path) -> dict[str, Any]:
    """What the specification promises, as plain data: the check that is left where Core ML cannot run.

    Raises:
        InputError: shvit did not write the file.
        ExportError: The file takes or gives something else than its own metadata says.
    """
    facts = CoreMLEngine.read(path)
    specification = _specification(path)
    description = specification.description
    main = specification.mlProgram.functions["main"]
    operations = main.block_specializations[main.opset].operations
    labels = [
        label
        for operation in operations
        if operation.type == "classify"
        for label in operation.inputs["classes"].arguments[0].value.immediateValue.list.values
    ]
    convolutions = [operation.outputs[0].type.tensorType for operation in operations if operation.type == "conv"]
    found = {
        "inputs": {feature.name: _described(feature.type) for feature in description.input},
        "outputs": {feature.name: _described(feature.type) for feature in description.output},
        "label": description.predictedFeatureName,
        "probabilities": description.predictedProbabilitiesName,
        "classes": [label.immediateValue.tensor.strings.values[0] for label in labels],
        "precision": sorted({_name(tensor, "dataType") for tensor in convolutions}),
    }
    side, classes = facts.preprocess.image_size, len(facts.classes)
    expected: dict[str, Any] = {
        "inputs": {IMAGE: f"image {side}x{side} RGB"},
        "precision": [DTYPES[facts.precision]],
    }
    if facts.task == "classify":
        expected |= {
            "outputs": {LABEL: "string", PROBABILITIES: "dictionary", LOGITS: f"array 1x{classes} FLOAT32"},
            "label": LABEL,
            "probabilities": PROBABILITIES,
            "classes": list(unique_names(facts.classes)),
        }
    else:
        expected["outputs"] = {OUTPUTS[facts.task]: f"array 1x{RetinaNet.anchors_at(side)}x{4 + classes} FLOAT32"}
    for key, value in expected.items():
        if found[key] != value:
            raise ExportError(f"{path} is not what it should be: its {key} are {found[key]}, expected {value}")
    return {**found, "specification": specification.specificationVersion}


def _input_description(preprocess: Preprocess) -> str:
    side, resized = preprocess.image_size, math.floor(preprocess.image_size / preprocess.crop)
    if preprocess.fit == "whole":
        return f"A whole image, its longer side made {side} pixels long, in the upper left corner of a square"
    if preprocess.fit == "squash":
        return f"A whole image, resized to {side} x {side} pixels ({preprocess.interpolation}, with antialiasing)"
    return (
        f"The middle {side} x {side} pixels of an image whose shorter side was made {resized} pixels long "
        f"({preprocess.interpolation}, with antialiasing)"
    )


def _described(kind: Any) -> str:
    """A type of a feature in a few words."""
    which = kind.WhichOneof("Type")
    if which == "imageType":
        image = kind.imageType
        return f"image {image.height}x{image.width} {_name(image, 'colorSpace')}"
    if which == "multiArrayType":
        array = kind.multiArrayType
        return f"array {'x'.join(map(str, array.shape))} {_name(array, 'dataType')}"
    return which.removesuffix("Type")


def _name(message: Any, field: str) -> str:
    """What the number in such a field of a protobuf message stands for."""
    return message.DESCRIPTOR.fields_by_name[field].enum_type.values_by_number[getattr(message, field)].name


class _Classifier(nn.Module):
    """The probabilities beside the logits."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(
        self, pixels: Float[Tensor, "b 3 h w"]
    ) -> tuple[Float[Tensor, "b classes"], Float[Tensor, "b classes"]]:
        logits = self.network(pixels)
        return logits, logits.softmax(1)


def _convert(model_file: ModelFile, precision: str) -> Any:
    """The network as coremltools' `MLModel`."""
    ct = _coremltools()
    side = model_file.preprocess.image_size
    pixels = torch.zeros(1, 3, side, side)
    classifies = model_file.task == "classify"
    network = portable(model_file)
    program = torch.export.export(_Classifier(network) if classifies else network, (pixels,)).run_decompositions(MEANS)
    outputs, *probabilities = program.graph_signature.user_outputs
    labels = [ct.ClassifierConfig(list(unique_names(model_file.classes)), LABEL, name) for name in probabilities]
    model = ct.convert(
        program,
        inputs=[ct.ImageType(IMAGE, shape=pixels.shape, color_layout=ct.colorlayout.RGB)],
        classifier_config=labels[0] if labels else None,
        # coremltools 9.0 gives classifiers a further output for this target only, not for later ones
        minimum_deployment_target=ct.target.iOS15,
        compute_precision=getattr(ct.precision, DTYPES[precision]),
        skip_model_load=True,
    )
    specification = model.get_spec()
    ct.utils.rename_feature(specification, outputs, OUTPUTS[model_file.task])
    return ct.models.MLModel(specification, weights_dir=model.weights_dir, skip_model_load=True)


def _check_labels(classes: Sequence[str]) -> None:
    """Core ML writes labels in UTF-8."""
    for label in classes:
        try:
            label.encode()
        except UnicodeEncodeError:
            raise EngineError(f"Core ML needs class names that UTF-8 can write, got {label!r}") from None


def _specification(path: Path) -> Any:
    """The file's protobuf message."""
    ct = _coremltools()
    from google.protobuf.message import DecodeError

    if not (path / "Manifest.json").is_file():
        raise EngineError(f"{path} is no .mlpackage: it is no folder with a Manifest.json")
    try:
        entries = parsed((path / "Manifest.json").read_bytes())["itemInfoEntries"].values()
        for entry in entries:
            if not (path / "Data" / entry["path"]).resolve().is_relative_to(path.resolve()):
                raise EngineError(f"{path} is refused: its part {entry['path']!r} lies elsewhere")
        return ct.utils.load_spec(str(path))
    except EngineError:
        raise
    except (RuntimeError, OSError, DecodeError, ValueError, KeyError, TypeError, AttributeError) as error:
        reason = one_line(error)
        raise EngineError(f"{path} is damaged ({reason})") from None


def _coremltools() -> Any:
    """The module, which complains when it is imported: of versions, and of what is on macOS only."""
    with quiet():
        import coremltools
    return coremltools
