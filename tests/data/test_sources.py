"""What may be called data, and each way in which it can be wrong."""

import os
import shutil
from collections import Counter

import pytest

from conftest import picture, write_pictures
from shvit.data.dataset import duplicates
from shvit.data.identity import of_file, of_name
from shvit.data.sources import open_source
from shvit.errors import DataError


def refused(data, **options):
    with pytest.raises(DataError) as caught:
        open_source(data, **options).check_trainable()
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("val_name", ["val", "validation", "valid", "Val"])
def test_train_and_val_folders(folder, val_name):
    (folder / "val").rename(folder / val_name)
    source = open_source(folder)
    source.check_trainable()
    assert source.classes == ("dark", "light")
    assert (len(source.train), len(source.val), source.drawn) == (40, 12, False)
    assert Counter(source.train.labels) == {0: 20, 1: 20}
    assert all(
        source.classes[label] == path.parent.name
        for path, label in zip(source.val.images, source.val.labels, strict=True)
    )


def test_val_wins_over_test(folder):
    shutil.copytree(folder / "val", folder / "test")
    write_pictures(folder / "test" / "dark", 60, 3, first=500)
    assert len(open_source(folder).val) == 12


def test_one_pile_is_split_by_class_and_seed(folder):
    pile = folder / "train"
    write_pictures(pile / "dark", 60, 30, first=200)  # 50 dark, 20 light
    one, again, other = open_source(pile, seed=1), open_source(pile, seed=1), open_source(pile, seed=2)
    assert one.drawn
    assert all(0 < count < 20 for count in Counter(one.val.labels).values())
    assert not set(one.train.images) & set(one.val.images)
    assert len(one.train) + len(one.val) == 70
    assert list(one.train.images) == list(again.train.images)
    assert list(one.val.names) == list(again.val.names)
    assert set(one.val.images) != set(other.val.images)
    assert one.fingerprint == other.fingerprint
    assert set(one.val.images) < set(open_source(pile, seed=1, val_share=0.5).val.images)


def test_every_class_keeps_an_image_on_both_sides(tmp_path):
    for name, count in (("a", 2), ("b", 3), ("c", 40)):
        write_pictures(tmp_path / name, 100, count)
    source = open_source(tmp_path)
    assert set(source.train.labels) == set(source.val.labels) == {0, 1, 2}


def test_a_class_with_a_single_image_cannot_be_judged(tmp_path):
    write_pictures(tmp_path / "a", 100, 1)
    write_pictures(tmp_path / "b", 100, 5)
    assert "no validation images of the training classes a" in refused(tmp_path)


def test_what_lies_beside_images_is_passed_over(folder):
    (folder / "train" / "dark" / "notes.txt").write_text("x")
    (folder / "train" / "dark" / ".DS_Store").write_text("x")
    (folder / "train" / ".cache").mkdir()
    (folder / "train" / "labels.csv").write_text("x")
    write_pictures(folder / "train" / "dark" / "deeper", 60, 2, first=900)
    (folder / "train" / "dark" / "odd.jpgx").write_text("no image, but named by nothing known: left to decoding")
    assert len(open_source(folder).train) == 43


def write_csv(folder, text):
    write_pictures(folder, 100, 10)
    (folder / "labels.csv").write_text(text, encoding="utf-8")
    return folder / "labels.csv"


def test_csv_with_and_without_header(tmp_path):
    rows = "".join(f"{i:03}.png,{'ab'[i % 2]}\n" for i in range(10))
    plain = open_source(write_csv(tmp_path / "one", rows))
    headed = open_source(write_csv(tmp_path / "two", "\ufeffpath,label\n" + rows))
    assert plain.classes == headed.classes == ("a", "b")
    assert plain.train.labels.tolist() == headed.train.labels.tolist()
    assert len(plain.train) + len(plain.val) == 10
    assert all(path.is_file() for path in plain.train.images)


def test_csv_with_splits(tmp_path):
    rows = "path,label,split\n" + "".join(
        f"{i:03}.png,{'ab'[i % 2]},{'train' if i < 6 else 'valid'}\n" for i in range(10)
    )
    source = open_source(write_csv(tmp_path, rows))
    source.check_trainable()
    assert (len(source.train), len(source.val), source.drawn) == (6, 4, False)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "has no rows"),
        ("path,label\n", "has no rows"),
        ("000.png\n", "line 1: expected path,label"),
        ("000.png,a\n001.png,\n", "line 2: expected path,label"),
        ("000.png,a,b,c\n", "line 1: expected path,label"),
        ("000.png,a,elsewhere\n", "split must be train, val or test, got 'elsewhere'"),
        ("000.png,a,train\n001.png,b,\n", "give every row a split, or none"),
    ],
)
def test_bad_csv(tmp_path, text, reason):
    assert reason in refused(write_csv(tmp_path, text))


def test_csv_that_is_not_utf8(tmp_path):
    path = write_csv(tmp_path, "000.png,a\n")
    path.write_bytes("000.png,Käfer\n".encode("latin-1"))
    assert "is not UTF-8" in refused(path)


