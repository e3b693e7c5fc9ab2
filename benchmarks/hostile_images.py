"""Run predict, eval and a training epoch on damaged images. Check for tracebacks, hangs, lost rows and high memory use.

Photographs are written in many formats and damaged: bytes are changed, the end is cut off, parts are repeated,
removed or taken from another file, the image size in the header is replaced, JPEG scans are repeated. The class
folders also contain undamaged images. The three commands run on each chunk of images, in separate processes whose
peak memory is recorded.

    python benchmarks/hostile_images.py ../shared/data/photos --images 200 --seed 0
"""

import argparse
import io
import json
import os
import random
import signal
import struct
import subprocess
import sys
import tempfile
import time
import zlib
from collections import Counter
from collections.abc import Callable
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from PIL import Image, features

from shvit.bench.report import hardware_name
from shvit.provenance import facts

TURNED = Image.Exif()
TURNED[0x0112] = 6
KINDS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "jpeg": ("JPEG", ".jpg", {"quality": 90}),
    "progressive jpeg": ("JPEG", ".jpeg", {"quality": 90, "progressive": True}),
    "turned jpeg": (
        "JPEG",
        ".jpe",
        {"exif": TURNED},
    ),
    "grey jpeg": ("JPEG", ".jpg", {"mode": "L"}),
    "cmyk jpeg": ("JPEG", ".jpg", {"mode": "CMYK"}),
    "png": ("PNG", ".png", {}),
    "png with palette": ("PNG", ".png", {"mode": "P"}),
    "png with alpha": ("PNG", ".png", {"mode": "RGBA"}),
    "deep png": ("PNG", ".png", {"mode": "I;16"}),
    "webp": ("WEBP", ".webp", {}),
    "animated webp": ("WEBP", ".webp", {"frames": 3}),
    "gif": ("GIF", ".gif", {"mode": "P"}),
    "animated gif": ("GIF", ".gif", {"mode": "P", "frames": 3}),
    "bmp": ("BMP", ".bmp", {}),
    "tiff": ("TIFF", ".tif", {}),
    "tiff by lzw": ("TIFF", ".tiff", {"compression": "tiff_lzw"}),
    "tiff by jpeg": ("TIFF", ".tiff", {"compression": "jpeg"}),
    "ppm": ("PPM", ".ppm", {}),
    **({"avif": ("AVIF", ".avif", {})} if features.check("avif") else {}),
    **({"jpeg 2000": ("JPEG2000", ".jp2", {})} if features.check("jpg_2000") else {}),
}
"""Pillow's format, the suffix, and options for saving, by name."""
SIDES = 0, 1, 2, 255, 5_000, 9_400, 20_000, 65_500, 65_535, 1_000_000, 2**31 - 1, 2**32 - 1
"""Values that replace the width or height in a header."""
WHOLE = 8
"""Number of undamaged images in each class folder."""
TRAIN = ["--model", "shvit_s1", "--image-size", "32", "--epochs", "1", "--batch-size", "16", "--workers", "0"]
FIXED = ["--device", "cpu", "--max-bad-share", "1"]


def encoded(photo: Path, kind: str, size: int) -> bytes:
    """The photograph in this format, with a longer side of at most `size` pixels."""
    format_, _, options = KINDS[kind]
    options = dict(options)
    mode, frames = options.pop("mode", "RGB"), options.pop("frames", 1)
    with Image.open(photo) as opened:
        image = opened.convert("RGB")
    image.thumbnail((size, size))
    image = image.convert("L").convert("I;16") if mode == "I;16" else image.convert(mode)
    if frames > 1:
        options |= {"save_all": True, "append_images": [image.rotate(90 * turn) for turn in range(1, frames)]}
    buffer = io.BytesIO()
    image.save(buffer, format_, **options)
    return buffer.getvalue()


def flipped(data: bytes, chance: random.Random, within: int | None = None) -> bytes:
    changed = bytearray(data)
    for _ in range(chance.choice((1, 2, 8, 32))):
        changed[chance.randrange(min(len(data), within or len(data)))] = chance.randrange(256)
    return bytes(changed)


def in_header(data: bytes, chance: random.Random) -> bytes:
    return flipped(data, chance, 100)


def truncated(data: bytes, chance: random.Random) -> bytes:
    return data[: chance.randrange(len(data))]


def repeated(data: bytes, chance: random.Random) -> bytes:
    start, end = sorted(chance.randrange(len(data)) for _ in range(2))
    return data[:end] + data[start:end][:100_000] * chance.choice((1, 2, 50)) + data[end:]


