"""Find the image files in a folder by their names, and count skipped files. All commands use the same rule."""

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from ..errors import counted, few
from .walk import files_below

NOT_IMAGES = frozenset(
    {
        *(".txt", ".md", ".rst", ".rtf", ".tex", ".pdf", ".doc", ".docx", ".ppt", ".pptx", ".xls", ".xlsx", ".log"),
        *(".csv", ".tsv", ".json", ".jsonl", ".ndjson", ".xml", ".yaml", ".yml", ".toml", ".ini", ".cfg", ".html"),
        *(".htm", ".css", ".js", ".py", ".pyc", ".ipynb", ".sh", ".bat", ".c", ".cc", ".cpp", ".h", ".m", ".lua"),
        *(".db", ".sqlite", ".lmdb", ".mdb", ".npy", ".npz", ".mat", ".pkl", ".pickle", ".h5", ".hdf5", ".parquet"),
        *(".arrow", ".feather", ".tfrecord", ".names", ".labels", ".cache", ".pt", ".pth", ".onnx"),
        *(".safetensors", ".zip", ".tar", ".gz", ".tgz", ".bz2", ".xz", ".7z", ".rar", ".torrent", ".md5", ".sha256"),
        *(".mp4", ".mov", ".avi", ".mkv", ".webm", ".m4v", ".mpg", ".mpeg", ".wmv", ".3gp", ".mp3", ".wav", ".flac"),
        *(".aae", ".xmp", ".thm", ".lnk", ".url"),
    }
)
"""Files with these suffixes often lie beside images, and are skipped. Files with any other suffix count as images."""
NAMED_NOT_IMAGES = frozenset({"readme", "license", "licence", "copying", "notice", "authors", "changelog", "makefile"})
"""Names of files without a suffix that are skipped."""


def is_image(file: Path) -> bool:
    """Whether a file counts as an image, by its name alone."""
    return file.suffix.lower() not in NOT_IMAGES and file.name.lower() not in NAMED_NOT_IMAGES


@dataclass
class Skipped:
    """The skipped files of image folders."""

    others: Counter[str] = field(default_factory=Counter)
    """Number of files that are not images, by suffix."""
    hidden: list[Path] = field(default_factory=list)

    def images_below(self, folder: Path) -> list[Path]:
        """The images below a folder, ordered as in `files_below`. Counts other files in `others`. Raises InputError."""
        files = list(files_below(folder, self.hidden))
        self.others.update(file.suffix.lower() or file.name for file in files if not is_image(file))
        return list(filter(is_image, files))

    def lines(self) -> list[str]:
        """At most two lines: one on files that are not images, one on hidden images and folders (except .DS_Store)."""
        lines = []
        if self.others:
            kinds = sorted(self.others.items(), key=lambda pair: (-pair[1], pair[0]))
            counts = few([f"{count:,} {suffix}" for suffix, count in kinds])
            number = counted(self.others.total(), "file that is not an image", "files that are not images")
            lines.append(f"skipped: {number} ({counts})")
        if hidden := [path for path in self.hidden if path.is_dir() or (path.suffix and is_image(path))]:
            number = counted(len(hidden), "hidden file or folder", "hidden files or folders")
            lines.append(f"skipped: {number}, such as {min(hidden)}")
        return lines


def images_by_name(root: Path) -> dict[str, Path]:
    """The images below a folder by file name, without names that occur more than once."""
    paths: dict[str, Path | None] = {}
    for path in filter(is_image, files_below(root)):
        paths[path.name] = None if path.name in paths else path
    return {name: path for name, path in paths.items() if path is not None}
