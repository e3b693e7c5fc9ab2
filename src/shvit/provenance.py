"""Where and with what something was made: versions, commit, machine."""

import os
import platform
import subprocess
import sys
from contextlib import suppress
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

PACKAGES = ("shvit", "torch", "torchvision", "timm", "numpy", "pillow")
ENGINES = ("triton", "openvino", "nncf", "onnx", "onnxruntime", "coremltools", "executorch")


def facts() -> dict[str, Any]:
    """Versions, the commit of this code where it runs from a checkout, machine, command and date."""
    return {
        "versions": {"python": platform.python_version(), **versions()},
        "commit": commit(),
        "hardware": {"processor": processor(), "cores": os.cpu_count(), "system": platform.system()},
        "command": " ".join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def versions() -> dict[str, str]:
    """Of this package and of the libraries that its results depend on, as far as they are installed."""
    found = {}
    for name in PACKAGES + ENGINES:
        with suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found


def commit() -> str | None:
    """The commit that this file is part of, with `-dirty` where files were changed; None outside a checkout."""
    here = Path(__file__)
    if _git(here.parent, "ls-files", "--error-unmatch", here.name) is None:
        return None
    return _git(here.parent, "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*")


def processor() -> str:
    """The processor's name as the system gives it."""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _git(folder: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), *arguments], capture_output=True, text=True, check=True, timeout=10
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
