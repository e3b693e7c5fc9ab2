"""Finds images that cannot be used, lists them in a file, and stops training if there are too many."""

from pathlib import Path

from ..data.coco import CocoDataset
from ..data.dataset import Dataset
from ..data.loader import draw_some, probe
from ..errors import Failure, counted
from ..files import write_csv

PROBED = 512
"""Number of images to decode from each split before the first step. This finds unusable data early."""


class TrainError(Failure):
    """Training cannot continue. The message gives the reason and says which files are kept."""


class BadImages:
    """The bad images of a run. Stores each bad image's index in its split, and the reason.

    Args:
        source: The dataset.
        out: Folder for bad_images.csv.
        max_share: Largest fraction of a split's images that may be bad.
        writes: Whether this process writes files.
    """

    def __init__(self, source: Dataset | CocoDataset, out: Path, max_share: float, writes: bool) -> None:
        self._splits = {"train": source.train, "val": source.val}
        self._out, self._max_share, self._writes = out, max_share, writes
        self.train: dict[int, str] = dict(source.train.bad)
        self.val: dict[int, str] = dict(source.val.bad)
        self.excluded: set[int] = set()
        """Bad training images found before this epoch. The epoch does not load them."""

    def __len__(self) -> int:
        return len(self.train) + len(self.val)

    def probe(self, seed: int, max_pixels: int) -> None:
        """Decode up to `PROBED` random images of each split.

        Raises:
            TrainError: Too many of the decoded images are bad.
        """
        for name, known in (("train", self.train), ("val", self.val)):
            split = self._splits[name]
            self.check(name)
            _, bad = probe(split, draw_some(split, PROBED, seed), max_pixels)
            known |= bad
            self.check(name, len(bad), min(PROBED, len(split)))

    def check(self, name: str, bad: int | None = None, seen: int | None = None) -> None:
        """Raises TrainError if more than `max_share` of the checked images of a split are bad.

        Args:
            name: `train` or `val`.
            bad: Number of bad images. Default: all bad images found so far.
            seen: Number of images that were checked. Default: the whole split.
        """
        bad = len(getattr(self, name)) if bad is None else bad
        seen = len(self._splits[name]) if seen is None else seen
        if bad > self._max_share * seen:
            self.write()
            kind = "training" if name == "train" else "validation"
            raise TrainError(
                f"{bad} of {counted(seen, f'{kind} image')} cannot be used, "
                f"more than --max-bad-share {self._max_share:g} allows; see {self._out / 'bad_images.csv'}"
            )

    def write(self) -> None:
        """Write bad_images.csv if there are bad images."""
        if self and self._writes:
            rows = [
                [name, split.names[index], reason]
                for name, split in self._splits.items()
                for index, reason in sorted(getattr(self, name).items())
            ]
            write_csv(self._out / "bad_images.csv", ["split", "image", "reason"], rows)
