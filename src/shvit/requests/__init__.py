"""The options of the verbs, as frozen dataclasses. Field docstrings are the flags' help. Imports no torch."""

from collections.abc import Sequence
from typing import Annotated, Any, TypeVar

from cyclopts import Parameter, Token, convert

from ..errors import notice

T = TypeVar("T")
Many = Annotated[tuple[T, ...], Parameter(consume_multiple=True)]
"""Type of a flag with several values: `--flag A B` or `--flag A --flag B`."""
ModelName = Annotated[str, Parameter(help="A model file, or published weights such as shvit_s1.in1k.")]
EngineName = Annotated[str, Parameter(help="auto, cuda, onnx, openvino, torch, executorch, litert or coreml.")]
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
OLD_FITS = {"squash": "stretch"}
"""Former values of fit, in flags and in files, with the current values."""
Workers = Annotated[int, Parameter(help="Worker processes that decode images. 0: decode in the main process.")]


def with_current_fit(kind: Any, tokens: Sequence[Token]) -> Any:
    """Convert the value of `--fit`, also from an old name. Cyclopts calls this."""
    for old in (token.value for token in tokens if token.value in OLD_FITS):
        notice(f"fit {old} has been renamed to {OLD_FITS[old]}; the old name will be removed in the next release")
    return convert(kind, [token.evolve(value=OLD_FITS.get(token.value, token.value)) for token in tokens])
