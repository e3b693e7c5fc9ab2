"""Record what the command line does, so that two checkouts can be compared: a refactoring must change nothing.

`record` runs every command below in FOLDER and writes exit codes, JSON documents and digests of the written files to
FOLDER/record.json. `compare` prints what differs between two such folders. `read-old` runs the commands that read model
files and exports, and resumes a stopped training, on a copy of an old folder with another checkout. Both exit with 1 if
anything differs. Compare folders of one machine only: the weights depend on the processor.

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
import tarfile
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
"""Commands that run at once, with one thread each."""

C, D, S = (f"train-{task}/best.safetensors" for task in ("classify", "detect", "segment"))
CPU = "--workers 0 --device cpu"
THREADS = "--threads 1 --workers 1"
FOUND = f"--threshold 0.02 {THREADS}"
CLASSIFY = f"train data --model shvit_s1 --image-size 32 --epochs 2 --batch-size 8 --seed 1 {CPU} --out OUT"
OBJECTS = f"train coco --image-size 64 --epochs 1 --batch-size 4 --seed 1 {CPU} --out OUT"

# Each command writes only into its folder OUT, which has the command's name.
TRAIN = {
    "train-classify": CLASSIFY,
    "train-detect": f"{OBJECTS} --task detect",
    "train-segment": f"{OBJECTS} --task segment",
}
STOPPED = {"train-stopped": f"{CLASSIFY} --save-every 1"}
"""Stopped by SIGTERM after its first checkpoint; `read-old` resumes it, and expects the weights of train-classify."""

SUFFIXES = {
    "onnx": "onnx",
    "openvino": "xml",
    "torch": "pt2",
    "executorch": "pte",
    "coreml": "mlpackage",
    "timm": "timm",
}
EXPORTS = """
    classify onnx fp32, classify openvino fp32, classify openvino fp16, classify openvino bf16, classify openvino int8,
    classify torch fp32, classify torch bf16, classify executorch fp32, classify executorch int8, classify coreml fp16,
    classify timm fp32, detect onnx fp32, detect openvino fp32, detect openvino int8, detect torch fp32,
    detect executorch fp32, detect coreml fp16, segment openvino fp32
"""
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
    "predict-detect-stdout": f"predict {D} coco/val2017 {FOUND}",
    "predict-segment-json": f"predict {S} coco/val2017 --out OUT/found.json {FOUND}",
    "info-classify": f"info {C}",
    "info-detect": f"info {D}",
    "info-segment": f"info {S}",
    "info-shards": "info shard/shards",
}
READ |= {f"eval-classify-{e}": f"eval {C} data --engine {e} --out OUT {CPU}" for e in ("torch", "onnx", "openvino")}
READ |= {f"eval-detect-{e}": f"eval {D} coco --engine {e} --out OUT {CPU}" for e in ("torch", "onnx", "openvino")}
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
    "error-network": "train data --model shvit_s9 --out OUT",
    "error-no-data": "train nowhere --out OUT",
    "error-no-out": "train data",
    "error-no-such-flag": "train data --out OUT --nonsense 1",
    "error-flag-without-effect": "train data --out OUT --task classify --scale-min 0.5",
    "error-batch-size": "train data --out OUT --batch-size 0",
    "error-run-exists": f"train data --out train-classify {CPU}",
    "error-nothing-to-resume": "train data --out OUT --resume",
    "error-engine": f"eval {C} data --engine onx",
    "error-precision": f"eval {C} data --precision fp7",
    "error-detector-on-folders": f"eval {D} data --workers 0",
    "error-no-images": f"predict {C} nowhere",
    "error-classifier-to-coco": f"predict {C} data/val --out OUT/found.json",
    "error-format": f"export {C} --format tflite",
    "error-suffix": f"export {C} --format onnx --out OUT/best.pte",
    "error-max-drop-without-int8": f"export {C} --format onnx --max-drop 1",
    "error-no-int8": f"export {C} --format onnx --precision int8 --calibrate data",
    "error-int8-without-images": f"export {C} --format openvino --precision int8",
}
for task, form, precision in map(str.split, EXPORTS.split(",")):
    name, data = f"{task}-{form}-{precision}", "data" if task == "classify" else "coco"
    file = f"export-{name}/best.{SUFFIXES[form]}"
    WRITE[f"export-{name}"] = (
        f"export train-{task}/best.safetensors --format {form} --precision {precision} --out {file} "
        f"--calibrate {data}{' --max-drop 100' if precision == 'int8' else ''}"
    )
    READ[f"info-{name}"] = f"info {file}"
    READ[f"eval-{name}"] = f"eval {file} {data} {CPU}"
    READ[f"predict-{name}"] = f"predict {file} {data}/val* --out OUT/found.jsonl {THREADS if data == 'data' else FOUND}"

RENAMED = {"rate": "lr", "rate_batch": "lr_batch", "min_rate": "min_lr", "warmup_rate": "warmup_lr"}
RENAMED |= {"regions": "proposals"}
"""Old key: new key. A string that is an old key, such as a field's name, counts as renamed, too."""

