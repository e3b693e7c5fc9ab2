"""The predictor gives the labels of the plain network, and one bad image does not affect the others."""

import itertools
import threading
import weakref
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
import timm.data
import torch
from PIL import Image

import shvit
from conftest import picture, random_images, randomize_norms, tiny_architecture
from shvit import engines
from shvit.data.transforms import Preprocess
from shvit.engines.exported import Exported
from shvit.errors import InputError
from shvit.modelfile import ModelFile
from shvit.predict.predictor import Predictor, find_images


def test_scores_are_those_of_timms_transform_and_the_plain_network(tiny, tmp_path):
    image = picture(100, size=(70, 50))
    image.save(tmp_path / "a.png")
    transform = timm.data.create_transform(32, crop_pct=0.875, interpolation="bicubic")
    expected = tiny.model(transform(image)[None]).softmax(1)[0]
    [prediction] = Predictor(tiny, precision="fp32")([tmp_path / "a.png"])
    assert prediction.labels[0] == tiny.classes[int(expected.argmax())]
    assert dict(zip(prediction.labels, prediction.scores, strict=True)) == pytest.approx(
        dict(zip(tiny.classes, expected.tolist(), strict=True)), abs=1e-4
    )


def test_paths_images_and_arrays_are_alike_and_in_order(tiny, tmp_path):
    pictures = [picture(shade) for shade in (20, 80, 140, 200, 240)]
    for index, image in enumerate(pictures):
        image.save(tmp_path / f"{index}.png")
    predictor = Predictor(tiny, batch_size=2)
    by_path = predictor([tmp_path / f"{index}.png" for index in range(5)])
    assert [p.scores for p in by_path] == [p.scores for p in predictor(pictures)]
    assert [p.scores for p in by_path] == [p.scores for p in predictor([np.asarray(image) for image in pictures])]
    assert predictor(pictures[3])[0].scores == pytest.approx(by_path[3].scores, abs=1e-5)


def test_bad_images_become_results(tiny, tmp_path):
    picture(50).save(tmp_path / "good.png")
    (tmp_path / "empty.jpg").touch()
    (tmp_path / "text.jpg").write_text("hello")
    paths = [tmp_path / name for name in ("empty.jpg", "good.png", "text.jpg", "missing.jpg", "good.png")]
    results = Predictor(tiny, batch_size=2)(paths)
    assert [r.error for r in results] == ["file is empty", None, "not an image in a known format", "no such file", None]
    assert [r.path for r in results] == [str(path) for path in paths]
    assert results[0].labels == ()
    assert results[1].labels == results[4].labels


@pytest.mark.parametrize("shape", [(0, 0, 3), (0, 7), (7, 0, 3)])
def test_arrays_without_pixels_become_results(tiny, shape):
    empty, good = Predictor(tiny)([np.zeros(shape, np.uint8), picture(90)])
    assert empty.error == f"{shape[1]}x{shape[0]} is an image without pixels"
    assert good.error is None


def test_an_engine_that_runs_one_call_at_a_time_chooses_its_threads(tiny, monkeypatch):
    """Core ML does not accept a number of threads, and ExecuTorch has one pool for the whole process."""
    given = []

    class OneByOne(engines.ENGINES["torch"]):
        concurrent = False

        def __init__(self, model, precision, device, threads=None):
            given.append(threads)
            super().__init__(model, precision, device, threads)

    monkeypatch.setitem(engines.ENGINES, "torch", OneByOne)
    predictor = Predictor(tiny, "torch", device="cpu")
    assert (predictor.at_once, given) == (1, [None])
    assert all(prediction.labels for prediction in predictor([picture(90)] * 5))


def test_transparent_grayscale_and_rotated_images_work(tiny):
    results = Predictor(tiny)([picture(90).convert(mode) for mode in ("RGBA", "L", "P", "CMYK")])
    assert [r.error for r in results] == [None] * 4


def test_stream_takes_only_a_few_batches_ahead(tiny):
    taken = []

    def endless():
        while True:
            taken.append(None)
            yield picture(100)

    predictor = Predictor(tiny, batch_size=4, workers=3)
    assert predictor.batches_ahead == predictor.at_once + 3
    with closing(predictor.stream(endless())) as stream:
        for _ in range(5):
            next(stream)
    assert len(taken) == 4 * (predictor.batches_ahead + 1)


def test_memory_is_that_of_the_batches_ahead(tiny):
    given, most = [], 0

    def pictures():
        nonlocal most
        for _ in range(200):
            image = picture(100)
            given.append(weakref.ref(image))
            most = max(most, sum(alive() is not None for alive in given))
            yield image

    predictor = Predictor(tiny, batch_size=4)
    assert sum(1 for _ in predictor.stream(pictures())) == 200
    assert most <= 4 * (predictor.batches_ahead + 1)