def removed(data: bytes, chance: random.Random) -> bytes:
    start, end = sorted(chance.randrange(len(data)) for _ in range(2))
    return data[:start] + data[end:]


def rescanned(data: bytes, chance: random.Random) -> bytes:
    """Repeat the last scan of a JPEG."""
    start, end = data.rfind(b"\xff\xda"), data.rfind(b"\xff\xd9")
    if start < 0 or end < start:
        return repeated(data, chance)
    return data[:end] + data[start:end] * chance.choice((5, 90, 400)) + data[end:]


def resized(data: bytes, chance: random.Random) -> bytes:
    """Replace the width or height in the header. The checksum of a PNG header is corrected."""
    with Image.open(io.BytesIO(data)) as image:
        old = chance.choice(image.size)
    new = chance.choice(SIDES)
    for form in (">H", "<H", ">I", "<I"):
        if new < 2 ** (8 * struct.calcsize(form)):
            head, rest = data[:1000], data[1000:]
            data = head.replace(struct.pack(form, old), struct.pack(form, new), 1) + rest
    if data.startswith(b"P6"):
        data = data.replace(str(old).encode(), str(new).encode(), 1)
    if data.startswith(b"\x89PNG"):
        data = data[:29] + struct.pack(">I", zlib.crc32(data[12:29])) + data[33:]
    return data


MUTATIONS: tuple[Callable[[bytes, random.Random], bytes], ...] = (
    flipped, in_header, truncated, repeated, removed, rescanned, resized, resized
)  # fmt: skip


def spliced(one: bytes, other: bytes, chance: random.Random) -> bytes:
    return one[: chance.randrange(len(one))] + other[chance.randrange(len(other)) :]


def spoiled(photos: list[Path], chance: random.Random) -> tuple[str, str, bytes]:
    """Damage a photograph. Returns a description of the damage, the suffix, and the file content."""
    kind, photo = chance.choice(list(KINDS)), chance.choice(photos)
    data = encoded(photo, kind, chance.choice((64, 200, 500)))
    done = []
    for _ in range(chance.choice((1, 1, 1, 2))):
        if chance.random() < 0.1:
            data = spliced(data, encoded(photo, chance.choice(list(KINDS)), 64), chance)
            done.append("spliced")
            continue
        mutation = chance.choice(MUTATIONS)
        try:
            data = mutation(data, chance)
        except Exception:  # an earlier change left too little of the file
            continue
        done.append(mutation.__name__)
    return f"{kind}, {' and '.join(done)}", KINDS[kind][1], data


def fill(folder: Path, photos: list[Path], count: int, chance: random.Random) -> Counter[str]:
    """Write class folders with `count` damaged and some undamaged images. Returns the number of images by damage."""
    done: Counter[str] = Counter()
    places = [folder / split / name for split in ("train", "train", "val") for name in "ab"]
    for place in places:
        place.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        about, suffix, data = spoiled(photos, chance)
        (chance.choice(places) / f"{number:05}{suffix}").write_bytes(data)
        done[about] += 1
    for place in sorted(set(places)):
        for number in range(WHOLE):
            kind = list(KINDS)[number % len(KINDS)]
            (place / f"whole-{number}{KINDS[kind][1]}").write_bytes(encoded(photos[number], kind, 64))
    return done


def run(command: list[str], most_seconds: float) -> dict[str, Any]:
    """Run a command. Returns exit code, seconds, peak memory in MiB, and problems."""
    began = time.monotonic()
    with tempfile.TemporaryFile("w+") as errors:
        process = subprocess.Popen(
            [sys.executable, "-m", "shvit", *command],
            stdout=subprocess.DEVNULL,
            stderr=errors,
            text=True,
            start_new_session=True,
        )
        hung = False
        while not (waited := os.wait4(process.pid, os.WNOHANG))[0]:
            if not hung and time.monotonic() - began > most_seconds:
                hung = True
                os.killpg(process.pid, signal.SIGKILL)
            time.sleep(0.05)
        _, status, usage = waited
        process.returncode = os.waitstatus_to_exitcode(status)
        errors.seek(0)
        text = errors.read()
    wrong = []
    if hung:
        wrong.append("hang")
    elif process.returncode < 0:
        wrong.append(f"killed by {signal.Signals(-process.returncode).name}")
    if "Traceback (most recent call last)" in text:
        wrong.append("traceback")
    if "Warning:" in text:
        wrong.append("warning")
    peak = usage.ru_maxrss // (2**20 if sys.platform == "darwin" else 2**10)
    seconds = round(time.monotonic() - began, 1)
    return {
        "verb": command[0],
        "code": process.returncode,
        "seconds": seconds,
        "peak_mib": peak,
        "wrong": wrong,
        "stderr": text[-3000:] if wrong or process.returncode else "",
    }


