import json
from pathlib import Path

import pytest

from shvit.data.coco_ids import read_ids
from shvit.errors import InputError

CATEGORIES = [{"id": 7, "name": "tree"}, {"id": 0, "name": "cat"}]


def listing(path: Path, **ids: int) -> Path:
    """Annotations of images by file name, `__` for a slash."""
    images = [{"id": id_, "file_name": f"{name.replace('__', '/')}.jpg"} for name, id_ in ids.items()]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"images": images, "annotations": [], "categories": CATEGORIES}))
    return path


def test_ids_are_those_of_the_file_names(tmp_path):
    file = listing(tmp_path / "val.json", **{"000005": 41, "b": 3})
    ids = read_ids(file, [Path("val2017/000005.jpg"), Path("b.jpg"), Path("new.jpg")])
    assert ids.images == {Path("val2017/000005.jpg"): 41, Path("b.jpg"): 3}
    assert ids.missing == (Path("new.jpg"),)
    assert ids.categories == {"tree": 7, "cat": 0}


def test_equal_names_are_told_apart_by_their_folders(tmp_path):
    file = listing(tmp_path / "all.json", one__a=1, two__a=2)
    paths = [Path("photos/two/a.jpg"), Path("photos/one/a.jpg")]
    assert read_ids(file, paths).images == {paths[0]: 2, paths[1]: 1}


@pytest.mark.parametrize(
    ("entries", "paths", "reason"),
    [
        ({"one__a": 1, "two__a": 2}, ["elsewhere/a.jpg"], "matches images 1 and 2"),
        ({"a": 1}, ["one/a.jpg", "two/a.jpg"], "both match image 1"),
    ],
)
def test_what_fits_twice_is_refused(tmp_path, entries, paths, reason):
    with pytest.raises(InputError, match=reason):
        read_ids(listing(tmp_path / "all.json", **entries), [Path(path) for path in paths])


def test_a_folder_gives_the_ids_of_all_its_files_or_is_refused(tmp_path):
    folder = tmp_path / "data"
    listing(folder / "annotations" / "instances_train2017.json", a=1)
    listing(folder / "annotations" / "instances_val2017.json", b=2)
    assert read_ids(folder, [Path("a.jpg"), Path("b.jpg")]).images == {Path("a.jpg"): 1, Path("b.jpg"): 2}
    listing(folder / "annotations" / "instances_val2017.json", b=1)
    with pytest.raises(InputError, match=r"a.jpg and b.jpg have the same image id 1: give one JSON file"):
        read_ids(folder, [Path("a.jpg")])
    with pytest.raises(InputError, match="holds no COCO annotations"):
        read_ids(tmp_path, [])


def test_file_names_of_windows_and_ids_that_are_text(tmp_path):
    images = [{"id": "41", "file_name": "one\\a.jpg"}, {"id": 2.0, "file_name": "two\\a.jpg"}]
    images += [{"id": 3, "file_name": 5}, {"id": 4, "file_name": "."}]
    categories = [{"id": "7", "name": "tree"}]
    file = tmp_path / "all.json"
    file.write_text(json.dumps({"images": images, "annotations": [], "categories": categories}))
    ids = read_ids(file, [Path("photos/two/a.jpg"), Path("photos/one/a.jpg"), Path("5")])
    assert list(ids.images.values()) == [2, 41, 3]
    assert ids.categories == {"tree": 7}
