"""The page of the web folder, in Chromium: what people see, what it computes, and that it works offline."""

import functools
import json
import os
import shutil
import threading
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from test_export_detectors import detector
from torch import nn

import shvit
from conftest import picture, random_images, reseal, tiny_architecture, trained_looking
from shvit.data.transforms import Preprocess
from shvit.engines.web import runtime
from shvit.errors import Failure
from shvit.export.export import export_model

pytest.importorskip("onnxruntime")
sync_api = pytest.importorskip("playwright.sync_api")
pytestmark = pytest.mark.slow

LONG_NAME = "a class with a name so long that it fills more than one line"
CLASSES = "tench", "<img src=x onerror=alert(1)>", "ü", LONG_NAME, "e"
CAMERA = ("--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream")
PROGRAMS = "chromium", "chromium-browser", "google-chrome", "chrome"
ISOLATED = {"Cross-Origin-Opener-Policy": "same-origin", "Cross-Origin-Embedder-Policy": "require-corp"}


@pytest.fixture(scope="module")
def browser():
    """Chromium with a camera that shows a test pattern."""
    with sync_api.sync_playwright() as playwright:
        program = next(filter(None, map(shutil.which, PROGRAMS)), playwright.chromium.executable_path)
        if not Path(program).exists():
            pytest.skip("Chromium is not installed")
        started = playwright.chromium.launch(executable_path=program, args=["--no-sandbox", *CAMERA])
        yield started
        started.close()


@pytest.fixture(scope="module")
def write(tmp_path_factory):
    """Writes the web folder of a model once."""
    try:
        runtime.fetched_package()
    except Failure as failure:
        pytest.skip(str(failure))

    @functools.cache
    def write(name: str) -> Path:
        out = tmp_path_factory.mktemp(name) / "m.web"
        if name == "classify":
            model = trained_looking(tiny_architecture(len(CLASSES)).build())
            model_file = shvit.ModelFile(model, CLASSES, Preprocess(64))
        else:
            model_file = detector({"detect": "retinanet", "segment": "mask_rcnn"}[name])
        if name == "detect":
            nn.init.normal_(model_file.model.head.classification_head.cls_logits.weight, std=0.005)
            model_file.model.head.classification_head.cls_logits.bias.data.fill_(-0.5)
        export_model(model_file, "web", out, "fp32")
        return out

    return write


@pytest.fixture
def copy(write, tmp_path):
    """Gives a folder of one's own."""
    return lambda name, to="m.web": shutil.copytree(write(name), tmp_path / to)


@pytest.fixture
def serve():
    """Serves a folder, and gives its address and the list of requested paths."""
    servers = []

    def start(folder: Path, headers=None) -> tuple[str, list[str]]:
        asked = []

        class Handler(SimpleHTTPRequestHandler):
            def end_headers(self):
                for name, value in (headers or {}).items():
                    self.send_header(name, value)
                super().end_headers()

            def log_message(self, *_):
                asked.append(self.path)

        server = ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Handler, directory=folder))
        servers.append(server)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        return f"http://localhost:{server.server_port}/", asked

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


@pytest.fixture
def visit(browser, serve):
    """Opens the page of a folder, and waits until it shows its sample. The test fails if the page logs an error."""
    contexts, faults = [], []

    def visit(folder: Path, headers=None, under="", **options):
        context = browser.new_context(permissions=["camera"], **options)
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda message: faults.append(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda error: faults.append(str(error)))
        page.goto(serve(folder, headers)[0] + under)
        expect(page.locator("#caption")).to_have_text("Sample picture", timeout=60_000)
        return page

    yield visit
    for context in contexts:
        context.close()
    assert faults == []


expect = sync_api.expect


def choose(page, path: Path) -> None:
    page.set_input_files("#file", path)
    expect(page.locator("#caption")).to_have_text(path.name, timeout=30_000)


def scores_on(page) -> dict[int, float]:
    rows = page.eval_on_selector_all("#results li", "rows => rows.map(row => [row.dataset.index, row.dataset.score])")
    return {int(index): float(score) for index, score in rows}


def predicted(folder: Path, path: Path) -> dict[int, float]:
    exported = shvit.load(folder)
    [prediction] = shvit.Predictor(exported)(path)
    names = [exported.classes.index(label) for label in prediction.labels]
    return dict(zip(names, prediction.scores, strict=True))


