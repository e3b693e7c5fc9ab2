"""Prediction and training see the same images in a folder, and what they pass over is said."""

import json
import shutil
from importlib.util import find_spec

import pytest
from PIL import features

from conftest import picture, write_pictures
from shvit.data.decode import BadImage, decode
from shvit.data.images import Skipped, is_image
from shvit.data.sources import open_source
from shvit.modelfile import save
from shvit.predict.predictor import find_images

FORMATS = {".jfif": "JPEG", ".jp2": "JPEG2000", ".mpo": "MPO", ".tga": "TGA", ".pgm": "PPM", ".jpg": "JPEG", "": "PNG"}
HEIC = b"\0\0\0\x1cftypheic\0\0\0\0mif1heic"


@pytest.fixture
def mixed(tmp_path):
    """A folder of two classes with images in many formats, linked and hidden folders, and other files."""
    root = tmp_path / "images"
    for shade, name in ((60, "dark"), (190, "light")):
        (root / name).mkdir(parents=True)
        for suffix, format_ in FORMATS.items():
            image = picture(shade).convert("L") if suffix == ".pgm" else picture(shade)
            image.save(root / name / f"a{suffix}", format_)
        if features.check("avif"):
            picture(shade).save(root / name / "a.avif")
        write_pictures(tmp_path / "elsewhere" / name, shade, 2)
        (root / name / "linked").symlink_to(tmp_path / "elsewhere" / name)
        for hidden in ("._a.jpg", ".trash/b.jpg", "@eaDir/c.jpg"):
            (root / name / hidden).parent.mkdir(exist_ok=True)
            shutil.copy(root / name / "a.jpg", root / name / hidden)
        for other in ("notes.txt", "film.mp4", "README", ".DS_Store"):
            (root / name / other).write_bytes(b"x")
    return root


def test_prediction_and_training_see_the_same_images(mixed):
    seen = open_source(mixed).whole().images
    assert set(find_images([str(mixed)])) == set(seen)
    assert len(seen) == 2 * (len(FORMATS) + features.check("avif") + 2)
    assert not any(part.startswith((".", "@")) for path in seen for part in path.relative_to(mixed).parts)
    for path in seen:
        decode(path)


def test_what_is_passed_over_is_counted_and_said(mixed, tiny, tmp_path, run):
    lines = (
        "skipped: 6 files that are not images (2 .mp4, 2 .txt, 2 README)",
        f"skipped: 6 hidden files or folders, such as {mixed}/dark/._a.jpg",
    )
    assert open_source(mixed).warnings == lines
    save(tiny, tmp_path / "m.safetensors")
    code, out, err = run("predict", tmp_path / "m.safetensors", mixed, "--json")
    assert code == 0
    assert json.loads(out)["images"] == len(find_images([str(mixed)]))
    assert [line for line in lines if line not in err] == [], err
    code, out, err = run("info", mixed)
    assert code == 0
    assert all(line in out for line in lines)


def test_a_folder_without_images_says_what_it_holds(tmp_path, tiny, run):
    save(tiny, tmp_path / "m.safetensors")
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.txt").write_text("x")
    code, _, err = run("predict", tmp_path / "m.safetensors", tmp_path / "in")
    assert code == 2
    assert "skipped: 1 file that is not an image (1 .txt)" in err


def test_files_that_are_named_are_tried(tmp_path):
    (tmp_path / "a.txt").write_text("x")
    passed = Skipped()
    assert find_images([str(tmp_path / "a.txt"), str(tmp_path / "*.txt")], passed) == [tmp_path / "a.txt"]
    assert passed.lines() == []


def test_images_by_their_names(tmp_path):
    images = ("a.JPG", "a.heic", "a.b.jpeg", "n01440764_36", "a.jpgx", "a.svg")
    assert [is_image(tmp_path / name) for name in images] == [True] * len(images)
    others = ("a.txt", "a.jpg.TXT", "clip.MOV", "LICENSE", "weights.safetensors", "a.zip")
    assert [is_image(tmp_path / name) for name in others] == [False] * len(others)


@pytest.mark.skipif(find_spec("pillow_heif") is not None, reason="the extra heic is installed")
def test_heic_names_its_extra(tmp_path, tiny, run):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "IMG_0001.HEIC").write_bytes(HEIC + bytes(500))
    with pytest.raises(BadImage, match=r"a HEIC image, which needs pillow-heif: pip install 'shvit\[heic\]'"):
        decode(tmp_path / "in" / "IMG_0001.HEIC")
    picture(60).save(tmp_path / "in" / "a.png")
    save(tiny, tmp_path / "m.safetensors")
    code, out, _ = run("predict", tmp_path / "m.safetensors", tmp_path / "in", "--json")
    assert code == 0
    rows = {row["path"]: row["error"] for row in json.loads(out)["predictions"]}
    assert "pip install 'shvit[heic]'" in rows[str(tmp_path / "in" / "IMG_0001.HEIC")]


def test_heic_is_read_where_its_extra_is_installed(tmp_path):
    pillow_heif = pytest.importorskip("pillow_heif")
    pillow_heif.from_pillow(picture(60)).save(tmp_path / "a.heic")
    assert decode(tmp_path / "a.heic").size == picture(60).size
