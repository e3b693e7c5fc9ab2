"""Record the behavior of the command line, to check that a refactoring changes nothing.

`record` runs all commands below in FOLDER and writes exit codes, JSON documents and digests of the written files to
FOLDER/record.json. `compare` prints the differences between two such folders. `read-old` copies a folder that an
older checkout recorded, runs the commands that read its model files and exports, and resumes its stopped training.
`compare` and `read-old` exit with 1 if there are differences. Compare only folders of the same machine, because
trained weights depend on the CPU.

    python benchmarks/same_behaviour.py record runs/before
    python benchmarks/same_behaviour.py record runs/after --source ../refactored/src
    python benchmarks/same_behaviour.py compare runs/before runs/after --renamed old_key=new_key
    python benchmarks/same_behaviour.py read-old runs/before --source ../refactored/src
"""

import argparse
import csv
import hashlib
import json
import os
import re
import shlex
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

PROJECT = Path(__file__).resolve().parents[1]
JOBS = 2
"""Number of commands that run at the same time, with one thread each."""

C, D, S = (f"train-{task}/best.safetensors" for task in ("classify", "detect", "segment"))
CPU = "--workers 0 --device cpu"
THREADS = "--threads 1 --workers 1"
FOUND = f"--threshold 0.02 {THREADS}"
CLASSIFY = f"train data --model shvit_s1 --image-size 32 --epochs 2 --batch-size 8 --save-every 1 {CPU} --out OUT"
OBJECTS = f"train coco --image-size 64 --epochs 1 --batch-size 4 {CPU} --out OUT"

# Each command writes only into its folder OUT, which has the command's name.
TRAIN = {
    "train-classify": CLASSIFY,
    "train-detect": f"{OBJECTS} --task detect",
    "train-segment": f"{OBJECTS} --task segment",
}
STOPPED = {"train-stopped": CLASSIFY}
"""Stopped by SIGTERM after its first epoch; `read-old` resumes it and expects the result of train-classify."""

EXPORTS = """
    classify fp32 best.onnx, classify fp32 best.xml, classify fp16 best.xml, classify bf16 best.xml,
    classify int8 best.xml, classify fp32 best.pt2, classify bf16 best.pt2, classify fp32 best.pte,
    classify int8 best.pte, classify fp16 best.mlpackage, classify fp32 best.timm, detect fp32 best.onnx,
    detect fp32 best.xml, detect int8 best.xml, detect fp32 best.pt2, detect fp32 best.pte, segment fp32 best.xml
"""
FORMATS = {"xml": "openvino", "pt2": "torch", "pte": "executorch", "mlpackage": "coreml"}
"""Names of the formats whose file suffix differs from the name."""
WRITE = {
    "shard": "shard data --out OUT/shards --size 64 --workers 0",
    "calibrate-bn": f"calibrate-bn {C} data --image-size 64 --out OUT/best64.safetensors {CPU}",
}
READ = {
    "eval-shards": f"eval {C} shard/shards {CPU}",
    "eval-calibrated": f"eval calibrate-bn/best64.safetensors data --out OUT {CPU}",
    "eval-train-split": f"eval {C} data --split train --fit squash --precision bf16 {CPU}",
    "eval-segment": f"eval {S} coco --out OUT {CPU}",
    "predict-classify-csv": f"predict {C} data/val --out OUT/found.csv {THREADS}",
    "predict-classify-jsonl": f"predict {C} data/val --top-k 2 --out OUT/found.jsonl {THREADS}",
    "predict-classify-stdout": f"predict {C} data/val --engine torch --precision fp32 {THREADS}",
    "predict-detect-csv": f"predict {D} coco/val2017 --out OUT/found.csv {FOUND}",
    "predict-detect-jsonl": f"predict {D} coco/val2017 --draw OUT/drawn --out OUT/found.jsonl {FOUND}",
    "predict-detect-json": f"predict {D} coco/val2017 --annotations coco --out OUT/found.json {FOUND}",
    "predict-segment-json": f"predict {S} coco/val2017 --out OUT/found.json {FOUND}",
    "info-classify": f"info {C}",
    "info-detect": f"info {D}",
    "info-shards": "info shard/shards",
}
for engine in ("torch", "onnx", "openvino"):
    READ[f"eval-classify-{engine}"] = f"eval {C} data --engine {engine} --out OUT {CPU}"
    READ[f"eval-detect-{engine}"] = f"eval {D} coco --engine {engine} --out OUT {CPU}"
