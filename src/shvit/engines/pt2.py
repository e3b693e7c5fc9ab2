"""Checks of a `.pt2` file before torch reads it.

`torch.export.load` unpickles parts of a file, lets sympy evaluate sizes as Python code, and generates and runs code
that contains names from the file. Therefore, torch reads a new archive instead of the file. The archive has only the
members that shvit writes, and these hold only tensors, sizes and operations. Everything else is refused or left out.
"""

import ast
import io
import json
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch.utils._pytree import tree_structure, treespec_dumps

from ..header import parsed
from ..modelfile import HEADER_KEY
from .exported import EngineError, unreadable

MODEL, SAMPLES, FACTS = "models/model.json", "data/sample_inputs/model.pt", f"extra/{HEADER_KEY}"
CONFIGS = {
    "data/weights/model_weights_config.json": r"weight_\d+",
    "data/constants/model_constants_config.json": r"tensor_\d+",
}
"""Members that list tensors, each with the pattern that the tensors' names must match."""
MEMBERS = re.compile(
    r"data/(weights/weight|constants/tensor)_\d+|archive_format|archive_version|byteorder|\.data/(version|serialization_id)"
)
"""Members that torch reads as numbers or bytes."""
NAME = re.compile(r"[\w.+-]*", re.ASCII)
TEXT = re.compile(r"[\w ,.>-]*", re.ASCII)
"""Text arguments of operations, such as `reflect` or `bhij,bhjd->bhid`."""
SYMBOL = re.compile(r"[a-z]+\d+")
OPERATIONS = re.compile(
    r"torch\.ops\.aten\.\w+\.\w+"
    r"|torch\.ops\.higher_order\.wrap_with_(autocast|set_grad_enabled)"
    r"|torch\.ops\.torchvision\.(nms|roi_align)\.default"
    r"|torch\.sym_(float|int|ite|max|min|not|sum)"
    r"|_operator\.(add|and_|eq|floordiv|ge|getitem|gt|le|lt|mod|mul|ne|neg|or_|pow|sub|truediv)"
)
WORDS = {"approximate", "equation", "indexing", "mode", "ord", "padding", "reduce", "rounding_mode", "side"}
"""Names of arguments that may be text. Text in other arguments could name a file, as in `aten.from_file`."""
CODE = {"as_custom_obj", "as_operator", "custom_obj", "token"}
"""Keys whose values are not tensors, sizes or operations, and may be code."""
FUNCTIONS = {
    *("Add", "Mul", "Integer", "Rational", "Max", "Min", "Mod", "PythonMod", "FloorDiv", "CeilDiv", "ModularIndexing"),
    *("Eq", "Ne", "Lt", "Le", "Gt", "Ge", "And", "Or", "Not", "Equality", "Unequality", "StrictLessThan", "LessThan"),
    *("StrictGreaterThan", "GreaterThan", "ToFloat", "TruncToInt", "CleanDiv", "IntTrueDiv"),
}  # fmt: skip
MAX_EXPRESSION, MAX_POWER, MAX_NUMBER = 10_000, 8, 2**63


def members(path: Path) -> dict[str, bytes]:
    """The archive's members, by name without their common folder. Raises EngineError if one of them may be code."""
    errors = (zipfile.BadZipFile, OSError, EOFError, ValueError, NotImplementedError, RuntimeError)
    with unreadable(path, "is truncated or not a .pt2 file", *errors), zipfile.ZipFile(path) as archive:
        entries = archive.infolist()
        if packed := [entry.filename for entry in entries if entry.compress_type != zipfile.ZIP_STORED]:
            raise EngineError(f"{path} is refused: {packed[0]!r} is compressed, but shvit export never compresses")
        if sum(entry.file_size for entry in entries) > path.stat().st_size:
            raise EngineError(f"{path} is refused: its members overlap")
        if len({entry.filename.partition("/")[0] for entry in entries}) > 1:
            raise EngineError(f"{path} is refused: it is a legacy archive, or was not written by shvit export")
        found = {entry.filename.partition("/")[2]: archive.read(entry) for entry in entries}
    if len(found) < len(entries):
        raise EngineError(f"{path} is refused: it has two members with the same name")
    if FACTS not in found:
        raise EngineError(f"{path} was not written by shvit export")
    for name in found:
        if name not in (MODEL, SAMPLES, FACTS, *CONFIGS) and not MEMBERS.fullmatch(name):
            raise EngineError(f"{path} is refused: it has a member {name!r}, which may hold code; export it again")
    if found.get(SAMPLES):
        raise EngineError(f"{path} is refused: it holds sample inputs, which are a pickle; export it again")
    return found


def checked(path: Path) -> io.BytesIO:
    """A new archive that is safe for `torch.export.load`. Raises an EngineError that names a forbidden entry."""
    found = members(path)
    try:
        found[MODEL] = json.dumps(_model(_json(found, MODEL))).encode()
        for config, names in CONFIGS.items():
            _check_tensors(_json(found, config), names)
    except (KeyError, TypeError, AttributeError) as error:
        raise EngineError(f"{path} is refused: it does not have the structure of a .pt2 file ({error!r})") from None
    except ValueError as error:
        raise EngineError(f"{path} is refused: {error}") from None
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as fresh:
        for name, content in found.items():
            fresh.writestr(f"model/{name}", content)
    archive.seek(0)
    return archive


