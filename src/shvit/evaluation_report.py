"""The page of an evaluation: what the task reports, speed on this machine, and how to use the model."""

import shlex
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from .data.splits import SPLIT_ADJECTIVES
from .engines import Exported, Runnable
from .engines.base import Engine
from .errors import counted
from .provenance import facts, hardware_in_words
from .report.blocks import Column, Command, Headline, Section, Table
from .report.page import Page, save_page
from .tasks import kind_of, task_of
from .tasks.base import Evaluation, ReportSubject

PAGE = "report.html"
TIMED_SECONDS, MIN_CALLS, MAX_CALLS = 0.3, 5, 200
"""A speed is the median of calls that take this long together, within these limits."""


def write_evaluation_report(
    out: Path, evaluation: Evaluation, subject: ReportSubject, engine: Engine, split: str, data: str
) -> Path:
    """Write report.html of an evaluation, and return its path.

    Args:
        split: Name of the evaluated split, such as `val`; `all` stands for all images.
        data: The dataset, for the text.
    """
    part, model = task_of(subject.model).report(evaluation, subject), subject.model
    images = counted(evaluation.images, f"{SPLIT_ADJECTIVES.get(split, '')} image".strip())
    page = Page(
        title=f"{name_of(model)} on {Path(data).name or data}",
        lead=f"Evaluated on {images} at {model.preprocess.image_size} pixels, with {_engine_in_words(engine)}.",
        findings=part.findings,
        sections=(*part.sections, speed_section(model, engine), use_section(model, subject.path)),
        about=facts(),
        headlines=(Headline(part.cards),),
        kind="Evaluation",
    )
    save_page(page, out / PAGE)
    return out / PAGE


def name_of(model: Runnable) -> str:
    """The network's name, or the file's name for an exported file."""
    return model.path.name if isinstance(model, Exported) else model.architecture.name


def _engine_in_words(engine: Engine) -> str:
    return f"engine {engine.name} in {engine.precision}"


def speed_section(model: Runnable, engine: Engine) -> Section:
    """Latency of one image and throughput of a batch, on random images that are already decoded."""
    side, rows = model.preprocess.input_size, []
    for batch in (1, kind_of(model).predict_batch_size):
        images = torch.randint(0, 256, (batch, 3, side, side), dtype=torch.uint8)
        seconds = _sample(lambda images=images: engine(images))
        median, p95 = np.percentile(seconds, [50, 95]).tolist()
        rows.append([counted(batch, "image"), 1e3 * median, 1e3 * p95, batch / median, len(seconds)])
    columns = (
        Column("batch"),
        Column("median, ms", "{:.1f}"),
        Column("95th percentile, ms", "{:.1f}"),
        Column("images/s", "{:,.0f}"),
        Column("calls"),
    )
    device, hardware = engine.device, facts()["hardware"]
    if device.startswith("cuda"):
        hardware = {**hardware, "gpu": torch.cuda.get_device_name(device)}
    where = hardware_in_words(hardware)
    used = counted(engine.threads or torch.get_num_threads(), "thread") if device == "cpu" else "GPU"
    text = (
        f"{_engine_in_words(engine).capitalize()} on {where}, {used}, at {side} pixels, without decoding.",
        "A short measurement on a machine that may be busy. For exact numbers, use shvit bench.",
    )
    return Section("Speed on this machine", text, (Table("speed", "Speed of the network", columns, rows),))


def _sample(call: Callable[[], Any]) -> list[float]:
    """Seconds of each call, after a few calls to warm up."""
    for _ in range(3):
        call()
    seconds: list[float] = []
    while len(seconds) < MIN_CALLS or (sum(seconds) < TIMED_SECONDS and len(seconds) < MAX_CALLS):
        started = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - started)
    return seconds


def use_section(model: Runnable, path: str) -> Section:
    """Commands and code to copy, with the model's path."""
    quoted, draws = shlex.quote(path), "draw" in kind_of(model).predict_flags
    draw = " --draw drawn" if draws else ""
    commands = [Command("Predict a folder of images", f"shvit predict {quoted} photos/ --out predictions.csv{draw}")]
    if not isinstance(model, Exported):
        commands.append(Command("Export for another runtime", f"shvit export {quoted} --format onnx"))
    first = "for label, score, box in zip(result.labels, result.scores, result.boxes):\n    print(label, score, box)"
    code = f'import shvit\n\npredictor = shvit.Predictor({path!r})\n[result] = predictor("photo.jpg")\n'
    commands.append(
        Command("Use it in Python", code + (first if draws else "print(result.labels[0], result.scores[0])"))
    )
    return Section("How to use the model", commands=tuple(commands))
