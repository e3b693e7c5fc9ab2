"""The format `web`: a folder with a page, the model as an end-to-end ONNX file, and ONNX Runtime for browsers."""

import shutil
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

import numpy as np
from PIL import Image

from ..base import ExportJob, Precisions, Runnable
from ..exported import EngineError, ExpectedSample, Exported, files_of, overwrite, seal
from ..onnx import OnnxEngine
from .runtime import copy_runtime

WEB_PAGE = Path(__file__).with_name("page")
"""The files of the page. They are copied as they are."""
WEB_MODEL, WEB_FACTS, WEB_SAMPLE, WEB_RUNTIME = "model.onnx", "model.json", "sample.png", "ort"
"""Names in the folder: the model; the part of its metadata that the page needs and cannot read from the model; the
sample's image."""
WEB_PRECISIONS = ("int8", "fp32")
HALVED_SIZE = 1024
"""In int8 files, weights that are not quantized and have at least this many values are stored in fp16."""


class WebFormat(OnnxEngine):
    """Writes a folder for a static web server. To check the folder, this engine runs its ONNX file."""

    name: ClassVar[str] = "web"
    suffix: ClassVar[str] = ".web"
    own_files_only: ClassVar[bool] = True
    always_end_to_end: ClassVar[bool] = True
    runs: ClassVar[Precisions] = dict.fromkeys(OnnxEngine.writes, WEB_PRECISIONS)
    writes: ClassVar[Precisions] = runs

    def __init__(self, model: Runnable, precision: str, device: str, threads: int | None = None) -> None:
        assert isinstance(model, Exported)
        super().__init__(replace(model, path=model.path / WEB_MODEL), precision, device, threads)

    @classmethod
    def write(cls, job: ExportJob, facts: Exported) -> None:
        assert job.end_to_end
        job.path.mkdir()
        copy_runtime(job.path / WEB_RUNTIME)
        super().write(replace(job, path=job.path / WEB_MODEL), facts)
        if not (job.path / WEB_MODEL).exists():  # no int8 network is accurate enough
            shutil.rmtree(job.path)
            return
        if job.precision == "int8":
            store_in_half(job.path / WEB_MODEL)
        shown = replace(facts, metrics={}, provenance={"architecture": facts.provenance["architecture"]})
        (job.path / WEB_FACTS).write_text(shown.to_json(), encoding="utf-8")
        for part in WEB_PAGE.iterdir():
            if part.is_file():
                shutil.copyfile(part, job.path / part.name)
        if job.sample_pixels is not None:
            Image.fromarray(job.sample_pixels).save(job.path / WEB_SAMPLE)

    @classmethod
    def fill_sample(cls, path: Path, unknown: ExpectedSample, known: ExpectedSample) -> None:
        filled = [overwrite(part, unknown.scores_text, known.scores_text) for part in files_of(path)]
        assert sum(filled) == 2, "the scores of the sample are in the model and in its metadata"
        seal(path)

    @classmethod
    def read(cls, path: Path) -> Exported:
        if not (path / WEB_MODEL).is_file():
            raise EngineError(f"{path} is not a web folder written by shvit export: it has no {WEB_MODEL}")
        exported = replace(super().read(path / WEB_MODEL), path=path)
        if not exported.end_to_end:
            raise EngineError(f"{path} is not usable: its network does not take one image of any size")
        return exported


def store_in_half(path: Path) -> None:
    """Store the weights that are not quantized in fp16, which is half as much to download. They are converted to fp32
    when the model is loaded.
    """
    import onnx
    from onnx.numpy_helper import from_array, to_array

    model = onnx.load(path)
    casts = []
    for tensor in model.graph.initializer:
        weights = to_array(tensor)
        if (
            weights.dtype == np.float32
            and weights.size >= HALVED_SIZE
            and np.abs(weights).max() < np.finfo(np.float16).max
        ):
            name = tensor.name
            tensor.CopyFrom(from_array(weights.astype(np.float16), f"{name}/half"))
            casts.append(
                onnx.helper.make_node("Cast", [f"{name}/half"], [name], f"{name}/cast", to=onnx.TensorProto.FLOAT)
            )
    nodes = [*casts, *model.graph.node]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    path.write_bytes(model.SerializeToString())
