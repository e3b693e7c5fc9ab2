"""Images that were made to break readers have the answers that their README gives, in bounded memory."""

import json
from pathlib import Path

import pytest

from conftest import SHARED, memory_taken

IMAGES = SHARED.parent / "faults" / "images"
ANSWERS = {
    "thin_mid.png": None,
    "thin_jpg.jpg": None,
    "thin_png.png": None,
    "scans_x300.jpg": "scans, more than the limit",
    "ico_bomb.jpg": "not an image in a known format",
    "icns_bomb.jpg": "not an image in a known format",
    "postscript.jpg": "not an image in a known format",
}
"""Why each is refused; None where it can be used."""
READ = """
import json
from pathlib import Path
from shvit.data.decode import BadImage
from shvit.data.letterbox import read_whole
from shvit.data.augmentation import TrainReader
from shvit.data.transforms import EvalReader, Preprocess, fast_eval_decoder
size, whole = Preprocess(224), Preprocess(256, fit="whole")
readers = fast_eval_decoder(size), EvalReader(size), TrainReader(224), lambda path: read_whole(path, whole)
def reason(read, path):
    try:
        read(path)
    except BadImage as error:
        return str(error)
print(json.dumps({path: [reason(read, Path(path)) for read in readers] for path in sys.argv[1:]}))
"""


@pytest.mark.skipif(not IMAGES.is_dir(), reason="the images are not beside this checkout")
def test_every_reader_gives_the_right_answer():
    """Prediction's, evaluation's, training's and that of detectors."""
    paths = sorted(path for path in IMAGES.iterdir() if path.suffix != ".md")
    taken, printed = memory_taken(READ, *paths)
    for path, reasons in json.loads(printed).items():
        expected = ANSWERS[Path(path).name]
        assert all(reason is None if expected is None else expected in reason for reason in reasons), path
    assert taken < 250
