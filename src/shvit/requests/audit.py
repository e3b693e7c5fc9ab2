"""The options of `shvit audit`."""

from dataclasses import KW_ONLY, dataclass
from pathlib import Path

from cyclopts import Parameter

from ..errors import InputError, check_at_least
from ..files import check_folder
from . import Device, RawCells, Workers

NO_MODEL = "none"
"""Value of `AuditRequest.model` for an audit without a network."""


@Parameter(name="*")
@dataclass(frozen=True)
class AuditRequest:
    """Which dataset to check, and with which model."""

    data: str
    """Labelled images, in any form that shvit train accepts. Nothing in it is changed."""
    _: KW_ONLY
    out: Path = Path("audit")
    """New folder for audit.csv and report.html."""
    model: str = "shvit_s1.in1k"
    """Model whose features the labels are checked with: published weights (such as shvit_s1.in1k or timm/NAME) or a
    model file. Its classes do not matter. none: no network runs, and labels are
    not checked."""
    folds: int = 5
    """Number of parts of the dataset. A classifier that is fitted to the other parts checks the labels of each part."""
    seed: int = 0
    """Random seed for the parts. If the data has no splits: also for the split, as in shvit train."""
    val_share: float | None = None
    """Fraction of the images held out for validation. Default: 0.2. Only for data without a validation split."""
    device: Device = "auto"
    threads: int | None = None
    """CPU threads of the network."""
    batch_size: int = 16
    """Images per batch."""
    workers: Workers = 2
    raw_cells: RawCells = False

    @property
    def with_model(self) -> bool:
        """Whether a network computes features."""
        return self.model != NO_MODEL

    def check(self) -> None:
        """Raises InputError if a value is out of range, or if `out` is not empty or lies within the data."""
        check_at_least(2, folds=self.folds)
        check_at_least(1, batch_size=self.batch_size)
        check_at_least(0, workers=self.workers, seed=self.seed)
        check_folder(self.out, new=True)
        if Path(self.data).is_dir() and self.out.resolve().is_relative_to(Path(self.data).resolve()):
            raise InputError(f"{self.out} lies within the data, {self.data}: give another --out")
