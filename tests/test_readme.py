"""The README says what was measured, and CI runs what the README says."""

import importlib.util
import json
import re
from pathlib import Path

import pytest

import shvit
from shvit.model.config import VARIANTS
from shvit.model.cost import cost
from shvit.pretrained import PUBLISHED_TOP1

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


@pytest.mark.parametrize("page", ["README.md", "docs/training.md", "docs/detection.md", "docs/studies.md"])
def test_measured_sections_are_those_of_the_results(page):
    spec = importlib.util.spec_from_file_location("readme", ROOT / "benchmarks" / "readme.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert page in module.SECTIONS
    assert module.filled(page) == (ROOT / page).read_text()


@pytest.mark.parametrize("path", sorted((ROOT / "results").glob("*.json")), ids=lambda path: path.name)
def test_results_say_how_they_were_measured(path):
    result = json.loads(path.read_text())
    assert {"value", "unit", "commit", "versions", "hardware", "threads", "command", "date"} <= set(result)
    assert path.stem.endswith(result["date"][:10])


@pytest.mark.parametrize("name", VARIANTS)
def test_the_table_of_networks(name):
    [row] = re.findall(rf"^\| `{name}` \|(.*)\|$", README.partition("## The networks")[2], re.MULTILINE)
    cells = [cell.strip() for cell in row.split("|")]
    model = shvit.create_model(name)
    total = cost(model, (model.image_size, model.image_size))
    top1 = f"{PUBLISHED_TOP1[f'{name}.in1k']:.1f} %"
    assert cells == [
        str(model.image_size),
        f"{total.params / 1e6:.1f} M",
        f"{total.macs / 1e6:.0f} M",
        f"`{name}.in1k`",
        top1,
    ]


def test_ci_runs_the_readmes_test_command():
    [command] = re.findall(r"Run its tests:\n\n    (.*)\n", README)
    assert command in (ROOT / ".ci" / "run").read_text().splitlines()
