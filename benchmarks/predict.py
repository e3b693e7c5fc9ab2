"""Speed, memory and accuracy of labelling a folder of photographs with `Predictor`, compared with a plain loop.

The plain loop uses PIL, timm's evaluation transform, a DataLoader with two workers, and timm's shvit_s1 in eager fp32
with 16 images per batch and torch's default number of threads. Both label the same files, alternating in each round.
Loading and a first run of the models are not timed. The result has the median speeds of the rounds, and the
median of the ratios of all rounds.

With all cores busy, the time of an image is the sum of decoding and inference. For photographs of 200,000 pixels in
100 kB, Huffman decoding takes two thirds of the decoding time, which limits the speed. LOG.md has the details.

Memory is the peak of a new process that labels 2,000 files, and of one that labels ten times as many. For the
agreement, the labels of the fast decoding path are compared with those of PIL and timm's transform, on the same
engine in fp32: on images of a classification dataset, and on random crops of photographs at random scales. Half of
the crops are so large that their JPEG is decoded at a reduced size.

    python benchmarks/predict.py ../shared/data/photos --model s1_int8.xml \\
        --agreement runs/full/best.safetensors --images ../shared/data/imagenette160/val
"""

import argparse
import io
import json
import random
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from shvit import engines
from shvit.data.decode import ImageInput
from shvit.data.reduced import SIMPLEJPEG
from shvit.data.transforms import SHRINK_UNTIL, EvalReader, fast_eval_decoder
from shvit.predict.predictor import Predictor, cores
from shvit.pretrained import load, load_model
from shvit.provenance import facts

BATCH = 16


class Photographs(torch.utils.data.Dataset):
    """Dataset of files, opened and transformed as in timm's loaders."""

    def __init__(self, paths: list[Path]) -> None:
        from timm.data import create_transform

        self.paths = paths
        self.transform: Any = create_transform(224, crop_pct=0.875, interpolation="bicubic")

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> torch.Tensor:
        return self.transform(Image.open(self.paths[index]).convert("RGB"))


class PlainLoop:
    """Labels images with timm's shvit_s1 in eager fp32."""

    def __init__(self) -> None:
        import timm

        self.model = timm.create_model("shvit_s1").eval()

    @torch.inference_mode()
    def __call__(self, paths: list[Path]) -> list[int]:
        batches = torch.utils.data.DataLoader(Photographs(paths), batch_size=BATCH, num_workers=2)
        return [label for images in batches for label in self.model(images).argmax(1).tolist()]


def folder_of_links(photos: list[Path], count: int, folder: Path) -> list[Path]:
    """Create `count` links that cycle through the photographs."""
    folder.mkdir()
    links = [folder / f"{index:06}{photos[index % len(photos)].suffix}" for index in range(count)]
    for index, link in enumerate(links):
        link.symlink_to(photos[index % len(photos)].resolve())
    return links


def speeds(predictor: Predictor, paths: list[Path], rounds: int) -> dict[str, Any]:
    """Throughput of the plain loop and of `Predictor`, which alternate in each round."""
    programs = {"plain": PlainLoop(), "shvit": predictor}
    for program in programs.values():
        program(paths[: 4 * BATCH])
    measured: dict[str, list[float]] = {name: [] for name in programs}
    for _ in range(rounds):
        for name, program in programs.items():
            started = time.perf_counter()
            labels = program(paths)
            measured[name].append(len(labels) / (time.perf_counter() - started))
            print(name, f"{measured[name][-1]:.1f} images/s", flush=True)
    return {
        "images_per_second": {name: statistics.median(values) for name, values in measured.items()},
        "rounds": measured,
        "ratio": statistics.median(s / p for s, p in zip(measured["shvit"], measured["plain"], strict=True)),
    }


def peak_memory(options: list[str], paths: int, folder: Path) -> float:
    """Peak memory in MiB of a new process that labels this number of files."""
    command = [sys.executable, __file__, str(folder), *options, "--only-label", str(paths)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout)["peak_mib"]


def parts(photos: list[Path], count: int, least_side: int, seed: int = 0) -> Iterator[bytes]:
    """Write JPEG files of random crops of the photographs, with random sizes, qualities and chroma subsampling.

    Every second crop is small: its shorter side is 0.5 to 2 times the size it is resized to. The other crops are
    decoded at a half or a quarter of their size.
    """
    draw = random.Random(seed)
    for index in range(count):
        image = Image.open(draw.choice(photos)).convert("RGB")
        width, height = (int(side * draw.uniform(0.5, 1)) for side in image.size)
        left, top = draw.randint(0, image.width - width), draw.randint(0, image.height - height)
        part = image.crop((left, top, left + width, top + height))
        wanted = least_side * draw.uniform(2, 5) if index % 2 else least_side / SHRINK_UNTIL * draw.uniform(0.5, 2)
        scale = wanted / min(part.size)
        part = part.resize((round(width * scale), round(height * scale)), Image.Resampling.BICUBIC)
        buffer = io.BytesIO()
        part.save(buffer, "JPEG", quality=draw.choice([75, 85, 92, 96]), subsampling=draw.choice([0, 2]))
        yield buffer.getvalue()


