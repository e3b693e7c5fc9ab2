"""README and docs say what was measured, their links and commands work, and CI runs README's test command."""

import ast
import functools
import importlib.util
import inspect
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from cyclopts import App
from PIL import Image

import shvit
from shvit.engines import ENGINES
from shvit.model.config import VARIANTS
from shvit.model.cost import cost
from shvit.pretrained import PUBLISHED_TOP1
from shvit.tasks import TASKS

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src" / "shvit"
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = ["README.md", "CONTRIBUTING.md", *(f"docs/{path.name}" for path in sorted((ROOT / "docs").glob("*.md")))]


def page(path):
    return (ROOT / path).read_text(encoding="utf-8")


def written(path):
    """The page without its generated sections, which quote commands as they were run."""
    return re.sub(r"<!-- (\w+) -->\n.*?<!-- /\1 -->", "", page(path), flags=re.DOTALL)


@pytest.fixture(scope="module")
def generator():
    folder = str(ROOT / "benchmarks")
    sys.path.insert(0, folder)
    try:
        spec = importlib.util.spec_from_file_location("readme", ROOT / "benchmarks" / "readme.py")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    finally:
        sys.path.remove(folder)
    return module


@pytest.mark.parametrize("path", ["README.md", "docs/benchmarks.md", "docs/studies.md"])
def test_measured_sections_are_those_of_the_results(path, generator):
    assert path in generator.SECTIONS
    assert generator.filled(path) == page(path)


def test_every_generated_section_is_filled(generator):
    for path in PAGES:
        markers = re.findall(r"<!-- (\w+) -->", page(path))
        assert sorted(markers) == sorted(generator.SECTIONS.get(path, {}))


def test_the_figure_shows_the_results(generator):
    with Image.open(ROOT / generator.latency.FIGURE) as figure:
        assert figure.text["Description"] == generator.latency.data()
        pixels = np.asarray(figure.convert("RGBA"))
    assert (pixels[..., 3] == 255).all()  # legible on a dark page, too


def test_the_figure_can_be_drawn(generator, tmp_path):
    generator.latency.draw(tmp_path / "figure.png")
    with Image.open(tmp_path / "figure.png") as figure:
        assert figure.text["Description"] == generator.latency.data()


@pytest.mark.parametrize("path", sorted((ROOT / "results").glob("*.json")), ids=lambda path: path.name)
def test_results_say_how_they_were_measured(path):
    result = json.loads(path.read_text())
    assert {"value", "unit", "commit", "versions", "hardware", "threads", "command", "date"} <= set(result)
    assert path.stem.endswith(result["date"][:10])


@pytest.mark.parametrize("name", VARIANTS)
def test_the_table_of_networks(name):
    [row] = re.findall(rf"^\| `{name}` \|(.*)\|$", README.partition("## Models")[2], re.MULTILINE)
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
    [command] = re.findall(r"Run the tests:\n\n    (.*)\n", README)
    assert command in (ROOT / ".ci" / "run").read_text().splitlines()


def test_the_readme_is_short():
    assert len(README.split()) <= 900


def anchors(path):
    """The anchors that GitHub gives a page's headings."""
    found = {}
    for heading in re.findall(r"^#+ (.+)$", re.sub(r"^```.*?^```", "", page(path), flags=re.M | re.S), re.MULTILINE):
        anchor = re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")
        found[anchor] = found.get(anchor, -1) + 1
        if found[anchor]:
            found[f"{anchor}-{found[anchor]}"] = 0
    return found.keys()


@pytest.mark.parametrize("path", PAGES)
def test_links_lead_somewhere(path):
    links = re.findall(r"\]\(([^)\s]+)\)", page(path))
    for link in links:
        if link.startswith("http"):
            continue
        target, _, anchor = link.partition("#")
        place = (ROOT / path).parent / target if target else ROOT / path
        assert place.exists(), link
        if anchor:
            assert anchor in anchors(os.path.relpath(place, ROOT)), link


def test_every_page_is_linked_from_the_readme():
    for path in PAGES[1:]:
        assert f"]({path})" in README


def test_the_source_names_pages_that_exist():
    for file in SOURCE.rglob("*.py"):
        for name in re.findall(r"docs/[\w-]+\.md", file.read_text(encoding="utf-8")):
            assert (ROOT / name).exists(), f"{file}: {name}"


@functools.cache
def flags_of(*verb):
    text = subprocess.run(
        [sys.executable, "-m", "shvit", *verb, "--help"],
        capture_output=True, text=True, check=True,
        env={**os.environ, "COLUMNS": "200", "PYTHONPATH": str(ROOT / "src")},
    ).stdout  # fmt: skip
    return set(re.findall(r"^│ +(?:\* +)?(?:[A-Z]+ +)?(--[a-z][\w-]*)", text, re.MULTILINE)) | {"--help"}


