"""Export a model to every format, and write all comparisons with PyTorch to one file.

python benchmarks/parity.py runs/mine/best.safetensors my_images --name s1
"""

import argparse
import json
import tempfile
from pathlib import Path

from shvit import engines, provenance
from shvit.bench.report import hardware_name
from shvit.errors import Failure
from shvit.export.export import export_model
from shvit.pretrained import load_model
from shvit.tasks import task_of

ROWS = [
    ("onnx", "fp32"),
    ("openvino", "fp32"),
    ("openvino", "int8"),
    ("coreml", "fp16"),
    ("executorch", "fp32"),
    ("torch", "fp32"),
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("data")
    parser.add_argument("--name", required=True, help="name of the model, for the name of the result file")
    parser.add_argument("--max-drop", type=float, default=0.5)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    model_file = load_model(arguments.model)
    source = task_of(model_file).open(arguments.data)
    facts = provenance.facts()
    path = Path("results") / f"parity-{arguments.name}_{hardware_name(facts['hardware'])}_{facts['date'][:10]}.json"
    task, known = model_file.task, engines.writers(model_file.task)
    rows = [row for row in ROWS if row[0] in known and row[1] in engines.writable_precisions(task, row[0])]
    reports = []
    for name, precision in rows:
        print(name, precision, flush=True)
        with tempfile.TemporaryDirectory() as folder:
            out = Path(folder) / f"{arguments.name}{engines.ENGINES[name].suffix}"
            try:
                report = export_model(
                    model_file, name, out, precision, None, source, arguments.max_drop, arguments.threads, print
                )
            except Failure as error:
                report = {"engine": name, "precision": precision, "failed": str(error)}
        reports.append({key: value for key, value in report.items() if key not in ("file", "provenance")})
        passed = [report for report in reports if "failed" not in report]
        summary = {
            "what": f"exports of {arguments.name} that agree with PyTorch (Core ML: with a valid specification)",
            "value": len(passed),
            "unit": f"of {len(rows)} files",
            "threads": arguments.threads,
            "model": dict(model_file.metrics),
        }
        path.write_text(json.dumps({**summary, "reports": reports, **facts}, indent=2) + "\n")


if __name__ == "__main__":
    main()
