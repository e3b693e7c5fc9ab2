"""The test split in every form of data: read, kept apart from training and validation, and described."""

import io
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import datasets
import pytest

from conftest import COCO, picture, write_coco
from shvit.data.coco import open_coco
from shvit.data.dataset import Dataset
from shvit.data.shards.writer import ShardReport, drawn_by, write_shards
from shvit.data.sources import open_source
from shvit.errors import DataError, InputError
from shvit.requests.shard import ShardRequest

COUNTS = {"train": 10, "val": 3, "test": 4}
"""Images per class."""
SHADES = {"dark": 60, "light": 190}
KEPT = "no validation split: 20% of the training images are held out for validation"
SERVES = "the test split is used for validation, as in the earlier version"


def jpeg(split: str, name: str, index: int) -> bytes:
    """The bytes of an image, different for each."""
    buffer = io.BytesIO()
    picture(SHADES[name], 100 * list(COUNTS).index(split) + index).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


def given(split: str) -> dict[bytes, str]:
    """The images of a split, and the class of each."""
    return {jpeg(split, name, index): name for name in SHADES for index in range(COUNTS[split])}


def as_folder(root: Path, splits: list[str]) -> str:
    for split in splits:
        for name in SHADES:
            (root / split / name).mkdir(parents=True)
            for index in range(COUNTS[split]):
                (root / split / name / f"{index:03}.jpg").write_bytes(jpeg(split, name, index))
    return str(root)


def as_csv(root: Path, splits: list[str], column: str = "split", words: Callable[[str], str] = str) -> str:
    as_folder(root, splits)
    paths = [(path, path.parts[-3]) for path in sorted(root.rglob("*.jpg"))]
    rows = [f"{path.relative_to(root)},{path.parent.name},{words(split)}" for path, split in paths]
    (root / "labels.tsv").write_text("\n".join([f"path,label,{column}", *rows]).replace(",", "\t"))
    return str(root / "labels.tsv")


def as_hub(root: Path, splits: list[str]) -> str:
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=list(SHADES))})
    (root / "data").mkdir(parents=True)
    for split in splits:
        images = [{"bytes": data, "path": None} for data in given(split)]
        labels = [list(SHADES).index(name) for name in given(split).values()]
        table = datasets.Dataset.from_dict({"image": images, "label": labels}, features=features)
        table.to_parquet(str(root / "data" / f"{split.replace('val', 'validation')}-00000-of-00001.parquet"))
    return f"hf://{root}"


def shard(data: str, out: Path, **options) -> ShardReport:
    """Open data as the command does, and write its shards."""
    request = ShardRequest(data, out=out, workers=0, per_shard=6, **options)
    return write_shards(open_source(data, request.seed, request.drawn_share, drawn_by(out)), request)


def as_shards(root: Path, splits: list[str]) -> str:
    shard(as_folder(root.with_name(f"{root.name}-given"), splits), root)
    return str(root)


def as_bare_shards(root: Path, splits: list[str]) -> str:
    """Shards of each split by itself, without an index."""
    for split in splits:
        folder, out = (root.with_name(f"{root.name}-{split}-{kind}") for kind in ("given", "shards"))
        shard(str(Path(as_folder(folder, [split])) / split), out, val_share=0.5)
        root.mkdir(exist_ok=True)
        for number, path in enumerate(sorted(out.glob("*.tar"))):
            shutil.copy(path, root / f"{split}-{number}.tar")
    (root / "classes.txt").write_text("\n".join(SHADES))
    return str(root)


FORMS = [as_folder, as_csv, as_hub, as_shards, as_bare_shards]


def content(source: Dataset, split: str) -> dict[bytes, str]:
    part = getattr(source, split)
    read = [part.source(index) for index in range(len(part))]
    data = [one.read_bytes() if isinstance(one, Path) else one for one in read]
    assert len(set(data)) == len(data)
    return dict(zip(data, [source.classes[label] for label in part.labels], strict=True))


@pytest.mark.parametrize("form", FORMS)
def test_three_splits(tmp_path, form):
    source = open_source(form(tmp_path / "data", ["train", "val", "test"]))
    source.check_trainable()
    for split in COUNTS:
        assert content(source, split) == given(split)
    assert (source.drawn, source.warnings, len(source.whole())) == (False, (), 26)
    assert open_source(form(tmp_path / "without", ["train", "val"])).fingerprint == source.fingerprint


