"""Latency of models in the page of `shvit export --format web`, in headless Chromium, and the size of the page.

Networks given by name have random weights. int8 is calibrated on crops of two photographs from scikit-learn; the
latency does not depend on the values. All models are exported in the same way, and classify the same photographs in
turn: each round is one photograph per model. The latency is the one that the page shows: resizing, the network and the
scores, without decoding. Without special HTTP headers, WebAssembly runs on one thread.

The page's size is that of all files that the browser requests until the model is ready, compressed with gzip.

    python benchmarks/web.py shvit_s1 timm/mobilenetv4_conv_small timm/mobilenetv3_large_100
"""

import argparse
import functools
import gzip
import json
import shutil
import sys
import tempfile
import threading
from dataclasses import replace
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from itertools import cycle
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from playwright.sync_api import Browser, expect, sync_playwright
from sklearn.datasets import load_sample_images

from shvit import engines
from shvit.bench.case import open_model
from shvit.bench.report import hardware_name
from shvit.bench.timing import interleave
from shvit.engines.base import ExportJob, Shapes
from shvit.engines.exported import ExpectedSample
from shvit.errors import Failure, InputError
from shvit.export.images import sample_photos
from shvit.modelfile import ModelFile
from shvit.provenance import facts
from shvit.tasks import task_of

HEIGHT, WIDTH = 360, 480
CALIBRATION_IMAGES = 60
PROGRAMS = "chromium", "chromium-browser", "google-chrome"
SECONDS = 120


def export(model_file: ModelFile, precision: str, out: Path) -> None:
    """Write the web folder of a model, with a sample of one class."""
    read = task_of(model_file).fast_reader(model_file.preprocess)
    photos = sample_photos(CALIBRATION_IMAGES)
    calibration = torch.stack([read(photo)[0] for photo in photos]).split(10)
    unknown = ExpectedSample("sample.png", (0,))
    job = ExportJob(model_file, out, precision, Shapes(batch=1), calibration, None, 1, True, unknown, photos[0])
    kind = engines.FORMATS["web"]
    kind.export(job)
    score = engines.load(engines.read(out)).results(photos[0])["scores"][0]
    kind.fill_sample(out, unknown, replace(unknown, scores=(round(float(score), 6),)))


def write_photos(folder: Path, count: int) -> list[Path]:
    """Different crops of the two photographs, as JPEG files."""
    paths = []
    for index in range(count):
        photo = load_sample_images().images[index % 2]
        top, left = (index * 7) % (photo.shape[0] - HEIGHT), (index * 13) % (photo.shape[1] - WIDTH)
        path = folder / f"{index}.jpg"
        Image.fromarray(photo[top : top + HEIGHT, left : left + WIDTH]).save(path, quality=90)
        paths.append(path)
    return paths


class Page:
    """The page of a web folder, which classifies one photograph after another."""

    def __init__(self, browser: Browser, folder: Path, photos: list[Path]) -> None:
        asked = set()

        class Handler(SimpleHTTPRequestHandler):
            def log_message(self, *arguments: Any) -> None:
                asked.add(self.path.removeprefix("/") or "index.html")

        server = ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Handler, directory=folder))
        threading.Thread(target=server.serve_forever, daemon=True).start()
        self.page = browser.new_page()
        self.page.goto(f"http://localhost:{server.server_port}/")
        self.caption, self.photos = self.page.locator("#caption"), cycle(photos)
        expect(self.caption).to_have_text("Sample picture", timeout=1000 * SECONDS)
        expect(self.page.locator("#runs-on")).to_have_text("WebAssembly, 1 thread")
        expect(self.page.locator("#check")).to_have_text("passed")
        contents = [(folder / name).read_bytes() for name in sorted(asked)]
        self.bytes = sum(map(len, contents))
        self.bytes_gzipped = sum(len(gzip.compress(content, 6)) for content in contents)

    def time(self) -> list[float]:
        """Classify the next photograph. Returns the latency in seconds."""
        photo = next(self.photos)
        self.page.bring_to_front()
        self.page.set_input_files("#file", photo)
        expect(self.caption).to_have_text(photo.name, timeout=1000 * SECONDS)
        return [float(self.page.get_attribute("#latency", "data-milliseconds") or "nan") / 1000]


def measure(names: list[str], precisions: list[str], images: int, program: str, folder: Path) -> dict[str, Any]:
    """Export all models, and time them in turn."""
    photos = write_photos(folder, images)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
        pages: dict[tuple[str, str], Page] = {}
        sizes: dict[str, int] = {}
        for index, name in enumerate(names):
            opened = open_model(name)
            if not isinstance(opened, ModelFile):
                raise InputError(f"{name} is not a model file")
            sizes[name] = opened.preprocess.image_size
            for precision in precisions:
                out = folder / f"{index}-{precision}.web"
                export(opened, precision, out)
                pages[name, precision] = Page(browser, out, photos)
                print("loaded", name, precision, file=sys.stderr, flush=True)
        for page in pages.values():
            page.time()
        timings, broken = interleave(pages, images)
        version = browser.version
        browser.close()
    rows = [
        {
            "model": name,
            "precision": precision,
            "image_size": sizes[name],
            "seconds": timing.median,
            "spread": timing.spread,
            "p95": timing.p95,
            "round_seconds": timing.rounds,
            "page_bytes": pages[name, precision].bytes,
            "page_bytes_gzipped": pages[name, precision].bytes_gzipped,
        }
        for (name, precision), timing in timings.items()
    ]
    return {"rows": rows, "failed": {" ".join(key): reason for key, reason in broken.items()}, "chromium": version}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", help="shvit_s1 to shvit_s4, timm/NAME, or model files of classifiers")
    parser.add_argument("--precision", nargs="+", default=["int8", "fp32"])
    parser.add_argument("--images", type=int, default=50, help="photographs per model")
    parser.add_argument("--chromium", default=next(filter(None, map(shutil.which, PROGRAMS)), None))
    parser.add_argument("--hardware", help="short name of the machine, for the result's file name")
    parser.add_argument("--results", type=Path, default=Path(__file__).parents[1] / "results")
    args = parser.parse_args()

    if args.chromium is None:
        raise InputError("Chromium is not installed: give its path with --chromium")
    about = facts()
    with tempfile.TemporaryDirectory() as folder:
        measured = measure(args.models, args.precision, args.images, args.chromium, Path(folder))
    first = measured["rows"][0]
    result = {
        "what": f"{first['model']}, {first['precision']}, in headless Chromium, one image of {WIDTH}x{HEIGHT} pixels",
        "value": first["seconds"],
        "unit": "seconds per image, median",
        "threads": 1,
        "images": args.images,
        **measured,
        **about,
    }
    name = args.hardware or hardware_name(about["hardware"])
    path = args.results / f"web_{name}_{about['date'][:10]}.json"
    path.write_text(json.dumps(result, indent=2) + "\n")
    for row in measured["rows"]:
        print(
            f"{row['model']:<32} {row['precision']:<5} {row['image_size']} pixels {row['seconds'] * 1e3:7.2f} ms  "
            f"page {row['page_bytes_gzipped'] / 1e6:.1f} MB"
        )
    print(f"wrote {path}")


if __name__ == "__main__":
    try:
        main()
    except (InputError, Failure) as error:
        sys.exit(f"error: {error}")
