"""Detection and segmentation through the verbs: train, eval, predict."""

import csv
import json
from dataclasses import replace
from statistics import median

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from faster_coco_eval.core import mask
from PIL import Image
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from safetensors.torch import load_file

import shvit
from conftest import write_coco
from shvit import engines
from shvit.data.coco import open_coco
from shvit.data.letterbox import read_whole
from shvit.data.loader import stack
from shvit.evaluate import evaluate_model
from shvit.predict.drawing import draw_objects, legible
from shvit.requests.train import TrainRequest
from shvit.tasks.detect import Detect
from shvit.tasks.objects import ObjectsEvaluation
from shvit.train.budget import fit
from shvit.train.loop import Trainer
from shvit.train.recipes import coco_1x, small
from shvit.train.run import train

SETTINGS = {"epochs": 2, "batch_size": 2, "image_size": 64, "precision": "fp32"}


JUDGED = 4


def squares(root, images: int = 8):
    """A COCO folder of images with a bright or dark square on grey. The first four are also the validation split."""
    rows, annotations = [], []
    generator = np.random.default_rng(0)
    (root / "annotations").mkdir(parents=True)
    for number in range(images):
        pixels = np.full((64, 64, 3), 128, np.uint8)
        category, shade = ((3, 255), (9, 0))[number % 2]
        side = int(generator.integers(28, 48))
        left, top = (int(generator.integers(0, 64 - side)) for _ in range(2))
        pixels[top : top + side, left : left + side] = shade
        annotations.append(
            {
                "id": number + 1,
                "image_id": number,
                "category_id": category,
                "bbox": [left, top, side, side],
                "area": side**2,
                "iscrowd": 0,
                "segmentation": [
                    [left, top, left + side, top, left + side, top + side, left, top + side],
                ],
            }
        )
        rows.append({"id": number, "file_name": f"{number:06}.png", "height": 64, "width": 64})
        for split in ("train2017", "val2017")[: 1 + (number < JUDGED)]:
            (root / split).mkdir(exist_ok=True)
            level = 6 if split == "train2017" else 1  # different bytes, so that they are not removed as duplicates
            Image.fromarray(pixels).save(root / split / f"{number:06}.png", compress_level=level)
    document = {
        "images": rows,
        "annotations": annotations,
        "categories": [{"id": 3, "name": "bright"}, {"id": 9, "name": "dark"}],
    }
    judged = {**document, "images": rows[:JUDGED], "annotations": annotations[:JUDGED]}
    for split, content in (("train2017", document), ("val2017", judged)):
        (root / "annotations" / f"instances_{split}.json").write_text(json.dumps(content))
    return root


def begin(data, start, out, task="detect", workers=0, resume=False, **settings):
    merged = {} if resume else {**SETTINGS, **settings}
    return train(
        TrainRequest(
            data, out=out, model=start, task=task, resume=resume, device="cpu", workers=workers, settings=merged
        )
    )


