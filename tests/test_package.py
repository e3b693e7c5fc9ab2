"""What the package promises before any work is done."""

import os
import subprocess
import sys

import pytest

import shvit

PUBLIC = {
    "Failure", "FuseError", "InputError", "ModelFile", "Prediction", "Predictor", "create_model", "engines", "fuse",
    "list_models", "load", "pretrained", "save",
}  # fmt: skip


def python(code, **environment):
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env={**os.environ, **environment}
    )


def test_the_public_names_are_exactly_these():
    assert set(shvit.__all__) == PUBLIC
    assert set(dir(shvit)) == PUBLIC
    assert all(getattr(shvit, name) is not None for name in PUBLIC)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = shvit.nothing


def test_public_names_stay_what_they_are_whatever_was_imported_before():
    """A submodule of the same name would take a function's place."""
    code = "import shvit.cli.main, shvit.train.run, shvit.cli.demo, types; import shvit;"
    code += "modules = {n for n in shvit.__all__ if isinstance(getattr(shvit, n), types.ModuleType)};"
    code += "assert modules == {'engines', 'pretrained'}"
    assert python(code).returncode == 0


def test_importing_prints_nothing_reads_no_environment_and_loads_no_torch():
    code = """
import os, sys
class Watched(dict):
    def __getitem__(self, key): raise SystemExit(f"read {key}")
    get = __contains__ = __getitem__
os.environ = Watched()
import shvit
sys.exit([name for name in ("torch", "timm", "numpy", "PIL") if name in sys.modules] or 0)
"""
    done = python(code)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.parametrize(
    "arguments", [[], ["train"], ["eval"], ["predict"], ["info"], ["models"], ["demo"], ["study"]], ids=str
)
def test_help_does_not_import_torch(arguments):
    code = f"""
import sys
sys.argv = ["shvit", *{arguments!r}, "--help"]
from shvit.cli.main import main
try:
    main()
finally:
    assert "torch" not in sys.modules and "numpy" not in sys.modules
"""
    done = python(code)
    assert done.returncode == 0, done.stderr
    assert "Usage: shvit" in done.stdout


def test_the_command_and_the_module_are_the_same():
    module = subprocess.run([sys.executable, "-m", "shvit", "--help"], capture_output=True, text=True)
    command = python("import sys; sys.argv = ['shvit', '--help']; from shvit.cli.main import main; main()")
    assert module.returncode == 0
    assert module.stdout == command.stdout


def test_list_models():
    assert shvit.list_models() == ["shvit_s1", "shvit_s2", "shvit_s3", "shvit_s4"]