OTHER = {
    "info-network": "info shvit_s4 --image-size 256",
    "info-timm": "info timm/resnet18",
    "info-data": "info data",
    "info-coco": "info coco",
    "models": "models",
    "bench": "bench shvit_s1 --engine torch onnx --batch-size 1 --image-size 64 --rounds 2 --threads 1 --device cpu",
    "breakdown": "study breakdown shvit_s1 --engine torch onnx --batch-size 1 --image-size 64 --threads 1 --out OUT",
}
ERRORS = {  # only the exit code is recorded
    "error-no-model": "predict none.safetensors data/val",
    "error-image-as-model": "info coco/annotations/instances_val2017.json",
    "error-no-such-flag": "train data --out OUT --nonsense 1",
    "error-flag-without-effect": "train data --out OUT --task classify --scale-min 0.5",
    "error-run-exists": f"train data --out train-classify {CPU}",
    "error-nothing-to-resume": "train data --out OUT --resume",
    "error-engine": f"eval {C} data --engine onx",
    "error-detector-on-folders": f"eval {D} data --workers 0",
    "error-no-images": f"predict {C} nowhere",
    "error-classifier-to-coco": f"predict {C} data/val --out OUT/found.json",
    "error-format": f"export {C} --format tflite",
    "error-max-drop-without-int8": f"export {C} --format onnx --max-drop 1",
    "error-no-int8": f"export {C} --format onnx --precision int8 --calibrate data",
    "error-int8-without-images": f"export {C} --format openvino --precision int8",
}
for task, precision, best in map(str.split, EXPORTS.split(",")):
    suffix, data, found = best[5:], *(("data", THREADS) if task == "classify" else ("coco", FOUND))
    name = f"{task}-{precision}-{suffix}"
    flags = f"--precision {precision} --calibrate {data}" + " --max-drop 100" * (precision == "int8")
    WRITE[f"export-{name}"] = f"export train-{task}/best.safetensors --format {FORMATS.get(suffix, suffix)} {flags}"
    WRITE[f"export-{name}"] += f" --out OUT/{best}"
    READ[f"eval-{name}"] = f"eval export-{name}/{best} {data} {CPU}"
    READ[f"predict-{name}"] = f"predict export-{name}/{best} {data}/val* --out OUT/found.jsonl {found}"
    if precision != "int8":
        READ[f"info-{name}"] = f"info export-{name}/{best}"

RENAMED = [
    "effective_rate=effective_lr",
    "rate=lr",
    "rate_batch=lr_batch",
    "min_rate=min_lr",
    "warmup_rate=warmup_lr",
    "regions=proposals",
]
"""OLD=NEW for JSON keys. Strings that equal an old key, such as names of fields, are renamed as well."""

IGNORED = {  # reason: regular expression for keys and file names that both sides must have, with any value
    "measured time": r"seconds|.*_seconds|.*latency_ms|p95_.*|spread|data_wait",
    "measured speed": r"images_per_second|share_of_ceiling",
    "measured share of time": r"shares|.*_shares|.*memory_bound",
    "the measured headline of bench and study": r"value",
    "measured memory": r"memory_bytes",
    "random identifiers, or metadata with dates, in Core ML": r".*/(Manifest\.json|model\.mlmodel)",
    "when and where": r"date|commit|versions|hardware|machine|command",
    "covers dates and commits, or seconds": r"bytes|digest",
    "tables and figures of measured times": r"(whole|attention)\.(csv|png)",
}
TEXT = r"what|reason|why|help|message|findings|problems|error|note|detail|used_for|about|description"
"""Keys whose values are messages. Only their presence is compared."""