def commands(path):
    """Every `shvit` command in a page's code: its verb, or two words of a study, and its flags."""
    text = written(path)
    blocks = re.findall(r"(?:^ {4,}.*\n)+", text, re.MULTILINE) + re.findall(r"`(shvit [^`]+)`", text)
    for line in "\n".join(blocks).replace("\\\n", " ").splitlines():
        command = re.search(r"(?:^|\s|run=\")(?:-m )?shvit ((?:study )?[a-z][a-z-]*)\b(.*)", line.partition("  #")[0])
        if command:
            yield command[1].split(), re.findall(r"(?<=\s)--[a-z][\w-]*", command[2])


@pytest.mark.parametrize("path", PAGES)
def test_commands_have_the_flags_they_are_shown_with(path):
    for verb, flags in commands(path):
        assert not set(flags) - flags_of(*verb), verb


def test_flags_in_the_text_exist():
    verbs = ["train", "eval", "predict", "export", "bench", "info", "models", "shard", "calibrate-bn", "audit"]
    studies = ["redundancy", "macro", "ablation", "designs", "breakdown", "resolution"]
    known = set().union(*(flags_of(verb) for verb in verbs), *(flags_of("study", name) for name in studies))
    others = {"--max-restarts", "--shutdown-timeout", "--rate"}  # of torchrun; a name of an earlier version
    for path in PAGES:
        for code in re.findall(r"`(--[^`]+)`", written(path)):
            assert not set(re.findall(r"--[a-z][\w-]*", code)) - known - others, f"{path}: {code}"


def python_blocks(path):
    return re.findall(r"^```python\n(.*?)^```", page(path), re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("path", ["README.md", "docs/python-api.md"])
def test_python_examples_run(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("a.jpg", "b.png"):
        Image.new("RGB", (64, 48)).save(name)
    model = shvit.create_model("shvit_s1", num_classes=2)
    shvit.save(shvit.ModelFile(model, ("cat", "dog")), "runs/mine/best.safetensors")
    names = {}
    for block in python_blocks(path):
        exec(block, names)
    results = names.get("results") or [names["result"]]
    assert results[-1].path == "b.png"
    assert results[-1].error is None


@pytest.mark.parametrize(("example", "kind"), [("MyEngine", ENGINES["onnx"]), ("MyTask", TASKS["classify"])])
def test_the_examples_of_an_engine_and_a_task_have_members_of_real_ones(example, kind):
    [block] = [block for block in python_blocks("docs/architecture.md") if f"class {example}" in block]
    [definition] = ast.parse(block).body
    for member in definition.body[1:]:
        if isinstance(member, ast.Assign):
            assert hasattr(kind, member.targets[0].id)
        else:
            real = inspect.signature(getattr(kind, member.name)).parameters
            shown = [argument.arg for argument in member.args.args if argument.arg not in ("self", "cls")]
            assert not set(shown) - set(real), member.name


def test_the_example_of_a_verb_runs(tmp_path, monkeypatch, capsys):
    [block] = [block for block in python_blocks("docs/architecture.md") if "CountRequest" in block]
    (tmp_path / "counting.py").write_text(block)
    monkeypatch.syspath_prepend(tmp_path)
    app = App(name="shvit", result_action="return_value")
    app.command(importlib.import_module("counting").count)
    for name in ("a.jpg", "b.jpg", "c.txt"):
        (tmp_path / name).touch()
    app(["count", str(tmp_path), "--json"])
    assert json.loads(capsys.readouterr().out) == {"files": 2}
    app(["count", str(tmp_path), "--suffix", ".txt"])
    assert capsys.readouterr().out == "1 file\n"


def test_the_source_tree_is_the_one_shown():
    tree = page("docs/architecture.md").partition("    src/shvit/\n")[2].partition("\n\n")[0]
    shown, folder = set(), SOURCE
    for line in tree.splitlines():
        start = re.match(r" {6}(\w+)/", line)
        names = re.findall(r"\b(\w+\.py|\w+/)", line)
        folder = SOURCE / start[1] if start else SOURCE if re.match(r" {6}\w+\.py", line) else folder
        for name in names:
            place = SOURCE / name if start and name == f"{start[1]}/" else folder / name
            assert place.exists(), place
        shown.add(start[1] if start else None)
    packages = {path.parent.name for path in SOURCE.glob("*/__init__.py")}
    assert packages <= shown
