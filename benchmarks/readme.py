"""Write the generated sections of README and docs, and draw the figure in README.

    python benchmarks/readme.py

A test fails if a page or the figure does not match results/.
"""

from collections.abc import Callable
from functools import partial
from typing import Final

from doc_tables import classification, deployment, detection, latency, studies, training
from doc_tables.results import ROOT

SECTIONS: Final[dict[str, dict[str, Callable[[], str]]]] = {
    "README.md": {"figure": latency.caption, "train_small": classification.train_small, "verdict": latency.verdict},
    "docs/benchmarks.md": {
        "latencies": latency.latencies,
        "bench": classification.bench,
        "cpu_ratio": classification.cpu_ratio,
        "predict": classification.predict,
        "paper_gpu": classification.paper_gpu,
        "parity": classification.parity,
        "end_to_end": deployment.end_to_end,
        "int8_onnx": deployment.int8_onnx,
        "web": deployment.web,
        "loader": training.loader,
        "scale": training.scale,
        "step": training.step,
        "kill": training.kill,
        "recipes": training.recipes,
        "estimate": training.estimate,
        "learners": detection.learners,
        "detectors": detection.detectors,
        "overfit": detection.overfit,
        "transfer": detection.transfer,
        "exports": detection.exports,
        "speed": detection.speed,
    },
    "docs/studies.md": {
        "macro": partial(studies.compared, "macro"),
        "stages": studies.stages,
        "ablation": partial(studies.compared, "ablation"),
        "ablation_accuracy": studies.ablation_accuracy,
        "designs": partial(studies.compared, "designs"),
        "breakdown": studies.breakdown,
        "resolution": studies.resolution,
        "sizes": studies.sizes,
        "redundancy": studies.redundancy,
    },
}


def filled(path: str) -> str:
    """The page with all generated sections replaced."""
    text = (ROOT / path).read_text(encoding="utf-8")
    for name, section in SECTIONS[path].items():
        start, end = f"<!-- {name} -->\n", f"<!-- /{name} -->"
        if text.count(start) != 1 or text.count(end) != 1:
            raise ValueError(f"{path} must contain both markers of the section {name} exactly once")
        before, _, rest = text.partition(start)
        text = f"{before}{start}{section()}\n{end}{rest.partition(end)[2]}"
    return text


if __name__ == "__main__":
    for page in SECTIONS:
        (ROOT / page).write_text(filled(page), encoding="utf-8")
    latency.draw(ROOT / latency.FIGURE)