def agreement(model: str, sources: Iterable[ImageInput]) -> dict[str, Any]:
    """Compare labels, probabilities and pixels of the two decoding paths."""
    model_file = load_model(model)
    engine = engines.load(model_file, "torch", "fp32", "cpu")
    fast, exact = fast_eval_decoder(model_file.preprocess), EvalReader(model_file.preprocess)
    same, changes, levels = 0, [], []
    queue = iter(sources)
    while batch := list(islice(queue, BATCH)):
        pixels = [torch.stack([path(source) for source in batch]) for path in (fast, exact)]
        one, other = (engine(images).softmax(1) for images in pixels)
        same += int((one.argmax(1) == other.argmax(1)).sum())
        changes += (one - other).abs().amax(1).tolist()
        levels += (pixels[0].float() - pixels[1].float()).abs().mean((1, 2, 3)).tolist()
    return {
        "images": len(levels),
        "top1_agreement": same / len(levels),
        "probability_change_mean": statistics.mean(changes),
        "probability_change_max": max(changes),
        "levels_of_255_mean": statistics.mean(levels),
        "levels_of_255_worst_image": max(levels),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photos", type=Path)
    parser.add_argument("--model", required=True, help="a model file, an exported file or published weights")
    parser.add_argument("--engine", default="auto")
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--files", type=int, default=2000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument(
        "--memory-files",
        type=int,
        nargs="*",
        default=[2000, 20_000],
        help="numbers of files for which to measure memory; give none to skip this",
    )
    parser.add_argument("--agreement", help="a model file; its labels with both decoding paths are compared")
    parser.add_argument("--images", type=Path, help="a folder of further images for the comparison of labels")
    parser.add_argument(
        "--parts", type=int, default=1000, help="number of crops of photographs for the comparison of labels"
    )
    parser.add_argument("--hardware", default="cpu", help="short name of the machine, for the result's file name")
    parser.add_argument("--results", type=Path, default=Path(__file__).parents[1] / "results")
    parser.add_argument("--only-label", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()

    about = facts()
    photos = sorted(path for path in args.photos.iterdir() if path.is_file())
    if args.only_label:
        predictor = Predictor(load(args.model), args.engine, args.precision, threads=args.threads, batch_size=BATCH)
        for _ in predictor.stream(photos[: args.only_label]):
            pass
        print(json.dumps({"peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}))
        return

    result: dict[str, Any] = {"what": "labels for photographs: Predictor compared with a plain loop of timm's shvit_s1"}
    predictor = Predictor(load(args.model), args.engine, args.precision, threads=args.threads, batch_size=BATCH)
    result |= {"engine": predictor.engine.name, "precision": predictor.engine.precision}
    with tempfile.TemporaryDirectory() as name:
        paths = folder_of_links(photos, args.files, Path(name) / "photos")
        measured = speeds(predictor, paths, args.rounds)
        result |= {"value": measured.pop("ratio"), "unit": "times the images/s of the plain loop", **measured}
        if args.memory_files:
            many = Path(name) / "many"
            folder_of_links(photos, max(args.memory_files), many)
            options = ["--model", args.model, "--engine", args.engine, "--precision", args.precision]
            result["peak_mib"] = {count: peak_memory(options, count, many) for count in args.memory_files}
    if args.agreement:
        preprocess = load_model(args.agreement).preprocess
        least = int(SHRINK_UNTIL * preprocess.image_size / preprocess.crop)
        result["agreement"] = {"parts of photographs": agreement(args.agreement, parts(photos, args.parts, least))}
        result["agreement"]["photographs"] = agreement(args.agreement, photos)
        if args.images:
            files = sorted(path for path in args.images.rglob("*") if path.is_file())
            result["agreement"][f"{args.images.parent.name}/{args.images.name}"] = agreement(args.agreement, files)
    result |= {"files": args.files, "simplejpeg": SIMPLEJPEG, "cores": cores()}
    result |= {"threads": args.threads, "torch_threads": torch.get_num_threads(), **about}
    path = args.results / f"predict_{args.hardware}_{about['date'][:10]}.json"
    path.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
