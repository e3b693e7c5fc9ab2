"""The files of ONNX Runtime for browsers, from the npm package onnxruntime-web."""

import base64
import hashlib
import shutil
import subprocess
import tarfile
import tempfile
from pathlib import Path

from filelock import FileLock

from ...errors import Failure, one_line
from ...files import cache_folder, replacing

ORT_WEB, ORT_WEB_VERSION = "onnxruntime-web", "1.30.0"
ORT_WEB_SHA512 = "q0y+JrrtukXSzsBWEMccVfqX25LRmosXHF+CaRJmg8pZClzcV7svNc4rKY3jL02Vb7QmRMDs1SigqR4CXAfKYQ=="
"""The package's checksum in npm's registry, in Base64. Change it together with the version."""
ORT_WEB_FILES = (
    "ort.wasm.min.mjs",
    "ort-wasm-simd-threaded.mjs",
    "ort-wasm-simd-threaded.wasm",
    "ort.webgpu.min.mjs",
    "ort-wasm-simd-threaded.asyncify.mjs",
    "ort-wasm-simd-threaded.asyncify.wasm",
)
"""The files that the page needs. It loads the last three only if the browser has WebGPU."""
ORT_LICENSES = "LICENSE", "ThirdPartyNotices.txt"
NPM_SECONDS = 600


def copy_runtime(folder: Path) -> None:
    """Write the files that the page needs, and the licenses, to a new folder.

    Raises:
        Failure: The package is not in the cache and cannot be downloaded, or it is damaged.
    """
    import onnxruntime

    package = fetched_package()
    folder.mkdir()
    with tarfile.open(package) as members:
        for name in ORT_WEB_FILES:
            content = members.extractfile(f"package/dist/{name}")
            assert content is not None, name
            with (folder / name).open("wb") as file:
                shutil.copyfileobj(content, file)
    for name in ORT_LICENSES:  # the npm package has none, and the Python package those of the same source
        if (text := Path(onnxruntime.__file__).with_name(name)).is_file():
            shutil.copyfile(text, folder / name)


def fetched_package() -> Path:
    """The package in the cache folder. If it is missing, npm downloads it.

    Raises:
        Failure: npm is not installed or fails, or the package has another checksum.
    """
    path = cache_folder() / f"{ORT_WEB}-{ORT_WEB_VERSION}.tgz"
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(path.with_name(f"{path.name}.lock")):
        if not path.is_file():
            _download(path)
        elif not _intact(path):
            raise Failure(f"{path} is damaged: delete it, and it is downloaded again")
    return path


def _download(path: Path) -> None:
    """Let npm download the package. Raises Failure if npm is not installed or fails."""
    name = f"{ORT_WEB}@{ORT_WEB_VERSION}"
    advice = f"run `npm pack {name}` on a machine with internet access and copy the file to {path.parent}"
    npm = shutil.which("npm")
    if npm is None:
        raise Failure(f"{name} is not in the cache and cannot be downloaded, because npm is not installed: {advice}")
    with tempfile.TemporaryDirectory() as folder:
        command = [npm, "pack", name, "--loglevel=error", "--pack-destination", folder]
        try:
            done = subprocess.run(
                command, cwd=folder, capture_output=True, text=True, errors="replace", timeout=NPM_SECONDS
            )
            reason = _reason(done.stderr) if done.returncode else ""
        except (OSError, subprocess.TimeoutExpired) as error:
            reason = one_line(error, first=True)
        found = Path(folder) / path.name
        if not reason and not (found.is_file() and _intact(found)):
            reason = "npm returned a file with another checksum"
        if reason:
            raise Failure(f"{name} is not in the cache and cannot be downloaded ({reason}): {advice}")
        with replacing(path) as temporary:
            shutil.copyfile(found, temporary)


def _reason(messages: str) -> str:
    """The line of npm's messages that says what is wrong."""
    lines = [line.removeprefix("npm error ").strip() for line in messages.splitlines() if line.strip()]
    return next((line for line in lines if not line.startswith(("code ", "errno ", "syscall "))), "no message")


def _intact(path: Path) -> bool:
    with path.open("rb") as file:
        return base64.b64encode(hashlib.file_digest(file, "sha512").digest()).decode() == ORT_WEB_SHA512
