"""The options of the verbs, as frozen dataclasses. Field docstrings are the flags' help. Imports no torch."""

from typing import Annotated, TypeVar

from cyclopts import Parameter

T = TypeVar("T")
Many = Annotated[tuple[T, ...], Parameter(consume_multiple=True)]
"""Type of a flag with several values: `--flag A B` or `--flag A --flag B`."""
ModelName = Annotated[str, Parameter(help="A model file, or published weights such as shvit_s1.in1k.")]
EngineName = Annotated[str, Parameter(help="auto, cuda, onnx, openvino, torch, executorch or coreml.")]
Precision = Annotated[
    str, Parameter(help="auto, fp32, bf16 (if supported) or fp16 (only on GPUs). An int8 export always runs in int8.")
]
Device = Annotated[str, Parameter(help="auto, cpu, cuda, cuda:1 or mps.")]
RawCells = Annotated[
    bool,
    Parameter(
        help="Do not escape CSV cells. By default, cells that spreadsheets run as formulas get a leading apostrophe."
    ),
]
Workers = Annotated[int, Parameter(help="Worker processes that decode images. 0: decode in the main process.")]