def subset(data: Path, folder: Path) -> None:
    """Copy a few images of three classes, and a few COCO images with their objects."""
    for split in ("train", "val"):
        for source in sorted((data / "imagenette160" / split).iterdir())[:3]:
            target = folder / "data" / split / source.name
            target.mkdir(parents=True)
            for image in sorted(source.iterdir())[:8]:
                shutil.copy(image, target)
        source, target, file = data / "coco421", folder / "coco", f"annotations/instances_{split}2017.json"
        (target / "annotations").mkdir(parents=True, exist_ok=True)
        (target / f"{split}2017").mkdir()
        coco = json.loads((source / file).read_text())
        coco["images"] = coco["images"][:6]
        ids = {image["id"] for image in coco["images"]}
        coco["annotations"] = [row for row in coco["annotations"] if row["image_id"] in ids]
        (target / file).write_text(json.dumps(coco))
        for image in coco["images"]:
            shutil.copy(source / f"{split}2017" / image["file_name"], target / f"{split}2017")


def sha(parts: Iterable[bytes | str]) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part.encode() if isinstance(part, str) else part)
    return digest.hexdigest()[:16]


def content(path: Path) -> Any:
    """The content of a file for the comparison: a parsed document, or digests of its parts or bytes."""
    match path.suffix:
        case ".json" | ".jsonl":
            lines = path.read_text().splitlines() if path.suffix == ".jsonl" else [path.read_text()]
            return [json.loads(line) for line in lines]
        case ".csv":
            with path.open(newline="") as file:
                return list(csv.DictReader(file))
        case ".safetensors":
            raw = path.read_bytes()
            start = 8 + struct.unpack("<Q", raw[:8])[0]
            header = json.loads(raw[8:start])
            about = {key: json.loads(text) for key, text in header.pop("__metadata__").items() if text[0] == "{"}
            rows = sorted((name, t["dtype"], t["shape"], *t["data_offsets"]) for name, t in header.items())
            weights = sha(part for *row, a, b in rows for part in (str(row), raw[start + a : start + b]))
            return {"tensors": len(rows), "weights": weights, "metadata": about}
        case ".onnx":
            import onnx

            graph = onnx.load(path).graph
            weights = sha(tensor.SerializeToString(deterministic=True) for tensor in graph.initializer)
            ends = [value.name for value in (*graph.input, *graph.output)]
            return {"ends": ends, "weights": weights, "operations": sha(f"{node.op_type} " for node in graph.node)}
        case ".xml":  # without rt_info, which contains the metadata
            layers = ElementTree.parse(path).getroot().iter("layer")
            rows = ((one.get("type"), [sorted(part.attrib.items()) for part in one.iter("data")]) for one in layers)
            return {"operations": sha(map(str, rows))}
        case ".pt" | ".pt2":  # only tensors: state.pt also contains measured seconds
            with zipfile.ZipFile(path) as file:
                names = sorted(name for name in file.namelist() if re.search(r"/data/(weights/weight_)?\d+$", name))
                return {"tensors": len(names), "weights": sha(map(file.read, names))}
        case ".pte":  # only the segments (weights, compiled code): the program before them contains dates
            raw = path.read_bytes()
            return {"segments": sha([raw[struct.unpack("<Q", raw[24:32])[0] :]])}
        case ".html":
            return "text"
        case _:
            return sha([path.read_bytes()])


