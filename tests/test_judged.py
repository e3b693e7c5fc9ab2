"""A model is not evaluated on its training images, even if the dataset has changed since."""

import json
import random
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import shvit
from conftest import COCO, picture, tiny_architecture, write_coco, write_pictures
from shvit.calibrate import calibrate_model
from shvit.data.coco import open_coco
from shvit.data.sources import open_source
from shvit.data.transforms import Preprocess
from shvit.engines.exported import Exported, described
from shvit.errors import Notice
from shvit.export.export import export_model
from shvit.modelfile import ModelFile, load, save
from shvit.requests.train import TrainRequest
from shvit.tasks.labelled_data import choose_split, open_as_trained
from shvit.train.run import train

FAST = {"epochs": 1, "batch_size": 8, "compile": "off", "precision": "fp32"}
HERE = {"device": "cpu", "workers": 0}


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """A folder of two classes without splits, and a model trained on it."""
    root = tmp_path_factory.mktemp("made")
    for name, shade in (("dark", 60), ("light", 190)):
        write_pictures(root / "pile" / name, shade, 20)
    save(ModelFile(tiny_architecture().build(), ("dark", "light"), Preprocess(32)), root / "start.safetensors")
    train(TrainRequest(root / "pile", out=root / "run", model=str(root / "start.safetensors"), settings=FAST, **HERE))
    return root


@pytest.fixture
def pile(made, tmp_path) -> Path:
    shutil.copytree(made, tmp_path, dirs_exist_ok=True)
    return tmp_path / "pile"


@pytest.fixture
def trained(pile) -> ModelFile:
    return load(pile.parent / "run" / "best.safetensors")


def contents(split) -> set[bytes]:
    return {Path(path).read_bytes() for path in split.images}


def judged(model: ModelFile, data: Path, which="auto"):
    return choose_split(model, open_as_trained(data, model), which)


def test_a_model_is_evaluated_on_the_held_out_part_of_its_dataset(trained, pile):
    source = open_source(pile)
    found = judged(trained, pile)
    assert contents(found.images) == contents(source.val)
    assert found.split == "val"
    assert len(source.val) + len(source.train) == 40


@pytest.mark.parametrize("place", ["dark/000a.png", "light/zzz.png"])
def test_another_image_does_not_move_the_others_between_splits(trained, pile, place):
    """Whether it is the first or the last in the sorted list."""
    held_out, trained_on = contents(open_source(pile).val), contents(open_source(pile).train)
    picture(120, 999).save(pile / place)
    new = (pile / place).read_bytes()
    with pytest.warns(Notice, match=f"{len(trained_on)} of 41 images were used in training and are left out"):
        found = judged(trained, pile)
    assert contents(found.images) == held_out | {new}
    assert (found.left_out, found.trained_on) == (len(trained_on), 0)
    assert contents(judged(trained, pile, "val").images) - {new} == held_out
    with pytest.warns(Notice, match=f"{len(trained_on)} of 41 images were used in training$"):
        everything = judged(trained, pile, "all")
    assert (len(everything.images), everything.trained_on) == (41, len(trained_on))


@pytest.mark.filterwarnings("ignore::shvit.errors.Notice")
def test_images_that_are_moved_and_renamed_are_known(trained, pile, tmp_path):
    held_out = contents(open_source(pile).val)
    for number, path in enumerate(sorted(pile.rglob("*.png"), key=lambda path: path.name)):
        (tmp_path / "other" / path.parent.name).mkdir(parents=True, exist_ok=True)
        path.rename(tmp_path / "other" / path.parent.name / f"photo-{97 - number}.png")
    assert contents(judged(trained, tmp_path / "other").images) == held_out


def test_copies_of_training_images_in_given_validation_images(trained, pile, tmp_path):
    source = open_source(pile)
    given = tmp_path / "given" / "val"
    for split, number in ((source.train, 3), (source.val, 2)):
        for path in split.images[:number]:
            (given / path.parent.name).mkdir(parents=True, exist_ok=True)
            shutil.copy(path, given / path.parent.name / f"{number}-{path.name}")
    with pytest.warns(Notice, match="3 of 5 images were used in training and are left out"):
        found = judged(trained, tmp_path / "given")
    assert contents(found.images) == contents(source.val.subset(range(2)))