@pytest.mark.slow
@pytest.mark.drawn
@pytest.mark.parametrize(("task", "kind", "epochs"), [("detect", "bbox", 20), ("segment", "segm", 4)])
def test_it_learns_to_find_objects(run, tmp_path, task, kind, epochs, start):
    data, out = squares(tmp_path / "data", 64), tmp_path / "run"
    lr = 3e-3 if task == "detect" else 1e-3
    settings = ["--epochs", epochs, "--image-size", 64, "--batch-size", 4, "--lr", lr, "--lr-batch", 4]
    settings += ["--scale-min", 1, "--scale-max", 1, "--color-jitter", 0, "--ema", 0, "--workers", 0, "--device", "cpu"]
    exact = ["--precision", "fp32"]  # the default depends on the processor
    settings += ["--proposals", 16] if task == "segment" else ["--mosaic", 0, "--hsv", 0, "--eval-every", 10]
    begun = run("train", data, "--task", task, "--model", start, "--out", out, *settings, *exact, "--json")
    code, printed, errors = begun
    assert code == 0, errors
    result = json.loads(printed)
    assert result[kind]["AP50"] > 0.4
    assert (out / "curves.png").exists()

    best = out / "best.safetensors"
    code, printed, _ = run("eval", best, data, "--out", tmp_path / "eval", "--json", "--workers", 0, *exact)
    judged = json.loads(printed)
    assert judged[kind]["AP50"] == pytest.approx(result[kind]["AP50"], abs=1e-3)
    assert set(judged["per_class"]) == {"bright", "dark"}
    rows = list(csv.reader((tmp_path / "eval" / "per_class.csv").read_text().splitlines()))
    assert rows[0] == ["class", *(f"{name}_AP" for name in ("bbox", "segm")[: len(rows[0]) - 1])]
    code, printed, _ = run("eval", best, data, "--workers", 0)
    assert "AP50" in printed
    assert "boxes" in printed

    every = ["--threshold", 0.1]
    drawn = ["--out", tmp_path / "found.json", "--draw", tmp_path / "drawn"]
    code, _, errors = run("predict", best, data / "val2017", *drawn, *exact, *every)
    assert code == 0, errors
    known = COCO(str(data / "annotations" / "instances_val2017.json"))
    found = known.loadRes(str(tmp_path / "found.json"))
    assert {row["category_id"] for row in found.anns.values()} == {3, 9}
    assert {row["image_id"] for row in found.anns.values()} == set(range(JUDGED))
    # ids that do not follow from the file names
    document = json.loads((data / "annotations" / "instances_val2017.json").read_text())
    for row in document["images"]:
        row["id"] = 100 - row["id"]
    for row in document["annotations"]:
        row |= {"image_id": 100 - row["image_id"], "category_id": 10 * row["category_id"]}
    for row in document["categories"]:
        row["id"] *= 10
    (renumbered := tmp_path / "renumbered.json").write_text(json.dumps(document))
    least = 0.001 if task == "detect" else 0.05  # as in eval: light, Mask R-CNN
    same = ["--threshold", least, "--annotations", renumbered, *exact]
    code, _, errors = run("predict", best, data / "val2017", "--out", tmp_path / "again.json", *same)
    assert code == 0, errors
    truth = COCO(str(renumbered))
    scored = COCOeval(truth, truth.loadRes(str(tmp_path / "again.json")), kind)
    scored.evaluate()
    scored.accumulate()
    scored.summarize()
    assert scored.stats[1] == pytest.approx(judged[kind]["AP50"], abs=1e-3)
    assert scored.stats[0] == pytest.approx(judged[kind]["AP"], abs=1e-3)

    if task == "segment":
        shares = [
            mask.decode(row["segmentation"]).sum() / (row["bbox"][2] * row["bbox"][3]) for row in found.anns.values()
        ]
        assert 0.6 < median(shares) < 1.1
    with Image.open(tmp_path / "drawn" / "000000.jpg") as drawn:
        assert drawn.size == (320, 320)  # enlarged, so that its labels can be read
    assert f"task: {task}" in run("info", best)[1]
    code, _, errors = run("calibrate-bn", best, data, "--image-size", 128)
    assert (code, "calibrate-bn supports only classifiers" in errors) == (2, True)
    code, _, errors = run("bench", best, "--rounds", 1)
    assert (code, f"has the task {task}, but --task is classify" in errors) == (2, True)

    pytest.importorskip("onnxruntime")
    code, printed, errors = run("export", best, "--format", "onnx", "--calibrate", data)
    assert code == 0, errors
    assert " found by both" in printed
    code, printed, _ = run("eval", best.with_suffix(".onnx"), data, "--json", "--workers", 0)
    assert json.loads(printed)[kind]["AP50"] == pytest.approx(judged[kind]["AP50"], abs=1e-3)
    run("predict", best.with_suffix(".onnx"), data / "val2017", "--out", tmp_path / "again.json", *every)
    again = known.loadRes(str(tmp_path / "again.json"))
    assert len(again.anns) == len(found.anns)
    if task == "segment":
        code, _, errors = run("eval", best, data, "--engine", "executorch")
        assert (
            code,
            "mask_rcnn (fit whole) run on onnx, openvino, torch, not" in errors,
        ) == (2, True)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("task", "kinds", "settings"),
    [
        ("detect", ["bbox"], {"epochs": 40, "eval_every": 40, "image_size": 128, "lr": 2e-4, "head": "retinanet"}),
        ("segment", ["bbox", "segm"], {"epochs": 45, "eval_every": 45, "image_size": 64, "lr": 3e-4, "proposals": 16}),
    ],
)
def test_two_images_are_overfit(tmp_path, task, kinds, settings):
    data = squares(tmp_path / "data", 2)
    plain = {"lr_batch": 2, "ema": 0.0, "scale_min": 1.0, "scale_max": 1.0, "flip": 0.0, "color_jitter": 0.0}
    result = begin(data, "shvit_s1", tmp_path / "run", task, **settings, **plain)
    assert all(result.best[kind]["AP50"] >= 0.9 for kind in kinds)