def test_order_is_kept_whatever_takes_long(tiny, tmp_path):
    paths = []
    for index in range(50):
        size = (600, 700) if index % 7 == 0 else (30, 40)
        paths.append(tmp_path / f"{index}.png")
        if index % 5:
            picture(5 * index, size=size).save(paths[-1])
    predictor = Predictor(tiny, batch_size=4, workers=4)
    results = predictor(paths)
    assert [result.path for result in results] == [str(path) for path in paths]
    assert [result.error for result in results] == [None if index % 5 else "no such file" for index in range(50)]
    for index in (1, 14, 49):
        assert results[index].scores == pytest.approx(predictor(paths[index])[0].scores, abs=1e-5)


def threads_of_predictors():
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("shvit-")]


def test_closing_stops_the_threads(tiny):
    stream = Predictor(tiny, batch_size=4).stream(picture(100) for _ in itertools.count())
    next(stream)
    assert threads_of_predictors()
    stream.close()
    assert threads_of_predictors() == []


class Engine:
    """An engine that records the shapes of its images, or fails."""

    def __init__(self, engine, fails=False):
        self.engine, self.fails, self.shapes = engine, fails, []

    def __call__(self, images):
        self.shapes.append(tuple(images.shape))
        if self.fails:
            raise RuntimeError("out of memory")
        return self.engine(images)


def test_errors_of_the_engine_and_of_the_caller_come_through(tiny):
    predictor = Predictor(tiny, batch_size=4)
    predictor.engine = Engine(predictor.engine, fails=True)
    with pytest.raises(RuntimeError, match="out of memory"):
        predictor(picture(100) for _ in itertools.count())

    def torn():
        yield from [picture(100)] * 30
        raise OSError("the disk is gone")

    with pytest.raises(OSError, match="the disk is gone"):
        Predictor(tiny, batch_size=4)(torn())
    assert threads_of_predictors() == []


def test_engines_meet_few_sizes_of_batch(tiny, tmp_path):
    predictor = Predictor(tiny, batch_size=4)
    predictor.engine = engine = Engine(predictor.engine)
    assert len(predictor([picture(100), tmp_path / "none.png"] * 5)) == 10
    assert engine.shapes == [(4, 3, 32, 32)] * 3
    predictor(picture(100))
    assert engine.shapes[3:] == [(1, 3, 32, 32)]
    predictor([tmp_path / "none.png"] * 9)
    assert len(engine.shapes) == 4


def test_top_k(tmp_path):
    model_file = ModelFile(shvit.create_model("shvit_s1", num_classes=7).eval(), tuple("abcdefg"), Preprocess(32))
    assert len(Predictor(model_file, top_k=3)(picture(1))[0].labels) == 3
    [all_labels] = Predictor(model_file, top_k=50)(picture(1))
    assert set(all_labels.labels) == set("abcdefg")
    assert sum(all_labels.scores) == pytest.approx(1, abs=1e-5)
    assert list(all_labels.scores) == sorted(all_labels.scores, reverse=True)


def test_find_images_follows_links_once(tmp_path):
    """A linked folder is searched, unless the link leads back to a folder that contains it."""
    (tmp_path / "images" / "deep").mkdir(parents=True)
    (tmp_path / "elsewhere").mkdir()
    for place in ("images/deep/a.jpg", "elsewhere/b.jpg"):
        (tmp_path / place).touch()
    (tmp_path / "images" / "deep" / "up").symlink_to(tmp_path / "images")
    (tmp_path / "images" / "more").symlink_to(tmp_path / "elsewhere")
    found = [str(path.relative_to(tmp_path)) for path in find_images([str(tmp_path / "images")])]
    assert found == ["images/deep/a.jpg", "images/more/b.jpg"]


