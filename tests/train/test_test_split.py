"""The test split in training and evaluation: it changes nothing before the final evaluation."""

import csv
import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import shvit
from conftest import tiny_architecture, write_coco, write_pictures
from shvit.calibrate import calibrate_model
from shvit.data.coco import open_coco
from shvit.data.identity import TrainedOn
from shvit.data.sources import open_source
from shvit.data.transforms import Preprocess
from shvit.errors import Notice
from shvit.export.export import export_model
from shvit.modelfile import ModelFile, load, save
from shvit.requests.train import TrainRequest
from shvit.tasks.labelled_data import choose_split, open_as_trained
from shvit.train.progress import Reporter
from shvit.train.run import train

FAST = {"epochs": 1, "batch_size": 8, "compile": "off", "precision": "fp32"}
HERE = {"device": "cpu", "workers": 0}


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """Data with train and test, and a run on it."""
    root = tmp_path_factory.mktemp("made")
    for name, shade in (("dark", 60), ("light", 190)):
        write_pictures(root / "data" / "train" / name, shade, 20)
        write_pictures(root / "data" / "test" / name, shade, 5, first=200)
    save(ModelFile(tiny_architecture().build(), ("dark", "light"), Preprocess(32)), root / "start.safetensors")
    begin(root, root / "run")
    return root


def begin(root: Path, out: Path, reporter: Reporter | None = None) -> None:
    model = str(root / "start.safetensors")
    train(TrainRequest(root / "data", out=out, model=model, settings=FAST, **HERE), reporter)


@pytest.fixture
def root(made, tmp_path) -> Path:
    shutil.copytree(made, tmp_path, dirs_exist_ok=True)
    return tmp_path


@pytest.fixture
def trained(root) -> ModelFile:
    return load(root / "run" / "best.safetensors")


class Warnings(Reporter):
    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def warn(self, text: str) -> None:
        self.lines.append(text)


def folders(split) -> set[str]:
    """The split folder of each image."""
    return {path.parts[-3] for path in split.images}


def weights(path: Path) -> dict[str, torch.Tensor]:
    return load(path).model.state_dict()


def edit_record(root: Path, **changes) -> None:
    path = root / "run" / "recipe.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


@pytest.mark.filterwarnings("ignore::shvit.errors.Notice")
def test_the_test_images_do_not_influence_training(root, trained):
    """With and without them, the weights are the same, bit by bit."""
    source = open_source(root / "data")
    assert len(source.train) + len(source.val) == 40
    assert trained.provenance["trained_on"]["images"] == len(source.train)
    assert not TrainedOn.recorded(trained.provenance).among(source.test.images).any()
    for split in ("train", "val"):
        for path in getattr(source, split).images:
            place = root / "other" / "data" / split / path.parent.name
            place.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, place)
    shutil.copy(root / "start.safetensors", root / "other")
    begin(root / "other", root / "other" / "run")
    alone, beside = (weights(each / "run" / "last.safetensors") for each in (root / "other", root))
    assert all(torch.equal(alone[name], beside[name]) for name in beside)


@pytest.mark.filterwarnings("ignore::shvit.errors.Notice")
def test_which_images(root, trained):
    source = open_as_trained(root / "data", trained)
    chosen = {which: choose_split(trained, source, which) for which in ("auto", "val", "all", "test")}
    assert [one.split for one in chosen.values()] == ["val", "val", "all", "test"]
    assert [folders(one.images) for one in chosen.values()] == [{"train"}, {"train"}, {"train"}, {"test"}]
    assert [len(one.images) for one in chosen.values()] == [len(source.val), len(source.val), 40, 10]
    stranger = replace(trained, provenance={})
    assert choose_split(stranger, source).split == "val"