def test_digits():
    source = open_source("digits")
    source.check_trainable()
    assert len(source.train) + len(source.val) == 1797
    assert source.classes == tuple("0123456789")
    assert source.train.images[0].shape == (8, 8)
    assert max(image.max() for image in source.train.images) == 255


def test_nothing_there(tmp_path):
    assert "no such file or folder" in refused(tmp_path / "nowhere")
    (tmp_path / "a.txt").write_text("x")
    assert "neither a folder nor a CSV" in refused(tmp_path / "a.txt")


def test_an_empty_folder(tmp_path):
    assert "no class folders" in refused(tmp_path)
    (tmp_path / "train" / "a").mkdir(parents=True)
    assert "holds no images" in refused(tmp_path)


def test_images_without_class_folders(tmp_path):
    picture(50).save(tmp_path / "a.png")
    assert "no class folders" in refused(tmp_path)


def test_one_class(folder):
    shutil.rmtree(folder / "train" / "light")
    shutil.rmtree(folder / "val" / "light")
    assert "only the class dark" in refused(folder)


def test_a_training_class_missing_in_val(folder):
    shutil.rmtree(folder / "val" / "light")
    assert "no validation images of the training classes light" in refused(folder)


def test_a_val_class_unknown_to_train(folder):
    write_pictures(folder / "val" / "pink", 100, 2)
    assert "no training images of the validation classes pink" in refused(folder)


def test_no_training_folder(folder):
    shutil.rmtree(folder / "train")
    assert "no training images" in refused(folder)


def test_many_missing_classes_stay_one_line(folder):
    for index in range(30):
        write_pictures(folder / "val" / f"new{index:02}", 100, 1)
    assert "and 25 more" in refused(folder)


@pytest.mark.parametrize("share", [0, 1, -0.5, 2])
def test_impossible_shares(folder, share):
    assert "between 0 and 1" in refused(folder, val_share=share)


def test_duplicates_between_splits_are_found_by_content(folder):
    copied = folder / "train" / "dark" / "007.png"
    shutil.copy(copied, folder / "val" / "light" / "another_name.png")
    same_size = bytearray(copied.read_bytes())
    same_size[60] ^= 1
    (folder / "val" / "dark" / "same_size.png").write_bytes(same_size)
    source = open_source(folder)
    assert duplicates(source.train, source.val) == [([str(copied)], [str(folder / "val/light/another_name.png")])]


def test_links_that_lead_back_add_no_images(folder):
    before = open_source(folder)
    for place in ("train/dark/again", "val/light/up", "train/all"):
        (folder / place).symlink_to(folder)
    (folder / "train" / "light" / "here").symlink_to(folder / "train" / "light")
    after = open_source(folder)
    assert (after.classes, after.fingerprint) == (before.classes, before.fingerprint)


@pytest.mark.usefixtures("at_most_ten_seconds")
def test_pipes_and_huge_files_have_the_identity_of_their_name(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "sparse.png").touch()
    os.truncate(tmp_path / "sparse.png", 40 * 10**9)
    for name in ("pipe.png", "sparse.png"):
        assert of_file(tmp_path / name) == of_name(name)


def test_many_copies_are_one_group(tmp_path):
    """Their pairs would be too many to list."""
    (tmp_path / "a.png").write_bytes(b"the same")
    rows = [f"copies/{index}.png,{'ab'[index % 2]},{('train', 'val')[index // 2 % 2]}" for index in range(4000)]
    (tmp_path / "copies").mkdir()
    for index in range(4000):
        (tmp_path / "copies" / f"{index}.png").hardlink_to(tmp_path / "a.png")
    (tmp_path / "labels.csv").write_text("\n".join(rows))
    source = open_source(tmp_path / "labels.csv")
    [(train, val)] = duplicates(source.train, source.val)
    assert (len(train), len(val)) == (2000, 2000)


@pytest.mark.parametrize(
    ("text", "reason"),
    [("a.png,b\0\n", "NUL"), ("a.png," + "b" * 200_000, "field larger than field limit"), ("\0" * 5000, "NUL")],
)
def test_a_csv_of_impossible_cells_is_refused_in_one_line(tmp_path, text, reason):
    path = tmp_path / "labels.csv"
    path.write_text(text)
    with pytest.raises(DataError, match=reason) as caught:
        open_source(path)
    assert "\n" not in str(caught.value)


def test_unreadable_files_are_no_duplicates(tmp_path):
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "labels.csv").write_text("folder.png,a,train\nfolder.png,a,val\n")
    source = open_source(tmp_path / "labels.csv")
    assert duplicates(source.train, source.val) == []


def test_the_fingerprint_tells_data_apart(folder):
    first = open_source(folder).fingerprint
    assert open_source(folder).fingerprint == first
    write_pictures(folder / "val" / "dark", 60, 1, first=700)
    assert open_source(folder).fingerprint != first


def test_imagenette(imagenette):
    source = open_source(imagenette)
    assert (len(source.train), len(source.val), len(source.classes)) == (9469, 3925, 10)
