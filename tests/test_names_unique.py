"""A public class name means one thing in the whole package."""

import ast
from collections import defaultdict
from pathlib import Path

import shvit

SOURCE = Path(shvit.__file__).parent


def public_classes() -> dict[str, list[str]]:
    """The files that define each public class name."""
    files = defaultdict(list)
    for path in sorted(SOURCE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                files[node.name].append(path.relative_to(SOURCE).as_posix())
    return files


def test_no_class_name_is_defined_twice():
    assert {name: files for name, files in public_classes().items() if len(files) > 1} == {}
