"""Read results/, and format tables and machines."""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from shvit.provenance import hardware_in_words

ROOT = Path(__file__).parents[2]
BATCH = 16
"""Batch size of the throughput benchmarks, as in the paper on a CPU."""


def latest(what: str) -> dict[str, Any]:
    """The newest result of this kind."""
    results = [json.loads(path.read_text()) for path in (ROOT / "results").glob(f"{what}_*.json")]
    return max(results, key=lambda result: result["date"])


def throughput() -> dict[str, Any]:
    """The newest benchmark that includes batch size `BATCH`, with only the rows of that batch size."""
    paths = sorted((ROOT / "results").glob("bench_*.json"), key=lambda path: path.stem[-10:])
    result = [result for path in paths if BATCH in (result := json.loads(path.read_text()))["request"]["batch_sizes"]][
        -1
    ]
    return result | {"rows": [row for row in result["rows"] if row["batch_size"] == BATCH]}


def table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """The lines of a Markdown table."""
    return [
        f"| {' | '.join(columns)} |",
        "|---" * len(columns) + "|",
        *(f"| {' | '.join(cells)} |" for cells in rows),
    ]


def machine(result: dict[str, Any]) -> str:
    """The cores and the processor, for example "2 cores of AMD EPYC (AVX2, AVX-512)"."""
    cores = result["hardware"]["cores"]
    return f"{cores} core{'s' * (cores > 1)} of {hardware_in_words(result['hardware'])}"


def one_thread(result: dict[str, Any]) -> str:
    """The processor, with "one thread of" before it if only one was used: "one thread of AMD EPYC (AVX2, AVX-512)"."""
    threads = "one thread of " if result["threads"] == 1 else ""
    return f"{threads}{hardware_in_words(result['hardware'])}"


def command(result: dict[str, Any]) -> list[str]:
    """Lines with the command that measured the result."""
    return [f"Command: `{result['command']}`", ""]


NOTES = "† Trained with distillation. § Pretrained on ImageNet-21k or 22k."


def marks(training: str) -> str:
    """The marks that `NOTES` explains, for a training such as "in22k, distilled"."""
    return "†" * ("distilled" in training) + "§" * ("in21k" in training or "in22k" in training)


def top1_cell(top1: dict[str, Any] | None) -> str:
    """A table cell: published accuracy and its marks."""
    return f"{top1['percent']:.1f} %{marks(top1['training'])}" if top1 else "-"