def test_find_images(tmp_path, monkeypatch):
    for name in ("b/2.png", "b/deep/1.JPG", "a.jpg", "b/notes.txt", "ünï 1.webp"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()

    def names(*patterns):
        return [str(path.relative_to(tmp_path)) for path in find_images(str(tmp_path / p) for p in patterns)]

    assert names("b") == ["b/2.png", "b/deep/1.JPG"]
    assert names("a.jpg", "b", "a.jpg") == ["a.jpg", "b/2.png", "b/deep/1.JPG"]
    assert names("*.*") == ["a.jpg", "ünï 1.webp"]
    assert names("**/*.png") == ["b/2.png"]
    assert names("b/notes.txt") == ["b/notes.txt"]  # a named file is tried
    assert names("nothing.jpg", "none*.jpg") == ["nothing.jpg", "none*.jpg"]  # each becomes a row with a reason
    monkeypatch.chdir(tmp_path)
    assert [str(path) for path in find_images(["*.jpg"])] == ["a.jpg"]


def test_names_with_glob_marks_are_found(tmp_path):
    (tmp_path / "photo[1].jpg").touch()
    assert find_images([str(tmp_path / "photo[1].jpg")]) == [tmp_path / "photo[1].jpg"]


@pytest.mark.parametrize(
    ("pattern", "found"),
    [
        ("photos [2024]/*.jpg", ["photos [2024]/a.jpg"]),
        ("photos [2024]/*/*.jpg", ["photos [2024]/day [1]/b.jpg"]),
        ("photos*/day [1]/*.jpg", ["photos [2024]/day [1]/b.jpg"]),
        ("photos [2024]/**/*.jpg", ["photos [2024]/a.jpg", "photos [2024]/day [1]/b.jpg"]),
        ("photos [2024]/[ab].jpg", ["photos [2024]/a.jpg"]),
        ("photos 202[34]/*.jpg", ["photos 2023/c.jpg"]),
        ("photos [2024]", ["photos [2024]/a.jpg", "photos [2024]/day [1]/b.jpg"]),
        ("photos [2025]/*.jpg", ["photos [2025]/*.jpg"]),
    ],
)
def test_folders_with_brackets_in_their_names(tmp_path, monkeypatch, pattern, found):
    for name in ("photos [2024]/a.jpg", "photos [2024]/day [1]/b.jpg", "photos 2023/c.jpg", "photos [2024]/._a.jpg"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    assert find_images([str(tmp_path / pattern)]) == [tmp_path / name for name in found]
    monkeypatch.chdir(tmp_path)
    assert [str(path) for path in find_images([pattern])] == found


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"engine": "tensorrt"}, "unknown engine 'tensorrt': allowed are auto, cuda, native"),
        ({"precision": "int3"}, "precision 'int3' is not available on"),
        ({"device": "tpu"}, "device 'tpu' is not available: allowed are auto"),
        ({"batch_size": 0}, "at least 1"),
        ({"top_k": 0}, "at least 1"),
        ({"threads": 0}, "at least 1"),
        ({"workers": 0}, "at least 1"),
    ],
)
def test_impossible_options(tiny, options, reason):
    with pytest.raises(shvit.InputError, match=reason):
        Predictor(tiny, **options)


def test_bf16_stays_close(tiny):
    """Processors without bf16 are slow but give the same outputs, so this is tested everywhere."""
    images = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)
    exact = engines.torch.TorchEngine(tiny, "fp32", "cpu")(images)
    rounded = engines.torch.TorchEngine(tiny, "bf16", "cpu")(images)
    assert (rounded - exact).abs().max() < 0.1 * exact.abs().max()


def test_opened_images_are_not_changed(tiny):
    image = Image.new("RGBA", (40, 40), (10, 20, 30, 0))
    Predictor(tiny)(image)
    assert image.mode == "RGBA"


def test_mask_rcnn_gives_scores_below_its_own_limit():
    """The network drops scores up to 0.05. A lower threshold changes neither the other objects nor the model."""
    network = randomize_norms(tiny_architecture(6, detector="mask_rcnn").build()).eval()
    torch.nn.init.normal_(network.roi_heads.box_predictor.cls_score.weight, std=0.1)
    network.roi_heads.box_predictor.cls_score.bias.data = torch.tensor([2.0, 0, -4, -4, -4, -4, -4])
    network.roi_heads.nms_thresh = 0.1  # fewer objects than the network's 100 rows
    model_file = ModelFile(network, tuple("abcdef"), Preprocess(64, fit="whole"), "segment")
    image = random_images(1, 64)[0].permute(1, 2, 0).numpy()
    usual, low = (
        Predictor(model_file, "torch", "fp32", "cpu", threshold=threshold)(image)[0] for threshold in (0.05, 0.001)
    )
    assert 0.001 < min(low.scores) < 0.05 < max(low.scores)
    assert usual.scores == tuple(score for score in low.scores if score > 0.05)
    assert usual.boxes == low.boxes[: len(usual.scores)]
    assert network.roi_heads.score_thresh == 0.05
    file = Exported(Path("m.onnx"), "onnx", "fp32", model_file.classes, model_file.preprocess, "segment")
    with pytest.raises(InputError, match=r"threshold must be at least 0\.05 for m\.onnx"):
        Predictor(file, threshold=0.01)
