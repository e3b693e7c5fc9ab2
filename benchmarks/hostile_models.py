"""Run info and predict on damaged model files and exports. Count tracebacks, hangs, crashes and executed code.

A small network is written in each format, and its file is changed in many ways: bytes are changed or zeroed, the end
is cut off, parts are swapped, a metadata field gets a hostile or deeply nested value, or code is inserted where a
reader might run it. Changes that an attacker would make get a valid digest. `shvit info` and `shvit predict` then
read each file; every batch of files has its own process with limited memory. Code that runs creates a file, the
marker.

    python benchmarks/hostile_models.py --count 200 --seed 1
"""

import argparse
import io
import json
import pickle
import random
import re
import resource
import shutil
import subprocess
import sys
import tempfile
import time
import warnings
import zipfile
from collections import Counter
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape

import numpy as np
import torch
from PIL import Image

from shvit import engines, modelfile
from shvit.bench.report import hardware_name
from shvit.cli import main as cli
from shvit.data.transforms import Preprocess
from shvit.engines.base import ExportJob
from shvit.engines.exported import SEAL, UNSEALED, files_of, seal
from shvit.model.architecture import Architecture
from shvit.model.config import Config, Stage
from shvit.modelfile import HEADER_KEY, ModelFile
from shvit.provenance import facts

LIMIT = 4 << 30
"""Memory limit, in bytes, of each process that reads files."""
PATIENCE, START = 20, 300
"""Time limits in seconds: for a command, and for the start of a process."""
CONFIG = Config((Stage(16, 1), Stage(24, 1, attended=8), Stage(32, 1, attended=8)), image_size=32)
DEEP: Any = json.loads("[" * 300 + "]" * 300)
VALUES: tuple[Any, ...] = (
    *(None, True, 0, -1, 3.5, 10**9, 10**400, 1e-9, float("nan"), float("inf"), "", "x", "a" * 10**5, [], {}, [None]),
    *(
        [1, 2],
        ["a"],
        ["a", "b", "c"],
        [0.5],
        {"a": 1},
        "\x1b[31m\n",
        "../../etc/passwd",
        "/dev/zero",
        "torch",
        "detect",
    ),
    *(
        "int8",
        DEEP,
        {"deep": DEEP},
        {"name": 5},
        {"images": 10**9, "identities": "AAAA"},
        [0.5, 0.5],
        "whole",
        "shorter",
    ),
)
NAMES = (
    "timm/resnet10t:checkpoint_path={pickle!r}",
    "timm/resnet10t:pretrained=True",
    "timm/resnet10t:pretrained_cfg={{'file':{pickle!r}}}",
    "timm/hf-hub:owner/name",
    "timm/local-dir:/tmp",
    "timm/deit_tiny_patch16_224:depth=100000",
    "timm/deit_tiny_patch16_224:embed_dim=16384:depth=256",
    "timm/deit_tiny_patch16_224:img_size=100000",
    "study/nothing",
    "{pickle}",
)


NOT_RUN_HERE = () if sys.platform == "darwin" else (".mlpackage",)
"""Formats that info can read here, but predict cannot run."""


class Payload:
    """Creates the marker when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return open, (str(self.marker), "w")


def write_good(folder: Path) -> list[Path]:
    """Write a small network in each available format, with one folder per format."""
    model = Architecture("tiny", 2, config=CONFIG).build().eval()
    model_file = ModelFile(model, ("red", "green"), Preprocess(32))
    kinds = {kind.suffix: kind for kind in engines.FORMATS.values() if kind.absent() is None}
    paths = [folder / suffix[1:] / f"m{suffix}" for suffix in (".safetensors", *kinds)]
    for path in paths:
        path.parent.mkdir(parents=True)
        if path.suffix in kinds:
            kind = kinds[path.suffix]
            kind.export(ExportJob(model_file, path, kind.writes[None][0]))
        else:
            modelfile.save(model_file, path)
    return paths


def changed_metadata(path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Rewrite the file with changed metadata and a valid digest."""
    {
        ".safetensors": _in_safetensors,
        ".onnx": _in_onnx,
        ".xml": _in_xml,
        ".pt2": _in_pt2,
        ".pte": _in_pte,
        ".mlpackage": _in_mlpackage,
        ".timm": _in_timm,
    }[path.suffix](path, change)
    reseal(path)


