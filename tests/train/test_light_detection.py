"""The light detector through the verbs: it learns, stores its threshold, and continues from other detectors."""

import json
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file
from test_detection import begin, squares

import shvit
from conftest import tiny_architecture
from shvit.modelfile import load, save
from shvit.requests.train import TrainRequest
from shvit.tasks.detect import DEFAULT_THRESHOLD, Detect
from shvit.tasks.segment import Segment
from shvit.train.budget import choices, fit
from shvit.train.optim import make_optimizer
from shvit.train.recipes import make_recipe, small
from shvit.train.run import train

PLAIN = {"ema": 0.0, "scale_min": 1.0, "scale_max": 1.0, "flip": 0.0, "hsv": 0.0, "mosaic": 0.0}


@pytest.mark.slow
@pytest.mark.parametrize(("task", "kinds"), [("detect", ["bbox"]), ("segment", ["bbox", "segm"])])
def test_the_light_detector_overfits_two_images(tmp_path, task, kinds):
    data = squares(tmp_path / "data", 2)
    settings = {"epochs": 80, "eval_every": 80, "image_size": 64, "lr": 2e-3, "lr_batch": 2, "head": "light"}
    result = begin(data, "shvit_s1", tmp_path / "run", task, **settings, **PLAIN)
    assert all(result.best[kind]["AP50"] >= 0.9 for kind in kinds)


def test_predict_uses_the_threshold_of_the_training(run, start, tmp_path):
    data = squares(tmp_path / "data", 4)
    begin(data, start, tmp_path / "run", epochs=1)
    model = load(tmp_path / "run" / "best.safetensors")
    save(replace(model, metrics={**model.metrics, "best_f1": {"threshold": 0.0}}), tmp_path / "low.safetensors")
    save(replace(model, metrics={**model.metrics, "best_f1": {"threshold": 1.0}}), tmp_path / "high.safetensors")

    def objects(name: str, *flags) -> int:
        code, text, errors = run("predict", tmp_path / name, data / "val2017", "--json", *flags)
        assert code == 0, errors
        return sum(len(row["labels"]) for row in json.loads(text)["predictions"])

    assert objects("high.safetensors") == 0
    assert objects("low.safetensors") == objects("high.safetensors", "--threshold", 0) > 0


@pytest.mark.parametrize("stored", [{}, {"best_f1": {}}, {"best_f1": 0.4}, {"best_f1": {"threshold": "x"}}])
def test_a_model_without_a_usable_threshold_gets_the_default(stored):
    assert Detect.threshold(stored) == DEFAULT_THRESHOLD
    low = {"best_f1": {"threshold": 0.01}}
    assert (Detect.threshold(low), Segment.threshold(low)) == (0.01, 0.05)  # Mask R-CNN has no lower scores


def test_training_goes_on_with_the_head_of_the_model(start, tmp_path):
    data = squares(tmp_path / "data", 4)
    begin(data, start, tmp_path / "anchors", epochs=1, head="retinanet")
    anchors = tmp_path / "anchors" / "last.safetensors"
    assert shvit.load(anchors).architecture.detector == "retinanet"
    begin(data, str(anchors), tmp_path / "on", epochs=1)
    assert shvit.load(tmp_path / "on" / "last.safetensors").architecture.detector == "retinanet"
    begin(data, str(anchors), tmp_path / "other", epochs=1, head="light")
    assert shvit.load(tmp_path / "other" / "last.safetensors").architecture.detector == "light"


def test_trained_backbones_learn_more_slowly(start, tmp_path):
    network = tiny_architecture(2, detector="light").build()
    optimizer = make_optimizer(network, replace(small(), backbone_lr=0.5))
    slow = {id(weight) for weight in network.backbone.parameters()}
    scales = {id(weight): group.get("lr_scale", 1) for group in optimizer.param_groups for weight in group["params"]}
    assert len(scales) == len(list(network.parameters()))
    assert all(scale == (0.5 if key in slow else 1) for key, scale in scales.items())
    assert "lr_scale" not in optimizer.param_groups[0]  # the learning rate that is shown
    for model, expected in ((start, 0.5), ("shvit_s1", 1.0)):
        out = tmp_path / str(expected)
        settings = {"epochs": 1, "batch_size": 2, "image_size": 64}
        data = tmp_path / "data"
        request = TrainRequest(
            squares(data, 2) if not data.exists() else data, out=out, model=model, task="detect", settings=settings,
            device="cpu", workers=0,
        )  # fmt: skip
        train(request)
        assert shvit.load(out / "last.safetensors").provenance["recipe"]["backbone_lr"] == expected