def test_tables_of_objects(run, start, tmp_path):
    data = squares(tmp_path / "data", 4)
    begin(data, start, tmp_path / "run", epochs=1)
    best, all_of_them = tmp_path / "run" / "best.safetensors", ["--threshold", "0"]
    run("predict", best, data / "val2017", tmp_path / "none.jpg", "--out", tmp_path / "found.csv", *all_of_them)
    table = list(csv.DictReader((tmp_path / "found.csv").read_text().splitlines()))
    assert {row["label"] for row in table} == {"bright", "dark", ""}
    assert table[-1]["error"] == "no such file"
    for suffix in ("jsonl", "parquet"):
        assert run("predict", best, data / "val2017", "--out", tmp_path / f"found.{suffix}", *all_of_them)[0] == 0
    first = json.loads((tmp_path / "found.jsonl").read_text().splitlines()[0])
    assert len(first["boxes"]) == len(first["labels"]) > 1
    assert pq.read_table(tmp_path / "found.parquet").to_pylist()[0]["boxes"][0] == pytest.approx(first["boxes"][0])
    assert "no objects" in run("predict", best, data / "val2017", "--threshold", "1")[1]
    run("predict", best, data / "val2017", "--threshold", "1", "--out", tmp_path / "none.json")
    assert json.loads((tmp_path / "none.json").read_text()) == []


@pytest.mark.parametrize(("task", "workers"), [("detect", 0), ("detect", 2), ("segment", 0)])
def test_a_resumed_run_ends_with_the_same_weights(start, tmp_path, monkeypatch, task, workers):
    data = squares(tmp_path / "data", 6)
    nothing = ObjectsEvaluation(("bright", "dark"), {"bbox": {"AP": 0.0, "AP50": 0.0}}, {"bbox": [0.0, 0.0]}, 1)
    monkeypatch.setattr(Detect, "evaluate", lambda *_, **__: nothing)  # the slowest part of such a short run
    few = {"proposals": 8} if task == "segment" else {}
    begin(data, start, tmp_path / "whole", task, workers, **few)
    step, taken = Trainer.train_step, []

    def stops(self, pieces):
        step(self, pieces)
        taken.append(self)
        if len(taken) == 4:
            self.stopped_by = 2

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "train_step", stops)
        begin(data, start, tmp_path / "halves", task, **few)
    begin(data, start, tmp_path / "halves", task, workers, resume=True)
    one, two = (load_file(tmp_path / name / "last.safetensors") for name in ("whole", "halves"))
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_a_run_from_before_a_setting_existed_is_resumed(start, tmp_path):
    data = squares(tmp_path / "data", 2)
    begin(data, start, tmp_path / "run", epochs=1)
    path = tmp_path / "run" / "recipe.json"
    record = json.loads(path.read_text())
    del record["recipe"]["eval_every"]
    path.write_text(json.dumps(record))
    train(TrainRequest(data, out=tmp_path / "run", resume=True, device="cpu", workers=0, settings={"eval_every": 1}))
    with pytest.raises(shvit.InputError, match="began with eval_every 1, not 2"):
        train(
            TrainRequest(data, out=tmp_path / "run", resume=True, device="cpu", workers=0, settings={"eval_every": 2})
        )


def test_new_norms_cannot_be_frozen(tmp_path):
    data = squares(tmp_path / "data", 4)
    with pytest.raises(
        shvit.InputError, match="frozen_norms statistics needs trained BatchNorms, but shvit_s1 has none"
    ):
        train(
            TrainRequest(
                data, out=tmp_path / "run", model="shvit_s1", recipe="coco_1x", task="detect", device="cpu", workers=0
            )
        )
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("frozen", ["statistics", "all"])
def test_norms_stay_frozen(start, tmp_path, frozen):
    data = squares(tmp_path / "data", 4)
    begin(data, start, tmp_path / "run", frozen_norms=frozen, ema=0.0)
    before, after = load_file(start), load_file(tmp_path / "run" / "last.safetensors")
    norms = [name.rpartition(".")[0] for name in before if "running_mean" in name and not name.startswith("head.")]
    assert norms
    same = {
        part: all(torch.equal(before[f"{name}.{part}"], after[f"backbone.{name}.{part}"]) for name in norms)
        for part in ("running_mean", "running_var", "weight", "bias")
    }
    learns = frozen == "statistics"
    assert same == {"running_mean": True, "running_var": True, "weight": not learns, "bias": not learns}
    assert not torch.equal(before["stem.0.conv.weight"], after["backbone.stem.0.conv.weight"])


