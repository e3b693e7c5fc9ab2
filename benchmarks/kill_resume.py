"""Check that a run that is killed and resumed several times ends with the same weights, bit for bit.

Each configuration is trained once without interruption. It is then trained again, killed with SIGKILL (all processes
at once) at random moments, and resumed with --resume. The script compares the weights in
last.safetensors and best.safetensors, and the model, EMA and optimizer in the last checkpoint. The configurations
are: no workers, two workers, two training processes under torchrun, and distillation (the teacher is the network of
the first configuration). Checkpoints are written every few steps, so some kills happen while a checkpoint is
written. The unfinished files that remain are counted.

    python benchmarks/kill_resume.py ../shared/data/imagenette160 --kills 10
"""

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from shvit.bench.report import hardware_name
from shvit.provenance import facts
from shvit.train.checkpoint import Checkpoint

TRAIN = ["--model", "shvit_s1", "--image-size", "64", "--epochs", "4", "--batch-size", "64", "--save-every", "3"]
FIXED = ["--device", "cpu", "--precision", "fp32", "--compile", "off"]
TORCHRUN = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]


def links(data: Path, out: Path, counts: dict[str, int]) -> None:
    """Create links to a part of the dataset: `counts` images of each split, taken at even intervals."""
    for split, count in counts.items():
        files = sorted(path for path in (data / split).rglob("*") if path.is_file())
        for file in files[:: max(1, len(files) // count)][:count]:
            place = out / split / file.parent.name / file.name
            place.parent.mkdir(parents=True, exist_ok=True)
            place.symlink_to(file.resolve())


def run(command: list[str], kill_after: float | None = None) -> bool:
    """Run a command. Returns True if it finished, or False if it was killed after `kill_after` seconds."""
    process = subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    try:
        _, err = process.communicate(timeout=kill_after)
    except subprocess.TimeoutExpired:
        pids = [process.pid, *descendants(process.pid)]  # torchrun's workers have their own process groups
        for pid in pids:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        process.communicate()
        while any(Path(f"/proc/{pid}/cmdline").exists() for pid in pids):
            time.sleep(0.01)
        return False
    assert process.returncode == 0, err
    return True


def descendants(pid: int) -> list[int]:
    listed = subprocess.run(["ps", "-o", "pid=", "--ppid", str(pid)], capture_output=True, text=True).stdout
    children = [int(line) for line in listed.split()]
    return [*children, *(below for child in children for below in descendants(child))]


def same(one: Any, other: Any) -> bool:
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    return one == other


def same_runs(one: Path, other: Path) -> bool:
    files = all(
        same(load_file(one / name), load_file(other / name)) for name in ("last.safetensors", "best.safetensors")
    )
    checkpoints = [Checkpoint.load(folder)[0] for folder in (one, other)]
    assert all(checkpoints)
    return files and all(
        same(getattr(checkpoints[0], part), getattr(checkpoints[1], part)) for part in ("model", "ema", "optimizer")
    )


def try_way(launch: list[str], flags: list[str], data: Path, out: Path, kills: int, moments: random.Random) -> dict:
    """Train without and with kills. Returns the number of kills and whether the results are equal."""
    train = [sys.executable, *launch, "-m", "shvit", "train", str(data), *TRAIN, *FIXED, *flags]
    began = time.monotonic()
    assert run([*train, "--out", str(out / "whole")])
    whole = time.monotonic() - began
    parts, after, cut, finished = out / "parts", [], set(), False
    while len(after) < kills:
        command = [*train, "--out", str(parts), *(["--resume"] if (parts / "recipe.json").exists() else [])]
        after.append(moments.uniform(0.1, 0.35) * whole)
        finished = run(command, after[-1])
        cut |= {path.name for path in parts.glob(".state.pt.*")}  # one per process, removed by the next run
        if finished:  # before the kill, which therefore does not count
            after.pop()
            break
    if not finished:
        assert run([*train, "--out", str(parts), "--resume"])
    return {"kills": len(after), "seconds": after, "states_cut": len(cut), "same": same_runs(out / "whole", parts)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--images", type=int, default=512, help="number of training images")
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument(
        "--ways",
        nargs="+",
        help='run only these configurations, and write a separate file; distillation needs "no workers"',
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of the random times of the kills")
    parser.add_argument("--results", type=Path, default=Path(__file__).parents[1] / "results")
    args = parser.parse_args()

    about, rows = facts(), {}
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "data"
        links(args.data, data, {"train": args.images, "val": args.images // 5})
        teacher = str(Path(folder) / "no workers" / "whole" / "best.safetensors")
        ways = {
            "no workers": ([], ["--workers", "0"]),
            "two workers": ([], ["--workers", "2"]),
            "two processes": (TORCHRUN, ["--workers", "1"]),
            "distillation": ([], ["--workers", "0", "--recipe", "distill", "--teacher", teacher]),
        }
        for name in args.ways or ways:
            launch, flags = ways[name]
            moments = random.Random(f"{args.seed} {name}")
            rows[name] = try_way(launch, flags, data, Path(folder) / name, args.kills, moments)
            print(name, rows[name], flush=True)
    result = {
        "what": f"shvit_s1 on {args.images} images of {args.data.name}: killed and resumed runs against whole runs",
        "value": sum(row["same"] for row in rows.values()) / len(rows),
        "unit": "share of the configurations with bit-identical weights",
        "rows": rows,
        "flags": [*TRAIN, *FIXED],
        "threads": torch.get_num_threads(),
        **about,
    }
    what = "-".join(["kill-resume", *(way.replace(" ", "-") for way in args.ways or ())])
    path = args.results / f"{what}_{hardware_name(about['hardware'])}_{about['date'][:10]}.json"
    path.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