def test_nothing_left_is_an_error(trained, pile, tmp_path):
    for path in open_source(pile).train.images:
        (tmp_path / "seen" / path.parent.name).mkdir(parents=True, exist_ok=True)
        shutil.copy(path, tmp_path / "seen" / path.parent.name)
    with pytest.raises(shvit.InputError, match=r"all \d+ images of .*seen, split 'all', were used in training"):
        judged(trained, tmp_path / "seen")


def test_the_command_says_how_many(trained, pile, tmp_path, run):
    picture(120, 999).save(pile / "dark" / "new.png")
    model = tmp_path / "run" / "best.safetensors"
    code, out, err = run("eval", model, pile, "--device", "cpu", "--workers", "0", "--json")
    document, trained_on = json.loads(out), trained.provenance["trained_on"]["images"]
    assert (code, document["left_out"], document["images"]) == (0, trained_on, 41 - trained_on)
    assert f"{trained_on} of 41 images were used in training and are left out" in " ".join(err.split())
    code, out, _ = run("info", model, "--json")
    assert json.loads(out)["file"]["provenance"]["trained_on"] == {"images": trained_on}


@pytest.mark.filterwarnings("ignore::shvit.errors.Notice")
def test_exported_files_name_them_and_are_evaluated_on_the_same_images(trained, pile, tmp_path):
    picture(120, 999).save(pile / "dark" / "new.png")
    path = tmp_path / "m.onnx"
    exported = Exported.from_json(path, described(trained, path, "onnx", "fp32").to_json())
    source = open_as_trained(pile, exported)
    assert choose_split(exported, source).left_out == trained.provenance["trained_on"]["images"]
    with pytest.raises(shvit.InputError, match="were used in training"):
        export_model(trained, "torch", tmp_path / "n.pt2", source=replace(source, val=source.train))


@pytest.mark.filterwarnings("ignore::shvit.errors.Notice")
def test_training_from_a_model_adds_to_its_training_images(trained, pile, tmp_path):
    for name, shade in (("dark", 70), ("light", 180)):
        write_pictures(tmp_path / "more" / "train" / name, shade, 8, first=50)
        write_pictures(tmp_path / "more" / "val" / name, shade, 2, first=90)
    model = str(tmp_path / "run" / "best.safetensors")
    train(TrainRequest(tmp_path / "more", out=tmp_path / "second", model=model, settings=FAST, **HERE))
    second = load(tmp_path / "second" / "best.safetensors")
    assert second.provenance["trained_on"]["images"] == trained.provenance["trained_on"]["images"] + 16
    picture(120, 999).save(pile / "dark" / "new.png")
    assert judged(second, pile).left_out == judged(trained, pile).left_out
    record = tmp_path / "second" / "recipe.json"
    again = train(TrainRequest(tmp_path / "more", out=tmp_path / "second", resume=True, **HERE))
    assert again.epochs == 1
    assert json.loads(record.read_text())["trained_on"] == second.provenance["trained_on"]


@pytest.mark.filterwarnings("ignore::shvit.errors.Notice")
def test_calibration_adds_its_images(trained, tmp_path):
    for name, shade in (("dark", 70), ("light", 180)):
        write_pictures(tmp_path / "more" / name, shade, 10, first=50)
    source = open_as_trained(tmp_path / "more", trained)
    calibrated = calibrate_model(trained, source, 48, batch_size=4, device="cpu").model_file
    assert judged(calibrated, tmp_path / "more").left_out == len(source.train)


def held_out_before(count: int, label: int, seed: int = 0, share: float = 0.2) -> set[int]:
    return set(random.Random(f"{seed} {label}").sample(range(count), round(count * share)))


def forget(path: Path) -> dict:
    """Changes the record of a run to that of an earlier version."""
    record = json.loads(path.read_text())
    del record["drawn_by"], record["trained_on"]
    path.write_text(json.dumps(record))
    return record