def test_the_command(root, run):
    model, data = root / "run" / "best.safetensors", root / "data"
    shutil.copy(data / "train" / "dark" / "003.png", data / "test" / "dark" / "copy.png")
    used = (data / "train" / "dark" / "003.png") in open_source(data).train.images
    code, out, err = run("eval", model, data, "--split", "test", "--device", "cpu", "--workers", "0", "--json")
    document = json.loads(out)
    assert (code, document["split"], document["left_out"], document["images"]) == (0, "test", used, 11 - used)
    assert "no validation split: 20% of the training images" in err
    code, out, _ = run("eval", model, data, "--split", "test", "--device", "cpu", "--workers", "0")
    assert f"on {11 - used} test images" in out


@pytest.mark.parametrize(
    ("split", "reason"),
    [
        ("test", "has no images in its split 'test'; it has train, val"),
        ("tset", 'Invalid value "tset"'),
    ],
)
def test_a_split_that_is_not_there(root, run, split, reason):
    shutil.move(root / "data" / "test", root / "data" / "val")
    code, out, err = run("eval", root / "run" / "best.safetensors", root / "data", "--split", split)
    assert (code, out) == (2, "")
    [line] = [line for line in err.splitlines() if line.strip()]
    assert reason in line


def test_a_split_that_nobody_knows(root, trained):
    with pytest.raises(shvit.InputError, match="unknown split 'tset': choose from auto, train, val, test, all"):
        choose_split(trained, open_source(root / "data"), "tset")


def test_only_test_images_are_evaluated_on_demand(root, trained):
    shutil.rmtree(root / "data" / "train")
    source = open_as_trained(root / "data", trained)
    assert len(choose_split(trained, source, "test").images) == 10
    with pytest.raises(shvit.InputError, match="it has test; evaluate its test images with --split test"):
        choose_split(trained, source)
    with pytest.raises(shvit.InputError, match="has no images"):
        export_model(trained, "torch", root / "m.pt2", source=source)
    with pytest.raises(shvit.InputError, match="no training images to measure statistics on"):
        calibrate_model(trained, source, 48, device="cpu")


@pytest.mark.filterwarnings("ignore::shvit.errors.Notice")
def test_calibration_does_not_use_the_test_images(root, trained):
    source = open_as_trained(root / "data", trained)
    for path in source.test.images:
        path.write_bytes(b"")
    one, other = (
        calibrate_model(trained, each, 48, batch_size=4, device="cpu") for each in (source, replace(source, test=None))
    )
    assert one.to_dict() | {"before": 0, "after": 0} == other.to_dict() | {"before": 0, "after": 0}
    pairs = zip(one.model_file.model.state_dict().values(), other.model_file.model.state_dict().values(), strict=True)
    assert all(torch.equal(value, expected) for value, expected in pairs)
    assert one.model_file.metrics == other.model_file.metrics


# runs and model files of earlier versions


def as_before(root: Path) -> dict[str, str]:
    """Makes the run and the model those of the version before the test split: trained with test as validation."""
    (root / "data" / "test").rename(root / "data" / "val")
    shutil.rmtree(root / "run")
    begin(root, root / "run")
    (root / "data" / "val").rename(root / "data" / "test")
    edit_record(root, drawn_by="content")
    trained = load(root / "run" / "best.safetensors")
    save(replace(trained, provenance={**trained.provenance, "drawn_by": "content"}), root / "before.safetensors")
    return json.loads((root / "run" / "recipe.json").read_text())


def test_runs_of_earlier_versions_are_resumed_with_their_split(root):
    as_before(root)
    reporter = Warnings()
    result = train(TrainRequest(root / "data", out=root / "run", resume=True, **HERE), reporter)
    assert result.epochs == 1
    assert reporter.lines[0].startswith("the test split is used for validation, as in the earlier version")
    edit_record(root, drawn_by="hash")
    with pytest.raises(shvit.Failure, match=r"is not the data that the run in .* began with"):
        train(TrainRequest(root / "data", out=root / "run", resume=True, **HERE))