def shapes(path: Path) -> tuple[list[Any], list[Any]]:
    """The shapes of the images and of the outputs. A dimension that varies is None.

    Raises:
        EngineError: The network does not take one batch of images and return one tensor.
    """
    found, errors = members(path), (KeyError, TypeError, AttributeError, ValueError)
    with unreadable(path, "does not take one batch of images and return one tensor", *errors):
        module = _json(found, MODEL)["graph_module"]
        graph = module["graph"]
        [images] = [spec["user_input"] for spec in module["signature"]["input_specs"] if "user_input" in spec]
        takes, gives = (
            [size.get("as_int") for size in graph["tensor_values"][end["as_tensor"]["name"]]["sizes"]]
            for end in (images["arg"], *graph["outputs"])
        )
    return takes, gives


def _json(found: Mapping[str, bytes], name: str) -> Any:
    if name not in found:
        raise ValueError(f"it has no {name}")
    return parsed(found[name], depth=200)


def _check_tensors(config: Any, names: str) -> None:
    for entry in config["config"].values():
        if entry["use_pickle"] is not False:
            raise ValueError(f"{entry['path_name']!r} is a pickle, which may hold code")
        if not re.fullmatch(names, entry["path_name"]):
            raise ValueError(f"{entry['path_name']!r} is a custom object, which may hold code")
    _check_names(config)


def _model(document: Any) -> dict[str, Any]:
    """The program without guards and the origins of operations. torch needs neither, but would run both as code."""
    module = document["graph_module"]
    module["metadata"] = {}
    module["module_call_graph"] = [entry for entry in module["module_call_graph"] if entry["fqn"] == ""]
    for entry in module["module_call_graph"]:
        entry["signature"] |= {"in_spec": "", "out_spec": ""}
    document["guards_code"] = []
    _check_names(document)
    for entry in module["module_call_graph"]:  # one batch of images in, one tensor out
        trees = {"in_spec": ((0,), {}), "out_spec": 0}
        entry["signature"] |= {key: treespec_dumps(tree_structure(tree)) for key, tree in trees.items()}
    return document


def _check_names(value: Any, key: str = "") -> None:
    """Raise ValueError unless everything in the value is a name, a number, a plain expression or a known operation."""
    if isinstance(value, dict):
        if code := CODE.intersection(value):
            raise ValueError(f"it has {code.pop()!r}, which may be code")
        if "target" in value and "inputs" in value:
            value["metadata"] = {}
            _check_operation(value)
        for name, inner in value.items():
            _check_text(name, NAME)
            _check_names(inner, name)
    elif isinstance(value, list):
        for inner in value:
            _check_names(inner, key)
    elif key == "expr_str":
        _check_expression(value)
    elif isinstance(value, str):
        _check_text(value, TEXT if key in ("as_string", "as_strings") else NAME)


def _check_text(text: str, allowed: re.Pattern[str]) -> None:
    if not allowed.fullmatch(text):
        raise ValueError(f"{text[:80]!r} is not a plain name")


def _check_operation(node: dict[str, Any]) -> None:
    if not OPERATIONS.fullmatch(node["target"]):
        raise ValueError(f"{node['target'][:80]!r} is not an allowed operation")
    if node["target"].startswith("torch.ops.higher_order."):  # text arguments name the device
        return
    for argument in node["inputs"]:
        if {"as_string", "as_strings"} & set(argument["arg"]) and argument["name"] not in WORDS:
            raise ValueError(f"{node['target']} has text as its argument {argument['name']!r}, which is not allowed")


def _check_expression(text: Any) -> None:
    """Raise ValueError unless this is a size as torch writes it: `Add(Symbol('s0', integer=True), Integer(-1))`."""
    if not isinstance(text, str) or len(text) > MAX_EXPRESSION:
        raise ValueError("one of its sizes is not an expression")
    try:
        plain = _plain(ast.parse(text, mode="eval").body)
    except (SyntaxError, ValueError, MemoryError, RecursionError):
        plain = False
    if not plain:
        raise ValueError(f"{text[:80]!r} is not a plain size, and may be code")


def _plain(node: ast.expr) -> bool:
    """Whether the expression consists only of numbers, symbols, arithmetic operators and `FUNCTIONS`."""
    match node:
        case ast.Constant(value=bool()):
            return True
        case ast.Constant(value=int() | float() as number):
            return abs(number) <= MAX_NUMBER
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            return _plain(operand)
        case ast.BinOp(op=ast.Add() | ast.Sub() | ast.Mult() | ast.FloorDiv(), left=left, right=right):
            return _plain(left) and _plain(right)
        case ast.Name(id=name):
            return bool(SYMBOL.fullmatch(name))
        case ast.Call(func=ast.Name(id="Symbol"), args=[ast.Constant(value=str() as name)], keywords=facts):
            known = all(isinstance(fact.value, ast.Constant) and fact.arg is not None for fact in facts)
            return known and bool(SYMBOL.fullmatch(name))
        case ast.Call(func=ast.Name(id="Pow"), args=[base, power], keywords=[]):
            nested = any(isinstance(inner, ast.Name) and inner.id == "Pow" for inner in ast.walk(base))
            return _plain(base) and _plain(power) and _small(power) and not nested
        case ast.Call(func=ast.Name(id=name), args=arguments, keywords=[]):
            return name in FUNCTIONS and all(map(_plain, arguments))
    return False


def _small(power: ast.expr) -> bool:
    """Whether this exponent is at most `MAX_POWER`."""
    match power:
        case ast.Call(func=ast.Name(id="Integer"), args=[inner]) | ast.UnaryOp(op=ast.USub(), operand=inner):
            return _small(inner)
        case ast.Constant(value=int() as number):
            return number <= MAX_POWER
    return False
