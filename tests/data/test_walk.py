"""Folders as they are on real disks: with links that lead back, links to the same place, hidden files, pipes."""

import os

from shvit.data.walk import files_below, folders_in


def tree(root, *files):
    for name in files:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")


def below(folder):
    return [str(path.relative_to(folder)) for path in files_below(folder)]


def test_own_files_come_before_those_of_folders(tmp_path):
    tree(tmp_path, "b/2.png", "b/10.png", "z.png", "a/c/1.png", "a-b/1.png")
    assert below(tmp_path) == ["z.png", "a/c/1.png", "a-b/1.png", "b/10.png", "b/2.png"]


def test_hidden_files_and_folders_are_passed_over(tmp_path):
    tree(tmp_path, "1.png", "._1.png", ".trash/2.png", "@eaDir/1.png/thumb.jpg", "a/__MACOSX/1.png", "a/3.png")
    assert below(tmp_path) == ["1.png", "a/3.png"]
    assert folders_in(tmp_path) == [tmp_path / "a"]


def test_a_link_back_is_not_followed(tmp_path):
    """To the folder itself, to one above it, and to one below that leads to it."""
    root = tmp_path / "images"
    tree(root, "a/1.png", "b/2.png")
    for name, target in (("a/up", root), ("a/here", root / "a"), ("b/far", tmp_path), ("again", root)):
        (root / name).symlink_to(target)
    assert below(root) == ["a/1.png", "b/2.png"]
    assert below(root / "a") == ["1.png"]
    assert folders_in(root) == [root / "a", root / "b"]


def test_a_real_folder_is_read_once_and_by_its_own_path(tmp_path):
    root, elsewhere = tmp_path / "images", tmp_path / "elsewhere"
    tree(root, "z/1.png")
    tree(elsewhere, "sub/2.png", "3.png")
    (root / "a").symlink_to(root / "z")
    (root / "more").symlink_to(elsewhere)
    (root / "most").symlink_to(elsewhere)
    (elsewhere / "back").symlink_to(root)
    assert below(root) == ["more/3.png", "more/sub/2.png", "z/1.png"]


def test_a_link_may_be_where_the_walk_begins(tmp_path):
    tree(tmp_path / "elsewhere", "1.png")
    (tmp_path / "images").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "back").symlink_to(tmp_path)
    assert below(tmp_path / "images") == ["1.png"]


def test_what_cannot_be_read_as_a_file_is_not_lost(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    for name, target in (("gone.png", "nothing"), ("itself.png", "itself.png")):
        (tmp_path / name).symlink_to(target)
    assert below(tmp_path) == ["gone.png", "itself.png", "pipe.png"]