def try_all(data: Path, model: Path, out: Path, most_seconds: float) -> list[dict[str, Any]]:
    """Run the three commands on a folder of images."""
    out.mkdir(exist_ok=True)
    predict = run(["predict", str(model), str(data), "--out", str(out / "predictions.jsonl")], most_seconds)
    images = sum(path.is_file() for path in data.rglob("*"))
    written = out / "predictions.jsonl"
    lines = written.read_text(encoding="utf-8").splitlines() if written.exists() else []
    predict["bad_images"] = sum(json.loads(line)["error"] is not None for line in lines)
    if len(lines) != images:
        predict["wrong"].append(f"{len(lines)} rows for {images} images")
    evaluation = run(["eval", str(model), str(data), "--split", "all", "--out", str(out / "eval")], most_seconds)
    training = run(["train", str(data), "--out", str(out / "run"), *TRAIN, *FIXED], most_seconds)
    return [predict, evaluation, training]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photos", type=Path, help="a folder of good photographs")
    parser.add_argument("--images", type=int, default=200, help="number of damaged images")
    parser.add_argument("--lot", type=int, default=200, help="images per chunk")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", type=Path, help="a folder to keep the images in")
    parser.add_argument("--results", type=Path, default=Path(__file__).parents[1] / "results")
    args = parser.parse_args()

    about = facts()
    photos = sorted(path for path in args.photos.rglob("*") if path.suffix.lower() in (".jpg", ".jpeg"))
    chance = random.Random(args.seed)
    done: Counter[str] = Counter()
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as temporary:
        folder = args.keep or Path(temporary)
        fill(folder / "whole", photos, 0, chance)
        first = run(["train", str(folder / "whole"), "--out", str(folder / "model"), *TRAIN, *FIXED], 600)
        model = folder / "model" / "best.safetensors"
        assert not first["code"], first["stderr"]
        whole = try_all(folder / "whole", model, folder / "of whole", 600)
        print(
            "whole images:", *({key: row[key] for key in ("verb", "seconds", "peak_mib")} for row in whole), flush=True
        )
        for number, start in enumerate(range(0, args.images, args.lot)):
            count = min(args.lot, args.images - start)
            # In a separate process, because child processes inherit this process's peak memory.
            with get_context("spawn").Pool(1) as builder:
                arguments = folder / f"lot {number}", photos, count, random.Random(chance.random())
                done += builder.apply(fill, arguments)
            most_seconds = max(row["seconds"] for row in whole) + 60 + count
            rows += try_all(folder / f"lot {number}", model, folder / f"of lot {number}", most_seconds)
            for row in rows[-3:]:
                print(number, {key: value for key, value in row.items() if value}, flush=True)
    wrong = [row for row in rows if row["wrong"]]
    result = {
        "what": f"predict, eval and a training epoch on {args.images} damaged images, {args.lot} at a time",
        "value": len(wrong),
        "unit": "commands that hung, lost a row, or ended with a traceback or by a signal",
        "seed": args.seed,
        "commands": len(rows),
        "tracebacks": sum("traceback" in row["wrong"] for row in rows),
        "hangs": sum("hang" in row["wrong"] for row in rows),
        "bad_images": sum(row.get("bad_images", 0) for row in rows),
        "peak_mib": {
            verb: max(row["peak_mib"] for row in rows if row["verb"] == verb) for verb in ("predict", "eval", "train")
        },
        "peak_mib_of_whole_images": {row["verb"]: row["peak_mib"] for row in whole},
        "rows": rows,
        "mutations": dict(done.most_common()),
        "flags": [*TRAIN, *FIXED],
        "threads": os.environ.get("OMP_NUM_THREADS"),
        **about,
    }
    path = args.results / f"hostile-images_{hardware_name(about['hardware'])}_{about['date'][:10]}.json"
    path.write_text(json.dumps(result, indent=2) + "\n")
    print(f"{len(wrong)} of {len(rows)} commands failed; wrote {path}")


if __name__ == "__main__":
    main()
