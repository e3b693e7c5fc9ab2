"""Images that cannot be used: found before the first step or on the way, listed, and too many of them refused."""

from collections.abc import Sequence
from pathlib import Path

from ..data.coco import CocoDataset, CocoSplit
from ..data.dataset import Dataset, Split
from ..data.loader import probe
from ..errors import Failure
from ..files import write_csv

PROBED = 512
"""Images of each split that are decoded before the first step, so that hopeless data is refused at once."""


class TrainError(Failure):
    """Training cannot go on; the message says why, and what is kept."""


class BadImages:
    """What is known of a run's bad images, by their place in their split.

    Args:
        source: The images.
        out: The run's folder.
        max_share: Of a split's images that may be bad.
        writes: Whether this is the process that writes.
    """

    def __init__(self, source: Dataset | CocoDataset, out: Path, max_share: float, writes: bool = True) -> None:
        self._splits = {"train": source.train, "val": source.val}
        self._out, self._max_share, self._writes = out, max_share, writes
        self.train: dict[int, str] = dict(source.train.bad)
        self.val: dict[int, str] = dict(source.val.bad)
        self.excluded: set[int] = set()
        """Of training: known when the epoch began, and so not in its order."""

    def __len__(self) -> int:
        return len(self.train) + len(self.val)

    def probe(self, seed: int, max_pixels: int) -> None:
        """Decode some images of each split; all of them where there are few.

        Raises:
            TrainError: Too many of them are bad.
        """
        for name, found in (("train", self.train), ("val", self.val)):
            split = self._splits[name]
            self.check(name, len(found), len(split))
            bad = probe(split, PROBED, seed, max_pixels)
            found |= bad
            self.check(name, len(bad), min(PROBED, len(split)))

    def check(self, name: str, bad: int | None = None, seen: int | None = None) -> None:
        """Raises TrainError where the bad are too large a share of the seen; by default of all known and of all."""
        bad = len(getattr(self, name)) if bad is None else bad
        seen = len(self._splits[name]) if seen is None else seen
        if bad > self._max_share * seen:
            self.write()
            raise TrainError(
                f"{bad} of {seen} {'training' if name == 'train' else 'validation'} images cannot be used, "
                f"more than --max-bad-share {self._max_share:g}; {self._out / 'bad_images.csv'} lists them with reasons"
            )

    def write(self) -> None:
        """bad_images.csv, where there are any."""
        if self and self._writes:
            rows = [*_rows("train", self._splits["train"], self.train), *_rows("val", self._splits["val"], self.val)]
            write_csv(self._out / "bad_images.csv", ["split", "image", "reason"], rows)


def _rows(name: str, split: Split | CocoSplit, bad: dict[int, str]) -> Sequence[Sequence[str]]:
    return [[name, split.names[index], bad[index]] for index in sorted(bad)]
