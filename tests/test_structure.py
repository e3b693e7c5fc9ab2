"""The rules of the house: short files and functions, docstrings, and tasks and engines that own their facts."""

import ast
import re
from functools import cache
from pathlib import Path

SOURCE = Path(__file__).parents[1] / "src" / "shvit"
FILES = sorted(SOURCE.rglob("*.py"))
KERNELS = {"engines/cuda/kernels.py", "engines/cuda/launches.py"}
MAX_FILE, MAX_FUNCTION = 400, 60
TASK_BRANCH = re.compile(
    r"isinstance\([^)]*(Detector|Detection|Objects|Classif)|[!=]= *['\"](detect|segment|classify)['\"]"
)


def name_of(path: Path) -> str:
    return path.relative_to(SOURCE).as_posix()


@cache
def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def functions(node: ast.AST):
    return [each for each in ast.walk(node) if isinstance(each, ast.FunctionDef | ast.AsyncFunctionDef)]


def undocumented(node: ast.Module | ast.ClassDef, within: str, inherited: set[str]):
    """Public classes, functions and methods without docstring. Methods in `inherited` need none."""
    for each in node.body:
        if isinstance(each, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) and not each.name.startswith("_"):
            name = f"{within}:{each.name}"
            overload = any(getattr(mark, "id", "") == "overload" for mark in each.decorator_list)
            if not ast.get_docstring(each) and each.name not in inherited and not overload:
                yield name
            if isinstance(each, ast.ClassDef):
                yield from undocumented(each, name, METHODS)


METHODS = {"forward", "render", "write"} | {
    method.name
    for path in FILES
    for each in ast.walk(tree_of(path))
    if isinstance(each, ast.ClassDef)
    for method in functions(each)
    if ast.get_docstring(method)
}
"""Methods that are documented in a base class or a protocol of the package, or in a library."""


def test_no_file_is_longer_than_400_lines():
    lengths = {name_of(path): len(path.read_text(encoding="utf-8").splitlines()) for path in FILES}
    assert {name: length for name, length in lengths.items() if length > MAX_FILE and name not in KERNELS} == {}


def test_no_function_is_longer_than_60_lines():
    lengths = {
        f"{name_of(path)}:{each.name}": each.end_lineno - each.lineno + 1
        for path in FILES
        if name_of(path) not in KERNELS
        for each in functions(tree_of(path))
    }
    assert {name: length for name, length in lengths.items() if length > MAX_FUNCTION} == {}


def test_every_module_and_public_name_has_a_docstring():
    missing = [name_of(path) for path in FILES if not ast.get_docstring(tree_of(path))]
    missing += [name for path in FILES for name in undocumented(tree_of(path), name_of(path), set())]
    assert missing == []


def test_only_tasks_and_recipes_branch_on_the_task():
    found = [
        f"{name_of(path)}:{number}: {line.strip()}"
        for path in FILES
        if not name_of(path).startswith("tasks/") and not re.fullmatch(r"train/recipes?\.py", name_of(path))
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        if TASK_BRANCH.search(line)
    ]
    assert found == []


def test_only_engines_name_an_engine_class():
    classes = {
        each.name
        for path in FILES
        if name_of(path).startswith("engines/")
        for each in ast.walk(tree_of(path))
        if isinstance(each, ast.ClassDef) and any(getattr(base, "id", "") == "Engine" for base in each.bases)
    }
    assert len(classes) >= 6
    found = [
        f"{name_of(path)}:{each.lineno}: {alias.name}"
        for path in FILES
        if not name_of(path).startswith("engines/")
        for each in ast.walk(tree_of(path))
        if isinstance(each, ast.ImportFrom)
        for alias in each.names
        if alias.name in classes
    ]
    assert found == []