IGNORED = {  # why: keys and file names, as a regular expression
    "measured time": r"seconds|.*_seconds|.*latency_ms|p95_.*|spread|data_wait",
    "measured speed": r"images_per_second|share_of_ceiling",
    "measured share of time": r"shares|.*_shares|.*memory_bound",
    "the measured headline of bench and study": r"value",
    "measured memory": r"memory_bytes",
    "when and where": r"date|commit|versions|hardware|machine|command",
    "a size that includes dates and commits": r"bytes",
    "CSV files of measured times": r"whole\.csv|attention\.csv",
}
TEXT = r"what|reason|why|help|message|findings|problems|error|note|detail|used_for|about|description"
"""Keys whose values are wording: compared only as present."""


def subset(data: Path, folder: Path) -> None:
    """Copy a few real images: of three classes, and of COCO with their objects."""
    for split in ("train", "val"):
        for source in sorted((data / "imagenette160" / split).iterdir())[:3]:
            target = folder / "data" / split / source.name
            target.mkdir(parents=True)
            for image in sorted(source.iterdir())[:8]:
                shutil.copy(image, target)
        file = f"annotations/instances_{split}2017.json"
        coco = json.loads((data / "coco421" / file).read_text())
        coco["images"] = coco["images"][:6]
        ids = {image["id"] for image in coco["images"]}
        coco["annotations"] = [row for row in coco["annotations"] if row["image_id"] in ids]
        for path in (folder / "coco" / file, folder / "coco" / f"{split}2017" / "images"):
            path.parent.mkdir(parents=True, exist_ok=True)
        (folder / "coco" / file).write_text(json.dumps(coco))
        for image in coco["images"]:
            shutil.copy(data / "coco421" / f"{split}2017" / image["file_name"], folder / "coco" / f"{split}2017")


def sha(pieces: Iterable[bytes | str]) -> str:
    digest = hashlib.sha256()
    for piece in pieces:
        digest.update(piece.encode() if isinstance(piece, str) else piece)
    return digest.hexdigest()[:16]


def content(path: Path) -> Any:
    """What a file holds: a parsed document, a digest of weights and operations, or a digest of its bytes."""
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
            about = {
                key: json.loads(text) if text[:1] in "{[" else text for key, text in header.pop("__metadata__").items()
            }
            rows = sorted((name, t["dtype"], t["shape"], *t["data_offsets"]) for name, t in header.items())
            weights = sha(part for *row, a, b in rows for part in (str(row), raw[start + a : start + b]))
            return {"tensors": len(rows), "weights": weights, "metadata": about}
        case ".onnx":
            import onnx

            graph = onnx.load(path).graph
            weights = sha(tensor.SerializeToString(deterministic=True) for tensor in graph.initializer)
            ends = [value.name for value in (*graph.input, *graph.output)]
            return {"ends": ends, "weights": weights, "operations": sha(f"{node.op_type} " for node in graph.node)}
        case ".xml":  # without rt_info, which holds the model file's metadata
            layers = ElementTree.parse(path).getroot().iter("layer")
            data = (
                (layer.get("type"), [sorted(part.attrib.items()) for part in layer.iter("data")]) for layer in layers
            )
            return {"operations": sha(map(str, data))}
        case ".pt2":
            with zipfile.ZipFile(path) as file:
                names = sorted(name for name in file.namelist() if "/weights/weight_" in name)
                return {"tensors": len(names), "weights": sha(map(file.read, names))}
        case ".pt":
            import torch

            state = torch.load(path, map_location="cpu", weights_only=True)
            return {key: sha(pieces(value)) for key, value in state.items()}
        case ".tar":
            with tarfile.open(path) as file:
                return {entry.name: sha([file.extractfile(entry).read()]) for entry in file}  # pyright: ignore
        case ".html" | ".log":
            return "text"
        case _:
            return sha([path.read_bytes()])


def pieces(value: Any) -> Iterator[bytes | str]:
    import torch

    if isinstance(value, torch.Tensor):
        yield from (str(value.dtype), str(tuple(value.shape)))
        yield value.contiguous().view(-1).view(torch.uint8).numpy().tobytes()
    elif isinstance(value, dict | list | tuple):
        for entry in value.items() if isinstance(value, dict) else value:
            yield from pieces(entry)
    else:
        yield repr(value)


