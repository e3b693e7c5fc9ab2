"""The options of `shvit shard`."""

from dataclasses import KW_ONLY, dataclass
from pathlib import Path

from cyclopts import Parameter

from ..errors import InputError, check_at_least
from ..files import check_folder
from . import Workers


@Parameter(name="*")
@dataclass(frozen=True)
class ShardRequest:
    """Which dataset to write as WebDataset shards, and how."""

    data: str
    """Labelled images: a folder, CSV file, shards, hf://NAME or digits, as for shvit train."""
    _: KW_ONLY
    out: Path
    """New folder (or folder of an unfinished run) for train-000000.tar, …, val-…, test-… and shards.json."""
    size: int = 512
    """Maximum shorter side of the stored images, in pixels. Larger images are resized. Smaller JPEGs are copied."""
    per_shard: int = 1000
    """Maximum number of images per shard."""
    quality: int = 95
    """Quality of JPEGs that are re-encoded, from 1 to 100."""
    workers: Workers = 2
    seed: int = 0
    """Random seed for the order of the training images. If the data has no validation split: also for
    drawing it."""
    val_share: float | None = None
    """Fraction of the images held out for validation. Default: 0.2. Only for data without a validation split."""
    max_bad_share: float = 0.2
    """Stop if more than this fraction of the images cannot be used. bad_images.csv lists the unusable images."""

    @property
    def drawn_share(self) -> float:
        """Fraction of the images held out for validation if the data has no validation split."""
        return 0.2 if self.val_share is None else self.val_share

    def check(self) -> None:
        """Raises InputError if a value is out of range, or if `out` is a file or lies within the data."""
        check_at_least(1, size=self.size, per_shard=self.per_shard)
        check_at_least(0, workers=self.workers)
        if not 1 <= self.quality <= 100:
            raise InputError(f"quality must be from 1 to 100, got {self.quality}")
        if not 0 <= self.max_bad_share <= 1:
            raise InputError(f"max_bad_share must be from 0 to 1, got {self.max_bad_share}")
        check_folder(self.out)
        if Path(self.data).is_dir() and self.out.resolve().is_relative_to(Path(self.data).resolve()):
            raise InputError(f"{self.out} lies within the data, {self.data}: write the shards to another folder")
