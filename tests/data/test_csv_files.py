"""CSV files as tools write them: read as they are meant, or refused in one line."""

import json

import pytest

from conftest import write_pictures
from shvit.data.sources import open_source
from shvit.errors import DataError

ROWS = [(f"{number:03}.png", "ab"[number % 2]) for number in range(10)]
EXPECTED = dict(ROWS)


def write(folder, text, name="labels.csv", encoding="utf-8"):
    write_pictures(folder, 100, 10)
    (folder / name).write_bytes(text.encode(encoding))
    return folder / name


def labels(source):
    pile = source.whole()
    return {path.name: source.classes[label] for path, label in zip(pile.images, pile.labels, strict=True)}


def refused(path):
    with pytest.raises(DataError) as caught:
        open_source(path)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def table(header, row, separator=","):
    lines = [header, *(row(number, *pair) for number, pair in enumerate(ROWS))]
    return "".join(separator.join(map(str, line)) + "\n" for line in lines if line)


@pytest.mark.parametrize(
    "text",
    [
        table(("filename", "label"), lambda _, path, label: (path, label)),
        table(("image_id", "label"), lambda _, path, label: (path, label)),
        table(("id", "class"), lambda _, path, label: (path, label)),
        table(("Image Path", "Class Name"), lambda _, path, label: (path, label)),
        table(("label", "file"), lambda _, path, label: (label, path)),
        table(("path", "kind"), lambda _, path, label: (path, label)),
        table(("label", "where"), lambda _, path, label: (label, path)),
        table(("", "filename", "label"), lambda number, path, label: (number, path, label)),
        table(("Unnamed: 0", "label", "filename"), lambda number, path, label: (number, label, path)),
        table(("path", "label"), lambda _, path, label: (path, label), ";"),
        table(("path", "label"), lambda _, path, label: (path, label), "\t"),
        table(None, lambda _, path, label: (path, label), "|"),
        table(("path", "label"), lambda _, path, label: (f'"{path}"', f'"{label}"')),
        table(("path", "label"), lambda _, path, label: (f".\\{path}", label)),
        "\n\n" + table(("path", "label"), lambda _, path, label: (path, label)) + "\n",
    ],
)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_columns_are_found(tmp_path, text, encoding):
    source = open_source(write(tmp_path, text, encoding=encoding))
    assert labels(source) == EXPECTED
    assert (source.drawn, source.warnings) == (True, ())
    assert all(path.is_file() for path in source.whole().images)


def test_other_suffixes(tmp_path):
    text = table(("path", "label"), lambda _, path, label: (path, label), "\t")
    for name in ("labels.tsv", "LABELS.CSV"):
        assert labels(open_source(write(tmp_path, text, name))) == EXPECTED


def test_columns_that_are_not_read_are_said(tmp_path):
    text = table(("class id", "filepaths", "labels", "author"), lambda n, path, label: (n, path, label, "me"))
    source = open_source(write(tmp_path, text))
    assert labels(source) == EXPECTED
    assert source.warnings == ("columns read: filepaths, labels; not used: class id, author",)


@pytest.mark.parametrize(
    ("header", "train", "val"),
    [
        ("split", "train", "val"),
        ("split", "Training", "dev"),
        ("set", "train", "valid"),
        ("Data Set", "train", "valid"),
        ("is_valid", "False", "True"),
        ("is_valid", "0", "1"),
        ("is_train", "1.0", "0.0"),
    ],
)
def test_words_for_splits(tmp_path, header, train, val):
    text = table(("path", "label", header), lambda number, path, label: (path, label, train if number < 6 else val))
    source = open_source(write(tmp_path, text))
    assert labels(source) == EXPECTED
    assert (len(source.train), len(source.val), source.drawn) == (6, 4, False)