def reseal(path: Path) -> None:
    """Update the digest of a file to its current content."""
    if path.suffix == ".safetensors":
        return
    marked = [part for part in files_of(path) if SEAL.search(part.read_bytes())]
    for part in marked:
        part.write_bytes(SEAL.sub(UNSEALED, part.read_bytes()))
    if marked:
        seal(path)


def _edited(text: str | bytes, change: Callable[[dict[str, Any]], None]) -> str:
    document = json.loads(text)
    change(document)
    return json.dumps(document)


def _in_safetensors(path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    from safetensors import safe_open
    from safetensors.torch import save

    with safe_open(path, "pt") as file:
        metadata, weights = file.metadata(), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    header = json.loads(_edited(metadata[HEADER_KEY], change))
    header.pop("digest", None)
    header["digest"] = modelfile._digest(header, weights)
    path.write_bytes(save(weights, {HEADER_KEY: json.dumps(header)}))


def _in_onnx(path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    import onnx

    model = onnx.load(path)
    for entry in model.metadata_props:
        if entry.key == HEADER_KEY:
            entry.value = _edited(entry.value, change)
    path.write_bytes(model.SerializeToString())


def _in_xml(path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    import xml.etree.ElementTree as ET

    text = path.read_text(encoding="utf-8")
    value = ET.fromstring(text).find(f"rt_info/{HEADER_KEY}").get("value")  # pyright: ignore[reportOptionalMemberAccess]
    new = escape(_edited(value, change), {'"': "&quot;"})  # pyright: ignore[reportArgumentType]
    path.write_text(
        re.sub(rf'<{HEADER_KEY} value="[^"]*"', lambda _: f'<{HEADER_KEY} value="{new}"', text), encoding="utf-8"
    )


def _in_pt2(path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    rewritten(path, {f"extra/{HEADER_KEY}": lambda data: _edited(data, change).encode()})


def _in_pte(path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    content = path.read_bytes()
    start = content.find(b'{"version"')
    end = content.find(b"\0", start)
    new = _edited(content[start:end], change).encode()
    if len(new) <= end - start:  # the format has no room for more
        path.write_bytes(content[:start] + new.ljust(end - start) + content[end:])


def _in_mlpackage(path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    import coremltools as ct

    [part] = path.rglob("*.mlmodel")
    specification: Any = ct.utils.load_spec(str(path))
    known = specification.description.metadata.userDefined
    known[HEADER_KEY] = _edited(known[HEADER_KEY], change)
    part.write_bytes(specification.SerializeToString())


def _in_timm(path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    config = path / "config.json"
    document = json.loads(config.read_text())
    change(document[HEADER_KEY])
    config.write_text(json.dumps(document))


def rewritten(path: Path, changes: dict[str, Callable[[bytes], bytes]], more: dict[str, bytes] | None = None) -> None:
    """Rewrite the archive with these members changed or added. Names are given without the root folder."""
    with zipfile.ZipFile(path) as old:
        comment, members = old.comment, {name: old.read(name) for name in old.namelist()}
    root = next(iter(members)).partition("/")[0]
    for name, change in changes.items():
        members[f"{root}/{name}"] = change(members[f"{root}/{name}"])
    with zipfile.ZipFile(path, "w") as new:
        for name, data in [*members.items(), *((f"{root}/{name}", data) for name, data in (more or {}).items())]:
            new.writestr(name, data)
        new.comment = comment


def flip(path: Path, rng: random.Random, marker: Path) -> None:
    """Change some bytes of one file."""
    part = rng.choice(files_of(path))
    content = bytearray(part.read_bytes())
    for _ in range(rng.choice((1, 3, 30))):
        content[rng.randrange(len(content))] ^= rng.randrange(1, 256)
    part.write_bytes(content)


def zero(path: Path, rng: random.Random, marker: Path) -> None:
    """Zero a range of at most 100 kB in the largest file."""
    part = max(files_of(path), key=lambda part: part.stat().st_size)
    content = bytearray(part.read_bytes())
    length = min(100_000, len(content) // 3)
    start = rng.randrange(len(content) - length)
    content[start : start + length] = bytes(length)
    part.write_bytes(content)


def cut(path: Path, rng: random.Random, marker: Path) -> None:
    """Remove the end of one file."""
    part = rng.choice(files_of(path))
    content = part.read_bytes()
    part.write_bytes(content[: rng.randrange(len(content))])


def swap(path: Path, rng: random.Random, marker: Path) -> None:
    """Swap two members of an archive, two files, or two ranges of a single file, with or without a valid digest."""
    parts = files_of(path)
    if path.suffix == ".pt2":
        with zipfile.ZipFile(path) as archive:
            names = [name.partition("/")[2] for name in archive.namelist()]
            one, other = rng.sample(names, 2)
            root = archive.namelist()[0].partition("/")[0]
            data = {name: archive.read(f"{root}/{name}") for name in (one, other)}
        rewritten(path, {one: lambda _: data[other], other: lambda _: data[one]})
    elif len(parts) > 1:
        one, other = rng.sample(parts, 2)
        first = one.read_bytes()
        one.write_bytes(other.read_bytes())
        other.write_bytes(first)
    else:
        content = path.read_bytes()
        places = sorted(rng.randrange(len(content)) for _ in range(3))
        path.write_bytes(
            content[: places[0]]
            + content[places[1] : places[2]]
            + content[places[0] : places[1]]
            + content[places[2] :]
        )
    if rng.random() < 0.5:
        reseal(path)


def field(path: Path, rng: random.Random, marker: Path) -> None:
    """Change a metadata field at any depth."""

    def change(document: dict[str, Any]) -> None:
        where: Any = document
        while True:
            key = rng.choice([*where] if isinstance(where, dict) else range(len(where)))
            if isinstance(where[key], dict | list) and where[key] and rng.random() < 0.6:
                where = where[key]
                continue
            if isinstance(where, dict) and rng.random() < 0.1:
                del where[key]
            else:
                where[key] = rng.choice(VALUES)
            return

    changed_metadata(path, change)


def code(path: Path, rng: random.Random, marker: Path) -> None:
    """Insert something that a reader might run, download or open."""
    bait = marker.with_suffix(".pt")
    bait.write_bytes(pickle.dumps(Payload(marker)))
    expression = f"open({str(marker)!r}, 'w').close() or 1"
    if path.suffix == ".pt2" and rng.random() < 0.8:
        kind = rng.choice(("opaque_obj_0", "custom_obj_0", "tensor_9", "size", "target", "guard", "name", "samples"))
        if kind in ("opaque_obj_0", "custom_obj_0", "tensor_9"):
            entry = {"path_name": kind, "is_param": False, "use_pickle": True, "tensor_meta": None}
            constants = "data/constants/model_constants_config.json"

            def add(document: dict[str, Any]) -> None:
                document["config"]["extra"] = entry

            more = {f"data/constants/{kind}": bait.read_bytes()}
            rewritten(path, {constants: lambda data: _edited(data, add).encode()}, more)
        elif kind == "samples":
            rewritten(path, {"data/sample_inputs/model.pt": lambda _: bait.read_bytes()})
        else:
            rewritten(path, {"models/model.json": lambda data: _spoiled(data, kind, expression).encode()})
        reseal(path)
        return
    name = rng.choice(NAMES).format(pickle=str(bait))

    def rename(document: dict[str, Any]) -> None:
        architecture = (
            document["architecture"] if "architecture" in document else document["provenance"]["architecture"]
        )
        architecture |= {"name": name, "config": None}

    changed_metadata(path, rename)


def _spoiled(data: bytes, kind: str, expression: str) -> str:
    text = data.decode()
    document = json.loads(text)
    if kind == "size":
        return re.sub(r'"expr_str": "[^"]*"', lambda _: f'"expr_str": {json.dumps(expression)}', text)
    if kind == "guard":
        document["guards_code"] = [expression]
        return json.dumps(document)
    if kind == "target":
        return text.replace('"torch.ops.aten.relu.default"', '"torch.os.abort"')
    return text.replace('"images"', json.dumps(f"images={expression}"))


def untouched(path: Path, rng: random.Random, marker: Path) -> None:
    """Leave the good file unchanged. It must be accepted."""


WAYS = (flip, zero, cut, swap, field, field, code)


def read_all(files: list[str], image: str, results: str, marker: str) -> None:
    """In the child process: run both commands on each file, and write a line of JSON after each command."""
    resource.setrlimit(resource.RLIMIT_DATA, (LIMIT, LIMIT))
    warnings.simplefilter("ignore")
    with Path(results).open("a", encoding="utf-8") as lines:
        print(json.dumps({"ready": True}), file=lines, flush=True)
        for file in files:
            for arguments in (["info", file], ["predict", file, image, "--device", "cpu", "--threads", "1"]):
                row = {"file": file, "verb": arguments[0], **run_one(arguments)}
                row |= {"code_ran": Path(marker).exists()}
                Path(marker).unlink(missing_ok=True)
                row["peak"] = peak()
                print(json.dumps(row), file=lines, flush=True)


def peak() -> int:
    """Peak memory of this process in bytes."""
    [line] = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM")]
    return 1024 * int(line.split()[1])


def run_one(arguments: list[str]) -> dict[str, Any]:
    """Run a command. Returns exit code, message and seconds."""
    sys.argv = ["shvit", *arguments]
    out, err, started, exit_code, failed = io.StringIO(), io.StringIO(), time.perf_counter(), 0, None
    with redirect_stdout(out), redirect_stderr(err):
        try:
            cli.main()
        except SystemExit as stop:
            exit_code = stop.code
        except BaseException as error:
            failed = f"{type(error).__name__}: {error}"[:300]
            import traceback

            failed += " at " + " < ".join(
                f"{f.name}:{f.lineno}" for f in traceback.extract_tb(error.__traceback__)[:-6:-1]
            )
    if failed is None and "Traceback" in err.getvalue():
        failed = err.getvalue()[-300:]
    said = " ".join(err.getvalue().split())[-200:]
    return {"exit": exit_code, "traceback": failed, "said": said, "seconds": round(time.perf_counter() - started, 2)}


def watch(files: list[str], image: Path, folder: Path, marker: Path) -> list[dict[str, Any]]:
    """Read all files in child processes. After a hang or a crash, a new process reads the remaining files."""
    rows: list[dict[str, Any]] = []
    left = list(files)
    while left:
        results = folder / f"rows-{len(rows)}-{len(left)}.jsonl"
        results.write_text("")
        command = [sys.executable, __file__, "--read", json.dumps([left, str(image), str(results), str(marker)])]
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        known, since = 0, time.monotonic()
        while process.poll() is None:
            time.sleep(0.1)
            lines = results.read_text().count("\n")
            if lines > known:
                known, since = lines, time.monotonic()
            if time.monotonic() - since > (PATIENCE if known else START):
                process.kill()
                process.wait()
                break
        done = [json.loads(line) for line in results.read_text().splitlines()][1:]
        rows += done
        full, half = divmod(len(done), 2)
        if full == len(left):
            break
        fate = "hang" if process.returncode == -9 else "crash"
        verb = ("info", "predict")[half]
        lost = {"file": left[full], "verb": verb, fate: process.returncode, "code_ran": marker.exists()}
        rows.append({**lost, "exit": None, "traceback": None, "seconds": PATIENCE, "said": "", "peak": 0})
        marker.unlink(missing_ok=True)
        left = left[full + 1 :]
    return rows


def main() -> None:
    if sys.argv[1:2] == ["--read"]:
        read_all(*json.loads(sys.argv[2]))
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--count", type=int, default=20, help="number of files of each format")
    parser.add_argument("--batch", type=int, default=50, help="number of files that one process reads")
    parser.add_argument("--formats", nargs="*", help="suffixes, such as .pt2; default: all that can be written here")
    parser.add_argument("--keep", type=Path, help="a folder for copies of the files that caused a fault")
    parser.add_argument("--out", type=Path, default=Path("results"))
    arguments = parser.parse_args()
    torch.manual_seed(arguments.seed)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        image, marker = folder / "image.png", folder / "marker"
        noise = np.random.default_rng(arguments.seed).integers(0, 255, (48, 64, 3), dtype=np.uint8)
        Image.fromarray(noise).save(image)
        good = write_good(folder / "good")
        good = [path for path in good if not arguments.formats or path.suffix in arguments.formats]
        rows, table = [], []
        for path in good:
            found = of_format(path, arguments, folder, image, marker)
            rows += found
            table.append({"format": path.suffix, **counted(found)})
            print(table[-1], flush=True)
            for row in found:
                if faults(row):
                    print(" ", row, flush=True)
    about = facts()
    summary = {
        "what": "spoiled model files and exports that made info or predict run code, hang, crash or end in a traceback",
        "value": sum(any(faults(row)) for row in rows),
        "unit": f"of {len(rows)} commands",
        "seed": arguments.seed,
        "files_of_each_format": arguments.count,
        "threads": torch.get_num_threads(),
        "seconds_allowed": PATIENCE,
        "memory_limit": LIMIT,
        "formats": table,
        "faults": [row for row in rows if faults(row)],
        **about,
    }
    arguments.out.mkdir(parents=True, exist_ok=True)
    target = arguments.out / f"hostile-models_{hardware_name(about['hardware'])}_{about['date'][:10]}.json"
    target.write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")
    print(f"{summary['value']} {summary['unit']}; wrote {target}")


def of_format(
    path: Path, arguments: argparse.Namespace, folder: Path, image: Path, marker: Path
) -> list[dict[str, Any]]:
    """Change the file in `count` ways, and read each result."""
    rng = random.Random(f"{arguments.seed} {path.suffix}")
    here = folder / path.suffix[1:]
    files = {}
    for number in range(arguments.count):
        way = WAYS[number % len(WAYS)] if number else untouched
        place = here / f"{number:04}-{way.__name__}"
        shutil.copytree(path.parent, place)
        file = place / path.name
        way(file, rng, marker)
        files[str(file)] = way.__name__
    rows = []
    names = list(files)
    for start in range(0, len(names), arguments.batch):
        rows += watch(names[start : start + arguments.batch], image, here, marker)
    for row in rows:
        row["way"] = files[row["file"]]
        if row["way"] == "untouched" and row["exit"] != 0 and path.suffix not in NOT_RUN_HERE:
            raise SystemExit(f"the good {path.suffix} file is not accepted: {row}")
        if faults(row) and arguments.keep:
            source = Path(row["file"]).parent
            shutil.copytree(source, arguments.keep / path.suffix[1:] / source.name, dirs_exist_ok=True)
        row["file"] = str(Path(row["file"]).relative_to(folder))
    shutil.rmtree(here)
    return rows


def faults(row: dict[str, Any]) -> list[str]:
    """The faults in a result: hang, crash, traceback or executed code."""
    found = [name for name in ("hang", "crash") if name in row]
    return found + [name for name in ("traceback", "code_ran") if row.get(name)]


def counted(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Count the exit codes and the faults."""
    ends = Counter({0: "accepted", 1: "failed", 2: "refused"}.get(row["exit"], "other") for row in rows)
    wrong = Counter(fault for row in rows for fault in faults(row))
    unnoticed = [row for row in rows if row["exit"] == 0 and row["way"] in ("flip", "zero", "cut")]
    return {
        "commands": len(rows),
        **{name: ends[name] for name in ("accepted", "refused", "failed", "other")},
        "damage_unnoticed": len(unnoticed),
        **{name: wrong[name] for name in ("traceback", "hang", "crash", "code_ran")},
        "slowest_seconds": max(row["seconds"] for row in rows),
        "peak_bytes": max(row["peak"] for row in rows),
    }


if __name__ == "__main__":
    main()