@pytest.mark.parametrize("task", ["detect", "segment"])
def test_the_authors_settings(start, tmp_path, task):
    """The settings of their configuration; the model file records them and can be used."""
    data, out = squares(tmp_path / "data", 4), tmp_path / "run"
    few = {"epochs": 1, "batch_size": 2, "image_size": 64, "precision": "fp32", "shorter_side": False}
    train(TrainRequest(data, out=out, model=start, recipe="coco_1x", task=task, device="cpu", workers=0, settings=few))
    model_file = shvit.load(out / "last.safetensors")
    assert model_file.architecture.layout == "paper"
    recipe = model_file.provenance["recipe"]
    assert (recipe["weight_decay"], recipe["decay_all"], recipe["warmup_lr"]) == (0.05, True, 1e-7)
    assert (recipe["frozen_norms"], recipe["schedule"], recipe["proposals"]) == ("statistics", "step", 512)
    folded = shvit.fuse(model_file.model)
    images = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        for one, two in zip(folded.features(images), model_file.model.eval().features(images), strict=True):
            torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-4)
    with pytest.raises(shvit.InputError, match="is a detector of layout paper, but recipe small has torchvision"):
        train(
            TrainRequest(
                data,
                out=tmp_path / "on",
                model=str(out / "last.safetensors"),
                recipe="small",
                task=task,
                device="cpu",
                settings=few,
            )
        )
    assert not (tmp_path / "on").exists()


def test_two_crowded_and_bad_data_do_not_stop_it(run, start, tmp_path):
    data = write_coco(tmp_path / "data")
    (data / "train2017" / "b.png").write_bytes(b"")
    code, _, errors = run(
        "train", data, "--task", "segment", "--model", start, "--out", tmp_path / "run", "--epochs", 1,
        "--image-size", 128, "--batch-size", 1, "--workers", 0, "--max-bad-share", 0.6,
    )  # fmt: skip
    assert code == 0, errors
    assert "file is empty" in (tmp_path / "run" / "bad_images.csv").read_text()


@pytest.mark.parametrize(
    ("flags", "reason"),
    [
        ([], "is a COCO folder with boxes and masks: use --task detect or --task segment"),
        (["--task", "classify"], "is a COCO folder"),
        (
            ["--task", "detect", "--recipe", "scratch"],
            "recipe 'scratch' for task detect: choose from small, coco_1x",
        ),
        (["--task", "detect", "--mixup", "0.5"], "recipes for task detect have no mixup"),
        (["--task", "detect", "--image-size", "100"], "must be a multiple of 64 pixels, got 100"),
        (["--task", "detect", "--compile", "on"], "compile must be auto or off for detectors"),
        (["--task", "detect", "--model", "timm/deit_tiny_patch16_224"], "or 16, 32 and 64; got 16, 16, 16"),
        (["--task", "detect", "--scale-min", "2"], "scale_max must be at least scale_min 2, got 1"),
        (["--task", "detect", "--head", "mask_rcnn"], "head of task detect must be one of light, retinanet"),
        (["--task", "segment", "--head", "retinanet"], "head of task segment must be one of mask_rcnn, light"),
        (["--task", "detect", "--head", "light", "--layout", "paper"], "layout paper is a variant of retinanet"),
        (["--task", "segment", "--head", "light", "--proposals", "9"], "--proposals has no effect with --head light"),
        (["--task", "detect", "--shorter-side", "--mosaic", "0.5"], "mosaics need square images"),
        (
            ["--task", "detect", "--recipe", "coco_1x", "--head", "light"],
            "recipe coco_1x trains the head retinanet, not light",
        ),
    ],
)
def test_invalid_requests(run, tmp_path, flags, reason):
    code, _, errors = run("train", write_coco(tmp_path / "data"), "--out", tmp_path / "run", *flags)
    assert code == 2
    assert reason in errors
    assert not (tmp_path / "run").exists()


def test_classifiers_and_detectors_are_not_mistaken(run, start, folder, tmp_path):
    code, _, errors = run("train", folder, "--task", "detect", "--out", tmp_path / "run")
    assert (code, "is not a COCO folder" in errors) == (2, True)
    begin(squares(tmp_path / "data", 2), start, tmp_path / "run", epochs=1)
    best = tmp_path / "run" / "best.safetensors"
    code, _, errors = run("train", folder, "--model", best, "--out", tmp_path / "other")
    assert (code, "is a model for task detect: classifiers must start from a classifier" in errors) == (2, True)
    code, _, errors = run("eval", best, folder)
    assert (code, "is not a COCO folder" in errors) == (2, True)
    code, _, errors = run("predict", start, folder / "val", "--draw", tmp_path / "drawn")
    assert (code, "--draw has no effect with" in errors) == (2, True)