@pytest.mark.parametrize("before", ["content", "position"])
def test_runs_that_were_stopped_before_their_first_checkpoint(root, before):
    record = as_before(root)
    for path in (root / "run").iterdir():
        path.unlink()
    kept = ("recipe", "choices", "task", "model", "architecture", "preprocess", "data", "classes")
    written = {key: record[key] for key in kept} | ({"drawn_by": before} if before == "content" else {})
    (root / "run" / "recipe.json").write_text(json.dumps(written))
    train(TrainRequest(root / "data", out=root / "run", resume=True, **HERE))
    model = load(root / "run" / "last.safetensors")
    assert (model.provenance["drawn_by"], model.provenance["trained_on"]["images"]) == (before, 40)
    assert model.metrics["images"] == 10
    with pytest.warns(Notice, match="the test split is used for validation"):
        source = open_as_trained(root / "data", model)
    assert folders(choose_split(model, source).images) == {"test"}


def test_model_files_of_earlier_versions_are_evaluated_on_the_same_images(root):
    as_before(root)
    model = load(root / "before.safetensors")
    with pytest.warns(Notice, match="the test split is used for validation, as in the earlier version"):
        source = open_as_trained(root / "data", model)
    chosen = choose_split(model, source)
    assert (chosen.split, folders(chosen.images), len(chosen.images)) == ("val", {"test"}, 10)
    with pytest.warns(Notice) as notices:
        source = open_as_trained(root / "data", model, "test")
    assert str(notices[-1].message).endswith("used the test images for validation, and their accuracy may be too high")
    chosen = choose_split(model, source, "test")
    assert (chosen.split, folders(chosen.images), len(chosen.images)) == ("test", {"test"}, 10)


# duplicates


@pytest.mark.filterwarnings("ignore::shvit.errors.Notice")
def test_duplicates_in_the_test_split_are_listed(root):
    source = open_source(root / "data")
    trained, held_out = source.train.images[0], source.val.images[0]
    for path in (trained, held_out):
        shutil.copy(path, root / "data" / "test" / path.parent.name / f"copy-{path.name}")
    reporter = Warnings()
    begin(root, root / "second", reporter)
    with (root / "second" / "duplicates.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [{key: Path(name).name for key, name in row.items() if name} for row in rows] == [
        {"train": trained.name, "test": f"copy-{trained.name}"},
        {"val": held_out.name, "test": f"copy-{held_out.name}"},
    ]
    lines = [line.partition(", such as")[0] for line in reporter.lines if "duplicate" in line]
    assert lines == [
        "1 duplicate of training images in the test split",
        "1 duplicate of validation images in the test split",
    ]


def test_start_weights_that_know_the_test_images(root, trained):
    shutil.copytree(root / "data" / "train", root / "more" / "data" / "test")
    for name, shade in (("dark", 60), ("light", 190)):
        write_pictures(root / "more" / "data" / "train" / name, shade, 8, first=400)
    shutil.copy(root / "run" / "best.safetensors", root / "more" / "start.safetensors")
    reporter = Warnings()
    with pytest.warns(Notice, match="30 of 40 images were used in training and are left out"):
        begin(root / "more", root / "more" / "run", reporter)
    count = trained.provenance["trained_on"]["images"]
    [line] = [line for line in reporter.lines if "was trained on" in line]
    assert line.endswith(f"was trained on {count} of the 40 test images: the measured accuracy will be too high")


def test_detectors(tmp_path):
    write_coco(tmp_path, splits=("train", "val", "test"))
    source = open_coco(tmp_path)
    model = ModelFile(tiny_architecture().build(), source.classes, Preprocess(32, fit="whole"), "detect")
    chosen = choose_split(model, source, "test")
    assert (chosen.split, {path.parent.name for path in chosen.images.images}) == ("test", {"test"})
    assert np.array_equal(choose_split(model, source, "all").images.sizes[:2], source.train.sizes)
    assert len(choose_split(model, source, "all").images) == 4
