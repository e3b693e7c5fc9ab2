"""Programs in several languages that read an exported file. Their templates are in the folder `readers`."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache

from jinja2 import Environment, PackageLoader, StrictUndefined

from .. import engines
from ..engines import Shapes
from ..engines.exported import Exported
from ..errors import InputError
from ..tasks import kind_of


@dataclass(frozen=True)
class Language:
    """The programs in a language."""

    templates: Mapping[str, str]
    """The template for each format."""
    whole_only: bool = True
    """Whether there are programs only for end-to-end files, if the format has them."""
    finds_objects: bool = False
    """Whether there are programs for detectors, too."""


PYTHON = ("onnx", "openvino", "torch", "executorch", "litert", "coreml", "timm")
LANGUAGES: Mapping[str, Language] = {
    "python": Language({name: f"python/{name}.jinja" for name in PYTHON}, whole_only=False, finds_objects=True),
    "javascript": Language({"onnx": "javascript.jinja"}, finds_objects=True),
    "cpp": Language({name: f"cpp/{name}.jinja" for name in ("onnx", "openvino")}),
    "csharp": Language({"onnx": "csharp.jinja"}),
    "swift": Language({"coreml": "swift.jinja"}),
    "kotlin": Language({"onnx": "kotlin.jinja"}),
}


def check_snippet(
    language: str, format_name: str, task: str, end_to_end: bool = False, shapes: Shapes | None = None
) -> None:
    """Check that there is a program for such an export.

    Raises:
        InputError: The language is unknown, or has no program for this format, task or batch size.
    """
    if language not in LANGUAGES:
        raise InputError(f"unknown --snippet {language!r}: choose from {', '.join(LANGUAGES)}")
    chosen, detects = LANGUAGES[language], not kind_of(task).labels_images
    able = [name for name, one in LANGUAGES.items() if format_name in one.templates]
    if format_name not in chosen.templates:
        formats = " or ".join(chosen.templates)
        others = f", or --snippet {' or '.join(able)}" if able else ""
        raise InputError(f"--snippet {language} reads only some formats: choose --format {formats}{others}")
    whole = engines.FORMATS[format_name].end_to_end
    if detects and not (chosen.finds_objects and whole):
        formats = [name for name in PYTHON if engines.FORMATS[name].end_to_end]
        raise InputError(
            f"--snippet {language} does not read models of task {task} as {format_name}: choose --snippet python with "
            f"--format {' or '.join(formats)} and --end-to-end"
        )
    if whole and not end_to_end and (detects or chosen.whole_only):
        subject = f"for models of task {task}" if detects else f"for {language}"
        raise InputError(f"--snippet needs --end-to-end {subject}: the program does not resize images itself")
    if shapes is not None and shapes.batch not in (None, 1):
        raise InputError("--snippet reads one image at a time: leave out --batch-size")


def snippet(language: str, exported: Exported) -> str:
    """A complete program that reads this file, checks itself with the file's sample, and labels images.

    Raises:
        InputError: See `check_snippet`.
    """
    check_snippet(language, exported.engine, exported.task, exported.end_to_end)
    labels_images = kind_of(exported).labels_images
    whole = engines.FORMATS[exported.engine].end_to_end
    template = _templates().get_template(LANGUAGES[language].templates[exported.engine])
    return template.render(
        model=json.dumps(str(exported.path), ensure_ascii=False),
        labels_images=labels_images,
        end_to_end=exported.end_to_end,
        instead="--end-to-end" if whole else "--format onnx --end-to-end",
        in_fp32=exported.precision == "fp32" or not labels_images,
        least=round(kind_of(exported).threshold(exported.metrics), 4),
    )


@cache
def _templates() -> Environment:
    return Environment(
        loader=PackageLoader("shvit.export", "readers"),
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        undefined=StrictUndefined,
    )