def kept(page) -> set[str]:
    """The addresses in the caches of this origin."""
    script = """async () => (await Promise.all((await caches.keys()).map(async name =>
        (await (await caches.open(name)).keys()).map(request => request.url)))).flat()"""
    return set(page.evaluate(script))


def until_offline(page) -> None:
    """Waits until the service worker has kept the page."""
    page.evaluate("async () => { await navigator.serviceWorker.ready }")
    page.wait_for_timeout(300)


def some_photos(folder: Path) -> list[Path]:
    """Ten JPEGs of patches of color, of different sizes."""
    for index, (height, width) in enumerate([(60, 80), (200, 150), (64, 64), (97, 301), (480, 640)] * 2):
        pixels = random_images(1, height, width)[0].permute(1, 2, 0).numpy()
        Image.fromarray(pixels).save(folder / f"{index}.jpg", quality=90)
    return sorted(folder.glob("*.jpg"))


def test_ten_photographs(visit, write, tmp_path, request):
    """The page gives the scores of `shvit predict`."""
    page = visit(write("classify"))
    expect(page.locator("#check")).to_have_text("passed")
    assert float(page.get_attribute("#check", "data-difference")) < 1e-3
    try:
        photos = sorted(request.getfixturevalue("photos").glob("*.JPEG"))[:10]
    except pytest.skip.Exception:
        photos = some_photos(tmp_path)
    for path in photos:
        choose(page, path)
        assert scores_on(page) == pytest.approx(predicted(write("classify"), path), abs=0.01)
    expect(page.locator("#latency")).to_contain_text(" ms")
    expect(page.locator("#spoken")).to_contain_text(" %")


def test_odd_pictures(visit, write, tmp_path):
    """Long ones, one pixel, transparent ones, and turned ones are read as by `shvit predict`."""
    base = picture(120, size=(90, 160))
    base.resize((12_000, 1)).save(tmp_path / "thin.png")
    base.resize((1, 9_000)).save(tmp_path / "tall.png")
    base.resize((1, 1)).save(tmp_path / "one.png")
    base.convert("P").save(tmp_path / "palette.gif")
    exif = Image.Exif()
    exif[274] = 6
    base.save(tmp_path / "turned.jpg", exif=exif)
    clear = base.convert("RGBA")
    clear.putalpha(Image.fromarray(np.random.default_rng(0).integers(0, 255, (90, 160), np.uint8)))
    clear.save(tmp_path / "clear.png")
    page = visit(write("classify"))
    for path in sorted(tmp_path.glob("*.*")):
        if path.is_file():
            choose(page, path)
            assert scores_on(page) == pytest.approx(predicted(write("classify"), path), abs=0.01), path.name
    expect(page.locator("#size")).to_have_text("90 × 160 pixels")


def test_a_huge_picture_is_reduced_first(visit, write, tmp_path):
    picture(120, size=(90, 120)).resize((12_000, 9_000)).save(tmp_path / "huge.jpg", quality=70)
    picture(120, size=(90, 120)).resize((4_000, 3_000)).save(tmp_path / "large.jpg", quality=70)
    page = visit(write("classify"))
    choose(page, tmp_path / "huge.jpg")
    expect(page.locator("#size")).to_contain_text("12,000 × 9,000 pixels, first reduced to")
    assert scores_on(page) == pytest.approx(predicted(write("classify"), tmp_path / "large.jpg"), abs=0.01)


def test_what_is_no_picture_gets_one_line(visit, write, tmp_path):
    page = visit(write("classify"))
    before = scores_on(page)
    (tmp_path / "notes.txt").write_text("hello")
    page.set_input_files("#file", tmp_path / "notes.txt")
    expect(page.get_by_role("alert").filter(has_text="notes")).to_have_text(
        "notes.txt is not a picture that this browser can read."
    )
    assert scores_on(page) == before
    picture(60).save(tmp_path / "fine.png")
    choose(page, tmp_path / "fine.png")
    expect(page.locator("#problem")).to_be_empty()


def test_a_mismatch_with_the_sample_is_shown(visit, copy):
    folder = copy("classify")
    facts = json.loads((folder / "model.json").read_text())
    facts["sample"]["scores"][0] -= 0.2
    (folder / "model.json").write_text(json.dumps(facts))
    page = visit(folder)
    expect(page.locator("#mismatch")).to_contain_text("Do not trust the results")
    expect(page.locator("#mismatch")).to_have_attribute("role", "alert")
    expect(page.locator("#check")).to_have_text("failed: scores differ by 0.200")