def test_classes_are_found_by_name(start, tmp_path):
    data = squares(tmp_path / "data", 2)
    begin(data, start, tmp_path / "run", epochs=1)
    model_file = shvit.load(tmp_path / "run" / "best.safetensors")
    path = data / "annotations" / "instances_val2017.json"
    document = json.loads(path.read_text())
    document["categories"] = [{"id": 3, "name": "Bright"}]
    document["annotations"] = [row for row in document["annotations"] if row["category_id"] == 3]
    for split in ("train2017", "val2017"):
        path.with_name(f"instances_{split}.json").write_text(json.dumps(document))
    report = evaluate_model(model_file, engines.load(model_file, "torch"), open_coco(data))
    assert report.evaluation.images == 2
    path.with_name("instances_train2017.json").unlink()
    both = evaluate_model(model_file, engines.load(model_file, "torch"), open_coco(data), "all")
    assert both.evaluation.images == 2


def without(part, tmp_path, split="val2017"):
    """A dataset with an incomplete split."""
    data = squares(tmp_path / "data", 4)
    path = data / "annotations" / f"instances_{split}.json"
    document = json.loads(path.read_text())
    rows = [{**row, "segmentation": []} for row in document["annotations"]] if part == "masks" else []
    path.write_text(json.dumps({**document, "annotations": rows}))
    return data


@pytest.mark.parametrize(
    ("task", "part", "reason"),
    [
        ("detect", "objects", "no validation image has an object"),
        ("segment", "masks", "no validation image has a mask"),
    ],
)
def test_splits_that_cannot_be_evaluated(run, tmp_path, task, part, reason):
    code, _, errors = run("train", without(part, tmp_path), "--task", task, "--out", tmp_path / "run")
    assert (code, reason in errors) == (2, True)


def test_shorter_sides_go_through_all_verbs(run, start, tmp_path):
    data = squares(tmp_path / "data", 4)
    begin(data, start, tmp_path / "run", epochs=1, shorter_side=True, image_size=90)
    best = tmp_path / "run" / "best.safetensors"
    assert "at 192x192" in run("info", best)[1]
    assert run("eval", best, data, "--workers", 0)[0] == 0
    assert run("predict", best, data / "val2017")[0] == 0
    model, picture = shvit.load(best), data / "val2017" / "000000.png"
    predictor = shvit.Predictor(model, "torch", "fp32", "cpu", threshold=0.0)
    wide = np.asarray(Image.open(picture))[:20]  # batched with the other image, it is padded as in evaluation
    for pictures in ([picture], [picture, wide], [picture, "missing.png", wide]):
        canvas = stack([read_whole(one, model.preprocess)[0] for one in pictures if not isinstance(one, str)])
        expected = predictor.engine(canvas)[:, :, 4:].flatten(1).max(1).values
        scores = [found.scores[0] for found in predictor(pictures) if found.error is None]
        assert scores == pytest.approx(expected.tolist(), abs=1e-5)
    code, _, errors = run("predict", best, data / "val2017", "--engine", "onnx")
    assert (code, "(fit shorter) run on torch, not on onnx" in errors) == (2, True)


def test_names_that_no_font_here_has_are_numbers():
    assert legible(("Äpfel", "кот")) == {"Äpfel": "Äpfel", "кот": "кот"}
    with pytest.warns(shvit.errors.Notice, match="font cannot draw 1 class name: in drawings, class 2 stands for 猫"):
        assert legible(("dog", "猫")) == {"dog": "dog", "猫": "class 2"}


def test_long_pictures_are_drawn(start, tmp_path):
    found = shvit.Prediction("", ("a",), (0.9,), None, ((1.0, 1.0, 8.0, 900.0),))
    assert draw_objects(Image.new("RGB", (10, 2000)), found, ("a", "b")).size == (20, 4000)
    assert draw_objects(Image.new("RGB", (9, 9000)), found, ("a", "b")).size == (9, 9000)


def test_recipes():
    paper = fit(coco_1x(), 117_266)
    assert (paper.epochs, paper.effective_lr, paper.weight_decay, paper.batch_size) == (12, 1e-4, 0.05, 16)
    assert paper.warmup_epochs * (117_266 // 16) == pytest.approx(500, abs=1)
    assert fit(small(), 10_000).batch_size == 16
    few = fit(small(), 16)
    assert few.batch_size == 4
    assert few.effective_lr == pytest.approx(small().effective_lr / 2)
    for batch, share in ((4, 1 / 2), (64, 2)):  # the learning rate follows the batch size
        named = fit(replace(small(), batch_size=batch), 10_000, frozenset({"batch_size"}))
        assert named.effective_lr == pytest.approx(share * small().effective_lr)
