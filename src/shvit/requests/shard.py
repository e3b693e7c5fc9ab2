"""The options of `shvit shard`."""

from dataclasses import KW_ONLY, dataclass
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from ..errors import InputError
from ..files import check_folder
from . import Workers


@dataclass(frozen=True)
class ShardRequest:
    """Which dataset to write as WebDataset shards, and how."""

    data: Annotated[str, Parameter(help="Data as for train: folder, CSV, shards, hf://NAME or digits.")]
    _: KW_ONLY
    out: Annotated[
        Path,
        Parameter(
            help="New folder for train-000000.tar, …, val-000000.tar, … and shards.json; or that of a run to continue."
        ),
    ]
    size: Annotated[
        int,
        Parameter(
            help="Maximum of the images' shorter side, in pixels. No image is enlarged; JPEGs within it are copied."
        ),
    ] = 512
    per_shard: Annotated[int, Parameter(help="Maximum number of images per shard.")] = 1000
    quality: Annotated[int, Parameter(help="Quality of JPEGs that are encoded again, 1 to 100.")] = 95
    workers: Workers = 2
    seed: Annotated[
        int, Parameter(help="Shuffles the training images, and draws validation images if the data has no splits.")
    ] = 0
    val_share: Annotated[
        float | None,
        Parameter(help="Share of validation images to draw. Default: 0.2. Only for data without a validation split."),
    ] = None
    max_bad_share: Annotated[
        float, Parameter(help="Maximum share of images that cannot be used; bad_images.csv lists them.")
    ] = 0.2

    @property
    def drawn_share(self) -> float:
        """Fraction of the images to draw as validation images if the data has no splits."""
        return 0.2 if self.val_share is None else self.val_share

    def check(self) -> None:
        """Raises InputError if a value is out of range, or if `out` is a file or lies within the data."""
        allowed = [
            ("size", self.size, self.size >= 1, "at least 1 pixel"),
            ("images a shard", self.per_shard, self.per_shard >= 1, "at least 1"),
            ("quality", self.quality, 1 <= self.quality <= 100, "from 1 to 100"),
            ("workers", self.workers, self.workers >= 0, "at least 0"),
            ("share of bad images", self.max_bad_share, 0 <= self.max_bad_share <= 1, "from 0 to 1"),
        ]
        for name, value, right, range_ in allowed:
            if not right:
                raise InputError(f"{name} must be {range_}, got {value}")
        check_folder(self.out)
        if Path(self.data).is_dir() and self.out.resolve().is_relative_to(Path(self.data).resolve()):
            raise InputError(f"{self.out} lies within the data, {self.data}: write the shards to another folder")