@pytest.mark.parametrize("form", [as_folder, as_csv, as_hub, as_bare_shards])
def test_without_a_validation_split_the_test_split_is_not_used_for_it(tmp_path, form):
    data = form(tmp_path / "data", ["train", "test"])
    source = open_source(data)
    source.check_trainable()
    assert content(source, "test") == given("test")
    assert source.drawn
    assert 2 <= len(source.val) < len(source.train)
    assert content(source, "train") | content(source, "val") == given("train")
    [warning] = source.warnings
    assert warning.startswith(KEPT)
    assert "earlier versions used it for validation" in warning
    assert len(open_source(data, val_share=0.5).val) > len(source.val)


@pytest.mark.parametrize("by", ["content", "position"])
@pytest.mark.parametrize("form", [as_folder, as_csv, as_hub, as_bare_shards])
def test_the_splits_of_earlier_versions(tmp_path, form, by):
    """Which used the test split for validation: the fingerprint, too, is that of a validation split."""
    data = form(tmp_path / "data", ["train", "test"])
    source = open_source(data, drawn_by=by)
    assert (content(source, "train"), content(source, "val")) == (given("train"), given("test"))
    assert (source.test, source.drawn) == (None, False)
    [warning] = source.warnings
    assert warning.startswith(SERVES)
    if form is as_folder:
        (tmp_path / "data" / "test").rename(tmp_path / "data" / "val")
        assert open_source(data).fingerprint == source.fingerprint


def test_shards_of_data_without_validation_split(tmp_path):
    """The drawn images are the validation split of the shards."""
    data = as_folder(tmp_path / "data", ["train", "test"])
    shard(data, tmp_path / "shards")
    origin, source = open_source(data), open_source(tmp_path / "shards")
    assert (source.drawn, source.warnings) == (False, ())
    for split in COUNTS:
        assert content(source, split) == content(origin, split)


@pytest.mark.parametrize("column", ["is_test", "partition"])
def test_columns_that_mark_test_rows(tmp_path, column):
    words = {"is_test": lambda split: str(int(split == "test")), "partition": lambda split: f"{split}ing set"}[column]
    source = open_source(as_csv(tmp_path / "data", ["train", "test"], column, words))
    assert content(source, "test") == given("test")
    assert content(source, "train") | content(source, "val") == given("train")


@pytest.mark.parametrize("name", ["test", "testing", "Test", "test_set", "seg_test/seg_test", "TestImages"])
def test_names_of_test_folders(tmp_path, name):
    data = as_folder(tmp_path / "data", ["train", "val", "test"])
    (tmp_path / "data" / "test").rename(tmp_path / "data" / "moved")
    (tmp_path / "data" / name).parent.mkdir(exist_ok=True)
    (tmp_path / "data" / "moved").rename(tmp_path / "data" / name)
    assert content(open_source(data), "test") == given("test")


def test_unlabelled_test_images_are_not_used(tmp_path):
    """As on Kaggle."""
    data = as_folder(tmp_path / "data", ["train", "val", "test"])
    before = open_source(data)
    for path in (tmp_path / "data" / "test").rglob("*.jpg"):
        path.rename(tmp_path / "data" / "test" / f"{path.parent.name}-{path.name}")
    source = open_source(data)
    assert (source.test, source.fingerprint, source.classes) == (None, before.fingerprint, before.classes)
    assert source.warnings == (f"not used: test; only train and val of {data} are read",)


def test_unlabelled_test_rows_of_a_hub_dataset_are_not_used(tmp_path):
    data = as_hub(tmp_path / "data", ["train", "val", "test"])
    [path] = (tmp_path / "data" / "data").glob("test*")
    rows = datasets.load_dataset("parquet", data_files=str(path), cache_dir=str(tmp_path / "cache"))["train"]
    rows.map(lambda row: {"label": -1}).to_parquet(str(path))
    source = open_source(data)
    assert (len(source.train), len(source.val), source.test) == (20, 6, None)
    [warning] = source.warnings
    assert warning == "not used: the test split, because it has no usable image of a class that the other splits have"


@pytest.mark.parametrize("form", [as_folder, as_csv])
def test_test_classes_that_training_does_not_have(tmp_path, form):
    data = form(tmp_path / "data", ["train", "val", "test"])
    before = open_source(data)
    bird = tmp_path / "data" / "test" / "bird" / "000.jpg"
    bird.parent.mkdir()
    picture(120, 7).save(bird)
    if form is as_csv:
        with Path(data).open("a") as file:
            file.write("\ntest/bird/000.jpg\tbird\ttest")
    source = open_source(data)
    source.check_trainable()
    assert (source.classes, source.fingerprint) == (before.classes, before.fingerprint)
    assert content(source, "test") == given("test")
    text = f"not used: 1 test image of classes that the other splits do not have, such as {bird}"
    assert source.warnings == (text,)
    for name in SHADES:
        shutil.rmtree(tmp_path / "data" / "test" / name)
    if form is as_folder:
        assert open_source(data).test is None