def test_a_missing_model_is_one_line(browser, serve, copy):
    folder = copy("classify")
    (folder / "model.onnx").unlink()
    page = browser.new_page()
    page.goto(serve(folder)[0])
    expect(page.locator("#problem")).to_have_text(
        "The model could not be loaded: model.onnx could not be loaded (404).", timeout=30_000
    )
    expect(page.get_by_role("button", name="Choose a picture")).to_be_disabled()
    page.close()


def test_offline_after_one_visit(visit, copy, tmp_path):
    folder = copy("classify", "site/m.web")
    (folder / "notes.html").write_text("mine")
    (folder.parent / "style.css").write_text("mine")
    page = visit(folder.parent, under="m.web/")
    until_offline(page)
    page.evaluate("() => Promise.all(['notes.html', '../style.css'].map(name => fetch(name).catch(() => 0)))")
    addresses = kept(page)
    assert all(address.startswith(page.url) for address in addresses)
    assert not [address for address in addresses if "notes" in address]
    assert {f"{page.url}{name}" for name in ("", "app.js", "model.onnx", "sample.png")} <= addresses
    assert not [address for address in addresses if "asyncify" in address or "webgpu" in address]  # not needed here
    page.context.set_offline(True)
    page.reload()
    expect(page.locator("#caption")).to_have_text("Sample picture", timeout=30_000)
    picture(60).save(tmp_path / "dark.png")
    choose(page, tmp_path / "dark.png")
    assert scores_on(page) == pytest.approx(predicted(folder, tmp_path / "dark.png"), abs=0.01)
    page.click("#camera")
    expect(page.locator("#rate")).to_contain_text(".", timeout=20_000)


def test_a_new_version_replaces_the_old_one(visit, copy):
    folder = copy("classify")
    page = visit(folder)
    until_offline(page)
    expect(page.locator("#update")).to_be_hidden()
    facts = json.loads((folder / "model.json").read_text())
    facts["precision"] = "int8"
    (folder / "model.json").write_text(json.dumps(facts))
    reseal(folder)
    page.reload()
    button = page.get_by_role("button", name="Load it")
    expect(button).to_be_visible(timeout=30_000)
    expect(page.locator("#lead")).to_contain_text("fp32")
    button.click()
    expect(page.locator("#lead")).to_contain_text("int8", timeout=30_000)
    assert len(page.evaluate("() => caches.keys()")) == 1


def test_the_camera(visit, write):
    page = visit(write("classify"))
    button = page.get_by_role("button", name="Use the camera")
    button.click()
    expect(page.locator("#rate")).to_contain_text(".", timeout=20_000)
    assert float(page.inner_text("#rate")) > 0.5
    assert len(scores_on(page)) == 5
    expect(page.locator("#size")).to_have_text("640 × 480 pixels")
    expect(page.locator("video")).to_be_visible()
    page.get_by_role("button", name="Stop the camera").click()
    expect(button).to_be_visible()
    expect(page.locator("#rate-row")).to_be_hidden()
    assert page.evaluate("() => document.querySelector('video').srcObject.active") is False


def test_a_camera_that_is_refused(visit, write):
    page = visit(write("classify"))
    page.evaluate("""() => { navigator.mediaDevices.getUserMedia =
        async () => { throw new DOMException("", "NotAllowedError") } }""")
    page.click("#camera")
    expect(page.locator("#problem")).to_have_text("The camera cannot be used: permission was denied.")
    expect(page.get_by_role("button", name="Use the camera")).to_be_enabled()


HAND_OVER = """([kind, bytes]) => {
    const items = new DataTransfer();
    if (bytes) items.items.add(new File([new Uint8Array(bytes)], `${kind}.png`, { type: "image/png" }));
    const event = kind === "paste" ? new ClipboardEvent(kind, { clipboardData: items, bubbles: true })
                                   : new DragEvent(kind, { dataTransfer: items, bubbles: true, cancelable: true });
    document.getElementById("drop").dispatchEvent(event);
}"""


