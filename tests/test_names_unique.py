"""A public name means one thing in the whole package: classes, functions, types and constants of modules."""

import ast
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import shvit

SOURCE = Path(shvit.__file__).parent

ALLOWED = {
    # The command of a verb, and the function behind it, which does the work and returns numbers.
    "audit", "bench", "calibrate_bn", "evaluate", "export", "train",
    # Opens what its module knows: a model file, an exported file, or either of them.
    "load",
    # Prints the result of its verb.
    "show",
    # The program of its module.
    "main",
    # The same limit, written twice because data and model do not import each other.
    "MAX_IMAGE_SIZE",
}  # fmt: skip


def names_in(tree: ast.Module) -> Iterator[str]:
    """Classes anywhere; functions, constants and types at the top of a module. Type variables may repeat."""
    yield from (node.name for node in ast.walk(tree) if isinstance(node, ast.ClassDef))
    yield from {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}  # overloads are one function
    for node in tree.body:
        if isinstance(node, ast.Assign | ast.AnnAssign) and "TypeVar(" not in ast.unparse(node):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            yield from (each.id for target in targets for each in ast.walk(target) if isinstance(each, ast.Name))


def files_by_name() -> dict[str, list[str]]:
    """The files that define each public name."""
    files = defaultdict(list)
    for path in sorted(SOURCE.rglob("*.py")):
        for name in names_in(ast.parse(path.read_text(encoding="utf-8"))):
            if not name.startswith("_"):
                files[name].append(path.relative_to(SOURCE).as_posix())
    return files


def test_no_public_name_has_two_meanings():
    found = {name: files for name, files in files_by_name().items() if len(files) > 1}
    assert {name: files for name, files in found.items() if name not in ALLOWED} == {}


def test_allowed_names_are_still_used_twice():
    files = files_by_name()
    assert {name for name in ALLOWED if len(files.get(name, ())) < 2} == set()