@pytest.mark.parametrize(("images", "epochs", "batch"), [(16, 240, 4), (292, 34, 4), (5000, 20, 16)])
def test_epochs_and_batches_follow_the_number_of_images(images, epochs, batch):
    published = make_recipe("small", "shvit_s1", {}, "detect")
    recipe = fit(published, images)
    assert (recipe.epochs, recipe.batch_size) == (epochs, batch)
    reasons = {choice.field: choice.reason for choice in choices(published, recipe, images)}
    assert "10,000 images" in reasons["epochs"]
    assert torch.isclose(torch.tensor(recipe.effective_lr), torch.tensor(6e-3 * (batch / 16) ** 0.5))


def test_anchors_keep_their_settings():
    recipe = fit(make_recipe("small", "shvit_s1", {"head": "retinanet"}, "detect"), 292)
    assert (recipe.epochs, recipe.mosaic, recipe.backbone_lr, recipe.batch_size) == (60, 0, 1, 8)
    paper = make_recipe("coco_1x", "shvit_s1", {}, "detect")
    assert (paper.head, paper.layout) == ("retinanet", "paper")
    assert make_recipe("coco_1x", "shvit_s1", {}, "segment").head == "mask_rcnn"
    assert make_recipe("small", "shvit_s1", {"shorter_side": True}, "detect").mosaic == 0


def in_other_formats(coco, root):
    """The dataset of `squares` as YOLO and as Pascal VOC."""
    yolo, voc = root / "yolo", root / "voc"
    names = {3: "bright", 9: "dark"}
    for folder in (voc / "Annotations", voc / "JPEGImages", voc / "ImageSets"):
        folder.mkdir(parents=True)
    (voc / "classes.txt").write_text("bright\ndark\n")
    for split in ("train", "val"):
        document = json.loads((coco / "annotations" / f"instances_{split}2017.json").read_text())
        rows = {row["image_id"]: row for row in document["annotations"]}
        for kind in ("images", "labels"):
            (yolo / kind / split).mkdir(parents=True)
        for image in document["images"]:
            left, top, width, height = rows[image["id"]]["bbox"]
            category, name = rows[image["id"]]["category_id"], image["file_name"].removesuffix(".png")
            values = (left + width / 2) / 64, (top + height / 2) / 64, width / 64, height / 64
            line = " ".join(map(repr, (sorted(names).index(category), *values)))
            (yolo / "labels" / split / f"{name}.txt").write_text(line)
            picture = (coco / f"{split}2017" / image["file_name"]).read_bytes()
            (yolo / "images" / split / image["file_name"]).write_bytes(picture)
            own = f"{split}-{name}"
            (voc / "JPEGImages" / f"{own}.png").write_bytes(picture)
            sides = {"xmin": left + 1, "ymin": top + 1, "xmax": left + width, "ymax": top + height}
            box = "".join(f"<{key}>{side}</{key}>" for key, side in sides.items())
            (voc / "Annotations" / f"{own}.xml").write_text(
                f"<annotation><filename>{own}.png</filename><object><name>{names[category]}</name><bndbox>{box}</bndbox>"
                "</object></annotation>"
            )
        listed = "\n".join(f"{split}-{image['file_name'].removesuffix('.png')}" for image in document["images"])
        (voc / "ImageSets" / f"{split}.txt").write_text(listed)
    (yolo / "data.yaml").write_text("path: .\ntrain: images/train\nval: images/val\nnames: [bright, dark]\n")
    return yolo, voc


def test_the_same_data_in_any_format_trains_the_same_network(start, tmp_path):
    coco = squares(tmp_path / "coco", 6)
    runs = []
    for number, data in enumerate((coco, *in_other_formats(coco, tmp_path))):
        result = begin(data, start, tmp_path / f"run{number}", epochs=2)
        runs.append((result.best["bbox"], load_file(tmp_path / f"run{number}" / "last.safetensors")))
    for metrics, weights in runs[1:]:
        assert metrics == runs[0][0]
        assert all(torch.equal(weights[name], value) for name, value in runs[0][1].items())