@pytest.mark.parametrize("kind", ["drop", "paste"])
def test_drop_and_paste(visit, write, tmp_path, kind):
    picture(60).save(tmp_path / "dark.png")
    page = visit(write("classify"))
    page.evaluate(HAND_OVER, [kind, list((tmp_path / "dark.png").read_bytes())])
    expect(page.locator("#caption")).to_have_text(f"{kind}.png")
    assert scores_on(page) == pytest.approx(predicted(write("classify"), tmp_path / "dark.png"), abs=0.01)
    page.evaluate(HAND_OVER, [kind, None])
    expect(page.locator("#problem")).to_have_text(
        {"drop": "Drop a picture file.", "paste": "The clipboard has no picture."}[kind]
    )


def test_keyboard_and_screen_reader(visit, write, tmp_path):
    page = visit(write("classify"))
    order, choosers = [], []
    page.on("filechooser", lambda chooser: choosers.append(chooser))
    for _ in range(3):
        page.keyboard.press("Tab")
        order.append(page.evaluate("() => document.activeElement.id || document.activeElement.textContent"))
    assert order == ["choose", "camera", "classes-title"]
    page.focus("#choose")
    picture(60).save(tmp_path / "dark.png")
    page.keyboard.press("Enter")
    page.wait_for_timeout(500)
    [chooser] = choosers
    chooser.set_files(tmp_path / "dark.png")
    expect(page.get_by_role("img", name="dark.png")).to_be_visible()
    expect(page.get_by_role("status")).to_contain_text(", ")
    expect(page.get_by_role("list", name="Results").get_by_role("listitem")).to_have_count(5)
    assert page.evaluate("() => document.documentElement.lang") == "en"
    assert [page.locator(tag).count() for tag in ("main", "h1")] == [1, 1]
    unlabelled = (
        "nodes => nodes.filter(node => !(node.textContent.trim() || node.ariaLabel || node.labels?.length)).length"
    )
    assert page.eval_on_selector_all("button, input:not([hidden]), video, summary", unlabelled) == 0


def test_names_are_text(visit, write):
    page = visit(write("classify"))
    expect(page.locator("#results, #classes").get_by_text(CLASSES[1], exact=True)).to_have_count(2)
    assert page.locator("#results img, #classes img").count() == 0


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_on_a_phone(visit, write, scheme):
    page = visit(write("classify"), viewport={"width": 360, "height": 740}, color_scheme=scheme)
    assert page.evaluate("() => document.documentElement.scrollWidth") <= 360
    color = page.evaluate("() => getComputedStyle(document.body).backgroundColor")
    assert color == {"light": "rgb(255, 255, 255)", "dark": "rgb(20, 23, 27)"}[scheme]
    heights = page.eval_on_selector_all(".buttons button", "nodes => nodes.map(node => node.offsetHeight)")
    assert min(heights) >= 44


@pytest.mark.skipif(os.cpu_count() == 1, reason="one core")
def test_threads_with_special_headers(visit, write):
    expect(visit(write("classify")).locator("#runs-on")).to_have_text("WebAssembly, 1 thread")
    page = visit(write("classify"), headers=ISOLATED)
    expect(page.locator("#runs-on")).to_have_text(f"WebAssembly, {min(os.cpu_count(), 8)} threads")
    expect(page.locator("#check")).to_have_text("passed")


@pytest.mark.parametrize("task", ["detect", "segment"])
def test_objects_are_drawn(visit, write, tmp_path, task):
    path = tmp_path / "a.png"
    Image.fromarray(random_images(1, 200, 300)[0].permute(1, 2, 0).numpy()).save(path)
    folder = write(task)
    page = visit(folder)
    expect(page.locator("#check")).to_have_text("passed")
    choose(page, path)
    [expected] = shvit.Predictor(shvit.load(folder), threshold=0.3)(path)
    rows = page.locator("#results li")
    expect(rows).to_have_count(min(len(expected.labels), 20))
    assert len(expected.labels) > 1
    boxes = [list(map(float, row.get_attribute("data-box").split(","))) for row in rows.all()]
    assert np.allclose(boxes, expected.boxes[:20], atol=0.2)
    drawn = (
        "canvas => canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height).data.some(value => value)"
    )
    assert page.eval_on_selector("#overlay", drawn)
    page.get_by_label("Minimum score").fill("95")
    expect(page.locator("#none")).to_have_text("No objects found.")
    assert not page.eval_on_selector("#overlay", drawn)
