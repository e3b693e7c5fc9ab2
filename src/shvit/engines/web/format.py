"""The format `web`: a folder with a page, the model as an end-to-end ONNX file, and ONNX Runtime for browsers."""

import shutil
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

import numpy as np
from PIL import Image

from ..base import ExportJob, Precisions, Runnable
from ..exported import EngineError, Exported, Sample, files_of, overwrite, seal
from ..onnx import OnnxEngine
from .runtime import copy_runtime

PAGE = Path(__file__).with_name("page")
"""The files of the page. They are copied as they are."""
MODEL, FACTS, SAMPLE, RUNTIME = "model.onnx", "model.json", "sample.png", "ort"
"""Names in the folder: the model; the part of its metadata that the page needs and cannot read from the model; the
sample's image."""
PRECISIONS = ("int8", "fp32")
LARGE = 1024
"""Weights with fewer values stay in fp32 in int8 files."""


class WebFormat(OnnxEngine):
    """Writes a folder for a static web server. To check the folder, this engine runs its ONNX file."""

    name: ClassVar[str] = "web"
    suffix: ClassVar[str] = ".web"
    own_files_only: ClassVar[bool] = True
    always_end_to_end: ClassVar[bool] = True
    runs: ClassVar[Precisions] = dict.fromkeys(OnnxEngine.writes, PRECISIONS)
    writes: ClassVar[Precisions] = runs

    def __init__(self, model: Runnable, precision: str, device: str, threads: int | None = None) -> None:
        assert isinstance(model, Exported)
        super().__init__(replace(model, path=model.path / MODEL), precision, device, threads)

    @classmethod
    def write(cls, job: ExportJob, facts: Exported) -> None:
        assert job.end_to_end
        job.path.mkdir()
        copy_runtime(job.path / RUNTIME)
        super().write(replace(job, path=job.path / MODEL), facts)
        if not (job.path / MODEL).exists():  # no int8 network is accurate enough
            shutil.rmtree(job.path)
            return
        if job.precision == "int8":
            store_in_half(job.path / MODEL)
        shown = replace(facts, metrics={}, provenance={"architecture": facts.provenance["architecture"]})
        (job.path / FACTS).write_text(shown.to_json(), encoding="utf-8")
        for part in PAGE.iterdir():
            if part.is_file():
                shutil.copyfile(part, job.path / part.name)
        if job.sample_pixels is not None:
            Image.fromarray(job.sample_pixels).save(job.path / SAMPLE)

    @classmethod
    def fill_sample(cls, path: Path, unknown: Sample, known: Sample) -> None:
        filled = [overwrite(part, unknown.scores_text, known.scores_text) for part in files_of(path)]
        assert sum(filled) == 2, "the scores of the sample are in the model and in its metadata"
        seal(path)

    @classmethod
    def read(cls, path: Path) -> Exported:
        if not (path / MODEL).is_file():
            raise EngineError(f"{path} is not a web folder written by shvit export: it has no {MODEL}")
        exported = replace(super().read(path / MODEL), path=path)
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
        if weights.dtype == np.float32 and weights.size >= LARGE and np.abs(weights).max() < np.finfo(np.float16).max:
            name = tensor.name
            tensor.CopyFrom(from_array(weights.astype(np.float16), f"{name}/half"))
            casts.append(
                onnx.helper.make_node("Cast", [f"{name}/half"], [name], f"{name}/cast", to=onnx.TensorProto.FLOAT)
            )
    nodes = [*casts, *model.graph.node]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    path.write_bytes(model.SerializeToString())