def test_runs_and_models_of_earlier_versions_keep_their_split(trained, pile, tmp_path):
    before = {f"{name}/{i:03}.png" for label, name in enumerate(("dark", "light")) for i in held_out_before(20, label)}
    provenance = {key: value for key, value in trained.provenance.items() if key not in ("drawn_by", "trained_on")}
    old = replace(trained, provenance=provenance)
    found = judged(old, pile)
    assert (found.split, {"/".join(path.parts[-2:]) for path in found.images.images}) == ("val", before)
    picture(120, 999).save(pile / "dark" / "new.png")
    with pytest.warns(Notice, match=r"does not name its training images.*among the 41 evaluated images"):
        assert len(judged(old, pile).images) == 41
    (pile / "dark" / "new.png").unlink()
    forget(tmp_path / "run" / "recipe.json")
    for state in (tmp_path / "run").glob("state*"):
        state.unlink()
    train(TrainRequest(pile, out=tmp_path / "run", resume=True, **HERE))
    resumed = load(tmp_path / "run" / "last.safetensors").provenance
    assert (resumed["drawn_by"], resumed["trained_on"]["images"]) == ("position", 32)
    assert {"/".join(p.parts[-2:]) for p in judged(replace(old, provenance=resumed), pile).images.images} == before


def test_coco_folders_are_divided_by_images_too(tmp_path):
    images = [{"id": n, "file_name": f"{n}.png", "height": 40, "width": 64} for n in range(1, 31)]
    marks = [{**COCO["annotations"][0], "id": n, "image_id": n} for n in range(1, 31)]
    root = write_coco(tmp_path, {**COCO, "images": images, "annotations": marks}, ("all",))
    for n in range(1, 31):
        picture(90, n, (40, 64)).save(root / "all" / f"{n}.png")
    first = open_coco(root)
    less = {**COCO, "images": images[3:], "annotations": marks[3:]}
    (root / "annotations" / "instances_all.json").write_text(json.dumps(less))
    second = open_coco(root)
    assert contents(second.val) <= contents(first.val)
    assert contents(second.train) <= contents(first.train)
    assert 0 < len(second.val) < len(second.train)


@pytest.mark.parametrize("count", [1, 2, 5])
def test_every_class_keeps_an_image_on_both_sides(tmp_path, count):
    for number in range(12):
        write_pictures(tmp_path / f"class{number}", 10 * number, count)
    source = open_source(tmp_path)
    assert sorted({int(label) for label in source.train.labels}) == list(range(12))
    assert sorted({int(label) for label in source.val.labels}) == (list(range(12)) if count > 1 else [])


def test_the_share_is_met(tmp_path):
    write_pictures(tmp_path / "one", 90, 400)
    shares = [len(open_source(tmp_path, seed, 0.25).val) / 400 for seed in range(4)]
    assert all(0.15 < share < 0.35 for share in shares)
    assert len(set(shares)) > 1 or shares[0] != 0.25


def test_copies_lie_on_the_same_side(tmp_path):
    write_pictures(tmp_path / "one", 90, 20)
    for path in list((tmp_path / "one").iterdir()):
        shutil.copy(path, path.with_name(f"copy-{path.name}"))
    source = open_source(tmp_path)
    assert contents(source.train).isdisjoint(contents(source.val))


def test_files_that_differ_early_and_end_alike_are_told_apart(tmp_path):
    """As in uncompressed photographs with a white margin."""
    from shvit.data.identity import identities

    pixels = np.full((80, 80, 3), 255, np.uint8)
    for number in range(2):
        pixels[79, 0] = number  # BMP stores the last row first
        Image.fromarray(pixels).save(tmp_path / f"{number}.bmp")
    one, other = identities([tmp_path / "0.bmp", tmp_path / "1.bmp"])
    assert one != other


def test_identities_in_a_file_are_few_bytes():
    from shvit.data.identity import TrainedOn

    known = np.unique(np.random.default_rng(0).integers(0, 2**48, 10_000, np.uint64))
    written = TrainedOn(known).to_dict()
    assert len(written["identities"]) < 65_000
    assert (TrainedOn.recorded({"trained_on": written}).known == known).all()
    assert len(TrainedOn.recorded({"trained_on": TrainedOn(known[:0]).to_dict()}).known) == 0