def run(name: str, line: str, folder: Path, source: Path) -> dict[str, Any]:
    """Run one command in the folder; its exit code, its JSON document, and what it wrote."""
    out, started = folder / name, time.monotonic()
    fails, stops = name in ERRORS, name in STOPPED and "--resume" not in line
    command = [sys.executable, "-m", "shvit", *shlex.split(line.replace("OUT", name)), "--json"]
    env = {**os.environ, "PYTHONPATH": str(source.resolve()), "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, cwd=folder, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    while stops and process.poll() is None and not (out / "state.pt").exists():
        time.sleep(0.01)
    if stops:
        process.send_signal(signal.SIGTERM)
    stdout, stderr = process.communicate()
    record: dict[str, Any] = {"exit": process.returncode}
    if not fails and not stops:  # where a run stops depends on the moment
        text = stdout.replace(str(folder.resolve()), "FOLDER")
        record["json"] = json.loads(text) if text.strip() else None
        files = sorted(path for path in out.rglob("*") if path.is_file())
        record["files"] = {str(path.relative_to(out)): content(path) for path in files}
    print(f"{name}: exit {record['exit']}, {time.monotonic() - started:.1f} s", flush=True)
    if process.returncode and not fails and not stops:
        print("    " + "\n    ".join(stderr.strip().splitlines()[-3:]), flush=True)
    return record


def run_all(commands: dict[str, str], folder: Path, source: Path) -> dict[str, Any]:
    with ThreadPoolExecutor(JOBS) as pool:
        records = pool.map(lambda item: run(*item, folder, source), commands.items())
        return dict(zip(commands, records, strict=True))


def record(folder: Path, source: Path, data: Path) -> None:
    folder.mkdir(parents=True)
    subset(data, folder)
    records: dict[str, Any] = {}
    for stage in (TRAIN | STOPPED | OTHER, WRITE, READ | ERRORS):
        records |= run_all(stage, folder, source)
    (folder / "record.json").write_text(json.dumps(records, indent=1, sort_keys=True) + "\n")


def differences(path: str, old: Any, new: Any, renamed: dict[str, str]) -> Iterator[tuple[str, Any, Any]]:
    if isinstance(old, dict) and isinstance(new, dict):
        old, new = ({renamed.get(key, key): value for key, value in side.items()} for side in (old, new))
        for key in sorted(old.keys() | new.keys()):
            if any(re.fullmatch(pattern, key) for pattern in IGNORED.values()):
                continue
            if key not in old or key not in new:
                yield f"{path}/{key}", old.get(key, "absent"), new.get(key, "absent")
            elif re.fullmatch(TEXT, key):
                if bool(old[key]) != bool(new[key]):
                    yield f"{path}/{key}", old[key], new[key]
            else:
                yield from differences(f"{path}/{key}", old[key], new[key], renamed)
    elif isinstance(old, list) and isinstance(new, list):
        if len(old) != len(new):
            yield f"{path}/length", len(old), len(new)
        for index, (one, other) in enumerate(zip(old, new, strict=False)):
            yield from differences(f"{path}/{index}", one, other, renamed)
    elif isinstance(old, str) and isinstance(new, str):
        if renamed.get(old, old) != renamed.get(new, new):
            yield path, old, new
    elif type(old) is not type(new) or old != new:
        yield path, old, new


def compare(old: Any, new: Any, renamed: dict[str, str]) -> int:
    """Print each difference; 1 where there is one."""
    found = list(differences("", old, new, renamed))
    for path, one, other in found:
        print(f"{path}: {str(one)[:200]} -> {str(other)[:200]}")
    print(f"{len(old)} commands, {len(found)} differences")
    return int(bool(found))


def read_old(before: Path, source: Path, renamed: dict[str, str]) -> int:
    """Read what `before` wrote, in a copy of it; and resume its stopped training."""
    expected = json.loads((before / "record.json").read_text())
    with tempfile.TemporaryDirectory(dir=before.resolve().parent) as temporary:
        folder = Path(temporary) / "copy"
        shutil.copytree(before, folder, ignore=lambda _, names: [name for name in names if name in READ])
        resume = {name: f"{line} --resume" for name, line in STOPPED.items()}
        records = run_all(READ | resume, folder, source)
    old = {name: expected[name] for name in READ}
    for name in STOPPED:  # best and last are those of the run that was not stopped
        files = expected["train-classify"]["files"]
        old[name], new = (
            {part: side[part]["weights"] for part in ("best.safetensors", "last.safetensors")}
            for side in (files, records[name]["files"])
        )
        records[name] = new
    return compare(old, records, renamed)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    actions = parser.add_subparsers(dest="action", required=True)
    for action, folders in (("record", ["folder"]), ("compare", ["before", "after"]), ("read-old", ["before"])):
        sub = actions.add_parser(action)
        for folder in folders:
            sub.add_argument(folder, type=Path)
        sub.add_argument("--source", type=Path, default=PROJECT / "src", help="the checkout's src to run")
        sub.add_argument("--data", type=Path, default=PROJECT / "../shared/data", help="the images to take a few of")
        sub.add_argument("--renamed", nargs="*", default=[], metavar="OLD=NEW", help="renamed keys")
    args = parser.parse_args()
    renamed = RENAMED | dict(pair.split("=") for pair in args.renamed)
    if args.action == "record":
        record(args.folder, args.source, args.data)
        return 0
    if args.action == "read-old":
        return read_old(args.before, args.source, renamed)
    old, new = (json.loads((folder / "record.json").read_text()) for folder in (args.before, args.after))
    return compare(old, new, renamed)


if __name__ == "__main__":
    sys.exit(main())
