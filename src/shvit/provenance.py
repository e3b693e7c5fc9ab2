"""Provenance of results and files: versions, commit, machine."""

import os
import platform
import subprocess
import sys
from contextlib import suppress
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from .redact import redacted

PACKAGES = ("shvit", "torch", "torchvision", "timm", "numpy", "pillow")
ENGINE_PACKAGES = ("triton", "openvino", "nncf", "onnx", "onnxruntime", "coremltools", "executorch", "ai-edge-litert")
INSTRUCTIONS = {
    "AVX2": {"avx2"},
    "AVX-512": {"avx512f"},
    "VNNI": {"avx512_vnni", "avx_vnni"},
    "bf16": {"avx512_bf16", "bf16"},
    "AMX": {"amx_int8"},
    "dotprod": {"asimddp"},
    "i8mm": {"i8mm"},
}
"""Instruction sets that affect the speed of a processor, and their names in /proc/cpuinfo."""


def facts() -> dict[str, Any]:
    """Versions, commit (in a checkout), machine, command and date."""
    return {
        "versions": {"python": platform.python_version(), **versions()},
        "commit": commit(),
        "hardware": {
            "processor": processor(),
            "instructions": instructions(),
            "cores": os.cpu_count(),
            "system": platform.system(),
        },
        "command": redacted(" ".join([Path(sys.argv[0]).name, *sys.argv[1:]])),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def versions() -> dict[str, str]:
    """Versions of this package and of the installed libraries that affect its results."""
    installed = {}
    for name in PACKAGES + ENGINE_PACKAGES:
        with suppress(metadata.PackageNotFoundError):
            installed[name] = metadata.version(name)
    return installed


def commit() -> str | None:
    """The commit of the checkout, with `-dirty` if files were changed. None outside a checkout."""
    here = Path(__file__)
    if _git(here.parent, "ls-files", "--error-unmatch", here.name) is None:
        return None
    return _git(here.parent, "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*")


def processor() -> str:
    """The name of the processor."""
    return _cpuinfo("model name") or platform.processor() or platform.machine()


def instructions() -> list[str]:
    """The instruction sets in `INSTRUCTIONS` that the processor supports. Always empty on systems other than Linux."""
    has = set((_cpuinfo("flags") or _cpuinfo("Features")).split())
    return [name for name, flags in INSTRUCTIONS.items() if has & flags]


def _cpuinfo(entry: str) -> str:
    """The value of an entry of /proc/cpuinfo for the first core. Empty if there is none."""
    cpuinfo = Path("/proc/cpuinfo")
    for line in cpuinfo.read_text(encoding="utf-8").splitlines() if cpuinfo.is_file() else ():
        name, _, value = line.partition(":")
        if name.strip() == entry:
            return value.strip()
    return ""


def _git(folder: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), *arguments], capture_output=True, text=True, check=True, timeout=10
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def hardware_in_words(hardware: dict[str, Any]) -> str:
    """The GPU; without a GPU, the processor with its instruction sets, such as AMD EPYC (AVX2, AVX-512)."""
    if "gpu" in hardware or not hardware.get("instructions"):
        return hardware.get("gpu", hardware["processor"])
    return f"{hardware['processor']} ({', '.join(hardware['instructions'])})"