@pytest.mark.parametrize("form", [as_folder, as_hub, as_shards])
def test_a_class_without_test_images(tmp_path, form):
    data = (as_hub if form is as_hub else as_folder)(tmp_path / "data", ["train", "val", "test"])
    if form is as_hub:
        [path] = (tmp_path / "data" / "data").glob("test*")
        rows = datasets.load_dataset("parquet", data_files=str(path), cache_dir=str(tmp_path / "cache"))["train"]
        rows.filter(lambda row: row["label"] == 0).to_parquet(str(path))
    else:
        shutil.rmtree(tmp_path / "data" / "test" / "light")
    if form is as_shards:
        shard(data, tmp_path / "shards")
        data = str(tmp_path / "shards")
    source = open_source(data)
    assert set(content(source, "test").values()) == {"dark"}
    assert source.warnings == ("no test images of light: metrics of the test split leave them out",)


def test_only_test_images(tmp_path):
    source = open_source(as_folder(tmp_path / "data", ["test"]))
    assert content(source, "test") == given("test")
    assert (len(source.train), len(source.val), source.drawn, source.warnings) == (0, 0, False, ())
    with pytest.raises(DataError, match="has no training images"):
        source.check_trainable()


# shards


def test_shards_that_an_earlier_version_wrote_get_the_test_split(tmp_path):
    data = as_folder(tmp_path / "data", ["train", "val", "test"])
    (tmp_path / "data" / "test").rename(tmp_path / "test")
    out = tmp_path / "shards"
    shard(data, out)
    index = json.loads((out / "shards.json").read_text())
    del index["made"]["drawn_by"]
    (out / "shards.json").write_text(json.dumps(index))
    before = open_source(out)
    (tmp_path / "test").rename(tmp_path / "data" / "test")
    report = shard(data, out)
    assert (report.kept, report.made, report.to_dict()["images"]) == (5, 2, {"train": 20, "val": 6, "test": 8})
    source = open_source(out)
    assert (source.fingerprint, content(source, "train")) == (before.fingerprint, content(before, "train"))
    assert content(source, "test") == given("test")
    assert json.loads((out / "shards.json").read_text())["fingerprint"] == index["fingerprint"]
    assert shard(data, out).made == 0
    (tmp_path / "data" / "test" / "dark" / "000.jpg").unlink()
    with pytest.raises(InputError, match=r"holds shards with test \w+ instead of \w+: give another --out"):
        shard(data, out)


def test_a_stopped_run_of_an_earlier_version_goes_on_with_its_splits(tmp_path):
    """It had begun to write the test images as validation images."""
    data = as_folder(tmp_path / "data", ["train", "test"])
    out = tmp_path / "shards"
    before = open_source(data, drawn_by="content").fingerprint
    made = {"data": before, "size": 512, "per_shard": 6, "quality": 95, "seed": 0}
    (out / ".unfinished").mkdir(parents=True)
    (out / ".unfinished" / "plan.json").write_text(json.dumps({"made": made}))
    report = shard(data, out)
    assert report.to_dict()["images"] == {"train": 20, "val": 8}
    assert report.warnings[0].startswith(SERVES)
    assert content(open_source(out), "val") == given("test")
    assert shard(data, out).made == 0


def test_the_test_split_of_an_index_is_checked(tmp_path):
    path = Path(as_shards(tmp_path / "shards", ["train", "val", "test"])) / "shards.json"
    index = json.loads(path.read_text())
    index["splits"]["test"][0]["labels"][0] ^= 1
    path.write_text(json.dumps(index))
    with pytest.raises(DataError, match="its fingerprint does not match its content"):
        open_source(tmp_path / "shards")


# COCO


def write_splits(root: Path, *splits: str) -> Path:
    """A COCO folder whose images differ by split."""
    file = {**COCO, "annotations": [{**row, "iscrowd": 0} for row in COCO["annotations"]]}
    write_coco(root, file, splits)
    for number, split in enumerate(splits):
        picture(90, number, (40, 64)).save(root / split / "a.png")
    return root


