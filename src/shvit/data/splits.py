"""Recognize the names of splits in folder names, file names and CSV columns, and on the Hugging Face hub."""

import re
from typing import Literal

Kind = Literal["train", "val", "test"]
TRAIN_NAMES = ("train", "training")
VAL_NAMES = ("val", "validation", "valid")
TEST_NAMES = ("test", "testing")
"""Exact names of split folders. If several folders of one split exist, the first in this order is used."""
KIND_OF: dict[str, Kind] = {
    **dict.fromkeys((*TRAIN_NAMES, "trn"), "train"),
    **dict.fromkeys(("val", "validation", "valid", "dev", "devel", "development", "eval", "evaluation"), "val"),
    **dict.fromkeys(("test", "testing", "tst"), "test"),
}
"""The split that a word stands for."""
SPLIT_ADJECTIVES: dict[str, str] = {"train": "training", "val": "validation", "test": "test"}
"""How messages name the images of a split."""
FILLER = re.compile("sets?|seg|split|data|dataset|images?|imgs?|photos|pictures|folder")
"""Words that may be combined with the name of a split, as in seg_train, training_set and train_images."""


def split_of(name: str) -> Kind | None:
    """The split that a folder's name or a CSV cell stands for; None if it stands for no split."""
    words = [word for word in _words(name) if not FILLER.fullmatch(word)]
    return KIND_OF.get(words[0]) if len(words) == 1 else None


def splits_within(name: str) -> set[Kind]:
    """All splits that a file name mentions, such as `train` in person_keypoints_train2017.json."""
    return {KIND_OF[word] for word in _words(name) if word in KIND_OF}


def _words(name: str) -> list[str]:
    """The words of a name in lower case, without numbers; trainset, valset and TrainImages are two words each."""
    words = []
    for part in re.findall("[a-z]+", re.sub("(?<=[a-z])(?=[A-Z])", " ", name).lower()):
        cut = next((len(word) for word in KIND_OF if part.startswith(word) and FILLER.fullmatch(part, len(word))), 0)
        words += [part[:cut], part[cut:]] if cut else [part]
    return words
