"""Lists of files as arrays: the paths are unchanged, and each takes few bytes."""

import pickle
from pathlib import Path

import numpy as np
import pytest

from shvit.data.listing import Labelled
from shvit.data.sequences import Files, Texts, pick
from shvit.data.sources import open_source

PATHS = [
    Path(text) for text in ("a/b.jpg", "b.jpg", "/x/y/ü.png", "a/../c.jpg", "a/\udcff.jpg", "/", ".", "a b/c d.jpg")
]


def test_paths_are_unchanged():
    files = Files(iter(PATHS))
    again = pickle.loads(pickle.dumps(files))
    for one in (files, again):
        assert list(one) == PATHS
        assert list(one.texts()) == [str(path) for path in PATHS]
        assert (one[-1], len(one), list(one[2:4])) == (PATHS[-1], len(PATHS), PATHS[2:4])
    with pytest.raises(IndexError):
        files[len(PATHS)]
    assert list(Files([])) == []
    assert list(Texts([])) == []


def test_a_choice_of_a_choice_keeps_only_its_own_indices():
    files = Files(PATHS)
    some = pick(pick(files, np.array([5, 0, 2])), np.array([2, 1]))
    assert list(some) == [PATHS[2], PATHS[0]]
    assert some.whole is files
    assert pick(["a", "b"], np.array([1])) == ["b"]


def test_a_file_takes_few_bytes():
    paths = (
        Path(f"/data/imagenet/train/n{number % 1000:08}/n{number % 1000:08}_{number}.JPEG") for number in range(50_000)
    )
    assert len(pickle.dumps(Files(paths))) < 30 * 50_000


def test_folders_are_listed_with_their_classes():
    rows = [(Path(path), name) for path, name in (("r/b/1.png", "b"), ("r/a/x/2.png", "a"), ("r/a/3.png", "a"))]
    images = Labelled.of(rows)
    assert images.folders() == [(Path("r/a"), "a"), (Path("r/a/x"), "a"), (Path("r/b"), "b")]
    assert (len(images), images.present(), images.numbers.tolist()) == (3, {"a", "b"}, [0, 1, 1])
    assert Labelled.of([]).folders() == []


def test_a_folder_is_stored_as_arrays(folder):
    split = open_source(folder).train
    assert isinstance(split.images, Files)
    assert isinstance(split.labels, np.ndarray)
    assert list(split.names) == [str(path) for path in split.images]