def test_coco_folders(tmp_path):
    source = open_coco(write_splits(tmp_path, "train2017", "val2017", "test2017"))
    assert [path.parent.name for path in source.test.images] == ["test2017", "test2017"]
    assert (source.drawn, source.warnings, len(source.val)) == (False, (), 2)
    assert [one.labels.tolist() for one in source.test.objects] == [one.labels.tolist() for one in source.val.objects]
    assert source.test_fingerprint
    (tmp_path / "annotations" / "instances_test2017.json").unlink()
    alone = open_coco(tmp_path)
    assert (alone.test, alone.test_fingerprint, alone.fingerprint) == (None, "", source.fingerprint)


def test_roboflow_folders(tmp_path):
    write_splits(tmp_path, "train", "valid", "test")
    for split in ("train", "valid", "test"):
        path = tmp_path / "annotations" / f"instances_{split}.json"
        path.rename(tmp_path / split / "_annotations.coco.json")
    source = open_coco(tmp_path)
    assert [{path.parent.name for path in split.images} for split in source.splits().values()] == [
        {"train"},
        {"valid"},
        {"test"},
    ]
    assert source.warnings == ()


def test_coco_without_a_validation_split(tmp_path):
    write_splits(tmp_path, "train", "test")
    source = open_coco(tmp_path)
    assert ([len(split) for split in source.splits().values()], source.drawn) == ([1, 1, 2], True)
    assert {path.parent.name for path in source.whole().images} == {"train"}
    assert source.warnings[0].startswith(KEPT)
    before = open_coco(tmp_path, drawn_by="content")
    assert ([len(split) for split in before.splits().values()], before.drawn) == ([2, 2], False)
    assert {path.parent.name for path in before.val.images} == {"test"}
    assert before.warnings[0].startswith(SERVES)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda file: file.pop("annotations"), "has no list named 'annotations'"),
        (lambda file: file.update(annotations=[]), "no image in .* has an object"),
        (lambda file: file["categories"].append({"id": 9, "name": "dog"}), "disagree on the categories"),
        (lambda file: file["images"].clear(), "lists no images"),
    ],
)
def test_a_coco_test_split_that_cannot_be_used(tmp_path, change, reason):
    root = write_splits(tmp_path, "train", "val", "test")
    path = root / "annotations" / "instances_test.json"
    file = json.loads(path.read_text())
    change(file)
    path.write_text(json.dumps(file))
    source = open_coco(root)
    source.check_trainable()
    [warning] = source.warnings
    assert source.test is None
    assert warning.startswith("not used: the test split, because ")
    assert re.search(reason, warning)


def test_coco_classes_without_test_objects(tmp_path):
    root = write_splits(tmp_path, "train", "val", "test")
    path = root / "annotations" / "instances_test.json"
    file = json.loads(path.read_text())
    file["annotations"] = [row for row in file["annotations"] if row["category_id"] == 7]
    path.write_text(json.dumps(file))
    assert open_coco(root).warnings == ("no test images of cat: metrics of the test split leave them out",)


# shvit info


def test_info_describes_the_test_split(tmp_path, run):
    data = as_folder(tmp_path / "data", ["train", "val", "test"])
    (tmp_path / "data" / "test" / "dark" / "000.jpg").write_bytes(jpeg("train", "dark", 1))
    (tmp_path / "data" / "test" / "dark" / "001.jpg").write_bytes(jpeg("val", "dark", 1))
    (tmp_path / "data" / "test" / "light" / "003.jpg").write_bytes(b"")
    code, out, _ = run("info", data, "--json")
    facts = json.loads(out)
    assert code == 0
    assert facts["classes"][0] == {"name": "dark", "train": 10, "val": 3, "test": 4}
    assert (facts["splits"]["test"]["images"], facts["splits"]["test"]["unusable"]) == (8, 1)
    bad, *shared = facts["problems"]
    assert bad.startswith("test: 1 image cannot be used, such as ")
    assert [line.partition(", such as")[0] for line in shared] == [
        "1 test image also in the training split",
        "1 test image also in the validation split",
    ]
    lines = [line.split() for line in run("info", data)[1].splitlines()]
    assert ["images", "20", "6", "8"] in lines
    assert ["light", "10", "3", "4"] in lines


def test_info_describes_the_test_split_of_coco(tmp_path, run):
    code, out, _ = run("info", write_splits(tmp_path, "train", "val", "test"), "--json")
    facts = json.loads(out)
    assert (code, facts["splits"]["test"]["objects"]) == (0, 2)
    assert facts["classes"] == [{"name": name, "train": 1, "val": 1, "test": 1} for name in ("cat", "tree")]