def run(name: str, line: str, folder: Path, source: Path) -> dict[str, Any]:
    """Run a command in the folder. Returns its exit code, JSON document and written files."""
    out, started = folder / name, time.monotonic()
    stops = name in STOPPED and "--resume" not in line
    coded = stops or name in ERRORS  # only the exit code is compared, because stopped runs write different files
    command = [sys.executable, "-m", "shvit", *shlex.split(line.replace("OUT", name)), "--json"]
    env = {**os.environ, "PYTHONPATH": str(source.resolve()), "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, cwd=folder, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    while stops and process.poll() is None and not (out / "state.previous.pt").exists():
        time.sleep(0.01)
    if stops:
        process.send_signal(signal.SIGTERM)
    stdout, stderr = process.communicate()
    record: dict[str, Any] = {"exit": process.returncode}
    if not coded:
        text = stdout.replace(str(folder.resolve()), "FOLDER")
        record["json"] = json.loads(text) if text.strip() else None
        files = sorted(path for path in out.rglob("*") if path.is_file())
        record["files"] = {str(path.relative_to(out)): content(path) for path in files}
    print(f"{name}: exit {record['exit']}, {time.monotonic() - started:.1f} s", flush=True)
    if process.returncode and not coded:
        print("    " + "\n    ".join(stderr.strip().splitlines()[-3:]), flush=True)
    return record


def run_all(commands: dict[str, str], folder: Path, source: Path) -> dict[str, Any]:
    with ThreadPoolExecutor(JOBS) as pool:
        records = pool.map(lambda name: run(name, commands[name], folder, source), commands)
        return dict(zip(commands, records, strict=True))


def record(folder: Path, source: Path, data: Path) -> None:
    folder.mkdir(parents=True)
    subset(data, folder)
    records: dict[str, Any] = {}
    for stage in (TRAIN | STOPPED | OTHER, WRITE, READ | ERRORS):
        records |= run_all(stage, folder, source)
    (folder / "record.json").write_text(json.dumps(records, indent=1, sort_keys=True) + "\n")


def differences(path: str, old: Any, new: Any, renamed: dict[Any, Any]) -> Iterator[tuple[str, Any, Any]]:
    if isinstance(old, dict) and isinstance(new, dict):
        old, new = ({renamed.get(key, key): value for key, value in side.items()} for side in (old, new))
        for key in sorted(old.keys() | new.keys()):
            if key not in old or key not in new:
                yield f"{path}/{key}", old.get(key, "absent"), new.get(key, "absent")
            elif re.fullmatch(TEXT, key):
                if bool(old[key]) != bool(new[key]):
                    yield f"{path}/{key}", old[key], new[key]
            elif not any(re.fullmatch(pattern, key) for pattern in IGNORED.values()):
                yield from differences(f"{path}/{key}", old[key], new[key], renamed)
    elif isinstance(old, list) and isinstance(new, list):
        if len(old) != len(new):
            yield f"{path}/length", len(old), len(new)
        for index, (one, other) in enumerate(zip(old, new, strict=False)):
            yield from differences(f"{path}/{index}", one, other, renamed)
    elif type(old) is not type(new) or renamed.get(old, old) != renamed.get(new, new):
        yield path, old, new


def compare(old: Any, new: Any, renamed: dict[Any, Any]) -> int:
    """Print all differences. Returns 1 if there are any."""
    found = list(differences("", old, new, renamed))
    for path, one, other in found:
        print(f"{path}: {str(one)[:200]} -> {str(other)[:200]}")
    print(f"{len(old)} commands, {len(found)} differences")
    return int(bool(found))


def read_old(before: Path, source: Path, renamed: dict[Any, Any]) -> int:
    """Read the files of `before` in a copy, and resume its stopped training."""
    expected = json.loads((before / "record.json").read_text())
    with tempfile.TemporaryDirectory(dir=before.resolve().parent) as temporary:
        folder = Path(temporary) / "copy"
        shutil.copytree(before, folder, ignore=lambda _, names: [name for name in names if name in READ])
        resume = {name: f"{line} --resume" for name, line in STOPPED.items()}
        records = run_all(READ | resume, folder, source)
    old = {name: expected[name] for name in READ}
    whole = json.dumps(expected["train-classify"])
    old |= {name: json.loads(whole.replace("train-classify", name)) for name in STOPPED}
    return compare(old, records, renamed)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("action", choices=["record", "compare", "read-old"])
    parser.add_argument("folders", type=Path, nargs="+", help="one folder, or two for compare")
    parser.add_argument("--source", type=Path, default=PROJECT / "src", help="src of the checkout to run")
    parser.add_argument(
        "--data", type=Path, default=PROJECT / "../shared/data", help="folder that contains imagenette160 and coco421"
    )
    parser.add_argument("--renamed", nargs="+", default=[], metavar="OLD=NEW", help="renamed JSON keys")
    args = parser.parse_args()
    renamed = dict(pair.split("=") for pair in [*RENAMED, *args.renamed])
    if len(args.folders) != 1 + (args.action == "compare"):
        parser.error("record and read-old take one folder, compare takes two")
    if args.action == "record":
        record(args.folders[0], args.source, args.data)
        return 0
    if args.action == "read-old":
        return read_old(args.folders[0], args.source, renamed)
    old, new = (json.loads((folder / "record.json").read_text()) for folder in args.folders)
    return compare(old, new, renamed)


if __name__ == "__main__":
    sys.exit(main())