def test_test_rows_do_not_join_validation(tmp_path, run):
    words = ["train"] * 6 + ["test", "val", "test", "val"]
    text = table(("path", "label", "split"), lambda number, path, label: (path, label, words[number]))
    path = write(tmp_path, text)
    source = open_source(path)
    assert [path.name for path in source.val.images] == ["007.png", "009.png"]
    assert [path.name for path in source.test.images] == ["006.png", "008.png"]
    assert (len(source.train), source.drawn) == (6, False)
    assert json.loads(run("info", path, "--json")[1])["splits"]["test"]["images"] == 2


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (
            "foo,bar\n000.png,a\n001.png,b\n",
            "line 1: 'foo' is neither an image nor a known column name",
        ),
        ("a,000.png\nb,001.png\n", "0 of 2 images found; the first path is {folder}/a"),
        ("path,label\nimages/1.png,a\nimages/2.png,b\n", "of 2 images found; the first path is {folder}/images/1.png"),
        ("path,label\nC:\\data\\1.png,a\n", "0 of 1 image found; the first path is {folder}/C:\\data\\1.png"),
        ("path,label\n/nowhere/1.png,a\n", "0 of 1 image found; the first path is /nowhere/1.png"),
        (
            "url,label\nhttps://me:word@host/a/1.png?token=1,a\n",
            "0 of 1 image found; the first path is https://host/a/1.png, a URL: download the images first",
        ),
        ("path,label\n" + "x" * 5000 + ",a\n", "0 of 1 image found"),
        ("path,label\n000.png,a,b\n", "line 2: expected path,label, got ['000.png', 'a', 'b']"),
        ("path,label\n000.png\n", "line 2: expected path,label, got ['000.png']"),
        ("path,label,split\n000.png,a,0\n001.png,b,1\n", "line 2: split must be train, val or test, got '0'"),
        ("path,label,is_valid\n000.png,a,train\n", "line 2: is_valid must be 0 or 1, got 'train'"),
        ("path,label\n", "has no rows"),
    ],
)
def test_what_cannot_be_meant_is_refused(tmp_path, text, reason):
    assert reason.format(folder=tmp_path) in refused(write(tmp_path, text))


def test_text_that_is_not_utf8(tmp_path):
    text = "path,label\n000.png,Käfer\n"
    assert "is not UTF-8" in refused(write(tmp_path, text, encoding="latin-1"))
    assert "NUL characters, so it may be" in refused(write(tmp_path, "path,label\n000.png,a\n", encoding="utf-16-le"))
    path = write(tmp_path, "")
    path.write_bytes(text.encode("utf-16") + b"\n")
    assert "is not UTF-16" in refused(path)


def test_a_file_named_as_a_column_is_no_header(tmp_path):
    path = write(tmp_path, "id,class\n001.png,a\n")
    (tmp_path / "000.png").rename(tmp_path / "id")
    assert labels(open_source(path)) == {"id": "class", "001.png": "a"}


def test_one_image_with_two_labels_is_said(tmp_path):
    path = write(tmp_path, "000.png,a\n./000.png,b\n001.png,b\n001.png,b\n002.png,a\n")
    source = open_source(path)
    assert source.warnings == (f"1 image with more than one label, such as {tmp_path}/000.png: a, b",)


def test_shards_are_made_from_the_same_rows(tmp_path, run):
    text = table(("label", "filename", "note"), lambda _, path, label: (label, path, "x"), ";")
    path = write(tmp_path / "images", text)
    code, out, err = run("shard", path, "--out", tmp_path / "shards", "--workers", 0, "--json")
    assert code == 0
    assert json.loads(out)["bad_images"] == 0
    assert "columns read: filename, label; not used: note" in err
    assert open_source(tmp_path / "shards").classes == ("a", "b")
    code, _, err = run("shard", write(tmp_path / "other", "x.png,a\ny.png,b\n"), "--out", tmp_path / "more")
    assert (code, "0 of 2 images found; the first path is" in err) == (2, True)
    assert not (tmp_path / "more").exists()


def test_a_csv_of_which_no_file_exists_is_refused_before_training(tmp_path, run):
    text = table(("path", "label"), lambda _, path, label: (f"elsewhere/{path}", label))
    code, _, err = run("train", write(tmp_path / "images", text), "--out", tmp_path / "run")
    assert (code, "0 of 10 images found; the first path is" in err) == (2, True)
    assert not (tmp_path / "run").exists()
