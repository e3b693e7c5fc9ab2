"""What each verb takes: one frozen dataclass per verb, whose fields carry the help of the flags. Imports no torch."""

from typing import Annotated, TypeVar

from cyclopts import Parameter

ModelName = Annotated[str, Parameter(help="A model file, or published weights such as shvit_s1.in1k.")]
Engine = Annotated[str, Parameter(help="auto, or an engine by name: cuda, onnx, openvino, torch, executorch, coreml.")]
Precision = Annotated[
    str, Parameter(help="auto, fp32, bf16 where the processor has it, fp16 on GPUs; an int8 file is int8.")
]
Device = Annotated[str, Parameter(help="auto, cpu, cuda, cuda:1, mps.")]
T = TypeVar("T")
Many = Annotated[tuple[T, ...], Parameter(consume_multiple=True, negative=(), show_default=False)]
RawCells = Annotated[
    bool,
    Parameter(
        help="Do not escape CSV cells. By default, cells that a spreadsheet would run as a formula begin with a '."
    ),
]
Workers = Annotated[int, Parameter(help="Processes that decode images; 0 decodes in the main one.")]
